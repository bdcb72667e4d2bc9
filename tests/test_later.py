"""Additions of the later papers, against recorded runs of the authors' later release and its plain-NumPy reference; and
`gru4rec_pytensor.later` as a drop-in for that release.
"""
import copy
import functools
import pickle
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from common import (
    GOLDEN,
    LATER_ARRAYS,
    LATER_CASES,
    PROMISE,
    TEST,
    TRAIN,
    assert_close,
    assert_same_bits,
    click_log,
    few_items_log,
    fixed_masks,
    minibatches_recorded,
    needs_jax,
    recorded,
    scores_by_hand,
    state_of,
)
from numpy.testing import assert_allclose, assert_array_equal
from numpy_later import NumpyLater

import gru4rec
from evaluation import next_item_ranks, recall_mrr
from gru4rec_pytensor import backends, draws
from gru4rec_pytensor.later import GRU4Rec, evaluate_gpu

# --- Recorded runs --------------------------------------------------------------------------------------------------

# The first has dropout of both kinds, a shared matrix, momentum, and negatives from the release's generator.  Numba
# takes half a minute to compile the second, and twice as long for the first.
PROMISED = {'jax': 'bprmax_dropout_mrg_constrained_gpustore', 'numba': 'xe_n8_logq1'}
every_case = pytest.mark.parametrize('case, backend', [(case, 'python') for case in LATER_CASES] + [
    pytest.param(case, backend, marks=[PROMISE if PROMISED[backend] == case else pytest.mark.slow,
                                       *[needs_jax] * (backend == 'jax')])
    for backend in PROMISED for case in LATER_CASES])


@functools.cache
def trained_later(case, backend):
    """A model trained as the release was, and of all mini-batches the losses, the places of the events, and what was
    drawn: masks and negatives."""
    model = GRU4Rec(**LATER_CASES[case]['arguments'], backend=backend)
    # What the release calls its legacy store is not taken over: these runs get the negatives that it drew.
    options = dict(LATER_CASES[case]['fit'])
    if options.get('store_type') == 'cpu':
        options['sampled_negatives'] = LATER_ARRAYS[f'{case}/negatives']
    with minibatches_recorded() as chunks:
        model.fit(TRAIN, **options)
    parts = [[losses, *(given[name] for name in given if name != 'starts')] for losses, given in chunks]
    return model, *map(np.concatenate, zip(*parts))


@every_case
def test_the_loss_of_every_minibatch_is_that_recorded(case, backend):
    model, costs, *_ = trained_later(case, backend)
    assert_allclose(costs, LATER_ARRAYS[f'{case}/costs'], rtol=0, atol=1e-5)
    assert_allclose(model.epoch_losses_, LATER_CASES[case]['epoch_losses'], rtol=0, atol=2e-6)  # printed: six digits


@every_case
def test_negatives_and_masks_are_those_recorded(case, backend):
    model, _costs, position, *drawn = trained_later(case, backend)
    if model.n_sample:
        assert_array_equal(drawn.pop(), LATER_ARRAYS[f'{case}/negatives'])
    assert len(drawn) == (model.dropout_p_embed > 0) + (model.dropout_p_hidden > 0)
    for i, masks in enumerate(drawn):
        expected = np.unpackbits(recorded(case, f'mask{i}', LATER_ARRAYS)['bits']).reshape(masks.shape)
        for mask, working, right in zip(masks, position >= 0, expected):
            assert_array_equal(mask[working], right[:working.sum()])


@every_case
def test_weights_accumulators_and_velocities_are_those_recorded(case, backend):
    model, *_ = trained_later(case, backend)
    assert_close(model.weights(), recorded(case, 'weight', LATER_ARRAYS), 1e-4)
    state = model.optimizer_state()
    for kind in ('acc', 'vel'):
        expected = recorded(case, kind, LATER_ARRAYS)
        assert_close({name: state[f'{kind}_{name}'][:20] for name in expected}, expected, 1e-4)


@every_case
def test_scores_recall_and_mrr_are_those_recorded(case, backend):
    model, *_ = trained_later(case, backend)
    scores, _targets = scores_by_hand(model, TEST)
    assert_allclose(scores[LATER_ARRAYS['score_rows']], LATER_ARRAYS[f'{case}/scores'], rtol=0, atol=1e-4)
    for mode, by_cut_off in LATER_CASES[case]['evaluation'].items():
        found = evaluate_gpu(model, TEST, cut_off=[*map(int, by_cut_off)], mode=mode, batch_size=7)
        assert_allclose(np.transpose(found), [*by_cut_off.values()], rtol=0, atol=1e-8)  # recorded in float32


