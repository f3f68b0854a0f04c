"""What other agents write on pods: read where it makes sense, and harmless where it does not."""

import json
from typing import Any

import pytest
from kube_objects import RTX4090, flextopo, full_node, make_cache, node, pod, read

from flextopo.policies.serving import sources
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.sources import Zone, read_held


def held(name: str, value: Any) -> sources.Held:
    text = value if isinstance(value, str) else json.dumps(value)
    return read_held({name: text}, "pod 'x'", [])


def test_what_each_of_them_says() -> None:
    uuids = ("GPU-1", "GPU-2")
    nvsentinel = {"devices": {"nvidia.com/gpu": list(uuids), "other/nic": ["x"]}}
    assert held(sources.NVSENTINEL, nvsentinel).ids == uuids
    hami = "GPU-1,NVIDIA,24000,100:GPU-2,NVIDIA,24000,100:;;"
    assert held(sources.HAMI, hami) == sources.Held(ids=uuids)
    assert held(sources.HAMI, "GPU-1,NVIDIA,3000,30:;").shared
    whole = {"koordinator.sh/gpu-core": "100", "koordinator.sh/gpu-memory-ratio": "100"}
    gpus = [{"minor": 3, "resources": whole}, {"minor": 5, "resources": whole}]
    assert held(sources.KOORDINATOR_DEVICES, {"gpu": gpus, "rdma": []}).gpus == (3, 5)
    half = [{"minor": 3, "resources": {**whole, "koordinator.sh/gpu-core": "50"}}]
    assert held(sources.KOORDINATOR_DEVICES, {"gpu": half}).shared
    assert held(sources.KOORDINATOR_CPUS, {"cpuset": "0-2,8"}).cores == (0, 1, 2, 8)
    zones = (Zone(0, 2, 8), Zone(1, 1, 0))
    listed = [
        {"zone": "node-0", "amount": {"nvidia.com/gpu": "2", "cpu": "8", "memory": "1Gi"}},
        {"zone": "node-1", "amount": {"nvidia.com/gpu": "1"}},
    ]
    assert held(sources.KAI, listed).zones == zones
    older = {"nvidia.com/gpu": {"0": 2, "1": 1}, "cpu": {"0": 8}}
    assert held(sources.KAI, older).zones == zones


