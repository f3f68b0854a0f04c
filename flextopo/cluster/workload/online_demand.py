"""Online services: request rates over a day, and the replicas an autoscaler makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.jit.kernels import kernel
from flextopo.cluster.scenario import SENSITIVITIES
from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.workload.config import GANG_MEMBERS, REPLICA_GPUS, WorkloadConfig

STEP_S = 600
"""Rates are means over 10 minutes, the window of the public service traces."""

P90_Z = 1.2815515655446004
"""90th percentile of the standard normal."""

RESIDENT, LINKED = map(list(SENSITIVITIES).index, ("resident", "linked"))

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OnlinePods:
    """Replicas of all services, one row each; R rows, ordered by service, level and time.

    Attributes:
        service: (R,) int64.
        arrive_s: (R,) int64.
        depart_s: (R,) int64, NEVER_S if the replica outlives the tape.
        start_s: (R,) int64, start-up time before it serves.
        gpus: (R,) int64.
        requirement: (R,) int64, a `TopologyRequirement`.
        deadline_s: (R,) int64, by when it should have its place.
        sensitivity: (R,) int64, a row of `scenario.SENSITIVITIES`.
        group: (R,) int64, number of the gang, whose members stand next to each other; -1 = none.
        required_tier: (R,) int64, a `NetworkLevel`, see `schema.POD_FIELDS`.
        preferred_tier: (R,) int64, the same.
    """

    service: Ints
    arrive_s: Ints
    depart_s: Ints
    start_s: Ints
    gpus: Ints
    requirement: Ints
    deadline_s: Ints
    sensitivity: Ints
    group: Ints
    required_tier: Ints
    preferred_tier: Ints


DAY_STEPS = 86400 // STEP_S


def num_steps(config: WorkloadConfig) -> tuple[int, int]:
    """Return the 10-min steps of the warm-up and of the account, both rounded up."""
    warmup = math.ceil(config.warmup_h * 3600 / STEP_S - 1e-9)
    return warmup, math.ceil(config.horizon_h * 3600 / STEP_S - 1e-9)


def num_services(config: WorkloadConfig, num_gpus: int) -> int:
    """Return how many services a cluster of `num_gpus` runs.

    By the rule, at least 3, but never more than the GPUs of the online peak: each needs one.

    Raises:
        WorkloadError: `config.services` is given and needs more GPUs than the online peak.
    """
    most = math.floor(config.online_peak_share * num_gpus + 1e-9)
    if config.services is None:
        wanted = max(3, round(config.services_per_128_gpus * num_gpus / 128))
        return max(1, min(wanted, most)) if most else 0
    if config.services > most:
        raise WorkloadError(
            f"workload: services = {config.services} with online_peak_share = "
            f"{config.online_peak_share:g} of {num_gpus} GPUs; legal: 1 to {most}"
        )
    return config.services


def service_rates(config: WorkloadConfig, services: int, rng: list[np.random.Generator]) -> Floats:
    """Draw request rates: two daily waves, a correlated AR(1) residual, and bursts.

    Args:
        config: amplitudes, phases and the residual.
        services: S, number of services.
        rng: two generators, one for the residuals and one for the bursts.

    Returns:
        (S, T) float64, relative rate of each 10-min step from -warmup on.
    """
    warmup, account = num_steps(config)
    steps = warmup + account
    hour = np.arange(-warmup, account) * (STEP_S / 3600)
    waves = config.daily_amplitude * np.cos(2 * np.pi * (hour - config.daily_peak_h) / 24)
    waves += config.half_daily_amplitude * np.cos(
        4 * np.pi * (hour - config.half_daily_peak_h) / 24
    )
    shared = rng[0].standard_normal((steps, 1))
    own = rng[0].standard_normal((steps, services))
    corr, phi = config.residual_correlation, config.residual_phi
    noise = math.sqrt(corr) * shared + math.sqrt(1 - corr) * own
    # The first step is drawn from the stationary law, so that no step is calmer than another.
    noise[1:] *= math.sqrt(1 - phi * phi)
    _carry_over(noise, phi)
    bursts = np.where(
        rng[1].random((services, steps)) < config.burst_share, config.burst_factor, 1.0
    )
    rates: Floats = np.exp(waves + config.residual_sd * noise.T) * bursts
    return rates


@kernel
def _carry_over(noise: Floats, phi: float) -> None:
    """Add to each row of (T, S) `phi` times the row before it."""
    for step in range(1, noise.shape[0]):
        for service in range(noise.shape[1]):
            noise[step, service] += phi * noise[step - 1, service]


@kernel
def _peak_demand(held: Floats, gpus: Ints, n_max: float) -> int:
    """Return the highest GPU demand of the steps of (S, T) held relative rates."""
    most = 0
    for step in range(held.shape[1]):
        demand = 0
        for service in range(held.shape[0]):
            demand += gpus[service] * max(math.ceil(held[service, step] * n_max - 1e-9), 1)
        most = max(most, demand)
    return most


def held_rates(rates: Floats, steps: int) -> Floats:
    """Return the highest rate of each step and the `steps` before it, (S, T) float64."""
    held = rates.copy()
    for back in range(1, min(steps, rates.shape[1] - 1) + 1):
        np.maximum(held[:, back:], rates[:, :-back], out=held[:, back:])
    return held


def desired_replicas(rates: Floats, n_max: float, scale_down_s: int) -> Ints:
    """Turn rates into replicas: up at once, down after `scale_down_s` at a lower demand.

    A replica's capacity is the 99.5th percentile of its service's rate over `n_max`; a service
    wants ceil(rate / capacity), at least 1. Like the downscale stabilisation window of Kubernetes'
    horizontal pod autoscaler, the highest wish of the last `scale_down_s` counts, rounded up to
    whole 10-min steps.

    Args:
        rates: (S, T) float64, 0 or more.
        n_max: replicas near the peak, above 0; need not be whole.
        scale_down_s: seconds.

    Returns:
        (S, T) int64.
    """
    held = held_rates(relative_rates(rates), math.ceil(scale_down_s / STEP_S))
    replicas: Ints = np.maximum(np.ceil(held * n_max - 1e-9), 1).astype(np.int64)
    return replicas


def relative_rates(rates: Floats) -> Floats:
    """Return rates over each service's 99.5th percentile; a service without requests stays 0."""
    peak = np.quantile(rates, 0.995, axis=1, keepdims=True)
    peak = np.where(peak > 0, peak, np.maximum(rates.max(axis=1, keepdims=True), 1e-300))
    relative: Floats = rates / peak
    return relative


