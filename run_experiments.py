"""The paper's experiments: Tables 1 to 3 of arXiv 1511.06939 v4, published next to reproduced, and its claims.

    python run_experiments.py                          # Tables 1 and 3, on a synthetic click log that it makes itself
    python run_experiments.py --data DIR               # on the four files of preprocess_rsc15.py
    python run_experiments.py --train F --test F       # on any two files with SessionId, ItemId and Time
    python run_experiments.py --dataset video ...      # with the protocol and the parameters of the paper's VIDEO data
    python run_experiments.py --table 2 --trials 100   # the parameter search
    python run_experiments.py --claims --quick         # what sections 3 and 4 claim, with small networks
    python run_experiments.py --figures                # Figures 1 and 2 and training curves too, as SVG and PNG

Each finished cell is written to OUT/results.json at once and is not run again when the command is repeated;
OUT/tables.md holds the tables, OUT/claims.md the claims, OUT/report.html all of it with pictures, and OUT/figures what
--figures draws.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import html
import itertools
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import pytensor

import baselines
import preprocess_rsc15
from evaluation import TIE_POLICIES, next_item_ranks, recall_mrr
from gru4rec import GRU4Rec
from gru4rec_pytensor import backends, click_log, synthetic
from gru4rec_pytensor import events as events_module
from gru4rec_pytensor.events import count, keep_known_items, most_frequent, session_order, split
from gru4rec_pytensor.experiments import claims, report, search
from gru4rec_pytensor.files import atomic_file, check_writable
from gru4rec_pytensor.terminal import TrainingProgress, listed, note, positive_number, whole_number


class Protocol(NamedTuple):
    """What the paper does with one of its two data sets, and what it reports.

    counts : sessions, events and items of the training and test data, as the paper has them
    published : (Recall@20, MRR@20) by baseline, or by (loss, units): Tables 1 and 3
    gains : gains over Item-KNN as Table 3 prints them, which are of numbers with more digits than it shows
    parameters : Table 2, the best parameters of each loss
    candidates : how many of the most popular items, next to the target, it is ranked among; None for all items
    max_session_length : longer sessions are left out; None for no limit
    sessions, items : size of the synthetic log that stands in for the data
    """
    title: str
    counts: dict
    published: dict
    gains: dict
    parameters: dict[str, dict]
    candidates: int | None
    max_session_length: int | None
    sessions: int
    items: int


RSC15 = Protocol(
    'RSC15',
    counts={'train': preprocess_rsc15.PUBLISHED['train_full'], 'test': preprocess_rsc15.PUBLISHED['test']},
    published={
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
    },
    gains={
        ('top1', 100): (0.1555, 0.1258),
        ('bpr', 100): (0.1982, 0.1754),
        ('cross-entropy', 100): (0.1991, 0.1865),
        ('top1', 1000): (0.2253, 0.3149),
        ('bpr', 1000): (0.2482, 0.2047),
        ('cross-entropy', 1000): (0.1406, 0.0516),
    },
    parameters={
        'top1': dict(batch_size=50, dropout_p_hidden=0.5, learning_rate=0.01, momentum=0.0),
        'bpr': dict(batch_size=50, dropout_p_hidden=0.2, learning_rate=0.05, momentum=0.2),
        'cross-entropy': dict(batch_size=500, dropout_p_hidden=0.0, learning_rate=0.01, momentum=0.0),
    },
    candidates=None,
    max_session_length=None,
    sessions=synthetic.SYNTHETIC_SESSIONS,
    items=synthetic.SYNTHETIC_ITEMS,
)

VIDEO = Protocol(
    'VIDEO',
    counts={'train': dict(sessions=3_000_000, events=13_000_000, items=330_000),  # rounded by the paper
            'test': dict(sessions=37_000, events=180_000)},
    published={
        'POP': (0.0499, 0.0117),
        'S-POP': (0.1301, 0.0863),
        'Item-KNN': (0.5508, 0.3381),
        'BPR-MF': (0.0692, 0.0374),
        ('top1', 100): (0.6141, 0.3511),
        ('bpr', 100): (0.5999, 0.3260),
        ('cross-entropy', 100): (0.6372, 0.3720),
        ('top1', 1000): (0.6624, 0.3891),
        ('bpr', 1000): (0.6311, 0.3136),
    },
    gains={
        ('top1', 100): (0.1150, 0.0384),
        ('bpr', 100): (0.0892, -0.0356),
        ('cross-entropy', 100): (0.1569, 0.1004),
        ('top1', 1000): (0.2027, 0.1508),
        ('bpr', 1000): (0.1458, -0.0723),
    },
    parameters={
        'top1': dict(batch_size=50, dropout_p_hidden=0.4, learning_rate=0.05, momentum=0.0),
        'bpr': dict(batch_size=50, dropout_p_hidden=0.3, learning_rate=0.1, momentum=0.0),
        'cross-entropy': dict(batch_size=200, dropout_p_hidden=0.1, learning_rate=0.05, momentum=0.3),
    },
    candidates=30_000,
    max_session_length=200,  # the paper gives no number
    sessions=60_000,
    items=8_000,
)

PROTOCOLS = {'rsc15': RSC15, 'video': VIDEO}
LOSS_NAMES = {'top1': 'TOP1', 'bpr': 'BPR', 'cross-entropy': 'Cross-entropy', 'mrr': 'MRR'}

BASELINES: dict[str, tuple[type, dict]] = {
    'POP': (baselines.Pop, dict(top_n=100)),
    'S-POP': (baselines.SessionPop, dict(top_n=1000)),
    'Item-KNN': (baselines.ItemKNN, dict(n_sims=100, lmbd=20, alpha=0.5)),
    'BPR-MF': (baselines.BPR, dict(n_factors=100, n_iterations=10, learning_rate=0.01)),
}

MODELS = (*BASELINES, 'GRU4Rec')
CUT_OFF = 20


class Dataset(NamedTuple):
    """Training and test events."""
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
    candidates: int | None = None  # see `Protocol`


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
    frames = [click_log.read_events(path) for path in (train, test)]
    frames = [drop_long_sessions(frame, PROTOCOLS[arguments.dataset]) for frame in frames]
    for key in ('SessionId', 'ItemId'):  # ids that look like numbers in one file only
        if frames[0][key].dtype != frames[1][key].dtype:
            frames = [frame.astype({key: str}) for frame in frames]
    synthetic = not (arguments.train or arguments.data) or (train.parent / preprocess_rsc15.SYNTHETIC_LOG).exists()
    return Dataset(f"{'synthetic' if synthetic else name}-{fingerprint(*frames)}", synthetic, frames[0],
                   known_items_only(*frames))


def fingerprint(*frames: pd.DataFrame) -> str:
    """Eight digits that change when the data does."""
    hashes = [pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes() for frame in frames]
    return hashlib.sha256(b''.join(hashes)).hexdigest()[:8]


def synthetic_folder(arguments: argparse.Namespace) -> Path:
    """Folder with a synthetic log of the wanted size, made if need be; its name changes when the generator does."""
    version = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()[:8]
    protocol = PROTOCOLS[arguments.dataset]
    size = {f'n_{name}': getattr(arguments, name) or getattr(protocol, name) for name in ('sessions', 'items')}
    folder = Path(arguments.cache) / '-'.join(['synthetic', version, *[f'{n}{name[1:]}' for name, n in size.items()]])
    if not (folder / 'rsc15_test.txt').exists() or not (folder / 'rsc15_train_full.txt').exists():
        note(f'making the synthetic click log in {folder}')
        preprocess_rsc15.make_synthetic(folder, **size)
    return folder


def drop_long_sessions(events: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """The sessions that are not longer than the protocol allows: those are likely to be of bots (section 4, VIDEO)."""
    limit = protocol.max_session_length
    kept = events_module.drop_long_sessions(events, limit)
    if kept.empty:
        raise ValueError(f'no session has {limit} events or fewer')
    if len(kept) < len(events):
        note(f'dropped {len(events) - len(kept)} events of sessions of more than {limit} events')
    return kept


def validation_split(arguments: argparse.Namespace, data: Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and validation data of the search: DIR's own, or the training data with its last day set apart."""
    if arguments.data:
        files = [Path(arguments.data) / name for name in ('rsc15_train_tr.txt', 'rsc15_train_valid.txt')]
        if all(path.is_file() for path in files):
            train, valid = (drop_long_sessions(click_log.read_events(path), PROTOCOLS[arguments.dataset])
                            for path in files)
            return train, known_items_only(train, valid)
    return split(data.train, 'validation')


