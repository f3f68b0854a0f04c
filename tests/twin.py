"""What the kernels must compute, by brute force in plain Python; this file defines them.

Nothing here calls a kernel but `is_eligible`, which has tests of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from flextopo.cluster.state.arrays import DONE, RUNNING, STARTING, TERMINATING, is_eligible
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import NEVER_S, REPLICAS
from flextopo.cluster.topology.levels import LEVELS, NO_FIT, NUM_DEFICITS, AlignmentLevel
from flextopo.cluster.topology.model import ServerModel


@dataclass(frozen=True)
class Found:
    """One candidate of the twin."""

    node: int
    victims: frozenset[int]
    level: int
    cost: float
    wait_s: int


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


def missing(state: ClusterState, pod: int) -> float:
    """Return the factor by which a pod's service misses one more replica."""
    c = state.arrays
    service = int(c.pods[pod]["service"])
    serving = int(c.serving[service]) if 0 <= service < len(c.serving) else 0
    row = max(i for i, least in enumerate(REPLICAS) if serving >= least)
    return state.costs.missing[row]


def own_loss(state: ClusterState, victims: Iterable[int]) -> float:
    """Return what evicting pods loses, PodGroups of which too few are left included and counted once."""
    c, costs = state.arrays, state.costs
    stopped = set(victims)
    for group in {int(c.pods[pod]["group"]) for pod in stopped} - {-1}:
        members = {pod for pod in range(state.num_pods) if c.pods[pod]["group"] == group}
        run = {
            pod for pod in members if c.live[pod]["status"] in (RUNNING, STARTING, DONE)
        } - stopped
        if len(run) < min(len(members), int(c.pods[min(members)]["min_members"])):
            stopped |= members
    total = 0.0
    for pod in stopped:
        spec = c.pods[pod]
        if c.live[pod]["status"] not in (RUNNING, STARTING):
            continue
        lost = missing(state, pod) * costs.waiting * costs.start_s
        if not spec["online"]:
            weight = costs.discarded * (1 + int(spec["batch_class"]))
            lost = weight * (lost_s(state, pod) + costs.restart_s)
        total += int(spec["gpus"]) * (lost + costs.eviction)
    return total


def waiting(state: ClusterState, preemptor: Pod, wait_s: int) -> float:
    """Return what a pod loses that waits for so long from now, second by second."""
    costs, total = state.costs, 0.0
    waited = state.now_s - int(state.arrays.live[preemptor.index]["queued_s"])
    for second in range(waited, waited + wait_s):
        late = second - preemptor.deadline_s
        # The mean of a rate that rises by twice the growth a second.
        total += costs.waiting if late < 0 else costs.late + costs.late_growth * (2 * late + 1)
    return missing(state, preemptor.index) * preemptor.gpus * total


def decision_cost(state: ClusterState, found: Found, preemptor: Pod) -> float:
    """Return a decision's own loss in GPU-seconds."""
    costs = state.costs
    below = deficit(found.level, empty_level(state.model(found.node), preemptor))
    rate = costs.misaligned[preemptor.sensitivity * NUM_DEFICITS + below]
    misalignment = preemptor.gpus * costs.service_s * rate
    wait = waiting(state, preemptor, found.wait_s)
    return wait + own_loss(state, found.victims) + misalignment


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


def leaving(state: ClusterState, node: int) -> dict[int, int]:
    """Return in how many seconds each terminating pod of a node is gone, where that is known."""
    c = state.arrays
    pods = [int(pod) for pod in c.node_pods[node, : c.nodes[node]["num_pods"]]]
    ends = {pod: int(c.live[pod]["next_s"]) for pod in pods if c.live[pod]["status"] == TERMINATING}
    return {pod: max(end - state.now_s, 0) for pod, end in ends.items() if end < NEVER_S}


def gone_by(state: ClusterState, node: int, wait_s: int) -> set[int]:
    """Return the terminating pods of a node that are gone after some time."""
    return {pod for pod, after in leaving(state, node).items() if after <= wait_s}


def without_victims(
    state: ClusterState, node: int, preemptor: Pod, aligned: bool, later: bool = False
) -> Iterator[Found]:
    """Yield what a node gives for waiting alone, sooner and worse aligned things first.

    Where the preemptor fits already, what aligns it better `later` is left out unless it is asked for.
    """
    if empty_level(state.model(node), preemptor) == NO_FIT:
        return
    nobody: frozenset[int] = frozenset()
    last = NO_FIT
    if fits(state, node, nobody, preemptor, aligned):
        found = priced(state, node, nobody, 0, nobody, preemptor)
        yield found
        last = found.level
        if not later:
            return
    for wait_s in sorted(set(leaving(state, node).values())):
        gone = gone_by(state, node, wait_s)
        if fits(state, node, gone, preemptor, aligned):
            found = priced(state, node, nobody, wait_s, gone, preemptor)
            if found.level < last:
                yield found
            last = min(last, found.level)


def with_victims(state: ClusterState, node: int, preemptor: Pod, aligned: bool) -> Iterator[Found]:
    """Yield every victim set within the budgets that lets the preemptor fit, minimal or not."""
    if empty_level(state.model(node), preemptor) == NO_FIT:
        return
    grace_s = int(state.costs.grace_s)
    soon = gone_by(state, node, grace_s)
    for victims in subsets(eligible(state, node, preemptor)):
        gone = soon | victims
        legal = within_budgets(state, victims) and fits(state, node, gone, preemptor, aligned)
        if victims and legal:
            yield priced(state, node, victims, grace_s, gone, preemptor)


def priced(
    state: ClusterState,
    node: int,
    victims: frozenset[int],
    wait_s: int,
    gone: Iterable[int],
    preemptor: Pod,
) -> Found:
    """Return a candidate with its level and cost, once the pods in `gone` are."""
    level = level_of(state.model(node), *without(state, node, gone), preemptor)
    found = Found(node, victims, level, 0.0, wait_s)
    return replace(found, cost=decision_cost(state, found, preemptor))


def minimal_sets(state: ClusterState, preemptor: Pod, aligned: bool) -> list[Found]:
    """Return every candidate on every node, by node: for waiting alone, and minimal victim sets."""
    found: list[Found] = []
    for node in range(state.num_nodes):
        found += without_victims(state, node, preemptor, aligned)
        soon = gone_by(state, node, int(state.costs.grace_s))
        if fits(state, node, soon, preemptor, aligned):
            continue
        minimal: list[Found] = []
        for each in with_victims(state, node, preemptor, aligned):
            if not any(smaller.victims <= each.victims for smaller in minimal):
                minimal.append(each)
        found += minimal
    return found
