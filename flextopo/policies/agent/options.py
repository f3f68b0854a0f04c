"""What may be asked of the agent."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flextopo.cluster.errors import FlextopoError

WRITES = ("object", "annotations", "both")


@dataclass(frozen=True)
class AgentOptions:
    """The options of `flextopo agent`.

    Attributes:
        node_name: name of this machine's Node.
        socket: kubelet's pod-resources socket.
        root: the folder that holds `sys` and `proc`.
        write: `object`, `annotations` of pods, or `both`.
        islands: tell GPUs apart by PCIe switch, which makes that a level of alignment.
        interval_s: seconds between two looks; a pod is known this much after its start.
        alive: a file to touch after each look, empty = none.
    """

    node_name: str = ""
    socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    root: str = "/"
    write: str = "object"
    islands: bool = False
    interval_s: float = 1.0
    alive: str = ""

    def check(self) -> None:
        """Refuse what is not legal.

        Raises:
            FlextopoError: names the option and what is legal.
        """
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", self.node_name):
            raise FlextopoError(
                f"--node-name {self.node_name!r}; legal: the name of a Node, here or in NODE_NAME"
            )
        if self.write not in WRITES:
            raise FlextopoError(f"--write {self.write!r}; legal: {', '.join(WRITES)}")
        if not 0.1 <= self.interval_s <= 60:
            raise FlextopoError(f"--interval-s {self.interval_s:g}; legal: 0.1 to 60")
