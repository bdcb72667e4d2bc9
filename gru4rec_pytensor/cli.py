"""The command `gru4rec`: train on a log of sessions, evaluate, recommend, describe a model, prepare data.

    gru4rec prepare clicks.csv -o DATA --session-key visit --item-key product --time-key when
    gru4rec fit DATA/train.tsv -o MODEL --layers 100 --loss top1 --epochs 10
    gru4rec evaluate MODEL DATA/test.tsv
    gru4rec recommend MODEL 214536502 214536500 -k 5
    gru4rec info MODEL

Files are Parquet, or text with a header and tabs, commas, semicolons or bars.  Results go to standard output, with
--json for programs; progress goes to standard error, unless --quiet is given.  The exit code is 0, or 2 after wrong
input, which one line names, or 130 after Ctrl-C.
"""
from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation import CUT_OFF, TIE_POLICIES, ndcg, next_item_ranks, next_item_ranks_with_misses, recall_mrr
from gru4rec import INPUTS, LOSSES, UNITS, GRU4Rec, argument_names, check_arguments
from gru4rec_pytensor import backends, click_log, model_file
from gru4rec_pytensor.events import (
    COLUMNS,
    EQUAL_TIMES,
    MIN_ITEM_EVENTS,
    MIN_SESSION_LENGTH,
    TIME_UNITS,
    count,
    drop_short_sessions,
    share_of_equal_times,
    spelling,
)
from gru4rec_pytensor.files import atomic_file, check_writable
from gru4rec_pytensor.lists import SHORTEST, Lists, coverage_and_popularity, ranks_of_lists, write_lists
from gru4rec_pytensor.terminal import Parser, TrainingProgress, listed, note, positive_number, print_result
from preprocess_rsc15 import PROTOCOL_YEARS

KEYS = ('session_key', 'item_key', 'time_key')


def fit(arguments: argparse.Namespace) -> tuple[dict, list[str]]:
    """`gru4rec fit`: train, and write the model.

    Like the other commands it returns what is printed: a dictionary for --json, and lines for people.
    """
    given = {name: value for name, value in vars(arguments).items() if name in argument_names() and value is not None}
    for path in filter(None, (arguments.output, arguments.checkpoint)):
        check_output(path, arguments.file)
    if arguments.more:
        options = [*given.keys() - {'n_epochs', 'equal_times', 'backend', *KEYS},
                   *[name for name in ('checkpoint', 'parameters') if getattr(arguments, name)]]
        if options:
            option = min(options).replace('_p_hidden', '').replace('_', '-')
            raise ValueError(f'--more and --{option} do not go together: the model keeps its settings, but for '
                             '--epochs, --equal-times and --backend')
        model = GRU4Rec.load(arguments.more, backend=given.get('backend'))
        model.equal_times = given.get('equal_times', model.equal_times)
        if [getattr(model, name) for name in KEYS] != columns_of(arguments, model):
            raise ValueError(f'the model of --more was trained with --session-key {model.session_key} --item-key '
                             f'{model.item_key} --time-key {model.time_key}')
    elif arguments.parameters:
        model = GRU4Rec.from_parameters(arguments.parameters, **given)
    else:
        model = GRU4Rec(**{'layers': [100]} | given)
        check_arguments(model)
    data = read_log(arguments, columns_of(arguments, model))
    share = share_of_equal_times(data, model.session_key, model.time_key)
    if share >= EQUAL_TIMES and model.equal_times == 'item' and not arguments.quiet:
        note(f'{share:.1%} of the events have the time of another one of their session, and are trained in the order '
             'of their items; --equal-times frame keeps the order of the file')
    progress = TrainingProgress(f'{model.loss}, {"+".join(map(str, model.layers))} units', arguments.quiet)
    started = time.perf_counter()
    if arguments.more:
        model.fit_more(data, given.get('n_epochs'), callback=progress)
    else:
        model.fit(data, callback=progress, checkpoint=arguments.checkpoint, every=arguments.every)
    progress.close(time.perf_counter() - started)
    if model.error_during_train:
        raise ValueError('training met a loss that is not finite, and nothing was saved; a smaller --learning-rate may '
                         'help')
    model.save(arguments.output, dtype=arguments.dtype)
    found: dict[str, Any] = {
        'model': str(arguments.output), 'items': model.n_items, 'epochs': len(model.epoch_losses_),
        'loss': model.epoch_losses_[-1], 'seconds': time.perf_counter() - started, 'backend': model.backend_}
    return found, ['{model}: {items:,} items, {epochs} epochs, loss {loss:.4f}, {seconds:.1f} s on {backend}'.format(
        **found)]


