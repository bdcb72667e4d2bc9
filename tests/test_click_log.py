"""Reading a session log of any kind, and preparing training and test data from it."""
import bz2
import codecs
import csv
import datetime
import gzip
import io
import itertools
import lzma
import os
import threading
import zipfile
from collections import Counter
from time import process_time

import numpy as np
import pandas as pd
import pytest
from common import assert_same_bits, few_items_log, state_of
from pandas.testing import assert_frame_equal

import preprocess_rsc15
import run_experiments
from gru4rec import GRU4Rec
from gru4rec_pytensor import cli, click_log, events, text_table
from gru4rec_pytensor.files import plain_text

DAY = 86_400
HEADER = 'SessionId,ItemId,Time\n'
EVENTS = pd.DataFrame({'SessionId': [2, 2, 1], 'ItemId': [10, 7, 10], 'Time': [5, 6, 9]})


def written(tmp_path, text, name='log'):
    (tmp_path / name).write_bytes(text.encode())
    return tmp_path / name


def read_rows(tmp_path, text):
    return click_log.read_events(written(tmp_path, text)).to_numpy().tolist()


@pytest.mark.parametrize('delimiter', list('\t,;|'))
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_the_delimiter_is_found_in_the_header_and_other_columns_and_their_order_do_not_matter(tmp_path, delimiter, end):
    lines = [['Time', 'note', 'ItemId', 'SessionId'], ['5', 'a b', '10', '2'], ['6', '', '7', '2'],
             ['9', 'x', '10', '1']]
    path = written(tmp_path, end.join(delimiter.join(line) for line in lines) + end)
    assert_frame_equal(click_log.read_events(path), EVENTS)


def test_a_byte_order_mark_quotes_and_spaces_are_not_part_of_names_and_values(tmp_path):
    assert read_rows(tmp_path, '\ufeff"SessionId", "ItemId", "Time"\n2, "a, b", 5\n') == [[2, 'a, b', 5]]


@pytest.mark.parametrize('texts, ids', [
    (['7', '10'], [7, 10]), (['007', '7'], ['007', '7']), (['7', 'NA'], ['7', 'NA']), (['1e3', '5'], ['1e3', '5']),
    (['1.0', '2'], ['1.0', '2']), (['-3', '4'], [-3, 4]), (['ä', 'nan'], ['ä', 'nan']),
    (['12345678901234567890', '1'], ['12345678901234567890', '1']),
    *[([*map(str, range(3000)), odd],) * 2 for odd in ('x', '0007', '1e3', '+7', '7.5')]])  # far down the file, too
def test_ids_are_numbers_only_where_all_of_a_column_are_written_as_such(tmp_path, texts, ids):
    events = click_log.read_events(written(tmp_path, HEADER + ''.join(f'1,{text},1\n' for text in texts)))
    assert events.ItemId.tolist() == ids and events.SessionId.dtype == 'int64'


def read_times(tmp_path, times, **options):
    """Read a log of one session with these times."""
    path = written(tmp_path, HEADER + ''.join(f'1,2,{time}\n' for time in times))
    return click_log.read_events(path, **options).Time.tolist()


@pytest.mark.parametrize('texts, seconds', [
    (['2014-04-07T10:51:09.500Z', '2014-04-07T12:51:09+02:00'], [1396867869.5, 1396867869]),
    (['2014-04-07 10:51:09.5', '2014-04-07 10:51:09'], [1396867869.5, 1396867869]),
    (['2014-04-07', '2014-04-06'], [1396828800, 1396742400]),
    (['2019-10-01 00:00:01 UTC', '2019-10-01 00:00:01'], [1569888001] * 2),
    (['2019-10-01 00:00:01UTC', '2019-10-01T00:00:01 GMT'], [1569888001] * 2)])
def test_dates_become_seconds_since_1970(tmp_path, texts, seconds):
    assert read_times(tmp_path, texts) == seconds


@pytest.mark.parametrize('unit, factor', [('ms', 10 ** 3), ('us', 10 ** 6), ('ns', 10 ** 9)])
def test_the_unit_of_times_is_told_by_their_size_and_said_and_can_be_given(tmp_path, caplog, unit, factor):
    times, seconds = [5 * factor, 1396861869 * factor], [5, 1396861869]
    assert read_times(tmp_path, times) == seconds and f'are taken for {events.UNIT_NAMES[unit]}' in caplog.text
    caplog.clear()
    assert read_times(tmp_path, times, time_unit='s') == times
    assert read_times(tmp_path, times, time_unit=unit) == seconds and not caplog.records


def test_rows_without_a_session_or_an_item_are_dropped_on_request_and_counted(tmp_path, caplog):
    path = written(tmp_path, 'SessionId,ItemId,Time\na,x,5\na,,6\n,y,7\n,y,8\n')
    with pytest.raises(ValueError, match='line 4: SessionId is missing, not an id .--drop-without-session'):
        click_log.read_events(path, drop_without_item=True)
    with pytest.raises(ValueError, match='line 3: ItemId is missing, not an id .--drop-without-item'):
        click_log.read_events(path, drop_without_session=True)
    found = click_log.read_events(path, drop_without_session=True, drop_without_item=True)
    assert found.to_numpy().tolist() == [['a', 'x', 5]]
    assert '2 of 4 rows have no SessionId and are left out' in caplog.text
    assert '1 of 2 rows have no ItemId and are left out' in caplog.text
    later = written(tmp_path, 'SessionId,ItemId,Time\n,1,5\na,1,x\n')
    with pytest.raises(ValueError, match='line 3: Time is'):
        click_log.read_events(later, drop_without_session=True)
    rows = [f'{k // 3 or ""},{["x", "y", ""][k % 3]},{k}\n' for k in range(600)]
    path = written(tmp_path, HEADER + ''.join(rows))
    command = f'prepare {path} -o {tmp_path}/data --test-fraction 0.5 --quiet'.split()
    assert cli.main(command) == 2 and cli.main([*command, '--drop-without-item', '--drop-without-session']) == 0


def test_a_parquet_file_is_read_like_text(tmp_path):
    pytest.importorskip('pyarrow')
    stamps = EVENTS.assign(Time=pd.to_datetime(EVENTS.Time, unit='s'), more=1)
    stamps.to_parquet(tmp_path / 'log.parquet')
    assert_frame_equal(click_log.read_events(tmp_path / 'log.parquet'), EVENTS.astype({'Time': float}))
    for odd, message in ((None, 'ItemId is missing, not an id'), (1e30, r'ItemId is 1e\+30, not a whole number of 64')):
        EVENTS.assign(ItemId=[1, odd, 3]).to_parquet(tmp_path / 'odd.parquet')
        with pytest.raises(ValueError, match=f'odd.parquet, row 1: {message}'):
            click_log.read_events(tmp_path / 'odd.parquet')
    EVENTS.set_index('ItemId').to_parquet(tmp_path / 'index.parquet')
    assert_frame_equal(click_log.read_events(tmp_path / 'index.parquet'), EVENTS)
    with pytest.raises(ValueError, match=r"lacks the column 'item'; it has \['SessionId', 'Time', 'ItemId'"):
        click_log.read_events(tmp_path / 'index.parquet', ('SessionId', 'item', 'Time'))


