"""The cache follows a cluster through everything that a watch can do."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import pytest
from fake_apiserver import FakeApiserver, running, until
from kube_objects import (
    NOW_S,
    budget,
    flextopo,
    full_node,
    make_cache,
    node,
    pod,
    preemptor,
    read,
)

pytest.importorskip("lightkube")

from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User

from flextopo.policies.serving import kube
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.kube import KubeWatch, connect
from flextopo.policies.serving.places import Places


def known(watch: KubeWatch) -> ClusterCache:
    """Return the cache that a watch keeps in step."""
    assert isinstance(watch.cache, ClusterCache)
    return watch.cache


Scenario = Callable[[FakeApiserver, KubeWatch], Awaitable[None]]


def follow(documents: list[dict[str, Any]], scenario: Scenario) -> None:
    """Run a scenario beside a watch of a fake apiserver."""

    async def run() -> None:
        server = FakeApiserver()
        for document in documents:
            server.put(document)
        async with running(server):
            config = KubeConfig.from_one(cluster=Cluster(server=server.url), user=User())
            watch = KubeWatch(connect(config), ClusterCache(lambda: NOW_S))
            task = asyncio.create_task(watch.follow())
            try:
                await scenario(server, watch)
            finally:
                task.cancel()
                await asyncio.wait([task])

    asyncio.run(run())


def same(watch: KubeWatch, documents: list[dict[str, Any]]) -> bool:
    """Say whether the cache holds what one of these objects would hold."""
    expected = make_cache(documents)
    states, here = expected.nodes.states, known(watch).nodes.states
    return (
        known(watch).pods.keys() == expected.pods.keys()
        and here.keys() == states.keys()
        and all(here[name].counted.node == states[name].counted.node for name in states)
        and known(watch).budgets.by_key.keys() == expected.budgets.by_key.keys()
    )


FULL = [*full_node("n0"), *full_node("n1", 3), budget("b", 1, {"a": "b"})]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "RETRY_S", (0.02, 0.1))
    monkeypatch.setattr(kube, "WATCH_S", 1)
    monkeypatch.setattr(kube, "SILENCE_S", 2)


def test_all_kinds_are_listed_page_by_page_and_watched() -> None:
    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        assert not watch.ready()
        await until(watch.ready)
        assert same(watch, FULL)
        # Eleven pods in pages of three.
        assert server.calls.count("list pods") == 4
        server.put(pod("late", "n1"))
        server.delete("Pod", "batch/n0-b0")
        server.put(budget("c", 0, {"x": "y"}))
        server.put(node("n2"))
        left = [d for d in FULL if d["metadata"]["name"] != "n0-b0"]
        more = [pod("late", "n1"), budget("c", 0, {"x": "y"}), node("n2")]
        await until(lambda: same(watch, [*left, *more]))
        assert server.calls.count("list pods") == 4

    follow(FULL, scenario)


def test_a_cluster_without_custom_resources_is_ready_too() -> None:
    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        server.kinds -= {"flextopos", "podgroups"}
        await until(watch.ready)
        assert known(watch).nodes.sums["flat"] == 1
        assert watch.age_s() < 3

    follow([node("n0"), pod("p", "n0")], scenario)


def test_a_cluster_that_never_lets_a_kind_be_read_stays_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kube, "ABSENT_S", 0.1)

    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        server.faults["list podgroups"] = server.faults["list persistentvolumes"] = 403
        await until(watch.ready)
        # It is asked for again and again, and refused each time.
        await until(lambda: server.calls.count("list persistentvolumes") >= 3)
        await asyncio.sleep(1.8)
        assert watch.age_s() < 1.5
        assert not known(watch).volumes.known
        server.faults.clear()
        await until(lambda: known(watch).volumes.known)

    follow([node("n0"), pod("p", "n0")], scenario)


def test_bookmarks_keep_a_quiet_watch_young_and_a_dead_one_grows_old() -> None:
    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        await until(watch.ready)
        await asyncio.sleep(1.8)
        assert watch.age_s() < 1.5
        for plural in ("pods", "nodes"):
            server.faults[plural] = "slow"
        server.break_watches()
        await asyncio.sleep(1.8)
        assert watch.age_s() > 1.5
        server.faults.clear()

    follow(FULL, scenario)


def test_a_dropped_watch_goes_on_where_it_was() -> None:
    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        await until(watch.ready)
        lists = server.calls.count("list pods")
        for i in range(3):
            server.break_watches()
            server.put(pod(f"late{i}", "n1"))
            await until(lambda i=i: f"uid-late{i}" in known(watch).pods)  # type: ignore[misc]
        # A line that was cut off cannot be read, so there may be fresh lists, and never a gap.
        assert server.calls.count("list pods") >= lists
        assert same(watch, [*FULL, *(pod(f"late{i}", "n1") for i in range(3))])

    follow(FULL, scenario)


def test_an_expired_version_is_listed_anew() -> None:
    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        await until(watch.ready)
        lists = server.calls.count("list pods")
        server.delete("Pod", "batch/n0-b1")
        server.put(pod("late", "n1"))
        server.forget_history()
        server.break_watches()
        left = [d for d in FULL if d["metadata"]["name"] != "n0-b1"]
        await until(lambda: same(watch, [*left, pod("late", "n1")]))
        assert server.calls.count("list pods") > lists

    follow(FULL, scenario)


def test_an_apiserver_that_is_back_is_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "RETRY_S", (0.02, 60.0))

    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        await until(watch.ready)
        server.faults = {"watch pods": 500}
        server.break_watches()
        # It waits longer and longer: by now, a second or more.
        await until(lambda: server.calls.count("watch pods") >= 7)
        lists = server.calls.count("list pods")
        server.faults.clear()
        server.put(pod("late", "n1"))
        server.forget_history()
        asked = server.calls.count("watch pods")
        await until(lambda: server.calls.count("watch pods") > asked)
        await asyncio.sleep(0.5)
        assert server.calls.count("list pods") > lists
        assert same(watch, [*FULL, pod("late", "n1")])

    follow(FULL, scenario)


@pytest.mark.parametrize("fault", [500, 429, 403, "garbage"])
def test_a_failing_apiserver_is_asked_again_and_nothing_is_lost(fault: int | str) -> None:
    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        server.faults = dict.fromkeys(("list pods", "list nodes"), fault)
        await asyncio.sleep(0.3)
        assert not watch.ready()
        server.faults.clear()
        await until(watch.ready)
        server.faults = {"watch pods": fault, "watch flextopos": fault}
        server.break_watches()
        server.put(pod("late", "n1"))
        await asyncio.sleep(0.3)
        assert len(known(watch).pods) in (11, 12)
        server.faults.clear()
        await until(lambda: same(watch, [*FULL, pod("late", "n1")]))
        # It waits longer and longer, and does not hammer.
        assert server.calls.count("watch pods") < 60

    follow(FULL, scenario)


def test_events_that_come_twice_change_nothing() -> None:
    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        await until(watch.ready)
        server.put(pod("late", "n1"))
        server.delete("Pod", "batch/late")
        server.put(pod("late2", "n1"))
        await until(lambda: "uid-late2" in known(watch).pods)
        server.replay("pods", 3)
        server.put(pod("last", "n1"))
        await until(lambda: "uid-last" in known(watch).pods)
        assert same(watch, [*FULL, pod("late2", "n1"), pod("last", "n1")])

    follow(FULL, scenario)


def test_an_object_that_cannot_be_used_does_not_stop_the_others() -> None:
    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        await until(watch.ready)
        broken = flextopo("n1", {})
        broken["spec"] = {"nodes": "none"}
        server.put(broken)
        server.put(pod("bad", "n0", priority=2**31))
        server.put(pod("late", "n1"))
        await until(lambda: "uid-late" in known(watch).pods)
        assert not known(watch).nodes.states["n1"].hardware.known
        assert "batch/bad" in known(watch).nodes.states["n0"].broken
        server.put(flextopo("n1", {"n1-b0": [0], "n1-b1": [1], "n1-b2": [2]}))
        server.delete("Pod", "batch/bad")
        await until(lambda: not known(watch).problems)
        assert same(watch, [*FULL, pod("late", "n1")])
        assert known(watch).nodes.states["n1"].hardware.known

    follow(FULL, scenario)


def test_a_clock_that_jumps_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from flextopo.policies.serving.cache import make_clock

    clock = make_clock()
    before = clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= clock() <= before + 2


@pytest.mark.parametrize("turns", range(6))
def test_the_fake_apiserver_loses_nothing_beside_a_bookmark(turns: int) -> None:
    """An object may be written in any turn of the event loop around a bookmark's timer."""

    async def told() -> list[str]:
        server = FakeApiserver()
        server.bookmark_s = 0.0
        events = server._events("pods", server._version, 5.0, bookmarks=True)
        first = asyncio.ensure_future(anext(events))
        for _ in range(turns):
            await asyncio.sleep(0)
        server.put(pod("late"))
        lines = [await first, *[await anext(events) for _ in range(2)]]
        return [json.loads(line)["type"] for line in lines]

    assert asyncio.run(told()).count("ADDED") == 1


