"""Branch and bound: the cheapest way for a gang that keeps within disruption budgets and what PodGroups can spare.

Of a way that uses up more than there is, any legal way has less on one of its servers at least. So there is one
branch for each of these: that server is capped at one less than the way uses there, and all is put together anew. A
branch ends where its cheapest way is legal, or costs no less than the cheapest that was found. Clusters of up to
`SMALL_CLUSTER` servers are searched so, behind what `gang_candidates` does with budgets, for `MOST_BRANCHES` branches.
"""

from __future__ import annotations

from flextopo.cluster.jit.kernels import inlined, lowest_bit, stage
from flextopo.cluster.state.arrays import Cluster, as_index
from flextopo.cluster.state.candidates import Workspace, victim_slots
from flextopo.cluster.state.gang_budgets import falls_under
from flextopo.cluster.state.gang_scratch import (
    BRANCHES,
    DEPTH,
    LEVEL,
    LEVELS,
    MOST_DEPTH,
    VIOLATED,
)
from flextopo.cluster.state.gang_ways import Part
from flextopo.cluster.state.gangs import node_at

MOST_BRANCHES = 256
"""Branches that a search may go into, each part of the network its share and what those before left; on three servers
up to a hundred were seen."""

KEY, SERVERS, CAPPED, PAIRS = range(4)
"""Where those stand in a level, see `LEVELS`."""


@stage
def within_caps(c: Cluster, rank: int, w: Workspace, depth: int, i: int) -> bool:
    """Say whether the branch that a search is in lets a server lose pod i beside the pods taken."""
    pod, within = as_index(w.eligible[i]["pod"]), True
    for level in range(c.gang_marks[DEPTH]):
        at = as_index(LEVELS + level * LEVEL)
        pair = as_index(at + PAIRS + 2 * c.gang_marks[at + CAPPED])
        key = as_index(c.gang_marks[at + KEY])
        if c.gang_marks[pair] != rank or not falls_under(c, pod, key):
            continue
        uses = 1
        for j in range(depth):
            uses += falls_under(c, as_index(w.eligible[w.path[j]["taken"]]["pod"]), key)
        within = within and uses < c.gang_marks[pair + 1]
    return within


@inlined
def is_capped(c: Cluster, rank: int) -> bool:
    """Say whether the branch that a search is in caps a server."""
    for level in range(c.gang_marks[DEPTH]):
        at = as_index(LEVELS + level * LEVEL)
        if c.gang_marks[at + PAIRS + 2 * c.gang_marks[at + CAPPED]] == rank:
            return True
    return False


@stage
def go_deeper(c: Cluster, part: Part, trail: int) -> bool:
    """Enter the first branch of a way that uses up what is `VIOLATED`; False where no more are gone into."""
    level = c.gang_marks[DEPTH]
    if level == MOST_DEPTH or c.gang_marks[BRANCHES] >= part.branches:
        return False
    at, key, servers = as_index(LEVELS + level * LEVEL), as_index(c.gang_marks[VIOLATED]), 0
    while trail >= 0:
        option, uses = c.gang_options[c.gang_trail[trail]["option"]], 0
        trail = as_index(c.gang_trail[trail]["before"])
        node = node_at(c, as_index(option["rank"]))
        slots = victim_slots(c, node, as_index(option["slots"]))
        while slots != 0:
            uses += falls_under(c, as_index(c.node_pods[node, lowest_bit(slots)]), key)
            slots &= slots - 1
        if uses > 0:
            c.gang_marks[at + PAIRS + 2 * servers] = option["rank"]
            c.gang_marks[at + PAIRS + 2 * servers + 1] = uses
            servers += 1
    c.gang_marks[at + KEY], c.gang_marks[at + SERVERS] = key, servers
    c.gang_marks[at + CAPPED] = 0
    c.gang_marks[DEPTH] += 1
    c.gang_marks[BRANCHES] += 1
    return True


@stage
def go_on(c: Cluster, part: Part) -> bool:
    """Leave a branch for the next one; False where there is none."""
    while c.gang_marks[DEPTH] > 0:
        at = as_index(LEVELS + (c.gang_marks[DEPTH] - 1) * LEVEL)
        c.gang_marks[at + CAPPED] += 1
        if (
            c.gang_marks[at + CAPPED] < c.gang_marks[at + SERVERS]
            and c.gang_marks[BRANCHES] < part.branches
        ):
            c.gang_marks[BRANCHES] += 1
            return True
        c.gang_marks[DEPTH] -= 1
    return False
