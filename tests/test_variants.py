"""The variants of sections 3 and 4: inputs, units, feed-forward layers, against NumPy and finite differences."""
import inspect

import numpy as np
import pytensor.tensor as pt
import pytest
from common import (
    PROMISE,
    assert_close,
    assert_same_bits,
    drawn_inputs,
    few_items_log,
    fixed_masks,
    needs_jax,
    ranks_by_hand,
    scores_by_hand,
    small_model,
    state_of,
)
from numpy.testing import assert_allclose, assert_array_equal
from numpy_gru4rec import NumpyGRU4Rec, activations, losses, sigmoid

import evaluation
import gru4rec
from gru4rec import GRU4Rec
from gru4rec_pytensor import draws

# Each variant alone, then two that have everything between them.
SESSION, MANY_EVENTS = dict(input_mode='session'), dict(input_mode='session', session_decay=0.9)
VARIANTS = [
    SESSION, MANY_EVENTS, dict(embedding=3), dict(embedding=3, **SESSION), dict(unit='lstm'), dict(unit='rnn'),
    dict(layers=[3, 2], input_to_all_layers=True), dict(layers=[3, 2, 3], input_to_all_layers=True, embedding=2),
    dict(feedforward=[3]), dict(feedforward=[3, 5]), dict(loss='mrr'), dict(negatives='uniform')]
COMBINED = [
    dict(unit='lstm', layers=[3, 2], input_to_all_layers=True, feedforward=[4], loss='bpr', **SESSION),
    dict(unit='rnn', layers=[3, 4], input_to_all_layers=True, feedforward=[3, 2], embedding=3, loss='cross-entropy',
         negatives='uniform')]
QUICK = [SESSION, *COMBINED]  # which have all of the others between them
LOG = few_items_log(n_sessions=14)
# Large weights, since scores that are close together make the slopes of 'mrr' too steep for finite differences.
TINY = {'layers': [3], 'batch_size': 3, 'n_epochs': 1, 'sigma': 0.7}


# --- A reference without gradients: all of them are finite differences of the loss ----------------------------------


def unit_step(unit, x, cell, H, W, layer, act):
    """(cell, hidden state) after one event; `x` maps a gate's letter to what the inputs add to it, (B, H)."""
    def gate(letter, state, name):
        return x[letter] + state @ W[f'Wh{name}{layer}'] + W[f'B{letter}{layer}']

    if unit == 'rnn':
        return cell, act(gate('h', H, ''))
    if unit == 'gru':
        r, z = sigmoid(gate('r', H, 'r')), sigmoid(gate('z', H, 'z'))
        return cell, (1 - z) * H + z * act(gate('h', H * r, ''))
    i, f, o = (sigmoid(gate(letter, H, letter)) for letter in 'ifo')
    cell = f * cell + i * act(gate('h', H, ''))
    return cell, o * act(cell)


