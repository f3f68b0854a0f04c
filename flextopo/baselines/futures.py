"""Futures as a policy can imagine them: sampled from the workload model and from what has been seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.baselines.information import InformationState, follows
from flextopo.baselines.replica_forecast import (
    Demand,
    Runs,
    filter_demand,
    replica_runs,
    sample_counts,
    size_prior,
    within_limit,
)
from flextopo.baselines.run_times import num_jobs, remaining_times, start_up_times
from flextopo.cluster.simulation.imagined import Futures, rings
from flextopo.cluster.state.schema import NEVER_S, POD_DTYPE, blank
from flextopo.cluster.workload.batch_jobs import draw_arrivals, draw_jobs, job_kinds
from flextopo.cluster.workload.batch_pods import (
    PODS_PER_BUDGET,
    batch_columns,
    draw_attributes,
    num_pods,
)
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.online_demand import STEP_S

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Pods = npt.NDArray[Any]

DRAWS = 4
"""Futures of services drawn for each that is used, to choose those within the day's limit."""


class FutureSampler:
    """Sample futures of a present state.

    A subclass with other `replicas` or `jobs` is another forecast, for `Rollout(futures=...)`.

    Args:
        config: the workload model.
        known: what is known.
        horizon_s: how far futures reach.
        history_s: how far back replicas are looked at.
        rng: generator; each sample goes on with it.
    """

    def __init__(
        self,
        config: WorkloadConfig,
        known: InformationState,
        horizon_s: int,
        history_s: int,
        rng: np.random.Generator,
    ) -> None:
        self._config, self._rng = config, rng
        self.known = known
        self._horizon_s = horizon_s
        services = int(known.replica_service.max(initial=-1)) + 1
        self._step = known.now_s // STEP_S
        first = min(max(known.begin_s, known.now_s - history_s) // STEP_S, self._step)
        ends_s = np.arange(first + 1, self._step + 2) * STEP_S - 1
        counts = _counts_at(known, services, np.minimum(ends_s, known.now_s))
        self._now = counts[:, -1]
        self._changed = np.zeros(services, np.bool_)
        begin_s = self._step * STEP_S
        for when in (known.replica_arrive_s, known.replica_depart_s):
            recent = (when >= begin_s) & (when <= known.now_s)
            self._changed[known.replica_service[recent]] = True
        sure = np.where(self._changed, 1.0, (known.now_s - begin_s) / STEP_S)
        self._gpus = np.ones(services, np.int64)
        self._gpus[known.replica_service] = known.replica_gpus
        most = float((self._gpus @ counts).max(initial=1))
        self._limit = max(config.online_peak_share * known.num_gpus, most)
        prior = size_prior(config, tuple(self._gpus.tolist()), known.num_gpus)
        self._demand: Demand = filter_demand(config, counts, first, sure, prior, rng)
        self._leader = _leaders(known.pods["group"])

    def sample(self, num_futures: int) -> Futures:
        """Return so many more futures."""
        config, known, rng = self._config, self.known, self._rng
        # One share from each of M equal parts: what remains of a job is spread evenly over the futures.
        parts = rng.permuted(np.tile(np.arange(num_futures), (num_jobs(known), 1)), axis=1).T
        share = (parts + 1.0 - rng.random(parts.shape)) / num_futures
        duration_s, start_s = remaining_times(config, known, share)
        depart_s, replicas, of_replicas = self.replicas(num_futures)
        jobs, of_jobs, num_pdbs = self.jobs(num_futures)
        next_group = known.pods["group"].max(initial=-1) + 1
        replicas["group"][replicas["group"] >= 0] += next_group
        next_group = max(next_group, replicas["group"].max(initial=-1) + 1)
        jobs["group"][jobs["group"] >= 0] += next_group
        arrivals, future = np.concatenate((replicas, jobs)), np.append(of_replicas, of_jobs)
        order = np.lexsort((arrivals["arrive_s"], future))
        return assemble(
            known, (duration_s, depart_s, start_s), arrivals[order], future[order], num_pdbs
        )

    def replicas(self, num_futures: int) -> tuple[Ints, Pods, Ints]:
        """Return how online demand goes on: what another forecast replaces.

        Returns:
            When each present pod is scaled down, (M, P) int64, NEVER_S = not within the futures; the replicas to
            come, (A,) POD_DTYPE; the future of each, (A,) int64. PodGroups count from 0 over all futures.
        """
        runs = self._replica_runs(num_futures)
        depart_s = self._departures(runs, num_futures)
        return depart_s, *self._coming(runs)

    def _replica_runs(self, num_futures: int) -> Runs:
        now_s, rng = self.known.now_s, self._rng
        ahead = (now_s + self._horizon_s) // STEP_S - self._step + 1
        draws = DRAWS * num_futures
        wanted = sample_counts(self._config, self._demand, self._step, ahead, draws, rng)
        wanted = within_limit(wanted, self._gpus, self._limit, num_futures, rng)
        return replica_runs(wanted, self._now, self._changed, now_s, rng)

    def _departures(self, runs: Runs, num_futures: int) -> Ints:
        """Return when the present pods are scaled down, (M, P): of a service the newest replica first."""
        known = self.known
        online = np.flatnonzero(known.service >= 0)
        service = known.service[online]
        order = np.argsort(service, kind="stable")
        ordered = service[order]
        level = np.empty(len(online), np.int64)
        level[order] = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        levels = max(int(runs.level.max(initial=0)), int(level.max(initial=-1)) + 1)
        leaves = np.full((num_futures, len(self._now), levels), NEVER_S)
        there = runs.present == 1
        at = runs.sample[there], runs.service[there], runs.level[there] - 1
        leaves[at] = runs.depart_s[there]
        depart_s = np.tile(np.where(known.gone, known.now_s, NEVER_S), (num_futures, 1))
        depart_s[:, online] = leaves[:, service, level]
        members: Ints = depart_s[:, self._leader]
        return members

    def _coming(self, runs: Runs) -> tuple[Pods, Ints]:
        """Return the replicas to come, each like one of its service that is there, and whose future each is.

        Services without a replica are not known.
        """
        known, rng = self.known, self._rng
        online = np.flatnonzero(known.service >= 0)
        like = np.full(len(self._now), -1)
        like[known.service[online]] = online
        sizes = np.bincount(self._leader, minlength=len(known.pods))
        coming = np.flatnonzero((runs.present == 0) & (like[runs.service] >= 0))
        leader = like[runs.service[coming]]
        size = sizes[leader]
        share = 1.0 - rng.random(len(coming))
        start_s = start_up_times(self._config, np.zeros(len(coming)), share)
        member = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        pods = known.pods[np.repeat(leader, size) + member]
        pods["arrive_s"] = np.repeat(runs.arrive_s[coming], size)
        pods["depart_s"] = np.repeat(runs.depart_s[coming], size)
        pods["start_s"] = np.repeat(start_s, size)
        pods["group"] = np.where(
            np.repeat(size > 1, size), np.repeat(np.cumsum(size > 1) - 1, size), -1
        )
        return pods, np.repeat(runs.sample[coming], size)

    def jobs(self, num_futures: int) -> tuple[Pods, Ints, int]:
        """Return the pods of jobs to come, whose future each is, and the most budgets of a future.

        Another forecast of them replaces this. Groups count from 0 over all futures, budgets from 0 in each.
        """
        known, rng = self.known, self._rng
        config = replace(self._config, initial_jobs=False)
        kinds = job_kinds(config, known.num_gpus, known.gpus_per_server)
        span = known.now_s + 1, known.now_s + self._horizon_s
        rate = known.num_gpus / kinds.mean_gpu_s
        future, submit_s = draw_arrivals(config, rate, *span, rng.spawn(2), num_futures)
        jobs = draw_jobs(config, kinds, submit_s, rng)
        attributes = draw_attributes(config, jobs, rng.spawn(5))
        pdb, num_pdbs = _draw_budgets(future, attributes.pdb >= 0, num_futures, rng)
        columns = batch_columns(jobs, replace(attributes, pdb=pdb))
        pods = blank(len(columns["gpus"]), POD_DTYPE)
        for name, column in columns.items():
            pods[name] = column
        pods["cores"] = pods["gpus"] * known.cores_per_gpu
        return pods, np.repeat(future, num_pods(jobs, attributes)), num_pdbs


def nobody(known: InformationState, num_futures: int) -> tuple[Ints, Pods, Ints]:
    """Return what `FutureSampler.replicas` does where replicas stay as they are."""
    depart_s = np.tile(np.where(known.gone, known.now_s, NEVER_S), (num_futures, 1))
    return depart_s, known.pods[:0].copy(), np.zeros(0, np.int64)


def median_future(config: WorkloadConfig, known: InformationState) -> Futures:
    """Return the one future in which every present pod runs and starts up for the median of its kind, given
    how long it has already; replicas stay as they are, and nobody else arrives.
    """
    duration_s, start_s = remaining_times(config, known, np.full((1, num_jobs(known)), 0.5))
    depart_s, none, of_none = nobody(known, 1)
    return assemble(known, (duration_s, depart_s, start_s), none, of_none, 0)


def assemble(
    known: InformationState,
    present: tuple[Ints, Ints, Ints],
    arrivals: Pods,
    future: Ints,
    num_pdbs: int,
) -> Futures:
    """Return futures from their parts.

    Args:
        known: the present.
        present: run times, departures and start-up times of the present pods, each (M, P).
        arrivals: (A,) POD_DTYPE by future, then by arrival; groups count on from the present ones, in all
            futures together; budgets from 0 in each.
        future: (A,) of each.
        num_pdbs: the most budgets of a future.
    """
    here, depart_s = len(known.pods), present[1]
    num_futures = len(depart_s)
    first = np.searchsorted(future, np.arange(num_futures + 1))
    row = here + np.arange(len(arrivals)) - first[future]
    arrivals["next_member"] = row[rings(arrivals["group"])]
    arrivals["pdb"][arrivals["pdb"] >= 0] += known.num_pdbs
    last = here + int(np.diff(first).max(initial=0))
    in_future, leaving = np.nonzero((known.pods["online"] == 1) & (depart_s < NEVER_S))
    coming = np.flatnonzero((arrivals["online"] == 1) & (arrivals["depart_s"] < NEVER_S))
    of = np.append(in_future, future[coming])
    rows = np.append(leaving, row[coming])
    when = np.append(depart_s[in_future, leaving], arrivals["depart_s"][coming])
    order = np.lexsort((rows, when, of))
    begin = np.searchsorted(of[order], np.arange(num_futures + 1))
    departures = np.full((num_futures, int(np.diff(begin).max(initial=0))), last)
    departures[of[order], np.arange(len(order)) - begin[of[order]]] = rows[order]
    return Futures(*present, arrivals, first, departures, num_pdbs)


def _leaders(group: Ints) -> Ints:
    """Return the first member of each pod's PodGroup, (P,) int64 rows."""
    leaders: Ints = np.maximum.accumulate(np.where(follows(group), 0, np.arange(len(group))))
    return leaders


def _draw_budgets(
    future: Ints, under: Bools, num_futures: int, rng: np.random.Generator
) -> tuple[Ints, int]:
    """Return a budget of its future for each job that is `under` one, else -1, (J,), and the most of them."""
    budgets = -(-np.bincount(future[under], minlength=num_futures) // PODS_PER_BUDGET)
    pdb = np.full(len(future), -1, np.int64)
    pdb[under] = rng.integers(0, budgets[future[under]])
    return pdb, int(budgets.max(initial=0))


def _counts_at(known: InformationState, services: int, times_s: Ints) -> Ints:
    """Return the replicas of each service at some times, (S, T)."""
    counts = np.zeros((services, len(times_s)), np.int64)
    for when, sign in ((known.replica_arrive_s, 1), (known.replica_depart_s, -1)):
        at = np.searchsorted(times_s, when)
        inside = at < len(times_s)
        np.add.at(counts, (known.replica_service[inside], at[inside]), sign)
    return counts.cumsum(axis=1)
