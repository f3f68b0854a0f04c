"""The kernels that write an observation, by the names of `features`."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, kernel, lowest_bit, popcount, stage
from flextopo.cluster.observation.features import C, F, Observation, P
from flextopo.cluster.scenario import SENSITIVITIES
from flextopo.cluster.state.arrays import (
    RUNNING,
    STARTING,
    Cluster,
    as_index,
    is_eligible,
    lost_work_s,
    replicas_row,
)
from flextopo.cluster.state.candidates import CandidateArrays, freed, victim_slots
from flextopo.cluster.state.loss import Costs
from flextopo.cluster.state.placement import alignment_level, take
from flextopo.cluster.state.schema import NUM_MISALIGNED, REPLICAS
from flextopo.cluster.topology.levels import (
    BELOW,
    CROSS_SOCKET,
    ISLAND,
    NO_FIT,
    NUMA,
    SOCKET,
)

OFF_SOCKET = tuple(1.0 - kind.off_socket for kind in SENSITIVITIES.values())
"""Share of its speed that a service of each kind loses across sockets."""

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
def _observe_preemptor(c: Cluster, pod: int, o: Observation) -> None:
    """Fill in what is said of the preemptor."""
    spec, p = c.pods[pod], o.preemptor
    p[P.gpus], p[P.cores] = min(1.0, spec["gpus"] / 16.0), min(1.0, spec["cores"] / 256.0)
    for requirement in range(3):
        p[P.requires_nothing + requirement] = 1.0 if spec["requirement"] == requirement else 0.0
    waited = float(c.totals[0]["now_s"] - c.live[pod]["queued_s"])
    p[P.waited], p[P.deadline_left] = _log_run(waited), _log_run(spec["deadline_s"] - waited)
    p[P.missed] = 1.0 / (1.0 + REPLICAS[replicas_row(c, pod)])
    p[P.sensitivity] = OFF_SOCKET[spec["sensitivity"]]


@stage
def _observe_cluster(c: Cluster, filled: float, o: Observation) -> tuple[int, int, int]:
    """Fill in what is said of the cluster.

    Returns:
        Most free GPUs of a node, which node that is, and most free GPUs of any other.
    """
    t = c.totals[0]
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
    misaligned = 0
    for at in range(NUM_MISALIGNED):
        misaligned += t["misaligned_gpus"][at]
    f = o.cluster
    f[C.day_sin], f[C.day_cos] = math.sin(day), math.cos(day)
    f[C.free], f[C.online], f[C.batch] = (
        t["free_gpus"] / gpus,
        t["online_gpus"] / gpus,
        t["batch_gpus"] / gpus,
    )
    f[C.online_waiting], f[C.batch_waiting] = (
        min(1.0, t["wait_gpus"] / gpus),
        min(1.0, t["batch_wait_gpus"] / gpus),
    )
    f[C.misaligned] = misaligned / gpus
    f[C.free_nodes], f[C.fragmented_nodes] = empty / c.nodes.shape[0], broken / c.nodes.shape[0]
    f[C.largest_free], f[C.candidates] = largest / 16.0, filled
    f[C.waiting_1], f[C.waiting_2] = (
        min(1.0, t["batch_wait_1"] / gpus),
        min(1.0, t["batch_wait_2"] / gpus),
    )
    f[C.waiting_4], f[C.waiting_groups] = (
        min(1.0, t["batch_wait_4"] / gpus),
        min(1.0, t["batch_wait_group"] / gpus),
    )
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
    f[F.discarded] = _log_gpu_h(discarded)
    f[F.oldest_victim] = f[F.youngest_victim] = _log_run(oldest)
    if victims != 1:
        f[F.youngest_victim] = _log_run(youngest) if victims else 0.0
    f[F.expected_remaining] = _log_gpu_h(remaining)
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
def _observe_node(
    c: Cluster, pod: int, node: int, slots: int, level: int, deficit: int,
    f: npt.NDArray[np.float32],
) -> None:  # fmt: skip
    """Fill in the features of the server, the placement and the node afterwards."""
    spec, m = c.pods[pod], c.models
    cores, taken = c.scratch[0], c.scratch[1]
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
    f[F.server_gpus], f[F.server_numa_nodes] = (
        m[model]["num_gpus"] / 16.0,
        m[model]["num_numa"] / 32.0,
    )
    f[F.level_numa] = 1.0 if level == NUMA else 0.0
    f[F.level_socket] = 1.0 if level == SOCKET else 0.0
    f[F.level_cross_socket] = 1.0 if level == CROSS_SOCKET else 0.0
    f[F.deficit] = BELOW[deficit]
    # A node that offers an island is no worse than one that offers a NUMA node.
    f[F.level_before] = max(0, before - NUMA) / (NO_FIT - NUMA)
    if f.shape[0] > F.level_island:
        f[F.level_island] = 1.0 if level == ISLAND else 0.0
    f[F.free_after], f[F.largest_block_after] = popcount(after) / size, most / size
    f[F.socket_imbalance_after] = (most - fewest) / size
    f[F.online_after], f[F.evictable_after] = online / size, evictable / size
    f[F.refill] = _refill(c, popcount(after)) / size


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
    _observe_preemptor(c, pod, o)
    largest, largest_node, second = _observe_cluster(c, count / k, o)
    for i in range(k):
        f = o.candidates[i]
        o.mask[i] = i < count
        if i >= count:
            for j in range(f.shape[0]):
                f[j] = 0.0
            continue
        node, slots = found.node[i], found.slots[i]
        _observe_node(c, pod, node, slots, found.level[i], found.deficit[i], f)
        elsewhere = second if node == largest_node else largest
        _observe_victims(c, costs, pod, node, victim_slots(c, node, slots), elsewhere, f)
        f[F.wait] = _log_run(float(found.wait_s[i]))
        f[F.cost] = _log_gpu_h(found.cost[i])
        f[F.cost_gap] = _log_gpu_h(found.cost[i] - found.cost[0]) if i > 0 else 0.0
    o.mask[k] = 1


@kernel
def observe_end(c: Cluster, o: Observation) -> None:
    """Write the observation of the end of an episode: the cluster, no preemptor, no candidates."""
    for i in range(o.preemptor.shape[0]):
        o.preemptor[i] = 0.0
    _observe_cluster(c, 0.0, o)
    k = o.candidates.shape[0]
    for i in range(k):
        o.mask[i] = 0
        for j in range(o.candidates.shape[1]):
            o.candidates[i, j] = 0.0
    o.mask[k] = 1
