"""Networks that decide together, and the one that learns from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flextopo.baselines.registry import make_selector
from flextopo.cluster.observation.features import Observation
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import load_policy, read_meta, score
from flextopo.train import imitation
from flextopo.train.committee import Committee, log_loss
from flextopo.train.config import ImitationConfig
from flextopo.train.demonstrations import Demonstrations
from flextopo.train.fitting import disagreement, fit
from flextopo.train.imitation import train_imitation, validate
from flextopo.train.rounds import COMMITTEE, read_rounds, weights_of

CONFIG = ImitationConfig(
    servers=("4*rtx4090",), networks=2, tapes=6, rounds=1, improvements=1, last_tapes=6, epochs=8,
    k=8, hidden=16, validation_tapes=8,
)  # fmt: skip


def network(seed: int) -> CandidateScorer:
    """Return a random network that is sure of itself."""
    torch.manual_seed(seed)
    found = CandidateScorer(ScorerConfig(16))
    with torch.no_grad():
        for name, values in found.named_parameters():
            if name in ("score.weight", "wait.2.weight"):
                values.mul_(20.0)
    return found


def committee(*seeds: int) -> Committee:
    return Committee(CONFIG.servers, CONFIG.k, tuple(weights_of(network(seed)) for seed in seeds))


def seen(data: Demonstrations, at: int) -> Observation:
    return Observation(data.preemptor[at], data.cluster[at], data.candidates[at], data.mask[at])


def test_members_count_alike_and_nothing_illegal_is_said() -> None:
    three = committee(1, 2, 3)
    data = three.collect(0, 6)
    for at in range(len(data)):
        o = seen(data, at)
        legal = o.mask != 0
        if not legal.any():  # a tape without decisions
            continue
        alone = [score(member, o) for member in three.members]
        said = three.score(o)
        assert np.allclose(said[legal], np.mean(alone, axis=0)[legal], atol=1e-6)
        assert (said[~legal] == np.float32(-1e8)).all()
        p = np.exp(-data.losses[at])[legal]
        assert p.sum() == pytest.approx(1.0, abs=1e-5)
        assert data.losses[at][legal].argmin() == said[legal].argmax()
        assert (data.losses[at][~legal] == 0).all()


def test_unlikely_is_surprising() -> None:
    scores = np.array([0.0, np.log(3.0), -1e8], np.float32)
    found = log_loss(scores, np.array([1, 1, 0], np.int8))
    assert found == pytest.approx([np.log(4.0), np.log(4.0 / 3.0), 0.0], abs=1e-6)


def test_lessons_repeat_and_do_not_depend_on_processes() -> None:
    one, two = (committee(1, 2).collect(0, 6, workers) for workers in (1, 2))
    for name in vars(one):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_a_network_learns_to_decide_as_they_do() -> None:
    # Enough servers that waiting is among the choices.
    data = replace(committee(1, 2, 3), servers=("16*rtx4090",)).collect(0, 16)
    student, config = network(4), replace(CONFIG, batch_size=32, epochs=90)

    def agreement() -> float:
        inputs = [torch.from_numpy(getattr(data, name)) for name in list(vars(data))[:4]]
        with torch.no_grad():
            scores, _ = student.packed(*inputs)
        said = np.where(data.mask != 0, data.losses, np.inf).argmin(-1)
        return float((scores.argmax(-1).numpy() == said)[data.mask.any(-1)].mean())

    before = agreement()
    course = list(fit(student, data, config, 0, disagreement, unit=1.0))
    assert course[-1] < course[0]
    assert before < 0.65
    assert agreement() > 0.75


@pytest.mark.parametrize("best", range(3))
def test_other_tapes_say_who_is_kept(
    best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the best network, the one that learnt from the committee, and its improvement."""
    finals: list[float] = []

    def told(
        selector: Any, config: ImitationConfig, again: bool = False, ray: str | None = None
    ) -> float:
        loss = validate(selector, config, again)
        if again:
            finals.append(loss)
            loss -= len(finals) - 1 == best
        return loss

    monkeypatch.setattr(imitation, "validate", told)
    policy = train_imitation(CONFIG, tmp_path, 1, lambda _: None)
    assert len(finals) == 3
    assert validate(load_policy(policy), CONFIG, again=True) == finals[best]
    meta = read_meta(policy)
    assert min(meta["finalists"]) == meta["finalists"][best] == finals[best] - 1.0
    history = meta["validation_loss"]
    assert history[2:] == read_rounds(tmp_path / COMMITTEE)["losses"]
    played = validate(load_policy(policy), CONFIG)
    assert played == meta["validation"]["weighted_loss"]
    assert played == (min(history[:2]) if best == 0 else history[1 + best])
    assert not list(tmp_path.rglob("demonstrations*"))


def test_the_last_choice_is_made_on_other_tapes(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[int, int]] = []

    def play(_: Any, servers: tuple[str, ...], tapes: int, first: int, *_more: Any) -> Any:
        played.append((first, first + tapes))
        return np.zeros(1), 1.0

    monkeypatch.setattr(imitation, "play_validation", play)
    for again in (False, True):
        validate(make_selector("greedy-cost"), CONFIG, again)
    assert played == [(0, 8), (8, 40)]
