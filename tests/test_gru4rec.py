"""The estimator: arguments, weights, progress, errors, losses that are not finite, and that it learns."""
import contextlib
import copy
import gc
import re
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from common import (
    CASES,
    CROSS_ENTROPY_CASE,
    FAST_CASE,
    TRAIN,
    assert_same_bits,
    click_log,
    few_items_log,
    fixed_masks,
    small_model,
    state_of,
)
from numpy_gru4rec import NumpyGRU4Rec, minibatches

import evaluation
import gru4rec
from gru4rec import GRU4Rec
from gru4rec_pytensor import arguments as argument_checks
from gru4rec_pytensor import later

LOG = few_items_log()
# Each step multiplies every weight by 1 - 0.1 * 100 = -9 or more: they overflow after about 24 steps.
EXPLODING = dict(loss='bpr', final_act='linear', adapt=None, learning_rate=0.1, lmbd=100.0)


def later_model(**arguments):
    """An untrained model with the later release's constructor."""
    with warnings.catch_warnings(action='ignore'):  # of losses with the meaning of 2016
        return later.GRU4Rec(**dict(layers=[4], n_epochs=2, batch_size=6, n_sample=2, backend='python') | arguments)


@pytest.fixture(scope='module')
def two_layers():
    return small_model(layers=[4, 3], momentum=0.2).fit(LOG)


# --- Arguments and attributes ---------------------------------------------------------------------------------------


def test_arguments_have_the_names_order_and_defaults_of_the_release():
    model = GRU4Rec([100])
    assert vars(model) == dict(
        layers=[100], n_epochs=10, batch_size=50, dropout_p_hidden=0.4, learning_rate=0.05, momentum=0.0,
        adapt='adagrad', decay=0.9, grad_cap=0, sigma=0, init_as_normal=False, reset_after_session=True, loss='top1',
        hidden_act='tanh', final_act=None, train_random_order=False, lmbd=0.0,
        session_key='SessionId', item_key='ItemId', time_key='Time', input_mode='item', session_decay=0.5,
        embedding=None, unit='gru', input_to_all_layers=False, feedforward=(), negatives='minibatch',
        equal_times='item', n_sample=0, sample_alpha=0.75, sample_store=10_000_000, bpreg=1.0, logq=0.0,
        constrained_embedding=False, dropout_p_embed=0.0, time_sort=False, drop_tail=True, repeats='each', seed=42,
        backend='auto')
    in_order = [[3], 2, 4, 0.1, 0.2, 0.3, 'rmsprop', 0.8, 1, 0.5, True, False, 'bpr', 'relu', 'linear', True, 0.6,
                'a', 'b', 'c']
    assert list(vars(GRU4Rec(*in_order)).values())[:len(in_order)] == in_order
    with pytest.raises(TypeError):
        GRU4Rec(*in_order, 42)


def test_weights_have_the_names_and_shapes_of_the_release(two_layers):
    shapes = {name: value.shape for name, value in two_layers.weights().items()}
    assert shapes == dict(
        Wx0=(5, 4), Wr0=(5, 4), Wz0=(5, 4), Wh0=(4, 4), Whr0=(4, 4), Whz0=(4, 4), Bh0=(4,), Br0=(4,), Bz0=(4,),
        Wx1=(4, 3), Wr1=(4, 3), Wz1=(4, 3), Wh1=(3, 3), Whr1=(3, 3), Whz1=(3, 3), Bh1=(3,), Br1=(3,), Bz1=(3,),
        Wy=(5, 3), By=(5,))
    assert {value.dtype.name for value in state_of(two_layers).values()} == {'float32'}


def test_weights_and_optimiser_state_are_copies(two_layers):
    before = state_of(two_layers)
    for value in state_of(two_layers).values():
        value += 1
    assert_same_bits(state_of(two_layers), before)


@pytest.mark.parametrize('arguments', [dict(), dict(sigma=0.3), dict(init_as_normal=True), dict(seed=3)],
                         ids=['uniform', 'sigma', 'normal', 'seed'])
def test_initial_weights_are_drawn_from_the_seed_to_the_bit(arguments):
    model = small_model(**arguments, layers=[4, 3], n_epochs=1, adapt=None, learning_rate=1e-30).fit(LOG)
    expected = NumpyGRU4Rec([4, 3], **arguments, dtype='float32')
    expected.initialise(5, np.random.RandomState(expected.seed))
    matrices = [name for name, value in expected.weights.items() if value.ndim == 2]
    weights = model.weights()
    assert_same_bits({name: weights[name] for name in matrices}, {name: expected.weights[name] for name in matrices})


