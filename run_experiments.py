"""The paper's experiments: Tables 1 and 3 of arXiv 1511.06939 v4, published next to reproduced.

    python run_experiments.py                          # on a synthetic click log that it makes itself
    python run_experiments.py --data DIR               # on the four files of preprocess_rsc15.py
    python run_experiments.py --train F --test F       # on any two files with SessionId, ItemId and Time

Each finished cell is written to OUT/results.json at once and is not run again when the command is repeated;
OUT/tables.md holds the tables.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import pandas as pd
import pytensor

import backends
import baselines
import preprocess_rsc15
import storage
from evaluation import TIE_POLICIES, next_item_ranks, recall_mrr
from gru4rec import GRU4Rec, Progress

try:
    from tqdm import tqdm
except ImportError:  # an extra: without it, each epoch is reported on a line of its own
    tqdm = None

# Published results on RSC15 (Recall@20, MRR@20): Table 1, and Table 3 by loss and units.
PUBLISHED = {
    'POP': (0.0050, 0.0012),
    'S-POP': (0.2672, 0.1775),
    'Item-KNN': (0.5065, 0.2048),
    'BPR-MF': (0.2574, 0.0618),
    ('top1', 100): (0.5853, 0.2305),
    ('bpr', 100): (0.6069, 0.2407),
    ('cross-entropy', 100): (0.6074, 0.2430),
    ('top1', 1000): (0.6206, 0.2693),
    ('bpr', 1000): (0.6322, 0.2467),
    ('cross-entropy', 1000): (0.5777, 0.2153),
}

# Table 3: gains over Item-KNN as printed, which are of numbers with more digits than the table shows.
PUBLISHED_GAINS = {
    ('top1', 100): (0.1555, 0.1258),
    ('bpr', 100): (0.1982, 0.1754),
    ('cross-entropy', 100): (0.1991, 0.1865),
    ('top1', 1000): (0.2253, 0.3149),
    ('bpr', 1000): (0.2482, 0.2047),
    ('cross-entropy', 1000): (0.1406, 0.0516),
}

# Table 2, RSC15: the best parameters of each loss.
GRU4REC_PARAMETERS = {
    'top1': dict(batch_size=50, dropout_p_hidden=0.5, learning_rate=0.01, momentum=0.0),
    'bpr': dict(batch_size=50, dropout_p_hidden=0.2, learning_rate=0.05, momentum=0.2),
    'cross-entropy': dict(batch_size=500, dropout_p_hidden=0.0, learning_rate=0.01, momentum=0.0),
}

BASELINES = {
    'POP': (baselines.Pop, dict(top_n=100)),
    'S-POP': (baselines.SessionPop, dict(top_n=1000)),
    'Item-KNN': (baselines.ItemKNN, dict(n_sims=100, lmbd=20, alpha=0.5)),
    'BPR-MF': (baselines.BPR, dict(n_factors=100, n_iterations=10, learning_rate=0.01)),
}

MODELS = (*BASELINES, 'GRU4Rec')
CUT_OFF = 20


class Dataset(NamedTuple):
    name: str  # says where the data is from, and a fingerprint of it
    synthetic: bool
    train: pd.DataFrame
    test: pd.DataFrame


class Cell(NamedTuple):
    """One number of a table: what is trained and evaluated, apart from the data."""
    table: int
    model: str
    loss: str | None
    units: int | None
    epochs: int | None
    seed: int | None
    parameters: dict
    tie_policy: str


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------

def load_dataset(arguments: argparse.Namespace) -> Dataset:
    """The data that the command line asks for; the synthetic log is made when it is not in the cache folder yet."""
    if arguments.train:
        train, test, name = Path(arguments.train), Path(arguments.test), Path(arguments.train).stem
    else:
        folder = Path(arguments.data) if arguments.data else synthetic_folder(arguments)
        train, test, name = folder / 'rsc15_train_full.txt', folder / 'rsc15_test.txt', folder.resolve().name
    frames = [read_events(path) for path in (train, test)]
    for key in ('SessionId', 'ItemId'):  # ids that look like numbers in one file only
        if frames[0][key].dtype != frames[1][key].dtype:
            frames = [frame.astype({key: str}) for frame in frames]
    fingerprint = hashlib.sha256(b''.join(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()
                                          for frame in frames)).hexdigest()[:8]
    synthetic = not (arguments.train or arguments.data) or (train.parent / preprocess_rsc15.SYNTHETIC_LOG).exists()
    return Dataset(f"{'synthetic' if synthetic else name}-{fingerprint}", synthetic, frames[0],
                   known_items_only(*frames))


def synthetic_folder(arguments: argparse.Namespace) -> Path:
    """Folder with a synthetic log of the wanted size, made if need be; its name changes when the generator does."""
    version = hashlib.sha256(Path(preprocess_rsc15.__file__).read_bytes()).hexdigest()[:8]
    size = {f'n_{name}': getattr(arguments, name) for name in ('sessions', 'items') if getattr(arguments, name)}
    folder = Path(arguments.cache) / '-'.join(['synthetic', version, *[f'{n}{name[1:]}' for name, n in size.items()]])
    if not (folder / 'rsc15_test.txt').exists() or not (folder / 'rsc15_train_full.txt').exists():
        note(f'making the synthetic click log in {folder}')
        preprocess_rsc15.make_synthetic(folder, **size)
    return folder


def read_events(path: Path) -> pd.DataFrame:
    """A file of events: tab-separated, with a header that has SessionId, ItemId and Time."""
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    try:
        # No value of an id means "missing" (an item may be called NA), and the type of a column is that of all rows.
        frame = pd.read_csv(path, sep='\t', keep_default_na=False, low_memory=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f'{path}: not a tab-separated text file ({str(error).strip()})') from None
    missing = {'SessionId', 'ItemId', 'Time'} - set(frame.columns)
    if missing:
        raise ValueError(f'{path}: lacks the column(s) {sorted(missing)}; it has {list(frame.columns)[:8]}. Expected '
                         'is a tab-separated file with the header SessionId, ItemId, Time')
    for name in ('SessionId', 'ItemId'):
        if frame[name].dtype == object or pd.api.types.is_string_dtype(frame[name]):
            check_rows(path, frame[name] != '', name, 'an id')
    check_rows(path, pd.to_numeric(frame.Time, errors='coerce').notna(), 'Time', 'a number of seconds', frame.Time)
    return frame[['SessionId', 'ItemId', 'Time']]


def check_rows(path: Path, good: pd.Series, name: str, wanted: str, values=None):
    """ValueError that names the first line whose column is not what it should be."""
    if not good.all():
        row = int((~good).to_numpy().argmax())
        found = 'empty' if values is None else repr(values.iloc[row])
        raise ValueError(f'{path}, line {row + 2}: {name} is {found}, not {wanted}')


def known_items_only(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """The test events that the protocol of section 4 keeps: items that training has, sessions of two events or more."""
    known = test[test.ItemId.isin(train.ItemId.unique())]
    kept = known[known.groupby('SessionId').ItemId.transform('size') > 1]
    if kept.empty:
        raise ValueError('no test session has two events with items of the training data')
    if len(kept) < len(test):
        note(f'dropped {len(test) - len(kept)} test events: items that training does not have, then one-event sessions')
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------

def plan(tables, models, losses, units, epochs, seeds, tie_policy) -> list[Cell]:
    """The cells of the chosen tables, in the paper's order.  Table 3 needs Item-KNN, for the gain over it."""
    cells = []
    for model, (_class, parameters) in BASELINES.items():
        if model in models and (1 in tables or model == 'Item-KNN'):
            epochs_of = parameters.get('n_iterations')
            for seed in seeds if model == 'BPR-MF' else [None]:
                cells.append(Cell(1, model, None, None, epochs_of, seed, parameters, tie_policy))
    if 3 in tables and 'GRU4Rec' in models:
        cells += [Cell(3, 'GRU4Rec', loss, n, epochs, seed, GRU4REC_PARAMETERS[loss], tie_policy)
                  for n in units for loss in losses for seed in seeds]
    if not cells:
        raise ValueError(f'--table {" ".join(map(str, tables))} has no row for --models {" ".join(models)}')
    return cells


