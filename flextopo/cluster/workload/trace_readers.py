"""Readers of the public traces: request rates of services, and batch jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.online_demand import STEP_S
from flextopo.cluster.workload.trace_tables import TraceTable, read_by_format, read_table

DAY_S = 86400
MAX_TIME_S = 1e11
MAX_JOB_S = 1e9
MAX_CELLS = 5 * 10**7
POD_GPUS = 8
"""GPUs of the largest server in the public traces; larger jobs have pods of it and one of the rest."""

ONLINE_QOS = ("LS", "Guaranteed")
"""openb's latency-sensitive classes: long-running pods that belong to the online side."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ServiceRates:
    """Request rates of services in 10-min windows.

    Attributes:
        names: S names, sorted.
        rates: (S, T) float64, requests/s, 0 or more; gaps are filled.
        aligned: column 0 is 00:00 and T is whole days; False for traces under a day.
        source: file name.
        notes: what the reader changed, "" = nothing.
    """

    names: tuple[str, ...]
    rates: Floats
    aligned: bool
    source: str
    notes: str = ""


def read_services(path: str | Path) -> ServiceRates:
    """Read the request rates of one or more services.

    Formats, told apart by their columns (others are ignored):
        service,t_s,rate_rps: ServeGen's services; an empty rate is a gap.
        model,t_s,rate_rps,valid: ServeGen's totals; valid = 0 is a gap.
        minute,requests: one service, requests of each minute (Azure 2023).
        t_s,input_tokens,output_tokens: one service, one row a request (Azure 2023, Mooncake).

    Args:
        path: csv or csv.gz; t_s in s, 0 = 00:00 of a day.

    Returns:
        Rates in 10-min means. Gaps inside a service are interpolated; incomplete days at the
        ends are cut if a whole day is left.

    Raises:
        WorkloadError: names file, line, value and what was legal.
    """
    table = read_table(path)
    formats: dict[tuple[str, ...], Callable[[TraceTable], ServiceRates]] = {
        ("service", "t_s", "rate_rps"): lambda t: _read_rates(t, "service"),
        ("model", "t_s", "rate_rps", "valid"): lambda t: _read_rates(t, "model"),
        ("minute", "requests"): _read_minutes,
        ("t_s", "input_tokens", "output_tokens"): _read_requests,
    }
    return read_by_format(table, formats)


def read_jobs(path: str | Path) -> BatchJobs:
    """Read batch jobs.

    Formats, told apart by their columns (others are ignored):
        submit_s,duration_s,gpus: Philly, Acme and files of several sources. Optional columns:
            source; qos (LS and Guaranteed rows of the source openb are left out: long-running
            pods are online); gpu_frac; nodes (Acme) or vc (Philly): jobs over 8 GPUs are legal
            and become PodGroups.
        num_gpu,gpu_milli,qos,creation_time,deletion_time,scheduled_time: openb as published; pods
            never scheduled are left out as well.

    Args:
        path: csv or csv.gz; times in s.

    Returns:
        Jobs by submission; pods of 8 GPUs, the last one of a job of what is left: 20 = 8 + 8 + 4.
        Shares of a GPU are rounded up to a whole one, jobs without GPUs left out; `notes` counts both.
        Durations are not yet cut.

    Raises:
        WorkloadError: names file, line, value and what was legal, or no job is left.
    """
    table = read_table(path)
    formats: dict[tuple[str, ...], Callable[[TraceTable], BatchJobs]] = {
        ("submit_s", "duration_s", "gpus"): _read_plain_jobs,
        (
            *("num_gpu", "gpu_milli", "qos"),
            *("creation_time", "deletion_time", "scheduled_time"),
        ): _read_openb_pods,
    }
    return read_by_format(table, formats)


