"""The RSC15 protocol of section 4: from the raw click log to training, validation and test files.

    python preprocess_rsc15.py CLICKS OUT           the challenge's yoochoose-clicks.dat, plain or gzipped
    python preprocess_rsc15.py --synthetic OUT      a made-up log of the same kind, then the same protocol

OUT receives `rsc15_train_full.txt` and `rsc15_test.txt`, and, for tuning, the same split made once more inside
the training part: `rsc15_train_tr.txt` and `rsc15_train_valid.txt`. All are tab-separated with the columns
SessionId, ItemId and Time. A table compares sessions, events and items with the published counts.

Two things the paper does not say, but its counts need: items with fewer than five clicks are dropped, and sessions
are filtered again after that.

Times are UTC, in seconds since 1970. The authors' script read the same times as local ones. That shifts every
time by the same amount, so sessions, their order and the split stay the same. The exception is a time zone whose
clocks change inside the log's span: clicks after the change move by an hour against those before it.
"""
from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

import numpy as np
import pandas as pd
from numba import njit

COLUMNS = ['SessionId', 'ItemId', 'Time']
FILES = {
    'train_full': 'rsc15_train_full.txt',
    'test': 'rsc15_test.txt',
    'train_tr': 'rsc15_train_tr.txt',
    'valid': 'rsc15_train_valid.txt',
}
PUBLISHED = {
    'train_full': {'sessions': 7_966_257, 'events': 31_637_239, 'items': 37_483},
    'test': {'sessions': 15_324, 'events': 71_222},
}
DAY = 86_400  # seconds
MIN_SESSION_LENGTH = 2
MIN_ITEM_CLICKS = 5


# ---------------------------------------------------------------------------------------------------------------------
# Section 4, the protocol: pure functions from frame to frame, in the order in which they are applied
# ---------------------------------------------------------------------------------------------------------------------


def sort_events(events: pd.DataFrame) -> pd.DataFrame:
    """Order events by session, then by time; events of a session with equal times keep their order."""
    session, time = events['SessionId'].to_numpy(), events['Time'].to_numpy()
    same = session[1:] == session[:-1]
    if np.all((session[1:] > session[:-1]) | (same & (time[1:] >= time[:-1]))):
        return events
    return events.iloc[np.lexsort((time, session))]


def drop_short_sessions(events: pd.DataFrame, min_length: int = MIN_SESSION_LENGTH) -> pd.DataFrame:
    """Keep the sessions that have at least `min_length` events."""
    return events[_count_of(events['SessionId']) >= min_length]


def drop_rare_items(events: pd.DataFrame, min_clicks: int = MIN_ITEM_CLICKS) -> pd.DataFrame:
    """Keep the events of items that have at least `min_clicks` events in the whole frame."""
    return events[_count_of(events['ItemId']) >= min_clicks]


def split_last_day(events: pd.DataFrame, seconds: float = DAY) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split by the time of each session's last event; no session is divided.

    Returns (train, test): test holds the sessions that end at most `seconds` before the last event of the frame.
    """
    session_end = events.groupby('SessionId', sort=False)['Time'].transform('max')
    in_test = session_end >= events['Time'].max() - seconds
    return events[~in_test], events[in_test]


def keep_trained_items(test: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Keep the test events whose item occurs in `train`: no collaborative filter can recommend another one."""
    return test[test['ItemId'].isin(train['ItemId'].unique())]


