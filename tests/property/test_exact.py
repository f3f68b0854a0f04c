"""`exact` against brute force, and `greedy-cost` against `exact`.

`greedy-cost` sees minimal victim sets only. Where the two differ, one victim more than the
preemptor needs to fit lets it start better aligned, and that saves more than the eviction costs.
This can happen only to pods that the guaranteed filter does not bind. On the servers of the
registered environments with the default workload it is under 1 % of the decisions; on 8 busy
servers (0.9 of the GPUs online at the peak) it was 13 of 399.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import small_clusters
import tapes
import twin
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.baselines.exact import minimum
from flextopo.baselines.registry import make_selector
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.envs.registration import ENVIRONMENTS


@settings(max_examples=200, deadline=None)
@given(small_clusters.clusters(), st.booleans())
def test_exact_is_the_minimum_over_every_victim_set(
    small: tuple[ClusterState, Pod], aligned: bool
) -> None:
    state, preemptor = small
    legal = [
        found
        for node in range(state.num_nodes)
        for found in (
            *twin.without_victims(state, node, preemptor, aligned, later=True),
            *twin.with_victims(state, node, preemptor, aligned),
        )
    ]
    costs = [found.cost for found in legal]
    best = minimum(state, preemptor, aligned)
    if best is None:
        assert costs == []
        return
    cost, node, victims = best
    assert cost == pytest.approx(min(costs))
    same = [f.cost for f in legal if (f.node, f.victims) == (node, frozenset(victims))]
    assert min(same) == pytest.approx(cost)


def compare(servers: str, seed: int, walk: str, config: WorkloadConfig) -> Iterator[bool]:
    """Yield, for each decision with a candidate, whether greedy's cost is the minimum."""
    greedy = make_selector("greedy-cost")
    for simulator, pod in tapes.decisions(servers, seed, walk, config):
        state = simulator.state
        aligned = pod.requirement == TopologyRequirement.GUARANTEED
        chosen = greedy.select(state, pod)
        best = minimum(state, pod, aligned)
        assert (chosen is None) == (best is None)
        if chosen is None or best is None:
            continue
        cost, node, victims = best
        same = chosen.cost_gpu_s == pytest.approx(cost)
        if not same:
            assert chosen.cost_gpu_s > cost
            assert not aligned
            left = {*victims} | twin.gone_by(state, node, int(state.costs.grace_s))
            smaller = [left - {victim} for victim in victims]
            assert any(twin.fits(state, node, rest, pod, aligned) for rest in smaller)
        yield same


def test_greedy_cost_is_the_minimum_on_99_of_100_decisions() -> None:
    same = [
        hit
        for servers, _ in ENVIRONMENTS.values()
        if "@" not in servers
        for walk in ("greedy-cost", "random")
        for seed in range(8)
        for hit in compare(servers, seed, walk, WorkloadConfig())
    ]
    assert len(same) >= 1000
    assert sum(same) >= 0.99 * len(same)


@pytest.mark.parametrize("seed", range(4))
def test_every_difference_on_busy_servers_is_a_set_that_is_not_minimal(seed: int) -> None:
    assert sum(compare("8*rtx4090", seed, "random", tapes.BUSY)) > 0
