"""What a gang says of itself: the heartbeats of its rank 0, as events.

Rank 0 speaks for the gang. Only the newest record of a kind matters, and a controller that comes back reads the file
from its beginning: nothing is lost, and what is said twice is ignored by the fold.
"""

from __future__ import annotations

from pathlib import Path

from rackscale.events import Checkpointed, GangRunning, Input, Progressed
from rackscale.programs.contract import Beat, read_beats


class Pulse:
    """Reads the file on, each time it is asked."""

    def __init__(self, file: Path, gang: str, attempt: int, *, progress_s: float, known_s: float) -> None:
        """`progress_s`: seconds between two `Progressed`. `known_s`: checkpoints up to then are known already."""
        self._file, self._offset = file, 0
        self._gang, self._attempt = gang, attempt
        self._progress_s, self._known_s = progress_s, known_s
        self._told_s = float("-inf")
        self._step: Beat | None = None
        """The newest step that was not told yet."""
        self._resumed: int | None = None
        self.last_s: float | None = None
        """When something new was read last; None: this program never said anything."""
        self.productive: Beat | None = None
        """The first beat that says productive work is done."""
        self.left = False
        self.finished = False

    @property
    def speaks(self) -> bool:
        """Whether the program knows the contract: it opens its heartbeat file before it has anything to say."""
        return self.last_s is not None or self._file.exists()

    def read(self, now_s: float) -> list[Input]:
        """What is new, oldest first."""
        beats, self._offset = read_beats(self._file, self._offset)
        if beats:
            self.last_s = now_s
        events: list[Input] = []
        checkpoint: Beat | None = None
        for beat in beats:
            match beat.kind:
                case "started":
                    self._resumed = beat.step
                case "step":
                    self._step = beat
                case "checkpoint":
                    checkpoint = beat
                case "left":
                    self.left = True
                case "finished":
                    self.finished = True
            if self.productive is None and beat.kind in ("step", "ready"):
                self.productive = beat
        if checkpoint is not None and checkpoint.at_s > self._known_s:
            at_s = min(checkpoint.at_s, now_s)
            step = checkpoint.step
            events.append(Checkpointed(at_s=at_s, gang=self._gang, attempt=self._attempt, step=step))
        if now_s - self._told_s >= self._progress_s:
            events += self.flush(now_s)
        return events

    def flush(self, now_s: float) -> list[Input]:
        """The newest step, if it was not told yet."""
        beat, self._step = self._step, None
        if beat is None or beat.step is None:
            return []
        self._told_s = now_s
        told = Progressed(
            at_s=min(beat.at_s, now_s), gang=self._gang, attempt=self._attempt, step=beat.step, loss=beat.loss,
            tokens_per_s=beat.tokens_per_s,
        )  # fmt: skip
        return [told]

    def running(self, at_s: float, url: str | None) -> GangRunning:
        return GangRunning(at_s=at_s, gang=self._gang, attempt=self._attempt, step=self._resumed, url=url)
