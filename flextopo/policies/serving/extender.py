"""The extender verbs of kube-scheduler: bytes in, bytes out.

References:
    kubernetes v1.36, pkg/scheduler/extender.go, which sends the bodies and reads the answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from flextopo.cluster.topology.levels import LEVELS, NO_FIT, POINTS, AlignmentLevel, level_deficit
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.gangs import starts_with_others
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.objects import ObjectError, PodObject
from flextopo.policies.serving.outcomes import Outcomes
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.reservations import SPARES_S
from flextopo.policies.serving.runner import UndecidableError
from flextopo.policies.serving.shadow import compare_with_default
from flextopo.policies.serving.telemetry import Telemetry
from flextopo.policies.serving.wire import (
    MetaPod,
    MetaVictims,
    NodesRequest,
    ProposedVictims,
    decode_nodes,
    decode_preempt,
    read_nodes,
)

ATTENDED_S = 5
"""A controller has carried out within so many seconds what it decided."""


class _Refusal(NamedTuple):
    """Why a node is refused, empty if it is not.

    Fields: `never`, evictions cannot help; `unaligned`, only where things lie is in the way.
    """

    why: str = ""
    never: bool = False
    unaligned: bool = False


NO_REFUSAL = _Refusal()


class _Kind(NamedTuple):
    """Pods that ask for the same and may be on their way to the same nodes: one of them, and how many."""

    record: PodRecord
    nodes: Collection[str]
    number: int


Coming = Sequence[_Kind]


def _kinds(coming: Sequence[tuple[PodRecord, Collection[str]]]) -> Coming:
    """Return pods that may be on their way to nodes by what they ask for: most of many ask for the same."""
    found: dict[tuple[object, ...], _Kind] = {}
    for pod, nodes in coming:
        asked = (pod.cores, pod.requirement, *sorted(pod.requests.items()), id(nodes))
        kind = found.get(asked)
        found[asked] = kind._replace(number=kind.number + 1) if kind else _Kind(pod, nodes, 1)
    return [kind for kind in found.values() if kind.record.gpus]


@dataclass(frozen=True)
class Extender:
    """The verbs over one decider.

    Attributes:
        decider: decides.
        telemetry: counts and logs.
        shadow: decide and log, and answer the victims that proposed.
        outcomes: follows what becomes of evictions, where there is a watch.
        leave_gangs: a controller decides about pods that start together, and about nodes where only alignment
            is in the way; nobody is evicted for one of these alone.
    """

    decider: Decider
    telemetry: Telemetry
    shadow: bool = False
    outcomes: Outcomes | None = None
    leave_gangs: bool = False

    def preempt(self, body: bytes) -> bytes:
        """Choose whom to evict.

        Args:
            body: an ExtenderPreemptionArgs.

        Returns:
            An ExtenderPreemptionResult: the node chosen with its victims by descending priority;
            an empty map where it is better to wait. Where nothing can be decided, those of
            kube-scheduler's nodes whose victims may all go: an error would let them all stand.

        Raises:
            ObjectError: the body is not one.
        """
        request = decode_preempt(body)
        cache = self.decider.cache
        proposed = ProposedVictims(request)
        preemptor, unread = self._read(request.Pod)
        if preemptor is None:
            as_sent = _as_proposed(proposed, proposed)  # a body that is none is refused
            # An error would let kube-scheduler's own victims stand, protected ones as well.
            self.telemetry.log("undecidable", verb="preempt", error=unread)
            return as_sent if self.shadow else NOBODY
        again = self._again(preemptor, proposed)
        cache.reservations.put_off(preemptor.uid, anew=again == NOBODY)
        if again is not None:
            return again
        if preemptor.gpus == 0 or not proposed:
            return self._that_stand(preemptor, proposed)
        try:
            decision = self._decide(preemptor, proposed)
        except UndecidableError as error:
            self.telemetry.log("undecidable", verb="preempt", pod=preemptor.key, error=str(error))
            return self._that_stand(preemptor, proposed)
        more: dict[str, Any] = {}
        if self.shadow:
            counts = {name: proposed.violations(name) for name in proposed}
            more = compare_with_default(self.decider, preemptor, decision, proposed, counts)
        self.telemetry.decided("preempt", preemptor, decision, more)
        if self.shadow:
            return _as_proposed(proposed, proposed)
        cache.reservations.put_off(preemptor.uid, anew=decision.wait_s > 0)
        if decision.node is None:
            return _as_proposed(proposed, decision.unchanged)
        uids = [victim.uid for victim in decision.victims]
        if self.outcomes is not None:
            self.outcomes.evicted(preemptor, decision)
        # What is on its way out suffices: the place is kept, and nobody else has to go.
        cache.reservations.answer(preemptor, decision.node, uids)
        if not uids and (decision.wait_s or proposed[decision.node]):
            return NOBODY
        victims = MetaVictims([MetaPod(uid) for uid in uids], decision.violations)
        return _encode({decision.node: victims})

    def _again(self, preemptor: PodRecord, proposed: ProposedVictims) -> bytes | None:
        """Return what was answered a moment ago to who asks again, None where it does not hold."""
        cache = self.decider.cache
        if preemptor.uid in cache.reservations.under_way or self._is_attended(preemptor):
            return NOBODY  # a controller is carrying it out
        told = cache.reservations.answered(preemptor.uid)
        kept = self.decider.places.kept_for(preemptor)
        if told is None or not told[1]:
            return None
        node, uids = told
        stands = node in proposed and self.decider.stands(preemptor, node, uids)
        if (
            not stands
            and kept == node
            and not all(self.decider.may_go(preemptor, node, uid) for uid in uids)
        ):
            return NOBODY  # it is being carried out
        cache.reservations.forget_answer(preemptor.uid)
        if not stands:
            return None
        cache.reservations.answer(preemptor, node, uids)
        count = self.decider.violations(uids)
        return _encode({node: MetaVictims([MetaPod(uid) for uid in uids], count)})

    def _is_attended(self, preemptor: PodRecord) -> bool:
        """Say whether a controller chose a node for the pod a moment ago, in this process or another."""
        known = self.decider.cache.pods.get(preemptor.uid, preemptor)
        at_s = max(preemptor.attended_s, known.attended_s)
        return abs(self.decider.cache.clock() - at_s) < ATTENDED_S

    def _decide(self, preemptor: PodRecord, proposed: ProposedVictims) -> Decision:
        if self.decider.cache.reservations.is_held_back(preemptor.uid):
            why = "for a moment: more is about to be known or free"
            return Decision(None, wait_s=1, reasons=(why,))
        if self.leave_gangs and starts_with_others(self.decider.cache, preemptor):
            return Decision(None, reasons=("a controller decides about all of its gang together",))
        found = self.decider.decide(preemptor, proposed, proposed)
        if not found.victims:
            return found
        # kube-scheduler asks about nodes that have victims, and others may be about to have room.
        waits = self.decider.waits_for_room(preemptor)
        if waits is not None:
            return waits
        better = self._elsewhere(preemptor, proposed)
        return Decision(None, reasons=(better,)) if better else found

    def _elsewhere(self, preemptor: PodRecord, proposed: ProposedVictims) -> str:
        """Say which other node a controller would choose, empty for none.

        kube-scheduler does not ask about nodes where only the alignment is in the way, and asks about one
        more node once a pod is nominated there. It is left to the controller for some seconds.
        """
        reservations = self.decider.cache.reservations
        others = reservations.refused(preemptor.uid) if self.leave_gangs else ()
        if not others:
            return ""
        try:
            best = self.decider.decide(preemptor, [*proposed, *others], proposed)
        except UndecidableError:
            return ""
        if best.node is None or best.node in proposed:
            return ""
        if not reservations.hold_back(preemptor.uid):
            return ""
        return f"a controller can make room on node {best.node}, where only alignment is in the way"

    def _that_stand(self, preemptor: PodRecord, proposed: ProposedVictims) -> bytes:
        """Answer what kube-scheduler sent, without the nodes that have a victim that may not go."""
        if self.shadow:
            return _as_proposed(proposed, proposed)
        stand = [
            name
            for name in proposed
            if (proposed[name] or not preemptor.gpus)
            and self.decider.stands(preemptor, name, proposed[name])
        ]
        return _as_proposed(proposed, stand)

    def filter(self, body: bytes) -> bytes:
        """Refuse nodes whose free resources do not align a guaranteed pod.

        Args:
            body: an ExtenderArgs.

        Returns:
            An ExtenderFilterResult. Refused nodes are in `FailedNodes`, where evictions may help,
            and in `FailedAndUnresolvableNodes` where not even the empty server suffices.

        Raises:
            ObjectError: the body is not one.
        """
        request = decode_nodes(body)
        nodes = read_nodes(request)
        preemptor, unread = self._read(request.Pod)
        if preemptor is None:
            unfit = {} if self.shadow else dict.fromkeys(nodes, unread)
            return _encode_nodes(request, nodes, [] if unfit else [*nodes], unfit, {})
        failed: dict[str, str] = {}
        never: dict[str, str] = {}
        unaligned: list[str] = []
        kept = self.decider.places.kept_for(preemptor) if preemptor.gpus else ""
        guaranteed = bool(preemptor.gpus) and preemptor.guaranteed
        asked = list(nodes) if preemptor.gpus and not self.shadow else []
        if kept:
            # Somewhere else it would leave behind what others were evicted for.
            why = f"its place on {kept} is being freed"
            failed = {name: why for name in asked if name != kept}
            asked = [name for name in asked if name == kept]
        if guaranteed:
            refusals = self._refusals(asked, preemptor)
        else:
            refusals = ((name, self._promised(name, preemptor)) for name in asked)
        for name, refusal in refusals:
            if refusal.why:
                (never if refusal.never else failed)[name] = refusal.why
            if refusal.unaligned:
                unaligned.append(name)
        passed = [name for name in nodes if name not in failed and name not in never]
        if preemptor.gpus and not self.shadow:
            failed |= self._least_harm(passed, preemptor, kept)
            passed = [name for name in passed if name not in failed]
        if preemptor.gpus:
            self.decider.cache.reservations.asked()
            self.decider.cache.reservations.let_in(preemptor, passed)
            self.decider.cache.reservations.refuse(preemptor.uid, unaligned)
        return _encode_nodes(request, nodes, passed, failed, never)

    def prioritize(self, body: bytes) -> bytes:
        """Score nodes by how well their free resources align the pod.

        Args:
            body: an ExtenderArgs.

        Returns:
            A HostPriorityList: 10 for the best level that the server gives, else the points of the
            level (`levels.LEVELS`); 0 where placements are not known.

        Raises:
            ObjectError: the body is not one.
        """
        request = decode_nodes(body)
        nodes, (preemptor, _) = read_nodes(request), self._read(request.Pod)
        if preemptor is None:
            return msgspec.json.encode([{"Host": name, "Score": 0} for name in nodes])
        states = self.decider.places.found(nodes, preemptor).items()
        return msgspec.json.encode(
            [{"Host": name, "Score": self._score(state, preemptor)} for name, state in states]
        )

    def _read(self, pod: PodObject) -> tuple[PodRecord | None, str]:
        """Return the pod of a request as things stand now, or why it cannot be read."""
        self.decider.cache.refresh()
        try:
            return self.decider.cache.read(pod), ""
        except ObjectError as error:
            return None, str(error)

    def _promised(self, name: str, preemptor: PodRecord) -> _Refusal:
        """Return for whom a node's room is kept, no refusal if it suffices for the preemptor as well.

        kube-scheduler knows of pods that it nominated; not of those that wait for what is leaving.
        """
        places = self.decider.places
        if not places.is_planned(name):
            return NO_REFUSAL
        ahead = places.promised(name, preemptor)
        state = places.state_of(name, preemptor) if ahead else None
        if state is None or state.broken or self.decider.room.suffices(state, preemptor):
            return self._spoiled(name, preemptor)
        return _Refusal(f"what is free on it is kept for {ahead}")

    def _spoiled(self, name: str, preemptor: PodRecord) -> _Refusal:
        """Return whose place on a node the preemptor might get a part of, no refusal for nobody's.

        That lasts until the other is bound: nobody has to go for the preemptor meanwhile.
        """
        others = self.decider.places.spoiled(name, preemptor)
        if not others:
            return NO_REFUSAL
        self.decider.cache.reservations.hold_back(preemptor.uid)
        return _Refusal(f"it might be given what is kept for {others[0].key}")

    def _least_harm(self, names: Sequence[str], preemptor: PodRecord, kept: str) -> dict[str, str]:
        """Return which nodes it should leave alone, and why: others lose fewer GPUs elsewhere.

        Pods that come later had others evicted for their places there. One that is given a part of
        such a place would have the rest freed in vain. Where it has a place of its own, at which it is kept,
        it spares nobody less important.
        """
        places = self.decider.places
        planned = list(filter(places.is_planned, names))
        losers = {
            name: [
                one
                for one in places.spoiled(name, preemptor, after=True)
                if not kept or one.priority == preemptor.priority
            ]
            for name in planned
        }
        lost = {name: sum(one.gpus for one in pods) for name, pods in losers.items()}
        least = min(lost.values(), default=0) if len(planned) == len(names) else 0
        if self._spares(preemptor, least):
            least = 0
        return {
            name: f"it is kept for {pods[0].key}, which need not lose it"
            for name, pods in losers.items()
            if lost[name] > least
        }

    def _spares(self, preemptor: PodRecord, lost: int) -> bool:
        """Say whether it waits a moment, since others would lose more GPUs than it takes.

        Most places are free as a whole within seconds. Where there is a controller it has kube-scheduler
        look at it again.
        """
        reservations = self.decider.cache.reservations
        if lost <= preemptor.gpus or not self.leave_gangs:
            return False
        waits = reservations.may_wait(preemptor.uid, "spares", SPARES_S)
        return waits and reservations.hold_back(preemptor.uid)

    def _refusals(
        self, names: Sequence[str], preemptor: PodRecord
    ) -> Iterator[tuple[str, _Refusal]]:
        """Yield why each of some nodes is refused to a guaranteed pod."""
        coming = _kinds(self.decider.cache.reservations.coming(preemptor.uid))
        for name, state in self.decider.places.found(names, preemptor).items():
            yield name, self._refusal(name, state, preemptor, coming)

    def _refusal(
        self, name: str, state: NodeState | None, preemptor: PodRecord, coming: Coming
    ) -> _Refusal:
        """Return why a node is refused to a guaranteed pod, which finds it in a state."""
        if state is None or state.broken:
            return _Refusal(state.broken if state else "not seen by the watch yet")
        if not state.hardware.known:
            return _Refusal("no FlexTopo object tells where its GPUs and cores are")
        aligned, level, best = self.decider.room.alignment(state, preemptor)
        if not aligned and self._might_make_room(name, state, preemptor):
            state = self.decider.places.making_room(name, preemptor) or state
            aligned, level, best = self.decider.room.alignment(state, preemptor)
        if best == NO_FIT:
            return _Refusal("its hardware never fits the pod", never=True)
        rival = self._rival(name, state, preemptor, coming) if aligned and coming else ""
        if aligned and not rival:
            planned = self.decider.places.is_planned(name)
            return self._spoiled(name, preemptor) if planned else NO_REFUSAL
        if aligned or (
            self.decider.room.suffices(state, preemptor) and self.decider.places.is_unsettled(state)
        ):
            self.decider.cache.reservations.hold_back(preemptor.uid)
        if aligned:
            return _Refusal(f"{rival} may be on its way to it")
        known = "" if state.known else " for sure, since some placements are not known"
        if level == NO_FIT:
            return _Refusal(f"its free GPUs and cores do not fit the pod{known}")
        label = LEVELS[AlignmentLevel(level)].label
        return _Refusal(f"its free GPUs and cores are on {label}{known}", unaligned=state.known)

    def _might_make_room(self, name: str, state: NodeState, preemptor: PodRecord) -> bool:
        """Say whether there would be room if others had their planned places elsewhere on a node."""
        planned = self.decider.places.is_planned(name)
        return planned and self.decider.room.suffices(state, preemptor)

    def _rival(self, name: str, state: NodeState, preemptor: PodRecord, coming: Coming) -> str:
        """Return a pod that may be on its way to a node and be in the way there, or find this one in its own.

        kube-scheduler counts such pods already: where all do not fit, they are not all there. What is planned for
        pods is left aside: kubelet does not know of it, and gives whoever comes first what is best for that one.
        """
        bare = self.decider.places.without_plans(name, state)
        there = [
            (one.record, one.number)
            for one in coming
            if name in one.nodes and self.decider.room.may_be_there(one.record, preemptor, bare)
        ]
        if not there or not self.decider.places.may_clash(bare, [*there, (preemptor, 1)]):
            return ""
        return there[0][0].key

    def _score(self, state: NodeState | None, preemptor: PodRecord) -> int:
        if not preemptor.gpus or state is None or state.broken or not state.hardware.known:
            return 0
        _, level, best = self.decider.room.alignment(state, preemptor)
        return POINTS[level_deficit(level, best)] if level != NO_FIT else 0


def _as_proposed(proposed: ProposedVictims, names: Iterable[str]) -> bytes:
    return _encode(
        {
            name: MetaVictims([MetaPod(uid) for uid in proposed[name]], proposed.violations(name))
            for name in names
        }
    )


def _encode_nodes(
    request: NodesRequest,
    nodes: Mapping[str, msgspec.Raw | None],
    passed: Sequence[str],
    failed: Mapping[str, str],
    never: Mapping[str, str],
) -> bytes:
    answer: dict[str, Any] = {
        "FailedNodes": failed,
        "FailedAndUnresolvableNodes": never,
        "Error": "",
    }
    if request.NodeNames is not None and request.Nodes is None:
        answer["NodeNames"] = passed
    else:
        answer["Nodes"] = {"items": [nodes[name] for name in passed]}
    return msgspec.json.encode(answer)


def _encode(victims: dict[str, MetaVictims]) -> bytes:
    return msgspec.json.encode({"NodeNameToMetaVictims": victims})


NOBODY = _encode({})
"""The answer that nobody is evicted, and no node nominated."""
