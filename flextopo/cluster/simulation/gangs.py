"""What happens to a gang: all its members start together, and wait together for victims to end."""

from __future__ import annotations

import numpy as np

from flextopo.cluster.jit.kernels import stage, with_network
from flextopo.cluster.simulation.events import Events, dequeue, schedule_event
from flextopo.cluster.simulation.lifecycle import GUARANTEED, bind, record_level
from flextopo.cluster.simulation.placing import evict_all, hand_over, place_on
from flextopo.cluster.simulation.rules import Rules
from flextopo.cluster.state.arrays import (
    NOMINATED,
    PENDING,
    Cluster,
    add_to_node,
    allocate,
    as_index,
)
from flextopo.cluster.state.candidates import CandidateArrays, freed, victim_slots
from flextopo.cluster.state.gangs import (
    Gang,
    find_part,
    gang_of,
    has_first_size,
    node_at,
    part_end,
    seats_of,
    tier_shortfall,
    widen,
)
from flextopo.cluster.state.placement import best_level, is_aligned, place
from flextopo.cluster.topology.levels import CROSS_SOCKET, SERVER


@with_network(otherwise=False)
def all_pending(c: Cluster, pod: int) -> bool:
    """Say whether no member of a gang has left or holds resources."""
    other = pod
    while True:
        if c.live[other]["status"] != PENDING:
            return False
        other = as_index(c.pods[other]["next_member"])
        if other == pod:
            return True


@stage
def _member_at(c: Cluster, g: Gang, size: int, k: int) -> int:
    """Return the k-th member of a size, in the order of the ring from the leader on."""
    other, left = g.leader, k
    while True:
        if has_first_size(c, g, other) == (size == 0):
            if left == 0:
                return other
            left -= 1
        other = as_index(c.pods[other]["next_member"])


@stage
def _count_gang(c: Cluster, e: Events, g: Gang, tier: int, by_preemption: bool) -> None:
    """Record how close a gang lies; gangs placed after time 0 are counted."""
    below, hit, crossing, unaligned = tier_shortfall(c, g.leader, tier), True, False, False
    other = g.leader
    for _ in range(g.first + g.second):
        live, spec = c.live[other], c.pods[other]
        live["tier"] = below
        best = best_level(c.models, c.nodes[live["node"]]["model"], spec["gpus"], spec["cores"])
        hit = hit and live["deficit"] == 0
        unaligned = unaligned or not is_aligned(live["level"], best)
        crossing = crossing or (live["level"] == CROSS_SOCKET and best != CROSS_SOCKET)
        other = as_index(c.pods[other]["next_member"])
    if c.totals[0]["now_s"] < 0:
        return
    a, guaranteed = e.account[0], c.pods[g.leader]["requirement"] == GUARANTEED
    if guaranteed and unaligned:
        a["violations"] += 1
    if by_preemption:
        hit = hit and below == 0
        a["preemptions"] += 1
        a["gang_preemptions"] += 1
        a["guaranteed_preemptions"] += guaranteed
        a["cross_socket"] += crossing
        a["hits"] += hit
        a["gang_hits"] += hit
        a["guaranteed_hits"] += hit and guaranteed


@with_network(otherwise=False)
def start_gang(c: Cluster, e: Events, pod: int, aligned: bool) -> bool:
    """Start all members of a gang beside everybody else, or none; say which."""
    found = find_part(c, pod, aligned)
    if found < 0:
        return False
    g, begin, tier = gang_of(c, pod, aligned), as_index(found >> 2), as_index(SERVER)
    end, first_node = part_end(c, as_index(found & 3), begin), as_index(-1)
    firsts, seconds, no = as_index(0), as_index(0), False
    for rank in range(begin, end):
        node, here = node_at(c, as_index(rank)), c.gang_nodes[rank]
        seats = here["first"] + here["second"]
        if seats == 0:
            continue
        first_node = node if first_node < 0 else first_node
        tier = widen(c, tier, first_node, node)
        for seat in range(seats):
            if seat < here["first"]:
                member = _member_at(c, g, as_index(0), firsts)
                firsts += 1
            else:
                member = _member_at(c, g, as_index(1), seconds)
                seconds += 1
            level, mask = place_on(c, member, node, c.scratch[1])
            dequeue(c, e, member)
            allocate(c, member, node, mask, c.scratch[1])
            record_level(c, member, level, no)
            bind(c, e, member)
    e.clock[0]["online_left"] -= g.first + g.second - 1
    _count_gang(c, e, g, tier, no)
    return True


