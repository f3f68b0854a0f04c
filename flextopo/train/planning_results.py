"""What looking ahead buys: selectors against the rule on the same tapes, and how far towards the oracle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import FlextopoError
from flextopo.train.results import load_results
from flextopo.train.statistics import CONFIDENCE, RESAMPLES, paired_difference

Floats = npt.NDArray[np.float64]

RULE, ORACLE = "requeue-aware", "oracle-lookahead"

CLUSTERS = ("", "-a100", "-mixed")
"""Ends of the names of results files that are put together."""


def load_clusters(path: Path) -> list[dict[str, Any]]:
    """Return the results of several clusters, played on the same seeds: of `learnt-all.json` three files.

    Raises:
        FlextopoError: one is missing or damaged.
    """
    name = path.stem.removesuffix("-all")
    return [load_results(path.with_name(f"{name}{tail}.json")) for tail in CLUSTERS]


def planning_rows(clusters: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return every selector against the rule, and its share of the rule's way to the oracle.

    Of several clusters the mean of each seed counts once, so that intervals are over seeds alone. `without
    the largest` leaves out the seed with the largest difference, whichever its sign.

    Args:
        clusters: results that were played with the rule and the oracle on the same seeds.

    Raises:
        FlextopoError: one of them has neither.
    """
    losses = {name: losses_of(clusters, name) for name in clusters[0]["selectors"]}
    missing = [name for name in (RULE, ORACLE) if name not in losses]
    if missing:
        raise FlextopoError(f"results without {missing[0]}; legal: what `make planning` saves")
    rule, oracle = losses[RULE], losses[ORACLE]
    out = [["selector", "loss %", f"against {RULE}, points", "95 % interval", "median",
            "without the largest", "P(better)", "of the way to the oracle", "verdict"]]  # fmt: skip
    for name, mine in losses.items():
        if name == RULE:
            out.append([name, f"{rule.mean() * 100:.2f}", *["" for _ in range(7)]])
            continue
        found = paired_difference(mine, rule)
        apart = mine - rule
        rest = np.delete(apart, int(np.argmax(np.abs(apart))))
        out.append(
            [
                name,
                f"{mine.mean() * 100:.2f}",
                f"{found.mean * 100:+.2f}",
                f"[{found.low * 100:+.2f}, {found.high * 100:+.2f}]",
                f"{found.median * 100:+.2f}",
                f"{rest.mean() * 100:+.2f}",
                f"{found.improvement:.2f}",
                "" if name == ORACLE else _share(rule - mine, rule - oracle),
                found.verdict,
            ]
        )
    return out


def load_knowledge(path: Path) -> dict[str, dict[str, list[float]]]:
    """Return what `benchmarks/planning_knowledge.py` saved: world to planner to its loss on each seed.

    Raises:
        FlextopoError: it is missing or damaged.
    """
    try:
        worlds: dict[str, dict[str, list[float]]] = json.loads(path.read_bytes())["worlds"]
    except OSError:
        raise FlextopoError(f"{path}: missing; legal: what planning_knowledge.py saves") from None
    except (ValueError, KeyError, TypeError):
        raise FlextopoError(
            f"{path}: is damaged; legal: what planning_knowledge.py saves"
        ) from None
    return worlds


def knowledge_rows(worlds: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Return planners that know less and less against the rule, side by side in every world."""
    out = [["what the planner knows"]]
    for world in worlds:
        out[0] += [
            f"{world}: against {RULE}, points",
            "95 % interval",
            "median",
            "P(better)",
            "verdict",
        ]
    for name in next(iter(worlds.values())):
        row = [name]
        for losses in worlds.values():
            found = paired_difference(np.array(losses[name]), np.array(losses[RULE]))
            row += [
                f"{found.mean * 100:+.2f}",
                f"[{found.low * 100:+.2f}, {found.high * 100:+.2f}]",
                f"{found.median * 100:+.2f}",
                f"{found.improvement:.2f}",
                found.verdict,
            ]
        if name != RULE:
            out.append(row)
    return out


def losses_of(clusters: Sequence[dict[str, Any]], name: str) -> Floats:
    """Return the loss of a selector on each tape, (S,), the mean over clusters."""
    found = [np.array(each["selectors"][name]["weighted_loss"]["per_seed"]) for each in clusters]
    mean: Floats = np.mean(found, axis=0, dtype=np.float64)
    return mean


def _share(gained: Floats, whole: Floats) -> str:
    """Return the ratio of two means with its bootstrap interval over seeds."""
    picks = np.random.default_rng(0).integers(len(whole), size=(RESAMPLES, len(whole)))
    ratios = gained[picks].mean(1) / whole[picks].mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return f"{gained.mean() / whole.mean():.0%} [{low:.0%}, {high:.0%}]"
