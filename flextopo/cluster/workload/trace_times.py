"""Times with dates: seconds from the midnight before the first, on the clock that wrote them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import NoReturn

import numpy as np
import numpy.typing as npt

TIME = re.compile(
    r"\s*(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d(?:\.\d{1,9})?)\s*(Z|[+-]\d\d:?\d\d)?\s*", re.ASCII
)
FIRST, LAST = "1970-01-01 00:00:00", "2199-12-31 23:59:59"
LEGAL = f"a time from {FIRST} to {LAST}, with fractions and an offset from UTC or without"


def seconds_of_times(
    cells: Sequence[str], fail: Callable[[int, str, str], NoReturn], name: str
) -> tuple[npt.NDArray[np.float64], date]:
    """Return times as seconds from 00:00 of the earliest date.

    Hours stay those that are written: an offset from UTC says whose clock it is and is not applied.

    Args:
        cells: N of `2023-11-16 18:17:03.9799600`, or with an offset: `2024-05-10 00:00:00+00:00`.
        fail: told the row, what was found, and what was legal.
        name: of the column, for messages.

    Returns:
        (N,) float64 s, to the microsecond, and the date from whose midnight they count.

    Raises:
        WorkloadError: by `fail`: a cell is no time, or not all have the same offset.
    """
    days = np.empty(len(cells), np.int64)
    seconds = np.empty(len(cells))
    offset = None
    for row, cell in enumerate(cells):
        match = TIME.fullmatch(cell)
        parsed = _day_and_second(match) if match else None
        if match is None or parsed is None:
            fail(row, f"{name} = {cell!r}", LEGAL)
        days[row], seconds[row] = parsed
        own = _offset(match[3])
        if offset is not None and own != offset:
            fail(row, f"{name} = {cell!r} after times with {offset}", "one offset in a file")
        offset = own
    first = int(days.min())
    return (days - first) * 86400.0 + seconds, date.fromordinal(first)


def _day_and_second(match: re.Match[str]) -> tuple[int, float] | None:
    """Return the ordinal of the day and the second in it; None where there is no such time."""
    clock, _, fraction = match[2].partition(".")
    try:
        found = datetime.fromisoformat(f"{match[1]} {clock}")
    except ValueError:
        return None
    if not FIRST <= f"{match[1]} {clock}" <= LAST:
        return None
    second = found.hour * 3600 + found.minute * 60 + found.second
    return found.toordinal(), second + float(f"0.{fraction or 0}")


def _offset(given: str | None) -> str:
    if given is None:
        return "no offset"
    return "UTC" if given == "Z" or not given.strip("+-0:") else given.replace(":", "")
