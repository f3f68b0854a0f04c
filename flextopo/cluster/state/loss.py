"""What is lost: the account in GPU-hours, its weights, and a decision's own loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, stage
from flextopo.cluster.scenario import SENSITIVITIES, LossWeights, Sensitivity
from flextopo.cluster.state.arrays import (
    RUNNING,
    STARTING,
    Cluster,
    as_index,
    lost_work_s,
    replicas_row,
    spare_members,
)
from flextopo.cluster.state.schema import NUM_MISALIGNED, NUM_REPLICAS, REPLICAS
from flextopo.cluster.topology.levels import LEVELS, NUM_DEFICITS, TIERS, tier_row

LOSS_TERMS = ("waiting", "misalignment", "discarded", "eviction", "idle")
"""The terms of the weighted loss, in the order of tables."""

NEVER = 1e300
"""Cost of what must not be done."""

NUM_SIZES = 4
"""Rows of a table by size, see `size_row`."""


class Costs(NamedTuple):
    """`LossWeights` in the kernels' unit, the GPU-second."""

    waiting: float  # a GPU-second within the deadline
    late: float  # a GPU-second beyond it
    late_growth: float  # the same of the square of the seconds beyond it
    discarded: float
    eviction: float  # an evicted GPU
    idle: float
    service_s: float
    grace_s: float
    restart_s: float
    start_s: float
    missing: tuple[float, ...]  # factor of the first three by `REPLICAS`
    misaligned: tuple[float, ...]  # a GPU-second by `misaligned_at`
    requeue: tuple[float, ...]  # what a rule adds for an evicted GPU by `size_row`; in no account


def compile_costs(weights: LossWeights, grace_s: int, restart_s: int) -> Costs:
    """Return the weights as the kernels use them."""
    growth = weights.late / weights.late_doubling_s if weights.late_doubling_s else 0.0
    return Costs(
        waiting=float(weights.waiting),
        late=float(weights.late),
        late_growth=0.5 * growth,
        discarded=float(weights.discarded),
        eviction=weights.eviction * weights.eviction_h * 3600.0,
        idle=float(weights.idle),
        service_s=weights.expected_service_h * 3600.0,
        grace_s=float(grace_s),
        restart_s=float(restart_s),
        start_s=float(weights.expected_start_s),
        missing=tuple(1.0 + weights.outage / (1 + serving) for serving in REPLICAS),
        misaligned=tuple(
            weights.misalignment * (1.0 - speed)
            for kind in SENSITIVITIES.values()
            for speed in speeds_of(kind)
        ),
        requeue=(0.0,) * NUM_SIZES,
    )


@inlined
def size_row(gpus: int) -> int:
    """Return the place of a pod of so many GPUs in tables by size: up to 1, 2, 4, and more."""
    return as_index(gpus > 1) + as_index(gpus > 2) + as_index(gpus > 4)


def speeds_of(kind: Sensitivity) -> tuple[float, ...]:
    """Return the speed of a service of a kind by deficit, `levels.NUM_DEFICITS` of them."""
    inside = (getattr(kind, about.speed) if about.speed else 1.0 for about in LEVELS.values())
    above = (getattr(kind, tier.speed) for tier in TIERS.values() if tier.speed)
    return (*inside, *above)


@inlined
def misaligned_at(sensitivity: int, deficit: int) -> int:
    """Return where `Costs`, account and totals have a service's kind at a deficit."""
    return as_index(sensitivity) * NUM_DEFICITS + as_index(deficit)


