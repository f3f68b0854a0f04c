"""Trace files as text: plain or gzip, limited in size, with errors that name the file."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from flextopo.cluster.errors import WorkloadError

GZIP_MAGIC = b"\x1f\x8b"
TAR_MAGIC = slice(257, 262), b"ustar"

MAX_MIB, MAX_ROWS, MAX_CELL = 128, 2_000_000, 256
"""Size of a trace when it is unpacked, its rows, and characters of a cell: a small file may ask for
all memory there is. Of the public files read here only Azure's weeks of 2024 are larger."""


def read_text(path: Path) -> str:
    """Return the text of a trace.

    Args:
        path: of the file; gzip is known by its first bytes, not by the name.

    Raises:
        WorkloadError: the file is missing, unreadable, empty, an archive, too large, cut off or not
            UTF-8.
    """
    data = _read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise WorkloadError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; legal: UTF-8 text"
        ) from None


def stem(path: Path) -> str:
    """Return the name of a file without its endings: what a trace without names is called."""
    return path.name.split(".")[0] or path.name


def _read_bytes(path: Path) -> bytes:
    most = MAX_MIB * 2**20
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise WorkloadError(f"{path}: no such file; legal: a trace as csv or csv.gz") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorkloadError(f"{path}: {reason}; legal: a readable csv or csv.gz file") from None
    if data.startswith(GZIP_MAGIC):
        data = _unpack(path, data, most)
    if len(data) > most:
        raise WorkloadError(
            f"{path}: more than {MAX_MIB} MiB of text; legal: up to {MAX_MIB}, larger ones in parts"
        )
    if not data.strip():
        raise WorkloadError(f"{path}: empty file; legal: a header line and one row at least")
    where, magic = TAR_MAGIC
    if data[where] == magic:
        raise WorkloadError(f"{path}: a tar archive; legal: the file in it, after `tar -xzf`")
    return data


def _unpack(path: Path, data: bytes, most: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            return packed.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WorkloadError(
            f"{path}: damaged or cut-off gzip file ({error}); legal: a whole one"
        ) from None
