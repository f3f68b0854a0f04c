"""Pods that are nominated, promised a place, let in, or on their way out: nothing counts twice."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from extenders import ask, let_in, make_extender, meta_victims, preempt
from kube_objects import (
    NOW_S,
    REQUIREMENT,
    dying_pod,
    flextopo,
    full_node,
    make_cache,
    node,
    nominated,
    pod,
    preemptor,
    read,
    read_record,
)

from flextopo.policies.serving import reservations
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.places import Places, goes_before

Document = dict[str, Any]


EMPTY = [node("n0"), flextopo("n0", {})]
REFUSED = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]}


def test_a_nominated_pod_has_its_planned_place_and_the_rest_is_known() -> None:
    cache = make_cache([*EMPTY, nominated("first", 2, "n0", priority=2000)])
    state = cache.nodes.states["n0"]
    assert state.known
    assert state.sure is state.counted
    assert state.sure.num_gpus == 6
    # The other socket is free for sure, and no more than that.
    extender = make_extender(cache)
    assert let_in(extender, preemptor(4), "n0") == ["n0"]
    assert let_in(extender, preemptor(7), "n0") == []


def test_nominated_pods_of_lower_priority_are_disregarded() -> None:
    documents = [*full_node(count=6), nominated("low", 2, "n0", priority=500)]
    extender = make_extender(make_cache(documents))
    # Two GPUs are free: nobody has to go.
    assert let_in(extender, preemptor(2, priority=1000), "n0") == ["n0"]
    assert preempt(extender, preemptor(2, priority=1000), "n0") == {"n0": []}
    # For a pod that comes after it they are not free.
    assert let_in(extender, preemptor(2, priority=400), "n0") == []


def test_of_equal_pods_the_older_goes_first_so_that_two_never_block_each_other() -> None:
    def born(name: str, at: str) -> Document:
        return nominated(name, 8, "n0", meta={"creationTimestamp": at})

    old, young = born("z", "2027-01-15T07:00:00Z"), born("a", "2027-01-15T07:00:01Z")
    extender = make_extender(make_cache([*EMPTY, old, young]))
    assert let_in(extender, old, "n0") == ["n0"]
    extender = make_extender(make_cache([*EMPTY, old, young]))
    assert let_in(extender, young, "n0") == []
    pods = extender.decider.cache.pods
    assert goes_before(pods["uid-z"], pods["uid-a"], True)
    assert not goes_before(pods["uid-a"], pods["uid-z"], True)


@pytest.mark.parametrize("leaves", ["", "2027-01-15T08:00:20Z", "2027-01-15T09:00:00Z"])
@pytest.mark.parametrize("kept", [True, False])
def test_an_older_pod_waits_a_moment_for_an_equal_one_that_needs_certain_gpus(
    leaves: str, kept: bool
) -> None:
    """kubelet gave an older pod without a requirement GPUs that others had left for a guaranteed one."""
    now = [0.0]
    early = {"creationTimestamp": "2027-01-15T07:00:00Z"}
    late = {"creationTimestamp": "2027-01-15T07:00:01Z"}
    nominee = {"nominatedNodeName": "n0"}
    anywhere = preemptor(2, "none", name="anywhere", meta=early, status=nominee)
    certain = preemptor(4, name="certain", meta=late, status=nominee)
    held = {"b4": [4], "b6": [6], **({"b3": [3]} if leaves else {})}
    batch = [pod(name, "n0", priority=3000) for name in ("b4", "b6")]
    batch += [dying_pod("b3", leaves, priority=100)] if leaves else []
    cache = make_cache([node("n0"), flextopo("n0", held), *batch, anywhere, certain])
    cache.reservations._clock = lambda: now[0]
    if kept:
        cache.reservations.keep("uid-anywhere", "n0")
    extender = make_extender(cache, leave_gangs=True)
    assert let_in(extender, anywhere, "n0") == []
    # But not for as long as the other waits for its victims.
    now[0] = reservations.SPARES_S + 0.1
    assert let_in(extender, anywhere, "n0") == ["n0"]


def two_on_one_node(second: int, *held: int, first: int = 1) -> ClusterCache:
    """Return a node for which two pods are nominated, and on which others hold some GPUs."""
    names = {f"b{i}": [i] for i in held}
    batch = [pod(name, "n0", priority=3000) for name in names]
    times = [{"creationTimestamp": f"2027-01-15T07:00:0{i}Z"} for i in range(2)]
    pods = [
        nominated("first", first, "n0", meta=times[0]),
        nominated("second", second, "n0", meta=times[1]),
    ]
    return make_cache([node("n0"), flextopo("n0", names), *batch, *pods])


def test_a_place_is_planned_where_the_next_pod_finds_one_too() -> None:
    """Both were refused, until the first took a GPU of the second's: its place was planned among them."""
    cache = two_on_one_node(4, 5, 6, 7)
    extender = make_extender(cache, leave_gangs=True)
    (second,) = [pod for pod in cache.book.on("n0") if pod.name == "second"]
    asked = nominated("second", 4, "n0", meta={"creationTimestamp": "2027-01-15T07:00:01Z"})
    assert let_in(extender, asked, "n0") == ["n0"]
    found = Places(cache).making_room("n0", second)
    assert found is not None
    assert found.counted.gpu_free == 0b1111
    held = found.holding("uid-first")
    assert held is not None
    assert held[0] == 0b10000
    # As it is without the other, it is as good elsewhere.
    alone = cache.derive("n0", without={"uid-second"})
    assert alone is not None
    assert alone.counted.num_gpus == found.counted.num_gpus


