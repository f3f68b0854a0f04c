"""The report: one page that needs nothing else, its figures, and what it refuses."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import LossWeights, Scenario
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.train import compare as comparing
from flextopo.train.config import ComparisonConfig
from flextopo.train.report import generated
from flextopo.train.report_data import (
    pooled_difference,
    read_report_data,
    reweighted,
    scaling,
    weight_series,
)
from flextopo.train.report_figures import (
    FIGURES,
    close_points,
    draw_decomposition,
    draw_gangs,
    pareto_front,
)
from flextopo.train.report_page import write_report
from flextopo.train.results import save_results

SAVED = Path(__file__).parents[2] / "docs" / "results"
SMALL = ComparisonConfig(
    servers="2*rtx4090",
    selectors=("godel", "greedy-cost"),
    policies=(),
    seeds=3,
    workload=WorkloadConfig(horizon_h=4.0, online_peak_share=0.9),
)
LEARNT = {
    "learning_curves": {
        "ppo": {"decisions": [0, 10, 20], "loss": [0.1, 0.08, 0.07], "low": [0.09, 0.07, 0.06],
                "high": [0.11, 0.09, 0.08]},
        "imitation": {"decisions": [0, 20], "loss": [0.1, 0.06]},
    },
    "importance": {"age": {"mean": 0.01, "low": 0.005, "high": 0.02}, "level": {"mean": 0.0}},
}  # fmt: skip
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Comparisons that differ in servers, or in a weight, and what training measured."""
    out = tmp_path_factory.mktemp("results")
    heavier = Scenario(weights=LossWeights(outage=9.0))
    for name, config in {
        "two": SMALL,
        "three": replace(SMALL, servers="3*rtx4090"),
        "slower": replace(SMALL, scenario=heavier),
    }.items():
        scores, _ = comparing.play_all(config, workers=1)
        save_results(comparing.summarise(config, scores), out / f"{name}.json")
    (out / "learnt.json").write_text(json.dumps(LEARNT))
    return out


def test_the_page_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    page, *figures = write_report([folder], tmp_path / "deep" / "out")
    text = page.read_text()
    assert not re.search(r"https?://|<script|<link", text)
    embedded = re.findall(r'<img alt="[^"]+" src="data:image/png;base64,([^"]+)"', text)
    stems = {path.stem for path in figures}
    assert stems == {
        *("losses", "decomposition", "front", "differences", "profile", "learning-curves"),
        *("scaling", "weights-played", "weights", "importance"),
    }
    assert [base64.b64decode(data) for data in embedded] == [p.read_bytes() for p in figures]
    assert all(path.read_bytes().startswith(PNG) for path in figures)
    assert {path.name for path in page.parent.iterdir()} == {p.name for p in (page, *figures)}


def test_every_number_of_a_table_is_on_the_page(folder: Path, tmp_path: Path) -> None:
    text = write_report([folder / "two.json"], tmp_path)[0].read_text()
    row = json.loads((folder / "two.json").read_text())["selectors"]["godel"]["weighted_loss"]
    half = (row["high"] - row["low"]) / 2
    assert f"<td>{100 * row['mean']:.2f} ±{100 * half:.2f}</td>" in text
    assert "<h2>2*rtx4090</h2>" in text


def test_figures_without_data_are_left_out(tmp_path: Path) -> None:
    written = write_report([SAVED / "rtx4090.json"], tmp_path)
    assert [path.stem for path in written] == [
        *("report", "losses", "decomposition", "front", "differences", "profile", "weights")
    ]


@pytest.mark.parametrize("files", [["rtx4090"], ["rtx4090", "a100", "gangs64"]])
@pytest.mark.parametrize("stem", FIGURES)
def test_no_legend_is_cut_off(stem: str, files: list[str]) -> None:
    data = read_report_data([SAVED / f"{name}.json" for name in files])
    figure = FIGURES[stem][1](data)
    if figure is None:
        return
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    own = [legend for ax in figure.axes if (legend := ax.get_legend()) is not None]
    for legend in [*figure.legends, *own]:
        box = legend.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height


def test_the_decomposition_names_every_term() -> None:
    figure = draw_decomposition(read_report_data([SAVED / "rtx4090.json"]))
    assert figure is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(LOSS_TERMS)


def test_the_front_is_of_those_that_no_other_beats() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (2.0, 6.0), "d": (3.0, 4.0), "e": (9.0, 1.0)}
    assert pareto_front(points) == ["a", "b", "e"]
    for name, (x, y) in points.items():
        beaten = any(u <= x and v <= y and (u, v) != (x, y) for u, v in points.values())
        assert (name in pareto_front(points)) == (not beaten)


