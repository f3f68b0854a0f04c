"""A policy as a rule that can be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import flextopo
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.observation.features import NUM_CANDIDATE, F
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import VALIDATION
from flextopo.policies.linear_rule import TERMS, LinearRule
from flextopo.policies.selectors import find_selector
from flextopo.train.demonstrations import decisions, tape_for
from flextopo.train.distil import (
    Choices,
    agreement,
    collect,
    distil,
    fit_weights,
    load_distilled,
    rule_of,
    term_rows,
)

SAVED = Path(flextopo.__file__).parents[1] / "docs/results/distilled.json"


def test_terms_are_in_natural_units() -> None:
    features = np.zeros((2, NUM_CANDIDATE))
    features[0, [F.largest_victim, F.evicted_gpus, F.victims_fit]] = 4 / 16, 8 / 32, 0.75
    rule = LinearRule("rule", {"largest_victim": 1.0, "gpus_without_place": 10.0})
    assert rule.penalties(features).tolist() == [4.0 + 10.0 * 2.0, 0.0]


def test_the_least_penalty_is_taken_and_nobody_waits() -> None:
    rule = LinearRule("small", {"largest_victim": 1.0})
    sim = tape_for(parse_servers("4*rtx4090"), WorkloadConfig(), VALIDATION[0])
    asked = 0
    for pod, found, count, o in decisions(sim, rule.k, NUM_CANDIDATE):
        sizes = o.candidates[:count, F.largest_victim]
        least = int(sizes.argmin())  # of equals the cheapest
        expected = sim.state.candidate_at(found, least, pod)
        chosen = rule.select(sim.state, pod)
        assert chosen == expected
        sim.apply(chosen)
        asked += 1
    assert asked


def test_a_rule_of_the_first_term_alone_is_greedy() -> None:
    rule = flextopo.simulate(LinearRule("dearer", {"dearer": 1.0}), servers="4*rtx4090")
    greedy = flextopo.simulate("greedy-cost", servers="4*rtx4090")
    assert rule.weighted_loss == greedy.weighted_loss


def test_terms_that_are_none_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="cheaper"):
        LinearRule("rule", {"cheaper": 1.0})


def test_weights_that_made_choices_are_found() -> None:
    rng = np.random.default_rng(0)
    terms = rng.random((4000, 5, len(TERMS))).astype(np.float32)
    legal = np.ones((4000, 5), np.bool_)
    legal[:, 4] = False
    luck = rng.gumbel(size=(4000, 5))
    logits = np.where(legal, -(4.0 * terms[..., 2] - 2.0 * terms[..., 7]) + luck, -np.inf)
    choices = Choices(terms, legal, logits.argmax(1))
    weights, _ = fit_weights(choices, [2, 7])
    assert weights == pytest.approx([4.0, -2.0], abs=0.25)
    assert agreement(choices, [2, 7], weights) > agreement(choices, [2, 7], -weights)


def test_it_is_the_same_for_any_number_of_workers() -> None:
    seeds = [0, 1, 2]
    for one, two in zip(
        collect("deepset-imitation", seeds), collect("deepset-imitation", seeds, 2), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_a_policy_is_put_into_a_rule(tmp_path: Path) -> None:
    found = distil("deepset-imitation", 3, 12, 6)
    assert found["terms"][0]["weight"] == 1.0
    assert found["terms"][-1]["agreement"] > found["cheapest"]
    path = tmp_path / "rule.json"
    path.write_text(json.dumps(found))
    again = load_distilled(path)
    assert str(rule_of(again)).count(" x ") == 3
    assert len(term_rows(again)) == 4
    with pytest.raises(FlextopoError, match="terms"):
        distil("deepset-imitation", 99, 1, 1)


@pytest.mark.skipif(not SAVED.exists(), reason="installed without docs")
def test_the_example_plays_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SAVED.parents[2])
    rule = find_selector("examples.distilled_rule:RULE")
    assert isinstance(rule, LinearRule)
    assert rule == rule_of(load_distilled(SAVED))
