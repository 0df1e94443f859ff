"""Networks for Hypothesis: of the catalog, or any other whose fabric is not faster than its links."""

from __future__ import annotations

from hypothesis import strategies as st

from rackscale.collectives import Network, Tier, network

NAMES = ["gb200-nvl72", "u-p6e-gb300x72", "dgx-b200", "p5", "dgx-a100"]
WITHIN_ROUNDING = 1.0 + 1e-9


@st.composite
def networks(draw: st.DrawFn) -> Network:
    if draw(st.booleans()):
        return network(draw(st.sampled_from(NAMES)))
    link = draw(st.floats(1e10, 1e13))
    sharp = draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))
    out = draw(tiers(link * draw(st.floats(0.001, 1.0))))
    return Network(
        up=draw(tiers(link)),
        out=out,
        rails=draw(st.floats(1.0, 72.0)),
        oversubscription=draw(st.floats(1.0, 8.0)),
        hop_s=draw(st.floats(0.0, 1e-4)),
        sharp_bytes_per_s=sharp * link,
    )


@st.composite
def tiers(draw: st.DrawFn, bytes_per_s: float) -> Tier:
    times = st.floats(0.0, 1e-3)
    latency_s, step_s, ramp_s, fill_s = (draw(times) for _ in range(4))
    return Tier(
        bytes_per_s=bytes_per_s,
        latency_s=latency_s,
        step_s=step_s,
        ramp_s=ramp_s,
        fill_s=fill_s,
        ramp_bytes=draw(st.floats(1.0, 1e9)),
    )
