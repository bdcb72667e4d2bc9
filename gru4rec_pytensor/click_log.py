"""Session logs of any kind: reading a file of events, and preparing training and test data from it.

A log has a row for each event and three columns: session, item, time.  `preprocess_rsc15` does the same for the raw
files of RSC15, faster and by the paper's rules alone.
"""
from __future__ import annotations

import mmap
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gru4rec_pytensor import events as protocol
from gru4rec_pytensor.checks import check_number, check_whole_number
from gru4rec_pytensor.events import (
    COLUMNS,
    MIN_ITEM_EVENTS,
    MIN_SESSION_LENGTH,
    check_events,
    check_times,
    require_events,
)

DELIMITERS = {'\t': 'tabs', ',': 'commas', ';': 'semicolons', '|': 'bars'}


def read_events(path: str | Path, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """The events of a file: Parquet by its suffix, else text with a header and tabs, commas, semicolons or bars.

    Parameters
    ----------
    columns : names of the columns of sessions, items and times

    Returns
    -------
    frame with these three columns, in the file's order.  Ids are int64 where all of a column are whole numbers that
    lose nothing by it, as 007 would, else text; times are numbers, or seconds since 1970 where the file has dates and
    times such as 2014-04-07T10:51:09.277Z.

    Raises
    ------
    FileNotFoundError, or ValueError that names the file, the column and the first line that is wrong
    """
    path = Path(path)
    if len(set(columns)) < 3:
        raise ValueError(f'session, item and time must be three columns, not {list(columns)}')
    if not path.is_file():
        raise FileNotFoundError(f'{path}: {"is a folder, not a file" if path.is_dir() else "no such file"}')
    frame = _read_parquet(path) if path.suffix in ('.parquet', '.pq') else _read_text(path, columns)
    names = list(frame.columns)
    for name in columns:
        if names.count(name) != 1:
            raise ValueError(f'{path}: {"lacks the column" if name not in names else "has more than one column"} '
                             f'{name!r}; it has {names[:12]}')
    frame = frame[list(columns)]
    if frame.empty:
        raise ValueError(f'{path}: has no events')
    session, item, time = columns
    return frame.assign(**{session: _ids(path, frame[session]), item: _ids(path, frame[item]),
                           time: _seconds(path, frame[time])})


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise ValueError(f'{path}: reading Parquet needs pyarrow: pip install pyarrow') from None
    except Exception as error:  # of pyarrow, which has errors of its own
        raise ValueError(f'{path}: not a Parquet file ({str(error).splitlines()[0]})') from None


def _read_text(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A text file, as text; the delimiter is the one by which the header has most of the columns."""
    line, delimiter = _header(path, columns)
    found = [name.strip().strip('"') for name in line.split(delimiter)]
    options = dict(sep=delimiter, keep_default_na=False, encoding='utf-8-sig', skipinitialspace=True, index_col=False,
                   low_memory=False)
    if len(found) > len(columns):
        options['usecols'] = lambda name: name.strip() in columns
    ids = [name for name in found if name in columns[:2]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', pd.errors.ParserWarning)  # rows longer than the header
            # Numbers are read ten times faster, and take a tenth of the room; but the ids 007 and 7 are not the same.
            frame = None if _may_have_leading_zeros(path, delimiter) else pd.read_csv(path, **options)
            if frame is None or any(frame[name].dtype != 'int64' for name in frame if name.strip() in ids):
                text = {name: str for name in line.split(delimiter) if name.strip().strip('"') in ids}
                text |= {name.strip().strip('"'): str for name in text}
                frame = pd.read_csv(path, dtype=text, **options)
        return frame.rename(columns=str.strip)
    except pd.errors.ParserWarning:
        raise ValueError(f'{path}: has rows with more fields than its header, which has {len(found)}') from None
    except UnicodeDecodeError:
        raise ValueError(f'{path}: is not UTF-8 text') from None
    except pd.errors.ParserError as error:
        raise ValueError(f'{path}: {str(error).strip().removeprefix("Error tokenizing data. C error: ")}') from None


def _header(path: Path, columns: Sequence[str]) -> tuple[str, str]:
    """The first line of a text file that has the wanted columns, and what separates them."""
    with open(path, 'rb') as file:
        header = file.readline(1 << 16)
        sample = header + file.read(1 << 12)
    if not header.strip():
        raise ValueError(f'{path}: is empty')
    if b'\0' in sample:
        raise ValueError(f'{path}: is a binary file, not text')
    if header.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise ValueError(f'{path}: is a web page, not a log: was the download refused?')
    try:
        line = header.decode('utf-8-sig').rstrip('\r\n')
    except UnicodeDecodeError:
        raise ValueError(f'{path}: is not UTF-8 text') from None
    names = {delimiter: [name.strip().strip('"') for name in line.split(delimiter)] for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda d: (sum(name in names[d] for name in columns), len(names[d])))
    found = names[delimiter]
    repeated = [name for name in columns if found.count(name) > 1]
    if repeated:
        raise ValueError(f'{path}: has more than one column {repeated[0]!r}')
    missing = [name for name in columns if name not in found]
    if missing:
        raise ValueError(f'{path}: lacks the column(s) {missing}; by {DELIMITERS[delimiter]} its first line has '
                         f'{found[:8]}. Expected is a header with {list(columns)}')
    return line, delimiter


def _ids(path: Path, values: pd.Series) -> pd.Series:
    """Ids as int64 if the column holds whole numbers, else as text."""
    _require(path, values.notna(), values, 'an id')
    if pd.api.types.is_numeric_dtype(values) and values.dtype != 'uint64':
        _require(path, values % 1 == 0, values, 'a whole number')
        return values.astype('int64')
    types = values.map(type).unique()
    if len(types) > 1 and path.suffix in ('.parquet', '.pq'):
        raise ValueError(f'{path}: column {values.name!r} has ids of several types: '
                         f'{", ".join(sorted(kind.__name__ for kind in types))}')
    values = values.astype(str).str.strip()
    _require(path, values != '', values, 'an id')
    number = pd.to_numeric(values, errors='coerce')
    return number if number.dtype == 'int64' and (number.astype(str) == values).all() else values


def _may_have_leading_zeros(path: Path, delimiter: str) -> bool:
    """Whether a field begins like 007 or +7: a number would lose that."""
    pattern = re.compile(rb'(?:^|["\n' + re.escape(delimiter).encode() + rb'])[ ]*(?:\+|-?0[0-9]|-0)')
    with open(path, 'rb') as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return pattern.search(text) is not None


def _seconds(path: Path, values: pd.Series) -> pd.Series:
    """Times as numbers, in seconds where they were dates."""
    if pd.api.types.is_datetime64_any_dtype(values):
        _require(path, values.notna(), values, 'a time')
        return _unix_seconds(values)
    number = pd.to_numeric(values, errors='coerce')
    if number.isna().all() and not pd.api.types.is_numeric_dtype(values):
        dates = pd.to_datetime(values, errors='coerce', utc=True, format='ISO8601')
        _require(path, dates.notna(), values, 'a number, or a date and time such as 2014-04-07T10:51:09.277Z')
        return _unix_seconds(dates)
    _require(path, number.notna() & np.isfinite(number), values, 'a number')
    _require(path, number >= 0, values, 'a time: it is negative')
    return number


def _unix_seconds(dates: pd.Series) -> pd.Series:
    utc = dates.dt.tz_localize('UTC') if dates.dt.tz is None else dates.dt.tz_convert('UTC')
    return (utc - pd.Timestamp(0, tz='UTC')) / pd.Timedelta(seconds=1)


def _require(path: Path, good: pd.Series, values: pd.Series, wanted: str) -> None:
    """ValueError that names the first line whose column is not what it should be."""
    if not good.all():
        row = int((~good).to_numpy().argmax())
        value = values.iloc[row]
        found = 'missing' if pd.isna(value) or value == '' else repr(getattr(value, 'item', lambda: value)())
        where = f'row {row}' if path.suffix in ('.parquet', '.pq') else f'line {row + 2}'
        raise ValueError(f'{path}, {where}: {values.name} is {found}, not {wanted}')


def prepare(events: pd.DataFrame, columns: Sequence[str] = COLUMNS, *, min_session_length: int = MIN_SESSION_LENGTH,
            max_session_length: int | None = None, min_item_events: int = MIN_ITEM_EVENTS,
            test_days: float | None = None, test_fraction: float | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test data of a log, by the filters of the paper's section 4.

    Sessions that are too long, then those too short, items that are too rare, and sessions that these left too short
    are dropped.  The sessions that end last are set apart as test data, whole; of these, items that training does not
    have are dropped, and then sessions with fewer than two events.

    Parameters
    ----------
    events : frame with the three `columns`, rows in any order; time in seconds
    min_session_length, max_session_length : events of a session; None for no limit
    min_item_events : events of an item, in the whole log
    test_days : the sessions that end in so many last days are the test data; 1 when both are None
    test_fraction : instead, this share of the sessions, those that end last

    Returns
    -------
    (train, test), rows by session and time, equal times in the order of `events`

    Raises
    ------
    ValueError that says which step left nothing
    """
    time = columns[2]
    _check_split(test_days, test_fraction)
    for name, limit in (('min_session_length', min_session_length), ('max_session_length', max_session_length),
                        ('min_item_events', min_item_events)):
        if limit is not None:
            check_whole_number(name, limit)
    check_events(events, *columns)
    check_times(events[time])
    if events[time].max() > 1e11:
        raise ValueError(f'{time} has numbers such as {events[time].max()}: they must be seconds, and these look like '
                         'milliseconds')
    events = protocol.sort_events(events[list(columns)].set_axis(COLUMNS, axis=1))
    if max_session_length:
        events = require_events(protocol.drop_long_sessions(events, max_session_length),
                                f'dropping sessions of more than {max_session_length} events')
    short = f'dropping sessions of fewer than {min_session_length} events'
    events = require_events(protocol.drop_short_sessions(events, min_session_length), short)
    events = require_events(protocol.drop_rare_items(events, min_item_events),
                            f'dropping items with fewer than {min_item_events} events')
    events = require_events(protocol.drop_short_sessions(events, min_session_length), short)
    train, test, what = _split(events, test_days, test_fraction)
    train = require_events(train, what)
    test = require_events(protocol.keep_known_items(test, train['ItemId'].unique()),
                          'dropping test items that training does not have, then test sessions of one event')
    train, test = (frame.set_axis(list(columns), axis=1) for frame in (train, test))
    return train.reset_index(drop=True), test.reset_index(drop=True)


def _check_split(test_days: float | None, test_fraction: float | None) -> None:
    """TypeError or ValueError unless they say what `prepare` can do."""
    if test_days is not None and test_fraction is not None:
        raise ValueError('give test_days or test_fraction, not both')
    if test_fraction is not None:
        check_number('test_fraction', test_fraction, 0, 1, above=True, below=True)
    if test_days is not None:
        check_number('test_days', test_days, above=True)


def _split(events: pd.DataFrame, test_days: float | None,
           test_fraction: float | None) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Training and test events, no session divided, and in words what was done."""
    if test_fraction is None:
        train, test = protocol.split_last_seconds(events, protocol.DAY * (test_days or 1))
        return train, test, f'setting the last {test_days or 1:g} day(s) apart as test data'
    ends = events.groupby('SessionId').Time.max().sort_values(kind='stable')
    in_test = events.SessionId.isin(ends.index[len(ends) - max(1, round(test_fraction * len(ends))):])
    return events[~in_test], events[in_test], f'setting the last {test_fraction:g} of the sessions apart as test data'
