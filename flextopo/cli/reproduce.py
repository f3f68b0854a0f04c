"""`flextopo reproduce`: the paper's headline on this machine, and what it depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.configuration import PLAN
from flextopo.cli.terminal import JsonPath, Workers, num_workers, progress, results_to
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import write_whole
from flextopo.train.reproduce_config import Plan
from flextopo.train.tables import format_table


def reproduce(
    servers_kind: Annotated[
        str,
        PLAN.option("kinds", more="Joined by a comma.", autocompletion=completion.presets),
    ] = ",".join(PLAN.defaults["kinds"]),
    preemptions: Annotated[int, PLAN.option("preemptions")] = PLAN.defaults["preemptions"],
    seed: Annotated[int, PLAN.option("seed")] = PLAN.defaults["seed"],
    workers: Workers = 0,
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path(
        "results/reproduce"
    ),
    json_path: JsonPath = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Page whose generated blocks are written anew.")
    ] = None,
) -> None:
    """Reproduce the paper's experiment: hit rates and search time.

    The paper reports hit rates of 44.5 % for a blind scheduler and of 100 % for FlexTopo.

    Examples:
        flextopo reproduce
        flextopo reproduce --servers-kind a100 --preemptions 1000
        flextopo reproduce --markdown docs/reproduction.md
    """
    from flextopo.train import reproduce as reproducing
    from flextopo.train import reproduce_tables as tables
    from flextopo.train.results import save_results, versions

    kinds = tuple(kind.strip() for kind in servers_kind.split(",") if kind.strip())
    plan = Plan(kinds=kinds, preemptions=preemptions, seed=seed)
    page = None if markdown is None else _read(markdown)
    path, figure = out / "reproduce.json", out / "reproduce.png"
    with results_to(json_path) as write:
        with progress("preempting") as done:
            results = reproducing.reproduce(plan, num_workers(workers), done)
        results["versions"] = versions()
        save_results(results, path)
        write(results)
        for title, table in (
            ("the paper's figures beside ours", tables.headline),
            ("godel on nodes full of eight 1-card pods", tables.closed_forms),
            ("godel, default mix, seed by seed", tables.seeds),
            ("candidate search, a decision", tables.search_time),
            (f"what the hit rate depends on, {kinds[0]}", tables.sensitivity),
        ):
            typer.echo(f"\n{title}:\n{format_table(table(results))}")
        typer.echo("\nrates with [95 % interval over twentieths of the run]")
        for note in tables.notes(results):
            typer.echo(f"- {note}")
        if markdown is not None and page is not None:
            write_whole(markdown, tables.fill(page, results).encode())
        tables.draw(results, figure)
        typer.echo(f"results: {path}\nfigure:  {figure}")


def _read(page: Path) -> str:
    """Return a page, so that a wrong path shows before the runs."""
    try:
        return page.read_text()
    except OSError as error:
        raise FlextopoError(f"{page}: {error.strerror}") from None
