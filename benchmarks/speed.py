"""Speeds of environments, kernels and selectors; every figure stands beside a reference loop.

The machine is noisy, so compare the ratios: the reference is a fixed plain-Python loop, timed in
the same process right before. Of environments and of the loop the fastest of several windows
counts: what the neighbours steal falls away. `--out FOLDER` also writes `speed.json` and
`scaling.png`, and the generated blocks of `docs/performance.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import flextopo  # noqa: F401
from flextopo.baselines.registry import SELECTORS, make_selector
from flextopo.cluster.files import make_folder, write_whole
from flextopo.cluster.observation.features import empty_observation
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.simulation.episodes import bytes_of_episode
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.topology.model import PRESETS, Fleet
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.envs.preemption import PreemptionEnv
from flextopo.envs.vector import PreemptionVectorEnv
from flextopo.train.report import fill_blocks

RESULTS: dict[str, Any] = {}


def reference_per_s() -> float:
    """Return how often a second a fixed plain-Python loop runs (the unit of all ratios)."""
    best = 0.0
    for _ in range(6):
        begin, runs = time.perf_counter(), 0
        while time.perf_counter() - begin < 0.1:
            total = 0
            for i in range(1000):
                total += i & 7
            runs += 1
        best = max(best, runs / (time.perf_counter() - begin))
    return best


def show(name: str, per_s: float, unit: str) -> None:
    RESULTS[name] = {"per_s": per_s, "of_the_loop": per_s / reference_per_s()}
    ratio = RESULTS[name]["of_the_loop"]
    print(f"{name:52} {per_s:12,.0f} {unit}/s   {ratio:10.3f} of the loop", flush=True)


def fleet_of(nodes: int) -> Fleet:
    return Fleet((PRESETS["rtx4090"],), (0,) * nodes)


def scalar_steps(env: gym.Env[Any, Any], seconds: float) -> tuple[float, float]:
    """Play random legal actions; return steps a second and the mean time of a reset.

    Steps and resets are timed, drawing the actions is not.
    """
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    steps, resets, stepping, resetting = 0, 0, 0.0, 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        begin = time.perf_counter()
        _, _, _, over, info = env.step(action)
        stepping += time.perf_counter() - begin
        steps += 1
        if over:
            begin = time.perf_counter()
            _, info = env.reset()
            resetting += time.perf_counter() - begin
            resets += 1
    return steps / (stepping + resetting), resetting / max(resets, 1)


def best_scalar_steps(env: gym.Env[Any, Any]) -> tuple[float, float]:
    """Return the fastest of six half-seconds of `scalar_steps`, and its resets."""
    return max(scalar_steps(env, 0.5) for _ in range(6))


def scalar() -> None:
    print("scalar environment, random legal actions, resets included")
    env = gym.make("flextopo/Preempt-RTX4090-v0")
    env.step(env.reset(seed=0)[1]["action_mask"].argmax())
    rate, reset_s = scalar_steps(env, 3.0)
    show("RTX4090-v0, first days (each made anew)", rate, "steps")
    print(f"{'':52} reset {reset_s * 1e6:6.0f} us")
    while (rate := scalar_steps(env, 3.0)[0]) > 1.1 * RESULTS.get("last", {"per_s": 0.0})["per_s"]:
        RESULTS["last"] = {"per_s": rate}
    rate, reset_s = best_scalar_steps(env)
    RESULTS.pop("last")
    show("RTX4090-v0, its 1,024 days in memory", rate, "steps")
    print(f"{'':52} reset {reset_s * 1e6:6.0f} us")
    large = PreemptionEnv("280*rtx4090", tapes=8)
    scalar_steps(large, 3.0)
    show("280 servers, days in memory", best_scalar_steps(large)[0], "steps")


def legal(batch: Any, rng: np.random.Generator, k: int) -> Any:
    """Draw a legal action for each environment, all at once."""
    options = batch.environments["options"]
    chosen = (rng.random(len(options)) * (options + 1)).astype(np.int64)
    return np.where(chosen >= options, k, chosen)


def vector(num_envs: int, threads: int, days: int = 1024) -> None:
    """Steps of the vector environment and of its bare kernel on the same kind of actions."""
    env = PreemptionVectorEnv(num_envs, threads=threads, tapes=days)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    batch = env.core.batch
    assert batch is not None

    def rate(step: Callable[[Any], object], seconds: float) -> float:
        spent, steps = 0.0, 0
        while spent < seconds:
            actions = legal(env.core.batch, rng, env.k)
            begin = time.perf_counter()
            step(actions)
            spent += time.perf_counter() - begin
            steps += num_envs
        return steps / spent

    best = 0.0
    while (now := rate(env.step, 2.0)) > 1.05 * best:  # until the days are in memory
        best = now
    windows = [(rate(env.step, 0.5), rate(env.core.step, 0.5)) for _ in range(6)]
    whole, bare = map(max, zip(*windows, strict=True))
    name = f"{num_envs} environments, {threads} threads, {days:,} days"
    show(f"vector, {name}", whole, "decisions")
    show(f"bare kernel, {name}", bare, "decisions")
    batch = env.core.batch
    assert batch is not None
    each = bytes_of_episode(batch.running) + sum(a[0].nbytes for a in batch.observation)
    print(f"{'':52} {whole / bare:.0%} of the bare kernel; {each / 1024:.0f} KiB an environment")
    env.close()


def learner(k: int) -> None:
    """Timesteps of MaskablePPO with the scorer, and the environment's share of the time."""
    from sb3_contrib import MaskablePPO

    from flextopo.policies.maskable import CandidatePolicy, use_threads
    from flextopo.policies.network import ScorerConfig
    from flextopo.train.vec_env import PreemptionVecEnv

    use_threads(1)
    envs = PreemptionVecEnv(64, k=k, tapes=128)
    spent = [0.0]
    step_wait = envs.step_wait

    def timed() -> Any:
        begin = time.perf_counter()
        result = step_wait()
        spent[0] += time.perf_counter() - begin
        return result

    envs.step_wait = timed  # type: ignore[method-assign]
    model = MaskablePPO(
        CandidatePolicy, envs, n_steps=64, batch_size=1024, n_epochs=4, device="cpu", seed=0,
        policy_kwargs={"scorer": ScorerConfig(64)},
    )  # fmt: skip
    model.learn(16384)
    spent[0] = 0.0
    begin = time.perf_counter()
    model.learn(32768)
    took = time.perf_counter() - begin
    show(f"MaskablePPO, K = {k}, 64 environments, 4 epochs", model.num_timesteps / took, "steps")
    print(f"{'':52} {spent[0] / took:.0%} of the time in the environment")


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


