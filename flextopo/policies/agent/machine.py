"""The hardware of this node as kubelet counts it: hardware threads, and NVIDIA GPUs by bus id.

GPUs come from the driver (`/proc/driver/nvidia/gpus`), else from `nvidia-smi`, else from
`/sys/bus/pci`, which does not know their UUIDs. `nvidia-smi` alone knows memory and MIG devices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.capture import Capture, CpuRow, numa_domains
from flextopo.cluster.topology.detect import Runner, read_sys, run_command

_UUID = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MIG_PARENT = re.compile(r"MIG-(GPU-[0-9a-f-]{36})/[0-9]+/[0-9]+")
_BUS_ID = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_QUERY = (
    "nvidia-smi",
    "--query-gpu=pci.bus_id,uuid,memory.total,name",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True)
class Gpu:
    """A GPU of NVIDIA's.

    Attributes:
        bus_id: of PCI, such as `0000:1b:00.0`; the order of these is nvidia-smi's.
        uuid: such as `GPU-...`, empty = not known.
        name: what the vendor calls it.
        memory_mib: 0 = unknown.
        minor: of `/dev/nvidiaN`, as the DRA driver counts; None = unknown.
        numa_node: the kernel's number, None where it does not tell.
        root_port: the PCIe port that leads to it; GPUs with one in common share a switch.
    """

    bus_id: str
    uuid: str = ""
    name: str = "GPU"
    memory_mib: int = 0
    minor: int | None = None
    numa_node: int | None = None
    root_port: str = ""


@dataclass(frozen=True)
class Machine:
    """What does not change while a node runs.

    Attributes:
        rows: one for each hardware thread that is online, as the kernel numbers them.
        domains: (NUMA node, socket) of each NUMA node, those without cores included; one that spans
            sockets is several.
        gpus: by bus id.
        mig: UUID of a MIG device to its GPU's.
    """

    rows: tuple[CpuRow, ...]
    domains: tuple[tuple[int, int], ...]
    gpus: tuple[Gpu, ...] = ()
    mig: tuple[tuple[str, str], ...] = ()


def read_machine(root: Path = Path("/"), run: Runner = run_command) -> Machine:
    """Read the hardware of this node.

    Args:
        root: the folder that holds `sys` and `proc`.
        run: runs a command and returns its output, None on failure.

    Raises:
        TopologyError: `/sys` tells of no CPU, or a file in it has another form.
    """
    system = root / "sys/devices/system"
    cpus = read_sys(system)
    if cpus is None:
        raise TopologyError(f"{system} has no CPU topology; legal: the folder that holds sys")
    gpus = _read_gpus(root, run)
    mig = _read_mig(run(("nvidia-smi", "-L")) or "") if gpus else ()
    return Machine(cpus.rows, _domains(cpus, gpus), gpus, mig)


def _domains(cpus: Capture, gpus: Iterable[Gpu]) -> tuple[tuple[int, int], ...]:
    """Return the NUMA nodes; those with neither cores nor GPUs are none that matter."""
    near = {gpu.numa_node for gpu in gpus}
    memory = {n: socket for n, socket in cpus.memory_nodes.items() if n in near}
    found, _ = numa_domains(cpus.rows, replace(cpus, memory_nodes=memory), near)
    return tuple(found)


def _read_gpus(root: Path, run: Runner) -> tuple[Gpu, ...]:
    told = _ask_nvidia_smi(run)
    found = _ask_driver(root) or told or _ask_pci(root)
    devices = root / "sys/bus/pci/devices"
    # Rare domains have five digits and come last.
    in_order = sorted(found, key=lambda bus_id: (len(bus_id), bus_id))
    return tuple(_with_place(_merged(found[bus_id], told), devices) for bus_id in in_order)


def _merged(gpu: Gpu, told: Mapping[str, Gpu]) -> Gpu:
    """Add what nvidia-smi told of a GPU."""
    more = told.get(gpu.bus_id)
    if more is None:
        return gpu
    return replace(gpu, uuid=gpu.uuid or more.uuid, name=more.name, memory_mib=more.memory_mib)


def _ask_driver(root: Path) -> dict[str, Gpu]:
    """Read the GPUs that the driver lists, by bus id."""
    found = {}
    for path in (root / "proc/driver/nvidia/gpus").glob("*/information"):
        bus_id = _bus_id(path.parent.name)
        text = _text(path)
        if not bus_id or not text:
            continue
        lines = (line.partition(":") for line in text.splitlines())
        told = {key.strip(): value.strip() for key, _, value in lines}
        minor = told.get("Device Minor", "")
        found[bus_id] = Gpu(
            bus_id,
            # Question marks, before anything has used the GPU.
            uuid=_uuid(told.get("GPU UUID", "")),
            name=told.get("Model") or "GPU",
            minor=int(minor) if re.fullmatch("[0-9]{1,4}", minor) else None,
        )
    return found


def _ask_nvidia_smi(run: Runner) -> dict[str, Gpu]:
    """Return the GPUs that nvidia-smi lists, by bus id."""
    found = {}
    for line in (run(_QUERY) or "").splitlines():
        cells = [cell.strip() for cell in line.split(",", 3)]
        bus_id = _bus_id(cells[0])
        if len(cells) < 4 or not bus_id:
            continue
        memory = int(cells[2]) if re.fullmatch("[0-9]{1,9}", cells[2]) else 0
        found[bus_id] = Gpu(bus_id, _uuid(cells[1]), cells[3] or "GPU", memory)
    return found


def _ask_pci(root: Path) -> dict[str, Gpu]:
    """Find display controllers of NVIDIA's on the PCI bus, by bus id."""
    found = {}
    for device in (root / "sys/bus/pci/devices").glob("*"):
        bus_id = _bus_id(device.name)
        is_gpu = (_text(device / "class") or "").startswith("0x03")
        if bus_id and is_gpu and _text(device / "vendor") == "0x10de":
            found[bus_id] = Gpu(bus_id)
    return found


