"""PodDisruptionBudgets: whom they cover, and how many of them a victim set violates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flextopo.policies.serving.objects import BudgetObject, LabelSelector
from flextopo.policies.serving.records import PodRecord


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
    for expression in selector.matchExpressions or ():
        value_here, values = labels.get(expression.key), expression.values or []
        fits = {
            "In": value_here in values,
            "NotIn": value_here not in values,
            "Exists": value_here is not None,
            "DoesNotExist": value_here is None,
        }
        if not fits.get(expression.operator, False):
            return False
    return True


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
