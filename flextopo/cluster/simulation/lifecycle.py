"""What happens to one pod: it starts, serves, ends, is scaled down or evicted."""

from __future__ import annotations

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.simulation.events import (
    Events,
    cancel_event,
    dequeue,
    enqueue,
    leave_unserved,
    schedule_event,
)
from flextopo.cluster.state.arrays import (
    BACKING_OFF,
    DONE,
    FUTURE,
    NOMINATED,
    PENDING,
    RUNNING,
    STARTING,
    TERMINATING,
    Cluster,
    as_index,
    lost_work_s,
    release,
)
from flextopo.cluster.state.gangs import is_leader
from flextopo.cluster.state.loss import misaligned_at, network_row
from flextopo.cluster.state.placement import best_level, is_aligned, level_deficit
from flextopo.cluster.topology.levels import CROSS_SOCKET
from flextopo.cluster.workload.tape import MAX_BACKOFF_S

GUARANTEED = 2
"""`TopologyRequirement.GUARANTEED` as the kernels see it."""


@stage
def _count_misaligned(c: Cluster, pod: int, sign: int) -> None:
    """Enter or leave the account of online pods that serve below their best level."""
    deficit, spec = as_index(c.live[pod]["deficit"]), c.pods[pod]
    if deficit > 0:
        at = misaligned_at(spec["sensitivity"], deficit)
        c.totals[0]["misaligned_gpus"][at] += sign * spec["gpus"]
    if c.live[pod]["tier"] > 0:
        at = misaligned_at(spec["sensitivity"], network_row(c.live[pod]["tier"]))
        c.totals[0]["misaligned_gpus"][at] += sign * spec["gpus"]


@stage
def _count_serving(c: Cluster, pod: int, sign: int) -> None:
    """Enter or leave the account of replicas that serve; a gang is one."""
    _count_misaligned(c, pod, sign)
    if c.pods[pod]["service"] >= 0 and is_leader(c, pod):
        c.serving[c.pods[pod]["service"]] += sign


@inlined
def starved_s(c: Cluster, pod: int, now: int) -> int:
    """Return for how long a pending batch pod has been without resources: since it came or went."""
    came = c.pods[pod]["arrive_s"]
    return int(now - max(c.live[pod]["stopped_s"], came))


@inlined
def bind(c: Cluster, e: Events, pod: int) -> None:
    """Start a pod on the resources that it holds."""
    now = c.totals[0]["now_s"]
    live, spec = c.live[pod], c.pods[pod]
    live["since_s"] = now
    live["wait_s"] += now - live["queued_s"]
    if live["disrupted"]:
        live["disrupted"] = 0
        c.pdb_left[spec["pdb"]] += 1
        e.clock[0]["again"] = 1
    if spec["online"]:
        c.totals[0]["wait_gpus"] -= spec["gpus"]
        live["status"] = STARTING
        schedule_event(c, e, pod, now + spec["start_s"])
    else:
        without = starved_s(c, pod, now)
        live["starved_s"] = max(live["starved_s"], without)
        c.totals[0]["batch_gpus"] += spec["gpus"]
        live["status"] = RUNNING
        run = live["overhead_s"] + spec["duration_s"] - live["done_s"]
        schedule_event(c, e, pod, now + run)


@stage
def stop(c: Cluster, e: Events, pod: int) -> None:
    """Let a pod give up what it is doing, but not yet its resources."""
    status = c.live[pod]["status"]
    spec = c.pods[pod]
    if spec["online"]:
        if status == RUNNING:
            _count_serving(c, pod, as_index(-1))
        elif status == PENDING or status == NOMINATED or status == STARTING:
            leave_unserved(e, pod)
        if status == PENDING or status == NOMINATED:
            c.totals[0]["wait_gpus"] -= spec["gpus"]
            c.live[pod]["wait_s"] += c.totals[0]["now_s"] - c.live[pod]["queued_s"]
        if status == NOMINATED or status == STARTING or status == RUNNING:
            c.totals[0]["online_gpus"] -= spec["gpus"]
    elif status == RUNNING:
        c.totals[0]["batch_gpus"] -= spec["gpus"]
    cancel_event(c, e, pod)


