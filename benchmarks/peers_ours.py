"""Measure flextopo's environments for `peers.py`: scalar, and the native vector environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from peers_timing import Case, draw_legal, draw_legal_batch, serve

import flextopo  # noqa: F401

ENV_ID = "flextopo/Preempt-RTX4090-v0"
MEANING = (
    "a pod that fits nowhere gets its victims among 64 candidates on 16 servers, and the day runs "
    "on to the next such pod; its candidates are searched and described in 1,938 numbers"
)


def scalar() -> Case:
    """Return the environment of `gymnasium.make`, its checking wrappers included."""
    env = gym.make(ENV_ID)
    rng = np.random.default_rng(0)
    info = env.reset(seed=0)[1]

    def step(action: int) -> None:
        nonlocal info
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            _, info = env.reset()

    return Case(
        "flextopo", "scalar", 1, lambda: draw_legal(rng, info["action_mask"]), step, MEANING
    )


def vector(num_envs: int) -> Case:
    """Return the native vector environment; it resets by itself.

    Raises:
        gymnasium.error.Error: this version registers none.
    """
    env = gym.make_vec(ENV_ID, num_envs=num_envs, vectorization_mode="vector_entry_point")
    rng = np.random.default_rng(0)
    observation: Any = env.reset(seed=0)[0]

    def step(action: Any) -> None:
        nonlocal observation
        observation = env.step(action)[0]

    return Case(
        "flextopo",
        "vector",
        num_envs,
        lambda: draw_legal_batch(rng, observation["action_mask"]),
        step,
        MEANING,
    )


def main() -> None:
    cases, missing = [scalar()], []
    for num_envs in (64, 1024):
        try:
            cases.append(vector(num_envs))
        except gym.error.Error as error:
            missing.append((f"flextopo vector, {num_envs} environments", str(error)))
    serve(cases, missing)


if __name__ == "__main__":
    main()