def check_batch_sizes(cells: list[Cell], train: pd.DataFrame):
    """ValueError, before any training, when a cell needs more parallel sessions than there are."""
    n_sessions = int((train.groupby('SessionId').size() > 1).sum())
    for cell in cells:
        if cell.parameters.get('batch_size', 0) > n_sessions:
            batch_size = cell.parameters['batch_size']
            raise ValueError(f'{cell.model} with {cell.loss} trains {batch_size} sessions in parallel, but the '
                             f'training data has {n_sessions} of two or more events; leave it out with --loss')


def run_cell(cell: Cell, data: Dataset, backend: str) -> dict:
    """Train and evaluate; the result as it is written to results.json."""
    started = time.perf_counter()
    progress = TrainingProgress(cell) if cell.model == 'GRU4Rec' else None
    if progress:
        model = GRU4Rec([cell.units], n_epochs=cell.epochs, loss=cell.loss, seed=cell.seed, backend=backend,
                        **cell.parameters)
        model.fit(data.train, callback=progress)
        events_per_second = progress.close(time.perf_counter() - started)
    else:
        seed = {} if cell.seed is None else {'seed': cell.seed}
        model = BASELINES[cell.model][0](**cell.parameters, **seed)
        model.fit(data.train)
        events_per_second = len(data.train) * (cell.epochs or 1) / (time.perf_counter() - started)
    trained = time.perf_counter()
    result = dict.fromkeys(RESULT_KEYS) | cell._asdict() | {
        'dataset': data.name, 'fit_seconds': trained - started, 'train_events_per_second': events_per_second,
        'backend': model.backend_ if progress else None, 'versions': versions()}
    published = PUBLISHED.get((cell.loss, cell.units) if progress else cell.model, (None, None))
    result['published_recall@20'], result['published_mrr@20'] = published
    if not getattr(model, 'error_during_train', False):
        result |= evaluate(model, cell, data)
    return result