@pytest.mark.parametrize(
    ("held", "first"),
    [((4, 5, 6), 2), ((4, 5, 6, 7), 1), ((3, 5, 6, 7), 1)],
    ids=["on one socket", "no GPU left", "no place for the second"],
)
def test_nobody_gets_a_worse_place_for_the_next(held: tuple[int, ...], first: int) -> None:
    cache = two_on_one_node(4, *held, first=first)
    alone = cache.derive("n0", without={"uid-second"})
    (second,) = [pod for pod in cache.book.on("n0") if pod.name == "second"]
    found = Places(cache).making_room("n0", second)
    assert found is not None
    assert alone is not None
    assert found.holding("uid-first") == alone.holding("uid-first") is not None
    assert found.counted.gpu_free == alone.counted.gpu_free
    asked = nominated("second", 4, "n0", meta={"creationTimestamp": "2027-01-15T07:00:01Z"})
    assert let_in(make_extender(cache), asked, "n0") == []


def test_nobody_waits_for_others_so_that_the_next_finds_room() -> None:
    """The first fits now; it does not get what is on its way out instead."""
    names = {"b3": [3], "b5": [5], "b6": [6], "b7": [7], "b4": [4]}
    leaving = {"b3", "b4"}
    batch = [
        dying_pod(name) if name in leaving else pod(name, "n0", priority=3000) for name in names
    ]
    cache = make_cache([node("n0"), flextopo("n0", names), *batch, nominated("first", 1, "n0")])
    found = Places(cache).making_room("n0", read_record(preemptor(3, name="second")))
    assert found is not None
    held = found.holding("uid-first")
    assert held is not None
    assert held[0] in (0b1, 0b10, 0b100)


def test_what_victims_hand_over_is_held_once() -> None:
    documents = full_node()
    documents[2:6] = [dying_pod(f"n0-b{i}") for i in range(4)]
    cache = make_cache([*documents, nominated("first", 2, "n0")])
    state = cache.nodes.states["n0"]
    assert state.known
    masks = {record.uid: state.holding(record.uid) for record in state.counted.records}
    held = [found[0] for found in masks.values() if found is not None]
    assert sum(mask.bit_count() for mask in held) == 8
    union = 0
    for mask in held:
        assert not union & mask
        union |= mask
    first = masks["uid-first"]
    assert first is not None
    assert first[0].bit_count() == 2
    assert first[0] & 0b1111 == first[0]


