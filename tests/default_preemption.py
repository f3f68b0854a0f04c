"""Kubernetes' default preemption on any cluster, by resource counts.

The same searches and scores as the `kubernetes` selector, on Kubernetes' own objects instead of a
simulated cluster: this is what the published test cases of kube-scheduler are replayed through.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from flextopo.baselines.scores import KUBERNETES_SCORES, Option, choose
from flextopo.baselines.search import CandidateLimit, default_victims, dry_run
from flextopo.cluster.errors import PodError

UNSCHEDULABLE = "Unschedulable"
UNRESOLVABLE = "UnschedulableAndUnresolvable"
DEFAULT_LIMIT = CandidateLimit()
NOT_HELPFUL = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"

_SUFFIXES = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "P": Fraction(10**15), "E": Fraction(10**18), "Ki": Fraction(2**10), "Mi": Fraction(2**20),
    "Gi": Fraction(2**30), "Ti": Fraction(2**40), "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip


def parse_quantity(text: str) -> Fraction:
    """Parse a Kubernetes quantity such as `300m`, `1.5Gi` or `2e3`.

    Raises:
        PodError: it is none.
    """
    match = re.fullmatch(
        r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,3})|([numkMGTPE]|[KMGTPE]i)?)",
        text,
    )
    if match is None:
        raise PodError(f"quantity {text[:40]!r}; legal: a number with a suffix such as m, k, Mi")
    scale = Fraction(10) ** int(match[2]) if match[2] else _SUFFIXES[match[3] or ""]
    return Fraction(match[1]) * scale


@dataclass(frozen=True, eq=False)
class KubePod:
    """A pod as the default preemption sees it.

    Attributes:
        name: with `namespace`, unique in the cluster.
        namespace: may be empty.
        priority: a pod without priority has 0.
        requests: resource to amount.
        labels: what disruption budgets select by.
        start_s: any unit; infinite when unknown, which counts as newest.
        node: name of its node, empty while it is pending.
        preemption_policy: `Never` forbids it to preempt.
        nominated_node: where an earlier preemption made room for it, empty = nowhere.
        terminating: it has a deletion timestamp.
        preempted: its DisruptionTarget condition names preemption by the scheduler.
        pdbs: indices of the disruption budgets it falls under, see `under_budgets`.
    """

    name: str
    namespace: str = "default"
    priority: int = 0
    requests: Mapping[str, Fraction] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    start_s: float = float("inf")
    node: str = ""
    preemption_policy: str = "PreemptLowerPriority"
    nominated_node: str = ""
    terminating: bool = False
    preempted: bool = False
    pdbs: tuple[int, ...] = ()


@dataclass(frozen=True)
class KubeNode:
    """A node: what it can give; `pods` is a resource like others, each pod takes one."""

    name: str
    capacity: Mapping[str, Fraction]


@dataclass(frozen=True)
class DisruptionBudget:
    """A PodDisruptionBudget; an empty selector matches nothing."""

    namespace: str
    match_labels: Mapping[str, str]
    disruptions_allowed: int
    disrupted_pods: frozenset[str] = frozenset()

    def covers(self, namespace: str, name: str, labels: Mapping[str, str]) -> bool:
        """Say whether evicting the pod uses up one of the budget's disruptions."""
        return (
            namespace == self.namespace
            and bool(self.match_labels)
            and all(labels.get(key) == value for key, value in self.match_labels.items())
            and name not in self.disrupted_pods
        )


def under_budgets(
    budgets: Sequence[DisruptionBudget], namespace: str, name: str, labels: Mapping[str, str]
) -> tuple[int, ...]:
    """Return the indices of the budgets that cover a pod.

    References:
        kubernetes v1.36, preemption/preemption.go, filterPodsWithPDBViolation.
    """
    return tuple(i for i, pdb in enumerate(budgets) if pdb.covers(namespace, name, labels))


