"""Frames of events, with a row for each event and columns of sessions, items and times: checks, order, numbers for
ids, filters and splits.

Functions that take no names of columns expect those of the paper's data, `COLUMNS`.
"""
from __future__ import annotations

import datetime
import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

logger = logging.getLogger('gru4rec.events')
COLUMNS = ('SessionId', 'ItemId', 'Time')
DAY = 86_400  # seconds
EQUAL_TIMES = 0.01  # share of events from which on the order of equal times is worth a note
TIME_UNITS = {'s': 1, 'ms': 1000, 'us': 1_000_000, 'ns': 1_000_000_000}  # in a second
ID_TYPES = (str, int, float, np.number, np.bool_, datetime.date, np.datetime64, datetime.timedelta, np.timedelta64)
WHAT_IDS_ARE = 'numbers, text, dates or truth values'
YEARS = (1901, 2199)  # of dates: those before and after stand for none, such as 0001-01-01, 1900-01-01 and 9999-12-31
TODAY = (630_000_000, 4_200_000_000)  # seconds since 1970: 1989 to 2103
LAST_SECOND = 7_258_118_400  # of 2199
NUMBER_DATES = {  # number of digits -> dates that are written so
    4: ('%y%m',), 6: ('%Y%m', '%y%m%d'), 8: ('%Y%m%d', '%y%m%d%H'), 10: ('%Y%m%d%H', '%y%m%d%H%M'),
    12: ('%Y%m%d%H%M', '%y%m%d%H%M%S'), 14: ('%Y%m%d%H%M%S',)}
CERTAIN_DATES = ('%Y%m%d', '%Y%m%d%H%M', '%Y%m%d%H%M%S')  # which are no seconds or milliseconds of our time
UNIT_NAMES = {'s': 'seconds', 'ms': 'milliseconds', 'us': 'microseconds', 'ns': 'nanoseconds'}
MIN_SESSION_LENGTH = 2  # a session of a single event has no next item
MIN_ITEM_EVENTS = 5
MAX_SESSION_LENGTH = 200  # about as long as RSC15's sessions get; longer ones are likely to be of bots


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------

def check_events(data: pd.DataFrame, *columns: str) -> None:
    """Raise TypeError or ValueError unless `data` is a frame with events and these columns, without missing values."""
    if not isinstance(data, pd.DataFrame):
        kind = type(data)
        found = f'{kind.__module__.partition(".")[0]}.{kind.__name__}'.removeprefix('builtins.')
        hint = '; its method to_pandas() makes one' if hasattr(data, 'to_pandas') else ''
        raise TypeError(f'the data must be a pandas DataFrame with the columns {list(columns)}, not {found}{hint}')
    present = list(data.columns)
    for name in columns:
        if present.count(name) != 1:
            raise ValueError(f'the data has {"more than one" if name in present else "no"} column {name!r}; '
                             f'its columns are {present}')
        if data[name].isna().any():
            row = int(data[name].isna().to_numpy().argmax())
            raise ValueError(f'column {name!r} has missing values, the first in row {row}')
    if data.empty:
        raise ValueError('the data has no events')
    for name in columns:
        values = data[name]
        for kind in values.map(type).unique() if values.dtype == object else [type(values.iloc[0])]:
            if not issubclass(kind, ID_TYPES):  # which can be compared, and saved
                example = next(value for value in values if type(value) is kind)
                raise TypeError(f'column {name!r} has values such as {example!r}, of type {kind.__name__}: they must '
                                f'be {WHAT_IDS_ARE}')


def check_times(times: pd.Series) -> None:
    """Raise TypeError for text, whose order is not that of time."""
    if times.dtype == object:
        times = times[times.map(lambda time: isinstance(time, str))]
    if len(times) and pd.api.types.is_string_dtype(times):
        raise TypeError(f'column {times.name!r} must hold numbers or timestamps, not text such as {times.iloc[0]!r}')


