"""Gangs: the cheapest candidate against every minimal victim set and every way to seat the members."""

from __future__ import annotations

import numpy as np
import pytest
import small_gangs
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.gang_scratch import BRANCHES
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


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.booleans(), st.booleans()).flatmap(
        lambda how: small_gangs.clusters(full=how[0], shrinking=how[1], budgets=True)
    ),
    st.sampled_from((1, 16)),
)
def test_the_cheapest_candidate_keeps_budgets_and_is_the_cheapest_that_does(
    drawn: tuple[ClusterState, Pod, bool], k: int
) -> None:
    cluster, gang, aligned = drawn
    c, true = cluster.arrays, small_gangs.brute_force(cluster, gang, aligned, minimal=True)
    found = cluster.candidates(gang, aligned, k)
    assert bool(found) == (true is not None)
    if true is not None:
        assert found[0].cost_gpu_s == pytest.approx(true)
    for candidate in found:
        used = c.pods["pdb"][list(candidate.victims)]
        assert all((used == pdb).sum() <= left for pdb, left in enumerate(c.pdb_left))


@pytest.mark.parametrize("k", [1, 16])
@pytest.mark.parametrize(
    "held",
    [
        (
            ((4, 0, 100), (4, -1, 1000)),
            ((2, 0, 100), (4, -1, 3000), (2, -1, 100)),
            ((2, -1, 3000), (4, -1, 100), (2, 0, 300)),
        ),
        (
            ((4, 0, 1000), (4, 0, 300)),
            ((2, -1, 3000), (4, 0, 1000), (2, 0, 3000)),
            ((8, 0, 3000),),
        ),
    ],
)
def test_what_a_budget_leaves_goes_where_it_saves_most(
    held: tuple[tuple[tuple[int, int, int], ...], ...], k: int
) -> None:
    """One pod of the budget may go; the cheapest way takes two, and kept to one of its servers it is dearer."""
    cluster, gang = small_gangs.servers_of("a100", held, (4, 2), left=1)
    found = cluster.candidates(gang, True, k)
    assert found[0].cost_gpu_s == pytest.approx(
        small_gangs.brute_force(cluster, gang, True, minimal=True)
    )
    assert cluster.arrays.gang_marks[BRANCHES] > 0


def cluster_candidate(cluster: ClusterState, gang: Pod, like: Candidate) -> Candidate:
    """Return the same decision, priced anew."""
    seats = {seat.pod: seat.node for seat in like.seats}
    found = cluster.gang_candidate(gang, seats, like.victims)
    assert found is not None
    return found
