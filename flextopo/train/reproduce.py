"""Reproduce the paper's headline: topology hit rate of blind and of topology-aware preemption."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from flextopo.baselines.residents import NodeView, Resident
from flextopo.baselines.search import by_importance, smallest_sets
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod
from flextopo.train.reproduce_config import SEEDS, PaperConfig, Plan
from flextopo.train.reproduce_experiment import SELECTORS, SIZES, PaperExperiment
from flextopo.train.scale_out import run_jobs
from flextopo.train.statistics import estimate

PAPER: dict[str, float] = {
    "godel": 0.445,
    "flextopo-guaranteed": 1.0,
    "flextopo-best-effort": 1.0,
}
"""Topology hit rates that the paper reports; it does not say which of the two modes it ran."""

PAPER_SEARCH_TIME = "32.8-33.9"
"""Candidate-search time that the paper saves, in %; it does not say against what."""

ONE: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
TWO: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0)
FOUR: tuple[float, ...] = (0.0, 0.0, 1.0, 0.0)
EIGHT: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)
HALF: tuple[float, ...] = (0.5, 0.5, 0.0, 0.0)
ALL: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)

MIXES = {"default": (ONE, TWO), "even": (HALF, HALF)}
"""Mixes of batch pods and preemptors in the headline: the default, and both sizes alike."""

CLOSED_FORMS = {"1 card": (ONE, 1.0), "2 cards": (TWO, 3 / 7), "4 cards": (FOUR, 1 / 35)}
"""Preemptors on nodes full of eight 1-card pods: mix, and probability that a blind choice hits."""

CURVE = tuple(i / 10 for i in range(11))
"""Shares of 2-card preemptors, the rest 1-card, in the figure."""

TIMED_DECISIONS = 6


class Run(NamedTuple):
    """One selector on one configuration."""

    config: PaperConfig
    selector: str


class Job(NamedTuple):
    """A run, and the table and row that it belongs to; several rows may show one run."""

    table: str
    row: str
    run: Run


def jobs(plan: Plan) -> list[Job]:
    """Return every row of every table."""
    base = PaperConfig(kind=plan.kinds[0], preemptions=plan.preemptions, seed=plan.seed)
    short = replace(base, preemptions=plan.preemptions // 5)
    headline = [
        Job("headline", mix, Run(replace(base, kind=k, batch_mix=b, preemptor_mix=p), selector))
        for k in plan.kinds
        for mix, (b, p) in MIXES.items()
        for selector in SELECTORS
    ]
    closed = [
        Job("closed", row, Run(replace(base, preemptor_mix=mix, online_share=0.0), "godel"))
        for row, (mix, _) in CLOSED_FORMS.items()
    ]
    sensitivity = [
        Job(table, row, Run(replace(short, **changes), selector))
        for table, row, changes in variations()
        for selector in ("godel", "flextopo-guaranteed", "flextopo-best-effort")
    ]
    curve = [
        Job("curve", f"{share:g}", Run(replace(short, batch_mix=b, preemptor_mix=p), selector))
        for b in (ONE, HALF)
        for share in CURVE
        for p in [(1 - share, share, 0.0, 0.0)]
        for selector in ("godel", "flextopo-guaranteed")
        if selector == "godel" or share in (0, 0.5, 1)
    ]
    seeds = [
        Job("seeds", words, Run(replace(base, seed=seed, redraw_starts=redraw), "godel"))
        for words, redraw in (("drawn anew", True), ("drawn once", False))
        for seed in range(plan.seed, plan.seed + SEEDS)
    ]
    return headline + closed + seeds + sensitivity + curve


def variations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the sensitivity's table, row and what differs there from the default."""
    for batch, preemptor in (
        (ONE, ONE), (ONE, TWO), (ONE, FOUR), (ONE, EIGHT), (ONE, HALF), (HALF, TWO), (HALF, HALF),
        (TWO, TWO), (TWO, FOUR), (ONE, ALL), (ALL, ALL),
    ):  # fmt: skip
        row = f"batch {say(batch)}; preemptors {say(preemptor)}"
        yield "mix", row, {"batch_mix": batch, "preemptor_mix": preemptor}
    for fill in (1.0, 0.98, 0.95):
        yield "fill level", f"{fill:.0%}", {"fill": fill}
    for last in ("unused", "free", "used"):
        yield "last core of each NUMA node", last, {"last_core": last}
    for share in (0.0, 0.25, 0.5, 0.75):
        yield "share of online pods", f"{share:.0%}", {"online_share": share}


