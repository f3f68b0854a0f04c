"""Steps of giving a pod its place: among what is free, and among what victims leave."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import lowest_bit, stage
from flextopo.cluster.simulation.events import Events
from flextopo.cluster.simulation.lifecycle import evict
from flextopo.cluster.simulation.rules import Rules
from flextopo.cluster.state.arrays import (
    RUNNING,
    STARTING,
    Cluster,
    as_index,
    set_free_gpus,
    spare_members,
)
from flextopo.cluster.state.placement import place


@stage
def place_on(c: Cluster, pod: int, node: int, taken: npt.NDArray[np.int16]) -> tuple[int, int]:
    """Return level and GPU mask of a pod among a node's free resources; `taken` gets the cores."""
    return place(
        c.models,
        c.nodes[node]["model"],
        c.nodes[node]["gpu_free"],
        c.cores_free[node],
        c.pods[pod]["gpus"],
        c.pods[pod]["cores"],
        taken,
    )


@stage
def hand_over(
    c: Cluster, pod: int, node: int, slots: int, gpu_mask: int, taken: npt.NDArray[np.int16]
) -> int:
    """Give the preemptor its share of what is free and of what pods that are leaving hold.

    Uses `taken` up: what is left in it at the end comes from the free cores.

    Returns:
        When the last of those is gone that gave something; the present if none did.
    """
    free_s = as_index(c.totals[0]["now_s"])
    for u in range(taken.shape[0]):
        c.pod_cores[pod, u] = taken[u]
    from_victims = 0
    for slot in range(c.nodes[node]["num_pods"]):
        if not (slots >> slot) & 1:
            continue
        victim = as_index(c.node_pods[node, slot])
        gives = (c.live[victim]["gpu_mask"] & gpu_mask) != 0
        from_victims |= c.live[victim]["gpu_mask"] & gpu_mask
        c.live[victim]["gpu_mask"] &= ~gpu_mask
        for u in range(taken.shape[0]):
            given = min(taken[u], c.pod_cores[victim, u])
            c.pod_cores[victim, u] -= given
            taken[u] -= given
            gives = gives or given > 0
        if gives:
            free_s = max(free_s, c.live[victim]["next_s"])
    free_part = gpu_mask & ~from_victims
    set_free_gpus(c, node, c.nodes[node]["gpu_free"] & ~free_part)
    c.live[pod]["gpu_mask"] = gpu_mask
    for u in range(taken.shape[0]):
        c.cores_free[node, u] -= taken[u]
        c.nodes[node]["cores_free"] -= taken[u]
    return free_s


@stage
def evict_all(c: Cluster, e: Events, rules: Rules, node: int, slots: int) -> int:
    """Evict the pods in `slots`, and PodGroups of which too few are left; return how many are in `slots`."""
    count = 0
    while slots != 0:
        victim = as_index(c.node_pods[node, lowest_bit(slots)])
        slots &= slots - 1
        count += 1
        alone, member = spare_members(c, victim) > 0, victim
        while True:
            status = c.live[member]["status"]
            if status == RUNNING or status == STARTING:
                evict(c, e, member, rules.grace_s, rules.restart_s)
            if alone:
                break
            member = as_index(c.pods[member]["next_member"])
            if member == victim:
                break
    return count
