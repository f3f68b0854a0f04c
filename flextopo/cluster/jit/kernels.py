"""How kernels are compiled, and where the machine code is kept between runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

from flextopo.cluster.jit.generated import define
from flextopo.cluster.jit.plain import SWITCH, is_switched_on, plain, warn_once

P = ParamSpec("P")
R = TypeVar("R")


def _find_tuned() -> Callable[..., Any] | None:
    """Return `tuned.tuned`, None where it is not wanted or numba's internals are not as known."""
    if is_switched_on():
        return None
    try:
        from flextopo.cluster.jit import tuned

        tuned.check_itself()
    except Exception as error:  # noqa: BLE001  whatever it is, kernels do without
        why = str(error).partition("\n")[0]
        warn_once(
            f"numba {numba.__version__} is not as tested inside ({type(error).__name__}: {why}), so "
            f"that kernels are compiled plainly and in twice the time; {SWITCH}=1 asks for just that"
        )
        return None
    return tuned.tuned


_tuned = _find_tuned()


def _compile(function: Callable[P, R], public: dict[str, Any], **internal: Any) -> Callable[P, R]:
    """Compile with options of `numba.njit`, and with those of `tuned` where it works."""
    if _tuned is None:
        return plain(function, **public)
    compiled: Callable[P, R] = _tuned(function, **public, **internal)
    return compiled


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel that allocates nothing, on first use, cached on disk.

    The cache is `NUMBA_CACHE_DIR` if given, else beside the source, else (a read-only installation)
    in the user's cache folder, else nowhere. Without numba's run time a kernel counts no references to arrays,
    which took more than half of the time. Such a kernel calls only such kernels, and copies slices
    in loops. It lets other threads run meanwhile. An index that it computes must not be negative
    (`NUMBA_BOUNDSCHECK=1`, with a cache of its own, says where one is).
    """
    return _compile(function, {"nogil": True}, _nrt=False)


def program(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel together with all kernels that it calls: for the outermost of hot ones.

    Calls then hand over what is used, instead of a hundred words of array descriptions.
    """
    return _compile(function, {"nogil": True}, _nrt=False, whole=True)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a small helper into its callers, as machine code.

    A call costs more than what these do.
    """
    return _compile(function, {}, _nrt=False, forceinline=True)


def stage(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a step of a kernel into its one or two callers, as Python.

    It is never compiled by itself then: LLVM would optimise it alone and again in each caller,
    which was most of the time of the first call.
    """
    return _compile(function, {"inline": "always"}, _nrt=False)


def copying_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel that copies whole arrays, which needs numba's run time."""
    return _compile(function, {"nogil": True})


def with_network(otherwise: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a kernel one that clusters without a network never compile: there it is `otherwise`.

    Its first argument is a `Cluster`, whose array `network` is of another type where there is one. What is
    left for those without are the arrays for gangs, empty ones, that every kernel is handed.
    """

    def gate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = ", ".join(inspect.signature(function).parameters)
        compiled = kernel(function)
        name, first = function.__name__, parameters.partition(",")[0]
        entry = define(
            name,
            parameters,
            [f"return compiled({parameters}) if len({first}.network) else otherwise"],
            __file__,
            compiled=compiled,
            otherwise=otherwise,
        )
        there = define(
            name, parameters, [f"return compiled({parameters})"], __file__, compiled=compiled
        )
        nowhere = define(name, parameters, ["return otherwise"], __file__, otherwise=otherwise)

        def choose(cluster: Any) -> Callable[..., Any]:
            network = cluster.types[cluster.fields.index("network")]
            return nowhere if network.dtype == types.int8 else there

        picked = define("picked", parameters, [f"return choose({first})"], __file__, choose=choose)
        overload(entry, strict=False)(picked)
        entry.__doc__ = function.__doc__
        return entry

    return gate


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


def prefetch(array: npt.NDArray[Any], at: int) -> None:
    """Begin to read the line of memory `at` bytes behind the beginning of an array, for later.

    It waits for nothing and changes nothing, whatever stands there.
    """


@intrinsic
def _prefetch(typing_context: Any, array: types.Array, at: types.Integer) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, args[0]).data  # type: ignore[no-untyped-call]
        pointer, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, whole, whole, whole])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        line = builder.gep(builder.bitcast(data, pointer), [args[1]])
        # To read, into the second level (3 would be the first, where all of it takes 10 % longer), data.
        builder.call(function, [line, whole(0), whole(2), whole(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@overload(prefetch, strict=False)
def _prefetch_line(array: Any, at: Any) -> Any:
    return lambda array, at: _prefetch(array, at)  # type: ignore[call-arg]


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
