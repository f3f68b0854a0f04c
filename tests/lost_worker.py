"""Jobs for the tests of scale-out; workers import them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from flextopo.cluster.errors import FlextopoError, UnknownNameError


def square(number: int) -> int:
    """Return the square, the lower ones later, so that results come out of order."""
    time.sleep(0.05 * max(0, 4 - number))
    return number * number


def slow_square(number: int) -> int:
    """Return the square after a second."""
    time.sleep(1.0)
    return number * number


def dies_once(job: tuple[int, str]) -> int:
    """Return the square; the first time, job 2 takes its worker along."""
    number, marker = job
    if number == 2 and not Path(marker).exists():
        Path(marker).write_text("lost")
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def always_dies(_: int) -> int:
    """Take the worker along, each time."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def mistake(number: int) -> int:
    """Say what is wrong."""
    raise FlextopoError(f"number {number}; legal: none")


def unknown(name: str) -> int:
    """Say that there is no such server."""
    raise UnknownNameError("server", name, ["a100"])
