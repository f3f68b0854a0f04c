"""What the service remembers of a pod, read once from the object and its annotations."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import lt

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.cluster.workload.tape import BATCH_PRIORITIES
from flextopo.policies.serving.devices import Claimed
from flextopo.policies.serving.objects import (
    GPU,
    Container,
    ContainerStatus,
    ObjectError,
    PodObject,
    PriorityClassObject,
    key_of,
    parse_quantity,
)
from flextopo.policies.serving.placing import Placing, read_placing
from flextopo.policies.serving.sources import Held, read_held

REQUIREMENT = "godel.bytedance.com/flextopo-requirement"
CAN_BE_PREEMPTED = "godel.bytedance.com/can-be-preempted"
PROTECTION = "godel.bytedance.com/protection-duration-from-preemption"
ATTENDED = "flextopo/attended"
"""Annotation that a controller writes with its nomination: the Unix time, as the apiserver has it."""
PASSING = re.compile("kept for |is being freed|on its way to it")
"""What the extender says of refusals that are over in a moment, and kube-scheduler writes into a pod's condition."""
MOST_DIGITS = 12
"""Of a Unix time in seconds; Python reads no number of 5,000."""
CHECKPOINT = "flextopo/checkpoint-interval-s"
MIRROR = "kubernetes.io/config.mirror"
STATIC = "kubernetes.io/config.source"
GROUP_LABELS = (
    "scheduling.x-k8s.io/pod-group",
    "pod-group.scheduling.sigs.k8s.io",
    "kueue.x-k8s.io/pod-group-name",
    "leaderworkerset.sigs.k8s.io/group-key",
)
GROUP_ANNOTATIONS = ("godel.bytedance.com/pod-group-name", "scheduling.k8s.io/group-name")
"""Gödel's and Volcano's."""
GROUP_SIZES = ("kueue.x-k8s.io/pod-group-total-count", "leaderworkerset.sigs.k8s.io/size")
"""Annotations that say how many pods a group has, where no PodGroup does."""
REQUIRED_TOPOLOGY = "kueue.x-k8s.io/podset-required-topology"
PREFERRED_TOPOLOGY = "kueue.x-k8s.io/podset-preferred-topology"
"""Annotations with the label of nodes in whose value a group must, or is to, agree."""

REQUIREMENTS = {
    "none": TopologyRequirement.NONE,
    "best-effort": TopologyRequirement.BEST_EFFORT,
    "guaranteed": TopologyRequirement.GUARANTEED,
}
POD_LEVEL, HUGE_PAGES = ("cpu", "memory"), "hugepages-"
"""What a pod may ask for as a whole."""
MIN_INT32, MAX_INT32 = -(2**31), 2**31 - 1

CLASS_BANDS = BATCH_PRIORITIES[1:]
"""Priorities from which on a batch pod is of class 1, 2, ...; those of the simulated workload."""
PROTECTED_S = 10**9
"""Protection of a pod whose own cannot be read: it is nobody's victim."""
MAX_BANDS = 8
"""Bands at most. Policies that were trained here know classes 0 and 1."""


