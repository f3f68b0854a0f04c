"""The controller against a fake apiserver, end to end."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from fake_apiserver import FakeApiserver, until
from kube_objects import bound_claim, budget, flextopo, node, pod, preemptor

pytest.importorskip("lightkube")

from controllers import (
    REFUSED,
    WAITING,
    control,
    dying,
    evictions,
    make_controller,
    nominated_node,
    settle,
    spread,
)
from extenders import ask, meta_victims

from flextopo.policies.serving import controller as controlling
from flextopo.policies.serving import reservations
from flextopo.policies.serving.controller import Controller
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.outcomes import Outcomes


def test_it_nominates_then_evicts_once_and_leaves_the_rest_to_the_scheduler() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 1)
        # One card is free on each socket, so one victim aligns the pod.
        assert nominated_node(server) == "n0"
        calls = [call for call in server.calls if "list" not in call and "watch" not in call]
        assert calls[:2] == ["patch pods/status", "create pods/eviction"]
        (victim,) = dying(server)
        await settle()
        assert evictions(server) == 1
        server.delete("Pod", f"batch/{victim}")
        await settle()
        assert evictions(server) == 1
        # Now it fits, and kube-scheduler is told to look again.
        waiting = server.get("Pod", "batch/online")
        assert waiting is not None
        assert "flextopo/woken" in waiting["metadata"]["annotations"]
        bound = preemptor(2, status=REFUSED)
        bound["spec"]["nodeName"] = "n0"
        server.put(bound)
        await settle()
        assert (evictions(server), server.calls.count("patch pods/status")) == (1, 2)

    control([*spread(), WAITING], scenario)


@pytest.mark.parametrize("forgets", [False, True])
def test_victims_that_take_long_are_waited_for(
    forgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else goes for a pod while its victims take an hour to end."""
    monkeypatch.setattr(controlling, "PLAN_S", 0.3)
    monkeypatch.setattr(reservations, "KEPT_S", 0.1)

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        server.gone = "2027-01-15T09:00:00Z"
        await until(lambda: len(dying(server)) == 1)
        if forgets:  # kube-scheduler takes back a nomination that it did not make
            waiting = server.get("Pod", "batch/online")
            assert waiting is not None
            waiting["status"].pop("nominatedNodeName", None)
            server.put(waiting)
        for _ in range(4):
            await settle()
            assert (evictions(server), len(dying(server))) == (1, 1)

    control([*spread(), WAITING], scenario)


def test_a_restart_goes_on_where_the_last_one_stopped() -> None:
    # The last controller died after the nomination.
    chosen = preemptor(4, status={**REFUSED, "nominatedNodeName": "n0"})

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 3)
        await settle()
        # It notes anew that it is attended to.
        assert (evictions(server), server.calls.count("patch pods/status")) == (3, 1)

    control([*spread(), chosen], scenario)


