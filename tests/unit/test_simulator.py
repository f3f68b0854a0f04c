"""The simulator on days small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tapes import DUO, hand_tape

from flextopo.baselines.registry import make_selector
from flextopo.cluster.errors import FlextopoError, PodError, WorkloadError
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import DONE, PENDING, RUNNING, TERMINATING
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.loss import loss_terms, weighted_gpu_s
from flextopo.cluster.topology.levels import AlignmentLevel
from flextopo.cluster.topology.model import Fleet, ServerModel

ONE, TWO = Fleet((DUO,), (0,)), Fleet((DUO,), (0, 0))
BEST_EFFORT, GUARANTEED = 1, 2
Row = Mapping[str, int]


def play(sim: Simulator, name: str = "greedy-cost") -> dict[str, Any]:
    """Play to the end, check the invariants, return what of the account is not 0."""
    sim.play(make_selector(name))
    sim.state.check_invariants()
    account = sim.events.account[0]
    return {key: account[key].tolist() for key in account.dtype.names or () if account[key].any()}


DAY: Sequence[Row] = (
    # 0 A: node 0, GPUs 2 and 3 (after B: higher priority goes first, then the tightest fit).
    {"gpus": 2, "duration_s": 6000, "checkpoint_s": 1000},
    # 1 B: node 0, GPUs 0 and 1; ends at 3000.
    {"gpus": 2, "duration_s": 3000, "batch_class": 1, "priority": 500},
    # 2, 3 C: a PodGroup, all of node 1; ends at 5000.
    {"gpus": 2, "duration_s": 5000, "group": 0},
    {"gpus": 2, "duration_s": 5000, "group": 0},
    # 4 X: fits nowhere at 1500.
    {"arrive_s": 1500, "depart_s": 9000, "gpus": 2, "start_s": 100, "requirement": GUARANTEED},
    # 5, 6 D and E: all cores of a NUMA node each, so one on each socket of node 1; end at 9100.
    {"arrive_s": 5100, "gpus": 1, "cores": 4, "duration_s": 4000},
    {"arrive_s": 5100, "gpus": 1, "cores": 4, "duration_s": 4000},
    # 7 Y: the two GPUs that are free lie on two sockets.
    {"arrive_s": 5500, "depart_s": 8500, "gpus": 2, "cores": 0, "start_s": 100,
     "requirement": BEST_EFFORT},
    # 8 F: waits for a whole node, gets node 0 when X leaves; ends at 10000.
    {"arrive_s": 8100, "gpus": 4, "duration_s": 1000},
    # 9 H: node 1.
    {"arrive_s": 9150, "gpus": 4, "duration_s": 5000, "batch_class": 1},
    # 10 Z: leaves while it waits for its victim's grace period.
    {"arrive_s": 9200, "depart_s": 9210, "gpus": 2, "requirement": GUARANTEED},
)  # fmt: skip


def test_a_day_by_hand() -> None:
    sim = Simulator(hand_tape(DAY, end_s=12000), TWO)
    account = play(sim)
    # X at 1500 may evict, beside 4 * 2 * 30 of waiting for either:
    #   A: 2 GPUs * (1500 % 1000 + 60) * 1 + 2 * 0.05 h = 1120 + 360 = 1480
    #   B: 2 * (1500 + 60) * 2 + 360 = 6600
    #   C, both members: 2 * 2 * (1500 + 60) + 720 = 6960
    # so A goes, keeps 1000 s, and X serves from 1630 on, aligned. A waits without any free GPU,
    # takes B's place at 3000, repeats 60 s, and ends at 3000 + 60 + 5000 = 8060.
    # Z at 9200 may evict F: 4 * (200 + 60) + 720 = 1760, or H: 4 * (50 + 60) * 2 + 720 = 1600.
    # H goes; Z leaves at 9210, H gives the rest up and starts again at 9230.
    assert account == {
        # X and Z in their grace periods; while X and, beside it, Y start up.
        "waiting": [2 * 30 + 2 * 10, 0, 0, 0, 0],
        "starting": [2 * 100, 2 * 100, 0, 0, 0],
        "misaligned": [0, 0, 0, 2 * (8500 - 5600), *[0] * 20],  # Y once it has started up
        "discarded": 2 * (500 + 60) + 4 * (50 + 60),
        "discarded_low": 2 * (500 + 60),
        "discarded_weighted": 2 * (500 + 60) + 4 * (50 + 60) * 2,
        "evicted_gpus": 2 + 4,
        "victims": 2,
        # F wants 4: node 0 has 2 free from 8100, both nodes together 4 from 8500 until 9000.
        "idle": 2 * (8500 - 8100) + 4 * (9000 - 8500),
        "online": 2 * (9000 - 1500) + 2 * (8500 - 5500) + 2 * (9210 - 9200),
        # A, B, C, D and E, F, H
        "batch": 2 * (1500 + 5060) + 2 * 3000 + 4 * 5000 + 2 * 4000 + 4 * 1000
        + 4 * (50 + 12000 - 9230),
        "decisions": 2,
        "preemptions": 2,
        "hits": 2,
        "guaranteed_preemptions": 2,
        "guaranteed_hits": 2,
    }  # fmt: skip
    terms = loss_terms(sim.events.account, sim.costs)
    assert terms == pytest.approx(
        {
            "waiting": 4 * (80 + 200) + 2.5 * 200,
            "misalignment": 3 * 0.33 * 5800,
            "discarded": 1120 + 880,
            "eviction": 6 * 0.05 * 3600,
            "idle": 2800,
        },
        rel=1e-12,
    )
    assert weighted_gpu_s(sim.events.account, sim.costs) == pytest.approx(13242, rel=1e-12)
    live = sim.state.arrays.live
    assert np.flatnonzero(live["status"] == RUNNING).tolist() == [9]
    assert (live["status"][[0, 1, 2, 3, 4, 5, 6, 7, 8, 10]] == DONE).all()
    assert live["done_s"][:4].tolist() == [6000, 3000, 5000, 5000]


def test_the_days_metrics() -> None:
    sim = Simulator(hand_tape(DAY, end_s=12000), TWO)
    play(sim)
    # X, Y, Z; then A, B, C, D and E, F, H up to the end of the account.
    demanded = 15000 + 6000 + 20 + 12000 + 6000 + 20000 + 8000 + 4000 + 4 * (12000 - 9150)
    metrics = episode_metrics(sim)
    expected = {
        "weighted_loss": 13242 / demanded,
        "waiting": 1620 / demanded,
        "hit_rate": 1.0,
        "success_rate": 0.5,  # Z left before it started
        "wait_p50_s": 10.0,  # X 30 s, Y 0 s, Z 10 s
        "gpus_evicted": 6 * 86400 / 12000,
        "discarded_gpu_h": 1560 / 3600 * 86400 / 12000,
        "batch_goodput": (62400 - 1560) / (8 * 12000),
        "utilisation": (62400 + 21020) / (8 * 12000),
        "guarantee_violations": 0.0,
        "decisions": 2,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


SCATTERED: Sequence[Row] = (
    # Two pods of priority 50, one on each socket: GPUs 1 and 3.
    {"gpus": 1, "duration_s": 10000},
    {"arrive_s": 1, "gpus": 1, "duration_s": 10000, "priority": 50},
    {"arrive_s": 2, "gpus": 1, "duration_s": 10000},
    {"arrive_s": 3, "gpus": 1, "duration_s": 10000, "priority": 50},
    {"arrive_s": 1000, "depart_s": 2500, "gpus": 2, "requirement": GUARANTEED},
)


def test_a_blind_selector_violates_a_guarantee() -> None:
    sim = Simulator(hand_tape(SCATTERED, end_s=3000), ONE, AlignmentFilter.BLIND)
    account = play(sim, "godel")
    assert account["victims"] == 2
    assert account["discarded"] == 999 + 997 + 2 * 60
    assert account["violations"] == account["cross_socket"] == account["preemptions"] == 1
    assert "hits" not in account
    assert account["misaligned"] == [0, 0, 0, 2 * (2500 - 1030), *[0] * 20]
    assert account["waiting"] == [2 * 30, 0, 0, 0, 0]


def test_restricted_admission_refuses_it_after_its_victims_are_gone() -> None:
    sim = Simulator(
        hand_tape(SCATTERED, end_s=3000),
        ONE,
        AlignmentFilter.BLIND,
        Scenario(admission="restricted"),
    )
    account = play(sim, "godel")
    # Refused at once, and again at 1030, when the freed GPUs would hold it by count; the victims
    # then come back, and nothing happens until it leaves.
    assert account["refusals"] == 2
    assert account["victims"] == 2
    assert account["waiting"] == [2 * 60, 0, 0, 0, 0]
    assert account["late"] == [2 * (2500 - 1060), 0, 0, 0, 0]
    assert account["late_squared"] == [2 * (2500 - 1060) ** 2, 0, 0, 0, 0]
    assert not {"violations", "preemptions", "misaligned"} & set(account)
    assert (sim.state.arrays.live["status"][:4] == RUNNING).all()
    assert episode_metrics(sim)["success_rate"] == 0.0


def test_the_guaranteed_filter_takes_victims_of_one_socket_instead() -> None:
    sim = Simulator(hand_tape(SCATTERED, end_s=3000), ONE)
    account = play(sim)
    assert account["victims"] == account["evicted_gpus"] == 2
    assert account["hits"] == 1
    assert not {"violations", "misaligned"} & set(account)


def test_losing_one_member_stops_the_pod_group() -> None:
    pods = (
        {"gpus": 2, "duration_s": 5000, "group": 0},
        {"gpus": 2, "duration_s": 5000, "group": 0},
        {"arrive_s": 100, "depart_s": 1130, "gpus": 2},
    )
    sim = Simulator(hand_tape(pods, end_s=2000), ONE)
    account = play(sim)
    assert account["victims"] == 2
    assert account["evicted_gpus"] == 4
    assert account["discarded"] == 2 * 2 * (100 + 60)
    # Both members must start together: two GPUs stay free until the online pod leaves.
    assert account["idle"] == 2 * (1130 - 130)
    assert account["batch"] == 4 * 100 + 4 * (2000 - 1130)
    assert (sim.state.arrays.live["status"][:2] == RUNNING).all()


def test_one_level_worse_is_charged_after_start_up() -> None:
    # Pod 0 takes all cores of NUMA node 0 and pod 1 GPU 1 on NUMA node 1, so the online pod gets
    # GPU 0 with cores from the other NUMA node of the socket.
    server = ServerModel("narrow", gpu_numa=(0, 1), numa_socket=(0, 0), numa_cores=(4, 4))
    pods = (
        {"gpus": 0, "cores": 4, "duration_s": 9000},
        {"gpus": 1, "cores": 1, "duration_s": 9000},
        {"arrive_s": 10, "depart_s": 500, "gpus": 1, "cores": 2, "start_s": 40},
    )
    sim = Simulator(hand_tape(pods, end_s=1000), Fleet((server,), (0,)))
    assert sim.next_decision() is None
    assert sim.events.account[0]["misaligned"].tolist() == [0, 0, 500 - 50, *[0] * 21]
    assert sim.state.arrays.live["level"][2] == AlignmentLevel.SOCKET


def test_a_disruption_budget_is_used_up_until_the_pod_runs_again() -> None:
    pods = (
        {"gpus": 2, "duration_s": 5000, "pdb": 0},
        {"gpus": 2, "duration_s": 5000, "pdb": 0},
        {"arrive_s": 100, "depart_s": 600, "gpus": 2},
        {"arrive_s": 200, "depart_s": 300, "gpus": 2},
    )
    sim = Simulator(hand_tape(pods, end_s=1000, pdb_allowed=[1]), ONE)
    greedy = make_selector("greedy-cost")
    first = sim.next_decision()
    assert first is not None
    sim.apply(greedy.select(sim.state, first))
    assert sim.state.arrays.pdb_left.tolist() == [0]
    second = sim.next_decision()
    while second is not None:
        assert greedy.select(sim.state, second) is None
        sim.apply(None)
        second = sim.next_decision()
    assert sim.events.account[0]["victims"] == 1
    assert sim.events.account[0]["waiting"].tolist() == [2 * 30, 2 * 60, 0, 0, 0]
    assert sim.events.account[0]["late"].tolist() == [0, 2 * 40, 0, 0, 0]
    assert sim.state.arrays.pdb_left.tolist() == [1]


def test_warm_up_is_not_charged() -> None:
    pods = (
        {"arrive_s": -1000, "gpus": 4, "duration_s": 5000},
        {"arrive_s": -500, "depart_s": 100, "gpus": 2},
    )
    sim = Simulator(hand_tape(pods, end_s=200, warmup_s=1000), ONE)
    account = play(sim)
    assert account == {"idle": 2 * 100, "online": 2 * 100, "batch": 4 * 100}


def stopped() -> Simulator:
    """Return a simulation that waits for a decision: pods 0, 1 run, 3 is protected, 2 asks."""
    pods = (
        {"gpus": 2, "duration_s": 5000},
        {"gpus": 2, "duration_s": 5000, "preemptible": 0},
        {"arrive_s": 100, "depart_s": 600, "gpus": 2},
    )
    sim = Simulator(hand_tape(pods, end_s=1000), ONE)
    assert sim.next_decision() is not None
    return sim


def chosen(sim: Simulator) -> Candidate:
    pod = sim.state.pod(2)
    candidate = sim.state.candidate(0, [0], pod)
    assert candidate is not None
    return candidate


def test_a_decision_is_checked() -> None:
    sim = stopped()
    legal = chosen(sim)
    with pytest.raises(PodError, match="may not be evicted"):
        sim.apply(Candidate(0, (1,), 0b11, (2, 0), legal.level))
    with pytest.raises(PodError, match="does not fit"):
        sim.apply(Candidate(0, (), 0b11, (2, 0), legal.level))
    with pytest.raises(PodError, match="node -1; legal: 0 to"):
        sim.apply(Candidate(-1, (0,), 0b11, (2, 0), legal.level))
    with pytest.raises(PodError, match="pod index -1; legal: 0 to"):
        sim.apply(Candidate(0, (-1,), 0b11, (2, 0), legal.level))
    sim.apply(legal)
    status = sim.state.arrays.live["status"]
    assert status[0] == TERMINATING
    with pytest.raises(PodError, match="no pod waits"):
        sim.apply(legal)


def test_a_pod_left_pending_is_asked_about_after_the_next_event() -> None:
    pods = (
        {"gpus": 4, "duration_s": 5000},
        {"arrive_s": 100, "depart_s": 600, "gpus": 2},
        {"arrive_s": 200, "gpus": 4, "duration_s": 100},
    )
    sim = Simulator(hand_tape(pods, end_s=1000), ONE, scenario=Scenario(deadline="soft"))
    times = []
    while sim.next_decision() is not None:
        times.append(sim.state.now_s)
        sim.apply(None)
    assert times == [100, 200]
    assert sim.events.account[0]["waiting"][0] == 2 * 60
    assert sim.events.account[0]["late"][0] == 2 * 440
    assert sim.state.arrays.live["status"].tolist() == [RUNNING, DONE, PENDING]


def test_mistakes_name_what_is_legal() -> None:
    with pytest.raises(WorkloadError, match="5 GPUs"):
        Simulator(hand_tape([{"gpus": 5, "duration_s": 1}], end_s=10), ONE)
    with pytest.raises(FlextopoError, match="best-effort, restricted"):
        Scenario(admission="none")
