"""The claims of sections 3 and 4 of the paper about variants of the network, a comparison for each, and the verdict.

The claims are in our words.  Each compares two settings, trained with the same seeds, and is judged by the rules of
`VERDICTS`, which were fixed beforehand.
"""
from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import scipy

from evaluation import CUT_OFF, bootstrap, gains
from gru4rec_pytensor.experiments import search
from gru4rec_pytensor.experiments.cells import Cell, Request, network_cell
from gru4rec_pytensor.experiments.comparisons import COMPARED, SEED, ranks_of_seeds, sums_of
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.protocols import BASELINES, NETWORK, VIDEO_CANDIDATES, VIDEO_ITEMS
from gru4rec_pytensor.experiments.results import Results, digits_of
from gru4rec_pytensor.experiments.tables import Section, Table, mean_and_deviation

VERDICTS = """\
How a claim is judged: the differences between the two settings, seed by seed, have a mean and a 95% confidence interval
(Student's t). That one is better than the other holds if the interval is above 0 for each metric, and does not hold if
it is below 0 for one. That one does not improve on the other holds if each interval ends below a gain of 1%, and does
not hold if one ends above that and is above 0 as a whole. That one is like the other holds if each interval is within
1%, and does not hold if one is outside. Stability: Fisher's exact test, 2.5% on each side. Everything else is too close
to tell, and so is a comparison with fewer than two seeds for which both networks were numerically stable. For the
training loss, better is lower. Square brackets: the 95% interval of the difference over the choice of test sessions; a
difference is within the interval of the test set if that of Recall@20 or of MRR@20 includes 0."""
MARGIN = 0.01  # relative: a difference that does not matter
METRICS = {'recall@20': 'Recall@20', 'mrr@20': 'MRR@20', 'loss': 'training loss'}
POINTWISE, PAIRWISE = ('cross-entropy', 'mrr'), ('top1', 'bpr')
RMSPROP_RATE = 0.001  # rmsprop's steps do not shrink, as Adagrad's do
STABILITY_EPOCHS = 2  # at most, since an unstable network fails early


# ---------------------------------------------------------------------------------------------------------------------
# The claims
# ---------------------------------------------------------------------------------------------------------------------

class Setting(NamedTuple):
    """One side of a comparison; `options` are arguments of `GRU4Rec` beside the preset of its loss."""
    label: str
    model: str = NETWORK
    loss: str | None = 'top1'
    units: int | None = None
    options: dict = {}
    candidates: str = 'usual'  # items to rank among: those of the protocol, 'all' or the most 'popular' ones


class Claim(NamedTuple):
    """A statement of the paper about two settings."""
    section: str
    text: str
    relation: str  # of `first` to `second`: 'better', 'no better' or 'like'
    first: Setting
    second: Setting
    metrics: tuple = ('recall@20', 'mrr@20')


