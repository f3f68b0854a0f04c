"""Where the servers of a cluster stand in a drawing: in a grid, or leaf by leaf and block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.topology.network import Network

LEAF_LABEL, LEAF_EDGE = 10, 4
"""Height of a leaf's name, and what its frame keeps from its servers."""

BLOCK_GAP = 8
"""Between blocks, beside the gap between leaves."""


@dataclass(frozen=True)
class Leaf:
    """A leaf switch or rack as it is drawn: a frame with a name.

    Attributes:
        name: of the leaf.
        block: name of its block.
        nodes: indices of its servers.
    """

    name: str
    block: str
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Arrangement:
    """Where everything is, in units of the scene, without a margin around it.

    Attributes:
        origins: left and top of the tile of node 0, 1, ...
        frames: left, top, width, height of each leaf's frame.
        width, height: of all.
    """

    origins: tuple[tuple[int, int], ...]
    frames: tuple[tuple[int, int, int, int], ...]
    width: int
    height: int


def state_network(state: ClusterState) -> Network | None:
    """Return the network of a state's servers, None where none is known.

    Names are those that its simulator knows; a snapshot's leaves and blocks are numbered.
    """
    table = state.arrays.network
    if not len(table):
        return None
    known: Network | None = None if state.simulator is None else state.simulator.network
    if known is not None:
        return known
    return Network(tuple(table[:, 1].tolist()), tuple(table[:, 2].tolist()))


def leaves_of(network: Network | None) -> tuple[Leaf, ...]:
    """Return the leaves of a network, those of a block next to each other; none without a network."""
    if network is None:
        return ()
    nodes: dict[tuple[int, int], list[int]] = {}
    for node, place in enumerate(zip(network.block, network.leaf, strict=True)):
        nodes.setdefault(place, []).append(node)
    return tuple(
        Leaf(network.leaf_name(leaf), network.block_name(block), tuple(nodes[block, leaf]))
        for block, leaf in sorted(nodes)
    )


def square_columns(tile: tuple[int, int], gap: int, num_nodes: int, leaves: Sequence[Leaf]) -> int:
    """Return how many servers side by side make a drawing that is nearly square.

    Args:
        tile: width and height of a server.
        gap: between servers.
        num_nodes: in all.
        leaves: kept whole, side by side, or folded evenly where one is wider than that.
    """
    shape = (tile[1] + gap) / (tile[0] + gap)
    columns = max(1, math.ceil(math.sqrt(num_nodes * shape)))
    if not leaves:
        return columns
    widest = max(len(leaf.nodes) for leaf in leaves)
    if widest >= columns:
        return _folded(widest, columns)
    return widest * max(1, round(columns / widest))


def arrange(
    tile: tuple[int, int], gap: int, num_nodes: int, leaves: Sequence[Leaf], columns: int
) -> Arrangement:
    """Arrange servers, `columns` side by side; the page's script does it in the same way.

    Args:
        tile: width and height of a server.
        gap: between servers, and between frames.
        num_nodes: in all.
        leaves: a frame each, every block on rows of its own; a grid where there are none.
        columns: servers side by side; leaves stand side by side if there is room.
    """
    wide, high = tile[0] + gap, tile[1] + gap
    if not leaves:
        places = [divmod(node, columns) for node in range(num_nodes)]
        origins = tuple((column * wide, row * high) for row, column in places)
        rows = math.ceil(num_nodes / columns)
        return Arrangement(origins, (), columns * wide - gap, rows * high - gap)
    folded = _folded(max(len(leaf.nodes) for leaf in leaves), columns)
    across = max(1, columns // folded)
    frame_width = 2 * LEAF_EDGE + folded * wide - gap
    found: dict[int, tuple[int, int]] = {}
    frames: list[tuple[int, int, int, int]] = []
    x = top = highest = 0
    for i, leaf in enumerate(leaves):
        new_block = i > 0 and leaf.block != leaves[i - 1].block
        if x == across or new_block:
            x, top = 0, top + highest + gap + (BLOCK_GAP if new_block else 0)
            highest = 0
        left = x * (frame_width + gap)
        for at, node in enumerate(leaf.nodes):
            row, column = divmod(at, folded)
            found[node] = left + LEAF_EDGE + column * wide, top + LEAF_LABEL + row * high
        height = LEAF_LABEL + math.ceil(len(leaf.nodes) / folded) * high - gap + LEAF_EDGE
        frames.append((left, top, frame_width, height))
        highest, x = max(highest, height), x + 1
    width = max(frame[0] for frame in frames) + frame_width
    ordered = tuple(found[node] for node in range(num_nodes))
    return Arrangement(ordered, tuple(frames), width, top + highest)


def _folded(servers: int, columns: int) -> int:
    """Return the width of a leaf in servers, where it is folded into equal rows if it is too wide."""
    return math.ceil(servers / math.ceil(servers / columns))
