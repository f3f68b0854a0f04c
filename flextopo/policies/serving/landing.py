"""Where a pod may land on its node, for whom that would be in the way.

kubelet chooses GPUs when a pod starts, and knows of nobody's planned place: of what is free it may give a
pod those that others were evicted for, although there are more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.arrays import TERMINATING
from flextopo.cluster.state.placement import place
from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.cluster.topology.levels import NO_FIT
from flextopo.cluster.topology.model import ServerModel
from flextopo.policies.serving.hardware import Hardware
from flextopo.policies.serving.holders import suits
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.records import PodRecord

MOST_KNOWN = 4_000
"""Answers that are remembered."""
MOST_LANDINGS = 100
"""Ways in which kubelet may place a pod that are looked at; on 8 GPUs there are no more than 70."""
Cores = npt.NDArray[np.int16]
Place = tuple[int, Cores]
"""A bit mask of GPUs, and cores by NUMA node."""


@dataclass(frozen=True, slots=True, eq=False)
class Bare:
    """A node without those that have places planned there.

    Attributes:
        state: the node.
        leaving: what pods hold that are on their way out, each a place and when it is gone.
    """

    state: NodeState
    leaving: Sequence[tuple[Place, int | None]]

    def since(self, since_s: int) -> Bare:
        """Return the node without those that should have been gone before: they are not counted on any more."""
        if not self.leaving:
            return self
        leaving = [(held, at_s) for held, at_s in self.leaving if at_s is None or at_s >= since_s]
        return Bare(self.state, leaving)


def bare(state: NodeState) -> Bare:
    """Return a node without those that have places planned there, of which it is worked out."""
    held = zip(state.counted.records, state.holdings(), strict=True)
    return Bare(
        state,
        [
            ((mask, np.array(cores, np.int16)), record.gone_s)
            for record, (mask, cores, status) in held
            if status == TERMINATING
        ],
    )


class Landings:
    """Says whose places a pod would make unfit; what was worked out is remembered, since servers are alike."""

    def __init__(self) -> None:
        self._known: dict[Any, Sequence[int]] = {}
        self._unseats: dict[Any, bool] = {}

    def may_clash(
        self, models: npt.NDArray[Any], state: NodeState, pods: Sequence[tuple[PodRecord, int]]
    ) -> bool:
        """Say whether a guaranteed pod may end unaligned where some come to a node at a time, in any order.

        Args:
            models: compiled server models.
            state: of the node, without any of them.
            pods: each with how many there are that ask for the same. kube-scheduler sees to it that those that
                come fit together by counts, but not all need come.
        """
        free = state.sure.gpu_free, state.sure.cores_free
        for pod, _ in pods:
            others = [
                (one, count - (one is pod)) for one, count in pods if one is not pod or count > 1
            ]
            other = _merged(others, pod, state) if pod.guaranteed and others else None
            if other is not None and self._may_unseat(models, state.hardware, free, pod, other):
                return True
        return False

    def _may_unseat(
        self,
        models: npt.NDArray[Any],
        hardware: Hardware,
        free: Place,
        pod: PodRecord,
        other: PodRecord,
    ) -> bool:
        """Say whether another pod may land in such a way that a guaranteed one that would be aligned is not."""
        asked = [(one.gpus, one.cores, one.requirement) for one in (pod, other)]
        key = hardware.server, free[0], free[1].tobytes(), *asked
        found = self._unseats.get(key)
        if found is None:
            if len(self._unseats) >= MOST_KNOWN:
                self._unseats.clear()
            found = self._unseats[key] = _may_unseat(models, hardware, free, pod, other)
        return found

    def spoiled(
        self, models: npt.NDArray[Any], node: Bare, kept: Sequence[PodRecord], pod: PodRecord
    ) -> list[PodRecord]:
        """Return whose places a pod would make unfit, where kubelet puts it as badly as it may.

        Args:
            models: compiled server models.
            node: without any of these pods.
            kept: pods that have places planned on the node, in the order in which they get them.
            pod: is about to be bound there.
        """
        if not kept or not pod.gpus:
            return []
        hardware = node.state.hardware
        now, later = _free(node)
        asked = [(one.gpus, one.cores, one.requirement) for one in (pod, *kept)]
        places = [(gpus, cores.tobytes()) for gpus, cores in (now, later)]
        key = hardware.server, *places, *asked
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            landings = _landings(models, hardware.server, hardware.model, now, pod)
            found = _worst(models, hardware.model, kept, later, islice(landings, MOST_LANDINGS))
            self._known[key] = found
        return [kept[i] for i in found]


def _merged(
    others: Sequence[tuple[PodRecord, int]], pod: PodRecord, state: NodeState
) -> PodRecord | None:
    """Return one pod that may lie wherever some others do that leave a pod as much as it asks for, None for none.

    One by itself lies where kubelet puts it; several are taken for one without a requirement, of as many cores
    for each GPU as any of them has.
    """
    free, first = state.counted, others[0][0]
    gpus, cores = free.num_gpus - pod.gpus, free.num_cores - pod.cores
    if len(others) == 1 and others[0][1] == 1:
        return first if first.gpus <= gpus and first.cores <= cores else None
    gpus = min(gpus, sum(one.gpus * count for one, count in others))
    a_gpu = max(one.cores / one.gpus for one, _ in others)
    cores = min(cores, math.ceil(a_gpu * gpus))
    if gpus <= 0 or cores < 0:
        return None
    return replace(first, gpus=gpus, cores=cores, requirement=TopologyRequirement.NONE)


def _may_unseat(
    models: npt.NDArray[Any], hardware: Hardware, free: Place, pod: PodRecord, other: PodRecord
) -> bool:
    """See `Landings`; also where there are more landings than are looked at, or none: it may lie on what is not free for sure."""
    if _unseated(models, hardware.model, [pod], free):
        return False
    number = 0
    for mask, cores in _landings(models, hardware.server, hardware.model, free, other):
        left = free[0] & ~mask, free[1] - cores
        if number == MOST_LANDINGS or _unseated(models, hardware.model, [pod], left):
            return True
        number += 1
    return number == 0


def _worst(
    models: npt.NDArray[Any],
    model: int,
    kept: Sequence[PodRecord],
    later: Place,
    landings: Iterable[Place],
) -> list[int]:
    """Return which pods get no place that will do, where one lands as badly as it may."""
    worst, most = list[int](), 0
    before = _unseated(models, model, kept, later)
    limit = sum(one.gpus for i, one in enumerate(kept) if i not in before)
    for mask, cores in landings if limit else ():
        left = later[0] & ~mask, later[1] - cores
        found = [i for i in _unseated(models, model, kept, left) if i not in before]
        lost = sum(kept[i].gpus for i in found)
        if lost > most:
            worst, most = found, lost
        if most == limit:
            break
    return worst


def fits_later(models: npt.NDArray[Any], state: NodeState, pod: PodRecord) -> bool:
    """Say whether a pod has a place on a node, by GPUs and cores, once those are gone that are on their way out."""
    _, later = _free(bare(state))
    return not _unseated(models, state.hardware.model, [pod], later)


def fits_now(models: npt.NDArray[Any], state: NodeState, pod: PodRecord) -> bool:
    """Say whether a pod has a place on a node, by GPUs and cores, among what is free."""
    free = state.counted.gpu_free, state.counted.cores_free
    return not _unseated(models, state.hardware.model, [pod], free)


def _free(node: Bare) -> tuple[Place, Place]:
    """Return what is free now, and once those are gone that are on their way out."""
    gpus, cores = node.state.counted.gpu_free, node.state.counted.cores_free
    more, cores_too = gpus, cores
    for (mask, held), _ in node.leaving:
        more, cores_too = more | mask, cores_too + held
    return (gpus, cores), (more, cores_too)


def _unseated(
    models: npt.NDArray[Any], model: int, pods: Sequence[PodRecord], free: Place
) -> list[int]:
    """Return who gets no place, or a guaranteed one none that is aligned, if all take theirs in turn."""
    found = []
    gpus, cores = free
    for i, pod in enumerate(pods):
        taken = np.zeros(len(cores), np.int16)
        level, mask = place(models, model, gpus, cores, pod.gpus, pod.cores, taken)
        if not suits(models, model, pod, level):
            found.append(i)
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
    alike: dict[int, list[int]] = {}
    for i in range(server.num_gpus):
        if gpus >> i & 1:
            alike.setdefault(where[i], []).append(i)
    for chosen in _choices([alike[here] for here in sorted(alike)], pod.gpus):
        mask, taken = sum(1 << i for i in chosen), np.zeros(len(cores), np.int16)
        level, _ = place(models, model, mask, cores, pod.gpus, pod.cores, taken)
        if suits(models, model, pod, level):
            yield mask, taken


def _choices(alike: Sequence[list[int]], count: int) -> Iterator[list[int]]:
    """Yield the ways to take so many GPUs of groups that lie alike; none where there are fewer."""
    if count == 0:
        yield []
    if count == 0 or sum(map(len, alike)) < count:
        return
    first, *rest = alike
    for some in range(min(len(first), count), -1, -1):
        for others in _choices(rest, count - some):
            yield first[:some] + others
