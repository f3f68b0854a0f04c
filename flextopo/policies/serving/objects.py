"""Kubernetes objects as typed structs that name only the fields used here, and quantities.

msgspec skips all other fields while it parses, which makes a pod of 10 kB as cheap as a small one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.schema import ALL_MEMBERS

GPU = "nvidia.com/gpu"
"""The extended resource that counts as GPUs."""

_SUFFIXES = {
    "n": -9,
    "u": -6,
    "m": -3,
    "": 0,
    "k": 3,
    "M": 6,
    "G": 9,
    "T": 12,
    "P": 15,
    "E": 18,
}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_QUANTITY = re.compile(
    r"\+?(?=\.?[0-9])([0-9]{0,40})(?:\.([0-9]{0,40}))?(?:[eE]([+-]?[0-9]{1,9})|([a-zA-Z]{0,2}))"
)
MAX_QUANTITY = (2**63 - 1) * 1000
"""The largest quantity in thousandths; Kubernetes takes a larger one for it."""


class ObjectError(FlextopoError):
    """Report a Kubernetes object or request that is not one, with the place of the field."""


class Owner(msgspec.Struct):
    """An owner reference."""

    kind: str = ""


class Meta(msgspec.Struct):
    """An object's metadata."""

    name: str = ""
    namespace: str | None = None
    uid: str = ""
    resourceVersion: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    ownerReferences: list[Owner] | None = None
    creationTimestamp: str | None = None
    deletionTimestamp: str | None = None


class Resources(msgspec.Struct):
    """What a container asks for; a limit without a request counts as one, as the apiserver does."""

    requests: dict[str, str | int | float] | None = None
    limits: dict[str, str | int | float] | None = None


class Port(msgspec.Struct):
    """A port of a container; only one of the host can be in another pod's way."""

    hostPort: int | None = None
    hostIP: str | None = None
    protocol: str | None = None


class Container(msgspec.Struct):
    """A container; an init container with restart policy Always is a sidecar."""

    name: str = ""
    resources: Resources | None = None
    restartPolicy: str | None = None
    ports: list[Port] | None = None


class Expression(msgspec.Struct):
    """A requirement of a selector."""

    key: str
    operator: str
    values: list[str] | None = None


class LabelSelector(msgspec.Struct):
    """A label selector."""

    matchLabels: dict[str, str] | None = None
    matchExpressions: list[Expression] | None = None


class NodeSelectorTerm(msgspec.Struct):
    """One of the alternatives of a node selector."""

    matchExpressions: list[Expression] | None = None
    matchFields: list[Expression] | None = None


class NodeSelector(msgspec.Struct):
    """Alternatives, one of which a node must match."""

    nodeSelectorTerms: list[NodeSelectorTerm] | None = None


class NodeAffinity(msgspec.Struct):
    """Which nodes a pod may go to."""

    requiredDuringSchedulingIgnoredDuringExecution: NodeSelector | None = None


class PodAffinityTerm(msgspec.Struct):
    """Pods with which another must, or must not, share a domain of nodes."""

    topologyKey: str = ""
    labelSelector: LabelSelector | None = None
    namespaces: list[str] | None = None
    namespaceSelector: LabelSelector | None = None
    matchLabelKeys: list[str] | None = None
    mismatchLabelKeys: list[str] | None = None


class PodAffinity(msgspec.Struct):
    """Terms of an affinity or anti-affinity that must hold."""

    requiredDuringSchedulingIgnoredDuringExecution: list[PodAffinityTerm] | None = None


class Affinity(msgspec.Struct):
    """Where a pod may go."""

    nodeAffinity: NodeAffinity | None = None
    podAffinity: PodAffinity | None = None
    podAntiAffinity: PodAffinity | None = None


class Toleration(msgspec.Struct):
    """A taint that a pod does not mind; without key all of them."""

    key: str | None = None
    operator: str | None = None
    value: str | None = None
    effect: str | None = None


class Spread(msgspec.Struct):
    """A topology spread constraint."""

    maxSkew: int = 1
    topologyKey: str = ""
    whenUnsatisfiable: str = ""
    labelSelector: LabelSelector | None = None
    minDomains: int | None = None
    matchLabelKeys: list[str] | None = None
    nodeAffinityPolicy: str | None = None
    nodeTaintsPolicy: str | None = None