def split(events: pd.DataFrame, held_out: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One train/test split as section 4 describes it, cleaned; `held_out` names the second part in errors.

    Returns (train, test) with new row numbers. Raises ValueError, naming the step, when one of them is empty.
    """
    train, test = split_last_day(events)
    _require_events(train, f"setting the last day apart as {held_out}: every session ends in the log's last 24 hours")
    test = _require_events(keep_trained_items(test, train), f'dropping {held_out} items that are not in training')
    test = _require_events(drop_short_sessions(test), f'dropping one-click {held_out} sessions')
    return train.reset_index(drop=True), test.reset_index(drop=True)


def preprocess(clicks: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The whole protocol of section 4.

    Parameters
    ----------
    clicks : DataFrame with SessionId, ItemId (any hashable ids) and Time (number, unix seconds), one row an event,
        in any order. It is not modified, and other columns are left out.

    Returns
    -------
    dict of four DataFrames with the columns SessionId, ItemId, Time, sorted by session and time:
    `train_full`, `test`, and `train_tr`, `valid`, which divide `train_full` in the same way.

    Raises
    ------
    TypeError, KeyError or ValueError for a frame that is not a click log, and ValueError when a step leaves nothing.
    """
    _check_clicks(clicks)
    events = drop_short_sessions(sort_events(clicks[COLUMNS]))
    _require_events(events, 'dropping one-click sessions')
    events = _require_events(drop_rare_items(events), f'dropping items with fewer than {MIN_ITEM_CLICKS} clicks')
    events = _require_events(drop_short_sessions(events), 'dropping sessions that the rare items left with one click')
    train_full, test = split(events, 'test')
    train_tr, valid = split(train_full, 'validation')
    return {'train_full': train_full, 'test': test, 'train_tr': train_tr, 'valid': valid}


def count(events: pd.DataFrame) -> dict[str, int]:
    """Sessions, events and items of a frame, as a dict of int."""
    return {
        'sessions': int(events['SessionId'].nunique()),
        'events': len(events),
        'items': int(events['ItemId'].nunique()),
    }


def _count_of(ids: pd.Series) -> pd.Series:
    """For each row, in how many rows its id occurs."""
    return ids.groupby(ids, sort=False).transform('size')


def _require_events(events: pd.DataFrame, step: str) -> pd.DataFrame:
    if events.empty:
        raise ValueError(f'no event is left after {step}')
    return events


def _check_clicks(clicks: pd.DataFrame) -> None:
    if not isinstance(clicks, pd.DataFrame):
        raise TypeError(f'clicks must be a DataFrame with the columns {COLUMNS}, not {type(clicks).__name__}')
    present = list(clicks.columns)
    for name in COLUMNS:
        if present.count(name) != 1:
            raise KeyError(f'clicks must have one column {name!r}; its columns are {present}')
        if clicks[name].isna().any():
            raise ValueError(f'clicks has no {name} in row {int(clicks[name].isna().to_numpy().argmax())}')
        if clicks[name].dtype == object and clicks[name].map(type).nunique() > 1:
            raise TypeError(f'{name} must have values of one type, not {clicks[name].map(type).unique().tolist()}')
    if not pd.api.types.is_numeric_dtype(clicks['Time']):
        raise TypeError(f"Time must be a number of seconds since 1970, not {clicks['Time'].dtype}")
    valid = np.isfinite(clicks['Time'].to_numpy()) & (clicks['Time'].to_numpy() >= 0)
    if not valid.all():
        row = int(valid.argmin())
        raise ValueError(f"Time must be finite and not negative, but is {clicks['Time'].iloc[row]} in row {row}")


# ---------------------------------------------------------------------------------------------------------------------
# Reading the raw log. Text is parsed by compiled code, byte by byte: 33 million lines take seconds, not minutes,
# and whatever is not a click is found at its line
# ---------------------------------------------------------------------------------------------------------------------

RAW_COLUMNS = ['session', 'time', 'item', 'category']
RAW_EXAMPLE = '1,2014-04-07T10:51:09.277Z,214536502,0'
BLOCK_BYTES = 1 << 25
NEWLINE, COMMA, TAB, DOT, ZERO = (ord(c) for c in '\n,\t.0')
TIME_SHAPE = np.frombuffer(b'0000-00-00T00:00:00.000Z', np.uint8)
DAYS_BEFORE_MONTH = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])


def read_clicks(path: str | os.PathLike) -> pd.DataFrame:
    """Read a raw click log: lines of session,time,item,category without a header, plain or gzipped.

    Returns a DataFrame with SessionId int64, ItemId int64 and Time float64 (unix seconds, UTC, with milliseconds), in
    the file's order; the category is not used. Raises ValueError naming file, line and column for anything else.
    """
    parts, line = [], 1
    try:
        with _open_log(path) as file:
            for text in _whole_lines(file):
                columns, bad_line = _parse(text)
                if bad_line is not None:
                    raise ValueError(f'{path}, line {line + len(columns[0])}: {bad_line}')
                parts.append(columns)
                line += len(columns[0])
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f'{path} is a damaged gzip file: {error}') from error
    if not parts:
        raise ValueError(f'{path} is empty; a click log has lines such as {RAW_EXAMPLE}')
    session, millis, item = (np.concatenate(column) for column in zip(*parts))
    return pd.DataFrame({'SessionId': session, 'ItemId': item, 'Time': millis / 1000})


