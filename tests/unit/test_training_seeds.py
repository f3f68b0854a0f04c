"""The tables of training seeds: which files they read, and whose interval they show."""

from typing import Any

import pytest

from flextopo.cluster.errors import FlextopoError
from flextopo.train.statistics import two_way_estimate
from flextopo.train.training_seeds import WORLDS, World, seed_rows, served_rows

RULE = [0.05, 0.06, 0.07] * 8
BETTER = [loss - 0.01 for loss in RULE]
HERE = World("here", ())


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
    [row] = seed_rows([(HERE, [agree])])[1:]
    what, found = row[:3], row[3:]
    assert what == ["here", "a", "requeue-aware"]
    assert found == ["-1.00, -1.00", "-1.00", "[-1.00, -1.00]", "-1.00", "1.00", "better"]
    worse = [loss + 0.005 for loss in RULE]
    [row] = seed_rows([(HERE, [results(requeue_aware=RULE, a=BETTER, b=worse)])])[1:]
    assert row[3:5] == ["-1.00, +0.50", "-0.25"]
    over_both = two_way_estimate([[-0.01] * 24, [0.005] * 24])
    assert row[5] == f"[{over_both.low * 100:+.2f}, {over_both.high * 100:+.2f}]"
    assert over_both.low < -0.01 < 0.005 < over_both.high
    assert row[6:] == ["-0.25", "0.50", "no claim"]


def test_clusters_of_a_world_are_put_together() -> None:
    one = results(requeue_aware=RULE, a=BETTER, b=BETTER)
    other = results(requeue_aware=RULE, a=RULE, b=RULE)
    [row] = seed_rows([(HERE, [one, other])])[1:]
    assert row[3] == "-0.50, -0.50"


def test_policies_as_served_stand_beside_the_rule() -> None:
    found = results(requeue_aware=RULE, a=BETTER, b=BETTER)
    assert served_rows([(HERE, [found])])[1:] == []
    selectors = found["selectors"]
    selectors["a@0"], selectors["b@0"] = selectors["a"], selectors["requeue-aware"]
    found["recipes"]["a@0 (2 training seeds)"] = {"members": {"a@0": 0, "b@0": 1}}
    [row] = served_rows([(HERE, [found])])[1:]
    assert row[:6] == ["here", "24", "`requeue-aware`", "6.00", "5.50", "-0.50"]
    assert row[8] == "0.75"


def test_a_world_may_name_another_rule() -> None:
    found = results(requeue_aware=RULE, a=RULE, b=RULE, gfs=BETTER)
    [row] = seed_rows([(World("here", (), "gfs"), [found])])[1:]
    assert row[2:5] == ["gfs", "+1.00, +1.00", "+1.00"]
    assert row[-1] == "worse"


def test_results_without_training_seeds_or_the_rule_are_refused() -> None:
    with pytest.raises(FlextopoError, match="here: results without requeue-aware or policies"):
        seed_rows([(HERE, [results(False, requeue_aware=RULE, a=RULE)])])
    with pytest.raises(FlextopoError, match="here: results without"):
        seed_rows([(HERE, [results(a=RULE, b=RULE)])])


def test_the_mean_is_of_the_three_kinds() -> None:
    files = {world.name: world.files for world in WORLDS}
    for what in ("", "recorded, ", "quarters, "):
        kinds = [files[f"{what}{kind}"] for kind in ("RTX 4090", "A100", "8 of each")]
        assert files[f"{what}mean of the three"] == tuple(name for names in kinds for name in names)
