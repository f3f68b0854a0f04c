"""What a FlexTopo graph does not tell is assumed, with a warning."""

import json
from typing import Any

import networkx as nx
import pytest

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.flextopo import build_graph
from flextopo.cluster.topology.graph import EdgeType
from flextopo.cluster.topology.model import PRESETS, ServerModel, preset
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import graph_from_resource, to_resource

SMALL = ServerModel("small", (1,), (0, 1), (1, 1), gpu_name="T4", gpu_memory_mib=16)


def small_resource() -> dict[str, Any]:
    """Return 2 sockets of one NUMA node, one core each, and as last edge a GPU on the second."""
    resource = to_resource(build_graph(SMALL, "small"))
    resource["spec"]["edges"].sort(key=lambda edge: str(edge["target"]).startswith("gpu"))
    return resource


def edge(source: str, target: str, kind: str = "contains") -> dict[str, str]:
    return {"source": source, "target": target, "type": kind}


@pytest.mark.parametrize(
    "located",
    [
        edge("numa-1", "gpu-0", "contain"),
        edge("numa-1", "gpu-0", "contains"),
        edge("numa-1", "gpu-0", "localized"),
        edge("gpu-0", "numa-1", "localized"),
    ],
)
def test_edge_kinds_that_locate_a_gpu(located: dict[str, str]) -> None:
    resource = small_resource()
    resource["spec"]["edges"][-1] = located
    assert server_model_from_graph(graph_from_resource(resource)) == (SMALL, [])


def test_host_edges_build_the_tree_where_contains_is_missing() -> None:
    resource = small_resource()
    for entry in resource["spec"]["edges"]:
        entry["type"] = "host"
    model, warnings = server_model_from_graph(graph_from_resource(resource))
    assert (model.gpu_numa, model.numa_socket, warnings) == ((1,), (0, 1), [])


def test_nearby_edges_may_go_both_ways() -> None:
    resource = small_resource()
    resource["spec"]["edges"] += [
        edge("numa-0", "numa-1", "nearby"),
        edge("numa-1", "numa-0", "nearby"),
    ]
    model, _ = server_model_from_graph(graph_from_resource(resource))
    assert model.gpu_numa == (1,)


def test_a_gpu_of_a_socket_and_of_a_numa_node_in_it() -> None:
    resource = small_resource()
    resource["spec"]["edges"][-1] = edge("socket-1", "gpu-0")
    resource["spec"]["edges"].append(edge("numa-1", "gpu-0", "localized"))
    assert server_model_from_graph(graph_from_resource(resource))[0].gpu_numa == (1,)
    resource["spec"]["edges"][-1]["source"] = "numa-0"
    with pytest.raises(TopologyError, match="gpu-0 already belongs to socket-1"):
        graph_from_resource(resource)


def test_a_gpu_of_a_socket_alone_stays_in_it() -> None:
    graph = build_graph(ServerModel("m", (2, 3), (0, 0, 1, 1), (1, 1, 1, 1)), "node")
    graph.remove_edges_from([("numa-2", "gpu-0"), ("numa-3", "gpu-1")])
    graph.add_edge("socket-1", "gpu-0", type=EdgeType.CONTAINS)
    model, warnings = server_model_from_graph(graph)
    # Spreading would put GPU 0 on NUMA node 0, which is in the other socket.
    assert model.gpu_numa == (2, 2)
    assert "puts the GPUs on NUMA nodes 2 2" in warnings[0]


def without_gpu_edges(model: ServerModel) -> nx.DiGraph:
    graph = build_graph(model, "node")
    graph.remove_edges_from([(u, v) for u, v in graph.edges if v.startswith("gpu")])
    return graph_from_resource(to_resource(graph))


def test_gpus_without_edges_are_located_by_the_preset_of_the_same_shape() -> None:
    model, warnings = server_model_from_graph(without_gpu_edges(preset("rtx4090")))
    assert model.gpu_numa == (3, 2, 1, 0, 7, 6, 5, 4)
    assert len(warnings) == 1
    assert "no edge locates gpu-0, gpu-1" in warnings[0]
    assert "the preset 'rtx4090'" in warnings[0]


def test_gpus_without_edges_of_another_name_are_spread_in_order() -> None:
    other = ServerModel("x", (0,) * 8, (0, 0, 0, 0, 1, 1, 1, 1), (8,) * 8, gpu_name="L40S")
    model, warnings = server_model_from_graph(without_gpu_edges(other))
    assert model.gpu_numa == (0, 1, 2, 3, 4, 5, 6, 7)
    assert "spreading in order" in warnings[0]
    memory_only = ServerModel("x", (0,) * 4, (0, 0, 1), (4, 0, 4))
    assert server_model_from_graph(without_gpu_edges(memory_only))[0].gpu_numa == (0, 0, 2, 2)


