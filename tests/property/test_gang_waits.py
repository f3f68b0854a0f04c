"""Gangs: of ways that cost the same the one that waits least, against every way to seat the members."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import small_gangs
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.cluster.state.arrays import TERMINATING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.model import preset
from flextopo.cluster.topology.network import Network

NOW_S = 100_000
GANGS = ((8, 8), (8, 8, 8), (8, 4), (4, 4), (8, 4, 4))


def cluster_of(
    servers: list[list[tuple[int, int]]], sizes: tuple[int, ...], leaves: tuple[int, ...]
) -> tuple[ClusterState, Pod]:
    """Return servers with pods of so many GPUs that are gone so long from now, or run if that is 0, and a
    gang.
    """
    pods, ends, where = list[Pod](), list[int](), list[int]()
    for node, here in enumerate(servers):
        for gpus, end_s in here:
            at = len(pods)
            pods.append(Pod(at, f"b{at}", gpus, 7 * gpus, 100, checkpoint_s=900))
            ends.append(end_s)
            where.append(node)
    first = len(pods)
    pods += [
        Pod(first + at, f"g{at}", gpus, 7 * gpus, 1000, online=True, group=9)
        for at, gpus in enumerate(sizes)
    ]
    network = Network(leaves, (0,) * len(leaves))
    cluster = ClusterState.from_pods(
        (preset("a100"),), (0,) * len(servers), pods, now_s=NOW_S, network=network
    )
    cluster.arrays.pods["preferred_tier"][first:] = NetworkLevel.LEAF
    for pod, node in enumerate(where):
        cluster.start(pod, node)
        live = cluster.arrays.live[pod]
        live["since_s"] = NOW_S - 1000
        if ends[pod] > 0:
            live["status"], live["next_s"] = TERMINATING, NOW_S + ends[pod]
    return cluster, pods[first]


def a_server(end_s: st.SearchStrategy[int]) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Draw the pods of a server: a large one or two small ones, each with its end."""
    small = st.tuples(st.just(4), end_s)
    return st.one_of(st.lists(st.tuples(st.just(8), end_s), min_size=1, max_size=1), st.tuples(
        small, small
    ).map(list))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(a_server(st.sampled_from((0, 1, 5, 12, 30))), min_size=5, max_size=5),
    st.sampled_from(GANGS),
    st.sampled_from((1, 16)),
)
def test_of_ways_that_cost_the_same_the_one_that_waits_least_is_found(
    servers: list[list[tuple[int, int]]], sizes: tuple[int, ...], k: int
) -> None:
    cluster, gang = cluster_of(servers, sizes, (0, 0, 0, 1, 1))
    true = small_gangs.brute_force(cluster, gang, aligned=False)
    assert true is not None
    assert cluster.candidates(gang, False, k)[0].cost_gpu_s == pytest.approx(true)


@pytest.mark.parametrize("sizes", [(8,) * 16, (8,) * 8 + (4,) * 8])
def test_a_server_that_is_free_soon_is_not_left_out_among_many(sizes: tuple[int, ...]) -> None:
    ends = [30] * 40 + [1] * 16
    servers = [[(8, end_s)] for end_s in ends]
    cluster, gang = cluster_of(servers, sizes, (0,) * len(servers))
    assert cluster.candidates(gang, False, 1)[0].wait_s == 1


def test_members_of_a_guaranteed_gang_wait_for_aligned_seats() -> None:
    # A GPU is free on each socket: one member fits, and is aligned once the pod that is leaving is gone.
    servers = [[(3, 0), (3, 12)], [(3, 0), (3, 5)]]
    cluster, gang = cluster_of(servers, (2, 2, 2), (0, 0))
    soon = cluster.candidates(gang, True, 1)[0]
    assert (soon.victims, soon.wait_s, cluster.is_aligned(soon, gang)) == ((), 12, True)
    assert cluster.cost_of(replace(soon, cost_gpu_s=math.nan), gang) == soon.cost_gpu_s


MIXED = ([3, 3], [4, 2], [3, 2, 3], [2, 2, 2], [8], [4, 4])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(MIXED), st.integers(0, 7)), min_size=3, max_size=5),
    st.sampled_from(((2, 2), (4, 2), (4, 4, 2), (2, 2, 2))),
)
def test_seats_of_guaranteed_gangs_are_aligned_and_cost_what_the_search_says(
    servers: list[tuple[list[int], int]], sizes: tuple[int, ...]
) -> None:
    full = [
        [(gpus, 7 if leaving >> i & 1 else 0) for i, gpus in enumerate(mix)]
        for mix, leaving in servers
    ]
    cluster, gang = cluster_of(full, sizes, (0,) * len(full))
    for found in cluster.candidates(gang, True, 16):
        assert cluster.is_aligned(found, gang)
        nodes = {seat.pod: seat.node for seat in found.seats}
        again = cluster.gang_candidate(gang, nodes, found.victims, aligned=True)
        assert again == replace(found, cost_gpu_s=math.nan)
        assert cluster.cost_of(again, gang) == pytest.approx(found.cost_gpu_s)
