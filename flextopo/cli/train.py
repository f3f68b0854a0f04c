"""`flextopo train`: a policy by MaskablePPO, or by imitation and improvement."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flextopo.cli import completion
from flextopo.cli.configuration import ALGORITHMS, SWEEP
from flextopo.cli.terminal import (
    JsonPath,
    RayAddress,
    Workers,
    lines,
    needing,
    num_workers,
    progress,
    results_to,
)
from flextopo.cluster.errors import FlextopoError, UnknownNameError

Algorithm = Annotated[
    str,
    typer.Option(help="`ppo`, `imitation` or `planning`.", autocompletion=completion.algorithms),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set a field of the algorithm's configuration, any number of times; see "
        "`flextopo list ppo`, `imitation` and `planning`.",
        autocompletion=completion.training_fields,
    ),
]


def _option(field: str, **how: Any) -> Any:
    """Return the option of a field that one algorithm or several have; without it, their default."""
    having = {name: config for name, config in ALGORITHMS.items() if field in config.fields}
    defaults = {str(config.defaults[field]) for config in having.values()}
    return next(iter(having.values())).option(
        field,
        more="" if len(having) == len(ALGORITHMS) else f"Only {' and '.join(having)}.",
        show_default=(defaults.pop() or False) if len(defaults) == 1 else "by algorithm",
        **how,
    )


def train(
    algorithm: Algorithm = SWEEP.defaults["algorithm"],
    servers: Annotated[str | None, _option("servers", autocompletion=completion.servers)] = None,
    timesteps: Annotated[int | None, _option("timesteps")] = None,
    start: Annotated[str | None, _option("start", autocompletion=completion.policies)] = None,
    threads: Annotated[int | None, _option("threads")] = None,
    tapes: Annotated[int | None, _option("tapes")] = None,
    rounds: Annotated[int | None, _option("rounds")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
    device: Annotated[str | None, _option("device")] = None,
    settings: Set = None,
    workers: Workers = 0,
    ray: RayAddress = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    json_path: JsonPath = None,
) -> None:
    """Train a policy; the artifact is written to OUT/policy.

    Without further options, planning trains the shipped deepset-planning. --workers and --ray are for
    imitation and planning; ppo computes with --threads.

    Examples:
        flextopo train --timesteps 200000 --out runs/ppo
        flextopo train --start deepset-imitation --set learning_rate=1e-4 --out runs/tuned
        flextopo train --resume --out runs/ppo
        flextopo train --algorithm imitation --set hidden=128 --out runs/wide
        flextopo train --algorithm imitation --ray HEAD:6379 --out runs/many
        flextopo train --algorithm imitation --servers 64*a100@leaf8 --set gang_share=0.25
        flextopo train --algorithm planning --tapes 300 --out runs/planned
    """
    if algorithm not in ALGORITHMS:
        raise UnknownNameError("algorithm", algorithm, list(ALGORITHMS))
    if ray is not None and algorithm == "ppo":
        raise FlextopoError(
            f"--ray with {algorithm}; legal: imitation or planning, whose tapes fan out"
        )
    configuration = ALGORITHMS[algorithm]
    given = {
        "servers": servers,
        "timesteps": timesteps,
        "start": start,
        "threads": threads,
        "tapes": tapes,
        "rounds": rounds,
        "seed": seed,
        "device": device,
    }
    with results_to(json_path) as write:
        if algorithm != "ppo":
            with needing("train"), lines(algorithm) as say:
                config = configuration.make(given, settings or ())
                from flextopo.train.scale_out import connected

                with connected(num_workers(workers), ray):
                    policy = _fanned_out(algorithm)(
                        config, out, num_workers(workers), say, resume, ray
                    )
        else:
            with needing("train"), progress("training") as done:
                config = configuration.make(given, settings or ())
                from flextopo.train.ppo import train_ppo

                policy = train_ppo(config, out, resume, done)
        write({"policy": str(policy), "algorithm": algorithm, "config": asdict(config)})
        typer.echo(f"policy: {policy}\nnext: flextopo evaluate {policy}")


def _fanned_out(algorithm: str) -> Any:
    """Return what trains with tapes that fan out; whatever it needs is imported here."""
    if algorithm == "planning":
        from flextopo.train.planned import train_planning

        return train_planning
    from flextopo.train.imitation import train_imitation

    return train_imitation
