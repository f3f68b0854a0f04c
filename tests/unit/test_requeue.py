"""The rule `requeue-aware`: what it adds to the loss, and where its hours come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tapes

import flextopo
from flextopo.baselines.gfs import Gfs, demand_growth
from flextopo.baselines.registry import make_selector
from flextopo.baselines.requeue import GANG_HOURS, HOURS, SIZES, RequeueAware
from flextopo.baselines.rollout import Lookahead, propose
from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.loss import size_row
from flextopo.cluster.state.pods import Pod
from flextopo.train.config import FitConfig
from flextopo.train.fit_requeue import fit_requeue

FITTED = Path(flextopo.__file__).parents[1] / "docs/results/fits"


def two_servers(*gpus: int, group: int = -1) -> tuple[ClusterState, Pod]:
    """Return two servers of 4 GPUs, each full, and a preemptor of one GPU."""
    jobs = [Pod(i, f"job/{i}", n, n, 100, checkpoint_s=1) for i, n in enumerate(gpus)]
    jobs[0] = Pod(0, "job/0", gpus[0], gpus[0], 100, checkpoint_s=1, group=group)
    asks = Pod(len(jobs), "llm", 1, 1, 1000, online=True)
    state = ClusterState.from_pods([tapes.DUO], [0, 0], [*jobs, asks], now_s=5000)
    node, held = 0, 0
    for job in jobs:
        if held == 4:
            node, held = 1, 0
        state.start(job.index, node)
        held += job.gpus
    state.arrays.live["since_s"][: len(jobs)] = 4000
    return state, state.pod(asks.index)


def test_sizes_are_as_their_table_says() -> None:
    assert [size_row(gpus) for gpus in (0, 1, 2, 3, 4, 5, 8, 16)] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert len(HOURS) == len(SIZES)


def test_it_spares_the_job_that_would_wait() -> None:
    state, asks = two_servers(4, 2, 2)
    # Whoever goes loses nothing: all is equal.
    state.costs = state.costs._replace(eviction=0.0, restart_s=0.0)
    greedy = make_selector("greedy-cost").select(state, asks)
    aware = RequeueAware((0.0, 0.0, 1.0, 1.0)).select(state, asks)
    assert greedy is not None
    assert aware is not None
    assert (greedy.victims, aware.victims) == ((0,), (1,))
    assert RequeueAware((0.0, 1.0, 0.1, 1.0)).select(state, asks) == greedy


def test_it_adds_the_hours_of_every_gpu_and_prices_the_loss_alone() -> None:
    state, asks = two_servers(4, 4)
    rule = RequeueAware((0.0, 0.0, 0.5, 1.0))
    plain, count = state.find(asks, False, 1)
    own = float(plain.cost[0])
    found, _ = state.find(asks, False, 1, rule.costs_for(state.costs))
    assert count == 1
    assert float(found.cost[0]) == pytest.approx(own + 4 * 0.5 * 3600)
    chosen = rule.select(state, asks)
    assert chosen is not None
    assert state.cost_of(chosen, asks) == pytest.approx(own)


@pytest.mark.parametrize("hours", [(0.0,), (0.0, 0.0, 0.0, -1.0), (0.0, 0.0, 0.0, float("inf"))])
def test_hours_that_are_none(hours: tuple[float, ...]) -> None:
    with pytest.raises(FlextopoError, match="legal: 4 numbers, 0 or more"):
        RequeueAware(hours)


@pytest.mark.skipif(not FITTED.exists(), reason="installed without docs")
@pytest.mark.parametrize(
    ("hours", "file"), [(HOURS, "requeue.json"), (GANG_HOURS, "requeue-gangs.json")]
)
def test_the_hours_are_the_fitted_ones(hours: tuple[float, ...], file: str) -> None:
    fitted = json.loads((FITTED / file).read_text())
    assert tuple(fitted["hours"].values()) == hours
    tried = {tuple(each["hours"]): each["weighted_loss"] for each in fitted["tried"]}
    assert min(tried, key=lambda hours: tried[hours]) == hours
    assert fitted["gain"]["high"] < 0


def test_a_fit_takes_the_best_of_what_it_tried() -> None:
    config = FitConfig(servers=("4*rtx4090",), seeds=6, rounds=1, grid=(0.0, 1.0))
    fit = fit_requeue(config)
    assert len(fit.tried) == 5
    assert fit.tried[fit.hours] == min(fit.tried.values())
    assert fit.gain.mean == pytest.approx(fit.tried[fit.hours] - fit.tried[(0.0,) * 4])


def test_hours_are_fitted_on_days_with_gangs_where_there_is_a_network() -> None:
    one, two = (
        FitConfig(servers=servers, seeds=4, rounds=1, grid=(0.0, 1.0), gang_share=0.5)
        for servers in (("8*a100@leaf4",), ("4*rtx4090",))
    )
    for config, differs in ((one, True), (two, False)):
        without = fit_requeue(replace(config, gang_share=0.0))
        assert (fit_requeue(config).tried[(0.0,) * 4] != without.tried[(0.0,) * 4]) == differs
    with pytest.raises(FlextopoError, match=r"gang_share = -1; legal: 0 to 1"):
        replace(one, gang_share=-1)


def test_the_command_prints_and_saves_a_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fit.json"
    arguments = ["--servers", "2*rtx4090", "--seeds", "2", "--rounds", "1", "--workers", "1"]
    arguments += ["--set", "grid=[0, 0.5]"]
    with pytest.raises(SystemExit) as stop:
        main(["fit-requeue", *arguments, "--json", str(path)])
    assert stop.value.code == 0
    saved = json.loads(path.read_text())
    assert saved["config"]["servers"] == ["2*rtx4090"]
    assert saved["config"]["grid"] == [0, 0.5]
    said = capsys.readouterr().out
    assert "on 2 days" in said
    with pytest.raises(SystemExit) as stop:
        main(["fit-requeue", "--seeds", "0"])
    assert stop.value.code == 2
    assert "seeds = 0; legal: 1 or more" in capsys.readouterr().err


def test_gfs_counts_tasks_and_what_they_lose() -> None:
    # One job of 4 GPUs without a checkpoint since 1000 s, or one of 2 that has saved all.
    state, asks = two_servers(4, 2, 2)
    state.arrays.pods["checkpoint_s"][0] = 0
    chosen = Gfs().select(state, asks)
    assert chosen is not None
    assert chosen.victims == (1,)
    # A server's worth of GPUs freed beyond the need is waste as well.
    state, asks = two_servers(4, 2, 2)
    chosen = Gfs().select(state, asks)
    assert chosen is not None
    assert chosen.victims == (1,)


def test_the_growth_of_demand_looks_back_only() -> None:
    sim = tapes.simulate("4*rtx4090", 3)
    pod = sim.next_decision()
    assert pod is not None
    c, now = sim.state.arrays, sim.state.now_s
    online = sim.tape.pods["online"]
    came = online & (sim.tape.pods["arrive_s"] > now - 3600) & (sim.tape.pods["arrive_s"] <= now)
    left = online & (sim.tape.pods["depart_s"] > now - 3600) & (sim.tape.pods["depart_s"] <= now)
    gpus = c.pods["gpus"]
    assert demand_growth(sim.state) == max(0, int(gpus[came].sum() - gpus[left].sum()))


def test_lookahead_draws_nothing_and_reads_no_tape() -> None:
    sim = tapes.simulate("4*rtx4090", 3)
    pod = sim.next_decision()
    assert pod is not None
    given = propose(RequeueAware(), sim.state, pod, 8, Lookahead.filter)
    first = Lookahead().branch(sim.state, pod, given)
    c = sim.state.arrays
    waiting = c.live["status"] != 6
    c.pods["duration_s"][waiting & ~c.pods["online"]] *= 7
    assert Lookahead().branch(sim.state, pod, given).tobytes() == first.tobytes()


def test_looking_ahead_goes_on_with_any_selector() -> None:
    """A base that is a rule of costs is compiled; the same written in Python loses the same."""
    sim = tapes.simulate("4*rtx4090", 3)
    pod = sim.next_decision()
    assert pod is not None
    found, count = sim.state.find(pod, False, 4)
    compiled = sim.branch(found, count, 7200, RequeueAware())
    plain = sim.branch(found, count, 7200, Wrapped())
    assert compiled.tolist() == plain.tolist()
    other = sim.branch(found, count, 7200, make_selector("godel"))
    assert other.shape == compiled.shape


class Wrapped:
    """`requeue-aware` without what lets a branch compile it."""

    name = "wrapped"
    filter = RequeueAware.filter

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        return RequeueAware().select(cluster, preemptor)


def test_the_oracle_loses_least() -> None:
    losses = {}
    for name in ("greedy-cost", "requeue-aware", "oracle-lookahead"):
        selector, total = make_selector(name), 0.0
        for seed in range(4):
            sim = tapes.simulate("4*rtx4090", seed)
            sim.play(selector)
            total += episode_metrics(sim)["weighted_loss"]
        losses[name] = total
    assert losses["oracle-lookahead"] < losses["requeue-aware"]
    assert losses["oracle-lookahead"] < losses["greedy-cost"]
