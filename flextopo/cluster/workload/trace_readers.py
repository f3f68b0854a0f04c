"""Readers of traces, public and users' own: what kind a file is, and what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from flextopo.cluster.errors import UnknownNameError, WorkloadError
from flextopo.cluster.workload import trace_pai as pai
from flextopo.cluster.workload import trace_rates as rates
from flextopo.cluster.workload import trace_requests as requests
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.trace_files import read_text
from flextopo.cluster.workload.trace_jobs import (
    JobRows,
    read_elasticflow,
    read_openb,
    read_plain_jobs,
    read_pollux,
)
from flextopo.cluster.workload.trace_json import JsonTrace, is_json, json_trace
from flextopo.cluster.workload.trace_philly import read_philly
from flextopo.cluster.workload.trace_rates import RateWindows, ServiceRates
from flextopo.cluster.workload.trace_requests import RequestLog
from flextopo.cluster.workload.trace_tables import Columns, TraceTable, table_of

Content = TraceTable | JsonTrace
Found = RateWindows | RequestLog | JobRows


@dataclass(frozen=True)
class Kind:
    """A format of trace files.

    Attributes:
        about: what it is, for people.
        columns: that tell it: of the line of names, or keys of JSON objects.
        read: a table of text, or JSON, to what it holds.
        json: whether it is JSON.
        headless: tells by their first row files that have no line of names; None = all have one.
    """

    about: str
    columns: Columns
    read: Callable[[Any], Found]
    json: bool = False
    headless: Callable[[Sequence[str]], bool] | None = None


SERVICE_KINDS: dict[str, Kind] = {
    "services": Kind("your services", ("service", "t_s", "rate_rps"), rates.read_service_rates),
    "models": Kind(
        "totals of ServeGen's models",
        ("model", "t_s", "rate_rps", "valid"),
        rates.read_model_rates,
    ),
    "minutes": Kind("requests of each minute", ("minute", "requests"), rates.read_minutes),
    "requests": Kind(
        "your log of requests", ("t_s", "input_tokens", "output_tokens"), requests.read_requests
    ),
    "azure": Kind(
        "Azure LLM inference trace, 2023 and 2024",
        requests.AZURE,
        requests.read_azure,
        headless=requests.is_azure,
    ),
    "mooncake": Kind("Mooncake's traces", requests.MOONCAKE, requests.read_mooncake, json=True),
    "servegen": Kind(
        "ServeGen's clients, chunk-*-trace.csv",
        ("t_s", "rate_rps", "cv", "pattern", "shape", "scale"),
        rates.read_servegen,
        headless=rates.is_servegen,
    ),
}
JOB_KINDS: dict[str, Kind] = {
    "jobs": Kind("your jobs", ("submit_s", "duration_s", "gpus"), read_plain_jobs),
    "openb": Kind(
        "openb's pods (Alibaba 2023)",
        (
            *("num_gpu", "gpu_milli", "qos"),
            *("creation_time", "deletion_time", "scheduled_time"),
        ),
        read_openb,
    ),
    "philly": Kind(
        "Philly's cluster_job_log", ("attempts", "submitted_time"), read_philly, json=True
    ),
    "pollux": Kind(
        "Philly as Pollux and ElasticFlow simulate it",
        ("timestamp", "duration", "num_gpus"),
        read_pollux,
    ),
    "elasticflow": Kind(
        "ElasticFlow's traces",
        ("job_id", "submit_time", "num_gpu", "duration"),
        read_elasticflow,
    ),
    "pai": Kind("Alibaba PAI 2020, pai_task_table", pai.TASKS, pai.read_pai, headless=pai.is_pai),
}
KINDS = {**SERVICE_KINDS, **JOB_KINDS}
"""All formats; the first one whose columns a file has reads it."""

LAYOUTS = {
    **{kind.columns: kind.headless for kind in KINDS.values() if kind.headless},
    pai.JOBS: pai.is_pai,
}
"""Columns of files without a line of names, to what tells them."""


def read_services(path: str | Path) -> ServiceRates:
    """Read the request rates of one or more services.

    Args:
        path: a file of one of `SERVICE_KINDS`, told apart by its columns (others are ignored); plain
            or gzip; t_s in s, 0 = 00:00 of a day.

    Returns:
        Rates in 10-min means. Gaps inside a service are interpolated; incomplete days at the
        ends are cut if a whole day is left.

    Raises:
        WorkloadError: names file, line, value and what was legal.
    """
    content = open_trace(path)
    found = _kind_of(content, SERVICE_KINDS).read(content)
    windows = found.windows() if isinstance(found, RequestLog) else cast(RateWindows, found)
    return windows.filled()


def read_jobs(path: str | Path) -> BatchJobs:
    """Read batch jobs.

    Args:
        path: a file of one of `JOB_KINDS`, told apart by its columns (others are ignored); plain or
            gzip; times in s.

    Returns:
        Jobs by submission; pods of 8 GPUs, the last one of a job of what is left: 20 = 8 + 8 + 4.
        Shares of a GPU are rounded up to a whole one, jobs without GPUs left out; `notes` counts both.
        Durations are not yet cut.

    Raises:
        WorkloadError: names file, line, value and what was legal, or no job is left.
    """
    content = open_trace(path)
    return cast(JobRows, _kind_of(content, JOB_KINDS).read(content)).jobs()


def read_traces(paths: Sequence[str | Path], kind: str | None = None) -> list[Found]:
    """Read traces of any kinds.

    Args:
        paths: pai_job_table goes with pai_task_table, and adds the times of submission to it.
        kind: one of `KINDS` that all are of; None = told by the columns of each.

    Raises:
        UnknownNameError: there is no such kind.
        WorkloadError: names file, line, value and what was legal.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("kind of trace", kind, [*KINDS])
    places = [Path(path).resolve() for path in paths]
    if twice := next((str(paths[i]) for i, p in enumerate(places) if p in places[:i]), None):
        raise WorkloadError(f"{twice}: given twice; legal: each file once")
    kinds = KINDS if kind is None else {kind: KINDS[kind]}
    contents = [open_trace(path) for path in paths]
    submissions = [
        c for c in contents if isinstance(c, TraceTable) and set(pai.JOBS) <= set(c.columns)
    ]
    contents = [content for content in contents if content not in submissions]
    readers = [_kind_of(content, kinds).read for content in contents]
    if submissions:
        if len(submissions) > 1 or readers.count(pai.read_pai) != 1:
            raise WorkloadError(
                f"{submissions[-1].path}: pai_job_table, which tells no GPUs; legal: one, "
                "together with one pai_task_table"
            )
        with_times = partial(pai.read_pai, jobs=submissions[0])
        readers = [with_times if read is pai.read_pai else read for read in readers]
    return [read(content) for read, content in zip(readers, contents, strict=True)]


def open_trace(path: str | Path) -> Content:
    """Return a trace as columns of text, or as JSON; nothing of it is understood yet.

    Raises:
        WorkloadError: it is neither.
    """
    path = Path(path)
    text = read_text(path)
    return json_trace(path, text) if is_json(text) else table_of(path, text, LAYOUTS)


def _kind_of(content: Content, kinds: dict[str, Kind]) -> Kind:
    json = isinstance(content, JsonTrace)
    for kind in kinds.values():
        if kind.json == json and set(kind.columns) <= set(content.columns):
            return kind
    shown = ",".join(" ".join(name.split())[:40] for name in [*content.columns][:20])
    legal = [",".join(kind.columns) for kind in kinds.values() if kind.json == json]
    instead = " or ".join(legal) or "comma-separated values, no JSON"
    raise WorkloadError(
        f"{content.path}:1: {'keys' if json else 'columns'} {shown}; legal: {instead}"
    )
