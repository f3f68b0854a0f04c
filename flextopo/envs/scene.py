"""What a drawn cluster looks like: where every GPU is, and the colours; for pictures and pages.

A server is a tile: its number, then a row for each socket, in it the NUMA nodes, in them the GPUs.
Where a network is known, the tiles of a leaf stand in a frame with its name, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.arrays import NOMINATED, TERMINATING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.cluster.topology.model import MAX_GPUS, Fleet, ServerModel
from flextopo.cluster.topology.network import Network
from flextopo.envs.arrangement import (
    BLOCK_GAP,
    LEAF_EDGE,
    LEAF_LABEL,
    Arrangement,
    Leaf,
    arrange,
    leaves_of,
    square_columns,
)
from flextopo.envs.gang_marks import GANG_COLOURS

Colour = tuple[int, int, int]

Box = tuple[int, int, int, int]
"""Left, top, width, height."""


@dataclass(frozen=True)
class Use:
    """What a GPU may be used for.

    Attributes:
        meaning: for the legend.
        light, dark: RGB colour on a light and on a dark page.
        mark: drawn into the cell, so that colour is not all: `cross`, `ring`, or nothing.
    """

    meaning: str
    light: Colour
    dark: Colour
    mark: str = ""


LEGEND: dict[str, Use] = {
    ".": Use("free", (255, 255, 255), (12, 14, 18)),
    "G": Use("online, guaranteed", (31, 95, 168), (66, 140, 224)),
    "O": Use("online, other", (126, 180, 228), (166, 208, 245)),
    "n": Use("nominated, waits for its victims", (112, 76, 190), (172, 144, 242), "ring"),
    "m": Use("batch, middle class", (200, 102, 24), (222, 122, 44)),
    "b": Use("batch, low class", (240, 182, 108), (246, 204, 146)),
    "x": Use("evicted, in its grace period", (198, 44, 58), (229, 84, 90), "cross"),
}
"""Letter of a GPU's use to its looks."""

LETTERS = "".join(LEGEND)
"""The uses by number."""

THEMES: dict[str, dict[str, Colour]] = {
    "light": {
        "page": (250, 250, 251),
        "leaf": (228, 226, 218),
        "server": (236, 239, 243),
        "socket": (219, 224, 231),
        "numa_node": (193, 200, 211),
        "label": (84, 92, 105),
    },
    "dark": {
        "page": (18, 20, 25),
        "leaf": (46, 43, 36),
        "server": (28, 32, 39),
        "socket": (40, 46, 56),
        "numa_node": (62, 70, 84),
        "label": (158, 167, 181),
    },
}
"""Colours of what holds the GPUs."""

CELL = 12
"""Side of a GPU; all lengths are in units that a picture draws as one pixel."""

GPU_GAP, NUMA_GAP, EDGE = 1, 3, 2
SOCKET_GAP, LABEL_HEIGHT = 3, 9
TILE_GAP = 8


@dataclass(frozen=True)
class Tile:
    """One kind of server, from its top left corner.

    Attributes:
        sockets: a box each, also of those without GPUs.
        numa_nodes: a box each of those with GPUs.
        gpus: the box of GPU 0, 1, ...
    """

    sockets: tuple[Box, ...]
    numa_nodes: tuple[Box, ...]
    gpus: tuple[Box, ...]


@dataclass(frozen=True)
class Scene:
    """The drawing of a cluster: equal tiles in rows, or in the frames of leaves.

    Attributes:
        tile_width, tile_height: of every server, so that mixed clusters keep a grid.
        tiles: by server model.
        node_model: index into `tiles` of node 0, 1, ...
        gap: between tiles and around them.
        leaves: frames with their servers; none without a network.
    """

    tile_width: int
    tile_height: int
    tiles: tuple[Tile, ...]
    node_model: tuple[int, ...]
    gap: int = TILE_GAP
    leaves: tuple[Leaf, ...] = ()

    def columns(self) -> int:
        """Return how many tiles a row of a picture that is nearly square has."""
        tile = self.tile_width, self.tile_height
        return square_columns(tile, self.gap, len(self.node_model), self.leaves)

    def arrange(self, columns: int) -> Arrangement:
        """Return where all tiles and frames are with so many tiles side by side."""
        tile = self.tile_width, self.tile_height
        return arrange(tile, self.gap, len(self.node_model), self.leaves, columns)

    def origin(self, node: int, columns: int) -> tuple[int, int]:
        """Return left and top of a node's tile in a picture, which has a margin of one gap."""
        left, top = self.arrange(columns).origins[node]
        return self.gap + left, self.gap + top

    def as_dict(self) -> dict[str, Any]:
        """Return everything a page needs to draw the same, colours included."""
        drawn = {
            **asdict(self),
            "uses": [{"letter": letter, **asdict(use)} for letter, use in LEGEND.items()],
            "themes": THEMES,
        }
        if self.leaves:
            drawn["leaf_label"], drawn["leaf_edge"] = LEAF_LABEL, LEAF_EDGE
            drawn["block_gap"], drawn["gang_colours"] = BLOCK_GAP, len(GANG_COLOURS)
        return drawn


