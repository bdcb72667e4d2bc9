"""Ranks of the next item with all their ties, and Recall@N and MRR@N, against counts by hand and dense scores."""
import numpy as np
import pandas as pd
import pytest
from common import TEST, TRAIN, Only, click_log, ranks_by_hand, scores_by_hand, small_model
from numpy.testing import assert_array_equal

import baselines
import evaluation
from evaluation import next_item_ranks, recall_mrr
from gru4rec import GRU4Rec

COUNTED_POLICIES = ['standard', 'conservative', 'median']


class FixedScores:
    """A model with nothing but `predict_next`: the same scores after every event, in an order of its own."""

    def __init__(self, dtype='float64', **scores):
        self.scores = pd.Series(scores, dtype=dtype)
        self.items_ = self.scores.index.to_numpy()

    def predict_next(self, session_id, input_item_id, predict_for_item_ids):
        return self.scores[list(predict_for_item_ids)].sort_index(ascending=False)


# --- Metrics from ranks ---------------------------------------------------------------------------------------------


RANKS = np.array([1, 2, 4, 19.5, 20, 20.5, 21])  # a median rank may lie between two places


@pytest.mark.parametrize('rule, cut_off, hits', [
    ('rank<=cut_off', 1, [1]), ('rank<=cut_off', 3, [1, 2]), ('rank<=cut_off', 4, [1, 2, 4]),
    ('rank<=cut_off', 20, [1, 2, 4, 19.5, 20]), ('rank<=cut_off', 100, RANKS),
    ('rank<cut_off', 1, []), ('rank<cut_off', 4, [1, 2]), ('rank<cut_off', 20, [1, 2, 4, 19.5])])
def test_a_hit_is_a_rank_of_at_most_the_cut_off_and_by_the_rule_of_2016_one_below_it(rule, cut_off, hits):
    expected = len(hits) / len(RANKS), sum(1 / rank for rank in hits) / len(RANKS)
    assert recall_mrr(RANKS, cut_off, rule) == pytest.approx(expected, rel=1e-14)


def test_several_cut_offs_at_once_are_those_one_by_one():
    for rule in ('rank<=cut_off', 'rank<cut_off'):
        recalls, mrrs = recall_mrr(RANKS, [1, 5, 20], rule)
        assert list(zip(recalls, mrrs)) == [recall_mrr(RANKS, n, rule) for n in (1, 5, 20)]
    with pytest.raises(ValueError, match='cut_off'):
        recall_mrr(RANKS, [0, 20])


def test_the_cut_off_is_20_unless_told_otherwise(top1_model):
    assert recall_mrr(RANKS) == recall_mrr(RANKS, 20, 'rank<=cut_off')
    assert evaluation.evaluate_sessions_batch(top1_model, TEST) == recall_mrr(next_item_ranks(top1_model, TEST), 20)


# --- Ties -----------------------------------------------------------------------------------------------------------


TIED = dict(a=0.5, b=0.9, c=0.5, d=0.5, e=0.1)


@pytest.mark.parametrize('target, ranks', [('b', (1, 1, 1)), ('a', (2, 4, 3)), ('c', (2, 4, 3)), ('e', (5, 5, 5))])
def test_equal_scores_count_as_lower_higher_or_half(target, ranks):
    model, log = FixedScores(**TIED), click_log(['b', target])
    assert tuple(next_item_ranks(model, log, tie_policy=policy)[0] for policy in COUNTED_POLICIES) == ranks


@pytest.mark.parametrize('candidates, places', [(None, [2, 3, 4]), (['a', 'd'], [1, 2, 3])])
def test_tiebreaking_puts_the_target_in_every_place_among_its_equals_equally_often(candidates, places):
    """The target is one of the candidates, or not.  Scores of float32 are parted, too, in which 0.5 + 1e-8 is 0.5."""
    model, log = FixedScores('float32', **TIED), click_log(*[['b', 'c']] * 900)
    ranks, counts = np.unique(next_item_ranks(model, log, candidates, tie_policy='tiebreaking'), return_counts=True)
    assert ranks.tolist() == places
    assert np.abs(counts - 300).max() < 5 * np.sqrt(900 * 1 / 3 * 2 / 3)


