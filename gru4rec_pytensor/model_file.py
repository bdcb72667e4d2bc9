"""Files of trained models and checkpoints: arrays and JSON, nothing that is executed.

The file is a zip archive of NumPy arrays, which `numpy.load` reads, and of ``header.json``: format, version, checksum.
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

from gru4rec_pytensor.checks import check_whole_number, warn
from gru4rec_pytensor.files import atomic_file, check_writable

Layout = dict[str, tuple[list[str], tuple[int, ...]]]  # of weights, see `gru4rec.weight_layout`
FORMAT, VERSION = 'gru4rec-pytensor', 1
HEADER = 'header.json'


def write(path: str | os.PathLike, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays of numbers, times or fixed-length strings, and a header that JSON can hold: all of it, or nothing.

    A file that is there is replaced when the new one is complete.
    """
    header = header | {'format': FORMAT, 'version': VERSION, 'sha256': checksum(arrays)}
    with atomic_file(Path(path)) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr(HEADER, json.dumps(header, indent=1))
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def read(path: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """Return header and arrays of a file that `write` wrote; ValueError names a file that is none, or is damaged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such model file')
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise KeyError('compressed')  # a small file that unpacks to a large one is not of this package
            header = json.loads(archive.read(HEADER))
            if header['format'] != FORMAT:
                raise KeyError('format')
            is_newer = header['version'] > VERSION
            if not is_newer:
                expected = header['sha256']
                arrays = {name.removesuffix('.npy'): np.lib.format.read_array(io.BytesIO(archive.read(name)),
                                                                              allow_pickle=False)
                          for name in archive.namelist() if name != HEADER}
    except KeyError:
        raise ValueError(f'{path}: not a model file of this package') from None
    except Exception as error:  # zipfile and NumPy have a dozen kinds of error for damaged files
        raise ValueError(f'{path}: not a model file, or a damaged or truncated one ({error})') from None
    if is_newer:
        raise ValueError(f'{path}: a model file of version {header["version"]}, and this code reads versions up to '
                         f'{VERSION}; a newer release of it is needed')
    if checksum(arrays) != expected:
        raise ValueError(f'{path}: damaged: its checksum is not that of its contents')
    return header, arrays


class SavedModel(NamedTuple):
    """Contents of a model file: the constructor's arguments, the item ids, and arrays under the release's names."""
    arguments: dict
    items: np.ndarray
    item_counts: np.ndarray
    epoch_losses: list[float]
    weights: dict[str, np.ndarray]
    acc: dict[str, np.ndarray]
    vel: dict[str, np.ndarray]

    def check_items(self) -> None:
        """Raise ValueError unless there are item ids, each once, and a count of each."""
        if self.items.ndim != 1 or pd.isna(self.items).any() or not pd.Index(self.items).is_unique:
            raise ValueError('item ids must be a list without repeats or gaps')
        if self.item_counts.shape != self.items.shape or self.item_counts.dtype.kind not in 'iu' or (
                self.item_counts < 0).any():
            raise ValueError('item_counts must be a whole number for each item id')

    def check_arrays(self, layout: Layout, acc: bool, vel: bool) -> None:
        """Raise ValueError unless weights and, with `acc` and `vel`, the optimiser's state have the layout's shapes.

        A state that is not there begins at zero.  An accumulator may be infinite: its weight does not change any more.
        """
        shapes = {part: shape for parts, shape in layout.values() for part in parts}
        for kind, group, may_be_there in (('', self.weights, True), ('acc_', self.acc, acc), ('vel_', self.vel, vel)):
            # Weights must be there, a state may be missing.
            if (group or kind == '') and group.keys() != (shapes.keys() if may_be_there else set()):
                wanted = sorted(shapes) if may_be_there else 'none'
                raise ValueError(f'has {kind}{sorted(group)}, and should have {wanted}')
            for name, array in group.items():
                if array.shape != shapes[name] or array.dtype.kind != 'f' or np.isnan(array).any() or (
                        kind != 'acc_' and np.isinf(array).any()):
                    raise ValueError(f'{kind}{name} must be finite numbers of the shape {shapes[name]}')


def write_model(path: str | os.PathLike, model: SavedModel) -> None:
    """Write a trained model: the arrays of its optimiser's state as ``acc_NAME`` and ``vel_NAME``."""
    header = {'arguments': model.arguments, 'items_as_json': model.items.dtype == object,
              'epoch_losses': model.epoch_losses}
    state = {f'{kind}_{name}': array for kind, group in (('acc', model.acc), ('vel', model.vel))
             for name, array in group.items()}
    write(path, header, {'items': array_of_ids(model.items), 'item_counts': model.item_counts, **model.weights} | state)


def read_model(path: str | os.PathLike) -> SavedModel:
    """Return what `write_model` wrote; ValueError, which names the file, if it is no model."""
    header, arrays = read(path)
    with refused_unless_model(path):
        items = ids_from_array(arrays.pop('items'), header['items_as_json'])
        counts, losses = arrays.pop('item_counts'), header['epoch_losses']
        if not all(isinstance(loss, float) for loss in losses):
            raise ValueError('epoch_losses must be numbers')
        groups: dict[str, dict] = {'weights': {}, 'acc': {}, 'vel': {}}
        for name, array in arrays.items():
            kind, _, rest = name.partition('_')
            groups[kind if rest else 'weights'][rest or name] = array
        model = SavedModel(header['arguments'], items, counts, losses, **groups)
        model.check_items()
        return model


@contextlib.contextmanager
def refused_unless_model(path: str | os.PathLike) -> Iterator[None]:
    """Raise ValueError that names the file for any error of its contents within."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, StopIteration) as error:
        raise ValueError(f'{path}: not a model of this package ({type(error).__name__}: {error})') from None


def join_parts(arrays: dict[str, np.ndarray], layout: Layout, dtype: str) -> dict[str, np.ndarray]:
    """Join arrays under the release's names to the weights of a layout; none to none."""
    if not arrays:
        return {}
    return {name: np.hstack([arrays[part].astype(dtype) for part in parts]) for name, (parts, _shape) in layout.items()}


def split_parts(variables: dict[str, Any], layout: Layout) -> dict[str, np.ndarray]:
    """Copy the values of shared variables to arrays under the release's names: the inverse of `join_parts`."""
    arrays = {}
    for name, variable in variables.items():
        value, parts = np.asarray(variable.get_value(borrow=True)), layout[name][0]
        arrays.update({part: array.copy() for part, array in zip(parts, np.split(value, len(parts), axis=-1))})
    return arrays


def rounded(name: str, weight: np.ndarray, dtype: str) -> np.ndarray:
    """Return a weight in another precision; ValueError names one that would be lost, being too large or too small."""
    with np.errstate(over='ignore'):
        stored = weight.astype(dtype)
    largest = np.abs(weight).max(initial=0)
    if np.abs(stored.astype(weight.dtype) - weight).max(initial=0) > 2.0 ** -10 * largest:
        raise ValueError(f'weight {name} has values up to {largest:.3g}, which {dtype} cannot hold; save it as float32')
    return stored


class TrainingPosition(NamedTuple):
    """Position in a training: whole epochs, and chunks, mini-batches and events of the current one."""
    epoch: int = 0
    chunks: int = 0
    minibatches: int = 0
    events: int = 0
    total_loss: float = 0.0  # sum of this epoch's losses, each times its number of lanes at work

    def after(self, losses: np.ndarray, chunk: Any) -> TrainingPosition:
        """Return the position after another chunk of mini-batches with these losses."""
        n_lanes = (chunk.position[:len(losses)] >= 0).sum(axis=1)
        return TrainingPosition(self.epoch, self.chunks + 1, self.minibatches + len(losses),
                                self.events + int(n_lanes.sum()),
                                self.total_loss + float((losses * n_lanes).sum(dtype='float64')))

    @property
    def mean_loss(self) -> float:
        """Mean over the lanes of the current epoch."""
        return self.total_loss / self.events


class Checkpoint:
    """The file from which an interrupted training continues.

    Parameters
    ----------
    path : of the file; read at once if it is there
    every : seconds between two times that it is written
    arguments, data : all that the result depends on: arguments and backend as JSON has them, and arrays.  ValueError if
        the file is of another training; only `n_epochs` may differ, and must not be less than what is done
    """

    def __init__(self, path: str | os.PathLike, every: float, arguments: dict, data: tuple[np.ndarray, ...]) -> None:
        self._path, self._every, self._written = Path(path), every, time.monotonic()
        self._training = {name: value for name, value in arguments.items() if name != 'n_epochs'}
        self._training['data'] = checksum({str(number): array for number, array in enumerate(data)})
        check_writable(self._path)
        self._found = read(self._path) if self._path.exists() else None
        if not self._found:
            return
        training = self._found[0].get('training')
        if training is None:
            raise ValueError(f'{self._path}: not a checkpoint')
        if training.keys() != self._training.keys():
            raise self._other_version()
        for name, value in training.items():
            if value != self._training[name]:
                difference = ('its data were others' if name == 'data' else
                              f'{name} was {value!r}, and is {self._training[name]!r}')
                raise ValueError(f'{self._path}: the checkpoint of another training: {difference}; remove it to begin '
                                 'again, or give another path')
        try:
            for number in (self._found[0]['threads'], *self._found[0]['position'][:4]):
                check_whole_number('position', number, 0)
            self._position = TrainingPosition(*self._found[0]['position'])
        except (KeyError, TypeError, ValueError) as error:
            raise self._other_version() from error
        if self._position[:2] > (arguments['n_epochs'], 0):
            raise ValueError(f'{self._path}: the checkpoint of a training that is further than n_epochs='
                             f'{arguments["n_epochs"]}, after {self._position.epoch} epochs and '
                             f'{self._position.minibatches} mini-batches; remove it to begin again, or give another '
                             'path')

    def _other_version(self) -> ValueError:
        return ValueError(f'{self._path}: a checkpoint of another version of this code, which cannot be continued; '
                          'remove it to begin again, or give another path')

    def restore(self, variables: dict[str, Any], random_inputs: Any, n_threads: int | None) -> dict[str, Any]:
        """Put shared variables and random streams back as they were when the file was written, if there is one.

        Returns the rest of what was saved, or nothing.  A warning says that `n_threads` is not what the training had.
        """
        if not self._found:
            return {}
        (saved, arrays), self._found = self._found, None
        try:
            for name, variable in variables.items():
                expected = variable.type
                if arrays[name].shape != expected.shape or arrays[name].dtype != expected.dtype:
                    raise TypeError(name)
            random_inputs.restore(arrays)
            found = {'position': self._position, 'epoch_losses': [*saved['epoch_losses']], 'threads': saved['threads']}
        except (KeyError, TypeError, ValueError) as error:
            raise self._other_version() from error
        for name, variable in variables.items():
            variable.set_value(arrays[name], borrow=True)
        if n_threads not in (None, found['threads']):
            warn(f'this training had {found["threads"]} thread(s) of BLAS so far, and continues with threads='
                 f'{n_threads}: the last digits of its products may differ from those of one without interruption')
        return found

    def is_due(self) -> bool:
        """Return whether the last time that it was written is long enough ago."""
        return time.monotonic() - self._written >= self._every

    def write(self, state: dict, variables: dict[str, Any], random_state: dict[str, np.ndarray]) -> None:
        """Write all that the rest of the training depends on."""
        arrays = {name: np.asarray(variable.get_value(borrow=True)) for name, variable in variables.items()}
        write(self._path, {'training': self._training} | state, arrays | random_state)
        self._written = time.monotonic()


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {array.dtype.str} {array.shape} '.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def array_of_ids(ids: np.ndarray) -> np.ndarray:
    """Return ids as an array that needs no pickling; those of type object, such as strings, become bytes of JSON."""
    if ids.dtype != object:
        return ids
    return np.frombuffer(json.dumps([*map(_plain_id, ids)]).encode(), dtype=np.uint8)


def _plain_id(value: Any) -> Any:
    """Return an id as JSON can hold it; a day or a time as {its type: its text}."""
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
    """Return the ids of an array that `array_of_ids` made."""
    if not as_json:
        return array
    read = {'time': pd.Timestamp, 'date': datetime.date.fromisoformat}
    values = [next(read[kind](text) for kind, text in value.items()) if isinstance(value, dict) else value
              for value in json.loads(array.tobytes())]
    return np.fromiter(values, object)