def test_what_is_on_its_way_out_suffices() -> None:
    documents = full_node()
    documents[2:4] = [dying_pod("n0-b0"), dying_pod("n0-b1")]
    extender = make_extender(make_cache(documents))
    asking = preemptor(2)
    uids = ("uid-n0-b2", "uid-n0-b3")
    assert preempt(extender, asking, "n0", uids=uids) == {}
    # Its place is kept: another finds two pods of its own.
    other = preempt(extender, preemptor(2, name="other"), "n0", uids=uids)
    assert len(other["n0"]) == 2
    # One that is stuck, or goes in an hour, is not waited for.
    for gone in ("2027-01-15T07:50:00Z", "2027-01-15T09:00:00Z"):
        documents[2:4] = [dying_pod("n0-b0", gone), dying_pod("n0-b1", gone)]
        found = preempt(make_extender(make_cache(documents)), asking, "n0", uids=uids)
        assert len(found["n0"]) == 2


def test_a_second_preemptor_does_not_get_the_victims_of_the_first() -> None:
    extender = make_extender(make_cache(full_node()))
    first = preempt(extender, preemptor(4), "n0", uids=("uid-n0-b0",))["n0"]
    second = preempt(extender, preemptor(4, name="second"), "n0", uids=("uid-n0-b0",))["n0"]
    assert len(first) == len(second) == 4
    assert not set(first) & set(second)
    # Nothing is left for a third, and one of lower priority does not get what was promised.
    assert preempt(extender, preemptor(4, name="third"), "n0", uids=("uid-n0-b0",)) == {}
    # Who asks again gets the same answer again.
    assert preempt(extender, preemptor(4), "n0", uids=("uid-n0-b0",))["n0"] == first


@pytest.mark.parametrize("gpus", [2, 4])
@pytest.mark.parametrize("seen", [True, False])
def test_memory_that_one_pod_was_promised_is_not_given_to_a_second(gpus: int, seen: bool) -> None:
    """Each had others evicted for the same 300 of 512 GiB."""
    cache = make_cache([*full_node("n0"), *full_node("n1")])
    for name, priority in (("n0", 100), ("n1", 200)):
        for i in range(8):
            cache.put(read(pod(f"{name}-b{i}", name, memory="60Gi", priority=priority)))
    extender = make_extender(cache)
    uids = {name: [f"uid-{name}-b{i}" for i in range(5)] for name in ("n0", "n1")}

    def victims(asking: Document) -> dict[str, list[str]]:
        found = ask(extender, "preempt", meta_victims(uids, asking))["NodeNameToMetaVictims"]
        return {name: [one["UID"] for one in entry["Pods"]] for name, entry in found.items()}

    first = victims(preemptor(gpus, name="first", memory="300Gi"))
    assert (list(first), len(first["n0"])) == (["n0"], 5)
    if seen:
        cache.put(read(nominated("first", gpus, "n0", memory="300Gi")))
        for uid in first["n0"]:
            cache.remove(read(pod(uid.removeprefix("uid-"), "n0")))
        uids["n0"] = [f"uid-n0-b{i}" for i in range(8) if f"uid-n0-b{i}" not in first["n0"]]
    second = victims(preemptor(gpus, name="second", memory="300Gi"))
    assert (list(second), len(second["n1"])) == (["n1"], 5)


def test_what_was_promised_is_kept_from_pods_that_ask_for_no_guarantee() -> None:
    documents = full_node()
    documents[2:4] = [dying_pod("n0-b0"), dying_pod("n0-b1")]
    cache = make_cache(documents)
    extender = make_extender(cache)
    # kube-scheduler is told to evict nobody, so it nominates nobody.
    assert preempt(extender, preemptor(2), "n0", uids=("uid-n0-b0",)) == {}
    for name in ("n0-b0", "n0-b1"):
        cache.remove(read(pod(name, "n0")))
    thief = preemptor(2, name="thief", requirement="none", priority=100)
    assert let_in(extender, thief, "n0") == []
    assert let_in(extender, preemptor(2), "n0") == ["n0"]
    above = preemptor(2, name="above", requirement="none", priority=2000)
    assert let_in(extender, above, "n0") == ["n0"]


