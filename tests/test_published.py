"""What papers report: each number once, looked up by data and model, and the verdict on a difference."""
import re
from pathlib import Path

import pytest
from common import click_log

from gru4rec_pytensor.experiments import datasets, published
from gru4rec_pytensor.experiments.cells import CUT_OFFS
from gru4rec_pytensor.experiments.datasets import DATA, Dataset, find_data
from gru4rec_pytensor.experiments.protocols import BASELINES, NETWORK, PROTOCOLS, RSC15, VIDEO
from gru4rec_pytensor.experiments.published import LATER_NETWORKS, ROWS, by_yardstick, rows_for
from gru4rec_pytensor.experiments.tables import as_markdown, metric_of, rows_of_tables, tables_1_and_3


def row_of(model, data=None):
    """The first published row of a model, on any data or this."""
    return next(row for row in ROWS if row.model == model and data in (None, row.data))


def of_network(row, **changes):
    """What a result says about the network of a published row, some of whose arguments may be changed."""
    arguments = row.arguments | changes
    parameters = {name: value for name, value in arguments.items() if name not in ('loss', 'n_epochs')}
    return {'model': NETWORK, 'loss': arguments['loss'], 'units': None, 'epochs': arguments.get('n_epochs', 10),
            'parameters': parameters}


@pytest.mark.parametrize('title, protocol, train, test', [
    ('RSC15', RSC15, (7_966_257, 31_637_239, 37_483), (15_324, 71_222, 6_751)),
    ('RSC15 1/64', RSC15, (124_472, 494_331, 16_700), (15_324, 71_222, 6_751)),
    ('RSC15 1/4', RSC15, (2_000_000, 7_917_746, 29_600), (15_324, 71_222, 6_751)),
    ('rsc15_recent64', RSC15, (24_761, 99_943, 13_133), (1_703, 7_299, 2_875)),
    ('VIDEO', VIDEO, (2_954_321, 13_187_654, 329_876), (37_123, 179_876, 30_000)),
])
def test_data_is_told_by_its_published_counts(title, protocol, train, test):
    names = ('sessions', 'events', 'items')
    counts = {'train': dict(zip(names, train)), 'test': dict(zip(names, test))}
    data = find_data(protocol, counts)
    assert data.title == title and data.with_misses == ('1/' in title)
    assert find_data(RSC15 if protocol is VIDEO else VIDEO, counts) is None
    for part, numbers in counts.items():
        changed = {part: numbers | {'events': numbers['events'] + 1_000_000}}
        assert find_data(protocol, counts | changed) is None


# --- Rows -----------------------------------------------------------------------------------------------------------


def test_each_row_has_a_source_a_known_data_set_and_shares_of_one():
    assert len({(row.data, row.source, row.model) for row in ROWS}) == len(ROWS)
    titles = {data.title for data in DATA}
    for row in ROWS:
        assert row.data in titles and row.source and 20 in row.recall and 20 in row.mrr
        assert set(row.recall) | set(row.mrr) <= set(CUT_OFFS)
        for values in (row.recall, row.mrr):
            assert list(values) == sorted(values) and sorted(values.values()) == list(values.values())
            assert all(0 < value < 1 for value in values.values())
        assert all(row.mrr[n] <= row.recall[n] for n in row.mrr if n in row.recall)


def test_the_rows_of_the_paper_are_its_tables():
    for protocol in PROTOCOLS.values():
        rows = [row for row in ROWS if row.data == protocol.title and row.source == published.GRU4REC_2016]
        assert [(row.recall[20], row.mrr[20]) for row in rows] == list(protocol.published.values())
        assert [row.model for row in rows[:4]] == ['POP', 'S-POP', 'Item-KNN', 'BPR-MF']


def test_no_number_of_a_later_paper_stands_a_second_time_in_the_code():
    root = Path(__file__).parents[1]
    texts = [path.read_text() for path in (*root.glob('gru4rec_pytensor/**/*.py'), *root.glob('parameters/*'))]
    for row in ROWS:
        if row.source in (published.GRU4REC_2018, published.GRU4REC_2023, published.EVALUATION_2025):
            for value in (*row.recall.values(), *row.mrr.values()):
                assert sum(len(re.findall(rf'\b{re.escape(str(value))}0?\b', text)) for text in texts) == 1


