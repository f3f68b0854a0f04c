"""What no answer may do, whoever chose it: each guard says why a proposal is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import gt

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.arrays import TERMINATING
from flextopo.cluster.state.decision import Candidate
from flextopo.policies.serving.budgets import violations
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.objects import BudgetObject
from flextopo.policies.serving.records import PodRecord, together
from flextopo.policies.serving.view import ClusterView


class GuardError(FlextopoError):
    """Report an answer that must not be carried out.

    Attributes:
        guard: name of the guard that refused it.
    """

    def __init__(self, guard: str, why: str) -> None:
        super().__init__(f"{guard}: {why}")
        self.guard = guard


@dataclass(frozen=True)
class Proposal:
    """An answer before it is given.

    Attributes:
        preemptor: the pending pod; of a gang, its leader.
        candidate: the answer; indices are those of the view.
        view: what the selector saw.
        victims: the records behind the candidate's victims.
        now: the pods as the cache has them now, by uid.
        budgets: those that cover any of the victims.
        proposed_victims: kube-scheduler sent the node with victims.
        may_violate: no answer within the budgets exists.
        now_s: Unix time.
    """

    preemptor: PodRecord
    candidate: Candidate
    view: ClusterView
    victims: Sequence[PodRecord]
    now: Mapping[str, PodRecord]
    budgets: Sequence[BudgetObject]
    proposed_victims: bool
    may_violate: bool
    now_s: int

    @cached_property
    def seated(self) -> dict[int, list[PodRecord]]:
        """Return who is to get a place on which node, by its index: of a gang, all members."""
        found: dict[int, list[PodRecord]] = {}
        for seat in self.candidate.seats:
            found.setdefault(seat.node, []).append(self.view.record(seat.pod))
        return found or {self.candidate.node: [self.preemptor]}

    @cached_property
    def asked(self) -> dict[int, dict[str, int]]:
        """Return what they ask for in all on each node, see `together`."""
        return {node: together(pods) for node, pods in self.seated.items()}

    @cached_property
    def nodes(self) -> list[str]:
        """Return the names of the nodes."""
        return [self.view.node_names[node] for node in self.seated]

    @cached_property
    def leaving(self) -> list[int]:
        """Return the rows of the pods that are on their way out and counted on."""
        return self.view.leaving(self.candidate)

    def fits(self, victims: Sequence[int]) -> bool:
        """Say whether all preemptors fit without those pods, aligned if they are guaranteed."""
        guaranteed = self.preemptor.guaranteed
        if self.candidate.seats:
            return self.view.seat(self.candidate, victims, guaranteed) is not None
        return self.view.fits(self.candidate.node, [*victims, *self.leaving], guaranteed)

    def short_of(self, victims: Sequence[int]) -> str:
        """Return a resource that does not suffice without those pods, and where; empty = all do."""
        gone = [self.view.record(row) for row in [*victims, *self.leaving]]
        for node, asked in self.asked.items():
            name = self.view.node_names[node]
            here = [pod for pod in gone if pod.node == name] if self.candidate.seats else gone
            short = short_of(asked, self.view.states[node], here)
            if short:
                return f"{short} on node {name}"
        return ""


def _freed(name: str, pods: Sequence[PodRecord]) -> int:
    """Return how much of a resource some pods leave; each is a pod, too."""
    return sum(pod.requests.get(name, 0) for pod in pods) + (1000 * len(pods)) * (name == "pods")


def short_of(asked: Mapping[str, int], state: NodeState, victims: Sequence[PodRecord]) -> str:
    """Return a resource of which a node has too little with the victims gone, empty = none.

    Args:
        asked: what is to fit there, see `together`.
        state: the node.
        victims: pods on it.
    """
    for name, need in asked.items():
        if name not in state.allocatable:
            # Kubernetes knows these on every node, whether the node tells of them or not.
            if need and name not in ("cpu", "memory", "ephemeral-storage", "pods"):
                return name
            continue
        freed = _freed(name, victims)
        if state.handed.get(name, 0):
            going = [victim for victim in victims if victim.uid in state.going]
            freed -= min(state.handed[name], _freed(name, going))
        if state.allocatable[name] - state.requested.get(name, 0) + freed < need:
            return name
    return ""


Guard = Callable[[Proposal], str]
"""Returns why the proposal is refused, empty if it is not."""


def each_once(p: Proposal) -> str:
    """Refuse to name a victim twice."""
    rows = p.candidate.victims
    twice = next((row for row in rows if rows.count(row) > 1), None)
    return "" if twice is None else f"{p.view.name(twice)} is named twice"


def of_lower_priority(p: Proposal) -> str:
    """Refuse victims of equal or higher priority."""
    for victim in p.victims:
        if victim.priority >= p.preemptor.priority:
            return f"{victim.key} has priority {victim.priority}"
    return ""


def on_the_node(p: Proposal) -> str:
    """Refuse victims that are not on the node, or not any more."""
    for victim in p.victims:
        now = p.now.get(victim.uid)
        if now is None or now.finished or now.node not in p.nodes:
            return f"{victim.key} is not on node {', '.join(p.nodes)}"
    return ""


def not_terminating(p: Proposal) -> str:
    """Refuse victims that are on their way out already."""
    rows = dict(zip(p.candidate.victims, map(p.view.record, p.candidate.victims), strict=True))
    for row, victim in rows.items():
        doomed = p.view.arrays.live["status"][row] == TERMINATING
        if doomed or p.now.get(victim.uid, victim).terminating:
            return f"{victim.key} is terminating"
    return ""


def not_protected(p: Proposal) -> str:
    """Refuse victims that forbid preemption or are in their protected time."""
    for victim in p.victims:
        if victim.is_protected(p.now_s):
            return f"{victim.key} is protected"
    return ""


def not_static(p: Proposal) -> str:
    """Refuse static pods, which their kubelet would start again."""
    return next((f"{victim.key} is a static pod" for victim in p.victims if victim.static), "")


def not_daemon(p: Proposal) -> str:
    """Refuse daemons, which would come back to the same node."""
    return next((f"{victim.key} is a daemon" for victim in p.victims if victim.daemon), "")


def within_budgets(p: Proposal) -> str:
    """Refuse to violate a disruption budget while there may be another way."""
    count = 0 if p.may_violate else violations(p.victims, p.budgets)
    return f"{count} victims violate disruption budgets" if count else ""


def fits(p: Proposal) -> str:
    """Refuse a victim set that does not let all preemptors fit, aligned if they are guaranteed."""
    where = ", ".join(p.nodes)
    return "" if p.fits(p.candidate.victims) else f"{p.preemptor.key} does not fit on {where}"


def placement_known(p: Proposal) -> str:
    """Refuse to promise an alignment that rests on pods nobody knows the place of."""
    if not p.preemptor.guaranteed:
        return ""
    known: set[int] = set()
    for node, name in zip(p.seated, p.nodes, strict=True):
        state = p.view.states[node]
        if not state.hardware.known:
            return f"node {name} has no FlexTopo"
        claimed = int(p.view.arrays.nodes["gpu_free"][node])
        shown, sure = p.view.arrays.cores_free[node].tolist(), state.sure.cores_free.tolist()
        if claimed & ~state.sure.gpu_free or any(map(gt, shown, sure)):
            return f"placements on node {name} are not known"
        known.update(map(id, state.sure.records))
    for victim in p.victims:
        if id(victim) not in known:
            return f"the placement of {victim.key} is not known"
    return ""


def fits_all_resources(p: Proposal) -> str:
    """Refuse a victim set that leaves the preemptor short of memory or anything else counted."""
    short = p.short_of(p.candidate.victims)
    return f"{short} does not suffice" if short else ""


def none_to_spare(p: Proposal) -> str:
    """Refuse a set from which a victim could stay."""
    for row in p.candidate.victims:
        rest = [other for other in p.candidate.victims if other != row]
        if p.fits(rest) and not p.short_of(rest):
            return f"{p.view.name(row)} is not needed"
    return ""


def not_emptied(p: Proposal) -> str:
    """Refuse to find room on a node that came with victims; what is leaving is another matter."""
    empty = not p.victims and not p.candidate.wait_s
    return f"node {p.nodes[0]} proposed with victims" if p.proposed_victims and empty else ""


def seats_everybody(p: Proposal) -> str:
    """Refuse seats for some members of a gang, for one twice, or on nodes that there are not."""
    members, seats = p.view.num_preemptors, p.candidate.seats
    if members == 1:
        return f"{len(seats)} seats for a pod alone" if seats else ""
    if sorted(seat.pod for seat in seats) != list(range(members)):
        return f"seats for {len(seats)} of {members} members"
    odd = [seat.node for seat in seats if not 0 <= seat.node < p.view.num_nodes]
    return f"node {odd[0]} of {p.view.num_nodes}" if odd else ""


def as_it_says(p: Proposal) -> str:
    """Refuse an answer whose members would get other GPUs, cores or levels than it says."""
    if not p.candidate.seats:
        return ""
    aligned = p.view.is_aligned(p.candidate, p.view.preemptor)
    found = p.view.seat(p.candidate, p.candidate.victims, aligned)
    same = found and (found.seats, found.tier) == (p.candidate.seats, p.candidate.tier)
    return "" if same else f"the gang of {p.preemptor.key} would sit elsewhere on its nodes"


GUARDS: tuple[Guard, ...] = (
    seats_everybody,
    each_once,
    of_lower_priority,
    on_the_node,
    not_terminating,
    not_protected,
    not_static,
    not_daemon,
    within_budgets,
    fits,
    as_it_says,
    placement_known,
    fits_all_resources,
    none_to_spare,
    not_emptied,
)


def check(proposal: Proposal) -> None:
    """Refuse a proposal that breaks a guard.

    Raises:
        GuardError: names the guard and what broke it.
    """
    for guard in GUARDS:
        why = guard(proposal)
        if why:
            raise GuardError(guard.__name__, why)
