"""Victim sets for a gang: the cheapest ways to place its members over a part of the network.

For every server and every number of members that it might take, the cheapest two minimal victim sets are
sought (one for gangs of two sizes). Over a part of the network they are then put together by a dynamic
programme whose state is how many members of each size have a place; each state keeps the cheapest
`WAYS`. That goes over each leaf, each block and the cluster, as far as the gang may be spread.

What the programme adds up is what victims lose, and misalignment inside servers. Of ways that cost the same
so the one comes first that waits least; what that costs, and the network, are priced when a way is complete, so
that one that costs more by its victims and its misalignment and less in all may be left out; and so is a
victim group on several servers, which is lost once: groups with members on two servers of the part are tried
as paid for already, all combinations of up to three, else each by itself and the largest 2, 3, ... of them
together; without budgets those are left out that lose as much as the dearest way that is kept.

Bounds: of a part only those options are put together that are of the cheapest 16 + `WAYS` servers for their
number of members, which changes none of the kept ways but among equals, since a gang uses 16 servers at most and
sums of costs are exact (`on_grid`). A way is left where the servers to come make it dearer than those that are
kept, whatever is chosen there. A node offers `OPTIONS_A_NODE` options; at most `MAX_PAID` groups are tried; a part
ends where `TRAIL` steps were noted. In clusters of more than `SMALL_CLUSTER` servers a search takes `MOST_WORK`
steps: each part is searched as it is, for its cheapest way alone where the work is used up, and beyond that, for
groups and budgets, only as long as its share of the work lasts.
Whether a disruption budget holds over several servers is known when a way is complete, and so is whether a
PodGroup of which some may stop by themselves is left with too few. Where no way was found so far and the cheapest
breaks a budget, its victims are made so dear that ways take the fewest of them: with one budget a legal way is found
among the victim sets that the search of the servers reaches. If the cheapest way breaks the one or the
other, it is also kept to the first servers of that way that it suffices for, and the search goes on; where no way
is legal so, beginning with each other server of that way. Where none was found in a part and the budgets that were
made dear leave fewer victims than any way would take, there is none anywhere. In small clusters `gang_branches` then looks for the
cheapest way that is legal, for so many branches; beyond that what is found with budgets and such groups is perhaps not
the cheapest, and where several budgets bind on several servers, none may be found.
"""

from __future__ import annotations

from flextopo.cluster.jit.kernels import (
    kernel,
    lowest_bit,
    popcount,
    stage,
    with_network,
)
from flextopo.cluster.state.arrays import (
    OPTIONS_A_NODE,
    WAYS,
    Cluster,
    as_index,
)
from flextopo.cluster.state.candidates import (
    CandidateArrays,
    Workspace,
    victim_slots,
)
from flextopo.cluster.state.gang_branches import MOST_BRANCHES, go_deeper, go_on, is_capped
from flextopo.cluster.state.gang_budgets import (
    close,
    falls_under,
    leave_too_few,
    make_dear,
)
from flextopo.cluster.state.gang_losses import (
    forget_groups,
    lost_alone,
    lost_beside,
    spare_of,
)
from flextopo.cluster.state.gang_nodes import MOST_WORK, is_bounded, on_grid, search_node
from flextopo.cluster.state.gang_paid import find_groups, limit_of, take_paid
from flextopo.cluster.state.gang_scratch import (
    BRANCHES,
    BUDGETS,
    CLOSED,
    DEAR,
    DEPTH,
    GROUPS,
    NUM_ALLOWED,
    NUM_CLOSED,
    NUM_DEAR,
    PART,
    REFUSED,
    SEATS,
    SHORT,
    TURN,
    VIOLATED,
    WORK,
)
from flextopo.cluster.state.gang_ways import Part, choose_options, combine
from flextopo.cluster.state.gangs import (
    Gang,
    gang_of,
    has_first_size,
    node_at,
    part_end,
    tier_shortfall,
    widen,
)
from flextopo.cluster.state.loss import (
    NEVER,
    Costs,
    misalignment_cost,
    network_row,
    stopping_cost,
    waiting_cost,
)
from flextopo.cluster.state.schema import MAX_MEMBERS
from flextopo.cluster.topology.levels import LEAF, SERVER

UNTIL_FOUND = 48
"""While no way is found each part of a large cluster may take so small a share of `MOST_WORK`, whatever those
before it took: where budgets bind it pays more to look at all parts than long at the first. With 16 the slowest
search takes more than twice as long and as many ways are found; with 128 they are fewer."""


