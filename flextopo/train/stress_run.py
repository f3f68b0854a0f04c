"""Play every perturbation with every selector on the same tapes, and put the differences in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flextopo.baselines.registry import looks_ahead
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.seeds import SPLITS, take
from flextopo.cluster.workload.tape import Tape
from flextopo.train import stress_views, stress_world
from flextopo.train.blame import blaming
from flextopo.train.compare import (
    REFERENCE,
    check,
    find_fleet,
    make_tape,
    open_selector,
    plain,
    servers_text,
    to_send,
)
from flextopo.train.config import ComparisonConfig
from flextopo.train.results import overlap_note, read_saved, stretches, versions
from flextopo.train.scale_out import run_jobs
from flextopo.train.statistics import MIN_SEEDS, paired_difference
from flextopo.train.stress import BASE, GENERATED, PERTURBATIONS, chosen
from flextopo.train.trace_seeds import count_stretches

Job = tuple[ComparisonConfig, str, str, int]
Played = dict[tuple[str, str, int], dict[str, float]]
"""Perturbation, selector and seed to loss, terms and fallbacks."""

WRONG_STATES = ("ShuffledPlacements", "WrongCheckpoints")
"""Views that show another state than the simulation's."""

SAVED = ("weighted_loss", *LOSS_TERMS, "fallbacks")


def applies(perturbation: str, selector: str) -> bool:
    """Say whether a selector can be disturbed so: one that looks ahead does so on the true state."""
    ahead = looks_ahead(selector)
    return not (ahead and PERTURBATIONS[perturbation].view in WRONG_STATES)


def play_perturbed(job: Job) -> dict[str, float]:
    """Play one tape with one selector under one perturbation.

    Args:
        job: the comparison as it is, the perturbation, the selector and the seed.

    Returns:
        The weighted loss, its terms, and how many answers were not legal on the true state.

    Raises:
        FlextopoError: the selector fails, or answers what is not legal.
    """
    simulator, selector = open_perturbed(job)
    with blaming_perturbed(selector, job):
        simulator.play(selector)
    metrics = episode_metrics(simulator) | {"fallbacks": getattr(selector, "fallbacks", 0)}
    return {name: float(metrics[name]) for name in SAVED}


def open_perturbed(job: Job) -> tuple[Simulator, VictimSelector]:
    """Return a simulation of the tape of a seed under a perturbation, and the selector that plays it."""
    config, perturbation, name, seed = job
    config, tape, fleet = make_world(config, perturbation, seed)
    selector = misled(open_selector(config, name, seed), perturbation, seed)
    return Simulator(tape, fleet, selector.filter, config.scenario), selector


def misled(selector: VictimSelector, perturbation: str, seed: int) -> VictimSelector:
    """Return a selector that sees what a perturbation shows it; itself where that is the truth."""
    view = PERTURBATIONS[perturbation].view
    found: VictimSelector = getattr(stress_views, view)(selector, seed) if view else selector
    return found


def blaming_perturbed(selector: VictimSelector, job: Job) -> AbstractContextManager[None]:
    """Return what tells a mistake of the selector, be it behind a wrong view; see `blaming`."""
    _, perturbation, name, seed = job
    decides = selector.inner if isinstance(selector, stress_views.Disturbed) else selector
    return blaming(decides, name, seed, "" if perturbation == BASE else perturbation)


def make_world(
    config: ComparisonConfig, perturbation: str, seed: int
) -> tuple[ComparisonConfig, Tape, Fleet]:
    """Return a comparison as a perturbation has it, the tape of a seed, and the servers it is for."""
    how = PERTURBATIONS[perturbation]
    config = how.config(config)
    fleet = find_fleet(config.servers)
    tape, _ = make_tape(config, fleet, seed)
    if how.world:
        tape, fleet = getattr(stress_world, how.world)(tape, fleet, seed)
    return config, tape, fleet


