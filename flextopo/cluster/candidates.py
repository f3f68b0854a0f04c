"""The candidate kernel: every minimal victim set on every node, the cheapest K kept.

A set of eligible pods on one node lets the preemptor fit when, with the set gone, some legal domain
has the GPUs and the cores it asks for. A pod bound by the guaranteed filter needs one socket (or
the whole server where no socket could ever hold it); any other pod needs the whole server only.
A set is minimal when no proper subset does. The kernel walks the subsets of each domain in
depth-first order and stops at the first cover on each path, which visits every minimal cover once.

Bound: a path is left when its cost so far is no better than the worst of K kept candidates, since
the cost of a set is a sum of terms that are never negative. On one node and domain at most
`MAX_STEPS` steps are taken (only nodes with dozens of CPU-only pods come near).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.arrays import MAX_PODS_PER_NODE, Cluster, as_index, is_eligible, popcount
from flextopo.cluster.kernels import inlined, kernel, stage
from flextopo.cluster.loss import Costs, eviction_cost, misalignment_cost
from flextopo.cluster.placement import (
    CROSS_SOCKET,
    NO_FIT,
    SOCKET,
    alignment_level,
    best_level,
    level_deficit,
)

MAX_STEPS = 1 << 17
MAX_DOMAINS = 8


class CandidateArrays(NamedTuple):
    """The kept candidates, by ascending (cost, node, order of discovery); K places.

    Fields: `node` (K,) int64; `slots` (K,) int64, bit i = the pod in place i of the node's list is
    a victim; `level` and `deficit` (K,) int64; `cost` (K,) float64, the decision's own loss in
    GPU-seconds.
    """

    node: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]
    deficit: npt.NDArray[np.int64]
    cost: npt.NDArray[np.float64]


class Workspace(NamedTuple):
    """Scratch memory of the kernel for the node in hand; E = 64 eligible pods, D = 8 domains."""

    slot: npt.NDArray[np.int64]  # (E,) place in the node's list
    pod: npt.NDArray[np.int64]  # (E,)
    cost: npt.NDArray[np.float64]  # (E,)
    gpus: npt.NDArray[np.int64]  # (E, D) GPUs it would free in each domain
    cores: npt.NDArray[np.int64]  # (E, D)
    need_gpus: npt.NDArray[np.int64]  # (D,) what is short in each domain
    need_cores: npt.NDArray[np.int64]  # (D,)
    rest_gpus: npt.NDArray[np.int64]  # (E + 1,) what pods i, i+1, ... could still free
    rest_cores: npt.NDArray[np.int64]  # (E + 1,)
    stack: npt.NDArray[np.int64]  # (E,) the pods taken
    path_cost: npt.NDArray[np.float64]  # (E + 1,)


def candidate_arrays(k: int) -> CandidateArrays:
    """Return room for `k` candidates."""
    return CandidateArrays(
        node=np.zeros(k, np.int64),
        slots=np.zeros(k, np.int64),
        level=np.zeros(k, np.int64),
        deficit=np.zeros(k, np.int64),
        cost=np.zeros(k, np.float64),
    )


def workspace() -> Workspace:
    """Return scratch memory for the kernel; one for each thread."""
    e, d = MAX_PODS_PER_NODE, MAX_DOMAINS
    return Workspace(
        slot=np.zeros(e, np.int64),
        pod=np.zeros(e, np.int64),
        cost=np.zeros(e),
        gpus=np.zeros((e, d), np.int64),
        cores=np.zeros((e, d), np.int64),
        need_gpus=np.zeros(d, np.int64),
        need_cores=np.zeros(d, np.int64),
        rest_gpus=np.zeros(e + 1, np.int64),
        rest_cores=np.zeros(e + 1, np.int64),
        stack=np.zeros(e, np.int64),
        path_cost=np.zeros(e + 1),
    )


@stage
def _gather(c: Cluster, costs: Costs, pod: int, node: int, by_socket: bool, w: Workspace) -> int:
    """Collect a node's eligible pods, largest first, and what each domain is short of."""
    model = c.nodes[node]["model"]
    m = c.models
    priority = c.pods[pod]["priority"]
    domains = m[model]["num_sockets"] if by_socket else 1
    count = 0
    for slot in range(c.nodes[node]["num_pods"]):
        other = as_index(c.node_pods[node, slot])
        if not is_eligible(c, other, priority):
            continue
        cost = eviction_cost(c, other, costs)
        size = c.pods[other]["gpus"]
        at = count
        while at > 0:
            before = w.pod[at - 1]
            before_size = c.pods[before]["gpus"]
            if before_size > size or (
                before_size == size
                and (w.cost[at - 1] < cost or (w.cost[at - 1] == cost and before < other))
            ):
                break
            w.slot[at], w.pod[at], w.cost[at] = w.slot[at - 1], before, w.cost[at - 1]
            at -= 1
        w.slot[at], w.pod[at], w.cost[at] = slot, other, cost
        count += 1
    gpus, cores = c.pods[pod]["gpus"], c.pods[pod]["cores"]
    free = c.nodes[node]["gpu_free"]
    if not by_socket:  # one domain, and an eligible pod holds all that it asked for
        w.need_gpus[0] = gpus - popcount(free)
        w.need_cores[0] = cores - c.nodes[node]["cores_free"]
        for i in range(count):
            w.gpus[i, 0] = c.pods[w.pod[i]]["gpus"]
            w.cores[i, 0] = c.pods[w.pod[i]]["cores"]
        return count
    for d in range(domains):
        mask = m[model]["socket_gpus"][d]
        w.need_gpus[d] = gpus - popcount(free & mask)
        w.need_cores[d] = cores
        for i in range(count):
            w.gpus[i, d] = popcount(c.live[w.pod[i]]["gpu_mask"] & mask)
            w.cores[i, d] = 0
        for u in range(m[model]["num_numa"]):
            if m[model]["numa_socket"][u] != d:
                continue
            w.need_cores[d] -= c.cores_free[node, u]
            for i in range(count):
                w.cores[i, d] += c.pod_cores[w.pod[i], u]
    return count


