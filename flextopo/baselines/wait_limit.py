"""`NAME@SECONDS`: any selector that leaves no pod pending for longer by its own choice."""

from __future__ import annotations

from dataclasses import dataclass

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector


@dataclass(frozen=True, eq=False)
class WaitLimit:
    """A selector that may leave a pod pending only for so long.

    Selectors that weigh waiting ask `ClusterState.may_wait`. One that leaves the pod pending all the same
    gets the cheapest candidate instead.

    Attributes:
        selector: decides.
        name: as it was asked for.
        max_wait_s: the simulator asks again when it is over.
    """

    selector: VictimSelector
    name: str
    max_wait_s: int

    @property
    def filter(self) -> AlignmentFilter:
        """Return whom the selector's guaranteed filter binds."""
        return self.selector.filter

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose as the selector does; None only where nothing helps, or within the time."""
        before = cluster.max_wait_s
        cluster.max_wait_s = self.max_wait_s
        try:
            chosen = self.selector.select(cluster, preemptor)
            if chosen is None and not cluster.may_wait(preemptor):
                found, count = cluster.find(preemptor, self.filter.binds(preemptor), 1)
                chosen = cluster.candidate_at(found, 0, preemptor) if count else None
        finally:
            cluster.max_wait_s = before
        return chosen
