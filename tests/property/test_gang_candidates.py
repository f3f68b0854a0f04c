"""Gangs: the cheapest candidate against every victim set and every way to seat the members."""

from __future__ import annotations

import numpy as np
import pytest
import small_gangs
from hypothesis import given, settings

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.pods import Pod


@settings(max_examples=40, deadline=None)
@given(small_gangs.clusters())
def test_the_cheapest_candidate_is_the_cheapest_of_all(
    drawn: tuple[ClusterState, Pod, bool],
) -> None:
    cluster, gang, aligned = drawn
    true = small_gangs.brute_force(cluster, gang, aligned)
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


def cluster_candidate(cluster: ClusterState, gang: Pod, like: Candidate) -> Candidate:
    """Return the same decision, priced anew."""
    seats = {seat.pod: seat.node for seat in like.seats}
    found = cluster.gang_candidate(gang, seats, like.victims)
    assert found is not None
    return found