def test_the_rows_of_2023_are_two_losses_on_five_data_sets_at_all_cut_offs_and_their_numbers_fit_each_other():
    """A hit at ranks 2 to 5 adds at least 1/5 and at most 1/2 to MRR@5: a wrong digit falls out of these bounds."""
    rows = [row for row in ROWS if row.source == published.COMPARISON_2023]
    assert sorted((row.data, row.arguments['loss']) for row in rows) == [
        (title, loss) for title in ('Coveo', 'Diginetica', 'REES46', 'RetailRocket', 'Yoochoose')
        for loss in ('bpr-max', 'cross-entropy')]
    for row in rows:
        assert [*row.recall] == [1, 5, 10, 20] and [*row.mrr] == [5, 10, 20]
        mrr = {1: row.recall[1]} | row.mrr
        for lower, upper in ((1, 5), (5, 10), (10, 20)):
            hits, gained = row.recall[upper] - row.recall[lower], mrr[upper] - mrr[lower]
            assert hits / upper - 1.5e-4 < gained < hits / (lower + 1) + 1.5e-4
        assert rows_for(row.data, of_network(row)) == [row]


@pytest.mark.parametrize('title', LATER_NETWORKS)
def test_a_network_is_found_by_its_arguments_and_not_if_one_differs(title):
    data = 'rsc15_recent64' if '2025' in title or 'PyTorch' in title else 'RSC15'
    result = {'model': NETWORK, 'units': 64 if '2025' in title else 100, 'epochs': 10,
              'loss': LATER_NETWORKS[title]['loss'], 'parameters': {
                  name: value for name, value in LATER_NETWORKS[title].items()
                  if name not in ('loss', 'layers', 'n_epochs')}}
    assert {row.model for row in rows_for(data, result)} == {title}
    for change in ({'epochs': 9}, {'parameters': result['parameters'] | {'momentum': 0.9}}, {'units': 99},
                   {'model': 'POP'}):
        assert title not in {row.model for row in rows_for(data, result | change)}


def test_an_argument_that_changes_nothing_does_not_tell_networks_apart():
    row, of_2016 = row_of('Cross-entropy, 100 units (2023)'), row_of('TOP1, 100 units')
    for spelling in ({'bpreg': 0.0}, {'final_act': None}, {'final_act': 'linear'}, {'hidden_act': 'tanh'}):
        assert rows_for('RSC15', of_network(row, **spelling)) == [row]
    for change in ({'logq': 0.0}, {'sample_alpha': 0.75}, {'drop_tail': True}):
        assert rows_for('RSC15', of_network(row, **change)) == []
    assert rows_for('RSC15', of_network(of_2016, bpreg=0.5, sample_alpha=0.5)) == [of_2016]
    assert rows_for('RSC15', of_network(of_2016, logq=1.0)) == []  # which changes the scores with any loss


def test_a_network_whose_parameters_a_paper_does_not_give_is_compared_with_nothing():
    assert row_of('GRU4Rec', 'RSC15 1/64').arguments is None
    assert rows_for('RSC15 1/64', of_network(row_of('TOP1, 100 units'))) == []


@pytest.mark.parametrize('ours, expected', [(0.5, 'the same'), (0.5049, 'the same'), (0.4951, 'the same'),
                                            (0.506, 'the same level'), (0.476, 'the same level'), (0.526, 'differs'),
                                            (0.474, 'differs')])
def test_the_verdict_is_by_the_authors_yardstick(ours, expected):
    assert by_yardstick(ours, 0.5) == expected


# --- Tables ---------------------------------------------------------------------------------------------------------


