"""Importer of hwloc's XML (`lstopo file.xml`), and what that of NCCL's XML shares with it.

XML is parsed with defusedxml, which refuses entities: a few lines of them can grow to gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.capture import Capture, CpuRow, GpuPlace
from flextopo.cluster.topology.captures.from_text import MAX_CPU, MAX_NUMA_ID

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    Path = tuple[Element, ...]

# Real files are nested 20 deep at most; paths of a hostile one would fill the memory.
MAX_DEPTH = 100

_NVIDIA, _AMD = "10de", "1002"
# PCI classes: VGA and 3D controllers; AMD's accelerators call themselves processing accelerators.
GPU_CLASSES = {_NVIDIA: ("0300", "0302"), _AMD: ("0300", "0302", "0380", "1200")}


def parse_xml(data: bytes, source: str) -> Element:
    """Parse XML without trusting it.

    Args:
        data: a whole document.
        source: the file's name for messages.

    Returns:
        The root element.

    Raises:
        TopologyError: it is truncated or malformed, or it defines entities.
    """
    from xml.etree.ElementTree import ParseError

    import defusedxml.ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        root: Element = defusedxml.ElementTree.fromstring(data)
    except ParseError as error:
        line, column = error.position
        reason = str(error).partition(":")[0]
        raise TopologyError(f"{source}:{line}: {reason} in column {column}; legal: XML") from None
    except DefusedXmlException as error:
        reason = type(error).__name__
        raise TopologyError(
            f"{source}: defines entities ({reason}); legal: XML without entities"
        ) from None
    except (ValueError, LookupError) as error:
        raise TopologyError(f"{source}: {error}; legal: XML in a known encoding") from None
    return root


def parse_cpu_mask(text: str, digits: int = 8) -> frozenset[int]:
    """Parse a mask of CPUs as hwloc and the kernel write it: 32-bit hexadecimal words.

    Args:
        text: such as `0x000000ff,,0xffff0000`, the highest word first; an empty word is zero.
        digits: hexadecimal digits of a word.

    Returns:
        The CPU numbers.

    Raises:
        TopologyError: a word is not hexadecimal, or a CPU number above 65535.
    """
    cpus: set[int] = set()
    words = text.split(",")
    if len(words) * 4 * digits > MAX_CPU + 1:
        raise TopologyError(f"a CPU mask of {len(words)} words; legal: CPUs 0 to {MAX_CPU}")
    for position, word in enumerate(reversed(words)):
        if not re.fullmatch(rf"\s*(0x)?[0-9a-fA-F]{{0,{digits}}}\s*", word):
            raise TopologyError(
                f"word {word[:40]!r} of a CPU mask; legal: up to {digits} hex digits"
            )
        bits = int(word.strip().removeprefix("0x") or "0", 16)
        start = position * 4 * digits
        cpus.update(start + bit for bit in range(4 * digits) if bits >> bit & 1)
    return frozenset(cpus)


def read_hwloc(root: Element, source: str) -> Capture:
    """Read an hwloc topology, of version 1 (NUMA nodes contain cores) or 2 and 3 (beside them).

    Args:
        root: the `topology` element.
        source: the file's name for messages.

    Returns:
        A capture; GPUs in the order of their PCI bus ids if the file lists PCI devices, else None.

    Raises:
        TopologyError: names the element that is malformed.
    """
    numa_nodes: dict[int, frozenset[int]] = {}
    numa_paths: dict[int, Path] = {}
    found: list[Element] = []
    threads: list[Path] = []
    devices: list[Path] = []
    for path in walk(root, source, "object"):
        kind = path[-1].get("type", "")
        if kind in ("Package", "Socket"):
            found.append(path[-1])
        elif kind == "NUMANode":
            numa_node = number_at(path, "os_index", source, MAX_NUMA_ID)
            if numa_node in numa_nodes:
                raise TopologyError(
                    f"{where_at(path, source)}: NUMA node {numa_node} is listed twice; legal: once"
                )
            numa_nodes[numa_node] = mask_at(path, "cpuset", source)
            numa_paths[numa_node] = path
        elif kind == "PU":
            threads.append(path)
        elif kind == "PCIDev":
            devices.append(path)
    # Memory without cores of its own repeats the cpuset of what it is attached to: a CPU belongs
    # to the NUMA node with the fewest CPUs, then to the one with the lowest id.
    by_size = sorted(numa_nodes, key=lambda node: (-len(numa_nodes[node]), -node))
    owner = {cpu: node for node in by_size for cpu in numa_nodes[node]} if numa_nodes else None
    packages = _package_numbers(found)
    rows = _hwloc_rows(threads, owner, packages, source)
    if not rows:
        raise TopologyError(f"{source}: has no object of type PU; legal: one for each CPU")
    socket_of = {row.cpu: row.socket for row in rows}
    with_cores = {row.numa_node for row in rows}
    memory_nodes = {
        node: _package(path, packages)
        if _package(path, packages)
        else min((socket_of[cpu] for cpu in numa_nodes[node] if cpu in socket_of), default=0)
        for node, path in numa_paths.items()
        if node not in with_cores
    }
    gpus = _hwloc_gpus(devices, source) if devices else None
    warnings = _hwloc_parts(root, source)
    return Capture(source, rows=rows, gpus=gpus, memory_nodes=memory_nodes, warnings=warnings)


def _package_numbers(found: list[Element]) -> dict[int, int]:
    """Number packages by the operating system's index where each has its own, else in order."""
    texts = [element.get("os_index", "") for element in found]
    ordered = len(set(texts)) == len(texts) and all(re.fullmatch("[0-9]{1,9}", t) for t in texts)
    if ordered:
        found = sorted(found, key=lambda element: int(element.get("os_index", "0")))
    return {id(element): i for i, element in enumerate(found)}


