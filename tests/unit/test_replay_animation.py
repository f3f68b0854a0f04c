"""A day as a GIF: its pictures follow the recordings, and its counters are those of the metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flextopo.cli.app import main
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.envs.scene import LETTERS
from flextopo.train.config import ComparisonConfig
from flextopo.train.replay import Frame, Recording
from flextopo.train.replay_animation import PICTURES, sample
from flextopo.train.replay_page import Games, record_games

image = pytest.importorskip("PIL.Image")
CONFIG = ComparisonConfig(servers="8*rtx4090", workload=WorkloadConfig())
NAMES = ("greedy-cost", "requeue-aware")


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Games:
    return record_games(CONFIG, NAMES, 1_000_001, tmp_path_factory.mktemp("day") / "day.gif")


def test_counters_are_those_of_the_metrics(games: Games) -> None:
    end = games.sim.tape.end_s
    pods = games.sim.state.arrays.pods["gpus"]
    for recording in games.recordings:
        side = sample(recording, np.array([end // 2, end]), 64, pods)
        demanded = games.sim.tape.demanded_gpu_s() / 3600
        assert side.lost_gpu_h[-1] == pytest.approx(recording.metrics["weighted_loss"] * demanded)
        assert side.evicted[-1] == recording.metrics["gpus_evicted"] > 0
        assert 0 <= side.evicted[0] <= side.evicted[-1]


def test_what_was_evicted_since_the_last_picture_shows(games: Games) -> None:
    recording = games.recordings[0]
    (time_s, _), choice = next(
        (moment, choice) for moment, choice in recording.choices.items() if choice.taken
    )
    assert choice.chosen is not None
    pods = games.sim.state.arrays.pods["gpus"]
    times = np.array([time_s - 1, time_s + 900, time_s + 901])
    found = sample(recording, times, 64, pods)
    evicted = found.uses == LETTERS.index("x")
    victims = choice.shown[choice.chosen].victims
    assert evicted[1].sum() >= pods[list(victims)].sum() > 0
    assert np.isin(found.pods[0][evicted[1]], victims).any()
    assert evicted[2].sum() <= evicted[1].sum()  # it is over by then, unless another came
    assert (found.uses[2][found.pods[2] < 0] != LETTERS.index("b")).all()


def test_who_is_nominated_on_free_gpus_has_nobody_evicted() -> None:
    batch, nominated, evicted = (LETTERS.index(letter) for letter in "bnx")
    frames = [
        Frame(0, -1, ((0, 0, batch),), (0.0,), 0, 0),
        Frame(50, 0, ((0, 1, nominated), (1, 1, nominated)), (0.0,), 0, 0),
    ]
    found = sample(Recording("x", frames=frames), np.array([10, 60]), 3, np.ones(2, np.int32))
    assert found.uses.tolist() == [[batch, 0, 0], [evicted, nominated, 0]]


@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_the_command_writes_an_animation(names: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "day.gif"
    chosen = [word for name in names for word in ("-s", name)]
    with pytest.raises(SystemExit) as stop:
        main(["replay", *chosen, "--servers", "4*rtx4090", "--hours", "6", "-o", str(out)])
    assert not stop.value.code
    with image.open(out) as found:
        assert found.n_frames > PICTURES // 2  # pictures in which nothing changes are joined
        first = np.asarray(found.convert("RGB"))
        found.seek(found.n_frames - 1)
        assert (np.asarray(found.convert("RGB")) != first).any()
    assert out.stat().st_size < 2_000_000
