"""`flextopo trace`: published traces as files for a comparison."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.commands import Command
from flextopo.cli.terminal import JsonPath, results_to
from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.files import make_folder, write_whole

app = typer.Typer(no_args_is_help=True, help="Convert and draw recorded demand and jobs.")


@app.command(cls=Command)
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(help="Published files of requests, rates or jobs; plain or gzip."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .csv or .csv.gz.")],
    kind: Annotated[
        str | None,
        typer.Option(
            help="Which format all files have; else told by their columns.",
            autocompletion=completion.trace_kinds,
        ),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(help="Name of the one service of all logs of requests; else a file is one."),
    ] = None,
    tokens_per_s: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-s",
            help="Tokens in and out that a replica sustains: tells how many the requests keep busy. "
            "No public trace has it, so there is no default.",
        ),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Turn published traces into the services or the jobs that `compare` reads.

    Reads Azure's, Mooncake's and ServeGen's demand, and jobs of Philly, PAI, openb and ElasticFlow.
    Says what was counted, rounded and left out.

    Examples:
        flextopo trace convert AzureLLMInferenceTrace_conv.csv -o services.csv
        flextopo trace convert m-large/chunk-1-trace.csv m-large/chunk-2-trace.csv -o services.csv
        flextopo trace convert pai_task_table.csv pai_job_table.csv -o jobs.csv.gz
    """
    from flextopo.cluster.workload.trace_convert import convert_traces

    if out.is_dir() or not out.name.endswith((".csv", ".csv.gz")):
        raise WorkloadError(f"--out {out}; legal: a file to write, .csv or .csv.gz")
    with results_to(json_path) as write:
        made = convert_traces(files, kind, service, tokens_per_s)
        make_folder(out.parent)
        content = made.text.encode()
        write_whole(out, gzip.compress(content, mtime=0) if out.suffix == ".gz" else content)
        write({"out": str(out), "rows": made.rows, "said": list(made.said)})
        typer.echo("\n".join([*made.said, f"{out}: {made.rows} rows"]))
