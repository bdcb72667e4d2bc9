"""Session logs of any kind: reading a file of events, and preparing training and test data from it.

A log has a row for each event and three columns: session, item, time.  `preprocess_rsc15` does the same for the raw
files of RSC15, faster and by the paper's rules alone.
"""
from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pandas as pd

from gru4rec_pytensor import events as protocol
from gru4rec_pytensor.checks import check_choice, check_number, check_optional_number, check_whole_number
from gru4rec_pytensor.events import COLUMNS, MIN_ITEM_EVENTS, MIN_SESSION_LENGTH, left_by, logger, require
from gru4rec_pytensor.files import name_of, plain_text
from gru4rec_pytensor.raw_log import read_clicks
from gru4rec_pytensor.text_table import DELIMITERS, line_of, open_table, read_table

Where = Callable[[int], str]  # row of a file, counted from 0 -> its name in messages


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------

class Format(NamedTuple):
    """Columns of a log, and their meaning."""
    title: str
    columns: tuple[str, ...]  # of sessions, items and times
    day: str | None = None  # column of the date, where the times are milliseconds within a session
    event_key: str | None = None  # column of the kind of event
    event_types: tuple[str, ...] = ()  # the kinds to keep; all when there are none
    session_gap: float | None = None  # seconds without an event that end a session, where the first column has visitors
    test_days: int | None = None  # of test data by the protocol of 2023, where that knows the log

    @property
    def needed(self) -> list[str]:
        """Return the names of all columns that are read."""
        others = (self.day, self.event_key if self.event_types else None)
        return [*self.columns, *(name for name in others if name)]


RAW_LINE = re.compile(rb'\d+,\d{4}-\d\d-\d\dT[\d:.]+Z,\d+,\w*\s')
RAW = Format('the raw log of RSC15', COLUMNS, test_days=1)  # known by its first line, since it has no header
FORMATS = (  # that are known by their headers
    Format('the events of retailrocket', ('visitorid', 'itemid', 'timestamp'), None, 'event', ('view',), 3600, 7),
    Format('the views of Diginetica', ('sessionId', 'itemId', 'timeframe'), 'eventdate', test_days=7),
    Format('the views of Diginetica', ('session_id', 'item_id', 'timeframe'), 'eventdate', test_days=7),
    Format('the events of REES46', ('user_session', 'product_id', 'event_time'), None, 'event_type', ('view',),
           test_days=1),
    Format('the browsing events of Coveo', ('session_id_hash', 'product_sku_hash', 'server_timestamp_epoch_ms'), None,
           'product_action', ('detail',), test_days=7),
    Format('interactions of RecBole', ('session_id:token', 'item_id:token', 'timestamp:float')),
)


