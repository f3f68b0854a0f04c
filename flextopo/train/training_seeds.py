"""Policies of one training but for its seed, against the rule in several worlds: one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flextopo.cluster.errors import FlextopoError
from flextopo.train.planning_results import CLUSTERS, RULE, losses_of
from flextopo.train.results import load_results, stretches
from flextopo.train.statistics import two_way_estimate, verdict

KINDS = dict(zip(("RTX 4090", "A100", "8 of each"), CLUSTERS, strict=True))

WORLDS = {
    **{kind: (f"seeds{tail}",) for kind, tail in KINDS.items()},
    "mean of the three": tuple(f"seeds{tail}" for tail in CLUSTERS),
    **{f"recorded, {kind}": (f"seeds-recorded{tail}",) for kind, tail in KINDS.items()},
    **{f"quarters, {kind}": (f"seeds-quarter{tail}",) for kind, tail in KINDS.items()},
    "128 servers, RTX 4090": ("seeds-128",),
    "1,000 servers, RTX 4090": ("seeds-1000",),
    "64 servers, gangs": ("seeds-gangs",),
}
"""What a row is called, to the results files whose mean of each tape it shows."""

Worlds = dict[str, list[dict[str, Any]]]


def load_seeds(path: Path) -> Worlds:
    """Return the results of every world, from the folder of `path`, which need not exist itself.

    Raises:
        FlextopoError: one is missing or damaged.
    """
    return {
        world: [load_results(path.with_name(f"{name}.json")) for name in names]
        for world, names in WORLDS.items()
    }


def seed_rows(worlds: Worlds) -> list[list[str]]:
    """Return a row a world and recipe: each training seed, and their mean, against the rule.

    Intervals are over training seeds and tapes together. `P(better)` is the share of pairs of a training
    seed and a tape where the policy loses less, ties half.

    Raises:
        FlextopoError: results hold no recipe of several training seeds, or not the rule.
    """
    out = [["world", "policy", f"each seed against {RULE}, points", "mean", "95 % interval",
            "P(better)", "verdict"]]  # fmt: skip
    for world, clusters in worlds.items():
        recipes = clusters[0].get("recipes", {})
        if not recipes or RULE not in clusters[0]["selectors"]:
            raise FlextopoError(
                f"{world}: results without {RULE} or policies of several training seeds; "
                "legal: what `make seeds` saves"
            )
        rule = losses_of(clusters, RULE)
        for recipe in recipes.values():
            members = recipe["members"]
            apart = np.array([losses_of(clusters, name) - rule for name in members])
            found = two_way_estimate(apart)
            better = np.mean(apart < 0) + 0.5 * np.mean(apart == 0)
            out.append(
                [
                    world,
                    next(iter(members)),
                    ", ".join(f"{mean * 100:+.2f}" for mean in apart.mean(1)),
                    f"{found.mean * 100:+.2f}",
                    f"[{found.low * 100:+.2f}, {found.high * 100:+.2f}]",
                    f"{better:.2f}",
                    verdict(found.low, found.high, apart.shape[1], stretches(clusters[0])),
                ]
            )
    return out