def test_unknown_items_count_as_misses_and_the_rest_is_ranked_as_without_them():
    model = baselines.ItemKNN(lmbd=0).fit(click_log('abc', 'bca', 'abd'))
    test = click_log('xab', 'axb', 'abx', 'xya', 'xy', 'ab', 'x')
    found = evaluation.next_item_ranks_with_misses(model, test.sample(frac=1, random_state=0))
    rank = next_item_ranks(model, click_log('ab'))[0]
    miss = np.inf
    assert found.tolist() == [miss, rank, miss, rank, rank, miss, miss, miss, miss, rank]
    assert recall_mrr(found) == (0.4, 0.4 / rank)
    everything_known = click_log('abc', 'dab')
    assert_array_equal(evaluation.next_item_ranks_with_misses(model, everything_known),
                       next_item_ranks(model, everything_known))
    assert evaluation.next_item_ranks_with_misses(model, click_log('xyz', 'ax')).tolist() == [miss] * 3
    with pytest.raises(ValueError, match='every test session has a single event'):
        evaluation.next_item_ranks_with_misses(model, click_log('x', 'a'))


def test_tiebreaking_keeps_the_order_of_scores_that_differ_and_is_decided_by_the_seed():
    apart, tied = FixedScores(a=0.5, b=0.5 + 2e-8, c=0.5 - 2e-8), FixedScores(**TIED)
    assert_array_equal(next_item_ranks(apart, click_log(*[['b', 'a']] * 200), tie_policy='tiebreaking'), 2)
    log = click_log(*[['b', 'c']] * 50)
    first, again, other = (next_item_ranks(tied, log, tie_policy='tiebreaking', seed=seed) for seed in (1, 1, 2))
    assert_array_equal(first, again)
    assert (first != other).any()


# --- A network against its dense scores -----------------------------------------------------------------------------


SATURATING = dict(layers=[6], n_epochs=1, batch_size=8, learning_rate=1e-3)
NETWORKS = {
    'one layer': SATURATING,
    'saturated tanh': dict(SATURATING, sigma=20),
    'relu, half of the scores 0': dict(SATURATING, final_act='relu'),
    'linear': dict(SATURATING, final_act='linear', loss='bpr', sigma=20),
    'cross-entropy of tanh': dict(SATURATING, loss='cross-entropy', final_act='tanh'),
}


@pytest.fixture(scope='module', params=NETWORKS)
def network(request):
    """A model, its activated scores for all predictions of the test data, and the targets."""
    model = small_model(**NETWORKS[request.param]).fit(TRAIN)
    scores, targets = scores_by_hand(model, TEST, batch=5)
    ties = np.mean([(row == row[model.items_ == target]).sum() - 1 for row, target in zip(scores, targets)])
    assert (ties > 5) == ('saturated' in request.param or 'relu' in request.param)
    return model, scores, targets


@pytest.mark.parametrize('places', [None, [3, 7, 59, 20, 3, 41, 8, 30, 12, 5]], ids=['all', 'candidates, one twice'])
@pytest.mark.parametrize('tie_policy', COUNTED_POLICIES)
def test_ranks_are_those_of_the_activated_scores_and_the_target_need_not_be_a_candidate(network, tie_policy, places):
    model, scores, targets = network
    candidates = None if places is None else model.items_[places]
    assert candidates is None or 0 < np.isin(targets, candidates).mean() < 1
    assert_array_equal(next_item_ranks(model, TEST, candidates, tie_policy=tie_policy),
                       ranks_by_hand(scores, targets, model.items_, tie_policy, candidates))


FEW = TEST[TEST.SessionId.isin(TEST.SessionId.unique()[:20])]
SOME = [3, 7, 59, 20, 41, 8]
all_items_or_some = pytest.mark.parametrize('candidates, tie_policy', [
    (None, 'conservative'), (None, 'tiebreaking'), (SOME, 'median'), (SOME, 'tiebreaking')], ids=str)


@all_items_or_some
def test_ranks_are_those_of_predict_next_batch_whatever_the_batch_size(network, candidates, tie_policy):
    model, _scores, _targets = network
    items = None if candidates is None else model.items_[candidates]
    expected = next_item_ranks(Only(model, 'predict_next_batch'), FEW, items, tie_policy=tie_policy)
    for batch_size in (1, 7, 20, 100):  # 20: as many as there are sessions
        assert_array_equal(next_item_ranks(model, FEW, items, batch_size, tie_policy), expected)


@pytest.mark.parametrize('final_act', ['linear', 'tanh'])
def test_softmax_over_the_candidates_does_not_depend_on_who_shares_the_batch(final_act):
    # Scores so close that it depends on the sum in the softmax whether noise of 1e-8 can change their order.
    model = small_model(loss='cross-entropy', final_act=final_act, sigma=1e-3, adapt=None, learning_rate=1e-12)
    model.fit(TRAIN)
    candidates = model.items_[:50]
    expected = next_item_ranks(Only(model, 'predict_next_batch'), TEST, candidates, tie_policy='tiebreaking')
    for batch_size in (1, 7, 40):
        assert_array_equal(next_item_ranks(model, TEST, candidates, batch_size, 'tiebreaking'), expected)


