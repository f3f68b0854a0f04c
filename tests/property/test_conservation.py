"""Every selector on generated tapes: nothing is lost, doubled or evicted out of turn."""

from __future__ import annotations

import numpy as np
import pytest
import tapes

from flextopo.baselines.registry import COMPARED, make_selector
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import (
    BACKING_OFF,
    DONE,
    FUTURE,
    PENDING,
    RUNNING,
    TERMINATING,
)
from flextopo.cluster.state.candidates import candidate_arrays
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.loss import weighted_gpu_s

CHECKED_DECISIONS = 40

every_selector = pytest.mark.parametrize("name", COMPARED)
every_cluster = pytest.mark.parametrize("servers", tapes.SERVERS)


def check_jobs(sim: Simulator) -> None:
    """Every batch pod is in one state, holds resources accordingly, and has done what it may."""
    c, tape = sim.state.arrays, sim.tape
    batch = ~tape.pods["online"]
    status = c.live["status"][batch]
    assert np.isin(status, (FUTURE, PENDING, RUNNING, TERMINATING, BACKING_OFF, DONE)).all()
    holds = np.isin(status, (RUNNING, TERMINATING))
    assert ((c.live["node"][batch] >= 0) == holds).all()
    queued = sim.events.queue[: sim.events.clock[0]["queue_size"]]
    waiting = np.flatnonzero((c.live["status"] == PENDING) & batch)
    assert sorted(waiting) == sorted(pod for pod in queued if batch[pod])
    done, duration = c.live["done_s"][batch], tape.pods["duration_s"][batch]
    assert (done >= 0).all()
    assert (done <= duration).all()
    assert (done[status == DONE] == duration[status == DONE]).all()
    assert (tape.pods["arrive_s"][batch][status == FUTURE] > sim.state.now_s - 1).all()


def check_victims(sim: Simulator, candidate: Candidate, priority: int) -> None:
    """Victims and their PodGroups are of lower priority, and may be evicted."""
    c = sim.state.arrays
    for victim in candidate.victims:
        assert c.pods[victim]["priority"] < priority
        assert c.pods[victim]["preemptible"]
        assert c.live[victim]["node"] == candidate.node
        member = int(c.pods[victim]["next_member"])
        while member != victim:
            assert c.pods[member]["priority"] < priority
            member = int(c.pods[member]["next_member"])


def play(name: str, servers: str, seed: int, scenario: Scenario | None = None) -> Simulator:
    """Play a tape with a selector, checking on the way."""
    selector = make_selector(name, seed)
    sim = tapes.simulate(servers, seed, selector.filter, scenario)
    checked = 0
    while (pod := sim.next_decision()) is not None:
        candidate = selector.select(sim.state, pod)
        if candidate is not None:
            check_victims(sim, candidate, pod.priority)
        sim.apply(candidate)
        if checked < CHECKED_DECISIONS:
            checked += 1
            sim.state.check_invariants()
            check_jobs(sim)
    assert checked > 0
    return sim


@every_selector
@every_cluster
def test_gpus_cores_and_jobs_are_conserved(name: str, servers: str) -> None:
    sim = play(name, servers, seed=3)
    sim.state.check_invariants()
    check_jobs(sim)
    account = sim.events.account[0]
    gpu_s = sim.state.arrays.totals[0]["gpus"] * sim.tape.end_s
    assert 0 < account["online"] + account["batch"] <= gpu_s
    assert (sim.state.arrays.pdb_left >= 0).all() or name == "kubernetes"


@every_selector
def test_restricted_admission_conserves_too(name: str) -> None:
    sim = play(name, "4*rtx4090", seed=3, scenario=Scenario(admission="restricted"))
    sim.state.check_invariants()
    check_jobs(sim)
    assert sim.events.account[0]["violations"] == 0


@every_selector
def test_replay_gives_equal_bits(name: str) -> None:
    one, two = (play(name, "2*rtx4090,2*a100", seed=5) for _ in range(2))
    assert one.events.account.tobytes() == two.events.account.tobytes()
    assert one.state.arrays.live.tobytes() == two.state.arrays.live.tobytes()
    assert one.state.arrays.nodes.tobytes() == two.state.arrays.nodes.tobytes()


def snapshot(sim: Simulator) -> list[bytes]:
    changing = (
        *sim.state.arrays._replace(scratch=np.zeros(0, np.int16))[1:],  # memory, not state
        *(sim.events.departures, sim.events.clock, sim.events.account),
        sim.events.heap[: sim.events.clock[0]["heap_size"]],
        sim.events.queue[: sim.events.clock[0]["queue_size"]],
    )
    return [array.tobytes() for array in changing]


@every_cluster
def test_branching_leaves_the_state_alone_and_foretells_the_loss(servers: str) -> None:
    sim = tapes.simulate(servers, 3)
    greedy = make_selector("greedy-cost")
    foretold = None
    decisions = 0
    while (pod := sim.next_decision()) is not None:
        if foretold is None:
            before = snapshot(sim)
            room = candidate_arrays(4)
            found, count = sim.state.find(pod, pod.requirement == 2, 4)
            for source, target in zip(found, room, strict=True):
                target[:] = source
            losses = sim.branch(room, count, sim.tape.end_s)
            assert snapshot(sim) == before
            assert losses.tolist() == sim.branch(room, count, sim.tape.end_s).tolist()
            start = weighted(sim)
            foretold = start + losses[0]
        sim.apply(greedy.select(sim.state, pod))
        decisions += 1
    assert decisions > 1
    assert weighted(sim) == pytest.approx(foretold, rel=1e-12)


def weighted(sim: Simulator) -> float:
    return float(weighted_gpu_s(sim.events.account, sim.costs))


@pytest.mark.parametrize("name", ["greedy-cost", "flextopo-guaranteed", "exact", "random"])
@every_cluster
def test_the_filter_leaves_no_guaranteed_pod_unaligned(name: str, servers: str) -> None:
    assert play(name, servers, seed=3).events.account[0]["violations"] == 0
