"""Collectives' times against published measurements."""

from __future__ import annotations

from statistics import median, quantiles

import pytest

from rackscale.collectives import Kind, dispatch, network, seconds

MIB = 2**20

# All-reduce with nccl-tests. H100 and GB200: CoreWeave, github.com/coreweave/nccl-tests (NCCL 2.26.2 on GB200).
# P5: AWS, github.com/aws-samples/awsome-distributed-training, micro-benchmarks/nccl-tests.
ALL_REDUCE = [
    # system, ranks, message in MiB, measured us
    ("p5", 16, 1, 123.2),
    ("p5", 16, 16, 298.1),
    ("p5", 16, 64, 601.5),
    ("p5", 16, 256, 1468.2),
    ("p5", 16, 1024, 4607.6),
    ("p5", 16, 4096, 17286),
    ("p5", 16, 16384, 66132),
    ("dgx-h100", 64, 512, 2984.6),
    ("dgx-h100", 64, 1024, 5808),
    ("dgx-h100", 64, 2048, 11163),
    ("dgx-h100", 64, 4096, 22181),
    ("dgx-h100", 64, 8192, 43980),
    ("gb200-nvl72", 72, 512, 1806.7),
    ("gb200-nvl72", 72, 1024, 3108.8),
    ("gb200-nvl72", 72, 2048, 5589.1),
    ("gb200-nvl72", 72, 4096, 10094),
    ("gb200-nvl72", 72, 8192, 20299),
    ("gb200-nvl72", 144, 512, 2156.8),
    ("gb200-nvl72", 144, 1024, 3574.4),
    ("gb200-nvl72", 144, 2048, 6264),
    ("gb200-nvl72", 144, 4096, 11469),
    ("gb200-nvl72", 144, 8192, 21493),
    ("gb200-nvl72", 144, 16384, 42067),
    ("gb200-nvl72", 1440, 512, 7108.4),
    ("gb200-nvl72", 1440, 1024, 9805.7),
    ("gb200-nvl72", 1440, 2048, 14980),
    ("gb200-nvl72", 1440, 4096, 24782),
    ("gb200-nvl72", 1440, 8192, 45004),
    ("gb200-nvl72", 1440, 16384, 84625),
]

# The same over three racks that only InfiniBand joins, 4 and 8 GPUs of each, by trees (NCCL 2.27.3):
# github.com/NVIDIA/nccl/issues/1801.
THREE_RACKS = [(12, 4, 16384, 134159), (24, 8, 16384, 68096)]

# One node, or one tray of GB200, from the tables of aiconfigurator-core 0.12.0 (NVIDIA, Apache-2.0). They count
# elements of two bytes, not bytes: int8 takes half of half's time at the same count, and only so does NVLink reach the
# 586 GB/s at 512 MiB that CoreWeave measured over a rack.
ONE_NODE = [
    # system, collective, ranks, measured ms of 32, 128 and 512 MiB
    ("dgx-h100", "all_reduce", 8, (0.200, 0.579, 2.111)),
    ("dgx-h100", "all_gather", 8, (0.124, 0.391, 1.401)),
    ("dgx-h100", "reduce_scatter", 8, (0.113, 0.382, 1.400)),
    ("dgx-h100", "all_to_all", 8, (0.125, 0.403, 1.480)),
    ("dgx-b200", "all_reduce", 8, (0.172, 0.398, 1.340)),
    ("dgx-b200", "all_gather", 8, (0.113, 0.210, 0.762)),
    ("dgx-b200", "reduce_scatter", 8, (0.108, 0.209, 0.768)),
    ("dgx-b200", "all_to_all", 8, (0.085, 0.236, 0.835)),
    ("gb200-nvl72", "all_reduce", 4, (0.123, 0.339, 1.272)),
    ("gb200-nvl72", "all_gather", 4, (0.071, 0.193, 0.705)),
    ("gb200-nvl72", "reduce_scatter", 4, (0.071, 0.198, 0.728)),
    ("gb200-nvl72", "all_to_all", 4, (0.072, 0.220, 0.793)),
    ("dgx-a100", "all_reduce", 8, (0.367, 1.169, 4.226)),
    ("dgx-a100", "all_gather", 8, (0.218, 0.660, 2.288)),
    ("dgx-a100", "reduce_scatter", 8, (0.210, 0.624, 2.207)),
    ("dgx-a100", "all_to_all", 8, (0.191, 0.640, 2.313)),
]