def test_progress_is_told_after_every_chunk(monkeypatch):
    monkeypatch.setattr(gru4rec, 'chunk_length', lambda settings: 5)
    told = []
    model = small_model().fit(LOG, callback=told.append)
    n = len(minibatches(LOG.groupby('SessionId').size().tolist(), 6))
    chunks = [*range(5, n, 5), n]
    assert len(chunks) > 1
    assert [(p.epoch, p.n_epochs, p.minibatches, p.events, p.epoch_ends) for p in told] == [
        (epoch, 2, done, 6 * done, done == n) for epoch in (0, 1) for done in chunks]
    assert {p.total_events for p in told} == {len(LOG) - LOG.SessionId.nunique()}
    assert [told[k].loss for k in (len(chunks) - 1, -1)] == pytest.approx(model.epoch_losses_, rel=1e-6)


def test_the_length_of_a_chunk_does_not_change_the_training(monkeypatch):
    arguments = dict(reset_after_session=False, train_random_order=True, dropout_p_hidden=0.25)
    masks = fixed_masks([4], 6, 0.25)
    expected = state_of(small_model(**arguments).fit(LOG, dropout_masks=masks))
    monkeypatch.setattr(gru4rec, 'chunk_length', lambda settings: 3)
    assert_same_bits(state_of(small_model(**arguments).fit(LOG, dropout_masks=masks)), expected)


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, value, allowed', [
    ('layers', [], 'at least one layer'), ('layers', 100, 'a list of numbers of units'), ('layers', [4.5], 'a list'),
    ('layers', [0], 'a list'),
    ('n_epochs', 0, 'a whole number of at least 1'), ('n_epochs', 2.5, 'a whole number'),
    ('batch_size', -1, 'a whole number of at least 1'),
    ('dropout_p_hidden', 1, 'at least 0 and below 1'), ('dropout_p_hidden', -0.1, 'at least 0 and below 1'),
    ('dropout_p_hidden', None, 'at least 0 and below 1'),
    ('learning_rate', 0, 'a finite number above 0'), ('learning_rate', 'fast', 'a finite number above 0'),
    ('learning_rate', float('nan'), 'a finite number above 0'),
    ('learning_rate', float('inf'), 'a finite number above 0'),
    ('momentum', 1, 'at least 0 and below 1'), ('decay', 1.5, 'at least 0 and below 1'),
    ('grad_cap', -1, 'at least 0'), ('sigma', -1, 'at least 0'), ('lmbd', -0.1, 'at least 0'),
    ('adapt', 'adam', "'adagrad', 'rmsprop', None"), ('loss', 'hinge', "'top1', 'bpr', 'cross-entropy'"),
    ('hidden_act', 'softmax', "'tanh', 'linear', 'relu'"), ('final_act', 'softmax', "'elu-X', 'selu-X-Y'"),
    ('final_act', 'elu', 'such as elu-0.5'), ('final_act', 'elu--1', 'of at least 0'), ('final_act', 3, "'tanh'"),
    ('hidden_act', 'selu-1', "'selu-X-Y'"), ('hidden_act', ['tanh'], "'tanh', 'linear'"),
    ('n_sample', -1, 'a whole number of at least 0'),
    ('sample_alpha', -1, 'at least 0'), ('bpreg', -1, 'at least 0'), ('logq', 'one', 'at least 0'),
    ('dropout_p_embed', 1, 'at least 0 and below 1'), ('dropout_p_embed', 0.5, 'needs embedding'),
    ('constrained_embedding', 'no', 'True or False'), ('time_sort', 2, 'True or False'),
    ('drop_tail', None, 'True or False'), ('sample_store', 1.5, 'a whole number'),
    ('backend', 'c', "'auto', 'numba', 'jax', 'python'"),
    ('reset_after_session', 'no', 'True or False'), ('init_as_normal', 3, 'True or False'),
    ('input_mode', 'basket', "one of 'item', 'session'"), ('unit', 'transformer', "one of 'gru', 'lstm', 'rnn'"),
    ('session_decay', 1, 'a number of at least 0 and below 1'), ('embedding', 0, 'a whole number of at least 1'),
    ('feedforward', [0], 'a list of numbers of units'), ('feedforward', 10, 'a list of numbers of units'),
    ('input_to_all_layers', 'yes', 'True or False'),
    ('seed', -1, 'a whole number from 0'), ('seed', 'x', 'a whole number'), ('seed', 1.5, 'a whole number'),
])
def test_a_bad_argument_is_named_with_its_value_and_what_is_allowed(name, value, allowed):
    model = small_model(**{name: value})  # the constructor stores what it gets
    with pytest.raises((ValueError, TypeError)) as error:
        model.fit(LOG)
    assert f'{name}={value!r}' in str(error.value)
    assert allowed in str(error.value)