@stage
def _lost_by_victims(c: Cluster, costs: Costs, trail: int) -> float:
    """Return what the victims of a way lose, each PodGroup once; `NEVER` where a budget forbids it.

    `VIOLATED` in `gang_marks` gets what the way uses up, see `falls_under`; -1 for nothing.
    """
    total, groups, budgets = 0.0, as_index(GROUPS), as_index(BUDGETS)
    c.gang_marks[VIOLATED] = -1
    while trail >= 0:
        option, before = c.gang_options[c.gang_trail[trail]["option"]], groups
        trail = as_index(c.gang_trail[trail]["before"])
        node, slots = node_at(c, as_index(option["rank"])), as_index(option["slots"])
        slots = victim_slots(c, node, slots)
        c.gang_marks[WORK] += (4 + (groups - GROUPS >> 3)) * popcount(slots)
        while slots != 0:
            victim = as_index(c.node_pods[node, lowest_bit(slots)])
            slots &= slots - 1
            group, pdb = c.pods[victim]["group"], c.pods[victim]["pdb"]
            taken, counted, elsewhere = as_index(0), 0.0, False
            for at in range(GROUPS, groups if group >= 0 else GROUPS):
                other = as_index(c.gang_marks[at])
                if c.pods[other]["group"] == group:
                    taken += 1
                    counted += stopping_cost(c, other, costs)
                    elsewhere = elsewhere or at < before
            if taken == 0:
                total += lost_alone(c, victim, costs)
            else:
                total += lost_beside(c, victim, taken, counted, costs)
                spare = spare_of(c, victim, costs)
                if elsewhere and spare > 0 and taken >= spare:
                    c.gang_marks[VIOLATED] = -2 - group
            if group >= 0:
                c.gang_marks[groups] = victim
                groups += 1
            if pdb >= 0:
                c.gang_marks[budgets] = pdb
                budgets += 1
                uses = 0
                for at in range(BUDGETS, budgets):
                    uses += c.gang_marks[at] == pdb
                if uses > c.pdb_left[pdb]:
                    c.gang_marks[VIOLATED] = pdb
                    return NEVER
    return total


@stage
def _write_seats(c: Cluster, g: Gang, trail: int) -> None:
    """Write node and places of each member of a way behind `SEATS` in `gang_marks`."""
    member, firsts, seconds = g.leader, 0, 0
    for seat in range(g.first + g.second):
        is_first = has_first_size(c, g, member)
        left, at = (firsts if is_first else seconds) + 1, trail
        while at >= 0:
            option = c.gang_options[c.gang_trail[at]["option"]]
            left -= as_index(option["first"] if is_first else option["second"])
            if left <= 0:
                c.gang_marks[SEATS + seat] = node_at(c, as_index(option["rank"]))
                c.gang_marks[SEATS + MAX_MEMBERS + seat] = option["slots"]
                break
            at = as_index(c.gang_trail[at]["before"])
        firsts += is_first
        seconds += not is_first
        member = as_index(c.pods[member]["next_member"])


@stage
def _are_kept(c: Cluster, g: Gang, out: CandidateArrays, kept: int, cost: float) -> bool:
    """Say whether a kept candidate has the seats in `gang_marks`."""
    for i in range(kept):
        if out.cost[i] != cost:
            continue
        same = True
        for seat in range(g.first + g.second):
            same = same and out.seat_node[i, seat] == c.gang_marks[SEATS + seat]
            same = same and out.seat_slots[i, seat] == c.gang_marks[SEATS + MAX_MEMBERS + seat]
        if same:
            return True
    return False


@stage
def _offer(
    c: Cluster, costs: Costs, g: Gang, trail: int, lost: float, out: CandidateArrays, kept: int
) -> int:
    """Price a complete way, and keep it if it is among the cheapest; return how many are kept."""
    misaligned, level, deficit, wait_s = 0.0, as_index(0), as_index(0), as_index(0)
    at, tier, first_node = trail, as_index(SERVER), as_index(-1)
    while at >= 0:
        option = c.gang_options[c.gang_trail[at]["option"]]
        at = as_index(c.gang_trail[at]["before"])
        misaligned += option["misaligned"]
        level, deficit = (
            max(level, as_index(option["level"])),
            max(deficit, as_index(option["deficit"])),
        )
        wait_s = max(wait_s, as_index(option["wait_s"]))
        node = node_at(c, as_index(option["rank"]))
        if first_node < 0:
            first_node = node
        tier = widen(c, tier, first_node, node)
    if tier > c.pods[g.leader]["required_tier"]:
        return kept
    cost, below, member = lost + misaligned, tier_shortfall(c, g.leader, tier), g.leader
    for _ in range(g.first + g.second):
        cost += waiting_cost(c, costs, member, float(wait_s))
        if below > 0:
            cost += misalignment_cost(c, costs, member, network_row(below))
        member = as_index(c.pods[member]["next_member"])
    capacity, at = out.cost.shape[0], kept
    if kept == capacity:
        if cost >= out.cost[kept - 1]:
            return kept
        at = kept - 1
    _write_seats(c, g, trail)
    if _are_kept(c, g, out, kept, cost):  # a leaf, its block and the cluster give the same
        return kept
    while at > 0 and out.cost[at - 1] > cost:
        _move_back(out, at)
        at -= 1
    out.level[at], out.deficit[at], out.tier[at] = level, deficit, tier
    out.wait_s[at], out.cost[at] = wait_s, cost
    for seat in range(g.first + g.second):
        out.seat_node[at, seat] = c.gang_marks[SEATS + seat]
        out.seat_slots[at, seat] = c.gang_marks[SEATS + MAX_MEMBERS + seat]
    out.node[at], out.slots[at] = out.seat_node[at, 0], out.seat_slots[at, 0]
    return as_index(min(kept + 1, capacity))


