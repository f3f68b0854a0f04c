"""Preempt for pods that only topology keeps pending, where kube-scheduler itself does not.

Up to version 1.37 kube-scheduler calls no extender when the pod fits by counts. This controller
nominates a node and evicts through the Eviction API; the scheduler binds once the victims are gone.
And whenever a pod that was refused does fit, it has kube-scheduler look again, which would not see
that by itself for minutes.

All that has happened stands in the cluster: the nomination on the pod, the victims' deletion. So a
controller that is started anew goes on where the last one was stopped.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2

from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.policies.serving.cache import FRESH_S
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.holds import DeviceHolds
from flextopo.policies.serving.kube import KubeWatch, http_status
from flextopo.policies.serving.outcomes import Outcomes
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.runner import UndecidableError
from flextopo.policies.serving.telemetry import Telemetry

VOLUMES = re.compile("volume|unbound|free storage", re.IGNORECASE)
"""What kube-scheduler says of pods whose volumes keep them from nodes; without a watch of volumes nobody
here knows which ones."""
STORAGE = re.compile("max volume count|free storage", re.IGNORECASE)
"""What it says where there is no room for volumes, which nobody here knows of at all."""
ONE_NUMA = ("island", "numa")
"""Levels at which all GPUs are on one NUMA node."""
DRA_SETTLE_S = 0.5
"""For a pod with claims kube-scheduler never preempts, so there is nobody to wait for."""
PLAN_S = 60.0
"""A place is kept so long for a pod after its victims were told to go."""


@dataclass
class _Waiting:
    """What is remembered of a pod that waits for its alignment; times as the controller's clock."""

    since: float
    not_before: float = 0.0
    wait_s: float = 0.0
    looked: int = 0
    touched: float | None = None


