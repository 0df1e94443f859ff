"""How long work takes when machines fail: the renewal form of checkpoint and restart, and the best interval."""

from __future__ import annotations

from math import exp, expm1, sqrt

from msgspec import Struct


class Goodput(Struct, frozen=True, kw_only=True):
    """Of a job with failures and checkpoints, in seconds of wall time."""

    share: float
    """Productive time over wall time."""
    interval_s: float
    """Of work between checkpoints."""
    mean_between_failures_s: float
    """Of the whole job."""


def stretch(*, rate_per_s: float, interval_s: float, write_s: float, restart_s: float) -> float:
    """Wall time per second of work, at least 1.

    Failures come at random (a Poisson process of `rate_per_s` for the whole job), work is saved every `interval_s` at
    a stall of `write_s`, and a restart takes `restart_s` and may itself fail. A segment of a = interval + write ends
    after (1/r + restart') (e^(ra) - 1) on average, with restart' = (e^(r restart) - 1) / r grown by its own failures:
    exp(r restart) (e^(ra) - 1) / r in all (Daly, 2006, doi:10.1016/j.future.2004.11.016, equation 13).
    """
    if interval_s <= 0:
        raise ValueError(f"interval_s: {interval_s} is not above 0")
    if rate_per_s <= 0:
        return 1.0 + write_s / interval_s
    segment = rate_per_s * (interval_s + write_s)
    if segment > 700.0:
        return float("inf")
    return exp(min(rate_per_s * restart_s, 700.0)) * expm1(segment) / (rate_per_s * interval_s)


def best_interval_s(*, rate_per_s: float, write_s: float) -> float:
    """The interval that makes `stretch` least; it does not depend on the restart.

    Setting the derivative to 0 gives (1 - x) e^x = e^(-r w) with x = r interval (Daly 2006, equation 20), solved here
    by Newton's method from Young's sqrt(2 r w). Infinite where nothing fails, or where saving is free 0.
    """
    if rate_per_s <= 0:
        return float("inf")
    if write_s <= 0:
        return 0.0
    cost = rate_per_s * write_s
    x = min(sqrt(2.0 * cost), 0.999)
    for _ in range(50):
        # f(x) = (1 - x) e^x - e^-cost; f' = -x e^x
        moved = ((1.0 - x) * exp(x) - exp(-cost)) / (x * exp(x))
        x = min(max(x + moved, x / 2.0), 1.0 - 1e-12)
        if abs(moved) < 1e-12:
            break
    return x / rate_per_s


def goodput(
    *,
    gpus: int,
    failures_per_gpu_hour: float,
    write_s: float,
    restart_s: float,
    save_s: float = 0.0,
    interval_s: float | None = None,
) -> Goodput:
    """Of a job on `gpus`; the best interval where none is given, at least as long as a checkpoint takes.

    Training stands still for `write_s` of a checkpoint, which can be used `save_s` after it began (asynchronous: later
    than it stands still). Who fails meanwhile goes back to the one before: on average that is `save_s` - `write_s` of
    work that is done again with each failure, counted with the restart.
    """
    rate = gpus * failures_per_gpu_hour / 3600.0
    least = max(write_s, save_s, 1.0)
    interval = interval_s or max(best_interval_s(rate_per_s=rate, write_s=write_s), least)
    if interval == float("inf"):
        return Goodput(share=1.0, interval_s=interval, mean_between_failures_s=interval)
    lost_s = max(save_s - write_s, 0.0)
    slower = stretch(rate_per_s=rate, interval_s=interval, write_s=write_s, restart_s=restart_s + lost_s)
    return Goodput(
        share=1.0 / slower,
        interval_s=interval,
        mean_between_failures_s=float("inf") if rate <= 0 else 1.0 / rate,
    )
