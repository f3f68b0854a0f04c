"""Memory of the next environment, asked for while the present one is stepped.

With many environments little of one is in the caches any more when its turn comes.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, prefetch, stage
from flextopo.cluster.simulation.episodes import Episodes
from flextopo.cluster.state.arrays import as_index
from flextopo.cluster.state.candidates import CandidateArrays

LINE = 64
"""Bytes of a line of memory."""

OFTEN = 43
"""Last byte of what is read often in a pod's records, see `schema`."""

NODES = 32
"""On how many nodes pods are asked for: what is asked for must not drive out what is in hand."""

QUEUED, COMING, LEAVING = 8, 2, 2
"""How many of the first pods in the queue are asked for, and of those that come and leave next."""


@inlined
def _fetch(array: npt.NDArray[Any], row: int, size: int) -> None:
    """Ask for the first `size` bytes of a row of an array, or all that it has."""
    begin = row * array.strides[0]
    for at in range(begin, begin + min(size, array.strides[0]), LINE):
        prefetch(array, at)


@inlined
def _fetch_pod(e: Episodes, i: int, pod: int) -> None:
    """Ask for a pod's records."""
    pods, live = e.cluster.pods, e.cluster.live
    at = i * pods.strides[0] + pod * pods.strides[1]
    prefetch(pods, at)
    prefetch(pods, at + OFTEN)
    at = i * live.strides[0] + pod * live.strides[1]
    prefetch(live, at)
    prefetch(live, at + OFTEN)


@stage
def fetch_cluster(e: Episodes, found: CandidateArrays, i: int) -> None:
    """Ask for what says where everything is in episode i, if there is one, and for its candidates."""
    if i >= e.tape.shape[0]:
        return
    c, v = e.cluster, e.events
    _fetch(c.nodes, i, as_index(512))
    _fetch(c.totals, i, as_index(512))
    _fetch(v.clock, i, as_index(512))
    _fetch(v.account, i, as_index(512))
    _fetch(c.by_free, i, as_index(320))
    _fetch(c.cores_free, i, as_index(256))
    _fetch(v.heap, i, as_index(256))
    _fetch(v.queue, i, as_index(LINE))
    _fetch(found.node, i, as_index(2 * LINE))
    _fetch(found.slots, i, as_index(2 * LINE))
    for node in range(min(c.nodes.shape[1], NODES)):
        prefetch(c.node_pods, i * c.node_pods.strides[0] + node * c.node_pods.strides[1])


@stage
def fetch_pods(e: Episodes, i: int) -> None:
    """Ask for the pods of episode i that hold resources, are in the queue, or come or leave next."""
    if i >= e.tape.shape[0]:
        return
    c, v = e.cluster, e.events
    clock, cores = v.clock[i, 0], c.pod_cores
    for node in range(min(c.nodes.shape[1], NODES)):
        for slot in range(c.nodes[i, node]["num_pods"]):
            pod = as_index(c.node_pods[i, node, slot])
            _fetch_pod(e, i, pod)
            prefetch(cores, i * cores.strides[0] + pod * cores.strides[1])
    for place in range(min(clock["queue_size"], QUEUED)):
        _fetch_pod(e, i, as_index(v.queue[i, place]))
    for pod in range(COMING):
        _fetch_pod(e, i, clock["next_arrival"] + pod)
    begin = clock["next_departure"]
    for place in range(begin, min(begin + LEAVING, v.departures.shape[1])):
        _fetch_pod(e, i, v.departures[i, place])