class PodClaim(msgspec.Struct):
    """A resource claim that a pod names, or has made from a template."""

    name: str = ""
    resourceClaimName: str | None = None
    resourceClaimTemplateName: str | None = None


class VolumeClaimSource(msgspec.Struct):
    """The PersistentVolumeClaim behind a volume of a pod."""

    claimName: str = ""


class EphemeralSource(msgspec.Struct):
    """Says that a volume of a pod has a claim of its own, `POD-VOLUME`."""


class PodVolume(msgspec.Struct):
    """A volume of a pod; only what has a claim can keep the pod from nodes."""

    name: str = ""
    persistentVolumeClaim: VolumeClaimSource | None = None
    ephemeral: EphemeralSource | None = None


class SchedulingGroup(msgspec.Struct):
    """The PodGroup that a pod belongs to."""

    podGroupName: str | None = None


class PodSpec(msgspec.Struct):
    """What a pod asks for."""

    nodeName: str | None = None
    containers: list[Container] | None = None
    initContainers: list[Container] | None = None
    overhead: dict[str, str | int | float] | None = None
    resources: Resources | None = None
    priority: int | None = None
    priorityClassName: str | None = None
    preemptionPolicy: str | None = None
    schedulerName: str | None = None
    nodeSelector: dict[str, str] | None = None
    affinity: Affinity | None = None
    tolerations: list[Toleration] | None = None
    topologySpreadConstraints: list[Spread] | None = None
    schedulingGates: list[Any] | None = None
    resourceClaims: list[PodClaim] | None = None
    volumes: list[PodVolume] | None = None
    schedulingGroup: SchedulingGroup | None = None


class PodCondition(msgspec.Struct):
    """A condition of a pod."""

    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None
    lastTransitionTime: str | None = None


class ContainerStatus(msgspec.Struct):
    """What a container has been given, where it was resized in place."""

    name: str = ""
    resources: Resources | None = None
    allocatedResources: dict[str, str | int | float] | None = None


class ExtendedClaim(msgspec.Struct):
    """The claim that kube-scheduler made for a pod's extended resources."""

    resourceClaimName: str = ""


class PodStatus(msgspec.Struct):
    """What has become of a pod."""

    phase: str | None = None
    startTime: str | None = None
    nominatedNodeName: str | None = None
    conditions: list[PodCondition] | None = None
    containerStatuses: list[ContainerStatus] | None = None
    initContainerStatuses: list[ContainerStatus] | None = None
    resources: Resources | None = None
    allocatedResources: dict[str, str | int | float] | None = None
    resourceClaimStatuses: list[PodClaim] | None = None
    extendedResourceClaimStatus: ExtendedClaim | None = None


class PodObject(msgspec.Struct):
    """A Pod."""

    KIND: ClassVar[str] = "Pod"

    metadata: Meta
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class Taint(msgspec.Struct):
    """A taint of a node."""

    key: str = ""
    value: str | None = None
    effect: str = ""


class NodeSpec(msgspec.Struct):
    """Whom a node takes."""

    unschedulable: bool | None = None
    taints: list[Taint] | None = None


class NodeCondition(msgspec.Struct):
    """A condition of a node."""

    type: str = ""
    status: str = ""


class NodeStatus(msgspec.Struct):
    """What a node has, and offers to pods."""

    allocatable: dict[str, str | int | float] | None = None
    capacity: dict[str, str | int | float] | None = None
    conditions: list[NodeCondition] | None = None


class NodeObject(msgspec.Struct):
    """A Node."""

    KIND: ClassVar[str] = "Node"

    metadata: Meta
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)


class Attributes(msgspec.Struct, gc=False):
    """Who uses a core or GPU, and what GPU it is; older objects carry integers.

    `cpus` is `shared` where whoever uses the GPU has no CPU for itself.
    """

    usedBy: str | int | None = None
    uuid: str | int | None = None
    status: str | int | None = None
    name: str | int | None = None
    memoryTotal: str | int | None = None
    island: str | int | None = None
    cpus: str | int | None = None


class Vertex(msgspec.Struct, gc=False):
    """A vertex of a FlexTopo graph."""

    id: str
    type: str
    attributes: Attributes | None = None


class FlexTopoSpec(msgspec.Struct):
    """A FlexTopo graph; its edges never change, so they are only compared, as they are written."""

    nodes: list[Vertex]
    edges: msgspec.Raw = msgspec.Raw()


