"""Perturbations: what each changes and leaves, that pairs stay pairs, and what the command says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tapes import make_tape, simulate

from flextopo.baselines.registry import make_selector
from flextopo.cli import completion
from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.train import compare as comparing
from flextopo.train import stress_run
from flextopo.train.compare import find_fleet
from flextopo.train.config import ComparisonConfig
from flextopo.train.stress import BASE, GENERATED, PERTURBATIONS, chosen, servers
from flextopo.train.stress_run import run_stress, stress_notes, stress_rows
from flextopo.train.stress_views import ShuffledPlacements, WrongCheckpoints
from flextopo.train.stress_world import with_a_claim, without_a_server

SMALL = ComparisonConfig(
    servers="2*rtx4090",
    selectors=("godel", "greedy-cost"),
    policies=(),
    seeds=2,
    split="validation",
    workload=WorkloadConfig(horizon_h=4.0, online_peak_share=0.9),
)


def test_every_perturbation_changes_something_and_can_be_played() -> None:
    job = (SMALL, BASE, "greedy-cost", 1_000_000)
    base = stress_run.play_perturbed(job)
    same = []
    for name, how in PERTURBATIONS.items():
        assert how.about
        found = stress_run.play_perturbed((SMALL, name, *job[2:]))
        assert sum(found[term] for term in LOSS_TERMS) == pytest.approx(found["weighted_loss"])
        if how.config(SMALL) == SMALL and found == base:
            same.append(name)
    # What is seen need not change what is done; what happens must.
    seen = {"checkpoint-ages", "placements-shuffled", "run-times-wrong"}
    assert set(same) <= {BASE, "servers-rtx4090", *seen}


def test_on_traces_all_but_what_the_generator_draws_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rates = [f"chat,{600 * i},{2 + i // 36 % 2}\n" for i in range(3 * 144)]
    Path("rates.csv").write_text("service,t_s,rate_rps\n" + "".join(rates))
    rows = [f"{600 * i},{1800 + i % 5 * 900},{2 ** (i % 4)}\n" for i in range(3 * 144)]
    Path("jobs.csv").write_text("submit_s,duration_s,gpus\n" + "".join(rows))
    traced = replace(SMALL, services="rates.csv", batch="jobs.csv")
    base = comparing.make_tape(traced, find_fleet(SMALL.servers), 1_000_000)[0].pods
    for name, how in PERTURBATIONS.items():
        if how.config(traced).workload != traced.workload:
            _, tape, _ = stress_run.make_world(traced, name, 1_000_000)
            same = np.array_equal(tape.pods, base) and not name.startswith(("grace", "backoff"))
            assert same is how.generated, name
    given = ["stress", "--servers", "2*rtx4090", "--selectors", "godel", "--policies", "none"]
    given += ["--seeds", "4", "--services", "rates.csv", "--batch", "jobs.csv", "--workers", "1"]
    with pytest.raises(SystemExit) as stop:
        main([*given, "--only", "demand-x1.25", "--out", "out"])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "stretches overlap: 4 seeds of 24 h, of which rates.csv has 1 that share nothing" in said
    assert f"on traces without {', '.join(GENERATED)}, which" in said
    saved = json.loads(Path("out/stress.json").read_text())
    assert saved["config"]["stretches"]["disjoint"] == 1
    losses = saved["stress"][BASE]["selectors"]["godel"]["weighted_loss"]
    config = replace(traced, workload=WorkloadConfig())
    assert losses[0] == comparing.play_tape(config, "godel", 1_000_000)["weighted_loss"]
    with pytest.raises(SystemExit) as stop:
        main([*given, "--only", "grace-0s,jobs-small"])
    assert stop.value.code == 2
    assert (
        "perturbation 'jobs-small' of traces changes nothing; legal: all but arrivals+6h, arrivals-6h, "
        "jobs-1gpu, jobs-small\n" in capsys.readouterr().err
    )


def test_the_base_is_what_compare_plays() -> None:
    found = run_stress(SMALL, (BASE,))
    scores, _ = comparing.play_all(SMALL, workers=1)
    for name in SMALL.names:
        losses = [row["weighted_loss"] for row in scores[name].values()]
        assert found["stress"][BASE]["selectors"][name]["weighted_loss"] == losses
    paired = comparing.summarise(SMALL, scores)["paired"]
    assert found["stress"][BASE]["paired"] == paired


def test_configurations_change_in_what_they_name_alone() -> None:
    def changed(name: str) -> dict[str, object]:
        new = PERTURBATIONS[name].config(SMALL)
        assert replace(new, workload=SMALL.workload, servers=SMALL.servers) == SMALL
        old, now = vars(SMALL.workload), vars(new.workload)
        return {field: now[field] for field in old if now[field] != old[field]}

    assert changed("demand-x0.5") == {"online_peak_share": pytest.approx(0.45)}
    assert changed("demand-x1.5") == {"online_peak_share": 1.0}  # all there is
    assert changed("grace-120s") == {"grace_s": 120}
    later = {"daily_peak_h": pytest.approx(21.8), "half_daily_peak_h": pytest.approx(4.3)}
    assert changed("arrivals+6h") == later
    sooner = {"daily_peak_h": pytest.approx(9.8), "half_daily_peak_h": pytest.approx(4.3)}
    assert changed("arrivals-6h") == sooner
    assert changed("jobs-1gpu") == {"batch_gpu_mix": (1.0, 0.0, 0.0, 0.0), "group_share": 0.0}


def test_online_demand_shifts_and_batch_jobs_stay() -> None:
    late = PERTURBATIONS["arrivals+6h"].config(replace(SMALL, servers="4*rtx4090"))
    old, _ = make_tape("4*rtx4090", 7, SMALL.workload)
    new, _ = make_tape("4*rtx4090", 7, late.workload)
    jobs = [
        tape.pods[tape.pods["online"] == 0][["arrive_s", "duration_s", "gpus"]]
        for tape in (old, new)
    ]
    assert (jobs[0] == jobs[1]).all()
    assert not np.array_equal(old.pods["arrive_s"], new.pods["arrive_s"])


@pytest.mark.parametrize(
    ("names", "given", "text"),
    [
        (("a100",), "3*rtx4090", "3*a100"),
        (("rtx4090", "a100"), "5*a100", "3*rtx4090,2*a100"),
        (("rtx4090", "a100"), "1*a100", "1*rtx4090"),
    ],
)
def test_servers_are_replaced_by_as_many(names: tuple[str, ...], given: str, text: str) -> None:
    assert servers(*names)(replace(SMALL, servers=given)).servers == text


def test_other_servers_have_the_gpus_that_they_say() -> None:
    small = find_fleet(PERTURBATIONS["servers-4gpu"].config(SMALL).servers)
    uneven = find_fleet(PERTURBATIONS["servers-uneven"].config(SMALL).servers)
    assert (small.num_nodes, small.num_gpus, small.gpus_per_server) == (4, 16, 4)
    assert (uneven.num_nodes, uneven.num_gpus) == (2, 16)


def test_a_claim_is_one_pod_more_that_nobody_evicts() -> None:
    tape, fleet = make_tape("2*rtx4090", 3)
    new, same = with_a_claim(tape, fleet, 3)
    assert same == fleet
    (at,) = np.flatnonzero(new.pods["priority"] > tape.pods["priority"].max())
    assert (np.delete(new.pods, at) == tape.pods).all()
    pod = new.pods[at]
    assert (pod["gpus"], pod["cores"], pod["preemptible"]) == (8, 56, 0)
    assert 0 <= pod["arrive_s"] < pod["depart_s"] == pod["arrive_s"] + 4 * 3600 <= tape.end_s
    assert with_a_claim(tape, fleet, 3)[0].pods[at] == pod
    assert with_a_claim(tape, fleet, 4)[0].pods[at] != pod


def test_a_server_is_missing() -> None:
    tape, fleet = make_tape("2*rtx4090", 3)
    same, fewer = without_a_server(tape, fleet, 3)
    assert same is tape
    assert fewer.num_nodes == 1
    with pytest.raises(FlextopoError, match="legal: 2 or more"):
        without_a_server(tape, fewer, 3)


class Seen:
    """Remembers what it was shown, and answers with what it was told to."""

    name = "seen"
    filter = AlignmentFilter.OWN
    answer: Candidate | None = None

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        self.cluster = cluster
        cluster.check_invariants()
        return self.answer


def test_shuffled_placements_still_add_up_and_the_true_ones_stay() -> None:
    simulator = simulate("8*rtx4090", 6)
    seen, moved, asked = Seen(), 0, 0
    greedy = make_selector("greedy-cost")
    shown = ShuffledPlacements(seen, 6)
    while (pod := simulator.next_decision()) is not None:
        true = simulator.state.arrays
        before = [array.copy() for array in true]
        assert shown.select(simulator.state, pod) is None
        assert all((a == b).all() for a, b in zip(before[:-1], true[:-1], strict=True))
        wrong = seen.cluster.arrays
        changed = np.flatnonzero(wrong.live["gpu_mask"] != true.live["gpu_mask"])
        moved += len(changed)
        assert (
            np.bitwise_count(wrong.live["gpu_mask"]) == np.bitwise_count(true.live["gpu_mask"])
        ).all()
        simulator.apply(greedy.select(simulator.state, pod))
        asked += 1
    assert asked > 10
    assert moved > 0
    assert shown.fallbacks == 0


def test_wrong_checkpoints_are_off_and_jobs_without_have_none() -> None:
    simulator = simulate("8*rtx4090", 6)
    pod = simulator.next_decision()
    assert pod is not None
    seen = Seen()
    WrongCheckpoints(seen, 5).select(simulator.state, pod)
    wrong, true = (c.arrays.pods["checkpoint_s"] for c in (seen.cluster, simulator.state))
    assert ((wrong == 0) == (true == 0)).all()
    ratios = np.log(wrong[true > 0] / true[true > 0])
    assert ratios.std() == pytest.approx(0.5, abs=0.15)
    assert ratios.mean() == pytest.approx(0, abs=0.15)


def test_an_answer_that_is_not_legal_is_replaced_by_the_cheapest_and_counted() -> None:
    simulator = simulate("2*rtx4090", 5)
    pod = simulator.next_decision()
    assert pod is not None
    cheapest = make_selector("greedy-cost").select(simulator.state, pod)
    assert cheapest is not None
    seen = Seen()
    shown = WrongCheckpoints(seen, 5)
    for victims in ((10**6,), (pod.index,)):
        seen.answer = replace(cheapest, victims=victims)
        assert shown.select(simulator.state, pod) == cheapest
    assert shown.fallbacks == 2
    seen.answer = replace(cheapest, gpu_mask=0)  # what it thinks to get; the node decides
    assert shown.select(simulator.state, pod) == cheapest
    assert shown.fallbacks == 2


def test_selectors_that_look_ahead_are_not_shown_a_wrong_state() -> None:
    config = replace(SMALL, selectors=("greedy-cost", "oracle-lookahead"), seeds=1)
    results = run_stress(config, ("placements-shuffled",))
    table = stress_rows(results)
    assert [row[0] for row in table[1:]] == [BASE, "placements-shuffled"]
    assert table[1][-1] != "-"
    assert table[2][-1] == "-"
    assert any("too few seeds" in note for note in stress_notes(results))


def test_workers_change_no_number_and_all_leaves_out_what_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("servers-uneven", "placements-shuffled")
    assert run_stress(SMALL, names, workers=2) == run_stress(SMALL, names)
    monkeypatch.setattr(
        stress_run, "play_perturbed", lambda job: dict.fromkeys(stress_run.SAVED, 1.0)
    )
    found = run_stress(SMALL)["stress"]
    assert list(found) == [name for name in PERTURBATIONS if name != "servers-rtx4090"]


def test_an_interrupt_keeps_finished_perturbations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def play(job: stress_run.Job) -> dict[str, float]:
        calls.append(job)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return dict.fromkeys(stress_run.SAVED, 1.0)

    monkeypatch.setattr(stress_run, "play_perturbed", play)
    found = run_stress(SMALL, ("grace-0s",))
    assert found["config"]["interrupted"]
    assert list(found["stress"]) == [BASE]
    calls[:] = [()] * 6  # type: ignore[list-item]
    with pytest.raises(KeyboardInterrupt, match="no perturbation"):
        run_stress(SMALL, ("grace-0s",))


def test_unknown_perturbations_and_a_missing_reference_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown perturbation 'flood'"):
        chosen(["flood"])
    assert chosen(["grace-0s", "demand-x0.5"]) == [BASE, "demand-x0.5", "grace-0s"]
    with pytest.raises(FlextopoError, match="legal: with greedy-cost"):
        run_stress(replace(SMALL, selectors=("godel",)))


def test_the_command_prints_the_table_that_it_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--servers", "2*rtx4090", "--selectors", "godel", "--policies", "none", "--seeds", "1"]
    more = [
        "--only",
        "grace-0s",
        "--workers",
        "1",
        "--weights",
        "waiting=9",
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(SystemExit) as stop:
        main(["stress", *given, *more])
    assert not stop.value.code
    out = capsys.readouterr().out
    saved = json.loads((tmp_path / "stress.json").read_text())
    assert saved["config"]["scenario"]["weights"]["waiting"] == 9
    assert saved["config"]["split"] == "validation"
    for row in stress_rows(saved)[1:]:
        assert all(cell in out for cell in row)
    assert list(saved["stress"]) == [BASE, "grace-0s"]


def test_names_are_listed_and_completed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["list", "perturbations", "--json"])
    listed = json.loads(capsys.readouterr().out)["perturbations"]
    assert [row["name"] for row in listed] == list(PERTURBATIONS)
    found = [value for value, _ in completion.perturbation_list("grace-0s,gr")]
    assert found == [f"grace-0s,grace-{s}s" for s in (10, 60, 120)]
    assert "waiting=" in [value for value, _ in completion.weights("wa")]
