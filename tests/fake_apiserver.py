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
}

Document = dict[str, Any]


class FakeApiserver:
    """Objects, their history, and the calls that were made.

    Attributes:
        calls: method and resource of each request, such as `create pods/eviction`.
        faults: resource to what goes wrong with it: a status code, `garbage`, `slow`, `break`.
        kinds: plurals that the cluster has.
        bookmark_s: seconds between bookmarks.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.faults: dict[str, int | str] = {}
        self.kinds = set(PLURALS.values())
        self.bookmark_s = 0.2
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

    async def handle(self, request: Request) -> Response:
        """Answer any request."""
        parts = request.url.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = None
        if parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        plural, (name, action) = parts[0], [*parts[1:], None, None][:2]
        watching = request.query_params.get("watch") == "true"
        verb = {"GET": "get" if name else "watch" if watching else "list", "PATCH": "patch",
                "POST": "create"}[request.method]  # fmt: skip
        resource = f"{plural}/{action}" if action else plural
        self.calls.append(f"{verb} {resource}")
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
            return self._list(request, plural)
        if verb == "watch":
            return self._watch(request, plural)
        key = f"{namespace}/{name}" if namespace else str(name)
        if verb == "get":
            found = self._objects.get((plural, key))
            return JSONResponse(found) if found else _status(404, f"{name} not found")
        body = json.loads(await request.body())
        if resource == "pods/eviction":
            return self._evict(key, body)
        return self._patch(plural, key, body) if name else self._create(plural, body)

    def _create(self, plural: str, document: Document) -> Response:
        if (plural, _key(document)) in self._objects:
            return _status(409, f"{_key(document)} already exists")
        return JSONResponse(self._store("ADDED", plural, document), 201)

    def _list(self, request: Request, plural: str) -> Response:
        node = request.query_params.get("fieldSelector", "").removeprefix("spec.nodeName=")
        found = [
            document
            for (kind, _), document in self._objects.items()
            if kind == plural and node in ("", document.get("spec", {}).get("nodeName"))
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

    def _patch(self, plural: str, key: str, patch: Document) -> Response:
        document = self._objects.get((plural, key))
        if document is None:
            return _status(404, f"{key} not found")
        for name in ("uid", "resourceVersion"):
            told = patch.get("metadata", {}).get(name)
            if told is not None and told != document["metadata"].get(name):
                return _status(409, f"{name} is {document['metadata'].get(name)}, not {told}")
        # Of a status, only the status is changed, and the other way round.
        names = {"status"} if "status" in patch else {"metadata", "spec"}
        parts = {key: value for key, value in patch.items() if key in names}
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
        dying["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
        self._store("MODIFIED", "pods", dying)
        return JSONResponse({"kind": "Status", "status": "Success"}, 201)


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
    routes = [Route("/{path:path}", server.handle, methods=["GET", "POST", "PATCH"])]
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
