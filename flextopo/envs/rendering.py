"""Draw a cluster as text or as a picture: every GPU of every server, coloured by its pod."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.envs.scene import (
    LEGEND,
    LETTERS,
    THEMES,
    Box,
    Colour,
    Use,
    first_gpus,
    make_scene,
    occupants,
)

COLUMNS = 80
"""Width of a terminal."""

THEME = "light"
"""Colours of a picture."""

MIN_WIDTH = 640
"""A picture of few servers is enlarged, by a whole factor, to about this many pixels."""

_GLYPHS = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111",
    "101101111001001", "111100111001111", "111100111101111", "111001001010010",
    "111101111101111", "111101111001111",
)  # fmt: skip
"""The digits, 3 pixels wide and 5 high, row by row."""


def gpu_uses(state: ClusterState, node: int) -> list[str]:
    """Return the letter of each GPU of a node, see `LEGEND`."""
    first, uses = first_gpus(state), occupants(state)[1]
    return [LETTERS[use] for use in uses[first[node] : first[node + 1]]]


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
    first, uses = first_gpus(state), occupants(state)[1]
    for node in range(state.num_nodes):
        order = gpu_order(state, node)
        sockets = ("".join(LETTERS[uses[first[node] + gpu]] for gpu in gpus) for gpus in order)
        cells.append(f"{node:>5} {'|'.join(sockets)}")
    width = max(map(len, cells)) + 2
    across = max(1, COLUMNS // width)
    for at in range(0, len(cells), across):
        lines.append("".join(cell.ljust(width) for cell in cells[at : at + across]).rstrip())
    legend = [f"{letter} {use.meaning}" for letter, use in LEGEND.items()]
    rows = (legend[:3], legend[3:5], legend[5:])
    return "\n".join([*lines, *map(", ".join, rows)])


def draw_cluster(state: ClusterState) -> npt.NDArray[np.uint8]:
    """Draw the cluster as a picture, laid out by `make_scene`.

    Returns:
        (H, W, 3) uint8; H and W are even, as video encoders want it, and depend on the servers
        alone.
    """
    scene = make_scene(state.models, state.arrays.nodes["model"].tolist())
    theme = THEMES[THEME]
    columns = scene.columns()
    rows = math.ceil(state.num_nodes / columns)
    width = scene.gap + columns * (scene.tile_width + scene.gap)
    height = scene.gap + rows * (scene.tile_height + scene.gap)
    picture = np.full((height + height % 2, width + width % 2, 3), theme["page"], np.uint8)
    first, uses = first_gpus(state), occupants(state)[1]
    for node in range(state.num_nodes):
        left, top = scene.origin(node, columns)
        view = picture[top : top + scene.tile_height, left : left + scene.tile_width]
        view[:] = theme["server"]
        _write_number(view, node, theme["label"])
        tile = scene.tiles[scene.node_model[node]]
        for kind, boxes in (("socket", tile.sockets), ("numa_node", tile.numa_nodes)):
            for box in boxes:
                _cut(view, box)[:] = theme[kind]
        for box, use in zip(tile.gpus, uses[first[node] : first[node + 1]], strict=True):
            _draw_gpu(_cut(view, box), LEGEND[LETTERS[use]])
    factor = max(1, round(MIN_WIDTH / picture.shape[1]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def _cut(view: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    left, top, width, height = box
    return view[top : top + height, left : left + width]


def _draw_gpu(cell: npt.NDArray[np.uint8], use: Use) -> None:
    cell[:] = use.light
    paper = LEGEND["."].light
    if use.mark == "ring":
        cell[3:-3, 3:-3] = paper
    elif use.mark == "cross":
        for i in range(3, len(cell) - 3):
            for j in (i, len(cell) - 1 - i):
                cell[i, j] = paper


def _write_number(view: npt.NDArray[np.uint8], number: int, colour: Colour) -> None:
    for place, digit in enumerate(str(number)):
        glyph = np.array([bit == "1" for bit in _GLYPHS[int(digit)]]).reshape(5, 3)
        cell = view[2:7, 3 + 4 * place : 6 + 4 * place]
        cell[glyph[:, : cell.shape[1]]] = colour
