"""The cluster as the service remembers it: objects in, views for decisions out."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import numpy.typing as npt

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.state.schema import TOTALS_FIELDS
from flextopo.cluster.topology.model import compile_models
from flextopo.policies.serving.budgets import BudgetBook
from flextopo.policies.serving.holders import ClusterFacts, NodeFacts
from flextopo.policies.serving.landing import Bare, Landings, bare
from flextopo.policies.serving.node_book import NodeBook
from flextopo.policies.serving.node_state import OVERDUE_S, NodeState, derive
from flextopo.policies.serving.node_table import NodeTable
from flextopo.policies.serving.objects import (
    VOLUME_KINDS,
    BudgetObject,
    ClaimObject,
    GangObject,
    KubeObject,
    ObjectError,
    PodGroupObject,
    PodObject,
    PriorityClassObject,
    SliceObject,
    VolcanoGroupObject,
    key_of,
)
from flextopo.policies.serving.reach import Reach, why_barred
from flextopo.policies.serving.records import CLASS_BANDS, PodRecord, parse_version, read_pod
from flextopo.policies.serving.reservations import Reservations
from flextopo.policies.serving.view import ClusterView, Surroundings, Together, build_view
from flextopo.policies.serving.volumes import VolumeBook

MAX_GONE = 100_000
"""Deleted pods that are remembered, so that a late event does not bring one back."""
SOON_S = 30
"""A victim that takes longer than Kubernetes' grace period keeps nobody from going where there is room."""
LATE_S = 5
"""A victim that is not gone so long after its time keeps nobody from going elsewhere, or evicting there."""
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


def _is_nominee(pod: PodRecord, node: str, nominees: Iterable[PodRecord]) -> bool:
    """Say whether a pod is among the nominees of a node, or says so itself, which the watch may show later."""
    return pod.nominated == node or any(one.uid == pod.uid for one in nominees)


def _id_of(obj: KubeObject) -> str:
    """Return what tells an object from others of its kind: the uid of a pod, else its name."""
    return obj.metadata.uid if isinstance(obj, PodObject) else key_of(obj.metadata)


SKEW_S = 2
"""Clocks that differ by less are taken for the same: an answer's date is in whole seconds."""
MOST_SKEW_S = 86_400
"""No clock differs by more from this machine's, whatever time zone one of them is set to: with a date of next
year nobody would be in its protected time."""


def make_clock() -> Callable[[], int]:
    """Return a clock of Unix seconds that a change of the system's time does not move."""
    begin, start = time.time(), time.monotonic()
    return lambda: int(begin + time.monotonic() - start)


GROUP_KINDS = (PodGroupObject.KIND, GangObject.KIND, VolcanoGroupObject.KIND)


