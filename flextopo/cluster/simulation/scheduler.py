"""The event loop: what happens to a cluster between two decisions.

At each event time all events happen first (arrivals, departures, ends of runs, of start-up and of
grace periods), then one scheduling pass goes through the pending pods by priority, then age.
Whoever fits starts. The pass stops where an online pod fits nowhere and evicting, or waiting for what
is being freed, could help: that is a decision. Batch pods never preempt.
"""

from __future__ import annotations

from typing import Any

from flextopo.cluster.jit.kernels import kernel, stage
from flextopo.cluster.simulation.backfill import (
    ANY,
    clear_reservations,
    find_batch_node,
    reserve,
)
from flextopo.cluster.simulation.events import (
    Events,
    dequeue,
    enqueue,
    pod_of,
    schedule_event,
    time_of,
)
from flextopo.cluster.simulation.gangs import all_pending, preempt_gang, start_gang
from flextopo.cluster.simulation.lifecycle import (
    GUARANTEED,
    bind,
    depart,
    finish_event,
    set_level,
)
from flextopo.cluster.simulation.placing import evict_all, hand_over, place_on
from flextopo.cluster.simulation.rules import BLIND, Rules, longest_wait_s, must_align
from flextopo.cluster.state.arrays import (
    NOMINATED,
    PENDING,
    RUNNING,
    STARTING,
    Cluster,
    add_to_node,
    allocate,
    as_index,
    release,
    replicas_row,
    spare_members,
)
from flextopo.cluster.state.candidates import CandidateArrays, freed, victim_slots
from flextopo.cluster.state.gangs import is_gang
from flextopo.cluster.state.placement import best_level, find_node, is_aligned, place
from flextopo.cluster.state.preemption import count_places
from flextopo.cluster.state.schema import ALL_MEMBERS, NEVER_S, NUM_MISALIGNED

END = -1
"""What `advance` returns at the end of the tape."""


SPARE_NODES = 4
"""How many nodes must be left to preempt on beyond one for each pod in the queue, before a hard deadline
lets a pod wait by choice: others may take them meanwhile."""

SPARE_PARTS = 2
"""The same for gangs, in parts of the network that could hold it."""


@stage
def may_wait(c: Cluster, rules: Rules, pod: int) -> bool:
    """Say whether a pod that has a candidate may be left pending now."""
    waited = c.totals[0]["now_s"] - c.live[pod]["queued_s"]
    if waited >= longest_wait_s(c, rules, pod):
        return False
    if rules.hard == 0:
        return True
    asked = as_index(max(c.pods[pod]["gpus"], 1))
    spare = SPARE_NODES + c.totals[0]["wait_gpus"] // asked
    if is_gang(c, pod):
        spare = as_index(SPARE_PARTS)
    return bool(count_places(c, pod, must_align(c, rules, pod), spare) >= spare)


@stage
def _accrue_unserved(c: Cluster, a: Any, pod: int, begin_s: int, until_s: int) -> None:
    """Charge an online pod that does not serve yet for some time."""
    spec, row = c.pods[pod], replicas_row(c, pod)
    gpus = as_index(spec["gpus"])
    if c.live[pod]["status"] == STARTING:
        a["starting"][row] += gpus * (until_s - begin_s)
        return
    deadline = c.live[pod]["queued_s"] + spec["deadline_s"]
    a["waiting"][row] += gpus * max(min(until_s, deadline) - begin_s, 0)
    late, later = max(begin_s - deadline, 0), max(until_s - deadline, 0)
    a["late"][row] += gpus * (later - late)
    a["late_squared"][row] += gpus * (later * later - late * late)


@stage
def _accrue(c: Cluster, e: Events, until_s: int) -> None:
    """Move the clock, and charge what the time costs."""
    t = c.totals[0]
    begin_s = max(t["now_s"], 0)
    span = until_s - begin_s
    if span > 0:
        a = e.account[0]
        for i in range(e.clock[0]["unserved"]):
            _accrue_unserved(c, a, as_index(e.unserved[i]), begin_s, until_s)
        for at in range(NUM_MISALIGNED):
            a["misaligned"][at] += t["misaligned_gpus"][at] * span
        a["idle"] += min(t["free_gpus"], t["batch_wait_gpus"]) * span
        a["online"] += t["online_gpus"] * span
        a["batch"] += t["batch_gpus"] * span
    t["now_s"] = until_s


