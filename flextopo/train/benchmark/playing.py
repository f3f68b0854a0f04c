"""Games of the benchmark: all of a track, or a few of an entry's anew."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flextopo.baselines.registry import BUILT_IN
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.policies.selectors import find_selector
from flextopo.policies.shipped import zoo_names
from flextopo.train.benchmark.entry import (
    Entry,
    TrackResult,
    kind_of,
    refuse_clocks,
    source_of,
    split_selector,
)
from flextopo.train.benchmark.tracks import METRICS, NAME, VERSION, Game, find_track, frozen
from flextopo.train.benchmark.worlds import all_digests, game_digest
from flextopo.train.compare import to_send
from flextopo.train.config import ComparisonConfig
from flextopo.train.scale_out import run_jobs
from flextopo.train.stress_run import blaming_perturbed, open_perturbed

DIGITS = 9
"""Significant digits that are kept of a metric."""

TOLERANCE = 1e-6
"""Relative difference up to which a game that is played anew counts as the same: other processors
round sums otherwise."""


def play_track(
    name: str,
    selector: Any,
    traces: Path | None,
    workers: int,
    done: Callable[[int, int], None] | None = None,
) -> TrackResult:
    """Play every game of a track.

    Args:
        name: of the track.
        selector: a name, folder, `module:Class`, object or class.
        traces: folder with the files of a recorded track.
        workers: processes; 1 = in this one. The numbers do not depend on it.
        done: is told how many of how many games are over.

    Raises:
        FlextopoError: whatever is wrong, or a world is not that of the benchmark.
    """
    track = find_track(name)
    config = track.config(selector, traces)
    games = track.games()
    check_worlds(name, config, games)
    begin = time.perf_counter()
    rows: dict[int, dict[str, float | None]] = {}
    sent = config if workers == 1 else to_send(config)
    jobs = [(sent, game) for game in games]
    for i, row in run_jobs(play_game, jobs, workers):
        rows[i] = row
        if done is not None:
            done(len(rows), len(games))
    metrics = {metric: [rows[i][metric] for i in range(len(games))] for metric in METRICS}
    return TrackResult(all_digests(name), round(time.perf_counter() - begin, 1), metrics)


def play_game(job: tuple[ComparisonConfig, Game]) -> dict[str, float | None]:
    """Play one game and return its `METRICS`.

    Raises:
        FlextopoError: the selector fails, or ends the process.
    """
    config, game = job
    name = config.names[0]
    perturbed = config, game.perturbation, name, game.seed
    simulator, selector = open_perturbed(perturbed)
    with blaming_perturbed(selector, perturbed):
        simulator.play(selector)
    found = episode_metrics(simulator)
    return {name: _short(found[name]) for name in METRICS}


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")


def check_worlds(name: str, config: ComparisonConfig, games: Sequence[Game]) -> None:
    """Compare the worlds of games with those that are frozen.

    Raises:
        FlextopoError: one differs, or the track is not frozen.
    """
    known = dict(zip(find_track(name).games(), frozen()[name].digests, strict=True))
    for game in games:
        if game_digest((config, game)) != known[game]:
            cause = "the trace files are others" if config.services else "numpy draws other numbers"
            raise FlextopoError(
                f"track {name}: seed {game.seed}, {game.perturbation}: not the world of {NAME} "
                f"v{VERSION} ({cause}); legal: what its digest says"
            )


def find_played(entry: Entry, folder: Path) -> str:
    """Return what an entry played: with a policy's folder beside its file, or as it stands there.

    The folder is called as the entry, or else as its selector is.
    """
    ahead, inside, done = split_selector(entry.selector)
    if inside in (*BUILT_IN, *zoo_names()) or ":" in inside:
        return entry.selector
    for name in (split_selector(entry.name)[1], Path(inside).name):
        if (folder / name / "meta.json").is_file():
            return f"{ahead}{folder / name}{done}"
    return entry.selector


def inspect_selector(selector: str) -> tuple[str, dict[str, str]]:
    """Return kind and source of a selector.

    Raises:
        FlextopoError: there is none, or it ends the process.
    """
    try:
        found = find_selector(selector)
        return kind_of(found), source_of(selector, found)
    except SystemExit as error:
        raise FlextopoError(f"selector {selector!r} exits; legal: one that decides") from error


@dataclass(frozen=True)
class Replay:
    """What playing anew found.

    Attributes:
        games: how many were played.
        differences: a sentence each, also of what the file says wrongly of the selector.
        left_out: tracks whose traces are not there.
    """

    games: int
    differences: list[str]
    left_out: list[str]


def replay_entry(
    entry: Entry,
    path: Path,
    count: int,
    traces: Path | None,
    workers: int = 2,
    draw: str = "",
) -> Replay:
    """Play some games of every track of an entry anew.

    All of its code runs in other processes, none in this one, which compares.

    Args:
        entry: what was read.
        path: of its file; a module or a policy's folder is looked for beside it.
        count: games of each track, drawn by the bytes of the file and by `draw`.
        traces: folder with the files of a recorded track; None = such a track is left out.
        workers: processes, 2 at least.
        draw: what the author of the file could not know.

    Raises:
        FlextopoError: its selector is not found, or fails.
    """
    seed = int.from_bytes(hashlib.sha256(draw.encode() + path.read_bytes()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    selector = find_played(entry, path.parent)
    refuse_clocks(entry.selector)
    jobs: list[tuple[ComparisonConfig, Game]] = []
    labels: list[tuple[str, int]] = []
    left_out = []
    for name in entry.tracks:
        track = find_track(name)
        picks = sorted(rng.choice(track.num_games, min(count, track.num_games), replace=False))
        if track.recorded and traces is None:
            left_out.append(name)
            continue
        config = track.config(selector, traces)
        config = to_send(config)
        games = [track.games()[i] for i in picks]
        check_worlds(name, config, games)
        jobs += [(config, game) for game in games]
        labels += [(name, int(i)) for i in picks]
    workers = max(2, workers)
    ((_, (kind, source)),) = run_jobs(inspect_selector, [selector], workers)
    differences = []
    if kind == "oracle" and entry.kind != "oracle":
        differences.append(f"kind {entry.kind}, but it is an oracle")
    if source != entry.source:
        differences.append(f"source {entry.source}, found beside the file {source}")
    for at, row in run_jobs(play_game, jobs, workers):
        name, i = labels[at]
        for metric, value in row.items():
            said = entry.tracks[name].metrics[metric][i]
            if not _same(said, value):
                game = find_track(name).games()[i]
                differences.append(
                    f"track {name}, seed {game.seed}: {metric} = {said}, played anew {value}"
                )
                break
    return Replay(len(jobs), differences, left_out)


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-9)
