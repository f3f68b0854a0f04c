"""Cores, sockets and unlisted NUMA nodes of servers of which only the CPUs of NUMA nodes are known."""

import re
import time
from pathlib import Path

import pytest
from capture_texts import matrix, nccl, pci
from captured import Save

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.load import load_server
from flextopo.cluster.topology.model import ServerModel

# CPUs of NUMA node 0, 1, ..., the cores of each, and hardware threads a core.
LISTED = {
    "two-threads": (("0-3,8-11", "4-7,12-15"), (4, 4), 2),
    "last-thread-off-line": (("0-3,8-11", "4-7,12-14"), (4, 4), 2),
    "last-thread-of-64-cores-off-line": (("0-31,64-95", "32-63,96-126"), (32, 32), 2),
    "a-thread-of-each-node-off-line": (("0-3,8-10", "4-7,12-14"), (4, 4), 2),
    "a-thread-in-the-middle-off-line": (("0-3,8,10-11", "4-7,12-15"), (4, 4), 2),
    "a-first-thread-off-line": (("0-3,8-11", "4,6-7,12-15"), (4, 4), 2),
    "threads-of-one-node-off-line": (("0-3,8-11", "4-7"), (4, 4), 2),
    "scattered-cores": (("0-1,4,8-9,12", "2-3,5-7,10-11,13-15"), (3, 5), 2),
    "one-thread": (("0-7", "8-15"), (8, 8), 1),
    "one-thread-and-one-off-line": (("0-3,5-7", "8-15"), (7, 8), 1),
    "one-node-and-one-off-line": (("0-7,9-15",), (15,), 1),
    "every-other-cpu": (("0,2,4,6", "1,3,5,7"), (4, 4), 1),
    "every-other-cpu-and-one-off-line": (("0,2,4,6,10,12,14", "1,3,5,7,9,11,13,15"), (7, 8), 1),
    "every-fourth-cpu": (("0,4,8,12", "1,5,9,13", "2,6,10,14", "3,7,11,15"), (4,) * 4, 1),
}


@pytest.mark.parametrize("case", LISTED)
def test_hardware_threads_are_told_by_equal_runs(case: str, save: Save) -> None:
    cpus, cores, threads = LISTED[case]
    rows = [(text, str(node)) for node, text in enumerate(cpus)]
    model, warnings = load_server(save("server", matrix(rows)))
    assert model.numa_cores == cores
    assert model.gpu_numa == tuple(range(len(cpus)))
    assert len(warnings) == 1
    assert f"{threads} hardware thread(s) a core, since" in warnings[0]


def test_cpus_that_nothing_pairs_keep_their_numbers(save: Save) -> None:
    model, _ = load_server(save("server", matrix([("0,2,4,6", "0"), ("1,3,5,7", "1")])))
    assert model.core_ids == ((0, 2, 4, 6), (1, 3, 5, 7))
    model, warnings = load_server(save("server", matrix([("0-3,8-11", "0"), ("4-7,12-14", "1")])))
    assert model.cores == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert "since CPUs 8 apart share NUMA nodes; 1 core(s) with a thread off line" in warnings[0]


# NUMA ids and masks of an NCCL dump; the cores and sockets of all NUMA nodes, and where the GPUs are.
FOUR = ((4,) * 4, (0, 0, 1, 1))
DUMPS = {
    "odd-nodes": ({1: "00f000f0", 3: "f000f000"}, *FOUR, (1, 3)),
    "without-the-first": ({1: "00f000f0", 2: "0f000f00", 3: "f000f000"}, *FOUR, (1, 2, 3)),
    "without-the-last": ({0: "000f000f", 1: "00f000f0", 2: "0f000f00"}, *FOUR, (0, 1, 2)),
    "one-of-four": ({2: "0f000f00"}, *FOUR, (2,)),
    "one-of-two": ({0: "0f0f"}, (4, 4), (0, 1), (0,)),
    "odd-nodes-of-one-thread": ({1: "00f0", 3: "f000"}, *FOUR, (1, 3)),
    "a-thread-off-line": ({1: "00f000f0", 3: "7000f000"}, *FOUR, (1, 3)),
    "another-rule": ({1: "000f", 3: "0ff0"}, (4, 8), (0, 1), (0, 1)),
    "two-nodes-far-apart": ({0: "00ff", 8: "ff00"}, (8, 8), (0, 1), (0, 1)),
}


@pytest.mark.parametrize("case", DUMPS)
def test_numa_nodes_without_devices_are_not_in_a_dump(case: str, save: Save) -> None:
    masks, cores, sockets, gpu_numa = DUMPS[case]
    text = nccl(*((str(i), mask, pci(f"0000:0{i}:00.0")) for i, mask in masks.items()))
    model, warnings = load_server(save("server", text))
    assert model == ServerModel("server", gpu_numa, sockets, cores, model.core_ids)
    assert f"assumed {len(set(sockets))} socket(s)" in warnings[0]
    assert ("without GPU follow from the others" in warnings[0]) == (len(cores) > len(masks))


def test_a_matrix_leaves_numa_nodes_out_as_well(save: Save) -> None:
    model, warnings = load_server(save("server", matrix([("0-15,32-47", "0")] * 4)))
    assert (model.numa_cores, model.numa_socket, model.gpu_numa) == ((16, 16), (0, 1), (0,) * 4)
    assert "NUMA node(s) 1 without GPU follow from the others" in warnings[0]
    model, _ = load_server(save("server", matrix([("24-31,56-62", "3")])))
    assert (model.numa_cores, model.gpu_numa) == ((8,) * 4, (3,))
    # Where no NUMA node is told, there may be none.
    assert load_server(save("server", matrix([("0-15,32-47", "N/A")])))[0].numa_cores == (16,)


