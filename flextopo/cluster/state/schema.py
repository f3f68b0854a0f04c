"""The one table of the cluster's state: fields of pods, of live state, of nodes and of totals.

A field is added here and where it is used. All else follows from this table: the record dtypes, how
blank rows look, the columns of a tape and what it checks, and what the service packs for a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.scenario import NUM_SENSITIVITIES
from flextopo.cluster.topology.levels import CLUSTER, NUM_DEFICITS

DEADLINE_S = 60
"""How long an online pod may wait for its place, where nobody says otherwise."""

NUM_MISALIGNED = NUM_SENSITIVITIES * NUM_DEFICITS

REPLICAS = (0, 1, 2, 4, 8)
"""A service with so many replicas that serve, but fewer than the next number: how much it misses
one more."""

NUM_REPLICAS = len(REPLICAS)

MAX_MEMBERS = 16
"""Members of a gang, of two sizes at most."""

ALL_MEMBERS = 2**31 - 1
"""`min_members` of a PodGroup that stops as a whole: none goes on without the others."""

NEVER_S = 2**61
"""A time that no tape reaches: departure of a pod that leaves only when its work is done."""

NEVER_PLACED_S = -NEVER_S
"""Start of a pod that has not held resources yet."""

ENDLESS_S = 2**40
"""Run time of a pod of which nobody knows how long it runs."""


class Snapshot(NamedTuple):
    """What a field holds in a snapshot of a real cluster, the same for every row, and why."""

    value: int
    why: str


_PAST = Snapshot(0, "a snapshot has no past")
_NEVER = Snapshot(NEVER_PLACED_S, "a snapshot has no past")
_LINKED = Snapshot(-1, "the view writes which rows belong together")


class Field(NamedTuple):
    """One field of a record.

    Fields: `dtype` as numpy writes it; `unit`, empty for counts, numbers and yes or no; `meaning`;
    `blank`, what a row begins with; `legal`, lowest and highest value that a tape may give; `shape`
    of an array within the record; `snapshot`, what a snapshot holds there if the service does not
    know it row by row.
    """

    dtype: str
    unit: str
    meaning: str
    blank: int = 0
    legal: tuple[int, int] = (-(2**62), 2**62)
    shape: tuple[int, ...] = ()
    snapshot: Snapshot | None = None


_COUNT = (0, 2**31 - 1)
_INDEX = (-1, 2**31 - 1)
_YES_OR_NO = (0, 1)

POD_FIELDS: dict[str, Field] = {
    "gpus": Field("i4", "", "GPUs asked for; 0 = CPU-only", 0, _COUNT),
    "cores": Field("i4", "", "whole cores asked for", 0, _COUNT),
    "priority": Field("i4", "", "greater is more important", 0, (-(2**31), 2**31 - 1)),
    "checkpoint_s": Field("i4", "s", "interval between checkpoints; 0 = none", 0, _COUNT),
    "protection_s": Field("i4", "s", "not a victim for this long after its start", 0, _COUNT),
    "group": Field(
        "i4", "", "PodGroup; -1 = none. Members arrive, start and stop together", -1, _INDEX,
        snapshot=_LINKED,
    ),
    "next_member": Field(
        "i4", "", "ring of the PodGroup's members; itself when it has none", 0, _COUNT,
        snapshot=Snapshot(0, "the view writes which rows belong together"),
    ),
    "pdb": Field("i4", "", "PodDisruptionBudget; -1 = none", -1, _INDEX),
    "batch_class": Field("i1", "", "0 low, 1 middle; lost work weighs 1 + batch_class", 0, (0, 126)),
    "online": Field("?", "", "an online service's replica", 0, _YES_OR_NO),
    "requirement": Field("i1", "", "a `TopologyRequirement`", 0, (0, 2)),
    "preemptible": Field("?", "", "may be a victim at all", 0, _YES_OR_NO),
    "sensitivity": Field(
        "i1", "", "a row of `scenario.SENSITIVITIES`: how slow it is where it is misaligned", 0,
        (0, NUM_SENSITIVITIES - 1), snapshot=Snapshot(0, "nobody says what kind of service it is"),
    ),
    "required_tier": Field(
        "i1", "", "a `NetworkLevel`: within one such part of the network all members of an online "
        "PodGroup must lie", CLUSTER, (0, CLUSTER),
        snapshot=Snapshot(CLUSTER, "decisions look at one replica at a time"),
    ),
    "preferred_tier": Field(
        "i1", "", "within one such part they lose no speed", CLUSTER, (0, CLUSTER),
        snapshot=Snapshot(CLUSTER, "decisions look at one replica at a time"),
    ),
    "min_members": Field(
        "i4", "", "how many members of its PodGroup have to run, or all there are if that is fewer: "
        "others start and stop each by itself, and where too few are left, all stop", ALL_MEMBERS,
        _COUNT, snapshot=Snapshot(ALL_MEMBERS, "the view writes which rows belong together"),
    ),
    "service": Field(
        "i4", "", "the online service it is a replica of; -1 for batch pods", -1, _INDEX,
        snapshot=Snapshot(-1, "decisions look at one replica at a time"),
    ),
    "deadline_s": Field(
        "i4", "s", "an online pod should have its place this long after it began to wait",
        DEADLINE_S, _COUNT, snapshot=Snapshot(DEADLINE_S, "a service that is not known by its name"),
    ),
    "arrive_s": Field(
        "i8", "s", "when it arrives",
        snapshot=Snapshot(0, "only the simulator's queue orders pods by it"),
    ),
    "depart_s": Field(
        "i8", "s", "when an online pod is scaled down; NEVER_S for batch pods", NEVER_S,
        snapshot=Snapshot(NEVER_S, "nobody knows when a service scales down"),
    ),
    "duration_s": Field(
        "i8", "s", "run time that a batch pod needs; 0 for online pods", 0, (0, 2**62),
        snapshot=Snapshot(ENDLESS_S, "nobody knows how long a job runs"),
    ),
    "start_s": Field(
        "i8", "s", "start-up time of an online pod before it serves", 0, (0, 2**62),
        snapshot=Snapshot(0, "nobody starts in a snapshot"),
    ),
}  # fmt: skip
"""What a pod asks for; never changes after it is written. What is read of each resident in turn comes first."""

LIVE_FIELDS: dict[str, Field] = {
    "since_s": Field("i8", "s", "when it got its resources", NEVER_PLACED_S),
    "overhead_s": Field("i8", "s", "restart work at the head of this run", snapshot=_PAST),
    "next_s": Field("i8", "s", "time of its next event, when it is in the event heap"),
    "node": Field(
        "i4", "", "where it holds resources; -1 = nowhere", -1,
        snapshot=Snapshot(-1, "the view writes the row of the node"),
    ),
    "gpu_mask": Field("i4", "", "GPUs it holds, bit i = GPU i"),
    "heap_at": Field(
        "i4", "", "position in the event heap; -1 = none", -1,
        snapshot=Snapshot(-1, "a snapshot has no future"),
    ),
    "status": Field("i1", "", "see `arrays`"),
    "level": Field("i1", "", "its `AlignmentLevel`", snapshot=_PAST),
    "deficit": Field("i1", "", "0 = the best level for that server, else `level`", snapshot=_PAST),
    "tier": Field(
        "i1", "", "0 = its gang lies close enough, else the `NetworkLevel` that it is spread over",
        snapshot=_PAST,
    ),
    "disrupted": Field("i1", "", "1 = counts against its disruption budget", snapshot=_PAST),
    "preemptor": Field("i1", "", "1 = once fitted nowhere", snapshot=_PAST),
    "by_preemption": Field("i1", "", "1 = holds what victims gave up", snapshot=_PAST),
    "declined": Field(
        "i1", "", "1 = once had a candidate and was left pending by choice", snapshot=_PAST
    ),
    "tried": Field(
        "i4", "", "release count at its last failed placement", -1,
        snapshot=Snapshot(-1, "nobody tries to place it here"),
    ),
    "evictions": Field(
        "i4", "", "how often it was evicted", snapshot=Snapshot(0, "a new pod each time")
    ),
    "starved_s": Field(
        "i4", "s", "longest time a batch pod has been without resources", snapshot=_PAST
    ),
    "done_s": Field("i8", "s", "batch work saved by checkpoints", snapshot=_PAST),
    "wait_s": Field("i8", "s", "time pending so far, without the present spell", snapshot=_PAST),
    "queued_s": Field("i8", "s", "since when it has been pending"),
    "stopped_s": Field(
        "i8", "s", "when it last lost its resources to an eviction", NEVER_PLACED_S, snapshot=_NEVER
    ),
}  # fmt: skip
"""What has become of a pod, in the same way."""

NODE_FIELDS: dict[str, Field] = {
    "gpu_free": Field("i8", "", "free GPUs, bit i = GPU i"),
    "cores_free": Field("i8", "", "free cores"),
    "model": Field("i4", "", "its server model"),
    "num_pods": Field("i4", "", "pods that hold resources"),
    "reserved_s": Field(
        "i8",
        "s",
        "until when it is kept for a job that fits nowhere; long ago = it is not",
        NEVER_PLACED_S,
        snapshot=Snapshot(NEVER_PLACED_S, "nothing is reserved in a snapshot"),
    ),
}

TOTALS_FIELDS: dict[str, Field] = {
    "now_s": Field("i8", "s", "the time"),
    "gpus": Field("i8", "", "GPUs of the cluster"),
    "free_gpus": Field("i8", "", "free ones"),
    "online_gpus": Field("i8", "", "held by online pods, nominated ones included"),
    "batch_gpus": Field("i8", "", "held by running batch pods"),
    "wait_gpus": Field("i8", "", "asked for by online pods that are pending or nominated"),
    "batch_wait_gpus": Field("i8", "", "asked for by pending batch pods"),
    "batch_wait_1": Field("i8", "", "the part of pods that ask for 1 GPU at most"),
    "batch_wait_2": Field("i8", "", "for 2"),
    "batch_wait_4": Field("i8", "", "for 3 or 4; the rest is larger"),
    "batch_wait_group": Field("i8", "", "the part of PodGroup members, of any size"),
    "misaligned_gpus": Field(
        "i8", "", "serving online GPUs by sensitivity and deficit, see `misaligned_at`",
        shape=(NUM_MISALIGNED,),
        snapshot=Snapshot(0, "the service does not work out how well other pods sit"),
    ),
    "releases": Field("i8", "", "counts releases of resources", snapshot=_PAST),
    "free_counts": Field(
        "i8", "", "bit f = a node has f free GPUs",
        snapshot=Snapshot(0, "nobody starts in a snapshot"),
    ),
}  # fmt: skip

CLOCK_FIELDS: dict[str, Field] = {
    "next_arrival": Field("i8", "", "pods before it in the table have arrived"),
    "next_departure": Field("i8", "", "position in `departures`"),
    "heap_size": Field("i8", "", "entries of the event heap"),
    "queue_size": Field("i8", "", "pods in the scheduling queue"),
    "unserved": Field("i8", "", "online pods that are pending, nominated or starting"),
    "online_queued": Field("i8", "", "online pods in the queue"),
    "online_left": Field("i8", "", "those that the present scheduling pass has not reached"),
    "in_vain": Field("i8", "", "release count at which no queued batch pod fitted, -1 = not known"),
    "cursor": Field("i8", "", "place in the queue that the scheduling pass has reached"),
    "reserved": Field("i8", "", "1 = the present pass keeps nodes for a job that fits nowhere"),
    "again": Field("i8", "", "1 = a budget came back in this pass, after pods had looked at it"),
    "in_pass": Field("i8", "", "1 = within a scheduling pass"),
    "asked": Field("i8", "", "pod that waits for a decision, -1 = none", -1),
}
"""Where the event loop stands."""

ACCOUNT_FIELDS: dict[str, Field] = {
    "waiting": Field(
        "i8", "GPU s", "asked for by online pods that wait for their place within their deadline, by "
        "how many replicas of their service serve, see `REPLICAS`", shape=(NUM_REPLICAS,),
    ),
    "late": Field("i8", "GPU s", "the same beyond their deadline", shape=(NUM_REPLICAS,)),
    "late_squared": Field(
        "i8", "GPU s2", "GPUs times the square of how late they got their place",
        shape=(NUM_REPLICAS,),
    ),
    "starting": Field(
        "i8", "GPU s", "held by online pods that start up, by the same", shape=(NUM_REPLICAS,)
    ),
    "misaligned": Field(
        "i8", "GPU s", "served by sensitivity and deficit, see `misaligned_at`",
        shape=(NUM_MISALIGNED,),
    ),
    "discarded": Field("i8", "GPU s", "batch work lost or repeated"),
    "discarded_low": Field("i8", "GPU s", "the part of batch class 0"),
    "discarded_weighted": Field("i8", "GPU s", "the whole times 1 + batch class"),
    "evicted_gpus": Field("i8", "", "GPUs of victims"),
    "idle": Field("i8", "GPU s", "free while waiting batch work could have used it"),
    "online": Field("i8", "GPU s", "held by online pods"),
    "batch": Field("i8", "GPU s", "held by running batch pods"),
    "decisions": Field("i8", "", "times the selector was asked"),
    "preemptions": Field("i8", "", "pods placed by evicting others"),
    "drained": Field("i8", "", "pods placed on what was being freed already, evicting nobody"),
    "victims": Field("i8", "", "pods evicted, PodGroup members stopped with them included"),
    "hits": Field("i8", "", "preemptions that gave the best possible level"),
    "guaranteed_preemptions": Field("i8", "", "preemptions for pods that ask for alignment"),
    "guaranteed_hits": Field("i8", "", "those of them that gave the best possible level"),
    "cross_socket": Field("i8", "", "preemptions placed across sockets where a socket would do"),
    "violations": Field("i8", "", "guaranteed pods placed unaligned"),
    "refusals": Field("i8", "", "guaranteed pods refused at the node (restricted admission)"),
    "gang_preemptions": Field("i8", "", "gangs placed by evicting others"),
    "gang_hits": Field(
        "i8", "", "those of them that lie close enough, with every member at its best level"
    ),
    "invalid_actions": Field("i8", "", "actions that no candidate stood behind"),
}  # fmt: skip
"""Sums since time 0, whole numbers, so that equal histories give equal bits."""


def record_dtype(fields: Mapping[str, Field]) -> np.dtype[Any]:
    """Return the record of some fields, laid out as a C compiler does."""
    return np.dtype([(name, f.dtype, f.shape) for name, f in fields.items()], align=True)


POD_DTYPE = record_dtype(POD_FIELDS)
LIVE_DTYPE = record_dtype(LIVE_FIELDS)
NODE_DTYPE = record_dtype(NODE_FIELDS)
TOTALS_DTYPE = record_dtype(TOTALS_FIELDS)
CLOCK_DTYPE = record_dtype(CLOCK_FIELDS)
ACCOUNT_DTYPE = record_dtype(ACCOUNT_FIELDS)

_FIELDS_OF = {
    POD_DTYPE: POD_FIELDS, LIVE_DTYPE: LIVE_FIELDS, NODE_DTYPE: NODE_FIELDS,
    TOTALS_DTYPE: TOTALS_FIELDS, CLOCK_DTYPE: CLOCK_FIELDS, ACCOUNT_DTYPE: ACCOUNT_FIELDS,
}  # fmt: skip


def blank(shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return blank records of one of the dtypes above."""
    rows = np.zeros(shape, dtype)
    for name, field in _FIELDS_OF.get(dtype, {}).items():
        if field.blank:
            rows[name] = field.blank
    return rows