def known_items_only(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """The test events that the protocol of section 4 keeps: items that training has, sessions of two events or more."""
    kept = keep_known_items(test, train.ItemId.unique())
    if kept.empty:
        raise ValueError('no test session has two events with items of the training data')
    if len(kept) < len(test):
        note(f'dropped {len(test) - len(kept)} test events: items that training does not have, then one-event sessions')
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------

def plan(protocol: Protocol, tables: list[int], models: list[str], losses: list[str], units: list[int], epochs: int,
         seeds: list[int], tie_policy: str) -> list[Cell]:
    """The cells of Tables 1 and 3, in the paper's order.  Table 3 needs Item-KNN, for the gain over it."""
    cells = []
    for model, (_class, parameters) in BASELINES.items():
        if model in models and (1 in tables or model == 'Item-KNN'):
            epochs_of = parameters.get('n_iterations')
            for seed in seeds if model == 'BPR-MF' else [None]:
                cells.append(Cell(1, model, None, None, epochs_of, seed, parameters, tie_policy, protocol.candidates))
    if 3 in tables and 'GRU4Rec' in models:
        cells += [Cell(3, 'GRU4Rec', loss, n, epochs, seed, protocol.parameters[loss], tie_policy, protocol.candidates)
                  for n in units for loss in losses for seed in seeds]
    if not cells:
        raise ValueError(f'--table {" ".join(map(str, tables))} has no row for --models {" ".join(models)}')
    return cells


def claim_cells(setting: claims.Setting, protocol: Protocol, arguments: argparse.Namespace, n_items: int) -> list[Cell]:
    """The cells of one side of a comparison, one for each seed; a baseline has a single one."""
    policy, candidates = arguments.tie_policy, protocol.candidates
    if setting.loss is None:  # a baseline
        return [Cell(1, setting.model, None, None, None, None, BASELINES[setting.model][1], policy, candidates)]
    if setting.candidates == 'popular':  # as large a share of the items as the paper's
        candidates = min(30_000, max(2 * CUT_OFF, round(n_items * 30 / 330)))
    elif setting.candidates == 'all':
        candidates = None
    parameters = protocol.parameters[setting.loss] | setting.options
    return [Cell(0, 'GRU4Rec', setting.loss, setting.units, arguments.epochs, seed, parameters, policy, candidates)
            for seed in arguments.seeds]


def stability_cells(arguments: argparse.Namespace, protocol: Protocol) -> dict[str, list[Cell]]:
    """For each loss, networks at random points of the search space, of which some may be numerically unstable."""
    points = search.random_points(search.SPACE, 10 if arguments.quick else 100, arguments.seeds[0])
    # With a few epochs for each: a network that is unstable is so soon.
    return {loss: [Cell(0, 'GRU4Rec', loss, arguments.units[0], min(2, arguments.epochs), arguments.seeds[0], point,
                        arguments.tie_policy, protocol.candidates) for point in points]
            for loss in (*claims.POINTWISE, *claims.PAIRWISE)}


def check_batch_sizes(cells: list[Cell], train: pd.DataFrame) -> None:
    """ValueError, before any training, when a cell needs more parallel sessions than there are."""
    n_sessions = int((train.groupby('SessionId').size() > 1).sum())
    for cell in cells:
        if cell.parameters.get('batch_size', 0) > n_sessions:
            batch_size = cell.parameters['batch_size']
            raise ValueError(f'{cell.model} with {cell.loss} trains {batch_size} sessions in parallel, but the '
                             f'training data has {n_sessions} of two or more events; more data is needed, or other '
                             'rows (--loss)')


def run_cell(cell: Cell, data: Dataset, backend: str, published: dict) -> dict:
    """Train and evaluate; the result as it is written to results.json."""
    started = time.perf_counter()
    progress = TrainingProgress(f'{cell.loss}, {cell.units} units') if cell.model == 'GRU4Rec' else None
    if progress:
        arguments: dict[str, Any] = {'layers': [cell.units], **cell.parameters}
        model = GRU4Rec(**arguments | dict(n_epochs=cell.epochs, loss=cell.loss, seed=cell.seed, backend=backend))
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
        'backend': model.backend_ if progress else None, 'versions': versions(),
        'epoch_losses': model.epoch_losses_ if progress else None}
    key = ((cell.loss, cell.units) if progress else cell.model) if cell.table else None  # of the tables' cells only
    result['published_recall@20'], result['published_mrr@20'] = published.get(key, (None, None))
    if not getattr(model, 'error_during_train', False):
        result |= evaluate(model, cell, data)
    return result