def evaluate(model, cell: Cell, data: Dataset) -> dict:
    """Metrics of a trained model, and what evaluation took."""
    started = time.perf_counter()
    ranks = next_item_ranks(model, data.test, tie_policy=cell.tie_policy)
    seconds = time.perf_counter() - started
    recall, mrr = recall_mrr(ranks, CUT_OFF)
    result = {'recall@20': recall, 'recall@19': recall_mrr(ranks, CUT_OFF - 1)[0], 'mrr@20': mrr,
              'eval_seconds': seconds, 'eval_events_per_second': len(ranks) / seconds}
    if cell.model == 'Item-KNN':
        result['other_tie_policies'] = {
            policy: recall_mrr(next_item_ranks(model, data.test, tie_policy=policy), CUT_OFF)
            for policy in TIE_POLICIES if policy != cell.tie_policy}
    return result


RESULT_KEYS = ('dataset', 'table', 'model', 'loss', 'units', 'epochs', 'seed', 'parameters', 'recall@20', 'recall@19',
               'mrr@20', 'published_recall@20', 'published_mrr@20', 'fit_seconds', 'eval_seconds',
               'train_events_per_second', 'eval_events_per_second', 'tie_policy', 'backend', 'versions')


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {'python': platform.python_version(), 'pytensor': pytensor.__version__, 'numpy': np.__version__,
             'numba': numba.__version__, 'pandas': pd.__version__}
    return found | ({'jax': sys.modules['jax'].__version__} if sys.modules.get('jax') else {})


