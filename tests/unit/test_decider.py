"""Who decides, in how much time, and what becomes of failures."""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from kube_objects import (
    NOW_S,
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
from flextopo.baselines.requeue import RequeueAware
from flextopo.cluster.observation.features import HELD_FEATURES
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.runtime import load_policy
from flextopo.policies.selectors import find_served
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.runner import (
    MAX_STUCK,
    MOST_WEIGHTS,
    SLOWEST_S,
    SelectorRunner,
    SelectorTimeoutError,
    UndecidableError,
    is_prompt,
)
from flextopo.policies.serving.view import ClusterView

FALLBACK = make_selector("flextopo-best-effort")
GREEDY = make_selector("greedy-cost")


@dataclass
class Failing:
    """A selector that raises, or hangs until it is let go."""

    error: BaseException | None = None
    let_go: threading.Event = field(default_factory=threading.Event)
    name: str = "failing"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        if self.error is not None:
            raise self.error
        self.let_go.wait(60)
        return GREEDY.select(cluster, preemptor)


def decider(documents: Any, selector: VictimSelector = GREEDY, **more: Any) -> Decider:
    # The first decision compiles kernels, which takes longer than the usual budget.
    return Decider(make_cache(documents), selector, FALLBACK, **{"budget_s": 60.0, **more})


ASKING = read_record(preemptor(2))


def warm() -> ClusterView:
    """Return a view for selectors to compile their kernels on."""
    cache = make_cache(full_node())
    return cache.view(ASKING, dict(cache.nodes.states), worst_case=True)


def test_a_decision_says_where_whom_and_why() -> None:
    documents = full_node()
    # The last one started an hour ago like all others, and saves its work every 15 minutes.
    documents[-1] = pod("n0-b7", "n0", annotations={"flextopo/checkpoint-interval-s": "900"})
    documents[-2] = pod("n0-b6", "n0", annotations={"flextopo/checkpoint-interval-s": "900"})
    found = decider(documents).decide(ASKING, ["n0", "elsewhere"])
    assert found.node == "n0"
    assert [victim.name for victim in found.victims] == ["n0-b6", "n0-b7"]
    assert (found.gpus, found.level, found.violations) == ((6, 7), "socket", 0)
    assert (found.selector, found.fallback) == ("greedy-cost", "")
    assert found.reasons[0] == "placed on socket level"
    assert "batch/n0-b6: priority 100, 1 GPUs, running 3600 s" in found.reasons
    assert found.elapsed_ms > 0
    assert found.cost_gpu_s > 0


def test_a_policy_is_told_who_holds_the_gpus_of_the_nodes_of_its_decision() -> None:
    # Of the other node only what is free is known, not its pods: nothing beyond the view is read.
    cache = make_cache([*full_node("n0"), *full_node("n1"), *full_node("half", 4)])
    view = cache.view(ASKING, {"n0": cache.nodes.states["n0"]}, worst_case=True)
    assert len(view.whole.nodes) == 3
    policy = load_policy("deepset-imitation")
    names = {**policy.names, "cluster": [*policy.names["cluster"], *HELD_FEATURES]}
    shared = np.zeros((64, 9 + 16 + len(HELD_FEATURES)), np.float32)
    reading = replace(policy, weights={**policy.weights, "shared.weight": shared}, features=names)
    _, count, o = reading.look(view, view.preemptor)
    assert count > 0
    told = dict(zip(HELD_FEATURES, o.cluster[16:].tolist(), strict=True))
    assert told.pop("held_batch_1") == 1.0
    assert not any(told.values())


@pytest.mark.parametrize("error", [RuntimeError("gone"), MemoryError(), SystemExit(3)])
def test_the_baseline_answers_for_a_model_that_fails(error: BaseException) -> None:
    found = decider(full_node(), Failing(error)).decide(ASKING, ["n0"])
    assert (found.selector, found.fallback) == ("flextopo-best-effort", "model_error")
    assert type(error).__name__ in found.detail
    assert len(found.victims) == 2


def test_the_baseline_answers_for_scores_that_are_no_numbers() -> None:
    policy = load_policy("deepset-imitation")
    weights = {**policy.weights, "score.bias": policy.weights["score.bias"] * float("nan")}
    broken = replace(policy, name="nan", weights=weights)
    found = decider(full_node(), broken).decide(ASKING, ["n0"])
    assert (found.selector, found.fallback) == ("flextopo-best-effort", "model_error")
    assert "not finite" in found.detail


def test_the_baseline_answers_for_a_model_that_hangs() -> None:
    hanging = Failing()
    FALLBACK.select((view := warm()), view.pod(0))
    serving = decider(full_node(), hanging, budget_s=0.2)
    begin = time.monotonic()
    found = serving.decide(ASKING, ["n0"])
    assert time.monotonic() - begin < 5
    assert (found.selector, found.fallback) == ("flextopo-best-effort", "timeout")
    assert "200 ms" in found.detail
    # Once it comes back it is asked again.
    hanging.let_go.set()
    assert serving.decide(ASKING, ["n0"]).fallback == ""


def test_models_that_hang_are_not_started_for_ever() -> None:
    hanging, started = Failing(), threading.active_count()
    running = SelectorRunner()
    state = warm()
    FALLBACK.select(state, state.pod(0))
    for _ in range(MAX_STUCK + 3):
        with pytest.raises(SelectorTimeoutError):
            running.select(hanging, state, state.pod(0), 0.01)
    assert threading.active_count() <= started + MAX_STUCK
    with pytest.raises(SelectorTimeoutError, match="earlier decisions still run"):
        running.select(hanging, state, state.pod(0), 0.01)
    hanging.let_go.set()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert running.select(FALLBACK, state, state.pod(0), 5.0) is not None
            return
        except SelectorTimeoutError:
            time.sleep(0.01)
    pytest.fail("the runner did not recover")


def test_rules_need_a_thread_only_where_they_may_take_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: SimpleQueue[threading.Thread] = SimpleQueue()
    select = RequeueAware.select

    def noted(rule: RequeueAware, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        threads.put(threading.current_thread())
        return select(rule, cluster, preemptor)

    class Derived(RequeueAware):
        pass

    monkeypatch.setattr(RequeueAware, "select", noted)
    running, state = SelectorRunner(), warm()
    for rule, limit_s, without in (
        (RequeueAware(), 10.0, True),
        (find_served("requeue-aware"), 10.0, True),
        (RequeueAware(), 0.9 * SLOWEST_S, False),
        (Derived(), 10.0, False),
    ):
        with suppress(SelectorTimeoutError):
            running.select(rule, state, state.pod(0), limit_s)
        assert (threads.get(timeout=10) is threading.current_thread()) == without
    # What PodGroups lose takes time by the number of their members, and pods without GPUs make many sets.
    for table, column, value in (("pods", "group", 0), ("live", "gpu_mask", 0)):
        state = warm()
        getattr(state.arrays, table)[1][column] = value
        running.select(RequeueAware(), state, state.pod(0), 10.0)
        assert threads.get(timeout=10) is not threading.current_thread()


def test_only_small_networks_need_no_thread() -> None:
    policy = load_policy("deepset-imitation")
    assert is_prompt(policy)
    assert is_prompt(find_served("deepset-imitation+in-range"))
    large = {**policy.weights, "more": np.zeros(MOST_WEIGHTS, np.float32)}
    assert not is_prompt(replace(policy, weights=large))


def test_a_failing_baseline_is_an_error_at_once() -> None:
    cache = make_cache(full_node())
    twice = Decider(cache, Failing(RuntimeError("one")), Failing(RuntimeError("two")))
    with pytest.raises(UndecidableError, match=r"one.*and the baseline: two"):
        twice.decide(ASKING, ["n0"])
    hanging = Decider(cache, Failing(), Failing(), budget_s=0.02)
    begin = time.monotonic()
    with pytest.raises(UndecidableError, match="took over 100 ms"):
        hanging.decide(ASKING, ["n0"])
    assert time.monotonic() - begin < 2


def test_the_baseline_decides_on_old_knowledge() -> None:
    age = [30.0]
    serving = decider(full_node(), age_s=lambda: age[0])
    assert serving.decide(ASKING, ["n0"]).fallback == ""
    age[0] = 31.0
    found = serving.decide(ASKING, ["n0"])
    assert (found.selector, found.fallback) == ("flextopo-best-effort", "stale_watch")
    assert "31 s old" in found.detail


def test_a_node_without_flextopo_is_the_baselines_and_nothing_is_claimed() -> None:
    documents = [node("n0"), *(pod(f"p{i}", "n0") for i in range(8))]
    found = decider(documents).decide(read_record(preemptor(2, "best-effort")), ["n0"])
    assert (found.selector, found.fallback) == ("flextopo-best-effort", "missing_flextopo")
    assert (len(found.victims), found.level, found.gpus) == (2, "unknown", ())
    # A guaranteed pod needs an alignment that somebody knows.
    found = decider(documents).decide(ASKING, ["n0"])
    assert (found.node, found.reasons) == (None, ("no victim set helps",))


def test_unknown_placements_never_count_as_aligned() -> None:
    # b0 and b1 are on GPUs 0 and 1, one socket; nobody knows where the other six are.
    documents = [node("n0"), flextopo("n0", {"b0": [0], "b1": [1]})]
    documents += [pod(f"b{i}", "n0") for i in range(8)]
    documents[-1] = pod("b7", "n0", priority=1)
    found = decider(documents).decide(ASKING, ["n0"])
    assert {victim.name for victim in found.victims} == {"b0", "b1"}
    assert found.level == "socket"
    # Without one of the two, only guesses would align it.
    documents[2] = pod("b0", "n0", priority=1000)
    assert decider(documents).decide(ASKING, ["n0"]).node is None
    relaxed = read_record(preemptor(2, "best-effort"))
    found = decider(documents).decide(relaxed, ["n0"])
    assert (found.fallback, found.level, len(found.victims)) == ("unknown_placement", "unknown", 2)


def test_nodes_of_known_placements_come_first() -> None:
    documents = [*full_node("n1"), node("n0"), *(pod(f"p{i}", "n0", priority=1) for i in range(8))]
    found = decider(documents).decide(read_record(preemptor(2, "best-effort")), ["n0", "n1"])
    assert (found.node, found.fallback) == ("n1", "")


def budgeted(labels: list[str], allowed: int) -> list[dict[str, Any]]:
    documents = full_node()
    for i, label in enumerate(labels):
        documents[2 + i] = pod(f"n0-b{i}", "n0", meta={"labels": {"app": label}})
    return [*documents, budget("budget", allowed, {"app": "a"})]


def test_budgets_are_violated_only_where_nothing_else_helps() -> None:
    found = decider(budgeted(["a"] * 7, 0)).decide(ASKING, ["n0"])
    # b7 is free to go; the second on its socket is not.
    assert (found.fallback, found.violations) == ("budget", 1)
    assert "n0-b7" in {victim.name for victim in found.victims}
    found = decider(budgeted(["a"] * 6, 0)).decide(ASKING, ["n0"])
    assert (found.fallback, found.violations) == ("", 0)
    assert {victim.name for victim in found.victims} == {"n0-b6", "n0-b7"}
    strict = decider(budgeted(["a"] * 7, 0)).decide(ASKING, ["n0"], may_violate=False)
    assert strict.node is None


def test_a_budget_counts_down_within_one_victim_set() -> None:
    found = decider(budgeted(["a"] * 8, 1)).decide(ASKING, ["n0"])
    assert (found.fallback, found.violations) == ("budget", 1)
    found = decider(budgeted(["a"] * 8, 2)).decide(ASKING, ["n0"])
    assert (found.fallback, found.violations) == ("", 0)


def test_a_policy_may_wait() -> None:
    class Patient:
        name, filter = "patient", AlignmentFilter.OWN

        def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
            return None

    found = decider(full_node(), Patient()).decide(ASKING, ["n0"])
    assert (found.node, found.fallback, found.reasons) == (None, "", ("it is better to wait",))


def test_a_pod_that_never_preempts_does_not() -> None:
    asking = read_record(preemptor(2, spec={"preemptionPolicy": "Never"}))
    assert decider(full_node()).decide(asking, ["n0"]).node is None


@pytest.mark.parametrize("names", [[], ["elsewhere"], ["cpu"]])
def test_nodes_nobody_knows_are_an_error(names: list[str]) -> None:
    with pytest.raises(UndecidableError, match="none of"):
        decider([*full_node(), node("cpu", gpus=0)]).decide(ASKING, names)


def test_victims_about_something_else_stand_if_they_may() -> None:
    # Four GPUs are free and aligned, so kube-scheduler's victims are about something else.
    documents = full_node(count=4)
    serving = decider(documents)
    found = serving.decide(ASKING, ["n0"], {"n0": ["uid-n0-b0"]})
    assert (found.node, found.unchanged, found.fallback) == (None, ("n0",), "unmodelled")
    # Victims that the watch has not seen yet: nobody knows whether they are protected.
    for uids in (["uid-nobody"], ["uid-n0-b0", "uid-other"]):
        found = serving.decide(ASKING, ["n0"], {"n0": uids})
        assert (found.node, found.unchanged) == (None, ())
        assert "has not seen" in found.reasons[0]
    for change in (
        {"priority": 1000},
        {"meta": {"deletionTimestamp": "2027-01-15T07:59:00Z"}},
        {"meta": {"ownerReferences": [{"kind": "DaemonSet"}]}},
        {"meta": {"ownerReferences": [{"kind": "Node"}]}},
        {"annotations": {"godel.bytedance.com/can-be-preempted": "false"}},
        {"annotations": {"godel.bytedance.com/protection-duration-from-preemption": "7200"}},
    ):
        documents[2] = pod("n0-b0", "n0", **change)
        found = decider(documents).decide(ASKING, ["n0"], {"n0": ["uid-n0-b0"]})
        assert found.unchanged == (), change


def test_the_baseline_searches_many_nodes_part_by_part() -> None:
    documents = [d for n in range(120) for d in full_node(f"n{n:03}")]
    for document in documents:
        if document["kind"] == "Pod" and document["spec"]["nodeName"] < "n110":
            document["spec"]["priority"] = 5000
    serving = decider(documents, Failing(RuntimeError("gone")))
    found = serving.decide(ASKING, [f"n{n:03}" for n in range(120)])
    assert (found.node, found.fallback) == ("n110", "model_error")


@dataclass
class Counting:
    """The baseline, which counts how often it is asked."""

    asked: int = 0
    name: str = FALLBACK.name
    filter: AlignmentFilter = FALLBACK.filter

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        self.asked += 1
        return FALLBACK.select(cluster, preemptor)


def test_where_memory_is_short_the_baseline_is_not_asked_first() -> None:
    # 512 Gi less 8 x 4 Gi leave 480 Gi; two victims free 8 Gi more.
    asking, baseline = read_record(preemptor(2, memory="490Gi")), Counting()
    deciding = Decider(make_cache([*full_node("n0"), *full_node("n1")]), GREEDY, baseline, 60.0)
    found = deciding.decide(asking, ["n0", "n1"])
    assert (found.fallback, len(found.victims), baseline.asked) == ("guard", 3, 0)
    assert "memory" in found.detail
    # It is where nothing else was found.
    too_much = read_record(preemptor(2, memory="600Gi"))
    assert deciding.decide(too_much, ["n0", "n1"]).node is None
    assert baseline.asked == 1


def test_where_memory_is_short_on_one_node_room_on_another_does() -> None:
    def cluster(free: int) -> list[dict[str, Any]]:
        full, roomy = full_node("n0", count=4), full_node("n1", count=free)
        return [*full, pod("eater", "n0", gpus=0, cpu="1", memory="490Gi", priority=2000), *roomy]

    asking = read_record(preemptor(4, memory="100Gi"))
    for free, victims in ((4, 0), (6, 2)):
        found = decider(cluster(free)).decide(asking, ["n0", "n1"])
        assert (found.node, len(found.victims)) == ("n1", victims)


def test_a_node_whose_pods_hold_more_than_it_offers_is_left_out() -> None:
    # Eight pods hold cards of which the node offers seven: a fault may be under any of them.
    documents = [node("n0", gpus=7), *full_node()[1:]]
    asking = read_record(preemptor(3, "none"))
    with pytest.raises(UndecidableError, match="n0: pods hold 8 GPUs of 7 that it offers"):
        decider(documents).decide(asking, ["n0"], {"n0": []})
    both = [*documents, *full_node("n1")]
    proposed = {"n0": ["uid-n0-b0"], "n1": ["uid-n1-b0"]}
    found = decider(both).decide(asking, ["n0", "n1"], proposed)
    assert (found.node, len(found.victims), found.fallback) == ("n1", 3, "")


def test_equal_questions_get_equal_answers() -> None:
    serving = decider([*full_node("n0"), *full_node("n1")])
    first, second = (serving.decide(ASKING, ["n1", "n0"]) for _ in range(2))
    assert (first.node, first.victims) == (second.node, second.victims)


def test_a_start_in_the_future_counts_as_now() -> None:
    documents = full_node()
    for i in (6, 7):
        documents[2 + i] = pod(f"n0-b{i}", "n0", status={"startTime": "2027-01-15T09:00:00Z"})
    found = decider(documents).decide(ASKING, ["n0"])
    assert {victim.name for victim in found.victims} == {"n0-b6", "n0-b7"}
    assert "batch/n0-b6: priority 100, 1 GPUs, running 0 s" in found.reasons


@pytest.mark.parametrize(("late_s", "waits"), [(-20, True), (0, True), (5, True), (120, False)])
def test_what_is_late_to_go_is_waited_for_and_not_for_ever(late_s: int, waits: bool) -> None:
    """A node is worked out when something happens there, and its pods' time passes afterwards."""
    now_s = NOW_S - 60
    cache = ClusterCache(lambda: now_s)
    documents = full_node()
    gone = datetime.fromtimestamp(NOW_S - late_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    documents[2] = pod("n0-b0", "n0", meta={"deletionTimestamp": gone})
    documents[3] = pod("n0-b1", "n0", meta={"deletionTimestamp": gone})
    for document in documents:
        cache.put(read(document))
    cache.refresh()
    now_s = NOW_S
    found = Decider(cache, GREEDY, FALLBACK, budget_s=60.0).decide(ASKING, ["n0"])
    assert (found.node, found.fallback) == ("n0", "")
    assert found.wait_s > 0
    assert bool(found.victims) == (not waits)
