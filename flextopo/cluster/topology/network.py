"""The network above servers: which leaf switch and which block of leaves each server belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flextopo.cluster.errors import TopologyError, UnknownNameError
from flextopo.cluster.topology.levels import NetworkLevel

LEAVES_A_BLOCK = 4
"""Leaves of one block in presets: assumption."""

NETWORKS = {f"leaf{size}": size for size in (4, 8, 16, 32)}
"""Presets by name: servers a leaf."""


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