def _hwloc_parts(root: Element, source: str) -> tuple[str, ...]:
    """Warn where a cgroup, or CPUs that are off line, hide a part of the machine."""
    machine = root.find("object")
    if machine is None or not machine.get("cpuset"):
        return ()
    path = (root, machine)
    seen, whole, allowed = (
        mask_at(path, name, source) if machine.get(name) else None
        for name in ("cpuset", "complete_cpuset", "allowed_cpuset")
    )
    seen = seen or frozenset()
    hidden = len((whole or seen) - seen)
    infos = (*root.findall("info"), *machine.findall("info"))
    in_cgroup = any(info.get("name") == "LinuxCgroup" for info in infos)
    if hidden:
        why = "its cgroup hides" if in_cgroup else "a cgroup or being off line hides"
        seen_of = f"{len(seen)} of {len(seen) + hidden} CPUs"
        return (f"{source}: only part of the machine is seen, {seen_of}; {why} the others",)
    if allowed and seen - allowed:
        allows = f"its cgroup allows {len(seen & allowed)} of {len(seen)} CPUs"
        return (f"{source}: {allows}; the machine is counted whole",)
    return ()


def _hwloc_rows(
    threads: list[Path], owner: dict[int, int] | None, packages: dict[int, int], source: str
) -> tuple[CpuRow, ...]:
    """Return the hardware threads; cores are numbered anew where one number stands for several."""
    rows = [_hwloc_row(path, owner, packages, source) for path in threads]
    cores = [id(_core(path)) for path in threads]
    if len(set(zip(cores, (row[1:] for row in rows), strict=True))) == len({r[1:] for r in rows}):
        return tuple(rows)
    numbers = {core: i for i, core in enumerate(dict.fromkeys(cores))}
    return tuple(row._replace(core=numbers[c]) for row, c in zip(rows, cores, strict=True))


def _core(path: Path) -> Element:
    """Return the core around a hardware thread; the thread itself where there is none."""
    return next((element for element in reversed(path) if element.get("type") == "Core"), path[-1])


