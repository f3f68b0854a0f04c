"""`flextopo decide`, `serve` and `shadow-report`: selectors behind files and HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.compiling import say_if_compiling
from flextopo.cli.terminal import JsonPath, needing, progress, results_to
from flextopo.cluster.errors import FlextopoError

FALLBACK = "flextopo-best-effort"
SELECTOR = "requeue-aware"
"""Who decides unless told otherwise, here and in the manifests: the best simple rule, deterministic."""
CLASS_BANDS = "500"
Selector = Annotated[
    str,
    typer.Option(
        help="Selector, MODULE:NAME of one, policy, or the folder of one; POLICY@300 may let a pod "
        "wait for 300 s.",
        autocompletion=completion.selectors,
    ),
]
ClassBands = Annotated[
    str,
    typer.Option(
        help="Priorities from which on a batch pod is of class 1, 2, ..., with commas between; lost "
        "work weighs 1 + class."
    ),
]


def decide(
    snapshot: Annotated[Path, typer.Argument(help="JSON file: servers, pods, preemptor.")],
    selector: Selector = SELECTOR,
    class_bands: ClassBands = CLASS_BANDS,
    json_path: JsonPath = None,
) -> None:
    """Choose victims for one snapshot of a cluster.

    Prints the decision as JSON, indented; `--json` in one line, or into a file.

    Examples:
        flextopo decide snapshot.json
        flextopo decide snapshot.json --selector deepset-imitation --json decision.json
    """
    import msgspec

    from flextopo.baselines.registry import make_selector
    from flextopo.policies import snapshot as snapshots
    from flextopo.policies.selectors import find_served

    try:
        body = snapshot.read_bytes()
    except OSError as error:
        raise FlextopoError(f"{snapshot}: {error.strerror}") from None
    served = find_served(selector)
    with results_to(json_path) as write:
        with progress("deciding"):
            found = snapshots.decide(
                snapshots.decode(body),
                served,
                make_selector(FALLBACK),
                bands=read_bands(class_bands),
            )
        write(msgspec.to_builtins(found))
        typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())


def serve(
    selector: Selector = SELECTOR,
    snapshot: Annotated[
        Path | None, typer.Option(help="YAML or JSON file of pods, nodes and FlexTopo objects.")
    ] = None,
    kube: Annotated[bool, typer.Option(help="Watch the cluster around, or of KUBECONFIG.")] = False,
    controller: Annotated[
        bool, typer.Option(help="Also evict for pods that kube-scheduler <= 1.37 leaves pending.")
    ] = False,
    leave_gangs: Annotated[
        bool,
        typer.Option(
            help="A controller runs elsewhere: leave gangs to it, and nodes that lack only alignment."
        ),
    ] = False,
    scheduler_name: Annotated[
        list[str] | None,
        typer.Option(help="Scheduler whose pods the controller looks after; may be repeated."),
    ] = None,
    shadow: Annotated[
        bool, typer.Option(help="Decide and log; change nothing that kube-scheduler does.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    health_port: Annotated[
        int, typer.Option(help="Port of health and metrics alone, without TLS; 0 = none.")
    ] = 0,
    budget_ms: Annotated[
        int, typer.Option(help="Milliseconds for the selector; then the baseline decides.")
    ] = 200,
    class_bands: ClassBands = CLASS_BANDS,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Who signs clients' certificates, PEM; they must show one.")
    ] = None,
) -> None:
    """Serve a selector to kube-scheduler, over HTTP.

    Answers the verbs of kube-scheduler's extenders, POST /v1/decide, health and metrics; without
    --snapshot and --kube only /v1/decide.

    Examples:
        flextopo serve --snapshot cluster.json
        flextopo serve --kube --shadow
        flextopo serve --kube --selector deepset-imitation --budget-ms 100
    """
    from flextopo.baselines.registry import ORACLES, make_selector
    from flextopo.policies.selectors import find_served

    if selector.partition("+")[0].partition("@")[0] in ORACLES:
        raise FlextopoError(f"--selector {selector}: knows the future; legal: others")
    if budget_ms < 1:
        raise FlextopoError(f"--budget-ms {budget_ms}; legal: 1 or more")
    if kube and snapshot is not None:
        raise FlextopoError("--kube with --snapshot; legal: one of them")
    if controller and not kube:
        raise FlextopoError("--controller without --kube; legal: with it")
    if leave_gangs and not kube:
        raise FlextopoError("--leave-gangs without --kube; legal: with it")
    bands = read_bands(class_bands)
    with needing("serve"):
        from flextopo.policies.serving.server import Listen, Plan, start
    served = find_served(selector)
    say_if_compiling(as_event=True)
    start(
        Plan(
            selector=served,
            fallback=make_selector(FALLBACK),
            snapshot=snapshot,
            kube=kube,
            controller=controller,
            leave_gangs=leave_gangs,
            schedulers=tuple(scheduler_name or ("default-scheduler",)),
            shadow=shadow,
            budget_s=budget_ms / 1000.0,
            bands=bands,
        ),
        Listen(host, port, health_port, tls_cert, tls_key, client_ca),
    )


def read_bands(text: str) -> tuple[int, ...]:
    """Return the class bands of an option.

    Raises:
        FlextopoError: they are none.
    """
    from flextopo.policies.serving.records import check_bands

    try:
        bands = tuple(int(part) for part in text.split(",") if text.strip())
        check_bands(bands)
    except ValueError:
        raise FlextopoError(
            f"--class-bands {text!r}; legal: ascending priorities, such as 500,1000, or none"
        ) from None
    return bands


def shadow_report(
    log: Annotated[Path, typer.Argument(help="Log of flextopo serve --shadow.")],
    json_path: JsonPath = None,
) -> None:
    """Compare kube-scheduler's victims with the selector's.

    Reads the log of `flextopo serve --shadow`; prints a table in Markdown.

    Examples:
        flextopo shadow-report shadow.log
        flextopo shadow-report shadow.log --json
    """
    from flextopo.policies.serving.shadow import summarise

    try:
        with results_to(json_path) as write, log.open("rb") as lines:
            found = summarise(lines, str(log))
            write(found.to_json())
            typer.echo(found.to_markdown())
    except OSError as error:
        raise FlextopoError(f"{log}: {error.strerror}") from None
