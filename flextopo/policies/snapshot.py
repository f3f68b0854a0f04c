"""A cluster as one JSON document, and a decision about it as another: no cluster needed.

{"servers": [{"name", "model"}], "pods": [...], "budgets": [...], "now_s", "preemptor"}; `Snapshot`
states every field. Nothing here imports torch or gymnasium.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from flextopo.cluster.errors import FlextopoError, PodError
from flextopo.cluster.state.arrays import may_evict
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.model import ServerModel, preset
from flextopo.policies.serving.records import CLASS_BANDS, REQUIREMENTS, batch_class
from flextopo.policies.serving.runner import (
    FALLBACK_FACTOR,
    SelectorRunner,
    SelectorTimeoutError,
    UndecidableError,
)

POD_BITS = {
    "gpus": 15,
    "cores": 15,
    "priority": 31,
    "protection_s": 31,
    "checkpoint_s": 31,
    "batch_class": 7,
    "start_s": 53,
}
"""Bits that hold a pod's numbers; larger ones are refused."""


class SnapshotError(FlextopoError):
    """Report a snapshot that is not one, with the path of the field."""


class Server(msgspec.Struct, forbid_unknown_fields=True):
    """A node: its name, and a preset's name or the server itself in `hardware`."""

    name: str
    model: str = ""
    hardware: Hardware | None = None


