"""The candidate scorer as a policy of sb3-contrib's MaskablePPO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch import Tensor

from flextopo.policies.network import CandidateScorer, ScorerConfig


class ScorerPolicy(MaskableActorCriticPolicy):
    """Actor and critic from one `CandidateScorer`, whose weights do not depend on K.

    Args:
        scorer: size of the network; the other arguments are the base class's.
    """

    def __init__(self, *args: Any, scorer: ScorerConfig | None = None, **kwargs: Any) -> None:
        self._scorer_config = scorer or ScorerConfig()
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        width = self.observation_space["candidates"].shape[-1]  # type: ignore[index]
        self.scorer = CandidateScorer(replace(self._scorer_config, width=width))
        self.optimizer = self.optimizer_class(  # type: ignore[call-arg]
            self.scorer.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "scorer": self._scorer_config}

    def _run(self, obs: Any) -> tuple[Tensor, Tensor]:
        scores, value = self.scorer.packed(
            obs["preemptor"], obs["cluster"], obs["candidates"], obs["action_mask"]
        )
        return scores, value.unsqueeze(-1)

    def _distribution(self, scores: Tensor, action_masks: Any) -> MaskableDistribution:
        distribution = self.action_dist.proba_distribution(action_logits=scores)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def forward(
        self, obs: Any, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions, values and log probabilities."""
        scores, value = self._run(obs)
        distribution = self._distribution(scores, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, value, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Any, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, log probabilities of the actions, and entropy."""
        scores, value = self._run(obs)
        distribution = self._distribution(scores, action_masks)
        return value, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Any, action_masks: Any = None) -> MaskableDistribution:
        """Return the distribution over actions."""
        return self._distribution(self._run(obs)[0], action_masks)

    def predict_values(self, obs: Any) -> Tensor:
        """Return the values, (B, 1)."""
        return self._run(obs)[1]

    def extract_features(self, obs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the observation as tensors: the scorer reads the fields themselves."""
        return obs


def use_threads(count: int) -> None:
    """Let torch use that many threads; more than one loses when the machine is busy."""
    torch.set_num_threads(count)