def test_numa_nodes_of_memory_alone_are_no_missing_ones(save: Save) -> None:
    text = nccl(("0", "0f", pci("0000:01:00.0")), ("1", "0", ""), ("2", "f0", pci("0000:02:00.0")))
    model, _ = load_server(save("server", text))
    assert (model.numa_cores, model.gpu_numa) == ((4, 0, 4), (0, 2))


def grace(superchips: int, gpus: int) -> str:
    """Write the matrix of Grace CPUs of 72 cores; the memory of GPUs is NUMA nodes from 4 on."""
    names = [f"GPU{gpu}" for gpu in range(gpus)]
    lines = ["\t" + "\t".join([*names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])]
    for gpu in range(gpus):
        node = gpu * superchips // gpus
        links = ["X" if gpu == other else "NV18" for other in range(gpus)]
        cpus = f"{72 * node}-{72 * node + 71}"
        lines.append("\t".join([names[gpu], *links, cpus, str(node), "", str(4 + 8 * gpu)]))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("superchips", "gpus", "gpu_numa"),
    [(1, 1, (0,)), (4, 4, (0, 1, 2, 3)), (2, 4, (0, 0, 1, 1))],
    ids=["one-gpu", "four-sockets", "two-gpus-a-socket"],
)
def test_a_numa_node_of_grace_is_a_socket(
    superchips: int, gpus: int, gpu_numa: tuple[int, ...], save: Save
) -> None:
    model, _ = load_server(save("server", grace(superchips, gpus)))
    sockets = tuple(range(superchips))
    assert model == ServerModel("server", gpu_numa, sockets, (72,) * superchips)
    # Some drivers list the NUMA nodes of GPU memory beside that of the CPUs.
    with_memory = re.sub(r"\t(\d)\t\t", r"\t\1,35-41\t\t", grace(superchips, gpus))
    assert load_server(save("server", with_memory))[0] == model


def test_a_numa_node_of_grace_is_a_socket_in_a_dump_as_well(save: Save) -> None:
    inner = '<gpu dev="{0}"><c2c count="1"/></gpu>'
    cpus = [(f"{0xF << 4 * i:08x}", pci(f"000{i}:01:00.0", inner.format(i))) for i in range(4)]
    text = nccl(*((str(i), *cpu) for i, cpu in enumerate(cpus)))
    assert load_server(save("server", text))[0].numa_socket == (0, 1, 2, 3)
    assert load_server(save("server", text.replace("c2c", "nvlink")))[0].numa_socket == (0, 0, 1, 1)


CONFIG = "0-3&0:4-7&8-11&1:12-15"


@pytest.mark.parametrize(
    "text",
    [
        CONFIG,
        f'    numa_config = "{CONFIG}"\n',
        f"numa_config: '{CONFIG}',  # a comment\n",
        f"export NUMA_CONFIG={CONFIG}\n",
        f'gpu_batch_size = 64\nnuma_config = "{CONFIG}"\nuse_graphs = True\n',
        f'{{"numa_config": "{CONFIG}"}}',
    ],
)
def test_numa_config_with_nodes_without_gpu(text: str, save: Save) -> None:
    model, _ = load_server(save("server", text))
    assert model == ServerModel("server", (1, 3), (0, 0, 1, 1), (4,) * 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:0-3&", "item '' of a numa_config; legal: GPUs:CPUs, or the CPUs alone"),
        ("0:1:0-3&4-7", "item '0:1:0-3' of a numa_config"),
        ('numa_config = "0:0-3"\nnuma_config = "0:4-7"', "of no known kind; legal: FlexTopo"),
        ("0-3,8-11", "of no known kind"),
    ],
)
def test_broken_numa_config(text: str, message: str, save: Save) -> None:
    with pytest.raises(TopologyError, match=message):
        load_server(save("server", text))


@pytest.mark.parametrize("escape", ["", "\x1b", "^[", "\\e", "\\033", "\N{SYMBOL FOR ESCAPE}"])
def test_a_heading_that_was_underlined(escape: str, save: Save) -> None:
    heading, _, rows = matrix([("0-3", "0"), ("4-7", "1")]).partition("\n")
    for underlined in (
        f"{escape}[4m{heading}{escape}[0m",
        "\t".join(f"{escape}[4m{name}{escape}[24m" if name else "" for name in heading.split("\t")),
    ):
        model, _ = load_server(save("server", f"{underlined}\n{rows}"))
        assert model == ServerModel("server", (0, 1), (0, 1), (4, 4))


def test_fewer_cores_than_gpus(save: Save, tmp_path: Path) -> None:
    message = "4 cores and 8 GPUs; legal: a core for each GPU at least"
    with pytest.raises(TopologyError, match=message):
        load_server(save("server", matrix([("0-3", "0")] * 8)))
    cores = tmp_path / "cores"
    cores.write_text("0,0,0,0\n1,1,0,0\n2,2,0,0\n3,3,0,0\n")
    with pytest.raises(TopologyError, match=message):
        load_server(cores, save("server", matrix([("0-3", "0")] * 8)))
    assert load_server(save("server", matrix([("0-3", "0")] * 4)))[0].num_cores == 4


def test_a_hostile_list_of_cpus_is_read_in_seconds(save: Save) -> None:
    cpus = ",".join(str(cpu) for cpu in range(20000) if cpu % 7 not in (3, 5) and cpu % 11)
    start = time.monotonic()
    with pytest.raises(TopologyError, match="core counts"):
        load_server(save("server", matrix([(cpus, "0")])))
    assert time.monotonic() - start < 10
