"""The network above servers as a tree of text, as data, and as a picture of blocks and leaves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flextopo.cli.topology_drawing import (
    OUTLINE,
    POD_COLOURS,
    draw_box,
    format_cpu_list,
    new_figure,
    save_png,
)
from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.topology.network import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN = 4096
"""Servers of a picture: more can neither be told apart nor drawn in a few seconds."""

ALIKE = 3
"""So many like leaves in a row are one line."""

# Lengths in cells, of which a server is one, as in `topology_drawing`.
_ROW, _GAP, _TITLE = 8, 0.5, 1.2
_BLOCK_FILL, _LEAF_FILL = "#F1F3F5", "#FFFFFF"
_WIDEST_IN, _CELL_IN, _SMALLEST_CELL_IN = 16.0, 0.26, 0.09
_LETTER = 0.62
"""Width of a letter as a share of its height."""
_LARGEST_PT = 11.0


class Leaf(NamedTuple):
    """A leaf: its name, and the servers on it, ascending."""

    name: str
    servers: list[int]


class Block(NamedTuple):
    """A block: its name and leaves."""

    name: str
    leaves: list[Leaf]

    @property
    def servers(self) -> list[int]:
        return [server for leaf in self.leaves for server in leaf.servers]


def network_blocks(network: Network) -> list[Block]:
    """Return the blocks with their leaves and servers, by number."""
    blocks = [Block(network.block_name(number), []) for number in range(network.num_blocks)]
    leaves = [Leaf(network.leaf_name(number), []) for number in range(network.num_leaves)]
    for server, (leaf, block) in enumerate(zip(network.leaf, network.block, strict=True)):
        if not leaves[leaf].servers:
            blocks[block].leaves.append(leaves[leaf])
        leaves[leaf].servers.append(server)
    return blocks


def network_document(fleet: Fleet, network: Network) -> dict[str, Any]:
    """Return blocks, leaves and servers as data, with how many there are of each kind."""
    return {
        "servers": fleet.num_nodes,
        "gpus": fleet.num_gpus,
        "kinds": _kinds(fleet, range(fleet.num_nodes)),
        "blocks": [
            {
                "name": block.name,
                "leaves": [
                    {
                        "name": leaf.name,
                        "servers": leaf.servers,
                        "kinds": _kinds(fleet, leaf.servers),
                    }
                    for leaf in block.leaves
                ],
            }
            for block in network_blocks(network)
        ],
    }


def network_text(fleet: Fleet, network: Network) -> str:
    """Write the network as lines: blocks, their leaves, and the servers on them.

    Args:
        fleet: the servers.
        network: where they hang.

    Returns:
        Lines, each with its line end. From three on, neighbouring leaves with equally many servers
        of the same kinds are one line.
    """
    blocks = network_blocks(network)
    everything = range(fleet.num_nodes)
    counts = f"{_count(len(blocks), 'block')}, {_count(network.num_leaves, 'leaf')}"
    lines = [f"{counts}, {_servers(fleet, everything)}"]
    for block in blocks:
        counted = _count(len(block.leaves), "leaf")
        lines.append(f"{block.name}: {counted}, {_servers(fleet, block.servers)}")
        found = [_leaf_line(fleet, run) for run in _runs(fleet, block.leaves)]
        width = max(len(name) for name, _ in found)
        for position, (name, text) in enumerate(found):
            branch = "└─" if position == len(found) - 1 else "├─"
            lines.append(f"{branch} {name:<{width}}  {text}")
    return "\n".join(lines) + "\n"


def _runs(fleet: Fleet, leaves: Sequence[Leaf]) -> list[list[Leaf]]:
    """Split leaves into runs that are written as one."""
    runs: list[list[Leaf]] = []
    for _, group in groupby(leaves, key=lambda leaf: _kinds(fleet, leaf.servers)):
        run = list(group)
        runs += [run] if len(run) >= ALIKE else [[leaf] for leaf in run]
    return runs


def _leaf_line(fleet: Fleet, run: Sequence[Leaf]) -> tuple[str, str]:
    """Return what stands for like leaves: their names, and their servers."""
    numbers = format_cpu_list(server for leaf in run for server in leaf.servers)
    kinds = _kinds_text(_kinds(fleet, run[0].servers))
    if len(run) == 1:
        return run[0].name, f"{kinds} (servers {numbers})"
    return f"{run[0].name} ... {run[-1].name}", f"{len(run)} leaves of {kinds} (servers {numbers})"


def _kinds(fleet: Fleet, servers: Sequence[int]) -> dict[str, int]:
    """Count the servers of each kind, in the fleet's order of kinds."""
    found = Counter(fleet.node_model[server] for server in servers)
    return {fleet.models[model].name: found[model] for model in sorted(found)}


def _kinds_text(kinds: dict[str, int]) -> str:
    return " + ".join(f"{count} {name}" for name, count in kinds.items())


def _servers(fleet: Fleet, servers: Sequence[int]) -> str:
    gpus = sum(fleet.models[fleet.node_model[server]].num_gpus for server in servers)
    return f"{_kinds_text(_kinds(fleet, servers))}, {gpus} GPUs"


def _count(number: int, word: str) -> str:
    many = "leaves" if word == "leaf" else f"{word}s"
    return f"{number} {word if number == 1 else many}"


