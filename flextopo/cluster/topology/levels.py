"""Alignment levels as data: their order, names, prices, and the domains of a server at each.

Everything that asks how well a pod sits reads the two tables here. The kernels keep a copy that is
compiled for speed (`model.MODEL_DTYPE`), and are tested against these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple


class AlignmentLevel(IntEnum):
    """Smallest hardware domain that holds all GPUs and cores of a pod; lower is better."""

    ISLAND = 0
    NUMA = 1
    SOCKET = 2
    CROSS_SOCKET = 3


class Level(NamedTuple):
    """What is said of an alignment level.

    Fields: `name` in one word, for tables; `label` in a sentence: "placed on ..."; `aligned`, the
    guaranteed filter accepts it on every server, not only where nothing better exists; `speed`, the
    field of `Sensitivity` with the speed of a pod here that a better level could hold, empty for
    the best level; `below`, how far that is below the best, 0 to 1, as networks see it; `points`
    out of 10 that a node gets there from the extender; `for_gpus`, only pods with GPUs sit there.
    """

    name: str
    label: str
    aligned: bool
    speed: str
    below: float
    points: int
    for_gpus: bool = False


LEVELS: dict[AlignmentLevel, Level] = {
    AlignmentLevel.ISLAND: Level(
        "island", "one PCIe switch or NVLink island", True, "", 0.0, 10, for_gpus=True
    ),
    AlignmentLevel.NUMA: Level("NUMA", "one NUMA node", True, "off_island", 0.25, 8),
    AlignmentLevel.SOCKET: Level("socket", "one socket", True, "off_numa", 0.5, 5),
    AlignmentLevel.CROSS_SOCKET: Level("cross", "several sockets", False, "off_socket", 1.0, 0),
}
"""Every level from the best to the worst. A pod at the best level that a server can give it counts
as perfectly placed, whichever that is."""

NUM_LEVELS = len(LEVELS)
NO_FIT = NUM_LEVELS
"""Where a pod fits at no level."""

ISLAND, NUMA, SOCKET, CROSS_SOCKET = (int(level) for level in AlignmentLevel)
"""The levels as plain integers for the kernels."""

LAST_ALIGNED = int(max(level for level, about in LEVELS.items() if about.aligned))
"""The widest domain that the guaranteed filter accepts on every server."""

BELOW = tuple(about.below for about in LEVELS.values())
"""`Level.below` by deficit."""

POINTS = tuple(about.points for about in LEVELS.values())
"""`Level.points` by deficit; the first are also those of a node that gives its best."""


class Domain(NamedTuple):
    """A part of a server that holds a pod at some level.

    Fields: `level`; `gpu_mask`, bit i = GPU i; `numa_nodes`, whose cores a pod there may use.
    """

    level: AlignmentLevel
    gpu_mask: int
    numa_nodes: tuple[int, ...]

    @property
    def numa_mask(self) -> int:
        """Return the NUMA nodes as a mask, bit u = NUMA node u."""
        return sum(1 << u for u in self.numa_nodes)

    def holds(self, gpu_free: int, cores_free: Sequence[int], gpus: int, cores: int) -> bool:
        """Say whether free GPUs (a mask) and cores (a NUMA node) of the domain suffice."""
        return (
            (gpu_free & self.gpu_mask).bit_count() >= gpus
            and sum([cores_free[u] for u in self.numa_nodes]) >= cores
            and (gpus > 0 or not LEVELS[self.level].for_gpus)
        )


def server_domains(
    gpu_numa: Sequence[int], numa_socket: Sequence[int], gpu_island: Sequence[int] = ()
) -> tuple[Domain, ...]:
    """Return every domain of a server, the best level first, by number at each level.

    Args:
        gpu_numa: NUMA node of each GPU.
        numa_socket: socket of each NUMA node.
        gpu_island: island of each GPU, each on one NUMA node; empty = the server has none.
    """
    everywhere = range(len(numa_socket))

    def gpus_on(numa_nodes: Iterable[int]) -> int:
        return sum(1 << gpu for gpu, u in enumerate(gpu_numa) if u in numa_nodes)

    found: list[Domain] = []
    for island in sorted(set(gpu_island)):
        members = [gpu for gpu, other in enumerate(gpu_island) if other == island]
        mask = sum(1 << gpu for gpu in members)
        found.append(Domain(AlignmentLevel.ISLAND, mask, (gpu_numa[members[0]],)))
    for u in everywhere:
        found.append(Domain(AlignmentLevel.NUMA, gpus_on((u,)), (u,)))
    for socket in sorted(set(numa_socket)):
        inside = tuple(u for u in everywhere if numa_socket[u] == socket)
        found.append(Domain(AlignmentLevel.SOCKET, gpus_on(inside), inside))
    found.append(Domain(AlignmentLevel.CROSS_SOCKET, gpus_on(everywhere), tuple(everywhere)))
    return tuple(found)


def level_of(
    domains: Iterable[Domain], gpu_free: int, cores_free: Sequence[int], gpus: int, cores: int
) -> AlignmentLevel | None:
    """Return the best level that free resources give a pod, None if it does not fit.

    The ladder of the paper's guaranteed filter, over GPUs and cores together.

    Args:
        domains: of the server, the best level first.
        gpu_free: mask of free GPUs.
        cores_free: free cores of each NUMA node.
        gpus: GPUs asked for.
        cores: cores asked for.
    """
    for domain in domains:
        if domain.holds(gpu_free, cores_free, gpus, cores):
            return domain.level
    return None


def level_deficit(level: int, best: int) -> int:
    """Return 0 for the best possible level, else the number of the level, which prices it."""
    return 0 if level <= best else int(level)


def is_aligned(level: int, best: int) -> bool:
    """Say whether the guaranteed filter accepts a level where `best` is the best there is."""
    return level <= LAST_ALIGNED or level == best


class NetworkLevel(IntEnum):
    """Smallest part of the network that holds all servers of a gang; lower is better."""

    SERVER = 0
    LEAF = 1
    BLOCK = 2
    CLUSTER = 3


class Tier(NamedTuple):
    """What is said of a level of the network.

    Fields: `name` in one word; `label` in a sentence: "within ..."; `speed`, the field of
    `Sensitivity` with the speed of a gang that is no closer together though it could be, empty where
    nothing is lost; `keys`, labels of nodes that say which one a node belongs to. Leaf and block keys
    in the same place go together, and the last block key stands in where a node has no other.
    """

    name: str
    label: str
    speed: str
    keys: tuple[str, ...]


TIERS: dict[NetworkLevel, Tier] = {
    NetworkLevel.SERVER: Tier("server", "one server", "", ("kubernetes.io/hostname",)),
    NetworkLevel.LEAF: Tier(
        "leaf", "one leaf switch or rack", "",
        (
            "cloud.provider.com/topology-rack", "fabric.topograph.run/tier-0",
            "network.topology.nvidia.com/leaf", "cloud.google.com/gce-topology-subblock",
            "topology.k8s.aws/network-node-layer-4", "topology.k8s.aws/network-node-layer-3",
            "ib.coreweave.cloud/leafgroup",
        ),
    ),
    NetworkLevel.BLOCK: Tier(
        "block", "one block of leaves", "off_leaf",
        (
            "cloud.provider.com/topology-block", "fabric.topograph.run/tier-1",
            "network.topology.nvidia.com/spine", "cloud.google.com/gce-topology-block",
            "topology.k8s.aws/network-node-layer-3", "topology.k8s.aws/network-node-layer-2",
            "ib.coreweave.cloud/superpod",
            "topology.kubernetes.io/zone",
        ),
    ),
    NetworkLevel.CLUSTER: Tier("cluster", "the cluster", "off_block", ()),
}  # fmt: skip
"""Every level of the network from the closest to the widest. Gangs are not slower on one leaf than on
one server: what is lost inside a server has its own table.

References:
    Kueue, concepts/topology_aware_scheduling (racks are named within their block);
    docs.nvidia.com/topograph, node labels and annotations (`fabric.topograph.run` since 1.0, tier 0 next
    to the node; `network.topology.nvidia.com` before); Google Cloud, schedule GKE workloads with
    topology-aware scheduling; Amazon EKS, ml-workload-topology (layer 1 is the top, layer 4 only on
    some instances); CoreWeave, InfiniBand labels; Kubernetes, well-known labels (a zone, and no rack).
"""

SERVER, LEAF, BLOCK, CLUSTER = (int(level) for level in NetworkLevel)
"""The same as plain integers for the kernels."""

NUM_DEFICITS = NUM_LEVELS + len([tier for tier in TIERS.values() if tier.speed])
"""Ways to sit badly: the levels inside a server, then those of the network that cost speed."""


def tier_row(tier: int) -> int:
    """Return the number among the deficits of a gang that is spread over a level of the network."""
    return NUM_LEVELS + tier - BLOCK


def tier_deficit(level: int, best: int) -> int:
    """Return 0 up to the level that a gang is content with, else the level, which prices it."""
    return 0 if level <= best else int(level)
