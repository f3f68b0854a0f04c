"""How the simulated scheduler works, and what that means for one pod."""

from __future__ import annotations

from typing import NamedTuple

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.simulation.lifecycle import GUARANTEED
from flextopo.cluster.state.arrays import Cluster

BLIND, OWN, ALL_GUARANTEED = range(3)
"""Whom the guaranteed filter binds: no pod, guaranteed pods, every online pod."""


class Rules(NamedTuple):
    """How the simulated scheduler works.

    Fields: `filter` one of BLIND, OWN, ALL_GUARANTEED; `restricted` 1 = a node refuses a guaranteed
    pod that it cannot align; `hard` 1 = nobody may leave a pod pending beyond its deadline by choice;
    `backfill` one of `backfill`'s ANY, EASY, RESERVE; `max_wait_s`, after which no pod is left pending by choice;
    `grace_s`, `restart_s`, `backoff_s`, `end_s` as in the tape.
    """

    filter: int
    restricted: int
    hard: int
    backfill: int
    max_wait_s: int
    grace_s: int
    restart_s: int
    backoff_s: int
    end_s: int


@inlined
def longest_wait_s(c: Cluster, rules: Rules, pod: int) -> int:
    """Return for how long a pod may be left pending by choice, if it has a candidate."""
    if rules.hard:
        return int(min(rules.max_wait_s, c.pods[pod]["deadline_s"] - rules.grace_s))
    return rules.max_wait_s


@stage
def must_align(c: Cluster, rules: Rules, pod: int) -> bool:
    """Say whether the guaranteed filter binds this pod."""
    if not c.pods[pod]["online"] or rules.filter == BLIND:
        return False
    return rules.filter == ALL_GUARANTEED or c.pods[pod]["requirement"] == GUARANTEED
