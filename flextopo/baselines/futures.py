"""Futures as a policy can imagine them: sampled from the workload model and from what has been seen.

`InformationState` is the one place that reads a simulation's tape. It blanks what has not happened yet (run
times, departures, later arrivals, start-up times), so that nothing behind it can look ahead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.baselines.replica_forecast import (
    Runs,
    filter_demand,
    replica_runs,
    sample_counts,
    size_prior,
    within_limit,
)
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import (
    BACKING_OFF,
    DONE,
    NOMINATED,
    PENDING,
    RUNNING,
    STARTING,
    TERMINATING,
)
from flextopo.cluster.state.schema import ALL_MEMBERS, NEVER_S, POD_DTYPE, blank
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.batch_jobs import BatchJobs, generate_jobs
from flextopo.cluster.workload.batch_pods import (
    LONG_JOB_S,
    WORKER_GPUS,
    batch_columns,
    draw_attributes,
)
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.online_demand import P90_Z, STEP_S

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SHARED = ("arrive_s", "group", "gpus", "batch_class", "preemptible", "checkpoint_s", "protection_s")
"""What all pods of a job have in common."""

DRAWS = 4
"""Futures of services drawn for each that is used, to choose those within the day's limit."""


@dataclass(frozen=True)
class InformationState:
    """What is known at a decision; P pods present, H replicas seen so far.

    Attributes:
        now_s: the present.
        begin_s: when the record begins.
        rows: (P,) int64, rows of the present pods (arrived and not done) in the simulation's table.
        pods: (P,) POD_DTYPE; `duration_s`, `depart_s` and `start_s` are 0: not known.
        live: (P,) LIVE_DTYPE; `next_s` is known where a grace period or a back-off ends, or a pending
            pod will be asked about again; elsewhere 0.
        gone: (P,) bool, replicas that have been scaled down and still hold resources.
        service: (P,) int64, -1 for batch pods, replicas of no service and those that are gone; a gang is
            one replica, and its leader stands for it.
        job: (P,) int64, the same for the members of a PodGroup and the workers of an elastic job.
        elastic: (P,) bool, a worker of an elastic job.
        replica_service: (H,) int64.
        replica_gpus: (H,) int64.
        replica_arrive_s: (H,) int64.
        replica_depart_s: (H,) int64, NEVER_S where it has not left yet.
        num_gpus, gpus_per_server, cores_per_gpu: the cluster's shape.
    """

    now_s: int
    begin_s: int
    rows: Ints
    pods: npt.NDArray[Any]
    live: npt.NDArray[Any]
    gone: npt.NDArray[np.bool_]
    service: Ints
    job: Ints
    elastic: Bools
    replica_service: Ints
    replica_gpus: Ints
    replica_arrive_s: Ints
    replica_depart_s: Ints
    num_gpus: int
    gpus_per_server: int
    cores_per_gpu: int

    @classmethod
    def of(cls, sim: Simulator) -> InformationState:
        """Return what is known of a simulation now."""
        c, now = sim.state.arrays, sim.state.now_s
        arrived = int(sim.events.clock[0]["next_arrival"])
        seen, live = c.pods[:arrived], c.live[:arrived]
        rows = np.flatnonzero(live["status"] != DONE)
        pods, state = seen[rows], live[rows]
        for name in ("duration_s", "depart_s", "start_s"):
            pods[name] = 0
        waits = (state["status"] == PENDING) & (state["heap_at"] >= 0)  # to be asked again
        known_s = np.isin(state["status"], (NOMINATED, TERMINATING, BACKING_OFF)) | waits
        state["next_s"][~known_s] = 0
        _count_done(pods, seen, live["status"] == DONE)
        service = seen["service"].astype(np.int64)
        job, elastic = find_jobs(seen)
        leads = ~_follows(seen["group"])
        online = np.flatnonzero(seen["online"] & (seen["service"] >= 0) & leads)
        gone = seen["online"] & (seen["depart_s"] <= now)
        gpus = np.add.reduceat(seen["gpus"].astype(np.int64), np.flatnonzero(leads))
        of_leader = np.cumsum(leads) - 1
        left = seen["depart_s"][online]
        fleet = Fleet(sim.state.models, tuple(c.nodes["model"].tolist()), sim.network)
        return cls(
            now_s=now,
            begin_s=-sim.tape.warmup_s,
            rows=rows,
            pods=pods,
            live=state,
            gone=gone[rows],
            service=np.where(gone | ~leads, -1, service)[rows],
            job=job[rows],
            elastic=elastic[rows],
            replica_service=service[online],
            replica_gpus=gpus[of_leader[online]],
            replica_arrive_s=seen["arrive_s"][online],
            replica_depart_s=np.where(left <= now, left, NEVER_S),
            num_gpus=fleet.num_gpus,
            gpus_per_server=fleet.gpus_per_server,
            cores_per_gpu=fleet.cores_per_gpu,
        )


