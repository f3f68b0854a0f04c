"""Which nodes the volumes of a pending pod allow.

References:
    kubernetes v1.36, pkg/scheduler/framework/plugins: volumebinding/binder.go, volumezone,
    volumerestrictions (`ReadWriteOncePod`); component-helpers/storage/volume/pv_helpers.go,
    FindMatchingVolume. Not looked at: what storage is left (CSIStorageCapacity), how many volumes a
    node takes, disks without a claim, and whether an ephemeral volume's claim is the pod's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flextopo.policies.serving.affinity import matches_node
from flextopo.policies.serving.budgets import matches
from flextopo.policies.serving.objects import (
    VOLUME_KINDS,
    KubeObject,
    StorageClassObject,
    TopologyTerm,
    VolumeClaimObject,
    VolumeObject,
    key_of,
    parse_quantity,
)

BOUND = "pv.kubernetes.io/bind-completed"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
OLD_CLASS = "volume.beta.kubernetes.io/storage-class"
"""Annotations of claims; a volume may have the last one, too."""
HOSTNAME = "kubernetes.io/hostname"
ZONE, REGION = "topology.kubernetes.io/zone", "topology.kubernetes.io/region"
ZONE_LABELS = {
    ZONE: ZONE,
    REGION: REGION,
    "failure-domain.beta.kubernetes.io/zone": ZONE,
    "failure-domain.beta.kubernetes.io/region": REGION,
}
"""Labels that old volumes have in place of an affinity, and what a node may have for them."""
NO_PROVISIONER = ("", "kubernetes.io/no-provisioner")
"""Provisioners of classes for which nobody makes volumes."""


class VolumeBook:
    """The PersistentVolumeClaims, PersistentVolumes and StorageClasses of a cluster.

    Attributes:
        claims: by `namespace/name`.
        volumes: by name.
        classes: by name.
        listed: the kinds that were listed.
    """

    def __init__(self) -> None:
        self.claims: dict[str, VolumeClaimObject] = {}
        self.volumes: dict[str, VolumeObject] = {}
        self.classes: dict[str, StorageClassObject] = {}
        self.listed: set[type[KubeObject]] = set()

    @property
    def known(self) -> bool:
        """Say whether all of them were listed: what is not there does not exist."""
        return self.listed.issuperset(VOLUME_KINDS)

    def put(self, obj: VolumeClaimObject | VolumeObject | StorageClassObject) -> None:
        """Add or change an object."""
        self._of(obj.KIND)[key_of(obj.metadata)] = obj

    def remove(self, word: str, key: str) -> None:
        """Remove an object of a kind, if it is there."""
        self._of(word).pop(key, None)

    def _of(self, word: str) -> dict[str, Any]:
        by_kind: dict[str, dict[str, Any]] = {
            VolumeClaimObject.KIND: self.claims,
            VolumeObject.KIND: self.volumes,
            StorageClassObject.KIND: self.classes,
        }
        return by_kind[word]

    def needs(self, claims: Iterable[str]) -> VolumeNeeds:
        """Return what a pod with these claims needs of a node."""
        return VolumeNeeds(self, claims)


class VolumeNeeds:
    """What the volumes of a pod ask of its node.

    Args:
        book: of the cluster.
        claims: `namespace/name` of the pod's claims.

    Attributes:
        hopeless: why no node will do, empty if one may.
        alone: those of the claims that one pod at a time may use.
    """

    def __init__(self, book: VolumeBook, claims: Iterable[str]) -> None:
        self.hopeless = ""
        self.alone: set[str] = set()
        self._bound: list[VolumeObject] = []
        self._unbound: list[_Unbound] = []
        for key in claims:
            claim = book.claims.get(key)
            why = "is not there" if claim is None else self._add(book, key, claim)
            if why:
                self.hopeless = f"claim {key} {why}"
        # As kube-scheduler does it, so that small claims do not take large volumes.
        self._unbound.sort(key=lambda one: one.size)

    def _add(self, book: VolumeBook, key: str, claim: VolumeClaimObject) -> str:
        """Take a claim into account; return why it keeps the pod from all nodes, empty if not."""
        if claim.status.phase == "Lost" or claim.metadata.deletionTimestamp:
            return "is lost or being deleted"
        if "ReadWriteOncePod" in (claim.spec.accessModes or ()):
            self.alone.add(key)
        if claim.spec.volumeName:
            volume = book.volumes.get(claim.spec.volumeName)
            if volume is None or BOUND not in (claim.metadata.annotations or {}):
                return "is not bound yet, or to a volume that is not there"
            self._bound.append(volume)
            return ""
        kind = book.classes.get(_class_of(claim))
        if kind is None or kind.volumeBindingMode != "WaitForFirstConsumer":
            return "is not bound yet"
        self._unbound.append(_read_unbound(claim, kind, book.volumes.values()))
        return ""

    def why_not(self, name: str, labels: Mapping[str, str]) -> str:
        """Return why the volumes keep the pod from a node, empty if they do not."""
        if self.hopeless:
            return self.hopeless
        for volume in self._bound:
            if not _is_reached(volume, labels) or not _is_in_zone(volume, labels):
                return f"volume {volume.metadata.name} is elsewhere"
        taken: set[str] = set()
        for claim in self._unbound:
            if not claim.finds(name, labels, taken):
                return f"no volume for claim {claim.key}"
        return ""


@dataclass(frozen=True, slots=True)
class _Unbound:
    """A claim that gets its volume where the pod goes.

    Attributes:
        key: `namespace/name`.
        size: asked for, in thousandths.
        node: the only one that it may be on now, empty = any.
        fitting: volumes that would do, by the host they are tied to, which is empty for none.
        places: where a volume can be made, None = nowhere.
    """

    key: str
    size: int
    node: str
    fitting: Mapping[str, Sequence[VolumeObject]]
    places: Sequence[TopologyTerm] | None

    def finds(self, name: str, labels: Mapping[str, str], taken: set[str]) -> bool:
        """Say whether it gets a volume on a node; one that is there is added to those taken."""
        if self.node and self.node != name:
            return False
        hosts = {"", labels.get(HOSTNAME, "")} if not self.node else ()
        found = [
            volume
            for host in hosts
            for volume in self.fitting.get(host, ())
            if volume.metadata.name not in taken and _is_reached(volume, labels)
        ]
        if found:
            taken.add(min(found, key=lambda one: (_size(one), one.metadata.name)).metadata.name)
            return True
        return self.places is not None and _is_allowed(self.places, labels)


def _read_unbound(
    claim: VolumeClaimObject, kind: StorageClassObject, volumes: Iterable[VolumeObject]
) -> _Unbound:
    found = [volume for volume in volumes if _is_like(volume, claim)]
    # One that was made for the claim is the only one.
    meant = [volume for volume in found if volume.spec.claimRef is not None][:1]
    fitting: dict[str, list[VolumeObject]] = {}
    for volume in meant or [volume for volume in found if _is_free(volume, claim)]:
        for host in _hosts(volume):
            fitting.setdefault(host, []).append(volume)
    return _Unbound(
        key=key_of(claim.metadata),
        size=_size(claim),
        node=(claim.metadata.annotations or {}).get(SELECTED_NODE, ""),
        fitting=fitting,
        places=None if kind.provisioner in NO_PROVISIONER else kind.allowedTopologies or (),
    )


def _is_like(volume: VolumeObject, claim: VolumeClaimObject) -> bool:
    """Say whether a volume is what a claim asks for, and no other claim's."""
    here, asked, meta = volume.spec, claim.spec, claim.metadata
    ref = here.claimRef
    # Most volumes are another claim's, so that comes first.
    if ref is not None and (ref.name != meta.name or ref.namespace != meta.namespace):
        return False
    return (
        _class_of(volume) == _class_of(claim)
        and (ref is None or ref.uid in ("", meta.uid))
        and volume.metadata.deletionTimestamp is None
        and (here.volumeMode or "Filesystem") == (asked.volumeMode or "Filesystem")
        and (here.volumeAttributesClassName or "") == (asked.volumeAttributesClassName or "")
        and _size(volume) >= _size(claim)
    )


