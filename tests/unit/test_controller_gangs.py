"""The controller and gangs, against a fake apiserver, end to end: all members, or nobody goes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_apiserver import FakeApiserver, running, until
from kube_devices import claim, claiming, slice_of
from kube_objects import bound_claim, budget, flextopo, node, pod, preemptor

pytest.importorskip("lightkube")

from controllers import REFUSED, beside, make_client, make_controller

from flextopo.policies.serving.controller import Controller
from flextopo.policies.serving.holds import DeviceHolds
from flextopo.policies.serving.outcomes import Outcomes

Scenario = Callable[[FakeApiserver, Controller], Awaitable[None]]

GROUP = "scheduling.x-k8s.io/pod-group"
LEAF, BLOCK = "cloud.provider.com/topology-rack", "cloud.provider.com/topology-block"
RACK = "topology.example.com/rack"


def full(name: str, rack: str = "r0", **labels: str) -> list[dict[str, Any]]:
    """Return a node whose eight GPUs two batch pods of four hold: NAME-b0 and NAME-b1."""
    names = [f"{name}-b0", f"{name}-b1"]
    held = {names[0]: [0, 1, 2, 3], names[1]: [4, 5, 6, 7]}
    pods = [
        pod(one, name, gpus=4, cpu="28", meta={"labels": {"app": one, "all": "batch"}})
        for one in names
    ]
    return [node(name, labels={LEAF: rack, BLOCK: "h0", **labels}), flextopo(name, held), *pods]


def group(least: int = 2, name: str = "llm", **spec: Any) -> dict[str, Any]:
    return {
        "kind": "PodGroup",
        "metadata": {"name": name, "namespace": "batch"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": least}}, **spec},
    }


def within(*keys: str) -> dict[str, Any]:
    """Return the part of a PodGroup that says in which labels of nodes its members agree."""
    return {"schedulingConstraints": {"topology": [{"key": key} for key in keys]}}


def member(
    name: str, gpus: int = 8, requirement: str = "guaranteed", **more: Any
) -> dict[str, Any]:
    meta = {"labels": {GROUP: "llm"}, **more.pop("meta", {})}
    more = {"status": REFUSED, "meta": meta, **more}
    return preemptor(gpus, requirement, name, **more)


def control(
    documents: list[Any], scenario: Scenario, lines: list[bytes] | None = None, **more: Any
) -> None:
    """Run a scenario beside a controller; documents may be lists of them."""

    async def run() -> None:
        server = FakeApiserver()
        for entry in documents:
            for document in entry if isinstance(entry, list) else [entry]:
                server.put(document)
        async with running(server):
            controller = make_controller(server, lines, **more)
            await beside(controller, scenario(server, controller))

    asyncio.run(run())


def nominated(server: FakeApiserver, *names: str) -> list[str]:
    found = [server.get("Pod", f"batch/{name}") for name in names]
    return [str(one["status"].get("nominatedNodeName", "")) if one else "" for one in found]


def dying(server: FakeApiserver) -> list[str]:
    found = [(key, server.get("Pod", key)) for key in server.keys("Pod")]
    return sorted(
        key.partition("/")[2]
        for key, one in found
        if one and "deletionTimestamp" in one["metadata"]
    )


def evictions(server: FakeApiserver) -> int:
    return server.calls.count("create pods/eviction")


async def settle(seconds: float = 0.6) -> None:
    await asyncio.sleep(seconds)


async def nothing(server: FakeApiserver, controller: Controller) -> None:
    """Nobody is evicted, and nobody nominated."""
    await until(controller.watch.ready)
    await settle(1.0)
    assert evictions(server) == 0
    assert set(nominated(server, "g0", "g1")) == {""}


GANG = [group(), member("g0"), member("g1")]


def test_a_gang_evicts_what_it_needs_on_both_nodes_and_both_are_kept() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 4)
        assert set(nominated(server, "g0", "g1")) == {"n0", "n1"}
        calls = [call for call in server.calls if "list" not in call and "watch" not in call]
        assert calls[:6] == ["patch pods/status"] * 2 + ["create pods/eviction"] * 4
        await settle()
        assert evictions(server) == 4

    control([full("n0"), full("n1"), *GANG], scenario)


def test_the_same_pods_without_a_group_are_decided_about_one_by_one() -> None:
    # What a gang is must come from its PodGroup, not from pods that look alike.
    alone = [member(name, meta={"labels": {}}) for name in ("g0", "g1")]
    locked = pod("n1-b0", "n1", gpus=4, cpu="28", annotations=PROTECTED)

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 2)
        await settle()
        assert dying(server) == ["n0-b0", "n0-b1"]

    control([full("n0"), full("n1"), locked, *alone], scenario)


PROTECTED = {"godel.bytedance.com/can-be-preempted": "false"}


@pytest.mark.parametrize(
    ("least", "members", "cause"),
    [
        (3, GANG[1:], "incomplete"),
        (2, GANG[1:2], "incomplete"),
        (2, [member("g0"), member("g1", status={})], "not ready"),
        (2, [member("g0"), member("g1", spec={"schedulerName": "other"})], "not ready"),
        (2, [member("g0"), member("g1", priority=999)], "unlike"),
        (2, [member("g0"), member("g1", requirement="best-effort")], "unlike"),
        (3, [member("g0"), member("g1", 4), member("g2", 2)], "unlike"),
        (17, [member(f"g{i}", 1) for i in range(17)], "unlike"),
    ],
)
def test_a_gang_that_is_not_whole_evicts_nobody(
    least: int, members: list[dict[str, Any]], cause: str
) -> None:
    lines: list[bytes] = []

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await nothing(server, controller)
        # Told once, however often it was looked at.
        said = [json.loads(line) for line in lines if b"gang_waits" in line]
        assert [line["cause"] for line in said if line["cause"] != "incomplete"][-1:] == (
            [] if cause == "incomplete" else [cause]
        )
        assert [(one["cause"], one["group"]) for one in said].count((cause, "batch/llm")) == 1
        metrics = controller.telemetry.metrics().decode()
        assert f'flextopo_gang_waits_total{{cause="{cause}"}} 1.0' in metrics

    control([full("n0"), full("n1"), full("n2"), group(least), *members], scenario, lines)


def test_the_last_member_to_come_sets_it_going() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await nothing(server, controller)
        server.put(member("g1"))
        await until(lambda: len(dying(server)) == 4)
        assert set(nominated(server, "g0", "g1")) == {"n0", "n1"}

    control([full("n0"), full("n1"), group(), member("g0")], scenario)


def test_all_that_are_there_start_together_or_as_many_as_must() -> None:
    three = [member(f"g{i}") for i in range(3)]

    async def every(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 6)
        assert set(nominated(server, "g0", "g1", "g2")) == {"n0", "n1", "n2"}

    control([full("n0"), full("n1"), full("n2"), group(2), *three], every)

    async def least(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 4)
        await settle()
        assert nominated(server, "g2") == [""]
        assert evictions(server) == 4

    control([full("n0"), full("n1"), group(2), *three], least)


@pytest.mark.parametrize(
    ("other", "n1"),
    [
        ({"spec": {"nodeSelector": {"pool": "a"}}}, {}),
        ({}, {"taint": True}),
        ({"volume": "elsewhere"}, {}),
    ],
)
def test_a_node_that_one_member_may_not_go_to_is_left_alone(
    other: dict[str, Any], n1: dict[str, Any]
) -> None:
    """Three nodes, the third allowed for both: it is used, and n1, the cheapest, is not."""
    tainted = "taint" in n1
    first, second, third = (full(f"n{i}", pool="b" if i == 1 else "a") for i in range(3))
    for one in second[2:]:
        one["status"]["startTime"] = "2027-01-15T07:59:59Z"  # least to lose
    if tainted:
        second[0]["spec"] = {"taints": [{"key": "k", "effect": "NoSchedule"}]}
    more = dict(other)
    volumes = bound_claim("pool", "a") if more.pop("volume", "") else []
    if volumes:
        more["spec"] = {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}
    gang = [group(), member("g0", **more), member("g1")]

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 4)
        assert set(nominated(server, "g0", "g1")) == {"n0", "n2"}
        assert not [name for name in dying(server) if name.startswith("n1")]

    control([first, second, third, volumes, *gang], scenario)

    async def free(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 4)
        assert "n1" in nominated(server, "g0", "g1")

    # Whereas without that it would have been taken.
    second[0].pop("spec", None)
    control([first, second, third, *GANG], free)
    # And with two nodes only, nobody goes.
    if not tainted:
        control([first, second, volumes, *gang], nothing)


def apart() -> dict[str, Any]:
    """Return the part of a pod that keeps members of the gang off each other's nodes."""
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {GROUP: "llm"}},
    }
    required = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"affinity": {"podAntiAffinity": required}}


