"""One of several controllers acts: who holds the Lease, as Kubernetes' own controllers do it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2
from lightkube.core.generic_client import GenericAsyncClient
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.coordination_v1 import Lease

from flextopo.policies.serving.kube import http_status
from flextopo.policies.serving.telemetry import Telemetry

NAME = "flextopo-controller"
LEASE_S = 15
"""A Lease that nobody renewed for so long is anybody's."""
RENEW_S = 10.0
"""Who has not renewed for so long acts no more: five seconds before another may."""
RETRY_S = 2.0


def make_identity() -> str:
    """Return a name for this process: that of its pod or machine, and its number."""
    return f"{socket.gethostname()}_{os.getpid()}"


@dataclass
class Leadership:
    """Holds the Lease `flextopo-controller` of the client's namespace, or waits for it.

    Attributes:
        client: of the cluster, for this alone: it is closed in the end.
        telemetry: told of changes.
        identity: of this process.
        changed: called when this process has become the leader.
        clock: seconds that only grow.

    References:
        client-go v0.36, tools/leaderelection: other clocks are not trusted; a Lease is free when it
        has not changed for its duration as seen from here.
    """

    client: GenericAsyncClient
    telemetry: Telemetry
    identity: str = field(default_factory=make_identity)
    changed: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _renewed: float | None = None
    _seen: tuple[Any, float] = (None, 0.0)

    def held(self) -> bool:
        """Say whether this process may act."""
        return self._renewed is not None and self.clock() - self._renewed < RENEW_S

    async def contend(self) -> None:
        """Take and keep the Lease until cancelled, and then give it up."""
        try:
            while True:
                begin, had = self.clock(), self.held()
                try:
                    async with asyncio.timeout(RENEW_S / 2):
                        if await self._take():
                            self._renewed = begin
                except (httpx2.HTTPError, TimeoutError) as error:
                    self.telemetry.log("lease", held=self.held(), error=f"{error!r}"[:200])
                if self.held() != had:
                    self.telemetry.log("lease", held=self.held(), identity=self.identity)
                    self.changed()
                await asyncio.sleep(RETRY_S)
        finally:
            if self.held():
                self._renewed = None
                with suppress(httpx2.HTTPError, TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._give_up()
            await self.client.close()  # type: ignore[no-untyped-call]

    async def _take(self) -> bool:
        """Create, renew or take over the Lease; return whether it is ours."""
        now = datetime.now(UTC)
        try:
            lease = await self.client.request("get", Lease, name=NAME)
        except httpx2.HTTPError as error:
            if http_status(error) != 404:
                raise
            spec = LeaseSpec(
                holderIdentity=self.identity, leaseDurationSeconds=LEASE_S,
                acquireTime=now, renewTime=now, leaseTransitions=0,
            )  # fmt: skip
            lease = Lease(metadata=ObjectMeta(name=NAME), spec=spec)
            await self.client.request("post", Lease, obj=lease)
            return True
        spec = lease.spec or LeaseSpec()
        mark = (spec.holderIdentity, spec.renewTime)
        if self._seen[0] != mark:
            self._seen = (mark, self.clock())
        ours = spec.holderIdentity == self.identity
        free_after = spec.leaseDurationSeconds or LEASE_S
        if not ours and spec.holderIdentity and self.clock() - self._seen[1] < free_after:
            return False
        if not ours:
            spec.acquireTime = now
            spec.leaseTransitions = (spec.leaseTransitions or 0) + 1
        spec.holderIdentity, spec.renewTime, spec.leaseDurationSeconds = self.identity, now, LEASE_S
        lease.spec = spec
        try:
            # With the version it was read with: of two that take it at once, one gets status 409.
            await self.client.request("put", Lease, obj=lease, name=NAME)
        except httpx2.HTTPError as error:
            if http_status(error) != 409:
                raise
            return False
        return True

    async def _give_up(self) -> None:
        lease = await self.client.request("get", Lease, name=NAME)
        if lease.spec and lease.spec.holderIdentity == self.identity:
            lease.spec.holderIdentity = ""
            await self.client.request("put", Lease, obj=lease, name=NAME)
