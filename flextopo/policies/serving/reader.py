"""Read any object of a cluster as it is written, without a type for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
from lightkube.core.generic_client import GenericAsyncClient

from flextopo.policies.serving.kube import http_status

Document = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """Asks an apiserver by path.

    Attributes:
        client: of the cluster.
    """

    client: GenericAsyncClient

    async def ask(self, path: str, body: Any = None, **query: str) -> httpx2.Response:
        """Return an answer; with a body, to a POST, which must be a question all the same.

        Raises:
            httpx2.HTTPError: the apiserver refused, or does not answer.
        """
        method = "GET" if body is None else "POST"
        ask = self.client._client.build_request(method, path, params=query, json=body)
        response = await self.client._client.send(ask)
        response.raise_for_status()
        return response

    async def get(self, path: str, **query: str) -> Document | None:
        """Return an object, or None where there is none."""
        try:
            found: Document = (await self.ask(path, **query)).json()
        except httpx2.HTTPStatusError as error:
            if http_status(error) == 404:
                return None
            raise
        return found

    async def items(self, path: str, **query: str) -> AsyncIterator[Document]:
        """Yield the objects of a list, page by page."""
        following = ""
        while True:
            page = await self.get(
                path, limit="500", **{**query, **({"continue": following} if following else {})}
            )
            for item in (page or {}).get("items", []):
                yield item
            following = ((page or {}).get("metadata") or {}).get("continue") or ""
            if not following:
                return
