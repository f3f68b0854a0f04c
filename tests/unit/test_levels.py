"""The table of levels, what reads it, and the level that is off by default: islands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium
import msgspec
import networkx as nx
import numpy as np
import pytest
import tapes

import flextopo  # noqa: F401  registers the environments
from flextopo.baselines.exact import minimum
from flextopo.baselines.registry import make_selector
from flextopo.cluster.errors import TopologyError
from flextopo.cluster.observation.features import FEATURES, NUM_CANDIDATE
from flextopo.cluster.scenario import SENSITIVITIES, LossWeights
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.loss import compile_costs, speeds_of
from flextopo.cluster.state.placement import alignment_level, best_level, place
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.captures.load import TopologyWarning, load_server
from flextopo.cluster.topology.flextopo import build_graph
from flextopo.cluster.topology.levels import (
    BELOW,
    LAST_ALIGNED,
    LEVELS,
    NO_FIT,
    NUM_DEFICITS,
    POINTS,
    AlignmentLevel,
    level_of,
)
from flextopo.cluster.topology.model import ServerModel, compile_models, preset
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import to_resource, write_resource
from flextopo.cluster.topology.servers import parse_servers
from flextopo.policies.runtime import load_policy
from flextopo.policies.serving import openapi, shadow
from flextopo.policies.serving.hardware import Hardware, HardwareCatalogue, read_spec
from flextopo.policies.serving.objects import FlexTopoObject
from flextopo.policies.snapshot import build_state, decode

MATRIX = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\tNUMA Affinity
GPU0\t X \tPIX\tNODE\tSYS\t0-7\t0
GPU1\tPIX\t X \tNODE\tSYS\t0-7\t0
GPU2\tNODE\tNODE\t X \tSYS\t0-7\t0
GPU3\tSYS\tSYS\tSYS\t X \t8-15\t1
"""
PAIRS = ServerModel("pairs", (0, 0, 0, 0), (0, 1), (8, 8), gpu_island=(0, 0, 1, 1))


def test_the_table_is_in_the_order_of_the_numbers_and_prices_get_worse() -> None:
    assert list(LEVELS) == sorted(AlignmentLevel)
    assert len(LEVELS) == NO_FIT
    assert list(BELOW) == sorted(BELOW)
    assert list(POINTS) == sorted(POINTS, reverse=True)
    assert [about.aligned for about in LEVELS.values()] == [
        level <= LAST_ALIGNED for level in LEVELS
    ]
    for kind in SENSITIVITIES.values():
        speeds = speeds_of(kind)
        assert speeds[0] == 1.0
        assert len(speeds) == NUM_DEFICITS
        inside, above = speeds[:NO_FIT], (1.0, *speeds[NO_FIT:])
        assert list(inside) == sorted(inside, reverse=True)
        assert list(above) == sorted(above, reverse=True)
    assert compile_costs(LossWeights(), 30, 60).misaligned[0] == 0.0


def test_every_level_has_a_feature() -> None:
    names = {f"level_{level.name.lower()}" for level in AlignmentLevel}
    assert names <= set(FEATURES["candidates"])


def test_kernels_follow_the_table_on_random_servers_and_free_resources() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        sockets = int(rng.integers(1, 4))
        numa_socket = sorted([*range(sockets), *rng.integers(0, sockets, 3).tolist()])
        gpu_numa = rng.integers(0, len(numa_socket), int(rng.integers(1, 9))).tolist()
        keys = [(u, int(rng.integers(2))) for u in gpu_numa]
        islands = tuple(dict(zip(dict.fromkeys(keys), range(99), strict=False))[k] for k in keys)
        model = ServerModel(
            "random",
            tuple(gpu_numa),
            tuple(numa_socket),
            tuple(rng.integers(0, 7, len(numa_socket)).tolist()),
            gpu_island=islands if rng.random() < 0.5 else (),
        )
        tables = compile_models([model])
        free = int(rng.integers(1 << model.num_gpus))
        cores = [int(rng.integers(n + 1)) for n in model.numa_cores]
        gpus, wanted = int(rng.integers(5)), int(rng.integers(1, 9))
        expected = level_of(model.domains, free, cores, gpus, wanted)
        kernel = alignment_level(tables, 0, free, np.array(cores, np.int16), gpus, wanted)
        assert kernel == (NO_FIT if expected is None else expected)
        best = model.best_level(gpus, wanted)
        assert best_level(tables, 0, gpus, wanted) == (NO_FIT if best is None else best)
        seen.add(int(kernel))
    assert seen == {*map(int, AlignmentLevel), NO_FIT}


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.txt"
    path.write_text(MATRIX)
    return path


