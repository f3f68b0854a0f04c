"""Where a pod may land on its node, for whom that would be in the way.

kubelet chooses GPUs when a pod starts, and knows of nobody's planned place: of what is free it may give a
pod those that others were evicted for, although there are more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice
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

MOST_LANDINGS = 100
"""Ways in which kubelet may place a pod that are looked at; on 8 GPUs there are no more than 70."""
Cores = npt.NDArray[np.int16]
Place = tuple[int, Cores]
"""A bit mask of GPUs, and cores by NUMA node."""


def spoiled(
    models: npt.NDArray[Any], state: NodeState, kept: Sequence[PodRecord], pod: PodRecord
) -> list[PodRecord]:
    """Return whose places a pod would make unfit, where kubelet puts it as badly as it may.

    Args:
        models: compiled server models.
        state: the node without any of these pods.
        kept: pods that have places planned on the node, in the order in which they get them.
        pod: is about to be bound there.
    """
    worst: list[PodRecord] = []
    if not kept or not pod.gpus:
        return worst
    now, later = _free(state)
    model = state.hardware.model
    before = _unseated(models, model, kept, later)
    landings = _landings(models, state.hardware.server, model, now, pod)
    for mask, cores in islice(landings, MOST_LANDINGS):
        left = later[0] & ~mask, later[1] - cores
        found = [one for one in _unseated(models, model, kept, left) if one not in before]
        worst = max(worst, found, key=lambda pods: sum(one.gpus for one in pods))
    return worst


def fits_later(models: npt.NDArray[Any], state: NodeState, pod: PodRecord) -> bool:
    """Say whether a pod has a place on a node, by GPUs and cores, once those are gone that are on their way out."""
    _, later = _free(state)
    return not _unseated(models, state.hardware.model, [pod], later)


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
) -> list[PodRecord]:
    """Return who gets no place, or a guaranteed one none that is aligned, if all take theirs in turn."""
    found = []
    gpus, cores = free
    for pod in pods:
        taken = np.zeros(len(cores), np.int16)
        level, mask = place(models, model, gpus, cores, pod.gpus, pod.cores, taken)
        if not _suits(models, model, pod, level):
            found.append(pod)
        if level != NO_FIT:
            gpus, cores = gpus & ~int(mask), cores - taken
    return found


def _suits(models: npt.NDArray[Any], model: int, pod: PodRecord, level: int) -> bool:
    """Say whether a level will do for a pod."""
    if level == NO_FIT or pod.requirement != TopologyRequirement.GUARANTEED:
        return level != NO_FIT
    return bool(is_aligned(level, best_level(models, model, pod.gpus, pod.cores)))


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
    met = set()
    for chosen in combinations(numbers, pod.gpus):
        kinds = tuple(where[i] for i in chosen)
        if kinds in met:
            continue
        met.add(kinds)
        mask, taken = sum(1 << i for i in chosen), np.zeros(len(cores), np.int16)
        level, _ = place(models, model, mask, cores, pod.gpus, pod.cores, taken)
        if _suits(models, model, pod, level):
            yield mask, taken
