"""Means with bootstrap intervals, and paired comparisons; equal scores give equal intervals.

References:
    Agarwal et al. (NeurIPS 2021), "Deep reinforcement learning at the edge of the statistical
    precipice": interquartile means, probability of improvement, performance profiles, stratified
    bootstrap. Ours are paired: selectors meet the same tapes, so tapes are resampled, not runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from flextopo.cluster.errors import FlextopoError

CONFIDENCE = 0.95
RESAMPLES = 5000

Statistic = Callable[..., Any]
"""Takes an array and `axis`, which it reduces."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % bootstrap interval; NaN where no seed has a value."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference:
    """A selector's loss less another's on the same tapes; below 0 is better.

    Attributes:
        mean: mean difference.
        low: lower end of its 95 % bootstrap interval over seeds.
        high: upper end.
        improvement: probability of improvement: share of seeds with the lower loss, ties half.
        improvement_low: lower end of its 95 % bootstrap interval.
        improvement_high: upper end.
        iqm: interquartile mean of the differences.
        iqm_low: lower end of its 95 % bootstrap interval.
        iqm_high: upper end.
    """

    mean: float
    low: float
    high: float
    improvement: float
    improvement_low: float
    improvement_high: float
    iqm: float
    iqm_low: float
    iqm_high: float

    def as_dict(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Profile:
    """Share of seeds with a loss of at most tau times the reference's; T values of tau.

    Attributes:
        taus: (T,) float64.
        share: (T,) float64.
        low: (T,) float64, lower end of the pointwise 95 % bootstrap interval.
        high: (T,) float64, upper end.
    """

    taus: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def interquartile_mean(values: npt.ArrayLike, axis: int = 0) -> Any:
    """Return the mean of the middle half of the values along an axis."""
    return stats.trim_mean(values, 0.25, axis=axis)


def estimate(values: npt.ArrayLike, statistic: Statistic = np.mean) -> Estimate:
    """Return the mean of the values, or another statistic, with its interval; NaNs are left out.

    Args:
        values: (S,) one a seed.
        statistic: of the values.

    References:
        scipy.stats.bootstrap, percentile method, with a fixed generator.
    """
    return stratified_estimate([values], statistic)


def stratified_estimate(
    strata: Sequence[npt.ArrayLike], statistic: Statistic = np.mean
) -> Estimate:
    """Return a statistic over all strata with its interval; each stratum is resampled by itself.

    Args:
        strata: (S_i,) values of each stratum, such as one a kind of server; NaNs are left out.
        statistic: of all values together.
    """
    given = [np.asarray(values, np.float64) for values in strata]
    given = [values[~np.isnan(values)] for values in given]
    given = [values for values in given if len(values)]
    if not given:
        return Estimate(float("nan"), float("nan"), float("nan"))

    value = float(statistic(np.concatenate(given), axis=-1))
    if all(np.ptp(values) == 0 for values in given):
        return Estimate(value, value, value)
    # scipy wants two values in each sample, and one alone resamples to itself.
    alone = np.array([values[0] for values in given if len(values) == 1])
    given = [values for values in given if len(values) > 1]

    def pooled(*samples: npt.NDArray[np.float64], axis: int = -1) -> Any:
        fixed = np.broadcast_to(alone, (*samples[0].shape[:-1], len(alone)))
        return statistic(np.concatenate((*samples, fixed), axis=-1), axis=axis)

    interval = stats.bootstrap(
        given,
        pooled,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def paired_difference(
    losses: npt.ArrayLike, reference: npt.ArrayLike, strata: npt.ArrayLike | None = None
) -> PairedDifference:
    """Compare two selectors seed by seed.

    Args:
        losses: (S,) one a seed.
        reference: (S,) the other's on the same tapes.
        strata: (S,) stratum of each seed, such as the kind of servers; None = all in one.

    Raises:
        FlextopoError: the lengths differ.
    """
    ours, other = np.asarray(losses, np.float64), np.asarray(reference, np.float64)
    if ours.shape != other.shape or ours.ndim != 1:
        raise FlextopoError(
            f"losses of shapes {ours.shape} and {other.shape}; legal: one a seed, equally many"
        )
    difference = ours - other
    named = np.zeros(len(ours), np.int64) if strata is None else np.asarray(strata)
    parts = [difference[named == name] for name in np.unique(named)]
    found = stratified_estimate(parts)
    better = stratified_estimate([(part < 0) + 0.5 * (part == 0) for part in parts])
    middle = stratified_estimate(parts, interquartile_mean)
    return PairedDifference(
        *(found.mean, found.low, found.high),
        *(better.mean, better.low, better.high),
        *(middle.mean, middle.low, middle.high),
    )


def performance_profile(
    losses: npt.ArrayLike, reference: npt.ArrayLike, taus: npt.ArrayLike
) -> Profile:
    """Return on which share of the seeds the loss is at most tau times the reference's.

    Args:
        losses: (S,) 0 or more, one a seed.
        reference: (S,) the reference's on the same tapes; where both are 0 the ratio is 1.
        taus: (T,) ratios, ascending.
    """
    ours, other = np.asarray(losses, np.float64), np.asarray(reference, np.float64)
    ratio = np.full(len(ours), np.inf)
    np.divide(ours, other, out=ratio, where=other > 0)
    ratio[(ours == 0) & (other == 0)] = 1.0
    at = np.asarray(taus, np.float64)
    within = (ratio[:, None] <= at * (1 + 1e-12)).astype(np.float64)
    picks = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    counts = np.zeros((RESAMPLES, len(ours)))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], picks), 1.0)
    shares = counts @ within / len(ours)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(shares, (tail, 1 - tail), axis=0)
    return Profile(at, within.mean(0), low, high)
