"""What an episode came to: the weighted loss, its terms, and what is reported beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.simulation.lifecycle import starved_s
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import (
    BACKING_OFF,
    DONE,
    FUTURE,
    NOMINATED,
    PENDING,
    TERMINATING,
    Cluster,
    as_index,
)
from flextopo.cluster.state.gangs import is_leader
from flextopo.cluster.state.loss import Costs, weighted_gpu_s, write_terms
from flextopo.cluster.state.schema import NEVER_PLACED_S

METRICS: dict[str, str] = {
    "weighted_loss": "weighted GPU-hours lost per GPU-hour demanded; the sum of its five terms",
    "waiting": "weighted share lost while online pods are pending",
    "misalignment": "weighted share lost by online pods that run below their best alignment",
    "discarded": "weighted share of batch work thrown away or repeated",
    "eviction": "weighted share of the fixed charge an evicted GPU",
    "idle": "weighted share of free GPUs that waiting batch work could have used",
    "hit_rate": "share of preemptions that gave the best level the server can give that pod",
    "guaranteed_hit_rate": "the same over pods that asked for guaranteed alignment",
    "success_rate": "share of pods that once fitted nowhere and were placed before they left",
    "guarantee_violations": "guaranteed pods placed unaligned, a day",
    "cross_socket": "preemptions placed across sockets where one would do, a day",
    "gpus_evicted": "GPUs of victims, and of PodGroup members stopped with them, a day",
    "victims": "pods evicted, a day",
    "discarded_gpu_h": "batch GPU-hours thrown away or repeated, a day",
    "wait_p50_s": "median time online pods were pending, in seconds, over all that arrived",
    "wait_p99_s": "its 99th percentile",
    "batch_goodput": "useful batch GPU-hours over the cluster's GPU-hours",
    "utilisation": "GPU-hours held by online and running batch pods over the cluster's",
    "decisions": "times the selector was asked",
    "preemptions": "pods placed by evicting others",
    "drained": "pods placed on what was being freed already, evicting nobody",
    "preemptor_wait_p50_s": "median wait in seconds of the pods that once fitted nowhere",
    "preemptor_wait_p99_s": "its 99th percentile",
    "preemptor_wait_max_s": "the longest of them",
    "late_share": "share of those pods that waited beyond their service's deadline",
    "late_by_choice": "pods among them that were once left pending although there was a candidate",
    "discarded_low_gpu_h": "GPU-hours thrown away or repeated of batch class low, a day",
    "discarded_middle_gpu_h": "the same of the other classes",
    "slowdown_mean": "time from arrival to end over run time, of batch jobs that ended; jobs of less "
    "than 10 minutes count as such",
    "slowdown_p99": "its 99th percentile",
    "evictions_p99": "99th percentile of how often a batch job was evicted",
    "evictions_max": "how often the batch job was evicted that was evicted most",
    "starvation_h": "longest time in hours that a batch job was without resources",
    "gang_preemptions": "gangs placed by evicting others",
    "gang_hit_rate": "share of them that lie as close as they ask, every member at its best level",
    "gang_wait_p50_s": "median time in seconds that gangs were pending, over all that arrived",
    "gang_wait_p99_s": "its 99th percentile",
    "victims_per_preemption": "pods evicted, those stopped with them included, over preemptions",
}
"""Every metric of a run with its meaning; tables and results files iterate over it."""


BOUND_S = 600
"""Shorter jobs count as of this length in slowdowns, or those of seconds would be all one sees."""

ALL_PODS, PREEMPTORS, GANGS = range(3)

PER_MILLE = 1000
"""Slowdowns are sorted as whole numbers of this unit."""


@inlined
def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


@inlined
def _sift(values: npt.NDArray[np.int64], at: int, size: int) -> None:
    """Put a value of a heap with the largest first where it belongs."""
    value = values[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and values[child + 1] > values[child]:
            child += 1
        if values[child] <= value:
            break
        values[at] = values[child]
        at = child
    values[at] = value


@stage
def _sort(values: npt.NDArray[np.int64], size: int) -> None:
    """Sort the first values, which takes no further memory."""
    for at in range(size // 2 - 1, -1, -1):
        _sift(values, at, size)
    for last in range(size - 1, 0, -1):
        values[0], values[last] = values[last], values[0]
        _sift(values, 0, last)


@stage
def _percentile(
    values: npt.NDArray[np.int64], size: int, counted: int, least: int, q: float
) -> float:
    """Return a percentile with linear interpolation, as numpy's default.

    Args:
        values: those above `least`, sorted.
        size: how many they are.
        counted: of all; the others are `least`.
        least: the lowest value.
        q: 0 to 1.
    """
    if counted == 0:
        return math.nan
    at = (counted - 1) * q
    rank = int(at)
    share = at - rank
    rank -= counted - size
    a = float(values[rank]) if rank >= 0 else float(least)
    b = float(values[rank + 1]) if -1 <= rank < size - 1 else a
    return a + (b - a) * share if share < 0.5 else b - (b - a) * (1.0 - share)


@inlined
def _most(values: npt.NDArray[np.int64], size: int, counted: int) -> float:
    """Return the highest of values as `_percentile` takes them, where the least is 0."""
    if counted == 0:
        return math.nan
    return float(values[size - 1]) if size > 0 else 0.0


@stage
def _wait_s(c: Cluster, pod: int) -> int:
    """Return how long an online pod was pending so far; -1 for pods that do not count."""
    spec, live = c.pods[pod], c.live[pod]
    status = live["status"]
    if not spec["online"] or spec["arrive_s"] < 0 or status == FUTURE or not is_leader(c, pod):
        return -1
    if status == PENDING or status == NOMINATED:
        return int(live["wait_s"] + c.totals[0]["now_s"] - live["queued_s"])
    return int(live["wait_s"])


@stage
def _collect_waits(c: Cluster, whose: int, waits: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Sort the waits above 0 of online pods into `waits`; return how many they are, and of how many.

    A gang counts once. `whose`: ALL_PODS, PREEMPTORS or GANGS alone.
    """
    size, counted = 0, 0
    for pod in range(c.pods.shape[0]):
        wait = _wait_s(c, pod)
        counts = whose == ALL_PODS or (whose == PREEMPTORS and c.live[pod]["preemptor"])
        counts = counts or (whose == GANGS and c.pods[pod]["next_member"] != pod)
        if wait >= 0 and counts:
            counted += 1
            if wait > 0:
                waits[size] = wait
                size += 1
    _sort(waits, size)
    return size, counted


