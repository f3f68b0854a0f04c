"""Three servers on two leaves with a pending gang, and the least loss over every way to seat it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product

from hypothesis import strategies as st

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.state.schema import ALL_MEMBERS
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.model import preset
from flextopo.cluster.topology.network import Network

NETWORK = Network((0, 0, 1), (0, 0, 0))
SIZES = ((2, 4, 2), (4, 4), (8,), (4,), (2, 2, 2), ())
FULL = ((2, 4, 2), (4, 4), (8,))
NOW_S = 100_000


@st.composite
def clusters(
    draw: st.DrawFn, full: bool = False, budgets: bool = False, shrinking: bool = False
) -> tuple[ClusterState, Pod, bool]:
    """Draw three servers on two leaves, full ones or also others, and a gang that is pending.

    With `shrinking`, PodGroups that need not all run.
    """
    least = st.sampled_from((1, 2, 3, ALL_MEMBERS) if shrinking else (ALL_MEMBERS,))
    min_members = {-1: ALL_MEMBERS, 0: draw(least), 1: draw(least)}
    model = preset(draw(st.sampled_from(("a100", "rtx4090"))))
    pods, where = list[Pod](), list[int]()
    for node in range(3):
        for gpus in draw(st.sampled_from(FULL if full else SIZES)):
            pods.append(
                Pod(
                    index=len(pods),
                    name=f"b{len(pods)}",
                    gpus=gpus,
                    cores=7 * gpus,
                    priority=draw(st.sampled_from((100, 100, 500, 2000))),
                    batch_class=draw(st.integers(0, 1)),
                    checkpoint_s=draw(st.sampled_from((0, 900, 3600))),
                    group=(
                        group := draw(st.sampled_from((-1, 0, 1) if shrinking else (-1, -1, 0, 1)))
                    ),
                    min_members=min_members[group],
                    pdb=draw(st.sampled_from((-1, 0, 1))) if budgets else -1,
                )
            )
            where.append(node)
    first = len(pods)
    guaranteed = draw(st.booleans())
    sizes = draw(st.sampled_from(((4, 4), (8, 4), (8, 8), (2, 2, 2), (8, 4, 4), (4, 2), (1, 1, 1))))
    pods += [
        Pod(
            index=first + at,
            name=f"g{at}",
            gpus=gpus,
            cores=7 * gpus,
            priority=1000,
            online=True,
            group=9,
            requirement=TopologyRequirement(2 if guaranteed else 1),
        )
        for at, gpus in enumerate(sizes)
    ]
    allowed = draw(st.sampled_from(((0, 1), (1, 1), (1, 2))))
    cluster = ClusterState.from_pods(
        (model,), (0, 0, 0), pods, now_s=NOW_S, network=NETWORK, pdb_allowed=allowed
    )
    required = draw(st.sampled_from((NetworkLevel.LEAF, NetworkLevel.CLUSTER)))
    cluster.arrays.pods["required_tier"][first:] = required
    cluster.arrays.pods["preferred_tier"][first:] = NetworkLevel.LEAF
    for pod, node in enumerate(where):
        # Anywhere on the server, so that what is free may lie on two sockets.
        free = [gpu for gpu in range(8) if int(cluster.arrays.nodes[node]["gpu_free"]) >> gpu & 1]
        anywhere = draw(st.permutations(free))[: pods[pod].gpus]
        cluster.start(pod, node, anywhere if draw(st.booleans()) else None)
        ago = draw(st.integers(0, 20_000))
        cluster.arrays.live[pod]["since_s"] = NOW_S - ago
    return cluster, pods[first], guaranteed


def servers_of(
    model: str,
    held: Sequence[Sequence[tuple[int, int, int]]],
    members: Sequence[int],
    left: int,
) -> tuple[ClusterState, Pod]:
    """Return servers with pods of (GPUs, disruption budget, seconds that they run), and a pending gang."""
    pods, running = list[Pod](), list[tuple[int, int]]()
    for node, here in enumerate(held):
        for gpus, pdb, ago in here:
            at = len(pods)
            pods.append(Pod(at, f"b{at}", gpus, 7 * gpus, 100, pdb=pdb))
            running.append((node, ago))
    leader = len(pods)
    for i, gpus in enumerate(members):
        pods.append(Pod(leader + i, f"g{i}", gpus, 7 * gpus, 1000, online=True, group=9))
    cluster = ClusterState.from_pods(
        (preset(model),), (0,) * len(held), pods, now_s=NOW_S, network=NETWORK, pdb_allowed=(left,)
    )
    cluster.arrays.pods["required_tier"][leader:] = NetworkLevel.LEAF
    cluster.arrays.pods["preferred_tier"][leader:] = NetworkLevel.LEAF
    for pod, (node, ago) in enumerate(running):
        cluster.start(pod, node)
        cluster.arrays.live[pod]["since_s"] = NOW_S - ago
    return cluster, pods[leader]


def brute_force(
    cluster: ClusterState, gang: Pod, aligned: bool, minimal: bool = False
) -> float | None:
    """Return the least cost of any legal victim set and any seats, None if there are none.

    With `minimal`, only of sets without any of which the members would not fit on the same servers.
    """
    c, members = cluster.arrays, cluster.gang(gang)
    eligible = [
        pod
        for pod in range(cluster.num_pods)
        if c.live[pod]["node"] >= 0 and c.pods[pod]["priority"] < gang.priority
    ]
    sets = chain.from_iterable(combinations(eligible, n) for n in range(len(eligible) + 1))
    best: float | None = None
    for victims in sets:
        used = Counter(
            int(c.pods[victim]["pdb"]) for victim in victims if c.pods[victim]["pdb"] >= 0
        )
        if any(count > c.pdb_left[pdb] for pdb, count in used.items()):
            continue
        nodes_of_victims = {int(c.live[victim]["node"]) for victim in victims}
        for nodes in product(range(cluster.num_nodes), repeat=len(members)):
            if not nodes_of_victims <= set(nodes):
                continue  # nobody sits where they leave
            seats = dict(zip(members, nodes, strict=True))
            found = legal(cluster, gang, aligned, seats, victims)
            if found is None:
                continue
            if minimal and any(
                legal(cluster, gang, aligned, seats, [v for v in victims if v != victim])
                for victim in victims
            ):
                continue
            cost = cluster.cost_of(found, gang)
            best = cost if best is None else min(best, cost)
    return best


def legal(
    cluster: ClusterState,
    gang: Pod,
    aligned: bool,
    seats: Mapping[int, int],
    victims: Sequence[int],
) -> Candidate | None:
    """Return the candidate of a victim set and seats, None if it is none."""
    found = cluster.gang_candidate(gang, seats, victims)
    return None if found is None or (aligned and not cluster.is_aligned(found, gang)) else found
