"""JSON trace files, an object at a time: a list of them, or one a line; none is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.trace_files import MAX_CELL, MAX_ROWS
from flextopo.cluster.workload.trace_tables import TraceTable

MAX_OBJECT = 2**20
"""Characters of one object, so that nesting cannot take more memory than its text allows. The
largest public one known, a Philly job with hundreds of attempts, is under a tenth of it."""

Object = dict[str, Any]


@dataclass(frozen=True)
class JsonTrace:
    """A text of JSON objects.

    Attributes:
        path: where it came from.
        text: `[{...}, {...}]`, or `{...}` one after another.
        columns: keys of the first object: what tells the kind of the trace.
    """

    path: Path
    text: str
    columns: tuple[str, ...]

    def objects(self) -> Iterator[tuple[int, Object]]:
        """Yield line and content of each object.

        Raises:
            WorkloadError: the text is no JSON, an object repeats a key, holds NaN or infinity, is
                nested too deeply or longer than `MAX_OBJECT`, or there are more than `MAX_ROWS`.
        """
        return _objects(self.path, self.text)

    def table(self, names: tuple[str, ...]) -> TraceTable:
        """Return fields of all objects as columns of text; others are ignored.

        Raises:
            WorkloadError: see `objects`; a field is missing, or longer than a cell may be.
        """
        cells: list[list[str]] = [[] for _ in names]
        lines = []
        for line, found in self.objects():
            for name, column in zip(names, cells, strict=True):
                column.append(_cell(found, name, f"{self.path}:{line}"))
            lines.append(line)
        columns = {name: tuple(column) for name, column in zip(names, cells, strict=True)}
        return TraceTable(self.path, columns, tuple(lines))


def is_json(text: str) -> bool:
    """Say whether a text begins as objects of JSON, or a list of them, do."""
    return text.lstrip()[:1] in ("[", "{")


def json_trace(path: Path, text: str) -> JsonTrace:
    """Return a trace of JSON objects; only the first one is looked at.

    Raises:
        WorkloadError: there is none, or it is not legal.
    """
    for _, first in _objects(path, text):
        return JsonTrace(path, text, tuple(first))
    raise WorkloadError(f"{path}: a list without an object; legal: one at least")


def _cell(found: Object, name: str, where: str) -> str:
    if name not in found:
        raise WorkloadError(f"{where}: no {name!r}; legal: one in each object")
    value = found[name]
    text = json.dumps(value) if isinstance(value, bool | int | float) else repr(value)
    if len(text) > MAX_CELL:
        raise WorkloadError(f"{where}: {name} of {len(text)} characters; legal: up to {MAX_CELL}")
    return text


def _objects(path: Path, text: str) -> Iterator[tuple[int, Object]]:
    at = _skip(text, 0)
    in_list = text.startswith("[", at)
    at = _skip(text, at + in_list)
    line, counted = 1, 0
    for count in range(MAX_ROWS + 1):
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}"
        if at == len(text) or (in_list and text.startswith("]", at)):
            break
        if count == MAX_ROWS:
            raise WorkloadError(f"{where}: more than {MAX_ROWS} rows; legal: up to {MAX_ROWS}")
        found, length = _decode(text, at, where)
        yield line, found
        at = _next(text, at + length, in_list, where)
    if in_list and (at == len(text) or _skip(text, at + 1) < len(text)):
        raise WorkloadError(f"{where}: no single list; legal: [ objects ] and nothing else")


def _decode(text: str, at: int, where: str) -> tuple[Object, int]:
    """Return the object that stands at a place of a text, and its length."""
    if not text.startswith("{", at):
        raise WorkloadError(f"{where}: {text[at : at + 20]!r}; legal: objects of JSON")
    for most in (MAX_OBJECT // 64, MAX_OBJECT):
        piece = text[at : at + most]
        try:
            return DECODER.raw_decode(piece)
        except RecursionError:
            raise WorkloadError(f"{where}: nested too deeply; legal: as published") from None
        except json.JSONDecodeError as error:
            said = f"{error.msg} at character {error.pos} of the object"
            if len(piece) < most:
                break
        except ValueError as error:
            raise WorkloadError(f"{where}: {error}; legal: objects of JSON") from None
    if len(piece) == MAX_OBJECT:
        said = f"{said}, and no end within {MAX_OBJECT} characters"
    raise WorkloadError(f"{where}: {said}; legal: JSON")


def _next(text: str, at: int, in_list: bool, where: str) -> int:
    """Return where the next object, or the end of the list, stands."""
    at = _skip(text, at)
    if not in_list or at == len(text) or text.startswith("]", at):
        return at
    if not text.startswith(",", at):
        raise WorkloadError(f"{where}: {text[at : at + 20]!r} after an object; legal: , or ]")
    at = _skip(text, at + 1)
    if text.startswith("]", at):
        raise WorkloadError(f"{where}: a comma before the ]; legal: an object behind each comma")
    return at


def _skip(text: str, at: int) -> int:
    """Return the place of the first character from `at` on that is no white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:40]!r} twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
