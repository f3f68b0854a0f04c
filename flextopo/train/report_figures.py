"""The figures of a report; each returns None where the results have nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.train.report_data import (
    Comparison,
    ReportData,
    pooled_difference,
    pooled_profile,
    reweighted,
    scaling,
    weight_series,
)
from flextopo.train.results import TERM_COLOURS, VERDICT_COLOURS, mean_of, stretches
from flextopo.train.statistics import Estimate, estimate, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_CLAIM = "#777777"
FACTORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
MOST_LINES = 5
"""Selectors with a line of their own in a figure; more cannot be told apart."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure.

    Raises:
        FlextopoError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise FlextopoError(
            "the figures need matplotlib; legal: pip install 'flextopo[report]'"
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(count: int, width: float, height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels, three a row at most; those left over are hidden."""
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = new_figure(width * columns, height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _error(found: Estimate) -> list[list[float]]:
    # Rounding may put an end of the interval on the wrong side of the mean.
    return [[100 * max(found.mean - found.low, 0)], [100 * max(found.high - found.mean, 0)]]


def _colour(low: float, high: float, seeds: int, fewest: float) -> str:
    return VERDICT_COLOURS.get(verdict(low, high, seeds, fewest), NO_CLAIM)


def best_names(data: ReportData) -> list[str]:
    """Return the selectors worth a line: the reference and those of the lowest mean loss.

    Who left a comparison out has another mean, and no line unless nobody played all.
    """
    means: dict[str, list[float]] = {}
    for comparison in data.comparisons:
        for name, row in comparison.results["selectors"].items():
            means.setdefault(name, []).append(row["weighted_loss"]["mean"])
    everywhere = [name for name in means if len(means[name]) == len(data.comparisons)]
    order = sorted(everywhere or means, key=lambda name: float(np.mean(means[name])))
    references = {comparison.reference for comparison in data.comparisons}
    kept = [name for name in order if name not in references]
    return [name for name in data.names if name in {*kept[:MOST_LINES], *references}]


def draw_losses(data: ReportData) -> Figure | None:
    """Draw mean weighted losses as bars with 95 % intervals, a panel a comparison."""
    if not data.comparisons:
        return None
    height = 0.32 * len(data.names) + 1.1
    figure, axes = _panels(len(data.comparisons), 4.6, height, sharey=True)
    for ax, comparison in zip(axes, data.comparisons, strict=True):
        names = [n for n in data.names if n in comparison.results["selectors"]]
        for name in names:
            cell = comparison.results["selectors"][name]["weighted_loss"]
            found = Estimate(cell["mean"], cell["low"], cell["high"])
            colour = NO_CLAIM if name == comparison.reference else "#1f6fb4"
            ax.barh(name, 100 * found.mean, color=colour, alpha=0.75)
            ax.errorbar(
                100 * found.mean, name, xerr=_error(found), fmt="none", ecolor="black", capsize=3
            )
        ax.set_title(comparison.label, fontsize="medium")
        ax.set_xlabel("weighted loss, % of GPU-hours demanded")
    axes[0].invert_yaxis()
    return figure


def draw_decomposition(data: ReportData) -> Figure | None:
    """Draw the terms of the mean loss, stacked, a panel a comparison."""
    if not data.comparisons:
        return None
    height = 0.32 * len(data.names) + 1.4
    figure, axes = _panels(len(data.comparisons), 4.6, height, sharey=True)
    for ax, comparison in zip(axes, data.comparisons, strict=True):
        selectors = comparison.results["selectors"]
        names = [n for n in data.names if n in selectors]
        left = np.zeros(len(names))
        for term, colour in zip(LOSS_TERMS, TERM_COLOURS, strict=False):
            widths = np.array([100 * mean_of(selectors[name], term) for name in names])
            ax.barh(names, widths, left=left, color=colour, label=term)
            left += widths
        ax.set_title(comparison.label, fontsize="medium")
        ax.set_xlabel("weighted loss, % of GPU-hours demanded")
    axes[0].invert_yaxis()
    _legend_below(figure, axes)
    return figure


def _legend_below(figure: Figure, axes: Sequence[Axes], per_panel: int = 3) -> None:
    """Draw one legend for all panels below them, in as many columns as their width has room for."""
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(len(labels), per_panel * min(len(axes), 3))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or 1, fontsize="small")


def draw_front(data: ReportData) -> Figure | None:
    """Draw the loss over how long preemptors wait, and who is beaten in neither, a panel a comparison."""
    metric = "preemptor_wait_p99_s"
    shown = [
        c
        for c in data.comparisons
        if all(metric in row for row in c.results["selectors"].values())
        and any(mean_of(row, metric) for row in c.results["selectors"].values())
    ]
    if not shown:
        return None
    numbers = {name: i for i, name in enumerate(data.names, 1)}
    figure, axes = _panels(len(shown), 5.2, 4.8)
    for ax, comparison in zip(axes, shown, strict=True):
        points = {
            name: (mean_of(row, metric), 100 * mean_of(row, "weighted_loss"))
            for name, row in comparison.results["selectors"].items()
        }
        front = pareto_front(points)
        ax.plot(*zip(*(points[name] for name in front), strict=True), color="#1f6fb4", zorder=1)
        for name, at in points.items():
            colour = "#1f6fb4" if name in front else NO_CLAIM
            ax.scatter(*at, s=30, color=colour, zorder=2)
        for at, names in close_points(points).items():
            text = ", ".join(str(numbers[name]) for name in sorted(names, key=numbers.__getitem__))
            ax.annotate(text, at, xytext=(5, 3), textcoords="offset points", fontsize=8)
        ax.margins(x=0.12)
        ax.set_title(comparison.label, fontsize="medium")
        ax.set_xlabel("wait where it fitted nowhere, 99th percentile, s")
    axes[0].set_ylabel("weighted loss, % of GPU-hours demanded")
    marks = {
        f"{number} {name}": axes[0].plot([], [], linestyle="none")[0]
        for name, number in numbers.items()
    }
    figure.legend(
        marks.values(), marks, loc="outside lower center", ncols=2 * min(len(shown), 3),
        fontsize="small", handlelength=0,
    )  # fmt: skip
    return figure


def close_points(
    points: Mapping[str, tuple[float, float]], near: float = 0.04
) -> dict[tuple[float, float], list[str]]:
    """Return who lies where, points that a label could not tell apart together.

    Args:
        points: by name.
        near: share of the axis within which two are together.
    """
    span = [max(np.ptp([at[axis] for at in points.values()]), 1e-12) for axis in (0, 1)]
    groups: dict[tuple[float, float], list[str]] = {}
    for name, at in sorted(points.items(), key=lambda item: item[1]):
        for other, names in groups.items():
            if all(abs(at[axis] - other[axis]) <= near * span[axis] for axis in (0, 1)):
                names.append(name)
                break
        else:
            groups[at] = [name]
    return groups


def draw_gangs(data: ReportData) -> Figure | None:
    """Draw what selectors did for gangs, of the first comparison in which some were placed."""
    found = [
        c
        for c in data.comparisons
        if any(mean_of(row, "gang_preemptions") for row in c.results["selectors"].values())
    ]
    if not found:
        return None
    selectors = found[0].results["selectors"]
    figure = new_figure(11, 0.34 * len(selectors) + 1.3)
    axes = list(figure.subplots(1, 3, sharey=True))
    for ax, (heading, metric, factor) in zip(
        axes,
        (
            (
                "gangs as close as they ask, every\nmember at its best level, %",
                "gang_hit_rate",
                100,
            ),
            ("wait of gangs, 99th percentile, s", "gang_wait_p99_s", 1),
            ("victims a preemption", "victims_per_preemption", 1),
        ),
        strict=True,
    ):
        for name, row in selectors.items():
            cell = row.get(metric)
            if cell is None or cell["mean"] is None:
                continue
            mean, low, high = (factor * cell[key] for key in ("mean", "low", "high"))
            ax.barh(name, mean, color="#1f6fb4", alpha=0.75)
            error = [[max(mean - low, 0)], [max(high - mean, 0)]]
            ax.errorbar(mean, name, xerr=error, fmt="none", ecolor="black", capsize=3)
        ax.set_xlabel(heading)
    axes[0].invert_yaxis()
    figure.suptitle(found[0].label, fontsize="medium")
    return figure


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return whom no other beats in one of two costs without being worse in the other, by the first."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: points[name]):
        if not front or points[name][1] < points[front[-1]][1]:
            front.append(name)
    return front


def draw_differences(data: ReportData) -> Figure | None:
    """Draw paired differences and the probability of improvement, all comparisons as strata."""
    found = {name: pooled_difference(data, name) for name in data.names}
    references = {comparison.reference for comparison in data.comparisons}
    rows = {n: d for n, d in found.items() if d is not None and n not in references}
    if not rows:
        return None
    fewest = min(stretches(comparison.results) for comparison in data.comparisons)
    figure = new_figure(10, 0.36 * len(rows) + 1.3)
    left, right = figure.subplots(1, 2, sharey=True)
    for name, d in rows.items():
        error = _error(Estimate(d.mean, d.low, d.high))
        left.errorbar(
            100 * d.mean,
            name,
            xerr=error,
            fmt="o",
            color=_colour(d.low, d.high, d.seeds, fewest),
            capsize=3,
        )
        left.plot(100 * d.iqm, name, "|", color="black", markersize=11)
        share = Estimate(d.improvement, d.improvement_low, d.improvement_high)
        colour = _colour(0.5 - share.high, 0.5 - share.low, d.seeds, fewest)
        right.errorbar(
            100 * share.mean,
            name,
            xerr=_error(share),
            fmt="o",
            color=colour,
            capsize=3,
        )
    left.axvline(0, color="black", linewidth=0.8)
    left.set_xlabel(f"difference from {', '.join(sorted(references))}, points\n(dot mean, bar IQM)")
    right.axvline(50, color="black", linewidth=0.8)
    right.set_xlim(-3, 103)
    right.set_xlabel("probability of improvement, %")
    left.invert_yaxis()
    return figure


def draw_profile(data: ReportData) -> Figure | None:
    """Draw on which share of the tapes each selector loses at most tau times the reference."""
    taus = np.linspace(0.3, 2.5, 111)
    references = {comparison.reference for comparison in data.comparisons}
    names = [name for name in best_names(data) if name not in references]
    profiles = {name: pooled_profile(data, name, taus) for name in names}
    if not any(profile is not None for profile in profiles.values()):
        return None
    figure = new_figure(7.5, 4.5)
    ax = figure.subplots()
    for name, profile in profiles.items():
        if profile is not None:
            (line,) = ax.plot(taus, 100 * profile.share, label=name)
            ax.fill_between(
                taus, 100 * profile.low, 100 * profile.high, color=line.get_color(), alpha=0.12
            )
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xlabel(f"τ: loss over that of {', '.join(sorted(references))} on the same tape")
    ax.set_ylabel("tapes with at most τ, %")
    ax.legend(fontsize="small")
    return figure


def _mean_ratio(comparison: Comparison, name: str) -> Estimate | None:
    pair = comparison.paired(name)
    if pair is None or pair[1].mean() == 0:
        return None
    found, scale = estimate(pair[0] - pair[1]), float(pair[1].mean())
    return Estimate(found.mean / scale, found.low / scale, found.high / scale)


def draw_scaling(data: ReportData) -> Figure | None:
    """Draw the paired difference, relative to the reference's loss, over the number of servers."""
    series = scaling(data)
    if not series:
        return None
    figure, axes = _panels(len(series), 5.2, 3.8, sharey=True)
    for ax, (label, sizes) in zip(axes, series.items(), strict=True):
        _lines(ax, data, [(float(size), comparison) for size, comparison in sizes])
        ax.set_xscale("log")
        ax.set_xticks([size for size, _ in sizes], [str(size) for size, _ in sizes], minor=False)
        ax.minorticks_off()
        ax.set_title(label, fontsize="medium")
        ax.set_xlabel("servers")
    axes[0].set_ylabel("loss against the reference, %")
    axes[0].legend(fontsize="small")
    return figure


def _lines(ax: Axes, data: ReportData, points: Sequence[tuple[float, Comparison]]) -> None:
    """Draw relative paired differences of the best selectors along an axis."""
    for name in best_names(replace(data, comparisons=tuple(c for _, c in points))):
        found = [(x, _mean_ratio(c, name)) for x, c in points if c.reference != name]
        given = [(x, ratio) for x, ratio in found if ratio is not None]
        if given:
            x = [x for x, _ in given]
            error = np.hstack([_error(ratio) for _, ratio in given])
            y = [100 * ratio.mean for _, ratio in given]
            ax.errorbar(x, y, yerr=error, fmt="o-", capsize=3, label=name)
    ax.axhline(0, color="black", linewidth=0.8)


def draw_reweighted(data: ReportData) -> Figure | None:
    """Draw paired differences as one term of the loss weighs more or less; choices unchanged."""
    names = [
        n
        for n in best_names(data)
        if any(c.reference != n and c.paired(n) for c in data.comparisons)
    ]
    names = [n for n in names if n not in {c.reference for c in data.comparisons}]
    if not names:
        return None
    figure, axes = _panels(len(LOSS_TERMS), 4.2, 3.3, sharey=True)
    places = np.arange(len(FACTORS))
    for ax, term in zip(axes, LOSS_TERMS, strict=True):
        for name in names:
            parts = [
                [d for c in data.comparisons if (d := reweighted(c, name, term, f)) is not None]
                for f in FACTORS
            ]
            if not all(parts):  # results that were saved before there was the term
                continue
            found = [estimate(np.concatenate(part)) for part in parts]
            (line,) = ax.plot(places, [100 * e.mean for e in found], "o-", markersize=3, label=name)
            low, high = [100 * e.low for e in found], [100 * e.high for e in found]
            ax.fill_between(places, low, high, color=line.get_color(), alpha=0.12)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xticks(places, [f"{factor:g}x" for factor in FACTORS])
        ax.set_title(
            "misalignment (1 - speed)" if term == "misalignment" else term, fontsize="medium"
        )
    for ax in axes[::3]:
        ax.set_ylabel("difference from reference, points")
    _legend_below(figure, axes, per_panel=1)
    return figure


def draw_weights(data: ReportData) -> Figure | None:
    """Draw relative differences over weights and speeds with which the days were played anew."""
    series = weight_series(data)
    if not series:
        return None
    figure, axes = _panels(len(series), 4.6, 3.6, sharey=True)
    for ax, (name, points) in zip(axes, series.items(), strict=True):
        _lines(ax, data, points)
        ax.set_xlabel(name.replace("_", " "))
    axes[0].set_ylabel("loss against the reference, %")
    axes[0].legend(fontsize="small")
    return figure


def draw_curves(data: ReportData) -> Figure | None:
    """Draw the validation loss over the decisions learnt from."""
    if not data.learning_curves:
        return None
    figure = new_figure(7.5, 4.2)
    ax = figure.subplots()
    for name, curve in data.learning_curves.items():
        loss = 100 * np.array(curve["loss"])
        (line,) = ax.plot(curve["decisions"], loss, "o-", markersize=3, label=name)
        if "low" in curve and "high" in curve:
            low, high = 100 * np.array(curve["low"]), 100 * np.array(curve["high"])
            ax.fill_between(curve["decisions"], low, high, color=line.get_color(), alpha=0.15)
    ax.set_xlabel("decisions learnt from")
    ax.set_ylabel("weighted loss on validation tapes, %")
    ax.legend(fontsize="small")
    return figure


def draw_importance(data: ReportData) -> Figure | None:
    """Draw what the policy loses when a feature is shuffled, greatest first."""
    if not data.importance:
        return None
    rows = sorted(data.importance.items(), key=lambda row: -row[1]["mean"])
    figure = new_figure(7.5, 0.28 * len(rows) + 1.0)
    ax = figure.subplots()
    for name, cell in rows:
        found = Estimate(
            cell["mean"], cell.get("low", cell["mean"]), cell.get("high", cell["mean"])
        )
        ax.barh(name, 100 * found.mean, color="#1f6fb4", alpha=0.75)
        ax.errorbar(
            100 * found.mean, name, xerr=_error(found), fmt="none", ecolor="black", capsize=2
        )
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel("points of weighted loss lost when the feature is shuffled")
    return figure


FIGURES: dict[str, tuple[str, Callable[[ReportData], Figure | None]]] = {
    "losses": ("Weighted loss, mean and 95 % bootstrap interval over tapes", draw_losses),
    "decomposition": ("What is lost: the terms of the weighted loss", draw_decomposition),
    "front": (
        "Loss against waiting: the line joins those that no other beats in both",
        draw_front,
    ),
    "gangs": ("Replicas that span servers: mean and 95 % interval", draw_gangs),
    "differences": (
        "Paired differences on the same tapes and probability of improvement, stratified bootstrap",
        draw_differences,
    ),
    "profile": (
        "Performance profile: tapes with a loss of at most τ times the reference's, 95 % bands",
        draw_profile,
    ),
    "learning-curves": ("Learning curves on validation tapes", draw_curves),
    "scaling": ("Size of the cluster, without retraining", draw_scaling),
    "weights-played": ("Loss weights and alignment speeds, days played anew", draw_weights),
    "weights": (
        "How conclusions move when one term weighs more or less; the choices stay as they were",
        draw_reweighted,
    ),
    "importance": ("What the policy looks at: permutation importance", draw_importance),
}
"""File stem to (caption, what draws it), in the order of the page."""
