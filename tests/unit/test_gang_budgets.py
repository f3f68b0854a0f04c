"""A disruption budget that leaves fewer victims than a gang takes: nothing is searched any more."""

from __future__ import annotations

import re

import pytest

from flextopo.cluster.errors import PodError
from flextopo.cluster.state.arrays import MARKS, TERMINATING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.gang_budgets import leave_too_few
from flextopo.cluster.state.gang_scratch import DEAR, LEVEL, LEVELS, MOST_DEPTH, NUM_DEAR, SHORT
from flextopo.cluster.state.gangs import gang_of
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.model import preset
from flextopo.cluster.topology.network import Network

NOW_S = 100_000


def servers(
    held: tuple[tuple[tuple[int, int], ...], ...], left: int, members: tuple[int, ...]
) -> tuple[ClusterState, Pod]:
    """Return servers of 8 GPUs with pods of (GPUs, disruption budget), and a gang that is pending."""
    pods, where = list[Pod](), list[int]()
    for node, here in enumerate(held):
        for gpus, pdb in here:
            at = len(pods)
            pods.append(Pod(at, f"b{at}", gpus, 4 * gpus, 100, checkpoint_s=900, pdb=pdb))
            where.append(node)
    leader = len(pods)
    for i, gpus in enumerate(members):
        pods.append(Pod(leader + i, f"g{i}", gpus, 4 * gpus or 1, 1000, online=True, group=7))
    network = Network((0,) * len(held), (0,) * len(held))
    cluster = ClusterState.from_pods(
        (preset("a100"),),
        (0,) * len(held),
        pods,
        now_s=NOW_S,
        network=network,
        pdb_allowed=(left, 9),
    )
    rows = list(cluster.gang(pods[leader]))
    cluster.arrays.pods["required_tier"][rows] = NetworkLevel.LEAF
    cluster.arrays.pods["preferred_tier"][rows] = NetworkLevel.LEAF
    for pod, node in enumerate(where):
        cluster.start(pod, node)
    return cluster, pods[leader]


def leaves_few(cluster: ClusterState, gang: Pod, budgets: tuple[int, ...] = (0,)) -> bool:
    """Say whether disruption budgets together leave too few."""
    c = cluster.arrays
    c.gang_marks[DEAR : DEAR + len(budgets)] = budgets
    return bool(leave_too_few(c, cluster.costs, gang_of(c, gang.index, False), len(budgets)))


FOURS = ((4, 0), (4, 0))


@pytest.mark.parametrize(
    ("held", "members", "takes"),
    [
        ((FOURS,) * 3, (8, 8), 4),
        ((FOURS,) * 3, (8, 4), 3),
        ((FOURS,) * 3, (4, 4, 4), 3),
        ((FOURS, ((4, 0), (4, 1)), ((8, 1),)), (8, 8), 1),  # others are not its victims
        ((FOURS, FOURS, ()), (8, 8), 2),  # an empty server
        ((FOURS, ((4, 0),), ((4, 0),)), (4, 4, 4), 1),
        ((((2, 0),) * 4, ((2, 0), (6, 0))), (8, 2), 3),
        ((((1, 0),) * 8,) * 2, (8, 1), 9),
    ],
)
def test_the_least_victims_that_a_gang_takes(
    held: tuple[tuple[tuple[int, int], ...], ...], members: tuple[int, ...], takes: int
) -> None:
    for left in range(takes + 2):
        cluster, gang = servers(held, left, members)
        assert leaves_few(cluster, gang) == (left < takes), left
        assert bool(cluster.candidates(gang, False)) == (left >= takes), left


def test_what_is_gone_before_a_victim_would_be_counts_as_free() -> None:
    cluster, gang = servers((FOURS, FOURS), 3, (8, 8))
    assert leaves_few(cluster, gang)
    live = cluster.arrays.live[0]
    live["status"], live["next_s"] = TERMINATING, NOW_S + 1
    assert not leaves_few(cluster, gang)
    live["next_s"] = NOW_S + 10_000  # longer than victims have
    assert leaves_few(cluster, gang)


def test_what_several_budgets_leave_together() -> None:
    cluster, gang = servers((((8, 0),), ((8, 0),), ((8, 1),), ((8, 1),)), 1, (8, 8, 8))
    for left in (1, 2):
        cluster.arrays.pdb_left[1] = left
        assert not leaves_few(cluster, gang, (0,))
        assert not leaves_few(cluster, gang, (1,))
        assert leaves_few(cluster, gang, (0, 1)) == (left == 1)
        assert bool(cluster.candidates(gang, False)) == (left == 2)
        assert cluster.arrays.gang_marks[NUM_DEAR] == 0


def test_the_scratch_numbers_have_room_for_all_branches_that_a_search_may_be_in() -> None:
    cluster, _ = servers((FOURS,), 0, (8,))
    assert len(cluster.arrays.gang_marks) == MARKS >= LEVELS + MOST_DEPTH * LEVEL


def test_it_is_asked_only_where_a_budget_was_used_up() -> None:
    for left, asked in ((2, -1), (9, 0)):
        cluster, gang = servers((FOURS,) * 3, left, (8, 8))
        cluster.candidates(gang, False)
        assert cluster.arrays.gang_marks[SHORT] == asked


