"""The two learners that `ppo.py` and `ppo_budget.py` measure: `examples/ppo.py`, and MaskablePPO."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from flextopo.policies.runtime import LearnedSelector

DOCUMENTED = 4, 256, 3e-4
"""Epochs, batch and learning rate of MaskablePPO in docs/how-to/train-with-ppo.md."""

NEVER = 10**9
"""Updates between two lines of a log."""

PATH = Path(__file__).parents[1] / "examples" / "ppo.py"


def load_example(tapes: int) -> Any:
    """Return `examples/ppo.py` as a module that learns from so many tapes; 0 = as many as it says."""
    spec = importlib.util.spec_from_file_location("ppo_example", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if tapes:
        module.ENVIRONMENT["tapes"] = tapes
    return module


class Example:
    """`examples/ppo.py`, update by update.

    Args:
        seed: of everything.
        tapes: to learn from; 0 = as many as it says.
    """

    def __init__(self, seed: int, tapes: int = 0) -> None:
        torch.manual_seed(seed)
        self.ppo = load_example(tapes)
        self.rollouts = self.ppo.Rollouts(seed)
        self.network = self.ppo.make_network(self.rollouts.observation)
        self.optimiser = self.ppo.make_optimiser(self.network)
        self.decisions = self.ppo.NUM_ENVS * self.ppo.STEPS

    def learn(self, rate: float) -> None:
        """Play and learn from `decisions` decisions with that share of the learning rate."""
        self.optimiser.param_groups[0]["lr"] = rate * self.ppo.LEARNING_RATE
        self.ppo.update(self.network, self.optimiser, *self.rollouts.play(self.network))

    def selector(self) -> LearnedSelector:
        """Return what has been learned."""
        return selector_of("example", self.network, self.ppo)


class Maskable:
    """MaskablePPO with CandidatePolicy on the same environments.

    Args:
        seed: of everything.
        tapes: as `Example`.
        like_the_example: with as many epochs, batches and steps as the example, and not as
            docs/how-to/train-with-ppo.md says.
    """

    def __init__(self, seed: int, tapes: int = 0, like_the_example: bool = False) -> None:
        from sb3_contrib import MaskablePPO

        from flextopo.train.rollout_buffer import TimedRolloutBuffer
        from flextopo.train.vec_env import PreemptionVecEnv

        self.ppo = ppo = load_example(tapes)
        arguments = {k: v for k, v in ppo.ENVIRONMENT.items() if k != "autoreset_mode"}
        self.envs = PreemptionVecEnv(ppo.NUM_ENVS, "16*rtx4090", **arguments)
        how = (ppo.EPOCHS, ppo.MINIBATCH, ppo.LEARNING_RATE) if like_the_example else DOCUMENTED
        epochs, batch, learning_rate = how
        self.learning_rate: float = learning_rate
        self.rate = self.learning_rate
        self.model = MaskablePPO(
            "CandidatePolicy",
            self.envs,
            n_steps=ppo.STEPS,
            n_epochs=epochs,
            batch_size=batch,
            learning_rate=lambda _: self.rate,
            rollout_buffer_class=TimedRolloutBuffer,
            rollout_buffer_kwargs={"clock": self.envs},
            gamma=0.0,  # the buffer discounts
            ent_coef=ppo.ENTROPY,
            seed=seed,
            device="cpu",
        )
        self.decisions = ppo.NUM_ENVS * ppo.STEPS

    def learn(self, rate: float) -> None:
        """Play and learn from `decisions` decisions with that share of the learning rate."""
        self.rate = rate * self.learning_rate
        self.model.learn(self.decisions, log_interval=NEVER, reset_num_timesteps=False)

    def selector(self) -> LearnedSelector:
        """Return what has been learned."""
        return selector_of("MaskablePPO", self.model.policy.scorer, self.ppo)


def selector_of(name: str, network: Any, ppo: Any) -> LearnedSelector:
    """Return a network as a selector that takes the action of the highest score."""
    weights = {key: value.detach().numpy().copy() for key, value in network.state_dict().items()}
    return LearnedSelector(name, weights, ppo.ENVIRONMENT["k"], ppo.ENVIRONMENT["allow_wait"])