def test_islands_are_off_until_they_are_asked_for(matrix: Path) -> None:
    model, _ = load_server(matrix)
    assert model.gpu_island == ()
    assert {domain.level for domain in model.domains} == set(AlignmentLevel) - {
        AlignmentLevel.ISLAND
    }
    told, _ = load_server(matrix, islands=True)
    assert told.gpu_island == (0, 0, 1, 2)
    assert told.domains[0] == (AlignmentLevel.ISLAND, 0b0011, (0,))
    with pytest.warns(TopologyWarning, match="lists only the CPUs of NUMA nodes"):
        models = parse_servers(f"2*{matrix}+islands").models
    assert models[0].gpu_island == told.gpu_island


def test_a_resource_keeps_islands(matrix: Path) -> None:
    told, _ = load_server(matrix, islands=True)
    graph = build_graph(told, "node-1")
    assert graph.nodes["gpu-1"]["attributes"]["island"] == "0"
    again, _ = server_model_from_graph(graph)
    assert again.gpu_island == told.gpu_island
    graph.nodes["gpu-1"]["attributes"]["island"] = "north"
    with pytest.raises(TopologyError, match="island 'north' of gpu-1; legal: a number for every"):
        server_model_from_graph(graph)


@pytest.mark.parametrize(
    ("links", "islands"),
    [
        (("NV4", "SYS", "SYS"), (0, 0, 1, 2)),  # NVLink goes before PCIe
        (("NV4", "NV4", "NV4"), None),  # an NVSwitch joins all
        (("SYS", "SYS", "SYS"), None),
        (("PXB", "SYS", "SYS"), (0, 0, 1, 2)),
    ],
)
def test_links_tell_islands(
    links: tuple[str, str, str], islands: tuple[int, ...] | None, tmp_path: Path
) -> None:
    def link(a: int, b: int) -> str:
        pair = (min(a, b), max(a, b))
        return "X" if a == b else links[0] if pair == (0, 1) else links[1 + (pair == (2, 3))]

    lines = ["\t" + "\t".join([*(f"GPU{i}" for i in range(4)), "CPU Affinity", "NUMA Affinity"])]
    for a in range(4):
        lines.append("\t".join([f"GPU{a}", *(link(a, b) for b in range(4)), "0-7", "0"]))
    path = tmp_path / "topo.txt"
    path.write_text("\n".join(lines))
    if islands is None:
        with pytest.raises(
            TopologyError, match="tells no islands of its 4 GPUs; legal: nvidia-smi"
        ):
            load_server(path, islands=True)
    else:
        assert load_server(path, islands=True)[0].gpu_island == islands


def test_an_island_that_spans_numa_nodes_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "topo.txt"
    path.write_text(MATRIX.replace("GPU2\tNODE\tNODE\t X \tSYS", "GPU2\tNODE\tNODE\t X \tPIX"))
    model, warnings = load_server(path, islands=True)
    assert model.gpu_island == (0, 0, 1, 2)
    assert "the island of GPU2, GPU3 spans NUMA nodes; cut into one a NUMA node" in warnings[-1]


