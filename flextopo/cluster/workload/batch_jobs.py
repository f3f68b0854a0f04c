"""Batch jobs: when they arrive and how long they run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.workload.config import REPLICA_GPUS, WorkloadConfig

GROUP_SIZES = (2, 3, 4)
"""Pods of a PodGroup, equally likely."""

GROUP_SERVERS = 4
"""A cluster with fewer servers' worth of GPUs gets no PodGroups: the largest would not fit."""

POOL = 16384
"""Jobs drawn to find those in progress: a few hundred long ones hold most of the time."""

MOST_S = 2**40
"""Run times as they were wanted are written down up to this."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BatchJobs:
    """Jobs before they become pods, one row each; J rows.

    Attributes:
        submit_s: (J,) int64, ascending.
        duration_s: (J,) int64, run time needed, 0 or more.
        gpus: (J,) int64, GPUs of one pod, above 0.
        pods: (J,) int64, pods of the job; more than 1 = a PodGroup.
        source: (J,) int64, index into `sources`; each source has a clock of its own.
        sources: names of the sources.
        notes: for each source what its reader changed or left out, "" = nothing.
        wanted_s: (J,) int64, run time before it was cut, and from the job's start where only the
            rest of it is played; not given = `duration_s`.
        rest: (J,) int64, GPUs of the last pod of a PodGroup, fewer than the others have; 0 = as many;
            not given = 0.
    """

    submit_s: Ints
    duration_s: Ints
    gpus: Ints
    pods: Ints
    source: Ints
    sources: tuple[str, ...] = ("generator",)
    notes: tuple[str, ...] = ("",)
    wanted_s: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    rest: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if len(self.wanted_s) != len(self.duration_s):
            object.__setattr__(self, "wanted_s", self.duration_s)
        if len(self.rest) != len(self.duration_s):
            object.__setattr__(self, "rest", np.zeros(len(self.duration_s), np.int64))

    def __len__(self) -> int:
        return len(self.submit_s)

    @property
    def total_gpus(self) -> Ints:
        """GPUs of all pods of each job, (J,) int64."""
        return self.gpus * self.pods - np.where(self.rest > 0, self.gpus - self.rest, 0)

    @property
    def gpu_s(self) -> Ints:
        """GPU-seconds that each job asks for, (J,) int64."""
        return self.duration_s * self.total_gpus

    def take(self, rows: Ints | npt.NDArray[np.bool_]) -> BatchJobs:
        """Return the chosen rows, in the order given."""
        return replace(
            self,
            submit_s=self.submit_s[rows],
            duration_s=self.duration_s[rows],
            gpus=self.gpus[rows],
            pods=self.pods[rows],
            source=self.source[rows],
            wanted_s=self.wanted_s[rows],
            rest=self.rest[rows],
        )


@dataclass(frozen=True)
class JobKinds:
    """The mix of jobs: GPU sizes of single pods, then the groups; K kinds.

    Attributes:
        share: (K,) float64, of the number of jobs.
        gpus: (K,) int64, of a pod.
        pods: (K,) int64, of a job.
        mu, sigma: (K,) float64, of the logarithm of the run time in seconds.
        mean_s: (K,) float64, run time as it is cut.
    """

    share: Floats
    gpus: Ints
    pods: Ints
    mu: Floats
    sigma: Floats
    mean_s: Floats

    @property
    def mean_gpu_s(self) -> float:
        """GPU-seconds that a job asks for on average."""
        return float((self.share * self.gpus * self.pods * self.mean_s).sum())


def mean_duration_s(mu: float, sigma: float, low: float, high: float) -> float:
    """Return the mean of a log-normal (mu, sigma) whose values are cut to [low, high], in closed form.

    Cut means clipped: what is shorter becomes `low`, what is longer becomes `high`.
    """
    if sigma == 0:
        return min(max(math.exp(mu), low), high)

    def below(z: float) -> float:
        return 0.5 * math.erfc(-z / math.sqrt(2))

    a, b = (math.log(low) - mu) / sigma, (math.log(high) - mu) / sigma
    inside = math.exp(mu + sigma**2 / 2) * (below(b - sigma) - below(a - sigma))
    return low * below(a) + inside + high * below(-b)


def job_kinds(config: WorkloadConfig, num_gpus: int, gpus_per_server: int) -> JobKinds:
    """Return the mix of jobs of a cluster with so many GPUs."""
    sizes = np.minimum(REPLICA_GPUS, gpus_per_server).astype(np.int64)
    large = np.array(REPLICA_GPUS) > 2
    cut = (config.min_duration_s, config.max_duration_s)
    small_mean = mean_duration_s(config.small_job_mu, config.small_job_sigma, *cut)
    large_mean = mean_duration_s(config.large_job_mu, config.large_job_sigma, *cut)
    mean = np.where(large, large_mean, small_mean)
    share = np.array(config.batch_gpu_mix)
    group_gpus = min(8, gpus_per_server)
    groups = config.group_share if num_gpus >= GROUP_SERVERS * gpus_per_server else 0.0
    # The share is of GPU-hours; jobs are drawn by number, so it is turned by the mean job sizes.
    single_gpu_s = float((share * sizes * mean).sum())
    group_gpu_s = float(group_gpus * large_mean * np.mean(GROUP_SIZES))
    by_number = groups * single_gpu_s / (groups * single_gpu_s + (1 - groups) * group_gpu_s)
    extra = len(GROUP_SIZES)
    is_large = np.append(large, [True] * extra)
    return JobKinds(
        share=np.append(share * (1 - by_number), [by_number / extra] * extra),
        gpus=np.append(sizes, [group_gpus] * extra),
        pods=np.append(np.ones(len(sizes), np.int64), GROUP_SIZES),
        mu=np.where(is_large, config.large_job_mu, config.small_job_mu),
        sigma=np.where(is_large, config.large_job_sigma, config.small_job_sigma),
        mean_s=np.append(mean, [large_mean] * extra),
    )


def hourly_factors(
    shape: float, correlation: float, hours: int, rng: np.random.Generator, series: int = 1
) -> Floats:
    """Draw Gamma(shape, mean 1) factors with lag-1 correlation, (series, hours) float64.

    References:
        The beta-gamma autoregression of Lewis, McKenzie and Hugus (1989), "Gamma processes":
        X[t] = B X[t-1] + G with B ~ Beta(k r, k (1 - r)) and G ~ Gamma(k (1 - r)) has Gamma(k)
        margins and lag-1 correlation r exactly, and needs no inverse distribution function.
    """
    # Beta(0, b) is the constant 0, which numpy refuses; a tiny first parameter is as good.
    size = series, hours
    keep = rng.beta(max(shape * correlation, 1e-9), shape * (1 - correlation), size)
    fresh = rng.gamma(shape * (1 - correlation), 1.0, size)
    factors = np.empty(size)
    value = rng.gamma(shape, size=series)
    for hour in range(hours):
        value = keep[:, hour] * value + fresh[:, hour] if hour else value
        factors[:, hour] = value / shape
    return factors


def cut_durations(durations: npt.NDArray[np.floating] | Ints, config: WorkloadConfig) -> Ints:
    """Round to whole seconds and clip to the configuration's shortest and longest job."""
    whole = np.rint(np.clip(durations, config.min_duration_s, config.max_duration_s))
    return whole.astype(np.int64)


