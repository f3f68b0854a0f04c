"""Recorded demand and jobs as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.online_demand import STEP_S
from flextopo.cluster.workload.trace_rates import DAY_S, ServiceRates
from flextopo.cluster.workload.trace_summary import (
    MAX_POINTS,
    SIZES,
    mean_day,
    occupancy,
    size_shares,
    times_s,
)
from flextopo.train.report_figures import new_figure
from flextopo.train.results import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
OTHERS, LINE = "#B8BEC6", "#444444"
COUNT, WEIGHT = "#56B4E9", "#D55E00"
"""Shares of jobs, and of GPU-hours."""

DURATION_TICKS = {
    60: "1 min",
    600: "10 min",
    3600: "1 h",
    6 * 3600: "6 h",
    DAY_S: "1 d",
    7 * DAY_S: "7 d",
}


def draw_traces(
    path: Path, services: ServiceRates | None, jobs: BatchJobs | None, num_gpus: int
) -> None:
    """Draw demand over time and by hour, sizes and run times of jobs, and what they would hold.

    Args:
        path: of the PNG.
        services: demand; None = its panels are left out.
        jobs: batch jobs; None = the same.
        num_gpus: of the cluster that jobs are measured against.

    Raises:
        FlextopoError: matplotlib is not installed, or the file cannot be written.
    """
    middle = [["day", "day"]] if services is not None and services.aligned else []
    middle += [["sizes", "sizes"], ["times", "times"]] if jobs is not None else []
    width = 2 * max(len(middle), 1)
    mosaic: list[Any] = [["demand"] * width] if services is not None else []
    mosaic += [[name for pair in middle for name in pair]] if middle else []
    mosaic += [["held"] * width] if jobs is not None else []
    figure = new_figure(10, 2.9 * len(mosaic))
    axes = figure.subplot_mosaic(mosaic)
    if services is not None:
        _draw_demand(axes["demand"], services)
        if "day" in axes:
            _draw_day(axes["day"], services)
    if jobs is not None:
        _draw_sizes(axes["sizes"], jobs)
        _draw_times(axes["times"], jobs)
        _draw_held(axes["held"], jobs, num_gpus)
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _legend(axis: Axes) -> None:
    """Put the legend above a panel, to the right of its title, where it covers no line."""
    handles, labels = axis.get_legend_handles_labels()
    short = [label if len(label) <= 24 else f"{label[:21]}..." for label in labels]
    axis.legend(handles, short, fontsize="small", frameon=False, ncols=len(COLOURS) + 1,
                loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2,
                columnspacing=1.0, handlelength=1.0)  # fmt: skip


def _draw_demand(axis: Axes, services: ServiceRates) -> None:
    """Stack the largest services, and all others as one."""
    order = np.argsort(-services.rates.mean(1), kind="stable")
    largest, others = order[: len(COLOURS)], order[len(COLOURS) :]
    rows = [*services.rates[largest], *([services.rates[others].sum(0)] if len(others) else [])]
    names = [services.names[i] for i in largest.tolist()]
    names += [f"{len(others)} others"] if len(others) else []
    every = -(-services.rates.shape[1] // MAX_POINTS)
    whole = services.rates.shape[1] // every * every
    means = [row[:whole].reshape(-1, every).mean(1) for row in rows]
    unit = DAY_S if services.aligned else 3600
    begin = times_s(services)[:whole:every] / unit
    edges = np.append(begin, begin[-1] + every * STEP_S / unit)
    colours = [*COLOURS[: len(largest)], *([OTHERS] if len(others) else [])]
    # A step holds until the next one, the last one until its own end.
    held = [np.append(mean, mean[-1]) for mean in means]
    axis.stackplot(edges, *held, labels=names, colors=colours, step="post", linewidth=0)
    axis.set(xlim=(edges[0], edges[-1]), ylabel="requests/s")
    axis.set_xlabel("day of the trace" if services.aligned else "hour of the trace")
    axis.set_title("Demand by service", loc="left", fontsize="medium")
    _legend(axis)


def _draw_day(axis: Axes, services: ServiceRates) -> None:
    days = mean_day(services)
    low, middle, high = np.quantile(days, (0.1, 0.5, 0.9), axis=0)
    hours = np.arange(24) + 0.5
    if len(days) > 1:
        axis.fill_between(hours, low, high, color=OTHERS, alpha=0.6, linewidth=0, label="p10-p90")
    axis.plot(hours, middle, color=COLOURS[0], label="median")
    axis.axhline(1, color=LINE, linewidth=0.6)
    axis.set(xlim=(0, 24), xticks=range(0, 25, 6), ylim=(0, None), xlabel="hour of day")
    axis.set_ylabel("rate over its mean")
    axis.set_title("Mean day", loc="left", fontsize="medium")
    _legend(axis)


def _draw_sizes(axis: Axes, jobs: BatchJobs) -> None:
    count, hours = size_shares(jobs)
    at = np.arange(len(SIZES))
    for shares, offset, colour, label in (
        (count, -0.2, COUNT, "jobs"),
        (hours, 0.2, WEIGHT, "GPU-hours"),
    ):
        bars = axis.bar(at + offset, 100 * shares, 0.4, color=colour, label=label)
        said = [
            "" if not share else "<1" if share < 0.01 else f"{100 * share:.0f}" for share in shares
        ]
        axis.bar_label(bars, said, fontsize="small")
    axis.set(xticks=at, xticklabels=list(SIZES), xlabel="GPUs of a job", ylabel="% of")
    axis.margins(y=0.15)
    axis.set_title("Sizes", loc="left", fontsize="medium")
    _legend(axis)


def _draw_times(axis: Axes, jobs: BatchJobs) -> None:
    """Draw which share of jobs, and of their GPU-hours, runs up to a time."""
    order = np.argsort(jobs.duration_s)
    duration = np.maximum(jobs.duration_s[order], 1)
    for weight, colour, label in (
        (np.ones(len(jobs)), COUNT, "jobs"),
        (jobs.gpu_s[order].astype(np.float64), WEIGHT, "GPU-hours"),
    ):
        so_far = 100 * np.cumsum(weight) / max(float(weight.sum()), 1.0)
        last = np.append(np.diff(duration) > 0, True)
        axis.step(duration[last], so_far[last], where="post", color=colour, label=label)
    ticks = list(DURATION_TICKS)
    axis.set_xscale("log")
    axis.set_xticks(ticks, list(DURATION_TICKS.values()), fontsize="small", rotation=30)
    axis.set_xticks([], minor=True)
    axis.axvline(DAY_S, color=LINE, linewidth=0.6, linestyle=":")
    axis.set(ylim=(0, 101), xlim=(30, max(float(duration[-1]), 8 * DAY_S)), ylabel="% of")
    axis.set_xlabel("run time up to")
    axis.set_title("Run times", loc="left", fontsize="medium")
    _legend(axis)


def _draw_held(axis: Axes, jobs: BatchJobs, num_gpus: int) -> None:
    """Draw what the jobs of each source would hold, counted from the first day of each."""
    most = 0.0
    for i, name in enumerate(jobs.sources):
        held = occupancy(jobs.take(jobs.source == i))
        first = held.edges_s[0] // DAY_S
        label = f"{name}, from day {first:.0f}" if first else name
        colour = COLOURS[i % len(COLOURS)]
        share = held.gpus / num_gpus
        axis.stairs(share, held.edges_s / DAY_S - first, color=colour, label=label, baseline=None)
        most = max(most, float(share.max()))
    axis.axhline(1, color=LINE, linewidth=0.8, linestyle="--")
    axis.annotate("all GPUs", (1, 1), xycoords=("axes fraction", "data"), xytext=(3, 0),
                  textcoords="offset points", va="center", fontsize="small")  # fmt: skip
    axis.set(xlabel="days", ylabel=f"times the {num_gpus} GPUs", ylim=(0, max(1.1, 1.05 * most)))
    axis.margins(x=0)
    axis.set_title(
        "GPUs held if each job starts when it is submitted", loc="left", fontsize="medium"
    )
    _legend(axis)
