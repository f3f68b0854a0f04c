"""Deep Q-learning with the candidate scorer, for the ablation: what values instead of a policy buy.

Stable-Baselines3's DQN knows neither masks nor time, so three things are added. Scores of illegal
actions are far below all others, in the target's maximum too. Exploration draws legal actions alone.
And a transition counts as the end of the episode with the probability that its discount leaves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.train.config import PPOConfig
from flextopo.train.ppo import make_envs
from flextopo.train.rollout_buffer import REWARD_SCALE, spread

MEMORY = 100_000
"""Transitions that are remembered."""

RANDOM = 10_000
"""Random decisions before the first update."""


class TimedReplayBuffer(DictReplayBuffer):
    """A replay buffer that discounts by elapsed time, as `TimedRolloutBuffer` does.

    With the discount d of a step, `dones` holds 1 - d: what comes behind counts d times, as if the
    episode ended there with that probability. Use it with gamma = 1.

    Args:
        clock: has `elapsed_s`, (B,) seconds of the last step; the environments.
        tau_s: time constant of the discount.
        args: as `DictReplayBuffer`.
    """

    def __init__(self, *args: Any, clock: Any, tau_s: float, **kwargs: Any) -> None:
        self.clock, self.tau_s = clock, tau_s
        super().__init__(*args, **{**kwargs, "handle_timeout_termination": False})

    def add(self, *args: Any) -> None:
        """Add one step of all environments; arguments as in the base class."""
        obs, next_obs, action, reward, done, infos = args
        spans = self.clock.elapsed_s / self.tau_s
        ends = np.where(done, 1.0, -np.expm1(-spans))
        super().add(obs, next_obs, action, reward * spread(spans) * REWARD_SCALE, ends, infos)


class _ScorerQ(nn.Module):
    """A scorer whose scores are values of actions."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.scorer = CandidateScorer(config)

    def forward(self, obs: Any) -> torch.Tensor:
        """Return the values, (B, K + 1)."""
        fields = ("preemptor", "cluster", "candidates", "action_mask")
        scores, _ = self.scorer.packed(*(obs[field] for field in fields))
        return scores

    def _predict(self, obs: Any, deterministic: bool = True) -> torch.Tensor:
        return self.forward(obs).argmax(1)

    def set_training_mode(self, mode: bool) -> None:
        """Set the mode, which changes nothing here."""
        self.train(mode)


class _ScorerQPolicy(DQNPolicy):
    def __init__(self, *args: Any, scorer: ScorerConfig, **kwargs: Any) -> None:
        self._scorer_config = scorer
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> Any:
        """Return a network."""
        return _ScorerQ(self._scorer_config).to(self.device)


class MaskedDQN(DQN):
    """DQN that explores among the legal actions, each environment by itself."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], Any]:  # fmt: skip
        """Return actions; random ones at the rate of exploration unless `deterministic`."""
        actions, state = self.policy.predict(observation, state, episode_start, True)
        if not deterministic:
            random = _uniform(actions.shape) < self.exploration_rate
            actions = np.where(random, draw_legal(observation["action_mask"]), actions)
        return actions, state

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        seen: Any = self._last_obs
        if self.num_timesteps < learning_starts:
            actions = draw_legal(seen["action_mask"])
        else:
            actions, _ = self.predict(seen)
        return actions, actions


def _uniform(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Draw from [0, 1) with numpy's global generator: that is what Stable-Baselines3 seeds."""
    return np.random.random(shape)  # noqa: NPY002


def draw_legal(mask: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Draw a legal action of each row of (B, K + 1); where there is none, 0."""
    drawn: npt.NDArray[np.int64] = np.where(mask != 0, _uniform(mask.shape), -1.0).argmax(-1)
    return drawn


def train_dqn(config: PPOConfig) -> CandidateScorer:
    """Return the network of a training from scratch.

    Args:
        config: environments, decisions, learning rate, batch, discount and seed are taken from it.
    """
    envs = make_envs(config)
    model = MaskedDQN(
        _ScorerQPolicy,
        envs,
        learning_rate=config.learning_rate,
        buffer_size=MEMORY,
        learning_starts=min(RANDOM, config.timesteps // 2),
        batch_size=config.batch_size,
        gamma=1.0,  # the buffer discounts
        train_freq=1,
        gradient_steps=1,
        replay_buffer_class=TimedReplayBuffer,
        replay_buffer_kwargs={"clock": envs, "tau_s": config.tau_s},
        target_update_interval=100 * config.num_envs,
        exploration_fraction=0.3,
        policy_kwargs={"scorer": ScorerConfig(config.hidden)},
        seed=config.seed,
        device=config.device,
    )
    try:
        model.learn(config.timesteps)
    finally:
        envs.close()
    network: Any = model.q_net
    scorer: CandidateScorer = network.scorer
    return scorer
