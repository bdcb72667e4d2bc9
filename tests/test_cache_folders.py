"""Folders of compiled code: those that are set, and one where the user has none to write to."""
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numba
import pytest
from common import run_python

import gru4rec_pytensor
from gru4rec_pytensor.backends.numba_cache import MARK

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path):
    """An installation in which nothing was imported yet."""
    tree = tmp_path / 'tree'
    shutil.copytree(ROOT / 'gru4rec_pytensor', tree / 'gru4rec_pytensor', ignore=shutil.ignore_patterns('__pycache__'))
    for script in ROOT.glob('*.py'):
        shutil.copy(script, tree)
    return tree


def run(program, tree, **variables):
    """Run a program from an installation in a process that knows no folder but those of `variables`."""
    foreign = ('HOME', 'PYTENSOR_FLAGS', 'PYTENSORRC', 'NUMBA_CACHE_DIR', 'XDG_CACHE_HOME', 'PYTHONDONTWRITEBYTECODE')
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    return subprocess.run([sys.executable, '-c', textwrap.dedent(program)], cwd=tree.parent, capture_output=True,
                          env=environment | {'PYTHONPATH': str(tree)} | variables, text=True)


@pytest.fixture
def bare(tmp_path, tree):
    """Runs a program of a process without a home, from an installation that cannot be written to."""
    for folder in (tree, tree / 'gru4rec_pytensor'):
        (folder / '__pycache__').touch()  # a file: no folder can be made here, not even by root
    (tmp_path / 'tmp').mkdir()
    nowhere = {'HOME': str(tree / '__pycache__' / 'home'), 'TMPDIR': f'{tmp_path}/tmp', 'PYTHONDONTWRITEBYTECODE': '1'}
    return lambda program, **more: run(program, tree, **nowhere | more)


@pytest.mark.promise
def test_without_a_folder_to_write_to_one_warning_names_the_variables_and_all_works(bare, tmp_path):
    done = bare("""
        import os, subprocess, sys
        import numba, pandas as pd
        import gru4rec, evaluation, baselines, preprocess_rsc15
        log = pd.DataFrame({'SessionId': [1, 1, 1, 2, 2, 2], 'ItemId': [*'abcdef'], 'Time': range(6)})
        model = gru4rec.GRU4Rec([8], batch_size=2, n_epochs=1, backend='python').fit(log)
        print(evaluation.next_item_ranks(model, log, batch_size=2).shape, os.environ['PYTENSOR_FLAGS'])
        subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', 'import gru4rec'], check=True)
    """)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / 'tmp').iterdir()
    assert done.stdout == f'(4,) base_compiledir={folder}\n'
    assert done.stderr.count('UserWarning') == 1
    assert f'compiled code is kept in {folder}, and is compiled again when that is gone' in done.stderr
    assert 'set PYTENSOR_FLAGS=base_compiledir=FOLDER and NUMBA_CACHE_DIR=FOLDER' in done.stderr
    assert {path.name.split('_')[0] for path in folder.iterdir()} >= {'gru4rec', 'numba', 'tree'}  # of both


@pytest.mark.parametrize('variable, value', [
    pytest.param('PYTENSOR_FLAGS', 'base_compiledir={}/compiled', marks=pytest.mark.promise),
    pytest.param('PYTENSORRC', '{}/settings', marks=pytest.mark.slow)])
def test_folders_in_variables_and_in_the_settings_file_of_pytensor_are_left_as_they_are_and_nothing_warns(
        bare, tmp_path, variable, value):
    (tmp_path / 'settings').write_text(f'[global]\nbase_compiledir = {tmp_path}/compiled\n')
    done = bare("import gru4rec; print(gru4rec.pytensor.config.base_compiledir, gru4rec.numba.config.CACHE_DIR)",
                NUMBA_CACHE_DIR=f'{tmp_path}/numba', **{variable: value.format(tmp_path)})
    assert (done.stdout, done.stderr) == (f'{tmp_path}/compiled {tmp_path}/numba\n', '')
    assert not any((tmp_path / 'tmp').iterdir())


@pytest.mark.slow
def test_other_flags_of_pytensor_are_kept(bare):
    program = 'import gru4rec; print(gru4rec.pytensor.config.optimizer_verbose)'
    done = bare(program, PYTENSOR_FLAGS='optimizer_verbose=True')
    assert done.stdout == 'True\n' and done.stderr.count('UserWarning') == 1


def test_a_pytensor_that_was_imported_before_and_cannot_write_is_one_clear_error(bare):
    done = bare("""
        import sys, types
        sys.modules['pytensor'] = types.SimpleNamespace(config=types.SimpleNamespace(base_compiledir='/dev/null/none'))
        try:
            import gru4rec
        except OSError as error:
            print(error)
    """)
    assert done.stdout == ('PyTensor, which was imported before, cannot write to /dev/null/none: import gru4rec first, '
                           'or set PYTENSOR_FLAGS=base_compiledir=FOLDER\n')


