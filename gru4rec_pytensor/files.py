"""Files that are whole or not there, locks that end with their process, and checks before work is lost."""
from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked: one process at a time has to do
    fcntl = None  # type: ignore[assignment]


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
    """A binary file that takes the place of `path` when the block ends, and is gone when the block raises.

    What a process that was killed has left of the same file is removed.
    """
    remove_leftovers(path.parent, glob.escape(path.name))
    handle, temporary = temporary_file(path)
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~current_umask())  # mkstemp's own mode is for the owner alone
            os.replace(temporary, path)  # while it is open, and so locked
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def temporary_file(path: Path) -> tuple[int, str]:
    """Handle and name of a new file beside `path`, which is locked, so that `remove_leftovers` knows it is in use."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.unfinished')
        with contextlib.suppress(OSError):  # a disk that knows no locks
            _lock(handle, wait=True)
        if _is_file(handle, name):  # not removed as a left-over just before it was locked
            return handle, name
        os.close(handle)


def remove_leftovers(folder: Path, name: str = '*') -> None:
    """Remove what processes that were killed left of files: temporary ones that nobody has locked."""
    for path in folder.glob(f'.{name}.*.unfinished'):
        with contextlib.suppress(OSError), open(path, 'r+b') as file:
            if fcntl and _lock(file.fileno(), wait=False):
                path.unlink()


class FileLock:
    """A lock between processes, and between machines that share a disk: who holds it has `path` locked.

    It ends with its process, however that ends, since the system holds it and not the file's presence.  `flock` is what
    Linux also offers on NFS (from kernel 2.6.12 on), where it locks on the server.

    Attributes
    ----------
    last_holder : machine and process that had the lock before and was killed; empty if there was none
    """

    def __init__(self, path: Path) -> None:
        self.last_holder = ''
        self._path = path
        self._file: TextIO | None = None

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; without `wait`, False if another process has it."""
        while self._file is None:
            file = open(self._path, 'a+')  # noqa: SIM115 (it stays open as long as the lock is held)
            if not _lock(file.fileno(), wait):
                file.close()
                return False
            if not _is_file(file.fileno(), self._path):  # its holder has removed it meanwhile
                file.close()
                continue
            file.seek(0)
            self.last_holder = file.read().strip()
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
            file.flush()
            self._file = file
        return True

    def release(self) -> None:
        """Let others in; nothing happens if it is not held."""
        if self._file:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._file.close()
            self._file = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_error: Any) -> None:
        self.release()


def _lock(handle: int, wait: bool) -> bool:
    """Lock an open file for this process; whether that could be done.  OSError where the disk knows no locks."""
    if fcntl:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def _is_file(handle: int, path: str | os.PathLike) -> bool:
    """Whether `path` is still the name of an open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def current_umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextlib.contextmanager
def files_together(folder: str | os.PathLike) -> Iterator[str]:
    """A folder to write files into that appear in `folder` when the block ends well, and vanish when it does not.

    It lies inside `folder`, so each file moves in one step, and a place that cannot be written to is noticed before
    the work is done.  A second process waits for the first; what one that was killed has left is removed.
    """
    is_new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        with FileLock(Path(folder) / '.unfinished.lock'):
            for leftover in Path(folder).glob('.unfinished-*'):
                shutil.rmtree(leftover, ignore_errors=True)
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
