"""A cluster as one JSON document, and a decision about it as another: no cluster needed.

{"servers": [{"name", "model"}], "pods": [...], "budgets": [...], "now_s", "preemptor"}; `Snapshot`
states every field. With several pods in "preemptor" the decision is about a gang. Nothing here imports
torch or gymnasium.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from flextopo.baselines.policies import GreedyCost
from flextopo.cluster.errors import PodError
from flextopo.cluster.state.arrays import may_evict
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import ALL_MEMBERS
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.levels import TIERS
from flextopo.cluster.topology.model import ServerModel, preset
from flextopo.policies.serving.records import CLASS_BANDS, REQUIREMENTS, batch_class
from flextopo.policies.serving.runner import (
    FALLBACK_FACTOR,
    SelectorRunner,
    SelectorTimeoutError,
    UndecidableError,
)
from flextopo.policies.snapshot_format import (
    Hardware,
    Server,
    Snapshot,
    SnapshotError,
    SnapshotPod,
    decode,
)
from flextopo.policies.snapshot_gang import (
    check_gang,
    gang_answer,
    gang_members,
    join_gang,
    set_levels,
    snapshot_network,
)

__all__ = ["Snapshot", "SnapshotError", "build_state", "check", "decide", "decode"]

POD_BITS = {
    "gpus": 15,
    "cores": 15,
    "priority": 31,
    "protection_s": 31,
    "checkpoint_s": 31,
    "batch_class": 7,
    "min_members": 31,
    "start_s": 53,
}
"""Bits that hold a pod's numbers; larger ones are refused."""

COMPILE_S = 120.0
"""Seconds that a selector may take for the first gang of a process."""

SMALL_GANG = Snapshot(
    servers=[Server(f"n{i}", "a100", leaf="leaf") for i in range(2)],
    pods=[
        SnapshotPod("b", 8, 8, 0, node="n0"),
        *(SnapshotPod(f"g{i}", 8, 8, 1, online=True) for i in range(2)),
    ],
    preemptor=["g0", "g1"],
)
"""What kernels are compiled with."""

_compiled: set[str] = set()


class SnapshotState(ClusterState):
    """A cluster at one moment.

    Attributes:
        out_of_range: a policy that left the decision to its rule says here why; see `InRange`.
    """

    def __init__(self, *args: Any, **about: Any) -> None:
        super().__init__(*args, **about)
        self.out_of_range: list[str] = []


