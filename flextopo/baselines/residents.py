"""One node as rules see it: who lives there, what fits without whom, and the victim sets found.

A score reads a `NodeOption`: the preemptor as a `Pod`, the victims as `Resident`s. Neither rules nor
searches need the arrays behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from flextopo.baselines.scores import Option, topology_score
from flextopo.cluster.state import arrays, schema
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import LAST_ALIGNED, AlignmentLevel, Domain
from flextopo.cluster.topology.model import ServerModel


class PodStatus(IntEnum):
    """What a pod on a node does.

    Only running and starting ones can be evicted. A nominated pod holds resources and waits for its
    victims to leave; a terminating one was evicted and holds what its preemptor did not take.
    """

    NOMINATED = arrays.NOMINATED
    STARTING = arrays.STARTING
    RUNNING = arrays.RUNNING
    TERMINATING = arrays.TERMINATING


class Terminating(IntEnum):
    """What a rule makes of pods that are leaving.

    FREE counts what they hold, beyond what is nominated there, as free. To VICTIMS they are pods like
    all others, which evicting again does no harm to. HELD counts it as held by nobody's victim.
    """

    FREE = 0
    VICTIMS = 1
    HELD = 2


@dataclass(frozen=True, eq=False)
class Resident:
    """A pod on a node: what it holds, and what its eviction would throw away.

    Attributes:
        index: row in the cluster's table, as `Pod.index`.
        priority: greater is more important.
        start_s: when it got its resources.
        pdbs: the disruption budgets it falls under.
        gpu_mask: GPUs it holds, bit i = GPU i.
        cores: cores it holds in each NUMA node.
        status: what it does.
        online: an online service's replica.
        batch_class: 0 low, 1 middle; lost work weighs 1 + batch_class.
        group: PodGroup index, -1 = none; losing one member stops all.
        checkpoint_s: interval between checkpoints of a batch pod; 0 = none.
        progress_s: work done since its start, without what was repeated after an eviction; 0 unless
            it is a running batch pod.
    """

    index: int
    priority: int
    start_s: float
    pdbs: tuple[int, ...]
    gpu_mask: int
    cores: tuple[int, ...]
    status: PodStatus = PodStatus.RUNNING
    online: bool = False
    batch_class: int = 0
    group: int = -1
    checkpoint_s: int = 0
    progress_s: int = 0

    @property
    def gpus(self) -> int:
        """How many GPUs it holds."""
        return self.gpu_mask.bit_count()

    @property
    def num_cores(self) -> int:
        """How many cores it holds."""
        return sum(self.cores)

    @property
    def lost_s(self) -> int:
        """Seconds of work that its eviction would throw away: those since its last checkpoint."""
        return self.progress_s % self.checkpoint_s if self.checkpoint_s else self.progress_s


@dataclass(frozen=True, kw_only=True)
class NodeOption(Option[Resident]):
    """One victim set on one node, as scores see it.

    Attributes:
        preemptor: who would come.
        free_gpus: GPUs of the node that are free before anyone leaves.
    """

    preemptor: Pod
    free_gpus: int


NodeScore = Callable[[NodeOption], float]
"""Orders victim sets, lower is better; every `Score` is one, too."""


class NodeView:
    """Free resources and residents of one node, copied out of the arrays once a decision.

    Args:
        cluster: the cluster, not modified.
        node: index of the node.
        gpu_locality: False gives the authors' CPU-only alignment test.
        terminating: what becomes of pods that are leaving before a victim would: one of `Terminating`.

    Attributes:
        gpu_free: bit mask of the GPUs that are free, or counted as free.
        cores_free: the same cores, by NUMA node.
    """

    def __init__(
        self,
        cluster: ClusterState,
        node: int,
        gpu_locality: bool = True,
        terminating: Terminating = Terminating.FREE,
    ) -> None:
        c = cluster.arrays
        self.node = node
        self.model: ServerModel = cluster.model(node)
        self.gpu_free = int(c.nodes[node]["gpu_free"])
        u = self.model.num_numa_nodes
        self.cores_free: list[int] = c.cores_free[node, :u].tolist()
        self.terminating = terminating
        if terminating == Terminating.FREE:
            slots = cluster.leaving_slots(node, int(cluster.costs.grace_s))
            if slots:
                self.gpu_free, self.cores_free = cluster.freed(node, slots)
        self.gpu_locality = gpu_locality
        self._rows = [int(pod) for pod in c.node_pods[node, : c.nodes[node]["num_pods"]]]
        self._cluster = cluster
        self._best: dict[tuple[int, int], AlignmentLevel | None] = {}

    @cached_property
    def residents(self) -> list[Resident]:
        """All pods that hold resources on the node, by row."""
        return self._read(None)

    def evictable(self, preemptor: Pod) -> list[Resident]:
        """Return whom the preemptor may evict, disruption budgets aside, by row.

        With `Terminating.VICTIMS` that includes those who are leaving already.
        """
        return self._read(preemptor.priority)

    def option(
        self,
        preemptor: Pod,
        victims: Sequence[Resident],
        pdb_violations: int = 0,
        topology: float = 15.0,
    ) -> NodeOption:
        """Return a victim set of this node for the scores."""
        return NodeOption(
            node=self.node,
            victims=victims,
            pdb_violations=pdb_violations,
            topology=topology,
            preemptor=preemptor,
            free_gpus=self.gpu_free.bit_count(),
        )

    def _read(self, priority: int | None) -> list[Resident]:
        """Return the pods that a preemptor of that priority may evict; None = all."""
        c, now_s = self._cluster.arrays, self._cluster.now_s
        rows = sorted(self._rows)
        specs, lives = c.pods[rows].tolist(), c.live[rows].tolist()
        cores = c.pod_cores[rows, : self.model.num_numa_nodes].tolist()
        found = []
        for row, spec, live, held in zip(rows, specs, lives, cores, strict=True):
            status, since_s = live[_STATUS_AT], live[_SINCE_AT]
            leaves = status == arrays.TERMINATING and self.terminating == Terminating.VICTIMS
            if priority is not None and not (
                spec[_PRIORITY_AT] < priority
                and (
                    leaves
                    or (
                        spec[_PREEMPTIBLE_AT]
                        and status in _EVICTABLE
                        and now_s - since_s >= spec[_PROTECTION_AT]
                    )
                )
            ):
                continue
            pdb, online = spec[_PDB_AT], bool(spec[_ONLINE_AT])
            works = status == arrays.RUNNING and not online
            found.append(
                Resident(
                    index=row,
                    priority=spec[_PRIORITY_AT],
                    start_s=float(since_s),
                    pdbs=(pdb,) if pdb >= 0 else (),
                    gpu_mask=live[_GPU_MASK_AT],
                    cores=tuple(held),
                    status=_STATUS[status],
                    online=online,
                    batch_class=spec[_BATCH_CLASS_AT],
                    group=spec[_GROUP_AT],
                    checkpoint_s=spec[_CHECKPOINT_AT],
                    progress_s=max(0, now_s - since_s - live[_OVERHEAD_AT]) if works else 0,
                )
            )
        return found

    def fits(self, preemptor: Pod, gone: Sequence[Resident], aligned: bool) -> bool:
        """Say whether the preemptor fits without the given residents, aligned if it must be."""
        gpus = self.gpu_free
        for resident in gone:
            gpus |= resident.gpu_mask
        # A search asks hundreds of times, mostly about sets that free too few GPUs.
        if gpus.bit_count() < preemptor.gpus:
            return False
        cores = list(map(sum, zip(self.cores_free, *(r.cores for r in gone), strict=True)))
        if sum(cores) < preemptor.cores:
            return False
        wanted = preemptor.gpus if self.gpu_locality else 0
        if not aligned:
            return True
        best = self._best_level(wanted, preemptor.cores)
        if best is not None and best > LAST_ALIGNED:
            return True
        # Domains are nested, so the filter accepts whatever fits one of its widest.
        return any(domain.holds(gpus, cores, wanted, preemptor.cores) for domain in self._aligned)

    def _best_level(self, gpus: int, cores: int) -> AlignmentLevel | None:
        if (gpus, cores) not in self._best:
            self._best[gpus, cores] = self.model.best_level(gpus, cores)
        return self._best[gpus, cores]

    @cached_property
    def _aligned(self) -> list[Domain]:
        """Return the widest domains that the guaranteed filter accepts."""
        return [domain for domain in self.model.domains if domain.level == LAST_ALIGNED]

    def topology(self, victims: Sequence[Resident]) -> float:
        """Return the paper's T of the victims: how close together their cores lie."""
        numa_nodes = {u for victim in victims for u, cores in enumerate(victim.cores) if cores}
        sockets = {self.model.numa_socket[u] for u in numa_nodes}
        return topology_score(len(numa_nodes), len(sockets))


def disruptions_left(cluster: ClusterState) -> list[int]:
    """Return how many disruptions each budget still allows, by the index in `Resident.pdbs`."""
    found: list[int] = cluster.arrays.pdb_left.tolist()
    return found


def _places(dtype: np.dtype[Any], *names: str) -> tuple[int, ...]:
    return tuple((dtype.names or ()).index(name) for name in names)


# Whole rows become tuples of Python numbers at once, which is faster than field by field.
_PRIORITY_AT, _PDB_AT, _GROUP_AT, _ONLINE_AT, _BATCH_CLASS_AT = _places(
    schema.POD_DTYPE, "priority", "pdb", "group", "online", "batch_class"
)
_CHECKPOINT_AT, _PROTECTION_AT, _PREEMPTIBLE_AT = _places(
    schema.POD_DTYPE, "checkpoint_s", "protection_s", "preemptible"
)
_STATUS_AT, _SINCE_AT, _OVERHEAD_AT, _GPU_MASK_AT = _places(
    schema.LIVE_DTYPE, "status", "since_s", "overhead_s", "gpu_mask"
)
_EVICTABLE = (arrays.RUNNING, arrays.STARTING)
_STATUS = {int(status): status for status in PodStatus}