def evaluate(model: Any, cell: Cell, data: Dataset) -> dict:
    """Metrics of a trained model, and what evaluation took."""
    started = time.perf_counter()
    items = most_frequent(data.train.ItemId, cell.candidates)
    ranks = next_item_ranks(model, data.test, items, tie_policy=cell.tie_policy)
    seconds = time.perf_counter() - started
    recall, mrr = recall_mrr(ranks, CUT_OFF)
    result = {'recall@20': recall, 'recall@19': recall_mrr(ranks, CUT_OFF - 1)[0], 'mrr@20': mrr,
              'eval_seconds': seconds, 'eval_events_per_second': len(ranks) / seconds,
              'details': rank_details(ranks, data)}
    if cell.model == 'Item-KNN':
        result['other_tie_policies'] = {
            policy: recall_mrr(next_item_ranks(model, data.test, items, tie_policy=policy), CUT_OFF)
            for policy in TIE_POLICIES if policy != cell.tie_policy}
    return result


CUT_OFFS = (1, 2, 3, 5, 10, 15, 20, 30, 50, 100)
POSITIONS = {'2': 2, '3': 3, '4': 4, '5': 5, '6-10': 10, '11-20': 20, 'later': np.inf}  # the last one of each bin
POPULARITY = {'top 1%': 0.01, 'to 5%': 0.05, 'to 20%': 0.2, 'to 50%': 0.5, 'the rest': 1.0}  # shares of the items


def rank_details(ranks: np.ndarray, data: Dataset) -> dict:
    """Recall and MRR over cut-offs; Recall@20 by position in the session, and by popularity of the next item."""
    rows, offsets = session_order(data.test)
    first = np.repeat(offsets[:-1], np.diff(offsets))
    position = np.delete(np.arange(len(rows)) - first + 1, offsets[:-1])
    target = np.delete(data.test.ItemId.to_numpy()[rows], offsets[:-1])
    counts = data.train.ItemId.value_counts()
    popularity = pd.Index(counts.index).get_indexer(target) / len(counts)

    def by_bin(values: np.ndarray, bins: dict[str, float], right: bool) -> list[list]:
        bin_of = np.searchsorted(list(bins.values()), values, side='left' if right else 'right')
        return [[name, int((bin_of == k).sum()), float((ranks[bin_of == k] <= CUT_OFF).mean())]
                for k, name in enumerate(bins) if (bin_of == k).any()]

    both = [recall_mrr(ranks, n) for n in CUT_OFFS]
    return {'recall': [recall for recall, _mrr in both], 'mrr': [mrr for _recall, mrr in both],
            'by_position': by_bin(position, POSITIONS, True), 'by_popularity': by_bin(popularity, POPULARITY, False)}


