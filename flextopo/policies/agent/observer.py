"""What is so on this node now: hardware, what kubelet may give out, and who holds what.

What kubelet lists is believed as it is, but for one time: after a restart kubelet answers before it
has heard from the apiserver which pods it runs, so that at first its list is empty or short although
every container still runs (their devices and CPUs it knows from its checkpoints). While the apiserver
is away it stays so. Until the list has twice in a row named this agent's own pod, which comes from
the same source, pods that are missing keep what they had, however long that takes. An agent whose
own pod kubelet has never listed waits `SETTLE_S`. At its own start an agent has nothing to keep: it
waits in the same way, until its own pod is listed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from flextopo.policies.agent.document import Document, build_object
from flextopo.policies.agent.errors import KubeletError
from flextopo.policies.agent.machine import Machine
from flextopo.policies.agent.placements import Placements, locate
from flextopo.policies.agent.pod_resources import Allocatable, Holding, Kubelet

SETTLE_S = 30.0
"""How long an agent that is in no pod of the list waits for a list that kubelet fills late."""
REREAD_S = 60.0
"""How often the machine is read again while pods hold GPUs that it does not tell of."""


@dataclass(frozen=True)
class Facts:
    """All that what is written depends on.

    Attributes:
        machine: the hardware.
        allocatable: what kubelet may give out.
        holdings: of the pods that hold anything, by `namespace/name`.
    """

    machine: Machine
    allocatable: Allocatable
    holdings: dict[str, Holding]

    def build(self, node: str, with_islands: bool) -> tuple[Document, Placements]:
        """Build the node's object; also return who holds what."""
        placements = locate(self.machine, self.holdings)
        document = build_object(node, self.machine, self.allocatable, placements, with_islands)
        return document, placements


class Observer:
    """Asks kubelet, and reads the machine where that may have changed.

    Args:
        kubelet: its pod-resources service.
        read_machine: reads the hardware.
        own_pod: `namespace/name` of this agent, empty = not known.
        clock: seconds, which never go back.
    """

    def __init__(
        self,
        kubelet: Kubelet,
        read_machine: Callable[[], Machine],
        own_pod: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kubelet = kubelet
        self._read_machine, self._own_pod, self._clock = read_machine, own_pod, clock
        self._facts: Facts | None = None
        self._read_at = 0.0
        self._connections = 0
        self._restarted_at: float | None = None
        self._settles = 0
        self._own_seen, self._own_known = 0, False
        self._unknown = False

    def observe(self) -> Facts:
        """Return what is so now.

        Raises:
            KubeletError: kubelet does not answer, or has just started and not heard of its pods.
            TopologyError: the machine tells of no CPU.
        """
        listed, allocatable = self.kubelet.list(), self.kubelet.allocatable()
        before = self._facts
        holdings = {pod: held for pod, held in listed.items() if held.cpus or held.devices}
        if not self._complete(listed):
            if before is None:
                raise KubeletError(
                    f"{self.kubelet.socket}: does not list this agent's pod {self._own_pod!r} yet; "
                    "legal: the kubelet that has started it"
                )
            holdings = {**before.holdings, **holdings}
        self._facts = Facts(self._machine(before, allocatable, holdings), allocatable, holdings)
        self._connections = self.kubelet.connections
        return self._facts

    def _complete(self, listed: dict[str, Holding]) -> bool:
        """Say whether a pod that is not listed has gone."""
        is_first, own = self._facts is None, self._own_pod in listed
        self._own_known = self._own_known or own
        if self.kubelet.connections != self._settles:
            self._settles = self.kubelet.connections
            self._restarted_at, self._own_seen = self._clock(), 0
        if self._restarted_at is None:
            return True
        self._own_seen = self._own_seen + 1 if own else 0
        waited_s = self._clock() - self._restarted_at
        needed = (1 if self._own_pod else 0) if is_first else 2
        if self._own_seen < needed and (self._own_known or waited_s < SETTLE_S):
            return False
        self._restarted_at = None
        return True

    def _machine(
        self, before: Facts | None, allocatable: Allocatable, holdings: dict[str, Holding]
    ) -> Machine:
        """Return the hardware, read again where devices came or went, or kubelet has restarted."""
        same = before is not None and (allocatable, self.kubelet.connections) == (
            before.allocatable,
            self._connections,
        )
        if before is not None and same:
            if holdings != before.holdings:
                self._unknown = bool(locate(before.machine, holdings).unknown)
            # Before its first use a GPU tells no UUID.
            if not self._unknown or self._clock() - self._read_at < REREAD_S:
                return before.machine
        self._read_at = self._clock()
        machine = self._read_machine()
        self._unknown = bool(locate(machine, holdings).unknown)
        return machine