def test_initial_weights_are_those_recorded_to_the_bit():
    for case in ('xe_embedding16_n8', 'xe_two_layer_constrained_n8'):
        arguments = LATER_CASES[case]['arguments'] | {'n_epochs': 1, 'learning_rate': 1e-30}  # which moves no weight
        weights = GRU4Rec(**arguments, backend='python').fit(TRAIN).weights()
        expected = recorded(case, 'init', LATER_ARRAYS)
        assert_same_bits({name: weights[name][:4] for name in expected}, expected)


# --- The NumPy reference --------------------------------------------------------------------------------------------

NEW = dict(loss='bpr-max', bpreg=0.7, n_sample=5, drop_tail=False, time_sort=True)
CONFIGURATIONS = {
    'shared matrix, no adaptation': NEW | dict(constrained_embedding=True, adapt=None, momentum=0.2, lmbd=0.01),
    'shared matrix, two layers, capped': NEW | dict(constrained_embedding=True, layers=[3, 4], grad_cap=0.1, lmbd=0.01,
                                                    momentum=0.2),
    'embedding, dropout': NEW | dict(embedding=3, dropout_p_embed=0.4, momentum=0.1),
    'selu': NEW | dict(final_act='selu-1.05-1.67', hidden_act='leaky-0.3', learning_rate=0.02),
    'leaky, elu': NEW | dict(final_act='leaky-0.1', hidden_act='elu-1', learning_rate=0.02),
    'tail dropped': NEW | dict(drop_tail=True, constrained_embedding=True),
    'sessions by id, no reset': NEW | dict(time_sort=False, reset_after_session=False),
    'sessions in random order': NEW | dict(train_random_order=True, lmbd=0.02),
    'no additional negatives': NEW | dict(n_sample=0, constrained_embedding=True),
    'top1-max, relu': NEW | dict(loss='top1-max', final_act='relu', constrained_embedding=True, hidden_act='relu'),
    'cross-entropy, logq': NEW | dict(loss='cross-entropy', logq=0.8, sample_alpha=0.5, constrained_embedding=True),
    'cross-entropy, tanh': NEW | dict(loss='cross-entropy', final_act='tanh', embedding=3),
    'top1': NEW | dict(loss='top1'),
    'bpr': NEW | dict(loss='bpr', constrained_embedding=True),
    'mrr': NEW | dict(loss='mrr'),
}
LOG = few_items_log(n_sessions=40, n_items=9)  # so few items that inputs, targets and negatives repeat one another


# Those that have not more of what no recorded run has than another one.
QUICK = ('shared matrix, two layers, capped', 'embedding, dropout', 'selu', 'sessions in random order', 'tail dropped',
         'no additional negatives', 'top1', 'bpr', 'mrr')


@pytest.mark.parametrize('name', [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
                                  for name in CONFIGURATIONS])
def test_training_is_that_of_the_numpy_reference(name):
    arguments = dict(layers=[4], n_epochs=2, batch_size=6, dropout_p_hidden=0.0, learning_rate=0.1) | CONFIGURATIONS[
        name]
    reference = NumpyLater(**arguments)
    widths = [reference.embedding or arguments['layers'][-1]] * (reference.dropout_p_embed > 0)
    masks = fixed_masks(widths + arguments['layers'] * (reference.dropout_p_hidden > 0), 6, 0.4) or None
    negatives = np.random.RandomState(1).randint(LOG.ItemId.nunique(), size=(200, reference.n_sample))
    reference.fit(LOG, masks, negatives)
    given = dict(sampled_negatives=negatives[:len(reference.costs)]) if reference.n_sample else {}
    model = gru4rec.GRU4Rec(**arguments, backend='python').fit(LOG, dropout_masks=masks, **given)
    assert_allclose(model.epoch_losses_, reference.epoch_losses, rtol=1e-5, atol=1e-5)
    assert_close(state_of(model), state_of(reference), 1e-4)
    scores, _targets = scores_by_hand(model, LOG)
    assert_allclose(scores, reference.scores(LOG), rtol=0, atol=1e-4)


# --- A script that was written for the later release ----------------------------------------------------------------

