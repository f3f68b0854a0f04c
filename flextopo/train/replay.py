"""Record an episode event by event, and find where two recordings of one tape differ.

Recording is pure observation: the simulation is stopped between its events and goes on as if it
had not been, and selectors are asked once for what they choose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.simulation.events import time_of
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.rules import Rules
from flextopo.cluster.simulation.scheduler import END, advance
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.loss import LOSS_TERMS, loss_terms
from flextopo.cluster.state.selector import VictimSelector
from flextopo.envs.scene import occupants
from flextopo.train.replay_decision import Choice, describe

START = -1
"""Rank of the state before anything happened at its time."""

Change = tuple[int, int, int]
"""GPU, its pod (-1 = none), its use."""

Moment = tuple[int, int]
"""Time in seconds and rank, see `Frame`; moments of all recordings of a tape are comparable."""


@dataclass(frozen=True)
class Frame:
    """The cluster from one moment on.

    Attributes:
        time_s: since time 0.
        rank: START; or the place in the scheduling order of the pod that waits for a decision; or
            the number of pods of the tape, once everything of that time has happened.
        changes: since the last frame.
        loss_gpu_s: (5,) weighted GPU-seconds lost so far, in the order of `LOSS_TERMS`.
        online_wait, batch_wait: GPUs asked for by pending pods.
    """

    time_s: int
    rank: int
    changes: tuple[Change, ...]
    loss_gpu_s: tuple[float, ...]
    online_wait: int
    batch_wait: int

    @property
    def moment(self) -> Moment:
        return self.time_s, self.rank


@dataclass
class Recording:
    """One selector on one tape.

    Attributes:
        name: of the selector.
        frames: by moment; the first holds the whole state at time 0.
        choices: its decisions by moment.
        metrics: see `METRICS`.
        scores: what the scores of its candidates are; empty where it has none.
    """

    name: str
    scores: str = ""
    frames: list[Frame] = field(default_factory=list)
    choices: dict[Moment, Choice] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A moment at which two recordings part.

    Attributes:
        moment: where.
        about: what differs, in words.
    """

    moment: Moment
    about: str


def record(
    sim: Simulator, selector: VictimSelector, done: Callable[[int, int], None] | None = None
) -> Recording:
    """Play a simulation from time 0 to its end and record it.

    Args:
        sim: at time 0, built for the selector's filter; played to its end.
        selector: decides.
        done: is told how many of how many seconds are over.
    """
    return _Recorder(sim, selector).record(done)


class _Recorder:
    def __init__(self, sim: Simulator, selector: VictimSelector) -> None:
        self.sim, self.selector = sim, selector
        self.out = Recording(selector.name)
        self.ranks = scheduling_ranks(sim)
        gpus = int(sim.state.arrays.totals[0]["gpus"])
        self.pods, self.uses = np.full(gpus, -1, np.int32), np.zeros(gpus, np.uint8)

    def record(self, done: Callable[[int, int], None] | None) -> Recording:
        end_s, num_pods = self.sim.rules.end_s, len(self.ranks)
        self.note(0, START)
        while (now_s := next_event_s(self.sim)) < end_s:
            self.advance_to(now_s)
            # Only decisions are charged at once; all else grows with the clock.
            account = self.sim.events.account.copy()
            while (pod := self.advance_to(now_s + 1)) != END:
                self.decide(pod)
                account = self.sim.events.account.copy()
            self.note(now_s, num_pods, account)
            if done is not None:
                done(now_s, end_s)
        self.advance_to(end_s)
        self.note(end_s, num_pods)
        self.out.metrics = episode_metrics(self.sim)
        return self.out

    def advance_to(self, end_s: int) -> int:
        """Run until a pod needs a decision or the clock stands at `end_s`."""
        rules: Rules = self.sim.rules._replace(end_s=end_s)
        return advance(self.sim.state.arrays, self.sim.events, rules)

    def decide(self, row: int) -> None:
        state = self.sim.state
        moment = state.now_s, int(self.ranks[row])
        self.note(*moment)
        pod = state.pod(row)
        chosen = self.selector.select(state, pod)
        choice, self.out.scores = describe(self.selector, state, pod, chosen)
        self.out.choices[moment] = choice
        self.sim.apply(chosen)

    def note(self, time_s: int, rank: int, account: npt.NDArray[Any] | None = None) -> None:
        """Append a frame with what has changed since the last one."""
        pods, uses = occupants(self.sim.state)
        changed = np.flatnonzero((pods != self.pods) | (uses != self.uses))
        self.pods, self.uses = pods, uses
        totals = self.sim.state.arrays.totals[0]
        terms = loss_terms(self.sim.events.account if account is None else account, self.sim.costs)
        self.out.frames.append(
            Frame(
                time_s=time_s,
                rank=rank,
                changes=tuple((int(g), int(pods[g]), int(uses[g])) for g in changed),
                loss_gpu_s=tuple(terms[term] for term in LOSS_TERMS),
                online_wait=int(totals["wait_gpus"]),
                batch_wait=int(totals["batch_wait_gpus"]),
            )
        )


