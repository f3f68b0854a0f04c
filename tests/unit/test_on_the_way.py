"""Pods that were let in, and may be on their way to a node: nobody is let in who might be in their way there."""

import pytest
from extenders import let_in, make_extender, preempt
from kube_objects import (
    REQUIREMENT,
    flextopo,
    make_cache,
    node,
    nominated,
    pod,
    preemptor,
    read,
    read_record,
)

EMPTY = [node("n0"), flextopo("n0", {})]


def test_a_pod_that_was_just_let_in_may_be_there() -> None:
    # The watch does not show yet where the first was bound; where it lies on the node, nobody knows.
    extender = make_extender(make_cache([*EMPTY, node("n1"), flextopo("n1", {})]))
    assert let_in(extender, preemptor(2, "none", name="first"), "n0") == ["n0"]
    assert let_in(extender, preemptor(4, name="second"), "n0", "n1") == ["n1"]
    # Refused only for that, nobody is evicted for it.
    assert let_in(extender, preemptor(4, name="third"), "n0") == []
    uids = ("uid-x",)
    assert preempt(extender, preemptor(4, name="third"), "n0", uids=uids) == {}
    assert extender.decider.cache.reservations.is_put_off("uid-third")
    # Both do not fit by counts: kube-scheduler would not have asked if the first were there.
    assert let_in(extender, preemptor(8, name="fourth"), "n0") == ["n0"]


def test_a_pod_that_was_let_in_is_bound_or_refused_and_forgotten() -> None:
    cache = make_cache(EMPTY)
    extender = make_extender(cache)
    assert let_in(extender, preemptor(2, "none", name="first"), "n0") == ["n0"]
    assert let_in(extender, preemptor(4, name="second"), "n0") == []
    bound = preemptor(
        2, name="first", annotations={"flextopo/gpus": "0-1", "flextopo/cores": "0-13"}
    )
    bound["spec"]["nodeName"] = "elsewhere"
    cache.put(read(bound))
    assert let_in(extender, preemptor(4, name="second"), "n0") == ["n0"]
    assert let_in(extender, preemptor(2, "none", name="third"), "n0") == ["n0"]
    assert let_in(extender, preemptor(4, name="fourth"), "n0") == []
    for gone in ("second", "third"):
        cache.remove(read(preemptor(4, name=gone)))
    assert let_in(extender, preemptor(4, name="fourth"), "n0") == ["n0"]


def test_who_cannot_be_in_the_way_is_not_waited_for() -> None:
    """On empty nodes each guaranteed pod waited until it was known where the one before it was bound."""
    nodes = [part for i in range(2) for part in (node(f"n{i}"), flextopo(f"n{i}", {}))]
    extender = make_extender(make_cache(nodes))
    for i in range(6):
        assert let_in(extender, preemptor(1, name=f"p{i}"), "n0", "n1") == ["n0", "n1"]
    # Wherever one of two lies, aligned, it leaves four on the other socket; wherever two do, two.
    extender = make_extender(make_cache(nodes))
    for gpus, passed in ((2, ["n0"]), (4, ["n0"]), (4, [])):
        asked = preemptor(gpus, name=f"{gpus}-{len(passed)}")
        assert let_in(extender, asked, "n0") == passed, gpus
    extender = make_extender(make_cache(nodes))
    for name, passed in (("a", ["n0"]), ("b", ["n0"]), ("c", ["n0"]), ("d", [])):
        assert let_in(extender, preemptor(2, name=name), "n0") == passed, name


def test_where_kube_scheduler_says_that_it_binds_a_pod_it_is_on_its_way_alone() -> None:
    nodes = [part for i in range(2) for part in (node(f"n{i}"), flextopo(f"n{i}", {}))]
    cache = make_cache(nodes)
    extender = make_extender(cache)
    assert let_in(extender, preemptor(3, "none", name="first"), "n0", "n1") == ["n0", "n1"]
    assert let_in(extender, preemptor(4), "n0", "n1") == []
    # A nomination elsewhere is a controller's, and says nothing of where it is bound.
    cache.put(read(nominated("first", 3, "n9", annotations={REQUIREMENT: "none"})))
    assert let_in(extender, preemptor(4), "n0") == []
    cache.put(read(nominated("first", 3, "n1", annotations={REQUIREMENT: "none"})))
    assert let_in(extender, preemptor(4), "n0") == ["n0"]
    cache.reservations.forget("uid-online")
    assert let_in(extender, preemptor(6), "n1") == []
    # It was not bound after all.
    cache.put(read(preemptor(3, "none", name="first")))
    assert let_in(extender, preemptor(6), "n1") == ["n1"]


def test_that_a_nomination_is_taken_back_says_nothing_of_a_pod_that_was_let_in() -> None:
    cache = make_cache(EMPTY)
    extender = make_extender(cache)
    first = nominated("first", 3, "n0", annotations={REQUIREMENT: "none"})
    cache.put(read(first))
    assert let_in(extender, first, "n0") == ["n0"]
    cache.put(read(preemptor(3, "none", name="first")))
    assert let_in(extender, preemptor(4), "n0") == []


def test_others_that_fit_by_what_is_not_sure_may_be_in_the_way() -> None:
    """The node offers 60 of 64 cores, and nobody knows which four are kept back."""
    offers = {"cpu": "60", "memory": "512Gi", "nvidia.com/gpu": "8", "pods": "110"}
    cache = make_cache([{**node("n0"), "status": {"allocatable": offers}}, flextopo("n0", {})])
    extender = make_extender(cache)
    assert let_in(extender, preemptor(4, cpu="4"), "n0") == ["n0"]
    cache.reservations.forget("uid-online")
    for i in range(3):
        assert let_in(extender, preemptor(1, "none", name=f"o{i}", cpu="14"), "n0") == ["n0"]
    assert let_in(extender, preemptor(4, cpu="4"), "n0") == []


def test_whoever_of_two_comes_first_both_are_aligned() -> None:
    """Bindings are not in the order of filters: a pod of 1 GPU took one of the four that a pod of 3 needed."""
    held = {f"b{i}": [i] for i in (3, 5, 6, 7)}
    batch = [pod(name, "n0", priority=3000) for name in held]
    cache = make_cache([node("n0"), flextopo("n0", held), *batch])
    extender = make_extender(cache)
    assert let_in(extender, preemptor(3, name="first"), "n0") == ["n0"]
    assert let_in(extender, preemptor(1, name="second"), "n0") == []


@pytest.mark.parametrize("planned", [True, False])
def test_pods_that_come_together_are_looked_at_together(planned: bool) -> None:
    """Neither of two leaves no socket with 3 GPUs, but both may."""
    first = preemptor(
        3, "none", name="first", status={"nominatedNodeName": "n0"} if planned else {}
    )
    cache = make_cache([*EMPTY, first])
    extender = make_extender(cache)
    assert let_in(extender, first, "n0") == ["n0"]
    assert let_in(extender, preemptor(1, name="second"), "n0") == ["n0"]
    assert let_in(extender, preemptor(3, name="third"), "n0") == []


def test_a_pod_without_gpus_of_its_own_is_in_nobodys_way() -> None:
    cache = make_cache(EMPTY)
    extender = make_extender(cache)
    cache.reservations.let_in(read_record(pod("claims", gpus=0)), ["n0"])
    cache.reservations.let_in(read_record(preemptor(1, name="other")), ["n0"])
    assert let_in(extender, preemptor(4), "n0") == ["n0"]
