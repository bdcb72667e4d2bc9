"""Several processes and several commands on one folder: locks, left-overs, workers that die, Ctrl-C, and kills."""
import contextlib
import gzip
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from common import few_items_log

import preprocess_rsc15
import run_experiments
from gru4rec_pytensor.backends import threads
from gru4rec_pytensor.experiments import engines, work
from gru4rec_pytensor.experiments.cells import plan
from gru4rec_pytensor.experiments.datasets import Dataset, Source, load_dataset, share
from gru4rec_pytensor.experiments.engines import Outcome, Task, in_processes, in_this_process
from gru4rec_pytensor.experiments.protocols import RSC15
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.experiments.tables import rows_of_tables
from gru4rec_pytensor.files import atomic_file, files_together, locked, plain_text

ROOT = Path(__file__).parents[1]
needs_locks = pytest.mark.skipif(sys.platform == 'win32', reason='unfinished files are not locked on Windows')


# --- Files ----------------------------------------------------------------------------------------------------------


HOLD = """
    import sys, time
    from pathlib import Path
    from gru4rec_pytensor.{room} import *
    with {context}:
        print('ready', flush=True)
        time.sleep(600)
"""


def killed_holding(context, path):
    """Kill a process inside a context."""
    room = 'experiments.results' if context.startswith('Results') else 'files'  # which takes a second less to import
    program = textwrap.dedent(HOLD).format(context=context, room=room)
    process = subprocess.Popen([sys.executable, '-c', program, str(path)], text=True, stdout=subprocess.PIPE,
                               env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert process.stdout.readline() == 'ready\n'
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_excludes_others_and_ends_with_its_process(tmp_path):
    path = tmp_path / 'lock'
    with locked(path) as lock, locked(path, wait=False) as other:
        assert lock.is_locked and other is None
    assert not path.exists()
    killed_holding('locked(Path(sys.argv[1]))', path)
    with locked(path, wait=False) as lock:
        assert lock.is_locked
        lock.release()  # others may have it before the block ends
        with locked(path, wait=False) as other:
            assert other.is_locked
    assert not path.exists()


def test_a_cell_has_one_holder(tmp_path):
    results, key = Results(tmp_path), {'model': 'POP'}
    results.make_folders()
    assert not results.is_held(key)
    with results.hold(key) as first, results.hold(key) as second:
        assert first and not second and results.is_held(key)
    assert not results.is_held(key) and list((tmp_path / 'cells').iterdir()) == []


@needs_locks
def test_what_a_killed_process_has_left_of_a_file_or_of_a_folder_is_removed_when_it_is_written_again(tmp_path):
    path, folder = tmp_path / 'a [1]', tmp_path / 'folder'
    killed_holding('atomic_file(Path(sys.argv[1])), files_together(Path(sys.argv[1]).with_name("folder"))', path)
    assert len(list(tmp_path.iterdir())) == 2 and list(folder.glob('.unfinished-*'))
    with atomic_file(path) as file:
        with atomic_file(path) as second:  # of another process, say
            second.write(b'second')
        assert len(list(tmp_path.iterdir())) == 3
        file.write(b'first')
    with files_together(folder) as unfinished:
        (Path(unfinished) / 'new').write_text('x')
    assert {found.name for found in tmp_path.rglob('*')} == {'a [1]', 'folder', 'new'}
    assert path.read_bytes() == b'first'


@contextlib.contextmanager
def room_for(n):
    """Let files have n bytes at most, so that writing more fails as on a full disk."""
    resource = pytest.importorskip('resource', reason='only Unix has limits of files')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_error_of_a_full_disk_names_the_file_or_folder(tmp_path, monkeypatch):
    for write in (lambda file: file.write(bytes(100_000)), lambda file: np.save(file, np.zeros(200)),
                  lambda file: np.save(file, np.zeros(100_000))):
        with room_for(1000), pytest.raises(OSError, match=f'^{tmp_path}/file: cannot be written: '), \
                atomic_file(tmp_path / 'file') as file:
            write(file)
    with room_for(1000), pytest.raises(OSError, match=f'^{tmp_path}/folder: cannot be written: '), \
            files_together(tmp_path / 'folder') as folder:
        (Path(folder) / 'part').write_bytes(bytes(100_000))
    log = few_items_log(60, 8)
    with room_for(1000), pytest.raises(OSError, match=f'^{tmp_path}/data/digits: cannot be written: '):
        share(Dataset('', RSC15, False, log, log, 'digits'), tmp_path / 'data')
    with monkeypatch.context() as patched, pytest.raises(OSError, match='digits: cannot be written: No space left'):
        patched.setattr(os, 'fsync', lambda handle: fail(OSError(28, 'No space left on device'), None))
        share(Dataset('', RSC15, False, log, log, 'digits'), tmp_path / 'data')
    assert [path.name for path in tmp_path.iterdir()] == ['data'] and not list((tmp_path / 'data').iterdir())
    (tmp_path / 'log').write_bytes(gzip.compress(bytes(100_000)))
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: str(tmp_path))
    with room_for(1000), pytest.raises(OSError, match=f'^{tmp_path}: cannot be written: '), \
            plain_text(tmp_path / 'log'):
        pass
    with pytest.raises(OSError, match='^mine'), atomic_file(tmp_path / 'file'):  # whatever else goes wrong
        raise OSError('mine')


