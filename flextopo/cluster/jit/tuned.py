"""Compile kernels with numba's internals, which takes half of the time; and a look at whether it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba import njit

from flextopo.cluster.jit.cache import KernelCache
from flextopo.cluster.jit.compiler import KernelCompiler, ProgramCompiler
from flextopo.cluster.jit.plain import warn_of_no_cache

P = ParamSpec("P")
R = TypeVar("R")


def tuned(function: Callable[P, R], whole: bool = False, **options: Any) -> Callable[P, R]:
    """Compile a function on first use, cached on disk by a hash of all sources.

    Args:
        function: to compile.
        whole: give it a copy of its own of everything that it calls.
        **options: of `numba.njit`, and numba's own.
    """
    compiler = ProgramCompiler if whole else KernelCompiler
    compiled = njit(pipeline_class=compiler, **options)(function)
    if hasattr(compiled, "_cache"):  # without NUMBA_DISABLE_JIT
        try:
            compiled._cache = KernelCache(function)  # type: ignore[no-untyped-call]
        except RuntimeError:  # no folder takes files
            warn_of_no_cache()
    result: Callable[P, R] = compiled
    return result


def _halve(x: int) -> int:
    return x // 2


halve = tuned(_halve, _nrt=False, forceinline=True)


def _swap(numbers: npt.NDArray[np.int64], at: int) -> int:
    other = len(numbers) - 1 - at
    numbers[at], numbers[other] = numbers[other], numbers[at]
    return other


swap = tuned(_swap, _nrt=False, inline="always")


def _reverse(numbers: npt.NDArray[np.int64]) -> int:
    last = 0
    for at in range(halve(len(numbers))):
        last = swap(numbers, at)
    return last


reverse = tuned(_reverse, _nrt=False, nogil=True)


def _turn(numbers: npt.NDArray[np.int64]) -> int:
    return reverse(numbers) + reverse(numbers[1:])


turn = tuned(_turn, whole=True, _nrt=False, nogil=True)


def check_itself() -> None:
    """Compile a program that needs all of this, or find it in the cache, and look at what it does.

    Raises:
        RuntimeError: it does something else; whatever else numba raises where its inside differs.
    """
    numbers = np.arange(5)
    last = turn(numbers)
    if (last, numbers.tolist()) != (3 + 2, [4, 0, 1, 2, 3]):
        raise RuntimeError(f"numba {numba.__version__} turns 0 to 4 into {numbers.tolist()}")
