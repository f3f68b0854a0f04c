"""One decision: selector within its time, guards, and the deterministic baseline behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.arrays import TERMINATING
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.model import MAX_GPUS
from flextopo.policies.serving.budgets import violations
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.guards import (
    GuardError,
    Proposal,
    check,
    fits_all_resources,
    short_of,
)
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.places import Places
from flextopo.policies.serving.records import PodRecord, together
from flextopo.policies.serving.reservations import ROOM_S
from flextopo.policies.serving.room import Room
from flextopo.policies.serving.runner import (
    FALLBACK_FACTOR,
    SelectorRunner,
    SelectorTimeoutError,
    UndecidableError,
)
from flextopo.policies.serving.view import ClusterView

SHORT = fits_all_resources.__name__
"""The guard that refuses a choice for want of memory or the like."""
PART = 100
"""Nodes that the baseline looks at together; as many as kube-scheduler's smallest search."""


class _ShortOfResourcesError(FlextopoError):
    """Report that memory or the like does not suffice, which no candidate here knows of."""


@dataclass
class Decider:
    """Decide about pods of a cache.

    Attributes:
        cache: the cluster.
        selector: decides.
        fallback: the deterministic baseline.
        budget_s: time of the selector for one decision.
        age_s: age of the cache's knowledge.
        max_age_s: above it the baseline decides.
        places: what is kept on nodes, and for whom.
        room: for whom there is room on nodes.
    """

    cache: ClusterCache
    selector: VictimSelector
    fallback: VictimSelector
    budget_s: float = 0.2
    age_s: Callable[[], float] = lambda: 0.0
    max_age_s: float = 30.0
    places: Places = field(init=False)
    room: Room = field(init=False)
    _runner: SelectorRunner = field(default_factory=SelectorRunner)

    def __post_init__(self) -> None:
        self.places = Places(self.cache)
        self.room = Room(self.cache, self.places)

    def decide(
        self,
        preemptor: PodRecord,
        nodes: Iterable[str],
        proposed: Mapping[str, Sequence[str]] | None = None,
        *,
        may_violate: bool = True,
    ) -> Decision:
        """Choose a node and victims.

        Args:
            preemptor: the pending pod.
            nodes: names of the nodes it may go to.
            proposed: uids of the victims that kube-scheduler chose by node; such a node is not
                answered without victims.
            may_violate: budgets may be violated where nothing else helps.

        Raises:
            UndecidableError: no node is known, or the baseline failed too.
        """
        begin = time.perf_counter()
        found = self._decide(preemptor, list(nodes), proposed or {}, may_violate)
        found.elapsed_ms = (time.perf_counter() - begin) * 1000.0
        return found

    def waits_for_room(self, preemptor: PodRecord) -> Decision | None:
        """Return that a pod waits for room that others are about to leave, None where it need not, or has."""
        room, reservations = self.room.to_come(preemptor), self.cache.reservations
        if not room or not reservations.may_wait(preemptor.uid, "room", ROOM_S):
            return None
        why = f"it fits on node {room} as soon as those are gone that are leaving it"
        return Decision(room, wait_s=1, reasons=(why,))

    def _decide(
        self,
        preemptor: PodRecord,
        nodes: list[str],
        proposed: Mapping[str, Sequence[str]],
        may_violate: bool,
    ) -> Decision:
        states = self.places.states_of(nodes, preemptor)
        if not states:
            raise UndecidableError(
                f"pod {preemptor.key!r}: none of {len(nodes)} nodes can be decided about"
                f"{self._broken(preemptor, nodes)}; legal: nodes with GPUs that the watch has seen"
            )
        if preemptor.never_preempts:
            return Decision(None, reasons=("its preemption policy is Never",))
        foreign = self._foreign(states, preemptor, proposed)
        try:
            found = self._try(preemptor, states, foreign, proposed, may_violate)
            if found is not None:
                found = self._sparing(preemptor, nodes, foreign, proposed, found)
        except _ShortOfResourcesError as error:
            foreign, found = {name for name in proposed if proposed[name]}, None
            why = f"the conflict is not about GPUs or topology ({error})"
        else:
            why = "the conflict is not about GPUs or topology"
        if found is not None:
            return found
        unchanged = tuple(
            n for n in nodes if n in foreign and self.stands(preemptor, n, proposed[n])
        )
        cause, detail = self.stale()
        if not unchanged:
            strangers = {uid for uids in proposed.values() for uid in uids} - self.cache.pods.keys()
            why = "no victim set helps"
            if strangers:
                why = f"{len(strangers)} victims that the watch has not seen, as {min(strangers)!r}"
            return Decision(None, selector=self.selector.name, fallback=cause, detail=detail,
                            reasons=(why,))  # fmt: skip
        return Decision(
            None,
            selector=self.selector.name,
            fallback="unmodelled",
            detail=why,
            reasons=(why,),
            unchanged=unchanged,
        )

    def _try(
        self,
        preemptor: PodRecord,
        states: Mapping[str, NodeState],
        foreign: set[str],
        proposed: Mapping[str, Sequence[str]],
        may_violate: bool,
    ) -> Decision | None:
        """Try nodes of known placements, then the others, then to violate budgets."""
        guaranteed = preemptor.guaranteed
        known = {
            name: state
            for name, state in states.items()
            if name not in foreign and state.hardware.known and (guaranteed or state.known)
        }
        rest = {} if guaranteed else {
            name: state for name, state in states.items() if name not in known.keys() | foreign
        }  # fmt: skip
        cause, detail = self.stale()
        found = self._choose(preemptor, known, proposed, cause, detail) if known else None
        if found is None and rest:
            flat = any(not state.hardware.known for state in rest.values())
            why = "missing_flextopo" if flat else "unknown_placement"
            found = self._choose(preemptor, rest, proposed, why, f"{len(rest)} nodes, {why}")
        for nodes in (known, rest) if may_violate else ():
            if found is None and nodes:
                found = self._violate(preemptor, nodes, proposed)
        return found

    def _sparing(
        self,
        preemptor: PodRecord,
        nodes: list[str],
        foreign: set[str],
        proposed: Mapping[str, Sequence[str]],
        found: Decision,
    ) -> Decision:
        """Return a decision that leaves the places of pods that come later alone, if fewer GPUs are lost by it.

        Others went for these places. Who takes a part of one has the rest freed in vain, and its pod has
        others evicted once more. Nobody goes for that who is more important than these.
        """
        # (A selector that hung once is not asked again.)
        losers = self._losers(preemptor, found) if found.fallback != "timeout" else []
        lost = sum(one.gpus for one in losers)
        if not lost or (not found.victims and lost <= preemptor.gpus):
            return found
        states = self.places.states_of(nodes, preemptor, spare=True)
        try:
            other = self._try(preemptor, states, foreign, proposed, may_violate=False)
        except (_ShortOfResourcesError, UndecidableError):
            return found
        if other is None or other.node is None:
            return found
        most = max(one.priority for one in losers)
        evicted, instead = (sum(one.gpus for one in each.victims) for each in (found, other))
        worth = instead < evicted + lost and all(one.priority <= most for one in other.victims)
        return other if worth else found

    def _losers(self, preemptor: PodRecord, found: Decision) -> list[PodRecord]:
        """Return the pods that come later, and whose places a decision makes unfit."""
        if found.node is None or not self.places.is_planned(found.node):
            return []
        uids = [victim.uid for victim in found.victims]
        return self.places.displaced(found.node, preemptor, uids)

    def stale(self) -> tuple[str, str]:
        """Return why only the baseline may decide, a cause and its detail; two empty ones = nothing."""
        age_s = self.age_s()
        if age_s <= self.max_age_s:
            return "", ""
        return "stale_watch", f"the watch is {age_s:.0f} s old; legal: up to {self.max_age_s:.0f} s"

    def _choose(
        self,
        preemptor: PodRecord,
        nodes: dict[str, NodeState],
        proposed: Mapping[str, Sequence[str]],
        cause: str,
        detail: str,
    ) -> Decision | None:
        """Let the selector choose, or the baseline where there is a cause; None = no candidates."""
        guaranteed = preemptor.guaranteed
        chosen: Candidate | None = None
        selector = self.selector
        if not cause:
            view = self.cache.view(preemptor, nodes, worst_case=guaranteed)
            chosen, cause, detail = self.ask_selector(
                view, lambda chosen: self.check(preemptor, view, chosen, proposed)
            )
        if cause:
            selector = self.fallback
            view, chosen = self._ask_baseline(preemptor, nodes, proposed, detail)
        if chosen is not None:
            return self._answer(preemptor, view, chosen, selector.name, cause, detail)
        if self._has_candidates(view, preemptor):
            why = "it is better to wait" if not cause else "the baseline found nothing"
            beyond = "; ".join(view.out_of_range)
            return Decision(None, (), (), None, 0, selector.name, cause, detail, beyond, (why,))
        return None

    def ask_selector(
        self, view: ClusterView, check: Callable[[Candidate | None], None]
    ) -> tuple[Candidate | None, str, str]:
        """Return the selector's choice, or why the baseline must decide: a cause and its detail.

        Args:
            view: what the selector sees.
            check: raises where its choice must not be carried out.
        """
        try:
            chosen = self.run(self.selector, view, self.budget_s)
            check(chosen)
        except SelectorTimeoutError as error:
            return None, "timeout", str(error)
        except GuardError as error:
            return None, "guard", str(error)
        except Exception as error:  # noqa: BLE001  whatever a model does, the baseline answers
            return None, "model_error", f"{type(error).__name__}: {error}"
        return chosen, "", ""

    def _ask_baseline(
        self,
        preemptor: PodRecord,
        nodes: dict[str, NodeState],
        proposed: Mapping[str, Sequence[str]],
        detail: str,
    ) -> tuple[ClusterView, Candidate | None]:
        """Return the baseline's choice and the nodes that it last looked at.

        Where memory or the like was short for the selector it is asked last: it knows no more of that.

        Raises:
            UndecidableError: it failed too.
        """
        guaranteed, is_short = preemptor.guaranteed, detail.startswith(f"{SHORT}:")
        short: GuardError | None = None
        try:
            for some in _parts(nodes):
                view = self.cache.view(preemptor, some, worst_case=guaranteed)
                chosen = self._for_all_resources(preemptor, view, proposed) if is_short else None
                if chosen is not None:
                    return view, chosen
                chosen = self.run(self.fallback, view, FALLBACK_FACTOR * self.budget_s)
                try:
                    self.check(preemptor, view, chosen, proposed)
                except GuardError as error:
                    if error.guard != SHORT:
                        raise
                    short = error
                    chosen = (
                        self._for_all_resources(preemptor, view, proposed) if not is_short else None
                    )
                if chosen is not None:
                    return view, chosen
        except Exception as error:
            raise UndecidableError(
                f"pod {preemptor.key!r}: {detail}; and the baseline: {error}"
            ) from error
        if short is not None:
            raise _ShortOfResourcesError(str(short)) from short
        return view, None

    def _for_all_resources(
        self, preemptor: PodRecord, view: ClusterView, proposed: Mapping[str, Sequence[str]]
    ) -> Candidate | None:
        """Return the cheapest victim set that frees memory and the like, too; None = there is none.

        On each node all pods that may go are taken, and given back the most important first, as
        kube-scheduler does, while the preemptor fits in every respect.
        """
        best: tuple[float, Candidate] | None = None
        for node in range(len(view.node_names)):
            rows = self._that_may_go(preemptor, view, node)
            victims = _reprieve(preemptor, view, node, rows)
            if victims is None:
                continue
            candidate = view.candidate(node, victims, view.preemptor)
            if candidate is None:
                continue
            cost = view.cost_of(candidate, view.preemptor)
            if best and cost >= best[0]:
                continue
            try:
                self.check(preemptor, view, candidate, proposed)
            except GuardError:
                continue
            best = cost, candidate
        return best[1] if best else None

    def _that_may_go(self, preemptor: PodRecord, view: ClusterView, node: int) -> list[int]:
        """Return the rows of a node's pods that may be victims, the most important first."""
        c, name = view.arrays, view.node_names[node]
        rows = map(int, c.node_pods[node, : c.nodes[node]["num_pods"]])
        found = [
            row
            for row in rows
            if c.live[row]["status"] != TERMINATING
            and self.may_go(preemptor, name, view.record(row).uid)
            and all(
                b.status.disruptionsAllowed > 0 for b in self.cache.budgets.of([view.record(row)])
            )
        ]
        return sorted(found, key=lambda row: view.record(row).importance)

    def run(self, selector: VictimSelector, view: ClusterView, limit_s: float) -> Candidate | None:
        """Let a selector choose, see `SelectorRunner.select`."""
        return self._runner.select(selector, view, view.preemptor, limit_s)

    def _has_candidates(self, view: ClusterView, preemptor: PodRecord) -> bool:
        aligned = preemptor.guaranteed
        return view.find(view.preemptor, aligned, 1)[1] > 0

    def check(
        self,
        preemptor: PodRecord,
        view: ClusterView,
        chosen: Candidate | None,
        proposed: Mapping[str, Sequence[str]],
        may_violate: bool = False,
    ) -> None:
        """Refuse a choice that must not be carried out; of a gang, its leader is the preemptor.

        Raises:
            GuardError: names the guard and what broke it.
        """
        if chosen is None:
            return
        victims = view.victims_of(chosen)
        check(
            Proposal(
                preemptor=preemptor,
                candidate=chosen,
                view=view,
                victims=victims,
                now=self.cache.pods,
                budgets=self.cache.budgets.of(victims),
                may_violate=may_violate,
                proposed_victims=bool(proposed.get(view.node_names[chosen.node])),
                now_s=self.cache.clock(),
            )
        )

    def _violate(
        self,
        preemptor: PodRecord,
        nodes: dict[str, NodeState],
        proposed: Mapping[str, Sequence[str]],
    ) -> Decision | None:
        """Take the candidate that violates the fewest budgets, now that none violates none."""
        guaranteed = preemptor.guaranteed
        view = self.cache.view(preemptor, nodes, worst_case=guaranteed, respect_budgets=False)
        best: tuple[int, Candidate] | None = None
        for candidate in view.candidates(view.preemptor, guaranteed):
            victims = view.victims_of(candidate)
            count = violations(victims, self.cache.budgets.of(victims))
            if best is not None and count >= best[0]:
                continue
            try:
                self.check(preemptor, view, candidate, proposed, may_violate=True)
            except GuardError:
                continue
            best = count, candidate
        if best is None:
            return None
        why = f"no victim set is within the budgets; {best[0]} violations"
        return self._answer(preemptor, view, best[1], self.fallback.name, "budget", why)

    def _answer(
        self,
        preemptor: PodRecord,
        view: ClusterView,
        chosen: Candidate,
        selector: str,
        cause: str,
        detail: str,
    ) -> Decision:
        victims = view.victims_of(chosen)
        state = view.states[chosen.node]
        guaranteed = preemptor.guaranteed
        sure = state.known or (guaranteed and state.hardware.known)
        level = chosen.level.name.lower() if sure else "unknown"
        now_s = self.cache.clock()
        reasons = [f"placed on {level} level" if sure else "its placement is not known"]
        reasons += [*view.out_of_range, *about(victims, now_s)]
        return Decision(
            node=view.node_names[chosen.node],
            victims=tuple(victims),
            gpus=tuple(i for i in range(MAX_GPUS) if chosen.gpu_mask >> i & 1) if sure else (),
            level=level,
            violations=violations(victims, self.cache.budgets.of(victims)),
            selector=selector,
            fallback=cause,
            detail=detail,
            out_of_range="; ".join(view.out_of_range),
            reasons=tuple(reasons),
            price=lambda: view.cost_of(chosen, view.preemptor),
            wait_s=chosen.wait_s,
        )

    def _foreign(
        self,
        states: dict[str, NodeState],
        preemptor: PodRecord,
        proposed: Mapping[str, Sequence[str]],
    ) -> set[str]:
        """Return the nodes whose victims are about something else: the preemptor fits as it is."""
        guaranteed = preemptor.guaranteed
        gpus, cores = preemptor.gpus, preemptor.cores
        roomy = [
            name
            for name, state in states.items()
            if (free := state.sure if guaranteed else state.counted).num_gpus >= gpus
            and free.num_cores >= cores
        ]
        return {
            name
            for name in roomy
            if proposed.get(name)
            and (not guaranteed or self.room.alignment(states[name], preemptor)[0])
        }

    def _broken(self, preemptor: PodRecord, nodes: Sequence[str]) -> str:
        """Name a node that is left out, and why."""
        for name in nodes:
            state = self.places.state_of(name, preemptor)
            if state is not None and state.broken:
                return f", such as {name}: {state.broken}"
        return ""

    def may_go(self, preemptor: PodRecord, node: str, uid: str) -> bool:
        """Say whether a pod may be a victim at all."""
        pod = self.cache.pods.get(uid)
        if pod is None or pod.node != node or pod.priority >= preemptor.priority:
            return False
        protected = pod.is_protected(self.cache.clock())
        return not (protected or pod.daemon or pod.static or pod.terminating or pod.finished)

    def violations(self, uids: Sequence[str]) -> int:
        """Return how many of some pods violate a disruption budget, all evicted."""
        victims = [self.cache.pods[uid] for uid in uids]
        return violations(victims, self.cache.budgets.of(victims))

    def stands(self, preemptor: PodRecord, node: str, uids: Sequence[str]) -> bool:
        """Say whether victims that kube-scheduler chose may be evicted, as far as is known here."""
        if not all(self.may_go(preemptor, node, uid) for uid in uids):
            return False
        if not preemptor.gpus:
            return True
        state = self.places.state_of(node, preemptor)
        victims = [self.cache.pods[uid] for uid in uids]
        if state is None or short_of(together([preemptor]), state, victims):
            return False
        return not preemptor.guaranteed or self._aligns(preemptor, node, uids)

    def _aligns(self, preemptor: PodRecord, node: str, uids: Sequence[str]) -> bool:
        """Say whether a guaranteed pod is aligned for sure once those pods are gone."""
        state = self.places.state_of(node, preemptor)
        if state is None or state.broken or not state.hardware.known:
            return False
        view = self.cache.view(preemptor, {node: state}, worst_case=True)
        gone = [row for row, record in enumerate(view.records) if row and record.uid in uids]
        return view.fits(0, gone, aligned=True)


def about(victims: Sequence[PodRecord], now_s: int) -> list[str]:
    """Return what people should know of some victims."""
    return [
        f"{victim.key}: priority {victim.priority}, {victim.gpus} GPUs, "
        f"running {victim.age_s(now_s)} s"
        for victim in victims
    ]


def _reprieve(
    preemptor: PodRecord, view: ClusterView, node: int, rows: Sequence[int]
) -> list[int] | None:
    """Return which of some pods have to go, None where not even all of them suffice."""
    aligned, asked = preemptor.guaranteed, together([preemptor])

    def suffices(gone: Sequence[int]) -> bool:
        records = [view.record(row) for row in gone]
        return view.fits(node, gone, aligned) and not short_of(asked, view.states[node], records)

    gone = list(rows)
    if not suffices(gone):
        return None
    for row in rows:
        rest = [other for other in gone if other != row]
        if suffices(rest):
            gone = rest
    return gone


def _parts(nodes: dict[str, NodeState]) -> Iterator[dict[str, NodeState]]:
    """Return the nodes in parts: the baseline looks at every set of a node, and the first will do."""
    names = list(nodes)
    for at in range(0, len(names), PART):
        yield {name: nodes[name] for name in names[at : at + PART]}
