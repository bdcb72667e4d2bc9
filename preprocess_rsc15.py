"""The RSC15 protocol of section 4: from the raw click log to training, validation and test files.

    python preprocess_rsc15.py CLICKS OUT           the challenge's yoochoose-clicks.dat, plain or compressed
    python preprocess_rsc15.py --synthetic OUT      a made-up log of the same kind, then the same protocol
    python preprocess_rsc15.py CLICKS OUT --fraction 64      the most recent 1/64 of the training prefixes, or 1/4
    python preprocess_rsc15.py CLICKS OUT --protocol 2023    as the authors prepare data since 2023

OUT receives `rsc15_train_full.txt` and `rsc15_test.txt`, and, for tuning, the same split made once more inside
the training part: `rsc15_train_tr.txt` and `rsc15_train_valid.txt`. All are tab-separated with the columns
SessionId, ItemId and Time. A table compares sessions, events and items with the published counts.

Two things the paper does not say, but its counts need: items with fewer than five clicks are dropped, and sessions
are filtered again after that.

--fraction is how NARM and many papers after it cut the data: of all prefixes of training sessions, in the order of the
sessions' last clicks, the most recent share stays. The test file is that of the whole protocol: its clicks on items
that the share lacks count as misses, with `gru4rec evaluate --unknown miss`.

--protocol 2023: of clicks on an item that follow one another in a session, the first stays; then short sessions and
rare items are dropped until nothing changes; test sessions are those that start in the last day, and training ends
there.

Times are UTC, in seconds since 1970. The authors' script read the same times as local ones. That shifts every
time by the same amount, so sessions, their order and the split stay the same. The exception is a time zone whose
clocks change inside the log's span: clicks after the change move by an hour against those before it.
"""
from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable

import numpy as np
import pandas as pd
from numba import njit

from gru4rec_pytensor.checks import check_choice, check_whole_number
from gru4rec_pytensor.events import (
    COLUMNS,
    MIN_ITEM_EVENTS,
    check_events,
    check_one_type,
    count,
    drop_rare_items,
    drop_repeats,
    drop_short_sessions,
    filter_until_stable,
    in_seconds,
    left_by,
    most_recent_prefixes,
    sort_events,
    split,
    split_at_start,
    split_last_seconds,
)
from gru4rec_pytensor.files import files_together, text_blocks, whole_lines
from gru4rec_pytensor.synthetic import SYNTHETIC_ITEMS, SYNTHETIC_SESSIONS, synthetic_clicks
from gru4rec_pytensor.terminal import Parser, positive_number, print_result

SYNTHETIC_LOG = 'synthetic-clicks.dat'  # its presence marks a folder of synthetic files
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
PROTOCOLS = ('2016', '2023')
PUBLISHED_FRACTIONS = {  # of NARM (Li et al., 2017) and those who use its data
    64: {'training prefixes': 369_859, 'test prefixes': 55_898, 'clicks': 557_248, 'items': 16_766},
    4: {'training prefixes': 5_917_746, 'test prefixes': 55_898, 'clicks': 8_326_407, 'items': 29_618},
}


# ---------------------------------------------------------------------------------------------------------------------
# Section 4, the protocol
# ---------------------------------------------------------------------------------------------------------------------

def preprocess(clicks: pd.DataFrame, protocol: str = '2016') -> dict[str, pd.DataFrame]:
    """The whole protocol of section 4, or that of 2023.

    Parameters
    ----------
    clicks : DataFrame with SessionId, ItemId (numbers, text, dates) and Time (timestamps, or numbers as `in_seconds`
        takes them), one row an event, in any order. It is not modified, and other columns are left out.
    protocol : '2016', or '2023', as the text of this module describes it

    Returns
    -------
    dict of four DataFrames with the columns SessionId, ItemId, Time, sorted by session and time:
    `train_full`, `test`, and `train_tr`, `valid`, which divide `train_full` in the same way.

    Raises
    ------
    TypeError or ValueError for a frame that is not a click log, and ValueError when a step leaves nothing.
    """
    check_choice('protocol', protocol, PROTOCOLS)
    check_events(clicks, *COLUMNS)
    for name in COLUMNS[:2]:
        check_one_type(clicks[name])
    clicks = clicks[list(COLUMNS)].assign(Time=in_seconds(clicks['Time']))
    events = sort_events(clicks)
    if protocol == '2023':
        events = left_by('dropping repeats', events, drop_repeats(events))
        step = f'dropping one-click sessions and items with fewer than {MIN_ITEM_EVENTS} clicks until nothing changes'
        events = left_by(step, events, filter_until_stable(events))
        return _split_twice(events, split_at_start)
    events = left_by('dropping one-click sessions', events, drop_short_sessions(events))
    events = left_by(f'dropping items with fewer than {MIN_ITEM_EVENTS} clicks', events, drop_rare_items(events))
    events = left_by('dropping sessions that the rare items left with one click', events, drop_short_sessions(events))
    return _split_twice(events, split_last_seconds)


