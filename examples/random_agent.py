"""Play one day with random legal actions and print what it cost."""

import gymnasium
import numpy as np

import flextopo  # noqa: F401


def main() -> None:
    """Play the day."""
    env = gymnasium.make("flextopo/Preempt-RTX4090-v0", render_mode="ansi")
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=1)
    over = False
    while not over:
        action = rng.choice(np.flatnonzero(info["action_mask"]))
        _, _, _, over, info = env.step(action)
    print(env.render())
    print(f"weighted loss {info['metrics']['weighted_loss']:.3f}")


if __name__ == "__main__":
    main()
