"""Saved results, and what is made of them: tables for people, tables for Markdown, a figure."""

from __future__ import annotations

import io
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.array_file import read_arrays
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.cluster.scenario import LossWeights
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.train.differences import with_details
from flextopo.train.statistics import MIN_SEEDS, paired_difference, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = dict[str, Any]
Results = dict[str, Any]

Column = tuple[str, str, float, int]
"""Heading, metric, factor and decimals of a column."""

LOSS_COLUMNS: tuple[Column, ...] = (
    ("weighted\nloss %", "weighted_loss", 100, 2),
    *((f"{term}\n%", term, 100.0, 2) for term in LOSS_TERMS),
)
OTHER_COLUMNS: tuple[Column, ...] = (
    ("hit\nrate %", "hit_rate", 100, 1),
    ("success\n%", "success_rate", 100, 1),
    ("violations\na day", "guarantee_violations", 1, 1),
    ("GPUs\nevicted", "gpus_evicted", 1, 0),
    ("discarded\nGPU-h", "discarded_gpu_h", 1, 1),
    ("batch\ngoodput %", "batch_goodput", 100, 1),
    ("utili-\nsation %", "utilisation", 100, 1),
)


TERM_COLOURS = (
    *("#c8323c", "#6651a5", "#d97921", "#8d99ae", "#1f6fb4"),
    *("#2a7f3f", "#b5892e", "#444444", "#76b7e5"),
)
"""One for each term of the loss, in the order of `LOSS_TERMS`; there are more than terms."""

VERDICT_COLOURS = {"better": "#2a7f3f", "worse": "#c8323c"}


WAIT_COLUMNS: tuple[Column, ...] = (
    ("wait of all\np50 s", "wait_p50_s", 1, 0),
    ("of all\np99 s", "wait_p99_s", 1, 0),
    ("where it fitted\nnowhere, p50 s", "preemptor_wait_p50_s", 1, 0),
    ("nowhere,\np99 s", "preemptor_wait_p99_s", 1, 0),
    ("nowhere,\nlongest s", "preemptor_wait_max_s", 1, 0),
    ("nowhere,\nlate %", "late_share", 100, 1),
)
BATCH_COLUMNS: tuple[Column, ...] = (
    ("slowdown\nof a job", "slowdown_mean", 1, 2),
    ("its\np99", "slowdown_p99", 1, 1),
    ("evictions\na job, p99", "evictions_p99", 1, 1),
    ("most", "evictions_max", 1, 1),
    ("GPU-h lost,\nclass low", "discarded_low_gpu_h", 1, 1),
    ("class\nmiddle", "discarded_middle_gpu_h", 1, 1),
    ("longest\nstarvation h", "starvation_h", 1, 1),
)

GANG_COLUMNS: tuple[Column, ...] = (
    ("gangs placed\nby evicting, a day", "gang_preemptions", 1, 1),
    ("gang hit\nrate %", "gang_hit_rate", 100, 1),
    ("gang wait\np50 s", "gang_wait_p50_s", 1, 0),
    ("gang wait\np99 s", "gang_wait_p99_s", 1, 0),
    ("victims a\npreemption", "victims_per_preemption", 1, 2),
    ("discarded\nGPU-h", "discarded_gpu_h", 1, 0),
)

TABLES = (LOSS_COLUMNS, OTHER_COLUMNS, WAIT_COLUMNS, BATCH_COLUMNS, GANG_COLUMNS)
"""The tables of a comparison; one of which no metric was saved is left out, that of gangs without gangs."""


MAX_SCORES = 256 * 2**20
"""Bytes of one metric's scores: a million seeds of thirty selectors."""


def save_results(results: Results, path: Path) -> None:
    """Write results as JSON.

    Raises:
        FlextopoError: the file cannot be written.
    """
    text = json.dumps(results, separators=(",", ":")) + "\n"
    make_folder(path.parent)
    write_whole(path, text.encode())


