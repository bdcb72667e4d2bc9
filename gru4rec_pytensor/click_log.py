"""Session logs of any kind: reading a file of events, and preparing training and test data from it.

A log has a row for each event and three columns: session, item, time.  `preprocess_rsc15` does the same for the raw
files of RSC15, faster and by the paper's rules alone.
"""
from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
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
    left_by,
    require_events,
)
from gru4rec_pytensor.files import name_of, plain_text
from gru4rec_pytensor.text_table import DELIMITERS, line_of, open_table, read_table

logger = logging.getLogger('gru4rec.events')
Where = Callable[[int], str]  # what to call a row of a file, counted from 0, in messages


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------

def read_events(path: str | Path, columns: Sequence[str] = COLUMNS, *, time_unit: str | None = None,
                drop_without_session: bool = False) -> pd.DataFrame:
    """The events of a file: Parquet, or text with a header and tabs, commas, semicolons or bars.

    Text may be compressed (gzip, zip, bzip2, xz, zstandard), and UTF-8 or UTF-16; ``-`` is standard input.

    Parameters
    ----------
    columns : names of the columns of sessions, items and times
    time_unit : of times that are numbers: 's', 'ms', 'us' or 'ns'; None to tell by their size, see `events.in_seconds`
    drop_without_session : leave out rows whose session is missing; how many is a warning of the logger
        ``gru4rec.events``

    Returns
    -------
    frame with these three columns, in the file's order.  Ids are int64 where all of a column are whole numbers that
    lose nothing by it, as 007 would, else text; times are seconds since 1970, of numbers or of dates and times such as
    2014-04-07T10:51:09.277Z or 2019-10-01 00:00:00 UTC.

    Raises
    ------
    FileNotFoundError, or ValueError that names the file, the column and the first line that is wrong
    """
    title = name_of(path)
    if len(set(columns)) < 3:
        raise ValueError(f'session, item and time must be three columns, not {list(columns)}')
    with plain_text(path) as plain:
        read = _read_parquet if _is_parquet(plain) or Path(path).suffix in ('.parquet', '.pq') else _read_text
        frame, where = read(plain, title, columns)
        if frame.empty:
            raise ValueError(f'{title}: has no events')
        session, item, time = columns
        if drop_without_session:
            frame = _with_session(title, frame, session)
        frame = frame.assign(**{session: _ids(where, frame[session], ' (--drop-without-session leaves such rows out)'),
                                item: _ids(where, frame[item]), time: _times(where, frame[time])})
    times = protocol.in_seconds(frame[time], time_unit)
    return frame.assign(**{time: times}).reset_index(drop=True)


def _is_parquet(path: Path) -> bool:
    with open(path, 'rb') as file:
        return file.read(4) == b'PAR1'


def _read_parquet(path: Path, title: str, columns: Sequence[str]) -> tuple[pd.DataFrame, Where]:
    try:
        frame = pd.read_parquet(path)
    except ImportError:
        raise ValueError(f'{title}: reading Parquet needs pyarrow: pip install pyarrow') from None
    except Exception as error:  # of pyarrow, which has errors of its own
        raise ValueError(f'{title}: not a Parquet file ({str(error).splitlines()[0]})') from None
    names = list(frame.columns)
    for name in columns:
        if names.count(name) != 1:
            raise ValueError(f'{title}: {"lacks the column" if name not in names else "has more than one column"} '
                             f'{name!r}; it has {names[:12]}')
    return frame[list(columns)].reset_index(drop=True), lambda row: f'{title}, row {row}'


def _read_text(path: Path, title: str, columns: Sequence[str]) -> tuple[pd.DataFrame, Where]:
    """A text file; the delimiter is the one by which the header has most of the columns."""
    def n_found(names: list[str]) -> tuple[int]:
        return (sum(name in names for name in columns),)
    table = open_table(path, title, n_found)
    repeated = [name for name in columns if table.names.count(name) > 1]
    if repeated:
        raise ValueError(f'{title}: has more than one column {repeated[0]!r}')
    missing = [name for name in columns if name not in table.names]
    if missing:
        raise ValueError(f'{title}: lacks the column(s) {missing}; by {DELIMITERS[table.delimiter]} its first line has '
                         f'{table.names[:8]}. {_what_is_expected(table.names, columns)}')
    frame = read_table(table, list(columns), list(columns[:2]), columns[2])
    return frame, lambda row: f'{title}, line {line_of(table, row)}'


def _what_is_expected(names: list[str], columns: Sequence[str]) -> str:
    """What to do about a file whose first line, with these fields, has not the columns."""
    if any(re.fullmatch(r'[\d.:TZ/ +-]+', name) for name in names):
        if len(names) == 4 and re.fullmatch(r'\d{4}-\d\d-\d\dT[\d:.]+Z', names[1]):
            return "It looks like the raw log of RSC15, which has no header: preprocess_rsc15.py reads it"
        return f'It looks like an event: a log needs a first line that names its columns, such as {",".join(columns)}'
    return f'Expected is a header with {list(columns)}'


