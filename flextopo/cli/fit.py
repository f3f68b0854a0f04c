"""`flextopo fit-requeue`: the hours of the strongest simple rule."""

from __future__ import annotations

from typing import Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.configuration import FIT
from flextopo.cli.terminal import JsonPath, Workers, num_workers, progress, results_to


def fit_requeue(
    servers: Annotated[
        list[str] | None,
        FIT.option("servers", autocompletion=completion.servers),
    ] = None,
    seeds: Annotated[int, FIT.option("seeds")] = FIT.defaults["seeds"],
    rounds: Annotated[int, FIT.option("rounds")] = FIT.defaults["rounds"],
    workers: Workers = 0,
    json_path: JsonPath = None,
) -> None:
    """Fit the hours of requeue-aware on validation days.

    Prints the hours that lose least, and what they gain over none on the same days.

    Examples:
        flextopo fit-requeue
        flextopo fit-requeue --servers 4*rtx4090 --seeds 20 --json -
    """
    from flextopo.train.fit_requeue import document, fit_requeue
    from flextopo.train.tables import format_table

    config = FIT.make(
        {"servers": tuple(servers or ()) or None, "seeds": seeds, "rounds": rounds}, ()
    )
    with results_to(json_path) as write:
        with progress("fitting") as done:
            fit = fit_requeue(config, num_workers(workers), done)
        found = document(fit, config)
        write(found)
        rows = [["GPUs", "hours"], *([size, f"{h:g}"] for size, h in found["hours"].items())]
        typer.echo(format_table(rows))
        gain = fit.gain
        typer.echo(
            f"against no hours: {gain.mean * 100:+.2f} points "
            f"[{gain.low * 100:+.2f}, {gain.high * 100:+.2f}] on {len(config.servers) * seeds} days"
        )
