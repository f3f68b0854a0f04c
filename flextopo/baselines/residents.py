"""One node as the Python-level searches see it: who lives there, and what fits without whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flextopo.baselines.scores import topology_score
from flextopo.cluster.state.arrays import RUNNING, STARTING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import LAST_ALIGNED, AlignmentLevel, Domain
from flextopo.cluster.topology.model import ServerModel


@dataclass(frozen=True, eq=False)
class Resident:
    """A pod that runs on the node.

    Attributes:
        index: row in the cluster's table.
        priority: greater is more important.
        start_s: when it got its resources.
        pdbs: the disruption budgets it falls under.
        gpu_mask: GPUs it holds, bit i = GPU i.
        cores: cores it holds in each NUMA node.
    """

    index: int
    priority: int
    start_s: float
    pdbs: tuple[int, ...]
    gpu_mask: int
    cores: tuple[int, ...]


class NodeView:
    """Free resources and residents of one node, copied out of the arrays once a decision.

    Args:
        cluster: the cluster, not modified.
        node: index of the node.
        gpu_locality: False gives the authors' CPU-only alignment test.
    """

    def __init__(self, cluster: ClusterState, node: int, gpu_locality: bool = True) -> None:
        c = cluster.arrays
        self.node = node
        self.model: ServerModel = cluster.model(node)
        self.gpu_free = int(c.nodes[node]["gpu_free"])
        u = self.model.num_numa_nodes
        self.cores_free: list[int] = c.cores_free[node, :u].tolist()
        self.gpu_locality = gpu_locality
        self._rows = [int(pod) for pod in c.node_pods[node, : c.nodes[node]["num_pods"]]]
        self._cluster = cluster
        self._best: dict[tuple[int, int], AlignmentLevel | None] = {}

    def evictable(self, preemptor: Pod) -> list[Resident]:
        """Return whom the preemptor may evict, disruption budgets aside, by row."""
        c, found = self._cluster.arrays, []
        now, u = self._cluster.now_s, self.model.num_numa_nodes
        rows = sorted(self._rows)
        cores = c.pod_cores[rows, :u].tolist()
        for row, spec, live, held in zip(rows, c.pods[rows], c.live[rows], cores, strict=True):
            since_s = int(live["since_s"])
            if (
                spec["preemptible"]
                and live["status"] in (RUNNING, STARTING)
                and now - since_s >= spec["protection_s"]
                and spec["priority"] < preemptor.priority
            ):
                pdb = int(spec["pdb"])
                found.append(
                    Resident(
                        index=row,
                        priority=int(spec["priority"]),
                        start_s=float(since_s),
                        pdbs=(pdb,) if pdb >= 0 else (),
                        gpu_mask=int(live["gpu_mask"]),
                        cores=tuple(held),
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
