"""Play one day with random legal actions, draw the cluster and print what the day cost.

Shows the loop of an environment with masks. Takes seconds.
"""

import argparse

import gymnasium
import numpy as np

import flextopo  # noqa: F401


def main() -> None:
    """Play the day."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", default="16*rtx4090", help="such as 4*rtx4090,2*a100")
    parser.add_argument("--seed", type=int, default=1, help="of the day")
    options = parser.parse_args()
    env = gymnasium.make("flextopo/Preempt-RTX4090-v0", servers=options.servers, render_mode="ansi")
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=options.seed)
    over = False
    while not over:
        action = rng.choice(np.flatnonzero(info["action_mask"]))
        _, _, _, over, info = env.step(action)
    print(env.render())
    print(f"weighted loss {info['metrics']['weighted_loss']:.3f}")


if __name__ == "__main__":
    main()
