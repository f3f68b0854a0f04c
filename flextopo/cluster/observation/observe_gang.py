"""What a network sees of a gang's candidate: its servers together, and how close they are.

Shares and levels are the mean over the servers, what is counted is summed up, and the rest is the most of
any. PodGroups with members on several of them count on each; the true loss is in `cost`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import lowest_bit, popcount, stage, with_network
from flextopo.cluster.observation.features import NUM_WITH_GANGS, F
from flextopo.cluster.observation.observe_candidate import (
    log_gpu_h,
    observe_after,
    observe_victims,
    unlog_gpu_s,
)
from flextopo.cluster.scenario import SENSITIVITIES
from flextopo.cluster.state.arrays import Cluster, as_index
from flextopo.cluster.state.candidates import CandidateArrays, freed, victim_slots
from flextopo.cluster.state.gangs import Gang, gang_of, has_first_size, is_gang, tier_shortfall
from flextopo.cluster.state.loss import Costs, network_row, speeds_of
from flextopo.cluster.state.placement import place
from flextopo.cluster.state.schema import MAX_MEMBERS
from flextopo.cluster.topology.levels import BELOW, CLUSTER, NUM_DEFICITS

LOST = tuple(1.0 - speed for kind in SENSITIVITIES.values() for speed in speeds_of(kind))
"""Share of its speed that a service of each kind loses, by deficit."""

SUMMED = (
    F.victims, F.evicted_gpus, F.surplus_gpus, F.surplus_cores, F.group_members, F.discarded,
    F.expected_remaining,
)  # fmt: skip
LARGEST = (
    F.largest_victim, F.oldest_victim, F.earlier_evictions, F.level_before, F.middle_class, F.deficit,
)  # fmt: skip


@stage
def _observe_leaves(
    c: Cluster, nodes: npt.NDArray[np.int64], count: int, taken: int, f: npt.NDArray[np.float32]
) -> None:
    """Fill in what is free on the leaves of some servers, `taken` GPUs fewer than now."""
    gpus, free, servers, empty = 0, 0, 0, 0
    for at in range(count):
        leaf, seen = c.network[nodes[at], 1], False
        for before in range(at):
            seen = seen or c.network[nodes[before], 1] == leaf
        if seen:
            continue
        for node in range(c.nodes.shape[0]):
            if c.network[node, 1] == leaf:
                here = popcount(c.nodes[node]["gpu_free"])
                whole = c.models[c.nodes[node]["model"]]["num_gpus"]
                gpus += whole
                free += here
                servers += 1
                empty += here == whole
    f[F.leaf_free_after] = min(1.0, max(0.0, (free - taken) / max(gpus, 1)))
    f[F.leaf_empty] = empty / max(servers, 1)


@with_network(otherwise=False)
def observe_alone(c: Cluster, pod: int, node: int, slots: int, f: npt.NDArray[np.float32]) -> bool:
    """Fill in what is said of gangs for a single pod, which is a gang of one; say whether there is room."""
    if f.shape[0] < NUM_WITH_GANGS:
        return False
    nodes = c.gang_marks[:MAX_MEMBERS]
    nodes[0] = node
    gained = as_index(0)
    while slots != 0:
        gained += popcount(c.live[as_index(c.node_pods[node, lowest_bit(slots)])]["gpu_mask"])
        slots &= slots - 1
    f[F.members] = f[F.gang_servers] = 1.0 / MAX_MEMBERS
    f[F.gang_gpus] = c.pods[pod]["gpus"] / 128.0
    f[F.tier] = f[F.tier_lost] = 0.0
    _observe_leaves(c, nodes, as_index(1), c.pods[pod]["gpus"] - gained, f)
    return True


@stage
def _seat(c: Cluster, g: Gang, found: CandidateArrays, i: int, node: int, slots: int) -> int:
    """Return the GPUs free on a node once its members of the gang have their places."""
    cores, taken = c.scratch[0], c.scratch[1]
    free = freed(c, node, slots, cores)
    for size in range(2):
        member = g.leader
        for seat in range(g.first + g.second):
            if found.seat_node[i, seat] == node and has_first_size(c, g, member) == (size == 0):
                spec, model = c.pods[member], c.nodes[node]["model"]
                _, mask = place(c.models, model, free, cores, spec["gpus"], spec["cores"], taken)
                free &= ~mask
                for u in range(cores.shape[0]):
                    cores[u] -= taken[u]
            member = as_index(c.pods[member]["next_member"])
    return as_index(free)


@with_network(otherwise=False)
def observe_gang(
    c: Cluster, costs: Costs, pod: int, found: CandidateArrays, i: int, f: npt.NDArray[np.float32]
) -> bool:
    """Fill in the features of a gang's candidate; say whether the preemptor is one."""
    if not is_gang(c, pod):
        return False
    no = bool(np.bool_(False))
    g, sums, width = gang_of(c, pod, no), c.gang_numbers, f.shape[0]
    members, servers, change = g.first + g.second, as_index(0), as_index(0)
    nodes = c.gang_marks[:MAX_MEMBERS]
    for j in range(width):
        sums[j] = 0.0
    elsewhere = as_index(0)
    for node in range(c.nodes.shape[0]):
        elsewhere = max(elsewhere, as_index(popcount(c.nodes[node]["gpu_free"])))
    for seat in range(members):
        node, slots, seen = found.seat_node[i, seat], found.seat_slots[i, seat], False
        for k in range(servers):
            seen = seen or nodes[k] == node
        if seen:
            continue
        nodes[servers] = node
        servers += 1
        for j in range(width):
            f[j] = 0.0
        after = _seat(c, g, found, i, node, slots)
        change += popcount(c.nodes[node]["gpu_free"]) - popcount(after)
        observe_after(c, pod, node, slots, after, as_index(found.level[i]), f)
        observe_victims(c, costs, pod, node, victim_slots(c, node, slots), elsewhere, f)
        for j in range(width):
            value = float(f[j])
            if j in (F.discarded, F.expected_remaining):
                value = unlog_gpu_s(value)
            sums[j] = max(sums[j], value) if j in LARGEST else sums[j] + value
    for j in range(width):
        value = sums[j]
        if j in (F.discarded, F.expected_remaining):
            value = log_gpu_h(value)
        elif j not in LARGEST and j not in SUMMED:
            value /= servers
        f[j] = min(1.0, value)
    below = tier_shortfall(c, g.leader, as_index(found.tier[i]))
    f[F.deficit] = BELOW[found.deficit[i]]
    if width < NUM_WITH_GANGS:  # a policy that was trained without a network
        return True
    f[F.members], f[F.gang_servers] = members / MAX_MEMBERS, servers / MAX_MEMBERS
    gpus = g.first * g.gpus[0] + g.second * g.gpus[1]
    f[F.gang_gpus], f[F.tier] = min(1.0, gpus / 128.0), found.tier[i] / CLUSTER
    f[F.tier_lost] = 0.0
    if below > 0:
        f[F.tier_lost] = LOST[c.pods[pod]["sensitivity"] * NUM_DEFICITS + network_row(below)]
    _observe_leaves(c, nodes, servers, change, f)
    return True
