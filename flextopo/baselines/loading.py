"""Selectors from what people write: `module:name`, a class or an object, checked in one place.

No kernel is imported here, so that names can be listed and completed without compiling any.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.decision import AlignmentFilter

if TYPE_CHECKING:
    from flextopo.cluster.state.selector import VictimSelector

    # What people may give for a selector; the last is what worker processes get.
    Named: TypeAlias = "str | VictimSelector | type[VictimSelector] | PickledSelector"

IMPORT_TEXT = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
"""What names a selector, or its class, in a module: `my_rules:LeastWork`."""


def load_attribute(text: str) -> Any:
    """Return what `module:name` names.

    Raises:
        FlextopoError: there is no such module, it fails, or it has no such name.
    """
    module, _, path = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise FlextopoError(
                f"selector {text!r}: no module {error.name!r}; legal: a module that Python finds"
            ) from None
        raise FlextopoError(
            f"selector {text!r}: its module fails with {_said(error)}; "
            "legal: a module that can be imported"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            selectors = [key for key, value in vars(found).items() if hasattr(value, "select")]
            known = ", ".join(selectors) or "the name of a selector or of its class"
            raise FlextopoError(f"selector {text!r}: {module} has no {name!r}; legal: {known}")
        found = getattr(found, name)
    return found


def build(source: Any, seed: int = 0, text: str = "") -> VictimSelector:
    """Return the selector that a class makes, or that an object is.

    Args:
        source: a selector, its class, or a `PickledSelector`. A class is made without arguments, but
            for `seed` if it takes one.
        seed: of this game.
        text: how the user named it, for messages.

    Raises:
        FlextopoError: the class wants other arguments or fails, or what it makes is no selector.
    """
    if isinstance(source, PickledSelector):
        source, text = source.open(), source.name
    text = text or describe(source)
    return check_selector(_instance(source, seed, text), text)


def _instance(source: Any, seed: int, text: str) -> Any:
    if not isinstance(source, type):
        return source
    try:
        parameters = inspect.signature(source).parameters
    except (TypeError, ValueError):  # of a class written in C
        parameters = inspect.Signature().parameters
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name != "seed"
    ]
    if needed:
        raise FlextopoError(
            f"selector {text!r}: its class needs {', '.join(needed)}; "
            "legal: a class that needs nothing but seed, or an object"
        )
    try:
        return source(seed=seed) if "seed" in parameters else source()
    except (Exception, SystemExit) as error:  # a user's class may fail in any way
        raise FlextopoError(
            f"selector {text!r}: its constructor fails with {_said(error)}; "
            "legal: a class that can be made"
        ) from error


def check_selector(found: Any, text: str) -> VictimSelector:
    """Return a selector, if it is one.

    Raises:
        FlextopoError: `name`, `filter` or `select` is missing, or is of another kind.
    """
    missing = [name for name in ("name", "filter", "select") if not hasattr(found, name)]
    if missing:
        raise FlextopoError(
            f"selector {text!r} lacks {', '.join(missing)}; "
            "legal: name, filter and select(cluster, preemptor)"
        )
    if not isinstance(found.name, str) or not found.name:
        raise FlextopoError(f"selector {text!r}: name = {found.name!r}; legal: a word")
    if not isinstance(found.filter, AlignmentFilter):
        legal = ", ".join(f"AlignmentFilter.{member.name}" for member in AlignmentFilter)
        raise FlextopoError(f"selector {text!r}: filter = {found.filter!r}; legal: {legal}")
    if not callable(found.select):
        raise FlextopoError(f"selector {text!r}: select is no method; legal: one that decides")
    return found  # type: ignore[no-any-return]


def describe(source: Any) -> str:
    """Return where a selector's class is: `module:Class`; text as it is."""
    if isinstance(source, str):
        return source
    kind = source if isinstance(source, type) else type(source)
    return f"{kind.__module__}:{kind.__qualname__}"


@dataclass(frozen=True)
class PickledSelector:
    """A selector, or its class, on its way to a worker process.

    Attributes:
        name: the selector's.
        source: `module:Class`.
        blob: its pickle.
    """

    name: str
    source: str
    blob: bytes

    @classmethod
    def of(cls, source: Any) -> PickledSelector:
        """Pickle a selector or its class.

        Raises:
            FlextopoError: it cannot be pickled.
        """
        name = build(source).name
        try:
            return cls(name, describe(source), pickle.dumps(source))
        except Exception as error:  # whatever its own __reduce__ raises, too
            raise FlextopoError(
                f"selector {name!r} cannot be sent to worker processes ({_said(error)}); "
                "legal: workers = 1, or what can be pickled"
            ) from error

    def open(self) -> Any:
        """Return the selector or its class.

        Raises:
            FlextopoError: this process does not find its class.
        """
        try:
            return pickle.loads(self.blob)
        except Exception as error:  # whatever importing its module raises
            raise FlextopoError(
                f"selector {self.name!r} cannot be made in a worker process ({_said(error)}); "
                "legal: workers = 1, or a class in a module that can be imported"
            ) from error


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