SCRIPT = """
from gru4rec import GRU4Rec
import evaluation
import pandas as pd

data = pd.read_csv(train, sep='\t', dtype={'ItemId': 'str'})
valid = pd.read_csv(test, sep='\t', dtype={'ItemId': 'str'})
gru = GRU4Rec(loss='bpr-max', final_act='elu-0.5', hidden_act='tanh', layers=[10], batch_size=10, n_epochs=2,
              constrained_embedding=True, n_sample=8, sample_alpha=0.5, momentum=0.1, dropout_p_embed=0.2)
gru.set_params(learning_rate='0.05', layers='10', constrained_embedding='1', bpreg='0.5')
gru.fit(data, sample_store=1000000, store_type='gpu')
gru.savemodel(path)
gru = GRU4Rec.loadmodel(path)
res = evaluation.evaluate_gpu(gru, valid, batch_size=40, cut_off=[1, 5, 20], mode='conservative')
print('Recall@20', res[0][2], 'MRR@20', res[1][2])
preds = gru.predict_next_batch([1, 2], valid.ItemId[:2], None, 2)
"""


def test_a_script_for_the_later_release_runs_after_a_change_of_its_import_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, 'resolve', lambda backend: 'python')  # which compiles in a second
    changed = SCRIPT.replace('from gru4rec import GRU4Rec', 'from gru4rec_pytensor.later import GRU4Rec').replace(
        'import evaluation', 'from gru4rec_pytensor import later as evaluation')
    names = {'train': GOLDEN / 'train.tsv', 'test': GOLDEN / 'test.tsv', 'path': tmp_path / 'model'}
    exec(changed, names)
    gru, (recall, mrr) = names['gru'], names['res']
    assert (gru.learning_rate, gru.bpreg, gru.layers) == (0.05, 0.5, [10]) and gru.sample_store == 1_000_000
    ranks = next_item_ranks(gru, names['valid'], tie_policy='conservative')
    assert recall == [recall_mrr(ranks, n)[0] for n in (1, 5, 20)]
    assert mrr == [recall_mrr(ranks, n)[1] for n in (1, 5, 20)]
    assert 0.1 < mrr[2] < recall[2] < 1
    assert names['preds'].shape == (60, 2)


# --- Arguments ------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_later_releases():
    model = GRU4Rec()
    assert (model.loss, model.final_act, model.layers, model.batch_size) == ('bpr-max', 'linear', [100], 32)
    assert (model.n_sample, model.sample_alpha, model.learning_rate) == (2048, 0.75, 0.1)
    assert (model.dropout_p_hidden, model.embedding) == (0, None)
    assert model.time_sort and not model.drop_tail and model.equal_times == 'frame'


def test_positional_arguments_are_in_the_later_releases_order():
    model = GRU4Rec('top1-max', 'tanh', 'relu', [7, 8], 3, 16, 0.1, 0.2, 0.3, 0.4, 0.5, 'layersize')
    assert (model.loss, model.final_act, model.hidden_act, model.layers) == ('top1-max', 'tanh', 'relu', [7, 8])
    assert (model.n_epochs, model.batch_size, model.dropout_p_hidden, model.dropout_p_embed) == (3, 16, 0.1, 0.2)
    assert (model.learning_rate, model.momentum, model.lmbd, model.embedding) == (0.3, 0.4, 0.5, 7)


@pytest.mark.parametrize('arguments', [dict(adapt='adam', adapt_params=[0.9, 0.999]),
                                       dict(adapt='adadelta', adapt_params=[0.9]), dict(smoothing=0.1),
                                       dict(loss='xe_logit'), dict(final_act='softmax_logit')])
def test_what_is_not_taken_over_is_refused_by_name(arguments):
    name, value = next(iter(arguments.items()))
    for refused in (lambda: GRU4Rec(**arguments), lambda: GRU4Rec().set_params(**arguments)):
        with pytest.raises(ValueError, match=f'^{name}={value!r} is not taken over: [^.]*$'):
            refused()


@pytest.mark.parametrize('arguments, message', [
    (dict(loss='top1'), "loss='top1' is that of the 2016 release"),
    (dict(loss='bpr'), "loss='bpr' is that of the 2016 release"),
    (dict(adapt='rmsprop', adapt_params=[0.8]), "adapt='rmsprop' is that of the 2016 release"),
    (dict(dropout_p_embed=0.5), 'dropout_p_embed=0.5 is ignored')], ids=str)
def test_what_is_ignored_or_has_the_meaning_of_2016_is_said_at_the_line_that_asks_for_it(arguments, message, tmp_path):
    (tmp_path / 'authors.py').write_text(f'gru4rec_params = {arguments!r}')
    ways = [lambda: GRU4Rec(**arguments), lambda: GRU4Rec().set_params(**arguments),
            lambda: GRU4Rec.from_parameters(tmp_path / 'authors.py'),
            lambda: gru4rec.GRU4Rec.from_parameters(tmp_path / 'authors.py')]
    for way in ways:
        with pytest.warns(UserWarning, match=message) as caught:
            model = way()
        assert [(one.filename, one.lineno) for one in caught] == [(__file__, way.__code__.co_firstlineno)]
        assert model is None or (model.decay, model.dropout_p_embed) == (0.8 if 'adapt' in arguments else 0.9, 0)