@stage
def _move_back(out: CandidateArrays, at: int) -> None:
    """Move the candidate before a place into it."""
    out.node[at], out.slots[at] = out.node[at - 1], out.slots[at - 1]
    out.level[at], out.deficit[at] = out.level[at - 1], out.deficit[at - 1]
    out.wait_s[at], out.cost[at] = out.wait_s[at - 1], out.cost[at - 1]
    out.tier[at] = out.tier[at - 1]
    for seat in range(MAX_MEMBERS):
        out.seat_node[at, seat] = out.seat_node[at - 1, seat]
        out.seat_slots[at, seat] = out.seat_slots[at - 1, seat]


@stage
def _search_again(c: Cluster, costs: Costs, g: Gang, part: Part, w: Workspace) -> None:
    """Search the servers anew that hold members of the groups that are paid for, or of what is closed or dear,
    and those that are capped.
    """
    free, paid = part.free, as_index(popcount(part.tried))
    closed, dear = c.gang_marks[NUM_CLOSED], c.gang_marks[NUM_DEAR]
    for rank in range(part.begin, part.end):
        node, here = node_at(c, as_index(rank)), c.gang_nodes[rank]
        holds = here["holds"] & part.tried != 0 or is_capped(c, as_index(rank))
        for slot in range(c.nodes[node]["num_pods"] if closed + dear > 0 else 0):
            pod = as_index(c.node_pods[node, slot])
            for j in range(closed):
                holds = holds or falls_under(c, pod, as_index(c.gang_marks[CLOSED + j]))
            for j in range(dear):
                holds = holds or falls_under(c, pod, as_index(c.gang_marks[DEAR + j]))
        c.gang_marks[WORK] += 1 + (c.nodes[node]["num_pods"] * (closed + dear) >> 2)
        if holds and free + OPTIONS_A_NODE <= c.gang_options.shape[0]:
            here["begin"] = free
            free = search_node(c, costs, g, as_index(rank), paid, w, free)
            here["end"] = free


@stage
def _waits_at_least(c: Cluster, costs: Costs, g: Gang, part: Part) -> float:
    """Return what waiting costs a gang at least in a part: where victims are needed, their grace period."""
    seats, member, total = as_index(0), g.leader, 0.0
    for rank in range(part.begin, part.end):
        most, here = as_index(0), c.gang_nodes[rank]
        for at in range(here["begin"], here["end"]):
            option = c.gang_options[at]
            if option["wait_s"] < costs.grace_s:
                most = max(most, as_index(option["first"]) + as_index(option["second"]))
        seats += most
    members = g.first + g.second
    if seats >= members:
        return 0.0
    for _ in range(members):
        total += waiting_cost(c, costs, member, costs.grace_s)
        member = as_index(c.pods[member]["next_member"])
    return total


@kernel
def _attempt(
    c: Cluster, costs: Costs, g: Gang, part: Part, limit: float, out: CandidateArrays, kept: int
) -> int:
    """Put what the servers of a part offer now together; return how many candidates are kept.

    Ways that cost the limit before waiting are none, and neither are those of groups that are paid for.
    `REFUSED` in `gang_marks` gets the cheapest way if it uses up what others could have, else -1.
    """
    c.gang_marks[WORK] += 16 + part.end - part.begin
    choose_options(c, g, part.begin, part.end)
    combine(c, g, part, limit)
    last = ((g.first + 1) * (g.second + 1) - 1) * WAYS
    c.gang_marks[REFUSED], first = -1, as_index(-1)
    for way in range(part.ways):
        if c.gang_ways[last + way]["cost"] < NEVER:
            trail = as_index(c.gang_ways[last + way]["trail"])
            lost = _lost_by_victims(c, costs, trail)
            if lost < NEVER:
                kept = _offer(c, costs, g, trail, lost, out, kept)
            if way == 0 and c.gang_marks[VIOLATED] != -1:
                c.gang_marks[REFUSED], first = trail, c.gang_marks[VIOLATED]
    c.gang_marks[VIOLATED] = first
    return kept