def test_who_has_had_others_evicted_does_not_go_elsewhere() -> None:
    cache = make_cache([*full_node(), node("n1"), flextopo("n1", {})])
    extender = make_extender(cache)
    assert preempt(extender, preemptor(2), "n0", uids=("uid-n0-b0",))["n0"]
    assert let_in(extender, preemptor(2), "n0", "n1") == []
    # Others go there, and so does it if its victims stay too long.
    assert let_in(extender, preemptor(2, name="other"), "n1") == ["n1"]
    for gone, nodes in (("2027-01-15T08:00:20Z", []), ("2027-01-15T07:59:00Z", ["n1"])):
        documents = full_node()
        documents[2] = dying_pod("n0-b0", gone)
        cache = make_cache([*documents, node("n1"), flextopo("n1", {})])
        asking = nominated("p", 2, "n0")
        assert let_in(make_extender(cache), asking, "n0", "n1") == nodes
        asking = nominated("p", 2, "n0", annotations={REQUIREMENT: "none"})
        assert let_in(make_extender(cache), asking, "n1") == nodes


def test_a_place_that_a_controller_elsewhere_has_noted_is_kept() -> None:
    """kube-scheduler takes the nomination back: the pod was let in elsewhere, and others went in vain."""
    documents = [*full_node(), *full_node("n1")]
    documents[2:4] = [dying_pod("n0-b0"), dying_pod("n0-b1")]
    empty = [node("n2"), flextopo("n2", {})]
    noted = {"flextopo/attended": f"{NOW_S - 20} n0"}
    cache = make_cache([*documents, *empty, preemptor(2, annotations=noted, status=REFUSED)])
    extender = make_extender(cache)
    # kube-scheduler's copy may be older.
    plain = preemptor(2)
    assert let_in(extender, plain, "n0", "n2") == []
    assert preempt(extender, plain, "n1", uids=("uid-n1-b0", "uid-n1-b1")) == {}
    # What others leave there is nobody else's.
    for name in ("n0-b0", "n0-b1"):
        cache.remove(read(pod(name, "n0")))
    assert let_in(extender, preemptor(2, name="other"), "n0", "n2") == ["n2"]
    assert let_in(extender, plain, "n0") == ["n0"]


@pytest.mark.parametrize(
    ("at", "status"),
    [
        (f"{NOW_S - 61} n0", REFUSED),
        (f"{NOW_S + 61} n0", REFUSED),
        (str(NOW_S), REFUSED),
        (f"{NOW_S} n0", {**REFUSED, "nominatedNodeName": "n1"}),
        (f"{NOW_S} n0", {}),
    ],
    ids=[
        "long ago",
        "of another time",
        "of an older version",
        "nominated elsewhere",
        "not refused",
    ],
)
def test_a_place_is_noted_for_a_minute_at_most(at: str, status: dict[str, Any]) -> None:
    told = {"flextopo/attended": f"{NOW_S} n0"}
    cache = make_cache([*full_node(), preemptor(2, annotations=told, status=REFUSED)])
    assert cache.reservations.answered("uid-online") == ("n0", ())
    asking = preemptor(2, annotations={"flextopo/attended": at}, status=status)
    cache = make_cache([*full_node(), asking])
    assert cache.reservations.answered("uid-online") is None


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_a_place_on_a_node_that_is_gone_or_cordoned_is_kept_for_nothing(
    told: bool, gone: bool
) -> None:
    cache = make_cache([*full_node(), node("n1"), flextopo("n1", {})])
    extender, asking = make_extender(cache), preemptor(2)
    if told:
        assert preempt(extender, asking, "n0", uids=("uid-n0-b0",))["n0"]
    else:  # before a restart
        asking = nominated("online", 2, "n0")
        cache.put(read(asking))
    for name in ("n0-b0", "n0-b1"):
        cache.put(read(dying_pod(name)))
    assert let_in(extender, asking, "n1") == []
    if gone:
        cache.remove(read(node("n0")))
    else:
        cache.put(read({**node("n0"), "spec": {"unschedulable": True}}))
    # Its victims may take long to go: nobody waits for that.
    assert let_in(extender, asking, "n1") == ["n1"]


