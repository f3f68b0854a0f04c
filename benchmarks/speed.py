"""Speeds of environment, selectors and kernel; every figure stands beside a reference loop.

The machine is noisy, so compare the ratios: the reference is the same plain-Python loop, timed in
the same process right before.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np

import flextopo  # noqa: F401
from flextopo.baselines.registry import SELECTORS, make_selector
from flextopo.cluster.server_model import PRESETS, Fleet
from flextopo.cluster.simulator import Simulator
from flextopo.cluster.state import ClusterState
from flextopo.cluster.workload import WorkloadConfig, generate_tape


def reference_per_s() -> float:
    """Return how often a second a fixed plain-Python loop runs (the unit of all ratios)."""
    begin, runs = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.5:
        total = 0
        for i in range(1000):
            total += i & 7
        runs += 1
    return runs / (time.perf_counter() - begin)


def show(name: str, per_s: float, unit: str) -> None:
    print(f"{name:44} {per_s:12,.0f} {unit}/s   {per_s / reference_per_s():10.3f} of the loop")


def fleet_of(nodes: int) -> Fleet:
    return Fleet((PRESETS["rtx4090"],), (0,) * nodes)


def environment_steps(env_id: str, seconds: float = 5.0) -> float:
    """Random legal actions through gymnasium.make, resets included."""
    env = gym.make(env_id)
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        _, _, _, over, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
        steps += 1
        if over:
            _, info = env.reset()
    return steps / (time.perf_counter() - begin)


def selector_decisions(name: str, tapes: int = 10) -> float:
    """Decisions a second of a selector alone, on states of simulated days at 16 servers."""
    selector, spent, count = make_selector(name), 0.0, 0
    for seed in range(tapes):
        sim = Simulator(generate_tape(WorkloadConfig(), 128, seed), fleet_of(16), selector.filter)
        while (pod := sim.next_decision()) is not None:
            begin = time.perf_counter()
            chosen = selector.select(sim.state, pod)
            spent += time.perf_counter() - begin
            count += 1
            sim.apply(chosen)
    return count / spent


def loaded_state(nodes: int) -> tuple[ClusterState, Simulator]:
    tape = generate_tape(WorkloadConfig(batch_load=1.0), nodes * 8, 0)
    sim = Simulator(tape, fleet_of(nodes))
    return sim.state, sim


def timed(run: Callable[[], object], times: int) -> list[float]:
    spent = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begin)
    return spent


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("environment, random legal actions, resets included")
    for env_id in ("flextopo/Preempt-RTX4090-v0", "flextopo/Preempt-A100-v0"):
        show(env_id, environment_steps(env_id), "steps")
    print("selectors alone, 16 servers")
    for name in SELECTORS:
        selector_decisions(name, 1)
        show(name, selector_decisions(name), "decisions")
    print("candidates of one decision (64 kept), Python call included")
    for nodes in (16, 128, 1000):
        state, sim = loaded_state(nodes)
        pod = sim.next_decision()
        assert pod is not None
        state.find(pod, True, 64)
        spent = timed(lambda s=state, p=pod: s.find(p, True, 64), 200)  # type: ignore[misc]
        p50, p99 = np.percentile(spent, [50, 99]) * 1e6
        print(
            f"{nodes:6} servers: p50 {p50:8.0f} us, p99 {p99:8.0f} us, {p50 / nodes:6.2f} us a server"
        )
    print("simulated days under greedy-cost")
    for nodes in (16, 100, 1000):
        begin = time.perf_counter()
        sim = Simulator(generate_tape(WorkloadConfig(), nodes * 8, 0), fleet_of(nodes))
        sim.run(make_selector("greedy-cost"))
        print(f"{nodes:6} servers: {1 / (time.perf_counter() - begin):8.2f} days/s")


if __name__ == "__main__":
    main()
