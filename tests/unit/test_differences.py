"""Flip points, verdicts, and intervals over training seeds and tapes, against what is known of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.metrics import METRICS
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.policies.shipped import ZOO
from flextopo.train.compare import summarise
from flextopo.train.config import ComparisonConfig
from flextopo.train.differences import (
    common_values,
    flip_lines,
    flip_pairs,
    flip_point,
    flip_points,
    flip_rows,
)
from flextopo.train.recipes import find_recipes
from flextopo.train.results import LOSS_COLUMNS, load_results, paired_rows, rows
from flextopo.train.statistics import (
    MIN_SEEDS,
    estimate,
    largest_day,
    paired_difference,
    two_way_estimate,
    verdict,
)

SAVED = Path(__file__).parents[2] / "docs" / "results"


def test_a_flip_point_is_where_the_reweighted_means_are_the_same() -> None:
    rng = np.random.default_rng(0)
    losses, terms = rng.normal(-1.0, 0.2, 40), rng.normal(0.5, 0.1, 40)
    found = flip_point(losses, terms)
    assert found.factor is not None
    assert (losses + (found.factor - 1) * terms).mean() == pytest.approx(0, abs=1e-12)
    assert found.factor == pytest.approx(3.0, rel=0.1)
    assert found.low < found.factor < found.high < 4
    assert str(found).startswith(f"x{found.factor:.3g} [")


def test_a_flip_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        terms = rng.normal(1.0, 0.5, 40)
        losses = rng.normal(-2.0, 1.0, 40) + 0.5 * (terms - 1)
        found = flip_point(losses, terms)  # in truth at 1 + 2 / 1
        hits += found.low <= 3.0 <= found.high
    assert hits >= 50


def test_no_factor_flips_what_a_term_speaks_for_at_any_weight() -> None:
    ones = np.ones(12)
    assert flip_point(-2 * ones, -ones).factor is None  # without the term still better
    assert flip_point(-2 * ones, 0 * ones).factor is None
    assert str(flip_point(-2 * ones, 0 * ones)) == "none"
    gone = flip_point(-ones, -ones)  # all of the lead is this term
    assert (gone.factor, gone.low, gone.high) == (0.0, 0.0, 0.0)
    unsure = flip_point(-ones, np.random.default_rng(0).normal(0.05, 1.0, 12))
    assert unsure.factor is None or math.isinf(unsure.high)


def test_flip_points_of_saved_results_are_those_of_their_seeds() -> None:
    results = load_results(SAVED / "rtx4090.json")
    policy = results["config"]["policies"][0]
    flip = flip_points(results, policy, "greedy-cost")["idle"]
    assert flip is not None
    assert flip.factor is not None
    loss, part = (
        common_values(results, policy, "greedy-cost", m) for m in ("weighted_loss", "idle")
    )
    assert loss is not None
    assert part is not None
    difference = loss[0] - loss[1] + (flip.factor - 1) * (part[0] - part[1])
    assert difference.mean() == pytest.approx(0, abs=1e-12)
    pairs = flip_pairs(results)
    assert ("godel", "greedy-cost") in pairs
    assert (policy, "godel") in pairs
    assert len(pairs) == len(set(pairs))
    table = flip_rows(results)
    assert len(table) == len(pairs) + 1
    assert all(len(row) == 3 + len(LOSS_TERMS) for row in table)
    (line,) = (line for line in flip_lines(results) if line.startswith(f"{policy} and greedy-cost"))
    assert "idle x" in line


def test_tables_show_a_dash_for_what_older_results_lack() -> None:
    results = json.loads((SAVED / "rtx4090.json").read_bytes())
    for row in results["selectors"].values():
        del row["idle"]
    table = rows(results, LOSS_COLUMNS)
    at = [name.startswith("idle") for name in table[0]].index(True)
    assert {row[at] for row in table[1:]} == {"-"}
    assert {row[-1] for row in flip_rows(results)[1:]} == {"-"}


def test_the_largest_day_is_told_from_many_of_the_same_size() -> None:
    assert largest_day([-1.0, 1.0, 1.0, -1.0]) == 0.25
    assert largest_day([0.0, -3.0, 0.0]) == 1.0
    assert largest_day([0.0, 0.0]) == 0.0
    found = paired_difference([-16.0, 0.0, 1.0, -1.0], [0.0] * 4)
    assert found.largest_day == pytest.approx(16 / 18)
    assert (found.median, found.seeds) == (-0.5, 4)


def test_few_seeds_carry_no_claim_whatever_the_interval() -> None:
    assert verdict(-3.0, -2.0, MIN_SEEDS - 1) == "no claim: too few seeds"
    assert verdict(-3.0, -2.0, MIN_SEEDS) == "better"
    assert verdict(2.0, 3.0, MIN_SEEDS) == "worse"
    assert verdict(-1.0, 3.0, MIN_SEEDS) == "no claim"
    assert paired_difference([1.0] * 9, [2.0] * 9).verdict == "no claim: too few seeds"
    assert paired_difference([1.0] * 10, [2.0] * 10).verdict == "better"


def test_results_saved_before_there_was_a_median_have_it_worked_out() -> None:
    results = json.loads((SAVED / "rtx4090.json").read_bytes())
    for row in results["paired"].values():
        for name in ("median", "largest_day", "seeds"):
            row.pop(name, None)
    losses = common_values(results, "godel", "greedy-cost")
    assert losses is not None
    row = next(row for row in paired_rows(results) if row[0] == "godel")
    assert row[3] == f"{100 * np.median(losses[0] - losses[1]):+.2f}"
    assert row[4] == f"{largest_day(losses[0] - losses[1]):.0%}"


def crossed(
    rng: np.random.Generator, size: tuple[int, int], sd: tuple[float, float, float]
) -> np.ndarray[Any, Any]:
    """Draw differences of known variance components: training seed, tape, and both together."""
    table = rng.normal(0, sd[0], (size[0], 1)) + rng.normal(0, sd[1], (1, size[1]))
    return np.asarray(table + rng.normal(0, sd[2], size))


@pytest.mark.parametrize("size", [(3, 40), (6, 40)])
def test_the_two_way_interval_holds_the_truth_and_the_one_over_tapes_does_not(
    size: tuple[int, int],
) -> None:
    rng = np.random.default_rng(5)
    both = tapes = 0
    for _ in range(150):
        table = crossed(rng, size, (1.0, 1.0, 0.5))
        found, alone = two_way_estimate(table), estimate(table.mean(0))
        both += found.low <= 0 <= found.high
        tapes += alone.low <= 0 <= alone.high
    assert both >= 0.9 * 150
    assert tapes <= 0.6 * 150


def test_the_two_way_interval_is_as_long_as_its_components_say() -> None:
    rng = np.random.default_rng(6)
    table = crossed(rng, (2, 60), (0.0, 1.0, 0.0))
    alone = two_way_estimate(table)
    assert alone.half_width == pytest.approx(estimate(table.mean(0)).half_width, rel=0.1)
    table = crossed(rng, (8, 60), (1.0, 0.0, 0.0))
    sd = table.mean(1).std(ddof=1)
    # 2.365 = Student's 97.5 % quantile of 7 degrees.
    assert two_way_estimate(table).half_width == pytest.approx(2.365 * sd / math.sqrt(8), rel=0.1)
    assert two_way_estimate(np.full((2, 2), 3.0)).half_width == 0.0


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (9,)])
def test_one_training_seed_tells_nothing_of_others(shape: tuple[int, ...]) -> None:
    with pytest.raises(FlextopoError, match="legal: training seeds by tapes"):
        two_way_estimate(np.zeros(shape))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Three policies of one recipe, a copy of one, and one of another."""
    meta = json.loads((ZOO / "deepset-imitation" / "meta.json").read_text())
    out = {}
    for name, seed, rounds in (("a", 0, 2), ("b", 1, 2), ("c", 2, 2), ("again", 1, 2), ("d", 3, 9)):
        folder = tmp_path / name
        folder.mkdir()
        own = {
            "name": f"imitation-{seed}",
            "config": {**meta["config"], "seed": seed, "rounds": rounds},
        }
        (folder / "meta.json").write_text(json.dumps({**meta, **own}))
        out[name] = str(folder)
    return out


