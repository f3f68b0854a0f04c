"""What the tables are made of: played stage by stage, and the same numbers when played again."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flextopo.train.compare import play_all, summarise
from flextopo.train.config import ComparisonConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("installed without the repository's root", allow_module_level=True)
OTHERWISE = {
    "ablation",
    "distilled",
    "distilled-loss",
    "in-range",
    "planning-knowledge",
    "ppo",
    "ppo-speed",
    "speed",
}
"""Results that `make tables` does not make: measured times, the older simulator's, and what has a command
of its own (`in-range`, the distilled rule, what a planner must know)."""


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("tables")


@pytest.fixture
def replay_results(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("replay_results")


def test_every_saved_comparison_is_what_its_stage_asks_for(tables: Any) -> None:
    made = [stage for stage in tables.stages("traces") if stage.file.endswith(".json")]
    stages = {Path(stage.file).stem: stage for stage in made}
    assert set(stages) | OTHERWISE == {path.stem for path in RESULTS.rglob("*.json")}
    for name, stage in stages.items():
        if stage.command[0] != "compare":
            continue
        asked = dict(zip(stage.command[1::2], stage.command[2::2], strict=True))
        saved = json.loads((RESULTS / stage.file).read_text())
        config = saved["config"]
        if stage.kept:
            assert {tuple(rows) for rows in saved["selectors"].values()} == {stage.kept}, name
        assert asked["--json"] == f"docs/results/{stage.file}"
        assert (asked["--servers"], int(asked["--seeds"])) == (config["servers"], config["seeds"])
        assert asked["--selectors"].split(",") == config["selectors"], name
        policies = asked.get("--policies", "deepset-imitation").split(",")
        assert [name for name in policies if name != "none"] == config["policies"]
        assert float(asked.get("--hours", 24)) == config["workload"]["horizon_h"]
        assert ("--services" in asked) == (config["services"] is not None)


def test_stages_go_on_where_they_were_stopped(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(command: list[str], **_: Any) -> None:
        if len(ran) == stop:
            raise KeyboardInterrupt
        ran.append(command[-1])
        (tmp_path / command[-1]).write_text("{}")

    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "NOTES", tmp_path / "results" / "tables")
    monkeypatch.setattr(tables.subprocess, "run", run)
    found = [tables.compare("a", name, 2, "--seeds 3") for name in ("x", "y", "z")]
    monkeypatch.setattr(tables, "stages", lambda traces: found)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "flextopo").mkdir()
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        tables.main([])
    assert "3 to play, about 6 minutes" in capsys.readouterr().out
    stop = 99
    tables.main([])
    assert ran == [f"docs/results/{name}.json" for name in "xyz"]
    assert "1 to play, about 2 minutes" in capsys.readouterr().out
    tables.main(["--plan"])
    assert "0 to play" in capsys.readouterr().out
    (tmp_path / "docs" / "results" / "x.json").write_text("{ }")
    found[1] = tables.compare("a", "y", 2, "--seeds 4")
    tables.main([])
    assert ran[3:] == ["docs/results/x.json", "docs/results/y.json"]
    (tmp_path / "flextopo" / "loss.py").write_text("# another number")
    tables.main([])
    assert len(ran) == 8
    tables.main(["a"])
    assert len(ran) == 11


def test_what_cannot_be_played_is_told(tables: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tables.main(["recorded", "--plan", "--traces", "nowhere"])
    said = capsys.readouterr().out
    assert said.count("no traces; TRACES=FOLDER has them") == 5
    assert "0 to play" in said
    with pytest.raises(SystemExit):
        tables.main(["nothing"])
    assert "legal: fit, gangs, learnt, planning" in capsys.readouterr().err


def save(path: Path) -> dict[str, Any]:
    config = ComparisonConfig(
        servers="2*rtx4090", selectors=("greedy-cost", "lookahead"), policies=(), seeds=12
    )
    config = replace(config, workload=replace(config.workload, horizon_h=3.0))
    results = summarise(config, play_all(config, 1)[0])
    path.write_text(json.dumps(results))
    return results


def test_saved_numbers_are_played_again(
    replay_results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.json"
    results = save(path)
    assert replay_results.main([str(path), "--part", "15"]) == 0
    assert "small.json: 1 games, 0 differences" in capsys.readouterr().out
    assert replay_results.main([str(path), "--all", "--share", "1"]) == 0
    assert "small.json: 24 games, 0 differences" in capsys.readouterr().out
    losses = results["selectors"]["greedy-cost"]["weighted_loss"]["per_seed"]
    losses[11] += 1e-12
    path.write_text(json.dumps(results))
    assert replay_results.main([str(path)]) == 0  # entries 0 and 10
    assert replay_results.main([str(path), "--part", "1"]) == 1
    assert "greedy-cost, seed 2000011, weighted_loss: saved" in capsys.readouterr().out


def test_what_is_not_played_again_is_told(
    replay_results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.json"
    results = save(path)
    assert replay_results.main([str(path), "--minutes", "0"]) == 1
    assert "0 games, 0 differences, 0 s, 2 left for want of time" in capsys.readouterr().out
    results["config"] |= {"services": "s.csv", "batch": "b.csv"}
    path.write_text(json.dumps(results))
    assert replay_results.main([str(path), "--traces", "nowhere"]) == 1
    assert "left out: no s.csv in nowhere" in capsys.readouterr().out
    path.write_text("[]")
    assert replay_results.main([str(path)]) == 1
    with pytest.raises(SystemExit):
        replay_results.main(["--share", "0"])


def test_what_is_kept_of_a_file_is_what_it_had(tables: Any, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    rows = {"loss": {"mean": 0.25, "per_seed": [0.1, 0.4]}, "waits": {"mean": 3.0, "per_seed": [1]}}
    path.write_text(json.dumps({"selectors": {"a": rows, "b": rows}, "config": {"seeds": 2}}))
    tables.keep_some(path, ("loss",))
    kept = {"loss": rows["loss"]}
    assert json.loads(path.read_text()) == {
        "selectors": {"a": kept, "b": kept},
        "config": {"seeds": 2},
    }
