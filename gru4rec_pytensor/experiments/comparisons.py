"""Is a row better than another one?  Intervals of rows over the choice of test sessions, and paired comparisons."""
from __future__ import annotations

import itertools
import warnings
from typing import NamedTuple

import numpy as np

from evaluation import Comparison, bootstrap, gains, holm, paired_tests, percentiles, session_sums
from gru4rec_pytensor.experiments.cells import bins_of_predictions
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.published import ROWS
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.experiments.tables import Section, Table, by_row, mean_metric, metrics_of, row_settings, title_of

METRICS = ('recall@20', 'mrr@20', 'ndcg@20')
COMPARED = {'recall@20': 'Recall@20', 'mrr@20': 'MRR@20'}
SEED = 42  # of the draws, the same for all rows: two rows are compared on the same draws
LEVEL = 0.05  # of a corrected p-value, below which a difference is shown
TITLE = 'Comparison of rows'
INTERVALS = ('Brackets: 95% interval over the choice of test sessions, by a bootstrap of sessions (10,000 draws, '
             'percentiles), of the mean over seeds where a row has several. ± is the standard deviation over seeds.')
RULE = ('Differences are those of the means over seeds, first less second, with the 95% interval over test sessions, '
        'which both rows share (bootstrap of sessions, 10,000 draws). p is two-sided, of a permutation test that '
        'exchanges the two rows in sessions at random, 10,000 times, and corrected by Holm over the pairs of this '
        f'table, for each metric on its own. From {LEVEL} on, no difference is shown.')


class Pair(NamedTuple):
    """Two rows, by their titles, and their comparison by each of `COMPARED`; the p-values are corrected."""
    first: str
    second: str
    tests: dict[str, Comparison]


def with_intervals(found: list[dict], results: Results, data: Dataset) -> list[dict]:
    """Return the results of tables, each with the 95% intervals of its row by metric, if the row has ranks."""
    of_others = [metrics_of(row) for row in ROWS if data.published and row.data == data.published.title]
    metrics = [*dict.fromkeys([*METRICS, *[name.lower() for numbers in of_others for name in numbers]])]
    ranks, intervals = ranks_of_rows(found, results), {}
    if ranks:
        values = np.column_stack([gains(of_row, metric) for of_row in ranks.values() for metric in metrics])
        bounds = percentiles(bootstrap(*session_sums(values, data.test_offsets), SEED))
        by_metric = bounds.T.reshape(len(ranks), len(metrics), 2).tolist()
        intervals = {row: dict(zip(metrics, numbers)) for row, numbers in zip(ranks, by_metric)}
    return [result | {'intervals': intervals.get(row, {})} for row, ours in by_row(found).items() for result in ours]


def ranks_of_rows(found: list[dict], results: Results) -> dict[tuple, np.ndarray]:
    """Return the ranks (n_seeds, n_predictions) of each row, as `by_row` tells them apart.

    Rows of which a stable network has no ranks are left out.
    """
    ranks = {row: ranks_of_seeds(ours, results) for row, ours in by_row(found).items()}
    return {row: of_row for row, of_row in ranks.items() if of_row is not None}


def ranks_of_seeds(ours: list[dict], results: Results) -> np.ndarray | None:
    """Return the ranks of the stable ones among results, (n, n_predictions); None if one of them has none."""
    of_seeds = [results.ranks(result) for result in ours if result['recall@20'] is not None]
    kept = [ranks for ranks in of_seeds if ranks is not None]
    return np.stack(kept) if kept and len(kept) == len(of_seeds) else None


