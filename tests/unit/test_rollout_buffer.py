"""The discount by time against closed forms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sb3_contrib")

from gymnasium import spaces

from flextopo.train.rollout_buffer import REWARD_SCALE, TimedRolloutBuffer

TAU_S = 3600.0
SPACE = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (1,), np.float32)})


def returns_of(
    spans: list[float], rewards: list[float], last: float, end: bool = False, lam: float = 1.0,
    values: list[float] | None = None,
) -> Any:  # fmt: skip
    """Return what a rollout of one environment makes of its rewards."""
    clock = SimpleNamespace(elapsed_s=np.zeros(1))
    buffer = TimedRolloutBuffer(
        len(spans), SPACE, spaces.Discrete(2), "cpu", lam, 0.0, 1, clock=clock, tau_s=TAU_S
    )
    for i, (span, reward) in enumerate(zip(spans, rewards, strict=True)):
        clock.elapsed_s = np.array([span])
        value = torch.tensor([[values[i] if values else 0.0]])
        shown = {"x": np.zeros((1, 1), np.float32)}
        buffer.add(
            shown, np.zeros((1, 1)), np.array([reward]), np.zeros(1), value, torch.zeros(1),
            action_masks=np.ones((1, 2)),
        )  # fmt: skip
    buffer.compute_returns_and_advantage(torch.tensor([[last]]), np.array([end]))
    return buffer


@pytest.mark.parametrize("cuts", [[1.0], [0.5, 0.5], [0.01, 0.29, 0.0, 0.7]])
def test_a_constant_rate_is_worth_the_same_however_often_one_decides(cuts: list[float]) -> None:
    """Rate c for two hours, then a value V: c tau (1 - e^-2) + e^-2 V, for any decision times."""
    rate, last = -0.002, -3.0
    spans = [2 * 3600.0 * cut for cut in cuts]
    found = returns_of(spans, [rate * span for span in spans], last)
    known = REWARD_SCALE * rate * TAU_S * (1 - np.exp(-2.0)) + np.exp(-2.0) * last
    assert found.returns[0, 0] == pytest.approx(known, rel=1e-5)


def test_a_semi_markov_chain_has_its_closed_form() -> None:
    """Two states in turn, held for a and b seconds, losing 1 and 0 a second, for ever."""
    a, b = 600.0, 1800.0
    ea, eb = np.exp(-a / TAU_S), np.exp(-b / TAU_S)
    first = REWARD_SCALE * TAU_S * (1 - ea) / (1 - ea * eb)
    turns = 40
    found = returns_of([a, b] * turns, [a, 0.0] * turns, first)
    assert found.returns[0, 0] == pytest.approx(first, rel=1e-5)
    assert found.returns[1, 0] == pytest.approx(eb * first, rel=1e-5)


def test_the_end_of_a_day_has_nothing_behind_it() -> None:
    found = returns_of([60.0], [0.0], last=7.0, end=True)
    assert found.returns[0, 0] == 0.0


def test_lambda_mixes_what_the_critic_says_and_what_happened() -> None:
    found = returns_of([3600.0, 3600.0], [0.0, 0.0], last=1.0, lam=0.0, values=[0.5, 0.25])
    assert found.advantages[:, 0] == pytest.approx([np.exp(-1) * 0.25 - 0.5, np.exp(-1) - 0.25])
    found = returns_of([3600.0, 3600.0], [0.0, 0.0], last=1.0, lam=1.0, values=[0.5, 0.25])
    assert found.advantages[:, 0] == pytest.approx([np.exp(-2) - 0.5, np.exp(-1) - 0.25])
