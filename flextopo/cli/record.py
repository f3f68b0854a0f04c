"""`flextopo record` and `what-if`: a real cluster as a file, and what selectors would have done with it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flextopo.cli import completion
from flextopo.cli.serving import CLASS_BANDS, FALLBACK, ClassBands, read_bands
from flextopo.cli.terminal import JsonPath, needing, progress, results_to
from flextopo.cluster.errors import FlextopoError

SELECTORS = ("kubernetes", "requeue-aware", "deepset-imitation")


def record(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .jsonl.")],
    kube: Annotated[
        bool, typer.Option(help="Watch the cluster around, or of KUBECONFIG; the only source.")
    ] = False,
    hours: Annotated[
        float | None, typer.Option(help="How long; else until it is interrupted.")
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Record what happens in a cluster, without a name in it.

    Reads what `flextopo serve --kube` watches and changes nothing. Names, namespaces, uids and labels
    are hashed with a key that nobody keeps; resources, priorities, times and hardware stay.

    Examples:
        flextopo record --kube --hours 24 -o day.jsonl
    """
    if not kube:
        raise FlextopoError("record without --kube; legal: with it")
    if hours is not None and not 0 < hours <= 24 * 366:
        raise FlextopoError(f"--hours {hours:g}; legal: above 0, up to 8784")
    if output.suffix != ".jsonl":
        raise FlextopoError(f"{output}: ends in {output.suffix!r}; legal: .jsonl")
    with needing("kube"):
        from flextopo.policies.serving.record_kube import record_cluster
    with results_to(json_path) as write:
        with progress("recording", kernels=False):
            lines = record_cluster(output, None if hours is None else hours * 3600.0)
        size = output.stat().st_size
        write({"recording": str(output), "lines": lines, "bytes": size})
        typer.echo(f"{output}: {lines} lines, {size / 1e6:.1f} MB")


def what_if(
    recording: Annotated[Path, typer.Argument(help="What `flextopo record` wrote.")],
    selector: Annotated[
        list[str] | None,
        typer.Option(
            "--selector",
            "-s",
            help="A selector, MODULE:NAME of one, or a policy; any number of times.",
            autocompletion=completion.selectors,
        ),
    ] = None,
    class_bands: ClassBands = CLASS_BANDS,
    json_path: JsonPath = None,
) -> None:
    """Tell what selectors would have done with a recorded cluster.

    Each time a pod that asks for GPUs was found unschedulable, every selector decides about the
    cluster as it was. Prints a table, and what they would have done for the pods of which they
    differ; `--json` has every decision with its victims, reasons, next best and GPU-hours lost. The
    recording has hashes for names, which are shown as node-1, pod-1; `--json` has both.

    Examples:
        flextopo what-if day.jsonl
        flextopo what-if day.jsonl -s kubernetes -s deepset-imitation --json decisions.json
    """
    from flextopo.baselines.registry import make_selector
    from flextopo.policies.selectors import find_served
    from flextopo.policies.serving.recording import HASHED
    from flextopo.policies.serving.shadow import COUNTED
    from flextopo.policies.serving.what_if import short_names, summarise_moments
    from flextopo.policies.serving.what_if import what_if as decide_all

    names = selector or list(SELECTORS)
    chosen = {name: find_served(name) for name in names}
    bands = read_bands(class_bands)
    with results_to(json_path) as write:
        with progress("deciding"):
            moments = decide_all(recording, chosen, make_selector(FALLBACK), bands)
        rows = summarise_moments(moments)
        short = short_names(moments)
        told = [asdict(moment) for moment in moments]
        called = {alias: hashed for hashed, alias in short.items()}
        write({"selectors": rows, "moments": told, "names": called, "counted": COUNTED})
        typer.echo(f"{_table(rows)}\n\n{COUNTED}")
        for moment in moments:
            choices = {name: moment.choices[name] for name in names}
            if len({(one.node, *one.victims) for one in choices.values()}) > 1:
                text = _difference(asdict(moment), names)
                typer.echo(HASHED.sub(lambda hashed: short[hashed[0]], text))


def _table(rows: list[dict[str, Any]]) -> str:
    head = "| | decisions | preempt | victims | GPUs | aligned | GPU-h lost |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        aligned = "" if row["aligned"] is None else f"{100 * row['aligned']:.0f} %"
        lost = "" if row["lost_gpu_h"] is None else f"{row['lost_gpu_h']:.2f}"
        cells = [row[key] for key in ("selector", "decisions", "preempts", "victims", "gpus")]
        lines.append(f"| {' | '.join(map(str, [*cells, aligned, lost]))} |")
    return "\n".join(lines)


def _difference(moment: dict[str, Any], names: list[str]) -> str:
    happened = "was not bound"
    if moment["node"]:
        victims = ", ".join(moment["victims"]) or "nobody"
        happened = (
            f"was bound to {moment['node']} after {moment['waited_s']:.1f} s; evicted: {victims}"
        )
    asks = f"{moment['pod']}, {moment['gpus']} GPUs, {moment['requirement']}"
    lines = [f"\n{moment['t_s']:.1f} s: {asks}; {happened}"]
    for name in names:
        choice = moment["choices"][name]
        if not choice["victims"]:
            lines.append(f"  {name}: {choice['node'] or 'waits'} ({'; '.join(choice['why'])})")
            continue
        lines.append(
            f"  {name}: {choice['node']}, {', '.join(choice['victims'])}; {choice['level']}, "
            f"{choice['lost_gpu_h']:.2f} GPU-h"
        )
        if choice["next_best"]:
            other = choice["next_best"]
            lines.append(
                f"    next best: {other['node']}, {', '.join(other['victims']) or 'nobody'}, "
                f"{other['lost_gpu_h']:.2f} GPU-h"
            )
        lines.append(f"    {choice['fewer']}")
    return "\n".join(lines)
