"""A controller over a fake apiserver, and a cluster that has something to do for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fake_apiserver import FakeApiserver, running
from kube_objects import NOW_S, flextopo, node, pod, preemptor
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User
from lightkube.core.generic_client import GenericAsyncClient

from flextopo.baselines.registry import make_selector
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.controller import Controller
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.kube import KubeWatch, connect
from flextopo.policies.serving.telemetry import Telemetry

REFUSED = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 its free GPUs are on different sockets.",
        }
    ]
}
WAITING = preemptor(2, status=REFUSED)


def spread(taken: tuple[int, ...] = (0, 1, 2, 4, 5, 6)) -> list[dict[str, Any]]:
    """Return a node with one GPU free on each socket, and one-card pods on the others."""
    pods = [pod(f"b{i}", "n0", meta={"labels": {"app": f"a{i}"}}) for i in taken]
    return [node("n0"), flextopo("n0", {f"b{i}": [i] for i in taken}), *pods]


def make_client(server: FakeApiserver) -> GenericAsyncClient:
    """Return a client of a fake apiserver."""
    return connect(KubeConfig.from_one(cluster=Cluster(server=server.url), user=User()))


def make_controller(
    server: FakeApiserver, lines: list[bytes] | None = None, **more: Any
) -> Controller:
    cache = ClusterCache(lambda: NOW_S)
    telemetry = Telemetry(cache, write=(lines if lines is not None else []).append)
    watch = KubeWatch(make_client(server), cache, telemetry)
    decider = Decider(
        cache, make_selector("greedy-cost"), make_selector("flextopo-best-effort"), budget_s=60
    )
    quick = {"settle_s": 0.1, "backoff_s": (0.1, 0.4), "look_s": 0.05}
    controller = Controller(decider, watch, telemetry, **{**quick, **more})
    watch.changed = controller.wake
    return controller


async def beside(controller: Controller, scenario: Awaitable[None]) -> None:
    """Run a scenario while a controller watches and attends."""
    tasks = [asyncio.create_task(run()) for run in (controller.watch.follow, controller.attend)]
    try:
        await scenario
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)


def dying(server: FakeApiserver) -> list[str]:
    names = [f"b{i}" for i in range(8)]
    found = [(name, server.get("Pod", f"batch/{name}")) for name in names]
    return [name for name, doc in found if doc and "deletionTimestamp" in doc["metadata"]]


Scenario = Callable[[FakeApiserver, Controller], Awaitable[None]]


def control(
    documents: list[dict[str, Any]],
    scenario: Scenario,
    lines: list[bytes] | None = None,
    **more: Any,
) -> None:
    """Run a scenario beside a controller."""

    async def run() -> None:
        server = FakeApiserver()
        for document in documents:
            server.put(document)
        async with running(server):
            controller = make_controller(server, lines, **more)
            await beside(controller, scenario(server, controller))

    asyncio.run(run())


def nominated_node(server: FakeApiserver, name: str = "online") -> str:
    """Return the node that a pod is nominated for, empty for none."""
    document = server.get("Pod", f"batch/{name}")
    return str(document["status"].get("nominatedNodeName", "")) if document else ""


def evictions(server: FakeApiserver) -> int:
    """Return how many evictions were asked for."""
    return server.calls.count("create pods/eviction")


async def settle() -> None:
    """Wait until a controller has looked at everybody."""
    await asyncio.sleep(0.6)
