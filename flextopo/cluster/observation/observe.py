"""The kernels that write an observation, by the names of `features`."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import kernel, popcount, stage
from flextopo.cluster.observation.features import C, F, Observation, P
from flextopo.cluster.observation.observe_candidate import (
    add_held,
    log_gpu_h,
    log_run,
    observe_node,
    observe_victims,
)
from flextopo.cluster.observation.observe_gang import observe_alone, observe_gang
from flextopo.cluster.scenario import SENSITIVITIES
from flextopo.cluster.state.arrays import (
    Cluster,
    as_index,
    replicas_row,
)
from flextopo.cluster.state.candidates import CandidateArrays, victim_slots
from flextopo.cluster.state.loss import Costs
from flextopo.cluster.state.schema import NUM_MISALIGNED, REPLICAS

OFF_SOCKET = tuple(1.0 - kind.off_socket for kind in SENSITIVITIES.values())
"""Share of its speed that a service of each kind loses across sockets."""


@stage
def _observe_preemptor(c: Cluster, pod: int, o: Observation) -> None:
    """Fill in what is said of the preemptor."""
    spec, p = c.pods[pod], o.preemptor
    p[P.gpus], p[P.cores] = min(1.0, spec["gpus"] / 16.0), min(1.0, spec["cores"] / 256.0)
    for requirement in range(3):
        p[P.requires_nothing + requirement] = 1.0 if spec["requirement"] == requirement else 0.0
    waited = float(c.totals[0]["now_s"] - c.live[pod]["queued_s"])
    p[P.waited], p[P.deadline_left] = log_run(waited), log_run(spec["deadline_s"] - waited)
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
    f[C.misaligned] = min(1.0, misaligned / gpus)
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
    if f.shape[0] > C.held_online_1:
        _observe_held(c, f[C.held_online_1 :])
    return largest, largest_node, second


@stage
def _observe_held(c: Cluster, held: npt.NDArray[np.float32]) -> None:
    """Fill in who holds the GPUs of all nodes whose pods are known: those of a service's decision, here all."""
    gpus = 0
    for node in range(c.node_pods.shape[0]):
        gpus += c.models[c.nodes[node]["model"]]["num_gpus"]
    for j in range(held.shape[0]):
        held[j] = 0.0
    for node in range(c.node_pods.shape[0]):
        add_held(c, node, float(max(gpus, 1)), held)


@stage
def mistrust(o: Observation) -> None:
    """Let the next observation write every row, since others may have written to any of them."""
    for i in range(o.candidates.shape[0]):
        o.mask[i] = 1


@stage
def _clear(o: Observation, count: int) -> None:
    """Clear the rows from `count` on that the last observation, by its mask, has written."""
    for i in range(count, o.candidates.shape[0]):
        if o.mask[i]:
            o.mask[i] = 0
            for j in range(o.candidates.shape[1]):
                o.candidates[i, j] = 0.0


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
        o: output, as `empty_observation` or an observation has left it; rows and mask entries beyond
            `count` are cleared.
    """
    k = o.candidates.shape[0]
    _observe_preemptor(c, pod, o)
    largest, largest_node, second = _observe_cluster(c, count / k, o)
    _clear(o, count)
    for i in range(count):
        o.mask[i] = 1
        f = o.candidates[i]
        if not observe_gang(c, costs, pod, found, i, f):
            node, slots = found.node[i], found.slots[i]
            observe_node(c, pod, node, slots, found.level[i], found.deficit[i], f)
            elsewhere = second if node == largest_node else largest
            observe_victims(c, costs, pod, node, victim_slots(c, node, slots), elsewhere, f)
            observe_alone(c, pod, node, found.slots[i], f)
        f[F.wait] = log_run(float(found.wait_s[i]))
        f[F.cost] = log_gpu_h(found.cost[i])
        f[F.cost_gap] = log_gpu_h(found.cost[i] - found.cost[0]) if i > 0 else 0.0
    o.mask[k] = 1


@kernel
def observe_end(c: Cluster, o: Observation) -> None:
    """Write the observation of the end of an episode: the cluster, no preemptor, no candidates."""
    for i in range(o.preemptor.shape[0]):
        o.preemptor[i] = 0.0
    _observe_cluster(c, 0.0, o)
    _clear(o, as_index(0))
    o.mask[o.candidates.shape[0]] = 1