def require(values: pd.Series, good: ArrayLike, wanted: str, where: Callable[[Any], str] | None = None) -> None:
    """Raise ValueError that names the first of the values that is not good.

    `where` turns its label in the index into the place that the message begins with, such as a file and a line.
    """
    if not np.all(good):
        row = int(np.argmin(good))
        value = values.iloc[row]
        found = 'missing' if pd.isna(value) or value == '' else repr(value) if isinstance(value, str) else value
        found = f'{values.name} is {found}'
        raise ValueError(f'{where(values.index[row])}: {found}, not {wanted}' if where else
                         f'{found} in row {row}, not {wanted}')


def in_seconds(times: pd.Series, unit: str | None = None, where: Callable[[Any], str] | None = None) -> pd.Series:
    """Return times, timestamps or numbers, as seconds since 1970; numbers of seconds are returned as they are.

    Parameters
    ----------
    unit : of numbers: 's', 'ms', 'us' or 'ns'; None to tell them apart by the largest one.  1e11 seconds are the year
        5138, and 1e11 milliseconds 1973: below it they are seconds, below 1e14 milliseconds, below 1e17 microseconds.
        Numbers that are all dates, such as 20140407 or 20140407105109, are read as such.  Whatever is not taken for
        seconds is reported, as a warning of the logger ``gru4rec.events``
    where : label of a row -> its place in messages, see `require`

    Raises
    ------
    TypeError or ValueError for text, for another unit, and for what is no time: numbers that are negative, not finite,
    of another unit than the others, or perhaps dates; timestamps that are not of the `YEARS`
    """
    if unit is not None and unit not in TIME_UNITS:
        raise ValueError(f'time_unit={unit!r}: must be one of {", ".join(map(repr, TIME_UNITS))}, or None')
    if isinstance(times.dtype, pd.CategoricalDtype):
        times = times.astype(times.cat.categories.dtype)
    times = times.infer_objects()
    in_span = f'a time from {YEARS[0]} to {YEARS[1]}'
    if times.dtype == object and isinstance(times.iloc[0], datetime.date):  # of Python: dates, or with a time
        require(times, [YEARS[0] <= time.year <= YEARS[1] for time in times], in_span, where)
        times = pd.to_datetime(times, utc=True)
    if pd.api.types.is_datetime64_any_dtype(times):
        require(times, times.dt.year.between(*YEARS), in_span, where)
        utc = times.dt.tz_localize('UTC') if times.dt.tz is None else times.dt.tz_convert('UTC')
        return (utc - pd.Timestamp(0, tz='UTC')) / pd.Timedelta(seconds=1)
    if not pd.api.types.is_numeric_dtype(times) or pd.api.types.is_bool_dtype(times):
        raise TypeError(f'{times.name} must be timestamps or a number of seconds since 1970, not {times.dtype}')
    if times.to_numpy().dtype.itemsize < 4:  # too small for the seconds of a day
        times = times.astype(np.promote_types(times.to_numpy().dtype, 'int64'))
    values = times.to_numpy()
    require(times, np.isfinite(values), 'a number', where)
    require(times, values >= 0, 'a time: it is negative', where)
    dates = _dates_in(times, where) if unit is None and len(times) else None
    if dates is not None:
        return in_seconds(dates, None, where)
    largest = values.max(initial=0)
    taken = unit or next(found for found in TIME_UNITS if largest < 1e11 * TIME_UNITS[found] or found == 'ns')
    if taken == 's':
        return times
    if not unit:
        sizes = [size for other_unit, size in TIME_UNITS.items() if other_unit != taken]
        other = np.any([(values >= TODAY[0] * size) & (values < TODAY[1] * size) for size in sizes], axis=0)
        if other.mean() >= 0.5:  # a few large numbers, which decided on the unit, stand among them
            other = values == largest
        require(times, ~other & (values < LAST_SECOND * TIME_UNITS[taken]),
                'a time in the unit of the others (time_unit, --time-unit)', where)
        logger.warning('%s: numbers such as %.0f are taken for %s since 1970 (another unit: time_unit, --time-unit)',
                       times.name, largest, UNIT_NAMES[taken])
    return times / TIME_UNITS[taken]


