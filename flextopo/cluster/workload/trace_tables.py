"""Comma-separated trace files as columns of text, with errors that name file, line and value."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.trace_files import MAX_CELL, MAX_ROWS, read_text

Ints = npt.NDArray[np.int64]
Columns = tuple[str, ...]


@dataclass(frozen=True)
class TraceTable:
    """The rows of a trace.

    Attributes:
        path: where it came from.
        columns: name to cells; all of the same length N, at least 1.
        lines: (N,) line of each row, from 1.
    """

    path: Path
    columns: dict[str, Columns]
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
        values = np.fromiter(map(_number, cells), np.float64, len(cells))
        blank = np.zeros(len(self), np.bool_)
        if empty is not None:
            blank = ~self.filled(name)
        wrong = ~blank & ~((values >= low) & (values <= high))
        if wrong.any():
            row = int(np.argmax(wrong))
            self.fail(row, f"{name} = {cells[row]!r}", f"a number from {low:.10g} to {high:.10g}")
        if empty is not None:
            values[blank] = empty
        return values

    def filled(self, name: str) -> npt.NDArray[np.bool_]:
        """Return (N,) bool: whether a column's cell is not empty."""
        cells = self.columns[name]
        return np.fromiter((bool(cell.strip()) for cell in cells), np.bool_, len(cells))

    def codes(self, name: str) -> tuple[Columns, Ints]:
        """Return the values of a column, stripped and sorted, and (N,) int64, which each row has."""
        cells = [cell.strip() for cell in self.columns[name]]
        values = tuple(sorted(set(cells)))
        number = {value: i for i, value in enumerate(values)}
        return values, np.fromiter(map(number.__getitem__, cells), np.int64, len(cells))

    def names(self, name: str) -> tuple[Columns, Ints]:
        """Return what `codes` does, of a column of names that are told to people.

        Raises:
            WorkloadError: one is empty, or has a character that is not printed.
        """
        for row, cell in enumerate(self.columns[name]):
            if not cell.strip() or not cell.strip().isprintable():
                self.fail(row, f"{name} = {cell!r}", "a name of printed characters")
        return self.codes(name)

    def among(self, name: str, values: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return (N,) bool: whether a column has one of these values."""
        cells = self.columns[name]
        return np.fromiter((cell.strip() in values for cell in cells), np.bool_, len(cells))


def read_table(
    path: str | Path, layouts: Mapping[Columns, Callable[[Sequence[str]], bool]] | None = None
) -> TraceTable:
    """Read a comma-separated file, plain or gzip, UTF-8.

    Args:
        path: of the file.
        layouts: names of the columns of files without a line of names, to what tells such a file by
            its first row; for others the first line is the names.

    Returns:
        Its columns as text.

    Raises:
        WorkloadError: see `read_text`; its header repeats a name, or a row has more or fewer fields
            than the header.
    """
    path = Path(path)
    return table_of(path, read_text(path), layouts or {})


def table_of(
    path: Path, text: str, layouts: Mapping[Columns, Callable[[Sequence[str]], bool]]
) -> TraceTable:
    """Return the columns of a text; see `read_table`."""
    rows, lines = _rows(path, text)
    header = _header(rows, layouts)
    if header is None:
        header = tuple(name.strip() for name in rows.pop(0)) if rows else ()
        first, *lines = lines or [1]
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise WorkloadError(
                f"{path}:{first}: column {repeated[0]!r} twice; legal: each name once"
            )
        if not rows:
            raise WorkloadError(f"{path}: a header and no rows; legal: one row at least")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise WorkloadError(
                f"{path}:{line}: {len(row)} fields; legal: {len(header)}, as in the header"
            )
    return TraceTable(path, dict(zip(header, zip(*rows, strict=True), strict=True)), tuple(lines))


def _header(
    rows: list[list[str]],
    layouts: Mapping[Columns, Callable[[Sequence[str]], bool]],
) -> Columns | None:
    """Return the names of the columns where the first row tells that no line names them."""
    for names, tells in layouts.items():
        if rows and len(rows[0]) == len(names) and tells(rows[0]):
            return names
    return None


def _number(cell: str) -> float:
    """Return the number in a cell, NaN where there is none."""
    try:
        # Python reads 1_0 as ten, and digits of any script; in a trace those are damaged numbers.
        return float(cell) if cell.isascii() and "_" not in cell else np.nan
    except ValueError:
        return np.nan


def _check_row(path: Path, line: int, row: list[str], before: int) -> None:
    """Refuse what would take all memory."""
    longest = max(map(len, row))
    if longest > MAX_CELL:
        raise WorkloadError(
            f"{path}:{line}: a cell of {longest} characters; legal: up to {MAX_CELL}"
        )
    if before > MAX_ROWS:
        raise WorkloadError(f"{path}:{line}: more than {MAX_ROWS} rows; legal: up to {MAX_ROWS}")


def _rows(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
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
    return rows, lines
