"""From a FlexTopo graph to the `ServerModel` that decisions use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import networkx as nx

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.graph import (
    EdgeType,
    Status,
    VertexType,
    enclosing,
    gpu_numa_node,
    vertex_index,
    vertices_of,
)
from flextopo.cluster.topology.model import PRESETS, ServerModel


def server_model_from_graph(
    graph: nx.DiGraph, gpu_location: ServerModel | None = None
) -> tuple[ServerModel, list[str]]:
    """Compile a graph into tables, assuming what it does not tell.

    A reserved core is none, since no pod can get it. A GPU is located by its edge, else by `gpu_location`, else by the preset of the same shape and
    GPU, else by spreading the GPUs over the NUMA nodes in order.

    Args:
        graph: from `build_graph` or `read_resource`.
        gpu_location: a server of the same shape whose GPU locations are known.

    Returns:
        The model, named after the graph, and one warning for each assumption.

    Raises:
        TopologyError: no NUMA node, a core or NUMA node without a parent, more GPUs or NUMA nodes
            than a `ServerModel` has, an island that is no number or spans NUMA nodes, or
            `gpu_location` has another shape.
    """
    where = f"node {graph.graph['name']!r}"
    numa_nodes = vertices_of(graph, VertexType.NUMA_NODE)
    if not numa_nodes:
        raise TopologyError(f"{where} has no NUMANode vertex; legal: 1 or more")
    numa_sockets = _numa_sockets(graph, numa_nodes, where)
    sockets = sorted(set(numa_sockets), key=vertex_index)
    cores = _numa_cores(graph, numa_nodes, where)
    gpus = vertices_of(graph, VertexType.GPU)
    warnings = [
        f"{where}: {socket} has no NUMANode and is left out"
        for socket in vertices_of(graph, VertexType.SOCKET)
        if socket not in sockets
    ]
    warnings += [
        *_renumbered("numa", numa_nodes, where),
        *_renumbered("socket", sockets, where),
        *_renumbered("gpu", gpus, where),
    ]
    gpu_name, gpu_memory_mib, mixed = _gpu_kind(graph, gpus, where)
    ordered = [core for ids in cores for core in ids] == list(range(sum(map(len, cores))))
    model = ServerModel(
        name=graph.graph["name"],
        gpu_numa=(0,) * len(gpus),
        numa_socket=tuple(map(sockets.index, numa_sockets)),
        numa_cores=tuple(map(len, cores)),
        core_ids=() if ordered else cores,
        gpu_name=gpu_name,
        gpu_memory_mib=gpu_memory_mib,
    )
    gpu_numa, assumed = _locate_gpus(graph, model, numa_nodes, gpus, gpu_location)
    model = replace(model, gpu_numa=gpu_numa, gpu_island=_islands(graph, gpus, where))
    return model, [*warnings, *mixed, *assumed]


def _islands(graph: nx.DiGraph, gpus: Sequence[str], where: str) -> tuple[int, ...]:
    """Return the island of each GPU, empty where the graph does not tell."""
    told = [str(graph.nodes[gpu]["attributes"].get("island", "")) for gpu in gpus]
    if not any(told):
        return ()
    for gpu, island in zip(gpus, told, strict=True):
        if not re.fullmatch("[0-9]{1,3}", island):
            raise TopologyError(
                f"{where}: island {island[:40]!r} of {gpu}; legal: a number for every GPU, or none"
            )
    return tuple(map(int, told))


def localize_gpus(graph: nx.DiGraph, model: ServerModel) -> None:
    """Write where the GPUs are into a graph whose edges do not tell.

    Args:
        graph: changed in place; GPUs that edges locate are left alone.
        model: what `server_model_from_graph` made of this graph.
    """
    numa_nodes = vertices_of(graph, VertexType.NUMA_NODE)
    for gpu, numa_node in zip(vertices_of(graph, VertexType.GPU), model.gpu_numa, strict=True):
        if gpu_numa_node(graph, gpu) is None:
            graph.add_edge(numa_nodes[numa_node], gpu, type=EdgeType.LOCALIZED)


def write_islands(graph: nx.DiGraph, model: ServerModel) -> None:
    """Write the islands of a model into the graph that it was made of."""
    for gpu, island in zip(vertices_of(graph, VertexType.GPU), model.gpu_island, strict=False):
        graph.nodes[gpu]["attributes"]["island"] = str(island)


def _numa_sockets(graph: nx.DiGraph, numa_nodes: Sequence[str], where: str) -> list[str]:
    sockets = []
    for numa_node in numa_nodes:
        socket = enclosing(graph, numa_node, VertexType.SOCKET)
        if socket is None:
            raise TopologyError(f"{where}: {numa_node} is in no Socket; legal: one")
        sockets.append(socket)
    return sockets


def _numa_cores(
    graph: nx.DiGraph, numa_nodes: Sequence[str], where: str
) -> tuple[tuple[int, ...], ...]:
    cores: dict[str, list[int]] = {numa_node: [] for numa_node in numa_nodes}
    for core in vertices_of(graph, VertexType.CORE):
        numa_node = enclosing(graph, core, VertexType.NUMA_NODE)
        if numa_node is None:
            raise TopologyError(f"{where}: {core} is in no NUMANode; legal: one")
        if graph.nodes[core]["attributes"].get("status") != Status.RESERVED:
            cores[numa_node].append(vertex_index(core))
    return tuple(map(tuple, cores.values()))


def _renumbered(kind: str, vertices: Sequence[str], where: str) -> list[str]:
    """Warn where the vertices of a kind are not numbered 0, 1, ... as the tables need."""
    if [vertex_index(vertex) for vertex in vertices] == list(range(len(vertices))):
        return []
    return [
        f"{where}: {', '.join(vertices)} counted as {kind}-0 to {kind}-{len(vertices) - 1} in order"
    ]


def _gpu_kind(graph: nx.DiGraph, gpus: Sequence[str], where: str) -> tuple[str, int, list[str]]:
    """Return the name and memory (MiB) of the GPUs, and a warning where they differ."""
    attributes = [graph.nodes[gpu]["attributes"] for gpu in gpus]
    names = list(dict.fromkeys(entry.get("name") or "GPU" for entry in attributes)) or ["GPU"]
    memory_mib = min((int(entry.get("memoryTotal") or 0) for entry in attributes), default=0)
    if len(names) == 1:
        return names[0], memory_mib, []
    return names[0], memory_mib, [f"{where}: GPUs of {', '.join(names)} counted as equal"]


def _locate_gpus(
    graph: nx.DiGraph,
    model: ServerModel,
    numa_nodes: Sequence[str],
    gpus: Sequence[str],
    gpu_location: ServerModel | None,
) -> tuple[tuple[int, ...], list[str]]:
    """Return the NUMA node of each GPU, and a warning where it is assumed."""
    known = [gpu_numa_node(graph, gpu) for gpu in gpus]
    missing = [gpu for gpu, vertex in zip(gpus, known, strict=True) if vertex is None]
    assumed, source = _assumed_gpu_numa(model, gpu_location) if missing else ((), "")
    gpu_numa = tuple(
        _in_socket(graph, gpus[i], numa_nodes, assumed[i])
        if vertex is None
        else numa_nodes.index(vertex)
        for i, vertex in enumerate(known)
    )
    if not missing:
        return gpu_numa, []
    warning = (
        f"node {model.name!r}: no edge locates {', '.join(missing)}; {source} puts the GPUs on "
        f"NUMA nodes {' '.join(map(str, gpu_numa))}"
    )
    return gpu_numa, [warning]


def _in_socket(graph: nx.DiGraph, gpu: str, numa_nodes: Sequence[str], assumed: int) -> int:
    """Return the assumed NUMA node, or the first of the GPU's socket if an edge tells another."""
    told = enclosing(graph, gpu, VertexType.SOCKET)
    sockets = [enclosing(graph, numa_node, VertexType.SOCKET) for numa_node in numa_nodes]
    return assumed if told not in sockets or told == sockets[assumed] else sockets.index(told)


