"""What was answered a moment ago and the watch does not show yet."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from flextopo.policies.serving.records import PodRecord

LET_IN_S = 5
"""A pod that was let in is bound within so many seconds, or somewhere else."""
ANSWER_S = 10
"""kube-scheduler carries out an answer within so many seconds, or not at all."""
PLAN_S = 60.0
"""A place is kept so long for a pod after a controller had others told to go."""
KEPT_S = 1.5
"""kube-scheduler has seen within so many seconds that a victim is gone."""
HELD_BACK_S = 3
"""For so long nobody is evicted for a pod that was refused what is about to be known."""
HELD_BACK_MOST_S = 20
"""For longer in all a pod is not held back: where pods come all the time, something always is."""
SPARES_S = 5
"""For so long a pod spares the place that is being freed for a less important one."""
ROOM_S = 40
"""For so long a pod waits for the room that others leave who are gone in Kubernetes' grace period."""
ASKED_S = 30
"""An extender that kube-scheduler has asked so lately is the one that it asks."""
FORGET_S = 600
"""What is known of a pod that nobody has asked about for so long is forgotten: it may be gone for long."""
MOST_UNALIGNED = 100
"""Nodes on which only alignment is in the way that are looked at beside those that kube-scheduler asks about."""


@dataclass(frozen=True, slots=True, eq=False)
class _LetIn:
    """A pod that may be bound to any of some nodes."""

    record: PodRecord
    nodes: frozenset[str]
    until_s: float
    narrowed: bool = False


@dataclass(slots=True, eq=False)
class _Answer:
    """A pod whose victims were named, and on which node."""

    pod: PodRecord
    node: str
    victims: tuple[str, ...]
    until_s: float
    noted: bool = False
    _record: PodRecord | None = None

    @property
    def record(self) -> PodRecord:
        """Return the pod as if it were nominated for the node; made when the answer is on its way."""
        if self._record is None:
            self._record = replace(self.pod, nominated=self.node)
        return self._record