def draw_network_png(fleet: Fleet, network: Network, path: Path) -> None:
    """Draw blocks as boxes of leaves, and leaves as boxes of servers, coloured by kind.

    Args:
        fleet: the servers.
        network: where they hang.
        path: the PNG file.

    Raises:
        FlextopoError: matplotlib is not installed.
        TopologyError: there are more than `MOST_DRAWN` servers, or the file cannot be written.
    """
    if fleet.num_nodes > MOST_DRAWN:
        raise TopologyError(
            f"--png: {fleet.num_nodes} servers; legal: up to {MOST_DRAWN}, or --json"
        )
    figure, axes = new_figure()
    from matplotlib.patches import Patch

    blocks = network_blocks(network)
    places, (width, height) = _flow([_block_size(block) for block in blocks])
    cell = max(_SMALLEST_CELL_IN, min(_CELL_IN, _WIDEST_IN / (width + 2)))
    for block, corner in zip(blocks, places, strict=True):
        _draw_block(axes, fleet, block, corner, cell)
    axes.set_xlim(-0.5, width + 0.5)
    axes.set_ylim(height + 0.5, -0.5)
    counts = f"{_count(len(blocks), 'block')}, {_count(network.num_leaves, 'leaf')}"
    axes.set_title(f"{counts}, {_servers(fleet, range(fleet.num_nodes))}", loc="left")
    handles = [
        Patch(
            facecolor=_colour(number),
            edgecolor=OUTLINE,
            label=f"{model.name}: {_count(model.num_gpus, 'GPU')}",
        )
        for number, model in enumerate(fleet.models)
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), frameon=False)
    below = 0.8 + 0.25 * len(handles)
    figure.set_size_inches(max((width + 2) * cell, 5), (height + 1) * cell + below)
    save_png(figure, path)


def _colour(model: int) -> str:
    return POD_COLOURS[model % len(POD_COLOURS)]


def _leaf_size(leaf: Leaf) -> tuple[float, float]:
    rows = -(-len(leaf.servers) // _ROW)
    return _ROW + 2 * _GAP / 2, _TITLE + rows + _GAP / 2


def _abreast(leaves: int) -> int:
    """Return how many leaves of a block stand side by side."""
    return min(leaves, max(2, math.isqrt(leaves)))


def _block_size(block: Block) -> tuple[float, float]:
    abreast = _abreast(len(block.leaves))
    sizes = [_leaf_size(leaf) for leaf in block.leaves]
    heights = [max(h for _, h in sizes[i : i + abreast]) for i in range(0, len(sizes), abreast)]
    height = _TITLE + sum(heights) + len(heights) * _GAP / 2
    return abreast * (sizes[0][0] + _GAP / 2) + _GAP / 2, height


def _flow(
    sizes: Sequence[tuple[float, float]],
) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """Place boxes in lines of about equal width, the whole somewhat wider than high."""
    area = sum((width + _GAP) * (height + _GAP) for width, height in sizes)
    limit = max((1.6 * area) ** 0.5, max(width for width, _ in sizes))
    places: list[tuple[float, float]] = []
    left = top = line = widest = 0.0
    for width, height in sizes:
        if left and left + width > limit:
            left, top, line = 0.0, top + line + _GAP, 0.0
        places.append((left, top))
        left, line = left + width + _GAP, max(line, height)
        widest = max(widest, left - _GAP)
    return places, (widest, top + line)


def _draw_block(
    axes: Axes, fleet: Fleet, block: Block, corner: tuple[float, float], cell: float
) -> None:
    size = _block_size(block)
    draw_box(axes, corner, size, _BLOCK_FILL)
    _write(axes, block.name, (corner[0] + _GAP / 2, corner[1]), size[0] - _GAP, cell)
    abreast = _abreast(len(block.leaves))
    top = corner[1] + _TITLE
    for start in range(0, len(block.leaves), abreast):
        line = block.leaves[start : start + abreast]
        height = max(_leaf_size(leaf)[1] for leaf in line)
        for i, leaf in enumerate(line):
            width = _leaf_size(leaf)[0]
            place = corner[0] + _GAP / 2 + i * (width + _GAP / 2), top
            _draw_leaf(axes, fleet, leaf, place, (width, height), cell)
        top += height + _GAP / 2


def _draw_leaf(
    axes: Axes,
    fleet: Fleet,
    leaf: Leaf,
    corner: tuple[float, float],
    size: tuple[float, float],
    cell: float,
) -> None:
    draw_box(axes, corner, size, _LEAF_FILL)
    _write(axes, leaf.name, (corner[0] + _GAP / 2, corner[1]), size[0] - _GAP, cell)
    for i, server in enumerate(leaf.servers):
        place = corner[0] + _GAP / 2 + i % _ROW, corner[1] + _TITLE + i // _ROW
        draw_box(axes, place, (1, 1), _colour(fleet.node_model[server]))


def _write(axes: Axes, text: str, corner: tuple[float, float], width: float, cell: float) -> None:
    """Write a title that fits into a box; of a longer one both ends, which tell ids apart."""
    points = min(_LARGEST_PT, 0.75 * _TITLE * cell * 72)
    letters = int(width * cell * 72 / (points * _LETTER))
    if len(text) > letters:
        half = (letters - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    axes.text(corner[0], corner[1] + _TITLE / 2, text, va="center", fontsize=points)
