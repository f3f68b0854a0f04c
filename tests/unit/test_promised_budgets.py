"""Disruption budgets and victims that were named: what one preemptor uses up is not there for the next."""

from extenders import ask, make_extender, preempt
from kube_objects import (
    NOW_S,
    budget,
    dying_pod,
    full_node,
    pod,
    preemptor,
    read,
)

from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.extender import Extender


def a_budget_of_two() -> tuple[ClusterCache, Extender, list[float]]:
    """Return a node under a budget of 2, one with dearer pods under none, and a clock that is put on."""
    now = [0.0]
    cache = ClusterCache(lambda: NOW_S + int(now[0]))
    cache.reservations._clock = lambda: now[0]
    for document in [*full_node("n0"), *full_node("n1")]:
        if document["kind"] == "Pod" and document["spec"]["nodeName"] == "n0":
            document["metadata"]["labels"] = {"app": "a"}
        elif document["kind"] == "Pod":
            document["spec"]["priority"] = 600
        cache.put(read(document))
    cache.put(read(budget("b", 2, {"app": "a"})))
    return cache, make_extender(cache), now


def evicted(extender: Extender, name: str) -> str:
    """Return who goes for one GPU, alone."""
    ((uid,),) = preempt(extender, preemptor(1, name=name), "n0", "n1").values()
    return str(uid).removeprefix("uid-")


def goes(cache: ClusterCache, name: str) -> None:
    document = dying_pod(name)
    document["metadata"]["labels"] = {"app": "a"}
    cache.put(read(document))


def test_preemptors_in_a_row_do_not_use_up_a_budget_twice() -> None:
    cache, extender, _ = a_budget_of_two()
    first, second = evicted(extender, "q0"), evicted(extender, "q1")
    assert {first[:2], second[:2]} == {"n0"}
    assert cache.budgets.left() == [0]
    other = next(uid for uid in ("uid-n0-b6", "uid-n0-b7") if uid[4:] not in (first, second))
    assert extender.decider.violations([other]) == 1
    # Asked again, the same is answered, and it violates nothing.
    answer = ask(extender, "preempt", {
        "Pod": preemptor(1, name="q1"),
        "NodeNameToMetaVictims": {"n0": {"Pods": [{"UID": f"uid-{second}"}]}},
    })  # fmt: skip
    assert answer["NodeNameToMetaVictims"]["n0"] == {
        "Pods": [{"UID": f"uid-{second}"}],
        "NumPDBViolations": 0,
    }
    assert evicted(extender, "q2")[:2] == "n1"
    # They are on their way out, and not promised any more; no status says so yet, or only of one of them.
    goes(cache, first)
    goes(cache, second)
    cache.reservations.forget("uid-q0")
    cache.reservations.forget("uid-q1")
    assert cache.budgets.left() == [0]
    cache.put(read(budget("b", 1, {"app": "a"})))
    assert cache.budgets.left() == [0]
    assert extender.decider.violations([other]) == 1
    cache.put(read(budget("b", 0, {"app": "a"})))
    cache.put(read(budget("b", 1, {"app": "a"})))  # somebody is well again
    assert cache.budgets.left() == [1]
    assert extender.decider.violations([other]) == 0


def test_who_was_named_and_stays_or_is_in_no_status_for_long_uses_up_no_budget() -> None:
    cache, extender, now = a_budget_of_two()
    first = evicted(extender, "q0")
    assert cache.budgets.left() == [1]
    now[0] = 11.0  # kube-scheduler did not carry it out
    cache.refresh()
    assert cache.budgets.left() == [2]
    # One that was not well changes no status when it goes.
    goes(cache, first)
    assert cache.budgets.left() == [1]
    now[0] = 16.0
    assert cache.budgets.left() == [2]
    # One that is gone at once is on its way out, too.
    cache.remove(read(pod("n0-b7", "n0")))
    assert cache.budgets.left() == [1]
    now[0] = 30.0
    # The Eviction API has written who goes, before or after it is told here.
    cache.mark_terminating("uid-n0-b6")
    assert cache.budgets.left() == [1]
    named = {"n0-b5": "2027-01-15T08:00:00Z", "n0-b6": "2027-01-15T08:00:00Z"}
    cache.put(read(budget("b", 0, {"app": "a"}, disruptedPods=named)))
    cache.put(read(budget("b", 1, {"app": "a"}, disruptedPods=named)))
    cache.mark_terminating("uid-n0-b5")
    assert cache.budgets.left() == [1]
