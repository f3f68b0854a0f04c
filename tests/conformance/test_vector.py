"""The native vector environments give bit for bit what the scalar environment gives."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tapes
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tapes import same

from flextopo.baselines.registry import COMPARED, make_selector
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.episodes import bytes_of_episode
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.envs.preemption import PreemptionEnv
from flextopo.envs.registration import ENVIRONMENTS
from flextopo.envs.vector import PreemptionVectorEnv

# A day of 1,000 servers takes minutes in all of these.
every_id = pytest.mark.parametrize(
    "id_",
    [pytest.param(id_, marks=pytest.mark.slow) if "1k" in id_ else id_ for id_ in ENVIRONMENTS],
)
SMALL = "2*rtx4090,2*a100"
STEPS, NUM_ENVS = 10_000, 8


def legal(mask: Any, rng: np.random.Generator) -> Any:
    """Draw a legal action a row; where it falls on an empty place now and then, so much the better."""
    count = mask[:, :-1].sum(1)
    chosen = (rng.random(len(mask)) * (count + 1)).astype(np.int64)
    return np.where(chosen == count, mask.shape[1] - 1, chosen)


def plain(info: Any) -> Any:
    """Return infos with object arrays as lists, so that `same` compares what they hold."""
    if isinstance(info, dict):
        return {name: plain(info[name]) for name in sorted(info)}
    if isinstance(info, np.ndarray) and info.dtype == object:
        return [plain(entry) for entry in info]
    return info


def agree(ours: Any, theirs: Any) -> bool:
    """Compare two results of `step` or `reset` bit by bit."""
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return False
        return all(agree(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list):
        return all(agree(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, np.ndarray):
        return bool((ours == theirs).all() or same(ours, theirs))
    return bool(ours == theirs)


@every_id
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_equals_scalar(id_: str, mode: AutoresetMode) -> None:
    ours = gym.make_vec(
        id_,
        num_envs=NUM_ENVS,
        vectorization_mode="vector_entry_point",
        autoreset_mode=mode,
        threads=2,
        tapes=16,
    )
    theirs = SyncVectorEnv(
        [lambda: gym.make(id_, tapes=16).unwrapped] * NUM_ENVS, autoreset_mode=mode
    )
    rng = np.random.default_rng(0)
    a: Any = ours.reset(seed=5)
    b: Any = theirs.reset(seed=5)
    assert agree(a[0], b[0])
    assert agree(plain(a[1]), plain(b[1]))
    ended = 0
    for _ in range(STEPS // NUM_ENVS):
        actions = legal(a[0]["action_mask"], rng)
        a, b = ours.step(actions), theirs.step(actions)
        for mine, yours in zip(a[:4], b[:4], strict=True):
            assert agree(mine, yours)
        assert agree(plain(a[4]), plain(b[4]))
        ended += int(a[3].sum())
    assert ended > 0


@pytest.mark.parametrize("name", COMPARED)
def test_vector_equals_scalar_on_a_selectors_actions(name: str) -> None:
    """Whatever a selector picks among the shown candidates leads both to the same states."""
    selector = make_selector(name)
    ours = PreemptionVectorEnv(2, SMALL, workload=tapes.BUSY, tapes=4, autoreset_mode="SameStep")
    theirs = [PreemptionEnv(SMALL, workload=tapes.BUSY, tapes=4) for _ in range(2)]
    shown, _ = ours.reset(seed=1)
    for i, env in enumerate(theirs):
        assert same(env.reset(seed=1 + i)[0]["candidates"], shown["candidates"][i])
    for _ in range(60):
        actions = []
        for env in theirs:
            sim, batch = env.simulator, env.core.batch
            assert batch is not None
            pod = sim.state.pod(int(batch.outcome[0]["asked"]))
            chosen = selector.select(sim.state, pod)
            action = env.k
            for i in range(int(batch.environments[0]["options"])):
                slots = sim.state.slots_of(chosen.node, chosen.victims) if chosen else -1
                if (chosen and batch.found.node[0, i], batch.found.slots[0, i]) == (
                    chosen and chosen.node,
                    slots,
                ):
                    action = i
            actions.append(action)
        shown, reward, _, truncated, info = ours.step(actions)
        for i, env in enumerate(theirs):
            observation, value, _, end, _ = env.step(actions[i])
            assert (value, end) == (reward[i], truncated[i])
            if end:
                final = info["final_obs"][i]
                assert all(same(observation[key], final[key]) for key in final)
                observation = env.reset()[0]
            assert all(same(observation[key], shown[key][i]) for key in observation)


def test_threads_and_the_number_of_days_in_memory_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rollout(threads: int) -> bytes:
        env = PreemptionVectorEnv(8, SMALL, threads=threads, tapes=32, randomise=True)
        rng = np.random.default_rng(2)
        shown, _ = env.reset(seed=9)
        kept = []
        for _ in range(150):
            shown, reward, _, truncated, _ = env.step(legal(shown["action_mask"], rng))
            kept.append((shown["candidates"].tobytes(), reward.tobytes(), truncated.tobytes()))
        env.close()
        return pickle.dumps(kept)

    expected = rollout(1)
    assert rollout(3) == expected
    monkeypatch.setattr("flextopo.envs.tape_store.STORE_BYTES", 1)  # one day at a time
    assert rollout(2) == expected


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("copy", [True, False])
def test_what_a_caller_keeps_never_changes(mode: AutoresetMode, copy: bool) -> None:
    """Observations with `copy=False` are the exception: the environment's own arrays."""
    env = PreemptionVectorEnv(4, SMALL, episode_h=0.5, autoreset_mode=mode, copy=copy)
    twin = PreemptionVectorEnv(4, SMALL, episode_h=0.5, autoreset_mode=mode)
    first, info = env.reset(seed=0)
    twin.reset(seed=0)
    kept: list[Any] = [(first if copy else {}, info)]
    ends = 0
    frozen = [pickle.dumps(kept[0])]
    for _ in range(60):
        shown, *rest = env.step([0] * 4)
        expected, *theirs = twin.step([0] * 4)
        assert agree(plain(shown), plain(expected))
        assert agree(plain(rest[-1]), plain(theirs[-1]))
        if mode == AutoresetMode.DISABLED and rest[2].any():
            shown, _ = env.reset(options={"reset_mask": rest[2]})
            twin.reset(options={"reset_mask": theirs[2]})
        kept.append((shown if copy else {}, rest))
        ends += rest[2].sum()
        frozen.append(pickle.dumps(kept[-1]))
        for name in first:
            assert np.shares_memory(shown[name], first[name]) != copy
    assert ends > 0
    assert [pickle.dumps(entry) for entry in kept] == frozen


