"""The cluster as the service remembers it: objects in, views for decisions out."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy.typing as npt

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.state.schema import TOTALS_FIELDS
from flextopo.cluster.topology.model import compile_models
from flextopo.policies.serving.budgets import BudgetBook
from flextopo.policies.serving.hardware import (
    Hardware,
    HardwareCatalogue,
    Marks,
    read_marks,
    read_spec,
)
from flextopo.policies.serving.node_state import ClusterFacts, NodeFacts, NodeState, derive
from flextopo.policies.serving.node_table import NodeTable
from flextopo.policies.serving.objects import (
    GPU,
    BudgetObject,
    FlexTopoObject,
    KubeObject,
    NodeObject,
    ObjectError,
    PodGroupObject,
    PodObject,
    PriorityClassObject,
    key_of,
    parse_quantity,
)
from flextopo.policies.serving.reach import NodeTraits, Reach, read_traits
from flextopo.policies.serving.records import CLASS_BANDS, PodRecord, parse_version, read_pod
from flextopo.policies.serving.reservations import Reservations
from flextopo.policies.serving.view import ClusterView, Surroundings, build_view

MAX_GONE = 100_000
"""Deleted pods that are remembered, so that a late event does not bring one back."""
FRESH_S = 20
"""The placement of a pod that was bound so lately is about to be known."""


SUMMED = ("gpus", "free_gpus", "online_gpus", "batch_gpus")
WAITING = (
    "wait_gpus",
    "batch_wait_gpus",
    "batch_wait_1",
    "batch_wait_2",
    "batch_wait_4",
    "batch_wait_group",
)

_odd = {name for name, field in TOTALS_FIELDS.items() if not field.snapshot} ^ {
    "now_s",
    *SUMMED,
    *WAITING,
}
if _odd:
    raise ValueError(
        f"totals {', '.join(sorted(_odd))}; legal: each worked out, or constant in snapshots"
    )
"""Fields of TOTALS_DTYPE that are sums over nodes."""


def goes_before(pod: PodRecord, other: PodRecord, both: bool) -> bool:
    """Say whether a pod that a place is kept for comes before another pending pod.

    Args:
        pod: the one that is nominated.
        other: the other.
        both: a place is kept there for the other, too; then one of them comes first, by age, so that
            they do not wait for each other.
    """
    if pod.uid == other.uid or pod.priority != other.priority:
        return pod.uid != other.uid and pod.priority > other.priority
    first, second = ((one.created_s, one.key, one.uid) for one in (pod, other))
    return not both or first < second


def make_clock() -> Callable[[], int]:
    """Return a clock of Unix seconds that a change of the system's time does not move."""
    begin, start = time.time(), time.monotonic()
    return lambda: int(begin + time.monotonic() - start)


