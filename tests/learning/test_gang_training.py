"""Imitation where replicas span servers, from scratch and from a policy that knows no gangs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import FEATURES, NUM_WITH_GANGS
from flextopo.cluster.topology.servers import parse_servers
from flextopo.policies.artifact import load_network
from flextopo.policies.runtime import load_policy
from flextopo.train.committee import Committee
from flextopo.train.config import ImitationConfig
from flextopo.train.demonstrations import Demonstrator, workload_on
from flextopo.train.imitation import play_validation, train_imitation, validate
from flextopo.train.rounds import weights_of

SERVERS = ("8*a100@leaf4", "2*a100")
MEMBERS = list(FEATURES["candidates"]).index("members")
CONFIG = ImitationConfig(
    servers=SERVERS, networks=1, members=0, tapes=4, rounds=0, improvements=1, last_tapes=4,
    epochs=1, k=4, validation_tapes=4, start="deepset-imitation", gang_share=0.5,
)  # fmt: skip


def test_gangs_are_drawn_where_there_is_a_network() -> None:
    shares = [workload_on(parse_servers(servers), 0.5).gang_share for servers in SERVERS]
    assert shares == [0.5, 0.0]


@pytest.mark.parametrize("gang_share", [0.0, 0.5])
def test_demonstrations_and_lessons_are_of_gangs_if_asked_for(gang_share: float) -> None:
    weights = weights_of(load_network("deepset-imitation", NUM_WITH_GANGS))
    for player in (
        Demonstrator(SERVERS[:1], 4, 3600, weights, gang_share=gang_share),
        Committee(SERVERS[:1], 4, (weights,), gang_share),
    ):
        members = player.collect(0, 12).candidates[..., MEMBERS]
        assert (members.max() > 1 / 16) == (gang_share > 0)


def test_a_policy_that_knows_no_gangs_is_trained_on_them(tmp_path: Path) -> None:
    folder = train_imitation(CONFIG, tmp_path, 1, lambda _: None)
    policy = load_policy(folder)
    assert policy.names["candidates"] == list(FEATURES["candidates"])[:NUM_WITH_GANGS]
    before = weights_of(load_network(CONFIG.start, NUM_WITH_GANGS))
    moved = np.abs(policy.weights["candidate.weight"] - before["candidate.weight"])
    assert not before["candidate.weight"][:, MEMBERS].any()
    assert moved[:, MEMBERS].any()
    assert moved.max() < 0.1  # it went on from there


def test_networks_are_chosen_on_days_with_gangs() -> None:
    policy = load_policy(CONFIG.start)
    with_gangs, _ = play_validation(policy, SERVERS, 4, gang_share=0.5)
    assert validate(policy, CONFIG) == np.mean(with_gangs)
    assert validate(policy, replace(CONFIG, gang_share=0.0)) != np.mean(with_gangs)


@pytest.mark.parametrize(
    ("change", "legal"),
    [({"start": ""}, "rounds = 0 without start"), ({"gang_share": 1.5}, "gang_share = 1.5; legal")],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], legal: str) -> None:
    with pytest.raises(FlextopoError, match=legal):
        replace(CONFIG, **change)