def test_a_scalar_environments_observations_are_the_callers_own() -> None:
    env = PreemptionEnv(SMALL, workload=tapes.BUSY)
    shown = [env.reset(seed=0)[0]]
    frozen = [pickle.dumps(shown[0])]
    for _ in range(10):
        shown.append(env.step(0)[0])
        frozen.append(pickle.dumps(shown[-1]))
    assert [pickle.dumps(entry) for entry in shown] == frozen


def test_a_changed_observation_leaves_no_trace() -> None:
    clean, dirty = PreemptionVectorEnv(2, SMALL), PreemptionVectorEnv(2, SMALL, copy=False)
    a, b = clean.reset(seed=4)[0], dirty.reset(seed=4)[0]
    for _ in range(20):
        for array in b.values():
            array[:] = 77
        a, b = clean.step([0, 0])[0], dirty.step([0, 0])[0]
        assert all(same(a[name], b[name]) for name in a)


def test_masks_and_partial_resets() -> None:
    env = PreemptionVectorEnv(3, SMALL, autoreset_mode="Disabled", allow_wait=False)
    shown, _ = env.reset(seed=0)
    assert (env.action_masks() == shown["action_mask"].astype(bool)).all()
    assert not env.action_masks()[:, -1].any()
    before = shown["candidates"].copy()
    mask = np.array([False, True, False])
    shown, info = env.reset(options={"reset_mask": mask})
    assert info["_time_s"].tolist() == mask.tolist()
    assert same(shown["candidates"][0], before[0])
    assert same(shown["candidates"][2], before[2])
    assert not same(shown["candidates"][1], before[1])
    given, _ = env.reset(options={"tape_seed": 3})
    assert same(given["candidates"][0], given["candidates"][1])
    one = PreemptionEnv(SMALL, allow_wait=False).reset(options={"tape_seed": 3})[0]
    assert same(one["candidates"], given["candidates"][0])


