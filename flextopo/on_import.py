"""Register the environments when gymnasium is imported, before or after this package.

Importing the package must not import gymnasium, which with what it needs takes a tenth of a second and
26 MiB: an agent on every node, the service and most commands make no environment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

NAME = "gymnasium"


def _register() -> None:
    from flextopo.envs.registration import register_environments

    register_environments()


class _Finder(MetaPathFinder):
    """Finds gymnasium as all others do, and has the environments registered at its end."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != NAME:
            return None
        # The others are asked by the same question, which this one is not to answer again.
        sys.meta_path.remove(self)
        try:
            spec = find_spec(NAME)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            with suppress(ValueError):
                sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register_on_import() -> None:
    """Register the environments now if gymnasium is there, else as soon as it is."""
    if sys.modules.get(NAME) is not None:
        _register()
    elif NAME not in sys.modules:  # None there says that it must not be imported
        sys.meta_path.insert(0, _Finder())
