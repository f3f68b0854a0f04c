"""PodDisruptionBudgets: whom they cover, and how many of them a victim set violates."""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter

from flextopo.policies.serving.objects import BudgetObject, Expression, LabelSelector, key_of
from flextopo.policies.serving.pod_book import PodBook
from flextopo.policies.serving.records import PodRecord


class BudgetBook:
    """All PodDisruptionBudgets; there may be thousands in one namespace.

    Attributes:
        by_key: budgets by `namespace/name`.
    """

    def __init__(self) -> None:
        self.by_key: dict[str, BudgetObject] = {}
        self._numbers: dict[str, int] = {}
        self._unused: list[int] = []
        self._index = _ByLabel()
        self._changed = _ByLabel()
        self._renamed: dict[str, set[str]] = {}

    def put(self, budget: BudgetObject) -> None:
        """Add or change a budget; it keeps its number."""
        key = key_of(budget.metadata)
        old = self.by_key.get(key)
        if old is None:
            self._numbers[key] = self._unused.pop() if self._unused else len(self.by_key)
        else:
            self._index.remove(old)
        self.by_key[key] = budget
        self._index.add(budget)
        self._note(old, budget)

    def remove(self, key: str) -> None:
        """Remove a budget, if it is there."""
        old = self.by_key.pop(key, None)
        if old is not None:
            self._index.remove(old)
            self._changed.add(old)
            self._unused.append(self._numbers.pop(key))

    def _note(self, old: BudgetObject | None, new: BudgetObject) -> None:
        """Note whom a budget covers that it did not, and the other way round.

        The apiserver writes the status at every disruption: of that only the pods that it names are covered no more.
        """
        if old is None or old.spec != new.spec:
            for budget in filter(None, (old, new)):
                self._changed.add(budget)
            return
        names = under_disruption(old) ^ under_disruption(new)
        if names:
            self._renamed.setdefault(new.metadata.namespace or "", set()).update(names)

    def moved(self, book: PodBook) -> set[str]:
        """Return the nodes with pods that other budgets cover than when this was asked before."""
        changed, renamed = self._changed, self._renamed
        namespaces = changed.namespaces | renamed.keys()
        if not namespaces:
            return set()
        self._changed, self._renamed = _ByLabel(), {}
        found = set()
        for namespace in namespaces:
            names, others = renamed.get(namespace, ()), namespace in changed.namespaces
            for pod in book.placed_in(namespace):
                if pod.name in names or (others and changed.selecting(pod)):
                    found.add(pod.node or pod.nominated)
        return found

    def left(self) -> list[int]:
        """Return the disruptions that each budget still allows, by its number."""
        left = [0] * (len(self._numbers) + len(self._unused))
        for key, budget in self.by_key.items():
            left[self._numbers[key]] = budget.status.disruptionsAllowed
        return left

    def index_of(self, pod: PodRecord) -> int:
        """Return the number of the tightest budget that covers a pod, -1 = none."""
        covering = self._covering(pod)
        return min(covering, key=lambda x: x[1].status.disruptionsAllowed)[0] if covering else -1

    def of(self, pods: Iterable[PodRecord]) -> list[BudgetObject]:
        """Return the budgets that cover any of the pods, in the order of their numbers."""
        found = {i: budget for pod in pods for i, budget in self._covering(pod)}
        return [found[i] for i in sorted(found)]

    def _covering(self, pod: PodRecord) -> list[tuple[int, BudgetObject]]:
        """Return the budgets that cover a pod with their numbers, in the order of these."""
        found = [
            (self._numbers[key_of(budget.metadata)], budget)
            for budget in self._index.selecting(pod)
            if pod.name not in under_disruption(budget)
        ]
        return sorted(found, key=itemgetter(0))


class _ByLabel:
    """Budgets by a label that they ask for, so that a pod is compared with few of them."""

    def __init__(self) -> None:
        self._found: dict[str, dict[tuple[str, str] | None, dict[int, BudgetObject]]] = {}

    @property
    def namespaces(self) -> KeysView[str]:
        """Return the namespaces of the budgets."""
        return self._found.keys()

    def add(self, budget: BudgetObject) -> None:
        """Add a budget, under the label that the fewest others stand under."""
        here = self._found.setdefault(budget.metadata.namespace or "", {})
        label = min(_labels_of(budget), key=lambda label: len(here.get(label, ())))
        here.setdefault(label, {})[id(budget)] = budget

    def remove(self, budget: BudgetObject) -> None:
        """Remove a budget that was added."""
        here = self._found[budget.metadata.namespace or ""]
        label = next(label for label in _labels_of(budget) if id(budget) in here.get(label, ()))
        del here[label][id(budget)]
        if not here[label]:
            del here[label]
        if not here:
            del self._found[budget.metadata.namespace or ""]

    def selecting(self, pod: PodRecord) -> list[BudgetObject]:
        """Return the budgets that select a pod."""
        here = self._found.get(pod.namespace)
        if here is None:
            return []
        near = [here[label] for label in (None, *pod.labels.items()) if label in here]
        return [budget for some in near for budget in some.values() if selects(budget, pod)]


def _labels_of(budget: BudgetObject) -> list[tuple[str, str] | None]:
    """Return the labels under which a budget may stand, None where it asks for none by its value."""
    selector = budget.spec.selector
    return [*selector.matchLabels.items()] if selector and selector.matchLabels else [None]


def selects(budget: BudgetObject, pod: PodRecord) -> bool:
    """Say whether a budget is about a pod: same namespace, and a selector that is not empty and matches."""
    selector = budget.spec.selector
    if (budget.metadata.namespace or "") != pod.namespace or selector is None:
        return False
    if not selector.matchLabels and not selector.matchExpressions:
        return False
    return matches(selector, pod.labels)


def covers(budget: BudgetObject, pod: PodRecord) -> bool:
    """Say whether evicting the pod uses up one disruption of the budget.

    References:
        kubernetes v1.36, preemption/preemption.go, filterPodsWithPDBViolation: same namespace, a
        selector that is not empty and matches, and the pod is not under disruption already.
    """
    return pod.name not in under_disruption(budget) and selects(budget, pod)


def under_disruption(budget: BudgetObject) -> AbstractSet[str]:
    """Return the names of the pods that a budget's status counts as disrupted already."""
    return (budget.status.disruptedPods or {}).keys()


def matches(selector: LabelSelector, labels: dict[str, str]) -> bool:
    """Say whether a label selector matches; an operator that is none of the four matches nothing."""
    for key, value in (selector.matchLabels or {}).items():
        if labels.get(key) != value:
            return False
    return all(holds(expression, labels) for expression in selector.matchExpressions or ())


def holds(expression: Expression, labels: Mapping[str, str]) -> bool:
    """Say whether labels fulfil a requirement."""
    here, values = labels.get(expression.key), expression.values or []
    match expression.operator:
        case "In":
            return here in values
        case "NotIn":
            return here not in values
        case "Exists":
            return here is not None
        case "DoesNotExist":
            return here is None
    return False


def violations(victims: Iterable[PodRecord], budgets: Sequence[BudgetObject]) -> int:
    """Count the victims whose eviction violates a budget, as kube-scheduler counts them.

    Victims use up disruptions by descending importance; one that takes any of its budgets below
    zero is a violation.
    """
    left = {id(budget): budget.status.disruptionsAllowed for budget in budgets}
    count = 0
    for victim in sorted(victims, key=lambda pod: pod.importance):
        violated = False
        for budget in budgets:
            if covers(budget, victim):
                left[id(budget)] -= 1
                violated = violated or left[id(budget)] < 0
        count += violated
    return count
