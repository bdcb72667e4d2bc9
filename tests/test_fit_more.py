"""More training of a trained model, on new data with new items."""
import numpy as np
import pandas as pd
import pytest
from common import assert_close, assert_same_bits, click_log, few_items_log, needs_jax, small_model, state_of
from numpy.testing import assert_array_equal

import evaluation
from gru4rec import GRU4Rec

LOG = few_items_log(n_sessions=40, n_items=9)
NEW = LOG.assign(ItemId=LOG.ItemId + 1000, SessionId=LOG.SessionId + 1000)  # the same sessions, of other items
OPTIONS = [dict(), dict(momentum=0.3, lmbd=0.01), dict(adapt='rmsprop', learning_rate=0.01), dict(adapt=None),
           dict(unit='lstm', layers=[3, 2], input_to_all_layers=True, input_mode='session', feedforward=[3]),
           dict(embedding=3, loss='cross-entropy')]
COMPILED = OPTIONS[1]  # two tests compile it, so that others use it, too
OPTIONS = [pytest.param(options, marks=() if k in (1, 5) else pytest.mark.slow) for k, options in enumerate(OPTIONS)]


@pytest.mark.parametrize('backend', ['python', pytest.param('numba', marks=pytest.mark.slow),
                                     pytest.param('jax', marks=[needs_jax, pytest.mark.slow])])
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_more_epochs_on_the_same_data_equal_a_longer_training(options, backend):
    whole = small_model(n_epochs=3, backend=backend, **options).fit(LOG)
    parts = small_model(n_epochs=2, backend=backend, **options).fit(LOG).fit_more(LOG, n_epochs=1)
    assert_same_bits(state_of(parts), state_of(whole))
    assert parts.epoch_losses_ == whole.epoch_losses_
    assert_array_equal(parts.item_counts_, 2 * whole.item_counts_)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_items_that_the_new_data_does_not_have_keep_their_rows_and_their_optimisers_state(options):
    model = small_model(**options).fit(LOG)
    before, n_old = state_of(model), model.n_items
    model.fit_more(NEW)
    assert model.items_.tolist() == [*LOG.ItemId.unique(), *NEW.ItemId.unique()]
    assert_array_equal(model.item_counts_, pd.concat([LOG, NEW]).ItemId.value_counts()[model.items_])
    per_item = {name for name, value in before.items() if len(value) == n_old}
    assert {'Wy', 'By', 'E' if model.embedding else 'Wx0'} <= per_item
    after = state_of(model)
    for name in before:
        kept = after[name][:n_old] if name in per_item else after[name]
        assert len(after[name]) == len(before[name]) + (n_old if name in per_item else 0), name
        assert (kept == before[name]).all() == (name in per_item), name


def test_weights_of_new_items_are_drawn_by_seed_epochs_and_items_so_far_and_their_optimiser_starts_at_zero():
    model = small_model(adapt=None, momentum=0.3, learning_rate=1e-30, n_epochs=1, seed=3).fit(LOG)
    before = model.weights()
    weights, velocities = model.fit_more(NEW).weights(), model.optimizer_state()
    rng, limit = np.random.RandomState([3, 1, 9]), np.sqrt(6 / (18 + 4))  # seed, epochs, items; 18 items x 4 units
    for name in ('Wx0', 'Wr0', 'Wz0', 'Wy'):
        fresh = (rng.rand(9, 4) * 2 * limit - limit).astype('float32')
        assert_array_equal(weights[name], np.concatenate([before[name], fresh]), err_msg=name)
        assert np.abs(velocities[f'vel_{name}'][9:]).max() < 1e-28  # of steps that are too small to move a weight
    assert np.abs(weights['By'][9:]).max() < 1e-28


def test_retrain_is_the_releases_name_of_fit_more():
    first, other = (small_model(**COMPILED).fit(LOG) for _model in range(2))
    assert_same_bits(state_of(first.fit(NEW, True)), state_of(other.fit_more(NEW)))
    with pytest.raises(ValueError, match='retrain=True does not go with'):
        small_model().fit(LOG).fit(NEW, retrain=True, checkpoint='somewhere')


def test_a_loaded_model_is_trained_further_like_the_saved_one(tmp_path):
    model = small_model(momentum=0.3, dropout_p_hidden=0.3).fit(LOG)
    model.save(tmp_path / 'model')
    loaded = GRU4Rec.load(tmp_path / 'model').fit_more(NEW)
    assert_same_bits(state_of(loaded), state_of(model.fit_more(NEW)))


def test_dropout_masks_are_not_those_of_the_epochs_before():
    def model():
        return small_model(dropout_p_hidden=0.5, n_epochs=1).fit(LOG)
    masked, same = model().fit_more(LOG), model()
    same.epoch_losses_ = []  # as if it were at its first epoch
    same.fit_more(LOG)
    assert any((a != b).any() for a, b in zip(state_of(masked).values(), state_of(same).values()))


def test_new_items_are_learned_and_recommended():
    def cycle(first):
        rng = np.random.RandomState(first)
        return click_log(*[[first + (start + k) % 8 for k in range(5)] for start in rng.randint(8, size=200)])
    model = small_model(layers=[16], loss='cross-entropy', n_epochs=8, batch_size=25, learning_rate=0.2)
    model.fit(cycle(0)).fit_more(cycle(100))
    assert evaluation.recall_mrr(evaluation.next_item_ranks(model, cycle(100)), 1)[0] > 0.95
    assert model.recommend([102, 103], k=1).ItemId.tolist() == [104]


def test_data_that_does_not_fit_the_model_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match='not trained yet'):
        small_model().fit_more(NEW)
    model = small_model(**COMPILED).fit(LOG)
    before = state_of(model)
    with pytest.raises(TypeError, match="'ItemId' has item ids such as '.*', but those of the model are such as"):
        model.fit_more(LOG.assign(ItemId='x' + LOG.ItemId.astype(str)))
    with pytest.raises(ValueError, match='batch_size=6 needs at least as many sessions'):
        model.fit_more(NEW[:10])
    with pytest.raises(ValueError, match='n_epochs=0: must be a whole number'):
        model.fit_more(NEW, n_epochs=0)
    assert_close(state_of(model), before, 0)
