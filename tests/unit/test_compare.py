import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextopo.baselines.rollout import Rollout
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.simulation.metrics import METRICS
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.train import compare as comparing
from flextopo.train.config import ComparisonConfig
from flextopo.train.results import (
    LOSS_COLUMNS,
    draw_comparison,
    load_results,
    load_scores,
    paired_notes,
    paired_rows,
    rows,
    save_results,
    save_scores,
)

SMALL = ComparisonConfig(
    servers="4*rtx4090",
    selectors=("kubernetes", "greedy-cost", "oracle-lookahead"),
    policies=(),
    seeds=3,
    workload=WorkloadConfig(horizon_h=6.0, online_peak_share=0.8),
)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    scores, interrupted = comparing.play_all(SMALL, workers=1)
    assert not interrupted
    return comparing.summarise(SMALL, scores)


def test_every_metric_has_a_mean_an_interval_and_each_seed(results: dict[str, Any]) -> None:
    assert set(results["selectors"]) == set(SMALL.names)
    for row in results["selectors"].values():
        assert set(row) == set(METRICS)
        for cell in row.values():
            assert set(cell) == {"mean", "low", "high", "per_seed"}
            assert len(cell["per_seed"]) == 3
            given = [v for v in cell["per_seed"] if v is not None]
            if given:
                assert cell["mean"] == pytest.approx(np.mean(given))
                assert cell["low"] <= cell["mean"] <= cell["high"]


def test_terms_add_up_to_the_loss_on_every_seed(results: dict[str, Any]) -> None:
    for row in results["selectors"].values():
        for i, loss in enumerate(row["weighted_loss"]["per_seed"]):
            assert sum(row[term]["per_seed"][i] for term in LOSS_TERMS) == pytest.approx(loss)


def test_paired_differences_are_differences_of_the_same_seeds(results: dict[str, Any]) -> None:
    losses = {n: np.array(r["weighted_loss"]["per_seed"]) for n, r in results["selectors"].items()}
    found = results["paired"]["kubernetes"]["mean"]
    assert found == pytest.approx((losses["kubernetes"] - losses["greedy-cost"]).mean())
    assert "greedy-cost" not in results["paired"]


def test_processes_and_repetition_change_no_number(results: dict[str, Any]) -> None:
    again, _ = comparing.play_all(SMALL, workers=2)
    assert comparing.summarise(SMALL, again) == results


def test_the_oracle_may_play_fewer_seeds() -> None:
    config = replace(SMALL, oracle_seeds=1, selectors=("greedy-cost", "oracle-lookahead"))
    scores, _ = comparing.play_all(config, workers=1)
    assert len(scores["oracle-lookahead"]) == 1
    assert len(scores["greedy-cost"]) == 3
    assert comparing.summarise(config, scores)["paired"]["oracle-lookahead"]["low"] is not None


def test_rollout_draws_its_futures_from_the_comparisons_workload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = set()

    def select(self: Rollout, cluster: ClusterState, preemptor: Pod) -> None:
        models.add(self.workload)

    monkeypatch.setattr(Rollout, "select", select)
    busy = WorkloadConfig(horizon_h=14.0, online_peak_share=0.9)
    comparing.play_tape(replace(SMALL, selectors=("rollout",), workload=busy), "rollout", 2_000_000)
    assert models == {busy}


def test_an_interrupt_keeps_the_finished_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def play_tape(config: ComparisonConfig, name: str, seed: int) -> dict[str, float]:
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return dict.fromkeys(METRICS, 1.0)

    monkeypatch.setattr(comparing, "play_tape", play_tape)
    scores, interrupted = comparing.play_all(SMALL, workers=1)
    assert interrupted
    assert {name: len(found) for name, found in scores.items()} == dict.fromkeys(SMALL.names, 1)


