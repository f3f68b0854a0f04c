"""Means with bootstrap intervals, and paired comparisons; equal scores give equal intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 5000


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
    """

    mean: float
    low: float
    high: float
    improvement: float

    def as_dict(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)


def estimate(values: npt.ArrayLike) -> Estimate:
    """Return the mean of the values with its interval; NaNs are left out.

    Args:
        values: (S,) one a seed.

    References:
        scipy.stats.bootstrap, percentile method, with a fixed generator.
    """
    given = np.asarray(values, np.float64)
    given = given[~np.isnan(given)]
    if len(given) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    mean = float(given.mean())
    if len(given) == 1 or np.ptp(given) == 0:
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (given,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def paired_difference(losses: npt.ArrayLike, reference: npt.ArrayLike) -> PairedDifference:
    """Compare two selectors seed by seed.

    Args:
        losses: (S,) one a seed.
        reference: (S,) the other's on the same tapes.
    """
    difference = np.asarray(losses, np.float64) - np.asarray(reference, np.float64)
    found = estimate(difference)
    better = float((difference < 0).mean() + 0.5 * (difference == 0).mean())
    return PairedDifference(found.mean, found.low, found.high, better)