class TrainingProgress:
    """Progress bar of one training: epoch, loss, mini-batches/s, events/s, time left; and the rate it measured.

    The rate leaves out the time until the first mini-batches are through, which is mostly compilation.
    """

    def __init__(self, cell: Cell):
        self.label = f'{cell.loss}, {cell.units} units'
        self.first: tuple = ()
        self.last: tuple = (0.0, 0)
        self.epoch, self.loss = 0, float('nan')
        self.bar = None
        if tqdm and sys.stderr.isatty():  # a log or a pipe gets a line for each epoch instead
            self.bar = tqdm(unit=' events', unit_scale=True, desc=self.label, file=sys.stderr)

    def __call__(self, progress: Progress):
        events = progress.epoch * progress.total_events + progress.events
        now = time.perf_counter()
        self.first = self.first or (now, events)
        self.last = now, events
        seconds = max(now - self.first[0], 1e-9)
        rate = (events - self.first[1]) / seconds
        minibatches = f'{rate * progress.minibatches / progress.events:,.0f} mini-batches/s'
        if self.bar is not None:
            self.bar.total = progress.n_epochs * progress.total_events
            self.bar.set_postfix_str(f'epoch {progress.epoch + 1}/{progress.n_epochs}, loss {progress.loss:.4f}, '
                                     f'{minibatches}', refresh=False)
            self.bar.update(events - self.bar.n)
        elif progress.epoch > self.epoch:
            left = seconds * (progress.n_epochs / progress.epoch - 1)
            note(f'{self.label}: epoch {progress.epoch} of {progress.n_epochs} done, loss {self.loss:.4f}, '
                 f'{minibatches}, {rate:,.0f} events/s, about {left:.0f} s left')
            self.epoch = progress.epoch
        self.loss = progress.loss

    def close(self, seconds: float) -> float | None:
        """End the bar; events per second, of all `seconds` of the training if there was a single report."""
        if self.bar is not None:
            self.bar.close()
        if not self.first:
            return None
        if self.bar is None:
            note(f'{self.label}: done, loss {self.loss:.4f}')
        if self.last[1] == self.first[1]:
            return self.last[1] / seconds
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])


# ---------------------------------------------------------------------------------------------------------------------
# Results on disk
# ---------------------------------------------------------------------------------------------------------------------

def load_results(path: Path) -> list[dict]:
    """Results of earlier runs; an empty list when there are none."""
    if not path.exists():
        return []
    with contextlib.suppress(ValueError):
        results = json.loads(path.read_text())
        if isinstance(results, list) and all(set(RESULT_KEYS) <= set(result) for result in results):
            return results
    raise ValueError(f'{path}: not a results file of this program; move it away, or choose another --out')


def find(results: list[dict], dataset: str, cell: Cell, backend: str) -> dict | None:
    """The result of a cell on a data set, if it is there; a baseline's does not depend on the backend."""
    wanted = cell._asdict() | {'dataset': dataset, 'backend': backend if cell.model == 'GRU4Rec' else None}
    return next((result for result in results if all(result[key] == value for key, value in wanted.items())), None)


def write_atomically(path: Path, text: str):
    """Write a file that is either whole or not there."""
    with storage.replacing(path) as file:
        file.write(text.encode())


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------

def format_tables(results: list[dict], data: Dataset, tables) -> str:
    """The chosen tables as Markdown, with what the numbers are and how ties were ranked."""
    what = ('**This is a synthetic click log**: our numbers on it are not comparable with the published ones, only '
            'their order is.' if data.synthetic else
            'Our numbers are comparable with the published ones only if this is the RSC15 data of the paper.')
    lines = [f'Data set `{data.name}`: train {counts(data.train)}; test {counts(data.test)}. {what}', '']
    if 1 in tables and any(result['table'] == 1 for result in results):
        lines += ['### Table 1: baselines', '', *table_1(results), '']
    if any(result['table'] == 3 for result in results):
        lines += ['### Table 3: GRU4Rec, one layer', '', *table_3(results), '']
    lines += [f'Published: RSC15, arXiv 1511.06939 v4. {runs_behind(results)}Items with equal scores are ranked by the '
              f'policy {results[0]["tie_policy"]!r} in every row.']
    return '\n'.join(lines + tie_note(results)) + '\n'


def table_1(results: list[dict]) -> list[str]:
    rows = [(model, PUBLISHED[model], ours) for model in BASELINES if (ours := of_model(results, model))]
    return markdown(('Baseline', 'Recall@20 published', 'Recall@20 ours', 'MRR@20 published', 'MRR@20 ours',
                     'fit', 'evaluation'),
                    [(model, f'{published[0]:.4f}', average(ours, 'recall@20'), f'{published[1]:.4f}',
                      average(ours, 'mrr@20'), *durations(ours)) for model, published, ours in rows])


