"""Every example runs, shortened by its own arguments, says what it is, and is short."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("installed without the repository's root", allow_module_level=True)

RUNS: dict[str, tuple[list[str], str]] = {
    "custom_network.py": (["--timesteps", "64"], r"mean return"),
    "custom_reward.py": (
        ["--servers", "4*rtx4090"],
        r"as it is: -\d+\.\d GPU-hours\nweighed anew: -\d+\.\d",
    ),
    "distilled_rule.py": (
        ["--servers", "4*rtx4090", "--seeds", "2"],
        r"the least wins:\n +\+1\.000 x logarithm",
    ),
    "http_client.py": ([], r'"selector":"greedy-cost"'),
    "ppo.py": (["--timesteps", "64", "--days", "2"], r"decisions, \d+ s: loses \d+\.\d\d%"),
    "private_trace.py": (["--seeds", "2"], r"godel +[+-]\d+\.\d\d points"),
    "random_agent.py": (["--servers", "4*rtx4090"], r"weighted loss 0\.\d{3}"),
    "sb3_ppo.py": (["--timesteps", "64", "--days", "2"], r"beyond greedy-cost: [+-]\d+\.\d\d \["),
    "torch_loop.py": (["--updates", "2"], r"update 2: \d+ days lost"),
}
"""File to (arguments that make it short, what it prints)."""

LEARNING = ("custom_network.py", "ppo.py", "sb3_ppo.py", "torch_loop.py")
LONGEST = {"ppo.py": 230}
"""Lines of examples that are all of an algorithm in one file."""

every_example = pytest.mark.parametrize("name", RUNS)


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_no_example_is_left_out() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@every_example
def test_it_is_short_and_says_what_it_shows_and_how_long_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if name in LEARNING:
        pytest.importorskip("stable_baselines3")
    text = (EXAMPLES / name).read_text()
    assert text.count("\n") < LONGEST.get(name, 60)
    about = ast.get_docstring(ast.parse(text))
    assert about
    assert re.search(r"seconds|minute", about)
    with pytest.raises(SystemExit) as stop:
        run(name, ["--help"], monkeypatch)
    assert stop.value.code == 0
    assert about.split()[0] in capfd.readouterr().out


@pytest.mark.filterwarnings("default")
@every_example
def test_it_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if name in LEARNING:
        pytest.importorskip("sb3_contrib")
    if name == "http_client.py":
        pytest.importorskip("uvicorn")
    monkeypatch.chdir(tmp_path)
    arguments, expected = RUNS[name]
    run(name, arguments, monkeypatch)
    said = capfd.readouterr().out
    assert re.search(expected, said), said


def test_the_services_answer_is_a_decision(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn")
    run("http_client.py", ["--selector", "flextopo"], monkeypatch)
    answer = json.loads(capfd.readouterr().out)
    assert answer["level"] == "socket"
    assert len(answer["victims"]) == 2
