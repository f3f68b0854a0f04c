"""Readers of files that come from elsewhere: what each reads, and what holds of whatever it accepts."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import capture_texts
import numpy as np
import trace_texts
import yaml

from flextopo.cluster.topology.captures.load import load_server
from flextopo.cluster.topology.flextopo import build_graph
from flextopo.cluster.topology.model import ServerModel
from flextopo.cluster.topology.network import Network
from flextopo.cluster.topology.network_file import read_network
from flextopo.cluster.topology.resource import format_resource, graph_from_resource, to_resource
from flextopo.cluster.workload.trace_convert import convert_traces
from flextopo.cluster.workload.trace_readers import read_jobs, read_services
from flextopo.policies.ranges import FILE, read_ranges
from flextopo.policies.runtime import LearnedSelector, load_policy
from flextopo.policies.shipped import ZOO
from flextopo.policies.snapshot import build_state
from flextopo.policies.snapshot_format import decode
from flextopo.train.benchmark.entry import Entry, TrackResult, Values
from flextopo.train.benchmark.entry_file import load_entry, save_entry
from flextopo.train.benchmark.tracks import METRICS, TRACKS
from flextopo.train.benchmark.worlds import all_digests
from flextopo.train.results import load_results, load_scores, save_scores


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        seeds: good inputs, which are damaged.
        read: reads what was written to a path, and checks what it accepted.
    """

    seeds: tuple[bytes, ...]
    read: Callable[[Path], Any]


def read_demand(path: Path) -> None:
    """Rates are finite, 0 or more, of sorted names; whole days are; what is converted is the same."""
    found = read_services(path)
    assert found.names == tuple(sorted(set(found.names)))
    assert found.rates.shape[0] == len(found.names) >= 1
    assert np.isfinite(found.rates).all()
    assert (found.rates >= 0).all()
    assert found.first >= 0
    if found.aligned:
        assert found.first % 144 == found.rates.shape[1] % 144 == 0
    if found.rates.size < 10_000:
        again = path.with_name("converted.csv")
        again.write_text(convert_traces([path]).text, newline="")
        made = read_services(again)
        assert (made.names, made.first) == (found.names, found.first)
        np.testing.assert_array_equal(made.rates, found.rates)


def read_batch(path: Path) -> None:
    """Jobs are sorted, of whole GPUs in pods of up to 8; what is converted is the same."""
    found = read_jobs(path)
    assert len(found) >= 1
    assert (np.diff(found.submit_s) >= 0).all()
    assert found.submit_s[0] >= 0
    assert (found.duration_s >= 0).all()
    assert ((found.gpus >= 1) & (found.gpus <= 8)).all()
    assert (found.pods >= 1).all()
    assert ((found.rest >= 0) & (found.rest < found.gpus)).all()
    assert len(found.sources) == len(found.notes) == len(set(found.sources))
    assert set(found.source.tolist()) == set(range(len(found.sources)))
    again = path.with_name("converted.csv")
    again.write_text(convert_traces([path]).text, newline="")
    made = read_jobs(again)
    for field in ("submit_s", "duration_s", "gpus", "pods", "rest", "sources"):
        np.testing.assert_array_equal(getattr(made, field), getattr(found, field))


def read_server(path: Path) -> None:
    """A server has cores, and its resource tells the same server."""
    model, warnings = load_server(path)
    assert isinstance(model, ServerModel)
    assert sum(model.numa_cores) >= 1
    assert all("\n" not in warning for warning in warnings)
    graph = build_graph(model, "node-1")
    again = graph_from_resource(yaml.safe_load(format_resource(graph)))
    assert to_resource(again) == to_resource(graph)


def read_leaves(path: Path) -> None:
    """Every server has a leaf, and every leaf a block."""
    found, _ = read_network(path, 4)
    assert isinstance(found, Network)
    assert len(found.leaf) == len(found.block) == 4


def read_snapshot(path: Path) -> None:
    """No server holds more than it has."""
    state, preemptor = build_state(decode(path.read_bytes()))
    assert preemptor.gpus >= 0
    assert state.num_nodes >= 1


