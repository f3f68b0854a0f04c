"""What preemption does to batch jobs: slowdown, evictions, starvation, back-off, reservations."""

from __future__ import annotations

import numpy as np
import pytest
import tapes

from flextopo.baselines.registry import make_selector
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.tape import Tape

FLEET = Fleet((tapes.DUO,), (0,))
REPLICA = {"gpus": 4, "depart_s": NEVER_S}


def play(tape: Tape, scenario: Scenario | None = None) -> Simulator:
    sim = Simulator(tape, FLEET, scenario=scenario)
    sim.play(make_selector("greedy-cost"))
    sim.state.check_invariants()
    return sim


def test_an_evicted_job_is_slower_and_starves() -> None:
    job = {"arrive_s": 0, "duration_s": 1000, "gpus": 4, "checkpoint_s": 100}
    pods = [job, REPLICA | {"arrive_s": 550, "depart_s": 2000}]
    sim = play(tapes.hand_tape(pods, 10_000))
    # Stopped at 550 with 500 s saved, back at 2000, and 60 s of it are the restart.
    end_s = 2000 + 60 + 500
    metrics = episode_metrics(sim)
    assert np.isclose(metrics["slowdown_mean"], end_s / 1000)
    assert np.isclose(metrics["slowdown_p99"], end_s / 1000)
    assert metrics["evictions_max"] == 1
    assert np.isclose(metrics["starvation_h"], (2000 - 550) / 3600)
    assert np.isclose(metrics["discarded_low_gpu_h"] / 86400 * 10_000, 4 * (50 + 60) / 3600)
    assert metrics["discarded_middle_gpu_h"] == 0


def test_short_jobs_do_not_make_the_slowdown() -> None:
    pods = [
        {"arrive_s": 0, "duration_s": 600, "gpus": 4},
        {"arrive_s": 1, "duration_s": 1, "gpus": 4},
    ]
    metrics = episode_metrics(play(tapes.hand_tape(pods, 10_000)))
    assert np.isclose(metrics["slowdown_p99"], 1.0)


def test_a_group_is_one_job_and_what_waits_still_starves() -> None:
    pods = [
        {"arrive_s": 0, "duration_s": 10**5, "gpus": 4},
        *[{"arrive_s": 100, "duration_s": 1000, "gpus": 2, "group": 0}] * 2,
    ]
    metrics = episode_metrics(play(tapes.hand_tape(pods, 7300)))
    assert metrics["starvation_h"] == 2.0
    assert metrics["evictions_p99"] == 0


def test_the_class_of_what_is_thrown_away_is_told() -> None:
    pods = [
        {"arrive_s": 0, "duration_s": 10**5, "gpus": 2, "batch_class": 1},
        {"arrive_s": 0, "duration_s": 10**5, "gpus": 2},
        REPLICA | {"arrive_s": 3600, "requirement": 0},
    ]
    metrics = episode_metrics(play(tapes.hand_tape(pods, 86400)))
    lost = 2 * (3600 + 60) / 3600
    assert np.isclose(metrics["discarded_low_gpu_h"], lost)
    assert np.isclose(metrics["discarded_middle_gpu_h"], lost)


@pytest.mark.parametrize(
    ("backoff_s", "back"), [(0, [130, 330]), (10, [140, 350]), (400, [490, 690])]
)
def test_an_evicted_job_is_back_in_the_queue_after_its_back_off(
    backoff_s: int, back: list[int]
) -> None:
    job = {"arrive_s": 0, "duration_s": 10**5, "gpus": 4, "checkpoint_s": 1}
    came = [100] if backoff_s > 360 else [100, 300]
    pods = [job, *[REPLICA | {"arrive_s": at, "depart_s": at + 31} for at in came]]
    sim = play(tapes.with_backoff(tapes.hand_tape(pods, 2000), backoff_s))
    live = sim.state.arrays.live[0]
    last = back[0] if len(came) == 1 else back[1]
    assert live["since_s"] == max(last, came[-1] + 31)


def crowded(short_s: int) -> Tape:
    """A 4-GPU job behind a stream of 2-GPU jobs, of which one is always running."""
    first = [
        {"arrive_s": 0, "duration_s": 1000, "gpus": 2},
        {"arrive_s": 0, "duration_s": 500, "gpus": 2},
    ]
    large = {"arrive_s": 10, "duration_s": 1000, "gpus": 4}
    stream = [{"arrive_s": 20 + i, "duration_s": short_s, "gpus": 2} for i in range(12)]
    return tapes.hand_tape([*first, large, *stream], 20_000)


@pytest.mark.parametrize(
    ("backfill", "short_s", "start_s"),
    [("any", 1000, 7000), ("reserve", 1000, 1000), ("easy", 1000, 1000), ("easy", 250, 1000)],
)
def test_a_reservation_keeps_small_jobs_from_passing_a_large_one(
    backfill: str, short_s: int, start_s: int
) -> None:
    sim = play(crowded(short_s), Scenario(backfill=backfill))
    live = sim.state.arrays.live
    assert live["since_s"][2] == start_s
    passed = int((live["since_s"][3:] < start_s).sum())
    assert passed == {"any": 12, "reserve": 0, "easy": 2 if short_s == 250 else 0}[backfill]
