"""What terminating pods hold is offered before anybody else is evicted."""

from __future__ import annotations

import numpy as np
import pytest
import tapes

from flextopo.baselines.registry import SELECTORS, make_selector
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import DONE, PENDING, TERMINATING
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.topology.servers import parse_servers
from flextopo.policies.selectors import find_selector

CANNOT = {"godel": 16}
"""GPUs that a scheduler evicts whose own code does not see what is being freed."""

WHOLE = {"arrive_s": -500, "duration_s": 10**6, "gpus": 8, "cores": 56, "checkpoint_s": 900}
REPLICA = {"gpus": 1, "cores": 7, "requirement": 1, "depart_s": NEVER_S}


def two_full_servers() -> Simulator:
    pods = [WHOLE, WHOLE, REPLICA | {"arrive_s": 100}, REPLICA | {"arrive_s": 101}]
    tape = tapes.hand_tape(pods, 7200, warmup_s=600)
    return Simulator(tape, parse_servers("2*rtx4090"))


@pytest.mark.parametrize("name", [*SELECTORS, "deepset-imitation", "deepset-imitation@0"])
def test_two_replicas_of_one_gpu_take_one_whole_server(name: str) -> None:
    selector = find_selector(name)
    sim = two_full_servers()
    sim.rules = sim.rules._replace(filter=int(selector.filter))
    sim.play(selector)
    sim.state.check_invariants()
    evicted = CANNOT.get(name, 8)
    assert sim.events.account[0]["evicted_gpus"] == evicted
    metrics = episode_metrics(sim)
    assert metrics["success_rate"] == 1.0
    assert metrics["drained"] == (1 if evicted == 8 else 0)
    assert metrics["late_share"] == 0.0


def test_the_second_waits_for_what_is_left_of_the_first_victims_grace() -> None:
    sim = two_full_servers()
    greedy = make_selector("greedy-cost")
    first = sim.next_decision()
    assert first is not None
    sim.apply(greedy.select(sim.state, first))
    second = sim.next_decision()
    assert second is not None
    (candidate, *others) = sim.state.candidates(second, aligned=False)
    assert (candidate.victims, candidate.wait_s) == ((), 29)
    assert all(other.victims and other.wait_s == 30 for other in others)
    sim.apply(candidate)
    sim.next_decision()
    assert sim.state.arrays.live["wait_s"][2:].tolist() == [30, 29]


def test_kubernetes_takes_a_terminating_pod_for_a_victim_at_its_ordinary_price() -> None:
    """As `isPreemptionAllowed` of 1.36 says: a lower priority is all that it asks for."""
    pods = [
        WHOLE | {"priority": 100},
        WHOLE | {"priority": 90},
        REPLICA | {"arrive_s": 100},
        REPLICA | {"arrive_s": 101},
    ]
    sim = Simulator(tapes.hand_tape(pods, 7200, warmup_s=600), parse_servers("2*rtx4090"))
    first = sim.next_decision()
    assert first is not None
    sim.apply(sim.state.candidate(0, [0], first))  # the dearer one, by its scores
    second = sim.next_decision()
    assert second is not None
    chosen = make_selector("kubernetes").select(sim.state, second)
    assert chosen is not None
    assert (chosen.node, chosen.victims) == (1, (1,))


def test_goedel_offers_what_is_being_freed_to_nobody() -> None:
    sim = two_full_servers()
    godel = make_selector("godel")
    for victims in ((0,), (1,)):
        pod = sim.next_decision()
        assert pod is not None
        chosen = godel.select(sim.state, pod)
        assert chosen is not None
        assert chosen.victims == victims
        sim.apply(chosen)


def leaving(*ends_s: int) -> Simulator:
    """One server of two sockets with a 1-GPU job on each GPU, which leave at different times."""
    jobs = [{"arrive_s": -500, "duration_s": 10**6, "gpus": 1}] * 4
    online = {"arrive_s": 100, "gpus": 2, "depart_s": NEVER_S, "requirement": 1}
    tape = tapes.hand_tape([*jobs, online], 7200, warmup_s=600)
    sim = Simulator(tape, Fleet((tapes.DUO,), (0,)))
    pod = sim.next_decision()
    assert pod is not None
    c = sim.state.arrays
    for row, end_s in enumerate(ends_s):
        c.live[row]["status"] = TERMINATING
        c.live[row]["next_s"] = end_s
        c.totals[0]["batch_gpus"] -= 1
    return sim


def test_a_later_end_is_offered_only_where_it_aligns_better() -> None:
    # GPUs 0 and 1 are on one socket, 2 and 3 on the other.
    sim = leaving(110, 130, 115, 140)
    pod = sim.state.pod(4)
    found = [(c.wait_s, int(c.level), c.gpu_mask) for c in sim.state.candidates(pod, False)]
    across, aligned = sorted(found)
    assert (across[0], across[2]) == (15, 0b0101)
    assert (aligned[0], aligned[2]) == (30, 0b0011)
    assert across[1] > aligned[1]
    (only,) = sim.state.candidates(pod, True)
    assert (only.wait_s, only.gpu_mask) == (30, 0b0011)


def test_victims_are_sought_for_what_is_still_short() -> None:
    sim = leaving(120)
    found = sim.state.candidates(sim.state.pod(4), aligned=True)
    assert sorted(candidate.victims for candidate in found) == [(1,), (2, 3)]


def test_nobody_counts_on_a_pod_of_which_no_end_is_known() -> None:
    sim = leaving(NEVER_S, NEVER_S)
    for candidate in sim.state.candidates(sim.state.pod(4), aligned=False):
        assert candidate.victims
    assert not list(sim.state.without_victims(0, sim.state.pod(4)))


def test_what_a_nominated_pod_leaves_behind_is_free_no_sooner_than_its_victims_are_gone() -> None:
    pods = [WHOLE, REPLICA | {"arrive_s": 100, "depart_s": 110}, WHOLE | {"arrive_s": 105}]
    tape = tapes.hand_tape(pods, 7200, warmup_s=600)
    sim = Simulator(tape, parse_servers("1*rtx4090"))
    sim.play(make_selector("greedy-cost"))
    live = sim.state.arrays.live
    assert live["status"][1] == DONE
    starts = [int(live["since_s"][pod]) for pod in (0, 2) if live["status"][pod] != PENDING]
    assert starts == [130]
    sim.state.check_invariants()


def test_the_same_from_a_compiled_and_a_plain_search() -> None:
    sim = leaving(110, 130, 115, 140)
    pod = sim.state.pod(4)
    exact = make_selector("exact").select(sim.state, pod)
    greedy = make_selector("greedy-cost").select(sim.state, pod)
    assert exact is not None
    assert greedy is not None
    assert exact == greedy
    assert np.isclose(exact.cost_gpu_s, greedy.cost_gpu_s)
