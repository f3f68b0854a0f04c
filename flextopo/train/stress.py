"""The registry of perturbations: how a comparison is made harder, or other than what was trained on.

No kernel is imported here, so that names can be listed and completed without compiling any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from flextopo.cluster.errors import UnknownNameError
from flextopo.train.config import ComparisonConfig

BASE = "none"
"""The comparison as it is, which every stress test begins with."""


class Perturbation(NamedTuple):
    """One way to disturb a comparison; what it leaves out stays as it is.

    Fields: `about`, what changes; `config`, from the comparison's configuration to another one;
    `world`, a function of `stress_world` that changes tape and servers; `view`, a selector of
    `stress_views` that shows a wrong state to the selector it wraps; `generated`, whether it changes
    only what the generator draws, so that traces stay as they are.
    """

    about: str
    config: Callable[[ComparisonConfig], ComparisonConfig] = lambda config: config
    world: str = ""
    view: str = ""
    generated: bool = False


def workload(**changes: Any) -> Callable[[ComparisonConfig], ComparisonConfig]:
    """Return what sets fields of the workload."""
    return lambda config: replace(config, workload=replace(config.workload, **changes))


def scenario(**changes: Any) -> Callable[[ComparisonConfig], ComparisonConfig]:
    """Return what sets fields of the scenario."""
    return lambda config: replace(config, scenario=replace(config.scenario, **changes))


def demand(factor: float) -> Callable[[ComparisonConfig], ComparisonConfig]:
    """Return what scales online demand, up to a peak of all GPUs."""

    def change(config: ComparisonConfig) -> ComparisonConfig:
        peak = min(1.0, factor * config.workload.online_peak_share)
        return workload(online_peak_share=peak)(config)

    return change


def shifted(hours: float) -> Callable[[ComparisonConfig], ComparisonConfig]:
    """Return what moves online demand's day against the batch jobs', which stays where it is."""

    def change(config: ComparisonConfig) -> ComparisonConfig:
        day, half = config.workload.daily_peak_h, config.workload.half_daily_peak_h
        return workload(daily_peak_h=(day + hours) % 24, half_daily_peak_h=(half + hours) % 12)(
            config
        )

    return change


def servers(*names: str) -> Callable[[ComparisonConfig], ComparisonConfig]:
    """Return what puts presets in the place of the servers, as many, in equal shares."""

    def change(config: ComparisonConfig) -> ComparisonConfig:
        count = _fleet(config).num_nodes
        shares = [(count + i) // len(names) for i in range(len(names))][::-1]
        text = ",".join(f"{n}*{name}" for n, name in zip(shares, names, strict=True) if n)
        return replace(config, servers=text)

    return change


def small_servers(config: ComparisonConfig) -> ComparisonConfig:
    """Return a comparison on servers of 4 GPUs, twice as many: one socket of the rtx4090 preset each."""
    from flextopo.cluster.topology.model import Fleet, ServerModel

    model = ServerModel("half-rtx4090", (3, 2, 1, 0), (0, 0, 0, 0), (8, 8, 8, 8))
    return replace(config, servers=Fleet((model,), (0,) * (2 * _fleet(config).num_nodes)))


def uneven_servers(config: ComparisonConfig) -> ComparisonConfig:
    """Return a comparison on servers with 6 GPUs on one socket and 2 on the other (an assumption)."""
    from flextopo.cluster.topology.model import Fleet, ServerModel

    model = ServerModel("uneven", (0, 0, 0, 0, 0, 0, 1, 1), (0, 1), (64, 64))
    return replace(config, servers=Fleet((model,), (0,) * _fleet(config).num_nodes))


def _fleet(config: ComparisonConfig) -> Any:
    from flextopo.train.compare import find_fleet

    return find_fleet(config.servers)


PERTURBATIONS: dict[str, Perturbation] = {
    BASE: Perturbation("the comparison as it is"),
    "arrivals+6h": Perturbation(
        "online demand's day 6 h later, batch jobs' as it is", shifted(6), generated=True
    ),
    "arrivals-6h": Perturbation(
        "online demand's day 6 h sooner, batch jobs' as it is", shifted(-6), generated=True
    ),
    **{
        f"demand-x{factor:g}": Perturbation(
            f"online demand {factor:g} times as high", demand(factor)
        )
        for factor in (0.5, 0.75, 1.25, 1.5)
    },
    "checkpoint-ages": Perturbation(
        "checkpoint intervals as selectors read them are off by a log-normal factor, sigma 0.5 "
        "(an assumption)",
        view="WrongCheckpoints",
    ),
    **{
        f"grace-{seconds}s": Perturbation(f"{seconds} s of grace", workload(grace_s=seconds))
        for seconds in (0, 10, 60, 120)
    },
    "servers-rtx4090": Perturbation("as many rtx4090 servers", servers("rtx4090")),
    "servers-a100": Perturbation("as many a100 servers", servers("a100")),
    "servers-mixed": Perturbation(
        "rtx4090 and a100 servers, half each", servers("rtx4090", "a100")
    ),
    "servers-4gpu": Perturbation("twice as many servers of 4 GPUs on one socket", small_servers),
    "servers-uneven": Perturbation("6 GPUs on one socket, 2 on the other", uneven_servers),
    "jobs-1gpu": Perturbation(
        "batch jobs of 1 GPU only, no PodGroups",
        workload(batch_gpu_mix=(1.0, 0.0, 0.0, 0.0), group_share=0.0),
        generated=True,
    ),
    "jobs-small": Perturbation(
        "batch jobs of 1 and 2 GPUs in equal shares (an assumption), no PodGroups",
        workload(batch_gpu_mix=(0.5, 0.5, 0.0, 0.0), group_share=0.0),
        generated=True,
    ),
    **{
        f"backfill-{how}": Perturbation(
            f"batch jobs may pass others: {how}", scenario(backfill=how)
        )
        for how in ("easy", "reserve")
    },
    "backoff-0s": Perturbation("evicted jobs queue again at once", workload(backoff_s=0)),
    **{
        f"elastic-{share:g}": Perturbation(
            f"{share:.0%} of single pods of 4 or 8 GPUs are elastic", workload(elastic_share=share)
        )
        for share in (0.0, 0.5)
    },
    "run-times-wrong": Perturbation(
        "run times that selectors expect are off by a log-normal factor of the day, sigma 1 (an "
        "assumption)",
        view="WrongRunTimes",
    ),
    "server-missing": Perturbation(
        "one server fewer than the day's demand was made for, all day", world="without_a_server"
    ),
    "server-claimed": Perturbation(
        "a pod above all others takes a whole server for 4 h at a random hour: a drain of which the "
        "scheduler chooses the server",
        world="with_a_claim",
    ),
    "placements-shuffled": Perturbation(
        "a fifth of the pods are shown on the GPUs of another pod of their node and size",
        view="ShuffledPlacements",
    ),
}
"""Name to perturbation; command line, completion and tables iterate over it."""


GENERATED = tuple(name for name, how in PERTURBATIONS.items() if how.generated)
"""Perturbations that traces cannot be put to."""


def chosen(names: Sequence[str]) -> list[str]:
    """Return perturbations in the registry's order with the base first; none named = all.

    Raises:
        UnknownNameError: there is no such perturbation.
    """
    for name in names:
        if name not in PERTURBATIONS:
            raise UnknownNameError("perturbation", name, list(PERTURBATIONS))
    return [name for name in PERTURBATIONS if not names or name in {BASE, *names}]
