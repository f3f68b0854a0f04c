"""What PPO makes of some minutes: trains, plays comparison days, and adds rows to docs/results/ppo.json.

A budget is a number of decisions, so that equal seeds give equal rows. Beside it stand the minutes that it
took here, and the processor's, which are nearly those of a machine that nobody else uses. `make ppo-table`
runs all budgets, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from ppo_learners import Example, Maskable

import flextopo
from flextopo.cluster.files import write_whole
from flextopo.train.results import versions
from flextopo.train.statistics import paired_difference

LEARNERS = {"example": Example, "MaskablePPO": Maskable}
RULES = ("greedy-cost", "requeue-aware")
PATH = Path(__file__).parents[1] / "docs" / "results" / "ppo.json"


def train(learner: Any, timesteps: int) -> dict[str, float]:
    """Learn from so many decisions; return the minutes it took, and the processor's."""
    updates = max(1, timesteps // learner.decisions)
    begin, busy = time.perf_counter(), time.process_time()
    for done in range(updates):
        learner.learn(1 - done / updates)
    return {
        "minutes": (time.perf_counter() - begin) / 60,
        "processor_minutes": (time.process_time() - busy) / 60,
    }


def against_rules(selector: Any, days: int) -> dict[str, Any]:
    """Return the loss on comparison days and its differences from the rules, in points."""
    played = flextopo.compare([*RULES, selector], seeds=days).results["selectors"]
    losses = {name: played[name]["weighted_loss"]["per_seed"] for name in played}
    mine = losses[selector.name]
    found: dict[str, Any] = {"loss": 100 * played[selector.name]["weighted_loss"]["mean"]}
    for name in RULES:
        beyond = paired_difference(mine, losses[name])
        found[name] = {key: 100 * getattr(beyond, key) for key in ("mean", "low", "high")}
        found[name]["verdict"] = beyond.verdict
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("learner", choices=LEARNERS)
    parser.add_argument("timesteps", type=int, help="decisions to learn from")
    parser.add_argument("--days", type=int, default=200, help="comparison days to play")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--json", type=Path, default=PATH, help="file that gets the row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    learner = LEARNERS[options.learner](options.seed)
    took = train(learner, options.timesteps)
    row = {
        "learner": options.learner, "timesteps": options.timesteps, "seed": options.seed, **took,
        "days": options.days,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": versions(), **against_rules(learner.selector(), options.days),
    }  # fmt: skip
    same = ("learner", "timesteps", "seed")
    rows = json.loads(options.json.read_text()) if options.json.exists() else []
    rows = [other for other in rows if any(other[key] != row[key] for key in same)]
    write_whole(options.json, (json.dumps([*rows, row], indent=1) + "\n").encode())
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
