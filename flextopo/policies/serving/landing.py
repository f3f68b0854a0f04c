"""Where a pod may land on its node, for whom that would be in the way.

kubelet chooses GPUs when a pod starts, and knows of nobody's planned place: of what is free it may give a
pod those that others were evicted for, although there are more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.arrays import TERMINATING
from flextopo.cluster.state.placement import best_level, is_aligned, place
from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.cluster.topology.levels import NO_FIT
from flextopo.cluster.topology.model import ServerModel
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.records import PodRecord

Cores = npt.NDArray[np.int16]
Place = tuple[int, Cores]
"""A bit mask of GPUs, and cores by NUMA node."""


def who_is_spoiled(
    models: npt.NDArray[Any], state: NodeState, ahead: Sequence[PodRecord], pod: PodRecord
) -> str:
    """Return whose place a pod could make unfit, wherever kubelet puts it; empty for nobody's.

    Args:
        models: compiled server models.
        state: the node without any of these pods.
        ahead: pods that have a place planned on the node and come before the pod.
        pod: is about to be bound there.
    """
    guaranteed = [one for one in ahead if one.requirement == TopologyRequirement.GUARANTEED]
    if not guaranteed or not pod.gpus:
        return ""
    now, later = _free(state)
    model = state.hardware.model
    before = _unseated(models, model, ahead, later)
    for mask, cores in _landings(models, state.hardware.server, model, now, pod):
        left = later[0] & ~mask, later[1] - cores
        spoiled = _unseated(models, model, ahead, left) - before
        if spoiled:
            return min(spoiled)
    return ""


def _free(state: NodeState) -> tuple[Place, Place]:
    """Return what is free now, and once those are gone that are on their way out."""
    gpus, cores = state.counted.gpu_free, state.counted.cores_free
    more, cores_too = gpus, cores.copy()
    for mask, held, status in state.holdings():
        if status == TERMINATING:
            more |= mask
            cores_too[: len(held)] += np.array(held, np.int16)
    return (gpus, cores), (more, cores_too)


def _unseated(
    models: npt.NDArray[Any], model: int, pods: Sequence[PodRecord], free: Place
) -> set[str]:
    """Return the guaranteed ones of some pods that are not aligned if they take their places in turn."""
    found = set()
    gpus, cores = free
    for pod in pods:
        taken = np.zeros(len(cores), np.int16)
        level, mask = place(models, model, gpus, cores, pod.gpus, pod.cores, taken)
        best = best_level(models, model, pod.gpus, pod.cores)
        aligned = level != NO_FIT and is_aligned(level, best)
        if pod.requirement == TopologyRequirement.GUARANTEED and not aligned:
            found.add(pod.key)
        if level != NO_FIT:
            gpus, cores = gpus & ~int(mask), cores - taken
    return found


def _landings(
    models: npt.NDArray[Any], server: ServerModel, model: int, free: Place, pod: PodRecord
) -> Iterator[Place]:
    """Yield where kubelet may put a pod of what is free; a guaranteed one it aligns.

    Of GPUs that lie alike one is as good as another.
    """
    gpus, cores = free
    where = server.gpu_island or server.gpu_numa
    numbers = [i for i in range(server.num_gpus) if gpus >> i & 1]
    numbers.sort(key=lambda i: where[i])
    best = best_level(models, model, pod.gpus, pod.cores)
    met = set()
    for chosen in combinations(numbers, pod.gpus):
        kinds = tuple(where[i] for i in chosen)
        if kinds in met:
            continue
        met.add(kinds)
        mask, taken = sum(1 << i for i in chosen), np.zeros(len(cores), np.int16)
        level, _ = place(models, model, mask, cores, pod.gpus, pod.cores, taken)
        if level == NO_FIT:
            continue
        if pod.requirement != TopologyRequirement.GUARANTEED or is_aligned(level, best):
            yield mask, taken
