"""What is lost: the account in GPU-hours, its weights, and a decision's own loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.scenario import LossWeights
from flextopo.cluster.state.arrays import RUNNING, STARTING, Cluster, as_index, lost_work_s
from flextopo.cluster.topology.levels import LEVELS, NUM_LEVELS

LOSS_TERMS = ("waiting", "misalignment", "discarded", "eviction", "idle")
"""The terms of the weighted loss, in the order of tables."""


class Costs(NamedTuple):
    """`LossWeights` in the kernels' unit, the GPU-second."""

    waiting: float
    discarded: float
    eviction: float  # an evicted GPU
    idle: float
    service_s: float
    grace_s: float
    restart_s: float
    misaligned: tuple[float, ...]  # a GPU-second of each deficit


def compile_costs(weights: LossWeights, grace_s: int, restart_s: int) -> Costs:
    """Return the weights as the kernels use them."""
    return Costs(
        waiting=float(weights.waiting),
        discarded=float(weights.discarded),
        eviction=weights.eviction * weights.eviction_h * 3600.0,
        idle=float(weights.idle),
        service_s=weights.expected_service_h * 3600.0,
        grace_s=float(grace_s),
        restart_s=float(restart_s),
        misaligned=tuple(
            weights.misalignment * (1.0 - getattr(weights, level.speed)) if level.speed else 0.0
            for level in LEVELS.values()
        ),
    )


@inlined
def weighted_terms(
    account: npt.NDArray[Any], costs: Costs
) -> tuple[float, float, float, float, float, float]:
    """Return the terms of the weighted loss so far in GPU-seconds, and their sum.

    This is the one place where the loss stands; the terms are in the order of `LOSS_TERMS`.
    """
    a = account[0]
    waiting = costs.waiting * a["waiting"]
    total, misalignment = waiting, 0.0
    for level in range(NUM_LEVELS):
        lost = costs.misaligned[level] * a["misaligned"][level]
        total += lost
        misalignment += lost
    discarded = costs.discarded * a["discarded_weighted"]
    eviction = costs.eviction * a["evicted_gpus"]
    idle = costs.idle * a["idle"]
    total = total + discarded + eviction + idle
    return waiting, misalignment, discarded, eviction, idle, total


@inlined
def weighted_gpu_s(account: npt.NDArray[Any], costs: Costs) -> float:
    """Return the weighted loss so far in GPU-seconds."""
    return float(weighted_terms(account, costs)[5])


@inlined
def write_terms(
    account: npt.NDArray[Any], costs: Costs, unit: float, out: npt.NDArray[np.float64]
) -> None:
    """Write the five terms of the weighted loss so far, divided by a number of GPU-seconds."""
    terms = weighted_terms(account, costs)
    for i in range(5):
        out[i] = terms[i] / unit


def loss_terms(account: npt.NDArray[Any], costs: Costs) -> dict[str, float]:
    """Return the five terms of the weighted loss so far in GPU-seconds; they add up to it."""
    terms = weighted_terms(account, costs)
    return {name: float(term) for name, term in zip(LOSS_TERMS, terms, strict=False)}


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
    return gpus * costs.service_s * costs.misaligned[deficit] if deficit > 0 else 0.0
