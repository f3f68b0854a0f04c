"""The HTTP service: verbs of the extender, decisions about snapshots, health and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.openapi import openapi_document
from flextopo.policies.serving.records import CLASS_BANDS
from flextopo.policies.serving.runner import SelectorRunner, UndecidableError
from flextopo.policies.serving.telemetry import Telemetry
from flextopo.policies.snapshot import decide, decode

Verb = Callable[[bytes], bytes]

PAUSE_S = 0.003
"""An answer is with who asked by then."""
TICK_S = 0.05
"""So often is worked out what has changed, and what is over within twice that: requests find it done."""


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        body_bytes: size of a body; 100 nodes of 8 pods of 10 kB are 8 MB.
        body_s: seconds until a body must have come.
        requests: how many may be under way at once; kube-scheduler sends one at a time.
    """

    body_bytes: int = 16 * 2**20
    body_s: float = 5.0
    requests: int = 32


@dataclass
class Service:
    """Everything behind the routes.

    Attributes:
        selector: decides about snapshots, and is named by `/healthz`.
        fallback: the deterministic baseline.
        telemetry: counts and logs.
        extender: the verbs of kube-scheduler, None without a cluster.
        ready: says whether the cluster is known, so that verbs are answered.
        fresh: says whether it is known as it is now, so that this service is to be asked.
        budget_s: time of the selector for one decision.
        limits: what a request may cost.
        bands: priorities from which on a snapshot's batch pods are of class 1, 2, ...
    """

    selector: VictimSelector
    fallback: VictimSelector
    telemetry: Telemetry
    extender: Extender | None = None
    ready: Callable[[], bool] = lambda: True
    fresh: Callable[[], bool] = lambda: True
    budget_s: float = 0.2
    limits: Limits = field(default_factory=Limits)
    bands: Sequence[int] = CLASS_BANDS
    _runner: SelectorRunner = field(default_factory=SelectorRunner)
    _beside: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "decide"))
    _under_way: int = 0
    _failed: str = ""

    def decide(self, body: bytes) -> bytes:
        """Answer `POST /v1/decide`: a snapshot in, a decision with reasons out.

        Raises:
            FlextopoError: the snapshot is not legal.
            UndecidableError: the baseline failed too.
        """
        found = decide(
            decode(body), self.selector, self.fallback, self._runner, self.budget_s, self.bands
        )
        if found["cause"]:
            self.telemetry.fell_back(found["cause"])
        self.telemetry.log("decision", verb="decide", **found)
        return msgspec.json.encode(found)

    async def answer(self, name: str, headers: Headers, receive: Receive) -> Response:
        """Answer a verb: the body within its limits, then bytes to bytes."""
        if self._under_way >= self.limits.requests:
            return _close(503, f"{self._under_way} requests are under way")
        self._under_way += 1
        try:
            return await self._answer(name, headers, receive)
        finally:
            self._under_way -= 1

    async def _answer(self, name: str, headers: Headers, receive: Receive) -> Response:
        try:
            async with asyncio.timeout(self.limits.body_s):
                body = await self._read(headers, receive)
        except TimeoutError:
            return _close(408, f"no body after {self.limits.body_s:g} s")
        except ClientDisconnect:
            return _close(400, "the client went away")
        if body is None:
            limit = self.limits.body_bytes
            return _close(413, f"body over {limit} bytes; legal: up to that")
        if name == "decide":
            # It builds a cluster of its own, which may take a second: health must not wait for that.
            loop = asyncio.get_running_loop()
            status, content = await loop.run_in_executor(self._beside, self._run, name, body)
        else:
            status, content = self._run(name, body)
        return Response(content, status, media_type="application/json")

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Return the body, None if it is too large."""
        told = headers.get("content-length", "0")
        if told.isdigit() and int(told) > self.limits.body_bytes:
            return None
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.limits.body_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _run(self, name: str, body: bytes) -> tuple[int, bytes]:
        if name != "decide" and not self.ready():
            return 503, _error("the cluster is not known yet")
        try:
            return 200, self._handler(name)(body)
        except UndecidableError as error:
            self.telemetry.log("undecidable", verb=name, error=str(error))
            return 500, _error(str(error))
        except FlextopoError as error:
            return 400, _error(str(error))
        except Exception as error:  # noqa: BLE001
            # kube-scheduler goes on by itself when it gets an error, and not when it gets nothing.
            self.telemetry.log("failure", verb=name, error=f"{type(error).__name__}: {error}")
            return 500, _error("internal error; the log says more")

    def _handler(self, name: str) -> Verb:
        if name == "decide":
            return self.decide
        if self.extender is None:
            raise FlextopoError("no cluster; legal: flextopo serve --snapshot FILE or --kube")
        handlers = {
            "filter": self.extender.filter,
            "prioritize": self.extender.prioritize,
            "preempt": self.extender.preempt,
        }
        return handlers[name]

    async def keep_up(self) -> None:
        """Work out nodes that have changed while nobody waits for it, for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            if self.ready():  # before, nodes lack what is listed last
                self.work_out()

    def work_out(self) -> None:
        """Work out nodes that have changed, or are about to by what is over soon.

        Where that fails requests say so, each: here it is told once.
        """
        if self.extender is None:
            return
        try:
            self.extender.decider.cache.refresh(ahead_s=2 * TICK_S)
            self._failed = ""
        except Exception as error:  # noqa: BLE001  the next time it may go well
            before, self._failed = self._failed, f"{type(error).__name__}: {error}"
            if self._failed != before:
                self.telemetry.log("failure", verb="", error=self._failed)

    async def healthy(self, _: Request) -> Response:
        """Answer `GET /healthz`: the process serves."""
        return _json(200, {"status": "ok", "selector": self.selector.name})

    async def is_ready(self, _: Request) -> Response:
        """Answer `GET /readyz`: the cluster is known, and not as it was long ago."""
        ready = self.ready() and self.fresh()
        return _json(200 if ready else 503, {"ready": ready})

    async def metrics(self, _: Request) -> Response:
        """Answer `GET /metrics`."""
        return Response(self.telemetry.metrics(), media_type="text/plain; version=0.0.4")

    async def openapi(self, _: Request) -> Response:
        """Answer `GET /openapi.json`."""
        return _json(200, openapi_document())


