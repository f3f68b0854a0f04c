"""The front door: names or objects everywhere, mistakes in one sentence, workers that know them."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flextopo
from flextopo.api import Episode
from flextopo.baselines import registry
from flextopo.baselines.policies import GODEL, GreedyCost
from flextopo.baselines.registry import SELECTORS
from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.metrics import METRICS
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.policies.selectors import find_selector
from flextopo.train.replay_results import config_of

BUSY = {"online_peak_share": 0.9, "horizon_h": 12.0}
ON: dict[str, Any] = {"servers": "2*rtx4090", "workload": BUSY}

RULES = '''
from dataclasses import dataclass
from flextopo.baselines.policies import GreedyCost, PreemptionPolicy, flextopo_search
from flextopo.cluster.state.decision import AlignmentFilter

class Cheapest:
    """Like greedy-cost. And more."""
    name = "cheapest"
    filter = AlignmentFilter.OWN
    def select(self, cluster, preemptor):
        return GreedyCost().select(cluster, preemptor)

class Seeded(Cheapest):
    name = "seeded"
    def __init__(self, seed):
        self.seed = seed

def fewest(option):
    """Fewer GPUs."""
    return sum(victim.gpus for victim in option.victims)

FEWEST = PreemptionPolicy("fewest", AlignmentFilter.OWN, flextopo_search, (fewest,))

class Wants(Cheapest):
    def __init__(self, tape, path): ...

class Fails(Cheapest):
    def __init__(self): raise OSError("no licence")

class Half:
    name = "half"

class Loose(Cheapest):
    filter = 1

class Nameless(Cheapest):
    name = None

class Decides(Cheapest):
    select = 3
'''


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of somebody else, which workers find as well; what it registers is forgotten."""
    (tmp_path / "my_rules.py").write_text(RULES)
    (tmp_path / "broken_rules.py").write_text("import absent_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = dict(SELECTORS)
    yield importlib.import_module("my_rules")
    SELECTORS.clear()
    SELECTORS.update(before)
    for name in ("my_rules", "broken_rules"):
        sys.modules.pop(name, None)


def test_the_package_offers_the_front_door_without_loading_it() -> None:
    code = (
        "import flextopo, sys; assert set(flextopo.__all__) <= set(dir(flextopo)); "
        "assert 'flextopo.api' not in sys.modules and 'numba' not in sys.modules; "
        "print(flextopo.simulate.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "flextopo.api\n"
    for name in flextopo.__all__:
        assert callable(getattr(flextopo, name))
    with pytest.raises(AttributeError, match="no attribute 'simulated'"):
        flextopo.simulated  # type: ignore[attr-defined]  # noqa: B018


def test_a_day_is_its_metrics() -> None:
    day = flextopo.simulate("greedy-cost", **ON)
    assert set(day) == set(METRICS)
    assert day["weighted_loss"] == day.weighted_loss
    assert len(day) == len(METRICS)
    assert {"weighted_loss", "simulator"} <= set(dir(day))
    assert day.simulator.state.now_s == 12 * 3600
    assert day.selector == GreedyCost()
    with pytest.raises(AttributeError, match=r"no 'loss'; legal: .*weighted_loss"):
        day.loss  # noqa: B018


def test_names_and_objects_play_the_same(rules: Any) -> None:
    fleet = flextopo.load_servers("2*rtx4090")
    assert flextopo.load_servers(fleet) is fleet

    def play(selector: Any, **more: Any) -> Episode:
        return flextopo.simulate(selector, **{**ON, **more})

    first = play("greedy-cost").metrics
    others = ["my_rules:Cheapest", rules.Cheapest, rules.Cheapest(), GreedyCost()]
    found = [repr(play(other).metrics) for other in others]
    found.append(repr(play("greedy-cost", servers=fleet).metrics))
    found.append(
        repr(
            play(
                "greedy-cost", workload=WorkloadConfig(online_peak_share=0.9, horizon_h=12.0)
            ).metrics
        )
    )
    found.append(repr(play("greedy-cost", scenario=Scenario()).metrics))
    assert set(found) == {repr(first)}
    strict = {"admission": "restricted", "weights": {"idle": 0.0}}
    scenario = play("greedy-cost", scenario=strict).simulator.scenario
    assert (scenario.admission, scenario.weights.idle) == ("restricted", 0.0)
    assert find_selector("my_rules:Seeded", 7).seed == 7  # type: ignore[attr-defined]
    assert flextopo.make_selector("my_rules:FEWEST") is rules.FEWEST
    policy = flextopo.load_policy("deepset-imitation")
    assert play(policy).metrics["weighted_loss"] == play("deepset-imitation")["weighted_loss"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("absent_rules:Rule", "no module 'absent_rules'; legal: a module that Python finds"),
        (
            "my_rules:Cheap",
            "my_rules has no 'Cheap'; legal: GreedyCost, PreemptionPolicy, Cheapest",
        ),
        ("broken_rules:Rule", "its module fails with ModuleNotFoundError: No module named 'abs"),
        (
            "my_rules:Wants",
            "its class needs tape, path; legal: a class that needs nothing but seed",
        ),
        ("my_rules:Fails", "its constructor fails with OSError: no licence; legal"),
        ("my_rules:Half", "lacks filter, select; legal: name, filter and select"),
        ("my_rules:Loose", "filter = 1; legal: AlignmentFilter.BLIND, AlignmentFilter.OWN"),
        ("my_rules:Nameless", "name = None; legal: a word"),
        ("my_rules:Decides", "select is no method"),
        ("my_rules:fewest", "lacks name, filter, select"),
        ("best", "unknown selector 'best'; legal: MODULE:NAME of a selector or its class"),
    ],
)
@pytest.mark.usefixtures("rules")
def test_a_selector_that_is_none_is_one_sentence(
    text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FlextopoError) as told:
        flextopo.make_selector(text)
    assert words in str(told.value)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--selectors", text, "--policies", "none", "--workers", "1"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_other_mistakes_are_one_sentence_too(rules: Any) -> None:
    anything: Any = flextopo  # whose types these calls do not keep to
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: flextopo.simulate("godel", workload={"peak": 1}), "WorkloadConfig has no 'peak'"),
        (lambda: flextopo.simulate("godel", scenario={"admit": 1}), "Scenario has no 'admit'"),
        (lambda: flextopo.simulate("godel", servers="b200"), "unknown server 'b200'"),
        (lambda: flextopo.compare([]), "no selector is given"),
        (lambda: anything.simulate("godel", seed=1.5), "seed = 1.5; legal: a whole number, 0 or"),
        (lambda: anything.simulate("godel", servers=["1*a100"]), "servers .*; legal: text such as"),
        (lambda: anything.simulate("godel", workload="x"), "workload 'x'; legal: a WorkloadConfig"),
        (lambda: anything.simulate("godel", scenario={"weights": 3}), "weights 3; legal: LossW"),
        (lambda: anything.simulate("godel", trace=("a",)), "trace .*; legal: what load_trace"),
        (lambda: anything.compare("godel", workers=0), "workers = 0; legal: a whole number, 1 or"),
        (lambda: anything.load_servers(None), "servers None; legal: text such as"),
        (lambda: flextopo.compare(["godel", GODEL]), "godel, godel; legal: each one once"),
        (lambda: flextopo.load_trace("a.csv", "b.csv"), "a.csv"),
        (lambda: flextopo.load_policy("absent"), "unknown policy 'absent'"),
    ]
    for call, words in calls:
        with pytest.raises(FlextopoError, match=words):
            call()
    taken = type("Taken", (rules.Cheapest,), {"name": "godel"})
    with pytest.raises(FlextopoError, match="selector name 'godel' is a built-in's"):
        flextopo.compare([taken, "greedy-cost"])


