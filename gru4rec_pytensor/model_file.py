"""How a trained model becomes one file and comes back: arrays and JSON, nothing that is executed.

The file is a zip archive of NumPy arrays (`numpy.load` reads it) beside ``header.json``, which names the format, its
version and a checksum of the arrays.
"""
from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gru4rec_pytensor.files import atomic_file, check_writable

FORMAT, VERSION = 'gru4rec-pytensor', 1
HEADER = 'header.json'


def write(path: str | os.PathLike, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays and what JSON can hold to `path`: all of it or, if anything goes wrong, nothing.

    Parameters
    ----------
    path : of the file; one that is there is replaced when the new one is complete
    header : of numbers, strings, lists and dictionaries
    arrays : name -> array of numbers, times or fixed-length strings
    """
    path = Path(path)
    header = header | {'format': FORMAT, 'version': VERSION, 'sha256': checksum(arrays)}
    with atomic_file(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr(HEADER, json.dumps(header, indent=1))
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def read(path: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays of a file that `write` wrote; ValueError, which names the file, if it is none or is damaged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such model file')
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(HEADER))
            if header['format'] != FORMAT:
                raise KeyError('format')
            if header['version'] > VERSION:
                raise NewerVersion(header['version'])
            expected = header['sha256']
            arrays = {name.removesuffix('.npy'): np.lib.format.read_array(io.BytesIO(archive.read(name)),
                                                                          allow_pickle=False)
                      for name in archive.namelist() if name != HEADER}
    except NewerVersion as error:
        raise ValueError(f'{path}: a model file of version {error}, and this code reads versions up to {VERSION}; '
                         'a newer release of it is needed') from None
    except KeyError:
        raise ValueError(f'{path}: not a model file of this package') from None
    except Exception as error:  # zipfile and NumPy have a dozen kinds of error for damaged files
        raise ValueError(f'{path}: not a model file, or a damaged or truncated one ({error})') from None
    if checksum(arrays) != expected:
        raise ValueError(f'{path}: damaged: its checksum is not that of its contents')
    return header, arrays


class SavedModel(NamedTuple):
    """What a model file holds: the constructor's arguments, the item ids, and arrays under the release's names."""
    arguments: dict
    items: np.ndarray
    item_counts: np.ndarray
    epoch_losses: list[float]
    weights: dict[str, np.ndarray]
    acc: dict[str, np.ndarray]
    vel: dict[str, np.ndarray]


def write_model(path: str | os.PathLike, arguments: dict, items: np.ndarray, item_counts: np.ndarray,
                epoch_losses: list[float], arrays: dict[str, np.ndarray]) -> None:
    """Write a trained model; `arrays` are its weights, accumulators ``acc_NAME`` and velocities ``vel_NAME``."""
    header = {'arguments': arguments, 'items_as_json': items.dtype == object, 'epoch_losses': epoch_losses}
    write(path, header, {'items': array_of_ids(items), 'item_counts': item_counts, **arrays})


def read_model(path: str | os.PathLike) -> SavedModel:
    """What `write_model` wrote; ValueError, which names the file, if it is no model."""
    header, arrays = read(path)
    with refused_unless_model(path):
        items = ids_from_array(arrays.pop('items'), header['items_as_json'])
        counts = arrays.pop('item_counts')
        groups: dict[str, dict] = {'weights': {}, 'acc': {}, 'vel': {}}
        for name, array in arrays.items():
            kind, _, rest = name.partition('_')
            groups[kind if rest else 'weights'][rest or name] = array
        return SavedModel(header['arguments'], items, counts, header['epoch_losses'], **groups)


@contextlib.contextmanager
def refused_unless_model(path: str | os.PathLike) -> Iterator[None]:
    """ValueError that names the file, where something is missing in it, or is not what it should be."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise ValueError(f'{path}: not a model of this package ({type(error).__name__}: {error})') from None


class Checkpoint:
    """The file from which an interrupted training goes on.

    Parameters
    ----------
    path : of the file; read at once if it is there
    every : seconds between two times that it is written
    training : all that the result depends on, as JSON has it; ValueError if the file is of another training
    """

    def __init__(self, path: str | os.PathLike, every: float, training: dict) -> None:
        self._path, self._every, self._training, self._written = Path(path), every, training, time.monotonic()
        check_writable(self._path)
        self._state, self._arrays = read(self._path) if self._path.exists() else ({}, {})
        if self._state:
            self._check(self._state.get('training'))

    def _check(self, training: dict | None) -> None:
        """ValueError unless the file is the checkpoint of this training."""
        if training is None:
            raise ValueError(f'{self._path}: not a checkpoint')
        if training.keys() != self._training.keys():
            raise self._other_version()
        for name, value in training.items():
            if value != self._training[name]:
                difference = ('its data were others' if name == 'data' else
                              f'{name} was {value!r}, and is {self._training[name]!r}')
                raise ValueError(f'{self._path}: the checkpoint of another training: {difference}; remove it to start '
                                 'anew, or give another path')

    def _other_version(self) -> ValueError:
        return ValueError(f'{self._path}: a checkpoint of another version of this code, which cannot be continued; '
                          'remove it to start anew, or give another path')

    @contextlib.contextmanager
    def refused_unless_whole(self) -> Iterator[None]:
        """ValueError that names the file, where something is missing in it, or is not what it should be."""
        try:
            yield
        except (KeyError, TypeError) as error:
            raise self._other_version() from error

    def saved_state(self) -> tuple[dict, dict[str, np.ndarray]]:
        """State and arrays of the file that was found, both empty if there was none; to be asked for once."""
        found, self._state, self._arrays = (self._state, self._arrays), {}, {}
        return found

    def is_due(self) -> bool:
        """Whether the last time that it was written is long enough ago."""
        return time.monotonic() - self._written >= self._every

    def write(self, state: dict, arrays: dict[str, np.ndarray]) -> None:
        write(self._path, {'training': self._training} | state, arrays)
        self._written = time.monotonic()


class NewerVersion(Exception):
    """The file's version is above ours."""


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {array.dtype.str} {array.shape} '.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def array_of_ids(ids: np.ndarray) -> np.ndarray:
    """Ids as an array that needs no pickling; those of type object, such as strings, become bytes of JSON."""
    if ids.dtype != object:
        return ids
    return np.frombuffer(json.dumps([*map(_plain_id, ids)]).encode(), dtype=np.uint8)


def _plain_id(value: Any) -> Any:
    """An id as JSON can hold it; a day or a time as {its type: its text}."""
    if isinstance(value, datetime.datetime):
        return {'time': value.isoformat()}
    if isinstance(value, datetime.date):
        return {'date': value.isoformat()}
    plain = value.item() if isinstance(value, np.generic) else value
    if type(plain) not in (str, int, float, bool):
        raise TypeError(f'item id {plain!r} is a {type(plain).__name__}: only numbers, strings, dates and times can be '
                        'saved')
    return plain


def ids_from_array(array: np.ndarray, as_json: bool) -> np.ndarray:
    """Inverse of `array_of_ids`."""
    if not as_json:
        return array
    read = {'time': pd.Timestamp, 'date': datetime.date.fromisoformat}
    values = [next(read[kind](text) for kind, text in value.items()) if isinstance(value, dict) else value
              for value in json.loads(array.tobytes())]
    ids = np.empty(len(values), dtype=object)
    ids[:] = values
    return ids
