"""Tapes from public traces: each seed plays another stretch of the recorded demand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.batch_jobs import (
    BatchJobs,
    cut_durations,
    cut_notes,
    jobs_in_progress,
    join_jobs,
    nearest_prefix,
)
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.generator import Streams, assemble_tape, check_cluster
from flextopo.cluster.workload.online_demand import STEP_S, num_services, num_steps, replica_pods
from flextopo.cluster.workload.tape import Tape
from flextopo.cluster.workload.trace_rates import DAY_S, ServiceRates
from flextopo.cluster.workload.trace_readers import read_jobs, read_services

__all__ = ["ServiceRates", "TraceReport", "read_jobs", "read_services", "tape_from_traces"]

MAX_JOBS = 5 * 10**6
COPY_SHIFT_S = 1800
"""Copies of a job move by up to this much: apart from each other, in the same part of the day."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TraceReport:
    """What was done to the traces; printing it gives one sentence a source.

    Attributes:
        services: sentence about the services.
        jobs: a sentence for each source of jobs.
        begins: when the stretch of each begins, on its own clock: the services' file, then each source
            of jobs.
        load_found: batch GPU-seconds of the stretch a GPU-second of the cluster, each job counted
            with the mean of its source: one job of many days can be more than the whole load.
        load: the same after thinning or repeating.
        factor: load asked for over load found; below 1 thinned, above 1 repeated.
    """

    services: str
    jobs: tuple[str, ...]
    begins: tuple[tuple[str, str], ...]
    load_found: float
    load: float
    factor: float

    @property
    def scaling(self) -> str:
        """What was done to the jobs to reach the load."""
        return _how(self.factor)

    def __str__(self) -> str:
        return "\n".join((self.services, *self.jobs))


def tape_from_traces(
    services: ServiceRates,
    jobs: BatchJobs,
    config: WorkloadConfig,
    num_gpus: int,
    seed: int,
    gpus_per_server: int = 8,
    cores_per_gpu: int = 7,
) -> tuple[Tape, TraceReport]:
    """Play recorded services and jobs on a cluster.

    Services chosen by the seed become replicas as in the generator; with too few in the trace they
    are played again from other days. The warm-up comes from the hours before, around the trace's
    end if need be. Jobs of the stretch are thinned at random or repeated to `config.batch_load`.
    What no trace records (classes, checkpoints, budgets, elastic jobs, guaranteed durations;
    deadlines and sensitivities of services) is drawn as in the generator.

    Args:
        services: from `read_services`.
        jobs: from `read_jobs`; jobs larger than the cluster are left out, those larger than a
            server become PodGroups of whole servers and one pod of the rest: 20 = 8 + 8 + 4.
        config: shares, load, scale-down, start-up, window, attributes.
        num_gpus: GPUs of the whole cluster.
        seed: chooses stretches, thinning and attributes.
        gpus_per_server: 1 to 16.
        cores_per_gpu: whole CPU cores that each pod asks for a GPU.

    Returns:
        The tape, and what was done to the traces.

    Raises:
        WorkloadError: an argument is out of range, no job fits the cluster, or the jobs are too
            few to reach the load.
    """
    check_cluster(num_gpus, gpus_per_server, cores_per_gpu)
    rng = Streams.from_seed(seed)
    wanted = num_services(config, num_gpus)
    rates, *told = _stretch_of_services(services, config, wanted, rng.service_stretch)
    online = replica_pods(rates, config, num_gpus, gpus_per_server, rng.of_replicas)
    played, report = _play_jobs(jobs, config, num_gpus, gpus_per_server, rng)
    text, begin = told
    begins = ((services.source, begin), *report.begins)
    report = replace(report, services=text, begins=begins)
    return assemble_tape(config, online, played, rng, cores_per_gpu), report


