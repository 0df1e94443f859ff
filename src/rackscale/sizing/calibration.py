"""Turns the constants until measured steps come out right, and says how right rows come out that were held back.

The fit is a maximum a posteriori estimate: soft-L1 loss on log(predicted / measured) at 5 %, and each constant's prior
on its logarithm (constants.toml). Nothing is fitted per row, model or source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from rackscale.errors import ExecutorError
from rackscale.sizing.constants import constants, fitted, roles
from rackscale.sizing.experts import experts_of
from rackscale.sizing.layout import Array, Layouts
from rackscale.sizing.measurements import Measurement, groups
from rackscale.sizing.parts import Parts, parts
from rackscale.sizing.recipe import NEWEST
from rackscale.sizing.step import Step, step

SIGMA = 0.05
"""Relative error at which a measurement counts as one standard deviation off. Reruns between two releases differ by
1 % at the median and 22 % at worst."""
LEAST = 1e-6
"""What a constant that may be 0 is taken to be, so that it has a logarithm."""


class Errors(Struct, frozen=True, kw_only=True):
    """Relative errors of predicted step times."""

    rows: int
    median: float
    p90: float
    worst: float
    bias: float
    """Median of predicted / measured - 1: above 0 it predicts too slow."""


def errors(ratio: Array) -> Errors:
    """Of predicted / measured."""
    off = np.abs(ratio - 1.0)
    return Errors(
        rows=len(ratio),
        median=float(np.median(off)),
        p90=float(np.quantile(off, 0.9)),
        worst=float(off.max()),
        bias=float(np.median(ratio) - 1.0),
    )


@dataclass(slots=True)
class Problem:
    """Measurements with everything about them that no constant changes."""

    rows: Sequence[Measurement]
    parts: Parts
    layouts: Layouts
    seconds: Array
    years: Array
    dense: Array
    names: tuple[str, ...]
    """Of the constants, in the order of a vector of logarithms; the last is 1 and never turns."""
    places: dict[str, npt.NDArray[np.intp]]
    """By role: for each row, the places of the constants whose product it is."""

    def predict(self, logs: Array) -> Step:
        """With these logarithms of the constants."""
        every = np.append(logs, 0.0)
        by = {role: np.exp(every[where].sum(axis=1)) for role, where in self.places.items()}
        return step(self.parts, self.layouts, by, years=self.years, dense=self.dense)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Problem:
        """Some of the rows."""
        return Problem(
            [row for row, keep in zip(self.rows, chosen, strict=True) if keep],
            self.parts.where(chosen),
            self.layouts.take(chosen),
            self.seconds[chosen],
            self.years[chosen],
            self.dense[chosen],
            self.names,
            {role: where[chosen] for role, where in self.places.items()},
        )


def problem(rows: Sequence[Measurement]) -> Problem:
    """Prices all rows once; rows of one model and recipe together."""
    names = tuple(constants())
    place = {name: i for i, name in enumerate(names)} | {"none": len(names)}
    order: list[int] = []
    priced: list[Parts] = []
    layouts: list[Layouts] = []
    indices: dict[str, list[list[int]]] = {}
    for _, chosen in groups(list(rows), lambda row: repr((row.model, row.recipe))):
        some = [rows[i] for i in chosen]
        at = Layouts.of(
            [row.layout for row in some],
            global_batch=[row.global_batch for row in some],
            tokens=[row.tokens for row in some],
            domain=[row.domain for row in some],
            document=[min(row.recipe.document_tokens or row.tokens, row.tokens) for row in some],
        )
        order += chosen
        layouts.append(at)
        priced.append(parts(some[0].model, at, some[0].recipe))
        for role, by in roles(some[0].recipe, experts=experts_of(some[0].model)).items():
            padded = [place[name] for name in by] + [len(names)] * (4 - len(by))
            indices.setdefault(role, []).extend([padded] * len(some))
    back = np.argsort(np.array(order))
    return Problem(
        rows,
        Parts(**{f.name: np.concatenate([getattr(p, f.name) for p in priced])[back] for f in fields(Parts)}),
        Layouts.join(layouts).take(back),
        np.array([row.seconds for row in rows]),
        np.array([max(NEWEST - row.recipe.year, 0.0) for row in rows]),
        np.array([0.0 if has_experts(row) else 1.0 for row in rows]),
        names,
        {role: np.array(where, dtype=np.intp)[back] for role, where in indices.items()},
    )


def has_experts(row: Measurement) -> bool:
    """Whether the model is a mixture of experts."""
    return experts_of(row.model) is not None


def logs_of(values: Mapping[str, float]) -> Array:
    """Constants as a vector of logarithms."""
    return np.log([max(values[name], LEAST) for name in constants()])


def fit(
    of: Problem,
    *,
    start: Mapping[str, float] | None = None,
    spread: float = 1.0,
    reruns: bool = True,
    guess: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The constants that suit the measurements best.

    `start` replaces the priors' middles (a user's fleet starts from the published fit), `spread` scales their widths;
    `reruns`: rows of one source, model, system and precision share a weight; `guess`: where the search begins.
    Raises ExecutorError without SciPy.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise ExecutorError("calibration needs SciPy", hint="pip install 'rackscale[calibrate]'") from error
    known = constants()
    middle = logs_of(start or {name: constant.start for name, constant in known.items()})
    low, high = (np.log([max(getattr(c, side), LEAST) for c in known.values()]) for side in ("low", "high"))
    width = np.array([c.spread for c in known.values()]) * spread
    # nothing is fitted to seconds that rest on our own count of FLOPs
    told = np.array([0.0 if row.from_flops else 1.0 for row in of.rows])
    weight = told * (_weights(of) if reruns else 1.0)

    def residuals(logs: Array) -> Array:
        off = np.log(of.predict(logs).seconds / of.seconds) / SIGMA
        soft = np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off * off) - 1.0)) * weight
        return np.concatenate([soft, (logs - middle) / width])

    found = least_squares(
        residuals,
        np.clip(middle if guess is None else logs_of(guess), low + 1e-9, high - 1e-9),
        bounds=(low, high),
        x_scale=width,
    )
    return {name: float(np.exp(value)) for name, value in zip(known, found.x, strict=True)}


def _weights(of: Problem) -> Array:
    """Rows that are nearly the same experiment share one weight: a table of reruns must not outvote the others."""
    weight = np.ones(len(of.rows))
    for _, places in groups(
        list(of.rows), lambda row: f"{row.source} {row.model.name} {row.recipe.system} {row.recipe.precision}"
    ):
        weight[places] = len(places) ** -0.25
    return weight


def held_out(
    of: Problem, key: Callable[[Measurement], str], *, each: Callable[[str], None] = lambda _: None
) -> Array:
    """Predicted / measured of every row, by constants fitted without the rows that share its key."""
    ratio = np.ones(len(of.rows))
    start = fit(of)
    for name, places in groups(list(of.rows), key):
        chosen = np.ones(len(of.rows), dtype=bool)
        chosen[places] = False
        each(name)
        values = fit(of.take(chosen), guess=start) if chosen.any() else start
        ratio[places] = (of.predict(logs_of(values)).seconds / of.seconds)[places]
    return ratio


def table(
    rows: Sequence[Measurement], ratio: Array, key: Callable[[Measurement], str]
) -> Iterable[tuple[str, Errors]]:
    """Errors by key."""
    for name, places in groups(list(rows), key):
        yield name, errors(ratio[places])


def published() -> Array:
    """The constants as fitted on the published measurements."""
    return logs_of(fitted())
