"""Numba's cache of compiled code on disk: a damaged file is compiled again, and one that cannot be written is named.

Numba would end in an EOFError or UnpicklingError until the file is removed by hand, or run damaged code: a checksum
stands behind what it writes.
"""
from __future__ import annotations

import logging
import pickle
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

logger = logging.getLogger('gru4rec')
MARK = b'sha256 of what stands before: '  # where pickle does not look; files that others wrote lack it


class CodeFiles(caching.IndexDataCacheFile):
    """The files of a function: an index, and machine code for each signature."""

    def _dump(self, obj: Any) -> bytes:
        content: bytes = super()._dump(obj)
        return content + MARK + sha256(content).digest()

    def _load_index(self) -> dict:
        try:
            overloads: dict = super()._load_index()
            if overloads:
                self._check(self._index_path)
            return overloads
        except OSError:
            raise
        except Exception:  # damaged bytes can raise anything
            logger.warning('the index of compiled code %s is damaged: compiling again', self._index_path)
            return {}

    def _load_data(self, name: str) -> Any:
        try:
            self._check(self._data_path(name))
            return super()._load_data(name)
        except OSError:
            raise
        except Exception as error:
            logger.warning('the compiled code %s is damaged: compiling again', self._data_path(name))
            raise FileNotFoundError(name) from error  # after which Numba compiles

    def _check(self, path: str) -> None:
        """Raise ValueError if a checksum is not that of what is before it, in an index without the version."""
        content, mark, checksum = Path(path).read_bytes().rpartition(MARK)
        if mark and checksum != sha256(content.removeprefix(pickle.dumps(numba.__version__, protocol=-1))).digest():
            raise ValueError(path)

    def save(self, key: Any, data: Any) -> None:
        try:
            super().save(key, data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._index_path) from error


def guard_code_on_disk() -> None:
    """Use `CodeFiles` for the functions that are made from now on."""
    caching.IndexDataCacheFile = CodeFiles  # type: ignore[misc]
