"""The pieces of work that `regression.py` measures, and the loops that they are divided by."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numba
import numpy as np
import numpy.typing as npt

import flextopo  # noqa: F401
from flextopo.baselines.registry import SELECTORS, make_selector
from flextopo.cluster.observation.features import empty_observation
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.model import PRESETS, Fleet
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.policies.runtime import load_policy
from flextopo.policies.shipped import zoo_names

ENV_ID = "flextopo/Preempt-RTX4090-v0"
SIZES = (16, 128, 1000)
COMPILED_SELECTORS = ("random", "greedy-cost", "oracle-lookahead")
"""Selectors that spend nearly all of their time in kernels."""

SAMPLE_S = 0.003
"""A run lasts at least this long, and hardly longer than a time slice where it can."""

Run = Callable[[], float]
"""Do a fixed piece of work once and return the seconds of the part that counts."""


class Case(NamedTuple):
    """A piece of work, and the loop that it is compared with: "compiled" or "python"."""

    reference: str
    prepare: Callable[[], Run]


def _count_steps(numbers: npt.NDArray[np.int64]) -> int:
    """Count Collatz steps: no compiler folds them, each branch hangs on the step before."""
    total = 0
    for i in range(numbers.shape[0]):
        number = numbers[i]
        while number > 1:
            number = number * 3 + 1 if number & 1 else number >> 1
            total += 1
    return total


_compiled_steps: Any = numba.njit(_count_steps)


def compiled_loop() -> Run:
    """Return the compiled reference: data-dependent branches over integers, as in the kernels."""
    numbers = np.arange(1, 3_000)
    return lambda: timed(lambda: _compiled_steps(numbers))


def python_loop() -> Run:
    """Return the interpreted reference: calls, attributes and a dictionary, as in the wrappers."""
    table = {i: str(i) for i in range(64)}

    def work() -> int:
        total = 0
        for i in range(8_000):
            total += len(table.get(i & 127, "")) + (i >> 3)
        return total

    return lambda: timed(work)


REFERENCES: dict[str, Callable[[], Run]] = {"compiled": compiled_loop, "python": python_loop}


def timed(work: Callable[[], object], times: int = 1) -> float:
    """Return the seconds that `times` calls take, for one of them."""
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times


def repeated(work: Callable[[], object]) -> Run:
    """Return a run of as many calls as fill a sample; the first, which compiles, is not timed."""
    work()
    once = min(timed(work) for _ in range(3))
    times = max(1, round(SAMPLE_S / once))
    return lambda: timed(work, times)


def fleet_of(nodes: int) -> Fleet:
    return Fleet((PRESETS["rtx4090"],), (0,) * nodes)


def simulation(nodes: int, seed: int, filter_: AlignmentFilter = AlignmentFilter.OWN) -> Simulator:
    fleet = fleet_of(nodes)
    return Simulator(generate_tape(WorkloadConfig(), fleet.num_gpus, seed), fleet, filter_)


def asked(
    nodes: int, selector: VictimSelector, states: int, skip: int
) -> list[tuple[Simulator, Pod]]:
    """Return simulations that wait for a decision with candidates, the first `skip` ones taken."""
    found: list[tuple[Simulator, Pod]] = []
    for seed in range(100):
        simulator = simulation(nodes, seed, selector.filter)
        for taken in range(10_000):
            pod = simulator.next_decision()
            if pod is None:
                break
            if taken >= skip and simulator.state.find(pod, selector.filter.binds(pod), 64)[1]:
                found.append((simulator, pod))
                break
            simulator.apply(selector.select(simulator.state, pod))
        if len(found) == states:
            return found
    raise SystemExit(f"{nodes} nodes: fewer than {states} of 100 tapes have {skip} decisions")


def find(nodes: int) -> Run:
    """Search the candidates of one decision, the Python call included."""
    [(simulator, pod)] = asked(nodes, make_selector("greedy-cost"), 1, 10)
    return repeated(lambda: simulator.state.find(pod, False, 64))


def describe() -> Run:
    """Observe one decision at 16 nodes."""
    [(simulator, pod)] = asked(16, make_selector("greedy-cost"), 1, 10)
    state = simulator.state
    found, count = state.find(pod, False, 64)
    o = empty_observation(64)
    return repeated(lambda: observe(state.arrays, state.costs, pod.index, found, count, o))


def selects(selector: VictimSelector) -> Run:
    """Let a selector decide in 4 states of 16 servers."""
    states = asked(16, selector, 4, 10)

    def work() -> None:
        for simulator, pod in states:
            selector.select(simulator.state, pod)

    return repeated(work)


def chooses(name: str) -> Run:
    return selects(make_selector(name))


def infers(name: str) -> Run:
    return selects(load_policy(name))


def steps() -> Run:
    """Step the scalar environment through the same day with the same actions; resets not timed."""
    env: Any = gym.make(ENV_ID)

    def run() -> float:
        _, info = env.reset(options={"tape_seed": 3})
        rng, spent, count, over = np.random.default_rng(0), 0.0, 0, False
        while not over:
            action = int(rng.choice(np.flatnonzero(info["action_mask"])))
            begin = time.perf_counter()
            _, _, terminated, truncated, info = env.step(action)
            spent += time.perf_counter() - begin
            count += 1
            over = terminated or truncated
        return spent / count

    run()
    return run


def resets(new: bool) -> Run:
    """Reset the scalar environment 8 times: to days it has not seen, or to one that it has."""
    env: Any = gym.make(ENV_ID)
    seeds = itertools.count() if new else itertools.repeat(3)

    def reset() -> None:
        env.reset(options={"tape_seed": next(seeds)})

    reset()
    return lambda: timed(reset, 8)


def vector_steps() -> Run:
    """Step 64 environments 20 times from the same start; resets within are timed, days are known."""
    env: Any = gym.make_vec(ENV_ID, num_envs=64, vectorization_mode="vector_entry_point")

    def run() -> float:
        observation, _ = env.reset(seed=0)
        rng, spent = np.random.default_rng(0), 0.0
        for _ in range(20):
            mask = observation["action_mask"]
            action = np.argmax(rng.random(mask.shape) * mask, axis=1)
            begin = time.perf_counter()
            observation = env.step(action)[0]
            spent += time.perf_counter() - begin
        return spent / 20

    run()
    return run


def day() -> Run:
    """Simulate a day at 16 servers under `greedy-cost`; tape and warming up are not timed."""
    selector = make_selector("greedy-cost")

    def run() -> float:
        simulator = simulation(16, 3, selector.filter)
        return timed(lambda: simulator.play(selector))

    run()
    return run


def tapes() -> Run:
    """Generate the tape of a day at 16 servers."""
    return repeated(lambda: generate_tape(WorkloadConfig(), 128, 0))


def all_cases() -> dict[str, Case]:
    """Return every case that this version has; the vector environment where it is registered."""
    cases = {f"find_candidates, {n} nodes": Case("compiled", partial(find, n)) for n in SIZES}
    cases["observe, 16 nodes"] = Case("compiled", describe)
    cases["environment step"] = Case("python", steps)
    cases["environment reset, new day"] = Case("python", partial(resets, True))
    cases["environment reset, same day"] = Case("python", partial(resets, False))
    if gym.spec(ENV_ID).vector_entry_point is not None:
        cases["vector environment step, 64"] = Case("compiled", vector_steps)
    cases["day, 16 servers"] = Case("python", day)
    cases["tape, 16 servers"] = Case("python", tapes)
    for name in SELECTORS:
        loop = "compiled" if name in COMPILED_SELECTORS else "python"
        cases[f"select, {name}"] = Case(loop, partial(chooses, name))
    for name in zoo_names():
        cases[f"policy, {name}"] = Case("python", partial(infers, name))
    return cases