def measured(recall, mrr, **more):
    """A result with details, in which each cut-off has the same values."""
    return {'recall@20': recall, 'mrr@20': mrr, 'seed': None, 'units': None, 'loss': None, 'epochs': 10,
            'fit_seconds': 2.0, 'eval_seconds': 0.5, 'backend': 'python', 'tie_policy': 'conservative',
            'candidates': None, 'other_tie_policies': {},
            'details': recall and {'recall': [recall] * len(CUT_OFFS), 'mrr': [mrr] * len(CUT_OFFS)}} | more


def baseline(model, recall, mrr=0.1):
    return measured(recall, mrr, model=model, parameters=BASELINES[model][1])


def later(model, recall, mrr=0.1, seed=42, data=None, **more):
    return measured(recall, mrr, **of_network(row_of(model, data)) | {'seed': seed} | more)


def as_data(monkeypatch, title, is_synthetic=False):
    """A data set of two events that counts as the published one of this title."""
    log = click_log([1, 2])
    monkeypatch.setattr(datasets, 'DATA', [data._replace(counts={'train': dict(events=2), 'test': dict(events=2)})
                                            for data in DATA if data.title == title])
    return Dataset('mine', RSC15, is_synthetic, log, log)


def test_what_is_published_for_the_data_stands_beside_ours_with_difference_and_verdict(monkeypatch):
    data = as_data(monkeypatch, 'RSC15 1/64')
    section = tables_1_and_3([baseline('POP', 0.0671, 0.0160), baseline('Item-KNN', 0.4, 0.2181)], data)
    table_1, compared = section.tables
    assert table_1.rows[0][:5] == ('POP', '0.0671', '0.0671', '0.0165', '0.0160')
    assert compared.title == 'Published for this data, and ours'
    assert compared.rows[:4] == [
        ('POP', 'Recall@20', '0.0671', '0.0671', '+0.0%', 'the same', published.NARM),
        ('POP', 'MRR@20', '0.0165', '0.0160', '-3.0%', 'the same level', published.NARM),
        ('Item-KNN', 'Recall@20', '0.5160', '0.4000', '-22.5%', 'differs', published.NARM),
        ('Item-KNN', 'MRR@20', '0.2181', '0.2181', '+0.0%', 'the same', published.NARM)]
    assert ('SR-GNN', 'Recall@20', '0.7057', '-', '-', '-', published.SR_GNN) in compared.rows
    assert 'arXiv 1511.06939' not in ' '.join(section.notes) and 'Below 1% is the same' in section.notes[-1]


def test_a_published_row_is_compared_at_each_of_its_cut_offs_and_a_recorded_one_is_none_of_the_tables(monkeypatch):
    data = as_data(monkeypatch, 'rsc15_recent64')
    title = 'BPR-max, 64 units (2025)'
    results = [later(title, 0.65, 0.3, seed, title=title) for seed in (1, 2)]
    of_later, compared = tables_1_and_3(results, data).tables
    assert of_later.rows == [(title, '0.6503', '0.6500 ± 0.0000', '0.3165', '0.3000 ± 0.0000', '-', '2.0 s',
                              '0.5 s')]
    found = [(row[1], row[2], row[6]) for row in compared.rows if row[0] == title]
    assert found[:4] == [('Recall@1', '0.1960', published.EVALUATION_2025),
                         ('Recall@5', '0.4711', published.EVALUATION_2025),
                         ('Recall@10', '0.5731', published.EVALUATION_2025),
                         ('Recall@20', '0.6503', published.EVALUATION_2025)]
    assert len(found) == 14 and found[7][2] == published.RELEASE_2023
    table_1, _compared = tables_1_and_3([baseline('POP', 0.0466)], data).tables
    assert table_1.rows == [('POP', '0.0466', '0.1000', '-', '2.0 s', '0.5 s')]  # a recorded number is none