class NumpyVariant(NumpyGRU4Rec):
    """The variants; update rules, losses and mini-batches are those of `NumpyGRU4Rec`.

    The states are a cell and a hidden state for each layer.
    """

    def __init__(self, layers, input_mode='item', session_decay=0.5, embedding=None, unit='gru',
                 input_to_all_layers=False, feedforward=(), negatives='minibatch', **arguments):
        super().__init__(layers, **arguments)
        self.input_mode, self.session_decay, self.embedding, self.unit = input_mode, session_decay, embedding, unit
        self.input_to_all_layers, self.feedforward, self.negatives = input_to_all_layers, feedforward, negatives
        self.gates = {'gru': 'hrz', 'lstm': 'hifo', 'rnn': 'h'}[unit]
        self.dropouts += [self.dropout_p_hidden] * len(feedforward)
        self.sessions = [[]] * self.batch_size  # events so far, by lane

    def initial_weights(self, n_items, rng):
        W = {}
        n_inputs = self.embedding or n_items
        if self.embedding:
            W['E'] = self.initial_matrix(rng, n_items, self.embedding)
        for layer, units in enumerate(self.layers):
            for gate in 'x' + self.gates[1:]:
                below = self.layers[layer - 1] if layer else n_inputs
                W[f'W{gate}{layer}'] = self.initial_matrix(rng, below, units)
            for gate in 'x' + self.gates[1:]:
                if layer and self.input_to_all_layers:
                    W[f'I{gate}{layer}'] = self.initial_matrix(rng, n_inputs, units)
            for gate in ['', *self.gates[1:]]:
                W[f'Wh{gate}{layer}'] = self.initial_matrix(rng, units, units)
            for gate in self.gates:
                W[f'B{gate}{layer}'] = np.zeros(units)
        sizes = [units, *self.feedforward]
        for j, units in enumerate(self.feedforward):
            W[f'Wd{j}'], W[f'Bd{j}'] = self.initial_matrix(rng, sizes[j], units), np.zeros(units)
        W['Wy'], W['By'] = self.initial_matrix(rng, n_items, sizes[-1]), np.zeros(n_items)
        tables = 'E' if self.embedding else [f'W{gate}0' for gate in 'x' + self.gates[1:]]
        self.tables = [*tables, *[name for name in W if name[0] == 'I' and not self.embedding]]
        return W

    def occurrences(self, sessions):
        """Items that the lanes' inputs consist of, and C (B, n): how much of each is in each lane's input."""
        items, lanes, shares = [], [], []
        for lane, session in enumerate(sessions):
            session = session if self.input_mode == 'session' else session[-1:]
            discounts = np.array([self.session_decay**k for k in range(len(session))][::-1])
            kept = discounts > 1e-3
            dense = np.zeros(max(session) + 1)  # the input as the paper describes it
            np.add.at(dense, np.array(session)[kept], discounts[kept])
            items += list(np.array(session)[kept])
            lanes += [lane] * kept.sum()
            shares += list(discounts[kept] / np.sqrt((dense**2).sum()))
        C = np.zeros((len(sessions), len(items)))
        C[lanes, np.arange(len(items))] = shares
        return np.array(items), C

    def forward(self, W, rows, C, states, masks):
        """(what is scored, new states); `rows` are the tables' rows of the occurrences."""
        def input_times(name):
            return C @ rows[name] if name in rows else C @ rows['E'] @ W[name]

        act, x, new = activations[self.hidden_act][0], None, []
        for layer, (cell, H) in enumerate(zip(states[::2], states[1::2])):
            sums = {}
            for gate in self.gates:
                letter = 'x' if gate == 'h' else gate
                sums[gate] = x @ W[f'W{letter}{layer}'] if layer else input_times(f'W{letter}0')
                if layer and self.input_to_all_layers:
                    sums[gate] = sums[gate] + input_times(f'I{letter}{layer}')
            cell, h = unit_step(self.unit, sums, cell, H, W, layer, act)
            x = h * masks[layer]
            new += [cell, x]
        for j in range(len(self.feedforward)):
            x = act(x @ W[f'Wd{j}'] + W[f'Bd{j}']) * masks[len(self.layers) + j]
        return x, new

    def loss_of_weights(self, W, rows, C, states, masks):
        top, _new = self.forward(W, rows, C, states, masks)
        r_hat = activations[self.final_act][0](top @ rows['Wy'].T + rows['By'])
        if self.negatives == 'uniform':  # each lane's own target, and all lanes' negatives but the one of its number
            n = len(top)
            r_hat = np.array([[r_hat[i, i if i == j else n + j] for j in range(n)] for i in range(n)])
        return losses[self.loss](r_hat)[0]

    def train_minibatch(self, inputs, columns, states, masks):
        self.sessions = [[item] if start else [*session, item]
                         for item, start, session in zip(inputs, self.starts, self.sessions)]
        used, C = self.occurrences(self.sessions)
        at = dict.fromkeys(self.tables, used) | {'Wy': columns, 'By': columns}
        rows = {name: self.weights[name][index] for name, index in at.items()}
        W = {name: value for name, value in self.weights.items() if name not in rows}

        def loss():
            return self.loss_of_weights(W, rows, C, states, masks)

        cost = loss()
        dense, of_rows = ({name: slopes(loss, value) for name, value in values.items()} for values in (W, rows))
        _top, states = self.forward(W, rows, C, states, masks)
        dense, of_rows = self.cap(dense, {name: (at[name], G) for name, G in of_rows.items()})
        for name, g in dense.items():
            self.update_dense(name, g)
        for name, (index, G) in of_rows.items():
            self.update_rows(name, index, G)
        return cost, states

    def no_states(self, n_lanes):
        return [np.zeros((n_lanes, units)) for units in self.layers for _cell_or_state in range(2)]

    def after_event(self, prefix, states):
        used, C = self.occurrences([list(prefix)])
        return self.forward(self.weights, {name: self.weights[name][used] for name in self.tables}, C, states, [1] * 9)


