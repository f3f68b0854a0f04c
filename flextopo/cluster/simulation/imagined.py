"""Imagined futures of one present state, and branches that are played in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import copying_kernel
from flextopo.cluster.simulation.events import Events, schedule_event
from flextopo.cluster.simulation.lookahead import Branches, branch_losses
from flextopo.cluster.state.arrays import (
    BACKING_OFF,
    NOMINATED,
    PENDING,
    RUNNING,
    STARTING,
    TERMINATING,
    Cluster,
    Records,
    as_index,
)
from flextopo.cluster.state.candidates import CandidateArrays, Workspace
from flextopo.cluster.state.schema import NEVER_S

Ints = npt.NDArray[np.int64]


class Futures(NamedTuple):
    """M futures of P present pods: what nobody knows of these, and A pods that come, of all futures.

    Fields: `duration_s`, `depart_s`, `start_s` (M, P) int64, s, as in the table of pods; `arrivals` (A,)
    POD_DTYPE, by future, then by arrival, all after now, numbers of groups, ring and budgets as in a table of
    the present pods and theirs; `first` (M + 1,) int64, where the arrivals of each future begin;
    `departures` (M, D) int64, rows that leave in each future, in that order, then the row of a pod that
    never comes: the last of the longest table; `num_pdbs`, budgets that any future adds at most.
    """

    duration_s: Ints
    depart_s: Ints
    start_s: Ints
    arrivals: Records
    first: Ints
    departures: Ints
    num_pdbs: int

    @property
    def num_futures(self) -> int:
        """How many there are, M."""
        return int(self.duration_s.shape[0])

    def some(self, begin: int, end: int) -> Futures:
        """Return those from `begin` to `end`, for the memory of all."""
        return self._replace(
            duration_s=self.duration_s[begin:end],
            depart_s=self.depart_s[begin:end],
            start_s=self.start_s[begin:end],
            first=self.first[begin : end + 1],
            departures=self.departures[begin:end],
        )

    @property
    def num_pods(self) -> int:
        """Rows of a table with the present pods, the most arrivals, and one pod that never comes."""
        return int(self.duration_s.shape[1] + np.diff(self.first).max(initial=0) + 1)


@copying_kernel
def imagine(c: Cluster, e: Events, f: Futures, i: int) -> None:
    """Let future i be the one ahead of a cluster that holds the present state.

    Args:
        c: the first rows are the present pods; those that will be asked about again at no time have
            `next_s` = NEVER_S.
        e: with queue, unserved pods, clock and account of the present.
        f: the futures.
        i: which one.
    """
    present, begin = f.duration_s.shape[1], f.first[i]
    coming = f.first[i + 1] - begin
    c.pods[present : present + coming] = f.arrivals[begin : begin + coming]
    for row in range(present + coming, c.pods.shape[0]):
        c.pods[row]["arrive_s"] = NEVER_S
    e.departures[:] = f.departures[i]
    e.clock[0]["heap_size"] = 0
    for row in range(present):
        c.live[row]["heap_at"] = -1
    for row in range(present):
        pod, live = c.pods[row], c.live[row]
        pod["duration_s"] = f.duration_s[i, row]
        pod["depart_s"] = f.depart_s[i, row]
        pod["start_s"] = f.start_s[i, row]
        status, time = live["status"], as_index(NEVER_S)
        if status == RUNNING and not pod["online"]:
            time = live["since_s"] + live["overhead_s"] + pod["duration_s"] - live["done_s"]
        elif status == STARTING:
            time = live["since_s"] + pod["start_s"]
        elif (
            status == PENDING
            or status == NOMINATED
            or status == TERMINATING
            or status == BACKING_OFF
        ):
            time = live["next_s"]
        if time < NEVER_S:
            schedule_event(c, e, row, time)


@copying_kernel
def branch_losses_in(
    b: Branches,
    f: Futures,
    w: Workspace,
    one: CandidateArrays,
    tried: npt.NDArray[np.bool_],
    losses: npt.NDArray[np.float64],
) -> None:
    """Write the loss of each branch in each future, as `branch_losses` does in the one that comes.

    Args:
        b: the branches; its cluster and events are memory for `imagine`.
        f: the futures.
        w: scratch memory.
        one: memory for one candidate.
        tried: (num_branched + 1,) the branches to play.
        losses: (M, num_branched + 1) output, weighted GPU-seconds from now on; others are left alone.
    """
    for i in range(f.duration_s.shape[0]):
        imagine(b.cluster, b.events, f, i)
        branch_losses(b, w, one, tried, losses[i])


def rings(group: npt.NDArray[np.integer[Any]]) -> Ints:
    """Return `next_member` of pods with these groups, (N,) int64; -1 = of none, a ring of itself."""
    ring = np.arange(len(group))
    rows = np.flatnonzero(group >= 0)
    rows = rows[np.argsort(group[rows], kind="stable")]
    if len(rows):
        first = np.flatnonzero(np.diff(group[rows], prepend=-1))
        ring[rows[:-1]] = rows[1:]
        ring[rows[np.append(first[1:], len(rows)) - 1]] = rows[first]
    return ring
