"""Compare selectors on the same event tapes, paired by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextopo.baselines.exact import Exact
from flextopo.baselines.exact_gang import load_solver
from flextopo.baselines.loading import PickledSelector, describe
from flextopo.baselines.policies import OracleLookahead
from flextopo.baselines.registry import BUILT_IN, SELECTORS, known_selectors, selector_name
from flextopo.baselines.rollout import Lookahead, Rollout
from flextopo.baselines.wait_limit import WaitLimit
from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.simulation.metrics import METRICS, episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.model import ISLANDS, Fleet
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.generator import generate_tape
from flextopo.cluster.workload.seeds import SPLITS, take
from flextopo.cluster.workload.tape import Tape
from flextopo.cluster.workload.traces import (
    ServiceRates,
    TraceReport,
    read_jobs,
    read_services,
    tape_from_traces,
)
from flextopo.policies.selectors import find_selector
from flextopo.train.blame import blaming
from flextopo.train.config import ComparisonConfig
from flextopo.train.recipes import find_recipes, recipe_difference
from flextopo.train.scale_out import run_jobs
from flextopo.train.statistics import estimate, interquartile_mean, paired_difference

if TYPE_CHECKING:
    from flextopo.baselines.loading import Named

REFERENCE = "greedy-cost"
"""The selector that paired differences are taken from, where it is among those compared."""


def check(config: ComparisonConfig) -> Fleet:
    """Load everything that the comparison names once, so that mistakes show before it starts.

    Raises:
        FlextopoError: whatever is wrong with servers, selectors or traces.
    """
    gangs = config.services is None and config.workload.gang_share > 0
    for given in config.named.values():
        if isinstance(find_selector(given, 0), Exact) and gangs:
            load_solver()
    fleet = find_fleet(config.servers)
    if config.services is not None:
        make_tape(config, fleet, SPLITS[config.split][0])
    return fleet


def find_fleet(servers: str | Fleet) -> Fleet:
    """Return the servers of a cluster, given as text or themselves."""
    if isinstance(servers, Fleet):
        return servers
    words = (word.strip().removesuffix(ISLANDS) for word in re.split("[,*@]", servers))
    return _read_fleet(servers, *map(_state_of, words))


def servers_text(servers: str | Fleet) -> str:
    """Return servers as people write them; those of a `Fleet` by the names of its models."""
    if isinstance(servers, str):
        return servers
    names = [servers.models[model].name for model in servers.node_model]
    return ",".join(f"{len(list(run))}*{name}" for name, run in groupby(names))


def _state_of(path: str) -> tuple[str, int, int]:
    """Return what tells a file, as it is now, from others and from what it was; of none, its place."""
    place = Path(path).absolute()
    try:
        found = place.stat()
    except (OSError, ValueError):  # no file, or a word that cannot be the name of one
        return str(place), 0, 0
    return str(place), found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _read_fleet(servers: str, *files: tuple[str, int, int]) -> Fleet:
    return parse_servers(servers)


def read_traces(services: str, batch: str) -> tuple[ServiceRates, BatchJobs]:
    """Read two traces, once in a process as long as the files stay as they are."""
    return _read_traces(services, batch, _state_of(services), _state_of(batch))


@lru_cache(maxsize=2)
def _read_traces(
    services: str, batch: str, *files: tuple[str, int, int]
) -> tuple[ServiceRates, BatchJobs]:
    return read_services(services), read_jobs(batch)


def make_tape(config: ComparisonConfig, fleet: Fleet, seed: int) -> tuple[Tape, str]:
    """Return the tape of a seed and a sentence on where it comes from."""
    shape = {"gpus_per_server": fleet.gpus_per_server, "cores_per_gpu": fleet.cores_per_gpu}
    if config.services is None or config.batch is None:
        tape = generate_tape(config.workload, fleet.num_gpus, seed, **shape)
        cut = f"; seed {seed}: {tape.notes}" if tape.notes else ""
        return tape, f"generated workload{cut}"
    tape, report = play_traces(config, fleet, seed)
    return tape, f"seed {seed}: {report}"


def play_traces(config: ComparisonConfig, fleet: Fleet, seed: int) -> tuple[Tape, TraceReport]:
    """Return the tape of a seed from the traces, and what was done to them.

    Raises:
        WorkloadError: they cannot be read or played, or there are none.
    """
    if config.services is None or config.batch is None:
        raise WorkloadError("no traces; legal: services and batch together")
    services, jobs = read_traces(config.services, config.batch)
    shape = {"gpus_per_server": fleet.gpus_per_server, "cores_per_gpu": fleet.cores_per_gpu}
    return tape_from_traces(services, jobs, config.workload, fleet.num_gpus, seed, **shape)


def play_tape(config: ComparisonConfig, name: str, seed: int) -> dict[str, float]:
    """Play one tape with one selector and return its metrics.

    Raises:
        FlextopoError: the selector fails, or answers what is not legal.
    """
    sim, selector = open_episode(config, name, seed)
    with blaming(selector, name, seed):
        sim.play(selector)
    return episode_metrics(sim)


def open_episode(
    config: ComparisonConfig, name: str, seed: int
) -> tuple[Simulator, VictimSelector]:
    """Return a simulation of the tape of a seed, and the selector that plays on it."""
    fleet = find_fleet(config.servers)
    selector = open_selector(config, name, seed)
    tape, _ = make_tape(config, fleet, seed)
    return Simulator(tape, fleet, selector.filter, config.scenario), selector


def open_selector(config: ComparisonConfig, name: str, seed: int) -> VictimSelector:
    """Return the selector that plays the tape of a seed."""
    return expecting(find_selector(config.named.get(name, name), seed), config.workload)


def expecting(selector: VictimSelector, workload: WorkloadConfig) -> VictimSelector:
    """Return a selector whose imagined futures come from a workload, where it has any.

    Those know the model of what they play on, not the tape.
    """
    if isinstance(selector, WaitLimit):
        return replace(selector, selector=expecting(selector.selector, workload))
    if isinstance(selector, Rollout | Lookahead):
        return replace(selector, workload=workload, base=expecting(selector.base, workload))
    if isinstance(selector, OracleLookahead):
        return replace(selector, base=expecting(selector.base, workload))
    return selector


def model_of(selector: VictimSelector) -> WorkloadConfig | None:
    """Return the workload that a selector, or its base, expects; None if it expects none."""
    if isinstance(selector, WaitLimit):
        return model_of(selector.selector)
    if isinstance(selector, Rollout | Lookahead):
        return selector.workload
    return model_of(selector.base) if isinstance(selector, OracleLookahead) else None


Scores = dict[str, dict[int, dict[str, float]]]
"""Selector to seed to metric to value."""


def play_all(
    config: ComparisonConfig,
    workers: int,
    done: Callable[[int, int], None] | None = None,
    ray: str | None = None,
) -> tuple[Scores, bool]:
    """Play every selector on every seed.

    Args:
        config: what to compare.
        workers: processes; 1 plays in this one. The numbers do not depend on it.
        done: is told how many of how many games are over.
        ray: where to play; see `run_jobs`.

    Returns:
        The scores so far, and whether an interrupt (SIGINT) cut it short. Seeds are played one
        after the other, so that what is there can be compared.
    """
    sent = config if workers == 1 and ray is None else to_send(config)
    jobs = [
        (sent, name, seed)
        for seed in take(SPLITS[config.split], config.seeds)
        for name in config.names
        if seed in config.seeds_of(name)
    ]
    scores: Scores = {name: {} for name in config.names}
    count = 0
    try:
        for i, metrics in run_jobs(_play_job, jobs, workers, ray):
            _, name, seed = jobs[i]
            scores[name][seed] = metrics
            count += 1
            if done is not None:
                done(count, len(jobs))
    except KeyboardInterrupt:
        return _complete_seeds(config, scores), True
    return scores, False


def to_send(config: ComparisonConfig) -> ComparisonConfig:
    """Return the configuration as other processes understand it, which know no objects of this one.

    Raises:
        FlextopoError: a selector cannot be pickled.
    """

    def send(given: Named) -> Named:
        source = SELECTORS[given].source if isinstance(given, str) and given in SELECTORS else given
        return given if isinstance(source, str) else PickledSelector.of(source)

    return replace(
        config,
        selectors=tuple(map(send, config.selectors)),
        policies=tuple(map(send, config.policies)),
    )


def _play_job(job: tuple[ComparisonConfig, str, int]) -> dict[str, float]:
    return play_tape(*job)


def _complete_seeds(config: ComparisonConfig, scores: Scores) -> Scores:
    """Keep the seeds that every selector that should has played."""
    kept = [
        seed
        for seed in take(SPLITS[config.split], config.seeds)
        if all(seed in scores[name] for name in config.names if seed in config.seeds_of(name))
    ]
    return {name: {s: m for s, m in found.items() if s in kept} for name, found in scores.items()}


def summarise(config: ComparisonConfig, scores: Scores, **about: Any) -> dict[str, Any]:
    """Return the results as they are saved: means, intervals, per-seed values, paired differences.

    Returns:
        `{"selectors": {name: {metric: {"mean", "low", "high", "per_seed"}}}, "iqm": {name:
        {"mean", "low", "high"}} of the weighted loss, "paired": {name: as `PairedDifference`},
        "recipes": {name: as `recipe_difference`} where policies differ in their training seed alone,
        "config": ...}`; NaN is None.
    """
    out: dict[str, Any] = {
        "selectors": {},
        "iqm": {},
        "paired": {},
        "config": {**plain(config), **about},
    }
    for name, found in scores.items():
        seeds = sorted(found)
        row = out["selectors"][name] = {}
        for metric in METRICS:
            values = [found[seed][metric] for seed in seeds]
            row[metric] = {
                **{key: _number(value) for key, value in asdict(estimate(values)).items()},
                "per_seed": [_number(value) for value in values],
            }
        losses = [found[seed]["weighted_loss"] for seed in seeds]
        middle = asdict(estimate(losses, interquartile_mean))
        out["iqm"][name] = {key: _number(value) for key, value in middle.items()}
    reference = scores.get(REFERENCE, {})
    for name, found in scores.items():
        both = sorted(set(found) & set(reference))
        if name != REFERENCE and both:
            losses = [found[seed]["weighted_loss"] for seed in both]
            other = [reference[seed]["weighted_loss"] for seed in both]
            out["paired"][name] = paired_difference(losses, other).as_dict()
    recipes = _recipes(config, scores)
    if recipes:
        out["recipes"] = recipes
    out["config"]["reference"] = REFERENCE
    out["config"]["seeds_used"] = {name: sorted(found) for name, found in scores.items()}
    return out


def _recipes(config: ComparisonConfig, scores: Scores) -> dict[str, dict[str, Any]]:
    losses = {
        name: {seed: metrics["weighted_loss"] for seed, metrics in found.items()}
        for name, found in scores.items()
    }
    given = {name: given for name, given in config.named.items() if name in losses}
    reference = losses.get(REFERENCE, {})
    found = {
        name: recipe_difference(losses, reference, members)
        for name, members in find_recipes(given).items()
    }
    return {name: row for name, row in found.items() if row is not None}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def plain(config: ComparisonConfig) -> dict[str, Any]:
    """Return the configuration as JSON can hold it: names, and where what is not built in comes from."""
    found: dict[str, Any] = {spec.name: getattr(config, spec.name) for spec in fields(config)}
    found["servers"] = servers_text(config.servers)
    found["selectors"] = [selector_name(given) for given in config.selectors]
    found["policies"] = [selector_name(given) for given in config.policies]
    found |= {name: asdict(found[name]) for name in ("workload", "scenario")}
    sources = {}
    for name, given in config.named.items():
        known = known_selectors().get(name) if isinstance(given, str) else None
        source = describe(known.source if known else given)
        if name not in BUILT_IN and source != name:
            sources[name] = source
    return found | ({"sources": sources} if sources else {})
