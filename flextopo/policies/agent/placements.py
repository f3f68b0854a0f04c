"""From what kubelet lists to GPUs and cores by number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flextopo.cluster.topology.graph import Status
from flextopo.policies.agent.machine import Machine, mig_parent
from flextopo.policies.agent.pod_resources import Device, Holding
from flextopo.policies.serving.objects import GPU

DRA_DRIVER = "gpu.nvidia.com"
_DRA_DEVICE = re.compile(r"gpu-([0-9]{1,4})(-mig-.*)?")
_GKE_DEVICE = re.compile(r"nvidia([0-9]{1,4})(/.*)?")


class Found(NamedTuple):
    """The GPU that a device is: its index, and whether it is only a part of it."""

    gpu: int
    part: bool


class Place(NamedTuple):
    """What one pod holds for itself; `gpus` is None where some of its GPUs are not known or shared."""

    cores: tuple[int, ...]
    gpus: tuple[int, ...] | None


@dataclass(frozen=True)
class Placements:
    """Who holds what on a node.

    Attributes:
        cores: CPU to its pods.
        gpus: GPU to its pods.
        parts: GPUs that are given out in parts, by time slices or MIG.
        pods: what each pod that holds anything has.
        unknown: GPU devices that are none of the machine's.
    """

    cores: dict[int, tuple[str, ...]] = field(default_factory=dict)
    gpus: dict[int, tuple[str, ...]] = field(default_factory=dict)
    parts: frozenset[int] = frozenset()
    pods: dict[str, Place] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def gpu_status(self, gpu: int) -> Status:
        """Say whether one pod holds a GPU, or several hold parts, or nobody does."""
        pods = self.gpus.get(gpu, ())
        if not pods:
            return Status.FREE
        return Status.SHARED if len(pods) > 1 or gpu in self.parts else Status.USED


class GpuFinder:
    """Finds the GPU that a device's name means.

    Args:
        machine: the hardware.
    """

    def __init__(self, machine: Machine) -> None:
        self._by_uuid = {gpu.uuid: i for i, gpu in enumerate(machine.gpus) if gpu.uuid}
        self._by_minor = {
            gpu.minor: i for i, gpu in enumerate(machine.gpus) if gpu.minor is not None
        }
        self._mig = dict(machine.mig)

    def find(self, device: Device) -> Found | None:
        """Return the GPU of a device, None for what is no GPU of this machine.

        NVIDIA's plugin names UUIDs, `UUID::n` for time slices and `MIG-...`; its DRA driver
        `gpu-<minor>`, and more behind it for MIG; GKE's plugin `nvidia<minor>`, and `/...` behind it
        for parts. Parts may also come under another resource name, such as `nvidia.com/gpu.shared`.
        """
        uuid, _, time_slice = device.name.partition("::")
        if device.source == DRA_DRIVER or device.source == GPU:
            form = _DRA_DEVICE if device.source == DRA_DRIVER else _GKE_DEVICE
            match = form.fullmatch(device.name)
            gpu = self._by_minor.get(int(match[1])) if match else None
            if match and gpu is not None:
                return Found(gpu, bool(match[2]) or device.part)
        is_mig = uuid.startswith("MIG-")
        gpu = self._by_uuid.get(mig_parent(uuid, self._mig) if is_mig else uuid)
        if gpu is None:
            return None
        return Found(gpu, is_mig or bool(time_slice) or device.source != GPU)


def locate(machine: Machine, holdings: Mapping[str, Holding]) -> Placements:
    """Work out who holds which GPUs and cores.

    Args:
        machine: the hardware; CPUs that it does not have are left out.
        holdings: what kubelet lists, by `namespace/name`.
    """
    finder = GpuFinder(machine)
    online = {row.cpu for row in machine.rows}
    cores: dict[int, list[str]] = {}
    gpus: dict[int, list[str]] = {}
    parts: set[int] = set()
    unknown: set[str] = set()
    of_pod: dict[str, tuple[tuple[int, ...], set[int], bool]] = {}
    for pod, holding in sorted(holdings.items()):
        own = tuple(cpu for cpu in holding.cpus if cpu in online)
        found = {device: finder.find(device) for device in holding.devices}
        missing = [
            device.name
            for device, gpu in found.items()
            if gpu is None and device.source in (GPU, DRA_DRIVER)
        ]
        mine = {gpu.gpu for gpu in found.values() if gpu}
        parts |= {gpu.gpu for gpu in found.values() if gpu and gpu.part}
        unknown.update(missing)
        _add(cores, own, pod)
        _add(gpus, mine, pod)
        if own or mine or missing:
            of_pod[pod] = own, mine, bool(missing)
    shared = parts | {gpu for gpu, pods in gpus.items() if len(pods) > 1}
    return Placements(
        cores={core: tuple(pods) for core, pods in cores.items()},
        gpus={gpu: tuple(pods) for gpu, pods in gpus.items()},
        parts=frozenset(parts),
        pods={
            pod: Place(own, None if missed or mine & shared else tuple(sorted(mine)))
            for pod, (own, mine, missed) in of_pod.items()
        },
        unknown=tuple(sorted(unknown)),
    )


def _add(holders: dict[int, list[str]], numbers: Iterable[int], pod: str) -> None:
    for number in numbers:
        holders.setdefault(number, []).append(pod)
