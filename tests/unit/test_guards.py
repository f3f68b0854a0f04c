"""Every guard stops a selector that goes astray, and nothing else does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from kube_objects import (
    budget,
    flextopo,
    full_node,
    make_cache,
    node,
    pod,
    preemptor,
    read,
    read_record,
)

from flextopo.baselines.registry import make_selector
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.policies.serving import guards
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.runner import UndecidableError
from flextopo.policies.serving.view import ClusterView

FALLBACK = make_selector("flextopo-best-effort")
Documents = list[dict[str, Any]]


@dataclass
class Rogue:
    """A selector that answers the victims it is told to, by name."""

    victims: tuple[str, ...]
    meanwhile: Callable[[], None] = lambda: None
    spoil: Callable[[ClusterView, dict[str, int]], None] = lambda view, rows: None
    name: str = "rogue"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        assert isinstance(cluster, ClusterView)
        rows = {record.name: row for row, record in enumerate(cluster.records)}
        self.meanwhile()
        any_answer = FALLBACK.select(cluster, preemptor)
        assert any_answer is not None
        self.spoil(cluster, rows)
        return replace(any_answer, node=0, victims=tuple(rows[name] for name in self.victims))


def changed(name: str, **change: Any) -> Documents:
    """Return a full node with something special about one pod."""
    documents = full_node()
    at = [document["metadata"]["name"] for document in documents].index(name)
    documents[at] = pod(name, "n0", **change)
    return documents


def decide(cache: ClusterCache, selector: Any, asking: dict[str, Any], **more: Any) -> Decision:
    # The first decision compiles kernels, which takes longer than the usual budget.
    return Decider(cache, selector, FALLBACK, budget_s=60).decide(
        read_record(asking), ["n0"], **more
    )


PAIR = ("n0-b0", "n0-b1")
DAEMON = {"ownerReferences": [{"kind": "DaemonSet"}]}
MIRROR = {"annotations": {"kubernetes.io/config.mirror": "x"}}
CASES: list[tuple[str, Documents, tuple[str, ...]]] = [
    ("of_lower_priority", changed("n0-b0", priority=1000), PAIR),
    ("of_lower_priority", changed("n0-b0", priority=1001), PAIR),
    ("not_terminating", changed("n0-b0", meta={"deletionTimestamp": "2027-01-15T07:50:00Z"}), PAIR),
    (
        "not_protected",
        changed("n0-b0", annotations={"godel.bytedance.com/can-be-preempted": "false"}),
        PAIR,
    ),
    (
        "not_protected",
        changed(
            "n0-b0",
            annotations={"godel.bytedance.com/protection-duration-from-preemption": "7200"},
        ),
        PAIR,
    ),
    ("not_static", changed("n0-b0", meta=MIRROR), PAIR),
    ("not_daemon", changed("n0-b0", meta=DAEMON), PAIR),
    (
        "within_budgets",
        [*changed("n0-b0", meta={"labels": {"app": "a"}}), budget("b", 0, {"app": "a"})],
        PAIR,
    ),
    ("each_once", full_node(), ("n0-b1", "n0-b1", "n0-b2")),
    ("fits", full_node(), ("n0-b0", "n0-b7")),  # on two sockets: not aligned
    ("none_to_spare", full_node(), ("n0-b0", "n0-b1", "n0-b2")),
]


@pytest.mark.parametrize(("guard", "documents", "victims"), CASES, ids=[c[0] for c in CASES])
def test_a_wrong_answer_is_replaced_and_only_the_guard_sees_to_it(
    guard: str, documents: Documents, victims: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(documents)
    found = decide(cache, Rogue(victims), preemptor(2))
    assert (found.selector, found.fallback) == ("flextopo-best-effort", "guard")
    assert found.detail.startswith(f"{guard}: ")
    assert len(found.victims) == 2
    assert "n0-b0" not in {victim.name for victim in found.victims} or guard in (
        "fits",
        "none_to_spare",
    )
    without(monkeypatch, guard)
    found = decide(cache, Rogue(victims), preemptor(2))
    assert (found.selector, found.fallback) == ("rogue", "")
    assert {victim.name for victim in found.victims} == set(victims)


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kept = tuple(guard for guard in guards.GUARDS if guard.__name__ != name)
    assert len(kept) == len(guards.GUARDS) - 1
    monkeypatch.setattr(guards, "GUARDS", kept)


@pytest.mark.parametrize("what", ["deleted", "finished"])
def test_a_victim_that_left_meanwhile_is_not_evicted(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(cache: ClusterCache) -> Callable[[], None]:
        moved = pod("n0-b0", "n0")
        if what == "finished":
            moved["status"]["phase"] = "Succeeded"
        change = cache.remove if what == "deleted" else cache.put
        return lambda: change(read(moved))

    cache = make_cache([*full_node(), *full_node("n1", 0)])
    found = decide(cache, Rogue(PAIR, leave(cache)), preemptor(2))
    assert found.fallback == "guard"
    assert found.detail.startswith("on_the_node: ")
    without(monkeypatch, "on_the_node")
    cache = make_cache([*full_node(), *full_node("n1", 0)])
    assert decide(cache, Rogue(PAIR, leave(cache)), preemptor(2)).selector == "rogue"


def test_an_alignment_nobody_knows_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [node("n0"), flextopo("n0", {}), *(pod(f"p{i}", "n0") for i in range(8))]
    cache = make_cache(documents)
    # A view that takes guessed placements for known ones, which it must not.
    view = cache.view
    monkeypatch.setattr(
        cache, "view", lambda *args, **more: view(*args, **{**more, "worst_case": False})
    )
    with pytest.raises(UndecidableError, match="placement_known"):
        decide(cache, make_selector("greedy-cost"), preemptor(2))
    without(monkeypatch, "placement_known")
    assert decide(cache, make_selector("greedy-cost"), preemptor(2)).level in ("numa", "socket")


def swap(view: ClusterView, rows: dict[str, int]) -> None:
    places = view.arrays.node_pods[0]
    here = places.tolist()
    first, second = here.index(rows["n0-b1"]), here.index(rows["n0-b7"])
    places[[first, second]] = places[[second, first]]


def destroy(view: ClusterView, rows: dict[str, int]) -> None:
    view.arrays.node_pods[:] = 10**6


@pytest.mark.parametrize("spoil", [swap, destroy])
def test_who_is_where_is_not_believed_from_what_a_selector_may_have_written_to(
    spoil: Callable[[ClusterView, dict[str, int]], None],
) -> None:
    # Victims on two sockets, and a list of the node by which they would be on one.
    rogue = Rogue(("n0-b0", "n0-b7"), spoil=spoil)
    decider = Decider(make_cache(full_node()), rogue, FALLBACK)
    found = decider.decide(read_record(preemptor(2)), ["n0"])
    assert found.fallback in ("guard", "model_error")
    assert found.selector == FALLBACK.name
    assert {victim.name for victim in found.victims} != {"n0-b0", "n0-b7"}
    assert found.level == "socket"


def test_a_node_with_more_pods_to_come_than_places_is_left_out() -> None:
    to_come = (
        pod(f"p{i}", gpus=0, cpu="1", priority=2000, status={"nominatedNodeName": "n0"})
        for i in range(56)
    )
    placed = flextopo("n0", {f"b{i}": [i] for i in range(8)})
    here = (pod(f"b{i}", "n0") for i in range(8))
    documents = [node("n0", cpu=200), placed, *here, *to_come]
    cache = make_cache(documents)
    state = cache.nodes.states["n0"]
    assert state.broken == "64 pods hold GPUs or cores, or are to; legal: below 64"
    cache.remove(read(documents[-1]))
    state = cache.nodes.states["n0"]
    assert not state.broken
    view = cache.view(read_record(preemptor(2)), {"n0": state}, worst_case=False)
    rows = [row for row, record in enumerate(view.records) if row and record.node == "n0"]
    assert view.fits(0, rows[:2], aligned=False)
    assert not view.fits(0, [len(view.records)], aligned=False)


def test_a_node_that_proposed_victims_is_not_answered_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_cache(full_node(count=4))
    proposed = {"n0": ["uid-n0-b0"]}
    monkeypatch.setattr(Decider, "_foreign", lambda *_: set())
    with pytest.raises(UndecidableError, match="not_emptied"):
        decide(cache, make_selector("greedy-cost"), preemptor(2), proposed=proposed)
    without(monkeypatch, "not_emptied")
    found = decide(cache, make_selector("greedy-cost"), preemptor(2), proposed=proposed)
    assert (found.node, found.victims) == ("n0", ())


def test_memory_must_suffice_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # 512 Gi less 8 x 4 Gi leave 480 Gi; two victims free 8 Gi more.
    cache = make_cache(full_node())
    asking = preemptor(2, memory="490Gi")
    proposed = {"n0": [f"uid-n0-b{i}" for i in range(4)]}
    found = decide(cache, make_selector("greedy-cost"), asking, proposed=proposed)
    # Both conflicts are solved at once, whatever kube-scheduler proposes: two more GPUs on one socket,
    # and three pods' memory.
    for some in (proposed, {"n0": proposed["n0"][:2]}, {}):
        found = decide(cache, make_selector("greedy-cost"), asking, proposed=some)
        assert (found.node, found.fallback, len(found.victims)) == ("n0", "guard", 3)
        assert "memory" in found.detail
        assert found.level in ("numa_node", "socket")
    # More than all pods hold: nobody is evicted in vain.
    too_much = preemptor(2, memory="600Gi")
    for some in ({"n0": [f"uid-n0-b{i}" for i in range(8)]}, {}):
        found = decide(cache, make_selector("greedy-cost"), too_much, proposed=some)
        assert (found.node, found.unchanged) == (None, ())
    without(monkeypatch, "fits_all_resources")
    assert decide(cache, make_selector("greedy-cost"), asking).node == "n0"