@dataclass(slots=True, eq=False)
class PodRecord:
    """A pod as the service remembers it.

    Attributes:
        uid: unique for ever.
        key: `namespace/name`.
        namespace: of the pod.
        name: the bare name, as `usedBy` says it.
        labels: of the pod.
        node: name of the node it is bound to, empty while it is pending.
        nominated: node that is kept for it while it is pending, empty = none.
        requests: what it asks for by resource, in thousandths.
        gpus: whole GPUs asked for.
        cores: whole CPU cores asked for, rounded up.
        priority: greater is more important; 0 where nothing states one.
        batch_class: of a batch pod by its priority, 0 = low; lost work weighs 1 + batch_class.
        requirement: what it asks of the topology.
        preemptible: neither it nor its PriorityClass forbids preemption.
        daemon: a DaemonSet's pod.
        static: a static pod, which only its kubelet can stop.
        never_preempts: its preemption policy is Never.
        protection_s: not a victim for this long after its start.
        checkpoint_s: interval between checkpoints, 0 = none.
        group: `namespace/name` of its PodGroup, empty = none.
        group_size: how many pods the group has by an annotation, 0 where none says it.
        required_topology: label of nodes in whose value all of its group must agree, empty = none.
        preferred_topology: one in which they had better.
        created_s: Unix time of its creation, 0 where it is not stated.
        start_s: Unix time of its start, None before.
        bound_s: Unix time at which it was given its node, None where it is not stated.
        gone_s: Unix time by which it is to be gone, None where its deletion has not begun.
        terminating: its deletion has begun.
        finished: it succeeded or failed and holds nothing.
        running: its phase is Running.
        held: what annotations and claims tell of what it holds.
        claims: `namespace/name` of its ResourceClaims.
        by_claim: its GPUs are those of claims, and it counts none as an extended resource.
        one_numa: its claims want all GPUs on one NUMA node.
        steerable: its claims ask for nothing but a number of GPUs, anywhere or on one NUMA node.
        version: the object's resource version.
        scheduler: name of the scheduler that is to place it.
        refused: why it is unschedulable, empty where it is not.
        passing: a part of that is over in a moment, which need not be an event of the cluster.
        attended_s: Unix time at which a controller chose its node, 0 where none did.
        attended_on: that node.
        placing: where it may go.
        faults: what of its annotations cannot be read, and what it was taken for.
    """

    uid: str
    key: str
    namespace: str
    name: str
    labels: dict[str, str]
    node: str
    nominated: str
    requests: dict[str, int]
    gpus: int
    cores: int
    priority: int
    batch_class: int
    requirement: TopologyRequirement
    preemptible: bool
    daemon: bool
    static: bool
    never_preempts: bool
    protection_s: int
    checkpoint_s: int
    group: str
    group_size: int
    required_topology: str
    preferred_topology: str
    created_s: int
    start_s: int | None
    bound_s: int | None
    gone_s: int | None
    terminating: bool
    finished: bool
    running: bool
    held: Held
    claims: tuple[str, ...]
    by_claim: bool
    one_numa: bool
    steerable: bool
    version: int
    scheduler: str
    refused: str
    passing: bool
    attended_s: int
    attended_on: str
    placing: Placing
    faults: tuple[str, ...] = ()

    def age_s(self, now_s: int) -> int:
        """Return for how long it has run; 0 before its start.

        Where the clock of its node is ahead, it counts from its creation, of which the apiserver tells.
        """
        if self.start_s is None:
            return 0
        begin_s = self.start_s if self.start_s <= now_s else self.created_s or now_s
        return max(now_s - begin_s, 0)

    def is_protected(self, now_s: int) -> bool:
        """Say whether it forbids preemption or is in its protected time."""
        return not self.preemptible or self.age_s(now_s) < self.protection_s

    @property
    def online(self) -> bool:
        """Say whether it is an online service's: such pods state a topology requirement."""
        return self.requirement != TopologyRequirement.NONE

    @property
    def guaranteed(self) -> bool:
        """Say whether it has to be aligned."""
        return self.requirement == TopologyRequirement.GUARANTEED

    @property
    def importance(self) -> tuple[int, float, str]:
        """Return the key that sorts by descending importance; no start = least important."""
        start = float("inf") if self.start_s is None else float(self.start_s)
        return (-self.priority, start, self.key)


def batch_class(priority: int, online: bool, bands: Sequence[int] = CLASS_BANDS) -> int:
    """Return a pod's class: how many bands its priority reaches, 0 for online pods."""
    return 0 if online else bisect_right(bands, priority)


