"""What a decision says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from flextopo.policies.serving.records import PodRecord


@dataclass(frozen=True)
class Member:
    """The place of one member of a gang; fields as in `Decision`."""

    pod: PodRecord
    node: str
    gpus: tuple[int, ...]
    level: str


@dataclass(slots=True)
class Decision:
    """Where the preemptor goes and whom it evicts, with reasons.

    Of a gang, node and GPUs are those of its leader, the level is the worst of all, and victims are on all
    nodes.

    Attributes:
        node: name of the node, None = do not preempt now.
        victims: by descending importance; empty where it fits without.
        gpus: GPU numbers it would get; empty where they are not known.
        level: alignment level it would get, `unknown` where placements are not known.
        violations: victims that violate a disruption budget.
        selector: who decided.
        fallback: cause for which the baseline decided, empty = it did not.
        detail: the same in words.
        out_of_range: why the selector's policy left the decision to its rule, empty = it did not.
        reasons: why, for people.
        wait_s: seconds until the pods it counts on are gone; without victims, these leave anyway.
        unchanged: nodes whose victims, as they came, may stand: nothing here models the conflict.
        elapsed_ms: how long it took.
        members: of a gang that is to preempt; empty for a pod alone.
        network_level: the closest level of the network that holds them, None for a pod alone.
        price: works out `cost_gpu_s`, which few ask for.
    """

    node: str | None
    victims: tuple[PodRecord, ...] = ()
    gpus: tuple[int, ...] = ()
    level: str | None = None
    violations: int = 0
    selector: str = ""
    fallback: str = ""
    detail: str = ""
    out_of_range: str = ""
    reasons: tuple[str, ...] = ()
    wait_s: int = 0
    unchanged: tuple[str, ...] = ()
    elapsed_ms: float = 0.0
    members: tuple[Member, ...] = ()
    network_level: str | None = None
    price: Callable[[], float] = field(default=float, compare=False, repr=False)

    @property
    def cost_gpu_s(self) -> float:
        """Return the decision's own loss in weighted GPU-seconds."""
        return self.price()

    def parts(self, preemptor: PodRecord) -> Iterator[tuple[PodRecord, Decision]]:
        """Yield each pod that gets a place, with the decision as if it were about that pod.

        Args:
            preemptor: a pod alone, or the leader.

        Yields:
            Victims on a node go with the first member there.
        """
        if not self.members:
            yield preemptor, self
        met: set[str] = set()
        for one in self.members:
            here = () if one.node in met else tuple(v for v in self.victims if v.node == one.node)
            met.add(one.node)
            part = replace(self, node=one.node, victims=here, gpus=one.gpus, level=one.level)
            yield one.pod, replace(part, members=())
