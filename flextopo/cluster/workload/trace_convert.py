"""Published traces as the two files that a comparison takes: services, or batch jobs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.online_demand import STEP_S
from flextopo.cluster.workload.trace_jobs import JobRows, join_sources
from flextopo.cluster.workload.trace_rates import RateWindows, join_windows
from flextopo.cluster.workload.trace_readers import Found, read_traces
from flextopo.cluster.workload.trace_requests import RequestLog, join_logs


@dataclass(frozen=True)
class Converted:
    """A trace as users write one.

    Attributes:
        rows: of the file, without the line of names.
        text: the file, comma-separated.
        said: sentences about what was read, and what was done to it.
    """

    rows: int
    text: str
    said: tuple[str, ...]


def convert_traces(
    paths: Sequence[Path],
    kind: str | None = None,
    service: str | None = None,
    tokens_per_s: float | None = None,
) -> Converted:
    """Turn published files into one of services or one of jobs.

    Requests become rates: a request is a request, whatever its tokens, and rates are means over ten
    minutes. `tape_from_traces` sizes replicas from the shape of the rates alone, so tokens are only
    told, and how many replicas of `tokens_per_s` they would keep busy.

    Args:
        paths: files of services or requests, or of jobs, not both.
        kind: see `read_traces`.
        service: name of the one service whose requests all files have; None = each is one.
        tokens_per_s: tokens in and out that a replica sustains; None = replicas are not told, since
            no public trace tells it.

    Raises:
        FlextopoError: whatever is wrong with a file, or the files do not go together.
    """
    if tokens_per_s is not None and not 0 < tokens_per_s < math.inf:
        raise WorkloadError(f"tokens_per_s = {tokens_per_s:g}; legal: above 0")
    if service is not None and not (service.strip() and service.isprintable()):
        raise WorkloadError(f"service {service!r}; legal: a name of printed characters")
    found = read_traces(paths, kind)
    jobs = [each for each in found if isinstance(each, JobRows)]
    if jobs and len(jobs) < len(found):
        raise WorkloadError(
            f"{len(jobs)} of {len(found)} files have jobs and the others demand; legal: one of both "
            "at a time"
        )
    if not jobs:
        return _services(found, service, tokens_per_s)
    if service is not None:
        raise WorkloadError(f"service {service!r} with files of jobs; legal: with logs of requests")
    return _jobs(join_sources([rows.jobs() for rows in jobs]))


def _services(found: list[Found], service: str | None, tokens_per_s: float | None) -> Converted:
    logs = [each for each in found if isinstance(each, RequestLog)]
    windows = [each for each in found if isinstance(each, RateWindows)]
    if service is not None:
        if windows:
            raise WorkloadError(
                f"service {service!r} with rates of named services; legal: with logs of requests"
            )
        logs = [join_logs(logs, service)]
    joined = join_windows([*windows, *(log.windows() for log in logs)])
    filled = joined.filled()
    hours = joined.rates.shape[1] * STEP_S / 3600
    said = [_log_sentence(log, tokens_per_s) for log in logs]
    said.append(
        f"{_counted(len(joined.names), 'service')} over {hours:.3g} h"
        + (f"; in a comparison: {filled.notes}" if filled.notes else "")
    )
    steps = (joined.first + np.arange(joined.rates.shape[1])) * STEP_S
    rows = [
        (name, time, "" if math.isnan(rate) else repr(rate))
        for name, rates in zip(joined.names, joined.rates.tolist(), strict=True)
        for time, rate in zip(steps.tolist(), rates, strict=True)
    ]
    return Converted(len(rows), _csv(("service", "t_s", "rate_rps"), rows), tuple(said))


def _log_sentence(log: RequestLog, tokens_per_s: float | None) -> str:
    peak = log.peak_tokens_per_s()
    text = (
        f"{log.name}: {_counted(len(log.times_s), 'request')} of {log.input_tokens.mean():.0f} tokens in and "
        f"{log.output_tokens.mean():.0f} out; {peak:.0f} tokens/s in the busiest 10 min"
    )
    if tokens_per_s is None:
        return text
    return f"{text}, {math.ceil(peak / tokens_per_s)} replicas of {tokens_per_s:g} tokens/s"


def _jobs(jobs: BatchJobs) -> Converted:
    said = []
    for i, (name, notes) in enumerate(zip(jobs.sources, jobs.notes, strict=True)):
        own = jobs.source == i
        large = int((jobs.pods[own] > 1).sum())
        parts = [f"{name}: {_counted(int(own.sum()), 'job')}", notes]
        parts += [f"{large} over 8 GPUs, which become PodGroups"] if large else []
        said.append("; ".join(part for part in parts if part))
    columns = (jobs.submit_s, jobs.duration_s, jobs.total_gpus, jobs.pods)
    names = [jobs.sources[i] for i in jobs.source.tolist()]
    rows = zip(*(column.tolist() for column in columns), names, strict=True)
    text = _csv(("submit_s", "duration_s", "gpus", "nodes", "source"), rows)
    return Converted(len(jobs), text, tuple(said))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