def _assumed_gpu_numa(
    model: ServerModel, gpu_location: ServerModel | None
) -> tuple[tuple[int, ...], str]:
    if gpu_location is not None:
        if not _same_shape(model, gpu_location):
            raise TopologyError(
                f"node {model.name!r} and {gpu_location.name!r}, which is to locate its GPUs, "
                "differ in shape; legal: equal counts of GPUs, NUMA nodes and sockets"
            )
        return gpu_location.gpu_numa, repr(gpu_location.name)
    for preset in PRESETS.values():
        same_gpu = preset.name.removeprefix("rtx") in model.gpu_name.lower()
        if same_gpu and _same_shape(model, preset) and model.numa_cores == preset.numa_cores:
            return preset.gpu_numa, f"the preset {preset.name!r} of the same shape"
    # Memory-only NUMA nodes have no PCIe root; they only serve where there is nothing else.
    usable = [i for i, cores in enumerate(model.numa_cores) if cores]
    usable = usable or list(range(model.num_numa_nodes))
    spread = tuple(usable[gpu * len(usable) // model.num_gpus] for gpu in range(model.num_gpus))
    return spread, "spreading in order"


def _same_shape(model: ServerModel, other: ServerModel) -> bool:
    return model.num_gpus == other.num_gpus and model.numa_socket == other.numa_socket
