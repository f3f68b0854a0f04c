"""Rows of the cluster's arrays as bytes: a hundred joined take microseconds, arrays a hundred times that."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
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
        fixed: value of every other field, and why it is that one.

    Raises:
        ValueError: a field is in neither or in both, or is none of the array's.
    """

    def __init__(
        self, dtype: np.dtype[Any], given: tuple[str, ...], fixed: Mapping[str, tuple[int, str]]
    ) -> None:
        names = dtype.names or ()
        if sorted((*fixed, *given)) != sorted(names):
            odd = sorted({*fixed, *given} ^ {*names} | {*fixed} & {*given})
            raise ValueError(f"fields {', '.join(odd)}; legal: each given, or fixed with a reason")
        places = {name: i for i, name in enumerate((*fixed, *given))}
        self._fixed = tuple(value for value, _ in fixed.values())
        self._in_order = itemgetter(*(places[name] for name in names))
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
        "batch_class",
        "online",
        "requirement",
        "preemptible",
    ),
    {
        "arrive_s": (0, "read where time goes on"),
        "depart_s": (2**61, "no cluster tells: never"),
        "duration_s": (2**40, "no cluster tells: longer than anything"),
        "group": (-1, "a view numbers the PodGroups it meets"),
        "next_member": (0, "a view makes the rings"),
    },
)
pack_live = RowPacker(
    LIVE_DTYPE,
    ("since_s", "queued_s", "gpu_mask", "status"),
    {
        "done_s": (0, "no cluster tells what earlier runs saved"),
        "evictions": (0, "no cluster tells: an evicted pod comes back as another one"),
        "overhead_s": (0, "no cluster tells what a restart takes"),
        "node": (-1, "a view numbers its nodes"),
        "level": (0, "read where time goes on"),
        "deficit": (0, "read where time goes on"),
        "next_s": (0, "read where time goes on"),
        "wait_s": (0, "read where time goes on"),
        "heap_at": (-1, "read where time goes on"),
        "tried": (-1, "read where time goes on"),
        "disrupted": (0, "read where time goes on; budgets say what they still allow"),
        "preemptor": (0, "read where time goes on"),
        "by_preemption": (0, "read where time goes on"),
    },
)
pack_node = RowPacker(NODE_DTYPE, ("gpu_free", "cores_free", "model", "num_pods"), {})


def joined(pieces: Iterable[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return rows, each in bytes or an array of plain numbers, as one array that may be written to."""
    return np.frombuffer(bytearray().join(pieces), dtype)