@pytest.mark.parametrize("told", [True, False])
def test_who_has_had_others_evicted_has_time_from_when_they_are_gone(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    cache, now_s = make_cache([*full_node(), node("n1"), flextopo("n1", {})]), [0.0]
    monkeypatch.setattr(cache.reservations, "_clock", lambda: now_s[0])
    extender, asking = make_extender(cache), preemptor(2)
    if told:
        assert preempt(extender, asking, "n0", uids=("uid-n0-b0",))["n0"] == [
            "uid-n0-b0",
            "uid-n0-b1",
        ]
    else:  # before a restart
        asking = nominated("online", 2, "n0")
        cache.put(read(asking))
    for name in ("n0-b0", "n0-b1"):
        cache.put(read(dying_pod(name)))
    # kube-scheduler does not ask while another pod that is nominated there leaves no room.
    now_s[0] = 5.0
    for name in ("n0-b0", "n0-b1"):
        cache.remove(read(pod(name, "n0")))
    now_s[0] = 5.0 + 0.9 * reservations.KEPT_S
    assert let_in(extender, asking, "n1") == []
    now_s[0] = 5.0 + 1.1 * reservations.KEPT_S
    assert let_in(extender, asking, "n1") == ["n1"]


def test_a_victim_that_has_ended_is_gone_for_the_pod_it_made_way_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, now_s = make_cache([*full_node(), node("n1"), flextopo("n1", {})]), [0.0]
    monkeypatch.setattr(cache.reservations, "_clock", lambda: now_s[0])
    extender, asking = make_extender(cache), preemptor(2)
    assert preempt(extender, asking, "n0", uids=("uid-n0-b0",))["n0"] == ["uid-n0-b0", "uid-n0-b1"]
    now_s[0] = 5.0
    for name in ("n0-b0", "n0-b1"):
        ended = dying_pod(name)
        ended["status"]["phase"] = "Failed"
        cache.put(read(ended))
    now_s[0] = 5.0 + 0.9 * reservations.KEPT_S
    assert let_in(extender, asking, "n1") == []
    # Their objects go later, which frees nothing more.
    for name in ("n0-b0", "n0-b1"):
        cache.remove(read(pod(name, "n0")))
    now_s[0] = 5.0 + 1.1 * reservations.KEPT_S
    assert let_in(extender, asking, "n1") == ["n1"]


@pytest.mark.parametrize("told", [True, False])
def test_what_frees_nothing_for_a_pod_does_not_keep_it_waiting(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    others = [pod(f"c{i}", "n0", gpus=0, cpu="1", priority=0) for i in range(4)]
    done = pod("done", "n0", gpus=1, status={"phase": "Succeeded"})
    cache, now_s = make_cache([*full_node(), *others, done, node("n1"), flextopo("n1", {})]), [0.0]
    monkeypatch.setattr(cache.reservations, "_clock", lambda: now_s[0])
    extender, asking = make_extender(cache), nominated("online", 2, "n0")
    if told:
        assert preempt(extender, preemptor(2), "n0", uids=("uid-n0-b0",))["n0"]
        for name in ("n0-b0", "n0-b1"):
            cache.remove(read(pod(name, "n0")))
    else:
        cache.put(read(asking))
    now_s[0] = 1.1 * reservations.KEPT_S
    for gone in (*others, done):
        cache.remove(read(gone))
    assert let_in(extender, asking, "n1") == ["n1"]


@pytest.mark.parametrize("grace_s", [31, 60, 120, 600, 3600])
def test_nobody_else_is_evicted_while_victims_take_long(grace_s: int) -> None:
    documents = full_node()
    gone = datetime(2027, 1, 15, 8, tzinfo=UTC) + timedelta(seconds=grace_s)
    documents[2] = dying_pod("n0-b0", gone.strftime("%Y-%m-%dT%H:%M:%SZ"))
    cache = make_cache([*documents, node("n1"), flextopo("n1", {})])
    asking = nominated("p", 2, "n0")
    assert Places(cache).kept_for(read_record(asking), evicts=True) == "n0"
    # Where there is room, it may go.
    assert let_in(make_extender(cache), asking, "n0", "n1") == ["n1"]


def test_promises_end_when_they_are_kept_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def third(cache: ClusterCache) -> Any:
        return preempt(make_extender(cache), preemptor(4, name="third"), "n0", uids=("uid-n0-b0",))

    cache = make_cache(full_node())
    extender = make_extender(cache)
    for name in ("online", "second"):
        assert preempt(extender, preemptor(4, name=name), "n0", uids=("uid-n0-b0",))
    assert third(cache) == {}
    bound = preemptor(4)
    bound["spec"]["nodeName"] = "n1"
    cache.put(read(bound))
    assert len(third(cache)["n0"]) == 4
    monkeypatch.setattr(reservations, "ANSWER_S", -1)
    cache = make_cache(full_node())
    extender = make_extender(cache)
    for name in ("online", "second"):
        assert preempt(extender, preemptor(4, name=name), "n0", uids=("uid-n0-b0",))
    assert len(third(cache)["n0"]) == 4


def test_each_promise_ends_in_its_time() -> None:
    now_s, changed = [0.0], list[str]()
    promises = reservations.Reservations(lambda: now_s[0], changed.append)
    low, high = (read_record(preemptor(1, name=n, priority=p)) for n, p in (("l", 1), ("h", 9)))
    promises.answer(high, "n0", ["v"])
    promises.let_in(low, ["n1"])
    promises.keep(low.uid, "n2")
    now_s[0] = 5.0
    promises.answer(low, "n0", ["w"])
    assert promises.least["n0"] == 1
    promises.expire()
    assert [*promises.coming_to("n1", "")] == []
    assert not promises._let_in
    assert not promises._kept
    assert promises.doomed("n0") == {"v", "w"}
    # Told again, it stays for as long again, whatever was to end before.
    now_s[0] = 9.0
    promises.answer(high, "n0", ["v"])
    assert promises.least["n0"] == 1
    now_s[0] = 10.0
    promises.expire()
    assert promises.doomed("n0") == {"v", "w"}
    changed.clear()
    now_s[0] = 15.0
    promises.expire()
    assert (promises.doomed("n0"), changed) == ({"v"}, ["n0"])
    assert promises.least["n0"] == 9
    now_s[0] = 19.0
    promises.expire()
    assert promises.answered(high.uid) is None
    assert "n0" not in promises.least


def test_an_answer_is_renewed_before_it_ends_and_not_each_time() -> None:
    now, changed = [0.0], list[str]()
    promised = reservations.Reservations(lambda: now[0], changed.append)
    promised.renew("uid-online", 60)  # nobody was told anything
    assert promised.answered("uid-online") is None
    promised.answer(read_record(preemptor(2)), "n0", ["b0"], 60)
    changed.clear()
    for second in range(0, 600, 5):
        now[0] = float(second)
        promised.expire()
        promised.renew("uid-online", 60)
        assert promised.answered("uid-online") == ("n0", ("b0",))
        assert len(promised._ends) <= 4  # not one more each time
    assert changed == []
    now[0] += 61
    promised.expire()
    assert promised.answered("uid-online") is None
    assert changed == ["n0"]


def test_all_nodes_at_once_are_as_each_of_them_is_found() -> None:
    names = [f"n{i}" for i in range(6)]
    documents = [part for name in names for part in full_node(name, 4)]
    cache = make_cache([*documents, nominated("watched", 2, "n4", priority=500)])
    asking = read_record(preemptor(2, status={"nominatedNodeName": "n5"}))
    others = {"n1": 500, "n2": 2000, "n3": 1000, "n5": 1000}
    for name, priority in others.items():
        told = read_record(preemptor(2, name=f"z-{name}", priority=priority))
        cache.reservations.answer(told, name, [f"uid-{name}-b0"])
    cache.reservations.answer(asking, "n2", ["uid-n2-b0"])
    each = {name: Places(cache).state_of(name, asking) for name in names}
    together = Places(cache).states_of(names, asking)
    free = {name: state.counted.gpu_free for name, state in each.items() if state}
    assert {name: state.counted.gpu_free for name, state in together.items()} == free
    plain = {name: cache.nodes.states[name].counted.gpu_free for name in names}
    assert {name for name in names if plain[name] != free[name]} == {"n1", "n2", "n4", "n5"}


def test_a_pod_is_not_held_back_for_ever() -> None:
    now_s = [0.0]
    promises = reservations.Reservations(lambda: now_s[0], lambda name: None)
    held = []
    for _ in range(30):
        promises.hold_back("p")
        held.append(promises.is_held_back("p"))
        now_s[0] += 1.0
    assert held == [True] * reservations.HELD_BACK_MOST_S + [False] * 10
    promises.forget("p")
    promises.hold_back("p")
    assert promises.is_held_back("p")


def test_a_shadow_lets_stand_whatever_was_proposed() -> None:
    protected = {"godel.bytedance.com/can-be-preempted": "false"}
    documents = full_node()
    documents[2] = pod("n0-b0", "n0", annotations=protected)
    real = make_extender(make_cache(documents))
    shadow = Extender(real.decider, real.telemetry, shadow=True)
    for asking in (pod("cpu-only", gpus=0, priority=1000), preemptor(2)):
        for where in ("n0", "nowhere"):
            told = {where: ["uid-n0-b0"]}
            assert preempt(shadow, asking, where, uids=("uid-n0-b0",)) == told


def bound_at(seconds_ago: int) -> dict[str, Any]:
    at = f"2027-01-15T07:59:{60 - seconds_ago:02d}Z"
    return {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at}]}


