"""A cluster's changes as a file: written as they are watched, without a name in it, and read again.

Names, namespaces, uids and the values of labels become hashes with a key that is thrown away, the same
everywhere in one recording, so that selectors still select. Node affinity may ask for more or less than a
number, so a node's label that is a number is there a second time, as another number of the same order.
Kept as they are: resources, times, priorities, conditions without their messages, hardware, and the
annotations that decisions read. Volumes are left out: a cluster that is read again has none, and they keep
nobody from a node.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from flextopo.cluster.topology.flextopo import DAEMON_PODS
from flextopo.policies.serving.cache import GROUP_KINDS, ClusterCache
from flextopo.policies.serving.objects import (
    KINDS,
    VOLUME_KINDS,
    FlexTopoObject,
    KubeObject,
    Meta,
    NodeObject,
    ObjectError,
    PodGroupObject,
    PodObject,
    key_of,
)
from flextopo.policies.serving.records import (
    CAN_BE_PREEMPTED,
    CHECKPOINT,
    GROUP_ANNOTATIONS,
    GROUP_LABELS,
    MIRROR,
    PROTECTION,
    REQUIREMENT,
    STATIC,
)
from flextopo.policies.serving.sources import READERS

VERSION = 1
MOST_S = 253_402_300_799
"""The last second of the year 9999: no time in an object is later."""
LITERAL = frozenset(
    [
        "type",
        "status",
        "reason",
        "phase",
        "operator",
        "effect",
        "whenUnsatisfiable",
        "preemptionPolicy",
        "restartPolicy",
        "protocol",
        "allocationMode",
        "matchAttribute",
        "nodeAffinityPolicy",
        "nodeTaintsPolicy",
        "driver",
        "device",
        "deviceClassName",
        "startTime",
        "creationTimestamp",
        "deletionTimestamp",
        "lastTransitionTime",
        "kind",
    ]
)
"""Fields whose texts are words of Kubernetes, or times."""
AMOUNTS = frozenset(
    ["requests", "limits", "allocatable", "capacity", "overhead", "allocatedResources"]
)
KEYS = frozenset(("key", "topologyKey"))
KEY_LISTS = frozenset(("matchLabelKeys", "mismatchLabelKeys"))
KNOWN_KEYS = frozenset(
    ("kubernetes.io/hostname", "topology.kubernetes.io/zone", "metadata.name", *GROUP_LABELS)
)
ANNOTATIONS = (REQUIREMENT, CAN_BE_PREEMPTED, PROTECTION, CHECKPOINT, MIRROR, STATIC, *READERS)
DEVICE_ATTRIBUTES = ("numaNode", "type", "uuid")
HASHED = re.compile(r"\bx[0-9a-f]{12}(?:/(?:x|[a-z-]+-)[0-9a-f]{12})?\b")
"""What stands for a name, or for `namespace/name` of a pod."""
_NUMBER = re.compile(r"[+-]?[0-9]{1,63}")
_UUID = re.compile(r"GPU-[0-9a-fA-F-]{8,}")


class Anonymiser:
    """Replaces what names somebody or something, by hashes that only this object can repeat."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def token(self, text: str) -> str:
        """Return what stands for a text: a daemon's name begins as it did."""
        if not text or text == "default-scheduler":
            return text
        digest = hashlib.blake2b(text.encode(), key=self._key, digest_size=6).hexdigest()
        for daemon in DAEMON_PODS:
            if text == daemon or text.startswith(f"{daemon}-"):
                return f"{daemon}-{digest}"
        return f"x{digest}"

    def owner(self, text: str) -> str:
        """Return what stands for `namespace/name`, or a bare name."""
        return "/".join(map(self.token, text.split("/")))

    def key(self, text: str) -> str:
        """Return what stands for the key of a label, a taint or a domain."""
        return text if text in KNOWN_KEYS else self.token(text)

    def rank(self, key: str, text: str) -> tuple[str, str]:
        """Return what stands for a label and its value where that is compared as a number.

        Numbers of one key keep their order; what is none becomes none.
        """
        name = self.token(f"{key} as a number")
        if not _NUMBER.fullmatch(text):
            return name, self.token(text)
        secret = hashlib.blake2b(key.encode(), key=self._key, digest_size=16).digest()
        slope, start = int.from_bytes(secret[:8]), int.from_bytes(secret[8:])
        return name, str((slope + 1) * int(text) + start)

    def written(self, obj: KubeObject) -> dict[str, Any]:
        """Return an object as it is recorded."""
        if isinstance(obj, FlexTopoObject):
            return {
                "metadata": self._walk("metadata", _plain(obj.metadata)),
                "spec": self._graph(obj),
            }
        document: dict[str, Any] = _plain(obj)
        if obj.KIND == "NodeResourceTopology":
            zones = document.pop("zones", [])
            return {**self._walk("", document), "zones": zones}
        if isinstance(obj, PodGroupObject):
            document["spec"] = {"minMember": obj.least} if obj.least is not None else {}
            if obj.stops_whole:
                document["spec"]["disruptionMode"] = {"all": {}}
            if obj.topology:
                keys = [{"key": key} for key in obj.topology]
                document["spec"]["schedulingConstraints"] = {"topology": keys}
        found: dict[str, Any] = self._walk("", document)
        if isinstance(obj, NodeObject) and obj.metadata.labels:
            labels = obj.metadata.labels.items()
            ranks = (self.rank(key, one) for key, one in labels if _NUMBER.fullmatch(one))
            found["metadata"]["labels"].update(ranks)
        return found

    def _graph(self, obj: FlexTopoObject) -> Any:
        spec = msgspec.json.decode(obj.spec)
        for vertex in spec.get("nodes") or () if isinstance(spec, dict) else ():
            attributes = vertex.get("attributes") or {}
            for name, change in (("usedBy", self.owner), ("uuid", self.token)):
                if attributes.get(name):
                    attributes[name] = change(str(attributes[name]))
        return spec

    def _walk(self, field: str, value: Any) -> Any:
        if isinstance(value, dict):
            compared = field == "matchExpressions" and value.get("operator") in ("Gt", "Lt")
            return self._comparison(value) if compared else self._dict(field, value)
        if isinstance(value, list):
            item = self.key if field in KEY_LISTS else None
            # What claims ask for is a list of the name of amounts, with names in it.
            field = "" if field in AMOUNTS else field
            return [item(one) if item else self._walk(field, one) for one in value]
        if not isinstance(value, str) or field in LITERAL:
            return value
        return self.key(value) if field in KEYS else self.token(value)

    def _comparison(self, value: dict[str, Any]) -> dict[str, Any]:
        ranks = [self.rank(value["key"], one) for one in value.get("values") or [""]]
        return {**value, "key": ranks[0][0], "values": [one for _, one in ranks]}

    def _dict(self, field: str, value: dict[str, Any]) -> dict[str, Any]:
        if field in AMOUNTS:
            return value
        if field in ("labels", "matchLabels", "nodeSelector") and all(
            isinstance(one, str) for one in value.values()
        ):
            return {self.key(name): self.token(one) for name, one in value.items()}
        if field == "annotations":
            return self._annotations(value)
        if field == "disruptedPods":
            return {self.token(name): at for name, at in value.items()}
        if field == "attributes":
            return {
                name: {kind: self.token(one) if name.endswith("uuid") else one
                       for kind, one in entry.items()}
                for name, entry in value.items()
                if name.rpartition("/")[2] in DEVICE_ATTRIBUTES
            }  # fmt: skip
        # A device is called after its number, as `gpu-3`.
        literal = ("name",) if field == "devices" else ()
        return {
            name: one if name in literal else self._walk(name, one)
            for name, one in value.items()
            if name not in ("message", "resourceVersion", "volumes")
        }

    def _annotations(self, value: dict[str, str]) -> dict[str, str]:
        kept = {name: value[name] for name in ANNOTATIONS if name in value}
        kept = {
            name: _UUID.sub(lambda match: self.token(match[0]), text) for name, text in kept.items()
        }
        groups = {name: self.token(value[name]) for name in GROUP_ANNOTATIONS if name in value}
        return {**kept, **groups}


