"""The RSC15 protocol (section 4), the raw log's reader, the writer, the synthetic log and the command line."""
import gzip
import os
import re
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

import preprocess_rsc15 as rsc15
from gru4rec_pytensor.events import COLUMNS, DAY, drop_rare_items, split_at_start, split_last_seconds
from gru4rec_pytensor.synthetic import synthetic_clicks

GOOD_LINE = '1,2014-04-07T10:51:09.277Z,214536502,0\n'


def log(*events):
    """Frame of (session, time, item) tuples."""
    return pd.DataFrame(events, columns=['SessionId', 'Time', 'ItemId'])[['SessionId', 'ItemId', 'Time']]


def rows(frame):
    return [tuple(row) for row in frame[['SessionId', 'Time', 'ItemId']].to_numpy().tolist()]


# Items 1 and 2 are popular. The log ends at day 10, noon; one-click sessions and item 9 vanish before the split.
END = 10.5 * DAY
TRAIN_TR = [(1, 1 * DAY, 1), (1, 1 * DAY + 60, 2), (2, 2 * DAY - 1, 1), (2, 2 * DAY + 1, 2), (3, 3 * DAY, 4),
            (3, 3 * DAY, 2), (3, 3 * DAY, 4), (4, 4 * DAY, 4), (4, 4 * DAY + 1, 4), (4, 4 * DAY + 2, 4)]
VALID = [(10, 9 * DAY, 1), (10, 9 * DAY + 1, 2)]
VALID_DROPPED = [(11, 9 * DAY + 5, 5), (11, 9 * DAY + 6, 5), (11, 9 * DAY + 7, 5),  # item 5 is not in train_tr
                 (12, 9 * DAY + 8, 5), (12, 9 * DAY + 9, 1)]  # ... and without it session 12 has one event
TEST = [(20, END - DAY - 9, 2), (20, END - DAY, 1),  # ends exactly 86,400 s before the log does
        (21, END - 3, 5), (21, END - 2, 2), (21, END, 1)]
TEST_DROPPED = [(22, END - 50, 6), (22, END - 49, 6), (22, END - 48, 6), (22, END - 47, 6), (22, END - 46, 6),
                (23, END - 30, 6), (23, END - 29, 2)]  # item 6 is not in training
NEVER_KEPT = [(30, 5 * DAY, 1),  # one click
              (31, 5 * DAY, 9), (31, 5 * DAY + 1, 1),  # one click once the rare item 9 is gone
              (32, 5 * DAY, 9), (32, 5 * DAY + 1, 9), (32, 5 * DAY + 2, 9)]
WHOLE_LOG = log(*NEVER_KEPT, *TEST, *TRAIN_TR, *TEST_DROPPED, *VALID_DROPPED, *VALID)


# --- Protocol ------------------------------------------------------------------------------------------------------


def test_a_log_with_every_edge_is_split_as_by_hand_and_not_modified_whatever_its_ids_and_other_columns():
    clicks = WHOLE_LOG.copy()
    parts = rsc15.preprocess(clicks)
    pd.testing.assert_frame_equal(clicks, WHOLE_LOG)
    expected = {'train_tr': TRAIN_TR, 'valid': VALID, 'train_full': TRAIN_TR + VALID + VALID_DROPPED, 'test': TEST}
    assert {name: rows(part) for name, part in parts.items()} == expected
    for part in parts.values():
        assert list(part.columns) == ['SessionId', 'ItemId', 'Time'] and list(part.index) == list(range(len(part)))
    named = rsc15.preprocess(WHOLE_LOG.assign(ItemId='item ' + WHOLE_LOG['ItemId'].astype(str), Category=7))
    for name, part in parts.items():
        pd.testing.assert_frame_equal(named[name], part.assign(ItemId='item ' + part['ItemId'].astype(str)))