# --- Scores that tie once activated ---------------------------------------------------------------------------------


def next_float(x, towards):
    return np.nextafter(x, np.float32(towards), dtype=np.float32)


@pytest.mark.parametrize('scale', [1e-3, 1, 5, 30])
def test_bounds_of_equally_activated_scores_are_tight_for_tanh(scale):
    scores = (scale * np.random.RandomState(0).randn(500)).astype('float32')
    low, high = evaluation.equally_activated(np.tanh, scores)
    assert_array_equal(np.tanh(low), np.tanh(scores))
    assert_array_equal(np.tanh(high), np.tanh(scores))
    assert (np.tanh(next_float(low, -np.inf))[low > -np.inf] < np.tanh(scores)[low > -np.inf]).all()
    assert (np.tanh(next_float(high, np.inf))[high < np.inf] > np.tanh(scores)[high < np.inf]).all()
    assert (low > -np.inf)[scores > -5].all() and (high < np.inf)[scores < 5].all()


def test_bounds_of_equally_activated_scores_are_tight_for_relu_and_linear_too():
    scores = np.float32([-3, -1e-30, 0, 1e-30, 2])
    relu = np.float32([[-np.inf, -np.inf, -np.inf, 1e-30, 2], [0, 0, 0, 1e-30, 2]])
    assert_array_equal(evaluation.equally_activated(lambda x: np.maximum(x, 0), scores), relu)
    assert_array_equal(evaluation.equally_activated(lambda x: x, scores), [scores, scores])


def test_a_score_that_is_not_a_number_has_bounds_that_are_not_numbers():
    with np.errstate(invalid='ignore'):
        low, high = evaluation.equally_activated(np.tanh, np.float32([1, np.nan]))
    assert np.isnan(low[1]) and np.isnan(high[1]) and np.isfinite([low[0], high[0]]).all()


# --- Other models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('model', [
    baselines.Pop(top_n=5), baselines.SessionPop(), baselines.ItemKNN(n_sims=5),
    baselines.BPR(n_factors=4, n_iterations=1)], ids=lambda model: type(model).__name__)
@all_items_or_some
def test_a_baseline_that_only_has_predict_next_gets_the_same_ranks(model, candidates, tie_policy):
    model.fit(TRAIN)
    items = None if candidates is None else model.items_[candidates]
    assert_array_equal(next_item_ranks(Only(model, 'predict_next'), FEW, items, tie_policy=tie_policy),
                       next_item_ranks(model, FEW, items, tie_policy=tie_policy))


# --- Order, and test data of all kinds ------------------------------------------------------------------------------


def test_ranks_are_ordered_by_session_and_time_whatever_the_order_of_the_rows():
    model = FixedScores(a=4, b=3, c=2, d=1)
    log = click_log('aabcd', 'adc').assign(SessionId=[7] * 5 + [3] * 3)
    assert next_item_ranks(model, log).tolist() == [4, 3, 1, 2, 3, 4]
    for seed in range(5):
        assert next_item_ranks(model, log.sample(frac=1, random_state=seed)).tolist() == [4, 3, 1, 2, 3, 4]


@pytest.mark.parametrize('options', [{}, dict(tie_policy='tiebreaking'), dict(carry_states=True)], ids=str)
def test_an_item_that_is_written_in_two_ways_is_ranked_once(top1_model, options):
    once, text = top1_model.items_[SOME].tolist(), TEST.assign(ItemId=TEST.ItemId.astype(str))
    expected = next_item_ranks(top1_model, TEST, once, **options)
    top1_model.predict_next_batch([0], once[:1], None, 1)  # ends the sessions that are carried over
    assert_array_equal(next_item_ranks(top1_model, text, [str(once[0]), *once], **options), expected)


