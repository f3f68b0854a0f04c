"""The cluster as selectors see it: a named, checked view of the arrays."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import PodError
from flextopo.cluster.scenario import LossWeights
from flextopo.cluster.state import arrays
from flextopo.cluster.state.arrays import (
    MAX_PODS_PER_NODE,
    RUNNING,
    STARTING,
    Cluster,
    spare_members,
)
from flextopo.cluster.state.candidates import (
    CandidateArrays,
    Workspace,
    candidate_arrays,
    freed,
    last_gone_s,
    leaving,
    workspace,
)
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.gang_seats import (
    gang_seats,
    is_seat_aligned,
    seating_cost,
    tier_over,
)
from flextopo.cluster.state.gangs import is_gang
from flextopo.cluster.state.loss import (
    Costs,
    compile_costs,
    misaligned_at,
    misalignment_cost,
    network_row,
    stopping_cost,
    waiting_cost,
)
from flextopo.cluster.state.placement import place
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.preemption import find_candidates
from flextopo.cluster.state.schema import ENDLESS_S, MAX_MEMBERS, NUM_MISALIGNED, POD_FIELDS
from flextopo.cluster.topology.levels import NO_FIT, AlignmentLevel, is_aligned
from flextopo.cluster.topology.model import ServerModel, compile_models
from flextopo.cluster.topology.network import Network

POD_COLUMNS: dict[str, type] = {
    name: kind
    for name, kind in get_type_hints(Pod).items()
    if name in POD_FIELDS and name != "start_s"
}
"""What a `Pod` and the table of pods have in common, with the type that a `Pod` has it in."""
POD_PLACES = {name: place for place, name in enumerate(POD_FIELDS)}
"""Where each field stands in a row of the table."""

HOLDING = (arrays.NOMINATED, arrays.STARTING, arrays.RUNNING)
"""Status of pods that hold what they ask for; a terminating one may have handed some of it on."""


_OF_THREAD = threading.local()


def _workspace() -> Workspace:
    """Return the thread's scratch memory for the candidate kernel."""
    found: Workspace | None = getattr(_OF_THREAD, "workspace", None)
    if found is None:
        found = _OF_THREAD.workspace = workspace()
    return found