# --- Engines --------------------------------------------------------------------------------------------------------


def double(number, report):
    for text, is_milestone in (('first', False), ('too soon', False), (f'at {number}', True)):
        report(text, is_milestone)
    return 2 * number


def fail(error, report):
    raise error


def die_once(path, report):
    if not os.path.exists(path):
        open(path, 'w').close()
        os.kill(os.getpid(), signal.SIGKILL)
    return 'lives'


def die(report):
    os._exit(3)


def thread_variables(report):
    return {name: os.environ.get(name) for name in engines.THREAD_VARIABLES}


def outcomes(engine, tasks):
    lines = []
    display = SimpleNamespace(line=lines.append,
                              progress=lambda title, text, is_milestone: lines.append(f'{title}: {text}'))
    return {task.title: outcome for task, outcome in engine(tasks, display)}, lines


@pytest.mark.parametrize('engine', [
    pytest.param(in_this_process, id='this process'),
    pytest.param(in_processes(2), id='two processes', marks=pytest.mark.promise)])
def test_every_task_has_its_outcome_and_is_heard(engine):
    tasks = [Task(str(n), double, (n,)) for n in range(5)] + [
        Task('bad', fail, (ValueError('no'),)), Task('wrong', fail, (KeyError('x'),))]
    found, lines = outcomes(engine, tasks)
    assert found == {**{str(n): Outcome(2 * n) for n in range(5)}, 'bad': Outcome(failure='ValueError: no'),
                     'wrong': Outcome(failure="KeyError: 'x'")}
    assert {f'{n}: {text}' for n in range(5) for text in ('first', f'at {n}')} < set(lines)
    assert '0: too soon' not in lines
    tracebacks = [line for line in lines if 'Traceback' in line]
    assert len(tracebacks) == 1 and tracebacks[0].startswith('wrong:')  # a ValueError says what it is


@pytest.mark.promise
@pytest.mark.skipif(sys.platform == 'win32', reason='signals')
def test_a_process_that_dies_costs_its_task_one_retry_and_is_reported_by_name(tmp_path):
    tasks = [Task('once', die_once, (str(tmp_path / 'died'),)), Task('always', die, ()), Task('four', double, (2,))]
    found, lines = outcomes(in_processes(2), tasks)
    assert found == {'once': Outcome('lives'), 'four': Outcome(4),
                     'always': Outcome(failure='its process died again (exit code 3)')}
    died = sorted(line.split(':')[0] for line in lines if 'it is tried once more' in line)
    assert died == ['always', 'once'] and any('died (SIGKILL, perhaps out of memory)' in line for line in lines)


@pytest.mark.slow
def test_the_processes_share_the_cores_unless_the_environment_says_how_many_threads(monkeypatch):
    for name in engines.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('MKL_NUM_THREADS', '7')
    monkeypatch.setattr(engines, 'available_cores', lambda: 9)
    found, _lines = outcomes(in_processes(2), [Task(name, thread_variables, ()) for name in 'ab'])
    assert found['a'].value == {'OMP_NUM_THREADS': '4', 'OPENBLAS_NUM_THREADS': '4', 'MKL_NUM_THREADS': '7'}
    assert 'OMP_NUM_THREADS' not in os.environ


