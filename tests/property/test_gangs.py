"""Gangs: the cheapest candidate against every victim set and every way to seat the members."""

from __future__ import annotations

from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.model import preset
from flextopo.cluster.topology.network import Network

NETWORK = Network((0, 0, 1), (0, 0, 0))
SIZES = ((2, 4, 2), (4, 4), (8,), (4,), (2, 2, 2), ())
NOW_S = 100_000


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ClusterState, Pod, bool]:
    """Draw three full or half full servers on two leaves, and a gang that is pending."""
    model = preset(draw(st.sampled_from(("a100", "rtx4090"))))
    pods, where = list[Pod](), list[int]()
    for node in range(3):
        for gpus in draw(st.sampled_from(SIZES)):
            pods.append(
                Pod(
                    index=len(pods),
                    name=f"b{len(pods)}",
                    gpus=gpus,
                    cores=7 * gpus,
                    priority=draw(st.sampled_from((100, 100, 500, 2000))),
                    batch_class=draw(st.integers(0, 1)),
                    checkpoint_s=draw(st.sampled_from((0, 900, 3600))),
                    group=draw(st.sampled_from((-1, -1, 0, 1))),
                    pdb=-1,
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
    cluster = ClusterState.from_pods((model,), (0, 0, 0), pods, now_s=NOW_S, network=NETWORK)
    required = draw(st.sampled_from((NetworkLevel.LEAF, NetworkLevel.CLUSTER)))
    cluster.arrays.pods["required_tier"][first:] = required
    cluster.arrays.pods["preferred_tier"][first:] = NetworkLevel.LEAF
    for pod, node in enumerate(where):
        cluster.start(pod, node)
        ago = draw(st.integers(0, 20_000))
        cluster.arrays.live[pod]["since_s"] = NOW_S - ago
    return cluster, pods[first], guaranteed


def brute_force(cluster: ClusterState, gang: Pod, aligned: bool) -> float | None:
    """Return the least cost of any legal victim set and any seats, None if there are none."""
    c, members = cluster.arrays, cluster.gang(gang)
    eligible = [
        pod
        for pod in range(cluster.num_pods)
        if c.live[pod]["node"] >= 0 and c.pods[pod]["priority"] < gang.priority
    ]
    sets = chain.from_iterable(combinations(eligible, n) for n in range(len(eligible) + 1))
    best: float | None = None
    for victims in sets:
        nodes_of_victims = {int(c.live[victim]["node"]) for victim in victims}
        for nodes in product(range(cluster.num_nodes), repeat=len(members)):
            if not nodes_of_victims <= set(nodes):
                continue  # nobody sits where they leave
            found = cluster.gang_candidate(gang, dict(zip(members, nodes, strict=True)), victims)
            if found is None or (aligned and not cluster.is_aligned(found, gang)):
                continue
            cost = cluster.cost_of(found, gang)
            best = cost if best is None else min(best, cost)
    return best


@settings(max_examples=40, deadline=None)
@given(clusters())
def test_the_cheapest_candidate_is_the_cheapest_of_all(
    drawn: tuple[ClusterState, Pod, bool],
) -> None:
    cluster, gang, aligned = drawn
    true = brute_force(cluster, gang, aligned)
    found = cluster.candidates(gang, aligned, 16)
    if true is None:
        assert not found
        return
    assert found[0].cost_gpu_s == pytest.approx(true)
    costs = [candidate.cost_gpu_s for candidate in found]
    assert costs == sorted(costs)
    assert len({(c.seats, c.victims) for c in found}) == len(found)
    for candidate in found:
        assert candidate.cost_gpu_s == pytest.approx(
            cluster.cost_of(cluster_candidate(cluster, gang, candidate), gang)
        )
        assert not aligned or cluster.is_aligned(candidate, gang)
        held = np.array([cluster.arrays.pods[v]["priority"] for v in candidate.victims])
        assert (held < gang.priority).all()


def cluster_candidate(cluster: ClusterState, gang: Pod, like: object) -> object:
    """Return the same decision, priced anew."""
    seats = {seat.pod: seat.node for seat in like.seats}  # type: ignore[attr-defined]
    found = cluster.gang_candidate(gang, seats, like.victims)  # type: ignore[attr-defined]
    assert found is not None
    return found
