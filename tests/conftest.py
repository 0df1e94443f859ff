"""What every test may use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import pytest
from hypothesis import settings

T = TypeVar("T")

# A slow machine is not a bug; in CI the same examples every time, so that a red run can be repeated.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


class Eventually(Protocol):
    def __call__(self, condition: Callable[[], T | None], *, within_s: float = 10.0) -> T: ...


@pytest.fixture
def eventually() -> Eventually:
    """Polls a condition until it is true (and returns its value), or fails when `within_s` seconds have passed."""

    def wait(condition: Callable[[], T | None], *, within_s: float = 10.0) -> T:
        deadline_s = time.monotonic() + within_s
        while not (value := condition()):
            if time.monotonic() > deadline_s:
                pytest.fail(f"did not happen within {within_s:g} s")
            time.sleep(0.02)
        return value

    return wait