def _open_log(path: str | os.PathLike) -> BinaryIO | gzip.GzipFile:
    with open(path, 'rb') as file:
        gzipped = file.read(2) == b'\x1f\x8b'
    return gzip.open(path, 'rb') if gzipped else open(path, 'rb')


def _whole_lines(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """Blocks of a binary file, cut behind the last newline in each; the last one may lack its newline."""
    rest = b''
    while block := file.read(BLOCK_BYTES):
        text = rest + block
        end = text.rfind(b'\n') + 1 or len(text)
        yield text[:end]
        rest = text[end:]
    if rest:
        yield rest


def _parse(text: bytes) -> tuple[tuple[np.ndarray, ...], str | None]:
    """Columns (session, millis, item) of the lines up to the first bad one, and what is wrong with that, or None."""
    text = text if text.endswith(b'\n') else text + b'\n'
    columns = tuple(np.empty(text.count(b'\n'), np.int64) for _ in range(3))
    n_lines, bad_start, bad_column = _parse_lines(np.frombuffer(text, np.uint8), *columns)
    if bad_start < 0:
        return columns, None
    bad = text[bad_start : text.index(b'\n', bad_start)].decode('utf-8', 'backslashreplace').rstrip('\r')
    fields = bad.split(',')
    if len(fields) != len(RAW_COLUMNS):
        problem = f'{bad[:60]!r} has {len(fields)} comma-separated columns, not {len(RAW_COLUMNS)}'
    else:
        expected = 'a time from 1970 on' if bad_column == 1 else 'a whole number'
        problem = f'{RAW_COLUMNS[bad_column]} {fields[bad_column][:60]!r} is not {expected}'
    return tuple(c[:n_lines] for c in columns), f'{problem}; a click log has no header and lines such as {RAW_EXAMPLE}'


@njit(cache=True)
def _parse_lines(text: np.ndarray, session: np.ndarray, millis: np.ndarray, item: np.ndarray) -> tuple[int, int, int]:
    """Fill the columns from `text`, uint8, which ends with a newline.

    Returns (number of good lines, start of the first bad line or -1, number of its bad column).
    """
    start, n_lines = 0, 0
    while start < text.size:
        session[n_lines], end = _parse_number(text, start)
        if session[n_lines] < 0:
            return n_lines, start, 0
        millis[n_lines] = _parse_time(text, end + 1)
        if millis[n_lines] < 0:
            return n_lines, start, 1
        item[n_lines], end = _parse_number(text, end + 1 + TIME_SHAPE.size + 1)
        if item[n_lines] < 0:
            return n_lines, start, 2
        end += 1
        while text[end] != NEWLINE:
            if text[end] == COMMA:
                return n_lines, start, 3
            end += 1
        start = end + 1
        n_lines += 1
    return n_lines, -1, -1


@njit(cache=True)
def _parse_number(text: np.ndarray, start: int) -> tuple[int, int]:
    """The whole number between `start` and the next comma, and where that comma is; -1 if there is none."""
    value, end = 0, start
    while ZERO <= text[end] <= ZERO + 9:
        value = 10 * value + text[end] - ZERO
        end += 1
    if text[end] != COMMA or not 0 < end - start <= 18:  # 18 digits always fit into 64 bits
        return -1, end
    return value, end


@njit(cache=True)
def _parse_time(text: np.ndarray, start: int) -> int:
    """Milliseconds since 1970 of 2014-04-07T10:51:09.277Z and the comma behind it; -1 if it is not such a time."""
    for k in range(TIME_SHAPE.size):
        is_digit = ZERO <= text[start + k] <= ZERO + 9
        if not (is_digit if TIME_SHAPE[k] == ZERO else text[start + k] == TIME_SHAPE[k]):
            return -1
    year = 100 * _two_digits(text, start) + _two_digits(text, start + 2)
    month, day = _two_digits(text, start + 5), _two_digits(text, start + 8)
    hour, minute, second = _two_digits(text, start + 11), _two_digits(text, start + 14), _two_digits(text, start + 17)
    if text[start + TIME_SHAPE.size] != COMMA or year < 1970 or not 1 <= month <= 12:
        return -1
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    month_length = DAYS_BEFORE_MONTH[month] - DAYS_BEFORE_MONTH[month - 1] + (leap and month == 2)
    if not 1 <= day <= month_length or hour > 23 or minute > 59 or second > 59:
        return -1
    leap_days = (year - 1969) // 4 - (year - 1901) // 100 + (year - 1601) // 400 + (leap and month > 2)
    days = 365 * (year - 1970) + leap_days + DAYS_BEFORE_MONTH[month - 1] + day - 1
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    return 1000 * seconds + 100 * (text[start + 20] - ZERO) + _two_digits(text, start + 21)


@njit(cache=True)
def _two_digits(text: np.ndarray, start: int) -> int:
    return 10 * (text[start] - ZERO) + text[start + 1] - ZERO


# ---------------------------------------------------------------------------------------------------------------------
# Writing. The two training files hold 63 million lines of the real log, so these are put together by compiled code
# ---------------------------------------------------------------------------------------------------------------------

BLOCK_ROWS = 1 << 19
MAX_LINE_BYTES = 64  # two ids and the seconds of up to 19 digits each, the milliseconds, and what separates them


@contextlib.contextmanager
def written_together(folder: str | os.PathLike) -> Iterator[str]:
    """A folder to write files into that appear in `folder` when the block ends well, and vanish when it does not.

    It lies inside `folder`, so each file moves in one step, and a place that cannot be written to is noticed before
    the work is done.
    """
    is_new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=folder) as unfinished:
            yield unfinished
            for name in sorted(os.listdir(unfinished), reverse=True):  # a synthetic log, the mark of its files, first
                os.replace(os.path.join(unfinished, name), os.path.join(folder, name))
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # not empty: somebody else has put something there
                os.rmdir(folder)
        raise