class FlexTopoObject(msgspec.Struct):
    """A FlexTopo custom resource, named after its node.

    The apiserver may hold anything under `spec`, so it is checked object by object: one that is
    wrong must not keep the others from being read.
    """

    KIND: ClassVar[str] = "FlexTopo"

    metadata: Meta
    spec: msgspec.Raw = msgspec.Raw(b"null")


class BudgetSpec(msgspec.Struct):
    """Whom a PodDisruptionBudget covers."""

    selector: LabelSelector | None = None


class BudgetStatus(msgspec.Struct):
    """How many more disruptions a budget allows, and which are under way already."""

    disruptionsAllowed: int = 0
    disruptedPods: dict[str, Any] | None = None


class BudgetObject(msgspec.Struct):
    """A PodDisruptionBudget."""

    KIND: ClassVar[str] = "PodDisruptionBudget"

    metadata: Meta
    spec: BudgetSpec = msgspec.field(default_factory=BudgetSpec)
    status: BudgetStatus = msgspec.field(default_factory=BudgetStatus)


class PriorityClassObject(msgspec.Struct):
    """A PriorityClass."""

    KIND: ClassVar[str] = "PriorityClass"

    metadata: Meta
    value: int = 0
    globalDefault: bool | None = None
    preemptionPolicy: str | None = None


class PodGroupObject(msgspec.Struct):
    """A PodGroup of any API; its spec says how many members it needs to run."""

    KIND: ClassVar[str] = "PodGroup"

    metadata: Meta
    spec: Any = None

    @property
    def least(self) -> int | None:
        """Return how many members it needs, None where it does not say."""
        if not isinstance(self.spec, dict):
            return None
        found, policy = self.spec.get("minMember"), self.spec.get("schedulingPolicy")
        if isinstance(policy, dict):
            gang = policy.get("gang")
            found = gang.get("minCount") if isinstance(gang, dict) else 1
        return found if isinstance(found, int) and 0 <= found <= ALL_MEMBERS else None

    @property
    def stops_whole(self) -> bool:
        """Say whether losing any member stops all, however many it needs.

        References:
            KEP-5710: disruptionMode, "Pod" or "PodGroup" in v1alpha2, then a struct with `single` or
            `all`; single pods where it says nothing.
        """
        mode = self.spec.get("disruptionMode") if isinstance(self.spec, dict) else None
        return mode in ("PodGroup", "All") or (isinstance(mode, dict) and "all" in mode)

    @property
    def topology(self) -> tuple[str, ...]:
        """Return the labels of nodes in whose values all members must agree.

        References:
            kubernetes v1.36, scheduling.k8s.io, PodGroup: schedulingConstraints.topology[].key.
        """
        spec = self.spec if isinstance(self.spec, dict) else {}
        constraints = spec.get("schedulingConstraints")
        found = constraints.get("topology") if isinstance(constraints, dict) else None
        every = found if isinstance(found, list) else []
        keys = [one.get("key") for one in every if isinstance(one, dict)]
        return tuple(key for key in keys if isinstance(key, str) and key)


class GangObject(PodGroupObject):
    """A PodGroup of `scheduling.k8s.io`."""

    KIND: ClassVar[str] = "PodGroup of scheduling.k8s.io"


class VolcanoGroupObject(PodGroupObject):
    """A PodGroup of Volcano."""

    KIND: ClassVar[str] = "PodGroup of Volcano"


class DeviceTaint(msgspec.Struct):
    """A taint of a device."""

    key: str = ""
    effect: str = ""


class DeviceAttribute(msgspec.Struct):
    """An attribute of a device; the others of its kinds are not read."""

    number: int | None = msgspec.field(default=None, name="int")
    string: str | None = None
    numbers: list[int] | None = msgspec.field(default=None, name="ints")


class Device(msgspec.Struct):
    """A device that a driver offers."""

    name: str
    attributes: dict[str, DeviceAttribute] | None = None
    taints: list[DeviceTaint] | None = None
    nodeName: str | None = None


class DevicePool(msgspec.Struct):
    """Which pool a slice is of, and how many slices make it complete."""

    name: str = ""
    generation: int = 0
    resourceSliceCount: int = 1


