import math

import numpy as np
import pytest

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.workload.seeds import COMPARISON, SPLITS, TRAINING, VALIDATION, take
from flextopo.train.statistics import (
    estimate,
    interquartile_mean,
    paired_difference,
    performance_profile,
    stratified_estimate,
)


def test_interval_repeats_and_covers_the_mean() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 40)
    first, second = estimate(values), estimate(values)
    assert first == second
    assert first.low < first.mean < first.high
    # Two standard errors on either side, within the bootstrap's own noise.
    assert first.half_width == pytest.approx(1.96 * values.std() / math.sqrt(40), rel=0.1)


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        found = estimate(rng.normal(1.0, 1.0, 30))
        hits += found.low <= 1.0 <= found.high
    assert 86 <= hits <= 99


def test_missing_values_are_left_out() -> None:
    assert estimate([1.0, float("nan"), 1.0]).mean == 1.0
    assert math.isnan(estimate([float("nan")]).mean)
    assert estimate([2.0, 2.0]).half_width == 0.0


def test_paired_difference_counts_ties_half() -> None:
    found = paired_difference([1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 3.0, 1.0])
    assert found.mean == pytest.approx(0.25)
    assert found.improvement == pytest.approx(0.625)
    assert found.low <= found.mean <= found.high


def test_interquartile_mean_ignores_the_outer_quarters() -> None:
    found = estimate([-100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0], interquartile_mean)
    assert found.mean == pytest.approx(3.5)
    assert found.low <= found.mean <= found.high


def test_strata_are_resampled_each_by_itself() -> None:
    """Between strata that differ much but not inside, there is nothing to be unsure about."""
    rng = np.random.default_rng(1)
    low, high = rng.normal(0.0, 0.1, 20), rng.normal(100.0, 0.1, 20)
    mixed, kept = estimate(np.concatenate((low, high))), stratified_estimate([low, high])
    assert kept.mean == mixed.mean
    assert kept.half_width < 0.1
    assert mixed.half_width > 5
    one_more = stratified_estimate([low, [5.0]])
    assert one_more.mean == pytest.approx(np.append(low, 5.0).mean())
    assert one_more.low < one_more.mean < one_more.high
    assert one_more.half_width < 0.1
    paired = paired_difference(np.append(low, high), np.zeros(40), [0] * 20 + [1] * 20)
    assert (paired.low, paired.high) == (kept.low, kept.high)


def test_probability_of_improvement_has_its_interval() -> None:
    rng = np.random.default_rng(2)
    ours = rng.normal(-0.5, 1.0, 60)
    found = paired_difference(ours, np.zeros(60))
    share = (ours < 0).mean()
    assert found.improvement == pytest.approx(share)
    error = 1.96 * math.sqrt(share * (1 - share) / 60)
    assert found.improvement - found.improvement_low == pytest.approx(error, rel=0.25)
    assert found.improvement_high - found.improvement == pytest.approx(error, rel=0.25)
    assert found.iqm_low < found.iqm < found.iqm_high
    with pytest.raises(FlextopoError, match="equally many"):
        paired_difference([1.0, 2.0], [1.0])


def test_a_profile_counts_seeds_below_each_ratio() -> None:
    found = performance_profile([0.0, 0.5, 1.0, 3.0], [0.0, 1.0, 1.0, 1.0], [0.4, 0.5, 1.0, 4.0])
    assert found.share.tolist() == [0.0, 0.25, 0.75, 1.0]
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()
    assert found.low[2] < 0.75 < found.high[2]
    assert performance_profile([1.0], [0.0], [9.0]).share.tolist() == [0.0]


def test_seed_ranges_never_overlap() -> None:
    ranges = list(SPLITS.values())
    assert ranges == [TRAINING, VALIDATION, COMPARISON]
    for i, a in enumerate(ranges):
        for b in ranges[i + 1 :]:
            assert not set(a[:: len(a) - 1]) & set(b)
            assert a.stop <= b.start or b.stop <= a.start


@pytest.mark.parametrize(("count", "first"), [(0, 0), (-1, 0), (10**7, 0), (1, -1)])
def test_seeds_outside_a_range_are_refused(count: int, first: int) -> None:
    with pytest.raises(FlextopoError, match="legal: 1 to"):
        take(COMPARISON, count, first)
