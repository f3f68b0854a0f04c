"""Measure or-gym's VMPacking (one virtual machine placed a step) for `peers.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import or_gym  # type: ignore[import-not-found]
from peers_timing import Case, draw_legal, serve


def case() -> Case:
    env: Any = or_gym.make("VMPacking-v0")
    rng = np.random.default_rng(0)
    observation = env.reset()

    def draw() -> int:
        mask = observation["action_mask"]
        return draw_legal(rng, mask) if mask.any() else 0

    def step(action: int) -> None:
        nonlocal observation
        observation, _, done, _ = env.step(action)
        if done:
            observation = env.reset()

    return Case(
        "or-gym VMPacking",
        "scalar",
        1,
        draw,
        step,
        "one virtual machine is put on one of 50 machines, which have CPU and memory loads and "
        "nothing inside; nothing ever leaves",
    )


if __name__ == "__main__":
    serve([case()])
