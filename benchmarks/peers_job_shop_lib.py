"""Measure job-shop-lib's graph environment (one dispatched operation a step) for `peers.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from job_shop_lib.benchmarking import (  # type: ignore[import-not-found]
    load_benchmark_instance,
)
from job_shop_lib.dispatching.feature_observers import (  # type: ignore[import-not-found]
    FeatureObserverType,
)
from job_shop_lib.graphs import build_resource_task_graph  # type: ignore[import-not-found]
from job_shop_lib.reinforcement_learning import (  # type: ignore[import-not-found]
    SingleJobShopGraphEnv,
)
from peers_timing import Case, serve


def case() -> Case:
    graph = build_resource_task_graph(load_benchmark_instance("ta01"))
    observers = [FeatureObserverType.IS_READY, FeatureObserverType.DURATION]
    env: Any = SingleJobShopGraphEnv(graph, observers)
    rng = np.random.default_rng(0)
    info = env.reset()[1]

    def draw() -> tuple[int, int]:
        legal = info["available_operations_with_ids"]
        _, machine, job = legal[int(rng.random() * len(legal))]
        return job, machine

    def step(action: tuple[int, int]) -> None:
        nonlocal info
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            _, info = env.reset()

    return Case(
        "job-shop-lib 15x15",
        "scalar",
        1,
        draw,
        step,
        "one operation is dispatched to its machine; the state is the edges of a resource-task "
        "graph and two features (ready, duration) a vertex",
    )


if __name__ == "__main__":
    serve([case()])