def check_bands(bands: Sequence[int]) -> None:
    """Refuse bands that are no bands.

    Raises:
        FlextopoError: they do not ascend, are too many, or one has more than 32 bits.
    """
    ascend = all(map(lt, bands, bands[1:]))
    if (
        not ascend
        or len(bands) > MAX_BANDS
        or any(not MIN_INT32 <= band <= MAX_INT32 for band in bands)
    ):
        raise FlextopoError(
            f"class bands {', '.join(map(str, bands))}; "
            f"legal: up to {MAX_BANDS} ascending priorities of 32 bits"
        )


def read_pod(
    pod: PodObject,
    classes: dict[str, PriorityClassObject],
    bands: Sequence[int] = CLASS_BANDS,
    claimed: Claimed | None = None,
) -> PodRecord:
    """Read a pod.

    Args:
        pod: the object.
        classes: PriorityClasses by name.
        bands: priorities from which on a batch pod is of class 1, 2, ...
        claimed: what it has, or asks for, by claims; None = it has none.

    Raises:
        ObjectError: a quantity, number or time in it is not one.
    """
    meta, spec, status = pod.metadata, pod.spec, pod.status
    key = key_of(meta)
    where = f"pod {key!r}"
    if not meta.name or not meta.uid:
        raise ObjectError(f"{where}: metadata without name or uid; legal: both")
    annotations = meta.annotations or {}
    requests = read_requests(pod, where)
    faults = list[str]()
    held = read_held(annotations, where, faults)
    attended_s, attended_on = _read_attended(annotations)
    if claimed is not None:
        requests[GPU] = max(requests.get(GPU, 0), 1000 * claimed.gpus)
        held = held if claimed.devices is None else held._replace(ids=claimed.devices)
    gpus, cores = requests.get(GPU, 0) // 1000, -(-requests.get("cpu", 0) // 1000)
    if gpus > MAX_INT32 or cores > MAX_INT32:
        raise ObjectError(f"{where}: asks for {gpus} GPUs and {cores} cores; legal: below 2^31")
    kind = classes.get(spec.priorityClassName or "")
    priority = spec.priority
    if priority is None:
        priority = kind.value if kind else 0
    if not MIN_INT32 <= priority <= MAX_INT32:
        raise ObjectError(f"{where}: priority {priority}; legal: 32 bits")
    owners = {owner.kind for owner in meta.ownerReferences or ()}
    requirement = _requirement(annotations, where, faults)
    if claimed is not None and claimed.aligned and REQUIREMENT not in annotations:
        requirement = TopologyRequirement.GUARANTEED
    policy = spec.preemptionPolicy or (kind.preemptionPolicy if kind else None)
    labels, refused = meta.labels or {}, _refused(pod)
    return PodRecord(
        uid=meta.uid,
        key=key,
        namespace=meta.namespace or "",
        name=meta.name,
        labels=labels,
        node=spec.nodeName or "",
        nominated=status.nominatedNodeName or "",
        requests=requests,
        gpus=gpus,
        cores=cores,
        priority=priority,
        batch_class=batch_class(priority, requirement != TopologyRequirement.NONE, bands),
        requirement=requirement,
        preemptible=_preemptible(annotations, kind),
        daemon="DaemonSet" in owners,
        static="Node" in owners or MIRROR in annotations or annotations.get(STATIC) == "file",
        never_preempts=policy == "Never",
        protection_s=_whole(annotations, PROTECTION, where, PROTECTED_S, faults),
        checkpoint_s=_whole(annotations, CHECKPOINT, where, 0, faults),
        group=_group(pod),
        group_size=_group_size(annotations),
        required_topology=annotations.get(REQUIRED_TOPOLOGY, ""),
        preferred_topology=annotations.get(PREFERRED_TOPOLOGY, ""),
        created_s=parse_time(meta.creationTimestamp, where) if meta.creationTimestamp else 0,
        start_s=parse_time(status.startTime, where) if status.startTime else None,
        bound_s=_bound_s(pod, where),
        gone_s=parse_time(meta.deletionTimestamp, where) if meta.deletionTimestamp else None,
        terminating=meta.deletionTimestamp is not None,
        finished=status.phase in ("Succeeded", "Failed"),
        running=status.phase == "Running",
        held=held,
        claims=claimed.claims if claimed else (),
        by_claim=claimed is not None and claimed.gpus > 0,
        one_numa=claimed is not None and claimed.aligned,
        steerable=claimed is None or claimed.simple,
        version=parse_version(meta.resourceVersion),
        scheduler=spec.schedulerName or "default-scheduler",
        refused=refused,
        passing=PASSING.search(refused) is not None,
        attended_s=attended_s,
        attended_on=attended_on,
        placing=read_placing(pod),
        faults=tuple(faults),
    )