def save_scores(results: Results, path: Path) -> None:
    """Write every seed's value of every metric, so that others can analyse them again.

    The file is numpy's npz: `selectors` (N,) names, `seeds` (S,) int64, and an array (N, S) float64
    for each metric by its name, NaN where a selector did not play a seed or has no value.

    Raises:
        FlextopoError: the file cannot be written.
    """
    names = list(results["selectors"])
    played = results["config"]["seeds_used"]
    seeds = sorted({seed for name in names for seed in played[name]})
    column = {seed: i for i, seed in enumerate(seeds)}
    arrays: dict[str, npt.NDArray[Any]] = {
        "selectors": np.array(names, np.str_),
        "seeds": np.array(seeds, np.int64),
    }
    for metric in next(iter(results["selectors"].values())):
        table = arrays[metric] = np.full((len(names), len(seeds)), np.nan)
        for row, name in enumerate(names):
            values = results["selectors"][name][metric]["per_seed"]
            for seed, value in zip(played[name], values, strict=True):
                table[row, column[seed]] = np.nan if value is None else value
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    make_folder(path.parent)
    write_whole(path, content.getvalue())


def load_scores(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read what `save_scores` wrote.

    Raises:
        FlextopoError: it is missing or no scores file.
    """
    try:
        arrays = read_arrays(path.read_bytes(), MAX_SCORES)
    except OSError as error:
        raise FlextopoError(f"{path}: {error.strerror or 'no scores file'}") from None
    except ValueError:
        arrays = {}
    if not {"selectors", "seeds"} <= set(arrays):
        raise FlextopoError(f"{path}: no scores file; legal: what `flextopo compare` writes")
    return arrays


def read_saved(path: Path, what: str, **parts: type) -> Any:
    """Read a file of saved results.

    Args:
        path: of the JSON file.
        what: said where it is none, such as `legal: what ... writes`.
        parts: which it must have, none of them empty, and what each is.

    Raises:
        FlextopoError: it is missing or none.
    """
    try:
        found = json.loads(path.read_text())
        for name, kind in parts.items():
            if not isinstance(found[name], kind) or not found[name]:
                raise KeyError(name)
    except OSError as error:
        raise FlextopoError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FlextopoError(f"{path}: {what}") from None
    return found


def load_results(path: Path) -> Results:
    """Read a saved results file.

    Raises:
        FlextopoError: it is missing or no results file.
    """
    what = "no results file; legal: what `flextopo compare --json` writes"
    return dict(read_saved(path, what, selectors=dict, config=dict))


def load_ablation(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an ablation.

    Raises:
        FlextopoError: it is missing or none.
    """
    what = "legal: what `flextopo ablate` writes"
    return list(read_saved(path, what, ablation=list)["ablation"])


def ablation_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of an ablation as cells, with a heading."""
    out = [["what", "", "weighted loss %", "against greedy-cost, points", "95 % interval",
            "P(better)", "success %", "decisions learnt a second"]]  # fmt: skip
    for row in rows:
        found = row["against_greedy"]
        out.append(
            [
                row["group"],
                row["name"],
                f"{100 * row['loss']:.2f}",
                f"{100 * found['mean']:+.2f}",
                f"[{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]",
                f"{found['improvement']:.2f}",
                f"{100 * row['success']:.1f}",
                f"{row['speed']:,.0f}" if "speed" in row else "",
            ]
        )
    return out


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, and the commit where there is one."""
    found = {"python": platform.python_version()}
    for name in (
        "flextopo",
        "numpy",
        "numba",
        "networkx",
        "scipy",
        "gymnasium",
        "torch",
        "stable-baselines3",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        git = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if git.returncode == 0:
            found["commit"] = git.stdout.strip()
    return found


def format_cell(cell: Cell | None, factor: float, decimals: int) -> str:
    """Return `mean ±half of the 95 % interval`, or a dash where there is no value or no such metric."""
    if cell is None or cell["mean"] is None or math.isnan(cell["mean"]):
        return "-"
    half = (cell["high"] - cell["low"]) / 2 * factor
    return f"{cell['mean'] * factor:.{decimals}f} ±{half:.{decimals}f}"


def mean_of(row: dict[str, Cell], metric: str) -> float:
    """Return a metric's mean, 0 where there is no value or an older file has no such metric."""
    return float(row.get(metric, {"mean": 0.0})["mean"] or 0.0)


def tables(results: Results) -> list[list[list[str]]]:
    """Return the tables of a comparison, of columns that it has; see `rows`."""
    saved = set().union(*results["selectors"].values())
    gangs = any(mean_of(row, "gang_preemptions") for row in results["selectors"].values())
    shown = TABLES if gangs else TABLES[: TABLES.index(GANG_COLUMNS)]
    known = [[column for column in columns if column[1] in saved] for columns in shown]
    return [rows(results, columns) for columns in known if columns]


def rows(results: Results, columns: Sequence[Column]) -> list[list[str]]:
    """Return the comparison table: headings, then a row a selector."""
    out = [["selector", *(heading for heading, *_ in columns), "seeds"]]
    for name, row in results["selectors"].items():
        cells = [
            format_cell(row.get(metric), factor, places) for _, metric, factor, places in columns
        ]
        out.append([name, *cells, str(len(row["weighted_loss"]["per_seed"]))])
    return out


def gang_rows(results: Results) -> list[list[str]]:
    """Return what selectors did for gangs: headings, then a row a selector."""
    return rows(results, (LOSS_COLUMNS[0], *GANG_COLUMNS))


def paired_rows(results: Results) -> list[list[str]]:
    """Return the paired differences from the reference: headings, then a row a selector.

    Recipes of several training seeds come last; their intervals are over these and tapes together.
    `largest day` is defined by `PairedDifference.largest_day`.
    """
    out = [["selector", "difference,\npoints", "95 % interval", "median", "largest\nday",
            "better on", "verdict"]]  # fmt: skip
    for name, saved in {**results["paired"], **results.get("recipes", {})}.items():
        row = with_details(results, name, saved)
        out.append(
            [
                name,
                f"{row['mean'] * 100:+.2f}",
                f"[{row['low'] * 100:+.2f}, {row['high'] * 100:+.2f}]",
                f"{row['median'] * 100:+.2f}",
                f"{row['largest_day']:.0%}",
                f"{row['improvement']:.0%} of seeds",
                verdict(row["low"], row["high"], row["seeds"], stretches(results)),
            ]
        )
    return out


def paired_notes(results: Results) -> list[str]:
    """Return what the columns of `paired_rows` mean, a line each."""
    notes = ["largest day: the largest difference over the sum of all, signs left out"]
    seeds = [row["seeds"] for row in results["paired"].values() if "seeds" in row]
    if seeds and min(seeds) < MIN_SEEDS:
        notes.append(
            f"no verdict is given from fewer than {MIN_SEEDS} seeds; here are {min(seeds)}"
        )
    if seeds and max(seeds) > stretches(results):
        notes.append(overlap_note(results, max(seeds)))
    if results.get("recipes"):
        notes.append("several training seeds: the interval is over these and tapes together")
    return notes


def stretches(results: Results) -> float:
    """Return from how many stretches of a trace that share nothing tapes are cut; infinite without traces."""
    found = results.get("config", {}).get("stretches")
    return float(found["disjoint"]) if found else math.inf


def overlap_note(results: Results, seeds: int) -> str:
    """Return what is to be said where the stretches of so many seeds overlap, one line."""
    found = results["config"]["stretches"]
    said = (
        f"stretches overlap: {seeds} seeds of {found['hours']:g} h, of which {found['trace']} has "
        f"{found['disjoint']} that share nothing; intervals are too narrow"
    )
    few = found["disjoint"] < MIN_SEEDS
    return f"{said}, and fewer than {MIN_SEEDS} give no verdict" if few else said


def other_weights(results: Results) -> str:
    """Return the weights of the loss that are not the default, in words; empty where all are."""
    saved = results["config"].get("scenario", {}).get("weights", {})
    default = asdict(LossWeights())
    return ", ".join(f"{k} {v:g}" for k, v in saved.items() if v != default.get(k))


def against_rows(results: Results) -> list[list[str]]:
    """Return the paired differences of the last policy from every selector, seed by seed.

    Where a selector played fewer seeds, those are compared.

    Raises:
        FlextopoError: no policy played.
    """
    if not results["config"]["policies"]:
        raise FlextopoError("results without a policy; legal: what `compare` saves with one")
    policy = results["config"]["policies"][-1]
    losses = {
        name: np.array(row["weighted_loss"]["per_seed"], float)
        for name, row in results["selectors"].items()
    }
    out = [["against", "its loss %", f"{policy} %", "difference, points", "95 % interval",
            "P(better)", "seeds"]]  # fmt: skip
    for name, theirs in losses.items():
        if name == policy:
            continue
        mine = losses[policy][: len(theirs)]
        found = paired_difference(mine, theirs)
        out.append(
            [
                name,
                f"{theirs.mean() * 100:.2f}",
                f"{mine.mean() * 100:.2f}",
                f"{found.mean * 100:+.2f}",
                f"[{found.low * 100:+.2f}, {found.high * 100:+.2f}]",
                f"{found.improvement:.2f}",
                str(len(theirs)),
            ]
        )
    return out


def markdown(table: list[list[str]]) -> str:
    """Return a table in Markdown."""
    head, *body = table
    head = [cell.replace("-\n", "").replace("\n", " ") for cell in head]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)


def draw_comparison(results: Results, path: Path) -> None:
    """Draw the loss and its terms with intervals, and the paired differences, as a PNG.

    Raises:
        FlextopoError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise FlextopoError(
            "the figure needs matplotlib; legal: pip install 'flextopo[report]'"
        ) from None
    names = list(results["selectors"])
    figure = Figure(figsize=(11, 0.45 * len(names) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    bars, pairs = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    left = [0.0] * len(names)
    for term, colour in zip(LOSS_TERMS, TERM_COLOURS, strict=False):
        widths = [100 * mean_of(results["selectors"][name], term) for name in names]
        bars.barh(names, widths, left=left, color=colour, label=term)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    loss = [results["selectors"][name]["weighted_loss"] for name in names]
    spread = [
        [100 * (c["mean"] - c["low"]) for c in loss],
        [100 * (c["high"] - c["mean"]) for c in loss],
    ]
    bars.errorbar(left, names, xerr=spread, fmt="none", ecolor="black", capsize=3)
    bars.invert_yaxis()
    bars.set_xlabel("weighted GPU-hours lost, % of those demanded (95 % interval)")
    handles, labels = bars.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    for name, row in results["paired"].items():
        seeds = len(results["selectors"][name]["weighted_loss"]["per_seed"])
        colour = VERDICT_COLOURS.get(
            verdict(row["low"], row["high"], seeds, stretches(results)), "#777777"
        )
        error = [[100 * (row["mean"] - row["low"])], [100 * (row["high"] - row["mean"])]]
        pairs.errorbar(100 * row["mean"], name, xerr=error, fmt="o", color=colour, capsize=3)
    pairs.axvline(0, color="black", linewidth=0.8)
    pairs.set_xlabel(f"difference from {results['config']['reference']}, points (same tapes)")
    servers, seeds = results["config"]["servers"], results["config"]["seeds"]
    figure.suptitle(f"{servers}, {seeds} days; lower is better", fontsize="medium")
    make_folder(path.parent)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a matplotlib figure as a PNG.

    Raises:
        FlextopoError: the file cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    write_whole(path, picture.getvalue())
