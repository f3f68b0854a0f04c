"""`flextopo replay`: one page that plays a tape again, decision by decision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flextopo.cli.terminal import progress
from flextopo.cluster.seeds import VALIDATION

if TYPE_CHECKING:
    from flextopo.train.compare import ComparisonConfig


def replay(
    results: Annotated[
        Path | None,
        typer.Argument(metavar="[RESULT.json]", help="Saved results of `flextopo compare`."),
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option("--selector", "-s", help="A selector or policy; once or twice."),
    ] = None,
    servers: Annotated[str | None, typer.Option(help="Such as 16*rtx4090; else as saved.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the tape; else where the saved results differ most, or 1000000."),
    ] = None,
    services: Annotated[str | None, typer.Option(help="Trace of online demand.")] = None,
    batch: Annotated[str | None, typer.Option(help="Trace of batch jobs.")] = None,
    peak: Annotated[float | None, typer.Option(help="Online peak, share of all GPUs.")] = None,
    load: Annotated[float | None, typer.Option(help="Batch load, share of all GPUs.")] = None,
    hours: Annotated[float | None, typer.Option(help="Simulated hours.")] = None,
    admission: Annotated[str | None, typer.Option(help="best-effort or restricted.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path(
        "results/replay.html"
    ),
) -> None:
    """Write an HTML page that replays a tape: the cluster, every decision, and why.

    With two selectors they play the same tape side by side. Of saved results it takes servers,
    workload, scenario and traces, and by default the policy, the reference, and the seed on which
    their losses differ most; options go before what is saved.

    Examples: `flextopo replay -s deepset-imitation -s greedy-cost -o day.html`,
    `flextopo replay results/compare.json`, `flextopo replay docs/results/a100.json -s exact`.
    """
    from flextopo.policies.runtime import zoo_names
    from flextopo.train.compare import REFERENCE, ComparisonConfig
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
    config = _override(config, servers, services, batch, peak, load, hours, admission)
    with progress("recording") as done:
        written = write_replay(
            config, names, VALIDATION.start if seed is None else seed, output, done
        )
    for recording in written.recordings:
        typer.echo(
            f"{recording.name}: {len(recording.choices)} decisions, "
            f"weighted loss {100 * recording.metrics['weighted_loss']:.2f} %"
        )
    if len(written.recordings) > 1:
        typer.echo(f"{len(written.found)} differences")
    typer.echo(f"replay: {output} ({written.size_bytes / 1e6:.1f} MB)")


def _override(
    config: ComparisonConfig,
    servers: str | None,
    services: str | None,
    batch: str | None,
    peak: float | None,
    load: float | None,
    hours: float | None,
    admission: str | None,
) -> ComparisonConfig:
    """Return the configuration with the options that were given."""
    workload = {"online_peak_share": peak, "batch_load": load, "horizon_h": hours}
    given: dict[str, Any] = {name: v for name, v in workload.items() if v is not None}
    if given:
        config = replace(config, workload=replace(config.workload, **given))
    if admission is not None:
        config = replace(config, scenario=replace(config.scenario, admission=admission))
    if services is not None or batch is not None:
        config = replace(config, services=services, batch=batch)
    return config if servers is None else replace(config, servers=servers)
