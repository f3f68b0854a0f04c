"""Pods by what they do: on which node, pending, nominated, leaving, in which group."""

from __future__ import annotations

from collections.abc import Iterable

from flextopo.policies.serving.records import PodRecord


class PodBook:
    """Every pod that is known, and lists of those that are not finished.

    Attributes:
        by_uid: every pod.
        on_node: by the node that a pod is bound to or nominated for, then by uid.
        pending: those without a node, by uid.
        nominated: those among them that are nominated, by node, then by uid.
        leaving: uids of those that are on their way out, by node.
        shy: those that keep others away from more than their own node, by uid.
    """

    def __init__(self) -> None:
        self.by_uid: dict[str, PodRecord] = {}
        self.on_node: dict[str, dict[str, PodRecord]] = {}
        self.pending: dict[str, PodRecord] = {}
        self.nominated: dict[str, dict[str, PodRecord]] = {}
        self.leaving: dict[str, set[str]] = {}
        self.shy: dict[str, PodRecord] = {}
        self._claiming: dict[str, set[str]] = {}
        self._grouped: dict[str, dict[str, PodRecord]] = {}
        self._placed: dict[str, dict[str, PodRecord]] = {}

    def on(self, node: str) -> list[PodRecord]:
        """Return the pods that are bound to a node or nominated for it."""
        return list(self.on_node.get(node, {}).values())

    def in_group(self, group: str) -> list[PodRecord]:
        """Return the pods of a group that are neither finished nor on their way out."""
        return [pod for pod in self._grouped.get(group, {}).values() if not pod.terminating]

    def claiming(self, claim: str) -> list[str]:
        """Return the uids of the pods that have a claim."""
        return list(self._claiming.get(claim, ()))

    def put(self, record: PodRecord) -> str:
        """Add a pod that is not known; return the node whose pods are others now, empty for none."""
        uid = record.uid
        self.by_uid[uid] = record
        for claim in record.claims:
            self._claiming.setdefault(claim, set()).add(uid)
        if record.finished:
            return ""
        if record.placing.far:
            self.shy[uid] = record
        if record.group:
            self._grouped.setdefault(record.group, {})[uid] = record
        if not record.node:
            self.pending[uid] = record
        elif record.terminating:
            self.leaving.setdefault(record.node, set()).add(uid)
        # (One that leaves before it is bound has no place any more, however long a finalizer keeps it.)
        place = record.node or ("" if record.terminating else record.nominated)
        if place:
            self.on_node.setdefault(place, {})[uid] = record
            self._placed.setdefault(record.namespace, {})[uid] = record
            if not record.node:
                self.nominated.setdefault(place, {})[uid] = record
        return place

    def remove(self, uid: str) -> list[str]:
        """Take a pod out; return the nodes whose pods are others now."""
        record = self.by_uid.pop(uid, None)
        if record is None:
            return []
        self.pending.pop(uid, None)
        self.shy.pop(uid, None)
        for claim in record.claims:
            _discard(self._claiming, claim, uid)
        _discard(self.leaving, record.node, uid)
        _pop(self._grouped, record.group, uid)
        _pop(self.nominated, record.nominated, uid)
        _pop(self._placed, record.namespace, uid)
        places = {record.node, record.nominated}
        return [place for place in places if _pop(self.on_node, place, uid)]

    def leave(self, uid: str) -> str:
        """Take note that a pod is on its way out; return its node, empty where there is no such pod, or it has ended."""
        record = self.by_uid.get(uid)
        if record is None or record.finished:
            return ""
        record.terminating = True
        self.leaving.setdefault(record.node, set()).add(uid)
        return record.node

    def placed_in(self, namespace: str) -> Iterable[PodRecord]:
        """Return the pods of a namespace that are bound to a node or nominated for one."""
        return self._placed.get(namespace, {}).values()


def _discard(sets: dict[str, set[str]], key: str, uid: str) -> None:
    """Take a uid out of a set, and the set out when it is empty."""
    here = sets.get(key, set())
    here.discard(uid)
    if not here:
        sets.pop(key, None)


def _pop(records: dict[str, dict[str, PodRecord]], key: str, uid: str) -> bool:
    """Take a pod out of a list, and the list out when it is empty; say whether it was there."""
    here = records.get(key, {})
    found = here.pop(uid, None) is not None
    if found and not here:
        del records[key]
    return found