def _split_twice(events: pd.DataFrame, by: Callable) -> dict[str, pd.DataFrame]:
    """The four files of all events; `by` divides them."""
    train_full, test = split(events, 'test', by)
    train_tr, valid = split(train_full, 'validation', by)
    return {'train_full': train_full, 'test': test, 'train_tr': train_tr, 'valid': valid}


def most_recent_fraction(parts: dict[str, pd.DataFrame], share: int) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """What `preprocess` returned, with the most recent 1 / `share` of the prefixes in both training files; counts.

    The counts are of prefixes, of the clicks of all sessions that have one of these prefixes or are test sessions, and
    of the items there, as the papers that use such data count them.
    """
    check_whole_number('share', share)

    def recent(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        kept, whole = most_recent_prefixes(parts[name], share)
        left_by(f'keeping the most recent 1/{share} of the prefixes ({name})', parts[name], kept)
        return kept.reset_index(drop=True), whole

    train_tr, _whole = recent('train_tr')
    train_full, whole = recent('train_full')
    test = parts['test']
    counts = {'training prefixes': len(train_full) - train_full['SessionId'].nunique(),
              'test prefixes': len(test) - test['SessionId'].nunique(), 'clicks': len(whole) + len(test),
              'items': pd.concat([whole['ItemId'], test['ItemId']]).nunique()}
    return parts | {'train_tr': train_tr, 'train_full': train_full}, counts


# ---------------------------------------------------------------------------------------------------------------------
# Reading the raw log. Text is parsed by compiled code, byte by byte: 33 million lines take seconds, not minutes,
# and whatever is not a click is found at its line
# ---------------------------------------------------------------------------------------------------------------------

RAW_COLUMNS = ['session', 'time', 'item', 'category']
RAW_EXAMPLE = '1,2014-04-07T10:51:09.277Z,214536502,0'
BLOCK_BYTES = 1 << 25  # that are parsed at a time
NEWLINE, COMMA, TAB, DOT, ZERO = (ord(c) for c in '\n,\t.0')
TIME_SHAPE = np.frombuffer(b'0000-00-00T00:00:00.000Z', np.uint8)
DAYS_BEFORE_MONTH = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])


def read_clicks(path: str | os.PathLike) -> pd.DataFrame:
    """Read a raw click log: lines of session,time,item,category without a header, plain or compressed; `-` is standard
    input.

    Returns a DataFrame with SessionId int64, ItemId int64 and Time float64 (unix seconds, UTC, with milliseconds), in
    the file's order; the category is not used. Raises ValueError naming file, line and column for anything else.
    """
    parts, line = [], 1
    for text in whole_lines(text_blocks(path, BLOCK_BYTES)):
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
    """Columns (session, millis, item) of the lines up to the first bad one, and what is wrong with that, or None."""
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
# From log to files, and the command line
# ---------------------------------------------------------------------------------------------------------------------


def preprocess_log(clicks_path: str | os.PathLike, out_dir: str | os.PathLike, protocol: str = '2016',
                   fraction: int | None = None) -> dict[str, dict[str, int]]:
    """Read a raw click log, apply the protocol and write the four files into `out_dir`, once all of them are
    made: see `files_together`.

    Returns the counts of each, a dict of dicts: {"train_full": {"sessions": ..., "events": ..., "items": ...}, ...}.
    With `fraction`, 64 for 1/64, which goes with the protocol of 2016, there is also "fraction", see
    `most_recent_fraction`.
    """
    _check_protocol(protocol, fraction)
    if os.path.exists(os.path.join(out_dir, SYNTHETIC_LOG)):
        raise ValueError(f'{out_dir} holds a synthetic log and its files; choose another folder, so that the two are '
                         'not mixed')
    with files_together(out_dir) as folder:
        clicks = read_clicks(clicks_path)
        try:
            return _write_files(clicks, folder, protocol, fraction)
        except ValueError as error:
            raise ValueError(f'{clicks_path}: {error}') from error


def make_synthetic(out_dir: str | os.PathLike, n_sessions: int = SYNTHETIC_SESSIONS, n_items: int = SYNTHETIC_ITEMS,
                   seed: int = 42, protocol: str = '2016', fraction: int | None = None) -> dict[str, dict[str, int]]:
    """Write a synthetic raw log and the four files that the protocol makes of it.

    Arguments as in `synthetic_clicks` and `preprocess_log`.

    Returns the counts of each file, as `preprocess_log` does.
    """
    _check_protocol(protocol, fraction)
    real = [name for name in FILES.values() if os.path.exists(os.path.join(out_dir, name))]
    if real and not os.path.exists(os.path.join(out_dir, SYNTHETIC_LOG)):
        raise ValueError(f'{out_dir} holds {real[0]}, and no synthetic log that it was made of; choose another folder, '
                         'so that files of real clicks are not overwritten')
    with files_together(out_dir) as folder:
        clicks = synthetic_clicks(n_sessions, n_items, seed)
        write_raw_log(clicks, os.path.join(folder, SYNTHETIC_LOG))
        return _write_files(clicks, folder, protocol, fraction)


