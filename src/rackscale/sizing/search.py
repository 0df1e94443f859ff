"""The best of all layouts: what can win is priced, what cannot is known not to.

Savings never make a step faster than it is without any (space.py), so a division's time with the least recompute that
was asked for, nothing offloaded and gradients whole is a bound on its time with them. Divisions are taken in the order
of their bounds, and the search ends where the next bound is slower than the last layout that will be shown. Of a
division's savings only those are priced that fit where nothing less does; where a share of offload was asked for, most
of them, since more recompute leaves less to send. It finds the fastest that pricing everything finds, and the same
verdict: tests/sizing/test_search.py does both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from rackscale.models.description import Experts, Model
from rackscale.sizing.constants import fitted, roles
from rackscale.sizing.experts import experts_of
from rackscale.sizing.layout import FULL, MODULES, SHARDINGS, Layout, Layouts
from rackscale.sizing.memory import CLOSE, FITS, OUT, Memory, judged, memory, verdicts
from rackscale.sizing.parts import parts
from rackscale.sizing.recipe import NEWEST, Recipe
from rackscale.sizing.space import WAYS, Limits, Saving, can_scatter, candidates, divisions, saved, savings
from rackscale.sizing.step import Factors, Step, step

__all__ = [
    "WAYS",
    "Found",
    "Limits",
    "Priced",
    "Saving",
    "candidates",
    "divisions",
    "factors",
    "layout_of",
    "price",
    "savings",
    "search",
]

AT_ONCE = 16_384
"""Layouts that are expanded before the bound is looked at again: arrays that stay in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Layouts with what they take, and their order: by verdict, then the fastest first, or where nothing fits the
    leanest."""

    layouts: Layouts
    step: Step
    memory: Memory
    host: npt.NDArray[np.float64]
    """Bytes of host memory per GPU, for offloaded activations."""
    verdict: npt.NDArray[np.int8]
    """Of memory: memory.FITS, CLOSE or OUT."""
    order: npt.NDArray[np.intp]

    @property
    def fits(self) -> npt.NDArray[np.bool_]:
        """Where memory is sure to suffice."""
        return np.asarray(self.verdict == FITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best layouts of a space, and how many it has."""

    best: Priced
    considered: int
    """Layouts of the space."""
    divisions: int
    fitting: int
    """Divisions that fit with some saving."""
    tight: int
    """Divisions that may fit."""
    priced: int
    """Layouts whose time or memory was computed, each as often as it was; the others are known not to win."""


def factors(recipe: Recipe, *, experts: Experts | None, values: dict[str, float] | None = None) -> Factors:
    """The calibrated constants that concern `recipe`, by role."""
    known = fitted() if values is None else values
    return {
        role: prod(known[name] for name in names) for role, names in roles(recipe, experts=experts).items()
    }


def price(model: Model, at: Layouts, recipe: Recipe, *, values: dict[str, float] | None = None) -> Priced:
    """Step time and memory of every layout."""
    by = factors(recipe, experts=experts_of(model), values=values)
    years = max(NEWEST - recipe.year, 0.0)
    dense = 1.0 if experts_of(model) is None else 0.0
    steps = step(parts(model, at, recipe), at, by, years=years, dense=dense)
    needs, host, verdict = judged(model, at, recipe)
    return Priced(
        layouts=at,
        step=steps,
        memory=needs,
        host=host,
        verdict=verdict,
        order=np.lexsort((steps.seconds, needs.total * (verdict == OUT), verdict)),
    )


def search(
    model: Model,
    at: Layouts,
    ways: Sequence[Saving],
    recipe: Recipe,
    *,
    top: int = 5,
    values: dict[str, float] | None = None,
) -> Found:
    """The `top` best of the divisions `at` with the savings `ways`; of one division only what nothing less does."""
    reach, tried = _reach(model, at, ways, recipe)
    hopeful = np.flatnonzero(reach < OUT)
    if len(hopeful):
        pool, count = _hopeful(model, at.take(hopeful), reach[hopeful], ways, recipe, top=top, values=values)
    else:
        pool, count = [_leanest(model, at, ways, recipe, top=top)], len(at) * len(ways)
    return Found(
        best=price(model, Layouts.join(pool), recipe, values=values),
        considered=_size(at, ways),
        divisions=len(at),
        fitting=int(np.count_nonzero(reach == FITS)),
        tight=int(np.count_nonzero(reach == CLOSE)),
        priced=len(at) + tried + count,
    )


def _reach(
    model: Model, at: Layouts, ways: Sequence[Saving], recipe: Recipe
) -> tuple[npt.NDArray[np.int8], int]:
    """The best verdict of each division: of the last saving, and where that is not sure to fit, of all.

    But where its states alone are too much: the last saving divides them most. And how many layouts that concerned.
    """
    needs, _, reach = judged(model, saved(at, ways[-1:]), recipe)
    states = needs.parameters + needs.gradients + needs.optimizer
    hopeless = verdicts(states, recipe.hardware.accelerator.hbm_bytes) == OUT
    short = np.flatnonzero((reach > FITS) & ~hopeless)
    for chosen in _pieces(short, ways):
        verdict = judged(model, saved(at.take(chosen), ways), recipe)[2]
        reach[chosen] = verdict.reshape(len(chosen), -1).min(axis=1)
    return reach, len(short) * len(ways)


