"""Captures of real servers load and agree with what was read off them by hand.

Origin: the topology captures and `topologies.json` of the shared data folder, each with its
source. Where a capture does not tell cores, sockets or GPUs, the difference is named below.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flextopo.cluster.topology.captures.load import load_server
from flextopo.cluster.topology.flextopo import allocations, build_graph
from flextopo.cluster.topology.model import ServerModel
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import read_resource, write_resource

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "topology"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the shared data folder is absent")

IDS = (
    "rtx4090x8_2s2n72c_pix",
    "a100sxm80x8_2s2n128c",
    "a100pcie80x8_2s8n64c_mlperf",
    "azure_ndv4_a100x8_4n",
    "aws_p4d_a100x8_2n",
    "cpu_epyc7763x2_128c",
    "cpu_2s4n40c_snc",
    "flextopo_rtx4090x8_2s8n64c",
)
# NCCL counts hardware threads: 96 on both; only AWS's are numbered as two threads a core.
CORES_OF_NCCL = {"azure_ndv4_a100x8_4n": 96, "aws_p4d_a100x8_2n": 48}
# Its one NUMA node spans both sockets, which a model cannot hold: it is cut in two.
CUT_NUMA_NODES = {"cpu_epyc7763x2_128c": 2}
# It has no GPU edge; GPUs are put as on the preset of the same shape.
ASSUMED_GPUS = {"flextopo_rtx4090x8_2s8n64c": [3, 2, 1, 0, 7, 6, 5, 4]}


@cache
def facts() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in json.loads((FOLDER / "topologies.json").read_text())}


def check(model: ServerModel, capture: str, with_gpus: bool) -> None:
    fact = facts()[capture]
    assert model.num_sockets == fact["sockets"]
    assert model.num_numa_nodes == CUT_NUMA_NODES.get(capture, len(fact["numa"]))
    assert model.num_cores == (fact["cores"] or CORES_OF_NCCL[capture])
    expected = fact["gpu_numa"] or ASSUMED_GPUS.get(capture, [])
    assert list(model.gpu_numa) == (expected if with_gpus else [])
    if fact["numa"][0].get("socket") is not None:
        assert list(model.numa_socket) == [numa_node["socket"] for numa_node in fact["numa"]]


def test_every_capture_is_tested() -> None:
    assert sorted(facts()) == sorted(IDS)


@pytest.mark.parametrize("capture", IDS)
def test_the_main_file_agrees(capture: str) -> None:
    fact = facts()[capture]
    model, _ = load_server(FOLDER / (fact["file"] or fact["lscpu_file"]))
    check(model, capture, with_gpus=True)


@pytest.mark.parametrize("capture", [i for i in IDS if "azure" not in i and "aws" not in i])
def test_the_lscpu_file_agrees(capture: str) -> None:
    fact = facts()[capture]
    name = fact["lscpu_file"] or "cpu_epyc7763x2_128c.hwloc.cpu_core_socket.csv"
    model, warnings = load_server(FOLDER / name)
    check(model, capture, with_gpus=False)
    assert "GPUs are not listed" in warnings[-1]


@pytest.mark.parametrize("capture", IDS[:3])
def test_cores_of_lscpu_and_gpus_of_the_main_file(capture: str) -> None:
    fact = facts()[capture]
    model, warnings = load_server(FOLDER / fact["lscpu_file"], FOLDER / fact["file"])
    check(model, capture, with_gpus=True)
    assert warnings == []


def test_scattered_core_numbers_survive() -> None:
    model, _ = load_server(FOLDER / "cpu_2s4n40c_snc.lscpu_p.csv")
    assert model.cores[0] == (0, 1, 2, 5, 6, 10, 11, 12, 15, 16)
    assert model.cores[3] == (23, 24, 27, 28, 29, 33, 34, 37, 38, 39)


def test_the_public_object_takes_gpu_places_from_a_capture() -> None:
    resource = FOLDER / "flextopo_rtx4090x8_2s8n64c.cr.yaml"
    numa_config = FOLDER / "a100pcie80x8_2s8n64c_mlperf.numa.txt"
    model, warnings = load_server(resource, numa_config)
    assert model.gpu_numa == (3, 2, 1, 0, 7, 6, 5, 4)
    assert "numa.txt' puts the GPUs on NUMA nodes 3 2 1 0 7 6 5 4" in warnings[0]


def test_the_public_object_has_two_pods_and_a_daemon() -> None:
    graph = read_resource(FOLDER / "flextopo_rtx4090x8_2s8n64c.cr.yaml")
    assert len(graph) == 90
    assert len(graph.edges) == 80
    one_card, two_cards = allocations(graph).values()
    assert (one_card.cores, one_card.numa_nodes) == (tuple(range(24, 31)), (3,))
    assert (two_cards.cores, two_cards.numa_nodes) == (tuple(range(32, 46)), (4, 5))
    assert one_card.sockets == (0,)
    assert two_cards.sockets == (1,)
    daemon = [pod for name, pod in allocations(graph, ignore=()).items() if "exporter" in name]
    assert [len(pod.cores) for pod in daemon] == [43]


@pytest.mark.parametrize("capture", IDS)
def test_a_capture_survives_as_a_resource(capture: str, tmp_path: Path) -> None:
    fact = facts()[capture]
    model, _ = load_server(FOLDER / (fact["file"] or fact["lscpu_file"]))
    write_resource(build_graph(model, model.name), tmp_path / "node.yaml")
    assert server_model_from_graph(read_resource(tmp_path / "node.yaml")) == (model, [])