def test_members_that_do_not_share_a_node_get_two() -> None:
    names = ("n0", "n1")
    nodes = [full(name, **{"kubernetes.io/hostname": name}) for name in names]
    small = [group(), member("g0", 4), member("g1", 4)]

    async def one(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 2)
        await settle()
        assert evictions(server) == 2

    control([*nodes, *small], one)

    async def two(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 2)
        assert set(nominated(server, "g0", "g1")) == {"n0", "n1"}

    shy = [group(), *(member(name, 4, spec=apart()) for name in ("g0", "g1"))]
    control([*nodes, *shy], two)
    control([nodes[0], *shy], nothing)
    control([nodes[0], *small], one)


def test_a_budget_holds_over_both_nodes() -> None:
    covered = [full(f"n{i}") for i in range(4)]

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 4)
        await settle()
        # Two of the budget's pods may go, so one of its nodes and another one are freed.
        gone = {name[:2] for name in dying(server)}
        assert len(gone & {"n0", "n1", "n2"}) == 1
        assert "n3" in gone

    for documents in covered[:3]:
        for one in documents[2:]:
            one["metadata"]["labels"]["team"] = "x"
    two = budget("x", 2, {"team": "x"})
    control([*covered, two, *GANG], scenario)
    control([*covered[:3], two, *GANG], nothing)
    control([*covered[:2], budget("x", 3, {"team": "x"}), *GANG], nothing)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_refusal_midway_evicts_nobody_beyond_what_is_needed(before: int) -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        # The apiserver knows of a budget that the watch does not show yet.
        server.faults["watch poddisruptionbudgets"] = "slow"
        server.break_watches()
        await until(lambda: server.calls.count("watch poddisruptionbudgets") == 2)
        server.put(budget("late", before, {"all": "batch"}))
        for name in ("g0", "g1"):
            server.put(member(name))
        await until(lambda: evictions(server) == before + 1)
        await settle(1.0)
        first = dying(server)
        # They are on their way out: like kube-scheduler, wait for it.
        assert (len(first), evictions(server)) == (before, before + 1)
        server.put(budget("late", 8, {"all": "batch"}))
        for name in first:
            server.delete("Pod", f"batch/{name}")
        await until(lambda: len(dying(server)) == 4 - before)
        await settle(1.0)
        assert evictions(server) == 5
        places = set(nominated(server, "g0", "g1"))
        assert len(places) == 2
        assert {name[:2] for name in (*dying(server), *first)} == places

    control([full("n0"), full("n1"), full("n2"), group()], scenario)


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": PROTECTED},
        {"priority": 1000},
        {"priority": 2000},
        {"meta": {"ownerReferences": [{"kind": "DaemonSet"}]}},
        {"meta": {"annotations": {"kubernetes.io/config.mirror": "x"}}},
    ],
)
def test_whom_nobody_may_evict_keeps_all_others_running(change: dict[str, Any]) -> None:
    spared = pod("n1-b1", "n1", gpus=4, cpu="28", **change)
    control([full("n0"), full("n1"), spared, *GANG], nothing)


