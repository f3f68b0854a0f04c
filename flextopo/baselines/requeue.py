"""The strongest simple rule: a decision's own loss, and how long its victims will wait for a new place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.loss import NUM_SIZES, Costs
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector

SIZES = (1, 2, 4, 8)
"""GPUs of a victim, up to which each of `HOURS` holds; the last also beyond."""

HOURS = (0.0, 0.0, 0.0, 0.5)
"""Hours that an evicted job of each size waits for a new place, as far as they matter to the loss: fitted
on validation days by `flextopo fit-requeue` (docs/results/fits/requeue.json)."""

GANG_HOURS = (0.0, 0.0, 0.1, 0.25)
"""The same where replicas span servers, a quarter of the services (docs/results/fits/requeue-gangs.json)."""


@dataclass(frozen=True)
class RequeueAware:
    """Take the least of a candidate's own loss and the hours that its victims will wait.

    A job of one GPU finds a new place at once; one of a whole server does not, and neither does a
    PodGroup, whose members stop together: GPUs stay idle meanwhile. Each GPU of a victim, and of the
    members stopped with it, counts that many hours. Terminating pods' GPUs come first, since they
    cost nothing.

    Attributes:
        hours: by size of the victim, see `SIZES`.
    """

    hours: tuple[float, ...] = HOURS
    name: str = "requeue-aware"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def __post_init__(self) -> None:
        if len(self.hours) != NUM_SIZES or not all(0 <= h < math.inf for h in self.hours):
            raise FlextopoError(
                f"requeue-aware: hours {self.hours}; legal: {NUM_SIZES} numbers, 0 or more"
            )

    def costs_for(self, costs: Costs) -> Costs:
        """Return the costs whose cheapest candidate this rule takes."""
        return costs._replace(requeue=tuple(3600.0 * hours for hours in self.hours))

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the cheapest candidate; None where there is none."""
        costs = self.costs_for(cluster.costs)
        found, count = cluster.find(preemptor, self.filter.binds(preemptor), 1, costs)
        if count == 0:
            return None
        return cluster.candidate_at(found, 0, preemptor, priced=False)


REQUEUE_AWARE_GANGS = RequeueAware(GANG_HOURS, "requeue-aware-gangs")


def costs_of(base: VictimSelector, cluster: ClusterState) -> Costs | None:
    """Return the costs whose cheapest candidate a selector takes, None if it is no rule of costs."""
    costs_for = getattr(base, "costs_for", None)
    found: Costs | None = None if costs_for is None else costs_for(cluster.costs)
    return found