class ClusterState:
    """Nodes, the pods on them, and the pods that wait.

    Attributes:
        arrays: the state itself; see `Cluster` for shapes and dtypes.
        models: the server models; `arrays.nodes["model"]` indexes them.
        costs: the loss in GPU-seconds by which candidates are costed.
        simulator: the `Simulator` that this state belongs to, None for a snapshot; see
            `simulation.simulator.simulation_of`.
        max_wait_s: no pod with a candidate is to be left pending for longer; None = as the simulator
            says.
    """

    max_wait_s: int | None = None

    def __init__(
        self,
        arrays_: Cluster,
        models: tuple[ServerModel, ...],
        costs: Costs,
        names: Sequence[str] | None = None,
        simulator: Any = None,
    ) -> None:
        self.arrays = arrays_
        self.models = models
        self.costs = costs
        self.simulator = simulator
        self._names = names
        self._found: dict[int, CandidateArrays] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; the models become read-only again, or every kernel would compile anew."""
        self.__dict__.update(state)
        self.arrays.models.setflags(write=False)

    @classmethod
    def from_pods(
        cls,
        models: Sequence[ServerModel],
        node_model: Sequence[int],
        pods: Sequence[Pod],
        *,
        pdb_allowed: Sequence[int] = (),
        now_s: int = 0,
        weights: LossWeights | None = None,
        grace_s: int = 30,
        restart_s: int = 60,
        network: Network | None = None,
    ) -> ClusterState:
        """Build a snapshot in which every pod is pending; `start` puts pods on nodes.

        Raises:
            PodError: pod indices are not 0, 1, ... or two pods have one name.
        """
        tables = compile_models(models)
        state = arrays.empty_cluster(
            tables, np.asarray(node_model), len(pods), len(pdb_allowed), network=network
        )
        state.pdb_left[:] = pdb_allowed
        state.totals["now_s"] = now_s
        names: dict[str, int] = {}
        for row, pod in enumerate(pods):
            if pod.index != row:
                raise PodError(f"pod {pod.name!r} has index {pod.index}; legal here: {row}")
            if names.setdefault(pod.name, row) != row:
                raise PodError(f"pod {pod.name!r} is used twice; legal: one pod a name")
            if pod.pdb >= len(pdb_allowed):
                raise PodError(
                    f"pod {pod.name!r}: disruption budget {pod.pdb}; "
                    f"legal: below {len(pdb_allowed)}"
                )
            for name in POD_COLUMNS:
                state.pods[row][name] = getattr(pod, name)
            state.pods[row]["duration_s"] = ENDLESS_S
            state.live[row]["status"] = arrays.PENDING
            state.live[row]["queued_s"] = now_s
        link_groups(state)
        costs = compile_costs(weights or LossWeights(), grace_s, restart_s)
        return cls(state, tuple(models), costs, [pod.name for pod in pods])

    def start(self, pod: int, node: int, gpus: Sequence[int] | None = None) -> None:
        """Let a pending pod run on a node, on the given GPUs or where the node would put it.

        Raises:
            PodError: it is not pending, the node is unknown or full, or a GPU is taken.
        """
        c = self.arrays
        if c.live[pod]["status"] != arrays.PENDING:
            raise PodError(f"pod {self.name(pod)!r} holds resources already; legal: a pending pod")
        if not 0 <= node < self.num_nodes:
            raise PodError(f"node {node}; legal: 0 to {self.num_nodes - 1}")
        spec, state = c.pods[pod], c.nodes[node]
        free = int(state["gpu_free"])
        if gpus is not None:
            known = set(gpus) <= set(range(self.model(node).num_gpus))
            wanted = sum(1 << gpu for gpu in set(gpus)) if known else 0
            if not known or wanted & ~free or len(set(gpus)) != spec["gpus"]:
                raise PodError(
                    f"pod {self.name(pod)!r} asks for GPUs {sorted(set(gpus))} of node {node}; "
                    f"legal: {spec['gpus']} of the free ones {_bits(free)}"
                )
            free = wanted
        taken = np.zeros(c.cores_free.shape[1], np.int16)
        level, mask = place(
            c.models, state["model"], free, c.cores_free[node], spec["gpus"], spec["cores"], taken
        )
        if level == NO_FIT or state["num_pods"] >= MAX_PODS_PER_NODE:
            raise PodError(
                f"pod {self.name(pod)!r} asks for {spec['gpus']} GPUs and {spec['cores']} cores; "
                f"legal on node {node}: up to {len(_bits(free))} and {state['cores_free']}"
            )
        arrays.allocate(c, pod, node, mask, taken)
        c.live[pod]["status"] = arrays.RUNNING
        c.live[pod]["level"] = level
        c.live[pod]["since_s"] = c.totals[0]["now_s"]
        total = "online_gpus" if spec["online"] else "batch_gpus"
        c.totals[0][total] += spec["gpus"]

    @property
    def num_nodes(self) -> int:
        return len(self.arrays.nodes)

    @property
    def num_pods(self) -> int:
        return len(self.arrays.pods)

    @property
    def now_s(self) -> int:
        return int(self.arrays.totals[0]["now_s"])

    def name(self, pod: int) -> str:
        """Return a pod's name."""
        if self._names is not None:
            return self._names[pod]
        return f"{'online' if self.arrays.pods[pod]['online'] else 'batch'}/{pod}"

    def model(self, node: int) -> ServerModel:
        """Return the server model of a node."""
        return self.models[int(self.arrays.nodes[node]["model"])]

    def pod(self, index: int) -> Pod:
        """Return a pod by its row.

        Raises:
            PodError: there is no such row.
        """
        if not 0 <= index < self.num_pods:
            raise PodError(f"pod index {index}; legal: 0 to {self.num_pods - 1}")
        spec, live = self.arrays.pods.item(index), self.arrays.live
        start_s = int(live["since_s"][index]) if live["node"][index] >= 0 else None
        columns = {name: kind(spec[POD_PLACES[name]]) for name, kind in POD_COLUMNS.items()}
        return Pod(index=index, name=self.name(index), start_s=start_s, **columns)

    def pods_on(self, node: int) -> list[Pod]:
        """Return the pods that hold resources on a node, in the order of their places."""
        count = self.arrays.nodes[node]["num_pods"]
        return [self.pod(int(index)) for index in self.arrays.node_pods[node, :count]]

    def slots_of(self, node: int, victims: Sequence[int]) -> int:
        """Return the bit mask of the victims' places in the node's list.

        Raises:
            PodError: there is no such node, or a victim is not on it.
        """
        if not 0 <= node < self.num_nodes:
            raise PodError(f"node {node}; legal: 0 to {self.num_nodes - 1}")
        count = self.arrays.nodes[node]["num_pods"]
        places = {int(pod): i for i, pod in enumerate(self.arrays.node_pods[node, :count])}
        slots = 0
        for victim in victims:
            if victim not in places:
                raise PodError(f"victim {self.pod(victim).name!r} is not on node {node}")
            slots |= 1 << places[victim]
        return slots

    def candidate(
        self, node: int, victims: Sequence[int], preemptor: Pod, aligned: bool = False
    ) -> Candidate | None:
        """Return the candidate of a victim set, None if the preemptor does not fit without it.

        What terminating pods hold counts: with victims, what is free before these are gone; without,
        what suffices soonest, for an aligned placement if it must be `aligned`.
        """
        slots, grace_s = self.slots_of(node, victims), int(self.costs.grace_s)
        if victims:
            slots |= self.leaving_slots(node, grace_s)
            return self._candidate(node, slots, victims, preemptor)
        legal = self.without_victims(node, preemptor)
        return next((c for c in legal if not aligned or self.is_aligned(c, preemptor)), None)

    def without_victims(self, node: int, preemptor: Pod) -> Iterator[Candidate]:
        """Yield what a node gives without an eviction: now, and each time terminating pods are gone."""
        for slots in self.free_after(node).values():
            found = self._candidate(node, slots, (), preemptor)
            if found is not None:
                yield found

    def free_after(self, node: int) -> dict[int, int]:
        """Return the places of the terminating pods that are gone, as bits, by the seconds until then.

        The first entry is -1, for what is free already.
        """
        ends = {max(end_s - self.now_s, 0) for end_s in self._leaving(node).values()}
        return {-1: 0} | {wait_s: self.leaving_slots(node, wait_s) for wait_s in sorted(ends)}

    def free_s(self, node: int, slots: int) -> int:
        """Return the seconds until the last of some terminating pods of a node is gone."""
        return max(int(last_gone_s(self.arrays, node, slots)) - self.now_s, 0)

    def leaving_slots(self, node: int, wait_s: int) -> int:
        """Return the places of a node's terminating pods that are gone after some time, as bits."""
        until_s = self.now_s + wait_s
        gone = self._leaving(node).items()
        return sum(1 << slot for slot, end_s in gone if end_s <= until_s)

    def freed(self, node: int, slots: int) -> tuple[int, list[int]]:
        """Return the bit mask of GPUs, and cores by NUMA node, free without the pods in some places."""
        cores = np.zeros(self.arrays.cores_free.shape[1], np.int16)
        gpus = int(freed(self.arrays, node, slots, cores))
        return gpus, cores[: self.model(node).num_numa_nodes].tolist()

    def _leaving(self, node: int) -> dict[int, int]:
        c = self.arrays
        here = c.node_pods[node, : c.nodes["num_pods"][node]]
        if arrays.TERMINATING not in c.live["status"][here].tolist():
            return {}  # so it is nearly always, and a kernel takes ten times as long to call
        slots, next_s = _bits(leaving(c, node, self.costs.grace_s).slots), c.live["next_s"]
        return {slot: int(next_s[here[slot]]) for slot in slots}

    def _candidate(
        self,
        node: int,
        slots: int,
        victims: Sequence[int],
        preemptor: Pod,
        cost_gpu_s: float = math.nan,
    ) -> Candidate | None:
        c = self.arrays
        wait_s = int(self.costs.grace_s) if victims else 0
        if not victims and slots:
            wait_s = self.free_s(node, slots)
        cores = np.zeros(c.cores_free.shape[1], np.int16)
        taken = np.zeros(len(cores), np.int16)
        gpu_free = freed(c, node, slots, cores)
        level, mask = place(
            c.models,
            c.nodes["model"][node],
            gpu_free,
            cores,
            preemptor.gpus,
            preemptor.cores,
            taken,
        )
        if level == NO_FIT:
            return None
        return Candidate(
            node=node,
            victims=tuple(sorted(map(int, victims), key=self.importance)),
            gpu_mask=int(mask),
            cores=tuple(map(int, taken)),
            level=AlignmentLevel(level),
            cost_gpu_s=cost_gpu_s,
            wait_s=wait_s,
        )

    def is_gang(self, preemptor: Pod) -> bool:
        """Say whether a pod is a member of a gang, for all of which it is decided together."""
        return len(self.arrays.network) > 0 and bool(is_gang(self.arrays, preemptor.index))

    def gang(self, preemptor: Pod) -> tuple[int, ...]:
        """Return all members of a gang, the leader first; the pod alone if it has none."""
        c = self.arrays
        members = [preemptor.index]
        while (other := int(c.pods[members[-1]]["next_member"])) != members[0]:
            members.append(other)
        leader = members.index(min(members))
        return tuple(members[leader:] + members[:leader])

    def gang_candidate(
        self,
        preemptor: Pod,
        seats: Mapping[int, int],
        victims: Sequence[int],
        aligned: bool = False,
    ) -> Candidate | None:
        """Return the candidate of a victim set for a gang; see `gang_seats`.

        Args:
            preemptor: a member.
            seats: node of each member.
            victims: on those nodes.
            aligned: wait for what is leaving where members are aligned only then.

        Returns:
            None if a member does not fit, or they lie further apart than they may.

        Raises:
            PodError: a member has no node, there is no such node, or a victim is not on them.
        """
        members = self.gang(preemptor)
        if set(seats) != set(members):
            raise PodError(f"seats for pods {sorted(seats)}; legal: for {sorted(members)}")
        placed = gang_seats(self, members, seats, victims, aligned)
        tier = tier_over(self.arrays.network, [seats[member] for member in members])
        if placed is None or tier > self.arrays.pods[preemptor.index]["required_tier"]:
            return None
        leader, worst = placed.seats[0], max(seat.level for seat in placed.seats)
        return Candidate(
            node=leader.node,
            victims=tuple(sorted(map(int, victims), key=self.importance)),
            gpu_mask=leader.gpu_mask,
            cores=leader.cores,
            level=worst,
            wait_s=placed.wait_s,
            seats=placed.seats,
            tier=tier,
        )

    def may_wait(self, preemptor: Pod) -> bool:
        """Say whether a pod that has a candidate may be left pending now."""
        waited_s = self.now_s - int(self.arrays.live[preemptor.index]["queued_s"])
        if self.max_wait_s is not None and waited_s >= self.max_wait_s:
            return False
        return self.simulator is None or bool(self.simulator.may_wait(preemptor))

    def importance(self, pod: int) -> tuple[int, float, int]:
        """Return the key that sorts pods by descending importance; no start = least important."""
        live = self.arrays.live
        start = float(live["since_s"][pod]) if live["node"][pod] >= 0 else float("inf")
        return -int(self.arrays.pods["priority"][pod]), start, pod

    def is_aligned(self, candidate: Candidate, preemptor: Pod) -> bool:
        """Say whether the guaranteed filter accepts the candidate's placement."""
        if candidate.seats:
            return all(is_seat_aligned(self, seat) for seat in candidate.seats)
        best = self.model(candidate.node).best_level(preemptor.gpus, preemptor.cores)
        return best is not None and is_aligned(candidate.level, best)

    def levels_below(self, candidate: Candidate, preemptor: Pod) -> int:
        """Return how many levels the candidate's placement is below the best of that server."""
        best = self.model(candidate.node).best_level(preemptor.gpus, preemptor.cores)
        return 0 if best is None else int(candidate.level) - int(best)

    def deficit_of(self, candidate: Candidate, preemptor: Pod) -> int:
        """Return what prices the candidate's placement: 0 at the best level there, else the level."""
        return int(candidate.level) if self.levels_below(candidate, preemptor) else 0

    def cost_of(self, candidate: Candidate, preemptor: Pod) -> float:
        """Return a candidate's own loss in weighted GPU-seconds, as the candidate kernel has it."""
        if candidate.cost_gpu_s == candidate.cost_gpu_s:  # not NaN: the kernel found it
            return candidate.cost_gpu_s
        c, costs, pod = self.arrays, self.costs, preemptor.index
        if candidate.seats:
            total = seating_cost(self, candidate)
        else:
            total = float(misalignment_cost(c, costs, pod, self.deficit_of(candidate, preemptor)))
            total += float(waiting_cost(c, costs, pod, float(candidate.wait_s)))
        counted: set[int] = set()
        for victim in candidate.victims:
            if victim not in counted:
                stopped = self.stopped_with(victim, candidate.victims)
                counted.update(stopped)
                total += sum(float(stopping_cost(c, pod, costs)) for pod in stopped)
        return total

    def stopped_with(self, victim: int, victims: Sequence[int] = ()) -> list[int]:
        """Return the pods that stop when one is evicted: it, and its PodGroup if too few of that are left.

        Args:
            victim: a pod that holds resources.
            victims: further ones that are evicted at once, it may be among them.
        """
        c, members = self.arrays, [victim]
        while (other := int(c.pods[members[-1]]["next_member"])) != victim:
            members.append(other)
        gone = len({victim, *victims} & set(members))
        if gone <= spare_members(c, victim):
            return [victim]
        return [pod for pod in members if c.live[pod]["status"] in (RUNNING, STARTING)]

    def find(
        self, preemptor: Pod, aligned: bool, k: int, costs: Costs | None = None
    ) -> tuple[CandidateArrays, int]:
        """Run the candidate kernel; return its arrays (valid until the next call) and the count.

        Args:
            preemptor: the pending pod.
            aligned: the guaranteed filter binds it.
            k: candidates at most.
            costs: what makes one cheap, if not the loss.

        Raises:
            PodError: a gang has too many members, or sizes.
        """
        if self.is_gang(preemptor):
            self._check_gang(preemptor)
        found = self._found.get(k)
        if found is None:
            found = self._found[k] = candidate_arrays(k)
        count = find_candidates(
            self.arrays, costs or self.costs, preemptor.index, aligned, _workspace(), found
        )
        return found, count

    def candidates(self, preemptor: Pod, aligned: bool, k: int = 64) -> list[Candidate]:
        """Return the `k` cheapest minimal victim sets on all nodes, cheapest first."""
        found, count = self.find(preemptor, aligned, k)
        return [self.candidate_at(found, i, preemptor) for i in range(count)]

    def _check_gang(self, preemptor: Pod) -> None:
        members = self.arrays.pods[list(self.gang(preemptor))]
        sizes = len(set(members[["gpus", "cores"]].tolist()))
        if len(members) > MAX_MEMBERS or sizes > 2:
            raise PodError(
                f"pod {preemptor.name!r}: a gang of {len(members)} members of {sizes} sizes; "
                f"legal: up to {MAX_MEMBERS} of two sizes"
            )

    def _gang_at(
        self, found: CandidateArrays, i: int, preemptor: Pod, cost_gpu_s: float
    ) -> Candidate:
        seats = dict(zip(self.gang(preemptor), found.seat_node[i].tolist(), strict=False))
        places = dict(zip(seats.values(), found.seat_slots[i].tolist(), strict=False))
        pods = [int(self.arrays.node_pods[node, s]) for node in places for s in _bits(places[node])]
        victims = [p for p in pods if self.arrays.live[p]["status"] != arrays.TERMINATING]
        aligned = False
        if len(victims) < len(pods):
            # Does it count on terminating pods where members fit without them, and are not aligned?
            now = gang_seats(self, tuple(seats), seats, victims)
            aligned = now is not None and now.slots != places
        gang = self.gang_candidate(preemptor, seats, victims, aligned)
        if gang is None:
            raise PodError(f"candidate {i} does not let the gang of {preemptor.name!r} fit")
        return replace(gang, cost_gpu_s=cost_gpu_s)

    def candidate_at(
        self, found: CandidateArrays, i: int, preemptor: Pod, *, priced: bool = True
    ) -> Candidate:
        """Return entry `i` of the kernel's arrays as a `Candidate`.

        Args:
            found: from `find`.
            i: the entry.
            preemptor: the pending pod.
            priced: it was found by the loss; else the candidate's cost is worked out when asked for.
        """
        cost_gpu_s = float(found.cost[i]) if priced else math.nan
        if self.is_gang(preemptor):
            return self._gang_at(found, i, preemptor, cost_gpu_s)
        node, slots = int(found.node[i]), int(found.slots[i])
        pods, status = self.arrays.node_pods[node].tolist(), self.arrays.live["status"]
        victims = [pods[s] for s in _bits(slots) if status[pods[s]] != arrays.TERMINATING]
        placed = self._candidate(node, slots, victims, preemptor, cost_gpu_s)
        if placed is None:
            raise PodError(f"candidate {i} on node {node} does not let {preemptor.name!r} fit")
        return placed

    def check_invariants(self) -> None:
        """Check that every GPU and core has exactly one owner and that the totals are true.

        Raises:
            PodError: one of them is not.
        """
        c = self.arrays
        models = c.models
        for node in range(self.num_nodes):
            model = c.nodes[node]["model"]
            owned, cores = int(c.nodes[node]["gpu_free"]), c.cores_free[node].astype(int)
            for pod in c.node_pods[node, : c.nodes[node]["num_pods"]]:
                mask = int(c.live[pod]["gpu_mask"])
                if owned & mask or c.live[pod]["node"] != node:
                    raise PodError(f"node {node}: GPUs {_bits(owned & mask)} have two owners")
                owned |= mask
                cores = cores + c.pod_cores[pod]
            if owned != (1 << int(models[model]["num_gpus"])) - 1:
                raise PodError(f"node {node}: GPUs {_bits(owned)} are owned; legal: all of them")
            if (cores != models[model]["numa_cores"][: len(cores)]).any() or (
                c.cores_free[node] < 0
            ).any():
                raise PodError(f"node {node}: cores a NUMA node {cores.tolist()} do not add up")
            if c.nodes[node]["cores_free"] != c.cores_free[node].sum():
                raise PodError(f"node {node}: {c.nodes[node]['cores_free']} free cores is not true")
        free = np.bitwise_count(c.nodes["gpu_free"]).astype(np.int64)
        index = arrays.index_by_free(free)
        counts = arrays.free_counts(index)
        if (c.by_free != index).any() or c.totals[0]["free_counts"] != counts:
            raise PodError("the index of nodes by free GPUs is not true")
        self._check_totals()

    def _check_totals(self) -> None:
        c = self.arrays
        status, online = c.live["status"], c.pods["online"].astype(bool)
        holds = np.isin(status, HOLDING)
        serving = online & (status == arrays.RUNNING)
        stands = np.diff(c.pods["group"], prepend=-1) != 0
        stands |= c.pods["group"] < 0
        stands &= serving & (c.pods["service"] >= 0)
        replicas = np.bincount(c.pods["service"][stands])
        if (c.serving[: len(replicas)] != replicas).any() or c.serving[len(replicas) :].any():
            raise PodError(f"replicas that serve {c.serving.tolist()}; true: {replicas.tolist()}")
        true = true_totals(c)
        if self.simulator is None:
            true = {name: true[name] for name in ("free_gpus", "online_gpus", "batch_gpus")}
        true["misaligned_gpus"] = self._misaligned_gpus(serving)
        for name, value in true.items():
            if np.any(c.totals[0][name] != value):
                raise PodError(f"totals: {name} = {c.totals[0][name]}; true: {value}")
        for pod in np.flatnonzero(holds):
            cores, held = c.pods[pod]["cores"], c.pod_cores[pod].sum()
            gpus = int(c.live[pod]["gpu_mask"]).bit_count()
            if gpus != c.pods[pod]["gpus"] or cores != held:
                raise PodError(f"pod {self.name(int(pod))!r} holds {gpus} GPUs and {held} cores")

    def _misaligned_gpus(self, serving: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return what the totals should have of pods that serve below their best."""
        c, found = self.arrays, np.zeros(NUM_MISALIGNED, np.int64)
        for pod in np.flatnonzero(serving):
            spec, live = c.pods[pod], c.live[pod]
            if live["deficit"]:
                found[misaligned_at(spec["sensitivity"], live["deficit"])] += spec["gpus"]
            if live["tier"]:
                found[misaligned_at(spec["sensitivity"], network_row(live["tier"]))] += spec["gpus"]
        return found


def true_totals(c: Cluster) -> dict[str, Any]:
    """Return what the totals should say of free GPUs, of those that are held, and of those asked for."""
    status, online = c.live["status"], c.pods["online"].astype(bool)
    holds, waits = np.isin(status, HOLDING), np.isin(status, (arrays.PENDING, arrays.NOMINATED))
    waiting = c.pods[~online & waits]
    size = waiting["gpus"]
    return {
        "free_gpus": np.bitwise_count(c.nodes["gpu_free"]).sum(),
        "online_gpus": c.pods["gpus"][online & holds].sum(),
        "batch_gpus": c.pods["gpus"][~online & holds].sum(),
        "wait_gpus": c.pods["gpus"][online & waits].sum(),
        "batch_wait_gpus": size.sum(),
        "batch_wait_1": size[size <= 1].sum(),
        "batch_wait_2": size[size == 2].sum(),
        "batch_wait_4": size[(size > 2) & (size <= 4)].sum(),
        "batch_wait_group": size[waiting["group"] >= 0].sum(),
    }


def _bits(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]


def link_groups(state: Cluster) -> None:
    """Make each PodGroup a ring of pods; a pod without group is its own ring."""
    state.pods["next_member"] = np.arange(len(state.pods))
    members = np.flatnonzero(state.pods["group"] >= 0)
    if len(members) == 0:
        return
    group = state.pods["group"][members]
    in_order = np.argsort(group, kind="stable")
    members, group = members[in_order], group[in_order]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    following = np.append(members[1:], 0)
    following[np.append(first[1:], len(members)) - 1] = members[first]
    state.pods["next_member"][members] = following
