"""Policies of one training but for its seed, against a rule in several worlds: one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import FlextopoError
from flextopo.train.planning_results import CLUSTERS, RULE, losses_of
from flextopo.train.results import load_results, stretches
from flextopo.train.statistics import two_way_estimate, verdict

KINDS = dict(zip(("RTX 4090", "A100", "8 of each"), CLUSTERS, strict=True))

SERVED = "@0"
"""How the name of a policy ends that is played as it is served: it leaves no pod waiting by choice."""


class World(NamedTuple):
    """A row of the table, or one a recipe.

    Fields: `name`, what it is called; `files`, the results whose mean of each tape it shows; `rule`, the
    selector that policies stand beside.
    """

    name: str
    files: tuple[str, ...]
    rule: str = RULE


def _kinds(name: str, stem: str) -> list[World]:
    """Return a world for each kind of server, and their mean."""
    files = [f"{stem}{tail}" for tail in CLUSTERS]
    apart = [World(f"{name}{kind}", (file,)) for kind, file in zip(KINDS, files, strict=True)]
    return [*apart, World(f"{name}mean of the three", tuple(files))]


WORLDS = (
    *_kinds("recorded, ", "seeds-recorded"),
    *_kinds("", "seeds"),
    World("mean of the three", tuple(f"seeds{tail}" for tail in CLUSTERS), "lookahead"),
    *_kinds("quarters, ", "seeds-quarter"),
    World("128 servers, RTX 4090", ("seeds-128",)),
    World("1,000 servers, RTX 4090", ("seeds-1000",)),
    World("64 servers, gangs", ("seeds-gangs",)),
    World("64 servers, gangs", ("seeds-gangs",), "requeue-aware-gangs"),
)

Played = list[tuple[World, list[dict[str, Any]]]]


def load_seeds(path: Path) -> Played:
    """Return every world and its results, from the folder of `path`, which need not exist itself.

    Raises:
        FlextopoError: one is missing or damaged.
    """
    return [
        (world, [load_results(path.with_name(f"{name}.json")) for name in world.files])
        for world in WORLDS
    ]


def seed_rows(played: Played) -> list[list[str]]:
    """Return a heading, then a row a world and recipe: each training seed, and their mean, against a rule.

    Intervals are over training seeds and tapes together. `P(better)` is the share of pairs of a training
    seed and a tape where the policy loses less, ties half.

    Raises:
        FlextopoError: results hold no recipe of several training seeds, or not the rule.
    """
    out = [["world", "policy", "against", "each seed, points", "mean", "95 % interval", "median",
            "P(better)", "verdict"]]  # fmt: skip
    for world, clusters in played:
        for members in _recipes(world, clusters):
            apart = _apart(world, clusters, members)
            each = ", ".join(f"{mean * 100:+.2f}" for mean in apart.mean(1))
            out.append([world.name, members[0], world.rule, each, *_summary(clusters, apart)])
    return out


def served_rows(played: Played) -> list[list[str]]:
    """Return a heading, then a row a world: the mean of the policies as they are served against a rule.

    Raises:
        FlextopoError: as `seed_rows`.
    """
    out = [["world", "tapes", "rule", "loses %", "the policy %", "difference, points",
            "95 % interval", "median", "P(better)", "verdict"]]  # fmt: skip
    for world, clusters in played:
        recipes = _recipes(world, clusters)
        loses = losses_of(clusters, world.rule).mean()
        for members in recipes:
            if members[0].endswith(SERVED):
                apart = _apart(world, clusters, members)
                losses = [f"{loses * 100:.2f}", f"{(loses + apart.mean()) * 100:.2f}"]
                about = [world.name, str(apart.shape[1]), f"`{world.rule}`", *losses]
                out.append([*about, *_summary(clusters, apart)])
    return out


def _recipes(world: World, clusters: list[dict[str, Any]]) -> list[list[str]]:
    """Return the policies of each recipe of some results."""
    recipes = clusters[0].get("recipes", {})
    if not recipes or world.rule not in clusters[0]["selectors"]:
        raise FlextopoError(
            f"{world.name}: results without {world.rule} or policies of several training seeds; "
            "legal: what `make seeds` saves"
        )
    return [list(recipe["members"]) for recipe in recipes.values()]


def _apart(
    world: World, clusters: list[dict[str, Any]], members: list[str]
) -> npt.NDArray[np.float64]:
    """Return what each policy loses more than the rule on each tape, (policies, tapes)."""
    rule = losses_of(clusters, world.rule)
    return np.array([losses_of(clusters, name) - rule for name in members])


def _summary(clusters: list[dict[str, Any]], apart: npt.NDArray[np.float64]) -> list[str]:
    """Return mean, interval, median over tapes, share of pairs that are better, and verdict."""
    found = two_way_estimate(apart)
    better = np.mean(apart < 0) + 0.5 * np.mean(apart == 0)
    return [
        f"{found.mean * 100:+.2f}",
        f"[{found.low * 100:+.2f}, {found.high * 100:+.2f}]",
        f"{np.median(apart.mean(0)) * 100:+.2f}",
        f"{better:.2f}",
        verdict(found.low, found.high, apart.shape[1], stretches(clusters[0])),
    ]
