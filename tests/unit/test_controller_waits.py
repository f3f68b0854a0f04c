"""Whom the controller lets wait, for what, and who is told when that is over; against a fake apiserver."""

import asyncio
from typing import Any

import pytest
from fake_apiserver import FakeApiserver, until
from kube_objects import flextopo, make_cache, node, pod, preemptor, read

pytest.importorskip("lightkube")

from controllers import REFUSED, WAITING, control, dying, evictions, nominated_node, settle, spread
from extenders import LEAVING, ask, meta_victims

from flextopo.policies.serving import controller as controlling
from flextopo.policies.serving.controller import Controller
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.records import PodRecord


def test_room_that_is_to_come_elsewhere_is_waited_for() -> None:
    """It had others evicted on the node it was nominated for, while the extender had it wait for another."""

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: nominated_node(server) == "n1")
        await settle()
        assert evictions(server) == 0
        for i in range(4):
            server.delete("Pod", f"batch/c{i}")
        # Where that does not come to pass, it goes on.
        await settle()
        server.put(pod("late", "n1", gpus=4, priority=2000))
        await until(lambda: evictions(server) > 0)

    batch = [pod(f"c{i}", "n1", priority=1000, meta=LEAVING if i < 4 else {}) for i in range(8)]
    other = [node("n1"), flextopo("n1", {f"c{i}": [i] for i in range(8)}), *batch]
    told = preemptor(4, status={**REFUSED, "nominatedNodeName": "n0"})
    control([*spread(), *other, told], scenario)


def test_what_is_not_carried_out_is_noted_on_the_pod_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An extender elsewhere kept its place for a minute, though nobody went for it."""

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        elsewhere = make_cache(spread())
        notes = list[str]()

        def see() -> bool:
            now = server.get("Pod", "batch/online")
            assert now is not None
            notes.append(now["metadata"]["annotations"].get("flextopo/attended", ""))
            elsewhere.put(read(now))
            return notes[-1] == "" and any(notes)

        nominate = controller.watch.nominate

        async def seen(*args: Any) -> None:
            await nominate(*args)
            see()
            assert elsewhere.reservations.answered("uid-online") == ("n0", ())

        monkeypatch.setattr(controller.watch, "nominate", seen)
        server.faults["create pods/eviction"] = 429
        server.put(WAITING)
        await until(see)
        assert elsewhere.reservations.answered("uid-online") is None
        # Nor is it kept in this process, whatever happens to the pod.
        await settle()
        assert controller.decider.cache.reservations.answered("uid-online") is None
        assert dying(server) == []

    control(spread(), scenario, backoff_s=(9.0, 9.0))


def test_nobody_goes_for_a_pod_that_fits_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        nominate, told = controller.watch.nominate, list[str]()

        async def then_free(*args: Any) -> None:
            await nominate(*args)
            told.append(args[1])
            for name in ("b4", "b5", "b6"):
                asyncio.get_running_loop().call_later(0.02, server.delete, "Pod", f"batch/{name}")

        monkeypatch.setattr(controller.watch, "nominate", then_free)
        server.put(preemptor(4, status=REFUSED))
        await until(lambda: bool(told))
        await settle()
        assert evictions(server) == 0

    control(spread(), scenario)


def test_who_was_left_aside_is_looked_at_again_when_time_alone_has_ended_what_was_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A victim that hangs behind a finalizer is not counted on a minute after its time: no event tells of that."""
    monkeypatch.setattr(controlling, "HELD_BACK_MOST_S", 0.3)
    why = "0/1 nodes are available: 1 it might be given what is kept for batch/ahead."
    refused = {"conditions": [{**REFUSED["conditions"][0], "message": why}]}

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        cache, later = controller.decider.cache, [0]
        own = cache._own_clock
        monkeypatch.setattr(cache, "_own_clock", lambda: own() + later[0])
        await until(controller.watch.ready)
        await asyncio.sleep(1.0)
        before = server.calls.count("patch pods/status")
        later[0] = 85
        await until(lambda: server.calls.count("patch pods/status") > before)

    leaves = {"deletionTimestamp": "2027-01-15T08:00:20Z"}
    held = {f"b{i}": [i] for i in (0, 1, 4, 5, 6)}
    pods = [pod(name, "n0", meta=leaves) for name in ("b0", "b1")]
    pods += [pod(f"b{i}", "n0", priority=3000) for i in (4, 5, 6)]
    nominee = {"nominatedNodeName": "n0"}
    ahead = preemptor(4, name="ahead", status=nominee, spec={"schedulerName": "other"})
    late = preemptor(1, name="late", priority=500, status=refused)
    control([node("n0"), flextopo("n0", held), *pods, ahead, late], scenario)


def test_who_waits_for_what_is_late_is_told_so_once() -> None:
    late = {"deletionTimestamp": "2027-01-15T07:59:40Z"}
    going = [pod(f"b{i}", "n0", meta=late) for i in (0, 1)]

    lines: list[bytes] = []

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: sum(b'"outcome":"place"' in line for line in lines) >= 4)
        assert server.calls.count("create events") == 1
        assert evictions(server) == 0

    control([*spread(), *going, preemptor(3, status=REFUSED)], scenario, lines)