def _follows(group: Ints) -> Bools:
    """Say which rows belong to the PodGroup of the row before, (N,) bool."""
    found = np.zeros(len(group), np.bool_)
    found[1:] = (group[1:] >= 0) & (group[1:] == group[:-1])
    return found


def _count_done(pods: npt.NDArray[Any], seen: npt.NDArray[Any], done: Bools) -> None:
    """Let PodGroups need as many members less as are done, since those are not among the pods any more."""
    some = seen["min_members"] < ALL_MEMBERS
    some &= seen["group"] >= 0
    if not (some & done).any():
        return
    size, ended = (np.bincount(seen["group"][some], weights) for weights in (None, done[some]))
    least = (pods["min_members"] < ALL_MEMBERS) & (pods["group"] >= 0)
    of = pods["group"][least]
    need = np.minimum(size[of], pods["min_members"][least]) - ended[of]
    pods["min_members"][least] = np.maximum(need, 0)


@dataclass(frozen=True)
class Future:
    """One sampled future of P present pods, and A pods to come.

    Attributes:
        present: (P,) POD_DTYPE, with sampled `duration_s`, `depart_s` and `start_s`.
        arrivals: (A,) POD_DTYPE by arrival, all after now; groups and budgets count from 0.
        num_pdbs: budgets of the arrivals; each allows one disruption.
    """

    present: npt.NDArray[Any]
    arrivals: npt.NDArray[Any]
    num_pdbs: int


def sample_futures(
    config: WorkloadConfig,
    known: InformationState,
    samples: int,
    horizon_s: int,
    history_s: int,
    rng: np.random.Generator,
) -> list[Future]:
    """Sample futures of the present state.

    Args:
        config: the workload model.
        known: what is known.
        samples: how many futures.
        horizon_s: how far they reach.
        history_s: how far back replicas are looked at.
        rng: generator.

    Returns:
        The futures.
    """
    runs = _sample_replicas(config, known, samples, horizon_s, history_s, rng)
    fresh = replace(config, initial_jobs=False)
    shape = (known.num_gpus, known.gpus_per_server, known.now_s + 1, known.now_s + horizon_s)
    futures = []
    for sample in range(samples):
        present = _sample_present(config, known, rng)
        replicas = _replicas(config, known, present, runs, sample, rng)
        jobs, num_pdbs = _jobs(config, known, generate_jobs(fresh, *shape, rng.spawn(4)), rng)
        jobs["group"][jobs["group"] >= 0] += replicas["group"].max(initial=-1) + 1
        arrivals = np.concatenate((replicas, jobs))
        arrivals = arrivals[np.argsort(arrivals["arrive_s"], kind="stable")]
        arrivals["group"][arrivals["group"] >= 0] += present["group"].max(initial=-1) + 1
        futures.append(Future(present, arrivals, num_pdbs))
    return futures


def find_jobs(pods: npt.NDArray[Any]) -> tuple[Ints, Bools]:
    """Number the jobs of pods, and find the workers of elastic jobs.

    A cluster sees which workers belong to one job; the table tells them by what they share:
    neighbours of a worker's size that arrive in one second with equal attributes are one job. Two
    such jobs that were in progress when the record began may count as one.

    Args:
        pods: (N,) POD_DTYPE, all that have arrived, in the tape's order.

    Returns:
        (N,) int64, ascending; (N,) bool.
    """
    worker = (pods["gpus"] == WORKER_GPUS) & ~pods["online"] & (pods["pdb"] < 0)
    worker &= pods["group"] < 0
    alike = worker | (pods["group"] >= 0)
    for name in SHARED:
        alike[1:] &= pods[name][1:] == pods[name][:-1]
    # The last pod of a PodGroup may have fewer GPUs than the others.
    alike[1:] |= (pods["group"][1:] >= 0) & (pods["group"][1:] == pods["group"][:-1])
    alike[:1] = False
    job = np.cumsum(~alike) - 1
    return job, worker & (np.bincount(job)[job] > 1)


