"""Victim searches on one node: given what fits, which sets of pods could go?

The searches know nothing of GPUs: `fits(gone)` says whether the preemptor fits once the residents
in `gone` have left. Residents come by descending importance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple, Protocol, TypeVar


class Evictable(Protocol):
    """What a search and the scores ask of a resident pod."""

    @property
    def priority(self) -> int:
        """Greater is more important."""
        ...

    @property
    def start_s(self) -> float:
        """When it started; infinite when unknown, which counts as newest."""
        ...

    @property
    def pdbs(self) -> tuple[int, ...]:
        """The disruption budgets it falls under."""
        ...


V = TypeVar("V", bound=Evictable)
Fits = Callable[[Sequence[V]], bool]


def by_importance(residents: Sequence[V]) -> list[V]:
    """Sort by descending importance: higher priority, then earlier start, then as given."""
    return sorted(residents, key=lambda resident: (-resident.priority, resident.start_s))


def split_by_budget(
    residents: Sequence[V], disruptions_allowed: Sequence[int]
) -> tuple[list[V], list[V]]:
    """Split pods into those whose eviction would violate a disruption budget, and the others.

    Each pod uses up one disruption of each of its budgets, in the order given; a budget that falls
    below zero is violated.

    References:
        kubernetes v1.36, preemption/preemption.go, filterPodsWithPDBViolation.
    """
    left = list(disruptions_allowed)
    violating: list[V] = []
    others: list[V] = []
    for resident in residents:
        violated = False
        for pdb in resident.pdbs:
            left[pdb] -= 1
            violated = violated or left[pdb] < 0
        (violating if violated else others).append(resident)
    return violating, others


def within_budget(residents: Sequence[V], disruptions_allowed: Sequence[int]) -> list[V]:
    """Keep the pods whose budgets have disruptions left; each kept pod uses one of each.

    References:
        Goedel scheduler: the last eligibility check.
    """
    left = list(disruptions_allowed)
    kept: list[V] = []
    for resident in residents:
        if all(left[pdb] > 0 for pdb in resident.pdbs):
            for pdb in resident.pdbs:
                left[pdb] -= 1
            kept.append(resident)
    return kept


def reprieve(residents: Sequence[V], fits: Fits[V], first: Sequence[V] = ()) -> list[V] | None:
    """Remove all, then put back whoever the preemptor does not need gone; the rest are victims.

    Args:
        residents: eligible pods by descending importance.
        fits: whether the preemptor fits without the given pods.
        first: those put back before all others (Kubernetes: whose budget would be violated).

    Returns:
        Victims in the order in which they could not be put back, None if the preemptor does not
        fit even without all of them.

    References:
        kubernetes v1.36, defaultpreemption/default_preemption.go, SelectVictimsOnNode.
    """
    gone = list(residents)
    if not fits(gone):
        return None
    victims: list[V] = []
    ahead = {id(resident) for resident in first}
    order = [*first, *(resident for resident in residents if id(resident) not in ahead)]
    for resident in order:
        without = [other for other in gone if other is not resident]
        if fits(without):
            gone = without
        else:
            victims.append(resident)
    return victims


def default_victims(
    residents: Sequence[V], disruptions_allowed: Sequence[int], fits: Fits[V]
) -> tuple[list[V], int] | None:
    """Select one node's victims as Kubernetes does.

    Args:
        residents: pods that may be evicted, by descending importance.
        disruptions_allowed: what each disruption budget has left.
        fits: whether the preemptor fits without the given pods.

    Returns:
        Victims by descending importance and how many of them violate a budget; None where nobody
        may be evicted, the preemptor fits not even without all, or it fits beside all of them.

    References:
        kubernetes v1.36, defaultpreemption/default_preemption.go, SelectVictimsOnNode.
    """
    if not residents:
        return None
    violating, _ = split_by_budget(residents, disruptions_allowed)
    chosen = reprieve(residents, fits, violating)
    if not chosen:
        return None
    ids, over = set(map(id, chosen)), set(map(id, violating))
    return [r for r in residents if id(r) in ids], len(ids & over)


class CandidateLimit(NamedTuple):
    """How many nodes a dry run looks for; kube-scheduler's defaults.

    Fields: `percentage` of all nodes, but not fewer than `absolute`.
    """

    percentage: int = 10
    absolute: int = 100

    def num_candidates(self, num_nodes: int) -> int:
        """Return how many candidates end the search."""
        return min(num_nodes, max(num_nodes * self.percentage // 100, self.absolute))


Found = TypeVar("Found")


def dry_run(
    num_nodes: int,
    search: Callable[[int], Found | None],
    violations: Callable[[Found], int],
    limit: CandidateLimit,
    scan_offset: int = 0,
) -> list[Found]:
    """Search nodes in a ring until there are enough candidates, one of them without violation.

    Args:
        num_nodes: how many nodes preemption could help on.
        search: finds the candidate of a node by its place, None where there is none.
        violations: disruption budgets that a candidate violates.
        limit: how many candidates are enough.
        scan_offset: place at which the scan begins; kube-scheduler draws it at random.

    Returns:
        Candidates without violations in the order of the scan, then the others; of each kind no
        more than are enough.

    References:
        kubernetes v1.36, preemption/preemption.go, DryRunPreemption (its workers run in parallel,
        so it may find a few candidates more).
    """
    enough = limit.num_candidates(num_nodes)
    clean: list[Found] = []
    violating: list[Found] = []
    for i in range(num_nodes):
        found = search((scan_offset + i) % num_nodes)
        if found is None:
            continue
        kept = violating if violations(found) else clean
        if len(kept) < enough:
            kept.append(found)
        if clean and len(clean) + len(violating) >= enough:
            break
    return clean + violating


def smallest_sets(residents: Sequence[V], fits: Fits[V], *, full: bool = False) -> list[list[V]]:
    """Return all victim sets of the smallest size that works, in lexicographic order.

    Residents are taken by ascending importance. Sizes grow from 0; the first size with any set
    ends the search, unless `full` asks for the sets of every size (the comparator of the paper's
    timing), of which those that contain a smaller set are left out.

    References:
        FlexTopo, algorithm 1.
    """
    ascending = list(reversed(residents))
    if not fits(ascending):
        return []
    found: list[list[V]] = []
    for size in range(len(ascending) + 1):
        for chosen in combinations(ascending, size):
            if fits(chosen):
                members = {id(resident) for resident in chosen}
                if not any(members.issuperset(map(id, smaller)) for smaller in found):
                    found.append(list(chosen))
        if found and not full:
            break
    return found
