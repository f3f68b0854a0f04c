"""What a selector answers, and whom its guaranteed filter binds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.levels import AlignmentLevel, NetworkLevel


class AlignmentFilter(IntEnum):
    """Whom a selector's guaranteed filter binds; fixes how its scheduler starts pods, too."""

    BLIND = 0
    OWN = 1
    ALL_GUARANTEED = 2

    def binds(self, preemptor: Pod) -> bool:
        """Say whether a filter of this kind binds the preemptor."""
        if self == AlignmentFilter.OWN:
            return preemptor.requirement == TopologyRequirement.GUARANTEED
        return self == AlignmentFilter.ALL_GUARANTEED


@dataclass(frozen=True)
class Seat:
    """The place of one member of a gang.

    Attributes:
        pod: index of the member.
        node: index of its node.
        gpu_mask: GPUs it gets, bit i = GPU i.
        cores: cores it gets from each NUMA node.
        level: its alignment level.
    """

    pod: int
    node: int
    gpu_mask: int
    cores: tuple[int, ...]
    level: AlignmentLevel


@dataclass(frozen=True)
class Candidate:
    """A node with one victim set, and what the preemptor gets there.

    For a gang: victims on all its nodes, and a seat for each member; node, GPUs and cores are those of its
    leader, the level is the worst of all.

    Attributes:
        node: index of the node.
        victims: pod indices by descending importance; empty where the pod fits already, or will fit
            once terminating pods are gone.
        gpu_mask: GPUs the preemptor gets, bit i = GPU i.
        cores: cores it gets from each NUMA node.
        level: its alignment level there.
        wait_s: until it has its place.
        seats: of the members of a gang, the leader's first; empty for a single pod.
        tier: the closest level of the network that holds them.
        cost_gpu_s: the decision's own loss in weighted GPU-seconds; NaN where nobody asked.
            Candidates are equal that do the same, whether it is known or not.
    """

    node: int
    victims: tuple[int, ...]
    gpu_mask: int
    cores: tuple[int, ...]
    level: AlignmentLevel
    cost_gpu_s: float = field(default=math.nan, compare=False)
    wait_s: int = 0
    seats: tuple[Seat, ...] = ()
    tier: NetworkLevel = NetworkLevel.SERVER
