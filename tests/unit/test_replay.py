"""The recorder observes and does not touch; what it says of states and decisions is true."""

import itertools
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tapes

from flextopo.baselines.policies import GreedyCost
from flextopo.baselines.registry import SELECTORS, make_selector
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.model import Fleet
from flextopo.envs.scene import LETTERS, occupants
from flextopo.policies.shipped import zoo_names
from flextopo.train.compare import open_episode, play_tape, summarise
from flextopo.train.compare import play_all as run_comparison
from flextopo.train.config import ComparisonConfig
from flextopo.train.replay import START, Frame, Recording, differences, record
from flextopo.train.replay_decision import Choice, Shown, describe
from flextopo.train.replay_page import page_data, render
from flextopo.train.replay_results import config_of, interesting_seed, interesting_selectors

CONFIG = ComparisonConfig(servers="2*rtx4090,2*a100", workload=tapes.BUSY)
NAMES = [*SELECTORS, *zoo_names()]
SEED = 1_000_003


@dataclass(frozen=True)
class Watcher:
    """Greedy, and remembers every state that it is asked in."""

    seen: list[tuple[int, Any, Any]] = field(default_factory=list)
    name: str = "watcher"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        self.seen.append((cluster.now_s, *occupants(cluster)))
        return GreedyCost().select(cluster, preemptor)


def final(sim: Simulator) -> list[bytes]:
    """Return everything that an episode leaves behind, bit by bit."""
    arrays = [a for a in (*sim.state.arrays[:-1], *sim.events) if isinstance(a, np.ndarray)]
    return [a.tobytes() for a in arrays]


@pytest.mark.parametrize("name", NAMES)
def test_recording_changes_no_bit(name: str) -> None:
    plain, selector = open_episode(CONFIG, name, SEED)
    plain.play(selector)
    sim, selector = open_episode(CONFIG, name, SEED)
    recording = record(sim, selector)
    assert final(sim) == final(plain)
    assert repr(recording.metrics) == repr(play_tape(CONFIG, name, SEED))
    assert len(recording.choices) == recording.metrics["decisions"] > 0


def test_frames_are_the_states() -> None:
    watcher = Watcher()
    sim, _ = open_episode(CONFIG, "greedy-cost", SEED)
    tape = sim.tape
    recording = record(sim, watcher)
    moments = [frame.moment for frame in recording.frames]
    assert moments == sorted(set(moments))
    assert moments[0] == (0, START)
    pods, uses = np.full(32, -1), np.zeros(32, int)
    seen = iter(watcher.seen)
    for frame in recording.frames:
        for gpu, pod, use in frame.changes:
            assert (pods[gpu], uses[gpu]) != (pod, use)
            pods[gpu], uses[gpu] = pod, use
        if frame.moment in recording.choices:
            time_s, asked_pods, asked_uses = next(seen)
            assert time_s == frame.time_s
            assert (pods == asked_pods).all()
            assert (uses == asked_uses).all()
    assert next(seen, None) is None
    assert all((a == b).all() for a, b in zip((pods, uses), occupants(sim.state), strict=True))
    times = {frame.time_s for frame in recording.frames}
    arrivals = tape.pods["arrive_s"][
        (tape.pods["arrive_s"] >= 0) & (tape.pods["arrive_s"] < tape.end_s)
    ]
    assert set(arrivals.tolist()) <= times


def test_every_event_of_a_tape_by_hand_has_its_frame() -> None:
    tape = tapes.hand_tape(
        [
            {"arrive_s": 10, "gpus": 2, "duration_s": 1000},
            {"arrive_s": 11, "gpus": 2, "duration_s": 1000},
            {"arrive_s": 12, "gpus": 2, "depart_s": 60, "start_s": 5},
        ],
        end_s=100,
    )
    made = record(Simulator(tape, Fleet((tapes.DUO,), (0,))), GreedyCost())
    b, o, n = (LETTERS.index(letter) for letter in "bOn")
    assert [(frame.moment, frame.changes) for frame in made.frames] == [
        ((0, START), ()),
        ((10, 3), ((0, 0, b), (1, 0, b))),
        ((11, 3), ((2, 1, b), (3, 1, b))),
        ((12, 0), ()),  # the online pod is first in the scheduling order
        ((12, 3), ((2, 2, n), (3, 2, n))),
        ((42, 3), ((2, 2, o), (3, 2, o))),  # after the grace period
        ((47, 3), ()),  # it serves
        ((60, 3), ((2, 1, b), (3, 1, b))),  # it leaves, and its victim starts again
        ((100, 3), ()),
    ]
    assert [frame.online_wait for frame in made.frames] == [0, 0, 0, 2, 2, 0, 0, 0, 0]
    assert [frame.batch_wait for frame in made.frames] == [0, 0, 0, 0, 0, 2, 2, 0, 0]
    assert made.choices[12, 0].taken == (0, frozenset({1}))