def test_gpus_without_edges_are_located_by_the_given_server() -> None:
    graph = without_gpu_edges(preset("a100"))
    given = ServerModel("given", (1, 1, 1, 1, 0, 0, 0, 0), (0, 1), (64, 64))
    model, warnings = server_model_from_graph(graph, given)
    assert model.gpu_numa == given.gpu_numa
    assert "'given' puts the GPUs on NUMA nodes 1 1 1 1 0 0 0 0" in warnings[0]
    with pytest.raises(TopologyError, match="differ in shape"):
        server_model_from_graph(graph, preset("rtx4090"))


def test_an_edge_outranks_the_given_server() -> None:
    graph = build_graph(preset("a100"), "node")
    given = ServerModel("given", (1,) * 8, (0, 1), (64, 64))
    assert server_model_from_graph(graph, given)[0].gpu_numa == preset("a100").gpu_numa


def test_numbers_with_gaps_are_renumbered_with_a_warning() -> None:
    text = json.dumps(small_resource())
    for old, new in (("numa-1", "numa-4"), ("socket-1", "socket-9"), ("gpu-0", "gpu-2")):
        text = text.replace(old, new)
    model, warnings = server_model_from_graph(graph_from_resource(json.loads(text)))
    assert (model.gpu_numa, model.numa_socket) == ((1,), (0, 1))
    assert [warning.partition(": ")[2] for warning in warnings] == [
        "numa-0, numa-4 counted as numa-0 to numa-1 in order",
        "socket-0, socket-9 counted as socket-0 to socket-1 in order",
        "gpu-2 counted as gpu-0 to gpu-0 in order",
    ]


def test_gpus_of_two_kinds_and_an_empty_socket_are_warned_of() -> None:
    resource = small_resource()
    resource["spec"]["nodes"] += [
        {"id": "gpu-1", "type": "GPU", "attributes": {"name": "L4"}},
        {"id": "socket-2", "type": "Socket"},
    ]
    resource["spec"]["edges"].append(edge("numa-0", "gpu-1"))
    model, warnings = server_model_from_graph(graph_from_resource(resource))
    assert (model.gpu_name, model.gpu_memory_mib, model.num_sockets) == ("T4", 0, 2)
    assert [warning.partition(": ")[2] for warning in warnings] == [
        "socket-2 has no NUMANode and is left out",
        "GPUs of T4, L4 counted as equal",
    ]


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (("socket-1", "numa-1"), "numa-1 is in no Socket; legal: one"),
        (("coregroup-1-1", "core-1"), "core-1 is in no NUMANode; legal: one"),
    ],
)
def test_a_part_without_parent_makes_no_model(dropped: tuple[str, str], message: str) -> None:
    resource = small_resource()
    edges = resource["spec"]["edges"]
    edges[:] = [e for e in edges if (e["source"], e["target"]) != dropped]
    graph = graph_from_resource(resource)
    with pytest.raises(TopologyError, match=message):
        server_model_from_graph(graph)


def test_a_graph_without_numa_nodes_makes_no_model() -> None:
    resource = small_resource()
    resource["spec"] = {"nodes": [{"id": "socket-0", "type": "Socket"}], "edges": None}
    graph = graph_from_resource(resource)
    with pytest.raises(TopologyError, match="has no NUMANode vertex; legal: 1 or more"):
        server_model_from_graph(graph)


@pytest.mark.parametrize(
    ("name", "sockets", "cores", "gpu_numa"),
    [
        ("rtx4090", 2, 64, (3, 2, 1, 0, 7, 6, 5, 4)),
        ("a100", 2, 128, (0, 0, 0, 0, 1, 1, 1, 1)),
        ("gh200", 4, 288, (0, 1, 2, 3)),
        ("gb200", 2, 144, (0, 0, 1, 1)),
        ("mi300a", 4, 96, (0, 1, 2, 3)),
        ("dgx-spark", 1, 20, (0,)),
    ],
)
def test_presets(name: str, sockets: int, cores: int, gpu_numa: tuple[int, ...]) -> None:
    model = PRESETS[name]
    assert (model.name, model.num_sockets, model.num_cores) == (name, sockets, cores)
    assert model.gpu_numa == gpu_numa