@dataclass
class Controller:
    """Looks at pending pods after every change, and at least every `look_s` seconds.

    Attributes:
        decider: decides.
        watch: carries out.
        telemetry: counts and logs.
        schedulers: names of the schedulers whose pods it looks after.
        leads: says whether this process may act.
        settle_s: a pod must have been refused for so long, so that kube-scheduler's own preemption
            goes first.
        backoff_s: first and longest wait after a refused eviction; it doubles in between.
        look_s: longest time between two looks.
        pause_s: shortest.
        shadow: log what would be done, and do nothing.
        outcomes: follows what becomes of evictions.
        holds: keeps devices that victims free, where drivers offer devices.
        clock: seconds that only grow.
    """

    decider: Decider
    watch: KubeWatch
    telemetry: Telemetry
    schedulers: Collection[str] = ("default-scheduler",)
    leads: Callable[[], bool] = lambda: True
    settle_s: float = 3.0
    backoff_s: tuple[float, float] = (1.0, 60.0)
    look_s: float = 1.0
    pause_s: float = 0.02
    shadow: bool = False
    outcomes: Outcomes | None = None
    holds: DeviceHolds | None = None
    clock: Callable[[], float] = time.monotonic
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Have the pending pods looked at soon."""
        self._wake.set()

    async def attend(self) -> None:
        """Preempt until cancelled."""
        led = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.look_s):
                    await self._wake.wait()
            # What comes together, such as the events of one binding, is looked at together.
            await asyncio.sleep(self.pause_s)
            self._wake.clear()
            leads = self.watch.ready() and self.leads()
            if leads and not led and self.holds is not None and not self.shadow:
                await self.holds.clear()
            led = leads
            if leads:
                await self._look_anyhow()

    async def _look_anyhow(self) -> None:
        """Look, and go on whatever comes of it: one odd pod may not keep the others waiting."""
        try:
            await self.look()
        except Exception as error:  # noqa: BLE001
            self.telemetry.log(
                "failure", verb="controller", error=f"{type(error).__name__}: {error}"
            )
            await asyncio.sleep(self.look_s)

    async def look(self) -> None:
        """Look at every pending pod once, the most important first."""
        pending = {pod.uid: pod for pod in self.decider.cache.pending if self._is_ours(pod)}
        for gone in self._waiting.keys() - pending.keys():
            del self._waiting[gone]
        for released in await self.holds.look() if self.holds is not None else ():
            await self._touch(released)
        queue = sorted(pending.values(), key=lambda pod: (-pod.priority, pod.created_s, pod.key))
        for uid in [pod.uid for pod in queue]:
            # Much may have happened since the list was made: each request to the apiserver takes time.
            pod, now = self.decider.cache.pods.get(uid), self.clock()
            if pod is None or pod.node or not self._is_ours(pod):
                continue
            waiting = self._waiting.setdefault(pod.uid, _Waiting(now))
            if await self._fits_now(pod, waiting):
                continue
            settle_s = min(self.settle_s, DRA_SETTLE_S) if pod.claims else self.settle_s
            if now - waiting.since >= settle_s and now >= waiting.not_before:
                await self._attend(pod, waiting)

    def _is_ours(self, pod: PodRecord) -> bool:
        """Say whether the pod waits for an alignment, or for devices by a claim.

        Others are kube-scheduler's business.
        """
        unseen = STORAGE if self.decider.cache.volumes.known else VOLUMES
        return bool(
            pod.gpus
            and pod.refused
            and not unseen.search(pod.refused)
            and pod.steerable
            and not pod.terminating
            and pod.scheduler in self.schedulers
            and (pod.claims or pod.requirement == TopologyRequirement.GUARANTEED)
        )

    async def _fits_now(self, pod: PodRecord, waiting: _Waiting) -> bool:
        """Say whether the pod fits as things are; then kube-scheduler is told to look again."""
        cache, now = self.decider.cache, self.clock()
        if waiting.touched is None:
            names, waiting.looked = cache.nodes.changed_since(waiting.looked)
        else:
            names = list(cache.nodes.states)
        reach = cache.reach_of(pod) if names else None
        fits = reach is not None and any(
            not reach.why_not(name) and self.decider.fits(pod, state)
            for name, state in cache.states_of(names, pod).items()
        )
        if not fits:
            waiting.touched = None
            return False
        if waiting.touched is not None and now - waiting.touched < max(waiting.wait_s, 1.0):
            return True
        waiting.wait_s = min(2 * waiting.wait_s, self.backoff_s[1]) if waiting.touched else 1.0
        waiting.touched = now
        self.telemetry.log("woken", pod=pod.key, shadow=self.shadow)
        if not self.shadow:
            await self._touch(pod)
        return True

    async def _touch(self, pod: PodRecord) -> None:
        try:
            await self.watch.touch(pod)
        except httpx2.HTTPError as error:
            self.telemetry.log("refused", pod=pod.key, error=str(error)[:200])

    async def _attend(self, pod: PodRecord, waiting: _Waiting) -> None:
        held = self.holds is not None and self.holds.holds_for(pod)
        if pod.never_preempts or held or self.decider.cache.kept_for(pod):
            # (What it had evicted is on its way out: kube-scheduler, too, waits for that.)
            return
        reach = self.decider.cache.reach_of(pod)
        nodes = [name for name in self.decider.cache.nodes.states if not reach.why_not(name)]
        fresh = self.clock() - waiting.since < FRESH_S
        if fresh and self._is_unsettled(pod, nodes):
            # Where pods are that were bound lately is about to be known: nobody has to go for that.
            # Where some are bound all the time, that is no reason for ever.
            waiting.not_before = self.clock() + self.backoff_s[0]
            return
        decision = self._decide(pod, nodes)
        if decision is None or (pod.one_numa and decision.level not in ONE_NUMA):
            self._back_off(waiting)
            return
        self.telemetry.decided("controller", pod, decision, {"shadow": True} if self.shadow else {})
        if decision.node is None or self.shadow:
            self._back_off(waiting)
            return
        await self._carry_out(pod, decision, waiting)

    def _is_unsettled(self, pod: PodRecord, nodes: list[str]) -> bool:
        cache = self.decider.cache
        return any(
            cache.is_unsettled(state) and self.decider.has_room(state, pod)
            for state in cache.states_of(nodes, pod).values()
        )

    def _decide(self, pod: PodRecord, nodes: list[str]) -> Decision | None:
        """Return what to do, None = nothing can be decided; a node that is kept goes first."""
        told = self.decider.cache.reservations.answered(pod.uid)
        node = told[0] if told is not None else pod.nominated
        kept = [name for name in nodes if name == node]
        others = [name for name in nodes if name != node]
        found = None
        for names in (kept, others):
            if names and (found is None or found.node is None):
                try:
                    found = self.decider.decide(pod, names, may_violate=False)
                except UndecidableError as error:
                    why = str(error)
                    self.telemetry.log("undecidable", verb="controller", pod=pod.key, error=why)
        return found

    async def _carry_out(self, pod: PodRecord, decision: Decision, waiting: _Waiting) -> None:
        """Nominate, then evict: a crash in between leaves a nomination, which is taken up again."""
        assert decision.node is not None
        if self.outcomes is not None:
            self.outcomes.evicted(pod, decision)
        try:
            if pod.nominated != decision.node:
                await self.watch.nominate(
                    pod.namespace, pod.name, pod.uid, pod.version, decision.node
                )
            if self.holds is not None and pod.claims:
                await self.holds.hold(pod, decision.node, decision.gpus)
            for victim in decision.victims:
                await self._evict(victim)
        except httpx2.HTTPError as error:
            status = http_status(error)
            result = {409: "conflict", 429: "budget"}.get(status, "error")
            self.telemetry.evicted(result)
            self.telemetry.log("refused", pod=pod.key, status=status, error=str(error)[:200])
            if self.holds is not None:
                await self.holds.drop(pod.uid)
            self._back_off(waiting)
            return
        waiting.wait_s = 0.0
        # kube-scheduler takes a nomination back that it did not make, so it is remembered here.
        uids = [victim.uid for victim in decision.victims]
        self.decider.cache.reservations.answer(pod, decision.node, uids, PLAN_S)
        # Until the watch shows what was done, the same must not be decided again.
        waiting.not_before = self.clock() + self.settle_s
        await self._tell(pod, decision)

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

    async def _tell(self, pod: PodRecord, decision: Decision) -> None:
        """Write Events about what was done; that one cannot be written changes nothing."""
        level = (decision.level or "unknown").replace("_", " ")
        why = f"so that {pod.key} is aligned on {level} level of node {decision.node}"
        names = ", ".join(victim.key for victim in decision.victims) or "nobody"
        notes = [
            (victim, "Preempted", f"evicted by flextopo, {why}") for victim in decision.victims
        ]
        notes.append((pod, "Nominated", f"node {decision.node}, {level} level; evicted: {names}"))
        for about, reason, note in notes:
            try:
                await self.watch.tell(about, reason, note)
            except httpx2.HTTPError as error:
                self.telemetry.log("event_error", pod=about.key, error=str(error)[:200])

    def _back_off(self, waiting: _Waiting) -> None:
        first, longest = self.backoff_s
        waiting.wait_s = min(2 * waiting.wait_s, longest) if waiting.wait_s else first
        waiting.not_before = self.clock() + waiting.wait_s
