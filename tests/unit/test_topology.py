"""The FlexTopo graph, its custom resource, and what pods hold in it."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import networkx as nx
import pytest
import yaml

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.load import load_server
from flextopo.cluster.topology.flextopo import Allocation, allocations, build_graph, mark_used
from flextopo.cluster.topology.graph import VertexType
from flextopo.cluster.topology.model import ServerModel, preset
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import (
    graph_from_resource,
    read_resource,
    to_resource,
    write_resource,
)


def test_rtx4090_graph_has_the_vertices_and_edges_of_the_specification() -> None:
    graph = build_graph(preset("rtx4090"), "node-7")
    kinds = Counter(str(data["type"]) for _, data in graph.nodes(data=True))
    assert kinds == {"Socket": 2, "NUMANode": 8, "CoreGroup": 8, "CPUCore": 64, "GPU": 8}
    edges = Counter(str(kind) for _, _, kind in graph.edges(data="type"))
    assert edges == {"contains": 80, "localized": 8}
    assert graph.graph["name"] == "node-7"
    assert graph.nodes["coregroup-4-4"]["attributes"] == {"nodeID": "4", "groupIndex": "4"}
    assert graph.nodes["gpu-0"]["attributes"] == {
        "name": "NVIDIA GeForce RTX 4090",
        "memoryTotal": "24564",
        "status": "free",
    }
    assert ("numa-3", "gpu-0") in graph.edges
    assert ("coregroup-4-4", "core-39") in graph.edges


def test_graph_from_a_64_line_lscpu(tmp_path: Path) -> None:
    lines = [f"{cpu},{cpu},{cpu // 32},{cpu // 8}" for cpu in range(64)]
    path = tmp_path / "lscpu.csv"
    path.write_text("# CPU,Core,Socket,Node\n" + "\n".join(lines) + "\n")
    graph = build_graph(load_server(path)[0], "node")
    kinds = Counter(str(data["type"]) for _, data in graph.nodes(data=True))
    assert kinds == {"Socket": 2, "NUMANode": 8, "CoreGroup": 8, "CPUCore": 64}


def test_core_groups_of_a_numa_node_end_with_a_smaller_one() -> None:
    model = ServerModel("m", (), (0, 0), (3, 2), core_ids=((0, 2, 4), (1, 3)))
    graph = build_graph(model, "node", core_group_size=2)
    groups = {v: sorted(graph[v]) for v in graph if v.startswith("coregroup")}
    assert groups == {
        "coregroup-0-0": ["core-0", "core-2"],
        "coregroup-0-1": ["core-4"],
        "coregroup-1-2": ["core-1", "core-3"],
    }


def test_build_graph_refuses_an_empty_name_and_group_size() -> None:
    with pytest.raises(TopologyError, match="node name is empty"):
        build_graph(preset("a100"), "")
    with pytest.raises(TopologyError, match="core group size 0; legal: 1 or more"):
        build_graph(preset("a100"), "node", core_group_size=0)


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
@pytest.mark.parametrize(
    "model",
    [
        preset("rtx4090"),
        preset("a100"),
        ServerModel("odd", (1, 0, 1), (0, 0, 1), (2, 0, 1), core_ids=((5, 9), (), (2,))),
        ServerModel("bare", (), (0,), (1,)),
    ],
    ids=lambda model: model.name,
)
def test_a_model_survives_the_resource(model: ServerModel, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"node{suffix}"
    write_resource(build_graph(model, model.name), path)
    assert server_model_from_graph(read_resource(path)) == (model, [])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_resource_survives_reading() -> None:
    graph = build_graph(preset("rtx4090"), "node")
    mark_used(graph, "default/llm", [0, 1], [3])
    resource = to_resource(graph)
    again = graph_from_resource(json.loads(json.dumps(resource)))
    assert to_resource(again) == resource
    assert dict(again.adj) == dict(graph.adj)


def test_write_resource_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    graph = build_graph(preset("a100"), "node")
    with pytest.raises(TopologyError, match=r"node\.txt: file ending '\.txt'; legal: \.yaml"):
        write_resource(graph, tmp_path / "node.txt")
    with pytest.raises(TopologyError, match="cannot be written"):
        write_resource(graph, tmp_path / "absent" / "node.yaml")
    # A folder of that name cannot be replaced: the unfinished file must not be left behind.
    (tmp_path / "node.json" / "inner").mkdir(parents=True)
    with pytest.raises(TopologyError, match="cannot be written"):
        write_resource(graph, tmp_path / "node.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.json"]
    (tmp_path / "file").touch()
    with pytest.raises(TopologyError, match="cannot be written"):
        write_resource(graph, tmp_path / "file" / "node.json")


def location_case() -> nx.DiGraph:
    """Build the authors' location case: two pods on two NUMA nodes of one of two sockets."""
    model = ServerModel("m", (), (0, 0), (4, 4), core_ids=((1, 2, 3, 4), (5, 6, 7, 8)))
    graph = build_graph(model, "node")
    graph.add_node("socket-1", type=VertexType.SOCKET, attributes={})
    mark_used(graph, "pod3", [1, 2, 3, 4], [])
    mark_used(graph, "pod4", [5, 6, 7, 8], [])
    return graph_from_resource(to_resource(graph))


