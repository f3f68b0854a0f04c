"""PodDisruptionBudgets: whom they cover, and how many of them a victim set violates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flextopo.policies.serving.objects import BudgetObject, Expression, LabelSelector, key_of
from flextopo.policies.serving.records import PodRecord


class BudgetBook:
    """All PodDisruptionBudgets, looked up by namespace: there may be thousands.

    Attributes:
        by_key: budgets by `namespace/name`; their order numbers them.
    """

    def __init__(self) -> None:
        self.by_key: dict[str, BudgetObject] = {}
        self._by_namespace: dict[str, list[tuple[int, BudgetObject]]] | None = None

    def put(self, budget: BudgetObject) -> bool:
        """Add or change a budget; say whether it covers other pods than before."""
        key = key_of(budget.metadata)
        old = self.by_key.get(key)
        self.by_key[key] = budget
        self._by_namespace = None
        # The apiserver writes the status at every disruption; that alone moves no pod.
        return old is None or (old.spec, old.status.disruptedPods) != (
            budget.spec,
            budget.status.disruptedPods,
        )

    def remove(self, key: str) -> None:
        """Remove a budget, if it is there."""
        self.by_key.pop(key, None)
        self._by_namespace = None

    def left(self) -> list[int]:
        """Return the disruptions that each budget still allows."""
        return [budget.status.disruptionsAllowed for budget in self.by_key.values()]

    def index_of(self, pod: PodRecord) -> int:
        """Return the number of the tightest budget that covers a pod, -1 = none."""
        covering = self._covering(pod) if self.by_key else []
        return min(covering, key=lambda x: x[1].status.disruptionsAllowed)[0] if covering else -1

    def of(self, pods: Iterable[PodRecord]) -> list[BudgetObject]:
        """Return the budgets that cover any of the pods, in the order of `by_key`."""
        found = {i: budget for pod in pods for i, budget in self._covering(pod)}
        return [found[i] for i in sorted(found)]

    def _covering(self, pod: PodRecord) -> list[tuple[int, BudgetObject]]:
        if self._by_namespace is None:
            self._by_namespace = {}
            for i, budget in enumerate(self.by_key.values()):
                namespace = budget.metadata.namespace or ""
                self._by_namespace.setdefault(namespace, []).append((i, budget))
        found = self._by_namespace.get(pod.namespace, ())
        return [(i, budget) for i, budget in found if covers(budget, pod)]


def covers(budget: BudgetObject, pod: PodRecord) -> bool:
    """Say whether evicting the pod uses up one disruption of the budget.

    References:
        kubernetes v1.36, preemption/preemption.go, filterPodsWithPDBViolation: same namespace, a
        selector that is not empty and matches, and the pod is not under disruption already.
    """
    selector = budget.spec.selector
    if (budget.metadata.namespace or "") != pod.namespace or selector is None:
        return False
    if not selector.matchLabels and not selector.matchExpressions:
        return False
    if pod.name in (budget.status.disruptedPods or ()):
        return False
    return matches(selector, pod.labels)


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
