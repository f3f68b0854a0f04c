"""What a gang's ways use up that others could have: disruption budgets, and what PodGroups can spare.

Whether they hold over several servers is known when a way is complete. As long as none is found that is legal,
victims of a budget that the cheapest way uses up are made dear, so that ways are found that take the fewest of them. What
the cheapest way uses up is also kept to some of its servers, and the search goes on, see `gang_candidates`.
Nothing needs to be searched where budgets leave fewer victims than any way takes.
"""

from __future__ import annotations

from flextopo.cluster.jit.kernels import inlined, kernel, lowest_bit, popcount, stage
from flextopo.cluster.state.arrays import Cluster, as_index, is_eligible
from flextopo.cluster.state.candidates import leaving, victim_slots
from flextopo.cluster.state.gang_losses import spare_of
from flextopo.cluster.state.gang_scratch import (
    ALLOWED,
    CLOSED,
    DEAR,
    MAX_CLOSED,
    NUM_ALLOWED,
    NUM_CLOSED,
    NUM_DEAR,
    SHORT,
    TURN,
    VIOLATED,
    WORK,
)
from flextopo.cluster.state.gangs import Gang, node_at
from flextopo.cluster.state.loss import NEVER, Costs
from flextopo.cluster.state.schema import MAX_MEMBERS
from flextopo.cluster.topology.model import MAX_GPUS


@inlined
def falls_under(c: Cluster, pod: int, key: int) -> bool:
    """Say whether evicting a pod uses up a disruption budget, or, by -2 - group, what a PodGroup can spare."""
    return bool(c.pods[pod]["pdb"] == key if key >= 0 else c.pods[pod]["group"] == -2 - key)


@stage
def is_closed(c: Cluster, pod: int, rank: int) -> bool:
    """Say whether a pod is no victim on a server for now, since what it falls under is kept for others."""
    closed = False
    for at in range(c.gang_marks[NUM_CLOSED]):
        closed = closed or falls_under(c, pod, c.gang_marks[CLOSED + at])
    for at in range(c.gang_marks[NUM_ALLOWED]):
        pair = ALLOWED + 2 * at
        if c.gang_marks[pair + 1] == rank and falls_under(c, pod, c.gang_marks[pair]):
            closed = False
    return closed


DEAR_GPU_S = 2.0**26
"""What a victim of a budget is made to cost beside its own loss, so that ways take as few of them as they can: more
than any victim loses, and sums of so much are still exact, see `on_grid`."""


@stage
def dearness(c: Cluster, pod: int) -> float:
    """Return what a victim is made to cost beside its own loss."""
    for at in range(c.gang_marks[NUM_DEAR]):
        if c.pods[pod]["pdb"] == c.gang_marks[DEAR + at]:
            return DEAR_GPU_S
    return 0.0


@stage
def make_dear(c: Cluster) -> bool:
    """Make victims of the budget dear that the cheapest way uses up; False where they are, or too many are."""
    key, count = c.gang_marks[VIOLATED], c.gang_marks[NUM_DEAR]
    for at in range(count):
        if c.gang_marks[DEAR + at] == key:
            return False
    if key < 0 or count == MAX_CLOSED:
        return False
    c.gang_marks[DEAR + count] = key
    c.gang_marks[NUM_DEAR] += 1
    if c.gang_marks[SHORT] >= 0:
        c.gang_marks[SHORT] = c.gang_marks[NUM_DEAR]
    return True


