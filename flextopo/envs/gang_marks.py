"""Which gangs are in a cluster now, and where, for pictures and text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.gang_seats import tier_over
from flextopo.cluster.state.gangs import gang_name
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.network import Network

GANG_COLOURS = (
    ((14, 132, 74), (64, 196, 124)),
    ((186, 24, 132), (246, 120, 200)),
    ((0, 128, 140), (60, 200, 210)),
    ((120, 104, 0), (204, 190, 60)),
    ((20, 22, 28), (240, 240, 244)),
)
"""Colours around the GPUs of gangs, on a light and on a dark page; by the number of the PodGroup,
which tells apart those that share a colour.
"""


@dataclass(frozen=True)
class GangMark:
    """A gang that holds GPUs.

    Attributes:
        group: number of its PodGroup.
        name: what it asks for, such as "4 x 8 GPUs".
        nodes: of its members, ascending, each once.
        level: of the network that holds them.
    """

    group: int
    name: str
    nodes: tuple[int, ...]
    level: NetworkLevel


def in_gang(state: ClusterState) -> npt.NDArray[np.bool_]:
    """Say which pods are members of a gang, (P,); without a network none is."""
    c = state.arrays
    if not len(c.network):
        return np.zeros(len(c.pods), np.bool_)
    found: npt.NDArray[np.bool_] = c.pods["next_member"] != np.arange(len(c.pods))
    found &= c.pods["online"] == 1
    return found


def gang_marks(state: ClusterState) -> list[GangMark]:
    """Return the gangs whose members are on servers, by their number."""
    c = state.arrays
    members: dict[int, list[int]] = {}
    for pod in np.flatnonzero(in_gang(state) & (c.live["node"] >= 0)).tolist():
        members.setdefault(int(c.pods[pod]["group"]), []).append(pod)
    marks = []
    for group, pods in sorted(members.items()):
        nodes = tuple(sorted({int(c.live[pod]["node"]) for pod in pods}))
        marks.append(GangMark(group, gang_name(c, pods[0]), nodes, tier_over(c.network, nodes)))
    return marks


def where(network: Network, level: NetworkLevel, node: int) -> str:
    """Say in words where a gang is, such as "within leaf 3", by its level and one of its nodes."""
    if level == NetworkLevel.SERVER:
        return f"on server {node}"
    if level == NetworkLevel.LEAF:
        return f"within {network.leaf_name(network.leaf[node])}"
    if level == NetworkLevel.BLOCK:
        return f"within {network.block_name(network.block[node])}"
    return "across blocks"
