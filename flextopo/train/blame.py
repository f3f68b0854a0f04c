"""A game that a selector ends by its own mistake: who, what, and where in its file, in one sentence."""

from __future__ import annotations

import inspect
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

from flextopo.baselines.loading import describe
from flextopo.cluster.errors import FlextopoError, PodError
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.selectors import inner

MAX_SAID = 300
"""Characters of an exception's own words."""

NOT_THEIRS = (
    f"{Path(__file__).parents[1]}{os.sep}",
    *(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "purelib", "platlib")),
)
"""Folders whose files no user of ours has written."""


@contextmanager
def blaming(selector: VictimSelector, name: str, seed: int, more: str = "") -> Iterator[None]:
    """Play a game inside; tell what a selector of a user's does wrong as that selector's mistake.

    What a selector of ours does wrong goes on as it is, unless a file of the user's had a part in it.

    Args:
        selector: that plays.
        name: how the user named it.
        seed: of the tape.
        more: what else tells the game from others, such as a perturbation.

    Raises:
        FlextopoError: the selector raises something, ends the process, or answers what is not legal;
            names it, the exception, and file and line.
    """
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a user's selector may fail in any way
        place = _place_of(error)
        if not place and _is_ours(selector):
            raise
        game = f"on seed {seed}{more and f', {more}'}"
        if not place and isinstance(error, PodError):
            raise FlextopoError(
                f"selector {name!r}{_select_of(selector)} answers {game} what is not legal: {error}"
            ) from error
        where = f" at {place}" if place else _select_of(selector)
        raise FlextopoError(
            f"selector {name!r}{where} fails {game} ({_said(error)}); legal: one that decides"
        ) from error


def _is_ours(selector: VictimSelector) -> bool:
    return describe(inner(selector)).startswith("flextopo.")


def _place_of(error: BaseException) -> str:
    """Return file and line of the last frame in a user's file, empty where there is none."""
    found = ""
    for frame, line in walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if not name.startswith(("<", *NOT_THEIRS)):
            found = f"{_shown(name)}:{line}"
    return found


def _select_of(selector: VictimSelector) -> str:
    """Return where a selector decides, for what shows only after it has answered."""
    select: Any = inner(selector).select
    try:
        name, (_, line) = inspect.getsourcefile(select), inspect.getsourcelines(select)
    except (OSError, TypeError):  # of a prompt, or in C
        return ""
    return f" at {_shown(name)}:{line}" if name else ""


def _shown(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


def _said(error: BaseException) -> str:
    said = " ".join(str(error).split())[:MAX_SAID]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