def pod_table(num_pods: int, **columns: Any) -> npt.NDArray[Any]:
    """Return a table of pods, (P,) POD_DTYPE; what no column gives is blank.

    Raises:
        WorkloadError: there is no such column, it has another shape, or a value that is no whole
            number within the field's range.
    """
    table = blank(num_pods, POD_DTYPE)
    for name, values in columns.items():
        if name not in POD_FIELDS:
            raise WorkloadError(f"pod column {name!r}; legal: {', '.join(POD_FIELDS)}")
        given = np.asarray(values)
        if given.shape not in ((), (num_pods,)):
            raise WorkloadError(f"pods: {name} has shape {given.shape}; legal: ({num_pods},)")
        low, high = POD_FIELDS[name].legal
        whole = given.dtype.kind in "iub" or (given.dtype.kind == "f" and np.isfinite(given).all())
        wrong = (given < low) | (given > high) | (given != np.floor(given)) if whole else True
        if np.any(wrong):
            at = int(np.argmax(np.broadcast_to(wrong, num_pods))) if whole else 0
            value = np.broadcast_to(given, num_pods)[at] if num_pods else given
            raise WorkloadError(
                f"pods: pod {at}: {name} = {value}; legal: whole numbers from {low} to {high}"
            )
        table[name] = given
    return table
