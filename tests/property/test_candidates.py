"""The candidate kernel and the placement against their plain-Python twin."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import small_clusters
import twin
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.cluster.state.arrays import TERMINATING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.placement import best_level, place
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.preemption import count_places
from flextopo.cluster.topology.levels import NO_FIT, SOCKET
from flextopo.cluster.topology.model import ServerModel, compile_models

ALL = 4096

Small = tuple[ClusterState, Pod]


def kernel(state: ClusterState, preemptor: Pod, aligned: bool, k: int) -> list[twin.Found]:
    """Return what the kernel finds, in its order."""
    arrays, count = state.find(preemptor, aligned, k)
    found = []
    for i in range(count):
        node = int(arrays.node[i])
        pods = {int(state.arrays.node_pods[node, s]) for s in twin.bits(int(arrays.slots[i]))}
        victims = {pod for pod in pods if state.arrays.live[pod]["status"] != TERMINATING}
        wait_s = int(arrays.wait_s[i])
        assert pods - victims <= twin.gone_by(state, node, wait_s)
        best = twin.empty_level(state.model(node), preemptor)
        assert arrays.deficit[i] == twin.deficit(int(arrays.level[i]), best)
        level, cost = int(arrays.level[i]), float(arrays.cost[i])
        found.append(twin.Found(node, frozenset(victims), level, cost, wait_s))
    return found


def by_set(found: list[twin.Found]) -> dict[tuple[int, frozenset[int], int], tuple[int, float]]:
    """Key candidates by what they are."""
    return {(f.node, f.victims, f.wait_s): (f.level, round(f.cost, 4)) for f in found}


def gone(state: ClusterState, node: int, victims: Iterable[int], wait_s: int) -> set[int]:
    """Return everybody who has left when a candidate gets its place."""
    return {*victims} | twin.gone_by(state, node, wait_s)


@settings(max_examples=400, deadline=None)
@given(small_clusters.clusters(), st.booleans())
def test_kernel_finds_the_twins_sets_levels_and_costs(small: Small, aligned: bool) -> None:
    state, preemptor = small
    found = kernel(state, preemptor, aligned, ALL)
    expected = twin.minimal_sets(state, preemptor, aligned)
    assert len(found) == len(expected)
    assert by_set(found) == by_set(expected)
    order = [(f.cost, f.node) for f in found]
    assert order == sorted(order)


@settings(max_examples=150, deadline=None)
@given(small_clusters.clusters(), st.booleans(), st.integers(1, 5))
def test_small_k_keeps_the_cheapest_prefix(small: Small, aligned: bool, k: int) -> None:
    state, preemptor = small
    full = kernel(state, preemptor, aligned, ALL)
    assert kernel(state, preemptor, aligned, k) == full[:k]


@settings(max_examples=150, deadline=None)
@given(small_clusters.clusters(), st.booleans())
def test_putting_any_victim_back_breaks_the_fit(small: Small, aligned: bool) -> None:
    state, preemptor = small
    for found in kernel(state, preemptor, aligned, ALL):
        all_gone = gone(state, found.node, found.victims, found.wait_s)
        assert twin.fits(state, found.node, all_gone, preemptor, aligned)
        for victim in found.victims:
            rest = all_gone - {victim}
            assert not twin.fits(state, found.node, rest, preemptor, aligned)


@settings(max_examples=150, deadline=None)
@given(small_clusters.clusters(), st.booleans())
def test_victims_are_of_lower_priority_and_within_budgets(small: Small, aligned: bool) -> None:
    state, preemptor = small
    for found in kernel(state, preemptor, aligned, ALL):
        for victim in found.victims:
            assert state.pod(victim).priority < preemptor.priority
            assert state.pod(victim).preemptible
        assert twin.within_budgets(state, found.victims)


@settings(max_examples=150, deadline=None)
@given(small_clusters.clusters(), st.booleans())
def test_candidates_are_placed_legally_at_the_best_level(small: Small, aligned: bool) -> None:
    state, preemptor = small
    for candidate in state.candidates(preemptor, aligned, ALL):
        model = state.model(candidate.node)
        left = gone(state, candidate.node, candidate.victims, candidate.wait_s)
        if not candidate.victims and twin.fits(state, candidate.node, (), preemptor, aligned):
            left = set()  # what is free suffices, and nobody is waited for
        free, cores = twin.without(state, candidate.node, left)
        assert twin.bits(candidate.gpu_mask) <= free
        assert candidate.gpu_mask.bit_count() == preemptor.gpus
        assert sum(candidate.cores) == preemptor.cores
        assert all(0 <= got <= there for got, there in zip(candidate.cores, cores, strict=True))
        assert candidate.level == twin.level_of(model, free, cores, preemptor)
        used = {u for u, taken in enumerate(candidate.cores) if taken}
        assert any(
            domain.level == candidate.level
            and not candidate.gpu_mask & ~domain.gpu_mask
            and used <= set(domain.numa_nodes)
            for domain in model.domains
        )
        if aligned:
            assert state.is_aligned(candidate, preemptor)
        victims = [state.pod(victim) for victim in candidate.victims]
        ranks = [(-pod.priority, pod.start_s) for pod in victims]
        assert ranks == sorted(ranks)


@settings(max_examples=150, deadline=None)
@given(small_clusters.clusters(), st.booleans())
def test_a_node_counts_as_preemptible_wherever_there_is_a_candidate(
    small: Small, aligned: bool
) -> None:
    # Budgets are counted pod by pod there, so the converse need not hold under budgets.
    state, preemptor = small
    asked = count_places(state.arrays, preemptor.index, aligned, 1)
    if twin.minimal_sets(state, preemptor, aligned):
        assert asked
    elif not (state.arrays.pods["pdb"] >= 0).any():
        assert not asked


@settings(max_examples=300, deadline=None)
@given(
    small_clusters.server_models(),
    st.integers(0, 255),
    st.lists(st.integers(0, 6), min_size=7, max_size=7),
    st.integers(0, 5),
    st.integers(0, 9),
)
def test_place_gives_the_best_level_in_the_tightest_domain(
    model: ServerModel, gpu_free: int, used: list[int], gpus: int, cores: int
) -> None:
    if gpus + cores == 0:
        cores = 1
    pod = Pod(0, "pod/0", gpus, cores, 0)
    free = twin.bits(gpu_free & (1 << model.num_gpus) - 1)
    left = [max(0, a - b) for a, b in zip(model.numa_cores, used, strict=False)]
    tables = compile_models([model])
    taken = np.full(len(left), 99, np.int16)
    level, mask = place(
        tables, 0, sum(1 << gpu for gpu in free), np.array(left, np.int16), gpus, cores, taken
    )
    assert level == twin.level_of(model, free, left, pod)
    assert best_level(tables, 0, gpus, cores) == twin.empty_level(model, pod)
    best = model.best_level(gpus, cores)
    assert (NO_FIT if best is None else best) == twin.empty_level(model, pod)
    if level == NO_FIT:
        assert mask == 0
        assert not taken.any()
        return
    assert twin.bits(mask) <= free
    assert len(twin.bits(mask)) == gpus
    assert taken.sum() == cores
    assert all(0 <= a <= b for a, b in zip(taken, left, strict=True))
    used_nodes = set(np.flatnonzero(taken))
    ranked = [
        (
            (len(free & twin.bits(domain.gpu_mask)), sum(left[u] for u in domain.numa_nodes)),
            not mask & ~domain.gpu_mask and used_nodes <= set(domain.numa_nodes),
        )
        for domain in model.domains
        if domain.level == level
        and domain.holds(sum(1 << gpu for gpu in free), left, pod.gpus, pod.cores)
    ]
    tightest = min(rank for rank, _ in ranked)
    assert any(rank == tightest and chosen for rank, chosen in ranked)


def test_a_pod_without_gpus_takes_no_negative_cores() -> None:
    model = ServerModel("three", (0,), (0, 0, 0), (5, 5, 5))
    taken = np.zeros(3, np.int16)
    assert place(compile_models([model]), 0, 1, np.full(3, 5, np.int16), 0, 7, taken) == (SOCKET, 0)
    assert taken.tolist() == [5, 2, 0]
