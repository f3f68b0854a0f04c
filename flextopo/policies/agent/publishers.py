"""Write what the agent found, and only what has changed."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import quote, urlencode

import msgspec

from flextopo.cluster.topology.graph import API_VERSION
from flextopo.policies.agent.apiserver import Apiserver
from flextopo.policies.agent.document import Document
from flextopo.policies.agent.errors import ApiserverError
from flextopo.policies.agent.placements import Placements
from flextopo.policies.serving.objects import Meta, key_of
from flextopo.policies.serving.sources import CORES_HELD, GPUS_HELD

RESYNC_S = 600.0
"""How often what was written is read again: somebody may have deleted or changed it."""
RESYNC_PODS_S = 60.0
"""How often that of pods is: one that is back under its name within a second, with the same devices,
is another pod, which kubelet's list does not tell."""
OBJECTS = f"/apis/{API_VERSION}/flextopos"
PAGE = 500
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


class _Object(msgspec.Struct):
    metadata: Meta


class _Owned(msgspec.Struct):
    ownerReferences: list[dict[str, Any]] | None = None


class _FlexTopo(msgspec.Struct):
    metadata: _Owned
    spec: Any = None


class _More(msgspec.Struct):
    # As the field is called.
    continue_: str | None = msgspec.field(default=None, name="continue")


class _Page(msgspec.Struct):
    metadata: _More
    items: list[_Object]


class Publisher(Protocol):
    """Something that takes what the agent found.

    Attributes:
        resync_s: how often it is to forget what it has written.
    """

    resync_s: float

    def publish(self, document: Document, placements: Placements) -> int:
        """Write what is not so already; return how many objects were written.

        Raises:
            ApiserverError: it could not be written, or only in part; the next call goes on.
        """

    def forget(self) -> None:
        """Read again, before the next write, what is there: somebody else may have changed it."""

    def close(self) -> None:
        """End the connection."""


class ObjectPublisher:
    """Writes the node's FlexTopo object, which goes with its Node.

    Args:
        apiserver: of the cluster.
        node: name of the node.
    """

    resync_s = RESYNC_S

    def __init__(self, apiserver: Apiserver, node: str) -> None:
        self._apiserver, self._node = apiserver, node
        self._there: Document | None = None
        self._owners: list[Document] = []

    def publish(self, document: Document, placements: Placements) -> int:
        """Write the object, as `Publisher` says."""
        path = f"{OBJECTS}/{quote(self._node)}"
        known, self._there = self._there, None
        if known is None:
            known = self._read(path)
        wanted = {**document["spec"], "owners": self._owners}
        if known is None:
            meta = {**document["metadata"], "ownerReferences": self._owners}
            self._apiserver.create(OBJECTS, {**document, "metadata": meta})
        elif changed := {key: wanted[key] for key in wanted if wanted[key] != known.get(key)}:
            patch: Document = {"spec": changed}
            if changed.pop("owners", None):
                patch["metadata"] = {"ownerReferences": self._owners}
            self._apiserver.patch(path, patch)
        else:
            self._there = known
            return 0
        self._there = wanted
        return 1

    def close(self) -> None:
        """End the connection."""
        self._apiserver.close()

    def forget(self) -> None:
        """Read again before the next write, as `Publisher` says."""
        self._there = None

    def _read(self, path: str) -> Document | None:
        """Return what is there, None for nothing; find out whose the object is to be."""
        node = self._apiserver.get(f"/api/v1/nodes/{quote(self._node)}", _Object)
        if node is None:
            raise ApiserverError(
                f"node {self._node!r} is not in the cluster; legal: the name of a Node (--node-name)"
            )
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node}
        self._owners = [{**owner, "uid": node.metadata.uid}]
        found = self._apiserver.get(path, _FlexTopo)
        if found is None:
            return None
        spec = found.spec if isinstance(found.spec, dict) else {}
        return {**spec, "owners": found.metadata.ownerReferences}


class AnnotationPublisher:
    """Writes `flextopo/gpus` and `flextopo/cores` of each pod that holds any.

    A pod whose GPUs are not known, or shared, gets no `flextopo/gpus`.

    Args:
        apiserver: of the cluster.
        node: name of the node.
    """

    resync_s = RESYNC_PODS_S

    def __init__(self, apiserver: Apiserver, node: str) -> None:
        self._apiserver, self._node = apiserver, node
        self._written: dict[str, Document] = {}
        self._stale = True

    def publish(self, document: Document, placements: Placements) -> int:
        """Write the annotations, as `Publisher` says."""
        wanted = {pod: annotations_of(placements, pod) for pod in placements.pods}
        # What was written of a pod that holds nothing any more is taken back.
        wanted |= {pod: _NOTHING for pod in self._written.keys() - wanted.keys()}
        if wanted == self._written and not self._stale:
            return 0
        there, writes = self._list(), 0
        for pod, texts in wanted.items():
            meta = there.get(pod)
            now = (meta.annotations or {}) if meta else texts
            if meta and any(now.get(name) != value for name, value in texts.items()):
                self._patch(meta, texts)
                writes += 1
            self._written[pod] = texts
        self._written = {pod: kept for pod, kept in self._written.items() if kept != _NOTHING}
        self._stale = False
        return writes

    def close(self) -> None:
        """End the connection."""
        self._apiserver.close()

    def forget(self) -> None:
        """Read again before the next write, as `Publisher` says."""
        self._stale = True

    def _patch(self, meta: Meta, texts: Document) -> None:
        path = f"/api/v1/namespaces/{quote(meta.namespace or '')}/pods/{quote(meta.name)}"
        try:
            # With its uid, a pod of that name that has come meanwhile is safe from this.
            about = {"uid": meta.uid, "annotations": texts}
            self._apiserver.patch(path, {"metadata": about})
        except ApiserverError as error:
            if error.status != 404:
                raise

    def _list(self) -> dict[str, Meta]:
        """Return the metadata of the node's pods by `namespace/name`."""
        found: dict[str, Meta] = {}
        query = {"fieldSelector": f"spec.nodeName={self._node}", "limit": str(PAGE)}
        while True:
            path = f"/api/v1/pods?{urlencode(query)}"
            page = self._apiserver.get(path, _Page, Accept=_METADATA_ONLY)
            for item in page.items if page else ():
                found[key_of(item.metadata)] = item.metadata
            query["continue"] = (page and page.metadata.continue_) or ""
            if not query["continue"]:
                return found


_NOTHING: Document = {GPUS_HELD: None, CORES_HELD: None}


def annotations_of(placements: Placements, pod: str) -> Document:
    """Return a pod's annotations; None stands for one that it must not have."""
    place = placements.pods[pod]
    return {
        GPUS_HELD: format_numbers(place.gpus or ()) or None,
        # An empty list says that it runs in the shared pool, which is more than to say nothing.
        CORES_HELD: format_numbers(place.cores) if place.cores or place.gpus else None,
    }


def format_numbers(numbers: tuple[int, ...]) -> str:
    """Write ascending numbers as Linux does: `0-2,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
