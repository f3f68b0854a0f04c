"""Write a trained scorer as an artifact that `policies.runtime` loads."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flextopo
from flextopo.cluster.files import make_folder, write_whole
from flextopo.cluster.observation.features import (
    NUM_PREEMPTOR,
    cluster_width,
    columns_of,
    feature_names,
)
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import ArtifactError, load_policy


def save_policy(network: CandidateScorer, folder: Path, name: str, k: int, **about: Any) -> Path:
    """Write `weights.npz` and `meta.json`; each is renamed into place when it is complete.

    Args:
        network: the trained scorer.
        folder: created if it is missing.
        name: of the policy, as tables show it.
        k: candidates it was trained to look at.
        about: what else the metadata should say (training command, seed, scores).

    Returns:
        The folder.
    """
    make_folder(folder)
    skip = () if network.config.context else ("pooled.weight",)
    arrays = {
        key: value.detach().cpu().numpy()
        for key, value in network.state_dict().items()
        if key not in skip
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    meta = {
        "name": name,
        "k": k,
        "features": feature_names(network.config.width),
        "hidden": network.config.hidden,
        "context": network.config.context,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "versions": {"flextopo": flextopo.__version__, "torch": torch.__version__.split("+")[0]},
        **about,
    }
    write_whole(folder / "weights.npz", buffer.getvalue())
    write_whole(folder / "meta.json", (json.dumps(meta, indent=1) + "\n").encode())
    return folder


def load_network(name: str | Path, width: int = 0) -> CandidateScorer:
    """Return the torch network of an artifact.

    Args:
        name: policy of the zoo, or its folder.
        width: to train it further, features of a candidate that it is to take, with all others, in
            the order of the observation; those that it does not know yet weigh nothing at first.
            0 = as it is, taking what its metadata names.

    Raises:
        UnknownNameError, ArtifactError: as `load_policy`, or it is an exported model.
    """
    policy = load_policy(name)
    if not policy.weights:
        raise ArtifactError(f"{name}: is an exported model; legal: a folder with weights.npz")
    state = {key: torch.from_numpy(value.copy()) for key, value in policy.weights.items()}
    if width:
        columns = columns_of(policy.names)
        cluster_at = [NUM_PREEMPTOR + at for at in columns["cluster"]]
        width = max(width, policy.width)
        shared = NUM_PREEMPTOR + cluster_width(width)
        places = {
            "candidate.weight": (columns["candidates"], width),
            "shared.weight": ([*columns["preemptor"], *cluster_at], shared),
        }
        for layer, (at, wide) in places.items():
            whole = torch.zeros(len(state[layer]), wide)
            whole[:, at] = state[layer]
            state[layer] = whole
    config = ScorerConfig(
        hidden=len(state["own.bias"]),
        context="pooled.weight" in state,
        width=state["candidate.weight"].shape[1],
        shared=state["shared.weight"].shape[1],
    )
    network = CandidateScorer(config)
    network.load_state_dict(state, strict=config.context)
    return network
