"""What commands print where, for people, programs and pipes; their exit statuses."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flextopo.cli.app import main
from flextopo.cli.terminal import Failed
from flextopo.policies.shipped import zoo_names

GAME = ("--servers", "2*rtx4090", "--seeds", "1", "--workers", "1")
SHORT = ("--hours", "1", "--selectors", "godel,greedy-cost", "--policies", "none")
TINY = ("--servers", "2*rtx4090", "--set", "num_envs=2", "--set", "rollout=16")
TERMINAL = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def saved() -> Path:
    assert run("compare", *GAME, *SHORT) == 0
    return Path("results/compare.json")


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return the one JSON document that a command prints; nothing else may be said."""
    capsys.readouterr()
    assert run(*arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\n") == 1
    return json.loads(said.out)


@pytest.mark.parametrize("ending", [("--json", "-"), ("--json",)], ids=["dash", "bare"])
def test_list_as_json(ending: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "list", *ending)
    assert list(found) == ["environments", "selectors", "policies", "perturbations", "tracks"]
    assert [row["name"] for row in found["policies"]] == zoo_names()
    assert {"name", "about", "servers"} == set(found["environments"][0])


def test_fields_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    (rows,) = document(capsys, "list", "workload", "--json").values()
    peak = next(row for row in rows if row["name"] == "online_peak_share")
    assert peak == {
        "name": "online_peak_share",
        "type": "float",
        "default": 0.6,
        "meaning": "highest online demand of the day, share of all GPUs",
    }


@pytest.mark.parametrize("command", ["show", "export"])
def test_topology_as_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "topology", command, "--json", "-", "a100")
    assert found["metadata"]["name"] == "a100"
    assert found["spec"]
    assert run("topology", "export", "a100", "-o", "node.json") == 0
    assert json.loads(Path("node.json").read_text()) == found
    assert document(capsys, "topology", "import", "node.json", "--json") == found
    assert run("topology", "detect", "--name", "here", "--json") == 0  # may warn of this machine
    assert json.loads(capsys.readouterr().out)["metadata"]["name"] == "here"


def test_games_as_json(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "compare", *GAME, *SHORT, "--json", "--set", "burst_factor=4")
    assert found["config"]["workload"]["burst_factor"] == 4
    assert found == json.loads(saved.read_text())
    assert Path("results/compare.png").exists()
    replayed = document(capsys, "replay", str(saved), "--json")
    assert replayed["replay"] == "results/replay.html"
    losses = {row["selector"]: row["weighted_loss"] for row in replayed["recordings"]}
    means = {name: row["weighted_loss"]["mean"] for name, row in found["selectors"].items()}
    assert losses == pytest.approx(means)
    assert document(capsys, "evaluate", zoo_names()[0], *GAME, "--json")["selectors"]
    written = document(capsys, "report", str(saved), "--json")["written"]
    assert written[0] == "results/report/report.html"
    assert all(Path(path).exists() for path in written)


def test_training_as_json_and_with_fields_that_have_no_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sb3_contrib")
    found = document(capsys, "train", "--timesteps", "32", *TINY, "--out", "r", "--json")
    assert found["policy"] == "r/policy"
    assert (found["config"]["num_envs"], found["config"]["timesteps"]) == (2, 32)
    assert json.loads(Path("r/policy/meta.json").read_text())["config"] == found["config"]


def test_a_sweep_holds_what_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sb3_contrib")
    trial = {"number": 0, "loss": 0.5, "drawn": {"clip": 0.25}}

    def run_sweep(config: Any, *_: Any) -> dict[str, Any]:
        return {"config": config.fixed, "trials": [trial], "best": trial}

    monkeypatch.setattr("flextopo.train.sweep.run_sweep", run_sweep)
    found = document(capsys, "sweep", "--search", "clip", *TINY, "--json")
    assert found["config"] == {"servers": "2*rtx4090", "num_envs": 2, "rollout": 16}
    assert json.loads(Path("runs/sweep/sweep.json").read_text()) == found


def test_json_into_a_file_leaves_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json", "new/names.json") == 0
    said = capsys.readouterr().out
    assert re.search(r"^selector +random ", said, re.MULTILINE)
    assert "selectors" in json.loads(Path("new/names.json").read_text())


SNAPSHOT = {
    "now_s": 100,
    "servers": [{"name": "n0", "model": "rtx4090"}],
    "pods": [
        {"name": "batch/b", "gpus": 8, "cores": 7, "priority": 100, "node": "n0",
         "gpus_held": [0, 1, 2, 3, 4, 5, 6, 7], "start_s": 0},
        {"name": "llm", "gpus": 2, "cores": 14, "priority": 1000, "online": True},
    ],
    "preemptor": "llm",
}  # fmt: skip


def test_a_decision_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    Path("snapshot.json").write_text(json.dumps(SNAPSHOT))
    found = document(capsys, "decide", "snapshot.json", "--json")
    assert (found["node"], found["victims"]) == ("n0", ["batch/b"])
    assert run("decide", "snapshot.json") == 0
    shown = capsys.readouterr().out
    assert json.loads(shown).keys() == found.keys()
    assert shown.count("\n") > 1