def test_location_case_of_the_specification() -> None:
    assert allocations(location_case()) == {
        "pod3": Allocation((1, 2, 3, 4), (), (0,), (0,)),
        "pod4": Allocation((5, 6, 7, 8), (), (1,), (0,)),
    }


def test_an_allocation_spans_the_places_of_its_cores_and_gpus() -> None:
    graph = build_graph(preset("rtx4090"), "node")
    mark_used(graph, "a", range(9), [7])
    mark_used(graph, "b", [], [0, 1])
    assert allocations(graph) == {
        "a": Allocation(tuple(range(9)), (7,), (0, 1, 4), (0, 1)),
        "b": Allocation((), (0, 1), (2, 3), (0,)),
    }
    graph.remove_edge("numa-3", "gpu-0")
    assert allocations(graph)["b"] == Allocation((), (0, 1), (2,), (0,))


def test_daemons_hold_nothing() -> None:
    graph = build_graph(preset("rtx4090"), "node")
    mark_used(graph, "monitoring/node-exporter-mb8lj", range(43), [])
    mark_used(graph, "node-exporters", [50], [])
    assert list(allocations(graph)) == ["node-exporters"]
    assert list(allocations(graph, ignore=())) == [
        "monitoring/node-exporter-mb8lj",
        "node-exporters",
    ]
    mark_used(graph, "llm", [0], [])
    assert allocations(graph)["llm"].cores == (0,)
    with pytest.raises(TopologyError, match="core-1 is used by pod 'monitoring/node-exporter"):
        mark_used(graph, "llm", [1], [], ignore=())


def test_mark_used_changes_all_or_nothing() -> None:
    graph = build_graph(preset("a100"), "node")
    mark_used(graph, "a", [0, 1], [0])
    mark_used(graph, "a", [1, 2], [0])
    before = to_resource(graph)
    with pytest.raises(TopologyError, match="pod 'b': gpu-0 is used by pod 'a'; legal: free"):
        mark_used(graph, "b", [5], [0])
    with pytest.raises(TopologyError, match="pod 'b': node 'node' has no core-128"):
        mark_used(graph, "b", [5, 128], [])
    with pytest.raises(TopologyError, match="pod's name is empty"):
        mark_used(graph, "", [5], [])
    assert to_resource(graph) == before
    assert allocations(graph)["a"].cores == (0, 1, 2)


def test_what_is_shared_or_reserved_is_no_pods() -> None:
    graph = build_graph(preset("a100"), "node")
    graph.nodes["core-0"]["attributes"]["status"] = "reserved"
    graph.nodes["gpu-0"]["attributes"].update(status="shared", usedBy="n/a,n/b")
    graph = graph_from_resource(to_resource(graph))
    assert allocations(graph) == {}
    model, _ = server_model_from_graph(graph)
    assert (model.numa_cores, model.cores[0][:2]) == ((63, 64), (1, 2))
    assert model.num_gpus == 8
    for cores, gpus, message in (([0], [], "core-0 is reserved"), ([], [0], "gpu-0 is shared")):
        with pytest.raises(TopologyError, match=f"pod 'p': {message}; legal: free cores and GPUs"):
            mark_used(graph, "p", cores, gpus)


def test_the_domain_loads_no_yaml_and_no_xml_parser() -> None:
    code = (
        "import sys, flextopo.cluster.topology.captures.load, flextopo.cluster.topology.servers, flextopo.cluster.topology.detect\n"
        "print([m for m in ('yaml', 'defusedxml', 'typer', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_written_yaml_is_what_other_readers_expect(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    graph = build_graph(preset("rtx4090"), "node")
    write_resource(graph, path)
    assert yaml.safe_load(path.read_text()) == to_resource(graph)