def test_nobody_more_goes_where_a_victim_never_went() -> None:
    # On n0, its place, two have been on their way out for minutes, and one more would do; n1 is full.
    late = {"deletionTimestamp": "2027-01-15T07:55:00Z"}
    stuck = [pod(f"b{i}", "n0", meta=late) for i in (0, 4)]
    there = [pod(f"c{i}", "n1") for i in range(8)]
    more = [node("n1"), flextopo("n1", {f"c{i}": [i] for i in range(8)}), *there]
    asking = preemptor(2, status={**REFUSED, "nominatedNodeName": "n0"})

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: evictions(server) == 2)
        assert nominated_node(server) == "n1"

    control([*spread(), *stuck, *more, asking], scenario)


@pytest.mark.parametrize("requirement", ["none", "best-effort"])
@pytest.mark.parametrize(
    ("why", "wakes"),
    [
        ("it is kept for batch/low, which need not lose it", True),
        ("what is free on it is kept for batch/high", True),
        ("it might be given what is kept for batch/high", True),
        ("its place on n1 is being freed", True),
        ("Insufficient memory", False),
    ],
)
def test_who_waits_for_others_is_told_to_go_on_and_nobody_goes_for_it(
    monkeypatch: pytest.MonkeyPatch, requirement: str, why: str, wakes: bool
) -> None:
    monkeypatch.setattr(controlling, "SPARES_S", 0.3)
    condition = {**REFUSED["conditions"][0], "message": f"0/1 nodes are available: 1 {why}."}
    asking = preemptor(2, requirement, status={"conditions": [condition]})

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await asyncio.sleep(0.2)
        assert "patch pods/status" not in server.calls
        await settle()
        assert ("patch pods/status" in server.calls) == wakes
        assert nominated_node(server) == ""
        assert evictions(server) == 0

    control([*spread(), asking], scenario)


def test_who_was_put_off_when_it_asked_for_victims_is_told_to_ask_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is over in a moment, of which no event tells kube-scheduler."""
    monkeypatch.setattr(controlling, "SPARES_S", 0.1)
    told = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    status = {"conditions": [{**REFUSED["conditions"][0], "message": told}]}
    asking = preemptor(2, "none", status=status)

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await settle()
        assert "patch pods/status" not in server.calls
        reservations = controller.decider.cache.reservations
        reservations.hold_back("uid-online")
        extender = Extender(controller.decider, controller.telemetry)
        body = meta_victims({"n0": ["uid-b0"]}, asking)
        assert ask(extender, "preempt", body)["NodeNameToMetaVictims"] == {}
        await until(lambda: "patch pods/status" in server.calls)
        # Once it has its answer it is kube-scheduler's business again.
        monkeypatch.setattr(reservations, "is_held_back", lambda _: False)
        assert ask(extender, "preempt", body)["NodeNameToMetaVictims"]["n0"]["Pods"]
        assert not reservations.is_put_off("uid-online")

    control([*spread(), asking], scenario)


def test_of_many_who_wait_for_others_each_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlling, "SPARES_S", 0.1)
    monkeypatch.setattr(controlling, "MOST_WOKEN", 2)
    told = "0/1 nodes are available: 1 what is free on it is kept for batch/high."
    status = {"conditions": [{**REFUSED["conditions"][0], "message": told}]}
    asking = [preemptor(2, "none", name=f"p{i}", status=status) for i in range(5)]

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        looked, touch = list[list[str]](), controller.watch.touch
        look = controller.look

        async def counted() -> None:
            looked.append([])
            await look()

        async def noted(pod: PodRecord) -> None:
            looked[-1].append(pod.name)
            await touch(pod)

        monkeypatch.setattr(controller, "look", counted)
        monkeypatch.setattr(controller.watch, "touch", noted)
        await until(lambda: len({name for names in looked for name in names}) == 5)
        assert max(map(len, looked)) == 2

    control([*spread(), *asking], scenario, look_s=0.05)


def test_it_waits_for_kube_schedulers_own_preemption() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await settle()
        assert evictions(server) == 0

    control([*spread(), WAITING], scenario, settle_s=60.0)


def test_who_is_refused_what_fits_for_long_has_others_evicted_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was woken again and again, while the extender kept the place for one whose victim takes an hour."""
    monkeypatch.setattr(controlling, "HELD_BACK_MOST_S", 0.8)
    held = {"a0": [0], "a4": [4], "a5": [5]}
    kept = [node("n1"), flextopo("n1", held)]
    kept += [pod(name, "n1", priority=1000) for name in ("a4", "a5")]
    hour = "2027-01-15T09:00:00Z"
    kept.append(pod("a0", "n1", priority=1000, meta={"deletionTimestamp": hour}))
    ahead = {**REFUSED, "nominatedNodeName": "n1"}
    kept.append(preemptor(4, name="ahead", priority=2000, status=ahead))

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await settle()
        assert evictions(server) == 0
        await until(lambda: len(dying(server)) == 1)
        assert nominated_node(server) == "n0"
        await settle()
        assert evictions(server) == 1

    control([*spread(), *kept, WAITING], scenario)
