"""Another order of the candidates at each decision, so that a place says nothing about who stands there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

ODD = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
"""Constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""


def mix(words: Words) -> Words:
    """Return SplitMix64's hash of each word: one bit changed changes half of them."""
    words = (words ^ (words >> np.uint64(30))) * ODD[1]
    words = (words ^ (words >> np.uint64(27))) * ODD[2]
    return words ^ (words >> np.uint64(31))


def shuffled_places(
    decisions: tuple[npt.NDArray[Any], ...], count: npt.NDArray[np.int64], k: int
) -> npt.NDArray[np.int64]:
    """Return which candidate stands in each place.

    Args:
        decisions: what tells one decision from another, (B,) whole numbers each, such as tape, time
            and pod; equal ones give equal orders, whatever was played before.
        count: (B,) candidates of each decision.
        k: places.

    Returns:
        (B, K) int64; places beyond `count` keep what they have.
    """
    words = np.zeros(len(count), np.uint64)
    for numbers in decisions:
        words = mix(words + ODD[0] + np.asarray(numbers).astype(np.uint64))
    places = np.arange(k, dtype=np.uint64)
    keys = mix(words[:, None] + (places + np.uint64(1)) * ODD[0]) >> np.uint64(1)
    keys = np.where(places < count[:, None], keys, (np.uint64(1) << np.uint64(63)) + places)
    return np.argsort(keys, axis=1, kind="stable")
