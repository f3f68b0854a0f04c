"""Damaged copies of good inputs: bytes, cells and lines changed, lost, doubled and swapped."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

PIECES = (
    *(b"", b"0", b"-1", b"1e309", b"nan", b"-inf", b"Infinity", b"NaN", b"1_0", b"1e18", b"9" * 400, b"9" * 5000),
    *(b"0.0000001", b"2017-02-30 00:00:00", b"2024-05-10 00:00:00+08:00", b"null", b"true", b"{}", b"[]"),
    *(b'"', b"'", b",", b"\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xd9\xa3", b"{", b"}", b"[", b"]"),
    *(b"<", b">", b"&a;", b"<!ENTITY a 'b'>", b":", b"- ", b"&a *a", b"0-4000000000", b"x" * 300, b"[" * 2000),
    *(b"4294967296", b"9223372036854775808", b"-9223372036854775809", b"\x80\x00\x00\x00", b"\x7f\xf0\x00\x00"),
)  # fmt: skip
"""What readers trip over: no numbers, too large ones, other scripts, quotes, nesting, entities."""

CELL = re.compile(rb"[^\s,;:\"'<>{}\[\]()=]+")


def _byte(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _piece(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(PIECES) + data[at:]


def _cell(data: bytes, rng: random.Random) -> bytes:
    """Change one cell to something odd, or to another cell of the input."""
    cells = list(CELL.finditer(data))
    if not cells:
        return _piece(data, rng)
    cell = rng.choice(cells)
    new = rng.choice(PIECES) if rng.random() < 0.6 else rng.choice(cells)[0]
    return data[: cell.start()] + new + data[cell.end() :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] if rng.random() < 0.3 else data[:begin] + data[end:]


def _double(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[begin:end] * rng.randrange(1, 4) + data[end:]


def _lines(data: bytes, rng: random.Random) -> bytes:
    """Drop, double or swap a line."""
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return _cut(data, rng)
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(3)
    if how == 0:
        del lines[one]
    elif how == 1:
        lines.insert(other, lines[one])
    else:
        lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_cell, _cell, _cell, _byte, _piece, _cut, _double, _lines),
)


def mutate(data: bytes, rng: random.Random, changes: int) -> bytes:
    for _ in range(changes):
        data = rng.choice(WAYS)(data, rng)
    return data


def damaged(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return good inputs with one to six changes."""
    return st.builds(
        mutate,
        st.sampled_from(list(seeds)),
        st.randoms(use_true_random=False),
        st.integers(1, 6),
    )
