"""The twin: the same scheduler and control loop, in simulated time.

rehearse(documents, ...)   a fleet and its work from time 0; answers what happened
play(state, twin, ...)     the same from any state, such as the fork of a live one
TwinExecutor               the executor itself, for a Controller of one's own
"""

from __future__ import annotations

from rackscale.capacity.waits import SIZE_CLASSES
from rackscale.twin.executor import TwinExecutor
from rackscale.twin.rehearsal import Progress, Rehearsal, Total, play, rehearse
from rackscale.twin.tally import Wait

__all__ = ["SIZE_CLASSES", "Progress", "Rehearsal", "Total", "TwinExecutor", "Wait", "play", "rehearse"]
