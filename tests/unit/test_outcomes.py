"""What becomes of evictions: for whom the place was that they freed."""

from collections import Counter
from typing import Any

import pytest
from kube_objects import flextopo, make_cache, node, pod, read, read_record

from flextopo.baselines.registry import make_selector
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.outcomes import Outcomes
from flextopo.policies.serving.records import PodRecord

NOW = "2027-01-15T08:00:00Z"
GREEDY = make_selector("greedy-cost")
BATCH = {"a": [0, 1, 2, 3], "b": [4, 5], "c": [6]}


def batch(name: str, gpus: int) -> dict[str, Any]:
    return pod(name, "n0", gpus=gpus, cpu=str(7 * gpus))


def asking(name: str, gpus: int, priority: int, where: str = "", **more: Any) -> dict[str, Any]:
    return pod(name, where, gpus=gpus, cpu=str(7 * gpus), priority=priority, **more)


class Story:
    """A pod of priority 500 that wants 4 GPUs had `a` evicted on n0, where GPU 7 was free."""

    def __init__(self, victims: tuple[str, ...] = ("a",)) -> None:
        documents = [batch(name, len(gpus)) for name, gpus in BATCH.items()]
        self.cache = make_cache([node("n0"), node("n9"), flextopo("n0", BATCH), *documents])
        self.cache.put(read(asking("middle", 4, 500)))
        self.told: Counter[str] = Counter()
        decider = Decider(self.cache, GREEDY, GREEDY)
        self.now = 0.0
        self.outcomes = Outcomes(
            decider, lambda fate, count: self.told.update({fate: count}), clock=lambda: self.now
        )
        middle = read_record(asking("middle", 4, 500))
        gone = tuple(self.record(name) for name in victims)
        self.outcomes.evicted(middle, Decision("n0", gone))
        for name in victims:
            self.cache.remove(read(batch(name, len(BATCH[name]))))

    def record(self, name: str) -> PodRecord:
        return next(pod for pod in self.cache.pods.values() if pod.name == name)

    def bind(self, name: str, gpus: int, priority: int, where: str, *held: int) -> None:
        self.cache.put(read(asking(name, gpus, priority, where)))
        if held:
            left = {
                pod.name: BATCH[pod.name] for pod in self.cache.book.on(where) if pod.name in BATCH
            }
            self.cache.put(read(flextopo(where, {**left, name: held})))
        self.outcomes.seen()


def test_who_was_not_told_to_go_after_all_is_not_counted() -> None:
    story = Story(("a", "b"))
    gone = [read_record(batch(name, len(BATCH[name]))) for name in ("a", "b")]
    story.outcomes.stayed(read_record(asking("middle", 4, 500)), gone[1:])
    story.outcomes.stayed(read_record(asking("other", 4, 500)), gone[:1])
    story.bind("middle", 4, 500, "n9")
    story.now = 60
    story.outcomes.seen()
    assert story.told == {"bound elsewhere": 1}


def test_what_is_used_by_the_pod_it_was_for_is_needed() -> None:
    story = Story()
    story.bind("middle", 4, 500, "n0", 0, 1, 2, 3)
    assert story.told == {"needed": 1}


@pytest.mark.parametrize(
    ("gpus", "priority", "held", "fate"),
    [
        # Nobody else came, or one that did not need it, or one that is no more important.
        (0, 0, (), "bound elsewhere"),
        (1, 1000, (7,), "bound elsewhere"),
        (4, 500, (0, 1, 2, 3), "bound elsewhere"),
        (4, 1000, (0, 1, 2, 3), "taken over"),
        (2, 1000, (0, 1), "taken over"),
    ],
)
def test_a_more_important_pod_may_take_what_was_freed(
    gpus: int, priority: int, held: tuple[int, ...], fate: str
) -> None:
    story = Story()
    if gpus:
        story.bind("other", gpus, priority, "n0", *held)
    assert not story.told
    story.bind("middle", 4, 500, "n9")
    assert story.told == {fate: 1}


def test_who_has_other_resources_took_nothing_over() -> None:
    # A less important pod has the GPUs; one that needs none, or had its own, came as well.
    for important, held in (
        (asking("cpu", 0, 2000, "n0"), ()),
        (asking("one", 1, 2000, "n0"), (7,)),
    ):
        story = Story()
        story.bind("low", 4, 100, "n0", 0, 1, 2, 3)
        story.cache.put(read(important))
        if held:
            story.cache.put(
                read(flextopo("n0", {"one": held, "low": [0, 1, 2, 3], "b": [4, 5], "c": [6]}))
            )
        story.bind("middle", 4, 500, "n9")
        assert story.told == {"bound elsewhere": 1}
    # Where placements, or the node, are not known, nobody can tell.
    story = Story()
    story.cache.remove(read(flextopo("n0", BATCH)))
    story.bind("other", 4, 1000, "n0")
    story.bind("middle", 4, 500, "n9")
    assert story.told == {"bound elsewhere": 1}