def decisions_at_scale() -> None:
    """Candidates and features of the decisions of a day, against the Python-level searches."""
    print("one decision: candidates (64 kept) and features, one core, over the decisions of a day")
    points, large = [], []
    greedy = make_selector("greedy-cost")
    slow = {name: make_selector(name) for name in ("godel", "kubernetes")}
    for nodes, limit in ((16, 400), (128, 400), (1000, 400), (10000, 200)):
        spent: list[float] = []
        others: dict[str, list[float]] = {name: [] for name in slow}
        o, seed = empty_observation(64), 0
        while len(spent) < limit:
            tape = generate_tape(WorkloadConfig(), nodes * 8, seed)
            sim, seed = Simulator(tape, fleet_of(nodes)), seed + 1
            while len(spent) < limit and (pod := sim.next_decision()) is not None:
                begin = time.perf_counter()
                found, count = sim.state.find(pod, greedy.filter.binds(pod), 64)
                observe(sim.state.arrays, sim.costs, pod.index, found, count, o)
                spent.append(time.perf_counter() - begin)
                for name, selector in slow.items():
                    if len(others[name]) < 10:
                        begin = time.perf_counter()
                        selector.select(sim.state, pod)
                        others[name].append(time.perf_counter() - begin)
                sim.apply(greedy.select(sim.state, pod))
        p50, p99 = (float(v) for v in np.percentile(spent, [50, 99]) * 1e6)
        ratios = {name: float(np.median(t)) * 1e6 / p50 for name, t in others.items()}
        large += [(nodes, p50)] if nodes >= 1000 else []
        points.append({"servers": nodes, "p50_us": p50, "p99_us": p99, "times_slower": ratios})
        print(
            f"{nodes:6} servers: p50 {p50:7.0f} us, p99 {p99:7.0f} us; "
            + ", ".join(f"{name} {ratio:,.0f} times that" for name, ratio in ratios.items()),
            flush=True,
        )
    # Below a thousand servers the call itself and the features are most of it.
    (n0, t0), *_, (n1, t1) = large
    exponent = float(np.log(t1 / t0) / np.log(n1 / n0))
    print(f"exponent between {n0:,} and {n1:,} servers: {exponent:.2f}")
    RESULTS["decision"] = {"points": points, "exponent": exponent}


