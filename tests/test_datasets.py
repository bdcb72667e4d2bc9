"""Data sets of the experiments: what is read, what of it is kept, and what is said about it."""
from dataclasses import replace

import numpy as np
import pytest
from common import click_log, few_items_log

import preprocess_rsc15
from gru4rec_pytensor.experiments import datasets
from gru4rec_pytensor.experiments.cells import Cell, run_cell
from gru4rec_pytensor.experiments.datasets import Dataset, PublishedData, Source
from gru4rec_pytensor.experiments.protocols import BASELINES, NETWORK, RSC15, VIDEO


def write(path, log):
    log.to_csv(path, sep='\t', index=False)
    return path


def test_ids_that_look_like_numbers_in_one_file_only_are_the_same_ids(tmp_path):
    (tmp_path / 'train.tsv').write_text('SessionId\tItemId\tTime\n1\t5\t1\n1\t7\t2\n2\ta\t3\n2\tNA\t4\n')
    (tmp_path / 'test.tsv').write_text('SessionId\tItemId\tTime\n3\t5\t5\n3\t7\t6\n')
    data = datasets.load_dataset(Source(RSC15, tmp_path / 'train.tsv', tmp_path / 'test.tsv'))
    assert data.train.ItemId.tolist() == ['5', '7', 'a', 'NA'] and data.test.ItemId.tolist() == ['5', '7']


def test_long_sessions_are_left_out_where_the_protocol_says_so(tmp_path, capsys):
    path = write(tmp_path / 'log.tsv', click_log([1, 2], [1, 2, 3], [2, 1]))
    data = datasets.load_dataset(Source(VIDEO._replace(max_session_length=2), path, path))
    assert data.train.SessionId.tolist() == data.test.SessionId.tolist() == [1, 1, 3, 3]
    assert 'dropped 3 events of sessions of more than 2 events' in capsys.readouterr().err
    with pytest.raises(ValueError, match='log.tsv: no session has 1 events or fewer'):
        datasets.load_dataset(Source(VIDEO._replace(max_session_length=1), path, path))


def test_the_synthetic_log_is_made_once(tmp_path, monkeypatch):
    made = []
    make = preprocess_rsc15.make_synthetic
    monkeypatch.setattr(preprocess_rsc15, 'make_synthetic', lambda *size, **sizes: made.append(make(*size, **sizes)))
    source = Source(cache=tmp_path, sessions=3000, items=300)
    names = {datasets.load_dataset(source).name for _ in range(2)}
    assert len(made) == 1 and len(names) == 1 and names.pop().startswith('synthetic-')


def test_the_name_of_a_data_set_changes_with_its_events_and_is_shown_as_code(tmp_path):
    log = click_log([1, 2], [2, 1])
    names = [datasets.load_dataset(Source(RSC15, write(tmp_path / f'{name}.tsv', frame), tmp_path / f'{name}.tsv')).name
             for name, frame in (('a', log), ('b', log), ('`\nc', log.assign(Time=log.Time + 1)))]
    assert [name[:-8] for name in names] == ['a-', 'b-', ' c-']
    assert names[0][-8:] == names[1][-8:] != names[2][-8:]


def test_the_search_takes_the_validation_data_of_the_folder_or_the_last_day_of_the_training_data(tmp_path):
    day = 86_400
    train = click_log([1, 2], [2, 1], [1, 2], [2, 1]).assign(Time=np.repeat([0, 1, 2 * day, 2 * day], 2))
    files = {'train_full': train, 'test': train, 'train_tr': train[:6], 'valid': train[6:]}
    paths = {part: write(tmp_path / preprocess_rsc15.FILES[part], frame) for part, frame in files.items()}
    source = Source(folder=tmp_path)
    data = datasets.load_dataset(source)
    def sessions():
        validation = datasets.validation_data(source, data)
        return [frame.SessionId.unique().tolist() for frame in (validation.train, validation.test)]
    assert sessions() == [[1, 2, 3], [4]]
    paths['valid'].unlink()
    assert sessions() == [[1, 2], [3, 4]]


