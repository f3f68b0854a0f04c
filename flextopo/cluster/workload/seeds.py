"""Which seeds are for what, written down once: the ranges never overlap."""

from __future__ import annotations

from flextopo.cluster.errors import FlextopoError

TRAINING = range(1_000_000)
VALIDATION = range(1_000_000, 1_010_000)
COMPARISON = range(2_000_000, 2_010_000)

SPLITS = {"training": TRAINING, "validation": VALIDATION, "comparison": COMPARISON}
"""Name of each range, as the command line calls it."""

assert TRAINING.stop <= VALIDATION.start
assert VALIDATION.stop <= COMPARISON.start


def take(seeds: range, count: int, first: int = 0) -> list[int]:
    """Return `count` seeds of a range, from its entry `first` on.

    Raises:
        FlextopoError: fewer than one are asked for, or more than the range has.
    """
    if not 1 <= count <= len(seeds) - first or first < 0:
        raise FlextopoError(f"{count} seeds from {first} on; legal: 1 to {len(seeds) - first}")
    return list(seeds[first : first + count])