def slopes(function, x, step=1e-6):
    """Central finite differences of function() by the elements of x, which is changed in place and put back."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        before = x[index]
        x[index] = before + step
        above = function()
        x[index] = before - step
        gradient[index] = (above - function()) / (2 * step)
        x[index] = before
    return gradient


def untrained_reference(model, reference=NumpyVariant):
    names = [name for one in (NumpyVariant, NumpyGRU4Rec) for name in inspect.signature(one).parameters
             if name in gru4rec.argument_names()]
    return reference(**{name: getattr(model, name) for name in names})


def scores_of_the_reference(model, log):
    """Scores of the reference with the weights of the model."""
    reference = untrained_reference(model)
    reference.item_index = {item: k for k, item in enumerate(model.items_)}
    reference.initialise(model.n_items, np.random.RandomState(0))
    assert reference.weights.keys() == model.weights().keys()
    reference.weights = model.weights()
    return reference.scores(log)


# --- Formulas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('decay, events, expected', [
    (0.5, [3], {3: 1}), (0.5, [3, 1], {3: 0.5, 1: 1}), (0.5, [3, 1, 3], {3: 1.25, 1: 0.5}), (0, [3, 1, 2], {2: 1}),
    (0.5, [0] + [1] * 9 + [2], {1: 1 - 0.5 ** 9, 2: 1})], ids=str)  # 0.5 ** 10 < 1 / 1000: the 0 is left out
def test_the_session_input_is_the_discounted_sum_of_one_of_n_codes_of_length_one(decay, events, expected, float64):
    table = np.random.RandomState(0).randn(4, 5)
    history = np.full((1, gru4rec.history_length(decay)), -1, np.int32)
    for k, event in enumerate(events):
        read = gru4rec.session_input(pt.constant([event]), pt.constant([k == 0]), pt.constant(history), decay)
        history = read.history['history'].eval()
    dense = np.zeros(4)
    dense[list(expected)] = list(expected.values())
    assert_allclose(read.product(pt.constant(table)[read.rows]).eval()[0], dense / np.linalg.norm(dense) @ table,
                    rtol=1e-12)


@pytest.mark.parametrize('decay, length', [(0, 1), (0.1, 4), (0.5, 10), (0.9, 66), (0.999, 200)])
def test_the_session_input_remembers_what_counts_more_than_a_thousandth(decay, length):
    assert gru4rec.history_length(decay) == length


# --- Training -------------------------------------------------------------------------------------------------------


# In float64, in which finite differences of a loss are good to 1e-9; divided by sqrt(g² + 1e-6), up to 1e-6.
TOLERANCE = 1e-6


def assert_trained_like_the_reference(model, masks=None):
    model.fit(LOG, dropout_masks=masks)
    uniform = model.negatives == 'uniform'
    negatives = drawn_inputs(model.settings(), 1000, fixed_masks=masks)[-1] if uniform else None
    expected = untrained_reference(model).fit(LOG, masks, negatives)
    assert_allclose(model.epoch_losses_, expected.epoch_losses, rtol=0, atol=1e-6)
    assert_close(state_of(model), state_of(expected), TOLERANCE)


def test_uniform_negatives_are_drawn_as_often_as_one_another():
    drawn, = drawn_inputs(small_model(negatives='uniform', batch_size=500).settings(n_items=7), 200)
    assert drawn.shape == (200, 500)
    share = np.bincount(drawn.ravel(), minlength=7) / drawn.size
    assert len(share) == 7 and np.abs(share - 1 / 7).max() < 4 * np.sqrt(1 / 7 / drawn.size)


def test_uniform_negatives_of_idle_lanes_change_nothing(monkeypatch):
    draw = draws.RandomInputs.__call__

    def trained_with(item):
        monkeypatch.setattr(draws.RandomInputs, '__call__', lambda self, lanes: {
            name: np.where(lanes, negatives, item) for name, negatives in draw(self, lanes).items()})
        # L2 and momentum move the rows of all items of a mini-batch, whatever their gradients
        return state_of(small_model(negatives='uniform', drop_tail=False, lmbd=0.1, momentum=0.2).fit(LOG))
    assert_same_bits(trained_with(0), trained_with(1))


@pytest.mark.parametrize('variant', [pytest.param(variant, marks=() if variant in QUICK else pytest.mark.slow)
                                     for variant in VARIANTS + COMBINED], ids=str)
def test_a_variant_trains_like_the_reference(variant, float64):
    assert_trained_like_the_reference(small_model(**{**TINY, **variant}))


@pytest.mark.slow
@pytest.mark.parametrize('variant', [COMBINED[0], SESSION, COMBINED[1]], ids=str)
@pytest.mark.parametrize('arguments', [
    dict(momentum=0.3, lmbd=0.05, adapt='rmsprop', learning_rate=0.01), dict(grad_cap=0.05), dict(momentum=0.3),
    dict(adapt=None, momentum=0.3, lmbd=0.05), dict(reset_after_session=False, n_epochs=2)], ids=str)
def test_every_update_rule_works_for_variants(arguments, variant, float64):
    assert_trained_like_the_reference(small_model(**{**TINY, **variant, **arguments}))


@pytest.mark.parametrize('variant', [pytest.param(COMBINED[0], marks=pytest.mark.slow), COMBINED[1]], ids=str)
def test_all_layers_of_a_variant_are_dropped_out(variant, float64):
    model = small_model(**{**TINY, **variant}, dropout_p_hidden=0.3)
    masks = fixed_masks([*model.layers, *model.feedforward], 3, 0.3)
    assert_trained_like_the_reference(model, masks)


@pytest.mark.parametrize('backend', ['numba', pytest.param('jax', marks=needs_jax)])
@pytest.mark.parametrize('variant', [
    pytest.param(variant, marks=PROMISE if variant == dict(unit='lstm') else pytest.mark.slow)
    for variant in VARIANTS + COMBINED], ids=str)
def test_the_fast_backends_train_and_predict_a_variant_like_the_interpreter(variant, backend):
    arguments = {'layers': [3], 'momentum': 0.2, 'dropout_p_hidden': 0.2, **variant}
    fast, slow = (small_model(**arguments, backend=name).fit(LOG) for name in (backend, 'python'))
    assert_close(state_of(fast), state_of(slow), 1e-5)
    assert_array_equal(evaluation.next_item_ranks(fast, LOG, batch_size=4),
                       evaluation.next_item_ranks(fast.move_to('python'), LOG, batch_size=4))


# --- Prediction, files, interruptions -------------------------------------------------------------------------------


@pytest.fixture(scope='module', params=[*COMBINED, pytest.param(MANY_EVENTS, marks=pytest.mark.slow)], ids=str)
def trained(request):
    return small_model(**{'layers': [3], **request.param}).fit(LOG)


def test_a_variant_scores_like_the_reference(trained):
    scores, targets = scores_by_hand(trained, LOG, batch=3)
    assert_allclose(scores, scores_of_the_reference(trained, LOG), rtol=0, atol=1e-5)
    assert_array_equal(evaluation.next_item_ranks(trained, LOG, batch_size=5),
                       ranks_by_hand(scores, targets, trained.items_))


def test_a_variant_is_the_same_after_saving_and_loading(trained, tmp_path):
    trained.save(tmp_path / 'model')
    loaded = GRU4Rec.load(tmp_path / 'model')
    assert_same_bits(state_of(loaded), state_of(trained))
    assert_array_equal(scores_by_hand(loaded, LOG)[0], scores_by_hand(trained, LOG)[0])


def test_a_variant_recommends_click_by_click_what_it_recommends_for_the_session(trained):
    session, visit = [10, 30, 10, 20], trained.session()
    for n, item in enumerate(session, 1):
        assert visit.click(item, k=3).equals(trained.recommend(session[:n], k=3))
        best = trained.predict_next_batch([1], [item], None, 1)[0]
    assert_allclose(visit.recommend(k=5).Score, best.sort_values(ascending=False), rtol=1e-5)


def test_a_variant_continues_from_a_checkpoint_with_the_same_bits(trained, tmp_path, monkeypatch):
    arguments = {name: getattr(trained, name) for name in gru4rec.argument_names()}
    monkeypatch.setattr('gru4rec.chunk_length', lambda settings: 3)

    def stop(progress):
        if progress.epoch == 1:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        GRU4Rec(**arguments).fit(LOG, checkpoint=tmp_path / 'checkpoint', every=0, callback=stop)
    again = GRU4Rec(**arguments).fit(LOG, checkpoint=tmp_path / 'checkpoint')
    assert_same_bits(state_of(again), state_of(trained))
