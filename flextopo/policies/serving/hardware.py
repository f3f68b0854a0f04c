"""Hardware and allocations from FlexTopo objects: the graph is compiled once for equal servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import msgspec

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.flextopo import DAEMON_PODS
from flextopo.cluster.topology.graph import (
    API_VERSION,
    KIND,
    Status,
    VertexType,
    vertex_index,
    vertices_of,
)
from flextopo.cluster.topology.model import ServerModel
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import graph_from_resource
from flextopo.policies.serving.devices import GpuDevice
from flextopo.policies.serving.objects import FlexTopoObject, FlexTopoSpec, ObjectError
from flextopo.policies.serving.sources import Zone


@dataclass(frozen=True, eq=False)
class Hardware:
    """One kind of server, and how its vertices are numbered.

    Attributes:
        model: index into the models of the table.
        server: the model.
        core_numa: NUMA node index by core number, as in `core-C`; reserved cores are left out.
        gpu_index: GPU index by GPU number, as in `gpu-I`.
        known: False where no FlexTopo tells where anything is.
        warnings: what had to be assumed.
        num_core_ids: core numbers, those of reserved cores among them.
        threads: CPUs, as Kubernetes counts them, that a core number stands for.
        cores_located: False where nobody tells which CPUs a pod has; then they are only counted, on
            the node as a whole.
    """

    model: int
    server: ServerModel
    core_numa: dict[int, int]
    gpu_index: dict[int, int]
    known: bool = True
    warnings: tuple[str, ...] = ()
    num_core_ids: int = 0
    threads: int = 1
    cores_located: bool = True


class Marks(NamedTuple):
    """What a FlexTopo says that a pod holds: core and GPU numbers, and that it has no core of its own."""

    cores: tuple[int, ...]
    gpus: tuple[int, ...]
    in_shared_pool: bool = False


NO_MARKS = Marks((), ())


class HardwareCatalogue:
    """The kinds of servers seen so far; nodes of one kind share a model.

    Attributes:
        models: the distinct server models; their number only grows.
    """

    def __init__(self) -> None:
        self.models: list[ServerModel] = []
        self._by_graph: dict[object, Hardware] = {}
        self._flat: dict[tuple[int, int], Hardware] = {}
        self._threaded: dict[tuple[Hardware, int], Hardware] = {}

    def of_flextopo(self, resource: FlexTopoObject, spec: FlexTopoSpec) -> Hardware:
        """Return the hardware that a node's FlexTopo describes.

        Args:
            resource: the object.
            spec: from `read_spec`.

        Raises:
            TopologyError: the object is no legal FlexTopo graph.
        """
        key = _hardware_key(spec)
        found = self._by_graph.get(key)
        if found is None:
            name = resource.metadata.name
            document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}}
            document["spec"] = msgspec.json.decode(resource.spec)
            graph = graph_from_resource(document, f"FlexTopo {name!r}")
            server, warnings = server_model_from_graph(graph)
            numbers = [vertex_index(gpu) for gpu in vertices_of(graph, VertexType.GPU)]
            found = Hardware(
                model=self._add(server),
                server=server,
                core_numa={core: u for u, cores in enumerate(server.cores) for core in cores},
                gpu_index={number: i for i, number in enumerate(numbers)},
                warnings=tuple(warnings),
                num_core_ids=sum(vertex.type == VertexType.CORE for vertex in spec.nodes),
            )
            self._by_graph[key] = found
        return found

    def in_cpus(self, hardware: Hardware, cpus: int) -> Hardware:
        """Return hardware whose cores are counted as Kubernetes counts CPUs: hardware threads.

        Args:
            hardware: from `of_flextopo`.
            cpus: of the node. More of them than core numbers means that each core runs several.

        Raises:
            TopologyError: more CPUs than a server model has.
        """
        threads = -(-cpus // max(hardware.num_core_ids, 1))
        if threads <= 1:
            return hardware
        found = self._threaded.get((hardware, threads))
        if found is None:
            cores = tuple(count * threads for count in hardware.server.numa_cores)
            server = replace(hardware.server, numa_cores=cores, core_ids=())
            found = replace(hardware, model=self._add(server), server=server, threads=threads)
            self._threaded[hardware, threads] = found
        return found

    def of_devices(self, gpus: Sequence[GpuDevice], cpus: int) -> Hardware | None:
        """Return the hardware that drivers tell of, None where a GPU's NUMA node is not known.

        NUMA nodes that are near to one GPU count as one socket, all others as sockets of their own;
        CPUs are spread evenly, since no driver of GPUs tells of them.

        Raises:
            TopologyError: more GPUs or NUMA nodes than a server model has.
        """
        if not gpus or not all(gpu.numas for gpu in gpus):
            return None
        numas = sorted({numa for gpu in gpus for numa in gpu.numas})
        socket_of = {numa: numa for numa in numas}
        for gpu in gpus:
            near = {socket_of[numa] for numa in gpu.numas}
            socket_of = {numa: min(near) if s in near else s for numa, s in socket_of.items()}
        sockets = sorted(set(socket_of.values()))
        cores = [cpus // len(numas) + (i < cpus % len(numas)) for i in range(len(numas))]
        return self._located(
            [numas.index(gpu.numas[0]) for gpu in gpus],
            [sockets.index(socket_of[numa]) for numa in numas],
            cores,
            [gpu.number for gpu in gpus],
            False,
        )

    def of_zones(self, zones: Sequence[Zone]) -> Hardware | None:
        """Return the hardware that a NodeResourceTopology tells of, None if it tells of no GPU.

        Raises:
            TopologyError: more GPUs or NUMA nodes than a server model has.
        """
        found = sorted((zone.numa, zone.gpus, zone.cpus) for zone in zones)
        gpu_numa = [i for i, (_, gpus, _) in enumerate(found) for _ in range(gpus)]
        if not gpu_numa:
            return None
        cores = [cpus for _, _, cpus in found]
        return self._located(gpu_numa, range(len(found)), cores, range(len(gpu_numa)), True)

    def _located(
        self,
        gpu_numa: Sequence[int],
        numa_socket: Sequence[int],
        cores: Sequence[int],
        numbers: Sequence[int],
        cores_located: bool,
    ) -> Hardware:
        key = (tuple(gpu_numa), tuple(numa_socket), tuple(cores), tuple(numbers), cores_located)
        found = self._by_graph.get(key)
        if found is None:
            name = f"{len(key[0])} GPUs on {len(key[1])} NUMA nodes"
            server = ServerModel(name, key[0], key[1], key[2])
            found = Hardware(
                model=self._add(server),
                server=server,
                core_numa={},
                gpu_index={number: i for i, number in enumerate(numbers)},
                cores_located=cores_located,
            )
            self._by_graph[key] = found
        return found

    def flat(self, gpus: int, cores: int) -> Hardware:
        """Return a server of which only counts are known.

        Raises:
            TopologyError: more GPUs or cores than a server model has.
        """
        found = self._flat.get((gpus, cores))
        if found is None:
            server = ServerModel(f"{gpus} GPUs, {cores} cores", (0,) * gpus, (0,), (cores,))
            found = Hardware(self._add(server), server, {}, {}, known=False)
            self._flat[gpus, cores] = found
        return found

    def _add(self, server: ServerModel) -> int:
        for index, known in enumerate(self.models):
            if server.domains == known.domains and server.numa_cores == known.numa_cores:
                return index
        self.models.append(replace(server, name=f"{len(self.models)}: {server.name}"))
        return len(self.models) - 1


_DAEMONS = tuple(f"{daemon}-" for daemon in DAEMON_PODS)
_NOBODYS = (Status.FREE, Status.SHARED, Status.RESERVED)
_SPEC = msgspec.json.Decoder(FlexTopoSpec)


def read_spec(resource: FlexTopoObject) -> FlexTopoSpec:
    """Return an object's graph.

    Raises:
        ObjectError: it has another form.
    """
    try:
        return _SPEC.decode(resource.spec)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ObjectError(f"FlexTopo {resource.metadata.name!r}: spec: {error}") from None


def read_marks(spec: FlexTopoSpec) -> dict[str, Marks]:
    """Return what each pod holds by its name as `usedBy` says it; daemons hold nothing.

    What is shared or reserved is nobody's: a pod with a part of a GPU holds no GPU that is known.

    Raises:
        TopologyError: a core or GPU has no number.
    """
    used = [
        (attributes.usedBy, vertex)
        for vertex in spec.nodes
        if (attributes := vertex.attributes)
        and attributes.usedBy
        and attributes.status not in _NOBODYS
    ]
    held: dict[str | int, tuple[list[int], list[int]]] = {}
    pooled = {
        pod for pod, vertex in used if vertex.attributes and vertex.attributes.cpus == Status.SHARED
    }
    for pod, vertex in used:
        if vertex.type in ("CPUCore", "GPU"):
            if pod not in held:
                held[pod] = ([], [])
            held[pod][vertex.type == "GPU"].append(_number(vertex.id))
    return {
        str(pod): Marks(tuple(cores), tuple(gpus), pod in pooled and not cores)
        for pod, (cores, gpus) in held.items()
        if not is_daemon(str(pod))
    }


def read_uuids(spec: FlexTopoSpec) -> dict[str, int]:
    """Return the numbers of the GPUs by UUID, where it tells them."""
    return {
        str(vertex.attributes.uuid): _number(vertex.id)
        for vertex in spec.nodes
        if vertex.type == "GPU" and vertex.attributes and vertex.attributes.uuid
    }


def read_kept(spec: FlexTopoSpec) -> tuple[int, ...]:
    """Return the numbers of the GPUs that kubelet gives to no pod, such as unhealthy ones."""
    return tuple(
        _number(vertex.id)
        for vertex in spec.nodes
        if vertex.type == "GPU"
        and vertex.attributes
        and vertex.attributes.status == Status.RESERVED
    )


@lru_cache(maxsize=4096)
def _number(vertex: str) -> int:
    number = vertex.rpartition("-")[2]
    if not number.isascii() or not number.isdigit() or len(number) > 9:
        raise TopologyError(f"vertex {vertex[:40]!r}; legal: such as core-12")
    return int(number)


@lru_cache(maxsize=65536)
def held_by(
    hardware: Hardware, marks: Marks, width: int, are_cpus: bool = False
) -> tuple[int | None, tuple[int, ...] | None]:
    """Return the mask of marked GPUs, and the number of marked CPUs in each of (U,) NUMA nodes.

    Servers of one kind are marked alike, so most answers are known. None = the server has no such
    GPU or core, or one is named twice.

    Args:
        hardware: of the node.
        marks: numbers of GPUs and cores.
        width: NUMA nodes of the largest model, U.
        are_cpus: the numbers are those of CPUs. Where a core stands for several, the first threads of
            all cores are numbered before the second ones, as Linux does it.
    """
    gpus = {hardware.gpu_index.get(number, -1) for number in marks.gpus}
    cores, threads, each = marks.cores, hardware.threads, hardware.threads
    if are_cpus and threads > 1:
        count = hardware.num_core_ids
        cores = tuple(cpu % count if cpu < threads * count else -1 for cpu in cores)
        each = 1
    numa_nodes = [hardware.core_numa.get(number, -1) for number in cores]
    mask = None
    if len(gpus) == len(marks.gpus) and -1 not in gpus:
        mask = sum(1 << index for index in gpus)
    if -1 in numa_nodes:
        return mask, None
    return mask, tuple(each * numa_nodes.count(u) for u in range(width))


def is_daemon(pod: str) -> bool:
    """Say whether a `usedBy` names a daemon, whose marks say nothing of what is taken."""
    return f"{pod.rpartition('/')[2]}-".startswith(_DAEMONS)


def _hardware_key(spec: FlexTopoSpec) -> object:
    """Return all of an object but its name and which pod uses what."""
    vertices = [(vertex.id, vertex.type) for vertex in spec.nodes]
    gpus = [
        vertex.attributes
        and (vertex.attributes.name, vertex.attributes.memoryTotal, vertex.attributes.island)
        for vertex in spec.nodes
        if vertex.type == "GPU"
    ]
    reserved = [
        vertex.id
        for vertex in spec.nodes
        if vertex.attributes
        and vertex.attributes.status == Status.RESERVED
        and vertex.type != "GPU"
    ]
    return tuple(vertices), tuple(gpus), tuple(reserved), bytes(spec.edges)
