"""What the service tells of itself: Prometheus metrics, and one line of JSON a decision."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.records import PodRecord

NEEDED, TAKEN = "needed", "taken over"
ELSEWHERE, SPARE, GONE = "bound elsewhere", "not needed", "preemptor gone"
FATES = (NEEDED, TAKEN, ELSEWHERE, SPARE, GONE)
"""What can become of an eviction; all but the first two were in vain."""

CAUSES = (
    "timeout",
    "model_error",
    "guard",
    "stale_watch",
    "missing_flextopo",
    "unknown_placement",
    "budget",
    "unmodelled",
)
"""Causes of a fallback; each is counted from 0, so that an alert can be written before it occurs."""

BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)


def write_line(line: bytes) -> None:
    """Write a line of the log to standard error, at once."""
    sys.stderr.buffer.write(line + b"\n")
    sys.stderr.buffer.flush()


class Telemetry:
    """Metrics and log of one service.

    Args:
        cache: the cluster, None where only snapshots are decided about.
        age_s: age of what is known of it.
        write: takes one line of the log, without the line break.
    """

    def __init__(
        self,
        cache: ClusterCache | None = None,
        age_s: Callable[[], float] = lambda: 0.0,
        write: Callable[[bytes], None] = write_line,
    ) -> None:
        self._write, self._cache = write, cache
        self._told: dict[str, str] = {}
        self.registry = CollectorRegistry()
        registry = self.registry
        self._decisions = Counter(
            "flextopo_decisions", "Decisions by verb.", ["verb", "outcome"], registry=registry
        )
        self._fallbacks = Counter(
            "flextopo_fallbacks", "Decisions of the baseline.", ["cause"], registry=registry
        )
        self._out_of_range = Counter(
            "flextopo_out_of_range",
            "Decisions that a policy left to its rule, since they are outside of its training ranges.",
            registry=registry,
        )
        self._requests = Counter(
            "flextopo_requests", "Requests by verb.", ["verb", "status"], registry=registry
        )
        self._seconds = Histogram(
            "flextopo_request_seconds",
            "Time of a request.",
            ["verb"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._evictions = Counter(
            "flextopo_evictions", "Evictions by result.", ["result"], registry=registry
        )
        self._fates = Counter(
            "flextopo_evictions_by_fate",
            "Evictions whose preemptor is bound or gone: all but `needed` and `taken over` were in vain.",
            ["fate"],
            registry=registry,
        )
        self._holds = Counter(
            "flextopo_holds",
            "Devices held for a pod, by what became of it.",
            ["result"],
            registry=registry,
        )
        self._gangs = Counter(
            "flextopo_gang_waits",
            "Gangs that nothing was decided about, by why: each new reason counts once.",
            ["cause"],
            registry=registry,
        )
        for cause in CAUSES:
            self._fallbacks.labels(cause)
        for fate in FATES:
            self._fates.labels(fate)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "watch_age_seconds": ("Age of what is known of the cluster.", age_s),
        }
        if cache is not None:
            gauges |= {
                "unknown_placements": (
                    "Pods that hold GPUs or cores nobody knows where.",
                    lambda: cache.nodes.sums["unknown"],
                ),
                "nodes": ("Nodes with GPUs.", lambda: len(cache.nodes.states)),
                "nodes_without_flextopo": (
                    "Nodes with GPUs and no FlexTopo object.",
                    lambda: cache.nodes.sums["flat"],
                ),
                "bad_objects": (
                    "Objects that cannot be used, or read in part.",
                    lambda: len(cache.problems),
                ),
            }
        for name, (about, read) in gauges.items():
            Gauge(f"flextopo_{name}", about, registry=registry).set_function(read)

    def decided(
        self,
        verb: str,
        preemptor: PodRecord,
        decision: Decision,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Count a decision and write its line."""
        outcome = "preempt" if decision.victims else "place" if decision.node else "wait"
        if decision.unchanged:
            outcome = "unchanged"
        self._decisions.labels(verb, outcome).inc()
        if decision.fallback:
            self._fallbacks.labels(decision.fallback).inc()
        if decision.out_of_range:
            self._out_of_range.inc()
        gang: dict[str, Any] = {}
        if decision.members:
            members = [
                {"pod": one.pod.key, "node": one.node, "gpus": one.gpus, "level": one.level}
                for one in decision.members
            ]
            gang = {"members": members, "network_level": decision.network_level}
        self.log(
            "decision",
            verb=verb,
            pod=preemptor.key,
            uid=preemptor.uid,
            outcome=outcome,
            node=decision.node,
            victims=[victim.key for victim in decision.victims],
            level=decision.level,
            violations=decision.violations,
            selector=decision.selector,
            fallback=decision.fallback or None,
            detail=decision.detail or None,
            out_of_range=decision.out_of_range or None,
            reasons=decision.reasons,
            ms=round(decision.elapsed_ms, 3),
            **gang,
            **(more or {}),
        )

    def fell_back(self, cause: str) -> None:
        """Count a decision of the baseline that no `Decision` tells of."""
        self._fallbacks.labels(cause).inc()

    def answered(self, verb: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(verb, str(status)).inc()
        self._seconds.labels(verb).observe(seconds)

    def evicted(self, result: str) -> None:
        """Count an eviction by its result."""
        self._evictions.labels(result).inc()

    def ended(self, fate: str, count: int) -> None:
        """Count evictions by what became of them."""
        self._fates.labels(fate).inc(count)

    def gang_waits(self, group: str, cause: str, why: str) -> None:
        """Count a gang that nothing is decided about for a new reason, and write its line."""
        self._gangs.labels(cause).inc()
        self.log("gang_waits", group=group, cause=cause, why=why)

    def held(self, result: str) -> None:
        """Count a hold of devices by what became of it."""
        self._holds.labels(result).inc()

    def left_out(self) -> None:
        """Write a line for each object that cannot be used, or read in part, and was not told of yet."""
        problems = self._cache.problems if self._cache is not None else {}
        if problems == self._told:
            return
        for place in self._told.keys() - problems.keys():
            del self._told[place]
        for place, why in problems.items():
            if self._told.get(place) != why:
                self._told[place] = why
                self.log("left_out", object=place, why=why)

    def log(self, event: str, **fields: Any) -> None:
        """Write one line."""
        line = {"time": round(time.time(), 3), "event": event, **fields}
        self._write(msgspec.json.encode(line))

    def metrics(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