def _with_place(gpu: Gpu, devices: Path) -> Gpu:
    """Add where a GPU is plugged in."""
    device = devices / gpu.bus_id
    told = _text(device / "numa_node") or ""
    # -1 where the firmware does not tell.
    numa_node = int(told) if re.fullmatch("[0-9]{1,4}", told) else None
    root_port = ""
    with suppress(OSError):
        bridges = [part for part in device.resolve(strict=True).parts if _BUS_ID.fullmatch(part)]
        root_port = bridges[0] if len(bridges) > 1 else ""
    return replace(gpu, numa_node=numa_node, root_port=root_port)


def _read_mig(listing: str) -> tuple[tuple[str, str], ...]:
    """Read MIG devices and their GPUs from what `nvidia-smi -L` prints."""
    found, parent = [], ""
    for line in listing.splitlines():
        match = re.search(r"\(UUID: ([A-Za-z0-9/-]+)\)", line)
        if match and line.startswith("GPU "):
            parent = match[1]
        elif match and match[1].startswith("MIG-"):
            found.append((match[1], parent))
    return tuple(sorted(found))


def mig_parent(device: str, mig: Mapping[str, str]) -> str:
    """Return the UUID of a MIG device's GPU, empty = not known.

    References:
        Older drivers name the GPU in the device: `MIG-GPU-<uuid>/<instance>/<compute instance>`.
    """
    match = _MIG_PARENT.fullmatch(device)
    return match[1] if match else mig.get(device, "")


def islands(gpus: Sequence[Gpu], numa_nodes: Sequence[int | None]) -> tuple[int, ...]:
    """Number the PCIe switches of GPUs, each on one NUMA node.

    Args:
        gpus: the GPUs.
        numa_nodes: where each of them is.

    Returns:
        A number for each GPU; empty where some tell none, and where they tell no GPUs apart.
    """
    keys = [(gpu.root_port, near) for gpu, near in zip(gpus, numa_nodes, strict=True)]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    if not all(port for port, _ in keys) or not 1 < len(numbers) < len(keys):
        return ()
    return tuple(numbers[key] for key in keys)


def _bus_id(text: str) -> str:
    """Return a PCI bus id as Linux writes it, empty for what is none; nvidia-smi has 8 digits."""
    match = _BUS_ID.fullmatch(text.strip().lower())
    return f"{int(match[1], 16):04x}:{match[2]}" if match else ""


def _uuid(text: str) -> str:
    return text if _UUID.fullmatch(text) else ""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