def insufficient(node: KubeNode, running: Sequence[KubePod], preemptor: KubePod) -> list[str]:
    """Return why the preemptor does not fit beside the running pods, empty if it does.

    What it does not ask for cannot be short, even on a node that is overcommitted.

    References:
        kubernetes v1.36, noderesources/fit.go, fitsRequest.
    """
    reasons = []
    if len(running) + 1 > node.capacity.get("pods", Fraction(0)):
        reasons.append("Too many pods")
    for resource, wanted in preemptor.requests.items():
        used = sum((pod.requests.get(resource, Fraction(0)) for pod in running), Fraction(0))
        if wanted > 0 and wanted > node.capacity.get(resource, Fraction(0)) - used:
            reasons.append(f"Insufficient {resource}")
    return reasons


Extender = Callable[[dict[str, list[KubePod]]], "dict[str, list[KubePod]]"]
"""Returns the nodes that may be used, with the victims on each; raises `ExtenderError`."""


class ExtenderError(PodError):
    """Report that a scheduler extender failed, or allowed a node without victims."""


@dataclass(frozen=True)
class ExtenderRule:
    """A scheduler extender: its answer, and whether its failure may be passed over."""

    process: Extender
    ignorable: bool = False
    interested: bool = True


def call_extenders(
    victims: dict[str, list[KubePod]], extenders: Sequence[ExtenderRule]
) -> dict[str, list[KubePod]]:
    """Let each extender narrow the nodes down, one after the other.

    Raises:
        ExtenderError: one that is not ignorable failed, or returned a node without victims.

    References:
        kubernetes v1.36, preemption/preemption.go, callExtenders.
    """
    if not victims:
        return victims
    for extender in extenders:
        if not extender.interested:
            continue
        try:
            answer = extender.process(victims)
        except ExtenderError:
            if extender.ignorable:
                continue
            raise
        for node, pods in answer.items():
            if not pods and not extender.ignorable:
                raise ExtenderError(f"expected at least one victim pod on node {node!r}")
        victims = {node: pods for node, pods in answer.items() if pods}
        if not victims:
            break
    return victims


def more_important(pod: KubePod) -> tuple[float, float]:
    """Return the default key of descending importance: higher priority, then earlier start."""
    return (-pod.priority, pod.start_s)


