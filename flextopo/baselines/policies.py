"""Deterministic victim selectors put together from eligibility, search and ordered scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flextopo.baselines.gang_members import NodeRule, NodeSearch, seat_by_member
from flextopo.baselines.requeue import RequeueAware, costs_of
from flextopo.baselines.residents import (
    NodeOption,
    NodeScore,
    NodeView,
    PodStatus,
    Terminating,
    disruptions_left,
)
from flextopo.baselines.scores import (
    FLEXTOPO_SCORES,
    GODEL_SCORES,
    KUBERNETES_SCORES,
    choose,
)
from flextopo.baselines.search import (
    by_importance,
    default_victims,
    reprieve,
    smallest_sets,
    within_budget,
)
from flextopo.cluster.simulation.simulator import simulation_of
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.loss import Costs
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.state.selector import VictimSelector


def godel_search(
    view: NodeView, preemptor: Pod, allowed: Sequence[int], aligned: bool
) -> list[NodeOption]:
    """Find the one victim set of Goedel's standard preemption on a node.

    References:
        Goedel scheduler, searching: remove all eligible pods, put back what need not go.
    """
    residents = within_budget(by_importance(view.evictable(preemptor)), allowed)
    victims = reprieve(residents, lambda gone: view.fits(preemptor, gone, aligned))
    return [] if victims is None else [view.option(preemptor, victims)]


def kubernetes_search(
    view: NodeView, preemptor: Pod, allowed: Sequence[int], aligned: bool
) -> list[NodeOption]:
    """Find the one victim set of Kubernetes' default preemption on a node.

    References:
        kubernetes v1.36, defaultpreemption/default_preemption.go, SelectVictimsOnNode.
    """
    residents = by_importance(view.evictable(preemptor))
    found = default_victims(residents, allowed, lambda gone: view.fits(preemptor, gone, aligned))
    return [] if found is None else [view.option(preemptor, *found)]


def flextopo_search(
    view: NodeView, preemptor: Pod, allowed: Sequence[int], aligned: bool
) -> list[NodeOption]:
    """Find all smallest victim sets on a node, behind the guaranteed filter if it binds.

    References:
        FlexTopo, algorithm 1.
    """
    residents = within_budget(by_importance(view.evictable(preemptor)), allowed)
    sets = smallest_sets(residents, lambda gone: view.fits(preemptor, gone, aligned))
    return [view.option(preemptor, victims, topology=view.topology(victims)) for victims in sets]


@dataclass(frozen=True)
class PreemptionPolicy:
    """Search every node, order what is found, take the first; for a gang, member by member.

    Attributes:
        name: as in the registry.
        filter: whom the guaranteed filter binds.
        search: finds victim sets on one node.
        scores: order them over all nodes; the last ties go to the lower node, then to the set
            found first.
        gpu_locality: False gives the authors' CPU-only alignment test.
        terminating: what it makes of pods that are leaving.
    """

    name: str
    filter: AlignmentFilter
    search: NodeSearch
    scores: tuple[NodeScore, ...]
    gpu_locality: bool = True
    terminating: Terminating = Terminating.FREE

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose victims; None where no node has any set that works."""
        aligned = self.filter.binds(preemptor)
        if cluster.is_gang(preemptor):
            locality, leaving = self.gpu_locality, self.terminating
            rule = NodeRule(self.search, self.scores, aligned, locality, leaving)
            return seat_by_member(cluster, preemptor, rule)
        allowed = disruptions_left(cluster)
        options: list[NodeOption] = []
        for node in range(cluster.num_nodes):
            view = NodeView(cluster, node, self.gpu_locality, self.terminating)
            options += self.search(view, preemptor, allowed, aligned)
        best = choose(options, self.scores)
        if best is None:
            return None
        victims = [v.index for v in best.victims if v.status != PodStatus.TERMINATING]
        return cluster.candidate(best.node, victims, preemptor, aligned)


