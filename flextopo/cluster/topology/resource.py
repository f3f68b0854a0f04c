"""The FlexTopo custom resource: a checked graph from YAML or JSON, and back.

A resource lists vertices under `spec.nodes` and edges under `spec.edges`. Reading checks every field
once, so that code holding a graph need not check again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from flextopo.cluster.errors import FlextopoError, TopologyError
from flextopo.cluster.files import decode_input, read_input, write_whole
from flextopo.cluster.topology.documents import mapping, parse_document, show, text_field
from flextopo.cluster.topology.graph import API_VERSION, KIND, EdgeType, Status, VertexType

# "contain" is the paper's word, "contains" that of the published objects.
_EDGE_TYPES = {edge.value: edge for edge in EdgeType} | {"contain": EdgeType.CONTAINS}
_ID_PATTERNS = {
    VertexType.SOCKET: ("socket-S", r"socket-(0|[1-9][0-9]{0,8})"),
    VertexType.NUMA_NODE: ("numa-N", r"numa-(0|[1-9][0-9]{0,8})"),
    VertexType.CORE_GROUP: ("coregroup-N-G", r"coregroup-[0-9]{1,9}-(0|[1-9][0-9]{0,8})"),
    VertexType.CORE: ("core-C", r"core-(0|[1-9][0-9]{0,8})"),
    VertexType.GPU: ("gpu-I", r"gpu-(0|[1-9][0-9]{0,8})"),
}
_LOCALIZED_ENDS = {VertexType.GPU, VertexType.NUMA_NODE}
# (source, target) to the edge's type and its place in the document, in the document's order.
Edges = dict[tuple[str, str], tuple[EdgeType, str]]
_DEPTH = {kind: min(depth, 3) for depth, kind in enumerate(VertexType)}


def to_resource(graph: nx.DiGraph) -> dict[str, Any]:
    """Turn a graph into the custom resource, as plain dictionaries and lists.

    Args:
        graph: from `build_graph` or `read_resource`.

    Returns:
        An object of `flextopo.baichuan-inc.com/v1alpha1` that `json` and `yaml` can write.
    """
    vertices = [
        {"id": vertex, "type": str(data["type"]), "attributes": dict(data["attributes"])}
        for vertex, data in graph.nodes(data=True)
    ]
    edges = [
        {"source": source, "target": target, "type": str(data["type"])}
        for source, target, data in graph.edges(data=True)
    ]
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": graph.graph["name"]},
        "spec": {"nodes": vertices, "edges": edges},
    }


def format_resource(graph: nx.DiGraph, suffix: str = ".yaml") -> str:
    """Write a graph as the text of a custom resource.

    Args:
        graph: from `build_graph` or `read_resource`.
        suffix: `.yaml`, `.yml` or `.json`.

    Raises:
        TopologyError: another suffix.
    """
    resource = to_resource(graph)
    if suffix == ".json":
        return json.dumps(resource, indent=2) + "\n"
    if suffix not in (".yaml", ".yml"):
        raise TopologyError(f"file ending {suffix!r}; legal: .yaml, .yml, .json")
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(resource, Dumper=dumper, sort_keys=False))


def write_resource(graph: nx.DiGraph, path: str | Path) -> None:
    """Write a graph as a custom resource, whole or not at all.

    Args:
        graph: from `build_graph` or `read_resource`.
        path: ends in `.yaml`, `.yml` or `.json`.

    Raises:
        TopologyError: another file ending, or the file cannot be written.
    """
    path = Path(path)
    try:
        text = format_resource(graph, path.suffix)
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None
    try:
        write_whole(path, text.encode())
    except FlextopoError as error:
        raise TopologyError(str(error)) from None


def read_resource(path: str | Path) -> nx.DiGraph:
    """Read a custom resource and check all of it.

    Args:
        path: YAML or JSON of at most 64 MiB; the content decides, not the file's ending.

    Returns:
        The graph of one node.

    Raises:
        TopologyError: the file cannot be read, or one of its fields is illegal.
    """
    source = str(path)
    return graph_from_resource(parse_document(decode_input(read_input(path), source), source), path)


def graph_from_resource(document: object, source: str | Path = "resource") -> nx.DiGraph:
    """Check a parsed custom resource and turn it into a graph.

    Args:
        document: what `json.loads` or `yaml.safe_load` returned.
        source: the file's name for messages.

    Returns:
        The graph; `contain` edges are called `contains`, attribute values are strings.

    Raises:
        TopologyError: names the value, its place such as `spec.edges[3].target`, and what was
            legal.

    References:
        The public FlexTopo objects, whose attributes may be integers and whose GPUs have no edge.
    """
    where = f"{source}: "
    resource = mapping(document, f"{where}the document")
    for key, legal in (("apiVersion", API_VERSION), ("kind", KIND)):
        if resource.get(key) != legal:
            raise TopologyError(f"{where}{key} is {show(resource.get(key))}; legal: {legal}")
    metadata = mapping(resource.get("metadata"), f"{where}metadata")
    graph = nx.DiGraph(name=text_field(metadata, "name", f"{where}metadata"))
    spec = mapping(resource.get("spec"), f"{where}spec")
    for i, entry in enumerate(_entries(spec, "nodes", where)):
        _add_vertex(graph, entry, f"{where}spec.nodes[{i}]")
    edges: Edges = {}
    for i, entry in enumerate(_entries(spec, "edges", where)):
        _add_edge(graph, edges, entry, f"{where}spec.edges[{i}]")
    _check_shape(graph, edges)
    graph.add_edges_from((*ends, {"type": kind}) for ends, (kind, _) in edges.items())
    return graph


def _add_vertex(graph: nx.DiGraph, entry: object, where: str) -> None:
    vertex = mapping(entry, where)
    name, kind = text_field(vertex, "id", where), text_field(vertex, "type", where)
    if kind not in list(VertexType):
        raise TopologyError(
            f"{where}.type: unknown vertex type {kind!r}; legal: {', '.join(VertexType)}"
        )
    form, pattern = _ID_PATTERNS[VertexType(kind)]
    if not re.fullmatch(pattern, name):
        raise TopologyError(f"{where}.id: {name!r} for a {kind}; legal: {form}")
    if name in graph:
        raise TopologyError(f"{where}.id: vertex {name!r} is listed twice; legal: once")
    raw = vertex.get("attributes")
    attributes = {} if raw is None else _attributes(mapping(raw, f"{where}.attributes"), where)
    if kind in (VertexType.CORE, VertexType.GPU):
        _check_status(attributes, f"{where}.attributes")
    graph.add_node(name, type=VertexType(kind), attributes=attributes)


def _attributes(raw: Mapping[Any, Any], where: str) -> dict[str, str]:
    attributes = {}
    for key, value in raw.items():
        # Integers are what older objects carry; a bare `usedBy:` is how YAML writes "nobody".
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not (isinstance(value, str | None) or (is_integer and abs(value) < 2**63)):
            raise TopologyError(
                f"{where}.attributes.{key}: {show(value)}; legal: a string or an integer"
            )
        attributes[str(key)] = "" if value is None else str(value)
    return attributes


def _check_status(attributes: dict[str, str], where: str) -> None:
    """Require that `status` and `usedBy` say the same; a missing status means free."""
    status = attributes.setdefault("status", Status.FREE.value)
    if status not in list(Status):
        raise TopologyError(f"{where}.status: {status!r}; legal: {', '.join(Status)}")
    pod = attributes.get("usedBy", "")
    held = status in (Status.USED, Status.SHARED)
    if held and not pod:
        raise TopologyError(
            f"{where}.usedBy: missing although status is {status}; legal: a pod name"
        )
    if pod and not held:
        raise TopologyError(f"{where}.status: {status} although used by {pod!r}; legal: used")
    memory = attributes.get("memoryTotal", "")
    if memory and not re.fullmatch("[0-9]{1,9}", memory):
        raise TopologyError(f"{where}.memoryTotal: {memory!r}; legal: whole MiB")


def _add_edge(graph: nx.DiGraph, edges: Edges, entry: object, where: str) -> None:
    edge = mapping(entry, where)
    ends = text_field(edge, "source", where), text_field(edge, "target", where)
    for key, vertex in zip(("source", "target"), ends, strict=True):
        if vertex not in graph:
            raise TopologyError(
                f"{where}.{key}: no vertex is called {vertex!r}; legal: an id of spec.nodes"
            )
    kind = _EDGE_TYPES.get(text_field(edge, "type", where))
    if kind is None:
        raise TopologyError(
            f"{where}.type: unknown edge type {edge['type']!r}; legal: {', '.join(_EDGE_TYPES)}"
        )
    known = edges.get(ends)
    # One pair may be joined twice; the tree's edge tells most, so it is the one kept.
    if known is None or list(EdgeType).index(kind) < list(EdgeType).index(known[0]):
        edges[ends] = kind, where


def _check_shape(graph: nx.DiGraph, edges: Edges) -> None:
    """Refuse cycles, edges against the order of the layers, and second parents."""
    parents: dict[str, str] = {}
    localized: dict[str, tuple[str, str]] = {}
    for (source, target), (edge, place) in edges.items():
        kinds = graph.nodes[source]["type"], graph.nodes[target]["type"]
        if edge == EdgeType.CONTAINS:
            if _DEPTH[kinds[0]] >= _DEPTH[kinds[1]]:
                raise _wrong_layers(edges, source, target, kinds)
            if parents.setdefault(target, source) != source:
                raise _second_parent(target, parents[target], source, place)
        elif edge == EdgeType.LOCALIZED and set(kinds) == _LOCALIZED_ENDS:
            gpu, numa_node = (source, target) if kinds[0] == "GPU" else (target, source)
            if localized.setdefault(gpu, (numa_node, place))[0] != numa_node:
                raise _second_parent(gpu, localized[gpu][0], numa_node, place)
    for gpu, (numa_node, place) in localized.items():
        lines = _line(parents, parents.get(gpu, numa_node)), _line(parents, numa_node)
        if lines[0][0] not in lines[1] and lines[1][0] not in lines[0]:
            raise _second_parent(gpu, parents[gpu], numa_node, place)


def _wrong_layers(
    edges: Edges, source: str, target: str, kinds: tuple[VertexType, VertexType]
) -> TopologyError:
    """Say what is wrong with an edge that does not lead inwards: every cycle has one."""
    place = edges[source, target][1]
    tree = nx.DiGraph()
    tree.add_edges_from(ends for ends, (kind, _) in edges.items() if kind == EdgeType.CONTAINS)
    try:
        way_back = nx.shortest_path(tree, target, source)
    except nx.NetworkXNoPath:
        return TopologyError(
            f"{place}: a {kinds[0]} contains a {kinds[1]}; legal: "
            "Socket contains NUMANode contains CoreGroup contains CPUCore or GPU"
        )
    ring = " -> ".join([source, *way_back[:8]]) + (" ..." if len(way_back) > 8 else "")
    return TopologyError(f"{place}: contains edges form a cycle {ring}; legal: a tree")


def _line(parents: Mapping[str, str], vertex: str) -> list[str]:
    """List a vertex and all that contain it."""
    line = [vertex]
    while line[-1] in parents:
        line.append(parents[line[-1]])
    return line


def _second_parent(vertex: str, first: str, second: str, place: str) -> TopologyError:
    return TopologyError(
        f"{place}: {vertex} already belongs to {first}, so it cannot belong to {second}; "
        "legal: one parent"
    )


def _entries(spec: Mapping[Any, Any], key: str, where: str) -> list[object]:
    value = spec.get(key)
    # A server without any edge is written as `edges: null` by Go clients.
    if value is None and key == "edges" and key in spec:
        return []
    if not isinstance(value, list):
        raise TopologyError(f"{where}spec.{key}: {show(value)}; legal: a list")
    return value