@stage
def _is_spent(c: Cluster, part: Part, begun: int, options: int, kept: int) -> bool:
    """Say whether no further attempts are made in a part, see `MOST_WORK`; `begun` is the work before it.

    Each part may take its share of the work, and what those before it left; until a way is found, one part in
    `UNTIL_FOUND` of all. Where something is closed its servers are searched anew, some dozen steps for each of their options.
    """
    most = part.work if kept > 0 else max(part.work, begun + MOST_WORK // UNTIL_FOUND)
    if c.gang_marks[NUM_DEAR] == 1:  # where a budget leaves a way, one is found
        return False
    anew = c.gang_marks[NUM_CLOSED] + c.gang_marks[NUM_DEAR] > 0
    ahead = 12 * options if anew else as_index(0)
    return bool(is_bounded(c) and c.gang_marks[WORK] + ahead >= most)


@stage
def _is_refused(c: Cluster, part: Part) -> bool:
    """Say whether the cheapest way of an attempt uses up what others could have.

    A PodGroup that can spare no more is nothing to avoid where groups are paid for.
    """
    return bool(c.gang_marks[REFUSED] >= 0 and (c.gang_marks[VIOLATED] >= 0 or part.tried == 0))


@stage
def _take_back(c: Cluster, part: Part) -> None:
    """Let servers offer again what they did before an attempt."""
    for rank in range(part.begin, part.end):
        here = c.gang_nodes[rank]
        here["begin"], here["end"] = here["kept_begin"], here["kept_end"]


@kernel
def _branch(
    c: Cluster, costs: Costs, g: Gang, part: Part, w: Workspace, out: CandidateArrays, kept: int
) -> int:
    """Find the cheapest way that keeps within what there is, see `gang_branches`; return how many are kept."""
    c.gang_marks[DEPTH] = 0
    while True:
        limit = on_grid(out.cost[0]) if kept > 0 else NEVER
        _search_again(c, costs, g, part, w)
        kept = _attempt(c, costs, g, part, limit, out, kept)
        refused = _is_refused(c, part)
        deeper = refused and go_deeper(c, part, as_index(c.gang_marks[REFUSED]))
        _take_back(c, part)
        if not deeper and not go_on(c, part):
            return kept


@stage
def _search_part(
    c: Cluster, costs: Costs, g: Gang, part: Part, w: Workspace, out: CandidateArrays, kept: int
) -> int:
    """Find ways for a gang within a part of the network; return how many candidates are kept."""
    most, begin, end, nobody = as_index(0), part.begin, part.end, as_index(0)
    for rank in range(begin, end):
        here = c.gang_nodes[rank]
        c.gang_nodes[node_at(c, as_index(rank))]["part"] = begin
        here["kept_begin"], here["kept_end"] = here["begin"], here["end"]
        most += here["end"] - here["begin"]
    if most == 0:
        return kept
    groups = find_groups(c, costs, g, part)
    attempts = (1 << groups) - 1 if groups <= 3 else 2 * groups - 1
    # First as it is, then with groups that are paid for, and as long as the cheapest way uses up a budget, or
    # more of a PodGroup than that can spare, with that made dear or kept to some servers.
    first, which, before = True, -1, kept
    # A group on several servers costs less than is added up.
    exact = groups == 0 or is_bounded(c)
    waiting = _waits_at_least(c, costs, g, part) if exact else 0.0
    begun, branched = as_index(c.gang_marks[WORK]), False
    c.gang_marks[REFUSED], c.gang_marks[TURN] = -1, 0
    # An earlier part may have ended for want of work with budgets kept to servers of its own.
    c.gang_marks[NUM_CLOSED] = c.gang_marks[NUM_ALLOWED] = c.gang_marks[NUM_DEAR] = 0
    if _is_spent(c, part, begun, most, kept):
        part = Part(begin, end, part.free, as_index(1), part.work, part.branches, nobody)
    dear = kept == 0
    while which < attempts and (first or not _is_spent(c, part, begun, most, kept)):
        first = False
        limit = out.cost[kept - 1] if kept == out.cost.shape[0] else NEVER
        limit = on_grid(limit - waiting)
        if which >= 0 and len(c.pdb_left) == 0:
            # With budgets an attempt keeps them to some servers and searches again.
            limit = limit_of(c, groups, as_index(which), limit)
            if limit <= 0.0:
                which += 1
                continue
        if c.gang_marks[NUM_CLOSED] + c.gang_marks[NUM_DEAR] > 0 or which >= 0:
            tried = take_paid(c, groups, as_index(which)) if which >= 0 else nobody
            part = Part(begin, end, part.free, part.ways, part.work, part.branches, tried)
            _search_again(c, costs, g, part, w)
        kept = _attempt(c, costs, g, part, limit, out, kept)
        refused = _is_refused(c, part)
        _take_back(c, part)
        branched = branched or refused
        # As long as there is no way, what the cheapest one uses up is made dear; then all begins anew.
        if dear and refused and kept == 0 and make_dear(c):
            continue
        dear = False
        if c.gang_marks[NUM_DEAR] > 0:
            c.gang_marks[NUM_DEAR] = 0
            continue
        if not refused or not close(c, costs, as_index(c.gang_marks[REFUSED])):
            # Where that leaves no way at all, another server of the way gets the budget first.
            another = kept == before and which < 0 and c.gang_marks[NUM_CLOSED] > 0
            c.gang_marks[NUM_CLOSED] = c.gang_marks[NUM_ALLOWED] = 0
            c.gang_marks[TURN] += 1
            if not another or c.gang_marks[TURN] == MAX_MEMBERS:
                which += 1
    for which in range(-1, attempts if branched and not is_bounded(c) else -1):
        tried = take_paid(c, groups, as_index(which)) if which >= 0 else nobody
        part = Part(begin, end, part.free, part.ways, part.work, part.branches, tried)
        kept = _branch(c, costs, g, part, w, out, kept)
    return kept


@stage
def _is_in_vain(c: Cluster, costs: Costs, g: Gang, kept: int) -> bool:
    """Say whether no way was found, and none can be for the budgets that were used up; asked once a search."""
    budgets = as_index(c.gang_marks[SHORT])
    if kept > 0 or budgets <= 0:
        return False
    c.gang_marks[SHORT] = -1
    return leave_too_few(c, costs, g, budgets)


@with_network(otherwise=0)
def find_for_gang(
    c: Cluster, costs: Costs, pod: int, aligned: bool, w: Workspace, out: CandidateArrays
) -> int:
    """Find victim sets that let all members of a gang start, the cheapest first.

    Args:
        c: the cluster, of which only scratch memory is modified.
        costs: the loss in GPU-seconds.
        pod: a member of the gang.
        aligned: only aligned places inside servers are legal.
        w: scratch memory.
        out: memory for the candidates.

    Returns:
        Number of candidates in `out`.
    """
    g = gang_of(c, pod, aligned)
    free, kept, nobody = as_index(0), as_index(0), as_index(0)
    c.gang_marks[NUM_CLOSED] = c.gang_marks[NUM_ALLOWED] = c.gang_marks[NUM_DEAR] = 0
    c.gang_marks[PART] = c.gang_marks[WORK] = c.gang_marks[SHORT] = 0
    c.gang_marks[DEPTH] = c.gang_marks[BRANCHES] = 0
    forget_groups(c)
    for rank in range(c.network.shape[0]):
        here = c.gang_nodes[rank]
        here["begin"], here["part"] = free, -1
        free = search_node(c, costs, g, as_index(rank), nobody, w, free)
        here["end"] = free
    required = as_index(c.pods[pod]["required_tier"])
    tier = min(required, as_index(LEAF))
    begun, tiers, done = as_index(c.gang_marks[WORK]), required - tier + 1, as_index(0)
    while tier <= required:
        begin, parts = as_index(0), 0
        while begin < c.network.shape[0]:
            begin = part_end(c, tier, begin)
            parts += 1
        # All parts together are to give as many candidates as there is room for; one way would be the
        # cheapest without what waiting and the network cost.
        ways, begin = as_index(min(WAYS, max(2, -(-out.cost.shape[0] // parts)))), as_index(0)
        while begin < c.network.shape[0]:
            end = part_end(c, tier, begin)
            done += end - begin
            work = begun + max(0, MOST_WORK - begun) * done // (tiers * c.network.shape[0])
            branches = as_index(MOST_BRANCHES * done // (tiers * c.network.shape[0]))
            part = Part(as_index(begin), end, free, ways, as_index(work), branches, nobody)
            kept = _search_part(c, costs, g, part, w, out, kept)
            if _is_in_vain(c, costs, g, kept):
                return kept
            begin = end
        tier += 1
    return kept
