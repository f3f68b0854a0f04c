"""A selector whose answers about gangs go astray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from flextopo.baselines.policies import GreedyCost
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod

Change = Callable[[Candidate], Candidate | None]


def keep(found: Candidate) -> Candidate:
    """Change nothing."""
    return found


@dataclass
class Rogue:
    """Greedy, with a change to its answer."""

    change: Change = keep
    name: str = "rogue"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        found = GreedyCost().select(cluster, preemptor)
        assert found is not None
        return self.change(found)


def seats_on(*nodes: int) -> Change:
    """Return a change that puts members on other nodes."""
    return lambda found: replace(
        found,
        seats=tuple(replace(seat, node=n) for seat, n in zip(found.seats, nodes, strict=True)),
    )
