"""Stable-Baselines3's interface to the native vector environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tapes import BUSY, same

pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import Scenario
from flextopo.envs.greedy_losses import GreedyLosses
from flextopo.envs.preemption import PreemptionEnv
from flextopo.policies.maskable import CandidatePolicy
from flextopo.train.vec_env import PreemptionVecEnv

SMALL = "2*rtx4090,2*a100"


def test_it_gives_what_the_scalar_environments_give() -> None:
    """Autoreset in the same step, with what Stable-Baselines3 wants to know of the end."""
    envs = PreemptionVecEnv(3, SMALL, workload=BUSY, tapes=8)
    scalar = [PreemptionEnv(SMALL, workload=BUSY, tapes=8) for _ in range(3)]
    envs.seed(4)
    shown: Any = envs.reset()
    for i, env in enumerate(scalar):
        assert same(env.reset(seed=4 + i)[0]["candidates"], shown["candidates"][i])
    returns, lengths, ended = np.zeros(3), [0, 0, 0], 0
    for _ in range(120):
        shown, rewards, over, infos = envs.step(np.zeros(3, np.int64))
        for i, env in enumerate(scalar):
            observation, reward, _, truncated, info = env.step(0)
            assert (np.float32(reward), truncated) == (rewards[i], over[i])
            returns[i] += reward
            lengths[i] += 1
            if truncated:
                ended += 1
                last = infos[i]["terminal_observation"]
                assert all(same(observation[name], last[name]) for name in observation)
                assert infos[i]["TimeLimit.truncated"]
                assert infos[i]["episode"] == {"r": returns[i], "l": lengths[i]}
                assert infos[i]["metrics"] == pytest.approx(info["metrics"], nan_ok=True)
                returns[i], lengths[i] = 0.0, 0
                observation = env.reset()[0]
            assert all(same(observation[name], shown[name][i]) for name in observation)
        assert (get_action_masks(envs) == shown["action_mask"].astype(bool)).all()
    assert ended > 0
    assert is_masking_supported(envs)
    assert envs.env_method("action_masks", indices=1)[0].shape == (65,)
    with pytest.raises(AttributeError, match="legal: action_masks"):
        envs.env_method("render")
    with pytest.raises(AttributeError, match="no attributes of their own"):
        envs.set_attr("k", 3)
    envs.close()
    with pytest.raises(FlextopoError, match="copy = False; legal: True, since"):
        PreemptionVecEnv(2, SMALL, copy=False)


def test_a_relative_reward_sums_to_the_loss_beyond_greedys() -> None:
    """Over a day, whatever is done: plain return less greedy-cost's; 0 for greedy-cost itself."""
    soft = Scenario(deadline="soft")  # so that waiting all day is possible
    arguments: dict[str, Any] = {"k": 8, "workload": BUSY, "tapes": 4, "scenario": soft}
    plain = PreemptionVecEnv(2, SMALL, **arguments)
    relative = PreemptionVecEnv(2, SMALL, relative=True, **arguments)
    for action in (0, 8):
        for envs in (plain, relative):
            envs.seed(5)
            envs.reset()
        core = relative.vector.core
        assert core.batch is not None
        days, begin_s = core.batch.running.tape.copy(), core.batch.outcome["time_s"]
        sums, over = np.zeros((2, 2)), np.zeros(2, bool)
        while not over.all():
            steps = [envs.step(np.full(2, action)) for envs in (plain, relative)]
            assert (plain.elapsed_s == relative.elapsed_s).all()
            assert (relative.elapsed_s >= 0).all()
            for i, (_, rewards, _, _) in enumerate(steps):
                sums[i][~over] += rewards[~over]
            over |= steps[0][2]
        curves = GreedyLosses(core.simulate, core.fleet.num_gpus)
        offset = curves.between(days, begin_s, np.full(2, 86400))
        assert sums[1] == pytest.approx(sums[0] + offset, rel=1e-4)
        for day, begin in zip(days.tolist(), begin_s.tolist(), strict=True):
            lost = core.simulate(day).greedy_loss(begin) / 36.0 / core.fleet.num_gpus
            before, after = curves.curve(day)[begin // 300 :][:2]
            assert before - 1e-9 <= lost <= after + 1e-9
        # Greedy-cost's own decision at the start of a cell of the curve is spread over the cell.
        assert (np.abs(sums[1]) < 6 if action == 0 else sums[1] < -20).all(), sums[1]


def test_training_on_it_is_repeatable_and_counts_episodes() -> None:
    def train() -> tuple[list[float], list[float]]:
        envs = PreemptionVecEnv(4, SMALL, k=8, tapes=8)
        model = MaskablePPO(CandidatePolicy, envs, n_steps=32, batch_size=64, n_epochs=2, seed=3)
        model.learn(256)
        weights = [float(p.detach().sum()) for p in model.policy.parameters()]
        return weights, [episode["r"] for episode in model.ep_info_buffer or ()]

    first, second = train(), train()
    assert first == second
    assert first[1]
