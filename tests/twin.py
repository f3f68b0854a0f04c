"""What the kernels must compute, by brute force in plain Python; this file defines them.

Nothing here calls a kernel but `is_eligible`, which has tests of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from flextopo.cluster.state.arrays import RUNNING, STARTING, is_eligible
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import LEVELS, NO_FIT, AlignmentLevel
from flextopo.cluster.topology.model import ServerModel


@dataclass(frozen=True)
class Found:
    """One minimal victim set of the twin."""

    node: int
    victims: frozenset[int]
    level: int
    cost: float


def bits(mask: int) -> set[int]:
    """Return the positions of the bits set."""
    whole = int(mask)  # a kernel run as plain Python returns numpy's integers
    return {i for i in range(whole.bit_length()) if whole >> i & 1}


def level_of(model: ServerModel, free: set[int], cores: Sequence[int], pod: Pod) -> int:
    """Return the best level of any GPU subset that the pod could get."""
    for domain in model.domains:
        if LEVELS[domain.level].for_gpus and pod.gpus == 0:
            continue
        for gpus in combinations(sorted(free), pod.gpus):
            held = sum(cores[u] for u in domain.numa_nodes)
            if set(gpus) <= bits(domain.gpu_mask) and held >= pod.cores:
                return int(domain.level)
    return NO_FIT


def empty_level(model: ServerModel, pod: Pod) -> int:
    """Return the level that an empty server gives."""
    return level_of(model, set(range(model.num_gpus)), model.numa_cores, pod)


def deficit(level: int, best: int) -> int:
    """Return what prices a level: 0 at the best one, else the level."""
    return 0 if level == best else level


def without(state: ClusterState, node: int, gone: Iterable[int]) -> tuple[set[int], list[int]]:
    """Return the free GPUs and cores of a node once some pods are gone."""
    c = state.arrays
    free = bits(int(c.nodes[node]["gpu_free"]))
    cores = [int(n) for n in c.cores_free[node]]
    for pod in gone:
        free |= bits(int(c.live[pod]["gpu_mask"]))
        cores = [a + int(b) for a, b in zip(cores, c.pod_cores[pod], strict=True)]
    return free, cores


def fits(
    state: ClusterState, node: int, gone: Iterable[int], preemptor: Pod, aligned: bool
) -> bool:
    """Say whether the preemptor fits without some pods, at a level that its filter accepts."""
    model = state.model(node)
    level = level_of(model, *without(state, node, gone), preemptor)
    if level == NO_FIT or not aligned:
        return level != NO_FIT
    return LEVELS[AlignmentLevel(level)].aligned or level == empty_level(model, preemptor)


def lost_s(state: ClusterState, pod: int) -> int:
    """Return the run time that an eviction throws away."""
    c = state.arrays
    spec, live = c.pods[pod], c.live[pod]
    if spec["online"] or live["status"] != RUNNING:
        return 0
    progress = max(0, state.now_s - int(live["since_s"]) - int(live["overhead_s"]))
    return progress % int(spec["checkpoint_s"]) if spec["checkpoint_s"] else progress


def own_loss(state: ClusterState, victims: Iterable[int]) -> float:
    """Return what evicting pods loses, their PodGroups included and counted once."""
    c, costs = state.arrays, state.costs
    stopped = set(victims)
    groups = {int(c.pods[pod]["group"]) for pod in stopped} - {-1}
    for pod in range(state.num_pods):
        if int(c.pods[pod]["group"]) in groups:
            stopped.add(pod)
    total = 0.0
    for pod in stopped:
        spec = c.pods[pod]
        if c.live[pod]["status"] not in (RUNNING, STARTING):
            continue
        lost = 0.0 if spec["online"] else lost_s(state, pod) + costs.restart_s
        weight = costs.discarded * (1 + int(spec["batch_class"]))
        total += int(spec["gpus"]) * (weight * lost + costs.eviction)
    return total


def decision_cost(
    state: ClusterState, node: int, victims: frozenset[int], level: int, preemptor: Pod
) -> float:
    """Return a decision's own loss in GPU-seconds."""
    costs = state.costs
    rate = costs.misaligned[deficit(level, empty_level(state.model(node), preemptor))]
    misalignment = preemptor.gpus * costs.service_s * rate
    if not victims:
        return misalignment
    waiting = costs.waiting * preemptor.gpus * costs.grace_s
    return waiting + own_loss(state, victims) + misalignment


def within_budgets(state: ClusterState, victims: Iterable[int]) -> bool:
    """Say whether every disruption budget allows all these victims together."""
    c = state.arrays
    used = [int(c.pods[pod]["pdb"]) for pod in victims]
    return all(used.count(pdb) <= c.pdb_left[pdb] for pdb in set(used) - {-1})


def eligible(state: ClusterState, node: int, preemptor: Pod) -> list[int]:
    """Return the eligible pods of a node."""
    c = state.arrays
    pods = [int(pod) for pod in c.node_pods[node, : c.nodes[node]["num_pods"]]]
    return [pod for pod in pods if is_eligible(c, pod, preemptor.priority)]


def subsets(pods: Sequence[int]) -> Iterable[frozenset[int]]:
    """Return all subsets, smaller ones first."""
    for size in range(len(pods) + 1):
        for chosen in combinations(pods, size):
            yield frozenset(chosen)


def legal_sets(
    state: ClusterState, node: int, preemptor: Pod, aligned: bool
) -> Iterable[frozenset[int]]:
    """Return every victim set within the budgets that lets the preemptor fit, minimal or not."""
    if empty_level(state.model(node), preemptor) == NO_FIT:
        return
    for victims in subsets(eligible(state, node, preemptor)):
        if within_budgets(state, victims) and fits(state, node, victims, preemptor, aligned):
            yield victims


def find(state: ClusterState, node: int, victims: frozenset[int], preemptor: Pod) -> Found:
    """Return a victim set with its level and cost."""
    level = level_of(state.model(node), *without(state, node, victims), preemptor)
    cost = decision_cost(state, node, victims, level, preemptor)
    return Found(node, victims, level, cost)


def minimal_sets(state: ClusterState, preemptor: Pod, aligned: bool) -> list[Found]:
    """Return every minimal victim set on every node, by node."""
    found = []
    for node in range(state.num_nodes):
        minimal: list[frozenset[int]] = []
        for victims in legal_sets(state, node, preemptor, aligned):
            if not any(smaller <= victims for smaller in minimal):
                minimal.append(victims)
        found += [find(state, node, victims, preemptor) for victims in minimal]
    return found