class ClusterCache:
    """Pods, nodes, FlexTopo objects, budgets, classes and groups; nodes are worked out when asked.

    Attributes:
        clock: Unix time in seconds.
        bands: priorities from which on batch pods are of class 1, 2, ...
        pods: every pod by uid.
        budgets: PodDisruptionBudgets.
        problems: what is wrong with objects, by kind and name; such objects are left out.
        reservations: what was answered a moment ago.
        traits: whom nodes take, by name.
    """

    def __init__(
        self, clock: Callable[[], int] | None = None, bands: Sequence[int] = CLASS_BANDS
    ) -> None:
        self.clock = clock or make_clock()
        self.bands = bands
        self.pods: dict[str, PodRecord] = {}
        self.budgets = BudgetBook()
        self.problems: dict[str, str] = {}
        self._objects: dict[str, PodObject] = {}
        self._on_node: dict[str, dict[str, PodRecord]] = {}
        self._nodes: dict[str, dict[str, int]] = {}
        self._cpus: dict[str, int] = {}
        self.traits: dict[str, NodeTraits] = {}
        self.reservations = Reservations(time.monotonic, self._dirty_add)
        self._hardware: dict[str, Hardware] = {}
        self._marks: dict[str, dict[str, Marks]] = {}
        self.classes: dict[str, PriorityClassObject] = {}
        self._groups: dict[str, PodGroupObject] = {}
        self._pending: dict[str, PodRecord] = {}
        self._shy: dict[str, PodRecord] = {}
        self._table = NodeTable()
        self._unread: dict[str, dict[str, str]] = {}
        self._dirty: set[str] = set()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._versions: dict[str, int] = {}
        self._catalogue = HardwareCatalogue()
        self._models: npt.NDArray[Any] | None = None
        self._width = 0

    @property
    def nodes(self) -> NodeTable:
        """Return all nodes with GPUs, worked out."""
        self.refresh()
        return self._table

    @property
    def table(self) -> npt.NDArray[Any]:
        """Return the compiled server models, (M,) MODEL_DTYPE."""
        self.refresh()
        assert self._models is not None
        return self._models

    @property
    def pending(self) -> list[PodRecord]:
        """Return the pods that have no node."""
        return list(self._pending.values())

    def _dirty_add(self, name: str) -> None:
        self._dirty.add(name)

    def pods_on(self, node: str) -> list[PodRecord]:
        """Return the pods that are bound to a node or nominated for it."""
        return list(self._on_node.get(node, {}).values())

    def mark_terminating(self, uid: str) -> None:
        """Remember that a pod's eviction was accepted, until the watch shows it."""
        pod = self.pods.get(uid)
        if pod is not None:
            pod.terminating = True
            self._dirty.add(pod.node)

    def put(self, obj: KubeObject) -> None:
        """Add or change an object; an older version than the known one is ignored."""
        by_uid = isinstance(obj, PodObject)
        name = f"{obj.KIND} {obj.metadata.uid if by_uid else key_of(obj.metadata)}"
        version = parse_version(obj.metadata.resourceVersion)
        if version and version <= self._versions.get(name, 0):
            return
        if obj.metadata.uid in self._gone:
            return
        self._versions[name] = version
        try:
            self._put(obj)
            self.problems.pop(name, None)
        except (ObjectError, TopologyError) as error:
            self.problems[name] = str(error)

    def _put(self, obj: KubeObject) -> None:
        name = obj.metadata.name
        match obj:
            case PodObject():
                self._put_pod(obj)
            case NodeObject():
                self._put_node(obj)
            case FlexTopoObject():
                self._dirty.add(name)
                self._hardware.pop(name, None)
                spec = read_spec(obj)
                self._marks[name] = read_marks(spec)
                self._hardware[name] = self._catalogue.of_flextopo(obj, spec)
            case BudgetObject():
                if self.budgets.put(obj):
                    self._touch(obj.metadata.namespace or "")
            case PriorityClassObject():
                self.classes[name] = obj
                for pod in list(self._objects.values()):
                    if pod.spec.priorityClassName == name:
                        self._put_pod(pod)
            case PodGroupObject():
                self._groups[key_of(obj.metadata)] = obj

    def _put_node(self, obj: NodeObject) -> None:
        name = obj.metadata.name
        self._dirty.add(name)
        self.traits[name] = read_traits(obj)
        allocatable = {
            resource: parse_quantity(value, f"node {name!r}: {resource}")
            for resource, value in (obj.status.allocatable or {}).items()
        }
        all_cpus = (obj.status.capacity or {}).get("cpu", 0)
        all_cpus = parse_quantity(all_cpus, f"node {name!r}: capacity cpu")
        self._nodes[name] = allocatable
        self._cpus[name] = max(all_cpus, allocatable.get("cpu", 0)) // 1000

    def _touch(self, namespace: str) -> None:
        """Have all nodes with pods of a namespace worked out anew."""
        for name, pods in self._on_node.items():
            if any(pod.namespace == namespace for pod in pods.values()):
                self._dirty.add(name)

    def _put_pod(self, obj: PodObject) -> None:
        uid = obj.metadata.uid
        node = obj.spec.nodeName or ""
        try:
            record = self.read(obj)
        except ObjectError:
            # It must not vanish: its node is left out of decisions while it is there.
            self._unread.setdefault(node, {})[uid] = key_of(obj.metadata)
            self._dirty.add(node)
            raise
        known = self.pods.get(uid)
        if known is not None and (known.key != record.key or known.node not in ("", node)):
            self._unread.setdefault(node, {})[uid] = record.key
            self._dirty.add(node)
            where = f" on node {known.node!r}" if known.node else ""
            raise ObjectError(f"pod {record.key!r}: its uid is that of {known.key!r}{where}")
        self._forget(uid, node)
        self.reservations.seen(record)
        self.pods[uid] = record
        if record.placing.far and not record.finished:
            self._shy[uid] = record
        if obj.spec.priorityClassName:
            self._objects[uid] = obj
        if not record.node and not record.finished:
            self._pending[uid] = record
        place = record.node or record.nominated
        if place and not record.finished:
            self._on_node.setdefault(place, {})[uid] = record
            self._dirty.add(place)

    def read(self, obj: PodObject) -> PodRecord:
        """Return what is remembered of a pod; the cache stays as it is.

        Raises:
            ObjectError: a quantity, number or time in it is not one.
        """
        return read_pod(obj, self.classes, self.bands)

    def remove(self, obj: KubeObject) -> None:
        """Remove an object; one that is not known is remembered as gone."""
        name, key, uid = obj.metadata.name, key_of(obj.metadata), obj.metadata.uid
        match obj:
            case PodObject():
                self._forget(uid, obj.spec.nodeName or "")
                self.reservations.forget(uid)
                self._versions.pop(f"Pod {uid}", None)
                self.problems.pop(f"Pod {uid}", None)
                self._gone[uid] = None
                if len(self._gone) > MAX_GONE:
                    self._gone.popitem(last=False)
            case NodeObject():
                self._nodes.pop(name, None)
                self.traits.pop(name, None)
                self._dirty.add(name)
                self._versions.pop(f"Node {name}", None)
            case FlexTopoObject():
                self._hardware.pop(name, None)
                self._marks.pop(name, None)
                self._dirty.add(name)
                self._versions.pop(f"FlexTopo {name}", None)
            case BudgetObject():
                self.budgets.remove(key)
                self._dirty |= self._nodes.keys()
                self._versions.pop(f"PodDisruptionBudget {key}", None)
            case PriorityClassObject():
                self.classes.pop(name, None)
                self._versions.pop(f"PriorityClass {name}", None)
            case PodGroupObject():
                self._groups.pop(key, None)
                self._versions.pop(f"PodGroup {key}", None)

    def replace(self, kind: type[KubeObject], objects: Iterable[KubeObject]) -> None:
        """Take a fresh list of all objects of a kind: what is not in it is gone."""
        keep, word = set(), kind.KIND
        for obj in objects:
            self.put(obj)
            keep.add(obj.metadata.uid if kind is PodObject else key_of(obj.metadata))
        if kind is PodObject:
            for uid in self.pods.keys() - keep:
                self._forget(uid)
                self.reservations.forget(uid)
                self._versions.pop(f"Pod {uid}", None)
            for node, unread in self._unread.items():
                for uid in unread.keys() - keep:
                    del unread[uid]
                    self._dirty.add(node)
            return
        known: dict[str, dict[str, Any]] = {
            "Node": self._nodes,
            "FlexTopo": self._marks,
            "PodDisruptionBudget": self.budgets.by_key,
            "PriorityClass": self.classes,
            "PodGroup": self._groups,
        }
        for key in known[word].keys() - keep:
            if kind is BudgetObject:
                self.budgets.remove(key)
            else:
                del known[word][key]
            self._hardware.pop(key, None) if word == "FlexTopo" else None
            self.traits.pop(key, None) if word == "Node" else None
            self._versions.pop(f"{word} {key}", None)
            self._dirty |= self._nodes.keys() | {key}

    def _forget(self, uid: str, node: str = "") -> None:
        if node in self._unread and self._unread[node].pop(uid, ""):
            self._dirty.add(node)
        record = self.pods.pop(uid, None)
        if record is None:
            return
        self._objects.pop(uid, None)
        self._pending.pop(uid, None)
        self._shy.pop(uid, None)
        for place in (record.node, record.nominated):
            if place in self._on_node and self._on_node[place].pop(uid, None) is not None:
                self._dirty.add(place)

    def refresh(self) -> None:
        """Work out the nodes that have changed."""
        self.reservations.expire()
        if not self._dirty:
            return
        for name in self._dirty & self._nodes.keys():
            self._hardware_of(name)
        models = self._catalogue.models
        if self._models is None or len(self._models) != len(models):
            self._models = compile_models(models) if models else None
            width = max((model.num_numa_nodes for model in models), default=1)
            if width != self._width:
                self._width = width
                self._dirty |= self._nodes.keys()
        for name in self._dirty:
            self._table.set(name, self._derive(name))
        self._dirty.clear()

    def _hardware_of(self, name: str) -> Hardware | None:
        found = self._hardware.get(name)
        allocatable = self._nodes.get(name, {})
        try:
            if found is not None:
                found = self._catalogue.in_cpus(found, self._cpus.get(name, 0))
            elif allocatable.get(GPU, 0) >= 1000:
                found = self._catalogue.flat(
                    allocatable[GPU] // 1000, allocatable.get("cpu", 0) // 1000
                )
        except TopologyError as error:
            self.problems[f"Node {name}"] = str(error)
            return None
        return found

    def _derive(self, name: str, without: Collection[str] = ()) -> NodeState | None:
        """Work out a node, None if it is none that matters; without the pods of these uids."""
        allocatable, hardware = self._nodes.get(name), self._hardware_of(name)
        if allocatable is None or hardware is None or hardware.server.num_gpus == 0:
            return None
        assert self._models is not None
        here = self._on_node.get(name, {})
        pods = [pod for pod in [*here.values(), *self._planned(name)] if pod.uid not in without]
        doomed = self.reservations.doomed(name)
        state = derive(
            NodeFacts(hardware, allocatable, pods, self._marks.get(name, {}), doomed),
            ClusterFacts(self._models, self._width, self.budgets.index_of, self.clock()),
        )
        for key in self._unread.get(name, {}).values():
            state.broken = f"pod {key!r} on it cannot be read"
        return state

    def _planned(self, name: str) -> list[PodRecord]:
        """Return the pods that were promised a node and are not seen there yet."""
        here = self._on_node.get(name, {})
        return [pod for pod in self.reservations.planned(name) if pod.uid not in here]

    def nominees(self, name: str) -> list[PodRecord]:
        """Return the pods that are nominated for a node, or were promised it a moment ago."""
        here = [pod for pod in self._on_node.get(name, {}).values() if not pod.node]
        return here + self._planned(name)

    def state_of(self, name: str, preemptor: PodRecord) -> NodeState | None:
        """Return a node as the preemptor finds it.

        What is kept there for itself, or for pods that come after it, is free.
        """
        self.refresh()
        nominees = self.nominees(name)
        is_one = any(pod.uid == preemptor.uid for pod in nominees) or preemptor.nominated == name
        after = {pod.uid for pod in nominees if not goes_before(pod, preemptor, is_one)}
        return self._derive(name, without=after) if after else self._table.states.get(name)

    def without(self, name: str, uid: str) -> NodeState | None:
        """Return a node as it would be without a pod."""
        self.refresh()
        return self._derive(name, without={uid})

    def states_of(self, names: Iterable[str], preemptor: PodRecord) -> dict[str, NodeState]:
        """Return those of the nodes that can be decided about, as `state_of` does."""
        self.refresh()
        nominated, known = self._nominated_nodes(), self._table.states.get
        return {
            name: state
            for name in names
            if (state := self.state_of(name, preemptor) if name in nominated else known(name))
            and not state.broken
        }

    def _nominated_nodes(self) -> set[str]:
        """Return the nodes that anybody is nominated for."""
        found = {pod.nominated for pod in self._pending.values() if pod.nominated}
        return found | self.reservations.nodes()

    def is_unsettled(self, state: NodeState) -> bool:
        """Say whether more of a node is about to be known: where pods are that were bound lately."""
        now_s = self.clock()
        return any(
            pod.bound_s is not None and now_s - pod.bound_s < FRESH_S for pod in state.guessed
        )

    def reach_of(self, pod: PodRecord) -> Reach:
        """Return which nodes a pending pod may go to."""
        return Reach(pod, self.traits, self.pods.values(), self._shy.values())

    def view(
        self,
        preemptor: PodRecord,
        nodes: dict[str, NodeState],
        *,
        worst_case: bool,
        respect_budgets: bool = True,
    ) -> ClusterView:
        """Return some nodes as a cluster of their own; see `build_view`.

        Args:
            preemptor: the pending pod.
            nodes: from `state_of`, none of them broken; at least one.
            worst_case: see `build_view`.
            respect_budgets: False lets budgets be violated, which is for when nothing else helps.
        """
        self.refresh()
        assert self._models is not None
        left = self.budgets.left()
        sums, waiting = self._table.sums, self._pending.values()
        online = [pod.gpus for pod in waiting if pod.online and pod.uid != preemptor.uid]
        batch = [pod for pod in waiting if not pod.online and pod.uid != preemptor.uid]
        sizes = [pod.gpus for pod in batch]
        waiting_gpus = (
            sum(online) + preemptor.gpus,
            sum(sizes),
            sum(size for size in sizes if size <= 1),
            sum(size for size in sizes if size == 2),
            sum(size for size in sizes if 2 < size <= 4),
            sum(pod.gpus for pod in batch if pod.group),
        )
        return build_view(
            preemptor,
            nodes,
            Surroundings(
                models=self._catalogue.models,
                table=self._models,
                pdb_left=left if respect_budgets else [2**31] * len(left),
                totals={
                    "now_s": self.clock(),
                    **{name: sums[name] for name in SUMMED},
                    **dict(zip(WAITING, waiting_gpus, strict=True)),
                },
                others=self._table.other_rows(nodes),
                groups=self._table.groups(self._groups),
            ),
            worst_case=worst_case,
        )