LOG = {
    "shadow": True, "outcome": "preempt", "node": "a", "victims": ["x"], "evicted_gpus": 2,
    "level": "numa", "cost_gpu_h": 0.5, "fallback": None,
    "default": {"node": "b", "victims": ["y", "z"], "evicted_gpus": 4, "level": "socket",
                "cost_gpu_h": 1.5},
}  # fmt: skip


def test_shadow_report_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    Path("log").write_text(json.dumps(LOG) + "\n")
    found = document(capsys, "shadow-report", "log", "--json")
    assert found["rows"]["victims"] == {"kube-scheduler": 2, "selector": 1}
    assert found["rows"]["loss, weighted GPU-h"] == {"kube-scheduler": 1.5, "selector": 0.5}
    assert found["rows"]["level numa"] == {"kube-scheduler": 0, "selector": 1}
    assert (found["same_node"], found["same_victims"], found["fallbacks"]) == (0, 0, {})
    assert found["note"] == "same node 0, same victims 0; fallbacks: none"
    assert found["counted"].endswith("so compare differences")


def test_shadow_report_passes_over_what_is_no_decision(capsys: pytest.CaptureFixture[str]) -> None:
    others = [
        b'{"shadow": true, "default": null}',
        json.dumps({**LOG, "victims": None}).encode(),
        json.dumps({**LOG, "default": {"node": "b"}}).encode(),
        json.dumps(LOG).encode()[:-1],
        b"[" * 10**6 + b"]" * 10**6,
        b"\xe9t\xe9",
        b'{"shadow": "\xff"}',
    ]
    Path("log").write_bytes(b"\n".join([*others, json.dumps(LOG).encode()]))
    assert document(capsys, "shadow-report", "log", "--json")["rows"]["decisions"] == {
        "kube-scheduler": 1,
        "selector": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "--seed", "3"), "no such option: --seed"),
        (("compare", "--seeds", "many"), "--seeds"),
        (("evaluate",), "policy"),
        (("evaluate", "a", "b"), "b"),
        (("nonsense",), "no such command 'nonsense'"),
        (("topology", "nonsense"), "see `flextopo topology --help`"),
        (("compare", "--set"), "see `flextopo compare --help`"),
        (("export", "deepset-imitation"), "--out"),
        (("list", "fruits"), "unknown kind 'fruits'"),
        (("list", "--json", "."), "is a folder; legal: a file to write, or -"),
        (("compare", "--set", "burst"), "--set burst; legal: FIELD=VALUE, of warmup_h (float)"),
        (("compare", "--set", "burst_factor=0"), "burst_factor = 0.0; legal: 1 to 100"),
        (("replay", "--set", "burst_factor=much"), "burst_factor = much; legal: float"),
        (("sweep", "--algorithm", "magic"), "unknown algorithm 'magic'; legal: imitation, ppo"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert not list(Path().iterdir())


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "Usage: flextopo" in capsys.readouterr().out


def test_a_check_that_fails_has_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path("page.md")
    page.write_text("<!-- generated: policies -->\nold\n<!-- end -->\n")
    check = ("report", "--readme", str(page), "--check")
    assert run(*check) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: page.md: generated blocks are out of date; run `flextopo report --readme page.md`\n"
    )
    assert "old" in page.read_text()
    assert run(*check[:-1]) == 0
    assert document(capsys, *check, "--json") == {"written": [], "out_of_date": False}


def test_what_fails_without_a_mistake_has_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for failure, said in [
        (Failed("the check failed"), "error: the check failed\n"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), "error: f: No space left on d"),
    ]:

        def fail(failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr("flextopo.policies.shipped.zoo_names", fail)
        assert run("list", "policies") == 1
        assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["topology", "show", "a100"]])
def test_a_closed_pipe_is_silent(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "flextopo", *arguments],
        stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1


def on_terminal(*command: str) -> tuple[str, str]:
    """Run Python whose standard error is a terminal; return what it prints in the pipe and there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE, stderr=theirs, text=True, env=TERMINAL,
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 4096):
            drawn += chunk
    except OSError:  # the other end is closed
        pass
    out, _ = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == 0, drawn
    return out, drawn.decode()


def test_a_bar_on_the_terminal_and_results_alone_in_the_pipe(saved: Path) -> None:
    arguments = ("-m", "flextopo", "compare", *GAME, *SHORT)
    out, drawn = on_terminal(*arguments)
    assert "greedy-cost" in out
    assert "\x1b" not in out
    assert "playing" in drawn
    assert "100%" in drawn
    piped = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert piped.stderr == ""
    assert piped.stdout == out
    out, drawn = on_terminal(*arguments, "--json", "-")
    assert json.loads(out) == json.loads(saved.read_text())
    assert "greedy-cost" in drawn


def test_work_that_reports_in_lines() -> None:
    code = "from flextopo.cli.terminal import lines\nwith lines('imitating') as say:\n"
    code += "    say('round 1/4: [red]good[/]')"
    out, drawn = on_terminal("-c", code)
    assert out == "round 1/4: [red]good[/]\n"
    assert re.search(r"imitating.*25%", drawn)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == (out, "")
