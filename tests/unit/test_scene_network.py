"""Pictures and text of clusters with a network: frames of leaves, and who belongs to a gang."""

import numpy as np
import pytest
import tapes

from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.network import Network, even_network
from flextopo.cluster.topology.servers import parse_servers
from flextopo.envs.arrangement import Leaf, arrange, leaves_of, square_columns
from flextopo.envs.gang_marks import GANG_COLOURS, gang_marks, where
from flextopo.envs.rendering import draw_cluster, print_cluster
from flextopo.envs.scene import THEMES, fleet_scene, make_scene

NETWORK = Network((1, 0, 1, 2), (0, 0, 0, 1), ("north", "south", "east"), ("hall 1", "hall 2"))


def with_a_gang() -> ClusterState:
    """Return 4 servers of 4 GPUs, a gang of two whole servers on leaves 0 and 1, and a single pod."""
    asked = TopologyRequirement.GUARANTEED
    gang = [Pod(i, f"g{i}", 4, 4, 1000, asked, online=True, group=7) for i in range(2)]
    state = ClusterState.from_pods(
        [tapes.DUO], [0] * 4, [*gang, Pod(2, "b", 2, 2, 100)], network=NETWORK
    )
    for pod, node in enumerate((0, 1, 2)):
        state.start(pod, node)
    return state


def test_leaves_of_a_block_stand_together() -> None:
    assert leaves_of(NETWORK) == (
        Leaf("north", "hall 1", (1,)),
        Leaf("south", "hall 1", (0, 2)),
        Leaf("east", "hall 2", (3,)),
    )
    assert leaves_of(None) == ()


def test_arrangement_by_hand() -> None:
    made = arrange((10, 20), 2, 4, leaves_of(NETWORK), 4)
    # Two servers are the widest leaf: two frames of 2 * 4 + 2 * 12 - 2 = 30 beside each other.
    assert made.frames == ((0, 0, 30, 34), (32, 0, 30, 34), (0, 44, 30, 34))
    assert made.origins == ((36, 10), (4, 10), (48, 10), (4, 54))
    assert (made.width, made.height) == (62, 78)


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 8, 16, 40])
@pytest.mark.parametrize(("servers", "leaf"), [(64, 8), (20, 8), (6, 32)])
def test_tiles_lie_in_the_frames_of_their_leaves(columns: int, servers: int, leaf: int) -> None:
    leaves = leaves_of(even_network(servers, leaf))
    made = arrange((7, 5), 2, servers, leaves, columns)
    covered = np.zeros((made.height, made.width), int)
    for (x, y, w, h), each in zip(made.frames, leaves, strict=True):
        covered[y : y + h, x : x + w] += 1
        for node in each.nodes:
            left, top = made.origins[node]
            assert x < left < left + 7 < x + w
            assert y < top < top + 5 < y + h
    assert covered.max() == 1
    tiles = np.zeros_like(covered)
    for left, top in made.origins:
        tiles[top : top + 5, left : left + 7] += 1
    assert tiles.max() == 1


def test_64_servers_make_a_square_of_whole_leaves() -> None:
    scene = fleet_scene(parse_servers("64*a100@leaf8"))
    assert scene.columns() == 8
    made = scene.arrange(8)
    assert 0.8 < made.width / made.height < 1.25
    assert square_columns((10, 10), 2, 64, leaves_of(even_network(64, 64))) == 8


def test_gangs_are_named_and_listed() -> None:
    state = with_a_gang()
    (mark,) = gang_marks(state)
    assert (mark.group, mark.name, mark.nodes) == (7, "2 x 4 GPUs", (0, 1))
    assert mark.level == NetworkLevel.BLOCK
    assert where(NETWORK, mark.level, 0) == "within hall 1"
    assert where(NETWORK, NetworkLevel.LEAF, 3) == "within east"
    assert where(NETWORK, NetworkLevel.SERVER, 3) == "on server 3"
    text = print_cluster(state).splitlines()
    # A snapshot knows numbers of leaves and blocks, a simulation names.
    assert text[1:7] == [
        "block 0, leaf 0",
        "    1 GG|GG",
        "block 0, leaf 1",
        "    0 GG|GG      2 bb|..",
        "block 1, leaf 2",
        "    3 ..|..",
    ]
    assert text[7] == "gang 7: 2 x 4 GPUs within block 0, nodes 0 1"


def test_the_picture_frames_leaves_and_gangs() -> None:
    state = with_a_gang()
    picture = draw_cluster(state)
    scene = make_scene(state.models, [0] * 4, NETWORK)
    made = scene.arrange(scene.columns())
    factor = picture.shape[1] // (made.width + 2 * scene.gap)
    small = picture[::factor, ::factor][scene.gap :, scene.gap :]
    for x, y, w, h in made.frames:
        for corner in ((y, x), (y + h - 1, x), (y, x + w - 1)):
            assert (small[corner] == THEMES["light"]["leaf"]).all()
    colour = GANG_COLOURS[7 % len(GANG_COLOURS)][0]
    for node, (left, top) in enumerate(made.origins):
        tile = small[top : top + scene.tile_height, left : left + scene.tile_width]
        assert (tile == colour).all(2).any() == (node in (0, 1))
        x, y, *_ = scene.tiles[0].gpus[0]
        assert ((tile[y - 2, x] == colour).all()) == (node in (0, 1))