RESULT_KEYS = ('dataset', 'table', 'model', 'loss', 'units', 'epochs', 'seed', 'parameters', 'recall@20', 'recall@19',
               'mrr@20', 'published_recall@20', 'published_mrr@20', 'fit_seconds', 'eval_seconds',
               'train_events_per_second', 'eval_events_per_second', 'tie_policy', 'backend', 'versions',
               'candidates', 'epoch_losses', 'details')


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {'python': platform.python_version(), 'pytensor': pytensor.__version__, 'numpy': np.__version__,
             'numba': numba.__version__, 'pandas': pd.__version__}
    return found | ({'jax': sys.modules['jax'].__version__} if sys.modules.get('jax') else {})


# ---------------------------------------------------------------------------------------------------------------------
# Results on disk
# ---------------------------------------------------------------------------------------------------------------------

def load_results(path: Path) -> list[dict]:
    """Results of earlier runs; an empty list when there are none."""
    if not path.exists():
        return []
    with contextlib.suppress(ValueError):
        results = json.loads(path.read_text())
        if isinstance(results, list) and all(set(RESULT_KEYS[:-3]) <= set(result) for result in results):
            return results
    raise ValueError(f'{path}: not a results file of this program; move it away, or choose another --out')


def find(results: list[dict], dataset: str, cell: Cell, backend: str) -> dict | None:
    """The result of a cell on a data set, if it is there; a baseline's does not depend on the backend."""
    if cell.model == 'GRU4Rec':  # those of earlier versions lack what the claims and the report need
        results = [result for result in results if 'details' in result]
    wanted = cell._asdict() | {'dataset': dataset, 'backend': backend if cell.model == 'GRU4Rec' else None}
    wanted.pop('table')  # the claims compare cells of the tables, too
    return next((result for result in results if all(result.get(key) == value for key, value in wanted.items())), None)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    with atomic_file(path) as file:
        file.write(text.encode())


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------

def format_tables(results: list[dict], data: Dataset, tables: list[int], protocol: Protocol) -> str:
    """Tables 1 and 3 as Markdown, with what the numbers are and how ties were ranked."""
    lines = [about(data, protocol), '']
    if 1 in tables and any(result['model'] in BASELINES for result in results):
        lines += ['### Table 1: baselines', '', *table_1(results, protocol), '']
    if any(result['model'] == 'GRU4Rec' for result in results):
        lines += ['### Table 3: GRU4Rec, one layer', '', *table_3(results, protocol), '']
    ranked = 'all items of the training data'
    if protocol.candidates and protocol.candidates < data.train.ItemId.nunique():
        ranked = f'the {protocol.candidates:,} most popular items of the training data and itself'
    lines += [f'Published: {protocol.title}, arXiv 1511.06939 v4. {runs_behind(results)}Items with equal scores are '
              f'ranked by the policy {results[0]["tie_policy"]!r} in every row. The next item is ranked among '
              f'{ranked}.']
    return '\n'.join(lines + tie_note(results)) + '\n'


def about(data: Dataset, protocol: Protocol) -> str:
    """What data our numbers are of, and what they can be compared with."""
    if data.synthetic:
        what = ('**This is a synthetic click log**: our numbers on it are not comparable with the published ones, only '
                'their order is.')
    elif protocol is VIDEO:
        what = ('**This is not the data of the published numbers**, which is private: ours are not comparable with '
                'them, only their order is.')
    else:
        what = 'Our numbers are comparable with the published ones only if this is the RSC15 data of the paper.'
    return f'Data set `{data.name}`: train {counts(data.train)}; test {counts(data.test)}. {what}'


def table_1(results: list[dict], protocol: Protocol) -> list[str]:
    """Rows of Table 1 as Markdown."""
    rows = []
    for model in BASELINES:
        if ours := of_model(results, model):
            recall, mrr = (f'{number:.4f}' if number else '-' for number in protocol.published.get(model, (None, None)))
            rows.append((model, recall, average(ours, 'recall@20'), mrr, average(ours, 'mrr@20'), *durations(ours)))
    return markdown(('Baseline', 'Recall@20 published', 'Recall@20 ours', 'MRR@20 published', 'MRR@20 ours',
                     'fit', 'evaluation'), rows)


def table_2(outcomes: dict[str, search.Outcome], protocol: Protocol) -> list[str]:
    """Rows for each loss: the parameters of the paper, of the best random point, and of the best after tuning."""
    header = ('Loss', 'Parameters', *[name.replace('_', ' ') for name in search.SPACE], 'Recall@20', 'MRR@20',
              'stable networks')
    rows = []
    for loss, found in outcomes.items():
        published = protocol.parameters.get(loss, {})
        stable = PUBLISHED_STABLE.get((protocol.title, loss))
        rows.append((LOSS_NAMES[loss], 'published', *[published.get(name, '-') for name in search.SPACE], '-', '-',
                     f'{stable} of 100' if stable else '-'))
        counted = f'{found.n_stable} of {found.n_random}'
        counted += f' ({found.n_stopped} stopped early)' if found.n_stopped else ''
        for title, best, stable_count in (('ours, best random point', found.best_random, counted),
                                   ('ours, tuned', found.tuned, '')):
            values = [best[name] for name in search.SPACE] if best else ['-'] * len(search.SPACE)
            metrics = [f'{best[name]:.4f}' for name in ('recall', 'mrr')] if best else ['-'] * 2
            rows.append((LOSS_NAMES[loss], title, *values, *metrics, stable_count))
    return markdown(header, rows)


