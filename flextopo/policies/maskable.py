"""The candidate scorer as a policy of sb3-contrib's MaskablePPO, there under the name "CandidatePolicy"."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch import Tensor

from flextopo.policies.network import CandidateScorer, ScorerConfig


class CandidatePolicy(MaskableActorCriticPolicy):
    """Actor and critic from one `CandidateScorer`, whose weights do not depend on K.

    `MaskablePPO("CandidatePolicy", env)` means this class once flextopo is imported. The masks come from
    the environment's `action_masks()`, or from the observation where nobody gives them.

    Args:
        scorer: size of the network; the other arguments are the base class's.

    Warns:
        UserWarning: the observation's mask is not 0 and 1, or forbids everything, as behind
            `VecNormalize(norm_obs=True)`.
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

    def _run(self, obs: Any, action_masks: Any = None) -> tuple[Tensor, Tensor]:
        mask = obs["action_mask"]
        if action_masks is not None:
            mask = torch.as_tensor(action_masks, device=mask.device).reshape(mask.shape)
        scores, value = self.scorer.packed(
            obs["preemptor"], obs["cluster"], obs["candidates"], mask
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
        check_masks(obs["action_mask"])
        scores, value = self._run(obs, action_masks)
        distribution = self._distribution(scores, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, value, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Any, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, log probabilities of the actions, and entropy."""
        scores, value = self._run(obs, action_masks)
        distribution = self._distribution(scores, action_masks)
        return value, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Any, action_masks: Any = None) -> MaskableDistribution:
        """Return the distribution over actions."""
        check_masks(obs["action_mask"])
        return self._distribution(self._run(obs, action_masks)[0], action_masks)

    def predict_values(self, obs: Any) -> Tensor:
        """Return the values, (B, 1)."""
        return self._run(obs)[1]

    def extract_features(self, obs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the observation as tensors: the scorer reads the fields themselves."""
        return obs


MaskablePPO.policy_aliases["CandidatePolicy"] = CandidatePolicy


def check_masks(masks: Tensor) -> None:
    """Warn, once a place, where (B, K + 1) masks of observations cannot be what an environment showed."""
    if not (((masks == 0) | (masks == 1)).all() and masks.any(-1).all()):
        warnings.warn(
            "the action_mask of an observation is not 0 and 1 with one legal action at least, as behind "
            "VecNormalize(norm_obs=True); legal: VecNormalize(norm_obs=False), since observations are "
            "within -1 and 1 already",
            stacklevel=2,
        )


def use_threads(count: int) -> None:
    """Let torch use that many threads; more than one loses when the machine is busy."""
    torch.set_num_threads(count)
