"""What victims of a gang lose, with what a whole PodGroup loses added up once a search.

`loss.eviction_cost` and `beside_members` go through all members of a PodGroup, for each of them again: with
groups of 64 that was most of a search. `Cluster.gang_groups` keeps the sums, each group's in the place that its
number modulo the places gives; where two groups share one, the sums are made again.
"""

from __future__ import annotations

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.state.arrays import GROUP_PLACES, Cluster, as_index, spare_members
from flextopo.cluster.state.loss import Costs, stopping_cost


@stage
def forget_groups(c: Cluster) -> None:
    """Forget all sums: the state may have changed since the last search."""
    for at in range(GROUP_PLACES):
        c.gang_groups[at]["group"] = -1


@stage
def _add_up(c: Cluster, pod: int, at: int, costs: Costs) -> None:
    """Write what the PodGroup of a pod loses as a whole, and what it can spare, to a place."""
    total, member = 0.0, pod
    while True:
        total += stopping_cost(c, member, costs)
        member = as_index(c.pods[member]["next_member"])
        if member == pod:
            break
    here = c.gang_groups[at]
    here["group"], here["whole"], here["part"] = c.pods[pod]["group"], total, -1
    here["spare"] = spare_members(c, pod)


@inlined
def group_place(c: Cluster, pod: int, costs: Costs) -> int:
    """Return where the sums of the PodGroup of a pod stand, which has others."""
    at = as_index(c.pods[pod]["group"] & (GROUP_PLACES - 1))
    if c.gang_groups[at]["group"] != c.pods[pod]["group"]:
        _add_up(c, pod, at, costs)
    return at


@inlined
def spare_of(c: Cluster, pod: int, costs: Costs) -> int:
    """Return how many members of a pod's PodGroup may stop by themselves, see `spare_members`."""
    if c.pods[pod]["next_member"] == pod:
        return as_index(spare_members(c, pod))
    return as_index(c.gang_groups[group_place(c, pod, costs)]["spare"])


@inlined
def lost_alone(c: Cluster, pod: int, costs: Costs) -> float:
    """Return `eviction_cost` of a pod."""
    if c.pods[pod]["next_member"] != pod:
        sums = c.gang_groups[group_place(c, pod, costs)]
        if sums["spare"] <= 0:
            return float(sums["whole"])
    return float(stopping_cost(c, pod, costs))


@inlined
def lost_beside(c: Cluster, pod: int, taken: int, counted: float, costs: Costs) -> float:
    """Return `beside_members` of a pod beside so many others, at least one, of its PodGroup."""
    sums = c.gang_groups[group_place(c, pod, costs)]
    if taken < sums["spare"]:
        return float(stopping_cost(c, pod, costs))
    if taken > sums["spare"] or sums["spare"] <= 0:  # all of it stops already
        return 0.0
    return float(sums["whole"] - counted)
