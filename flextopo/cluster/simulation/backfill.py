"""Whom the batch scheduler lets pass a job that fits nowhere.

By default whoever fits starts, so that a job of whole servers may wait for ever behind small ones. With a
reservation, the servers that will be free first are kept for the first job in the queue that fits
nowhere. Each scheduling pass reserves anew.

References:
    Lifka (1995), "The ANL/IBM SP scheduling system": EASY backfilling, one reservation for the head of
    the queue, behind which others start that do not delay it. Run times are known here; users' estimates
    are not as good.
"""

from __future__ import annotations

import numpy as np

from flextopo.cluster.jit.kernels import inlined, popcount, stage
from flextopo.cluster.simulation.events import Events
from flextopo.cluster.state.arrays import (
    MAX_PODS_PER_NODE,
    PENDING,
    RUNNING,
    TERMINATING,
    Cluster,
    as_index,
)
from flextopo.cluster.state.placement import find_node
from flextopo.cluster.state.schema import NEVER_PLACED_S, NEVER_S

ANY, EASY, RESERVE = range(3)
"""As `scenario.BACKFILLS`."""


@inlined
def _run_s(c: Cluster, pod: int) -> int:
    """Return how long a pending batch pod will run."""
    live = c.live[pod]
    return int(live["overhead_s"] + c.pods[pod]["duration_s"] - live["done_s"])


@stage
def find_batch_node(c: Cluster, pod: int, backfill: int) -> int:
    """Return the node with the fewest free GPUs that a batch pod may start on; -1 = none."""
    if backfill == ANY:
        no = bool(np.bool_(False))
        return find_node(c, pod, no, no)
    spec, end = c.pods[pod], c.totals[0]["now_s"] + _run_s(c, pod)
    chosen, least = as_index(-1), 1 << 30
    for node in range(c.nodes.shape[0]):
        state = c.nodes[node]
        free = popcount(state["gpu_free"])
        if free < spec["gpus"] or state["cores_free"] < spec["cores"] or free >= least:
            continue
        if state["num_pods"] >= MAX_PODS_PER_NODE:
            continue
        kept = state["reserved_s"]
        if kept == NEVER_PLACED_S or (backfill == EASY and end <= kept):
            chosen, least = as_index(node), free
    return chosen


@stage
def _free_s(c: Cluster, pod: int, node: int) -> int:
    """Return when a node has room for a batch pod if nobody else starts there; NEVER_S = not so."""
    gpus = c.pods[pod]["gpus"] - popcount(c.nodes[node]["gpu_free"])
    cores = c.pods[pod]["cores"] - c.nodes[node]["cores_free"]
    time, counted = as_index(c.totals[0]["now_s"]), as_index(0)
    while gpus > 0 or cores > 0:
        first, end = as_index(-1), NEVER_S
        for slot in range(c.nodes[node]["num_pods"]):
            other = as_index(c.node_pods[node, slot])
            status = c.live[other]["status"]
            ends = status == TERMINATING or (status == RUNNING and c.pods[other]["online"] == 0)
            if ends and not (counted >> slot) & 1 and c.live[other]["next_s"] < end:
                first, end = as_index(slot), c.live[other]["next_s"]
        if first < 0:
            return NEVER_S
        counted |= 1 << first
        other = as_index(c.node_pods[node, first])
        gpus -= popcount(c.live[other]["gpu_mask"])
        for u in range(c.pod_cores.shape[1]):
            cores -= c.pod_cores[other, u]
        time = max(time, end)
    return time


@stage
def reserve(c: Cluster, e: Events, first: int) -> None:
    """Keep the nodes that will be free first for a job that fits nowhere, all members of its
    group that wait.
    """
    e.clock[0]["reserved"] = 1
    member = first
    while True:
        chosen, soonest = as_index(-1), NEVER_S
        for node in range(c.nodes.shape[0] if c.live[member]["status"] == PENDING else 0):
            if c.nodes[node]["reserved_s"] == NEVER_PLACED_S:
                free_s = _free_s(c, member, node)
                if free_s < soonest:
                    chosen, soonest = as_index(node), free_s
        if chosen >= 0:
            c.nodes[chosen]["reserved_s"] = soonest
        member = as_index(c.pods[member]["next_member"])
        if member == first:
            return


@stage
def clear_reservations(c: Cluster, e: Events) -> None:
    """Begin a scheduling pass in which nothing is reserved yet."""
    if e.clock[0]["reserved"]:
        e.clock[0]["reserved"] = 0
        for node in range(c.nodes.shape[0]):
            c.nodes[node]["reserved_s"] = NEVER_PLACED_S
