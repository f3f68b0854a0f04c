"""`flextopo decide`, `serve` and `shadow-report`: selectors behind files and HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flextopo.cluster.errors import FlextopoError

FALLBACK = "flextopo-best-effort"
Selector = Annotated[str, typer.Option(help="Selector, policy, or the folder of one.")]


def decide(
    snapshot: Annotated[Path, typer.Argument(help="JSON file: servers, pods, preemptor.")],
    selector: Selector = "flextopo",
) -> None:
    """Decide about one snapshot of a cluster; prints the decision as JSON.

    Example: `flextopo decide snapshot.json --selector deepset-imitation`.
    """
    import msgspec

    from flextopo.baselines.registry import make_selector
    from flextopo.policies import snapshot as snapshots
    from flextopo.policies.selectors import find_selector

    try:
        body = snapshot.read_bytes()
    except OSError as error:
        raise FlextopoError(f"{snapshot}: {error.strerror}") from None
    found = snapshots.decide(
        snapshots.decode(body), find_selector(selector), make_selector(FALLBACK)
    )
    typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())


def serve(
    selector: Selector = "deepset-imitation",
    snapshot: Annotated[
        Path | None, typer.Option(help="YAML or JSON file of pods, nodes and FlexTopo objects.")
    ] = None,
    kube: Annotated[bool, typer.Option(help="Watch the cluster around, or of KUBECONFIG.")] = False,
    controller: Annotated[
        bool, typer.Option(help="Also evict for pods that kube-scheduler <= 1.37 leaves pending.")
    ] = False,
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
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Who signs clients' certificates, PEM; they must show one.")
    ] = None,
) -> None:
    """Serve a selector: kube-scheduler's extender verbs, POST /v1/decide, health, metrics.

    Without --snapshot and --kube only /v1/decide is answered.

    Examples: `flextopo serve --snapshot cluster.json`, `flextopo serve --kube --shadow`.
    """
    from flextopo.baselines.registry import LOOKAHEAD, make_selector
    from flextopo.policies.selectors import find_selector

    if selector in LOOKAHEAD:
        raise FlextopoError(
            f"--selector {selector}: sees the future of a simulation; legal: others"
        )
    if budget_ms < 1:
        raise FlextopoError(f"--budget-ms {budget_ms}; legal: 1 or more")
    if kube and snapshot is not None:
        raise FlextopoError("--kube with --snapshot; legal: one of them")
    if controller and not kube:
        raise FlextopoError("--controller without --kube; legal: with it")
    try:
        from flextopo.policies.serving.server import Listen, Plan, start
    except ImportError as error:
        raise FlextopoError(f"{error.name} is not installed; legal: flextopo[serve]") from None
    start(
        Plan(
            selector=find_selector(selector),
            fallback=make_selector(FALLBACK),
            snapshot=snapshot,
            kube=kube,
            controller=controller,
            shadow=shadow,
            budget_s=budget_ms / 1000.0,
        ),
        Listen(host, port, health_port, tls_cert, tls_key, client_ca),
    )


def shadow_report(
    log: Annotated[Path, typer.Argument(help="Log of flextopo serve --shadow.")],
) -> None:
    """Compare kube-scheduler's victims with those that the selector would have taken.

    Example: `flextopo shadow-report shadow.log`.
    """
    from flextopo.policies.serving.shadow import report

    try:
        with log.open() as lines:
            typer.echo(report(lines, str(log)))
    except OSError as error:
        raise FlextopoError(f"{log}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FlextopoError(f"{log}: no text; legal: the log of flextopo serve --shadow") from None
