"""Rows of the cluster's arrays as bytes: a hundred joined take microseconds, arrays a hundred times that."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from operator import attrgetter, itemgetter
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.schema import (
    LIVE_FIELDS,
    NODE_DTYPE,
    NODE_FIELDS,
    POD_FIELDS,
    Field,
    record_dtype,
)
from flextopo.policies.serving.records import PodRecord


class RowPacker:
    """Packs one row of an aligned record: every field is given, read off a record, or a constant.

    None but zeros has a shape.

    Args:
        fields: of the record, from the table of the state; where it says what a snapshot holds, that
            is packed.
        given: fields whose values each call gives, in that order.
        record: class of what a call gives first, which has the other fields; None = nothing.

    Raises:
        ValueError: a field is in several or in none of these, or has a shape and is not zero.
    """

    def __init__(
        self, fields: Mapping[str, Field], given: tuple[str, ...], record: type[Any] | None = None
    ) -> None:
        fixed = {name: field.snapshot.value for name, field in fields.items() if field.snapshot}
        zeros = {name for name, field in fields.items() if field.shape and fixed.get(name) == 0}
        read = [name for name in fields if name not in fixed and name not in given]
        odd = {name for name, field in fields.items() if field.shape} - zeros
        odd |= {*given} - {*fields} | {*given} & {*fixed}
        odd |= {*read} - {*(get_type_hints(record) if record else ())}
        if odd:
            raise ValueError(
                f"fields {', '.join(sorted(odd))}; legal: each given, of the record, or what the "
                "table says of snapshots, with a shape zero"
            )
        self._read = attrgetter(*read) if read else None
        fixed = {name: value for name, value in fixed.items() if name not in zeros}
        self._fixed = tuple(fixed.values())
        places = {name: i for i, name in enumerate((*fixed, *read, *given))}
        self._in_order = itemgetter(*(places[name] for name in fields if name not in zeros))
        dtype = record_dtype(fields)
        layout = "".join(
            f"{dtype[name].itemsize}x" if name in zeros else dtype[name].char for name in fields
        )
        self._pack = struct.Struct(f"{layout}0q").pack

    def __call__(self, *values: Any) -> bytes:
        """Return the row of these values, behind the record if there is one."""
        row = self._fixed
        if self._read is not None:
            row, values = row + self._read(values[0]), values[1:]
        return self._pack(*self._in_order(row + values))


pack_pod = RowPacker(POD_FIELDS, ("cores", "pdb", "online", "preemptible"), PodRecord)
pack_live = RowPacker(LIVE_FIELDS, ("since_s", "queued_s", "gpu_mask", "status", "next_s"))
pack_node = RowPacker(NODE_FIELDS, ("gpu_free", "cores_free", "model", "num_pods"))


WHOLE_NODE = np.dtype((np.void, NODE_DTYPE.itemsize))
"""A row of NODE_DTYPE in one piece: numpy copies records field by field, which takes ten times as long."""


def joined(pieces: Iterable[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return rows, each in bytes or an array of plain numbers, as one array that may be written to."""
    return np.frombuffer(bytearray().join(pieces), dtype)
