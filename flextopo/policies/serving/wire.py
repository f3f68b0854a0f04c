"""The extender protocol on the wire: bodies as typed structs, in Go's case or another.

References:
    kubernetes v1.36, kube-scheduler/extender/v1: structs without tags, so keys are capitalised in
    what Go writes, and of any case in what it reads; older clients write lower case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any, TypeVar

import msgspec

from flextopo.policies.serving.objects import ObjectError, PodObject

T = TypeVar("T")


_PODS = msgspec.Meta(
    description="with node cache {UID} of each victim, else whole pods",
    extra_json_schema={"type": ["array", "null"], "items": {"type": "object"}},
)


class VictimMeta(msgspec.Struct, gc=False):
    """Metadata of a victim as it is sent."""

    uid: str = ""


class VictimPod(msgspec.Struct, gc=False):
    """A victim as it is sent without node cache; only its uid is read."""

    metadata: VictimMeta


class MetaPod(msgspec.Struct, gc=False):
    """A victim as it is sent with node cache, and as it is answered."""

    UID: str


class MetaVictims(msgspec.Struct, gc=False):
    """Victims of a node by uid, as they are answered."""

    Pods: list[MetaPod]
    NumPDBViolations: int = 0


class Victims(msgspec.Struct, gc=False):
    """Victims of a node as they come, of either kind: a decision reads those of a node or two of hundreds.

    Without `Pods` the key is missing, or written in another case.
    """

    Pods: Annotated[msgspec.Raw, _PODS] = msgspec.field(default_factory=msgspec.Raw)
    NumPDBViolations: int = 0


class PreemptRequest(msgspec.Struct):
    """Body of `preempt`; which map is filled depends on nodeCacheCapable."""

    Pod: PodObject
    NodeNameToVictims: dict[str, Victims | None] | None = None
    NodeNameToMetaVictims: dict[str, Victims | None] | None = None


class NodeList(msgspec.Struct):
    """Nodes as they came, to be sent back untouched."""

    items: list[msgspec.Raw] | None = None


class NodesRequest(msgspec.Struct):
    """Body of `filter` and `prioritize`."""

    Pod: PodObject
    Nodes: NodeList | None = None
    NodeNames: list[str] | None = None


class NamedMeta(msgspec.Struct):
    """The name of an object."""

    name: str


class Named(msgspec.Struct):
    """An object of which only the name is read."""

    metadata: NamedMeta


_PREEMPT = msgspec.json.Decoder(PreemptRequest)
_NODES = msgspec.json.Decoder(NodesRequest)
_NAMED = msgspec.json.Decoder(Named)
_META = msgspec.json.Decoder(list[MetaPod] | None), attrgetter("UID")
_WHOLE = msgspec.json.Decoder(list[VictimPod] | None), attrgetter("metadata.uid")
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_TOP = ("Pod", "NodeNameToVictims", "NodeNameToMetaVictims", "Nodes", "NodeNames")


class ProposedVictims(Mapping[str, list[str]]):
    """Uids of kube-scheduler's victims by node, whichever way they came; read when asked for.

    Args:
        request: the body of `preempt`.
    """

    def __init__(self, request: PreemptRequest) -> None:
        by_uid = request.NodeNameToMetaVictims
        self._decoder, self._uid = _META if by_uid else _WHOLE
        self._victims = by_uid or request.NodeNameToVictims or {}

    def __getitem__(self, name: str) -> list[str]:
        """Return the uids of a node's victims.

        Raises:
            ObjectError: they are no victims.
        """
        victims = self._victims[name]
        if not victims or not victims.Pods:
            return []
        try:
            return list(map(self._uid, self._read(victims.Pods)))
        except _ERRORS as error:
            raise ObjectError(f"body: victims of node {name!r}: {error}") from None

    def _read(self, pods: msgspec.Raw) -> Sequence[Any]:
        try:
            return self._decoder.decode(pods) or ()
        except msgspec.ValidationError as error:
            if "missing required field" not in str(error):
                raise
        renamed = [_renamed(pod, ("UID",)) for pod in msgspec.json.decode(pods)]
        found: Sequence[Any] = msgspec.convert(renamed, self._decoder.type)
        return found

    def __iter__(self) -> Iterator[str]:
        """Return the names of the nodes."""
        return iter(self._victims)

    def __len__(self) -> int:
        """Return how many nodes there are."""
        return len(self._victims)

    def violations(self, name: str) -> int:
        """Return how many of a node's victims violate a disruption budget."""
        victims = self._victims[name]
        return victims.NumPDBViolations if victims else 0


