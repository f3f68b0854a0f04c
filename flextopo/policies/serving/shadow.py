"""Shadow mode: what kube-scheduler did beside what the selector would have done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from flextopo.baselines.scores import KUBERNETES_SCORES, Option, choose
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.topology.levels import AlignmentLevel
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.records import PodRecord

BOTH = "of those with victims from both"
LOSS = "loss, weighted GPU-h"
COUNTED = (
    "loss: what victims lose, misalignment, idle GPUs, and the pod's waiting until victims are gone. A second of that "
    "waiting costs the more the longer the pod is late already; it is the same whoever is evicted, so compare "
    "differences"
)
"""What is in the loss of a decision, in reports that put several side by side."""
LEVELS = (*(level.name.lower() for level in AlignmentLevel), "unknown", "does not fit")


def compare_with_default(
    decider: Decider,
    preemptor: PodRecord,
    decision: Decision,
    proposed: Mapping[str, Sequence[str]],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Return the log's fields that tell what kube-scheduler's own victims would give.

    Args:
        decider: who decided.
        preemptor: the pending pod.
        decision: what the selector would have done.
        proposed: uids of kube-scheduler's victims by node; it evicts those of the best node.
        counts: budget violations by node.
    """
    found = {"shadow": True, "cost_gpu_h": round(decision.cost_gpu_s / 3600.0, 4)}
    found["evicted_gpus"] = sum(victim.gpus for victim in decision.victims)
    names = list(proposed)
    options = []
    for i, name in enumerate(names):
        victims = [decider.cache.pods[uid] for uid in proposed[name] if uid in decider.cache.pods]
        if victims and len(victims) == len(proposed[name]):
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
    state = decider.places.state_of(name, preemptor)
    if state is None or state.broken or not state.known:
        return outcome
    guaranteed = preemptor.guaranteed
    view = decider.cache.view(preemptor, {name: state}, worst_case=guaranteed)
    rows = {record.uid: row for row, record in enumerate(view.records) if row}
    gone = [rows[victim.uid] for victim in victims if victim.uid in rows]
    candidate = view.candidate(0, gone, view.preemptor)
    if candidate is None:
        return {**outcome, "level": "does not fit"}
    cost = view.cost_of(candidate, view.preemptor)
    return {
        **outcome,
        "level": candidate.level.name.lower(),
        "aligned": view.is_aligned(candidate, view.preemptor),
        "cost_gpu_h": round(cost / 3600.0, 4),
    }


@dataclass(frozen=True)
class ShadowReport:
    """What kube-scheduler did and what the selector would have done, over many decisions.

    Attributes:
        rows: name to both numbers, kube-scheduler's first: decisions, pods, GPUs, GPU-hours. Rows of
            the decisions in which both named victims come after `of those with victims from both`.
        same_node: decisions in which both chose the same node.
        same_victims: those of them with the same victims.
        fallbacks: decisions of the baseline, by cause.
    """

    rows: dict[str, tuple[float, float]]
    same_node: int
    same_victims: int
    fallbacks: dict[str, int]

    @property
    def note(self) -> str:
        """Return what is no row, as a sentence."""
        told = ", ".join(f"{cause} {count}" for cause, count in self.fallbacks.items()) or "none"
        return f"same node {self.same_node}, same victims {self.same_victims}; fallbacks: {told}"

    def to_markdown(self) -> str:
        """Return a table, the note, and what the loss counts."""
        table, names = ["| | kube-scheduler | selector |", "| --- | --- | --- |"], list(self.rows)
        within = names.index(BOTH)
        for i, (name, numbers) in enumerate(self.rows.items()):
            first, second = (f"{n:.2f}" if name == LOSS else str(n) for n in numbers)
            table.append(f"| {'  ' if i > within else ''}{name} | {first} | {second} |")
        return "\n".join([*table, "", self.note, COUNTED])

    def to_json(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {
            "rows": {
                name: {"kube-scheduler": default, "selector": selector}
                for name, (default, selector) in self.rows.items()
            },
            "same_node": self.same_node,
            "same_victims": self.same_victims,
            "fallbacks": self.fallbacks,
            "note": self.note,
            "counted": COUNTED,
        }


class _Side(msgspec.Struct):
    """What one of the two would do, as `compare_with_default` and `Telemetry.decided` log it."""

    node: str | None
    victims: list[str]
    evicted_gpus: int
    level: str | None
    cost_gpu_h: float | None


class _Event(_Side, kw_only=True):
    """A decision of the selector, and kube-scheduler's beside it."""

    shadow: bool
    outcome: str
    fallback: str | None
    default: _Side | None


_EVENT = msgspec.json.Decoder(_Event)


def summarise(lines: Iterable[bytes], source: str) -> ShadowReport:
    """Summarise a log of shadow decisions.

    Args:
        lines: of the log; those of other events, and of other programs, are passed over.
        source: the file's name for messages.

    Raises:
        FlextopoError: there is no shadow decision in it.
    """
    # A controller's decisions have none of kube-scheduler's beside them.
    found = [event for event in map(_parse, lines) if event is not None and event.shadow]
    if not found:
        raise FlextopoError(
            f"{source}: no shadow decision beside kube-scheduler's; legal: the log of flextopo serve "
            "--shadow that kube-scheduler asked"
        )
    pairs = [
        (event.default, event) for event in found if event.outcome == "preempt" and event.default
    ]
    same = [(default, event) for default, event in pairs if default.node == event.node]
    equal = [default for default, event in same if set(default.victims) == set(event.victims)]
    outcomes = Counter(event.outcome for event in found)
    costs = [
        (default.cost_gpu_h, event.cost_gpu_h)
        for default, event in pairs
        if default.cost_gpu_h is not None and event.cost_gpu_h is not None
    ]
    rows: dict[str, tuple[float, float]] = {
        "decisions": (len(found), len(found)),
        "with victims": (sum(event.default is not None for event in found), outcomes["preempt"]),
        "waits": (0, outcomes["wait"]),
        BOTH: (len(pairs), len(pairs)),
        "victims": _totals((len(one.victims), len(other.victims)) for one, other in pairs),
        "GPUs evicted": _totals((one.evicted_gpus, other.evicted_gpus) for one, other in pairs),
    }
    first, second = (Counter(pair[side].level for pair in pairs) for side in (0, 1))
    for level in LEVELS:
        if first[level] or second[level]:
            rows[f"level {level}"] = (first[level], second[level])
    rows[LOSS] = _totals(costs)
    causes = Counter(event.fallback for event in found if event.fallback)
    return ShadowReport(rows, len(same), len(equal), dict(sorted(causes.items())))


def _totals(numbers: Iterable[tuple[float, float]]) -> tuple[float, float]:
    first, second = zip((0, 0), *numbers, strict=True)
    return sum(first), sum(second)


def _parse(line: bytes) -> _Event | None:
    """Return an event, None for a line that is none: another program's, or no text."""
    try:
        return _EVENT.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