def _hwloc_row(
    path: Path, owner: dict[int, int] | None, packages: dict[int, int], source: str
) -> CpuRow:
    cpu = number_at(path, "os_index", source, MAX_CPU)
    cores = [i for i, element in enumerate(path) if element.get("type") == "Core"]
    # Machines whose cores hwloc cannot see list the threads alone; each counts as a core.
    core = number_at(path[: cores[-1] + 1], "os_index", source, MAX_CPU) if cores else cpu
    numa_node = 0
    if owner is not None:
        numa_node = owner[cpu] if cpu in owner else _hidden_node(path, cpu, source)
    return CpuRow(cpu, core, _package(path, packages), numa_node)


def _hidden_node(path: Path, cpu: int, source: str) -> int:
    """Return the NUMA node of a CPU that is not listed, since a cgroup allows not its memory."""
    nodes = mask_at(path, "complete_nodeset", source)
    if len(nodes) != 1:
        raise TopologyError(
            f"{where_at(path, source)}: CPU {cpu} is in no NUMANode's cpuset; legal: one"
        )
    return min(nodes)


def _package(path: Path, packages: dict[int, int]) -> int:
    """Return the index of the package around an object, 0 where there is none."""
    return next((packages[id(element)] for element in path if id(element) in packages), 0)


def _hwloc_gpus(devices: list[Path], source: str) -> tuple[GpuPlace, ...]:
    found: dict[str, GpuPlace] = {}
    for path in devices:
        device = path[-1]
        match = re.match(r"([0-9a-fA-F]{4}) \[([0-9a-fA-F]{4}):", device.get("pci_type", ""))
        if match is None or match[1] not in GPU_CLASSES.get(match[2].lower(), ()):
            continue
        bus_id = device.get("pci_busid", "")
        if not bus_id or bus_id in found:
            raise TopologyError(
                f"{where_at(path, source)}: pci_busid is {bus_id!r}; legal: one of its own"
            )
        holders = [i for i, element in enumerate(path) if element.get("cpuset")]
        cpus = mask_at(path[: holders[-1] + 1], "cpuset", source) if holders else frozenset()
        infos = {info.get("name"): info.get("value", "") for info in device.iter("info")}
        name = infos.get("GPUModel") or infos.get("PCIDevice") or ""
        found[bus_id] = GpuPlace(f"GPU {bus_id}", None, cpus, name)
    return tuple(found[bus_id] for bus_id in sorted(found, key=bus_key))


def bus_key(bus_id: str) -> tuple[int, str]:
    """Order PCI bus ids as numbers: their domains may have four or eight digits."""
    digits = re.sub(r"[^0-9a-fA-F]", "", bus_id)
    return int(digits or "0", 16), bus_id


def walk(root: Element, source: str, *tags: str) -> Iterator[Path]:
    """Yield the path from the root to each element with one of the tags, in document order."""
    pending: list[Path] = [(root,)]
    while pending:
        path = pending.pop()
        if len(path) > MAX_DEPTH:
            raise TopologyError(f"{source}: nested {MAX_DEPTH} deep; legal: a server's topology")
        if path[-1].tag in tags:
            yield path
        pending.extend((*path, child) for child in reversed(path[-1]) if child.tag in tags)


def number_at(path: Path, attribute: str, source: str, largest: int) -> int:
    """Return the attribute of the last element of a path that must be a whole number."""
    text = path[-1].get(attribute, "")
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) > largest:
        raise TopologyError(
            f"{where_at(path, source)}: {attribute} is {text[:40]!r}; legal: 0 to {largest}"
        )
    return int(text)


def mask_at(path: Path, attribute: str, source: str) -> frozenset[int]:
    """Return the attribute of the last element of a path that must be a mask of CPUs, or empty."""
    try:
        return parse_cpu_mask(path[-1].get(attribute, ""))
    except TopologyError as error:
        raise TopologyError(f"{where_at(path, source)}: {attribute}: {error}") from None


def where_at(path: Path, source: str) -> str:
    """Name an element by its path: tags, with hwloc's type and index where it has them."""
    steps = []
    for element in path[-4:]:
        kind = element.get("type", element.tag)
        index = element.get("os_index") or element.get("numaid") or element.get("busid")
        steps.append(f"{kind}[{index[:20]}]" if index else kind[:40])
    return f"{source}: {'/'.join(steps)}"