def _plain(value: Any) -> Any:
    """Return a struct as dictionaries, without what is not set."""
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, own) for own, name in zip(
            value.__struct_fields__, value.__struct_encode_fields__, strict=True)}  # fmt: skip
    if isinstance(value, dict):
        return {k: _plain(one) for k, one in value.items() if one is not None}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


class Recorder:
    """Writes what a watch says, as `ClusterCache` would take it; what did not change is not written.

    Args:
        out: takes the lines.
        clock: Unix time in seconds.

    Attributes:
        lines: how many were written.
    """

    def __init__(self, out: BinaryIO, clock: Callable[[], float] = time.time) -> None:
        self._out, self._clock = out, clock
        self._anonymiser = Anonymiser()
        self._last: dict[str, dict[str, tuple[Meta, bytes]]] = {}
        self.lines = 0
        self._begin_s = clock()
        self._write({"recording": VERSION, "begin_s": int(self._begin_s)})

    def put(self, obj: KubeObject) -> None:
        """Write an object if it is new or has changed."""
        if isinstance(obj, VOLUME_KINDS):
            return
        document = self._anonymiser.written(obj)
        encoded = msgspec.json.encode(document)
        known = self._last.setdefault(obj.KIND, {})
        _, before = known.get(_key(obj), (None, b""))
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        if before != digest:
            known[_key(obj)] = (_name_of(obj), digest)
            self._write({"t": self._t(), "put": _word(obj), "o": msgspec.Raw(encoded)})

    def remove(self, obj: KubeObject) -> None:
        """Write that an object is gone."""
        if self._last.get(obj.KIND, {}).pop(_key(obj), None) is not None:
            meta = self._anonymiser.written(type(obj)(metadata=_name_of(obj)))["metadata"]
            self._write({"t": self._t(), "gone": _word(obj), "o": {"metadata": meta}})

    def replace(self, kind: type[KubeObject], objects: Iterable[KubeObject]) -> None:
        """Write a fresh list of a kind as changes of the last."""
        keep = set()
        for obj in objects:
            self.put(obj)
            keep.add(_key(obj))
        known = self._last.get(kind.KIND, {})
        for meta in [meta for key, (meta, _) in known.items() if key not in keep]:
            self.remove(kind(metadata=meta))

    def lack(self, kind: type[KubeObject]) -> None:
        """Write that the objects of a kind are gone."""
        self.replace(kind, [])

    def refresh(self) -> None:
        """Do nothing: a cache would work out its nodes now."""

    def _t(self) -> float:
        return round(self._clock() - self._begin_s, 3)

    def _write(self, line: dict[str, Any]) -> None:
        self._out.write(msgspec.json.encode(line) + b"\n")
        self._out.flush()
        self.lines += 1


