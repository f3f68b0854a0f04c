"""What every registered environment must keep, whoever uses it."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tapes
from gymnasium.utils.env_checker import check_env
from tapes import same

from flextopo.baselines.registry import make_selector
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.loss import loss_terms
from flextopo.envs.preemption import PreemptionEnv
from flextopo.envs.registration import ENVIRONMENTS

# A day of 1,000 servers takes minutes in all of these.
every_id = pytest.mark.parametrize(
    "id_",
    [pytest.param(id_, marks=pytest.mark.slow) if "1k" in id_ else id_ for id_ in ENVIRONMENTS],
)
SMALL = "2*rtx4090,2*a100"


def make(id_: str, **options: Any) -> PreemptionEnv:
    env = gym.make(id_, disable_env_checker=True, **options).unwrapped
    assert isinstance(env, PreemptionEnv)
    return env


def legal_action(env: PreemptionEnv, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(env.action_masks())))


@every_id
def test_gymnasiums_checker_accepts_it(id_: str) -> None:
    check_env(make(id_), skip_render_check=True)
    for mode in PreemptionEnv.metadata["render_modes"]:
        check_env(make(id_, render_mode=mode), skip_render_check=True)


@pytest.mark.filterwarnings("ignore:Your observation candidates has an unconventional shape")
@every_id
def test_stable_baselines3s_checker_accepts_it(id_: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(make(id_), warn=True)


@every_id
def test_equal_seeds_give_equal_episodes_also_interleaved(id_: str) -> None:
    one, two = make(id_), make(id_)
    rng = np.random.default_rng(0)
    first, second = one.reset(seed=7), two.reset(seed=7)
    assert same(first[0], second[0])
    assert same(first[1], second[1])
    ended, steps = False, 0
    while not ended and steps < 60:
        action = legal_action(one, rng)
        a, b = one.step(action), two.step(action)
        assert same(a[0], b[0])
        assert a[1:4] == b[1:4]
        assert same(a[4], b[4])
        ended, steps = a[3], steps + 1
    assert steps > 0


@every_id
def test_resetting_again_gives_the_same_episode(id_: str) -> None:
    env = make(id_)

    def rollout() -> list[Any]:
        rng = np.random.default_rng(1)
        out: list[Any] = [env.reset(seed=11)[0]]
        for _ in range(20):
            observation, reward, _, truncated, _ = env.step(legal_action(env, rng))
            out += [observation, reward]
            if truncated:
                break
        return out

    one, two = rollout(), rollout()
    assert len(one) == len(two)
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_other_seeds_give_other_episodes() -> None:
    env = PreemptionEnv(SMALL)
    assert not same(env.reset(seed=1)[0], env.reset(seed=2)[0])


@every_id
def test_kept_observations_and_spaces_do_not_change(id_: str) -> None:
    env = make(id_)
    spaces = str(env.observation_space), str(env.action_space)
    observation, info = env.reset(seed=3)
    frozen = pickle.dumps((observation, info))
    for _ in range(5):
        env.step(0)
    env.reset(seed=4)
    assert pickle.dumps((observation, info)) == frozen
    assert (str(env.observation_space), str(env.action_space)) == spaces


@every_id
def test_observations_lie_in_their_space_all_day(id_: str) -> None:
    env = make(id_)
    rng = np.random.default_rng(2)
    observation, info = env.reset(seed=5)
    truncated = False
    while not truncated:
        assert env.observation_space.contains(observation)
        assert same(info["action_mask"], observation["action_mask"])
        assert (env.action_masks() == observation["action_mask"].astype(bool)).all()
        assert env.action_masks().any()
        observation, _, terminated, truncated, info = env.step(legal_action(env, rng))
        assert not terminated
    assert env.observation_space.contains(observation)
    assert info["action_mask"].tolist() == [0] * env.k + [1]
    assert set(info["metrics"]) >= {"weighted_loss", "hit_rate"}


@every_id
@pytest.mark.parametrize("allow_wait", [True, False])
def test_the_mask_says_what_is_legal(id_: str, allow_wait: bool) -> None:
    env = make(id_, strict=True, allow_wait=allow_wait)
    for action in range(env.k + 1):
        env.reset(seed=6)
        if env.action_masks()[action]:
            assert env.step(action)[4]["invalid_action"] is False
        else:
            with pytest.raises(FlextopoError, match=f"action {action} is masked"):
                env.step(action)


@every_id
def test_an_empty_place_counts_as_waiting_and_is_reported(id_: str) -> None:
    # More places than candidates on any cluster here, so that some are empty.
    env, waits = make(id_, k=512), make(id_, k=512)
    for seed in range(50):
        mask = env.reset(seed=seed)[0]["action_mask"]
        empty = np.flatnonzero(mask == 0)
        if len(empty):
            break
    waits.reset(seed=seed)
    observation, reward, _, _, info = env.step(int(empty[0]))
    expected = waits.step(waits.k)
    assert info.pop("invalid_action") is True
    assert expected[4].pop("invalid_action") is False
    assert same(observation, expected[0])
    assert reward == expected[1]
    assert env.simulator.events.account[0]["invalid_actions"] == 1


@pytest.mark.parametrize("action", [-1, 65, 1000, 0.5, 0.0, np.array([0.5]), np.nan, None, "0"])
def test_an_action_outside_the_space_raises(action: Any) -> None:
    env = PreemptionEnv(SMALL)
    env.reset(seed=0)
    with pytest.raises(FlextopoError, match="legal: whole numbers from 0 to 64"):
        env.step(action)


@pytest.mark.parametrize("kind", [int, np.int32, np.uint8, np.array])
def test_whole_numbers_of_any_kind_are_actions(kind: Any) -> None:
    env = PreemptionEnv(SMALL)
    env.reset(seed=0)
    assert env.step(kind(0))[4]["invalid_action"] is False


def test_no_step_follows_the_end() -> None:
    env = PreemptionEnv(SMALL, workload={"horizon_h": 2.0})
    env.reset(seed=1)
    while not env.step(0)[3]:
        pass
    with pytest.raises(gym.error.ResetNeeded, match="legal: reset"):
        env.step(0)
    env.reset()
    env.step(0)


def test_what_is_done_to_an_observation_changes_no_mask() -> None:
    env = PreemptionEnv(SMALL, strict=True)
    observation, _ = env.reset(seed=1)
    masks = env.action_masks()
    observation["action_mask"][:] = 1 - observation["action_mask"]
    env.action_masks()[:] = True
    assert (env.action_masks() == masks).all()
    with pytest.raises(FlextopoError, match="is masked"):
        env.step(int(np.flatnonzero(~masks)[0]))


@pytest.mark.parametrize("seed", [-1, -7, 1.5, "3", 2**63, 2**64, True])
def test_a_tape_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(FlextopoError, match=rf"tape_seed = .*legal: 0 to {2**63 - 1}"):
        PreemptionEnv(SMALL).reset(options={"tape_seed": seed})


def test_a_source_is_asked_for_the_tape_that_was_given_alone() -> None:
    asked: list[int] = []
    whole = PreemptionEnv(SMALL).core.source

    def source(seed: int) -> Any:
        asked.append(seed)
        return whole(seed)

    PreemptionEnv(SMALL, tape_source=source).reset(options={"tape_seed": 3})
    assert set(asked) == {3}


def test_mistakes_name_what_is_legal() -> None:
    with pytest.raises(gym.error.ResetNeeded):
        PreemptionEnv(SMALL).step(0)
    with pytest.raises(FlextopoError, match="legal: tape_seed"):
        PreemptionEnv(SMALL).reset(options={"seed": 1})
    with pytest.raises(FlextopoError, match="legal: 1 or more"):
        PreemptionEnv(SMALL, k=0)
    with pytest.raises(FlextopoError, match="ansi"):
        PreemptionEnv(SMALL, render_mode="human")


@every_id
def test_rendering(id_: str) -> None:
    assert make(id_).render() is None
    text = make(id_, render_mode="ansi")
    text.reset(seed=0)
    picture = make(id_, render_mode="rgb_array")
    shapes = set()
    for seed in range(2):
        picture.reset(seed=seed)
        for _ in range(3):
            image = picture.render()
            assert image.dtype == np.uint8
            shapes.add(image.shape)
            picture.step(0)
    assert len(shapes) == 1
    for _ in range(3):
        drawn = text.render()
        assert max(map(len, drawn.splitlines())) <= 80
        text.step(0)


@every_id
def test_action_zero_is_greedy_cost_and_rewards_sum_to_the_account(id_: str) -> None:
    env = make(id_)
    env.reset(seed=0, options={"tape_seed": 3})
    account = env.simulator.events.account
    before = sum(loss_terms(account, env.simulator.costs).values())
    total, truncated = 0.0, False
    while not truncated:
        _, reward, _, truncated, _ = env.step(0)
        total += reward
    after = sum(loss_terms(account, env.simulator.costs).values())
    assert -total * 36.0 * env.fleet.num_gpus == pytest.approx(after - before, rel=1e-9)
    assert after > before

    simulator = Simulator(env.simulator.tape, env.fleet)
    simulator.play(make_selector("greedy-cost"))
    mine, theirs = account[0], simulator.events.account[0]
    # Decisions without any candidate are passed over by the environment.
    names = [name for name in account.dtype.names or () if name != "decisions"]
    assert [mine[name].tolist() for name in names] == [theirs[name].tolist() for name in names]


def test_waiting_where_it_is_forbidden_is_reported_and_counted() -> None:
    env = PreemptionEnv("4*rtx4090", workload=tapes.BUSY, allow_wait=False)
    env.reset(options={"tape_seed": 3})
    assert not env.action_masks()[env.k]
    assert env.step(env.k)[4]["invalid_action"] is True
    assert env.simulator.events.account[0]["invalid_actions"] == 1


def test_pickled_environment_goes_on_alike() -> None:
    env = PreemptionEnv(SMALL)
    env.reset(seed=8)
    env.step(0)
    twin = pickle.loads(pickle.dumps(env))
    one, two = env.step(0), twin.step(0)
    assert same(one[0], two[0])
    assert one[1:4] == two[1:4]
    assert same(env.reset()[0], twin.reset()[0])


def test_a_module_may_be_named_in_the_id() -> None:
    env = gym.make("flextopo:flextopo/Preempt-RTX4090-v0")
    assert isinstance(env.unwrapped, PreemptionEnv)
    env.close()