def test_results_survive_saving(results: dict[str, Any], tmp_path: Path) -> None:
    save_results(results, tmp_path / "deep" / "r.json")
    assert load_results(tmp_path / "deep" / "r.json") == json.loads(json.dumps(results))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.json"]
    draw_comparison(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_scores_of_every_seed_survive_saving(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.npz"
    save_scores(results, path)
    scores = load_scores(path)
    assert scores["selectors"].tolist() == list(SMALL.names)
    assert scores["seeds"].tolist() == results["config"]["seeds_used"]["kubernetes"]
    for metric in METRICS:
        for row, name in zip(scores[metric], SMALL.names, strict=True):
            saved = results["selectors"][name][metric]["per_seed"]
            assert [None if np.isnan(v) else v for v in row.tolist()] == saved
    (tmp_path / "x.npz").write_text("nothing")
    for wrong in ("x.npz", "absent.npz"):
        with pytest.raises(FlextopoError, match=wrong):
            load_scores(tmp_path / wrong)


def test_seeds_that_a_selector_did_not_play_are_nan(tmp_path: Path) -> None:
    config = replace(SMALL, oracle_seeds=1, selectors=("greedy-cost", "oracle-lookahead"), seeds=2)
    save_scores(comparing.summarise(config, comparing.play_all(config, 1)[0]), tmp_path / "s.npz")
    loss = load_scores(tmp_path / "s.npz")["weighted_loss"]
    assert np.isnan(loss).tolist() == [[False, False], [False, True]]


def test_tables_have_a_row_a_selector(results: dict[str, Any]) -> None:
    table = rows(results, LOSS_COLUMNS)
    assert [row[0] for row in table[1:]] == list(SMALL.names)
    assert all(len(row) == len(table[0]) for row in table)
    verdicts = {row[0]: row[-1] for row in paired_rows(results)[1:]}
    assert set(verdicts.values()) == {"no claim: too few seeds"}


def test_a_verdict_needs_an_interval_without_zero() -> None:
    paired = {
        "a": {"mean": -0.02, "low": -0.03, "high": -0.01, "improvement": 0.9, "seeds": 10},
        "b": {"mean": -0.02, "low": -0.05, "high": 0.01, "improvement": 0.6, "seeds": 10},
        "c": {"mean": 0.02, "low": 0.01, "high": 0.03, "improvement": 0.1, "seeds": 10},
        "d": {"mean": 0.02, "low": 0.01, "high": 0.03, "improvement": 0.1, "seeds": 9},
    }
    paired = {name: {**row, "median": 0.0, "largest_day": 0.2} for name, row in paired.items()}
    verdicts = [row[-1] for row in paired_rows({"paired": paired})[1:]]
    assert verdicts == ["better", "no claim", "worse", "no claim: too few seeds"]
    cut = {"stretches": {"hours": 24.0, "disjoint": 9, "trace": "rates.csv"}}
    verdicts = [row[-1] for row in paired_rows({"paired": paired, "config": cut})[1:]]
    assert verdicts == [*["no claim: stretches overlap"] * 3, "no claim: too few seeds"]
    assert paired_notes({"paired": paired, "config": cut})[-1] == (
        "stretches overlap: 10 seeds of 24 h, of which rates.csv has 9 that share nothing; intervals are too "
        "narrow, and fewer than 10 give no verdict"
    )
    cut["stretches"]["disjoint"] = 10
    found = {"paired": paired, "config": cut}
    assert [row[-1] for row in paired_rows(found)[1:]][:3] == ["better", "no claim", "worse"]
    assert not any("overlap" in note for note in paired_notes(found))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seeds": 0}, "0 seeds"),
        ({"oracle_seeds": 9}, "oracle seeds 9"),
        ({"selectors": ()}, "no selector"),
        ({"selectors": ("godel", "godel")}, "each one once"),
        ({"services": "a.csv"}, "'a.csv' alone"),
        ({"split": "training"}, "split 'training'"),
    ],
)
def test_impossible_comparisons_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(FlextopoError, match=match):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_unknown_names_are_refused_before_anything_is_played() -> None:
    with pytest.raises(UnknownNameError, match="nobody"):
        comparing.check(replace(SMALL, selectors=("nobody",)))
    with pytest.raises(UnknownNameError, match="rtx5090"):
        comparing.check(replace(SMALL, servers="4*rtx5090"))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"selectors": 1}'])
def test_files_that_are_no_results_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(FlextopoError, match="no results file"):
        load_results(path)
