"""The simulator's two ordered collections: the event heap and the scheduling queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.generated import define
from flextopo.cluster.jit.kernels import copying_kernel, inlined, stage
from flextopo.cluster.state.arrays import Cluster, Records, as_index
from flextopo.cluster.state.schema import ACCOUNT_DTYPE, ALL_MEMBERS, CLOCK_DTYPE
from flextopo.cluster.state.storage import Array, Kind, allocate_arrays, copy_lines

LAST_S = 2**31 - 1
"""The latest time in the event heap, 68 years; whatever comes later is there as if it came then."""


class Events(NamedTuple):
    """What the simulator keeps beside the cluster; P pods, D online pods that leave.

    Fields: `departures` (D,) int64, pods by (depart_s, index), never changes; `heap` (P,) int64, a
    binary heap of entries, next_s * 2**32 + pod; `queue` (P,) int32, pending pods by (priority
    descending, arrival, index); `unserved` (P,) int32, online pods that are pending, nominated or
    starting, in any order; `clock` (1,) CLOCK_DTYPE; `account` (1,) ACCOUNT_DTYPE.
    """

    departures: Annotated[npt.NDArray[np.int64], Array(np.int64, ("departures",), Kind.GIVEN)]
    heap: Annotated[npt.NDArray[np.int64], Array(np.int64, ("heap",))]
    queue: Annotated[npt.NDArray[np.int32], Array(np.int32, ("queue",))]
    unserved: Annotated[npt.NDArray[np.int32], Array(np.int32, ("unserved",))]
    clock: Annotated[Records, Array(CLOCK_DTYPE, ("one",))]
    account: Annotated[Records, Array(ACCOUNT_DTYPE, ("one",))]


IN_USE = {
    "heap": 'source.clock[0]["heap_size"]',
    "queue": 'source.clock[0]["queue_size"]',
    "unserved": 'source.clock[0]["unserved"]',
}
"""How much of an axis means something, as kernels that copy from `source` say it."""

copy_events: Callable[[Events, Events], None] = copying_kernel(
    define("copy_events", "source, target", copy_lines(Events, IN_USE), __file__)
)
"""Copy everything that changes from the first to the second."""


def empty_events(
    pods: int, departures: npt.NDArray[np.int64], heap: npt.NDArray[np.int64] | None = None
) -> Events:
    """Return the events of a tape that has not begun.

    Args:
        pods: how many there are.
        departures: online pods that leave, in that order.
        heap: entries of the event heap, if it is not empty.
    """
    given = {"departures": departures} if heap is None else {"departures": departures, "heap": heap}
    sizes = {"heap": pods, "queue": pods, "unserved": pods, "one": 1}
    return allocate_arrays(Events, sizes, **given)


@inlined
def pod_of(entry: int) -> int:
    """Return the pod of an entry of the event heap."""
    return entry & 0xFFFFFFFF


@inlined
def time_of(entry: int) -> int:
    """Return the time of an entry of the event heap."""
    return entry >> 32


def heap_entries(next_s: npt.NDArray[np.int64], pods: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the entries of pods with these times, (N,) int64; sorted ones are a heap."""
    return np.minimum(next_s, LAST_S) << 32 | pods


@inlined
def _settle(c: Cluster, e: Events, at: int, entry: int) -> None:
    """Put an entry where it belongs in the heap, starting from the free place `at`."""
    size = e.clock[0]["heap_size"]
    while at > 0:
        parent = (at - 1) // 2
        above = e.heap[parent]
        if above <= entry:
            break
        e.heap[at] = above
        c.live[pod_of(above)]["heap_at"] = at
        at = parent
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        below = e.heap[child]
        if child + 1 < size and e.heap[child + 1] < below:
            child += 1
            below = e.heap[child]
        if entry <= below:
            break
        e.heap[at] = below
        c.live[pod_of(below)]["heap_at"] = at
        at = child
    e.heap[at] = entry
    c.live[pod_of(entry)]["heap_at"] = at


@inlined
def schedule_event(c: Cluster, e: Events, pod: int, time_s: int) -> None:
    """Set the time of a pod's next event; a pod has one at most."""
    c.live[pod]["next_s"] = time_s
    at = as_index(c.live[pod]["heap_at"])
    if at < 0:
        at = e.clock[0]["heap_size"]
        e.clock[0]["heap_size"] = at + 1
    _settle(c, e, at, min(time_s, LAST_S) << 32 | pod)


