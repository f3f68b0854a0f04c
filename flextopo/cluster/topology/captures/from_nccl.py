"""Importer of the topology that NCCL and RCCL dump (`NCCL_TOPO_DUMP_FILE`)."""

from __future__ import annotations

import re
from copy import copy
from typing import TYPE_CHECKING

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.capture import Capture, GpuPlace
from flextopo.cluster.topology.captures.from_text import MAX_NUMA_ID
from flextopo.cluster.topology.captures.from_xml import (
    GPU_CLASSES,
    bus_key,
    mask_at,
    number_at,
    walk,
    where_at,
)

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read_nccl(root: Element, source: str) -> Capture:
    """Read an NCCL topology: CPUs and GPUs of each NUMA node; it tells no cores and no sockets.

    Where NVLink joins servers, NCCL writes those of one communicator into one file, told apart by the
    `host_hash` of their cpu elements. The first counts, with a warning that names all.

    Args:
        root: the `system` element.
        source: the file's name for messages.

    Returns:
        A capture; GPUs by their `dev` number where all have one, else in order of PCI bus ids.

    Raises:
        TopologyError: names the element that is malformed.

    References:
        NCCL 2.30, src/graph/topo.cc, ncclGetSystemId; a cpu without host_hash is of host 0.
    """
    root, warnings = _one_host(root, source)
    numa_cpus: dict[int, tuple[int, ...]] = {}
    found: dict[str, tuple[int | None, GpuPlace]] = {}
    switches: dict[str, int] = {}
    for path in walk(root, source, "cpu", "pci", "nic", "gpu"):
        element = path[-1]
        if element.tag == "cpu":
            # A virtual machine without NUMA says -1.
            is_flat = element.get("numaid") == "-1"
            numa_node = 0 if is_flat else number_at(path, "numaid", source, MAX_NUMA_ID)
            if numa_node in numa_cpus:
                raise TopologyError(
                    f"{where_at(path, source)}: NUMA node {numa_node} is listed twice; legal: once"
                )
            numa_cpus[numa_node] = tuple(sorted(mask_at(path, "affinity", source)))
        elif element.tag == "pci" and _is_nccl_gpu(element):
            if not numa_cpus or path[1].tag != "cpu":
                raise TopologyError(
                    f"{where_at(path, source)}: a GPU outside of cpu; legal: inside"
                )
            bus_id = element.get("busid", "")
            if not bus_id or bus_id in found:
                raise TopologyError(
                    f"{where_at(path, source)}: busid is {bus_id!r}; legal: one of its own"
                )
            gpu = element.find("gpu")
            has_number = gpu is not None and re.fullmatch("[0-9]{1,4}", gpu.get("dev", ""))
            number = int(gpu.get("dev", "")) if gpu is not None and has_number else None
            numa_node = list(numa_cpus)[-1]
            place = GpuPlace(f"GPU {bus_id}", numa_node, frozenset())
            found[bus_id] = number, place
            # The outermost switch, as PIX and PXB have it: what lies beyond is the host bridge.
            switches[place.label] = id(next(above for above in path if above.tag == "pci"))
    if not numa_cpus:
        raise TopologyError(f"{source}: has no cpu element; legal: one for each NUMA node")
    memory_nodes = {numa_node: 0 for numa_node, cpus in numa_cpus.items() if not cpus}
    gpus = _nccl_order(found, source)
    numbers = {switch: i for i, switch in enumerate(dict.fromkeys(switches.values()))}
    islands = tuple(numbers[switches[gpu.label]] for gpu in gpus)
    return Capture(
        source,
        numa_cpus=numa_cpus,
        lists_all_nodes=root.find("cpu[@numaid='-1']") is not None,
        # GPUs that are joined to their CPU by NVLink-C2C are those of NVIDIA Grace.
        node_is_socket=root.find(".//c2c") is not None,
        gpus=gpus,
        memory_nodes=memory_nodes,
        islands=islands if len(numbers) < len(gpus) else None,
        warnings=warnings,
    )


def _one_host(root: Element, source: str) -> tuple[Element, tuple[str, ...]]:
    """Return the topology of the first host alone, and a warning where there are others."""
    cpus: dict[str, list[Element]] = {}
    for element in root.iterfind("cpu"):
        host = element.get("host_hash", "0").lower().removeprefix("0x").lstrip("0")
        cpus.setdefault(host, []).append(element)
    hosts = list(cpus.values())
    if len(hosts) < 2:
        return root, ()
    kept = copy(root)
    kept[:] = hosts[0]
    first, *others = (elements[0].get("host_hash", "0")[:20] for elements in hosts[:4])
    more = f" and {len(hosts) - 4} more" if len(hosts) > 4 else ""
    warning = (
        f"{source}: cpu elements of {len(hosts)} hosts; the first is read, host_hash {first!r}, and not "
        f"{', '.join(map(repr, others))}{more}: to read another, leave only its cpu elements"
    )
    return kept, (warning,)


def _is_nccl_gpu(element: Element) -> bool:
    pci_class = element.get("class", "").removeprefix("0x")
    vendor = element.get("vendor", "").removeprefix("0x").lower()
    if element.find("gpu") is not None:
        return True
    # Files made by hand often leave the vendor out; a 3D controller then is a GPU.
    return pci_class[:4] in GPU_CLASSES.get(vendor, ()) or (not vendor and pci_class[:4] == "0302")


def _nccl_order(found: dict[str, tuple[int | None, GpuPlace]], source: str) -> tuple[GpuPlace, ...]:
    numbers = [number for number, _ in found.values() if number is not None]
    if len(numbers) < len(found):
        return tuple(found[bus_id][1] for bus_id in sorted(found, key=bus_key))
    if len(set(numbers)) < len(numbers):
        raise TopologyError(f"{source}: gpu dev numbers {sorted(numbers)}; legal: each once")
    return tuple(place for _, place in sorted(found.values(), key=lambda item: item[0] or 0))
