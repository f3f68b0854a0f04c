"""A simulation that begins with a snapshot of a cluster, so that selectors that look ahead can decide there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.simulation.events import Events, empty_events
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import (
    DONE,
    NOMINATED,
    PENDING,
    RUNNING,
    STARTING,
    Cluster,
    free_counts,
    index_by_free,
)
from flextopo.cluster.state.candidates import CandidateArrays
from flextopo.cluster.state.cluster_state import ClusterState, true_totals
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.state.loss import stopping_cost
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import POD_DTYPE, blank
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.tape import Tape


def simulation_from(
    cluster: ClusterState, preemptor: Pod, filter_: AlignmentFilter, horizon_s: int
) -> Simulator:
    """Return a simulation that stands at a snapshot's decision and knows nothing of what comes.

    What a snapshot does not know is as if nothing had been: no job has saved work, and no service had
    other replicas than it has. Pods came when they started; whoever is on none of its nodes is not there.

    Args:
        cluster: the snapshot, not modified.
        preemptor: the decision is about it.
        filter_: whom the guaranteed filter binds.
        horizon_s: how far it will be looked ahead.
    """
    c = cluster.arrays
    pods, live = c.pods.copy(), c.live.copy()
    waits, held = live["status"] == PENDING, live["node"] >= 0
    live["status"][~waits & ~held] = DONE
    pods["arrive_s"] = np.where(held, live["since_s"], live["queued_s"])
    copies = {
        name: getattr(c, name).copy()
        for name in ("pod_cores", "nodes", "cores_free", "node_pods", "pdb_left", "totals")
    }
    by_free = index_by_free(np.bitwise_count(c.nodes["gpu_free"]).astype(np.int64))
    state: Cluster = c._replace(pods=pods, live=live, by_free=by_free, **copies)
    for name, value in true_totals(state).items():
        state.totals[0][name] = value
    state.totals[0]["free_counts"] = free_counts(by_free)
    # What hangs above the servers stands in the arrays.
    fleet = Fleet(cluster.models, tuple(c.nodes["model"].tolist()))
    tape = Tape(
        end_s=max(cluster.now_s, 0) + horizon_s + 1,
        warmup_s=0,
        grace_s=int(cluster.costs.grace_s),
        restart_s=int(cluster.costs.restart_s),
        pods=blank(0, POD_DTYPE),
    )
    return Simulator(tape, fleet, filter_, arrays=(state, _events(state, preemptor.index)))


def lost_elsewhere(
    cluster: ClusterState, found: CandidateArrays, tried: npt.NDArray[np.bool_], preemptor: Pod
) -> npt.NDArray[np.float64]:
    """Return what each candidate stops on no node of a snapshot, where no branch looks.

    Args:
        cluster: the snapshot; members of a PodGroup may run on other nodes than its own.
        found: its candidates.
        tried: (count + 1,) bool, the branches that are played, waiting last.
        preemptor: the decision is about it.

    Returns:
        (count + 1,) float64, weighted GPU-seconds; 0 for those that are not played, and for waiting.
    """
    c, lost = cluster.arrays, np.zeros(len(tried))
    away = (c.live["node"] < 0) & np.isin(c.live["status"], (RUNNING, STARTING))
    if not away.any():
        return lost
    for i in np.flatnonzero(tried[:-1]).tolist():
        victims = cluster.candidate_at(found, i, preemptor).victims
        stopped = {pod for victim in victims for pod in cluster.stopped_with(victim, victims)}
        lost[i] = sum(float(stopping_cost(c, pod, cluster.costs)) for pod in stopped if away[pod])
    return lost


def _events(c: Cluster, asked: int) -> Events:
    """Return the events at the decision about a pod: in a pass over those that wait, just come to it."""
    pods, live = c.pods, c.live
    events = empty_events(len(pods), np.zeros(0, np.int64))
    waits = np.flatnonzero(live["status"] == PENDING)
    order = np.lexsort((waits, pods["arrive_s"][waits], -pods["priority"][waits].astype(np.int64)))
    queue = waits[order]
    events.queue[: len(queue)] = queue
    unserved = np.isin(live["status"], (PENDING, NOMINATED, STARTING)) & pods["online"]
    rows = np.flatnonzero(unserved)
    events.unserved[: len(rows)] = rows
    place = int(np.flatnonzero(queue == asked)[0])
    clock: Any = events.clock[0]
    clock["next_arrival"], clock["queue_size"], clock["unserved"] = len(pods), len(queue), len(rows)
    clock["online_queued"] = pods["online"][queue].sum()
    clock["online_left"] = pods["online"][queue[place + 1 :]].sum()
    clock["in_vain"], clock["cursor"], clock["in_pass"], clock["asked"] = -1, place, 1, asked
    return events
