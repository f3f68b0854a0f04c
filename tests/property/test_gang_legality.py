"""Gangs: what every rule answers is legal, and `exact` is the minimum."""

from __future__ import annotations

import pytest
import small_gangs
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.baselines.exact_gang import gang_minimum
from flextopo.baselines.registry import ORACLES, SELECTORS, make_selector
from flextopo.cluster.state.arrays import may_evict
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod

RULES = [name for name in SELECTORS if name not in (*ORACLES, "exact")]


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=30, deadline=None)
@given(small_gangs.clusters())
def test_every_answer_is_legal(name: str, drawn: tuple[ClusterState, Pod, bool]) -> None:
    cluster, gang, _ = drawn
    selector = make_selector(name, seed=1)
    aligned = selector.filter.binds(gang)
    found = selector.select(cluster, gang)
    best = cluster.candidates(gang, aligned, 16)
    if found is None:
        return
    assert best, "nothing is legal"
    assert [seat.pod for seat in found.seats] == list(cluster.gang(gang))
    assert found.tier <= cluster.arrays.pods[gang.index]["required_tier"]
    assert len(set(found.victims)) == len(found.victims)
    assert all(may_evict(cluster.arrays, victim, gang.priority) for victim in found.victims)
    nodes = {seat.pod: seat.node for seat in found.seats}
    assert {int(cluster.arrays.live[v]["node"]) for v in found.victims} <= set(nodes.values())
    assert cluster.gang_candidate(gang, nodes, found.victims) == found
    assert not aligned or cluster.is_aligned(found, gang)
    # One victim more than needed may let members sit better; candidates are minimal.
    minimal = not any(
        small_gangs.legal(cluster, gang, aligned, nodes, [v for v in found.victims if v != victim])
        for victim in found.victims
    )
    assert not minimal or cluster.cost_of(found, gang) >= best[0].cost_gpu_s - 1e-6
    assert selector.select(cluster, gang) == found


@settings(max_examples=60, deadline=None)
@given(st.booleans().flatmap(lambda shrinking: small_gangs.clusters(shrinking=shrinking)))
def test_exact_is_the_minimum_over_every_victim_set_and_every_seat(
    drawn: tuple[ClusterState, Pod, bool],
) -> None:
    pytest.importorskip("ortools")
    cluster, gang, aligned = drawn
    true = small_gangs.brute_force(cluster, gang, aligned)
    best = gang_minimum(cluster, gang, aligned)
    if true is None or best is None:
        assert true is None
        assert best is None
        return
    found = cluster.gang_candidate(gang, *best)
    assert found is not None
    assert not aligned or cluster.is_aligned(found, gang)
    assert cluster.cost_of(found, gang) == pytest.approx(true)
