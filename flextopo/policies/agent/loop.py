"""The agent's rounds: look, write what has changed, and wait, longer where something is wrong."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.agent.errors import ApiserverError, KubeletError
from flextopo.policies.agent.observer import Facts, Observer
from flextopo.policies.agent.publishers import Publisher

RETRY_S = 0.5
"""Longest wait after the first error; it doubles with each that follows."""
KUBELET_CAP_S = 5.0
"""Longest wait for kubelet, which is on this node and soon comes back."""
CAP_S = 60.0
"""Longest wait for the apiserver, which all nodes ask."""


def retry_s(failures: int, cap_s: float, draw: float) -> float:
    """Return how long to wait after so many errors in a row, with jitter by `draw` in [0, 1)."""
    return min(RETRY_S * 2.0 ** min(failures - 1, 32), cap_s) * (0.5 + draw / 2)


@dataclass
class Agent:
    """Keeps what is written of a node true.

    Attributes:
        node: name of the node.
        observer: tells what is so.
        publishers: write it.
        with_islands: tell PCIe switches apart.
        alive: a file that is touched after every round, whatever came of it; None = none.
        log: takes what is worth a line.
        clock: seconds, which never go back.
        draw: a random number in [0, 1).
    """

    node: str
    observer: Observer
    publishers: Sequence[Publisher]
    with_islands: bool = False
    alive: Path | None = None
    log: Callable[..., None] = lambda event, **fields: None
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    _written: Facts | None = None
    _resync_at: float | None = None
    _failures: int = 0
    _told: Any = None

    def round(self) -> int:
        """Look once, and write what has changed; return how many objects were written.

        Raises:
            KubeletError: kubelet does not answer.
            ApiserverError: the apiserver does not, or refuses.
            TopologyError: the machine tells of no CPU.
        """
        facts = self.observer.observe()
        now = self.clock()
        if self._resync_at is None or now >= self._resync_at:
            # With jitter: nodes that started together do not read again together.
            resync_s = min(publisher.resync_s for publisher in self.publishers)
            self._resync_at = now + resync_s * (0.5 + self.draw())
            self._written = None
            for publisher in self.publishers:
                publisher.forget()
        if facts == self._written:
            return 0
        # If only a part of it can be written, the next round goes on.
        self._written = None
        document, placements = facts.build(self.node, self.with_islands)
        writes = sum(publisher.publish(document, placements) for publisher in self.publishers)
        self._written = facts
        if writes:
            unknown = list(placements.unknown)
            self.log("written", objects=writes, pods=len(placements.pods), unknown_gpus=unknown)
        return writes

    def run(self, interval_s: float, stop: threading.Event) -> None:
        """Go round until told to stop."""
        while not stop.is_set():
            stop.wait(self.attempt(interval_s))
        self.close()

    def close(self) -> None:
        """End the connections."""
        self.observer.kubelet.close()
        for publisher in self.publishers:
            publisher.close()

    def attempt(self, interval_s: float) -> float:
        """Go round once; return how long to wait for the next, in seconds."""
        wait_s = interval_s
        try:
            self.round()
            if self._failures:
                self.log("recovered", after=self._failures)
            self._failures, self._told = 0, None
        except FlextopoError as error:
            self._failures += 1
            cap_s = KUBELET_CAP_S if isinstance(error, KubeletError) else CAP_S
            wait_s = max(interval_s, retry_s(self._failures, cap_s, self.draw()))
            if isinstance(error, ApiserverError):
                wait_s = max(wait_s, error.wait_s)
            # What is wrong is told once, not as often as it is tried.
            if str(error) != self._told:
                self._told = str(error)
                self.log("error", about=self._told)
        if self.alive is not None:
            self.alive.touch()
        return wait_s