def _dates_in(times: pd.Series, where: Callable[[Any], str] | None) -> pd.Series | None:
    """Return dates that are written as numbers, and None for other numbers; ValueError for numbers that may be both."""
    values = times.to_numpy()
    n_digits = len(f'{values.max():.0f}')
    if values.min() < 10 ** (n_digits - 1):
        return None
    for form in NUMBER_DATES.get(n_digits, ()):
        if _parsed(values[:1000], form) is None:  # which tells nearly all other numbers from dates
            continue
        codes, distinct = pd.factorize(values)
        dates = _parsed(distinct, form)
        if dates is None:
            continue
        name = f'{where(times.index[0])}: {times.name}' if where else times.name
        if form in CERTAIN_DATES:
            logger.warning('%s: numbers such as %d are taken for dates (another meaning: time_unit, --time-unit)', name,
                           values[0])
            return pd.Series(dates[codes], times.index, name=times.name)
        if len(distinct) > 2:
            raise ValueError(f'{name}: numbers such as {values[0]:.0f} look like dates ({form}); write them as '
                             f'{dates[0]:%Y-%m-%d}, or give the unit (time_unit, --time-unit)')
    return None


def _parsed(values: np.ndarray, form: str) -> pd.DatetimeIndex | None:
    """Return the dates that numbers of such a form are; None if one of them is none, or not of the `YEARS`."""
    if (values % 1 != 0).any():
        return None
    dates = pd.to_datetime(pd.Index(values.astype('int64')).astype(str), format=form, errors='coerce')
    return dates if ((dates.year >= YEARS[0]) & (dates.year <= YEARS[1])).all() else None


def require_events(data: pd.DataFrame, step: str) -> pd.DataFrame:
    """Return `data`, or raise ValueError that says which step left no event."""
    if data.empty:
        raise ValueError(f'no event is left after {step}')
    return data


