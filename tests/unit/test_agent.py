"""The agent's facts: what kubelet says on the wire, what the machine is, and the object of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc")

from fake_kubelet import (
    UUIDS,
    FakeKubelet,
    allocatable,
    container,
    devices,
    make_machine,
    pod,
    write,
)

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import graph_from_resource
from flextopo.policies.agent import observer as observing
from flextopo.policies.agent.errors import KubeletError
from flextopo.policies.agent.machine import read_machine
from flextopo.policies.agent.observer import Facts, Observer
from flextopo.policies.agent.pod_resources import Allocatable, Device, Holding, Kubelet

GPU = "nvidia.com/gpu"
Document = dict[str, Any]


def no_command(command: Sequence[str]) -> str | None:
    return None


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[FakeKubelet]:
    fake = FakeKubelet(tmp_path / "kubelet.sock")
    yield fake
    fake.close()


def observe(kubelet: FakeKubelet, root: Path, run: Any = no_command) -> Facts:
    asked = Kubelet(kubelet.socket)
    try:
        return Observer(asked, lambda: read_machine(root, run)).observe()
    finally:
        asked.close()


def vertices(document: Document, kind: str = "") -> dict[str, dict[str, str]]:
    return {
        vertex["id"]: vertex["attributes"]
        for vertex in document["spec"]["nodes"]
        if kind in ("", vertex["type"])
    }


def build(kubelet: FakeKubelet, root: Path, islands: bool = False) -> Document:
    document, _ = observe(kubelet, root).build("n0", islands)
    # What the agent writes, the package can read.
    graph_from_resource(document)
    return document


def test_a_message_of_which_every_byte_is_written_by_hand(kubelet: FakeKubelet) -> None:
    # ListPodResourcesResponse{pod_resources=1}: PodResources{name=1, namespace=2, containers=3}
    # of one ContainerResources{name=1, devices=2, cpu_ids=3 packed, dynamic_resources=5}.
    given = b"\x0a\x01r" + b"\x12\x02d0" + b"\x12\x02d1" + b"\x1a\x04\x0a\x02\x08\x01"
    claimed = b"\x0a\x01x" + b"\x12\x01D" + b"\x1a\x01P" + b"\x22\x02g0" + b"\x2a\x01s"
    claim = b"\x12\x01c" + b"\x1a\x01n" + b"\x22\x10" + claimed
    inside = b"\x0a\x01m\x12\x11" + given + b"\x1a\x03\x03\x80\x01" + b"\x2a\x18" + claim
    kubelet.pods = [b"\x0a" + bytes([10 + len(inside)]) + b"\x0a\x02p0\x12\x02ns\x1a" +
                    bytes([len(inside)]) + inside]  # fmt: skip
    # AllocatableResourcesResponse{devices=1, cpu_ids=2}.
    kubelet.offers = b"\x0a\x11" + given + b"\x12\x02\x05\x04"
    asked = Kubelet(kubelet.socket)
    held = (Device("D", "g0", True), Device("r", "d0"), Device("r", "d1"))
    assert asked.list() == {"ns/p0": Holding((3, 128), held)}
    assert asked.allocatable() == Allocatable((4, 5), {"d0": 1, "d1": 1})
    asked.close()


def test_a_whole_node(kubelet: FakeKubelet, tmp_path: Path) -> None:
    make_machine(tmp_path)
    kubelet.pods = [
        pod("a", container(UUIDS[:1], [1]), container(UUIDS[2:3], [5])),
        pod("b", container(UUIDS[3:4]), namespace="web"),
        pod("idle", container()),
        pod("other", container(["0000:3b:02.1"], resource="vendor.com/nic")),
    ]
    kubelet.offers = allocatable([1, 2, 3, 5, 6, 7], devices(GPU, UUIDS[:4], 0))
    document = build(kubelet, tmp_path)
    assert {k: document[k] for k in ("apiVersion", "kind", "metadata")} == {
        "apiVersion": "flextopo.baichuan-inc.com/v1alpha1",
        "kind": "FlexTopo",
        "metadata": {"name": "n0"},
    }
    # The threads of a core side by side, by the kernel's numbers; CPUs 0 and 4 are reserved.
    assert vertices(document, "CPUCore") == {
        "core-0": {"core": "0", "status": "reserved"},
        "core-4": {"core": "0", "status": "reserved"},
        "core-1": {"core": "1", "status": "used", "usedBy": "batch/a"},
        "core-5": {"core": "1", "status": "used", "usedBy": "batch/a"},
        "core-2": {"core": "2", "status": "free"},
        "core-6": {"core": "2", "status": "free"},
        "core-3": {"core": "3", "status": "free"},
        "core-7": {"core": "3", "status": "free"},
    }
    assert list(vertices(document, "CPUCore"))[:4] == ["core-0", "core-4", "core-1", "core-5"]
    kind = {"name": "NVIDIA A100"}
    assert vertices(document, "GPU") == {
        "gpu-0": {**kind, "status": "used", "usedBy": "batch/a", "uuid": UUIDS[0], "numaNode": "0"},
        "gpu-1": {**kind, "status": "free", "uuid": UUIDS[1], "numaNode": "0"},
        "gpu-2": {**kind, "status": "used", "usedBy": "batch/a", "uuid": UUIDS[2], "numaNode": "1"},
        # It runs where no pod has a CPU for itself.
        "gpu-3": {
            **kind,
            "status": "used",
            "usedBy": "web/b",
            "cpus": "shared",
            "uuid": UUIDS[3],
            "numaNode": "1",
        },
    }
    model, warnings = server_model_from_graph(graph_from_resource(document))
    assert warnings == []
    assert (model.gpu_numa, model.numa_socket) == ((0, 0, 1, 1), (0, 1))
    assert model.cores == ((1, 5), (2, 3, 6, 7))


def test_a_gpu_that_kubelet_does_not_offer_is_reserved(
    kubelet: FakeKubelet, tmp_path: Path
) -> None:
    make_machine(tmp_path)
    # Of the unhealthy ones, 0 and 3, a pod still has one; a time slice offers its GPU.
    kubelet.pods = [pod("a", container(UUIDS[:1]))]
    kubelet.offers = allocatable([], devices(GPU, [UUIDS[1], UUIDS[2] + "::0"], 0))
    statuses = [gpu["status"] for gpu in vertices(build(kubelet, tmp_path), "GPU").values()]
    assert statuses == ["used", "free", "free", "reserved"]
    # While the plugin is away nothing is told; so where a DRA driver gives them out.
    kubelet.offers = allocatable([], devices("vendor.com/nic", ["0000:3b:02.1"], 0))
    statuses = [gpu["status"] for gpu in vertices(build(kubelet, tmp_path), "GPU").values()]
    assert statuses == ["used", "free", "free", "free"]


def test_threads_of_a_core_are_never_in_two_groups(kubelet: FakeKubelet, tmp_path: Path) -> None:
    make_machine(tmp_path, cores=12, gpus=0)
    document = build(kubelet, tmp_path)
    groups: dict[str, list[str]] = {}
    for edge in document["spec"]["edges"]:
        groups.setdefault(edge["source"], []).append(edge["target"])
    assert groups["numa-0"] == ["coregroup-0-0", "coregroup-0-1"]
    assert groups["coregroup-0-0"][:4] == ["core-0", "core-24", "core-1", "core-25"]
    assert list(map(len, (groups["coregroup-0-0"], groups["coregroup-0-1"]))) == [16, 8]
    assert groups["numa-1"] == ["coregroup-1-2", "coregroup-1-3"]


@pytest.mark.parametrize("offers", [b"", None])
def test_a_kubelet_that_pins_nobody_reserves_nothing(
    offers: bytes | None, kubelet: FakeKubelet, tmp_path: Path
) -> None:
    make_machine(tmp_path, gpus=0)
    kubelet.offers = offers
    document = build(kubelet, tmp_path)
    assert {entry["status"] for entry in vertices(document, "CPUCore").values()} == {"free"}
    # Nor does a node need GPUs.
    assert vertices(document, "GPU") == {}


SHARED = {
    "time slices": ([(UUIDS[0] + "::0", GPU), (UUIDS[0] + "::3", GPU)], ["shared", "free"]),
    "one time slice": ([(UUIDS[1] + "::1", GPU)], ["free", "shared"]),
    "renamed": ([(UUIDS[0], "nvidia.com/gpu.shared")], ["shared", "free"]),
    "two pods": ([(UUIDS[0], GPU), (UUIDS[0], GPU)], ["shared", "free"]),
    "old MIG": ([(f"MIG-{UUIDS[1]}/7/0", GPU)], ["free", "shared"]),
    "MIG": ([("MIG-b9bf1a85", "nvidia.com/mig-1g.5gb")], ["shared", "free"]),
    "GKE": ([("nvidia1", GPU), ("nvidia0/vgpu1", GPU)], ["used", "shared"]),
}


def list_mig(command: Sequence[str]) -> str | None:
    if command[1] != "-L":
        return None
    return (
        f"GPU 0: NVIDIA A100 (UUID: {UUIDS[0]})\n  MIG 1g.5gb Device  0: (UUID: MIG-b9bf1a85)\n"
        f"GPU 1: NVIDIA A100 (UUID: {UUIDS[1]})\n"
    )


@pytest.mark.parametrize("case", SHARED)
def test_parts_of_a_gpu_are_nobodys_gpu(case: str, kubelet: FakeKubelet, tmp_path: Path) -> None:
    given, expected = SHARED[case]
    make_machine(tmp_path, gpus=2)
    kubelet.pods = [
        pod(f"p{i}", container([name], resource=resource))
        for i, (name, resource) in enumerate(given)
    ]
    document, placements = observe(kubelet, tmp_path, list_mig).build("n0", False)
    graph_from_resource(document)
    gpus = vertices(document, "GPU")
    assert [gpus[f"gpu-{i}"]["status"] for i in range(2)] == expected
    everybody = [f"batch/p{i}" for i in range(len(given))]
    assert sorted(
        ",".join(gpu.get("usedBy", "") for gpu in gpus.values()).strip(",").split(",")
    ) == (everybody)
    whole = [placements.pods[pod].gpus for pod in everybody]
    assert whole == ([(0,), None] if case == "GKE" else [None] * len(given))
    assert placements.unknown == ()


def test_dra_devices_are_gpus_by_their_minor(kubelet: FakeKubelet, tmp_path: Path) -> None:
    make_machine(tmp_path)
    kubelet.pods = [
        pod("whole", container(claims=[("gpu.nvidia.com", "gpu-0"), ("net.example", "gpu-1")])),
        pod("part", container(claims=[("gpu.nvidia.com", "gpu-3-mig-1g.5gb-0-1")])),
    ]
    gpus = vertices(build(kubelet, tmp_path), "GPU")
    assert {gpu: entry["usedBy"] for gpu, entry in gpus.items() if "usedBy" in entry} == {
        "gpu-3": "batch/whole",
        "gpu-0": "batch/part",
    }
    assert (gpus["gpu-3"]["status"], gpus["gpu-0"]["status"]) == ("used", "shared")


def test_a_gpu_that_is_not_known_is_said_to_be_so(kubelet: FakeKubelet, tmp_path: Path) -> None:
    make_machine(tmp_path)
    kubelet.pods = [pod("p", container([UUIDS[0], UUIDS[9]], [900, 1]))]
    _, placements = observe(kubelet, tmp_path).build("n0", False)
    assert placements.unknown == (UUIDS[9],)
    # A list of some of its GPUs would be wrong; a CPU that is not there is nobody's.
    assert placements.pods == {"batch/p": ((1,), None)}


def test_islands_only_when_they_are_asked_for(kubelet: FakeKubelet, tmp_path: Path) -> None:
    make_machine(tmp_path, sockets=1, switches=True)
    assert all("island" not in gpu for gpu in vertices(build(kubelet, tmp_path)).values())
    gpus = vertices(build(kubelet, tmp_path, islands=True), "GPU")
    assert [gpu["island"] for gpu in gpus.values()] == ["0", "0", "1", "1"]


@pytest.mark.parametrize("switches", [False, True])
def test_where_ports_tell_no_gpus_apart_there_are_no_islands(
    switches: bool, kubelet: FakeKubelet, tmp_path: Path
) -> None:
    make_machine(tmp_path, gpus=2, sockets=1, switches=switches)
    gpus = vertices(build(kubelet, tmp_path, islands=True), "GPU")
    assert all("island" not in gpu for gpu in gpus.values())


SMI = (
    f"00000000:10:00.0, {UUIDS[0]}, 81920, NVIDIA A100, 80GB\n"
    f"00000000:11:00.0, {UUIDS[1]}, [N/A], NVIDIA A100, 80GB\nno devices\n"
)


def test_gpus_by_nvidia_smi(tmp_path: Path) -> None:
    make_machine(tmp_path, gpus=2)
    (tmp_path / "proc").rename(tmp_path / "elsewhere")
    machine = read_machine(tmp_path, lambda command: SMI if "--query" in command[1] else None)
    assert [(gpu.uuid, gpu.memory_mib, gpu.name) for gpu in machine.gpus] == [
        (UUIDS[0], 81920, "NVIDIA A100, 80GB"),
        (UUIDS[1], 0, "NVIDIA A100, 80GB"),
    ]
    assert [(gpu.numa_node, gpu.minor) for gpu in machine.gpus] == [(0, None), (1, None)]


def test_the_driver_and_nvidia_smi_together(tmp_path: Path) -> None:
    make_machine(tmp_path, gpus=2)
    information = tmp_path / "proc/driver/nvidia/gpus/0000:10:00.0/information"
    unused = "GPU-????????-????-????-????-????????????"
    information.write_text(information.read_text().replace(UUIDS[0], unused))
    assert [gpu.uuid for gpu in read_machine(tmp_path, no_command).gpus] == ["", UUIDS[1]]
    machine = read_machine(tmp_path, lambda command: SMI if "--query" in command[1] else None)
    assert [(gpu.uuid, gpu.minor, gpu.memory_mib) for gpu in machine.gpus] == [
        (UUIDS[0], 1, 81920),
        (UUIDS[1], 0, 0),
    ]


def test_gpus_by_the_pci_bus_alone(kubelet: FakeKubelet, tmp_path: Path) -> None:
    make_machine(tmp_path, gpus=2)
    (tmp_path / "proc").rename(tmp_path / "elsewhere")
    for name, about in (("vendor", "0x8086"), ("class", "0x020000"), ("numa_node", "0")):
        write(tmp_path / f"sys/bus/pci/devices/0000:05:00.0/{name}", about)
    kubelet.pods = [pod("p", container(UUIDS[:1]))]
    document, placements = observe(kubelet, tmp_path).build("n0", False)
    gpus = vertices(document, "GPU")
    assert gpus["gpu-1"] == {"name": "GPU", "status": "free", "numaNode": "1"}
    assert len(gpus) == 2
    assert placements.unknown == (UUIDS[0],)


def test_kubelet_says_where_gpus_are_when_the_kernel_does_not(
    kubelet: FakeKubelet, tmp_path: Path
) -> None:
    make_machine(tmp_path, gpus=3)
    for bus in ("10", "11", "12"):
        write(tmp_path / f"sys/bus/pci/devices/0000:{bus}:00.0/numa_node", -1)
    kubelet.offers = allocatable(
        [], devices(GPU, [UUIDS[0] + "::0", UUIDS[0] + "::1"], 1), devices(GPU, UUIDS[1:2], 0)
    )
    gpus = vertices(build(kubelet, tmp_path), "GPU")
    assert [gpu.get("numaNode") for gpu in gpus.values()] == ["1", "0", None]


def test_a_virtual_machine_with_one_numa_node(kubelet: FakeKubelet, tmp_path: Path) -> None:
    for cpu in range(2):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", -1)
    write(tmp_path / "sys/bus/pci/devices/0000:05:00.0/vendor", "0x10de")
    write(tmp_path / "sys/bus/pci/devices/0000:05:00.0/class", "0x030000")
    document = build(kubelet, tmp_path)
    names = ["socket-0", "numa-0", "coregroup-0-0", "core-0", "core-1", "gpu-0"]
    assert list(vertices(document)) == names
    assert vertices(document)["gpu-0"]["numaNode"] == "0"


def test_a_numa_node_that_spans_sockets_is_cut(kubelet: FakeKubelet, tmp_path: Path) -> None:
    make_machine(tmp_path, gpus=0)
    system = tmp_path / "sys/devices/system"
    write(system / "node/node0/cpulist", "0-7")
    write(system / "node/node1/cpulist", "")
    document = build(kubelet, tmp_path)
    assert list(vertices(document, "NUMANode")) == ["numa-0", "numa-1"]
    (tmp_path / "sys").rename(tmp_path / "gone")
    with pytest.raises(
        TopologyError, match="has no CPU topology; legal: the folder that holds sys"
    ):
        read_machine(tmp_path, no_command)


def test_what_kubelet_may_say_wrong(kubelet: FakeKubelet, tmp_path: Path) -> None:
    asked = Kubelet(kubelet.socket)
    kubelet.pods = [b"\xff\xff\xff"]
    with pytest.raises(KubeletError, match=r"kubelet\.sock: List answers with something else; leg"):
        asked.list()
    kubelet.pods = [pod("", container())]
    with pytest.raises(KubeletError, match="lists a pod 'batch'/''; legal: a namespace and a name"):
        asked.list()
    with pytest.raises(KubeletError, match="No such file or directory; legal: the socket of kubel"):
        Kubelet(tmp_path / "none.sock").list()
    write(tmp_path / "file", "text")
    with pytest.raises(
        KubeletError, match=r"file: List fails \(UNAVAILABLE: .*\); legal: the sock"
    ):
        Kubelet(tmp_path / "file").list()
    asked.close()


class Clock:
    """A clock that tests set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_restart_of_kubelet_takes_nothing_from_anybody(
    kubelet: FakeKubelet, tmp_path: Path
) -> None:
    make_machine(tmp_path)
    clock, reads = Clock(), []

    def read() -> Any:
        reads.append(clock.now)
        return read_machine(tmp_path, no_command)

    asked = Kubelet(kubelet.socket)
    observer = Observer(asked, read, "flextopo-agent/me", clock)
    me = pod("me", container(), namespace="flextopo-agent")
    a, b = pod("a", container(UUIDS[:1], [1])), pod("b", container(UUIDS[1:2]))
    kubelet.pods = [me, a, b]
    assert list(observer.observe().holdings) == ["batch/a", "batch/b"]
    assert observer.observe().holdings.keys() == {"batch/a", "batch/b"}
    kubelet.stop()
    for _ in range(2):
        with pytest.raises(KubeletError):
            observer.observe()
    # It is back, and has not heard of any pod; then of one that is new, then of all.
    kubelet.pods = []
    kubelet.start()
    assert observer.observe().holdings.keys() == {"batch/a", "batch/b"}
    kubelet.pods = [me, pod("c", container(UUIDS[2:3]))]
    assert observer.observe().holdings.keys() == {"batch/a", "batch/b", "batch/c"}
    kubelet.pods = [me, a]
    # This agent's own pod is listed the second time: what is not listed has gone.
    assert observer.observe().holdings.keys() == {"batch/a"}
    assert len(reads) == 2
    kubelet.pods = [me]
    assert observer.observe().holdings == {}
    asked.close()


