"""Which nodes a pending pod may go to: what kube-scheduler filters by, beside resources.

References:
    kubernetes v1.36, pkg/scheduler/framework/plugins: nodeunschedulable, tainttoleration,
    nodeaffinity, nodeports, interpodaffinity, podtopologyspread; for volumes see `volumes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flextopo.policies.serving.affinity import matches_node
from flextopo.policies.serving.budgets import matches
from flextopo.policies.serving.objects import (
    LabelSelector,
    NodeObject,
    PodAffinityTerm,
    Spread,
    Taint,
    Toleration,
)
from flextopo.policies.serving.placing import HostPort
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.volumes import VolumeBook

HOLDING = ("NoSchedule", "NoExecute")
"""Effects of taints that keep pods away."""
CORDON = Taint("node.kubernetes.io/unschedulable", None, "NoSchedule")
NOT_READY = Taint("node.kubernetes.io/not-ready", None, "NoSchedule")


@dataclass(frozen=True, slots=True)
class NodeTraits:
    """What a node says of whom it takes.

    Attributes:
        labels: of the node.
        taints: that keep pods away, among them those that stand for `unschedulable` and not ready.
    """

    labels: Mapping[str, str]
    taints: Sequence[Taint]


def read_traits(node: NodeObject) -> NodeTraits:
    """Return what a node says of whom it takes."""
    taints = [taint for taint in node.spec.taints or () if taint.effect in HOLDING]
    if node.spec.unschedulable:
        taints.append(CORDON)
    # The node controller taints such a node, some time after the condition has changed.
    if any(one.type == "Ready" and one.status != "True" for one in node.status.conditions or ()):
        taints.append(NOT_READY)
    return NodeTraits(node.metadata.labels or {}, taints)


def why_barred(pod: PodRecord, name: str, node: NodeTraits | None) -> str:
    """Return why a node itself does not take a pod, whatever is on it; empty if it does."""
    if node is None:
        return "it is not known"
    taint = _untolerated(pod, node)
    if taint is not None:
        return f"taint {taint.key}"
    return "" if _selects(pod, name, node) else "node selector or affinity"


class Reach:
    """The nodes that a pending pod may go to.

    Args:
        pod: the pending pod.
        nodes: of the cluster, by name.
        pods: all pods; they are only walked for a pod that says which others it minds.
        shy: those of them that do not want to share a domain with some others.
        volumes: of the cluster; None = nobody tells of them, and they keep nobody from a node.
        gpus: says why the GPUs of a node are not of the kind that a pod asks for.
    """

    def __init__(
        self,
        pod: PodRecord,
        nodes: Mapping[str, NodeTraits],
        pods: Iterable[PodRecord],
        shy: Iterable[PodRecord],
        volumes: VolumeBook | None = None,
        gpus: Callable[[str, PodRecord], str] = lambda name, pod: "",
    ) -> None:
        self._pod, self._nodes, self._gpus = pod, nodes, gpus
        placing = pod.placing
        self._needs = volumes.needs(placing.volumes) if volumes and placing.volumes else None
        alone = self._needs.alone if self._needs else set()
        minds = placing.ports or placing.far or placing.near or placing.spread or alone
        others = _others(pod, pods) if minds else []
        self._taken = _ports_in_use(others)
        # (A victim that has the claim would give it back; nobody has to go for that here.)
        self._lent = any(one.node and not alone.isdisjoint(one.placing.volumes) for one in others)
        self._blocked = self._domains_of_others(_others(pod, shy))
        self._near: list[tuple[str, set[str]]] = []
        if placing.far:
            self._blocked |= {
                place for term in placing.far for place in self._domains(term, pod, others, True)
            }
        if placing.near:
            self._near = self._domains_near(others)
        self._spread = [self._counts(one, others) for one in placing.spread]

    def why_not(self, name: str) -> str:
        """Return why the pod cannot go to a node whatever is evicted there, empty if it can."""
        node = self._nodes.get(name)
        why = why_barred(self._pod, name, node) or self._gpus(name, self._pod)
        if why or node is None:
            return why
        return self._why_no_volumes(name, node) or self._why_not_beside(name, node)

    def _why_no_volumes(self, name: str, node: NodeTraits) -> str:
        """Return which volume keeps the pod away, empty for none."""
        if self._lent:
            return "another pod has a claim that only one may have"
        return self._needs.why_not(name, node.labels) if self._needs else ""

    def _why_not_beside(self, name: str, node: NodeTraits) -> str:
        """Return which pods keep the pod away, empty for none."""
        pod = self._pod
        if any(node.labels.get(key) == value for key, value in self._blocked):
            return "anti-affinity"
        if any(node.labels.get(key) not in values for key, values in self._near):
            return "affinity to pods"
        if any(
            _clash(one, other) for one in pod.placing.ports for other in self._taken.get(name, ())
        ):
            return "a port of the host is taken"
        for one, counts in self._spread:
            if not _is_even(one, counts, node, pod):
                return f"spread over {one.topologyKey}"
        return ""

    def _domains_of_others(self, others: Iterable[PodRecord]) -> set[tuple[str, str]]:
        """Return the domains that pods there do not want to share with the pod."""
        return {
            (term.topologyKey, value)
            for other in others
            for term in other.placing.far
            if _means(term, other, self._pod, True)
            and (value := self._label(other, term.topologyKey)) is not None
        }

    def _domains(
        self, term: PodAffinityTerm, pod: PodRecord, others: Iterable[PodRecord], broad: bool
    ) -> set[tuple[str, str]]:
        return {
            (term.topologyKey, value)
            for other in others
            if _means(term, pod, other, broad)
            and (value := self._label(other, term.topologyKey)) is not None
        }

    def _domains_near(self, others: Sequence[PodRecord]) -> list[tuple[str, set[str]]]:
        """Return for each term the values of its key; a pod that starts a group of its own may."""
        pod, near = self._pod, self._pod.placing.near
        found = [
            (term.topologyKey, {value for _, value in self._domains(term, pod, others, False)})
            for term in near
        ]
        alone = not any(values for _, values in found)
        if alone and all(_means(term, pod, pod, False) for term in near):
            every = {key: {n.labels[key] for n in self._nodes.values() if key in n.labels}
                     for key, _ in found}  # fmt: skip
            return [(key, every[key]) for key, _ in found]
        return found

    def _label(self, pod: PodRecord, key: str) -> str | None:
        node = self._nodes.get(pod.node or pod.nominated)
        return node.labels.get(key) if node else None

    def _counts(self, spread: Spread, others: Iterable[PodRecord]) -> tuple[Spread, Counter[str]]:
        """Return how many pods of a kind are in each domain that the pod could go to."""
        counts: Counter[str] = Counter()
        honours = spread.nodeTaintsPolicy == "Honor"
        for name, node in self._nodes.items():
            if spread.topologyKey not in node.labels:
                continue
            if spread.nodeAffinityPolicy != "Ignore" and not _selects(self._pod, name, node):
                continue
            if honours and _untolerated(self._pod, node) is not None:
                continue
            counts[node.labels[spread.topologyKey]] += 0
        for other in others:
            value = self._label(other, spread.topologyKey)
            if (
                value is not None
                and value in counts
                and not other.terminating
                and _is_like(spread, self._pod, other)
            ):
                counts[value] += 1
        return spread, counts


def _others(pod: PodRecord, pods: Iterable[PodRecord]) -> list[PodRecord]:
    return [other for other in pods if other.uid != pod.uid and not other.finished]


def _selects(pod: PodRecord, name: str, node: NodeTraits) -> bool:
    placing = pod.placing
    if any(node.labels.get(key) != value for key, value in placing.labels.items()):
        return False
    return placing.nodes is None or matches_node(placing.nodes, name, node.labels)


def _untolerated(pod: PodRecord, node: NodeTraits) -> Taint | None:
    """Return a taint of a node that the pod does mind."""
    for taint in node.taints:
        if not any(_tolerates(one, taint) for one in pod.placing.tolerations):
            return taint
    return None


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    if toleration.operator == "Exists":
        return True
    return bool(toleration.key) and (toleration.value or "") == (taint.value or "")


def _means(term: PodAffinityTerm, of: PodRecord, other: PodRecord, broad: bool) -> bool:
    """Say whether a term of one pod is about another.

    Labels of namespaces are not watched: where a term asks for them, it is about pods of all
    namespaces if that is the safe side (`broad`), else about none.
    """
    if term.labelSelector is None or not matches(term.labelSelector, other.labels):
        return False
    selector = term.namespaceSelector
    if selector is not None:
        every = not selector.matchLabels and not selector.matchExpressions
        if every or broad:
            return True
        return other.namespace in (term.namespaces or ())
    return other.namespace in (term.namespaces or [of.namespace])


def _ports_in_use(pods: Iterable[PodRecord]) -> dict[str, list[HostPort]]:
    found: dict[str, list[HostPort]] = {}
    for pod in pods:
        if pod.placing.ports and (pod.node or pod.nominated):
            found.setdefault(pod.node or pod.nominated, []).extend(pod.placing.ports)
    return found


def _clash(one: HostPort, other: HostPort) -> bool:
    anywhere = "0.0.0.0" in (one[1], other[1])
    return one[0] == other[0] and one[2] == other[2] and (anywhere or one[1] == other[1])


def _is_like(spread: Spread, pod: PodRecord, other: PodRecord) -> bool:
    if other.namespace != pod.namespace:
        return False
    selector = spread.labelSelector or LabelSelector({"": ""})
    keys = [key for key in spread.matchLabelKeys or () if key in pod.labels]
    return matches(selector, other.labels) and all(
        other.labels.get(key) == pod.labels[key] for key in keys
    )


def _is_even(spread: Spread, counts: Counter[str], node: NodeTraits, pod: PodRecord) -> bool:
    value = node.labels.get(spread.topologyKey)
    if value is None or not counts:
        return False
    least = min(counts.values()) if len(counts) >= (spread.minDomains or 1) else 0
    return counts[value] + _is_like(spread, pod, pod) - least <= spread.maxSkew
