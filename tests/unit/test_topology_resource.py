"""Reading of the FlexTopo custom resource: every defect is named with its place."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.files import MAX_INPUT_BYTES
from flextopo.cluster.topology.model import ServerModel
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import graph_from_resource, read_resource


def small_resource() -> dict[str, Any]:
    """Return 2 sockets of one NUMA node, one core each, and a GPU on the second."""
    kinds = {"socket": "Socket", "numa": "NUMANode", "core": "CPUCore"}
    nodes: list[dict[str, Any]] = [
        {"id": f"{word}-{i}", "type": kind} for i in (0, 1) for word, kind in kinds.items()
    ]
    nodes.append({"id": "gpu-0", "type": "GPU", "attributes": {"name": "T4", "memoryTotal": 16}})
    pairs = [(f"socket-{i}", f"numa-{i}") for i in (0, 1)]
    pairs += [(f"numa-{i}", f"core-{i}") for i in (0, 1)] + [("numa-1", "gpu-0")]
    return {
        "apiVersion": "flextopo.baichuan-inc.com/v1alpha1",
        "kind": "FlexTopo",
        "metadata": {"name": "small"},
        "spec": {
            "nodes": nodes,
            "edges": [{"source": a, "target": b, "type": "contains"} for a, b in pairs],
        },
    }


def edge(source: str, target: str, kind: str = "contains") -> dict[str, str]:
    return {"source": source, "target": target, "type": kind}


def test_integer_attributes_and_missing_status_are_accepted() -> None:
    graph = graph_from_resource(small_resource())
    assert graph.nodes["gpu-0"]["attributes"]["memoryTotal"] == "16"
    assert graph.nodes["core-0"]["attributes"] == {"status": "free"}
    model, warnings = server_model_from_graph(graph)
    assert model == ServerModel("small", (1,), (0, 1), (1, 1), gpu_name="T4", gpu_memory_mib=16)
    assert warnings == []


def change(path: str, value: object) -> Any:
    """Return a function that sets one field of a resource, or drops it for `...`."""

    def apply(resource: dict[str, Any]) -> None:
        *steps, last = [int(s) if s.isdecimal() else s for s in re.findall(r"\w+", path)]
        place: Any = resource
        for step in steps:
            place = place[step]
        if value is ...:
            del place[last]
        elif isinstance(place, list) and last == len(place):
            place.append(value)
        else:
            place[last] = value

    return apply


BAD_RESOURCES = {
    "version": ("apiVersion", "v2", "apiVersion is 'v2'; legal: flextopo.baichuan-inc.com"),
    "kind": ("kind", "Pod", "kind is 'Pod'; legal: FlexTopo"),
    "metadata": ("metadata", ..., "metadata: missing; legal: a map of fields"),
    "name": ("metadata.name", "", "metadata.name: ''; legal: a text that is not empty"),
    "numeric-name": ("metadata.name", 7, "metadata.name: 7; legal: a text that is not empty"),
    "spec": ("spec", [], "spec: a list; legal: a map of fields"),
    "nodes": ("spec.nodes", ..., "spec.nodes: missing; legal: a list"),
    "edges": ("spec.edges", ..., "spec.edges: missing; legal: a list"),
    "vertex": ("spec.nodes[2]", "x", "spec.nodes[2]: 'x'; legal: a map of fields"),
    "vertex-id": ("spec.nodes[2].id", ..., "spec.nodes[2].id: missing; legal: a text"),
    "vertex-type": ("spec.nodes[2].type", ..., "spec.nodes[2].type: missing; legal: a text"),
    "unknown-type": (
        "spec.nodes[2].type",
        "TPU",
        "nodes[2].type: unknown vertex type 'TPU'; legal: Socket, NUMANode, CoreGroup, CPUCore, GPU",
    ),
    "id-form": ("spec.nodes[2].id", "cpu-1", "spec.nodes[2].id: 'cpu-1' for a CPUCore; legal: "),
    "id-zeros": ("spec.nodes[2].id", "core-01", "'core-01' for a CPUCore; legal: core-C"),
    "twice": (
        "spec.nodes[2].id",
        "core-1",
        "spec.nodes[5].id: vertex 'core-1' is listed twice; legal: once",
    ),
    "attributes": ("spec.nodes[2].attributes", [1], "spec.nodes[2].attributes: a list; legal: a"),
    "attribute": (
        "spec.nodes[2].attributes",
        {"x": 1.5},
        "spec.nodes[2].attributes.x: 1.5; legal: a string or an integer",
    ),
    "huge-attribute": ("spec.nodes[2].attributes", {"x": 2**70}, "legal: a string or an integer"),
    "status": (
        "spec.nodes[2].attributes",
        {"status": "busy"},
        "spec.nodes[2].attributes.status: 'busy'; legal: free, used, shared, reserved",
    ),
    "used-by-nobody": (
        "spec.nodes[2].attributes",
        {"status": "used"},
        "spec.nodes[2].attributes.usedBy: missing although status is used; legal: a pod name",
    ),
    "shared-by-nobody": (
        "spec.nodes[6].attributes",
        {"status": "shared"},
        "spec.nodes[6].attributes.usedBy: missing although status is shared; legal: a pod name",
    ),
    "reserved-but-held": (
        "spec.nodes[2].attributes",
        {"status": "reserved", "usedBy": "p"},
        "spec.nodes[2].attributes.status: reserved although used by 'p'; legal: used",
    ),
    "free-but-held": (
        "spec.nodes[6].attributes",
        {"status": "free", "usedBy": "p"},
        "spec.nodes[6].attributes.status: free although used by 'p'; legal: used",
    ),
    "memory": (
        "spec.nodes[6].attributes.memoryTotal",
        "16 GiB",
        "spec.nodes[6].attributes.memoryTotal: '16 GiB'; legal: whole MiB",
    ),
    "edge": ("spec.edges[3]", None, "spec.edges[3]: missing; legal: a map of fields"),
    "edge-source": ("spec.edges[3].source", ..., "spec.edges[3].source: missing; legal: a text"),
    "edge-type": ("spec.edges[3].type", ..., "spec.edges[3].type: missing; legal: a text"),
    "edge-target": (
        "spec.edges[3].target",
        "core-7",
        "spec.edges[3].target: no vertex is called 'core-7'; legal: an id of spec.nodes",
    ),
    "unknown-edge": (
        "spec.edges[3].type",
        "owns",
        "spec.edges[3].type: unknown edge type 'owns'; legal: contains, localized, host, nearby",
    ),
    "cycle": (
        "spec.edges[5]",
        edge("core-0", "socket-0"),
        "spec.edges[5]: contains edges form a cycle core-0 -> socket-0 -> numa-0 -> core-0; legal",
    ),
    "loop": (
        "spec.edges[5]",
        edge("numa-0", "numa-0"),
        "spec.edges[5]: contains edges form a cycle numa-0 -> numa-0; legal: a tree",
    ),
    "layers": (
        "spec.edges[5]",
        edge("numa-0", "socket-1"),
        "spec.edges[5]: a NUMANode contains a Socket; legal: Socket contains NUMANode",
    ),
    "core-parents": (
        "spec.edges[5]",
        edge("numa-1", "core-0"),
        "edges[5]: core-0 already belongs to numa-0, so it cannot belong to numa-1; legal: one",
    ),
    "gpu-parents": (
        "spec.edges[5]",
        edge("numa-0", "gpu-0"),
        "spec.edges[5]: gpu-0 already belongs to numa-1, so it cannot belong to numa-0",
    ),
    "gpu-places": (
        "spec.edges[5]",
        edge("gpu-0", "numa-0", "localized"),
        "spec.edges[5]: gpu-0 already belongs to numa-1, so it cannot belong to numa-0",
    ),
}


@pytest.mark.parametrize("case", BAD_RESOURCES)
def test_a_defect_is_named_with_its_place(case: str) -> None:
    path, value, message = BAD_RESOURCES[case]
    resource = small_resource()
    graph_from_resource(copy.deepcopy(resource))
    change(path, value)(resource)
    with pytest.raises(TopologyError, match=re.escape(message)) as caught:
        graph_from_resource(resource, "file.yaml")
    assert str(caught.value).startswith("file.yaml: ")
    assert "\n" not in str(caught.value)


def test_two_localized_edges_to_different_numa_nodes_are_refused() -> None:
    resource = small_resource()
    resource["spec"]["edges"][-1:] = [
        edge("numa-1", "gpu-0", "localized"),
        edge("gpu-0", "numa-0", "localized"),
    ]
    with pytest.raises(TopologyError, match="gpu-0 already belongs to numa-1"):
        graph_from_resource(resource)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"f\.yaml:1: .*; legal: JSON"),
        ('{"a": 1,\n"b": }', r"f\.yaml:2: Expecting value in column 6; legal: JSON"),
        ('{"a": ' + "[" * 100_000, r"f\.yaml: .*legal: an object as tools write it"),
        (
            '{"a": ' + "9" * 10_000 + "}",
            r"f\.yaml: a number too long.*legal: an object as tools write it",
        ),
        ("a: b: c", r"f\.yaml:1: mapping values are not allowed.*; legal: plain YAML"),
        ("kind: FlexTopo\nx: [1\n", r"f\.yaml:3: .*; legal: plain YAML"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", r"f\.yaml:3: merge key; legal: plain YAML"),
        ("a: !!python/object/apply:os.getcwd []", r"f\.yaml:1: could not determine.*plain YAML"),
        ("a: 2026-99-99", r"f\.yaml: month must be in 1\.\.12; legal: plain YAML"),
        ("a: \x00", r"f\.yaml.*; legal: plain YAML"),
        ("just words", r"f\.yaml: the document: 'just words'; legal: a map of fields"),
        ("\n \n", r"f\.yaml: the file is empty"),
    ],
)
def test_text_that_is_no_resource(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(TopologyError, match=message) as caught:
        read_resource(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="absent: no such file"):
        read_resource(tmp_path / "absent")
    with pytest.raises(TopologyError, match=r"cannot be read \(Is a directory\)"):
        read_resource(tmp_path)
    (tmp_path / "latin").write_bytes(b"kind: \xe9")
    with pytest.raises(TopologyError, match="latin: byte 6 is 0xe9; legal: UTF-8 text"):
        read_resource(tmp_path / "latin")
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(200 * 2**20)
    with pytest.raises(TopologyError, match="large: larger than 64 MiB; legal: up to 64 MiB"):
        read_resource(large)
    assert MAX_INPUT_BYTES == 64 * 2**20
