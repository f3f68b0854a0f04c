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
from flextopo.cluster.topology.captures.infer import infer_cores
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
        lists_all_nodes: no NUMA node beyond `numa_cpus` has CPUs.
        node_is_socket: each NUMA node with CPUs is a socket, as on servers of NVIDIA Grace.
        gpus: in the order of the GPU numbers; None if the file does not tell.
        memory_nodes: NUMA id to socket id of NUMA nodes without cores.
        islands: of each GPU, equal where GPUs share a PCIe switch or an NVLink island; None if the
            file does not tell.
        warnings: assumptions made while reading.
    """

    source: str
    rows: tuple[CpuRow, ...] = ()
    numa_cpus: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    lists_all_nodes: bool = False
    node_is_socket: bool = False
    gpus: tuple[GpuPlace, ...] | None = None
    memory_nodes: Mapping[int, int] = field(default_factory=dict)
    islands: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = ()


def assemble(
    captures: Sequence[Capture], name: str, islands: bool = False
) -> tuple[ServerModel, list[str]]:
    """Put captures of one server together.

    Cores come from the first capture that lists hardware threads, else from one that lists the
    CPUs of NUMA nodes; GPUs from the first that tells where they are, else from one that lists them.

    Args:
        captures: one or more of the same server.
        name: name of the model.
        islands: tell GPUs apart by PCIe switch or NVLink island, too.

    Returns:
        The model, and one warning for each assumption.

    Raises:
        TopologyError: no capture tells of CPUs, a CPU is listed twice, a GPU lies on a NUMA node
            that is not there, there are fewer cores than GPUs, the server is larger than a
            `ServerModel`, or no capture tells the islands that are asked for.
    """
    hardware = next((c for c in captures if c.rows), None)
    if hardware is None:
        hardware = next((c for c in captures if c.numa_cpus), captures[0])
    read = merge_sockets(hardware if hardware.rows else _inferred(hardware))
    warnings = [w for c in captures for w in (read if c is hardware else c).warnings]
    hardware, rows = read, read.rows
    listing = _listing(captures)
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
    check_cores(model, hardware.source)
    warnings += assumed
    if islands:
        told = next((c.islands for c in captures if c.islands is not None), None)
        model, assumed = with_islands(model, told, where)
        warnings += assumed
    return model, warnings


def _listing(captures: Sequence[Capture]) -> Capture | None:
    """Return the capture that tells best where GPUs are, None where none lists any."""
    lists = [capture for capture in captures if capture.gpus is not None]
    placed = (
        capture
        for capture in lists
        if any(gpu.cpus or gpu.numa_node is not None for gpu in capture.gpus or ())
    )
    return next(placed, lists[0] if lists else None)


def check_cores(model: ServerModel, source: str) -> None:
    """Refuse a server on which not every GPU has a core.

    Raises:
        TopologyError: names both numbers.
    """
    if model.num_cores < model.num_gpus:
        raise TopologyError(
            f"{source}: {model.num_cores} cores and {model.num_gpus} GPUs; "
            "legal: a core for each GPU at least"
        )


def are_virtual(sockets: int, most_cores: int) -> bool:
    """Tell whether sockets that share a NUMA node are a virtual machine's.

    Virtual machines often make each CPU a socket. Real sockets that share a NUMA node, as where the
    firmware interleaves memory, have several cores, or are two.

    Args:
        sockets: how many share the NUMA node.
        most_cores: cores of the largest of them.
    """
    return sockets > 2 and most_cores == 1


def merge_sockets(capture: Capture) -> Capture:
    """Count sockets as one where they share a NUMA node and only a virtual machine has such.

    Sockets of a real server that share a NUMA node stay: `numa_domains` cuts the node.

    Args:
        capture: with rows.

    Returns:
        The capture, with other sockets, perhaps other core numbers, and a warning if they changed.
    """
    cores: dict[int, set[int]] = {}
    spans: dict[int, set[int]] = {}
    for row in capture.rows:
        cores.setdefault(row.socket, set()).add(row.core)
        spans.setdefault(row.numa_node, set()).add(row.socket)
    merged = {socket: socket for socket in cores}
    for sockets in spans.values():
        most = max(len(cores[socket]) for socket in sockets)
        if len(cores) > MAX_SOCKETS or are_virtual(len(sockets), most):
            joined = {merged[socket] for socket in sockets}
            merged = {s: min(joined) if m in joined else m for s, m in merged.items()}
    count = len(set(merged.values()))
    if count == len(cores):
        return capture
    # Core numbers may start again in each socket.
    numbers: dict[tuple[int, int], int] = {}
    for row in sorted(capture.rows):
        numbers.setdefault((row.socket, row.core), len(numbers))
    rows = tuple(
        CpuRow(row.cpu, numbers[row.socket, row.core], merged[row.socket], row.numa_node)
        for row in capture.rows
    )
    memory = {node: merged.get(socket, socket) for node, socket in capture.memory_nodes.items()}
    warning = (
        f"{capture.source}: {len(cores)} sockets counted as {count}, since NUMA nodes span them"
    )
    warnings = (*capture.warnings, warning)
    return replace(capture, rows=rows, memory_nodes=memory, warnings=warnings)


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
            "with PIX, PXB or NV# links, amd-smi topology with XGMI links between some, NCCL XML with "
            "PCIe switches, or a resource with islands"
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


def _inferred(capture: Capture) -> Capture:
    """Add rows to a capture that lists only the CPUs of NUMA nodes, and a warning."""
    try:
        found = infer_cores(capture.numa_cpus, capture.lists_all_nodes, capture.node_is_socket)
    except TopologyError as error:
        raise TopologyError(f"{capture.source}: {error}") from None
    rows = tuple(
        CpuRow(cpu, threads[0], found.socket[numa_node], numa_node)
        for numa_node, cores in found.cores.items()
        for threads in cores
        for cpu in threads
    )
    warning = f"{capture.source}: lists only the CPUs of NUMA nodes; {found.reason}"
    return replace(capture, rows=rows, warnings=(*capture.warnings, warning))


def _join(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