def _leanest(model: Model, at: Layouts, ways: Sequence[Saving], recipe: Recipe, *, top: int) -> Layouts:
    """The `top` divisions that need least memory, each with the saving that needs least."""
    least, way = np.zeros(len(at)), np.zeros(len(at), dtype=np.intp)
    for chosen in _pieces(np.arange(len(at)), ways):
        needs = memory(model, saved(at.take(chosen), ways), recipe).total.reshape(len(chosen), -1)
        least[chosen], way[chosen] = needs.min(axis=1), needs.argmin(axis=1)
    first = np.argsort(least, kind="stable")[:top]
    return saved(at.take(first), ways).take(np.arange(len(first)) * len(ways) + way[first])


def _pieces(places: npt.NDArray[np.intp], ways: Sequence[Saving]) -> Iterator[npt.NDArray[np.intp]]:
    """Divisions to expand at once."""
    width = max(AT_ONCE // len(ways), 1)
    return (places[begin : begin + width] for begin in range(0, len(places), width))


def _hopeful(
    model: Model,
    at: Layouts,
    reach: npt.NDArray[np.int8],
    ways: Sequence[Saving],
    recipe: Recipe,
    *,
    top: int,
    values: dict[str, float] | None,
) -> tuple[list[Layouts], int]:
    """Of divisions whose best verdict is `reach`: the best as they are, and with the savings that improve them."""
    least = replace(ways[0], offload=0.0)
    bound = price(model, saved(at, [least]), recipe, values=values)
    pool: list[Layouts] = []
    fast, short = np.zeros(0), np.arange(len(at))
    if least == ways[0]:  # one of the layouts to choose from
        pool.append(bound.layouts.take(_heads(bound, top)))
        fast, short = np.sort(bound.step.seconds[bound.fits])[:top], np.flatnonzero(bound.verdict > reach)
    count = len(at)
    for some in _pieces(short[np.argsort(bound.step.seconds[short], kind="stable")], ways):
        slowest = fast[top - 1] if len(fast) >= top else np.inf
        chosen = some[bound.step.seconds[some] <= slowest]
        if not len(chosen):
            break
        many = _needed(model, at.take(chosen), ways, recipe)
        count += len(chosen) * len(ways)
        found = price(model, many, recipe, values=values)
        pool.append(many.take(_heads(found, top)))
        fast = np.sort(np.concatenate([fast, found.step.seconds[found.fits]]))[:top]
    return pool, count


def _needed(model: Model, at: Layouts, ways: Sequence[Saving], recipe: Recipe) -> Layouts:
    """Each division with the savings that get a better verdict than any that gives up less, or that none is below."""
    many = saved(at, ways)
    verdict = judged(model, many, recipe)[2].reshape(len(at), len(ways))
    keep = np.zeros(verdict.shape, dtype=bool)
    for place, way in enumerate(ways):
        less = [other for other, some in enumerate(ways) if some.within(way)]
        if less:
            keep[:, place] = verdict[:, place] < verdict[:, less].min(axis=1)
        elif way.offload:  # with none, it is the bound, which is priced
            keep[:, place] = verdict[:, place] < OUT
    return many.take(keep.ravel())


def _heads(found: Priced, top: int) -> npt.NDArray[np.intp]:
    """Places of the `top` best of each verdict."""
    every = [found.order[found.verdict[found.order] == verdict][:top] for verdict in (FITS, CLOSE, OUT)]
    return np.concatenate(every)


def _size(at: Layouts, ways: Sequence[Saving]) -> int:
    """Layouts of the space, each once."""
    plain = sum(not way.zero2 for way in ways)
    scattered = sum(int(np.count_nonzero(can_scatter(at, way.staged))) for way in ways if way.zero2)
    return len(at) * plain + scattered if plain else len(at) * len(ways)


def layout_of(at: Layouts, place: int) -> Layout:
    """One of the arrays' layouts."""
    again = frozenset(m for m, column in zip(MODULES, at.again, strict=True) if column[place])
    return Layout(
        gpus=int(at.gpus[place]),
        tp=int(at.tp[place]),
        pp=int(at.pp[place]),
        cp=int(at.cp[place]),
        ep=int(at.ep[place]),
        etp=int(at.etp[place]),
        virtual=int(at.virtual[place]),
        zero_bubble=bool(at.zero_bubble[place]),
        ulysses=bool(at.ulysses[place]),
        micro_batch=int(at.micro_batch[place]),
        sharding=SHARDINGS[int(at.sharding[place])],
        shard=int(at.shard[place] * at.cp[place]) if at.shard[place] < at.dp[place] else 0,
        recompute=FULL if at.full[place] else again,
        recomputed=float(at.full[place]) or 1.0,
        offload=float(at.offload[place]),
    )
