"""PodDisruptionBudgets: whom they cover, and how many of them a victim set violates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter

from msgspec.structs import replace

from flextopo.policies.serving.objects import BudgetObject, Expression, LabelSelector, key_of
from flextopo.policies.serving.pod_book import PodBook
from flextopo.policies.serving.records import PodRecord

COUNTED_S = 5
"""Kubernetes' disruption controller has counted a pod that is on its way out within so many seconds."""


class BudgetBook:
    """All PodDisruptionBudgets; there may be thousands in one namespace.

    Where it says what budgets allow, those who go and are in no status yet are counted: kube-scheduler has
    its victims go whatever budgets say, and the next pod asks before the status is written.

    Args:
        clock: Unix time in seconds.
        named: says which pods were named as victims, and are not on their way out yet.

    Attributes:
        by_key: budgets by `namespace/name`, as the apiserver has them.
    """

    def __init__(self, clock: Callable[[], int], named: Callable[[], Iterable[PodRecord]]) -> None:
        self.by_key: dict[str, BudgetObject] = {}
        self._clock, self._named = clock, named
        self._numbers: dict[str, int] = {}
        self._unused: list[int] = []
        self._index = _ByLabel()
        self._changed = _ByLabel()
        self._renamed: dict[str, set[str]] = {}
        self._uncounted: dict[str, dict[str, tuple[str, int]]] = {}
        self._going: dict[str, set[str]] | None = None
        self._going_s = 0

    def put(self, budget: BudgetObject) -> None:
        """Add or change a budget; it keeps its number."""
        key = key_of(budget.metadata)
        old = self.by_key.get(key)
        if old is None:
            self._numbers[key] = self._unused.pop() if self._unused else len(self.by_key)
        else:
            self._index.remove(old)
            self._settle(key, old, budget)
        self.by_key[key] = budget
        self._index.add(budget)
        self._note(old, budget)
        self.recount()

    def remove(self, key: str) -> None:
        """Remove a budget, if it is there."""
        old = self.by_key.pop(key, None)
        if old is not None:
            self._index.remove(old)
            self._changed.add(old)
            self._unused.append(self._numbers.pop(key))
            self._uncounted.pop(key, None)
            self.recount()

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

    def leave(self, pod: PodRecord) -> None:
        """Take note that a pod that ran is on its way out, which no status may say yet."""
        now_s = self._clock()
        for _, budget in self._covering(pod) if pod.running else ():
            waiting = self._uncounted.setdefault(key_of(budget.metadata), {})
            while waiting and not _is_recent(next(iter(waiting.values()))[1], now_s):
                del waiting[next(iter(waiting))]
            waiting[pod.uid] = pod.name, now_s
        self.recount()

    def _settle(self, key: str, old: BudgetObject, new: BudgetObject) -> None:
        """Forget who is in a new status: whom it names, and as many of the others as it allows fewer."""
        waiting = self._uncounted.pop(key, {})
        named = under_disruption(new)
        fewer = old.status.disruptionsAllowed - new.status.disruptionsAllowed
        fewer -= len(named - under_disruption(old))
        left = [(uid, one) for uid, one in waiting.items() if one[0] not in named]
        left = left[max(fewer, 0) :]
        if left:
            self._uncounted[key] = dict(left)

    def recount(self) -> None:
        """Count anew who goes, since others may have been named."""
        self._going = None

    def _who_go(self) -> dict[str, set[str]]:
        """Return the uids of the pods that go and are in no status yet, by the keys of their budgets."""
        now_s = self._clock()
        if self._going is None or self._going_s != now_s:
            self._going, self._going_s = {}, now_s
            for key, waiting in self._uncounted.items():
                recent = {uid for uid, (_, at_s) in waiting.items() if _is_recent(at_s, now_s)}
                self._going[key] = recent
            for pod in self._named() if self.by_key else ():
                for _, budget in self._covering(pod):
                    self._going.setdefault(key_of(budget.metadata), set()).add(pod.uid)
        return self._going

    def left(self) -> list[int]:
        """Return the disruptions that each budget still allows, by its number."""
        left, going = [0] * (len(self._numbers) + len(self._unused)), self._who_go()
        for key, budget in self.by_key.items():
            allowed = budget.status.disruptionsAllowed
            left[self._numbers[key]] = max(allowed - len(going.get(key, ())), 0)
        return left

    def index_of(self, pod: PodRecord) -> int:
        """Return the number of the tightest budget that covers a pod, -1 = none."""
        covering = self._covering(pod)
        return min(covering, key=lambda x: x[1].status.disruptionsAllowed)[0] if covering else -1

    def of(self, pods: Collection[PodRecord]) -> list[BudgetObject]:
        """Return the budgets that cover any of the pods, in the order of their numbers.

        They allow what they do while none of these pods goes, and all others that are to go do.
        """
        found = {i: budget for pod in pods for i, budget in self._covering(pod)}
        uids = {pod.uid for pod in pods} if found else set()
        return [self._without(found[i], uids) for i in sorted(found)]

    def _without(self, budget: BudgetObject, uids: AbstractSet[str]) -> BudgetObject:
        """Return a budget less what others use up who go, but for some pods."""
        others = self._who_go().get(key_of(budget.metadata), set()) - uids
        if not others:
            return budget
        allowed = max(budget.status.disruptionsAllowed - len(others), 0)
        return replace(budget, status=replace(budget.status, disruptionsAllowed=allowed))

    def _covering(self, pod: PodRecord) -> list[tuple[int, BudgetObject]]:
        """Return the budgets that cover a pod with their numbers, in the order of these."""
        found = [
            (self._numbers[key_of(budget.metadata)], budget)
            for budget in self._index.selecting(pod)
            if pod.name not in under_disruption(budget)
        ]
        return sorted(found, key=itemgetter(0))


def _is_recent(at_s: int, now_s: int) -> bool:
    """Say whether the status may not count yet who left then; clocks are set, too."""
    return abs(now_s - at_s) < COUNTED_S


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
