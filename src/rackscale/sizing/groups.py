"""Which ranks of a layout talk to each other, and what lies between them: an NVLink domain, a leaf switch, a spine."""

from __future__ import annotations

from math import ceil

from msgspec import Struct

from rackscale.sizing.layout import Layout


class Group(Struct, frozen=True, kw_only=True):
    """The ranks of one collective: each rank is in one group of every kind."""

    name: str
    """TP, CP, EP, PP, DP (with CP's ranks, which hold the same parameters), FSDP (of HSDP), EDP (DP of experts)."""
    ranks: int
    domains: int
    """NVLink domains that one group lies in."""
    leaves: int
    """Leaf switches that it lies under."""

    @property
    def lies(self) -> str:
        """Where, in words."""
        if self.domains == 1:
            return "inside an NVLink domain"
        return f"over {self.domains} domains" + (f" under {self.leaves} leaves" if self.leaves > 1 else "")


def groups(layout: Layout, *, domain: int, leaf: int | None = None) -> tuple[Group, ...]:
    """Of every kind that has more than one rank, where a domain has `domain` GPUs of the job and a leaf `leaf` (all).

    Ranks are numbered TP first, then CP, DP, PP (Megatron's order), experts' by ETP, EP, and EDP, and placed domain by
    domain, leaf by leaf.
    """
    stage = layout.gpus // layout.pp
    replicas = layout.dp * layout.cp
    experts = layout.ep * layout.etp
    kinds = [
        ("TP", layout.tp, 1),
        ("CP", layout.cp, layout.tp),
        ("EP", layout.ep, layout.etp),
        ("PP", layout.pp, stage),
        ("FSDP", layout.shard, layout.tp),
        ("DP", replicas // max(layout.shard, 1), layout.tp * max(layout.shard, 1)),
        ("EDP", stage // experts if layout.ep > 1 else 1, experts),
    ]
    return tuple(
        Group(
            name=name,
            ranks=ranks,
            domains=_spanned(ranks, apart, domain),
            leaves=1 if leaf is None else _spanned(ranks, apart, leaf),
        )
        for name, ranks, apart in kinds
        if ranks > 1
    )


def _spanned(ranks: int, apart: int, unit: int) -> int:
    """Units of `unit` GPUs that so many ranks lie in, each `apart` GPUs from the next."""
    return min(ranks, ceil(ranks * apart / unit))