@dataclass(frozen=True)
class PreemptionResult:
    """What became of one attempt; `node` is empty and `message` says why where it failed."""

    node: str
    victims: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class DefaultPreemption:
    """The default preemption of kube-scheduler 1.36 over a snapshot.

    Attributes:
        nodes: all nodes.
        pods: all pods that run on them.
        budgets: all PodDisruptionBudgets.
        eligible: (node, victim, preemptor) -> may it be a victim, beside having lower priority?
        importance: key of descending importance.
        fits: (node, running pods, preemptor) -> reasons against, empty = it fits.
        limit: how many candidate nodes are enough.
    """

    nodes: Sequence[KubeNode]
    pods: Sequence[KubePod]
    budgets: Sequence[DisruptionBudget] = ()
    eligible: Callable[[KubeNode, KubePod, KubePod], bool] = lambda node, victim, preemptor: True
    importance: Callable[[KubePod], object] = more_important
    fits: Callable[[KubeNode, Sequence[KubePod], KubePod], list[str]] = insufficient
    limit: CandidateLimit = DEFAULT_LIMIT

    def running(self, node: KubeNode) -> list[KubePod]:
        """Return the pods on a node."""
        return [pod for pod in self.pods if pod.node == node.name]

    def evictable(self, node: KubeNode, preemptor: KubePod) -> list[KubePod]:
        """Return whom the preemptor may evict on a node, by descending importance."""
        allowed = [
            pod
            for pod in self.running(node)
            if pod.priority < preemptor.priority and self.eligible(node, pod, preemptor)
        ]
        return sorted(allowed, key=self.importance)  # type: ignore[arg-type]

    def ineligible(self, preemptor: KubePod, nominated_status: str | None = None) -> str:
        """Return why the pod may not preempt now, empty if it may.

        Args:
            preemptor: the pending pod.
            nominated_status: filter status of its nominated node.

        References:
            kubernetes v1.36, default_preemption.go, PodEligibleToPreemptOthers.
        """
        if preemptor.preemption_policy == "Never":
            return "not eligible due to preemptionPolicy=Never."
        if not preemptor.nominated_node or nominated_status == UNRESOLVABLE:
            return ""
        for node in self.nodes:
            if node.name == preemptor.nominated_node and any(
                pod.terminating and pod.preempted for pod in self.evictable(node, preemptor)
            ):
                return "not eligible due to a terminating pod on the nominated node."
        return ""

    def search(self, place: int, preemptor: KubePod) -> Option[KubePod] | None:
        """Select the victims on the node in that place, None where there are none."""
        node = self.nodes[place]
        running = self.running(node)

        def fits(gone: Sequence[KubePod]) -> bool:
            left = set(map(id, gone))
            return not self.fits(node, [p for p in running if id(p) not in left], preemptor)

        allowed = [pdb.disruptions_allowed for pdb in self.budgets]
        found = default_victims(self.evictable(node, preemptor), allowed, fits)
        return None if found is None else Option(place, *found)

    def dry_run(
        self, preemptor: KubePod, places: Sequence[int] | None = None, scan_offset: int = 0
    ) -> list[Option[KubePod]]:
        """Return the candidates on the nodes in those places, all by default."""
        within = range(len(self.nodes)) if places is None else places
        return dry_run(
            len(within),
            lambda i: self.search(within[i], preemptor),
            lambda option: option.pdb_violations,
            self.limit,
            scan_offset,
        )

    def preempt(
        self,
        preemptor: KubePod,
        statuses: Mapping[str, str] | None = None,
        extenders: Sequence[ExtenderRule] = (),
        scan_offset: int = 0,
    ) -> PreemptionResult:
        """Choose a node and its victims.

        Args:
            preemptor: the pending pod.
            statuses: filter status by node name, None = every node refused it for its resources;
                only `Unschedulable` nodes are searched.
            extenders: asked in their order.
            scan_offset: where the scan begins.

        Raises:
            ExtenderError: see `call_extenders`.

        References:
            kubernetes v1.36, preemption/preemption.go, Preempt; node choice in
            pickOneNodeForPreemption, where the last tie is arbitrary; here the first node wins.
        """
        if statuses is None:
            statuses = dict.fromkeys((node.name for node in self.nodes), UNSCHEDULABLE)
        why = self.ineligible(preemptor, statuses.get(preemptor.nominated_node))
        if why:
            return PreemptionResult("", message=f"preemption: {why}")
        places = [
            i for i, node in enumerate(self.nodes) if statuses.get(node.name) == UNSCHEDULABLE
        ]
        options = self.dry_run(preemptor, places, scan_offset)
        if not options:
            return PreemptionResult("", message=self._explain(preemptor, places))
        found = {self.nodes[option.node].name: list(option.victims) for option in options}
        kept = call_extenders(found, extenders)
        left = [
            Option(option.node, kept[name], option.pdb_violations)
            for option in options
            if (name := self.nodes[option.node].name) in kept
        ]
        best = choose(left, KUBERNETES_SCORES)
        if best is None:
            return PreemptionResult("", message="preemption: no candidate node for preemption")
        victims = tuple(pod.name for pod in best.victims)
        return PreemptionResult(self.nodes[best.node].name, victims)

    def _explain(self, preemptor: KubePod, places: Sequence[int]) -> str:
        """Count the reasons of all nodes, as a scheduling event prints them."""
        counts: Counter[str] = Counter()
        for i, node in enumerate(self.nodes):
            gone = set(map(id, self.evictable(node, preemptor)))
            if i not in places:
                counts[NOT_HELPFUL] += 1
            elif not gone:
                counts[NO_VICTIMS] += 1
            else:
                running = [pod for pod in self.running(node) if id(pod) not in gone]
                counts.update(self.fits(node, running, preemptor))
        reasons = ", ".join(sorted(f"{count} {reason}" for reason, count in counts.items()))
        total = len(self.nodes)
        return f"preemption: 0/{total} nodes are available: {reasons}."
