"""Several episodes side by side in one set of arrays, and the views that one episode sees."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import stage
from flextopo.cluster.simulation.events import CLOCK_DTYPE, Events
from flextopo.cluster.simulation.scheduler import Rules
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import LIVE_DTYPE, NODE_DTYPE, POD_DTYPE, TOTALS_DTYPE, Cluster
from flextopo.cluster.state.loss import ACCOUNT_DTYPE, Costs

PODS, DEPARTURES, BUDGETS = range(3)
"""Columns of `Episodes.sizes`."""


class Episodes(NamedTuple):
    """E episodes, each with room for P pods and B budgets on the same N nodes.

    Fields: `tape` (E,) int64, seed of the tape, -1 = empty; `sizes` (E, 3) int64, pods, departures
    and budgets in use; `rules` (E, 5) int64 and `costs` (E, 8) float64 as in `Rules` and `Costs`
    (without `restart_s`); `demanded` (E,) int64 GPU-seconds asked for; the others as in `Cluster`
    and `Events` with a leading axis.
    """

    models: npt.NDArray[Any]
    tape: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    rules: npt.NDArray[np.int64]
    costs: npt.NDArray[np.float64]
    demanded: npt.NDArray[np.int64]
    pods: npt.NDArray[Any]
    live: npt.NDArray[Any]
    pod_cores: npt.NDArray[np.int16]
    nodes: npt.NDArray[Any]
    cores_free: npt.NDArray[np.int16]
    node_pods: npt.NDArray[np.int32]
    by_free: npt.NDArray[np.int64]
    pdb_left: npt.NDArray[np.int64]
    totals: npt.NDArray[Any]
    departures: npt.NDArray[np.int64]
    heap: npt.NDArray[np.int64]
    queue: npt.NDArray[np.int32]
    clock: npt.NDArray[Any]
    account: npt.NDArray[Any]


def empty_episodes(like: Cluster, count: int, pods: int, budgets: int) -> Episodes:
    """Return room for `count` episodes on the nodes of `like`; untouched rows take no memory."""
    nodes, numa = like.cores_free.shape
    return Episodes(
        models=like.models,
        tape=np.full(count, -1, np.int64),
        sizes=np.zeros((count, 3), np.int64),
        rules=np.zeros((count, len(Rules._fields)), np.int64),
        costs=np.zeros((count, len(Costs._fields) - 1)),
        demanded=np.zeros(count, np.int64),
        pods=np.zeros((count, pods), POD_DTYPE),
        live=np.zeros((count, pods), LIVE_DTYPE),
        pod_cores=np.zeros((count, pods, numa), np.int16),
        nodes=np.zeros((count, nodes), NODE_DTYPE),
        cores_free=np.zeros((count, nodes, numa), np.int16),
        node_pods=np.zeros((count, *like.node_pods.shape), np.int32),
        by_free=np.zeros((count, *like.by_free.shape), np.int64),
        pdb_left=np.zeros((count, budgets), np.int64),
        totals=np.zeros((count, 1), TOTALS_DTYPE),
        departures=np.zeros((count, pods), np.int64),
        heap=np.zeros((count, pods), np.int64),
        queue=np.zeros((count, pods), np.int32),
        clock=np.zeros((count, 1), CLOCK_DTYPE),
        account=np.zeros((count, 1), ACCOUNT_DTYPE),
    )


def no_tapes(like: Episodes) -> Episodes:
    """Return one empty row that has as much room as those of `like`."""
    rows: Any = (array[:1].copy() for array in like[1:])
    empty = Episodes(like.models, *rows)
    empty.tape[:] = -1
    return empty


def bytes_of_episode(e: Episodes) -> int:
    """Return the memory of one episode."""
    return sum(array[0].nbytes for array in e[1:])


def store(e: Episodes, row: int, tape: int, sim: Simulator) -> None:
    """Write the present state of a simulation into a row that has room for it."""
    cluster, events = sim.state.arrays, sim.events
    e.tape[row] = -1
    e.sizes[row] = len(cluster.pods), len(events.departures), len(cluster.pdb_left)
    e.rules[row], e.costs[row] = sim.rules, sim.costs[:-1]
    e.demanded[row] = sim.tape.demanded_gpu_s()
    arrays: dict[str, npt.NDArray[Any]] = {**cluster._asdict(), **events._asdict()}
    del arrays["models"], arrays["scratch"]
    for name, array in arrays.items():
        getattr(e, name)[row][: len(array)] = array
    e.tape[row] = tape


@stage
def copy_episode(source: Episodes, s: int, target: Episodes, t: int) -> None:
    """Copy one episode; the target has room for it."""
    target.tape[t] = source.tape[s]
    target.demanded[t] = source.demanded[s]
    for i in range(source.sizes.shape[1]):
        target.sizes[t, i] = source.sizes[s, i]
    for i in range(source.rules.shape[1]):
        target.rules[t, i] = source.rules[s, i]
    for i in range(source.costs.shape[1]):
        target.costs[t, i] = source.costs[s, i]
    for pod in range(source.sizes[s, PODS]):
        target.pods[t, pod] = source.pods[s, pod]
        like = min(pod, source.clock[s, 0]["next_arrival"])  # pods that are to come are all alike
        target.live[t, pod] = source.live[s, like]
        for u in range(source.pod_cores.shape[2]):
            target.pod_cores[t, pod, u] = source.pod_cores[s, like, u]
    for node in range(source.nodes.shape[1]):
        target.nodes[t, node] = source.nodes[s, node]
        for u in range(source.cores_free.shape[2]):
            target.cores_free[t, node, u] = source.cores_free[s, node, u]
        for slot in range(source.node_pods.shape[2]):
            target.node_pods[t, node, slot] = source.node_pods[s, node, slot]
    for i in range(source.by_free.shape[1]):
        for j in range(source.by_free.shape[2]):
            target.by_free[t, i, j] = source.by_free[s, i, j]
    for i in range(source.sizes[s, BUDGETS]):
        target.pdb_left[t, i] = source.pdb_left[s, i]
    for i in range(source.sizes[s, DEPARTURES]):
        target.departures[t, i] = source.departures[s, i]
    target.totals[t, 0] = source.totals[s, 0]
    target.clock[t, 0] = source.clock[s, 0]
    target.account[t, 0] = source.account[s, 0]
    for i in range(source.clock[s, 0]["heap_size"]):
        target.heap[t, i] = source.heap[s, i]
    for i in range(source.clock[s, 0]["queue_size"]):
        target.queue[t, i] = source.queue[s, i]


def cluster_of(e: Episodes, row: int, scratch: npt.NDArray[np.int16]) -> Cluster:
    """Return the cluster of an episode: views, no copies."""
    pods, budgets = e.sizes[row, PODS], e.sizes[row, BUDGETS]
    return Cluster(
        e.models,
        e.pods[row][:pods],
        e.live[row][:pods],
        e.pod_cores[row][:pods],
        e.nodes[row],
        e.cores_free[row],
        e.node_pods[row],
        e.by_free[row],
        e.pdb_left[row][:budgets],
        e.totals[row],
        scratch,
    )


def events_of(e: Episodes, row: int) -> Events:
    """Return the events of an episode: views, no copies."""
    pods, departures = e.sizes[row, PODS], e.sizes[row, DEPARTURES]
    return Events(
        e.departures[row][:departures],
        e.heap[row][:pods],
        e.queue[row][:pods],
        e.clock[row],
        e.account[row],
    )


view_cluster = stage(cluster_of)
view_events = stage(events_of)
"""The same inside kernels; a view made by a kernel must not leave it."""


@stage
def rules_of(e: Episodes, row: int) -> Rules:
    """Return the rules of an episode."""
    r = e.rules[row]
    return Rules(r[0], r[1], r[2], r[3], r[4])


@stage
def costs_of(e: Episodes, row: int) -> Costs:
    """Return the costs of an episode."""
    c = e.costs[row]
    return Costs(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], e.rules[row, 3])
