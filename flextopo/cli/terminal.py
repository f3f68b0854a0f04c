"""What commands say, and where: tables, JSON, progress; how many processes they use."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flextopo.cli.compiling import say_if_compiling
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole

if TYPE_CHECKING:
    from rich.progress import Progress

JsonPath = Annotated[
    Path | None,
    typer.Option("--json", help="Write the results there as JSON; - prints them instead of text."),
]
Workers = Annotated[int, typer.Option(help="Processes; 0 = one a core. No number depends on it.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", help="Play on a Ray cluster: its address, or local for one of its own."),
]


def num_workers(given: int) -> int:
    """Return how many processes to use: what was given, or one a core.

    Raises:
        FlextopoError: it is negative.
    """
    if given < 0:
        raise FlextopoError(f"workers = {given}; legal: 0 or more")
    return given or len(os.sched_getaffinity(0))


class Failed(Exception):
    """Report in one sentence what was not as it should be; the exit status is 1."""


@contextmanager
def results_to(path: Path | None) -> Iterator[Callable[[Any], None]]:
    """Yield what takes a command's results and writes them as one JSON document.

    Args:
        path: a file; `-` = standard output, where nothing else then goes: what is meant for people
            goes to standard error on a terminal, and else nowhere. None = no JSON.

    Raises:
        FlextopoError: the file cannot be written.
    """
    out = sys.stdout

    def write(results: Any) -> None:
        text = json.dumps(results, separators=(",", ":"), allow_nan=False) + "\n"
        if path == Path("-"):
            out.write(text)
            out.flush()
        elif path is not None:
            write_whole(path, text.encode())

    if path == Path("-"):
        shown = sys.stderr if sys.stderr.isatty() else None
        with open(os.devnull, "w") as nowhere, redirect_stdout(shown or nowhere):
            yield write
        return
    # An unwritable place shows before the work, not after.
    if path is not None:
        if path.is_dir():
            raise FlextopoError(f"--json {path}: is a folder; legal: a file to write, or -")
        make_folder(path.parent)
    yield write


@contextmanager
def _bar(what: str) -> Iterator[Progress | None]:
    """Show a progress bar on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        bar.add_task(what, total=None)
        yield bar


@contextmanager
def progress(what: str, kernels: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on a terminal, which is told how much of how much is done.

    Args:
        what: is being done.
        kernels: whether kernels run, which are compiled before the first time; that is said.
    """
    if kernels:
        say_if_compiling()
    with _bar(what) as bar:
        if bar is None:
            yield None
        else:
            task = bar.task_ids[0]
            yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def lines(what: str) -> Iterator[Callable[[str], None]]:
    """Print lines of work that reports in lines; on a terminal a bar moves with their `2/3`."""
    say_if_compiling()
    with _bar(what) as bar:

        def say(line: str) -> None:
            if bar is None:
                typer.echo(line)
                return
            if counts := re.search(r"(\d+)/(\d+)", line):
                done, total = map(int, counts.groups())
                bar.update(bar.task_ids[0], completed=done, total=total)
            if sys.stdout.isatty():
                bar.console.print(line, markup=False, highlight=False)
            else:
                typer.echo(line)

        yield say


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
