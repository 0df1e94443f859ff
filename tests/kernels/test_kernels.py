"""Kernels' times: laws that any measurement obeys, arrays against scalars, and names that nobody measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rackscale import kernels as k
from rackscale.catalog import systems
from rackscale.errors import UnknownNameError

CHIPS = sorted(k.kernels().chips)
CURVES = [(chip, precision) for chip in CHIPS for precision in k.kernels().chips[chip].gemm]
sizes = st.floats(1.0, 1e6)
more = st.floats(1.0, 16.0)


@given(st.sampled_from(CURVES), st.tuples(sizes, sizes, sizes), st.tuples(more, more, more))
def test_a_larger_product_is_never_faster(
    curve: tuple[str, str], shape: tuple[float, float, float], by: tuple[float, float, float]
) -> None:
    chip, precision = curve
    (m, n, depth), (by_m, by_n, by_k) = shape, by
    small = k.gemm_seconds(m=m, n=n, k=depth, chip=chip, precision=precision)
    large = k.gemm_seconds(m=m * by_m, n=n * by_n, k=depth * by_k, chip=chip, precision=precision)
    assert 0.0 < small <= large


@given(st.sampled_from(CURVES), sizes, sizes, sizes)
def test_no_product_beats_the_peak(curve: tuple[str, str], m: float, n: float, depth: float) -> None:
    chip, precision = curve
    found = next(s.accelerator for s in systems() if s.accelerator.name == chip)
    peak = {"bf16": found.bf16_flop_per_s, "nvfp4": found.fp4_flop_per_s}.get(precision, found.fp8_flop_per_s)
    assert peak is not None
    assert k.gemm_seconds(m=m, n=n, k=depth, chip=chip, precision=precision) >= 2.0 * m * n * depth / peak


@given(st.sampled_from(CURVES), st.integers(1, 64), sizes, sizes, sizes)
def test_a_grouped_product_is_launched_once(
    curve: tuple[str, str], groups: int, m: float, n: float, depth: float
) -> None:
    chip, precision = curve
    one, all_, more_ = (
        k.grouped_gemm_seconds(groups=g, m=m, n=n, k=depth, chip=chip, precision=precision)
        for g in (1, groups, groups + 1)
    )
    assert 0.0 < one <= all_ < more_
    assert all_ <= groups * one


@given(st.sampled_from(CHIPS), st.floats(1.0, 1e5), st.floats(0.0, 1e5), st.integers(1, 128), more)
def test_attention(chip: str, queries: float, before: float, heads: int, longer: float) -> None:
    def seconds(q: float, kv: float, *, causal: bool) -> float:
        return float(
            k.attention_seconds(tokens_q=q, tokens_kv=kv, heads=heads, head_dim=128, causal=causal, chip=chip)
        )

    kv = queries + before
    masked, full = seconds(queries, kv, causal=True), seconds(queries, kv, causal=False)
    assert 0.0 < masked <= full
    assert full <= seconds(queries * longer, kv * longer, causal=False)
    assert masked <= seconds(queries * longer, kv * longer, causal=True)


def test_half_of_a_causal_square_is_masked() -> None:
    seconds = partial(
        k.attention_seconds, tokens_q=65_536, tokens_kv=65_536, heads=8, head_dim=128, chip="H100"
    )
    assert seconds(causal=True) / seconds(causal=False) == pytest.approx(0.5, rel=0.01)


def test_memory_is_streamed_below_its_rate() -> None:
    for chip in CHIPS:
        rate = next(s.accelerator.hbm_bytes_per_s for s in systems() if s.accelerator.name == chip)
        assert rate is not None
        assert k.memory_seconds(nbytes=0.0, chip=chip) == k.kernels().chip(chip).memory.launch_s
        assert k.memory_seconds(nbytes=1e9, chip=chip) > 1e9 / rate


PROGRAMS: list[Callable[..., k.Array]] = [
    lambda x, y, z: k.gemm_seconds(m=x, n=y, k=z, chip="H100", precision="fp8", count=3.0),
    lambda x, y, z: k.grouped_gemm_seconds(groups=8.0, m=x, n=y, k=z, chip="B200", precision="nvfp4"),
    lambda x, y, z: k.attention_seconds(
        tokens_q=x, tokens_kv=x + y, heads=8, head_dim=z, causal=True, chip="GB200"
    ),
    lambda x, y, z: k.memory_seconds(nbytes=x * y * z, chip="A100-80GB"),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_arrays_broadcast_to_what_scalars_give(program: Callable[..., k.Array]) -> None:
    x, y, z = np.array([[512.0], [4096.0], [65536.0]]), np.array([128.0, 8192.0]), np.float64(256.0)
    found = program(x, y, z)
    assert found.shape == (3, 2)
    assert found.dtype == np.float64
    expected = [[float(program(float(a), float(b), float(z))) for b in y] for a in x[:, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("chip", "precision", "message", "hint"),
    [
        (
            "H10",
            "bf16",
            "there is no accelerator with measured kernels 'H10'",
            "did you mean 'H100' or 'H100-96GB-500W'?",
        ),
        (
            "H100",
            "fp8_blok",
            "there is no measured precision of H100 'fp8_blok'",
            "did you mean 'fp8_block'?",
        ),
        ("A100-80GB", "nvfp4", "there is no measured precision of A100-80GB 'nvfp4'", None),
    ],
)
def test_what_nobody_measured_is_refused(chip: str, precision: str, message: str, hint: str | None) -> None:
    with pytest.raises(UnknownNameError) as caught:
        k.gemm_seconds(m=1.0, n=1.0, k=1.0, chip=chip, precision=precision)
    assert str(caught.value) == message
    assert hint is None or caught.value.hint == hint


def test_fp16_is_as_fast_as_bf16() -> None:
    seconds = partial(k.gemm_seconds, m=4096.0, n=4096.0, k=4096.0, chip="A100-80GB")
    assert seconds(precision="fp16") == seconds(precision="bf16")


def test_a_calibration_takes_the_place_of_a_curve() -> None:
    measured = k.kernels()
    chip = measured.chip("H100")
    slower = replace(chip.gemm["bf16"], flop_per_s=chip.gemm["bf16"].flop_per_s / 2, launch_s=0.0)
    mine = replace(measured, chips=measured.chips | {"H100": replace(chip, gemm={"bf16": slower})})
    seconds = partial(k.gemm_seconds, m=8192.0, n=8192.0, k=8192.0, chip="H100", precision="bf16")
    was = seconds() - chip.gemm["bf16"].launch_s
    assert seconds(kernels=mine) == pytest.approx(2.0 * was)


def test_every_curve_says_where_it_comes_from() -> None:
    for chip in k.kernels().chips.values():
        assert set(chip.gemm) == set(chip.grouped)
        products = [*chip.gemm.values(), *chip.grouped.values()]
        for fit in (chip.attention.fit, chip.memory.fit, *(curve.fit for curve in products)):
            assert fit.origin.source
            assert fit.origin.provenance == "measured" or fit.origin.note
