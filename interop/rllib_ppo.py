"""Train the scorer that flextopo ships with RLlib's PPO: one network for all candidates, behind their masks."""

import argparse
from pathlib import Path

import gymnasium
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune.registry import register_env

import flextopo  # noqa: F401
from flextopo.baselines.registry import make_selector
from flextopo.policies.artifact import load_network, save_policy
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import load_policy
from flextopo.train.imitation import play_validation
from flextopo.train.statistics import paired_difference

NAME, K, SERVERS = "flextopo/Preempt-RTX4090-v0", 16, "16*rtx4090"
WORLD = {
    "k": K,
    "servers": SERVERS,
    "allow_wait": False,  # from scratch, waiting is the one action that is always there
    "relative": True,  # beyond what greedy-cost loses on the same tape
    "episode_h": 6,  # many different hours instead of few days
}
PARTS = ("preemptor", "cluster", "candidates", "action_mask")


class SharedScorer(TorchRLModule, ValueFunctionAPI):
    """A `CandidateScorer`: the same weights score every candidate; actions that are not legal have none."""

    def setup(self):
        """Make the network, or take that of `model_config["start"]`."""
        width = self.observation_space["candidates"].shape[-1]
        start = self.model_config["start"]
        config = ScorerConfig(hidden=64, width=width)
        self.scorer = load_network(start, width) if start else CandidateScorer(config)

    def _forward(self, batch, **kwargs):
        """Return the scores of all actions as logits; of those that are not legal far below all others."""
        scores, _ = self._score(batch)
        return {Columns.ACTION_DIST_INPUTS: scores}

    def compute_values(self, batch, embeddings=None):
        """Return the values, (B,)."""
        return self._score(batch)[1]

    def _score(self, batch):
        return self.scorer(*(batch[Columns.OBS][part].float() for part in PARTS))


class Counted(gymnasium.Wrapper):
    """Count actions, and those among them that were not legal."""

    steps = invalid = 0

    def step(self, action):
        """Step, and remember whether the action was legal."""
        found = super().step(action)
        Counted.steps += 1
        Counted.invalid += found[4]["invalid_action"]
        return found


def learner(options):
    """Return RLlib's PPO with the scorer, on one process."""
    register_env("flextopo", lambda config: Counted(gymnasium.make(NAME, **config)))
    module = RLModuleSpec(module_class=SharedScorer, model_config={"start": options.start})
    config = (
        PPOConfig()
        .environment("flextopo", env_config=WORLD)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .training(
            train_batch_size_per_learner=options.batch,
            minibatch_size=256,
            num_epochs=5,
            lr=3e-4,
            gamma=0.9,
            lambda_=0.95,
            entropy_coeff=0.01,
            grad_clip=0.5,
        )
        .rl_module(rl_module_spec=module)
        .debugging(seed=0)
    )
    return config.build_algo()


def losses_of(selector, tapes):
    """Return the weighted losses on validation tapes, %."""
    return 100 * play_validation(selector, (SERVERS,), tapes)[0]


def main():
    """Train, see that masks were kept, and save a policy that every command of flextopo takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--batch", type=int, default=512, help="decisions an iteration")
    parser.add_argument(
        "--start", default="", help="policy to go on from, such as deepset-imitation"
    )
    parser.add_argument("--tapes", type=int, default=20, help="validation tapes that judge")
    parser.add_argument(
        "--out", type=Path, default=Path("rllib-policy"), help="folder of the policy"
    )
    options = parser.parse_args()
    algorithm = learner(options)
    before = [p.detach().clone() for p in algorithm.get_module().parameters()]
    for _ in range(options.iterations):
        algorithm.train()
    module = algorithm.get_module()  # with the weights that the learner has sent
    moved = [bool((a != b).any()) for a, b in zip(before, module.parameters(), strict=True)]
    policy = load_policy(save_policy(module.scorer, options.out, "rllib", K, allow_wait=False))
    algorithm.stop()
    assert Counted.steps >= options.iterations * options.batch, Counted.steps
    assert Counted.invalid == 0, f"{Counted.invalid} of {Counted.steps} actions were illegal"
    assert sum(moved) > len(moved) // 2, "the scorer did not learn"
    found = paired_difference(
        *(losses_of(one, options.tapes) for one in (policy, make_selector("greedy-cost")))
    )
    assert np.isfinite(found.mean)
    print(
        f"{Counted.steps} decisions, none illegal; beyond greedy-cost: {found.mean:+.2f} points "
        f"[{found.low:+.2f}, {found.high:+.2f}] on {options.tapes} tapes"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
