"""Numbers with their units, in as many digits as mean something."""

from __future__ import annotations

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def seconds(value: float) -> str:
    """`0.405 s`, `10.66 s`, `908.8 s`, `1,817 s`."""
    return f"{value:,.{_digits(value, 3)}f} s"


def span(low: float, high: float) -> str:
    """`9.23-11.98 s`: one digit fewer than `seconds`, since a band is no finer."""
    digits = _digits(high, 2)
    return f"{low:,.{digits}f}-{high:,.{digits}f} s"


def _digits(value: float, most: int) -> int:
    """Behind the point: one fewer for every power of ten from 10 on."""
    return max(most - sum(value >= limit for limit in (10.0, 100.0, 1000.0)), 0)


def scaled(value: float, unit: str) -> str:
    """`2.5 PFLOP/s`, `198.6 GB`, `4,500 EFLOP/s` would be too large: SI prefixes from k to P."""
    size, prefix = next(((size, p) for size, p in PREFIXES if value >= size), (1.0, ""))
    return f"{value / size:.4g} {prefix}{unit}"
