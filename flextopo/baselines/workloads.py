"""Victims as schedulers of workloads see them: whole PodGroups, and servers by counts of GPUs and cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import numpy.typing as npt

from flextopo.baselines.gang_members import largest_first
from flextopo.baselines.residents import NodeView, Resident
from flextopo.cluster.state.arrays import MAX_PODS_PER_NODE, may_evict
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import ALL_MEMBERS

Counts = npt.NDArray[np.int64]
"""By node."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What is evicted together: a pod, or all of a PodGroup that holds resources.

    Attributes:
        pods: with their nodes, in the order of their rows.
        priority: of its most important pod.
        is_group: it is a PodGroup.
    """

    pods: tuple[tuple[int, Resident], ...]
    priority: int
    is_group: bool
    nodes: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", frozenset(node for node, _ in self.pods))

    @property
    def start_s(self) -> float:
        """When the first of its pods started."""
        return min(resident.start_s for _, resident in self.pods)

    @property
    def pdbs(self) -> tuple[int, ...]:
        """The disruption budgets of all its pods, one for each that falls under it."""
        return tuple(pdb for _, resident in self.pods for pdb in resident.pdbs)

    @property
    def index(self) -> int:
        """Row of its first pod."""
        return self.pods[0][1].index


def workloads_below(
    cluster: ClusterState, preemptor: Pod, by_disruption: bool = False
) -> list[Workload]:
    """Return the workloads that a preemptor may evict, by their first pod.

    A PodGroup is one only where all of its pods that would stop may be evicted.

    Args:
        cluster: the cluster, not modified.
        preemptor: who needs room.
        by_disruption: members of a PodGroup that need not all run are each a workload of its own, as a
            `disruptionMode` of single pods has it.
    """
    c, groups = cluster.arrays, dict[int, list[tuple[int, Resident]]]()
    for node in range(cluster.num_nodes):
        for resident in NodeView(cluster, node).evictable(preemptor):
            alone = by_disruption and c.pods[resident.index]["min_members"] < ALL_MEMBERS
            key = -1 - resident.index if resident.group < 0 or alone else resident.group
            groups.setdefault(key, []).append((node, resident))
    found = []
    for key, pods in groups.items():
        pods.sort(key=lambda at: at[1].index)
        evicted = [resident.index for _, resident in pods]
        stopped = cluster.stopped_with(evicted[0], evicted)
        if key >= 0 and not all(may_evict(c, pod, preemptor.priority) for pod in stopped):
            continue
        top = max(resident.priority for _, resident in pods)
        found.append(Workload(tuple(pods), top, key >= 0))
    return sorted(found, key=lambda workload: workload.index)


class Room:
    """GPUs, cores and places for pods of each node that are free, or will be without a victim.

    Attributes:
        gpus: by node.
        cores: by node.
        places: by node.
    """

    def __init__(self, cluster: ClusterState) -> None:
        grace_s, nodes = int(cluster.costs.grace_s), range(cluster.num_nodes)
        free = [cluster.freed(node, cluster.leaving_slots(node, grace_s)) for node in nodes]
        self.gpus: Counts = np.array([gpus.bit_count() for gpus, _ in free])
        self.cores: Counts = np.array([sum(cores) for _, cores in free])
        self.places: Counts = MAX_PODS_PER_NODE - cluster.arrays.nodes["num_pods"].astype(np.int64)

    def remove(self, pods: Iterable[tuple[int, Resident]], times: int = 1) -> None:
        """Count what pods hold as free; `times` = -1 puts them back."""
        for node, resident in pods:
            self.gpus[node] += times * resident.gpus
            self.cores[node] += times * resident.num_cores

    def take(self, node: int, size: Size, times: int = 1) -> None:
        """Give members of a size their places on a node; `times` < 0 takes them away."""
        self.gpus[node] -= times * size.gpus
        self.cores[node] -= times * size.cores
        self.places[node] -= times

    def seats(self, nodes: Sequence[int], size: Size) -> Counts:
        """Return how many members of a size each of some nodes could take."""
        at = list(nodes)
        found = self.places[at]
        if size.gpus:
            found = np.minimum(found, self.gpus[at] // size.gpus)
        if size.cores:
            found = np.minimum(found, self.cores[at] // size.cores)
        return np.maximum(found, 0)


@dataclass(frozen=True)
class Size:
    """The members of a gang that ask for the same."""

    gpus: int
    cores: int
    members: tuple[int, ...]


def sizes_of(cluster: ClusterState, preemptor: Pod) -> list[Size]:
    """Return the members of a gang by what they ask for, the largest first."""
    members = largest_first(cluster, preemptor)
    return [
        Size(*asked, tuple(member.index for member in same))
        for asked, same in groupby(members, key=lambda pod: (pod.gpus, pod.cores))
    ]


def answer(
    cluster: ClusterState, preemptor: Pod, seats: Mapping[int, int], victims: Iterable[Workload]
) -> Candidate | None:
    """Return the candidate of seats and workloads; of these, pods elsewhere than there stop, too."""
    nodes = frozenset(seats.values())
    pods = [r.index for w in victims for node, r in w.pods if node in nodes]
    return cluster.gang_candidate(preemptor, seats, pods)


def emptiest_first(room: Room, nodes: Sequence[int], sizes: Sequence[Size]) -> dict[int, int]:
    """Seat members one after the other, each where most GPUs are free then; may seat only some."""
    seats: dict[int, int] = {}
    for size in sizes:
        for member in size.members:
            able = room.seats(nodes, size) > 0
            if not able.any():
                break
            free = np.where(able, room.gpus[list(nodes)], -1)
            seats[member] = int(nodes[int(np.argmax(free))])
            room.take(seats[member], size)
    for member, size in members_of(sizes):
        if member in seats:
            room.take(seats[member], size, -1)
    return seats


def members_of(sizes: Sequence[Size]) -> Iterator[tuple[int, Size]]:
    """Yield each member and its size."""
    for size in sizes:
        for member in size.members:
            yield member, size