def test_every_event_that_a_step_drops_is_counted(caplog):
    caplog.set_level('INFO', 'gru4rec.events')
    parts = rsc15.preprocess(WHOLE_LOG)
    dropped = [int(record.args[1]) for record in caplog.records]
    assert len(caplog.records) == 5  # three filters, and the unknown items of two splits
    assert sum(dropped[:-1]) == len(WHOLE_LOG) - len(parts['train_full']) - len(parts['test'])
    assert dropped[-1] == len(parts['train_full']) - len(parts['train_tr']) - len(parts['valid'])


@pytest.mark.parametrize('seconds_before_end, in_test', [(0, True), (86_399.999, True), (86_400, True),
                                                         (86_400.001, False), (90_000, False)])
def test_a_session_is_test_when_its_last_click_is_at_most_a_day_before_the_end_or_in_2023_its_first(
        seconds_before_end, in_test):
    end = 1_411_999_200.277
    time = end - seconds_before_end
    events = log((1, end - 10 * DAY, 1), (1, time, 1), (2, time, 1), (2, end, 1))
    _, test = split_last_seconds(events)
    train, test_by_start = split_at_start(events)
    assert (1 in set(test['SessionId'])) == (2 in set(test_by_start['SessionId'])) == in_test
    assert (time in set(train['Time'])) != in_test  # training ends where test data begins


@pytest.mark.parametrize('events, step', [
    ([(1, 0., 1), (2, 0., 1)], 'dropping one-click sessions'),
    ([(1, 0., 1), (1, 1., 1), (1, 2., 2)], 'fewer than 5 clicks'),
    ([(s, 0., i) for s in range(5) for i in (1, 10 + s)], 'rare items left with one click'),
    ([(1, float(k), 1) for k in range(5)], 'setting the last day apart as test'),
    ([(s, END * s, s) for s in (0, 1) for _ in range(5)], 'dropping test items that are not in training'),
    ([(s, END * (s > 4), 1) for s in range(5) for _ in '12'] + [(7, END, 2)] * 5 + [(7, END, 1)],
     'then test sessions of one event'),
    ([(s, END * s, 1) for s in (0, 1) for _ in range(5)], 'setting the last day apart as validation'),
])
def test_a_step_that_leaves_nothing_is_named(events, step):
    with pytest.raises(ValueError, match=f'no event is left after .*{step}'):
        rsc15.preprocess(log(*events).astype({'Time': float}))


@pytest.mark.parametrize('clicks, error, message', [
    (WHOLE_LOG.rename(columns={'Time': 'Timestamp'}), ValueError, "no column 'Time'; its columns are .*Timestamp"),
    (WHOLE_LOG[['SessionId', 'ItemId', 'Time', 'ItemId']], ValueError, "more than one column 'ItemId'"),
    (WHOLE_LOG.assign(Time='2014-04-07'), TypeError, 'Time must be timestamps or a number'),
    (WHOLE_LOG.assign(Time=WHOLE_LOG['Time'] - 3 * DAY), ValueError, r'is -\d+\.0 in row'),
    (WHOLE_LOG.assign(Time=np.inf), ValueError, 'is inf in row 0'),
    (WHOLE_LOG.assign(ItemId=pd.Series([1, 'a'] * 30, dtype=object)), TypeError, 'ItemId must have values of one type'),
])
def test_a_frame_that_is_no_click_log_is_refused(clicks, error, message):
    with pytest.raises(error, match=message):
        rsc15.preprocess(clicks)


# --- Other splits ---------------------------------------------------------------------------------------------------


def prefixes_by_hand(events):
    """[(items of the prefix, target)], sessions by their last click, then id; within a session the longest first."""
    sessions = sorted(events.groupby('SessionId'), key=lambda found: (found[1].Time.max(), found[0]))
    items = [group.ItemId.tolist() for _session, group in sessions]
    return [(tuple(session[:n]), session[n]) for session in items for n in range(len(session) - 1, 0, -1)]