def test_of_a_parquet_file_the_needed_columns_are_read(tmp_path, monkeypatch):
    parquet = pytest.importorskip('pyarrow.parquet')
    read, asked = parquet.ParquetFile.read, []

    def noted(file, columns, **options):
        asked.append(columns)
        return read(file, columns, **options)
    monkeypatch.setattr(parquet.ParquetFile, 'read', noted)
    EVENTS.assign(note='x', kind=['see', 'buy', 'see']).to_parquet(tmp_path / 'log.parquet')
    assert_frame_equal(click_log.read_events(tmp_path / 'log.parquet'), EVENTS)
    found = click_log.read_events(tmp_path / 'log.parquet', event_key='kind', event_types=['see'])
    assert_frame_equal(found, EVENTS[EVENTS.index != 1].reset_index(drop=True))
    assert asked == [['SessionId', 'ItemId', 'Time'], ['SessionId', 'ItemId', 'Time', 'kind']]


def read_parquet(tmp_path, options=None, **columns):
    """Read a Parquet file with these columns of Arrow; the others are running numbers."""
    arrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    n = len(next(iter(columns.values())))
    whole = {name: arrow.array(range(n)) for name in EVENTS} | columns
    parquet.write_table(arrow.table(whole), tmp_path / 'log.parquet')
    return click_log.read_events(tmp_path / 'log.parquet', **options or {})


@pytest.mark.parametrize('kind', ['parquet', 'csv', 'parquet of other programs'])
def test_ids_of_16_digits_stay_what_they_are_beside_rows_without_any(tmp_path, kind):
    """As floats two of them would be one."""
    arrow = pytest.importorskip('pyarrow') if 'parquet' in kind else None
    ids, options = [2 ** 53, 2 ** 53 + 1], dict(drop_without_session=True)
    if kind == 'parquet of other programs':  # without what pandas adds
        found = read_parquet(tmp_path, options, SessionId=arrow.array([*ids, None]))
    else:
        log = pd.DataFrame({'SessionId': pd.array([*ids, None], 'Int64'), 'ItemId': [1, 2, 3], 'Time': [1, 2, 3]})
        getattr(log, f'to_{kind}')(tmp_path / 'log', index=False)
        found = click_log.read_events(tmp_path / 'log', **options)
    assert found.SessionId.tolist() == ids and found.SessionId.dtype == 'int64'


# --- What is no id or no time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('column', ['SessionId', 'ItemId', 'Time'])
def test_columns_of_parquet_that_hold_no_ids_or_times_are_named(tmp_path, column):
    arrow = pytest.importorskip('pyarrow')
    eight = [int(number).to_bytes(8, 'big') for number in range(120)]
    for values, kind in [
            (arrow.array(eight), 'binary'), (arrow.array(eight, arrow.binary(8)), 'fixed_size_binary'),
            (arrow.array(eight).dictionary_encode(), 'binary'), (arrow.array([[1], [2, 3]]), 'list'),
            (arrow.array([{'a': 1}] * 2), 'struct'), (arrow.array([7, 8], arrow.time64('us')), 'time64'),
            (arrow.array([[('a', 1)]] * 2, arrow.map_(arrow.string(), arrow.int64())), 'map'),
            (arrow.array([7, 8], arrow.duration('s')), 'duration'),
            (arrow.ExtensionArray.from_storage(arrow.uuid(), arrow.array([16 * b'\x0a'] * 2, arrow.binary(16))),
             'fixed_size_binary')]:
        with pytest.raises(ValueError, match=f"log.parquet: column '{column}' holds {kind}"):
            read_parquet(tmp_path, **{column: values})


def test_columns_of_parquet_may_be_decimals_and_dictionaries(tmp_path):
    arrow = pytest.importorskip('pyarrow')
    found = read_parquet(tmp_path, SessionId=arrow.array(['b', 'a', 'b']).dictionary_encode(),
                         ItemId=arrow.array([10 ** 17, 10 ** 17 + 1, 7]).cast(arrow.decimal128(20, 0)),
                         Time=arrow.array(['2014-01-02', '2014-01-01', '2014-01-02']).dictionary_encode())
    assert found.SessionId.tolist() == ['b', 'a', 'b'] and found.ItemId.tolist() == [10 ** 17, 10 ** 17 + 1, 7]
    assert found.Time.tolist() == [1388620800, 1388534400, 1388620800]


@pytest.mark.parametrize('day', ['9999-12-31', '0001-01-01', '2262-05-01', '1900-01-01', '1900-12-31'])
def test_dates_that_stand_for_none_are_named_with_their_line(tmp_path, day):
    message = rf'Time is .*{day}.*, not (a time from 1901 to 2199|a number, or a date)'
    with pytest.raises(ValueError, match=f'log, line 3: {message}'):
        read_times(tmp_path, ['2014-01-01', day])
    arrow = pytest.importorskip('pyarrow')
    for kind in (arrow.date32(), arrow.timestamp('s'), arrow.timestamp('us', 'UTC')):
        stamps = pd.Series(['2014-01-01', day]).map(datetime.datetime.fromisoformat).tolist()
        values = [stamp.date() for stamp in stamps] if kind == arrow.date32() else stamps
        with pytest.raises(ValueError, match=f'log.parquet, row 1: {message}'):
            read_parquet(tmp_path, Time=arrow.array(values, kind))
    with pytest.raises(ValueError, match=r'Time is .* in row 1, not a time from 1901 to 2199'):
        click_log.prepare(EVENTS.assign(Time=[*map(datetime.date.fromisoformat, ['2014-01-01', day, '2014-01-01'])]))


