"""Devices that victims free are kept for whom they were freed, end to end against a fake apiserver."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_apiserver import FakeApiserver, running, until
from kube_devices import NUMA, claim, claiming, full

pytest.importorskip("lightkube")

from controllers import REFUSED, beside, make_client, make_controller

from flextopo.policies.serving import holds, reservations
from flextopo.policies.serving.controller import Controller
from flextopo.policies.serving.holds import DeviceHolds
from flextopo.policies.serving.rights import CONTROLS

Scenario = Callable[[FakeApiserver, Controller], Awaitable[None]]


def wanted() -> dict[str, Any]:
    """Return a claim for two GPUs near to each other."""
    return claim("p", 2, constraints=[{"matchAttribute": NUMA}])


CLASS = {
    "kind": "DeviceClass",
    "metadata": {"name": "gpu.nvidia.com"},
    "spec": {"config": [{"opaque": {"driver": "gpu.nvidia.com", "parameters": {"a": 1}}}]},
}
WAITING = claiming("p", priority=1000, status=REFUSED)


def control(
    scenario: Scenario,
    lines: list[bytes] | None = None,
    kinds: Callable[[set[str]], set[str]] = lambda kinds: kinds,
    asked: dict[str, Any] | None = None,
) -> None:
    async def run() -> None:
        server = FakeApiserver()
        server.kinds = kinds(server.kinds)
        for document in [CLASS, *full(), asked or wanted(), WAITING]:
            server.put(document)
        async with running(server):
            controller = make_controller(server, lines)
            controller.holds = DeviceHolds(
                make_client(server), controller.decider.cache, controller.telemetry
            )
            await beside(controller, scenario(server, controller))
            await controller.holds.client.close()  # type: ignore[no-untyped-call]

    asyncio.run(run())


def victims(server: FakeApiserver) -> list[str]:
    found = [(f"b{i}", server.get("Pod", f"batch/b{i}")) for i in range(8)]
    return [name for name, doc in found if doc and "deletionTimestamp" in doc["metadata"]]


def rules(server: FakeApiserver) -> list[str]:
    found = [server.get("DeviceTaintRule", key) for key in server.keys("DeviceTaintRule")]
    return sorted(one["spec"]["deviceSelector"]["device"] for one in found if one)


def allocation(server: FakeApiserver) -> Any:
    found = server.get("ResourceClaim", "batch/p")
    return found and found["status"].get("allocation")


def ended(server: FakeApiserver, name: str) -> None:
    server.delete("Pod", f"batch/{name}")
    server.delete("ResourceClaim", f"batch/{name}")


def test_devices_are_held_until_all_are_free_and_then_allocated() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(victims(server)) == 2)
        first, second = victims(server)
        devices = sorted(f"gpu-{name[1:]}" for name in (first, second))
        # Held before anybody was told to go.
        assert rules(server) == devices
        creates = [call for call in server.calls if call.startswith("create ")]
        assert creates[:3] == ["create devicetaintrules"] * 2 + ["create pods/eviction"]
        ended(server, first)
        await asyncio.sleep(0.3)
        assert allocation(server) is None
        assert rules(server) == devices
        ended(server, second)
        await until(lambda: bool(allocation(server)))
        given = allocation(server)
        results = given["devices"]["results"]
        assert sorted(one["device"] for one in results) == devices
        assert {one["request"] for one in results} == {"g"}
        assert given["devices"]["config"] == [
            {"source": "FromClass", "requests": ["g"], **CLASS["spec"]["config"][0]}  # type: ignore[index]
        ]
        assert "allocationTimestamp" in given
        (term,) = given["nodeSelector"]["nodeSelectorTerms"]
        assert term["matchFields"][0]["values"] == ["n0"]
        await until(lambda: rules(server) == [])
        bound = claiming("p", "n0", priority=1000)
        server.put(bound)
        await until(lambda: b'holds_total{result="bound"} 1.0' in controller.telemetry.metrics())
        assert len(victims(server)) == 0
        called = {call for call in server.calls if "resource" in call or "device" in call}
        named = {f"{right.verb} {right.resource}" for right in CONTROLS if right.optional}
        named.discard("patch resourceclaims/binding")  # asked for by the apiserver itself
        watching = {call for call in called if call.split()[0] in ("list", "watch")}
        assert (called - watching) | {"list devicetaintrules"} == named

    control(scenario)


def test_what_was_allocated_in_vain_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "BIND_S", 1.5)

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(victims(server)) == 2)
        for name in victims(server):
            ended(server, name)
        written = "patch resourceclaims/status"
        await until(lambda: server.calls.count(written) == 2 and allocation(server) is None)
        await until(lambda: b'holds_total{result="expired"} 1.0' in controller.telemetry.metrics())

    control(scenario)


async def take(server: FakeApiserver, controller: Controller, gpu: int) -> None:
    """Give a device to a pod that waited for any."""
    server.put(claim("r", gpus=(gpu,), users=("uid-r",)))
    server.put(claiming("r", "n0"))
    device, held = f"gpu.nvidia.com/n0/gpu-{gpu}", controller.decider.cache.hosts.devices.held
    await until(lambda: held().get(device) == "uid-r" in controller.decider.cache.pods)


def test_a_free_device_that_was_taken_before_the_rule_stood_costs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        ended(server, "b0")
        assert controller.holds is not None
        hold = controller.holds.hold

        async def too_late(*args: Any) -> None:
            await hold(*args)
            if not taken:
                taken.append(server.calls.count("create pods/eviction"))
                await take(server, controller, 0)

        monkeypatch.setattr(controller.holds, "hold", too_late)
        await until(lambda: len(victims(server)) + len(gone(server)) == 2)
        await until(lambda: len(rules(server)) == 2)
        await asyncio.sleep(0.5)
        # Without its device, one alone would have gone in vain.
        assert server.calls.count("create pods/eviction") == 2
        assert b'holds_total{result="dropped"} 1.0' in controller.telemetry.metrics()

    def gone(server: FakeApiserver) -> list[str]:
        rival = server.get("Pod", "batch/r")
        return ["r"] if rival and "deletionTimestamp" in rival["metadata"] else []

    control(scenario)
    assert taken == [0]


def test_a_device_that_was_taken_after_all_is_decided_about_again() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(victims(server)) == 2)
        first, second = victims(server)
        ended(server, first)
        await take(server, controller, int(first[1:]))
        ended(server, second)
        # It does not wait until what it holds is over.
        await until(lambda: server.calls.count("create pods/eviction") >= 3)
        await until(lambda: b'holds_total{result="stolen"} 1.0' in controller.telemetry.metrics())
        await until(lambda: len(rules(server)) == 2)

    control(scenario)


def test_who_lost_a_device_does_not_wait_as_after_an_eviction_that_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A free device that was given away a moment before it was held cost 3 s more."""

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        controller.backoff_s = (60.0, 60.0)
        monkeypatch.setattr(controller, "_pause_after", lambda *_: 60.0)
        ended(server, "b0")
        # Device 0 is free, and another victim is told to go, when it turns out to be somebody else's.
        await until(lambda: len(victims(server)) == 1)
        (first,) = victims(server)
        await take(server, controller, 0)
        await until(lambda: server.calls.count("create pods/eviction") >= 2)
        await asyncio.sleep(0.5)
        assert server.calls.count("create pods/eviction") == 2
        # The first one is still on its way out.
        assert first in victims(server)

    control(scenario)


