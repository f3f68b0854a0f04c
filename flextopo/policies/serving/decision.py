"""What a decision says."""

from __future__ import annotations

from dataclasses import dataclass

from flextopo.policies.serving.records import PodRecord


@dataclass(frozen=True)
class Decision:
    """Where the preemptor goes and whom it evicts, with reasons.

    Attributes:
        node: name of the node, None = do not preempt now.
        victims: by descending importance; empty where it fits without.
        gpus: GPU numbers it would get; empty where they are not known.
        level: alignment level it would get, `unknown` where placements are not known.
        violations: victims that violate a disruption budget.
        selector: who decided.
        fallback: cause for which the baseline decided, empty = it did not.
        detail: the same in words.
        reasons: why, for people.
        cost_gpu_s: the decision's own loss in weighted GPU-seconds.
        wait_s: seconds until the pods it counts on are gone; without victims, these leave anyway.
        unchanged: nodes whose victims, as they came, may stand: nothing here models the conflict.
        elapsed_ms: how long it took.
    """

    node: str | None
    victims: tuple[PodRecord, ...] = ()
    gpus: tuple[int, ...] = ()
    level: str | None = None
    violations: int = 0
    selector: str = ""
    fallback: str = ""
    detail: str = ""
    reasons: tuple[str, ...] = ()
    cost_gpu_s: float = 0.0
    wait_s: int = 0
    unchanged: tuple[str, ...] = ()
    elapsed_ms: float = 0.0