def common_n_max(rates: Floats, gpus: Ints, limit: float, config: WorkloadConfig) -> float:
    """Find the largest n_max of all services whose GPU demand of a day stays in `limit`.

    The day is the account, or, where that is shorter, the tape's last 24 hours.

    The demand of a step includes the replicas that leave during it, so that no second exceeds
    the limit wherever in the step replicas come and go.

    Args:
        rates: (S, T) float64 from -warmup on.
        gpus: (S,) int64, GPUs of a replica; their sum must not exceed `limit`.
        limit: GPUs.
        config: warm-up and scale-down.

    Returns:
        n_max by bisection to a relative 1e-6, shared by all services.
    """
    warmup, account = num_steps(config)
    first = min(warmup, max(0, warmup + account - DAY_STEPS))
    hold = math.ceil(config.scale_down_s / STEP_S)
    held = np.ascontiguousarray(held_rates(relative_rates(rates), hold + 1)[:, first:])
    low, high = 0.0, max(1.0, 2.0 * limit)
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        fits = _peak_demand(held, gpus, middle) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return low


def _mixed(mix: tuple[float, ...], services: int, rng: np.random.Generator) -> Ints:
    """Draw an index into a mix for each service, (S,) int64."""
    # Systematic sampling keeps each mix exact within one service, even with three of them.
    points = (rng.random() + np.arange(services)) / max(services, 1)
    drawn: Ints = np.searchsorted(np.cumsum(mix)[:-1], points, side="right").astype(np.int64)
    rng.shuffle(drawn)
    return drawn


def _replica_gpus(
    config: WorkloadConfig, services: int, limit: float, per_server: int, rng: np.random.Generator
) -> Ints:
    """Draw the GPUs of a replica of each service, (S,) int64, none above a server's."""
    sizes = _mixed(config.replica_gpu_mix, services, rng)
    gpus: Ints = np.minimum(np.array(REPLICA_GPUS)[sizes], per_server).astype(np.int64)
    # Half of the peak is left to scale in, or a small cluster would run one replica each all day.
    while gpus.sum() > limit / 2 and gpus.max(initial=1) > 1:
        gpus[int(gpus.argmax())] //= 2
    return gpus


