"""Where groups lie, against all ranks written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from rackscale.sizing.groups import groups
from rackscale.sizing.layout import Layout

powers = st.sampled_from([1, 2, 4, 8])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    tp, cp, dp, pp = (draw(powers) for _ in range(4))
    stage = tp * cp * dp
    etp, ep = (draw(powers) for _ in range(2))
    if ep * etp > stage:
        etp, ep = 1, 1
    shard = draw(st.sampled_from([n for n in (0, 2, 4) if n < cp * dp]))
    return Layout(gpus=stage * pp, tp=tp, cp=cp, pp=pp, ep=ep, etp=etp, shard=shard, sharding="fsdp")


def members(layout: Layout) -> Iterator[tuple[str, int, int]]:
    """Kind, GPU, and a name of the group that it is in."""
    stage = layout.gpus // layout.pp
    shard = layout.shard or layout.dp * layout.cp
    for pp, dp, cp, tp in product(*map(range, (layout.pp, layout.dp, layout.cp, layout.tp))):
        gpu = tp + layout.tp * (cp + layout.cp * (dp + layout.dp * pp))
        replica = cp + layout.cp * dp
        yield "TP", gpu, gpu // layout.tp
        yield "CP", gpu, tp + layout.tp * (dp + layout.dp * pp)
        yield "PP", gpu, gpu % stage
        if layout.shard:
            yield "FSDP", gpu, tp + layout.tp * (replica // shard + 1000 * pp)
            yield "DP", gpu, tp + layout.tp * (replica % shard + 1000 * pp)
        else:
            yield "DP", gpu, tp + layout.tp * pp
    for pp, edp, ep, etp in product(
        range(layout.pp), range(stage // (layout.ep * layout.etp)), range(layout.ep), range(layout.etp)
    ):
        gpu = etp + layout.etp * (ep + layout.ep * edp) + stage * pp
        if layout.ep > 1:
            yield "EP", gpu, etp + layout.etp * (edp + 1000 * pp)
            yield "EDP", gpu, etp + layout.etp * (ep + 1000 * pp)


@given(layout=layouts(), domain=st.sampled_from([2, 8, 16, 64]), leaf=st.sampled_from([1, 2, 4]))
def test_groups_against_all_ranks_written_down(layout: Layout, domain: int, leaf: int) -> None:
    found: dict[tuple[str, int], list[int]] = {}
    for kind, gpu, name in members(layout):
        found.setdefault((kind, name), []).append(gpu)

    def spread(kind: str, of: Callable[[list[int]], int]) -> set[int]:
        return {of(gpus) for (other, _), gpus in found.items() if other == kind}

    told = groups(layout, domain=domain, leaf=leaf * domain)
    for group in told:
        assert spread(group.name, len) == {group.ranks}
        assert spread(group.name, lambda gpus: len({gpu // domain for gpu in gpus})) == {group.domains}
        assert spread(group.name, lambda gpus: len({gpu // (leaf * domain) for gpu in gpus})) == {
            group.leaves
        }
    apart = {kind for (kind, _), gpus in found.items() if len(gpus) > 1}
    assert {group.name for group in told} == apart


def test_it_is_said_in_words() -> None:
    found = groups(Layout(gpus=2304, tp=4, pp=6), domain=64, leaf=256)
    assert [(group.name, group.ranks, group.lies) for group in found] == [
        ("TP", 4, "inside an NVLink domain"),
        ("PP", 6, "over 6 domains under 6 leaves"),
        ("DP", 96, "over 6 domains under 2 leaves"),
    ]