def test_a_comparison_is_tables_files_and_a_frame(rules: Any, tmp_path: Path) -> None:
    names = ["deepset-imitation", "greedy-cost", rules.Cheapest, "my_rules:FEWEST"]
    found = flextopo.compare(names, seeds=2, **ON)
    assert str(found) == found.summary()
    for name in ("deepset-imitation", "cheapest", "my_rules:FEWEST", "against greedy-cost"):
        assert name in found.summary()
    assert found.results["paired"]["cheapest"]["mean"] == 0
    written = found.save(tmp_path / "out")
    assert [path.name for path in written][:2] == ["compare.json", "compare.npz"]
    saved = json.loads(written[0].read_text())
    assert saved == json.loads(json.dumps(found.results))
    assert saved["config"]["selectors"] == ["greedy-cost", "cheapest", "my_rules:FEWEST"]
    assert saved["config"]["policies"] == ["deepset-imitation"]
    assert saved["config"]["sources"] == {"cheapest": "my_rules:Cheapest"}
    assert config_of(saved, written[0]).names == tuple(saved["selectors"])
    servers = flextopo.load_servers("1*rtx4090,1*a100")
    mixed = flextopo.compare(["godel"], servers=servers, seeds=1, workload=BUSY)
    assert mixed.results["config"]["servers"] == "1*rtx4090,1*a100"
    assert "sources" not in mixed.results["config"]


