"""Train a network of one's own with sb3-contrib's MaskablePPO.

The features extractor lets candidates attend to each other. Masks need nothing: the environment has
`action_masks()`. 20,000 decisions take 20 seconds.
"""

import argparse

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from flextopo.train.vec_env import PreemptionVecEnv


class Attention(BaseFeaturesExtractor):
    """One round of attention over the legal candidates; `width` features of each remain."""

    def __init__(self, space, width=16):
        k, size = space["candidates"].shape
        shared = space["preemptor"].shape[0] + space["cluster"].shape[0]
        super().__init__(space, k * width + shared)
        self.embed = torch.nn.Linear(size, width)
        self.attend = torch.nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, observation):
        """Return (B, K * width + shared) features; empty rows give nothing."""
        legal = observation["action_mask"][:, :-1] > 0
        rows = torch.tanh(self.embed(observation["candidates"]))
        # A row that attends to nothing is not a number, so each may look at the first.
        hidden = ~legal
        hidden[:, 0] = False
        mixed, _ = self.attend(rows, rows, rows, key_padding_mask=hidden, need_weights=False)
        mixed = (rows + mixed) * legal.unsqueeze(-1)
        return torch.cat([mixed.flatten(1), observation["preemptor"], observation["cluster"]], 1)


def main():
    """Train, and print what an episode returns at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=20_000, help="decisions to learn from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    envs = PreemptionVecEnv(16, "16*rtx4090", k=16, allow_wait=False, randomise=True)
    model = MaskablePPO(
        "MultiInputPolicy", envs, n_steps=min(128, max(1, options.timesteps // 16)), seed=0,
        batch_size=64, policy_kwargs={"features_extractor_class": Attention},
    )  # fmt: skip
    model.learn(options.timesteps)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    print(f"{len(returns)} days, mean return {sum(returns) / max(len(returns), 1):.1f}")


if __name__ == "__main__":
    main()
