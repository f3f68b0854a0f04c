"""The front door: simulate a day, compare selectors, load policies, servers and traces.

Everything may be given by name or as an object. `import flextopo` offers these functions and loads
this module when the first of them is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flextopo.baselines.registry import selector_name
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import LossWeights, Scenario
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import VALIDATION
from flextopo.cluster.workload.traces import ServiceRates
from flextopo.policies.runtime import LearnedSelector
from flextopo.policies.selectors import find_selector, inner
from flextopo.train.compare import find_fleet, open_episode, read_traces
from flextopo.train.comparison import Comparison, run_comparison
from flextopo.train.config import ComparisonConfig, from_fields

if TYPE_CHECKING:
    from flextopo.baselines.loading import Named

SERVERS = "16*rtx4090"


@dataclass(frozen=True)
class Trace:
    """Recorded demand, from two files.

    Attributes:
        services: path of the online demand.
        batch: path of the batch jobs.
        rates: the demand that was read.
        jobs: the jobs that were read.
    """

    services: str
    batch: str
    rates: ServiceRates = field(repr=False, compare=False)
    jobs: BatchJobs = field(repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Episode(Mapping[str, float]):
    """One episode that was played: metrics by name, as `episode["hit_rate"]` or `episode.hit_rate`.

    Attributes:
        metrics: every one of `flextopo.cluster.simulation.metrics.METRICS`.
        simulator: the simulation at its end.
        selector: who decided.
    """

    metrics: dict[str, float]
    simulator: Simulator = field(repr=False)
    selector: VictimSelector = field(repr=False)

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def __getattr__(self, name: str) -> float:
        # Reached for names that are no attribute; while unpickling there are no metrics yet.
        metrics = self.__dict__.get("metrics", {})
        if name in metrics:
            return float(metrics[name])
        raise AttributeError(f"an episode has no {name!r}; legal: {', '.join(metrics)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.metrics]


def simulate(
    selector: Named,
    *,
    servers: str | Fleet = SERVERS,
    seed: int = VALIDATION.start,
    workload: WorkloadConfig | Mapping[str, Any] | None = None,
    scenario: Scenario | Mapping[str, Any] | None = None,
    trace: Trace | tuple[str, str] | None = None,
) -> Episode:
    """Play one day with one selector.

    Args:
        selector: a name, policy, folder, `module:Class`, object or class; see `make_selector`.
        servers: such as "4*rtx4090,4*a100", or a `Fleet`.
        seed: of the day, and of a selector that draws; the default is the first for development.
        workload: fields of `WorkloadConfig` that are not its defaults, or one.
        scenario: the same of `Scenario`.
        trace: plays recorded demand instead of the generator's; see `load_trace`.

    Returns:
        Its metrics, and the simulation.

    Raises:
        FlextopoError: whatever is wrong with what was given.
    """
    _check_numbers(seed=(seed, 0))
    config = _config([selector], servers=servers, workload=workload, scenario=scenario, trace=trace)
    sim, decides = open_episode(config, config.names[0], seed)
    sim.play(decides)
    return Episode(episode_metrics(sim), sim, decides)


def compare(
    selectors: Sequence[Named],
    *,
    servers: str | Fleet = SERVERS,
    seeds: int = 10,
    workload: WorkloadConfig | Mapping[str, Any] | None = None,
    scenario: Scenario | Mapping[str, Any] | None = None,
    trace: Trace | tuple[str, str] | None = None,
    split: str = "comparison",
    workers: int = 1,
) -> Comparison:
    """Play the same days with several selectors.

    Args:
        selectors: names, policies, folders, `module:Class`, objects or classes; each once. With
            "greedy-cost" among them, the others are compared with it day by day.
        servers: such as "4*rtx4090,4*a100", or a `Fleet`.
        seeds: how many days.
        workload: fields of `WorkloadConfig` that are not its defaults, or one.
        scenario: the same of `Scenario`.
        trace: plays recorded demand instead of the generator's; see `load_trace`.
        split: "validation" while a selector is developed.
        workers: processes; a script that asks for more than one begins at
            `if __name__ == "__main__":`. The numbers do not depend on it, as long as a selector gives
            equal answers to equal questions: one that remembers is the same object for all days of
            one process, and another in each worker.

    Returns:
        The results, with `summary()`, `to_frame()` and `save(folder)`. An interrupt leaves the days that
        are over; `interrupted` then says so.

    Raises:
        FlextopoError: whatever is wrong with what was given.
    """
    one = isinstance(selectors, str) or not isinstance(selectors, Sequence)
    given: list[Any] = [selectors] if one else list(selectors)
    _check_numbers(seeds=(seeds, 1), workers=(workers, 1))
    config = _config(given, servers=servers, workload=workload, scenario=scenario, trace=trace)
    return run_comparison(replace(config, seeds=seeds, split=split), workers)


def make_selector(selector: Named, seed: int = 0) -> VictimSelector:
    """Return a selector.

    Args:
        selector: a name of `flextopo list selectors`, a shipped policy, the folder of one,
            `module:Class` or `module:attribute`, or a selector or its class.
        seed: of those that draw.

    Raises:
        FlextopoError: it is none of them.
    """
    return find_selector(selector, seed)


def load_servers(servers: str | Fleet) -> Fleet:
    """Return the servers of a cluster.

    Args:
        servers: such as "rtx4090x16", "8*rtx4090,8*a100" or "8*server.xml".

    Raises:
        FlextopoError: a name is unknown, or a file cannot be read.
    """
    _check_kinds(servers=(servers, (str, Fleet), 'text such as "4*rtx4090", or a Fleet'))
    return find_fleet(servers)


def load_trace(services: str | Path, batch: str | Path) -> Trace:
    """Read recorded demand.

    Args:
        services: file of online demand.
        batch: file of batch jobs.

    Raises:
        FlextopoError: a file cannot be read; it says which columns it needs.
    """
    return Trace(str(services), str(batch), *read_traces(str(services), str(batch)))


def _check_numbers(**given: tuple[Any, int]) -> None:
    for name, (value, least) in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise FlextopoError(f"{name} = {value!r}; legal: a whole number, {least} or more")


def _check_kinds(**given: tuple[Any, tuple[type[Any], ...], str]) -> None:
    for name, (value, kinds, legal) in given.items():
        if not isinstance(value, kinds):
            raise FlextopoError(f"{name} {value!r}; legal: {legal}")


def _config(
    selectors: Sequence[Named],
    *,
    servers: str | Fleet,
    workload: WorkloadConfig | Mapping[str, Any] | None,
    scenario: Scenario | Mapping[str, Any] | None,
    trace: Trace | tuple[str, str] | None,
) -> ComparisonConfig:
    """Return what was given as a configuration; policies come last, as in the tables."""
    nothing = type(None)
    weights = scenario.get("weights") if isinstance(scenario, Mapping) else None
    _check_kinds(
        servers=(servers, (str, Fleet), 'text such as "4*rtx4090", or a Fleet'),
        workload=(workload, (WorkloadConfig, Mapping, nothing), "a WorkloadConfig, or its fields"),
        scenario=(scenario, (Scenario, Mapping, nothing), "a Scenario, or its fields"),
        weights=(weights, (LossWeights, Mapping, nothing), "LossWeights, or their fields"),
        trace=(trace, (Trace, tuple, nothing), "what load_trace returns, or two paths"),
    )
    if isinstance(trace, tuple) and len(trace) != 2:
        raise FlextopoError(f"trace {trace!r}; legal: what load_trace returns, or two paths")
    if isinstance(workload, Mapping) or workload is None:
        workload = from_fields(WorkloadConfig, workload or {})
    if isinstance(scenario, Mapping) or scenario is None:
        fields = dict(scenario or {})
        if isinstance(fields.get("weights"), Mapping):
            fields["weights"] = from_fields(LossWeights, fields["weights"])
        scenario = from_fields(Scenario, fields)
    if isinstance(trace, tuple):
        trace = load_trace(*trace)
    policies = [
        each for each in selectors if isinstance(inner(find_selector(each)), LearnedSelector)
    ]
    named = {selector_name(each) for each in policies}
    return ComparisonConfig(
        servers=servers,
        selectors=tuple(each for each in selectors if selector_name(each) not in named),
        policies=tuple(policies),
        services=trace.services if trace else None,
        batch=trace.batch if trace else None,
        workload=workload,
        scenario=scenario,
    )
