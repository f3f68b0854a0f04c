"""A FlexTopo graph as a tree of text and as a picture of nested boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

from flextopo.cluster.errors import FlextopoError, TopologyError
from flextopo.cluster.topology.flextopo import allocations
from flextopo.cluster.topology.graph import (
    VertexType,
    enclosing,
    gpu_numa_node,
    vertex_index,
    vertices_of,
)
from flextopo.train.results import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COUNTED = {
    VertexType.SOCKET: ("socket", "sockets"),
    VertexType.NUMA_NODE: ("NUMA node", "NUMA nodes"),
    VertexType.CORE: ("core", "cores"),
    VertexType.GPU: ("GPU", "GPUs"),
}

# Okabe and Ito's colours, which stay apart for colour-blind readers; then pods share the last.
POD_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_OTHER_COLOUR, _DAEMON_COLOUR, _FREE_COLOUR = "#7F7F7F", "#C9C9C9", "#FFFFFF"
OUTLINE, _SOCKET_FILL, _NUMA_FILL = "#444444", "#F1F3F5", "#E3E7EB"

# Lengths in cells: a core is one cell square, a GPU as wide as a row of eight cores.
_ROW, _GAP, _TITLE = 8, 0.6, 1.1
_ABREAST = 4  # NUMA nodes beside each other, of all sockets
_INCHES_PER_CELL = 0.26


def format_cpu_list(numbers: Iterable[int]) -> str:
    """Write numbers as Linux does, such as `0-2,4`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def numa_parts(graph: nx.DiGraph, kind: VertexType) -> dict[str | None, list[str]]:
    """Return the cores or GPUs of each NUMA node by number; None holds those without one."""
    parts: dict[str | None, list[str]] = {}
    for vertex in vertices_of(graph, kind):
        if kind == VertexType.GPU:
            numa_node = gpu_numa_node(graph, vertex)
        else:
            numa_node = enclosing(graph, vertex, VertexType.NUMA_NODE)
        parts.setdefault(numa_node, []).append(vertex)
    return parts


def socket_parts(graph: nx.DiGraph) -> dict[str | None, list[str]]:
    """Return the NUMA nodes of each socket by number; None holds those without one."""
    parts: dict[str | None, list[str]] = {s: [] for s in vertices_of(graph, VertexType.SOCKET)}
    for numa_node in vertices_of(graph, VertexType.NUMA_NODE):
        parts.setdefault(enclosing(graph, numa_node, VertexType.SOCKET), []).append(numa_node)
    return parts


def gpu_label(graph: nx.DiGraph, gpu: str) -> str:
    """Return how a GPU is called, with its island where the graph tells one."""
    island = graph.nodes[gpu]["attributes"].get("island")
    return gpu if island is None else f"{gpu} (island {island})"


def tree_text(graph: nx.DiGraph) -> str:
    """Write a graph as lines of text: sockets, NUMA nodes with cores and GPUs, then pods.

    Args:
        graph: of one server.

    Returns:
        Lines, each with its line end.
    """
    counts = [(len(vertices_of(graph, kind)), words) for kind, words in _COUNTED.items()]
    sizes = ", ".join(f"{count} {words[count != 1]}" for count, words in counts)
    lines = [f"{graph.graph['name']}: {sizes}"]
    cores, gpus = numa_parts(graph, VertexType.CORE), numa_parts(graph, VertexType.GPU)
    for socket, numa_nodes in socket_parts(graph).items():
        lines.append(socket or "no socket")
        for position, numa_node in enumerate(numa_nodes):
            branch = "└─" if position == len(numa_nodes) - 1 else "├─"
            numbers = format_cpu_list(map(vertex_index, cores.get(numa_node, [])))
            parts = [
                f"cores {numbers}" if numbers else "no cores",
                *(gpu_label(graph, gpu) for gpu in gpus.get(numa_node, [])),
            ]
            lines.append(f"{branch} {numa_node:<8} {'  '.join(parts)}")
    for kind, found in (("cores", cores.get(None)), ("GPUs", gpus.get(None))):
        if found:
            lines.append(f"{kind} without a NUMA node: {' '.join(found)}")
    held = allocations(graph)
    lines += ["pods"] * bool(held)
    for pod, allocation in held.items():
        words = [f"cores {format_cpu_list(allocation.cores)}"] * bool(allocation.cores)
        words += [f"GPUs {format_cpu_list(allocation.gpus)}"] * bool(allocation.gpus)
        words.append(f"NUMA {format_cpu_list(allocation.numa_nodes) or 'unknown'}")
        words.append(f"socket {format_cpu_list(allocation.sockets) or 'unknown'}")
        lines.append(f"   {pod}: {', '.join(words)}")
    return "\n".join(lines) + "\n"