def left_by(step: str, before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Return `after`, which a step left of `before`, and log how many events it dropped; ValueError if all of them."""
    require_events(after, step)
    if len(after) < len(before):
        logger.info('%s: %s of %s events', step, f'{len(before) - len(after):,}', f'{len(before):,}')
    return after


def count(data: pd.DataFrame) -> dict[str, int]:
    """Count sessions, events and items."""
    return {'sessions': int(data['SessionId'].nunique()), 'events': len(data), 'items': int(data['ItemId'].nunique())}


def share_of_equal_times(data: pd.DataFrame, session_key: str = 'SessionId', time_key: str = 'Time') -> float:
    """Return the share of events that have the time of another event of their session.

    >>> share_of_equal_times(pd.DataFrame({'SessionId': [1, 1, 1, 2], 'Time': [5, 5, 6, 5]}))
    0.5
    """
    return float(data.duplicated([session_key, time_key], keep=False).mean())


def n_trainable_sessions(data: pd.DataFrame, session_key: str = 'SessionId') -> int:
    """Count the sessions with an event to predict: those of two or more events."""
    return int((data[session_key].value_counts(sort=False) >= MIN_SESSION_LENGTH).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Ids and numbers
# ---------------------------------------------------------------------------------------------------------------------

def check_listed(name: str, ids: Any) -> None:
    """Raise TypeError unless these are ids in an order: a list, an array, a Series."""
    if isinstance(ids, (str, bytes, dict, set, frozenset, pd.DataFrame)) or not hasattr(ids, '__len__'):
        hint = ', such as [1001]' if np.isscalar(ids) else ''
        found = f'{type(ids).__name__} {ids!r}' if np.isscalar(ids) else f'a {type(ids).__name__}'
        raise TypeError(f'{name}: must be a list, an array or a Series of ids{hint}, not {found}')


def as_ids(ids: ArrayLike, name: str = 'ids') -> np.ndarray:
    """Make an array of ids that keeps the type of each: NumPy alone turns numbers beside a string into strings."""
    check_listed(name, ids)
    return pd.Series(ids if hasattr(ids, 'dtype') else list(ids)).to_numpy()  # type: ignore[arg-type]


def spelling(value: Any) -> str:
    """Return the same text for all ways in which files and types write an id.

    >>> [spelling(value) for value in (7, 7.0, '7', '7.0', np.float32(7), '007', 'a ')]
    ['7', '7', '7', '7', '7', '007', 'a']
    >>> {spelling(value) for value in (datetime.date(2019, 10, 1), '2019-10-01 00:00:00 UTC', '2019-10-01')}
    {'2019-10-01T00:00:00'}
    """
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r'-?\d+\.0+', text):
            return text.partition('.')[0]
        if not re.match(r'\d{4}-\d\d-\d\d(?:$|[T ])', text):
            return text.lower() if text.lower() in ('true', 'false') else text
        try:
            return spelling(pd.Timestamp(text))
        except ValueError:
            return text
    if isinstance(value, (datetime.date, np.datetime64)):
        stamp = pd.Timestamp(value)
        return (stamp.tz_convert(None) if stamp.tz else stamp).isoformat()
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, (float, np.floating)):
        return str(int(value)) if float(value).is_integer() else str(value)
    return str(value)


class IdIndex:
    """Index from ids to their places in a list, which also finds other spellings, see `spelling`.

    An exact match comes first: a list with both '7' and '7.0' keeps them apart, and then has no place for 7.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        self._index = _with_table(pd.Index(ids, tupleize_cols=False))

    def __reduce__(self) -> tuple:
        """Rebuild the tables in copies and pickles."""
        return IdIndex, (self.ids,)

    @functools.cached_property
    def _by_spelling(self) -> tuple[pd.Index, np.ndarray]:
        """Spellings of a single id each, and the places of these ids."""
        spelled = pd.Index([*map(spelling, self.ids)], dtype=object)
        places = np.flatnonzero(~spelled.duplicated(keep=False))
        return _with_table(spelled[places]), places

    def get_indexer(self, ids: ArrayLike) -> np.ndarray:
        """Return the places of ids, int64, -1 for those that are not in the list."""
        wanted = as_ids(ids)
        try:
            codes, distinct = pd.factorize(wanted)
        except TypeError:  # what has no hash is no id
            raise TypeError(f'ids must be {WHAT_IDS_ARE}, not such as {wanted[0]!r}') from None
        places = np.full(len(distinct), -1)
        if _kind(wanted) == _kind(self.ids):
            places = self._index.get_indexer(pd.Index(distinct, tupleize_cols=False))
        missing = np.flatnonzero(places < 0)
        if len(missing):
            spellings, places_of_spellings = self._by_spelling
            found = spellings.get_indexer(pd.Index([*map(spelling, distinct[missing])], dtype=object))
            places[missing] = np.append(places_of_spellings, -1)[found]  # not found is -1, the last one
        return np.append(places, -1)[codes]  # missing ids have the code -1

    def like(self, ids: pd.Series) -> np.ndarray:
        """Return ids in the spelling and the type of the list, new ones included.

        ValueError, with an example, for ids that cannot have that type, such as a word for a list of numbers.
        """
        codes, distinct = index_by_appearance(ids)
        places = self.get_indexer(distinct)
        if (places >= 0).all():
            return self.ids[places][codes]
        new = [self._converted(value) for value in distinct[places < 0]]
        own = np.empty(len(distinct), self.ids.dtype)
        own[places >= 0] = self.ids[places[places >= 0]]
        try:
            own[places < 0] = new
        except OverflowError:
            raise ValueError(f'{max(new)}, too large for {self.ids.dtype}') from None
        return own[codes]

    def _converted(self, value: Any) -> Any:
        """Convert an id to the type of the list."""
        kind, text = self.ids.dtype.kind, spelling(value)
        if kind not in 'OU' and np.asarray(value).dtype.kind == kind:
            return value
        if kind in 'iu' and re.fullmatch(r'-?(0|[1-9]\d{0,17})', text):
            return int(text)
        if kind == 'f' and re.fullmatch(r'-?(0|[1-9]\d*)(\.\d+)?', text):
            return float(text)
        if kind == 'M' and re.match(r'\d{4}-\d\d-\d\dT', text):
            return np.datetime64(text)
        if kind == 'O':
            return value if isinstance(value, str) or not isinstance(self.ids[0], str) else text
        raise ValueError(repr(getattr(value, 'item', lambda: value)()))


def _with_table(index: pd.Index) -> pd.Index:
    """Return `index` with its table, which pandas would make at the first look-up, while other threads use it."""
    index.get_indexer(index[:1])
    return index


def _kind(ids: np.ndarray) -> str:
    """Return a letter that is the same for ids that can be compared: numbers, text, days."""
    return {'i': 'n', 'u': 'n', 'f': 'n', 'U': 'O', 'T': 'O'}.get(ids.dtype.kind, ids.dtype.kind)


def index_by_appearance(ids: pd.Series | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number ids in the order of their first appearance: int64 (n_events,), and the ids in that order.

    >>> index, ids = index_by_appearance(pd.Series([30, 10, 30]))
    >>> index.tolist(), ids.tolist()
    ([0, 1, 0], [30, 10])
    """
    index, distinct = pd.factorize(ids)
    return index.astype('int64'), pd.Series(distinct).to_numpy()


def most_frequent(ids: pd.Series, n: int | None) -> np.ndarray | None:
    """Return the n ids with the most events, of equally frequent ones the first; None if there are no more than n."""
    index, distinct = index_by_appearance(ids)
    if n is None or n >= len(distinct):
        return None
    return distinct[np.argsort(-np.bincount(index), kind='stable')[:n]]


# ---------------------------------------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------------------------------------

def sorted_codes(values: pd.Series) -> np.ndarray:
    """Number values in their order, which that of the categories of a categorical column need not be."""
    return pd.factorize(values.to_numpy() if isinstance(values.dtype, pd.CategoricalDtype) else values, sort=True)[0]


def session_order(data: pd.DataFrame, session_key: str = 'SessionId', item_key: str = 'ItemId',
                  time_key: str = 'Time', then_by: np.ndarray | None = None,
                  by_start: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Order the rows of a frame by session and time, and find where each session begins.

    Parameters
    ----------
    then_by : (n_events,), what decides the order of events of a session with equal times; the frame's order when None
    by_start : order the sessions by the times of their first events, not by their ids

    Returns
    -------
    rows : int64 (n_events,), positions in `data`; a stable order
    offsets : int64 (n_sessions + 1,), and last the number of events
    """
    check_events(data, session_key, item_key, time_key)
    check_times(data[time_key])
    session = sorted_codes(data[session_key])
    keys = (data[time_key].to_numpy(), session)
    rows = np.lexsort(keys if then_by is None else (then_by, *keys))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(session))])
    if not by_start:
        return rows, offsets
    order = np.argsort(data[time_key].to_numpy()[rows[offsets[:-1]]], kind='stable')
    lengths = np.diff(offsets)[order]
    new_offsets = np.concatenate([[0], np.cumsum(lengths)])
    return rows[np.repeat(offsets[order] - new_offsets[:-1], lengths) + np.arange(len(rows))], new_offsets


