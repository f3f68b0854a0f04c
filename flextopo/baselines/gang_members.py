"""What a rule that looks at one server does for a gang: each member by itself, the largest first.

A member takes a server where it fits beside all others, the fullest; where there is none, the rule's own
search and scores choose server and victims as for a single pod. Victims of earlier members are gone by
then, and their places are taken. The first part of the network of the required level in which all members
find a place is taken. No rule here looks at two servers at once, which is what it loses by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from flextopo.baselines.residents import (
    NodeOption,
    NodeScore,
    NodeView,
    PodStatus,
    Resident,
    Terminating,
    disruptions_left,
)
from flextopo.baselines.scores import choose
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.gang_seats import seats_on
from flextopo.cluster.state.gangs import part_end
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import is_aligned

NodeSearch = Callable[[NodeView, Pod, Sequence[int], bool], list[NodeOption]]
"""Searches one node: view, preemptor, disruptions left a budget, must it be aligned."""


class NodeRule(NamedTuple):
    """What a rule that looks at one server is made of; see `policies.PreemptionPolicy`."""

    search: NodeSearch
    scores: tuple[NodeScore, ...]
    aligned: bool
    gpu_locality: bool
    terminating: Terminating


def parts_of(cluster: ClusterState, tier: int) -> Iterator[list[int]]:
    """Yield the servers of each part of the network of a level, by block and leaf."""
    c, begin = cluster.arrays, 0
    while begin < len(c.network):
        end = int(part_end(c, tier, begin))
        yield c.network[begin:end, 0].tolist()
        begin = end


def largest_first(cluster: ClusterState, preemptor: Pod) -> list[Pod]:
    """Return the members of a gang, those of more GPUs and cores first."""
    members = [cluster.pod(member) for member in cluster.gang(preemptor)]
    return sorted(members, key=lambda pod: (-pod.gpus, -pod.cores, pod.index))


class SeatedView(NodeView):
    """A node on which members of a gang may have their places already, and whose victims are gone.

    Attributes:
        seated: members that are there, the largest first.
        gone: their victims.
    """

    def __init__(self, cluster: ClusterState, node: int, rule: NodeRule) -> None:
        super().__init__(cluster, node, rule.gpu_locality, rule.terminating)
        self.seated: list[Pod] = []
        self.gone: list[Resident] = []

    def seat(self, member: Pod, victims: Sequence[Resident]) -> None:
        """Give a member its place."""
        self.seated.append(member)
        self.gone += victims

    def evictable(self, preemptor: Pod) -> list[Resident]:
        """Return whom the preemptor may evict beside those who are gone already."""
        gone = {resident.index for resident in self.gone}
        return [r for r in super().evictable(preemptor) if r.index not in gone]

    def fits(self, preemptor: Pod, gone: Sequence[Resident], aligned: bool) -> bool:
        """Say whether all members that are there, and one more, fit without some residents."""
        if not self.seated:
            return super().fits(preemptor, gone, aligned)
        cluster, pods = self._cluster, [*self.seated, preemptor]
        slots = cluster.slots_of(self.node, [r.index for r in (*self.gone, *gone)])
        if self.terminating == Terminating.FREE:
            slots |= cluster.leaving_slots(self.node, int(cluster.costs.grace_s))
        seats = seats_on(cluster, self.node, [pod.index for pod in pods], slots)
        if seats is None or not aligned:
            return seats is not None
        best = [self._best_level(pod.gpus, pod.cores) for pod in pods]
        levels = [seats[pod.index].level for pod in pods]
        return all(b is not None and is_aligned(x, b) for x, b in zip(levels, best, strict=True))


class _Part:
    """One part of the network while members find their places, and what was found on each node."""

    def __init__(self, cluster: ClusterState, nodes: Sequence[int], rule: NodeRule) -> None:
        self.rule = rule
        self.views = {node: SeatedView(cluster, node, rule) for node in nodes}
        self.allowed = disruptions_left(cluster)
        self.seats: dict[int, int] = {}
        self.victims: list[int] = []
        self._beside: dict[tuple[int, int, int], bool] = {}
        self._found: dict[tuple[int, int, int], list[NodeOption]] = {}

    def _fits_beside(self, node: int, member: Pod) -> bool:
        key = (node, member.gpus, member.cores)
        if key not in self._beside:
            self._beside[key] = self.views[node].fits(member, (), self.rule.aligned)
        return self._beside[key]

    def _search(self, node: int, member: Pod) -> list[NodeOption]:
        key = (node, member.gpus, member.cores)
        if key not in self._found:
            view, aligned = self.views[node], self.rule.aligned
            self._found[key] = self.rule.search(view, member, self.allowed, aligned)
        return self._found[key]

    def _free_gpus(self, node: int) -> int:
        view = self.views[node]
        free = view.gpu_free.bit_count() + sum(resident.gpus for resident in view.gone)
        return free - sum(member.gpus for member in view.seated)

    def seat(self, member: Pod) -> bool:
        """Find a place for one member more; say whether there is one."""
        beside = [node for node in self.views if self._fits_beside(node, member)]
        if beside:
            self._take(min(beside, key=lambda node: (self._free_gpus(node), node)), member, ())
            return True
        options = [found for node in self.views for found in self._search(node, member)]
        best = choose(options, self.rule.scores)
        if best is None:
            return False
        self._take(best.node, member, best.victims)
        return True

    def _take(self, node: int, member: Pod, victims: Sequence[Resident]) -> None:
        self.views[node].seat(member, victims)
        self.seats[member.index] = node
        evicted = [v for v in victims if v.status != PodStatus.TERMINATING]
        self.victims += [victim.index for victim in evicted]
        for victim in evicted:
            for pdb in victim.pdbs:
                self.allowed[pdb] -= 1
        if any(victim.pdbs for victim in evicted):
            self._found.clear()
        for cache in (self._beside, self._found):
            for key in [key for key in cache if key[0] == node]:
                del cache[key]


def seat_by_member(cluster: ClusterState, preemptor: Pod, rule: NodeRule) -> Candidate | None:
    """Choose servers and victims for a gang, member by member.

    Args:
        cluster: the cluster, not modified.
        preemptor: any member.
        rule: chooses for each member.

    Returns:
        None where no part of the network of the required level takes all of them.
    """
    members = largest_first(cluster, preemptor)
    tier = int(cluster.arrays.pods[preemptor.index]["required_tier"])
    for nodes in parts_of(cluster, tier):
        part = _Part(cluster, nodes, rule)
        if not all(part.seat(member) for member in members):
            continue
        found = cluster.gang_candidate(preemptor, part.seats, part.victims)
        if found is not None and (not rule.aligned or cluster.is_aligned(found, preemptor)):
            return found
    return None
