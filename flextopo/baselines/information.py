"""What is known of a simulation at a decision: the one place that reads its tape for those that look ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.simulation.events import Events, empty_events
from flextopo.cluster.simulation.imagined import Futures, rings
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import (
    BACKING_OFF,
    DONE,
    NOMINATED,
    PENDING,
    TERMINATING,
    Cluster,
)
from flextopo.cluster.state.schema import ALL_MEMBERS, LIVE_DTYPE, NEVER_S, POD_DTYPE, blank
from flextopo.cluster.state.storage import branch_of
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.batch_pods import WORKER_GPUS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SHARED = ("arrive_s", "group", "gpus", "batch_class", "preemptible", "checkpoint_s", "protection_s")
"""What all pods of a job have in common."""


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
        num_pdbs: budgets of the cluster.
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
    num_pdbs: int
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
        leads = ~follows(seen["group"])
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
            num_pdbs=len(c.pdb_left),
            num_gpus=fleet.num_gpus,
            gpus_per_server=fleet.gpus_per_server,
            cores_per_gpu=fleet.cores_per_gpu,
        )


def follows(group: Ints) -> Bools:
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


def imagined(sim: Simulator, known: InformationState, futures: Futures) -> Simulator:
    """Return a simulation of the present state with memory for any of these futures.

    Its pod table has the present pods in their order, then room for the arrivals. Nodes list their pods in
    the same places, so that candidates of the simulation are candidates here.

    Args:
        sim: at a decision; not modified.
        known: what is known of it.
        futures: sampled for it.

    Returns:
        Arrays of its own, which `imagine` completes; only the server models are shared.
    """
    here, size = len(known.pods), futures.num_pods
    pods, live = blank(size, POD_DTYPE), blank(size, LIVE_DTYPE)
    pods[:here], live[:here] = known.pods, known.live
    pods["next_member"][:here] = rings(known.pods["group"])
    pods["arrive_s"][here:] = NEVER_S
    c = sim.state.arrays
    never = (known.live["status"] == PENDING) & (known.live["heap_at"] < 0)
    live["next_s"][:here][never] = NEVER_S
    new_row = np.full(len(c.pods) + 1, -1, np.int64)  # row -1 stays -1
    new_row[known.rows] = np.arange(here)
    coming = np.zeros((size - here, c.pod_cores.shape[1]), np.int16)
    cluster: Cluster = branch_of(c, copy=True)._replace(
        pods=pods,
        live=live,
        pod_cores=np.concatenate((c.pod_cores[known.rows], coming)),
        node_pods=new_row[c.node_pods].astype(np.int32),
        pdb_left=np.append(c.pdb_left, np.ones(futures.num_pdbs, np.int64)),
    )
    return sim.with_arrays(cluster, _events(sim.events, futures, new_row, here))


def _events(e: Events, futures: Futures, new_row: npt.NDArray[np.int64], here: int) -> Events:
    """Return the events of a simulation, with pods in other rows and nothing of what comes."""
    events = empty_events(futures.num_pods, np.zeros(futures.departures.shape[1], np.int64))
    waiting, unserved = int(e.clock[0]["queue_size"]), int(e.clock[0]["unserved"])
    events.queue[:waiting] = new_row[e.queue[:waiting]]
    events.unserved[:unserved] = new_row[e.unserved[:unserved]]
    events.clock[:], events.account[:] = e.clock, e.account
    clock: Any = events.clock
    clock["next_arrival"], clock["next_departure"], clock["heap_size"] = here, 0, 0
    clock["asked"] = new_row[e.clock[0]["asked"]]
    return events
