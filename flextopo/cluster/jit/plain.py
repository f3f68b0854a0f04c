"""Compile kernels by numba's public interface alone; and the switch and the warnings about it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from multiprocessing import parent_process
from typing import Any, ParamSpec, TypeVar

from numba import njit

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.jit.sources import SOURCES

P = ParamSpec("P")
R = TypeVar("R")

SWITCH = "FLEXTOPO_PLAIN_NUMBA"
"""Environment variable: 1 = leave numba's internals alone."""


class KernelWarning(UserWarning):
    """Say that compiling kernels takes longer than it could."""


@cache
def warn_once(message: str) -> None:
    """Warn, unless it was said before; workers leave it to the process that started them."""
    if parent_process() is None:
        warnings.warn(message, KernelWarning, stacklevel=2)


def warn_of_no_cache() -> None:
    """Say that no folder takes compiled kernels."""
    warn_once(
        "compiled kernels cannot be kept, so each process compiles them again: neither "
        "NUMBA_CACHE_DIR, the package's folder nor the user's cache folder takes files"
    )


def is_switched_on() -> bool:
    """Say whether the user asks for it.

    Raises:
        FlextopoError: the variable has another value than 0, 1 or none.
    """
    said = os.environ.get(SWITCH) or "0"
    if said not in ("0", "1"):
        raise FlextopoError(f"{SWITCH} = {said!r}; legal: 0, 1")
    return said == "1"


def plain(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """Compile a function on first use, cached by numba.

    Args:
        function: to compile.
        **options: of `numba.njit`.
    """
    name = function.__qualname__
    # Numba names its files after this, and would take no notice of a change to a callee.
    function.__qualname__ = f"{name}_{SOURCES}"
    result: Callable[P, R]
    try:
        result = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder takes files
        warn_of_no_cache()
        result = njit(**options)(function)
    finally:
        function.__qualname__ = name
    return result
