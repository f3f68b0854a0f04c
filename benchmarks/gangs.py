"""Time the search for victims of gangs on full clusters (processor time), and how it grows with them.

    python benchmarks/gangs.py --sizes 125,250,500,1000

Servers of 8 A100s on leaves of 16 are full of batch pods of 1 to 8 GPUs, a tenth of them in PodGroups over
servers. Gangs of 16 members of 8 GPUs, and of two sizes, 8 members of each, ask; the 64 cheapest
candidates are sought within a leaf and, for those that may be spread, in blocks and the cluster.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.servers import parse_servers

MIXES = ((8,), (8,), (4, 4), (4, 2, 2), (2, 2, 2, 1, 1), (4, 4))
KINDS = {
    "16 x 8": (8,) * 16,
    "8 x 8 + 8 x 4": (8,) * 8 + (4,) * 8,
    "8 x 4 + 8 x 2": (4,) * 8 + (2,) * 8,
    "8 x 8 + 8 x 1": (8,) * 8 + (1,) * 8,
    "8 x 2 + 8 x 1": (2,) * 8 + (1,) * 8,
}
K = 64
NOW_S = 200_000


def full_cluster(servers: int, seed: int, gangs: int) -> tuple[ClusterState, dict[str, list[Pod]]]:
    """Return a full cluster and gangs of each kind that are pending."""
    rng = np.random.default_rng(seed)
    fleet = parse_servers(f"{servers}*a100@leaf16")
    pods, where, group = list[Pod](), list[int](), 0
    for node in range(servers):
        for gpus in MIXES[int(rng.integers(len(MIXES)))]:
            at = len(pods)
            shared = gpus == 8 and rng.random() < 0.3
            group += int(shared and rng.random() < 0.4)
            pods.append(
                Pod(
                    at,
                    f"b{at}",
                    gpus,
                    7 * gpus,
                    100,
                    checkpoint_s=900,
                    group=group if shared else -1,
                )
            )
            where.append(node)
    asking: dict[str, list[Pod]] = {}
    for kind, sizes in KINDS.items():
        for number in range(gangs):
            leader = len(pods)
            pods += [
                Pod(
                    leader + i,
                    f"{kind}/{number}/{i}",
                    gpus,
                    7 * gpus,
                    1000,
                    TopologyRequirement.GUARANTEED,
                    online=True,
                    group=10**6 + leader,
                )
                for i, gpus in enumerate(sizes)
            ]
            asking.setdefault(kind, []).append(pods[leader])
    cluster = ClusterState.from_pods(
        fleet.models, fleet.node_model, pods, now_s=NOW_S, network=fleet.network
    )
    for pod, node in enumerate(where):
        cluster.start(pod, node)
        cluster.arrays.live[pod]["since_s"] = NOW_S - int(rng.integers(100_000))
    for found in asking.values():
        for number, leading in enumerate(found):
            rows = list(cluster.gang(leading))
            cluster.arrays.pods["required_tier"][rows] = (
                NetworkLevel.CLUSTER if number % 2 else NetworkLevel.LEAF
            )
            cluster.arrays.pods["preferred_tier"][rows] = NetworkLevel.LEAF
    return cluster, asking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="125,250,500,1000", help="servers, joined by commas")
    parser.add_argument("--states", type=int, default=5, help="clusters of each size")
    parser.add_argument("--gangs", type=int, default=40, help="gangs of each kind a cluster")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    full_cluster(sizes[0], 0, 1)[0].find(full_cluster(sizes[0], 0, 1)[1]["16 x 8"][0], True, K)
    print("servers  gang             p50 ms   p99 ms   us a server   candidates")
    for servers in sizes:
        spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
        count = dict.fromkeys(KINDS, 0)
        for seed in range(options.states):
            cluster, asking = full_cluster(servers, seed, options.gangs)
            for kind, pods in asking.items():
                cluster.find(pods[0], True, K)
                for pod in pods:
                    begin = time.thread_time()
                    _, kept = cluster.find(pod, True, K)
                    spent[kind].append(1e3 * (time.thread_time() - begin))
                    count[kind] += kept
        for kind, times in spent.items():
            p50, p99 = np.percentile(times, (50, 99))
            mean = count[kind] / len(times)
            print(
                f"{servers:7}  {kind:14} {p50:8.2f} {p99:8.2f} {1e3 * p50 / servers:13.2f} {mean:12.1f}"
            )


if __name__ == "__main__":
    main()
