"""A sweep's study depends neither on workers nor on interruptions."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.train import sweep as sweeping
from flextopo.train.config import SPACES, ImitationConfig, PPOConfig, SweepConfig
from flextopo.train.sweep import Trial, run_sweep, training_config

needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="optuna is not installed (extra `sweep`)"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*experimental.*")
SMALL = SweepConfig(
    trials=10, batch=3, tapes=1, judged_on="2*rtx4090", fixed={"servers": "2*rtx4090"}
)


def pretend(trial: Trial) -> float:
    """Stand in for a training: the loss of a bowl with its least value inside the ranges."""
    drawn = trial.drawn
    return float((drawn["learning_rate"] * 1e3 - 1) ** 2 + drawn["entropy"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "run_trial", pretend)


@pytest.mark.parametrize(
    ("algorithm", "config"), [("ppo", PPOConfig), ("imitation", ImitationConfig)]
)
def test_what_is_searched_are_fields_of_the_configuration(algorithm: str, config: Any) -> None:
    defaults: dict[str, Any] = {spec.name: spec.default for spec in fields(config)}
    for name, space in SPACES[algorithm].items():
        assert space.low <= defaults[name] <= space.high
    made = training_config(SweepConfig(algorithm=algorithm, budget=7), {"learning_rate": 0.002})
    assert isinstance(made, config)
    assert made.learning_rate == 0.002
    assert 7 in (getattr(made, "timesteps", None), getattr(made, "tapes", None))


@needs_optuna
@pytest.mark.usefixtures("quick")
def test_a_study_that_was_interrupted_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_sweep(SMALL, tmp_path / "whole", 1)
    assert len(whole["trials"]) == 10
    assert whole["best"]["loss"] == min(trial["loss"] for trial in whole["trials"])
    calls = []

    def interrupt(trial: Trial) -> float:
        calls.append(trial.number)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return pretend(trial)

    monkeypatch.setattr(sweeping, "run_trial", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(SMALL, tmp_path / "parts", 1)
    again = run_sweep(SMALL, tmp_path / "parts", 1)
    assert again == whole
    assert calls[3:7] == [3, 4, 3, 4], "the batch that was cut short is played again"


@needs_optuna
@pytest.mark.usefixtures("quick")
def test_workers_change_nothing_and_more_trials_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_sweep(SMALL, tmp_path / "whole", 1)

    def backwards(
        function: Callable[[Trial], float], jobs: Sequence[Trial], *_: object
    ) -> list[tuple[int, float]]:
        return [(i, function(jobs[i])) for i in reversed(range(len(jobs)))]

    monkeypatch.setattr(sweeping, "run_jobs", backwards)
    fewer = replace(SMALL, trials=6)
    assert len(run_sweep(fewer, tmp_path / "on", 2)["trials"]) == 6
    assert run_sweep(SMALL, tmp_path / "on", 2) == whole
    assert run_sweep(SMALL, tmp_path / "on", 2) == whole, "nothing left to do"


@needs_optuna
@pytest.mark.usefixtures("quick")
def test_another_study_in_the_folder_is_refused(tmp_path: Path) -> None:
    run_sweep(replace(SMALL, trials=1), tmp_path, 1)
    with pytest.raises(FlextopoError, match="study with other options"):
        run_sweep(replace(SMALL, budget=5), tmp_path, 1)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "study.db").write_text("no database" * 100)
    with pytest.raises(FlextopoError, match="no study"):
        run_sweep(SMALL, tmp_path / "x", 1)


@needs_optuna
def test_the_command_trains_and_writes_what_it_found(tmp_path: Path) -> None:
    options = ["--trials", "2", "--budget", "256", "--servers", "2*rtx4090", "--tapes", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *options, "--workers", "1", "--out", str(tmp_path)])
    assert stop.value.code == 0
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert len(found["trials"]) == 2
    best = tmp_path / "trials" / f"{found['best']['number']:04d}" / "policy"
    assert (best / "meta.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--algorithm", "dqn"], "unknown algorithm 'dqn'"),
        (["--search", "luck"], "unknown hyper-parameter 'luck'"),
        (["--trials", "0"], "trials = 0"),
        (["--tapes", "100000"], "100000 seeds"),
        (["--servers", "4*rtx5090"], "rtx5090"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *options, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@needs_optuna
def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: Trial) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "run_trial", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--workers", "1", "--out", str(tmp_path)])
    assert stop.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "sweep.json").exists()


def test_optuna_that_is_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(FlextopoError, match=r"pip install 'flextopo\[sweep\]'"):
        run_sweep(SMALL, tmp_path, 1)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'colour'"):
        training_config(replace(SMALL, fixed={"colour": 1}), {})
