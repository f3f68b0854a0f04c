"""How kernels are compiled, and where the machine code is kept between runs."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.core import caching
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

from flextopo.cluster.jit.compiler import KernelCompiler, ProgramCompiler

P = ParamSpec("P")
R = TypeVar("R")


KEEP_S = 7 * 86400
"""Age at which the compiled kernels of another version are deleted; younger ones may be in use."""


def _hash_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


SOURCES = _hash_sources()
"""Hash of the sources of `cluster/`: numba's own cache looks at a kernel's file, not at its callees'."""


class _OfThisVersion:
    """Mixin for numba's cache locators: a folder for each version of the sources."""

    def get_cache_path(self) -> str:
        return str(Path(super().get_cache_path()) / f"flextopo-{SOURCES}")  # type: ignore[misc]

    def ensure_cache_path(self) -> None:
        """Create the folder; when it is new, those go that nobody has written to for a week."""
        folder = Path(self.get_cache_path())
        if not folder.exists():
            for old in folder.parent.glob("flextopo-*"):
                with suppress(FileNotFoundError):  # somebody else was faster
                    if time.time() - old.stat().st_mtime > KEEP_S:
                        shutil.rmtree(old, ignore_errors=True)
        super().ensure_cache_path()  # type: ignore[misc]


class _Given(_OfThisVersion, caching.UserProvidedCacheLocator):
    pass


class _BesideTheSource(_OfThisVersion, caching.InTreeCacheLocator):
    pass


class _OfTheUser(_OfThisVersion, caching.UserWideCacheLocator):
    pass


class _CacheFiles(caching.CompileResultCacheImpl):
    _locator_classes = [_Given, _BesideTheSource, _OfTheUser]  # noqa: RUF012


class _Cache(caching.FunctionCache):
    _impl_class = _CacheFiles


def _compile(
    function: Callable[P, R], compiler: type[KernelCompiler] = KernelCompiler, **options: Any
) -> Callable[P, R]:
    compiled = njit(pipeline_class=compiler, **options)(function)
    if hasattr(compiled, "_cache"):  # without NUMBA_DISABLE_JIT
        compiled._cache = _Cache(function)  # type: ignore[no-untyped-call]
    result: Callable[P, R] = compiled
    return result


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel that allocates nothing, on first use, cached on disk.

    The cache is `NUMBA_CACHE_DIR` if given, else beside the source, else (a read-only installation)
    in the user's cache folder. Without numba's run time a kernel counts no references to arrays,
    which took more than half of the time. Such a kernel calls only such kernels, and copies slices
    in loops. It lets other threads run meanwhile. An index that it computes must not be negative
    (`NUMBA_BOUNDSCHECK=1`, with a cache of its own, says where one is).
    """
    return _compile(function, _nrt=False, nogil=True)


def program(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel together with all kernels that it calls: for the outermost of hot ones.

    Calls then hand over what is used, instead of a hundred words of array descriptions.
    """
    return _compile(function, ProgramCompiler, _nrt=False, nogil=True)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a small helper into its callers, as machine code.

    A call costs more than what these do.
    """
    return _compile(function, _nrt=False, forceinline=True)


def stage(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a step of a kernel into its one or two callers, as Python.

    It is never compiled by itself then: LLVM would optimise it alone and again in each caller,
    which was most of the time of the first call.
    """
    return _compile(function, _nrt=False, inline="always")


def copying_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel that copies whole arrays, which needs numba's run time."""
    return _compile(function, nogil=True)


def fetch_and_add(counter: npt.NDArray[np.int64]) -> int:
    """Return entry 0 and add 1 to it, in one step that no other thread comes between."""
    counter[0] += 1
    return int(counter[0] - 1)


@intrinsic
def _atomic_add(typing_context: Any, counter: types.Array) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])  # type: ignore[no-untyped-call]
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw("add", array.data, one, "monotonic")

    return types.int64(counter), generate


@overload(fetch_and_add, strict=False)
def _fetch_and_add(counter: Any) -> Any:
    return lambda counter: _atomic_add(counter)  # type: ignore[call-arg]


def popcount(mask: int) -> int:
    """Count the bits set in a mask of 64 bits."""
    return (int(mask) & (1 << 64) - 1).bit_count()


def lowest_bit(mask: int) -> int:
    """Return the number of the lowest bit set in a mask that is not 0."""
    mask = int(mask)
    return (mask & -mask).bit_length() - 1


@intrinsic
def _ctpop(typing_context: Any, mask: types.Integer) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), generate


@intrinsic
def _cttz(typing_context: Any, mask: types.Integer) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.int64(types.int64), generate


@overload(popcount, strict=False)
def _popcount(mask: Any) -> Any:
    return lambda mask: _ctpop(mask)  # type: ignore[call-arg]


@overload(lowest_bit, strict=False)
def _lowest_bit(mask: Any) -> Any:
    return lambda mask: _cttz(mask)  # type: ignore[call-arg]