@stage
def _is_minimal(c: Cluster, w: Workspace, depth: int, domains: int, domain: int) -> bool:
    """Say whether the taken pods are a minimal set that no earlier domain has reported."""
    for d in range(domains):
        freed_gpus, freed_cores = 0, 0
        for j in range(depth):
            freed_gpus += w.gpus[w.stack[j], d]
            freed_cores += w.cores[w.stack[j], d]
        if freed_gpus < w.need_gpus[d] or freed_cores < w.need_cores[d]:
            continue
        if d < domain:
            return False
        for j in range(depth):
            i = w.stack[j]
            if (
                freed_gpus - w.gpus[i, d] >= w.need_gpus[d]
                and freed_cores - w.cores[i, d] >= w.need_cores[d]
            ):
                return False
    return True


@stage
def _keep(
    out: CandidateArrays, kept: int, node: int, slots: int, level: int, deficit: int, cost: float
) -> int:
    """Insert a candidate behind those that cost no more; return how many are kept."""
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
        out.cost[at] = out.cost[at - 1]
        at -= 1
    out.node[at], out.slots[at], out.level[at] = node, slots, level
    out.deficit[at], out.cost[at] = deficit, cost
    return kept


@inlined
def freed(c: Cluster, node: int, slots: int, cores: npt.NDArray[np.int16]) -> int:
    """Return the GPUs free on a node without the pods in `slots`; `cores` gets its free cores."""
    gpu_free = c.nodes[node]["gpu_free"]
    for u in range(cores.shape[0]):
        cores[u] = c.cores_free[node, u]
    slot = 0
    while slots != 0:
        if slots & 1:
            pod = as_index(c.node_pods[node, slot])
            gpu_free |= c.live[pod]["gpu_mask"]
            for u in range(cores.shape[0]):
                cores[u] += c.pod_cores[pod, u]
        slots >>= 1
        slot += 1
    return int(gpu_free)


@stage
def _add_cost(c: Cluster, w: Workspace, depth: int, i: int) -> float:
    """Return what taking pod i adds: nothing when a member of its PodGroup is taken already."""
    group = c.pods[w.pod[i]]["group"]
    if group >= 0:
        for j in range(depth):
            if c.pods[w.pod[w.stack[j]]]["group"] == group:
                return 0.0
    return float(w.cost[i])


@stage
def _budget_left(c: Cluster, w: Workspace, depth: int, i: int) -> bool:
    """Say whether the disruption budget of pod i allows it beside the pods taken."""
    pdb = c.pods[w.pod[i]]["pdb"]
    if pdb < 0:
        return True
    used = 1
    for j in range(depth):
        if c.pods[w.pod[w.stack[j]]]["pdb"] == pdb:
            used += 1
    return bool(used <= c.pdb_left[pdb])


