"""The paper's preemption experiment: thousands of preemptors arrive on a cluster full of batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from flextopo.baselines.policies import PreemptionPolicy
from flextopo.baselines.registry import make_selector
from flextopo.baselines.residents import NodeOption, NodeView, disruptions_left
from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import AlignmentLevel
from flextopo.cluster.topology.model import ServerModel
from flextopo.train.reproduce_cluster import NOWHERE, PodTable
from flextopo.train.reproduce_config import PaperConfig

SIZES = (1, 2, 4, 8)
"""Cards of a pod, in the order of the mixes."""

SELECTORS = ("godel", "kubernetes", "flextopo-guaranteed", "flextopo-best-effort")
QUEUE = 16
"""Batch pods that wait for room; a smaller one may pass one that does not fit."""

ARRIVALS = 5
"""Arrivals a counted preemption, and 1,000, after which a run ends: where there is room, most
preemptors need not preempt."""

BLOCKS = 20
"""Parts of a run whose hit rates give its interval, since neighbouring decisions are alike."""


class Arrival(NamedTuple):
    """A preemptor: its cards, and how many arrivals later it leaves."""

    gpus: int
    lifetime: int


def _streams(config: PaperConfig) -> list[np.random.SeedSequence]:
    """Return the seeds of arrivals, batch pods and start times, the same for all selectors."""
    return np.random.SeedSequence(config.seed).spawn(3)


def arrivals(config: PaperConfig) -> Iterator[Arrival]:
    """Draw preemptors without end; no selector has a part in it."""
    rng = np.random.default_rng(_streams(config)[0])
    mean_gpus = float(np.dot(SIZES, config.preemptor_mix))
    gpus = config.servers * config.model.num_gpus
    lifetime = config.online_share * gpus / mean_gpus
    while True:
        sizes = rng.choice(SIZES, 1024, p=config.preemptor_mix)
        lives = np.maximum(1, np.rint(rng.exponential(lifetime, 1024))).astype(int)
        yield from map(Arrival, sizes.tolist(), lives.tolist())


def batch_pods(config: PaperConfig) -> Iterator[int]:
    """Draw the cards of batch pods without end."""
    rng = np.random.default_rng(_streams(config)[1])
    while True:
        yield from rng.choice(SIZES, 1024, p=config.batch_mix).tolist()


class CachedSearch:
    """A policy's `select`, with each node searched again only after its pods changed.

    Args:
        policy: a selector made of a search and scores.
        state: the cluster; between two calls nothing but the nodes' pods may change.
    """

    def __init__(self, policy: PreemptionPolicy, state: ClusterState) -> None:
        self.policy = policy
        self.state = state
        self._best: dict[int, list[tuple[tuple[float, ...], NodeOption] | None]] = {}
        self._stale: dict[int, set[int]] = {}

    def changed(self, nodes: set[int]) -> None:
        """Forget what was found on these nodes."""
        for stale in self._stale.values():
            stale |= nodes

    def select(self, preemptor: Pod) -> Candidate | None:
        """Return what `policy.select(state, preemptor)` returns."""
        size = preemptor.gpus
        best = self._best.setdefault(size, [None] * self.state.num_nodes)
        stale = self._stale.setdefault(size, set(range(self.state.num_nodes)))
        aligned = self.policy.filter.binds(preemptor)
        allowed = disruptions_left(self.state)
        for node in stale:
            view = NodeView(self.state, node, self.policy.gpu_locality)
            options = self.policy.search(view, preemptor, allowed, aligned)
            ranked = (
                ((*(score(option) for score in self.policy.scores), node, i), option)
                for i, option in enumerate(options)
            )
            best[node] = min(ranked, key=lambda item: item[0], default=None)
        stale.clear()
        found = [item for item in best if item is not None]
        if not found:
            return None
        option = min(found, key=lambda item: item[0])[1]
        victims = [victim.index for victim in option.victims]
        return self.state.candidate(option.node, victims, preemptor)


@dataclass
class Tally:
    """What happened in a run; rates are over preemptions.

    Attributes:
        arrivals: preemptors that came.
        fitted: those that needed no preemption.
        failed: those for whom no victim set works.
        preemptions: the rest.
        hits: preemptors on the best level that an empty server gives their request.
        cross_socket: preemptors across sockets although a socket could hold them.
        victims: pods evicted.
        small_sets: decisions with two victims at most.
        free_gpu_misses: misses whose victims hold fewer GPUs than the preemptor needs, so that
            GPUs that were free already decide its level.
        decided: preemptions of each size.
        hits_by_size: hits of each size.
        blocks: hit rate of each twentieth of the run.
    """

    arrivals: int = 0
    fitted: int = 0
    failed: int = 0
    preemptions: int = 0
    hits: int = 0
    cross_socket: int = 0
    victims: int = 0
    small_sets: int = 0
    free_gpu_misses: int = 0
    decided: dict[int, int] = field(default_factory=dict)
    hits_by_size: dict[int, int] = field(default_factory=dict)
    blocks: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class Decision(NamedTuple):
    """A preemption about to happen: the pod, the choice, the cards its victims hold."""

    preemptor: Pod
    candidate: Candidate
    freed_gpus: int


class PaperExperiment:
    """One selector on one stream of arrivals.

    Args:
        config: the run.
        selector: a name of `SELECTORS`.

    Raises:
        UnknownNameError: the selector has no search and scores of its own.
    """

    def __init__(self, config: PaperConfig, selector: str) -> None:
        policy = make_selector(selector) if selector in SELECTORS else None
        if not isinstance(policy, PreemptionPolicy):
            raise UnknownNameError("selector", selector, SELECTORS)
        self.config = config
        self.policy = policy
        model = config.model
        self.pods = PodTable(model, config.servers, config.online_priority, config.batch_priority)
        self.search = CachedSearch(policy, self.pods.state)
        self.tally = Tally()
        self._gpus = config.servers * model.num_gpus
        self._starts = np.random.default_rng(_streams(config)[2])
        self._batch = batch_pods(config)
        self._queue: deque[int] = deque(next(self._batch) for _ in range(QUEUE))
        self._leaving: dict[int, list[int]] = {}
        if config.last_core == "used":
            self._use_last_cores(model)

    def _use_last_cores(self, model: ServerModel) -> None:
        for node in range(self.config.servers):
            for numa_node in range(model.num_numa_nodes):
                row = self.pods.new(0, 1, online=False)
                self.pods.start_on_core(row, node, numa_node)

    def _refill(self) -> None:
        """Start batch pods on the emptiest nodes up to the fill level."""
        limit = self.config.fill * self._gpus
        passed: set[int] = set()
        at = 0
        while at < len(self._queue):
            gpus = self._queue[at]
            fits = gpus not in passed and self.pods.held_gpus + gpus <= limit
            node = self.pods.emptiest(gpus, self.config.cores(gpus)) if fits else NOWHERE
            if node == NOWHERE:
                passed.add(gpus)
                at += 1
                continue
            del self._queue[at]
            self._queue.append(next(self._batch))
            self.pods.start(self.pods.new(gpus, self.config.cores(gpus), False), node)

    def decisions(self) -> Iterator[Decision]:
        """Yield each preemption just before it happens, until there were enough or none comes."""
        most = ARRIVALS * self.config.preemptions + 1000
        filter_ = self.policy.filter
        for number, (gpus, lifetime) in enumerate(arrivals(self.config)):
            if self.tally.preemptions == self.config.preemptions or number == most:
                return
            for row in self._leaving.pop(number, ()):
                self.pods.remove(row)
            self._refill()
            self.tally.arrivals += 1
            row = self.pods.new(gpus, self.config.cores(gpus), online=True)
            preemptor = self.pods.state.pod(row)
            node = self.pods.find(row, filter_.binds(preemptor), filter_ != AlignmentFilter.BLIND)
            if node != NOWHERE:
                self.tally.fitted += 1
                self.pods.start(row, node)
            else:
                self.pods.draw_starts(self._starts, self.config.redraw_starts)
                self.search.changed(self.pods.touched)
                self.pods.touched.clear()
                candidate = self.search.select(preemptor)
                if candidate is None:
                    self.tally.failed += 1
                    self.pods.remove(row)
                    continue
                held = self.pods.state.arrays.pods["gpus"][list(candidate.victims)]
                decision = Decision(preemptor, candidate, int(held.sum()))
                yield decision
                self._count(decision, self.pods.preempt(row, candidate))
            self._leaving.setdefault(number + lifetime, []).append(row)

    def _count(self, decision: Decision, level: int) -> None:
        tally, gpus = self.tally, decision.preemptor.gpus
        best = self.config.model.best_level(gpus, decision.preemptor.cores)
        hit = level == best
        across = level == AlignmentLevel.CROSS_SOCKET != best
        tally.preemptions += 1
        tally.hits += hit
        tally.cross_socket += across
        tally.victims += len(decision.candidate.victims)
        tally.small_sets += len(decision.candidate.victims) <= 2
        tally.free_gpu_misses += not hit and decision.freed_gpus < gpus
        tally.decided[gpus] = tally.decided.get(gpus, 0) + 1
        tally.hits_by_size[gpus] = tally.hits_by_size.get(gpus, 0) + hit
        size = max(1, self.config.preemptions // BLOCKS)
        if tally.preemptions % size == 0:
            before = sum(tally.blocks) * size
            tally.blocks.append((tally.hits - before) / size)

    def count(self) -> Tally:
        """Play to the end and return what happened."""
        for _ in self.decisions():
            pass
        return self.tally
