"""Comma-separated trace files as columns of text, with errors that name file, line and value."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError

Read = TypeVar("Read")

GZIP_MAGIC = b"\x1f\x8b"

MAX_MIB, MAX_ROWS, MAX_CELL = 128, 2_000_000, 256
"""Size of a trace when it is unpacked, its rows, and characters of a cell: a small file may ask for all memory
there is. The largest public one that is read here has 118,000 rows."""


@dataclass(frozen=True)
class TraceTable:
    """A file with a header line.

    Attributes:
        path: where it came from.
        columns: name to cells; all of the same length N, at least 1.
        lines: (N,) line of each row, from 1.
    """

    path: Path
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def fail(self, row: int, found: str, legal: str) -> NoReturn:
        """Raise a WorkloadError for a cell of `row`."""
        raise WorkloadError(f"{self.path}:{self.lines[row]}: {found}; legal: {legal}")

    def numbers(
        self, name: str, low: float, high: float, *, empty: float | None = None
    ) -> npt.NDArray[np.float64]:
        """Return a column as (N,) float64.

        Args:
            name: of the column.
            low: smallest legal value.
            high: largest legal value.
            empty: stands for an empty cell; None = an empty cell is an error.

        Raises:
            WorkloadError: a cell is not a number, or outside [low, high].
        """
        cells = self.columns[name]
        blank = np.zeros(len(self), np.bool_)
        if empty is not None:
            blank = np.array([not cell.strip() for cell in cells])
            cells = tuple(cell if cell.strip() else "nan" for cell in cells)
        legal = f"a number from {low:.10g} to {high:.10g}"
        try:
            values = np.array(cells).astype(np.float64)
        except ValueError:
            row = next(i for i, cell in enumerate(cells) if not _is_number(cell))
            self.fail(row, f"{name} = {cells[row]!r}", legal)
        wrong = ~blank & ~((values >= low) & (values <= high))
        # Python and numpy read 1_0 as ten; in a trace it is a damaged number.
        wrong |= np.char.find(cells, "_") >= 0
        if wrong.any():
            row = int(np.argmax(wrong))
            self.fail(row, f"{name} = {self.columns[name][row]!r}", legal)
        if empty is not None:
            values[blank] = empty
        return values

    def text(self, name: str) -> npt.NDArray[np.str_]:
        """Return a column as (N,) str, stripped."""
        return np.char.strip(np.array(self.columns[name], dtype=np.str_))


def read_table(path: str | Path) -> TraceTable:
    """Read a comma-separated file with a header, plain or gzip, UTF-8.

    Args:
        path: of the file; gzip is known by its first bytes, not by the name.

    Returns:
        Its columns as text.

    Raises:
        WorkloadError: the file is missing, empty, too large, cut off or not UTF-8, its header repeats
            a name, or a row has more or fewer fields than the header.
    """
    path = Path(path)
    text = _decode(path, _read_bytes(path))
    header, rows, lines = _rows(path, text)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise WorkloadError(
                f"{path}:{line}: {len(row)} fields; legal: {len(header)}, as in the header"
            )
    return TraceTable(path, dict(zip(header, zip(*rows, strict=True), strict=True)), tuple(lines))


def read_by_format(
    table: TraceTable, formats: Mapping[tuple[str, ...], Callable[[TraceTable], Read]]
) -> Read:
    """Read with the first format whose columns the table has.

    Raises:
        WorkloadError: names the columns found and those that each format needs.
    """
    for needed, read in formats.items():
        if all(name in table.columns for name in needed):
            return read(table)
    legal = " or ".join(",".join(needed) for needed in formats)
    raise WorkloadError(f"{table.path}:1: columns {','.join(table.columns)}; legal: {legal}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_bytes(path: Path) -> bytes:
    most = MAX_MIB * 2**20
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise WorkloadError(f"{path}: no such file; legal: a trace as csv or csv.gz") from None
    except OSError as error:
        raise WorkloadError(
            f"{path}: {error.strerror or error}; legal: a readable csv or csv.gz file"
        ) from None
    if data.startswith(GZIP_MAGIC):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(most + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise WorkloadError(
                f"{path}: damaged or cut-off gzip file ({error}); legal: a whole one"
            ) from None
    if len(data) > most:
        raise WorkloadError(f"{path}: more than {MAX_MIB} MiB of text; legal: up to {MAX_MIB}")
    if not data.strip():
        raise WorkloadError(f"{path}: empty file; legal: a header line and one row at least")
    return data


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise WorkloadError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; legal: UTF-8 text"
        ) from None


def _check_row(path: Path, line: int, row: list[str], before: int) -> None:
    """Refuse what would take all memory."""
    longest = max(map(len, row))
    if longest > MAX_CELL:
        raise WorkloadError(
            f"{path}:{line}: a cell of {longest} characters; legal: up to {MAX_CELL}"
        )
    if before > MAX_ROWS:
        raise WorkloadError(f"{path}:{line}: more than {MAX_ROWS} rows; legal: up to {MAX_ROWS}")


def _rows(path: Path, text: str) -> tuple[list[str], list[list[str]], list[int]]:
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if row:
                _check_row(path, reader.line_num, row, len(rows))
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise WorkloadError(
            f"{path}:{reader.line_num}: {error}; legal: comma-separated values"
        ) from None
    header = [name.strip() for name in rows[0]] if rows else []
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise WorkloadError(f"{path}:1: column {repeated[0]!r} twice; legal: each name once")
    if len(rows) < 2:
        raise WorkloadError(f"{path}: a header and no rows; legal: one row at least")
    return header, rows[1:], lines[1:]
