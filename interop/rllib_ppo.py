"""Train one iteration of RLlib's PPO with its own module for action masks."""

import gymnasium
import numpy as np
from gymnasium import spaces
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

PARTS = ("candidates", "preemptor", "cluster")


class Masked(gymnasium.ObservationWrapper):
    """Name the mask and the flat rest as RLlib's module wants them; count illegal actions."""

    invalid = 0
    steps = 0

    def __init__(self, config):
        super().__init__(gymnasium.make("flextopo:flextopo/Preempt-RTX4090-v0", **config))
        parts = self.env.observation_space
        size = sum(parts[name].shape[0] * (parts[name].shape[1:] or (1,))[0] for name in PARTS)
        self.observation_space = spaces.Dict(
            {
                "action_mask": spaces.Box(0.0, 1.0, parts["action_mask"].shape, np.float32),
                "observations": spaces.Box(-1.0, 1.0, (size,), np.float32),
            }
        )

    def observation(self, observation):
        """Flatten."""
        flat = np.concatenate([observation[name].ravel() for name in PARTS])
        return {
            "action_mask": observation["action_mask"].astype(np.float32),
            "observations": flat,
        }

    def step(self, action):
        """Step, and remember whether the action was legal."""
        found = super().step(action)
        Masked.steps += 1
        Masked.invalid += found[4]["invalid_action"]
        return found


def main():
    """Train, and see that masks were kept."""
    module = RLModuleSpec(
        module_class=ActionMaskingTorchRLModule, model_config={"head_fcnet_hiddens": [64]}
    )
    config = (
        PPOConfig()
        .environment(Masked, env_config={"k": 16, "servers": "16*rtx4090"})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1)
        .training(train_batch_size_per_learner=256, minibatch_size=64, num_epochs=2)
        .rl_module(rl_module_spec=module)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    result = algorithm.train()
    returns = result["env_runners"]["episode_return_mean"]
    algorithm.stop()
    assert Masked.steps >= 256, Masked.steps
    assert Masked.invalid == 0, f"{Masked.invalid} of {Masked.steps} actions were illegal"
    assert np.isfinite(returns)
    print(f"{Masked.steps} decisions, none illegal; mean return {returns:.1f}")


if __name__ == "__main__":
    main()
