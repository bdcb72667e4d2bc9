"""The package behind the scripts `gru4rec`, `evaluation`, `baselines`, `preprocess_rsc15` and `run_experiments`.

It is imported before PyTensor, which does not start without a folder that it can write to.
"""
from __future__ import annotations

import os
import signal
import stat
import sys
import tempfile
import warnings
from pathlib import Path

__version__ = '0.1.0'


def is_command() -> bool:
    """Return whether this process was started as one of our commands."""
    scripts = [Path(__file__).resolve().parents[1] / f'{name}.py' for name in ('preprocess_rsc15', 'run_experiments')]
    started = Path(sys.argv[0] if getattr(sys, 'argv', None) else '').resolve()
    return started in scripts or started.stem in ('gru4rec', 'gru4rec-preprocess', 'gru4rec-experiments')


def find_cache_folders() -> None:
    """Let PyTensor and Numba write what they compile: to a temporary folder, with a warning, where no other is left.

    A folder that an environment variable or PyTensor's file of settings names is left alone.
    """
    lacking = []
    if 'pytensor' in sys.modules:
        folder = sys.modules['pytensor'].config.base_compiledir
        if 'pytensor.link.numba.cache' not in sys.modules and not is_writable(folder):
            raise OSError(f'PyTensor, which was imported before, cannot write to {folder}: import gru4rec first, or '
                          'set PYTENSOR_FLAGS=base_compiledir=FOLDER')
    elif 'compiledir' not in pytensor_settings() and not is_writable('~/.pytensor'):
        lacking.append('PYTENSOR_FLAGS=base_compiledir=')
    if 'NUMBA_CACHE_DIR' not in os.environ:
        here = Path(__file__).parent
        beside_source = not sys.dont_write_bytecode and all(
            is_writable(folder / '__pycache__') for folder in (here, here.parent))
        of_user = os.path.expanduser(os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'numba'))
        if not beside_source and not is_writable(of_user):
            lacking.append('NUMBA_CACHE_DIR=')
        elif sys.dont_write_bytecode:  # Numba would write beside the source nevertheless
            set_variable('NUMBA_CACHE_DIR=', of_user)
    if not lacking:
        return
    folder = temporary_folder()
    warnings.warn(f'no folder of the user can be written to: compiled code is kept in {folder}, and is compiled again '
                  f'when that is gone; to keep it set {" and ".join(name + "FOLDER" for name in lacking)}',
                  stacklevel=3)
    for name in lacking:
        set_variable(name, folder)


def set_variable(name: str, folder: str) -> None:
    """Name a folder in the environment, so that child processes have the same one and do not warn again."""
    variable, _, flag = name.partition('=')
    os.environ[variable] = ','.join(filter(None, [os.environ.get(variable), f'{flag}{folder}']))
    if variable == 'NUMBA_CACHE_DIR' and 'numba' in sys.modules:  # which has read its variables already
        sys.modules['numba'].config.CACHE_DIR = folder


def pytensor_settings() -> str:
    """Return the settings in PyTensor's environment variable and in its files."""
    files = os.environ.get('PYTENSORRC', '~/.pytensorrc').split(os.pathsep)
    paths = [Path(os.path.expanduser(file)) for file in files]
    texts = [path.read_text(encoding='utf-8', errors='replace') for path in paths if path.is_file()]
    return ','.join([os.environ.get('PYTENSOR_FLAGS', ''), *texts])


def is_writable(folder: str | Path) -> bool:
    """Return whether files can be made in a folder, which is made if it is missing."""
    path = Path(os.path.expanduser(folder))
    if '~' in path.parts:  # the user has no home
        return False
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return False
    return True


def temporary_folder() -> str:
    """Return a folder that only this user can write to, the same each time where possible; OSError if there is none."""
    try:
        folder = Path(tempfile.gettempdir(), f'gru4rec-{os.getuid() if hasattr(os, "getuid") else "cache"}')
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or hasattr(os, 'getuid') and (
                found.st_uid != os.getuid() or found.st_mode & 0o022):
            return tempfile.mkdtemp(prefix='gru4rec-')  # compiled code is run: it must not come from others
        return str(folder)
    except OSError as error:
        raise OSError('no folder, not even a temporary one, can be written to, for compiled code: set '
                      'PYTENSOR_FLAGS=base_compiledir=FOLDER and NUMBA_CACHE_DIR=FOLDER') from error


if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once while it imports; `terminal.Parser` ends that
find_cache_folders()
