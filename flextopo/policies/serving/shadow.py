"""Shadow mode: what kube-scheduler did beside what the selector would have done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flextopo.baselines.scores import KUBERNETES_SCORES, Option, choose
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.pods import TopologyRequirement
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.records import PodRecord


def compare_with_default(
    decider: Decider,
    preemptor: PodRecord,
    decision: Decision,
    came: Mapping[str, Sequence[str]],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Return the log's fields that tell what kube-scheduler's own victims would give.

    Args:
        decider: who decided.
        preemptor: the pending pod.
        decision: what the selector would have done.
        came: uids of kube-scheduler's victims by node; it evicts those of the best node.
        counts: budget violations by node.
    """
    found = {"shadow": True, "cost_gpu_h": round(decision.cost_gpu_s / 3600.0, 4)}
    found["evicted_gpus"] = sum(victim.gpus for victim in decision.victims)
    names = list(came)
    options = []
    for i, name in enumerate(names):
        victims = [decider.cache.pods[uid] for uid in came[name] if uid in decider.cache.pods]
        if victims and len(victims) == len(came[name]):
            starts = [_Started(victim) for victim in victims]
            options.append(Option(i, starts, counts[name]))
    best = choose(options, KUBERNETES_SCORES)
    if best is None:
        return {**found, "default": None}
    name, gone = names[best.node], [victim.record for victim in best.victims]
    return {**found, "default": _outcome(decider, preemptor, name, gone)}


class _Started:
    """A victim as kube-scheduler's scores read it; no start counts as newest."""

    def __init__(self, record: PodRecord) -> None:
        self.record = record
        self.priority = record.priority
        self.start_s = float("inf") if record.start_s is None else float(record.start_s)
        self.pdbs = ()


def _outcome(
    decider: Decider, preemptor: PodRecord, name: str, victims: Sequence[PodRecord]
) -> dict[str, Any]:
    """Return what the preemptor would get on a node without some pods, and what it would cost."""
    outcome: dict[str, Any] = {
        "node": name,
        "victims": [victim.key for victim in victims],
        "evicted_gpus": sum(victim.gpus for victim in victims),
        "level": "unknown",
        "aligned": None,
        "cost_gpu_h": None,
    }
    state = decider.cache.state_of(name, preemptor)
    if state is None or state.broken or not state.known:
        return outcome
    guaranteed = preemptor.requirement == TopologyRequirement.GUARANTEED
    view = decider.cache.view(preemptor, {name: state}, worst_case=guaranteed)
    rows = {record.uid: row for row, record in enumerate(view.records) if row}
    gone = [rows[victim.uid] for victim in victims if victim.uid in rows]
    candidate = view.candidate(0, gone, view.preemptor)
    if candidate is None:
        return {**outcome, "level": "does not fit"}
    cost = view.cost_of(candidate)
    return {
        **outcome,
        "level": candidate.level.name.lower(),
        "aligned": view.is_aligned(candidate, view.preemptor),
        "cost_gpu_h": round(cost / 3600.0, 4),
    }


def report(lines: Iterable[str], source: str) -> str:
    """Summarise a log of shadow decisions.

    Args:
        lines: of the log; those of other events are passed over.
        source: the file's name for messages.

    Returns:
        A table in Markdown: kube-scheduler's victims and the selector's side by side.

    Raises:
        FlextopoError: there is no shadow decision in it, or a line is no JSON object.
    """
    found = [event for event in map(_parse(source), enumerate(lines, 1)) if event.get("shadow")]
    if not found:
        raise FlextopoError(
            f"{source}: no shadow decision; legal: the log of flextopo serve --shadow"
        )
    both = [event for event in found if event["default"] and event["outcome"] == "preempt"]
    same = [event for event in both if event["default"]["node"] == event["node"]]
    equal = [event for event in same if set(event["default"]["victims"]) == set(event["victims"])]
    rows = [
        ("decisions", len(found), len(found)),
        ("with victims", sum(bool(e["default"]) for e in found),
         sum(e["outcome"] == "preempt" for e in found)),
        ("waits", 0, sum(e["outcome"] == "wait" for e in found)),
        ("of those with victims from both", len(both), len(both)),
        ("  victims", sum(len(e["default"]["victims"]) for e in both),
         sum(len(e["victims"]) for e in both)),
        ("  GPUs evicted", sum(e["default"]["evicted_gpus"] for e in both),
         sum(e["evicted_gpus"] for e in both)),
        *_levels(both),
        ("  loss, weighted GPU-h", *_costs(both)),
    ]  # fmt: skip
    table = ["| | kube-scheduler | selector |", "| --- | --- | --- |"]
    table += [f"| {name} | {ours} | {theirs} |" for name, ours, theirs in rows]
    causes: dict[str, int] = {}
    for event in found:
        if event["fallback"]:
            causes[event["fallback"]] = causes.get(event["fallback"], 0) + 1
    told = ", ".join(f"{cause} {count}" for cause, count in sorted(causes.items())) or "none"
    return "\n".join(
        [*table, "", f"same node {len(same)}, same victims {len(equal)}; fallbacks: {told}"]
    )


def _parse(source: str) -> Any:
    def parse(numbered: tuple[int, str]) -> dict[str, Any]:
        number, line = numbered
        if not line.strip():
            return {}
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise FlextopoError(f"{source}: line {number} is no JSON object; legal: one a line")
        return event

    return parse


def _levels(events: Sequence[dict[str, Any]]) -> list[tuple[str, int, int]]:
    levels = ("numa", "socket", "cross_socket", "unknown", "does not fit")
    rows = []
    for level in levels:
        ours = sum(event["default"]["level"] == level for event in events)
        theirs = sum(event["level"] == level for event in events)
        if ours or theirs:
            rows.append((f"  level {level}", ours, theirs))
    return rows


def _costs(events: Sequence[dict[str, Any]]) -> tuple[str, str]:
    known = [event for event in events if event["default"]["cost_gpu_h"] is not None]
    ours = sum(event["default"]["cost_gpu_h"] for event in known)
    theirs = sum(event["cost_gpu_h"] for event in known)
    return f"{ours:.2f}", f"{theirs:.2f}"
