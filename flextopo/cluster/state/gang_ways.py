"""The cheapest ways to put the options of servers together for a gang: a dynamic programme.

What servers can do stands in `Cluster.gang_options` (`gang_nodes`); `gang_candidates` prices the ways, and says
which bounds hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flextopo.cluster.jit.kernels import inlined, kernel, stage
from flextopo.cluster.state.arrays import KEPT_NODES, WAYS, Cluster, as_index
from flextopo.cluster.state.gang_scratch import WORK
from flextopo.cluster.state.gangs import Gang
from flextopo.cluster.state.loss import NEVER

SOON, LATER = 0.001, 0.02
"""By what part of what the cheapest way costs those may cost more that are followed up at first, and if they
are too few, next."""


class Part(NamedTuple):
    """A part of the network.

    Fields: `begin` and `end` of its servers by block and leaf; `free`, the first place for further
    options; `ways` that are followed up; `work`, how many steps a search may have taken behind it; `branches`, how
    many it may have gone into; `tried`, which of the groups that are tried an attempt has paid for, as bits.
    """

    begin: int
    end: int
    free: int
    ways: int
    work: int
    branches: int
    tried: int


class Way(NamedTuple):
    """A way to place some members: what it costs, when its last victim or terminating pod is gone, its last
    option, and the trail before it.
    """

    cost: float
    wait_s: int
    option: int
    before: int


@inlined
def is_worse(kept: Any, cost: float, wait_s: int) -> bool:
    """Say whether a kept way, or option, is dearer than another, or costs the same and waits longer."""
    return bool(kept["cost"] > cost or (kept["cost"] == cost and kept["wait_s"] > wait_s))


@stage
def _push(c: Cluster, state: int, ways: int, way: Way, used: int) -> int:
    """Keep a way of a state, which is among its cheapest; return how long the trail is."""
    base = state * WAYS
    at = base + ways - 1
    while at > base and is_worse(c.gang_ways[at - 1], way.cost, way.wait_s):
        before, here = c.gang_ways[at - 1], c.gang_ways[at]
        here["cost"], here["wait_s"], here["trail"] = (
            before["cost"],
            before["wait_s"],
            before["trail"],
        )
        at -= 1
    here = c.gang_ways[at]
    here["cost"], here["wait_s"], here["trail"] = way.cost, way.wait_s, used
    c.gang_trail[used]["option"], c.gang_trail[used]["before"] = way.option, way.before
    return used + 1


@stage
def _take(c: Cluster, base: int, place: int) -> None:
    """Keep an option for a number of members if it is among the best; `base` is where those begin."""
    at, option = base + KEPT_NODES - 1, c.gang_options[place]
    cost, wait_s = option["cost"], option["wait_s"]
    if not is_worse(c.gang_top[at], cost, wait_s):
        return
    while at > base and is_worse(c.gang_top[at - 1], cost, wait_s):
        before, top = c.gang_top[at - 1], c.gang_top[at]
        top["cost"], top["wait_s"] = before["cost"], before["wait_s"]
        top["option"] = before["option"]
        at -= 1
    top = c.gang_top[at]
    top["cost"], top["wait_s"], top["option"] = cost, wait_s, place


@stage
def _find_best(c: Cluster, g: Gang, begin: int, end: int) -> None:
    """Mark the options of those servers of a part that are the best for a number of members."""
    states = (g.first + 1) * (g.second + 1)
    for at in range(states * KEPT_NODES):
        top = c.gang_top[at]
        top["cost"], top["wait_s"], top["option"] = NEVER, 0, -1
    for rank in range(begin, end):
        here, last = c.gang_nodes[rank], -1
        for at in range(here["begin"], here["end"]):
            option = c.gang_options[at]
            option["used"] = 0
            step = option["first"] * (g.second + 1) + option["second"]
            if step != last:  # the first of a step is its cheapest
                _take(c, step * KEPT_NODES, as_index(at))
            last = step
    for at in range(states * KEPT_NODES):
        if c.gang_top[at]["option"] >= 0:
            c.gang_options[c.gang_top[at]["option"]]["used"] = 1


@kernel
def choose_options(c: Cluster, g: Gang, begin: int, end: int) -> None:
    """List the options of a part that its cheapest ways can use: see the bounds above."""
    few, used = end - begin <= KEPT_NODES, as_index(0)
    if not few:
        _find_best(c, g, begin, end)
    for rank in range(begin, end):
        here, last, chosen = c.gang_nodes[rank], -1, False
        here["chosen"] = used
        for at in range(here["begin"], here["end"]):
            option = c.gang_options[at]
            step = option["first"] * (g.second + 1) + option["second"]
            if step != last:  # those of a step behind the first go with it
                chosen = few or option["used"] == 1
            last = step
            if chosen:
                c.gang_chosen[used] = at
                used += 1
        here["chosen_end"] = used


@stage
def _price_rest(c: Cluster, g: Gang, begin: int, end: int) -> None:
    """Write what the servers of a part with chosen options from each one on ask at least for members without a place.

    Row i of `gang_numbers` has it for those from the i-th on, by how many members of each size are left to
    them; the last row is that of none.
    """
    stride, states, row = g.second + 1, (g.first + 1) * (g.second + 1), as_index(0)
    for rank in range(begin, end):
        row += c.gang_nodes[rank]["chosen"] < c.gang_nodes[rank]["chosen_end"]
    for state in range(states):
        c.gang_numbers[row * states + state] = NEVER if state > 0 else 0.0
    for back in range(end - begin):
        here = c.gang_nodes[end - 1 - back]
        if here["chosen"] == here["chosen_end"]:
            continue
        row -= 1
        c.gang_marks[WORK] += (here["chosen_end"] - here["chosen"] + 1) * states >> 4
        these, later = as_index(row * states), as_index((row + 1) * states)
        for state in range(states):
            c.gang_numbers[these + state] = c.gang_numbers[later + state]
        for at in range(here["chosen"], here["chosen_end"]):
            option = c.gang_options[c.gang_chosen[at]]
            added = option["cost"]
            first, second = as_index(option["first"]), as_index(option["second"])
            for left in range(first, g.first + 1):
                to, from_ = these + left * stride, later + (left - first) * stride
                for other in range(g.second + 1 - second):
                    cost = added + c.gang_numbers[from_ + other]
                    at_ = to + second + other
                    c.gang_numbers[at_] = min(c.gang_numbers[at_], cost)


class Bounds(NamedTuple):
    """What a way that is followed up may cost: below the `limit`, and with its rest `most`."""

    limit: float
    most: float


@stage
def _extend(c: Cluster, at: int, before: int, state: int, ways: int, b: Bounds, used: int) -> int:
    """Reach a state from another by an option; return how long the trail is.

    What the members without a place cost at least is taken off `most` already.
    """
    last, option = c.gang_ways[state * WAYS + ways - 1], c.gang_options[at]
    for way in range(ways):
        so_far = c.gang_ways[before * WAYS + way]
        cost = so_far["cost"] + option["cost"]
        # Those to come cost no less.
        if cost >= b.limit or cost > b.most or cost > last["cost"]:
            break
        if used == c.gang_trail.shape[0]:
            break
        wait_s = as_index(max(so_far["wait_s"], option["wait_s"]))
        if is_worse(last, cost, wait_s):
            used = _push(c, state, ways, Way(cost, wait_s, at, as_index(so_far["trail"])), used)
    return used


@stage
def _follow(c: Cluster, g: Gang, part: Part, limit: float, most: float) -> None:
    """Put the chosen options of a part together, to ways that cost `most` at most."""
    stride, states = g.second + 1, (g.first + 1) * (g.second + 1)
    for at in range(states * WAYS):
        way = c.gang_ways[at]
        way["cost"], way["wait_s"], way["trail"] = NEVER, 0, -1
    c.gang_ways[0]["cost"] = 0.0
    used, row, goal = as_index(0), as_index(0), states - 1
    for rank in range(part.begin, part.end):
        here = c.gang_nodes[rank]
        if here["chosen"] == here["chosen_end"]:
            continue
        c.gang_marks[WORK] += states >> 2
        row += states  # of the servers behind this one
        for back in range(1, states):  # those that this server reaches come before
            before = as_index(goal - back)
            so_far = c.gang_ways[before * WAYS]["cost"]
            if so_far + c.gang_numbers[row - states + back] > most:
                continue
            c.gang_marks[WORK] += here["chosen_end"] - here["chosen"]
            first, second = before // stride, before % stride
            for place in range(here["chosen"], here["chosen_end"]):
                at = as_index(c.gang_chosen[place])
                option = c.gang_options[at]
                if first + option["first"] > g.first or second + option["second"] > g.second:
                    continue
                state = as_index(before + option["first"] * stride + option["second"])
                b = Bounds(limit, most - c.gang_numbers[row + goal - state])
                used = _extend(c, at, before, state, part.ways, b, used)


@kernel
def combine(c: Cluster, g: Gang, part: Part, limit: float) -> None:
    """Put the chosen options of a part together: `gang_ways` gets the cheapest.

    Nothing that cannot but cost the limit is followed up. First those are sought that cost little more
    than the cheapest; with enough of them none is missed.
    """
    _price_rest(c, g, part.begin, part.end)
    for way in range(part.ways):
        c.gang_ways[((g.first + 1) * (g.second + 1) - 1) * WAYS + way]["cost"] = NEVER
    goal = (g.first + 1) * (g.second + 1) - 1
    least, last = c.gang_numbers[goal], goal * WAYS + part.ways - 1
    if least >= limit:
        return
    for attempt in range(3):
        more = SOON if attempt == 0 else LATER
        if attempt == 1 and least == 0.0:  # the same ways as before
            continue
        most = min(least * (1.0 + more), limit) if attempt < 2 else limit
        _follow(c, g, part, limit, most)
        if most == limit or c.gang_ways[last]["cost"] < NEVER:
            break
