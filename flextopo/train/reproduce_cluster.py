"""A cluster whose pods come and go by hand, outside the simulator: rows are used again."""

from __future__ import annotations

import numpy as np

from flextopo.cluster.state import arrays
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.placement import find_node
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.model import ServerModel

NOW_S = 1_000_000_000
"""The clock stands still; a start time is any second before it, so that ties are rare."""

NOWHERE = -1


class PodTable:
    """A `ClusterState` of equal servers, and which rows of its table are free.

    Args:
        model: the server.
        servers: how many.
        online_priority: of preemptors.
        batch_priority: of batch pods.

    Attributes:
        state: the cluster; `check_invariants` holds after every call.
        held_gpus: GPUs that pods hold.
        touched: nodes whose pods changed since somebody last cleared the set.
    """

    def __init__(
        self, model: ServerModel, servers: int, online_priority: int, batch_priority: int
    ) -> None:
        # One row for each GPU and each single-core pod, and one for the pod that is to be placed.
        rows = servers * (model.num_gpus + model.num_numa_nodes) + 1
        blank = [Pod(i, f"pod/{i}", 0, 1, batch_priority) for i in range(rows)]
        self.state = ClusterState.from_pods([model], [0] * servers, blank, now_s=NOW_S)
        self.state.arrays.live["status"] = arrays.DONE
        self.priorities = (batch_priority, online_priority)
        self.held_gpus = 0
        self.touched: set[int] = set()
        self._free = list(range(rows - 1, -1, -1))

    def new(self, gpus: int, cores: int, online: bool) -> int:
        """Write a pending pod into a free row and return the row."""
        row = self._free.pop()
        c = self.state.arrays
        spec = c.pods[row]
        spec["gpus"], spec["cores"], spec["online"] = gpus, cores, online
        spec["priority"] = self.priorities[online]
        spec["requirement"] = (
            TopologyRequirement.BEST_EFFORT if online else TopologyRequirement.NONE
        )
        c.live[row]["status"] = arrays.PENDING
        return row

    def find(self, row: int, aligned: bool, by_alignment: bool) -> int:
        """Return the node where a pending pod fits without preemption, `NOWHERE` if none."""
        return int(find_node(self.state.arrays, row, aligned, by_alignment))

    def emptiest(self, gpus: int, cores: int) -> int:
        """Return the first of the nodes with the most free GPUs that fit, `NOWHERE` if none."""
        nodes = self.state.arrays.nodes
        free = np.bitwise_count(nodes["gpu_free"]).astype(np.int64)
        free[(free < gpus) | (nodes["cores_free"] < cores)] = NOWHERE
        node = int(free.argmax())
        return node if free[node] != NOWHERE else NOWHERE

    def start(self, row: int, node: int) -> int:
        """Let a pending pod run where the node puts it; return its alignment level."""
        self.state.start(row, node)
        self.held_gpus += int(self.state.arrays.pods[row]["gpus"])
        self.touched.add(node)
        return int(self.state.arrays.live[row]["level"])

    def start_on_core(self, row: int, node: int, numa_node: int) -> None:
        """Let a pending pod of one core run on a core of the given NUMA node."""
        c = self.state.arrays
        cores = np.zeros(c.cores_free.shape[1], np.int16)
        cores[numa_node] = 1
        arrays.allocate(c, row, node, 0, cores)
        c.live[row]["status"] = arrays.RUNNING
        c.live[row]["since_s"] = NOW_S
        self.touched.add(node)

    def draw_starts(self, rng: np.random.Generator, again: bool) -> None:
        """Draw start times for new pods of the nodes touched, or for all their pods `again`."""
        c = self.state.arrays
        for node in sorted(self.touched):
            rows = c.node_pods[node, : c.nodes[node]["num_pods"]]
            if not again:
                rows = rows[c.live["since_s"][rows] == NOW_S]
            c.live["since_s"][rows] = rng.integers(0, NOW_S, len(rows))

    def remove(self, row: int) -> None:
        """Take a pod away, whether it waits, leaves or is evicted; its row is free again."""
        c = self.state.arrays
        if c.live[row]["status"] == arrays.RUNNING:
            gpus = int(c.pods[row]["gpus"])
            c.totals[0]["online_gpus" if c.pods[row]["online"] else "batch_gpus"] -= gpus
            self.held_gpus -= gpus
            self.touched.add(int(c.live[row]["node"]))
            arrays.release(c, row)
        c.live[row]["status"] = arrays.DONE
        self._free.append(row)

    def preempt(self, row: int, candidate: Candidate) -> int:
        """Evict a candidate's victims, start the pending pod there and return its level."""
        for victim in candidate.victims:
            self.remove(victim)
        return self.start(row, candidate.node)
