"""`flextopo export`: a policy as ONNX, for programs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextopo.cluster.errors import FlextopoError


def export(
    policy: Annotated[str, typer.Argument(help="A shipped policy, or the folder of one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; made if missing.")],
    results: Annotated[
        Path | None, typer.Option(help="Results of `flextopo compare --json`, for the card.")
    ] = None,
) -> None:
    """Export a policy: model.onnx, model.pt2, meta.json and a README card.

    Example: `flextopo export deepset-imitation -o exported --results docs/results/rtx4090.json`.
    """
    from flextopo.train.results import LOSS_COLUMNS, load_results, markdown, rows

    table = "" if results is None else markdown(rows(load_results(results), LOSS_COLUMNS))
    try:
        from flextopo.policies.export import export_policy
    except ImportError as error:
        raise FlextopoError(f"{error.name} is not installed; legal: flextopo[train]") from None
    folder = export_policy(policy, out, table)
    typer.echo(f"exported: {folder}\nnext: flextopo serve --selector {folder} --snapshot FILE")
