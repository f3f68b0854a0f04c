"""Gangs: the cheapest candidate against every minimal victim set and every way to seat the members."""

from __future__ import annotations

import numpy as np
import pytest
import small_gangs
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.pods import Pod


@settings(max_examples=60, deadline=None)
@given(st.booleans().flatmap(lambda shrinking: small_gangs.clusters(shrinking=shrinking)))
def test_the_cheapest_candidate_is_the_cheapest_minimal_set(
    drawn: tuple[ClusterState, Pod, bool],
) -> None:
    cluster, gang, aligned = drawn
    true = small_gangs.brute_force(cluster, gang, aligned, minimal=True)
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
        seats = {seat.pod: seat.node for seat in candidate.seats}
        for victim in candidate.victims:
            rest = [other for other in candidate.victims if other != victim]
            assert not small_gangs.legal(cluster, gang, aligned, seats, rest), "a victim too many"
        held = np.array([cluster.arrays.pods[v]["priority"] for v in candidate.victims])
        assert (held < gang.priority).all()


@settings(max_examples=40, deadline=None)
@given(small_gangs.clusters(full=True, budgets=True), st.sampled_from((1, 16)))
def test_a_legal_candidate_is_found_where_budgets_leave_one(
    drawn: tuple[ClusterState, Pod, bool], k: int
) -> None:
    cluster, gang, aligned = drawn
    c, true = cluster.arrays, small_gangs.brute_force(cluster, gang, aligned, minimal=True)
    found = cluster.candidates(gang, aligned, k)
    assert bool(found) == (true is not None)
    for candidate in found:
        used = c.pods["pdb"][list(candidate.victims)]
        assert all((used == pdb).sum() <= left for pdb, left in enumerate(c.pdb_left))
        assert true is not None
        assert candidate.cost_gpu_s > true - 1e-6 * max(true, 1.0)


def cluster_candidate(cluster: ClusterState, gang: Pod, like: Candidate) -> Candidate:
    """Return the same decision, priced anew."""
    seats = {seat.pod: seat.node for seat in like.seats}
    found = cluster.gang_candidate(gang, seats, like.victims)
    assert found is not None
    return found