@pytest.mark.parametrize("own", ["", "flextopo-agent/me"])
def test_while_the_apiserver_is_away_too_kubelets_list_stays_short(
    own: str, kubelet: FakeKubelet, tmp_path: Path
) -> None:
    make_machine(tmp_path)
    clock, asked = Clock(), Kubelet(kubelet.socket)
    observer = Observer(asked, lambda: read_machine(tmp_path, no_command), own, clock)
    me = pod("me", container(), namespace="flextopo-agent")
    a = pod("a", container(UUIDS[:1], [1]))
    kubelet.pods = [me, a]
    observer.observe()
    kubelet.stop()
    kubelet.pods = []
    kubelet.start()
    assert observer.observe().holdings.keys() == {"batch/a"}
    clock.now += 100 * observing.SETTLE_S
    # One that is in no pod of the list cannot tell when it is complete.
    assert observer.observe().holdings.keys() == ({"batch/a"} if own else set())
    kubelet.pods = [me]
    for _ in range(2):
        facts = observer.observe()
    assert facts.holdings == {}
    asked.close()


def test_a_refusal_by_the_rate_limit_is_no_restart(kubelet: FakeKubelet, tmp_path: Path) -> None:
    make_machine(tmp_path)
    reads, asked = [], Kubelet(kubelet.socket)

    def read() -> Any:
        reads.append(1)
        return read_machine(tmp_path, no_command)

    observer = Observer(asked, read)
    kubelet.pods = [pod("a", container(UUIDS[:1]))]
    observer.observe()
    kubelet.busy = True
    with pytest.raises(
        KubeletError, match=r"List fails \(RESOURCE_EXHAUSTED: rejected by rate lim"
    ):
        observer.observe()
    kubelet.busy, kubelet.pods = False, []
    # The machine is not read again, and what has gone is believed at once.
    assert observer.observe().holdings == {}
    assert (asked.connections, len(reads)) == (1, 1)
    asked.close()


