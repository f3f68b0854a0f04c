"""Preempt for pods that only topology keeps pending, where kube-scheduler itself does not.

Up to version 1.37 kube-scheduler calls no extender when the pod fits by counts. This controller
nominates a node and evicts through the Eviction API; the scheduler binds once the victims are gone.

All that has happened stands in the cluster: the nomination on the pod, the victims' deletion. So a
controller that is started anew goes on where the last one was stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2

from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.kube import KubeWatch, http_status
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.runner import UndecidableError
from flextopo.policies.serving.telemetry import Telemetry


@dataclass
class Controller:
    """Looks at pending pods after every change, and at least every `look_s` seconds.

    Attributes:
        decider: decides.
        watch: carries out.
        telemetry: counts and logs.
        settle_s: a pod must have been refused for so long, so that kube-scheduler's own preemption
            goes first.
        backoff_s: first and longest wait after a refused eviction; it doubles in between.
        look_s: longest time between two looks.
        shadow: log what would be done, and do nothing.
        clock: seconds that only grow.
    """

    decider: Decider
    watch: KubeWatch
    telemetry: Telemetry
    settle_s: float = 3.0
    backoff_s: tuple[float, float] = (1.0, 60.0)
    look_s: float = 1.0
    shadow: bool = False
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, float] = field(default_factory=dict)
    _not_before: dict[str, float] = field(default_factory=dict)
    _waits: dict[str, float] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Have the pending pods looked at soon."""
        self._wake.set()

    async def attend(self) -> None:
        """Preempt until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.look_s):
                    await self._wake.wait()
            self._wake.clear()
            if self.watch.ready():
                await self.look()

    async def look(self) -> None:
        """Look at every pending pod once, the most important first."""
        pending = {pod.uid: pod for pod in self.decider.cache.pending if self._is_ours(pod)}
        for gone in self._seen.keys() - pending.keys():
            for table in (self._seen, self._not_before, self._waits):
                table.pop(gone, None)
        for pod in sorted(
            pending.values(), key=lambda pod: (-pod.priority, pod.created_s, pod.key)
        ):
            now = self.clock()
            settled = now - self._seen.setdefault(pod.uid, now) >= self.settle_s
            if settled and now >= self._not_before.get(pod.uid, 0.0):
                await self._attend(pod)

    def _is_ours(self, pod: PodRecord) -> bool:
        """Say whether the pod waits for an alignment: others are kube-scheduler's business."""
        return bool(
            pod.gpus
            and pod.refused
            and not pod.terminating
            and not pod.never_preempts
            and pod.requirement == TopologyRequirement.GUARANTEED
        )

    async def _attend(self, pod: PodRecord) -> None:
        cache = self.decider.cache
        nodes = [pod.nominated] if pod.nominated else list(cache.nodes.states)
        if pod.nominated and self._is_under_way(pod):
            return
        try:
            decision = self.decider.decide(pod, nodes, may_violate=False)
        except UndecidableError as error:
            self.telemetry.log("undecidable", verb="controller", pod=pod.key, error=str(error))
            self._back_off(pod)
            return
        if decision.node is None and pod.nominated:
            # The nominated node does not help any more; another may.
            decision = self._decide_anew(pod)
        if decision.node is not None and not decision.victims:
            # It fits as things are, so the scheduler is about to bind it.
            return
        self.telemetry.decided("controller", pod, decision, {"shadow": True} if self.shadow else {})
        if decision.node is None or self.shadow:
            self._back_off(pod)
            return
        await self._carry_out(pod, decision)

    def _decide_anew(self, pod: PodRecord) -> Decision:
        others = [name for name in self.decider.cache.nodes.states if name != pod.nominated]
        try:
            return self.decider.decide(pod, others, may_violate=False)
        except UndecidableError as error:
            return Decision(None, reasons=(str(error),))

    def _is_under_way(self, pod: PodRecord) -> bool:
        """Say whether pods of lower priority are on their way out of the nominated node.

        References:
            kubernetes v1.36, defaultpreemption, PodEligibleToPreemptOthers.
        """
        return any(
            other.terminating and other.priority < pod.priority
            for other in self.decider.cache.pods_on(pod.nominated)
        )

    async def _carry_out(self, pod: PodRecord, decision: Decision) -> None:
        """Nominate, then evict: a crash in between leaves a nomination, which is taken up again."""
        assert decision.node is not None
        try:
            if pod.nominated != decision.node:
                await self.watch.nominate(
                    pod.namespace, pod.name, pod.uid, pod.version, decision.node
                )
            for victim in decision.victims:
                await self._evict(victim)
        except httpx2.HTTPError as error:
            status = http_status(error)
            result = {409: "conflict", 429: "budget"}.get(status, "error")
            self.telemetry.evicted(result)
            self.telemetry.log("refused", pod=pod.key, status=status, error=str(error)[:200])
            self._back_off(pod)
            return
        self._waits.pop(pod.uid, None)
        # Until the watch shows what was done, the same must not be decided again.
        self._not_before[pod.uid] = self.clock() + self.settle_s

    async def _evict(self, victim: PodRecord) -> None:
        try:
            await self.watch.evict(victim.namespace, victim.name, victim.uid)
            self.decider.cache.mark_terminating(victim.uid)
            self.telemetry.evicted("evicted")
        except httpx2.HTTPError as error:
            # One that is gone already is what was wanted.
            if http_status(error) != 404:
                raise
            self.telemetry.evicted("gone")

    def _back_off(self, pod: PodRecord) -> None:
        first, longest = self.backoff_s
        wait = self._waits.get(pod.uid, first)
        self._not_before[pod.uid] = self.clock() + wait
        self._waits[pod.uid] = min(2 * wait, longest)
