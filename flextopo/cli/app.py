"""`flextopo`: the map of its commands, and how mistakes are told.

Exit statuses: 0 fine, 1 something failed or is not as it should be, 2 a mistake in what was given,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import flextopo
from flextopo.cli import (
    ablate,
    agent,
    bench,
    compare,
    doctor,
    export,
    fit,
    listing,
    record,
    replay,
    report,
    reproduce,
    serving,
    stress,
    sweep,
    topology,
    trace,
)
from flextopo.cli import train as training
from flextopo.cli.commands import Command, Commands
from flextopo.cli.compiling import arm
from flextopo.cli.terminal import Failed
from flextopo.cluster.errors import FlextopoError

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Each command's help ends with examples, such as `flextopo compare --help`.",
)

MAP: dict[str, dict[str, Callable[..., Any]]] = {
    "Look around": {"list": listing.list_names},
    "Compare": {
        "compare": compare.compare,
        "stress": stress.stress,
        "replay": replay.replay,
        "report": report.report,
        "reproduce": reproduce.reproduce,
    },
    "Train": {
        "train": training.train,
        "evaluate": compare.evaluate,
        "sweep": sweep.sweep,
        "ablate": ablate.ablate,
        "fit-requeue": fit.fit_requeue,
        "fit-ranges": fit.fit_ranges,
        "export": export.export,
        "push": export.push,
        "pull": export.pull,
    },
    "Serve": {
        "decide": serving.decide,
        "serve": serving.serve,
        "agent": agent.agent,
        "shadow-report": serving.shadow_report,
        "record": record.record,
        "what-if": record.what_if,
        "doctor": doctor.doctor,
    },
}
"""Panel of the help to command; in the order in which one uses them."""

for panel, commands in MAP.items():
    for name, command in commands.items():
        app.command(name, cls=Command, rich_help_panel=panel)(command)
app.add_typer(topology.app, name="topology", rich_help_panel="Look around")
app.add_typer(trace.app, name="trace", rich_help_panel="Look around")
app.add_typer(bench.app, name="bench", rich_help_panel="Compare")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"flextopo {flextopo.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Learn which pods to preempt, on hardware whose topology matters."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: as on a command line; None = those of this process.
    """
    if arguments is None:
        arm()
    warnings.simplefilter("always")
    warnings.showwarning = _show_own
    try:
        with _modules_here():
            app(args=arguments, prog_name="flextopo")
    except FlextopoError as error:
        _stop(f"error: {error}", 2)
    except Failed as error:
        _stop(f"error: {error}", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _stop(f"error: {where}{error.strerror or error}", 1)
    except SystemExit as stop:
        # Typer turns an interrupt into an exit with that status and no word.
        if stop.code == 130:
            kept = str((stop.__context__ and stop.__context__.__cause__) or "")
            typer.echo(f"interrupted: {kept or 'nothing was written'}", err=True)
        raise


@contextmanager
def _modules_here() -> Iterator[None]:
    """Let `MODULE:NAME` also mean a module of the working directory, behind all others."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _stop(said: str, status: int) -> None:
    typer.echo(said, err=True)
    sys.exit(status)


def _show_own(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Show a warning of this package in one line, and none of its libraries."""
    if category.__module__.startswith("flextopo."):
        typer.echo(f"warning: {message}", err=True)
