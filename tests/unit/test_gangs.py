"""Gangs in the simulator: together or not at all, within their level, priced as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tapes
from imagined_futures import sample

from flextopo.baselines.information import InformationState
from flextopo.baselines.registry import make_selector
from flextopo.cluster.errors import PodError, WorkloadError
from flextopo.cluster.observation.features import (
    NUM_CANDIDATE,
    candidate_features,
    empty_observation,
)
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.scenario import SENSITIVITIES, LossWeights
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import NOMINATED, PENDING, RUNNING, STARTING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.loss import loss_terms
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import AlignmentLevel, NetworkLevel
from flextopo.cluster.topology.model import preset
from flextopo.cluster.topology.network import Network
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.cluster.workload.tape import Tape

FLEET = parse_servers("8*a100@leaf4")


def batch(gpus: int = 8, **fields: Any) -> dict[str, Any]:
    return {
        "arrive_s": -1000, "duration_s": 10**6, "gpus": gpus, "cores": 7 * gpus, "priority": 100,
        "preemptible": 1, "checkpoint_s": 900, **fields,
    }  # fmt: skip


def gang(*sizes: int, at: int = 100, group: int = 50, **fields: Any) -> list[dict[str, Any]]:
    pods = {
        "arrive_s": at, "depart_s": 7000, "priority": 1000, "online": 1, "requirement": 2,
        "deadline_s": 60, "start_s": 40, "group": group, "required_tier": NetworkLevel.LEAF,
        "preferred_tier": NetworkLevel.LEAF, "service": 0, **fields,
    }  # fmt: skip
    return [{"gpus": gpus, "cores": 7 * gpus, **pods} for gpus in sizes]


def play(*pods: dict[str, Any], fleet: Any = FLEET, end_s: int = 7200) -> Simulator:
    return Simulator(tapes.hand_tape(list(pods), end_s, warmup_s=2000), fleet)


def ask(sim: Simulator) -> Candidate:
    pod = sim.next_decision()
    assert pod is not None
    chosen = make_selector("greedy-cost").select(sim.state, pod)
    assert chosen is not None
    return chosen


def test_a_gang_starts_together_on_one_leaf_once_all_victims_are_gone() -> None:
    sim = play(*[batch()] * 8, *gang(8, 8, 8))
    chosen = ask(sim)
    assert chosen.tier == NetworkLevel.LEAF
    assert len(chosen.victims) == len({seat.node for seat in chosen.seats}) == 3
    sim.apply(chosen)
    members = [seat.pod for seat in chosen.seats]
    live = sim.state.arrays.live
    assert (live["status"][members] == NOMINATED).all()
    sim.state.check_invariants()
    assert sim.next_decision() is None
    assert (live["since_s"][members] == 130).all()
    assert episode_metrics(sim)["gang_hit_rate"] == 1.0
    assert episode_metrics(sim)["gang_wait_p50_s"] == 30.0


def test_members_of_two_sizes_share_a_server() -> None:
    sim = play(*[batch()] * 7, batch(4), *gang(4, 4, 8))
    chosen = ask(sim)
    nodes = [seat.node for seat in chosen.seats]
    assert len(set(nodes)) == 2
    assert all(seat.level == AlignmentLevel.NUMA for seat in chosen.seats[:2])
    sim.apply(chosen)
    sim.state.check_invariants()


def test_a_gang_that_fits_starts_without_a_decision_on_the_closest_level() -> None:
    sim = play(*[batch(preemptible=0)] * 3, *gang(8, 8, 8), end_s=600)
    assert sim.next_decision() is None
    members = sim.state.arrays.live[3:6]
    assert (members["since_s"] == 100).all()
    assert set(members["node"].tolist()) < {4, 5, 6, 7}


def test_where_it_must_not_be_spread_it_waits_although_servers_are_free() -> None:
    busy = [batch(preemptible=0)] * 6
    sim = play(*busy, *gang(8, 8, 8))  # two servers are free, on the second leaf
    assert sim.next_decision() is None
    assert (sim.state.arrays.live["status"][6:9] != RUNNING).all()
    near = play(*busy[:5], *gang(8, 8, 8))
    assert near.next_decision() is None
    assert (near.state.arrays.live["since_s"][5:8] == 100).all()


LINKED = {"sensitivity": list(SENSITIVITIES).index("linked"), "requirement": 1, "required_tier": 3}


def test_what_no_leaf_could_hold_loses_nothing_on_a_block() -> None:
    sim = play(*[batch(preemptible=0)] * 3, *gang(8, 8, 8, 8, 8, **LINKED))
    assert sim.next_decision() is None
    assert loss_terms(sim.events.account, sim.costs)["misalignment"] == 0
    assert (sim.state.arrays.pods["preferred_tier"][3:8] == NetworkLevel.BLOCK).all()


def test_spread_over_leaves_it_serves_at_the_speed_of_its_kind() -> None:
    busy = [batch(preemptible=0)] * 2
    # The first two servers of the first leaf are busy, and the second leaf has two servers.
    fleet = parse_servers("6*a100@leaf4")
    sim = play(*busy, *gang(8, 8, 8, 8, **LINKED), fleet=fleet, end_s=6000)
    assert sim.next_decision() is None
    live = sim.state.arrays.live[2:6]
    assert set(live["node"].tolist()) == {2, 3, 4, 5}
    lost = loss_terms(sim.events.account, sim.costs)["misalignment"]
    served = (6000 - 140) * 32
    speed = SENSITIVITIES["linked"].off_leaf
    assert lost == pytest.approx(LossWeights().misalignment * (1 - speed) * served)


def test_a_gang_is_one_replica_of_its_service() -> None:
    running = play(*gang(8, 8), end_s=3600)
    assert running.next_decision() is None
    assert running.state.arrays.serving.tolist() == [1]
    running.state.check_invariants()


def test_a_victim_group_on_several_servers_is_lost_once() -> None:
    groups = [batch(group=7), batch(group=7)]
    sim = play(*groups, *[batch(checkpoint_s=0)] * 6, *gang(8, 8))
    chosen = ask(sim)
    assert set(chosen.victims) == {0, 1}
    sim.apply(chosen)
    assert int(sim.events.account[0]["victims"]) == 2


def test_a_budget_over_two_servers_is_kept_although_one_way_is_cheaper() -> None:
    cheap = [batch(pdb=0)] * 2
    tape = tapes.hand_tape(
        [*cheap, *[batch(checkpoint_s=0)] * 6, *gang(8, 8)], 7200, warmup_s=2000, pdb_allowed=[1]
    )
    chosen = ask(Simulator(tape, FLEET))
    assert len(set(chosen.victims) & {0, 1}) == 1
    assert len(chosen.victims) == 2


def test_a_decision_that_is_none_for_this_gang_is_refused() -> None:
    sim = play(*[batch()] * 8, *gang(8, 8))
    chosen = ask(sim)
    pod = sim.state.pod(chosen.seats[0].pod)
    with pytest.raises(PodError, match="does not fit on nodes"):
        sim.apply(Candidate(**{**chosen.__dict__, "victims": chosen.victims[:1]}))
    with pytest.raises(PodError, match="seats for pods"):
        sim.state.gang_candidate(pod, {pod.index: 0}, ())
    assert sim.state.gang_candidate(pod, {8: 0, 9: 4}, (0, 4)) is None  # not on one leaf
    sim.apply(None)
    assert (sim.state.arrays.live["status"][8:10] == PENDING).all()


def test_gangs_need_a_network_and_room() -> None:
    with pytest.raises(WorkloadError, match="member of a gang; legal: on servers with a network"):
        play(*gang(8, 8), fleet=parse_servers("8*a100"))
    with pytest.raises(WorkloadError, match="a gang of 9 x 8 GPUs; legal: what the empty cluster"):
        play(*gang(*[8] * 9))


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        (gang(*[1] * 17), "a gang of 17 members of 1 sizes; legal: up to 16 of two sizes"),
        (gang(1, 2, 4), "a gang of 3 members of 3 sizes"),
        ([*gang(8), *gang(8, depart_s=6000)], "depart_s = 6000; legal: the same for all members"),
        (
            [*gang(8), batch(arrive_s=100), *gang(8)],
            "group = 50; legal: members of a PodGroup next",
        ),
    ],
)
def test_tapes_with_wrong_gangs_are_refused(pods: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        tapes.hand_tape(pods, 7200, warmup_s=600)


def test_a_policy_trained_without_gangs_sees_what_it_knows() -> None:
    sim = play(
        *[batch()] * 8, *gang(8, 8), batch(1, arrive_s=150, priority=1000, depart_s=900, online=1)
    )
    for _ in range(2):
        pod = sim.next_decision()
        assert pod is not None
        found, count = sim.state.find(pod, True, 4)
        full = empty_observation(4, len(candidate_features(FLEET)))
        observe(sim.state.arrays, sim.costs, pod.index, found, count, full)
        rows = np.full((5, NUM_CANDIDATE), 7.0, np.float32)  # the last is not the kernel's
        few = empty_observation(4)._replace(candidates=rows[:4])
        observe(sim.state.arrays, sim.costs, pod.index, found, count, few)
        assert (rows[4] == 7.0).all()
        assert (few.candidates == full.candidates[:, :NUM_CANDIDATE]).all()
        sim.apply(sim.state.candidate_at(found, 0, pod))


def test_a_generated_gang_day_keeps_every_invariant() -> None:
    fleet = parse_servers("16*a100@leaf4")
    config = WorkloadConfig(gang_share=0.5, horizon_h=6, batch_load=1.0)
    tape = generate_tape(config, fleet.num_gpus, 3, cores_per_gpu=fleet.cores_per_gpu)
    assert isinstance(tape, Tape)
    sim, selector, gangs = Simulator(tape, fleet), make_selector("requeue-aware"), 0
    while (pod := sim.next_decision()) is not None:
        chosen = selector.select(sim.state, pod)
        gangs += sim.state.is_gang(pod)
        sim.apply(chosen)
        sim.state.check_invariants()
    assert gangs > 0
    c = sim.state.arrays
    online = np.flatnonzero((c.pods["group"] >= 0) & c.pods["online"])
    for group in set(c.pods["group"][online].tolist()):
        ring = online[c.pods["group"][online] == group]
        status = set(c.live["status"][ring].tolist())
        assert len(status) == 1, "a gang in two states"
        if status <= {STARTING, RUNNING} and c.pods["requirement"][ring[0]] == 2:
            leaves = {fleet.network.leaf[node] for node in c.live["node"][ring]}  # type: ignore[union-attr]
            required = int(c.pods["required_tier"][ring[0]])
            assert len(leaves) == 1 or required > NetworkLevel.LEAF


@pytest.mark.parametrize("copies", [1, 2])
def test_a_budget_goes_to_the_server_that_cannot_do_without_it(copies: int) -> None:
    """Node 0 has one way, under the budget; node 1 has cheaper ones under it, and a dearer one."""
    model = preset("a100")
    cores = sum(model.numa_cores)
    kinds = [
        (0, "block0", 6, cores // 2, 2000, -1, 0), (0, "a", 2, 1, 100, 0, 0),
        (1, "block1", 6 - 2 * copies, cores // 2, 2000, -1, 0),
        *((1, f"b{i}", 2, 1, 100, 0, 0) for i in range(copies)), (1, "x", 2, 1, 100, -1, 1),
    ]  # fmt: skip
    pods = [
        Pod(row, name, gpus, asked, priority, pdb=pdb, batch_class=kind)
        for row, (_, name, gpus, asked, priority, pdb, kind) in enumerate(kinds)
    ]
    first = len(pods)
    pods += [
        Pod(first + i, f"g{i}", 2, cores // 2 - copies - 1, 1000, online=True, group=9)
        for i in range(2)
    ]
    network = Network((0, 0), (0, 0))
    state = ClusterState.from_pods(
        (model,), (0, 0), pods, pdb_allowed=(1,), now_s=10_000, network=network
    )
    state.arrays.pods["required_tier"][first:] = NetworkLevel.CLUSTER
    for row, (node, *_) in enumerate(kinds):
        state.start(row, node, None)
        state.arrays.live[row]["since_s"] = 9_000
    found = state.candidates(pods[first], False, 16)
    assert [{state.name(victim) for victim in one.victims} for one in found][:1] == [{"a", "x"}]


def test_imagined_gangs_are_gangs() -> None:
    """Members come and leave together in sampled futures, too, and no gang is larger than its service's."""
    config = WorkloadConfig(gang_share=1.0, online_peak_share=0.8, services_per_128_gpus=4)
    fleet = parse_servers("32*a100@leaf8")
    shape = {"gpus_per_server": fleet.gpus_per_server, "cores_per_gpu": fleet.cores_per_gpu}
    sim = Simulator(generate_tape(config, fleet.num_gpus, 0, **shape), fleet)
    assert sim.next_decision() is not None
    known = InformationState.of(sim)
    sizes = set(np.bincount(known.pods["group"][known.pods["group"] >= 0]).tolist())
    futures = sample(config, known, 8)
    gangs = 0
    for future in futures:
        for pods in (future.present, future.arrivals):
            online = pods[(pods["online"] == 1) & (pods["group"] >= 0)]
            for number in np.unique(online["group"]):
                members = online[online["group"] == number]
                gangs += 1
                assert len(members) in sizes
                for name in ("arrive_s", "depart_s", "start_s", "service"):
                    assert len(set(members[name].tolist())) == 1, name
    assert gangs > 50
