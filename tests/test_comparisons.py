"""Is A better than B: intervals, comparisons, ranks on disk, rows and lists of one's own."""
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
from common import few_items_log

import run_experiments
from evaluation import bootstrap, compare, gains, holm, interval, ndcg, recall_mrr, session_sums
from gru4rec_pytensor import cli
from gru4rec_pytensor.experiments import own
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.lists import LISTS_COLUMNS, Lists, coverage_and_popularity, top_columns

RNG = np.random.default_rng(0)
OFFSETS = np.append(0, np.cumsum(RNG.integers(2, 6, 40)))
RANKS_A, RANKS_B = RNG.integers(1, 40, (2, OFFSETS[-1] - 40)).astype(float)


# --- Numbers --------------------------------------------------------------------------------------------------------


def test_ndcg_and_the_gains_of_predictions_are_those_of_their_formulas():
    by_hand = [1 / np.log2(1 + rank) if rank <= 20 else 0 for rank in RANKS_A]
    assert ndcg(RANKS_A) == pytest.approx(np.mean(by_hand))
    assert gains(RANKS_A, 'ndcg@20') == pytest.approx(by_hand)
    assert (gains(RANKS_A, 'recall@5').mean(), gains(RANKS_A, 'mrr@5').mean()) == pytest.approx(recall_mrr(RANKS_A, 5))
    two_seeds = gains(np.stack([RANKS_A, RANKS_B]), 'mrr@20')
    assert two_seeds == pytest.approx((gains(RANKS_A, 'mrr@20') + gains(RANKS_B, 'mrr@20')) / 2)
    assert ndcg(np.array([np.inf, 1.0])) == 0.5


def test_the_interval_is_scipys_percentile_bootstrap_of_sessions():
    sums, counts = session_sums(gains(RANKS_A, 'mrr@20')[:, None], OFFSETS)
    theirs = scipy.stats.bootstrap(
        (sums[:, 0], counts[:, 0]), lambda x, n, axis: x.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        method='percentile', n_resamples=10_000, rng=np.random.default_rng(5)).confidence_interval
    spread = theirs.high - theirs.low
    assert interval(RANKS_A, OFFSETS, 'mrr@20') == pytest.approx((theirs.low, theirs.high), abs=0.04 * spread)
    assert interval(RANKS_A, OFFSETS, 'mrr@20') == interval(RANKS_A, OFFSETS, 'mrr@20')


def test_a_draw_has_as_many_sessions_as_there_are_each_with_all_its_predictions():
    sums, counts = np.array([[1.0], [10.0]]), np.array([[1.0], [4.0]])
    low, high = bootstrap(sums, counts, seed=0)[:, 0]
    assert (low, high) == (2 / 2, 20 / 8)  # of the first or the second session, drawn twice


def test_the_p_value_is_that_of_all_exchanges_of_the_two_models():
    offsets, n = OFFSETS[:11], OFFSETS[10] - 10
    sums, _counts = session_sums((gains(RANKS_A[:n], 'mrr@20') - gains(RANKS_B[:n], 'mrr@20'))[:, None], offsets)
    exchanges = [abs(sums[:, 0] @ signs) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean(np.array(exchanges) >= abs(sums.sum()) - 1e-12)
    found = compare(RANKS_A[:n], RANKS_B[:n], offsets)['mrr@20']
    assert found.p == pytest.approx(exact, abs=0.02) and 0.05 < exact < 0.95
    assert found.difference == pytest.approx(recall_mrr(RANKS_A[:n])[1] - recall_mrr(RANKS_B[:n])[1])


def test_a_model_does_not_differ_from_itself_and_one_that_always_wins_does():
    same = compare(RANKS_A, RANKS_A, OFFSETS)['recall@20']
    assert same == (0, 0, 0, 1)
    wins = compare(np.ones(len(RANKS_A)), np.full(len(RANKS_A), 2.0), OFFSETS)['mrr@20']
    assert wins == pytest.approx((0.5, 0.5, 0.5, 1 / 10_001))
    with pytest.raises(ValueError, match='the sessions have 4 predictions, and there are 2 ranks'):
        interval(np.ones(2), np.array([0, 3, 6]))


def test_holms_correction_is_the_step_down_one():
    assert holm(np.array([0.04, 0.01, 0.03, 0.9])).tolist() == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]