class Reservations:
    """Places and victims promised to pods, each for some seconds.

    Args:
        clock: seconds that only grow.
        changed: is told the name of a node whose promises have changed.

    Attributes:
        least: the lowest priority of the pods that were promised a node, by its name.
        under_way: uids of the pods for which a controller in this process is evicting.
    """

    def __init__(self, clock: Callable[[], float], changed: Callable[[str], None]) -> None:
        self._clock, self._changed = clock, changed
        self._let_in: dict[str, _LetIn] = {}
        self._asked_s = -math.inf
        self._answers: dict[str, _Answer] = {}
        self._on: dict[str, dict[str, _Answer]] = {}
        self.least: dict[str, int] = {}
        self._priorities: Counter[int] = Counter()
        self.under_way: set[str] = set()
        self._ends: list[tuple[float, str]] = []
        self._held_back: dict[str, tuple[float, float]] = {}
        self._kept: dict[str, tuple[str, float]] = {}
        self._unaligned: dict[str, tuple[str, ...]] = {}
        self._put_off: set[str] = set()
        self._since: dict[str, dict[str, float]] = {}
        self._asked: OrderedDict[str, float] = OrderedDict()

    def _note(self, uid: str) -> float:
        """Take note that a pod is asked about, and return the time."""
        now_s = self._asked[uid] = self._clock()
        self._asked.move_to_end(uid)
        return now_s

    def _until(self, uid: str, seconds: float) -> float:
        """Return when something ends that is true of a pod for some seconds."""
        until_s = self._clock() + seconds
        heappush(self._ends, (until_s, uid))
        return until_s

    def asked(self) -> None:
        """Remember that kube-scheduler asks this process."""
        self._asked_s = self._clock()

    def let_in(self, pod: PodRecord, nodes: Iterable[str]) -> None:
        """Remember for some time that a pod may be bound to any of some nodes; none takes that back."""
        names = frozenset(nodes)
        if names:
            last = next(reversed(self._let_in.values()), None)
            if last is not None and last.nodes == names:
                names = last.nodes  # those of many pods are the same
            self._let_in[pod.uid] = _LetIn(pod, names, self._until(pod.uid, LET_IN_S))
        else:
            self._let_in.pop(pod.uid, None)

    def coming_to(self, node: str, but: str = "") -> Iterator[PodRecord]:
        """Yield the pods that may be on their way to a node, without the one of that uid."""
        for record, nodes in self.coming(but):
            if node in nodes:
                yield record

    def coming(self, but: str = "") -> list[tuple[PodRecord, frozenset[str]]]:
        """Return the pods that may be on their way to some nodes, and which, without the one of that uid."""
        now_s = self._clock()
        self._let_in = {uid: one for uid, one in self._let_in.items() if one.until_s >= now_s}
        return [(one.record, one.nodes) for uid, one in self._let_in.items() if uid != but]

    def is_asked(self) -> bool:
        """Say whether kube-scheduler asks this process, and not an extender in another."""
        return self._clock() - self._asked_s < ASKED_S

    def hold_back(self, uid: str) -> bool:
        """Remember that a pod was refused a node because of what is about to be known.

        Returns:
            Whether it is held back: not for ever.
        """
        now_s = self._note(uid)
        first_s, _ = self._held_back.get(uid, (now_s, 0.0))
        self._held_back[uid] = first_s, now_s + HELD_BACK_S
        return self.is_held_back(uid)

    def put_off(self, uid: str, *, anew: bool) -> None:
        """Remember whether a pod was answered that nobody goes for it now, which no event may end."""
        if anew:
            self._note(uid)
            self._put_off.add(uid)
        else:
            self._put_off.discard(uid)

    def is_put_off(self, uid: str) -> bool:
        """Say whether a pod was answered that nobody goes for it now, the last time it asked."""
        return uid in self._put_off

    def may_wait(self, uid: str, what: str, seconds: float) -> bool:
        """Say whether a pod has waited for less than so long for something since it was first asked."""
        now_s = self._note(uid)
        return now_s - self._since.setdefault(uid, {}).setdefault(what, now_s) < seconds

    def refuse(self, uid: str, nodes: Sequence[str]) -> None:
        """Remember the nodes that a pod was refused for alignment alone."""
        if nodes:
            self._note(uid)
            self._unaligned[uid] = tuple(nodes[:MOST_UNALIGNED])
        else:
            self._unaligned.pop(uid, None)

    def refused(self, uid: str) -> tuple[str, ...]:
        """Return the nodes that a pod was refused for alignment alone, the last time it asked."""
        return self._unaligned.get(uid, ())

    def is_held_back(self, uid: str) -> bool:
        """Say whether nobody is to be evicted for a pod yet."""
        now_s = self._clock()
        first_s, until_s = self._held_back.get(uid, (now_s, 0.0))
        return until_s > now_s and now_s - first_s < HELD_BACK_MOST_S

    def keep(self, uid: str, node: str) -> None:
        """Remember that others are on their way out of a node for a pod."""
        self._kept[uid] = node, self._until(uid, KEPT_S)

    def kept(self, uid: str, node: str) -> str:
        """Return the node if others were on their way out of it for the pod a moment ago."""
        found, until_s = self._kept.get(uid, ("", 0.0))
        return node if found == node and until_s > self._clock() else ""

    def answer(
        self,
        pod: PodRecord,
        node: str,
        victims: Collection[str],
        seconds: float | None = None,
        *,
        noted: bool = False,
    ) -> None:
        """Remember whom a pod was told to evict, on which node, and for how long that is so.

        `noted` says that it stands on the pod, where another process has noted it.
        """
        self.forget_answer(pod.uid)
        until_s = self._until(pod.uid, ANSWER_S if seconds is None else seconds)
        found = _Answer(pod, node, tuple(victims), until_s, noted)
        self._priorities[pod.priority] += 1
        self._answers[pod.uid] = self._on.setdefault(node, {})[pod.uid] = found
        self.least[node] = min(self.least.get(node, pod.priority), pod.priority)
        self._changed(node)

    def promised_below(self, priority: int) -> bool:
        """Say whether any pod of lower priority was promised a node."""
        return any(one < priority for one in self._priorities)

    def renew(self, uid: str, seconds: float) -> None:
        """Go on remembering whom a pod was told to evict, if it was: for so long, or half of that."""
        found = self._answers.get(uid)
        if found is not None and found.until_s - self._clock() < seconds / 2:
            found.until_s = self._until(uid, seconds)

    def answered(self, uid: str) -> tuple[str, tuple[str, ...]] | None:
        """Return the node and the victims that a pod was told, None where it was told none lately."""
        found = self._answers.get(uid)
        return (found.node, found.victims) if found is not None else None

    def is_noted(self, uid: str) -> bool:
        """Say whether what a pod was told is what another process has noted on it."""
        found = self._answers.get(uid)
        return found is not None and found.noted

    def forget_answer(self, uid: str) -> None:
        """Forget whom a pod was told to evict."""
        found = self._answers.pop(uid, None)
        if found is not None:
            node, here = found.node, self._on[found.node]
            del here[uid]
            self._priorities[found.pod.priority] -= 1
            if not self._priorities[found.pod.priority]:
                del self._priorities[found.pod.priority]
            if here:
                self.least[node] = min(answer.pod.priority for answer in here.values())
            else:
                del self._on[node], self.least[node]
            self._changed(node)

    def expire(self, ahead_s: float = 0.0) -> None:
        """Forget what was not carried out in time, or will not be in so many seconds."""
        now_s, ends = self._clock() + ahead_s, self._ends
        while ends and ends[0][0] <= now_s:
            self._end(heappop(ends)[1], now_s)
        while self._asked and now_s - next(iter(self._asked.values())) >= FORGET_S:
            self._forget_waits(next(iter(self._asked)))

    def _end(self, uid: str, now_s: float) -> None:
        """Forget what is true of a pod no more."""
        answer, let_in = self._answers.get(uid), self._let_in.get(uid)
        if answer is not None and answer.until_s <= now_s:
            self.forget_answer(uid)
        if let_in is not None and let_in.until_s <= now_s:
            del self._let_in[uid]
        if uid in self._kept and self._kept[uid][1] <= now_s:
            del self._kept[uid]

    def planned(self, node: str) -> list[PodRecord]:
        """Return the pods that were promised a node, as if they were nominated for it."""
        here = self._on.get(node)
        return [answer.record for answer in here.values()] if here else []

    def doomed(self, node: str) -> set[str]:
        """Return the uids of the victims that were named on a node."""
        return {uid for answer in self._on.get(node, {}).values() for uid in answer.victims}

    def all_doomed(self) -> set[str]:
        """Return the uids of the victims that were named on any node."""
        return {uid for answer in self._answers.values() for uid in answer.victims}

    def seen(self, pod: PodRecord) -> None:
        """Take note of a pod as the watch shows it: what was carried out is no promise any more."""
        if pod.node or pod.finished or pod.terminating:
            self.forget(pod.uid)
            return
        self._narrow(pod)
        answer = self._answers.get(pod.uid)
        if answer is not None and pod.nominated not in ("", answer.node):
            self.forget_answer(pod.uid)

    def _narrow(self, pod: PodRecord) -> None:
        """Take note where kube-scheduler says that it binds a pod that has to wait before that, and of its taking it back.

        Other nominations say nothing of a pod that was let in: a controller elsewhere writes them, too.
        """
        let_in = self._let_in.get(pod.uid)
        if let_in is None:
            return
        if pod.nominated in let_in.nodes and pod.nominated != let_in.record.nominated:
            nodes, until_s = frozenset((pod.nominated,)), self._until(pod.uid, PLAN_S)
            self._let_in[pod.uid] = replace(let_in, nodes=nodes, until_s=until_s, narrowed=True)
        elif let_in.narrowed and pod.nominated not in let_in.nodes:
            del self._let_in[pod.uid]

    def forget(self, uid: str) -> None:
        """Forget all about a pod."""
        self._let_in.pop(uid, None)
        self._kept.pop(uid, None)
        self._forget_waits(uid)
        self.forget_answer(uid)

    def _forget_waits(self, uid: str) -> None:
        """Forget for what a pod has waited, and where."""
        self._asked.pop(uid, None)
        self._held_back.pop(uid, None)
        self._unaligned.pop(uid, None)
        self._put_off.discard(uid)
        self._since.pop(uid, None)
