"""Devices and claims of Kubernetes' dynamic resource allocation: which GPUs a node has, who has which.

References:
    kubernetes v1.36, resource.k8s.io/v1: ResourceSlice, ResourceClaim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from flextopo.policies.serving.objects import (
    ClaimObject,
    Device,
    DeviceRequest,
    PodObject,
    SliceObject,
    key_of,
)

NUMA = "resource.kubernetes.io/numaNode"
KINDS_OF_GPU = ("", "gpu")
"""Values of a device's attribute `type` that are whole GPUs; parts of one are none."""
HOLDING = ("NoSchedule", "NoExecute")


def is_gpu_class(name: str) -> bool:
    """Say whether a driver or device class is about GPUs, as `gpu.nvidia.com` is."""
    return name.startswith("gpu.")


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A whole GPU that a driver offers.

    Attributes:
        id: driver, pool and device, with `/` between.
        uuid: by which others call it, empty = not told.
        number: at the end of its name, as in `gpu-3`.
        numas: NUMA nodes by nearness, its own first; empty where the kernel does not know.
        tainted: nobody may be given it.
    """

    id: str
    uuid: str
    number: int
    numas: tuple[int, ...]
    tainted: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a pod has of devices, or asks for.

    Attributes:
        gpus: whole GPUs, those of claims that others share left out.
        devices: ids of the GPUs that it alone holds, None where they are not allocated yet.
        claims: `namespace/name` of its claims.
        aligned: a claim says that its devices must be on one NUMA node.
        simple: the claims that are not allocated yet ask for whole GPUs alone, and no certain ones.
    """

    gpus: int
    devices: tuple[str, ...] | None
    claims: tuple[str, ...]
    aligned: bool = False
    simple: bool = True


class DeviceBook:
    """ResourceSlices and ResourceClaims, looked up by node and by pod.

    Attributes:
        claims: ResourceClaims by `namespace/name`.
        slices: ResourceSlices by name.
        serves_counts: a pod was seen that counts GPUs as an extended resource and was given devices.
    """

    def __init__(self) -> None:
        self.claims: dict[str, ClaimObject] = {}
        self.slices: dict[str, SliceObject] = {}
        self.serves_counts = False
        self._gpus: dict[str, tuple[GpuDevice, ...]] | None = None
        self._node_of: dict[str, str] = {}
        self._held: dict[str, str] | None = None

    def put_slice(self, obj: SliceObject) -> set[str]:
        """Add or change a slice; return the nodes it is about, as it was and as it is."""
        before = self.nodes_of(self.slices.get(obj.metadata.name))
        self.slices[obj.metadata.name] = obj
        self._gpus = None
        return before | self.nodes_of(obj)

    def remove_slice(self, name: str) -> set[str]:
        """Remove a slice; return the nodes it was about."""
        self._gpus = None
        return self.nodes_of(self.slices.pop(name, None))

    def put_claim(self, obj: ClaimObject) -> set[str]:
        """Add or change a claim; return the nodes whose devices it had or has."""
        key = key_of(obj.metadata)
        before = self._nodes_with(self.claims.get(key))
        self.claims[key] = obj
        self._held = None
        return before | self._nodes_with(obj)

    def remove_claim(self, key: str) -> set[str]:
        """Remove a claim; return the nodes whose devices it had."""
        self._held = None
        return self._nodes_with(self.claims.pop(key, None))

    def _nodes_with(self, claim: ClaimObject | None) -> set[str]:
        devices = claim.devices if claim is not None else []
        if not devices:
            return set()
        where = self._where()
        return {where[device] for device in devices if device in where}

    def _where(self) -> Mapping[str, str]:
        """Return the node of each GPU."""
        if self._gpus is None:
            self._gpus = _by_node(self.slices.values())
            self._node_of = {gpu.id: name for name, gpus in self._gpus.items() for gpu in gpus}
        return self._node_of

    @staticmethod
    def nodes_of(obj: SliceObject | None) -> set[str]:
        """Return the nodes that a slice is about; pools of the network are of none."""
        if obj is None:
            return set()
        per_device = {device.nodeName for device in obj.spec.devices or () if device.nodeName}
        return per_device | ({obj.spec.nodeName} if obj.spec.nodeName else set())

    def gpus_of(self, node: str) -> tuple[GpuDevice, ...]:
        """Return a node's GPUs by their number; only pools whose newest generation is complete."""
        self._where()
        assert self._gpus is not None
        return self._gpus.get(node, ())

    def held(self) -> Mapping[str, str]:
        """Return who holds each allocated device: the uid of a pod, empty for nobody or several."""
        if self._held is None:
            self._held = {}
            for claim in self.claims.values():
                users = claim.users
                for device in claim.devices:
                    self._held[device] = users[0] if len(users) == 1 else ""
        return self._held

    def of_pod(self, pod: PodObject) -> Claimed | None:
        """Return what a pod has by claims, None for a pod without any."""
        names = _claim_names(pod)
        if not names:
            return None
        if pod.status.extendedResourceClaimStatus is not None:
            self.serves_counts = True
        keys = [f"{pod.metadata.namespace or ''}/{name}" for name in names]
        gpus, devices, allocated = 0, [], True
        for key in keys:
            claim = self.claims.get(key)
            if claim is None:
                allocated = False
            elif claim.status.allocation is None:
                gpus += sum(map(count_gpus, claim.requests))
                allocated = allocated and not any(map(count_gpus, claim.requests))
            elif claim.users == [pod.metadata.uid]:
                devices += [one for one in claim.devices if is_gpu_class(one)]
        gpus += len(devices)
        aligned = any(self.claims[key].aligned for key in keys if key in self.claims)
        waiting = [c for k in keys if (c := self.claims.get(k)) and c.status.allocation is None]
        simple = all(map(is_simple, waiting))
        return Claimed(gpus, tuple(devices) if allocated else None, tuple(keys), aligned, simple)