@stage
def _start(c: Cluster, e: Events, pod: int, node: int) -> None:
    """Place a pending pod on a node where it fits and start it at once."""
    level, mask = place_on(c, pod, node, c.scratch[1])
    dequeue(c, e, pod)
    allocate(c, pod, node, mask, c.scratch[1])
    set_level(c, e, pod, level, False)
    bind(c, e, pod)


@stage
def _refused(c: Cluster, e: Events, rules: Rules, pod: int, node: int) -> bool:
    """Say whether restricted admission turns the pod away from a node where it fits by count."""
    spec = c.pods[pod]
    if rules.restricted == 0 or spec["requirement"] != GUARANTEED:
        return False
    level, _ = place_on(c, pod, node, c.scratch[1])
    best = best_level(c.models, c.nodes[node]["model"], spec["gpus"], spec["cores"])
    if is_aligned(level, best):
        return False
    if c.totals[0]["now_s"] >= 0:
        e.account[0]["refusals"] += 1
    return True


@stage
def _start_group(c: Cluster, e: Events, rules: Rules, first: int) -> bool:
    """Start the pending members of a PodGroup, or none; they stand next to each other in the queue.

    Those that fit nowhere are left out where enough run without them. Say whether any started.
    """
    placed, releases, spare = 0, c.totals[0]["releases"], spare_members(c, first)
    member = first
    while True:
        if c.live[member]["status"] == PENDING:
            node = find_batch_node(c, member, rules.backfill)
            if node >= 0:
                level, mask = place_on(c, member, node, c.scratch[1])
                allocate(c, member, node, mask, c.scratch[1])
                c.live[member]["level"] = level
                placed += 1
            elif c.pods[member]["min_members"] == ALL_MEMBERS:
                break
        member = as_index(c.pods[member]["next_member"])
        if member == first:
            break
    complete = placed > 0 and spare + placed >= 0
    member = first
    while placed > 0:
        if c.live[member]["status"] == PENDING and c.live[member]["node"] >= 0:
            placed -= 1
            if complete:
                dequeue(c, e, member)
                set_level(c, e, member, c.live[member]["level"], False)
                bind(c, e, member)
            else:
                release(c, member)
        member = as_index(c.pods[member]["next_member"])
    c.totals[0]["releases"] = releases
    return complete


@stage
def _schedule_batch(c: Cluster, e: Events, rules: Rules, pod: int) -> bool:
    """Try to start a pending batch pod; the cursor moves on when it does not fit."""
    clock = e.clock[0]
    if rules.backfill != ANY or c.live[pod]["tried"] != c.totals[0]["releases"]:
        if c.pods[pod]["group"] >= 0:
            if _start_group(c, e, rules, pod):
                return True
        else:
            node = find_batch_node(c, pod, rules.backfill)
            if node >= 0:
                _start(c, e, pod, node)
                return True
        c.live[pod]["tried"] = c.totals[0]["releases"]
        if rules.backfill != ANY and clock["reserved"] == 0:
            reserve(c, e, pod)
    group = c.pods[pod]["group"]
    clock["cursor"] += 1
    while group >= 0 and clock["cursor"] < clock["queue_size"]:
        if c.pods[e.queue[clock["cursor"]]]["group"] != group:
            break
        clock["cursor"] += 1
    return False


@stage
def _next_smaller(c: Cluster, e: Events, place: int, gpus: int, cores: int) -> int:
    """Return the next place in the queue, from `place` on, of an online pod or a smaller one."""
    while place < e.clock[0]["queue_size"]:
        spec = c.pods[e.queue[place]]
        if spec["online"] or spec["gpus"] < gpus or spec["cores"] < cores:
            break
        place += 1
    return place


@stage
def _wait_for_protection(c: Cluster, e: Events, pod: int) -> None:
    """Let a pod that nobody may be evicted for be looked at again when a victim's protection ends."""
    first, now = NEVER_S, c.totals[0]["now_s"]
    for node in range(c.nodes.shape[0]):
        for slot in range(c.nodes[node]["num_pods"]):
            other = as_index(c.node_pods[node, slot])
            spec, status = c.pods[other], c.live[other]["status"]
            if spec["preemptible"] == 0 or spec["priority"] >= c.pods[pod]["priority"]:
                continue
            if status == RUNNING or status == STARTING:
                ends = c.live[other]["since_s"] + spec["protection_s"]
                if now < ends < first:
                    first = ends
    if first < NEVER_S:
        schedule_event(c, e, pod, first)