PUBLISHED_STABLE = {('RSC15', 'cross-entropy'): 10, ('VIDEO', 'cross-entropy'): 6}  # of 100 random points (section 4.2)


def table_3(results: list[dict], protocol: Protocol) -> list[str]:
    """Rows of Table 3 as Markdown, with the gains over Item-KNN."""
    knn = of_model(results, 'Item-KNN')
    rows = []
    for loss, units in dict.fromkeys((r['loss'], r['units']) for r in results if r['model'] == 'GRU4Rec'):
        ours = [r for r in of_model(results, 'GRU4Rec') if (r['loss'], r['units']) == (loss, units)]
        published = protocol.published.get((loss, units))
        row = [LOSS_NAMES[loss], units]
        for i, metric in enumerate(('recall@20', 'mrr@20')):
            row.append(f'{published[i]:.4f} ({protocol.gains[loss, units][i]:+.2%})' if published else '-')
            mine, base = value(ours, metric), value(knn, metric)
            row.append(average(ours, metric) + (f' ({mine / base - 1:+.2%})' if mine is not None and base else ''))
        rows.append((*row, *durations(ours)))
    return markdown(('Loss', 'Units', 'Recall@20 published (gain over Item-KNN)', 'Recall@20 ours (gain)',
                     'MRR@20 published (gain)', 'MRR@20 ours (gain)', 'fit', 'evaluation'), rows)


def of_model(results: list[dict], model: str) -> list[dict]:
    """The results of one model."""
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


def durations(results: list[dict]) -> tuple[str, ...]:
    """Mean seconds of training and evaluation."""
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
    """Sessions, events and items, in words."""
    return f'{events.SessionId.nunique():,} sessions, {len(events):,} events, {events.ItemId.nunique():,} items'


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------

def format_report(results: list[dict], data: Dataset, protocol: Protocol, texts: dict[str, str], command: str) -> str:
    """All of it as one HTML page; `texts` are Table 2 and the claims as Markdown, by title."""
    parts = [f'<div class="notice">{report.paragraph(about(data, protocol))}</div>']
    tables = [report_table(results, protocol, 'Table 1: baselines', list(BASELINES)),
              report_table(results, protocol, 'Table 3: GRU4Rec, one layer', ['GRU4Rec'])]
    if any(tables):
        parts.append(report.section('Recall@20 and MRR@20, published and ours', *tables, report.paragraph(
            f'Published: {protocol.title}, arXiv 1511.06939 v4. Difference: ours to published, relative; green is '
            f'above, orange below the published number. {runs_behind(results)}Ties are ranked by the policy '
            f'{results[0]["tie_policy"]!r}.')))
    parts += [report.section(title, *report.of_markdown(text)) for title, text in texts.items() if text]
    parts += report_figures(results)
    parts.append(report.section('Data', report.table(['data', '', 'here', f'{protocol.title}, published'],
                                                     data_rows(data, protocol))))
    if results:
        parts.append(report.section('Speed', report.table(
            ['run', 'fit, s', 'training events/s', 'evaluation, s', 'predictions/s'], speed_rows(results),
            'Compilation is part of the seconds of the run that needs it first, not of the events per second.')))
    found = ', '.join(f'{name} {version}' for name, version in versions().items())
    parts.append(report.section('How to make this report', f'<pre>{html.escape(command)}</pre>',
                                report.paragraph(f'{found}, on {platform.system()} {platform.machine()}.')))
    return report.page(f'GRU4Rec: the experiments of the paper on {data.name}', parts)


def data_rows(data: Dataset, protocol: Protocol) -> list[list[str]]:
    """Sessions, events and items of the data, next to the published counts."""
    rows = []
    for name, frame in (('train', data.train), ('test', data.test)):
        for kind, found in count(frame).items():
            published = protocol.counts[name].get(kind)
            rows.append([name, kind, f'{found:,}', f'{published:,}' if published else '-'])
    return rows


def speed_rows(results: list[dict]) -> list[list[str]]:
    """Seconds and rates of each run."""
    columns = {'fit_seconds': 1, 'train_events_per_second': 0, 'eval_seconds': 1, 'eval_events_per_second': 0}
    return [[cell_title(result), *[f'{result[key]:,.{digits}f}' if result[key] is not None else '-'
                                   for key, digits in columns.items()]] for result in results]


def report_table(results: list[dict], protocol: Protocol, caption: str, models: list[str]) -> str:
    """A table of published and our numbers with their differences; empty when there is no result."""
    rows = []
    for key in dict.fromkeys((r['model'], r['loss'], r['units']) for r in results if r['model'] in models):
        ours = [r for r in results if (r['model'], r['loss'], r['units']) == key]
        published = protocol.published.get(key[1:] if key[1] else key[0], (None, None))
        row: list = [cell_title(dict(zip(('model', 'loss', 'units'), key)))]
        for metric, number in zip(('recall@20', 'mrr@20'), published):
            row += [f'{number:.4f}' if number else '-', average(ours, metric),
                    report.difference(value(ours, metric), number)]
        rows.append(row)
    header = ['', *[f'{metric} {which}' for metric in ('Recall@20', 'MRR@20') for which in (
        'published', 'ours', 'difference')]]
    return report.table(header, rows, caption) if rows else ''


