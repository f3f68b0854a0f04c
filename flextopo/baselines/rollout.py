"""Look ahead over imagined futures: what the lookahead oracle does, without knowing the tape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.baselines.futures import (
    Future,
    InformationState,
    median_future,
    sample_futures,
)
from flextopo.baselines.requeue import RequeueAware, costs_of, unpriced
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.events import Events, empty_events, heap_entries
from flextopo.cluster.simulation.simulator import Simulator, simulation_of
from flextopo.cluster.state.arrays import (
    BACKING_OFF,
    NOMINATED,
    PENDING,
    RUNNING,
    STARTING,
    TERMINATING,
    Cluster,
)
from flextopo.cluster.state.candidates import CandidateArrays
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import LIVE_DTYPE, NEVER_S, blank
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.state.storage import branch_of
from flextopo.cluster.workload.config import WorkloadConfig


@dataclass(frozen=True)
class Rollout:
    """Branch over the best candidates in sampled futures, and take the least mean loss.

    After its own choice each branch goes on with a base selector until the horizon, as with
    `OracleLookahead`. All branches of a decision face the same futures. These start from the present state, and are
    drawn from the workload model given what has been seen: how long batch jobs have run, and how
    many replicas services have had. The draw depends on the seed, the time and the pod alone.

    Attributes:
        seed: of the futures.
        samples: futures a decision; with fewer, chance chooses among the branches.
        caution: standard errors that are added to the mean difference from the first candidate, the
            base's own, or the branch with the luckiest futures would win.
        branches: how many of the cheapest candidates are tried, beside waiting.
        horizon_s: how far a branch looks ahead.
        history_s: how far back the replicas of services are looked at.
        base: decides in the branches; compiled where it is a rule of costs.
        workload: the model that futures are drawn from.
    """

    seed: int = 0
    samples: int = 64
    caution: float = 1.0
    branches: int = 16
    horizon_s: int = 4 * 3600
    history_s: int = 12 * 3600
    base: VictimSelector = field(default_factory=RequeueAware)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    name: str = "rollout"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def __post_init__(self) -> None:
        for name in ("samples", "branches", "horizon_s", "history_s"):
            if getattr(self, name) < 1:
                raise FlextopoError(f"rollout: {name} = {getattr(self, name)}; legal: 1 or more")
        if self.seed < 0:
            raise FlextopoError(f"rollout: seed = {self.seed}; legal: 0 or more")

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the branch of the least mean loss; None where waiting loses least.

        Raises:
            FlextopoError: the cluster is a snapshot, which has no past to sample a future from.
        """
        sim = simulation_of(cluster, self.name)
        costs = costs_of(self.base, cluster)
        found, count = cluster.find(preemptor, self.filter.binds(preemptor), self.branches, costs)
        if count == 0:
            return None
        losses = self.branch(sim, preemptor, found, count)
        legal = np.isfinite(losses[0])
        above = losses[:, legal] - losses[:, :1]
        error = above.std(0) / np.sqrt(len(above))
        chosen = int(np.argmin(above.mean(0) + self.caution * error))
        return None if chosen == count else unpriced(cluster.candidate_at(found, chosen, preemptor))

    def branch(
        self, sim: Simulator, preemptor: Pod, found: CandidateArrays, count: int
    ) -> npt.NDArray[np.float64]:
        """Return the loss of each of the first `count` candidates and of waiting in each future.

        Returns:
            (samples, count + 1) float64, weighted GPU-seconds from now to the horizon.
        """
        known = InformationState.of(sim)
        rng = np.random.default_rng((self.seed, known.now_s & 0xFFFFFFFF, preemptor.index))
        futures = sample_futures(
            self.workload, known, self.samples, self.horizon_s, self.history_s, rng
        )
        rows = [
            sim.with_arrays(*imagine(sim, known, future)).branch(
                found, count, self.horizon_s, self.base
            )
            for future in futures
        ]
        return np.stack(rows)


