"""Where the machine code of kernels is kept between runs; like `compiler.py`, made of numba's internals."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba.core import caching

from flextopo.cluster.jit import shipped
from flextopo.cluster.jit.plain import warn_once
from flextopo.cluster.jit.sources import SOURCES

KEEP_S = 7 * 86400
"""Age at which the compiled kernels of another version are deleted; younger ones may be in use."""


class _OfThisVersion:
    """Mixin for numba's cache locators: a folder for each version of the sources."""

    def get_cache_path(self) -> str:
        return str(Path(super().get_cache_path()) / f"flextopo-{SOURCES}")  # type: ignore[misc]

    def ensure_cache_path(self) -> None:
        """Create the folder; when it is new, those go that nobody has written to for a week."""
        folder = Path(self.get_cache_path())
        if not folder.exists():
            for old in folder.parent.glob("flextopo-*"):
                with suppress(FileNotFoundError):  # somebody else was faster
                    if time.time() - old.stat().st_mtime > KEEP_S:
                        shutil.rmtree(old, ignore_errors=True)
        super().ensure_cache_path()  # type: ignore[misc]


class _Given(_OfThisVersion, caching.UserProvidedCacheLocator):
    """`NUMBA_CACHE_DIR`, which an image fills when it is built and may then only be read."""

    def ensure_cache_path(self) -> None:
        """Create the folder, or be content with one that takes no files."""
        try:
            super().ensure_cache_path()
        except OSError:
            if not Path(self.get_cache_path()).is_dir():
                raise


class _BesideTheSource(_OfThisVersion, caching.InTreeCacheLocator):
    pass


class _OfTheUser(_OfThisVersion, caching.UserWideCacheLocator):
    pass


class _CacheFiles(caching.CompileResultCacheImpl):
    _locator_classes = [_Given, _BesideTheSource, _OfTheUser]  # noqa: RUF012


class KernelCache(caching.FunctionCache):
    """Numba's own cache of a function, in those folders."""

    _impl_class = _CacheFiles

    def _load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a kernel from the cache, or from what came with the wheel; None = compile it."""
        found = super()._load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        if found is not None:
            return found
        try:
            return self._load_shipped(sig, target_context)
        except Exception as error:  # noqa: BLE001  a damaged file may raise anything
            warn_once(
                f"machine code that came with the package cannot be read ({type(error).__name__}: {error}), so "
                "that it is compiled anew; installing the package again may mend that"
            )
            return None

    def _load_shipped(self, sig: Any, target_context: Any) -> Any:
        features = target_context.codegen().magic_tuple()[2]
        made_by = shipped.made_by(features, shipped.FOLDER)
        if made_by is None:
            return None
        source = Path(self._py_func.__code__.co_filename)
        file = shipped.file_of(source, self._impl.filename_base, shipped.FOLDER)
        data = file.load(self._index_key(sig, made_by))  # type: ignore[no-untyped-call]
        return None if data is None else self._impl.rebuild(target_context, data)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, where the folder takes files."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except OSError:
            if os.access(self.cache_path, os.W_OK):
                raise
