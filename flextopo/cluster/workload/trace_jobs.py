"""Batch jobs as recorded, and what is counted, rounded or left out before they are played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.trace_files import stem
from flextopo.cluster.workload.trace_rates import DAY_S, MAX_TIME_S
from flextopo.cluster.workload.trace_tables import TraceTable
from flextopo.cluster.workload.trace_times import seconds_of_times

MAX_JOB_S = 1e9
MAX_GPUS = 10**6
POD_GPUS = 8
"""GPUs of the largest public server; larger jobs have pods of it and one of the rest."""

ONLINE_QOS = ("LS", "Guaranteed")
"""openb's latency-sensitive classes: long-running pods that belong to the online side."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class JobRows:
    """Jobs as a trace has them; N rows in the order of the file.

    Attributes:
        path: of the trace.
        submit_s: (N,) float64 s from t_s = 0; anything where the job is left out.
        duration_s: (N,) float64 s.
        gpus: (N,) float64, 0 or more, need not be whole.
        source: (N,) int64, index into `sources`.
        sources: names, each with a clock of its own.
        left_out: why to rows that are.
        shared: (N,) bool, rows that ask for a share of a GPU although `gpus` is whole.
        since: date whose midnight is t_s = 0; None = the trace tells none.
        notes: what the reader changed before, "" = nothing.
    """

    path: Path
    submit_s: Floats
    duration_s: Floats
    gpus: Floats
    source: Ints
    sources: tuple[str, ...]
    left_out: dict[str, Mask] = field(default_factory=dict)
    shared: Mask | None = None
    since: date | None = None
    notes: str = ""

    def jobs(self) -> BatchJobs:
        """Leave out, round up and sort, and say how many of each.

        Raises:
            WorkloadError: no job with a GPU is left.
        """
        left_out, keep = dict[str, Mask](), np.ones(len(self.gpus), np.bool_)
        for why, mask in {**self.left_out, "CPU-only": self.gpus == 0}.items():
            left_out[why] = mask & keep  # the first reason counts, so that all counts add up
            keep &= ~mask
        if not keep.any():
            raise WorkloadError(f"{self.path}: no batch job with a GPU; legal: one at least")
        shared = self.gpus % 1 != 0
        shared |= False if self.shared is None else self.shared & (self.gpus > 0)
        counted = {
            **{f"{why} left out": mask for why, mask in left_out.items()},
            "shares of a GPU rounded up to one": keep & shared,
            "run over 24 h": keep & (self.duration_s > DAY_S),
        }
        used = np.unique(self.source[keep])
        whole = np.ceil(self.gpus[keep]).astype(np.int64)
        pods = -(-whole // POD_GPUS)
        jobs = BatchJobs(
            submit_s=np.floor(self.submit_s[keep]).astype(np.int64),
            duration_s=np.rint(self.duration_s[keep]).astype(np.int64),
            gpus=np.minimum(whole, POD_GPUS),
            pods=pods,
            source=np.searchsorted(used, self.source[keep]),
            sources=tuple(self.sources[i] for i in used.tolist()),
            notes=tuple(self._notes(counted, self.source == i) for i in used.tolist()),
            rest=np.where(pods > 1, whole % POD_GPUS, 0),
        )
        return jobs.take(np.argsort(jobs.submit_s, kind="stable"))

    def _notes(self, counted: dict[str, Mask], own: Mask) -> str:
        counts = [(int((own & mask).sum()), what) for what, mask in counted.items()]
        said = [f"{count} {what}" for count, what in counts if count]
        said += [self.notes] if self.notes else []
        said += [f"day 0 is {self.since}"] if self.since else []
        return ", ".join(said)


def read_plain_jobs(table: TraceTable) -> JobRows:
    """Read submit_s,duration_s,gpus: what users write, Acme, and Philly as prepared.

    Optional columns: source; qos (LS and Guaranteed rows of the source openb are left out:
    long-running pods are online); gpu_frac; nodes or vc: jobs over 8 GPUs are legal.

    Raises:
        WorkloadError: a cell is illegal.
    """
    many_servers = "nodes" in table.columns or "vc" in table.columns
    sources: tuple[str, ...] = (stem(table.path),)
    source = np.zeros(len(table), np.int64)
    if "source" in table.columns:
        sources, source = table.names("source")
    left_out = {}
    if "qos" in table.columns:
        openb = np.array([name == "openb" for name in sources])[source]
        left_out["online (LS)"] = openb & table.among("qos", ONLINE_QOS)
    shared = None
    if "gpu_frac" in table.columns:
        shared = table.numbers("gpu_frac", 0, 1, empty=1.0) < 1
    return JobRows(
        path=table.path,
        submit_s=table.numbers("submit_s", 0, MAX_TIME_S),
        duration_s=table.numbers("duration_s", 0, MAX_JOB_S),
        gpus=table.numbers("gpus", 0, MAX_GPUS if many_servers else POD_GPUS),
        source=source,
        sources=sources,
        left_out=left_out,
        shared=shared,
    )


def read_openb(table: TraceTable) -> JobRows:
    """Read openb's pods as published.

    Raises:
        WorkloadError: a cell is illegal.

    References:
        hkust-adsl/kubernetes-scheduler-simulator, data/csv/openb_pod_list_default.csv: seconds from
        the beginning of the trace.
    """
    created = table.numbers("creation_time", 0, MAX_TIME_S)
    scheduled = table.numbers("scheduled_time", 0, MAX_TIME_S, empty=np.nan)
    deleted = table.numbers("deletion_time", 0, MAX_TIME_S, empty=np.nan)
    pending = np.isnan(scheduled) | np.isnan(deleted)
    duration = np.where(pending, 0.0, deleted - scheduled)
    if (duration < 0).any():
        row = int(np.argmax(duration < 0))
        value = table.columns["deletion_time"][row]
        table.fail(
            row, f"deletion_time = {value!r}", f"scheduled_time = {scheduled[row]:g} or more"
        )
    online = table.among("qos", ONLINE_QOS)
    return JobRows(
        path=table.path,
        submit_s=created,
        duration_s=duration,
        gpus=table.numbers("num_gpu", 0, POD_GPUS),
        source=np.zeros(len(table), np.int64),
        sources=("openb",),
        left_out={"online (LS)": online, "never scheduled": pending},
        shared=table.numbers("gpu_milli", 0, 1000, empty=1000.0) < 1000,
    )


def read_pollux(table: TraceTable) -> JobRows:
    """Read timestamp,duration,num_gpus: Philly as Pollux and ElasticFlow simulate it.

    Raises:
        WorkloadError: a cell is illegal.

    References:
        pkusys/ElasticFlow, pollux/pollux_simulator/traces/philly.csv: local times, without an offset.
    """
    submit, since = seconds_of_times(table.columns["timestamp"], table.fail, "timestamp")
    return _single_source(table, submit, ("duration", "num_gpus"), since)


def read_elasticflow(table: TraceTable) -> JobRows:
    """Read job_id,submit_time,num_gpu,duration: ElasticFlow's own traces.

    Raises:
        WorkloadError: a cell is illegal.

    References:
        pkusys/ElasticFlow, ElasticFlow/traces_for_ElasticFlow/*.csv: seconds from the beginning, whose
        hour is not told.
    """
    submit = table.numbers("submit_time", 0, MAX_TIME_S)
    return _single_source(table, submit, ("duration", "num_gpu"))


def _single_source(
    table: TraceTable, submit: Floats, columns: tuple[str, str], since: date | None = None
) -> JobRows:
    duration, gpus = columns
    return JobRows(
        path=table.path,
        submit_s=submit,
        duration_s=table.numbers(duration, 0, MAX_JOB_S),
        gpus=table.numbers(gpus, 0, MAX_GPUS),
        source=np.zeros(len(table), np.int64),
        sources=(stem(table.path),),
        since=since,
    )


def join_sources(parts: Sequence[BatchJobs]) -> BatchJobs:
    """Put the jobs of several traces together, each source with its own clock.

    Raises:
        WorkloadError: two traces have a source of the same name.
    """
    sources = tuple(name for part in parts for name in part.sources)
    twice = sorted({name for name in sources if sources.count(name) > 1})
    if twice:
        raise WorkloadError(
            f"source {twice[0]!r} of jobs in two files; legal: files with different names"
        )
    before = np.cumsum([0, *(len(part.sources) for part in parts)])
    joined = BatchJobs(
        submit_s=np.concatenate([part.submit_s for part in parts]),
        duration_s=np.concatenate([part.duration_s for part in parts]),
        gpus=np.concatenate([part.gpus for part in parts]),
        pods=np.concatenate([part.pods for part in parts]),
        source=np.concatenate([p.source + b for p, b in zip(parts, before, strict=False)]),
        sources=sources,
        notes=tuple(note for part in parts for note in part.notes),
        rest=np.concatenate([part.rest for part in parts]),
    )
    return joined.take(np.argsort(joined.submit_s, kind="stable"))
