"""Perturbations of what a selector sees: it decides on a wrong state, the true one carries it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import PodError
from flextopo.cluster.state.arrays import RUNNING, STARTING, Cluster, may_evict
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.train.compare import expecting, model_of

SHARE_SHUFFLED = 0.2
"""Share of pods whose placement is not known as it is: an assumption."""

RUN_TIME_SIGMA = 1.0
"""Standard deviation of the log of what run times are taken for: an assumption."""

CHECKPOINT_SIGMA = 0.5
"""Standard deviation of the log of what a checkpoint interval is taken for: an assumption."""


class Disturbed:
    """What a selector is to those who play it, whatever decides behind it.

    Attributes:
        inner: the selector that decides.
    """

    def __init__(self, inner: VictimSelector) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """The inner selector's."""
        return self.inner.name

    @property
    def filter(self) -> AlignmentFilter:
        """The inner selector's."""
        return self.inner.filter

    @property
    def max_wait_s(self) -> int | None:
        """The inner selector's, None if it has none."""
        found: int | None = getattr(self.inner, "max_wait_s", None)
        return found


class WrongView(Disturbed, ABC):
    """A selector that shows another one a wrong state, and carries out its answer on the true one.

    Where the answer is not legal on the true state, the cheapest candidate there is taken instead. An
    answer that is legal and less well aligned than the selector thought is carried out: that is the
    price of not knowing.

    Attributes:
        inner: the selector that decides.
        seed: of the episode.
        fallbacks: answers so far that were not legal.
    """

    def __init__(self, inner: VictimSelector, seed: int) -> None:
        super().__init__(inner)
        self.seed = seed
        self.fallbacks = 0
        self._shown: ClusterState | None = None

    @abstractmethod
    def distort(self, true: Cluster, preemptor: Pod) -> Cluster:
        """Return the arrays that the inner selector sees; the true ones stay as they are."""

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Let the inner selector choose on a wrong state; None where it does."""
        arrays = self.distort(cluster.arrays, preemptor)
        if self._shown is None:
            self._shown = ClusterState(arrays, cluster.models, cluster.costs)
            self._shown.simulator = cluster.simulator  # it knows who may wait
        self._shown.arrays = arrays
        answer = self.inner.select(self._shown, preemptor)
        if answer is None:
            return None
        found = _legal(cluster, answer, preemptor)
        if found is not None:
            return found
        self.fallbacks += 1
        cheapest = cluster.candidates(preemptor, self.filter.binds(preemptor), 1)
        return cheapest[0] if cheapest else None


def _legal(cluster: ClusterState, answer: Candidate, preemptor: Pod) -> Candidate | None:
    """Return what an answer means on the true state, None if it is not legal there."""
    try:
        found = cluster.candidate(answer.node, answer.victims, preemptor)
    except PodError:  # a victim that is not on the node
        return None
    allowed = all(may_evict(cluster.arrays, pod, preemptor.priority) for pod in answer.victims)
    return found if allowed else None


class ShuffledPlacements(WrongView):
    """Show a fifth of the pods on the GPUs and cores of another pod of their node and size."""

    def distort(self, true: Cluster, preemptor: Pod) -> Cluster:
        """Return arrays in which some pods of a node and size have changed places."""
        live, cores = true.live.copy(), true.pod_cores.copy()
        rng = np.random.default_rng([self.seed, int(true.totals[0]["now_s"]), preemptor.index])
        for node in range(len(true.nodes)):
            here = true.node_pods[node, : true.nodes[node]["num_pods"]]
            # A pod that ends has given up what it held, or part of it.
            here = here[np.isin(live["status"][here], (RUNNING, STARTING))]
            for pod in here[rng.random(len(here)) < SHARE_SHUFFLED]:
                others = _alike(true, here, int(pod))
                if len(others):
                    _swap(live, cores, int(pod), int(rng.choice(others)))
        return true._replace(live=live, pod_cores=cores)


def _alike(c: Cluster, here: npt.NDArray[np.int32], pod: int) -> npt.NDArray[np.int32]:
    """Return the other pods of a node that ask for as much."""
    size = c.pods[["gpus", "cores"]]
    same: npt.NDArray[np.int32] = here[(size[here] == size[pod]) & (here != pod)]
    return same


def _swap(live: npt.NDArray[Any], cores: npt.NDArray[np.int16], a: int, b: int) -> None:
    for field in ("gpu_mask", "level", "deficit"):
        live[field][[a, b]] = live[field][[b, a]]
    cores[[a, b]] = cores[[b, a]]


class WrongCheckpoints(WrongView):
    """Show checkpoint intervals that are off by a factor, each pod's the same all day."""

    def __init__(self, inner: VictimSelector, seed: int) -> None:
        super().__init__(inner, seed)
        self._pods: npt.NDArray[Any] | None = None

    def distort(self, true: Cluster, preemptor: Pod) -> Cluster:
        """Return arrays with other checkpoint intervals; jobs without checkpoints have none."""
        if self._pods is None:
            self._pods = self._wrong(true)
        return true._replace(pods=self._pods)

    def _wrong(self, true: Cluster) -> npt.NDArray[Any]:
        rng = np.random.default_rng(self.seed)
        factors = rng.lognormal(0.0, CHECKPOINT_SIGMA, len(true.pods))
        pods = true.pods.copy()
        saved = pods["checkpoint_s"] > 0
        shown = np.rint(pods["checkpoint_s"] * factors).clip(1, 2**31 - 1)
        pods["checkpoint_s"][saved] = shown[saved].astype(np.int32)
        return pods


class WrongRunTimes(Disturbed):
    """Tell a selector that expects run times of others than there are: longer or shorter, all day.

    Attributes:
        inner: the selector that decides, with a workload of its own where it has one; others are as
            they were.
    """

    def __init__(self, inner: VictimSelector, seed: int) -> None:
        super().__init__(inner)
        off = float(np.random.default_rng(seed).normal(0.0, RUN_TIME_SIGMA))
        model = model_of(inner)
        if model is not None:
            wrong = {name: getattr(model, name) + off for name in ("small_job_mu", "large_job_mu")}
            self.inner = expecting(inner, replace(model, **wrong))

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose as the inner selector does."""
        return self.inner.select(cluster, preemptor)