def table_3(results: list[dict]) -> list[str]:
    knn = of_model(results, 'Item-KNN')
    rows = []
    for loss, units in dict.fromkeys((r['loss'], r['units']) for r in results if r['model'] == 'GRU4Rec'):
        ours = [r for r in of_model(results, 'GRU4Rec') if (r['loss'], r['units']) == (loss, units)]
        published = PUBLISHED.get((loss, units))
        row = [LOSS_NAMES[loss], units]
        for i, metric in enumerate(('recall@20', 'mrr@20')):
            row.append(f'{published[i]:.4f} ({PUBLISHED_GAINS[loss, units][i]:+.2%})' if published else '-')
            mine, base = value(ours, metric), value(knn, metric)
            row.append(average(ours, metric) + (f' ({mine / base - 1:+.2%})' if mine is not None and base else ''))
        rows.append((*row, *durations(ours)))
    return markdown(('Loss', 'Units', 'Recall@20 published (gain over Item-KNN)', 'Recall@20 ours (gain)',
                     'MRR@20 published (gain)', 'MRR@20 ours (gain)', 'fit', 'evaluation'), rows)


LOSS_NAMES = {'top1': 'TOP1', 'bpr': 'BPR', 'cross-entropy': 'Cross-entropy'}


def of_model(results: list[dict], model: str) -> list[dict]:
    return [result for result in results if result['model'] == model]


def value(results: list[dict], metric: str) -> float | None:
    """Mean of a metric over seeds, of the runs that were numerically stable."""
    values = [result[metric] for result in results if result[metric] is not None]
    return float(np.mean(values)) if values else None


def average(results: list[dict], metric: str) -> str:
    """Mean, standard deviation over seeds where there are several, and how many runs were numerically unstable."""
    values = [result[metric] for result in results if result[metric] is not None]
    unstable = len(results) - len(values)
    text = f'{np.mean(values):.4f}' if values else ''
    if len(values) > 1:
        text += f' ± {np.std(values, ddof=1):.4f}'
    return text + (f' {unstable} of {len(results)} numerically unstable' if unstable else '')


def durations(results: list[dict]) -> tuple[str, str]:
    return tuple(f'{np.mean(seconds):.1f} s' if (seconds := [r[key] for r in results if r[key] is not None]) else '-'
                 for key in ('fit_seconds', 'eval_seconds'))


def runs_behind(results: list[dict]) -> str:
    """In words: the epochs and seeds behind the GRU4Rec rows."""
    runs = of_model(results, 'GRU4Rec')
    if not runs:
        return ''
    seeds = sorted({run['seed'] for run in runs})
    return (f"GRU4Rec: epochs {runs[0]['epochs']}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, backend "
            f"{runs[0]['backend']}. ")


def tie_note(results: list[dict]) -> list[str]:
    """What Item-KNN, which leaves most items at score 0, would reach under the other tie policies."""
    knn = of_model(results, 'Item-KNN')
    if not knn:
        return []
    others = '; '.join(f"'{policy}' {recall:.4f} and {mrr:.4f}"
                       for policy, (recall, mrr) in knn[0]['other_tie_policies'].items())
    return ['', 'Item-KNN gives most items the score 0. Its Recall@20 and MRR@20 under the other tie policies: '
                f'{others}.']