def read_events(path: str | Path, columns: Sequence[str] = COLUMNS, *, time_unit: str | None = None,
                drop_without_session: bool = False, drop_without_item: bool = False, event_key: str | None = None,
                event_types: Sequence[str] = (), session_gap: float | None = None) -> pd.DataFrame:
    """Read the events of a file: Parquet, or text with a header and tabs, commas, semicolons or bars.

    Text is UTF-8 and may be compressed (gzip, zip, bzip2, xz); ``-`` is standard input.  Files without the `columns`
    SessionId, ItemId and Time are read as they are if their header is one of `FORMATS`, and so is the raw log of RSC15.
    What was assumed, and how many rows were left out, goes to the logger ``gru4rec.events``.

    Parameters
    ----------
    columns : names of the columns of sessions, items and times
    time_unit : of times that are numbers: 's', 'ms', 'us' or 'ns'; None to tell by their size, see `events.in_seconds`
    drop_without_session, drop_without_item : leave out rows whose session or item is missing
    event_key, event_types : a column, and the values with which rows are kept; all rows without them
    session_gap : seconds; the column of sessions has visitors, whose sessions end where no event follows for so long,
        see `events.sessions_by_gap`

    Returns
    -------
    frame with these three columns, in the file's order, and its `Format` as ``attrs['format']``.  Ids are int64 where
    all of a column are whole numbers that lose nothing by it, as 007 would, else text; times are seconds since 1970, of
    numbers or of dates and times such as 2014-04-07T10:51:09.277Z or 2019-10-01 00:00:00 UTC.  FileNotFoundError, or
    ValueError that names the file, the column and the first line that is wrong.
    """
    title = name_of(path)
    if len(set(columns)) < 3:
        raise ValueError(f'session, item and time must be three columns, not {list(columns)}')
    if session_gap is not None:
        check_number('session_gap', session_gap)
    asked = Format('', tuple(columns), None, event_key, tuple(event_types), session_gap)
    with plain_text(path) as plain:
        start = plain.read(1 << 10)
        plain.seek(0)
        if start.startswith(b'PAR1') or Path(path).suffix in ('.parquet', '.pq'):
            frame, where, form = _read_parquet(plain, title, asked)
        elif asked.columns == COLUMNS and not asked.event_types and RAW_LINE.match(start):
            logger.info('%s: read as %s', title, RAW.title)
            frame, where, form = (read_clicks(title, plain), lambda row: f'{title}, line {row + 1}',
                                  RAW._replace(session_gap=session_gap))
        else:
            frame, where, form = _read_text(plain, title, asked)
        if frame.empty:
            raise ValueError(f'{title}: has no events')
        frame = _of_types(title, frame, form)
        for is_asked, column in ((drop_without_session, form.columns[0]), (drop_without_item, form.columns[1])):
            if is_asked:
                missing = frame[column].isna() | (frame[column] == '')
                if missing.any():
                    logger.warning('%s: %s of %s rows have no %s and are left out', title, f'{missing.sum():,}',
                                   f'{len(frame):,}', column)
                frame = protocol.require_events(frame[~missing], f'leaving out rows without {column}')
        times = frame[form.columns[2]]
        if form.day:
            is_number = pd.to_numeric(times, errors='coerce').notna()
            require(times, is_number & (not pd.api.types.is_datetime64_any_dtype(times)),
                    'a number of milliseconds within the day', where)
        times = _seconds(where, times, 'ms' if form.day else time_unit)
        if form.day:
            times = times + _seconds(where, frame[form.day])
        ids = [_ids(where, frame[name], kind) for name, kind in zip(form.columns, ('session', 'item'))]
        events = pd.DataFrame(dict(zip(columns, [*ids, times]))).reset_index(drop=True)
    if form.session_gap is not None:
        session, _item, time = columns
        events = events.assign(**{session: protocol.sessions_by_gap(events, form.session_gap, session, time)})
        logger.info('%s: sessions of a visitor (%s) are parted by more than %g seconds without an event: %s sessions',
                    title, form.columns[0], form.session_gap, f'{events[session].max() + 1:,}')
    events.attrs['format'] = form
    return events


def _chosen(title: str, names: list[str], asked: Format) -> Format:
    """Return the format asked for, or the known one with such names; ValueError for a column that stands twice."""
    form = asked
    if asked.columns == COLUMNS and not set(COLUMNS) <= set(names):
        known = next((known for known in FORMATS if set(known.needed) <= set(names)), None)
        if known:
            logger.info('%s: read as %s: session %s, item %s, time %s', title, known.title, known.columns[0],
                        known.columns[1], ' in the day '.join(filter(None, [known.columns[2], known.day])))
            form = known._replace(event_key=asked.event_key or known.event_key,
                                  event_types=asked.event_types or known.event_types,
                                  session_gap=known.session_gap if asked.session_gap is None else asked.session_gap)
    if form.event_types and not form.event_key:
        raise ValueError('event_types needs event_key, the column that holds them')
    if repeated := [name for name in form.needed if names.count(name) > 1]:
        raise ValueError(f'{title}: has more than one column {repeated[0]!r}')
    return form


def _of_types(title: str, frame: pd.DataFrame, form: Format) -> pd.DataFrame:
    """Keep the events of the wanted kinds, and report how many others there are."""
    if not form.event_types:
        return frame
    kinds = frame[form.event_key].astype(str)
    kept = frame[kinds.isin(form.event_types)]
    others = kinds[~kinds.isin(form.event_types)].value_counts()
    found = ', '.join(f'{number:,} {kind}' for kind, number in others.head(8).items())
    if kept.empty:
        raise ValueError(f'{title}: no {form.event_key} is {" or ".join(form.event_types)}; there are {found}')
    if len(others):
        logger.warning('%s: events with the %s %s are kept, and %s of %s left out: %s', title, form.event_key,
                       ' or '.join(form.event_types), f'{others.sum():,}', f'{len(frame):,}', found)
    return kept


NO_IDS = ('binary', 'large_binary', 'fixed_size_binary', 'time32', 'time64', 'duration', 'month')  # types of Arrow


