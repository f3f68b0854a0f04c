"""`examples/ppo.py` beside MaskablePPO with the same network: decisions learned from a second, and loss.

All learn in this process, in turns of a few updates, from environments of their own with equal
arguments. A ratio is that of two turns next to each other, so that what the neighbours steal from the
machine falls away; its median counts, over the second half of the turns, when the tapes are in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ppo_learners import Example, Maskable

import flextopo
from flextopo.cluster.files import write_whole
from flextopo.train.results import versions
from flextopo.train.statistics import paired_difference

TURN = 4
"""Updates a turn."""

TAPES = 256
"""Few, so that all are soon in memory: making a new one takes as long as learning from fifty decisions."""


def turn(learner: Any, rates: list[float]) -> float:
    """Learn with each of some shares of the learning rate; return decisions a second."""
    begin = time.perf_counter()
    for rate in rates:
        learner.learn(rate)
    return float(learner.decisions * len(rates) / (time.perf_counter() - begin))


def judge(learners: dict[str, Any], days: int) -> dict[str, dict[str, Any]]:
    """Return what each loses on validation days beyond greedy-cost, and the example beyond it, in points."""
    selectors = [replace(one.selector(), name=name) for name, one in learners.items()]
    played = flextopo.compare(["greedy-cost", *selectors], seeds=days, split="validation").results
    losses = {
        name: np.array(row["weighted_loss"]["per_seed"])
        for name, row in played["selectors"].items()
    }
    pairs = {
        name: {"beyond_greedy": (name, "greedy-cost"), "example_beyond": ("example", name)}
        for name in learners
    }
    return {
        name: {key: in_points(losses[one], losses[other]) for key, (one, other) in of.items()}
        for name, of in pairs.items()
    }


def in_points(losses: Any, reference: Any) -> dict[str, float]:
    """Return a mean paired difference with its 95 % interval, in points."""
    found = paired_difference(losses, reference)
    return {key: 100 * getattr(found, key) for key in ("mean", "low", "high")}


def spoken(found: dict[str, float]) -> str:
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=60_000, help="decisions each learns from")
    parser.add_argument("--days", type=int, default=200, help="validation days they are judged on")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    learners: dict[str, Example | Maskable] = {
        "example": Example(options.seed, TAPES),
        "MaskablePPO": Maskable(options.seed, TAPES),
        "MaskablePPO, as many epochs": Maskable(options.seed, TAPES, like_the_example=True),
    }
    one = learners["example"]
    updates = max(2 * TURN, options.timesteps // one.decisions // TURN * TURN)
    rates = [1 - at / updates for at in range(updates)]
    speeds: dict[str, list[float]] = {name: [] for name in learners}
    for begin in range(0, updates, TURN):
        for name, learner in learners.items():
            speeds[name].append(turn(learner, rates[begin : begin + TURN]))
    half = len(speeds["example"]) // 2
    judged = judge(learners, options.days)
    rows = {}
    for name, of in speeds.items():
        ratio = float(np.median(np.array(speeds["example"][half:]) / np.array(of[half:])))
        per_s = float(np.median(of[half:]))
        rows[name] = {"per_s": per_s, "times_as_fast": ratio, **judged[name]}
        print(
            f"{name:28} {per_s:8,.0f} decisions/s; the example is {ratio:5.2f} times as fast and loses "
            f"{spoken(judged[name]['example_beyond'])} points more; beyond greedy-cost "
            f"{spoken(judged[name]['beyond_greedy'])}"
        )
    if options.json:
        cores = len(os.sched_getaffinity(0))
        about = {
            "machine": f"{platform.machine()}, {cores} cores, Python {platform.python_version()}",
            "versions": versions(), "timesteps": updates * one.decisions, "days": options.days,
            "seed": options.seed, "learners": rows,
        }  # fmt: skip
        write_whole(options.json, (json.dumps(about, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
