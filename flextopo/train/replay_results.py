"""What to replay of saved results: their configuration, and the selectors and seed of most interest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import LossWeights, Scenario
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.train.config import ComparisonConfig, from_fields
from flextopo.train.results import Results


def config_of(results: Results, path: Path) -> ComparisonConfig:
    """Return what was compared on what.

    Args:
        results: as `load_results` returns them.
        path: of the file, for messages.

    Raises:
        FlextopoError: the file has a field that this version does not know, or lacks one.
    """
    saved = results["config"]
    try:
        scenario = saved["scenario"]
        weights = from_fields(LossWeights, scenario["weights"], f"{path}: ")
        return ComparisonConfig(
            servers=saved["servers"],
            selectors=tuple(saved["selectors"]),
            policies=tuple(saved["policies"]),
            seeds=saved["seeds"],
            split=saved["split"],
            oracle_seeds=saved["oracle_seeds"],
            services=saved["services"],
            batch=saved["batch"],
            workload=from_fields(WorkloadConfig, saved["workload"], f"{path}: "),
            scenario=Scenario(weights, scenario["admission"]),
        )
    except (KeyError, TypeError) as error:
        raise FlextopoError(
            f"{path}: config lacks {error}; legal: what `flextopo compare --json` writes"
        ) from None


def interesting_selectors(results: Results) -> tuple[str, ...]:
    """Return two selectors of saved results, or the one that is there.

    The last policy, or without any the selector of the least mean loss, beside the reference.
    """
    losses = {
        name: row["weighted_loss"]["mean"]
        for name, row in results["selectors"].items()
        if row["weighted_loss"]["mean"] is not None
    }
    if not losses:
        raise FlextopoError("no selector has a loss in the results; legal: one at least")
    policies = [name for name in results["config"]["policies"] if name in losses]
    ranked = sorted(losses, key=lambda name: losses[name])
    reference = results["config"].get("reference", "")
    first = policies[-1] if policies else next((n for n in ranked if n != reference), ranked[0])
    others = [reference, *ranked]
    second = next((name for name in others if name in losses and name != first), None)
    return (first,) if second is None else (first, second)


def interesting_seed(results: Results, names: Sequence[str]) -> int:
    """Return the seed on which the selectors' losses differ most; of one, that of the most loss.

    A selector that the results do not have is left out; without any, it is the first seed.
    """
    played = [_losses(results, name) for name in names if name in results["selectors"]]
    if not played:
        used = results["config"]["seeds_used"].values()
        return int(min(seed for seeds in used for seed in seeds))
    seeds = sorted(set.intersection(*map(set, played)))
    if not seeds:
        raise FlextopoError(f"{' and '.join(names)} share no seed in the results; legal: one")
    return max(seeds, key=lambda seed: abs(played[0][seed] - sum(p[seed] for p in played[1:])))


def _losses(results: Results, name: str) -> dict[int, float]:
    seeds = results["config"]["seeds_used"][name]
    values = results["selectors"][name]["weighted_loss"]["per_seed"]
    return {s: v for s, v in zip(seeds, values, strict=True) if v is not None}