def test_all_are_within_what_the_group_requires() -> None:
    # r0 has one node that may be freed, r1 two that cost more, and all could be had over both.
    nodes = [full("n0", "r0"), full("n1", "r0"), full("n2", "r1"), full("n3", "r1")]
    nodes[1][2]["metadata"]["annotations"] = PROTECTED
    for one in nodes[0][2:] + nodes[2][2:]:
        one["status"]["startTime"] = "2027-01-15T07:59:00Z"
    for i, documents in enumerate(nodes):
        documents[0]["metadata"]["labels"][RACK] = f"x{i // 2}"

    def lands(*names: str) -> Scenario:
        async def scenario(server: FakeApiserver, controller: Controller) -> None:
            await until(lambda: len(dying(server)) == 4)
            assert set(nominated(server, "g0", "g1")) == set(names)

        return scenario

    # A label that nobody here knows means the same to kube-scheduler, and so it does here.
    for key in (LEAF, RACK):
        control([*nodes, group(**within(key)), *GANG[1:]], lands("n2", "n3"))
        annotated = [
            member(name, annotations={"kueue.x-k8s.io/podset-required-topology": key})
            for name in ("g0", "g1")
        ]
        control([*nodes, group(), *annotated], lands("n2", "n3"))
    preferred = [
        member(name, annotations={"kueue.x-k8s.io/podset-preferred-topology": BLOCK})
        for name in ("g0", "g1")
    ]
    # Over the block they lose no speed, and n0 and n2 have the least to lose.
    control([*nodes, group(), *preferred], lands("n0", "n2"))
    # With a server of the other rack locked, too, no rack is left, and nobody goes.
    nodes[3][3]["metadata"]["annotations"] = PROTECTED
    for key in (LEAF, RACK, "kubernetes.io/hostname", "no/such-label"):
        control([*nodes, group(**within(key)), *GANG[1:]], nothing)
    control([*nodes, group(**within(BLOCK)), *GANG[1:]], lands("n0", "n2"))


