"""Preempt for pods that only topology keeps pending, where kube-scheduler itself does not.

Up to version 1.37 kube-scheduler calls no extender when the pod fits by counts. This controller
nominates a node and evicts through the Eviction API; the scheduler binds once the victims are gone.
For a gang it does so on all its nodes, once all members are there, or on none. And whenever a pod that
was refused does fit, it has kube-scheduler look again, which would not see that by itself for minutes.

All that has happened stands in the cluster: the nomination on the pod, the victims' deletion. So a
controller that is started anew goes on where the last one was stopped.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2

from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.gang_decider import GangDecider
from flextopo.policies.serving.gangs import Preemptors, gang_key, gather
from flextopo.policies.serving.holds import DeviceHolds
from flextopo.policies.serving.kube import KubeWatch, http_status
from flextopo.policies.serving.outcomes import Outcomes
from flextopo.policies.serving.places import FRESH_S
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.reservations import HELD_BACK_MOST_S, PLAN_S, SPARES_S
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
HEARD_S = 0.1
"""Within so many seconds an extender in another process knows that a pod was nominated, or kube-scheduler's own
nomination is here. Nobody is evicted before that, where kube-scheduler asks another process."""
MOST_WOKEN = 10
"""Pods at most that are told at one look that what they wait for may be over: each takes a request."""
MOST_AT_ONCE = 200
"""Pending pods that are looked at before verbs and health have their turn."""
ROUNDS = 2
"""So many times others go for a pod with claims whose devices others are given, while such wait for any."""
Parts = Sequence[tuple[PodRecord, Decision]]
"""Pods that start together, and what was decided about each."""


@dataclass
class _Waiting:
    """What is remembered of who waits for a place; times as the controller's clock."""

    since: float
    not_before: float = 0.0
    wait_s: float = 0.0
    looked: int = 0
    aside: set[str] = field(default_factory=set)
    touched: float | None = None
    rounds: int = 0
    told: tuple[str | None, ...] = ()
    why: tuple[str, str] = ("", "")


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
    _woken: int = 0

    @property
    def gangs(self) -> GangDecider:
        """Decides about pods that start together."""
        return GangDecider(self.decider)

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
        """Look at all who are pending once, the most important first."""
        found: dict[str, Preemptors] = {}
        for number, pod in enumerate([*self.decider.cache.book.pending.values()], 1):
            if number % MOST_AT_ONCE == 0:
                await asyncio.sleep(0)
            each = self._asking(pod) if gang_key(pod.group) not in found else None
            if each is not None:
                found[each.key] = each
        for gone in self._waiting.keys() - found.keys():
            del self._waiting[gone]
        self._woken = 0
        for released in await self.holds.look() if self.holds is not None else ():
            await self._touch(released)
        for each in sorted(found.values(), key=lambda each: each.order):
            # Much may have happened since the list was made: each request to the apiserver takes time.
            if not self.leads():
                return
            leader = self.decider.cache.pods.get(each.leader.uid)
            again = self._asking(leader) if leader is not None and not leader.node else None
            if again is not None and again.key == each.key:
                await self._look_at(again)
                await asyncio.sleep(0)  # so that verbs and health wait for one pod at most

    async def _look_at(self, asking: Preemptors) -> None:
        """Wake pods that fit; preempt for those that have waited for long enough."""
        now = self.clock()
        waiting = self._waiting.setdefault(asking.key, _Waiting(now))
        if asking.group and not self._is_complete(asking, waiting):
            waiting.since = now
            return
        leader = asking.leader
        if not (asking.group or leader.claims or leader.guaranteed):
            # What it waits for ends with time, which is no event; kube-scheduler preempts for it by itself.
            if now - waiting.since >= SPARES_S and self._woken < MOST_WOKEN:
                self._woken += await self._wake_up(asking, waiting, SPARES_S)
            return
        if await self._fits_now(asking, waiting):
            return
        robbed = self.holds is not None and any(map(self.holds.was_just_robbed, asking.members))
        if robbed and waiting.rounds < ROUNDS:
            # The others are held, and one more is to be freed: nothing is to be waited for.
            waiting.not_before = 0.0
        claims = all(pod.claims for pod in asking.members)
        settle_s = min(self.settle_s, DRA_SETTLE_S) if claims else self.settle_s
        if now - waiting.since >= settle_s and now >= waiting.not_before:
            await self._attend(asking, waiting, robbed)

    def _asking(self, pod: PodRecord) -> Preemptors | None:
        """Return who starts together with a pod; None where that is kube-scheduler's business.

        A pod alone is ours that waits for an alignment, or for devices by a claim; of those that start
        together all online ones are, since kube-scheduler looks at one at a time. One that was refused what
        others are about to get, or to leave, is only told that this may be over.
        """
        put_off = self.decider.cache.reservations.is_put_off(pod.uid)
        passing = (pod.passing or put_off) and not pod.group
        if not pod.gpus or not (pod.claims or pod.online or passing):
            return None
        found = gather(self.decider.cache, pod)
        ours = pod.claims or pod.guaranteed or passing
        return found if found.group or (ours and self._may_attend(pod)) else None

    def _may_attend(self, pod: PodRecord) -> bool:
        """Say whether a pod was refused for what somebody here knows of."""
        unseen = STORAGE if self.decider.cache.volumes.known else VOLUMES
        return bool(
            pod.refused
            and not unseen.search(pod.refused)
            and pod.steerable
            and not pod.terminating
            and pod.scheduler in self.schedulers
        )

    def _is_complete(self, gang: Preemptors, waiting: _Waiting) -> bool:
        """Say whether a gang can be decided about; each new reason why not is told once."""
        why = gang.why_not(self._may_attend)
        if why != waiting.why:
            waiting.why = why
            if any(why):
                self.telemetry.gang_waits(gang.group, *why)
        return not any(why)

    async def _fits_now(self, asking: Preemptors, waiting: _Waiting) -> bool:
        """Say whether all fit as things are; then kube-scheduler is told to look again."""
        cache = self.decider.cache
        if waiting.touched is None:
            names, waiting.looked = cache.nodes.changed_since(waiting.looked)
        else:
            names = list(cache.nodes.states)
        # Of those that were left aside time alone may be the end.
        looked = {*names, *waiting.aside}
        names = self._without_spoiled(asking, sorted(looked), waiting)
        waiting.aside = looked.difference(names)
        if not names or not self._fit(asking, names):
            waiting.touched = None
            return False
        await self._wake_up(asking, waiting)
        return True

    async def _wake_up(self, asking: Preemptors, waiting: _Waiting, first_s: float = 1.0) -> bool:
        """Have kube-scheduler look at them again; return whether it was told so, and not just a moment ago.

        Args:
            asking: the pods.
            waiting: what is remembered of them.
            first_s: until the second time; then it is twice as long each time.
        """
        now = self.clock()
        if waiting.touched is not None and now - waiting.touched < max(waiting.wait_s, first_s):
            return False
        waiting.wait_s = min(2 * waiting.wait_s, self.backoff_s[1]) if waiting.touched else first_s
        waiting.touched = now
        self.telemetry.log("woken", pod=asking.name, shadow=self.shadow)
        for pod in () if self.shadow else asking.members:
            await self._touch(pod)
        return True

    def _without_spoiled(
        self, asking: Preemptors, names: list[str], waiting: _Waiting
    ) -> list[str]:
        """Return the nodes without those that the extender refuses since others might lose their places there.

        That is over in a moment, for which a pod alone waits; but not for ever, nor does a gang.
        """
        if asking.group or self.clock() - waiting.since < HELD_BACK_MOST_S:
            return names
        return [name for name in names if not self.decider.places.spoiled(name, asking.leader)]

    def _fit(self, asking: Preemptors, changed: list[str]) -> bool:
        """Say whether all fit, a pod alone on one of the nodes that have changed."""
        if len(asking.members) > 1:
            return self.gangs.fits(asking)
        pod = asking.leader
        reach, traits = self.decider.cache.reach_of(pod), self.decider.cache.hosts.traits
        return any(
            not reach.why_not(name)
            and asking.may_lie_on(name, traits)
            and self.decider.room.fits(pod, state)
            for name, state in self.decider.places.states_of(changed, pod).items()
        )

    async def _touch(self, pod: PodRecord) -> None:
        try:
            await self.watch.touch(pod)
        except httpx2.HTTPError as error:
            self.telemetry.log("refused", pod=pod.key, error=str(error)[:200])

    async def _attend(self, asking: Preemptors, waiting: _Waiting, robbed: bool) -> None:
        for pod in asking.members:
            held = self.holds is not None and self.holds.holds_for(pod)
            kept = not robbed and self.decider.places.kept_for(pod, evicts=True)
            if pod.never_preempts or held or kept:
                # (What it had evicted is on its way out: kube-scheduler, too, waits for that.)
                if self.decider.places.are_going(pod):
                    self.decider.cache.reservations.renew(pod.uid, PLAN_S)
                return
        if waiting.rounds >= ROUNDS and self._has_rivals(asking):
            # What they leave goes to these again: where no rule holds it, or nobody heeds rules.
            self.telemetry.log("rivals", pod=asking.name, evicted=waiting.rounds)
            self._back_off(waiting)
            return
        nodes = self._without_spoiled(asking, self.gangs.nodes(asking), waiting)
        fresh = self.clock() - waiting.since < FRESH_S
        if fresh and self._is_unsettled(asking, nodes):
            # Where pods are that were bound lately is about to be known: nobody has to go for that.
            # Where some are bound all the time, that is no reason for ever.
            waiting.not_before = self.clock() + self.backoff_s[0]
            return
        decision = self._decide(asking, nodes)
        if decision is None or not self._on_one_numa(asking, decision):
            self._back_off(waiting)
            return
        shadow = {"shadow": True} if self.shadow else {}
        self.telemetry.decided("controller", asking.leader, decision, shadow)
        if decision.node is None or self.shadow:
            self._back_off(waiting)
            return
        await self._carry_out(asking, decision, waiting)

    def _has_rivals(self, asking: Preemptors) -> bool:
        """Say whether less important pods wait for devices like those of a pod with claims."""
        priority = asking.leader.priority
        return any(pod.claims for pod in asking.members) and any(
            pod.claims and pod.gpus and pod.refused and pod.priority < priority
            for pod in self.decider.cache.book.pending.values()
        )

    def _is_unsettled(self, asking: Preemptors, nodes: list[str]) -> bool:
        return any(
            self.decider.places.is_unsettled(state)
            and any(self.decider.room.suffices(state, p) for p in asking.members)
            for state in self.gangs.states(asking, nodes).values()
        )

    def _on_one_numa(self, asking: Preemptors, decision: Decision) -> bool:
        """Say whether whose claims want all GPUs on one NUMA node get them there."""
        parts = decision.parts(asking.leader)
        return all(part.level in ONE_NUMA for pod, part in parts if pod.one_numa)

    def _decide(self, asking: Preemptors, nodes: list[str]) -> Decision | None:
        """Return what to do, None = nothing can be decided; nodes that are kept go first."""
        places = {self.gangs.place_of(pod) for pod in asking.members}
        kept = [name for name in nodes if name in places]
        others = [name for name in nodes if name not in places]
        if len(asking.members) > 1:
            # All places of a gang, or all nodes: some of them beside new ones may be best.
            kept, others = (kept, nodes) if len(kept) == len(places) else ([], nodes)
        # Where somebody has not gone long after the time was over, more would hardly do.
        stuck = [name for name in kept if self.decider.places.is_stuck(name)]
        kept = [name for name in kept if name not in stuck]
        found = None
        for names in (kept, others, stuck):
            if names and (found is None or found.node is None):
                try:
                    found = self.gangs.decide(asking, names)
                except UndecidableError as error:
                    why = str(error)
                    self.telemetry.log("undecidable", verb="controller", pod=asking.name, error=why)
        if found is None or not found.victims or len(asking.members) > 1 or asking.leader.claims:
            return found
        return self.decider.waits_for_room(asking.leader) or found

    async def _carry_out(self, asking: Preemptors, decision: Decision, waiting: _Waiting) -> None:
        """Nominate, then evict: a crash in between leaves a nomination, which is taken up again."""
        parts = list(decision.parts(asking.leader))
        for pod, part in parts:
            if self.outcomes is not None:
                self.outcomes.evicted(pod, part)
        # The extender is asked meanwhile: it must not name these victims, nor others for these pods.
        reservations, uids = self.decider.cache.reservations, {pod.uid for pod, _ in parts}
        reservations.under_way |= uids
        self._remember(parts, decision.victims)
        went: list[PodRecord] = []
        done = False
        try:
            await self._keep(parts)
            overtaken = await self._hear(asking, parts) if decision.victims else False
            if overtaken:
                await self._drop(parts)
                waiting.not_before = self.clock() + self.settle_s
            done = not overtaken and await self._evict_all(parts, decision.victims, went)
        except httpx2.HTTPError as error:
            await self._refused(asking, parts, error)
            self._back_off(waiting)
        finally:
            reservations.under_way -= uids
            self._remember(parts, went, done=done)
            self._tell_outcomes(parts, went)
        if not done and not went:
            await self._let_go(parts)
        if done:
            waiting.wait_s = 0.0
            # Until the watch shows what was done, the same must not be decided again.
            waiting.not_before = self.clock() + self._pause_after(asking, waiting)
            waiting.rounds += 1
            places = tuple(part.node for _, part in parts)
            # That it still waits for the same place is no news.
            if decision.victims or places != waiting.told:
                await self._tell(parts)
            waiting.told = places

    def _tell_outcomes(self, parts: Parts, went: Sequence[PodRecord]) -> None:
        """Tell who follows what becomes of evictions of those that were decided and not carried out."""
        gone = {victim.uid for victim in went}
        for pod, part in parts:
            if self.outcomes is not None:
                self.outcomes.stayed(pod, [one for one in part.victims if one.uid not in gone])

    def _pause_after(self, asking: Preemptors, waiting: _Waiting) -> float:
        """Return how long nobody else goes; it doubles where devices that were freed went to others.

        Where no rule can hold them, any pod that waits for a device may be faster each time.
        """
        claims = all(pod.claims for pod in asking.members)
        longer = self.settle_s * 2.0 ** min(waiting.rounds, 30) if claims else 0.0
        return max(self.settle_s, min(longer, self.backoff_s[1]))

    def _remember(self, parts: Parts, victims: Sequence[PodRecord], *, done: bool = True) -> None:
        """Keep the place of each pod that still waits, if all who had to go did, or any there."""
        cache = self.decider.cache
        for pod, part in parts:
            uids = [victim.uid for victim in victims if victim.node == part.node]
            now = cache.pods.get(pod.uid)
            if now is not None and not now.node and (uids or done):
                # kube-scheduler takes a nomination back that it did not make, so it is remembered here.
                cache.reservations.answer(pod, part.node or "", uids, PLAN_S)
            else:
                cache.reservations.forget_answer(pod.uid)

    async def _evict_all(
        self, parts: Parts, victims: Sequence[PodRecord], went: list[PodRecord]
    ) -> bool:
        """Evict, and note who went; return whether all did.

        Nobody goes any more where whoever leads by now takes it up, nor for a pod that is gone; nor where
        kube-scheduler was faster, and has told one of them to go, or given a device to another pod.

        Raises:
            httpx2.HTTPError: the apiserver refused.
        """
        if self._is_too_late(parts, victims):
            await self._drop(parts)
            return False
        for victim in victims:
            if not self.leads() or self._is_over(parts):
                return False
            await self._evict(victim)
            went.append(victim)
        return True

    async def _hear(self, asking: Preemptors, parts: Parts) -> bool:
        """Listen for a moment, where an extender in another process may have been asked just before.

        Returns:
            Whether kube-scheduler has one of the pods go elsewhere, or all fit without anybody going.
        """
        cache = self.decider.cache
        if cache.reservations.is_asked() or all(pod.claims for pod, _ in parts):
            return False
        await asyncio.sleep(HEARD_S)
        elsewhere = any(
            cache.pods.get(pod.uid, pod).nominated not in ("", part.node) for pod, part in parts
        )
        return elsewhere or self._fit(asking, [part.node for _, part in parts if part.node])

    def _is_too_late(self, parts: Parts, victims: Sequence[PodRecord]) -> bool:
        """Say whether a victim is already gone for another, or a device that was free is another's."""
        uids = {victim.uid for victim in victims}
        now = [self.decider.cache.pods.get(uid) for uid in uids]
        robbed = self.holds is not None and any(
            self.holds.is_robbed(pod.uid, uids) for pod, _ in parts
        )
        return robbed or any(victim is None or victim.terminating for victim in now)

    def _is_over(self, parts: Parts) -> bool:
        """Say whether one of the pods is gone, or all of them are bound."""
        now = [self.decider.cache.pods.get(pod.uid) for pod, _ in parts]
        gone = any(pod is None or pod.terminating for pod in now)
        return gone or all(pod is None or pod.node for pod in now)

    async def _refused(self, asking: Preemptors, parts: Parts, error: httpx2.HTTPError) -> None:
        """Count and log what the apiserver refused, and let go of the devices."""
        status = http_status(error)
        self.telemetry.evicted({409: "conflict", 429: "budget"}.get(status, "error"))
        self.telemetry.log("refused", pod=asking.name, status=status, error=str(error)[:200])
        await self._drop(parts)

    async def _drop(self, parts: Parts) -> None:
        """Let go of the devices that are held for pods whose victims stay."""
        for pod, _ in parts:
            if self.holds is not None:
                await self.holds.drop(pod.uid)

    async def _let_go(self, parts: Parts) -> None:
        """Have an extender elsewhere keep the places no longer."""
        for pod, _ in parts:
            now = self.decider.cache.pods.get(pod.uid)
            if now is not None and now.attended_on and not now.node:
                try:
                    await self.watch.let_go(pod)
                except httpx2.HTTPError as error:
                    self.telemetry.log("refused", pod=pod.key, error=str(error)[:200])

    async def _keep(self, parts: Parts) -> None:
        """Nominate each pod for its place, and hold the devices there that it claims.

        Raises:
            httpx2.HTTPError: the apiserver refused.
        """
        for pod, part in parts:
            if part.node is not None and (pod.nominated != part.node or part.victims):
                await self.watch.nominate(pod, part.node, self.decider.cache.clock())
        for pod, part in parts:
            if self.holds is not None and part.node is not None and pod.claims:
                await self.holds.hold(pod, part.node, part.gpus)

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

    async def _tell(self, parts: Parts) -> None:
        """Write Events about what was done; that one cannot be written changes nothing."""
        notes = []
        for pod, part in parts:
            level = (part.level or "unknown").replace("_", " ")
            why = f"so that {pod.key} is aligned on {level} level of node {part.node}"
            names = ", ".join(victim.key for victim in part.victims) or "nobody"
            notes += [
                (victim, "Preempted", f"evicted by flextopo, {why}") for victim in part.victims
            ]
            notes.append((pod, "Nominated", f"node {part.node}, {level} level; evicted: {names}"))
        for about, reason, note in notes:
            try:
                await self.watch.tell(about, reason, note)
            except httpx2.HTTPError as error:
                self.telemetry.log("event_error", pod=about.key, error=str(error)[:200])

    def _back_off(self, waiting: _Waiting) -> None:
        first, longest = self.backoff_s
        waiting.wait_s = min(2 * waiting.wait_s, longest) if waiting.wait_s else first
        waiting.not_before = self.clock() + waiting.wait_s
