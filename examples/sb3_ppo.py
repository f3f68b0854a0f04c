"""Train with Stable-Baselines3's own PPO, which knows no masks.

An action that is not legal counts as waiting, so the agent first has to learn what is legal: see
custom_network.py for the same with masks. 20,000 decisions take ten seconds.
"""

import argparse

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from flextopo.train.vec_env import PreemptionVecEnv


def main():
    """Train, then play days that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=20_000, help="decisions to learn from")
    parser.add_argument("--days", type=int, default=16, help="to evaluate on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    arguments = {"servers": "16*rtx4090", "k": 16}
    envs = PreemptionVecEnv(16, **arguments, tapes=1024)
    steps = min(128, max(2, options.timesteps // 16))
    model = PPO("MultiInputPolicy", envs, n_steps=steps, batch_size=64, seed=0, device="cpu")
    before = evaluate(model, arguments, options.days)
    model.learn(options.timesteps)
    after = evaluate(model, arguments, options.days)
    print(f"mean return of a day: {before:.1f} before, {after:.1f} after training")


def evaluate(model, arguments, days):
    """Return the mean return of the greedy policy on other days."""
    envs = PreemptionVecEnv(4, **arguments)
    envs.seed(1234)
    mean, _ = evaluate_policy(model, envs, n_eval_episodes=days)
    envs.close()
    return mean


if __name__ == "__main__":
    main()