def say(mix: tuple[float, ...]) -> str:
    """Return the sizes of a mix in words."""
    sizes = [str(size) for size, share in zip(SIZES, mix, strict=True) if share]
    return "/".join(sizes) + (" card" if sizes == ["1"] else " cards")


def rates_of(run: Run) -> dict[str, Any]:
    """Play a run and return its rates with intervals, and its tally."""
    tally = PaperExperiment(*run).count()
    rate = tally.hits / tally.preemptions if tally.preemptions else None
    interval = estimate(tally.blocks)
    return {
        "hit_rate": rate,
        "low": None if math.isnan(interval.low) else interval.low,
        "high": None if math.isnan(interval.high) else interval.high,
        **tally.as_dict(),
    }


def reproduce(
    plan: Plan, workers: int, done: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Run a plan.

    Args:
        plan: what to run.
        workers: processes; no number but the measured times depends on it.
        done: is told how many of how many runs are over.

    Returns:
        `{"plan": ..., "runs": [one row a job], "search": [one row a kind and mix]}`.
    """
    todo = jobs(plan)
    runs = list(dict.fromkeys(job.run for job in todo))
    played: dict[Run, dict[str, Any]] = {}
    for i, row in run_jobs(rates_of, runs, workers):
        played[runs[i]] = row
        if done is not None:
            done(len(played), len(runs))
    rows = [
        {
            "table": job.table,
            "row": job.row,
            "selector": job.run.selector,
            **played[job.run],
            "config": asdict(job.run.config),
        }
        for job in todo
    ]
    searches = [
        {"kind": kind, "mix": mix, **time_search(plan, kind, *mixes)}
        for kind in plan.kinds
        for mix, mixes in MIXES.items()
    ]
    return {"plan": {**asdict(plan), "kinds": list(plan.kinds)}, "runs": rows, "search": searches}


def time_search(
    plan: Plan, kind: str, batch_mix: tuple[float, ...], preemptor_mix: tuple[float, ...]
) -> dict[str, Any]:
    """Time algorithm 1 against full enumeration on the same decisions, turn by turn.

    Returns:
        `smallest_s` and `full_s`, (D,) seconds a decision over all nodes; `smallest_sets` and
        `full_sets`, how many victim sets they try.
    """
    config = PaperConfig(
        kind=kind,
        preemptions=max(TIMED_DECISIONS, plan.preemptions // 10),
        batch_mix=batch_mix,
        preemptor_mix=preemptor_mix,
        seed=plan.seed,
    )
    experiment = PaperExperiment(config, "flextopo-guaranteed")
    every = config.preemptions // TIMED_DECISIONS
    out: dict[str, Any] = {"smallest_s": [], "full_s": [], "smallest_sets": 0, "full_sets": 0}
    for number, (preemptor, *_) in enumerate(experiment.decisions()):
        turn, rest = divmod(number, every)
        if rest or turn >= TIMED_DECISIONS:
            continue
        spent = np.zeros(2)
        for node in range(config.servers):
            for full in (False, True) if (turn + node) % 2 else (True, False):
                began = perf_counter()
                search_node(experiment.pods.state, node, preemptor, full)
                spent[int(full)] += perf_counter() - began
            num_residents, sets_tried, found = search_node(
                experiment.pods.state, node, preemptor, False
            )
            out["smallest_sets"] += sets_tried
            # Both begin by asking whether evicting all is enough.
            out["full_sets"] += 1 + (2**num_residents if found else 0)
        out["smallest_s"].append(float(spent[0]))
        out["full_s"].append(float(spent[1]))
    return out


def search_node(
    state: ClusterState, node: int, preemptor: Pod, full: bool
) -> tuple[int, int, list[list[int]]]:
    """Search a node's victim sets for a guaranteed preemptor.

    Returns:
        How many pods may be evicted, how many sets were tried, and the sets found, as rows.
    """
    view = NodeView(state, node)
    residents = by_importance(view.evictable(preemptor))
    tried = 0

    def fits(gone: Sequence[Resident]) -> bool:
        nonlocal tried
        tried += 1
        return view.fits(preemptor, gone, True)

    sets = smallest_sets(residents, fits, full=full)
    return len(residents), tried, [[victim.index for victim in victims] for victims in sets]
