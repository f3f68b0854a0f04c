"""Answer `POST /v1/decide` over HTTP: a snapshot in, a decision with reasons out."""

from __future__ import annotations

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.selector import VictimSelector
from flextopo.policies.snapshot import decide, decode

MAX_BODY = 16 * 2**20


def make_app(selector: VictimSelector, fallback: VictimSelector) -> Starlette:
    """Return the service around one selector; the fallback answers where that fails."""

    async def handle(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return answer(413, {"error": f"body over {MAX_BODY} bytes; legal: up to that"})
        try:
            return answer(200, decide(decode(bytes(body)), selector, fallback))
        except FlextopoError as error:
            return answer(400, {"error": str(error)})

    async def healthy(_: Request) -> Response:
        return answer(200, {"status": "ok", "selector": selector.name})

    return Starlette(
        routes=[
            Route("/v1/decide", handle, methods=["POST"]),
            Route("/healthz", healthy, methods=["GET"]),
        ]
    )


def answer(status: int, content: object) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")