@stage
def close(c: Cluster, costs: Costs, trail: int) -> bool:
    """Keep what a way uses up to those of its servers that it suffices for.

    Returns:
        False where it is kept so already, or too many are.
    """
    key, used, begin = as_index(c.gang_marks[VIOLATED]), 0, trail
    for at in range(c.gang_marks[NUM_CLOSED]):
        if c.gang_marks[CLOSED + at] == key:
            return False
    if c.gang_marks[NUM_CLOSED] == MAX_CLOSED:
        return False
    c.gang_marks[CLOSED + c.gang_marks[NUM_CLOSED]] = key
    c.gang_marks[NUM_CLOSED] += 1
    for late in range(2):  # first those from the turn's server on, then those before it
        trail, place_ = begin, 0
        while trail >= 0:
            option, early = (
                c.gang_options[c.gang_trail[trail]["option"]],
                place_ < c.gang_marks[TURN],
            )
            trail = as_index(c.gang_trail[trail]["before"])
            place_ += 1
            if early != (late == 1):
                continue
            node, uses, left = node_at(c, as_index(option["rank"])), 0, 0
            slots = victim_slots(c, node, as_index(option["slots"]))
            while slots != 0:
                victim = as_index(c.node_pods[node, lowest_bit(slots)])
                slots &= slots - 1
                if falls_under(c, victim, key):
                    uses += 1
                    left = c.pdb_left[key] if key >= 0 else spare_of(c, victim, costs)
            at = c.gang_marks[NUM_ALLOWED]
            if uses > 0 and used + uses <= left and at < MAX_MEMBERS:
                used += uses
                c.gang_marks[ALLOWED + 2 * at] = key
                c.gang_marks[ALLOWED + 2 * at + 1] = option["rank"]
                c.gang_marks[NUM_ALLOWED] += 1
    return True


@stage
def _count_victims(c: Cluster, costs: Costs, node: int, priority: int) -> int:
    """Write how many victims of dear budgets a node needs at least to free GPUs, by how many beyond the free ones.

    Returns:
        How many GPUs are free before victims are gone.
    """
    free, soon = popcount(c.nodes[node]["gpu_free"]), leaving(c, node, costs.grace_s).soon
    for gpus in range(1, MAX_GPUS + 1):
        c.gang_numbers[gpus] = NEVER
    c.gang_numbers[0] = 0.0
    for slot in range(c.nodes[node]["num_pods"]):
        pod = as_index(c.node_pods[node, slot])
        held = as_index(c.pods[pod]["gpus"])
        if (soon >> slot) & 1 == 1:
            free += popcount(c.live[pod]["gpu_mask"])
        elif held > 0 and is_eligible(c, pod, priority):
            uses = 1.0 if dearness(c, pod) > 0.0 else 0.0
            for back in range(MAX_GPUS):
                gpus = as_index(MAX_GPUS - back)
                with_it = c.gang_numbers[max(gpus - held, 0)] + uses
                c.gang_numbers[gpus] = min(c.gang_numbers[gpus], with_it)
    return as_index(free)


@stage
def _extend_by_node(c: Cluster, g: Gang, node: int, free: int, left: int) -> None:
    """Write how few victims of dear budgets members take on the servers so far, and on one more."""
    stride, states, base = g.second + 1, (g.first + 1) * (g.second + 1), MAX_GPUS + 1
    most = as_index(c.models[c.nodes[node]["model"]]["num_gpus"])
    for back in range(1, states):  # states that this server reaches come before
        before = as_index(states - 1 - back)
        so_far = c.gang_numbers[base + before]
        if so_far > left:
            continue
        for first in range(g.first - before // stride + 1):
            for second in range(g.second - before % stride + 1):
                gpus = first * g.gpus[0] + second * g.gpus[1]
                if gpus > most:
                    break
                at = as_index(base + before + first * stride + second)
                uses = so_far + c.gang_numbers[max(gpus - free, 0)]
                c.gang_numbers[at] = min(c.gang_numbers[at], uses)
        c.gang_marks[WORK] += 4


@kernel
def leave_too_few(c: Cluster, costs: Costs, g: Gang, budgets: int) -> bool:
    """Say whether the first budgets that were made dear together leave fewer victims than a gang takes anywhere.

    The victims are counted that GPUs take at least, on all servers; cores, alignment and the network may take more.
    """
    states, base, left = (g.first + 1) * (g.second + 1), MAX_GPUS + 1, as_index(0)
    c.gang_marks[NUM_DEAR] = budgets
    for at in range(budgets):
        left += c.pdb_left[c.gang_marks[DEAR + at]]
    for state in range(states):
        c.gang_numbers[base + state] = NEVER if state > 0 else 0.0
    for rank in range(c.network.shape[0]):
        node = node_at(c, as_index(rank))
        free = _count_victims(c, costs, node, as_index(c.pods[g.leader]["priority"]))
        c.gang_marks[WORK] += 4 + 4 * c.nodes[node]["num_pods"]
        _extend_by_node(c, g, node, free, left)
        if c.gang_numbers[base + states - 1] <= left:
            break
    c.gang_marks[NUM_DEAR] = 0
    return bool(c.gang_numbers[base + states - 1] > left)