@stage
def _search_domain(
    c: Cluster,
    costs: Costs,
    pod: int,
    node: int,
    count: int,
    domains: int,
    domain: int,
    best: int,
    w: Workspace,
    cores: npt.NDArray[np.int16],
    out: CandidateArrays,
    kept: int,
) -> int:
    """Walk the victim sets of one domain depth first; return how many candidates are kept."""
    need_gpus, need_cores = w.need_gpus[domain], w.need_cores[domain]
    gpus, model = c.pods[pod]["gpus"], c.nodes[node]["model"]
    w.rest_gpus[count] = w.rest_cores[count] = 0
    for i in range(count - 1, -1, -1):
        w.rest_gpus[i] = w.rest_gpus[i + 1] + w.gpus[i, domain]
        w.rest_cores[i] = w.rest_cores[i + 1] + w.cores[i, domain]
    depth, i = 0, 0
    w.path_cost[0] = costs.waiting * gpus * costs.grace_s
    for _ in range(MAX_STEPS):
        dear = kept == out.cost.shape[0] and w.path_cost[depth] >= out.cost[kept - 1]
        if not dear and need_gpus <= 0 and need_cores <= 0:
            if _is_minimal(c, w, depth, domains, domain):
                slots = as_index(0)
                for j in range(depth):
                    slots |= 1 << w.slot[w.stack[j]]
                gpu_free = freed(c, node, slots, cores)
                level = alignment_level(
                    c.models, model, gpu_free, cores, gpus, c.pods[pod]["cores"]
                )
                deficit = level_deficit(level, best)
                cost = w.path_cost[depth] + misalignment_cost(gpus, deficit, costs)
                kept = _keep(out, kept, node, slots, level, deficit, cost)
        elif (
            not dear and w.rest_gpus[i] >= need_gpus and w.rest_cores[i] >= need_cores and i < count
        ):
            useful = w.gpus[i, domain] > 0 or w.cores[i, domain] > 0
            if useful and _budget_left(c, w, depth, i):
                w.path_cost[depth + 1] = w.path_cost[depth] + _add_cost(c, w, depth, i)
                w.stack[depth] = i
                depth += 1
                need_gpus -= w.gpus[i, domain]
                need_cores -= w.cores[i, domain]
            i += 1
            continue
        if depth == 0:
            break
        depth -= 1
        i = w.stack[depth]
        need_gpus += w.gpus[i, domain]
        need_cores += w.cores[i, domain]
        i += 1
    return kept


@kernel
def find_candidates(
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
        out: room for the candidates; ties keep the lower node, then the order of discovery.

    Returns:
        Number of candidates in `out`. A node where the pod fits already gives one candidate
        without victims.

    References:
        FlexTopo, algorithm 1. There only the sets of the smallest size on each node are kept;
        here every minimal set is, whatever its size.
    """
    kept = 0
    last_model, best = -1, NO_FIT
    gpus, wanted_cores = c.pods[pod]["gpus"], c.pods[pod]["cores"]
    cores = c.scratch[0]
    for node in range(c.nodes.shape[0]):
        model = c.nodes[node]["model"]
        if model != last_model:
            best = best_level(c.models, model, gpus, wanted_cores)
            last_model = model
        if best == NO_FIT or c.nodes[node]["num_pods"] >= MAX_PODS_PER_NODE:
            continue
        by_socket = aligned and best <= SOCKET
        domains = c.models[model]["num_sockets"] if by_socket else 1
        count = _gather(c, costs, pod, node, by_socket, w)
        fits = False
        for d in range(domains):
            fits = fits or (w.need_gpus[d] <= 0 and w.need_cores[d] <= 0)
        if fits:
            gpu_free, here = c.nodes[node]["gpu_free"], c.cores_free[node]
            level = alignment_level(c.models, model, gpu_free, here, gpus, wanted_cores)
            deficit = level_deficit(level, best)
            cost = misalignment_cost(gpus, deficit, costs)
            kept = _keep(out, kept, node, 0, level, deficit, cost)
            continue
        for d in range(domains):
            kept = _search_domain(c, costs, pod, node, count, domains, d, best, w, cores, out, kept)
    return kept


@kernel
def can_preempt(c: Cluster, pod: int, aligned: bool) -> bool:
    """Say whether the pod fits somewhere once every eligible pod of a node is gone."""
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
        slots = as_index(0)
        for slot in range(c.nodes[node]["num_pods"]):
            if is_eligible(c, as_index(c.node_pods[node, slot]), priority):
                slots |= 1 << slot
        gpu_free = freed(c, node, slots, cores)
        level = alignment_level(c.models, model, gpu_free, cores, gpus, wanted)
        if level <= SOCKET or level == best or (not aligned and level == CROSS_SOCKET):
            return True
    return False