def test_a_member_that_comes_anew_goes_where_the_others_are() -> None:
    running = member("g0", status={"phase": "Running", "startTime": "2027-01-15T07:00:00Z"})
    running["spec"]["nodeName"] = "n0"
    nodes = [full("n1", "r1"), full("n2", "r0")]
    for one in nodes[0][2:]:
        one["status"]["startTime"] = "2027-01-15T07:59:59Z"
    home = [node("n0", labels={LEAF: "r0"}), flextopo("n0", {"g0": list(range(8))})]

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 2)
        assert nominated(server, "g1") == ["n2"]

    control([home, *nodes, group(**within(LEAF)), running, member("g1")], scenario)


def test_shadow_only_tells() -> None:
    lines: list[bytes] = []

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: any(b'"verb":"controller"' in line for line in lines))
        assert "patch pods/status" not in server.calls
        assert evictions(server) == 0
        (said,) = [json.loads(one) for one in lines if b'"verb":"controller"' in one][:1]
        assert said["shadow"]
        assert {one["pod"] for one in said["members"]} == {"batch/g0", "batch/g1"}
        assert len(said["victims"]) == 4
        assert said["network_level"] == "leaf"

    control([full("n0"), full("n1"), *GANG], scenario, lines, shadow=True)


def test_a_gang_that_fits_is_woken_and_evicts_nobody() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: server.calls.count("patch pods/status") >= 2)
        await settle()
        for name in ("g0", "g1"):
            found = server.get("Pod", f"batch/{name}")
            assert found
            assert "flextopo/woken" in found["metadata"]["annotations"]
        assert evictions(server) == 0

    empty = [node("n0"), flextopo("n0", {}), node("n1"), flextopo("n1", {})]
    control([empty, full("n2"), *GANG], scenario)


def test_a_gang_that_fits_for_one_alone_waits_for_the_other() -> None:
    # One node is free; the other's pods may not go.
    locked = full("n1")
    locked[2]["metadata"]["annotations"] = PROTECTED

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await nothing(server, controller)
        assert "patch pods/status" not in server.calls

    control([[node("n0"), flextopo("n0", {})], locked, *GANG], scenario)


def test_two_gangs_do_not_get_the_same_places() -> None:
    second = [member(name, meta={"labels": {GROUP: "other"}}) for name in ("h0", "h1")]

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 8)
        places = nominated(server, "g0", "g1", "h0", "h1")
        assert sorted(places) == ["n0", "n1", "n2", "n3"]
        await settle()
        assert evictions(server) == 8

    control([*(full(f"n{i}") for i in range(4)), *GANG, group(2, "other"), *second], scenario)


def test_places_are_kept_while_kube_scheduler_takes_nominations_back() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(dying(server)) == 4)
        places = {name[:2] for name in dying(server)}
        for victim in dying(server)[:3]:
            server.delete("Pod", f"batch/{victim}")
        for one in GANG[1:]:
            server.put(one)
        # A pod of less importance does not get what was freed, and nobody else goes for the gang.
        server.put(preemptor(4, status=REFUSED, name="other", priority=900))
        await settle(1.0)
        (elsewhere,) = {name[:2] for name in dying(server)} - places
        assert nominated(server, "other", "g0", "g1") == [elsewhere, "", ""]
        assert evictions(server) == 5

    control([full("n0"), full("n1"), full("n2"), *GANG], scenario)


