"""What a report is made of: results files, their names on the page, and numbers over all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import LossWeights, Scenario
from flextopo.cluster.topology.servers import parse_servers
from flextopo.train.differences import common_values
from flextopo.train.statistics import (
    PairedDifference,
    Profile,
    paired_difference,
    performance_profile,
)

Floats = npt.NDArray[np.float64]

PARTS = ("selectors", "learning_curves", "importance", "stress")
"""What a file may hold, one at least: a comparison (with `config`), what training measured, a stress test."""


@dataclass(frozen=True)
class Comparison:
    """One saved comparison and what the page calls it."""

    label: str
    results: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return dict(self.results["config"])

    @property
    def reference(self) -> str:
        """The selector that differences are taken from."""
        return str(self.config.get("reference", "greedy-cost"))

    def paired(self, name: str, metric: str = "weighted_loss") -> tuple[Floats, Floats] | None:
        """Return a selector's and the reference's values on the tapes that both played, or None."""
        return common_values(self.results, name, self.reference, metric)


@dataclass(frozen=True)
class ReportData:
    """All that a report shows.

    Attributes:
        comparisons: in the order given.
        learning_curves: policy to `{"decisions": [...], "loss": [...]}`, with `low` and `high`
            where there are intervals; loss as a share of the GPU-hours demanded.
        importance: feature to `{"mean", "low", "high"}`: points of weighted loss (as a share) that
            are lost when the feature is shuffled.
        stress: files of `flextopo stress` by their names.
    """

    comparisons: tuple[Comparison, ...]
    learning_curves: dict[str, dict[str, list[float]]]
    importance: dict[str, dict[str, float]]
    stress: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All selectors, in the order of the first comparison that has each."""
        return list(dict.fromkeys(n for c in self.comparisons for n in c.results["selectors"]))


def read_report_data(paths: Sequence[Path]) -> ReportData:
    """Read results files, and folders of them.

    Raises:
        FlextopoError: a file is missing or no results file, or a folder has none.
    """
    documents: list[tuple[str, dict[str, Any]]] = []
    for path in paths:
        if path.is_dir():
            found = [(file, _read(file)) for file in sorted(path.rglob("*.json"))]
            kept = [(file.stem, document) for file, document in found if document is not None]
            if not kept:
                raise FlextopoError(f"{path}: no results file in it; legal: a folder with some")
            documents += kept
        else:
            document = _read(path)
            if document is None:
                raise FlextopoError(
                    f"{path}: no results file; legal: what `flextopo compare --json` writes"
                )
            documents.append((path.stem, document))
    curves: dict[str, Any] = {}
    importance: dict[str, Any] = {}
    for _, document in documents:
        curves |= document.get("learning_curves", {})
        importance |= document.get("importance", {})
    compared = [(stem, d) for stem, d in documents if "selectors" in d]
    labels = _labels(compared)
    comparisons = tuple(
        Comparison(label, document) for label, (_, document) in zip(labels, compared, strict=True)
    )
    stress = {stem: document for stem, document in documents if document.get("stress")}
    return ReportData(comparisons, curves, importance, stress)


def _read(path: Path) -> dict[str, Any] | None:
    """Return a results file's document, None if it is something else."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise FlextopoError(f"{path}: {error.strerror}") from None
    except ValueError:
        return None
    if not isinstance(document, dict) or not any(part in document for part in PARTS):
        return None
    if any(not isinstance(document.get(part, {}), dict) for part in PARTS):
        return None
    if "selectors" in document:
        config = document.get("config")
        if not isinstance(config, dict) or "seeds_used" not in config:
            return None
        rows = document["selectors"].values()
        if not all(isinstance(row, dict) and "weighted_loss" in row for row in rows):
            return None
        document.setdefault("paired", {})
        # Saved before there was a weight: what it weighs now has no part in what was played.
        scenario = {**default_scenario(), **config.get("scenario", {})}
        weights = {**default_scenario()["weights"], **scenario["weights"]}
        config["scenario"] = {**scenario, "weights": weights}
    return document


def _labels(compared: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Name each comparison by its servers, and by what else differs between them."""
    configs = [document["config"] for _, document in compared]
    labels = [str(config["servers"]) for config in configs]
    peaks = {config["workload"]["online_peak_share"] for config in configs}
    for i, config in enumerate(configs):
        if len(peaks) > 1:
            labels[i] += f", peak {config['workload']['online_peak_share']:g}"
        if config.get("services"):
            labels[i] += f", {Path(config['services']).name.partition('.')[0]}"
    for i, (stem, _) in enumerate(compared):
        if labels.count(labels[i]) > 1:
            labels[i] += f" ({stem})"
    while len(set(labels)) < len(labels):
        labels = [
            f"{label} #{i + 1}" if labels.count(label) > 1 else label
            for i, label in enumerate(labels)
        ]
    return labels


