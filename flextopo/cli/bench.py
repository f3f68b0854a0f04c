"""`flextopo bench`: play FlexTopo-Bench, check result files, and make the leaderboard of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flextopo.cli import completion
from flextopo.cli.commands import Command
from flextopo.cli.compare import split_names
from flextopo.cli.terminal import Failed, JsonPath, Workers, num_workers, progress, results_to
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.train.benchmark.tracks import TRACKS, find_track
from flextopo.train.tables import format_table

if TYPE_CHECKING:
    from flextopo.train.benchmark.entry import Entry

app = typer.Typer(no_args_is_help=True, help="Play a frozen benchmark; make its leaderboard.")

Traces = Annotated[
    Path | None,
    typer.Option(help="Folder of the recorded track's files; docs/benchmark.md says how to make."),
]


@app.command(cls=Command)
def run(
    selector: Annotated[
        str,
        typer.Argument(
            help="A selector, a shipped policy, the folder of one, or MODULE:CLASS.",
            autocompletion=completion.selectors,
        ),
    ],
    tracks: Annotated[
        str,
        typer.Option(
            help="Joined by commas; all = all whose files are there.",
            autocompletion=completion.track_list,
        ),
    ] = "all",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Result file; else bench-NAME.json here.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="In the tables; else the selector's, of runs/mine/policy mine.")
    ] = "",
    by: Annotated[str, typer.Option(help="Whose it is.")] = "",
    about: Annotated[str, typer.Option(help="A line on what it does.")] = "",
    url: Annotated[str, typer.Option(help="Where more is said.")] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="rule, learned, planner or oracle; else as found.",
            autocompletion=completion.among("rule", "learned", "planner", "oracle"),
        ),
    ] = "",
    traces: Traces = None,
    workers: Workers = 0,
    json_path: JsonPath = None,
) -> None:
    """Play the benchmark with one selector and write its result file.

    The file is written after every track, so that an interrupt keeps those before; tracks that are
    already in it are played again only if they are named.

    Examples:
        flextopo bench run requeue-aware --tracks rtx4090
        flextopo bench run my_rules:LeastWork --by "A. Author" --about "least work first"
        flextopo bench run runs/ppo/policy --name my-ppo --traces recorded -o leaderboard/v1/my-ppo.json
    """
    from flextopo.train.benchmark.board import track_rows
    from flextopo.train.benchmark.entry import default_name, describe_entry, without_folder
    from flextopo.train.benchmark.entry_file import as_document, load_entry, save_entry
    from flextopo.train.benchmark.playing import play_track

    given = {"name": name, "by": by, "about": about, "url": url, "kind": kind}
    path = out
    if path is None:
        path = Path(f"bench-{_file_name(name or default_name(selector))}.json")
    if path.is_dir():
        raise FlextopoError(f"--out {path}: is a folder; legal: a file")
    chosen = _chosen(tracks, traces)
    before = load_entry(path) if path.exists() else None
    if before is not None and before.selector == without_folder(selector):
        given = {key: value or getattr(before, key) for key, value in given.items()}
    entry = describe_entry(selector, given)
    if before is not None:
        _check_same(path, before, entry)
        entry = replace(entry, tracks=before.tracks)
        if tracks == "all":
            chosen = [track for track in chosen if track not in before.tracks]
    for track in chosen:  # a missing file shows before the games, not after
        TRACKS[track].config(selector, traces)
    make_folder(path.parent)
    if not os.access(path.parent, os.W_OK):
        raise FlextopoError(f"--out {path}: its folder takes no files; legal: a writable one")
    with results_to(json_path) as write:
        for track in chosen:
            try:
                with progress(f"playing {track}") as done:
                    found = play_track(track, selector, traces, num_workers(workers), done)
            except KeyboardInterrupt:
                kept = f"{', '.join(entry.tracks)} kept in {path}" if entry.tracks else ""
                raise KeyboardInterrupt(kept) from None
            all_of = {**entry.tracks, track: found}
            entry = replace(entry, tracks={name: all_of[name] for name in TRACKS if name in all_of})
            save_entry(entry, path)
            typer.echo(f"{track}: {TRACKS[track].about}; {found.wall_s:.0f} s")
            typer.echo(format_table([row[1:] for row in track_rows(track, [entry])]) + "\n")
        left = [track for track in TRACKS if track not in entry.tracks]
        write(as_document(entry))
        typer.echo(f"results: {path}" + (f"; not played: {', '.join(left)}" if left else ""))


@app.command(cls=Command)
def table(
    folder: Annotated[Path, typer.Argument(help="Folder of result files.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Page of Markdown to write; else printed.")
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Make the leaderboard of all result files of a folder.

    Examples:
        flextopo bench table leaderboard/v1
        flextopo bench table leaderboard/v1 -o docs/leaderboard.md
    """
    from flextopo.train.benchmark.board import leaderboard, load_entries, track_rows

    entries = load_entries(folder)
    page = leaderboard(entries)
    with results_to(json_path) as write:
        write({track: track_rows(track, entries) for track in TRACKS})
        if out is None:
            typer.echo(page, nl=False)
            return
        make_folder(out.parent)
        write_whole(out, page.encode())
        typer.echo(f"leaderboard: {out}")


