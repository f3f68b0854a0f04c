"""Sample how many replicas online services will want, given how many they have had so far.

The workload model's request rates are daily waves with an autoregressive residual. What is unknown
is where the residual stands and how large each service is; a particle filter over the replicas seen
so far samples both, and the model's recursion carries them on.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.online_demand import STEP_S, common_n_max, service_rates

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PARTICLES = 64
"""Hypotheses a service: enough that a sample rarely repeats another's."""

PRIOR_DAYS = 32
"""Days drawn to learn how large services are."""

TOLERANCE = 0.1
"""Log-rate by which a hypothesis may miss the replicas seen before it loses its weight."""

EXCESS = 0.03
"""Share of the limit by which a future may exceed it before it becomes unlikely."""

DRIFT = 0.02
"""Log-size a step by which hypotheses spread, or resampling would leave one size alone."""


class Demand(NamedTuple):
    """Hypotheses on the demand of S services at the end of a step; P particles.

    Fields: `residual` (S, P) float64 in standard deviations; `log_size` (S, P) float64, replicas
    wanted at log-rate 0; `window` (W, S, P) float64, log-rates of the last W steps, oldest first:
    those whose highest counts.
    """

    residual: Floats
    log_size: Floats
    window: Floats


class Runs(NamedTuple):
    """Lives of replicas in sampled futures; R rows.

    Fields, all (R,) int64: `sample`, `service`, `level` (from 1; the oldest replica is level 1),
    `present` (1 = it is there already), `arrive_s` (of those that are not), `depart_s` (NEVER_S =
    beyond the futures).
    """

    sample: Ints
    service: Ints
    level: Ints
    present: Ints
    arrive_s: Ints
    depart_s: Ints


def log_waves(config: WorkloadConfig, step: int) -> float:
    """Return the log-rate of the two daily waves in a 10-min step; step 0 begins at 00:00."""
    hour = step * (STEP_S / 3600)
    daily = config.daily_amplitude * math.cos(2 * math.pi * (hour - config.daily_peak_h) / 24)
    half = math.cos(4 * math.pi * (hour - config.half_daily_peak_h) / 24)
    return daily + config.half_daily_amplitude * half


@lru_cache(maxsize=16)
def size_prior(
    config: WorkloadConfig, gpus: tuple[int, ...], num_gpus: int
) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of services' log-sizes in the workload model.

    Args:
        config: the workload model; its online peak fixes the sizes.
        gpus: of a replica of each service.
        num_gpus: of the cluster.

    Returns:
        Two (S,) float64, replicas wanted at log-rate 0, estimated from drawn days.
    """
    rng = np.random.default_rng(0)
    limit = max(config.online_peak_share * num_gpus, float(sum(gpus)))
    sizes = []
    for _ in range(PRIOR_DAYS):
        rates = service_rates(config, len(gpus), rng.spawn(2))
        n_max = common_n_max(rates, np.array(gpus), limit, config)
        sizes.append(np.log(n_max) - np.log(np.quantile(rates, 0.995, axis=1)))
    return np.mean(sizes, 0), np.std(sizes, 0)


def filter_demand(
    config: WorkloadConfig,
    counts: Ints,
    first_step: int,
    sure: Floats,
    prior: tuple[Floats, Floats],
    rng: np.random.Generator,
) -> Demand:
    """Sample what the replicas seen say about residuals and sizes.

    Args:
        config: waves, residual, bursts and scale-down.
        counts: (S, T) replicas in each 10-min step, the present one last; T is 1 at least.
        first_step: number of the first one.
        sure: (S,) float64, how sure the last column is: 1 = its change has come, else the share of
            the step that has passed without one.
        prior: of the log-sizes; half of the hypotheses begin with it, half with what is seen first.
        rng: generator.

    Returns:
        Hypotheses at the end of the present step.

    References:
        Gordon, Salmond and Smith (1993), the bootstrap filter, with systematic resampling.
    """
    services, steps = counts.shape
    shape = (services, PARTICLES)
    width = math.ceil(config.scale_down_s / STEP_S) + 1
    seen = np.maximum(counts, 1)[:, :, None]
    window = np.empty((width, *shape))
    residual = rng.standard_normal(shape)
    for back in range(width):
        residual = _carry_on(config, residual, rng.standard_normal(shape))
        window[back] = _log_rates(config, residual, first_step - width + 1 + back, rng)
    log_size = prior[0][:, None] + prior[1][:, None] * rng.standard_normal(shape)
    fitted = np.log(seen[:, 0] - rng.random(shape)) - window.max(0)
    log_size[:, ::2] = fitted[:, ::2]
    high = np.log(seen)
    low = np.where(seen > 1, np.log(np.maximum(seen - 1, 1)), -np.inf)
    for step in range(steps):
        if step:
            residual = _carry_on(config, residual, rng.standard_normal(shape))
            window[:-1] = window[1:]
            window[-1] = _log_rates(config, residual, first_step + step, rng)
        wanted = window.max(0) + log_size
        beyond = np.maximum(low[:, step] - wanted, wanted - high[:, step])
        miss = np.maximum(beyond, 0) / TOLERANCE
        weight = np.exp(-0.5 * np.minimum(miss, 30) ** 2)
        if step == steps - 1:
            weight = 1 - sure[:, None] * (1 - weight)
        kept = _resample(weight, rng)
        residual = residual.take(kept)
        log_size = log_size.take(kept) + DRIFT * rng.standard_normal(shape)
        window = window.reshape(width, -1).take(kept, axis=1)
    return Demand(residual, log_size, window)


def _carry_on(config: WorkloadConfig, residual: Floats, noise: Floats) -> Floats:
    phi = config.residual_phi
    carried: Floats = phi * residual + math.sqrt(1 - phi * phi) * noise
    return carried


def _log_rates(
    config: WorkloadConfig, residual: Floats, step: int, rng: np.random.Generator
) -> Floats:
    burst = math.log(config.burst_factor) * (rng.random(residual.shape) < config.burst_share)
    rates: Floats = log_waves(config, step) + config.residual_sd * residual + burst
    return rates


def _resample(weights: Floats, rng: np.random.Generator) -> Ints:
    """Return (S, P) places in the flat array, each row's by its share of the weight (systematically)."""
    rows, columns = weights.shape
    upto = np.cumsum(weights + 1e-12, axis=1)
    upto /= upto[:, -1:]
    points = (rng.random((rows, 1)) + np.arange(columns)) / columns
    ahead = np.arange(rows)[:, None]  # row r lies in (r, r + 1], so that one search does for all
    found = np.searchsorted((upto + ahead).ravel(), (points + ahead).ravel(), side="right")
    kept: Ints = np.minimum(found.reshape(weights.shape), columns * (ahead + 1) - 1)
    return kept


