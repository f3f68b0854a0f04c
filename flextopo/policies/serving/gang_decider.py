"""One decision about a gang: the same selector, time and guards as for a pod alone, over all its nodes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flextopo.baselines.policies import GreedyCost
from flextopo.cluster.state.arrays import network_table
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.gangs import find_part, gang_of, part_end
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import TIERS
from flextopo.cluster.topology.model import MAX_GPUS
from flextopo.cluster.topology.network import network_of
from flextopo.policies.serving.budgets import violations
from flextopo.policies.serving.decider import Decider, about
from flextopo.policies.serving.decision import Decision, Member
from flextopo.policies.serving.gangs import Preemptors, lay_out
from flextopo.policies.serving.guards import GuardError
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.runner import FALLBACK_FACTOR, UndecidableError
from flextopo.policies.serving.view import ClusterView, Together

TRIED = 64
"""Candidates that the baseline tries, the cheapest first, until one passes all guards."""


@dataclass(frozen=True)
class GangDecider:
    """Decides about pods that start together.

    Attributes:
        decider: its selector decides, within its time and behind its guards; about a pod alone it decides
            itself.
    """

    decider: Decider

    def nodes(self, gang: Preemptors, among: Iterable[str] | None = None) -> list[str]:
        """Return the nodes that every member may go to, wherever the others do.

        Args:
            gang: who starts together.
            among: names of nodes, by default of all.
        """
        cache = self.decider.cache
        traits, nowhere = cache.hosts.traits, {pod.uid: "" for pod in gang.members}
        every = cache.nodes.states if among is None else among
        names = [name for name in every if gang.may_lie_on(name, traits)]
        for pod in gang.members:
            reach = cache.reach_of(pod, nowhere if len(gang.members) > 1 else None)
            names = [name for name in names if not reach.why_not(name)]
        return names

    def place_of(self, pod: PodRecord) -> str:
        """Return the node that is kept for a pending pod, empty for none."""
        told = self.decider.cache.reservations.answered(pod.uid)
        return told[0] if told is not None else pod.nominated

    def states(self, gang: Preemptors, nodes: Sequence[str]) -> dict[str, NodeState]:
        """Return those of the nodes that can be decided about; what is kept for a member is free."""
        return self.decider.places.states_of(nodes, gang.leader, gang.members[1:])

    def decide(self, gang: Preemptors, nodes: Sequence[str]) -> Decision:
        """Choose a place for every member, and victims for all of them or for none.

        Args:
            gang: who starts together.
            nodes: names of nodes that all of them may go to.

        Raises:
            UndecidableError: no node is known, or the baseline failed too.
        """
        begin = time.perf_counter()
        found, failed = None, None
        for some in gang.attempts():
            try:
                found = self._decide(some, nodes)
            except UndecidableError as error:
                failed = failed or error
            if found is not None:
                break
        if found is None and failed is not None:
            raise failed
        found = found or self._nothing()
        found.elapsed_ms = (time.perf_counter() - begin) * 1000.0
        return found

    def _nothing(self) -> Decision:
        cause, detail = self.decider.stale()
        name, why = self.decider.selector.name, ("no victim set helps",)
        return Decision(None, selector=name, fallback=cause, detail=detail, reasons=why)

    def _decide(self, gang: Preemptors, nodes: Sequence[str]) -> Decision | None:
        """Decide about so many members, None = no victims would let them in."""
        if len(gang.members) == 1:
            return self.decider.decide(gang.leader, nodes, may_violate=False)
        states = self.states(gang, nodes)
        if not states:
            raise UndecidableError(
                f"gang {gang.name!r}: none of {len(nodes)} nodes can be decided about; legal: nodes "
                "with GPUs that the watch has seen and every member may go to"
            )
        guaranteed = gang.leader.guaranteed
        known = {
            name: state
            for name, state in states.items()
            if state.hardware.known and (guaranteed or state.known)
        }
        cause, detail = self.decider.stale()
        found = self._choose(gang, known, cause, detail) if known else None
        if found is None and not guaranteed and len(known) < len(states):
            flat = any(not state.hardware.known for state in states.values())
            why = "missing_flextopo" if flat else "unknown_placement"
            found = self._choose(gang, states, why, f"{len(states) - len(known)} nodes, {why}")
        return found

    def _choose(
        self, gang: Preemptors, states: Mapping[str, NodeState], cause: str, detail: str
    ) -> Decision | None:
        """Let the selector choose, or the baseline where there is a cause; None = no candidates."""
        view, selector = self._view(gang, states), self.decider.selector.name
        chosen: Candidate | None = None
        if not cause:
            seen = view
            chosen, cause, detail = self.decider.ask_selector(
                view, lambda chosen: self._check(gang, seen, chosen)
            )
        if cause:
            selector = GreedyCost.name
            # A selector that was given up on may still read what it was given.
            view = self._view(gang, states)
            chosen = self._ask_baseline(gang, view, detail)
        if chosen is not None:
            chosen = self._at_home(gang, view, chosen)
            beyond = "; ".join(view.out_of_range)
            return self._answer(
                gang, view, chosen, Decision(None, (), (), None, 0, selector, cause, detail, beyond)
            )
        if not cause and view.find(view.preemptor, gang.leader.guaranteed, 1)[1]:
            return Decision(None, selector=selector, reasons=("it is better to wait",))
        return None

    def _ask_baseline(self, gang: Preemptors, view: ClusterView, detail: str) -> Candidate | None:
        """Return the cheapest candidate that may be carried out.

        Raises:
            UndecidableError: there are candidates, and none of them may.
        """
        baseline = _Cheapest(self, gang)
        try:
            return self.decider.run(baseline, view, FALLBACK_FACTOR * self.decider.budget_s)
        except Exception as error:
            raise UndecidableError(
                f"gang {gang.name!r}: {detail}; and the baseline: {error}"
            ) from error

    def _at_home(self, gang: Preemptors, view: ClusterView, chosen: Candidate) -> Candidate:
        """Return the choice with members at the places that are kept for them, where equal ones may swap."""
        seats = {seat.pod: view.node_names[seat.node] for seat in chosen.seats}
        homes = {row: self.place_of(view.record(row)) for row in seats}
        for row, home in homes.items():
            asked = view.record(row).requests
            others = [
                other
                for other, node in seats.items()
                if node == home != homes[other] and view.record(other).requests == asked
            ]
            if seats[row] != home and others:
                seats[row], seats[others[0]] = home, seats[row]
        nodes = {row: view.node_names.index(name) for row, name in seats.items()}
        if nodes == {seat.pod: seat.node for seat in chosen.seats}:
            return chosen
        swapped = view.gang_candidate(view.preemptor, nodes, chosen.victims, gang.leader.guaranteed)
        try:
            self._check(gang, view, swapped)
        except GuardError:
            return chosen
        return swapped or chosen

    def _view(self, gang: Preemptors, states: Mapping[str, NodeState]) -> ClusterView:
        cache = self.decider.cache
        every = [*states, *(name for name in cache.nodes.states if name not in states)]
        layout = lay_out(gang, {name: cache.hosts.traits[name].labels for name in every})
        here, whole = (
            network_table(network_of(places, "nodes")[0])
            for places in (layout.places[: len(states)], layout.places)
        )
        together = Together(gang.members[1:], here, whole, layout.required, layout.preferred)
        guaranteed = gang.leader.guaranteed
        return cache.view(gang.leader, dict(states), worst_case=guaranteed, gang=together)

    def _check(self, gang: Preemptors, view: ClusterView, chosen: Candidate | None) -> None:
        """Refuse a choice that must not be carried out.

        Raises:
            GuardError: names the guard and what broke it.
        """
        self.decider.check(gang.leader, view, chosen, {})
        seats = {pod.uid: "" for pod in gang.members}
        for seat in chosen.seats if chosen else ():
            pod, node = view.record(seat.pod), view.node_names[seat.node]
            why = self.decider.cache.reach_of(pod, seats).why_not(node)
            if why:
                raise GuardError("beside_each_other", f"{pod.key} on node {node}: {why}")
            seats[pod.uid] = node

    def _answer(
        self, gang: Preemptors, view: ClusterView, chosen: Candidate, said: Decision
    ) -> Decision:
        victims, now_s = view.victims_of(chosen), self.decider.cache.clock()
        members = []
        for seat in chosen.seats:
            state = view.states[seat.node]
            sure = state.hardware.known and (gang.leader.guaranteed or state.known)
            gpus = tuple(i for i in range(MAX_GPUS) if seat.gpu_mask >> i & 1) if sure else ()
            level = seat.level.name.lower() if sure else "unknown"
            members.append(Member(view.record(seat.pod), view.node_names[seat.node], gpus, level))
        unsure = any(one.level == "unknown" for one in members)
        return replace(
            said,
            node=members[0].node,
            victims=tuple(victims),
            gpus=members[0].gpus,
            level="unknown" if unsure else chosen.level.name.lower(),
            violations=violations(victims, self.decider.cache.budgets.of(victims)),
            reasons=(
                f"{len(members)} members within {TIERS[chosen.tier].label}",
                *view.out_of_range,
                *about(victims, now_s),
            ),
            price=lambda: view.cost_of(chosen, view.preemptor),
            wait_s=chosen.wait_s,
            members=tuple(members),
            network_level=TIERS[chosen.tier].name,
        )

    def fits(self, gang: Preemptors) -> bool:
        """Say whether all members fit as things are, guaranteed ones aligned for sure."""
        guaranteed, cache = gang.leader.guaranteed, self.decider.cache
        least = min(pod.gpus for pod in gang.members)
        roomy = [
            name
            for name, state in cache.nodes.states.items()
            if state.counted.num_gpus >= least or cache.nominees(name)
        ]
        states = {
            name: state
            for name, state in self.states(gang, self.nodes(gang, roomy)).items()
            if not guaranteed or state.hardware.known
        }
        free = sum(state.resources(guaranteed).num_gpus for state in states.values())
        if free < sum(pod.gpus for pod in gang.members):
            return False
        view = self._view(gang, states)
        seated = _beside_all(view, guaranteed)
        try:
            self._check(gang, view, seated)
        except GuardError:
            return False
        return seated is not None


@dataclass(frozen=True)
class _Cheapest:
    """The deterministic baseline: the cheapest candidate that passes the guards."""

    gangs: GangDecider
    gang: Preemptors
    name: str = GreedyCost.name
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose; None where there is no candidate.

        Raises:
            GuardError: why the cheapest one is refused, where all are.
        """
        assert isinstance(cluster, ClusterView)
        found, count = cluster.find(preemptor, self.filter.binds(preemptor), TRIED)
        refused: GuardError | None = None
        for i in range(count):
            chosen = cluster.candidate_at(found, i, preemptor)
            try:
                self.gangs._check(self.gang, cluster, chosen)
            except GuardError as error:
                refused = refused or error
                continue
            return chosen
        if refused is not None:
            raise refused
        return None


def _beside_all(view: ClusterView, aligned: bool) -> Candidate | None:
    """Return where a gang fits beside everybody, None = nowhere."""
    c, pod = view.arrays, view.preemptor
    found = int(find_part(c, pod.index, aligned))
    if found < 0:
        return None
    begin, tier = found >> 2, found & 3
    larger = gang_of(c, pod.index, aligned)
    of_size: tuple[list[int], list[int]] = ([], [])
    for member in map(view.pod, view.gang(pod)):
        first = (member.gpus, member.cores) == (larger.gpus[0], larger.cores[0])
        of_size[not first].append(member.index)
    nodes: dict[int, int] = {}
    for rank in range(begin, int(part_end(c, tier, begin))):
        for size, field in enumerate(("first", "second")):
            for _ in range(int(c.gang_nodes[rank][field])):
                nodes[of_size[size].pop(0)] = int(c.network[rank, 0])
    return view.gang_candidate(pod, nodes, (), aligned)