def test_the_usual_number_of_jobs_fills_the_cores_as_far_as_memory_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, 'available_cores', lambda: 8)
    monkeypatch.setattr(os, 'sysconf', lambda name: {'SC_PAGE_SIZE': 1, 'SC_PHYS_PAGES': 16e9}[name])
    assert engines.default_jobs([1e9] * 20, 'numba') == 8
    assert engines.default_jobs([1e9] * 3, 'numba') == 3
    assert engines.default_jobs([2e9, 5e9, 2e9, 5e9, 2e9], 'numba') == 3  # 12 of 16 GB; those that take most first
    assert engines.default_jobs([50e9] * 4, 'numba') == engines.default_jobs([1e9] * 4, 'jax') == 1
    monkeypatch.setattr(threads, 'CONTROL_GROUP', tmp_path)
    (tmp_path / 'memory.max').write_text('4000000000\n')
    assert engines.default_jobs([1e9] * 20, 'numba') == 3
    (tmp_path / 'memory.max').write_text('max\n')
    assert engines.default_jobs([1e9] * 20, 'numba') == 8
    request, _source, place = run_experiments.parse([])
    monkeypatch.setattr(engines, 'available_memory', lambda: 18e9)
    for models, jobs in ((('POP', 'Item-KNN', 'BPR-MF'), 2), (('POP', 'S-POP', 'Item-KNN'), 3)):  # BPR-MF counts twice
        cells = plan(RSC15, request._replace(tables=(1,), models=models))  # 8.6 and 4.3 of 13.5 GB, or 4.3 each
        assert run_experiments.choose_engine(request, place, cells, 31_500_000, 0)[1] == jobs


# --- Commands -------------------------------------------------------------------------------------------------------


COMMAND = """
    import signal, sys
    from pathlib import Path
    if __name__ in ('__main__', '__mp_main__'):
        import run_experiments
        from gru4rec_pytensor.experiments import work
        run_cell = work.run_cell

        def counted(cell, *arguments):
            result = run_cell(cell, *arguments)
            with open(Path(sys.argv[2]) / 'trained', 'a') as file:
                file.write(cell.title + '\\n')
            return result
        work.run_cell = counted
    if __name__ == '__main__':
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background tasks lack
        sys.exit(run_experiments.main(['--data', sys.argv[1], '--out', sys.argv[2], '--backend', 'python', '--epochs',
                                       '2', '--units', '4', '--seeds', '1,2', '--checkpoint-every', '1',
                                       *sys.argv[3:]]))
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('synthetic')
    preprocess_rsc15.make_synthetic(folder, n_sessions=4000, n_items=300, seed=1)
    return folder


@pytest.fixture
def start(data, tmp_path):
    """Starts the command in a group of processes of its own, as a terminal does.

    BLAS has one thread for any number of jobs, since the last digits of the interpreter's products depend on it.
    """
    environment = os.environ | {'PYTHONPATH': str(ROOT)} | dict.fromkeys(engines.THREAD_VARIABLES, '1')
    program = tmp_path / 'command.py'
    program.write_text(textwrap.dedent(COMMAND))
    started = []

    def begin(out, *arguments):
        out.mkdir(exist_ok=True)
        started.append(subprocess.Popen(
            [sys.executable, str(program), str(data), str(out), *arguments], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, env=environment))
        return started[-1]
    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def numbers(out):
    """Return what the cells of a folder hold, without times."""
    return {json.dumps([result[name] for name in ('model', 'loss', 'units', 'seed')]):
            [result[name] for name in ('recall@20', 'mrr@20', 'epoch_losses', 'details')]
            for result in rows_of_tables(Results(out).load('cells'), RSC15)}


def trained_once(out):
    """Assert that every cell was trained to its end once."""
    trained = (out / 'trained').read_text().splitlines()
    assert len(trained) == len(set(trained)) == 11


def assert_nothing_is_left(out):
    assert list((out / 'checkpoints').iterdir()) == []
    assert not [path for path in out.rglob('*') if path.suffix in ('.lock', '.unfinished')]


@pytest.mark.slow
def test_two_commands_at_once_share_the_cells_and_each_shows_all_of_them(start, tmp_path):
    one = start(tmp_path / 'one', '--jobs', '1')
    assert one.wait() == 0
    both = [start(tmp_path / 'both', '--jobs', '2'), start(tmp_path / 'both', '--jobs', '1')]
    texts = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert numbers(tmp_path / 'both') == numbers(tmp_path / 'one')
    trained_once(tmp_path / 'both')
    assert_nothing_is_left(tmp_path / 'both')
    tables = [text[text.index('Data set'):text.index('Published:')] for text in texts]
    assert tables[0] == tables[1]


def processes_of(group):
    """Process ids of a group, its leader first."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rpartition(')')[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != 'Z':
            found.append(int(path.parent.name))
    return sorted(found)


