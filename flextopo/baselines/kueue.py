"""What Kueue does for a gang: topology-aware scheduling, and preemption of whole workloads.

References:
    kueue (August 2026), pkg/scheduler/preemption/preemption.go, `classicalPreemptions`,
    `fillBackWorkloads`; preemption/common/ordering.go, `CandidatesOrdering`;
    pkg/cache/scheduler/tas_flavor_snapshot.go, `findLevelWithFitDomains`, `findBestFitDomainBy`,
    `updateCountsToMinimumGeneric`: the profile BestFit, which holds for a required level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flextopo.baselines.gang_members import parts_of
from flextopo.baselines.policies import KUBERNETES
from flextopo.baselines.workloads import Room, Size, Workload, answer, sizes_of, workloads_below
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod

Seats = dict[int, int]


def candidates_order(workload: Workload) -> tuple[int, float, int]:
    """Return the key by which workloads are evicted: lower priority first, then the later started.

    References:
        kueue, preemption/common/ordering.go, CandidatesOrdering, for one ClusterQueue.
    """
    return workload.priority, -workload.start_s, workload.index


def fewest_domains(seats: Sequence[int], count: int) -> list[int]:
    """Return which domains take so many members: the roomiest first, the last as tight as possible.

    Args:
        seats: how many members each could take.
        count: how many there are.

    Returns:
        Places of the domains in the order in which they are filled; empty where they do not suffice.

    References:
        kueue, tas_flavor_snapshot.go, sortedDomains, updateCountsToMinimumGeneric, findBestFitDomainBy.
    """
    order = sorted(range(len(seats)), key=lambda i: (-seats[i], i))
    chosen: list[int] = []
    for at, domain in enumerate(order):
        enough = [other for other in order[at:] if seats[other] >= count]
        if enough:
            return [*chosen, min(enough, key=lambda other: seats[other])]
        chosen.append(domain)
        count -= seats[domain]
    return []


class Topology:
    """The domains of the required level, and how gangs are assigned to them.

    Attributes:
        domains: nodes of each, by block and leaf.
        of_node: domain of each node.
    """

    def __init__(self, cluster: ClusterState, preemptor: Pod) -> None:
        self.tier = int(cluster.arrays.pods[preemptor.index]["required_tier"])
        self.sizes: list[Size] = sizes_of(cluster, preemptor)
        self.room = Room(cluster)
        self.domains = list(parts_of(cluster, self.tier))
        self.of_node = {node: at for at, nodes in enumerate(self.domains) for node in nodes}
        self._below = {tier: list(parts_of(cluster, tier)) for tier in range(self.tier)}

    def assign(self, among: Iterable[int]) -> Seats | None:
        """Assign the gang to one of some domains, the tightest that takes it; None where none does."""
        first = self.sizes[0]
        room = [(int(self.room.seats(self.domains[at], first).sum()), at) for at in among]
        for free, at in sorted(room):
            if free >= len(first.members):
                found = self._within(self.domains[at])
                if found is not None:
                    return found
        return None

    def _within(self, nodes: list[int]) -> Seats | None:
        seats: Seats = {}
        taken: list[tuple[int, Size]] = []
        for size in self.sizes:
            left = list(size.members)
            for node in self._descend(nodes, size):
                free = int(self.room.seats([node], size)[0])
                for member in left[:free]:
                    seats[member] = node
                    self.room.take(node, size)
                    taken.append((node, size))
                left = left[free:]
        for node, size in taken:
            self.room.take(node, size, -1)
        return seats if len(seats) == sum(len(size.members) for size in self.sizes) else None

    def _descend(self, nodes: list[int], size: Size) -> list[int]:
        """Return the nodes to fill: level by level, as few domains as can be."""
        chosen = [nodes]
        for tier in range(self.tier - 1, -1, -1):
            parts = [part for above in chosen for part in self._parts(tier, above)]
            seats = [int(self.room.seats(part, size).sum()) for part in parts]
            chosen = [parts[at] for at in fewest_domains(seats, len(size.members))]
        return [node for part in chosen for node in part]

    def _parts(self, tier: int, nodes: list[int]) -> list[list[int]]:
        inside = set(nodes)
        return [part for part in self._below[tier] if part[0] in inside]


def minimal_preemptions(
    topology: Topology, candidates: Sequence[Workload]
) -> tuple[Seats, list[Workload]] | None:
    """Evict workloads in their order until the gang fits somewhere, then take back whom it can.

    Args:
        topology: domains and what is free; afterwards without the victims.
        candidates: in the order in which they are evicted, from the whole cluster.

    Returns:
        Seats and victims; None where evicting all is not enough.

    References:
        kueue, preemption.go, classicalPreemptions and fillBackWorkloads: the last one evicted stays so,
        and the others are tried in reverse.
    """
    room, everywhere = topology.room, range(len(topology.domains))
    seats, victims = topology.assign(everywhere), list[Workload]()
    if seats is not None:
        return seats, []
    for workload in candidates:
        room.remove(workload.pods)
        victims.append(workload)
        touched = sorted({topology.of_node[node] for node in workload.nodes})
        seats = topology.assign(touched)
        if seats is not None:
            break
    if seats is None:
        return None
    for workload in victims[-2::-1]:
        room.remove(workload.pods, -1)
        if topology.assign(everywhere) is None:
            room.remove(workload.pods)
        else:
            victims.remove(workload)
    found = topology.assign(everywhere)
    return None if found is None else (found, victims)


@dataclass(frozen=True)
class Kueue:
    """Preempt as Kueue does in one queue, with the level of the network that the gang requires.

    Disruption budgets do not bind Kueue. Prefill and decode go to one domain. What is leaving counts as
    free. A single pod is decided as `kubernetes` does.
    """

    name: str = "kueue"
    filter: AlignmentFilter = AlignmentFilter.BLIND

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose victims; None where no domain takes the gang."""
        if not cluster.is_gang(preemptor):
            return KUBERNETES.select(cluster, preemptor)
        candidates = sorted(workloads_below(cluster, preemptor), key=candidates_order)
        found = minimal_preemptions(Topology(cluster, preemptor), candidates)
        return None if found is None else answer(cluster, preemptor, *found)