def report_figures(results: list[dict]) -> list[str]:
    """Sections with the pictures, of the results that have what they need."""
    by_title: dict[str, list[dict]] = {}
    for result in results:
        if result.get('details'):
            by_title.setdefault(cell_title(result | {'seed': None}), []).append(result)
    if not by_title:
        return []

    def mean_of(key: str, bins: bool = False) -> dict[str, tuple]:
        series: dict[str, tuple] = {}
        for title, of_seeds in by_title.items():
            values = [result['details'][key] for result in of_seeds]
            if bins:  # the bins are the same for every seed
                series[title] = ([name for name, _n, _recall in values[0]],
                                 np.mean([[recall for *_bin, recall in value] for value in values], axis=0).tolist())
            else:
                series[title] = (CUT_OFFS, np.mean(values, axis=0).tolist())
        return series

    losses = mean_losses(results)
    parts = [report.section('Cut-offs', report.cut_off_figure(mean_of('recall'), mean_of('mrr'))),
             report.section('Where in the session, and which items',
                            report.bins_figure(mean_of('by_position', True), mean_of('by_popularity', True)))]
    return parts + ([report.section('Training loss', report.loss_figure(losses, list(by_title)))] if losses else [])


def mean_losses(results: list[dict]) -> dict[str, list[float]]:
    """Loss of each epoch, mean over seeds, of each network that was stable, by title."""
    of_seeds: dict[str, list] = {}
    for result in results:
        if result.get('details') and result.get('epoch_losses'):
            of_seeds.setdefault(cell_title(result | {'seed': None}), []).append(result['epoch_losses'])
    return {title: np.mean(losses, axis=0).tolist() for title, losses in of_seeds.items()}


def cell_title(result: dict) -> str:
    """'TOP1, 100 units, seed 42', or a baseline's name."""
    if result['model'] != 'GRU4Rec':
        return result['model']
    seed = f", seed {result['seed']}" if result.get('seed') is not None else ''
    return f"{LOSS_NAMES[result['loss']]}, {result['units']} units{seed}"


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------

def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; SystemExit with a message if it is wrong."""
    parser = argparse.ArgumentParser(prog='run_experiments.py', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dataset', choices=PROTOCOLS, default='rsc15', help='which data set of the paper: its '
                        'protocol, parameters and published numbers (rsc15)')
    parser.add_argument('--data', metavar='DIR', help='folder with rsc15_train_full.txt and rsc15_test.txt')
    parser.add_argument('--train', metavar='F', help='tab-separated training events; goes with --test')
    parser.add_argument('--test', metavar='F', help='tab-separated test events; goes with --train')
    parser.add_argument('--sessions', type=positive_number, metavar='N', help='size of the synthetic click log, in '
                        f'sessions ({RSC15.sessions:,}; with --dataset video {VIDEO.sessions:,})')
    parser.add_argument('--items', type=positive_number, metavar='N', help='and in items '
                        f'({RSC15.items:,}; with --dataset video {VIDEO.items:,})')
    parser.add_argument('--table', type=listed(whole_number, (1, 2, 3)), nargs='+', default=[[1, 3]],
                        help='tables to run (1 3)')
    parser.add_argument('--models', type=listed(str, MODELS), nargs='+', default=[MODELS],
                        help=f'rows to run, of {", ".join(MODELS)} (all)')
    parser.add_argument('--loss', type=listed(str, LOSS_NAMES), nargs='+', default=[RSC15.parameters],
                        help=f'rows of Tables 2 and 3, of {", ".join(RSC15.parameters)} (all); Table 2 also takes mrr')
    parser.add_argument('--units', type=listed(positive_number), nargs='+', default=[[]],
                        help='hidden units, for Tables 2 and 3 (100); for the claims those of small and large networks '
                             '(100,1000; with --quick 50,200)')
    parser.add_argument('--epochs', type=positive_number, help='training epochs of GRU4Rec (10; with --quick 3)')
    parser.add_argument('--seeds', type=listed(whole_number), nargs='+', default=[[]],
                        help='one run for each (42; for the claims 42,43,44)')
    parser.add_argument('--trials', type=positive_number, default=100, metavar='N',
                        help='random points of Table 2 (100)')
    parser.add_argument('--storage', metavar='URL', help='database of the trials of Table 2, as SQLAlchemy writes it '
                        '(sqlite:///OUT/search.db); processes that share one work on the same search')
    parser.add_argument('--prune', action='store_true', help='Table 2: stop a trial whose Recall@20 after an epoch is '
                        'below the median of the others')
    parser.add_argument('--claims', action='store_true', help='compare the variants that the paper makes claims about')
    parser.add_argument('--quick', action='store_true', help='claims with fewer units and epochs')
    parser.add_argument('--figures', action='store_true', help="after the tables, draw the paper's Figure 1 from the "
                        'layers of the networks, Figure 2 from the first mini-batches, and training curves')
    parser.add_argument('--tie-policy', choices=TIE_POLICIES, default='conservative',
                        help='rank of a target whose score other items share: before them, after them, in the middle '
                             '(conservative: after them)')
    parser.add_argument('--backend', choices=backends.BACKENDS, default='auto')
    parser.add_argument('--out', metavar='DIR', default='results',
                        help='folder for results.json and tables.md (results)')
    parser.add_argument('--cache', metavar='DIR', default='cache', help='folder for the synthetic click log (cache)')
    arguments = parser.parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else argv
    complete(parser, arguments)
    return arguments


def complete(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Flatten the lists, fill in what depends on other arguments, and refuse what does not go together."""
    for name in ('table', 'models', 'loss', 'units', 'seeds'):  # a list for each word, flattened, without repetitions
        setattr(arguments, name, list(dict.fromkeys(value for values in getattr(arguments, name) for value in values)))
    if bool(arguments.train) != bool(arguments.test):
        parser.error('--train and --test go together')
    if arguments.train and arguments.data:
        parser.error('give either --data, or --train and --test')
    if (arguments.sessions or arguments.items) and (arguments.data or arguments.train):
        parser.error('--sessions and --items are sizes of the synthetic log; they do not go with --data or --train')
    if arguments.quick and not arguments.claims:
        parser.error('--quick goes with --claims')
    if arguments.figures and arguments.claims:
        parser.error('--figures goes with tables, not with --claims')
    arguments.epochs = arguments.epochs or (3 if arguments.quick else 10)
    arguments.seeds = arguments.seeds or ([42, 43, 44] if arguments.claims else [42])
    usual_units = ([50, 200] if arguments.quick else [100, 1000]) if arguments.claims else [100]
    arguments.units = arguments.units or usual_units
    if arguments.claims and (len(arguments.units) != 2 or arguments.units[0] >= arguments.units[1]):
        parser.error('--units of the claims are two numbers, of small and of large networks')
    unpublished = [loss for loss in arguments.loss if loss not in RSC15.parameters]
    if unpublished and arguments.table != [2]:
        parser.error(f'--loss {unpublished[0]} goes with --table 2: the paper has no row for it in Table 3')
    if 2 in arguments.table and not arguments.claims and max(map(len, (arguments.units, arguments.seeds))) > 1:
        parser.error('--table 2 searches for networks of one size and with one seed: give one number each')


