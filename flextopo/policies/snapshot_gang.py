"""Gangs in snapshots: pods that start together over several servers, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from flextopo.cluster.errors import PodError
from flextopo.cluster.state.arrays import may_evict
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import MAX_MEMBERS
from flextopo.cluster.topology.levels import TIERS, NetworkLevel
from flextopo.cluster.topology.model import MAX_GPUS
from flextopo.cluster.topology.network import Network, Place, network_of
from flextopo.policies.snapshot_format import Server, Snapshot, SnapshotError, SnapshotPod

LEVELS = {tier.name: level for level, tier in TIERS.items()}
"""Name of a level of the network to the level."""

UNNAMED = "\0gang"
"""Group of a gang whose pods name none."""

SHARED = ("priority", "requirement", "group", "required_level", "preferred_level")
"""What all members of a gang have in common."""


def gang_members(snapshot: Snapshot) -> list[str]:
    """Return the names of the preemptors, one or several."""
    one = isinstance(snapshot.preemptor, str)
    return [str(snapshot.preemptor)] if one else list(snapshot.preemptor)


def snapshot_network(servers: Sequence[Server]) -> Network | None:
    """Return the network that servers name, None where they name none.

    Raises:
        SnapshotError: some servers name a leaf or a block, and others do not.
    """
    for what in ("leaf", "block"):
        without = [server.name for server in servers if not getattr(server, what)]
        if 0 < len(without) < len(servers):
            raise SnapshotError(
                f"snapshot: server {without[0]!r} has no {what}; legal: one for every server, or none"
            )
    if not servers or not servers[0].leaf:
        if any(server.block for server in servers):
            raise SnapshotError("snapshot: servers have blocks and no leaves; legal: leaves, too")
        return None
    places = [Place(server.name, server.leaf, server.block) for server in servers]
    return network_of(places, "snapshot")[0]


def join_gang(snapshot: Snapshot, network: Network | None) -> Snapshot:
    """Return the snapshot with the preemptors in one group, where they are several.

    Raises:
        SnapshotError: they are no gang that could be decided about.
    """
    names = set(gang_members(snapshot))
    if isinstance(snapshot.preemptor, str):
        _check_alone(snapshot, network)
        return snapshot
    if not 2 <= len(snapshot.preemptor) <= MAX_MEMBERS or len(names) < len(snapshot.preemptor):
        raise SnapshotError(
            f"snapshot: preemptor has {len(snapshot.preemptor)} names of {len(names)} pods; "
            f"legal: 2 to {MAX_MEMBERS} different ones"
        )
    if network is None:
        raise SnapshotError(
            "snapshot: several preemptors, and no server names its leaf; legal: `leaf` for every "
            "server, so that it is known which are near each other"
        )
    members = [pod for pod in snapshot.pods if pod.name in names]
    if members:
        _check_members(members)
        _check_others(members[0], snapshot.pods, names)
    group = (members[0].group if members else "") or UNNAMED
    pods = [
        msgspec.structs.replace(pod, group=group) if pod.name in names else pod
        for pod in snapshot.pods
    ]
    return msgspec.structs.replace(snapshot, pods=pods)


def _check_alone(snapshot: Snapshot, network: Network | None) -> None:
    """Refuse a single preemptor that is one of a gang."""
    found = [pod for pod in snapshot.pods if pod.name == snapshot.preemptor]
    if network is None or not found or not (found[0].online and found[0].group):
        return
    others = [pod for pod in snapshot.pods if pod.group == found[0].group]
    if len(others) > 1:
        raise SnapshotError(
            f"snapshot: preemptor {found[0].name!r} is one of {len(others)} online pods of group "
            f"{found[0].group!r}; legal: all of them, as a list"
        )


def _check_members(members: Sequence[SnapshotPod]) -> None:
    first = members[0]
    for pod in members:
        if not pod.online:
            raise SnapshotError(f"snapshot: preemptor {pod.name!r} is a batch pod; legal: online")
        for field in SHARED:
            if getattr(pod, field) != getattr(first, field):
                raise SnapshotError(
                    f"snapshot: preemptors {first.name!r} and {pod.name!r} differ in {field}; "
                    "legal: the same for all"
                )
    sizes = {(pod.gpus, pod.cores) for pod in members}
    if len(sizes) > 2:
        raise SnapshotError(f"snapshot: preemptors of {len(sizes)} sizes; legal: 1 or 2")


def _check_others(first: SnapshotPod, pods: Sequence[SnapshotPod], names: set[str]) -> None:
    for pod in pods:
        if first.group and pod.group == first.group and pod.name not in names:
            raise SnapshotError(
                f"snapshot: pod {pod.name!r} is of group {first.group!r}, too; legal: all of its "
                "pods in preemptor"
            )


def set_levels(state: ClusterState, pods: Sequence[SnapshotPod]) -> None:
    """Write which levels of the network pods require and prefer into a state.

    Raises:
        SnapshotError: there is no such level, or the preferred one is wider than the required one.
    """
    for i, pod in enumerate(pods):
        for field in ("required_level", "preferred_level"):
            name = getattr(pod, field)
            if name not in LEVELS and (name or field == "required_level"):
                raise SnapshotError(
                    f"snapshot: pods[{i}].{field} = {name!r}; legal: {', '.join(LEVELS)}"
                )
        required = LEVELS[pod.required_level]
        default = min(required, NetworkLevel.LEAF)
        preferred = LEVELS[pod.preferred_level] if pod.preferred_level else default
        if preferred > required:
            raise SnapshotError(
                f"snapshot: pods[{i}] prefers {pod.preferred_level!r} and requires "
                f"{pod.required_level!r}; legal: a preferred level within the required one"
            )
        state.arrays.pods[i]["required_tier"] = required
        state.arrays.pods[i]["preferred_tier"] = preferred


def check_gang(state: ClusterState, preemptor: Pod, candidate: Candidate) -> None:
    """Refuse a decision about a gang that must not be carried out.

    Raises:
        PodError: a member has no place, a victim may not be evicted for it or is on none of its nodes,
            the members do not fit or lie too far apart, are guaranteed and not aligned, or would fit
            with one victim less.
    """
    seats = {seat.pod: seat.node for seat in candidate.seats}
    _check_seats(state, state.gang(preemptor), candidate, seats)
    for victim in candidate.victims:
        if not 0 <= victim < state.num_pods or not may_evict(
            state.arrays, victim, preemptor.priority
        ):
            raise PodError(f"victim {victim} may not be evicted")
        if int(state.arrays.live[victim]["node"]) not in seats.values():
            raise PodError(f"victim {state.name(victim)!r} is on no node of the gang")
    guaranteed = AlignmentFilter.OWN.binds(preemptor)

    def placed(gone: Sequence[int]) -> Candidate | None:
        found = state.gang_candidate(preemptor, seats, gone, guaranteed)
        aligned = found is not None and (not guaranteed or state.is_aligned(found, preemptor))
        return found if aligned else None

    found = placed(candidate.victims)
    if found is None:
        raise PodError(f"the gang of {preemptor.name!r} does not fit without them")
    if (found.seats, found.tier) != (candidate.seats, candidate.tier):
        raise PodError("members would get other GPUs, cores or levels than it says")
    for victim in candidate.victims:
        if placed([other for other in candidate.victims if other != victim]) is not None:
            raise PodError(f"victim {state.name(victim)!r} is not needed")


def _check_seats(
    state: ClusterState, members: Sequence[int], candidate: Candidate, seats: dict[int, int]
) -> None:
    if len(candidate.seats) != len(members) or set(seats) != set(members):
        raise PodError(
            f"places for {len(candidate.seats)} of {len(members)} members; legal: for all"
        )
    if not all(0 <= node < state.num_nodes for node in seats.values()):
        raise PodError(f"nodes {sorted(set(seats.values()))}; legal: 0 to {state.num_nodes - 1}")


def gang_answer(
    state: ClusterState, preemptor: Pod, candidate: Candidate | None, servers: Sequence[str]
) -> dict[str, Any]:
    """Return what an answer about a gang has beside the others; without members where it waits."""
    if candidate is None:
        return {"members": [], "network_level": None, "cost_gpu_s": None, "wait_s": None}
    members = [
        {
            "name": state.name(seat.pod),
            "node": servers[seat.node],
            "gpus": [gpu for gpu in range(MAX_GPUS) if seat.gpu_mask >> gpu & 1],
            "cores": list(seat.cores[: state.model(seat.node).num_numa_nodes]),
            "level": seat.level.name.lower(),
        }
        for seat in candidate.seats
    ]
    return {
        "members": members,
        "network_level": TIERS[candidate.tier].name,
        "cost_gpu_s": state.cost_of(candidate, preemptor),
        "wait_s": candidate.wait_s,
    }
