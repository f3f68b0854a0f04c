"""`flextopo export`: a policy as ONNX, for programs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.terminal import JsonPath, needing, progress, results_to


def export(
    policy: Annotated[
        str,
        typer.Argument(
            help="A shipped policy, or the folder of one.", autocompletion=completion.policies
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; made if missing.")],
    results: Annotated[
        Path | None, typer.Option(help="Results of `flextopo compare`, for the card.")
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Write a policy as ONNX, with metadata and a card.

    The folder holds model.onnx, model.pt2, meta.json and README.md.

    Examples:
        flextopo export deepset-imitation -o exported
        flextopo export runs/ppo/policy -o exported --results results/compare.json
    """
    from flextopo.train.results import LOSS_COLUMNS, load_results, markdown, rows

    table = "" if results is None else markdown(rows(load_results(results), LOSS_COLUMNS))
    with results_to(json_path) as write:
        with needing("train,export"), progress("exporting"):
            from flextopo.policies.export import export_policy

            folder = export_policy(policy, out, table)
        from flextopo.policies.runtime import read_meta

        write({"exported": str(folder), "meta": read_meta(folder)})
        typer.echo(f"exported: {folder}\nnext: flextopo serve --selector {folder} --snapshot FILE")