@pytest.mark.parametrize('share', [1, 2, 4, 7, 64])
def test_a_fraction_holds_the_most_recent_prefixes_as_the_narm_family_counts_them(share):
    parts = rsc15.preprocess(synthetic_clicks(800, 200, seed=3))
    found, counts = rsc15.most_recent_fraction(parts, share)
    for name in ('train_full', 'train_tr'):
        everything = prefixes_by_hand(parts[name])
        wanted = everything[len(everything) - round(len(everything) / share):]
        assert sorted(prefixes_by_hand(found[name])) == sorted(wanted)
    assert counts['training prefixes'] == round(len(prefixes_by_hand(parts['train_full'])) / share)
    sessions = parts['train_full'][parts['train_full'].SessionId.isin(found['train_full'].SessionId)]
    assert counts['clicks'] == len(sessions) + len(parts['test'])
    assert counts['items'] == len({*sessions.ItemId, *parts['test'].ItemId})
    for name in ('test', 'valid'):  # with clicks on items that the fraction lacks
        pd.testing.assert_frame_equal(found[name], parts[name])
    with pytest.raises(ValueError, match='no event is left after keeping the most recent 1/9999 of the prefixes'):
        rsc15.most_recent_fraction(parts, 9999)


def test_published_counts_are_compared_one_by_one():
    counts = {name: {'items': 0, **published} for name, published in rsc15.PUBLISHED.items()}
    assert [rsc15.format_counts(counts).count(word) for word in ('matches', 'differs')] == [2, 0]
    counts['test']['events'] += 1
    assert [rsc15.format_counts(counts).count(word) for word in ('matches', 'differs')] == [1, 1]
    counts = {'train_full': rsc15.PUBLISHED['train_full'], 'test': {'sessions': 15_324, 'events': 71_222, 'items': 0},
              'fraction': rsc15.PUBLISHED_FRACTIONS[64] | {'items': 7}}
    text = rsc15.format_counts(counts, fraction=64)
    assert 'matches: 15,324 sessions, 71,222 events' in text
    assert text.endswith('published: 369,859 training prefixes matches, 55,898 test prefixes matches, '
                         '557,248 clicks matches, 16,766 items differs')
    assert 'matches' not in rsc15.format_counts(counts, synthetic=True, fraction=64)
    assert rsc15.format_counts(counts, fraction=5).count('matches') == 1  # the test file's


def test_published_prefixes_are_a_rounded_share_of_those_of_the_whole_log():
    train, test = (rsc15.PUBLISHED[name] for name in ('train_full', 'test'))
    for share, published in rsc15.PUBLISHED_FRACTIONS.items():
        assert published['training prefixes'] == round((train['events'] - train['sessions']) / share)
        assert published['test prefixes'] == test['events'] - test['sessions']


def test_a_synthetic_log_a_fraction_and_the_protocol_of_2023_are_options_of_the_command(tmp_path, capsys):
    words = ['--sessions', '3000', '--items', '200', '--seed', '7']
    rsc15.main(['--synthetic', str(tmp_path / 'all'), *words])
    printed = capsys.readouterr().out
    assert 'synthetic' in printed and 'matches' not in printed and 'differs' not in printed
    assert {path.name for path in (tmp_path / 'all').iterdir()} == {rsc15.SYNTHETIC_LOG, *rsc15.FILES.values()}
    rsc15.main(['--synthetic', str(tmp_path / 'quarter'), '--fraction', '4', *words])
    rsc15.main(['--synthetic', str(tmp_path / 'later'), '--protocol', '2023', *words])
    assert 'the most recent 1/4: ' in capsys.readouterr().out
    everything, quarter, later = (pd.read_csv(tmp_path / name / rsc15.FILES['train_full'], sep='\t')
                                  for name in ('all', 'quarter', 'later'))
    prefixes = [len(frame) - frame.SessionId.nunique() for frame in (everything, quarter)]
    assert prefixes[1] == round(prefixes[0] / 4)
    pd.testing.assert_frame_equal(later, rsc15.preprocess(synthetic_clicks(3000, 200, 7), '2023')['train_full'])