def cut_notes(jobs: BatchJobs, config: WorkloadConfig) -> str:
    """Say how many jobs `cut_durations` has changed, "" = none."""
    longer = int((jobs.wanted_s > config.max_duration_s).sum())
    shorter = int((jobs.wanted_s < config.min_duration_s).sum())
    days = f"{config.max_duration_s / 86400:.3g}"
    counts = (
        (longer, f"cut at {days} day{'s' * (days != '1')}"),
        (shorter, f"lengthened to {config.min_duration_s} s"),
    )
    return ", ".join(f"{n} of {len(jobs)} jobs {what}" for n, what in counts if n)


def generate_jobs(
    config: WorkloadConfig,
    num_gpus: int,
    gpus_per_server: int,
    begin_s: int,
    end_s: int,
    rng: list[np.random.Generator],
) -> BatchJobs:
    """Draw the jobs of a window, those in progress at its begin included.

    Arrivals are Poisson, with a rate of hour factor x hourly gamma factor; the mean load is
    `config.batch_load` GPU-seconds a GPU-second, by the closed-form mean of the job mix.

    Args:
        config: load, mix, durations.
        num_gpus: GPUs of the cluster.
        gpus_per_server: larger pods are cut to it.
        begin_s: start of the window; t = 0 is 00:00.
        end_s: its end.
        rng: four generators: hourly factors, arrivals, durations, jobs in progress.

    Returns:
        The jobs by submission; those in progress are submitted at `begin_s`.
    """
    kinds = job_kinds(config, num_gpus, gpus_per_server)
    _, submit_s = draw_arrivals(config, num_gpus / kinds.mean_gpu_s, begin_s, end_s, rng[:2])
    jobs = draw_jobs(config, kinds, submit_s, rng[2])
    if not config.initial_jobs:
        return jobs
    filled = config.batch_load * num_gpus
    pool = np.full(POOL + math.ceil(4 * filled), begin_s, np.int64)
    running = jobs_in_progress(draw_jobs(config, kinds, pool, rng[3]), filled, begin_s, rng[3])
    return join_jobs(running, jobs)