def _read_rates(table: TraceTable, key: str) -> ServiceRates:
    times = table.numbers("t_s", 0, MAX_TIME_S)
    rates = table.numbers("rate_rps", 0, 1e12, empty=np.nan)
    if key == "model":
        rates[table.numbers("valid", 0, 1) == 0] = np.nan
    names, service = np.unique(table.text(key), return_inverse=True)
    step = (times // STEP_S).astype(np.int64)
    first = int(step.min())
    width = int(step.max()) - first + 1
    if width * len(names) > MAX_CELLS:
        table.fail(
            int(step.argmax()),
            f"t_s spans {width} steps of 10 min for {len(names)} services",
            f"{MAX_CELLS} cells at most",
        )
    known = ~np.isnan(rates)
    cell = service[known] * width + step[known] - first
    size = width * len(names)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(cell, rates[known], size) / np.bincount(cell, minlength=size)
    return _service_rates(table, tuple(names.tolist()), mean.reshape(len(names), width), first)


def _read_minutes(table: TraceTable) -> ServiceRates:
    minute = table.numbers("minute", 0, MAX_TIME_S / 60)
    requests = table.numbers("requests", 0, 1e12)
    return _single_service(table, np.floor(minute) * 60, requests, 60)


def _read_requests(table: TraceTable) -> ServiceRates:
    times = table.numbers("t_s", 0, MAX_TIME_S)
    return _single_service(table, times, np.ones(len(table)), 1)


def _single_service(
    table: TraceTable, times: Floats, requests: Floats, resolution_s: float
) -> ServiceRates:
    """Count requests into 10-min rates; the last window counts as far as it is covered."""
    step = (times // STEP_S).astype(np.int64)
    first, last = int(step.min()), int(step.max())
    if last - first >= MAX_CELLS:
        table.fail(int(step.argmax()), f"t_s spans {last - first} steps", f"{MAX_CELLS} at most")
    counts = np.bincount(step - first, requests)
    seconds = np.full(len(counts), float(STEP_S))
    covered = float(times.max()) + resolution_s - last * STEP_S
    # Below a minute the rate of the last window would be a guess from a handful of requests.
    seconds[-1] = min(max(covered, 60.0), STEP_S)
    return _service_rates(table, (_stem(table.path),), (counts / seconds)[None], first)


def _service_rates(
    table: TraceTable, names: tuple[str, ...], rates: Floats, first: int
) -> ServiceRates:
    """Cut to whole days and fill the gaps; `first` is the step of column 0."""
    day = DAY_S // STEP_S
    begin, end = -(-first // day) * day, (first + rates.shape[1]) // day * day
    aligned = end > begin
    if aligned:
        rates = rates[:, begin - first : end - first]
    known = ~np.isnan(rates)
    empty: npt.NDArray[np.bool_] = np.logical_not(known.any(axis=1))
    if empty.all():
        raise WorkloadError(f"{table.path}: no window with a rate; legal: one at least")
    kept = [name for name, bad in zip(names, empty.tolist(), strict=True) if not bad]
    rates, known = rates[~empty], known[~empty]
    columns = np.arange(rates.shape[1])
    for row, mask in zip(rates, known, strict=True):
        row[~mask] = np.interp(columns[~mask], columns[mask], row[mask])
    notes = [f"{int((~known).sum())} gaps of 10 min interpolated"] if not known.all() else []
    if empty.any():
        notes.append(f"{int(empty.sum())} services without a rate left out")
    if not aligned:
        notes.append("shorter than a day, so not aligned to the hour of day")
    return ServiceRates(tuple(kept), rates, aligned, table.path.name, ", ".join(notes))


def _read_plain_jobs(table: TraceTable) -> BatchJobs:
    submit = table.numbers("submit_s", 0, MAX_TIME_S)
    duration = table.numbers("duration_s", 0, MAX_JOB_S)
    many_servers = "nodes" in table.columns or "vc" in table.columns
    gpus = table.numbers("gpus", 0, 10**6 if many_servers else POD_GPUS)
    share = np.ones(len(table))
    if "gpu_frac" in table.columns:
        share = table.numbers("gpu_frac", 0, 1, empty=1.0)
    source = np.full(len(table), _stem(table.path))
    if "source" in table.columns:
        source = table.text("source")
    online = np.zeros(len(table), np.bool_)
    if "qos" in table.columns:
        online = (source == "openb") & np.isin(table.text("qos"), ONLINE_QOS)
    return _batch_jobs(table, submit, duration, gpus, share, source, {"online (LS)": online})


def _read_openb_pods(table: TraceTable) -> BatchJobs:
    created = table.numbers("creation_time", 0, MAX_TIME_S)
    scheduled = table.numbers("scheduled_time", 0, MAX_TIME_S, empty=np.nan)
    deleted = table.numbers("deletion_time", 0, MAX_TIME_S, empty=np.nan)
    gpus = table.numbers("num_gpu", 0, POD_GPUS)
    share = table.numbers("gpu_milli", 0, 1000, empty=1000.0) / 1000
    online = np.isin(table.text("qos"), ONLINE_QOS)
    pending = np.isnan(scheduled) | np.isnan(deleted)
    duration = np.where(pending, 0.0, deleted - scheduled)
    if (duration < 0).any():
        row = int(np.argmax(duration < 0))
        value = table.columns["deletion_time"][row]
        table.fail(
            row, f"deletion_time = {value!r}", f"scheduled_time = {scheduled[row]:g} or more"
        )
    source = np.full(len(table), "openb")
    left_out = {"online (LS)": online, "never scheduled": pending}
    return _batch_jobs(table, created, duration, gpus, share, source, left_out)


def _batch_jobs(
    table: TraceTable,
    submit: Floats,
    duration: Floats,
    gpus: Floats,
    share: Floats,
    source: npt.NDArray[np.str_],
    left_out: dict[str, npt.NDArray[np.bool_]],
) -> BatchJobs:
    """Drop, round and sort rows, and say how many of each; all arrays (N,)."""
    left_out["CPU-only"] = gpus == 0
    keep = ~np.logical_or.reduce(list(left_out.values()))
    if not keep.any():
        raise WorkloadError(f"{table.path}: no batch job with a GPU; legal: one at least")
    rounded = keep & ((gpus % 1 != 0) | ((share < 1) & (gpus > 0)))
    sources, index = np.unique(source[keep], return_inverse=True)
    notes = []
    for name in sources.tolist():
        own = source == name
        counts = [(int((own & mask).sum()), f"{why} left out") for why, mask in left_out.items()]
        counts.append((int((own & rounded).sum()), "shares of a GPU rounded up to one"))
        notes.append(", ".join(f"{count} {what}" for count, what in counts if count))
    whole = np.ceil(gpus[keep]).astype(np.int64)
    pods = -(-whole // POD_GPUS)
    jobs = BatchJobs(
        submit_s=np.floor(submit[keep]).astype(np.int64),
        duration_s=np.rint(duration[keep]).astype(np.int64),
        gpus=np.minimum(whole, POD_GPUS),
        pods=pods,
        source=index.astype(np.int64),
        sources=tuple(sources.tolist()),
        notes=tuple(notes),
        rest=np.where(pods > 1, whole % POD_GPUS, 0),
    )
    return jobs.take(np.argsort(jobs.submit_s, kind="stable"))


def _stem(path: Path) -> str:
    return path.name.split(".")[0]
