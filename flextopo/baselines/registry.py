"""The one registry of selectors: tests, command line, report and README read it.

Selectors stand here as text, so that names are known without importing any of them.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from flextopo.baselines.loading import PickledSelector, build, load_attribute
from flextopo.cluster.errors import FlextopoError, UnknownNameError

if TYPE_CHECKING:
    from flextopo.baselines.loading import Named
    from flextopo.cluster.state.selector import VictimSelector

GROUP = "flextopo.selectors"
"""Entry points of other packages: each a name and `module:name` of a selector or its class."""


class SelectorWarning(UserWarning):
    """Tell of a selector of another package that cannot be had under its name."""


class Entry(NamedTuple):
    """A selector that has a name.

    Attributes:
        source: `module:name`, or the selector or its class itself.
        about: what it does.
    """

    source: Any
    about: str


_POLICIES = "flextopo.baselines.policies"

SELECTORS: dict[str, Entry] = {
    "random": Entry(f"{_POLICIES}:RandomCandidate", "any of the 64 cheapest minimal victim sets"),
    "kubernetes": Entry(
        f"{_POLICIES}:KUBERNETES", "default preemption of kube-scheduler 1.36, blind to topology"
    ),
    "godel": Entry(f"{_POLICIES}:GODEL", "Gödel's standard preemption, blind to topology"),
    "flextopo-best-effort": Entry(
        f"{_POLICIES}:FLEXTOPO_BEST_EFFORT",
        "the paper's algorithms 1 and 2, every pod best-effort or what it asks beyond",
    ),
    "flextopo-guaranteed": Entry(
        f"{_POLICIES}:FLEXTOPO_GUARANTEED",
        "the paper's algorithms 1 and 2 behind the guaranteed filter for every pod",
    ),
    "flextopo": Entry(
        f"{_POLICIES}:FlexTopo", "the paper's algorithms, following each pod's own requirement"
    ),
    "kubernetes-workload": Entry(
        "flextopo.baselines.kubernetes_workload:KubernetesWorkload",
        "gangs by workload-aware preemption of kube-scheduler 1.37, single pods as kubernetes",
    ),
    "kueue": Entry(
        "flextopo.baselines.kueue:Kueue",
        "gangs by Kueue's topology-aware scheduling and preemption, single pods as kubernetes",
    ),
    "volcano": Entry(
        "flextopo.baselines.volcano:Volcano",
        "gangs node by node, none that requires a part of the network; single pods as kubernetes",
    ),
    "greedy-cost": Entry(f"{_POLICIES}:GreedyCost", "the candidate with the least loss of its own"),
    "requeue-aware": Entry(
        "flextopo.baselines.requeue:RequeueAware",
        "least own loss, and hours that victims of that size will wait for a new place",
    ),
    "requeue-aware-gangs": Entry(
        "flextopo.baselines.requeue:REQUEUE_AWARE_GANGS",
        "requeue-aware with hours that were fitted where replicas span servers",
    ),
    "gfs": Entry(
        "flextopo.baselines.gfs:Gfs",
        "GFS's preemption cost for spot tasks: work since the checkpoint, and tasks evicted",
    ),
    "lookahead": Entry(
        "flextopo.baselines.rollout:Lookahead",
        "tries its best candidates in the one future of median run times",
    ),
    "exact": Entry(
        "flextopo.baselines.exact:Exact",
        "the least loss of its own over all victim sets, by branch and bound; slow",
    ),
    "oracle-lookahead": Entry(
        f"{_POLICIES}:OracleLookahead",
        "tries its best candidates on the same tape to its end; knows the future",
    ),
    "rollout": Entry(
        "flextopo.baselines.rollout:Rollout",
        "the same over futures sampled from the workload model: what a policy can hope to know",
    ),
}
"""Name to entry; `flextopo.register_selector` adds to it. `random` and `rollout` use the seed of the game."""

BUILT_IN = tuple(SELECTORS)

LOOKAHEAD = ("oracle-lookahead", "rollout", "lookahead")
"""Selectors that branch a simulation, and take their time."""

ORACLES = ("oracle-lookahead",)
"""Those among them that know the future: no snapshot will do."""


def looks_ahead(name: str) -> bool:
    """Say whether a selector branches a simulation, by its name or how it is put together."""
    return "+plan@" in name or re.split("[+@]", name)[0] in LOOKAHEAD


GANG_RULES = ("kubernetes-workload", "kueue", "volcano")
"""Selectors that differ from `kubernetes` for gangs alone."""

FOR_GANGS = (*GANG_RULES, "requeue-aware-gangs")
"""Selectors that are made for gangs."""

COMPARED = tuple(name for name in BUILT_IN if name not in ("rollout", *FOR_GANGS))
"""Selectors of a comparison that names none: `rollout` costs more than all the others, and most days have
no gangs."""

COMPARED_WITH_GANGS = tuple(name for name in BUILT_IN if name not in ("rollout", "exact"))
"""The same where there are gangs, for which `exact` needs a solver that is not always there."""


def make_selector(name: str, seed: int = 0) -> VictimSelector:
    """Return the selector called `name`.

    Raises:
        UnknownNameError: no selector has that name.
        FlextopoError: it cannot be made, or calls itself otherwise.
    """
    entry = SELECTORS.get(name) or plugins().get(name)
    if entry is None:
        raise UnknownNameError("selector", name, list(known_selectors()))
    text = entry.source if isinstance(entry.source, str) else name
    source = load_attribute(entry.source) if isinstance(entry.source, str) else entry.source
    found = build(source, seed, text)
    if found.name != name:
        raise FlextopoError(f"selector {name!r} calls itself {found.name!r}; legal: one name")
    return found


def known_selectors() -> dict[str, Entry]:
    """Return the registry, and what other packages add to it.

    Raises:
        FlextopoError: two of them have one name.
    """
    return {**SELECTORS, **plugins()}


@lru_cache(maxsize=1)
def plugins() -> dict[str, Entry]:
    """Return the selectors that installed packages declare as entry points.

    Warns:
        SelectorWarning: one has the name of another, and is left out.
    """
    found: dict[str, Entry] = {}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else "another package"
        try:
            check_free(point.name, f"entry point {point.name!r} of {package}", found)
        except FlextopoError as error:
            warnings.warn(f"{error}; it is left out", SelectorWarning, stacklevel=2)
            continue
        found[point.name] = Entry(point.value, f"from {package}")
    return found


def selector_name(given: Named) -> str:
    """Return what a selector is called in tables: text as it was given, an object by its name."""
    if isinstance(given, str):
        return given
    return given.name if isinstance(given, PickledSelector) else build(given).name


def check_object(name: str, given: Any) -> None:
    """Refuse an object under the name of a built-in that it is not.

    Raises:
        FlextopoError: results would take one for the other.
    """
    if isinstance(given, PickledSelector) or name not in BUILT_IN:
        return
    if build(given) != make_selector(name):
        raise FlextopoError(
            f"selector name {name!r} is a built-in's; legal: any but {', '.join(BUILT_IN)}"
        )


def check_free(name: str, what: str, others: dict[str, Entry]) -> None:
    """Refuse a name that a selector has already.

    Raises:
        FlextopoError: it is a built-in's, or another's.
    """
    if name in BUILT_IN:
        raise FlextopoError(f"{what} is a built-in's; legal: any but {', '.join(BUILT_IN)}")
    if name in SELECTORS or name in others:
        raise FlextopoError(f"{what} is taken already; legal: a name of its own")