def test_dates_before_1970_are_read_as_negative_seconds(tmp_path):
    texts = ['1901-01-01', '1965-03-01T06:00:00.500', '1969-12-31T23:59:59', '1970-01-01', '2014-04-07']
    days = [datetime.datetime.fromisoformat(text) for text in texts]
    seconds = [(day - datetime.datetime(1970, 1, 1)).total_seconds() for day in days]
    assert read_times(tmp_path, texts) == seconds and seconds[1] == -152_647_199.5
    assert read_times(tmp_path, ['19650301', '19691231', '20140407']) == [-152_668_800, -86_400, 1_396_828_800]
    for times in (days, pd.to_datetime(texts, format='ISO8601'), pd.to_datetime(texts, format='ISO8601', utc=True)):
        assert events.in_seconds(pd.Series(times)).tolist() == seconds
    with pytest.raises(ValueError, match='log, line 2: Time is -1, not a time: it is negative'):
        read_times(tmp_path, [-1, 5])


def test_a_log_of_before_1970_is_prepared_like_the_same_log_of_today_and_read_again(tmp_path, clicks):
    shift = 10_000 * DAY
    today = clicks.assign(Time=clicks.Time + shift - 5 * DAY)
    dates = pd.to_datetime(today.Time - shift, unit='s').dt.strftime('%Y-%m-%dT%H:%M:%SZ')  # ten days around 1970
    today.to_csv(tmp_path / 'today', index=False)
    today.assign(Time=dates).to_csv(tmp_path / 'long_ago', index=False)
    for name in ('today', 'long_ago'):
        assert cli.main(f'prepare {tmp_path}/{name} -o {tmp_path}/{name}-data --quiet --test-days 7'.split()) == 0
    for part in ('train', 'test'):
        expected, found = (click_log.read_events(tmp_path / f'{name}-data' / f'{part}.tsv')
                           for name in ('today', 'long_ago'))
        assert_frame_equal(found, expected.assign(Time=expected.Time - shift), check_dtype=False)
        assert (found.Time < 0).any()


@pytest.mark.parametrize('text', ['now', 'today', 'True', 'NaT', 'yesterday'])
def test_words_are_no_times(tmp_path, text):
    with pytest.raises(ValueError, match=f'log, line 3: Time is .*{text}.*, not a number'):
        read_times(tmp_path, ['2014-01-01', text])
    with pytest.raises(ValueError, match='log, line 2: Time is .*True'):
        read_times(tmp_path, ['True', 'True'])
    with pytest.raises(TypeError, match='Time must be timestamps or a number of seconds since 1970, not bool'):
        click_log.prepare(EVENTS.assign(Time=True))
    with pytest.raises(TypeError, match=f"column 'Time' must hold numbers or timestamps, not text such as '{text}'"):
        click_log.prepare(EVENTS.assign(Time=text))
    arrow = pytest.importorskip('pyarrow')
    with pytest.raises(ValueError, match='log.parquet, row 0: Time is True, not a time'):
        read_parquet(tmp_path, Time=arrow.array([True, True]))


@pytest.mark.parametrize('form', ['%Y%m%d', '%Y%m%d%H%M', '%Y%m%d%H%M%S'])
def test_dates_that_are_written_as_numbers_are_read_as_such(tmp_path, caplog, form):
    days = pd.Timestamp('2014-01-01') + pd.to_timedelta(np.arange(15) * 40, 'D')
    assert read_times(tmp_path, days.strftime(form)) == [day.timestamp() for day in days]
    assert f'numbers such as {days[0].strftime(form)} are taken for dates' in caplog.text
    numbers = days.strftime(form).astype('int64').tolist()
    assert read_times(tmp_path, numbers, time_unit='s') == numbers
    assert events.in_seconds(pd.Series(numbers[:1])).tolist() == [1388534400]


@pytest.mark.parametrize('form', ['%y%m', '%Y%m', '%y%m%d', '%y%m%d%H', '%Y%m%d%H', '%y%m%d%H%M', '%y%m%d%H%M%S'])
def test_numbers_that_are_dates_or_not_are_refused_unless_their_unit_is_given(tmp_path, form):
    numbers = (pd.Timestamp('2014-01-01') + pd.to_timedelta(np.arange(15) * 40, 'D')).strftime(form)
    with pytest.raises(ValueError, match=f'log, line 2: Time: numbers such as {numbers[0]} look like dates .*2014-01-'):
        read_times(tmp_path, numbers)
    assert read_times(tmp_path, numbers, time_unit='s') == numbers.astype('int64').tolist()


@pytest.mark.parametrize('times', [range(2000), range(1396310400, 1396312000), range(20140101, 20140201),
                                   range(1000, 1013), [1401, 1402], [1401010000.5, 1401020000, 1401030000]])
def test_running_numbers_and_seconds_are_no_dates(times):
    assert events.in_seconds(pd.Series(times)).tolist() == list(times)


@pytest.mark.parametrize('odd', ['1396310402000', '1e30', '253402214400', '9223372036854775807', '1396310402000000'])
@pytest.mark.parametrize('place', [0, 3, 40])
def test_one_time_in_another_unit_is_named_and_rescales_nothing(tmp_path, odd, place):
    times = [str(1396310400 + k) for k in range(41)]
    times[place] = odd
    with pytest.raises(ValueError, match=rf'log, line {place + 2}: Time is \S+, not a time in the unit of the others'):
        read_times(tmp_path, times)
    times = [str(1396310400_000 + k) for k in range(41)]
    times[place] = '1396310400'
    with pytest.raises(ValueError, match=rf'log, line {place + 2}: Time is 1396310400, not a time in the unit'):
        read_times(tmp_path, times)


# --- Quotation marks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('first, last', [('"Live', 'd"'), ('"Live', 'd'), ('Live"', 'd')])
def test_an_unclosed_quotation_mark_swallows_no_row(tmp_path, first, last):
    text = f'SessionId,ItemId,Time,Title\n1,5,10,{first}\n1,6,20,b\n2,5,30,c\n2,6,40,{last}\n3,5,50,e\n'
    assert read_rows(tmp_path, text) == [[1, 5, 10], [1, 6, 20], [2, 5, 30], [2, 6, 40], [3, 5, 50]]


@pytest.mark.parametrize('text', [
    'SessionId,ItemId,Time,Title\n1,5,10,"Live\nat, home"\n1,6,20,b\n',
    'Title,SessionId,ItemId,Time\n"Live\nat home",1,5,10\n"a ""b"", c",1,6,20\n',
    '"SessionId",ItemId,"Time"\n"1","5","10"\n"1","6","20"\n',
    '"SessionId",ItemId,"Time"\n1,"5",10\n1,"6",20\n', '"SessionId",ItemId,"Time"\n"1",5,10\n1,6,"20"\n'])
def test_quotation_marks_hold_together_a_field_that_spans_lines_and_are_no_part_of_numbers(tmp_path, text):
    assert read_rows(tmp_path, text) == [[1, 5, 10], [1, 6, 20]]