def _stretch_of_services(
    services: ServiceRates, config: WorkloadConfig, wanted: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], str, str]:
    """Choose services and their start, (wanted, T) float64 from -warmup on; tell both, and the start."""
    available, steps = services.rates.shape
    unit = DAY_S // STEP_S if services.aligned else 1
    warmup, account = num_steps(config)
    rounds = max(1, math.ceil(wanted / available))
    starts = rng.permutation(steps // unit)[np.arange(rounds) % (steps // unit)]
    chosen = np.concatenate([rng.permutation(available) for _ in range(rounds)])[:wanted]
    start = np.repeat(starts, available)[:wanted] * unit
    columns = (start[:, None] + np.arange(-warmup, account)) % steps
    day, step = divmod(services.first + int(starts[0]) * unit, DAY_S // STEP_S)
    begin = f"day {day}" if services.aligned else f"day {day} {step // 6:02d}:{step % 6}0"
    text = f"{services.source}: {wanted} services played from {available} recorded, from {begin} on"
    if rounds > 1:
        text += f", each about {wanted / available:.3g} times with different starts"
    if warmup + account > steps:
        text += f", going round the trace's {steps * STEP_S / 3600:.3g} h"
    return services.rates[chosen[:, None], columns], _sentence(text, services.notes), begin


def _play_jobs(
    jobs: BatchJobs,
    config: WorkloadConfig,
    num_gpus: int,
    gpus_per_server: int,
    streams: Streams,
) -> tuple[BatchJobs, TraceReport]:
    """Cut, place and scale the jobs; returns them by submission, and a report without services."""
    rng = streams.job_stretch
    fitted, too_large = _fit_cluster(jobs, config, num_gpus, gpus_per_server)
    warmup, account = num_steps(config)
    begin_s, end_s = -warmup * STEP_S, account * STEP_S
    placed = [
        _stretch_of_jobs(fitted.take(fitted.source == i), begin_s, end_s, rng)
        for i in range(len(jobs.sources))
    ]
    found = placed[0][0]
    for more, _ in placed[1:]:
        found = join_jobs(found, more)
    capacity = num_gpus * (end_s - begin_s)
    mean_gpu_s = np.bincount(fitted.source, fitted.gpu_s, len(jobs.sources)) / np.maximum(
        np.bincount(fitted.source, minlength=len(jobs.sources)), 1
    )
    load_found = float(mean_gpu_s[found.source].sum()) / capacity
    target = config.batch_load * capacity
    scaled = _scale_load(found, mean_gpu_s[found.source], target, (begin_s, end_s), rng)
    load = float(mean_gpu_s[scaled.source].sum()) / capacity
    factor = config.batch_load / load_found if load_found else 0.0
    if config.initial_jobs:
        filled = config.batch_load * num_gpus
        running = jobs_in_progress(fitted, filled, begin_s, streams.in_progress)
        scaled = join_jobs(running, scaled)
    groups = np.bincount(fitted.source[fitted.pods > 1], minlength=len(jobs.sources))
    sentences = tuple(
        _sentence(
            f"{name}: jobs from day {placed[i][1]} on, load "
            f"{mean_gpu_s[i] * (found.source == i).sum() / capacity:.3g} found, {_how(factor)} for a "
            f"load of {config.batch_load:g} of all GPUs",
            jobs.notes[i],
            f"{too_large[i]} larger than the cluster left out" if too_large[i] else "",
            f"{groups[i]} of its jobs are PodGroups" if groups[i] else "",
            cut_notes(scaled.take(scaled.source == i), config),
        )
        for i, name in enumerate(jobs.sources)
    )
    begins = tuple(
        (name, f"day {day}") for name, (_, day) in zip(jobs.sources, placed, strict=True)
    )
    return scaled, TraceReport("", sentences, begins, load_found, load, factor)


def _how(factor: float) -> str:
    return f"thinned to {factor:.1%}" if factor <= 1 else f"repeated {factor:.3g} times"


def _fit_cluster(
    jobs: BatchJobs, config: WorkloadConfig, num_gpus: int, gpus_per_server: int
) -> tuple[BatchJobs, Ints]:
    """Cut durations, split pods over a server's size, drop jobs over the cluster's (counted)."""
    total = jobs.total_gpus
    fits = total <= num_gpus
    split = jobs.gpus > gpus_per_server
    gpus = np.where(split, gpus_per_server, jobs.gpus)
    pods = np.where(split, -(-total // gpus_per_server), jobs.pods)
    rest = np.where(split, total % gpus_per_server, jobs.rest)
    # Servers must hold all pods of a group at the same time; a last one may sit beside the others.
    beside = (rest > 0) & (rest <= gpus_per_server % gpus)
    slots = np.maximum(num_gpus // gpus_per_server, 1) * (gpus_per_server // gpus)
    fits &= pods - beside <= slots
    counts = np.bincount(jobs.source[~fits], minlength=len(jobs.sources))
    if not fits.any():
        raise WorkloadError(
            f"traces: {len(jobs)} jobs of {min(total.tolist(), default=0)} GPUs or more for {num_gpus} "
            "GPUs; legal: one that fits at least"
        )
    cut, wanted = cut_durations(jobs.duration_s, config), jobs.duration_s
    fitted = replace(jobs, duration_s=cut, wanted_s=wanted, gpus=gpus, pods=pods, rest=rest)
    return fitted.take(fits), counts


def _stretch_of_jobs(
    jobs: BatchJobs, begin_s: int, end_s: int, rng: np.random.Generator
) -> tuple[BatchJobs, int]:
    """Place one source's jobs in [begin_s, end_s) from a random day on, keeping the hour of day.

    Jobs before that day fill the warm-up; the trace goes round at its last whole day. Returns the
    jobs and the day, counted from t_s = 0.
    """
    if not len(jobs):
        return jobs, 0
    first = int(jobs.submit_s.min()) // DAY_S
    since = jobs.submit_s - first * DAY_S
    days = max(int(since.max()) // DAY_S, 1)
    inside = np.flatnonzero(since < days * DAY_S)
    since = since[inside]
    # Sparse traces have empty days, and a stretch without jobs cannot be repeated to any load.
    early = since[since % DAY_S < end_s]
    day = int(rng.choice(np.unique((early if len(early) else since) // DAY_S)))
    period = days * DAY_S
    played_s = begin_s + (since - day * DAY_S - begin_s) % period
    rounds = -(-(end_s - begin_s) // period)
    submit_s = (played_s + period * np.arange(rounds)[:, None]).ravel()
    rows = np.tile(inside, rounds)
    keep = submit_s < end_s
    return replace(jobs.take(rows[keep]), submit_s=submit_s[keep]), first + day


def _scale_load(
    found: BatchJobs,
    gpu_s: npt.NDArray[np.float64],
    target: float,
    window: tuple[int, int],
    rng: np.random.Generator,
) -> BatchJobs:
    """Thin or repeat jobs that count `gpu_s` each to `target`; returns them by submission."""
    if target <= 0:
        return found.take(np.zeros(0, np.int64))
    begin_s, end_s = window
    total = float(gpu_s.sum())
    copies = math.ceil(target / total) if total else MAX_JOBS
    if copies * len(found) > MAX_JOBS or not total:
        raise WorkloadError(
            f"traces: {len(found)} jobs of {total:.4g} GPU-s in the stretch for {target:.4g} GPU-s; "
            f"legal: a denser trace or a lower batch_load, {MAX_JOBS} jobs at most"
        )
    rows = np.concatenate([rng.permutation(len(found)) for _ in range(copies)])
    rows = rows[: nearest_prefix(np.cumsum(gpu_s[rows]), target)]
    shift = rng.integers(-COPY_SHIFT_S, COPY_SHIFT_S + 1, len(rows))
    shift[: len(found)] = 0
    submit_s = begin_s + (found.submit_s[rows] + shift - begin_s) % (end_s - begin_s)
    order = np.argsort(submit_s, kind="stable")
    return replace(found.take(rows[order]), submit_s=submit_s[order])


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part) + "."