def test_a_restart_between_two_evictions_goes_on() -> None:
    chosen = preemptor(4, status={**REFUSED, "nominatedNodeName": "n0"})
    half = spread()
    half[2]["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:20Z"

    async def later(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await settle()
        # One is on its way out: nothing more is taken until it is gone.
        assert evictions(server) == 0
        server.delete("Pod", "batch/b0")
        await until(lambda: len(dying(server)) == 2)
        await settle()
        assert evictions(server) == 2
        assert {"b4", "b5", "b6"}.isdisjoint(dying(server))

    control([*half, chosen], later)


def test_a_budget_is_honoured_with_growing_waits() -> None:
    # The cache knows of no budget that forbids it; the apiserver knows better.
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        server.faults["create pods/eviction"] = 429
        await until(lambda: evictions(server) >= 3)
        begun = evictions(server)
        await asyncio.sleep(1.0)
        assert evictions(server) - begun <= 4
        assert dying(server) == []
        server.faults.clear()
        await until(lambda: len(dying(server)) == 1)
        await settle()
        assert len(dying(server)) == 1

    control([*spread(), WAITING], scenario)


def test_pods_under_a_budget_without_disruptions_are_never_asked_for() -> None:
    budgets = [budget(f"budget{i}", 0, {"app": f"a{i}"}) for i in (0, 1, 2, 4, 5)]

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: dying(server) == ["b6"])

    control([*spread(), *budgets, WAITING], scenario)

    async def none(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await settle()
        assert evictions(server) == 0
        assert nominated_node(server) == ""

    control([*spread(), *budgets, budget("budget6", 0, {"app": "a6"}), WAITING], none)


def test_two_preemptors_do_not_get_the_same_place() -> None:
    second = preemptor(2, status=REFUSED, name="online2")

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: nominated_node(server) == nominated_node(server, "online2") == "n0")
        await settle()
        # Where the first will sit is not known before it does, so the second takes no free card
        # for granted; with the victims gone there is an aligned pair for each.
        free = [3, 7, *(int(name[1:]) for name in dying(server))]
        assert sum(sum(gpu // 4 == socket for gpu in free) // 2 for socket in (0, 1)) >= 2
        assert evictions(server) == len(dying(server)) <= 3

    control([*spread(), WAITING, second], scenario)


def test_two_controllers_do_not_preempt_for_one_pod() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        other = make_controller(server)
        tasks = [asyncio.create_task(run()) for run in (other.watch.follow, other.attend)]
        server.put(WAITING)
        await until(lambda: len(dying(server)) >= 1)
        await asyncio.sleep(1.0)
        # The second one's nomination is refused: somebody has changed the pod.
        assert len(dying(server)) == 1
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    control(spread(), scenario)


@pytest.mark.parametrize("before", ["patch pods/status", "create pods/eviction"])
def test_who_has_lost_the_lease_evicts_no_more(before: str) -> None:
    # As after a pause of the process: the lease is over in the middle of what it was about to do.
    servers: list[FakeApiserver] = []

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        servers.append(server)
        await until(controller.watch.ready)
        server.put(preemptor(4, status=REFUSED))
        await until(lambda: before in server.calls)
        await settle()
        assert nominated_node(server) == "n0"
        assert len(dying(server)) == (before == "create pods/eviction")

    control(spread(), scenario, leads=lambda: not servers or before not in servers[0].calls)


def test_who_has_lost_the_lease_looks_at_nobody_else() -> None:
    servers: list[FakeApiserver] = []
    leads = lambda: not servers or nominated_node(servers[0], "first") == ""

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        servers.append(server)
        await until(controller.watch.ready)
        for name in ("first", "second"):
            server.put(preemptor(2, name=name, status=REFUSED))
        await until(lambda: nominated_node(server, "first") != "")
        await settle()
        assert nominated_node(server, "second") == ""

    control(spread(), scenario, leads=leads)


def test_what_the_extender_is_asked_between_two_evictions(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = []

    def ask(controller: Controller, name: str, gpus: int) -> dict[str, Any]:
        asking = preemptor(gpus, name=name, status=REFUSED)
        proposed = {"n0": {"Pods": [{"UID": "batch/b0"}], "NumPDBViolations": 0}}
        body = json.dumps({"Pod": asking, "NodeNameToMetaVictims": proposed}).encode()
        extender = Extender(controller.decider, controller.telemetry)
        return dict(json.loads(extender.preempt(body))["NodeNameToMetaVictims"])

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        evict = controller.watch.evict

        async def slowly(namespace: str, name: str, uid: str) -> None:
            # The three are about to go for the first pod; the one of the same priority gets others.
            found.append(ask(controller, "online", 4))
            found.append(ask(controller, "other", 4))
            controller.decider.cache.reservations.forget("batch/other")
            await evict(namespace, name, uid)

        monkeypatch.setattr(controller.watch, "evict", slowly)
        server.put(preemptor(4, status=REFUSED))
        await until(lambda: len(dying(server)) == 3)
        for own, others in zip(found[::2], found[1::2], strict=True):
            assert own == {}
            named = {pod["UID"] for pod in others["n0"]["Pods"]}
            assert len(named) == 3
            assert named.isdisjoint(f"batch/{name}" for name in dying(server))

    control(spread(), scenario)


def test_kube_scheduler_was_faster_with_one_of_the_victims(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        nominate, cache = controller.watch.nominate, controller.decider.cache
        taken: list[str] = []

        async def too_late(*args: Any) -> None:
            await nominate(*args)
            if not taken:
                # An extender elsewhere has named it at the same time, for another pod.
                taken.append(min(cache.reservations.doomed("n0")).removeprefix("uid-"))
                meta = {"deletionTimestamp": "2027-01-15T08:00:20Z"}
                server.put(pod(taken[0], "n0", meta=meta))
                await until(lambda: any(one.terminating for one in cache.pods.values()))

        monkeypatch.setattr(controller.watch, "nominate", too_late)
        server.put(preemptor(4, status=REFUSED))
        await until(lambda: bool(taken))
        await settle()
        # Nobody goes beside it before it is known what becomes of the place.
        assert (dying(server), evictions(server)) == (taken, 0)
        server.delete("Pod", f"batch/{taken[0]}")
        await until(lambda: len(dying(server)) == 2)
        await settle()
        assert evictions(server) == 2

    control(spread(), scenario)


def test_kube_scheduler_was_told_of_another_node_a_moment_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Extender and controller in two processes had others evicted on two nodes for one pod."""

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        nominate, told = controller.watch.nominate, list[str]()

        def elsewhere() -> None:
            server.put(preemptor(4, status={**REFUSED, "nominatedNodeName": "n1"}))
            for i in range(4):
                server.put(pod(f"c{i}", "n1", meta={"deletionTimestamp": "2027-01-15T08:00:20Z"}))

        async def then_told(*args: Any) -> None:
            await nominate(*args)
            told.append(args[1])
            asyncio.get_running_loop().call_later(0.03, elsewhere)

        monkeypatch.setattr(controller.watch, "nominate", then_told)
        server.put(preemptor(4, status=REFUSED))
        await until(lambda: bool(told))
        await settle()
        assert (told, evictions(server)) == (["n0"], 0)

    other = [node("n1"), flextopo("n1", {f"c{i}": [i] for i in range(8)})]
    batch = [pod(f"c{i}", "n1", priority=900) for i in range(8)]
    control([*spread(), *other, *batch], scenario)


def test_what_is_decided_and_not_carried_out_is_no_eviction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that another had evicted later counted as in vain, for the pod that went elsewhere."""

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        told = Counter[str]()
        controller.outcomes = Outcomes(
            controller.decider, lambda fate, count: told.update({fate: count})
        )
        monkeypatch.setattr(controller, "_is_too_late", lambda *_: True)
        await until(lambda: nominated_node(server) == "n0")
        await settle()
        for name in ("b0", "b1", "b4", "b5"):
            server.delete("Pod", f"batch/{name}")
        bound = preemptor(2)
        server.put({**bound, "spec": {**bound["spec"], "nodeName": "n1"}})
        await settle()
        controller.outcomes.seen()
        assert not told
        assert evictions(server) == 0

    control([*spread(), WAITING], scenario)


@pytest.mark.parametrize("shown_s", [0.03, 0.25])
def test_what_happens_between_nomination_and_eviction_is_heard(
    monkeypatch: pytest.MonkeyPatch, shown_s: float
) -> None:
    """The watch may show kube-scheduler's own victims later than its nomination."""

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        nominate, told = controller.watch.nominate, list[str]()

        def victims() -> None:
            for i in range(4):
                server.put(pod(f"c{i}", "n1", meta={"deletionTimestamp": "2027-01-15T08:00:20Z"}))

        async def then_told(*args: Any) -> None:
            await nominate(*args)
            told.append(args[1])
            loop = asyncio.get_running_loop()
            elsewhere = preemptor(4, status={**REFUSED, "nominatedNodeName": "n1"})
            loop.call_later(0.02, server.put, elsewhere)
            loop.call_later(shown_s, victims)

        monkeypatch.setattr(controller.watch, "nominate", then_told)
        server.put(preemptor(4, status=REFUSED))
        await until(lambda: bool(told))
        await asyncio.sleep(1.0)
        assert (told, evictions(server)) == (["n0"], 0)

    other = [node("n1"), flextopo("n1", {f"c{i}": [i] for i in range(8)})]
    batch = [pod(f"c{i}", "n1", priority=900) for i in range(8)]
    control([*spread(), *other, *batch], scenario, settle_s=0.5)


def test_the_extender_that_is_asked_needs_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlling, "HEARD_S", 60.0)

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        extender = Extender(controller.decider, controller.telemetry, leave_gangs=True)
        extender.filter(json.dumps({"Pod": preemptor(1, name="any"), "NodeNames": ["n0"]}).encode())
        server.put(WAITING)
        await until(lambda: len(dying(server)) == 1)

    control(spread(), scenario)


def test_nobody_goes_any_more_for_a_pod_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        evict = controller.watch.evict

        async def then_gone(namespace: str, name: str, uid: str) -> None:
            await evict(namespace, name, uid)
            server.delete("Pod", "batch/online")
            await until(lambda: not controller.decider.cache.book.pending)

        monkeypatch.setattr(controller.watch, "evict", then_gone)
        server.put(preemptor(4, status=REFUSED))
        await until(lambda: len(dying(server)) == 1)
        await settle()
        assert len(dying(server)) == 1
        assert controller.decider.cache.reservations.planned("n0") == []

    control(spread(), scenario)


@pytest.mark.parametrize(
    "asking",
    [
        preemptor(2),  # not refused yet
        preemptor(2, "best-effort", status=REFUSED),
        preemptor(2, "none", status=REFUSED),
        preemptor(2, status=REFUSED, spec={"preemptionPolicy": "Never"}),
        preemptor(2, status=REFUSED, meta={"deletionTimestamp": "2027-01-15T08:00:00Z"}),
        preemptor(2, status=REFUSED, priority=50),
        preemptor(9, status=REFUSED),
    ],
)
def test_whom_it_leaves_alone(asking: dict[str, Any]) -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await settle()
        assert "patch pods/status" not in server.calls
        assert evictions(server) == 0

    control([*spread(), asking], scenario)


def test_an_answer_that_was_lost_is_carried_out_by_the_controller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the pod fits by counts kube-scheduler asks no more: its place was kept for ever."""
    monkeypatch.setattr(reservations, "ANSWER_S", 0.5)

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        extender = Extender(controller.decider, controller.telemetry)
        body = meta_victims({"n0": ["uid-b0"]}, WAITING)
        assert ask(extender, "preempt", body)["NodeNameToMetaVictims"]["n0"]["Pods"]
        server.put(WAITING)
        await until(lambda: evictions(server) > 0)

    control(spread(), scenario)


ELSEWHERE = "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity."
FULL_OF_VOLUMES = "0/1 nodes are available: 1 node(s) exceed max volume count."


def with_volume(message: str, host: str) -> list[dict[str, Any]]:
    """Return a pod that was refused, and its claim, bound to a volume on a host."""
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    said = {"conditions": [{**REFUSED["conditions"][0], "message": message}]}
    return [
        node("n0", labels={"host": "here"}),
        preemptor(2, status=said, spec={"volumes": volumes}),
        *bound_claim("host", host),
    ]


def test_it_evicts_where_the_volumes_are_whatever_kube_scheduler_said() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 1)

    control([*spread()[1:], *with_volume(ELSEWHERE, "here")], scenario)


@pytest.mark.parametrize(
    ("message", "host", "fault"),
    [
        (REFUSED["conditions"][0]["message"], "elsewhere", {}),
        # Nobody tells where volumes are.
        (ELSEWHERE, "here", {"list persistentvolumes": 403}),
        # How many a node takes, nobody knows here.
        (FULL_OF_VOLUMES, "here", {}),
    ],
)
def test_nobody_is_evicted_for_a_pod_that_volumes_may_keep_away(
    message: str, host: str, fault: dict[str, int | str]
) -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        server.faults = dict(fault)
        await until(controller.watch.ready)
        await settle()
        assert (evictions(server), nominated_node(server)) == (0, "")

    control([*spread()[1:], *with_volume(message, host)], scenario)


def test_shadow_only_tells() -> None:
    lines: list[bytes] = []

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: any(b'"verb":"controller"' in line for line in lines))
        assert "patch pods/status" not in server.calls
        assert evictions(server) == 0

    control([*spread(), WAITING], scenario, lines, shadow=True)


def test_an_apiserver_that_fails_evicts_nobody_twice() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        server.faults["patch pods/status"] = 500
        await until(lambda: server.calls.count("patch pods/status") >= 2)
        assert evictions(server) == 0
        server.faults = {"create pods/eviction": 500}
        await until(lambda: evictions(server) >= 2)
        assert dying(server) == []
        server.faults.clear()
        await until(lambda: len(dying(server)) == 1)
        await settle()
        assert len(dying(server)) == 1

    control([*spread(), WAITING], scenario)


def test_a_pod_that_was_made_anew_under_the_same_name_is_spared() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        server.faults["watch pods"] = "slow"
        server.break_watches()
        for i in (0, 1, 2, 4, 5, 6):
            server.delete("Pod", f"batch/b{i}")
            server.put(pod(f"b{i}", "n0", meta={"uid": f"other-{i}"}))
        pods = [p for p in controller.decider.cache.pods.values() if p.key == "batch/b0"]
        assert pods
        with pytest.raises(Exception, match="uid differs"):
            await controller.watch.evict("batch", "b0", pods[0].uid)
        assert dying(server) == []

    control(spread(), scenario)
