"""Give the environment a reward of one's own, from the terms of the loss in `info`.

Here an hour of waiting counts ten times as much, and idle GPUs count nothing. The simulation is the
same, so both rewards can be compared on one day. Takes seconds.
"""

import argparse

import gymnasium

import flextopo  # noqa: F401


class WeighedReward(gymnasium.Wrapper):
    """Reward = what was lost since the last decision, term by term, times factors; GPU-hours.

    Args:
        env: a flextopo environment.
        factors: of the terms that should not count once.
    """

    def __init__(self, env, factors):
        super().__init__(env)
        self.factors = factors
        self.before = {}

    def reset(self, **arguments):
        """Start a day; what is lost before its first decision is not the agent's."""
        observation, info = self.env.reset(**arguments)
        self.before = info["loss"]
        return observation, info

    def step(self, action):
        """Step, and weigh what was lost."""
        observation, _, terminated, truncated, info = self.env.step(action)
        lost = {term: hours - self.before[term] for term, hours in info["loss"].items()}
        self.before = info["loss"]
        reward = -sum(self.factors.get(term, 1.0) * hours for term, hours in lost.items())
        return observation, reward, terminated, truncated, info


def main():
    """Play one day greedily and print both rewards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", default="16*rtx4090", help="such as 4*rtx4090,2*a100")
    options = parser.parse_args()
    plain = gymnasium.make("flextopo/Preempt-RTX4090-v0", servers=options.servers)
    for name, factors in {"as it is": {}, "weighed anew": {"waiting": 10.0, "idle": 0.0}}.items():
        env = WeighedReward(plain, factors)
        env.reset(options={"tape_seed": 3})
        total, over = 0.0, False
        while not over:
            _, reward, _, over, _ = env.step(0)
            total += reward
        print(f"{name}: {total:.1f} GPU-hours")


if __name__ == "__main__":
    main()