class SliceSpec(msgspec.Struct):
    """What a slice offers."""

    driver: str = ""
    pool: DevicePool = msgspec.field(default_factory=DevicePool)
    nodeName: str | None = None
    devices: list[Device] | None = None


class SliceObject(msgspec.Struct):
    """A ResourceSlice."""

    KIND: ClassVar[str] = "ResourceSlice"

    metadata: Meta
    spec: SliceSpec = msgspec.field(default_factory=SliceSpec)


class ExactRequest(msgspec.Struct):
    """Devices of a class."""

    deviceClassName: str = ""
    allocationMode: str = ""
    count: int | None = None
    adminAccess: bool | None = None
    selectors: list[Any] | None = None


class DeviceRequest(msgspec.Struct):
    """Devices, or alternatives of them."""

    name: str = ""
    exactly: ExactRequest | None = None
    firstAvailable: list[ExactRequest] | None = None


class DeviceConstraint(msgspec.Struct):
    """What devices of a claim must have in common."""

    matchAttribute: str | None = None


class DeviceRequests(msgspec.Struct):
    """What a claim asks for."""

    requests: list[DeviceRequest] | None = None
    constraints: list[DeviceConstraint] | None = None
    config: list[dict[str, Any]] | None = None


class ClaimSpec(msgspec.Struct):
    """What a claim asks for."""

    devices: DeviceRequests | None = None


class AllocatedDevice(msgspec.Struct):
    """A device that a claim was given."""

    driver: str = ""
    pool: str = ""
    device: str = ""
    adminAccess: bool | None = None


class AllocatedDevices(msgspec.Struct):
    """The devices that a claim was given."""

    results: list[AllocatedDevice] | None = None


class Allocation(msgspec.Struct):
    """What a claim was given."""

    devices: AllocatedDevices | None = None


class ClaimUser(msgspec.Struct):
    """Who may use a claim."""

    resource: str = ""
    uid: str = ""


class ClaimStatus(msgspec.Struct):
    """What a claim was given, and for whom it is kept."""

    allocation: Allocation | None = None
    reservedFor: list[ClaimUser] | None = None


class ClaimObject(msgspec.Struct):
    """A ResourceClaim."""

    KIND: ClassVar[str] = "ResourceClaim"

    metadata: Meta
    spec: ClaimSpec = msgspec.field(default_factory=ClaimSpec)
    status: ClaimStatus = msgspec.field(default_factory=ClaimStatus)

    @property
    def requests(self) -> list[DeviceRequest]:
        """Return what it asks for."""
        return (self.spec.devices and self.spec.devices.requests) or []

    @property
    def aligned(self) -> bool:
        """Say whether its devices must be near to each other."""
        return any(name.rpartition("/")[2] in ("numaNode", "pcieRoot") for name in self.matched)

    @property
    def matched(self) -> list[str]:
        """Return the attributes that its devices must have in common, empty for another constraint."""
        constraints = (self.spec.devices and self.spec.devices.constraints) or ()
        return [one.matchAttribute or "" for one in constraints]

    @property
    def devices(self) -> list[str]:
        """Return what it holds as driver, pool and device; what it only looks at it does not hold."""
        found = self.status.allocation and self.status.allocation.devices
        return [
            f"{one.driver}/{one.pool}/{one.device}"
            for one in (found and found.results) or ()
            if not one.adminAccess
        ]

    @property
    def users(self) -> list[str]:
        """Return the uids of those it is kept for, of several kinds perhaps."""
        return [one.uid for one in self.status.reservedFor or ()]


class Zone(msgspec.Struct):
    """A zone of a NodeResourceTopology."""

    name: str = ""
    type: str = ""
    resources: list[ZoneResource] | None = None


class ZoneResource(msgspec.Struct):
    """A resource of a zone."""

    name: str = ""
    capacity: str | int | float = 0
    available: str | int | float = 0


class ZonesObject(msgspec.Struct):
    """A NodeResourceTopology, named after its node."""

    KIND: ClassVar[str] = "NodeResourceTopology"

    metadata: Meta
    zones: list[Zone] | None = None


class VolumeClaimSpec(msgspec.Struct):
    """Which volume a claim has, or what it asks for."""

    volumeName: str = ""
    storageClassName: str | None = None
    accessModes: list[str] | None = None
    volumeMode: str | None = None
    volumeAttributesClassName: str | None = None
    selector: LabelSelector | None = None
    resources: Resources | None = None


