"""`flextopo sweep`: search hyper-parameters in a study that can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flextopo.cli.terminal import RayAddress, format_table, needing, num_workers, progress
from flextopo.cluster.output_files import make_folder, write_whole


def sweep(
    algorithm: Annotated[str, typer.Option(help="ppo or imitation.")] = "ppo",
    search: Annotated[
        str, typer.Option(help="Fields of its configuration, joined by commas.")
    ] = "learning_rate,entropy",
    trials: Annotated[int, typer.Option(help="Trainings in all.")] = 8,
    budget: Annotated[
        int, typer.Option(help="Decisions (ppo) or tapes a round (imitation) of a trial.")
    ] = 20_000,
    servers: Annotated[str, typer.Option(help="Cluster of the tapes that judge.")] = "16*rtx4090",
    tapes: Annotated[int, typer.Option(help="Validation tapes that judge a trial.")] = 16,
    batch: Annotated[int, typer.Option(help="Trials drawn at a time; at most so many run.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the search and of every training.")] = 0,
    workers: Annotated[
        int, typer.Option(help="Processes; 0 = one a core. No number depends on it.")
    ] = 0,
    ray: RayAddress = None,
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/sweep"),
) -> None:
    """Search hyper-parameters; the same command goes on with a study that was interrupted.

    Examples: `flextopo sweep --trials 16 --out runs/sweep`, `flextopo sweep --algorithm imitation
    --budget 60 --search learning_rate,hidden`.
    """
    from flextopo.train.results import versions
    from flextopo.train.sweep import SweepConfig, run_sweep

    fixed: dict[str, Any] = {"servers": servers} if algorithm == "ppo" else {}
    config = SweepConfig(
        algorithm=algorithm,
        search=tuple(name.strip() for name in search.split(",") if name.strip()),
        trials=trials,
        budget=budget,
        fixed=fixed,
        judged_on=servers,
        tapes=tapes,
        batch=batch,
        seed=seed,
    )
    try:
        with needing("train,sweep"), progress("searching") as done:
            found = run_sweep(config, out, num_workers(workers), ray, done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the study is kept; the same command goes on with it") from None
    table = [["trial", *config.search, "weighted\nloss %"]]
    for trial in sorted(found["trials"], key=lambda trial: trial["loss"]):
        drawn = [f"{trial['drawn'][name]:.4g}" for name in config.search]
        table.append([str(trial["number"]), *drawn, f"{100 * trial['loss']:.3f}"])
    typer.echo(format_table(table))
    make_folder(out)
    path = out / "sweep.json"
    write_whole(path, (json.dumps({**found, "versions": versions()}, indent=1) + "\n").encode())
    best = found["best"]["number"]
    typer.echo(f"results: {path}\nbest policy: {out / 'trials' / f'{best:04d}' / 'policy'}")
