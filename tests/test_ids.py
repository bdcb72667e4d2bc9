"""Ids of every kind, in every method, command and file, however they are written."""
import json

import numpy as np
import pandas as pd
import pytest
from common import assert_same_bits, few_items_log, small_model, state_of

from baselines import Pop
from evaluation import next_item_ranks
from gru4rec import GRU4Rec
from gru4rec_pytensor import cli
from gru4rec_pytensor.events import IdIndex

LOG = few_items_log(n_sessions=40, n_items=5)
DAYS = pd.to_datetime(LOG.ItemId, unit='D')
KINDS = {
    'integers': LOG.ItemId, 'small unsigned integers': LOG.ItemId.astype('uint8'), 'huge': LOG.ItemId + 10 ** 17,
    'negative': -LOG.ItemId - 1, 'floats made of integers': LOG.ItemId.astype(float), 'halves': LOG.ItemId + 0.5,
    'integers that may be missing': LOG.ItemId.astype('Int64'), 'text': 'p' + LOG.ItemId.astype(str),
    'text of numbers': LOG.ItemId.astype(str), 'leading zeros': '00' + LOG.ItemId.astype(str),
    'truth values': LOG.ItemId > 20, 'days': DAYS, 'times': DAYS + pd.Timedelta('1h'),
    'times of a zone': (DAYS + pd.Timedelta('1h')).dt.tz_localize('Europe/Budapest'),
    'dates of Python': DAYS.dt.date, 'category of integers': LOG.ItemId.astype('category'),
    'category of text': ('p' + LOG.ItemId.astype(str)).astype('category'),
    'numbers and text': LOG.ItemId.astype(object).where(LOG.ItemId > 20, 'x' + LOG.ItemId.astype(str)),
}


AGAIN = ('small unsigned integers', 'negative', 'halves', 'text', 'leading zeros', 'days', 'category of integers')


@pytest.fixture(scope='module', params=[pytest.param(kind, marks=pytest.mark.slow if kind in AGAIN else ())
                                        for kind in KINDS])
def world(request, tmp_path_factory):
    """A log with ids of a kind for items and sessions, the model that it gives, the saved one, and the log as CSV."""
    folder = tmp_path_factory.mktemp('ids')
    log = LOG.assign(ItemId=KINDS[request.param])
    model = small_model().fit(log)
    model.save(folder / 'model')
    log.to_csv(folder / 'log.csv', index=False)
    return log, model, GRU4Rec.load(folder / 'model'), folder


def test_a_saved_model_has_the_same_ids_and_knows_those_of_its_training_data(world):
    log, model, loaded, _folder = world
    assert loaded.items_.dtype == model.items_.dtype and loaded.items_.tolist() == model.items_.tolist()
    for ids in (log.ItemId, log.ItemId.to_numpy(), log.ItemId.tolist(), log.ItemId.astype(str), list(model.items_)):
        assert (loaded.known_indices(ids) >= 0).all()
    np.testing.assert_array_equal(loaded.known_indices(log.ItemId.astype(str)), model.known_indices(log.ItemId))
    assert (loaded.known_indices(['nothing', '-', '']) < 0).all()


def test_every_method_takes_ids_as_they_are_and_as_text(world):
    log, model, loaded, _folder = world
    first, text = log.ItemId.iloc[0], str(log.ItemId.iloc[0])
    expected = model.recommend([first], k=2)
    for found in (loaded.recommend([text], k=2), loaded.session().click(text, k=2)):
        assert found.to_numpy().tolist() == expected.to_numpy().tolist()
    found, wanted = (made.predict_next_batch(['a'], [item], [item], batch=1)
                     for made, item in ((loaded, text), (model, first)))
    assert found.index.tolist() == wanted.index.tolist() and found.to_numpy() == wanted.to_numpy()
    ranks = next_item_ranks(model, log)
    np.testing.assert_array_equal(next_item_ranks(loaded, log.assign(ItemId=log.ItemId.astype(str))), ranks)
    pop = Pop().fit(log)
    assert pop.predict_next(1, text, [text]).tolist() == pop.predict_next(1, first, [first]).tolist()


@pytest.mark.parametrize('world', ['integers', 'floats made of integers', 'text of numbers', 'truth values', 'times',
                                   'dates of Python'], indirect=True)
def test_every_command_takes_ids_as_a_file_or_a_command_line_has_them(world, tmp_path, capsys):
    log, _model, model, folder = world

    def run(command):
        assert cli.main(command.split()) == 0
        return json.loads(capsys.readouterr().out)
    assert cli.main(['recommend', f'{folder}/model', '--json', '-k', '2', str(log.ItemId.iloc[0])]) == 0
    out, error = capsys.readouterr()
    assert error == ''
    scores = [row['score'] for row in json.loads(out)['recommendations']]
    assert scores == model.recommend(log.ItemId[:1], 2).Score.tolist()
    found = run(f'evaluate {folder}/model {folder}/log.csv --backend python --json --quiet')
    assert found['predictions'] == len(log) - log.SessionId.nunique()
    assert run(f'info {folder}/model --json')['items'] == model.n_items
    found = run(f'fit {folder}/log.csv -o {tmp_path}/more --more {folder}/model --epochs 1 --backend python --json '
                '--quiet')
    assert found['items'] == model.n_items
    assert_same_bits(state_of(GRU4Rec.load(tmp_path / 'more')), state_of(model.fit_more(log, 1)))


@pytest.mark.parametrize('sessions', [
    LOG.SessionId.astype(str), LOG.SessionId.astype(float), LOG.SessionId.astype('category'),
    pd.to_datetime(LOG.SessionId, unit='D'), pd.to_datetime(LOG.SessionId, unit='D').dt.date,
    LOG.SessionId.astype('Int64')], ids=['text', 'floats', 'category', 'days', 'dates', 'nullable'])