def test_the_notice_says_with_what_our_numbers_can_be_compared():
    log = click_log([1, 2], [2, 3, 1])
    mine = Dataset('mine', RSC15, False, log, log)
    assert 'train 2 sessions, 5 events, 3 items' in datasets.data_notice(mine)
    assert "This is not the paper's data: 2 of 7,966,257 sessions." in datasets.data_notice(mine)
    assert 'This is not the data of the published numbers' in datasets.data_notice(replace(mine, protocol=VIDEO))
    other_test = RSC15._replace(counts={'train': dict(sessions=2, events=5), 'test': dict(sessions=1)})
    assert "not the paper's data: 2 of 1 sessions for testing." in datasets.data_notice(
        replace(mine, protocol=other_test))
    for protocol in (RSC15, VIDEO):
        synthetic = replace(mine, is_synthetic=True, protocol=protocol)
        assert 'This is a synthetic click log' in datasets.data_notice(synthetic)


def with_counts(monkeypatch, *known):
    monkeypatch.setattr(datasets, 'DATA', [PublishedData(*fields) for fields in known])


def test_only_data_with_published_counts_is_comparable(monkeypatch):
    log = click_log([1, 2], [2, 3, 1])
    counts = dict(sessions=2, events=5, items=3)
    for title, words in (('RSC15', 'as many sessions, events and items as the RSC15 data of the paper'),
                         ('other', "published for it, and not with the paper's")):
        with_counts(monkeypatch, (title, 'RSC15', {'train': counts, 'test': dict(sessions=2)}, 'somewhere'))
        same = Dataset('mine', RSC15, False, log, log)
        assert same.published.title == title and words in datasets.data_notice(same)
        assert replace(same, is_synthetic=True).published is None


def test_a_data_set_that_no_counts_tell_is_what_the_user_says(tmp_path, monkeypatch):
    path = write(tmp_path / 'log.tsv', click_log([1, 2], [2, 3, 1]))
    for said in (None, datasets.BY_TITLE['coveo']):
        data = datasets.load_dataset(Source(RSC15, path, path, said=said))
        assert data.published == said
        assert ('That it is Coveo is the word of --published' in datasets.data_notice(data)) == bool(said)
        shared = datasets.share(data, tmp_path / 'shared')
        assert shared.published == said
    with monkeypatch.context() as patched:  # a word that agrees with counts changes nothing
        with_counts(patched, ('mine', 'RSC15', {'train': dict(events=5)}, 'somewhere'))
        said, counted = (datasets.load_dataset(Source(RSC15, path, path, said=said)) for said in (
            datasets.DATA[0], None))
        assert said.published == counted.published == datasets.DATA[0]
        assert datasets.data_notice(said) == datasets.data_notice(counted)
    assert all(data.counts or data.title in ('Yoochoose', 'REES46', 'Coveo', 'RetailRocket', 'Diginetica')
               for data in datasets.DATA)


@pytest.mark.parametrize('said, changes, message', [
    ('coveo', {'folder': True}, 'Coveo: the data is a synthetic click log'),
    ('coveo', {'protocol': VIDEO}, 'Coveo: the data set goes with the protocol of RSC15, not with that of VIDEO'),
    ('video', {}, 'VIDEO: the data set goes with the protocol of VIDEO, not with that of RSC15'),
    ('rsc15', {}, 'RSC15: the training data has 2 sessions, 5 events, 3 items, which are not the published counts'),
    ('coveo', {'known': 'RSC15 1/4'}, 'Coveo: the data has the counts of RSC15 1/4'),
    ('rsc15', {'known': 'RSC15 1/4'}, 'RSC15: the data has the counts of RSC15 1/4')])
def test_the_users_word_that_contradicts_what_is_known_is_refused(tmp_path, monkeypatch, said, changes, message):
    log = click_log([1, 2], [2, 3, 1])
    for part in ('train_full', 'test'):
        path = write(tmp_path / preprocess_rsc15.FILES[part], log)
    source = Source(changes.get('protocol', RSC15), path, path, said=datasets.BY_TITLE[said])
    if 'folder' in changes:
        write(tmp_path / preprocess_rsc15.SYNTHETIC_LOG, log)
        source = source._replace(train=None, test=None, folder=tmp_path)
    if 'known' in changes:
        with_counts(monkeypatch, (changes['known'], 'RSC15', {'train': dict(events=5)}, 'somewhere'))
    with pytest.raises(ValueError, match=f'^--published {message}$'):
        datasets.load_dataset(source)