def sample_counts(
    config: WorkloadConfig,
    demand: Demand,
    first_step: int,
    steps: int,
    samples: int,
    rng: np.random.Generator,
) -> Ints:
    """Sample the replicas that services will want.

    Args:
        config: as above.
        demand: hypotheses at the end of `first_step`.
        first_step: number of the present 10-min step.
        steps: F, how many, the present one included.
        samples: M, how many futures; residuals of one future rise and fall together.
        rng: generator.

    Returns:
        (M, S, F) int64, 1 or more.
    """
    services = len(demand.residual)
    chosen = rng.integers(PARTICLES, size=(services, samples))
    residual = np.take_along_axis(demand.residual, chosen, 1)
    log_size = np.take_along_axis(demand.log_size, chosen, 1)
    window = np.take_along_axis(demand.window, chosen[None], 2)
    counts = np.empty((steps, services, samples), np.int64)
    together = math.sqrt(config.residual_correlation)
    alone = math.sqrt(1 - config.residual_correlation)
    for step in range(steps):
        if step:
            shared, own = rng.standard_normal(samples), rng.standard_normal((services, samples))
            residual = _carry_on(config, residual, together * shared + alone * own)
            window[:-1] = window[1:]
            window[-1] = _log_rates(config, residual, first_step + step, rng)
        wanted = np.exp(np.minimum(window.max(0) + log_size, 12.0))
        counts[step] = np.maximum(np.ceil(wanted - 1e-9), 1)
    return np.ascontiguousarray(counts.transpose(2, 1, 0))


def within_limit(
    counts: Ints, gpus: Ints, limit: float, samples: int, rng: np.random.Generator
) -> Ints:
    """Choose futures that hardly exceed the highest demand of the day.

    Args:
        counts: (N, S, F) replicas in N sampled futures.
        gpus: (S,) of a replica.
        limit: GPUs.
        samples: M, how many are chosen, N at most.
        rng: generator.

    Returns:
        (M, S, F) int64.
    """
    excess = np.maximum(np.einsum("nsf,s->nf", counts, gpus).max(1) / limit - 1, 0)
    weight = np.exp(-np.minimum((excess - excess.min()) / EXCESS, 50))
    return counts[rng.choice(len(counts), samples, replace=False, p=weight / weight.sum())]


def replica_runs(
    counts: Ints,
    present: Ints,
    changed: npt.NDArray[np.bool_],
    now_s: int,
    rng: np.random.Generator,
) -> Runs:
    """Turn sampled counts into lives of replicas; the newest replica leaves first.

    Args:
        counts: (M, S, F) replicas wanted in each 10-min step, the first one that of `now_s`.
        present: (S,) replicas now.
        changed: (S,) whether the present step has brought its change already.
        now_s: seconds; changes come later.
        rng: draws the second of each change.

    Returns:
        The present replicas in every sample, and those to come.
    """
    samples, services, steps = counts.shape
    begin_s = now_s - now_s % STEP_S
    second = rng.integers(0, STEP_S, size=(2, samples, services, steps))
    now = np.broadcast_to(present[:, None], (samples, services, 1))
    second[..., 0] = rng.integers(now_s - begin_s, STEP_S, size=second.shape[:-1]) + 1
    wanted = counts.copy()
    wanted[:, :, 0] = np.where(changed, present, wanted[:, :, 0])
    wanted = np.concatenate((now, wanted), axis=2)
    level = np.arange(1, wanted.max(initial=0) + 1)
    alive = np.zeros((samples, services, len(level), steps + 3), np.int8)
    alive[..., 1:-1] = wanted[:, :, None, :] >= level[:, None]
    change = np.diff(alive, axis=3)
    # Both index lists run by sample, service, level and time: the i-th start has the i-th end.
    sample, service, rank, begin = np.nonzero(change == 1)
    end = np.nonzero(change == -1)[3]
    starts, ends = np.maximum(begin - 1, 0), np.clip(end - 1, 0, steps - 1)
    arrive_s = begin_s + starts * STEP_S + second[0, sample, service, starts]
    depart_s = begin_s + ends * STEP_S + second[1, sample, service, ends]
    return Runs(
        sample=sample,
        service=service,
        level=rank + 1,
        present=(begin == 0).astype(np.int64),
        arrive_s=arrive_s,
        depart_s=np.where(end > steps, NEVER_S, depart_s),
    )
