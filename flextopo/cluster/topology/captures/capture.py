"""What a capture tells of a server, and how captures are put together to a `ServerModel`.

Every importer yields a `Capture`: rows of hardware threads and places of GPUs. `assemble` then
counts physical cores, numbers NUMA nodes and sockets densely and locates the GPUs, so that these
rules exist once for all formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.model import MAX_NUMA_NODES, MAX_SOCKETS, ServerModel

Domain = tuple[int, int]  # (NUMA id, socket id): the part of a NUMA node that lies in one socket


class CpuRow(NamedTuple):
    """One hardware thread, with the numbers that the operating system gives."""

    cpu: int
    core: int
    socket: int
    numa_node: int


class GpuPlace(NamedTuple):
    """One GPU: its NUMA id where told, and the CPUs near it (empty if not told)."""

    label: str
    numa_node: int | None
    cpus: frozenset[int]
    name: str = ""


@dataclass(frozen=True)
class Capture:
    """What one file tells of a server.

    Attributes:
        source: name of the file, for messages.
        rows: one a hardware thread; empty if the file does not tell cores and sockets.
        numa_cpus: NUMA id to CPU numbers, where a file tells no more of the CPUs than this.
        gpus: in the order of the GPU numbers; None if the file does not tell.
        memory_nodes: NUMA id to socket id of NUMA nodes without cores.
        islands: of each GPU, equal where GPUs share a PCIe switch or an NVLink island; None if the
            file does not tell.
        warnings: assumptions made while reading.
    """

    source: str
    rows: tuple[CpuRow, ...] = ()
    numa_cpus: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    gpus: tuple[GpuPlace, ...] | None = None
    memory_nodes: Mapping[int, int] = field(default_factory=dict)
    islands: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = ()


def assemble(
    captures: Sequence[Capture], name: str, islands: bool = False
) -> tuple[ServerModel, list[str]]:
    """Put captures of one server together.

    Cores come from the first capture that lists hardware threads, else from one that lists the
    CPUs of NUMA nodes; GPUs from the first that lists GPUs.

    Args:
        captures: one or more of the same server.
        name: name of the model.
        islands: tell GPUs apart by PCIe switch or NVLink island, too.

    Returns:
        The model, and one warning for each assumption.

    Raises:
        TopologyError: no capture tells of CPUs, a CPU is listed twice, a GPU lies on a NUMA node
            that is not there, the server is larger than a `ServerModel`, or no capture tells the
            islands that are asked for.
    """
    warnings = [warning for capture in captures for warning in capture.warnings]
    hardware = next((c for c in captures if c.rows), None)
    if hardware is None:
        hardware = next((c for c in captures if c.numa_cpus), captures[0])
    rows = hardware.rows
    if not rows:
        rows, assumed = infer_rows(hardware.numa_cpus, hardware.source)
        warnings += assumed
    listing = next((c for c in captures if c.gpus is not None), None)
    if listing is None:
        warnings.append(f"{hardware.source}: GPUs are not listed; the server counts as without GPU")
    places = listing.gpus or () if listing else ()
    needed = {place.numa_node for place in places}
    domains, assumed = numa_domains(rows, hardware, needed)
    warnings += assumed
    cores = _physical_cores(rows, domains, hardware.source)
    where = listing.source if listing else hardware.source
    gpu_numa, assumed = _locate(places, domains, rows, where)
    sockets = sorted({socket for _, socket in domains})
    in_order = [core for ids in cores for core in ids] == list(range(sum(map(len, cores))))
    try:
        model = ServerModel(
            name=name,
            gpu_numa=gpu_numa,
            numa_socket=tuple(sockets.index(socket) for _, socket in domains),
            numa_cores=tuple(map(len, cores)),
            core_ids=() if in_order else cores,
            gpu_name=next((place.name for place in places if place.name), "GPU"),
        )
    except TopologyError as error:
        raise TopologyError(f"{hardware.source}: {error}") from None
    warnings += assumed
    if islands:
        told = next((c.islands for c in captures if c.islands is not None), None)
        model, assumed = with_islands(model, told, where)
        warnings += assumed
    return model, warnings


def with_islands(
    model: ServerModel, told: Sequence[int] | None, source: str
) -> tuple[ServerModel, list[str]]:
    """Tell a server's GPUs apart by island; one that spans NUMA nodes is cut.

    Args:
        model: the server.
        told: an island of each GPU, equal for GPUs of one; None = nobody told.
        source: for messages.

    Returns:
        The model, and a warning where an island was cut.

    Raises:
        TopologyError: nobody told, or of another number of GPUs.
    """
    if told is None or len(told) != model.num_gpus:
        raise TopologyError(
            f"{source}: tells no islands of its {model.num_gpus} GPUs; legal: nvidia-smi topo -m "
            "with PIX, PXB or NV# links, NCCL XML with PCIe switches, or a resource with islands"
        )
    keys = list(zip(told, model.gpu_numa, strict=True))
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    spanning = sorted({i for i, times in Counter(i for i, _ in numbers).items() if times > 1})
    warnings = []
    if spanning:
        gpus = [f"GPU{gpu}" for gpu, island in enumerate(told) if island in spanning]
        warnings.append(
            f"{source}: the island of {', '.join(gpus)} spans NUMA nodes; cut into one a NUMA node"
        )
    return replace(model, gpu_island=tuple(numbers[key] for key in keys)), warnings


def numa_domains(
    rows: Iterable[CpuRow], hardware: Capture, needed: Iterable[int | None]
) -> tuple[list[Domain], list[str]]:
    """List the NUMA nodes of the model; one that spans sockets is cut, since a model cannot."""
    source = hardware.source
    found = {(row.numa_node, row.socket) for row in rows}
    with_cores = {numa_node for numa_node, _ in found}
    memory_only = {(n, s) for n, s in hardware.memory_nodes.items() if n not in with_cores}
    warnings = []
    if len(found) + len(memory_only) > MAX_NUMA_NODES:
        # GPUs with memory of their own show up as dozens of such NUMA nodes.
        memory_only = {(n, s) for n, s in memory_only if n in set(needed)}
        warnings.append(f"{source}: NUMA nodes that have neither cores nor GPUs are left out")
    domains = sorted(found | memory_only)
    ids = [numa_node for numa_node, _ in domains]
    spanning = sorted(numa_node for numa_node, parts in Counter(ids).items() if parts > 1)
    if spanning:
        warnings.append(
            f"{source}: NUMA node {_join(spanning)} spans several sockets; "
            "cut into one NUMA node a socket"
        )
    if not spanning and ids != list(range(len(ids))):
        warnings.append(
            f"{source}: NUMA nodes {_join(ids)} counted as 0 to {len(ids) - 1} in order"
        )
    return domains, warnings


def _physical_cores(
    rows: Sequence[CpuRow], domains: Sequence[Domain], source: str
) -> tuple[tuple[int, ...], ...]:
    """Return the core numbers of each domain: hardware threads of one core count once."""
    twice = [cpu for cpu, times in Counter(row.cpu for row in rows).items() if times > 1]
    if twice:
        raise TopologyError(f"{source}: CPU {min(twice)} is listed twice; legal: once")
    first_cpu: dict[tuple[int, Domain], int] = {}
    for row in rows:
        key = row.core, (row.numa_node, row.socket)
        first_cpu[key] = min(row.cpu, first_cpu.get(key, row.cpu))
    in_order = sorted(first_cpu, key=first_cpu.__getitem__)
    unique = len({core for core, _ in in_order}) == len(in_order)
    cores: dict[Domain, list[int]] = {domain: [] for domain in domains}
    for position, (core, domain) in enumerate(in_order):
        # Core numbers that start again in each socket get the numbers that lscpu would give.
        cores[domain].append(core if unique else position)
    return tuple(tuple(sorted(ids)) for ids in cores.values())


def _locate(
    places: Sequence[GpuPlace], domains: Sequence[Domain], rows: Iterable[CpuRow], source: str
) -> tuple[tuple[int, ...], list[str]]:
    """Return the index of the NUMA node of each GPU, and a warning for each that is assumed."""
    cpus: dict[Domain, set[int]] = {domain: set() for domain in domains}
    for row in rows:
        cpus[row.numa_node, row.socket].add(row.cpu)
    choices = [_choices(place, cpus, source) for place in places]
    gpu_numa = [near[0] for near in choices]
    warnings = []
    for near in sorted(set(choices)):
        gpus = [gpu for gpu, other in enumerate(choices) if other == near]
        if len(near) == 1:
            continue
        # GPUs that are told to be near the same few NUMA nodes are dealt out in order.
        for position, gpu in enumerate(gpus):
            gpu_numa[gpu] = near[position * len(near) // len(gpus)]
        warnings.append(
            f"{source}: {', '.join(places[gpu].label for gpu in gpus)} may be on NUMA nodes "
            f"{_join(near)}; counted as on {_join(gpu_numa[gpu] for gpu in gpus)}"
        )
    return tuple(gpu_numa), warnings


def _choices(place: GpuPlace, cpus: Mapping[Domain, set[int]], source: str) -> tuple[int, ...]:
    """List the indices of the NUMA nodes that a GPU may be on."""
    near = tuple(i for i, members in enumerate(cpus.values()) if members & place.cpus)
    if place.numa_node is None:
        if place.cpus and not near:
            raise TopologyError(
                f"{source}: {place.label} is near CPUs {_join(sorted(place.cpus)[:4])}..., "
                "none of which the server has; legal: captures of one server"
            )
        return near or tuple(i for i, members in enumerate(cpus.values()) if members)
    told = tuple(i for i, (numa_node, _) in enumerate(cpus) if numa_node == place.numa_node)
    if not told:
        legal = _join(sorted({numa_node for numa_node, _ in cpus}))
        raise TopologyError(
            f"{source}: {place.label} is on NUMA node {place.numa_node}; legal: {legal}"
        )
    has_cores = any(members for i, members in enumerate(cpus.values()) if i in told)
    if near and has_cores and not set(near) & set(told):
        raise TopologyError(
            f"{source}: {place.label} is on NUMA node {place.numa_node} but near CPUs of another; "
            "legal: captures of one server"
        )
    return tuple(i for i in told if i in near) or told


def infer_rows(
    numa_cpus: Mapping[int, tuple[int, ...]], source: str
) -> tuple[tuple[CpuRow, ...], list[str]]:
    """Guess cores and sockets where only the CPUs of the NUMA nodes are known.

    Args:
        numa_cpus: NUMA id to its CPU numbers.
        source: the file's name for messages.

    Returns:
        One row a hardware thread, and what was assumed.

    Raises:
        TopologyError: no CPU at all, or one CPU in two NUMA nodes.
    """
    numa_cpus = {numa_node: cpus for numa_node, cpus in sorted(numa_cpus.items()) if cpus}
    if not numa_cpus:
        raise TopologyError(f"{source}: tells of no CPU; legal: a capture that lists CPUs")
    owners: dict[int, int] = {}
    for numa_node, cpus in numa_cpus.items():
        for cpu in cpus:
            if owners.setdefault(cpu, numa_node) != numa_node:
                raise TopologyError(
                    f"{source}: CPU {cpu} is on NUMA nodes {owners[cpu]} and {numa_node}; legal: one"
                )
    offset = _sibling_offset(numa_cpus.values())
    count = len(numa_cpus)
    # Few servers have another count than two sockets; an odd count cannot be split in two.
    sockets = 1 if count == 1 else 2 if count % 2 == 0 else count if count <= MAX_SOCKETS else 1
    rows = []
    for position, (numa_node, cpus) in enumerate(numa_cpus.items()):
        threads = sorted(cpus)
        lower = threads[: len(threads) // 2] if offset else threads
        socket = position * sockets // count
        rows += [CpuRow(cpu, cpu, socket, numa_node) for cpu in lower]
        rows += [CpuRow(cpu + offset, cpu, socket, numa_node) for cpu in lower if offset]
    assumed = (
        f"{source}: lists only the CPUs of NUMA nodes; assumed {sockets} socket(s) and "
        f"{2 if offset else 1} hardware thread(s) a core"
    )
    return tuple(rows), [assumed]


def _sibling_offset(lists: Iterable[tuple[int, ...]]) -> int:
    """Return the distance between two threads of a core, 0 if each CPU looks like a core.

    Linux numbers the first thread of all cores, then the second; a NUMA node of such a server has
    two runs of CPUs at one distance. A single run proves nothing and counts as cores.
    """
    offsets = set()
    for cpus in lists:
        threads, half = sorted(cpus), len(cpus) // 2
        pairs = zip(threads[:half], threads[len(threads) - half :], strict=True)
        distances = {upper - lower for lower, upper in pairs}
        if len(threads) % 2 or len(distances) != 1 or distances == {half}:
            return 0
        offsets |= distances
    return offsets.pop() if len(offsets) == 1 else 0


def _join(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