@stage
def _pass_by(c: Cluster, e: Events, pod: int) -> None:
    """Move the cursor on behind an online pod that stays pending, and behind its gang."""
    clock = e.clock[0]
    clock["cursor"] += 1
    if is_gang(c, pod):
        while clock["cursor"] < clock["queue_size"]:
            if c.pods[e.queue[clock["cursor"]]]["group"] != c.pods[pod]["group"]:
                break
            clock["cursor"] += 1
            clock["online_left"] -= 1


@stage
def _gang_needs_decision(c: Cluster, e: Events, rules: Rules, pod: int) -> bool:
    """Start a gang if it fits; say whether it does not, and a decision could help."""
    if all_pending(c, pod):
        aligned = must_align(c, rules, pod)
        restricted = rules.restricted and c.pods[pod]["requirement"] == GUARANTEED
        if start_gang(c, e, pod, bool(aligned or restricted)):
            return False
        c.live[pod]["preemptor"] = 1
        if count_places(c, pod, aligned, as_index(1)) > 0:
            return True
        _wait_for_protection(c, e, pod)
    _pass_by(c, e, pod)
    return False


@stage
def _needs_decision(c: Cluster, e: Events, rules: Rules, pod: int) -> bool:
    """Start an online pod if it fits; say whether it does not, and a decision could help.

    The cursor moves on where neither is so.
    """
    aligned = must_align(c, rules, pod)
    if is_gang(c, pod):
        return _gang_needs_decision(c, e, rules, pod)
    by_alignment = rules.filter != BLIND and c.pods[pod]["requirement"] > 0
    node = find_node(c, pod, aligned, by_alignment)
    if node >= 0 and not _refused(c, e, rules, pod, node):
        _start(c, e, pod, node)
        return False
    if node < 0:
        c.live[pod]["preemptor"] = 1
        if count_places(c, pod, aligned, as_index(1)) > 0:
            return True
        _wait_for_protection(c, e, pod)
    e.clock[0]["cursor"] += 1
    return False


@stage
def _pass(c: Cluster, e: Events, rules: Rules) -> int:
    """Go on with the scheduling pass; return the pod that needs a decision, or END.

    Where nothing was released since all batch pods failed, only the online pods are looked at.
    """
    clock = e.clock[0]
    small_gpus, small_cores = 1 << 30, 1 << 30  # the smallest batch request that failed so far
    while clock["cursor"] < clock["queue_size"]:
        if clock["online_left"] == 0 and clock["in_vain"] == c.totals[0]["releases"]:
            return END
        pod = as_index(e.queue[clock["cursor"]])
        spec = c.pods[pod]
        if spec["online"] == 0:
            if spec["gpus"] >= small_gpus and spec["cores"] >= small_cores:
                clock["cursor"] = _next_smaller(c, e, clock["cursor"] + 1, small_gpus, small_cores)
            elif (
                not _schedule_batch(c, e, rules, pod)
                and rules.backfill == ANY
                and spec["gpus"] <= small_gpus
                and spec["cores"] <= small_cores
                and (spec["group"] < 0 or find_batch_node(c, pod, rules.backfill) < 0)
            ):
                small_gpus, small_cores = spec["gpus"], spec["cores"]
            continue
        clock["online_left"] -= 1
        if _needs_decision(c, e, rules, pod):
            clock["asked"] = pod
            return pod
    if rules.backfill == ANY:
        clock["in_vain"] = c.totals[0]["releases"]
    return END


@stage
def _next_time(c: Cluster, e: Events, rules: Rules) -> int:
    """Return the time of the next event, or the end."""
    clock = e.clock[0]
    time = rules.end_s
    if clock["next_arrival"] < c.pods.shape[0]:
        time = min(time, c.pods[clock["next_arrival"]]["arrive_s"])
    if clock["next_departure"] < e.departures.shape[0]:
        time = min(time, c.pods[e.departures[clock["next_departure"]]]["depart_s"])
    if clock["heap_size"] > 0:
        time = min(time, time_of(e.heap[0]))
    return time


