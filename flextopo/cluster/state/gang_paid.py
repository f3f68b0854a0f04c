"""PodGroups with members on several servers of a part, which a way loses once: they are tried as paid for.

What the programme of `gang_ways` adds up counts such a group on each server. So an attempt has some of them
paid for: their members cost nothing more on the servers of the part, and what the way loses is
counted when it is complete.
"""

from __future__ import annotations

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.state.arrays import Cluster, as_index, is_eligible
from flextopo.cluster.state.gang_losses import group_place, lost_alone
from flextopo.cluster.state.gang_nodes import is_bounded
from flextopo.cluster.state.gang_scratch import COUNTED, MAX_PAID, PAID, PART, TRIED, WORK
from flextopo.cluster.state.gang_ways import Part
from flextopo.cluster.state.gangs import Gang, node_at
from flextopo.cluster.state.loss import NEVER, Costs
from flextopo.cluster.topology.levels import CLUSTER, SERVER


@stage
def _note_holders(c: Cluster, costs: Costs, g: Gang, part: Part, groups: int) -> None:
    """Write which servers of a part hold pods of the groups that are tried, and what such a group loses at
    least, in whole GPU-seconds.
    """
    priority = c.pods[g.leader]["priority"]
    for rank in range(part.begin, part.end):
        c.gang_nodes[rank]["holds"] = 0
    for j in range(groups):
        group, least = c.pods[as_index(c.gang_marks[TRIED + j])]["group"], 2.0**62
        for rank in range(part.begin, part.end):
            node = node_at(c, as_index(rank))
            for slot in range(c.nodes[node]["num_pods"]):
                pod = as_index(c.node_pods[node, slot])
                if c.pods[pod]["group"] == group:
                    c.gang_nodes[rank]["holds"] |= 1 << j
                    if is_eligible(c, pod, priority):
                        least = min(least, lost_alone(c, pod, costs))
        c.gang_marks[COUNTED + j] = int(least)


@stage
def find_groups(c: Cluster, costs: Costs, g: Gang, part: Part) -> int:
    """Write a member of each PodGroup that could lose members on two servers of a part at once.

    Returns:
        How many they are: those that free the most GPUs there, `MAX_PAID` at most.
    """
    count, priority = as_index(0), c.pods[g.leader]["priority"]
    begin, end = part.begin, part.end
    c.gang_marks[PART] += 1
    tier = CLUSTER if end - begin > 1 else SERVER
    for rank in range(begin, end):
        node = node_at(c, as_index(rank))
        for slot in range(c.nodes[node]["num_pods"]):
            pod = as_index(c.node_pods[node, slot])
            if c.pods[pod]["next_member"] == pod or not is_eligible(c, pod, priority):
                continue
            sums = c.gang_groups[group_place(c, pod, costs)]
            if tier == SERVER or (sums["part"] == c.gang_marks[PART] and sums["first"] != pod):
                continue
            gpus, elsewhere, first, other = as_index(0), False, pod, pod
            while True:
                there = as_index(c.live[other]["node"])
                if there >= 0 and c.gang_nodes[there]["part"] == begin:
                    gpus += c.pods[other]["gpus"]
                    elsewhere = elsewhere or there != node
                    if other < first and is_eligible(c, other, priority):
                        first = other
                other = as_index(c.pods[other]["next_member"])
                c.gang_marks[WORK] += 1
                if other == pod:
                    break
            sums["part"], sums["first"] = c.gang_marks[PART], first
            if not elsewhere or first != pod:
                continue
            at = count if count < MAX_PAID else as_index(MAX_PAID - 1)
            if count == MAX_PAID and gpus <= c.gang_marks[COUNTED + at]:
                continue
            while at > 0 and c.gang_marks[COUNTED + at - 1] < gpus:
                c.gang_marks[COUNTED + at] = c.gang_marks[COUNTED + at - 1]
                c.gang_marks[TRIED + at] = c.gang_marks[TRIED + at - 1]
                at -= 1
            c.gang_marks[COUNTED + at], c.gang_marks[TRIED + at] = gpus, pod
            count = min(count + 1, as_index(MAX_PAID))
    _note_holders(c, costs, g, part, count)
    return count


@inlined
def _is_paid(j: int, groups: int, which: int) -> bool:
    """Say whether an attempt has a group paid for: all combinations of three, of more each and the first ones."""
    if groups <= 3:
        return bool(((which + 1) >> j) & 1 == 1)
    return bool(j == which if which < groups else j <= which - groups + 1)


@stage
def take_paid(c: Cluster, groups: int, which: int) -> int:
    """Write the groups of an attempt to those that are paid for; return them as bits."""
    paid, tried = as_index(0), as_index(0)
    for j in range(groups):
        if _is_paid(j, groups, which):
            c.gang_marks[PAID + paid] = c.pods[as_index(c.gang_marks[TRIED + j])]["group"]
            paid += 1
            tried |= 1 << j
    return tried


@stage
def limit_of(c: Cluster, groups: int, which: int, limit: float) -> float:
    """Return what a way of an attempt may cost beside its groups that are paid for, 0 where none can help.

    Ways that cost less than the limit in all are sought that no earlier attempt has found: such a one loses all
    groups that are paid for if these are up to three, one alone, or the last of several and another. In small
    clusters attempts also find again what others have left out.
    """
    total, least, most, last = 0.0, NEVER, 0.0, NEVER
    for j in range(groups):
        if _is_paid(j, groups, which):
            least = min(least, last)
            last = float(c.gang_marks[COUNTED + j])
            total, most = total + last, max(most, last)
    if groups > 3:
        total, most = (last, last) if which < groups else (last + least, max(last, least))
    if is_bounded(c):
        return max(0.0, limit - total)
    return limit if most < limit else 0.0