# Tokens to experts and back, GB/s of what a rank's tokens weigh once per domain ("logical bandwidth": the share that
# stays at home counts). DeepEP V2 (github.com/deepseek-ai/DeepEP, README): 8,192 tokens of 7,168, top 8, FP8 to the
# experts and BF16 back. HybridEP (docs/README_Hybrid-EP.md there): 4,096 tokens in BF16, kernels alone, the most SMs.
# Inside a domain, a token counts once per rank.
DISPATCH = [
    # system, ranks, per domain, tokens, bytes of an element, measured GB/s
    ("dgx-h100", 16, 8, 8192, 1, 90),
    ("dgx-h100", 16, 8, 8192, 2, 81),
    ("dgx-h100", 32, 8, 8192, 1, 61),
    ("dgx-h100", 32, 8, 8192, 2, 61),
    ("dgx-b200", 16, 8, 8192, 1, 90),
    ("dgx-b200", 16, 8, 8192, 2, 91),
    ("dgx-b200", 8, 8, 8192, 1, 726),
    ("dgx-b200", 8, 8, 8192, 2, 740),
    ("dgx-h100", 16, 8, 4096, 2, 71.7),
    ("dgx-h100", 32, 8, 4096, 2, 57.7),
    ("dgx-h100", 64, 8, 4096, 2, 50.0),
    ("gb200-nvl72", 8, 72, 4096, 2, 764),
    ("gb200-nvl72", 16, 72, 4096, 2, 707),
    ("gb200-nvl72", 24, 72, 4096, 2, 666),
    ("gb200-nvl72", 32, 72, 4096, 2, 642),
    ("gb200-nvl72", 36, 72, 4096, 2, 632),
]


def dispatch_errors() -> list[float]:
    """Experts are drawn evenly: one of 8 lies in a part of them with 1 - (1 - part)^8."""
    errors = []
    for name, ranks, most, tokens, width, measured in DISPATCH:
        local = min(ranks, most)
        domains, nbytes = ranks / local, float(tokens * 7168 * width)
        to_rank, to_domain = (1.0 - (1.0 - 1.0 / parts) ** 8 for parts in (ranks, domains))
        found = dispatch(
            across_bytes=nbytes * (domains - 1.0) * to_domain,
            inside_bytes=nbytes * domains * (local - 1.0) * to_rank,
            ranks=ranks,
            local=local,
            network=network(name),
        )
        counted = nbytes * (domains * to_domain if domains > 1 else ranks * to_rank)
        errors.append(float(found) / (counted / (measured * 1e9)) - 1.0)
    return errors


def all_reduce_errors() -> list[float]:
    rows = [
        (name, ranks, min(ranks, 72 if name == "gb200-nvl72" else 8), mib, us)
        for name, ranks, mib, us in ALL_REDUCE
    ]
    errors = []
    for name, ranks, local, mib, us in [*rows, *(("gb200-nvl72", *row) for row in THREE_RACKS)]:
        on = network(name)
        found = seconds("all_reduce", nbytes=mib * MIB, ranks=ranks, local=local, network=on)
        errors.append(float(found) / (us * 1e-6) - 1.0)
    return errors


def one_node_errors() -> list[float]:
    kinds: dict[str, Kind] = {k: k for k in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")}
    return [
        float(seconds(kinds[kind], nbytes=mib * MIB, ranks=n, local=n, network=network(name))) / (ms * 1e-3)
        - 1.0
        for name, kind, n, measured in ONE_NODE
        for mib, ms in zip((32, 128, 512), measured, strict=True)
    ]


@pytest.mark.parametrize(
    ("errors", "middle", "most"),
    [(all_reduce_errors(), 0.05, 0.15), (one_node_errors(), 0.07, 0.20), (dispatch_errors(), 0.05, 0.15)],
)
def test_against_published_times(errors: list[float], middle: float, most: float) -> None:
    size = [abs(e) for e in errors]
    p90 = quantiles(size, n=10)[-1]
    print(f"{len(size)} times: median error {median(size):.1%}, p90 {p90:.1%}, bias {median(errors):+.1%}")
    assert median(size) < middle
    assert p90 < most