def test_marks_within_fields_are_letters(tmp_path):
    text = 'SessionId,ItemId,Time\n1,5" disk,10\n1,"say ""a""",20\n1,"b,30\n'
    assert [row[1] for row in read_rows(tmp_path, text)] == ['5" disk', 'say "a"', '"b']
    text = 'SessionId,ItemId,Time,Title\n1,"b,10,c"\n1,5,20,d\n'  # together they would cost the first row its time
    assert read_rows(tmp_path, text) == [[1, '"b', 10], [1, '5', 20]]
    assert read_rows(tmp_path, HEADER + '1,"c" d,10\n') == [[1, '"c" d', 10]]


def test_no_file_of_random_marks_loses_a_row_without_an_error(tmp_path):
    rng = np.random.RandomState(0)
    n_read = 0
    for _file in range(150):
        titles = [''.join(rng.choice(list('ab",\n '), rng.randint(4))) for _row in range(5)]
        whole = [not (set(title) & set('",\n')) for title in titles]
        quoted = [title if good else '"' + title.replace('"', '""') + '"' for title, good in zip(titles, whole)]
        broken = rng.randint(5)
        damaged = rng.rand() < 0.5
        if damaged:  # one row has a mark that nobody closes
            quoted[broken] = '"' + titles[broken].replace('\n', '').replace('"', '').replace(',', '')
        text = 'SessionId,ItemId,Time,Title\n' + ''.join(f'1,{k},{k},{title}\n' for k, title in enumerate(quoted))
        try:
            found = read_rows(tmp_path, text)
        except ValueError as error:
            assert damaged and 'quotation mark' in str(error) or 'fields, but' in str(error), text
            continue
        assert [row[1] for row in found] == [0, 1, 2, 3, 4], text
        n_read += 1
    assert n_read > 75


def test_fields_are_counted_as_the_csv_module_counts_them_wherever_marks_are_called_closed(tmp_path):
    rng = np.random.RandomState(0)
    n_closed = 0
    for _text in range(1000):
        text = ''.join(rng.choice(list('ab,,""\n '), rng.randint(1, 14))) + '\n'
        _same, closed, whole, too_long, _odd = text_table.look_through(io.BytesIO(text.encode()), ',', 1)
        lengths = [len(row) for row in csv.reader(io.StringIO(text, newline=''), skipinitialspace=True)]
        if closed:
            n_closed += 1
            assert len(lengths) == text.count('\n')
            assert too_long == next(((k, n) for k, n in enumerate(lengths, start=1) if n > 2), None)
            assert whole == all(n == 2 or not line.strip() for n, line in zip(lengths, text.split('\n')))
    assert n_closed > 166


@pytest.mark.parametrize('name, title', [
    *itertools.product(['"Title, short"', '"Title\nof the page"', '" a ""b"", c; d"', '"SessionId,"'], ['a', '"b, c"']),
    ('Title"', 'a'), ('5" disk', 'a'), ('"Title', 'a')])
def test_a_name_in_the_header_may_hold_what_separates_names_a_line_end_and_marks(tmp_path, name, title):
    """Wherever it stands; and a mark that is a letter in it, or has no second one, cuts nothing."""
    for place in range(4):
        rows = [['1', '5', '10'], ['1', '6', '20']]
        header = ['SessionId', 'ItemId', 'Time']
        lines = [line[:place] + [more] + line[place:] for line, more in zip([header, *rows], [name, title, title])]
        assert read_rows(tmp_path, ''.join(','.join(line) + '\n' for line in lines)) == [[1, 5, 10], [1, 6, 20]]


@pytest.mark.parametrize('text, message', [
    ('"Title\nof the page",SessionId,ItemId,Time\na,1,5,10\n"b, c",1,6,x\n', "log, line 4: Time is 'x'"),
    ('\nSessionId,ItemId,Time,Title\n\n1,5,10,"a\nb"\n   \n1,6,x,c\n', "log, line 7: Time is 'x'"),
    *[(text, r'log: is JSON, not a table; .* \(of OTTO, session, aid and ts\)')
      for text in ('{"session": 0, "events": []}\n', '[{"session": 0}]\n')]])
def test_json_is_named_and_lines_are_counted_with_those_that_are_blank_or_within_names_and_fields(
        tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path, text)


# --- Compression, encodings, pipes ----------------------------------------------------------------------------------


def zipped(text):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as archive:
        archive.writestr('folder/', '')
        archive.writestr('folder/log', text)
    return packed.getvalue()


TEXT = 'SessionId\tItemId\tTime\n2\t10\t5\n2\t7\t6\n1\t10\t9\n'
PACKS = {'plain': bytes, 'gzip': gzip.compress}
ALL_PACKS = PACKS | {'bzip2': bz2.compress, 'xz': lzma.compress, 'zip': zipped}


@pytest.mark.parametrize('pack', ALL_PACKS.values(), ids=ALL_PACKS)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_a_file_may_be_compressed_and_have_a_byte_order_mark_whatever_its_name(tmp_path, pack, encoding):
    (tmp_path / 'log').write_bytes(pack(TEXT.replace('2', 'ä').encode(encoding)))
    assert_frame_equal(click_log.read_events(tmp_path / 'log'), EVENTS.assign(SessionId=['ä', 'ä', '1']))


@pytest.mark.parametrize('pack', PACKS.values(), ids=PACKS)
@pytest.mark.parametrize('start, message', [('\ufeff'.encode('utf-16-le'), 'is UTF-16 text; save it as UTF-8'),
                                            ('\ufeff'.encode('utf-16-be'), 'is UTF-16 text; save it as UTF-8'),
                                            (b'\x28\xb5\x2f\xfd', 'is compressed with zstandard; unpack it first')])
def test_what_is_not_read_is_named(tmp_path, pack, start, message):
    (tmp_path / 'log').write_bytes(pack(start + TEXT.encode('utf-16-le')))
    for read in (click_log.read_events, preprocess_rsc15.read_clicks):
        with pytest.raises(ValueError, match=f'log: {message}'):
            read(tmp_path / 'log')


