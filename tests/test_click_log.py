"""Reading a session log of any kind, and preparing training and test data from it."""
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import preprocess_rsc15
from gru4rec_pytensor import click_log

DAY = 86_400
EVENTS = pd.DataFrame({'SessionId': [2, 2, 1], 'ItemId': [10, 7, 10], 'Time': [5, 6, 9]})


def written(tmp_path, text, name='log'):
    (tmp_path / name).write_bytes(text.encode())
    return tmp_path / name


@pytest.mark.parametrize('delimiter', list('\t,;|'))
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_the_delimiter_is_found_in_the_header_and_other_columns_and_their_order_do_not_matter(tmp_path, delimiter, end):
    lines = [['Time', 'note', 'ItemId', 'SessionId'], ['5', 'a b', '10', '2'], ['6', '', '7', '2'],
             ['9', 'x', '10', '1']]
    path = written(tmp_path, end.join(delimiter.join(line) for line in lines) + end)
    assert_frame_equal(click_log.read_events(path), EVENTS)


def test_a_byte_order_mark_quotes_and_spaces_are_not_part_of_names_and_values(tmp_path):
    path = written(tmp_path, '\ufeff"SessionId", "ItemId", "Time"\n2, "a, b", 5\n')
    assert click_log.read_events(path).to_numpy().tolist() == [[2, 'a, b', 5]]


@pytest.mark.parametrize('texts, ids', [
    (['7', '10'], [7, 10]), (['007', '7'], ['007', '7']), (['7', 'NA'], ['7', 'NA']), (['1e3', '5'], ['1e3', '5']),
    (['1.0', '2'], ['1.0', '2']), (['-3', '4'], [-3, 4]), (['ä', 'nan'], ['ä', 'nan']),
    (['12345678901234567890', '1'], ['12345678901234567890', '1'])])
def test_ids_are_numbers_only_where_they_are_written_as_such(tmp_path, texts, ids):
    path = written(tmp_path, 'SessionId\tItemId\tTime\n' + ''.join(f'1\t{text}\t1\n' for text in texts))
    assert click_log.read_events(path).ItemId.tolist() == ids


def test_ids_that_cease_to_be_numbers_far_down_the_file_are_text_from_the_start(tmp_path):
    path = written(tmp_path, 'SessionId\tItemId\tTime\n' + ''.join(f'1\t{k}\t1\n' for k in range(3000)) + '1\tx\t1\n')
    assert click_log.read_events(path).ItemId.tolist() == [*map(str, range(3000)), 'x']


@pytest.mark.parametrize('odd', ['0007', '1e3', '+7', '7.5'])
def test_an_id_far_down_the_file_that_would_lose_something_as_a_number_makes_all_of_them_text(tmp_path, odd):
    path = written(tmp_path, 'SessionId\tItemId\tTime\n' + ''.join(f'1\t{k}\t1\n' for k in range(3000))
                   + f'1\t{odd}\t1\n')
    events = click_log.read_events(path)
    assert events.ItemId.iloc[-1] == odd and events.ItemId.iloc[7] == '7' and events.SessionId.iloc[7] == 1


@pytest.mark.parametrize('texts', [
    ['2014-04-07T10:51:09.500Z', '2014-04-07T12:51:09+02:00'], ['2014-04-07 10:51:09.5', '2014-04-07 10:51:09'],
    ['2014-04-07', '2014-04-06']])
def test_dates_become_seconds_since_1970(tmp_path, texts):
    path = written(tmp_path, 'SessionId,ItemId,Time\n' + ''.join(f'1,2,{text}\n' for text in texts))
    expected = [pd.Timestamp(text).timestamp() for text in texts]
    assert click_log.read_events(path).Time.tolist() == expected


def test_numbers_of_seconds_stay_as_they_are(tmp_path):
    path = written(tmp_path, 'SessionId,ItemId,Time\n1,2,1396861869\n1,2,1396861869.277\n')
    assert click_log.read_events(path).Time.tolist() == [1396861869, 1396861869.277]


def test_columns_may_have_other_names(tmp_path):
    path = written(tmp_path, 'visit,product,when\n2,10,5\n2,7,6\n1,10,9\n')
    columns = ('visit', 'product', 'when')
    assert_frame_equal(click_log.read_events(path, columns), EVENTS.set_axis(columns, axis=1))


