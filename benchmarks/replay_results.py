"""Play a share of the saved comparisons again, and fail where a number differs.

`replay_results.py` takes `docs/results/*.json` (or the files it is given), plays a tenth of the seeds
of each with the selectors that do not look ahead, and compares every metric with what was saved, to
the last bit. `--part` says which tenth, so that ten nights play all. Comparisons on recorded demand
are played where their traces are (`--traces`), and left out with a line elsewhere; after ten minutes
with one file the next one begins, and a line says what was left.

Kernels compute the same bits on every processor. A network's scores go through numpy's matrix
product, whose last bit may differ between processors: where two candidates are that close, a policy
may decide otherwise, and the lines then name a policy and no rule.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flextopo.baselines.registry import looks_ahead
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import LossWeights, Scenario
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import SPLITS, take
from flextopo.train.compare import play_tape
from flextopo.train.config import ComparisonConfig
from flextopo.train.stress_run import play_perturbed

ROOT = Path(__file__).parents[1]


class Game(NamedTuple):
    """A saved game: what it is called, how to play it again, and the metrics it had."""

    name: str
    play: Callable[[], dict[str, float]]
    saved: dict[str, float | None]


def saved_config(saved: dict[str, Any], traces: Path) -> ComparisonConfig:
    """Return the configuration that a file of results was made with.

    Raises:
        FlextopoError: it names what today's package does not have.
    """
    known = {spec.name for spec in fields(ComparisonConfig)}
    given = {key: _tuples(value) for key, value in saved.items() if key in known}
    weights = LossWeights(**saved["scenario"]["weights"])
    given["scenario"] = Scenario(**{**saved["scenario"], "weights": weights})
    try:
        given["workload"] = WorkloadConfig(**_tuples(saved["workload"]))
    except TypeError as error:
        raise FlextopoError(f"workload: {error}; legal: fields of today's") from None
    config = ComparisonConfig(**given)
    if config.services is None or config.batch is None:
        return config
    services, batch = Path(config.services).name, Path(config.batch).name
    return replace(
        config, services=str(traces / "online" / services), batch=str(traces / "batch" / batch)
    )


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def choose(seeds: list[int], share: float, part: int) -> list[int]:
    """Return every tenth seed for a share of 0.1, from entry `part` on; one at least."""
    step = max(1, round(1 / share))
    return seeds[part % min(step, len(seeds)) :: step]


def games(path: Path, options: argparse.Namespace) -> Iterator[Game]:
    """Yield the games of a file that are to be played again.

    Raises:
        FlextopoError: none is, and why.
    """
    saved = json.loads(path.read_text())
    if not isinstance(saved, dict) or not {"selectors", "stress"} & set(saved):
        raise FlextopoError("no comparison")
    config = saved_config(saved["config"], options.traces)
    if config.services is not None and not Path(config.services).exists():
        raise FlextopoError(f"no {Path(config.services).name} in {options.traces}")
    for name, metrics in saved.get("selectors", {}).items():
        seeds = saved["config"]["seeds_used"][name]
        for seed in choose(seeds, options.share, options.part):
            if options.all or not looks_ahead(name):
                found = {key: row["per_seed"][seeds.index(seed)] for key, row in metrics.items()}
                yield Game(f"{name}, seed {seed}", partial(play_tape, config, name, seed), found)
    seeds = take(SPLITS[config.split], config.seeds)
    for perturbation, world in saved.get("stress", {}).items():
        for seed in choose(seeds, options.share, options.part):
            for name, metrics in world["selectors"].items():
                job = (config, perturbation, name, seed)
                found = {key: values[seeds.index(seed)] for key, values in metrics.items()}
                yield Game(
                    f"{perturbation}, {name}, seed {seed}", partial(play_perturbed, job), found
                )


def differences(game: Game) -> list[str]:
    """Play a game again and return a line for each metric that is another one now."""
    now = {key: None if math.isnan(value) else value for key, value in game.play().items()}
    return [
        f"{game.name}, {metric}: saved {before!r}, now {now.get(metric)!r}"
        for metric, before in game.saved.items()
        if now.get(metric) != before
    ]


def read_options(words: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: docs/results/*.json")
    parser.add_argument("--share", type=float, default=0.1, help="of the seeds; default 0.1")
    parser.add_argument("--part", type=int, default=0, help="which share, counted round")
    parser.add_argument("--all", action="store_true", help="what looks ahead, too")
    parser.add_argument("--minutes", type=float, default=10, help="for a file; default 10")
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "data")
    options = parser.parse_args(words)
    if not 0 < options.share <= 1:
        parser.error(f"--share {options.share:g}; legal: above 0, up to 1")
    return options


def main(words: list[str] | None = None) -> int:
    """Print a line a file, and each number that differs; the status is 1 if one does."""
    options = read_options(words)
    differ = played = 0
    for path in options.files or sorted((ROOT / "docs" / "results").glob("*.json")):
        begin, count, late, said = time.perf_counter(), 0, 0, list[str]()
        try:
            for game in games(path, options):
                if time.perf_counter() - begin > 60 * options.minutes:
                    late += 1
                    continue
                said += differences(game)
                count += 1
        except FlextopoError as error:
            print(f"{path.name}: left out: {error}", flush=True)
            continue
        seconds = time.perf_counter() - begin
        rest = f", {late} left for want of time" if late else ""
        print(
            f"{path.name}: {count} games, {len(said)} differences, {seconds:.0f} s{rest}",
            flush=True,
        )
        print("".join(f"  {line}\n" for line in said), end="", flush=True)
        differ, played = differ + len(said), played + count
    print(f"{played} games played again, {differ} differences")
    return 1 if differ or not played else 0


if __name__ == "__main__":
    sys.exit(main())