class ClusterCache:
    """Pods, nodes, FlexTopo objects, budgets, classes and groups; nodes are worked out when asked.

    Args:
        clock: Unix time in seconds of this machine.
        bands: priorities from which on batch pods are of class 1, 2, ...

    Attributes:
        ahead_s: seconds by which the apiserver's clock is ahead of this machine's.
        bands: priorities from which on batch pods are of class 1, 2, ...
        pods: every pod by uid.
        budgets: PodDisruptionBudgets.
        problems: what is wrong with objects, by kind and name; such objects are left out.
        reservations: what was answered a moment ago.
        hosts: what is told of nodes.
        volumes: PersistentVolumes, their claims and classes.
    """

    def __init__(
        self, clock: Callable[[], int] | None = None, bands: Sequence[int] = CLASS_BANDS
    ) -> None:
        self._own_clock = clock or make_clock()
        self.ahead_s = 0
        self.bands = bands
        self.pods: dict[str, PodRecord] = {}
        self.budgets = BudgetBook()
        self.problems: dict[str, str] = {}
        self._objects: dict[str, PodObject] = {}
        self._on_node: dict[str, dict[str, PodRecord]] = {}
        self.hosts = NodeBook()
        self.volumes = VolumeBook()
        self.reservations = Reservations(time.monotonic, self._dirty_add)
        self.classes: dict[str, PriorityClassObject] = {}
        self._groups: dict[str, PodGroupObject] = {}
        self._pending: dict[str, PodRecord] = {}
        self._nominated: dict[str, dict[str, PodRecord]] = {}
        self._claiming: dict[str, set[str]] = {}
        self._shy: dict[str, PodRecord] = {}
        self._leaving: dict[str, set[str]] = {}
        self._grouped: dict[str, dict[str, PodRecord]] = {}
        self._table = NodeTable()
        self._bare: dict[str, Bare] = {}
        self._landings = Landings()
        self._unread: dict[str, dict[str, str]] = {}
        self._dirty: set[str] = set()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._versions: dict[str, int] = {}
        self._models: npt.NDArray[Any] | None = None
        self._width = 0

        about_node, gone = self._put_about_node, self._remove_about_node
        self._puts: dict[str, Callable[[Any], None]] = {
            "Pod": self._put_pod,
            "Node": about_node(self.hosts.put_node),
            "FlexTopo": about_node(self.hosts.put_flextopo),
            "NodeResourceTopology": about_node(self.hosts.put_zones),
            "PodDisruptionBudget": self._put_budget,
            "PriorityClass": self._put_class,
            **dict.fromkeys(GROUP_KINDS, self._put_group),
            "ResourceSlice": self._put_slice,
            "ResourceClaim": self._put_claim,
            **dict.fromkeys((kind.KIND for kind in VOLUME_KINDS), self.volumes.put),
        }
        self._removes: dict[str, Callable[[str], None]] = {
            "Pod": self._remove_pod,
            "Node": gone(self.hosts.remove_node),
            "FlexTopo": gone(self.hosts.remove_flextopo),
            "NodeResourceTopology": gone(lambda name: self.hosts.zones.pop(name, None)),
            "PodDisruptionBudget": self._remove_budget,
            "PriorityClass": self._remove_class,
            **dict.fromkeys(GROUP_KINDS, self._remove_group),
            "ResourceSlice": self._remove_slice,
            "ResourceClaim": self._remove_claim,
            **{kind.KIND: partial(self.volumes.remove, kind.KIND) for kind in VOLUME_KINDS},
        }

    def clock(self) -> int:
        """Return the Unix time in seconds as the apiserver has it, whose times stand in objects."""
        return self._own_clock() + self.ahead_s

    def told_time(self, now_s: int) -> None:
        """Take note of the time that the apiserver has, if it is any that a clock may show."""
        ahead_s = now_s - self._own_clock()
        if abs(ahead_s) <= MOST_SKEW_S and abs(ahead_s - self.ahead_s) >= SKEW_S:
            self.ahead_s = ahead_s
            self._dirty |= self.hosts.allocatable.keys()

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

    def group(self, key: str) -> PodGroupObject | None:
        """Return a PodGroup by `namespace/name`, None where there is no such object."""
        return self._groups.get(key)

    def members_of(self, group: str) -> list[PodRecord]:
        """Return the pods of a group that are neither finished nor on their way out."""
        return [pod for pod in self._grouped.get(group, {}).values() if not pod.terminating]

    def pods_on(self, node: str) -> list[PodRecord]:
        """Return the pods that are bound to a node or nominated for it."""
        return list(self._on_node.get(node, {}).values())

    def mark_terminating(self, uid: str) -> None:
        """Remember that a pod's eviction was accepted, until the watch shows it."""
        pod = self.pods.get(uid)
        if pod is not None:
            pod.terminating = True
            self._dirty.add(pod.node)
            self._leaving.setdefault(pod.node, set()).add(uid)

    def put(self, obj: KubeObject) -> None:
        """Add or change an object; an older version than the known one is ignored."""
        name = f"{obj.KIND} {_id_of(obj)}"
        version = parse_version(obj.metadata.resourceVersion)
        if version and version <= self._versions.get(name, 0):
            return
        if obj.metadata.uid in self._gone:
            return
        try:
            self._puts[type(obj).KIND](obj)
            self.problems.pop(name, None)
        except (ObjectError, TopologyError) as error:
            self.problems[name] = str(error)
        self._versions[name] = version

    def _put_about_node(self, put: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return what puts an object that is named after a node."""

        def put_it(obj: Any) -> None:
            self._dirty.add(obj.metadata.name)
            put(obj)

        return put_it

    def _put_budget(self, obj: BudgetObject) -> None:
        if self.budgets.put(obj):
            self._touch(obj.metadata.namespace or "")

    def _put_class(self, obj: PriorityClassObject) -> None:
        self.classes[obj.metadata.name] = obj
        self._reread(lambda pod: pod.spec.priorityClassName == obj.metadata.name)

    def _put_group(self, obj: PodGroupObject) -> None:
        self._groups[key_of(obj.metadata)] = obj

    def _put_slice(self, obj: SliceObject) -> None:
        self._dirty |= self.hosts.devices.put_slice(obj)

    def _put_claim(self, obj: ClaimObject) -> None:
        self._dirty |= self.hosts.devices.put_claim(obj)
        self._reread_claim(key_of(obj.metadata))

    def _reread(self, concerns: Callable[[PodObject], bool]) -> None:
        """Read some pods again, and work out their nodes."""
        for pod in list(self._objects.values()):
            if concerns(pod):
                self._put_pod(pod)

    def _reread_claim(self, key: str) -> None:
        for uid in list(self._claiming.get(key, ())):
            self._put_pod(self._objects[uid])

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
        except Exception as error:
            # It must not vanish: its node is left out of decisions while it is there.
            self._unread.setdefault(node, {})[uid] = key_of(obj.metadata)
            self._dirty.add(node)
            if isinstance(error, ObjectError):
                raise
            raise ObjectError(f"pod {key_of(obj.metadata)!r}: {error!r}") from error
        known = self.pods.get(uid)
        if known is not None and (known.key != record.key or known.node not in ("", node)):
            self._unread.setdefault(node, {})[uid] = record.key
            self._dirty.add(node)
            where = f" on node {known.node!r}" if known.node else ""
            raise ObjectError(f"pod {record.key!r}: its uid is that of {known.key!r}{where}")
        if record.finished:
            self._make_way(known)
        self._forget(uid, node)
        self.reservations.seen(record)
        self.pods[uid] = record
        if not record.finished:
            self._list(record)
        if obj.spec.priorityClassName or record.claims:
            self._objects[uid] = obj
        for claim in record.claims:
            self._claiming.setdefault(claim, set()).add(uid)
        # (One that leaves before it is bound has no place any more, however long a finalizer keeps it.)
        place = record.node or ("" if record.terminating else record.nominated)
        if place and not record.finished:
            self._on_node.setdefault(place, {})[uid] = record
            self._dirty.add(place)
            if not record.node:
                self._nominated.setdefault(place, {})[uid] = record

    def _list(self, record: PodRecord) -> None:
        """List a pod that is not finished with its likes."""
        if record.placing.far:
            self._shy[record.uid] = record
        if record.group:
            self._grouped.setdefault(record.group, {})[record.uid] = record
        if not record.node:
            self._pending[record.uid] = record
        elif record.terminating:
            self._leaving.setdefault(record.node, set()).add(record.uid)

    def read(self, obj: PodObject) -> PodRecord:
        """Return what is remembered of a pod; the cache stays as it is.

        Raises:
            ObjectError: a quantity, number or time in it is not one.
        """
        return read_pod(obj, self.classes, self.bands, self.hosts.devices.of_pod(obj))

    def remove(self, obj: KubeObject) -> None:
        """Remove an object; a pod is remembered as gone."""
        word, found = type(obj).KIND, _id_of(obj)
        if isinstance(obj, PodObject):
            node, known = obj.spec.nodeName or "", self.pods.get(found)
            if known is not None and known.key != key_of(obj.metadata):
                # It had another pod's uid, which stays.
                self._unread.get(node, {}).pop(found, None)
                self._dirty.add(node)
                return
            self._make_way(known)
            self._forget(found, node)
            self._gone[found] = None
            if len(self._gone) > MAX_GONE:
                self._gone.popitem(last=False)
        self._removes[word](found)
        self._versions.pop(f"{word} {found}", None)
        self.problems.pop(f"{word} {found}", None)

    def _remove_pod(self, uid: str) -> None:
        self._make_way(self.pods.get(uid))
        self._forget(uid)
        self.reservations.forget(uid)

    def _make_way(self, gone: PodRecord | None) -> None:
        """Give whom a pod was evicted for some time from now on, however long it did not ask.

        Where victims are not known any more, after a restart, it is whom a terminating pod leaves GPUs to.
        """
        if gone is None or not gone.node or gone.finished:
            return
        for pod in self.nominees(gone.node):
            told = self.reservations.answered(pod.uid)
            mine = gone.terminating and gone.gpus > 0 and pod.priority > gone.priority
            if gone.uid in told[1] if told is not None else mine:
                self.reservations.keep(pod.uid, gone.node)

    def _remove_about_node(self, remove: Callable[[str], object]) -> Callable[[str], None]:
        def remove_it(name: str) -> None:
            self._dirty.add(name)
            remove(name)

        return remove_it

    def _remove_budget(self, key: str) -> None:
        self.budgets.remove(key)
        self._dirty |= self.hosts.allocatable.keys()

    def _remove_class(self, name: str) -> None:
        self.classes.pop(name, None)

    def _remove_group(self, key: str) -> None:
        self._groups.pop(key, None)

    def _remove_slice(self, name: str) -> None:
        self._dirty |= self.hosts.devices.remove_slice(name)

    def _remove_claim(self, key: str) -> None:
        self._dirty |= self.hosts.devices.remove_claim(key)
        self._reread_claim(key)

    def replace(self, kind: type[KubeObject], objects: Iterable[KubeObject]) -> None:
        """Take a fresh list of all objects of a kind: what is not in it is gone."""
        word, keep = kind.KIND, set()
        for obj in objects:
            # A list is the truth, also where it is older: after a restored backup, say.
            self._versions.pop(f"{word} {_id_of(obj)}", None)
            self.put(obj)
            keep.add(_id_of(obj))
        known = {name.partition(" ")[2] for name in self._versions if name.startswith(f"{word} ")}
        for found in known - keep:
            self._removes[word](found)
            self._versions.pop(f"{word} {found}", None)
            self.problems.pop(f"{word} {found}", None)
        self.volumes.listed.add(kind)
        if kind is PodObject:
            for node, unread in self._unread.items():
                for uid in unread.keys() - keep:
                    del unread[uid]
                    self._dirty.add(node)

    def lack(self, kind: type[KubeObject]) -> None:
        """Remember that nobody tells of a kind."""
        self.replace(kind, [])
        self.volumes.listed.discard(kind)

    def _forget(self, uid: str, node: str = "") -> None:
        if node in self._unread and self._unread[node].pop(uid, ""):
            self._dirty.add(node)
        record = self.pods.pop(uid, None)
        if record is None:
            return
        self._objects.pop(uid, None)
        for claim in record.claims:
            self._claiming[claim].discard(uid)
            if not self._claiming[claim]:
                del self._claiming[claim]
        self._pending.pop(uid, None)
        self._shy.pop(uid, None)
        leaving = self._leaving.get(record.node, set())
        leaving.discard(uid)
        if not leaving:
            self._leaving.pop(record.node, None)
        grouped = self._grouped.get(record.group, {})
        if grouped.pop(uid, None) is not None and not grouped:
            del self._grouped[record.group]
        nominated = self._nominated.get(record.nominated, {})
        if nominated.pop(uid, None) is not None and not nominated:
            del self._nominated[record.nominated]
        for place in (record.node, record.nominated):
            if place in self._on_node and self._on_node[place].pop(uid, None) is not None:
                self._dirty.add(place)

    def refresh(self) -> None:
        """Work out the nodes that have changed."""
        self.reservations.expire()
        if not self._dirty:
            return
        for name in self._dirty & self.hosts.allocatable.keys():
            problem = self.hosts.problem_of(name)
            if problem:
                self.problems[f"Node {name}"] = problem
        models = self.hosts.catalogue.models
        if self._models is None or len(self._models) != len(models):
            self._models = compile_models(models) if models else None
            width = max((model.num_numa_nodes for model in models), default=1)
            if width != self._width:
                self._width = width
                self._dirty |= self.hosts.allocatable.keys()
        while self._dirty:
            name = self._dirty.pop()
            self._bare.pop(name, None)
            try:
                state = self._derive(name)
            except Exception as error:  # noqa: BLE001  one node may not take the others along
                self.problems[f"Node {name}"] = f"node {name!r} cannot be worked out: {error!r}"
                state = None
            self._table.set(name, state)

    def _derive(self, name: str, without: Collection[str] = ()) -> NodeState | None:
        """Work out a node, None if it is none that matters; without the pods of these uids."""
        hosts, here = self.hosts, self._on_node.get(name, {})
        allocatable = hosts.offered(name)
        if allocatable is None or hosts.problem_of(name):
            return None
        hardware = hosts.hardware_of(name)
        if hardware is None or hardware.server.num_gpus == 0:
            return None
        assert self._models is not None
        pods = [pod for pod in [*here.values(), *self._planned(name)] if pod.uid not in without]
        state = derive(
            NodeFacts(
                hardware,
                allocatable,
                pods,
                hosts.marks.get(name, {}),
                self.reservations.doomed(name),
                hosts.numbers_of(name),
                hosts.blocked(name, here),
                hosts.kept.get(name, ()),
            ),
            ClusterFacts(self._models, self._width, self.budgets.index_of, self.clock()),
        )
        for key in self._unread.get(name, {}).values():
            state.broken = f"pod {key!r} on it cannot be read"
        return state

    def _planned(self, name: str) -> list[PodRecord]:
        """Return the pods that were promised a node and are not seen there yet."""
        here = self._on_node.get(name, {})
        return [pod for pod in self.reservations.planned(name) if pod.uid not in here]

    def is_planned(self, name: str) -> bool:
        """Say whether somebody is nominated for a node, or was promised it a moment ago."""
        return name in self._nominated or name in self.reservations.least

    def nominees(self, name: str) -> list[PodRecord]:
        """Return the pods that are nominated for a node, or were promised it a moment ago."""
        promised = self.reservations.planned(name)
        if name not in self._nominated:
            return promised
        return [*self._nominated[name].values(), *self._planned(name)]

    def promised(self, name: str, preemptor: PodRecord) -> str:
        """Return a pod that was promised a node and comes before another, empty for none."""
        ahead = (pod for pod in self._planned(name) if goes_before(pod, preemptor, False))
        return next((pod.key for pod in ahead), "")

    def spoiled(self, name: str, preemptor: PodRecord, *, after: bool = False) -> list[PodRecord]:
        """Return who would find its place on a node unfit once another pod is there: see `Landings`.

        Args:
            name: of the node.
            preemptor: the pod.
            after: look at pods that come after it, and not at guaranteed ones that come before it.
        """
        if not self.is_planned(name):
            return []
        nominees = self.nominees(name)
        is_one = _is_nominee(preemptor, name, nominees)
        kept = [
            one
            for one in nominees
            if one.uid != preemptor.uid and goes_before(one, preemptor, is_one) != after
        ]
        if not kept or not (after or any(one.guaranteed for one in kept)):
            return []
        node = self._without_nominees(name, nominees)
        if node is None or node.state.broken:
            return []
        kept.sort(key=attrgetter("importance"))
        since_s = self.clock() - OVERDUE_S
        return self._landings.spoiled(self.table, node.since(since_s), kept, preemptor)

    def may_spoil(self, name: str, other: PodRecord, preemptor: PodRecord) -> bool:
        """Say whether a pod might be given what another finds free on a node, if it is bound there before.

        The first has a place planned there, beside which the second fits; kubelet does not know of that.
        """
        nominees = self.nominees(name)
        is_one = _is_nominee(preemptor, name, nominees)
        behind = {one.uid for one in nominees if not goes_before(one, preemptor, is_one)}
        state = self._derive(name, without={other.uid, preemptor.uid, *behind})
        if state is None or state.broken:
            return True
        now = Bare(state, ())
        return bool(self._landings.spoiled(self.table, now, [preemptor], other))

    def _without_nominees(self, name: str, nominees: Iterable[PodRecord]) -> Bare | None:
        """Return a node without those that are nominated for it, remembered until it changes."""
        self.refresh()
        found = self._bare.get(name)
        if found is None:
            state = self._derive(name, without={one.uid for one in nominees})
            if state is not None:
                found = self._bare[name] = bare(state)
        return found

    def state_of(self, name: str, preemptor: PodRecord) -> NodeState | None:
        """Return a node as the preemptor finds it.

        What is kept there for itself, or for pods that come after it, is free.
        """
        self.refresh()
        return self._as_found(name, preemptor)

    def _as_found(
        self, name: str, preemptor: PodRecord, together: Collection[str] = ()
    ) -> NodeState | None:
        nominees = self.nominees(name)
        is_one, some_after = preemptor.nominated == name, False
        for pod in nominees:
            is_one = is_one or pod.uid == preemptor.uid or pod.uid in together
            some_after = some_after or pod.priority < preemptor.priority
        if not is_one and not some_after:
            return self._table.states.get(name)
        after = {pod.uid for pod in nominees if not goes_before(pod, preemptor, is_one)}
        return self._derive(name, without=after) if after else self._table.states.get(name)

    def without(self, name: str, uid: str) -> NodeState | None:
        """Return a node as it would be without a pod."""
        self.refresh()
        return self._derive(name, without={uid})

    def states_of(
        self, names: Iterable[str], preemptor: PodRecord, others: Sequence[PodRecord] = ()
    ) -> dict[str, NodeState]:
        """Return those of the nodes that can be decided about, as `state_of` does.

        What is kept for other pods that start together with the preemptor, and come after it, is free.
        """
        self.refresh()
        known, least, kept = self._table.states.get, self.reservations.least.get, {*self._nominated}
        for pod in (preemptor, *others):
            told = self.reservations.answered(pod.uid)
            kept |= {pod.nominated, told[0] if told is not None else ""}
        together = {pod.uid for pod in others}
        return {
            name: state
            for name in names
            if (
                state := self._as_found(name, preemptor, together)
                # On most nodes nobody comes after the preemptor, and there may be hundreds.
                if name in kept or least(name, math.inf) < preemptor.priority
                else known(name)
            )
            and not state.broken
        }

    def kept_for(self, preemptor: PodRecord, evicts: bool = False) -> str:
        """Return the node on which others are on their way out for a pod, empty for none.

        It stays that node for a moment after they are gone: kube-scheduler may not know it yet. A node
        that is gone, or takes the pod no more, is kept for nothing.

        Args:
            preemptor: the pod.
            evicts: it would have others evicted elsewhere, not just go where there is room: nobody else has
                to go for it as long as its victims' own grace periods last.
        """
        told = self.reservations.answered(preemptor.uid)
        node = told[0] if told is not None else preemptor.nominated
        if not node or why_barred(preemptor, node, self.hosts.traits.get(node)):
            return ""
        doomed = set(told[1]) if told is not None else set()
        here = self.pods_on(node)
        if any(self._is_going(pod, preemptor, doomed, SOON_S) for pod in here):
            self.reservations.keep(preemptor.uid, node)
        elif evicts and any(self._is_going(pod, preemptor, doomed, math.inf) for pod in here):
            return node
        return self.reservations.kept(preemptor.uid, node)

    def _is_going(
        self, pod: PodRecord, preemptor: PodRecord, doomed: Collection[str], soon_s: float
    ) -> bool:
        """Say whether a pod is on its way out for the preemptor, gone within so long, or was told to go."""
        if not pod.node or pod.priority >= preemptor.priority:
            return False
        if not pod.terminating:
            return pod.uid in doomed
        return pod.gone_s is None or -soon_s <= self.clock() - pod.gone_s <= LATE_S

    def leaving_soon(self) -> dict[str, list[PodRecord]]:
        """Return the pods that leave nodes, where all of them are gone within Kubernetes' grace period."""
        now_s, found = self.clock(), dict[str, list[PodRecord]]()
        for name, uids in self._leaving.items():
            pods = [self.pods[uid] for uid in uids]
            gone_s = [pod.gone_s for pod in pods if pod.gone_s is not None]
            if all(-SOON_S <= now_s - at_s <= LATE_S for at_s in gone_s):
                found[name] = pods
        return found

    def is_stuck(self, node: str) -> bool:
        """Say whether a terminating pod of a node is not counted on any more: its time is long over."""
        over_s = self.clock() - OVERDUE_S
        return any(
            pod.node and pod.terminating and pod.gone_s is not None and pod.gone_s < over_s
            for pod in self.pods_on(node)
        )

    def is_unsettled(self, state: NodeState) -> bool:
        """Say whether more of a node is about to be known: where pods are that were bound lately."""
        now_s = self.clock()
        return any(
            pod.bound_s is not None and now_s - pod.bound_s < FRESH_S for pod in state.guessed
        )

    def reach_of(self, pod: PodRecord, seats: Mapping[str, str] | None = None) -> Reach:
        """Return which nodes a pending pod may go to.

        Args:
            pod: the pending pod.
            seats: where other pending pods are to be thought of, by uid; "" = nowhere.
        """
        volumes = self.volumes if self.volumes.known else None

        def seated(pods: Iterable[PodRecord]) -> Iterable[PodRecord]:
            if not seats:
                return pods
            return (
                replace(one, nominated=seats[one.uid]) if one.uid in seats else one for one in pods
            )

        pods, shy = seated(self.pods.values()), seated(self._shy.values())
        return Reach(pod, self.hosts.traits, pods, shy, volumes, self.hosts.why_no_gpus)

    def view(
        self,
        preemptor: PodRecord,
        nodes: dict[str, NodeState],
        *,
        worst_case: bool,
        respect_budgets: bool = True,
        gang: Together | None = None,
    ) -> ClusterView:
        """Return some nodes as a cluster of their own; see `build_view`.

        Args:
            preemptor: the pending pod.
            nodes: from `state_of`, none of them broken; at least one.
            worst_case: see `build_view`.
            respect_budgets: False lets budgets be violated, which is for when nothing else helps.
            gang: of which the preemptor is the leader.
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
                models=self.hosts.catalogue.models,
                table=self._models,
                pdb_left=left if respect_budgets else [2**31] * len(left),
                totals={
                    "now_s": self.clock(),
                    **{name: sums[name] for name in SUMMED},
                    **dict(zip(WAITING, waiting_gpus, strict=True)),
                },
                others=self._table.other_rows(nodes),
                groups=partial(self._table.groups, known=self._groups),
            ),
            worst_case=worst_case,
            gang=gang,
        )
