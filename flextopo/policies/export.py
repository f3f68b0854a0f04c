"""Export a trained scorer as ONNX, with all that another program must know to run it."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

import flextopo
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.cluster.observation.features import FEATURES
from flextopo.policies.artifact import load_network
from flextopo.policies.model_card import model_card
from flextopo.policies.network import CandidateScorer
from flextopo.policies.ranges import FILE as RANGES
from flextopo.policies.ranges import check_ranges
from flextopo.policies.runtime import MAX_K, OUTPUTS, inputs_of, read_meta
from flextopo.policies.shipped import ZOO, zoo_names

SHIPPED_LICENCE = "apache-2.0"
"""Of the policies that come with this package; see LICENSE."""


def export_policy(name: str | Path, folder: Path, table: str = "") -> Path:
    """Write a policy as `model.onnx`, `model.pt2`, `meta.json` and `README.md`, and its ranges if it has any.

    `meta.json` is written last: a folder without it is no artifact, so a crash leaves none behind.

    Args:
        name: policy of the zoo, or a folder with `weights.npz`.
        folder: created if it is missing; it must not be the policy's own.
        table: results as Markdown, for the card.

    Returns:
        The folder.

    Raises:
        UnknownNameError, ArtifactError: as `load_policy`.
        FlextopoError: the folder is the policy's own or cannot be written, or a package is missing.
    """
    network = load_network(name).eval()
    source = ZOO / str(name) if str(name) in zoo_names() else Path(name)
    if source.resolve() == folder.resolve():
        raise FlextopoError(f"{folder}: holds the policy itself; legal: another folder")
    make_folder(folder)
    about = read_meta(source)
    ranges = check_ranges(source, about["features"])
    sizes = [len(names) for names in about["features"].values()]
    model, program = to_onnx(network, sizes), to_program(network, sizes)
    meta = _describe(about, model, program)
    if ranges is not None:
        write_whole(folder / RANGES, ranges)
    write_whole(folder / "model.onnx", model)
    write_whole(folder / "model.pt2", program)
    licence = SHIPPED_LICENCE if str(name) in zoo_names() else ""
    write_whole(folder / "README.md", model_card(meta, table, licence).encode())
    write_whole(folder / "meta.json", (json.dumps(meta, indent=1) + "\n").encode())
    return folder


def to_onnx(network: CandidateScorer, sizes: Sequence[int]) -> bytes:
    """Return the network as an ONNX model of `inputs_of` and `OUTPUTS`, batch and K dynamic.

    Raises:
        FlextopoError: onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch needs it and would say so less clearly
    except ImportError as error:
        raise FlextopoError(f"{error.name} is not installed; legal: flextopo[export]") from None
    # The exporter warns of torchvision, which no scorer needs, and of its own deprecations.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            exported = torch.onnx.export(
                network,
                _example(sizes),
                dynamic_shapes=_dynamic_shapes(),
                input_names=["preemptor", "cluster", "candidates", "mask"],
                output_names=list(OUTPUTS),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
    assert exported is not None
    model = exported.model_proto
    # Stack traces of the exporting machine are nobody's business.
    for entry in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del entry.metadata_props[:]
    for entry in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del entry.metadata_props[:]
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def to_program(network: CandidateScorer, sizes: Sequence[int]) -> bytes:
    """Return the network as `torch.export.save` writes it, batch and K dynamic."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, _example(sizes), dynamic_shapes=_dynamic_shapes())
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _example(sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
    b, k = 2, 5
    preemptor, cluster, candidate = sizes
    return (
        torch.zeros(b, preemptor),
        torch.zeros(b, cluster),
        torch.zeros(b, k, candidate),
        torch.ones(b, k + 1),
    )


def _dynamic_shapes() -> tuple[dict[int, Any], ...]:
    b, k = Dim("batch"), Dim("candidates", min=1, max=MAX_K)
    return {0: b}, {0: b}, {0: b, 1: k}, {0: b, 1: k + 1}


def _describe(source: dict[str, Any], model: bytes, program: bytes) -> dict[str, Any]:
    """Return `meta.json`: the policy's own metadata, and how to feed the exported model."""
    meta = copy.deepcopy(source)
    meta["model"] = "model.onnx"
    meta["sha256"] = hashlib.sha256(model).hexdigest()
    meta["files"] = {
        "model.onnx": meta["sha256"],
        "model.pt2": hashlib.sha256(program).hexdigest(),
    }
    meta["inputs"] = [
        {
            "name": name,
            "dtype": "float32",
            "shape": list(shape),
            "order": meta["features"].get(name, ["candidate ...", "wait"]),
        }
        for name, shape in inputs_of(meta["features"]).items()
    ]
    meta["outputs"] = [
        {"name": name, "dtype": "float32", "shape": list(shape)} for name, shape in OUTPUTS.items()
    ]
    meta["features"] = {
        part: {name: FEATURES[part][name] for name in names}
        for part, names in meta["features"].items()
    }
    meta["environments"] = _environments(source)
    meta["versions"] = {
        **meta.get("versions", {}),
        "flextopo": flextopo.__version__,
        "torch": torch.__version__.split("+")[0],
        "onnx": version("onnx"),
        "onnxscript": version("onnxscript"),
    }
    return meta


def _environments(source: dict[str, Any]) -> list[str]:
    """Return the ids of the environments whose servers the policy was trained on."""
    from flextopo.envs.registration import ENVIRONMENTS

    trained = source.get("config", {}).get("servers", [])
    trained = [trained] if isinstance(trained, str) else trained
    forms = {_in_one_form(servers) for servers in trained}
    return [name for name, (servers, _) in ENVIRONMENTS.items() if _in_one_form(servers) in forms]


def _in_one_form(servers: str) -> str:
    """Return a description of servers with `rtx4090x16` written as `16*rtx4090`."""
    items = []
    for item in servers.split(","):
        name, times, count = item.strip().rpartition("x")
        items.append(f"{count}*{name}" if times and count.isdigit() else item.strip())
    return ",".join(items)
