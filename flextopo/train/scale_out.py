"""Fan jobs out over processes of this machine, or over a Ray cluster; the results are the same.

A job is a function of its argument alone, so where it runs, when, and how often changes nothing: a
job whose worker is lost is simply done again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from typing import Any, TypeVar

from flextopo.cluster.errors import FlextopoError

Job = TypeVar("Job")
Result = TypeVar("Result")

ATTEMPTS = 3
"""How often a worker may be lost, one time after the other, before it is called a mistake."""


_open: dict[str, Any] = {}
"""Address to the module `ray`, while a connection is kept: one at most."""

KNOCK_S = 10.0
"""Seconds that a cluster has to take a connection."""


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, ray: str | None = None
) -> Iterator[tuple[int, Result]]:
    """Apply a function to every job.

    Args:
        function: of a module that workers can import.
        jobs: its arguments, which can be pickled.
        workers: processes; 1 = in this one. On a cluster that exists its own cores count.
        ray: None = processes of this machine, `local` = a Ray of its own, else a cluster's address.

    Yields:
        Index of a job and its result, in the order in which they end.

    Raises:
        FlextopoError: Ray is not installed or does not answer, or workers are lost again and again.
    """
    if ray is not None:
        yield from _over_ray(function, jobs, workers, ray)
    elif workers == 1:
        yield from ((i, function(job)) for i, job in enumerate(jobs))
    else:
        yield from _over_processes(function, jobs, workers)


def _over_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[int, Result]]:
    left = dict(enumerate(jobs))
    lost = 0
    while left:
        try:
            for i, result in _pool(function, dict(left), workers):
                del left[i]
                lost = 0
                yield i, result
        except BrokenProcessPool:
            lost += 1
            if lost == ATTEMPTS:
                raise _lost() from None


def _pool(
    function: Callable[[Job], Result], jobs: Mapping[int, Job], workers: int
) -> Iterator[tuple[int, Result]]:
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_quietly) as pool:
        index: dict[Future[Result], int] = {}
        waiting: set[Future[Result]] = set()
        try:
            for i, job in jobs.items():
                with _interrupts_later():  # may start a worker, which inherits that
                    future = pool.submit(function, job)
                index[future] = i
                waiting.add(future)
                if len(waiting) >= 2 * workers:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from ((index[future], future.result()) for future in finished)
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from ((index[future], future.result()) for future in finished)
        except (KeyboardInterrupt, GeneratorExit):
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold interrupts back for a moment."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_quietly() -> None:
    """Let a worker end at an interrupt without a word, unless it was started to ignore them."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _over_ray(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, address: str
) -> Iterator[tuple[int, Result]]:
    with connected(workers, address) as ray:
        waiting: dict[Any, int] = {}
        try:
            remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(_apply)
            shared = ray.put(function)  # a method brings its object, such as a network, once
            waiting = {remote.remote(shared, job): i for i, job in enumerate(jobs)}
            while waiting:
                finished, _ = ray.wait(list(waiting), num_returns=1)
                for reference in finished:
                    yield waiting.pop(reference), ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FlextopoError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError:
            raise _lost() from None
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _apply(function: Callable[[Job], Result], job: Job) -> Result:
    return function(job)


@contextmanager
def connected(workers: int, address: str | None) -> Iterator[Any]:
    """Keep a connection to Ray, which each `run_jobs` inside uses; without one each makes its own.

    Args:
        workers: processes of a Ray of its own.
        address: see `run_jobs`; None = there is no Ray, and nothing happens.

    Yields:
        The module `ray`, or None.

    Raises:
        FlextopoError: Ray is not installed or does not answer.
    """
    if address is None or address in _open:
        yield _open.get(address or "")
        return
    _open[address] = ray = _connect(workers, address)
    try:
        yield ray
    finally:
        del _open[address]
        ray.shutdown()


def _connect(workers: int, address: str) -> Any:
    """Return the module `ray`, connected."""
    if not address:
        raise FlextopoError("ray = ''; legal: local, or a cluster's address")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # experiments report to nobody
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise FlextopoError("--ray needs ray; legal: pip install 'flextopo[ray]'") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        else:
            _knock(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FlextopoError(
            f"ray {address!r}: {reason}; legal: local, or the address of a cluster that runs"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Find out at once that nothing listens at `host:port`; Ray itself asks for minutes.

    Raises:
        OSError: it says why.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def _lost() -> FlextopoError:
    return FlextopoError(
        f"workers were lost {ATTEMPTS} times in a row; legal: fewer workers, more memory, or a selector "
        "that does not end its process"
    )