@pytest.mark.parametrize('arguments, message', [
    *[(dict(adapt='rmsprop', adapt_params=decays), 'adapt_params') for decays in ([], [0.9, 0.1], 0.9)],
    (dict(layers=100, embedding='layersize'), "layers=100: embedding='layersize' needs a list")], ids=str)
def test_arguments_that_need_others_say_so(arguments, message):
    with pytest.raises(ValueError, match=message), warnings.catch_warnings(action='ignore'):
        GRU4Rec(**arguments)


def test_set_params_reads_text_as_the_release_does():
    model = GRU4Rec(seed=7)
    model.set_params(layers='100/50', n_epochs='3', learning_rate='0.2', constrained_embedding='True', time_sort='0',
                     loss='top1-max', final_act='elu-0.5', dropout_p_embed='0.1', embedding='layersize')
    assert (model.layers, model.n_epochs, model.learning_rate) == ([100, 50], 3, 0.2)
    assert (model.constrained_embedding, model.time_sort, model.dropout_p_embed) == (True, False, 0.1)
    assert (model.loss, model.final_act, model.seed) == ('top1-max', 'elu-0.5', 7)
    model.set_params(constrained_embedding=False, embedding='layersize')
    assert (model.embedding, model.n_epochs) == (100, 3)
    with pytest.warns(UserWarning, match='rmsprop'):
        model.set_params(adapt='rmsprop', adapt_params='0.8')
        model.set_params(n_epochs=4)
    assert (model.adapt, model.decay, model.n_epochs) == ('rmsprop', 0.8, 4)
    model.set_params(adapt='None')
    assert model.adapt is None
    model.drop_tail, model.unit = True, 'lstm'  # which the release has no names for
    model.set_params(n_epochs=5)
    assert (model.n_epochs, model.drop_tail, model.unit) == (5, True, 'lstm')


@pytest.mark.parametrize('parameters, error, message', [
    (dict(layer='100'), NotImplementedError, "'layer' is no argument"),
    (dict(layers='100,50'), ValueError, "layers='100,50': must be whole numbers separated by '/'"),
    (dict(n_epochs='ten'), ValueError, "n_epochs='ten': must be a whole number"),
    (dict(learning_rate='fast'), ValueError, "learning_rate='fast': must be a number"),
    (dict(constrained_embedding='yes'), ValueError, "constrained_embedding='yes': must be one of 'True', '1'"),
])
def test_set_params_names_what_it_cannot_set_and_changes_nothing(parameters, error, message):
    model = GRU4Rec()
    before = dict(vars(model))
    with pytest.raises(error) as found:
        model.set_params(n_sample=16, **parameters)
    assert message in str(found.value)
    assert vars(model) == before


# --- Training, copies, files ----------------------------------------------------------------------------------------

SMALL = dict(layers=[4], n_epochs=2, batch_size=6, n_sample=5, learning_rate=0.05, constrained_embedding=True,
             backend='python')


@functools.cache
def small_later():
    return GRU4Rec(**SMALL).fit(LOG)


def test_it_is_the_base_class_with_other_defaults():
    expected = gru4rec.GRU4Rec(loss='bpr-max', final_act='linear', dropout_p_hidden=0.0, time_sort=True,
                               drop_tail=False, equal_times='frame', **SMALL).fit(LOG)
    assert_same_bits(state_of(small_later()), state_of(expected))
    assert repr(small_later()) == repr(expected)


def test_the_legacy_store_draws_as_the_other_one_and_says_so():
    with pytest.warns(UserWarning, match="store_type='cpu'"):
        model = GRU4Rec(**SMALL).fit(LOG, store_type='cpu')
    assert_same_bits(state_of(model), state_of(small_later()))
    with pytest.raises(ValueError, match="store_type='disk'"):
        GRU4Rec(**SMALL).fit(LOG, store_type='disk')


def test_the_store_decides_which_negatives_are_drawn():
    model = GRU4Rec(**SMALL).fit(LOG, 50)
    assert model.sample_store == 50
    assert any((state_of(model)[name] != value).any() for name, value in state_of(small_later()).items())