@pytest.mark.parametrize('options, error, message', [
    (dict(protocol='2023', fraction=4), ValueError, 'fraction=4 goes with the protocol of 2016, not with that of 2023'),
    (dict(protocol='2018'), ValueError, "protocol='2018': must be one of '2016', '2023'"),
    (dict(fraction=0), ValueError, 'fraction=0: must be a whole number of at least 1'),
    (dict(fraction=0.5), TypeError, 'fraction=0.5: must be a whole number')])
def test_files_of_no_known_kind_are_refused_before_the_log_is_read(tmp_path, options, error, message):
    for call, *paths in ((rsc15.preprocess_log, 'no-such-log', tmp_path / 'out'),
                         (rsc15.make_synthetic, tmp_path / 'out')):
        with pytest.raises(error, match=message):
            call(*paths, **options)
    assert not (tmp_path / 'out').exists()
    if 'fraction' not in options:
        with pytest.raises(error, match=message):
            rsc15.preprocess(WHOLE_LOG, **options)


# --- Raw log -------------------------------------------------------------------------------------------------------


def test_times_are_read_as_utc_to_the_millisecond_as_numpy_reads_them(tmp_path):
    path = tmp_path / 'clicks.dat'
    path.write_text(GOOD_LINE + '2,1970-01-01T00:00:00.001Z,7,S\n2,2016-02-29T23:59:59.999Z,8,\n')
    clicks = rsc15.read_clicks(path)
    assert clicks.dtypes.to_dict() == {'SessionId': np.int64, 'ItemId': np.int64, 'Time': np.float64}
    assert list(clicks['SessionId']) == [1, 2, 2] and list(clicks['ItemId']) == [214536502, 7, 8]
    last = datetime(2016, 2, 29, 23, 59, 59, 999_000, UTC).timestamp()
    assert list(clicks['Time']) == [1396867869.277, 0.001, last]
    millis = np.random.default_rng(0).integers(0, 8_000_000_000_000, 20_000)
    times = np.datetime_as_string(millis.astype('datetime64[ms]'))
    path.write_text(''.join(f'1,{time}Z,1,0\n' for time in times))
    np.testing.assert_array_equal(rsc15.read_clicks(path)['Time'], millis / 1000)


def test_lines_across_blocks_and_ends_of_line_of_windows_are_read(tmp_path, monkeypatch):
    lines = [f'{k},2014-04-07T10:51:09.{k:03}Z,{k * k},0' for k in range(300)]
    (tmp_path / 'unix').write_text('\n'.join(lines))  # without a newline at the end
    (tmp_path / 'windows').write_bytes('\r\n'.join([*lines, '']).encode())
    expected = rsc15.read_clicks(tmp_path / 'unix')
    assert list(expected['ItemId']) == [k * k for k in range(300)]
    monkeypatch.setattr('gru4rec_pytensor.raw_log.BLOCK_BYTES', 64)
    pd.testing.assert_frame_equal(rsc15.read_clicks(tmp_path / 'unix'), expected)
    pd.testing.assert_frame_equal(rsc15.read_clicks(tmp_path / 'windows'), expected)
    (tmp_path / 'clicks.dat').write_text(GOOD_LINE * 99 + 'x' + GOOD_LINE)
    with pytest.raises(ValueError, match='clicks.dat, line 100: session '):
        rsc15.read_clicks(tmp_path / 'clicks.dat')


# --- Files ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again_bit_by_bit(tmp_path, monkeypatch):
    monkeypatch.setattr('gru4rec_pytensor.raw_log.BLOCK_ROWS', 1000)
    rng = np.random.default_rng(0)
    events = pd.DataFrame({'SessionId': rng.integers(0, 10**18, 5500), 'ItemId': np.arange(5500),
                           'Time': rng.integers(0, 2_000_000_000_000, 5500) / 1000})
    rsc15.write_events(events, tmp_path / 'events.txt')
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / 'events.txt', sep='\t'), events)


