"""`flextopo replay`: what it writes, what it takes from saved results, and its mistakes."""

import json
import shutil
from pathlib import Path

import pytest

from flextopo.cli.app import main
from flextopo.cli.replay import _override
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.policies.shipped import ZOO
from flextopo.train.compare import play_tape
from flextopo.train.config import ComparisonConfig

SMALL = ("--servers", "4*a100", "--hours", "6")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def data_of(page: Path) -> dict[str, object]:
    """Return what a page's script reads."""
    text = page.read_text().split('id="recording">')[1].split("</script>")[0]
    found: dict[str, object] = json.loads(text)
    return found


def test_two_selectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "day.html"
    chosen = ("--selector", "kubernetes", "-s", "greedy-cost", "--seed", "2000003")
    assert run("replay", *chosen, *SMALL, "-o", str(page)) == 0
    said = capsys.readouterr().out
    assert "kubernetes:" in said
    assert f"replay: {page} (0." in said
    assert "2000003" in page.read_text()
    data = data_of(page)
    assert data["end_s"] == 6 * 3600
    config = ComparisonConfig(servers="4*a100", workload=WorkloadConfig(horizon_h=6.0))
    sides = data["sides"]
    assert isinstance(sides, list)
    for side, name in zip(sides, ("kubernetes", "greedy-cost"), strict=True):
        loss = play_tape(config, name, 2_000_003)["weighted_loss"]
        assert (side["name"], side["weighted_loss"]) == (name, round(loss, 6))


def test_saved_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "compare.json"
    chosen = ("--selectors", "random,kubernetes,greedy-cost", "--policies", "none", "--seeds", "3")
    more = ("--peak", "0.9", "--admission", "restricted", "--workers", "1")
    arguments = (*chosen, *more, *SMALL, "--out", str(tmp_path), "--json", str(saved))
    assert run("compare", *arguments) == 0
    results = json.loads(saved.read_text())
    losses = {name: row["weighted_loss"]["per_seed"] for name, row in results["selectors"].items()}
    means = {name: row["weighted_loss"]["mean"] for name, row in results["selectors"].items()}
    best = min((name for name in means if name != "greedy-cost"), key=lambda name: means[name])
    gaps = [abs(a - b) for a, b in zip(losses[best], losses["greedy-cost"], strict=True)]
    at = gaps.index(max(gaps))
    page = tmp_path / "day.html"
    assert run("replay", str(saved), "-o", str(page)) == 0
    assert f"<li><b>tape seed</b> {2_000_000 + at}</li>" in page.read_text()
    assert "restricted" in page.read_text()
    sides = data_of(page)["sides"]
    assert isinstance(sides, list)
    assert [(side["name"], side["weighted_loss"]) for side in sides] == [
        (name, round(losses[name][at], 6)) for name in (best, "greedy-cost")
    ]
    assert run("replay", str(saved), "-s", "random", "--seed", "2000000", "-o", str(page)) == 0
    assert "random" in capsys.readouterr().out.splitlines()[-2]
    sides = data_of(page)["sides"]
    assert isinstance(sides, list)
    assert [(side["name"], side["weighted_loss"]) for side in sides] == [
        ("random", round(losses["random"][0], 6))
    ]


def test_policies_are_called_what_they_were_asked_for_by(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a", "b")]
    for name in names:
        shutil.copytree(ZOO / "deepset-imitation", name)
    page = tmp_path / "day.html"
    assert run("replay", "-s", names[0], "-s", names[1], *SMALL, "-o", str(page)) == 0
    sides = data_of(page)["sides"]
    assert isinstance(sides, list)
    assert [side["name"] for side in sides] == names


def test_a_trace_of_one_kind_leaves_the_saved_other() -> None:
    saved = ComparisonConfig(services="old.csv", batch="jobs.csv")
    new = _override(saved, None, "new.csv", None, {}, None)
    assert (new.services, new.batch) == ("new.csv", "jobs.csv")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-s", "nobody"), ("unknown selector 'nobody'", "greedy-cost")),
        (("-s", "exact", "-s", "exact"), ("exact, exact", "two different")),
        (("-s", "exact", "-s", "random", "-s", "godel"), ("exact, random, godel", "legal: one")),
        (("--seed", "-1"), ("seed = -1", "0 or more")),
        (("--servers", "rtx5090x16"), ("'rtx5090x16'", "rtx4090")),
        (("--peak", "1.5"), ("online_peak_share", "1.5", "legal")),
        (("--hours", "-1"), ("horizon_h", "-1", "legal")),
        (("--admission", "strict"), ("'strict'", "restricted")),
        (("--services", "no.csv"), ("'no.csv' alone",)),
        (("missing.json",), ("missing.json", "No such file")),
        (("-o", "."), (".: is a folder", "legal: a file")),
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
    assert run("replay", *arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert all(word in said for word in words), said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    page = tmp_path / "taken" / "day.html"
    assert run("replay", "-s", "godel", *SMALL, "-o", str(page)) == 2
    assert "cannot be made" in capsys.readouterr().err
