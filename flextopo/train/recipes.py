"""Policies that differ in their training seed alone, and intervals over that seed and tapes together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.runtime import read_meta
from flextopo.policies.shipped import ZOO, zoo_names
from flextopo.train.statistics import paired_difference, two_way_estimate


def find_recipes(policies: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return policies of one training, but for its seed: name of the recipe to policy to seed.

    Two policies share a recipe if their artifacts name the same training configuration except `seed`,
    and they may wait for equally long. One that names the training seed of another is a copy of it
    and left out.

    Args:
        policies: name to what was given; what is no artifact's name or folder has no recipe.
    """
    groups: dict[str, tuple[str, dict[int, str]]] = {}
    for name, given in policies.items():
        read = _read(given)
        if read is not None:
            key, label, seed = read
            groups.setdefault(key, (label, {}))[1].setdefault(seed, name)
    found: dict[str, dict[str, int]] = {}
    for label, members in groups.values():
        if len(members) > 1:
            name = f"{label} ({len(members)} training seeds)"
            while name in found:
                name += "'"
            found[name] = {policy: seed for seed, policy in sorted(members.items())}
    return found


def _read(given: Any) -> tuple[str, str, int] | None:
    """Return an artifact's recipe as text, its name without the seed, and the seed."""
    if not isinstance(given, str | Path):
        return None
    text = str(given)
    folder, at, wait = text.rpartition("@")
    if not (at and wait.isdecimal()) or Path(text).is_dir():
        folder, wait = text, ""
    path = ZOO / folder if folder in zoo_names() else Path(folder)
    try:
        meta = read_meta(path)
    except FlextopoError:
        return None
    config = meta.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("seed"), int):
        return None
    rest = {key: value for key, value in config.items() if key != "seed"}
    label = meta["name"].removesuffix(f"-{config['seed']}") + (f"@{wait}" if wait else "")
    return json.dumps([rest, meta["allow_wait"], wait], sort_keys=True), label, config["seed"]


def recipe_difference(
    losses: dict[str, dict[int, float]], reference: dict[int, float], members: dict[str, int]
) -> dict[str, Any] | None:
    """Return a recipe's paired difference, with an interval over training seeds and tapes together.

    Args:
        losses: policy to tape to loss.
        reference: tape to the reference's loss.
        members: policy to training seed.

    Returns:
        As `PairedDifference`, of the mean over training seeds on each tape, with `low` and `high` of
        `two_way_estimate`, and `members`; None with fewer than two tapes that all played.
    """
    tapes = sorted(set(reference).intersection(*(losses[name] for name in members)))
    if len(tapes) < 2:
        return None
    table = np.array([[losses[name][t] - reference[t] for t in tapes] for name in members])
    found = two_way_estimate(table)
    by_tape = paired_difference(table.mean(0), np.zeros(len(tapes))).as_dict()
    return {**by_tape, "low": found.low, "high": found.high, "members": members}
