"""Files that are whole or not there, and checks before work is lost."""
from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def check_writable(path: str | os.PathLike) -> None:
    """OSError, before any work, if a file cannot be written to `path`."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f'{path}: is a folder; give the name of a file')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'{path}: there is no folder {path.parent}')
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(f'{path}: cannot be written: {error.strerror}') from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends, and is gone when the block raises."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~current_umask())  # mkstemp's own mode is for the owner alone
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def current_umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextlib.contextmanager
def files_together(folder: str | os.PathLike) -> Iterator[str]:
    """A folder to write files into that appear in `folder` when the block ends well, and vanish when it does not.

    It lies inside `folder`, so each file moves in one step, and a place that cannot be written to is noticed before
    the work is done.
    """
    is_new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=folder) as unfinished:
            yield unfinished
            # A synthetic log, whose presence marks the other files as synthetic, comes first.
            for name in sorted(os.listdir(unfinished), reverse=True):
                os.replace(os.path.join(unfinished, name), os.path.join(folder, name))
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # not empty: somebody else has put something there
                os.rmdir(folder)
        raise
