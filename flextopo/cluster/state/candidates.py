"""The candidate kernel: every minimal victim set on every node, the cheapest K kept.

A set of eligible pods on one node lets the preemptor fit when, with the set gone, some legal domain
has the GPUs and the cores it asks for. A pod bound by the guaranteed filter needs one socket (or
the whole server where no socket could ever hold it); any other pod needs the whole server only.
A set is minimal when no proper subset does. The kernel walks the subsets of each domain in
depth-first order and stops at the first cover on each path, which visits every minimal cover once.

Bound: a path is left when its cost so far is no better than the worst of K kept candidates, since
the cost of a set is a sum of terms that are never negative. On one node and domain at most
`MAX_STEPS` steps are taken (only nodes with dozens of CPU-only pods come near).

What terminating pods hold, beyond what is nominated there, costs no eviction: where it suffices, the
node gives candidates without victims, each with the time until it is free; where it does not, victims
are sought for what is still short.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, lowest_bit, popcount, stage
from flextopo.cluster.state.arrays import (
    MAX_PODS_PER_NODE,
    TERMINATING,
    Cluster,
    as_index,
    is_eligible,
)
from flextopo.cluster.state.gang_losses import lost_alone, lost_beside
from flextopo.cluster.state.loss import (
    NEVER,
    Costs,
    beside_members,
    eviction_cost,
    misalignment_cost,
    stopping_cost,
    waiting_cost,
)
from flextopo.cluster.state.placement import (
    alignment_level,
    best_level,
    is_aligned,
    level_deficit,
)
from flextopo.cluster.state.schema import MAX_MEMBERS, NEVER_S
from flextopo.cluster.topology.levels import LAST_ALIGNED, NO_FIT

MAX_STEPS = 1 << 17
MAX_DOMAINS = 8


class CandidateArrays(NamedTuple):
    """The kept candidates, by ascending (cost, node, order of discovery); K places.

    Fields: `node` (K,) int64; `slots` (K,) int64, bit i = the pod in place i of the node's list is
    a victim, or is terminating and its resources count; `level` and `deficit` (K,) int64; `wait_s`
    (K,) int64, until the pod has its place; `cost` (K,) float64, the decision's own loss in
    GPU-seconds. Of a gang the first two are those of its leader, level and deficit the worst of a
    member, and `tier` (K,) int64 the `NetworkLevel` that holds all; `seat_node` and `seat_slots`
    (K, 16) int64 are node and places of each member, in the order of the ring from the leader on.
    """

    node: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]
    deficit: npt.NDArray[np.int64]
    wait_s: npt.NDArray[np.int64]
    cost: npt.NDArray[np.float64]
    tier: npt.NDArray[np.int64]
    seat_node: npt.NDArray[np.int64]
    seat_slots: npt.NDArray[np.int64]


ELIGIBLE_DTYPE = np.dtype(
    [
        ("slot", "i8"),  # place in the node's list
        ("pod", "i8"),
        ("cost", "f8"),
        ("rest_gpus", "i8"),  # what this pod and those behind it could free in the domain in hand
        ("rest_cores", "i8"),
        ("rest_mask", "i8"),  # GPUs that these hold; for gangs
        ("gpus", "i8", (MAX_DOMAINS,)),  # what it would free in each domain
        ("cores", "i8", (MAX_DOMAINS,)),
    ]
)

NEED_DTYPE = np.dtype([("gpus", "i8"), ("cores", "i8")])
"""What a domain is short of."""

PATH_DTYPE = np.dtype([("taken", "i8"), ("cost", "f8"), ("mask", "i8")])
"""A step of the walk: the pod taken, and what all before it cost; for gangs the GPUs free without those."""


class Workspace(NamedTuple):
    """Scratch memory of the kernel for the node in hand.

    Fields: `eligible` (65,) ELIGIBLE_DTYPE, `need` (8,) NEED_DTYPE, one a domain, `path` (65,)
    PATH_DTYPE.
    """

    eligible: npt.NDArray[Any]
    need: npt.NDArray[Any]
    path: npt.NDArray[Any]


def candidate_arrays(k: int) -> CandidateArrays:
    """Return memory for `k` candidates."""
    return CandidateArrays(
        node=np.zeros(k, np.int64),
        slots=np.zeros(k, np.int64),
        level=np.zeros(k, np.int64),
        deficit=np.zeros(k, np.int64),
        wait_s=np.zeros(k, np.int64),
        cost=np.zeros(k, np.float64),
        tier=np.zeros(k, np.int64),
        seat_node=np.zeros((k, MAX_MEMBERS), np.int64),
        seat_slots=np.zeros((k, MAX_MEMBERS), np.int64),
    )


def workspace() -> Workspace:
    """Return scratch memory for the kernel; one for each thread."""
    return Workspace(
        eligible=np.zeros(MAX_PODS_PER_NODE + 1, ELIGIBLE_DTYPE),
        need=np.zeros(MAX_DOMAINS, NEED_DTYPE),
        path=np.zeros(MAX_PODS_PER_NODE + 1, PATH_DTYPE),
    )


class Leaving(NamedTuple):
    """Terminating pods of a node as bits of its list.

    Fields: `slots`, those of which it is known when they are gone; `soon`, those of them that are gone
    before a victim would be.
    """

    slots: int
    soon: int


@inlined
def is_leaving(c: Cluster, pod: int) -> bool:
    """Say whether a pod is terminating and it is known when it is gone: its resources count."""
    live = c.live[pod]
    return bool(live["status"] == TERMINATING and live["next_s"] < NEVER_S)


@stage
def leaving(c: Cluster, node: int, grace_s: float) -> Leaving:
    """Return the terminating pods of a node whose resources may be counted on."""
    slots, soon, now = as_index(0), as_index(0), c.totals[0]["now_s"]
    for slot in range(c.nodes[node]["num_pods"]):
        pod = as_index(c.node_pods[node, slot])
        if is_leaving(c, pod):
            slots |= 1 << slot
            if c.live[pod]["next_s"] - now <= grace_s:
                soon |= 1 << slot
    return Leaving(slots, soon)


@stage
def victim_slots(c: Cluster, node: int, slots: int) -> int:
    """Return those of the places in `slots` whose pods are victims: the others are leaving already."""
    victims = slots
    while slots != 0:
        bit = slots & -slots
        slots ^= bit
        if c.live[as_index(c.node_pods[node, lowest_bit(bit)])]["status"] == TERMINATING:
            victims ^= bit
    return victims


@stage
def last_gone_s(c: Cluster, node: int, slots: int) -> int:
    """Return when the last of some terminating pods of a node is gone; now without any."""
    last = as_index(c.totals[0]["now_s"])
    while slots != 0:
        last = max(last, c.live[as_index(c.node_pods[node, lowest_bit(slots)])]["next_s"])
        slots &= slots - 1
    return last


@stage
def _measure_need(
    c: Cluster, pod: int, node: int, by_socket: bool, soon: int, w: Workspace
) -> bool:
    """Write what each domain is short of, the pods in `soon` being gone; say whether one is not."""
    model, m = c.nodes[node]["model"], c.models
    gpus, cores = c.pods[pod]["gpus"], c.pods[pod]["cores"]
    if not by_socket and soon == 0:
        w.need[0]["gpus"] = gpus - popcount(c.nodes[node]["gpu_free"])
        w.need[0]["cores"] = cores - c.nodes[node]["cores_free"]
        return bool(w.need[0]["gpus"] <= 0 and w.need[0]["cores"] <= 0)
    free, cores_free = c.nodes[node]["gpu_free"], c.cores_free[node]
    if soon != 0:
        cores_free = c.scratch[0]
        free = freed(c, node, soon, cores_free)
    fits = False
    for d in range(m[model]["num_sockets"] if by_socket else 1):
        numa_nodes, mask = (1 << m[model]["num_numa"]) - 1, (1 << m[model]["num_gpus"]) - 1
        if by_socket:
            mask, numa_nodes = m[model]["socket_gpus"][d], m[model]["socket_numa"][d]
        short = cores
        while numa_nodes != 0:
            short -= cores_free[lowest_bit(numa_nodes)]
            numa_nodes &= numa_nodes - 1
        w.need[d]["gpus"] = gpus - popcount(free & mask)
        w.need[d]["cores"] = short
        fits = fits or (w.need[d]["gpus"] <= 0 and short <= 0)
    return fits


@inlined
def _least_need(w: Workspace, domains: int) -> int:
    """Return how many GPUs the domain that is short of the fewest is short of."""
    least = w.need[0]["gpus"]
    for d in range(1, domains):
        least = min(least, w.need[d]["gpus"])
    return int(least)


class Residents(NamedTuple):
    """Pods of a node as bits of its list.

    Fields: `slots`, those that may be victims; `gpus` that these free at most; `some_leave`, there are
    terminating ones whose resources count.
    """

    slots: int
    gpus: int
    some_leave: bool


@stage
def residents(c: Cluster, node: int, priority: int) -> Residents:
    """Return who may be evicted from a node by a preemptor of a priority."""
    slots, gpus, some_leave = as_index(0), as_index(0), False
    for slot in range(c.nodes[node]["num_pods"]):
        other = as_index(c.node_pods[node, slot])
        if is_eligible(c, other, priority):
            slots |= 1 << slot
            gpus += max(c.pods[other]["gpus"], popcount(c.live[other]["gpu_mask"]))
        else:
            some_leave = some_leave or is_leaving(c, other)
    return Residents(slots, gpus, some_leave)


@stage
def gather(
    c: Cluster, costs: Costs, node: int, slots: int, by_socket: bool, for_gang: bool, w: Workspace
) -> int:
    """Collect some pods of a node, largest first, and what each would free in each domain.

    For gangs losses of whole PodGroups are kept, see `gang_losses`, and pods without a GPU are ordered by
    cores, so that the first sets that suffice are minimal.

    Returns:
        How many they are.
    """
    model = c.nodes[node]["model"]
    m = c.models
    count = 0
    while slots != 0:
        slot = as_index(lowest_bit(slots))
        slots &= slots - 1
        other = as_index(c.node_pods[node, slot])
        cost = lost_alone(c, other, costs) if for_gang else eviction_cost(c, other, costs)
        size = c.pods[other]["gpus"]
        at = count
        while at > 0:
            before = w.eligible[at - 1]
            before_size = c.pods[before["pod"]]["gpus"]
            more = before_size - size
            if for_gang and more == 0 and size == 0:
                more = c.pods[before["pod"]]["cores"] - c.pods[other]["cores"]
            if more > 0 or (
                more == 0
                and (before["cost"] < cost or (before["cost"] == cost and before["pod"] < other))
            ):
                break
            here = w.eligible[at]
            here["slot"], here["pod"], here["cost"] = before["slot"], before["pod"], before["cost"]
            at -= 1
        here = w.eligible[at]
        here["slot"], here["pod"], here["cost"] = slot, other, cost
        count += 1
    if not by_socket:  # one domain, and an eligible pod holds all that it asked for
        for i in range(count):
            here = w.eligible[i]
            here["gpus"][0] = c.pods[here["pod"]]["gpus"]
            here["cores"][0] = c.pods[here["pod"]]["cores"]
        return count
    for d in range(m[model]["num_sockets"]):
        mask, socket = m[model]["socket_gpus"][d], m[model]["socket_numa"][d]
        for i in range(count):
            here = w.eligible[i]
            held, numa_nodes = as_index(0), socket
            while numa_nodes != 0:
                held += c.pod_cores[here["pod"], lowest_bit(numa_nodes)]
                numa_nodes &= numa_nodes - 1
            here["gpus"][d] = popcount(c.live[here["pod"]]["gpu_mask"] & mask)
            here["cores"][d] = held
    return count


@stage
def _is_minimal(w: Workspace, depth: int, domains: int, domain: int) -> bool:
    """Say whether the taken pods are a minimal set that no earlier domain has reported."""
    for d in range(domains):
        more_gpus, more_cores = -w.need[d]["gpus"], -w.need[d]["cores"]
        for j in range(depth):
            taken = w.eligible[w.path[j]["taken"]]
            more_gpus += taken["gpus"][d]
            more_cores += taken["cores"][d]
        if more_gpus < 0 or more_cores < 0:
            continue
        if d < domain:
            return False
        for j in range(depth):
            taken = w.eligible[w.path[j]["taken"]]
            if more_gpus >= taken["gpus"][d] and more_cores >= taken["cores"][d]:
                return False
    return True


class Offer(NamedTuple):
    """One candidate on its way to the kept ones; fields as in `CandidateArrays`."""

    node: int
    slots: int
    level: int
    deficit: int
    wait_s: int
    cost: float


@stage
def _keep(out: CandidateArrays, kept: int, offer: Offer) -> int:
    """Insert a candidate behind those that cost no more; return how many are kept."""
    node, slots, level, deficit, wait_s, cost = offer
    capacity = out.cost.shape[0]
    if kept == capacity:
        if cost >= out.cost[kept - 1]:
            return kept
        at = kept - 1
    else:
        at = kept
        kept += 1
    while at > 0 and out.cost[at - 1] > cost:
        out.node[at], out.slots[at] = out.node[at - 1], out.slots[at - 1]
        out.level[at], out.deficit[at] = out.level[at - 1], out.deficit[at - 1]
        out.wait_s[at], out.cost[at] = out.wait_s[at - 1], out.cost[at - 1]
        at -= 1
    out.node[at], out.slots[at], out.level[at] = node, slots, level
    out.deficit[at], out.wait_s[at], out.cost[at] = deficit, wait_s, cost
    return kept


@inlined
def freed(c: Cluster, node: int, slots: int, cores: npt.NDArray[np.int16]) -> int:
    """Return the GPUs free on a node without the pods in `slots`; `cores` gets its free cores."""
    gpu_free = c.nodes[node]["gpu_free"]
    for u in range(cores.shape[0]):
        cores[u] = c.cores_free[node, u]
    while slots != 0:
        pod = as_index(c.node_pods[node, lowest_bit(slots)])
        slots &= slots - 1
        gpu_free |= c.live[pod]["gpu_mask"]
        for u in range(cores.shape[0]):
            cores[u] += c.pod_cores[pod, u]
    return int(gpu_free)


PAID_FOR = -1.0
"""Cost of an eligible pod whose whole PodGroup is paid for elsewhere."""


@stage
def added_cost(c: Cluster, costs: Costs, w: Workspace, depth: int, i: int, for_gang: bool) -> float:
    """Return what taking pod i adds: beside members of its PodGroup, what of it is lost beyond them.

    For gangs losses of whole PodGroups are kept, see `gather`.
    """
    pod, cost = as_index(w.eligible[i]["pod"]), float(w.eligible[i]["cost"])
    if cost < 0.0:
        return 0.0
    group, taken, counted = c.pods[pod]["group"], as_index(0), 0.0
    if group >= 0 and cost < NEVER:
        for j in range(depth):
            other = as_index(w.eligible[w.path[j]["taken"]]["pod"])
            if c.pods[other]["group"] == group:
                counted += stopping_cost(c, other, costs)
                taken += 1
    if taken == 0:
        return cost
    if for_gang:
        return lost_beside(c, pod, taken, counted, costs)
    return beside_members(c, pod, taken, counted, costs)


@stage
def budget_left(c: Cluster, w: Workspace, depth: int, i: int) -> bool:
    """Say whether the disruption budget of pod i allows it beside the pods taken."""
    pdb = c.pods[w.eligible[i]["pod"]]["pdb"]
    if pdb < 0:
        return True
    used = 1
    for j in range(depth):
        if c.pods[w.eligible[w.path[j]["taken"]]["pod"]]["pdb"] == pdb:
            used += 1
    return bool(used <= c.pdb_left[pdb])


class Search(NamedTuple):
    """The search on one node.

    Fields: `pod`, the preemptor; `node`; `eligible` pods of it that may be victims; `domains` that may
    hold the preemptor; `best` level of that server; `soon`, terminating pods whose resources count;
    `wait_s` and `waiting`, how long victims need to leave, and what that costs.
    """

    pod: int
    node: int
    eligible: int
    domains: int
    best: int
    soon: int
    wait_s: int
    waiting: float


@stage
def add_up_rest(w: Workspace, count: int, domain: int) -> None:
    """Write what each eligible pod and those behind it could free in a domain."""
    w.eligible[count]["rest_gpus"] = w.eligible[count]["rest_cores"] = 0
    for i in range(count - 1, -1, -1):
        one, behind = w.eligible[i], w.eligible[i + 1]
        one["rest_gpus"] = behind["rest_gpus"] + one["gpus"][domain]
        one["rest_cores"] = behind["rest_cores"] + one["cores"][domain]


@stage
def _search_domain(
    c: Cluster, costs: Costs, s: Search, domain: int, w: Workspace, out: CandidateArrays, kept: int
) -> int:
    """Walk the victim sets of one domain depth first; return how many candidates are kept."""
    pod, node, count, domains = s.pod, s.node, s.eligible, s.domains
    cores = c.scratch[0]
    need_gpus, need_cores = w.need[domain]["gpus"], w.need[domain]["cores"]
    gpus, model = c.pods[pod]["gpus"], c.nodes[node]["model"]
    add_up_rest(w, count, domain)
    depth, i, for_gang = 0, 0, bool(np.bool_(False))
    w.path[0]["cost"] = s.waiting
    for _ in range(MAX_STEPS):
        one, path = w.eligible[i], w.path[depth]
        dear = kept == out.cost.shape[0] and path["cost"] >= out.cost[kept - 1]
        if not dear and need_gpus <= 0 and need_cores <= 0:
            if _is_minimal(w, depth, domains, domain):
                slots = s.soon
                for j in range(depth):
                    slots |= 1 << w.eligible[w.path[j]["taken"]]["slot"]
                gpu_free = freed(c, node, slots, cores)
                level = alignment_level(
                    c.models, model, gpu_free, cores, gpus, c.pods[pod]["cores"]
                )
                deficit = level_deficit(level, s.best)
                cost = path["cost"] + misalignment_cost(c, costs, pod, deficit)
                kept = _keep(out, kept, Offer(node, slots, level, deficit, s.wait_s, cost))
        elif (
            not dear
            and one["rest_gpus"] >= need_gpus
            and one["rest_cores"] >= need_cores
            and i < count
        ):
            useful = one["gpus"][domain] > 0 or one["cores"][domain] > 0
            if useful and budget_left(c, w, depth, i):
                w.path[depth + 1]["cost"] = path["cost"] + added_cost(
                    c, costs, w, depth, i, for_gang
                )
                path["taken"] = i
                depth += 1
                need_gpus -= one["gpus"][domain]
                need_cores -= one["cores"][domain]
            i += 1
            continue
        if depth == 0:
            break
        depth -= 1
        i = w.path[depth]["taken"]
        need_gpus += w.eligible[i]["gpus"][domain]
        need_cores += w.eligible[i]["cores"][domain]
        i += 1
    return kept


@stage
def _offer_leaving(
    c: Cluster, costs: Costs, s: Search, aligned: bool, slots: int, out: CandidateArrays, kept: int
) -> int:
    """Offer what a node's terminating pods hold, to be waited for; return how many are kept.

    The first candidate is what suffices soonest; a further one has to align the pod better.
    """
    pod, node, cores = s.pod, s.node, c.scratch[0]
    counted, last_level, now = as_index(0), NO_FIT, c.totals[0]["now_s"]
    while slots != 0:
        end, first, rest = NEVER_S, as_index(0), slots
        while rest != 0:
            slot = as_index(lowest_bit(rest))
            rest &= rest - 1
            gone = c.live[as_index(c.node_pods[node, slot])]["next_s"]
            if gone < end:
                end, first = gone, as_index(0)
            if gone == end:
                first |= 1 << slot
        counted |= first
        slots ^= first
        level = alignment_level(
            c.models,
            c.nodes[node]["model"],
            freed(c, node, counted, cores),
            cores,
            c.pods[pod]["gpus"],
            c.pods[pod]["cores"],
        )
        if level < last_level and (not aligned or is_aligned(level, s.best)):
            last_level = level
            deficit, wait_s = level_deficit(level, s.best), max(end - now, 0)
            cost = waiting_cost(c, costs, pod, float(wait_s))
            cost += misalignment_cost(c, costs, pod, deficit)
            kept = _keep(out, kept, Offer(node, counted, level, deficit, wait_s, cost))
    return kept


@stage
def find_for_pod(
    c: Cluster, costs: Costs, pod: int, aligned: bool, w: Workspace, out: CandidateArrays
) -> int:
    """Find the minimal victim sets that let a pod start, the cheapest first.

    Args:
        c: the cluster, not modified.
        costs: the loss in GPU-seconds; a candidate's cost is that of its victims and of the
            alignment that the pod then gets.
        pod: index of the preemptor.
        aligned: the guaranteed filter holds: only aligned placements are legal.
        w: scratch memory.
        out: memory for the candidates; ties keep the lower node, then the order of discovery.

    Returns:
        Number of candidates in `out`. A node where the pod fits already gives one candidate
        without victims; one where it will fit once terminating pods are gone gives one or more.

    References:
        FlexTopo, algorithm 1. There only the sets of the smallest size on each node are kept;
        here every minimal set is, whatever its size.
    """
    kept = 0
    last_model, best = -1, NO_FIT
    gpus, wanted_cores = c.pods[pod]["gpus"], c.pods[pod]["cores"]
    priority = c.pods[pod]["priority"]
    grace_s, waiting = as_index(int(costs.grace_s)), waiting_cost(c, costs, pod, costs.grace_s)
    for node in range(c.nodes.shape[0]):
        model = c.nodes[node]["model"]
        if model != last_model:
            best = best_level(c.models, model, gpus, wanted_cores)
            last_model = model
        if best == NO_FIT or c.nodes[node]["num_pods"] >= MAX_PODS_PER_NODE:
            continue
        by_socket = aligned and best <= LAST_ALIGNED
        domains = c.models[model]["num_sockets"] if by_socket else 1
        nobody = as_index(0)
        if _measure_need(c, pod, node, by_socket, nobody, w):
            gpu_free, cores = c.nodes[node]["gpu_free"], c.cores_free[node]
            level = alignment_level(c.models, model, gpu_free, cores, gpus, wanted_cores)
            deficit = level_deficit(level, best)
            cost = misalignment_cost(c, costs, pod, deficit)
            kept = _keep(out, kept, Offer(node, nobody, level, deficit, nobody, cost))
            continue
        here = residents(c, node, priority)
        if not here.some_leave and here.gpus < _least_need(w, domains):
            continue
        for_gang = bool(np.bool_(False))
        count = gather(c, costs, node, here.slots, by_socket, for_gang, w)
        search = Search(pod, node, count, domains, best, nobody, grace_s, waiting)
        if here.some_leave:
            gone = leaving(c, node, costs.grace_s)
            search = Search(pod, node, count, domains, best, gone.soon, grace_s, waiting)
            kept = _offer_leaving(c, costs, search, aligned, gone.slots, out, kept)
            if _measure_need(c, pod, node, by_socket, gone.soon, w):
                continue
        for d in range(domains):
            kept = _search_domain(c, costs, search, d, w, out, kept)
    return kept


@stage
def count_preemptible(c: Cluster, pod: int, aligned: bool, enough: int) -> int:
    """Count the nodes, up to `enough`, where the pod fits without every eligible and terminating pod."""
    found = 0
    gpus, wanted = c.pods[pod]["gpus"], c.pods[pod]["cores"]
    priority = c.pods[pod]["priority"]
    cores = c.scratch[0]
    last_model, best = -1, NO_FIT
    for node in range(c.nodes.shape[0]):
        model = c.nodes[node]["model"]
        if model != last_model:
            best = best_level(c.models, model, gpus, wanted)
            last_model = model
        if best == NO_FIT or c.nodes[node]["num_pods"] >= MAX_PODS_PER_NODE:
            continue
        slots, gpu_free = as_index(0), c.nodes[node]["gpu_free"]
        for slot in range(c.nodes[node]["num_pods"]):
            other = as_index(c.node_pods[node, slot])
            if is_eligible(c, other, priority) or is_leaving(c, other):
                slots |= 1 << slot
                gpu_free |= c.live[other]["gpu_mask"]
        if popcount(gpu_free) < gpus:
            continue
        gpu_free = freed(c, node, slots, cores)
        level = alignment_level(c.models, model, gpu_free, cores, gpus, wanted)
        if level != NO_FIT and (not aligned or is_aligned(level, best)):
            found += 1
            if found >= enough:
                break
    return found
