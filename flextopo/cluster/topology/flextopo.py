"""The FlexTopo graph of a server: hardware topology plus what each pod holds.

The graph is for people and for Kubernetes. Decisions never walk it: `server_model_from_graph`
compiles it once into a `ServerModel`.

References:
    arXiv 2411.11560, section on FlexTopo; the public objects of the custom resource `flextopos`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

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
from flextopo.cluster.topology.model import ServerModel

# Daemons run on every node without pinned cores. An object nevertheless may record them on all
# cores that their threads were last seen on, so their marks say nothing about what is taken.
DAEMON_PODS = (
    "calico-node",
    "cilium",
    "dcgm-exporter",
    "fluent-bit",
    "gpu-feature-discovery",
    "kube-flannel",
    "kube-proxy",
    "node-exporter",
    "nvidia-dcgm-exporter",
    "nvidia-device-plugin",
)


@dataclass(frozen=True)
class Allocation:
    """What one pod holds on a node; every field is ascending numbers as in the vertex ids.

    Attributes:
        cores: of `core-C`.
        gpus: of `gpu-I`.
        numa_nodes: of the NUMA nodes that hold these cores and, where located, GPUs.
        sockets: of the sockets that hold them.
    """

    cores: tuple[int, ...]
    gpus: tuple[int, ...]
    numa_nodes: tuple[int, ...]
    sockets: tuple[int, ...]


def build_graph(model: ServerModel, node_name: str, core_group_size: int = 8) -> nx.DiGraph:
    """Build the FlexTopo graph of one free server.

    Beside the `contains` tree Socket, NUMANode, CoreGroup, CPUCore, each GPU gets a `localized`
    edge from its NUMA node; the public objects leave GPUs without any edge. On a server that tells
    islands apart, a GPU's attribute `island` has the number of its own.

    Args:
        model: the hardware.
        node_name: name of the node (machine), the name of the resource.
        core_group_size: cores of a core group; the last group of a NUMA node may be smaller.

    Returns:
        The graph; the `rtx4090` preset gives 90 vertices, 80 `contains` and 8 `localized` edges.

    Raises:
        TopologyError: the name is empty or the group size below 1.
    """
    if not node_name:
        raise TopologyError("the node name is empty; legal: a text that is not empty")
    if core_group_size < 1:
        raise TopologyError(f"core group size {core_group_size}; legal: 1 or more")
    graph = nx.DiGraph(name=node_name)
    for socket in range(model.num_sockets):
        graph.add_node(f"socket-{socket}", type=VertexType.SOCKET, attributes={})
    groups = 0
    for numa_node, socket in enumerate(model.numa_socket):
        graph.add_node(f"numa-{numa_node}", type=VertexType.NUMA_NODE, attributes={})
        _contain(graph, f"socket-{socket}", f"numa-{numa_node}")
        cores = model.cores[numa_node]
        for start in range(0, len(cores), core_group_size):
            _add_core_group(graph, numa_node, groups, cores[start : start + core_group_size])
            groups += 1
    for gpu, numa_node in enumerate(model.gpu_numa):
        attributes = {"name": model.gpu_name, "status": "free"}
        if model.gpu_memory_mib:
            attributes["memoryTotal"] = str(model.gpu_memory_mib)
        if model.gpu_island:
            attributes["island"] = str(model.gpu_island[gpu])
        graph.add_node(f"gpu-{gpu}", type=VertexType.GPU, attributes=attributes)
        graph.add_edge(f"numa-{numa_node}", f"gpu-{gpu}", type=EdgeType.LOCALIZED)
    return graph


def _add_core_group(graph: nx.DiGraph, numa_node: int, group: int, cores: Sequence[int]) -> None:
    """Add one core group; groups are counted over the whole server, as in the public objects."""
    name = f"coregroup-{numa_node}-{group}"
    attributes = {"nodeID": str(numa_node), "groupIndex": str(group)}
    graph.add_node(name, type=VertexType.CORE_GROUP, attributes=attributes)
    _contain(graph, f"numa-{numa_node}", name)
    for core in cores:
        graph.add_node(f"core-{core}", type=VertexType.CORE, attributes={"status": "free"})
        _contain(graph, name, f"core-{core}")


def _contain(graph: nx.DiGraph, source: str, target: str) -> None:
    graph.add_edge(source, target, type=EdgeType.CONTAINS)


def allocations(graph: nx.DiGraph, ignore: Collection[str] = DAEMON_PODS) -> dict[str, Allocation]:
    """Read which pods hold which cores and GPUs.

    Args:
        graph: from `build_graph` or `read_resource`.
        ignore: names of daemons; a pod called so, or so with a `-suffix`, holds nothing. A
            namespace before the name is not compared.

    Returns:
        Pod name, as in `usedBy`, to its allocation, in the order of the names.

    References:
        The public FlexTopo code's location test: cores 1-4 under numa-0 and 5-8 under numa-1 of
        one socket. A public object marks 43 of 64 cores as used by a node-exporter daemon; we
        leave such pods out.
    """
    held: dict[str, list[str]] = {}
    for kind in (VertexType.CORE, VertexType.GPU):
        for vertex in vertices_of(graph, kind):
            pod = _holder(graph, vertex, ignore)
            if pod:
                held.setdefault(pod, []).append(vertex)
    return {pod: _allocation(graph, held[pod]) for pod in sorted(held)}


def _holder(graph: nx.DiGraph, vertex: str, ignore: Collection[str]) -> str:
    """Return the pod that holds a core or GPU, empty for none and for daemons."""
    attributes = graph.nodes[vertex]["attributes"]
    pod = str(attributes.get("usedBy", "")) if attributes["status"] == "used" else ""
    name = pod.rpartition("/")[2]
    is_daemon = any(name == daemon or name.startswith(f"{daemon}-") for daemon in ignore)
    return "" if is_daemon else pod


def _allocation(graph: nx.DiGraph, vertices: Sequence[str]) -> Allocation:
    numbers: dict[VertexType, set[int]] = {kind: set() for kind in VertexType}
    for vertex in vertices:
        kind = graph.nodes[vertex]["type"]
        numbers[kind].add(vertex_index(vertex))
        if kind == VertexType.GPU:
            numa_node = gpu_numa_node(graph, vertex)
        else:
            numa_node = enclosing(graph, vertex, VertexType.NUMA_NODE)
        socket = enclosing(graph, numa_node or vertex, VertexType.SOCKET)
        if numa_node is not None:
            numbers[VertexType.NUMA_NODE].add(vertex_index(numa_node))
        if socket is not None:
            numbers[VertexType.SOCKET].add(vertex_index(socket))
    kinds = (VertexType.CORE, VertexType.GPU, VertexType.NUMA_NODE, VertexType.SOCKET)
    return Allocation(*(tuple(sorted(numbers[kind])) for kind in kinds))


def mark_used(
    graph: nx.DiGraph,
    pod: str,
    cores: Iterable[int],
    gpus: Iterable[int],
    ignore: Collection[str] = DAEMON_PODS,
) -> None:
    """Record in the graph that a pod holds cores and GPUs: all of them, or on an error none.

    Args:
        graph: changed in place.
        pod: name of the pod, as `usedBy` is to say.
        cores: numbers of `core-C` vertices.
        gpus: numbers of `gpu-I` vertices.
        ignore: daemons whose marks may be overwritten, as in `allocations`.

    Raises:
        TopologyError: the name is empty, a vertex does not exist, or another pod holds it.
    """
    if not pod:
        raise TopologyError("the pod's name is empty; legal: a text that is not empty")
    vertices = [f"core-{core}" for core in cores] + [f"gpu-{gpu}" for gpu in gpus]
    for vertex in vertices:
        if vertex not in graph:
            raise TopologyError(
                f"pod {pod!r}: node {graph.graph['name']!r} has no {vertex}; legal: "
                f"its {len(graph)} vertices"
            )
        status = graph.nodes[vertex]["attributes"]["status"]
        if status in (Status.SHARED, Status.RESERVED):
            raise TopologyError(f"pod {pod!r}: {vertex} is {status}; legal: free cores and GPUs")
        holder = _holder(graph, vertex, ignore)
        if holder not in ("", pod):
            raise TopologyError(
                f"pod {pod!r}: {vertex} is used by pod {holder!r}; legal: free cores and GPUs"
            )
    for vertex in vertices:
        graph.nodes[vertex]["attributes"].update(status="used", usedBy=pod)
