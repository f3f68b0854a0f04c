"""Each candidate's server as a graph: its GPUs, and which NUMA node and socket each hangs on.

The fixed features say how well the pod would sit; the graph leaves it to a network to find out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import kernel
from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.state.candidates import CandidateArrays, freed
from flextopo.cluster.state.placement import place
from flextopo.cluster.topology.model import MAX_GPUS, MAX_NUMA_NODES

GPU_FEATURES: dict[str, str] = {
    "exists": "1 if the server has this GPU",
    "free": "1 if nobody holds it",
    "freed": "1 if a victim holds it",
    "taken": "1 if the preemptor would get it",
    "online": "1 if an online pod holds it",
    "cores": "share of its NUMA node's cores that are free once the victims are gone",
    "numa": "number of its NUMA node / 32",
    "socket": "number of its socket / 32",
}
"""Features of a GPU; two GPUs with the same `numa` or `socket` are neighbours."""

NUM_GPU = len(GPU_FEATURES)


def empty_graph(k: int) -> npt.NDArray[np.float32]:
    """Return memory for the graphs of K candidates, (K, 16, 8) float32."""
    return np.zeros((k, MAX_GPUS, NUM_GPU), np.float32)


@kernel
def observe_graph(
    c: Cluster, pod: int, found: CandidateArrays, count: int, graph: npt.NDArray[np.float32]
) -> None:
    """Write the graph of each candidate's server.

    Args:
        c: the cluster, not modified.
        pod: the preemptor.
        found: its candidates.
        count: how many there are; at most the rows of `graph`.
        graph: (K, 16, 8) output; rows beyond `count` are cleared.
    """
    cores, taken = c.scratch[0], c.scratch[1]
    for i in range(graph.shape[0]):
        for gpu in range(graph.shape[1]):
            for j in range(graph.shape[2]):
                graph[i, gpu, j] = 0.0
        if i >= count:
            continue
        node, slots = found.node[i], found.slots[i]
        which = c.nodes[node]["model"]
        model = c.models[which]
        free = c.nodes[node]["gpu_free"]
        after = freed(c, node, slots, cores)
        _, mask = place(
            c.models,
            which,
            after,
            cores,
            c.pods[pod]["gpus"],
            c.pods[pod]["cores"],
            taken,
        )
        online = 0
        for slot in range(c.nodes[node]["num_pods"]):
            other = c.node_pods[node, slot]
            if c.pods[other]["online"]:
                online |= c.live[other]["gpu_mask"]
        for gpu in range(model["num_gpus"]):
            g = graph[i, gpu]
            numa = 0
            while (model["numa_gpus"][numa] >> gpu) & 1 == 0:
                numa += 1
            g[0] = 1.0
            g[1] = (free >> gpu) & 1
            g[2] = ((after & ~free) >> gpu) & 1
            g[3] = (mask >> gpu) & 1
            g[4] = (online >> gpu) & 1
            g[5] = cores[numa] / max(model["numa_cores"][numa], 1)
            g[6] = numa / MAX_NUMA_NODES
            g[7] = model["numa_socket"][numa] / MAX_NUMA_NODES