def join_jobs(first: BatchJobs, second: BatchJobs) -> BatchJobs:
    """Return the rows of `first`, then those of `second`, which has the same sources."""
    names = ("submit_s", "duration_s", "gpus", "pods", "source", "wanted_s", "rest")
    both: dict[str, Any] = {
        name: np.concatenate((getattr(first, name), getattr(second, name))) for name in names
    }
    return replace(second, **both)


def draw_jobs(
    config: WorkloadConfig, kinds: JobKinds, submit_s: Ints, rng: np.random.Generator
) -> BatchJobs:
    """Draw the jobs that arrive at these seconds, each by itself."""
    kind = rng.choice(len(kinds.share), size=len(submit_s), p=kinds.share)
    wanted = np.exp(kinds.mu[kind] + kinds.sigma[kind] * rng.standard_normal(len(kind)))
    return BatchJobs(
        submit_s,
        cut_durations(wanted, config),
        kinds.gpus[kind],
        kinds.pods[kind],
        source=np.zeros(len(kind), np.int64),
        wanted_s=np.rint(np.minimum(wanted, MOST_S)).astype(np.int64),
    )


def draw_arrivals(
    config: WorkloadConfig,
    jobs_per_s: float,
    begin_s: int,
    end_s: int,
    rng: list[np.random.Generator],
    series: int = 1,
) -> tuple[Ints, Ints]:
    """Draw when jobs arrive.

    Args:
        config: load and how it varies.
        jobs_per_s: at a load of 1.
        begin_s: start of the window; t = 0 is 00:00.
        end_s: its end.
        rng: two generators: hourly factors, arrivals.
        series: how many windows are drawn, each by itself.

    Returns:
        (J,) int64, the series, ascending; (J,) int64, seconds in [begin_s, end_s), ascending in each.
    """
    first, last = math.floor(begin_s / 3600), math.ceil(end_s / 3600)
    hours = np.arange(first, last)
    shape, correlation = config.arrival_shape, config.arrival_correlation
    noise = hourly_factors(shape, correlation, len(hours), rng[0], series)
    rate = config.batch_load * jobs_per_s * np.array(config.hour_factors)[hours % 24] * noise
    counts = rng[1].poisson(rate * 3600)
    begin = np.repeat(np.tile(hours * 3600, series), counts.ravel())
    times = begin + rng[1].integers(0, 3600, int(counts.sum()))
    of = np.repeat(np.arange(series), counts.sum(1))
    order = np.lexsort((times, of))
    times, of = times[order].astype(np.int64), of[order]
    inside = (times >= begin_s) & (times < end_s)
    return of[inside], times[inside]


def jobs_in_progress(
    pool: BatchJobs, gpus: float, begin_s: int, rng: np.random.Generator
) -> BatchJobs:
    """Draw jobs that are running at `begin_s` and fill about `gpus` GPUs.

    Long jobs are found in progress more often, in proportion to their length, and anywhere in it
    with equal chance: the pool is resampled by duration, and a uniform share of it remains.

    Args:
        pool: jobs to draw from, with replacement; one at least if `gpus` is above 0.
        gpus: GPUs to fill; the fill ends at the job that comes nearest.
        begin_s: they are submitted then, with what remains of their duration.
        rng: generator.

    Returns:
        The jobs.
    """
    if gpus <= 0:
        return pool.take(np.zeros(0, np.int64))
    weight = np.maximum(pool.duration_s, 1)
    chosen = rng.choice(len(pool), size=math.ceil(gpus) + 1, p=weight / weight.sum())
    filled = np.cumsum(pool.total_gpus[chosen])
    running = pool.take(chosen[: nearest_prefix(filled, gpus)])
    left = np.ceil(running.duration_s * (1 - rng.random(len(running)))).astype(np.int64)
    begin = np.full(len(running), begin_s, np.int64)
    return replace(running, submit_s=begin, duration_s=left)


def nearest_prefix(cumulative: Ints | Floats, target: float) -> int:
    """Return how many leading items sum to the nearest of `target`.

    Stopping before the item that crosses the line would fall short by half an item on average.
    """
    count = int(np.searchsorted(cumulative, target, side="right"))
    if count < len(cumulative):
        before = cumulative[count - 1] if count else 0
        count += bool(cumulative[count] - target < target - before)
    return count
