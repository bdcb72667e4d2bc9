"""Against recorded runs of the authors' 2016 release, and as a drop-in for it in scripts that were written for it."""
import json

import numpy as np
import pandas as pd
import pytest
from common import (
    ARRAYS,
    CASES,
    CROSS_ENTROPY_CASE,
    FAST_BACKENDS,
    FAST_CASE,
    GOLDEN,
    TEST,
    TRAIN,
    assert_close,
    assert_same_bits,
    click_log,
    few_items_log,
    needs_jax,
    ranks_by_hand,
    recorded,
    scores_by_hand,
    small_model,
    state_of,
    trained_as_recorded,
)
from numpy.testing import assert_allclose, assert_array_equal

import baselines
import evaluation
import gru4rec
from gru4rec import GRU4Rec, session_parallel_minibatches
from gru4rec_pytensor.events import index_by_appearance, session_order

DROPOUT = json.loads((GOLDEN / 'dropout.json').read_text())
with np.load(GOLDEN / 'dropout.npz') as archive:
    DROPOUT_ARRAYS = dict(archive)

# --- Recorded runs --------------------------------------------------------------------------------------------------

every_case = pytest.mark.parametrize('case, backend', [
    *[(case, 'python') for case in CASES],
    (FAST_CASE, 'numba'), pytest.param(CROSS_ENTROPY_CASE, 'numba', marks=pytest.mark.slow),
    *[pytest.param(case, 'jax', marks=[needs_jax, *[pytest.mark.slow] * (case != FAST_CASE)]) for case in CASES]])


def test_items_are_numbered_and_minibatches_formed_as_recorded():
    rows, offsets = session_order(TRAIN)
    index, ids = index_by_appearance(TRAIN.ItemId)
    position = np.concatenate([chunk.position for chunk in session_parallel_minibatches(offsets, 8)])
    n_epochs = 3
    assert_array_equal(ids, ARRAYS['item_ids'])
    assert_array_equal(np.tile(index[rows][position], (n_epochs, 1)), ARRAYS['X'])
    assert_array_equal(np.tile(index[rows][position + 1], (n_epochs, 1)), ARRAYS['Y'])


@every_case
def test_epoch_losses_are_those_recorded(case, backend):
    model = trained_as_recorded(case, backend)
    assert_allclose(model.epoch_losses_, CASES[case]['epoch_losses'], rtol=0, atol=1e-6)


@every_case
def test_weights_accumulators_and_velocities_are_those_recorded(case, backend):
    model = trained_as_recorded(case, backend)
    state = {kind: recorded(case, kind) for kind in ('weight', 'acc', 'vel')}
    expected = {**state['weight'], **{f'{kind}_{name}': value for kind in ('acc', 'vel')
                                      for name, value in state[kind].items()}}
    assert_close(state_of(model), expected, 1e-5)


@every_case
def test_scores_of_all_items_are_those_recorded(case, backend):
    model = trained_as_recorded(case, backend)
    scores, _targets = scores_by_hand(model, TEST)
    assert_array_equal(model.items_, ARRAYS['item_ids'])
    assert_allclose(scores[ARRAYS['score_rows']], ARRAYS[f'{case}/scores'], rtol=0, atol=1e-5)


@every_case
def test_recall_and_mrr_are_those_recorded_for_every_rule_policy_and_cut_off(case, backend):
    model = trained_as_recorded(case, backend)
    rules = {'<': 'rank<cut_off', '<=': 'rank<=cut_off'}
    for entry in CASES[case]['evaluation']:
        recall, mrr = evaluation.evaluate_sessions_batch(
            model, TEST, cut_off=entry['cut_off'], tie_policy=entry['ties'], hit_rule=rules[entry['rule']])
        assert recall == entry['recall']
        assert mrr == pytest.approx(entry['mrr'], rel=0, abs=1e-15)  # the order of the sum decides the last bit


# --- A recorded run with the release's own random masks --------------------------------------------------------------


