"""Intervals of rows over the choice of test sessions, and paired comparisons of rows."""
from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from evaluation import Comparison, bootstrap, gains, holm, paired_tests, session_sums
from gru4rec_pytensor.experiments.cells import bins_of_predictions
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.published import ROWS
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.experiments.tables import Section, Table, by_row, mean_metric, metrics_of, titles_of_rows

METRICS = ('recall@20', 'mrr@20', 'ndcg@20')
COMPARED = {'recall@20': 'Recall@20', 'mrr@20': 'MRR@20'}
SEED = 42  # of the draws, the same for all rows: two rows are compared on the same draws
LEVEL = 0.05  # of a corrected p-value, below which a difference is shown
INTERVALS = ('Brackets: 95% interval over the choice of test sessions, by a bootstrap of sessions (10,000 draws, '
             'percentiles), of the mean over seeds where a row has several. ± is the standard deviation over seeds.')
RULE = ('Differences are those of the means over seeds, first less second, with the 95% interval over test sessions, '
        'which both rows share (bootstrap of sessions, 10,000 draws). p is two-sided, of a permutation test that '
        'swaps the two rows in randomly chosen sessions, 10,000 times, and corrected by Holm over the pairs of a '
        f'table, for each metric on its own. From {LEVEL} on, no difference is shown.')

Ranks = dict[tuple, np.ndarray]  # (n_seeds, n_predictions) of each row, as `by_row` tells them apart


class Pair(NamedTuple):
    """Two rows, by their titles, and their comparison by each of `COMPARED`; the p-values are corrected."""
    first: str
    second: str
    tests: dict[str, Comparison]


def ranks_of_rows(found: list[dict], results: Results) -> Ranks:
    """Return the ranks of each row; rows of which a stable network has none are left out."""
    ranks = {row: ranks_of_seeds(ours, results) for row, ours in by_row(found).items()}
    return {row: of_row for row, of_row in ranks.items() if of_row is not None}


def ranks_of_seeds(ours: list[dict], results: Results) -> np.ndarray | None:
    """Return the ranks of the stable ones among results, (n, n_predictions); None if one of them has none."""
    of_seeds = [results.ranks(result) for result in ours if result['recall@20'] is not None]
    kept = [ranks for ranks in of_seeds if ranks is not None]
    return np.stack(kept) if kept and len(kept) == len(of_seeds) else None