def test_a_file_has_a_header_tabs_and_three_decimals(tmp_path):
    rsc15.write_events(log((1, 1396860669.277, 30), (1, 1396860670., 0), (12, 0.005, 9)), tmp_path / 'events.txt')
    assert (tmp_path / 'events.txt').read_bytes() == (b'SessionId\tItemId\tTime\n1\t30\t1396860669.277\n'
                                                      b'1\t0\t1396860670.000\n12\t9\t0.005\n')


@pytest.mark.parametrize('events, message', [
    (log((1, 0.0005, 1)), 'whole milliseconds'),
    (log((1, 0., 'a')), 'must be int64'),
    (log((-1, 0., 1)), 'not negative'),
])
def test_what_a_file_cannot_hold_is_refused(events, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        rsc15.write_events(events, tmp_path / 'events.txt')


def test_an_interrupted_run_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    (tmp_path / 'rsc15_test.txt').write_text('of an earlier run')
    (tmp_path / rsc15.SYNTHETIC_LOG).write_text('of an earlier run')
    write_events = rsc15.write_events

    def interrupted(events, path):
        write_events(events, path)
        if 'train_tr' in str(path):
            raise KeyboardInterrupt

    monkeypatch.setattr(rsc15, 'write_events', interrupted)
    for out in (tmp_path, tmp_path / 'new'):
        with pytest.raises(KeyboardInterrupt):
            rsc15.make_synthetic(out, n_sessions=2000, n_items=200)
    assert {path.name for path in tmp_path.iterdir()} == {'rsc15_test.txt', rsc15.SYNTHETIC_LOG}
    assert all(path.read_text() == 'of an earlier run' for path in tmp_path.iterdir())


def test_a_link_in_the_folder_is_followed_and_a_pipe_there_is_left_alone(tmp_path, capsys):
    out, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
    out.mkdir()
    elsewhere.write_text('old')
    (out / 'rsc15_test.txt').symlink_to('../elsewhere')
    (out / rsc15.SYNTHETIC_LOG).write_text('old')
    rsc15.make_synthetic(out, n_sessions=3000, n_items=200)
    assert (out / 'rsc15_test.txt').is_symlink() and len(pd.read_csv(elsewhere, sep='\t')) > 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != 'rsc15_train_full.txt'}
    (out / 'rsc15_train_full.txt').unlink()
    os.mkfifo(out / 'rsc15_train_full.txt')
    with pytest.raises(ValueError, match='rsc15_train_full.txt: is a device or a pipe, not a file'):
        rsc15.make_synthetic(out, n_sessions=4000, n_items=200)
    assert all((out / name).read_bytes() == content for name, content in before.items())
    assert (out / 'rsc15_train_full.txt').is_fifo()


# --- Synthetic log -------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def synthetic():
    return synthetic_clicks(n_sessions=30_000, n_items=1000, seed=1)


def test_a_synthetic_log_depends_on_its_arguments_only(synthetic):
    np.random.seed(0)
    pd.testing.assert_frame_equal(synthetic_clicks(30_000, 1000, 1), synthetic)
    assert not synthetic['ItemId'].head(100).equals(synthetic_clicks(30_000, 1000, 2)['ItemId'].head(100))


def test_synthetic_sessions_have_about_four_clicks_repeat_items_and_times_and_are_interleaved_in_time(synthetic):
    length = synthetic.groupby('SessionId').size()
    assert len(length) == 30_000 and 0.1 < (length == 1).mean() < 0.2
    assert 3.5 < length[length > 1].mean() < 4.5 and 60 < length.max() <= 300
    assert 0.001 < (synthetic.groupby('SessionId')['Time'].diff() == 0).mean() < 0.02
    assert 0.1 < synthetic.duplicated(['SessionId', 'ItemId']).mean() < 0.3
    assert synthetic['SessionId'].is_monotonic_increasing
    start, end = synthetic.groupby('SessionId')['Time'].min(), synthetic.groupby('SessionId')['Time'].max()
    assert not start.is_monotonic_increasing and (end.cummax().shift() > start).any()
    assert (synthetic.groupby('SessionId')['Time'].diff().dropna() >= 0).all()
    assert synthetic['Time'].max() - synthetic['Time'].min() > 14 * DAY - 3600


