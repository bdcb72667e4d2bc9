"""Data sets: training and test events from files or from the synthetic log, and what they can be compared with."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import preprocess_rsc15
from gru4rec_pytensor import click_log, synthetic
from gru4rec_pytensor.events import COLUMNS, count, drop_long_sessions, keep_known_items, split
from gru4rec_pytensor.experiments.protocols import Protocol
from gru4rec_pytensor.experiments.published import PublishedData, find_data, is_count
from gru4rec_pytensor.files import files_together
from gru4rec_pytensor.terminal import note


class Source(NamedTuple):
    """Where the events are: in two files, in a folder, or, without either, in a synthetic log.

    train, test : files of events, of any format that `click_log.read_events` reads
    folder : with the files of `preprocess_rsc15`
    cache : folder of synthetic logs; one is made there when it is not there yet
    sessions, items : size of the synthetic log; that of the protocol when None
    """
    train: Path | None = None
    test: Path | None = None
    folder: Path | None = None
    cache: Path = Path('cache')
    sessions: int | None = None
    items: int | None = None


@dataclass(frozen=True)
class Dataset:
    """Training and test events, cleaned by the rules of a protocol."""
    name: str  # says where the data is from, and a fingerprint of it
    protocol: Protocol
    is_synthetic: bool
    train: pd.DataFrame
    test: pd.DataFrame
    fingerprint: str = ''  # eight digits that change with the events

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Sessions, events and items of 'train' and 'test'."""
        return {'train': count(self.train), 'test': count(self.test)}

    @property
    def n_items(self) -> int:
        """Number of items of the training data."""
        return self.counts['train']['items']

    @cached_property
    def published(self) -> PublishedData | None:
        """The data set that papers report on, if it is one: only then numbers of ours compare with published ones."""
        return None if self.is_synthetic else find_data(self.protocol, self.counts)

    @property
    def difference_to_the_papers(self) -> str:
        """The first count in which the data is not that of the protocol's paper, in words."""
        for part, published in self.protocol.counts.items():
            for kind, number in published.items():
                if not is_count(self.counts[part][kind], number):
                    return f'{self.counts[part][kind]:,} of {number:,} {kind}' + ' for testing' * (part == 'test')
        return ''


class Events(NamedTuple):
    """Training and test events, or training and validation events."""
    train: pd.DataFrame
    test: pd.DataFrame


def load_dataset(source: Source, protocol: Protocol) -> Dataset:
    """The training and test events of a source; ValueError when no test session is left."""
    if source.train and source.test:
        train_path, test_path, name = source.train, source.test, source.train.stem
    else:
        folder = source.folder or synthetic_folder(source, protocol)
        train_path, test_path = (folder / preprocess_rsc15.FILES[part] for part in ('train_full', 'test'))
        name = folder.resolve().name
    train, test = read_pair(train_path, test_path, protocol)
    is_synthetic = (train_path.parent / preprocess_rsc15.SYNTHETIC_LOG).exists() or not (source.train or source.folder)
    whole = Dataset('', protocol, is_synthetic, train, test)
    if whole.published and whole.published.with_misses:
        note(f'{whole.published.title}: test events with items that training does not have count as misses')
        digits = fingerprint(train, test, test)  # not that of the same files whose unknown items are left out
    else:
        test, digits = with_known_items(train, test), fingerprint(train, test)
    return Dataset(f"{'synthetic' if is_synthetic else name}-{digits}", protocol, is_synthetic, train, test, digits)