def test_the_loss_adds_up_and_jumps_only_at_decisions() -> None:
    sim, selector = open_episode(CONFIG, "kubernetes", SEED)
    recording = record(sim, selector)
    last = sum(recording.frames[-1].loss_gpu_s)
    assert last / sim.tape.demanded_gpu_s() == pytest.approx(recording.metrics["weighted_loss"])
    jumps = 0
    for before, after in itertools.pairwise(recording.frames):
        steps = [b - a for a, b in zip(before.loss_gpu_s, after.loss_gpu_s, strict=True)]
        assert min(steps) >= 0
        assert not any(steps[:2] + steps[4:]) or after.time_s > before.time_s
        if any(steps[2:4]):
            assert before.moment in recording.choices
            choice = recording.choices[before.moment]
            assert choice.chosen is not None
            jumps += 1
    assert jumps > 0


@pytest.mark.parametrize("name", ["greedy-cost", "godel", *zoo_names()])
def test_what_is_said_of_a_choice_happens(name: str) -> None:
    sim, selector = open_episode(CONFIG, name, SEED)
    kinds = set()
    while (pod := sim.next_decision()) is not None:
        taken = selector.select(sim.state, pod)
        choice, _ = describe(selector, sim.state, pod, taken)
        before = sim.events.account[0].copy()
        sim.apply(taken)
        after = sim.events.account[0]
        kinds.add(taken is not None)
        assert (choice.taken is None) == (taken is None)
        if taken is None or choice.chosen is None:
            continue
        shown = choice.shown[choice.chosen]
        assert (shown.node, set(shown.victims)) == (taken.node, set(taken.victims))
        assert after["discarded"] - before["discarded"] == shown.discarded_gpu_s
        gone = [*shown.victims, *shown.stopped]
        evicted = sim.state.arrays.pods["gpus"][gone].sum()
        assert after["evicted_gpus"] - before["evicted_gpus"] == evicted
        assert sim.state.arrays.live[pod.index]["gpu_mask"] == shown.gpu_mask
        best = sim.state.model(shown.node).best_level(pod.gpus, pod.cores)
        assert best is not None
        assert shown.below == shown.level - best
        assert (sim.state.arrays.live[pod.index]["deficit"] > 0) == (shown.below > 0)
    assert True in kinds


@pytest.mark.parametrize("name", zoo_names())
def test_a_learned_choice_has_the_highest_score(name: str) -> None:
    sim, selector = open_episode(CONFIG, name, SEED)
    recording = record(sim, selector)
    assert recording.scores == "score"
    for choice in recording.choices.values():
        scores = [shown.score for shown in choice.shown if shown.score is not None]
        wait = -math.inf if choice.wait_score is None else choice.wait_score
        taken = wait if choice.chosen is None else choice.shown[choice.chosen].score
        assert taken == max(*scores, wait)
        assert f"{taken:.2f}" in choice.reason


def test_an_oracles_choice_has_the_least_loss_ahead() -> None:
    sim, selector = open_episode(CONFIG, "oracle-lookahead", SEED)
    recording = record(sim, selector)
    assert recording.scores == "loss to the end"
    for choice in recording.choices.values():
        if not choice.shown:
            continue
        scores = [shown.score for shown in choice.shown if shown.score is not None]
        wait = math.inf if choice.wait_score is None else choice.wait_score
        taken = wait if choice.chosen is None else choice.shown[choice.chosen].score
        assert taken == min(*scores, wait)


def two_servers(*victims: Pod) -> tuple[ClusterState, Pod]:
    """Return two servers of 4 GPUs, pod i of 4 GPUs on server i, and a preemptor of 4."""
    guaranteed = TopologyRequirement.GUARANTEED
    preemptor = Pod(len(victims), "p", 4, 4, 1000, guaranteed, online=True)
    state = ClusterState.from_pods([tapes.DUO], [0, 0], [*victims, preemptor], now_s=100_000)
    for node in range(2):
        state.start(node, node)
        state.arrays.live["since_s"][node] = 90_000 + 1000 * node
    return state, preemptor


MIDDLE = Pod(0, "a", 4, 4, 500, batch_class=1)
LOW = Pod(1, "b", 4, 4, 100)


@pytest.mark.parametrize(
    ("name", "victims", "words"),
    [
        ("kubernetes", (MIDDLE, LOW), "by: lower priority of the most important victim."),
        ("godel", (replace(MIDDLE, priority=100), LOW), "by: later start of the earliest"),
        ("flextopo", (MIDDLE, replace(LOW, preemptible=False)), "the only victim set"),
        ("greedy-cost", (MIDDLE, LOW), "The least loss of its own, 10.40 GPU-h; the next costs"),
        ("exact", (MIDDLE, LOW), "over all victim sets, 10.40 GPU-h; the cheapest"),
        ("random", (MIDDLE, LOW), "Drawn at random from 2 candidates."),
        (
            "greedy-cost",
            (replace(MIDDLE, preemptible=False), replace(LOW, preemptible=False)),
            "finds no victim set",
        ),
    ],
)
def test_reasons_by_hand(name: str, victims: tuple[Pod, Pod], words: str) -> None:
    selector = make_selector(name)
    state, pod = two_servers(*victims)
    choice, label = describe(selector, state, pod, selector.select(state, pod))
    assert words in choice.reason
    assert label == ""


