"""What one server can do for a gang: for every number of members, the cheapest minimal victim sets.

The results stand in `Cluster.gang_options`; `gang_candidates` puts those of several servers together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flextopo.cluster.jit.kernels import inlined, kernel, lowest_bit, popcount, stage
from flextopo.cluster.state.arrays import (
    MAX_PODS_PER_NODE,
    OPTIONS_A_NODE,
    Cluster,
    as_index,
)
from flextopo.cluster.state.candidates import (
    MAX_STEPS,
    PAID_FOR,
    Workspace,
    add_up_rest,
    added_cost,
    budget_left,
    freed,
    gather,
    last_gone_s,
    leaving,
    residents,
)
from flextopo.cluster.state.gang_branches import within_caps
from flextopo.cluster.state.gang_budgets import dearness, is_closed
from flextopo.cluster.state.gang_losses import spare_of
from flextopo.cluster.state.gang_scratch import NUM_ALLOWED, NUM_CLOSED, WORK
from flextopo.cluster.state.gangs import Gang, node_at
from flextopo.cluster.state.loss import (
    NEVER,
    Costs,
    misalignment_cost,
)
from flextopo.cluster.state.placement import best_level, is_aligned, level_deficit, place
from flextopo.cluster.topology.levels import LAST_ALIGNED, NO_FIT
from flextopo.cluster.topology.model import MAX_GPUS

MOST_WORK = 500_000
"""Steps of a search in a cluster of more than `SMALL_CLUSTER` servers: pods looked at and taken on a server, options
put behind a way, members of a PodGroup that are gone through. A step takes 7 to 17 ns; with so many, and what each
part is searched for in any case, 99 of 100 searches of 1,000 servers stay below some 10 ms (`make bench-gangs`,
docs/gangs.md)."""

SMALL_CLUSTER = 64
"""Servers up to which nothing is left out for the work: those of `Preempt-Gang-v0`."""

LEAST_STEPS = 64
"""Steps that the search of a server may take in any case for each number of members."""

TO_GRID = 1.5 * 2.0**32
"""Added to a number and taken off again, it leaves whole multiples of 2**-20."""


@stage
def _seat_all(
    c: Cluster, costs: Costs, g: Gang, node: int, slots: int, first: int, second: int
) -> tuple[float, int, int]:
    """Place members on a node without some pods.

    Returns:
        Expected loss of their misalignment, -1 where they do not fit; worst level and deficit.
    """
    model, total, worst, deficit = c.nodes[node]["model"], 0.0, as_index(0), as_index(0)
    cores, taken = c.scratch[0], c.scratch[1]
    free = freed(c, node, slots, cores)
    for size in range(2):
        members = first if size == 0 else second
        if members == 0:
            continue
        gpus, wanted = g.gpus[size], g.cores[size]
        best = best_level(c.models, model, gpus, wanted)
        for _ in range(members):
            level, mask = place(c.models, model, free, cores, gpus, wanted, taken)
            if level == NO_FIT or (g.aligned and not is_aligned(level, best)):
                return -1.0, worst, deficit
            free &= ~mask
            for u in range(cores.shape[0]):
                cores[u] -= taken[u]
            below = as_index(level_deficit(level, best))
            worst, deficit = max(worst, as_index(level)), max(deficit, below)
            total += misalignment_cost(c, costs, g.member[size], below)
    return total, worst, deficit


class Step(NamedTuple):
    """Some members of a gang that a server is to take.

    Fields: `rank` of the server; `first` and `second`, how many members of each size; `by_first` and
    `by_second`, whether these have to sit on one socket each; `eligible` pods there that may be victims;
    `soon`, places of those that are gone before a victim would be; `begin`, where options of this step
    begin in `gang_options`, and `start`, where those of the server do; `sets`, how many victim sets are kept.
    """

    rank: int
    first: int
    second: int
    by_first: bool
    by_second: bool
    eligible: int
    soon: int
    begin: int
    start: int
    sets: int


class Option(NamedTuple):
    """What a server can do; fields as in OPTION_DTYPE."""

    cost: float
    misaligned: float
    slots: int
    wait_s: int
    level: int
    deficit: int


@inlined
def is_bounded(c: Cluster) -> bool:
    """Say whether a search ends once it has taken `MOST_WORK` steps."""
    return bool(c.network.shape[0] > SMALL_CLUSTER)


@inlined
def steps_left(c: Cluster, rank: int) -> int:
    """Return how many steps the search of a server may take for a number of members: what is its share."""
    if not is_bounded(c):
        return as_index(MAX_STEPS)
    share = MOST_WORK * (rank + 1) // c.network.shape[0] - c.gang_marks[WORK]
    return as_index(min(max(share, LEAST_STEPS), MAX_STEPS))


@inlined
def on_grid(cost: float) -> float:
    """Return a cost rounded to 2**-20 GPU-seconds, beyond 2**31 more coarsely.

    Sums of such numbers are exact below 2**33 GPU-seconds, 2.4 million GPU-hours, so that ways of
    the same cost are known as such in whatever order their servers come.
    """
    return float(cost + TO_GRID - TO_GRID)


@stage
def _add_option(c: Cluster, g: Gang, s: Step, end: int, option: Option) -> int:
    """Insert an option among those of its step, the cheapest first; return where they end.

    All of a step wait the same: none, for what is being freed, or for victims.
    """
    at, begin, cost = end, s.begin, option.cost
    if end - begin == s.sets:
        at = end - 1
        if cost >= c.gang_options[at]["cost"]:
            return end
    elif end < s.start + OPTIONS_A_NODE:
        end += 1
    else:
        return end
    while at > begin and c.gang_options[at - 1]["cost"] > cost:
        before, here = c.gang_options[at - 1], c.gang_options[at]
        here["cost"], here["misaligned"] = before["cost"], before["misaligned"]
        here["slots"], here["wait_s"] = before["slots"], before["wait_s"]
        here["rank"], here["first"], here["second"] = (
            before["rank"],
            before["first"],
            before["second"],
        )
        here["level"], here["deficit"] = before["level"], before["deficit"]
        at -= 1
    here = c.gang_options[at]
    here["cost"], here["misaligned"], here["slots"] = cost, option.misaligned, option.slots
    here["wait_s"], here["level"], here["deficit"] = option.wait_s, option.level, option.deficit
    here["rank"], here["first"], here["second"] = s.rank, s.first, s.second
    return end


class Taken(NamedTuple):
    """A victim set that suffices.

    Fields: `slots` of the pods that are gone; `depth`, how many victims; `spare_gpus` and `spare_cores`
    that the members leave free.
    """

    slots: int
    depth: int
    spare_gpus: int
    spare_cores: int


@stage
def _is_minimal(c: Cluster, costs: Costs, g: Gang, s: Step, t: Taken, w: Workspace) -> bool:
    """Say whether the members do not fit on a server with one of the taken pods less."""
    node = node_at(c, s.rank)
    for j in range(t.depth - 1):  # without the last one they did not
        one = w.eligible[w.path[j]["taken"]]
        if one["gpus"][0] > t.spare_gpus or one["cores"][0] > t.spare_cores:
            continue
        rest = t.slots & ~(1 << one["slot"])
        cost, _, _ = _seat_all(c, costs, g, node, rest, s.first, s.second)
        if cost >= 0.0:
            return False
    return True


@stage
def _adds_at_least(c: Cluster, costs: Costs, w: Workspace, i: int) -> float:
    """Return what taking pod i adds at least, whoever is taken before it."""
    pod, cost = as_index(w.eligible[i]["pod"]), float(w.eligible[i]["cost"])
    group, before, dear = c.pods[pod]["group"], as_index(0), dearness(c, pod)
    if cost < 0.0:
        return dear
    if group < 0 or cost >= NEVER:
        return cost + dear
    for j in range(i):
        before += c.pods[w.eligible[j]["pod"]]["group"] == group
    return dear + (cost if before == 0 or before <= spare_of(c, pod, costs) else 0.0)


@stage
def _price_freed(c: Cluster, costs: Costs, w: Workspace, eligible: int, most: int) -> None:
    """Write what pods lose at least by the GPUs that they free, up to `most`.

    Row i of `gang_numbers` has it for the eligible pods of a server from the i-th on, by the number of GPUs.
    """
    add_up_rest(w, eligible, as_index(0))
    width = MAX_GPUS + 1
    last = eligible * width
    for gpus in range(most + 1):
        c.gang_numbers[last + gpus] = NEVER if gpus > 0 else 0.0
    for back in range(eligible):
        i = as_index(eligible - 1 - back)
        added, held = _adds_at_least(c, costs, w, i), as_index(w.eligible[i]["gpus"][0])
        row = i * width
        for gpus in range(most + 1):
            with_it = added + c.gang_numbers[row + width + max(gpus - held, 0)]
            c.gang_numbers[row + gpus] = min(c.gang_numbers[row + width + gpus], with_it)


@stage
def _mark_rest(c: Cluster, w: Workspace, eligible: int) -> None:
    """Write which GPUs each eligible pod of a server and those behind it hold."""
    w.eligible[eligible]["rest_mask"] = 0
    for back in range(eligible):
        i = as_index(eligible - 1 - back)
        held = as_index(c.live[w.eligible[i]["pod"]]["gpu_mask"])
        w.eligible[i]["rest_mask"] = w.eligible[i + 1]["rest_mask"] | held


@stage
def _is_by_socket(c: Cluster, g: Gang, model: int, size: int) -> bool:
    """Say whether each member of a size has to sit on one socket of a server; one GPU is on one anyway."""
    gpus = g.gpus[size]
    if not g.aligned or gpus < 2:
        return False
    return bool(best_level(c.models, model, gpus, g.cores[size]) <= LAST_ALIGNED)


@inlined
def _sockets_hold(c: Cluster, g: Gang, s: Step, model: int, gpu_free: int) -> bool:
    """Say whether sockets have the GPUs for those members of a step that have to sit on one each.

    Asked of many more sets than are seated, since it is ten times as fast.
    """
    first = s.first if s.by_first else 0
    second = s.second if s.by_second else 0
    for socket in range(c.models[model]["num_sockets"] if first + second > 0 else 0):
        free = popcount(gpu_free & c.models[model]["socket_gpus"][socket])
        if first > 0:
            first -= free // g.gpus[0]
        if second > 0:
            second -= free // g.gpus[1]
    return first <= 0 and second <= 0


@inlined
def _least_rest(c: Cluster, i: int, gpus: int) -> float:
    """Return what pods from the i-th on lose at least that free so many GPUs."""
    return float(c.gang_numbers[i * (MAX_GPUS + 1) + max(gpus, 0)])


@kernel
def _fits_without_rest(
    c: Cluster, costs: Costs, g: Gang, s: Step, slots: int, i: int, w: Workspace
) -> bool:
    """Say whether the members of a step fit without some pods and all eligible ones from the i-th on.

    Asked where only pods without GPUs are left: of a dozen of them there are thousands of sets.
    """
    for j in range(i, s.eligible):
        slots |= 1 << w.eligible[j]["slot"]
    cost, _, _ = _seat_all(c, costs, g, node_at(c, s.rank), slots, s.first, s.second)
    return cost >= 0.0


@stage
def _search_step(c: Cluster, costs: Costs, g: Gang, s: Step, w: Workspace) -> int:
    """Find the cheapest victim sets with which a node takes some members; return where they end.

    Walks the sets depth first, and leaves a path at the first set that suffices; sets of which a smaller
    one would do are left out.
    """
    node, first, second, eligible = node_at(c, s.rank), s.first, s.second, s.eligible
    need_gpus = first * g.gpus[0] + second * g.gpus[1] - popcount(c.nodes[node]["gpu_free"])
    need_cores = first * g.cores[0] + second * g.cores[1] - c.nodes[node]["cores_free"]
    gone, nobody, now, end = s.soon, as_index(0), c.totals[0]["now_s"], s.begin
    model, mask = c.nodes[node]["model"], as_index(c.nodes[node]["gpu_free"])
    if need_gpus <= 0 and need_cores <= 0:
        cost, level, deficit = _seat_all(c, costs, g, node, nobody, first, second)
        if cost >= 0.0:
            option = Option(on_grid(cost), cost, nobody, nobody, level, deficit)
            return _add_option(c, g, s, end, option)
    while gone != 0:
        other = as_index(c.node_pods[node, lowest_bit(gone)])
        gone &= gone - 1
        need_gpus -= popcount(c.live[other]["gpu_mask"])
        mask |= c.live[other]["gpu_mask"]
        for u in range(c.pod_cores.shape[1]):
            need_cores -= c.pod_cores[other, u]
    depth, i, fresh, steps, for_gang = 0, 0, True, 0, bool(np.bool_(True))
    w.path[0]["cost"], w.path[0]["mask"] = 0.0, mask
    if not _sockets_hold(c, g, s, model, mask | w.eligible[0]["rest_mask"]):
        return end
    most = steps_left(c, s.rank)
    while steps < most:
        steps += 1
        path = w.path[depth]
        done = end - s.begin == s.sets and (
            on_grid(path["cost"] + _least_rest(c, i, need_gpus)) >= c.gang_options[end - 1]["cost"]
        )
        if not fresh:  # one of those that could be taken was left
            within = path["mask"] | w.eligible[i]["rest_mask"]
            done = done or not _sockets_hold(c, g, s, model, within)
        enough = fresh and not done and need_gpus <= 0 and need_cores <= 0
        if enough and _sockets_hold(c, g, s, model, path["mask"]):
            slots = s.soon
            for j in range(depth):
                slots |= 1 << w.eligible[w.path[j]["taken"]]["slot"]
            cost, level, deficit = _seat_all(c, costs, g, node, slots, first, second)
            if cost >= 0.0:
                wait_s = as_index(int(costs.grace_s))
                if depth == 0:
                    wait_s = max(as_index(0), last_gone_s(c, node, slots) - now)
                done, total = True, path["cost"] + cost
                t = Taken(slots, as_index(depth), as_index(-need_gpus), as_index(-need_cores))
                if _is_minimal(c, costs, g, s, t, w):
                    option = Option(on_grid(total), cost, slots, wait_s, level, deficit)
                    end = _add_option(c, g, s, end, option)
            elif i < eligible and w.eligible[i]["rest_gpus"] == 0:
                done = not _fits_without_rest(c, costs, g, s, slots, i, w)
        fresh = False
        one = w.eligible[i]
        if (
            not done
            and i < eligible
            and one["rest_gpus"] >= need_gpus
            and one["rest_cores"] >= need_cores
        ):
            if budget_left(c, w, depth, i) and within_caps(c, s.rank, w, depth, i):
                added = added_cost(c, costs, w, depth, i, for_gang)
                added += dearness(c, as_index(one["pod"]))
                w.path[depth + 1]["cost"] = path["cost"] + added
                held = c.live[one["pod"]]["gpu_mask"]
                w.path[depth + 1]["mask"] = path["mask"] | held
                path["taken"] = i
                depth += 1
                need_gpus -= one["gpus"][0]
                need_cores -= one["cores"][0]
                fresh = True
            i += 1
            continue
        if depth == 0:
            break
        depth -= 1
        i = w.path[depth]["taken"]
        need_gpus += w.eligible[i]["gpus"][0]
        need_cores += w.eligible[i]["cores"][0]
        i += 1
    c.gang_marks[WORK] += steps
    return end


@kernel
def search_node(
    c: Cluster, costs: Costs, g: Gang, rank: int, paid: int, w: Workspace, start: int
) -> int:
    """Write what a node can do for a gang from a place of `gang_options` on; return where that ends.

    The first `paid` groups in `gang_marks` cost nothing more.
    """
    node, end = node_at(c, rank), start
    by_socket, for_gang = bool(np.bool_(False)), bool(np.bool_(True))
    here = residents(c, node, c.pods[g.leader]["priority"])
    eligible = gather(c, costs, node, here.slots, by_socket, for_gang, w)
    soon, room = as_index(0), MAX_PODS_PER_NODE - c.nodes[node]["num_pods"]
    if here.some_leave:
        soon = leaving(c, node, costs.grace_s).soon
    for i in range(eligible):
        group = c.pods[w.eligible[i]["pod"]]["group"]
        for j in range(paid):
            if group >= 0 and group == c.gang_marks[j]:
                w.eligible[i]["cost"] = PAID_FOR
        if is_closed(c, as_index(w.eligible[i]["pod"]), rank):
            w.eligible[i]["cost"] = NEVER
    closed = c.gang_marks[NUM_CLOSED] + c.gang_marks[NUM_ALLOWED]
    c.gang_marks[WORK] += 16 + (2 + closed) * eligible
    model = c.nodes[node]["model"]
    gpus, cores = c.models[model]["num_gpus"], 0
    for u in range(c.models[model]["num_numa"]):
        cores += c.models[model]["numa_cores"][u]
    _price_freed(c, costs, w, eligible, as_index(gpus))
    _mark_rest(c, w, eligible)
    by_first = _is_by_socket(c, g, model, as_index(0))
    by_second = _is_by_socket(c, g, model, as_index(1))
    for first in range(g.first + 1):
        for second in range(g.second + 1):
            if first + second == 0 or first + second > room:
                continue
            if first * g.gpus[0] + second * g.gpus[1] > gpus:
                break
            if first * g.cores[0] + second * g.cores[1] > cores:
                break
            sets = as_index(1 if g.second > 0 else 2)
            a, b = as_index(first), as_index(second)
            s = Step(rank, a, b, by_first, by_second, eligible, soon, end, start, sets)
            end = _search_step(c, costs, g, s, w)
    return end