def draw_png(graph: nx.DiGraph, path: Path, colours: Mapping[str, str] | None = None) -> None:
    """Draw a graph as nested boxes, cores and GPUs coloured by the pod that holds them.

    Args:
        graph: of one server.
        path: the PNG file.
        colours: of pods by name; else those of `POD_COLOURS` in the order of the names.

    Raises:
        FlextopoError: matplotlib is not installed.
        TopologyError: the file cannot be written.
    """
    figure, axes = new_figure()
    from matplotlib.patches import Patch

    held = _pod_colours(graph, colours or {})
    width, height = _draw_server(axes, graph, held)
    axes.set_xlim(-0.5, width + 0.5)
    axes.set_ylim(height + 0.5, -0.5)
    axes.set_title(graph.graph["name"], loc="left")
    legend = {**_legend(held), "free": _FREE_COLOUR}
    handles = [Patch(facecolor=c, edgecolor=OUTLINE, label=p) for p, c in legend.items()]
    # Pod names are long: two columns fit only below a wide picture.
    columns = 2 if width > 4 * _ROW else 1
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=columns, frameon=False
    )
    rows = -(-len(handles) // columns)
    inches = (width + 2) * _INCHES_PER_CELL, (height + 3 + 1.2 * rows) * _INCHES_PER_CELL
    figure.set_size_inches(max(inches[0], 5), inches[1])
    save_png(figure, path)


def new_figure() -> tuple[Figure, Axes]:
    """Return a picture of boxes, without axes; a cell is as wide as it is high.

    Raises:
        FlextopoError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FlextopoError(
            "drawing needs matplotlib, which is not installed; legal: pip install flextopo[report]"
        ) from None
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def save_png(figure: Figure, path: Path) -> None:
    """Write a picture.

    Raises:
        TopologyError: the file cannot be written.
    """
    try:
        save_figure(figure, path, dpi=120)
    except FlextopoError as error:
        raise TopologyError(str(error)) from None


def _pod_colours(graph: nx.DiGraph, given: Mapping[str, str]) -> dict[str, str]:
    """Return the colour of each holder: pods first, in the order of their names, then daemons."""
    pods = list(allocations(graph))
    colours = {
        pod: given.get(pod) or (POD_COLOURS[i] if i < len(POD_COLOURS) else _OTHER_COLOUR)
        for i, pod in enumerate(pods)
    }
    daemons = [pod for pod in allocations(graph, ignore=()) if pod not in colours]
    return colours | dict.fromkeys(daemons, _DAEMON_COLOUR)


def _legend(colours: dict[str, str]) -> dict[str, str]:
    """Return label to colour, the holders of one colour together."""
    shared = {_OTHER_COLOUR: "other pods", _DAEMON_COLOUR: "daemons (hold nothing)"}
    return {shared.get(colour, pod): colour for pod, colour in colours.items()}


def _draw_server(axes: Axes, graph: nx.DiGraph, colours: dict[str, str]) -> tuple[float, float]:
    """Draw all sockets, one below the other where they are wide; return the width and height used."""
    cores, gpus = numa_parts(graph, VertexType.CORE), numa_parts(graph, VertexType.GPU)
    sockets = socket_parts(graph)
    beside = sum(map(len, sockets.values())) <= _ABREAST
    width = height = left = top = 0.0
    for socket, numa_nodes in sockets.items():
        heights = [
            _TITLE
            + -(-len(cores.get(numa_node, [])) // _ROW)
            + (1.5 + _GAP / 2) * len(gpus.get(numa_node, []))
            + _GAP
            for numa_node in numa_nodes
        ]
        box = (_ROW + 2 * _GAP) * len(numa_nodes) + _GAP, max(heights, default=0) + _TITLE + _GAP
        draw_box(axes, (left, top), box, _SOCKET_FILL)
        axes.text(left + _GAP, top + _TITLE / 2, socket or "no socket", va="center", weight="bold")
        for position, numa_node in enumerate(numa_nodes):
            corner = left + _GAP + position * (_ROW + 2 * _GAP), top + _TITLE
            draw_box(axes, corner, (_ROW + _GAP, max(heights)), _NUMA_FILL)
            axes.text(corner[0] + _GAP / 2, corner[1] + _TITLE / 2, numa_node, va="center")
            inner = corner[0] + _GAP / 2, corner[1] + _TITLE
            parts = cores.get(numa_node, []), gpus.get(numa_node, [])
            _draw_parts(axes, graph, inner, parts, colours)
        width, height = max(width, left + box[0]), max(height, top + box[1] + _GAP)
        left, top = (left + box[0] + _GAP, 0.0) if beside else (0.0, height)
    return width, _draw_unplaced(axes, graph, height, gpus.get(None, []), colours)


def _draw_parts(
    axes: Axes,
    graph: nx.DiGraph,
    corner: tuple[float, float],
    parts: tuple[Sequence[str], Sequence[str]],
    colours: dict[str, str],
) -> None:
    """Draw the cores of a NUMA node eight a row, and its GPUs below them."""
    cores, gpus = parts
    for i, core in enumerate(cores):
        place = corner[0] + i % _ROW, corner[1] + i // _ROW
        draw_box(axes, place, (1, 1), _colour(graph, core, colours), str(vertex_index(core)))
    top = corner[1] - (-len(cores) // _ROW) + _GAP / 2
    for i, gpu in enumerate(gpus):
        place = corner[0], top + i * (1.5 + _GAP / 2)
        draw_box(axes, place, (_ROW, 1.5), _colour(graph, gpu, colours), gpu_label(graph, gpu))


def _draw_unplaced(
    axes: Axes, graph: nx.DiGraph, top: float, gpus: Sequence[str], colours: dict[str, str]
) -> float:
    """Draw the GPUs that no NUMA node holds, and return the height used."""
    if not gpus:
        return top
    axes.text(0, top + _TITLE / 2, "GPUs without a NUMA node", va="center")
    for i, gpu in enumerate(gpus):
        draw_box(axes, (i * 4.5, top + _TITLE), (4, 1.5), _colour(graph, gpu, colours), gpu)
    return top + _TITLE + 1.5


def _colour(graph: nx.DiGraph, vertex: str, colours: dict[str, str]) -> str:
    return colours.get(graph.nodes[vertex]["attributes"].get("usedBy", ""), _FREE_COLOUR)


def draw_box(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], fill: str, label: str = ""
) -> None:
    """Draw a box, its label in the middle."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, *size, facecolor=fill, edgecolor=OUTLINE, linewidth=0.6))
    if label:
        dark = fill in (*POD_COLOURS[:1], _OTHER_COLOUR, "black")
        middle = corner[0] + size[0] / 2, corner[1] + size[1] / 2
        colour = "white" if dark else "black"
        points = 8 if size[0] == 1 else 11
        axes.text(*middle, label, ha="center", va="center", fontsize=points, color=colour)
