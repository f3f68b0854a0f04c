"""A small kube-apiserver over real HTTP: get, list, watch, create, patch, eviction, and faults on demand.

It keeps resource versions, sends bookmarks, forgets old versions, and honours preconditions and
disruption budgets. Nothing schedules or runs pods; the tests do.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PLURALS = {
    "Pod": "pods",
    "Node": "nodes",
    "FlexTopo": "flextopos",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PriorityClass": "priorityclasses",
    "PodGroup": "podgroups",
    "ResourceSlice": "resourceslices",
    "ResourceClaim": "resourceclaims",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "PersistentVolume": "persistentvolumes",
    "StorageClass": "storageclasses",
    "NodeResourceTopology": "noderesourcetopologies",
    "DeviceTaintRule": "devicetaintrules",
    "DeviceClass": "deviceclasses",
    "Event": "events",
    "Lease": "leases",
    "CustomResourceDefinition": "customresourcedefinitions",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "Secret": "secrets",
    "Deployment": "deployments",
}

Document = dict[str, Any]


class FakeApiserver:
    """Objects, their history, and the calls that were made.

    Attributes:
        calls: method and resource of each request, such as `create pods/eviction`.
        callers: what clients call themselves, as `User-Agent`.
        faults: resource to what goes wrong with it: a status code, `garbage`, `slow`, `break`.
        kinds: plurals that the cluster has.
        bookmark_s: seconds between bookmarks.
        texts: path to what is answered there, in place of an object.
        denied: rights that no account has, such as `create pods/eviction`.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.callers: set[str] = set()
        self.faults: dict[str, int | str] = {}
        self.kinds = set(PLURALS.values())
        self.bookmark_s = 0.2
        self.gone = "2027-01-15T08:00:00Z"
        self.texts: dict[str, str] = {}
        self.denied: set[str] = set()
        self.port = 0
        self._objects: dict[tuple[str, str], Document] = {}
        self._history: list[tuple[int, str, str, Document]] = []
        self._version = 100
        self._oldest = 0
        self._changed = asyncio.Event()
        self._epoch = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, document: Document) -> Document:
        """Create or replace an object."""
        plural = PLURALS[document["kind"]]
        key = (plural, _key(document))
        event = "MODIFIED" if key in self._objects else "ADDED"
        return self._store(event, plural, deepcopy(document))

    def delete(self, kind: str, key: str) -> None:
        """Remove an object, as when a pod has stopped."""
        plural = PLURALS[kind]
        self._store("DELETED", plural, deepcopy(self._objects[plural, key]))

    def get(self, kind: str, key: str) -> Document | None:
        """Return an object."""
        return self._objects.get((PLURALS[kind], key))

    def keys(self, kind: str) -> list[str]:
        """Return the keys of all objects of a kind."""
        return [key for plural, key in self._objects if plural == PLURALS[kind]]

    def _store(self, event: str, plural: str, document: Document) -> Document:
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)
        key = (plural, _key(document))
        if event == "DELETED":
            del self._objects[key]
        else:
            self._objects[key] = document
        self._history.append((self._version, plural, event, document))
        self._wake()
        return document

    def replay(self, plural: str, back: int) -> None:
        """Send the last events of a kind again, as a watch that restarts may."""
        events = [entry for entry in self._history if entry[1] == plural][-back:]
        for _, _, event, document in events:
            self._history.append((self._version + 1, plural, event, document))
            self._version += 1
        self._wake()

    def forget_history(self) -> None:
        """Compact: no version before the present one can be watched from."""
        self._oldest = self._version + 1
        self._version += 1

    def break_watches(self) -> None:
        """End all streams in the middle of a line."""
        self._epoch += 1
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def answer(self, request: Request) -> Response:
        """Answer a request about the cluster or about rights."""
        path = request.url.path
        if path in self.texts:
            return Response(self.texts[path])
        if path.endswith("/subjectaccessreviews"):
            return self._review(json.loads(await request.body()))
        return await self.handle(request)

    async def handle(self, request: Request) -> Response:
        """Answer a request about objects."""
        parts = request.url.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = None
        if parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        plural, (name, action) = parts[0], [*parts[1:], None, None][:2]
        watching = request.query_params.get("watch") == "true"
        verb = {"GET": "get" if name else "watch" if watching else "list", "PATCH": "patch",
                "POST": "create", "PUT": "update", "DELETE": "delete"}[request.method]  # fmt: skip
        resource = f"{plural}/{action}" if action else plural
        self.calls.append(f"{verb} {resource}")
        self.callers.add(request.headers.get("user-agent", ""))
        fault = self.faults.get(f"{verb} {resource}", self.faults.get(resource))
        if isinstance(fault, int):
            return _status(fault, "fault")
        if fault == "garbage":
            return Response(b"<html>\xff not JSON", media_type="text/html")
        if fault == "slow":
            await asyncio.sleep(30)
        if plural not in self.kinds:
            return _status(404, f"{plural} not found")
        if verb == "list":
            return self._list(request, plural, namespace)
        if verb == "watch":
            return self._watch(request, plural)
        key = f"{namespace}/{name}" if namespace else name or ""
        if verb == "get":
            found = self._objects.get((plural, key))
            return JSONResponse(found) if found else _status(404, f"{key} not found")
        if verb == "delete":
            return self._remove(plural, key)
        return self._change(verb, resource, key, json.loads(await request.body()))

    def _remove(self, plural: str, key: str) -> Response:
        document = self._objects.get((plural, key))
        if document is None:
            return _status(404, f"{key} not found")
        return JSONResponse(self._store("DELETED", plural, deepcopy(document)))

    def _change(self, verb: str, resource: str, key: str, body: Document) -> Response:
        if resource == "pods/eviction":
            return self._evict(key, body)
        plural = resource.partition("/")[0]
        if verb == "patch":
            return self._patch(resource, key, body)
        return self._write(plural, key.partition("/")[0], body)

    def _review(self, review: Document) -> Response:
        about = review["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (about["resource"], about["subresource"])))
        allowed = f"{about['verb']} {resource}" not in self.denied
        return JSONResponse({**review, "status": {"allowed": allowed}}, 201)

    def _list(self, request: Request, plural: str, namespace: str | None) -> Response:
        label, equal, value = request.query_params.get("labelSelector", "").partition("=")
        node = request.query_params.get("fieldSelector", "").removeprefix("spec.nodeName=")
        found = [
            document
            for (kind, _), document in self._objects.items()
            if kind == plural
            and node in ("", document.get("spec", {}).get("nodeName"))
            and namespace in (None, document["metadata"].get("namespace"))
            and (not label or _has_label(document, label, value if equal else None))
        ]
        begin = int(request.query_params.get("continue", "0"))
        size = min(int(request.query_params.get("limit", "500")), 3)
        more = str(begin + size) if begin + size < len(found) else ""
        meta = {"resourceVersion": str(self._version), "continue": more}
        return JSONResponse({"metadata": meta, "items": found[begin : begin + size]})

    def _watch(self, request: Request, plural: str) -> Response:
        since = int(request.query_params.get("resourceVersion", "0"))
        if since < self._oldest:
            return _status(410, "too old resource version")
        seconds = float(request.query_params["timeoutSeconds"])
        bookmarks = request.query_params.get("allowWatchBookmarks") == "true"
        return StreamingResponse(
            self._events(plural, since, seconds, bookmarks), media_type="application/json"
        )

    async def _events(
        self, plural: str, since: int, seconds: float, bookmarks: bool
    ) -> AsyncIterator[bytes]:
        epoch, until = self._epoch, asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            if self._epoch != epoch:
                yield b'{"type": "MODIFIED", "obj'
                return
            if since < self._oldest - 1:
                status = {"kind": "Status", "code": 410, "message": "too old resource version"}
                yield _line("ERROR", status)
                return
            # A bookmark promises that all before it was sent: what comes while the timer fires, was not.
            changed, latest = self._changed, self._version
            for version, kind, event, document in list(self._history):
                if version > since and kind == plural:
                    since = version
                    yield _line(event, document)
            try:
                async with asyncio.timeout(self.bookmark_s):
                    await changed.wait()
            except TimeoutError:
                if bookmarks:
                    since = max(since, latest)
                    meta = {"resourceVersion": str(since), "creationTimestamp": None}
                    yield _line("BOOKMARK", {"kind": "X", "metadata": meta})

    def _write(self, plural: str, namespace: str, body: Document) -> Response:
        meta = body["metadata"]
        if namespace:
            meta["namespace"] = namespace
        meta.setdefault("name", f"{meta.get('generateName', '')}{self._version}")
        known = self._objects.get((plural, _key(body)))
        told = meta.get("resourceVersion")
        if known and told != known["metadata"]["resourceVersion"]:
            return _status(409, f"resourceVersion is not {told}")
        return JSONResponse(self._store("MODIFIED" if known else "ADDED", plural, body))

    def _patch(self, resource: str, key: str, patch: Document) -> Response:
        plural = resource.partition("/")[0]
        document = self._objects.get((plural, key))
        if document is None:
            return _status(404, f"{key} not found")
        for name in ("uid", "resourceVersion"):
            told = patch.get("metadata", {}).get(name)
            if told is not None and told != document["metadata"].get(name):
                return _status(409, f"{name} is {document['metadata'].get(name)}, not {told}")
        if resource.endswith("/status"):
            # Beside the status, annotations can be written this way, and nothing else.
            written = {"annotations": patch.get("metadata", {}).get("annotations", {})}
            parts: Document = {"status": patch.get("status", {}), "metadata": written}
        else:
            parts = {key: value for key, value in patch.items() if key in ("metadata", "spec")}
        changed = _merged(deepcopy(document), parts)
        return JSONResponse(self._store("MODIFIED", plural, changed))

    def _evict(self, key: str, eviction: Document) -> Response:
        document = self._objects.get(("pods", key))
        if document is None:
            return _status(404, f"{key} not found")
        told = eviction.get("deleteOptions", {}).get("preconditions", {}).get("uid")
        if told is not None and told != document["metadata"]["uid"]:
            return _status(409, "uid differs")
        for (kind, _), budget in list(self._objects.items()):
            if kind == "poddisruptionbudgets" and _covers(budget, document):
                if budget["status"]["disruptionsAllowed"] <= 0:
                    return _status(429, "Cannot evict pod as it would violate its budget")
                left = budget["status"]["disruptionsAllowed"] - 1
                disrupted = {**budget["status"].get("disruptedPods", {}), key.split("/")[1]: "now"}
                status = {"disruptionsAllowed": left, "disruptedPods": disrupted}
                self._store("MODIFIED", kind, {**deepcopy(budget), "status": status})
        dying = deepcopy(document)
        dying["metadata"]["deletionTimestamp"] = self.gone
        self._store("MODIFIED", "pods", dying)
        return JSONResponse({"kind": "Status", "status": "Success"}, 201)


def _has_label(document: Document, label: str, value: str | None) -> bool:
    """Say whether an object has a label, of that value if there is one."""
    found = document["metadata"].get("labels", {}).get(label)
    return found is not None if value is None else bool(found == value)


def _covers(budget: Document, pod: Document) -> bool:
    labels = budget["spec"]["selector"]["matchLabels"].items()
    here = bool(budget["metadata"]["namespace"] == pod["metadata"]["namespace"])
    return here and labels <= pod["metadata"].get("labels", {}).items()


def _merged(into: Document, patch: Document) -> Document:
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
            continue
        into[key] = _merged(into.get(key, {}), value) if isinstance(value, dict) else value
    return into


def _key(document: Document) -> str:
    meta = document["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if "namespace" in meta else str(meta["name"])


def _line(event: str, document: Document) -> bytes:
    return json.dumps({"type": event, "object": document}).encode() + b"\n"


def _status(code: int, message: str) -> Response:
    return JSONResponse({"kind": "Status", "code": code, "message": message}, code)


@asynccontextmanager
async def running(server: FakeApiserver) -> AsyncIterator[FakeApiserver]:
    """Serve on a free port of this event loop."""
    routes = [
        Route("/{path:path}", server.answer, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    ]
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server.port = listening.getsockname()[1]
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", loop="none")
    http = uvicorn.Server(config)
    http.capture_signals = _nothing  # type: ignore[method-assign]
    task = asyncio.create_task(http.serve([listening]))
    while not http.started:
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        http.should_exit = http.force_exit = True
        server.break_watches()
        await task
        listening.close()


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for a condition, and fail when it does not come."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    assert condition()


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
