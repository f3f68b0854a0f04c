"""Where things stand in `Cluster.gang_marks`, the scratch numbers of the search for a gang."""

from __future__ import annotations

from flextopo.cluster.state.arrays import MOST_VICTIMS
from flextopo.cluster.state.schema import MAX_MEMBERS

MAX_PAID = 8
"""Victim groups of a part that are tried as paid for."""

PAID, GROUPS = 0, 2 * MAX_PAID
BUDGETS = GROUPS + MOST_VICTIMS
SEATS = BUDGETS + MOST_VICTIMS
"""Where in `gang_marks` stand the groups that are paid for, those whose loss a way has counted, its budgets,
and its seats."""

TRIED, COUNTED = MAX_PAID, SEATS + 2 * MAX_MEMBERS
"""Where the groups stand that are tried, by a member, and how many GPUs each frees."""

MAX_CLOSED = 8
"""Disruption budgets of a part, and PodGroups that can spare some, that are kept to some of its servers."""

CLOSED = COUNTED + MAX_PAID
DEAR = CLOSED + MAX_CLOSED
ALLOWED = DEAR + MAX_CLOSED
NUM_CLOSED, NUM_DEAR, NUM_ALLOWED, VIOLATED, REFUSED, TURN, PART, WORK, SHORT, DEPTH, BRANCHES = (
    range(ALLOWED + 2 * MAX_MEMBERS, ALLOWED + 2 * MAX_MEMBERS + 11)
)
"""Where those stand, see `falls_under`, budgets whose victims are made dear, pairs of one and a server that may
use it, and how many of each; the one that a way uses up, the cheapest way of an attempt if another is sought for
that, how many of its servers are passed over at first, how many parts were looked at for groups, how many steps the
search has taken, how many budgets were made dear so far, -1 once it was looked into what they leave, how many
branches a search is in, and how many it went into."""

MOST_DEPTH = 32
"""Branches that a search may be in at a time, see `gang_branches`."""

LEVELS, LEVEL = BRANCHES + 1, 3 + 2 * MAX_MEMBERS
"""Where those stand, and how many numbers each takes: what is used up, on how many servers, which of these is
capped, and pairs of a server and how much of it the way uses up there."""
