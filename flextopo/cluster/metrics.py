"""What an episode came to: the weighted loss, its terms, and what is reported beside it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flextopo.cluster.arrays import FUTURE, NEVER_PLACED_S, NOMINATED, PENDING
from flextopo.cluster.loss import loss_terms, weighted_gpu_s
from flextopo.cluster.simulator import Simulator

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


def episode_metrics(sim: Simulator) -> dict[str, float]:
    """Return every metric in `METRICS` for a finished episode; NaN where nothing was counted."""
    account = sim.events.account[0]
    costs, tape = sim.costs, sim.tape
    demanded = float(max(sim.tape.demanded_gpu_s(), 1))
    capacity = float(sim.state.arrays.totals[0]["gpus"]) * tape.end_s
    per_day = 86400.0 / tape.end_s
    waits, placed = _online_pods(sim)
    out = {
        "weighted_loss": weighted_gpu_s(sim.events.account, costs) / demanded,
        **{name: lost / demanded for name, lost in loss_terms(sim.events.account, costs).items()},
        "hit_rate": _share(account["hits"], account["preemptions"]),
        "guaranteed_hit_rate": _share(
            account["guaranteed_hits"], account["guaranteed_preemptions"]
        ),
        "success_rate": _share(int(placed.sum()), len(placed)),
        "guarantee_violations": account["violations"] * per_day,
        "cross_socket": account["cross_socket"] * per_day,
        "gpus_evicted": account["evicted_gpus"] * per_day,
        "victims": account["victims"] * per_day,
        "discarded_gpu_h": account["discarded"] / 3600.0 * per_day,
        "wait_p50_s": _percentile(waits, 50),
        "wait_p99_s": _percentile(waits, 99),
        "batch_goodput": (account["batch"] - account["discarded"]) / capacity,
        "utilisation": (account["online"] + account["batch"]) / capacity,
        "decisions": account["decisions"],
        "preemptions": account["preemptions"],
    }
    return {name: float(out[name]) for name in METRICS}


def _online_pods(sim: Simulator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the waits of online pods that arrived, and for those that fitted nowhere: placed?"""
    pods, live = sim.state.arrays.pods, sim.state.arrays.live
    counted = (pods["online"] == 1) & (pods["arrive_s"] >= 0) & (live["status"] != FUTURE)
    waits = live["wait_s"].astype(float)
    pending = np.isin(live["status"], (PENDING, NOMINATED))
    waits[pending] += (sim.state.now_s - live["queued_s"])[pending]
    preemptors = counted & (live["preemptor"] == 1)
    placed = (live["since_s"] != NEVER_PLACED_S) | (live["status"] == NOMINATED)
    return waits[counted], placed[preemptors]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _percentile(values: npt.NDArray[np.float64], q: float) -> float:
    return float(np.percentile(values, q)) if len(values) else float("nan")