def intervals_of_bins(ranks: dict[tuple, np.ndarray], data: Dataset) -> dict[str, dict[tuple, np.ndarray]]:
    """Return the 95% intervals of Recall@20 by kind of bin and row, (n_bins, 2); NaN for a bin without predictions."""
    found: dict[str, dict[tuple, np.ndarray]] = {}
    hits = [gains(of_row, 'recall@20') for of_row in ranks.values()]
    for kind, (names, bin_of) in bins_of_predictions(data).items():
        inside = (bin_of[:, None] == np.arange(len(names))).astype(np.float64)  # (n_predictions, n_bins)
        values = np.column_stack([of_row[:, None] * inside for of_row in hits])
        sums, counts = (session_sums(columns, data.test_offsets)[0] for columns in (values, inside))
        with np.errstate(all='ignore'), warnings.catch_warnings():  # an empty bin has no interval
            warnings.simplefilter('ignore', RuntimeWarning)
            bounds = percentiles(bootstrap(sums, np.tile(counts, len(hits)), SEED))
        found[kind] = dict(zip(ranks, bounds.T.reshape(len(hits), len(names), 2)))
    return found


def compare_rows(found: list[dict], results: Results, data: Dataset, asked: list[str]) -> list[Pair]:
    """Compare rows of tables.

    asked : titles of rows, as `titles_of_rows` gives them.  Of several, each is compared with each; with one, all other
        rows; without any, all others with the one of highest Recall@20
    """
    titles = titles_of_rows(found)
    ranks = {titles[row]: of_row for row, of_row in ranks_of_rows(found, results).items()}
    recalls = {titles[row]: mean_metric(ours, 'recall@20') or 0.0 for row, ours in by_row(found).items()}
    wanted = [title for title in asked if title in ranks]
    if len(asked) > 1:
        pairs = [*itertools.combinations(wanted, 2)]
    else:
        second = wanted[0] if asked and wanted else max(ranks, key=lambda title: recalls[title], default='')
        pairs = [(title, second) for title in ranks if title != second] if wanted or not asked else []
    if not pairs:
        return []
    values = np.column_stack([gains(ranks[first], metric) - gains(ranks[second], metric)
                              for metric in COMPARED for first, second in pairs])
    tests = np.reshape(paired_tests(*session_sums(values, data.test_offsets), SEED), (len(COMPARED), len(pairs), 4))
    for of_metric in tests:
        of_metric[:, 3] = holm(of_metric[:, 3])
    return [Pair(*pair, {metric: Comparison(*map(float, tests[k, n])) for k, metric in enumerate(COMPARED)})
            for n, pair in enumerate(pairs)]


def titles_of_rows(found: list[dict]) -> dict[tuple, str]:
    """Return the title of each row, without its seeds."""
    settings = row_settings(found)
    return {row: title_of(ours[0], settings, with_seed=False) for row, ours in by_row(found).items()}


def without_ranks(found: list[dict], results: Results) -> list[str]:
    """Return the titles of rows that cannot be compared, since cells of an earlier version kept no ranks."""
    ranks, titles = ranks_of_rows(found, results), titles_of_rows(found)
    return [titles[row] for row, ours in by_row(found).items()
            if row not in ranks and mean_metric(ours, 'recall@20') is not None]


def table_of_pairs(pairs: list[Pair], missing: list[str]) -> Section:
    """Return the table of comparisons, with the rule, and the rows that could not be compared."""
    rows = []
    for pair in pairs:
        row: list = [pair.first, pair.second]
        for test in pair.tests.values():
            row += [f'{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]', f'{test.p:.4f}', verdict(test)]
        rows.append(tuple(row))
    columns = [column for metric in COMPARED.values() for column in (f'{metric} difference', 'p', 'verdict')]
    notes = [RULE]
    if missing:
        notes.append(f"Without ranks, which earlier versions did not keep: {'; '.join(missing)}. --compare with "
                     '--rerun runs these cells again.')
    return Section([Table(TITLE, ('First', 'Second', *columns), rows)], notes)


def verdict(test: Comparison) -> str:
    """Return what a comparison shows of its first row."""
    if test.p >= LEVEL:
        return 'no difference shown'
    return 'better' if test.difference > 0 else 'worse'
