"""`flextopo fit-requeue`: the hours of the strongest simple rule; `fit-ranges`: what a policy has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.configuration import FIT, RANGES
from flextopo.cli.terminal import JsonPath, Workers, num_workers, progress, results_to


def fit_requeue(
    servers: Annotated[
        list[str] | None,
        FIT.option("servers", autocompletion=completion.servers),
    ] = None,
    seeds: Annotated[int, FIT.option("seeds")] = FIT.defaults["seeds"],
    rounds: Annotated[int, FIT.option("rounds")] = FIT.defaults["rounds"],
    settings: Annotated[list[str] | None, FIT.setting("grid", "gang_share")] = None,
    workers: Workers = 0,
    json_path: JsonPath = None,
) -> None:
    """Fit the hours of requeue-aware on validation days.

    Prints the hours that lose least, and what they gain over none on the same days.

    Examples:
        flextopo fit-requeue
        flextopo fit-requeue --servers 4*rtx4090 --seeds 20 --json -
        flextopo fit-requeue --servers 64*a100@leaf8 --set gang_share=0.25
    """
    from flextopo.train.fit_requeue import document, fit_requeue
    from flextopo.train.tables import format_table

    given = {"servers": tuple(servers or ()) or None, "seeds": seeds, "rounds": rounds}
    config = FIT.make(given, settings or ())
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


def fit_ranges(
    policy: Annotated[
        str,
        typer.Argument(
            help="Policy of the zoo, or its folder.", autocompletion=completion.policies
        ),
    ],
    servers: Annotated[
        list[str] | None,
        RANGES.option("servers", autocompletion=completion.servers),
    ] = None,
    tapes: Annotated[int, RANGES.option("tapes")] = RANGES.defaults["tapes"],
    settings: Annotated[list[str] | None, RANGES.setting("quantile", "margin", "sizes")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File; by default in the policy's folder.")
    ] = None,
    workers: Workers = 0,
    json_path: JsonPath = None,
) -> None:
    """Find a policy's training ranges, for POLICY+in-range.

    The policy plays training tapes; what is out of range is chosen so that false alarms are rare on
    validation tapes. Prints how rare they are.

    Examples:
        flextopo fit-ranges runs/imitation/policy --servers 16*h100
        flextopo fit-ranges deepset-imitation --tapes 300 -o ranges.json
    """
    from flextopo.cluster.files import write_whole
    from flextopo.policies.ranges import FILE
    from flextopo.policies.runtime import folder_of
    from flextopo.train.fit_ranges import fit_ranges, summary
    from flextopo.train.tables import format_table

    target = out or folder_of(policy) / FILE
    given = {"servers": tuple(servers or ()) or None, "tapes": tapes}
    config = RANGES.make(given, settings or ())
    with results_to(json_path) as write:
        with progress("playing") as done:
            ranges = fit_ranges(policy, config, num_workers(workers), done)
        found = ranges.document()
        write_whole(target, (json.dumps(found, indent=1) + "\n").encode())
        write(found)
        typer.echo(format_table([[name, str(value)] for name, value in summary(ranges).items()]))
        typer.echo(f"ranges: {target}\nnext: flextopo evaluate {policy}+in-range")
