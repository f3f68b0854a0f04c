"""Text captures of servers (lscpu, nvidia-smi topo, numa_config) of odd and broken shapes."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from capture_texts import matrix
from captured import Save

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.load import load_server, parse_cpu_list
from flextopo.cluster.topology.flextopo import build_graph
from flextopo.cluster.topology.model import ServerModel, preset
from flextopo.cluster.topology.resource import write_resource


def lscpu(nodes: Sequence[tuple[int, int, str]], threads: int = 1) -> str:
    """Write `lscpu -p` from (NUMA node, socket, core list); thread t of core c is c + 1000 t."""
    lines = ["# CPU,Core,Socket,Node"]
    for thread in range(threads):
        for numa_node, socket, cores in nodes:
            for core in parse_cpu_list(cores):
                lines.append(f"{core + 1000 * thread},{core},{socket},{numa_node}")
    return "\n".join(lines) + "\n"


def even(nodes: int, cores: int, sockets: int = 2) -> str:
    """Write `lscpu -p` of equal NUMA nodes with consecutive cores."""
    spans = [f"{i * cores}-{i * cores + cores - 1}" for i in range(nodes)]
    return lscpu([(i, i * sockets // nodes, span) for i, span in enumerate(spans)])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-2,4,6-8", (0, 1, 2, 4, 6, 7, 8)),
        (" 0, 1 , 2-4 ", (0, 1, 2, 3, 4)),
        ("", ()),
        ("7,0-1,1", (0, 1, 7)),
    ],
)
def test_cpu_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == numbers


@pytest.mark.parametrize(
    "text", ["3-1", "a", "1-2-3", "1,", "-1", "0x3", "1 2", "0-99999999", "٣", "9" * 5000]
)
def test_bad_cpu_lists(text: str) -> None:
    with pytest.raises(TopologyError, match="of a CPU list; legal: a number or an ascending range"):
        parse_cpu_list(text)


def test_hardware_threads_of_a_core_count_once(save: Save) -> None:
    text = lscpu([(0, 0, "0-3"), (1, 1, "4-7")], threads=2)
    model, warnings = load_server(save("host.csv", text))
    assert model == ServerModel("host", (), (0, 1), (4, 4))
    assert len(warnings) == 1
    assert "GPUs are not listed" in warnings[0]


def test_core_numbers_that_start_again_in_each_socket(save: Save) -> None:
    lines = [f"{c + 8 * t},{c % 4},{c // 4},{c // 4}" for t in (0, 1) for c in range(8)]
    model, _ = load_server(save("host.csv", "\n".join(lines)))
    assert model == ServerModel("host", (), (0, 1), (4, 4))


def test_scattered_core_numbers_survive(save: Save) -> None:
    text = lscpu([(0, 0, "0,2,5"), (1, 0, "1,3-4"), (2, 1, "6-8")], threads=2)
    model, _ = load_server(save("host.csv", text))
    assert model.core_ids == ((0, 2, 5), (1, 3, 4), (6, 7, 8))
    assert model.numa_socket == (0, 0, 1)


def test_lscpu_with_cache_columns_and_windows_line_ends(save: Save) -> None:
    text = "# CPU,Core,Socket,Node,,L1d,L1i,L2,L3\r\n0,0,0,0,,0,0,0,0\r\n1,1,0,1,,1,1,1,0\r\n"
    assert load_server(save("host", text))[0] == ServerModel("host", (), (0, 0), (1, 1))


@pytest.mark.parametrize(
    "text", ["# CPU,Core,Socket,Node\n0,0,0,\n1,1,1,\n", "# CPU,Core,Socket (read)\n0,0,0\n1,1,1\n"]
)
def test_lscpu_without_numa_nodes(text: str, save: Save) -> None:
    model, warnings = load_server(save("host", text))
    assert model.numa_socket == (0, 1)
    assert "each socket counts as one NUMA node" in warnings[0]


def test_a_numa_node_over_two_sockets_is_cut(save: Save) -> None:
    topo = save("topo.txt", matrix([("0-1", "0"), ("2-3", "0"), ("0-3", "0")]))
    cores = save("host", "0,0,0,0\n1,1,0,0\n2,2,1,0\n3,3,1,0\n")
    model, warnings = load_server(cores, topo)
    assert (model.numa_socket, model.numa_cores) == ((0, 1), (2, 2))
    assert model.gpu_numa == (0, 1, 0)
    assert "NUMA node 0 spans several sockets" in warnings[0]
    assert "GPU2 may be on NUMA nodes 0, 1; counted as on 0" in warnings[1]


def test_numa_ids_with_gaps_are_renumbered(save: Save) -> None:
    cores = save("host", lscpu([(0, 0, "0-1"), (8, 36, "2-3")]))
    topo = save("topo", matrix([("2-3", "8"), ("0-1", "0")]))
    model, warnings = load_server(cores, topo)
    assert (model.gpu_numa, model.numa_socket) == ((1, 0), (0, 1))
    assert "NUMA nodes 0, 8 counted as 0 to 1 in order" in warnings[0]


SHAPES = {
    "four": (2, (0, 0, 1, 1)),
    "five": (2, (0, 0, 1, 1, 1)),
    "six-and-two": (2, (0,) * 6 + (1,) * 2),
    "sixteen": (4, (0,) * 4 + (1,) * 4 + (2,) * 4 + (3,) * 4),
    "reversed": (8, (3, 2, 1, 0, 7, 6, 5, 4)),
    "nodes-without-gpu": (8, (3, 3, 1, 1, 7, 7, 5, 5)),
    "one": (1, (0,)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_gpus_go_where_the_numa_affinity_says(shape: str, save: Save) -> None:
    nodes, gpu_numa = SHAPES[shape]
    spans = [f"{i * 8}-{i * 8 + 7}" for i in range(nodes)]
    topo = save("topo.txt", matrix([(spans[i], str(i)) for i in gpu_numa]))
    cores = save("host.csv", even(nodes, 8))
    model, warnings = load_server(cores, topo)
    assert model == ServerModel(
        "host", gpu_numa, tuple(i * 2 // nodes for i in range(nodes)), (8,) * nodes
    )
    assert warnings == []
    # The order of the files only sets the name; alone, the table lets guess the same cores.
    assert load_server(topo, cores)[0].gpu_numa == gpu_numa
    alone, warnings = load_server(topo)
    assert (alone.gpu_numa, alone.numa_cores) == (gpu_numa, model.numa_cores)
    assert len(warnings) == 1
    assert "lists only the CPUs of NUMA nodes; assumed" in warnings[0]


@pytest.mark.parametrize("numa", ["N/A", "0-1", ""])
def test_cpu_affinity_serves_where_numa_affinity_does_not(numa: str, save: Save) -> None:
    topo = save("topo.txt", matrix([("8-15", numa), ("0-7", numa)]))
    assert load_server(save("host.csv", even(2, 8)), topo)[0].gpu_numa == (1, 0)
    assert load_server(topo)[0].gpu_numa == (1, 0)


def test_a_table_alone_that_tells_only_some_numa_nodes(save: Save) -> None:
    topo = save("topo.txt", matrix([("0-7", "1"), ("8-15", "N/A")]))
    assert load_server(topo)[0].gpu_numa == (0, 1)


def test_gpus_near_several_numa_nodes_are_dealt_out_in_order(save: Save) -> None:
    topo = save("topo.txt", matrix([("0-15", "0-1")] * 4 + [("N/A", "N/A")] * 4))
    model, warnings = load_server(save("host.csv", even(4, 8)), topo)
    assert model.gpu_numa == (0, 0, 1, 1, 0, 1, 2, 3)
    assert [warning.partition(": ")[2] for warning in warnings] == [
        "GPU0, GPU1, GPU2, GPU3 may be on NUMA nodes 0, 1; counted as on 0, 0, 1, 1",
        "GPU4, GPU5, GPU6, GPU7 may be on NUMA nodes 0, 1, 2, 3; counted as on 0, 1, 2, 3",
    ]


def test_a_table_alone_counts_physical_cores(save: Save) -> None:
    spans = ["0-3,16-19", "8-11,24-27"]
    model, warnings = load_server(save("t.txt", matrix([(spans[0], "0"), (spans[1], "2")])))
    # NUMA nodes 1 and 3 have no GPU: threads 16 apart tell of 16 cores, those listed of 4 a node.
    assert (model.numa_cores, model.gpu_numa) == ((4, 4, 4, 4), (0, 2))
    assert "assumed 2 socket(s) and 2 hardware thread(s) a core" in warnings[0]


def test_a_real_looking_table_with_network_cards_legend_and_escapes(save: Save) -> None:
    text = (
        "\x1b[4m\tGPU0\tGPU1\tNIC0\tmlx5_1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
        "GPU0\t X \tNV18\tPXB\tSYS\t0-1\t0\t\tN/A\n"
        "GPU1\tNV18\t X \tSYS\tPXB\t2-3\t1\t\tN/A\n"
        "NIC0\tPXB\tSYS\t X \tSYS\t\t\t\t\n"
        "mlx5_1\tSYS\tPXB\tSYS\t X \t\t\t\t\n"
        "\n"
        "Legend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n\n"
        "NIC Legend:\n\n  NIC0: mlx5_0\n"
    )
    assert load_server(save("topo.txt", text))[0] == ServerModel("topo", (0, 1), (0, 1), (2, 2))


def test_a_table_pasted_with_spaces(save: Save) -> None:
    text = (
        "        GPU0    GPU1    CPU Affinity    NUMA Affinity\n"
        "GPU0     X      PIX     0-3             0\n"
        "GPU1    PIX      X      4-7             1\n"
    )
    assert load_server(save("topo.txt", text))[0] == ServerModel("topo", (0, 1), (0, 1), (4, 4))


def test_numa_config_numbers_numa_nodes_by_cpu(save: Save) -> None:
    text = "# a comment\n2-3:8-15&0,1:0-7\n"
    model, warnings = load_server(save("config.txt", text))
    assert model == ServerModel("config", (0, 0, 1, 1), (0, 1), (8, 8))
    assert len(warnings) == 1


def test_a_resource_takes_the_gpu_places_of_a_table(save: Save, tmp_path: Path) -> None:
    graph = build_graph(preset("rtx4090"), "node")
    graph.remove_edges_from([(u, v) for u, v in graph.edges if v.startswith("gpu")])
    resource = tmp_path / "node.yaml"
    write_resource(graph, resource)
    topo = save("topo.txt", matrix([(f"{8 * i}-{8 * i + 7}", str(i)) for i in range(8)]))
    model, warnings = load_server(resource, topo)
    assert model.gpu_numa == tuple(range(8))
    assert re.search("no edge locates .*topo.txt' puts the GPUs on", warnings[0])
    cores = save("host.csv", even(8, 8))
    model, warnings = load_server(resource, cores)
    assert model.gpu_numa == preset("rtx4090").gpu_numa
    assert warnings[1] == f"{cores}: lists no GPU and is not used"
    with pytest.raises(TopologyError, match="2 FlexTopo resources; legal: one server"):
        load_server(resource, resource)


BAD_TEXTS = {
    "unknown": ("hello\n", "f: of no known kind; legal: FlexTopo resource"),
    "empty": ("", "f: the file is empty"),
    "no-cpu": ("# CPU,Core,Socket,Node\n", "f: lists no CPU; legal: a line such as 0,0,0,0"),
    "columns": ("0,0,0,0\n1,1,0\n", "f:2: 3 columns; legal: 4 (CPU,Core,Socket,Node)"),
    "cut-row": ("0,0,0,0\n1,1,1,\n", "f:2: Node is ''; legal: 0 to 65535"),
    "word": ("0,0,0,0\n1,x,0,0\n", "f:2: Core is 'x'; legal: 0 to 65535"),
    "large-cpu": ("0,0,0,0\n70000,1,0,0\n", "f:2: CPU is '70000'; legal: 0 to 65535"),
    "twice": ("0,0,0,0\n0,1,0,0\n", "f: CPU 0 is listed twice; legal: once"),
    "many-numa": (even(33, 1), "33 NUMA nodes; legal: 1 to 32"),
    "many-sockets": (even(9, 1, sockets=9), "9 sockets; legal: 1 to 8"),
    "no-heading": ("GPU0\tX\t0-3\t0\n", "f: has no heading; legal: a first line such as GPU0 GPU1"),
    "no-affinity": ("\tGPU0\tGPU1\nGPU0\tX\tSYS\n", "f:1: has no column CPU Affinity"),
    "gpu-columns": (
        "\tGPU0\tGPU2\tCPU Affinity\nGPU0\tX\tSYS\t0\n",
        "f:1: GPU columns GPU0 GPU2; legal: GPU0 GPU1 ...",
    ),
    "missing-row": (
        matrix([("0", "0"), ("1", "0"), ("2", "0")]).rpartition("GPU2")[0],
        "f: row GPU2 is missing; legal: one row a GPU column",
    ),
    "row-twice": (
        matrix([("0", "0"), ("1", "0")]) + "GPU0\tX\tSYS\t0\t0\n",
        "f:4: row GPU0 is listed twice; legal: one row a GPU column",
    ),
    "row-too-many": (
        matrix([("0", "0")]) + "GPU1\tX\t0\t0\n",
        "f:3: row GPU1 has no column; legal: one row a GPU column",
    ),
    "cut-cells": (
        "\tGPU0\tGPU1\tCPU Affinity\nGPU0\tX\tSYS\t0\nGPU1\tSYS\n",
        "f:3: link of GPU1 to GPU1 is ''; legal: X to itself, else NV#",
    ),
    "link": (matrix([("0", "0"), ("1", "0")], "FAST"), "f:2: link of GPU0 to GPU1 is 'FAST'"),
    "link-to-self": (matrix([("0", "0"), ("1", "0")], "X"), "f:2: link of GPU0 to GPU1 is 'X'"),
    "affinity": (matrix([("0-x", "0")]), "f:2: CPU Affinity of GPU0: item '0-x' of a CPU list"),
    "numa-range": (matrix([("0", "5000")]), "f:2: NUMA Affinity 5000; legal: 0 to 1023"),
    "no-cpus": (matrix([("N/A", "0")]), "f: tells of no CPU; legal: a capture that lists CPUs"),
    "overlap": (matrix([("0-3", "0"), ("2-5", "1")]), "f: CPU 2 is on NUMA nodes 0 and 1"),
    "many-gpus": (matrix([("0-3", "0")] * 17), "17 GPUs; legal: 0 to 16"),
    "config-gpus": ("0:0-3&2:4-7", "f:1: GPUs [0, 2]; legal: 0, 1, ... once each"),
    "config-list": ("0:3-1", "f:1: item '3-1' of a CPU list"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_broken_text_is_named_with_its_place(
    case: str, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = BAD_TEXTS[case]
    monkeypatch.chdir(save("f", text).parent)
    with pytest.raises(TopologyError, match=re.escape(message)) as caught:
        load_server("f")
    assert str(caught.value).startswith("f:")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("0-3", "4"), "GPU0 is on NUMA node 4; legal: 0, 1"),
        (("0-3", "1"), "GPU0 is on NUMA node 1 but near CPUs of another; legal: captures of one"),
        (("90-91", "N/A"), "GPU0 is near CPUs 90, 91..., none of which the server has"),
    ],
)
def test_a_table_of_another_server(row: tuple[str, str], message: str, save: Save) -> None:
    topo = save("topo.txt", matrix([row]))
    with pytest.raises(TopologyError, match=message):
        load_server(save("host.csv", even(2, 4)), topo)


def test_a_file_of_200_mb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host.csv"
    with path.open("wb") as stream:
        stream.truncate(200 * 10**6)
    with pytest.raises(TopologyError, match=r"host\.csv: larger than 64 MiB; legal: up to 64 MiB"):
        load_server(path)
