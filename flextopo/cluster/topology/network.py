"""The network above servers: which leaf switch and which block of leaves each server belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flextopo.cluster.errors import TopologyError, UnknownNameError
from flextopo.cluster.topology.levels import NetworkLevel

MAX_SERVERS = 100_000
"""The largest public GPU clusters have some ten thousand nodes."""

LEAVES_A_BLOCK = 4
"""Leaves of one block in presets: assumption."""

NETWORKS = {f"leaf{size}": size for size in (4, 8, 16, 32)}
"""Presets by name: servers a leaf."""

Labels = Mapping[str, str]
"""Labels of a node."""


@dataclass(frozen=True)
class Network:
    """Where each server hangs; levels are `NetworkLevel`s.

    Attributes:
        leaf: number of the leaf of server 0, 1, ..., dense from 0.
        block: number of its block, dense from 0; a leaf belongs to one block.
        leaf_names: names of the leaves; empty = "leaf 0", ...
        block_names: names of the blocks; empty = "block 0", ...
    """

    leaf: tuple[int, ...]
    block: tuple[int, ...]
    leaf_names: tuple[str, ...] = ()
    block_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.leaf) != len(self.block):
            raise TopologyError(
                f"network: leaves of {len(self.leaf)} servers, blocks of {len(self.block)}; "
                "legal: one of each a server"
            )
        for what, numbers, names in (
            ("leaf", self.leaf, self.leaf_names),
            ("block", self.block, self.block_names),
        ):
            count = len(set(numbers))
            if sorted(set(numbers)) != list(range(count)):
                raise TopologyError(f"network: {what} numbers {sorted(set(numbers))}; legal: dense")
            if names and len(names) != count:
                raise TopologyError(f"network: {len(names)} {what} names; legal: {count}")
        above: dict[int, int] = {}
        for leaf, block in zip(self.leaf, self.block, strict=True):
            if above.setdefault(leaf, block) != block:
                raise TopologyError(
                    f"network: {self.leaf_name(leaf)} is in {self.block_name(above[leaf])} and in "
                    f"{self.block_name(block)}; legal: in one block"
                )

    @property
    def num_leaves(self) -> int:
        return max(self.leaf) + 1

    @property
    def num_blocks(self) -> int:
        return max(self.block) + 1

    def leaf_name(self, leaf: int) -> str:
        """Return what a leaf is called."""
        return self.leaf_names[leaf] if self.leaf_names else f"leaf {leaf}"

    def block_name(self, block: int) -> str:
        """Return what a block is called."""
        return self.block_names[block] if self.block_names else f"block {block}"

    def level_of(self, nodes: Sequence[int]) -> NetworkLevel:
        """Return the level of the smallest part of the network that holds some servers."""
        if len(set(nodes)) <= 1:
            return NetworkLevel.SERVER
        if len({self.leaf[node] for node in nodes}) == 1:
            return NetworkLevel.LEAF
        if len({self.block[node] for node in nodes}) == 1:
            return NetworkLevel.BLOCK
        return NetworkLevel.CLUSTER


def even_network(
    servers: int, servers_a_leaf: int, leaves_a_block: int = LEAVES_A_BLOCK
) -> Network:
    """Return a network whose leaves hold equally many servers, the last perhaps fewer."""
    leaf = tuple(node // servers_a_leaf for node in range(servers))
    return Network(leaf, tuple(number // leaves_a_block for number in leaf))


def network_preset(name: str, servers: int) -> Network:
    """Return the preset network of that name over some servers.

    Raises:
        UnknownNameError: there is no such preset.
    """
    if name not in NETWORKS:
        raise UnknownNameError("network", name, list(NETWORKS))
    return even_network(servers, NETWORKS[name])


class Place(NamedTuple):
    """Where a node hangs; "" = nobody says, for the node's name, too."""

    node: str
    leaf: str
    block: str


def check_count(count: int, what: str, source: str) -> None:
    """Raise where a file has more of something than the largest cluster has servers.

    Raises:
        TopologyError: it has.
    """
    if count > MAX_SERVERS:
        raise TopologyError(f"{source}: more than {MAX_SERVERS} {what}; legal: up to {MAX_SERVERS}")


def network_of(places: Sequence[Place], source: str) -> tuple[Network, list[str]]:
    """Make a network of the places of nodes; leaves and blocks are numbered in their order.

    Args:
        places: one a node, one at least.
        source: whose, for warnings.

    Returns:
        The network, and one warning for each assumption: a node without a leaf is a leaf of its own,
        and a leaf without a block, where others have one, a block of its own.
    """
    some_block = any(place.block for place in places)
    leaves: dict[tuple[str, str, str], int] = {}
    blocks: dict[tuple[str, ...], int] = {}
    leaf_names: list[str] = []
    block_names: list[str] = []
    leaf_of, block_of = [], []
    for node, leaf, block in places:
        # Who has no leaf is told by its own name, which another leaf may have, too.
        key = (block, leaf, "" if leaf else node)
        above = (block,) if block or not some_block else key
        if key not in leaves:
            leaf_names.append(leaf or node)
        if above not in blocks:
            block_names.append(block or leaf or node)
        leaf_of.append(leaves.setdefault(key, len(leaves)))
        block_of.append(blocks.setdefault(above, len(blocks)))
    names = tuple(block_names) if some_block else ()
    network = Network(tuple(leaf_of), tuple(block_of), tuple(leaf_names), names)
    without_leaf = [place.node for place in places if not place.leaf]
    without_block = [place.node for place in places if some_block and not place.block]
    warnings = [
        _assumed(source, found, len(places), what)
        for found, what in ((without_leaf, "leaf"), (without_block, "block"))
        if found
    ]
    return network, warnings


def _assumed(source: str, nodes: Sequence[str], count: int, what: str) -> str:
    named = ", ".join(nodes[:3]) + (", ..." if len(nodes) > 3 else "")
    alone = "each is one of its own" if what == "leaf" else "each of their leaves is one of its own"
    return f"{source}: {len(nodes)} of {count} nodes have no {what} ({named}); {alone}"
