"""Selectors of a user's that fail or cheat: one sentence says which, how and where, in every command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flextopo
from flextopo.baselines.registry import make_selector
from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError, PodError
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.train.blame import blaming
from flextopo.train.compare import play_tape
from flextopo.train.config import ComparisonConfig

RULE = """from dataclasses import replace
from flextopo.cluster.state.decision import AlignmentFilter


class Mine:
    name, filter, inner = "mine", AlignmentFilter.OWN, None

    def select(self, cluster, preemptor):
        found = cluster.candidates(preemptor, False)
        {line}
"""
RAISES = "return {}[preemptor.name]"
ILLEGAL = "return replace(found[0], victims=())"
CHEATS = {
    "raises": (RAISES, ":10 fails on seed {seed} (KeyError: 'online/"),
    "ends": ("raise SystemExit(3)", ":10 fails on seed {seed} (SystemExit: 3)"),
    "stops": (
        "raise BaseException('no more')",
        ":10 fails on seed {seed} (BaseException: no more)",
    ),
    "asks": (
        "cluster.pod(10**6)",
        ":10 fails on seed {seed} (PodError: pod index 1000000; legal: 0",
    ),
    "number": ("return 42", ":8 fails on seed {seed} (AttributeError: "),
    "illegal": (ILLEGAL, ":8 answers on seed {seed} what is not legal: 'online/"),
}
SMALL = ("--servers", "4*rtx4090", "--peak", "0.9", "--hours", "12")
GAMES = ("--seeds", "1", "--workers", "1", "--policies", "none", "--out", "out")
COMMANDS = {
    "compare": ("compare", *SMALL, *GAMES, "--selectors"),
    "stress": ("stress", *SMALL[:2], *GAMES, "--only", "grace-0s", "--selectors"),
    "replay": ("replay", *SMALL, "--seed", "2000000", "-o", "x.html", "-s"),
    "bench": ("bench", "run", "--tracks", "rtx4090", "--workers", "1"),
}
SEEDS = {"stress": 1_000_000, "bench": 2_000_001}


@pytest.fixture
def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, str, str], tuple[int, str]]:
    monkeypatch.chdir(tmp_path)

    def found(command: str, module: str, line: str) -> tuple[int, str]:
        Path(f"{module}.py").write_text(RULE.replace("{line}", line))
        named = f"{module}:Mine"
        with pytest.raises(SystemExit) as stop:
            main([*COMMANDS[command], f"greedy-cost,{named}" if command == "stress" else named])
        sys.modules.pop(module, None)
        return int(stop.value.code or 0), capsys.readouterr().err

    return found


@pytest.mark.parametrize(
    ("command", "what"),
    [*(("compare", what) for what in CHEATS), *((command, "illegal") for command in COMMANDS)],
)
def test_one_sentence_names_selector_cause_and_place(
    command: str, what: str, play: Callable[[str, str, str], tuple[int, str]]
) -> None:
    line, said = CHEATS[what]
    module = f"cheat_{command}_{what}"
    status, told = play(command, module, line)
    assert status == 2
    expected = f"error: selector '{module}:Mine' at {module}.py{said}"
    assert told.startswith(expected.format(seed=SEEDS.get(command, 2_000_000)))
    assert told.count("\n") == 1
    assert "Traceback" not in told


def test_a_file_beside_the_package_is_a_users() -> None:
    name = f"{Path(flextopo.__file__).parent}_rules.py"
    names: dict[str, Any] = {}
    exec(compile("def select():\n    raise KeyError('x')", name, "exec"), names)  # noqa: S102
    with pytest.raises(
        FlextopoError, match=r"flextopo_rules\.py:2 fails on seed 0 \(KeyError: 'x'\)"
    ):
        choosing(names["select"])


def choosing(select: Callable[[], None]) -> None:
    with blaming(make_selector("godel"), "godel", 0):
        select()


def test_a_mistake_of_ours_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Simulator, "play", Simulator.apply)
    config = ComparisonConfig(servers="4*rtx4090", selectors=("godel",), policies=())
    with pytest.raises(PodError, match=r"^no pod waits for a decision"):
        play_tape(config, "godel", 0)