def attended(node: str, now_s: int) -> str:
    """Return what a controller notes on a pod that it chooses a node for."""
    return f"{now_s} {node}"


def _read_attended(annotations: Mapping[str, str]) -> tuple[int, str]:
    """Return what `attended` has noted, (0, "") for anything else: anybody may write an annotation."""
    at, _, node = annotations.get(ATTENDED, "").partition(" ")
    legal = at.isascii() and at.isdecimal() and len(at) <= MOST_DIGITS
    return (int(at), node) if legal else (0, "")


Amounts = Mapping[str, str | int | float]


def read_requests(pod: PodObject, where: str) -> dict[str, int]:
    """Return what a pod asks for, in thousandths.

    References:
        kubernetes v1.36, component-helpers/resource, PodRequests: containers and sidecars run
        together; an init container runs beside the sidecars started before it; what the pod asks for
        as a whole stands for what its containers ask for; overhead on top. While a container is
        resized in place, the largest of what it asks for and what it was given counts.
    """
    spec, status = pod.spec, pod.status
    containers, init = spec.containers or [], spec.initContainers
    infeasible = any(
        condition.type == "PodResizePending" and condition.reason == "Infeasible"
        for condition in status.conditions or ()
    )
    given = _given(status.containerStatuses, where)
    total: dict[str, int] = {}
    for container in containers:
        add(total, _resized(container, given, infeasible, where))
    if init:
        _add_init(total, init, _given(status.initContainerStatuses, where), infeasible, where)
    whole = spec.resources.requests if spec.resources else None
    for name, value in _read_amounts(whole, where).items():
        if name in POD_LEVEL or name.startswith(HUGE_PAGES):
            total[name] = value
    if spec.overhead:
        add(total, _read_amounts(spec.overhead, f"{where}: overhead"))
    return total


def _add_init(
    total: dict[str, int],
    init: list[Container],
    given: Mapping[str, dict[str, int]],
    infeasible: bool,
    where: str,
) -> None:
    """Add sidecars, and raise the total to what any init container needs beside them."""
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in init:
        sidecar = container.restartPolicy == "Always"
        asked = _resized(container, given if sidecar else {}, infeasible, where)
        if sidecar:
            add(sidecars, asked)
            asked = {}
        for name in asked.keys() | sidecars.keys():
            here = asked.get(name, 0) + sidecars.get(name, 0)
            peak[name] = max(peak.get(name, 0), here)
    add(total, sidecars)
    for name, value in peak.items():
        total[name] = max(total.get(name, 0), value)


def _given(statuses: list[ContainerStatus] | None, where: str) -> dict[str, dict[str, int]]:
    """Return the most that kubelet has given or allowed each container, by its name."""
    found = {}
    for status in statuses or ():
        if status.allocatedResources:
            actual = status.resources.requests if status.resources else None
            found[status.name] = _largest(
                _read_amounts(status.allocatedResources, where), _read_amounts(actual, where)
            )
    return found


def _resized(
    container: Container, given: Mapping[str, dict[str, int]], infeasible: bool, where: str
) -> dict[str, int]:
    asked = _requests(container, where)
    if container.name not in given:
        return asked
    return given[container.name] if infeasible else _largest(asked, given[container.name])