def test_a_parquet_file_is_read_like_text(tmp_path):
    pytest.importorskip('pyarrow')
    stamps = EVENTS.assign(Time=pd.to_datetime(EVENTS.Time, unit='s'), more=1)
    stamps.to_parquet(tmp_path / 'log.parquet')
    assert_frame_equal(click_log.read_events(tmp_path / 'log.parquet'), EVENTS.astype({'Time': float}))
    EVENTS.assign(ItemId=[1, None, 3]).to_parquet(tmp_path / 'hole.parquet')
    with pytest.raises(ValueError, match=r'hole.parquet, row 1: ItemId is missing, not an id'):
        click_log.read_events(tmp_path / 'hole.parquet')


# --- Preparing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def clicks():
    """400 sessions in ten days, rows shuffled; some items are rare, some sessions short."""
    rng = np.random.RandomState(0)
    lengths = rng.randint(1, 9, 400)
    session = np.repeat(np.arange(400), lengths)
    start = np.sort(rng.randint(10 * DAY, size=400))
    log = pd.DataFrame({'SessionId': session, 'ItemId': rng.zipf(1.5, len(session)).clip(max=60),
                        'Time': start[session] + np.concatenate([np.arange(n) * 60 for n in lengths])})
    return log.sample(frac=1, random_state=0)


def test_by_default_it_is_the_papers_protocol(clicks):
    expected = preprocess_rsc15.preprocess(clicks)
    train, test = click_log.prepare(clicks)
    assert_frame_equal(train, expected['train_full'])
    assert_frame_equal(test, expected['test'])


def test_the_last_days_or_the_last_share_of_the_sessions_are_the_test_data(clicks):
    for options in (dict(test_days=3), dict(test_fraction=0.2)):
        train, test = click_log.prepare(clicks, min_item_events=1, **options)
        ends = pd.concat([train, test]).groupby('SessionId').Time.max()
        last_in_train = ends[train.SessionId.unique()].max()
        assert last_in_train <= ends[test.SessionId.unique()].min()
        assert not set(train.SessionId) & set(test.SessionId)
        if 'test_days' in options:
            assert last_in_train < ends.max() - 3 * DAY <= ends[test.SessionId.unique()].min()
        else:  # of the sessions of two events or more; some are left out since training lacks their items
            n = (clicks.groupby('SessionId').size() > 1).sum()
            assert train.SessionId.nunique() == n - round(0.2 * n)


def test_every_filter_is_an_option(clicks):
    train, test = click_log.prepare(clicks, min_session_length=3, max_session_length=6, min_item_events=20)
    assert train.groupby('SessionId').size().between(3, 6).all()
    short = clicks[clicks.groupby('SessionId').ItemId.transform('size').between(3, 6)]
    counts = short.ItemId.value_counts()
    assert set(train.ItemId) <= set(counts.index[counts >= 20])
    assert set(test.ItemId) <= set(train.ItemId) and (test.groupby('SessionId').size() >= 2).all()


def test_the_rows_are_in_order_and_equal_times_keep_theirs():
    log = pd.DataFrame({'s': ['b', 'a'] * 6, 'i': [1, 2, 1, 3, 1, 2, 1, 2, 2, 3, 3, 1], 't': [9, 5] * 6})
    log = pd.concat([log, log.assign(s='z', t=10 * DAY)])
    train, test = click_log.prepare(log, ('s', 'i', 't'), min_item_events=1)
    assert train.s.tolist() == ['a'] * 6 + ['b'] * 6
    assert train.i.tolist() == [2, 3, 2, 2, 3, 1, 1, 1, 1, 1, 2, 3]
    assert test.s.tolist() == ['z'] * 12


@pytest.mark.parametrize('options, error, message', [
    (dict(columns=('SessionId', 'ItemId', 'When')), ValueError, "no column 'When'"),
    (dict(min_item_events='3'), TypeError, "min_item_events='3': must be a whole number"),
    (dict(max_session_length=0), ValueError, 'max_session_length=0: must be a whole number of at least 1'),
    (dict(test_days='3'), TypeError, "test_days='3': must be a finite number above 0")])
def test_preparing_names_the_column_or_argument_that_is_wrong(options, error, message):
    events = pd.DataFrame({'SessionId': [1, 1], 'ItemId': [1, 2], 'Time': [0.0, 1.0]})
    with pytest.raises(error, match=message):
        click_log.prepare(events, **options)


def test_preparing_refuses_times_that_are_text():
    events = pd.DataFrame({'SessionId': [1, 1], 'ItemId': [1, 2], 'Time': ['0', '1']})
    with pytest.raises(TypeError, match="column 'Time' must hold numbers or timestamps, not text such as '0'"):
        click_log.prepare(events)
