"""Options of the environments for training: relative rewards, short episodes, shuffled candidates."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tapes import BUSY, same

import flextopo  # noqa: F401
from flextopo.baselines.registry import make_selector
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import CANDIDATE_FEATURES
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.workload.generator import generate_tape
from flextopo.envs.candidate_order import shuffled_places
from flextopo.envs.core import Core
from flextopo.envs.graph import GraphObservation
from flextopo.envs.greedy_losses import GreedyLosses
from flextopo.envs.preemption import PreemptionEnv
from flextopo.envs.vector import PreemptionVectorEnv

SMALL = "2*rtx4090,2*a100"
ID = "flextopo/Preempt-RTX4090-v0"
OPTIONS: dict[str, Any] = {"relative": True, "shuffle": True, "episode_h": 5}
COMMON: dict[str, Any] = {"workload": BUSY, "tapes": 8, "k": 16}


def cheapest(observation: Any) -> int:
    """Return the place of the candidate of the least own loss, which only its features tell."""
    legal = observation["action_mask"][:-1] == 1
    gap = observation["candidates"][:, list(CANDIDATE_FEATURES).index("cost_gap")]
    return int(np.where(legal, gap, np.inf).argmin())


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_vector_gives_what_the_scalar_environments_give(mode: str) -> None:
    vector = gym.make_vec(
        ID, 3, "vector_entry_point", servers=SMALL, autoreset_mode=mode, **COMMON, **OPTIONS
    )
    scalar = gym.vector.SyncVectorEnv(
        [lambda: gym.make(ID, servers=SMALL, **COMMON, **OPTIONS).unwrapped] * 3,
        autoreset_mode=gym.vector.AutoresetMode(mode),
    )
    ours, theirs = vector.reset(seed=3)[0], scalar.reset(seed=3)[0]
    rng, ended = np.random.default_rng(0), 0
    for _ in range(150):
        assert all(same(ours[name], theirs[name]) for name in ours)
        actions = (rng.random(ours["action_mask"].shape) * ours["action_mask"]).argmax(1)
        ours, reward, _, over, _ = vector.step(actions)
        theirs, other, _, also, _ = scalar.step(actions)
        assert (reward == other).all()
        assert (over == also).all()
        ended += int(over.sum())
    assert ended > 0


def test_shuffled_candidates_are_the_same_ones_and_actions_mean_them() -> None:
    plain, shuffled = PreemptionEnv(SMALL, **COMMON), PreemptionEnv(SMALL, shuffle=True, **COMMON)
    a, b = plain.reset(seed=5)[0], shuffled.reset(seed=5)[0]
    moved, over, rng = 0, False, np.random.default_rng(1)
    while not over:
        order = shuffled.core.order
        assert order is not None
        assert same(b["candidates"], a["candidates"][order[0]])
        assert same(b["action_mask"], a["action_mask"])
        count = int(a["action_mask"][:-1].sum())
        assert (order[0][count:] == np.arange(count, 16)).all()
        moved += int((order[0] != np.arange(16)).any())
        action = int(rng.integers(count))
        a, reward, _, over, _ = plain.step(int(order[0][action]))
        b, other, _, _, _ = shuffled.step(action)
        assert reward == other
    assert moved > 1


def test_waiting_and_empty_places_mean_the_same_when_candidates_are_shuffled() -> None:
    plain, shuffled = PreemptionEnv(SMALL, **COMMON), PreemptionEnv(SMALL, shuffle=True, **COMMON)
    mask = plain.reset(seed=6)[0]["action_mask"]
    shuffled.reset(seed=6)
    for action in (16, int(np.flatnonzero(mask == 0)[0]) if (mask[:-1] == 0).any() else 16):
        assert plain.step(action)[1:4] == shuffled.step(action)[1:4]


def test_no_place_is_the_cheapest_ones_more_often_than_another() -> None:
    """Where each of 4 places is as likely, 4,000 draws stay within four standard deviations."""
    count = np.full(4000, 4)
    decisions = np.arange(4000), np.full(4000, 300), np.arange(4000) % 7
    places = shuffled_places(decisions, count, 6)
    assert (np.sort(places, axis=1) == np.arange(6)).all()
    found = np.bincount((places == 0).argmax(1), minlength=6)
    assert (np.abs(found[:4] - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)).all()
    assert (found[4:] == 0).all()
    again = shuffled_places(decisions, count, 6)
    assert (places == again).all()
    assert (shuffled_places(tuple(d + 1 for d in decisions), count, 6) != places).any()


def test_a_partial_reset_leaves_the_order_of_the_others() -> None:
    env = PreemptionVectorEnv(2, SMALL, shuffle=True, autoreset_mode="Disabled", **COMMON)
    before = env.reset(seed=1)[0]["candidates"].copy()
    after = env.reset(options={"reset_mask": np.array([False, True])})[0]["candidates"]
    assert same(before[0], after[0])
    assert not same(before[1], after[1])


def test_graphs_stand_where_their_candidates_do() -> None:
    plain = GraphObservation(PreemptionEnv(SMALL, **COMMON))
    shuffled = GraphObservation(PreemptionEnv(SMALL, shuffle=True, **COMMON))
    a, b = plain.reset(seed=5)[0], shuffled.reset(seed=5)[0]
    order = shuffled.unwrapped.core.order[0]  # type: ignore[attr-defined]
    assert (order != np.arange(16)).any()
    assert same(b["graph"], a["graph"][order])


def test_short_episodes_begin_busy_at_a_full_hour_after_greedy_cost() -> None:
    env = PreemptionEnv(SMALL, episode_h=5, **COMMON)
    greedy, hours = make_selector("greedy-cost"), set()
    for seed in range(6):
        _, info = env.reset(options={"tape_seed": seed})
        sim = env.simulator
        begin_s = sim.rules.end_s - 5 * 3600
        assert begin_s % 3600 == 0
        assert 0 <= begin_s <= info["time_s"] < sim.rules.end_s == sim.tape.end_s
        hours.add(begin_s)
        over = False
        while not over:
            _, _, _, over, info = env.step(0)
        whole = Simulator(sim.tape, env.fleet)  # the same tape, played by greedy-cost from time 0
        whole.play(greedy)
        for name in ("preemptions", "gpus_evicted"):
            if name in (whole.events.account.dtype.names or ()):
                mine, theirs = env.simulator.events.account[0][name], whole.events.account[0][name]
                assert mine == theirs
        assert info["time_s"] == begin_s + 5 * 3600
    assert len(hours) > 2
    env.reset(options={"tape_seed": 0})
    assert env.simulator.state.arrays.totals[0]["online_gpus"] > 0


def test_an_episode_as_long_as_the_tape_is_the_tape() -> None:
    whole, same_one = PreemptionEnv(SMALL, **COMMON), PreemptionEnv(SMALL, episode_h=24, **COMMON)
    assert same(whole.reset(seed=2)[0], same_one.reset(seed=2)[0])
    for wrong in (0, -1, float("nan")):
        with pytest.raises(FlextopoError, match=r"episode_h = .*; legal: above 0, or None"):
            PreemptionEnv(SMALL, episode_h=wrong)


def test_a_relative_reward_of_the_cheapest_candidates_is_nothing() -> None:
    """Beyond what the first cell of the curve spreads; a policy that waits instead loses."""
    env = PreemptionEnv(SMALL, relative=True, shuffle=True, **COMMON)
    shown, _ = env.reset(seed=3)
    total, over = 0.0, False
    while not over:
        shown, reward, _, over, _ = env.step(cheapest(shown))
        total += reward
    assert abs(total) < 6


def test_pickled_environments_with_all_options_go_on_alike() -> None:
    env = PreemptionVectorEnv(3, SMALL, autoreset_mode="SameStep", **COMMON, **OPTIONS)
    env.reset(seed=8)
    twin = pickle.loads(pickle.dumps(env))
    for _ in range(40):
        one, two = env.step([0] * 3), twin.step([0] * 3)
        assert all(same(one[0][name], two[0][name]) for name in one[0])
        assert (one[1] == two[1]).all()
    assert isinstance(env.core, Core)


def test_curves_of_tapes_of_any_length_stand_in_one_table() -> None:
    """A longer tape widens it; shorter ones stay at their last value."""
    fleet = PreemptionEnv(SMALL, **COMMON).fleet
    lengths = {0: 6.0, 1: 24.0, 2: 3.0, 3: 6.0}

    def simulate(tape: int) -> Simulator:
        config = replace(BUSY, horizon_h=lengths[tape])
        return Simulator(generate_tape(config, fleet.num_gpus, tape), fleet)

    curves = GreedyLosses(simulate, fleet.num_gpus)
    for tape in (0, 1, 2, 3):
        end_s = int(lengths[tape] * 3600)
        times_s = np.array([0]), np.array([end_s])
        lost = simulate(tape).greedy_loss(end_s) / 36.0 / fleet.num_gpus
        assert curves.between(np.array([tape]), *times_s) == pytest.approx(lost)
    assert (np.diff([curves.curve(tape) for tape in lengths]) >= -1e-9).all()
