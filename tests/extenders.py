"""An extender over a cluster of documents, and what kube-scheduler asks of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kube_objects import preemptor

from flextopo.baselines.registry import make_selector
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.telemetry import Telemetry

SOON = "2027-01-15T08:00:20Z"
LEAVING = {"deletionTimestamp": SOON}


def make_extender(
    cache: ClusterCache,
    lines: list[bytes] | None = None,
    *,
    shadow: bool = False,
    selector: VictimSelector | None = None,
    leave_gangs: bool = False,
) -> Extender:
    """Return an extender of `greedy-cost`, whose log goes to `lines`."""
    telemetry = Telemetry(cache, write=(lines if lines is not None else []).append)
    selector = selector or make_selector("greedy-cost")
    decider = Decider(cache, selector, make_selector("flextopo-best-effort"), budget_s=60)
    return Extender(decider, telemetry, shadow, leave_gangs=leave_gangs)


def ask(extender: Extender, verb: str, body: Any) -> Any:
    """Return what a verb answers."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.loads(getattr(extender, verb)(encoded))


def meta_victims(victims: Mapping[str, Sequence[str]], asking: Any = None) -> dict[str, Any]:
    """Return a body of `preempt` with the uids of victims by node."""
    found = {
        name: {"Pods": [{"UID": uid} for uid in uids], "NumPDBViolations": 0}
        for name, uids in victims.items()
    }
    return {
        "Pod": asking or preemptor(2),
        "NodeNameToVictims": None,
        "NodeNameToMetaVictims": found,
    }


def nodes_request(names: Sequence[str], asking: Any) -> dict[str, Any]:
    """Return a body of `filter` and `prioritize`."""
    return {"Pod": asking, "Nodes": None, "NodeNames": list(names)}


def preempt(
    extender: Extender, asking: dict[str, Any], *nodes: str, uids: tuple[str, ...] = ()
) -> Any:
    """Return the victims by node, as kube-scheduler asks for them."""
    victims = {"Pods": [{"UID": uid} for uid in uids], "NumPDBViolations": 0}
    body = {"Pod": asking, "NodeNameToMetaVictims": dict.fromkeys(nodes, victims)}
    found = ask(extender, "preempt", body)["NodeNameToMetaVictims"]
    return {name: sorted(one["UID"] for one in entry["Pods"]) for name, entry in found.items()}


def let_in(extender: Extender, asking: dict[str, Any], *nodes: str) -> list[str]:
    """Return the nodes that `filter` lets a pod in to."""
    body = {"Pod": asking, "NodeNames": list(nodes)}
    return list(ask(extender, "filter", body)["NodeNames"])