def _largest(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {name: max(first.get(name, 0), second.get(name, 0)) for name in first.keys() | second}


def _requests(container: Container, where: str) -> dict[str, int]:
    resources = container.resources
    if resources is None:
        return {}
    asked = resources.requests or {}
    if resources.limits:
        asked = {**resources.limits, **asked}
    return _read_amounts(asked, where)


def _read_amounts(amounts: Amounts | None, where: str) -> dict[str, int]:
    return {n: parse_quantity(value, f"{where}: {n}") for n, value in (amounts or {}).items()}


def add(total: dict[str, int], more: dict[str, int]) -> None:
    """Add amounts by resource to a total."""
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def together(pods: Sequence[PodRecord]) -> dict[str, int]:
    """Return what some pods ask for in all by resource, in thousandths; each is a pod, too."""
    total = {"pods": 1000 * len(pods)}
    for pod in pods:
        add(total, pod.requests)
    return total


def _requirement(annotations: dict[str, str], where: str, faults: list[str]) -> TopologyRequirement:
    """Return what a pod asks of the topology, the most where that cannot be read."""
    text = annotations.get(REQUIREMENT, "none")
    if text not in REQUIREMENTS:
        legal = ", ".join(REQUIREMENTS)
        faults.append(
            f"{where}: {REQUIREMENT} = {text[:40]!r}, taken for guaranteed; legal: {legal}"
        )
    return REQUIREMENTS.get(text, TopologyRequirement.GUARANTEED)


def _preemptible(annotations: dict[str, str], kind: PriorityClassObject | None) -> bool:
    of_class = (kind.metadata.annotations or {}).get(CAN_BE_PREEMPTED) if kind else None
    return annotations.get(CAN_BE_PREEMPTED, of_class) != "false"


def _whole(
    annotations: dict[str, str], name: str, where: str, instead: int, faults: list[str]
) -> int:
    """Return the seconds of an annotation, 0 without it; `instead` where they cannot be read."""
    if name not in annotations:
        return 0
    text = annotations[name].removesuffix("s")
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return int(text)
    said = f"{name} = {annotations[name][:40]!r}, taken for {instead}"
    faults.append(f"{where}: {said}; legal: whole seconds, 9 digits at most")
    return instead


def _group(pod: PodObject) -> str:
    labels, annotations = pod.metadata.labels or {}, pod.metadata.annotations or {}
    own = pod.spec.schedulingGroup
    names = [own.podGroupName if own else None]
    names += [labels.get(label) for label in GROUP_LABELS]
    names += [annotations.get(name) for name in GROUP_ANNOTATIONS]
    name = next(filter(None, names), "")
    return f"{pod.metadata.namespace or ''}/{name}" if name else ""


def _group_size(annotations: dict[str, str]) -> int:
    """Return how many pods the group has, 0 where that is not said in up to nine digits."""
    text = next(filter(None, map(annotations.get, GROUP_SIZES)), "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _refused(pod: PodObject) -> str:
    """Return why kube-scheduler found no node; a pod behind a gate was not looked at yet."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            if condition.reason == "SchedulingGated" or pod.spec.schedulingGates:
                return ""
            return condition.message or condition.reason or "Unschedulable"
    return ""


def _bound_s(pod: PodObject, where: str) -> int | None:
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "True":
            at = condition.lastTransitionTime
            return parse_time(at, where) if at else None
    return None


def parse_time(text: str, where: str) -> int:
    """Return an RFC 3339 time as Unix seconds.

    Raises:
        ObjectError: it is not one.
    """
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise ObjectError(
            f"{where}: time {text[:40]!r}; legal: such as 2026-11-01T00:00:00Z"
        ) from None


def parse_version(text: str | None) -> int:
    """Return a resource version as a number that grows, 0 where there is none or it is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else 0
