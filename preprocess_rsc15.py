"""RSC15 protocol of section 4: from the raw click log to training, validation and test files.

    python preprocess_rsc15.py CLICKS OUT           the challenge's yoochoose-clicks.dat, plain or compressed
    python preprocess_rsc15.py --synthetic OUT      the same for a made-up log
    python preprocess_rsc15.py CLICKS OUT --fraction 64      the most recent 1/64 of the training prefixes, or 1/4
    python preprocess_rsc15.py CLICKS OUT --protocol 2023    as the authors prepare data since 2023

OUT receives `rsc15_train_full.txt` and `rsc15_test.txt`, and, for tuning, those of the same split inside the
training part: `rsc15_train_tr.txt` and `rsc15_train_valid.txt`. All are tab-separated with the columns
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

import gru4rec_pytensor  # isort: skip  # noqa: F401  so that Ctrl-C while the others are imported is no traceback
import argparse
import logging
import os

import pandas as pd

from gru4rec_pytensor.checks import check_choice, check_whole_number
from gru4rec_pytensor.events import (
    COLUMNS,
    MIN_ITEM_EVENTS,
    check_events,
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
from gru4rec_pytensor.files import files_together
from gru4rec_pytensor.raw_log import read_clicks, write_events, write_raw_log
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
PROTOCOL_YEARS = ('2016', '2023')
PUBLISHED_FRACTIONS = {  # of NARM (Li et al., 2017) and those who use its data
    64: {'training prefixes': 369_859, 'test prefixes': 55_898, 'clicks': 557_248, 'items': 16_766},
    4: {'training prefixes': 5_917_746, 'test prefixes': 55_898, 'clicks': 8_326_407, 'items': 29_618},
}


# ---------------------------------------------------------------------------------------------------------------------
# Section 4, the protocol
# ---------------------------------------------------------------------------------------------------------------------

def preprocess(clicks: pd.DataFrame, protocol: str = '2016') -> dict[str, pd.DataFrame]:
    """Apply the whole protocol of section 4, or that of 2023.

    Parameters
    ----------
    clicks : DataFrame with SessionId, ItemId (numbers, text, dates) and Time (timestamps, or numbers as `in_seconds`
        takes them), one row an event, in any order. It is not modified, and other columns are left out.
    protocol : '2016', or '2023', as the docstring of this module describes it

    Returns
    -------
    dict of four DataFrames with the columns SessionId, ItemId, Time, sorted by session and time:
    `train_full`, `test`, and `train_tr`, `valid`, which divide `train_full` in the same way.  TypeError or ValueError
    for a frame that is not a click log, and ValueError when a step leaves nothing.
    """
    check_choice('protocol', protocol, PROTOCOL_YEARS)
    check_events(clicks, *COLUMNS)
    for name in COLUMNS[:2]:  # such as text beside numbers, which have no order
        if clicks[name].dtype == object and clicks[name].map(type).nunique() > 1:
            raise TypeError(f'{name} must have values of one type, not {clicks[name].map(type).unique().tolist()}')
    clicks = clicks[list(COLUMNS)].assign(Time=in_seconds(clicks['Time']))
    events = sort_events(clicks)
    rare = f'items with fewer than {MIN_ITEM_EVENTS} clicks'
    if protocol == '2023':
        by = split_at_start
        events = left_by('dropping repeats', events, drop_repeats(events))
        events = left_by(f'dropping one-click sessions and {rare} until nothing changes', events,
                         filter_until_stable(events))
    else:
        by = split_last_seconds
        events = left_by('dropping one-click sessions', events, drop_short_sessions(events))
        events = left_by(f'dropping {rare}', events, drop_rare_items(events))
        events = left_by('dropping sessions that the rare items left with one click', events,
                         drop_short_sessions(events))
    train_full, test = split(events, 'test', by)
    train_tr, valid = split(train_full, 'validation', by)
    return {'train_full': train_full, 'test': test, 'train_tr': train_tr, 'valid': valid}


def most_recent_fraction(parts: dict[str, pd.DataFrame], share: int) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Cut both training frames of `preprocess` to the most recent 1 / `share` of their prefixes; also return counts.

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
# From log to files, and the command line
# ---------------------------------------------------------------------------------------------------------------------

def preprocess_log(clicks_path: str | os.PathLike, out_dir: str | os.PathLike, protocol: str = '2016',
                   fraction: int | None = None) -> dict[str, dict[str, int]]:
    """Read a raw click log, apply the protocol and write the four files into `out_dir`, see `files_together`.

    Returns the counts of each, a dict of dicts: {"train_full": {"sessions": ..., "events": ..., "items": ...}, ...}.
    With `fraction`, 64 for 1/64 by the protocol of 2016, there is also "fraction", see `most_recent_fraction`.
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
    """Write a synthetic raw log and the four files that the protocol makes of it, and return the counts of each.

    Arguments as in `synthetic_clicks` and `preprocess_log`.
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
    """Raise TypeError or ValueError unless there are files of this kind, before a log is read for minutes."""
    check_choice('protocol', protocol, PROTOCOL_YEARS)
    if fraction is not None:
        check_whole_number('fraction', fraction)
        if protocol != '2016':
            raise ValueError(f'fraction={fraction} goes with the protocol of 2016, not with that of {protocol}')


def _write_files(clicks: pd.DataFrame, folder: str, protocol: str, fraction: int | None) -> dict[str, dict[str, int]]:
    """Write the four files of a log, and return their counts."""
    parts, of_fraction = preprocess(clicks, protocol), {}
    if fraction is not None:
        parts, of_fraction['fraction'] = most_recent_fraction(parts, fraction)
    for name, events in parts.items():
        write_events(events, os.path.join(folder, FILES[name]))
    return {name: count(events) for name, events in parts.items()} | of_fraction


def format_counts(counts: dict[str, dict[str, int]], synthetic: bool = False, protocol: str = '2016',
                  fraction: int | None = None) -> str:
    """Format the counts of `preprocess_log` as a table of text, beside the published ones where there are some.

    There are none for a synthetic log and for the protocol of 2023; the training files of a fraction have their own.
    """
    published = {} if synthetic or protocol != '2016' else PUBLISHED
    if fraction:
        published = {name: numbers for name, numbers in published.items() if name == 'test'}
    lines = [f"{'file':<24}{'sessions':>12}{'events':>12}{'items':>10}{'   published' if published else ''}"]
    for name, found in counts.items():
        if name in FILES:
            line = f"{FILES[name]:<24}{found['sessions']:>12,}{found['events']:>12,}{found['items']:>10,}"
            lines.append(line + (f'   {agreement(found, published[name])}' if name in published else ''))
    if fraction:
        numbers = ', '.join(f'{number:,} {key}' for key, number in counts['fraction'].items())
        lines.append(f'the most recent 1/{fraction}: {numbers}')
        if fraction in PUBLISHED_FRACTIONS and not synthetic:
            lines.append(f'   published: {agreement(counts["fraction"], PUBLISHED_FRACTIONS[fraction], each=True)}')
    if synthetic:
        lines.append('This log is synthetic: the published counts do not apply to it.')
    return '\n'.join(lines)


def agreement(found: dict[str, int], published: dict[str, int], each: bool = False) -> str:
    """Say whether counts are the published ones, for all of them together or for each."""
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
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_version()
    parser.add_argument('paths', nargs='+', metavar='PATH', help='CLICKS, the raw log, and OUT, the folder to write to')
    parser.add_argument('--synthetic', action='store_true', help='make up a log instead of reading CLICKS')
    parser.add_argument('--sessions', type=int, help=f'synthetic sessions (default {SYNTHETIC_SESSIONS})')
    parser.add_argument('--items', type=int, help=f'synthetic items (default {SYNTHETIC_ITEMS})')
    parser.add_argument('--seed', type=int, help='seed of the synthetic log (default 42)')
    parser.add_argument('--protocol', choices=PROTOCOL_YEARS, default='2016',
                        help="the paper's or the authors' later one")
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
    """Run the command line that the module's docstring describes; wrong input ends with one line and exit code 2."""
    parser, args = _parse_arguments(argv)
    logging.basicConfig(level='WARNING', format='%(message)s')
    logging.getLogger('gru4rec.events').setLevel('INFO')  # how many events each filter drops
    try:
        if args.synthetic:
            counts = make_synthetic(args.paths[0], **args.options, protocol=args.protocol, fraction=args.fraction)
        else:
            counts = preprocess_log(args.paths[0], args.paths[1], args.protocol, args.fraction)
    except (OSError, ValueError, TypeError, MemoryError) as error:
        parser.error(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        parser.exit(130, 'interrupted\n')
    print_result(format_counts(counts, args.synthetic, args.protocol, args.fraction))


if __name__ == '__main__':
    main()