@stage
def _happen(c: Cluster, e: Events, rules: Rules, now: int) -> None:
    """Let everything happen that is due now."""
    clock = e.clock[0]
    while clock["next_arrival"] < c.pods.shape[0]:
        pod = clock["next_arrival"]
        if c.pods[pod]["arrive_s"] > now:
            break
        c.live[pod]["status"] = PENDING
        enqueue(c, e, pod)
        clock["next_arrival"] += 1
    while clock["next_departure"] < e.departures.shape[0]:
        pod = e.departures[clock["next_departure"]]
        if c.pods[pod]["depart_s"] > now:
            break
        depart(c, e, pod)
        clock["next_departure"] += 1
    while clock["heap_size"] > 0 and time_of(e.heap[0]) <= now:
        finish_event(c, e, pod_of(e.heap[0]), rules.backoff_s)


@stage
def _begin_pass(c: Cluster, e: Events) -> None:
    """Begin to go through the pending pods."""
    clear_reservations(c, e)
    clock = e.clock[0]
    clock["in_pass"], clock["cursor"], clock["again"] = 1, 0, 0
    clock["online_left"] = clock["online_queued"]


@kernel
def advance(c: Cluster, e: Events, rules: Rules) -> int:
    """Run until an online pod needs a decision; return it, or END at the end of the tape."""
    clock = e.clock[0]
    while True:
        if clock["in_pass"]:
            pod = _pass(c, e, rules)
            if pod != END:
                return pod
            clock["in_pass"] = 0
        if clock["again"] and clock["online_queued"] > 0:
            _begin_pass(c, e)
            continue
        now = _next_time(c, e, rules)
        _accrue(c, e, now)
        if now >= rules.end_s:
            return END
        _happen(c, e, rules, now)
        _begin_pass(c, e)


@kernel
def decline(c: Cluster, e: Events, rules: Rules, by_choice: bool) -> None:
    """Leave the pod that was asked about pending; it is asked about again after the next event.

    Where somebody chose that although there is a candidate, and the pod must not be left so for ever,
    the end of that time is an event.
    """
    pod = as_index(e.clock[0]["asked"])
    e.clock[0]["asked"] = -1
    _pass_by(c, e, pod)
    if by_choice:
        c.live[pod]["declined"] = 1
        until = c.live[pod]["queued_s"] + longest_wait_s(c, rules, pod)
        if c.totals[0]["now_s"] < until < NEVER_S:
            schedule_event(c, e, pod, until)


@kernel
def preempt(c: Cluster, e: Events, rules: Rules, node: int, slots: int) -> None:
    """Evict the pods in `slots` of a node for the pod that was asked about, and nominate it.

    Terminating ones among them are not evicted again, but what they hold counts. The placement is what
    the node would give among its free resources and theirs. What they held beyond it becomes free
    after their grace period. The set must let the pod fit.
    """
    pod = e.clock[0]["asked"]
    spec = c.pods[pod]
    model = c.nodes[node]["model"]
    cores, taken = c.scratch[0], c.scratch[1]
    gpu_free = freed(c, node, slots, cores)
    level, mask = place(c.models, model, gpu_free, cores, spec["gpus"], spec["cores"], taken)
    count = evict_all(c, e, rules, node, victim_slots(c, node, slots))
    best = best_level(c.models, model, spec["gpus"], spec["cores"])
    e.clock[0]["asked"] = -1
    if rules.restricted and spec["requirement"] == GUARANTEED and not is_aligned(level, best):
        if c.totals[0]["now_s"] >= 0:
            e.account[0]["refusals"] += 1
        e.clock[0]["cursor"] += 1
        return
    free_s = hand_over(c, pod, node, slots, mask, taken)
    add_to_node(c, pod, node)
    dequeue(c, e, pod)
    set_level(c, e, pod, level, count > 0)
    c.live[pod]["status"] = NOMINATED
    if free_s > c.totals[0]["now_s"]:
        if count == 0 and c.totals[0]["now_s"] >= 0:
            e.account[0]["drained"] += 1
        schedule_event(c, e, pod, free_s)
    else:
        bind(c, e, pod)


@kernel
def carry_out(c: Cluster, e: Events, rules: Rules, found: CandidateArrays, i: int) -> None:
    """Take a candidate for the pod that was asked about: see `preempt`, `preempt_gang`."""
    if is_gang(c, as_index(e.clock[0]["asked"])):
        preempt_gang(c, e, rules, found, i)
    else:
        preempt(c, e, rules, found.node[i], found.slots[i])
