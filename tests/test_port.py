"""The authors' PyTorch code: its recorded runs, met by summed gradients of repeated items and its GRU; its weights."""
import functools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from common import (
    GOLDEN,
    PROMISE,
    TEST,
    TRAIN,
    assert_close,
    few_items_log,
    minibatches_recorded,
    needs_jax,
    recorded,
    small_model,
    state_of,
)
from numpy.testing import assert_allclose, assert_array_equal
from test_variants import TINY, NumpyVariant, untrained_reference

import gru4rec
from gru4rec import GRU4Rec
from gru4rec_pytensor import model_file, port

CASES = json.loads((GOLDEN / 'port.json').read_text())['cases']
with np.load(GOLDEN / 'port.npz') as archive:
    ARRAYS = dict(archive)
WITH_GRU_CELL = [case for case in CASES if f'{case}/init_Wx0' not in ARRAYS]
PROMISED = {'jax': 'bprmax_constrained_n8_m01', 'numba': 'bprmax_n8_m03'}

every_case = pytest.mark.parametrize('case, backend', [(case, 'python') for case in CASES] + [
    pytest.param(case, backend, marks=[PROMISE if PROMISED[backend] == case else pytest.mark.slow,
                                       *[needs_jax] * (backend == 'jax')])
    for backend in PROMISED for case in CASES])


def weights_of(case, kind):
    """Weights under the release's names, 'init' or 'final'."""
    arrays = recorded(case, kind, ARRAYS)
    if case in WITH_GRU_CELL:
        return port.weights_from_port(arrays)[1]
    return arrays | {'By': arrays['By'].reshape(-1)}


def arguments_of(case):
    """The arguments of a recorded run in our names."""
    config = dict(CASES[case])
    elu = config.pop('elu_param')
    return config | dict(final_act=f'elu-{elu}' if elu else None, embedding=config['embedding'] or None,
                         unit='gru-after' if case in WITH_GRU_CELL else 'gru', repeats='sum', drop_tail=False,
                         time_sort=True, equal_times='frame')


@functools.cache
def trained_as_recorded(case, backend):
    """A model trained as the PyTorch code was, from its initial weights, and the loss of each mini-batch."""
    def initial_weights(settings, rng):
        return model_file.join_parts(weights_of(case, 'init'), gru4rec.weight_layout(settings), 'float32')

    model = GRU4Rec(**arguments_of(case), backend=backend)
    with pytest.MonkeyPatch.context() as patch, minibatches_recorded() as chunks:
        patch.setattr(gru4rec, 'initial_weights', initial_weights)
        model.fit(TRAIN, sampled_negatives=ARRAYS.get(f'{case}/neg'))
    return model, np.concatenate([losses for losses, _given in chunks])


def all_lanes_until(case):
    """Number of mini-batches before the first lane leaves, or of all of them.

    From there on the PyTorch code takes the wrong number of lanes for logq.
    """
    lanes = ARRAYS[f'{case}/M']
    return int(np.argmax(lanes < lanes[0])) if CASES[case]['logq'] else len(lanes)


# --- Recorded runs --------------------------------------------------------------------------------------------------


@every_case
def test_the_loss_of_every_minibatch_is_that_recorded(case, backend):
    _model, losses = trained_as_recorded(case, backend)
    expected, until = ARRAYS[f'{case}/cost'], all_lanes_until(case)
    assert len(losses) == len(expected) and until > 50
    assert_allclose(losses[:until], expected[:until], rtol=0, atol=2e-6)


@every_case
def test_the_weights_after_three_epochs_are_those_recorded(case, backend):
    if CASES[case]['logq']:
        pytest.skip('weights were recorded after the lanes had left')
    model, _losses = trained_as_recorded(case, backend)
    assert_close(model.weights(), weights_of(case, 'final'), 2e-5)


# --- Repeats --------------------------------------------------------------------------------------------------------


class SummedReference(NumpyVariant):
    """Updates a row once, by the sum of the gradients of its occurrences: as rows of a dense gradient."""

    def cap(self, dense, rows):
        return super().cap(dense, {name: self.summed(*occurrences) for name, occurrences in rows.items()})

    def summed(self, items, G):
        distinct, place = np.unique(items, return_inverse=True)
        total = np.zeros((len(distinct), *G.shape[1:]))
        np.add.at(total, place, G)
        return distinct, total


@pytest.mark.parametrize('arguments', [
    dict(momentum=0.3, lmbd=0.01), dict(adapt=None, grad_cap=0.05, embedding=3),
    dict(adapt='rmsprop', momentum=0.2, input_mode='session')], ids=str)
def test_one_step_with_the_sum_is_the_step_of_a_dense_gradient(arguments, float64):
    model, log = small_model(**TINY, **arguments, repeats='sum'), few_items_log(n_sessions=14)
    expected = untrained_reference(model, SummedReference).fit(log)
    assert_close(state_of(model.fit(log)), state_of(expected), 1e-6)


