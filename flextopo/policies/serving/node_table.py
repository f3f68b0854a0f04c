"""All nodes as they stand, with sums over them that are kept up to date one change at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

import numpy.typing as npt

from flextopo.cluster.state.schema import ALL_MEMBERS, NODE_DTYPE
from flextopo.policies.serving.node_rows import joined
from flextopo.policies.serving.node_state import Group, NodeState
from flextopo.policies.serving.objects import PodGroupObject


class NodeTable:
    """Node states by name.

    Attributes:
        states: the nodes with GPUs.
        sums: GPUs of them: `gpus`, `free_gpus`, `online_gpus`, `batch_gpus`; pods of unknown
            placement, `unknown`; nodes without FlexTopo, `flat`.
    """

    def __init__(self) -> None:
        self.states: dict[str, NodeState] = {}
        self.sums: Counter[str] = Counter()
        self._members: dict[str, dict[tuple[str, int], NodeState]] = {}
        self._serial = 0
        self._changed: dict[str, int] = {}
        self._rows: npt.NDArray[Any] = joined([], NODE_DTYPE)
        self._row_of: dict[str, int] | None = None

    def set(self, name: str, state: NodeState | None) -> None:
        """Put a node in place of what was known of it; None takes it out."""
        old = self.states.get(name)
        self._serial += 1
        self._changed.pop(name, None)
        if old is not None:
            self._account(name, old, -1)
            old.row = -1
        if state is not None:
            self._account(name, state, 1)
        if (old is None) != (state is None):
            self._row_of = None
        if state is None:
            self.states.pop(name, None)
            return
        self.states[name] = state
        self._changed[name] = self._serial  # the latest last
        if self._row_of is not None:
            state.row = self._row_of[name]
            self._rows[state.row] = joined([state.counted.node], NODE_DTYPE)[0]

    def changed_since(self, serial: int) -> tuple[list[str], int]:
        """Return the nodes put in place after a moment, and the present moment; 0 = the beginning."""
        latest = takewhile(lambda one: one[1] > serial, reversed(self._changed.items()))
        return [name for name, _ in latest], self._serial

    def _account(self, name: str, state: NodeState, sign: int) -> None:
        sums = self.sums
        sums["gpus"] += sign * state.hardware.server.num_gpus
        sums["free_gpus"] += sign * state.counted.num_gpus
        sums["online_gpus"] += sign * state.online_gpus
        sums["batch_gpus"] += sign * state.batch_gpus
        sums["unknown"] += sign * (len(state.counted.records) - len(state.sure.records))
        sums["flat"] += sign * (not state.hardware.known)
        for row, group in state.counted.grouped:
            members = self._members.setdefault(group, {})
            if sign > 0:
                members[name, row] = state
                continue
            del members[name, row]
            if not members:
                del self._members[group]

    def rows_of(self, nodes: Mapping[str, NodeState]) -> tuple[npt.NDArray[Any], list[int]]:
        """Return all nodes as the features see them, (N,) NODE_DTYPE, and the rows of some of them."""
        if self._row_of is None:
            rows = [state.counted.node for state in self.states.values()]
            self._rows = joined(rows, NODE_DTYPE)
            self._row_of = {name: row for row, name in enumerate(self.states)}
            for row, state in enumerate(self.states.values()):
                state.row = row
        # To look up a hundred names in a table of all nodes takes longer than the rest of it.
        known = [state.row for state in nodes.values()]
        if -1 in known:
            known = [self._row_of[name] for name in nodes if name in self._row_of]
        return self._rows, known

    @property
    def has_groups(self) -> bool:
        """Say whether any pod is in a PodGroup."""
        return bool(self._members)

    def groups(self, names: Iterable[str], known: Mapping[str, PodGroupObject]) -> dict[str, Group]:
        """Return those of some PodGroups that stop when they lose too many members.

        Args:
            names: the groups.
            known: PodGroup objects; a group without one has no member to spare.
        """
        found = {}
        for group in names:
            about = known.get(group)
            least = ALL_MEMBERS
            if about is not None and about.least is not None and not about.stops_whole:
                least = about.least
            if least > 1:
                here = self._members.get(group, {})
                found[group] = Group([(*place, state) for place, state in here.items()], least)
        return found