def test_synthetic_popularity_falls_like_a_power_of_the_rank_and_ends_in_rare_items(synthetic):
    clicks = synthetic['ItemId'].value_counts().to_numpy()
    slope, _ = np.polyfit(np.log(np.arange(20, 380) + 50), np.log(clicks[20:380]), 1)
    assert -1.2 < slope < -0.5
    assert clicks[:len(clicks) // 10].sum() > clicks.sum() / 3
    assert (clicks < 5).sum() > 50


def test_synthetic_popularity_drifts_from_week_to_week():
    clicks = synthetic_clicks(200_000, 1000, seed=3)
    week = (clicks['Time'] - clicks['Time'].min()) // (7 * DAY)
    share = pd.crosstab(clicks['ItemId'], week, normalize='columns').iloc[:, :5]
    popular = np.log(share[share.min(axis=1) > 0.001])
    assert len(popular) > 100
    change = [(popular[later] - popular[0]).std() for later in (1, 4)]
    assert change[0] > 0.05 and change[1] > 1.2 * change[0]


def test_some_synthetic_items_first_appear_in_the_last_day(synthetic):
    first = synthetic.groupby('ItemId')['Time'].min()
    new = first.index[first >= synthetic['Time'].max() - DAY]
    parts = rsc15.preprocess(synthetic)
    kept = drop_rare_items(synthetic)['ItemId'].unique()
    assert np.isin(new, kept).any(), 'some have five clicks, so only the split drops them'
    assert not parts['train_full']['ItemId'].isin(new).any()


def test_the_next_synthetic_click_depends_on_more_than_the_last_one():
    clicks = synthetic_clicks(60_000, 200, seed=1)
    session, item = clicks['SessionId'].to_numpy(), clicks['ItemId'].to_numpy()
    whole = session[2:] == session[:-2]
    triples = pd.DataFrame({'before': item[:-2], 'last': item[1:-1], 'next': item[2:]})[whole]
    train, test = triples[:80_000], triples[80_000:]

    def hits(context):
        """How often the most frequent follower of a context in the one part comes next in the other part."""
        follower = train[[*context, 'next']].value_counts().reset_index().drop_duplicates(context)
        return len(test.merge(follower, on=[*context, 'next'])) / len(test)

    assert hits(['before', 'last']) > 1.5 * hits(['last'])


def test_the_synthetic_files_are_those_of_the_protocol_on_the_synthetic_raw_log_which_looks_like_the_real_one(tmp_path):
    made = rsc15.make_synthetic(tmp_path / 'made', n_sessions=3000, n_items=300, seed=5)
    raw_log = tmp_path / 'made' / rsc15.SYNTHETIC_LOG
    assert re.match(r'1,2014-04-\d\dT\d\d:\d\d:\d\d\.\d{3}Z,2145\d{5},\d+\n', raw_log.read_text())
    pd.testing.assert_frame_equal(rsc15.read_clicks(raw_log), synthetic_clicks(3000, 300, 5)[list(COLUMNS)])
    assert rsc15.preprocess_log(raw_log, tmp_path / 'read') == made
    for name in rsc15.FILES.values():
        assert (tmp_path / 'made' / name).read_bytes() == (tmp_path / 'read' / name).read_bytes()
    assert len(list((tmp_path / 'made').iterdir())) == 5


# --- Command line --------------------------------------------------------------------------------------------------


def test_the_command_writes_the_files_and_prints_counts_beside_the_published_ones(tmp_path, capsys):
    rsc15.write_raw_log(WHOLE_LOG.assign(Category=0), tmp_path / 'clicks.dat')
    rsc15.main([str(tmp_path / 'clicks.dat'), str(tmp_path / 'out')])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ['rsc15_train_full.txt', '7', '17', '4', 'differs:']
    assert '7,966,257 sessions, 31,637,239 events, 37,483 items' in lines[1]
    assert lines[2].split()[:5] == ['rsc15_test.txt', '2', '5', '3', 'differs:']
    assert [line.split() for line in lines[3:]] == [['rsc15_train_tr.txt', '4', '10', '3'],
                                                    ['rsc15_train_valid.txt', '1', '2', '2']]
    test = pd.read_csv(tmp_path / 'out' / 'rsc15_test.txt', sep='\t')
    assert rows(test) == TEST


BAD_LOGS = {
    'empty': (b'', 'is empty'),
    'header': (b'SessionId,Timestamp,ItemId,Category\n' + GOOD_LINE.encode(), "line 1: session 'SessionId' is not"),
    'binary': (bytes(range(256)) * 9, 'line 1: '),
    'buys': (b'420374,2014-04-06T18:44:58.314Z,214537888,12462,1\n', 'has 5 comma-separated columns'),
    'three columns': (b'1,2014-04-07T10:51:09.277Z,2\n', "line 1: '1,2014-04-07T10:51:09.277Z,2' has 3 comma"),
    'a blank line': (GOOD_LINE.encode() + b'\n' + GOOD_LINE.encode(), "line 2: '' has 1 comma-separated columns"),
    'truncated line': (GOOD_LINE.encode() * 2 + GOOD_LINE.encode()[:12], 'line 3: '),
    'truncated gzip': (gzip.compress(GOOD_LINE.encode() * 99)[:-9], 'damaged gzip'),
    'damaged gzip': (b'\x1f\x8b' + bytes(range(99)), 'damaged gzip'),
    'session': (b'A1,2014-04-07T10:51:09.277Z,2145,0\n', "session 'A1' is not a whole number"),
    'negative session': (b'-1,2014-04-07T10:51:09.277Z,2145,0\n', "session '-1' is not a whole number"),
    'item': (b'1,2014-04-07T10:51:09.277Z,NaN,0\n', "item 'NaN' is not a whole number"),
    'huge item': (b'1,2014-04-07T10:51:09.277Z,' + b'9' * 19 + b',0\n', 'item '),
    'space': (b'1, 2014-04-07T10:51:09.277Z,2145,0\n', 'time '),
    **{f'time {time!r}': (f'1,{time},2145,0\n'.encode(), f'line 1: time {time!r} is not a time from 1970 on')
       for time in ('', 'NaN', '1396867869', '-1', '2014-04-07', '2014-04-07 10:51:09.277Z', '2014-04-07T10:51:09Z',
                    '2014-04-07T10:51:09.277', '2014-04-07T10:51:09.277+2', '2014-13-07T10:51:09.277Z',
                    '2014-00-07T10:51:09.277Z', '2014-02-29T10:51:09.277Z', '2100-02-29T10:51:09.277Z',
                    '2014-04-31T10:51:09.277Z', '2014-04-00T10:51:09.277Z', '2014-04-07T24:00:00.000Z',
                    '2014-04-07T10:60:09.277Z', '2014-04-07T10:51:60.277Z', '1969-12-31T23:59:59.999Z')},
    'one-click sessions': (b''.join(b'%d' % k + GOOD_LINE.encode()[1:] for k in range(9)), 'one-click sessions'),
    'one day': (GOOD_LINE.encode() * 9, 'last 24 hours'),
}


@pytest.mark.parametrize('content, message', BAD_LOGS.values(), ids=BAD_LOGS)
def test_a_bad_log_ends_with_one_line_and_nothing_in_the_folder(content, message, tmp_path, capsys):
    path, out = tmp_path / 'bad.dat', tmp_path / 'out'
    path.write_bytes(content)
    out.mkdir()
    with pytest.raises(SystemExit, match='^2$'):
        rsc15.main([str(path), str(out)])
    printed = capsys.readouterr()
    assert printed.out == '' and list(out.iterdir()) == []
    assert re.fullmatch(f'preprocess_rsc15.py: error: .*bad.dat.*{re.escape(message)}.*\n', printed.err)