@app.command(cls=Command)
def check(
    files: Annotated[list[Path], typer.Argument(help="Result files.")],
    replay: Annotated[
        int, typer.Option(help="Games of each track to play anew; 0 = none.", min=0)
    ] = 2,
    draw: Annotated[
        str, typer.Option(help="Any text that the authors could not know; decides which games.")
    ] = "",
    traces: Traces = None,
    workers: Workers = 0,
    json_path: JsonPath = None,
) -> None:
    """Check result files, and play a few of their games anew.

    A module or a policy of an entry is looked for beside its file. It runs: check only what you
    would run.

    Examples:
        flextopo bench check bench-my-rule.json
        flextopo bench check leaderboard/v1/*.json --replay 0
    """
    from flextopo.train.benchmark.entry_file import load_entry
    from flextopo.train.benchmark.playing import replay_entry

    entries = {path: load_entry(path) for path in files}
    found: dict[str, Any] = {}
    wrong: list[str] = []
    with results_to(json_path) as write:
        for path, entry in entries.items():
            if not replay:
                found[str(path)] = {"tracks": list(entry.tracks)}
                typer.echo(f"{path}: {', '.join(entry.tracks)} well formed")
                continue
            with _modules_beside(path):
                again = replay_entry(entry, path, replay, traces, num_workers(workers), draw)
            found[str(path)] = {"tracks": list(entry.tracks), **asdict(again)}
            left = f"; without traces: {', '.join(again.left_out)}" if again.left_out else ""
            differ = len(again.differences)
            typer.echo(f"{path}: {again.games} games played anew, {differ} differ{left}")
            wrong += [f"{path}: {said}" for said in again.differences]
        write(found)
    if wrong:
        raise Failed("; ".join(wrong[:3]))


@contextmanager
def _modules_beside(path: Path) -> Iterator[None]:
    """Let `MODULE:NAME` mean a module in the folder of a file, for the workers that play it.

    Before the working directory, which is last, and behind all that is installed: an entry brings no
    `flextopo` or `numpy` of its own.
    """
    folder = str(path.parent.resolve())
    sys.path.insert(len(sys.path) - 1, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _chosen(tracks: str, traces: Path | None) -> list[str]:
    if tracks != "all":
        named = split_names(tracks)
        for track in named:
            find_track(track)
        if not named:
            raise FlextopoError(f"--tracks {tracks!r}; legal: all, or {', '.join(TRACKS)}")
        return [track for track in TRACKS if track in named]
    return [name for name, track in TRACKS.items() if traces is not None or not track.recorded]


def _check_same(path: Path, before: Entry, now: Entry) -> None:
    """Refuse to add tracks to a file of another selector, source or version.

    Raises:
        FlextopoError: names what differs.
    """
    for what, old, new in (
        ("selector", before.selector, now.selector),
        ("source", before.source, now.source),
        ("flextopo", before.versions.get("flextopo"), now.versions.get("flextopo")),
    ):
        if old != new:
            raise FlextopoError(f"{path}: results of {what} {old}; legal: another file for {new}")


def _file_name(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_+@." else "-" for sign in name)