def _gang_members(
    config: WorkloadConfig, gpus: Ints, limit: float, per_server: int, rng: np.random.Generator
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Draw the members of a replica of each service, 1 = no gang, and whether it has two sizes."""
    services = len(gpus)
    chosen = rng.permutation(services) < math.floor(config.gang_share * services + 0.5)
    sizes = np.array(GANG_MEMBERS)[_mixed(config.gang_mix, services, rng)]
    members: Ints = np.where(chosen, sizes, 1).astype(np.int64)
    paired = chosen & (rng.random(services) < config.pair_share) & (per_server > 1)
    # As for single pods: half of the peak is left to scale in.
    while (np.where(members > 1, per_server, gpus) * members).sum() > limit / 2:
        if members.max(initial=1) == 1:
            break
        members[int(members.argmax())] //= 2
    return members, paired & (members > 1)


def _requirements(config: WorkloadConfig, services: int, rng: np.random.Generator) -> Ints:
    guaranteed = math.floor(config.guaranteed_share * services + 0.5)
    none = min(math.floor(config.none_share * services + 0.5), services - guaranteed)
    requirement = np.full(services, TopologyRequirement.BEST_EFFORT, np.int64)
    requirement[:guaranteed] = TopologyRequirement.GUARANTEED
    requirement[guaranteed : guaranteed + none] = TopologyRequirement.NONE
    rng.shuffle(requirement)
    return requirement


def _deadlines(config: WorkloadConfig, services: int, rng: np.random.Generator) -> Ints:
    """Draw by when the replicas of each service should be placed, (S,) int64 s, log-uniform."""
    low, high = math.log(config.deadline_min_s), math.log(config.deadline_max_s)
    return np.rint(np.exp(rng.uniform(low, high, services))).astype(np.int64)


def _sensitivities(config: WorkloadConfig, gpus: Ints, rng: np.random.Generator) -> Ints:
    """Draw the sensitivity of services with these GPUs a replica, (S,) int64."""
    drawn = _mixed(config.sensitivity_mix, len(gpus), rng)
    # One GPU has no links to others.
    return np.where((drawn == LINKED) & (gpus < 2), RESIDENT, drawn)


def replica_pods(
    rates: Floats,
    config: WorkloadConfig,
    num_gpus: int,
    gpus_per_server: int,
    rng: list[np.random.Generator],
) -> OnlinePods:
    """Turn the rates of services into replicas that arrive and depart.

    The newest replica leaves first. Replicas that one step adds to a service arrive together, at a
    second drawn in that step; so do departures. Replicas of the first step arrive at -warmup.

    Args:
        rates: (S, T) float64, from -warmup on.
        config: peak share, scale-down, start-up, mixes.
        num_gpus: GPUs of the cluster.
        gpus_per_server: no replica has more.
        rng: six generators: service attributes, seconds inside a step, start-up times, deadlines,
            sensitivities, gangs.

    Returns:
        The replicas of the whole tape.
    """
    services = len(rates)
    limit = config.online_peak_share * num_gpus
    gpus = _replica_gpus(config, services, limit, gpus_per_server, rng[0])
    members, paired = _gang_members(config, gpus, limit, gpus_per_server, rng[5])
    gpus = np.where(members > 1, gpus_per_server, gpus)
    requirement = _requirements(config, services, rng[0])
    whole = np.where(paired, gpus * 3 // 4, gpus) * members
    n_max = common_n_max(rates, whole, limit, config)
    replicas = desired_replicas(rates, n_max, config.scale_down_s)
    service, arrive_s, depart_s = _lifo_runs(replicas, num_steps(config)[0], rng[1])
    sigma = math.log(config.start_p90_s / config.start_p50_s) / P90_Z if config.start_p50_s else 0.0
    start = np.exp(sigma * rng[2].standard_normal(len(service)))
    start *= config.start_p50_s * config.start_factor
    # One row a replica becomes one a member; what was drawn for the replica holds for all of them.
    rows = np.repeat(np.arange(len(service)), members[service])
    in_gang = members[service] > 1
    gang = np.where(in_gang, np.cumsum(in_gang) - 1, -1)[rows]
    service = service[rows]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    smaller = paired[service] & (place >= members[service] // 2)
    guaranteed = requirement[service] == TopologyRequirement.GUARANTEED
    required = np.where((gang >= 0) & guaranteed, NetworkLevel.LEAF, NetworkLevel.CLUSTER)
    return OnlinePods(
        service=service,
        arrive_s=arrive_s[rows],
        depart_s=depart_s[rows],
        start_s=np.rint(start).astype(np.int64)[rows],
        gpus=np.where(smaller, gpus[service] // 2, gpus[service]),
        requirement=requirement[service],
        deadline_s=_deadlines(config, services, rng[3])[service],
        sensitivity=_sensitivities(config, gpus, rng[4])[service],
        group=gang.astype(np.int64),
        required_tier=required.astype(np.int64),
        preferred_tier=np.where(gang >= 0, NetworkLevel.LEAF, NetworkLevel.CLUSTER).astype(
            np.int64
        ),
    )


def _lifo_runs(replicas: Ints, warmup: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Return service, arrival and departure of each replica; (S, T) counts from -warmup on.

    Last in, first out means: the n-th replica of a service lives exactly while n or more are
    wanted, so each run of `replicas >= n` is one pod.
    """
    steps = replicas.shape[1]
    second = rng.integers(0, STEP_S, size=(2, *replicas.shape))
    level = np.arange(1, replicas.max(initial=0) + 1)
    alive = np.zeros((len(replicas), len(level), steps + 2), np.int8)
    alive[:, :, 1:-1] = replicas[:, None, :] >= level[:, None]
    change = np.diff(alive, axis=2)
    # Both index lists run by service, level and time, so the i-th start belongs to the i-th end.
    service, _, begin = np.nonzero(change == 1)
    end = np.nonzero(change == -1)[2]
    start_s = -warmup * STEP_S
    arrive_s = np.where(begin == 0, start_s, start_s + begin * STEP_S + second[0, service, begin])
    inside = np.minimum(end, steps - 1)
    depart_s = np.where(end == steps, NEVER_S, start_s + end * STEP_S + second[1, service, inside])
    return service.astype(np.int64), arrive_s, depart_s