@stage
def _refused(c: Cluster, rules: Rules, g: Gang, found: CandidateArrays, i: int) -> bool:
    """Say whether restricted admission turns a member away: it would sit unaligned."""
    if rules.restricted == 0 or c.pods[g.leader]["requirement"] != GUARANTEED:
        return False
    aligned = Gang(g.leader, g.first, g.second, g.gpus, g.cores, g.member, True)
    for seat in range(g.first + g.second):
        node, slots = found.seat_node[i, seat], found.seat_slots[i, seat]
        firsts, seconds, other = as_index(0), as_index(0), g.leader
        for k in range(g.first + g.second):
            if found.seat_node[i, k] == node:
                is_first = has_first_size(c, g, other)
                firsts += is_first
                seconds += not is_first
            other = as_index(c.pods[other]["next_member"])
        nobody = as_index(0)
        if seats_of(c, aligned, node, slots, nobody, nobody, firsts) < firsts:
            return True
        if seats_of(c, aligned, node, slots, firsts, as_index(1), seconds) < seconds:
            return True
    return False


@stage
def _evict_for(c: Cluster, e: Events, rules: Rules, found: CandidateArrays, i: int, n: int) -> int:
    """Evict the victims of a gang's candidate on all its nodes; return how many they are."""
    count = as_index(0)
    for seat in range(n):
        node, seen = found.seat_node[i, seat], False
        for k in range(seat):
            seen = seen or found.seat_node[i, k] == node
        if not seen:
            victims = victim_slots(c, node, found.seat_slots[i, seat])
            count += evict_all(c, e, rules, node, victims)
    return count


@with_network(otherwise=0)
def preempt_gang(c: Cluster, e: Events, rules: Rules, found: CandidateArrays, i: int) -> int:
    """Evict the victims of a candidate for the gang that was asked about, and nominate its members.

    The larger members get their places first. All start when the last victim that gave something is
    gone. The candidate must let all of them fit.

    Returns:
        How many victims there were, PodGroup members stopped with them not counted.
    """
    pod = as_index(e.clock[0]["asked"])
    no = bool(np.bool_(False))
    g, now = gang_of(c, pod, no), c.totals[0]["now_s"]
    members, refused = g.first + g.second, _refused(c, rules, g, found, i)
    count = _evict_for(c, e, rules, found, i, members)
    e.clock[0]["asked"] = -1
    e.clock[0]["online_left"] -= members - 1
    if refused:
        e.account[0]["refusals"] += now >= 0
        e.clock[0]["cursor"] += members
        return count
    cores, taken, free_s = c.scratch[0], c.scratch[1], as_index(now)
    tier, by_preemption = as_index(SERVER), bool(count > 0)
    for size in range(2):
        member = g.leader
        for seat in range(members):
            if has_first_size(c, g, member) == (size == 0):
                node, slots = found.seat_node[i, seat], found.seat_slots[i, seat]
                spec, model = c.pods[member], c.nodes[node]["model"]
                free = freed(c, node, slots, cores)
                level, mask = place(
                    c.models, model, free, cores, spec["gpus"], spec["cores"], taken
                )
                free_s = max(free_s, hand_over(c, member, node, slots, mask, taken))
                add_to_node(c, member, node)
                dequeue(c, e, member)
                record_level(c, member, level, by_preemption)
                c.live[member]["status"] = NOMINATED
                tier = widen(c, tier, found.seat_node[i, 0], node)
            member = as_index(c.pods[member]["next_member"])
    _count_gang(c, e, g, tier, by_preemption)
    if free_s > now and count == 0 and now >= 0:
        e.account[0]["drained"] += 1
    member = g.leader
    for _ in range(members):
        if free_s > now:
            schedule_event(c, e, member, free_s)
        else:
            bind(c, e, member)
        member = as_index(c.pods[member]["next_member"])
    return count