@stage
def _count_preemptors(c: Cluster) -> tuple[int, int, int, int]:
    """Return how many pods once fitted nowhere, were placed, were late, and were late by choice."""
    preemptors, placed, late, chosen = 0, 0, 0, 0
    for pod in range(c.pods.shape[0]):
        wait, live = _wait_s(c, pod), c.live[pod]
        if wait < 0 or not live["preemptor"]:
            continue
        preemptors += 1
        placed += live["since_s"] != NEVER_PLACED_S or live["status"] == NOMINATED
        if wait > c.pods[pod]["deadline_s"]:
            late += 1
            chosen += live["declined"]
    return preemptors, placed, late, chosen


@inlined
def _is_job(c: Cluster, pod: int) -> bool:
    """Say whether a pod stands for a batch job that has arrived: the first of a group does."""
    spec, live = c.pods[pod], c.live[pod]
    first = spec["group"] < 0 or pod == 0 or c.pods[pod - 1]["group"] != spec["group"]
    return bool(not spec["online"] and first and live["status"] != FUTURE)


@stage
def _measure_slowdown(
    c: Cluster, values: npt.NDArray[np.int64], out: npt.NDArray[np.float64]
) -> None:
    """Write mean and 99th percentile of the slowdown of jobs that ended in the account."""
    size, counted, total = 0, 0, 0.0
    for pod in range(c.pods.shape[0]):
        spec, live = c.pods[pod], c.live[pod]
        if _is_job(c, pod) and live["status"] == DONE and live["next_s"] >= 0:
            slowdown = (live["next_s"] - spec["arrive_s"]) / max(spec["duration_s"], BOUND_S)
            counted += 1
            total += max(slowdown, 1.0)
            if slowdown > 1.0:
                values[size] = int(slowdown * PER_MILLE)
                size += 1
    _sort(values, size)
    out[0] = total / counted if counted else math.nan
    out[1] = _percentile(values, size, counted, PER_MILLE, 0.99) / PER_MILLE