def test_a_large_power_of_the_numbers_of_events_overflows_nowhere():
    """999 ** 500 is infinite in float64; (999 / 1000) ** 500 is not."""
    store = draws.NegativeStore(np.array([1, 1000, 999]), 500, 10, 10_000, 42, 0)
    shares = np.bincount(store(1000).ravel(), minlength=3) / 10_000
    assert_allclose(shares, [0, float(Fraction(1000 ** 500, 1000 ** 500 + 999 ** 500)), 1 - shares[1]], atol=0.02)
    model = GRU4Rec(**SMALL | {'sample_alpha': 500.0}).fit(LOG)
    assert np.isfinite(model.epoch_losses_).all() and not model.error_during_train


@pytest.mark.parametrize('cls', [GRU4Rec, gru4rec.GRU4Rec])
def test_a_saved_model_loads_as_either_class_and_copies_stay_what_they_are(cls, tmp_path):
    model = small_later()
    model.savemodel(tmp_path / 'model')
    loaded = cls.loadmodel(tmp_path / 'model')
    assert type(loaded) is cls and type(cls.load(tmp_path / 'model')) is cls
    assert_same_bits(state_of(loaded), state_of(model))
    assert repr(loaded) == repr(model)
    assert evaluate_gpu(loaded, LOG) == evaluate_gpu(model, LOG)
    for twin in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        assert type(twin) is cls
        assert_same_bits(state_of(twin), state_of(model))


# --- Evaluation -----------------------------------------------------------------------------------------------------


def test_events_of_unknown_items_are_left_out_and_their_neighbours_meet():
    model = small_later()
    a, b, c = model.items_[:3]
    test = click_log([a, -1, b, c], [-1, -2], [b, -1], [c, a])
    ranks = next_item_ranks(model, click_log([a, b, c], [c, a]))
    expected = recall_mrr(ranks, [1, 5])
    assert evaluate_gpu(model, test, cut_off=[1, 5]) == ([*expected[0]], [*expected[1]])


def test_without_any_known_item_there_is_one_error():
    with pytest.raises(ValueError, match="no item of the test data is in the training data: 'x', 'y'"):
        evaluate_gpu(small_later(), click_log(['x', 'y']))


def test_events_of_equal_times_are_in_the_order_of_their_item_ids():
    model = small_later()
    low, other, high = sorted(model.items_[:3])
    test = pd.DataFrame({'SessionId': 1, 'ItemId': [high, low, other], 'Time': [5, 5, 6]})
    ranks = next_item_ranks(model, click_log([low, high, other]))
    assert evaluate_gpu(model, test, cut_off=[3]) == tuple([value] for value in recall_mrr(ranks, 3))
    assert evaluate_gpu(model, test, cut_off=np.int64(3)) == evaluate_gpu(model, test, cut_off=[3])
    assert ranks.tolist() != next_item_ranks(model, click_log([high, low, other])).tolist()
    spelled = test.assign(ItemId=pd.Series([high, low, str(other)], dtype=object)).set_index('ItemId', drop=False)
    assert evaluate_gpu(model, spelled, cut_off=[3]) == evaluate_gpu(model, test, cut_off=[3])


def test_a_store_of_negatives_that_is_refused_leaves_the_model_as_it_was(tmp_path):
    model = small_later()
    before = model.sample_store
    with pytest.raises(ValueError, match='sample_store=1'):
        model.fit(LOG, sample_store=1)
    assert model.sample_store == before


def test_modes_items_and_columns_are_those_of_the_ranks():
    model = GRU4Rec(**SMALL | {'final_act': 'relu'}).fit(LOG)  # which makes ties
    items = model.items_[:5]
    names = {'SessionId': 'user', 'ItemId': 'page', 'Time': 'when'}
    keys = dict(session_key='user', item_key='page', time_key='when')
    for mode in ('standard', 'conservative', 'median'):
        recall, mrr = recall_mrr(next_item_ranks(model, LOG, items, tie_policy=mode), [2, 4])
        assert evaluate_gpu(model, LOG.rename(columns=names), items, cut_off=[2, 4], mode=mode, **keys) == (
            [*recall], [*mrr])


def test_the_default_is_one_cut_off_of_20_and_a_number_is_a_list_of_one():
    model = small_later()
    recall, mrr = evaluate_gpu(model, LOG)
    assert len(recall) == len(mrr) == 1
    assert evaluate_gpu(model, LOG, cut_off=20) == (recall, mrr)
    with pytest.raises(ValueError, match="mode='best'"):
        evaluate_gpu(model, LOG, mode='best')
