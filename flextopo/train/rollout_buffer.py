"""Rollouts of decisions that are unevenly spaced in time, and of a policy that stays near another.

An online pod that waits is asked about after every event, so decisions come in bursts. A discount a
decision would make waiting shorten the future; here it goes by simulated time, so that asking more
often changes nothing (a semi-Markov decision process).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer

from flextopo.policies.network import CandidateScorer

TAU_S = 4 * 3600.0
"""Default time constant of the discount, in simulated seconds."""

REWARD_SCALE = 0.05
"""Brings returns, tens of GPU-hours per 100 GPUs, to about 1, so that the critic's gradient leaves
room for the actor's under the common limit."""


class TimedRolloutBuffer(MaskableDictRolloutBuffer):
    """A rollout buffer that discounts by elapsed time.

    A step of dt seconds has the discount exp(-dt / tau). Its reward is taken as spread evenly over
    these seconds, so it counts (1 - exp(-dt / tau)) / (dt / tau) times.

    Args:
        clock: has `elapsed_s`, (B,) seconds of the last step; the environments.
        tau_s: time constant of the discount.
        reference: the reward loses `kl` times the log ratio of the probabilities that the policy
            and this network give the action; None = nothing.
        kl: weight of it, in units of the reward.
        args: as `MaskableDictRolloutBuffer`; `gamma` is not used.
    """

    def __init__(
        self,
        *args: Any,
        clock: Any,
        tau_s: float = TAU_S,
        reference: CandidateScorer | None = None,
        kl: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.clock, self.tau_s, self.reference, self.kl = clock, tau_s, reference, kl
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Forget the rollout."""
        self.discounts = np.ones((self.buffer_size, self.n_envs), np.float32)
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add one step of all environments; arguments as in the base class."""
        obs, action, reward, *others = args
        spans = self.clock.elapsed_s / self.tau_s
        reward = reward * spread(spans) * REWARD_SCALE
        if self.reference is not None and self.kl > 0.0:
            reward = reward - self.kl * self._log_ratio(obs, action, others[-1])
        self.discounts[self.pos] = np.exp(-spans)
        super().add(obs, action, reward, *others, **kwargs)

    def _log_ratio(
        self, obs: Any, action: npt.NDArray[np.int64], log_prob: torch.Tensor
    ) -> npt.NDArray[np.float32]:
        assert self.reference is not None
        fields = ("preemptor", "cluster", "candidates", "action_mask")
        with torch.no_grad():
            scores, _ = self.reference.packed(*(torch.as_tensor(obs[name]) for name in fields))
            known = torch.log_softmax(scores, -1)
            at = torch.as_tensor(action).reshape(-1, 1)
            ratio: npt.NDArray[np.float32] = (
                log_prob.cpu().flatten() - known.gather(1, at).flatten()
            ).numpy()
        return ratio

    def compute_returns_and_advantage(
        self, last_values: torch.Tensor, dones: npt.NDArray[Any]
    ) -> None:
        """Compute lambda-returns and generalised advantages; lambda counts a decision."""
        values = np.concatenate([self.values, last_values.cpu().numpy().reshape(1, -1)])
        goes_on = 1.0 - np.concatenate([self.episode_starts[1:], dones.reshape(1, -1)])
        advantage = np.zeros(self.n_envs)
        for step in reversed(range(self.buffer_size)):
            ahead = self.discounts[step] * goes_on[step]
            error = self.rewards[step] + ahead * values[step + 1] - values[step]
            advantage = error + self.gae_lambda * ahead * advantage
            self.advantages[step] = advantage
        self.returns = self.advantages + self.values


def spread(spans: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return (1 - exp(-x)) / x, the weight of a reward spread over x time constants; 1 at 0."""
    safe = np.where(spans > 1e-9, spans, 1.0)
    return np.where(spans > 1e-9, -np.expm1(-safe) / safe, 1.0)
