"""What a learned selector sees of a decision: scale-free numbers, each within its stated range.

None of them grows with the number of servers, so a policy trained on 16 serves 1,000. The names
below are the layout; its hash goes into every exported artifact.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, kernel, lowest_bit, popcount, stage
from flextopo.cluster.state.arrays import (
    RUNNING,
    STARTING,
    Cluster,
    as_index,
    is_eligible,
    lost_work_s,
)
from flextopo.cluster.state.candidates import CandidateArrays, freed
from flextopo.cluster.state.loss import Costs
from flextopo.cluster.state.placement import CROSS_SOCKET, NUMA, SOCKET, alignment_level, take

PREEMPTOR_FEATURES: dict[str, str] = {
    "gpus": "GPUs asked for / 16",
    "cores": "cores asked for / 256",
    "requires_nothing": "1 if it states no requirement",
    "best_effort": "1 if its requirement is best-effort",
    "guaranteed": "1 if its requirement is guaranteed",
    "waited": "time pending, log scale, 1 = a day",
}

CLUSTER_FEATURES: dict[str, str] = {
    "day_sin": "sine of the time of day, -1 to 1",
    "day_cos": "cosine of the time of day, -1 to 1",
    "free": "share of GPUs that are free",
    "online": "share of GPUs held by online pods",
    "batch": "share of GPUs held by running batch pods",
    "online_waiting": "GPUs asked for by pending online pods / GPUs, at most 1",
    "batch_waiting": "GPUs asked for by pending batch pods / GPUs, at most 1",
    "misaligned": "share of GPUs that serve below their best alignment",
    "free_nodes": "share of nodes with no GPU in use",
    "fragmented_nodes": "share of nodes with some GPUs in use and some free",
    "largest_free": "largest number of free GPUs on a node / 16",
    "candidates": "share of the K candidate places that are filled",
    "waiting_1": "GPUs asked for by pending batch pods of 1 GPU at most / GPUs, at most 1",
    "waiting_2": "the same of 2 GPUs",
    "waiting_4": "the same of 3 or 4 GPUs",
    "waiting_groups": "the same of PodGroup members of any size",
}

CANDIDATE_FEATURES: dict[str, str] = {
    "server_gpus": "GPUs of the server / 16",
    "server_numa_nodes": "NUMA nodes of the server / 32",
    "level_numa": "1 if the pod would sit on one NUMA node",
    "level_socket": "1 if it would sit on one socket",
    "level_cross_socket": "1 if it would sit across sockets",
    "deficit": "levels below the best possible / 2",
    "level_before": "level among the free resources / 3, 1 = does not fit",
    "victims": "pods evicted / 8",
    "evicted_gpus": "GPUs of victims and of PodGroup members stopped with them / 32",
    "largest_victim": "GPUs of the largest victim / 16",
    "surplus_gpus": "victims' GPUs on the node beyond the need / 16",
    "surplus_cores": "victims' cores on the node beyond the need / 256",
    "priority_gap": "preemptor's priority less the highest victim's / 1000, at most 1",
    "middle_class": "share of the victims' GPUs of priority class middle or above",
    "discarded": "GPU-hours thrown away, log scale, 1 = 400",
    "cost": "the decision's own loss in weighted GPU-hours, log scale, 1 = 400",
    "cost_gap": "the same beyond the cheapest candidate's",
    "oldest_victim": "longest present run of a victim, log scale, 1 = a day",
    "youngest_victim": "shortest present run of a victim, log scale, 1 = a day",
    "expected_remaining": "GPU-hours that victims may still need, log scale, 1 = 400; the "
    "estimate is the work done so far, as for heavy-tailed run times",
    "since_checkpoint": "victims' mean share of the checkpoint interval gone by",
    "no_checkpoint": "share of the victims' GPUs that never checkpoint",
    "earlier_evictions": "most evictions that a victim has suffered before / 4",
    "group_members": "PodGroup members stopped beside the victims / 8",
    "budgeted": "share of the victims under a disruption budget",
    "free_after": "GPUs free on the node afterwards / GPUs of the server",
    "largest_block_after": "largest number of them on one socket / GPUs of the server",
    "socket_imbalance_after": "most less fewest free GPUs of a socket / GPUs of the server",
    "online_after": "share of the server's GPUs held by online pods afterwards",
    "evictable_after": "share of the server's GPUs held by evictable pods afterwards",
    "refill": "GPUs of those free afterwards that pending batch pods would fill / GPUs of the server",
    "victims_fit": "share of the victims' GPUs whose pods fit on another node at once",
}

NUM_PREEMPTOR = len(PREEMPTOR_FEATURES)
NUM_CLUSTER = len(CLUSTER_FEATURES)
NUM_CANDIDATE = len(CANDIDATE_FEATURES)


def layout_hash() -> str:
    """Return a hash of the names and order of all features; artifacts refuse another one."""
    names = [*PREEMPTOR_FEATURES, "|", *CLUSTER_FEATURES, "|", *CANDIDATE_FEATURES]
    return hashlib.sha256(",".join(names).encode()).hexdigest()[:16]


class Observation(NamedTuple):
    """One decision in numbers; K candidates.

    Fields: `preemptor` (6,), `cluster` (16,), `candidates` (K, 32), all float32; `mask` (K + 1,)
    int8, 1 = legal; the last action is "do not preempt now".
    """

    preemptor: npt.NDArray[np.float32]
    cluster: npt.NDArray[np.float32]
    candidates: npt.NDArray[np.float32]
    mask: npt.NDArray[np.int8]


def empty_observation(k: int) -> Observation:
    """Return room for the observation of a decision with up to `k` candidates."""
    return Observation(
        preemptor=np.zeros(NUM_PREEMPTOR, np.float32),
        cluster=np.zeros(NUM_CLUSTER, np.float32),
        candidates=np.zeros((k, NUM_CANDIDATE), np.float32),
        mask=np.zeros(k + 1, np.int8),
    )


RUN_UNIT_S, RUN_TOP = 60.0, math.log1p(86400.0 / 60.0)
GPU_UNIT_S, GPU_TOP = 900.0, math.log1p(400.0 * 3600.0 / 900.0)
"""Logarithmic scales: linear below the unit, 1 at a day and at 400 GPU-hours. Kernels take log(1 + x):
`log1p` needs twice the time, and for whole seconds is the same number in float32."""


@inlined
def _log_run(seconds: float) -> float:
    return min(1.0, math.log(1.0 + max(seconds, 0.0) / RUN_UNIT_S) / RUN_TOP)


@inlined
def _log_gpu_h(gpu_s: float) -> float:
    return min(1.0, math.log(1.0 + max(gpu_s, 0.0) / GPU_UNIT_S) / GPU_TOP)


@stage
def _observe_cluster(c: Cluster, pod: int, filled: float, o: Observation) -> tuple[int, int, int]:
    """Fill in what all candidates share.

    Returns:
        Most free GPUs of a node, which node that is, and most free GPUs of any other.
    """
    t, spec = c.totals[0], c.pods[pod]
    p = o.preemptor
    p[0], p[1] = min(1.0, spec["gpus"] / 16.0), min(1.0, spec["cores"] / 256.0)
    for requirement in range(3):
        p[2 + requirement] = 1.0 if spec["requirement"] == requirement else 0.0
    p[5] = _log_run(float(t["now_s"] - c.live[pod]["queued_s"]))
    day = 2.0 * math.pi * (t["now_s"] % 86400) / 86400.0
    gpus = float(max(t["gpus"], 1))
    empty, broken, largest, largest_node, second = 0, 0, 0, -1, 0
    for node in range(c.nodes.shape[0]):
        free = popcount(c.nodes[node]["gpu_free"])
        if free > largest:
            second, largest, largest_node = largest, free, node
        else:
            second = max(second, free)
        if free == c.models[c.nodes[node]["model"]]["num_gpus"]:
            empty += 1
        elif free > 0:
            broken += 1
    f = o.cluster
    f[0], f[1] = math.sin(day), math.cos(day)
    f[2], f[3], f[4] = t["free_gpus"] / gpus, t["online_gpus"] / gpus, t["batch_gpus"] / gpus
    f[5], f[6] = min(1.0, t["wait_gpus"] / gpus), min(1.0, t["batch_wait_gpus"] / gpus)
    f[7] = (t["late_gpus"] + t["cross_gpus"]) / gpus
    f[8], f[9] = empty / c.nodes.shape[0], broken / c.nodes.shape[0]
    f[10], f[11] = largest / 16.0, filled
    f[12], f[13] = min(1.0, t["batch_wait_1"] / gpus), min(1.0, t["batch_wait_2"] / gpus)
    f[14], f[15] = min(1.0, t["batch_wait_4"] / gpus), min(1.0, t["batch_wait_group"] / gpus)
    return largest, largest_node, second


@stage
def _observe_victims(
    c: Cluster, costs: Costs, pod: int, node: int, slots: int, elsewhere: int,
    f: npt.NDArray[np.float32],
) -> None:  # fmt: skip
    """Fill in the features of the victims, PodGroup members on other nodes included."""
    now = c.totals[0]["now_s"]
    victims, here, cores, evicted, members, largest, highest = 0, 0, 0, 0, 0, 0, -(1 << 40)
    middle, unsaved, budgeted, earlier, fitting = 0, 0, 0, 0, 0
    discarded, remaining, oldest, youngest, due = 0.0, 0.0, 0.0, 1e18, 0.0
    while slots != 0:
        victim = as_index(c.node_pods[node, lowest_bit(slots)])
        slots &= slots - 1
        spec, live = c.pods[victim], c.live[victim]
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
            member = as_index(c.pods[member]["next_member"])
            if member == victim:
                break
    gpus = max(here, 1)
    f[7], f[8], f[9] = min(1.0, victims / 8.0), min(1.0, evicted / 32.0), largest / 16.0
    f[10] = max(0, here - c.pods[pod]["gpus"]) / 16.0
    f[11] = min(1.0, max(0, cores - c.pods[pod]["cores"]) / 256.0)
    f[12] = min(1.0, max(0.0, (c.pods[pod]["priority"] - highest) / 1000.0)) if victims else 1.0
    f[13] = middle / gpus
    f[14] = _log_gpu_h(discarded)
    f[17] = f[18] = _log_run(oldest)
    if victims != 1:
        f[18] = _log_run(youngest) if victims else 0.0
    f[19] = _log_gpu_h(remaining)
    f[20], f[21] = due / max(victims, 1), unsaved / gpus
    f[22], f[23] = min(1.0, earlier / 4.0), min(1.0, members / 8.0)
    f[24] = budgeted / max(victims, 1)
    f[31] = fitting / gpus


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
def _observe_node(
    c: Cluster, pod: int, node: int, slots: int, level: int, deficit: int,
    cores: npt.NDArray[np.int16], taken: npt.NDArray[np.int16], f: npt.NDArray[np.float32],
) -> None:  # fmt: skip
    """Fill in the features of the server, the placement and the node afterwards."""
    spec, m = c.pods[pod], c.models
    model = c.nodes[node]["model"]
    size = float(max(m[model]["num_gpus"], 1))
    before = alignment_level(
        m, model, c.nodes[node]["gpu_free"], c.cores_free[node], spec["gpus"], spec["cores"]
    )
    gpu_free = freed(c, node, slots, cores)
    mask = take(m, model, gpu_free, cores, spec["gpus"], spec["cores"], level, taken)
    after = gpu_free & ~mask
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
    f[0], f[1] = m[model]["num_gpus"] / 16.0, m[model]["num_numa"] / 32.0
    f[2] = 1.0 if level == NUMA else 0.0
    f[3] = 1.0 if level == SOCKET else 0.0
    f[4] = 1.0 if level == CROSS_SOCKET else 0.0
    f[5], f[6] = deficit / 2.0, before / 3.0
    f[25], f[26] = popcount(after) / size, most / size
    f[27] = (most - fewest) / size
    f[28], f[29] = online / size, evictable / size
    f[30] = _refill(c, popcount(after)) / size


@kernel
def observe(
    c: Cluster, costs: Costs, pod: int, found: CandidateArrays, count: int, o: Observation
) -> None:
    """Write the observation of a decision.

    Args:
        c: the cluster, not modified.
        costs: the loss in GPU-seconds.
        pod: the preemptor.
        found: its candidates.
        count: how many there are; at most the rows of `o.candidates`.
        o: output; rows and mask entries beyond `count` are cleared.
    """
    k = o.candidates.shape[0]
    largest, largest_node, second = _observe_cluster(c, pod, count / k, o)
    cores, taken = c.scratch[0], c.scratch[1]
    for i in range(k):
        f = o.candidates[i]
        o.mask[i] = i < count
        if i >= count:
            for j in range(f.shape[0]):
                f[j] = 0.0
            continue
        node, slots = found.node[i], found.slots[i]
        _observe_node(c, pod, node, slots, found.level[i], found.deficit[i], cores, taken, f)
        elsewhere = second if node == largest_node else largest
        _observe_victims(c, costs, pod, node, slots, elsewhere, f)
        f[15] = _log_gpu_h(found.cost[i])
        f[16] = _log_gpu_h(found.cost[i] - found.cost[0]) if i > 0 else 0.0
    o.mask[k] = 1


@kernel
def observe_nothing(o: Observation) -> None:
    """Write the observation of the end of an episode: no preemptor, no candidates."""
    for i in range(o.preemptor.shape[0]):
        o.preemptor[i] = 0.0
    for i in range(o.cluster.shape[0]):
        o.cluster[i] = 0.0
    k = o.candidates.shape[0]
    for i in range(k):
        o.mask[i] = 0
        for j in range(o.candidates.shape[1]):
            o.candidates[i, j] = 0.0
    o.mask[k] = 1