def test_beside_data_that_the_user_names_stand_its_published_rows_and_whose_word_that_is():
    log, title = click_log([1, 2]), 'BPR-max, 512 units (2023)'
    data = Dataset('mine', RSC15, False, log, log, said=datasets.BY_TITLE['diginetica'])
    section = tables_1_and_3([later(title, 0.51, 0.15, data='Diginetica', title=title)], data)
    of_later, compared = section.tables
    assert of_later.rows[0][:3] == (title, '0.4995', '0.5100')
    assert compared.rows[3] == (title, 'Recall@20', '0.4995', '0.5100', '+2.1%', 'the same level',
                                published.COMPARISON_2023)
    assert {(name, ours) for name, _metric, _theirs, ours, *_ in compared.rows if name != title} == {
        ('Cross-entropy, 192 units (2023)', '-')}
    assert '**That it is Diginetica is the word of --published**' in as_markdown(data, section)


def test_data_that_nothing_is_published_for_has_our_numbers_alone():
    log = click_log([1, 2])
    mine = Dataset('mine', RSC15, False, log, log)
    top1 = measured(0.6, 0.2, model=NETWORK, loss='top1', units=100, parameters=RSC15.parameters['top1'], seed=42)
    of_later = later('BPR-max, 100 units (2018)', 0.5, title='x')
    tables = tables_1_and_3([baseline('POP', 0.1), top1, of_later], mine).tables
    assert [table.header for table in tables] == [
        ('Baseline', 'Recall@20 ours', 'MRR@20 ours', 'NDCG@20', 'fit', 'evaluation'),
        ('Loss', 'Units', 'Recall@20 (gain over Item-KNN)', 'MRR@20 (gain)', 'NDCG@20', 'fit', 'evaluation'),
        ('Network', 'Recall@20 ours', 'MRR@20 ours', 'NDCG@20', 'fit', 'evaluation')]


def test_beside_a_synthetic_log_stand_the_papers_tables_and_no_verdict(monkeypatch):
    data = as_data(monkeypatch, 'RSC15', is_synthetic=True)
    results = [baseline('POP', 0.0050), later('BPR-max, 100 units (2018)', 0.7197, title='x')]
    section = tables_1_and_3(results, data)
    assert [table.title for table in section.tables] == ['Table 1: baselines', 'Later papers']
    assert section.tables[0].rows[0][:3] == ('POP', '0.0050', '0.0050')
    assert section.tables[1].rows[0][:2] == ('x', '0.7197')  # which is ours
    assert not any('yardstick' in note for note in section.notes)


def test_an_unstable_network_has_no_verdict(monkeypatch):
    data = as_data(monkeypatch, 'RSC15')
    title = 'BPR-max, 100 units (2018)'
    _later, compared = tables_1_and_3([later(title, None, None, title=title)], data).tables
    assert compared.rows[0] == (title, 'Recall@20', '0.7197', ' 1 of 1 numerically unstable', '-', '-',
                                published.GRU4REC_2018)


def test_rows_of_later_papers_are_those_that_were_asked_for_under_their_titles():
    first, second = later('BPR-max, 100 units (2018)', 0.5), later('Cross-entropy, 100 units (2023)', 0.6)
    asked = [{name: result[name] for name in ('loss', 'parameters')} | {'title': 'mine'} for result in (first, second)]
    knn, *found = rows_of_tables([second, first, baseline('Item-KNN', 0.1)], RSC15, files=asked)
    assert knn['model'] == 'Item-KNN' and 'title' not in knn
    assert [(row['title'], row['recall@20']) for row in found] in (
        [('mine', 0.5), ('mine [2]', 0.6)], [('mine', 0.6), ('mine [2]', 0.5)])
    assert rows_of_tables([first, second], RSC15, files=asked[:1]) == [first | {'title': 'mine'}]
    assert rows_of_tables([first], VIDEO, files=asked) == []  # ranked among other candidates
    assert rows_of_tables([first, second], RSC15) == []


def test_a_metric_is_found_at_any_cut_off():
    result = measured(0.5, 0.25, model='POP')
    result['details']['mrr'][CUT_OFFS.index(5)] = 0.125
    assert metric_of(result, 'MRR@5') == 0.125 and metric_of(result, 'MRR@20') == 0.25
    assert metric_of(measured(None, None), 'Recall@5') is None