def test_the_top_of_each_row_is_that_of_a_stable_sort():
    scores, bias = RNG.integers(0, 9, (6, 50)).astype(np.float32), RNG.integers(0, 3, 50).astype(np.float32)
    columns, best = top_columns(scores, bias, 7)
    order = np.argsort(-(scores + bias), axis=1, kind='stable')[:, :7]
    assert np.array_equal(columns, order) and np.array_equal(best, np.take_along_axis(scores + bias, order, axis=1))
    _columns, best = top_columns(scores[:, :3], bias[:3], 5)
    assert np.isneginf(best[:, 3:]).all() and np.isfinite(best[:, :3]).all()


def test_coverage_and_popularity_are_those_of_a_loop():
    counts = pd.Series([4, 2, 1, 1], index=['a', 'b', 'c', 'd'])
    lists = np.array([['a', 'b'], ['b', 'c'], ['a', 'b']])
    popularity = np.mean([np.mean([counts[item] / 4 for item in items]) for items in lists])
    assert coverage_and_popularity(lists, counts) == pytest.approx((3 / 4, popularity))


# --- Commands -------------------------------------------------------------------------------------------------------

MODULE = '''
import pandas as pd

class Often:
    """The items by their number of events, times `sign`."""
    def __init__(self, sign=1, seed=0):
        self.sign, self.seed = sign, seed
    def fit(self, train):
        self.counts = train.ItemId.value_counts()
    def predict_next(self, session_id, input_item_id, predict_for_item_ids):
        return self.sign * self.counts.reindex(predict_for_item_ids).fillna(0)

class Fitless:
    def predict_next(self, session_id, input_item_id, predict_for_item_ids):
        pass

class Wrong(Often):
    def predict_next(self, session_id, input_item_id, predict_for_item_ids):
        return pd.Series(float('nan'), index=predict_for_item_ids)
'''


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a module of models, and training and test events of 25 items."""
    folder = tmp_path_factory.mktemp('place')
    (folder / 'often_module.py').write_text(MODULE)
    for name, seed in (('train', 1), ('test', 2)):
        few_items_log(150, 25, seed).to_csv(folder / f'{name}.tsv', sep='\t', index=False)
    return folder


def experiments(place, out, *words):
    return run_experiments.main(['--train', str(place / 'train.tsv'), '--test', str(place / 'test.tsv'), '--jobs', '1',
                                 '--backend', 'python', '--out', str(out), *words])


@pytest.fixture(scope='module')
def done(place):
    """A folder with results of POP, Markov and a model of one's own, and what was printed about its comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert experiments(place, place / 'out', '--table', '1', '--models', 'POP,Markov',
                           'often_module:Often(sign=-1)', '--name', 'Seldom', '--compare') == 0
    return place / 'out'


def rows_of(text, title):
    lines = text.partition(f'### {title}')[2].partition('###')[0].splitlines()
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line[:2] == '| '][1:]


