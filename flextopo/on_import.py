"""Tell other libraries what is here when they are imported, before or after this package.

gymnasium gets the environments, sb3-contrib's MaskablePPO the policy "CandidatePolicy". Importing the
package must import neither: gymnasium with what it needs takes a tenth of a second and 26 MiB, and
sb3-contrib brings torch; an agent on every node, the service and most commands need none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def _register_environments() -> None:
    from flextopo.envs.registration import register_environments

    register_environments()


def _register_policy() -> None:
    import_module("flextopo.policies.maskable")  # gives MaskablePPO the name of its policy


class _Finder(MetaPathFinder):
    """Finds a library as all others do, and has something registered at its end."""

    def __init__(self, name: str, register: Callable[[], None]) -> None:
        self.name, self.register = name, register

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        # The others are asked by the same question, which this one is not to answer again.
        sys.meta_path.remove(self)
        try:
            spec = find_spec(self.name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            with suppress(ValueError):
                sys.meta_path.remove(self)
            self.register()

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


LIBRARIES = {"gymnasium": _register_environments, "sb3_contrib": _register_policy}
"""Name of a library to what it is told."""


def register_on_import() -> None:
    """Register what each library needs now if it is there, else as soon as it is."""
    for name, register in LIBRARIES.items():
        if sys.modules.get(name) is not None:
            register()
        elif name not in sys.modules:  # None there says that it must not be imported
            sys.meta_path.insert(0, _Finder(name, register))
