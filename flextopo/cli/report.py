"""`flextopo report`: a page with figures, or the tables that are generated into Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli.terminal import Failed, JsonPath, progress, results_to
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import write_whole


def report(
    pages: Annotated[
        list[Path] | None, typer.Argument(metavar="RESULTS", help="Results files, or folders.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for page and figures.")] = Path(
        "results/report"
    ),
    readme: Annotated[Path, typer.Option(help="File with generated blocks.")] = Path("README.md"),
    results: Annotated[Path, typer.Option(help="Saved results.")] = Path("docs/results"),
    check: Annotated[
        bool, typer.Option(help="Write nothing; exit with status 1 if blocks are out of date.")
    ] = False,
    json_path: JsonPath = None,
) -> None:
    """Write an HTML page with figures from saved results.

    Without RESULTS, write README's generated tables anew.

    Examples:
        flextopo report results/compare.json
        flextopo report results/a/compare.json results/b/compare.json --out results/both
        flextopo report --check
        flextopo report --readme docs/results.md
    """
    with results_to(json_path) as write:
        if pages:
            if check:
                raise FlextopoError("--check with results files; legal: with README alone")
            with progress("drawing", kernels=False):
                from flextopo.train.report_page import write_report

                written = write_report(pages, out)
            write({"written": [str(path) for path in written]})
            for path in written:
                typer.echo(path)
            return
        from flextopo.train.report import fill

        try:
            old = readme.read_text()
        except OSError as error:
            raise FlextopoError(f"{readme}: {error.strerror}") from None
        new = fill(old, results)
        changed = new != old
        if changed and not check:
            write_whole(readme, new.encode())
        write({"written": [str(readme)] if changed and not check else [], "out_of_date": changed})
        if changed and check:
            raise Failed(
                f"{readme}: generated blocks are out of date; run `flextopo report --readme {readme}`"
            )
        typer.echo(f"{readme}: {'written' if changed else 'up to date'}")
