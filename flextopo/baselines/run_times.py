"""How long pods run and start up, given how long they have already."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import numpy.typing as npt

from flextopo.baselines.information import InformationState
from flextopo.cluster.state.arrays import RUNNING, STARTING
from flextopo.cluster.workload.batch_pods import LONG_JOB_S
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.online_demand import P90_Z

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def log_normal_beyond(
    mu: Floats, sigma: Floats, age: Floats, share: Floats, most: Floats | float = math.inf
) -> Floats:
    """Return log-normal values given that they lie above an age, by inversion.

    Args:
        mu: (P,) float64, mean of the logarithm.
        sigma: (P,) float64, its standard deviation, above 0.
        age: (P,) float64, 0 or more.
        share: (..., P) float64 in (0, 1], uniform: the share of the tail that lies above the value.
        most: none is longer, above `age`.

    Returns:
        (..., P) float64, above `age`.
    """
    from scipy.special import ndtr, ndtri

    above = ndtr((mu - np.log(np.maximum(age, 1e-9))) / sigma)
    beyond = ndtr((mu - np.log(most)) / sigma)
    tail = beyond + share * (above - beyond)
    drawn: Floats = np.maximum(np.exp(mu - sigma * ndtri(tail)), age)
    return drawn


def remaining_beyond(
    law: tuple[float, float],
    low: float,
    high: float,
    age: Floats,
    share: Floats,
    none_longer: bool = False,
) -> Floats:
    """Return what remained of jobs found in progress, given that it is more than an age.

    A job found at a random moment is length-biased and uniformly through: what remains of it
    exceeds r with probability proportional to the integral of the survival function beyond r.

    Args:
        law: mean of the logarithm of the run time, and its standard deviation.
        low: shortest run time, s; shorter ones are lengthened to it.
        high: longest, s; longer ones are cut to it, or, with `none_longer`, do not occur.
        age: (P,) float64, seconds that they have run since they were found, below `high`.
        share: (..., P) float64 in (0, 1], uniform.
        none_longer: see `high`.

    Returns:
        (..., P) float64 seconds, above `age`, at most `high`.
    """
    from scipy.special import ndtr

    grid = np.concatenate(([0.0], np.geomspace(low, high, 256)))
    mu, sigma = law
    survival = ndtr((mu - np.log(np.maximum(grid, 1e-9))) / sigma)
    survival[grid < low] = 1.0
    survival -= survival[-1] if none_longer else 0.0
    pieces = np.diff(grid) * (survival[:-1] + survival[1:]) / 2
    beyond = np.append(np.cumsum(pieces[::-1])[::-1], 0.0)
    target = share * np.interp(age, grid, beyond)
    found: Floats = np.interp(-target, -beyond, grid)
    return np.maximum(found, age)


def remaining_times(
    config: WorkloadConfig, known: InformationState, share: Floats
) -> tuple[Ints, Ints]:
    """Return run times of the present batch pods and start-up times of the present replicas.

    Args:
        config: the workload model.
        known: what is known; P pods.
        share: (M, J) float64 in (0, 1], the share of what may be that lies above, for each of J jobs, whose
            pods run for the same time, in each of M futures.

    Returns:
        Two (M, P) int64, s: 0 for pods of the other kind.
    """
    live, online = known.live, known.pods["online"]
    share = share[:, known.job]
    span = known.now_s - live["since_s"]
    running = live["status"] == RUNNING
    done = live["done_s"] + np.where(running, np.maximum(span - live["overhead_s"], 0), 0)
    longest = np.zeros(num_jobs(known), np.int64)
    np.maximum.at(longest, known.job, done)
    run_s = _run_times(config, known, longest[known.job], share)
    started = np.where(live["status"] == STARTING, span, 0).astype(np.float64)
    start_s = start_up_times(config, started, share)
    return np.where(online, 0, run_s), np.where(online, start_s, 0)


def num_jobs(known: InformationState) -> int:
    """Return how many jobs there are, J."""
    return int(known.job.max(initial=-1)) + 1


def _run_times(config: WorkloadConfig, known: InformationState, done: Ints, share: Floats) -> Ints:
    """Return run times of batch pods, (M, P) whole seconds above what their jobs have done.

    A job without checkpoints is none that runs for long.
    """
    age, low, high = done.astype(np.float64), config.min_duration_s, config.max_duration_s
    large = (known.pods["gpus"] > 2) | (known.pods["group"] >= 0) | known.elastic
    short = (known.pods["checkpoint_s"] == 0) & (age < LONG_JOB_S) & (high > LONG_JOB_S)
    mu = np.where(large, config.large_job_mu, config.small_job_mu)
    sigma = np.maximum(np.where(large, config.large_job_sigma, config.small_job_sigma), 1e-6)
    most = np.where(short, LONG_JOB_S, math.inf)
    total = log_normal_beyond(mu, sigma, np.where(age < low, 0.0, age), share, most)
    total = np.clip(total, low, high)
    if config.initial_jobs:
        found = known.pods["arrive_s"] == known.begin_s
        for size, bound in product((False, True), (False, True)):
            rows = np.flatnonzero(found & (large == size) & (short == bound) & (age < high))
            if len(rows):
                law = float(mu[rows[0]]), float(sigma[rows[0]])
                top = LONG_JOB_S if bound else high
                total[:, rows] = remaining_beyond(law, low, top, age[rows], share[:, rows], bound)
    # Longer than any job of the model: as likely to go on for its age again as not.
    total = np.where(age >= high, np.minimum(age / share, 10 * age), total)
    whole: Ints = np.maximum(np.ceil(total).astype(np.int64), done + 1)
    return whole


def start_up_times(config: WorkloadConfig, started: Floats, share: Floats) -> Ints:
    """Return start-up times of replicas, whole seconds above what they have taken, as `share` is shaped."""
    if config.start_p50_s == 0 or config.start_factor == 0:
        return np.broadcast_to(started.astype(np.int64) + (started > 0), share.shape)
    mu = np.full_like(started, math.log(config.start_p50_s * config.start_factor))
    sigma = np.full_like(started, max(math.log(config.start_p90_s / config.start_p50_s), 1e-6))
    drawn = np.rint(log_normal_beyond(mu, sigma / P90_Z, started, share)).astype(np.int64)
    return np.where(started > 0, np.maximum(drawn, started.astype(np.int64) + 1), drawn)
