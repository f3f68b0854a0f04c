"""Threads that do a job together: who calls, what comes back, and that none is left."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from flextopo.envs.crew import Crew


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def test_everybody_calls_at_the_same_time_and_results_come_in_order() -> None:
    crew = Crew(3)
    everybody = threading.Barrier(3, timeout=10)
    callers: list[int] = []

    def job(base: int, t: int) -> int:
        everybody.wait()
        callers.append(threading.get_ident())
        return base + t

    for base in (10, 20):
        assert crew.run(job, base) == [base, base + 1, base + 2]
    assert len(set(callers)) == 3
    assert threading.get_ident() in callers
    crew.stop()


def test_one_thread_starts_none() -> None:
    before = threading.active_count()
    assert Crew(1).run(lambda t: t) == [0]
    assert threading.active_count() == before


def test_what_a_thread_raises_is_raised_and_the_next_job_runs() -> None:
    crew = Crew(2)

    def fail(t: int) -> int:
        if t == 1:
            raise ValueError("no")
        return t

    with pytest.raises(ValueError, match="no"):
        crew.run(fail)
    assert crew.run(lambda t: t) == [0, 1]
    crew.stop()


@pytest.mark.parametrize("how", ["stop", "forget"])
def test_threads_end(how: str) -> None:
    before = threading.active_count()
    crew = Crew(3)
    crew.run(lambda t: t)
    assert threading.active_count() == before + 2
    if how == "stop":
        crew.stop()
    del crew
    gc.collect()
    assert within(5, lambda: threading.active_count() == before)


def test_nothing_is_held_once_the_answers_are_there() -> None:
    """Else the environments could not write the arrays of an old observation again."""
    crew = Crew(2)
    for _ in range(50):
        array = np.zeros(3)
        gone = weakref.ref(array)
        crew.run(lambda _array, t: t, array)
        del array
        assert gone() is None
    crew.stop()
