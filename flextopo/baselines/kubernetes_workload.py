"""What kube-scheduler does for a gang: preemption by workload, in one domain of the network.

References:
    KEP-5710, workload-aware preemption (beta in Kubernetes 1.37, off unless asked for), "Preemption
    algorithm" and "In place victim reprieval"; kubernetes master of 1.37,
    pkg/scheduler/framework/preemption/podgrouppreemption.go, `selectVictimsOnDomain`,
    `moreImportantVictim`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flextopo.baselines.gang_members import parts_of
from flextopo.baselines.policies import KUBERNETES
from flextopo.baselines.residents import Resident, disruptions_left
from flextopo.baselines.scores import KUBERNETES_SCORES, Option, choose
from flextopo.baselines.search import reprieve, split_by_budget
from flextopo.baselines.workloads import (
    Room,
    Size,
    Workload,
    answer,
    emptiest_first,
    members_of,
    sizes_of,
    workloads_below,
)
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod


def importance(workload: Workload) -> tuple[int, bool, int, float, int]:
    """Return the key that sorts workloads by descending importance.

    Priority; PodGroups before pods; the larger PodGroup; the earlier start. What its eviction throws away
    does not count.

    References:
        kubernetes 1.37, podgrouppreemption.go, moreImportantVictim; the last tie there is unordered.
    """
    size = len(workload.pods) if workload.is_group else 0
    return (
        -workload.priority,
        not workload.is_group,
        -size,
        workload.start_s,
        workload.index,
    )


@dataclass(frozen=True, kw_only=True)
class _Placement(Option[Resident]):
    """A gang in one domain: seats, and the workloads that go."""

    seats: dict[int, int]
    workloads: list[Workload]


def select_victims(
    room: Room,
    nodes: Sequence[int],
    sizes: Sequence[Size],
    workloads: Sequence[Workload],
    allowed: Sequence[int],
) -> tuple[dict[int, int], list[Workload], int] | None:
    """Choose the seats of a gang in a domain, and the workloads that go.

    All workloads of the domain are removed; members are placed once, each on the emptiest node; then,
    with the members where they are, each workload is put back that need not go: first those whose
    eviction violates a disruption budget, then the others, the most important first.

    Args:
        room: what is free, not modified when this returns.
        nodes: the domain.
        sizes: members by what they ask for.
        workloads: those with pods there, by descending importance.
        allowed: what each disruption budget has left.

    Returns:
        Seats, victims, and how many of them violate a budget; None where the gang does not fit.

    References:
        kubernetes 1.37, podgrouppreemption.go, selectVictimsOnDomain.
    """
    pods = [at for workload in workloads for at in workload.pods]
    room.remove(pods)
    seats = emptiest_first(room, nodes, sizes)
    room.remove(pods, -1)
    if len(seats) < sum(len(size.members) for size in sizes):
        return None
    taken = frozenset(seats.values())
    violating, _ = split_by_budget(workloads, allowed)
    over = set(map(id, violating))
    here = [workload for workload in workloads if workload.nodes & taken]  # the others stay anyway

    def fits(gone: Sequence[Workload]) -> bool:
        freed = [at for workload in gone for at in workload.pods]
        room.remove(freed)
        for member, size in members_of(sizes):
            room.take(seats[member], size)
        enough = all(
            min(room.gpus[node], room.cores[node], room.places[node]) >= 0 for node in taken
        )
        for member, size in members_of(sizes):
            room.take(seats[member], size, -1)
        room.remove(freed, -1)
        return enough

    victims = reprieve(here, fits, [workload for workload in here if id(workload) in over])
    if victims is None:
        return None
    return seats, victims, sum(id(workload) in over for workload in victims)


@dataclass(frozen=True)
class KubernetesWorkload:
    """Preempt by workload in each domain of the required level; take the best as Kubernetes takes a node.

    Kubernetes 1.37 itself knows the whole cluster only, or what its topology-aware scheduling proposes as
    the best placement; KEP-5710 leaves open how several are scored but by the functions for nodes, made
    general. What is leaving counts as free. A single pod is decided as `kubernetes` does.
    """

    name: str = "kubernetes-workload"
    filter: AlignmentFilter = AlignmentFilter.BLIND

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose victims; None where no domain takes the gang."""
        if not cluster.is_gang(preemptor):
            return KUBERNETES.select(cluster, preemptor)
        tier = int(cluster.arrays.pods[preemptor.index]["required_tier"])
        room, sizes = Room(cluster), sizes_of(cluster, preemptor)
        workloads = sorted(workloads_below(cluster, preemptor, by_disruption=True), key=importance)
        allowed, placements = disruptions_left(cluster), list[_Placement]()
        for rank, nodes in enumerate(parts_of(cluster, tier)):
            domain = frozenset(nodes)
            there = [workload for workload in workloads if workload.nodes & domain]
            found = select_victims(room, nodes, sizes, there, allowed)
            if found is None:
                continue
            seats, victims, violations = found
            pods = [resident for workload in victims for _, resident in workload.pods]
            placements.append(
                _Placement(
                    node=rank,
                    victims=pods,
                    pdb_violations=violations,
                    seats=seats,
                    workloads=victims,
                )
            )
        best = choose(placements, KUBERNETES_SCORES)
        return None if best is None else answer(cluster, preemptor, best.seats, best.workloads)