def read_nodes(request: NodesRequest) -> dict[str, msgspec.Raw | None]:
    """Return the nodes by name, with their objects where these came.

    Raises:
        ObjectError: a node has no name.
    """
    if request.Nodes is None:
        return dict.fromkeys(request.NodeNames or ())
    try:
        return {_NAMED.decode(item).metadata.name: item for item in request.Nodes.items or ()}
    except msgspec.DecodeError as error:
        raise ObjectError(f"body: Nodes.items: {error}") from None


def decode_preempt(body: bytes) -> PreemptRequest:
    """Decode an ExtenderPreemptionArgs.

    Raises:
        ObjectError: it is not one, or has no victims of either kind.
    """
    found = _decode(_PREEMPT, body, _is_complete)
    if found.NodeNameToVictims is None and found.NodeNameToMetaVictims is None:
        raise ObjectError(
            "body: neither NodeNameToVictims nor NodeNameToMetaVictims; legal: one of them"
        )
    return found


def decode_nodes(body: bytes) -> NodesRequest:
    """Decode an ExtenderArgs.

    Raises:
        ObjectError: it is not one, or has no nodes of either kind.
    """

    def complete(request: NodesRequest) -> bool:
        return request.Nodes is not None or request.NodeNames is not None

    found = _decode(_NODES, body, complete)
    if not complete(found):
        raise ObjectError("body: neither Nodes nor NodeNames; legal: one of them")
    return found


def _is_complete(request: PreemptRequest) -> bool:
    maps = (request.NodeNameToVictims, request.NodeNameToMetaVictims)
    entries = chain.from_iterable(some.values() for some in maps if some)
    return maps != (None, None) and all(entry is None or entry.Pods for entry in entries)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes, complete: Callable[[T], bool]) -> T:
    """Decode a body; where something is missing, look for keys in another case, as Go does."""
    try:
        found = decoder.decode(body)
        if complete(found):
            return found
    except _ERRORS as error:
        if "missing required field" not in str(error):
            raise ObjectError(f"body: {error}") from None
    try:
        document = msgspec.json.decode(body)
        return msgspec.json.decode(msgspec.json.encode(_in_go_case(document)), type=decoder.type)
    except _ERRORS as error:
        raise ObjectError(f"body: {error}") from None


def _in_go_case(document: Any) -> Any:
    """Write the keys of the protocol as Go does; those of pods and nodes stay as they are."""
    found = _renamed(document, _TOP)
    if not isinstance(found, dict):
        return found
    for name in ("NodeNameToVictims", "NodeNameToMetaVictims"):
        if isinstance(found.get(name), dict):
            found[name] = {
                node: _renamed(victims, ("Pods", "NumPDBViolations"))
                for node, victims in found[name].items()
            }
    by_uid = found.get("NodeNameToMetaVictims")
    for victims in by_uid.values() if isinstance(by_uid, dict) else ():
        if isinstance(victims, dict) and isinstance(victims.get("Pods"), list):
            victims["Pods"] = [_renamed(pod, ("UID",)) for pod in victims["Pods"]]
    return found


def _renamed(value: Any, names: Sequence[str]) -> Any:
    if not isinstance(value, dict):
        return value
    right = {name.lower(): name for name in names}
    return {right.get(str(key).lower(), key): item for key, item in value.items()}