def test_sessions_may_have_ids_of_any_kind(sessions):
    log = LOG.assign(SessionId=sessions)
    assert len(next_item_ranks(small_model().fit(log), log)) == len(log) - LOG.SessionId.nunique()


def test_sessions_are_in_the_order_of_their_ids_and_not_of_the_categories_of_a_column():
    ids = LOG.SessionId.unique()
    log = LOG.assign(SessionId=pd.Categorical(LOG.SessionId, categories=sorted(ids, reverse=True)))
    assert_same_bits(state_of(small_model().fit(log)), state_of(small_model().fit(LOG)))


def test_new_items_are_taken_over_in_the_spelling_of_the_model():
    for old, new, expected in [([1, 2], ['2', '3', '4.0'], [2, 3, 4]), (['a', 'b'], [7, 'b', 8.0], ['7', 'b', '8']),
                               ([1.0, 2.5], ['2', '2.5'], [2.0, 2.5]), ([1.0], [1e-7], [1e-7]),
                               ([10 ** 18], [10 ** 18 + 3], [10 ** 18 + 3])]:
        found = IdIndex(pd.Series(old).to_numpy()).like(pd.Series(new))
        assert found.tolist() == expected and {*map(type, found.tolist())} == {*map(type, expected)}
    with pytest.raises(ValueError, match='300, too large for uint8'):
        IdIndex(np.array([1, 2], np.uint8)).like(pd.Series([1, 300]))
    items = pd.unique(LOG.ItemId)
    model = small_model().fit(LOG).fit_more(LOG.assign(ItemId=(LOG.ItemId + 10).astype(str)), 1)
    assert model.items_.tolist() == [*items, items.max() + 10]


def test_ids_that_a_list_spells_apart_stay_apart():
    index = IdIndex(np.array(['7', '7.0', '07', 'True', 'true', '8.0'], dtype=object))
    assert index.get_indexer(['7', '7.0', '07', 'true', 'TRUE', 8, '8']).tolist() == [0, 1, 2, 4, -1, 5, 5]
    assert index.get_indexer([7, 7.0]).tolist() == [-1, -1]
    index = IdIndex(np.array([1, 0]))
    assert index.get_indexer([True, '1', '01', '1.5', 1.5, None]).tolist() == [-1, 0, -1, -1, -1, -1]


@pytest.mark.parametrize('ids, message', [
    (1001, r'session_items: must be a list, an array or a Series of ids, such as \[1001\], not int 1001'),
    ('p10', "session_items: must be .* not str 'p10'"), ({10, 20}, 'session_items: must be .* not a set'),
    ({10: 1}, 'session_items: must be .* not a dict'), (None, 'session_items: must be .* not a NoneType'),
    (iter([10]), 'session_items: must be .* not a list_iterator'),
    (LOG[['ItemId']], 'session_items: must be .* not a DataFrame'),
    ([[10], 20], r'ids must be numbers, text, dates or truth values, not such as \[10\]')])
def test_what_is_no_list_of_ids_gets_one_sentence(ids, message):
    with pytest.raises(TypeError, match=message):
        small_model().fit(LOG).recommend(ids)


class Polars:
    """A frame of polars as seen from outside."""
    __module__ = 'polars.dataframe.frame'

    def to_pandas(self):
        return LOG


NO_FRAME = 'the data must be a pandas DataFrame .* not '


@pytest.mark.parametrize('data, message', [
    *[(LOG.iloc[:4].assign(ItemId=pd.Series(values, LOG.index[:4])), message) for values, message in [
        ([(1, 2)] * 4, r"column 'ItemId' has values such as \(1, 2\), of type tuple: they must be numbers, text"),
        ([[1]] * 4, "'ItemId' has values such as .*, of type list"),
        (pd.period_range('2020', periods=4), 'of type Period'), ([1, b'x', 1, 1], "such as b'x', of type bytes")]],
    (Polars(), NO_FRAME + r'polars.Polars; its method to_pandas\(\) makes one'), (LOG.to_dict(), NO_FRAME + 'dict$'),
    (LOG.to_numpy(), NO_FRAME + 'numpy.ndarray$')],
    ids=['tuples', 'lists', 'periods', 'bytes', 'polars', 'dictionary', 'array'])
def test_ids_that_cannot_be_compared_or_saved_and_what_is_no_frame_are_refused_before_training(data, message):
    for fit in (small_model().fit, Pop().fit):
        with pytest.raises(TypeError, match=message):
            fit(data)


def test_numbers_and_text_of_numpy_are_arguments_like_others():
    arguments = dict(layers=[np.int64(4)], batch_size=np.int32(6), n_epochs=np.int8(2), feedforward=(np.uint8(3),),
                     embedding=np.int64(5), seed=np.int64(7), learning_rate=np.float32(0.1), dropout_p_hidden=0.0,
                     loss=np.str_('bpr'), reset_after_session=np.bool_(False))
    plain = {name: getattr(value, 'item', lambda value=value: value)() for name, value in arguments.items()}
    plain |= {'layers': [4], 'feedforward': [3]}
    found, expected = (GRU4Rec(**{'backend': 'python'} | given).fit(LOG) for given in (arguments, plain))
    assert_same_bits(state_of(found), state_of(expected))
    assert next_item_ranks(found, LOG, batch_size=np.int64(7)).tolist() == next_item_ranks(expected, LOG).tolist()
    pd.testing.assert_frame_equal(found.recommend(np.array([10]), k=np.int64(3)), expected.recommend([10], k=3))
