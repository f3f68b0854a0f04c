"""What an exported policy says of itself to people: its README."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from flextopo.cluster.workload.config import WorkloadConfig


def model_card(meta: dict[str, Any], table: str = "", licence: str = "") -> str:
    """Return the README of an exported policy, with the front matter that model hubs read.

    Args:
        meta: what `export_policy` writes into `meta.json`.
        table: results as Markdown; empty = the policy's own validation.
        licence: of the weights, by its name on model hubs; empty = its owner has yet to say.
    """
    terms = f"license: {licence}\n" if licence else ""
    rows = "\n".join(
        f"| `{entry['name']}` | {entry['dtype']} | {' x '.join(map(str, entry['shape']))} |"
        for entry in (*meta["inputs"], *meta["outputs"])
    )
    results = table or _validation(meta)
    files = "\n".join(f"- `{name}`: SHA-256 `{digest}`" for name, digest in meta["files"].items())
    return f"""---
library_name: flextopo
{terms}tags: [reinforcement-learning, scheduling, kubernetes, gpu, preemption]
---

# {meta["name"]}

A victim selector of flextopo: it scores the {meta["k"]} cheapest minimal victim sets of a pending
pod, and "do not preempt now"; the highest score is its choice.

Trained by `{meta.get("trained_by", "an unknown command")}` on
{", ".join(f"`{name}`" for name in meta["environments"]) or "servers of no registered environment"}.

## Training

{_training(meta)}

Workloads are drawn anew for each tape, each of these numbers uniformly (as this version of flextopo does; what it
does not draw is as in `WorkloadConfig`):

| number | from | to |
| --- | --- | --- |
{_ranges()}

## Results

{results}

## Limits

- Nothing is known of workloads beyond these ranges but what the results above say. Compare it with
  `requeue-aware`, a rule of a page, on your own demand first: `flextopo compare --services FILE --batch FILE`.
- It ranks candidates of one preemptor at a time; behind it stand the guards of `flextopo serve`, and a rule that
  answers where it fails.
- It has learnt from simulated days. No cluster with GPUs has trained or tested it.

## Run it

`flextopo serve --selector FOLDER --snapshot FILE`, or from Python, without torch:

```python
from flextopo.policies.runtime import load_policy

selector = load_policy("FOLDER")
```

From any other language: `model.onnx` takes and gives these arrays, in this order.

| array | type | shape |
| --- | --- | --- |
{rows}

`meta.json` names every feature of every array in order, with its scale. `mask` is 1 where a
candidate is there and 0 where the place is empty; its last entry is "do not preempt now".

## Files

{files}
"""


def _training(meta: dict[str, Any]) -> str:
    """Return the settings that it was trained with as a table, or say that none were saved."""
    config = meta.get("config")
    if not isinstance(config, dict) or not config:
        return "Its settings were not saved."
    versions = ", ".join(f"{name} {of}" for name, of in dict(meta.get("versions", {})).items())
    rows = "\n".join(f"| `{name}` | {_cell(value)} |" for name, value in config.items())
    return f"With {versions or 'unknown versions'}.\n\n| setting | value |\n| --- | --- |\n{rows}"


def _cell(value: Any) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _ranges() -> str:
    ranges = {spec.name: spec.metadata.get("train") for spec in fields(WorkloadConfig)}
    return "\n".join(f"| `{name}` | {of[0]:g} | {of[1]:g} |" for name, of in ranges.items() if of)


def _validation(meta: dict[str, Any]) -> str:
    """Return the policy's own validation as a table, or say that there is none."""
    found = meta.get("validation")
    if not isinstance(found, dict):
        return "No results were saved with this policy."
    rows = []
    for name, value in found.items():
        label = meta["name"] if name == "weighted_loss" else name
        rows.append(f"| {label} | {100 * float(value):.2f} |")
    return "\n".join(["| selector | weighted loss %, validation |", "| --- | --- |", *rows])