def test_the_ranks_of_a_cell_give_its_numbers_and_damage_is_named(done):
    results = Results(done)
    for result in results.load('cells'):
        ranks = results.ranks(result)
        assert ranks.dtype == np.float32 and recall_mrr(ranks) == pytest.approx((result['recall@20'], result['mrr@20']))
    path, = result['path'].parent.glob(f"{result['path'].stem}-*.npy")
    before = path.read_bytes()
    for damaged in (before[:-1], b'', before[:-1] + bytes([before[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path.name}: not the ranks of {result['path'].name}"):
            results.ranks(result)
    path.write_bytes(before)


def test_tables_and_comparison_have_intervals_and_the_models_of_ones_own(done):
    text, results = (done / 'tables.md').read_text(), Results(done)
    titles = [row[0] for row in rows_of(text, 'Table 1')]
    assert titles == ['POP', 'Markov', 'Seldom']
    offsets = np.load(next((done / 'data').glob('*/test-SessionId.npy')))
    offsets = np.append(0, np.cumsum(np.unique(offsets, return_counts=True)[1]))
    ranks = {'Seldom' if result.get('source') else result['model']: results.ranks(result)
             for result in results.load('cells')}
    low, high = interval(ranks['POP'], offsets)
    assert f'[{low:.4f}, {high:.4f}]' in text
    best = max(ranks, key=lambda model: recall_mrr(ranks[model])[0])
    pairs = rows_of(text, 'Comparison of rows')
    assert {row[1] for row in pairs} == {best} and len(pairs) == 2
    first = next(model for model in ranks if model != best)
    found = compare(ranks[first], ranks[best], offsets)['recall@20']
    row = next(row for row in pairs if row[0] == first)
    assert row[2] == f'{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]'
    assert f'Differences to {best}' in (done / 'report.html').read_text()


def test_a_model_of_ones_own_is_cached_by_its_source_and_arguments(place, done, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ['--table', '1', '--models', 'often_module:Often(sign=-1)', '--name', 'Renamed']
    assert experiments(place, done, *words) == 0
    out, error = capsys.readouterr()
    assert '1 of 1 cells are in' in error and '| Renamed' in out and 'Seldom' not in out
    (place / 'often_module.py').write_text(MODULE + '\n# changed\n')
    own.importlib.invalidate_caches()
    monkeypatch.delitem(own.sys.modules, 'often_module')
    assert experiments(place, done, *words) == 0
    assert 'cells are in' not in capsys.readouterr().err
    (place / 'often_module.py').write_text(MODULE)
    monkeypatch.delitem(own.sys.modules, 'often_module')


@pytest.mark.parametrize('model, message', [
    ('no_such_module:A', 'no_such_module cannot be imported: ModuleNotFoundError'),
    ('often_module:Nothing', 'often_module has no class Nothing'), ('often_module:Fitless', 'lacks fit(train)'),
    ('often_module:Often(size=1)', "unexpected keyword argument 'size'"),
    ('often_module:Often(1)', 'its arguments must be names with plain values'),
    ('often_module:', 'a model of your own looks like my_module:MyModel')])
def test_what_is_no_model_is_named_before_any_work(place, monkeypatch, capsys, model, message):
    monkeypatch.chdir(place)
    assert run_experiments.main(['--models', model]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_scores_that_are_no_numbers_fail_their_row_which_is_named_and_the_others_are_kept(
        place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    models = ['POP', 'often_module:Wrong', 'often_module:Often']
    assert experiments(place, tmp_path, '--table', '1', '--models', *models) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert '1 failed, the others are kept: often_module:Wrong 42: ' in error
    assert 'Wrong scores' in error and 'with NaN' in error
    assert {result['model'] for result in Results(tmp_path).load('cells')} == {'POP', 'often_module:Often'}


@pytest.mark.parametrize('words, message', [
    (['--compare', 'Nobody'], "--compare 'Nobody': no such row; there are POP; Markov"),
    (['--models', 'often_module:Often', '--name', 'STAN'], "'STAN' is the title of another row")])
def test_wrong_comparisons_are_named(place, done, monkeypatch, capsys, words, message):
    monkeypatch.chdir(place)
    assert experiments(place, done, *words) == 2 and message in capsys.readouterr().err


def test_cells_without_ranks_are_named_and_run_again_on_demand(place, done, tmp_path, capsys):
    results = Results(done)
    for result in results.load('cells'):
        if result['model'] in ('POP', 'Markov'):
            content = json.loads(result['path'].read_text())
            del content['result']['ranks'], content['digits']
            (tmp_path / 'cells').mkdir(exist_ok=True)
            (tmp_path / 'cells' / result['path'].name).write_text(json.dumps(content))
    assert experiments(place, tmp_path, '--compare') == 0
    assert 'Without ranks, which earlier versions did not keep: POP; Markov' in capsys.readouterr().out
    assert experiments(place, tmp_path, '--compare', '--rerun') == 0
    out = capsys.readouterr().out
    assert 'Without ranks' not in out and len(rows_of(out, 'Comparison of rows')) == 1
    again = {result['model']: Results(tmp_path).ranks(result) for result in Results(tmp_path).load('cells')}
    assert all(np.array_equal(again[result['model']], results.ranks(result)) for result in results.load('cells')
               if result['model'] in again)


def test_a_comparison_is_kept_when_the_titles_of_its_rows_change(place, tmp_path, capsys):
    assert experiments(place, tmp_path, '--table', '1', '--models', 'POP,Markov', '--compare', 'POP') == 0
    before, = rows_of(capsys.readouterr().out, 'Comparison of rows with POP')
    assert experiments(place, tmp_path, '--table', '1', '--models', 'POP,Markov', '--tie-policy', 'median') == 0
    after = rows_of(capsys.readouterr().out, 'Comparison of rows with POP, ties conservative')
    assert before[0] == 'Markov' and before[2] in [row[2] for row in after] and len(after) == 3
    assert experiments(place, tmp_path, '--compare', 'POP') == 2
    assert "--compare 'POP': is the title of several rows" in capsys.readouterr().err


@pytest.fixture(scope='module')
def written(place):
    """A model, the lists of its recommendations, its ranks, and what was printed about it."""
    files = {name: str(place / name) for name in ('model', 'lists.csv', 'ranks.npy', 'train.tsv', 'test.tsv')}
    assert cli.main(['fit', files['train.tsv'], '-o', files['model'], '--layers', '4', '--epochs', '2', '--batch-size',
                     '10', '--backend', 'python', '--quiet']) == 0
    assert cli.main(['evaluate', files['model'], files['test.tsv'], '--write-lists', files['lists.csv'], '-k', '22',
                     '--ranks', files['ranks.npy'], '--lists-metrics', '--backend', 'python', '--json']) == 0
    return files


def test_lists_that_are_written_and_read_again_have_the_metrics_of_their_model(place, written, tmp_path, capsys):
    assert cli.main(['evaluate', written['model'], written['test.tsv'], '--backend', 'python', '--json']) == 0
    of_model = json.loads(capsys.readouterr().out)
    assert cli.main(['evaluate', '--lists', written['lists.csv'], written['test.tsv'], '--json']) == 0
    of_lists = json.loads(capsys.readouterr().out)
    for name in ('predictions', 'recall@20', 'mrr@20', 'ndcg@20'):
        assert of_lists[name] == pytest.approx(of_model[name])
    ranks = np.load(written['ranks.npy'])
    assert recall_mrr(ranks) == pytest.approx((of_model['recall@20'], of_model['mrr@20']))
    assert experiments(place, tmp_path, '--lists', written['lists.csv'], '--name', 'Elsewhere', '--lists-metrics') == 0
    row, = rows_of(capsys.readouterr().out, 'Table 1')
    assert row[0] == 'Elsewhere' and row[1].startswith(f"{of_model['recall@20']:.4f} [")
    result, = Results(tmp_path).load('cells')
    assert result['details']['recall'][-1] is None  # at 100, beyond the lists
    assert np.array_equal(Results(tmp_path).ranks(result), np.where(ranks <= 22, ranks, np.inf))
    assert experiments(place, tmp_path, '--lists', written['lists.csv'], '--dataset', 'video') == 2
    assert 'lists are of all items' in capsys.readouterr().err


OTHER_IDS = ';' + ','.join(f'{k}.0' for k in range(20)) + ';1'


@pytest.mark.parametrize('change, message', [
    (lambda lines: lines[:-1], 'has no list for session 149, position'),
    (lambda lines: [*lines, lines[1].replace(';0;', ';77;')], 'which the test data does not predict'),
    (lambda lines: [*lines, lines[1]], 'has two lists for session 0, position 0'),
    (lambda lines: [lines[0], '0;0;1,2,3;3,2,1', *lines[2:]], 'has 3 items; 20 or more are needed'),
    (lambda lines: [lines[0].replace('Position', 'Place'), *lines[1:]], 'has no column Position'),
    (lambda lines: [*lines[:-1], lines[-1].replace(';', ';x', 1)], 'is not a whole number'),
    (lambda lines: [lines[0], *[re.sub(';[^;]*;[^;]*$', OTHER_IDS, line) for line in lines[1:]]],
     "no list has its next item; its ids are such as '0.0'"),
    (lambda lines: [], 'a file of lists has the columns')])
def test_a_file_of_lists_that_does_not_fit_is_refused(written, tmp_path, capsys, change, message):
    path, lines = tmp_path / 'lists.csv', Path(written['lists.csv']).read_text().splitlines()
    assert lines[0] == ';'.join(LISTS_COLUMNS)
    path.write_text('\n'.join(change(lines)) + '\n' * bool(change(lines)))
    assert cli.main(['evaluate', '--lists', str(path), written['test.tsv'], '--unknown', 'miss']) == 2
    assert '--unknown miss and --backend are of a model' in capsys.readouterr().err
    assert cli.main(['evaluate', '--lists', str(path), written['test.tsv']]) == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error and error.count('\n') == 1


def test_lists_of_baselines_are_their_items_of_highest_score(place):
    from baselines import Markov
    from evaluation import next_item_ranks
    train, test = (pd.read_csv(place / f'{name}.tsv', sep='\t') for name in ('train', 'test'))
    model, lists = Markov().fit(train), Lists(5)
    ranks = next_item_ranks(model, test, lists=lists)
    assert np.array_equal(ranks, next_item_ranks(model, test))
    rows = test.sort_values(['SessionId', 'Time'], kind='stable')
    last = rows.ItemId[rows.duplicated('SessionId', keep='last')].to_numpy()
    for item, listed, scores in zip(last[:20], lists.items, lists.scores):
        found = model.predict_next(0, item, model.items_)
        assert scores.tolist() == sorted(found, reverse=True)[:5] and found[listed].tolist() == scores.tolist()