def test_nobody_goes_a_third_time_where_rivals_wait_for_every_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without rules 16 pods went in 40 s for one that was not bound, and more each minute."""
    monkeypatch.setattr(reservations, "KEPT_S", 0.05)
    lines: list[bytes] = []

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        controller.backoff_s = 0.1, 0.4
        server.put(claim("waiting", 1))
        server.put(claiming("waiting", priority=100, status=REFUSED))
        gone: set[str] = set()
        for _ in range(100):
            for name in {*victims(server)} - gone:
                gone.add(name)
                ended(server, name)
                faster = f"r-{name}"
                server.put(claim(faster, gpus=(int(name[1:]),), users=(f"uid-{faster}",)))
                server.put(claiming(faster, "n0"))
            await asyncio.sleep(0.02)
        assert server.calls.count("create pods/eviction") == 4
        assert any(b'"event":"rivals"' in line for line in lines)
        # Once nobody waits for what is freed, it goes on.
        ended(server, "waiting")
        await until(lambda: server.calls.count("create pods/eviction") == 6)

    control(scenario, lines, kinds=lambda kinds: kinds - {"devicetaintrules"})


def test_where_nothing_can_be_held_it_evicts_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reservations, "KEPT_S", 0.05)

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        controller.backoff_s = 0.1, 60.0
        holder = {f"b{gpu}": gpu for gpu in range(8)}
        clock = asyncio.get_running_loop().time
        begin, count = clock(), 0
        while clock() < begin + 4.0:
            for name, gpu in list(holder.items()):
                found = server.get("Pod", f"batch/{name}")
                if found and "deletionTimestamp" in found["metadata"]:
                    # A rival was faster again.
                    ended(server, name)
                    count += 1
                    del holder[name]
                    holder[f"r{count}"] = gpu
                    server.put(claim(f"r{count}", gpus=(gpu,), users=(f"uid-r{count}",)))
                    server.put(claiming(f"r{count}", "n0"))
            await asyncio.sleep(0.02)
        # Two each time; 0.1, 0.2, 0.4, 0.8, 1.6 s apart at least.
        assert 4 <= count <= 12

    control(scenario, kinds=lambda kinds: kinds - {"devicetaintrules"})


def test_nothing_is_held_for_a_pod_whose_victims_may_not_go() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        server.faults["create pods/eviction"] = 429
        await until(lambda: server.calls.count("create pods/eviction") >= 2)
        server.faults.clear()
        await until(lambda: len(victims(server)) == 2)
        assert b'holds_total{result="dropped"}' in controller.telemetry.metrics()

    control(scenario)


def test_a_preemptor_that_goes_away_leaves_no_rule() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(rules(server)) == 2)
        server.delete("Pod", "batch/p")
        await until(lambda: rules(server) == [])
        assert allocation(server) is None

    control(scenario)


def test_rules_of_an_earlier_process_are_removed() -> None:
    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        left = {
            "kind": "DeviceTaintRule",
            "metadata": {"name": "left", "labels": {holds.HELD: "uid-of-nobody"}},
            "spec": {"deviceSelector": {"device": "gpu-7"}},
        }
        server.put(left)
        await until(lambda: len(rules(server)) == 2 and "gpu-7" not in rules(server))

    control(scenario)


def test_without_rules_nothing_is_held_and_the_pod_is_still_served() -> None:
    lines: list[bytes] = []

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(victims(server)) == 2)
        assert any(b'"no_holds"' in line for line in lines)

    control(scenario, lines, lambda kinds: kinds - {"devicetaintrules"})


NIC = {"name": "nic", "exactly": {"deviceClassName": "nic.example.com"}}
SELECTED = {"deviceClassName": "gpu.nvidia.com", "count": 2, "selectors": [{"cel": {}}]}


@pytest.mark.parametrize(
    "change",
    [
        {"requests": [*wanted()["spec"]["devices"]["requests"], NIC]},
        {"requests": [{"name": "g", "exactly": SELECTED}]},
        {"requests": [{"name": "g", "firstAvailable": [{"deviceClassName": "gpu.nvidia.com"}]}]},
        {"constraints": [{"matchAttribute": "resource.kubernetes.io/pcieRoot"}]},
        {"constraints": [{"distinctAttribute": "x/y"}]},
    ],
)
def test_nobody_is_evicted_for_claims_that_ask_for_more_than_is_looked_at(
    change: dict[str, Any],
) -> None:
    asked = wanted()
    asked["spec"]["devices"].update(change)

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(controller.watch.ready)
        await asyncio.sleep(1.0)
        assert victims(server) == rules(server) == []

    control(scenario, asked=asked)


def test_each_request_gets_the_configuration_of_its_class() -> None:
    asked = wanted()
    one = asked["spec"]["devices"]["requests"][0]
    one["exactly"]["count"] = 1
    asked["spec"]["devices"]["requests"].append({**one, "name": "second"})

    async def scenario(server: FakeApiserver, controller: Controller) -> None:
        await until(lambda: len(victims(server)) == 2)
        for name in victims(server):
            ended(server, name)
        await until(lambda: bool(allocation(server)))
        given = allocation(server)["devices"]
        assert [one["request"] for one in given["results"]] == ["g", "second"]
        assert given["config"][0]["requests"] == ["g", "second"]

    control(scenario, asked=asked)
