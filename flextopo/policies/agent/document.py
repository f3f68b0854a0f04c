"""The FlexTopo object of a node, as the agent writes it.

Other than the graph of a `ServerModel`, it has a `core-C` for each hardware thread, C being the
kernel's number, as kubelet and pods' requests count. The threads of one core stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flextopo.cluster.topology.captures.capture import CpuRow
from flextopo.cluster.topology.graph import API_VERSION, KIND, EdgeType, Status, VertexType
from flextopo.policies.agent.machine import Gpu, Machine, islands
from flextopo.policies.agent.placements import GpuFinder, Placements
from flextopo.policies.agent.pod_resources import Allocatable, Device
from flextopo.policies.serving.objects import GPU

CORES_PER_GROUP = 8
"""Cores, with all their threads, of a core group, as in the public objects."""

Document = dict[str, Any]


def build_object(
    node: str,
    machine: Machine,
    allocatable: Allocatable,
    placements: Placements,
    with_islands: bool = False,
) -> Document:
    """Build the FlexTopo object of a node.

    Args:
        node: name of the node.
        machine: its hardware.
        allocatable: what kubelet may give out; a CPU or a GPU that is not in it is reserved, unless
            kubelet tells none at all, as it does where it pins nobody, and where no plugin runs. A GPU
            is missing while its plugin says that it is unhealthy.
        placements: who holds what.
        with_islands: also number the PCIe switches of the GPUs, which makes them a level.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": node},
        "spec": build_spec(machine, allocatable, placements, with_islands),
    }


def build_spec(
    machine: Machine, allocatable: Allocatable, placements: Placements, with_islands: bool
) -> Document:
    """Build the vertices and edges; arguments as in `build_object`."""
    numbers = _numa_numbers(machine.domains)
    vertices: list[Document] = []
    edges: list[Document] = []
    groups, may_be_given = 0, frozenset(allocatable.cpus)
    for socket in sorted({socket for _, socket in machine.domains}):
        vertices.append(_vertex(f"socket-{_socket(socket, machine)}", VertexType.SOCKET, {}))
    for domain, number in zip(machine.domains, numbers, strict=True):
        vertices.append(_vertex(f"numa-{number}", VertexType.NUMA_NODE, {}))
        edges.append(_edge(f"socket-{_socket(domain[1], machine)}", f"numa-{number}"))
        for threads in _groups(
            row for row in machine.rows if (row.numa_node, row.socket) == domain
        ):
            group = f"coregroup-{number}-{groups}"
            about = {"nodeID": str(number), "groupIndex": str(groups)}
            vertices.append(_vertex(group, VertexType.CORE_GROUP, about))
            edges.append(_edge(f"numa-{number}", group))
            groups += 1
            for row in threads:
                attributes = _core_attributes(row, may_be_given, placements)
                vertices.append(_vertex(f"core-{row.cpu}", VertexType.CORE, attributes))
                edges.append(_edge(group, f"core-{row.cpu}"))
    near = _gpu_numa_nodes(machine, allocatable)
    island = islands(machine.gpus, near) if with_islands else ()
    offered = _gpus_offered(machine, allocatable)
    for i, gpu in enumerate(machine.gpus):
        attributes = _gpu_attributes(i, gpu, offered, placements)
        if island:
            attributes["island"] = str(island[i])
        at = near[i]
        if at is not None:
            attributes["numaNode"] = str(numbers[at])
            edges.append(_edge(f"numa-{numbers[at]}", f"gpu-{i}", EdgeType.LOCALIZED))
        vertices.append(_vertex(f"gpu-{i}", VertexType.GPU, attributes))
    return {"nodes": vertices, "edges": edges}


def _vertex(name: str, kind: VertexType, attributes: dict[str, str]) -> Document:
    return {"id": name, "type": kind.value, "attributes": attributes}


def _edge(source: str, target: str, kind: EdgeType = EdgeType.CONTAINS) -> Document:
    return {"source": source, "target": target, "type": kind.value}


def _numa_numbers(domains: Sequence[tuple[int, int]]) -> list[int]:
    """Return the kernel's numbers, or 0, 1, ... where a NUMA node had to be cut."""
    kernels = [numa_node for numa_node, _ in domains]
    return kernels if len(set(kernels)) == len(kernels) else list(range(len(kernels)))


def _socket(socket: int, machine: Machine) -> int:
    """Return the kernel's number of a socket; virtual machines without one say -1."""
    lowest = min(socket for _, socket in machine.domains)
    return socket - lowest if lowest < 0 else socket


def _groups(rows: Iterable[CpuRow]) -> Iterator[list[CpuRow]]:
    """Cut a NUMA node's threads into groups that keep the threads of a core together."""
    cores: dict[int, list[CpuRow]] = {}
    for row in sorted(rows, key=lambda row: (row.core, row.cpu)):
        cores.setdefault(row.core, []).append(row)
    in_order = list(cores.values())
    for start in range(0, len(in_order), CORES_PER_GROUP):
        yield [row for core in in_order[start : start + CORES_PER_GROUP] for row in core]


def _core_attributes(
    row: CpuRow, allocatable: frozenset[int], placements: Placements
) -> dict[str, str]:
    pods = placements.cores.get(row.cpu, ())
    attributes = {"core": str(row.core), "status": Status.FREE.value}
    if pods:
        status = Status.USED if len(pods) == 1 else Status.SHARED
        attributes |= {"status": status.value, "usedBy": ",".join(pods)}
    elif allocatable and row.cpu not in allocatable:
        attributes["status"] = Status.RESERVED.value
    return attributes


def _gpus_offered(machine: Machine, allocatable: Allocatable) -> frozenset[int]:
    """Return the indices of the GPUs that kubelet may give out, whole or in parts."""
    finder = GpuFinder(machine)
    found = (finder.find(Device(GPU, device)) for device in allocatable.numa_nodes)
    return frozenset(gpu.gpu for gpu in found if gpu)


def _gpu_attributes(
    i: int, gpu: Gpu, offered: frozenset[int], placements: Placements
) -> dict[str, str]:
    attributes = {"name": gpu.name, "status": placements.gpu_status(i).value}
    if pods := placements.gpus.get(i):
        attributes["usedBy"] = ",".join(pods)
        if all(not placements.pods[pod].cores for pod in pods):
            # Else nobody could tell this from a writer who does not know of CPUs.
            attributes["cpus"] = Status.SHARED.value
    elif offered and i not in offered:
        attributes["status"] = Status.RESERVED.value
    if gpu.memory_mib:
        attributes["memoryTotal"] = str(gpu.memory_mib)
    if gpu.uuid:
        attributes["uuid"] = gpu.uuid
    return attributes


def _gpu_numa_nodes(machine: Machine, allocatable: Allocatable) -> list[int | None]:
    """Return the index of each GPU's NUMA node: by the kernel, else by kubelet, else the only one."""
    indices: dict[int, int] = {}
    for index, (numa_node, _) in enumerate(machine.domains):
        indices.setdefault(numa_node, index)
    finder = GpuFinder(machine)
    told: dict[int, int | None] = {}
    for device, near in allocatable.numa_nodes.items():
        found = finder.find(Device(GPU, device))
        if found and near is not None:
            told[found.gpu] = indices.get(near)
    only = 0 if len(machine.domains) == 1 else None
    places: list[int | None] = []
    for i, gpu in enumerate(machine.gpus):
        by_kernel = None if gpu.numa_node is None else indices.get(gpu.numa_node)
        choices = (by_kernel, told.get(i), only)
        places.append(next((index for index in choices if index is not None), None))
    return places