def sums_of(columns: Iterable[np.ndarray], data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of columns (n_predictions,) over test sessions, (n_sessions, k), and the lengths of sessions."""
    sums = [session_sums(column[:, None], data.test_offsets) for column in columns]  # at once they would take 100 MB
    return np.hstack([of_column for of_column, _counts in sums]), sums[0][1]


def with_intervals(found: list[dict], ranks: Ranks, data: Dataset) -> list[dict]:
    """Return the results of tables, each with the 95% intervals of its row by metric, if the row has ranks."""
    of_others = [metrics_of(row) for row in ROWS if data.published and row.data == data.published.title]
    metrics = [*dict.fromkeys([*METRICS, *[name.lower() for numbers in of_others for name in numbers]])]
    intervals = {}
    if ranks:
        columns = (gains(of_row, metric) for of_row in ranks.values() for metric in metrics)
        bounds = bootstrap(*sums_of(columns, data), SEED).T.reshape(len(ranks), len(metrics), 2).tolist()
        intervals = {row: dict(zip(metrics, of_row)) for row, of_row in zip(ranks, bounds)}
    return [result | {'intervals': intervals.get(row, {})} for row, ours in by_row(found).items() for result in ours]


def intervals_of_bins(ranks: Ranks, data: Dataset) -> dict[str, dict[tuple, np.ndarray]]:
    """Return the 95% intervals of Recall@20 by kind of bin and row, (number of bins with predictions, 2)."""
    found: dict[str, dict[tuple, np.ndarray]] = {}
    for kind, (names, bin_of) in bins_of_predictions(data).items():
        bins = [(bin_of == k).astype(np.float64) for k in range(len(names)) if (bin_of == k).any()]
        sums, _lengths = sums_of((gains(of_row, 'recall@20') * inside for of_row in ranks.values() for inside in bins),
                                 data)
        counts, _lengths = sums_of(bins, data)
        with np.errstate(invalid='ignore'), warnings.catch_warnings():  # draws without a prediction in a bin
            warnings.simplefilter('ignore', RuntimeWarning)
            bounds = bootstrap(sums, np.tile(counts, len(ranks)), SEED)
        found[kind] = dict(zip(ranks, bounds.T.reshape(len(ranks), len(bins), 2)))
    return found


def compare_rows(found: list[dict], ranks: Ranks, data: Dataset, asked: Sequence[str]) -> list[Pair]:
    """Compare rows of tables.

    asked : titles of rows, as `titles_of_rows` gives them.  Of several, each is compared with each; with one, all other
        rows; without any, all others with the one of highest Recall@20
    """
    titles = titles_of_rows(found)
    of_titles = {titles[row]: of_row for row, of_row in ranks.items()}
    recalls = {titles[row]: mean_metric(ours, 'recall@20') or 0.0 for row, ours in by_row(found).items()}
    wanted = [title for title in asked if title in of_titles]
    if len(asked) > 1:
        pairs = [*itertools.combinations(wanted, 2)]
    else:
        against = wanted if asked else sorted(of_titles, key=lambda title: -recalls[title])[:1]
        pairs = [(title, second) for second in against for title in of_titles if title != second]
    if not pairs:
        return []
    sums, lengths = sums_of((gains(of_titles[first], metric) - gains(of_titles[second], metric)
                             for metric in COMPARED for first, second in pairs), data)
    tests = np.reshape(paired_tests(sums, lengths, SEED), (len(COMPARED), len(pairs), 4))
    for of_metric in tests:
        of_metric[:, 3] = holm(of_metric[:, 3])
    return [Pair(*pair, {metric: Comparison(*map(float, tests[k, n])) for k, metric in enumerate(COMPARED)})
            for n, pair in enumerate(pairs)]


def without_ranks(found: list[dict], ranks: Ranks) -> list[str]:
    """Return the titles of rows that cannot be compared, since cells of an earlier version kept no ranks."""
    titles = titles_of_rows(found)
    return [titles[row] for row, ours in by_row(found).items()
            if row not in ranks and mean_metric(ours, 'recall@20') is not None]


def section_of_pairs(compared: dict[tuple[str, ...], list[Pair]], missing: list[str]) -> Section:
    """Return a table of each comparison that was asked for, with the rule, and the rows that could not be compared.

    compared : pairs by the titles that were asked for, see `compare_rows`
    """
    columns = [column for metric in COMPARED.values() for column in (f'{metric} difference', 'p', 'verdict')]
    tables, notes = [], [RULE]
    for asked, pairs in compared.items():
        rows = []
        for pair in pairs:
            row: list = [pair.first, pair.second]
            for test in pair.tests.values():
                verdict = 'no difference shown' if test.p >= LEVEL else 'better' if test.difference > 0 else 'worse'
                row += [f'{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]', f'{test.p:.4f}', verdict]
            rows.append(tuple(row))
        against = ', each with each' if len(asked) > 1 else f' with {pairs[0].second}' if pairs else ''
        if pairs:
            tables.append(Table(f'Comparison of rows{against}', ('First', 'Second', *columns), rows))
        else:
            notes.append(f"There is nothing to compare{' with' * bool(asked)} {', '.join(asked)}.".replace(' .', '.'))
    if missing:
        notes.append(f"Without ranks, which earlier versions did not keep: {'; '.join(missing)}. --compare with "
                     '--rerun runs these cells again.')
    return Section(tables, notes)