def run_stress(
    config: ComparisonConfig,
    names: Sequence[str] = (),
    workers: int = 1,
    done: Callable[[int, int], None] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Play perturbations of a comparison.

    Args:
        config: the comparison, with the reference among its selectors.
        names: perturbations; none = all that change something here. The comparison as it is always comes with them.
        workers: processes; 1 plays in this one. The numbers do not depend on it.
        done: is told how many of how many games are over.
        begin: is called when all is found to be right, before the first game.

    Returns:
        `{"stress": {perturbation: {"about", "servers", "selectors": {name: {metric: a value a
        seed}}, "paired": {name: as `PairedDifference`}}}, "config": ...}`. An interrupt keeps the
        perturbations that were finished.

    Raises:
        FlextopoError: whatever is wrong with servers, selectors or traces, the reference is not there, or
            a perturbation that is named changes nothing of traces.
        KeyboardInterrupt: no perturbation was finished.
    """
    if REFERENCE not in config.names:
        raise FlextopoError(f"selectors {', '.join(config.names)}; legal: with {REFERENCE}")
    kept = chosen(names)
    if config.services is not None and (odd := [name for name in names if name in GENERATED]):
        raise FlextopoError(
            f"perturbation {odd[0]!r} of traces changes nothing; legal: all but {', '.join(GENERATED)}"
        )
    if not names:  # rtx4090 in the place of rtx4090 is no perturbation
        kept = [name for name in kept if name == BASE or _changes(config, name)]
    for name in kept:
        check(PERTURBATIONS[name].config(config))
    cut = count_stretches(config, find_fleet(config.servers))
    begin()
    sent = config if workers == 1 else to_send(config)
    seeds = take(SPLITS[config.split], config.seeds)
    jobs = [
        (sent, perturbation, selector, seed)
        for perturbation in kept
        for seed in seeds
        for selector in config.names
        if applies(perturbation, selector)
    ]
    played: Played = {}
    interrupted = False
    try:
        for i, found in run_jobs(play_perturbed, jobs, workers):
            played[jobs[i][1:]] = found
            if done is not None:
                done(len(played), len(jobs))
    except KeyboardInterrupt:
        interrupted = True
        kept = [n for n in kept if all(job[1:] in played for job in jobs if job[1] == n)]
        if not kept:
            raise KeyboardInterrupt("no perturbation was finished") from None
    about = {"reference": REFERENCE, "seeds_used": seeds, "versions": versions()}
    if cut is not None:
        about["stretches"] = cut
    return {
        "stress": {name: _summarise(config, played, name, seeds) for name in kept},
        "config": {**plain(config), **about, "interrupted": interrupted},
    }


def _changes(config: ComparisonConfig, name: str) -> bool:
    how = PERTURBATIONS[name]
    if how.generated and config.services is not None:
        return False
    if how.world == "without_a_server" and find_fleet(config.servers).num_nodes < 2:
        return False
    return bool(how.world or how.view) or how.config(config) != config


def _summarise(
    config: ComparisonConfig, played: Played, perturbation: str, seeds: Sequence[int]
) -> dict[str, Any]:
    how = PERTURBATIONS[perturbation]
    found = {
        name: {
            metric: [played[perturbation, name, seed][metric] for seed in seeds] for metric in SAVED
        }
        for name in config.names
        if applies(perturbation, name)
    }
    reference = found[REFERENCE]["weighted_loss"]
    return {
        "about": how.about,
        "servers": servers_text(how.config(config).servers),
        "selectors": found,
        "paired": {
            name: paired_difference(row["weighted_loss"], reference).as_dict()
            for name, row in found.items()
            if name != REFERENCE
        },
    }


def load_stress(path: Path) -> dict[str, Any]:
    """Read what `flextopo stress` saved.

    Raises:
        FlextopoError: it is missing or none.
    """
    what = "no stress test; legal: what `flextopo stress` writes"
    return dict(read_saved(path, what, stress=dict))


def stress_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the one table: headings, then a row a perturbation; a dash where it does not apply."""
    names = [name for name in next(iter(results["stress"].values()))["paired"]]
    out = [["perturbation", f"{REFERENCE}\nloss %", *names]]
    for perturbation, row in results["stress"].items():
        losses = row["selectors"][REFERENCE]["weighted_loss"]
        cells = [_cell(row["paired"].get(name)) for name in names]
        out.append([perturbation, f"{100 * sum(losses) / len(losses):.2f}", *cells])
    return out


def _cell(row: dict[str, float] | None) -> str:
    if row is None:
        return "-"
    return f"{100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"


def stress_notes(results: dict[str, Any]) -> list[str]:
    """Return what the table's cells are, and what not to make of them, a line each."""
    seeds = results["config"]["seeds"]
    cells = sum(len(row["paired"]) for row in results["stress"].values())
    notes = [
        f"cells: points of weighted loss above {REFERENCE} on the same {seeds} tapes [95 % interval]",
        f"of {cells} such intervals about {0.05 * cells:.1f} leave out 0 by chance alone",
    ]
    if seeds < MIN_SEEDS:
        notes.append(f"no claim: too few seeds; legal for one: {MIN_SEEDS} or more")
    if seeds > stretches(results):
        notes.append(overlap_note(results, seeds))
    if results["config"].get("services"):
        notes.append(
            f"on traces without {', '.join(GENERATED)}, which change what the generator draws"
        )
    fallen = {
        f"{name}, {selector}": int(sum(row["fallbacks"]))
        for name, found in results["stress"].items()
        for selector, row in found["selectors"].items()
        if sum(row["fallbacks"])
    }
    if fallen:
        said = "; ".join(f"{where}: {count}" for where, count in fallen.items())
        notes.append(f"answers not legal on the true state, replaced by the cheapest: {said}")
    return notes
