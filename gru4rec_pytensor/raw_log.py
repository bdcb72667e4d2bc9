"""Raw log of RSC15 and files of its protocol, read and written by compiled code."""
from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
import pandas as pd
from numba import njit

from gru4rec_pytensor.events import COLUMNS
from gru4rec_pytensor.files import BLOCK_BYTES, text_blocks, whole_lines

# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------

RAW_COLUMNS = ['session', 'time', 'item', 'category']
RAW_EXAMPLE = '1,2014-04-07T10:51:09.277Z,214536502,0'
NEWLINE, COMMA, TAB, DOT, ZERO = (ord(c) for c in '\n,\t.0')
TIME_SHAPE = np.frombuffer(b'0000-00-00T00:00:00.000Z', np.uint8)
DAYS_BEFORE_MONTH = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])


def read_clicks(path: str | os.PathLike, file: BinaryIO | None = None) -> pd.DataFrame:
    """Read a raw click log: lines of session,time,item,category without a header, plain or compressed; `-` is standard
    input.  With `file`, its plain text, `path` is only what messages call it.

    Returns a DataFrame with SessionId int64, ItemId int64 and Time float64 (unix seconds, UTC, with milliseconds), in
    the file's order; the category is not used. Raises ValueError naming file, line and column for anything else.
    """
    parts, line = [], 1
    for text in whole_lines(iter(lambda: file.read(BLOCK_BYTES), b'') if file else text_blocks(path, BLOCK_BYTES)):
        columns, bad_line = _parse(text)
        if bad_line is not None:
            raise ValueError(f'{path}, line {line + len(columns[0])}: {bad_line}')
        parts.append(columns)
        line += len(columns[0])
    if not parts:
        raise ValueError(f'{path} is empty; a click log has lines such as {RAW_EXAMPLE}')
    session, millis, item = (np.concatenate(column) for column in zip(*parts))
    return pd.DataFrame({'SessionId': session, 'ItemId': item, 'Time': millis / 1000})


def _parse(text: bytes) -> tuple[tuple[np.ndarray, ...], str | None]:
    """Return columns (session, millis, item) up to the first bad line, and what is wrong with that line, or None."""
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

    Return the number of good lines, the start of the first bad line or -1, and the number of its bad column.
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
    """Return the whole number between `start` and the next comma, -1 if there is none, and the place of the comma."""
    value, end = 0, start
    while ZERO <= text[end] <= ZERO + 9:
        value = 10 * value + text[end] - ZERO
        end += 1
    if text[end] != COMMA or not 0 < end - start <= 18:  # 18 digits always fit into 64 bits
        return -1, end
    return value, end


@njit(cache=True)
def _parse_time(text: np.ndarray, start: int) -> int:
    """Return the milliseconds since 1970 of a time like 2014-04-07T10:51:09.277Z before a comma; -1 for other text."""
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
# Writing
# ---------------------------------------------------------------------------------------------------------------------

BLOCK_ROWS = 1 << 19
MAX_LINE_BYTES = 64  # two ids and the seconds of up to 19 digits each, the milliseconds, and what separates them


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
    """Fill `text`, uint8, with the lines of these events; return the number of bytes."""
    end = 0
    for k in range(session.size):
        end = _put_number(text, end, session[k], TAB)
        end = _put_number(text, end, item[k], TAB)
        end = _put_number(text, end, millis[k] // 1000, DOT)
        end = _put_number(text, end, millis[k] % 1000, NEWLINE, 3)
    return end


@njit(cache=True)
def _put_number(text: np.ndarray, start: int, value: int, separator: int, min_digits: int = 1) -> int:
    """Write a number and a separator into `text` from `start` on; return the place behind them."""
    end, rest = start, value
    while rest > 0 or end - start < min_digits:
        rest //= 10
        end += 1
    text[end] = separator
    for k in range(end - 1, start - 1, -1):
        text[k] = ZERO + value % 10
        value //= 10
    return end + 1
