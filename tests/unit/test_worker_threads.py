"""Threads that do a job together: who calls, what comes back, and that none is left."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from flextopo.envs.worker_threads import WorkerThreads


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def test_everybody_calls_at_the_same_time_and_results_come_in_order() -> None:
    workers = WorkerThreads(3)
    everybody = threading.Barrier(3, timeout=10)
    callers: list[int] = []

    def job(base: int, t: int) -> int:
        everybody.wait()
        callers.append(threading.get_ident())
        return base + t

    for base in (10, 20):
        assert workers.call_all(job, base) == [base, base + 1, base + 2]
    assert len(set(callers)) == 3
    assert threading.get_ident() in callers
    workers.stop()


def started(workers: WorkerThreads) -> list[threading.Thread]:
    """Let a workers do a job, and return the threads that it started for it."""
    before = set(threading.enumerate())
    assert workers.call_all(lambda t: t) == list(range(workers.size))
    return [thread for thread in threading.enumerate() if thread not in before]


def test_one_thread_starts_none() -> None:
    assert started(WorkerThreads(1)) == []


def test_what_a_thread_raises_is_raised_and_the_next_job_runs() -> None:
    workers = WorkerThreads(2)

    def fail(t: int) -> int:
        if t == 1:
            raise ValueError("no")
        return t

    with pytest.raises(ValueError, match="no"):
        workers.call_all(fail)
    assert workers.call_all(lambda t: t) == [0, 1]
    workers.stop()


@pytest.mark.parametrize("how", ["stop", "forget"])
def test_threads_end(how: str) -> None:
    workers = WorkerThreads(3)
    threads = started(workers)
    assert len(threads) == 2
    assert started(workers) == []
    if how == "stop":
        workers.stop()
        assert len(started(workers)) == 2
    del workers
    gc.collect()
    assert within(5, lambda: not any(thread.is_alive() for thread in threads))


def test_nothing_is_held_once_the_answers_are_there() -> None:
    """Else the environments could not write the arrays of an old observation again."""
    workers = WorkerThreads(2)
    for _ in range(50):
        array = np.zeros(3)
        gone = weakref.ref(array)
        workers.call_all(lambda _array, t: t, array)
        del array
        assert gone() is None
    workers.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    workers = WorkerThreads(3)
    assert workers.call_all(lambda t: t) == [0, 1, 2]
    child = os.fork()
    if child == 0:  # nothing here may go on into the test runner
        signal.alarm(20)
        os._exit(0 if workers.call_all(lambda t: t) == [0, 1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert workers.call_all(lambda t: t) == [0, 1, 2]
    workers.stop()