BAD: list[tuple[str, Any]] = [
    (sources.NVSENTINEL, {}),
    (sources.NVSENTINEL, []),
    (sources.NVSENTINEL, "x"),
    (sources.NVSENTINEL, {"devices": 1}),
    (sources.NVSENTINEL, {"devices": {"a": 1}}),
    (sources.HAMI, ""),
    (sources.HAMI, ";;;"),
    (sources.HAMI, ",,,"),
    (sources.HAMI, "::"),
    (sources.KOORDINATOR_DEVICES, {"gpu": [{}]}),
    (sources.KOORDINATOR_DEVICES, {"gpu": [{"minor": 1, "resources": [1]}]}),
    (sources.KOORDINATOR_DEVICES, {"gpu": [{"minor": -1}]}),
    (sources.KOORDINATOR_DEVICES, {"gpu": [{"minor": 10**12}]}),
    (sources.KOORDINATOR_CPUS, {"cpuset": 5}),
    (sources.KOORDINATOR_CPUS, {"cpuset": []}),
    (sources.KOORDINATOR_CPUS, {"cpuset": "a-b"}),
    (sources.KOORDINATOR_CPUS, {"cpuset": "9-1"}),
    (sources.KAI, [{}]),
    (sources.KAI, [{"amount": []}]),
    (sources.KAI, [{"zone": "0", "amount": 5}]),
    (sources.KAI, {"cpu": {"0": -99999}, "nvidia.com/gpu": {"0": 1}}),
    (sources.KAI, {"cpu": {"0": -20}, "nvidia.com/gpu": {"0": 1}}),
    (sources.KAI, {"nvidia.com/gpu": {"0": 2, "1": -1}}),
    (sources.KAI, {"cpu": {"0": 10**9}, "nvidia.com/gpu": {"0": 1}}),
    (sources.KAI, {"nvidia.com/gpu": {"99999": 1}}),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_nonsense_is_passed_over_and_the_pod_stays(name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    documents = [node("n0"), flextopo("n0", {})]
    cache = make_cache([*documents, pod("p", "n0", annotations={name: text})])
    state = cache.nodes.states["n0"]
    assert [record.name for record in state.counted.records] == ["p"]
    assert state.counted.num_gpus == 7
    assert (state.sure.cores_free >= 0).all()
    assert (state.sure.cores_free <= RTX4090.numa_cores).all()


def test_nonsense_of_our_own_is_told_of() -> None:
    faults = list[str]()
    assert read_held({sources.GPUS_HELD: "x"}, "pod 'x'", faults) == sources.NOTHING
    (fault,) = faults
    assert "pod 'x': flextopo/gpus" in fault


def test_zones_suffice_and_are_believed_only_if_they_add_up() -> None:
    def state_of(zones: dict[str, dict[str, int]]) -> Any:
        told = {sources.KAI: json.dumps(zones)}
        placed = pod("p", "n0", gpus=2, cpu="14", annotations=told)
        return make_cache([node("n0"), flextopo("n0", {}), placed]).nodes.states["n0"]

    state = state_of({"nvidia.com/gpu": {"0": 1, "1": 1}, "cpu": {"0": 7, "1": 7}})
    assert state.known
    mask = state.holding("uid-p")[0]
    assert sorted(RTX4090.gpu_numa[g] for g in range(8) if mask >> g & 1) == [0, 1]
    assert not state_of({"nvidia.com/gpu": {"0": 1}, "cpu": {"0": 14}}).known
    assert not state_of({"nvidia.com/gpu": {"0": 1, "1": 1}, "cpu": {"0": 1}}).known


@pytest.mark.parametrize(
    ("cpus", "known"),
    [("0-1,64-65", True), ("0-3", True), ("64-67", True), ("0-3,128", False), ("0-4", False)],
)
def test_cpus_are_hardware_threads(cpus: str, known: bool) -> None:
    """64 cores in the FlexTopo object, 128 CPUs in the Node: each core has two threads."""
    placed = pod("p", "n0", cpu="4", annotations={"flextopo/gpus": "0", "flextopo/cores": cpus})
    cache = make_cache([node("n0", cpu=128), flextopo("n0", {}), placed])
    state = cache.nodes.states["n0"]
    assert state.hardware.server.num_cores == 128
    assert state.known is known
    assert state.counted.num_cores == 124
    if cpus == "0-1,64-65":
        assert state.sure.cores_free[0] == 12
    # Marks of FlexTopo are of whole cores.
    marked = [node("n0", cpu=128), flextopo("n0", {"p": [0]}), pod("p", "n0", cpu="14")]
    assert make_cache(marked).nodes.states["n0"].known


def test_a_pod_of_96_cpus_fits_on_128_of_64_cores() -> None:
    cache = make_cache([node("n0", cpu=128), flextopo("n0", {}), pod("p", gpus=8, cpu="96")])
    state = cache.nodes.states["n0"]
    assert state.counted.num_cores == 128
    assert cache.pods["uid-p"].cores == 96


def test_one_node_that_cannot_be_worked_out_takes_no_other_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_cache([*full_node(), *full_node("n1")])
    derive = ClusterCache.derive

    def fails(self: ClusterCache, name: str, without: Any = ()) -> Any:
        if name == "n0":
            raise ValueError("odd")
        return derive(self, name, without)

    monkeypatch.setattr(ClusterCache, "derive", fails)
    for name in ("n0", "n1"):
        cache.put(read(pod(f"late-{name}", name, gpus=0)))
    assert set(cache.nodes.states) == {"n1"}
    assert "odd" in cache.problems["Node n0"]


def test_no_cores_by_annotation_mean_the_shared_pool() -> None:
    documents = [node("n0"), flextopo("n0", {})]
    placed = pod("p", "n0", annotations={"flextopo/gpus": "0", "flextopo/cores": ""})
    state = make_cache([*documents, placed]).nodes.states["n0"]
    assert state.known
    assert state.counted.num_cores == 64
    told_less = pod("p", "n0", annotations={"flextopo/gpus": "0"})
    assert not make_cache([*documents, told_less]).nodes.states["n0"].known


def test_no_gpus_by_annotation_are_as_if_it_was_not_there() -> None:
    documents = [node("n0"), flextopo("n0", {"p": [3]})]
    for annotations in ({"flextopo/gpus": ""}, {"flextopo/gpus": " "}, {}):
        placed = pod("p", "n0", annotations=annotations)
        state = make_cache([*documents, placed]).nodes.states["n0"]
        assert state.known, annotations
        assert state.counted.gpu_free == 0b1111_0111