def test_a_recipe_is_one_training_configuration_with_several_seeds(folders: dict[str, str]) -> None:
    given = {path: path for path in folders.values()}
    a, b, c = (folders[name] for name in "abc")
    assert find_recipes(given) == {"imitation (3 training seeds)": {a: 0, b: 1, c: 2}}
    waiting = {f"{a}@0": f"{a}@0", f"{b}@0": f"{b}@0", c: c}
    assert find_recipes(waiting) == {"imitation@0 (2 training seeds)": {f"{a}@0": 0, f"{b}@0": 1}}
    assert find_recipes({"godel": "godel", "deepset-imitation": "deepset-imitation"}) == {}


def test_a_recipe_has_a_row_with_the_interval_over_both(folders: dict[str, str]) -> None:
    names = [folders[name] for name in "abc"]
    config = ComparisonConfig(
        servers="2*rtx4090", selectors=("greedy-cost",), policies=tuple(names), seeds=20
    )
    table = crossed(np.random.default_rng(0), (3, 20), (0.02, 0.01, 0.005)) - 0.05

    def played(values: Any) -> dict[int, dict[str, float]]:
        return {
            i: {**dict.fromkeys(METRICS, 0.0), "weighted_loss": v} for i, v in enumerate(values)
        }

    scores = {"greedy-cost": played([0.2] * 20)}
    scores |= {name: played(0.2 + row) for name, row in zip(names, table, strict=True)}
    results = summarise(config, scores)
    (name,) = results["recipes"]
    found = results["recipes"][name]
    interval = two_way_estimate(table)
    assert found["mean"] == pytest.approx(table.mean())
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["high"] - found["low"] > 2 * max(
        results["paired"][n]["high"] - results["paired"][n]["low"] for n in names
    )
    assert paired_rows(results)[-1][0] == "imitation (3 training seeds)"