def run(arguments: argparse.Namespace) -> None:
    """What the command line asks for, as far as it is not in OUT yet; prints tables or claims."""
    out = Path(arguments.out)
    if out.is_file():
        raise ValueError(f'--out {out}: is a file; give the name of a folder')
    out.mkdir(parents=True, exist_ok=True)
    protocol, backend = PROTOCOLS[arguments.dataset], backends.resolve(arguments.backend)
    if (2 in arguments.table or arguments.claims) and not find_spec('optuna'):
        raise ValueError("--table 2 and --claims need Optuna: pip install '.[experiments]'")
    if arguments.figures and not find_spec('matplotlib'):
        raise ValueError("--figures needs Matplotlib: pip install '.[experiments]'")
    cells = [] if arguments.claims or not {1, 3} & set(arguments.table) else plan(
        protocol, arguments.table, arguments.models, arguments.loss, arguments.units, arguments.epochs,
        arguments.seeds, arguments.tie_policy)
    load_results(out / 'results.json')
    check_writable(out / 'results.json')
    data = load_dataset(arguments)
    note(f'{data.name}: train {counts(data.train)}; test {counts(data.test)}; backend {backend}')
    if arguments.claims:
        text = run_claims(arguments, data, protocol, backend, out)
        write_report(out, [], data, protocol, {'Claims': text}, arguments)
        print(text)
        return
    texts, finished = ['', ''], []

    def write() -> None:
        write_atomically(out / 'tables.md', '\n'.join(filter(None, texts)))

    for finished in run_cells(cells, data, protocol, backend, out):
        texts[0] = format_tables(finished, data, arguments.table, protocol)
        write()
    if 2 in arguments.table:
        for text in run_search(arguments, data, protocol, backend, out):
            texts[1] = text
            write()
    write_report(out, finished, data, protocol, {'Table 2: best parameters': texts[1]}, arguments)
    if arguments.figures:
        write_figures(out / 'figures', finished, data, arguments)
    print('\n'.join(filter(None, texts)))


def write_report(out: Path, results: list[dict], data: Dataset, protocol: Protocol, texts: dict[str, str],
                 arguments: argparse.Namespace) -> None:
    """OUT/report.html."""
    command = search.without_password(shlex.join(['python', 'run_experiments.py', *arguments.words]))
    texts = {title: text[text.index('|'):] if '|' in text else '' for title, text in texts.items()}
    write_atomically(out / 'report.html', format_report(results, data, protocol, texts, command))


def write_figures(folder: Path, results: list[dict], data: Dataset, arguments: argparse.Namespace) -> None:
    """Figures 1 and 2 of the paper, of the networks and the data of this run, and training curves; as SVG and PNG."""
    from gru4rec_pytensor.experiments import figures

    networks, n_items = {}, data.train.ItemId.nunique()
    for loss, n in itertools.product(arguments.loss, arguments.units):
        network = GRU4Rec([n], loss=loss).settings(n_items)
        networks[n, network.final_activation] = network
    n = arguments.units[0]  # on the right, a network with all that section 3.1 mentions
    everything = GRU4Rec([n, n], embedding=n, feedforward=[n], input_to_all_layers=True).settings(n_items)
    _rows, offsets = session_order(data.train)
    pictures = {'architecture': figures.architecture(*networks.values(), everything),
                'minibatches': figures.minibatches(offsets, batch_size=3)}
    if losses := mean_losses(results):
        pictures['training'] = figures.training_curves(losses)
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        note('drew ' + ', '.join(map(str, picture.save(folder / name))))


