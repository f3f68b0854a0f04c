"""The controller and gangs, against a fake apiserver, end to end: all members, or nobody goes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_apiserver import FakeApiserver, running, until
from kube_objects import budget, flextopo, node, pod, preemptor

pytest.importorskip("lightkube")

from controllers import REFUSED, beside, make_controller

from flextopo.policies.serving.controller import Controller

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


def member(name: str, gpus: int = 8, requirement: str = "guaranteed", **more: Any) -> dict[str, Any]:
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