def session_of_event(offsets: np.ndarray) -> np.ndarray:
    """Return the number of the session of each event, int64 (n_events,), from the places where sessions begin.

    >>> session_of_event(np.array([0, 3, 5])).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def sort_events(data: pd.DataFrame) -> pd.DataFrame:
    """Order events by session, then by time; events of a session with equal times keep their order."""
    session, time = data['SessionId'].to_numpy(), data['Time'].to_numpy()
    if session.dtype == object:  # perhaps of several types, which have an order in pandas only
        session = pd.factorize(session, sort=True)[0]
    same = session[1:] == session[:-1]
    if np.all((session[1:] > session[:-1]) | (same & (time[1:] >= time[:-1]))):
        return data
    return data.iloc[np.lexsort((time, session))]


# ---------------------------------------------------------------------------------------------------------------------
# Filters and splits (section 4)
# ---------------------------------------------------------------------------------------------------------------------

def size_of_group(ids: pd.Series) -> pd.Series:
    """Return for each row the number of rows with its id."""
    return ids.groupby(ids, sort=False).transform('size')


def drop_short_sessions(data: pd.DataFrame, min_length: int = MIN_SESSION_LENGTH,
                        session_key: str = 'SessionId') -> pd.DataFrame:
    """Keep the sessions that have at least `min_length` events."""
    return data[size_of_group(data[session_key]) >= min_length]


def drop_long_sessions(data: pd.DataFrame, max_length: int | None = MAX_SESSION_LENGTH) -> pd.DataFrame:
    """Keep the sessions that have at most `max_length` events; all of them when that is None."""
    return data if max_length is None else data[size_of_group(data['SessionId']) <= max_length]


def drop_rare_items(data: pd.DataFrame, min_events: int = MIN_ITEM_EVENTS) -> pd.DataFrame:
    """Keep the events of items that have at least `min_events` events in the whole frame."""
    return data[size_of_group(data['ItemId']) >= min_events]


def drop_repeats(data: pd.DataFrame) -> pd.DataFrame:
    """Keep the first of the events of an item that follow one another in a session; rows by session and time."""
    session, item = (pd.factorize(data[name])[0] for name in COLUMNS[:2])
    repeated = (session[1:] == session[:-1]) & (item[1:] == item[:-1])
    return data[np.append(True, ~repeated)]


def filter_until_stable(data: pd.DataFrame, min_length: int = MIN_SESSION_LENGTH,
                        min_events: int = MIN_ITEM_EVENTS) -> pd.DataFrame:
    """Apply `drop_short_sessions` and `drop_rare_items` in turn until neither drops an event."""
    while True:
        kept = drop_rare_items(drop_short_sessions(data, min_length), min_events)
        if len(kept) == len(data):
            return kept
        data = kept


def sessions_by_gap(data: pd.DataFrame, gap: float, visitor_key: str = 'SessionId',
                    time_key: str = 'Time') -> np.ndarray:
    """Return the number of the session of each event, int64 (n_events,), for a log of visitors without sessions.

    A visitor's session ends where the next event is more than `gap` seconds later.  Sessions are numbered from 0 in the
    order of their first events.

    >>> visits = pd.DataFrame({'SessionId': [*'abaa'], 'Time': [30, 20, 10, 99]})
    >>> sessions_by_gap(visits, 60).tolist()
    [0, 1, 0, 2]
    """
    visitor, time = pd.factorize(data[visitor_key])[0], data[time_key].to_numpy()
    order = np.lexsort((time, visitor))
    visitor, time = visitor[order], time[order]
    starts = np.append(True, (visitor[1:] != visitor[:-1]) | (np.diff(time) > gap))
    number = np.empty(starts.sum(), np.int64)
    number[np.argsort(time[starts], kind='stable')] = np.arange(len(number))
    found = np.empty(len(data), np.int64)
    found[order] = number[np.cumsum(starts) - 1]
    return found


def most_recent_prefixes(data: pd.DataFrame, share: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the most recent 1 / `share` of all prefixes, as the sessions that have just these.

    A session of n events has n - 1 prefixes, each with the event after it as target.  Sessions are in the order of
    their last events, and within a session longer prefixes come before shorter ones; so of the session in which the
    share is reached, going back, the first events stay.  The number of prefixes is rounded to a whole one.

    Returns (kept, whole): the events of the kept prefixes, and those of the same sessions, none cut.
    """
    by_session = data.groupby('SessionId', sort=True).Time.agg(['max', 'size']).sort_values('max', kind='stable')
    from_end = (by_session['size'] - 1)[::-1].cumsum()
    n_wanted = round(int(from_end.iloc[-1]) / share)
    n_sessions = int(np.searchsorted(from_end.to_numpy(), n_wanted)) + (n_wanted > 0)
    sessions = from_end.index[:n_sessions]
    whole = data[data.SessionId.isin(sessions)]
    if not n_sessions:  # a share of less than half a prefix
        return whole, whole
    surplus = from_end.iloc[n_sessions - 1] - n_wanted
    left = whole.groupby('SessionId', sort=False).cumcount(ascending=False)  # events after this one
    return whole[(whole.SessionId != sessions[-1]) | (left >= surplus)], whole


