"""What every command shares: examples below its help, a bare `--json`, mistakes in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from flextopo.cluster.errors import FlextopoError

UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""What typer raises for a wrong command line; the class lies elsewhere in older versions."""


class Command(TyperCommand):
    """A command whose docstring may end with `Examples:`, one command line each.

    `--json` alone, last or before another option, means `--json -`.
    """

    def __init__(self, name: str | None, *, help: str | None = None, **more: Any) -> None:
        about, _, examples = (help or "").partition("\n\nExamples:\n")
        self.examples = [line.strip() for line in examples.splitlines()]
        super().__init__(name, help=_join_lines(about), **more)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # Typer prints its part at once; what is written here follows, as it stands: to be copied.
        super().format_help(ctx, formatter)
        if self.examples:
            formatter.write("\n ".join([" Examples:", *(f"  {line}" for line in self.examples)]))
            formatter.write("\n")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words: list[str] = []
        for word, following in zip_longest(args, args[1:], fillvalue="--"):
            bare = word == "--json" and following.startswith("-") and following != "-"
            words += [word, "-"] if bare else [word]
        try:
            return super().parse_args(ctx, words)
        except UsageError as error:
            error.ctx = error.ctx or ctx  # some do not say which command's help to see
            raise


class Commands(TyperGroup):
    """All commands; a wrong command line is a `FlextopoError`, told like any other mistake."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _in_one_sentence():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_sentence():
            return super().invoke(ctx)


@contextmanager
def _in_one_sentence() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise  # its message is the whole help
        said = " ".join(error.format_message().split()).rstrip(".")
        command = error.ctx.command_path if error.ctx else "flextopo"
        raise FlextopoError(
            f"{said[:1].lower()}{said[1:]}; legal: see `{command} --help`"
        ) from None


def _join_lines(text: str) -> str:
    """Return the paragraphs of a docstring, one line each, so that they wrap where they are shown."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
