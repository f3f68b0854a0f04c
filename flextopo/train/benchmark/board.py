"""The leaderboard: tables of all entries, each against the par rule on the same games."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from flextopo.cluster.errors import FlextopoError
from flextopo.train.benchmark.entry import Entry, Values
from flextopo.train.benchmark.entry_file import load_entry
from flextopo.train.benchmark.tracks import NAME, PAR, TRACKS, VERSION, frozen
from flextopo.train.results import markdown
from flextopo.train.statistics import estimate, paired_difference, verdict

Rows = list[list[str]]

SIGNS = re.compile(r"[\\`*\[\]<>&|\"']")
"""What Markdown or HTML may read as more than itself."""

WRITTEN = (
    "Written by `flextopo bench table` from the files under `leaderboard/`; [what is played, and how to "
    "join](benchmark.md)."
)
POINTS = (
    f"Points of weighted loss against `{PAR}` on the same games; less is better, * where the 95 % interval "
    "leaves out 0. An oracle knows the future: no entry to beat, but what there is to gain. Of {intervals} "
    "intervals {chance:.0f} leave out 0 by chance alone. Ordered by the mean rank over games: one day may "
    "outweigh all others in a mean of losses. The first three tracks and most of `stress` share their days, so "
    "that their columns say much the same."
)


def load_entries(folder: Path) -> list[Entry]:
    """Read every result file of a folder, in the order of their names.

    Raises:
        FlextopoError: there is none, one is not legal, or two entries have one name.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise FlextopoError(f"{folder}: no result files; legal: what `flextopo bench run` writes")
    entries: dict[str, Entry] = {}
    taken: dict[str, Path] = {}
    for path in paths:
        entry = load_entry(path)
        if entry.name.casefold() in entries:
            raise FlextopoError(
                f"{path}: name {entry.name!r} is taken, by {taken[entry.name.casefold()]}; legal: one of "
                "its own, as --name of `flextopo bench run` says it"
            )
        entries[entry.name.casefold()] = entry
        taken[entry.name.casefold()] = path
    return list(entries.values())


def track_rows(name: str, entries: Sequence[Entry]) -> Rows:
    """Return the table of a track: headings, then a row an entry, least loss first, oracles last."""
    head = ["", "entry", "kind", "loss %", f"against {PAR},\npoints", "95 % interval", "median",
            "better\non", "verdict", "hit\nrate %", "late %", "discarded\nGPU-h"]  # fmt: skip
    played = [entry for entry in entries if name in entry.tracks]
    ranked = sorted(played, key=lambda entry: (entry.kind == "oracle", _mean(entry, name)))
    par = frozen()[name].par
    means = [_mean(entry, name) for entry in ranked if entry.kind != "oracle"]
    out = [head]
    for entry in ranked:
        metrics = entry.tracks[name].metrics
        place = 1 + sum(mean < _mean(entry, name) for mean in means)
        losses = np.array(metrics["weighted_loss"], float)
        found, loss = paired_difference(losses, par), estimate(losses)
        half = (loss.high - loss.low) / 2
        same = entry.selector == PAR
        out.append(
            [
                "" if entry.kind == "oracle" else str(place),
                f"`{entry.name}`",
                entry.kind,
                f"{100 * loss.mean:.2f} ±{100 * half:.2f}",
                "0" if same else f"{100 * found.mean:+.2f}",
                "" if same else f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]",
                "" if same else f"{100 * found.median:+.2f}",
                "" if same else f"{found.improvement:.0%}",
                "par" if same else verdict(found.low, found.high, len(losses)),
                _cell(metrics["hit_rate"], 100, 1),
                _cell(metrics["late_share"], 100, 1),
                _cell(metrics["discarded_gpu_h"], 1, 1),
            ]
        )
    return out


def overview_rows(entries: Sequence[Entry]) -> Rows:
    """Return the table of all tracks: points against par, `*` where the interval leaves out 0.

    Entries are ordered by their mean rank over the games of all tracks, each track counting alike, since
    one day may outweigh all others in a mean of losses; those that left a track out stand below, oracles last.
    """
    ranks = {name: _ranks(name, entries) for name in TRACKS}
    rows = []
    for entry in entries:
        cells = []
        for name in TRACKS:
            if name not in entry.tracks:
                cells.append("-")
                continue
            losses = np.array(entry.tracks[name].metrics["weighted_loss"], float)
            found = paired_difference(losses, frozen()[name].par)
            claimed = "*" if found.high < 0 or found.low > 0 else ""
            cells.append("0" if entry.selector == PAR else f"{100 * found.mean:+.2f}{claimed}")
        oracle = entry.kind == "oracle"
        whole = not oracle and all(name in entry.tracks for name in TRACKS)
        mean = [ranks[name][entry.name] for name in TRACKS if entry.name in ranks[name]]
        rank = float(np.mean(mean)) if mean else 0.0
        said = f"{rank:.1f}" if whole else "-"
        key = (oracle, not whole, rank)
        rows.append((key, [f"`{entry.name}`", entry.kind, *cells, said, escaped(entry.by)]))
    head = ["entry", "kind", *TRACKS, "mean rank", "by"]
    return [head] + [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _ranks(name: str, entries: Sequence[Entry]) -> dict[str, float]:
    """Return the mean rank of everybody but oracles over a track's games; equal losses share a rank."""
    played = [entry for entry in entries if name in entry.tracks and entry.kind != "oracle"]
    if not played:
        return {}
    losses = [entry.tracks[name].metrics["weighted_loss"] for entry in played]
    ranks = rankdata(np.array(losses, float), axis=0).mean(1)
    return {entry.name: float(rank) for entry, rank in zip(played, ranks, strict=True)}


def leaderboard(entries: Sequence[Entry]) -> str:
    """Return the leaderboard as a page of Markdown."""
    count = sum(len(entry.tracks) for entry in entries if entry.selector != PAR)
    parts = [
        f"# Leaderboard of {NAME} v{VERSION}",
        WRITTEN,
        "## All tracks",
        POINTS.format(intervals=count, chance=count / 20),
        markdown(overview_rows(entries)),
    ]
    for name, track in TRACKS.items():
        rows = track_rows(name, entries)
        if len(rows) > 1:
            parts += [f"## {name}", f"{track.about}; {track.num_games} games.", markdown(rows)]
    parts += [
        "## Entries",
        markdown(about_rows(entries)),
        "Next: [take part](benchmark.md#take-part).",
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, and that is no HTML."""
    return SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", text)


def about_rows(entries: Sequence[Entry]) -> Rows:
    """Return what each entry is."""
    out = [["entry", "what it does", "by", "flextopo", "source"]]
    for entry in entries:
        named = f"[{entry.name}]({entry.url})" if entry.url else f"`{entry.name}`"
        digest = entry.source.get("sha256", "")[:12]
        source = f"`{escaped(entry.source.get('class', entry.selector))}`" + (
            f" `{digest}`" if digest else ""
        )
        version = escaped(entry.versions.get("flextopo", ""))
        out.append([named, escaped(entry.about), escaped(entry.by), version, source])
    return out


def _mean(entry: Entry, track: str) -> float:
    return float(np.mean(np.array(entry.tracks[track].metrics["weighted_loss"], float)))


def _cell(values: Values, factor: float, places: int) -> str:
    found = [value for value in values if value is not None]
    return f"{factor * float(np.mean(found)):.{places}f}" if found else "-"