@inlined
def weighted_terms(
    account: npt.NDArray[Any], costs: Costs
) -> tuple[float, float, float, float, float, float]:
    """Return the terms of the weighted loss so far in GPU-seconds, and their sum.

    This is the one place where the loss stands; the terms are in the order of `LOSS_TERMS`.
    """
    a = account[0]
    waiting, misalignment = 0.0, 0.0
    for row in range(NUM_REPLICAS):
        waiting += costs.missing[row] * (
            costs.waiting * (a["waiting"][row] + a["starting"][row])
            + costs.late * a["late"][row]
            + costs.late_growth * a["late_squared"][row]
        )
    for at in range(NUM_MISALIGNED):
        misalignment += costs.misaligned[at] * a["misaligned"][at]
    discarded = costs.discarded * a["discarded_weighted"]
    eviction = costs.eviction * a["evicted_gpus"]
    idle = costs.idle * a["idle"]
    total = waiting + misalignment + discarded + eviction + idle
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
def stopping_cost(c: Cluster, pod: int, costs: Costs) -> float:
    """Return the loss of stopping one pod now, in GPU-seconds; 0 for a pod that holds nothing."""
    status, spec = c.live[pod]["status"], c.pods[pod]
    if status != RUNNING and status != STARTING:
        return 0.0
    if spec["online"]:
        lost = costs.missing[replicas_row(c, pod)] * costs.waiting * costs.start_s
    else:
        repeated = float(lost_work_s(c, pod) + costs.restart_s)
        lost = costs.discarded * (1 + spec["batch_class"]) * repeated
    a_gpu = lost + costs.eviction + costs.requeue[size_row(spec["gpus"])]
    return float(spec["gpus"] * a_gpu)


@stage
def eviction_cost(c: Cluster, pod: int, costs: Costs) -> float:
    """Return the loss of evicting a pod now, and of its PodGroup if it stops with it, in GPU-seconds."""
    if c.pods[pod]["next_member"] == pod or spare_members(c, pod) > 0:
        return stopping_cost(c, pod, costs)
    total = 0.0
    member = pod
    while True:
        total += stopping_cost(c, member, costs)
        member = as_index(c.pods[member]["next_member"])
        if member == pod:
            return total


@stage
def beside_members(c: Cluster, pod: int, taken: int, counted: float, costs: Costs) -> float:
    """Return what evicting a pod adds where members of its PodGroup are evicted already.

    Args:
        c: the cluster before any of them is.
        pod: a running member, not among them.
        taken: how many they are, 1 at least.
        counted: sum of their `stopping_cost`.
        costs: the loss in GPU-seconds.
    """
    spare = spare_members(c, pod)
    if taken < spare:
        return stopping_cost(c, pod, costs)
    if taken > spare or spare <= 0:  # all of it stops already
        return 0.0
    total, member = -counted, pod
    while True:
        total += stopping_cost(c, member, costs)
        member = as_index(c.pods[member]["next_member"])
        if member == pod:
            return total


@stage
def waiting_cost(c: Cluster, costs: Costs, pod: int, wait_s: float) -> float:
    """Return the loss of a pending online pod that gets its place that long from now, in GPU-seconds."""
    spec = c.pods[pod]
    waited = float(c.totals[0]["now_s"] - c.live[pod]["queued_s"])
    left = max(0.0, spec["deadline_s"] - waited)
    late, later = max(0.0, waited - spec["deadline_s"]), max(0.0, wait_s - left)
    if later > 0.0:
        later += late
    else:
        later = late
    a_gpu = costs.waiting * min(wait_s, left) + costs.late * (later - late)
    a_gpu += costs.late_growth * (later * later - late * late)
    return float(costs.missing[replicas_row(c, pod)] * spec["gpus"] * a_gpu)


@stage
def misalignment_cost(c: Cluster, costs: Costs, pod: int, deficit: int) -> float:
    """Return the expected loss of an online pod of that deficit, in GPU-seconds."""
    if deficit <= 0:
        return 0.0
    spec = c.pods[pod]
    rate = costs.misaligned[misaligned_at(spec["sensitivity"], deficit)]
    return float(spec["gpus"] * costs.service_s * rate)


network_row = inlined(tier_row)
"""The rule of the table of levels, compiled."""