def read_meta(path: Path) -> None:
    """Whatever the metadata says, the weights fit to it."""
    _check_policy(path, json_of(META), path.read_bytes())


def read_limits(path: Path) -> None:
    """Ranges of a policy are pairs of finite numbers, one for each feature that it reads."""
    policy = load_policy("deepset-imitation")
    found = read_ranges(path, policy.names)
    assert {part: list(ranges) for part, ranges in found.features.items()} == policy.names
    for ranges in found.features.values():
        assert all(np.isfinite(pair).all() and pair[0] <= pair[1] for pair in ranges.values())
    assert found.servers[0] <= found.servers[1]
    assert found.allowed >= 0


def read_weights(path: Path) -> None:
    """The hash is that of the damaged file, so that it does not save the reader."""
    _check_policy(path, json_of(META), None)


def read_array(path: Path) -> None:
    """One damaged array among good ones, in a file that is otherwise whole."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, array in ARRAYS.items():
            file.writestr(f"{name}.npy", npy(array))
        file.writestr("own.weight.npy", path.read_bytes())
    path.write_bytes(packed.getvalue())
    read_weights(path)


def _check_policy(path: Path, meta: dict[str, Any], text: bytes | None) -> None:
    folder = path.with_name("policy")
    folder.mkdir(exist_ok=True)
    weights = path.read_bytes() if text is None else packed_arrays()
    (folder / "weights.npz").write_bytes(weights)
    meta = {**meta, "sha256": hashlib.sha256(weights).hexdigest()}
    (folder / "meta.json").write_bytes(json.dumps(meta).encode() if text is None else text)
    policy = load_policy(folder)
    assert isinstance(policy, LearnedSelector)
    assert policy.k >= 1
    for weight in policy.weights.values():
        assert weight.dtype == np.float32
        assert np.isfinite(weight).all()


def read_scores(path: Path) -> None:
    """A scores file has its selectors and seeds."""
    assert {"selectors", "seeds"} <= set(load_scores(path))


def read_entry(path: Path) -> None:
    """A result file of the benchmark has as many values as its tracks have games, and is written as it was read."""
    found = load_entry(path)
    for name, track in found.tracks.items():
        assert {len(values) for values in track.metrics.values()} == {TRACKS[name].num_games}
    again = path.with_name("again")
    save_entry(found, again)
    assert load_entry(again) == found


def read_results(path: Path) -> None:
    """A results file has its selectors."""
    assert load_results(path)["selectors"]


def json_of(text: bytes) -> dict[str, Any]:
    return dict(json.loads(text))


def npy(array: np.ndarray[Any, Any]) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array)
    return content.getvalue()


HIDDEN = 2
_ZOO_META = json_of((ZOO / "deepset-imitation" / "meta.json").read_bytes())
_FEATURES = _ZOO_META["features"]
_WIDE = len(_FEATURES["candidates"]), len(_FEATURES["preemptor"]) + len(_FEATURES["cluster"])
ARRAYS = {
    name: np.full(shape, 0.5, np.float32)
    for name, shape in {
        "candidate.weight": (HIDDEN, _WIDE[0]),
        "candidate.bias": (HIDDEN,),
        "shared.weight": (HIDDEN, _WIDE[1]),
        "own.bias": (HIDDEN,),
        "score.weight": (1, HIDDEN),
        "score.bias": (1,),
        "wait.0.weight": (HIDDEN, 2 * HIDDEN),
        "wait.0.bias": (HIDDEN,),
        "wait.2.weight": (1, HIDDEN),
        "wait.2.bias": (1,),
    }.items()
}
OWN = np.eye(HIDDEN, dtype=np.float32)


def packed_arrays() -> bytes:
    content = io.BytesIO()
    np.savez(content, **{**ARRAYS, "own.weight": OWN})  # type: ignore[arg-type]
    return content.getvalue()


META = json.dumps(
    {
        "name": "made",
        "k": 4,
        "features": _FEATURES,
        "hidden": HIDDEN,
        "context": False,
        "sha256": hashlib.sha256(packed_arrays()).hexdigest(),
        "versions": {"flextopo": "0.1.0"},
    }
).encode()

MATRIX = capture_texts.matrix([("0-3", "0"), ("4-7", "1")])
HWLOC = """<?xml version="1.0"?>
<!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0"><object type="Machine">
<object type="Package" os_index="0" cpuset="0x3"><object type="NUMANode" os_index="0" cpuset="0x3"/>
<object type="Core" os_index="0"><object type="PU" os_index="0"/></object>
<object type="Core" os_index="1"><object type="PU" os_index="1"/></object>
<object type="Bridge"><object type="PCIDev" pci_type="0302 [10de:20b0] [10de:134f] a1" pci_busid="0000:01:00.0">
<info name="PCIDevice" value="GA100"/></object></object></object></object></topology>
"""
ROCM = """
======================= ROCm System Management Interface =======================
========================== Link Type between two GPUs ==========================
       GPU0         GPU1
