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
        list[Path] | None,
        typer.Option(help="Results of `flextopo compare`, for the card; may be given again."),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Write a policy as ONNX, with metadata and a card.

    The folder holds model.onnx, model.pt2, meta.json and README.md.

    Examples:
        flextopo export deepset-imitation -o exported
        flextopo export runs/ppo/policy -o exported --results results/compare.json
        flextopo export deepset-imitation -o exported --results day.json --results recorded.json
    """
    table = "\n\n".join(map(_results, results or []))
    with results_to(json_path) as write:
        with needing("train,export"), progress("exporting", kernels=False):
            from flextopo.policies.export import export_policy

            folder = export_policy(policy, out, table)
        from flextopo.policies.runtime import read_meta

        write({"exported": str(folder), "meta": read_meta(folder)})
        typer.echo(f"exported: {folder}\nnext: flextopo serve --selector {folder} --snapshot FILE")


def push(
    folder: Annotated[Path, typer.Argument(help="A policy as `flextopo export` writes it.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is made.")] = False,
    json_path: JsonPath = None,
) -> None:
    """Upload an exported policy to the Hugging Face Hub.

    The token is that of `hf auth login`, or HF_TOKEN.

    Examples:
        flextopo push exported someone/flextopo-policy
    """
    with results_to(json_path) as write, needing("hub"):
        from flextopo.policies import hub

        commit = hub.push(folder, repo, private)
        write({"commit": commit})
        typer.echo(f"pushed: {commit}\nnext: flextopo pull {repo} -o FOLDER")


def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; made if missing.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; default: the newest.")
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Download a policy from the Hugging Face Hub.

    Examples:
        flextopo pull someone/flextopo-policy -o policy
    """
    with results_to(json_path) as write, needing("hub"):
        from flextopo.policies import hub

        folder = hub.pull(repo, out, revision)
        write({"policy": str(folder)})
        typer.echo(f"policy: {folder}\nnext: flextopo compare --policies {folder}")


def _results(path: Path) -> str:
    """Return saved results as a table with a line on what was played."""
    from flextopo.train.results import LOSS_COLUMNS, load_results, markdown, rows

    found = load_results(path)
    config = found["config"]
    what = config.get("source") or f"generated demand, {config['workload']['horizon_h']:g} h a seed"
    heading = f"{config['servers']}, {config['seeds']} seeds ({config['split']}): {what}"
    return f"{heading}\n\n{markdown(rows(found, LOSS_COLUMNS))}"
