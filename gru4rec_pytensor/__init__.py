"""What stands behind the scripts `gru4rec`, `evaluation`, `baselines`, `preprocess_rsc15` and `run_experiments`.

It is to be imported before PyTensor, which does not start without a folder that it can write to.
"""
from __future__ import annotations

import os
import stat
import sys
import tempfile
import warnings
from pathlib import Path

__version__ = '0.1.0'


def find_cache_folders() -> None:
    """See to it that PyTensor and Numba can write what they compile; in a temporary folder, if need be, and warn.

    Where they are told a folder, by an environment variable or PyTensor's file of settings, they are left alone.
    """
    lacking = []
    if 'pytensor' in sys.modules:
        folder = sys.modules['pytensor'].config.base_compiledir
        if 'pytensor.link.numba.cache' not in sys.modules and not is_writable(folder):
            raise OSError(f'PyTensor, which was imported before, cannot write to {folder}: import gru4rec first, or '
                          'set PYTENSOR_FLAGS=base_compiledir=FOLDER')
    elif 'compiledir' not in pytensor_settings() and not is_writable('~/.pytensor'):
        lacking.append('PYTENSOR_FLAGS=base_compiledir=')
    here = Path(__file__).parent
    in_tree = is_writable(here / '__pycache__') and is_writable(here.parent / '__pycache__')
    if 'NUMBA_CACHE_DIR' not in os.environ and not in_tree and not is_writable(
            Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'numba')):
        lacking.append('NUMBA_CACHE_DIR=')
    if not lacking:
        return
    folder = temporary_folder()
    warnings.warn(f'no folder of the user can be written to: code that is compiled goes to {folder}, and is compiled '
                  f'again when that is gone; to keep it set {" and ".join(name + "FOLDER" for name in lacking)}',
                  stacklevel=3)
    for name in lacking:  # in the environment, so that child processes have the same folder, and do not warn again
        variable, _, flag = name.partition('=')
        os.environ[variable] = ','.join(filter(None, [os.environ.get(variable), f'{flag}{folder}']))
        if variable == 'NUMBA_CACHE_DIR' and 'numba' in sys.modules:  # which has read its variables already
            sys.modules['numba'].config.CACHE_DIR = folder


def pytensor_settings() -> str:
    """All that PyTensor is told, by its environment variable and its files of settings."""
    files = os.environ.get('PYTENSORRC', '~/.pytensorrc').split(os.pathsep)
    texts = [path.read_text(encoding='utf-8', errors='replace') for path in map(expanded, files) if path.is_file()]
    return ','.join([os.environ.get('PYTENSOR_FLAGS', ''), *texts])


def expanded(path: str | Path) -> Path:
    """With the user's home for ``~``; as it is where the user has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_writable(folder: str | Path) -> bool:
    """Whether files can be made in a folder, which is made if need be."""
    path = expanded(folder)
    if '~' in path.parts:
        return False
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return False
    return True


def temporary_folder() -> str:
    """A folder that nobody but this user can write to, the same each time where that can be had; or else an OSError."""
    try:
        folder = Path(tempfile.gettempdir(), f'gru4rec-{os.getuid() if hasattr(os, "getuid") else "cache"}')
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or hasattr(os, 'getuid') and (
                found.st_uid != os.getuid() or found.st_mode & 0o022):
            return tempfile.mkdtemp(prefix='gru4rec-')  # what is compiled is run: not from a folder of others
        return str(folder)
    except OSError as error:
        raise OSError('no folder, not even a temporary one, can be written to, for code that is compiled: set '
                      'PYTENSOR_FLAGS=base_compiledir=FOLDER and NUMBA_CACHE_DIR=FOLDER') from error


find_cache_folders()
