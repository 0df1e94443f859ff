"""A recorded stream of events, played again: the same control loop, an executor that only repeats what happened."""

from __future__ import annotations

from collections.abc import Sequence

from rackscale.control import Controller
from rackscale.events import Decided, Event, Input, Plan
from rackscale.fleet.state import FleetState


class Repeater:
    """Implements `control.Executor`: each poll is what one recorded cycle took in."""

    def __init__(self, recorded: Sequence[Event]) -> None:
        self._cycles: list[list[Event]] = [[]]
        for event in recorded:
            if isinstance(event, Decided):
                self._cycles.append([])
            else:
                self._cycles[-1].append(event)
        self._next = 0

    @property
    def more(self) -> bool:
        return self._next < len(self._cycles) and (
            self._next + 1 < len(self._cycles) or bool(self._cycles[-1])
        )

    def poll(self, *_: float | None) -> Sequence[Input]:  # time is on the events
        self._next += 1
        return self._cycles[self._next - 1]  # type: ignore[return-value]  # forecasts among them decide nothing

    def apply(self, plan: Plan) -> None:
        """What came of it is in the next cycles."""

    def recover(self, state: FleetState) -> None:
        """There is nothing to recover."""

    def close(self) -> None:
        """There is nothing to close."""


def rerun(recorded: Sequence[Event]) -> list[Event]:
    """The stream that the control loop makes of the recorded inputs; equal to the recorded one, byte for byte."""
    again: list[Event] = []
    repeater = Repeater(recorded)
    controller = Controller(FleetState(), repeater, listeners=(again.append,))
    while repeater.more:
        controller.step()
    return again
