"""`flextopo ablate`: what each ingredient of a training buys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli.configuration import ABLATION, ALGORITHMS
from flextopo.cli.terminal import JsonPath, lines, needing, results_to
from flextopo.train.config import AblationConfig


def ablate(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `train --algorithm imitation`.")],
    tapes: Annotated[int, ABLATION.option("tapes")] = ABLATION.defaults["tapes"],
    timesteps: Annotated[
        int | None, ALGORITHMS["ppo"].option("timesteps", more="In each training with PPO.")
    ] = None,
    validation_tapes: Annotated[int, ABLATION.option("validation_tapes")] = ABLATION.defaults[
        "validation_tapes"
    ],
    importance_tapes: Annotated[int, ABLATION.option("importance_tapes")] = ABLATION.defaults[
        "importance_tapes"
    ],
    json_path: JsonPath = Path("results/ablation.json"),
) -> None:
    """Measure what each stage, network and feature buys.

    All rows are played on validation tapes: every round of the run; other networks on the same demonstrations; PPO from scratch and
    from the policy. Then each feature is shuffled. Half an hour with the defaults.

    Examples:
        flextopo ablate runs/zoo
        flextopo ablate runs/zoo --timesteps 50000 --tapes 60 --json small.json
    """
    with results_to(json_path) as write:
        with needing("train"), lines("ablating") as say:
            from flextopo.train.ablation import run_ablation

            config = AblationConfig(
                tapes, validation_tapes=validation_tapes, importance_tapes=importance_tapes
            )
            if timesteps is not None:
                config = replace(config, ppo=replace(config.ppo, timesteps=timesteps))
            document = run_ablation(run, config, say)
        from flextopo.train.results import versions

        write({**document, "versions": versions()})
        typer.echo(f"results: {json_path}\nnext: flextopo report {json_path}")
