"""Files that are whole or not there, locks that end with their process, checks before work is lost, and the text in a
file that may be compressed."""
from __future__ import annotations

import bz2
import codecs
import contextlib
import glob
import gzip
import importlib
import itertools
import lzma
import os
import secrets
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # not on Windows, where unfinished files of processes that were killed stay
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
    remove_leftovers(path.parent, glob.escape(path.name[:100]))
    with temporary_file(path) as file:
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
    """A new file beside `path`, which is locked, so that `remove_leftovers` knows that it is in use.

    Not mkstemp, whose files are for their owner alone: it gets the mode that the process's umask gives any file.
    """
    while True:
        file = open(path.with_name(f'.{path.name[:100]}.{secrets.token_hex(8)}.unfinished'), 'xb')  # noqa: SIM115
        with contextlib.suppress(OSError):  # a disk that knows no locks
            _lock(file.fileno(), wait=True)
        if _is_file(file.fileno(), file.name):  # not removed as a left-over just before it was locked
            return file
        file.close()


def remove_leftovers(folder: Path, name: str = '*') -> None:
    """Remove what processes that were killed left of files: temporary ones that nobody has locked."""
    for path in folder.glob(f'.{name}.*.unfinished'):
        with contextlib.suppress(OSError), open(path, 'r+b') as file:
            if fcntl and _lock(file.fileno(), wait=False):
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
        if not path.exists():  # its holder removed it after it was opened here
            lock.release()
    try:
        yield lock
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows removes no open file
                path.unlink()
            lock.release()


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


@contextlib.contextmanager
def files_together(folder: str | os.PathLike) -> Iterator[str]:
    """A folder to write files into that move to `folder` when the block ends well, and vanish when it does not.

    It lies inside `folder`, so each file moves in one step, and a place that cannot be written to is noticed before
    the work is done.  The steps follow one another at once: a process that is killed between two of them leaves whole
    files, of which some are of the last run.  A second process waits for the first; what one that was killed has left
    is removed.
    """
    is_new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        with locked(Path(folder) / '.unfinished.lock'):
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


# ---------------------------------------------------------------------------------------------------------------------
# The text in a file
# ---------------------------------------------------------------------------------------------------------------------

STANDARD_INPUT = '-'
BLOCK_BYTES = 1 << 25
BYTE_ORDER_MARKS = {codecs.BOM_UTF32_LE: 'utf-32', codecs.BOM_UTF32_BE: 'utf-32', codecs.BOM_UTF16_LE: 'utf-16',
                    codecs.BOM_UTF16_BE: 'utf-16'}  # that of UTF-32 begins like that of UTF-16


def _only_member(file: BinaryIO) -> BinaryIO:
    """The one file in a zip archive."""
    archive = zipfile.ZipFile(file)
    names = [member.filename for member in archive.infolist() if not member.is_dir()]
    if len(names) != 1:
        raise ValueError(f'is a zip archive of {len(names)} files, {", ".join(names[:4])}{", ..." * (len(names) > 4)}: '
                         'unpack it, and give one of them')
    return archive.open(names[0])  # type: ignore[return-value]


def _zstandard(file: BinaryIO) -> BinaryIO:
    try:  # optional, as pyarrow is
        return importlib.import_module('zstandard').ZstdDecompressor().stream_reader(file, read_across_frames=True)
    except ImportError:
        raise ValueError('is compressed with zstandard, which needs a package: pip install zstandard') from None


# How a file begins -> what it is, and what reads it; None for what has to be unpacked first.
COMPRESSED: dict[bytes, tuple[str, Callable[[BinaryIO], Any] | None]] = {
    b'\x1f\x8b': ('gzip', lambda file: gzip.GzipFile(fileobj=file)), b'PK\x03\x04': ('zip', _only_member),
    b'\xfd7zXZ\0': ('xz', lzma.LZMAFile), b'BZh': ('bzip2', bz2.BZ2File),
    b'\x28\xb5\x2f\xfd': ('zstandard', _zstandard),
    b"7z\xbc\xaf'\x1c": ('7-Zip', None), b'Rar!': ('RAR', None)}


