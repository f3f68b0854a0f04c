"""One node as the Python-level searches see it: who lives there, and what fits without whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flextopo.baselines.scores import topology_score
from flextopo.cluster.arrays import RUNNING, STARTING
from flextopo.cluster.pods import Pod
from flextopo.cluster.server_model import AlignmentLevel, ServerModel
from flextopo.cluster.state import ClusterState


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

    def evictable(self, preemptor: Pod) -> list[Resident]:
        """Return whom the preemptor may evict, disruption budgets aside, by row."""
        c, found = self._cluster.arrays, []
        now, u = self._cluster.now_s, self.model.num_numa_nodes
        for row in sorted(self._rows):
            spec, live = c.pods[row], c.live[row]
            if (
                spec["preemptible"]
                and live["status"] in (RUNNING, STARTING)
                and now - live["since_s"] >= spec["protection_s"]
                and spec["priority"] < preemptor.priority
            ):
                pdb = int(spec["pdb"])
                found.append(
                    Resident(
                        index=row,
                        priority=int(spec["priority"]),
                        start_s=float(live["since_s"]),
                        pdbs=(pdb,) if pdb >= 0 else (),
                        gpu_mask=int(live["gpu_mask"]),
                        cores=tuple(c.pod_cores[row, :u].tolist()),
                    )
                )
        return found

    def fits(self, preemptor: Pod, gone: Iterable[Resident], aligned: bool) -> bool:
        """Say whether the preemptor fits without the given residents, aligned if it must be."""
        gpus, cores = self.gpu_free, list(self.cores_free)
        for resident in gone:
            gpus |= resident.gpu_mask
            cores = [a + b for a, b in zip(cores, resident.cores, strict=True)]
        if gpus.bit_count() < preemptor.gpus or sum(cores) < preemptor.cores:
            return False
        if not aligned:
            return True
        wanted = preemptor.gpus if self.gpu_locality else 0
        best = self.model.best_level(wanted, preemptor.cores)
        if best == AlignmentLevel.CROSS_SOCKET:
            return True
        # One NUMA node lies in one socket, so the ladder accepts whatever fits a socket.
        for socket in range(self.model.num_sockets):
            inside = [u for u, s in enumerate(self.model.numa_socket) if s == socket]
            free = sum(gpus >> gpu & 1 for gpu, u in enumerate(self.model.gpu_numa) if u in inside)
            if free >= wanted and sum(cores[u] for u in inside) >= preemptor.cores:
                return True
        return False

    def topology(self, victims: Sequence[Resident]) -> float:
        """Return the paper's T of the victims: how close together their cores lie."""
        numa_nodes = {u for victim in victims for u, cores in enumerate(victim.cores) if cores}
        sockets = {self.model.numa_socket[u] for u in numa_nodes}
        return topology_score(len(numa_nodes), len(sockets))