def markdown(header: tuple, rows: list[tuple]) -> list[str]:
    """A Markdown table with columns of even width, so that it reads well in a terminal too."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in cells]
    return [lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]]


def counts(events: pd.DataFrame) -> str:
    return f'{events.SessionId.nunique():,} sessions, {len(events):,} events, {events.ItemId.nunique():,} items'


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------

def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='run_experiments.py', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='DIR', help='folder with rsc15_train_full.txt and rsc15_test.txt')
    parser.add_argument('--train', metavar='F', help='tab-separated training events; goes with --test')
    parser.add_argument('--test', metavar='F', help='tab-separated test events; goes with --train')
    parser.add_argument('--sessions', type=positive, metavar='N', help='size of the synthetic click log, in sessions '
                        f'({preprocess_rsc15.SYNTHETIC_SESSIONS:,})')
    parser.add_argument('--items', type=positive, metavar='N', help='and in items '
                        f'({preprocess_rsc15.SYNTHETIC_ITEMS:,})')
    parser.add_argument('--table', type=listed(whole, (1, 3)), nargs='+', default=[[1, 3]], help='tables to run (1 3)')
    parser.add_argument('--models', type=listed(str, MODELS), nargs='+', default=[MODELS],
                        help=f'rows to run, of {", ".join(MODELS)} (all)')
    parser.add_argument('--loss', type=listed(str, GRU4REC_PARAMETERS), nargs='+', default=[GRU4REC_PARAMETERS],
                        help=f'rows of Table 3, of {", ".join(GRU4REC_PARAMETERS)} (all)')
    parser.add_argument('--units', type=listed(positive), nargs='+', default=[[100]],
                        help='hidden units, for Table 3 (100)')
    parser.add_argument('--epochs', type=positive, default=10, help='training epochs of GRU4Rec (10)')
    parser.add_argument('--seeds', type=listed(whole), nargs='+', default=[[42]], help='one run for each (42)')
    parser.add_argument('--tie-policy', choices=TIE_POLICIES, default='conservative',
                        help='rank of a target whose score other items share: before them, after them, in the middle '
                             '(conservative: after them)')
    parser.add_argument('--backend', choices=backends.BACKENDS, default='auto')
    parser.add_argument('--out', metavar='DIR', default='results',
                        help='folder for results.json and tables.md (results)')
    parser.add_argument('--cache', metavar='DIR', default='cache', help='folder for the synthetic click log (cache)')
    arguments = parser.parse_args(argv)
    for name in ('table', 'models', 'loss', 'units', 'seeds'):  # a list for each word, flattened, without repetitions
        setattr(arguments, name, list(dict.fromkeys(value for values in getattr(arguments, name) for value in values)))
    if bool(arguments.train) != bool(arguments.test):
        parser.error('--train and --test go together')
    if arguments.train and arguments.data:
        parser.error('give either --data, or --train and --test')
    if (arguments.sessions or arguments.items) and (arguments.data or arguments.train):
        parser.error('--sessions and --items are sizes of the synthetic log; they do not go with --data or --train')
    return arguments


def whole(text: str) -> int:
    """Argument that is a whole number, from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number')
    return int(text)


def positive(text: str) -> int:
    """Argument that is a whole number, from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of at least 1')
    return int(text)


def listed(kind, allowed=None):
    """Argument that may hold several values with commas between them."""
    def parse_list(text: str) -> list:
        values = [kind(part) for part in text.split(',')]
        for value in values:
            if allowed and value not in allowed:
                raise argparse.ArgumentTypeError(f'{value!r} is none of {", ".join(map(str, allowed))}')
        return values
    return parse_list


def note(text: str):
    print(text, file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace):
    """All cells that results.json does not have yet, then the tables."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    backend = backends.resolve(arguments.backend)
    cells = plan(arguments.table, arguments.models, arguments.loss, arguments.units, arguments.epochs, arguments.seeds,
                 arguments.tie_policy)
    results = load_results(out / 'results.json')
    write_atomically(out / 'results.json', json.dumps(results, indent=1) + '\n')  # before any work: can we write?
    data = load_dataset(arguments)
    note(f'{data.name}: train {counts(data.train)}; test {counts(data.test)}')
    check_batch_sizes([cell for cell in cells if not find(results, data.name, cell, backend)], data.train)
    text = ''
    for number, cell in enumerate(cells, 1):
        title = ' '.join(str(part) for part in (cell.model, cell.loss, cell.units, cell.seed) if part is not None)
        done = find(results, data.name, cell, backend)
        note(f'[{number}/{len(cells)}] {title}' + (f': already in {out / "results.json"}' if done else ''))
        if not done:
            result = run_cell(cell, data, backend)
            results = [*load_results(out / 'results.json'), result]  # another run may have written meanwhile
            write_atomically(out / 'results.json', json.dumps(results, indent=1) + '\n')
        finished = [find(results, data.name, cell, backend) for cell in cells[:number]]
        text = format_tables(finished, data, arguments.table)
        write_atomically(out / 'tables.md', text)
    print(text)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        run(arguments)
    except (OSError, ValueError) as error:
        note(f'run_experiments.py: error: {error}')
        return 2
    except KeyboardInterrupt:
        note('interrupted; the finished cells are kept, and the same command goes on from there')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
