"""`flextopo compare` and `evaluate`: selectors and policies on the same tapes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextopo.baselines.registry import COMPARED, COMPARED_WITH_GANGS
from flextopo.cli import completion
from flextopo.cli.configuration import COMPARISON, SCENARIO, WEIGHTS, WORKLOAD
from flextopo.cli.terminal import JsonPath, RayAddress, Workers, num_workers, progress, results_to
from flextopo.cluster.files import make_folder
from flextopo.cluster.scenario import BACKFILLS, DEADLINES, LossWeights, Scenario
from flextopo.policies.shipped import zoo_names
from flextopo.train.config import ComparisonConfig

Servers = Annotated[str, COMPARISON.option("servers", autocompletion=completion.servers)]
Services = Annotated[str | None, COMPARISON.option("services")]
Batch = Annotated[str | None, COMPARISON.option("batch")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set a field of the workload, any number of times; `flextopo list workload`.",
        autocompletion=completion.workload_fields,
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="NAME=VALUE",
        help="Set a weight of the loss, any number of times; `flextopo list weights`.",
        autocompletion=completion.weights,
    ),
]


def compare(
    servers: Servers = COMPARISON.defaults["servers"],
    selectors: Annotated[
        str,
        COMPARISON.option(
            "selectors",
            more="Joined by commas; all = all but rollout and, without gangs, the rules for them; with "
            "gangs all but rollout and exact.",
            autocompletion=completion.selector_list,
        ),
    ] = "all",
    policies: Annotated[
        str,
        COMPARISON.option(
            "policies",
            more="Joined by commas; all or none.",
            autocompletion=completion.policy_list,
        ),
    ] = "all",
    seeds: Annotated[int, COMPARISON.option("seeds")] = COMPARISON.defaults["seeds"],
    oracle_seeds: Annotated[int, COMPARISON.option("oracle_seeds")] = COMPARISON.defaults[
        "oracle_seeds"
    ],
    services: Services = None,
    batch: Batch = None,
    peak: Annotated[float, WORKLOAD.option("online_peak_share")] = WORKLOAD.defaults[
        "online_peak_share"
    ],
    load: Annotated[float, WORKLOAD.option("batch_load")] = WORKLOAD.defaults["batch_load"],
    hours: Annotated[float, WORKLOAD.option("horizon_h")] = WORKLOAD.defaults["horizon_h"],
    settings: Set = None,
    admission: Annotated[
        str, SCENARIO.option("admission", autocompletion=completion.admissions)
    ] = SCENARIO.defaults["admission"],
    deadline: Annotated[
        str, SCENARIO.option("deadline", autocompletion=completion.among(*DEADLINES))
    ] = SCENARIO.defaults["deadline"],
    backfill: Annotated[
        str, SCENARIO.option("backfill", autocompletion=completion.among(*BACKFILLS))
    ] = SCENARIO.defaults["backfill"],
    weights: Weights = None,
    workers: Workers = 0,
    ray: RayAddress = None,
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path("results"),
    json_path: JsonPath = None,
) -> None:
    """Compare selectors and policies on the same tapes.

    Prints tables of the loss and of other metrics, and the differences from greedy-cost; saves
    them as OUT/compare.json, with every seed's scores and a figure.

    Examples:
        flextopo compare --seeds 10
        flextopo compare --servers a100x16 --peak 0.95 --out results/busy
        flextopo compare --selectors godel,exact --policies none --json -
        flextopo compare --services rates.csv.gz --batch jobs.csv.gz
        flextopo compare --set burst_factor=4 --set guaranteed_share=1
        flextopo compare --weights waiting=12 --weights idle=0
    """
    given = {"online_peak_share": peak, "batch_load": load, "horizon_h": hours}
    workload = WORKLOAD.make(given, settings or ())
    every = COMPARED_WITH_GANGS if services is None and workload.gang_share > 0 else COMPARED
    config = ComparisonConfig(
        servers=servers,
        selectors=every if selectors == "all" else split_names(selectors),
        policies=tuple(zoo_names()) if policies == "all" else split_names(policies),
        seeds=seeds,
        oracle_seeds=oracle_seeds,
        services=services,
        batch=batch,
        workload=workload,
        scenario=Scenario(parse_weights(weights), admission, deadline, backfill),
    )
    _compare(config, workers, out, json_path, ray)


def evaluate(
    policy: Annotated[
        str,
        typer.Argument(
            help="A shipped policy, or the folder of one.", autocompletion=completion.policies
        ),
    ],
    servers: Servers = COMPARISON.defaults["servers"],
    seeds: Annotated[int, COMPARISON.option("seeds")] = 48,
    weights: Weights = None,
    workers: Workers = 0,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("results/evaluate"),
    json_path: JsonPath = None,
) -> None:
    """Measure one policy against greedy-cost on validation seeds.

    For use while a policy is developed; `flextopo compare` has seeds that it was not tuned on.

    Examples:
        flextopo evaluate runs/ppo/policy
        flextopo evaluate deepset-imitation --servers a100x16 --seeds 20
    """
    from flextopo.train.compare import REFERENCE

    config = ComparisonConfig(
        servers=servers,
        selectors=(REFERENCE,),
        policies=(policy,),
        seeds=seeds,
        split="validation",
        scenario=Scenario(parse_weights(weights)),
    )
    _compare(config, workers, out, json_path)


def _compare(
    config: ComparisonConfig,
    workers: int,
    out: Path,
    json_path: Path | None,
    ray: str | None = None,
) -> None:
    from flextopo.train.comparison import run_comparison

    processes = num_workers(workers)
    check_selectors(*config.selectors, *config.policies)
    with results_to(json_path) as write:
        with progress("playing") as done:
            # An unwritable place shows before the games, not after.
            found = run_comparison(config, processes, done, ray, begin=lambda: make_folder(out))
        written = found.save(out)
        write(found.results)
        typer.echo(found.summary())
        figure = "none without matplotlib; pip install 'flextopo[report]'"
        results, scores, *drawn = map(str, written)
        typer.echo(f"results: {results}\nscores:  {scores}\nfigure:  {[*drawn, figure][0]}")
    if found.interrupted:
        raise KeyboardInterrupt("finished seeds were kept")


def check_selectors(*given: object) -> None:
    """Find those selectors that are names, so that an unknown one shows before anything is compiled.

    Raises:
        FlextopoError: there is no such selector, or it fails.
    """
    from flextopo.policies.selectors import find_selector

    for name in given:
        if isinstance(name, str):
            find_selector(name)


def parse_weights(given: list[str] | None) -> LossWeights:
    """Return the loss weights of NAME=VALUE, the others at their defaults.

    Raises:
        FlextopoError: a name is unknown, or a value is not legal.
    """
    return LossWeights(**WEIGHTS.parse(given or (), "--weights"))


def split_names(text: str) -> tuple[str, ...]:
    """Return names joined by commas; `none` is no name."""
    return tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))