def make_scene(
    models: Sequence[ServerModel], node_model: Sequence[int], network: Network | None = None
) -> Scene:
    """Lay out a cluster of these servers."""
    sockets = [[_groups(model, s) for s in range(model.num_sockets)] for model in models]
    widths = [max(map(_row_width, rows)) for rows in sockets]
    heights = [len(rows) * (_ROW_HEIGHT + SOCKET_GAP) for rows in sockets]
    tiles = [
        _lay_out(rows, width, model.num_gpus)
        for rows, width, model in zip(sockets, widths, models, strict=True)
    ]
    return Scene(
        tile_width=max(widths) + 2 * SOCKET_GAP,
        tile_height=LABEL_HEIGHT + max(heights),
        tiles=tuple(tiles),
        node_model=tuple(map(int, node_model)),
        leaves=leaves_of(network),
    )


def fleet_scene(fleet: Fleet) -> Scene:
    """Lay out a cluster of a fleet's servers."""
    return make_scene(fleet.models, fleet.node_model, fleet.network)


_NUMA_HEIGHT = CELL + 2 * EDGE
_ROW_HEIGHT = _NUMA_HEIGHT + 2 * EDGE


def _groups(model: ServerModel, socket: int) -> list[list[int]]:
    """Return the GPUs of each NUMA node of a socket that has some."""
    nodes = [u for u, s in enumerate(model.numa_socket) if s == socket]
    groups = [[gpu for gpu, u in enumerate(model.gpu_numa) if u == node] for node in nodes]
    return [group for group in groups if group]


def _numa_width(gpus: list[int]) -> int:
    return len(gpus) * (CELL + GPU_GAP) - GPU_GAP + 2 * EDGE


def _row_width(groups: list[list[int]]) -> int:
    inner = sum(_numa_width(gpus) + NUMA_GAP for gpus in groups) - NUMA_GAP
    return max(inner, CELL) + 2 * EDGE


def _lay_out(rows: list[list[list[int]]], width: int, num_gpus: int) -> Tile:
    boxes: list[Box] = [(0, 0, 0, 0)] * num_gpus
    sockets: list[Box] = []
    numa_nodes: list[Box] = []
    for row, groups in enumerate(rows):
        x, y = SOCKET_GAP, LABEL_HEIGHT + row * (_ROW_HEIGHT + SOCKET_GAP)
        sockets.append((x, y, width, _ROW_HEIGHT))
        x += EDGE
        for gpus in groups:
            numa_nodes.append((x, y + EDGE, _numa_width(gpus), _NUMA_HEIGHT))
            for place, gpu in enumerate(gpus):
                left = x + EDGE + place * (CELL + GPU_GAP)
                boxes[gpu] = (left, y + 2 * EDGE, CELL, CELL)
            x += _numa_width(gpus) + NUMA_GAP
    return Tile(tuple(sockets), tuple(numa_nodes), tuple(boxes))


def first_gpus(state: ClusterState) -> npt.NDArray[np.int64]:
    """Return where the GPUs of node 0, 1, ... begin among all GPUs; the last entry counts them.

    Returns:
        (num_nodes + 1,) int64.
    """
    sizes = state.arrays.models["num_gpus"][state.arrays.nodes["model"]]
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def occupants(state: ClusterState) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return who holds each GPU, node by node in the order of GPU numbers, and its use.

    Returns:
        (G,) int32 pods, -1 = free; (G,) uint8 places in `LETTERS`.
    """
    c, first = state.arrays, first_gpus(state)
    holders = np.flatnonzero(c.live["node"] >= 0)
    live, spec = c.live[holders], c.pods[holders]
    use = np.where(spec["batch_class"] > 0, LETTERS.index("m"), LETTERS.index("b"))
    guaranteed = spec["requirement"] == TopologyRequirement.GUARANTEED
    online = np.where(guaranteed, LETTERS.index("G"), LETTERS.index("O"))
    use = np.where(spec["online"] == 1, online, use)
    use[live["status"] == NOMINATED] = LETTERS.index("n")
    use[live["status"] == TERMINATING] = LETTERS.index("x")
    row, gpu = np.nonzero(live["gpu_mask"][:, None] >> np.arange(MAX_GPUS) & 1)
    at = first[live["node"][row]] + gpu
    pods = np.full(first[-1], -1, np.int32)
    uses = np.zeros(first[-1], np.uint8)
    pods[at], uses[at] = holders[row], use[row]
    return pods, uses