class Phase(msgspec.Struct):
    """What has become of a volume or a claim."""

    phase: str = ""


class VolumeClaimObject(msgspec.Struct):
    """A PersistentVolumeClaim."""

    KIND: ClassVar[str] = "PersistentVolumeClaim"

    metadata: Meta
    spec: VolumeClaimSpec = msgspec.field(default_factory=VolumeClaimSpec)
    status: Phase = msgspec.field(default_factory=Phase)


class VolumeAffinity(msgspec.Struct):
    """Which nodes reach a volume."""

    required: NodeSelector | None = None


class ClaimReference(msgspec.Struct):
    """The claim that a volume is for."""

    namespace: str = ""
    name: str = ""
    uid: str = ""


class VolumeSpec(msgspec.Struct):
    """What a volume offers, to whom."""

    capacity: dict[str, str | int | float] | None = None
    accessModes: list[str] | None = None
    storageClassName: str | None = None
    volumeMode: str | None = None
    volumeAttributesClassName: str | None = None
    claimRef: ClaimReference | None = None
    nodeAffinity: VolumeAffinity | None = None


class VolumeObject(msgspec.Struct):
    """A PersistentVolume."""

    KIND: ClassVar[str] = "PersistentVolume"

    metadata: Meta
    spec: VolumeSpec = msgspec.field(default_factory=VolumeSpec)
    status: Phase = msgspec.field(default_factory=Phase)


class TopologyExpression(msgspec.Struct):
    """A label that a node must have, with one of these values."""

    key: str = ""
    values: list[str] | None = None


class TopologyTerm(msgspec.Struct):
    """One of the places in which a class makes volumes."""

    matchLabelExpressions: list[TopologyExpression] | None = None


class StorageClassObject(msgspec.Struct):
    """A StorageClass."""

    KIND: ClassVar[str] = "StorageClass"

    metadata: Meta
    provisioner: str = ""
    volumeBindingMode: str | None = None
    allowedTopologies: list[TopologyTerm] | None = None


KubeObject = (
    PodObject
    | NodeObject
    | FlexTopoObject
    | BudgetObject
    | PriorityClassObject
    | PodGroupObject
    | SliceObject
    | ClaimObject
    | ZonesObject
    | VolumeClaimObject
    | VolumeObject
    | StorageClassObject
)

VOLUME_KINDS: tuple[type[KubeObject], ...] = (VolumeClaimObject, VolumeObject, StorageClassObject)
"""Kinds that are watched, and in no snapshot or recording."""

KINDS: dict[str, type[KubeObject]] = {
    kind.KIND: kind
    for kind in (
        PodObject, NodeObject, FlexTopoObject, BudgetObject, PriorityClassObject, PodGroupObject,
        SliceObject, ClaimObject, ZonesObject,
    )
}  # fmt: skip


def parse_quantity(value: str | float, where: str) -> int:
    """Read a Kubernetes quantity in thousandths, rounded up: 2 -> 2000, `500m` -> 500.

    Raises:
        ObjectError: it is not one, or is negative.
    """
    text = str(value)
    found = _thousandths(text)
    if found is None:
        raise ObjectError(f"{where}: {text[:40]!r}; legal: a quantity such as 2, 500m or 16Gi")
    return found


@lru_cache(maxsize=4096)
def _thousandths(text: str) -> int | None:
    """Return a quantity, None if it is none; pods ask for the same ones by thousands."""
    match = _QUANTITY.fullmatch(text)
    if match is None or (match[4] and match[4] not in _SUFFIXES and match[4] not in _BINARY):
        return None
    whole, fraction, exponent, suffix = match[1], match[2] or "", match[3], match[4] or ""
    digits = int(whole + fraction)
    if suffix in _BINARY:
        found = -(-(digits * 1000 << _BINARY[suffix]) // 10 ** len(fraction))
    else:
        # Nothing that is legal has more digits than these powers can move.
        power = 3 + (max(-99, min(int(exponent), 99)) if exponent else _SUFFIXES[suffix])
        power -= len(fraction)
        found = -(-digits * 10 ** max(power, 0) // 10 ** max(-power, 0))
    return int(min(found, MAX_QUANTITY))


def key_of(meta: Meta) -> str:
    """Return `namespace/name`, or the name of what has no namespace."""
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