@pytest.mark.parametrize('backend', ['python', *FAST_BACKENDS])
def test_random_masks_are_those_of_the_release(backend):
    """Nothing but the seed decides them."""
    model = GRU4Rec(**DROPOUT['arguments'], backend=backend).fit(TRAIN)
    assert_allclose(model.epoch_losses_, DROPOUT['epoch_losses'], rtol=0, atol=2e-6)  # printed with six digits
    recorded_weights = {name.removeprefix('weight_'): array for name, array in DROPOUT_ARRAYS.items()
                        if name.startswith('weight_')}
    assert_close(model.weights(), recorded_weights, 1e-5)
    scores, _targets = scores_by_hand(model, TEST)
    assert_allclose(scores[DROPOUT_ARRAYS['score_rows']], DROPOUT_ARRAYS['scores'], rtol=0, atol=1e-5)
    for cut_off, (recall, mrr) in DROPOUT['evaluation'].items():
        assert evaluation.evaluate_sessions_batch(model, TEST, cut_off=int(cut_off)) == pytest.approx(
            (recall, mrr), rel=0, abs=1e-15)


# --- A script that was written for the release ----------------------------------------------------------------------


def test_a_script_written_for_the_release_runs_unchanged():
    data, valid = TRAIN.copy(), TEST.copy()

    gru = gru4rec.GRU4Rec(layers=[10], loss='top1', batch_size=8, dropout_p_hidden=0.5, learning_rate=0.05,
                          momentum=0.0, n_epochs=3)
    gru.fit(data)
    res = evaluation.evaluate_sessions_batch(gru, valid, None)
    print(f'Recall@20: {res[0]}')
    print(f'MRR@20: {res[1]}')
    iids = valid.ItemId.values[:4]
    preds = gru.predict_next_batch(np.array([1, 2, 3, 4]), iids, None, 4)
    preds_some = gru.predict_next_batch(np.array([1, 2, 7, 4]), iids, data.ItemId.unique()[:5], 4)

    pop = baselines.Pop()
    pop.fit(data)
    res_pop = evaluation.evaluate_sessions(pop, valid, data)

    assert 0.1 < res[1] < res[0] < 1 and 0.1 < res_pop[1] < res_pop[0] < 1
    assert preds.shape == (60, 4) and preds_some.shape == (5, 4)
    assert preds.index.tolist() == ARRAYS['item_ids'].tolist()
    assert preds_some.index.tolist() == ARRAYS['item_ids'][:5].tolist()


def test_evaluation_of_baselines_breaks_ties_by_noise_and_of_networks_does_not(top1_model):
    pop = baselines.Pop(top_n=1).fit(TRAIN)  # 59 items tie
    for policy, expected in (('tiebreaking', True), ('standard', False), ('conservative', False)):
        ranks = evaluation.next_item_ranks(pop, TEST, TRAIN.ItemId.unique(), tie_policy=policy)
        same = evaluation.evaluate_sessions(pop, TEST, TRAIN, cut_off=10) == evaluation.recall_mrr(ranks, 10)
        assert same == expected
    scores, targets = scores_by_hand(top1_model, TEST)
    ranks = ranks_by_hand(scores, targets, top1_model.items_)
    assert evaluation.evaluate_sessions_batch(top1_model, TEST, None, 10) == evaluation.recall_mrr(ranks, 10)
    noisy = evaluation.next_item_ranks(top1_model, TEST, tie_policy='tiebreaking')
    assert evaluation.evaluate_sessions_batch(top1_model, TEST, None, 10, break_ties=True) == \
        evaluation.recall_mrr(noisy, 10)


# --- predict_next_batch ---------------------------------------------------------------------------------------------


def after(model, *items):
    """Scores after the events of one session, all in one lane of a batch of 2."""
    for item in items:
        frame = model.predict_next_batch([f'session {items}', 'another'], [item, items[0]], None, 2)
    model.predict_next_batch(['end', 'end'], items[:1] * 2, None, 2)
    return frame[0].to_numpy()


@pytest.fixture
def three_items():
    return TRAIN.ItemId.unique()[:3].tolist()


def test_the_state_is_reset_where_the_session_id_changes_and_only_there(top1_model, three_items):
    a, b, c = three_items
    predict = top1_model.predict_next_batch
    expected = {items: after(top1_model, *items) for items in [(a, b), (b,), (b, c), (a, b, c)]}
    predict([1, 2], [a, a], None, 2)
    second = predict([1, 3], [b, b], None, 2)  # lane 0 continues its session, lane 1 starts one
    third = predict([1, 3], [c, c], None, 2)
    assert_allclose(second[0], expected[a, b], rtol=0, atol=1e-6)
    assert_allclose(second[1], expected[b,], rtol=0, atol=1e-6)
    assert_allclose(third[0], expected[a, b, c], rtol=0, atol=1e-6)
    assert_allclose(third[1], expected[b, c], rtol=0, atol=1e-6)
    assert np.abs(expected[a, b] - expected[b,]).max() > 1e-3  # so that the two can be told apart


