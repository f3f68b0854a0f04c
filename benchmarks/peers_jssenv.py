"""Measure JSSEnv (job shop, one decision a step) for `peers.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import JSSEnv.envs.jss_env as jss  # type: ignore[import-not-found]
import numpy as np
from peers_timing import Case, draw_legal, serve


def case(instance: str, size: str) -> Case:
    """Return the bare environment: its `reset` takes no seed, so `gymnasium.make` refuses it."""
    path = Path(jss.__file__).parent / "instances" / instance
    env: Any = jss.JssEnv({"instance_path": path})
    rng = np.random.default_rng(0)
    env.reset()

    def step(action: int) -> None:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    return Case(
        f"JSSEnv {size}",
        "scalar",
        1,
        lambda: draw_legal(rng, env.get_legal_actions()),
        step,
        "one job is put on its next machine, or none, and time runs on to the next free machine; "
        "the state is 7 numbers a job",
    )


if __name__ == "__main__":
    serve([case("ta01", "15x15"), case("ta80", "100x20")])