@pytest.mark.parametrize('kind', [gzip, bz2, lzma], ids=lambda kind: kind.__name__)
def test_a_compressed_log_is_read_whole_or_refused(tmp_path, kind):
    """Cut anywhere, or with a bit flipped in the header of a later stream; also where zeros follow a stream."""
    text = 'SessionId,ItemId,Time\n' + ''.join(f'{k // 3},{k * 7919 % 1000},{k}\n' for k in range(3000))
    streams = [kind.compress(half.encode()) for half in (text[:20_000], text[20_000:])]
    path, packed, second = tmp_path / 'log', b''.join(streams), len(streams[0])
    path.write_bytes(packed)
    expected = click_log.read_events(written(tmp_path, text, 'plain'))
    assert_frame_equal(click_log.read_events(path), expected)
    if kind in (lzma, gzip):
        path.write_bytes(packed[:second] + bytes(8) + packed[second:] + bytes(4))
        assert_frame_equal(click_log.read_events(path), expected)
    damaged = [packed[:end] for end in (len(packed) - 1, second + 3, second - 2, len(packed) // 3, 9)]
    for place in range(second, second + 4):
        damaged.append(packed[:place] + bytes([packed[place] ^ 16]) + packed[place + 1:])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'log: is a damaged \w+ file: '):
            click_log.read_events(path)


def test_the_copy_of_a_compressed_log_has_no_name_so_that_a_killed_process_leaves_none(tmp_path, monkeypatch):
    (tmp_path / 'log.gz').write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temporary'))
    with plain_text(tmp_path / 'log.gz') as copy:
        assert copy.read().decode() == TEXT and list((tmp_path / 'temporary').iterdir()) == []


@pytest.mark.skipif(not os.path.exists('/dev/zero'), reason='needs the devices of Unix')
def test_what_has_no_end_is_not_read_to_its_end(monkeypatch):
    with pytest.raises(ValueError, match='^/dev/zero: is a device, not a file'):
        click_log.read_events('/dev/zero')
    with open('/dev/zero') as endless:
        monkeypatch.setattr('sys.stdin', endless)
        with pytest.raises(ValueError, match='^standard input: is a binary file, not text'):
            click_log.read_events('-')


def test_a_zip_archive_in_a_pipe_is_refused(monkeypatch):
    reading, writing = os.pipe()
    with open(writing, 'wb') as pipe:
        pipe.write(zipped(TEXT))
    with open(reading) as stdin:
        monkeypatch.setattr('sys.stdin', stdin)
        with pytest.raises(ValueError, match='^standard input: is a zip archive, which cannot be read from a pipe'):
            click_log.read_events('-')


def test_many_blank_lines_cost_little_and_are_counted(tmp_path):
    text = '\n' * 1_000_000 + 'SessionId,ItemId,Time\n' + ' \t\n' * 1_000_000 + '1,2,3\n1,2,x\n'
    path = written(tmp_path, text)
    started = process_time()
    with pytest.raises(ValueError, match="log, line 2000003: Time is 'x'"):
        click_log.read_events(path)
    assert process_time() - started < 5


def test_a_header_may_be_long(tmp_path):
    names = ','.join(f'feature {k}' for k in range(20_000))
    assert read_rows(tmp_path, f'{names},SessionId,ItemId,Time\n{"," * 20_000}1,2,3\n') == [[1, 2, 3]]
    with pytest.raises(ValueError, match='log: its first line is longer than 4 MiB'):
        read_rows(tmp_path, 'a,' * (1 << 22))


@pytest.mark.parametrize('pack', PACKS.values(), ids=PACKS)
def test_lines_may_end_with_returns_alone_and_excel_may_have_a_line_of_its_own(tmp_path, pack):
    for text in (TEXT.replace('\n', '\r'), 'sep=\t\n' + TEXT, '"sep=\t"\r\n' + TEXT):
        (tmp_path / 'log').write_bytes(pack(text.encode()))
        assert_frame_equal(click_log.read_events(tmp_path / 'log'), EVENTS)
        (tmp_path / 'log').write_bytes(pack((text[:-2] + 'x' + text[-1]).encode()))
        with pytest.raises(ValueError, match=f"line {4 + text.count('sep')}: Time is 'x'"):
            click_log.read_events(tmp_path / 'log')


def test_standard_input_and_pipes_are_read(tmp_path, monkeypatch):
    for packed in (TEXT.encode(), gzip.compress(TEXT.encode())):
        monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(packed)))
        assert_frame_equal(click_log.read_events('-'), EVENTS)
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(b'SessionId\tItemId\tTime\n1\t2\tx\n')))
    with pytest.raises(ValueError, match="^standard input, line 2: Time is 'x', not a number"):
        click_log.read_events('-')
    os.mkfifo(tmp_path / 'pipe')
    writer = threading.Thread(target=(tmp_path / 'pipe').write_text, args=[TEXT])
    writer.start()
    assert_frame_equal(click_log.read_events(tmp_path / 'pipe'), EVENTS)
    writer.join()


def test_a_block_boundary_changes_nothing(tmp_path, monkeypatch):
    text = 'SessionId,ItemId,Time,Title\n' + ''.join(f'{k},{k},{k},"a, {k}\nb"\n\n' for k in range(200))
    path = written(tmp_path, text)
    expected = click_log.read_events(path)
    monkeypatch.setattr('gru4rec_pytensor.text_table.BLOCK_BYTES', 64)
    assert_frame_equal(click_log.read_events(path), expected)
    for rows, message in ((text, 'line 602: has 5 fields, but the header has 4'),
                          (HEADER + 99 * '7,7,7\n', 'line 101: has 5 fields, but the header has 3')):
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path, rows + '7,7,7,7,7\n')


# --- Logs that are known by their headers ---------------------------------------------------------------------------


RETAILROCKET = """timestamp,visitorid,event,itemid,transactionid
1433221332117,257597,view,355908,
1433221332117,992329,view,248676,
1433224932118,257597,view,111016,
1433224932117,992329,view,248676,
1433224932500,992329,addtocart,248676,
1433221332999,111016,transaction,318965,4000
1433221332100,257597,view,253185,
"""
DIGINETICA = """{}
1;NA;81766;526309;2016-05-09
1;NA;31331;1031018;2016-05-09
2;12;32118;0;2016-05-10
1;NA;32118;243569;2016-05-09
"""
REES46 = """event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session
2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d76fde-8bb3
2019-10-01 00:00:01 UTC,cart,3900821,2053013552326770905,appliances.environment.water_heater,aqua,33.20,554748717,9333
2019-10-01 00:00:01 UTC,view,17200506,2053013559792632471,furniture.living_room.sofa,,543.10,519107250,566511c2
"""
COVEO = """session_id_hash,event_type,product_action,product_sku_hash,server_timestamp_epoch_ms,hashed_url
20c4,event_product,detail,d5157f8b,1550885210881,7e4527ac
20c4,pageview,,,1550885213307,31b1dd97
20c4,event_product,add,d5157f8b,1550885213307,31b1dd97
"""
RECBOLE = """session_id:token\titem_id:token\ttimestamp:float\tnumber of times:float
2\t33043\t1462752000.5\t1
1\t9\t1462752001\t1
"""


