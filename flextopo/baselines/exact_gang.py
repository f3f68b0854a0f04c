"""The true minimum of a gang's own loss, by constraint programming over every way to host its members.

Shares the loss of one victim or one member with the candidate kernel, but no search: which victim sets a
server may lose, how many members it may take, and how servers go together is all decided here. Needs
OR-tools: `pip install flextopo[exact]`.

Each server offers options: so many members of each size, without these victims. One that evicts more than
another and aligns no better is left out, which loses no minimum: evicting costs, and uses up budgets. The
solver chooses at most one option a server, so that all members sit, within the required level; each
PodGroup that stops is paid once, members that leave others running each by itself, and the last to be free
sets how long all members wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from flextopo.baselines.gang_members import parts_of
from flextopo.baselines.residents import NodeView
from flextopo.baselines.workloads import Size, sizes_of
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.arrays import MAX_PODS_PER_NODE, spare_members
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.gang_seats import seats_on
from flextopo.cluster.state.gangs import tier_shortfall
from flextopo.cluster.state.loss import (
    eviction_cost,
    misalignment_cost,
    network_row,
    stopping_cost,
    waiting_cost,
)
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import CLUSTER, SERVER, is_aligned, level_deficit

UNIT = 1000.0
"""The solver counts in whole thousandths of a weighted GPU-second."""

MANY_PODS = 14
"""Evictable pods of a server from which on the solver would be given too many victim sets."""


class Option(NamedTuple):
    """What a server may take: how many members of each size, who leaves, and what that comes to.

    Fields: `wait_s` until all of it is free; `misaligned`, expected loss of its members' levels.
    """

    node: int
    counts: tuple[int, ...]
    victims: tuple[int, ...]
    wait_s: int
    misaligned: float


class Hosting:
    """What one server may take.

    Args:
        cluster: the cluster, not modified.
        node: index of the node.
        sizes: members by what they ask for, the largest first.
        preemptor: any member.
        aligned: only aligned places are legal.

    Raises:
        FlextopoError: more than `MANY_PODS` pods may be evicted there.
    """

    def __init__(
        self,
        cluster: ClusterState,
        node: int,
        sizes: Sequence[Size],
        preemptor: Pod,
        aligned: bool,
    ) -> None:
        self.cluster, self.node, self.sizes, self.aligned = cluster, node, sizes, aligned
        self.pods = [pod.index for pod in NodeView(cluster, node).evictable(preemptor)]
        if len(self.pods) > MANY_PODS:
            raise FlextopoError(
                f"exact: {len(self.pods)} pods of node {node} may be evicted for gang "
                f"{preemptor.name!r}; legal: up to {MANY_PODS}"
            )
        self.room = MAX_PODS_PER_NODE - int(cluster.arrays.nodes[node]["num_pods"])
        self.model = cluster.model(node)

    def options(self) -> Iterator[Option]:
        """Yield what the server may take, without what is never better."""
        most = [range(len(size.members) + 1) for size in self.sizes]
        pairs = [(a, b) for a in most[0] for b in (most[1] if len(most) > 1 else (0,))]
        for counts in pairs:
            if 0 < sum(counts) <= self.room:
                yield from self._for(counts[: len(self.sizes)])

    def _for(self, counts: tuple[int, ...]) -> Iterator[Option]:
        grace_s, found = int(self.cluster.costs.grace_s), list[tuple[frozenset[int], float]]()
        needed = sum(n * size.gpus for n, size in zip(counts, self.sizes, strict=True))
        if needed > self.model.num_gpus:
            return
        free = self._without_victims(counts)
        if free is not None:
            yield free
            if free.wait_s == 0:
                found.append((frozenset(), free.misaligned))
        soon = self.cluster.leaving_slots(self.node, grace_s)
        for number in range(1, len(self.pods) + 1):
            for victims in combinations(self.pods, number):
                smaller = [cost for other, cost in found if other <= set(victims)]
                if smaller and min(smaller) <= 0.0:
                    continue
                slots = self.cluster.slots_of(self.node, victims) | soon
                cost = self._misaligned(counts, slots)
                if cost is not None and all(cost < other for other in smaller):
                    found.append((frozenset(victims), cost))
                    yield Option(self.node, counts, victims, grace_s, cost)

    def _without_victims(self, counts: tuple[int, ...]) -> Option | None:
        """Return what the server takes beside all others, as `gang_seats` has it: now, or soon if that is not legal."""
        cluster, node = self.cluster, self.node
        soon = cluster.leaving_slots(node, int(cluster.costs.grace_s))
        for slots, wait_s in ((0, 0), (soon, cluster.free_s(node, soon) if soon else 0)):
            cost = self._misaligned(counts, slots)
            if cost is not None:
                return Option(node, counts, (), wait_s, cost)
        return None

    def _seats(self, counts: tuple[int, ...], slots: int) -> Any:
        pods = [m for n, size in zip(counts, self.sizes, strict=True) for m in size.members[:n]]
        free, cores = self.cluster.freed(self.node, slots)
        specs = self.cluster.arrays.pods[pods]
        if free.bit_count() < specs["gpus"].sum() or sum(cores) < specs["cores"].sum():
            return None
        return seats_on(self.cluster, self.node, pods, slots)

    def _misaligned(self, counts: tuple[int, ...], slots: int) -> float | None:
        seats = self._seats(counts, slots)
        if seats is None:
            return None
        c, total = self.cluster.arrays, 0.0
        for pod, seat in seats.items():
            best = self.model.best_level(int(c.pods[pod]["gpus"]), int(c.pods[pod]["cores"]))
            if best is None or (self.aligned and not is_aligned(seat.level, best)):
                return None
            deficit = level_deficit(seat.level, best)
            total += float(misalignment_cost(c, self.cluster.costs, pod, deficit))
        return total


class Program:
    """The choice of options as a constraint program.

    Args:
        cluster: the cluster, not modified.
        sizes: members by what they ask for.
        options: of all servers.
        tier: the level of the network that all must lie within.
    """

    def __init__(
        self, cluster: ClusterState, sizes: Sequence[Size], options: Sequence[Option], tier: int
    ) -> None:
        self.cp = load_solver()
        self.model = self.cp.CpModel()
        self.cluster, self.sizes, self.options = cluster, sizes, options
        self.takes = [self.model.new_bool_var(f"o{i}") for i in range(len(options))]
        self.cost: list[Any] = []
        for option, takes in zip(options, self.takes, strict=True):
            self._pay(option.misaligned, takes)
        self._seat_all()
        self._evict()
        self._wait()
        self._spread(tier)

    def _pay(self, cost: float, variable: Any) -> None:
        self.cost.append(round(cost * UNIT) * variable)

    def _seat_all(self) -> None:
        by_node: dict[int, list[Any]] = {}
        for option, takes in zip(self.options, self.takes, strict=True):
            by_node.setdefault(option.node, []).append(takes)
        for variables in by_node.values():
            self.model.add_at_most_one(variables)
        for at, size in enumerate(self.sizes):
            pairs = zip(self.options, self.takes, strict=True)
            seats = sum(option.counts[at] * takes for option, takes in pairs)
            self.model.add(seats == len(size.members))

    def _evict(self) -> None:
        """Pay each victim or PodGroup once; keep to the disruption budgets."""
        c, costs = self.cluster.arrays, self.cluster.costs
        paid: dict[int, Any] = {}
        used: dict[int, list[Any]] = {}
        gone: dict[int, dict[int, list[Any]]] = {}
        for option, takes in zip(self.options, self.takes, strict=True):
            for victim in option.victims:
                spec = c.pods[victim]
                if spare_members(c, victim) > 0:
                    gone.setdefault(int(spec["group"]), {}).setdefault(victim, []).append(takes)
                else:
                    key = int(spec["group"]) if spec["group"] >= 0 else -1 - victim
                    if key not in paid:
                        paid[key] = self.model.new_bool_var(f"v{victim}")
                        self._pay(float(eviction_cost(c, victim, costs)), paid[key])
                    self.model.add_implication(takes, paid[key])
                if spec["pdb"] >= 0:
                    used.setdefault(int(spec["pdb"]), []).append(takes)
        for members in gone.values():
            self._evict_some(members)
        for pdb, variables in used.items():
            self.model.add(sum(variables) <= max(0, int(c.pdb_left[pdb])))

    def _evict_some(self, members: dict[int, list[Any]]) -> None:
        """Pay each member of a PodGroup that is evicted, or all of them where too few are left."""
        c, costs = self.cluster.arrays, self.cluster.costs
        some = next(iter(members))
        all_stop = self.model.new_bool_var(f"g{some}")
        evicted = sum(variable for variables in members.values() for variable in variables)
        self.model.add(evicted <= int(spare_members(c, some))).only_enforce_if(~all_stop)
        group = c.pods["group"] == c.pods[some]["group"]
        stops = {int(pod): self.model.new_bool_var(f"v{pod}") for pod in np.flatnonzero(group)}
        for pod, variable in stops.items():
            self._pay(float(stopping_cost(c, pod, costs)), variable)
            self.model.add_implication(all_stop, variable)
            for takes in members.get(pod, ()):
                self.model.add_implication(takes, variable)

    def _wait(self) -> None:
        """All members wait for the last."""
        c, costs = self.cluster.arrays, self.cluster.costs
        waits = sorted({option.wait_s for option in self.options})
        until = {wait_s: self.model.new_bool_var(f"w{wait_s}") for wait_s in waits}
        self.model.add_exactly_one(until.values())
        members = [member for size in self.sizes for member in size.members]
        for wait_s, variable in until.items():
            waiting = sum(float(waiting_cost(c, costs, pod, float(wait_s))) for pod in members)
            self._pay(waiting, variable)
        for option, takes in zip(self.options, self.takes, strict=True):
            later = [variable for wait_s, variable in until.items() if wait_s >= option.wait_s]
            self.model.add_bool_or(*later).only_enforce_if(takes)

    def _spread(self, required: int) -> None:
        """Keep all members within one part of the level that is chosen and paid."""
        c, members = self.cluster.arrays, [member for size in self.sizes for member in size.members]
        chosen = {t: self.model.new_bool_var(f"t{t}") for t in range(SERVER, required + 1)}
        self.model.add_exactly_one(chosen.values())
        for tier, variable in chosen.items():
            below = int(tier_shortfall(c, members[0], tier))
            row = int(network_row(below)) if below else 0
            costs = (float(misalignment_cost(c, self.cluster.costs, pod, row)) for pod in members)
            self._pay(sum(costs), variable)
            if tier < CLUSTER:
                self._within_one(tier, variable)

    def _within_one(self, tier: int, chosen: Any) -> None:
        part_of = {n: at for at, part in enumerate(parts_of(self.cluster, tier)) for n in part}
        parts: dict[int, Any] = {}
        for option, takes in zip(self.options, self.takes, strict=True):
            at = part_of[option.node]
            if at not in parts:
                parts[at] = self.model.new_bool_var(f"p{tier}.{at}")
            self.model.add_implication(takes, parts[at])
        self.model.add(sum(parts.values()) <= 1).only_enforce_if(chosen)

    def solve(self) -> list[Option] | None:
        """Return the options of the least cost, None if no choice is legal.

        Raises:
            FlextopoError: the solver gave up.
        """
        self.model.minimize(sum(self.cost))
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1  # the same answer each time
        solver.parameters.random_seed = 0
        status = solver.solve(self.model)
        if status == self.cp.INFEASIBLE:
            return None
        if status != self.cp.OPTIMAL:
            raise FlextopoError(f"exact: the solver ended {solver.status_name(status)}")
        pairs = zip(self.options, self.takes, strict=True)
        return [option for option, takes in pairs if solver.boolean_value(takes)]


def load_solver() -> Any:
    """Return the module of OR-tools that solves for gangs.

    Raises:
        FlextopoError: it is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise FlextopoError(
            "exact: a gang's minimum needs OR-tools; legal: pip install 'flextopo[exact]', or "
            "other selectors"
        ) from None
    return cp_model


def gang_minimum(
    cluster: ClusterState, preemptor: Pod, aligned: bool
) -> tuple[dict[int, int], tuple[int, ...]] | None:
    """Return seats and victims of the least own loss of any legal decision for a gang.

    Args:
        cluster: the cluster, not modified.
        preemptor: any member.
        aligned: the guaranteed filter binds it.

    Returns:
        Node of each member, and victims; None where no victim set works.

    Raises:
        FlextopoError: OR-tools is missing, or a server has too many evictable pods.
    """
    sizes = sizes_of(cluster, preemptor)
    options = [
        option
        for node in range(cluster.num_nodes)
        for option in Hosting(cluster, node, sizes, preemptor, aligned).options()
    ]
    if not options:
        return None
    tier = int(cluster.arrays.pods[preemptor.index]["required_tier"])
    chosen = Program(cluster, sizes, options, tier).solve()
    if chosen is None:
        return None
    seats: dict[int, int] = {}
    for at, size in enumerate(sizes):
        nodes = [option.node for option in chosen for _ in range(option.counts[at])]
        seats.update(zip(size.members, nodes, strict=True))
    return seats, tuple(victim for option in chosen for victim in option.victims)