def evaluate(arguments: argparse.Namespace) -> tuple[dict, list[str]]:
    """`gru4rec evaluate`: Recall, MRR and NDCG on a file of events, of a model or of lists made elsewhere."""
    for path in filter(None, (arguments.write_lists, arguments.ranks)):
        check_output(path, arguments.file, arguments.model)
    if arguments.lists:
        return evaluate_lists(arguments)
    if arguments.write_lists and arguments.unknown == 'miss':
        raise ValueError('--write-lists does not go with --unknown miss: there is no list where nothing is known')
    n_listed = max(arguments.k if arguments.write_lists else 0, CUT_OFF if arguments.lists_metrics else 0)
    lists = Lists(n_listed) if n_listed else None
    model = GRU4Rec.load(arguments.model, backend=arguments.backend)
    columns = session, item, _time = columns_of(arguments, model)
    data = read_log(arguments, columns)
    n_dropped = 0
    if arguments.unknown == 'miss':
        ranks = next_item_ranks_with_misses(model, data, None, 100, arguments.tie_policy, 42, *columns, lists)
    else:
        index, n_events = model.known_indices(data[item]), len(data)
        data = drop_short_sessions(data[index >= 0].assign(**{item: model.items_[index[index >= 0]]}),
                                   session_key=session)
        if data.empty:
            raise ValueError(f'{arguments.file}: no session has two events with items that the model knows')
        n_dropped = n_events - len(data)
        if n_dropped and not arguments.quiet:
            note(f'dropped {n_dropped} of {n_events} events: items that the model does not know, then one-event '
                 'sessions')
        ranks = next_item_ranks(model, data, None, 100, arguments.tie_policy, 42, *columns, lists=lists)
    if lists and arguments.write_lists:
        write_lists(arguments.write_lists, lists, arguments.k, data, columns)
        if arguments.k < SHORTEST and not arguments.quiet:
            note(f'lists of fewer than {SHORTEST} items cannot be evaluated by --lists')
    found, lines = metrics(ranks, data[session].nunique(), arguments)
    if lists and arguments.lists_metrics:
        counts = pd.Series(model.item_counts_, index=model.items_)
        values = coverage_and_popularity(lists.items[:, :CUT_OFF], counts)
        found |= dict(zip((f'coverage@{CUT_OFF}', f'popularity@{CUT_OFF}'), values))
        lines.append(f'coverage@{CUT_OFF} {values[0]:.4f}   mean popularity@{CUT_OFF} {values[1]:.4f}')
    found |= {'tie_policy': arguments.tie_policy, 'unknown': arguments.unknown, 'dropped_events': n_dropped}
    return found, lines


def evaluate_lists(arguments: argparse.Namespace) -> tuple[dict, list[str]]:
    """Return the metrics of lists that were made elsewhere, as `evaluate` does."""
    if arguments.write_lists or arguments.lists_metrics or arguments.backend or arguments.unknown == 'miss':
        raise ValueError('--write-lists, --lists-metrics, --unknown miss and --backend are of a model, and do not go '
                         'with --lists')
    columns = columns_of(arguments)
    data = read_log(arguments, columns)
    ranks, lists = ranks_of_lists(Path(arguments.model), data, columns)
    if max(arguments.cut_off) > (shortest := lists.str.len().min()):
        raise ValueError(f'--cut-off {max(arguments.cut_off)}: the shortest list has {shortest} items')
    return metrics(ranks, data[columns[0]].nunique(), arguments)


def metrics(ranks: np.ndarray, n_sessions: int, arguments: argparse.Namespace) -> tuple[dict, list[str]]:
    """Return the metrics of ranks at each cut-off, and write the ranks if the command line says so."""
    if arguments.ranks:
        with atomic_file(arguments.ranks) as file:
            np.save(file, ranks)
    found: dict[str, Any] = {'predictions': len(ranks), 'sessions': n_sessions}
    lines = [f'{len(ranks):,} predictions in {n_sessions:,} sessions']
    for n in arguments.cut_off:
        values = *recall_mrr(ranks, n), ndcg(ranks, n)
        found |= dict(zip((f'recall@{n}', f'mrr@{n}', f'ndcg@{n}'), values))
        lines.append('   '.join(f'{name}@{n} {value:.4f}' for name, value in zip(('Recall', 'MRR', 'NDCG'), values)))
    return found, lines