def test_items_that_a_fraction_lacks_stay_and_count_as_misses(tmp_path, monkeypatch, capsys):
    """As in NARM's rows; on other data they are left out, and another fingerprint says so."""
    train, test = click_log([1, 2], [2, 1, 2]), click_log([1, 9, 2], [9, 1, 2], [9, 9])
    paths = [write(tmp_path / f'{name}.tsv', log) for name, log in (('train', train), ('test', test))]
    dropped = datasets.load_dataset(Source(RSC15, *paths))
    with_counts(monkeypatch, ('RSC15 1/2', 'RSC15', {'train': dict(predictions=3), 'test': dict(predictions=5)},
                              'somewhere', True))
    kept = datasets.load_dataset(Source(RSC15, *paths))
    error = capsys.readouterr().err
    assert 'dropped 4 test events' in error and 'RSC15 1/2: test events with items' in error
    assert kept.published.title == 'RSC15 1/2'
    assert len(dropped.test) == 4 and len(kept.test) == 8 and dropped.fingerprint != kept.fingerprint
    cell = Cell('Markov', None, None, None, None, {}, 'conservative')
    result, _ranks = run_cell(cell, kept)
    # of 1 -> 9, 1 -> 2 (9 is passed over), 9 -> 1, 1 -> 2, 9 -> 9 the second and fourth
    assert result['recall@20'] == result['mrr@20'] == 2 / 5
    assert run_cell(cell, dropped)[0]['recall@20'] == 1
    assert sum(n for _name, n, _recall in result['details']['by_popularity']) == 3  # of items that training has
    assert result['details']['by_position'] == [['2', 3, 0.0], ['3', 2, 1.0]]


def is_mapped(array):
    return isinstance(array, np.memmap) or array is not None and is_mapped(array.base)


@pytest.mark.parametrize('name_of, models', [(int, [NETWORK]), ('item {:03}'.format, [*BASELINES, NETWORK])],
                         ids=['numbers', 'text'])
def test_events_that_processes_share_give_the_numbers_of_those_that_were_read(tmp_path, name_of, models):
    log = few_items_log(60, 8)
    log = log.assign(ItemId=log.ItemId.map(name_of), SessionId=log.SessionId.map(name_of))
    read = Dataset('', RSC15, False, log, log[10:], 'digits')
    shared = datasets.share(read, tmp_path / 'data')
    assert shared.folder == tmp_path / 'data' / 'digits'
    assert all(is_mapped(frame[name].to_numpy()) for frame in (shared.train, shared.test) for name in frame)
    assert shared.test.Time.tolist() == log.Time[10:].tolist()
    for model in models:
        cell = Cell(model, 'top1' if model == NETWORK else None, 4, 1, 42 if model in (NETWORK, 'BPR-MF') else None,
                    {'batch_size': 10} if model == NETWORK else BASELINES[model][1], 'median', 5, 'python')
        first, second = (run_cell(cell, events)[0] for events in (read, shared))
        assert first['details'] == second['details'] and first['epoch_losses'] == second['epoch_losses']


@pytest.mark.parametrize('damage', [lambda whole: b'', lambda whole: whole[:-1], lambda whole: whole[:-40] + bytes(40),
                                    lambda whole: b'x' * len(whole), None])
def test_damaged_files_of_shared_events_are_written_again(tmp_path, damage):
    data = Dataset('', RSC15, False, few_items_log(60, 8), click_log([1, 2]), 'digits')
    path = datasets.share(data, tmp_path).folder / 'train-ItemId.npy'
    whole = path.read_bytes()
    if damage:
        path.write_bytes(damage(whole))
    else:
        path.unlink()
    shared = datasets.share(data, tmp_path)
    assert path.read_bytes() == whole and shared.train.ItemId.tolist() == data.train.ItemId.tolist()
    assert len(list(path.parent.iterdir())) == 6