def test_a_second_decision_does_not_forget_who_came_since_the_first() -> None:
    story = Story()
    story.bind("other", 4, 1000, "n0", 0, 1, 2, 3)
    story.outcomes.evicted(story.record("middle"), Decision("n0", (story.record("c"),)))
    story.bind("middle", 4, 500, "n9")
    assert story.told == {"taken over": 1}


def test_only_as_many_are_taken_over_as_were_needed() -> None:
    story = Story(("b", "c"))
    story.bind("other", 2, 1000, "n0", 4, 5)
    story.bind("middle", 4, 500, "n9")
    assert story.told == {"taken over": 1, "bound elsewhere": 1}


def test_what_is_on_its_way_out_was_taken_by_nobody() -> None:
    story = Story(())
    middle = story.record("middle")
    story.outcomes.evicted(middle, Decision("n0", (story.record("c"),)))
    leaving = pod("c", "n0", gpus=1, cpu="7", meta={"deletionTimestamp": "2027-01-15T08:00:20Z"})
    story.cache.put(read(leaving))
    story.bind("other", 1, 1000, "n0", 7)
    story.bind("middle", 4, 500, "n9")
    assert story.told == {"bound elsewhere": 1}


def test_a_pod_that_is_gone_leaves_its_place_to_others() -> None:
    story = Story()
    story.bind("other", 4, 1000, "n0", 0, 1, 2, 3)
    story.cache.remove(read(asking("middle", 4, 500)))
    story.outcomes.seen()
    assert story.told == {"taken over": 1}


def test_who_is_nominated_for_it_has_taken_it_over_before_it_is_bound() -> None:
    story = Story()
    story.cache.put(read(asking("other", 4, 1000, status={"nominatedNodeName": "n0"})))
    story.bind("middle", 4, 500, "n9")
    assert story.told == {"taken over": 1}


def test_the_log_names_whom_an_eviction_in_vain_was_for() -> None:
    lines: list[dict[str, Any]] = []
    story = Story()
    story.outcomes._log = lambda event, **fields: lines.append({"event": event, **fields})
    story.bind("middle", 4, 500, "n9")
    assert lines == [
        {
            "event": "in_vain",
            "fate": "bound elsewhere",
            "pod": "batch/middle",
            "node": "n0",
            "victims": ["batch/a"],
        }
    ]


def test_nothing_is_told_before_it_is_known_who_has_what_was_freed() -> None:
    """A more important pod was bound a moment ago: where its GPUs are is about to be known."""
    story = Story()
    bound = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": NOW}]
    other = asking("other", 4, 1000, "n0", status={"conditions": bound})
    story.cache.put(read(other))
    story.cache.put(read(batch("unknown", 1)))
    story.bind("middle", 4, 500, "n9")
    assert not story.told
    story.cache.remove(read(batch("unknown", 1)))
    left = {"b": BATCH["b"], "c": BATCH["c"], "other": [0, 1, 2, 3]}
    story.cache.put(read(flextopo("n0", left)))
    story.outcomes.seen()
    assert story.told == {"taken over": 1}


@pytest.mark.parametrize("bound", [True, False])
def test_who_was_let_in_may_be_on_its_way_to_what_was_freed(bound: bool) -> None:
    story = Story()
    other = asking("other", 4, 1000)
    story.cache.put(read(other))
    story.cache.reservations.let_in(story.record("other"), ["n0"])
    story.bind("middle", 4, 500, "n9")
    assert not story.told
    if bound:
        story.bind("other", 4, 1000, "n0", 0, 1, 2, 3)
    story.now = 6.0
    story.cache.reservations.let_in(story.record("other"), [])
    story.outcomes.seen()
    assert story.told == {"taken over" if bound else "bound elsewhere": 1}


def test_who_came_afterwards_took_nothing_over() -> None:
    story = Story()
    story.cache.put(read(asking("other", 4, 1000)))
    story.cache.reservations.let_in(story.record("other"), ["n0"])
    story.bind("middle", 4, 500, "n9")
    story.now = 6.0
    story.bind("late", 4, 1000, "n0", 0, 1, 2, 3)
    assert story.told == {"bound elsewhere": 1}
