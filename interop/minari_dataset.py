"""Write demonstrations of selectors as Minari data sets with a card, load them again and compare.

Each episode is a day of the training seeds played by a selector through the environment. Each has its
seed and the returns of all selectors on that day in its metadata, such as the oracle's. Takes a
minute for ten days.
"""

import argparse
import os
import tempfile
from pathlib import Path

import gymnasium
import numpy as np

import flextopo
from flextopo.cluster.workload.seeds import TRAINING
from flextopo.policies.selectors import find_selector

CARD = """---
license: apache-2.0
task_categories: [reinforcement-learning]
tags: [preemption, gpu-topology, cluster-scheduling, minari]
---
# Preemption on GPU clusters: demonstrations

Days of 16 servers of 8 RTX 4090 with generated demand, played through `flextopo/Preempt-RTX4090-v0`
(flextopo {version}, k = 16). An episode is a day, a step a decision: which of up to 16 minimal sets of batch pods to
evict for an online pod that fits nowhere. The reward is what was lost until the next decision, negative, in
GPU-hours a hundred GPUs.

| data set | episodes | decisions | mean return | decisions not among the 16 shown |
| --- | --- | --- | --- | --- |
{rows}

- **Seeds** are training seeds, {first} to {last}: nothing here is of the days of a comparison or of
  FlexTopo-Bench.
- **Metadata of an episode**: `tape_seed`, and `return of NAME` of each selector on the same day. That of
  `oracle-lookahead`, which knows the future, is what there is to gain.
- **Choices not among those shown** are played as action 0, the cheapest, and counted.
- **Limits**: demand is a model's (docs/environment.md of flextopo); the oracle tries one decision at a time, so that it is no
  bound on what is possible.
"""


def action_of(env, selector, info):
    """Return the action that stands for a selector's choice, None if it is not among the K shown.

    Args:
        env: a `PreemptionEnv`.
        selector: works behind the filter of the environment, each pod's own requirement.
        info: of the last step.
    """
    if info["preemptor"] < 0:  # a day without any decision ends with its first step
        return env.k
    state = env.simulator.state
    pod = state.pod(info["preemptor"])
    choice = selector.select(state, pod)
    if choice is None:
        return env.k
    shown = state.candidates(pod, selector.filter.binds(pod), env.k)
    for action, candidate in enumerate(shown):
        if candidate.node == choice.node and set(candidate.victims) == set(choice.victims):
            return action
    return None


def play(collector, selector, seeds):
    """Play days; return their returns, and how many decisions were not among the K shown."""
    env, returns, missed = collector.unwrapped, [], 0
    for seed in seeds:
        _, info = collector.reset(options={"tape_seed": seed})
        total, over = 0.0, False
        while not over:
            action = action_of(env, selector, info)
            if action is None:
                missed, action = missed + 1, 0
            _, reward, _, over, info = collector.step(action)
            total += reward
        returns.append(total)
    return returns, missed


def main():
    """Write, load, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--selectors", default="requeue-aware,oracle-lookahead", help="joined by commas"
    )
    parser.add_argument("--days", type=int, default=10, help="episodes of each")
    parser.add_argument("--out", help="folder of data sets; none = a temporary one")
    options = parser.parse_args()
    seeds = TRAINING[: options.days]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.out or scratch)
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        import minari

        returns, rows, written = {}, [], {}
        for name in options.selectors.split(","):
            env = gymnasium.make("flextopo:flextopo/Preempt-RTX4090-v0", k=16)
            collector = minari.DataCollector(env, record_infos=False)
            returns[name], missed = play(collector, find_selector(name), seeds)
            written[name] = collector.create_dataset(
                dataset_id=f"flextopo/{name}-v1",
                algorithm_name=name,
                eval_env=env.spec,
                description="One day of 16 RTX 4090 servers an episode.",
            )
            mean, steps = np.mean(returns[name]), written[name].total_steps
            cells = (f"`flextopo/{name}-v1`", options.days, steps, f"{mean:.1f}", missed)
            rows.append("| " + " | ".join(map(str, cells)) + " |")
        for data in written.values():
            about = [
                {
                    "tape_seed": seed,
                    **{f"return of {name}": row[i] for name, row in returns.items()},
                }
                for i, seed in enumerate(seeds)
            ]
            data.storage.update_episode_metadata(about, range(len(seeds)))
        card = CARD.format(
            version=flextopo.__version__, rows="\n".join(rows), first=seeds[0], last=seeds[-1]
        )
        (folder / "flextopo" / "README.md").write_text(card, encoding="utf-8")
        for name, expected in returns.items():
            found = minari.load_dataset(f"flextopo/{name}-v1")
            loaded = [float(episode.rewards.sum()) for episode in found.iterate_episodes()]
            assert np.allclose(loaded, expected), (loaded, expected)
            kept = list(found.storage.get_episode_metadata(range(len(seeds))))
            assert [row["tape_seed"] for row in kept] == list(seeds), kept
            assert np.isclose(kept[0][f"return of {name}"], expected[0]), kept[0]
            assert found.recover_environment().observation_space == env.observation_space
        said = ", ".join(f"{name} {np.mean(found):.1f}" for name, found in returns.items())
        print(f"{len(rows)} data sets of {options.days} days with a card; mean returns: {said}")


if __name__ == "__main__":
    main()
