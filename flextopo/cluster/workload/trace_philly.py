"""Microsoft's Philly trace as published: cluster_job_log, a JSON list of jobs and attempts."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import numpy as np

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.trace_files import MAX_CELL
from flextopo.cluster.workload.trace_jobs import JobRows
from flextopo.cluster.workload.trace_json import JsonTrace, Object
from flextopo.cluster.workload.trace_times import LEGAL, TIME, seconds_of_times

NO_TIME = (None, "", "None")
MAX_LISTED = 10_000
"""Attempts of a job, servers of an attempt, GPUs of a server."""


def read_philly(trace: JsonTrace) -> JobRows:
    """Read cluster_job_log: one job an object.

    A job asks for the GPUs of its first attempt and runs for the sum of its attempts, without the time
    between them. Passed, killed and failed jobs all count: they held their GPUs. Jobs that never
    started, and those without an attempt of which both times are known, are left out.

    Raises:
        WorkloadError: a job is illegal.

    References:
        msr-fiddle/philly-traces, README.md and analysis/Philly Trace Analysis.ipynb: times are local,
        without an offset, so that an attempt over the end of daylight saving time may end before it
        starts; the GPUs of a job are those of its first attempt.
    """
    jobs = [_job(job, f"{trace.path}:{line}", line) for line, job in trace.objects()]
    lines = [job.line for job in jobs]
    owner = np.repeat(np.arange(len(jobs)), [len(job.runs) for job in jobs])
    times = [time for job in jobs for run in job.runs for time in run]

    def fail(row: int, found: str, legal: str) -> NoReturn:
        late = row - len(jobs)
        line = lines[row if late < 0 else int(owner[late // 2])]
        raise WorkloadError(f"{trace.path}:{line}: {found}; legal: {legal}")

    seconds, since = seconds_of_times([*(job.submitted for job in jobs), *times], fail, "time")
    begin, end = seconds[len(jobs) :: 2], seconds[len(jobs) + 1 :: 2]
    forward = end >= begin
    started = np.bincount(owner[forward], minlength=len(jobs)) > 0
    run_s = np.zeros(len(jobs))
    np.add.at(run_s, owner[forward], (end - begin)[forward])
    gpus = np.array([job.gpus for job in jobs], np.float64)
    names = [job.name for job in jobs if job.name]
    counts = (
        (sum(job.changed for job in jobs), "with attempts of other GPUs than the first"),
        (int((~forward).sum()), "attempts that end before they start left out"),
        (len(names) - len(set(names)), "with the id of another"),
    )
    return JobRows(
        path=trace.path,
        submit_s=seconds[: len(jobs)],
        duration_s=run_s,
        gpus=gpus,
        source=np.zeros(len(jobs), np.int64),
        sources=("philly",),
        left_out={"never started or without times": ~started},
        since=since,
        notes=", ".join(f"{count} {what}" for count, what in counts if count),
    )


class _Job(NamedTuple):
    """A job: its line, GPUs of the first attempt, and begin and end of those with both."""

    line: int
    name: str
    submitted: str
    gpus: int
    changed: bool
    runs: list[tuple[str, str]]


def _job(job: Object, where: str, line: int) -> _Job:
    attempts = [_attempt(each, where) for each in _list(job, "attempts", where)]
    held = [gpus for *_, gpus in attempts]
    runs = [(str(a), str(b)) for a, b, _ in attempts if a not in NO_TIME and b not in NO_TIME]
    name = _text(job, "jobid", where) if "jobid" in job else ""
    submitted = _text(job, "submitted_time", where)
    return _Job(line, name, submitted, held[0] if held else 0, len(set(held)) > 1, runs)


def _attempt(attempt: object, where: str) -> tuple[Any, Any, int]:
    """Return begin and end of an attempt, as texts or missing, and its GPUs."""
    if not isinstance(attempt, dict):
        raise WorkloadError(f"{where}: an attempt {_shown(attempt)}; legal: a map of fields")
    gpus = 0
    for detail in _list(attempt, "detail", where):
        if not isinstance(detail, dict):
            raise WorkloadError(f"{where}: a detail {_shown(detail)}; legal: a map of fields")
        gpus += len(_list(detail, "gpus", where))
    times = [attempt.get("start_time"), attempt.get("end_time")]
    for time in times:
        if time not in NO_TIME and (not isinstance(time, str) or not TIME.fullmatch(time)):
            raise WorkloadError(f"{where}: time {_shown(time)}; legal: {LEGAL}, or null")
    return times[0], times[1], gpus


def _list(found: Object, name: str, where: str) -> list[Any]:
    value = found.get(name)
    if not isinstance(value, list) or len(value) > MAX_LISTED:
        legal = f"a list of up to {MAX_LISTED}"
        raise WorkloadError(f"{where}: {name} {_shown(value)}; legal: {legal}")
    return value


def _text(found: Object, name: str, where: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or len(value) > MAX_CELL:
        raise WorkloadError(
            f"{where}: {name} {_shown(value)}; legal: a text of up to {MAX_CELL} characters"
        )
    return value


def _shown(value: object) -> str:
    if isinstance(value, list | dict):
        return f"= a {type(value).__name__} of {len(value)}"
    return "missing" if value is None else f"= {repr(value)[:60]}"
