"""The paper's tables: the published numbers, ours beside them, and how they look."""
import pytest
from common import click_log

from gru4rec_pytensor.experiments import tables
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.protocols import BASELINES, NETWORK, PROTOCOLS, RSC15, VIDEO
from gru4rec_pytensor.experiments.tables import Section, Table, as_markdown, rows_of_tables

DATA = Dataset('mine', RSC15, True, click_log([1, 2]), click_log([1, 2]))  # beside which the paper's numbers stand


def a_result(model, recall, mrr=0.1, loss=None, units=None, seed=None, **more):
    return {'model': model, 'loss': loss, 'units': units, 'seed': seed, 'recall@20': recall, 'mrr@20': mrr,
            'ndcg@20': 0.3, 'fit_seconds': 2.0,
            'eval_seconds': None if recall is None else 0.5, 'epochs': 10, 'backend': 'numba',
            'tie_policy': 'conservative', 'candidates': None,
            'parameters': RSC15.parameters[loss] if loss else BASELINES[model][1],
            'other_tie_policies': {}} | more


def a_network(recall, mrr=0.1, loss='top1', units=100, seed=42, **more):
    return a_result(NETWORK, recall, mrr, loss, units, seed, **more)


def test_published_numbers_are_those_of_the_papers_tables():
    numbers = {('top1', 100): (0.5853, 0.2305), ('bpr', 1000): (0.6322, 0.2467), 'POP': (0.0050, 0.0012),
               'S-POP': (0.2672, 0.1775), 'Item-KNN': (0.5065, 0.2048), 'BPR-MF': (0.2574, 0.0618)}
    assert {row: tables.published_for(a_network(0.5, loss=row[0], units=row[1]) if isinstance(row, tuple) else
                               a_result(row, 0.5), DATA) for row in numbers} == numbers
    assert tables.published_for(a_network(0.5, units=4), DATA) == (None, None)  # the paper has no network of 4 units
    assert ('cross-entropy', 1000) not in VIDEO.published


@pytest.mark.parametrize('dataset, n_networks', [('rsc15', 6), ('video', 5)])  # no cross-entropy, 1000 on VIDEO
def test_the_published_gains_over_item_knn_follow_from_the_published_numbers(dataset, n_networks):
    protocol = PROTOCOLS[dataset]
    assert len(protocol.gains) == n_networks and len(protocol.published) == 4 + n_networks
    for row, gains in protocol.gains.items():
        for published, baseline, gain in zip(protocol.published[row], protocol.published['Item-KNN'], gains):
            assert published / baseline - 1 == pytest.approx(gain, abs=6e-4)  # both sides are rounded


def test_seeds_are_shown_as_mean_and_deviation_and_unstable_networks_are_counted_and_have_no_part_in_them():
    for recalls, words, mean in (((0.25, 0.35), '0.3000 ± 0.0707', 0.3),
                                 ((0.25, None), '0.2500 1 of 2 numerically unstable', 0.25),
                                 ((None,), ' 1 of 1 numerically unstable', None)):
        results = [*map(a_network, recalls)]
        assert tables.metric_in_words(results, 'recall@20') == words
        assert tables.mean_metric(results, 'recall@20') == mean


def test_a_row_of_table_1_has_published_and_our_numbers():
    results = [a_result('POP', 0.25, 0.125), a_result('Item-KNN', 0.5, 0.25)]
    table = tables.table_of_models('', 'Baseline', results, DATA)
    assert table.rows == [('POP', '0.0050', '0.2500', '0.0012', '0.1250', '0.3000', '2.0 s', '0.5 s'),
                          ('Item-KNN', '0.5065', '0.5000', '0.2048', '0.2500', '0.3000', '2.0 s', '0.5 s')]


def test_a_row_of_table_3_has_the_gains_over_item_knn_unless_that_hits_nothing():
    results = [a_result('Item-KNN', 0.5, 0.25), a_network(0.6, 0.2), a_network(0.7, 0.2, seed=43),
               a_network(0.4, units=4)]
    assert tables.table_3(results, DATA).rows == [
        ('TOP1', 100, '0.5853 (+15.55%)', '0.6500 ± 0.0707 (+30.00%)', '0.2305 (+12.58%)', '0.2000 ± 0.0000 (-20.00%)',
         '0.3000 ± 0.0000', '2.0 s', '0.5 s'),
        ('TOP1', 4, '-', '0.4000 (-20.00%)', '-', '0.1000 (-60.00%)', '0.3000', '2.0 s', '0.5 s')]
    row, = tables.table_3([a_result('Item-KNN', 0.0, 0.0), a_network(0.6, units=4)], DATA).rows
    assert row[:6] == ('TOP1', 4, '-', '0.6000', '-', '0.1000')


def test_rows_that_were_trained_or_ranked_otherwise_stand_apart_and_say_how():
    results = [a_result('Item-KNN', 0.5), a_network(0.6), a_network(0.7, epochs=3), a_network(0.8, seed=43),
               a_result('Item-KNN', 0.25, tie_policy='median'), a_network(0.4, tie_policy='median')]
    section = tables.tables_1_and_3(rows_of_tables(results, RSC15), DATA)
    assert [(row[:2], row[3]) for row in section.tables[0].rows] == [
        (('Item-KNN', 'conservative'), '0.5000'), (('Item-KNN', 'median'), '0.2500')]
    assert [(row[2:4], row[5]) for row in section.tables[1].rows] == [
        ((10, 'conservative'), '0.7000 ± 0.1414 (+40.00%)'), ((10, 'median'), '0.4000 (+60.00%)'),
        ((3, 'conservative'), '0.7000 (+40.00%)')]
    assert 'epochs' not in section.notes[0] and 'policy' not in section.notes[0]


def test_results_with_other_parameters_or_candidates_than_the_papers_stand_in_no_table():
    mine = a_network(0.6)
    others = [a_network(0.6, parameters={'layers': [100, 100]}), a_network(0.6, candidates=30_000),
              a_result('POP', 0.1, parameters={'top_n': 5})]
    assert rows_of_tables([*others, mine], RSC15) == [mine]


def test_a_section_in_markdown_has_the_notice_headings_even_columns_and_notes():
    two = [Table('One', ('a', 'long name'), [('x', 1), ('long text', 2)]), Table('Two', ('b',), [])]
    text = as_markdown(DATA, Section(two, ['First.', 'Last.']))
    assert text.splitlines()[1:] == [
        '', '### One', '', '| a         | long name |', '|-----------|-----------|', '| x         | 1         |',
        '| long text | 2         |', '', '### Two', '', '| b |', '|---|', '', 'First.', '', 'Last.']
    assert text.startswith('Data set `mine`: train 1 sessions, 2 events, 2 items') and text.endswith('Last.\n')
    # titles from files are no markup
    table = Table('<i>One', ('a', 'b'), [('<script>x|y</script>\n| z', 1)])
    text = as_markdown(DATA, Section([table], ['<b>: loss bpr.']))
    row, note = text.splitlines()[-3], text.splitlines()[-1]
    assert row == '| &lt;script>x&#124;y&lt;/script> &#124; z | 1 |' and note == '&lt;b>: loss bpr.'
    assert '### &lt;i>One' in text.splitlines()