def write_events(events: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write SessionId, ItemId (int64, not negative) and Time (float64, whole milliseconds) as a tab-separated file.

    Reading it again gives the same numbers, bit by bit; ValueError for those where it would not.
    """
    columns = [events['SessionId'].to_numpy(), events['ItemId'].to_numpy(), _to_millis(events['Time'])]
    if any(column.dtype != np.int64 or (column < 0).any() for column in columns):
        raise ValueError(f'{path}: SessionId and ItemId must be int64 and, like Time, not negative')
    text = np.empty(BLOCK_ROWS * MAX_LINE_BYTES, np.uint8)
    with open(path, 'wb') as file:
        file.write('\t'.join(COLUMNS).encode() + b'\n')
        for start in range(0, len(events), BLOCK_ROWS):
            session, item, millis = (column[start : start + BLOCK_ROWS] for column in columns)
            size = _format_events(session, item, millis, text)
            file.write(text[:size].data)


def write_raw_log(clicks: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write SessionId, Time, ItemId and Category in the format that `read_clicks` reads."""
    with open(path, 'w', encoding='ascii', newline='\n') as file:
        for start in range(0, len(clicks), BLOCK_ROWS):
            block = clicks.iloc[start : start + BLOCK_ROWS]
            time = np.datetime_as_string(_to_millis(block['Time']).astype('datetime64[ms]')).tolist()
            columns = block['SessionId'].tolist(), time, block['ItemId'].tolist(), block['Category'].tolist()
            file.writelines(f'{session},{t}Z,{item},{category}\n' for session, t, item, category in zip(*columns))


def _to_millis(time: pd.Series) -> np.ndarray:
    millis = np.rint(time.to_numpy() * 1000).astype(np.int64)
    if not np.array_equal(millis / 1000, time):
        raise ValueError('Time must be in whole milliseconds to be written exactly')
    return millis


@njit(cache=True)
def _format_events(session: np.ndarray, item: np.ndarray, millis: np.ndarray, text: np.ndarray) -> int:
    """Fill `text`, uint8, with the lines of these events; returns the number of bytes."""
    end = 0
    for k in range(session.size):
        end = _put_number(text, end, session[k], TAB)
        end = _put_number(text, end, item[k], TAB)
        end = _put_number(text, end, millis[k] // 1000, DOT)
        end = _put_number(text, end, millis[k] % 1000, NEWLINE, 3)
    return end


@njit(cache=True)
def _put_number(text: np.ndarray, start: int, value: int, separator: int, min_digits: int = 1) -> int:
    """Write a number and a separator into `text` from `start` on; returns the place behind them."""
    end, rest = start, value
    while rest > 0 or end - start < min_digits:
        rest //= 10
        end += 1
    text[end] = separator
    for k in range(end - 1, start - 1, -1):
        text[k] = ZERO + value % 10
        value //= 10
    return end + 1


# ---------------------------------------------------------------------------------------------------------------------
# The synthetic log: what makes the paper's comparison come out on real clicks, small enough for a first try
# ---------------------------------------------------------------------------------------------------------------------

SYNTHETIC_LOG = 'synthetic-clicks.dat'
SYNTHETIC_SESSIONS = 150_000
SYNTHETIC_ITEMS = 2_000
WEEK = 7 * DAY * 1000  # milliseconds, as all times in this part
FIRST_DAY = 1_396_310_400_000  # 2014-04-01, when the real log begins
FIRST_ITEM = 214_500_000
SHARE_SHELVED = 0.4  # the other items are met by chance only
SHELVINGS = 3  # shelves on which an item stands
SHELF_SIZE = 50
REACH = 6  # how far along the shelf the next click can be
P_ONE_CLICK = 0.14  # share of one-click sessions
MAX_SESSION_LENGTH = 300
P_AGAIN = 0.15  # the next click returns to an item of the session
P_ELSEWHERE = 0.05  # ... goes anywhere in the catalogue
P_JUMP = 0.04  # ... goes anywhere on the shelf, and on from there
P_FORWARD = 0.75  # walks that begin in the shelf's order, not against it
P_SAME_TIME = 0.005  # ... has the time of the click before it
MEAN_GAP = 120_000  # between two clicks
DRIFT = 0.15  # standard deviation of a shelf's log-popularity from week to week


def synthetic_clicks(n_sessions: int = SYNTHETIC_SESSIONS, n_items: int = SYNTHETIC_ITEMS,
                     seed: int = 42) -> pd.DataFrame:
    """A made-up click log whose sessions a recurrent network can follow better than an item-to-item method can.

    Each popular item stands on three shelves (think of kind, brand and offer), and a session walks along one shelf in
    one direction, mostly forward. The last click alone leaves three shelves and two directions open; the clicks
    before it tell which. Popularity follows Zipf's law and drifts from week to week. Sessions return to their items
    now and then, or look at something else. In the last day, some items are replaced by new ones.

    Parameters
    ----------
    n_sessions : int, one-click sessions included. The span grows slowly with it, from two weeks to half a year.
    n_items : int, at least 200. Rare ones may never be clicked.
    seed : int. The same seed gives the same log.

    Returns
    -------
    DataFrame with SessionId, ItemId, Category (int64) and Time (float64), sorted by session and time.
    """
    _check_whole('n_sessions', n_sessions, at_least=1)
    _check_whole('n_items', n_items, at_least=200)
    _check_whole('seed', seed, at_least=0)
    rng = np.random.default_rng(seed)
    weeks = int(np.clip(4 * (n_sessions / 100_000) ** 0.4, 2, 26))
    start = rng.integers(weeks * WEEK, size=n_sessions)
    length = _session_lengths(n_sessions, rng)
    first = length.cumsum() - length
    millis = FIRST_DAY + _click_times(start, first, length, rng)

    n_new = n_items // 100
    rank = np.arange(1, n_items - n_new + 1)
    shelves = _fill_shelves(n_items, rng)
    shelf_popularity = (1 / (50 + rank[shelves])).sum(axis=1)  # Zipf's law, flattened at the top
    shelf = _choose_shelves(shelf_popularity, start // WEEK, rng)
    chance = (1 / (5 + rank)).cumsum()
    item = np.empty(len(millis), np.int64)
    _browse(rng, first, length, shelves, shelf, chance / chance[-1], item)
    category = _categories(shelves, n_items)[item]
    _bring_out_new_items(item, millis, shelves, np.arange(n_items - n_new, n_items), rng)
    session = np.repeat(np.arange(1, n_sessions + 1), length)
    item = FIRST_ITEM + rng.permutation(n_items)[item]
    return pd.DataFrame({'SessionId': session, 'ItemId': item, 'Time': millis / 1000, 'Category': category})


def _check_whole(name: str, value: int, at_least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f'{name} must be a whole number, not {value!r}')
    if value < at_least:
        raise ValueError(f'{name} must be at least {at_least}, not {value}')


def _session_lengths(n_sessions: int, rng: np.random.Generator) -> np.ndarray:
    """Mostly short, some very long: a log-normal tail behind the second click, mean near 4."""
    length = np.minimum(1 + np.ceil(rng.lognormal(0.5, 1.0, n_sessions)), MAX_SESSION_LENGTH).astype(np.int64)
    length[rng.random(n_sessions) < P_ONE_CLICK] = 1
    return length


def _click_times(start: np.ndarray, first: np.ndarray, length: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Time of each click, whole milliseconds: the session's start plus the gaps up to the click."""
    gap = np.ceil(rng.exponential(MEAN_GAP, length.sum())).astype(np.int64)
    gap[rng.random(len(gap)) < P_SAME_TIME] = 0
    time = gap.cumsum()
    return time + np.repeat(start - time[first], length)


def _fill_shelves(n_items: int, rng: np.random.Generator) -> np.ndarray:
    """Item numbers on each shelf, (shelves, SHELF_SIZE); an item's neighbours are about as popular as itself.

    Item numbers are ranks of popularity. Sorting them after a random push puts each into another company each time.
    """
    n_shelved = int(SHARE_SHELVED * n_items) // SHELF_SIZE * SHELF_SIZE
    log_rank = np.log(np.arange(1, n_shelved + 1))
    orders = [np.argsort(log_rank + rng.normal(0, 0.7, n_shelved)) for _ in range(SHELVINGS)]
    return np.concatenate(orders).reshape(-1, SHELF_SIZE)


def _choose_shelves(popularity: np.ndarray, week: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The shelf of each session: drawn by popularity, which takes a random step in each week."""
    shelf = np.empty(len(week), np.int64)
    log_popularity = np.log(popularity)
    for w in range(week.max() + 1):
        log_popularity += rng.normal(0, DRIFT, len(popularity))
        share = np.exp(log_popularity).cumsum()
        in_week = week == w
        shelf[in_week] = np.searchsorted(share, share[-1] * rng.random(in_week.sum()), side='right')
    return shelf


@njit(cache=True)
def _browse(rng: np.random.Generator, first: np.ndarray, length: np.ndarray, shelves: np.ndarray, shelf: np.ndarray,
            chance: np.ndarray, item: np.ndarray) -> None:
    """Fill `item` with each session's walk; `chance` holds cumulated chances of all items off the shelf."""
    for s in range(first.size):
        position, direction = 0, 1
        for k in range(length[s]):
            event, u = first[s] + k, rng.random()
            if k > 0 and u < P_AGAIN:
                item[event] = item[first[s] + int(k * rng.random())]
            elif k > 0 and u < P_AGAIN + P_ELSEWHERE:
                item[event] = np.searchsorted(chance, rng.random(), side='right')
            else:
                if k == 0 or u < P_AGAIN + P_ELSEWHERE + P_JUMP:
                    position = int(SHELF_SIZE * rng.random())
                    direction = 1 if rng.random() < P_FORWARD else -1
                else:  # near places are likelier than far ones
                    position = (position + direction * (1 + int(REACH * rng.random() ** 2))) % SHELF_SIZE
                item[event] = shelves[shelf[s], position]


def _categories(shelves: np.ndarray, n_items: int) -> np.ndarray:
    """Category of each item: its shelf in the first shelving, from 1 on, and 0 for the others."""
    first_shelving = shelves[: len(shelves) // SHELVINGS]
    category = np.zeros(n_items, np.int64)
    category[first_shelving] = np.arange(1, len(first_shelving) + 1)[:, None]
    return category


def _bring_out_new_items(item: np.ndarray, millis: np.ndarray, shelves: np.ndarray, new_items: np.ndarray,
                         rng: np.random.Generator) -> None:
    """In place: in the last day, as many items from the shelves as there are new ones are clicked under a new id."""
    sold_now = np.arange(new_items[-1] + 1)
    sold_now[rng.choice(np.unique(shelves), size=len(new_items), replace=False)] = new_items
    late = millis >= millis.max() - 1000 * DAY
    item[late] = sold_now[item[late]]


# ---------------------------------------------------------------------------------------------------------------------
# From log to files, and the command line
# ---------------------------------------------------------------------------------------------------------------------


def preprocess_log(clicks_path: str | os.PathLike, out_dir: str | os.PathLike) -> dict[str, dict[str, int]]:
    """Read a raw click log, apply the protocol and write the four files into `out_dir`, all of them or none.

    Returns the counts of each, a dict of dicts: {"train_full": {"sessions": ..., "events": ..., "items": ...}, ...}.
    """
    if os.path.exists(os.path.join(out_dir, SYNTHETIC_LOG)):
        raise ValueError(f'{out_dir} holds a synthetic log and its files; choose another folder, lest they be confused')
    with written_together(out_dir) as folder:
        clicks = read_clicks(clicks_path)
        try:
            parts = preprocess(clicks)
        except ValueError as error:
            raise ValueError(f'{clicks_path}: {error}') from error
        return _write_files(parts, folder)


def make_synthetic(out_dir: str | os.PathLike, n_sessions: int = SYNTHETIC_SESSIONS, n_items: int = SYNTHETIC_ITEMS,
                   seed: int = 42) -> dict[str, dict[str, int]]:
    """Write a synthetic raw log and the four files that the protocol makes of it; arguments as in `synthetic_clicks`.

    Returns the counts of each file, as `preprocess_log` does.
    """
    with written_together(out_dir) as folder:
        clicks = synthetic_clicks(n_sessions, n_items, seed)
        write_raw_log(clicks, os.path.join(folder, SYNTHETIC_LOG))
        return _write_files(preprocess(clicks), folder)


def _write_files(parts: dict[str, pd.DataFrame], folder: str) -> dict[str, dict[str, int]]:
    for name, events in parts.items():
        write_events(events, os.path.join(folder, FILES[name]))
    return {name: count(events) for name, events in parts.items()}


def format_counts(counts: dict[str, dict[str, int]], synthetic: bool = False) -> str:
    """The counts of `preprocess_log` as a table of text, beside the published ones unless the log is synthetic."""
    lines = [f"{'file':<24}{'sessions':>12}{'events':>12}{'items':>10}{'' if synthetic else '   published'}"]
    for name, found in counts.items():
        line = f"{FILES[name]:<24}{found['sessions']:>12,}{found['events']:>12,}{found['items']:>10,}"
        if not synthetic and name in PUBLISHED:
            published = PUBLISHED[name]
            verdict = 'matches' if all(found[key] == published[key] for key in published) else 'differs'
            line += f'   {verdict}: ' + ', '.join(f'{number:,} {key}' for key, number in published.items())
        lines.append(line)
    if synthetic:
        lines.append('This log is synthetic: the published counts do not apply to it.')
    return '\n'.join(lines)


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _parse_arguments(argv: list[str] | None) -> tuple[Parser, argparse.Namespace]:
    parser = Parser(
        prog='preprocess_rsc15.py',
        usage='%(prog)s CLICKS OUT\n       %(prog)s --synthetic OUT [--sessions N] [--items N] [--seed S]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('paths', nargs='+', metavar='PATH', help='CLICKS, the raw log, and OUT, the folder to write to')
    parser.add_argument('--synthetic', action='store_true', help='make a log up, in place of reading CLICKS')
    parser.add_argument('--sessions', type=int, help=f'synthetic sessions (default {SYNTHETIC_SESSIONS})')
    parser.add_argument('--items', type=int, help=f'synthetic items (default {SYNTHETIC_ITEMS})')
    parser.add_argument('--seed', type=int, help='seed of the synthetic log (default 42)')
    args = parser.parse_args(argv)
    options = {'n_sessions': args.sessions, 'n_items': args.items, 'seed': args.seed}
    args.options = {name: value for name, value in options.items() if value is not None}
    if args.synthetic and len(args.paths) != 1:
        parser.error(f'--synthetic takes one path, OUT, not {args.paths}')
    if not args.synthetic and len(args.paths) != 2:
        parser.error(f'two paths are needed, CLICKS and OUT (or --synthetic and OUT), not {args.paths}')
    if not args.synthetic and args.options:
        parser.error('--sessions, --items and --seed need --synthetic')
    return parser, args


def main(argv: list[str] | None = None) -> None:
    """Command line, see the module's text; wrong input ends with one line on stderr and exit code 2."""
    parser, args = _parse_arguments(argv)
    try:
        counts = make_synthetic(*args.paths, **args.options) if args.synthetic else preprocess_log(*args.paths)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(format_counts(counts, args.synthetic))


if __name__ == '__main__':
    main()
