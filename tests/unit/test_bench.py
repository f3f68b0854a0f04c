"""FlexTopo-Bench: worlds that stay as they are, result files that are checked, a leaderboard that follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import LossWeights, Scenario
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.generator import generate_tape
from flextopo.policies.shipped import ZOO
from flextopo.train.benchmark import board, entry_file, playing, tracks, worlds
from flextopo.train.benchmark.entry import Entry, TrackResult, Values, describe_entry
from flextopo.train.benchmark.tracks import METRICS, PAR, TRACKS, Track, frozen
from flextopo.train.stress import BASE, PERTURBATIONS
from flextopo.train.stress_run import WRONG_STATES

ROOT = Path(__file__).parents[2]
GENERATED = [name for name, track in TRACKS.items() if not track.recorded]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


@pytest.mark.parametrize("name", GENERATED)
def test_worlds_and_par_are_as_they_were_frozen(name: str) -> None:
    track = TRACKS[name]
    config = track.config(PAR, None)
    games = track.games()
    for at in (0, len(games) // 2, len(games) - 1):
        assert worlds.game_digest((config, games[at])) == frozen()[name].digests[at]
    row = playing.play_game((config, games[1]))
    assert row["weighted_loss"] == pytest.approx(frozen()[name].par[1], rel=1e-9)


def test_all_that_is_frozen_is_there() -> None:
    assert list(frozen()) == list(TRACKS)
    for name, track in TRACKS.items():
        found = frozen()[name]
        assert len(found.digests) == len(set(found.digests)) == len(found.par) == track.num_games
        assert len(set(track.games())) == track.num_games


def test_the_stress_track_leaves_out_what_not_all_can_be_put_to() -> None:
    known = [
        name
        for name, how in PERTURBATIONS.items()
        if how.view not in WRONG_STATES and name not in (BASE, "servers-rtx4090")
    ]
    assert sorted(tracks.DISTURBANCES) == sorted(known)


def test_a_digest_tells_every_part_of_a_world() -> None:
    fleet, weights = parse_servers("4*rtx4090,4*a100@leaf4"), LossWeights()
    config = TRACKS["rtx4090"].config(PAR, None).workload
    tape = generate_tape(config, fleet.num_gpus, 7)
    scenario = Scenario(deadline="hard")
    found = {worlds.world_digest(tape, fleet, scenario)}
    for name in worlds.FIELDS:
        pods = tape.pods.copy()
        pods[name][-1] = np.bitwise_xor(pods[name][-1], 1)
        changed = object.__new__(type(tape))  # not all of these are legal
        changed.__dict__.update(tape.__dict__, pods=pods)
        found.add(worlds.world_digest(changed, fleet, scenario))
    before = len(found)
    assert before == 1 + len(worlds.FIELDS)
    for other in (
        (replace(tape, grace_s=tape.grace_s + 1), fleet, scenario),
        (tape, parse_servers("4*rtx4090,4*a100@leaf8"), scenario),
        (tape, parse_servers("5*rtx4090,3*a100@leaf4"), scenario),
        (tape, fleet, replace(scenario, weights=replace(weights, idle=2.0))),
        (tape, fleet, replace(scenario, deadline="soft")),
    ):
        found.add(worlds.world_digest(*other))
    assert len(found) == before + 5


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Track:
    """Have one track of three small days in the place of all others."""
    track = Track("four servers", "4*rtx4090", 3, {"warmup_h": 8.0, "online_peak_share": 0.9})
    for module in (tracks, worlds, playing, entry_file, board):
        if hasattr(module, "TRACKS"):
            monkeypatch.setattr(module, "TRACKS", {"small": track})
    config = track.config(PAR, None)
    digests = tuple(worlds.game_digest((config, game)) for game in track.games())
    par = tuple(playing.play_game((config, game))["weighted_loss"] or 0.0 for game in track.games())
    known = {"small": tracks.Frozen(digests, par)}
    for module in (tracks, worlds, playing, entry_file, board):
        if hasattr(module, "frozen"):
            monkeypatch.setattr(module, "frozen", lambda: known)
    monkeypatch.setattr("flextopo.cli.bench.TRACKS", {"small": track})
    return track


RULE = '''
from flextopo.cluster.state.decision import AlignmentFilter


class Last:
    """The last of the candidates."""

    name = "last"
    filter = AlignmentFilter.OWN

    def select(self, cluster, preemptor):
        return (cluster.candidates(preemptor, self.filter.binds(preemptor), 8) or [None])[-1]
'''


@pytest.mark.usefixtures("small")
def test_run_check_and_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last_rule.py").write_text(RULE)
    extra = ("--workers", "1", "--by", "Somebody", "--about", "the last one")
    assert run("bench", "run", "last_rule:Last", "--name", "last", *extra) == 0
    assert run("bench", "run", PAR, "-o", "par.json", "--workers", "1") == 0
    assert run("bench", "run", "oracle-lookahead", "-o", "oracle.json", "--workers", "1") == 0
    saved = json.loads((tmp_path / "bench-last.json").read_text())
    assert saved["kind"] == "rule"
    assert len(saved["source"]["sha256"]) == 64
    assert json.loads((tmp_path / "oracle.json").read_text())["kind"] == "oracle"
    capsys.readouterr()
    files = ("bench-last.json", "par.json", "oracle.json")
    assert run("bench", "check", *files, "--replay", "3", "--workers", "1") == 0
    assert capsys.readouterr().out.count("3 games played anew, 0 differ") == 3
    assert run("bench", "table", ".", "-o", "board.md") == 0
    page = (tmp_path / "board.md").read_text()
    section = page.partition("## small")[2].partition("## Entries")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    names = [row.split("`")[1] for row in rows]
    assert names[-1] == "oracle-lookahead"  # ranked apart, however little it loses
    assert set(names[:2]) == {"last", PAR}
    assert rows[names.index(PAR)].count("| par |") == 1
    assert "no claim" in rows[names.index("last")]  # three games are too few
    assert "Somebody" in page


@pytest.mark.usefixtures("small")
def test_an_entry_brings_no_module_in_the_place_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "par.json"
    assert run("bench", "run", PAR, "-o", str(path), "--workers", "1") == 0
    for name in ("flextopo", "numpy", "typer", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not ours')\n")
    assert run("bench", "check", str(path), "--workers", "1") == 0
    assert "2 games played anew, 0 differ" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_second_run_adds_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "par.json"
    assert run("bench", "run", PAR, "-o", str(path), "--workers", "1") == 0
    monkeypatch.setattr(playing, "play_game", lambda job: pytest.fail("played again"))
    assert run("bench", "run", PAR, "-o", str(path), "--workers", "1") == 0
    assert run("bench", "run", "godel", "-o", str(path), "--workers", "1") == 2
    assert (
        "results of selector requeue-aware; legal: another file for godel"
        in capsys.readouterr().err
    )


@pytest.mark.usefixtures("small")
def test_a_figure_that_does_not_repeat_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "par.json"
    assert run("bench", "run", PAR, "-o", str(path), "--workers", "1") == 0
    saved = json.loads(path.read_text())
    metrics = saved["tracks"]["small"]["metrics"]
    for name in ("weighted_loss", *LOSS_TERMS):
        metrics[name][1] *= 0.99
    path.write_text(json.dumps(saved))
    assert run("bench", "check", str(path), "--replay", "3", "--workers", "1") == 1
    assert "track small, seed 2000001: weighted_loss" in capsys.readouterr().err


CHEATS = {
    "exits": ("        raise SystemExit(0)", 2, "fails on seed 2000000"),
    "is wrong": ("        return 42", 2, "legal: one that decides"),
}


@pytest.mark.parametrize("what", CHEATS)
@pytest.mark.usefixtures("small")
def test_a_selector_that_fails_fails_the_command(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, status, said = CHEATS[what]
    monkeypatch.chdir(tmp_path)
    text = RULE.partition("        return (")[0] + line + "\n"
    (tmp_path / f"cheat_{what.replace(' ', '_')}.py").write_text(text)
    module = f"cheat_{what.replace(' ', '_')}:Last"
    assert run("bench", "run", module, "--name", "x", "--workers", "1") == status
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def forged(tmp_path: Path, **changes: Any) -> Path:
    """Return an entry of the oracle on the track with fewest games, with changes."""
    source = {"class": "flextopo.baselines.policies:OracleLookahead"}
    changed = {"name": "x", "selector": "oracle-lookahead", "kind": "oracle", "source": source}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**example(), **changed, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "planner"}, "kind planner, but it is an oracle"),
        ({"source": {"class": "evil:X"}}, "source {'class': 'evil:X'}, found beside the file"),
    ],
)
def test_a_file_that_says_something_else_of_its_selector(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = forged(tmp_path, **changes)
    found = playing.replay_entry(entry_file.load_entry(path), path, 0, None)
    assert [said in one for one in found.differences] == [True]
    path = forged(tmp_path)
    assert not playing.replay_entry(entry_file.load_entry(path), path, 0, None).differences


def test_the_draw_is_not_the_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = forged(tmp_path)
    drawn: list[list[int]] = []

    def note(function: Any, jobs: Any, workers: int) -> Any:
        assert workers >= 2  # none of an entry's code runs where games are compared
        if function is playing.play_game:
            drawn.append([game.seed for _, game in jobs])
            return []
        return [(0, ("oracle", {"class": "flextopo.baselines.policies:OracleLookahead"}))]

    monkeypatch.setattr(playing, "run_jobs", note)
    for draw in ("", "", "run 1", "run 2", "run 3"):
        playing.replay_entry(entry_file.load_entry(path), path, 4, None, 1, draw)
    assert drawn[0] == drawn[1]
    assert len({tuple(seeds) for seeds in drawn}) > 2


@pytest.mark.parametrize("done", ["", "@0", "+plan@4", "+in-range"])
def test_a_policy_beside_its_file_is_found(done: str, tmp_path: Path) -> None:
    shutil.copytree(ZOO / "deepset-imitation", tmp_path / "mine")
    described = describe_entry(f"{tmp_path / 'mine'}{done}", {"name": "m"})
    assert described.selector == f"mine{done}"
    assert len(described.source["sha256"]) == 64
    assert playing.find_played(described, tmp_path) == f"{tmp_path / 'mine'}{done}"


@pytest.mark.usefixtures("small")
def test_policies_that_training_wrote_are_called_as_their_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other", "godel"):
        shutil.copytree(ZOO / "deepset-imitation", tmp_path / "runs" / name / "policy")
        assert run("bench", "run", f"runs/{name}/policy@0", "--workers", "1") == 0
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    named = [(entry["name"], entry["selector"]) for entry in found]
    # The last one's own name is that of a rule.
    assert named == [(name, "policy@0") for name in ("mine@0", "other@0", "policy@0")]
    assert run("bench", "table", ".") == 0
    assert "`other@0`" in capsys.readouterr().out
    # Beside its file it is found under the name of the entry, whoever else is called policy.
    shutil.copytree(ZOO / "deepset-imitation", tmp_path / "other")
    (tmp_path / "policy").mkdir()
    entry = entry_file.load_entry(tmp_path / "bench-other@0.json")
    assert playing.find_played(entry, tmp_path) == f"{tmp_path / 'other'}@0"


def test_the_page_shows_texts_as_they_are() -> None:
    entries = [replace(row("a", "rule", 0.5), about="<script>x</script> [y](z) `q`", by="a|b")]
    page = board.leaderboard(entries)
    assert "<script>" not in page
    assert "[y]" not in page
    assert "a|b" not in page


def example() -> dict[str, Any]:
    """Return a result file of the track with fewest games."""
    count = TRACKS["gang"].num_games
    metrics: dict[str, list[float | None]] = {name: [0.5] * count for name in METRICS}
    metrics["weighted_loss"] = [0.5 * len(LOSS_TERMS)] * count
    metrics["gang_hit_rate"][0] = None
    track = {"games": worlds.all_digests("gang"), "wall_s": 1.0, "metrics": metrics}
    about = dict.fromkeys(("by", "about", "url"), "")
    return {
        "benchmark": tracks.NAME, "version": 1, "name": "mine", "selector": "godel", "kind": "rule",
        **about, "source": {}, "versions": {"flextopo": "0.2.0"}, "tracks": {"gang": track},
    }  # fmt: skip


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    path.write_text(json.dumps(example()))
    found = entry_file.load_entry(path)
    entry_file.save_entry(found, tmp_path / "again.json")
    assert entry_file.load_entry(tmp_path / "again.json") == found


def gang(found: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = found["tracks"]["gang"]
    return row


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "other benchmark": (lambda d: d.update(benchmark="x"), "no result of FlexTopo-Bench"),
    "other version": (lambda d: d.update(version=2), "version 2; legal: 1"),
    "unknown key": (lambda d: d.update(extra=1), "extra is missing or unknown"),
    "missing key": (lambda d: d.pop("kind"), "kind is missing or unknown"),
    "unknown kind": (lambda d: d.update(kind="best"), "kind 'best'; legal: rule"),
    "no name": (lambda d: d.update(name=""), "name ''; legal: letters"),
    "another's name": (lambda d: d.update(name="Requeue-Aware"), "is another selector's"),
    "a name like it": (lambda d: d.update(name="requeue-awar\u0435"), "legal: letters, digits"),
    "HTML in a name": (lambda d: d.update(name="x<img src=y>"), "legal: letters, digits"),
    "script as a link": (lambda d: d.update(url="javascript:x"), "url 'javascript:x'; legal: http"),
    "a link with more": (lambda d: d.update(url="https://x) <b>"), "legal: http"),
    "two lines": (lambda d: d.update(about="a\nb"), "about = 'a\\nb'; legal: one line"),
    "no text": (lambda d: d.update(by=1), "by = '1'; legal: one line"),
    "boolean version": (lambda d: d.update(version=True), "version True; legal: 1"),
    "no version of flextopo": (lambda d: d.update(versions={}), "no versions.flextopo"),
    "a loss of its own": (
        lambda d: gang(d)["metrics"]["weighted_loss"].__setitem__(4, 0.1),
        "game 4: weighted_loss = 0.1; legal: the sum of its terms",
    ),
    "source": (lambda d: d.update(source=[]), "source is no object"),
    "versions": (lambda d: d["versions"].update(numpy=2), "versions.numpy = '2'"),
    "no track": (lambda d: d.update(tracks={}), "no track; legal: rtx4090"),
    "unknown track": (lambda d: d["tracks"].update(x={}), "unknown track 'x'"),
    "other worlds": (lambda d: gang(d).update(games="ab"), "played other worlds, 'ab'"),
    "time": (lambda d: gang(d).update(wall_s=-1), "wall_s = -1"),
    "no metric": (lambda d: gang(d)["metrics"].pop("waiting"), "metrics; legal: weighted_loss"),
    "too few": (lambda d: gang(d)["metrics"]["waiting"].pop(), "waiting; legal: 20 values"),
    "no loss": (
        lambda d: gang(d)["metrics"]["weighted_loss"].__setitem__(0, None),
        "weighted_loss = None",
    ),
    "negative": (lambda d: gang(d)["metrics"]["waiting"].__setitem__(3, -0.1), "waiting = -0.1"),
    "share": (lambda d: gang(d)["metrics"]["hit_rate"].__setitem__(3, 1.1), "hit_rate = 1.1"),
    "boolean": (lambda d: gang(d)["metrics"]["waiting"].__setitem__(3, True), "waiting = True"),
    "not finite": (
        lambda d: gang(d)["metrics"]["waiting"].__setitem__(3, float("nan")),
        "waiting = nan",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_told_in_one_sentence(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, said = WRONG[what]
    found = example()
    damage(found)
    path = tmp_path / "entry.json"
    path.write_text(json.dumps(found))
    assert run("bench", "check", str(path), "--replay", "0") == 2
    told = capsys.readouterr().err
    assert said in told
    assert "legal" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("run", "requeue-aware+plan@50ms"),
            "depends on the clock; legal: requeue-aware+plan@ a number",
        ),
        (("run", "nobody"), "unknown selector 'nobody'"),
        (("run", "godel", "--tracks", "moon"), "unknown track 'moon'"),
        (("run", "godel", "--kind", "best"), "kind 'best'; legal: rule, learned, planner, oracle"),
        (("run", "godel", "--about", "a\nb"), "about = 'a\\nb'; legal: one line"),
        (("run", "godel", "--tracks", ""), "--tracks ''; legal: all"),
        (("run", "godel", "--name", "requeue-aware"), "is another selector's"),
        (("run", "godel", "--traces", "nowhere"), "traces nowhere: no services.csv.gz"),
        (("run", "godel", "--tracks", "recorded"), "traces no folder: no services.csv.gz"),
        (("table", "."), "no result files; legal: what `flextopo bench run` writes"),
        (("check", "missing.json"), "missing.json: No such file"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("bench", *arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_other_traces_are_told(tmp_path: Path) -> None:
    rates = [f"chat,{600 * i},{2 - np.cos(i / 20)}\n" for i in range(3 * 144)]
    (tmp_path / tracks.SERVICES.removesuffix(".gz")).write_text("")
    (tmp_path / tracks.SERVICES).write_text("service,t_s,rate_rps\n" + "".join(rates))
    jobs = [f"{600 * i},{1800},1\n" for i in range(3 * 144)]
    (tmp_path / tracks.BATCH).write_text("submit_s,duration_s,gpus\n" + "".join(jobs))
    with pytest.raises(FlextopoError, match="the trace files are others"):
        playing.play_track("recorded", "godel", tmp_path, 1)


def row(name: str, kind: str, loss: float, track: str = "gang") -> Entry:
    count = TRACKS[track].num_games
    metrics: dict[str, Values] = {metric: [0.0] * count for metric in METRICS}
    metrics["weighted_loss"] = [loss + 0.001 * (i % 3) for i in range(count)]
    metrics["idle"] = list(metrics["weighted_loss"])
    metrics["hit_rate"] = [None] * count
    return Entry(
        name,
        name,
        kind,
        versions={"flextopo": "0"},
        tracks={track: TrackResult(worlds.all_digests(track), 1.0, metrics)},
    )


def test_ranks_follow_the_loss() -> None:
    entries = [row("b", "rule", 0.9), row("a", "learned", 0.001), row("o", "oracle", 0.0)]
    rows = board.track_rows("gang", entries)[1:]
    assert [r[0] for r in rows] == ["1", "2", ""]
    assert [r[1] for r in rows] == ["`a`", "`b`", "`o`"]
    assert [r[8] for r in rows] == ["better", "worse", "better"]
    assert {r[9] for r in rows} == {"-"}
    assert "| - | - |" in board.leaderboard(entries)  # tracks that nobody played


def test_the_overview_is_ordered_by_rank_and_not_by_one_bad_day() -> None:
    def whole(name: str, kind: str, loss: float) -> Entry:
        found = [row(name, kind, loss, track) for track in TRACKS]
        return replace(found[0], tracks={k: v for one in found for k, v in one.tracks.items()})

    steady, bad = whole("steady", "rule", 0.5), whole("bad-day", "rule", 0.4)
    bad.tracks["recorded"].metrics["weighted_loss"][95] = 1e4
    entries = [whole("o", "oracle", 0.0), row("part", "rule", 0.1), steady, bad]
    rows = board.overview_rows(entries)
    assert [r[0] for r in rows[1:]] == ["`bad-day`", "`steady`", "`part`", "`o`"]
    assert [r[-2] for r in rows[1:]] == ["1.2", "2.2", "-", "-"]


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        entry_file.save_entry(row("same", "rule", 0.1), tmp_path / name)
    with pytest.raises(
        FlextopoError,
        match=r"b.json: name 'same' is taken, by \S+a.json; legal: one of its own, as --name",
    ):
        board.load_entries(tmp_path)


def test_the_leaderboard_in_the_docs_is_of_the_files() -> None:
    folder = ROOT / "leaderboard" / "v1"
    if not folder.is_dir():
        pytest.skip("installed without the repository's root")
    entries = board.load_entries(folder)
    assert (ROOT / "docs" / "leaderboard.md").read_text() == board.leaderboard(entries)
    par = next(found for found in entries if found.name == PAR)
    assert set(par.tracks) == set(TRACKS)
    for name, found in par.tracks.items():
        assert tuple(found.metrics["weighted_loss"]) == frozen()[name].par
