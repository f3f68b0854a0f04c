"""The paper's experiment: closed forms, the cached search, invariants, pairing, messages."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.topology.model import PRESETS
from flextopo.envs.preemption import PreemptionEnv
from flextopo.train import reproduce_tables as tables
from flextopo.train.reproduce import ALL, CLOSED_FORMS, HALF, ONE, TWO, jobs, reproduce, search_node
from flextopo.train.reproduce_config import PaperConfig, Plan
from flextopo.train.reproduce_experiment import SELECTORS, PaperExperiment, arrivals, batch_pods
from flextopo.train.reproduce_paper import claims

SMALL = PaperConfig(servers=6, preemptions=60)
PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"


@pytest.mark.parametrize("kind", ["rtx4090", "a100"])
@pytest.mark.parametrize("preemptor", CLOSED_FORMS)
def test_blind_choices_on_full_nodes_hit_as_often_as_counting_says(
    kind: str, preemptor: str
) -> None:
    mix, probability = CLOSED_FORMS[preemptor]
    config = PaperConfig(kind, 10, 1500, preemptor_mix=mix, online_share=0.0)
    for selector in ("godel", "kubernetes"):
        tally = PaperExperiment(config, selector).count()
        spread = (probability * (1 - probability) / 1500) ** 0.5
        assert tally.hits / 1500 == pytest.approx(probability, abs=3.5 * spread)
        assert tally.preemptions == tally.arrivals == 1500


@pytest.mark.parametrize("selector", ["flextopo-guaranteed", "flextopo-best-effort"])
def test_flextopo_always_hits_on_full_nodes_of_one_card_pods(selector: str) -> None:
    tally = PaperExperiment(replace(SMALL, preemptor_mix=HALF), selector).count()
    assert tally.hits == tally.preemptions == 60
    assert tally.cross_socket == 0


@pytest.mark.parametrize("fill", [1.0, 0.9])
@pytest.mark.parametrize("last_core", ["unused", "used"])
def test_the_guaranteed_filter_never_crosses_sockets(fill: float, last_core: str) -> None:
    config = replace(SMALL, batch_mix=ALL, preemptor_mix=ALL, fill=fill, last_core=last_core)
    tally = PaperExperiment(config, "flextopo-guaranteed").count()
    assert tally.preemptions == sum(tally.decided.values()) > 0
    assert tally.cross_socket == 0


def test_best_effort_misses_where_free_cards_decide() -> None:
    config = replace(SMALL, batch_mix=HALF, preemptor_mix=HALF, preemptions=1000)
    tally = PaperExperiment(config, "flextopo-best-effort").count()
    assert 0 < tally.free_gpu_misses <= tally.preemptions - tally.hits


@pytest.mark.parametrize("kind", ["rtx4090", "a100"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_cached_search_is_select_on_the_whole_cluster(kind: str, selector: str) -> None:
    config = replace(
        SMALL, kind=kind, batch_mix=ALL, preemptor_mix=ALL, online_share=0.3, preemptions=100
    )
    experiment = PaperExperiment(config, selector)
    decisions = 0
    for preemptor, candidate, _ in experiment.decisions():
        assert repr(experiment.policy.select(experiment.pods.state, preemptor)) == repr(candidate)
        decisions += 1
    assert decisions == experiment.tally.preemptions == 100


def test_a_search_that_forgets_nothing_would_be_noticed() -> None:
    experiment = PaperExperiment(SMALL, "flextopo-guaranteed")
    experiment.search.changed = lambda nodes: None  # type: ignore[method-assign]
    with pytest.raises(FlextopoError, match="is not on node"):
        experiment.count()


@pytest.mark.parametrize("selector", ["godel", "flextopo-best-effort"])
@pytest.mark.parametrize("last_core", ["unused", "free", "used"])
def test_every_gpu_and_core_keeps_one_owner(selector: str, last_core: str) -> None:
    config = replace(
        SMALL, batch_mix=ALL, preemptor_mix=ALL, fill=0.95, last_core=last_core, preemptions=80
    )
    experiment = PaperExperiment(config, selector)
    for _ in experiment.decisions():
        check(experiment)
    check(experiment)
    held = experiment.pods.state.arrays.totals[0]
    assert held["online_gpus"] + held["batch_gpus"] == experiment.pods.held_gpus


def check(experiment: PaperExperiment) -> None:
    state: ClusterState = experiment.pods.state
    state.check_invariants()
    if experiment.config.last_core == "used":
        single = state.arrays.pods["cores"][state.arrays.live["node"] >= 0] == 1
        assert single.sum() == 6 * 8


def test_equal_configurations_give_equal_runs() -> None:
    for selector in SELECTORS:
        one, two = (PaperExperiment(SMALL, selector).count() for _ in range(2))
        assert one == two
    assert PaperExperiment(replace(SMALL, seed=1), "godel").count() != one


def test_every_selector_sees_the_same_arrivals() -> None:
    config = replace(SMALL, preemptor_mix=HALF)
    seen: list[list[int]] = []
    for selector in SELECTORS:
        experiment = PaperExperiment(config, selector)
        seen.append([decision.preemptor.gpus for decision in experiment.decisions()])
    stream = [arrival.gpus for arrival in islice(arrivals(config), 60)]
    assert seen == [stream] * 4  # at 100 % of one-card pods each arrival preempts
    other = replace(config, batch_mix=TWO)
    assert list(islice(arrivals(other), 60)) == list(islice(arrivals(config), 60))
    assert list(islice(batch_pods(config), 9)) == [1] * 9


def test_cluster_is_filled_to_its_level() -> None:
    for fill, held in ((1.0, 48), (0.75, 36), (0.0, 0)):
        experiment = PaperExperiment(replace(SMALL, fill=fill), "godel")
        experiment._refill()
        assert experiment.pods.held_gpus == held
        free = experiment.pods.state.arrays.nodes["gpu_free"]
        assert {int(mask).bit_count() for mask in free} == {8 - held // 6}


def test_last_cores_are_kept_from_all_pods() -> None:
    assert PaperConfig().model.numa_cores == (7,) * 8
    assert PaperConfig("a100").model.numa_cores == (63, 63)
    assert PaperConfig(last_core="free").model == PRESETS["rtx4090"]
    assert PaperConfig("a100").cores(2) == 28


def test_full_enumeration_finds_the_same_smallest_sets() -> None:
    experiment = PaperExperiment(SMALL, "flextopo-guaranteed")
    preemptor, *_ = next(experiment.decisions())
    state = experiment.pods.state
    num_residents, tried, sets = search_node(state, 0, preemptor, False)
    assert (num_residents, tried, len(sets)) == (8, 38, 12)
    _, tried, every = search_node(state, 0, preemptor, True)
    assert tried == 257
    assert [one for one in every if len(one) == 2] == sets


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "h100"}, "'h100'; legal: a100, rtx4090"),
        ({"servers": 0}, "servers = 0; legal: 1 to"),
        ({"preemptions": 0}, "preemptions = 0; legal"),
        ({"fill": 1.5}, "fill = 1.5; legal: 0 to 1"),
        ({"seed": -1}, "seed = -1; legal"),
        ({"cores_per_gpu": 9}, "cores_per_gpu = 9; legal: 0 to 7"),
        ({"batch_mix": (0.5, 0.0, 0.0, 0.0)}, "batch_mix = .*; legal: 4 shares"),
        ({"preemptor_mix": (1.0,)}, "preemptor_mix = .*; legal: 4 shares"),
        ({"last_core": "gone"}, "last_core = 'gone'; legal: unused, free, used"),
        ({"batch_priority": 1000}, "batch_priority = 1000; legal: below 1000"),
    ],
)
def test_mistakes_name_what_is_legal(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FlextopoError, match=words):
        PaperConfig(**changes)


def test_selectors_without_a_search_of_their_own_are_refused() -> None:
    with pytest.raises(FlextopoError, match="'greedy-cost'; legal: flextopo-best-effort"):
        PaperExperiment(SMALL, "greedy-cost")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--servers-kind", "h100"), "unknown kind of server 'h100'; legal: a100, rtx4090"),
        (("--servers-kind", ""), "kinds of servers: none; legal"),
        (("--servers-kind", "a100,a100"), "a100, a100; legal: one or more, each once"),
        (("--preemptions", "99"), "preemptions = 99; legal: 100 or more"),
        (("--seed", "-1"), "seed = -1; legal"),
        (("--workers", "-1"), "workers = -1; legal"),
        (("--markdown", "no-such-page.md"), "no-such-page.md: No such file"),
    ],
)
def test_the_command_tells_mistakes_in_one_sentence(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_the_command_writes_tables_results_figure_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: headline -->\n<!-- end -->\n")
    main_arguments = ["reproduce", "--servers-kind", "rtx4090", "--preemptions", "100"]
    more = ["--workers", "1", "--out", str(tmp_path / "o"), "--json", str(tmp_path / "j.json")]
    with pytest.raises(SystemExit) as stop:
        main([*main_arguments, *more, "--markdown", str(page)])
    assert not stop.value.code
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "j.json").read_text())
    assert results == json.loads((tmp_path / "o" / "reproduce.json").read_text())
    assert results["plan"] == {"kinds": ["rtx4090"], "preemptions": 100, "seed": 0}
    assert len(results["runs"]) == len(jobs(Plan(("rtx4090",), 100)))
    assert page.read_text() == tables.fill(page.read_text(), results)
    assert "44.5 %" in page.read_text()
    assert "32.8-33.9" in out
    assert (tmp_path / "o" / "reproduce.png").stat().st_size > 10_000
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "reproduce.json",
        "reproduce.png",
    ]


def test_rates_do_not_depend_on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(("rtx4090",), 100)
    few = jobs(plan)[:3]
    monkeypatch.setattr("flextopo.train.reproduce.jobs", lambda _: few)
    told: list[tuple[int, int]] = []
    one = reproduce(plan, 1, lambda done, of: told.append((done, of)))
    two = reproduce(plan, 2)
    assert json.dumps(one["runs"]) == json.dumps(two["runs"])
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_page_with_an_unknown_block_is_refused() -> None:
    with pytest.raises(FlextopoError, match="block 'nothing'; legal: headline"):
        tables.fill("<!-- generated: nothing -->\n<!-- end -->", {"runs": [], "search": []})
    with pytest.raises(FlextopoError, match="no block"):
        tables.fill("# nothing", {"runs": [], "search": []})


def test_the_page_is_what_the_saved_results_give() -> None:
    results = json.loads((PAGE.parent / "results" / "reproduce.json").read_text())
    assert tables.fill(PAGE.read_text(), results) == PAGE.read_text()


def test_the_default_mix_is_batch_of_one_and_preemptors_of_two() -> None:
    assert (PaperConfig().batch_mix, PaperConfig().preemptor_mix) == (ONE, TWO)


def test_the_papers_environment_has_its_servers_pods_and_priorities() -> None:
    env = gymnasium.make("flextopo/Preempt-Paper-v0", disable_env_checker=True).unwrapped
    assert isinstance(env, PreemptionEnv)
    env.reset(seed=0)
    state = env.simulator.state
    pods = state.arrays.pods
    assert state.num_nodes == 100
    assert set(pods["gpus"].tolist()) == {1, 2}
    assert (pods["cores"] == 7 * pods["gpus"]).all()
    assert set(pods["priority"][pods["online"] == 1].tolist()) == {1000}
    assert set(pods["priority"][pods["online"] == 0].tolist()) == {500}


def test_an_unknown_workload_field_is_refused() -> None:
    with pytest.raises(FlextopoError, match="workload field 'gpus'; legal: warmup_h"):
        PreemptionEnv(workload={"gpus": 1})


def test_claims_of_the_paper_stand_beside_what_was_found() -> None:
    results = json.loads((PAGE.parent / "results" / "reproduce.json").read_text())
    head, *body = claims(results)
    assert all(len(row) == len(head) and all(row) for row in body)
    found = {row[0]: row for row in body}
    runs = {
        row["selector"]: row
        for row in results["runs"]
        if (row["table"], row["config"]["kind"], row["row"]) == ("headline", "rtx4090", "default")
    }
    assert found["hit rate of standard Gödel"][2] == f"{100 * runs['godel']['hit_rate']:.1f} %"
    assert found["allocations across sockets with FlexTopo"][2] == "0 of 5000"
    assert "55.5 points" in found["the abstract's improvement"][1]
    assert found["physical cluster"][2:4] == ["-", "no"]
    empty = {row[0]: row[2] for row in claims({"runs": [], "search": []})[1:]}
    assert empty["candidate search time"] == empty["simulated cluster"] == "-"
