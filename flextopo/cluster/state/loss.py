"""What is lost: the account in GPU-hours, its weights, and a decision's own loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.scenario import LossWeights
from flextopo.cluster.state.arrays import RUNNING, STARTING, Cluster, as_index, lost_work_s

ACCOUNT_DTYPE = np.dtype(
    [
        ("waiting", "i8"),  # GPU-seconds asked for by pending online pods
        ("late", "i8"),  # GPU-seconds served one level worse than possible
        ("cross", "i8"),  # GPU-seconds served across sockets where a socket would do
        ("discarded", "i8"),  # batch GPU-seconds lost or repeated
        ("discarded_weighted", "i8"),  # the same times 1 + priority class
        ("evicted_gpus", "i8"),
        ("idle", "i8"),  # free GPU-seconds that waiting batch work could have used
        ("online", "i8"),  # GPU-seconds held by online pods
        ("batch", "i8"),  # GPU-seconds held by running batch pods
        ("decisions", "i8"),
        ("preemptions", "i8"),  # pods placed by evicting others
        ("victims", "i8"),  # pods evicted, PodGroup members stopped with them included
        ("hits", "i8"),  # preemptions that gave the best possible level
        ("guaranteed_preemptions", "i8"),
        ("guaranteed_hits", "i8"),
        ("cross_socket", "i8"),  # preemptions placed across sockets where a socket would do
        ("violations", "i8"),  # guaranteed pods placed unaligned
        ("refusals", "i8"),  # guaranteed pods refused at the node (restricted admission)
        ("invalid_actions", "i8"),
    ]
)
"""Sums since time 0, whole numbers, so that equal histories give equal bits."""


LOSS_TERMS = ("waiting", "misalignment", "discarded", "eviction", "idle")
"""The terms of the weighted loss, in the order of tables."""


class Costs(NamedTuple):
    """`LossWeights` in the kernels' unit, the GPU-second."""

    waiting: float
    discarded: float
    eviction: float  # an evicted GPU
    idle: float
    late: float  # a GPU-second one level worse
    cross: float  # a GPU-second across sockets
    service_s: float
    grace_s: float
    restart_s: int


def compile_costs(weights: LossWeights, grace_s: int, restart_s: int) -> Costs:
    """Return the weights as the kernels use them."""
    return Costs(
        waiting=float(weights.waiting),
        discarded=float(weights.discarded),
        eviction=weights.eviction * weights.eviction_h * 3600.0,
        idle=float(weights.idle),
        late=weights.misalignment * (1.0 - weights.speed_one_worse),
        cross=weights.misalignment * (1.0 - weights.speed_cross_socket),
        service_s=weights.expected_service_h * 3600.0,
        grace_s=float(grace_s),
        restart_s=restart_s,
    )


@inlined
def weighted_gpu_s(account: npt.NDArray[Any], costs: Costs) -> float:
    """Return the weighted loss so far in GPU-seconds."""
    a = account[0]
    return float(
        costs.waiting * a["waiting"]
        + costs.late * a["late"]
        + costs.cross * a["cross"]
        + costs.discarded * a["discarded_weighted"]
        + costs.eviction * a["evicted_gpus"]
        + costs.idle * a["idle"]
    )


def loss_terms(account: npt.NDArray[Any], costs: Costs) -> dict[str, float]:
    """Return the five terms of the weighted loss so far in GPU-seconds; they add up to it."""
    a = account[0]
    return {
        "waiting": float(costs.waiting * a["waiting"]),
        "misalignment": float(costs.late * a["late"] + costs.cross * a["cross"]),
        "discarded": float(costs.discarded * a["discarded_weighted"]),
        "eviction": float(costs.eviction * a["evicted_gpus"]),
        "idle": float(costs.idle * a["idle"]),
    }


@stage
def eviction_cost(c: Cluster, pod: int, costs: Costs) -> float:
    """Return the loss of evicting a pod now, its whole PodGroup included, in GPU-seconds."""
    total = 0.0
    member = pod
    while True:
        status = c.live[member]["status"]
        if status == RUNNING or status == STARTING:
            spec = c.pods[member]
            lost = 0.0
            if spec["online"] == 0:
                lost = float(lost_work_s(c, member) + costs.restart_s)
            total += spec["gpus"] * (
                costs.discarded * (1 + spec["batch_class"]) * lost + costs.eviction
            )
        member = as_index(c.pods[member]["next_member"])
        if member == pod:
            return total


@inlined
def misalignment_cost(gpus: int, deficit: int, costs: Costs) -> float:
    """Return the expected loss of an online pod of that deficit, in GPU-seconds."""
    if deficit == 0:
        return 0.0
    return gpus * costs.service_s * (costs.late if deficit == 1 else costs.cross)