def _read_parquet(plain: BinaryIO, title: str, asked: Format) -> tuple[pd.DataFrame, Where, Format]:
    """Read the needed columns of a Parquet file; whole numbers stay whole beside missing values."""
    try:  # optional
        parquet, types = (importlib.import_module(f'pyarrow.{name}') for name in ('parquet', 'types'))
    except ImportError:
        raise ValueError(f'{title}: reading Parquet needs pyarrow: pip install pyarrow') from None
    try:
        file = parquet.ParquetFile(plain)
    except Exception as error:  # of pyarrow, which has errors of its own
        raise ValueError(f'{title}: not a Parquet file ({str(error).splitlines()[0]})') from None
    names = file.schema_arrow.names
    form = _chosen(title, names, asked)
    if missing := [name for name in form.needed if name not in names]:
        raise ValueError(f'{title}: lacks the column {missing[0]!r}; it has {names[:12]}')
    for name in form.needed:
        kind = file.schema_arrow.field(name).type
        kind = getattr(kind, 'storage_type', kind)  # of an extension, such as UUIDs
        kind = getattr(kind, 'value_type', kind) if types.is_dictionary(kind) else kind
        if types.is_nested(kind) or any(map(str(kind).startswith, NO_IDS)):
            raise ValueError(f'{title}: column {name!r} holds {kind}; write it as text, whole numbers or dates')
    frame = file.read(form.needed).to_pandas(integer_object_nulls=True)
    if set(frame.index.names) & set(form.needed):  # a column that pandas wrote as the index
        frame = frame.reset_index()
    return frame[form.needed].reset_index(drop=True), lambda row: f'{title}, row {row}', form


def _read_text(plain: BinaryIO, title: str, asked: Format) -> tuple[pd.DataFrame, Where, Format]:
    """Read a text file; the delimiter is the one by which the header has most of the columns."""
    known = [asked, *(FORMATS if asked.columns == COLUMNS else ())]
    table = open_table(plain, title, lambda names: max(sum(name in names for name in form.needed) for form in known))
    form = _chosen(title, table.names, asked)
    if missing := [name for name in form.needed if name not in table.names]:
        expected = f'Expected is a header with {list(asked.columns)}'
        if len(table.names) == 4 and re.fullmatch(r'\d{4}-\d\d-\d\dT[\d:.]+Z', table.names[1]):
            expected = ('It looks like the raw log of RSC15, which is read without options for columns and kinds of '
                        'event')
        elif any(re.fullmatch(r'[\d.:TZ/ +-]+', name) for name in table.names):
            expected = ('It looks like an event: a log needs a first line that names its columns, such as '
                        + ','.join(asked.columns))
        raise ValueError(f'{title}: lacks the column(s) {missing}; by {DELIMITERS[table.delimiter]} its first line has '
                         f'{table.names[:8]}. {expected}')
    time = form.columns[2]
    frame = read_table(table, form.needed, [name for name in form.needed if name not in (time, form.day)], time)
    return frame, lambda row: f'{title}, line {line_of(table, row)}', form


def _ids(where: Where, values: pd.Series, kind: str) -> pd.Series:
    """Convert ids of sessions or items to int64 if the column holds whole numbers, else to text."""
    wanted = f'an id (--drop-without-{kind} leaves such rows out)'
    require(values, values.notna(), wanted, where)
    if pd.api.types.is_bool_dtype(values):
        return values.astype(str)
    if pd.api.types.is_numeric_dtype(values) and values.dtype != 'uint64':
        require(values, (values % 1 == 0) & (values.abs() < 2 ** 63), 'a whole number of 64 bits', where)
        return values.astype('int64')
    types = values.map(type).unique() if values.dtype == object else []
    if len(types) > 1:
        raise ValueError(f'{where(0).partition(", ")[0]}: column {values.name!r} has ids of several types: '
                         f'{", ".join(sorted(found.__name__ for found in types))}')
    codes, distinct = pd.factorize(values)
    texts = pd.Series(distinct).astype(str).str.strip()
    require(values, (texts != '').to_numpy()[codes], wanted, where)
    number = pd.to_numeric(texts, errors='coerce')
    is_number = number.dtype == 'int64' and (number.astype(str) == texts).all()
    return pd.Series((number if is_number else texts).array[codes], values.index, name=values.name)


def _seconds(where: Where, values: pd.Series, unit: str | None = None) -> pd.Series:
    """Convert times or days, numbers or text, to seconds since 1970."""
    times, is_bool = values, pd.api.types.is_bool_dtype(values)
    if is_bool or pd.api.types.is_datetime64_any_dtype(values):
        require(values, values.notna() & (not is_bool), 'a time', where)
    elif not pd.api.types.is_numeric_dtype(values):
        codes, distinct = pd.factorize(values, use_na_sentinel=False)  # each text once: many events share a second
        texts = pd.Series(distinct)
        found = pd.to_numeric(texts, errors='coerce')
        wanted = 'a number'
        if found.isna().all():
            wanted = 'a number, or a date and time such as 2014-04-07T10:51:09.277Z'
            is_time = texts.map(lambda value: not isinstance(value, str) or value.strip()[:1].isdigit())  # not 'now'
            # Of what ISO 8601 does not have, one is common: 2019-10-01 00:00:00 UTC.
            texts = texts.where(is_time).replace(r'^(.*\d) ?(?:UTC|GMT)$', r'\1Z', regex=True)
            found = pd.to_datetime(texts, errors='coerce', utc=True, format='ISO8601')
        times = pd.Series(found.array[codes], values.index, name=values.name)
        require(values, times.notna(), wanted, where)
    else:
        require(values, values.notna(), 'a number', where)
    return protocol.in_seconds(times, unit, where)