def build_state(
    snapshot: Snapshot, bands: Sequence[int] = CLASS_BANDS
) -> tuple[SnapshotState, Pod]:
    """Return the cluster and the pending pod that a snapshot describes; of a gang, its first member.

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
    network = snapshot_network(snapshot.servers)
    snapshot = join_gang(snapshot, network)
    groups = {pod.group: i for i, pod in enumerate(snapshot.pods)}
    _check_groups(snapshot.pods)
    models: dict[str | Hardware, ServerModel] = {}
    kind_of = [_kind(server, models) for server in snapshot.servers]
    if not kind_of:
        raise SnapshotError("snapshot: servers has none; legal: one at least")
    index = {kind: i for i, kind in enumerate(models)}
    pods = [_pod(i, pod, groups, budgets, bands) for i, pod in enumerate(snapshot.pods)]
    made = SnapshotState.from_pods(
        list(models.values()),
        [index[kind] for kind in kind_of],
        pods,
        pdb_allowed=[budget.disruptions_allowed for budget in snapshot.budgets],
        now_s=snapshot.now_s,
        network=network,
    )
    state = cast("SnapshotState", made)
    set_levels(state, snapshot.pods)
    # Pods on known GPUs first: what the others got can only be guessed from what is left.
    for i, pod in sorted(enumerate(snapshot.pods), key=lambda item: item[1].gpus_held is None):
        if pod.node:
            state.start(i, _find("server", pod.node, nodes), pod.gpus_held)
            state.arrays.live[i]["since_s"] = pod.start_s
    preemptors = [_find("pod", name, names) for name in gang_members(snapshot)]
    for row in preemptors:
        if snapshot.pods[row].node:
            name = snapshot.pods[row].name
            raise SnapshotError(f"preemptor {name!r} runs already; legal: a pending pod")
    return state, state.pod(min(preemptors))


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
        fallback: decides where the selector fails or answers what is not allowed; about gangs
            `greedy-cost` does.
        runner: keeps the selector within its time; a new one by default.
        budget_s: seconds that the selector may take, and a fifth of those of the fallback.
        bands: see `build_state`.

    Returns:
        `node` (None = do not preempt now), `victims` by descending importance, `gpus`, `level`,
        `selector`, `fallback` (None or why the fallback answered), `cause` (the same in a word),
        `reasons`, `elapsed_ms`. Of a gang node and GPUs are those of its first member, the level is the
        worst, and there are `members` with name, node, GPUs, cores of each NUMA node and level,
        `network_level`, `cost_gpu_s` and `wait_s`.

    Raises:
        FlextopoError: the snapshot is not legal.
        UndecidableError: the fallback failed too.
    """
    runner = runner or SelectorRunner()
    is_gang = not isinstance(snapshot.preemptor, str)
    if is_gang:
        fallback = GreedyCost()
        _compile_for_gangs(selector, runner)
    begin = time.perf_counter()
    state, preemptor = build_state(snapshot, bands)
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
        state.out_of_range.clear()
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
    if is_gang:
        servers = [server.name for server in snapshot.servers]
        answer |= gang_answer(state, preemptor, candidate, servers)
    return {
        **answer,
        "selector": used.name,
        "fallback": why,
        "cause": cause,
        "reasons": _reasons(state, candidate),
        "elapsed_ms": (time.perf_counter() - begin) * 1000.0,
    }


def _compile_for_gangs(selector: VictimSelector, runner: SelectorRunner) -> None:
    """Let a selector and the baseline decide about a small gang, once: kernels compile for that."""
    state, preemptor = build_state(SMALL_GANG)
    for each in (GreedyCost(), selector):
        if each.name in _compiled:
            continue
        _compiled.add(each.name)
        with suppress(Exception):  # it will fail again where that is answered for
            runner.select(each, state, preemptor, COMPILE_S)


def check(state: ClusterState, preemptor: Pod, candidate: Candidate | None) -> None:
    """Refuse a decision that must not be carried out.

    Raises:
        PodError: a victim is not on the node or may not be evicted for the preemptor, the preemptor
            does not fit, is guaranteed and not aligned, or would fit with one victim less.
    """
    if candidate is None:
        return
    if state.is_gang(preemptor):
        check_gang(state, preemptor, candidate)
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


def _reasons(state: SnapshotState, candidate: Candidate | None) -> list[str]:
    if candidate is None:
        return [*state.out_of_range, "no victim set that is worth it, or none at all"]
    reasons = [f"placed on {candidate.level.name.lower()} level"]
    if candidate.seats:
        reasons = [f"{len(candidate.seats)} members within {TIERS[candidate.tier].label}"]
        reasons += [f"the worst of them placed on {candidate.level.name.lower()} level"]
    reasons += state.out_of_range
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


def _check_groups(pods: Sequence[SnapshotPod]) -> None:
    """Check that members of a group say the same of how many have to run, and that gangs do not."""
    said: dict[str, int | None] = {}
    for pod in pods:
        if pod.min_members is not None and pod.online:
            raise SnapshotError(
                f"snapshot: pod {pod.name!r}: min_members = {pod.min_members}; legal: none for online "
                "pods, which start as a whole"
            )
        if pod.group and said.setdefault(pod.group, pod.min_members) != pod.min_members:
            raise SnapshotError(
                f"snapshot: pod {pod.name!r}: min_members = {pod.min_members}; legal: the same for all "
                f"of group {pod.group!r}"
            )


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
        min_members=ALL_MEMBERS if pod.min_members is None else pod.min_members,
        pdb=_find("budget", pod.budget, budgets) if pod.budget else -1,
    )
