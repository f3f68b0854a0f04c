"""The true minimum of a decision's own loss, by branch and bound over every victim set.

Plain Python that shares nothing with the candidate kernel: it is what `greedy-cost` is measured
against. Unlike the kernel it also looks at sets that are not minimal, since one more victim may
align the preemptor better. Gangs: `exact_gang`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from flextopo.baselines.exact_gang import gang_minimum
from flextopo.baselines.residents import NodeView, Resident
from flextopo.cluster.state.arrays import MAX_PODS_PER_NODE
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.loss import (
    beside_members,
    eviction_cost,
    misalignment_cost,
    stopping_cost,
    waiting_cost,
)
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import is_aligned, level_deficit, level_of


class NodeSearch:
    """Branch and bound on one node.

    Args:
        cluster: the cluster, not modified.
        node: index of the node.
        preemptor: the pending pod.
        aligned: only aligned placements are legal.
    """

    def __init__(self, cluster: ClusterState, node: int, preemptor: Pod, aligned: bool) -> None:
        c = cluster.arrays
        self.cluster, self.node = cluster, node
        self.view = NodeView(cluster, node)
        self.preemptor = preemptor
        self.costs = cluster.costs
        self.best_level = self.view.model.best_level(preemptor.gpus, preemptor.cores)
        self.aligned = aligned
        self.allowed = c.pdb_left.tolist()
        self.loss: dict[int, float] = {}
        self.group: dict[int, int] = {}
        pods = self.view.evictable(preemptor)
        for pod in pods:
            self.loss[pod.index] = eviction_cost(c, pod.index, self.costs)
            self.group[pod.index] = int(c.pods[pod.index]["group"])
        self.pods = sorted(pods, key=lambda pod: (self.loss[pod.index], pod.index))
        self.bound = float("inf")
        self.full = bool(c.nodes[node]["num_pods"] >= MAX_PODS_PER_NODE)

    def misalignment(self, gpu_free: int, cores_free: list[int]) -> float | None:
        """Return the expected loss of the level that is possible, None where it is not legal."""
        pod = self.preemptor
        level = level_of(self.view.model.domains, gpu_free, cores_free, pod.gpus, pod.cores)
        if level is None or self.best_level is None:
            return None
        if self.aligned and not is_aligned(level, self.best_level):
            return None
        deficit = level_deficit(level, self.best_level)
        return float(misalignment_cost(self.cluster.arrays, self.costs, pod.index, deficit))

    def improve(self, bound: float) -> tuple[float, tuple[int, ...]] | None:
        """Return the cheapest victim set and its cost if it costs less than `bound`."""
        if self.full or self.best_level is None:
            return None
        best: tuple[float, tuple[int, ...]] | None = None
        self.bound = bound
        grace_s = self.costs.grace_s
        self.waiting = waiting_cost(self.cluster.arrays, self.costs, self.preemptor.index, grace_s)
        walk = self._walk(0, self.view.gpu_free, self.view.cores_free, 0.0, ())
        for cost, victims in chain(self._without_victims(), walk):
            if cost < self.bound:
                best = (cost, victims)
                self.bound = cost
        return best

    def _without_victims(self) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Yield what it costs to take what is free, or will be once terminating pods are gone."""
        cluster, node = self.cluster, self.node
        for wait_s, slots in cluster.free_after(node).items():
            misalignment = self.misalignment(*cluster.freed(node, slots))
            if misalignment is not None:
                pod = self.preemptor.index
                cost = waiting_cost(cluster.arrays, self.costs, pod, float(max(wait_s, 0)))
                yield float(cost) + misalignment, ()

    def _walk(
        self,
        at: int,
        gpu_free: int,
        cores_free: list[int],
        evicted: float,
        victims: tuple[Resident, ...],
    ) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Yield every legal set of victims that begins so and may still be the cheapest."""
        cost = self.waiting + evicted
        if victims and cost >= self.bound:
            return
        misalignment = self.misalignment(gpu_free, cores_free)
        if victims and misalignment is not None:
            yield cost + misalignment, tuple(victim.index for victim in victims)
            if misalignment == 0.0:
                return
        if not self._can_fit(at, gpu_free, cores_free):
            return
        for i in range(at, len(self.pods)):
            pod = self.pods[i]
            if not self._within_budget((*victims, pod)):
                continue
            more = self._added(pod, victims)
            cores = [a + b for a, b in zip(cores_free, pod.cores, strict=True)]
            yield from self._walk(
                i + 1, gpu_free | pod.gpu_mask, cores, evicted + more, (*victims, pod)
            )

    def _added(self, pod: Resident, victims: tuple[Resident, ...]) -> float:
        """Return what one victim more loses, beside others of its PodGroup."""
        c, group = self.cluster.arrays, self.group[pod.index]
        taken = [v.index for v in victims if group >= 0 and self.group[v.index] == group]
        if not taken:
            return self.loss[pod.index]
        counted = sum(stopping_cost(c, other, self.costs) for other in taken)
        return float(beside_members(c, pod.index, len(taken), counted, self.costs))

    def _can_fit(self, at: int, gpu_free: int, cores_free: list[int]) -> bool:
        """Say whether the preemptor would fit if all the other pods went, too."""
        cores = list(cores_free)
        for pod in self.pods[at:]:
            gpu_free |= pod.gpu_mask
            cores = [a + b for a, b in zip(cores, pod.cores, strict=True)]
        return self.misalignment(gpu_free, cores) is not None

    def _within_budget(self, victims: tuple[Resident, ...]) -> bool:
        used = [pdb for victim in victims for pdb in victim.pdbs]
        return all(used.count(pdb) <= self.allowed[pdb] for pdb in set(used))


def minimum(
    cluster: ClusterState, preemptor: Pod, aligned: bool
) -> tuple[float, int, tuple[int, ...]] | None:
    """Return the least own loss of any legal decision, its node and its victims.

    Args:
        cluster: the cluster, not modified.
        preemptor: the pending pod.
        aligned: the guaranteed filter binds it.

    Returns:
        Cost in weighted GPU-seconds, node, victims; None where no victim set works. Equal costs
        go to the lower node.
    """
    best: tuple[float, int, tuple[int, ...]] | None = None
    for node in range(cluster.num_nodes):
        search = NodeSearch(cluster, node, preemptor, aligned)
        found = search.improve(float("inf") if best is None else best[0])
        if found is not None:
            best = (found[0], node, found[1])
    return best


@dataclass(frozen=True)
class Exact:
    """Take the decision of the least loss of its own among all victim sets, minimal or not."""

    name: str = "exact"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the cheapest victim set; None where there is none.

        Raises:
            FlextopoError: a gang asks, and OR-tools is missing; see `exact_gang`.
        """
        aligned = self.filter.binds(preemptor)
        if cluster.is_gang(preemptor):
            found = gang_minimum(cluster, preemptor, aligned)
            return None if found is None else cluster.gang_candidate(preemptor, *found, aligned)
        best = minimum(cluster, preemptor, aligned)
        if best is None:
            return None
        cost, node, victims = best
        legal = [cluster.candidate(node, victims, preemptor)] if victims else []
        if not victims:
            legal += [
                found
                for found in cluster.without_victims(node, preemptor)
                if not aligned or cluster.is_aligned(found, preemptor)
            ]
        best_of = min(filter(None, legal), key=lambda found: cluster.cost_of(found, preemptor))
        return replace(best_of, cost_gpu_s=cost)
