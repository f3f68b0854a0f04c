"""`flextopo`: the commands, and how mistakes are told: one sentence, exit status 2."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import flextopo
from flextopo.cli import export, replay, reproduce, serving, sweep, topology
from flextopo.cli.terminal import RayAddress, format_table, needing, num_workers, progress
from flextopo.cluster.captures import TopologyWarning
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.output_files import make_folder, write_whole

if TYPE_CHECKING:
    from flextopo.train.compare import ComparisonConfig

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Learn which pods to preempt, on hardware whose topology matters.",
)
app.add_typer(topology.app, name="topology")
app.command()(reproduce.reproduce)
app.command()(replay.replay)
app.command()(sweep.sweep)
app.command()(export.export)
app.command()(serving.decide)
app.command()(serving.serve)
app.command("shadow-report")(serving.shadow_report)

Servers = Annotated[
    str, typer.Option(help="Such as rtx4090x16, 16*a100, 8*rtx4090,8*a100 or 4*FILE.")
]
Seeds = Annotated[int, typer.Option(help="How many seeds; each is one tape, the same for all.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 = one a core. No number depends on it.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Also write the results here.")]
Run = Annotated[Path, typer.Option(help="Folder of the run.")]


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"flextopo {flextopo.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Learn which pods to preempt, on hardware whose topology matters."""


@app.command("list")
def list_names() -> None:
    """List environments, selectors and shipped policies."""
    from flextopo.baselines.registry import SELECTORS
    from flextopo.envs.registration import ENVIRONMENTS
    from flextopo.policies.runtime import zoo_names

    for name, (_, about) in ENVIRONMENTS.items():
        typer.echo(f"environment  {name:32} {about}")
    for name, (_, about) in SELECTORS.items():
        typer.echo(f"selector     {name:32} {about}")
    for name in zoo_names():
        typer.echo(f"policy       {name:32} ships with the package")


@app.command()
def compare(
    servers: Servers = "rtx4090x16",
    selectors: Annotated[
        str, typer.Option(help="Names, joined by commas; all = all but rollout.")
    ] = "all",
    policies: Annotated[
        str, typer.Option(help="Shipped policies or folders, joined by commas; all or none.")
    ] = "all",
    seeds: Seeds = 40,
    oracle_seeds: Annotated[int, typer.Option(help="Seeds for oracle and rollout; 0 = all.")] = 0,
    services: Annotated[str | None, typer.Option(help="Trace of online demand.")] = None,
    batch: Annotated[str | None, typer.Option(help="Trace of batch jobs.")] = None,
    peak: Annotated[float, typer.Option(help="Online peak, share of all GPUs.")] = 0.6,
    load: Annotated[float, typer.Option(help="Batch load beside it, share of all GPUs.")] = 0.65,
    hours: Annotated[float, typer.Option(help="Simulated hours after the warm-up.")] = 24.0,
    admission: Annotated[str, typer.Option(help="best-effort or restricted.")] = "best-effort",
    workers: Workers = 0,
    ray: RayAddress = None,
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path("results"),
    json_path: JsonPath = None,
) -> None:
    """Compare selectors and policies on the same tapes.

    Examples: `flextopo compare --seeds 10`, `flextopo compare --servers a100x16 --peak 0.95`,
    `flextopo compare --services rates.csv.gz --batch jobs.csv.gz --servers rtx4090x16`.
    """
    from flextopo.baselines.registry import COMPARED
    from flextopo.cluster.simulator import Scenario
    from flextopo.cluster.workload import WorkloadConfig
    from flextopo.policies.runtime import zoo_names
    from flextopo.train.compare import ComparisonConfig

    config = ComparisonConfig(
        servers=servers,
        selectors=COMPARED if selectors == "all" else _names(selectors),
        policies=tuple(zoo_names()) if policies == "all" else _names(policies),
        seeds=seeds,
        oracle_seeds=oracle_seeds,
        services=services,
        batch=batch,
        workload=WorkloadConfig(online_peak_share=peak, batch_load=load, horizon_h=hours),
        scenario=Scenario(admission=admission),
    )
    _compare(config, workers, out, json_path, ray)


@app.command()
def evaluate(
    policy: Annotated[str, typer.Argument(help="A shipped policy, or the folder of one.")],
    servers: Servers = "rtx4090x16",
    seeds: Seeds = 48,
    workers: Workers = 0,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("results/evaluate"),
    json_path: JsonPath = None,
) -> None:
    """Measure one policy against greedy-cost on validation seeds, while it is developed.

    Example: `flextopo evaluate runs/ppo/policy --servers a100x16`.
    """
    from flextopo.train.compare import ComparisonConfig

    config = ComparisonConfig(
        servers=servers,
        selectors=("greedy-cost",),
        policies=(policy,),
        seeds=seeds,
        split="validation",
    )
    _compare(config, workers, out, json_path)


