"""Draw a cluster as text or as a picture: every GPU of every server, coloured by its pod."""

from __future__ import annotations

import textwrap

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.topology.network import Network
from flextopo.envs.arrangement import LEAF_EDGE, leaves_of, state_network
from flextopo.envs.gang_marks import GANG_COLOURS, gang_marks, in_gang, where
from flextopo.envs.glyphs import ADVANCE, HEIGHT, glyph
from flextopo.envs.scene import (
    LEGEND,
    LETTERS,
    THEMES,
    Box,
    Colour,
    Scene,
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
    """Draw the cluster as text of at most 80 columns: a letter a GPU, `|` between sockets.

    Where a network is known, the servers stand below the names of their leaves and blocks, and the gangs
    that hold GPUs are listed.
    """
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
    network = state_network(state)
    for name, nodes in _text_parts(state, network):
        lines += [name] if name else []
        listed = [cells[node] for node in nodes]
        for at in range(0, len(listed), across):
            lines.append("".join(cell.ljust(width) for cell in listed[at : at + across]).rstrip())
    if network is not None:
        lines += _text_gangs(state, network)
    legend = [f"{letter} {use.meaning}" for letter, use in LEGEND.items()]
    rows = (legend[:3], legend[3:5], legend[5:])
    return "\n".join([*lines, *map(", ".join, rows)])


def _text_parts(state: ClusterState, network: Network | None) -> list[tuple[str, list[int]]]:
    """Return the heading of each leaf and its servers; all servers without a heading if there are none."""
    leaves = leaves_of(network)
    if not leaves:
        return [("", list(range(state.num_nodes)))]
    named = [(f"{leaf.block}, {leaf.name}", list(leaf.nodes)) for leaf in leaves]
    return [(name[:COLUMNS], nodes) for name, nodes in named]


def _text_gangs(state: ClusterState, network: Network) -> list[str]:
    lines: list[str] = []
    for mark in gang_marks(state):
        place = where(network, mark.level, mark.nodes[0])
        nodes = " ".join(map(str, mark.nodes))
        text = f"gang {mark.group}: {mark.name} {place}, nodes {nodes}"
        lines += textwrap.wrap(text, COLUMNS, subsequent_indent="  ")
    return lines


def draw_cluster(state: ClusterState) -> npt.NDArray[np.uint8]:
    """Draw the cluster as a picture, laid out by `make_scene`.

    Where a network is known, leaves have frames and names, and the GPUs of gangs an edge in a colour of
    their own, with the number of the gang above them.

    Returns:
        (H, W, 3) uint8; H and W are even, as video encoders want it, and depend on the servers
        alone.
    """
    nodes = state.arrays.nodes["model"].tolist()
    scene = make_scene(state.models, nodes, state_network(state))
    pods, uses = occupants(state)
    gangs = np.where(in_gang(state), state.arrays.pods["group"], -1)
    picture = draw_scene(scene, uses, first_gpus(state), np.where(pods >= 0, gangs[pods], -1))
    factor = max(1, round(MIN_WIDTH / picture.shape[1]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def draw_scene(
    scene: Scene,
    uses: npt.NDArray[np.uint8],
    first: npt.NDArray[np.int64],
    group: npt.NDArray[np.int32],
) -> npt.NDArray[np.uint8]:
    """Draw servers with the use of each GPU.

    Args:
        scene: the servers.
        uses: (G,) places in `LETTERS`.
        first: (num_nodes + 1,) where the GPUs of each node begin.
        group: (G,) the gang that holds it, -1 = none.

    Returns:
        (H, W, 3) uint8; H and W are even and depend on the servers alone.
    """
    theme = THEMES[THEME]
    made = scene.arrange(scene.columns())
    width, height = made.width + 2 * scene.gap, made.height + 2 * scene.gap
    picture = np.full((height + height % 2, width + width % 2, 3), theme["page"], np.uint8)
    inside = picture[scene.gap :, scene.gap :]
    for frame, leaf in zip(made.frames, scene.leaves, strict=True):
        view = _cut(inside, frame)
        view[:] = theme["leaf"]
        _write(view, LEAF_EDGE, 3, f"{leaf.name}  {leaf.block}", theme["label"])
    for node, (left, top) in enumerate(made.origins):
        view = _cut(inside, (left, top, scene.tile_width, scene.tile_height))
        gpus = slice(first[node], first[node + 1])
        _draw_server(view, scene, node, uses[gpus], group[gpus])
    return picture


def _draw_server(
    view: npt.NDArray[np.uint8],
    scene: Scene,
    node: int,
    uses: npt.NDArray[np.uint8],
    group: npt.NDArray[np.int32],
) -> None:
    """Draw a server with the use of each GPU and the gang that holds it, -1 = none."""
    theme, tile = THEMES[THEME], scene.tiles[scene.node_model[node]]
    view[:] = theme["server"]
    _write(view, 3, 2, str(node), theme["label"])
    for kind, boxes in (("socket", tile.sockets), ("numa_node", tile.numa_nodes)):
        for box in boxes:
            _cut(view, box)[:] = theme[kind]
    at = scene.tile_width
    for number in sorted(set(group[group >= 0].tolist()), reverse=True):
        colour, text = GANG_COLOURS[number % len(GANG_COLOURS)][0], f"G{number}"
        at -= ADVANCE * len(text) + 2
        if at > 3 + ADVANCE * len(str(node)):
            _write(view, at, 2, text, colour)
        for gpu in np.flatnonzero(group == number):
            x, y, width, height = tile.gpus[gpu]
            _cut(view, (x - 2, y - 2, width + 4, height + 4))[:] = colour
    for box, use in zip(tile.gpus, uses, strict=True):
        _draw_gpu(_cut(view, box), LEGEND[LETTERS[use]])


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


def _write(view: npt.NDArray[np.uint8], left: int, top: int, text: str, colour: Colour) -> None:
    """Write text into a picture; what does not fit is cut off."""
    for place, character in enumerate(text):
        x = left + ADVANCE * place
        cell = view[top : top + HEIGHT, x : x + 3]
        cell[glyph(character)[:, : cell.shape[1]]] = colour