def test_the_events_of_retailrocket_are_read_as_they_are(tmp_path, caplog):
    caplog.set_level('INFO', 'gru4rec.events')
    found = click_log.read_events(written(tmp_path, RETAILROCKET, 'events.csv'))
    # 257597: 1433221332.100, .117, and one event 3600.001 s later; 992329: two events 3600.000 s apart
    expected = pd.DataFrame({'SessionId': [0, 1, 2, 1, 0], 'ItemId': [355908, 248676, 111016, 248676, 253185],
                             'Time': [1433221332.117, 1433221332.117, 1433224932.118, 1433224932.117, 1433221332.1]})
    assert_frame_equal(found, expected)
    for said in ('read as the events of retailrocket: session visitorid, item itemid, time timestamp',
                 'timestamp: numbers such as 1433224932118 are taken for milliseconds',
                 'with the event view are kept, and 2 of 7 left out: 1 addtocart, 1 transaction',
                 'parted by more than 3600 seconds without an event: 3 sessions'):
        assert said in caplog.text
    found = click_log.read_events(tmp_path / 'events.csv', event_types=['view', 'transaction'], session_gap=10 ** 6)
    assert found.SessionId.tolist() == [0, 1, 0, 1, 2, 0]
    with pytest.raises(ValueError, match='no event is click; there are 5 view, 1 addtocart, 1 transaction'):
        click_log.read_events(tmp_path / 'events.csv', event_types=['click'])


@pytest.mark.parametrize('header', ['sessionId;userId;itemId;timeframe;eventdate',
                                    'session_id;user_id;item_id;timeframe;eventdate'])
def test_the_views_of_diginetica_have_a_day_and_a_time_in_it(tmp_path, header):
    found = click_log.read_events(written(tmp_path, DIGINETICA.format(header), 'train-item-views.csv'))
    day = pd.Timestamp('2016-05-09').timestamp()
    assert_frame_equal(found, pd.DataFrame({
        'SessionId': [1, 1, 2, 1], 'ItemId': [81766, 31331, 32118, 32118],
        'Time': [day + 526.309, day + 1031.018, day + DAY, day + 243.569]}))
    with pytest.raises(ValueError, match="line 3: eventdate is '2016-13-09', not a number, or a date"):
        click_log.read_events(written(tmp_path, DIGINETICA.format(header).replace('1031018;2016-05', '1;2016-13')))
    with pytest.raises(ValueError, match="line 3: timeframe is '2016-05-09', not a number of milliseconds within the"):
        click_log.read_events(written(tmp_path, DIGINETICA.format(header).replace('1031018', '2016-05-09')))


@pytest.mark.parametrize('log, rows, said', [
    (REES46, [['72d76fde-8bb3', 44600062, 1569888000], ['566511c2', 17200506, 1569888001]],
     'with the event_type view are kept, and 1 of 3 left out: 1 cart'),
    (COVEO, [['20c4', 'd5157f8b', 1550885210.881]], 'with the product_action detail are kept, and 2 of 3 left out: '),
    (RECBOLE, [[2, 33043, 1462752000.5], [1, 9, 1462752001]], 'read as interactions of RecBole')])
def test_other_logs_are_read_as_they_are_and_only_views_of_products_kept(tmp_path, caplog, log, rows, said):
    caplog.set_level('INFO', 'gru4rec.events')
    assert read_rows(tmp_path, log) == rows and said in caplog.text


@pytest.mark.parametrize('pack', [*PACKS.values(), codecs.BOM_UTF8.__add__], ids=[*PACKS, 'byte order mark'])
def test_the_raw_log_of_rsc15_is_read_without_a_header(tmp_path, caplog, monkeypatch, pack):
    caplog.set_level('INFO', 'gru4rec.events')
    raw = ('2,2014-04-07T10:51:09.277Z,214536502,0\n2,2014-04-07T10:54:09.868Z,214536500,S\n'
           '1,2014-04-07T13:56:37.614Z,214662742,0\n')
    (tmp_path / 'log').write_bytes(pack(raw.encode()))
    found = click_log.read_events(tmp_path / 'log')
    assert_frame_equal(found, preprocess_rsc15.read_clicks(tmp_path / 'log'))
    assert found.ItemId.tolist() == [214536502, 214536500, 214662742]
    assert 'log: read as the raw log of RSC15' in caplog.text
    assert click_log.read_events(tmp_path / 'log', session_gap=100).SessionId.tolist() == [0, 1, 2]
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(pack(raw.encode()))))
    assert_frame_equal(click_log.read_events('-'), found)
    (tmp_path / 'log').write_bytes(pack(raw.replace('13:56', '25:56').encode()))
    with pytest.raises(ValueError, match="log, line 3: time '2014-04-07T25:56:37.614Z' is not a time from 1970 on"):
        click_log.read_events(tmp_path / 'log')
    with pytest.raises(ValueError, match='the raw log of RSC15, which is read without options for columns and kinds'):
        click_log.read_events(tmp_path / 'log', event_key='category', event_types=['0'])


def test_a_log_with_the_usual_names_is_what_it_says_whatever_else_it_has(tmp_path):
    header = 'visitorid,itemid,timestamp,event,SessionId,ItemId,Time'
    assert read_rows(tmp_path, f'{header}\n1,2,3,view,4,5,6\n') == [[4, 5, 6]]
    assert read_rows(tmp_path, 'SessionId;ItemId;Time;a, b, c, d, e\n1;2;3;x\n') == [[1, 2, 3]]


def test_kinds_of_event_and_sessions_by_a_gap_are_options_for_any_log(tmp_path):
    path = written(tmp_path, 'who,what,when,kind\na,1,0,7\nb,1,5,7\na,2,60,8\na,2,100,7\na,3,201,7\n')
    columns = ('who', 'what', 'when')
    found = click_log.read_events(path, columns, event_key='kind', event_types=['7'], session_gap=100)
    assert found.to_numpy().tolist() == [[0, 1, 0], [1, 1, 5], [0, 2, 100], [2, 3, 201]]
    assert (*found.columns,) == columns
    with pytest.raises(ValueError, match='event_types needs event_key'):
        click_log.read_events(path, columns, event_types=['7'])
    with pytest.raises(ValueError, match='session_gap=-1: must be'):
        click_log.read_events(path, columns, session_gap=-1)


# --- Preparing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def clicks():
    """400 sessions in ten days, rows shuffled; some items are rare, some sessions short."""
    rng = np.random.RandomState(0)
    lengths = rng.randint(1, 9, 400)
    session = np.repeat(np.arange(400), lengths)
    start = np.sort(rng.randint(10 * DAY, size=400))
    log = pd.DataFrame({'SessionId': session, 'ItemId': rng.zipf(1.5, len(session)).clip(max=60),
                        'Time': start[session] + np.concatenate([np.arange(n) * 6000 for n in lengths])})
    return log.sample(frac=1, random_state=0)


