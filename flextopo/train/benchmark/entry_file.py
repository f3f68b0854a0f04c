"""Result files of the leaderboard: written, read again, and refused in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.train.benchmark.entry import Entry, TrackResult, Values, check_texts
from flextopo.train.benchmark.tracks import METRICS, NAME, TRACKS, VERSION, find_track
from flextopo.train.benchmark.worlds import all_digests
from flextopo.train.results import read_saved

TEXTS = ("name", "selector", "kind", "by", "about", "url")


def as_document(entry: Entry) -> dict[str, Any]:
    """Return an entry as its file holds it."""
    about = {name: getattr(entry, name) for name in (*TEXTS, "source", "versions")}
    tracks = {
        name: {"games": row.games, "wall_s": row.wall_s, "metrics": row.metrics}
        for name, row in entry.tracks.items()
    }
    return {"benchmark": NAME, "version": VERSION, **about, "tracks": tracks}


def save_entry(entry: Entry, path: Path) -> None:
    """Write a result file, a metric a line.

    Raises:
        FlextopoError: it cannot be written.
    """
    text = json.dumps(as_document(entry), indent=1, ensure_ascii=False)
    text = text.replace(",\n     ", ", ").replace("[\n     ", "[").replace("\n    ]", "]")
    make_folder(path.parent)
    write_whole(path, (text + "\n").encode())


def load_entry(path: Path) -> Entry:
    """Read a result file.

    Raises:
        FlextopoError: it is missing, none, of another version, or holds what is not legal.
    """
    where = f"{path}"
    found = read_saved(path, "no JSON; legal: what `flextopo bench run` writes")
    _check_head(where, found)
    if not isinstance(found["tracks"], dict) or not found["tracks"]:
        raise FlextopoError(f"{where}: no track; legal: {', '.join(TRACKS)}")
    tracks = {name: _load_track(where, name, row) for name, row in found["tracks"].items()}
    about = {name: found[name] for name in (*TEXTS, "source", "versions")}
    entry = Entry(**about, tracks=tracks)
    check_texts(entry, f"{where}: ")
    return entry


def _check_head(where: str, found: Any) -> None:
    """Check that there is what makes an entry.

    Raises:
        FlextopoError: it is of another benchmark or version, or a key is missing or unknown.
    """
    if not isinstance(found, dict) or found.get("benchmark") != NAME:
        raise FlextopoError(
            f"{where}: no result of {NAME}; legal: what `flextopo bench run` writes"
        )
    if type(found.get("version")) is not int or found["version"] != VERSION:
        raise FlextopoError(f"{where}: version {str(found.get('version'))[:60]}; legal: {VERSION}")
    legal = {"benchmark", "version", "tracks", "source", "versions", *TEXTS}
    if odd := sorted(set(found) ^ legal):
        raise FlextopoError(f"{where}: {odd[0]} is missing or unknown; legal: {', '.join(legal)}")
    for name in ("source", "versions"):
        if not isinstance(found[name], dict):
            raise FlextopoError(f"{where}: {name} is no object; legal: names and texts")
    if "flextopo" not in found["versions"]:
        raise FlextopoError(
            f"{where}: no versions.flextopo; legal: what `flextopo bench run` writes"
        )


def _load_track(where: str, name: str, row: Any) -> TrackResult:
    count = find_track(name).num_games
    if not isinstance(row, dict) or set(row) != {"games", "wall_s", "metrics"}:
        raise FlextopoError(f"{where}: track {name}; legal: games, wall_s and metrics")
    if row["games"] != all_digests(name):
        raise FlextopoError(
            f"{where}: track {name}: played other worlds, {str(row['games'])[:12]!r}; legal: "
            f"{all_digests(name)[:12]}"
        )
    if not _is_number(row["wall_s"], 0.0, 1e9):
        raise FlextopoError(f"{where}: track {name}: wall_s = {row['wall_s']!r}; legal: 0 to 1e9")
    if not isinstance(row["metrics"], dict) or set(row["metrics"]) != set(METRICS):
        raise FlextopoError(f"{where}: track {name}: metrics; legal: {', '.join(METRICS)}")
    for metric, values in row["metrics"].items():
        if not isinstance(values, list) or len(values) != count:
            raise FlextopoError(f"{where}: track {name}: {metric}; legal: {count} values")
        most = 1.0 if metric.endswith(("rate", "share")) else 1e9
        for value in values:
            none = value is None and metric != "weighted_loss"
            if not none and not _is_number(value, 0.0, most):
                raise FlextopoError(
                    f"{where}: track {name}: {metric} = {str(value)[:60]}; legal: 0 to {most:g}"
                )
    metrics = {metric: row["metrics"][metric] for metric in METRICS}
    _check_sums(f"{where}: track {name}", metrics)
    return TrackResult(row["games"], float(row["wall_s"]), metrics)


def _check_sums(where: str, metrics: dict[str, Values]) -> None:
    """Check that every loss is the sum of its terms.

    Raises:
        FlextopoError: one is not.
    """
    for i, loss in enumerate(metrics["weighted_loss"]):
        total = sum(metrics[term][i] or 0.0 for term in LOSS_TERMS)
        if loss is None or not math.isclose(loss, total, rel_tol=1e-6, abs_tol=1e-9):
            raise FlextopoError(
                f"{where}: game {i}: weighted_loss = {loss}; legal: the sum of its terms, {total:.9g}"
            )


def _is_number(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and low <= cast("float", value) <= high