# ---------------------------------------------------------------------------------------------------------------------
# Preparing
# ---------------------------------------------------------------------------------------------------------------------

def prepare(events: pd.DataFrame, columns: Sequence[str] = COLUMNS, *, min_session_length: int = MIN_SESSION_LENGTH,
            max_session_length: int | None = None, min_item_events: int = MIN_ITEM_EVENTS,
            test_days: float | None = None, test_fraction: float | None = None, time_unit: str | None = None,
            drop_repeats: bool = False, until_stable: bool = False, test_by: str = 'last',
            ) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make training and test data of a log, by the filters of the paper's section 4.

    Too long sessions are dropped, then too short ones, rare items, and sessions that have become too short.  The
    sessions that end last are set apart as test data, whole; items that training does not have are dropped there, and
    then sessions with fewer than two events.  The authors' protocol since 2023 is ``drop_repeats=True,
    until_stable=True, test_by='first'``.

    Parameters
    ----------
    events : frame with the three `columns`, rows in any order; times as `events.in_seconds` takes them
    min_session_length, max_session_length : events of a session; a maximum of None is no limit
    min_item_events : events of an item, in the whole log
    test_days : the sessions that end in so many last days are the test data; 1 when both are None
    test_fraction : instead, this share of the sessions, those that end last
    time_unit : of times that are numbers, see `events.in_seconds`
    drop_repeats : of events of an item that follow one another in a session, keep the first
    until_stable : drop short sessions and rare items until nothing changes, not just once
    test_by : 'last' for the sessions that end last; 'first' for those that start last, and training ends where the
        first of them starts, which cuts sessions that are longer

    Returns
    -------
    (train, test), rows by session and time, equal times in the order of `events`; times in seconds.  How many events
    each step dropped goes to the logger ``gru4rec.events``, at level INFO; ValueError says which step left nothing
    """
    time = columns[2]
    check_choice('test_by', test_by, ('last', 'first'))
    if test_days is not None and test_fraction is not None:
        raise ValueError('give test_days or test_fraction, not both')
    if test_fraction is not None:
        check_number('test_fraction', test_fraction, 0, 1, above=True, below=True)
        divide = partial(protocol.split_last_share, share=test_fraction, by=test_by)
        step = f'setting the last {test_fraction:g} of the sessions apart as test data'
    else:
        days = 1 if test_days is None else test_days
        check_number('test_days', days, above=True)
        by_time = protocol.split_last_seconds if test_by == 'last' else protocol.split_at_start
        divide = partial(by_time, seconds=protocol.DAY * days)
        step = f'setting the last {days:g} day(s) apart as test data'
    check_whole_number('min_session_length', min_session_length)
    check_whole_number('min_item_events', min_item_events)
    check_optional_number('max_session_length', max_session_length)
    protocol.check_events(events, *columns)
    protocol.check_times(events[time])
    events = events[list(columns)].assign(**{time: protocol.in_seconds(events[time], time_unit)})
    events = protocol.sort_events(events.set_axis(COLUMNS, axis=1))
    if drop_repeats:
        events = left_by('dropping repeats', events, protocol.drop_repeats(events))
    events = left_by(f'dropping sessions of more than {max_session_length} events', events,
                     protocol.drop_long_sessions(events, max_session_length))
    short = f'dropping sessions of fewer than {min_session_length} events'
    rare = f'dropping items with fewer than {min_item_events} events'
    if until_stable:
        events = left_by(f'{short} and {rare} until nothing changes', events,
                         protocol.filter_until_stable(events, min_session_length, min_item_events))
    else:
        events = left_by(short, events, protocol.drop_short_sessions(events, min_session_length))
        events = left_by(rare, events, protocol.drop_rare_items(events, min_item_events))
        events = left_by(short, events, protocol.drop_short_sessions(events, min_session_length))
    train, test = protocol.split(events, 'test', divide, step, min_session_length)
    return train.set_axis(list(columns), axis=1), test.set_axis(list(columns), axis=1)
