"""The one registry of deterministic selectors: tests, command line, report and README read it."""

from __future__ import annotations

from collections.abc import Callable

from flextopo.baselines.exact import Exact
from flextopo.baselines.policies import (
    FLEXTOPO_BEST_EFFORT,
    FLEXTOPO_GUARANTEED,
    GODEL,
    KUBERNETES,
    FlexTopo,
    GreedyCost,
    OracleLookahead,
    RandomCandidate,
)
from flextopo.baselines.rollout import Rollout
from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.state.selector import VictimSelector

SELECTORS: dict[str, tuple[Callable[[int], VictimSelector], str]] = {
    "random": (lambda seed: RandomCandidate(seed), "any of the 64 cheapest minimal victim sets"),
    "kubernetes": (
        lambda _: KUBERNETES,
        "default preemption of kube-scheduler 1.36, blind to topology",
    ),
    "godel": (lambda _: GODEL, "Gödel's standard preemption, blind to topology"),
    "flextopo-best-effort": (
        lambda _: FLEXTOPO_BEST_EFFORT,
        "the paper's algorithms 1 and 2, every pod best-effort or what it asks beyond",
    ),
    "flextopo-guaranteed": (
        lambda _: FLEXTOPO_GUARANTEED,
        "the paper's algorithms 1 and 2 behind the guaranteed filter for every pod",
    ),
    "flextopo": (
        lambda _: FlexTopo(),
        "the paper's algorithms, following each pod's own requirement",
    ),
    "greedy-cost": (lambda _: GreedyCost(), "the candidate with the least loss of its own"),
    "exact": (
        lambda _: Exact(),
        "the least loss of its own over all victim sets, by branch and bound; slow",
    ),
    "oracle-lookahead": (
        lambda _: OracleLookahead(),
        "tries its best candidates on the same tape for 4 hours; knows the future",
    ),
    "rollout": (
        lambda seed: Rollout(seed),
        "the same over futures sampled from the workload model: what a policy can hope to know",
    ),
}
"""Name to (seed -> selector, what it does). Only `random` and `rollout` use the seed."""

LOOKAHEAD = ("oracle-lookahead", "rollout")
"""Selectors that branch a simulation: no snapshot will do, and they take their time."""

COMPARED = tuple(name for name in SELECTORS if name != "rollout")
"""Selectors of a comparison that names none; `rollout` costs more than all the others."""


def make_selector(name: str, seed: int = 0) -> VictimSelector:
    """Return the deterministic selector called `name`.

    Raises:
        UnknownNameError: no selector has that name.
    """
    try:
        factory, _ = SELECTORS[name]
    except KeyError:
        raise UnknownNameError("selector", name, list(SELECTORS)) from None
    return factory(seed)