def paper_claims(small: int, large: int) -> list[Claim]:
    """Return the claims about two settings; networks have `small` units, or `large` where a claim says so."""
    def gru(label: str, units: int = small, loss: str = 'top1', candidates: str = 'usual',
            **options: Any) -> Setting:
        return Setting(label, loss=loss, units=units, options=options, candidates=candidates)

    knn = Setting('Item-KNN', 'Item-KNN', None)
    base, n = gru('TOP1'), small
    two, three = gru('two layers', layers=[n, n]), gru('three layers', layers=[n, n, n])
    every, name = (*METRICS,), {'top1': 'TOP1', 'bpr': 'BPR', 'cross-entropy': 'cross-entropy'}
    sizes = {loss: (gru(f'{name[loss]}, {small} units', small, loss), gru(f'{name[loss]}, {large} units', large, loss))
             for loss in name}
    return [
        Claim('3.1', '1-of-N input is better than an embedding', 'better', base, gru('embedding', embedding=n)),
        Claim('3.1', 'connecting the input to deeper layers helps', 'better',
              gru('two layers, input to both', layers=[n, n], input_to_all_layers=True), two),
        Claim('3.1.2', 'negatives in proportion to popularity are better than uniform ones', 'better', base,
              gru('uniform negatives', negatives='uniform')),
        Claim('4', 'ranking among the most popular items alone hardly changes the result', 'like',
              gru('popular candidates', candidates='popular'), gru('all items', candidates='all')),
        Claim('4.2', 'adagrad is better than rmsprop', 'better', base,
              gru('rmsprop', adapt='rmsprop', learning_rate=RMSPROP_RATE)),
        Claim('4.2', 'GRU units are better than plain recurrent ones', 'better', base, gru('RNN', unit='rnn')),
        Claim('4.2', 'GRU units are better than LSTM units', 'better', base, gru('LSTM', unit='lstm')),
        Claim('4.2', 'one layer is better than two', 'better', base, two, every),
        Claim('4.2', 'one layer is better than three', 'better', base, three, every),
        Claim('4.2', 'the whole session as input does not improve the result', 'no better',
              gru('session input', input_mode='session'), base),
        Claim('4.2', 'a feed-forward layer after the recurrent one does not improve the result', 'no better',
              gru('feed-forward layer', feedforward=[n]), base),
        Claim('4.2', 'tanh is better than a linear output', 'better', base, gru('linear output', final_act='linear')),
        Claim('4.3', 'more units are better with TOP1', 'better', *reversed(sizes['top1'])),
        Claim('4.3', 'more units are better with BPR', 'better', *reversed(sizes['bpr'])),
        Claim('4.3', 'more units are worse with cross-entropy', 'better', *sizes['cross-entropy']),
        Claim('4.3', 'cross-entropy is better than TOP1 with few units', 'better', sizes['cross-entropy'][0],
              sizes['top1'][0]),
        Claim('4.3', 'TOP1 is better than cross-entropy with many units', 'better', sizes['top1'][1],
              sizes['cross-entropy'][1]),
        Claim('4.3', 'TOP1 is better than BPR with many units', 'better', sizes['top1'][1], sizes['bpr'][1]),
        *[Claim('4.3', f'{name[loss]} is better than Item-KNN', 'better', sizes[loss][0], knn) for loss in name],
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The verdicts
# ---------------------------------------------------------------------------------------------------------------------

def judge(claim: Claim, first: list[dict], second: list[dict]) -> tuple[str, list[str]]:
    """Return the verdict, and for each metric both means and the interval as text; results are ordered by seed."""
    verdicts, details = [], []
    for metric in claim.metrics:
        of_first, of_second = metric_by_seed(first, metric), metric_by_seed(second, metric)
        pairs = [pair for pair in zip(of_first, of_second) if None not in pair]
        verdict, interval = judge_metric(claim.relation, np.array(pairs).reshape(-1, 2), metric == 'loss')
        verdicts.append(verdict)
        details.append(f'{in_words(of_first)} / {in_words(of_second)}{interval}')
    if 'does not hold' in verdicts:
        return 'does not hold', details
    return ('holds' if set(verdicts) == {'holds'} else 'too close to tell'), details


def judge_metric(relation: str, pairs: np.ndarray, lower_is_better: bool) -> tuple[str, str]:
    """Return the verdict on one metric, from (seeds, 2) values, and the interval of the differences as text."""
    if len(pairs) < 2:
        return 'too close to tell', ''
    differences = pairs[:, 0] - pairs[:, 1]
    half = scipy.stats.t.ppf(0.975, len(pairs) - 1) * differences.std(ddof=1) / np.sqrt(len(pairs))
    low, high = differences.mean() - half, differences.mean() + half
    text = f' ({differences.mean():+.4f} ± {half:.4f})'
    margin = MARGIN * abs(pairs[:, 1].mean())
    if lower_is_better:
        low, high = -high, -low
    holds, fails = {'better': (low > 0, high < 0), 'no better': (high < margin, low > 0),
                    'like': (-margin < low and high < margin, low > margin or high < -margin)}[relation]
    return ('holds' if holds else 'does not hold' if fails else 'too close to tell'), text


def metric_by_seed(results: list[dict], metric: str) -> list[float | None]:
    """Return a metric of each result, None where the network was numerically unstable."""
    if metric == 'loss':
        return [result['epoch_losses'][-1] if result['recall@20'] is not None else None for result in results]
    return [result[metric] for result in results]


def in_words(values: list[float | None]) -> str:
    """Return mean ± standard deviation of the values that are not None, and the number of the others."""
    stable = [value for value in values if value is not None]
    if not stable:
        return 'unstable'
    text = mean_and_deviation(stable if np.std(stable) else stable[:1])  # a baseline's single result has no deviation
    return text + (f' ({len(values) - len(stable)} unstable)' if len(stable) < len(values) else '')


def stability_row(stable: dict[str, tuple[int, int]]) -> tuple:
    """Return the row on numerical stability; `stable` has for each loss the number of stable networks, and of all."""
    pointwise, pairwise = (np.sum([stable[loss] for loss in losses], axis=0) for losses in (POINTWISE, PAIRWISE))
    table = [[good, n - good] for good, n in (pointwise, pairwise)]
    p_less, p_more = (scipy.stats.fisher_exact(table, alternative=side).pvalue for side in ('less', 'greater'))
    verdict = 'holds' if p_less < 0.025 else 'does not hold' if p_more < 0.025 else 'too close to tell'
    shares = ', '.join(f'{loss} {good} of {n}' for loss, (good, n) in stable.items())
    return ('4.2', 'cross-entropy and MRR are less often numerically stable than TOP1 and BPR',
            f'stable networks at random points of the search space: {shares}', *['-'] * len(METRICS), verdict)


# ---------------------------------------------------------------------------------------------------------------------
# Cells, and the table of claims
# ---------------------------------------------------------------------------------------------------------------------

def claims_cells(data: Dataset, request: Request) -> list[Cell]:
    """Return all cells of the claims."""
    cells = [cell for claim in paper_claims(*request.units) for setting in (claim.first, claim.second)
             for cell in setting_cells(setting, data, request)]
    cells += [cell for of_loss in stability_cells(data, request).values() for cell in of_loss]
    return [cell for k, cell in enumerate(cells) if cell not in cells[:k]]


def claims_section(cells: list[dict], results: Results, data: Dataset, request: Request,
                   with_intervals: bool = True) -> Section:
    """Return the table of the claims that can be judged by these results, and a note."""
    by_cell = {digits_of({name: result.get(name) for name in Cell._fields}): result for result in cells}

    def results_of(cells: list[Cell]) -> list[dict]:
        found = [by_cell.get(digits_of(cell._asdict())) for cell in cells]
        return [] if None in found else [result for result in found if result]

    compared: list[tuple] = []
    for claim in paper_claims(*request.units):
        first, second = (results_of(setting_cells(setting, data, request)) for setting in (claim.first, claim.second))
        if first and second:
            compared.append((claim, first, second))
    rows = []
    intervals = test_intervals([sides for _claim, *sides in compared], results, data) if with_intervals else {}
    for k, (claim, first, second) in enumerate(compared):
        verdict, details = judge(claim, first, second)
        of_test = intervals.get(k, [])  # of the first two metrics
        for place, (low, high) in enumerate(of_test):
            details[place] += f' [{low:+.4f}, {high:+.4f}]'
        if any(low <= 0 <= high for low, high in of_test):
            verdict += ', within the interval of the test set'
        rows.append((claim.section, claim.text, f'{claim.first.label} / {claim.second.label}', *details,
                     *['-'] * (len(METRICS) - len(details)), verdict))
    stable = {loss: results_of(cells) for loss, cells in stability_cells(data, request).items()}
    if all(stable.values()):
        rows.append(stability_row({
            loss: (sum(result['recall@20'] is not None for result in of_loss), len(of_loss))
            for loss, of_loss in stable.items()}))
    header = ('Section', 'Claim', 'First / second', *METRICS.values(), 'Verdict')
    small, large = request.units
    reduced = ('**Quick run: fewer epochs and units than the paper\'s 100 and 1000, and fewer random points.** '
               if request.is_quick else '')
    note = (f'{reduced}{small} units, {large} where many units are meant; {request.epochs} epochs, seeds '
            f"{', '.join(map(str, request.seeds))}, backend {request.backend}; parameters of Table 2 for "
            f'{data.protocol.title}; rmsprop with learning rate {RMSPROP_RATE}. Cells show first / second, mean ± '
            'standard deviation over seeds, and in brackets their difference ± the half-width of its 95% interval. '
            f'Stability: networks of {small} units with {min(STABILITY_EPOCHS, request.epochs)} epochs and one seed.')
    return Section([Table('Claims', header, rows)], [note, VERDICTS])


def test_intervals(sides: list[list[list[dict]]], results: Results, data: Dataset) -> dict[int, list[list[float]]]:
    """Return, by number of a claim, the intervals of its differences in Recall@20 and MRR@20 over test sessions.

    Both sides have the seeds for which both networks were stable.  Claims of which a cell has no ranks are left out.
    """
    differences = {}
    for k, of_claim in enumerate(sides):
        pairs = [pair for pair in zip(*of_claim) if None not in [result['recall@20'] for result in pair]]
        first, second = (ranks_of_seeds([pair[side] for pair in pairs], results) for side in (0, 1))
        if first is not None and second is not None:
            differences[k] = [gains(first, metric) - gains(second, metric) for metric in COMPARED]
    if not differences:
        return {}
    bounds = bootstrap(*sums_of(itertools.chain(*differences.values()), data), SEED).T.tolist()
    return {k: bounds[2 * n:2 * n + 2] for n, k in enumerate(differences)}


def setting_cells(setting: Setting, data: Dataset, request: Request) -> list[Cell]:
    """Return the cells of one side of a comparison, one for each seed; a baseline's single one counts for all."""
    candidates = data.protocol.candidates
    if setting.loss is None:  # a baseline
        parameters = BASELINES[setting.model][1]
        return [Cell(setting.model, None, None, None, None, parameters, request.tie_policy, candidates)] * len(
            request.seeds)
    if setting.candidates == 'popular':
        candidates = popular_candidates(data.n_items)
    elif setting.candidates == 'all':
        candidates = None
    parameters = data.protocol.parameters[setting.loss] | setting.options
    return [network_cell(setting.loss, setting.units, request.epochs, seed, parameters, request, candidates)
            for seed in request.seeds]


def popular_candidates(n_items: int) -> int:
    """Return how many items are as large a share of all as the paper's candidates are of VIDEO's items."""
    share = round(n_items * VIDEO_CANDIDATES / VIDEO_ITEMS)
    return min(VIDEO_CANDIDATES, max(2 * CUT_OFF, share))


def stability_cells(data: Dataset, request: Request) -> dict[str, list[Cell]]:
    """Return, for each loss, networks at random points of the search space: 100, or 10 for a quick request."""
    seed, epochs = request.seeds[0], min(STABILITY_EPOCHS, request.epochs)
    points = search.random_points(search.SPACE, 10 if request.is_quick else 100, seed)
    return {loss: [network_cell(loss, request.units[0], epochs, seed, point, request, data.protocol.candidates)
                   for point in points] for loss in (*POINTWISE, *PAIRWISE)}