def test_a_frame_has_a_row_a_selector_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = flextopo.compare(["greedy-cost", "godel"], seeds=2, **ON)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FlextopoError, match="needs pandas, which is not installed"):
        found.to_frame()
    made: list[Any] = []

    def make_frame(rows: Any) -> Any:
        made.append(rows)
        return SimpleNamespace(astype=made.append)

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=make_frame))
    found.to_frame()
    rows, kinds = made
    assert [(row["selector"], row["seed"] % 10) for row in rows] == [
        ("greedy-cost", 0), ("greedy-cost", 1), ("godel", 0), ("godel", 1),
    ]  # fmt: skip
    assert set(kinds) == set(METRICS)
    cell = found.results["selectors"]["godel"]["weighted_loss"]
    assert [row["weighted_loss"] for row in rows[2:]] == cell["per_seed"]


def test_workers_know_modules_objects_and_what_was_registered(rules: Any) -> None:
    flextopo.register_selector(rules.Seeded)
    names = ["greedy-cost", "my_rules:Cheapest", rules.FEWEST, rules.Cheapest, "seeded"]
    here = flextopo.compare(names, seeds=2, **ON)
    there = flextopo.compare(names, seeds=2, workers=2, **ON)
    assert here.results == there.results
    assert here.results["config"]["sources"] == {
        "fewest": "flextopo.baselines.policies:PreemptionPolicy",
        "cheapest": "my_rules:Cheapest",
        "seeded": "my_rules:Seeded",
    }


@dataclass(frozen=True)
class Held:
    """Holds what cannot be pickled, or what no worker finds."""

    name: str = "held"
    filter: AlignmentFilter = AlignmentFilter.OWN
    key: Any = None

    def select(self, cluster: Any, preemptor: Any) -> Any:
        return GreedyCost().select(cluster, preemptor)


def test_what_workers_cannot_get_is_one_sentence() -> None:
    with pytest.raises(FlextopoError, match=r"'held' cannot be sent to worker processes \(.*legal"):
        flextopo.compare([Held(key=lambda: 0)], seeds=1, workers=2, **ON)
    script = (
        "import flextopo\n"
        "from flextopo.baselines.policies import GreedyCost\n"
        "class Mine(GreedyCost):\n    name = 'mine'\n"
        "Mine.__init__ = lambda self: None\n"
        "try: flextopo.compare([Mine], seeds=1, servers='2*rtx4090', workers=2)\n"
        "except flextopo.FlextopoError as error: print(error)\n"
    ).replace("flextopo.FlextopoError", "ValueError")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "'mine' cannot be made in a worker process" in done.stdout, done.stderr