def test_another_batch_size_starts_new_sessions(top1_model, three_items):
    a, b, _c = three_items
    fresh = after(top1_model, b)
    top1_model.predict_next_batch([1, 2], [a, a], None, 2)
    assert_allclose(top1_model.predict_next_batch([1, 2, 3], [b, b, b], None, 3)[0], fresh, rtol=0, atol=1e-6)


def test_training_starts_new_sessions():
    model = small_model(n_epochs=1).fit(few_items_log())
    expected = model.predict_next_batch([1, 2], [10, 20], None, 2)
    model.predict_next_batch([1, 2], [30, 0], None, 2)
    model.fit(few_items_log())
    assert_array_equal(model.predict_next_batch([1, 2], [10, 20], None, 2), expected)


def test_predict_for_item_ids_gives_the_asked_rows_in_the_asked_order(top1_model, three_items):
    a, b, c = three_items
    every = top1_model.predict_next_batch([1, 2], [a, b], None, 2)
    some = top1_model.predict_next_batch([3, 4], [a, b], [c, a], 2)
    assert some.index.tolist() == [c, a]
    assert_allclose(some, every.loc[[c, a]], rtol=0, atol=1e-6)


def test_cross_entropy_scores_are_a_softmax_over_the_asked_items():
    model = trained_as_recorded(CROSS_ENTROPY_CASE, 'python')
    a, b, c = model.items_[:3]
    every = model.predict_next_batch([1], [a], None, 1)[0]
    some = model.predict_next_batch([2], [a], [c, b], 1)[0]
    assert every.sum() == pytest.approx(1, abs=1e-6)
    assert_allclose(some, every.loc[[c, b]] / every.loc[[c, b]].sum(), rtol=0, atol=1e-6)
    shares = model.activate(np.log(np.float32([[1, 2, 3]])), np.array([[True, False, True]]))
    assert_allclose(shares, [[1 / 4, 0, 3 / 4]], rtol=1e-6)


def test_predict_next_batch_takes_100_sessions_unless_told_otherwise(top1_model):
    frame = top1_model.predict_next_batch(np.arange(100), TRAIN.ItemId.to_numpy()[:100])
    assert frame.shape == (60, 100)
    assert (frame.dtypes == 'float32').all()


@pytest.mark.parametrize('session_ids, item_ids, batch', [([1], [0, 0], 2), ([1, 2], [0], 2), ([1, 2], [0, 0], 100)])
def test_lists_that_do_not_fit_the_batch_are_an_error(top1_model, session_ids, item_ids, batch):
    items = top1_model.items_[item_ids]
    with pytest.raises(ValueError, match=f'batch={batch}'):
        top1_model.predict_next_batch(session_ids, items, None, batch)


# --- Ids ------------------------------------------------------------------------------------------------------------


OTHER_NAMES = {'SessionId': 'user', 'ItemId': 'page', 'Time': 'when'}


@pytest.mark.parametrize('changed, keys', [
    # 'session 0012' sorts as 12 does
    (lambda log: log.assign(SessionId=log.SessionId.map('session {:04d}'.format), ItemId=log.ItemId.map(str)), {}),
    (lambda log: log.assign(SessionId=log.SessionId * 10 - 3000, ItemId=-log.ItemId), {}),
    (lambda log: log.rename(columns=OTHER_NAMES), dict(session_key='user', item_key='page', time_key='when'))],
    ids=['strings', 'negative numbers', 'other columns'])
def test_ids_may_be_anything_and_columns_may_have_other_names(top1_model, changed, keys):
    model = GRU4Rec(**CASES['top1_adagrad_m00']['arguments'], **keys, backend='python').fit(changed(TRAIN))
    assert_same_bits(state_of(model), state_of(top1_model))
    assert_array_equal(model.items_, changed(TRAIN)[model.item_key].unique())
    assert evaluation.evaluate_sessions_batch(model, changed(TEST), **keys) == \
        evaluation.evaluate_sessions_batch(top1_model, TEST)