def test_a_store_of_negatives_holds_two_minibatches_at_least():
    gru4rec.check_arguments(small_model(n_sample=5, sample_store=10))
    with pytest.raises(ValueError, match='sample_store=9: must hold at least two mini-batches, .* = 10'):
        gru4rec.check_arguments(small_model(n_sample=5, sample_store=9))


@pytest.mark.parametrize('log, message', [
    (LOG.drop(columns='SessionId'), "no column 'SessionId'"),
    (LOG.drop(columns='ItemId'), "no column 'ItemId'"),
    (LOG.drop(columns='Time'), "no column 'Time'"),
    (LOG[:0], 'no events'),
    (LOG.assign(ItemId=LOG.ItemId.where(np.arange(len(LOG)) != 4)), "'ItemId' has missing values, the first in row 4"),
    (LOG.assign(SessionId=LOG.SessionId.where(np.arange(len(LOG)) != 4)), "'SessionId' has missing values"),
    (LOG.assign(Time=LOG.Time.where(np.arange(len(LOG)) != 4)), "'Time' has missing values"),
    (click_log('ab', 'ab', 'ab', 'ab', 'ab'), 'batch_size=6'),
    (click_log(*['a'] * 20), 'batch_size=6'),
    (click_log(*['a'] * 20, *['ab'] * 5), 'batch_size=6'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_bad_training_data_is_explained(log, message):
    with pytest.raises(ValueError) as error:
        small_model().fit(log)
    assert message in str(error.value)


@pytest.mark.parametrize('arguments, n_items, reason', [
    (dict(batch_size=1), 5, 'with batch_size=1 there are no other targets to rank a target among'),
    (dict(batch_size=1, negatives='uniform'), 5, 'with batch_size=1 there are no other targets'),
    (dict(batch_size=2, loss='mrr'), 5, "with batch_size=2 .* loss='mrr' sees which is higher"),
    (dict(learning_rate=1e-46), 5, 'learning_rate=1e-46 is zero as a float32'),
    (dict(), 1, 'the training data has one item only'),
    (dict(batch_size=1, n_sample=1), 5, None), (dict(batch_size=2, n_sample=1, loss='mrr'), 5, None)], ids=str)
def test_a_training_that_cannot_learn_anything_says_why(arguments, n_items, reason):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        argument_checks.warn_of_constant_loss(small_model(**arguments), n_items)
    assert len(caught) == (reason is not None)
    assert not caught or re.match(f'nothing can be learned: {reason}', str(caught[0].message))


def test_warnings_of_a_training_point_at_the_line_that_asks_for_it():
    ways = [lambda model: model.fit(LOG), lambda model: model.fit(LOG, retrain=True),
            lambda model: model.fit_more(LOG)]
    for arguments, message in ((dict(learning_rate=1e-46), 'nothing can be learned'), (EXPLODING, 'training stopped')):
        for model in (small_model(**arguments, n_epochs=4), later_model(**arguments, n_epochs=4)):
            for way in ways:
                model.error_during_train = False  # for the next way
                with warnings.catch_warnings(record=True) as caught, np.errstate(all='ignore'):
                    warnings.simplefilter('always')
                    way(model)
                [place] = [(one.filename, one.lineno) for one in caught if message in str(one.message)]
                assert place == (__file__, way.__code__.co_firstlineno)


@pytest.mark.parametrize('model, names', [
    (small_model(batch_size=1, drop_tail=False), ('batch_size=1', 'drop_tail=False')),
    (small_model(batch_size=1, loss='bpr-max'), ('batch_size=1', "loss='bpr-max'")),
    (small_model(logq=1, negatives='uniform'), ('logq=1', "negatives='uniform'")),
    (later_model(batch_size=1, n_sample=0), ('batch_size=1', 'n_sample=0'))],
    ids=['no mini-batch', 'no softmax', 'not drawn by popularity', 'later'])
def test_arguments_that_exclude_one_another_are_an_error_that_names_the_two(model, names):
    with pytest.raises(ValueError) as error:
        model.fit(LOG)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize('loss', gru4rec.LOSSES)
@pytest.mark.parametrize('batch_size', [1, 2, 3])
def test_a_loss_is_constant_where_the_warning_says_so_and_nowhere_else(loss, batch_size):
    x = pt.dmatrix('scores')
    value = pytensor.function([x], gru4rec.LOSSES[loss](x), mode=pytensor.compile.mode.Mode('py', None))
    scores = np.random.RandomState(0).randn(20, batch_size, batch_size)
    moved = max(abs(value(x) - value(x + 0.3 * x ** 3)) for x in scores)  # others, in the same order
    model = small_model(loss=loss, batch_size=batch_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        argument_checks.warn_of_constant_loss(model, 10)
    assert len(caught) == (not moved >= 1e-3)  # a softmax over no negatives is not a number


@pytest.mark.parametrize('masks, p', [
    ([np.ones((6, 4))], 0.0), ([np.ones((6, 5))], 0.5), ([np.ones((6, 4))] * 2, 0.5), ([], 0.5)],
    ids=['no dropout', 'wrong shape', 'too many', 'none'])
def test_masks_that_do_not_fit_the_layers_are_explained(masks, p):
    with pytest.raises(ValueError, match=r'dropout_masks.*\(6, 4\)'):
        small_model(dropout_p_hidden=p).fit(LOG, dropout_masks=masks)


@pytest.mark.parametrize('negatives, complaint', [
    ([[0, 4, 4]] * 7, None), ([[0, 4, 4]] * 6, r'shape .* = \(7, 3\)'), ([[0, 4]] * 7, r'shape .* = \(7, 3\)'),
    ([[0, 4, 5]] * 7, 'integers from 0 to 4'), ([[-1, 4, 4]] * 7, 'integers from 0'), ([[0.5, 4, 4]] * 7, 'integers')])
def test_given_negatives_that_are_no_items_or_do_not_fit_are_explained(negatives, complaint):
    with pytest.raises(ValueError, match=complaint) if complaint else contextlib.nullcontext():
        found = argument_checks.checked_negatives(negatives, n_minibatches=7, n_sample=3, n_items=5)
        assert found.tolist() == negatives


# --- Losses that are not finite -------------------------------------------------------------------------------------


def fit_quietly(model, log=LOG):
    """Trained, and the warnings of the training."""
    with warnings.catch_warnings(record=True) as caught, np.errstate(all='ignore'):
        warnings.simplefilter('always')
        model.fit(log)
    return model, [warning for warning in caught if 'training' in str(warning.message)]


def assert_cannot_predict(model):
    for call in (lambda: model.predict_next_batch([1], [10], None, 1), lambda: evaluation.next_item_ranks(model, LOG),
                 lambda: model.next_states(np.array([0]), np.array([True]), model.initial_states(1))):
        with pytest.raises(RuntimeError, match='not finite'):
            call()


@pytest.mark.parametrize('lmbd', [70.0, 100.0, 150.0])
def test_training_stops_at_the_first_loss_that_is_not_finite_and_says_where(lmbd):
    model, caught = fit_quietly(small_model(**{**EXPLODING, 'lmbd': lmbd}, n_epochs=4))
    with np.errstate(all='ignore'):
        expected = NumpyGRU4Rec([4], 4, 6, 0, **{**EXPLODING, 'lmbd': lmbd}, dtype='float32').fit(LOG)
    per_epoch = len(expected.costs) // 4
    epoch, minibatch = divmod(int(np.argmin(np.isfinite(expected.costs))), per_epoch)
    assert epoch > 1
    [warning] = caught
    assert warning.category is RuntimeWarning
    assert f'epoch {epoch}, mini-batch {minibatch} is nan' in str(warning.message)
    assert model.error_during_train
    assert len(model.epoch_losses_) == epoch
    assert_cannot_predict(model)


def test_a_model_can_be_trained_again_after_an_error():
    model, _caught = fit_quietly(small_model(**EXPLODING, n_epochs=4))
    model.lmbd = 0.0
    assert fit_quietly(model) == (model, []) and not model.error_during_train
    assert_same_bits(state_of(model), state_of(small_model(**{**EXPLODING, 'lmbd': 0.0}, n_epochs=4).fit(LOG)))


def test_weights_that_overflow_in_the_very_last_minibatch_do_not_predict():
    # The losses of three epochs are finite, but the last update was not: the first loss of a fourth would be NaN.
    model, caught = fit_quietly(small_model(**EXPLODING, n_epochs=3))
    assert len(model.epoch_losses_) == 3 and np.isfinite(model.epoch_losses_).all()
    assert not all(np.isfinite(value).all() for value in model.weights().values())
    assert model.error_during_train and len(caught) == 1
    assert_cannot_predict(model)


@pytest.mark.parametrize('backend', [pytest.param('numba', marks=pytest.mark.slow), 'python'])
def test_initial_weights_near_the_largest_float_stop_both_backends_at_once(backend):
    # sigma is not compiled in, so that the recorded case's compiled step serves
    arguments = CASES[CROSS_ENTROPY_CASE]['arguments']
    model, [warning] = fit_quietly(GRU4Rec(**arguments, sigma=1e38, backend=backend), TRAIN)
    assert 'epoch 0, mini-batch 0 is' in str(warning.message)
    assert model.error_during_train and model.epoch_losses_ == []


# --- Memory ---------------------------------------------------------------------------------------------------------


def test_the_arrays_of_a_model_that_is_gone_are_freed_though_its_compiled_code_stays():
    gc.freeze()  # all that is there is no garbage
    model = small_model(momentum=0.2).fit(LOG)
    shallow, variables = copy.copy(model), [variable for group in model.variables_ for variable in group.values()]
    before = state_of(model)
    model.fit(LOG[:-20])  # has new variables
    assert_same_bits(state_of(shallow), before)
    del shallow
    gc.collect()
    gc.unfreeze()
    assert not any(isinstance(cell, np.ndarray) for variable in variables for cell in variable.container.storage)
    assert state_of(model)['Wy'].shape == before['Wy'].shape


# --- Learning -------------------------------------------------------------------------------------------------------


N_ITEMS = 20


def walks(n_sessions, step, seed):
    """Sessions of 2 to 6 items, each the one that `step(item, rng)` gives after the item before it."""
    rng = np.random.RandomState(seed)
    sessions = []
    for _ in range(n_sessions):
        session = [rng.randint(N_ITEMS)]
        for _ in range(rng.randint(1, 6)):
            session.append(step(session[-1], rng))
        sessions.append(session)
    return click_log(*sessions)


def learned(step):
    """Recall@1, Recall@5 and the number of predictions, on new sessions, for the model of the recorded case."""
    arguments = {**CASES[FAST_CASE]['arguments'], 'n_epochs': 20}
    model = GRU4Rec(**arguments).fit(walks(2000, step, seed=0))
    assert model.n_items == N_ITEMS
    ranks = evaluation.next_item_ranks(model, walks(1000, step, seed=1))
    return evaluation.recall_mrr(ranks, 1)[0], evaluation.recall_mrr(ranks, 5)[0], len(ranks)


def test_a_cycle_of_items_is_learned():
    recall_at_1, _recall_at_5, _n = learned(lambda item, rng: (item + 7) % N_ITEMS)
    assert recall_at_1 > 0.95


def test_noise_is_not_learned():
    recall_at_1, recall_at_5, n = learned(lambda item, rng: rng.randint(N_ITEMS))
    for recall, chance in ((recall_at_1, 1 / N_ITEMS), (recall_at_5, 5 / N_ITEMS)):
        assert abs(recall - chance) < 4 * np.sqrt(chance * (1 - chance) / n)


def test_more_than_the_last_item_is_learned():
    # What follows item 1 depends on the item before it.
    log = click_log(*[[0, 1, 2], [3, 1, 4]] * 30)
    model = small_model(layers=[8], n_epochs=40, batch_size=10, loss='cross-entropy', learning_rate=0.1).fit(log)
    ranks = evaluation.next_item_ranks(model, click_log([0, 1, 2], [3, 1, 4]), items=[2, 4])
    assert ranks[[1, 3]].tolist() == [1, 1]
