"""One episode: a tape played on a cluster while a selector chooses the victims."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import FlextopoError, PodError, WorkloadError
from flextopo.cluster.scenario import BACKFILLS, Scenario
from flextopo.cluster.simulation.events import Events, empty_events
from flextopo.cluster.simulation.imagined import Futures, branch_losses_in, imagine
from flextopo.cluster.simulation.lookahead import (
    Branches,
    begin_branch,
    branch_losses,
    rules_ahead,
    run_greedy,
    warm_up,
)
from flextopo.cluster.simulation.rules import Rules
from flextopo.cluster.simulation.scheduler import (
    END,
    advance,
    carry_out,
    decline,
    may_wait,
    preempt,
)
from flextopo.cluster.state.arrays import Cluster, empty_cluster, may_evict
from flextopo.cluster.state.candidates import CandidateArrays, candidate_arrays, workspace
from flextopo.cluster.state.cluster_state import ClusterState, link_groups
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.gang_seats import gang_seats
from flextopo.cluster.state.gangs import find_part, gang_name
from flextopo.cluster.state.loss import compile_costs, weighted_gpu_s
from flextopo.cluster.state.placement import best_level
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.state.preemption import find_candidates
from flextopo.cluster.state.schema import MAX_MEMBERS, NEVER_S
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.state.storage import branch_of
from flextopo.cluster.topology.levels import NO_FIT, NetworkLevel
from flextopo.cluster.topology.model import Fleet, compile_models
from flextopo.cluster.workload.tape import Tape

Floats = npt.NDArray[np.float64]


class Simulator:
    """Play one tape. The cluster warms up before time 0 under the greedy rule, for every selector.

    Args:
        tape: the exogenous events.
        fleet: the servers.
        filter_: whom the guaranteed filter binds; a selector's own.
        scenario: loss weights and node admission.
        arrays: go on with these, at whatever time they stand; None = warm up a cluster of its own.
        max_wait_s: no pod with a candidate is left pending for longer by choice; a selector's own.

    Raises:
        WorkloadError: a pod of the tape fits on no server even when it is empty.
    """

    def __init__(
        self,
        tape: Tape,
        fleet: Fleet,
        filter_: AlignmentFilter = AlignmentFilter.OWN,
        scenario: Scenario | None = None,
        arrays: tuple[Cluster, Events] | None = None,
        max_wait_s: int | None = None,
    ) -> None:
        self.tape = tape
        self.scenario = scenario or Scenario()
        self.costs = compile_costs(self.scenario.weights, tape.grace_s, tape.restart_s)
        self.rules = Rules(
            filter=int(filter_),
            restricted=int(self.scenario.admission == "restricted"),
            hard=int(self.scenario.deadline == "hard"),
            backfill=BACKFILLS.index(self.scenario.backfill),
            max_wait_s=NEVER_S if max_wait_s is None else max_wait_s,
            grace_s=tape.grace_s,
            restart_s=tape.restart_s,
            backoff_s=tape.backoff_s,
            end_s=tape.end_s,
        )
        self.network = fleet.network
        self._one = candidate_arrays(1)
        self._workspace = workspace()
        self._scratch: tuple[Cluster, Events] | None = None
        if arrays is None:
            arrays = _load(tape, fleet), _empty_events(tape)
            warmup = self.rules._replace(filter=int(AlignmentFilter.OWN), end_s=0)
            warm_up(*arrays, warmup, self.costs, self._workspace, self._one)
        cluster, self.events = arrays
        self.state = ClusterState(cluster, fleet.models, self.costs, simulator=self)

    def next_decision(self) -> Pod | None:
        """Run on until a pod needs a decision and return it; None at the end of the tape."""
        pod = advance(self.state.arrays, self.events, self.rules)
        return None if pod == END else self.state.pod(int(pod))

    def apply(self, candidate: Candidate | None) -> None:
        """Carry out a decision for the pod that `next_decision` returned.

        A pod that may not be left pending any longer gets the cheapest candidate instead.

        Raises:
            PodError: no pod waits for a decision, there is no such node, a victim is not on it or
                not eligible, or the preemptor does not fit without the victims.
        """
        asked = int(self.events.clock[0]["asked"])
        if asked < 0:
            raise PodError("no pod waits for a decision; legal: after next_decision returned one")
        self.events.account[0]["decisions"] += 1
        pod = self.state.pod(asked)
        if candidate is None:
            self._leave_pending(pod)
            return
        gang = self.state.is_gang(pod)
        slots = 0 if gang else self.state.slots_of(candidate.node, candidate.victims)
        for victim in candidate.victims:
            if not may_evict(self.state.arrays, victim, pod.priority):
                raise PodError(
                    f"victim {self.state.name(victim)!r} may not be evicted for {pod.name!r}; "
                    "legal: running, preemptible, unprotected pods of lower priority"
                )
        if gang:
            self._seat(pod, candidate)
            return
        found = self.state.candidate(candidate.node, candidate.victims, pod)
        if found is None:
            raise PodError(
                f"{pod.name!r} does not fit on node {candidate.node} without the victims "
                f"{candidate.victims}"
            )
        wait_s = max(candidate.wait_s, found.wait_s)
        slots |= self.state.leaving_slots(candidate.node, wait_s)
        preempt(self.state.arrays, self.events, self.rules, candidate.node, slots)

    def _seat(self, pod: Pod, candidate: Candidate) -> None:
        """Carry out a decision for a gang.

        Raises:
            PodError: it is none for this gang, or not all members fit.
        """
        nodes = {seat.pod: seat.node for seat in candidate.seats}
        aligned = self.state.is_aligned(candidate, pod)
        if self.state.gang_candidate(pod, nodes, candidate.victims, aligned) is None:
            raise PodError(
                f"the gang of {pod.name!r} does not fit on nodes {sorted(set(nodes.values()))} "
                f"without the victims {candidate.victims}"
            )
        found = gang_seats(self.state, self.state.gang(pod), nodes, candidate.victims, aligned)
        assert found is not None
        for i, seat in enumerate(found.seats):
            self._one.seat_node[0, i] = seat.node
            self._one.seat_slots[0, i] = found.slots[seat.node]
        carry_out(self.state.arrays, self.events, self.rules, self._one, 0)

    def _leave_pending(self, pod: Pod) -> None:
        """Leave the pod that was asked about pending, if it may be."""
        c, e = self.state.arrays, self.events
        aligned = AlignmentFilter(self.rules.filter).binds(pod)
        count = find_candidates(c, self.costs, pod.index, aligned, self._workspace, self._one)
        if count > 0 and not self.may_wait(pod):
            carry_out(c, e, self.rules, self._one, 0)
        else:
            decline(c, e, self.rules, bool(count > 0))

    def may_wait(self, pod: Pod) -> bool:
        """Say whether a pod that has a candidate may be left pending now."""
        return bool(may_wait(self.state.arrays, self.rules, pod.index))

    def branch(
        self,
        found: CandidateArrays,
        count: int,
        horizon_s: int,
        base: Any = None,
    ) -> Floats:
        """Return the loss of each of the first `count` candidates and of waiting, looked ahead.

        Args:
            found: candidates of the present decision.
            count: how many are branched.
            horizon_s: how far.
            base: decides in the branches: a selector, compiled if it has `costs_for` or `branch_losses`; None =
                the cheapest candidate does.

        Returns:
            (count + 1,) weighted GPU-seconds from now to the horizon; see `branch_losses`. Where the pod
            may not be left pending any longer, the last is infinite.
        """
        tried = np.ones(count + 1, np.bool_)
        tried[count] = may_wait(self.state.arrays, self.rules, self.events.clock[0]["asked"])
        losses = np.full(count + 1, np.inf)
        self._branch(self.branches(found, count, horizon_s, base), base, tried, losses)
        return losses

    def branch_in(
        self, futures: Futures, branches: Branches, tried: npt.NDArray[np.bool_], base: Any
    ) -> Floats:
        """Return the loss of branches in futures of the state that this simulation has memory for.

        Args:
            futures: that `imagine` can lay ahead of it.
            branches: of its decision, with the same base.
            tried: (B,) bool, the branches to play, waiting last.
            base: as for `branch`.

        Returns:
            (M, B) weighted GPU-seconds from now to the horizon, infinite for the others.
        """
        losses = np.full((futures.num_futures, len(tried)), np.inf)
        if hasattr(base, "costs_for"):
            branch_losses_in(branches, futures, self._workspace, self._one, tried, losses)
            return losses
        for i, row in enumerate(losses):
            imagine(self.state.arrays, self.events, futures, i)
            self._branch(branches, base, tried, row)
        return losses

    def _branch(
        self, branches: Branches, base: Any, tried: npt.NDArray[np.bool_], losses: Floats
    ) -> None:
        """Write the loss of the branches that are tried."""
        if base is None or hasattr(base, "costs_for"):
            branch_losses(branches, self._workspace, self._one, tried, losses)
        elif hasattr(base, "branch_losses"):
            base.branch_losses(branches, tried, losses)
        else:
            before = weighted_gpu_s(self.events.account, self.costs)
            for i in np.flatnonzero(tried).tolist():
                losses[i] = self._branch_loss(branches, i, base) - before

    def with_arrays(self, cluster: Cluster, events: Events) -> Simulator:
        """Return a simulation by the same rules over other arrays."""
        fleet = Fleet(self.state.models, tuple(cluster.nodes["model"].tolist()), self.network)
        filter_ = AlignmentFilter(self.rules.filter)
        found = Simulator(self.tape, fleet, filter_, self.scenario, (cluster, events))
        found.rules = self.rules
        return found

    def _branch_loss(self, branches: Branches, i: int, base: VictimSelector) -> float:
        """Return the loss of a branch that any selector goes on with."""
        ahead = rules_ahead(self.state.arrays, self.rules, branches.horizon_s)
        begin_branch(branches, ahead, i)
        sim = self.with_arrays(branches.scratch_cluster, branches.scratch_events)
        sim.rules = ahead._replace(filter=int(base.filter))
        sim.play(base)
        return float(weighted_gpu_s(sim.events.account, self.costs))

    def branches(
        self,
        found: CandidateArrays,
        count: int,
        horizon_s: int,
        base: Any = None,
    ) -> Branches:
        """Return what branches of the present decision are made of; see `branch` and `Branches`."""
        if self._scratch is None:
            self._scratch = branch_of(self.state.arrays, False), branch_of(self.events, False)
        costs_for = getattr(base, "costs_for", None)
        return Branches(
            self.state.arrays,
            self.events,
            *self._scratch,
            self.rules,
            self.costs,
            self.costs if costs_for is None else costs_for(self.costs),
            horizon_s,
            found,
            count,
        )

    def greedy_loss(self, until_s: int) -> float:
        """Play on under the greedy rule; return the weighted GPU-seconds lost since time 0."""
        rules = self.rules._replace(end_s=min(until_s, self.rules.end_s))
        c, e = self.state.arrays, self.events
        run_greedy(c, e, rules, self.costs, self._workspace, self._one)
        return float(weighted_gpu_s(e.account, self.costs))

    def play(self, selector: VictimSelector) -> None:
        """Play the tape to its end with a selector, and no longer wait than its `max_wait_s`, if it has one.

        Raises:
            FlextopoError: the simulator was built for another alignment filter.
        """
        if int(selector.filter) != self.rules.filter:
            raise FlextopoError(
                f"selector {selector.name!r} works with filter {selector.filter.name}; "
                f"this simulation has {AlignmentFilter(self.rules.filter).name}"
            )
        limit = getattr(selector, "max_wait_s", None)
        if limit is not None:
            self.rules = self.rules._replace(max_wait_s=min(limit, self.rules.max_wait_s))
        while (pod := self.next_decision()) is not None:
            self.apply(selector.select(self.state, pod))


def simulation_of(cluster: ClusterState, selector: str) -> Simulator:
    """Return the simulation that a cluster belongs to, which looking ahead needs.

    Raises:
        FlextopoError: the cluster is a snapshot, which has neither a past nor a future.
    """
    if not isinstance(cluster.simulator, Simulator):
        raise FlextopoError(
            f"selector {selector!r} needs a simulated cluster; "
            "legal for a snapshot: any other selector"
        )
    return cluster.simulator


def _load(tape: Tape, fleet: Fleet) -> Cluster:
    node_model = np.asarray(fleet.node_model, np.int64)
    tables = compile_models(fleet.models)
    services = int(tape.pods["service"].max(initial=-1)) + 1
    cluster = empty_cluster(
        tables, node_model, tape.num_pods, len(tape.pdb_allowed), services, fleet.network
    )
    cluster.pods[:] = tape.pods
    link_groups(cluster)
    cluster.pdb_left[:] = tape.pdb_allowed
    cluster.totals["now_s"] = -tape.warmup_s
    kinds = sorted(set(fleet.node_model))
    # As narrow as in the arrays, or the kernel would be compiled for other types, too.
    narrow: Any = np.int32
    for gpus, cores in sorted(
        set(zip(tape.pods["gpus"].tolist(), tape.pods["cores"].tolist(), strict=True))
    ):
        levels = [best_level(tables, narrow(m), narrow(gpus), narrow(cores)) for m in kinds]
        if min(levels) == NO_FIT:
            raise WorkloadError(
                f"a pod asks for {gpus} GPUs and {cores} cores; legal: what one of the servers "
                f"{', '.join(model.name for model in fleet.models)} has"
            )
    _check_gangs(cluster)
    return cluster


def _check_gangs(cluster: Cluster) -> None:
    """Let no gang require or prefer to lie closer than the empty cluster can hold it.

    Raises:
        WorkloadError: the empty cluster does not hold it at all.
    """
    pods, best = cluster.pods, dict[Any, int]()
    members = np.arange(len(pods)) != pods["next_member"]
    gangs, first = np.unique(
        np.where(pods["online"] & members, pods["group"], -1), return_index=True
    )
    for pod in (int(at) for group, at in zip(gangs, first, strict=True) if group >= 0):
        if not len(cluster.network):
            raise WorkloadError(
                f"pod {pod} is a member of a gang; legal: on servers with a network, such as 64*a100@leaf8"
            )
        here = pods["group"][pod : pod + MAX_MEMBERS]
        ring = pod + np.flatnonzero(here == pods["group"][pod])
        aligned = bool(pods[pod]["requirement"] == TopologyRequirement.GUARANTEED)
        kind = (aligned, tuple(sorted(pods[ring][["gpus", "cores"]].tolist())))
        if kind not in best:
            pods["required_tier"][pod], asked = NetworkLevel.CLUSTER, pods["required_tier"][pod]
            part = int(find_part(cluster, pod, aligned))
            pods["required_tier"][pod] = asked
            if part < 0:
                raise WorkloadError(
                    f"a gang of {gang_name(cluster, pod)}; legal: what the empty cluster holds"
                )
            best[kind] = part & 3
        for name in ("required_tier", "preferred_tier"):
            pods[name][ring] = np.maximum(pods[name][ring], best[kind])


def _empty_events(tape: Tape) -> Events:
    pods = tape.pods
    leaving = np.flatnonzero((pods["online"] == 1) & (pods["depart_s"] < min(tape.end_s, NEVER_S)))
    order = np.argsort(pods["depart_s"][leaving], kind="stable")
    return empty_events(tape.num_pods, leaving[order])
