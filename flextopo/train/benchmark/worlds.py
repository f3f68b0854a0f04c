"""Digests of what a game is played on, so that two results are known to be of the same worlds."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from flextopo.cluster.scenario import Scenario
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.tape import Tape
from flextopo.train.benchmark.tracks import Game, frozen
from flextopo.train.config import ComparisonConfig
from flextopo.train.stress_run import make_world

FIELDS = (
    *("arrive_s", "depart_s", "duration_s", "start_s", "gpus", "cores", "priority"),
    *("checkpoint_s", "protection_s", "group", "next_member", "min_members", "required_tier"),
    *("preferred_tier", "pdb", "service", "deadline_s", "sensitivity", "batch_class", "online"),
    *("requirement", "preemptible"),
)
"""What version 1 knows of a pod: a field that comes later does not change a digest."""

LENGTH = 16
"""Hexadecimal digits of a digest that are kept: 64 bits, against mistakes and not against forgers."""


def world_digest(tape: Tape, fleet: Fleet, scenario: Scenario) -> str:
    """Return the first digits of the SHA-256 of a tape, its servers, their network and the loss."""
    found = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        array = np.ascontiguousarray(value, np.int64)
        found.update(f"{name} {array.shape} ".encode())
        found.update(array.astype("<i8").tobytes())

    for name in ("end_s", "warmup_s", "grace_s", "restart_s", "backoff_s", "pdb_allowed"):
        add(name, getattr(tape, name))
    for name in FIELDS:
        add(name, tape.pods[name])
    for model in fleet.models:
        for name in ("gpu_numa", "numa_socket", "numa_cores", "gpu_island"):
            add(name, getattr(model, name))
    add("node_model", fleet.node_model)
    if fleet.network is not None:
        add("leaf", fleet.network.leaf)
        add("block", fleet.network.block)
    found.update(repr(sorted(asdict(scenario.weights).items())).encode())
    found.update(f"{scenario.admission} {scenario.deadline} {scenario.backfill}".encode())
    return found.hexdigest()[:LENGTH]


def game_digest(job: tuple[ComparisonConfig, Game]) -> str:
    """Return the digest of the world of a game."""
    config, game = job
    changed, tape, fleet = make_world(config, game.perturbation, game.seed)
    return world_digest(tape, fleet, changed.scenario)


def all_digests(name: str) -> str:
    """Return one digest of all worlds of a track, which result files hold."""
    return hashlib.sha256(" ".join(frozen()[name].digests).encode()).hexdigest()
