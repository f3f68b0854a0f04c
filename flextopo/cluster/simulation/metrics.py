"""What an episode came to: the weighted loss, its terms, and what is reported beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import FUTURE, NOMINATED, PENDING, Cluster
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
}
"""Every metric of a run with its meaning; tables and results files iterate over it."""


@inlined
def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


@stage
def _wait_s(c: Cluster, pod: int) -> int:
    """Return how long an online pod was pending so far; -1 for pods that do not count."""
    spec, live = c.pods[pod], c.live[pod]
    status = live["status"]
    if not spec["online"] or spec["arrive_s"] < 0 or status == FUTURE:
        return -1
    if status == PENDING or status == NOMINATED:
        return int(live["wait_s"] + c.totals[0]["now_s"] - live["queued_s"])
    return int(live["wait_s"])


@stage
def _sort_waits(c: Cluster, waits: npt.NDArray[np.int64]) -> tuple[int, int, int, int]:
    """Sort the waits above 0 into `waits`, and count pods on the way.

    Returns:
        How many pods count, how many waits are sorted, how many pods once fitted nowhere, and how
        many of those were placed.
    """
    counted, size, preemptors, placed = 0, 0, 0, 0
    for pod in range(c.pods.shape[0]):
        wait = _wait_s(c, pod)
        if wait < 0:
            continue
        counted += 1
        live = c.live[pod]
        if live["preemptor"]:
            preemptors += 1
            placed += live["since_s"] != NEVER_PLACED_S or live["status"] == NOMINATED
        if wait == 0:
            continue
        at = size
        while at > 0 and waits[at - 1] > wait:
            waits[at] = waits[at - 1]
            at -= 1
        waits[at] = wait
        size += 1
    return counted, size, preemptors, placed


@stage
def _percentile(waits: npt.NDArray[np.int64], counted: int, size: int, q: float) -> float:
    """Return a percentile of the waits with linear interpolation, as numpy's default."""
    if counted == 0:
        return math.nan
    at = (counted - 1) * q
    rank = int(at)
    share = at - rank
    rank -= counted - size  # so many waited for no time at all
    a = float(waits[rank]) if rank >= 0 else 0.0
    b = float(waits[rank + 1]) if -1 <= rank < size - 1 else a
    return a + (b - a) * share if share < 0.5 else b - (b - a) * (1.0 - share)


@stage
def measure(
    c: Cluster,
    account: npt.NDArray[Any],
    costs: Costs,
    end_s: int,
    demanded: int,
    waits: npt.NDArray[np.int64],
    out: npt.NDArray[np.float64],
) -> None:
    """Write every metric in `METRICS` for a finished episode, in their order.

    Args:
        c: the cluster at the end.
        account: (1,) ACCOUNT_DTYPE.
        costs: the loss in GPU-seconds.
        end_s: seconds in the account.
        demanded: GPU-seconds asked for.
        waits: (P,) scratch memory.
        out: (M,) output; NaN where nothing was counted.
    """
    a = account[0]
    whole = float(max(demanded, 1))
    capacity = float(c.totals[0]["gpus"]) * end_s
    per_day = 86400.0 / end_s
    counted, waited, preemptors, placed = _sort_waits(c, waits)
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
    out[14] = _percentile(waits, counted, waited, 0.5)
    out[15] = _percentile(waits, counted, waited, 0.99)
    out[16] = (a["batch"] - a["discarded"]) / capacity
    out[17] = (a["online"] + a["batch"]) / capacity
    out[18] = a["decisions"]
    out[19] = a["preemptions"]


def episode_metrics(sim: Simulator) -> dict[str, float]:
    """Return every metric in `METRICS` for a finished episode; NaN where nothing was counted."""
    out = np.empty(len(METRICS))
    c, tape = sim.state.arrays, sim.tape
    waits = np.empty(len(c.pods), np.int64)
    measure(c, sim.events.account, sim.costs, tape.end_s, tape.demanded_gpu_s(), waits, out)
    return dict(zip(METRICS, out.tolist(), strict=True))