def recommend(arguments: argparse.Namespace) -> tuple[dict, list[str]]:
    """`gru4rec recommend`: print the most likely next items of a session."""
    model = GRU4Rec.load(arguments.model, backend=arguments.backend)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        frame = model.recommend(arguments.items, arguments.k, arguments.exclude_seen)
    for warning in caught:
        note(f'gru4rec: {warning.message}')
    rows = [{'item': json_id(item), 'score': float(score)} for item, score in zip(frame[model.item_key], frame.Score)]
    return {'recommendations': rows}, [f'{row["item"]}\t{row["score"]:.6f}' for row in rows]


def info(arguments: argparse.Namespace) -> tuple[dict, list[str]]:
    """`gru4rec info`: describe a model file."""
    model, saved = GRU4Rec.load(arguments.model, backend='python'), model_file.read_model(arguments.model)
    model.backend = saved.arguments.get('backend', 'auto')  # which need not work on this machine
    weights = {name: list(array.shape) for name, array in saved.weights.items()}
    found = {'arguments': saved.arguments, 'items': len(saved.items), 'item_ids': str(saved.items.dtype),
             'training_events': int(saved.item_counts.sum()), 'epoch_losses': saved.epoch_losses, 'weights': weights,
             'parameters': int(sum(np.prod(shape) for shape in weights.values())),
             'bytes': Path(arguments.model).stat().st_size}
    return found, [
        f'{arguments.model}: {found["items"]:,} items, {found["parameters"]:,} parameters, {found["bytes"]:,} bytes',
        f'trained on {found["training_events"]:,} events for {len(saved.epoch_losses)} epochs, losses '
        + ' '.join(f'{loss:.4f}' for loss in saved.epoch_losses),
        repr(model),
        'weights: ' + ', '.join(f'{name} {"x".join(map(str, shape))}' for name, shape in weights.items())]


def prepare(arguments: argparse.Namespace) -> tuple[dict, list[str]]:
    """`gru4rec prepare`: filter a log, and split off test data."""
    columns = columns_of(arguments)
    out = Path(arguments.output)
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out}: is a file; give the name of a folder')
    for path in [out / 'train.tsv', out / 'test.tsv'] if out.exists() else [out]:
        check_output(path, arguments.file)
    data, is_2023, days = read_log(arguments, columns), arguments.protocol == '2023', arguments.test_days
    if is_2023 and days is None and arguments.test_fraction is None:
        days = data.attrs['format'].test_days or 1
        if not arguments.quiet:
            note(f'the sessions of the last {days} day(s) are the test data; --test-days says otherwise')
    is_old = (data[columns[2]] < 0).any()  # before 1970: in a file a date, since a negative number is no time there
    if is_old:
        data[columns[2]] = pd.to_datetime(data[columns[2]], unit='s')
    train, test = click_log.prepare(
        data, columns, min_session_length=arguments.min_session_length, max_session_length=arguments.max_session_length,
        min_item_events=arguments.min_item_events, test_days=days, time_unit='s',  # by `read_log`
        test_fraction=arguments.test_fraction, drop_repeats=arguments.drop_repeats or is_2023,
        until_stable=arguments.until_stable or is_2023, test_by=arguments.test_by or ('first' if is_2023 else 'last'))
    out.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    for name, frame in (('train', train), ('test', test)):
        path, renamed = out / f'{name}.tsv', frame.set_axis(COLUMNS, axis=1)
        if is_old:
            renamed = renamed.assign(Time=pd.to_datetime(renamed.Time, unit='s'))
        with atomic_file(path) as file:
            renamed.to_csv(file, sep='\t', index=False)
        found[name] = {'file': str(path)} | count(renamed)
    lines = [f'{part["file"]}: {part["sessions"]:,} sessions, {part["events"]:,} events, {part["items"]:,} items'
             for part in found.values()]
    return found | {'dropped_events': len(data) - len(train) - len(test)}, lines


def columns_of(arguments: argparse.Namespace, model: GRU4Rec | None = None) -> list[str]:
    """Columns of session, item and time: those of the command line, else the model's, else the paper's."""
    return [getattr(arguments, name) or (getattr(model, name) if model else default)
            for name, default in zip(KEYS, COLUMNS)]


def read_log(arguments: argparse.Namespace, columns: Sequence[str]) -> pd.DataFrame:
    """Read the events of the file that the command line names."""
    names = ('time_unit', 'drop_without_session', 'drop_without_item', 'event_key', 'event_types', 'session_gap')
    return click_log.read_events(arguments.file, columns, **{name: getattr(arguments, name) for name in names})


def check_output(output: str | Path, *sources: str | Path) -> None:
    """Raise OSError or ValueError if `output` cannot be written, or is a file that is read."""
    for source in sources:
        if Path(output).exists() and Path(source).exists() and Path(output).samefile(source):
            raise ValueError(f'{output}: is the file that is read; give another name')
    check_writable(output)