@dataclass(frozen=True)
class _Endpoint:
    """A verb as an application of its own."""

    service: Service
    name: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.perf_counter()
        response = await self.service.answer(self.name, Headers(scope=scope), receive)
        seconds = time.perf_counter() - begin
        try:
            await response(scope, receive, send)
        finally:
            self.service.telemetry.answered(self.name, response.status_code, seconds)
        # What an answer has changed is worked out while nobody waits, not even for this processor.
        asyncio.get_running_loop().call_later(PAUSE_S, self.service.work_out)


def make_app(service: Service) -> ASGIApp:
    """Return the application: verbs, health, metrics and the OpenAPI document."""
    verbs = {
        "/filter": _Endpoint(service, "filter"),
        "/prioritize": _Endpoint(service, "prioritize"),
        "/preempt": _Endpoint(service, "preempt"),
        "/v1/decide": _Endpoint(service, "decide"),
    }
    routes = [Route(path, verb, methods=["POST"]) for path, verb in verbs.items()]
    routed = Starlette(routes=[*routes, *_health_routes(service)])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's way to a route and back would take 0.1 ms of a verb's 2 ms.
        verb = verbs.get(scope["path"]) if scope.get("method") == "POST" else None
        await (verb or routed)(scope, receive, send)

    return app


def make_health_app(service: Service) -> Starlette:
    """Return health and metrics alone, for a port without client certificates."""
    return Starlette(routes=_health_routes(service))


def _health_routes(service: Service) -> list[Route]:
    return [
        Route("/healthz", service.healthy, methods=["GET"]),
        Route("/readyz", service.is_ready, methods=["GET"]),
        Route("/metrics", service.metrics, methods=["GET"]),
        Route("/openapi.json", service.openapi, methods=["GET"]),
    ]


def _json(status: int, content: object) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _close(status: int, why: str) -> Response:
    """Refuse a request whose body was not read to its end; the connection cannot go on."""
    headers = {"connection": "close"}
    if status == 503:
        headers["retry-after"] = "1"
    return Response(_error(why), status, headers, "application/json")


def _error(why: str) -> bytes:
    # kube-scheduler reads `Error` of a filter's answer; people read `error`.
    return msgspec.json.encode({"error": why, "Error": why})