def days() -> None:
    print("simulated days under greedy-cost, tape and warm-up included")
    for nodes in (16, 100, 1000, 10000):
        begin = time.perf_counter()
        sim = Simulator(generate_tape(WorkloadConfig(), nodes * 8, 1), fleet_of(nodes))
        sim.play(make_selector("greedy-cost"))
        rate = 1 / (time.perf_counter() - begin)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        RESULTS[f"days at {nodes}"] = {"per_s": rate, "peak_mib": peak}
        print(
            f"{nodes:6} servers: {rate:8.2f} days/s, {sim.tape.num_pods:,} pods, "
            f"{peak:.0f} MiB at most so far",
            flush=True,
        )


FIRST_STEP = """
import time
begin = time.perf_counter()
import gymnasium, flextopo
env = gymnasium.make("flextopo/Preempt-RTX4090-v0")
env.reset(seed=0)
env.step(0)
print(time.perf_counter() - begin)
"""


def first_call() -> None:
    """Import to the first step: with an empty cache of compiled kernels, then with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        took = [
            float(
                subprocess.run(
                    [sys.executable, "-c", FIRST_STEP],
                    env=environment, capture_output=True, text=True, check=True,
                ).stdout
            )
            for _ in range(3)
        ]  # fmt: skip
    RESULTS["first step"] = {"compiling_s": took[0], "cached_s": min(took[1:])}
    print(f"import to first step: {took[0]:.1f} s compiling, {min(took[1:]):.2f} s from the cache")


def draw(path: Path) -> None:
    """Plot time a decision against servers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    points = RESULTS["decision"]["points"]
    servers = [p["servers"] for p in points]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(servers, [p["p50_us"] for p in points], "o-", label="median")
    axes.loglog(servers, [p["p99_us"] for p in points], "s--", label="99th percentile")
    axes.set(xlabel="servers", ylabel="µs a decision, candidates and features")
    axes.set_title(f"exponent from 1,000 servers on: {RESULTS['decision']['exponent']:.2f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def tables(results: dict[str, Any], block: str) -> str:
    """Return a generated block of `docs/performance.md`: `speed` or `decision`."""
    if block == "decision":
        rows = [
            "| servers | median us | p99 us | godel / ours | kubernetes / ours |",
            "| --- " * 5 + "|",
        ]
        for p in results["decision"]["points"]:
            slow = p["times_slower"]
            rows.append(
                f"| {p['servers']:,} | {p['p50_us']:,.0f} | {p['p99_us']:,.0f} "
                f"| {slow['godel']:,.0f} | {slow['kubernetes']:,.0f} |"
            )
        exponent = results["decision"]["exponent"]
        return "\n".join([*rows, "", f"Exponent between 1,000 and 10,000 servers: {exponent:.2f}."])
    rows = ["| what | a second | of the Python loop |", "| --- | --- | --- |"]
    for name, row in results.items():
        if isinstance(row, dict) and "per_s" in row:
            per_s = f"{row['per_s']:,.0f}" if row["per_s"] >= 10 else f"{row['per_s']:.2f}"
            ratio = f"{row['of_the_loop']:.3f}" if "of_the_loop" in row else ""
            rows.append(f"| {name} | {per_s} | {ratio} |")
    first = results["first step"]
    note = (
        f"{results['machine']}. Import to first step: {first['compiling_s']:.0f} s with nothing "
        f"compiled, {first['cached_s']:.1f} s after that."
    )
    return "\n".join([note, "", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for speed.json and scaling.png")
    out = parser.parse_args().out
    cores = len(os.sched_getaffinity(0))
    RESULTS["machine"] = f"{platform.machine()}, {cores} cores, Python {platform.python_version()}"
    print(RESULTS["machine"])
    first_call()
    scalar()
    print("native vector environment, 16 servers, K = 64, next-step autoreset")
    for num_envs, threads in ((64, 1), (64, cores), (256, cores)):
        vector(num_envs, threads)
    vector(64, cores, days=8)
    print("training")
    learner(64)
    learner(16)
    print("selectors alone, 16 servers")
    for name in SELECTORS:
        selector_decisions(name, 1)
        show(name, selector_decisions(name), "decisions")
    decisions_at_scale()
    days()
    if out:
        make_folder(out)
        write_whole(out / "speed.json", (json.dumps(RESULTS, indent=1) + "\n").encode())
        draw(out / "scaling.png")
        page = Path(__file__).parents[1] / "docs" / "performance.md"
        filled = fill_blocks(page.read_text(), lambda block: tables(RESULTS, block))
        write_whole(page, filled.encode())


if __name__ == "__main__":
    main()
