"""The models that are known, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from rackscale import models
from rackscale.models.description import Model
from rackscale.report.columns import Column, Fitting


class KnownModel(Struct, frozen=True, kw_only=True):
    """A model of the catalog: a line of `rackscale catalog --models`."""

    name: str
    family: str
    aliases: tuple[str, ...]
    """Other names that it goes by, those on Hugging Face among them."""
    parameters: int
    active_parameters: int
    """Passed through by one token: fewer than all where there are experts."""
    layers: int
    hidden: int
    """Width of the hidden state."""
    longest_tokens: int | None
    """Of a sequence that it was made for; None: not published, or without limit."""
    source: str


def known(part: str | None = None) -> tuple[KnownModel, ...]:
    """All of them, or those with `part` in their name, family or another name; one alone where that is its name."""
    every = tuple(map(_known, models.models()))
    if part is None:
        return every
    wanted = part.lower()
    exact = models.aliases().get(wanted, wanted)
    named = tuple(one for one in every if one.name == exact)
    return named or tuple(
        one for one in every if any(wanted in text for text in (one.name, one.family, *one.aliases))
    )


def _known(model: Model) -> KnownModel:
    return KnownModel(
        name=model.name,
        family=model.family,
        aliases=tuple(alias for alias, name in models.aliases().items() if name == model.name),
        parameters=models.parameters(model),
        active_parameters=models.active_parameters(model),
        layers=model.depth,
        hidden=model.hidden,
        longest_tokens=model.max_tokens,
        source=model.source,
    )


def table(found: Iterable[KnownModel]) -> Fitting:
    """One line each; where it is wide enough with what Hugging Face calls it."""
    rows = list(found)
    hub = ["".join([a for a in one.aliases if "/" in a][:1]) or "-" for one in rows]
    columns = (
        Column("model", [one.name for one in rows]),
        Column("parameters", [_billions(one.parameters) for one in rows]),
        Column(
            "of a token",
            [
                "all" if one.active_parameters == one.parameters else _billions(one.active_parameters)
                for one in rows
            ],
        ),
        Column("layers", [str(one.layers) for one in rows]),
        Column(
            "longest sequence",
            ["-" if one.longest_tokens is None else f"{one.longest_tokens:,}" for one in rows],
        ),
    )
    return Fitting((*columns, Column("on Hugging Face", hub)), columns, columns[:3])


def _billions(count: int) -> str:
    return f"{count / 1e9:,.1f}B" if count >= 1e9 else f"{count / 1e6:,.0f}M"