def split_at_start(data: pd.DataFrame, seconds: float = DAY) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split by the time of each session's first event.

    Returns (train, test): test holds the sessions that start at most `seconds` before the last event of the frame;
    training ends there, which cuts sessions that are longer.
    """
    border = data['Time'].max() - seconds
    in_test = data.groupby('SessionId', sort=False)['Time'].transform('min') >= border
    return data[~in_test & (data['Time'] < border)], data[in_test]


def split_last_seconds(data: pd.DataFrame, seconds: float = DAY) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split by the time of each session's last event; no session is divided.

    Returns (train, test): test holds the sessions that end at most `seconds` before the last event of the frame.
    """
    session_end = data.groupby('SessionId', sort=False)['Time'].transform('max')
    in_test = session_end >= data['Time'].max() - seconds
    return data[~in_test], data[in_test]


def split_last_share(data: pd.DataFrame, share: float, by: str = 'last') -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split by the order of the sessions' last events, or, with ``by='first'``, by that of their first ones.

    Returns (train, test): test holds this share of the sessions, at least one, those that end or start last.  With
    'first' training ends where the first of them starts, which cuts sessions that are longer.
    """
    times = data.groupby('SessionId').Time.agg({'last': 'max', 'first': 'min'}[by]).sort_values(kind='stable')
    times = times[len(times) - max(1, round(share * len(times))):]
    in_test = data.SessionId.isin(times.index)
    return data[~in_test & (data.Time < times.iloc[0] if by == 'first' else True)], data[in_test]


def keep_known_items(test: pd.DataFrame, known: ArrayLike, session_key: str = 'SessionId',
                     item_key: str = 'ItemId') -> pd.DataFrame:
    """Keep the test events of the protocol: those of known items, then those of sessions that still have two or more.

    A collaborative filter can recommend no item that training does not have.
    """
    return drop_short_sessions(test[test[item_key].isin(known)], session_key=session_key)


def split(data: pd.DataFrame, held_out: str,
          by: Callable[[pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]] = split_last_seconds, step: str | None = None,
          min_session_length: int = MIN_SESSION_LENGTH) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split events into training and test data as section 4 describes it, and clean both.

    Parameters
    ----------
    held_out : what to call the second part in messages
    by : what divides the events, such as `split_at_start`
    step : what that does, for the error that it leaves nothing to train on; setting the last day apart when None
    min_session_length : events of a training session; those that `by` cut shorter are dropped

    Returns (train, test) with new row numbers; ValueError names the step that leaves one of them empty.
    """
    train, test = by(data)
    if len(train) + len(test) < len(data):
        train = drop_short_sessions(train, min_session_length)
        logger.info('cutting training sessions where %s sessions begin: %s of %s events', held_out,
                    f'{len(data) - len(train) - len(test):,}', f'{len(data):,}')
    require_events(train, step or f'setting the last day apart as {held_out}: no session is from before the last 24 '
                                  'hours')
    test = left_by(f'dropping {held_out} items that are not in training, then {held_out} sessions of one event',
                   test, keep_known_items(test, train['ItemId'].unique()))
    return train.reset_index(drop=True), test.reset_index(drop=True)


def column_of_item(candidates: np.ndarray | None, n_items: int) -> np.ndarray:
    """Return each item's column among the candidates, -1 for the others, int64 (n_items,); None for all in order."""
    if candidates is None:
        return np.arange(n_items)
    column = np.full(n_items, -1)
    column[candidates] = np.arange(len(candidates))
    return column
