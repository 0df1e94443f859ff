"""Means over time of something that changes in steps, in bounded memory."""

from __future__ import annotations

POINTS = 240
"""Points of a curve at most; at least half as many once twice as many seconds have passed."""


class Curve:
    """Time-weighted: the mean is over all time, each point of the curve over its part of it.

    Time in which the value is None counts for nothing. Times never run backwards.
    """

    __slots__ = ("_since_s", "_spans", "_sums", "_value", "start_s", "width_s")

    def __init__(self, start_s: float, value: float | None = None) -> None:
        self.start_s, self.width_s = start_s, 1.0
        self._since_s, self._value = start_s, value
        self._sums: list[float] = []
        self._spans: list[float] = []

    @property
    def value(self) -> float | None:
        """What it is now."""
        return self._value

    def step(self, value: float | None, now_s: float) -> None:
        """From now on it is `value`."""
        if value != self._value:
            self.until(now_s)
            self._value = value

    def until(self, now_s: float) -> None:
        """It has not changed until now."""
        since_s, value = self._since_s, self._value
        if value is not None and now_s > since_s:
            at = int((since_s - self.start_s) / self.width_s)
            if at < len(self._sums) and now_s <= self.start_s + (at + 1) * self.width_s:
                self._sums[at] += value * (now_s - since_s)
                self._spans[at] += now_s - since_s
            else:
                self._add(value, since_s, now_s)
        self._since_s = max(since_s, now_s)

    def _add(self, value: float, from_s: float, to_s: float) -> None:
        while to_s - self.start_s > POINTS * self.width_s:
            self._halve()
        sums, spans, width_s = self._sums, self._spans, self.width_s
        at = int((from_s - self.start_s) / width_s)
        while from_s < to_s:
            while len(sums) <= at:
                sums.append(0.0)
                spans.append(0.0)
            end_s = min(to_s, self.start_s + (at + 1) * width_s)
            if end_s > from_s:
                sums[at] += value * (end_s - from_s)
                spans[at] += end_s - from_s
                from_s = end_s
            at += 1

    def _halve(self) -> None:
        """Points twice as wide."""
        for series in (self._sums, self._spans):
            series[:] = [sum(series[at : at + 2]) for at in range(0, len(series), 2)]
        self.width_s *= 2

    def mean(self) -> float | None:
        """Over all time until the last step or `until`; None: it was None all the time."""
        span_s = sum(self._spans)
        return sum(self._sums) / span_s if span_s else None

    def points(self) -> tuple[float | None, ...]:
        """The mean of each `width_s` from `start_s` on; None where it was None."""
        return tuple(
            value / span_s if span_s else None for value, span_s in zip(self._sums, self._spans, strict=True)
        )