@pytest.mark.parametrize(
    ("islands", "message"),
    [
        ((0, 0), "islands of 2 GPUs; legal: of all 4"),
        ((0, 0, 2, 2), r"island numbers \[0, 2\]; legal: 0, 1, ... dense"),
    ],
)
def test_illegal_islands(islands: tuple[int, ...], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        ServerModel("bad", (0, 0, 1, 1), (0, 1), (8, 8), gpu_island=islands)
    with pytest.raises(TopologyError, match=r"island 0 on NUMA nodes \[0, 1\]; legal: on one"):
        ServerModel("bad", (0, 0, 1, 1), (0, 1), (8, 8), gpu_island=(0, 0, 0, 0))


def test_a_preset_knows_its_islands_or_says_so() -> None:
    (model,) = parse_servers("a100+islands").models
    assert model.gpu_island == (0, 0, 1, 1, 2, 2, 3, 3)
    assert parse_servers("a100").models == (preset("a100"),)
    with pytest.raises(TopologyError, match=r"no islands are known; legal: a100\+islands, or"):
        parse_servers("rtx4090+islands")


def test_a_pod_sits_on_one_island_where_it_can() -> None:
    tables = compile_models([PAIRS])
    taken = np.zeros(8, np.int16)
    assert place(tables, 0, 0b1111, np.array([8, 8], np.int16), 2, 4, taken) == (
        AlignmentLevel.ISLAND,
        0b0011,
    )
    assert taken[:2].tolist() == [4, 0]
    # One GPU of each pair is free: a NUMA node, but no island.
    level, mask = place(tables, 0, 0b0110, np.array([8, 8], np.int16), 2, 4, taken)
    assert (level, mask) == (AlignmentLevel.NUMA, 0b0110)
    # A pod without GPUs has no use for an island, and is not misplaced beside them.
    assert best_level(tables, 0, 0, 4) == AlignmentLevel.NUMA


def test_selectors_pay_for_a_broken_island() -> None:
    """Four single jobs, equal but for one GPU-hour: a whole pair is worth more than that."""
    pods = [Pod(i, f"ns/{i}", 1, 1, 100, checkpoint_s=900) for i in range(4)]
    llm = Pod(4, "ns/llm", 2, 2, 1000, TopologyRequirement.BEST_EFFORT, online=True)
    pods.append(replace(llm, sensitivity=list(SENSITIVITIES).index("linked")))
    state = ClusterState.from_pods([PAIRS], [0], pods, now_s=500)
    for i in range(4):
        state.start(i, 0, [i])
    state.arrays.live["since_s"][:4] = [0, 250, 250, 0]  # GPUs 1 and 2 have the least to lose
    preemptor = state.pod(4)
    cheapest = compile_costs(LossWeights(misalignment=0.0), 30, 60)
    for name in ("greedy-cost", "exact"):
        chosen = make_selector(name).select(state, preemptor)
        assert chosen is not None
        assert (chosen.level, len(chosen.victims)) == (AlignmentLevel.ISLAND, 2)
    state.costs = cheapest
    found = minimum(state, preemptor, aligned=True)
    assert found is not None
    assert set(found[2]) == {1, 2}


def test_environments_and_policies_with_islands() -> None:
    env = gymnasium.make("flextopo/Preempt-A100-v0", servers="2*a100+islands", k=8)
    space = env.observation_space["candidates"]  # type: ignore[index]
    assert space.shape == (8, NUM_CANDIDATE + 1)
    observation, _ = env.reset(seed=0)
    seen = set()
    for _ in range(40):
        assert env.observation_space.contains(observation)
        legal = observation["candidates"][observation["action_mask"][:-1] == 1]
        seen |= set(legal[:, -1].tolist())
        observation, _, _, over, _ = env.step(0)
        if over:
            observation, _ = env.reset()
    assert seen == {0.0, 1.0}
    # A policy that knows nothing of islands plays there as well: it reads what it knows by name.
    policy = load_policy("deepset-imitation")
    assert policy.width == NUM_CANDIDATE
    sim = env.unwrapped.simulator  # type: ignore[attr-defined]
    pod = sim.state.pod(int(sim.events.clock[0]["asked"]))
    policy.select(sim.state, pod)


def test_a_policy_trained_on_islands_reads_them_wherever_it_plays(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from flextopo.policies.artifact import load_network
    from flextopo.train.config import ImitationConfig
    from flextopo.train.imitation import train_imitation

    config = ImitationConfig(
        servers=("2*a100+islands",), networks=1, members=0, tapes=4, rounds=1, improvements=1,
        last_tapes=2, epochs=1, k=4, hidden=4, validation_tapes=2,
    )  # fmt: skip
    folder = train_imitation(config, tmp_path, 1, lambda _: None)
    policy = load_policy(folder)
    assert policy.names["candidates"][-1] == "level_island"
    for servers in ("2*a100+islands", "2*a100"):
        tape, fleet = tapes.make_tape(servers, 1)
        Simulator(tape, fleet, policy.filter).play(policy)
    # And the other way round: what does not know islands learns them from nothing.
    wider = load_network("deepset-imitation", NUM_CANDIDATE + 1)
    assert wider.config.width == NUM_CANDIDATE + 1
    assert not wider.candidate.weight[:, -1].any()


def test_the_service_tells_servers_with_islands_from_those_without() -> None:
    catalogue = HardwareCatalogue()
    plain, pairs = preset("a100"), preset("a100+islands")
    other = replace(pairs, gpu_island=(0, 1, 0, 1, 2, 3, 2, 3))
    found: list[Hardware] = []
    for server in (plain, pairs, other, plain, pairs):
        resource = flextopo_object(build_graph(server, f"n{len(found)}"))
        found.append(catalogue.of_flextopo(resource, read_spec(resource)))
    assert [hardware.model for hardware in found] == [0, 1, 2, 0, 1]
    assert [hardware.server.gpu_island for hardware in found[:3]] == [
        (),
        pairs.gpu_island,
        other.gpu_island,
    ]


def flextopo_object(graph: nx.DiGraph) -> FlexTopoObject:
    return msgspec.json.decode(msgspec.json.encode(to_resource(graph)), type=FlexTopoObject)


def test_whoever_prints_levels_knows_them_all() -> None:
    names = {level.name.lower() for level in AlignmentLevel}
    assert names <= set(shadow.LEVELS)
    assert names <= set(openapi.DECISION["properties"]["level"]["enum"])


def test_islands_in_snapshots_and_of_presets() -> None:
    document = {
        "servers": [{"name": "n0", "model": "a100+islands"}],
        "pods": [{"name": "ns/llm", "gpus": 2, "cores": 4, "priority": 1000, "online": True}],
        "preemptor": "ns/llm",
    }
    state, asking = build_state(decode(msgspec.json.encode(document)))
    chosen = make_selector("greedy-cost").select(state, asking)
    assert chosen is not None
    assert chosen.level == AlignmentLevel.ISLAND


def test_nested_switches_and_a_second_file_keep_islands(matrix: Path, tmp_path: Path) -> None:
    gpus = "".join(
        f'<pci busid="0000:{i}0:00.0" class="0x060400"><pci busid="0000:{i}1:00.0" class="0x030200" '
        f'vendor="0x10de"><gpu dev="{i}"/></pci></pci>'
        for i in range(2)
    )
    dump = tmp_path / "nccl.xml"
    dump.write_text(
        '<system version="1"><cpu numaid="0" affinity="000000ff" arch="x86_64">'
        f'<pci busid="0000:01:00.0" class="0x060400">{gpus}</pci>'
        '<pci busid="0000:31:00.0" class="0x030200" vendor="0x10de"><gpu dev="2"/></pci>'
        "</cpu></system>"
    )
    assert load_server(dump, islands=True)[0].gpu_island == (0, 0, 1)
    told, _ = load_server(matrix, islands=True)
    resource = tmp_path / "node.yaml"
    write_resource(build_graph(told, "node-1"), resource)
    assert load_server(resource, matrix)[0].gpu_island == told.gpu_island