@pytest.mark.parametrize(("seconds_ago", "held_back"), [(5, True), (30, False)])
def test_nobody_is_evicted_while_a_fresh_placement_is_unknown(
    seconds_ago: int, held_back: bool
) -> None:
    # Four GPUs are free, but where the fresh pod's lie is not known yet.
    names = ["n0-b0", "n0-b1", "n0-b2"]
    documents = [node("n0"), flextopo("n0", {name: [i] for i, name in enumerate(names)})]
    documents += [pod(name, "n0") for name in names]
    documents.append(pod("fresh", "n0", status=bound_at(seconds_ago)))
    documents += full_node("n1")
    extender = make_extender(make_cache(documents))
    assert let_in(extender, preemptor(4), "n0") == []
    found = preempt(extender, preemptor(4), "n1", uids=("uid-n1-b0",))
    assert (found == {}) is held_back


def test_victims_that_may_not_go_do_not_stand_for_pods_without_gpus_either() -> None:
    documents = full_node()
    documents[2] = pod("n0-b0", "n0", annotations={"godel.bytedance.com/can-be-preempted": "false"})
    protection = "godel.bytedance.com/protection-duration-from-preemption"
    documents[3] = pod("n0-b1", "n0", annotations={protection: "7200"})
    extender = make_extender(make_cache([*documents, node("cpu", gpus=0), pod("c", "cpu", gpus=0)]))
    for asking in (
        pod("cpu-only", gpus=0, priority=1000),
        pod("mig", gpus=0, priority=1000, spec={"containers": [MIG]}),
    ):
        for uid, stands in (("n0-b0", False), ("n0-b1", False), ("n0-b2", True), ("nobody", False)):
            found = preempt(extender, asking, "n0", uids=(f"uid-{uid}",))
            assert found == ({"n0": [f"uid-{uid}"]} if stands else {})
        assert preempt(extender, asking, "cpu", uids=("uid-c",)) == {"cpu": ["uid-c"]}


