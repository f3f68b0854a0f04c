"""`flextopo trace`: published traces as files for a comparison, and traces as a picture."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.commands import Command
from flextopo.cli.compare import Servers
from flextopo.cli.configuration import COMPARISON
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
    _check_apart(files, out, json_path)
    with results_to(json_path) as write:
        made = convert_traces(files, kind, service, tokens_per_s)
        make_folder(out.parent)
        content = made.text.encode()
        write_whole(out, gzip.compress(content, mtime=0) if out.suffix == ".gz" else content)
        write({"out": str(out), "rows": made.rows, "said": list(made.said)})
        typer.echo("\n".join([*made.said, f"{out}: {made.rows} rows"]))


def _check_apart(files: list[Path], out: Path, json_path: Path | None) -> None:
    """Refuse to write over what is read, or over what is written.

    Raises:
        WorkloadError: names the option.
    """
    taken = {file.resolve() for file in files}
    for option, path in (("--out", out), ("--json", json_path)):
        if path is not None and path.resolve() in taken:
            raise WorkloadError(f"{option} {path}: is a file of this call already; legal: another")
        taken |= set() if path is None else {path.resolve()}


@app.command(cls=Command)
def show(
    services: Annotated[Path | None, typer.Option(help="Trace of online demand.")] = None,
    batch: Annotated[Path | None, typer.Option(help="Trace of batch jobs.")] = None,
    servers: Servers = COMPARISON.defaults["servers"],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Draw to this PNG file.")] = None,
    json_path: JsonPath = None,
) -> None:
    """Tell what traces are like, or draw them.

    Of demand its services over time and their mean day; of jobs their sizes, run times, and what
    they would hold of the servers if each started when it is submitted.

    Examples:
        flextopo trace show --services services.csv --batch jobs.csv --out trace.png
        flextopo trace show --batch cluster_job_log --servers "64*a100"
    """
    from flextopo.cluster.topology.servers import parse_servers
    from flextopo.cluster.workload.trace_readers import read_jobs, read_services
    from flextopo.cluster.workload.trace_summary import describe_jobs, describe_services

    if services is None and batch is None:
        raise WorkloadError("no trace; legal: --services, --batch or both")
    if out is not None and (out.is_dir() or out.suffix != ".png"):
        raise WorkloadError(f"--out {out}; legal: a file to write, .png")
    with results_to(json_path) as write:
        num_gpus = parse_servers(servers).num_gpus
        rates = None if services is None else read_services(services)
        jobs = None if batch is None else read_jobs(batch)
        said = [] if rates is None else [describe_services(rates)]
        said += [] if jobs is None else describe_jobs(jobs, num_gpus)
        if out is not None:
            from flextopo.cli.trace_drawing import draw_traces

            make_folder(out.parent)
            draw_traces(out, rates, jobs, num_gpus)
        write({"said": said, "picture": None if out is None else str(out)})
        typer.echo("\n".join([*said, *([] if out is None else [f"picture: {out}"])]))
