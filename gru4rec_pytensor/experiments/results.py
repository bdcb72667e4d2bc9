"""Results on disk: a file for each, under a key that holds what it depends on, for any number of processes at once."""
from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.files import atomic_file, check_writable, locked, remove_leftovers

FORMAT = 1  # of the files; raised when what they hold changes
KINDS = ('cells', 'searches', 'found', 'claims', 'parameters', 'rows', 'comparisons', 'commands')


class Results:
    """A folder of finished cells and searches, and of the claims, parameters and commands that were asked for.

    Each is a file KIND/TITLE-DIGITS.json, which is whole or not there, and the digits are those of its key.  The ranks
    of a cell's predictions, from which its numbers are, lie beside it as a float32 array, TITLE-DIGITS-THEIRS.npy.  So
    processes that share the folder, on a shared disk too, write without regard to one another; a process that trains a
    cell holds it meanwhile.  Checkpoints lie beside them, in a folder of their own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[Path, tuple[tuple, dict]] = {}  # each file's state, by which a change shows, and its result

    def make_folders(self) -> None:
        """Make the folders; OSError or ValueError if that fails, or if results lie there that cannot be read.

        Locks and checkpoints of finished cells, which processes that were killed have left, are removed.
        """
        if self.folder.is_file():
            raise ValueError(f'--out {self.folder}: is a file; give the name of a folder')
        earlier = self.folder / 'results.json'
        if earlier.exists():
            raise ValueError(f'{earlier}: not of this version, which keeps each result in a file of its own, in '
                             f'{self.folder / "cells"}; move it away, or choose another --out')
        for name in (*KINDS, 'checkpoints'):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder / name)
        check_writable(self.folder / 'tables.md')
        for kind in KINDS:
            self.load(kind)
        for path in (self.folder / 'cells').glob('*.lock'):
            if path.with_suffix('.json').exists():
                with locked(path, wait=False):  # whose end removes it
                    pass
        for path in (self.folder / 'checkpoints').iterdir():
            finished = self.folder / 'cells' / f'{path.name}.json'
            with contextlib.suppress(FileNotFoundError):  # which another command may remove, too
                if finished.stat().st_mtime > path.stat().st_mtime:  # or else the cell is being run again
                    path.unlink()

    def path(self, kind: str, key: dict) -> Path:
        """Return the file of a key."""
        words = [str(key[name]) for name in ('model', 'loss', 'units', 'seed')
                 if 'loss' in key and key.get(name) is not None]
        title = re.sub(r'[^\w.-]', '_', '-'.join(words) or kind)
        return self.folder / kind / f'{title}-{digits_of(key)}.json'

    def has_cell(self, key: dict, wanted: Sequence[str] = ()) -> bool:
        """Return whether a cell is finished, with all that is `wanted` of a stable network's result."""
        path = self.path('cells', key)
        if not wanted or not path.exists():
            return path.exists()
        result = self.load_file(path)
        return result['recall@20'] is None or all(result.get(name) is not None for name in wanted)

    def save(self, kind: str, key: dict, result: dict, ranks: np.ndarray | None = None) -> None:
        """Keep a result under a key, and the ranks of a cell, which are there before it."""
        path = self.path(kind, key)
        if ranks is not None:
            ranks = ranks.astype(np.float32)
            result = result | {'ranks': hashlib.sha256(ranks.tobytes()).hexdigest()}
            with atomic_file(ranks_path(path, result)) as file:
                np.save(file, ranks)
        text = json.dumps({'format': FORMAT, 'key': key, 'result': result, 'digits': digits_of(result)}, indent=1)
        write_text(path, text + '\n')
        for other in path.parent.glob(f'{path.stem}-*.npy'):  # of the cell before it was run again
            if other != ranks_path(path, result):
                other.unlink(missing_ok=True)

    def load(self, kind: str, fingerprint: str | None = None) -> list[dict]:
        """Return the results of a kind, for the data set with this fingerprint, each as one dictionary with its key.

        Results of other revisions of the models do not count.  ValueError names a file that is something else.
        """
        found = [self.load_file(path) for path in sorted((self.folder / kind).glob('*.json'))]
        return [result for result in found if result['revision'] == REVISION
                and fingerprint in (None, result['data'])]

    def load_file(self, path: Path) -> dict:
        """Return key and result of a file, which is read again only if it has changed."""
        status = path.stat()
        state = status.st_ino, status.st_mtime_ns, status.st_size
        if self._loaded.get(path, (None,))[0] != state:
            self._loaded[path] = state, read_result(path)
        return self._loaded[path][1]

    def ranks(self, result: dict) -> np.ndarray | None:
        """Return the ranks of a cell's result, float32 (n_predictions,), in the order of `evaluation.next_item_ranks`.

        None for an unstable network, and for a cell of an earlier version, which kept none.  ValueError names a file
        that is damaged or gone.
        """
        if not result.get('ranks'):
            return None
        path = ranks_path(result['path'], result)
        try:
            ranks = np.load(path)
        except (OSError, ValueError, EOFError):
            ranks = np.empty(0)
        if hashlib.sha256(ranks.tobytes()).hexdigest() == result['ranks']:
            return ranks
        now = self.load_file(result['path'])
        if now.get('ranks') not in (None, result['ranks']):  # the cell was run again meanwhile
            return self.ranks(now)
        raise ValueError(f"{path}: not the ranks of {result['path'].name}, or damaged; move both away, and the cell is "
                         'run again')

    @contextlib.contextmanager
    def hold(self, key: dict) -> Iterator[bool]:
        """Hold a cell to train it; False if another process has it."""
        with locked(self.path('cells', key).with_suffix('.lock'), wait=False) as lock:
            yield lock is not None

    def is_held(self, key: dict) -> bool:
        """Return whether another process holds a cell at the moment."""
        path = self.path('cells', key).with_suffix('.lock')
        if not path.exists():
            return False
        with locked(path, wait=False) as lock:
            return lock is None


def ranks_path(path: Path, result: dict) -> Path:
    """Return the file of the ranks of a cell's result, which lies in `path`."""
    return path.with_name(f"{path.stem}-{str(result.get('ranks'))[:8]}.npy")


def digits_of(key: Any) -> str:
    """Return digits that differ from key to key, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def read_result(path: Path) -> dict:
    """Return key and result of a file; ValueError, which names it, if it is none of ours."""
    try:
        content = json.loads(path.read_bytes())
        key, result = content['key'], content['result']
        if content['format'] != FORMAT or not path.stem.endswith(f'-{digits_of(key)}'):
            raise KeyError('format')
        if content.get('digits', digits_of(result)) != digits_of(result):  # which files of older commands lack
            raise ValueError('result')
        return {name: key[name] for name in ('data', 'revision')} | key | result | {'path': path}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{path}: not a result of this version of the program, or damaged; move it away, or choose '
                         'another --out') from None


def write_text(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    with atomic_file(path) as file:
        file.write(text.encode())
