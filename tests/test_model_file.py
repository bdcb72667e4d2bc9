"""A model saved to one file and loaded again; files that are damaged or of something else."""
import copy
import json
import os
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
from common import assert_same_bits, few_items_log, needs_jax, scores_by_hand, small_model, state_of
from numpy.testing import assert_allclose, assert_array_equal

import gru4rec
from evaluation import next_item_ranks
from gru4rec import GRU4Rec
from gru4rec_pytensor import model_file

LOG = few_items_log()


@pytest.fixture(scope='module')
def model():
    return small_model(layers=[4, 3], momentum=0.1, learning_rate=np.float32(0.1)).fit(LOG)


@pytest.fixture
def path(model, tmp_path):
    model.save(tmp_path / 'model')
    return tmp_path / 'model'


# --- Copies in memory ------------------------------------------------------------------------------------------------


COPIES = {'deepcopy': copy.deepcopy, 'copy': copy.copy, 'pickle': lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize('copied, predicted_before', [
    ('deepcopy', False), ('deepcopy', True), ('copy', True), ('pickle', True)])
def test_a_copy_of_a_trained_model_predicts_the_same_and_is_its_own(copied, predicted_before):
    model = small_model(momentum=0.1, loss='cross-entropy').fit(LOG)
    if predicted_before:
        model.predict_next_batch(['a'], [10], None, 1)
    other = COPIES[copied](model)
    assert repr(other) == repr(model) and other.epoch_losses_ == model.epoch_losses_
    assert_same_bits(state_of(other), state_of(model))
    # in the middle of a session too, if it has begun
    frames = [each.predict_next_batch(['a'], [20], None, 1) for each in (model, other)]
    pd.testing.assert_frame_equal(*frames)
    assert_array_equal(next_item_ranks(other, LOG), next_item_ranks(model, LOG))
    before, losses = state_of(model), [*model.epoch_losses_]
    other.fit_more(LOG)
    assert_same_bits(state_of(model), before)
    assert model.epoch_losses_ == losses
    assert (other.weights()['Wy'] != before['Wy']).any()


def test_an_untrained_model_can_be_copied():
    for copied in COPIES.values():
        assert repr(copied(small_model())) == repr(small_model())


@pytest.mark.parametrize('arguments, text', [
    (dict(layers=[100]), 'GRU4Rec(layers=[100])'),
    (dict(layers=[100], loss='top1', n_epochs=10), 'GRU4Rec(layers=[100])'),
    (dict(layers=[100, 50], loss='bpr', adapt=None, feedforward=[3], seed=1, item_key='product'),
     "GRU4Rec(layers=[100, 50], adapt=None, loss='bpr', item_key='product', feedforward=[3], seed=1)")])
def test_a_model_shows_its_layers_and_what_is_not_the_default(arguments, text):
    model = GRU4Rec(**arguments)
    assert repr(model) == text
    assert vars(eval(text)) == vars(model)


# --- What comes back ------------------------------------------------------------------------------------------------


def test_a_loaded_model_has_the_arguments_the_state_and_the_predictions_of_the_saved_one(model, path):
    loaded = GRU4Rec.load(path)
    assert gru4rec.plain_arguments(loaded) == gru4rec.plain_arguments(model)
    assert loaded.backend_ == 'python' and loaded.epoch_losses_ == model.epoch_losses_
    assert_same_bits(state_of(loaded), state_of(model))
    assert_array_equal(loaded.item_counts_, LOG.ItemId.value_counts()[loaded.items_])
    assert_array_equal(next_item_ranks(loaded, LOG), next_item_ranks(model, LOG))
    assert_array_equal(scores_by_hand(loaded, LOG)[0], scores_by_hand(model, LOG)[0])


@pytest.mark.parametrize('backend', [
    pytest.param('numba', marks=pytest.mark.slow), pytest.param('jax', marks=needs_jax)])
def test_a_model_can_be_loaded_for_another_backend_and_copied_there(model, path, backend):
    loaded = GRU4Rec.load(path, backend=backend)
    other = pickle.loads(pickle.dumps(loaded))
    assert loaded.backend == loaded.backend_ == other.backend_ == backend
    for each in (loaded, other):
        assert_array_equal(next_item_ranks(each, LOG), next_item_ranks(model, LOG))


@pytest.mark.parametrize('ids', [['ä', '日本', '', "'", '\n'], [1, 'a', 2.5, True, '1']], ids=['text', 'mixed'])
def test_item_ids_keep_their_values_and_types(tmp_path, ids):
    log = LOG.assign(ItemId=pd.Series([ids[item // 10] for item in LOG.ItemId], LOG.index, dtype=object))
    model = small_model().fit(log)
    model.save(tmp_path / 'model')
    loaded = GRU4Rec.load(tmp_path / 'model')
    assert loaded.items_.dtype == model.items_.dtype
    assert [(type(item), item) for item in loaded.items_] == [(type(item), item) for item in model.items_]
    assert_array_equal(next_item_ranks(loaded, log), next_item_ranks(model, log))


def test_float16_takes_about_half_the_room_and_rounds_the_weights_to_11_bits(tmp_path):
    model = small_model(layers=[50], adapt=None).fit(LOG)
    for dtype in ('float32', 'float16'):
        model.save(tmp_path / dtype, dtype=dtype)
    assert (tmp_path / 'float16').stat().st_size < 0.6 * (tmp_path / 'float32').stat().st_size
    for name, value in GRU4Rec.load(tmp_path / 'float16').weights().items():
        assert value.dtype == 'float32'
        assert_allclose(value, model.weights()[name], rtol=2 ** -11, atol=1e-7)


def test_the_file_is_an_archive_of_plain_arrays_that_numpy_reads(model, path):
    with np.load(path, allow_pickle=False) as arrays:
        assert_same_bits({name: arrays[name] for name in state_of(model)}, state_of(model))


# --- Errors ---------------------------------------------------------------------------------------------------------


def changed(path, change, compression=zipfile.ZIP_STORED):
    """The archive written again with `change(header, contents by name)` applied."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(contents.pop('header.json'))
    change(header, contents)
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('header.json', json.dumps(header))
        for name, content in contents.items():
            archive.writestr(name, content)


@pytest.mark.parametrize('damage, complaint', [
    (lambda path: path.write_bytes(b''), 'not a model file, or a damaged or truncated one'),
    (lambda path: path.write_bytes(path.read_bytes()[:-30]), 'not a model file, or a damaged or truncated one'),
    (lambda path: path.write_bytes(path.read_bytes().replace(b'NUMPY', b'NIMPY')), 'damaged'),
    (lambda path: path.write_bytes(pickle.dumps({'a': 1})), 'not a model file, or a damaged or truncated one'),
    (lambda path: np.savez(path.open('wb'), a=np.ones(3)), 'not a model file of this'),
    (lambda path: changed(path, lambda header, _contents: header.pop('sha256')), 'not a model file of this'),
    (lambda path: changed(path, lambda header, _contents: header.update(sha256='0')), 'its checksum is not that'),
    (lambda path: changed(path, lambda header, _contents: header.update(version=2)), 'a newer release of it is needed'),
    (lambda path: changed(path, lambda _header, contents: contents.pop('Wy.npy')), 'its checksum is not'),
    (lambda path: changed(path, lambda header, _contents: header['arguments'].update(magic=1)), 'not a model of this'),
    (lambda path: changed(path, lambda _header, _contents: None, zipfile.ZIP_DEFLATED), 'not a model file of this'),
    (lambda path: zipfile.ZipFile(path, 'w').writestr('header.json', '[' * 100_000), 'not a model file'),
], ids=['empty', 'end cut off', 'bytes changed', 'pickle', 'other archive', 'no checksum', 'other checksum',
        'newer', 'array missing', 'unknown argument', 'compressed', 'nested'])
def test_a_file_that_is_no_model_is_named_and_explained(path, damage, complaint):
    damage(path)
    with pytest.raises(ValueError, match=complaint) as error:
        GRU4Rec.load(path)
    assert str(error.value).startswith(f'{path}: ')


def forged(path, change):
    """A file whose checksum is right, with `change(header, arrays)` applied: what a crafted one would be."""
    header, arrays = model_file.read(path)
    change(header, arrays)
    model_file.write(path, {name: value for name, value in header.items() if name != 'sha256'}, arrays)


def ids_of(header, arrays, ids):
    header['items_as_json'] = True
    arrays['items'] = np.frombuffer(json.dumps(ids).encode(), np.uint8)


@pytest.mark.parametrize('change, complaint', [
    (lambda header, arrays: arrays.update(items=np.arange(30), item_counts=np.ones(30, int)), r'shape \(30, 4\)'),
    (lambda header, arrays: arrays.update(items=arrays['items'][:4], item_counts=arrays['item_counts'][:4]),
     r'shape \(4, 4\)'),
    (lambda header, arrays: arrays.update(item_counts=arrays['item_counts'][:4]), 'item_counts must be a whole number'),
    (lambda header, arrays: arrays.update(item_counts=-arrays['item_counts']), 'item_counts must be a whole number'),
    (lambda header, arrays: arrays.update(item_counts=arrays['item_counts'] / 2), 'item_counts must be a whole number'),
    (lambda header, arrays: arrays.update(items=arrays['items'][:, None]), 'ids must be a list'),
    (lambda header, arrays: arrays.update(items=arrays['items'] * 0), 'ids must be a list without repeats'),
    (lambda header, arrays: arrays.update(items=np.array([1, 2, 3, 4, np.nan])), 'ids must be a list without .* gaps'),
    (lambda header, arrays: arrays.update(Wh0=arrays['Wh0'][:3]), r'Wh0 must be finite numbers of the shape \(4, 4\)'),
    (lambda header, arrays: arrays.update(Wh0=arrays['Wh0'].astype(int)), 'Wh0 must be finite numbers'),
    (lambda header, arrays: arrays.update(Wy=arrays['Wy'] * np.nan), 'Wy must be finite numbers'),
    (lambda header, arrays: arrays.update(acc_By=arrays['acc_By'][:2]), r'acc_By must be .* of the shape \(5'),
    (lambda header, arrays: arrays.pop('vel_By'), 'has vel_'),
    (lambda header, arrays: header['arguments'].update(momentum=0.0), 'has vel_.* should have none'),
    (lambda header, arrays: header['arguments'].update(layers=[4, -3]), 'layers='),
    (lambda header, arrays: header['arguments'].update(layers=[4, 3, 2]), 'has '),
    (lambda header, arrays: header.update(arguments=[]), 'not a model'),
    (lambda header, arrays: header.update(epoch_losses=['low']), 'epoch_losses must be numbers'),
    (lambda header, arrays: ids_of(header, arrays, [{}] * 5), 'not a model'),
    (lambda header, arrays: ids_of(header, arrays, [{'date': 'soon'}] * 5), 'not a model'),
    (lambda header, arrays: arrays.update(items=np.frombuffer(b'[' * 100_000, np.uint8)) or header.update(
        items_as_json=True), 'not a model'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_crafted_file_is_refused_before_anything_is_computed_with_it(path, change, complaint):
    """Its arrays would be read and written out of bounds by compiled code, or give other numbers without a word."""
    forged(path, change)
    with pytest.raises(ValueError, match=complaint) as error:
        GRU4Rec.load(path)
    assert str(error.value).startswith(f'{path}: ')


@pytest.mark.parametrize('change', [
    lambda _header, arrays: arrays.update(Wy=arrays['Wy'][:2]),
    lambda _header, arrays: arrays.update(H0=arrays['H0'].astype('int64')),
    lambda _header, arrays: arrays.pop('acc_Wy'), lambda _header, arrays: arrays.pop('mask0_streams'),
    lambda _header, arrays: arrays.update(negatives_used=np.array([10 ** 9])),
    lambda _header, arrays: arrays.update(negatives_streams=arrays['negatives_streams'][:, :1][:3]),
    lambda header, _arrays: header.update(position=[0, -1, 0, 0, 0.0]),
    lambda header, _arrays: header.update(position=['0', 0, 0, 0, 0.0]),
    lambda header, _arrays: header.update(threads='two'), lambda header, _arrays: header.update(position=7),
    lambda header, _arrays: header.pop('position'), lambda header, _arrays: header.pop('epoch_losses'),
    lambda header, _arrays: header['training'].update(more=1), lambda _header, arrays: arrays.clear()],
    ids=['shape', 'type', 'array missing', 'streams missing', 'used', 'streams', 'before the start', 'text', 'threads',
         'position', 'no position', 'no losses', 'an argument more', 'no arrays'])
def test_a_crafted_checkpoint_is_refused_too(tmp_path, change):
    path = tmp_path / 'checkpoint'
    arguments = dict(dropout_p_hidden=0.5, n_sample=2, sample_store=40)
    small_model(**arguments).fit(LOG, checkpoint=path)
    forged(path, change)
    with pytest.raises(ValueError, match=f'^{path}: a checkpoint of another version'):
        small_model(n_epochs=3, **arguments).fit(LOG, checkpoint=path)


@pytest.mark.parametrize('value', [1e5, -7e4, 1e-9])
def test_a_weight_that_float16_cannot_hold_is_named_and_nothing_is_written(tmp_path, value):
    """The largest number is 65504, and numbers below 3e-8 become 0."""
    model = small_model().fit(LOG)
    model.variables_.weights['Wh0'].set_value(np.full((4, 4), value, 'float32'))
    with pytest.raises(ValueError, match='^weight Wh0 has values up to .*, which float16 cannot hold'):
        model.save(tmp_path / 'model', dtype='float16')
    assert not os.listdir(tmp_path)
    model.save(tmp_path / 'model')
    assert_array_equal(GRU4Rec.load(tmp_path / 'model').weights()['Wh0'], np.float32(value))


def test_a_changed_byte_is_noticed_or_changes_nothing(model, path):
    content, noticed = path.read_bytes(), 0
    for place in np.random.RandomState(0).randint(len(content), size=60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        try:
            loaded = GRU4Rec.load(path)
        except ValueError as error:
            assert str(error).startswith(f'{path}: ')
            noticed += 1
        else:  # such as the times of the archive's members
            assert_same_bits(state_of(loaded), state_of(model))
    assert noticed > 30


def test_the_checksum_is_of_names_types_and_shapes_too():
    x = np.zeros(4, 'float32')
    others = {'y': x}, {'x': x.reshape(2, 2)}, {'x': x.view('int32')}
    assert len({model_file.checksum(arrays) for arrays in ({'x': x}, *others)}) == 4


def test_a_new_file_has_the_mode_of_any_other_and_the_umask_is_never_touched(model, path, monkeypatch):
    os.chmod(path, 0o600)
    monkeypatch.setattr(os, 'umask', None)  # which holds for all threads of the process
    model.save(path)
    (path.parent / 'other').touch()
    assert path.stat().st_mode == (path.parent / 'other').stat().st_mode


def test_a_model_that_cannot_be_saved_says_why(model, tmp_path):
    with pytest.raises(RuntimeError, match='call fit first'):
        small_model().save(tmp_path / 'model')
    with pytest.raises(ValueError, match="dtype='int8': must be one of 'float32', 'float16'"):
        model.save(tmp_path / 'model', dtype='int8')
    with pytest.raises(TypeError, match=r'item id \(1, 2\) is a tuple'):
        model_file.array_of_ids(pd.Series([(1, 2), 'a']).to_numpy())
    with pytest.raises(OSError, match='nowhere'):
        model.save(tmp_path / 'nowhere' / 'model')
    for name, value, reason in (('layers', [4, 6], 'Wx1 must be'), ('layers', [4], "'W1'"), ('unit', 'lstm', "'Wh"),
                                ('layers', 4, 'layers=4: must be a list')):
        changed_since = copy.deepcopy(model)
        setattr(changed_since, name, value)
        with pytest.raises(ValueError, match=f'cannot save this model with its arguments as they are now: {reason}'):
            changed_since.save(tmp_path / 'model')
    assert not os.listdir(tmp_path)


def test_what_is_saved_can_be_loaded_whatever_the_optimisers_state_is(tmp_path):
    model = small_model().fit(LOG)
    model.momentum = 0.3  # of which there is no state yet
    model.variables_.acc['Wh0'].set_value(np.full((4, 4), np.inf, 'float32'))  # of a gradient above 1e19
    model.save(tmp_path / 'model')
    loaded = GRU4Rec.load(tmp_path / 'model')
    assert_array_equal(loaded.optimizer_state()['acc_Wh0'], np.inf)
    assert_array_equal(loaded.optimizer_state()['vel_Wh0'], 0)
