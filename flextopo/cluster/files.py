"""Users' files: read with one size limit and one-sentence errors, written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from flextopo.cluster.errors import FlextopoError, TopologyError

# The largest real capture known is under 1 MiB; the limit only keeps a wrong file out of memory.
MAX_INPUT_BYTES = 64 * 2**20


def read_input(path: str | Path) -> bytes:
    """Read a whole input file of at most 64 MiB.

    Pipes are read too, so the size is checked while reading and not taken from the file system.

    Args:
        path: the file.

    Returns:
        The bytes of the file, at least one.

    Raises:
        TopologyError: the file is missing, unreadable, empty or larger than 64 MiB.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_INPUT_BYTES + 1)
    except FileNotFoundError:
        raise TopologyError(
            f"{path}: no such file; legal: an existing FlexTopo resource or topology capture"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TopologyError(f"{path}: cannot be read ({reason}); legal: a readable file") from None
    if len(data) > MAX_INPUT_BYTES:
        raise TopologyError(
            f"{path}: larger than {MAX_INPUT_BYTES // 2**20} MiB; legal: up to "
            f"{MAX_INPUT_BYTES // 2**20} MiB"
        )
    if not data.strip():
        raise TopologyError(f"{path}: the file is empty; legal: a FlexTopo resource or a capture")
    return data


def decode_input(data: bytes, source: str) -> str:
    """Decode the bytes of a text file.

    Args:
        data: UTF-8, with or without a byte order mark.
        source: the file's name for messages.

    Returns:
        The text.

    Raises:
        TopologyError: the bytes are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TopologyError(
            f"{source}: byte {error.start} is 0x{data[error.start]:02x}; legal: UTF-8 text"
        ) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file into a folder that is there; a reader or a crash never sees half of it.

    Raises:
        FlextopoError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):  # where the folder is none, neither is the file
            unfinished.unlink()
        raise FlextopoError(
            f"{path}: cannot be written ({error.strerror}); legal: a writable folder"
        ) from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing.

    Raises:
        FlextopoError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlextopoError(
            f"{path}: cannot be made ({error.strerror}); legal: a writable folder"
        ) from None