def test_a_day_without_decisions_is_skipped_alike() -> None:
    quiet = {"batch_load": 0.0, "online_peak_share": 0.3}
    vector = PreemptionVectorEnv(2, SMALL, workload=quiet, tapes=4)
    shown, _ = vector.reset(seed=0)
    assert shown["action_mask"][:, -1].all()
    assert not shown["action_mask"][:, :-1].any()
    scalar = PreemptionEnv(SMALL, workload=quiet, tapes=4)
    assert same(scalar.reset(seed=0)[0]["action_mask"], shown["action_mask"][0])
    assert vector.step([0, 0])[3].all()


def test_mistakes_name_what_is_legal() -> None:
    env = PreemptionVectorEnv(2, SMALL)
    with pytest.raises(gym.error.ResetNeeded):
        env.step([0, 0])
    env.reset(seed=[1, None])
    for wrong, message in (([0], r"legal: \(2,\)"), ([0, 65], "65; legal: 0 to 64")):
        with pytest.raises(FlextopoError, match=message):
            env.step(wrong)
    with pytest.raises(FlextopoError, match="dtype float64; legal: whole numbers"):
        env.step([0.0, 0.5])
    observation, _ = env.reset(seed=1)
    masks = env.action_masks()
    observation["action_mask"][:] = 0
    assert (env.action_masks() == masks).all()
    with pytest.raises(FlextopoError, match="1 seeds; legal: 2"):
        env.reset(seed=[1])
    with pytest.raises(FlextopoError, match="legal: reset_mask, tape_seed"):
        env.reset(options={"seed": 1})
    with pytest.raises(FlextopoError, match="tape_seed = -2; legal"):
        env.reset(options={"tape_seed": -2})
    with pytest.raises(FlextopoError, match="reset_mask of shape"):
        env.reset(options={"reset_mask": np.ones(3, bool)})
    for change in ({"num_envs": 0}, {"tapes": 0}, {"threads": 0}, {"tapes": 10**7}):
        with pytest.raises(FlextopoError, match="legal: 1"):
            PreemptionVectorEnv(**{"servers": SMALL, **change})  # type: ignore[arg-type]
    with pytest.raises(FlextopoError, match="of a vector"):
        PreemptionVectorEnv(2, SMALL, render_mode="ansi")


def test_pickled_environments_go_on_alike() -> None:
    env = PreemptionVectorEnv(20, SMALL, tapes=8, threads=2)
    env.reset(seed=8)
    env.step([0] * 20)
    twin = pickle.loads(pickle.dumps(env))
    for _ in range(40):
        one, two = env.step([0] * 20), twin.step([0] * 20)
        assert agree(plain(one[0]), plain(two[0]))
        assert agree(one[1], two[1])


def test_a_pickle_holds_no_days_and_goes_on_into_others() -> None:
    """Days are made again, in rows no smaller than what is being played needs."""
    env = PreemptionVectorEnv(2, SMALL, tapes=512, randomise=True)
    env.reset(seed=3)
    for _ in range(200):
        env.step([0, 0])
    batch = env.core.batch
    assert batch is not None
    assert (batch.stored.tape >= 0).sum() > 4
    blob = pickle.dumps(env)
    assert len(blob) < 8 * bytes_of_episode(batch.running)
    twin = pickle.loads(blob)
    for _ in range(200):
        one, two = env.step([0, 0]), twin.step([0, 0])
        assert agree(plain(one[0]), plain(two[0]))
        assert agree(one[1], two[1])


def test_the_simulation_inside_is_sound() -> None:
    env = PreemptionVectorEnv(2, SMALL, workload=tapes.BUSY)
    env.reset(seed=1)
    for _ in range(10):
        env.step([0, 0])
        for i in range(2):
            sim = env.core.simulator(i)
            sim.state.check_invariants()
            assert sim.rules.filter == AlignmentFilter.OWN