def _is_free(volume: VolumeObject, claim: VolumeClaimObject) -> bool:
    """Say whether a volume that is nobody's may become a claim's."""
    selector = claim.spec.selector
    return (
        volume.status.phase == "Available"
        and set(claim.spec.accessModes or ()) <= set(volume.spec.accessModes or ())
        and (selector is None or matches(selector, volume.metadata.labels or {}))
    )


def _class_of(obj: VolumeClaimObject | VolumeObject) -> str:
    annotations = obj.metadata.annotations or {}
    return annotations.get(OLD_CLASS, obj.spec.storageClassName or "")


def _size(obj: VolumeClaimObject | VolumeObject) -> int:
    if isinstance(obj, VolumeObject):
        amounts = obj.spec.capacity
    else:
        amounts = obj.spec.resources.requests if obj.spec.resources else None
    return parse_quantity((amounts or {}).get("storage", 0), f"{obj.KIND} {key_of(obj.metadata)!r}")


def _hosts(volume: VolumeObject) -> Sequence[str]:
    """Return the hosts that a volume is tied to, one that is empty where it is not.

    There may be thousands of local volumes; only those of a node are looked at for it.
    """
    required = volume.spec.nodeAffinity.required if volume.spec.nodeAffinity else None
    terms = (required.nodeSelectorTerms or ()) if required else ()
    for one in (terms[0].matchExpressions or ()) if len(terms) == 1 else ():
        if one.key == HOSTNAME and one.operator == "In":
            return one.values or ()
    return ("",)


def _is_reached(volume: VolumeObject, labels: Mapping[str, str]) -> bool:
    """Say whether a node with these labels reaches a volume; its name does not count."""
    required = volume.spec.nodeAffinity.required if volume.spec.nodeAffinity else None
    return required is None or matches_node(required, "", labels)


def _is_in_zone(volume: VolumeObject, labels: Mapping[str, str]) -> bool:
    """Say whether a node is where an old volume says that it is; a node without zone is anywhere."""
    if not any(key in labels for key in ZONE_LABELS):
        return True
    for key, newer in ZONE_LABELS.items():
        told = (volume.metadata.labels or {}).get(key, "")
        zones = [zone.strip() for zone in told.split("__")]
        if all(zones) and labels.get(key, labels.get(newer)) not in zones:
            return False
    return True


def _is_allowed(places: Sequence[TopologyTerm], labels: Mapping[str, str]) -> bool:
    return not places or any(
        all(labels.get(one.key) in (one.values or ()) for one in term.matchLabelExpressions)
        for term in places
        if term.matchLabelExpressions
    )