MIG = {"name": "c", "resources": {"requests": {"nvidia.com/mig-1g.10gb": "1", "cpu": "4"}}}


def test_a_pod_does_not_go_where_a_resource_is_not_known_at_all() -> None:
    cache = make_cache(full_node())
    extender = make_extender(cache)
    odd = {"nvidia.com/gpu": "2", "cpu": "14", "rdma/hca": "1"}
    asking = preemptor(2, spec={"containers": [{"name": "c", "resources": {"requests": odd}}]})
    assert preempt(extender, asking, "n0", uids=("uid-n0-b0",)) == {}


def test_the_same_uid_twice_loses_nobody() -> None:
    cache = make_cache([*full_node(count=2), *full_node("n1", count=2)])
    twin = pod("twin", "n1", meta={"uid": "uid-n0-b0"})
    cache.put(read(twin))
    assert cache.pods["uid-n0-b0"].name == "n0-b0"
    assert "its uid is that of 'batch/n0-b0'" in cache.problems["Pod uid-n0-b0"]
    assert "batch/twin" in cache.nodes.states["n1"].broken
    assert not cache.nodes.states["n0"].broken
    cache.remove(read(twin))
    assert not cache.nodes.states["n1"].broken
    assert cache.pods["uid-n0-b0"].name == "n0-b0"
