"""Train with sb3-contrib's MaskablePPO and the policy that `import flextopo` brings. Takes a minute.

The settings are those of docs/how-to/train-with-ppo.md, which says what each is for.
"""

import argparse
from pathlib import Path

import torch
from sb3_contrib import MaskablePPO

import flextopo
from flextopo.policies.artifact import save_policy
from flextopo.policies.runtime import LearnedSelector
from flextopo.train.rollout_buffer import TimedRolloutBuffer
from flextopo.train.vec_env import PreemptionVecEnv


def main():
    """Train, and compare with greedy-cost on validation days."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=60_000, help="decisions to learn from")
    parser.add_argument("--days", type=int, default=40, help="validation days to play")
    parser.add_argument("--out", type=Path, help="folder for the policy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    envs = PreemptionVecEnv(
        64, "16*rtx4090", k=16, allow_wait=False, relative=True, episode_h=6, tapes=2048
    )
    model = MaskablePPO(
        "CandidatePolicy", envs, n_steps=min(32, max(1, options.timesteps // 64)), batch_size=256,
        n_epochs=4, gamma=0.0, ent_coef=0.003, rollout_buffer_class=TimedRolloutBuffer,
        rollout_buffer_kwargs={"clock": envs}, seed=0, device="cpu",
    )  # fmt: skip
    model.learn(options.timesteps)
    if options.out:
        save_policy(model.policy.scorer, options.out, "sb3-ppo", k=16, allow_wait=False)
        print(f"policy: {options.out}\nnext: flextopo evaluate {options.out}")
    network = model.policy.scorer.state_dict()
    weights = {name: array.numpy() for name, array in network.items()}
    learned = LearnedSelector("learned", weights, k=16, allow_wait=False)
    played = flextopo.compare(["greedy-cost", learned], seeds=options.days, split="validation")
    beyond = played.results["paired"]["learned"]
    low, mean, high = (100 * beyond[name] for name in ("low", "mean", "high"))
    print(f"beyond greedy-cost: {mean:+.2f} [{low:+.2f}, {high:+.2f}] points of weighted loss")


if __name__ == "__main__":
    main()