def pooled_difference(data: ReportData, name: str) -> PairedDifference | None:
    """Return a selector's paired difference over all comparisons; each is a stratum."""
    found = [pair for c in data.comparisons if (pair := c.paired(name)) is not None]
    if not found:
        return None
    strata = np.repeat(np.arange(len(found)), [len(ours) for ours, _ in found])
    ours, other = (np.concatenate(side) for side in zip(*found, strict=True))
    return paired_difference(ours, other, strata)


def pooled_profile(data: ReportData, name: str, taus: Floats) -> Profile | None:
    """Return a selector's performance profile over the tapes of all comparisons."""
    found = [pair for c in data.comparisons if (pair := c.paired(name)) is not None]
    if not found:
        return None
    ours, other = (np.concatenate(side) for side in zip(*found, strict=True))
    return performance_profile(ours, other, taus)


def num_servers(comparison: Comparison) -> tuple[str, int] | None:
    """Return the kinds of servers of a comparison and how many there are, None if not known."""
    try:
        fleet = parse_servers(str(comparison.config["servers"]))
    except FlextopoError:  # a file of a server that is not here
        return None
    return " + ".join(model.name for model in fleet.models), fleet.num_nodes


def scaling(data: ReportData) -> dict[str, list[tuple[int, Comparison]]]:
    """Return comparisons that differ in the number of servers alone, two at least, by size.

    Of several of one size the one with the most selectors counts.
    """
    series: dict[str, dict[int, Comparison]] = {}
    for comparison in sorted(data.comparisons, key=lambda c: -len(c.results["selectors"])):
        size = num_servers(comparison)
        if size is not None:
            config = comparison.config
            parts = [size[0], f"peak {config['workload']['online_peak_share']:g}"]
            hours = config["workload"].get("horizon_h", 24.0)
            parts += [] if hours == 24.0 else [f"{hours:g} h"]
            parts += [Path(config["services"]).name] if config.get("services") else []
            parts += [] if config["scenario"] == default_scenario() else [comparison.label]
            series.setdefault(", ".join(parts), {}).setdefault(size[1], comparison)
    return {key: sorted(found.items()) for key, found in series.items() if len(found) > 1}


def default_scenario() -> dict[str, Any]:
    """Return the default scenario as results files hold it."""
    return asdict(Scenario())


def reweighted(comparison: Comparison, name: str, term: str, factor: float) -> Floats | None:
    """Return the paired differences, (S,), if a term of the loss weighed `factor` times as much.

    The selectors' choices stay what they were. For misalignment that is the same as scaling what
    an unaligned pod loses, 1 - speed.
    """
    loss, part = comparison.paired(name), comparison.paired(name, term)
    if loss is None or part is None or len(loss[0]) != len(part[0]):
        return None
    difference: Floats = loss[0] - loss[1] + (factor - 1) * (part[0] - part[1])
    return difference


def weight_series(data: ReportData) -> dict[str, list[tuple[float, Comparison]]]:
    """Return comparisons that differ in one weight or speed of the loss alone, by its value."""
    series: dict[str, list[tuple[float, Comparison]]] = {}
    for spec in fields(LossWeights):
        groups: dict[str, dict[float, Comparison]] = {}
        for comparison in data.comparisons:
            scenario = comparison.config["scenario"]
            rest = {k: v for k, v in scenario["weights"].items() if k != spec.name}
            same = {
                k: comparison.config.get(k) for k in ("servers", "services", "batch", "workload")
            }
            others = {k: v for k, v in scenario.items() if k != "weights"}
            key = json.dumps([rest, others, same], sort_keys=True)
            groups.setdefault(key, {})[scenario["weights"][spec.name]] = comparison
        best = max(groups.values(), key=len, default={})
        if len(best) > 1:
            series[spec.name] = sorted(best.items())
    return series