def _with_session(title: str, frame: pd.DataFrame, session: str) -> pd.DataFrame:
    """The rows that have a session; says how many have none."""
    values = frame[session]
    missing = values.isna() | (values == '') if not pd.api.types.is_numeric_dtype(values) else values.isna()
    if missing.any():
        logger.warning('%s: %s of %s rows have no %s and are left out', title, f'{missing.sum():,}', f'{len(frame):,}',
                       session)
    return require_events(frame[~missing], f'leaving out rows without {session}')


def _ids(where: Where, values: pd.Series, hint: str = '') -> pd.Series:
    """Ids as int64 if the column holds whole numbers, else as text."""
    _require(where, values.notna(), values, f'an id{hint}')
    if pd.api.types.is_bool_dtype(values):
        return values.astype(str)
    if pd.api.types.is_numeric_dtype(values) and values.dtype != 'uint64':
        _require(where, values % 1 == 0, values, 'a whole number')
        return values.astype('int64')
    types = values.map(type).unique()
    if len(types) > 1:
        raise ValueError(f'{where(0).partition(", ")[0]}: column {values.name!r} has ids of several types: '
                         f'{", ".join(sorted(kind.__name__ for kind in types))}')
    values = values.astype(str).str.strip()
    _require(where, values != '', values, f'an id{hint}')
    number = pd.to_numeric(values, errors='coerce')
    return number if number.dtype == 'int64' and (number.astype(str) == values).all() else values


def _times(where: Where, values: pd.Series) -> pd.Series:
    """Times as numbers or timestamps."""
    if pd.api.types.is_datetime64_any_dtype(values):
        _require(where, values.notna(), values, 'a time')
        return values
    number = pd.to_numeric(values, errors='coerce')
    if number.isna().all() and not pd.api.types.is_numeric_dtype(values):
        dates = pd.to_datetime(values, errors='coerce', utc=True, format='ISO8601')
        bad = dates.isna()
        if bad.any():  # of what ISO 8601 does not have, one is common: 2019-10-01 00:00:00 UTC
            texts = values[bad].astype(str)
            dates[bad] = pd.to_datetime(texts.where(~texts.str.fullmatch(r'.*\d ?(?:UTC|GMT)'),
                                                    texts.str.slice(stop=-3).str.strip() + 'Z'),
                                        errors='coerce', utc=True, format='ISO8601')
        _require(where, dates.notna(), values, 'a number, or a date and time such as 2014-04-07T10:51:09.277Z')
        return dates
    _require(where, number.notna() & np.isfinite(number), values, 'a number')
    _require(where, number >= 0, values, 'a time: it is negative')
    return number


def _require(where: Where, good: pd.Series, values: pd.Series, wanted: str) -> None:
    """ValueError that names the first line whose column is not what it should be."""
    if not good.all():
        first = int((~good).to_numpy().argmax())
        value = values.iloc[first]
        found = 'missing' if pd.isna(value) or value == '' else repr(getattr(value, 'item', lambda: value)())
        raise ValueError(f'{where(int(values.index[first]))}: {values.name} is {found}, not {wanted}')


# ---------------------------------------------------------------------------------------------------------------------
# Preparing
# ---------------------------------------------------------------------------------------------------------------------

def prepare(events: pd.DataFrame, columns: Sequence[str] = COLUMNS, *, min_session_length: int = MIN_SESSION_LENGTH,
            max_session_length: int | None = None, min_item_events: int = MIN_ITEM_EVENTS,
            test_days: float | None = None, test_fraction: float | None = None,
            time_unit: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test data of a log, by the filters of the paper's section 4.

    Sessions that are too long, then those too short, items that are too rare, and sessions that these left too short
    are dropped.  The sessions that end last are set apart as test data, whole; of these, items that training does not
    have are dropped, and then sessions with fewer than two events.

    Parameters
    ----------
    events : frame with the three `columns`, rows in any order; times as `events.in_seconds` takes them
    min_session_length, max_session_length : events of a session; None for no limit
    min_item_events : events of an item, in the whole log
    test_days : the sessions that end in so many last days are the test data; 1 when both are None
    test_fraction : instead, this share of the sessions, those that end last
    time_unit : of times that are numbers, see `events.in_seconds`

    Returns
    -------
    (train, test), rows by session and time, equal times in the order of `events`; times in seconds.  How many events
    each step dropped goes to the logger ``gru4rec.events``, at level INFO

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
    events = events[list(columns)].assign(**{time: protocol.in_seconds(events[time], time_unit)})
    events = protocol.sort_events(events.set_axis(COLUMNS, axis=1))
    if max_session_length:
        events = left_by(f'dropping sessions of more than {max_session_length} events', events,
                         protocol.drop_long_sessions(events, max_session_length))
    short = f'dropping sessions of fewer than {min_session_length} events'
    events = left_by(short, events, protocol.drop_short_sessions(events, min_session_length))
    events = left_by(f'dropping items with fewer than {min_item_events} events', events,
                     protocol.drop_rare_items(events, min_item_events))
    events = left_by(short, events, protocol.drop_short_sessions(events, min_session_length))
    train, test, what = _split(events, test_days, test_fraction)
    train = require_events(train, what)
    test = left_by('dropping test items that training does not have, then test sessions of one event', test,
                   protocol.keep_known_items(test, train['ItemId'].unique()))
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
