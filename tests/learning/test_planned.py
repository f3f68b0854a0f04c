"""Learning what planning would decide, and what a network is shown for it: who holds the GPUs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import (
    FEATURES,
    HELD,
    NUM_CANDIDATE,
    NUM_CLUSTER,
    NUM_OBSERVED,
    Observation,
    empty_observation,
    feature_names,
    width_of,
)
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import NOMINATED, TERMINATING
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import TRAINING
from flextopo.policies.artifact import load_network, save_policy
from flextopo.policies.continuation import PolicyLookahead, choose
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import LearnedSelector, load_policy
from flextopo.train.config import PLANNED_TAPES, ImitationConfig, PlanningConfig
from flextopo.train.demonstrations import (
    Demonstrations,
    carry_out,
    concatenate,
    decisions,
    tape_for,
)
from flextopo.train.planned import Planned, fit_plans, train_planning
from flextopo.train.rounds import weights_of

MIXED = "8*rtx4090,8*a100"
CONFIG = PlanningConfig(
    servers=("4*rtx4090", "4*a100"), tapes=4, futures=4, k=8, horizon_s=1800, hidden=8, epochs=2,
    batch_size=16, validation_tapes=2,
)  # fmt: skip


def busy(seed: int) -> Simulator:
    return tape_for(parse_servers(MIXED), WorkloadConfig(), seed)


def held_on(sim: Simulator, node: int) -> npt.NDArray[np.float64]:
    """Return the GPUs of a server by who holds them, the plain way."""
    found = dict.fromkeys(HELD, 0.0)
    c = sim.state.arrays
    for pod in c.node_pods[node, : c.nodes[node]["num_pods"]]:
        gpus, status = int(c.live[pod]["gpu_mask"]).bit_count(), c.live[pod]["status"]
        if status == TERMINATING:
            found["terminating"] += gpus
            continue
        size = next(size for size in (1, 2, 4, 99) if c.pods[pod]["gpus"] <= size)
        kind = "online" if c.pods[pod]["online"] else "batch"
        found[f"{kind}_{min(size, 8)}"] += gpus
        if status == NOMINATED:
            found["nominated"] += gpus
    return np.array(list(found.values()))


def test_who_holds_the_gpus_is_told_of_each_server_and_of_all() -> None:
    seen = np.zeros(len(HELD), np.bool_)
    narrow = empty_observation(16)
    place = list(FEATURES["candidates"]).index("server_online_1")
    for sim in (busy(0), busy(2), busy(8)):
        for pod, found, count, o in decisions(sim, 16, NUM_OBSERVED):
            every = np.array([held_on(sim, node) for node in range(16)])
            np.testing.assert_allclose(o.cluster[NUM_CLUSTER:], every.sum(0) / 128, atol=1e-6)
            for i in range(count):
                np.testing.assert_allclose(
                    o.candidates[i, place:], every[found.node[i]] / 8, atol=1e-6
                )
            observe(sim.state.arrays, sim.costs, pod.index, found, count, narrow)
            assert (narrow.candidates == o.candidates[:, :NUM_CANDIDATE]).all()
            assert (narrow.cluster == o.cluster[:NUM_CLUSTER]).all()
            seen |= every.any(0)
            carry_out(sim, pod, found, 0)
    assert seen.all()  # three days have pods of every kind


@pytest.mark.parametrize(
    ("part", "name"), [("candidates", "server_batch_8"), ("cluster", "held_nominated")]
)
def test_who_reads_one_of_these_features_is_shown_all(part: str, name: str) -> None:
    names = {**feature_names(), part: [*feature_names()[part], name]}
    columns = {each: [list(FEATURES[each]).index(n) for n in names[each]] for each in names}
    assert width_of(columns) == NUM_OBSERVED
    assert len(empty_observation(4, NUM_OBSERVED).cluster) == NUM_CLUSTER + len(HELD)


def wide_policy(folder: Path, seed: int = 0) -> LearnedSelector:
    torch.manual_seed(seed)
    network = CandidateScorer(ScorerConfig(16, width=NUM_OBSERVED))
    return load_policy(save_policy(network, folder, "wide", 16))


def test_a_policy_that_reads_them_plays_alike_in_numpy_and_in_kernels(tmp_path: Path) -> None:
    policy = wide_policy(tmp_path / "wide")
    net, view = PolicyLookahead(policy.weights, policy.k).net, empty_observation(16, NUM_OBSERVED)
    chosen = set()
    for seed in (7, 8):
        sim = busy(seed)
        for pod, found, count, o in decisions(sim, 16, NUM_OBSERVED):
            observe(sim.state.arrays, sim.costs, pod.index, found, count, view)
            mine = int(np.argmax(policy.score(o)))
            # The kernel says `count` for waiting, numpy its last place.
            assert choose(net, view, count, bool(o.mask[16])) == min(mine, count)
            chosen.add(min(mine, count) - count)
            carry_out(sim, pod, found, mine if mine < count else None)
    assert len(chosen) > 3


def test_a_policy_trained_without_them_goes_on_with_them() -> None:
    policy = load_policy("deepset-imitation")
    other = LearnedSelector("wide", weights_of(load_network(policy.name, NUM_OBSERVED)), policy.k)
    assert other.width == NUM_OBSERVED
    *_, o = next(decisions(busy(9), policy.k, NUM_OBSERVED))
    narrow = Observation(
        o.preemptor, o.cluster[:NUM_CLUSTER], o.candidates[:, :NUM_CANDIDATE], o.mask
    )
    np.testing.assert_allclose(
        policy.score(policy.read(narrow)), other.score(o), rtol=1e-4, atol=1e-4
    )


def test_plans_repeat_and_do_not_depend_on_processes(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        policy = train_planning(CONFIG, folder, workers, lambda _: None)
        found.append((policy / "weights.npz").read_bytes())
    assert found[0] == found[1]


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = train_planning(CONFIG, tmp_path / "whole", 1, lambda _: None)

    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("planned 2 of 4"):
            raise Stop

    with pytest.raises(Stop):
        train_planning(CONFIG, tmp_path / "parts", 1, stop)
    with pytest.raises(FlextopoError, match="holds a run already"):
        train_planning(CONFIG, tmp_path / "parts", 1, lambda _: None)
    with pytest.raises(FlextopoError, match="another configuration"):
        train_planning(replace(CONFIG, seed=1), tmp_path / "parts", 1, lambda _: None, resume=True)
    said: list[str] = []
    parts = train_planning(CONFIG, tmp_path / "parts", 1, said.append, resume=True)
    assert (parts / "weights.npz").read_bytes() == (whole / "weights.npz").read_bytes()
    assert next(line for line in said if line.startswith("planned")).startswith("planned 3 of 4")
    with pytest.raises(FlextopoError, match="holds a policy already"):
        train_planning(CONFIG, tmp_path / "whole", 1, lambda _: None)
    with pytest.raises(FlextopoError, match="a planning run's folder"):
        train_planning(CONFIG, tmp_path / "none", 1, lambda _: None, resume=True)


@pytest.mark.parametrize("there", ["half", "nothing", "text", "other"])
def test_damaged_decisions_are_named(tmp_path: Path, there: str) -> None:
    train_planning(CONFIG, tmp_path, 1, lambda _: None)
    part = tmp_path / "planned-0.npz"
    if there == "other":
        Planned(replace(CONFIG, k=4)).demonstrate(("4*rtx4090", 3)).save(part)
    else:
        blob = part.read_bytes()
        part.write_bytes({"half": blob[:500], "nothing": b"", "text": b"decisions"}[there])
    shutil.rmtree(tmp_path / "policy")
    with pytest.raises(FlextopoError, match=r"planned-0\.npz: is damaged"):
        train_planning(CONFIG, tmp_path, 1, lambda _: None, resume=True)
    assert not (tmp_path / "policy").exists()


def test_tapes_without_a_choice_teach_nothing(tmp_path: Path) -> None:
    config = replace(CONFIG, servers=("2*a100",), tapes=1, k=1, futures=1, randomised=0.0)
    with pytest.raises(FlextopoError, match="no decision there has a choice"):
        train_planning(config, tmp_path, 1, lambda _: None)


def lessons(decisions_: int, seed: int = 0) -> Demonstrations:
    """Return decisions of which the best candidate is on the server with the fewest online pods of 8 GPUs."""
    rng = np.random.default_rng(seed)
    o = empty_observation(6, NUM_OBSERVED)
    candidates = rng.random((decisions_, 6, NUM_OBSERVED)).astype(np.float32)
    candidates[..., :8] = 0.25  # never varies
    at = list(FEATURES["candidates"]).index("server_online_8")
    candidates[..., at] = 0.5 + 0.01 * rng.standard_normal((decisions_, 6))
    losses = np.zeros((decisions_, 7), np.float32)
    losses[:, :6] = 300.0 * (candidates[..., at] - candidates[:, :1, at])
    mask = np.tile(o.mask, (decisions_, 1))
    mask[:, :6] = 1
    return Demonstrations(
        rng.random((decisions_, len(o.preemptor))).astype(np.float32),
        rng.random((decisions_, len(o.cluster))).astype(np.float32),
        candidates,
        mask,
        losses,
        np.zeros((decisions_, 0), np.float16),
    )


def test_a_network_learns_which_server_to_take() -> None:
    config = replace(CONFIG, hidden=16, epochs=20, batch_size=64, k=6)
    torch.manual_seed(0)
    network = CandidateScorer(ScorerConfig(16, width=NUM_OBSERVED))
    history = fit_plans(network, lessons(4000), config)
    assert history[-1] < history[0]
    # Of other decisions, as they are observed: the scale is in the weights.
    other = lessons(500, 1)
    policy = LearnedSelector("learnt", weights_of(network), 6)
    rows = zip(other.preemptor, other.cluster, other.candidates, other.mask, strict=True)
    chosen = np.array([int(np.argmax(policy.score(Observation(*row)))) for row in rows])
    got = other.losses[np.arange(500), chosen].mean()
    assert got < 0.9 * other.losses.min(1).mean() < 0
    # What never varied is not read, so that it cannot matter where it does.
    assert not network.candidate.weight[:, :8].any()


def test_the_rules_own_choice_is_what_losses_are_beyond() -> None:
    config = replace(CONFIG, servers=("16*rtx4090",), tapes=2, k=16, randomised=0.0)
    data = concatenate([Planned(config).demonstrate(("16*rtx4090", s)) for s in (11, 12)])
    legal = data.mask != 0
    assert len(data) > 5
    assert ((data.losses == 0) & legal).any(1).all()  # the rule's own
    assert np.isfinite(data.losses).all()
    assert (data.losses[~legal] == 0).all()


@pytest.mark.parametrize(
    ("wrong", "legal"),
    [
        ({"randomised": 1.5}, "0 to 1"),
        ({"futures": 0}, "1 or more"),
        ({"most_lost": 0.0}, "above 0"),
        ({"seed": 200}, "legal: up to"),
        ({"servers": ()}, "one cluster or more"),
        ({"validation_tapes": 10**6}, "legal: 1 to"),
    ],
)
def test_what_cannot_be_planned_is_said_before_it_starts(
    wrong: dict[str, object], legal: str
) -> None:
    with pytest.raises(FlextopoError, match=legal):
        PlanningConfig(**wrong)  # type: ignore[arg-type]


def test_no_tape_is_played_by_imitation_too() -> None:
    imitation, planning = ImitationConfig(), PlanningConfig()
    seeds = 30
    from_the_start = seeds * imitation.networks * sum(imitation.plan)
    from_the_end = len(TRAINING) - seeds * sum(imitation.last_plan)
    assert from_the_start < PLANNED_TAPES
    assert PLANNED_TAPES + seeds * planning.tapes < from_the_end