@pytest.mark.parametrize('call', [
    lambda model, known, unknown: model.predict_next_batch([1, 2], [known, unknown], None, 2),
    lambda model, known, unknown: model.predict_next_batch([1, 2], [known, known], [known, unknown], 2),
    lambda model, known, unknown: evaluation.evaluate_sessions_batch(model, click_log([known, unknown])),
    lambda model, known, unknown: evaluation.evaluate_sessions_batch(model, click_log([known, known]), [unknown]),
], ids=['input', 'predict_for_item_ids', 'test data', 'candidates'])
@pytest.mark.parametrize('unknown', [987654321, 'nothing'])
def test_unknown_items_are_named(top1_model, call, unknown):
    with pytest.raises(KeyError, match=f'{unknown}'):
        call(top1_model, int(top1_model.items_[0]), unknown)


# --- Frames, states and seeds ---------------------------------------------------------------------------------------


def test_frames_are_never_modified(three_items):
    train, test = TRAIN.assign(Extra='x').set_index(TRAIN.index + 5), TEST.sample(frac=1, random_state=1)
    train_before, test_before = train.copy(deep=True), test.copy(deep=True)
    model = GRU4Rec(**CASES['top1_adagrad_m00']['arguments'] | dict(n_epochs=1), backend='python').fit(train)
    candidates, session_ids, items = np.array(three_items), np.array([1, 2]), np.array(three_items[:2])
    evaluation.evaluate_sessions_batch(model, test, candidates)
    evaluation.evaluate_sessions_batch(model, test, break_ties=True)
    model.predict_next_batch(session_ids, items, candidates, 2)
    evaluation.evaluate_sessions(baselines.ItemKNN().fit(train), test, train)
    assert train.equals(train_before) and (train.index == train_before.index).all()
    assert test.equals(test_before) and (test.index == test_before.index).all()
    assert candidates.tolist() == three_items and session_ids.tolist() == [1, 2] and items.tolist() == three_items[:2]


def test_sessions_followed_by_hand_and_evaluations_do_not_disturb_one_another(top1_model, three_items):
    a, b, _c = three_items
    expected = after(top1_model, a, b)
    ranks = evaluation.next_item_ranks(top1_model, TEST)
    top1_model.predict_next_batch([1], [a], None, 1)
    assert_array_equal(evaluation.next_item_ranks(top1_model, TEST), ranks)
    assert_allclose(top1_model.predict_next_batch([1], [b], None, 1)[0], expected, rtol=0, atol=1e-6)


def test_carry_states_continues_the_states_of_the_evaluation_before(top1_model):
    """A lane that begins with the number of the session that it ended with is not zeroed, as in the release."""
    model, items = top1_model, top1_model.items_
    log = click_log(items[:4], items[4:8])  # sessions number 0 and 1, one for each of two lanes
    clean = evaluation.next_item_ranks(model, log, batch_size=2)
    first, second = (evaluation.next_item_ranks(model, log, batch_size=2, carry_states=True) for _ in range(2))
    twice = click_log(np.r_[items[:3], items[:4]], np.r_[items[4:7], items[4:8]])  # the last event is never an input
    scores, targets = scores_by_hand(model, twice, 2)
    expected = ranks_by_hand(scores, targets, items).reshape(2, 6)[:, 3:].ravel()
    assert_array_equal(first, clean)
    assert_array_equal(second, expected)
    assert (second != clean).any()
    assert_array_equal(evaluation.next_item_ranks(model, log, batch_size=2), clean)


def test_a_model_that_was_evaluated_is_trained_again_from_the_start_on_other_data():
    other = few_items_log(n_items=9, seed=1)
    arguments = dict(momentum=0.2, dropout_p_hidden=0.3, train_random_order=True)
    again, fresh = small_model(**arguments).fit(few_items_log()), small_model(**arguments).fit(other)
    evaluation.evaluate_sessions_batch(again, few_items_log())
    assert again.fit(other) is again
    assert_same_bits(state_of(again), state_of(fresh))
    assert_array_equal(again.items_, fresh.items_)
    assert again.epoch_losses_ == fresh.epoch_losses_
    assert_array_equal(evaluation.next_item_ranks(again, other), evaluation.next_item_ranks(fresh, other))


@pytest.mark.parametrize('arguments', [dict(), dict(dropout_p_hidden=0.3), dict(train_random_order=True)],
                         ids=['initial weights', 'dropout', 'random order'])
def test_a_seed_decides_every_bit_and_another_seed_gives_others(arguments):
    first, again, other = (state_of(small_model(**arguments, seed=seed).fit(few_items_log())) for seed in (1, 1, 2))
    assert_same_bits(first, again)
    for name in first:
        assert (first[name] != other[name]).any(), name


