"""Draw a cluster: every GPU of every server, by socket and NUMA node, coloured by its pod."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flextopo.cluster.arrays import NOMINATED, TERMINATING
from flextopo.cluster.pods import TopologyRequirement
from flextopo.cluster.state import ClusterState

LEGEND: dict[str, tuple[str, tuple[int, int, int]]] = {
    ".": ("free", (235, 236, 240)),
    "G": ("online, guaranteed", (31, 111, 180)),
    "O": ("online, other", (120, 178, 224)),
    "n": ("nominated, waits for its victims", (102, 81, 165)),
    "m": ("batch, middle class", (217, 121, 33)),
    "b": ("batch, low class", (246, 190, 114)),
    "x": ("evicted, in its grace period", (200, 50, 60)),
}
"""Letter of a GPU's use to (meaning, RGB colour)."""

_BACKGROUND = (255, 255, 255)
_BOARD = (206, 208, 214)
_CELL, _GAP, _SOCKET_GAP, _MARGIN = 12, 2, 6, 10


def gpu_uses(state: ClusterState, node: int) -> list[str]:
    """Return the letter of each GPU of a node, see `LEGEND`."""
    c = state.arrays
    uses = ["."] * state.model(node).num_gpus
    for pod in c.node_pods[node, : c.nodes[node]["num_pods"]]:
        spec, status = c.pods[pod], c.live[pod]["status"]
        if status == NOMINATED:
            letter = "n"
        elif status == TERMINATING:
            letter = "x"
        elif spec["online"]:
            letter = "G" if spec["requirement"] == TopologyRequirement.GUARANTEED else "O"
        else:
            letter = "m" if spec["batch_class"] else "b"
        for gpu in range(len(uses)):
            if c.live[pod]["gpu_mask"] >> gpu & 1:
                uses[gpu] = letter
    return uses


def gpu_order(state: ClusterState, node: int) -> list[list[int]]:
    """Return the GPUs of each socket of a node, in NUMA-node order."""
    model = state.model(node)
    numbered = sorted(range(model.num_gpus), key=lambda gpu: (model.gpu_numa[gpu], gpu))
    return [
        [gpu for gpu in numbered if model.numa_socket[model.gpu_numa[gpu]] == socket]
        for socket in range(model.num_sockets)
    ]


def print_cluster(state: ClusterState) -> str:
    """Draw the cluster as text of at most 80 columns: a letter a GPU, `|` between sockets."""
    day, second = divmod(state.now_s, 86400)
    totals = state.arrays.totals[0]
    clock = f"{second // 3600:02d}:{second % 3600 // 60:02d}"
    free = f"free {totals['free_gpus']}/{totals['gpus']} GPUs"
    waiting = f"waiting online {totals['wait_gpus']}, batch {totals['batch_wait_gpus']} GPUs"
    lines = [f"day {day} {clock}  {free}  {waiting}"]
    cells = []
    for node in range(state.num_nodes):
        uses = gpu_uses(state, node)
        sockets = ("".join(uses[gpu] for gpu in gpus) for gpus in gpu_order(state, node))
        cells.append(f"{node:>5} {'|'.join(sockets)}")
    width = max(map(len, cells)) + 2
    columns = max(1, 80 // width)
    for at in range(0, len(cells), columns):
        lines.append("".join(cell.ljust(width) for cell in cells[at : at + columns]).rstrip())
    legend = [f"{letter} {meaning}" for letter, (meaning, _) in LEGEND.items()]
    rows = (legend[:3], legend[3:5], legend[5:])
    return "\n".join([*lines, *map(", ".join, rows)])


def draw_cluster(state: ClusterState) -> npt.NDArray[np.uint8]:
    """Draw the cluster as a picture: a tile a server, a row a socket, a cell a GPU.

    Returns:
        (H, W, 3) uint8; its size depends on the servers alone.
    """
    orders = [gpu_order(state, node) for node in range(state.num_nodes)]
    across = max(len(gpus) for order in orders for gpus in order)
    down = max(len(order) for order in orders)
    tile_w = across * (_CELL + _GAP) + _GAP + 2 * _GAP
    tile_h = down * (_CELL + _SOCKET_GAP) + _SOCKET_GAP
    columns = max(1, math.ceil(math.sqrt(state.num_nodes * tile_h / tile_w)))
    rows = math.ceil(state.num_nodes / columns)
    height = rows * (tile_h + _MARGIN) + _MARGIN
    width = columns * (tile_w + _MARGIN) + _MARGIN
    picture = np.full((height, width, 3), _BACKGROUND, np.uint8)
    for node, order in enumerate(orders):
        top = _MARGIN + node // columns * (tile_h + _MARGIN)
        left = _MARGIN + node % columns * (tile_w + _MARGIN)
        picture[top : top + tile_h, left : left + tile_w] = _BOARD
        uses = gpu_uses(state, node)
        for socket, gpus in enumerate(order):
            y = top + _SOCKET_GAP + socket * (_CELL + _SOCKET_GAP)
            for place, gpu in enumerate(gpus):
                x = left + 2 * _GAP + place * (_CELL + _GAP)
                picture[y : y + _CELL, x : x + _CELL] = LEGEND[uses[gpu]][1]
    return picture
