"""Order of the tests, and fixtures.  Test files share the rest in common.py.

The fixtures import it, not this file: the process that only starts others does not need it.
"""
import gc
import os
import tempfile

import pytest

# The files that take longest, promises included, come first, so that no process is left with one of them when the
# others have finished; and those that compile what others use come before them: test_release.py the programs for Numba
# and JAX, test_baselines.py the loops of the baselines.
LONGEST = ['test_release.py', 'test_later.py', 'test_baselines.py', 'test_checkpoint.py', 'test_style.py',
           'test_port.py', 'test_backends.py', 'test_run_experiments.py', 'test_jax.py', 'test_search.py',
           'test_variants.py', 'test_threads.py', 'test_evaluation.py', 'test_gru4rec.py', 'test_cli.py',
           'test_fit_more.py', 'test_ids.py', 'test_updates.py', 'test_work.py', 'test_docs.py']


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker('promise'):
            item.add_marker('slow')
        if any('JAX' in mark.kwargs['reason'] for mark in item.iter_markers('skipif')):  # `needs_jax` of common.py
            item.add_marker('jax')
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_configure(config):
    """Let one process compile a program of JAX for all, and Python look for garbage less often.

    Each time it looks, it goes through all that was compiled.
    """
    gc.set_threshold(50_000, 20, 100)
    config.add_cleanup(gc.freeze)  # pytest looks for it, several times, when all is done
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(lambda: os.environ.pop('JAX_COMPILATION_CACHE_DIR'))
        os.environ.update(JAX_COMPILATION_CACHE_DIR=folder.name, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
                          JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1')


@pytest.fixture(scope='session', autouse=True)
def compiled_once():
    """Compile each graph for the interpreter once."""
    from common import graphs_compiled_once
    with graphs_compiled_once():
        yield


@pytest.fixture(scope='session')
def top1_model():
    """A trained one-layer model, TOP1 with tanh scores, on the recorded training data.  Not to be trained again."""
    from common import trained_as_recorded
    return trained_as_recorded('top1_adagrad_m00', 'python')


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A folder with the files of a small synthetic log."""
    from preprocess_rsc15 import make_synthetic
    folder = tmp_path_factory.mktemp('synthetic')
    make_synthetic(folder, n_sessions=1500, n_items=200, seed=1)
    return folder


@pytest.fixture
def float64(monkeypatch):
    """Formulas in float64, so that they can be held against NumPy to the last digits."""
    for module in ('gru4rec', 'gru4rec_pytensor.backends.variables'):
        monkeypatch.setattr(f'{module}.FLOAT', 'float64')
