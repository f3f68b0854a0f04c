"""Detection of the machine, on made-up /sys folders and commands."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.detect import detect, run_command
from flextopo.cluster.topology.model import ServerModel

MATRIX = (
    "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\nGPU0\t X \tSYS\t2-3,6-7\t1\n"
    "GPU1\tSYS\t X \t0-1,4-5\t0\n"
)


def no_command(command: Sequence[str]) -> str | None:
    return None


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Build 2 sockets of one NUMA node and 2 cores of 2 hardware threads, core ids from 0 in each;
    CPU 8 is offline and NUMA node 2 has memory alone, nearest to NUMA node 1.
    """
    system = tmp_path / "sys/devices/system"
    for cpu in range(8):
        topology = system / f"cpu/cpu{cpu}/topology"
        write(topology / "physical_package_id", cpu % 4 // 2)
        write(topology / "core_id", cpu % 2)
        write(topology / "core_cpus_list", f"{cpu % 4},{cpu % 4 + 4}")
    (system / "cpu/cpu8").mkdir()
    (system / "cpu/cpufreq").mkdir()
    for node, (cpus, distance) in enumerate(
        [("0-1,4-5", "10 20 40"), ("2-3,6-7", "20 10 30"), ("", "40 30 10")]
    ):
        write(system / f"node/node{node}/cpulist", cpus)
        write(system / f"node/node{node}/distance", distance)
    return tmp_path


def test_sys_without_gpus(root: Path) -> None:
    model, warnings = detect(root, no_command)
    assert model == ServerModel("this-machine", (), (0, 1, 1), (2, 2, 0))
    assert warnings == ["nvidia-smi lists no GPU; the server counts as without GPU"]


def test_sys_with_gpus(root: Path) -> None:
    def run(command: Sequence[str]) -> str | None:
        return MATRIX if command[1] == "topo" else "NVIDIA A100, 81920\nNVIDIA A100, 81920\n"

    assert detect(root, run) == (
        ServerModel("this-machine", (1, 0), (0, 1, 1), (2, 2, 0), (), "NVIDIA A100", 81920),
        [],
    )


def test_gpus_of_unknown_name(root: Path) -> None:
    model, _ = detect(root, lambda command: MATRIX if command[1] == "topo" else None)
    assert (model.gpu_numa, model.gpu_name, model.gpu_memory_mib) == ((1, 0), "GPU", 0)


def test_lscpu_where_sys_is_missing(tmp_path: Path) -> None:
    commands = []

    def run(command: Sequence[str]) -> str | None:
        commands.append(command[0])
        return "0,0,0,0\n1,1,1,1\n" if command[0] == "lscpu" else None

    assert detect(tmp_path, run)[0] == ServerModel("this-machine", (), (0, 1), (1, 1))
    assert commands == ["lscpu", "nvidia-smi"]


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="has no CPU topology and lscpu gives none; legal"):
        detect(tmp_path, no_command)


def test_sys_of_a_virtual_machine(tmp_path: Path) -> None:
    for cpu in range(2):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", -1)
    assert detect(tmp_path, no_command)[0] == ServerModel("this-machine", (), (0,), (2,))


def test_sys_of_a_virtual_machine_whose_cpus_are_sockets(tmp_path: Path) -> None:
    system = tmp_path / "sys/devices/system"
    for cpu in range(12):
        write(system / f"cpu/cpu{cpu}/topology/physical_package_id", cpu)
        write(system / f"cpu/cpu{cpu}/topology/core_cpus_list", cpu)
    write(system / "node/node0/cpulist", "0-11")
    model, warnings = detect(tmp_path, no_command)
    assert model == ServerModel("this-machine", (), (0,), (12,))
    assert any("12 sockets counted as 1, since NUMA nodes span them" in text for text in warnings)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cpu/cpu0/topology/physical_package_id", "x", "physical_package_id: 'x'; legal: a number"),
        ("cpu/cpu0/topology/core_cpus_list", "3-1", "core_cpus_list: item '3-1' of a CPU list"),
        ("node/node0/cpulist", "a", "cpulist: item 'a' of a CPU list"),
    ],
)
def test_broken_sys(name: str, text: str, message: str, root: Path) -> None:
    write(root / "sys/devices/system" / name, text)
    with pytest.raises(TopologyError, match=message):
        detect(root, no_command)


def test_run_command() -> None:
    assert run_command(["echo", "two", "words"]) == "two words\n"
    assert run_command(["false"]) is None
    assert run_command(["no-such-command-anywhere"]) is None