class Hardware(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where a server's GPUs and cores are; see `ServerModel`."""

    gpu_numa: tuple[int, ...]
    numa_socket: tuple[int, ...]
    numa_cores: tuple[int, ...]
    gpu_island: tuple[int, ...] = ()


class SnapshotPod(msgspec.Struct, forbid_unknown_fields=True):
    """A pod; with `node` it runs there, on `gpus_held` or where the node would have put it.

    Without a `batch_class` its priority tells, by bands.
    """

    name: str
    gpus: int
    cores: int
    priority: int
    node: str = ""
    gpus_held: tuple[int, ...] | None = None
    requirement: str = "none"
    online: bool = False
    preemptible: bool = True
    protection_s: int = 0
    checkpoint_s: int = 0
    batch_class: int | None = None
    group: str = ""
    budget: str = ""
    start_s: int = 0


class Budget(msgspec.Struct, forbid_unknown_fields=True):
    """A disruption budget: how many of its pods may still be disrupted."""

    name: str
    disruptions_allowed: int


class Snapshot(msgspec.Struct, forbid_unknown_fields=True):
    """Nodes, pods, the pending pod in question, and the time in seconds."""

    servers: list[Server]
    pods: list[SnapshotPod]
    preemptor: str
    budgets: list[Budget] = []
    now_s: int = 0


def decode(body: bytes) -> Snapshot:
    """Read a snapshot.

    Raises:
        SnapshotError: not JSON, or a field is missing, unknown or of another type.
    """
    try:
        return msgspec.json.decode(body, type=Snapshot)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(f"snapshot: {error}") from None


def build_state(snapshot: Snapshot, bands: Sequence[int] = CLASS_BANDS) -> tuple[ClusterState, Pod]:
    """Return the cluster and the pending pod that a snapshot describes.

    Args:
        snapshot: the cluster.
        bands: priorities from which on batch pods are of class 1, 2, ..., where they state none.

    Raises:
        FlextopoError: an unknown name, a name used twice, or pods that do not fit together.
    """
    nodes = _index("server", [server.name for server in snapshot.servers])
    budgets = _index("budget", [budget.name for budget in snapshot.budgets])
    _check_size("now_s", snapshot.now_s, 53)
    for i, budget in enumerate(snapshot.budgets):
        _check_size(f"budgets[{i}].disruptions_allowed", budget.disruptions_allowed, 31)
    names = _index("pod", [pod.name for pod in snapshot.pods])
    groups = {pod.group: i for i, pod in enumerate(snapshot.pods)}
    models: dict[str | Hardware, ServerModel] = {}
    kind_of = [_kind(server, models) for server in snapshot.servers]
    if not kind_of:
        raise SnapshotError("snapshot: servers has none; legal: one at least")
    index = {kind: i for i, kind in enumerate(models)}
    pods = [_pod(i, pod, groups, budgets, bands) for i, pod in enumerate(snapshot.pods)]
    state = ClusterState.from_pods(
        list(models.values()),
        [index[kind] for kind in kind_of],
        pods,
        pdb_allowed=[budget.disruptions_allowed for budget in snapshot.budgets],
        now_s=snapshot.now_s,
    )
    # Pods on known GPUs first: what the others got can only be guessed from what is left.
    for i, pod in sorted(enumerate(snapshot.pods), key=lambda item: item[1].gpus_held is None):
        if pod.node:
            state.start(i, _find("server", pod.node, nodes), pod.gpus_held)
            state.arrays.live[i]["since_s"] = pod.start_s
    preemptor = _find("pod", snapshot.preemptor, names)
    if snapshot.pods[preemptor].node:
        raise SnapshotError(f"preemptor {snapshot.preemptor!r} runs already; legal: a pending pod")
    return state, state.pod(preemptor)


def decide(
    snapshot: Snapshot,
    selector: VictimSelector,
    fallback: VictimSelector,
    runner: SelectorRunner | None = None,
    budget_s: float = 60.0,
    bands: Sequence[int] = CLASS_BANDS,
) -> dict[str, Any]:
    """Choose victims for the snapshot's preemptor, with reasons.

    Args:
        snapshot: the cluster.
        selector: decides.
        fallback: decides where the selector fails or answers what is not allowed.
        runner: keeps the selector within its time; a new one by default.
        budget_s: seconds that the selector may take, and a fifth of those of the fallback.
        bands: see `build_state`.

    Returns:
        `node` (None = do not preempt now), `victims` by descending importance, `gpus`, `level`,
        `selector`, `fallback` (None or why the fallback answered), `cause` (the same in a word),
        `reasons`, `elapsed_ms`.

    Raises:
        FlextopoError: the snapshot is not legal.
        UndecidableError: the fallback failed too.
    """
    begin = time.perf_counter()
    state, preemptor = build_state(snapshot, bands)
    runner = runner or SelectorRunner()
    used, why, cause = selector, None, ""
    try:
        candidate = runner.select(selector, state, preemptor, budget_s)
        check(state, preemptor, candidate)
    except Exception as error:  # noqa: BLE001  whatever a model does, the baseline answers
        used, why = fallback, f"{type(error).__name__}: {error}"
        cause = "model_error"
        if isinstance(error, SelectorTimeoutError):
            # The selector may still read what it was given.
            state, preemptor = build_state(snapshot, bands)
            cause = "timeout"
        if isinstance(error, PodError):
            cause = "guard"
        try:
            candidate = runner.select(fallback, state, preemptor, FALLBACK_FACTOR * budget_s)
            check(state, preemptor, candidate)
        except Exception as second:
            raise UndecidableError(f"{why}; and the baseline: {second}") from second
    answer: dict[str, Any] = {"node": None, "victims": [], "gpus": [], "level": None}
    if candidate is not None:
        answer = {
            "node": snapshot.servers[candidate.node].name,
            "victims": [state.name(victim) for victim in candidate.victims],
            "gpus": [gpu for gpu in range(64) if candidate.gpu_mask >> gpu & 1],
            "level": candidate.level.name.lower(),
        }
    return {
        **answer,
        "selector": used.name,
        "fallback": why,
        "cause": cause,
        "reasons": _reasons(state, candidate),
        "elapsed_ms": (time.perf_counter() - begin) * 1000.0,
    }


def check(state: ClusterState, preemptor: Pod, candidate: Candidate | None) -> None:
    """Refuse a decision that must not be carried out.

    Raises:
        PodError: a victim is not on the node or may not be evicted for the preemptor, the preemptor
            does not fit, is guaranteed and not aligned, or would fit with one victim less.
    """
    if candidate is None:
        return
    victims = candidate.victims
    state.slots_of(candidate.node, victims)  # refuses what is not there before a kernel reads it
    for victim in victims:
        if not may_evict(state.arrays, victim, preemptor.priority):
            raise PodError(f"victim {state.name(victim)!r} may not be evicted")
    guaranteed = AlignmentFilter.OWN.binds(preemptor)

    def fits(gone: tuple[int, ...]) -> bool:
        found = state.candidate(candidate.node, gone, preemptor)
        return found is not None and (not guaranteed or state.is_aligned(found, preemptor))

    if not fits(victims):
        raise PodError(f"{preemptor.name!r} does not fit on node {candidate.node} without them")
    for victim in victims:
        if fits(tuple(other for other in victims if other != victim)):
            raise PodError(f"victim {state.name(victim)!r} is not needed")


def _reasons(state: ClusterState, candidate: Candidate | None) -> list[str]:
    if candidate is None:
        return ["no victim set that is worth it, or none at all"]
    reasons = [f"placed on {candidate.level.name.lower()} level"]
    for victim in map(state.pod, candidate.victims):
        run = state.now_s - (victim.start_s or 0)
        reasons.append(
            f"{victim.name}: priority {victim.priority}, {victim.gpus} GPUs, running {run} s"
        )
    return reasons


def _index(kind: str, names: list[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    for i, name in enumerate(names):
        if index.setdefault(name, i) != i:
            raise SnapshotError(f"snapshot: {kind} {name!r} is used twice; legal: once")
    return index


def _find(kind: str, name: str, index: dict[str, int]) -> int:
    if name not in index:
        raise SnapshotError(f"snapshot: {kind} {name!r} is unknown; legal: one of the {kind}s")
    return index[name]


def _kind(server: Server, models: dict[str | Hardware, ServerModel]) -> str | Hardware:
    """Return what equal servers have in common, and see that its model is there."""
    hardware = server.hardware
    if hardware is None and server.model:
        if server.model not in models:
            models[server.model] = preset(server.model)
        return server.model
    if hardware is None or server.model:
        raise SnapshotError(f"snapshot: server {server.name!r}; legal: either model or hardware")
    if hardware not in models:
        models[hardware] = ServerModel(
            f"hardware of {server.name}",
            hardware.gpu_numa,
            hardware.numa_socket,
            hardware.numa_cores,
            gpu_island=hardware.gpu_island,
        )
    return hardware


def _check_size(field: str, value: int, bits: int) -> None:
    limit = 1 << bits
    if not -limit < value < limit:
        raise SnapshotError(f"snapshot: {field} = {value}; legal: above -{limit}, below {limit}")


def _pod(
    index: int,
    pod: SnapshotPod,
    groups: dict[str, int],
    budgets: dict[str, int],
    bands: Sequence[int],
) -> Pod:
    if pod.requirement not in REQUIREMENTS:
        raise SnapshotError(
            f"snapshot: pods[{index}].requirement = {pod.requirement!r}; "
            f"legal: {', '.join(REQUIREMENTS)}"
        )
    for field, bits in POD_BITS.items():
        _check_size(f"pods[{index}].{field}", getattr(pod, field) or 0, bits)
    kind = pod.batch_class
    return Pod(
        index=index,
        name=pod.name,
        gpus=pod.gpus,
        cores=pod.cores,
        priority=pod.priority,
        requirement=REQUIREMENTS[pod.requirement],
        online=pod.online,
        preemptible=pod.preemptible,
        protection_s=pod.protection_s,
        checkpoint_s=pod.checkpoint_s,
        batch_class=batch_class(pod.priority, pod.online, bands) if kind is None else kind,
        group=groups[pod.group] if pod.group else -1,
        pdb=_find("budget", pod.budget, budgets) if pod.budget else -1,
    )
