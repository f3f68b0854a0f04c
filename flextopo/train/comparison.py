"""A comparison that was played: its results as tables, data frame and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.workload.seeds import SPLITS, take
from flextopo.train import results as saved
from flextopo.train.compare import REFERENCE, check, make_tape, play_all, summarise
from flextopo.train.config import ComparisonConfig
from flextopo.train.differences import flip_lines, nobody_preempted
from flextopo.train.tables import format_table
from flextopo.train.trace_seeds import count_stretches, describe_seeds, seed_rows

FLIPS = "order changes where a term weighs so many times as much, 0.1 to 10 times [95 % interval]:"


SCALING = (
    "load: GPU-hours that batch jobs ask for, by those of the cluster; online demand is scaled to a peak "
    "of {share:g} of all GPUs on each seed"
)
NOTHING = (
    "nothing to compare: no selector preempted a pod on any of {seeds} seeds; "
    "higher demand (--peak), more jobs (--load) or a longer trace make them differ"
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` returns.

    Attributes:
        results: as `save` writes them to compare.json: `results["selectors"][name][metric]` has
            `mean`, `low`, `high` and `per_seed`; `results["paired"]` the differences from the reference
            on the same tapes.
        about: a line on servers and demand.
    """

    results: dict[str, Any]
    about: str

    def __str__(self) -> str:
        return self.summary()

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt cut it short; what is there is of whole seeds."""
        return bool(self.results["config"]["interrupted"])

    def summary(self) -> str:
        """Return the tables that `flextopo compare` prints."""
        results, config = self.results, self.results["config"]
        parts = [self.about]
        if tapes := config.get("tapes"):
            share = config["workload"]["online_peak_share"]
            parts += ["", "what each seed plays of the traces:", format_table(seed_rows(tapes))]
            parts.append(SCALING.format(share=share))
        if weights := saved.other_weights(results):
            parts.append(f"weights of the loss: {weights}")
        for table in saved.tables(results):
            parts += ["", format_table(table)]
        parts += self._differences()
        parts += ["", "cells: mean over seeds ± half of the 95 % bootstrap interval"]
        if config["oracle_seeds"]:
            played = f"{config['oracle_seeds']} of {config['seeds']} seeds"
            parts.append(f"selectors that look ahead played {played}")
        return "\n".join(parts)

    def _differences(self) -> list[str]:
        """Return the lines that compare: differences from the reference, and where orders change."""
        results = self.results
        if nobody_preempted(results):
            return ["", NOTHING.format(seeds=results["config"]["seeds"])]
        parts = []
        if results["paired"]:
            parts += ["", f"against {REFERENCE} on the same tapes (weighted loss):"]
            parts.append(format_table(saved.paired_rows(results)))
            parts += saved.paired_notes(results)
        if flips := flip_lines(results):
            parts += ["", FLIPS, *flips]
        return parts

    def to_frame(self) -> Any:
        """Return a pandas data frame: a row for each selector and seed, a column for each metric.

        Raises:
            FlextopoError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise FlextopoError(
                "a data frame needs pandas, which is not installed; legal: pip install pandas"
            ) from None
        played = self.results["config"]["seeds_used"]
        rows = [
            {"selector": name, "seed": seed}
            | {metric: cell["per_seed"][i] for metric, cell in metrics.items()}
            for name, metrics in self.results["selectors"].items()
            for i, seed in enumerate(played[name])
        ]
        metrics = next(iter(self.results["selectors"].values()))
        return pandas.DataFrame(rows).astype(dict.fromkeys(metrics, "float64"))

    def save(self, folder: str | Path) -> list[Path]:
        """Write compare.json and compare.npz, as the command does; the figure where matplotlib is.

        Returns:
            The files.

        Raises:
            FlextopoError: a file cannot be written.
        """
        paths = [Path(folder) / f"compare.{kind}" for kind in ("json", "npz", "png")]
        saved.save_results(self.results, paths[0])
        saved.save_scores(self.results, paths[1])
        if find_spec("matplotlib") is None:
            return paths[:2]
        saved.draw_comparison(self.results, paths[2])
        return paths


def run_comparison(
    config: ComparisonConfig,
    workers: int = 1,
    done: Callable[[int, int], None] | None = None,
    ray: str | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Comparison:
    """Play a comparison.

    Args:
        config: what to compare.
        workers: processes; 1 plays in this one. The numbers do not depend on it.
        done: is told how many of how many games are over.
        ray: where to play; see `run_jobs`.
        begin: is called when all is found to be right, before the first game.

    Raises:
        FlextopoError: whatever is wrong with servers, selectors or traces.
        KeyboardInterrupt: no seed was finished.
    """
    fleet = check(config)
    _, source = make_tape(config, fleet, config.seeds_of(config.names[0])[0])
    tapes = describe_seeds(config, fleet, take(SPLITS[config.split], config.seeds))
    begin()
    scores, interrupted = play_all(config, workers, done, ray)
    if not any(scores.values()):
        raise KeyboardInterrupt("no seed was finished")
    about: dict[str, Any] = {"tapes": tapes} if tapes else {}
    if (stretches := count_stretches(config, fleet)) is not None:
        about["stretches"] = stretches
    results = summarise(
        config, scores, versions=saved.versions(), source=source, interrupted=interrupted, **about
    )
    return Comparison(results, f"{fleet.num_nodes} servers, {fleet.num_gpus} GPUs; {source}")
