"""`flextopo sweep`: search hyper-parameters in a study that can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.configuration import ALGORITHMS, SWEEP
from flextopo.cli.terminal import (
    JsonPath,
    RayAddress,
    Workers,
    needing,
    num_workers,
    progress,
    results_to,
)
from flextopo.cli.train import Set
from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.train.config import SPACES, SweepConfig
from flextopo.train.tables import format_table

Algorithm = Annotated[str, SWEEP.option("algorithm", autocompletion=completion.searched_algorithms)]


def sweep(
    algorithm: Algorithm = SWEEP.defaults["algorithm"],
    search: Annotated[str, SWEEP.option("search", more="Joined by commas.")] = "",
    trials: Annotated[int, SWEEP.option("trials")] = SWEEP.defaults["trials"],
    budget: Annotated[int, SWEEP.option("budget")] = SWEEP.defaults["budget"],
    servers: Annotated[
        str, SWEEP.option("judged_on", autocompletion=completion.servers)
    ] = SWEEP.defaults["judged_on"],
    tapes: Annotated[int, SWEEP.option("tapes")] = SWEEP.defaults["tapes"],
    batch: Annotated[int, SWEEP.option("batch")] = SWEEP.defaults["batch"],
    seed: Annotated[int, SWEEP.option("seed")] = SWEEP.defaults["seed"],
    settings: Set = None,
    workers: Workers = 0,
    ray: RayAddress = None,
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/sweep"),
    json_path: JsonPath = None,
) -> None:
    """Search hyper-parameters, in a study that can go on.

    The same command goes on with a study that was interrupted. --servers judge; ppo also trains on
    them.

    Examples:
        flextopo sweep --trials 16 --out runs/sweep
        flextopo sweep --algorithm imitation --budget 60 --search learning_rate,hidden
        flextopo sweep --search entropy --set epochs=8 --ray local
    """
    from flextopo.train.results import versions
    from flextopo.train.sweep import run_sweep

    if algorithm not in SPACES:
        raise UnknownNameError("algorithm", algorithm, list(SPACES))
    with results_to(json_path) as write:
        with needing("train,sweep"):
            fixed = {"servers": servers} if algorithm == "ppo" else {}
            config = SweepConfig(
                algorithm=algorithm,
                search=tuple(name.strip() for name in search.split(",") if name.strip()),
                trials=trials,
                budget=budget,
                fixed={**fixed, **ALGORITHMS[algorithm].parse(settings or ())},
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
        make_folder(out)
        path = out / "sweep.json"
        results = {**found, "versions": versions()}
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())
        write(results)
        table = [["trial", *config.searched, "weighted\nloss %"]]
        for trial in sorted(found["trials"], key=lambda trial: trial["loss"]):
            drawn = [f"{trial['drawn'][name]:.4g}" for name in config.searched]
            table.append([str(trial["number"]), *drawn, f"{100 * trial['loss']:.3f}"])
        typer.echo(format_table(table))
        best = found["best"]["number"]
        typer.echo(f"results: {path}\nbest policy: {out / 'trials' / f'{best:04d}' / 'policy'}")
