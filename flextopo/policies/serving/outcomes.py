"""What became of evictions: whether the pod they were for got what they freed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.telemetry import ELSEWHERE, GONE, NEEDED, SPARE, TAKEN

SETTLED_S = 5.0
"""For so long it may not be known who has what was freed."""
FORGET_S = 3600
"""A pod that is still pending so long after its evictions is not followed any further."""


@dataclass(frozen=True, slots=True, eq=False)
class _Victim:
    """A pod that was to go, and what it held: a bit mask of GPUs, cores by NUMA node."""

    key: str
    uid: str
    gpus: int
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Eviction:
    """Whom a decision has had evicted, and where; for which pod, of what priority, beside which others."""

    pod: str
    node: str
    priority: int
    victims: dict[str, _Victim]
    others: set[str]
    at_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Unused:
    """An eviction that the pod it was for made no use of: why, since when, and uids of who might have."""

    eviction: _Eviction
    fate: str
    at_s: float
    others: set[str]


def _sums(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(first, second, fillvalue=0)))


class Outcomes:
    """Follows pods whose victims were named until they are bound or gone.

    Args:
        decider: over the cluster as the watch shows it.
        report: is told the fate of evictions, and of how many.
        log: writes a line of the log for evictions in vain, None = nobody does.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        decider: Decider,
        report: Callable[[str, int], None],
        log: Callable[..., None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decider, self._report, self._log, self._clock = decider, report, log, clock
        self._open: dict[str, _Eviction] = {}
        self._unused: list[_Unused] = []

    def evicted(self, preemptor: PodRecord, decision: Decision) -> None:
        """Begin to follow a decision that is about to be carried out, or answered."""
        node = decision.node
        if node is None or not decision.victims:
            return
        known = self._open.pop(preemptor.uid, None)
        victims = dict(known.victims) if known is not None and known.node == node else {}
        if known is not None and known.node != node:
            self._is_unused(known, ELSEWHERE)
        cache = self._decider.cache
        others = {pod.uid for pod in cache.book.on(node) if pod.node}
        if known is not None and known.node == node:
            others = known.others
        state = cache.nodes.states.get(node)
        for victim in decision.victims:
            held = state.holding(victim.uid) if state is not None else None
            victims[victim.uid] = _Victim(victim.key, victim.uid, *(held or (0, ())))
        key, priority = preemptor.key, preemptor.priority
        self._open[preemptor.uid] = _Eviction(key, node, priority, victims, others, self._clock())

    def stayed(self, preemptor: PodRecord, victims: Sequence[PodRecord]) -> None:
        """Take back those who were not told to go after all: whatever becomes of them, it was not for that pod."""
        entry = self._open.get(preemptor.uid)
        known = entry.victims if entry is not None else {}
        for victim in victims:
            known.pop(victim.uid, None)

    def seen(self) -> None:
        """Look at the pods as they are now."""
        for uid, entry in list(self._open.items()):
            pod = self._decider.cache.pods.get(uid)
            if pod is not None and not pod.node and not pod.finished:
                if self._clock() - entry.at_s > FORGET_S:
                    del self._open[uid]
                continue
            del self._open[uid]
            if pod is None or not pod.node:
                self._is_unused(entry, GONE)
            elif pod.node != entry.node:
                self._is_unused(entry, ELSEWHERE)
            else:
                went = self._that_went(entry)
                spare = [one for one in went if self._could_have_stayed(pod, one)]
                self._tell(SPARE, entry, spare)
                self._tell(NEEDED, entry, [one for one in went if one not in spare])
        waiting, self._unused = self._unused, []
        for one in waiting:
            self._tell_unused(one)

    def _could_have_stayed(self, pod: PodRecord, victim: _Victim) -> bool:
        return self._decider.room.fits_beside(pod, victim.gpus, victim.cores)

    def _is_unused(self, entry: _Eviction, fate: str) -> None:
        cache = self._decider.cache
        others = {pod.uid for pod in [*cache.book.pending.values(), *cache.book.on(entry.node)]}
        self._unused.append(_Unused(entry, fate, self._clock(), others - entry.others))

    def _tell_unused(self, unused: _Unused) -> None:
        """Tell of evictions that the pod they were for made no use of: a more important one may have."""
        entry = unused.eviction
        if self._clock() - unused.at_s < SETTLED_S and self._is_open(entry):
            self._unused.append(unused)
            return
        went = self._that_went(entry)
        taken = self._taken(unused, went)
        self._tell(TAKEN, entry, taken)
        self._tell(unused.fate, entry, [one for one in went if one not in taken])

    def _is_open(self, entry: _Eviction) -> bool:
        """Say whether it is about to be known who has what was freed."""
        cache = self._decider.cache
        state = cache.nodes.states.get(entry.node)
        coming = cache.reservations.coming_to(entry.node)
        return state is not None and (
            self._decider.places.is_unsettled(state)
            or any(pod.priority > entry.priority for pod in coming)
        )

    def _taken(self, unused: _Unused, went: Sequence[_Victim]) -> list[_Victim]:
        """Return those whose GPUs a more important pod has, which came since and would not fit beside them.

        Or which is nominated for them: that is why the other one went elsewhere, before it is bound.
        """
        cache, found, entry = self._decider.cache, list[_Victim](), unused.eviction
        state = cache.nodes.states.get(entry.node)
        if state is None or state.broken:
            return found
        takers = [
            (pod, (state.holding(pod.uid) or (0,))[0])
            for pod in state.sure.records
            if pod.uid in unused.others and pod.priority > entry.priority
        ]
        gone = [
            one for one in went if one.uid not in cache.pods
        ]  # others are still on their way out
        idle = [one for one in gone if one.gpus and not one.gpus & ~state.counted.gpu_free]
        gpus, cores = 0, tuple[int, ...]()
        for one in idle:
            gpus, cores = gpus | one.gpus, _sums(cores, one.cores)
        for one in gone:
            users = [pod for pod, held in takers if held & one.gpus]
            more = _sums(cores, one.cores)
            if all(self._decider.room.fits_beside(pod, gpus | one.gpus, more) for pod in users):
                gpus, cores = (gpus | one.gpus, more) if users else (gpus, cores)
            else:
                found.append(one)
        return found

    def _that_went(self, entry: _Eviction) -> list[_Victim]:
        """Return the victims that were evicted indeed: not all that is answered is carried out."""
        pods = self._decider.cache.pods
        now = [(victim, pods.get(victim.uid)) for victim in entry.victims.values()]
        return [victim for victim, pod in now if pod is None or pod.terminating or pod.finished]

    def _tell(self, fate: str, entry: _Eviction, victims: Sequence[_Victim]) -> None:
        if not victims:
            return
        self._report(fate, len(victims))
        if self._log is not None and fate not in (NEEDED, TAKEN):
            names = [victim.key for victim in victims]
            self._log("in_vain", fate=fate, pod=entry.pod, node=entry.node, victims=names)
