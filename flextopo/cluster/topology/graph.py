"""The vocabulary of a FlexTopo graph: vertex and edge types, and how to find one's way in it.

A vertex carries `type` (a `VertexType`) and `attributes` (map string to string); an edge carries
`type` (an `EdgeType`); `graph.graph["name"]` is the name of the node (the machine).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an agent on every node pays for what is imported
    import networkx as nx

API_VERSION = "flextopo.baichuan-inc.com/v1alpha1"
KIND = "FlexTopo"


class VertexType(StrEnum):
    """The kinds of vertices, from the outermost to the innermost."""

    SOCKET = "Socket"
    NUMA_NODE = "NUMANode"
    CORE_GROUP = "CoreGroup"
    CORE = "CPUCore"
    GPU = "GPU"


class Status(StrEnum):
    """Who holds a core or a GPU.

    `shared`: several pods hold parts of it (time slices, MIG), so it is none that a decision about
    whole GPUs can count on. `reserved`: kubelet gives it to no pod, so it is no core of the server
    as far as pods are concerned.
    """

    FREE = "free"
    USED = "used"
    SHARED = "shared"
    RESERVED = "reserved"


class EdgeType(StrEnum):
    """The kinds of edges; only `contains` spans the tree.

    `host` counts as `contains` where a vertex has no `contains` parent. `localized` joins a GPU
    and its NUMA node, in either direction. `nearby` tells distances and is kept but not used.
    """

    CONTAINS = "contains"
    LOCALIZED = "localized"
    HOST = "host"
    NEARBY = "nearby"


def vertex_index(vertex: str) -> int:
    """Return the number that ends a vertex id, such as 12 for `core-12`."""
    return int(vertex.rpartition("-")[2])


def vertices_of(graph: nx.DiGraph, kind: VertexType) -> list[str]:
    """List the vertices of one type by ascending number."""
    found = [vertex for vertex, data in graph.nodes(data=True) if data["type"] == kind]
    return sorted(found, key=vertex_index)


def enclosing(graph: nx.DiGraph, vertex: str, kind: VertexType) -> str | None:
    """Return the vertex of type `kind` that contains `vertex`, None if none does."""
    # A legal tree is four layers deep; the bound also ends the walk in a graph built by hand.
    for _ in range(len(VertexType)):
        parents = {data["type"]: source for source, _, data in graph.in_edges(vertex, data=True)}
        parent = parents.get(EdgeType.CONTAINS, parents.get(EdgeType.HOST))
        if parent is None or graph.nodes[parent]["type"] == kind:
            return parent
        vertex = parent
    return None


def gpu_numa_node(graph: nx.DiGraph, gpu: str) -> str | None:
    """Return the NUMA node that edges give a GPU, None if they do not tell."""
    ends = [(source, data) for source, _, data in graph.in_edges(gpu, data=True)]
    ends += [(target, data) for _, target, data in graph.out_edges(gpu, data=True)]
    for vertex, data in ends:
        is_numa_node = graph.nodes[vertex]["type"] == VertexType.NUMA_NODE
        if is_numa_node and data["type"] == EdgeType.LOCALIZED:
            return str(vertex)
    return enclosing(graph, gpu, VertexType.NUMA_NODE)
