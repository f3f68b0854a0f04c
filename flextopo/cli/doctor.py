"""`flextopo doctor`: what stands in the way of a service in a cluster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flextopo.cli.terminal import Failed, JsonPath, needing, progress, results_to
from flextopo.cluster.errors import FlextopoError

if TYPE_CHECKING:
    from flextopo.policies.serving.findings import Finding


def doctor(
    kube: Annotated[
        bool, typer.Option(help="Look at the cluster around, or of KUBECONFIG.")
    ] = False,
    namespace: Annotated[str, typer.Option(help="Namespace of the service.")] = "flextopo-system",
    scheduler_config: Annotated[
        Path | None, typer.Option(help="What kube-scheduler gets as --config, looked at as well.")
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Find what stands in the way of the service in a cluster.

    Prints a line for each thing that was looked at, and what to do; changes nothing. The exit status is
    1 where something is a problem.

    Examples:
        flextopo doctor --kube
        flextopo doctor --kube --scheduler-config /etc/kubernetes/flextopo/kube-scheduler.yaml
    """
    if not kube:
        raise FlextopoError("doctor without --kube; legal: with it")
    with results_to(json_path) as write:
        with progress("looking", kernels=False):
            found = _examine(namespace, scheduler_config)
        write([asdict(finding) for finding in found])
        for finding in found:
            typer.echo(str(finding))
    if problems := sum(finding.state == "problem" for finding in found):
        raise Failed(f"{problems} problem{'s' if problems > 1 else ''}")


def _examine(namespace: str, scheduler_config: Path | None) -> list[Finding]:
    import asyncio

    with needing("serve,kube"):
        from flextopo.policies.serving.doctor import Doctor
        from flextopo.policies.serving.kube import connect
        from flextopo.policies.serving.reader import Reader
        from flextopo.policies.serving.scheduler_file import read_scheduler_file
    scheduler = read_scheduler_file(scheduler_config) if scheduler_config else None

    async def examine() -> list[Finding]:
        client = connect()
        try:
            return await Doctor(Reader(client), namespace, scheduler).examine()
        finally:
            await client.close()  # type: ignore[no-untyped-call]

    return asyncio.run(examine())