def check_readable(path: str | os.PathLike) -> None:
    """OSError unless there is something to read: a file, a pipe, or standard input."""
    if str(path) != STANDARD_INPUT and not os.path.exists(path):
        raise FileNotFoundError(f'{path}: no such file')
    if os.path.isdir(path):
        raise IsADirectoryError(f'{path}: is a folder, not a file')


def name_of(path: str | os.PathLike) -> str:
    """What messages call it."""
    return 'standard input' if str(path) == STANDARD_INPUT else str(path)


@contextlib.contextmanager
def _whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file, opened; what can be read but once, a pipe or standard input, as a copy."""
    if os.path.isfile(path) and str(path) != STANDARD_INPUT:
        with open(path, 'rb') as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        if str(path) == STANDARD_INPUT:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        else:
            with open(path, 'rb') as file:
                shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy  # type: ignore[misc]


def _encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 by the byte order mark, or by the zeros of Latin letters at the start; None for other text."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    for first, encoding in ((1, 'utf-16-le'), (0, 'utf-16-be')):
        if len(head) >= 16 and not any(head[first:16:2]) and all(head[1 - first : 16 : 2]):
            return encoding
    return None


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b'ustar'


def text_blocks(path: str | os.PathLike, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The text of a file, decompressed, as UTF-8 without a byte order mark, in blocks of about `size` bytes.

    By its first bytes, whatever its name, a file is gzip, zip, bzip2, xz or zstandard, UTF-16 or UTF-32; ``-`` is
    standard input.  Bytes that are no text are passed on.  Raises OSError, or ValueError that names the file and what
    is wrong with it.
    """
    check_readable(path)
    with _whole(path) as file:
        yield from _as_utf8(_unpacked(file, name_of(path), size), name_of(path))


def _unpacked(file: BinaryIO, name: str, size: int) -> Iterator[bytes]:
    """Blocks of a file, decompressed; ValueError that names it if it is damaged."""
    head = file.read(8)
    file.seek(0)
    kind, reader = next((found for start, found in COMPRESSED.items() if head.startswith(start)),
                        ('', lambda file: file))
    if reader is None:
        raise ValueError(f'{name}: is a {kind} archive; unpack it first')
    try:
        unpacked = reader(file)
        while block := unpacked.read(size):
            yield block
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from None
    except Exception as error:  # each kind of compression has errors of its own
        if not kind:
            raise
        raise ValueError(f'{name}: is a damaged {kind} file: {error}') from error


def _as_utf8(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The same text in UTF-8, without a byte order mark."""
    first = next(blocks, b'')
    if _is_tar(first):
        raise ValueError(f'{name}: is a tar archive; unpack it first')
    encoding = _encoding(first[:4096])
    if not encoding:
        yield first.removeprefix(codecs.BOM_UTF8)
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in itertools.chain([first], blocks):
            yield decoder.decode(block).encode()
        decoder.decode(b'', final=True)
    except UnicodeDecodeError as error:
        raise ValueError(f'{name}: is damaged {encoding.upper()} text: {error}') from None


def whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Blocks of text, cut behind the last newline in each; the last one gets a newline if it lacks it."""
    rest = b''
    for block in blocks:
        text = rest + block
        end = text.rfind(b'\n') + 1
        if end:
            yield text[:end]
        rest = text[end:]
    if rest:
        yield rest + b'\n'


@contextlib.contextmanager
def plain_text(path: str | os.PathLike) -> Iterator[Path]:
    """Path of a file with the text of another one, see `text_blocks`: itself where that is plain, else a copy."""
    check_readable(path)
    if os.path.isfile(path) and str(path) != STANDARD_INPUT:
        with open(path, 'rb') as file:
            head = file.read(4096)
        if not head.startswith((codecs.BOM_UTF8, *COMPRESSED)) and not _encoding(head) and not _is_tar(head):
            yield Path(path)
            return
    with tempfile.NamedTemporaryFile(prefix='gru4rec-') as copy:
        for block in text_blocks(path):
            copy.write(block)
        copy.flush()
        yield Path(copy.name)
