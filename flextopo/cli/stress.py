"""`flextopo stress`: how a comparison comes out when the world is other than it was thought."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextopo.baselines.registry import COMPARED, LOOKAHEAD
from flextopo.cli import completion
from flextopo.cli.compare import (
    Batch,
    Servers,
    Services,
    Weights,
    check_selectors,
    parse_weights,
    split_names,
)
from flextopo.cli.configuration import COMPARISON
from flextopo.cli.terminal import JsonPath, Workers, num_workers, progress, results_to
from flextopo.cluster.files import make_folder
from flextopo.cluster.scenario import Scenario
from flextopo.policies.shipped import zoo_names
from flextopo.train.config import ComparisonConfig
from flextopo.train.stress import chosen
from flextopo.train.tables import format_table

SELECTORS = tuple(name for name in COMPARED if name not in LOOKAHEAD)


def stress(
    servers: Servers = COMPARISON.defaults["servers"],
    selectors: Annotated[
        str,
        COMPARISON.option(
            "selectors",
            more="Joined by commas; all = all that do not look ahead. greedy-cost always plays.",
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
    seeds: Annotated[int, COMPARISON.option("seeds")] = 10,
    split: Annotated[
        str,
        COMPARISON.option("split", autocompletion=completion.among("comparison", "validation")),
    ] = "validation",
    services: Services = None,
    batch: Batch = None,
    only: Annotated[
        str,
        typer.Option(
            help="Perturbations joined by commas; all, or see `flextopo list perturbations`.",
            autocompletion=completion.perturbation_list,
        ),
    ] = "all",
    weights: Weights = None,
    workers: Workers = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/stress"),
    json_path: JsonPath = None,
) -> None:
    """Disturb a comparison in many ways, one at a time.

    Every selector plays the same tapes as greedy-cost under each perturbation. Prints one table of
    the paired differences; saves it with every seed's losses as OUT/stress.json. On traces what
    changes only what the generator draws is left out: the hour of demand, and the sizes of jobs.

    Examples:
        flextopo stress
        flextopo stress --only demand-x1.5,servers-a100 --seeds 20
        flextopo stress --services rates.csv.gz --batch jobs.csv.gz
        flextopo stress --selectors godel,flextopo --policies runs/ppo/policy --split comparison
    """
    from flextopo.train.compare import REFERENCE
    from flextopo.train.results import save_results
    from flextopo.train.stress_run import run_stress, stress_notes, stress_rows

    given = SELECTORS if selectors == "all" else split_names(selectors)
    config = ComparisonConfig(
        servers=servers,
        selectors=given if REFERENCE in given else (*given, REFERENCE),
        policies=tuple(zoo_names()) if policies == "all" else split_names(policies),
        seeds=seeds,
        split=split,
        services=services,
        batch=batch,
        scenario=Scenario(parse_weights(weights)),
    )
    names = () if only == "all" else tuple(name.strip() for name in only.split(","))
    chosen(names)  # an unknown name shows before anything is loaded
    processes = num_workers(workers)
    check_selectors(*config.selectors, *config.policies)
    with results_to(json_path) as write:
        with progress("playing") as done:
            found = run_stress(config, names, processes, done, lambda: make_folder(out))
        save_results(found, out / "stress.json")
        write(found)
        typer.echo("\n".join([format_table(stress_rows(found)), "", *stress_notes(found)]))
        typer.echo(f"results: {out / 'stress.json'}")
    if found["config"]["interrupted"]:
        raise KeyboardInterrupt("finished perturbations were kept")