def _word(obj: KubeObject | type[KubeObject]) -> str:
    return "PodGroup" if obj.KIND in GROUP_KINDS else obj.KIND


def _key(obj: KubeObject) -> str:
    return obj.metadata.uid if isinstance(obj, PodObject) else key_of(obj.metadata)


def _name_of(obj: KubeObject) -> Meta:
    meta = obj.metadata
    return Meta(name=meta.name, namespace=meta.namespace, uid=meta.uid)


class _Line(msgspec.Struct):
    """A line of a recording but the first."""

    t: float
    put: str = ""
    gone: str = ""
    o: msgspec.Raw = msgspec.Raw()


_LINE = msgspec.json.Decoder(_Line)
_ILLEGAL = (msgspec.MsgspecError, KeyError, ValueError, RecursionError)
"""What decoding raises; ValueError is bytes that are no UTF-8."""


class RecordingWarning(UserWarning):
    """Tell that the end of a recording is missing."""


class Playback:
    """A recording played into a cache, one change after the other.

    Args:
        path: of the recording.
        bands: priorities from which on batch pods are of class 1, 2, ...

    Attributes:
        cache: the cluster as it was at the moment, which is its clock's time.

    Raises:
        ObjectError: the file cannot be read, or is no recording.
    """

    def __init__(self, path: Path, bands: tuple[int, ...]) -> None:
        self._path = path
        try:
            with path.open("rb") as lines:
                head = json.loads(lines.readline() or b"null")
        except (OSError, ValueError, RecursionError) as error:
            raise ObjectError(f"{path}: {error}; legal: what flextopo record writes") from None
        if not isinstance(head, dict) or head.get("recording") != VERSION:
            raise ObjectError(f"{path}: no recording; legal: what flextopo record writes")
        self._begin_s = _begin_s(head.get("begin_s"), path)
        self.now_s = float(self._begin_s)
        self.cache = ClusterCache(lambda: int(self.now_s), bands)

    def __iter__(self) -> Iterator[KubeObject]:
        """Yield each change after it was made.

        Raises:
            ObjectError: a line is none of a recording.

        Warns:
            RecordingWarning: the last line is cut, as whoever is killed leaves it; it is passed over.
        """
        with self._path.open("rb") as lines:
            next(lines)
            for number, text in enumerate(lines, 2):
                try:
                    line = _LINE.decode(text)
                    obj = msgspec.json.decode(line.o, type=KINDS[line.put or line.gone])
                except _ILLEGAL as error:
                    where = f"{self._path}: line {number}"
                    if not text.endswith(b"\n"):
                        told = f"{where}: cut at its end; it is passed over"
                        warnings.warn(told, RecordingWarning, stacklevel=2)
                        return
                    raise ObjectError(
                        f"{where}: {error}; legal: what flextopo record writes"
                    ) from None
                self.now_s = self._begin_s + line.t
                (self.cache.put if line.put else self.cache.remove)(obj)
                yield obj


def _begin_s(value: Any, path: Path) -> int:
    if not isinstance(value, int) or not 0 <= value <= MOST_S:
        raise ObjectError(
            f"{path}: begin_s {str(value)[:40]!r}; legal: Unix seconds, from 0 to {MOST_S}"
        )
    return value
