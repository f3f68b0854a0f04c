"""Measure Gymnasium's CartPole for `peers.py`: alone, SyncVectorEnv, and its own vector class."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from peers_timing import Case, serve

MEANING = "four numbers of a pole on a cart move on by one Euler step; nothing is scheduled"


def scalar() -> Case:
    env: Any = gym.make("CartPole-v1")
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def step(action: int) -> None:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    return Case("CartPole-v1", "scalar", 1, lambda: int(rng.integers(2)), step, MEANING)


def vector(mode: str, variant: str, num_envs: int = 64) -> Case:
    env = gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode=mode)
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def step(action: Any) -> None:
        env.step(action)

    return Case(
        "CartPole-v1", variant, num_envs, lambda: rng.integers(2, size=num_envs), step, MEANING
    )


if __name__ == "__main__":
    serve([scalar(), vector("sync", "SyncVectorEnv"), vector("vector_entry_point", "vector")])