def json_id(item: Any) -> Any:
    """Return an id as JSON can hold it, dates as text."""
    if isinstance(item, (datetime.date, np.datetime64)):
        return spelling(item)
    return item.item() if isinstance(item, np.generic) else item


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; SystemExit with a message if it is wrong."""
    parser = Parser(prog='gru4rec', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_version()
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(function: Callable[[argparse.Namespace], tuple[dict, list[str]]], help_text: str,
                example: str) -> Parser:
        sub = commands.add_parser(function.__name__, help=help_text, description=f'{help_text}\n\n    {example}',
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(function=function)
        sub.add_argument('--json', action='store_true', help='print one JSON object')
        sub.add_argument('--quiet', action='store_true', help='no progress on standard error')
        return sub

    sub = command(fit, 'Train a model on a log.',
                  'gru4rec fit train.tsv -o model --layers 100 --loss top1 --dropout 0.5 --learning-rate 0.01')
    add_log_options(sub, COLUMNS)
    sub.add_argument('-o', '--output', metavar='MODEL', required=True, help='file to write')
    add_training_options(sub)
    sub = command(evaluate, 'Measure Recall and MRR of the next item in the sessions of a log.',
                  'gru4rec evaluate model test.tsv --cut-off 5 20')
    sub.add_argument('model', metavar='MODEL')
    add_log_options(sub, 3 * ['as in training'])
    sub.add_argument('--lists', action='store_true', help='MODEL is a file of lists that another program made, of the '
                     'form SessionId;Position;Recommendations;Scores')
    sub.add_argument('--write-lists', type=Path, metavar='LISTS', help='write a file of lists, in the same form')
    sub.add_argument('-k', type=positive_number, default=50, help='items in each written list (50)')
    sub.add_argument('--ranks', type=Path, metavar='NPY', help='write the rank of each next item, by session and time')
    sub.add_argument('--lists-metrics', action='store_true', help=f'coverage and mean popularity of lists of {CUT_OFF}')
    sub.add_argument('--cut-off', type=positive_number, nargs='+', default=[CUT_OFF], metavar='N',
                        help=f'cut-offs of the metrics ({CUT_OFF})')
    sub.add_argument('--unknown', choices=('drop', 'miss'), default='drop', help='leave out events with items that '
                        'the model does not know, or count them as misses (drop)')
    sub.add_argument('--tie-policy', choices=TIE_POLICIES, default='conservative',
                        help='rank of a target whose score other items share (conservative: after them)')
    sub.add_argument('--backend', choices=backends.BACKENDS, help='(as in training)')
    sub = command(recommend, 'Recommend the most likely next items of a session.',
                  'gru4rec recommend model 214536502 214536500 -k 5 --exclude-seen')
    sub.add_argument('model', metavar='MODEL')
    sub.add_argument('items', metavar='ITEM', nargs='+', help="ids of the session's events so far, in order")
    sub.add_argument('-k', type=positive_number, default=20, help='number of items (20)')
    sub.add_argument('--exclude-seen', action='store_true', help='leave out items of the session')
    sub.add_argument('--backend', choices=backends.BACKENDS, default='python', help='(python: starts at once)')
    command(info, 'Describe a model file.', 'gru4rec info model').add_argument('model', metavar='MODEL')
    sub = command(prepare, 'Filter a log as the paper does, and split off the last sessions as test data.',
                  'gru4rec prepare clicks.csv -o DATA --item-key product --test-days 1')
    add_log_options(sub, COLUMNS)
    add_preparation_options(sub)
    return parser.parse_args(argv)


def add_log_options(parser: argparse.ArgumentParser, columns: Sequence[str]) -> None:
    """Add the options of `read_log`; `columns` are the defaults that the help shows."""
    parser.add_argument('file', metavar='FILE', help='log of events, also compressed; - for standard input')
    for name, default in zip(KEYS, columns):
        what = name.removesuffix('_key')
        parser.add_argument(f'--{what}-key', metavar='COLUMN', help=f'column of the {what} ({default})')
    parser.add_argument('--time-unit', choices=TIME_UNITS, help='unit of times that are numbers (guessed)')
    parser.add_argument('--drop-without-session', action='store_true', help='leave out rows without a session')
    parser.add_argument('--drop-without-item', action='store_true', help='leave out rows without an item')
    parser.add_argument('--event-key', metavar='COLUMN', help='column of the kind of event')
    parser.add_argument('--event-types', type=listed(str), default=(), metavar='KIND,KIND', help='kinds to keep (all)')
    parser.add_argument('--session-gap', type=float, metavar='SECONDS', help='the column of the session has visitors, '
                        'whose sessions end after a pause of more than SECONDS')


def add_preparation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare`."""
    parser.add_argument('-o', '--output', metavar='DIR', required=True, help='folder for train.tsv and test.tsv')
    parser.add_argument('--min-session-length', type=positive_number, default=MIN_SESSION_LENGTH, metavar='N',
                        help=f'({MIN_SESSION_LENGTH})')
    parser.add_argument('--max-session-length', type=positive_number, metavar='N', help='(no limit)')
    parser.add_argument('--min-item-events', type=positive_number, default=MIN_ITEM_EVENTS, metavar='N',
                        help=f'({MIN_ITEM_EVENTS})')
    parser.add_argument('--protocol', choices=PROTOCOL_YEARS, default='2016', help="the paper's, or the authors' of "
                        '2023: --drop-repeats --until-stable --test-by first, and the --test-days of a known log')
    parser.add_argument('--test-days', type=float, metavar='DAYS', help='sessions that end in the last DAYS (1)')
    parser.add_argument('--test-fraction', type=float, metavar='SHARE', help='share of the sessions, for --test-days')
    parser.add_argument('--test-by', choices=('last', 'first'), help='test sessions end last, or start last, and '
                        'training ends where the first of them starts (last; with --protocol 2023 first)')
    parser.add_argument('--drop-repeats', action='store_true', help='keep the first of events of an item in a row')
    parser.add_argument('--until-stable', action='store_true', help='drop short sessions and rare items until nothing '
                        'changes')


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `GRU4Rec` as options of `fit`; those that are not given are missing in the result."""
    defaults = GRU4Rec([100])

    def add(option: str, name: str, default: Any = None, **kind: Any) -> None:
        parser.add_argument(option, dest=name, default=argparse.SUPPRESS,
                            help=f'({getattr(defaults, name) if default is None else default})', **kind)

    parser.add_argument('--parameters', metavar='FILE', help="read the arguments from a file, such as "
                        "parameters/*.toml or one of the authors'; the options below override it")
    add('--layers', 'layers', 100, type=positive_number, nargs='+', metavar='UNITS')
    add('--epochs', 'n_epochs', type=positive_number, metavar='EPOCHS')
    add('--dropout', 'dropout_p_hidden', type=float, metavar='DROPOUT')
    add('--batch-size', 'batch_size', type=positive_number, metavar='BATCH_SIZE')
    for name in ('learning_rate', 'momentum', 'lmbd'):
        add(f'--{name.replace("_", "-")}', name, type=float)
    add('--loss', 'loss', choices=LOSSES)
    add('--final-act', 'final_act', 'that of the loss', metavar='ACTIVATION')
    add('--unit', 'unit', choices=UNITS)
    add('--embedding', 'embedding', 'none', type=positive_number, metavar='WIDTH')
    add('--input-mode', 'input_mode', choices=INPUTS)
    add('--equal-times', 'equal_times', choices=('item', 'frame'))
    add('--seed', 'seed', type=int)
    add('--backend', 'backend', choices=backends.BACKENDS)
    parser.add_argument('--checkpoint', metavar='FILE', help='save the state of the training there, and resume from it')
    parser.add_argument('--every', type=float, default=600, metavar='SECONDS', help='between two checkpoints (600)')
    parser.add_argument('--more', metavar='MODEL', help='train this model further on FILE, which may have new '
                        'items; with --epochs (as many as before), --equal-times, --backend and --dtype alone')
    parser.add_argument('--dtype', choices=('float32', 'float16'), default='float32',
                        help='type of the saved weights (float32)')


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = parse(argv)
    logging.basicConfig(level='WARNING', format='gru4rec: %(message)s')
    logging.getLogger('gru4rec.events').setLevel('WARNING' if arguments.quiet else 'INFO')
    try:
        found, lines = arguments.function(arguments)
    except (OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        note(f'gru4rec {arguments.command}: error: {" ".join(str(message).split()) or type(error).__name__}')
        return 2
    except KeyboardInterrupt:
        checkpoint = getattr(arguments, 'checkpoint', None)
        resumes = checkpoint and Path(checkpoint).exists()
        note('interrupted' + (f'; the same command resumes from {checkpoint}' if resumes else ''))
        return 130
    print_result(json.dumps(found) if arguments.json else '\n'.join(lines))
    return 0


if __name__ == '__main__':
    sys.exit(main())
