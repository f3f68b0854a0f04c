"""One contract for every deterministic selector."""

from __future__ import annotations

import numpy as np
import pytest
import tapes
import twin

from flextopo.baselines.registry import GANG_RULES, ORACLES, SELECTORS, make_selector
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import may_evict
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.model import preset

every_selector = pytest.mark.parametrize("name", SELECTORS)
every_cluster = pytest.mark.parametrize("servers", tapes.SERVERS)
AT_MOST = 60
AT_MOST_SAMPLED = 8  # rollout plays a thousand futures a decision


def bits(sim: Simulator) -> list[bytes]:
    state = sim.state.arrays._replace(scratch=np.zeros(0, np.int16))  # memory, not state
    arrays = (*state[1:], *sim.events)
    return [array.tobytes() for array in arrays]


def must_align(filter_: AlignmentFilter, pod: Pod) -> bool:
    if filter_ == AlignmentFilter.OWN:
        return pod.requirement == TopologyRequirement.GUARANTEED
    return filter_ == AlignmentFilter.ALL_GUARANTEED


@every_selector
def test_name_is_the_registrys(name: str) -> None:
    assert make_selector(name).name == name
    assert isinstance(make_selector(name).filter, AlignmentFilter)


@every_selector
@every_cluster
def test_contract(name: str, servers: str) -> None:
    selector = make_selector(name, seed=1)
    sim = tapes.simulate(servers, 3, selector.filter)
    chosen = 0
    for _ in range(AT_MOST_SAMPLED if name == "rollout" else AT_MOST):
        pod = sim.next_decision()
        if pod is None:
            break
        before = bits(sim)
        candidate = selector.select(sim.state, pod)
        again = make_selector(name, seed=1).select(sim.state, pod)
        assert bits(sim) == before, "a selector must not change the state"
        assert repr(again) == repr(candidate), "a selector must be deterministic"
        if candidate is not None:
            chosen += 1
            node, victims = candidate.node, candidate.victims
            assert len(set(victims)) == len(victims)
            assert set(victims) <= {other.index for other in sim.state.pods_on(node)}
            assert all(may_evict(sim.state.arrays, v, pod.priority) for v in victims)
            assert name in ("kubernetes", *GANG_RULES) or twin.within_budgets(sim.state, victims)
            ranks = [(-sim.state.pod(v).priority, sim.state.pod(v).start_s) for v in victims]
            assert ranks == sorted(ranks)
            aligned = must_align(selector.filter, pod)
            gone = {*victims} | twin.gone_by(sim.state, node, candidate.wait_s)
            assert twin.fits(sim.state, node, gone, pod, aligned)
            assert not aligned or sim.state.is_aligned(candidate, pod)
        sim.apply(candidate)
    assert chosen > 0


@every_selector
def test_no_candidate_is_no_answer(name: str) -> None:
    pods = [
        Pod(0, "ns/serves", gpus=8, cores=8, priority=1000, online=True),
        Pod(1, "ns/asks", gpus=1, cores=1, priority=1000, online=True),
    ]
    state = ClusterState.from_pods([preset("a100")], [0], pods)
    state.start(0, 0)
    if name in ORACLES:
        with pytest.raises(FlextopoError, match="needs a simulated cluster"):
            make_selector(name).select(state, state.pod(1))
    else:
        assert make_selector(name).select(state, state.pod(1)) is None


def test_an_unknown_name_lists_the_legal_ones() -> None:
    with pytest.raises(UnknownNameError, match="greedy-cost"):
        make_selector("best")


def test_the_simulator_refuses_a_selector_of_another_filter() -> None:
    sim = tapes.simulate("4*a100", 3)
    with pytest.raises(FlextopoError, match="works with filter BLIND"):
        sim.play(make_selector("kubernetes"))
