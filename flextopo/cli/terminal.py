"""What commands share on a terminal: tables, progress bars, how many processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from flextopo.cluster.errors import FlextopoError

RayAddress = Annotated[
    str | None,
    typer.Option("--ray", help="Play on a Ray cluster: its address, or local for one of its own."),
]


def format_table(rows: list[list[str]]) -> str:
    """Lay the rows out in columns; a heading may have several lines."""
    head, *body = rows
    stacked = [cell.split("\n") for cell in head]
    height = max(map(len, stacked))
    heads = [[words[i] if i < len(words) else "" for words in stacked] for i in range(height)]
    widths = [max(len(row[i]) for row in [*heads, *body]) for i in range(len(head))]
    lines = []
    for row in [*heads, *body]:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def num_workers(given: int) -> int:
    """Return how many processes to use: what was given, or one a core.

    Raises:
        FlextopoError: it is negative.
    """
    if given < 0:
        raise FlextopoError(f"workers = {given}; legal: 0 or more")
    return given or len(os.sched_getaffinity(0))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on a terminal; say nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Tell in one sentence which extra of the package an import inside needs.

    Raises:
        FlextopoError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "flextopo").partition(".")[0] == "flextopo":
            raise
        raise FlextopoError(
            f"{error.name} is not installed; legal: pip install 'flextopo[{extra}]'"
        ) from None
