"""Scores that order victim sets; each returns a number, and lower is better.

A policy is an ordered tuple of them: the first that differs decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flextopo.baselines.search import V

PRIORITY_OFFSET = 2**31
"""Added to each priority so that a set of more pods never has the lower sum."""


@dataclass(frozen=True)
class Option(Generic[V]):
    """One victim set on one node, with what the scores look at.

    Attributes:
        node: index of the node.
        victims: the victims, any order.
        pdb_violations: disruption budgets that would be violated.
        topology: the paper's T of the victims (15, 12 or 7).
    """

    node: int
    victims: Sequence[V]
    pdb_violations: int = 0
    topology: float = 15.0


Score = Callable[[Option[Any]], float]
"""Orders victim sets of any cluster; those of a simulated node have more, see `NodeOption`."""

O = TypeVar("O", bound=Option[Any])


def any_victims(option: Option[Any]) -> float:
    """No victims beats any victims."""
    return float(bool(option.victims))


def pdb_violations(option: Option[Any]) -> float:
    """Fewer violated disruption budgets."""
    return float(option.pdb_violations)


def topology(option: Option[Any]) -> float:
    """Victims whose cores lie closer together (algorithm 2's S with alpha = 0)."""
    return -option.topology


def highest_priority(option: Option[Any]) -> float:
    """Lower priority of the most important victim."""
    return float(max((victim.priority for victim in option.victims), default=-PRIORITY_OFFSET))


def priority_sum(option: Option[Any]) -> float:
    """Lower sum of the victims' priorities, each above zero."""
    return float(sum(victim.priority + PRIORITY_OFFSET for victim in option.victims))


def num_victims(option: Option[Any]) -> float:
    """Fewer victims."""
    return float(len(option.victims))


def latest_start(option: Option[Any]) -> float:
    """Later start of the earliest started among the victims of the highest priority."""
    if not option.victims:
        return 0.0
    top = max(victim.priority for victim in option.victims)
    return -float(min(victim.start_s for victim in option.victims if victim.priority == top))


def topology_score(numa_nodes: int, sockets: int) -> float:
    """Return T: 15, less 3 for victims in several NUMA nodes, less 5 for several sockets.

    Victims without known cores count as 15.

    References:
        FlexTopo, algorithm 2.
    """
    return 15.0 - 3.0 * (numa_nodes > 1) - 5.0 * (sockets > 1)


def choose(options: Sequence[O], scores: Sequence[Callable[[O], float]]) -> O | None:
    """Return the best option; ties go to the lower node, then to the one found first."""
    ranked = min(
        enumerate(options),
        key=lambda item: (*(score(item[1]) for score in scores), item[1].node, item[0]),
        default=None,
    )
    return None if ranked is None else ranked[1]


GODEL_SCORES: tuple[Score, ...] = (
    any_victims, highest_priority, priority_sum, num_victims, latest_start,
)  # fmt: skip
KUBERNETES_SCORES: tuple[Score, ...] = (
    pdb_violations, highest_priority, priority_sum, num_victims, latest_start,
)  # fmt: skip
FLEXTOPO_SCORES: tuple[Score, ...] = (
    any_victims, topology, highest_priority, priority_sum, num_victims, latest_start,
)  # fmt: skip