def test_all_victims_of_a_gang_are_counted() -> None:
    """Sixteen servers of ten small pods: a PodGroup and a budget over all of them."""
    pods, where = list[Pod](), list[int]()
    for node in range(16):
        for gpus, cores, group, pdb in ((1, 1, -1, 0),) * 8 + ((0, 20, 3, 1), (0, 20, -1, 0)):
            at = len(pods)
            pods.append(Pod(at, f"b{at}", gpus, cores, 100, checkpoint_s=900, group=group, pdb=pdb))
            where.append(node)
    leader = len(pods)
    pods += [
        Pod(leader + i, f"g{i}", 8, preset("a100").num_cores - 4, 1000, online=True, group=7)
        for i in range(16)
    ]
    for left in ((200, 16), (143, 16), (144, 16), (200, 15)):
        cluster = ClusterState.from_pods(
            (preset("a100"),),
            (0,) * 16,
            pods,
            now_s=NOW_S,
            network=Network((0,) * 16, (0,) * 16),
            pdb_allowed=left,
        )
        rows = list(cluster.gang(pods[leader]))
        cluster.arrays.pods["required_tier"][rows] = NetworkLevel.LEAF
        for pod, node in enumerate(where):
            cluster.start(pod, node)
        found = cluster.candidates(pods[leader], False)
        assert len(found) == (left[0] >= 144 and left[1] >= 16), left
        for candidate in found:
            assert len(candidate.victims) == 160
            anew = cluster.gang_candidate(
                pods[leader],
                {seat.pod: seat.node for seat in candidate.seats},
                candidate.victims,
            )
            assert anew is not None
            assert candidate.cost_gpu_s == pytest.approx(cluster.cost_of(anew, pods[leader]))


@pytest.mark.parametrize(("whole", "split", "left"), [(2, 2, 2), (3, 3, 3), (4, 4, 6), (8, 8, 12)])
def test_ways_that_take_the_fewest_victims_of_a_budget_are_found(
    whole: int, split: int, left: int
) -> None:
    """The cheapest way takes more than the budget leaves, on servers that no legal way uses."""
    held = (((8, 0),),) * whole + (FOURS,) * split
    cluster, gang = servers(held, left, (8,) * whole)
    assert not leaves_few(cluster, gang)
    for pod in range(whole):  # the fewest victims are the dearest
        cluster.arrays.live[pod]["since_s"] = NOW_S - 850
    for pod in range(whole, whole + 2 * split):
        cluster.arrays.live[pod]["since_s"] = NOW_S - 10
    for k in (1, 64):
        found = cluster.candidates(gang, False, k)
        assert found, k
        assert all(len(candidate.victims) <= left for candidate in found)


@pytest.mark.parametrize("nodes", [2, 65])
@pytest.mark.parametrize(("small", "needed"), [(12, 13), (30, 31)])
def test_small_pods_without_a_gpu_hide_no_way(nodes: int, small: int, needed: int) -> None:
    """Of those that are there first, thousands of sets suffice and are not minimal."""
    cores = preset("a100").num_cores
    pods, where = list[Pod](), list[int]()
    rest = cores - small - 4 * 16
    for node in range(nodes):
        for gpus, each in ((8, rest), *((0, 1),) * small, *((0, 16),) * 4):
            at = len(pods)
            pods.append(Pod(at, f"b{at}", gpus, each, 100, checkpoint_s=900))
            where.append(node)
    leader = len(pods)
    pods += [Pod(leader + i, f"g{i}", 8, rest + needed, 1000, online=True, group=7) for i in (0, 1)]
    cluster = ClusterState.from_pods(
        (preset("a100"),),
        (0,) * nodes,
        pods,
        now_s=NOW_S,
        network=Network((0,) * nodes, (0,) * nodes),
    )
    for pod, node in enumerate(where):
        cluster.start(pod, node)
    found = cluster.candidates(pods[leader], False, 4)
    assert found
    assert sorted(pods[victim].gpus for victim in found[0].victims) in (
        [0, 0, 8, 8],
        [0] * 4 + [8] * 2,
    )


def test_a_server_takes_as_many_members_of_two_sizes_as_fit() -> None:
    cluster, gang = servers((((8, 0),), ()), 9, (1,) * 8 + (0,) * 8)
    rows = list(cluster.gang(gang))
    cluster.arrays.pods["required_tier"][rows] = NetworkLevel.SERVER
    found = cluster.candidates(gang, False)
    assert any(not candidate.victims for candidate in found)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((2,) * 17, "pod 'g0': a gang of 17 members of 1 sizes; legal: up to 16 of two sizes"),
        ((8, 4, 2), "pod 'g0': a gang of 3 members of 3 sizes; legal: up to 16 of two sizes"),
    ],
)
def test_gangs_that_the_search_does_not_know_are_refused(
    members: tuple[int, ...], message: str
) -> None:
    cluster, gang = servers((FOURS,) * 8, 9, members)
    with pytest.raises(PodError, match=re.escape(message)):
        cluster.candidates(gang, False)
