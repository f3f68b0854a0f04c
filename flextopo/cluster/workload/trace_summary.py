"""What recorded demand and jobs are like: the day of services, sizes and run times of jobs, what they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.online_demand import STEP_S
from flextopo.cluster.workload.trace_rates import DAY_S, DAY_STEPS, ServiceRates

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SIZES = {"1": 1, "2": 2, "3-4": 4, "5-8": 8, "over 8": 10**9}
"""Classes of GPUs of a job, each up to a number of GPUs."""

MAX_POINTS = 1000
"""Points of a line over time: more than a reader's screen shows."""


@dataclass(frozen=True)
class Occupancy:
    """GPUs that the jobs of one source hold if each starts when it is submitted.

    Attributes:
        edges_s: (B + 1,) float64 s from t_s = 0.
        gpus: (B,) float64, mean of each bin.
    """

    edges_s: Floats
    gpus: Floats

    @property
    def mean_gpus(self) -> float:
        """Mean over the time in which jobs are submitted."""
        return float(self.gpus.mean())


def times_s(services: ServiceRates) -> Floats:
    """Return where each window of services begins, (T,) float64 s from t_s = 0."""
    steps = services.first + np.arange(services.rates.shape[1])
    return np.asarray(steps * STEP_S, np.float64)


def mean_day(services: ServiceRates) -> Floats:
    """Return each service's mean day over its mean, (S, 24) float64 an hour of day.

    A service without a request is 1 all day.
    """
    hours = services.rates.reshape(len(services.names), -1, 24, DAY_STEPS // 24).mean((1, 3))
    mean = hours.mean(1, keepdims=True)
    found = np.where(mean > 0, hours / np.where(mean > 0, mean, 1.0), 1.0)
    return np.asarray(found, np.float64)


def size_shares(jobs: BatchJobs) -> tuple[Floats, Floats]:
    """Return the shares of jobs and of GPU-hours by `SIZES`, two of (len(SIZES),) float64."""
    size = np.searchsorted(list(SIZES.values()), jobs.total_gpus)
    count = np.bincount(size, minlength=len(SIZES)) / len(jobs)
    hours = np.bincount(size, jobs.gpu_s, len(SIZES))
    return count, hours / max(float(hours.sum()), 1.0)


def occupancy(jobs: BatchJobs) -> Occupancy:
    """Return what jobs would hold of a cluster without end, while they are submitted.

    Args:
        jobs: one source's, which have one clock; at least one.
    """
    begin = float(jobs.submit_s.min()) // STEP_S * STEP_S
    last = float(jobs.submit_s.max()) + STEP_S
    steps = max(int((last - begin) // STEP_S), 1)
    width = STEP_S * -(-steps // MAX_POINTS)
    edges = begin + width * np.arange(max(int((last - begin) // width), 1) + 1, dtype=np.float64)
    change_s = np.concatenate([jobs.submit_s, jobs.submit_s + jobs.duration_s]).astype(np.float64)
    change = np.concatenate([jobs.total_gpus, -jobs.total_gpus])
    order = np.argsort(change_s, kind="stable")
    change_s, held = change_s[order], np.cumsum(change[order]).astype(np.float64)
    # GPU-seconds so far are linear between changes, so the mean of a bin is exact.
    so_far = np.concatenate([[0.0], np.cumsum(held[:-1] * np.diff(change_s))])
    at_edges = np.interp(edges, change_s, so_far)
    return Occupancy(edges, np.diff(at_edges) / width)


def describe_services(services: ServiceRates) -> str:
    """Return a sentence on services: how many, how long, how their sum rises and falls."""
    hours = services.rates.shape[1] * STEP_S / 3600
    total = services.rates.sum(0)
    text = f"{services.source}: {len(services.names)} services over {hours:.4g} h, "
    text += f"{total.mean():.4g} requests/s on average, {total.max():.4g} at most"
    if services.aligned:
        day = mean_day(services).mean(0)
        text += (
            f"; the mean day is highest at {day.argmax():02d}:00, lowest at {day.argmin():02d}:00"
        )
        text += f", {day.max() / day.min():.3g} times apart" if day.min() > 0 else ""
    return f"{text}; {services.notes}." if services.notes else f"{text}."


def describe_jobs(jobs: BatchJobs, num_gpus: int) -> list[str]:
    """Return a sentence on each source of jobs: how many, how long, what they would hold of a cluster."""
    out = []
    for i, name in enumerate(jobs.sources):
        own = jobs.take(jobs.source == i)
        days = float(np.ptp(own.submit_s)) / DAY_S
        middle, long = np.quantile(own.duration_s, (0.5, 0.9)).tolist()
        mean = occupancy(own).mean_gpus
        out.append(
            f"{name}: {len(own)} jobs over {days:.3g} days, run time p50 {middle:.0f} s and p90 "
            f"{long:.0f} s, up to {own.total_gpus.max()} GPUs; they would hold {mean:.4g} GPUs on average, "
            f"{mean / num_gpus:.3g} times those of {num_gpus}"
            + (f"; {jobs.notes[i]}." if jobs.notes[i] else ".")
        )
    return out
