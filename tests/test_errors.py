"""Messages of the commands about wrong input: one line that names it, exit code 2, and nothing half-written."""
import gzip
import os
import re
import shutil
import zipfile

import pytest
from common import few_items_log, small_model

import preprocess_rsc15
import run_experiments
from gru4rec import GRU4Rec
from gru4rec_pytensor import cli
from gru4rec_pytensor.files import check_writable

HEADER = 'SessionId\tItemId\tTime\n'
WITH_TITLE = HEADER.replace('\n', '\tTitle\n')
GOOD = few_items_log(n_sessions=60, n_items=9, seed=1)
FILES = {  # name -> content
    'empty': '', 'header-only': HEADER, 'no-item': 'SessionId\tItem\tTime\n1\t2\t3\n',
    'spaces': 'SessionId ItemId Time\n1 2 3\n', 'twice': 'SessionId\tItemId\tItemId\tTime\n1\t2\t2\t3\n',
    'page': '<!DOCTYPE html>\n<html><body>Please log in</body></html>\n',
    'no-time': HEADER + '1\t7\t1\n1\t8\t\n', 'nan-time': HEADER + '1\t7\t1\n1\t8\tnan\n',
    'negative-time': HEADER + '1\t7\t1\n1\t8\t-5\n', 'infinite-time': HEADER + '1\t7\tinf\n1\t8\t1\n',
    'word-time': HEADER + '1\t7\t1\n1\t8\tnoon\n',
    'bad-date': HEADER + '1\t7\t2014-04-07T10:51:09Z\n1\t8\t2014-13-07\n',
    'ragged': HEADER + '1\t7\t1\n1\t8\t2\t9\n', 'long-rows': HEADER + '1\ta\t1\t9\n1\tb\t2\t9\n',
    'swallows': WITH_TITLE + '1\t5\t9\t"Live\n1\t6\t9\tb\n2\t5\t9\t"a\tb"\n2\t6\t9\td"\n', 'not.parquet': 'SessionId\n',
    'open': WITH_TITLE + '1\t5\t9\ta\n1\t5\t9\t"Live\n1\t6\t9\n2\t6\t9\td\n', 'headerless': '1,7,1\n1,8,2\n',
    'raw.dat': '1,2014-04-07T10:51:09.277Z,214536502,0\n1,noon,7,0\n',
    'blank-lines': '\n' + HEADER + '\n1\t7\t1\n  \n\n1\t8\t\n',
    'few': HEADER + '1\t7\t1\n1\t8\t2\n2\t7\t3\n2\t8\t4\n',
    'no-overlap': HEADER + '1\t1001\t1\n1\t1002\t2\n', 'words': HEADER + ''.join(
        f'{k // 3}\t{"abc"[k % 3]}\t{k}\n' for k in range(60)),
    'same-day': HEADER + ''.join(f'{k // 6}\t{k % 5}\t{k}\n' for k in range(60)),
    'text': 'hello\n', 'other/results.json': '{"mine": 1}', 'file': 'x', 'p.toml': '[parameters]\nlayers = [5]\n',
    'made/synthetic-clicks.dat': '', 'real/rsc15_test.txt': '',
}
BYTES = {'binary': bytes(range(256)), 'damaged.gz': gzip.compress(b'SessionId')[:-3],
         'log.tar.gz': gzip.compress(b'log'.ljust(257, b'\0') + b'ustar\0'),
         'latin-1': (HEADER + '1\tcafé\t1\n').encode('latin-1')}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with good and bad files."""
    folder = tmp_path_factory.mktemp('world')
    for name in ('other', 'made', 'real'):
        (folder / name).mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    for name, content in BYTES.items():
        (folder / name).write_bytes(content)
    GOOD.to_csv(folder / 'good', sep='\t', index=False)
    with zipfile.ZipFile(folder / 'two.zip', 'w') as archive:
        for name in 'ab':
            archive.writestr(name, HEADER)
    small_model(batch_size=5).fit(GOOD, checkpoint=folder / 'checkpoint').save(folder / 'model')
    return folder


FIT = 'fit good -o new --layers 4 --batch-size 5 --epochs 1 --backend python '
CASES = [  # (program, command line in the folder of the files, what the line on standard error says)
    # files
    *[(cli, f'fit {name} -o new --layers 4 --batch-size 5 --epochs 1 --backend python', message) for name, message in [
        ('nowhere', 'nowhere: no such file'), ('other', 'other: is a folder, not a file'),
        ('empty', 'empty: is empty'),
        ('header-only', 'header-only: has no events'),
        ('no-item', "no-item: lacks the column(s) ['ItemId']; by tabs its first line has ['SessionId', 'Item', 'T"),
        ('spaces', "spaces: lacks the column(s) ['SessionId', 'ItemId', 'Time']"),
        ('twice', "twice: has more than one column 'ItemId'"), ('page', 'page: is a web page, not a log'),
        ('binary', 'binary: is a binary file, not text'), ('log.tar.gz', 'log.tar.gz: is a binary file, not text'),
        ('damaged.gz', 'damaged.gz: is a damaged gzip file'),
        ('two.zip', 'two.zip: is a zip archive of 2 files, a, b: '),
        ('swallows', 'swallows, line 2: a quotation mark is opened there and closed in line 4, and what is between'),
        ('open', 'open, line 3: a quotation mark is opened and never closed'),
        ('headerless', 'It looks like an event: a log needs a first line that names its columns'),
        ('raw.dat', "raw.dat, line 2: time 'noon' is not a time from 1970 on; a click log has no header"),
        ('raw.dat --item-key item', 'It looks like the raw log of RSC15, which is read without options for columns'),
        ('blank-lines', 'blank-lines, line 7: Time is'),
        ('latin-1', 'latin-1: is not UTF-8 text'),
        ('no-time', 'no-time, line 3: Time is missing, not a number'), ('nan-time', 'nan-time, line 3: Time is'),
        ('negative-time', 'negative-time, line 3: Time is -5, not a time: it is negative'),
        ('infinite-time', 'infinite-time, line 2: Time is inf, not a number'),
        ('word-time', "word-time, line 3: Time is 'noon', not a number"),
        ('bad-date', "bad-date, line 3: Time is '2014-13-07', not a number, or a date and time such as"),
        ('ragged', 'ragged, line 3: has 4 fields, but the header has 3'),
        ('long-rows', 'long-rows, line 2: has 4 fields, but the header has 3'),
        ('not.parquet', 'not.parquet: '),
        ('few', 'sessions of two or more events, but the training data has 2; use a smaller batch_size')]],
    # options of training
    *[(cli, FIT + option, message) for option, message in [
        ('--loss hinge', "argument --loss: invalid choice: 'hinge' (choose from"),
        ('--backend tpu', "argument --backend: invalid choice: 'tpu'"),
        ('--final-act softmax', "final_act='softmax': must be one of 'tanh', 'linear', 'relu'"),
        ('--layers 0', "argument --layers: '0' is not a whole number of at least 1"),
        ('--epochs 0', "argument --epochs: '0' is not a whole number of at least 1"),
        ('--dropout 1', 'dropout_p_hidden=1.0: must be a number of at least 0 and below 1'),
        ('--learning-rate 0', 'learning_rate=0.0: must be a finite number above 0'),
        ('--learning-rate 1e38 --loss cross-entropy', 'training met a loss that is not finite, and nothing was saved'),
        ('--learning-rate 1e39', 'learning_rate=1e+39: must be at most 3.4e+38, the largest float32'),
        ('--seed 4294967296', 'seed=4294967296: must be a whole number from 0'),
        ('--session-key visit', "good: lacks the column(s) ['visit']"),
        ('-o nowhere/new', 'nowhere/new: there is no folder nowhere'),
        ('-o other', 'other: is a folder; give the name of a file'),
        ('-o /proc/new', '/proc/new: cannot be written'),
        ('--checkpoint checkpoint', 'the checkpoint of another training: dropout_p_hidden was 0.0, and is 0.4'),
        ('--checkpoint model', 'model: not a checkpoint'), ('--checkpoint text', 'text: not a model file'),
        ('--checkpoint nowhere/c', 'nowhere/c: there is no folder nowhere'),
        ('--more model', '--more and --batch-size do not go together'),
        ('--time-key ItemId', "session, item and time must be three columns, not ['SessionId', 'ItemId', 'ItemId']")]],
    *[(cli, f'fit good -o new {option}', message) for option, message in [
        ('--more text', 'text: not a model file'), ('--more model --checkpoint c', '--more and --checkpoint do not go'),
        ('--more model --time-key when', 'the model of --more was trained with --session-key SessionId')]],
    *[(cli, f'fit nowhere -o new --parameters {option}', message) for option, message in [
        ('p.txt', 'must end in .toml, or in .py'), ('p.toml --final-act soft', "final_act='soft': must be one of"),
        ('p.toml --more model', '--more and --parameters do not go together')]],
    (cli, 'fit good', 'the following arguments are required: -o/--output'),
    (cli, 'fit words -o new --more model',
         "column 'ItemId' has item ids such as 'a', but those of the model are such as"),
    (cli, '', 'the following arguments are required: COMMAND'), (cli, 'train good', "invalid choice: 'train'"),
    # model files
    *[(cli, f'info {name}', f'{name}: {message}') for name, message in [
        ('nowhere', 'no such model file'), ('text', 'not a model file'),
        ('checkpoint', 'not a model of this package')]],
    (cli, 'evaluate text good', 'text: not a model'), (cli, 'recommend nowhere 10', 'nowhere: no such model file'),
    (cli, 'evaluate model no-overlap', 'no session has two events with items that the model knows'),
    (cli, 'evaluate model good --item-key product', "['product']"),
    (cli, 'evaluate model good --cut-off 0', "argument --cut-off: '0' is not a whole number of at least 1"),
    (cli, 'evaluate model good --tie-policy best', "argument --tie-policy: invalid choice: 'best'"),
    (cli, 'recommend model 10 -k 0', "argument -k: '0' is not a whole number of at least 1"),
    # preparing data
    (cli, 'prepare good -o new --test-days 0', 'test_days=0.0: must be a finite number above 0'),
    (cli, 'prepare good -o new --test-fraction 1.5', 'test_fraction=1.5: must be a number above 0 and below 1'),
    (cli, 'prepare good -o new --test-days 1 --test-fraction 0.5', 'give test_days or test_fraction, not both'),
    (cli, 'prepare same-day -o new', 'no event is left after setting the last 1 day(s) apart as test data'),
    (cli, 'prepare good -o new --min-item-events 10000', 'no event is left after dropping items with fewer than 10000'),
    (cli, 'prepare good -o new --min-session-length 99', 'no event is left after dropping sessions of fewer than 99'),
    (cli, 'prepare same-day -o new --max-session-length 1', 'no event is left after dropping sessions of more than 1'),
    (cli, 'prepare good -o file', 'file: is a file; give the name of a folder'),
    (cli, 'prepare good -o new --time-unit days', "argument --time-unit: invalid choice: 'days'"),
    (cli, 'fit good -o good', 'good: is the file that is read; give another name'),
    (cli, 'fit good -o new --checkpoint good', 'good: is the file that is read; give another name'),
    (cli, 'prepare good -o no/where', 'there is no folder no'),
    *[(preprocess_rsc15, command, message) for command, message in [
        ('', 'required: PATH'), ('raw.dat', 'two paths are needed'), ('raw.dat out more', 'two paths are needed'),
        ('nowhere out', 'nowhere: no such file'), ('other out', 'other: is a folder, not a file'),
        ('raw.dat raw.dat', 'File exists'), ('raw.dat raw.dat/out', 'Not a directory'),
        ('raw.dat out --seed 1', 'need --synthetic'), ('raw.dat made', 'holds a synthetic log'),
        ('--synthetic', 'required: PATH'), ('--synthetic raw.dat out', '--synthetic takes one path'),
        ('--synthetic out --sessions 0', 'n_sessions=0: must be a whole number of at least 1'),
        ('--synthetic out --items 199', 'n_items=199: must be a whole number of at least 200'),
        ('--synthetic out --seed -1', 'seed=-1: must be a whole number of at least 0'),
        ('--synthetic out --sessions 20', 'no event is left after'),
        ('--synthetic out --seed x', "invalid int value: 'x'"),
        ('--synthetic real', 'real holds rsc15_test.txt, and no synthetic log that it was made of')]],
    # the paper's experiments
    *[(run_experiments, command, message) for command, message in [
        ('--train good --test nowhere', 'nowhere: no such file'),
        ('--data other', 'rsc15_train_full.txt: no such file'),
        ('--train good --test no-overlap', 'no test session has'),
        ('--train good --test good --out file', '--out file: is a file; give the name of a folder'),
        ('--train good --test good --out other', 'results.json: not of this version'),
        ('--train good --test good --out new --units 4', 'GRU4Rec with cross-entropy trains 500 sessions in parallel'),
        ('--table 2 --trials 0', "'0' is not a whole number of at least 1")]],
]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


def complaint(program, command, capsys):
    """The last line on standard error of a command that ends with exit code 2."""
    try:
        code = program.main(command.split())
    except SystemExit as stop:
        code = stop.code
    out, error = capsys.readouterr()
    assert code == 2 and out == '' and 'Traceback' not in error
    return error.splitlines()[-1]


@pytest.mark.filterwarnings('ignore:training stopped')
@pytest.mark.parametrize('program, command, message', CASES, ids=[f'{case[0].__name__} {case[1]}' for case in CASES])
def test_wrong_input_gets_one_line_that_names_it_and_leaves_everything_as_it_was(
        world, tmp_path, monkeypatch, capsys, program, command, message):
    folder = tmp_path / 'world'
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    before = contents(folder)
    line = complaint(program, command, capsys)
    assert re.match(r'[\w. ]+: error: ', line) and message in line, line
    left = contents(folder)
    if program is run_experiments:  # which may have begun a folder of results: empty, but for the events
        left = {name: content for name, content in left.items()
                if name in before or content and not name.endswith('.npy')}
    assert left == before


def test_a_full_disk_is_reported_and_leaves_the_old_model(world, tmp_path, monkeypatch, capsys):
    shutil.copy(world / 'good', tmp_path / 'good')
    shutil.copy(world / 'model', tmp_path / 'new')
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)

    def full(handle):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.fsync', full)
    assert 'new: cannot be written: No space left on device' in complaint(cli, FIT, capsys)
    assert contents(tmp_path) == before


@pytest.mark.parametrize('path', ['/dev/null', 'pipe', 'link'])
def test_what_is_no_file_is_not_replaced(world, tmp_path, monkeypatch, capsys, path):
    for name in ('good', 'model'):
        shutil.copy(world / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    os.mkfifo('pipe')
    os.symlink('pipe', 'link')
    os.mkdir('folder')
    for name in ('train.tsv', 'tables.md'):
        os.symlink(os.path.abspath(path), f'folder/{name}')
    before = os.stat(path)
    for command in (FIT.replace('-o new', f'-o {path}'), f'{FIT} --checkpoint {path}', 'prepare good -o folder',
                    f'evaluate model good --ranks {path}', f'evaluate model good --write-lists {path}'):
        assert 'is a device or a pipe, not a file' in complaint(cli, command, capsys)
    command = '--train good --test good --table 1 --models POP --out folder'
    assert 'is a device or a pipe, not a file' in complaint(run_experiments, command, capsys)
    figures = pytest.importorskip('gru4rec_pytensor.experiments.figures', reason='Matplotlib, an extra, is missing')
    os.symlink(os.path.abspath(path), 'picture.png')
    with pytest.raises(ValueError, match='picture.png: is a device or a pipe, not a file'):
        figures.Picture(1, 1).save(tmp_path / 'picture')
    assert os.stat(path) == before and os.path.islink('folder/tables.md') and not os.path.exists('new')


def test_a_link_is_followed_to_the_file_that_is_written(world, tmp_path, monkeypatch, capsys):
    """The file exists or not, and its name is relative or absolute."""
    shutil.copy(world / 'good', tmp_path / 'good')
    monkeypatch.chdir(tmp_path)
    os.mkdir('elsewhere')
    model = GRU4Rec.load(world / 'model')
    for name in ('file', 'elsewhere/file', f'../{tmp_path.name}/elsewhere/file', 'elsewhere/new'):
        for path in (name, os.path.abspath(name)):
            if not name.endswith('new'):
                (tmp_path / name).write_text('old')
            os.symlink(path, 'link')
            check_writable('link')
            model.save('link')
            assert os.readlink('link') == path and GRU4Rec.load(name).n_items == model.n_items
            os.unlink('link')
            os.unlink(name)
    assert not os.listdir('elsewhere')
    os.symlink('nowhere/file', 'link')
    assert 'there is no folder' in complaint(cli, FIT.replace('-o new', '-o link'), capsys)