def validation_split(source: Source, data: Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and validation data of the search: those of the folder, or else the training data without its last day,
    and that day."""
    if source.folder:
        train_path, valid_path = (source.folder / preprocess_rsc15.FILES[part] for part in ('train_tr', 'valid'))
        if train_path.is_file() and valid_path.is_file():
            train, valid = read_pair(train_path, valid_path, data.protocol)
            return train, with_known_items(train, valid)
    return split(data.train, 'validation')


def synthetic_folder(source: Source, protocol: Protocol) -> Path:
    """Folder with a synthetic log of the wanted size, made if need be; its name changes when the generator does."""
    version = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()[:8]
    n_sessions, n_items = source.sessions or protocol.sessions, source.items or protocol.items
    folder = source.cache / f'synthetic-{version}-{n_sessions}_sessions-{n_items}_items'
    if not all((folder / preprocess_rsc15.FILES[part]).exists() for part in ('train_full', 'test')):
        note(f'making the synthetic click log in {folder}')
        preprocess_rsc15.make_synthetic(folder, n_sessions=n_sessions, n_items=n_items)
    return folder


def read_pair(train_path: Path, test_path: Path, protocol: Protocol) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events of a training and a test file, without the sessions that the protocol finds too long."""
    train, test = (without_long_sessions(click_log.read_events(path), protocol.max_session_length)
                   for path in (train_path, test_path))
    for key in COLUMNS[:2]:
        if train[key].dtype != test[key].dtype:  # ids that look like numbers in one file only
            train, test = train.astype({key: str}), test.astype({key: str})
    return train, test


def without_long_sessions(events: pd.DataFrame, max_length: int | None) -> pd.DataFrame:
    """The sessions of at most `max_length` events: longer ones are likely to be of bots (section 4, VIDEO)."""
    kept = drop_long_sessions(events, max_length)
    if kept.empty:
        raise ValueError(f'no session has {max_length} events or fewer')
    if len(kept) < len(events):
        note(f'dropped {len(events) - len(kept)} events of sessions of more than {max_length} events')
    return kept


def with_known_items(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """The test events that the protocol of section 4 keeps: items that training has, sessions of two events or more."""
    kept = keep_known_items(test, train.ItemId.unique())
    if kept.empty:
        raise ValueError('no test session has two events with items of the training data')
    if len(kept) < len(test):
        note(f'dropped {len(test) - len(kept)} test events: items that training does not have, then one-event sessions')
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Events that processes share
# ---------------------------------------------------------------------------------------------------------------------

def share_events(folder: Path, train: pd.DataFrame, test: pd.DataFrame) -> Events:
    """Write two frames of events into a folder as arrays, and open them as `open_events` does.

    Ids that are text become whole numbers of the same order, since arrays of objects cannot be shared.  Nothing that is
    computed depends on more than the order of ids.
    """
    arrays: dict[str, np.ndarray] = {}
    for key in COLUMNS:
        columns = [frame[key].to_numpy() for frame in (train, test)]
        if columns[0].dtype == object:
            codes, _ids = pd.factorize(np.concatenate(columns), sort=True)
            columns = np.split(codes, [len(train)])
        arrays |= {f'{part}-{key}.npy': column for part, column in zip(('train', 'test'), columns)}
    def are_there() -> bool:
        return all((folder / name).exists() for name in arrays)

    if not are_there():
        folder.parent.mkdir(exist_ok=True)
        with files_together(folder) as unfinished:
            if not are_there():  # another command may have been first, and what is mapped is not to be replaced
                for name, array in arrays.items():
                    np.save(Path(unfinished) / name, array)
    return open_events(folder)


def open_events(folder: Path) -> Events:
    """The events that `share_events` wrote, mapped into memory, so that all processes of a machine share them."""
    return Events(*[pd.DataFrame({key: np.load(folder / f'{part}-{key}.npy', mmap_mode='r') for key in COLUMNS},
                                 copy=False) for part in ('train', 'test')])


# ---------------------------------------------------------------------------------------------------------------------
# What is known about a data set
# ---------------------------------------------------------------------------------------------------------------------

def fingerprint(*frames: pd.DataFrame) -> str:
    """Eight digits that change when the data does."""
    hashes = [pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes() for frame in frames]
    return hashlib.sha256(b''.join(hashes)).hexdigest()[:8]


def size_in_words(counts: dict[str, int]) -> str:
    """Sessions, events and items, as `events.count` returns them."""
    return ', '.join(f'{number:,} {kind}' for kind, number in counts.items())


def data_notice(data: Dataset) -> str:
    """What data our numbers are of, and what they can be compared with."""
    known = data.published
    if data.is_synthetic:
        comparison = ('**This is a synthetic click log**: our numbers on it are not comparable with the published '
                      'ones, only their order is.')
    elif known and known.title != data.protocol.title:
        comparison = (f'It has the counts of {known.title} ({known.origin}): our numbers are comparable with those '
                      'published for it, and not with the paper\'s.')
    elif known:
        comparison = (f'It has as many sessions, events and items as the {known.title} data of the paper: our numbers '
                      'are comparable with the published ones.')
    elif data.protocol.is_private:
        comparison = ('**This is not the data of the published numbers**, which is private: ours are not comparable '
                      'with them, only their order is.')
    else:
        comparison = (f"**This is not the paper's data: {data.difference_to_the_papers}.** Our numbers are not "
                      'comparable with the published ones.')
    train, test = (size_in_words(data.counts[part]) for part in ('train', 'test'))
    return f'Data set `{data.name}`: train {train}; test {test}. {comparison}'
