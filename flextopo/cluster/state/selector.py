"""The one protocol: a victim selector."""

from __future__ import annotations

from typing import Protocol

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod


class VictimSelector(Protocol):
    """Everything that decides: baselines, oracle, networks, exported artifacts, services."""

    @property
    def name(self) -> str:
        """Return the name in the registry."""
        ...

    @property
    def filter(self) -> AlignmentFilter:
        """Return whom the selector's guaranteed filter binds."""
        ...

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose where `preemptor` preempts whom; None = do not preempt now."""
        ...