def run_cells(cells: list[Cell], data: Dataset, protocol: Protocol, backend: str, out: Path) -> Iterator[list[dict]]:
    """Run the cells that results.json does not have; after each cell, yields the results of those up to it."""
    path = out / 'results.json'
    results = load_results(path)
    check_batch_sizes([cell for cell in cells if not find(results, data.name, cell, backend)], data.train)
    for number, cell in enumerate(cells, 1):
        title = ' '.join(str(part) for part in (cell.model, cell.loss, cell.units, cell.seed) if part is not None)
        done = find(results, data.name, cell, backend)
        note(f'[{number}/{len(cells)}] {title}' + (f': already in {path}' if done else ''))
        if not done:
            result = json.loads(json.dumps(run_cell(cell, data, backend, protocol.published)))  # as it will be read
            others = [other for other in load_results(path) if other not in results]  # of another run, meanwhile
            results = [*results, *others, result]
            write_atomically(path, json.dumps(results, indent=1) + '\n')
        yield [found for cell in cells[:number] if (found := find(results, data.name, cell, backend))]


def run_search(arguments: argparse.Namespace, data: Dataset, protocol: Protocol, backend: str,
               out: Path) -> Iterator[str]:
    """Table 2 as Markdown, after the search of each loss."""
    train, valid = validation_split(arguments, data)
    url = arguments.storage or f'sqlite:///{out / "search.db"}'
    items, outcomes = most_frequent(train.ItemId, protocol.candidates), {}
    for loss in arguments.loss:
        outcomes[loss] = search.run(
            search.Search(train, valid, f'{data.name}, {fingerprint(train, valid)}', loss, arguments.units[0],
                          arguments.epochs, arguments.seeds[0], backend, arguments.tie_policy, items, arguments.prune),
            arguments.trials, url, note)
        text = [about(data, protocol), '', '### Table 2: best parameters', '', *table_2(outcomes, protocol), '',
                f'Recall@20 and MRR@20 are those of the validation data (train {counts(train)}; validation '
                f'{counts(valid)}). {arguments.trials} random points of this space, each value equally likely: '
                + '; '.join(f"{name.replace('_', ' ')} {', '.join(map(str, values))}"
                            for name, values in search.SPACE.items())
                + f'. {arguments.units[0]} units, {arguments.epochs} epochs, adagrad, seed {arguments.seeds[0]}, '
                f'backend {backend}. The paper gives neither its space nor these metrics.']
        yield '\n'.join(text) + '\n'


def run_claims(arguments: argparse.Namespace, data: Dataset, protocol: Protocol, backend: str, out: Path) -> str:
    """The claims as Markdown; OUT/claims.md is written now and then, with those that can be judged already."""
    n_items = data.train.ItemId.nunique()
    every = claims.paper_claims(*arguments.units)
    settings = [setting for claim in every for setting in (claim.first, claim.second)]
    cells_of = {id(setting): claim_cells(setting, protocol, arguments, n_items) for setting in settings}
    random_cells = stability_cells(arguments, protocol)
    cells = [cell for setting in settings for cell in cells_of[id(setting)]]
    cells += [cell for of_loss in random_cells.values() for cell in of_loss]
    cells = [cell for k, cell in enumerate(cells) if cell not in cells[:k]]
    text = ''
    for finished in run_cells(cells, data, protocol, backend, out):
        if len(finished) < len(cells) and len(finished) % len(arguments.seeds):
            continue

        def results_of(part: list[Cell], finished: list[dict] = finished) -> list[dict]:
            return [result for cell in part if (result := find(finished, data.name, cell, backend))]

        judged = [claim for claim in every if all(
            len(results_of(cells_of[id(setting)])) == len(cells_of[id(setting)])
            for setting in (claim.first, claim.second))]
        rows = claims.claims_table(judged, lambda setting: claims.by_seed(
            results_of(cells_of[id(setting)]), len(arguments.seeds)))
        if len(finished) == len(cells):
            rows.append(claims.stability_row({
                loss: (sum(result['recall@20'] is not None for result in results_of(part)), len(part))
                for loss, part in random_cells.items()}))
        text = format_claims(rows, arguments, data, protocol, backend)
        write_atomically(out / 'claims.md', text)
    return text


def format_claims(rows: list[tuple], arguments: argparse.Namespace, data: Dataset, protocol: Protocol,
                  backend: str) -> str:
    """The table of claims, with what it is of."""
    small, large = arguments.units
    reduced = ('**Quick run: fewer epochs and units than the paper\'s 100 and 1000, and fewer random points.** '
               if arguments.quick else '')
    lines = [about(data, protocol), '', '### Claims', '',
             *markdown(('Section', 'Claim', 'First / second', *claims.METRICS.values(), 'Verdict'), rows), '',
             f'{reduced}{small} units, {large} where many units are meant; {arguments.epochs} epochs, seeds '
             f"{', '.join(map(str, arguments.seeds))}, backend {backend}; parameters of Table 2 for {protocol.title}; "
             f'rmsprop with learning rate {claims.RMSPROP_RATE}. Cells show first / second, mean ± standard deviation '
             f'over seeds, and in brackets their difference ± the half-width of its 95% interval. Stability: networks '
             f'of {small} units with {min(2, arguments.epochs)} epochs and one seed.', '', claims.VERDICTS]
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; its exit code."""
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