def test_an_agent_starts_when_kubelet_has_heard_of_its_pod(
    kubelet: FakeKubelet, tmp_path: Path
) -> None:
    make_machine(tmp_path)
    clock, asked = Clock(), Kubelet(kubelet.socket)
    observer = Observer(
        asked, lambda: read_machine(tmp_path, no_command), "flextopo-agent/me", clock
    )
    for _ in range(2):
        with pytest.raises(
            KubeletError, match="does not list this agent's pod 'flextopo-agent/me'"
        ):
            observer.observe()
    kubelet.pods = [
        pod("me", container(), namespace="flextopo-agent"),
        pod("a", container([], [1])),
    ]
    assert observer.observe().holdings.keys() == {"batch/a"}
    # A name that is never listed is wrong, and believed no longer than this.
    late = Observer(asked, lambda: read_machine(tmp_path, no_command), "batch/none", clock)
    with pytest.raises(KubeletError):
        late.observe()
    clock.now += observing.SETTLE_S
    assert late.observe().holdings.keys() == {"batch/a"}
    asked.close()


def test_the_machine_is_read_again_only_where_it_may_have_changed(
    kubelet: FakeKubelet, tmp_path: Path
) -> None:
    make_machine(tmp_path)
    clock, reads = Clock(), []

    def read() -> Any:
        reads.append(clock.now)
        return read_machine(tmp_path, no_command)

    asked = Kubelet(kubelet.socket)
    observer = Observer(asked, read, "", clock)
    for offers in (b"", b"", allocatable([1, 2]), allocatable([1, 2])):
        kubelet.offers = offers
        observer.observe()
    assert len(reads) == 2
    # A GPU that is not known may be soon.
    information = tmp_path / "proc/driver/nvidia/gpus/0000:10:00.0/information"
    information.write_text(information.read_text().replace(UUIDS[0], UUIDS[9]))
    kubelet.pods = [pod("p", container([UUIDS[9]]))]
    observer.observe()
    assert len(reads) == 2
    clock.now += observing.REREAD_S
    assert observer.observe().build("n0", False)[1].unknown == ()
    clock.now += observing.REREAD_S
    observer.observe()
    assert len(reads) == 3
    asked.close()
