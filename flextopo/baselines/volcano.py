"""What Volcano does for a gang: node by node, and not at all where it requires a part of the network.

References:
    volcano (August 2026), pkg/scheduler/actions/preempt/preempt.go, `Execute` (jobs with a network
    topology are skipped, issue 4374), `normalPreempt`; framework/session_plugins.go,
    `BuildVictimsPriorityQueue`; the chart's volcano-scheduler.conf (gang: enablePreemptable false).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flextopo.baselines.gang_members import parts_of
from flextopo.baselines.policies import KUBERNETES
from flextopo.baselines.residents import NodeView, Resident
from flextopo.baselines.workloads import Room, Size, emptiest_first, members_of, sizes_of
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import CLUSTER


def victims_order(resident: Resident) -> tuple[int, float, int]:
    """Return the key by which a node's pods are evicted: lower priority first, then the later started.

    References:
        volcano, session_plugins.go, BuildVictimsPriorityQueue: the job order reversed, then the tasks'.
    """
    return resident.priority, -resident.start_s, -resident.index


def preempt_on(
    room: Room, node: int, size: Size, residents: Sequence[Resident]
) -> list[Resident] | None:
    """Evict pods of a node in their order until a member fits; none is put back.

    Args:
        room: what is free; without the victims afterwards, if the member fits.
        node: index of the node.
        size: what the member asks for.
        residents: who may be evicted, in their order.

    Returns:
        Victims; None where evicting all is not enough.

    References:
        volcano, preempt.go, normalPreempt.
    """
    victims: list[Resident] = []
    for resident in [None, *residents]:
        if resident is not None:
            room.remove([(node, resident)])
            victims.append(resident)
        if room.seats([node], size)[0] > 0:
            return victims
    room.remove([(node, resident) for resident in victims], -1)
    return None


@dataclass(frozen=True)
class Volcano:
    """Preempt as Volcano's action does: for each member, the first node that works in node order.

    A gang that requires less than the whole cluster gets a place only where it fits beside all others.
    Nodes with more free GPUs come first: the sum of the scores by `nodeorder` (least allocated) and
    `binpack` is the same for all nodes with room, and greater than those without. Disruption budgets are
    those of a plugin that is off. What is leaving counts as free. A single pod is decided as `kubernetes`
    does.
    """

    name: str = "volcano"
    filter: AlignmentFilter = AlignmentFilter.BLIND

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose victims; None where a member finds no node, or a part of the network is required."""
        if not cluster.is_gang(preemptor):
            return KUBERNETES.select(cluster, preemptor)
        tier = int(cluster.arrays.pods[preemptor.index]["required_tier"])
        room, sizes = Room(cluster), sizes_of(cluster, preemptor)
        for nodes in parts_of(cluster, tier):
            seats = emptiest_first(room, nodes, sizes)
            if len(seats) == len(cluster.gang(preemptor)):
                return cluster.gang_candidate(preemptor, seats, ())
        if tier < CLUSTER:
            return None
        return self._node_by_node(cluster, preemptor, room, sizes)

    def _node_by_node(
        self, cluster: ClusterState, preemptor: Pod, room: Room, sizes: Sequence[Size]
    ) -> Candidate | None:
        seats: dict[int, int] = {}
        victims: list[int] = []
        for member, size in sorted(members_of(sizes), key=lambda pair: pair[0]):
            nodes = range(cluster.num_nodes)
            for node in sorted(nodes, key=lambda at: (-int(room.gpus[at]), at)):
                residents = [
                    resident
                    for resident in NodeView(cluster, node).evictable(preemptor)
                    if resident.index not in victims
                ]
                gone = preempt_on(room, node, size, sorted(residents, key=victims_order))
                if gone is not None:
                    room.take(node, size)
                    seats[member] = node
                    victims += [resident.index for resident in gone]
                    break
            if member not in seats:
                return None
        return cluster.gang_candidate(preemptor, seats, victims)
