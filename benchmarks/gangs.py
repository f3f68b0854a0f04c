"""Time the search for victims of gangs on full clusters (processor time), and how it grows with them.

    python benchmarks/gangs.py --sizes 125,250,500,1000
    python benchmarks/gangs.py --sizes 1000 --fleets all

Servers of 8 A100s on leaves of 16 are full of batch pods of 1 to 8 GPUs, a tenth of them in PodGroups over
servers. Gangs of 16 members of 8 GPUs, and of two sizes, 8 members of each, ask; the 64 cheapest
candidates are sought within a leaf and, for those that may be spread, in blocks and the cluster.
`--fleets` names others that are harder to search, see `FLEETS`, and `--kinds` gangs that are, see `KINDS`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flextopo.cluster.state.arrays import TERMINATING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.state.schema import ALL_MEMBERS
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.servers import parse_servers

MIXES = ((8,), (8,), (4, 4), (4, 2, 2), (2, 2, 2, 1, 1), (4, 4))
SMALL = ((1,) * 8, (2, 1, 1, 1, 1, 1, 1), (2, 2, 1, 1, 1, 1), (2, 2, 2, 1, 1))


class Filling(NamedTuple):
    """What the servers of a fleet are full of.

    Fields: `mixes`, GPUs of the pods of a server, drawn for each; `shared`, by which part of the pods of the
    sizes `in_groups` are in a PodGroup over servers, of `members` on average; `least`, how many of these have to
    run; `budgets`, how many disruption budgets all pods fall under, `left` to each of them; `ended`, the part of
    the pods that are terminating, over the next 30 s; `fresh`: pods have just begun, so that nearly all cost the
    same; `sidecars`, pods without a GPU on each server.
    """

    mixes: tuple[tuple[int, ...], ...] = MIXES
    shared: float = 0.3
    in_groups: tuple[int, ...] = (8,)
    members: float = 2.5
    least: int = ALL_MEMBERS
    budgets: int = 0
    left: int = 0
    ended: float = 0.0
    fresh: bool = False
    sidecars: int = 0


EVERY = (1, 2, 4, 8)
FLEETS = {
    "mixed": Filling(),
    "small pods": Filling(SMALL),
    "sidecars": Filling(sidecars=12),
    "small with sidecars": Filling(SMALL, sidecars=12),
    "both and one budget": Filling(SMALL, sidecars=12, budgets=1, left=8),
    "both and two budgets": Filling(SMALL, sidecars=12, budgets=2, left=4),
    "both and 20 budgets": Filling(SMALL, sidecars=12, budgets=20, left=2),
    "PodGroups": Filling(shared=0.9, in_groups=EVERY),
    "PodGroups of 2": Filling(shared=0.9, in_groups=EVERY, members=2.0, least=1),
    "shrinking": Filling(shared=0.9, in_groups=EVERY, members=4.0, least=2),
    "large PodGroups": Filling(shared=0.9, in_groups=EVERY, members=64.0),
    "large shrinking": Filling(shared=0.9, in_groups=EVERY, members=64.0, least=32),
    "budgets": Filling(budgets=200, left=1),
    "one budget": Filling(budgets=1, left=8),
    "groups and budgets": Filling(shared=0.9, in_groups=EVERY, least=1, budgets=200, left=2),
    "terminating": Filling(ended=0.3),
    "fresh": Filling(fresh=True),
}
KINDS = {
    "16 x 8": (8,) * 16,
    "8 x 8 + 8 x 4": (8,) * 8 + (4,) * 8,
    "8 x 4 + 8 x 2": (4,) * 8 + (2,) * 8,
    "8 x 8 + 8 x 1": (8,) * 8 + (1,) * 8,
    "8 x 2 + 8 x 1": (2,) * 8 + (1,) * 8,
    "8 x 3 + 8 x 2": (3,) * 8 + (2,) * 8,
    "8 x 1 + 8 x 0": (1,) * 8 + (0,) * 8,
}
USUAL = tuple(KINDS)[:5]
K = 64
NOW_S = 200_000


def fill_servers(servers: int, rng: np.random.Generator, f: Filling) -> tuple[list[Pod], list[int]]:
    """Return the pods that are there, and their servers."""
    pods, where, group = list[Pod](), list[int](), 0
    for node in range(servers):
        for gpus in (*f.mixes[int(rng.integers(len(f.mixes)))], *(0,) * f.sidecars):
            at = len(pods)
            shared = gpus in f.in_groups and rng.random() < f.shared
            group += int(shared and rng.random() < 1.0 / f.members)
            pods.append(
                Pod(
                    at,
                    f"b{at}",
                    gpus,
                    7 * gpus - (f.sidecars > 0 and gpus == 8) * f.sidecars or 1,
                    100,
                    checkpoint_s=900,
                    group=group if shared else -1,
                    min_members=f.least if shared else ALL_MEMBERS,
                    pdb=int(rng.integers(f.budgets)) if f.budgets else -1,
                )
            )
            where.append(node)
    return pods, where


def full_cluster(
    servers: int,
    seed: int,
    gangs: int,
    f: Filling = FLEETS["mixed"],
    kinds: Sequence[str] = USUAL,
) -> tuple[ClusterState, dict[str, list[Pod]]]:
    """Return a full cluster and gangs of each kind that are pending."""
    rng = np.random.default_rng(seed)
    fleet = parse_servers(f"{servers}*a100@leaf16")
    pods, where = fill_servers(servers, rng, f)
    asking: dict[str, list[Pod]] = {}
    for kind in kinds:
        for number in range(gangs):
            leader = len(pods)
            pods += [
                Pod(
                    leader + i,
                    f"{kind}/{number}/{i}",
                    gpus,
                    7 * gpus or 4,
                    1000,
                    TopologyRequirement.GUARANTEED,
                    online=True,
                    group=10**6 + leader,
                )
                for i, gpus in enumerate(KINDS[kind])
            ]
            asking.setdefault(kind, []).append(pods[leader])
    cluster = ClusterState.from_pods(
        fleet.models,
        fleet.node_model,
        pods,
        now_s=NOW_S,
        network=fleet.network,
        pdb_allowed=(f.left,) * f.budgets,
    )
    for pod, node in enumerate(where):
        cluster.start(pod, node)
        live = cluster.arrays.live[pod]
        live["since_s"] = NOW_S - (60 if f.fresh else int(rng.integers(100_000)))
        if f.ended and rng.random() < f.ended:
            live["status"], live["next_s"] = TERMINATING, NOW_S + int(rng.integers(31))
    for found in asking.values():
        for number, leading in enumerate(found):
            rows = list(cluster.gang(leading))
            cluster.arrays.pods["required_tier"][rows] = (
                NetworkLevel.CLUSTER if number % 2 else NetworkLevel.LEAF
            )
            cluster.arrays.pods["preferred_tier"][rows] = NetworkLevel.LEAF
    return cluster, asking


def time_fleet(
    servers: int, states: int, gangs: int, f: Filling, kinds: Sequence[str]
) -> dict[str, list[float]]:
    """Return how many milliseconds each search took, by the kind of the gang."""
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(states):
        cluster, asking = full_cluster(servers, seed, gangs, f, kinds)
        for kind, pods in asking.items():
            cluster.find(pods[0], True, K)
            for pod in pods:
                begin = time.thread_time()
                cluster.find(pod, True, K)
                spent[kind].append(1e3 * (time.thread_time() - begin))
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="125,250,500,1000", help="servers, joined by commas")
    parser.add_argument("--states", type=int, default=5, help="clusters of each size")
    parser.add_argument("--gangs", type=int, default=40, help="gangs of each kind a cluster")
    parser.add_argument("--fleets", default="mixed", help=f"all, or some of: {', '.join(FLEETS)}")
    parser.add_argument("--kinds", default="", help=f"all, or some of: {', '.join(KINDS)}")
    options = parser.parse_args()
    kinds = list(KINDS) if options.kinds == "all" else options.kinds.split(",")
    kinds = kinds if options.kinds else list(USUAL)
    sizes = [int(size) for size in options.sizes.split(",")]
    fleets = list(FLEETS) if options.fleets == "all" else options.fleets.split(",")
    full_cluster(sizes[0], 0, 1)[0].find(full_cluster(sizes[0], 0, 1)[1]["16 x 8"][0], True, K)
    print("fleet             servers  gang             p50 ms   p99 ms   max ms   us a server")
    for name in fleets:
        for servers in sizes:
            spent = time_fleet(servers, options.states, options.gangs, FLEETS[name], kinds)
            for kind, times in spent.items():
                p50, p99, most = np.percentile(times, (50, 99, 100))
                a_server = 1e3 * p50 / servers
                print(
                    f"{name:16}  {servers:7}  {kind:14} {p50:8.2f} {p99:8.2f} {most:8.2f} {a_server:13.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
