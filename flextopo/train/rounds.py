"""What an imitation run keeps of its rounds, in memory and on disk, so that it can go on from there."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import write_whole
from flextopo.policies.network import CandidateScorer
from flextopo.train.config import ImitationConfig
from flextopo.train.demonstrations import Demonstrations, concatenate

COMMITTEE = "committee"
"""Name of the folder, in a run's, that keeps the rounds after all networks are trained."""


def rounds_folder(at: int) -> str:
    """Return the name of the folder, in a run's, that keeps the rounds of a network."""
    return f"rounds-{at}"


def free_folder(run: Path) -> Path:
    """Return the folder of a run's policy, which is not there yet.

    Raises:
        FlextopoError: it is.
    """
    target = run / "policy"
    if (target / "meta.json").exists():
        raise FlextopoError(f"{target}: holds a policy already; legal: another folder")
    return target


def weights_of(network: CandidateScorer) -> dict[str, npt.NDArray[np.float32]]:
    """Return a copy of the network's arrays by parameter name."""
    return {key: value.detach().cpu().numpy().copy() for key, value in network.state_dict().items()}


def read_rounds(folder: Path) -> dict[str, Any]:
    """Read what a run keeps of its rounds: its `config` and the validation `losses`.

    Raises:
        FlextopoError: there is nothing, or something else.
    """
    path = folder / "rounds.json"
    try:
        state = json.loads(path.read_bytes())
        return {"config": dict(state["config"]), "losses": list(state["losses"])}
    except OSError:
        raise FlextopoError(f"{path}: missing; legal: an imitation run's folder") from None
    except (ValueError, KeyError, TypeError):
        raise FlextopoError(f"{path}: is damaged; legal: what an imitation run writes") from None


class Rounds:
    """The rounds that are over: networks, validation losses, and the data still needed.

    Args:
        config: of the training.
        folder: keeps them, so that a later process goes on from the last complete round to the same
            bits; None = in memory alone.
        with_data: a round is fitted on the data of rounds before it, too.
    """

    def __init__(
        self, config: ImitationConfig, folder: Path | None = None, with_data: bool = True
    ) -> None:
        self.config, self.folder, self.with_data = config, folder, with_data
        self.networks: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.data: dict[int, Demonstrations] = {}

    def add(self, network: CandidateScorer, loss: float, data: Demonstrations) -> None:
        """Add a round, and forget the data that no later round is fitted on."""
        at = len(self.losses)
        self.networks.append({key: v.cpu().clone() for key, v in network.state_dict().items()})
        self.losses.append(loss)
        self.data[at] = data
        old = [other for other in self.data if other < self._first_to_fit()]
        for other in old:
            del self.data[other]
        if self.folder is not None:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **weights_of(network))
            write_whole(self.folder / f"network-{at}.npz", buffer.getvalue())
            if at in self.data:
                data.save(self.folder / f"demonstrations-{at}.npz")
            state = {"config": asdict(self.config), "losses": self.losses}
            write_whole(self.folder / "rounds.json", json.dumps(state).encode())
            for other in old:
                (self.folder / f"demonstrations-{other}.npz").unlink(missing_ok=True)

    @property
    def is_there(self) -> bool:
        """Say whether the folder keeps any."""
        return self.folder is not None and (self.folder / "rounds.json").exists()

    def resume(self) -> None:
        """Read the rounds that the folder keeps.

        Raises:
            FlextopoError: it keeps none, or those of another configuration.
        """
        assert self.folder is not None
        state = read_rounds(self.folder)
        if state["config"] != json.loads(json.dumps(asdict(self.config))):
            raise FlextopoError(f"{self.folder}: of another configuration; legal: the same one")
        self.losses = state["losses"]
        for at in range(len(self.losses)):
            with np.load(self.folder / f"network-{at}.npz", allow_pickle=False) as arrays:
                self.networks.append({key: torch.from_numpy(arrays[key]) for key in arrays.files})
        for at in range(self._first_to_fit(), len(self.losses)):
            self.data[at] = Demonstrations.load(self.folder / f"demonstrations-{at}.npz")

    def _first_to_fit(self) -> int:
        """Return the first round whose data the next round is fitted on."""
        at, first = len(self.losses), self.config.rounds
        if at == len(self.config.plan) or not self.with_data:
            return at
        return 0 if at < first else max(first, at - 1)

    def to_fit(self, new: Demonstrations) -> Demonstrations:
        """Return the data that the next round is fitted on."""
        return concatenate([*(self.data[at] for at in sorted(self.data)), new])