def next_event_s(sim: Simulator) -> int:
    """Return when something happens next; the end of the tape where nothing does before it."""
    c, e = sim.state.arrays, sim.events
    clock = e.clock[0]
    times = [sim.tape.end_s]
    if clock["next_arrival"] < len(c.pods):
        times.append(int(c.pods[clock["next_arrival"]]["arrive_s"]))
    if clock["next_departure"] < len(e.departures):
        times.append(int(c.pods[e.departures[clock["next_departure"]]]["depart_s"]))
    if clock["heap_size"] > 0:
        times.append(int(time_of(e.heap[0])))
    return min(times)


def scheduling_ranks(sim: Simulator) -> npt.NDArray[np.int64]:
    """Return the place of each pod in the order in which a scheduling pass looks at pods, (P,)."""
    pods = sim.state.arrays.pods
    order = np.lexsort((np.arange(len(pods)), pods["arrive_s"], -pods["priority"]))
    ranks = np.empty(len(pods), np.int64)
    ranks[order] = np.arange(len(pods))
    return ranks


def differences(a: Recording, b: Recording) -> list[Difference]:
    """Return where two recordings of one tape part, by moment.

    That is every decision that only one of them takes, or that they take differently, and every
    moment at which their states come to differ after having been equal.
    """
    ours = {frame.moment: frame for frame in a.frames}
    theirs = {frame.moment: frame for frame in b.frames}
    held: tuple[dict[int, tuple[int, int]], ...] = ({}, {})
    apart: set[int] = set()
    found: dict[Moment, str] = {}
    for moment in sorted(ours.keys() | theirs.keys()):
        before = bool(apart)
        for side, frame in enumerate((ours.get(moment), theirs.get(moment))):
            for gpu, pod, use in frame.changes if frame else ():
                held[side][gpu] = pod, use
                apart.add(gpu)
        apart = {gpu for gpu in apart if held[0].get(gpu) != held[1].get(gpu)}
        if apart and not before:
            found[moment] = "the clusters differ from here on"
        about = _differs(a, b, moment)
        if about:
            found[moment] = about
    return [Difference(moment, about) for moment, about in sorted(found.items())]


def _differs(a: Recording, b: Recording, moment: Moment) -> str:
    x, y = a.choices.get(moment), b.choices.get(moment)
    if x is None and y is None:
        return ""
    if x is None or y is None:
        name = b.name if x is None else a.name
        return f"only {name} needs a decision"
    if x.taken == y.taken and x.nodes == y.nodes:
        return ""
    if x.taken is None or y.taken is None:
        return f"{a.name if x.taken is None else b.name} waits, the other preempts"
    if x.nodes != y.nodes:
        return "different nodes"
    return f"different victims on {'one node' if len(x.nodes) == 1 else 'the same nodes'}"
