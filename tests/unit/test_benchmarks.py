"""The benchmarks' judgement: what counts as slower, and who is compared with whom."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="regression")
def _regression(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("regression")


@pytest.fixture(name="peers")
def _peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers")


def test_slower_means_more_than_the_limit_above_the_baseline(regression: Any) -> None:
    baseline = {"same": 2.0, "faster": 2.0, "at the limit": 2.0, "beyond": 2.0, "gone": 2.0}
    measured = {"same": 2.0, "faster": 0.1, "at the limit": 2.5, "beyond": 2.51, "new": 9.0}
    found = regression.slower(baseline, measured, limit=0.25)
    assert [tuple(case) for case in found] == [("beyond", 2.0, 2.51), ("gone", 2.0, None)]


def test_a_second_measurement_only_ever_clears(regression: Any) -> None:
    best = regression.best({"a": 3.0, "b": 1.0, "c": 1.0}, {"a": 2.0, "b": 5.0, "d": 4.0})
    assert best == {"a": 2.0, "b": 1.0, "c": 1.0, "d": 4.0}


def _constant(seconds: float) -> Any:
    return lambda: lambda: seconds


def test_compare_fails_only_on_what_stays_slower(
    regression: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(regression.REFERENCES, "fixed", _constant(1.0))
    monkeypatch.setattr(regression, "CASE_S", 0.0)
    first = iter([False])

    def once_disturbed() -> Any:  # slow in the first measurement, then as before
        slow = next(first, True) is False
        return lambda: 9.0 if slow else 1.0

    cases = {
        "disturbed": regression.Case("fixed", once_disturbed),
        "slower": regression.Case("fixed", _constant(1.5)),
    }
    assert regression.compare(cases, {"disturbed": 1.0, "slower": 1.0}) == 1
    table = capsys.readouterr().out.split("slower than its baseline")[1]
    assert "+50%" in table
    assert "disturbed" not in table
    assert regression.compare(cases, {"disturbed": 1.0, "slower": 1.3}) == 0


def test_the_stored_baseline_reads_back(regression: Any, tmp_path: Path) -> None:
    stored = regression.read_baseline()
    assert len(stored) > 10
    assert all(value > 0 for value in stored.values())
    regression.write_baseline(stored, tmp_path / "baseline.json")
    assert regression.read_baseline(tmp_path / "baseline.json") == stored


def _row(peers: Any, environment: str, num_envs: int, alone: float | None, drawn: float) -> Any:
    return peers.Row(environment, "", num_envs, "", alone, drawn, 0.0)


def test_peers_are_compared_like_with_like(peers: Any) -> None:
    rows = [_row(peers, "flextopo", 1, 10.0, 8.0), _row(peers, "flextopo", 64, 600.0, 400.0)]
    assert peers.ours_over(rows, _row(peers, "x", 1, 20.0, 1.0)) == "0.50"
    assert peers.ours_over(rows, _row(peers, "x", 64, 200.0, 1.0)) == "3.00"
    assert peers.ours_over(rows, _row(peers, "rollout", 64, None, 200.0)) == "2.00"
    assert peers.ours_over(rows, _row(peers, "x", 1024, 1.0, 1.0)) == "not available"


def test_a_failed_installation_is_told_in_one_line(peers: Any) -> None:
    output = (
        "  error: subprocess-exited-with-error\n"
        "  ╰─> [1 lines of output]\n"
        "      error in gym setup command: 'extras_require' must be a dictionary\n"
        "note: This error originates from a subprocess\n\n"
        "error: subprocess-exited-with-error\n"
        "Getting requirements to build wheel did not run successfully.\n"
    )
    assert (
        peers.reason(output) == "error in gym setup command: 'extras_require' must be a dictionary"
    )