def test_a_restart_between_two_evictions_goes_on() -> None:
    chosen = [
        member(name, status={**REFUSED, "nominatedNodeName": where})
        for name, where in (("g0", "n0"), ("g1", "n1"))
    ]
    nodes = [full("n0"), full("n1"), full("n2")]
    for one in nodes[2][2:]:
        one["status"]["startTime"] = "2027-01-15T07:59:59Z"  # the cheapest, and not chosen
    nodes[0][2]["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:20Z"

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await settle()
        assert evictions(server) == 0
        server.delete("Pod", "batch/n0-b0")
        await until(lambda: len(dying(server)) == 3)
        await settle()
        assert evictions(server) == 3
        assert not [name for name in dying(server) if name.startswith("n2")]
        assert nominated(server, "g0", "g1") == ["n0", "n1"]

    control([*nodes, group(), *chosen], scenario)


@pytest.mark.parametrize(
    ("where", "fates"), [("n1", {"needed": 4}), ("n9", {"needed": 2, "bound elsewhere": 2})]
)
def test_what_became_of_evictions_is_told(where: str, fates: dict[str, int]) -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        controller.outcomes = Outcomes(controller.decider, controller.telemetry.ended)
        controller.watch.noted = controller.outcomes.seen
        for one in GANG:
            server.put(one)
        await until(lambda: len(dying(server)) == 4)
        places = dict(zip(("g0", "g1"), nominated(server, "g0", "g1"), strict=True))
        for victim in dying(server):
            server.delete("Pod", f"batch/{victim}")
        for name, place in places.items():
            bound = member(name, status={"phase": "Running"})
            bound["spec"]["nodeName"] = where if place == "n1" else place
            server.put(bound)
        told = [f'by_fate_total{{fate="{fate}"}} {count}.0' for fate, count in fates.items()]
        await until(lambda: all(one in controller.telemetry.metrics().decode() for one in told))

    control([full("n0"), full("n1"), node("n9")], scenario)


def test_devices_of_all_members_are_held_before_anybody_goes() -> None:
    documents: list[Any] = []
    for name in ("n0", "n1"):
        documents += [node(name, gpus=0, labels={LEAF: "r0"}), slice_of(name)]
        for i in range(2):
            own, gpus = f"{name}-b{i}", tuple(range(4 * i, 4 * i + 4))
            documents.append(claim(own, 4, gpus=gpus, users=(f"uid-{own}",), where=name))
            documents.append(claiming(own, name))
    for name in ("g0", "g1"):
        documents.append(claim(name, 8))
        labels = {"labels": {GROUP: "llm"}}
        documents.append(claiming(name, priority=1000, status=REFUSED, meta=labels))

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        client = make_client(server)
        controller.holds = DeviceHolds(client, controller.decider.cache, controller.telemetry)
        server.put(group())
        await until(lambda: len(dying(server)) == 4)
        creates = [call for call in server.calls if call.startswith("create ")]
        assert creates[:20] == ["create devicetaintrules"] * 16 + ["create pods/eviction"] * 4
        for name in dying(server):
            server.delete("Pod", f"batch/{name}")
            server.delete("ResourceClaim", f"batch/{name}")

        def pools(name: str) -> set[str]:
            found = server.get("ResourceClaim", f"batch/{name}")
            given = found and found["status"].get("allocation")
            return {one["pool"] for one in given["devices"]["results"]} if given else set()

        await until(lambda: pools("g0") | pools("g1") == {"n0", "n1"})
        assert {name: pools(name) for name in ("g0", "g1")} == {
            name: {place}
            for name, place in zip(("g0", "g1"), nominated(server, "g0", "g1"), strict=True)
        }
        await client.close()  # type: ignore[no-untyped-call]

    device_class = {"kind": "DeviceClass", "metadata": {"name": "gpu.nvidia.com"}, "spec": {}}
    control([device_class, *documents], scenario)
