"""What selectors would have done with a recorded cluster, beside what it did itself.

Each time a pod that asks for GPUs is found unschedulable for the first time, every selector decides
about the cluster as it was at that moment, behind the guards that a served decision passes. Nothing is
simulated: each decision stands alone, and the next one starts from what really happened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.objects import PodObject
from flextopo.policies.serving.recording import HASHED, Playback
from flextopo.policies.serving.records import CLASS_BANDS, PodRecord
from flextopo.policies.serving.runner import UndecidableError
from flextopo.policies.serving.view import ClusterView

CANDIDATES = 256
"""Victim sets that are compared with the chosen one."""
PREEMPTED = ("PreemptionByScheduler", "EvictionByEvictionAPI")
"""Reasons of the condition `DisruptionTarget` that say that a pod had to go for another."""
AT_ITSELF = "the cluster itself"


@dataclass
class Choice:
    """What one selector would have done at one moment.

    Attributes:
        node: name of the node, None = wait.
        victims: keys of the pods.
        gpus: how many GPUs they held.
        level: alignment level that the pod would have got, `unknown` where nobody knows.
        aligned: within one socket, or as near as such a server allows; None where nobody knows.
        lost_gpu_h: the decision's own loss in weighted GPU-hours.
        why: reasons, for people.
        next_best: the cheapest other victim set: node, victims, GPU-hours; None = there is none.
        fewer: why no smaller set suffices, or the smallest one that does.
    """

    node: str | None
    victims: list[str]
    gpus: int = 0
    level: str | None = None
    aligned: bool | None = None
    lost_gpu_h: float = 0.0
    why: list[str] = field(default_factory=list)
    next_best: dict[str, Any] | None = None
    fewer: str = ""


@dataclass
class Moment:
    """A pod that was found unschedulable.

    Attributes:
        t_s: seconds since the recording began.
        pod: its key.
        gpus: whole GPUs asked for.
        requirement: what it asks of the topology.
        choices: by selector.
        node: where it was bound in the end, empty = nowhere while the recording went on.
        waited_s: for how long it waited for that.
        victims: pods that were preempted on that node meanwhile.
        victim_gpus: GPUs that they held.
    """

    t_s: float
    pod: str
    gpus: int
    requirement: str
    choices: dict[str, Choice]
    node: str = ""
    waited_s: float | None = None
    victims: list[str] = field(default_factory=list)
    victim_gpus: int = 0


def what_if(
    path: Path,
    selectors: Mapping[str, VictimSelector],
    fallback: VictimSelector,
    bands: tuple[int, ...] = CLASS_BANDS,
) -> list[Moment]:
    """Decide about every moment of a recording.

    Args:
        path: of the recording.
        selectors: by name.
        fallback: the deterministic baseline behind them.
        bands: priorities from which on batch pods are of class 1, 2, ...

    Raises:
        ObjectError: the file is no recording.
    """
    playback = Playback(path, bands)
    begin_s = playback.now_s
    deciders = {
        name: Decider(playback.cache, selector, fallback, budget_s=60.0)
        for name, selector in selectors.items()
    }
    moments: dict[str, Moment] = {}
    gone: dict[str, list[tuple[PodRecord, float]]] = {}
    told: set[str] = set()
    for obj in playback:
        pod = playback.cache.pods.get(obj.metadata.uid) if isinstance(obj, PodObject) else None
        if pod is None or not isinstance(obj, PodObject):
            continue
        t_s = playback.now_s - begin_s
        if pod.refused and pod.gpus and not pod.node and pod.uid not in moments:
            choices = {name: _choose(decider, pod) for name, decider in deciders.items()}
            word = pod.requirement.name.lower().replace("_", "-")
            moments[pod.uid] = Moment(t_s, pod.key, pod.gpus, word, choices)
        if pod.uid not in told and _was_preempted(obj):
            told.add(pod.uid)
            gone.setdefault(pod.node, []).append((pod, t_s))
        moment = moments.get(pod.uid)
        if moment is not None and pod.node and not moment.node:
            moment.node, moment.waited_s = pod.node, round(t_s - moment.t_s, 3)
            for victim, at_s in gone.pop(pod.node, []):
                if at_s >= moment.t_s - 1.0 and victim.priority < pod.priority:
                    moment.victims.append(victim.key)
                    moment.victim_gpus += victim.gpus
    return list(moments.values())


def _was_preempted(pod: PodObject) -> bool:
    return any(
        one.type == "DisruptionTarget" and one.status == "True" and one.reason in PREEMPTED
        for one in pod.status.conditions or ()
    )


def _choose(decider: Decider, pod: PodRecord) -> Choice:
    cache = decider.cache
    reach = cache.reach_of(pod)
    nodes = [name for name in cache.nodes.states if not reach.why_not(name)]
    if not nodes:
        return Choice(None, [], why=["no node that it may go to"])
    try:
        decision = decider.decide(pod, nodes, may_violate=False)
    except UndecidableError as error:
        return Choice(None, [], why=[str(error)])
    found = Choice(
        node=decision.node,
        victims=[victim.key for victim in decision.victims],
        gpus=sum(victim.gpus for victim in decision.victims),
        level=decision.level,
        lost_gpu_h=round(decision.cost_gpu_s / 3600.0, 4),
        why=list(decision.reasons),
    )
    if decision.fallback:
        found.why.append(f"the baseline decided: {decision.fallback}, {decision.detail}")
    if decision.victims:
        _compare(decider, pod, nodes, decision, found)
    return found


def _compare(
    decider: Decider, pod: PodRecord, nodes: Sequence[str], decision: Decision, found: Choice
) -> None:
    """Fill in how it lies, the next best victim set, and why no smaller one suffices."""
    guaranteed = pod.guaranteed
    states = decider.places.states_of(nodes, pod)
    states = {n: s for n, s in states.items() if s.hardware.known or not guaranteed}
    view = decider.cache.view(pod, states, worst_case=guaranteed)
    own = (decision.node, {victim.key for victim in decision.victims})
    others = []
    for candidate in view.candidates(view.preemptor, guaranteed, CANDIDATES):
        if (view.node_names[candidate.node], set(_names(view, candidate))) != own:
            others.append(candidate)
        elif found.level != "unknown":
            found.aligned = view.is_aligned(candidate, view.preemptor)
    if others:
        best = others[0]
        found.next_best = {
            "node": view.node_names[best.node],
            "victims": _names(view, best),
            "lost_gpu_h": round(view.cost_of(best, view.preemptor) / 3600.0, 4),
        }
    size = len(decision.victims)
    smaller = [one for one in others if len(one.victims) < size]
    if smaller:
        least = min(smaller, key=lambda one: len(one.victims))
        lost = view.cost_of(least, view.preemptor) / 3600.0
        names = ", ".join(_names(view, least)) or "nobody"
        found.fewer = f"{names} on {view.node_names[least.node]} would do, at {lost:.2f} GPU-h"
        return
    found.fewer = "; ".join(
        f"without {victim.key} it is short of {_missing(decider, pod, decision, victim)}"
        for victim in decision.victims
    )


def _names(view: ClusterView, candidate: Candidate) -> list[str]:
    return [record.key for record in view.victims_of(candidate)]


def _missing(decider: Decider, pod: PodRecord, decision: Decision, but: PodRecord) -> str:
    """Say what a pod lacks on its node if one of the victims stays."""
    assert decision.node is not None
    state = decider.places.state_of(decision.node, pod)
    assert state is not None
    gone = [victim for victim in decision.victims if victim is not but]
    gpus = state.counted.num_gpus + sum(victim.gpus for victim in gone)
    cores = state.counted.num_cores + sum(victim.cores for victim in gone)
    if gpus < pod.gpus:
        return f"{pod.gpus - gpus} GPUs"
    return f"{pod.cores - cores} CPUs" if cores < pod.cores else "GPUs and CPUs near to each other"


def short_names(moments: Sequence[Moment]) -> dict[str, str]:
    """Return `node-1`, `pod-1` and so on for the hashes in moments, in the order in which they come."""
    found: dict[str, str] = {}
    counts = {"node": 0, "pod": 0}
    for moment in moments:
        for hashed in HASHED.findall(json.dumps(asdict(moment))):
            if hashed not in found:
                kind = "pod" if "/" in hashed else "node"
                counts[kind] += 1
                found[hashed] = f"{kind}-{counts[kind]}"
    return found


def summarise_moments(moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """Return a row for each selector, and one for what the cluster did itself."""
    names = list(moments[0].choices) if moments else []
    rows: list[dict[str, Any]] = []
    for name in names:
        choices = [moment.choices[name] for moment in moments]
        acts = [one for one in choices if one.victims]
        known = [one.aligned for one in acts if one.aligned is not None]
        rows.append({
            "selector": name,
            "decisions": len(choices),
            "preempts": len(acts),
            "victims": sum(len(one.victims) for one in acts),
            "gpus": sum(one.gpus for one in acts),
            "aligned": sum(known) / len(known) if known else None,
            "lost_gpu_h": round(sum(one.lost_gpu_h for one in acts), 3),
        })  # fmt: skip
    acts_itself = [moment for moment in moments if moment.victims]
    rows.append({
        "selector": AT_ITSELF,
        "decisions": len(moments),
        "preempts": len(acts_itself),
        "victims": sum(len(moment.victims) for moment in acts_itself),
        "gpus": sum(moment.victim_gpus for moment in acts_itself),
        "aligned": None,
        "lost_gpu_h": None,
    })  # fmt: skip
    return rows