def log_normal_beyond(
    mu: Floats, sigma: Floats, age: Floats, share: Floats, most: Floats | float = math.inf
) -> Floats:
    """Return log-normal values given that they lie above an age, by inversion.

    Args:
        mu: (P,) float64, mean of the logarithm.
        sigma: (P,) float64, its standard deviation, above 0.
        age: (P,) float64, 0 or more.
        share: (P,) float64 in (0, 1], uniform: the share of the tail that lies above the value.
        most: none is longer, above `age`.

    Returns:
        (P,) float64, above `age`.
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
        share: (P,) float64 in (0, 1], uniform.
        none_longer: see `high`.

    Returns:
        (P,) float64 seconds, above `age`, at most `high`.
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


def _sample_present(
    config: WorkloadConfig, known: InformationState, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Draw the run times and start-up times of the present pods, given how long they have run."""
    jobs = int(known.job.max(initial=-1)) + 1
    share = (1.0 - rng.random(jobs))[known.job]  # pods of one job run for the same time
    return _present(config, known, share)


def median_future(config: WorkloadConfig, known: InformationState) -> Future:
    """Return the future in which every present pod runs and starts up for the median of its kind, given
    how long it has already; replicas stay as they are, and nobody else arrives.
    """
    present = _present(config, known, np.full(len(known.pods), 0.5))
    present["depart_s"] = np.where(known.gone, known.now_s, NEVER_S)
    return Future(present, present[:0].copy(), 0)


def _present(config: WorkloadConfig, known: InformationState, share: Floats) -> npt.NDArray[Any]:
    """Return the present pods with run times and start-up times at a share of what may be, (P,)."""
    pods, live, now = known.pods.copy(), known.live, known.now_s
    jobs = int(known.job.max(initial=-1)) + 1
    span = now - live["since_s"]
    running = live["status"] == RUNNING
    done = live["done_s"] + np.where(running, np.maximum(span - live["overhead_s"], 0), 0)
    longest = np.zeros(jobs, np.int64)
    np.maximum.at(longest, known.job, done)
    run_s = _run_times(config, known, longest[known.job], share)
    pods["duration_s"] = np.where(pods["online"], 0, run_s)
    started = np.where(live["status"] == STARTING, span, 0).astype(np.float64)
    pods["start_s"] = np.where(pods["online"], _start_up(config, started, share), 0)
    return pods


