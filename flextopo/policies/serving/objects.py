"""Kubernetes objects as typed structs that name only the fields used here, and quantities.

msgspec skips all other fields while it parses, which makes a pod of 10 kB as cheap as a small one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

from flextopo.cluster.errors import FlextopoError

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
    r"([0-9]{1,20})(?:\.([0-9]{1,20}))?(?:[eE]([+-]?[0-9]{1,2})|([a-zA-Z]{0,2}))"
)


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


class Container(msgspec.Struct):
    """A container; an init container with restart policy Always is a sidecar."""

    resources: Resources | None = None
    restartPolicy: str | None = None


class PodSpec(msgspec.Struct):
    """What a pod asks for."""

    nodeName: str | None = None
    containers: list[Container] | None = None
    initContainers: list[Container] | None = None
    overhead: dict[str, str | int | float] | None = None
    priority: int | None = None
    priorityClassName: str | None = None
    preemptionPolicy: str | None = None
    schedulerName: str | None = None


class PodCondition(msgspec.Struct):
    """A condition of a pod."""

    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None


class PodStatus(msgspec.Struct):
    """What has become of a pod."""

    phase: str | None = None
    startTime: str | None = None
    nominatedNodeName: str | None = None
    conditions: list[PodCondition] | None = None


class PodObject(msgspec.Struct):
    """A Pod."""

    KIND: ClassVar[str] = "Pod"

    metadata: Meta
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class NodeStatus(msgspec.Struct):
    """What a node offers."""

    allocatable: dict[str, str | int | float] | None = None


class NodeObject(msgspec.Struct):
    """A Node."""

    KIND: ClassVar[str] = "Node"

    metadata: Meta
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)


class Attributes(msgspec.Struct, gc=False):
    """Who uses a core or GPU, and what GPU it is; older objects carry integers."""

    usedBy: str | int | None = None
    status: str | int | None = None
    name: str | int | None = None
    memoryTotal: str | int | None = None
    island: str | int | None = None


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


class Expression(msgspec.Struct):
    """A requirement of a label selector."""

    key: str
    operator: str
    values: list[str] | None = None


class LabelSelector(msgspec.Struct):
    """A label selector; empty matches nothing here, as in kube-scheduler's preemption."""

    matchLabels: dict[str, str] | None = None
    matchExpressions: list[Expression] | None = None


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
    """A PodGroup; `spec.minMember` says how many members it needs to run."""

    KIND: ClassVar[str] = "PodGroup"

    metadata: Meta
    spec: Any = None

    @property
    def least(self) -> int | None:
        """Return how many members it needs, None where it does not say."""
        found = self.spec.get("minMember") if isinstance(self.spec, dict) else None
        return found if isinstance(found, int) else None


KubeObject = (
    PodObject | NodeObject | FlexTopoObject | BudgetObject | PriorityClassObject | PodGroupObject
)

KINDS: dict[str, type[KubeObject]] = {
    kind.KIND: kind
    for kind in (
        PodObject, NodeObject, FlexTopoObject, BudgetObject, PriorityClassObject, PodGroupObject,
    )
}  # fmt: skip


def parse_quantity(value: str | float, where: str) -> int:
    """Read a Kubernetes quantity in thousandths, rounded up: 2 -> 2000, `500m` -> 500.

    Raises:
        ObjectError: it is not one, is negative or above 10^18.
    """
    text = str(value)
    found = _thousandths(text)
    if found is None:
        raise ObjectError(f"{where}: {text[:40]!r}; legal: a quantity such as 2, 500m or 16Gi")
    if found > 10**21:
        raise ObjectError(f"{where}: {text[:40]!r}; legal: up to 10^18")
    return found


@lru_cache(maxsize=4096)
def _thousandths(text: str) -> int | None:
    """Return a quantity of any size, None if it is none; pods ask for the same ones by thousands."""
    match = _QUANTITY.fullmatch(text)
    if match is None or (match[4] and match[4] not in _SUFFIXES and match[4] not in _BINARY):
        return None
    whole, fraction, exponent, suffix = match[1], match[2] or "", match[3], match[4] or ""
    digits = int(whole + fraction)
    if suffix in _BINARY:
        return int(-(-(digits * 1000 << _BINARY[suffix]) // 10 ** len(fraction)))
    power = 3 + (int(exponent) if exponent else _SUFFIXES[suffix]) - len(fraction)
    return int(-(-digits * 10 ** max(power, 0) // 10 ** max(-power, 0)))


def key_of(meta: Meta) -> str:
    """Return `namespace/name`, or the name of what has no namespace."""
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