@stage
def record_level(c: Cluster, pod: int, level: int, by_preemption: bool) -> int:
    """Write how well a pod sits on its node, and return the best level that it could have there."""
    spec = c.pods[pod]
    best = best_level(c.models, c.nodes[c.live[pod]["node"]]["model"], spec["gpus"], spec["cores"])
    c.live[pod]["level"] = level
    c.live[pod]["deficit"] = level_deficit(level, best)
    c.live[pod]["by_preemption"] = by_preemption
    if spec["online"]:
        c.totals[0]["online_gpus"] += spec["gpus"]
    return best


@stage
def set_level(c: Cluster, e: Events, pod: int, level: int, by_preemption: bool) -> None:
    """Record how well an online pod was placed; preemptions after time 0 are counted."""
    spec, best = c.pods[pod], record_level(c, pod, level, by_preemption)
    if not spec["online"] or c.totals[0]["now_s"] < 0:
        return
    a = e.account[0]
    guaranteed = spec["requirement"] == GUARANTEED
    if guaranteed and not is_aligned(level, best):
        a["violations"] += 1
    if by_preemption:
        a["preemptions"] += 1
        a["guaranteed_preemptions"] += guaranteed
        if c.live[pod]["deficit"] == 0:
            a["hits"] += 1
            a["guaranteed_hits"] += guaranteed
        if level == CROSS_SOCKET and best != CROSS_SOCKET:
            a["cross_socket"] += 1


@stage
def finish_event(c: Cluster, e: Events, pod: int, backoff_s: int) -> None:
    """Let the event happen that a pod had in the heap; of a pending pod it is to be asked again."""
    live = c.live[pod]
    status = live["status"]
    cancel_event(c, e, pod)
    if status == NOMINATED:
        bind(c, e, pod)
    elif status == STARTING:
        live["status"] = RUNNING
        leave_unserved(e, pod)
        _count_serving(c, pod, as_index(1))
    elif status == RUNNING:
        stop(c, e, pod)
        live["done_s"] = c.pods[pod]["duration_s"]
        live["status"] = DONE
        release(c, pod)
    elif status == TERMINATING:
        release(c, pod)
        live["status"] = PENDING
        if c.pods[pod]["online"] and c.pods[pod]["depart_s"] <= c.totals[0]["now_s"]:
            live["status"] = DONE
        elif c.pods[pod]["online"] or backoff_s == 0:
            enqueue(c, e, pod)
        else:
            live["status"] = BACKING_OFF
            times = as_index(live["evictions"] - 1)
            wait = min(backoff_s << min(times, 16), MAX_BACKOFF_S)
            schedule_event(c, e, pod, c.totals[0]["now_s"] + wait)
    elif status == BACKING_OFF:
        live["status"] = PENDING
        enqueue(c, e, pod)


@stage
def depart(c: Cluster, e: Events, pod: int) -> None:
    """Scale an online pod down, wherever it is.

    What a nominated one was to get is still being freed by others, and no sooner than before.
    """
    status = c.live[pod]["status"]
    if status == DONE or status == TERMINATING:
        return
    free_s = c.live[pod]["next_s"]
    stop(c, e, pod)
    if status == NOMINATED:
        c.live[pod]["status"] = TERMINATING
        schedule_event(c, e, pod, free_s)
        return
    if status == PENDING:
        dequeue(c, e, pod)
    elif status != FUTURE:
        release(c, pod)
    c.live[pod]["status"] = DONE


@stage
def evict(c: Cluster, e: Events, pod: int, grace_s: int, restart_s: int) -> None:
    """Evict one pod: charge what is lost, start its grace period."""
    live, spec = c.live[pod], c.pods[pod]
    now = c.totals[0]["now_s"]
    if spec["online"] == 0:
        progress = max(0, now - live["since_s"] - live["overhead_s"])
        lost = lost_work_s(c, pod)
        live["done_s"] += progress - lost
        if now >= 0:
            gpu_s = spec["gpus"] * (lost + restart_s)
            e.account[0]["discarded"] += gpu_s
            if spec["batch_class"] == 0:
                e.account[0]["discarded_low"] += gpu_s
            e.account[0]["discarded_weighted"] += gpu_s * (1 + spec["batch_class"])
        live["overhead_s"] = restart_s
    if now >= 0:
        e.account[0]["evicted_gpus"] += spec["gpus"]
        e.account[0]["victims"] += 1
    stop(c, e, pod)
    live["status"] = TERMINATING
    live["evictions"] += 1
    live["stopped_s"] = now
    if spec["pdb"] >= 0:
        live["disrupted"] = 1
        c.pdb_left[spec["pdb"]] -= 1
    schedule_event(c, e, pod, now + grace_s)