def _check_protocol(protocol: str, fraction: int | None) -> None:
    """TypeError or ValueError, before a log is read for minutes, unless there are files of this kind."""
    check_choice('protocol', protocol, PROTOCOLS)
    if fraction is None:
        return
    check_whole_number('fraction', fraction)
    if protocol != '2016':
        raise ValueError(f'fraction={fraction} goes with the protocol of 2016, not with that of {protocol}')


def _write_files(clicks: pd.DataFrame, folder: str, protocol: str, fraction: int | None) -> dict[str, dict[str, int]]:
    """Write the four files of a log; their counts."""
    parts, of_fraction = preprocess(clicks, protocol), {}
    if fraction is not None:
        parts, of_fraction['fraction'] = most_recent_fraction(parts, fraction)
    for name, events in parts.items():
        write_events(events, os.path.join(folder, FILES[name]))
    return {name: count(events) for name, events in parts.items()} | of_fraction


def format_counts(counts: dict[str, dict[str, int]], synthetic: bool = False, protocol: str = '2016',
                  fraction: int | None = None) -> str:
    """The counts of `preprocess_log` as a table of text, beside the published ones where there are some.

    There are none for a synthetic log and for the protocol of 2023; the training files of a fraction have their own.
    """
    published = {} if synthetic or protocol != '2016' else PUBLISHED
    if fraction:
        published = {name: numbers for name, numbers in published.items() if name == 'test'}
    lines = [f"{'file':<24}{'sessions':>12}{'events':>12}{'items':>10}{'   published' if published else ''}"]
    for name, found in counts.items():
        if name in FILES:
            line = f"{FILES[name]:<24}{found['sessions']:>12,}{found['events']:>12,}{found['items']:>10,}"
            lines.append(line + (f'   {verdict(found, published[name])}' if name in published else ''))
    if fraction:
        numbers = ', '.join(f'{number:,} {key}' for key, number in counts['fraction'].items())
        lines.append(f'the most recent 1/{fraction}: {numbers}')
        if fraction in PUBLISHED_FRACTIONS and not synthetic:
            lines.append(f'   published: {verdict(counts["fraction"], PUBLISHED_FRACTIONS[fraction], each=True)}')
    if synthetic:
        lines.append('This log is synthetic: the published counts do not apply to it.')
    return '\n'.join(lines)


def verdict(found: dict[str, int], published: dict[str, int], each: bool = False) -> str:
    """Whether counts are the published ones, for all of them together or for each."""
    same = {key: 'matches' if found[key] == number else 'differs' for key, number in published.items()}
    if each:
        return ', '.join(f'{number:,} {key} {same[key]}' for key, number in published.items())
    together = 'differs' if 'differs' in same.values() else 'matches'
    return f'{together}: ' + ', '.join(f'{number:,} {key}' for key, number in published.items())


def _parse_arguments(argv: list[str] | None) -> tuple[Parser, argparse.Namespace]:
    parser = Parser(
        prog='preprocess_rsc15.py',
        usage='%(prog)s CLICKS OUT [--protocol 2023 | --fraction N]\n'
              '       %(prog)s --synthetic OUT [--sessions N] [--items N] [--seed S]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_version()
    parser.add_argument('paths', nargs='+', metavar='PATH', help='CLICKS, the raw log, and OUT, the folder to write to')
    parser.add_argument('--synthetic', action='store_true', help='make a log up, in place of reading CLICKS')
    parser.add_argument('--sessions', type=int, help=f'synthetic sessions (default {SYNTHETIC_SESSIONS})')
    parser.add_argument('--items', type=int, help=f'synthetic items (default {SYNTHETIC_ITEMS})')
    parser.add_argument('--seed', type=int, help='seed of the synthetic log (default 42)')
    parser.add_argument('--protocol', choices=PROTOCOLS, default='2016', help="the paper's or the authors' later one")
    parser.add_argument('--fraction', type=positive_number, metavar='N', help='keep the most recent 1/N of the '
                        'training prefixes, for example 64 or 4')
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
    logging.basicConfig(level='WARNING', format='%(message)s')
    logging.getLogger('gru4rec.events').setLevel('INFO')  # how many events each filter drops
    try:
        if args.synthetic:
            counts = make_synthetic(args.paths[0], **args.options, protocol=args.protocol, fraction=args.fraction)
        else:
            counts = preprocess_log(args.paths[0], args.paths[1], args.protocol, args.fraction)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print_result(format_counts(counts, args.synthetic, args.protocol, args.fraction))


if __name__ == '__main__':
    main()
