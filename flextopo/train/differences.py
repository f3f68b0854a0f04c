"""What saved results say about pairs of selectors: day by day, and where their order changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.train.statistics import CONFIDENCE, RESAMPLES, paired_difference

Floats = npt.NDArray[np.float64]
Results = dict[str, Any]


NEAR = (0.1, 10.0)
"""Factors of a term's weight that a summary tells of; farther ones are in the report (an assumption)."""


def common_values(
    results: Results, name: str, other: str, metric: str = "weighted_loss"
) -> tuple[Floats, Floats] | None:
    """Return two selectors' values on the tapes that both played, in the order of the seeds.

    None where no tape has a value of both, or the results were saved before there was the metric.
    """
    seeds, selectors = results["config"].get("seeds_used", {}), results["selectors"]
    if not {name, other} <= set(seeds) & set(selectors):
        return None
    if metric not in selectors[name] or metric not in selectors[other]:
        return None
    ours, theirs = (
        dict(zip(seeds[n], selectors[n][metric]["per_seed"], strict=True)) for n in (name, other)
    )
    both = sorted(s for s in set(ours) & set(theirs) if None not in (ours[s], theirs[s]))
    if not both:
        return None
    return np.array([ours[s] for s in both]), np.array([theirs[s] for s in both])


def nobody_preempted(results: Results) -> bool:
    """Say whether no selector placed a pod by evicting others, on any seed."""
    found = [row.get("preemptions") for row in results["selectors"].values()]
    return all(cell is not None and not any(cell["per_seed"]) for cell in found)


def with_details(results: Results, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a paired difference as `PairedDifference` has it, also one that was saved before.

    What an older file lacks is worked out from its values of each seed.
    """
    if "median" in row:
        return row
    reference = results["config"].get("reference", "greedy-cost")
    pair = common_values(results, name, reference)
    return row if pair is None else {**paired_difference(*pair).as_dict(), **row}


@dataclass(frozen=True)
class Flip:
    """Where the order of two selectors changes as one term of the loss weighs more or less.

    Attributes:
        factor: of the term's weight at which their mean losses are the same; None = there is none of
            0 or more, so the order is the same whatever the term weighs.
        low: lower end of its 95 % bootstrap interval over seeds.
        high: upper end; infinite where the interval reaches resamples that no factor flips.
    """

    factor: float | None
    low: float = math.nan
    high: float = math.nan

    @property
    def is_near(self) -> bool:
        """Say whether the factor is one that people might weigh the term by: see `NEAR`."""
        return self.factor is not None and NEAR[0] <= self.factor <= NEAR[1]

    def __str__(self) -> str:
        if self.factor is None:
            return "none"
        return f"x{_shown(self.factor)} [{_shown(self.low)}, {_shown(self.high)}]"


def _shown(factor: float) -> str:
    if math.isinf(factor):
        return "none"
    return f"{factor:.3g}" if factor < 1000 else ">1000"


def flip_point(losses: Floats, terms: Floats) -> Flip:
    """Return the factor of a term at which a mean difference changes its sign.

    The selectors' choices stay what they were, so the loss is linear in each term: with a factor f
    the mean difference is D + (f - 1) T, which is 0 at f = 1 - D / T.

    Args:
        losses: (S,) differences of the weighted loss, one a seed.
        terms: (S,) differences of the term, on the same seeds.

    Returns:
        The factor with its interval. Seeds are resampled; a resample without a factor of 0 or more
        counts as 0 where its factor lies in [-1, 0), where the term's absence nearly flips it, and
        else as infinite, where no weight of the term does.
    """
    picks = np.random.default_rng(0).integers(len(losses), size=(RESAMPLES, len(losses)))
    factors = _factors(losses[picks].mean(1), terms[picks].mean(1))
    tail = (1 - CONFIDENCE) / 2
    (found,) = _factors(losses.mean(keepdims=True), terms.mean(keepdims=True))
    if not 0 <= found < math.inf:
        return Flip(None)
    ends = np.where((factors >= -1) & (factors < 0), 0.0, factors)
    ends[ends < 0] = math.inf
    low, high = np.quantile(ends, (tail, 1 - tail), method="inverted_cdf")
    return Flip(float(found), float(low), float(high))


def _factors(losses: Floats, terms: Floats) -> Floats:
    """Return 1 - D / T, infinite where the term does not differ."""
    out = np.full(len(losses), math.inf)
    differs = np.abs(terms) > 1e-12  # shares of a loss: less is rounding
    out[differs] = 1 - losses[differs] / terms[differs]
    return out


def flip_points(results: Results, name: str, other: str) -> dict[str, Flip | None]:
    """Return where the order of two selectors changes, by term; None = not in the results."""
    found: dict[str, Flip | None] = {}
    losses = common_values(results, name, other)
    for term in LOSS_TERMS:
        parts = common_values(results, name, other, term)
        if losses is None or parts is None or len(parts[0]) != len(losses[0]):
            found[term] = None
        else:
            found[term] = flip_point(losses[0] - losses[1], parts[0] - parts[1])
    return found


def flip_pairs(results: Results) -> list[tuple[str, str]]:
    """Return whose order is looked at: each selector's and the reference's, each policy's and each other's."""
    config = results["config"]
    reference = config.get("reference", "greedy-cost")
    names, policies = list(results["selectors"]), list(config.get("policies", ()))
    pairs = [(name, reference) for name in names if name != reference and name not in policies]
    for i, policy in enumerate(policies):
        others = [name for name in names if name != policy and name not in policies[:i]]
        pairs += [(policy, other) for other in others]
    return [pair for pair in pairs if common_values(results, *pair) is not None]


def flip_rows(results: Results) -> list[list[str]]:
    """Return where orders change: headings, then a row a pair."""
    out = [["selector", "against", "lower\nloss now", *LOSS_TERMS]]
    for name, other in flip_pairs(results):
        cells = ["-" if flip is None else str(flip) for flip in _points(results, name, other)]
        out.append([name, other, _lower(results, name, other), *cells])
    return out


def flip_lines(results: Results) -> list[str]:
    """Return where orders change, a short line a pair that a factor within `NEAR` flips."""
    out = []
    for name, other in flip_pairs(results):
        flips = flip_points(results, name, other)
        found = [f"{term} {flip}" for term, flip in flips.items() if flip and flip.is_near]
        if found:
            out.append(f"{name} and {other}: {', '.join(found)}")
    return out


def _points(results: Results, name: str, other: str) -> list[Flip | None]:
    return list(flip_points(results, name, other).values())


def _lower(results: Results, name: str, other: str) -> str:
    pair = common_values(results, name, other)
    difference = 0.0 if pair is None else float((pair[0] - pair[1]).mean())
    return name if difference < 0 else other if difference > 0 else "neither"
