"""The event heap and the scheduling queue against sorted lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flextopo.cluster.simulation.events import (
    LAST_S,
    Events,
    cancel_event,
    copy_events,
    dequeue,
    empty_events,
    enqueue,
    pod_of,
    schedule_event,
    time_of,
)
from flextopo.cluster.state.arrays import Cluster, empty_cluster
from flextopo.cluster.topology.model import compile_models, preset

PODS = 12
TIMES = st.none() | st.integers(-3, 9) | st.just(LAST_S)
TABLES = compile_models([preset("a100")])


def fresh() -> tuple[Cluster, Events]:
    events = empty_events(PODS, np.zeros(0, np.int64))
    return empty_cluster(TABLES, np.zeros(1, np.int64), PODS, 0), events


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, PODS - 1), TIMES), max_size=60))
def test_the_heap_gives_the_earliest_event_then_the_lowest_pod(
    steps: list[tuple[int, int | None]],
) -> None:
    c, e = fresh()
    due: dict[int, int] = {}
    for pod, time_s in steps:
        if time_s is None:
            cancel_event(c, e, pod)
            due.pop(pod, None)
        else:
            schedule_event(c, e, pod, time_s)
            due[pod] = time_s
        size = int(e.clock[0]["heap_size"])
        entries = [(time_of(entry), pod_of(entry)) for entry in e.heap[:size]]
        assert sorted(entries) == sorted((due[pod], pod) for pod in due)
        assert all(c.live[pod]["heap_at"] == at for at, (_, pod) in enumerate(entries))
        if due:
            assert entries[0] == min(entries)
    drained = []
    while e.clock[0]["heap_size"]:
        drained.append(int(pod_of(e.heap[0])))
        cancel_event(c, e, drained[-1])
    assert drained == sorted(due, key=lambda pod: (due[pod], pod))
    assert (c.live["heap_at"] == -1).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 2)), min_size=PODS, max_size=PODS),
    st.lists(st.integers(0, PODS - 1), max_size=40),
)
def test_the_queue_is_by_priority_then_age_then_row(
    pods: list[tuple[int, int]], steps: list[int]
) -> None:
    c, e = fresh()
    for row, (priority, arrive_s) in enumerate(pods):
        c.pods[row]["priority"], c.pods[row]["arrive_s"], c.pods[row]["gpus"] = (
            priority,
            arrive_s,
            1,
        )
        c.pods[row]["online"] = row % 2
    waiting: set[int] = set()
    for pod in steps:
        if pod in waiting:
            dequeue(c, e, pod)
            waiting.remove(pod)
        else:
            enqueue(c, e, pod)
            waiting.add(pod)
        expected = sorted(waiting, key=lambda row: (-pods[row][0], pods[row][1], row))
        assert e.queue[: e.clock[0]["queue_size"]].tolist() == expected
        assert c.totals[0]["batch_wait_gpus"] == sum(1 for row in waiting if row % 2 == 0)


def test_copied_events_go_their_own_way() -> None:
    (c, e), (_, other) = fresh(), fresh()
    schedule_event(c, e, 3, 5)
    enqueue(c, e, 7)
    copy_events(e, other)
    assert (time_of(other.heap[0]), pod_of(other.heap[0]), other.queue[0]) == (5, 3, 7)
    assert other.clock == e.clock
    cancel_event(c, other, 3)
    assert e.clock[0]["heap_size"] == 1


def test_what_comes_later_than_the_heap_can_say_comes_last() -> None:
    c, e = fresh()
    for pod, time_s in ((2, 2**40), (3, LAST_S - 1), (1, 2**50)):
        schedule_event(c, e, pod, time_s)
    order = []
    while e.clock[0]["heap_size"]:
        order.append(int(pod_of(e.heap[0])))
        cancel_event(c, e, order[-1])
    assert order == [3, 1, 2]
    assert c.live["next_s"][[1, 2]].tolist() == [2**50, 2**40]