def _run_times(config: WorkloadConfig, known: InformationState, done: Ints, share: Floats) -> Ints:
    """Return run times of batch pods, (P,) whole seconds above what their jobs have done.

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
                total[rows] = remaining_beyond(law, low, top, age[rows], share[rows], bound)
    # Longer than any job of the model: as likely to go on for its age again as not.
    total = np.where(age >= high, np.minimum(age / share, 10 * age), total)
    whole: Ints = np.maximum(np.ceil(total).astype(np.int64), done + 1)
    return whole


def _start_up(config: WorkloadConfig, started: Floats, share: Floats) -> Ints:
    """Return start-up times of replicas, (P,) whole seconds, above what they have taken."""
    if config.start_p50_s == 0 or config.start_factor == 0:
        return np.maximum(started, 0).astype(np.int64) + (started > 0)
    mu = np.full(len(share), math.log(config.start_p50_s * config.start_factor))
    sigma = np.full(len(share), max(math.log(config.start_p90_s / config.start_p50_s), 1e-6))
    drawn = np.rint(log_normal_beyond(mu, sigma / P90_Z, started, share)).astype(np.int64)
    return np.where(started > 0, np.maximum(drawn, started.astype(np.int64) + 1), drawn)


def _sample_replicas(
    config: WorkloadConfig,
    known: InformationState,
    samples: int,
    horizon_s: int,
    history_s: int,
    rng: np.random.Generator,
) -> Runs:
    services = int(known.replica_service.max(initial=-1)) + 1
    step = known.now_s // STEP_S
    first = min(max(known.begin_s, known.now_s - history_s) // STEP_S, step)
    ends_s = np.arange(first + 1, step + 2) * STEP_S - 1
    counts = _counts_at(known, services, np.minimum(ends_s, known.now_s))
    begin_s = step * STEP_S
    changed = np.zeros(services, np.bool_)
    for when in (known.replica_arrive_s, known.replica_depart_s):
        changed[known.replica_service[(when >= begin_s) & (when <= known.now_s)]] = True
    sure = np.where(changed, 1.0, (known.now_s - begin_s) / STEP_S)
    gpus = np.ones(services, np.int64)
    gpus[known.replica_service] = known.replica_gpus
    prior = size_prior(config, tuple(gpus.tolist()), known.num_gpus)
    demand = filter_demand(config, counts, first, sure, prior, rng)
    ahead = (known.now_s + horizon_s) // STEP_S - step + 1
    wanted = sample_counts(config, demand, step, ahead, DRAWS * samples, rng)
    limit = max(config.online_peak_share * known.num_gpus, float((gpus @ counts).max(initial=1)))
    wanted = within_limit(wanted, gpus, limit, samples, rng)
    return replica_runs(wanted, counts[:, -1], changed, known.now_s, rng)


def _counts_at(known: InformationState, services: int, times_s: Ints) -> Ints:
    """Return the replicas of each service at some times, (S, T)."""
    counts = np.zeros((services, len(times_s)), np.int64)
    for when, sign in ((known.replica_arrive_s, 1), (known.replica_depart_s, -1)):
        at = np.searchsorted(times_s, when)
        inside = at < len(times_s)
        np.add.at(counts, (known.replica_service[inside], at[inside]), sign)
    return counts.cumsum(axis=1)


def _replicas(
    config: WorkloadConfig,
    known: InformationState,
    present: npt.NDArray[Any],
    runs: Runs,
    sample: int,
    rng: np.random.Generator,
) -> npt.NDArray[Any]:
    """Write when present replicas leave, and return those to come; both of one sample."""
    mine = runs.sample == sample
    online = np.flatnonzero(known.service >= 0)
    level = np.zeros(len(known.service), np.int64)
    levels = int(runs.level.max(initial=0)) + 1
    for service in np.unique(known.service[online]):
        rows = online[known.service[online] == service]
        level[rows] = np.arange(1, len(rows) + 1)
    there = mine & (runs.present == 1)
    leaves = dict(
        zip(
            (runs.service[there] * levels + runs.level[there]).tolist(),
            runs.depart_s[there].tolist(),
            strict=True,
        )
    )
    keys = known.service[online] * levels + level[online]
    present["depart_s"] = np.where(known.gone, known.now_s, NEVER_S)
    present["depart_s"][online] = [leaves.get(key, NEVER_S) for key in keys.tolist()]
    rows = np.arange(len(present))
    leader = np.maximum.accumulate(np.where(_follows(present["group"]), 0, rows))
    present["depart_s"] = present["depart_s"][leader]
    like = {int(known.service[row]): np.flatnonzero(leader == row) for row in online}
    coming = np.flatnonzero(mine & (runs.present == 0))
    coming = coming[[int(s) in like for s in runs.service[coming]]] if len(coming) else coming
    members = [like[int(s)] for s in runs.service[coming]]
    sizes = np.array([len(rows) for rows in members], np.int64)
    pods: npt.NDArray[Any] = present[np.concatenate([*members, np.zeros(0, np.int64)])]
    start_s = _start_up(config, np.zeros(len(coming)), 1.0 - rng.random(len(coming)))
    for name, values in (
        ("arrive_s", runs.arrive_s[coming]),
        ("depart_s", runs.depart_s[coming]),
        ("start_s", start_s),
        ("group", np.cumsum(sizes > 1) - 1),
    ):
        pods[name] = np.repeat(values, sizes)
    pods["group"][np.repeat(sizes == 1, sizes)] = -1
    return pods


def _jobs(
    config: WorkloadConfig, known: InformationState, jobs: BatchJobs, rng: np.random.Generator
) -> tuple[npt.NDArray[Any], int]:
    """Return jobs as pods, groups and budgets from 0 on, and how many budgets there are."""
    attributes = draw_attributes(config, jobs, rng.spawn(5))
    columns = batch_columns(jobs, attributes)
    pods = blank(len(columns["gpus"]), POD_DTYPE)
    for name, column in columns.items():
        pods[name] = column
    pods["cores"] = pods["gpus"] * known.cores_per_gpu
    return pods, attributes.num_pdbs
