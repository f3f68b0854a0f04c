"""Gangs: online PodGroups whose members start together on several servers, and where they fit.

The members of a gang have one size, or two (prefill and decode), and each gets its place on one server,
as any pod does; a server may hold several. All of them must lie within one part of the network of the
level that they require.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flextopo.cluster.jit.kernels import inlined, kernel, popcount, stage, with_network
from flextopo.cluster.state.arrays import MAX_PODS_PER_NODE, Cluster, as_index, is_eligible
from flextopo.cluster.state.candidates import freed, is_leaving
from flextopo.cluster.state.placement import best_level, is_aligned, place
from flextopo.cluster.state.schema import MAX_MEMBERS
from flextopo.cluster.topology.levels import BLOCK, CLUSTER, LEAF, NO_FIT, SERVER
from flextopo.cluster.topology.model import MAX_GPUS


class Gang(NamedTuple):
    """A gang as kernels see it.

    Fields: `leader`, the member that stands for it; `first` and `second`, how many members have the
    larger and the other size; `gpus`, `cores` and `member`, request and one member of each size;
    `aligned`, only aligned places inside servers are legal.
    """

    leader: int
    first: int
    second: int
    gpus: tuple[int, int]
    cores: tuple[int, int]
    member: tuple[int, int]
    aligned: bool


@with_network(otherwise=False)
def is_gang(c: Cluster, pod: int) -> bool:
    """Say whether a pod is a member of a gang; without a network there are none."""
    return bool(c.pods[pod]["online"] and c.pods[pod]["next_member"] != pod)


@inlined
def is_leader(c: Cluster, pod: int) -> bool:
    """Say whether a pod stands for its PodGroup, or has none: members stand next to each other."""
    group = c.pods[pod]["group"]
    return bool(group < 0 or pod == 0 or c.pods[pod - 1]["group"] != group)


@kernel
def gang_of(c: Cluster, pod: int, aligned: bool) -> Gang:
    """Return the gang of a member."""
    large, small, leader = as_index(pod), as_index(pod), as_index(pod)
    count, other = 0, as_index(pod)
    while True:
        spec, most, least = c.pods[other], c.pods[large], c.pods[small]
        leader = min(leader, other)
        count += 1
        if (spec["gpus"], spec["cores"]) > (most["gpus"], most["cores"]):
            large = other
        if (spec["gpus"], spec["cores"]) < (least["gpus"], least["cores"]):
            small = other
        other = as_index(c.pods[other]["next_member"])
        if other == pod:
            break
    first, spec = 0, c.pods[large]
    for _ in range(count):
        if c.pods[other]["gpus"] == spec["gpus"] and c.pods[other]["cores"] == spec["cores"]:
            first += 1
        other = as_index(c.pods[other]["next_member"])
    return Gang(
        leader,
        as_index(first),
        as_index(count - first),
        (as_index(c.pods[large]["gpus"]), as_index(c.pods[small]["gpus"])),
        (as_index(c.pods[large]["cores"]), as_index(c.pods[small]["cores"])),
        (large, small),
        aligned,
    )


@inlined
def has_first_size(c: Cluster, g: Gang, pod: int) -> bool:
    """Say whether a member has the larger size."""
    return bool(c.pods[pod]["gpus"] == g.gpus[0] and c.pods[pod]["cores"] == g.cores[0])


@inlined
def node_at(c: Cluster, rank: int) -> int:
    """Return the node that comes at a place by block and leaf."""
    return as_index(c.network[rank, 0])


@inlined
def same_part(c: Cluster, tier: int, a: int, b: int) -> bool:
    """Say whether two nodes belong to the same part of the network."""
    if tier == SERVER:
        return a == b
    if tier == LEAF:
        return bool(c.network[a, 1] == c.network[b, 1])
    return bool(tier == CLUSTER or c.network[a, 2] == c.network[b, 2])


@stage
def part_end(c: Cluster, tier: int, begin: int) -> int:
    """Return where the part of the network ends that begins at a place by block and leaf."""
    end, first = begin + 1, node_at(c, begin)
    while end < c.network.shape[0] and same_part(c, tier, first, node_at(c, end)):
        end += 1
    return as_index(end)


@inlined
def widen(c: Cluster, tier: int, a: int, b: int) -> int:
    """Return the level that holds two nodes, not below the one given."""
    while tier < CLUSTER and not same_part(c, tier, a, b):
        tier += 1
    return as_index(tier)


@inlined
def tier_shortfall(c: Cluster, pod: int, tier: int) -> int:
    """Return 0 where a gang over this level is content, else the level, which prices it."""
    return as_index(0) if tier <= c.pods[pod]["preferred_tier"] or tier < BLOCK else as_index(tier)


@stage
def _all_gone(c: Cluster, pod: int, node: int) -> int:
    """Return the places of all pods on a node that may be evicted for a pod, or are leaving."""
    slots, priority = as_index(0), c.pods[pod]["priority"]
    for slot in range(c.nodes[node]["num_pods"]):
        other = as_index(c.node_pods[node, slot])
        if is_eligible(c, other, priority) or is_leaving(c, other):
            slots |= 1 << slot
    return slots


@kernel
def seats_of(c: Cluster, g: Gang, node: int, slots: int, first: int, which: int, most: int) -> int:
    """Count how many members of a size fit on a node without some pods.

    Args:
        c: the cluster, not modified.
        g: the gang.
        node: index of the node.
        slots: places of the pods that are gone.
        first: members of the larger size that are there already; 0 if these are counted.
        which: 0 counts the larger size, 1 the other.
        most: count no further.
    """
    model, seats = c.nodes[node]["model"], 0
    cores, taken = c.scratch[0], c.scratch[1]
    free = freed(c, node, slots, cores)
    room = MAX_PODS_PER_NODE - c.nodes[node]["num_pods"]
    for size in range(which + 1):
        gpus, wanted = g.gpus[size], g.cores[size]
        if popcount(free) < gpus and size == which:
            return as_index(0)
        best = best_level(c.models, model, gpus, wanted)
        for _ in range(first if size < which else min(most, room - first)):
            level, mask = place(c.models, model, free, cores, gpus, wanted, taken)
            if level == NO_FIT or (g.aligned and not is_aligned(level, best)):
                break
            free &= ~mask
            for u in range(cores.shape[0]):
                cores[u] -= taken[u]
            seats += size == which
    return as_index(seats)


@kernel
def fill(c: Cluster, g: Gang, begin: int, end: int, all_gone: bool) -> bool:
    """Find places for a gang in one part of the network, the fullest servers first.

    The larger members come first. With several sizes that do not divide each other this may miss places.

    Args:
        c: the cluster; `gang_nodes` gets how many members each server takes.
        g: the gang.
        begin: first server of the part, by block and leaf.
        end: behind the last.
        all_gone: without everybody who may be evicted or is leaving; else beside all.

    Returns:
        Whether all members have a place.
    """
    for rank in range(begin, end):
        c.gang_nodes[rank]["first"] = c.gang_nodes[rank]["second"] = 0
    left = as_index(0)
    for which in range(2):
        left = g.first if which == 0 else g.second
        for free in range(1 if all_gone else MAX_GPUS + 1):
            for rank in range(begin, end):
                if left == 0:
                    break
                node, slots = node_at(c, rank), as_index(0)
                if all_gone:
                    slots = _all_gone(c, g.leader, node)
                elif popcount(c.nodes[node]["gpu_free"]) != free:
                    continue
                here = c.gang_nodes[rank]
                before = as_index(here["first"]) if which else as_index(0)
                found = seats_of(c, g, node, slots, before, as_index(which), left)
                if which == 0:
                    here["first"] = found
                else:
                    here["second"] = found
                left -= found
        if left > 0:
            return False
    return True


@with_network(otherwise=0)
def count_parts(c: Cluster, pod: int, tier: int, aligned: bool, enough: int) -> int:
    """Count the parts of the network, up to `enough`, that could hold a gang by evicting.

    The cluster as a whole counts as often as it has places for all of the larger members.
    """
    g, found, begin = gang_of(c, pod, aligned), as_index(0), as_index(0)
    nodes = as_index(c.network.shape[0])
    all_gone = bool(np.bool_(True))
    while begin < nodes and found < enough:
        end = part_end(c, tier, begin)
        if fill(c, g, begin, end, all_gone):
            found += 1
        begin = end
    if tier == CLUSTER and 0 < found < enough:
        seats = as_index(0)
        for rank in range(nodes):
            node = node_at(c, rank)
            slots = _all_gone(c, pod, node)
            nobody, most = as_index(0), as_index(MAX_MEMBERS)
            seats += seats_of(c, g, node, slots, nobody, nobody, most)
        found = min(as_index(seats // g.first), enough)
    return found


@with_network(otherwise=-1)
def find_part(c: Cluster, pod: int, aligned: bool) -> int:
    """Find the part of the network where a gang fits beside all others.

    The closest level that holds it counts first, then the part with the fewest free GPUs. The places are
    in `gang_nodes` then, see `fill`.

    Returns:
        First server of the part by block and leaf, times 4, plus its level; -1 = there is none.
    """
    g, beside = gang_of(c, pod, aligned), bool(np.bool_(False))
    nodes, need = as_index(c.network.shape[0]), g.first * g.gpus[0] + g.second * g.gpus[1]
    tier = as_index(SERVER)
    while tier <= c.pods[pod]["required_tier"]:
        chosen, least, begin = as_index(-1), as_index(1 << 40), as_index(0)
        while begin < nodes:
            end = part_end(c, tier, begin)
            free = as_index(0)
            for rank in range(begin, end):
                free += popcount(c.nodes[node_at(c, rank)]["gpu_free"])
            if need <= free < least and fill(c, g, begin, end, beside):
                chosen, least = begin, free
            begin = end
        if chosen >= 0:
            fill(c, g, chosen, part_end(c, tier, chosen), beside)
            return as_index(4 * chosen + tier)
        tier += 1
    return as_index(-1)


def gang_name(c: Any, pod: int) -> str:
    """Return what a gang asks for, such as "4 x 8 GPUs"."""
    g = gang_of(c, pod, False)
    first = f"{g.first} x {g.gpus[0]}"
    return f"{first} + {g.second} x {g.gpus[1]} GPUs" if g.second else f"{first} GPUs"
