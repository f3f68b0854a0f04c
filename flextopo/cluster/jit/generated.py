"""Functions written from a table of fields, as `dataclasses` does it: kernels cannot loop over names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def define(
    name: str, parameters: str, lines: Iterable[str], file: str, **names: Any
) -> Callable[..., Any]:
    """Return the function of these lines.

    Args:
        name: of the function.
        parameters: as between its brackets.
        lines: its body, indented from 0.
        file: the module that asks, under which the machine code is kept.
        names: what the lines refer to.
    """
    body = "".join(f"    {line}\n" for line in lines)
    namespace = dict(names)
    exec(compile(f"def {name}({parameters}):\n{body}", file, "exec"), namespace)  # noqa: S102
    function: Callable[..., Any] = namespace[name]
    function.__module__ = str(names.get("__name__", __name__))
    return function
