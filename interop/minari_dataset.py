"""Write demonstrations of a selector as a Minari data set, load it again and compare.

Each episode is a day played by the selector through the environment. Takes seconds for ten days.
"""

import argparse
import os
import tempfile

import gymnasium
import numpy as np

from flextopo.policies.selectors import find_selector


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


def play(collector, selector, days):
    """Play days; return their returns, and how many decisions were not among the K shown."""
    env, returns, missed = collector.unwrapped, [], 0
    for day in range(days):
        _, info = collector.reset(options={"tape_seed": day})
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
    parser.add_argument("--selector", default="oracle-lookahead", help="registry, zoo or folder")
    parser.add_argument("--days", type=int, default=10, help="episodes")
    parser.add_argument("--out", help="folder of data sets; none = a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MINARI_DATASETS_PATH"] = options.out or scratch
        import minari

        env = gymnasium.make("flextopo:flextopo/Preempt-RTX4090-v0", k=16)
        collector = minari.DataCollector(env, record_infos=False)
        returns, missed = play(collector, find_selector(options.selector), options.days)
        name = f"flextopo/{options.selector}-v0"
        collector.create_dataset(
            dataset_id=name,
            algorithm_name=options.selector,
            eval_env=env.spec,
            description="One day of 16 RTX 4090 servers an episode.",
        )
        found = minari.load_dataset(name)
        loaded = [float(episode.rewards.sum()) for episode in found.iterate_episodes()]
        assert np.allclose(loaded, returns), (loaded, returns)
        again = found.recover_environment()
        assert again.observation_space == env.observation_space
        print(
            f"{found.total_episodes} days, {found.total_steps} decisions of {options.selector}, "
            f"{missed} not among the 16 shown; mean return {np.mean(loaded):.1f}"
        )


if __name__ == "__main__":
    main()