def _claim_names(pod: PodObject) -> list[str]:
    made = {one.name: one.resourceClaimName for one in pod.status.resourceClaimStatuses or ()}
    names = [one.resourceClaimName or made.get(one.name) for one in pod.spec.resourceClaims or ()]
    extended = pod.status.extendedResourceClaimStatus
    return [name for name in [*names, extended and extended.resourceClaimName] if name]


def is_simple(claim: ClaimObject) -> bool:
    """Say whether a claim asks for numbers of GPUs alone: what more it asks is not looked at here."""
    plain = all(
        request.exactly is not None and not request.exactly.selectors and count_gpus(request)
        for request in claim.requests
    )
    return plain and all(name == NUMA for name in claim.matched)


def parts_of(device: str) -> tuple[str, str, str]:
    """Return driver, pool and name of a device; a pool's name may have a slash."""
    driver, _, rest = device.partition("/")
    pool, _, name = rest.rpartition("/")
    return driver, pool, name


def count_gpus(request: DeviceRequest) -> int:
    """Return how many whole GPUs a request is for; of alternatives, as many as the first wants."""
    exact = request.exactly or next(iter(request.firstAvailable or ()), None)
    if exact is None or exact.adminAccess or not is_gpu_class(exact.deviceClassName):
        return 0
    return exact.count or 1 if exact.allocationMode in ("", "ExactCount") else 0


def _by_node(slices: Iterable[SliceObject]) -> dict[str, tuple[GpuDevice, ...]]:
    pools: dict[tuple[str, str], list[SliceObject]] = {}
    for one in slices:
        if is_gpu_class(one.spec.driver):
            pools.setdefault((one.spec.driver, one.spec.pool.name), []).append(one)
    found: dict[str, list[GpuDevice]] = {}
    for members in pools.values():
        newest = max(one.spec.pool.generation for one in members)
        members = [one for one in members if one.spec.pool.generation == newest]
        if len(members) < max(one.spec.pool.resourceSliceCount for one in members):
            continue
        for member in members:
            for device in member.spec.devices or ():
                node = device.nodeName or member.spec.nodeName
                if node and _text(device, "type") in KINDS_OF_GPU:
                    found.setdefault(node, []).append(_read(member, device))
    return {
        node: tuple(sorted(devices, key=lambda one: (one.number, one.id)))
        for node, devices in found.items()
    }


def _read(member: SliceObject, device: Device) -> GpuDevice:
    spec = member.spec
    digits = [list(run) for is_digit, run in groupby(device.name, str.isdecimal) if is_digit]
    attribute = (device.attributes or {}).get(NUMA)
    numas: tuple[int, ...] = ()
    if attribute is not None:
        one = () if attribute.number is None else (attribute.number,)
        numas = tuple(attribute.numbers or one)
    return GpuDevice(
        id=f"{spec.driver}/{spec.pool.name}/{device.name}",
        uuid=_text(device, "uuid"),
        number=int("".join(digits[-1])[:9]) if digits else 0,
        numas=tuple(numa for numa in numas if numa >= 0),
        tainted=any(taint.effect in HOLDING for taint in device.taints or ()),
    )


def _text(device: Device, name: str) -> str:
    """Return an attribute by its name, with or without the driver before it."""
    for key, attribute in (device.attributes or {}).items():
        if key.rpartition("/")[2] == name:
            return attribute.string or ""
    return ""
