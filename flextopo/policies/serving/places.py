"""Whose place a node is: what is kept there, for whom, and who would be in whose way.

Pods wait for what others leave. Where one was promised a place, a more important one may take it, a less
important one may not, and nobody may be given a part of it that leaves the rest unfit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from flextopo.cluster.state.placement import alignment_level
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.holders import suits
from flextopo.policies.serving.landing import Bare, Landings, bare, fits_later, fits_now
from flextopo.policies.serving.node_state import OVERDUE_S, NodeState
from flextopo.policies.serving.reach import why_barred
from flextopo.policies.serving.records import PodRecord

SOON_S = 30
"""A victim that takes longer than Kubernetes' grace period keeps nobody from going where there is room."""
LATE_S = 5
"""A victim that is not gone so long after its time keeps nobody from going elsewhere, or evicting there."""
MOST_REMEMBERED = 1_000
"""Nodes of which it is remembered how they are where pods make room."""
FRESH_S = 20
"""The placement of a pod that was bound so lately is about to be known."""


def goes_before(pod: PodRecord, other: PodRecord, both: bool) -> bool:
    """Say whether a pod that a place is kept for comes before another pending pod.

    Args:
        pod: the one that is nominated.
        other: the other.
        both: a place is kept there for the other, too; then one of them comes first, by age, so that
            they do not wait for each other.
    """
    if pod.uid == other.uid or pod.priority != other.priority:
        return pod.uid != other.uid and pod.priority > other.priority
    first, second = ((one.created_s, one.key, one.uid) for one in (pod, other))
    return not both or first < second


def _is_nominee(pod: PodRecord, node: str, nominees: Iterable[PodRecord]) -> bool:
    """Say whether a pod is among the nominees of a node, or says so itself, which the watch may show later."""
    return pod.nominated == node or any(one.uid == pod.uid for one in nominees)


