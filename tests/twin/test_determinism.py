"""Equal seeds and inputs give equal journals, byte for byte; how events are handed over changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from rackscale.control import replay, same
from rackscale.events import Decided, Event, Input, encode
from rackscale.spec import Arrivals, Documents, Duration, Failures, Work
from rackscale.twin import TwinExecutor, rehearse
from rackscale.workload import Durability, Job, Shape
from tests.twin.story import Run, Story, stories
from tests.twin.test_hardware import domains


def digest(events: Iterable[Event]) -> str:
    return hashlib.sha256(b"".join(encode(event) + b"\n" for event in events)).hexdigest()


@given(story=stories())
def test_a_story_told_twice_is_the_same(story: Story) -> None:
    assert digest(Run(story).play().events) == digest(Run(story).play().events)


@given(story=stories())
def test_handing_events_over_one_by_one_changes_nothing(story: Story) -> None:
    """Checkpoints and starts share a cycle with what follows them, since no decision depends on when they are seen."""
    assert digest(Run(story, batch=1).play().events) == digest(Run(story).play().events)


class Deaf(TwinExecutor):
    """Does not hear until when no decision comes."""

    def poll(self, deadline_s: float | None, quiet_until_s: float | None = None) -> Sequence[Input]:  # noqa: ARG002
        return super().poll(deadline_s)


@given(story=stories(), interval_s=st.sampled_from((7.0, 30.0, 400.0)), batch=st.sampled_from((1, 3)))
def test_between_decisions_it_does_not_matter_how_events_are_handed_over(
    story: Story, interval_s: float, batch: int
) -> None:
    policy = structs.replace(story.policy, decision_interval_s=interval_s)
    story = dataclasses.replace(story, policy=policy)
    plain, other = Run(story), Run(story, batch=batch)
    other.controller.executor.__class__ = Deaf
    plain.play()
    other.play()
    assert digest(plain.events) == digest(other.events)
    decided = [event.at_s for event in plain.events if isinstance(event, Decided)]
    timers = {event.plan.wake_at_s for event in plain.events if isinstance(event, Decided)}
    for before, after in itertools.pairwise(decided):
        assert after - before >= interval_s - 1e-6 or after in timers


@given(story=stories())
def test_a_rehearsal_replayed_gives_the_same_decisions(story: Story) -> None:
    for recorded, plan, _ in replay(Run(story).play().events):
        assert same(recorded, plan)


def day() -> Documents:
    job = Job(
        name="train", kind="training", shape=Shape(nodes_per_segment=5), duration_s=7200.0,
        durability=Durability(checkpoint_interval_s=600.0, checkpoint_s=20.0),
    )  # fmt: skip
    vip = Job(
        name="vip", kind="training", shape=Shape(nodes_per_segment=9), duration_s=3600.0, priority="high"
    )
    return Documents(
        fleet=domains(4),
        failures=Failures(per_gpu_hour=5e-3),
        work=(
            Work(
                job=job, arrivals=Arrivals(per_hour=6.0), duration=Duration(median_s=7200.0, p90_s=14_400.0)
            ),
            Work(
                job=vip, arrivals=Arrivals(every_s=10_800.0), duration=Duration(median_s=3600.0, p90_s=7200.0)
            ),
        ),
    )


def journal(seed: int) -> str:
    events: list[Event] = []
    rehearse(day(), until_s=86_400.0, seed=seed, listeners=(events.append,))
    return digest(events)


def test_the_seed_decides_the_journal() -> None:
    assert journal(7) == journal(7)
    assert journal(7) != journal(8)


def test_other_processes_write_the_same_bytes() -> None:
    """Whatever Python's own hashes are there."""
    code = "from tests.twin.test_determinism import journal; print(journal(7))"
    found = set()
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([*sys.path, "."])}
        run = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        found.add(run.stdout.strip())
    assert found == {journal(7)}
