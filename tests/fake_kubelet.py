"""kubelet's pod-resources service on a unix socket, in bytes of its own, and a machine in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

UUIDS = [f"GPU-0000000{i}-aaaa-bbbb-cccc-dddddddddddd" for i in range(10)]
"""Of the GPUs of `make_machine`, in the order of their bus ids."""


def field(number: int, value: int | str | bytes) -> bytes:
    """Write one field of a message as protocol buffers are on the wire."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """Write a whole number, the lowest seven bits first."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def packed(number: int, values: Iterable[int]) -> bytes:
    """Write a repeated number, as proto3 does."""
    data = b"".join(map(varint, values))
    return field(number, data) if data else b""


def devices(resource: str, ids: Sequence[str], numa_node: int | None = None) -> bytes:
    """Write ContainerDevices."""
    topology = b"" if numa_node is None else field(3, field(1, field(1, numa_node)))
    return field(1, resource) + b"".join(field(2, name) for name in ids) + topology


def container(
    gpus: Sequence[str] = (),
    cpus: Sequence[int] = (),
    claims: Sequence[tuple[str, str]] = (),
    resource: str = "nvidia.com/gpu",
) -> bytes:
    """Write ContainerResources; with memory, which nobody reads."""
    given = field(2, devices(resource, gpus)) if gpus else b""
    memory = field(4, field(1, "memory") + field(2, 1 << 33))
    results = b"".join(
        field(
            4, field(1, field(1, f"cdi/{name}")) + field(2, driver) + field(3, "n") + field(4, name)
        )
        for driver, name in claims
    )
    dynamic = field(5, field(2, "claim") + field(3, "ns") + results) if claims else b""
    return field(1, "main") + given + packed(3, cpus) + memory + dynamic


def pod(name: str, *containers: bytes, namespace: str = "batch") -> bytes:
    """Write a ListPodResourcesResponse's field of one pod."""
    inner = b"".join(field(3, each) for each in containers)
    return field(1, field(1, name) + field(2, namespace) + inner)


def allocatable(cpus: Sequence[int] = (), *given: bytes) -> bytes:
    """Write an AllocatableResourcesResponse."""
    return b"".join(field(1, each) for each in given) + packed(2, cpus)


class FakeKubelet:
    """A server; the socket is there from its start until it is stopped.

    Args:
        socket: path of the socket.

    Attributes:
        pods: the pods that it lists, from `pod`.
        offers: what it may give out, from `allocatable`; None = it does not know the call.
        busy: refuse as kubelet does where its clients together ask more often than it allows.
        calls: how often `List` was called.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.pods: list[bytes] = []
        self.offers: bytes | None = b""
        self.busy = False
        self.calls = 0
        self._pool = ThreadPoolExecutor(2)
        self._server: Any = None
        self.start()

    def start(self) -> None:
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        methods = {
            "List": grpc.unary_unary_rpc_method_handler(self._list),
            "GetAllocatableResources": grpc.unary_unary_rpc_method_handler(self._allocatable),
        }
        handler = grpc.method_handlers_generic_handler("v1.PodResourcesLister", methods)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self.socket.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        self._pool.shutdown()

    def _list(self, request: bytes, context: Any) -> bytes:
        assert request == b""
        self.calls += 1
        if self.busy:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
        return b"".join(self.pods)

    def _allocatable(self, request: bytes, context: Any) -> bytes:
        assert request == b""
        if self.offers is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
        assert self.offers is not None
        return self.offers


def make_machine(
    root: Path,
    sockets: int = 2,
    cores: int = 2,
    threads: int = 2,
    gpus: int = 4,
    switches: bool = False,
) -> None:
    """Write `sys` and `proc` of a machine with a NUMA node a socket, GPUs spread over them.

    Args:
        root: a folder.
        sockets: NUMA nodes, too.
        cores: cores of a socket.
        threads: hardware threads of a core; as Linux does, the first of all cores come first.
        gpus: GPUs, bus ids ascending and minors descending.
        switches: two GPUs at a time are behind one PCIe switch, else each has its own root port.
    """
    system = root / "sys/devices/system"
    total = sockets * cores
    for cpu in range(total * threads):
        core = cpu % total
        topology = system / f"cpu/cpu{cpu}/topology"
        write(topology / "physical_package_id", core // cores)
        siblings = ",".join(str(core + total * thread) for thread in range(threads))
        write(topology / "core_cpus_list", siblings)
    for node in range(sockets):
        own = [cpu for cpu in range(total * threads) if cpu % total // cores == node]
        write(system / f"node/node{node}/cpulist", ",".join(map(str, own)))
        write(system / f"node/node{node}/distance", "10 20")
    bus = root / "sys/bus/pci/devices"
    bus.mkdir(parents=True)
    for gpu in range(gpus):
        bus_id = f"0000:{0x10 + gpu:02x}:00.0"
        port = f"0000:00:{gpu // 2 if switches else gpu:02x}.0"
        device = root / f"sys/devices/pci0000:00/{port}/{bus_id}"
        write(device / "numa_node", gpu * sockets // gpus)
        write(device / "vendor", "0x10de")
        write(device / "class", "0x030200")
        (bus / bus_id).symlink_to(device)
        write(
            root / f"proc/driver/nvidia/gpus/{bus_id}/information",
            f"Model: \t\t NVIDIA A100\nIRQ:   \t\t 42\nGPU UUID: \t {UUIDS[gpu]}\n"
            f"Bus Location: \t {bus_id}\nDevice Minor: \t {gpus - 1 - gpu}",
        )


def write(path: Path, text: object) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