def test_the_next_command_takes_over_a_cell_of_a_killed_one_and_removes_locks_of_finished_ones(data, tmp_path):
    arguments = ['--data', str(data), '--out', str(tmp_path), '--table', '1', '--models', 'POP', 'S-POP', '--jobs', '1']
    assert run_experiments.main([*arguments[:-2], '--jobs', '1', '--models', 'POP']) == 0
    fingerprint = Results(tmp_path).load('cells')[0]['data']
    keys = [cell.key(fingerprint) for cell in plan(RSC15, run_experiments.parse(arguments)[0])]
    killed_holding(', '.join(f'Results(Path(sys.argv[1])).hold({key})' for key in keys), tmp_path)
    assert len(list((tmp_path / 'cells').glob('*.lock'))) == 2
    assert run_experiments.main(arguments) == 0
    assert {path.suffix for path in (tmp_path / 'cells').iterdir()} == {'.json', '.npy'}


# --- A Dask cluster -------------------------------------------------------------------------------------------------


needs_dask = pytest.mark.skipif(not importlib.util.find_spec('distributed'), reason='Dask, an extra, is not installed')


@pytest.fixture
def cluster(tmp_path):
    """Address of a scheduler with two workers; each has a nanny, which replaces it when it dies."""
    file = tmp_path / 'scheduler.json'
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'} | dict.fromkeys(
        engines.THREAD_VARIABLES, '1')
    common = dict(env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    commands = [['dask_scheduler', '--port', '0', '--host', '127.0.0.1', '--no-dashboard'],
                *[['dask_worker', '--nthreads', '1', '--no-dashboard']] * 2]
    processes = [subprocess.Popen([sys.executable, '-m', f'distributed.cli.{command[0]}', '--scheduler-file', str(file),
                                   *command[1:]], **common) for command in commands]
    try:
        deadline = time.monotonic() + 60
        while not (file.exists() and file.read_text()) and time.monotonic() < deadline:  # it is empty at first
            time.sleep(0.1)
        address = json.loads(file.read_text())['address']
        while len(workers_of(address)) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        yield address
    finally:
        for process in reversed(processes):  # the nannies before the scheduler that they would look for
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def workers_of(address):
    with engines.connected(address) as client:
        return client.run(os.getpid)


def holders(out):
    """Process ids of those who are working on a cell, and so hold its lock."""
    locks = set()
    for path in (out / 'cells').glob('*.lock'):
        with contextlib.suppress(OSError):  # it has just ended
            locks.add(path.stat().st_ino)
    held = [line.split() for line in Path('/proc/locks').read_text().splitlines()]
    return [int(fields[-4]) for fields in held if int(fields[-3].rpartition(':')[2]) in locks]


@pytest.fixture(params=['processes', pytest.param('cluster', marks=needs_dask)])
def two_workers(request):
    """The kind of two workers, and the options that choose them."""
    if request.param == 'processes':
        return request.param, ['--jobs', '2']
    return request.param, ['--scheduler', request.getfixturevalue('cluster')]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='finds processes in /proc')
def test_thirty_kills_at_random_moments_give_the_numbers_of_an_undisturbed_run(start, two_workers, tmp_path):
    """The command or one of its processes is killed, or a worker of a cluster that is working on a cell.

    A cell that has lost too many workers has failed, and the command is run again.
    """
    kind, options = two_workers
    assert start(tmp_path / 'whole', '--jobs', '1').wait() == 0
    rng, kills, runs, code = random.Random(1), 0, 0, 1
    while kills < 30 or code:
        runs += code == 0
        out = tmp_path / f'out {runs}'
        process = start(out, *options)
        while process.poll() is None:
            time.sleep(rng.uniform(0.5, 9) if kind == 'processes' else rng.uniform(0.1, 5))
            victims = processes_of(process.pid) if kind == 'processes' else holders(out)
            if kills < 30 and victims and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):  # the lock of one that is dead already
                    os.kill(rng.choice(victims), signal.SIGKILL)
                    kills += 1
        code = process.returncode
        assert code in (0, 1) or kind == 'processes' and code == -signal.SIGKILL
        if code == 0:
            assert numbers(out) == numbers(tmp_path / 'whole') and len(numbers(out)) == 11
            if kind == 'processes':  # which count
                trained_once(out)
    assert_nothing_is_left(out)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='signals')
