"""The cluster as the service remembers it: objects in, views for decisions out."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy.typing as npt

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.state.schema import TOTALS_FIELDS
from flextopo.cluster.topology.model import compile_models
from flextopo.policies.serving.budgets import BudgetBook
from flextopo.policies.serving.holders import ClusterFacts, NodeFacts
from flextopo.policies.serving.node_book import NodeBook
from flextopo.policies.serving.node_rows import RowPacker
from flextopo.policies.serving.node_state import NodeState, derive
from flextopo.policies.serving.node_table import NodeTable
from flextopo.policies.serving.objects import (
    VOLUME_KINDS,
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
from flextopo.policies.serving.pod_book import PodBook
from flextopo.policies.serving.reach import Reach
from flextopo.policies.serving.records import CLASS_BANDS, PodRecord, parse_version, read_pod
from flextopo.policies.serving.reservations import PLAN_S, Reservations
from flextopo.policies.serving.view import ClusterView, Surroundings, Together, build_view
from flextopo.policies.serving.volumes import VolumeBook

MAX_GONE = 100_000
"""Deleted pods that are remembered, so that a late event does not bring one back."""
SUMMED = ("gpus", "free_gpus", "online_gpus", "batch_gpus")
"""Fields of TOTALS_DTYPE that are sums over nodes."""
WAITING = (
    "wait_gpus",
    "batch_wait_gpus",
    "batch_wait_1",
    "batch_wait_2",
    "batch_wait_4",
    "batch_wait_group",
)
"""Those that are sums over pending pods."""

_summed = itemgetter(*SUMMED)
pack_totals = RowPacker(TOTALS_FIELDS, ("now_s", *SUMMED, *WAITING))


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
        book: the pods, by what they do.
        pods: every pod by uid.
        budgets: PodDisruptionBudgets.
        problems: what is wrong with objects, by kind and name. Such objects are left out, but for pods of
            which annotations alone cannot be read: these are taken for what harms nobody.
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
        self.book = PodBook()
        self.pods = self.book.by_uid
        self.budgets = BudgetBook(self.clock, self._named)
        self.problems: dict[str, str] = {}
        self._objects: dict[str, PodObject] = {}
        self.hosts = NodeBook()
        self.volumes = VolumeBook()
        self.reservations = Reservations(time.monotonic, self._dirty_add)
        self.classes: dict[str, PriorityClassObject] = {}
        self._groups: dict[str, PodGroupObject] = {}
        self._table = NodeTable()
        self._unread: dict[str, dict[str, str]] = {}
        self._unusable: dict[str, str] = {}
        self._dirty: set[str] = set()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._versions: dict[tuple[str, str], int] = {}
        self._models: npt.NDArray[Any] | None = None
        self._width = 0

        about_node, gone = self._put_about_node, self._remove_about_node
        self._puts: dict[str, Callable[[Any], None]] = {
            "Pod": self._put_pod,
            "Node": about_node(self.hosts.put_node),
            "FlexTopo": about_node(self.hosts.put_flextopo),
            "NodeResourceTopology": about_node(self.hosts.put_zones),
            "PodDisruptionBudget": self.budgets.put,
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
            "PodDisruptionBudget": self.budgets.remove,
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

    def _dirty_add(self, name: str) -> None:
        self._dirty.add(name)
        self.budgets.recount()

    def _named(self) -> Iterator[PodRecord]:
        """Yield the pods that were named as victims, and are not on their way out yet."""
        for uid in self.reservations.all_doomed():
            pod = self.pods.get(uid)
            if pod is not None and not (pod.terminating or pod.finished):
                yield pod

    def _leave(self, known: PodRecord | None) -> None:
        """Have budgets note that a pod is on its way out, or gone, if that is new."""
        if known is not None and not known.terminating:
            self.budgets.leave(known)

    def group(self, key: str) -> PodGroupObject | None:
        """Return a PodGroup by `namespace/name`, None where there is no such object."""
        return self._groups.get(key)

    def mark_terminating(self, uid: str) -> None:
        """Remember that a pod's eviction was accepted, until the watch shows it."""
        self._leave(self.pods.get(uid))
        node = self.book.leave(uid)
        if node:
            self._dirty.add(node)

    def put(self, obj: KubeObject) -> None:
        """Add or change an object; an older version than the known one is ignored."""
        kind, found = obj.KIND, _id_of(obj)
        name = f"{kind} {found}"
        version = parse_version(obj.metadata.resourceVersion)
        if version and version <= self._versions.get((kind, found), 0):
            return
        if obj.metadata.uid in self._gone:
            return
        self.problems.pop(name, None)
        try:
            self._puts[kind](obj)
        except (ObjectError, TopologyError) as error:
            self.problems[name] = str(error)
        self._versions[kind, found] = version

    def _put_about_node(self, put: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return what puts an object that is named after a node."""

        def put_it(obj: Any) -> None:
            self._dirty.add(obj.metadata.name)
            put(obj)

        return put_it

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
        for uid in self.book.claiming(key):
            self._put_pod(self._objects[uid])

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
        if record.terminating:
            self._leave(known)
        self._forget(uid, node)
        self.reservations.seen(record)
        self._heed(record)
        if obj.spec.priorityClassName or record.claims:
            self._objects[uid] = obj
        place = self.book.put(record)
        if place:
            self._dirty.add(place)
        if record.faults:
            self.problems[f"Pod {uid}"] = "; ".join(record.faults)

    def _heed(self, pod: PodRecord) -> None:
        """Keep the place that a controller in another process has noted on a pod.

        Anybody may write an annotation: it counts on a pod alone that kube-scheduler has refused, as all have been that
        a controller attends to.
        """
        left_s = PLAN_S - abs(self.clock() - pod.attended_s)
        pending = pod.refused and not (pod.node or pod.finished or pod.terminating)
        told = self.reservations.answered(pod.uid)
        if left_s <= 0 or not (pending and pod.attended_on):
            if self.reservations.is_noted(pod.uid):
                self.reservations.forget_answer(pod.uid)  # the controller has given it up
        elif told is None and pod.nominated in ("", pod.attended_on):
            self.reservations.answer(pod, pod.attended_on, (), left_s, noted=True)
        elif told == (pod.attended_on, ()):
            self.reservations.renew(pod.uid, left_s)

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
            self._gone[found] = None
            if len(self._gone) > MAX_GONE:
                self._gone.popitem(last=False)
            self._remove_pod(found, node)
        self._take_out(word, found)

    def _take_out(self, word: str, found: str) -> None:
        """Forget what is known of an object, by its kind and what tells it from others."""
        self._removes[word](found)
        self._versions.pop((word, found), None)
        self.problems.pop(f"{word} {found}", None)

    def _remove_pod(self, uid: str, node: str = "") -> None:
        self._make_way(self.pods.get(uid))
        self._leave(self.pods.get(uid))
        self._forget(uid, node)
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
            self._versions.pop((word, _id_of(obj)), None)
            self.put(obj)
            keep.add(_id_of(obj))
        known = {found for of, found in self._versions if of == word}
        for found in known - keep:
            self._take_out(word, found)
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
        self._objects.pop(uid, None)
        self._dirty.update(self.book.remove(uid))

    def refresh(self, ahead_s: float = 0.0) -> None:
        """Work out the nodes that have changed, or will have in so many seconds by what is over then."""
        self.reservations.expire(ahead_s)
        self._dirty |= self.budgets.moved(self.book)
        if not self._dirty:
            return
        for name in self._dirty & self.hosts.allocatable.keys():
            key, problem = f"Node {name}", self.hosts.problem_of(name)
            if self.problems.get(key) == self._unusable.pop(name, None):
                self.problems.pop(key, None)
            if problem:
                self.problems[key] = self._unusable[name] = problem
        models = self.hosts.catalogue.models
        if self._models is None or len(self._models) != len(models):
            self._models = compile_models(models) if models else None
            width = max((model.num_numa_nodes for model in models), default=1)
            if width != self._width:
                self._width = width
                self._dirty |= self.hosts.allocatable.keys()
        for name in sorted(self._dirty):  # the order of a set is another in each process
            self._dirty.discard(name)
            try:
                state = self.derive(name)
            except Exception as error:  # noqa: BLE001  one node may not take the others along
                self.problems[f"Node {name}"] = f"node {name!r} cannot be worked out: {error!r}"
                state = None
            self._table.set(name, state)

    def derive(
        self,
        name: str,
        without: Collection[str] = (),
        beside: Sequence[PodRecord] = (),
        doomed: Collection[str] = (),
        asking: PodRecord | None = None,
    ) -> NodeState | None:
        """Work out a node.

        Args:
            name: of the node.
            without: uids of pods that are thought away.
            beside: pending pods that are thought to be nominated for it.
            doomed: uids of pods that are thought to be on their way out.
            asking: a pod that the nominated ones leave room for, if they can.

        Returns:
            None if it is none that matters.
        """
        hosts, here = self.hosts, self.book.on_node.get(name, {})
        allocatable = hosts.offered(name)
        if allocatable is None or hosts.problem_of(name):
            return None
        hardware = hosts.hardware_of(name)
        if hardware is None or hardware.server.num_gpus == 0:
            return None
        assert self._models is not None
        pods = [pod for pod in [*here.values(), *self.planned(name)] if pod.uid not in without]
        pods += beside
        state = derive(
            NodeFacts(
                hardware,
                allocatable,
                pods,
                hosts.marks.get(name, {}),
                self.reservations.doomed(name).union(doomed),
                hosts.numbers_of(name),
                hosts.blocked(name, here),
                hosts.kept.get(name, ()),
                asking,
            ),
            ClusterFacts(self._models, self._width, self.budgets.index_of, self.clock()),
        )
        for key in self._unread.get(name, {}).values():
            state.broken = f"pod {key!r} on it cannot be read"
        return state

    def planned(self, name: str) -> list[PodRecord]:
        """Return the pods that were promised a node and are not seen there yet."""
        here = self.book.on_node.get(name, {})
        return [pod for pod in self.reservations.planned(name) if pod.uid not in here]

    def nominees(self, name: str) -> list[PodRecord]:
        """Return the pods that are nominated for a node, or were promised it a moment ago."""
        promised = self.reservations.planned(name)
        if name not in self.book.nominated:
            return promised
        return [*self.book.nominated[name].values(), *self.planned(name)]

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

        pods, shy = seated(self.pods.values()), seated(self.book.shy.values())
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
        left, now_s = self.budgets.left(), self.clock()
        sums, waiting = self._table.sums, self.book.pending.values()
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
                now_s=now_s,
                totals=pack_totals(now_s, *_summed(sums), *waiting_gpus),
                rows=self._table.rows_of(nodes),
                groups=partial(self._table.groups, known=self._groups)
                if self._table.has_groups
                else None,
            ),
            worst_case=worst_case,
            gang=gang,
        )
