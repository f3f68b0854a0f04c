"""`flextopo replay`: one page that plays a tape again, decision by decision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from flextopo.cli import completion
from flextopo.cli.compare import Batch, Services, Set, check_selectors
from flextopo.cli.configuration import COMPARISON, SCENARIO, WORKLOAD
from flextopo.cli.record import what_if
from flextopo.cli.terminal import JsonPath, needing, progress, results_to
from flextopo.policies.shipped import zoo_names
from flextopo.train.config import ComparisonConfig


def replay(
    results: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RESULT.json]",
            help="Saved results of `flextopo compare`; or DAY.jsonl, what `flextopo record` wrote.",
        ),
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            "--selector",
            "-s",
            help="A selector, MODULE:NAME of one, or a policy; once or twice.",
            autocompletion=completion.selectors,
        ),
    ] = None,
    servers: Annotated[
        str | None,
        COMPARISON.option("servers", more="Else as saved.", autocompletion=completion.servers),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the tape; else where the saved results differ most, or 1000000."),
    ] = None,
    services: Services = None,
    batch: Batch = None,
    peak: Annotated[float | None, WORKLOAD.option("online_peak_share")] = None,
    load: Annotated[float | None, WORKLOAD.option("batch_load")] = None,
    hours: Annotated[float | None, WORKLOAD.option("horizon_h")] = None,
    settings: Set = None,
    admission: Annotated[
        str | None, SCENARIO.option("admission", autocompletion=completion.admissions)
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .html, or .gif for an animation.")
    ] = Path("results/replay.html"),
    json_path: JsonPath = None,
) -> None:
    """Replay a tape on an HTML page: every decision, and why.

    With two selectors they play the same tape side by side. Of saved results it takes servers,
    workload, scenario and traces, and by default the policy, the reference, and the seed on which
    their losses differ most; options go before what is saved. Of a recorded cluster it tells what
    selectors would have done, as `flextopo what-if` does.

    Examples:
        flextopo replay results/compare.json
        flextopo replay results/compare.json -s exact --seed 2000000
        flextopo replay -s deepset-imitation -s greedy-cost -o day.html
        flextopo replay -s greedy-cost -s requeue-aware --seed 2000019 -o day.gif
    """
    if results is not None and results.suffix == ".jsonl":
        what_if(results, selector, json_path=json_path)
        return
    from flextopo.cluster.workload.seeds import VALIDATION
    from flextopo.train.compare import REFERENCE
    from flextopo.train.replay_page import write_replay
    from flextopo.train.replay_results import config_of, interesting_seed, interesting_selectors
    from flextopo.train.results import load_results

    config = ComparisonConfig()
    names = tuple(selector or ())
    if results is not None:
        saved = load_results(results)
        config = config_of(saved, results)
        names = names or interesting_selectors(saved)
        seed = interesting_seed(saved, names) if seed is None else seed
    names = names or (*zoo_names()[:1], REFERENCE)
    seed = VALIDATION.start if seed is None else seed
    workload = {"online_peak_share": peak, "batch_load": load, "horizon_h": hours}
    given = {name: value for name, value in workload.items() if value is not None}
    given.update(WORKLOAD.parse(settings or ()))
    config = _override(config, servers, services, batch, given, admission)
    draw = None
    if output.suffix.lower() == ".gif":
        with needing("report"):
            from flextopo.train.replay_animation import animate
        draw = animate
    check_selectors(*names)
    with results_to(json_path) as write:
        with progress("recording") as done:
            written = write_replay(config, names, seed, output, done, draw)
        played = [
            (recording.name, len(recording.choices), recording.metrics["weighted_loss"])
            for recording in written.recordings
        ]
        keys = ("selector", "decisions", "weighted_loss")
        write(
            {
                "replay": str(output),
                "seed": seed,
                "recordings": [dict(zip(keys, row, strict=True)) for row in played],
                "differences": len(written.found) if len(played) > 1 else None,
            }
        )
        for name, decisions, loss in played:
            typer.echo(f"{name}: {decisions} decisions, weighted loss {100 * loss:.2f} %")
        if len(played) > 1:
            typer.echo(f"{len(written.found)} differences")
        typer.echo(f"replay: {output} ({written.size_bytes / 1e6:.1f} MB)")


def _override(
    config: ComparisonConfig,
    servers: str | None,
    services: str | None,
    batch: str | None,
    workload: dict[str, Any],
    admission: str | None,
) -> ComparisonConfig:
    """Return the configuration with the options that were given."""
    config = replace(config, workload=replace(config.workload, **workload))
    if admission is not None:
        config = replace(config, scenario=replace(config.scenario, admission=admission))
    config = replace(config, services=services or config.services, batch=batch or config.batch)
    return config if servers is None else replace(config, servers=servers)