def test_a_registered_selector_is_called_by_its_name(rules: Any) -> None:
    @flextopo.register_selector(about="the cheapest, again")
    class Again(rules.Cheapest):  # type: ignore[misc]
        name = "again"

    assert flextopo.register_selector(rules.Cheapest) is rules.Cheapest
    assert SELECTORS["again"].about == "the cheapest, again"
    assert SELECTORS["cheapest"].about == "Like greedy-cost. And more"
    assert isinstance(flextopo.make_selector("again"), Again)
    assert flextopo.simulate("cheapest", **ON)["preemptions"] > 0
    for wrong, words in [
        (rules.Cheapest(), "selector name 'cheapest' is taken already"),
        (GODEL, "selector name 'godel' is a built-in's; legal: any but random"),
        (rules.Half, "lacks filter, select"),
        (Held(name="deepset-imitation"), "is a shipped policy's; legal: another"),
    ]:
        with pytest.raises(FlextopoError, match=words):
            flextopo.register_selector(wrong)


def test_entry_points_are_selectors(
    rules: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points: list[importlib.metadata.EntryPoint] = []

    def install(name: str, value: str) -> None:
        points[:] = [importlib.metadata.EntryPoint(name, value, registry.GROUP)]
        registry.plugins.cache_clear()

    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    try:
        install("cheapest", "my_rules:Cheapest")
        assert isinstance(flextopo.make_selector("cheapest"), rules.Cheapest)
        with pytest.raises(SystemExit):
            main(["list", "selectors"])
        assert "cheapest" in capsys.readouterr().out
        with pytest.raises(FlextopoError, match="'cheapest' is taken already"):
            flextopo.register_selector(rules.Cheapest)
        install("cheap", "my_rules:Cheapest")
        with pytest.raises(FlextopoError, match="'cheap' calls itself 'cheapest'"):
            flextopo.make_selector("cheap")
        install("godel", "my_rules:Cheapest")
        with pytest.warns(
            registry.SelectorWarning, match="entry point 'godel' of another package is a built"
        ):
            assert not registry.plugins()
        assert flextopo.make_selector("greedy-cost").name == "greedy-cost"
        assert flextopo.make_selector("godel") == GODEL
    finally:
        registry.plugins.cache_clear()


@pytest.mark.usefixtures("rules")
def test_the_command_line_takes_modules(capsys: pytest.CaptureFixture[str]) -> None:
    game = ("--servers", "2*rtx4090", "--workers", "1")
    short = ("--set", "warmup_h=1", "--hours", "1")
    for arguments in (
        ("compare", *game, *short, "--selectors", "my_rules:Cheapest,godel", "--policies", "none",
         "--seeds", "1"),
        ("evaluate", "my_rules:FEWEST", *game, "--seeds", "1"),
        ("replay", "-s", "my_rules:Cheapest", *game[:2], *short),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert stop.value.code in (0, None), capsys.readouterr().err
        assert "my_rules:" in capsys.readouterr().out


def test_recorded_demand_is_two_files_or_what_was_read(tmp_path: Path) -> None:
    services, batch = tmp_path / "s.csv", tmp_path / "b.csv"
    rates = "".join(f"a,{600 * i},{1 + i % 5}\n" for i in range(144))
    services.write_text(f"service,t_s,rate_rps\n{rates}")
    jobs = "".join(f"{900 * i},3600,1\n" for i in range(96))
    batch.write_text(f"submit_s,duration_s,gpus\n{jobs}")
    trace = flextopo.load_trace(services, batch)
    assert len(trace.jobs.gpus) == 96
    day = flextopo.simulate("greedy-cost", trace=trace, **ON)
    files = (str(services), str(batch))
    assert repr(flextopo.simulate("greedy-cost", trace=files, **ON).metrics) == repr(day.metrics)
    found = flextopo.compare(["godel"], seeds=1, trace=trace, **ON)
    assert found.results["config"]["services"] == str(services)