def test_the_time_is_the_apiservers_whatever_this_machine_takes_it_for() -> None:
    """Its own clock a minute behind, it took victims with 5 s of grace for ones that take longer than 30."""

    async def scenario(server: FakeApiserver, watch: KubeWatch) -> None:
        cache = known(watch)
        cache._own_clock = lambda: int(time.time()) - 60
        watch.told_time = cache.told_time
        await until(lambda: abs(cache.clock() - time.time()) <= 2)
        # An answer states whole seconds: what is no more than that changes nothing.
        for skew, ahead in ((1, cache.ahead_s), (5, cache.ahead_s + 5)):
            watch._read_time(formatdate(cache.clock() + skew))
            assert cache.ahead_s == ahead
        year = formatdate(cache.clock() + 365 * 86_400)
        zone = f"Fri, 01 Jan 2027 00:00:00 +{'9' * 20}"
        for odd in ("", "yesterday", "Fri, 99 Foo 2026 00:00:00 GMT", year, zone):
            watch._read_time(odd)
            assert cache.ahead_s == ahead

    follow([], scenario)


@pytest.mark.parametrize("ahead_s", [-60, 60])
def test_victims_are_on_their_way_out_whatever_the_time_is_here(ahead_s: int) -> None:
    waiting = preemptor(1, status={"nominatedNodeName": "n0"})
    leaving = pod("n0-b0", "n0", meta={"deletionTimestamp": "2027-01-15T08:00:03Z"})
    documents = [*full_node("n0"), waiting]
    cache = ClusterCache(lambda: NOW_S - ahead_s)
    for document in [*documents, leaving]:
        cache.put(read(document))
    record = cache.pods["uid-online"]
    assert not Places(cache).kept_for(record)
    cache.told_time(NOW_S)
    assert Places(cache).kept_for(record) == "n0"
