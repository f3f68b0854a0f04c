"""Rows of the cluster's arrays as bytes: a hundred joined take microseconds, arrays a hundred times that."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.schema import LIVE_DTYPE, NODE_DTYPE, POD_DTYPE


class RowPacker:
    """Packs one row of an aligned record dtype.

    Args:
        dtype: of the array; native C layout, whole numbers only.
        given: fields whose values each call gives, in that order.
        fixed: values of other fields; what is in neither is 0.
    """

    def __init__(self, dtype: np.dtype[Any], given: tuple[str, ...], **fixed: int) -> None:
        names = dtype.names or ()
        places = {name: i for i, name in enumerate((*fixed, *given), 1)}
        self._fixed = (0, *fixed.values())
        self._in_order = itemgetter(*(places.get(name, 0) for name in names))
        layout = "".join(dtype[name].char for name in names)
        self._pack = struct.Struct(f"{layout}0q").pack

    def __call__(self, *values: int) -> bytes:
        """Return the row of these values."""
        return self._pack(*self._in_order(self._fixed + values))


pack_pod = RowPacker(
    POD_DTYPE,
    (
        "start_s",
        "gpus",
        "cores",
        "priority",
        "checkpoint_s",
        "protection_s",
        "pdb",
        "online",
        "requirement",
        "preemptible",
    ),
    depart_s=2**61,
    duration_s=2**40,
    group=-1,
)
pack_live = RowPacker(
    LIVE_DTYPE, ("since_s", "queued_s", "gpu_mask", "status"), node=-1, heap_at=-1, tried=-1
)
pack_node = RowPacker(NODE_DTYPE, ("gpu_free", "cores_free", "model", "num_pods"))


def joined(pieces: Iterable[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return rows, each in bytes or an array of plain numbers, as one array that may be written to."""
    return np.frombuffer(bytearray().join(pieces), dtype)
