"""For whom there is room on a node, now and soon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flextopo.cluster.state.placement import alignment_level, best_level, is_aligned
from flextopo.cluster.topology.levels import NO_FIT
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.guards import short_of
from flextopo.policies.serving.holders import suits
from flextopo.policies.serving.landing import fits_later
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.places import Places
from flextopo.policies.serving.records import PodRecord, together

MOST_SHAPES = 32
"""Pods of so many kinds, by GPUs and cores, are remembered at a node: replicas are alike."""


class Room:
    """What pods find on nodes.

    Args:
        cache: the cluster.
        places: what is kept on nodes, and for whom.
    """

    def __init__(self, cache: ClusterCache, places: Places) -> None:
        self._cache, self._places = cache, places

    def suffices(self, state: NodeState, *pods: PodRecord) -> bool:
        """Say whether what is free on a node suffices for some pods together, by counts."""
        free = state.counted
        gpus, cores = sum(pod.gpus for pod in pods), sum(pod.cores for pod in pods)
        return free.num_gpus >= gpus and free.num_cores >= cores

    def fits(self, preemptor: PodRecord, state: NodeState) -> bool:
        """Say whether a pod fits on a node as it stands, a guaranteed one aligned for sure."""
        aligned = not preemptor.guaranteed
        aligned = aligned or self.alignment(state, preemptor)[0]
        asked = together([preemptor])
        return aligned and self.suffices(state, preemptor) and not short_of(asked, state, [])

    def may_be_there(self, other: PodRecord, preemptor: PodRecord, state: NodeState) -> bool:
        """Say whether a pod may have been bound to a node on which there is room for a preemptor as well."""
        return self.suffices(state, preemptor, other) and not short_of(together([other]), state, [])

    def fits_beside(self, pod: PodRecord, gpus: int, cores: Sequence[int]) -> bool:
        """Say whether a pod would fit on its node if some of what is free were not.

        Args:
            pod: is bound there, or nominated for it.
            gpus: bit mask of GPUs.
            cores: of each NUMA node; empty = none.

        Returns:
            False also where these are not free without the pod.
        """
        state = self._places.without(pod.node or pod.nominated, pod.uid)
        if state is None or state.broken or gpus & ~state.counted.gpu_free:
            return False
        left = state.counted.cores_free.copy()
        left[: len(cores)] -= np.array(cores, np.int16)
        table, model, asked = self._cache.table, state.hardware.model, (pod.gpus, pod.cores)
        level = alignment_level(table, model, state.counted.gpu_free & ~gpus, left, *asked)
        return suits(table, model, pod, level) and not (left < 0).any()

    def to_come(self, preemptor: PodRecord) -> str:
        """Return a node where a pod fits once those are gone that leave it soon, empty for none.

        One that it was told of before stays that: those may be gone by now, which kube-scheduler sees later.
        """
        cache = self._cache
        told = cache.reservations.answered(preemptor.uid)
        mine = told[0] if told is not None and not told[1] else ""
        leaving = {**({mine: []} if mine else {}), **self._places.leaving_soon()}
        if not leaving:
            return ""
        reach, asked = cache.reach_of(preemptor), together([preemptor])
        known = cache.nodes.states.get
        for name, pods in leaving.items():
            # Of what is kept for others there nothing is meant, whoever is more important.
            state = self._places.state_of(name, preemptor) if name == mine else known(name)
            if state is None or state.broken or not self._may_suffice(preemptor, state, name, pods):
                continue
            if preemptor.guaranteed and not (state.known or self._places.is_unsettled(state)):
                continue
            enough = not reach.why_not(name) and not short_of(asked, state, pods)
            if not enough or not fits_later(cache.table, state, preemptor):
                continue
            # Others have gone for who would come later there.
            if name == mine or not self._places.delayed(name, preemptor):
                return name
        return ""

    def _may_suffice(
        self, preemptor: PodRecord, state: NodeState, name: str, leaving: Sequence[PodRecord]
    ) -> bool:
        """Say whether there may be GPUs enough once some pods are gone: of most nodes that is soon told.

        Where places were promised a moment ago others are about to leave, too.
        """
        if self._places.is_planned(name):
            return True
        return state.counted.num_gpus + sum(pod.gpus for pod in leaving) >= preemptor.gpus

    def alignment(self, state: NodeState, preemptor: PodRecord) -> tuple[bool, int, int]:
        """Return whether free resources align the preemptor for sure, at what level, and the best.

        Returns:
            Aligned, the level in the worst case (`placement.NO_FIT` where it does not fit), and
            the level that an empty server of that kind gives.
        """
        asked = (preemptor.gpus, preemptor.cores)
        found = state.alignments.get(asked)
        if found is None:
            if len(state.alignments) >= MOST_SHAPES:
                state.alignments.clear()
            table, model, free = self._cache.table, state.hardware.model, state.sure
            best = best_level(table, model, *asked)
            level = alignment_level(table, model, free.gpu_free, free.cores_free, *asked)
            sure = state.hardware.known and level != NO_FIT and bool(is_aligned(level, best))
            found = state.alignments[asked] = sure, int(level), int(best)
        return found
