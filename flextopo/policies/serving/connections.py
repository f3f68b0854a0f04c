"""Connections that may not be held open for nothing: neither half open, nor too many."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_S = 5.0
"""Seconds from the opening of a connection, or the first byte of a request, to its last header."""
MAX_CONNECTIONS = 512
"""Of one port; kube-scheduler, a kubelet and Prometheus have one or two each."""
KEEP_ALIVE_S = 120
"""Go's clients keep idle connections for 90 s: it is for them to close one, not for us."""


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit on the time for headers and on the connections of a port."""

    _timer: asyncio.TimerHandle | None = None
    _used_s: float = 0.0

    def connection_made(self, transport: Any) -> None:
        """Take a connection; where there are too many, close the one that was idle for longest."""
        super().connection_made(transport)
        self._used_s = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            others = [one for one in self.connections if isinstance(one, BoundedProtocol)]
            min(others, key=lambda one: (one.is_busy(), one._used_s))._close()
        self._begin()

    def is_busy(self) -> bool:
        """Say whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Start the clock of a request."""
        self._begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop the clock: bodies have their own."""
        self._end()
        self._used_s = self.loop.time()
        super().on_headers_complete()

    def _begin(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_S, self._close)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()


def allow_many_files() -> None:
    """Raise the number of files that may be open to what is allowed: each connection is one."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