def test_one_event_sessions_predict_nothing(top1_model):
    a, b, c = top1_model.items_[:3]
    expected = next_item_ranks(top1_model, click_log([a, b], [b, c, a]))
    for batch_size in (1, 2, 100):
        ranks = next_item_ranks(top1_model, click_log([c], [a, b], [c], [a], [b, c, a], [b]), batch_size=batch_size)
        assert_array_equal(ranks, expected)


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('log, options, message', [
    (TEST, dict(tie_policy='random'),
     "tie_policy='random': must be one of 'standard', 'conservative', 'median', 'tiebreaking'"),
    (TEST, dict(hit_rule='<='), "hit_rule='<=': must be one of 'rank<=cut_off', 'rank<cut_off'"),
    (TEST, dict(cut_off=0), 'cut_off=0'),
    (TEST, dict(batch_size=0), 'batch_size=0'),
    (TEST, dict(items=[]), 'items=[]'),
    (TEST, dict(break_ties=True, tie_policy='median'), "break_ties=True contradicts tie_policy='median'"),
    (TEST, dict(session_key='user'), "no column 'user'"),
    (TEST, dict(item_key='page'), "no column 'page'"),
    (TEST, dict(time_key='when'), "no column 'when'"),
    (click_log([1], [1]), {}, 'single event'),
    (TEST[:0], {}, 'no events'),
    (TEST.assign(ItemId=TEST.ItemId.where(TEST.index != 3)), {}, "'ItemId' has missing values, the first in row 3"),
], ids=lambda value: value if isinstance(value, str) else '')
def test_bad_arguments_and_test_data_of_the_evaluation_are_named(top1_model, log, options, message):
    with pytest.raises(ValueError) as error:
        evaluation.evaluate_sessions_batch(top1_model, log, **options)
    assert message in str(error.value)


# --- Foreign models, scores that are no numbers ---------------------------------------------------------------------


class MinusId:
    """A model with nothing but `predict_next_batch`, which scores each of its items with minus its id."""

    def predict_next_batch(self, session_ids, input_item_ids, predict_for_item_ids=None, batch=100):
        items = np.array([10, 11, 12] if predict_for_item_ids is None else predict_for_item_ids)
        return pd.DataFrame(np.tile(-items[:, None], batch), index=items)


def test_a_model_without_items_is_ranked_among_the_items_that_it_returns():
    log = click_log([10, 11], [10, 12], [11, 12])
    assert next_item_ranks(MinusId(), log).tolist() == [2, 3, 3]
    assert evaluation.evaluate_sessions_batch(MinusId(), log, None, 2) == pytest.approx((1 / 3, 1 / 6))
    assert next_item_ranks(MinusId(), log, [11]).tolist() == [1, 2, 2]
    with pytest.raises(ValueError, match='prediction 1: the scores of MinusId lack the next item, 13'):
        next_item_ranks(MinusId(), click_log([10, 11, 13]))


@pytest.mark.parametrize('call, error, message', [
    (lambda model, log: next_item_ranks(model, log), ValueError,
     'items=None: a Model has neither items_ nor predict_next_batch; pass the ids to rank among'),
    (lambda model, log: evaluation.next_item_ranks_with_misses(model, log), ValueError, 'a Model has no items_'),
    (lambda model, log: next_item_ranks(model, log, carry_states=True), ValueError, 'carry_states=True: a Model has'),
    (lambda _model, log: next_item_ranks(log, log), TypeError, 'DataFrame has neither predict_next nor'),
], ids=['no items', 'misses', 'carried states', 'no model'])
def test_what_a_model_lacks_is_named(call, error, message):
    class Model:
        def predict_next(self, session_id, input_item_id, predict_for_item_ids):
            return pd.Series(1.0, index=predict_for_item_ids)

    log = click_log('ab')
    assert next_item_ranks(Model(), log, ['a', 'b'], tie_policy='conservative').tolist() == [2]
    with pytest.raises(error, match=message):
        call(Model(), log)


@pytest.mark.parametrize('evaluate', [
    lambda: baselines.Pop().predict_next(1, 1, [1]), lambda: evaluation.evaluate_sessions(baselines.Pop(), TEST, TRAIN),
    lambda: evaluation.evaluate_sessions(baselines.Pop(), TEST, TRAIN, tie_policy='standard'),
    lambda: evaluation.evaluate_sessions_batch(GRU4Rec([3]), TEST),
    lambda: evaluation.evaluate_sessions_batch(GRU4Rec([3]), TEST, break_ties=True),
    lambda: evaluation.evaluate_sessions_batch(GRU4Rec([3]), TEST, carry_states=True),
    lambda: GRU4Rec([3]).predict_next_batch([1], [1], None, 1), lambda: GRU4Rec([3]).initial_states(1),
    lambda: GRU4Rec([3]).next_states(np.array([0]), np.array([True]), {}),
    lambda: GRU4Rec([3]).weights(), lambda: GRU4Rec([3]).optimizer_state()])
def test_a_model_that_is_not_trained_says_so_whatever_it_is_asked(evaluate):
    with pytest.raises(RuntimeError, match='is not trained yet: call fit first'):
        evaluate()
