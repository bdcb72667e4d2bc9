"""Data sets: training and test events from files or from the synthetic log, and the data sets that papers report on."""
from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import preprocess_rsc15
from gru4rec_pytensor import click_log, synthetic
from gru4rec_pytensor.events import COLUMNS, count, drop_long_sessions, keep_known_items, session_order, split
from gru4rec_pytensor.experiments.protocols import RSC15, VIDEO, Protocol
from gru4rec_pytensor.files import files_together
from gru4rec_pytensor.terminal import note

# ---------------------------------------------------------------------------------------------------------------------
# Data sets that papers report on
# ---------------------------------------------------------------------------------------------------------------------

class PublishedData(NamedTuple):
    """A data set as papers cut it.

    counts : sessions, events and items of 'train' and 'test', or their numbers of 'predictions', which are the events
        that follow one of their session; a number in whole thousands or millions was rounded to these.  Empty where
        they are not known, so that the user has to say that it is this data set
    """
    title: str
    protocol: str  # title of the `Protocol` that a run on it follows
    counts: dict[str, dict[str, int]]
    origin: str  # where to get it
    with_misses: bool = False  # whether test events with items that training lacks stay in it, as misses


RECENT64 = 'rsc15_recent64'
CHALLENGE = 'yoochoose-clicks.dat of the RecSys Challenge 2015'


DATA = (
    PublishedData(RSC15.title, RSC15.title, RSC15.counts,
                  f'{CHALLENGE}, `python preprocess_rsc15.py yoochoose-clicks.dat DATA`'),
    PublishedData(VIDEO.title, VIDEO.title, VIDEO.counts, 'private'),
    # The most recent 1 / share of RSC15's training prefixes, with the test data of the whole.
    *[PublishedData(f'RSC15 1/{share}', RSC15.title,
                    {'train': {'predictions': numbers['training prefixes']},
                     'test': {'predictions': numbers['test prefixes']}},
                    f'{CHALLENGE}, `python preprocess_rsc15.py yoochoose-clicks.dat DATA --fraction {share}`',
                    with_misses=True) for share, numbers in preprocess_rsc15.PUBLISHED_FRACTIONS.items()],
    PublishedData(RECENT64, RSC15.title,
                  {'train': dict(sessions=24_761, events=99_943, items=13_133),
                   'test': dict(sessions=1_703, events=7_299)},
                  'https://github.com/RecSysEvaluation/RecSys_Evaluation, RSC15 clicks of 23 to 30 September 2014'),
    # Those of the authors' comparison of 2023, whose counts are not known.
    *[PublishedData(title, RSC15.title, {}, f'{origin}, `gru4rec prepare {file} -o DATA --protocol 2023`')
      for title, origin, file in (
          ('Yoochoose', CHALLENGE, 'yoochoose-clicks.dat'),
          ('REES46', 'events of a shop with many categories, published by REES46 on Kaggle, a file a month',
           'events.csv --drop-without-session'),
          ('Coveo', 'browsing_train.csv of the SIGIR eCom 2021 Data Challenge', 'browsing_train.csv'),
          ('RetailRocket', 'events.csv of the Retailrocket data set on Kaggle', 'events.csv'),
          ('Diginetica', 'train-item-views.csv of the CIKM Cup 2016', 'train-item-views.csv'))],
)
BY_TITLE = {data.title.lower(): data for data in DATA}


def find_data(protocol: Protocol, counts: dict[str, dict[str, int]]) -> PublishedData | None:
    """Return the data set that papers report on with these counts, those of `Dataset.counts`; None if there is none."""
    found = {part: numbers | {'predictions': numbers['events'] - numbers['sessions']}
             for part, numbers in counts.items()}
    for data in DATA:
        if data.counts and data.protocol == protocol.title and all(
                is_count(found[part][kind], number) for part, numbers in data.counts.items()
                for kind, number in numbers.items()):
            return data
    return None