class Places:
    """Nodes as pending pods find them.

    Args:
        cache: the cluster.
    """

    def __init__(self, cache: ClusterCache) -> None:
        self._cache, self._reservations = cache, cache.reservations
        self._bare: dict[str, tuple[NodeState, Bare]] = {}
        self._making_room: dict[str, tuple[NodeState | None, dict[Any, NodeState | None]]] = {}
        self._landings = Landings()

    def is_planned(self, name: str) -> bool:
        """Say whether somebody is nominated for a node, or was promised it a moment ago."""
        return name in self._cache.book.nominated or name in self._reservations.least

    def promised(self, name: str, preemptor: PodRecord) -> str:
        """Return a pod that was promised a node and comes before another, empty for none."""
        ahead = (pod for pod in self._cache.planned(name) if goes_before(pod, preemptor, False))
        return next((pod.key for pod in ahead), "")

    def spoiled(self, name: str, preemptor: PodRecord, *, after: bool = False) -> list[PodRecord]:
        """Return who would find its place on a node unfit once another pod is there: see `Landings`.

        Args:
            name: of the node.
            preemptor: the pod.
            after: look at pods that come after it, and not at guaranteed ones that come before it.
        """
        if not self.is_planned(name):
            return []
        nominees = self._cache.nominees(name)
        is_one = _is_nominee(preemptor, name, nominees)
        kept = [
            one
            for one in nominees
            if one.uid != preemptor.uid and goes_before(one, preemptor, is_one) != after
        ]
        if not kept or not (after or any(one.guaranteed for one in kept)):
            return []
        node = self._without_nominees(name, nominees)
        if node is None or node.state.broken:
            return []
        kept.sort(key=attrgetter("importance"))
        since_s = self._cache.clock() - OVERDUE_S
        return self._landings.spoiled(self._cache.table, node.since(since_s), kept, preemptor)

    def displaced(
        self, name: str, preemptor: PodRecord, victims: Collection[str]
    ) -> list[PodRecord]:
        """Return the pods that lose their places on a node once a pod has one there that comes before them.

        Args:
            name: of the node.
            preemptor: the pod.
            victims: uids of those who go for it.
        """
        is_one = _is_nominee(preemptor, name, self._cache.nominees(name))
        return [
            one
            for one, state in self._behind(name, preemptor, victims, is_one)
            if state is None or not fits_later(self._cache.table, state, one)
        ]

    def delayed(self, name: str, preemptor: PodRecord) -> list[PodRecord]:
        """Return the pods that lose their places on a node, or get them later, once it is promised to a pod."""
        table, alone = self._cache.table, self._behind(name, None, (), True)
        ready = {
            one.uid for one, state in alone if state is not None and fits_now(table, state, one)
        }
        found = []
        for one, state in self._behind(name, preemptor, (), True):
            fits = fits_now if one.uid in ready else fits_later
            if state is None or not fits(table, state, one):
                found.append(one)
        return found

    def _behind(
        self, name: str, first: PodRecord | None, victims: Collection[str], promised: bool
    ) -> Iterator[tuple[PodRecord, NodeState | None]]:
        """Yield who has a place planned on a node and comes after a pod, and the node as each finds it then.

        Args:
            name: of the node.
            first: the pod; None = nobody, and all that have a place.
            victims: uids of those who go for it.
            promised: it was promised the node.
        """
        nominees, now = self._cache.nominees(name), self._cache.nodes.states.get(name)
        after = [one for one in nominees if first is None or not goes_before(one, first, promised)]
        beside = [first] if first is not None else []
        mine, without = {one.uid for one in beside}, {one.uid for one in [*after, *beside]}
        others = [one for one in after if one.uid not in mine and self._has_place(now, one)]
        for one in sorted(others, key=attrgetter("importance")):
            yield one, self._cache.derive(name, without=without, beside=beside, doomed=victims)
            beside.append(one)

    def _has_place(self, state: NodeState | None, pod: PodRecord) -> bool:
        """Say whether a pod has a place planned on a node, an aligned one where it is guaranteed."""
        held = state.holding(pod.uid) if state is not None else None
        if state is None or held is None:
            return False
        table, model, asked = self._cache.table, state.hardware.model, (pod.gpus, pod.cores)
        level = alignment_level(table, model, held[0], np.array(held[1], np.int16), *asked)
        return suits(table, model, pod, level)

    def without_plans(self, name: str, state: NodeState) -> NodeState:
        """Return a node without those that have places planned there, which are nobody's yet."""
        if not self.is_planned(name):
            return state
        found = self._without_nominees(name, self._cache.nominees(name))
        return found.state if found is not None and not found.state.broken else state

    def may_clash(self, state: NodeState, pods: Sequence[tuple[PodRecord, int]]) -> bool:
        """Say whether of pods on their way to a node a guaranteed one may end unaligned, see `Landings`."""
        return self._landings.may_clash(self._cache.table, state, pods)

    def _without_nominees(self, name: str, nominees: Iterable[PodRecord]) -> Bare | None:
        """Return a node without those that are nominated for it, remembered until it changes."""
        now = self._cache.nodes.states.get(name)
        known = self._bare.get(name)
        if known is not None and known[0] is now:
            return known[1]
        state = self._cache.derive(name, without={one.uid for one in nominees})
        if state is None or now is None:
            self._bare.pop(name, None)
            return None
        found = bare(state)
        self._bare[name] = now, found
        return found

    def state_of(self, name: str, preemptor: PodRecord) -> NodeState | None:
        """Return a node as the preemptor finds it.

        What is kept there for itself, or for pods that come after it, is free.
        """
        return self._as_found(name, preemptor, self._cache.nodes.states)

    def making_room(self, name: str, preemptor: PodRecord) -> NodeState | None:
        """Return a node as the preemptor finds it if those who come before it leave it room, where they can.

        Their places are planned; kubelet gives each what is best for itself, and those are free that it leaves.
        """
        now, nominees = self._cache.nodes.states.get(name), self._cache.nominees(name)
        is_one = _is_nominee(preemptor, name, nominees)
        after = frozenset(one.uid for one in nominees if not goes_before(one, preemptor, is_one))
        asked = preemptor.gpus, preemptor.cores, preemptor.requirement, after
        known, found = self._making_room.get(name, (None, {}))
        if known is not now or now is None:
            found = {}
            if len(self._making_room) >= MOST_REMEMBERED:
                self._making_room.clear()
            self._making_room[name] = now, found
        if asked not in found:
            found[asked] = self._cache.derive(name, without=after, asking=preemptor)
        return found[asked]

    def _as_found(
        self,
        name: str,
        preemptor: PodRecord,
        known: Mapping[str, NodeState],
        together: Collection[str] = (),
        spare: bool = False,
    ) -> NodeState | None:
        nominees = self._cache.nominees(name)
        is_one, some_after = preemptor.nominated == name, False
        for pod in nominees:
            is_one = is_one or pod.uid == preemptor.uid or pod.uid in together
            some_after = some_after or (pod.priority < preemptor.priority and not spare)
        if not is_one and not some_after:
            return known.get(name)
        after = {
            pod.uid
            for pod in nominees
            if (pod.uid == preemptor.uid if spare else not goes_before(pod, preemptor, is_one))
        }
        return self._cache.derive(name, without=after) if after else known.get(name)

    def without(self, name: str, uid: str) -> NodeState | None:
        """Return a node as it would be without a pod."""
        self._cache.refresh()
        return self._cache.derive(name, without={uid})

    def states_of(
        self,
        names: Iterable[str],
        preemptor: PodRecord,
        others: Sequence[PodRecord] = (),
        *,
        spare: bool = False,
    ) -> dict[str, NodeState]:
        """Return those of the nodes that can be decided about, as `state_of` does.

        Args:
            names: of nodes.
            preemptor: the pod.
            others: start together with it; what is kept for those of them that come after it is free.
            spare: nothing that is kept for any other pod is free.
        """
        found = self.found(names, preemptor, others, spare).items()
        return {name: state for name, state in found if state is not None and not state.broken}

    def found(
        self,
        names: Iterable[str],
        preemptor: PodRecord,
        others: Sequence[PodRecord] = (),
        spare: bool = False,
    ) -> dict[str, NodeState | None]:
        """Return each node as `state_of` does, None where there is no such node; see `states_of`."""
        states, least = self._cache.nodes.states, self._reservations.least
        asked = list(names)
        found = dict(zip(asked, map(states.get, asked), strict=True))
        kept = self._cache.book.nominated.keys() & found.keys()
        if self._reservations.promised_below(preemptor.priority):
            here = least.keys() & found.keys()
            kept |= {name for name in here if least[name] < preemptor.priority}
        for pod in (preemptor, *others):
            told = self._reservations.answered(pod.uid)
            kept |= {pod.nominated, told[0] if told is not None else ""} & found.keys()
        together = {pod.uid for pod in others}
        for name in kept:
            # On most nodes nobody comes after the preemptor, and there may be hundreds.
            found[name] = self._as_found(name, preemptor, states, together, spare)
        return found

    def kept_for(self, preemptor: PodRecord, evicts: bool = False) -> str:
        """Return the node on which others are on their way out for a pod, empty for none.

        It stays that node for a moment after they are gone: kube-scheduler may not know it yet. A node
        that is gone, or takes the pod no more, is kept for nothing.

        Args:
            preemptor: the pod.
            evicts: it would have others evicted elsewhere, not just go where there is room: nobody else has
                to go for it as long as its victims' own grace periods last.
        """
        told = self._reservations.answered(preemptor.uid)
        node = told[0] if told is not None else preemptor.nominated
        if not node or why_barred(preemptor, node, self._cache.hosts.traits.get(node)):
            return ""
        doomed = set(told[1]) if told is not None else set()
        here = self._cache.book.on(node)
        if any(self._is_going(pod, preemptor, doomed, SOON_S) for pod in here):
            self._reservations.keep(preemptor.uid, node)
        elif evicts and any(self._is_going(pod, preemptor, doomed, math.inf) for pod in here):
            return node
        return self._reservations.kept(preemptor.uid, node)

    def are_going(self, preemptor: PodRecord) -> bool:
        """Say whether those who were named for a pod are on their way out, or gone.

        An answer that was lost, or not carried out, is not given again by kube-scheduler's next question where the
        pod fits by counts.
        """
        told = self._reservations.answered(preemptor.uid)
        now = [self._cache.pods.get(uid) for uid in told[1]] if told is not None else []
        return all(pod is None or pod.terminating or pod.finished for pod in now)

    def _is_going(
        self, pod: PodRecord, preemptor: PodRecord, doomed: Collection[str], soon_s: float
    ) -> bool:
        """Say whether a pod is on its way out for the preemptor, gone within so long, or was told to go."""
        if not pod.node or pod.priority >= preemptor.priority:
            return False
        if not pod.terminating:
            return pod.uid in doomed
        return pod.gone_s is None or -soon_s <= self._cache.clock() - pod.gone_s <= LATE_S

    def leaving_soon(self) -> dict[str, list[PodRecord]]:
        """Return the pods that leave nodes, where all of them are gone within Kubernetes' grace period."""
        now_s, found = self._cache.clock(), dict[str, list[PodRecord]]()
        for name, uids in self._cache.book.leaving.items():
            pods = [self._cache.pods[uid] for uid in uids]
            gone_s = [pod.gone_s for pod in pods if pod.gone_s is not None]
            if all(-SOON_S <= now_s - at_s <= LATE_S for at_s in gone_s):
                found[name] = pods
        return found

    def is_stuck(self, node: str) -> bool:
        """Say whether a terminating pod of a node is not counted on any more: its time is long over."""
        over_s = self._cache.clock() - OVERDUE_S
        return any(
            pod.node and pod.terminating and pod.gone_s is not None and pod.gone_s < over_s
            for pod in self._cache.book.on(node)
        )

    def is_unsettled(self, state: NodeState) -> bool:
        """Say whether more of a node is about to be known: where pods are that were bound lately."""
        now_s = self._cache.clock()
        return any(
            pod.bound_s is not None and now_s - pod.bound_s < FRESH_S for pod in state.guessed
        )