def test_the_temporary_folder_is_the_same_each_time_and_never_one_that_others_can_write_to(tmp_path, monkeypatch):
    monkeypatch.setattr(gru4rec_pytensor.tempfile, 'gettempdir', lambda: str(tmp_path))
    folder = gru4rec_pytensor.temporary_folder()
    assert gru4rec_pytensor.temporary_folder() == folder and Path(folder).parent == tmp_path
    if hasattr(os, 'getuid'):
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        Path(folder).chmod(0o777)
        other = gru4rec_pytensor.temporary_folder()
        assert other != folder and Path(other).stat().st_mode & 0o777 == 0o700
        os.rmdir(folder)
        Path(folder).symlink_to(tmp_path)
        assert gru4rec_pytensor.temporary_folder() not in (folder, str(tmp_path))


def test_without_even_a_temporary_folder_one_clear_error_names_the_variables(monkeypatch):
    def no_folder():
        raise FileNotFoundError('No usable temporary directory found')

    monkeypatch.setattr(gru4rec_pytensor.tempfile, 'gettempdir', no_folder)
    with pytest.raises(OSError, match='set PYTENSOR_FLAGS=base_compiledir=FOLDER and NUMBA_CACHE_DIR=FOLDER'):
        gru4rec_pytensor.temporary_folder()


@pytest.mark.parametrize('variables', [{'PYTHONDONTWRITEBYTECODE': '1'}, pytest.param(
    {'NUMBA_CACHE_DIR': 'numba', 'PYTHONPYCACHEPREFIX': 'bytecode'}, marks=pytest.mark.slow)],
    ids=['no bytecode', 'a folder for each'])
def test_an_import_leaves_no_files_where_they_are_not_wanted_and_takes_no_jax_without_a_driver(
        tree, tmp_path, variables):
    given = {name: value if value == '1' else str(tmp_path / value) for name, value in variables.items()}
    before = sorted(tree.rglob('*'))
    done = run("""
        import sys
        import gru4rec, evaluation, baselines
        from gru4rec_pytensor import backends
        backends.GPU_FILES = ('/dev/none*',)
        assert backends.resolve('auto') == 'numba' and 'jax' not in sys.modules
    """, tree, HOME=str(tmp_path), PYTHONWARNINGS='error::UserWarning', **given)
    assert done.returncode == 0, done.stderr
    assert sorted(tree.rglob('*')) == before


def test_nothing_is_made_in_the_working_directory_for_a_user_without_a_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, 'expanduser', str)
    assert not gru4rec_pytensor.is_writable('~/.pytensor') and not os.listdir()


# --- Files that are damaged -----------------------------------------------------------------------------------------


@pytest.fixture
def twice(tmp_path, monkeypatch):
    """A function in a file, whose compiled code goes into the same folder."""
    monkeypatch.setattr('numba.config.CACHE_DIR', str(tmp_path))
    path, names = tmp_path / 'twice.py', {}
    path.write_text('def twice(x):\n    return 2 * x\n')
    exec(compile(path.read_text(), path, 'exec'), names)
    return names['twice']


@pytest.mark.parametrize('damage', [
    lambda content: b'', lambda content: content[:-9],
    lambda content: content[:-99] + bytes([content[-99] ^ 1]) + content[-98:]], ids=['empty', 'cut', 'bit'])
@pytest.mark.parametrize('ending', ['.nbi', '.nbc'])
def test_a_damaged_file_of_compiled_code_is_named_and_made_again(tmp_path, twice, caplog, ending, damage):
    assert numba.njit(cache=True)(twice)(3) == 6
    (file,) = tmp_path.rglob(f'*{ending}')
    file.write_bytes(damage(file.read_bytes()))
    assert numba.njit(cache=True)(twice)(3) == 6
    assert str(file) in caplog.text and 'is damaged: compiling again' in caplog.text
    caplog.clear()
    assert numba.njit(cache=True)(twice)(3) == 6 and not caplog.text


def test_files_that_others_wrote_have_no_checksum_and_are_read(tmp_path, twice, caplog):
    assert numba.njit(cache=True)(twice)(3) == 6
    for file in [*tmp_path.rglob('*.nb?')]:
        content, mark, checksum = file.read_bytes().rpartition(MARK)
        assert mark and len(checksum) == 32
        file.write_bytes(content)
    again = numba.njit(cache=True)(twice)
    assert again(3) == 6 and sum(again.stats.cache_hits.values()) == 1 and not caplog.text


@pytest.mark.parametrize('ending', [
    pytest.param('.nbi', marks=pytest.mark.slow), pytest.param('.nbc', marks=pytest.mark.promise)])
def test_damaged_code_of_a_step_is_made_again_that_of_its_parts_too(tmp_path, ending):
    program = """
        import numpy as np, pytensor.tensor as pt
        from gru4rec_pytensor import backends
        x = pt.fmatrix('x')
        step = backends.compile_step({'x': x}, {'y': pt.tanh(x).sum(axis=0)}, backend='numba')
        print(step({'x': np.ones((2, 3), 'float32')})['y'])
    """

    def run():
        return run_python(program, PYTENSOR_FLAGS=f'base_compiledir={tmp_path}')

    first = run()
    files = [*tmp_path.rglob(f'*{ending}')]
    assert len(files) > 1, first.stderr
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    again = run()
    assert again.stdout == first.stdout
    assert 'is damaged: compiling again' in again.stderr
    assert run().stderr == first.stderr == ''