def test_points_that_lie_on_each_other_share_a_label() -> None:
    points = {"a": (30.0, 5.0), "b": (30.0, 5.1), "c": (30.0, 9.0), "d": (130.0, 5.0)}
    assert sorted(close_points(points).values()) == [["a", "b"], ["c"], ["d"]]
    assert close_points({"a": (1.0, 1.0), "b": (1.0, 1.0)}) == {(1.0, 1.0): ["a", "b"]}


def test_gangs_are_drawn_where_there_are_some() -> None:
    assert draw_gangs(read_report_data([SAVED / "rtx4090.json"])) is None
    figure = draw_gangs(read_report_data([SAVED / "gangs64.json"]))
    assert figure is not None
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert set(names) == set(json.loads((SAVED / "gangs64.json").read_text())["selectors"])


def test_a_stress_test_has_its_table(tmp_path: Path) -> None:
    page = write_report([SAVED / "stress.json"], tmp_path)[0].read_text()
    results = json.loads((SAVED / "stress.json").read_text())
    assert "Disturbed worlds (stress)" in page
    for name in results["stress"]:
        assert f"<td>{name}</td>" in page


def test_comparisons_are_strata_of_the_pooled_difference() -> None:
    data = read_report_data([SAVED / "rtx4090.json", SAVED / "a100.json"])
    found = pooled_difference(data, "oracle-lookahead")
    assert found is not None
    means = [c.results["paired"]["oracle-lookahead"]["mean"] for c in data.comparisons]
    assert found.mean == pytest.approx(np.mean(means))
    assert found.low < found.mean < found.high < 0
    assert pooled_difference(data, "nobody") is None


def test_a_reweighted_loss_is_the_sum_of_its_terms() -> None:
    (comparison,) = read_report_data([SAVED / "mixed.json"]).comparisons
    unchanged = reweighted(comparison, "godel", "idle", 1.0)
    without = reweighted(comparison, "godel", "idle", 0.0)
    part = comparison.paired("godel", "idle")
    assert unchanged is not None
    assert without is not None
    assert part is not None
    assert unchanged.mean() == pytest.approx(comparison.results["paired"]["godel"]["mean"])
    assert unchanged - without == pytest.approx(part[0] - part[1])


def test_series_hold_what_differs_in_one_thing(folder: Path) -> None:
    data = read_report_data([folder])
    (sizes,) = scaling(data).values()
    assert [size for size, _ in sizes] == [2, 3]
    (played,) = weight_series(data).items()
    assert played[0] == "outage"
    assert [value for value, _ in played[1]] == [3.0, 9.0]
    assert len({comparison.label for comparison in data.comparisons}) == 3


def test_a_block_shows_the_file_that_it_names(folder: Path, tmp_path: Path) -> None:
    saved = json.loads((folder / "two.json").read_bytes())
    (tmp_path / "week.json").write_text(json.dumps(saved))
    saved["paired"]["godel"]["mean"] = 0.1234
    (tmp_path / "week-a100.json").write_text(json.dumps(saved))
    assert "+12.34" in generated("week-a100-paired", tmp_path)
    assert "+12.34" not in generated("week-paired", tmp_path)
    assert generated("week-a100", tmp_path) == generated("week", tmp_path)
    with pytest.raises(FlextopoError, match="without a policy; legal: "):
        generated("week-a100-against", tmp_path)


def test_names_are_escaped(tmp_path: Path) -> None:
    results: dict[str, Any] = json.loads((SAVED / "rtx4090.json").read_text())
    results["config"]["servers"] = "<script>alert(1)</script>"
    save_results(results, tmp_path / "r.json")
    page = write_report([tmp_path / "r.json"], tmp_path / "out")[0].read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no results file"),
        ("[]", "no results file"),
        ('{"selectors": {"a": {}}, "config": {"seeds_used": {}}}', "no results file"),
        ('{"learning_curves": 3}', "no results file"),
        ('{"importance": {}}', "no selector in the results"),
        (None, "No such file"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_is_searched_and_an_empty_one_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    with pytest.raises(FlextopoError, match="no results file in it"):
        read_report_data([tmp_path])
    shutil.copy(SAVED / "a100.json", tmp_path / "deep")
    shutil.copy(SAVED / "reproduce.json", tmp_path)
    assert len(read_report_data([tmp_path]).comparisons) == 1


def test_the_command_writes_the_page_and_leaves_readme_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(folder / "two.json"), "--out", str(tmp_path)])
    assert stop.value.code == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["report", str(folder / "two.json"), "--check"])
    assert stop.value.code == 2
    with pytest.raises(FlextopoError, match="cannot be"):
        write_report([folder / "two.json"], folder / "two.json" / "out")
