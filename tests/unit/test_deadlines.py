"""Waiting as a service sees it: a deadline, a loss that grows beyond it, and who may choose it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tapes

from flextopo.baselines.registry import COMPARED, SELECTORS, make_selector
from flextopo.baselines.wait_limit import WaitLimit
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import SENSITIVITIES, LossWeights, Scenario
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.loss import compile_costs, loss_terms, waiting_cost
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.topology.levels import AlignmentLevel
from flextopo.cluster.topology.model import Fleet
from flextopo.envs.preemption import PreemptionEnv
from flextopo.policies.selectors import find_selector
from flextopo.train.compare import play_tape
from flextopo.train.config import ComparisonConfig

JOB = {"arrive_s": -500, "duration_s": 10**6, "gpus": 4, "checkpoint_s": 900}
REPLICA = {"arrive_s": 100, "gpus": 1, "depart_s": NEVER_S}
SOFT = Scenario(deadline="soft")


@dataclass(frozen=True)
class Never:
    """Leave every pod pending."""

    name: str = "never"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        return None


SERVERS = 6
"""Full ones: enough that a pod may wait although others might take some."""


def full_servers(scenario: Scenario | None = None, **replica: int) -> Simulator:
    tape = tapes.hand_tape([*[JOB] * SERVERS, REPLICA | replica], 7200, warmup_s=600)
    return Simulator(tape, Fleet((tapes.DUO,), (0,) * SERVERS), scenario=scenario)


def wait_s(sim: Simulator) -> float:
    return episode_metrics(sim)["preemptor_wait_max_s"]


def test_a_hard_deadline_is_kept_by_a_selector_that_would_wait_for_ever() -> None:
    sim = full_servers()
    sim.play(Never())
    assert wait_s(sim) == 60  # 30 pending, 30 of the victim's grace
    assert sim.events.account[0]["evicted_gpus"] == 4
    metrics = episode_metrics(sim)
    assert (metrics["late_share"], metrics["late_by_choice"]) == (0.0, 0.0)


def test_where_few_servers_are_left_nobody_waits_by_choice() -> None:
    """Others might take the last of them meanwhile."""
    tape = tapes.hand_tape([*[JOB] * 4, REPLICA], 7200, warmup_s=600)
    sim = Simulator(tape, Fleet((tapes.DUO,), (0,) * 4))
    sim.play(Never())
    assert wait_s(sim) == 30


@pytest.mark.parametrize("deadline_s", [60, 300])
def test_a_pod_is_asked_about_when_its_only_victims_protection_ends(deadline_s: int) -> None:
    pods = [JOB | {"arrive_s": 0}, REPLICA | {"deadline_s": deadline_s}]
    tape = tapes.hand_tape(pods, 7200, warmup_s=600)
    table = tape.pods.copy()
    table["protection_s"][0] = 120
    sim = Simulator(replace(tape, pods=table), Fleet((tapes.DUO,), (0,)))
    sim.play(make_selector("greedy-cost"))
    assert wait_s(sim) == 20 + 30


def test_a_soft_deadline_leaves_it_to_the_loss() -> None:
    sim = full_servers(SOFT)
    sim.play(Never())
    metrics = episode_metrics(sim)
    assert wait_s(sim) == 7100
    assert (metrics["late_share"], metrics["late_by_choice"]) == (1.0, 1.0)


@pytest.mark.parametrize(("seconds", "waited"), [(0, 30), (12, 42), (600, 630)])
def test_any_selector_keeps_the_seconds_behind_its_name(seconds: int, waited: int) -> None:
    sim = full_servers(SOFT)
    sim.play(WaitLimit(Never(), "never@", seconds))
    assert wait_s(sim) == waited


@pytest.mark.parametrize(
    "name", ["godel", "rollout", "oracle-lookahead+godel", "deepset-imitation"]
)
def test_every_name_may_have_seconds(name: str) -> None:
    selector = find_selector(f"{name}@12")
    assert isinstance(selector, WaitLimit)
    assert (selector.name, selector.max_wait_s) == (f"{name}@12", 12)
    assert selector.selector.name == name


def test_the_deadline_holds_where_the_seconds_are_longer() -> None:
    sim = full_servers()
    sim.play(WaitLimit(Never(), "never@600", 600))
    assert wait_s(sim) == 60


def test_the_last_action_is_masked_before_it_would_take_the_pod_past_its_deadline() -> None:
    pods = [*[JOB] * SERVERS, REPLICA, {"arrive_s": 120, "gpus": 4, "duration_s": 1}]
    tape = tapes.hand_tape(pods, 7200, warmup_s=600)
    fleet = Fleet((tapes.DUO,), (0,) * SERVERS)
    env = PreemptionEnv(fleet, tape_source=lambda seed: tape, k=4)
    _, info = env.reset(seed=0)
    assert (info["time_s"], info["action_mask"][-1]) == (100, 1)
    _, _, _, _, info = env.step(4)
    assert (info["time_s"], info["action_mask"][-1], info["invalid_action"]) == (120, 1, False)
    _, _, _, _, info = env.step(4)
    assert (info["time_s"], info["action_mask"][-1]) == (130, 0)
    _, _, _, over, info = env.step(4)
    assert over
    assert info["invalid_action"]
    assert info["metrics"]["preemptor_wait_max_s"] == 60


def test_what_waiting_costs_is_what_the_account_charges() -> None:
    for deadline in (0, 30, 60, 300):
        for until in (10, 59, 60, 61, 400):
            sim = full_servers(SOFT, deadline_s=deadline)
            asked = sim.next_decision()
            assert asked is not None
            expected = waiting_cost(sim.state.arrays, sim.costs, asked.index, float(until))
            sim.apply(None)
            sim.rules = sim.rules._replace(end_s=100 + until)
            assert sim.next_decision() is None
            charged = loss_terms(sim.events.account, sim.costs)["waiting"]
            assert np.isclose(charged, expected), (deadline, until)


def test_lateness_is_convex_and_worth_any_victims() -> None:
    sim = full_servers()
    asked = sim.next_decision()
    assert asked is not None
    hours = [
        waiting_cost(sim.state.arrays, sim.costs, asked.index, 60.0 + 600 * i) / 3600
        for i in range(5)
    ]
    steps = np.diff(hours)
    assert (steps >= 32 * 600 / 3600).all()
    assert (np.diff(steps) > 0).all()


def test_a_first_replica_is_missed_more_than_a_tenth() -> None:
    sim = full_servers()
    asked = sim.next_decision()
    assert asked is not None
    c, found = sim.state.arrays, []
    for serving in (0, 1, 2, 9):
        c.serving[0] = serving
        found.append(float(waiting_cost(c, sim.costs, asked.index, 200.0)))
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


def test_replicas_that_serve_are_counted() -> None:
    start = {"arrive_s": -500, "gpus": 1, "depart_s": 200, "start_s": 50}
    tape = tapes.hand_tape(
        [start, start | {"depart_s": NEVER_S, "start_s": 650}], 7200, warmup_s=600
    )
    sim = Simulator(tape, Fleet((tapes.DUO,), (0,)))
    assert sim.state.arrays.serving.tolist() == [1]
    for end_s, serving in ((100, 1), (160, 2), (300, 1)):
        sim.rules = sim.rules._replace(end_s=end_s)
        sim.next_decision()
        assert sim.state.arrays.serving.tolist() == [serving]
        sim.state.check_invariants()


def test_start_up_is_charged_until_the_replica_serves() -> None:
    found = []
    for start_s in (0, 500):
        sim = full_servers(start_s=start_s)
        sim.play(make_selector("greedy-cost"))
        found.append(loss_terms(sim.events.account, sim.costs)["waiting"])
    missing = 1 + LossWeights().outage
    assert np.isclose(found[1] - found[0], missing * LossWeights().waiting * 500)


def test_misalignment_costs_what_the_kind_of_service_loses() -> None:
    sim = full_servers()
    c, costs = sim.state.arrays, compile_costs(LossWeights(), 30, 60)
    for row, kind in enumerate(SENSITIVITIES.values()):
        c.pods[SERVERS]["sensitivity"] = row
        candidate = Candidate(0, (), 0b0101, (1, 1), AlignmentLevel.CROSS_SOCKET)
        two = replace(sim.state.pod(SERVERS), gpus=2)
        c.pods[SERVERS]["gpus"], c.pods[SERVERS]["cores"] = 2, 2
        cost = sim.state.cost_of(candidate, two)
        lost = 2 * costs.service_s * LossWeights().misalignment * (1 - kind.off_socket)
        assert np.isclose(cost, lost)


@pytest.mark.parametrize("name", COMPARED)
def test_nobody_with_a_candidate_passes_a_hard_deadline(name: str) -> None:
    for seed in range(3):
        selector = make_selector(name, seed)
        sim = tapes.simulate("4*rtx4090", seed, selector.filter)
        sim.play(selector)
        metrics = episode_metrics(sim)
        assert metrics["late_by_choice"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SELECTORS, "deepset-imitation"])
def test_nobody_with_a_candidate_passes_a_hard_deadline_in_fifty_days(name: str) -> None:
    config = ComparisonConfig(selectors=(name,), policies=(), seeds=50, split="validation")
    placed = 0.0
    for seed in config.seeds_of(name):
        metrics = play_tape(config, name, seed)
        assert metrics["late_by_choice"] == 0
        placed += metrics["preemptions"]
    assert placed > 500


@pytest.mark.parametrize("field", ["deadline", "backfill"])
def test_a_scenario_says_what_is_legal(field: str) -> None:
    wrong: Any = {field: "firm"}
    with pytest.raises(FlextopoError, match=f"{field} 'firm'; legal: "):
        Scenario(**wrong)


def test_a_pod_is_asked_about_when_a_budget_comes_back_behind_it_in_the_same_pass() -> None:
    pods = [
        {"gpus": 2, "depart_s": NEVER_S},
        {"gpus": 2, "duration_s": 10**5, "pdb": 0, "checkpoint_s": 1},
        {"gpus": 4, "duration_s": 10**5, "pdb": 0, "checkpoint_s": 1},
        {"arrive_s": 100, "gpus": 2, "depart_s": 200},
        {"arrive_s": 110, "gpus": 4, "depart_s": NEVER_S},
    ]
    sim = Simulator(tapes.hand_tape(pods, 7200, pdb_allowed=[1]), Fleet((tapes.DUO,), (0, 0)))
    sim.play(make_selector("greedy-cost"))
    live = sim.state.arrays.live
    # The 2-GPU job went for the third pod and is back at 200, so that the 4-GPU one may go.
    assert live["evictions"][:3].tolist() == [0, 1, 1]
    assert live["wait_s"][4] == 200 - 110 + 30