# --- Weights of the PyTorch code ------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', CASES)
def test_a_state_of_the_pytorch_code_comes_back_as_it_was_and_predicts_like_the_trained_model(case):
    trained, _losses = trained_as_recorded(case, 'python')
    state = trained.port_state_dict()
    if case in WITH_GRU_CELL:
        expected = recorded(case, 'final', ARRAYS)
        assert {name: array.shape for name, array in state.items()} == {
            name: array.shape for name, array in expected.items()}
        state = expected
    given = {name: value for name, value in arguments_of(case).items()
             if name not in ('layers', 'unit', 'embedding', 'constrained_embedding')}
    model = GRU4Rec.from_port(state, trained.items_, **given, backend='python')
    assert gru4rec.plain_arguments(model) == gru4rec.plain_arguments(trained)
    for name, array in model.port_state_dict().items():
        assert_array_equal(array, state[name])
    items = TEST.ItemId.unique()[:5]
    scores = [gru.predict_next_batch(np.arange(5), items, None, 5) for gru in (model, trained)]
    assert_allclose(*scores, rtol=0, atol=1e-5 if CASES[case]['loss'] == 'cross-entropy' else 1e-4)


def tensor(array):
    """A tensor on a device, as far as a state of it is read: NumPy cannot take it as it is."""
    return SimpleNamespace(detach=lambda: SimpleNamespace(cpu=lambda: array))


def test_tensors_are_taken_as_arrays_are_without_pytorch():
    state = trained_as_recorded('xe', 'python')[0].port_state_dict()
    model = GRU4Rec.from_port({name: tensor(array) for name, array in state.items()}, range(60), loss='cross-entropy')
    assert_array_equal(model.weights()['Wy'], state['Wy.weight'])


@pytest.mark.parametrize('change, message', [
    (dict(drop='Wy.weight'), "lacks 'Wy.weight'"), (dict(add='G.0.weight_ih'), 'layers of two kinds'),
    (dict(add='Adam.weight'), "has 'Adam.weight', which is not known here"),
    (dict(items=range(59)), r'Wx0 must be finite numbers of the shape \(59, 10\)')], ids=str)
def test_a_state_that_does_not_fit_is_one_error_that_names_what(change, message):
    state = trained_as_recorded('xe', 'python')[0].port_state_dict()
    state.pop(change.get('drop'), None)
    if 'add' in change:
        state[change['add']] = np.ones((3, 3))
    with pytest.raises(ValueError, match=message):
        GRU4Rec.from_port(state, change.get('items', range(60)))


def test_the_counts_of_items_are_whole_numbers_in_their_order_or_a_series_by_item():
    trained, _losses = trained_as_recorded('xe', 'python')
    state, counts = trained.port_state_dict(), pd.Series(trained.item_counts_, trained.items_)
    for given in (trained.item_counts_, counts.sort_values()):
        model = GRU4Rec.from_port(state, trained.items_, given, loss='cross-entropy')
        assert_array_equal(model.item_counts_, trained.item_counts_)
    by_text = counts.astype('uint64').set_axis(counts.index.astype(str))
    model = GRU4Rec.from_port(state, trained.items_, by_text, loss='cross-entropy')
    assert_array_equal(model.item_counts_, trained.item_counts_)
    assert model.item_counts_.dtype == np.int64
    for given in ([1, 2], [0.5] * 60):
        with pytest.raises(ValueError, match='item_counts must be a whole number for each item id'):
            GRU4Rec.from_port(state, trained.items_, given)
    with pytest.raises(ValueError, match=f'item_counts: lacks the item id.* {trained.items_[-1]}'):
        GRU4Rec.from_port(state, trained.items_, counts[:-1])
    with pytest.raises(ValueError, match='item ids must be a list without repeats'):
        GRU4Rec.from_port(state, [1] * 60)


@pytest.mark.parametrize('arguments, name', [
    (dict(unit='lstm'), 'Wx0'), (dict(layers=[4, 4]), 'Wx0'), (dict(embedding=3), 'E'), (dict(feedforward=[3]), 'Wd0'),
    (dict(unit='gru-after', layers=[4, 4], embedding=3), 'Ix1'), (dict(unit='gru-after'), 'Wx0'),
    (dict(constrained_embedding=True), 'Wx0'), (dict(input_mode='session'), 'Wx0')], ids=str)
def test_a_network_that_the_pytorch_code_does_not_have_is_refused(arguments, name):
    with pytest.raises(ValueError, match='the PyTorch code has'):
        port.port_from_weights({name: None}, small_model(**arguments))


def test_the_optimiser_of_a_model_from_the_pytorch_code_begins_at_zero():
    model = GRU4Rec.from_port(trained_as_recorded('xe', 'python')[0].port_state_dict(), range(60), loss='cross-entropy')
    assert not any(array.any() for name, array in state_of(model).items() if name.startswith('acc_'))
