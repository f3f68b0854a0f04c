"""Write files whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from flextopo.cluster.errors import FlextopoError


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
