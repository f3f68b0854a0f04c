import math

import numpy as np
import pytest

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.seeds import COMPARISON, SPLITS, TRAINING, VALIDATION, take
from flextopo.train.statistics import estimate, paired_difference


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
