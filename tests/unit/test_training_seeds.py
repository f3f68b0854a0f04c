"""The table of training seeds: which files it reads, and whose interval it shows."""

from typing import Any

import pytest

from flextopo.cluster.errors import FlextopoError
from flextopo.train.statistics import two_way_estimate
from flextopo.train.training_seeds import WORLDS, seed_rows

RULE = [0.05, 0.06, 0.07] * 8
BETTER = [loss - 0.01 for loss in RULE]


def results(recipe: bool = True, **losses: list[float]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "selectors": {
            name.replace("_", "-"): {"weighted_loss": {"per_seed": values}}
            for name, values in losses.items()
        }
    }
    if recipe:
        found["recipes"] = {"a (2 training seeds)": {"members": {"a": 0, "b": 1}}}
    return found


def test_two_seeds_that_agree_are_better_and_two_that_do_not_are_no_claim() -> None:
    agree = results(requeue_aware=RULE, a=BETTER, b=BETTER)
    [row] = seed_rows({"here": [agree]})[1:]
    assert row == ["here", "a", "-1.00, -1.00", "-1.00", "[-1.00, -1.00]", "1.00", "better"]
    worse = [loss + 0.005 for loss in RULE]
    [row] = seed_rows({"here": [results(requeue_aware=RULE, a=BETTER, b=worse)]})[1:]
    assert row[2:4] == ["-1.00, +0.50", "-0.25"]
    over_both = two_way_estimate([[-0.01] * 24, [0.005] * 24])
    assert row[4] == f"[{over_both.low * 100:+.2f}, {over_both.high * 100:+.2f}]"
    assert over_both.low < -0.01 < 0.005 < over_both.high
    assert row[5:] == ["0.50", "no claim"]


def test_clusters_of_a_world_are_put_together() -> None:
    one = results(requeue_aware=RULE, a=BETTER, b=BETTER)
    other = results(requeue_aware=RULE, a=RULE, b=RULE)
    [row] = seed_rows({"both": [one, other]})[1:]
    assert row[2] == "-0.50, -0.50"


def test_results_without_training_seeds_or_the_rule_are_refused() -> None:
    with pytest.raises(FlextopoError, match="here: results without requeue-aware or policies"):
        seed_rows({"here": [results(False, requeue_aware=RULE, a=RULE)]})
    with pytest.raises(FlextopoError, match="here: results without"):
        seed_rows({"here": [results(a=RULE, b=RULE)]})


def test_the_mean_is_of_the_three_kinds() -> None:
    kinds = [WORLDS[kind] for kind in ("RTX 4090", "A100", "8 of each")]
    assert WORLDS["mean of the three"] == tuple(name for names in kinds for name in names)
