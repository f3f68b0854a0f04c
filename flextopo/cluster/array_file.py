"""Arrays of files that nobody trusts: numpy's npz without pickles, its headers checked before its data."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt

DAMAGE = (
    *(ValueError, OSError, EOFError, RuntimeError, TypeError, KeyError, OverflowError),
    *(UserWarning, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""What zipfile and numpy raise about damaged files: headers of arrays are Python literals."""


def read_arrays(blob: bytes, most: int) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an npz file.

    Args:
        blob: the file.
        most: bytes that one array may have.

    Raises:
        ValueError: it is none, is damaged, holds anything but arrays of numbers and texts, or an
            array claims more than is there or more than `most`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of headers that need repair
            return _read(blob, most)
    except DAMAGE as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(said or type(error).__name__) from None


def _read(blob: bytes, most: int) -> dict[str, npt.NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(blob)) as file:
        for entry in file.infolist():
            with file.open(entry) as member:
                _check_header(member, entry, most)
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _check_header(member: IO[bytes], entry: zipfile.ZipInfo, most: int) -> None:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"{entry.filename} is of {dtype} and shape {shape}; legal: plain numbers")
    size = math.prod(shape) * dtype.itemsize
    if size > most or size > entry.file_size:
        raise ValueError(
            f"{entry.filename.removesuffix('.npy')} is said to have {size} bytes; legal: what is there, "
            f"up to {most}"
        )