# Its snapshot takes victims out and the preemptor in for the cycle of that preemption alone. Afterwards
# they are in its cache again, and skipped as victims of others: it offers what they free to nobody.
GODEL = PreemptionPolicy(
    "godel",
    AlignmentFilter.BLIND,
    godel_search,
    GODEL_SCORES,
    terminating=Terminating.HELD,
)
STANDARD = replace(GODEL, terminating=Terminating.FREE)
"""Goedel's search and scores, which also take what is being freed."""

# `isPreemptionAllowed` (1.36) asks for a lower priority alone, so that a dry run takes terminating pods
# out and puts them back like all others; only a nominated pod's own node may not have any.
KUBERNETES = PreemptionPolicy(
    "kubernetes",
    AlignmentFilter.BLIND,
    kubernetes_search,
    KUBERNETES_SCORES,
    terminating=Terminating.VICTIMS,
)
FLEXTOPO_GUARANTEED = PreemptionPolicy(
    "flextopo-guaranteed", AlignmentFilter.ALL_GUARANTEED, flextopo_search, FLEXTOPO_SCORES
)
FLEXTOPO_BEST_EFFORT = PreemptionPolicy(
    "flextopo-best-effort", AlignmentFilter.OWN, flextopo_search, FLEXTOPO_SCORES
)


@dataclass(frozen=True)
class FlexTopo:
    """Follow each pod's own requirement: both algorithms for pods that state one, else Goedel's."""

    name: str = "flextopo"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose victims; None where no node has any set that works."""
        if preemptor.requirement == TopologyRequirement.NONE:
            return STANDARD.select(cluster, preemptor)
        return FLEXTOPO_BEST_EFFORT.select(cluster, preemptor)


@dataclass(frozen=True)
class RandomCandidate:
    """Take any of the cheapest 64 minimal victim sets, each with the same probability.

    The draw depends on the seed, the time and the pod alone, so that a decision can be repeated.
    """

    seed: int = 0
    name: str = "random"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose a candidate at random; None where there is none."""
        found, count = cluster.find(preemptor, self.filter.binds(preemptor), 64)
        if count == 0:
            return None
        entropy = (self.seed, cluster.now_s & 0xFFFFFFFF, preemptor.index)
        chosen = int(np.random.default_rng(entropy).integers(count))
        return cluster.candidate_at(found, chosen, preemptor)


@dataclass(frozen=True)
class GreedyCost:
    """Take the candidate with the least loss of its own: what it discards, and misalignment."""

    name: str = "greedy-cost"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def costs_for(self, costs: Costs) -> Costs:
        """Return the costs whose cheapest candidate this rule takes: the loss itself."""
        return costs

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the cheapest candidate; None where there is none."""
        found, count = cluster.find(preemptor, self.filter.binds(preemptor), 1)
        return cluster.candidate_at(found, 0, preemptor) if count else None


@dataclass(frozen=True)
class OracleLookahead:
    """Branch the simulation on the same tape over the best candidates; it knows the future.

    After its own choice each branch goes on with a base selector. So it bounds what a policy could gain
    by departing from that in one decision at a time; no real selector can do this.

    Attributes:
        branches: how many of the cheapest candidates are tried, beside waiting.
        horizon_s: how far a branch looks ahead; by default to the end of the tape, on which it is judged.
        base: decides in the branches; compiled where it is a rule of costs.
    """

    branches: int = 16
    horizon_s: int = NEVER_S
    base: VictimSelector = field(default_factory=RequeueAware)
    name: str = "oracle-lookahead"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the branch of the least loss; None where waiting loses least.

        Raises:
            FlextopoError: the cluster is a snapshot, whose future nobody knows.
        """
        sim = simulation_of(cluster, self.name)
        costs = costs_of(self.base, cluster)
        found, count = cluster.find(preemptor, self.filter.binds(preemptor), self.branches, costs)
        if count == 0:
            return None
        losses = sim.branch(found, count, self.horizon_s, self.base)
        chosen = int(np.argmin(losses))
        return (
            None
            if chosen == count
            else cluster.candidate_at(found, chosen, preemptor, priced=False)
        )