@pytest.mark.parametrize('by', ['last', 'first'])
@pytest.mark.parametrize('shortest', [1, 2, 3])
@pytest.mark.parametrize('options', [dict(test_days=3), dict(test_fraction=0.2)])
def test_the_sessions_of_the_last_days_or_the_last_share_by_ends_or_starts_are_the_test_data(
        clicks, options, shortest, by):
    """By starts, training ends where test data begins, and its sessions have the wanted length after that cut."""
    train, test = click_log.prepare(clicks, min_item_events=1, min_session_length=shortest, test_by=by, **options)

    def with_at_least(n, log):
        return log[log.groupby('SessionId').ItemId.transform('size') >= n]
    log = with_at_least(shortest, clicks.sort_values(['SessionId', 'Time']))
    time = log.groupby('SessionId').Time.transform({'last': 'max', 'first': 'min'}[by])
    if 'test_days' in options:
        border = log.Time.max() - 3 * DAY
    else:
        times = time.groupby(log.SessionId).first().sort_values()
        border = times.iloc[len(times) - round(0.2 * len(times))]
    before = log[(time < border) & (log.Time < border)]
    assert (len(before) < (time < border).sum()) == (by == 'first')
    before = with_at_least(shortest, before)
    behind = with_at_least(2, log[(time >= border) & log.ItemId.isin(before.ItemId)])
    for frame, expected in ((train, before), (test, behind)):
        assert_frame_equal(frame, expected.reset_index(drop=True))


def test_every_filter_is_an_option_and_every_event_that_it_drops_is_counted(clicks, caplog):
    caplog.set_level('INFO', 'gru4rec.events')
    train, test = click_log.prepare(clicks, min_session_length=3, max_session_length=6, min_item_events=20)
    dropped = sum(int(record.args[1].replace(',', '')) for record in caplog.records)
    assert dropped == len(clicks) - len(train) - len(test) and len(caplog.records) >= 4
    assert {*train.groupby('SessionId').size()} == {3, 4, 5, 6}
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
    (dict(min_item_events=None), TypeError, 'min_item_events=None: must be a whole number'),
    (dict(min_session_length=None), TypeError, 'min_session_length=None: must be a whole number'),
    (dict(max_session_length=0), ValueError, 'max_session_length=0: must be a whole number of at least 1'),
    (dict(test_by='start'), ValueError, "test_by='start': must be one of 'last', 'first'"),
    (dict(time_unit='days'), ValueError, "time_unit='days': must be one of 's', 'ms', 'us', 'ns', or None"),
    (dict(test_days='3'), TypeError, "test_days='3': must be a finite number above 0")])
def test_preparing_names_the_column_or_argument_that_is_wrong(options, error, message):
    events = pd.DataFrame({'SessionId': [1, 1], 'ItemId': [1, 2], 'Time': [0.0, 1.0]})
    with pytest.raises(error, match=message):
        click_log.prepare(events, **options)


def test_by_default_it_is_the_papers_protocol_and_a_day_is_one_in_whatever_unit_and_type_the_times_are(clicks):
    """In the script for RSC15, too."""
    clicks = clicks.assign(Time=clicks.Time + 1_400_000_000)
    expected, seconds = click_log.prepare(clicks), clicks.Time
    stamps = pd.to_datetime(seconds, unit='s')
    for times in (seconds * 10 ** 3, seconds * 10 ** 6, seconds.astype(object), seconds.astype('category'),
                  seconds.astype('Int64'), seconds.astype('uint64'), stamps, stamps.dt.tz_localize('UTC'),
                  stamps.astype(object), stamps.astype('category')):
        log = clicks.assign(Time=times)
        parts = preprocess_rsc15.preprocess(log)
        for frame, wanted in zip([*click_log.prepare(log), parts['train_full'], parts['test']], 2 * expected):
            assert_frame_equal(frame, wanted, check_dtype=False)


def sessions_of(rows):
    """The events of each session, (item, time) in the order of time, of rows (session, item, time)."""
    found = {}
    for session, item, time in rows:
        found.setdefault(session, []).append((int(item), time))
    return sorted(sorted(clicks, key=lambda click: click[1]) for clicks in found.values())


def by_hand(sessions, days):
    """The training and test sessions of the protocol of 2023, in loops."""
    sessions = [[click for k, click in enumerate(clicks) if not k or clicks[k - 1][0] != click[0]]
                for clicks in sessions]
    before = None
    while sessions != before:
        before, counts = sessions, Counter(item for clicks in sessions for item, _time in clicks)
        sessions = [[click for click in clicks if counts[click[0]] >= 5] for clicks in sessions]
        sessions = [clicks for clicks in sessions if len(clicks) >= 2]
    border = max(time for clicks in sessions for _item, time in clicks) - days * DAY
    train = [[click for click in clicks if click[1] < border] for clicks in sessions if clicks[0][1] < border]
    train = [clicks for clicks in train if len(clicks) >= 2]
    known = {item for clicks in train for item, _time in clicks}
    test = [[click for click in clicks if click[0] in known] for clicks in sessions if clicks[0][1] >= border]
    return train, [clicks for clicks in test if len(clicks) >= 2]


LOGS_OF_2023 = {  # header, line of an event, kinds of events of which the first one is kept, days of test data
    'Yoochoose': ('', '{SessionId},{date}T{clock}Z,{ItemId},0', ['view'], 1),
    'REES46': (REES46, '{date} {clock:.8} UTC,{kind},{ItemId},1,,,9.9,7,{SessionId}', ['view', 'cart'], 1),
    'Coveo': (COVEO, '{SessionId},event_product,{kind},{ItemId},{ms},x', ['detail', 'add'], 7),
    'RetailRocket': (RETAILROCKET, '{ms},{visitor},{kind},{ItemId},', ['view', 'addtocart'], 7),
    'Diginetica': ('sessionId;userId;itemId;timeframe;eventdate\n', '{SessionId};NA;{ItemId};{of_day};{date}', ['view'],
                   7)}


