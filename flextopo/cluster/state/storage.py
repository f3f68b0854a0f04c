"""How the arrays of a named tuple are allocated, copied and stacked, from what the class says of them.

A class declares each array once, with its dtype, its axes and when it changes. Branches, batches and
scratch memory follow from that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.schema import blank

T = TypeVar("T", bound=tuple[Any, ...])


class Kind(Enum):
    """When an array changes, and so who may share it."""

    HARDWARE = "never: all episodes on these servers share it"
    GIVEN = "never within an episode: its branches share it"
    STATE = "with every step: a branch needs a copy"
    SCRATCH = "means nothing between two calls: one for each thread"


class Array(NamedTuple):
    """What a class says of one of its arrays.

    Fields: `dtype`; `axes`, names of sizes; `kind`; `blank`, what plain numbers begin with.
    """

    dtype: Any
    axes: tuple[str, ...]
    kind: Kind = Kind.STATE
    blank: int = 0


_DECLARED: dict[type[Any], dict[str, Array]] = {}


def arrays_of(owner: type[Any]) -> Mapping[str, Array]:
    """Return the arrays that a class declares, by name in their order."""
    if owner not in _DECLARED:
        hints = get_type_hints(owner, include_extras=True)
        _DECLARED[owner] = {name: hint.__metadata__[0] for name, hint in hints.items()}
    return _DECLARED[owner]


def names_of(owner: type[Any], *kinds: Kind) -> Iterator[str]:
    """Yield the names of the arrays of some kinds."""
    return (name for name, array in arrays_of(owner).items() if array.kind in kinds)


@cache
def _nothing(owner: type[Any], name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return an array without elements, which all may share."""
    return np.zeros(shape, arrays_of(owner)[name].dtype)


def allocate_arrays(owner: type[T], sizes: Mapping[str, int], **given: npt.NDArray[Any]) -> T:
    """Return blank arrays of these sizes; those that are given are taken as they are."""
    found = dict(given)
    for name, array in arrays_of(owner).items():
        if name in given:
            continue
        shape = tuple(sizes[axis] for axis in array.axes)
        if 0 in shape:
            found[name] = _nothing(owner, name, shape)
            continue
        found[name] = blank(shape, np.dtype(array.dtype))
        if array.blank:
            found[name].fill(array.blank)
    return owner(*(found[name] for name in arrays_of(owner)))


def stack_arrays(like: T, count: int, sizes: Mapping[str, int]) -> T:
    """Return memory for the arrays of `count` episodes, with a leading axis.

    Args:
        like: one episode; what all episodes share is taken from it.
        count: of episodes.
        sizes: of the axes that may be longer than those of `like`.

    Returns:
        Zeros, so that untouched rows take no memory; scratch memory as `like` has it.
    """
    found = []
    for name, array in arrays_of(type(like)).items():
        one = getattr(like, name)
        if array.kind in (Kind.HARDWARE, Kind.SCRATCH):
            found.append(one)
            continue
        shape = [sizes.get(axis, n) for axis, n in zip(array.axes, one.shape, strict=True)]
        found.append(np.zeros((count, *shape), one.dtype))
    return type(like)(*found)


def scratch_of(arrays: tuple[Any, ...], copies: int = 0) -> tuple[npt.NDArray[Any], ...]:
    """Return the scratch memory of some arrays, or that many others like each, in one array."""
    own = (getattr(arrays, name) for name in names_of(type(arrays), Kind.SCRATCH))
    if not copies:
        return tuple(own)
    return tuple(np.zeros((copies, *array.shape), array.dtype) for array in own)


def stacked(arrays: T) -> list[npt.NDArray[Any]]:
    """Return those of stacked arrays that have a row for each episode."""
    return [getattr(arrays, name) for name in names_of(type(arrays), Kind.GIVEN, Kind.STATE)]


def branch_of(arrays: T, copy: bool) -> T:
    """Return arrays for a branch, which share what never changes within an episode.

    Args:
        arrays: of the episode.
        copy: begin with what they hold; else with memory that means nothing yet.
    """
    found = []
    for name, array in arrays_of(type(arrays)).items():
        one = getattr(arrays, name)
        if array.kind in (Kind.STATE, Kind.SCRATCH):
            one = one.copy() if copy else np.empty_like(one)
        found.append(one)
    return type(arrays)(*found)


def copy_lines(owner: type[Any], used: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a kernel that copies what changes from `source` to `target`.

    Args:
        owner: class of both.
        used: how much of an axis is in use, where that is not all of it.
    """
    for name in names_of(owner, Kind.STATE):
        size = used.get(arrays_of(owner)[name].axes[0], "")
        yield f"target.{name}[:{size}] = source.{name}[:{size}]"
