"""Where networks train: on the processor, or on a GPU with torch's deterministic algorithms."""

from __future__ import annotations

import os

import torch

from flextopo.cluster.errors import FlextopoError


def use_device(name: str) -> torch.device:
    """Return the device, with torch's deterministic algorithms on a GPU: equal seeds, equal bits.

    Raises:
        FlextopoError: torch finds no GPU.
    """
    if name == "cuda":
        if not torch.cuda.is_available():
            raise FlextopoError("device 'cuda': torch finds none; legal here: cpu")
        # Without it cuBLAS may add in another order each time; read when its first product is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return torch.device(name)
