"""Means with bootstrap intervals, and paired comparisons; equal scores give equal intervals.

References:
    Agarwal et al. (NeurIPS 2021), "Deep reinforcement learning at the edge of the statistical
    precipice": interquartile means, probability of improvement, performance profiles, stratified
    bootstrap. Ours are paired: selectors meet the same tapes, so tapes are resampled, not runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from flextopo.cluster.errors import FlextopoError

CONFIDENCE = 0.95
RESAMPLES = 5000

MIN_SEEDS = 10
"""Fewer seeds carry no claim: percentile intervals of so few are too short (an assumption)."""

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
        median: of the differences.
        largest_day: how much hangs on one day: the largest difference, without its sign, over the sum
            of all differences without theirs; 1 over the number of seeds where all are as large, 1
            where all but one are 0, and 0 where every one is.
        seeds: how many differences there are.
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
    median: float
    largest_day: float
    seeds: int

    def as_dict(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)

    @property
    def verdict(self) -> str:
        """What may be claimed; see `verdict`."""
        return verdict(self.low, self.high, self.seeds)


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


def verdict(low: float, high: float, seeds: int, stretches: float = math.inf) -> str:
    """Return what an interval of a difference allows to say: better, worse, or no claim.

    Args:
        low: lower end of its 95 % interval; below 0 is better.
        high: upper end.
        seeds: tapes behind it; fewer than `MIN_SEEDS` carry no claim, whatever the interval.
        stretches: of a trace that share nothing, from which the tapes are cut; as seeds.
    """
    if seeds < MIN_SEEDS:
        return "no claim: too few seeds"
    if stretches < MIN_SEEDS:
        return "no claim: stretches overlap"
    return "better" if high < 0 else "worse" if low > 0 else "no claim"


def largest_day(differences: npt.ArrayLike) -> float:
    """Return the share of the largest difference; see `PairedDifference.largest_day`."""
    sizes = np.abs(np.asarray(differences, np.float64))
    total = float(sizes.sum())
    return float(sizes.max()) / total if total > 0 else 0.0


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
        *(float(np.median(difference)), largest_day(difference), len(difference)),
    )


def two_way_estimate(differences: npt.ArrayLike) -> Estimate:
    """Return a mean over training seeds and tapes with its interval over both.

    Training seeds and tapes are resampled independently, and each training seed drawn meets each tape
    drawn. What so few training seeds hide is made up for: their deviations from the mean are widened
    by sqrt(R / (R - 1)), since the spread of R draws is too small by that much, and by Student's
    quantile of R - 1 degrees over the normal one; those of the tapes likewise.

    Args:
        differences: (R, S) of R training seeds on the same S tapes, two of each at least.

    Raises:
        FlextopoError: there are fewer.

    References:
        Owen (Annals of Applied Statistics 2007), "The pigeonhole bootstrap": crossed factors
        resampled independently, whose variance is not below the true one.
    """
    table = np.asarray(differences, np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise FlextopoError(
            f"differences of shape {table.shape}; legal: training seeds by tapes, two of each or more"
        )
    mean = float(table.mean())
    by_seed, by_tape = table.mean(1) - mean, table.mean(0) - mean
    rest = table - mean - by_seed[:, None] - by_tape
    rng = np.random.default_rng(0)
    rows, columns = (
        rng.multinomial(size, np.full(size, 1 / size), RESAMPLES) / size for size in table.shape
    )
    means = mean + rows @ (by_seed * _widening(len(by_seed)))
    means += columns @ (by_tape * _widening(len(by_tape)))
    means += np.einsum("br,rs,bs->b", rows, rest, columns, optimize=True)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(mean, float(low), float(high))


def _widening(size: int) -> float:
    """Return by how much the deviations of so few draws are to be widened."""
    quantile = 1 - (1 - CONFIDENCE) / 2
    student = float(stats.t.ppf(quantile, size - 1) / stats.norm.ppf(quantile))
    return student * float(np.sqrt(size / (size - 1)))


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