def test_the_global_random_state_is_neither_used_nor_changed():
    np.random.seed(1)
    first = state_of(small_model(dropout_p_hidden=0.3, train_random_order=True).fit(few_items_log()))
    drawn = np.random.rand()
    np.random.seed(1)
    assert np.random.rand() == drawn
    np.random.seed(2)
    assert_same_bits(state_of(small_model(dropout_p_hidden=0.3, train_random_order=True).fit(few_items_log())), first)


# --- Order of events ------------------------------------------------------------------------------------------------


def test_sessions_are_visited_in_the_order_of_their_ids_and_events_in_that_of_time():
    rows, offsets = session_order(click_log('ab', 'cd').assign(SessionId=[9, 9, 4, 4]))
    assert (rows.tolist(), offsets.tolist()) == ([2, 3, 0, 1], [0, 2, 4])
    log = click_log('edcba').assign(Time=[5, 3, 5, 1, 3])
    assert ''.join(log.ItemId.iloc[session_order(log)[0]]) == 'bdaec'  # equal times are left as they are in the frame,
    rows, _offsets = session_order(log, then_by=np.array([4, 3, 2, 1, 0]))  # or ordered by what is given: the letters
    assert ''.join(log.ItemId.iloc[rows]) == 'badce'


def tied_log():
    """Events of a session at one time, and the same at times in the frame's order."""
    log = few_items_log().sort_values(['SessionId', 'Time'])
    return log.assign(Time=0), log


def test_training_orders_equal_times_by_item_index_as_the_release_does():
    tied, _log = tied_log()
    index = pd.factorize(tied.ItemId)[0]  # by first appearance in the frame
    # The frame of the same order of first appearance, whose times say what is expected.
    model = small_model(n_epochs=1).fit(tied.assign(Time=index))
    assert_same_bits(state_of(small_model(n_epochs=1).fit(tied)), state_of(model))
    assert_same_bits(state_of(small_model(n_epochs=1).fit(tied).fit_more(tied)),
                     state_of(small_model(n_epochs=1).fit(tied).fit_more(tied.assign(Time=index))))


def test_training_keeps_the_order_of_the_frame_where_that_is_asked_for_and_evaluation_always_does():
    tied, log = tied_log()
    model, same = (small_model(n_epochs=1, equal_times='frame').fit(frame) for frame in (log, tied))
    assert_same_bits(state_of(same), state_of(model))
    assert (state_of(small_model(n_epochs=1).fit(tied))['Wy'] != state_of(same)['Wy']).any()
    assert_array_equal(evaluation.next_item_ranks(same, tied), evaluation.next_item_ranks(model, log))


def test_ids_of_mixed_types_stay_what_they_are_when_given_as_lists():
    log = few_items_log(n_items=4)
    log['ItemId'] = log.ItemId.map({0: 0, 10: 'ten', 20: 20, 30: 'thirty'}).astype(object)
    model = small_model().fit(log)
    frame = model.predict_next_batch([1, 'x'], [20, 'ten'], [0, 'thirty'], 2)
    assert frame.index.tolist() == [0, 'thirty']
    again = model.predict_next_batch(['1', 'x'], [20, 'ten'], [0, 'thirty'], 2)  # '1' is not the session 1
    assert_array_equal(again[0], frame[0])
    assert np.abs(again[1] - frame[1]).max() > 0
    with pytest.raises(KeyError, match='999'):
        model.predict_next_batch([1, 'x'], [999, 'ten'], None, 2)
    assert len(evaluation.next_item_ranks(model, log, items=[0, 'ten'])) == len(log) - log.SessionId.nunique()


def test_the_item_index_is_there_under_the_releases_name(top1_model):
    assert top1_model.itemidmap.index.tolist() == TRAIN.ItemId.unique().tolist()
    assert top1_model.itemidmap.tolist() == list(range(60))


def test_times_that_are_text_are_refused_since_their_order_is_not_that_of_time():
    log = few_items_log()
    with pytest.raises(TypeError, match="column 'Time' must hold numbers or timestamps, not text such as '"):
        small_model().fit(log.assign(Time=log.Time.astype(str)))
    with pytest.raises(TypeError, match="not text such as 'noon'"):
        small_model().fit(log.assign(Time=[*log.Time[:-1], 'noon']))
    moments = pd.to_datetime(log.Time, unit='s')
    assert_same_bits(state_of(small_model().fit(log.assign(Time=moments))), state_of(small_model().fit(log)))
