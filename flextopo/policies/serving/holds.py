"""Keep devices that victims free for whom they were freed, until it is bound.

Victims end one after the other, and a device that the first has left is anybody's. A DeviceTaintRule
on each device of the chosen set keeps it free until all are; then the pod's claims are allocated these
very devices, kube-scheduler binds the pod to where its claims are, and the rules go. So it gets the set
that was chosen, that set is aligned, and nobody can come between.

References:
    kubernetes v1.36, resource.k8s.io: DeviceTaintRule, v1beta2 there and v1 from 1.37 on. Behind
    feature gates; where the cluster has none, nothing is held and the pod takes its chances.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import httpx2
from lightkube.core.generic_client import GenericAsyncClient
from lightkube.generic_resource import (
    GenericGlobalResource,
    create_global_resource,
    create_namespaced_resource,
)
from lightkube.models.meta_v1 import ObjectMeta

from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.devices import count_gpus, is_simple, parts_of
from flextopo.policies.serving.kube import http_status
from flextopo.policies.serving.objects import ClaimObject
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.telemetry import Telemetry

HELD = "flextopo/held"
"""Key of the taint, and label of the rules; its value is the uid of the pod."""
HOLD_S = 60.0
"""What was not freed in this time is not held any longer."""
BIND_S = 10.0
"""A pod whose claims are allocated is bound in this time, or the devices are given back."""
Claim = create_namespaced_resource("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims")
DeviceClass = create_global_resource("resource.k8s.io", "v1", "DeviceClass", "deviceclasses")
_RULES: Sequence[type[GenericGlobalResource]] = [
    create_global_resource("resource.k8s.io", version, "DeviceTaintRule", "devicetaintrules")
    for version in ("v1", "v1beta2")
]


@dataclass
class _Hold:
    """Devices of a node that are kept for a pod, and the names of the rules that do so."""

    node: str
    devices: tuple[str, ...]
    until_s: float
    rules: list[str]
    claims: tuple[str, ...]
    released: bool = False
    stolen: bool = False
    told: bool = False


@dataclass
class DeviceHolds:
    """The devices that are held at the moment.

    Attributes:
        client: of the cluster.
        cache: in step with it.
        telemetry: counts and logs.
        clock: seconds that only grow.
    """

    client: GenericAsyncClient
    cache: ClusterCache
    telemetry: Telemetry
    clock: Callable[[], float] = time.monotonic
    _holds: dict[str, _Hold] = field(default_factory=dict)
    _kind: type[GenericGlobalResource] | None = None
    _asked: bool = False

    async def hold(self, pod: PodRecord, node: str, gpus: Sequence[int]) -> None:
        """Keep GPUs of a node for a pod: before its victims are told to go.

        Args:
            pod: for whom.
            node: name of the node.
            gpus: indices in the node's server model.
        """
        kind = await self._rules()
        state = self.cache.nodes.states.get(node)
        if kind is None or state is None:
            return
        number_of = {index: number for number, index in state.hardware.gpu_index.items()}
        chosen = {number_of[index] for index in gpus}
        numbers = self.cache.hosts.numbers_of(node)
        devices = self.cache.hosts.devices.gpus_of(node)
        ids = tuple(gpu.id for gpu in devices if numbers[gpu.id] in chosen)
        hold = _Hold(node, ids, self.clock() + HOLD_S, [], pod.claims)
        before = self._holds.get(pod.uid)
        self._holds[pod.uid] = hold
        for device in ids:
            await self._taint(kind, pod.uid, hold, device)
        if before is not None:
            before.rules = [name for name in before.rules if name not in hold.rules]
            await self._let_go(before)
            self.telemetry.held("stolen")

    async def drop(self, uid: str) -> None:
        """Let go of what is held for a pod whose victims were not evicted after all."""
        hold = self._holds.pop(uid, None)
        if hold is not None:
            await self._let_go(hold)
            self.telemetry.held("dropped")

    def holds_for(self, pod: PodRecord) -> bool:
        """Say whether devices are held for a pod, or allocated to it and not given back yet.

        Where somebody else was given one of them, they stay held, but do not suffice.
        """
        hold = self._holds.get(pod.uid)
        return hold is not None and not hold.stolen

    def was_just_robbed(self, pod: PodRecord) -> bool:
        """Say, once for all devices of a hold, whether somebody else was given one of them."""
        hold = self._holds.get(pod.uid)
        if hold is None or not hold.stolen or hold.told:
            return False
        hold.told = True
        return True

    def is_robbed(self, uid: str, victims: Collection[str] = ()) -> bool:
        """Say whether one of the devices held for a pod is another's, who is not on the way out.

        Args:
            uid: of the pod.
            victims: uids of pods that are about to go.
        """
        hold, held = self._holds.get(uid), self.cache.hosts.devices.held()
        users = {held.get(device, "") for device in hold.devices} if hold is not None else set()
        others = (self.cache.pods.get(user) for user in users - {uid, *victims})
        return any(pod is not None and not pod.terminating and not pod.finished for pod in others)

    async def look(self) -> list[PodRecord]:
        """Release what is free by now or held for too long; return the pods that should look again."""
        ready = []
        for uid, hold in list(self._holds.items()):
            pod = self.cache.pods.get(uid)
            over = self.clock() > hold.until_s
            hold.stolen = not hold.released and self.is_robbed(uid)
            if pod is None or pod.node or over:
                await self._end(uid, hold, pod)
            elif not hold.released and not self._held_by_others(uid, hold):
                await self._release(pod, hold)
                ready.append(pod)
        return ready

    async def clear(self) -> None:
        """Remove rules that an earlier process has left, as far as the apiserver lets us."""
        try:
            await self._clear()
        except httpx2.HTTPError as error:
            self.telemetry.log("hold_error", error=str(error)[:200])

    async def _clear(self) -> None:
        kind = await self._rules()
        if kind is None:
            return
        async for rule in self.client.list(
            self.client.prepare_request("list", kind, params={"labelSelector": HELD})
        ):
            uid = (rule.metadata.labels or {}).get(HELD) if rule.metadata else None
            if rule.metadata and rule.metadata.name and uid not in self._holds:
                await self._delete(kind, rule.metadata.name)

    def _held_by_others(self, uid: str, hold: _Hold) -> bool:
        held = self.cache.hosts.devices.held()
        return any(device in held and held[device] != uid for device in hold.devices)

    async def _release(self, pod: PodRecord, hold: _Hold) -> None:
        """Allocate the devices to the pod's claims, and let go of them."""
        hold.released, hold.until_s = True, self.clock() + BIND_S
        left = list(hold.devices)
        try:
            for key in pod.claims:
                left = await self._allocate(key, hold.node, left)
        except httpx2.HTTPError as error:
            # Without the right to do so, or for claims of another kind, kube-scheduler allocates.
            self.telemetry.log("hold_error", pod=pod.key, error=str(error)[:200])
        await self._let_go(hold)

    async def _let_go(self, hold: _Hold) -> None:
        kind = await self._rules()
        rules, hold.rules = hold.rules, []
        if kind is not None:
            for name in rules:
                await self._delete(kind, name)

    async def _allocate(self, key: str, node: str, devices: list[str]) -> list[str]:
        """Allocate devices to a claim; return those that are left.

        A claim for anything but a number of whole GPUs is left to kube-scheduler.

        Raises:
            httpx2.HTTPError: the apiserver refused.
        """
        claim = self.cache.hosts.devices.claims.get(key)
        if claim is None or claim.status.allocation is not None or not claim.requests:
            return devices
        counts = [(request, count_gpus(request)) for request in claim.requests]
        needed = sum(count for _, count in counts)
        drivers = {parts_of(device)[0] for device in devices}
        classes = {r.exactly.deviceClassName for r in claim.requests if r.exactly}
        if needed > len(devices) or not is_simple(claim) or classes != drivers:
            return devices
        results, left = [], list(devices)
        for request, count in counts:
            for device in left[:count]:
                driver, pool, name = parts_of(device)
                one = {"request": request.name, "driver": driver, "pool": pool, "device": name}
                results.append(one)
            left = left[count:]
        config = await self._config(claim)
        here = {"key": "metadata.name", "operator": "In", "values": [node]}
        allocation = {
            "devices": {"results": results, **({"config": config} if config else {})},
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [here]}]},
            # Without it kube-scheduler adds its own, which the apiserver refuses as a change.
            "allocationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        await self._write_allocation(claim, allocation)
        return left

    async def _config(self, claim: ClaimObject) -> list[dict[str, Any]]:
        """Return what drivers are to be told: of the classes first, then of the claim."""
        found = []
        by_class: dict[str, list[str]] = {}
        for request in claim.requests:
            if request.exactly:
                by_class.setdefault(request.exactly.deviceClassName, []).append(request.name)
        for name, requests in by_class.items():
            of_class = await self.client.request("get", DeviceClass, name=name)
            for entry in (of_class.spec or {}).get("config") or ():
                found.append({"source": "FromClass", "requests": requests, **entry})
        own = (claim.spec.devices and claim.spec.devices.config) or ()
        return found + [{"source": "FromClaim", **entry} for entry in own]

    async def _write_allocation(
        self, claim: ClaimObject, allocation: dict[str, Any] | None
    ) -> None:
        meta = claim.metadata
        await self.client.request(
            "patch",
            Claim.Status,
            obj={
                "metadata": {"uid": meta.uid, "resourceVersion": meta.resourceVersion},
                "status": {"allocation": allocation},
            },
            name=meta.name,
            namespace=meta.namespace,
            headers={"Content-Type": "application/merge-patch+json"},
        )

    async def _end(self, uid: str, hold: _Hold, pod: PodRecord | None) -> None:
        """Remove all rules of a hold, and count what became of it."""
        del self._holds[uid]
        await self._let_go(hold)
        if hold.released and (pod is None or not pod.node):
            await self._give_back(hold.claims)
        held = self.cache.hosts.devices.held()
        stolen = hold.released and any(held.get(one, "") not in ("", uid) for one in hold.devices)
        result = "stolen" if stolen or hold.stolen else "expired"
        if pod is None or pod.finished:
            result = "gone"
        elif pod.node:
            result = "bound" if pod.node == hold.node else "elsewhere"
        self.telemetry.held(result)

    async def _give_back(self, claims: Sequence[str]) -> None:
        """Take back what was allocated to a pod that was not bound there after all."""
        for key in claims:
            claim = self.cache.hosts.devices.claims.get(key)
            if claim is not None and claim.status.allocation is not None and not claim.users:
                try:
                    await self._write_allocation(claim, None)
                except httpx2.HTTPError as error:
                    self.telemetry.log("hold_error", claim=key, error=str(error)[:200])

    async def _taint(
        self, kind: type[GenericGlobalResource], uid: str, hold: _Hold, device: str
    ) -> None:
        driver, pool, name = parts_of(device)
        rule_name = f"flextopo-{uid[:13]}-{blake2b(device.encode(), digest_size=8).hexdigest()}"
        rule = kind(
            metadata=ObjectMeta(name=rule_name, labels={HELD: uid}),
            spec={
                "deviceSelector": {"driver": driver, "pool": pool, "device": name},
                "taint": {"key": HELD, "value": uid, "effect": "NoSchedule"},
            },
        )
        try:
            await self.client.request("post", kind, obj=rule)
        except httpx2.HTTPError as error:
            if http_status(error) != 409:
                self.telemetry.log("hold_error", device=device, error=str(error)[:200])
                return
        hold.rules.append(rule_name)

    async def _delete(self, kind: type[GenericGlobalResource], name: str) -> None:
        try:
            await self.client.request("delete", kind, name=name)
        except httpx2.HTTPError as error:
            if http_status(error) != 404:
                self.telemetry.log("hold_error", rule=name, error=str(error)[:200])

    async def _rules(self) -> type[GenericGlobalResource] | None:
        """Return the kind of the rules as the cluster has it, None if it has none."""
        if not self._asked:
            for kind in _RULES:
                try:
                    request = self.client.prepare_request("list", kind, params={"limit": "1"})
                    async for _ in self.client.list(request):
                        pass
                    self._kind, self._asked = kind, True
                    break
                except httpx2.HTTPError as error:
                    if http_status(error) not in (403, 404):
                        raise
            else:
                self._asked = True
                self.telemetry.log("no_holds", why="the cluster has no DeviceTaintRules for us")
        return self._kind
