"""Per-GPU and per-node facts, multiplied out, against the totals that the vendors publish for whole systems."""

from __future__ import annotations

import pytest

from rackscale.catalog import system

TB = 1e12
PFLOP = 1e15
GIB = 2**30

# AWS's P6e-GB200, P6e-GB300, P5, P6 and Neuron architecture pages: totals per UltraServer or instance.
PUBLISHED = [
    # system, total, published, relative tolerance (the digits that were published)
    ("u-p6e-gb200x36", "gpus", 36, 0),
    ("u-p6e-gb200x72", "gpus", 72, 0),
    ("u-p6e-gb300x72", "gpus", 72, 0),
    ("p6-b200", "gpus", 8, 0),
    ("p6-b300", "gpus", 8, 0),
    ("p5en", "gpus", 8, 0),
    ("p5", "gpus", 8, 0),
    ("trn2-ultraserver", "gpus", 64, 0),
    ("trn3-gen1-ultraserver", "gpus", 64, 0),
    ("trn3-gen2-ultraserver", "gpus", 144, 0),
    ("u-p6e-gb200x36", "hbm_bytes", 6_660 * GIB, 0),
    ("u-p6e-gb200x72", "hbm_bytes", 13_320 * GIB, 0),
    ("p6-b200", "hbm_bytes", 1_432 * GIB, 1e-3),
    ("p6-b300", "hbm_bytes", 2_148 * GIB, 1e-3),
    ("p5en", "hbm_bytes", 1_128 * GIB, 0),
    ("p5", "hbm_bytes", 640 * GIB, 0),
    ("trn2-ultraserver", "hbm_bytes", 6_144 * GIB, 0),
    ("trn3-gen1-ultraserver", "hbm_bytes", 9_216 * GIB, 0),
    ("trn3-gen2-ultraserver", "hbm_bytes", 20_736 * GIB, 0),
    ("u-p6e-gb200x36", "fp8", 180 * PFLOP, 1e-3),
    ("u-p6e-gb200x72", "fp8", 360 * PFLOP, 1e-3),
    ("trn2-ultraserver", "fp8", 83.2 * PFLOP, 1e-3),
    ("trn3-gen1-ultraserver", "fp8", 161.088 * PFLOP, 1e-3),
    ("trn3-gen2-ultraserver", "fp8", 362.448 * PFLOP, 1e-3),
    ("trn3-gen2-ultraserver", "bf16", 96.624 * PFLOP, 1e-3),
    ("trn2-ultraserver", "bf16", 42.8 * PFLOP, 1e-3),
    ("u-p6e-gb200x72", "scale_up", 130 * TB, 0.01),
    ("u-p6e-gb300x72", "scale_up", 130 * TB, 0.01),
    ("p6-b200", "scale_up", 14.4 * TB, 1e-3),
    ("trn2-ultraserver", "hbm_bandwidth", 185.6 * TB, 1e-3),
    ("trn3-gen1-ultraserver", "hbm_bandwidth", 313.6 * TB, 1e-3),
    ("trn3-gen2-ultraserver", "hbm_bandwidth", 705.6 * TB, 1e-3),
    ("u-p6e-gb200x36", "fabric", 14.4e12, 0),
    ("u-p6e-gb200x72", "fabric", 28.8e12, 0),
    ("p6-b200", "fabric", 3.2e12, 0),
    ("p6-b300", "fabric", 6.4e12, 0),
    ("trn3-gen1-ultraserver", "fabric", 12.8e12, 0),
    ("trn3-gen2-ultraserver", "fabric", 28.8e12, 0),
    ("u-p6e-gb200x36", "vcpus", 1_296, 0),
    ("u-p6e-gb200x72", "vcpus", 2_592, 0),
    ("trn2-ultraserver", "vcpus", 768, 0),
    ("trn3-gen2-ultraserver", "vcpus", 2_304, 0),
    ("u-p6e-gb200x72", "memory", 17_280 * GIB, 0),
    ("trn2-ultraserver", "memory", 8_192 * GIB, 0),
    ("trn3-gen2-ultraserver", "memory", 27_648 * GIB, 0),
    ("u-p6e-gb200x72", "nvme", 405 * TB, 0),
]


@pytest.mark.parametrize(("name", "total", "published", "tolerance"), PUBLISHED)
def test_totals_against_published(name: str, total: str, published: float, tolerance: float) -> None:
    found = _total(name, total)
    assert found is not None
    assert found == pytest.approx(published, rel=tolerance, abs=0)


# Instance prices that AWS publishes beside its per-accelerator prices.
@pytest.mark.parametrize(
    ("name", "model", "seen", "usd_per_domain_hour"),
    [
        ("u-p6e-gb200x72", "capacity-block", "2026-10", 761.904),
        ("u-p6e-gb200x36", "capacity-block", "2026-10", 380.952),
        ("p6-b300", "capacity-block", "2026-10", 129.168),
        ("p6-b200", "capacity-block", "2026-10", 113.666),
        ("p5en", "capacity-block", "2026-10", 63.158),
        ("p5", "capacity-block", "2026-10", 47.757),
        ("p5", "on-demand", "2025-06", 55.04),
        ("p5en", "on-demand", "2025-06", 63.296),
        ("p6-b200", "on-demand", "2025-07", 113.9328),
        ("p6-b300", "on-demand", "2026-05", 142.416),
    ],
)
def test_prices_against_published(name: str, model: str, seen: str, usd_per_domain_hour: float) -> None:
    found = system(name)
    (price,) = (p for p in found.prices if (p.model, p.seen) == (model, seen))
    assert price.usd_per_gpu_hour * found.gpus == pytest.approx(usd_per_domain_hour, rel=1e-4)


def _total(name: str, total: str) -> float | None:
    s = system(name)
    a = s.accelerator
    per_gpu = {
        "fp8": a.fp8_flop_per_s,
        "bf16": a.bf16_flop_per_s,
        "scale_up": a.scale_up_bytes_per_s,
        "hbm_bandwidth": a.hbm_bytes_per_s,
        "fabric": s.fabric_bits_per_s_per_gpu,
    }
    per_node = {
        "vcpus": s.vcpus_per_node,
        "memory": s.memory_bytes_per_node,
        "nvme": s.nvme_bytes_per_node,
    }
    if total in per_gpu:
        value = per_gpu[total]
        return None if value is None else value * s.gpus
    if total in per_node:
        value = per_node[total]
        return None if value is None else value * s.nodes
    return {"gpus": s.gpus, "hbm_bytes": s.hbm_bytes}[total]
