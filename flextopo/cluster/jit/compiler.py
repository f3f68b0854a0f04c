"""Numba's compiler, told what holds for kernels, so that it compiles sooner and what it makes runs faster.

All of this is numba's inside, which a new version may change; `kernels.py` does without where it has:
the first call then takes 40 instead of 20 s.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite
from llvmlite.binding import Linkage
from numba import types
from numba.core import inline_closurecall, ir
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.inline_closurecall import InlineWorker
from numba.core.typed_passes import NopythonRewrites


def _as_unsigned(index: Any) -> Any:
    if isinstance(index, types.Tuple | types.UniTuple):
        return types.Tuple([_as_unsigned(entry) for entry in index.types])  # type: ignore[no-untyped-call]
    computed = isinstance(index, types.Integer) and not isinstance(index, types.Literal)
    return types.uintp if computed else index


@register_pass(mutates_CFG=False, analysis_only=False)  # type: ignore[no-untyped-call]
class _NoWrapAround(FunctionPass):
    """Take computed indices for what they are in kernels, 0 or more.

    Numba would compare each with 0, since negative ones count from the end, and add the length.
    """

    _name = "flextopo_no_wrap_around"

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def run_pass(self, state: Any) -> bool:
        """Declare the indices unsigned where arrays are read and written."""
        for node, signature in list(state.calltypes.items()):
            reads = isinstance(node, ir.Expr) and node.op == "getitem"
            if not reads and not isinstance(node, ir.SetItem):
                continue
            of, index, *value = signature.args
            if isinstance(of, types.Array):
                del state.calltypes[node]  # which takes no key twice
                args = (of, _as_unsigned(index), *value)
                state.calltypes[node] = signature.replace(args=args)
        return True


class _Library(JITCodeLibrary):
    """Machine code that is optimised once, when what it calls has been linked in."""

    def _optimize_functions(self, ll_module: Any) -> None:
        """Leave the functions as they are; the passes over the whole do the same again."""
        ll_module.data_layout = self._codegen._data_layout


LARGE = 500
"""Instructions from which on a function of a program is not merged with its only caller."""

CAN_KEEP_APART = tuple(map(int, llvmlite.__version__.split(".")[:2])) >= (0, 48)
"""Whether functions can be told so; older ones tell it of what they return, and LLVM aborts."""


class _Program(_Library):
    """Machine code in which what is called is nobody else's."""

    def _optimize_final_module(self) -> None:
        """Say so before the passes, which then drop arguments that are not used.

        Names become the program's, too: the linker takes a function with fewer arguments for
        another library's of the same name.
        """
        for function in self._final_module.functions:
            if function.is_declaration or function.linkage != Linkage.linkonce_odr:
                continue
            function.linkage = Linkage.internal
            function.name = f"{function.name}.{self.name}"
            size = sum(1 for block in function.blocks for _ in block.instructions)
            large = CAN_KEEP_APART and size > LARGE
            if large and b"alwaysinline" not in b" ".join(function.attributes):
                function.add_function_attribute("noinline")
        super()._optimize_final_module()  # type: ignore[no-untyped-call]


class _Flags(Flags):
    """Numba's flags, compared quickly: it looks them up wherever an operator is typed."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Compare those that are set; only where these differ the defaults matter, too."""
        if isinstance(other, Flags) and self._values == other._values:
            return True
        return bool(super().__eq__(other))  # type: ignore[no-untyped-call]

    def __hash__(self) -> int:
        """Return what all flags have, which numba computes from their names."""
        return _HASH


_HASH = hash(Flags())  # type: ignore[no-untyped-call]


class _Inliner(InlineWorker):
    """Numba's inliner of functions, without the two copies that it makes of each."""

    def inline_function(
        self, caller_ir: Any, block: Any, i: int, function: Callable[..., Any], arg_typs: Any = None
    ) -> Any:
        """Inline a function, whose representation nobody else holds."""
        callee = self.run_untyped_passes(function)  # type: ignore[no-untyped-call]
        for own in callee.blocks.values():
            own.__deepcopy__ = lambda memo, own=own: own
        free = function.__code__.co_freevars
        return self.inline_ir(caller_ir, block, i, callee, free, arg_typs)  # type: ignore[no-untyped-call]


@contextmanager
def _in_haste() -> Iterator[None]:
    """Compile with that inliner, and collect no garbage meanwhile: it is a sixth of the time."""
    collects, inliner = gc.isenabled(), inline_closurecall.InlineWorker
    gc.disable()
    # Numba holds its lock meanwhile.
    inline_closurecall.InlineWorker = _Inliner  # type: ignore[misc]
    try:
        yield
    finally:
        inline_closurecall.InlineWorker = inliner  # type: ignore[misc]
        if collects:
            gc.enable()


class KernelCompiler(CompilerBase):
    """Numba's own compiler with all of this."""

    library_class = _Library

    def compile_extra(self, func: Any) -> Any:
        """Compile a function."""
        codegen = self.state.targetctx.codegen()
        library = self.library_class(codegen, func.__qualname__)  # type: ignore[no-untyped-call]
        library.enable_object_caching()  # type: ignore[no-untyped-call]
        self.state.library = library
        self.state.flags = _Flags(self.state.flags)  # type: ignore[no-untyped-call]
        self.state.flags.no_cfunc_wrapper = True  # no C code calls kernels
        with _in_haste():
            return super().compile_extra(func)  # type: ignore[no-untyped-call]

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)  # type: ignore[no-untyped-call]
        passes.add_pass_after(_NoWrapAround, NopythonRewrites)
        passes.finalize()
        return [passes]


class ProgramCompiler(KernelCompiler):
    """The same for a kernel that has a copy of its own of everything it calls."""

    library_class = _Program
