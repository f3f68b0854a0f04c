"""Alibaba's PAI trace of 2020 as published: tables without a line of names, a task or job a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flextopo.cluster.workload.trace_jobs import MAX_GPUS, Floats, JobRows, Mask
from flextopo.cluster.workload.trace_rates import MAX_TIME_S
from flextopo.cluster.workload.trace_tables import TraceTable

STATUSES = ("Running", "Terminated", "Failed", "Waiting")
UTC8_S = 8 * 3600
"""Added to the trace's seconds: read as Unix time, they have the true hour of day in UTC+8."""

TASKS = (
    *("job_name", "task_name", "inst_num", "status", "start_time", "end_time"),
    *("plan_cpu", "plan_mem", "plan_gpu", "gpu_type"),
)
JOBS = ("job_name", "inst_id", "user", "status", "start_time", "end_time")


def is_pai(row: Sequence[str]) -> bool:
    """Say whether the cells are of one of both tables: a status in the fourth."""
    return row[3].strip() in STATUSES


def read_pai(tasks: TraceTable, jobs: TraceTable | None = None) -> JobRows:
    """Read pai_task_table, and the times of submission from pai_job_table where it is given.

    Tasks of a job run at the same time, so a job is the sum of those that ask for GPUs: inst_num x
    plan_gpu / 100, rounded up once, from the first start to the last end. Without the table of jobs,
    a job is submitted when its first task starts: waiting is left out. Failed jobs count: they held
    their GPUs.

    Args:
        tasks: rows with the columns `TASKS`.
        jobs: rows with the columns `JOBS`.

    Raises:
        WorkloadError: a cell is illegal.

    References:
        alibaba/clusterdata, cluster-trace-gpu-v2020: README.md, data/*.header, analysis/utils.py.
    """
    names, job = tasks.codes("job_name")
    gpus = _gpus(tasks)
    begin, end = _times(tasks, "start_time"), _times(tasks, "end_time")
    with_gpu = gpus > 0
    asked = np.bincount(job, gpus, len(names))
    unfinished = np.zeros(len(names), np.bool_)
    unfinished[job[with_gpu & (np.isnan(begin) | np.isnan(end))]] = True
    first, last = np.full(len(names), np.inf), np.zeros(len(names))
    np.fmin.at(first, job[with_gpu], begin[with_gpu])
    np.fmax.at(last, job[with_gpu], end[with_gpu])
    unfinished &= asked > 0
    backwards = (asked > 0) & ~unfinished & (last < first)
    played: Mask = (asked > 0) & ~unfinished & ~backwards
    first = np.where(played, first, 0.0)
    submit, counts = (first, {}) if jobs is None else _submissions(jobs, names, first, played)
    counts["tasks without inst_num left out"] = int((~tasks.filled("inst_num")).sum())
    return JobRows(
        path=tasks.path,
        submit_s=submit + UTC8_S,
        duration_s=np.where(played, last - first, 0.0),
        gpus=np.round(asked, 6),
        source=np.zeros(len(names), np.int64),
        sources=("pai",),
        left_out={"never ended": unfinished, "ended before they started": backwards},
        notes=", ".join(f"{count} {what}" for what, count in counts.items() if count),
    )


def _gpus(tasks: TraceTable) -> Floats:
    """Return the GPUs of all instances of each task, (N,) float64."""
    instances = tasks.numbers("inst_num", 0, MAX_GPUS, empty=0.0)
    gpus = instances * tasks.numbers("plan_gpu", 0, 100 * MAX_GPUS, empty=0.0) / 100
    if (gpus > MAX_GPUS).any():
        row = int(gpus.argmax())
        tasks.fail(row, f"inst_num x plan_gpu = {gpus[row]:g} GPUs", f"{MAX_GPUS} at most")
    return gpus


def _times(table: TraceTable, name: str) -> Floats:
    """Return (N,) float64 s; NaN where a time is unknown, which the trace writes as 0, too."""
    times = table.numbers(name, 0, MAX_TIME_S, empty=np.nan)
    return np.where(times > 0, times, np.nan)


def _submissions(
    jobs: TraceTable, names: tuple[str, ...], started: Floats, played: Mask
) -> tuple[Floats, dict[str, int]]:
    """Return when each job was submitted, and how many times were not as they should be."""
    times = _times(jobs, "start_time")
    at = {name.strip(): time for name, time in zip(jobs.columns["job_name"], times, strict=True)}
    told = np.array([at.get(name, np.nan) for name in names])
    late = told > started
    submit = np.where(np.isnan(told) | late, started, told)
    return submit, {
        "without a submission in pai_job_table, submitted as started": int(
            (played & np.isnan(told)).sum()
        ),
        "started before their submission, submitted as started": int((played & late).sum()),
    }