def is_count(found: int, published: int) -> bool:
    """Return whether a count is the published one, which may have been rounded.

    >>> is_count(3_120_000, 3_000_000), is_count(37_484, 37_483)
    (True, False)
    """
    unit = next(unit for unit in (1_000_000, 1_000, 1) if published % unit == 0)
    return (found + unit // 2) // unit * unit == published


# ---------------------------------------------------------------------------------------------------------------------
# The data set of a run
# ---------------------------------------------------------------------------------------------------------------------

class Source(NamedTuple):
    """A place of events, two files, a folder or else a synthetic log, and the protocol for them."""
    protocol: Protocol = RSC15
    train: Path | None = None  # files of events, of any format that `click_log.read_events` reads
    test: Path | None = None
    folder: Path | None = None  # with the files of `preprocess_rsc15`
    cache: Path = Path('cache')  # folder of synthetic logs, where a missing one is made
    sessions: int | None = None  # size of the synthetic log; that of the protocol when None
    items: int | None = None
    said: PublishedData | None = None  # the published data set that it is by the user's word
    valid: Path | None = None  # validation events of a search, which belong to the training data for testing


@dataclass(frozen=True)
class Dataset:
    """Training and test events, cleaned by the rules of a protocol."""
    name: str  # origin and fingerprint of the events
    protocol: Protocol
    is_synthetic: bool
    train: pd.DataFrame
    test: pd.DataFrame
    fingerprint: str = ''  # eight digits that change with the events
    folder: Path = Path()  # files of the events, see `share`
    said: PublishedData | None = None  # the published data set that it is by the user's word

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Sessions, events and items of 'train' and 'test'."""
        return {'train': count(self.train), 'test': count(self.test)}

    @property
    def sizes(self) -> dict[str, str]:
        """The counts of 'train' and 'test' in words."""
        return {part: size_in_words(counts) for part, counts in self.counts.items()}

    @cached_property
    def test_offsets(self) -> np.ndarray:
        """Starts of the sessions in the ordered test events, see `events.session_order`."""
        return session_order(self.test)[1]

    @property
    def n_items(self) -> int:
        """Number of items of the training data."""
        return self.counts['train']['items']

    @cached_property
    def published(self) -> PublishedData | None:
        """The data set that papers report on, if it is one: only then numbers of ours compare with published ones."""
        return None if self.is_synthetic else find_data(self.protocol, self.counts) or self.said


class Events(NamedTuple):
    """Training and test events, or training and validation events."""
    train: pd.DataFrame
    test: pd.DataFrame


def load_dataset(source: Source) -> Dataset:
    """Return the training and test events of a source; ValueError when no test session is left."""
    if source.train and source.test:
        train_path, test_path, name = source.train, source.test, source.train.stem
    else:
        folder = source.folder or synthetic_folder(source)
        train_path, test_path = (folder / preprocess_rsc15.FILES[part] for part in ('train_full', 'test'))
        name = folder.resolve().name
    train, test = read_pair(train_path, test_path, source.protocol)
    if source.valid:
        train, valid = read_pair(train_path, source.valid, source.protocol)
        if train.SessionId.isin(valid.SessionId).any():
            raise ValueError(f'{source.valid}: has sessions of {train_path}, too; a session is in one of them')
        train, test = alike(pd.concat([train, valid], ignore_index=True), test)
    is_synthetic = (train_path.parent / preprocess_rsc15.SYNTHETIC_LOG).exists() or not (source.train or source.folder)
    data = Dataset('', source.protocol, is_synthetic, train, test, said=source.said)
    check_said(data)
    if data.published and data.published.with_misses:
        note(f'{data.published.title}: test events with items that training does not have count as misses')
        digits = fingerprint(train, test, test)  # not that of the same files whose unknown items are left out
    else:
        test = with_known_items(train, test)
        digits = fingerprint(train, test)
    name = 'synthetic' if is_synthetic else re.sub(r'[`\s]+', ' ', name)  # it stands between backticks
    return replace(data, name=f'{name}-{digits}', test=test, fingerprint=digits)


def check_said(data: Dataset) -> None:
    """Raise ValueError if the user's word on a data set contradicts what is known about it."""
    if data.said is None:
        return
    said, found, problem = data.said, find_data(data.protocol, data.counts), ''
    if data.is_synthetic:
        problem = 'the data is a synthetic click log'
    elif said.protocol != data.protocol.title:
        problem = f'the data set goes with the protocol of {said.protocol}, not with that of {data.protocol.title}'
    elif found and found != said:
        problem = f'the data has the counts of {found.title}'
    elif said.counts and not found:
        problem = f'the training data has {data.sizes["train"]}, which are not the published counts'
    if problem:
        raise ValueError(f'--published {said.title}: {problem}')


def validation_data(source: Source, data: Dataset) -> Dataset:
    """Return the data of the search: that of files, or else the training data, with its last day for testing."""
    train_path, valid_path = source.train, source.valid
    if source.folder:
        train_path, valid_path = (source.folder / preprocess_rsc15.FILES[part] for part in ('train_tr', 'valid'))
    if train_path and valid_path and (source.valid or train_path.is_file() and valid_path.is_file()):
        train, valid = read_pair(train_path, valid_path, data.protocol)
        valid = with_known_items(train, valid)
    else:
        train, valid = split(data.train, 'validation')
    return replace(data, train=train, test=valid, fingerprint=fingerprint(train, valid))


def synthetic_folder(source: Source) -> Path:
    """Return the folder of a synthetic log of the wanted size, made if need be; its name changes with the generator."""
    version = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()[:8]
    n_sessions, n_items = source.sessions or source.protocol.sessions, source.items or source.protocol.items
    folder = source.cache / f'synthetic-{version}-{n_sessions}_sessions-{n_items}_items'
    if not all((folder / preprocess_rsc15.FILES[part]).exists() for part in ('train_full', 'test')):
        note(f'making the synthetic click log in {folder}')
        preprocess_rsc15.make_synthetic(folder, n_sessions=n_sessions, n_items=n_items)
    return folder


def read_pair(train_path: Path, test_path: Path, protocol: Protocol) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a training and a test file, without sessions longer than the protocol allows (bots, section 4)."""
    frames = []
    for path in (train_path, test_path):
        read, limit = click_log.read_events(path), protocol.max_session_length
        kept = drop_long_sessions(read, limit)
        if kept.empty:
            raise ValueError(f'{path}: no session has {limit} events or fewer')
        if len(kept) < len(read):
            note(f'dropped {len(read) - len(kept)} events of sessions of more than {limit} events')
        frames.append(kept)
    return alike(*frames)


def alike(train: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both frames with ids of one type: text, where ids look like numbers in one of them only."""
    for key in COLUMNS[:2]:
        if train[key].dtype != test[key].dtype:
            train, test = train.astype({key: str}), test.astype({key: str})
    return train, test


def with_known_items(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return the test events that section 4 keeps: items that training has, sessions of two events or more."""
    kept = keep_known_items(test, train.ItemId.unique())
    if kept.empty:
        raise ValueError('no test session has two events with items of the training data')
    if len(kept) < len(test):
        note(f'dropped {len(test) - len(kept)} test events: items that training does not have, then one-event sessions')
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Events that processes share
# ---------------------------------------------------------------------------------------------------------------------

def share(data: Dataset, parent: Path) -> Dataset:
    """Write the events as arrays into a folder of `parent`, and return the data with these, as `open_events` does.

    Ids that are text become whole numbers of the same order, since arrays of objects cannot be mapped into memory.
    Nothing that is computed depends on more than the order of ids.
    """
    arrays: dict[str, np.ndarray] = {}
    for key in COLUMNS:
        columns = [frame[key].to_numpy() for frame in (data.train, data.test)]
        if columns[0].dtype == object:
            codes, _ids = pd.factorize(np.concatenate(columns), sort=True)
            columns = np.split(codes, [len(data.train)])
        arrays |= {f'{part}-{key}.npy': column for part, column in zip(('train', 'test'), columns)}
    folder = parent / data.fingerprint
    if not has_arrays(folder, arrays):
        parent.mkdir(exist_ok=True)
        with files_together(folder) as unfinished:
            if not has_arrays(folder, arrays):  # which another command may have written meanwhile
                for name, array in arrays.items():
                    with open(Path(unfinished) / name, 'w+b') as file:  # see `files.temporary_file`
                        np.save(file, array)
                        file.flush()
                        os.fsync(file.fileno())
    train, test = open_events(folder)
    return replace(data, train=train, test=test, folder=folder)


def has_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> bool:
    """Return whether the files of a folder hold these arrays: a file may be damaged, or be of a killed process."""
    try:
        stored = {name: np.load(folder / name, mmap_mode='r') for name in arrays}
    except (OSError, ValueError, EOFError):
        return False
    return all(stored[name].dtype == array.dtype and np.array_equal(stored[name], array)
               for name, array in arrays.items())


def open_events(folder: Path) -> Events:
    """Return the events that `share` wrote, mapped into memory, so that all processes of a machine share them."""
    return Events(*[pd.DataFrame({key: np.load(folder / f'{part}-{key}.npy', mmap_mode='r') for key in COLUMNS},
                                 copy=False) for part in ('train', 'test')])


# ---------------------------------------------------------------------------------------------------------------------
# What is known about a data set
# ---------------------------------------------------------------------------------------------------------------------

def fingerprint(*frames: pd.DataFrame) -> str:
    """Return eight digits that change when the data does."""
    hashes = [pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes() for frame in frames]
    return hashlib.sha256(b''.join(hashes)).hexdigest()[:8]


def size_in_words(counts: dict[str, int]) -> str:
    """Return sessions, events and items, as `events.count` returns them, as text."""
    return ', '.join(f'{number:,} {kind}' for kind, number in counts.items())


def data_notice(data: Dataset) -> str:
    """Say what data our numbers are of, and what they can be compared with."""
    known = data.published
    if data.is_synthetic:
        comparison = ('**This is a synthetic click log**: our numbers on it are not comparable with the published '
                      'ones, only their order is.')
    elif known and not known.counts:
        comparison = (f'**That it is {known.title} is the word of --published**. Nothing checks that, since the counts '
                      f'of that data set are not known ({known.origin}). If it is, our numbers are comparable with '
                      "those published for it, and not with the paper's.")
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
        first = next((f'{data.counts[part][kind]:,} of {number:,} {kind}' + ' for testing' * (part == 'test')
                      for part, numbers in data.protocol.counts.items() for kind, number in numbers.items()
                      if not is_count(data.counts[part][kind], number)), '')
        comparison = (f"**This is not the paper's data: {first}.** Our numbers are not comparable with the published "
                      'ones.')
    return f"Data set `{data.name}`: train {data.sizes['train']}; test {data.sizes['test']}. {comparison}"
