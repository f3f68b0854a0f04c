"""Pictures and text of a cluster: geometry by hand, pixels against it, and what recorders need."""

import itertools
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tapes

from flextopo.cluster.state.arrays import NOMINATED, TERMINATING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.model import PRESETS, ServerModel
from flextopo.envs.preemption import PreemptionEnv
from flextopo.envs.rendering import draw_cluster, gpu_uses, print_cluster
from flextopo.envs.scene import LEGEND, LETTERS, THEMES, first_gpus, make_scene, occupants

WIDE = ServerModel("wide", (0, 1, 0, 1, 2, 2, 3, 3) * 2, (0, 0, 1, 1), (8, 8, 8, 8))
"""16 GPUs, numbered across the NUMA nodes."""


def one_of_each() -> ClusterState:
    """Return a server of 16 GPUs on which every use of a GPU occurs."""
    asked = TopologyRequirement
    pods = [
        Pod(0, "G", 1, 1, 1000, asked.GUARANTEED, online=True),
        Pod(1, "O", 2, 1, 1000, asked.BEST_EFFORT, online=True),
        Pod(2, "n", 1, 1, 1000, asked.GUARANTEED, online=True),
        Pod(3, "m", 1, 1, 500, batch_class=1),
        Pod(4, "b", 3, 1, 100),
        Pod(5, "x", 1, 1, 100),
        Pod(6, "c", 0, 2, 100),
    ]
    state = ClusterState.from_pods([WIDE, tapes.DUO], [1, 0], pods)
    places: tuple[list[int], ...] = ([0], [2, 3], [5], [15], [6, 7, 8], [9], [])
    for pod, gpus in enumerate(places):
        state.start(pod, 1, gpus)
    state.arrays.live["status"][2], state.arrays.live["status"][5] = NOMINATED, TERMINATING
    return state


def test_uses_by_hand() -> None:
    state = one_of_each()
    pods, uses = occupants(state)
    assert first_gpus(state).tolist() == [0, 4, 20]
    free = [-1] * 4
    assert pods.tolist() == [*free, 0, -1, 1, 1, -1, 2, 4, 4, 4, 5, -1, -1, -1, -1, -1, 3]
    assert "".join(LETTERS[use] for use in uses) == "....G.OO.nbbbx.....m"
    assert gpu_uses(state, 1) == list("G.OO.nbbbx.....m")


def test_geometry_by_hand() -> None:
    scene = make_scene([tapes.DUO], [0, 0, 0])
    (tile,) = scene.tiles
    # Each socket holds one NUMA node of two cells of 12 with a gap of 1 and edges of 2.
    assert tile.sockets == ((3, 9, 33, 20), (3, 32, 33, 20))
    assert tile.numa_nodes == ((5, 11, 29, 16), (5, 34, 29, 16))
    assert tile.gpus == ((7, 13, 12, 12), (20, 13, 12, 12), (7, 36, 12, 12), (20, 36, 12, 12))
    assert (scene.tile_width, scene.tile_height) == (39, 55)
    assert scene.columns() == 3
    assert scene.origin(1, 2) == (8 + 39 + 8, 8)
    assert scene.origin(2, 2) == (8, 8 + 55 + 8)


@pytest.mark.parametrize("models", [[PRESETS["rtx4090"], PRESETS["a100"]], [WIDE, tapes.DUO]])
def test_boxes_lie_in_their_parents_and_apart(models: list[ServerModel]) -> None:
    scene = make_scene(models, [0, 1])
    for tile, model in zip(scene.tiles, models, strict=True):
        assert len(tile.gpus) == model.num_gpus
        whole = (0, 0, scene.tile_width, scene.tile_height)
        levels = ([whole], list(tile.sockets), list(tile.numa_nodes), list(tile.gpus))
        for parents, boxes in itertools.pairwise(levels):
            covered = np.zeros((scene.tile_height, scene.tile_width), int)
            for x, y, w, h in boxes:
                covered[y : y + h, x : x + w] += 1
                assert any(
                    px <= x and py <= y and x + w <= px + pw and y + h <= py + ph
                    for px, py, pw, ph in parents
                )
            assert covered.max() == 1


def test_the_picture_has_the_scenes_colours() -> None:
    state = one_of_each()
    scene = make_scene(state.models, [1, 0])
    picture = draw_cluster(state)
    columns = scene.columns()
    width = scene.gap + columns * (scene.tile_width + scene.gap)
    rows = math.ceil(2 / columns)
    height = scene.gap + rows * (scene.tile_height + scene.gap)
    factor = picture.shape[0] // (height + height % 2)
    assert picture.shape == (factor * (height + height % 2), factor * (width + width % 2), 3)
    small = picture[::factor, ::factor]
    assert (small[0, 0] == THEMES["light"]["page"]).all()
    for node, model in enumerate((1, 0)):
        left, top = scene.origin(node, columns)
        for (x, y, w, h), letter in zip(
            scene.tiles[model].gpus, gpu_uses(state, node), strict=True
        ):
            cell = small[top + y : top + y + h, left + x : left + x + w]
            use = LEGEND[letter]
            assert (cell[:3] == use.light).all()
            inside = (cell == use.light).all(2).mean()
            assert inside == 1.0 if not use.mark else 0.3 < inside < 1.0


def test_colours_differ_on_both_pages() -> None:
    for theme in ("light", "dark"):
        colours = [getattr(use, theme) for use in LEGEND.values()]
        gaps = [math.dist(a, b) for i, a in enumerate(colours) for b in colours[:i]]
        assert min(gaps) > 40


def test_text_fits_a_terminal_with_16_gpus_a_server() -> None:
    pods = [Pod(i, f"p{i}", 16, 1, 100) for i in range(40)]
    many = ServerModel("many", tuple(range(16)), (0, 1, 2, 3, 4, 5, 6, 7) * 2, (4,) * 16)
    for model in (WIDE, many):
        state = ClusterState.from_pods([model], [0] * 1000, pods)
        for pod in range(40):
            state.start(pod, 25 * pod)
        text = print_cluster(state)
        assert max(map(len, text.splitlines())) <= 80
        assert "".join(text.splitlines()[1:-3]).count("b") == 16 * 40
        assert sum("999" in line for line in text.splitlines()) == 1


def test_a_recorder_of_frames_works() -> None:
    env: Any = gym.wrappers.RenderCollection(PreemptionEnv("2*a100", render_mode="rgb_array"))
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)
    frames = env.render()
    assert len(frames) == 4
    assert len({frame.shape for frame in frames}) == 1
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0


def test_record_video_writes_a_film(tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="moviepy is not installed")
    inner = PreemptionEnv("2*a100", render_mode="rgb_array")
    env: Any = gym.wrappers.RecordVideo(
        inner, str(tmp_path / "films"), video_length=6, disable_logger=True
    )
    env.reset(seed=0)
    for _ in range(6):
        env.step(0)
    env.close()
    (film,) = (tmp_path / "films").glob("*.mp4")
    assert film.stat().st_size > 1000