def test_ctrl_c_ends_all_work_at_once_and_keeps_the_finished_cells(start, two_workers, tmp_path):
    """The workers of a cluster are free for another command."""
    kind, options = two_workers
    out = tmp_path / 'out'
    process = start(out, *options)
    while not list((out / 'cells').glob('*.json')):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    text, _none = process.communicate(timeout=20)
    assert process.returncode == 130 and 'the finished cells are kept' in text and 'Traceback' not in text
    with pytest.raises(ProcessLookupError):  # of the whole group
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert 1 <= len(numbers(out)) < 11
    assert start(out, *options).wait() == 0
    assert len(numbers(out)) == 11
    if kind == 'processes':
        trained_once(out)
    assert_nothing_is_left(out)


@needs_dask
@pytest.mark.parametrize('address', ['tcp://127.0.0.1:1', 'nonsense', 'tcp://x:y', 'other://x:1'])
def test_a_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch, capsys, address):
    import distributed
    monkeypatch.setattr(engines, 'CONNECT', 1)
    monkeypatch.delattr(run_experiments, 'load_dataset')  # it is named before any data is read
    if address != 'tcp://127.0.0.1:1':
        monkeypatch.delattr(distributed, 'Client')  # which would need 40 s to close
    assert run_experiments.main(['--data', 'DATA', '--out', str(tmp_path), '--scheduler', address]) == 2
    assert f'--scheduler {address}: no Dask scheduler is reached there' in capsys.readouterr().err


def client_of(answer=dict, threads=1):
    """A stand-in for a Dask client with one worker, which changes what it says of itself, or answers by an error."""
    def run(function, *arguments, on_error):
        return {'w': answer if isinstance(answer, Exception) else answer(function(*arguments))}
    return SimpleNamespace(run=run, nthreads=lambda: {'w': threads}, wait_for_workers=(
        lambda n, timeout: threads or fail(TimeoutError('Only 0/1 workers arrived after 20'), None)))


@pytest.mark.parametrize('client, message', [
    (client_of(), None), (client_of(FileNotFoundError()), 'w does not see .*: --out must be on a disk'),
    (client_of(AttributeError('no such function')), 'w cannot run this package: no such function'),
    (client_of(lambda found: found | {'revision': 1}), 'w has revision 1, and this command 2'),
    (client_of(lambda found: found | {'numpy': '1.0'}), 'w has numpy 1.0, and this command '),
    (client_of(threads=2), 'w has 2 threads: start it with --nthreads 1'),
    (client_of(threads=0), 'tcp://HOST:1: has no worker; start some by `dask worker tcp://HOST:1 --nthreads 1`')])
def test_a_worker_that_cannot_do_the_work_is_named_before_any(tmp_path, monkeypatch, client, message):
    monkeypatch.setattr(engines, 'connected', lambda address: contextlib.nullcontext(client))
    if message is None:
        assert engines.count_workers('tcp://HOST:1', tmp_path) == 1
    else:
        with pytest.raises(ValueError, match=message):
            engines.count_workers('tcp://HOST:1', tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):  # what a worker says that has a folder of its own under this name
        engines.describe_worker(str(tmp_path / 'sign'))


def test_a_cell_that_is_reported_as_done_and_is_not_there_fails_with_that_reason(data, tmp_path, monkeypatch):
    """A worker with a folder of its own under the same name does so."""
    submitted = []

    def engine(tasks, display):
        for task in tasks:
            submitted.append(task.title)
            yield task, Outcome('was trained by another command')
    monkeypatch.setattr(work, 'WAIT', 0.0)
    monkeypatch.setattr(work, 'PATIENCE', 0.1)
    results = Results(tmp_path)
    results.make_folders()
    shared = share(load_dataset(Source(folder=data)), tmp_path / 'data')
    one = work.Work(shared, results, engine, 600.0)
    cells = plan(RSC15, run_experiments.parse(['--table', '1', '--models', 'POP'])[0])
    assert len(list(work.run_cells(cells, one))) == 1
    assert submitted == ['POP']
    assert re.match('was reported as done, but .*cells lacks its result', one.failures['POP'])
