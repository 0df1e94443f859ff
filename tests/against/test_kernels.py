"""Products' speeds against published measurements."""

from __future__ import annotations

from statistics import median

import pytest

from rackscale.kernels import gemm_seconds

SHAPES = [
    (512, 4096, 4096),
    (2048, 4096, 4096),
    (4096, 4096, 4096),
    (4096, 8192, 8192),
    (8192, 8192, 8192),
    (8192, 16384, 16384),
    (16384, 16384, 16384),
    (32768, 16384, 16384),
]
"""m, n, k"""

# The best kernel of TensorRT-LLM, vLLM and SGLang in the tables of aiconfigurator-core 0.12.0 (NVIDIA, Apache-2.0).
TFLOPS = [
    # accelerator, precision, TFLOP/s of each shape
    ("H100", "bf16", (712, 793, 828, 817, 783, 755, 702, 820)),
    ("H100", "fp8", (966, 1100, 1151, 1231, 1315, 1450, 1304, 1481)),
    ("H100", "fp8_block", (883, 1125, 1179, 1363, 1354, 1308, 1269, 1319)),
    ("H200", "bf16", (735, 815, 818, 828, 806, 758, 710, 766)),
    ("H200", "fp8", (781, 1183, 1255, 1213, 1317, 1438, 1291, 1444)),
    ("H200", "fp8_block", (852, 1191, 1219, 1181, 1196, 1300, 1177, 1187)),
    ("B200", "bf16", (1187, 1538, 1523, 1706, 1687, 1682, 1538, 1526)),
    ("B200", "fp8", (1220, 1481, 2013, 2434, 2335, 2788, 2799, 2800)),
    ("B200", "fp8_block", (1173, 2078, 2320, 2692, 2711, 2744, 2651, 2490)),
    ("B200", "nvfp4", (1581, 2839, 2883, 4273, 4460, 4183, 3516, 3693)),
    ("GB200", "bf16", (1282, 1640, 1702, 1899, 1584, 1808, 1908, 1423)),
    ("GB200", "fp8", (1005, 1949, 2117, 2600, 2610, 3151, 3166, 2823)),
    ("GB200", "fp8_block", (1280, 2297, 2673, 3159, 3277, 3122, 2722, 2523)),
    ("GB200", "nvfp4", (1573, 2951, 3135, 4483, 4975, 4545, 3696, 3468)),
    ("GB300", "bf16", (1401, 1772, 1872, 1995, 2113, 1922, 2073, 1940)),
    ("GB300", "fp8", (1042, 2003, 2094, 2839, 2820, 3331, 3447, 3426)),
    ("GB300", "fp8_block", (1262, 2413, 2822, 3311, 3294, 3382, 3359, 3144)),
    ("GB300", "nvfp4", (1666, 3040, 3450, 4682, 5236, 5076, 4513, 4410)),
    ("B300", "bf16", (1276, 1709, 1772, 1862, 1684, 1831, 1623, 1524)),
    ("B300", "fp8", (1228, 1916, 2096, 2596, 2725, 2839, 3108, 2790)),
    ("B300", "fp8_block", (1284, 2095, 2479, 2951, 3000, 2494, 2943, 2705)),
    ("B300", "nvfp4", (1651, 3097, 3151, 4490, 4871, 4595, 4171, 4096)),
    ("A100-80GB", "bf16", (190, 225, 267, 278, 294, 287, 255, 255)),
]


@pytest.mark.parametrize(
    ("chip", "precision", "measured"), TFLOPS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_against_published_speeds(chip: str, precision: str, measured: tuple[int, ...]) -> None:
    errors = []
    for (m, n, k), tflops in zip(SHAPES, measured, strict=True):
        seconds = float(gemm_seconds(m=m, n=n, k=k, chip=chip, precision=precision))
        errors.append(seconds * tflops * 1e12 / (2.0 * m * n * k) - 1.0)
    size = [abs(e) for e in errors]
    print(
        f"{chip} {precision}: median error {median(size):.1%}, worst {max(size):.1%}, bias {median(errors):+.1%}"
    )
    assert median(size) < 0.13
    assert max(size) < 0.5  # H100's fp8 at m = 512, half as fast again as H200's; 0.35 without it
