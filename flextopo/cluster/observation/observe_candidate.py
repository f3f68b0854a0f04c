"""What a network sees of one candidate on one server: victims, placement, and the server afterwards."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, lowest_bit, popcount, stage
from flextopo.cluster.observation.features import HELD, F
from flextopo.cluster.state.arrays import (
    NOMINATED,
    RUNNING,
    STARTING,
    TERMINATING,
    Cluster,
    as_index,
    is_eligible,
    lost_work_s,
    spare_members,
)
from flextopo.cluster.state.candidates import freed
from flextopo.cluster.state.loss import Costs
from flextopo.cluster.state.placement import alignment_level, take
from flextopo.cluster.topology.levels import BELOW, CROSS_SOCKET, ISLAND, NO_FIT, NUMA, SOCKET

RUN_UNIT_S, RUN_TOP = 60.0, math.log1p(86400.0 / 60.0)
GPU_UNIT_S, GPU_TOP = 900.0, math.log1p(400.0 * 3600.0 / 900.0)
"""Logarithmic scales: linear below the unit, 1 at a day and at 400 GPU-hours. Kernels take log(1 + x):
`log1p` needs twice the time, and for whole seconds is the same number in float32."""

NUM_HELD = len(HELD)
NOMINATED_AT, TERMINATING_AT = list(HELD).index("nominated"), list(HELD).index("terminating")


@inlined
def log_run(seconds: float) -> float:
    """Return seconds on a logarithmic scale, at most 1."""
    return min(1.0, math.log(1.0 + max(seconds, 0.0) / RUN_UNIT_S) / RUN_TOP)


@inlined
def log_gpu_h(gpu_s: float) -> float:
    """Return GPU-seconds on a logarithmic scale, at most 1."""
    return min(1.0, math.log(1.0 + max(gpu_s, 0.0) / GPU_UNIT_S) / GPU_TOP)


@inlined
def unlog_gpu_s(value: float) -> float:
    """Return the GPU-seconds that `log_gpu_h` has made a value of."""
    return GPU_UNIT_S * (math.exp(value * GPU_TOP) - 1.0)


@stage
def _stops_alone(c: Cluster, victim: int, node: int, slots: int) -> bool:
    """Say whether the PodGroup of a victim goes on without those of its members that are in `slots`."""
    group = c.pods[victim]["group"]
    if group < 0:
        return False
    left = spare_members(c, victim)
    while slots != 0:
        left -= c.pods[as_index(c.node_pods[node, lowest_bit(slots)])]["group"] == group
        slots &= slots - 1
    return bool(left >= 0)


@stage
def observe_victims(
    c: Cluster, costs: Costs, pod: int, node: int, slots: int, elsewhere: int,
    f: npt.NDArray[np.float32],
) -> None:  # fmt: skip
    """Fill in the features of the victims, PodGroup members on other nodes included."""
    now = c.totals[0]["now_s"]
    victims, here, cores, evicted, members, largest, highest = 0, 0, 0, 0, 0, 0, -(1 << 40)
    middle, unsaved, budgeted, earlier, fitting = 0, 0, 0, 0, 0
    discarded, remaining, oldest, youngest, due = 0.0, 0.0, 0.0, 1e18, 0.0
    everybody = slots
    while slots != 0:
        victim = as_index(c.node_pods[node, lowest_bit(slots)])
        slots &= slots - 1
        spec, live = c.pods[victim], c.live[victim]
        alone = _stops_alone(c, victim, node, everybody)
        run = float(now - live["since_s"])
        oldest, youngest = max(oldest, run), min(youngest, run)
        victims += 1
        here += spec["gpus"]
        cores += spec["cores"]
        largest = max(largest, spec["gpus"])
        highest = max(highest, spec["priority"])
        earlier = max(earlier, live["evictions"])
        budgeted += spec["pdb"] >= 0
        if spec["gpus"] <= elsewhere:
            fitting += spec["gpus"]
        if spec["batch_class"] > 0:
            middle += spec["gpus"]
        lost = lost_work_s(c, victim)
        if spec["checkpoint_s"] == 0:
            unsaved += spec["gpus"]
            due += 1.0
        else:
            due += lost / spec["checkpoint_s"]
        member = victim
        while True:
            status = c.live[member]["status"]
            if status == RUNNING or status == STARTING:
                size = c.pods[member]["gpus"]
                evicted += size
                members += member != victim
                if member != victim:
                    lost = lost_work_s(c, member)
                discarded += float(size * (lost + costs.restart_s))
                done = c.live[member]["done_s"] + max(0, now - c.live[member]["since_s"])
                remaining += float(size * done)
            member = victim if alone else as_index(c.pods[member]["next_member"])
            if member == victim:
                break
    gpus = max(here, 1)
    f[F.victims], f[F.evicted_gpus], f[F.largest_victim] = (
        min(1.0, victims / 8.0),
        min(1.0, evicted / 32.0),
        largest / 16.0,
    )
    f[F.surplus_gpus] = max(0, here - c.pods[pod]["gpus"]) / 16.0
    f[F.surplus_cores] = min(1.0, max(0, cores - c.pods[pod]["cores"]) / 256.0)
    f[F.priority_gap] = (
        min(1.0, max(0.0, (c.pods[pod]["priority"] - highest) / 1000.0)) if victims else 1.0
    )
    f[F.middle_class] = middle / gpus
    f[F.discarded] = log_gpu_h(discarded)
    f[F.oldest_victim] = f[F.youngest_victim] = log_run(oldest)
    if victims != 1:
        f[F.youngest_victim] = log_run(youngest) if victims else 0.0
    f[F.expected_remaining] = log_gpu_h(remaining)
    f[F.since_checkpoint], f[F.no_checkpoint] = due / max(victims, 1), unsaved / gpus
    f[F.earlier_evictions], f[F.group_members] = min(1.0, earlier / 4.0), min(1.0, members / 8.0)
    f[F.budgeted] = budgeted / max(victims, 1)
    f[F.victims_fit] = fitting / gpus


@inlined
def _refill(c: Cluster, free: int) -> int:
    """Return how many of a node's free GPUs the pending batch pods would fill, largest first."""
    t = c.totals[0]
    rest = free
    large = t["batch_wait_gpus"] - t["batch_wait_1"] - t["batch_wait_2"] - t["batch_wait_4"]
    if rest >= 8 and large > 0:
        rest -= 8
    rest -= 4 * min(rest // 4, t["batch_wait_4"] // 4)
    rest -= 2 * min(rest // 2, t["batch_wait_2"] // 2)
    rest -= min(rest, t["batch_wait_1"])
    return int(free - rest)


@stage
def observe_held(c: Cluster, node: int, gpus: float, f: npt.NDArray[np.float32]) -> None:
    """Fill in who holds the GPUs of a server now, in the order of `features.HELD`, each over `gpus`."""
    for j in range(NUM_HELD):
        f[j] = 0.0
    add_held(c, node, gpus, f)


@stage
def add_held(c: Cluster, node: int, gpus: float, f: npt.NDArray[np.float32]) -> None:
    """Add who holds the GPUs of a server to what is there."""
    for slot in range(c.nodes[node]["num_pods"]):
        pod = as_index(c.node_pods[node, slot])
        share = popcount(c.live[pod]["gpu_mask"]) / gpus
        status, size = c.live[pod]["status"], c.pods[pod]["gpus"]
        if status == TERMINATING:
            f[TERMINATING_AT] += share
            continue
        at = 3 if size > 4 else 2 if size > 2 else 1 if size == 2 else 0
        f[at if c.pods[pod]["online"] else at + 4] += share
        if status == NOMINATED:
            f[NOMINATED_AT] += share


@stage
def observe_node(
    c: Cluster, pod: int, node: int, slots: int, level: int, deficit: int,
    f: npt.NDArray[np.float32],
) -> None:  # fmt: skip
    """Fill in the features of the server, the placement and the node afterwards."""
    spec, cores, taken = c.pods[pod], c.scratch[0], c.scratch[1]
    model, gpu_free = c.nodes[node]["model"], freed(c, node, slots, cores)
    mask = take(c.models, model, gpu_free, cores, spec["gpus"], spec["cores"], level, taken)
    observe_after(c, pod, node, slots, gpu_free & ~mask, level, f)
    f[F.deficit] = BELOW[deficit]


@stage
def observe_after(
    c: Cluster, pod: int, node: int, slots: int, after: int, level: int,
    f: npt.NDArray[np.float32],
) -> None:  # fmt: skip
    """Fill in the features of a server of which these GPUs are free afterwards."""
    spec, m, model = c.pods[pod], c.models, c.nodes[node]["model"]
    size = float(max(m[model]["num_gpus"], 1))
    before = alignment_level(
        m, model, c.nodes[node]["gpu_free"], c.cores_free[node], spec["gpus"], spec["cores"]
    )
    most, fewest = 0, 1 << 30
    for s in range(m[model]["num_sockets"]):
        free = popcount(after & m[model]["socket_gpus"][s])
        most, fewest = max(most, free), min(fewest, free)
    online, evictable = spec["gpus"] if spec["online"] else 0, 0
    for slot in range(c.nodes[node]["num_pods"]):
        if (slots >> slot) & 1:
            continue
        other = as_index(c.node_pods[node, slot])
        held = popcount(c.live[other]["gpu_mask"])
        if c.pods[other]["online"]:
            online += held
        elif is_eligible(c, other, spec["priority"]):
            evictable += held
    f[F.server_gpus], f[F.server_numa_nodes] = (
        m[model]["num_gpus"] / 16.0,
        m[model]["num_numa"] / 32.0,
    )
    f[F.level_numa] = 1.0 if level == NUMA else 0.0
    f[F.level_socket] = 1.0 if level == SOCKET else 0.0
    f[F.level_cross_socket] = 1.0 if level == CROSS_SOCKET else 0.0
    # A node that offers an island is no worse than one that offers a NUMA node.
    f[F.level_before] = max(0, before - NUMA) / (NO_FIT - NUMA)
    if f.shape[0] > F.level_island:
        f[F.level_island] = 1.0 if level == ISLAND else 0.0
    f[F.free_after], f[F.largest_block_after] = popcount(after) / size, most / size
    f[F.socket_imbalance_after] = (most - fewest) / size
    f[F.online_after], f[F.evictable_after] = online / size, evictable / size
    f[F.refill] = _refill(c, popcount(after)) / size
    if f.shape[0] > F.server_online_1:
        observe_held(c, node, size, f[F.server_online_1 :])