@pytest.mark.parametrize('title', LOGS_OF_2023)
def test_the_five_logs_of_2023_are_prepared_as_loops_prepare_them(tmp_path, capsys, title):
    rng = np.random.RandomState(1)
    lengths = rng.randint(1, 9, 300)
    start, session = rng.randint(20 * DAY, size=300), np.repeat(np.arange(300), lengths)
    log = pd.DataFrame({'SessionId': session + 100, 'ItemId': rng.zipf(1.4, len(session)).clip(max=80) + 1000,
                        'Time': 1_396_310_400 + start[session] + np.concatenate([np.arange(n) * 1100 for n in lengths]),
                        'visitor': session % 23}).sample(frac=1, random_state=0)
    stamps = pd.to_datetime(log.Time, unit='s')
    header, line, kinds, days = LOGS_OF_2023[title]
    rows = log.assign(date=stamps.dt.strftime('%Y-%m-%d'), clock=stamps.dt.strftime('%H:%M:%S.000'),
                      ms=log.Time * 1000, of_day=log.Time % DAY * 1000).to_dict('records')
    lines = [line.format(**row, kind=kinds[0]) for row in rows]
    lines += [line.format(**row, kind=kind) for row in rows[::9] for kind in kinds[1:]]
    path, out = written(tmp_path, header[:header.find('\n') + 1] + '\n'.join(lines) + '\n'), tmp_path / 'data'
    sessions = sessions_of(zip(log.SessionId, log.ItemId, log.Time))
    if title == 'RetailRocket':
        sessions = []
        for visits in sessions_of(zip(log.visitor, log.ItemId, log.Time)):
            for k, (item, time) in enumerate(visits):
                if k == 0 or time - visits[k - 1][1] > 3600:
                    sessions.append([])
                sessions[-1].append((item, time))
    for options, wanted in (('', days), ('--test-days 3', 3)):
        assert cli.main(f'prepare {path} -o {out} --protocol 2023 {options}'.split()) == 0
        assert (f'the sessions of the last {days} day(s) are the test data' in capsys.readouterr().err) == (not options)
        for name, expected in zip(('train', 'test'), by_hand(sessions, wanted)):
            assert sessions_of(pd.read_csv(out / f'{name}.tsv', sep='\t').to_numpy()) == sorted(expected)
            assert len(expected) > 8


def test_the_protocol_of_2023_is_that_of_the_script_for_rsc15_and_of_three_options(tmp_path, clicks):
    clicks.to_csv(tmp_path / 'log', index=False)
    expected, options = preprocess_rsc15.preprocess(clicks, '2023'), '--drop-repeats --until-stable --test-by first'
    for words in ('--protocol 2023', options, f'--protocol 2023 {options}'):
        assert cli.main(f'prepare {tmp_path}/log -o {tmp_path}/data --quiet {words}'.split()) == 0
        for part, name in (('train_full', 'train'), ('test', 'test')):
            assert_frame_equal(click_log.read_events(tmp_path / 'data' / f'{name}.tsv'), expected[part])
    tuning = click_log.prepare(expected['train_full'], min_item_events=1, test_by='first')
    for frame, part in zip(tuning, ('train_tr', 'valid')):
        assert_frame_equal(frame, expected[part])
    assert cli.main(f'prepare {tmp_path}/log -o {tmp_path}/data --protocol 2023 --test-by last'.split()) == 0
    _train, by_end = click_log.prepare(clicks, drop_repeats=True, until_stable=True)
    assert_frame_equal(click_log.read_events(tmp_path / 'data' / 'test.tsv'), by_end)
    assert len(by_end) > len(expected['test'])


def test_preparing_takes_ids_of_several_types_and_small_integers_as_times(clicks):
    """Their days would overflow; these sessions are all of the last one."""
    names = 's' + clicks.SessionId.astype(str)
    mixed = clicks.assign(SessionId=clicks.SessionId.astype(object).where(clicks.SessionId < 200, names),
                          ItemId=clicks.ItemId.astype(object).where(clicks.ItemId > 1, 'one'))
    options = dict(drop_repeats=True, until_stable=True, test_by='first', test_fraction=0.2)
    for more in ({}, options):
        for frame, wanted in zip(click_log.prepare(mixed, **more), click_log.prepare(clicks, **more)):
            assert sorted(frame.Time) == sorted(wanted.Time)
            assert frame.ItemId.tolist().count('one') == (wanted.ItemId == 1).sum()
    small = EVENTS.assign(Time=np.array([5, 6, 100], 'int8'))
    with pytest.raises(ValueError, match='no event is left after setting the last 0.0005 day'):
        click_log.prepare(small, min_item_events=1, test_days=0.0005)
    assert events.in_seconds(small.Time).dtype == 'int64'


def test_events_of_equal_times_are_counted_and_trained_in_the_order_that_is_asked_for(tmp_path, capsys):
    log = few_items_log(n_sessions=60, n_items=9, seed=1)
    log.assign(Time=log.groupby('SessionId').cumcount() // 2).to_csv(tmp_path / 'log', index=False)
    data = click_log.read_events(tmp_path / 'log')
    share = sum(len(same) for _key, same in data.groupby(['SessionId', 'Time']) if len(same) > 1) / len(data)
    command, new = f'fit {tmp_path}/log --epochs 1 --backend python', '--layers 4 --batch-size 5'
    for order, option in (('item', ''), ('frame', '--equal-times frame')):
        for words in (f'-o {tmp_path}/{order} {new}', f'-o {tmp_path}/more --more {tmp_path}/item'):
            assert cli.main(f'{command} {words} {option}'.split()) == 0
            noted = f'{share:.1%} of the events have the time of another one of their' in capsys.readouterr().err
            assert noted == (order == 'item')
        trained = GRU4Rec([4], batch_size=5, n_epochs=1, backend='python', equal_times=order).fit(data)
        assert_same_bits(state_of(GRU4Rec.load(tmp_path / order)), state_of(trained))
    more = GRU4Rec.load(tmp_path / 'item')
    more.equal_times = 'frame'
    assert_same_bits(state_of(GRU4Rec.load(tmp_path / 'more')), state_of(more.fit_more(data, 1)))
    assert cli.main(f'{command} -o {tmp_path}/more {new} --quiet'.split()) == 0 and capsys.readouterr().err == ''


def test_the_experiments_note_equal_times_of_own_files(tmp_path, capsys):
    log = few_items_log(n_sessions=60, n_items=9, seed=1)
    words = (f'--train {tmp_path}/log --test {tmp_path}/log --out {tmp_path}/out --jobs 1 --backend python '
             f'--parameters {tmp_path}/p.toml').split()
    share = (log.groupby('SessionId').ItemId.transform('size') > 1).mean()
    for times, order, noted in ((0, 'item', True), (0, 'frame', False), (range(len(log)), 'item', False)):
        log.assign(Time=times).to_csv(tmp_path / 'log', sep='\t', index=False)
        (tmp_path / 'p.toml').write_text('[parameters]\nlayers = [4]\nbatch_size = 5\nn_epochs = 1\n'
                                         f'equal_times = "{order}"')
        assert run_experiments.main(words) == 0
        assert (f'{share:.1%} of the training events have the time of another one' in capsys.readouterr().err) == noted