@stage
def _measure_evictions(
    c: Cluster, values: npt.NDArray[np.int64], out: npt.NDArray[np.float64]
) -> None:
    """Write 99th percentile and maximum of the evictions of a job, and the longest starvation."""
    size, counted, longest, now = 0, 0, 0, c.totals[0]["now_s"]
    for pod in range(c.pods.shape[0]):
        if not _is_job(c, pod):
            continue
        live = c.live[pod]
        counted += 1
        if live["evictions"] > 0:
            values[size] = live["evictions"]
            size += 1
        longest = max(longest, live["starved_s"])
        status = live["status"]
        if status == PENDING or status == TERMINATING or status == BACKING_OFF:
            longest = max(longest, starved_s(c, pod, now))
    _sort(values, size)
    out[0] = _percentile(values, size, counted, 0, 0.99)
    out[1] = _most(values, size, counted)
    out[2] = longest / 3600.0


@stage
def measure(
    c: Cluster,
    account: npt.NDArray[Any],
    costs: Costs,
    end_s: int,
    demanded: int,
    values: npt.NDArray[np.int64],
    out: npt.NDArray[np.float64],
) -> None:
    """Write every metric in `METRICS` for a finished episode, in their order.

    Args:
        c: the cluster at the end.
        account: (1,) ACCOUNT_DTYPE.
        costs: the loss in GPU-seconds.
        end_s: seconds in the account.
        demanded: GPU-seconds asked for.
        values: (P,) scratch memory.
        out: (M,) output; NaN where nothing was counted.
    """
    a = account[0]
    whole = float(max(demanded, 1))
    capacity = float(c.totals[0]["gpus"]) * end_s
    per_day = 86400.0 / end_s
    preemptors, placed, late, chosen = _count_preemptors(c)
    write_terms(account, costs, whole, out[1:6])
    out[0] = weighted_gpu_s(account, costs) / whole
    out[6] = _share(a["hits"], a["preemptions"])
    out[7] = _share(a["guaranteed_hits"], a["guaranteed_preemptions"])
    out[8] = _share(placed, preemptors)
    out[9] = a["violations"] * per_day
    out[10] = a["cross_socket"] * per_day
    out[11] = a["evicted_gpus"] * per_day
    out[12] = a["victims"] * per_day
    out[13] = a["discarded"] / 3600.0 * per_day
    size, counted = _collect_waits(c, as_index(ALL_PODS), values)
    out[14] = _percentile(values, size, counted, 0, 0.5)
    out[15] = _percentile(values, size, counted, 0, 0.99)
    out[16] = (a["batch"] - a["discarded"]) / capacity
    out[17] = (a["online"] + a["batch"]) / capacity
    out[18] = a["decisions"]
    out[19] = a["preemptions"]
    out[20] = a["drained"]
    size, counted = _collect_waits(c, as_index(PREEMPTORS), values)
    out[21] = _percentile(values, size, counted, 0, 0.5)
    out[22] = _percentile(values, size, counted, 0, 0.99)
    out[23] = _most(values, size, counted)
    out[24] = _share(late, preemptors)
    out[25] = chosen
    out[26] = a["discarded_low"] / 3600.0 * per_day
    out[27] = (a["discarded"] - a["discarded_low"]) / 3600.0 * per_day
    _measure_slowdown(c, values, out[28:30])
    _measure_evictions(c, values, out[30:33])
    out[33] = a["gang_preemptions"]
    out[34] = _share(a["gang_hits"], a["gang_preemptions"])
    size, counted = _collect_waits(c, as_index(GANGS), values)
    out[35] = _percentile(values, size, counted, 0, 0.5)
    out[36] = _percentile(values, size, counted, 0, 0.99)
    out[37] = _share(a["victims"], a["preemptions"])


def episode_metrics(sim: Simulator) -> dict[str, float]:
    """Return every metric in `METRICS` for a finished episode; NaN where nothing was counted."""
    out = np.empty(len(METRICS))
    c, tape = sim.state.arrays, sim.tape
    values = np.empty(len(c.pods), np.int64)
    measure(c, sim.events.account, sim.costs, tape.end_s, tape.demanded_gpu_s(), values, out)
    return dict(zip(METRICS, out.tolist(), strict=True))
