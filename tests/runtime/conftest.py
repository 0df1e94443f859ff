"""A world of real processes, taken down after each test whatever it left running."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runtime.world import World, of_site

Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[World] = []

    def build(**options: object) -> World:
        made.append(World(tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for world in made:
        world.executor.close()
    for pid in of_site(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def world(make: Make) -> World:
    return make()