def shown(node: int, *victims: int) -> Shown:
    return Shown(node, victims, (), 1, 0, 0, 1.0, 1, None)


def choice(*taken: Shown) -> Choice:
    return Choice(7, 0, 1, taken, 0 if taken else None, None, "")


def recording(
    name: str, frames: dict[tuple[int, int], list[Any]], choices: dict[Any, Any]
) -> Recording:
    made = [Frame(*m, tuple(c), (0.0,) * 5, 0, 0) for m, c in frames.items()]
    return Recording(name, frames=made, choices=choices)


def test_differences_by_hand() -> None:
    start = {(0, START): [(0, 5, 1)]}
    a = recording(
        "a",
        {
            **start,
            (10, 3): [],
            (10, 9): [(1, 6, 1)],
            (20, 4): [],
            (30, 5): [],
            (40, 9): [(2, 1, 1)],
        },
        {(10, 3): choice(shown(0, 1, 2)), (20, 4): choice(shown(0, 1)), (30, 5): choice()},
    )
    b = recording(
        "b",
        {
            **start,
            (10, 3): [],
            (10, 9): [(1, 7, 1)],
            (15, 9): [(1, 6, 1)],
            (20, 4): [],
            (25, 1): [],
            (30, 5): [],
        },
        {
            (10, 3): choice(shown(0, 2, 1)),
            (20, 4): choice(shown(0, 3)),
            (25, 1): choice(shown(0, 3)),
            (30, 5): choice(shown(1, 3)),
        },
    )
    assert [(d.moment, d.about) for d in differences(a, b)] == [
        ((10, 9), "the clusters differ from here on"),
        ((20, 4), "different victims on one node"),
        ((25, 1), "only b needs a decision"),
        ((30, 5), "a waits, the other preempts"),
        ((40, 9), "the clusters differ from here on"),
    ]
    assert differences(a, a) == []


def test_no_text_closes_the_pages_data() -> None:
    sim, selector = open_episode(CONFIG, "greedy-cost", SEED)
    made = record(sim, selector)
    made.name = "</script><b>&"
    page = render(sim, [made], [], {"servers": "<i>"})
    assert "<i>" not in page
    assert page.count("</script>") == 2
    data = page.split('id="recording">')[1].split("</script>")[0]
    assert json.loads(data) == json.loads(json.dumps(page_data(sim, [made], [])))
    assert json.loads(data)["sides"][0]["name"] == made.name


def saved(**losses: list[float | None]) -> dict[str, Any]:
    """Return results of selectors by their losses on seeds 5, 6, ..."""
    row = {
        name: {"mean": np.mean([v for v in values if v is not None]), "per_seed": values}
        for name, values in losses.items()
    }
    return {
        "selectors": {name: {"weighted_loss": cell} for name, cell in row.items()},
        "config": {
            "policies": [name for name in losses if name.startswith("net")],
            "reference": "greedy",
            "seeds_used": {n: list(range(5, 5 + len(v))) for n, v in losses.items()},
        },
    }


def test_the_most_interesting_of_results() -> None:
    results = saved(slow=[9.0, 9.0, 9.0], greedy=[3.0, 4.0, 5.0], net=[2.0, 4.5, None])
    assert interesting_selectors(results) == ("net", "greedy")
    assert interesting_seed(results, ("net", "greedy")) == 5
    assert interesting_seed(results, ("greedy",)) == 7
    assert interesting_seed(results, ("slow", "greedy")) == 5
    assert interesting_seed(results, ("unknown",)) == 5
    assert interesting_selectors(saved(slow=[9.0], greedy=[3.0])) == ("slow", "greedy")
    assert interesting_selectors(saved(slow=[9.0], fast=[3.0])) == ("fast", "slow")
    assert interesting_selectors(saved(greedy=[9.0])) == ("greedy",)


def test_saved_results_give_their_configuration_back(tmp_path: Path) -> None:
    config = replace(CONFIG, selectors=("greedy-cost",), policies=(), seeds=2)
    scores, _ = run_comparison(config, 1)
    results = json.loads(json.dumps(summarise(config, scores)))
    path = tmp_path / "r.json"
    assert config_of(results, path) == config
    seed = interesting_seed(results, ("greedy-cost",))
    sim, selector = open_episode(config_of(results, path), "greedy-cost", seed)
    # Some metrics are of gangs alone: NaN where there are none.
    assert repr(record(sim, selector).metrics) == repr(scores["greedy-cost"][seed])
    for key, words in (("servers", "lacks 'servers'"), ("workload", "no 'magic'; legal")):
        broken = {**results, "config": {**results["config"]}}
        del broken["config"][key]
        if key == "workload":
            broken["config"][key] = {**asdict(config.workload), "magic": 1}
        with pytest.raises(FlextopoError, match=words):
            config_of(broken, path)
