"""Measure flextopo's environments for `peers.py`: scalar, and the native vector environment."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numpy as np
from peers_timing import Case, draw_legal, draw_legal_batch, serve, warm_up

import flextopo  # noqa: F401

ENV_ID = "flextopo/Preempt-RTX4090-v0"
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
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
    env = gym.make_vec(
        ENV_ID, num_envs=num_envs, vectorization_mode="vector_entry_point", threads=THREADS
    )
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
    """Warm up, since an environment keeps days that it has drawn; tell the speed before that."""
    cases, missing, notes = [scalar()], [], []
    for num_envs in (64, 1024):
        try:
            cases.append(vector(num_envs))
        except gym.error.Error as error:
            missing.append((f"flextopo vector, {num_envs} environments", str(error)))
    for case in cases:
        first = warm_up(case)
        notes.append(
            f"flextopo {case.variant}, {case.num_envs} environments: {first:,.0f} steps/s with draw "
            "in its first second, compiling and drawing days; the table is after that"
        )
    serve(cases, missing, notes)


if __name__ == "__main__":
    main()