@stage
def cancel_event(c: Cluster, e: Events, pod: int) -> None:
    """Take a pod out of the event heap if it is there."""
    at = as_index(c.live[pod]["heap_at"])
    if at < 0:
        return
    c.live[pod]["heap_at"] = -1
    size = e.clock[0]["heap_size"] - 1
    e.clock[0]["heap_size"] = size
    if at < size:
        _settle(c, e, at, e.heap[size])


@stage
def _before(c: Cluster, a: int, b: int) -> bool:
    """Order two pods in the scheduling queue."""
    pa, pb = c.pods[a]["priority"], c.pods[b]["priority"]
    if pa != pb:
        return bool(pa > pb)
    ta, tb = c.pods[a]["arrive_s"], c.pods[b]["arrive_s"]
    return bool(ta < tb or (ta == tb and a < b))


@stage
def _queue_place(c: Cluster, e: Events, pod: int) -> int:
    """Return the place of a pod in the queue: its own if it is there, else where it belongs."""
    low, high = 0, e.clock[0]["queue_size"]
    cursor = e.clock[0]["cursor"]
    if cursor < high and e.queue[cursor] == pod:  # the scheduling pass has just come to it
        return int(cursor)
    while low < high:
        middle = (low + high) // 2
        if _before(c, e.queue[middle], pod):
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def _count_waiting(c: Cluster, pod: int, sign: int) -> None:
    """Enter a batch pod into the account of what waits, or take it out."""
    t, gpus = c.totals[0], c.pods[pod]["gpus"]
    t["batch_wait_gpus"] += sign * gpus
    if gpus <= 1:
        t["batch_wait_1"] += sign * gpus
    elif gpus == 2:
        t["batch_wait_2"] += sign * gpus
    elif gpus <= 4:
        t["batch_wait_4"] += sign * gpus
    if c.pods[pod]["group"] >= 0:
        t["batch_wait_group"] += sign * gpus


@inlined
def _look_again(c: Cluster, pod: int) -> None:
    """Let a PodGroup be tried again: with one member more in the queue enough may be there to start."""
    other = pod
    while True:
        c.live[other]["tried"] = -1
        other = as_index(c.pods[other]["next_member"])
        if other == pod:
            break


@inlined
def enqueue(c: Cluster, e: Events, pod: int) -> None:
    """Put a pod into the scheduling queue."""
    at = _queue_place(c, e, pod)
    size = e.clock[0]["queue_size"]
    for i in range(size, at, -1):
        e.queue[i] = e.queue[i - 1]
    e.queue[at] = pod
    e.clock[0]["queue_size"] = size + 1
    c.live[pod]["queued_s"] = c.totals[0]["now_s"]
    if c.pods[pod]["online"]:
        c.totals[0]["wait_gpus"] += c.pods[pod]["gpus"]
        e.clock[0]["online_queued"] += 1
        e.unserved[e.clock[0]["unserved"]] = pod
        e.clock[0]["unserved"] += 1
    else:
        e.clock[0]["in_vain"] = -1
        _count_waiting(c, pod, as_index(1))
        if c.pods[pod]["min_members"] < ALL_MEMBERS:
            _look_again(c, pod)


@inlined
def dequeue(c: Cluster, e: Events, pod: int) -> None:
    """Take a pod out of the scheduling queue; an online pod waits on until it is bound."""
    at = _queue_place(c, e, pod)
    size = e.clock[0]["queue_size"] - 1
    for i in range(at, size):
        e.queue[i] = e.queue[i + 1]
    e.clock[0]["queue_size"] = size
    if c.pods[pod]["online"]:
        e.clock[0]["online_queued"] -= 1
    else:
        _count_waiting(c, pod, as_index(-1))


@stage
def leave_unserved(e: Events, pod: int) -> None:
    """Take an online pod out of those that wait for their place or start up."""
    last = e.clock[0]["unserved"] - 1
    for i in range(last + 1):
        if e.unserved[i] == pod:
            e.unserved[i] = e.unserved[last]
            e.clock[0]["unserved"] = last
            return
