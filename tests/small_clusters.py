"""Random small clusters for hypothesis: odd servers, and pods of every kind on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from flextopo.cluster.errors import PodError
from flextopo.cluster.scenario import NUM_SENSITIVITIES
from flextopo.cluster.state import arrays
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.topology.model import ServerModel

NOW_S = 100_000
PRIORITIES = (-10, -5, 0, 5, 10)
STATUSES = (
    *(arrays.RUNNING,) * 6,
    arrays.STARTING,
    arrays.TERMINATING,
    arrays.NOMINATED,
)


@dataclass(frozen=True)
class Resident:
    """A pod with where it runs and how it got there."""

    pod: Pod
    node: int
    shift: int
    status: int
    age_s: int
    leaves_in_s: int


@st.composite
def server_models(draw: st.DrawFn, name: str = "small") -> ServerModel:
    """Draw a server: 1-3 sockets, NUMA nodes without GPUs or cores, up to 8 GPUs anywhere, perhaps islands."""
    sockets = draw(st.integers(1, 3))
    more = draw(st.lists(st.integers(0, sockets - 1), max_size=4))
    numa_socket = draw(st.permutations([*range(sockets), *more]))
    n = len(numa_socket)
    gpu_numa = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    cores = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    islands = draw(st.booleans()) and draw(gpu_islands(gpu_numa))
    return ServerModel(
        name, tuple(gpu_numa), tuple(numa_socket), tuple(cores), gpu_island=tuple(islands or ())
    )


@st.composite
def gpu_islands(draw: st.DrawFn, gpu_numa: Sequence[int]) -> list[int]:
    """Draw the island of each GPU: up to two on a NUMA node."""
    parts = draw(st.lists(st.integers(0, 1), min_size=len(gpu_numa), max_size=len(gpu_numa)))
    keys = list(zip(gpu_numa, parts, strict=True))
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


@st.composite
def residents(draw: st.DrawFn, nodes: int) -> Resident:
    """Draw a pod and its node; its index and name are set later."""
    gpus, cores = draw(st.sampled_from([(0, 1), (0, 3), (1, 0), (1, 1), (1, 2), (2, 3), (4, 2)]))
    pod = Pod(
        index=0,
        name="",
        gpus=gpus,
        cores=cores,
        priority=draw(st.sampled_from(PRIORITIES)),
        online=draw(st.integers(0, 5)) == 0,
        preemptible=draw(st.integers(0, 7)) != 0,
        protection_s=draw(st.sampled_from((0, 0, 0, 500))),
        checkpoint_s=draw(st.sampled_from((0, 300, 900))),
        batch_class=draw(st.integers(0, 1)),
        group=draw(st.sampled_from((-1, -1, -1, 0, 1))),
        pdb=draw(st.sampled_from((-1, -1, -1, 0, 1))),
    )
    return Resident(
        pod,
        node=draw(st.integers(0, nodes - 1)),
        shift=draw(st.integers(0, 7)),
        status=draw(st.sampled_from(STATUSES)),
        age_s=draw(st.integers(0, 2000)),
        leaves_in_s=draw(st.sampled_from((0, 10, 10, 30, 45, NEVER_S))),
    )


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ClusterState, Pod]:
    """Draw up to 3 servers with pods on them, and a preemptor."""
    models = [draw(server_models("one")), draw(server_models("two"))]
    node_model = draw(st.lists(st.integers(0, 1), min_size=1, max_size=3))
    rows = draw(st.lists(residents(len(node_model)), max_size=14))
    pods = [replace(row.pod, index=i, name=f"pod/{i}") for i, row in enumerate(rows)]
    gpus = draw(st.integers(0, 5))
    preemptor = Pod(
        index=len(pods),
        name="pod/preemptor",
        gpus=gpus,
        cores=draw(st.integers(0 if gpus else 1, 8)),
        priority=draw(st.sampled_from(PRIORITIES[1:])),
        requirement=TopologyRequirement.GUARANTEED,
        online=True,
        deadline_s=draw(st.sampled_from((0, 30, 60, 300))),
        sensitivity=draw(st.integers(0, NUM_SENSITIVITIES - 1)),
    )
    allowed = draw(st.lists(st.integers(-1, 2), min_size=2, max_size=2))
    state = ClusterState.from_pods(
        models, node_model, [*pods, preemptor], pdb_allowed=allowed, now_s=NOW_S
    )
    for row, pod in zip(rows, pods, strict=True):
        settle(state, pod, row)
    state.arrays.live[preemptor.index]["queued_s"] -= draw(st.sampled_from((0, 0, 20, 100)))
    return state, preemptor


def settle(state: ClusterState, pod: Pod, row: Resident) -> None:
    """Put a pod on its node, on scattered GPUs, if it fits; else it stays pending."""
    mask = int(state.arrays.nodes[row.node]["gpu_free"])
    free = [gpu for gpu in range(16) if mask >> gpu & 1]
    shift = row.shift % max(len(free), 1)
    try:
        state.start(pod.index, row.node, (free[shift:] + free[:shift])[: pod.gpus])
    except PodError:
        return
    state.arrays.live[pod.index]["status"] = row.status
    state.arrays.live[pod.index]["since_s"] = NOW_S - row.age_s
    state.arrays.live[pod.index]["overhead_s"] = row.shift * 10
    if row.status == arrays.TERMINATING:
        state.arrays.live[pod.index]["next_s"] = NOW_S + row.leaves_in_s
