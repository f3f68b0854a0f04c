"""Topology-aware preemption: environment, baselines, learned victim selectors, serving."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flextopo.on_import import register_on_import

if TYPE_CHECKING:
    from flextopo.api import (
        compare,
        load_servers,
        load_trace,
        make_selector,
        simulate,
    )
    from flextopo.policies.runtime import load_policy
    from flextopo.policies.selectors import register_selector

__version__ = "0.2.0"

__all__ = [
    "compare",
    "load_policy",
    "load_servers",
    "load_trace",
    "make_selector",
    "register_selector",
    "simulate",
]

if not TYPE_CHECKING:  # or type checkers would take any name for one of ours
    _HOMES = {
        "load_policy": "flextopo.policies.runtime",
        "register_selector": "flextopo.policies.selectors",
    }

    def __getattr__(name: str) -> Any:
        """Load a function when it is first used: importing the package must be quick."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES.get(name, "flextopo.api")), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


# Whoever imports gymnasium or sb3-contrib, too, gets what is here for them, in either order.
register_on_import()
