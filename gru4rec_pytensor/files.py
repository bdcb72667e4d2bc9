"""Files that are whole or absent, locks that end with their process, checks before any work, and text that may be
compressed."""
from __future__ import annotations

import bz2
import codecs
import contextlib
import errno
import glob
import io
import itertools
import lzma
import os
import re
import secrets
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # not on Windows, where unfinished files of processes that were killed stay
    fcntl = None  # type: ignore[assignment]


def check_writable(path: str | os.PathLike) -> None:
    """Raise OSError or ValueError, before any work, if a file cannot be written to `path`."""
    target = _target(path)
    if target.is_dir():
        raise IsADirectoryError(f'{path}: is a folder; give the name of a file')
    if not target.parent.is_dir():
        raise FileNotFoundError(f'{path}: there is no folder {target.parent}')
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise type(error)(f'{path}: cannot be written: {error.strerror}') from None


def _target(path: str | os.PathLike) -> Path:
    """Return the file behind a symbolic link, which may not exist yet; ValueError for a device or a pipe."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f'{path}: is a device or a pipe, not a file')
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Name `path` in errors that a full disk causes within, which name no file."""
    try:
        yield
    except OSError as error:
        if error.filename or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(f'{path}: cannot be written: {error.strerror or error}') from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Binary file that takes the place of `path` when the block ends, and is gone when the block raises.

    A symbolic link stays, and its target is replaced.  What a killed process has left of the same file is removed.
    """
    path = _target(path)
    remove_leftovers(path.parent, glob.escape(path.name[:100]))
    with naming(path), temporary_file(path) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not fcntl:
                file.close()  # Windows renames no open file
            os.replace(file.name, path)  # while it is open, and so locked
        except BaseException:
            if not fcntl:
                file.close()
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise


def temporary_file(path: Path) -> BinaryIO:
    """Open a new file beside `path`, and lock it, so that `remove_leftovers` knows that it is in use.

    Not mkstemp, whose files are for their owner alone: it gets the mode that the process's umask gives any file.  It
    can be read, too, since `np.save` writes files that can only be written by a way that overlooks a full disk.
    """
    while True:
        file = open(path.with_name(f'.{path.name[:100]}.{secrets.token_hex(8)}.unfinished'), 'x+b')  # noqa: SIM115
        if fcntl:
            with contextlib.suppress(OSError):  # a disk that knows no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):  # not removed as a left-over just before it was locked
            return file
        file.close()


def remove_leftovers(folder: Path, name: str = '*') -> None:
    """Remove what processes that were killed left of files: temporary ones that nobody has locked."""
    for path in folder.glob(f'.{name}.*.unfinished') if fcntl else ():
        with contextlib.suppress(OSError), open(path, 'r+b') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[FileLock | None]:
    """Hold a lock between processes, and between machines that share a disk; None if, without `wait`, another has it.

    It ends with its process, however that ends, since it is a lock of the system and not the presence of the file:
    `flock`, which Linux also offers on NFS (from kernel 2.6.12 on), where it locks on the server.
    """
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield None
            return
        if not path.exists():  # its last holder removed it after it was opened here, which NFS hides from the lock
            lock.release()
    try:
        yield lock
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows removes no open file
                path.unlink()
            lock.release()


@contextlib.contextmanager
def files_together(folder: str | os.PathLike) -> Iterator[str]:
    """Temporary folder whose files move to `folder` when the block ends well, and vanish when it does not.

    It lies inside `folder`, so a place that cannot be written to is noticed before the work is done, and each file
    moves in one step.  A process that is killed between two of these steps leaves whole files, some of the last run.
    A second process waits for the first; what a killed one has left is removed.
    """
    is_new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        with naming(folder), locked(Path(folder) / '.unfinished.lock'):
            for leftover in Path(folder).glob('.unfinished-*'):
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=folder) as unfinished:
                yield unfinished
                # A synthetic log, whose presence marks the other files as synthetic, comes first.
                names = sorted(os.listdir(unfinished), reverse=True)
                targets = [_target(os.path.join(folder, name)) for name in names]  # all, before the first one moves
                for name, target in zip(names, targets):
                    os.replace(os.path.join(unfinished, name), target)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # not empty: somebody else has put something there
                os.rmdir(folder)
        raise


# ---------------------------------------------------------------------------------------------------------------------
# The text in a file
# ---------------------------------------------------------------------------------------------------------------------

STANDARD_INPUT = '-'
BLOCK_BYTES = 1 << 25
EXCEL_LINE = re.compile(rb'\A"?sep=."?(?=[\r\n])')


def name_of(path: str | os.PathLike) -> str:
    """Return the name that messages use for `path`."""
    return 'standard input' if str(path) == STANDARD_INPUT else str(path)


# How a file begins -> what it is, and what decompresses a stream of it; a zip archive is none.
COMPRESSED: dict[bytes, tuple[str, Callable[[], Any] | None]] = {
    b'\x1f\x8b': ('gzip', lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)), b'PK\x03\x04': ('zip', None),
    b'\xfd7zXZ\0': ('xz', lzma.LZMADecompressor), b'BZh': ('bzip2', bz2.BZ2Decompressor)}
NOT_READ = dict.fromkeys([codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE], 'is UTF-16 text; save it as UTF-8') | {
    b'\x28\xb5\x2f\xfd': 'is compressed with zstandard; unpack it first'}


def text_blocks(path: str | os.PathLike, size: int = BLOCK_BYTES) -> Generator[bytes, None, None]:
    """Read the text of a file, decompressed, as UTF-8 without a byte order mark, in blocks of up to `size` bytes or so.

    A file is gzip, zip, bzip2 or xz by its first bytes, whatever its name; ``-`` is standard input.
    Line ends of CR alone become newlines, and Excel's first line ``sep=,`` becomes blank.  Bytes that are no text are
    passed on.  OSError, or ValueError, names the file and what is wrong with it.
    """
    name = name_of(path)
    with contextlib.ExitStack() as stack:
        if str(path) == STANDARD_INPUT:
            file: Any = io.BufferedReader(sys.stdin.buffer)  # type: ignore[type-var]
            stack.callback(file.detach)  # which leaves standard input open
        elif not os.path.exists(path):
            raise FileNotFoundError(f'{path}: no such file')
        elif os.path.isdir(path):
            raise IsADirectoryError(f'{path}: is a folder, not a file')
        elif Path(path).is_char_device() or Path(path).is_block_device():
            raise ValueError(f'{path}: is a device, not a file')
        else:
            file = stack.enter_context(open(path, 'rb'))
        blocks = _unpacked(file, name, size)
        first = next(blocks, b'').removeprefix(codecs.BOM_UTF8)
        if problem := next((problem for start, problem in NOT_READ.items() if first.startswith(start)), None):
            raise ValueError(f'{name}: {problem}')
        only_returns = b'\r' in first[:-1] and b'\n' not in first
        for block in itertools.chain([EXCEL_LINE.sub(b'', first)], blocks):
            yield block.replace(b'\r', b'\n') if only_returns else block


def _unpacked(file: BinaryIO, name: str, size: int) -> Iterator[bytes]:
    """Read blocks of a file, decompressed; ValueError that names it if it is damaged or no single file."""
    head = file.peek(8)  # type: ignore[attr-defined]
    kind, new_stream = next((found for start, found in COMPRESSED.items() if head.startswith(start)), ('', None))
    try:
        if new_stream:
            yield from _streams(file, new_stream)
            return
        if kind == 'zip':
            if not file.seekable():
                raise ValueError('is a zip archive, which cannot be read from a pipe; give its file')
            archive = zipfile.ZipFile(file)
            names = [member.filename for member in archive.infolist() if not member.is_dir()]
            if len(names) != 1:
                raise ValueError(f'is a zip archive of {len(names)} files, {", ".join(names[:4])}'
                                 f'{", ..." * (len(names) > 4)}: unpack it, and give one of them')
            file = archive.open(names[0])  # type: ignore[assignment]
        while block := file.read(size):
            yield block
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from None
    except Exception as error:  # each kind of compression has errors of its own
        if not kind:
            raise
        raise ValueError(f'{name}: is a damaged {kind} file: {error}') from error


def _streams(file: BinaryIO, new_stream: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress all streams of a file, one behind the other.

    The readers of the standard library take damage at the start of a later stream for the end of the file.
    """
    stream = new_stream()
    while packed := file.read(1 << 16):
        while packed:
            if stream.eof:
                packed = packed.lstrip(b'\0')  # there may be zeros between streams
                if not packed:
                    break
                stream = new_stream()
            if text := stream.decompress(packed):
                yield text
            packed = stream.unused_data
    if not stream.eof:
        raise EOFError('it ends in the middle of its data')


def whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut blocks of text behind the last newline in each; the last one gets a newline if it lacks it."""
    rest = b''
    for block in blocks:
        lines, newline, rest = (rest + block).rpartition(b'\n')
        if newline:
            yield lines + newline
    if rest:
        yield rest + b'\n'


@contextlib.contextmanager
def plain_text(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open the text of a file, see `text_blocks`: the file itself where that is plain, else a copy.

    The copy has no name, so that a process that is killed leaves none behind.
    """
    if os.path.isfile(path) and str(path) != STANDARD_INPUT:
        with open(path, 'rb') as file, contextlib.closing(text_blocks(path, 1 << 16)) as blocks:
            if file.read(1 << 16) == next(blocks, b''):
                file.seek(0)
                yield file
                return
    with naming(tempfile.gettempdir()), tempfile.TemporaryFile() as copy:
        for block in text_blocks(path):
            is_binary = not copy.tell() and b'\0' in block[: 1 << 13] and not block.startswith(b'PAR1')
            copy.write(block)
            if is_binary:  # and perhaps without an end
                break
        copy.seek(0)
        yield copy  # type: ignore[misc]