@app.command()
def train(
    algorithm: Annotated[str, typer.Option(help="ppo or imitation.")] = "ppo",
    servers: Servers = "rtx4090x16",
    timesteps: Annotated[int, typer.Option(help="Decisions to learn from (ppo).")] = 100_000,
    tapes: Annotated[
        int | None, typer.Option(help="Tapes a round (imitation); else as the shipped policy.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds (imitation); else as the shipped policy.")
    ] = None,
    start: Annotated[str, typer.Option(help="Policy to begin with (ppo).")] = "",
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    workers: Workers = 0,
    out: Run = Path("runs/latest"),
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train a policy; the artifact is written to OUT/policy.

    Examples: `flextopo train --timesteps 200000 --out runs/ppo`, `flextopo train --algorithm
    imitation --out runs/imitation`, `flextopo train --start deepset-imitation --out runs/tuned`.
    """
    if algorithm not in ("ppo", "imitation"):
        raise FlextopoError(f"algorithm {algorithm!r}; legal: ppo, imitation")
    if resume and algorithm != "ppo":
        raise FlextopoError("--resume with imitation; legal: with ppo")
    if algorithm == "imitation":
        with needing("train"):
            from flextopo.train.imitation import ImitationConfig, train_imitation

        imitation = ImitationConfig(seed=seed)
        if tapes is not None:
            imitation = replace(imitation, tapes=tapes)
        if rounds is not None:
            imitation = replace(imitation, rounds=rounds)
        policy = train_imitation(imitation, out, num_workers(workers), typer.echo)
    else:
        with needing("train"):
            from flextopo.train.ppo import PPOConfig, train_ppo

        config = PPOConfig(
            servers=servers, timesteps=timesteps, seed=seed, start=start, threads=threads
        )
        with progress("training") as done:
            policy = train_ppo(config, out, resume, done)
    typer.echo(f"policy: {policy}\nnext: flextopo evaluate {policy}")


@app.command()
def report(
    pages: Annotated[
        list[Path] | None, typer.Argument(metavar="RESULTS", help="Results files, or folders.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for page and figures.")] = Path(
        "results/report"
    ),
    readme: Annotated[Path, typer.Option(help="File with generated blocks.")] = Path("README.md"),
    results: Annotated[Path, typer.Option(help="Saved results.")] = Path("docs/results"),
    check: Annotated[bool, typer.Option(help="Only say whether it is up to date.")] = False,
) -> None:
    """Write an HTML page and figures from results files; without any, README's generated tables.

    Examples: `flextopo report results/a/compare.json results/b/compare.json --out results/report`,
    `flextopo report docs/results`, `flextopo report --check`.
    """
    if pages:
        from flextopo.train.report_page import write_report

        if check:
            raise FlextopoError("--check with results files; legal: with README alone")
        for path in write_report(pages, out):
            typer.echo(path)
        return
    from flextopo.train.report import fill

    try:
        old = readme.read_text()
    except OSError as error:
        raise FlextopoError(f"{readme}: {error.strerror}") from None
    new = fill(old, results)
    if check and new != old:
        raise FlextopoError(f"{readme}: generated tables are out of date; run `flextopo report`")
    if new != old:
        write_whole(readme, new.encode())
    typer.echo(f"{readme}: {'up to date' if new == old else 'written'}")


def _compare(
    config: ComparisonConfig,
    workers: int,
    out: Path,
    json_path: Path | None,
    ray: str | None = None,
) -> None:
    from flextopo.train import compare as comparing
    from flextopo.train import results as saved

    processes = num_workers(workers)
    fleet = comparing.check(config)
    _, source = comparing.make_tape(config, fleet, config.seeds_of(config.names[0])[0])
    typer.echo(f"{fleet.num_nodes} servers, {fleet.num_gpus} GPUs; {source}")
    # An unwritable place shows before the games, not after.
    make_folder(out)
    if json_path is not None:
        make_folder(json_path.parent)
    with progress("playing") as done:
        scores, interrupted = comparing.run(config, processes, done, ray)
    if not any(scores.values()):
        raise KeyboardInterrupt("no seed was finished")
    results = comparing.summarise(
        config, scores, versions=saved.versions(), source=source, interrupted=interrupted
    )
    path = out / "compare.json"
    for target in (path, json_path):
        if target is not None:
            saved.save_results(results, target)
    saved.save_scores(results, out / "compare.npz")
    for columns in (saved.LOSS_COLUMNS, saved.OTHER_COLUMNS):
        typer.echo("\n" + format_table(saved.rows(results, columns)))
    if results["paired"]:
        typer.echo(f"\nagainst {comparing.REFERENCE} on the same tapes (weighted loss):")
        typer.echo(format_table(saved.paired_rows(results)))
    typer.echo("\ncells: mean over seeds ± half of the 95 % bootstrap interval")
    if config.oracle_seeds:
        typer.echo(
            f"selectors that look ahead played {config.oracle_seeds} of {config.seeds} seeds"
        )
    figure = out / "compare.png"
    saved.draw_comparison(results, figure)
    typer.echo(f"results: {path}\nscores:  {out / 'compare.npz'}\nfigure:  {figure}")
    if interrupted:
        raise KeyboardInterrupt("finished seeds were kept")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: a mistake is one sentence and status 2, an interrupt status 130."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", TopologyWarning)
    warnings.formatwarning = _one_line
    try:
        app(args=arguments)
    except FlextopoError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except SystemExit as stop:
        # Typer turns an interrupt into an exit with that status and no word.
        if stop.code == 130:
            kept = stop.__context__ and stop.__context__.__cause__
            typer.echo(f"interrupted: {kept or 'nothing was written'}", err=True)
        raise


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {message}\n"
