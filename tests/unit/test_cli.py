import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flextopo.cli.app import main
from flextopo.cluster.simulation.metrics import METRICS
from flextopo.policies.runtime import read_meta
from flextopo.policies.shipped import ZOO


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("flextopo 0.")


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    for name in ("flextopo/Preempt-Mixed-v0", "oracle-lookahead", "deepset-imitation"):
        assert name in out


def test_compare_writes_results_figure_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--servers", "4*rtx4090", "--seeds", "2", "--hours", "6", "--workers", "1"]
    extra = ["--out", str(tmp_path / "o"), "--json", str(tmp_path / "j.json")]
    assert run("compare", *arguments, *extra) == 0
    out = capsys.readouterr().out
    saved = json.loads((tmp_path / "j.json").read_text())
    assert saved == json.loads((tmp_path / "o" / "compare.json").read_text())
    for name, row in saved["selectors"].items():
        assert name in out
        assert set(row) == set(METRICS)
    assert saved["config"]["versions"]["flextopo"]
    assert (tmp_path / "o" / "compare.png").stat().st_size > 10_000


SMALL = ("compare", "--servers", "4*rtx4090", "--seeds", "1", "--hours", "1", "--workers", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SMALL, "--selectors", "nobody"), ("unknown selector 'nobody'", "greedy-cost")),
        ((*SMALL, "--policies", "nobody"), ("'nobody'", "legal")),
        (("compare", "--servers", "rtx5090x16"), ("'rtx5090x16'", "rtx4090")),
        (("compare", "--servers", "rtx4090x0"), ("'0'", "legal: 1 to")),
        (("compare", "--seeds", "0"), ("0 seeds", "legal: 1 to")),
        (("compare", "--workers", "-1"), ("workers = -1", "legal")),
        (("compare", "--peak", "1.5"), ("online_peak_share", "1.5", "legal")),
        (("compare", "--hours", "-1"), ("horizon_h", "-1", "legal")),
        (("compare", "--admission", "strict"), ("'strict'", "restricted")),
        (("compare", "--weights", "nope=1"), ("--weights nope=1", "legal", "waiting (float)")),
        (("compare", "--weights", "idle=-1"), ("loss weight idle = -1", "legal: 0 to 1e+09")),
        (("evaluate", "x", "--weights", "idle=low"), ("idle = low", "legal: float")),
        (("stress", "--only", "flood"), ("unknown perturbation 'flood'", "server-missing")),
        (("stress", "--split", "training"), ("split 'training'", "legal")),
        (("compare", "--services", "missing.csv"), ("'missing.csv' alone",)),
        (("compare", "--services", "no.csv", "--batch", "no.csv"), ("no.csv", "legal")),
        (("train", "--algorithm", "magic"), ("'magic'", "ppo")),
        (("train", "--timesteps", "0"), ("timesteps = 0", "legal")),
        (("train", "--resume", "--out", "nowhere"), ("checkpoint.zip", "legal")),
        (("evaluate", "nobody"), ("'nobody'", "deepset-imitation")),
        (("report", "--readme", "missing.md"), ("missing.md", "No such file")),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert all(word in said for word in words), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("services", "batch", "words"),
    [
        ("", "submit_s,duration_s,gpus\n0,60,1\n", ("s.csv", "legal")),
        ("service,t_s,rate_rps\na,0,1\na,600,2\n", "a,b\n1,2\n", ("b.csv", "legal")),
        (
            "service,t_s,rate_rps\na,0,1\na,600,2\n",
            "submit_s,duration_s,gpus\n0,-60,1\n",
            ("b.csv:2", "-60", "legal"),
        ),
    ],
)
def test_bad_traces_name_file_and_line(
    services: str,
    batch: str,
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "s.csv").write_text(services)
    (tmp_path / "b.csv").write_text(batch)
    traces = ["--services", str(tmp_path / "s.csv"), "--batch", str(tmp_path / "b.csv")]
    assert run("compare", *traces, "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


HEARING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("flextopo", run_name="__main__", alter_sys=True)
"""
"""`python -m flextopo`, also where the tests run in the background and are deaf to interrupts."""


def interrupt(arguments: list[str], seconds: float, folder: Path) -> str:
    """Run a command, interrupt it as a terminal would, and return what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEARING, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=folder,
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert re.search(r"^interrupted: \w", said, re.MULTILINE), said
    assert "Traceback" not in said, said
    return said


def interrupt_late(arguments: list[str], folder: Path, late: Callable[[str], bool]) -> str:
    """Interrupt a command after ever longer, until it is late enough; return what it said."""
    for seconds in (2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0):
        said = interrupt(arguments, seconds, folder)
        if late(said):
            return said
    raise AssertionError(said)


def test_an_interrupted_training_leaves_its_last_checkpoint(tmp_path: Path) -> None:
    size = ["--servers", "4*rtx4090", "--out", "run"]
    training = ["train", "--timesteps", "10000000", *size]
    interrupt_late(training, tmp_path, lambda said: "checkpoint.zip" in said)
    assert not (tmp_path / "run" / "policy").exists()
    again = [sys.executable, "-m", "flextopo", "train", "--timesteps", "1", *size, "--resume"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "policy" / "meta.json").exists()


def test_an_interrupted_comparison_keeps_finished_seeds(tmp_path: Path) -> None:
    arguments = ["compare", "--servers", "16*rtx4090", "--seeds", "2000", "--workers", "2"]
    written = tmp_path / "compare.json"
    interrupt_late([*arguments, "--out", str(tmp_path)], tmp_path, lambda _: written.exists())
    saved = json.loads(written.read_text())
    assert saved["config"]["interrupted"] is True
    counts = {len(row["weighted_loss"]["per_seed"]) for row in saved["selectors"].values()}
    assert len(counts) == 1
    assert counts.pop() >= 1


def test_training_without_options_trains_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make train-zoo` gives the shipped policy again only if every default is the artifact's."""
    imitation = pytest.importorskip("flextopo.train.imitation")
    asked: list[Any] = []

    def record(config: Any, folder: Path, *_: Any) -> Path:
        asked.append(config)
        return folder / "policy"

    monkeypatch.setattr(imitation, "train_imitation", record)
    assert run("train", "--algorithm", "imitation", "--out", str(tmp_path)) == 0
    shipped = read_meta(ZOO / "deepset-imitation")["config"]
    assert asked[0] == type(asked[0])(**{**shipped, "servers": tuple(shipped["servers"])})
    arguments = ["train", "--algorithm", "imitation", "--tapes", "7", "--rounds", "2"]
    assert run(*arguments) == 0
    assert (asked[1].tapes, asked[1].rounds) == (7, 2)
    assert run(*arguments[:3], "--rounds", "0") == 2


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_missing_extra_is_one_sentence(command: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['sb3_contrib'] = None; from flextopo.cli.app import main; main()"
    )
    arguments = [sys.executable, "-c", code, command, "--out", "run"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: sb3_contrib is not installed; legal: pip install")
    assert "[train" in done.stderr
    assert done.stderr.count("\n") == 1


def test_all_selectors_are_those_that_the_workload_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "flextopo.cli.compare._compare", lambda config, *_: asked.append(config.names)
    )
    gangs = ["--servers", "8*a100@leaf4", "--set", "gang_share=0.5"]
    for more in ([], gangs):
        assert run("compare", "--policies", "none", *more) == 0
    plain, with_gangs = map(set, asked)
    assert plain - with_gangs == {"exact"}
    assert with_gangs - plain == {"kubernetes-workload", "kueue", "volcano", "requeue-aware-gangs"}
