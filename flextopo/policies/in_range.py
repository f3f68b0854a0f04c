"""`NAME+in-range`: a policy where it knows its way about, and a rule everywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flextopo.baselines.requeue import RequeueAware
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.ranges import FILE, Ranges, read_ranges
from flextopo.policies.runtime import LearnedSelector, folder_of, load_policy

SUFFIX = "+in-range"

RULE = RequeueAware()
"""What decides elsewhere: nothing in it was learnt but one number."""


@dataclass(frozen=True, eq=False)
class InRange:
    """A policy that decides within its training ranges, and a rule outside of them.

    A view of a served cluster (`ClusterView.out_of_range`) is told each time why the rule decided.

    Attributes:
        policy: decides within.
        ranges: what it has seen in training.
        name: as it was asked for.
        rule: decides outside.
    """

    policy: LearnedSelector
    ranges: Ranges
    name: str
    rule: VictimSelector = RULE

    @property
    def filter(self) -> AlignmentFilter:
        """Return whom the selector's guaranteed filter binds."""
        return self.policy.filter

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose as the policy does, or as the rule; None where the policy waits, or nothing helps.

        Raises:
            ArtifactError: a score is not a finite number.
        """
        found, count, o = self.policy.look(cluster, preemptor)
        if count == 0:
            return None
        why = self.ranges.why(cluster, found, count, o)
        if not why:
            return self.policy.choose(cluster, preemptor, found, o)
        told: list[str] | None = getattr(cluster, "out_of_range", None)
        if told is not None:
            told.append(f"{self.rule.name} decided: {why}")
        return self.rule.select(cluster, preemptor)


def load_in_range(name: str | Path) -> InRange:
    """Load a policy of the zoo by name, or from a folder, with its ranges.

    Raises:
        UnknownNameError, ArtifactError: as `load_policy`, or its ranges are missing or damaged.
    """
    policy = load_policy(name)
    ranges = read_ranges(folder_of(name) / FILE, policy.names)
    return InRange(policy, ranges, f"{name}{SUFFIX}")