GPU0   0            XGMI
GPU1   XGMI         0
================================== Numa Nodes ==================================
GPU[0]\t\t: (Topology) Numa Node: 0
GPU[0]\t\t: (Topology) Numa Affinity: 0
GPU[1]\t\t: (Topology) Numa Node: 1
GPU[1]\t\t: (Topology) Numa Affinity: 1
============================= End of ROCm SMI Log ==============================
"""
LSCPU = """Architecture:        x86_64
CPU(s):              8
On-line CPU(s) list: 0-7
Thread(s) per core:  2
Core(s) per socket:  2
Socket(s):           2
NUMA node(s):        2
NUMA node0 CPU(s):   0,1,4,5
NUMA node1 CPU(s):   2,3,6,7
"""
LSCPU_JSON = json.dumps(
    {
        "lscpu": [
            {"field": f"{name}:", "data": value.strip()}
            for name, _, value in (line.partition(":") for line in LSCPU.splitlines())
        ]
    },
    indent=1,
)
AMD_NODES = [(0, "0-3"), (1, "4-7")]
AMD_TABLES = capture_texts.amd_tables([["SELF", "XGMI"], ["XGMI", "SELF"]])
CAPTURES = {
    "lscpu-p": "# CPU,Core,Socket,Node\n0,0,0,0\n1,1,0,0\n2,2,1,1\n3,3,1,1\n4,-,-,-\n",
    "lscpu": LSCPU,
    "lscpu-json": LSCPU_JSON,
    "nvidia-smi": MATRIX,
    "report": f"{LSCPU}\n{MATRIX}",
    "rocm-smi": f"{LSCPU}\n{ROCM}",
    "amd-smi": f"{LSCPU}\n{AMD_TABLES}\n{capture_texts.amd_static(AMD_NODES)}",
    "amd-smi-json": json.dumps(capture_texts.amd_static_entries(AMD_NODES), indent=1),
    "numa-config": 'numa_config = "1:0-7&0:8-15"\n',
    "hwloc": HWLOC,
    "nccl": capture_texts.nccl(
        ("0", "0f", capture_texts.pci("0000:01:00.0")),
        ("1", "f0", capture_texts.pci("0000:02:00.0")),
    ),
    "nccl-hosts": '<system version="1">'
    + "".join(
        f'<cpu host_hash="0x{i}" numaid="0" affinity="0f">{capture_texts.pci("0000:01:00.0")}</cpu>'
        for i in (1, 2)
    )
    + "</system>",
}
_SMALL = build_graph(ServerModel("made", (0, 1), (0, 1), (2, 2), gpu_island=(0, 1)), "node-1")
RESOURCE = (format_resource(_SMALL), format_resource(_SMALL, ".json"))
NETWORKS = (
    "leaves: {a: 2, b: [n2, n3]}\n",
    "blocks:\n  x: {a: 1, b: [n1]}\n  y: {a: [n2, n3]}\n",
    yaml.safe_dump_all(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"n{i}",
                "labels": {"cloud.provider.com/topology-rack": f"r{i // 2}"},
            },
        }
        for i in range(4)
    ),
    json.dumps(
        {
            "apiVersion": "topology.volcano.sh/v1alpha1",
            "kind": "HyperNode",
            "metadata": {"name": "leaf"},
            "spec": {
                "tier": 1,
                "members": [
                    {"type": "Node", "selector": {"exactMatch": {"name": f"n{i}"}}}
                    for i in range(4)
                ],
            },
        }
    ),
)
SNAPSHOT = {
    "servers": [
        {"name": "s0", "model": "rtx4090", "leaf": "a", "block": "x"},
        {
            "name": "s1",
            "hardware": {"gpu_numa": [0, 1], "numa_socket": [0, 1], "numa_cores": [4, 4]},
            "leaf": "a",
            "block": "x",
        },
    ],
    "pods": [
        {"name": "b0", "gpus": 2, "cores": 2, "priority": 1, "node": "s0", "gpus_held": [0, 1],
         "group": "g", "budget": "b", "batch_class": 1, "start_s": 5, "checkpoint_s": 60},
        {"name": "b1", "gpus": 1, "cores": 1, "priority": 2, "node": "s1", "protection_s": 3600},
        {"name": "p", "gpus": 2, "cores": 2, "priority": 9, "online": True, "requirement": "guaranteed",
         "required_level": "leaf"},
    ],
    "preemptor": "p",
    "budgets": [{"name": "b", "disruptions_allowed": 1}],
    "now_s": 100,
}  # fmt: skip


def saved_entry() -> bytes:
    """Return a result file of the track with fewest games."""
    count = TRACKS["gang"].num_games
    metrics: dict[str, Values] = {metric: [0.5] * count for metric in METRICS}
    metrics["weighted_loss"] = [2.5] * count  # of five terms
    metrics["hit_rate"] = [None] * count
    track = TrackResult(all_digests("gang"), 1.0, metrics)
    entry = Entry(
        "mine", "godel", "rule", "me", "a rule", "", {}, {"flextopo": "0"}, {"gang": track}
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "entry.json"
        save_entry(entry, path)
        return path.read_bytes()


def saved_scores() -> bytes:
    cell = {"mean": 0.5, "low": 0.5, "high": 0.5, "per_seed": [0.25, None]}
    results = {
        "selectors": {"godel": {"weighted_loss": cell}},
        "config": {"seeds_used": {"godel": [0, 1]}},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scores.npz"
        save_scores(results, path)
        return path.read_bytes()


RESULTS = json.dumps(
    {
        "selectors": {"godel": {"weighted_loss": {"mean": 0.5, "per_seed": [0.25, None]}}},
        "config": {"seeds_used": {"godel": [0, 1]}},
    }
).encode()

TARGETS = {
    **{f"trace-{k}": Target((t.encode(),), read_demand) for k, t in trace_texts.DEMAND.items()},
    **{f"trace-{k}": Target((t.encode(),), read_batch) for k, t in trace_texts.BATCH.items()},
    **{f"capture-{k}": Target((t.encode(),), read_server) for k, t in CAPTURES.items()},
    "flextopo": Target(tuple(text.encode() for text in RESOURCE), read_server),
    "network": Target(tuple(text.encode() for text in NETWORKS), read_leaves),
    "snapshot": Target((json.dumps(SNAPSHOT).encode(),), read_snapshot),
    "artifact-meta": Target((META,), read_meta),
    "artifact-ranges": Target(((ZOO / "deepset-imitation" / FILE).read_bytes(),), read_limits),
    "artifact-file": Target((packed_arrays(),), read_weights),
    "artifact-array": Target((npy(OWN),), read_array),
    "scores": Target((saved_scores(),), read_scores),
    "results": Target((RESULTS,), read_results),
    "bench-entry": Target((saved_entry(),), read_entry),
}