@dataclass(frozen=True)
class Lookahead:
    """Branch over the best candidates in the one future that is likeliest.

    It takes what its base takes, unless another branch loses clearly less: one future is no proof.

    Nothing is sampled and nothing of the tape is known: every run lasts as long as the median of runs
    that have lasted so long already, replicas stay as they are, and nobody else arrives.

    Attributes:
        branches: how many of the cheapest candidates are tried, beside waiting.
        horizon_s: how far a branch looks ahead.
        caution_h: GPU-hours that it must lose less; of 0 to 8 the best on 40 validation days.
        base: decides in the branches; compiled where it is a rule of costs.
        workload: the model of run times.
    """

    branches: int = 16
    horizon_s: int = 4 * 3600
    caution_h: float = 1.0
    base: VictimSelector = field(default_factory=RequeueAware)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    name: str = "lookahead"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose a branch; None where waiting loses clearly less than what the base takes.

        Raises:
            FlextopoError: the cluster is a snapshot, which has no past.
        """
        sim = simulation_of(cluster, self.name)
        costs = costs_of(self.base, cluster)
        found, count = cluster.find(preemptor, self.filter.binds(preemptor), self.branches, costs)
        if count == 0:
            return None
        losses = self.branch(sim, preemptor, found, count)[0]
        chosen = int(np.argmin(losses))
        if losses[0] - losses[chosen] < self.caution_h * 3600.0:
            chosen = 0
        return None if chosen == count else unpriced(cluster.candidate_at(found, chosen, preemptor))

    def branch(
        self, sim: Simulator, preemptor: Pod, found: CandidateArrays, count: int
    ) -> npt.NDArray[np.float64]:
        """Return the loss of each of the first `count` candidates and of waiting.

        Returns:
            (1, count + 1) float64, weighted GPU-seconds from now to the horizon.
        """
        known = InformationState.of(sim)
        ahead = sim.with_arrays(*imagine(sim, known, median_future(self.workload, known)))
        return ahead.branch(found, count, self.horizon_s, self.base)[None]


def imagine(sim: Simulator, known: InformationState, future: Future) -> tuple[Cluster, Events]:
    """Return the present state of a simulation with another future.

    Its pod table has the present pods in their order, then the arrivals. Nodes list their pods in
    the same places, so that candidates of the simulation are candidates here.

    Args:
        sim: at a decision; not modified.
        known: what is known of it.
        future: sampled.

    Returns:
        Arrays of their own; only the server models are shared.
    """
    c, e = sim.state.arrays, sim.events
    pods = np.concatenate((future.present, future.arrivals))
    here, coming = len(future.present), len(future.arrivals)
    pods["pdb"][here:][pods["pdb"][here:] >= 0] += len(c.pdb_left)
    pods["next_member"] = _rings(pods["group"])
    new_row = np.full(len(c.pods) + 1, -1, np.int64)  # row -1 stays -1
    new_row[known.rows] = np.arange(here)
    live = blank(len(pods), LIVE_DTYPE)
    live[:here] = known.live
    asked = (live["status"][:here] == PENDING) & (live["heap_at"][:here] >= 0)
    due = _next_events(pods[:here], live[:here], asked)
    live["heap_at"][:here] = -1
    live["heap_at"][due] = np.arange(len(due))
    leaving = np.flatnonzero((pods["online"] == 1) & (pods["depart_s"] < NEVER_S))
    events = empty_events(len(pods), leaving[np.argsort(pods["depart_s"][leaving], kind="stable")])
    events.heap[: len(due)] = heap_entries(live["next_s"][due], due)
    waiting = int(e.clock[0]["queue_size"])
    events.queue[:waiting] = new_row[e.queue[:waiting]]
    unserved = int(e.clock[0]["unserved"])
    events.unserved[:unserved] = new_row[e.unserved[:unserved]]
    events.clock[:], events.account[:] = e.clock, e.account
    clock = events.clock
    clock["next_arrival"], clock["next_departure"], clock["heap_size"] = here, 0, len(due)
    clock["asked"] = new_row[e.clock[0]["asked"]]
    empty = np.zeros((coming, c.pod_cores.shape[1]), np.int16)
    cluster = branch_of(c, copy=True)._replace(
        pods=pods,
        live=live,
        pod_cores=np.concatenate((c.pod_cores[known.rows], empty)),
        node_pods=new_row[c.node_pods].astype(np.int32),
        pdb_left=np.append(c.pdb_left, np.ones(future.num_pdbs, np.int64)),
    )
    return cluster, events


def _next_events(
    pods: npt.NDArray[Any], live: npt.NDArray[Any], asked: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Write when runs and start-ups end, and return the pods with an event by (time, row).

    Sorted pods are a binary heap. Those in `asked` will be asked about again at a time.
    """
    status, online = live["status"], pods["online"] == 1
    runs = (status == RUNNING) & ~online
    left = live["overhead_s"] + pods["duration_s"] - live["done_s"]
    live["next_s"][runs] = (live["since_s"] + left)[runs]
    starts = status == STARTING
    live["next_s"][starts] = (live["since_s"] + pods["start_s"])[starts]
    leaving = np.isin(status, (NOMINATED, TERMINATING, BACKING_OFF))
    rows = np.flatnonzero(runs | starts | leaving | asked)
    return rows[np.argsort(live["next_s"][rows], kind="stable")]


def _rings(group: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return `next_member` of pods with these groups, -1 = none."""
    ring = np.arange(len(group))
    rows = np.flatnonzero(group >= 0)
    rows = rows[np.argsort(group[rows], kind="stable")]
    if len(rows):
        first = np.flatnonzero(np.diff(group[rows], prepend=-1))
        ring[rows[:-1]] = rows[1:]
        ring[rows[np.append(first[1:], len(rows)) - 1]] = rows[first]
    return ring
