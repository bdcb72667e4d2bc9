"""Recorded runs of the releases, small click logs, and trained models, which several test files share."""
import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytensor
import pytest
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import equal_computations
from pytensor.graph.traversal import graph_inputs

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the tests run without an installation

from numpy_gru4rec import NumpyGRU4Rec

import gru4rec
from gru4rec import GRU4Rec
from gru4rec_pytensor import backends

GOLDEN = Path(__file__).parent / 'golden'
CASES = json.loads((GOLDEN / 'release.json').read_text())
with np.load(GOLDEN / 'release.npz') as archive:
    ARRAYS = dict(archive)
LATER_CASES = json.loads((GOLDEN / 'later.json').read_text())  # of the authors' later release
with np.load(GOLDEN / 'later.npz') as archive:
    LATER_ARRAYS = dict(archive)
TRAIN = pd.read_csv(GOLDEN / 'train.tsv', sep='\t')
TEST = pd.read_csv(GOLDEN / 'test.tsv', sep='\t')

# The recorded case whose compiled step the quick tests of the fast backends share, since compiling takes 20 seconds:
# constants, batch size and units are compiled in, the number of items and epochs, the seed and sigma are not.
FAST_CASE = 'x_dropout_fixedmask'
CROSS_ENTROPY_CASE = 'cross-entropy_rmsprop_m00'  # on Numba, a promise

PROMISE = pytest.mark.promise  # a slow test that .ci/run runs nevertheless: conftest.py marks it as slow, too
needs_jax = pytest.mark.skipif(not importlib.util.find_spec('jax'), reason='JAX, an extra, is not installed')  # -m jax
FAST_BACKENDS = [pytest.param('numba', marks=pytest.mark.slow),  # for tests that 'python' runs in seconds
                 pytest.param('jax', marks=[needs_jax, pytest.mark.slow])]


# --- Compilation ----------------------------------------------------------------------------------------------------


@contextmanager
def graphs_compiled_once():
    """Compile a graph for the interpreter once: one that differs in its shared variables only gets a copy with those.

    Most tests train some small model, and half of their time would go into compiling the same few steps.
    """
    compile_function, known = backends.compile_function, {}

    def compile_or_copy(inputs, outputs, updates=None, *, backend):
        if backend != 'python':
            return compile_function(inputs, outputs, updates, backend=backend)
        updates = updates or {}
        graph = [*(outputs if isinstance(outputs, (list, tuple)) else [outputs]), *updates.values()]
        shared = [v for v in dict.fromkeys([*updates, *graph_inputs(graph)]) if isinstance(v, SharedVariable)]
        free, like = [*inputs, *shared], (len(graph), len(updates), pytensor.config.floatX)
        for other_graph, other_free, other_shared, function in known.setdefault(like, []):
            if [v.type for v in free] == [v.type for v in other_free] and equal_computations(
                    graph, other_graph, free, other_free):
                return function.copy(swap=dict(zip(other_shared, shared)))
        function = compile_function(inputs, outputs, updates, backend=backend)
        known[like].append((graph, free, shared, function))
        return function

    # Nor does each symbol note where it was made, which takes a tenth of what is left; values of formulas (`eval`) are
    # found without compiling them; and no C is compiled to fold constants.
    with pytest.MonkeyPatch.context() as patch, pytensor.config.change_flags(
            traceback__limit=0, mode='FAST_COMPILE', cxx=''):
        patch.setattr(backends, 'compile_function', compile_or_copy)
        yield


# --- Processes ------------------------------------------------------------------------------------------------------

PATH = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent)))  # of the project and the tests


def run_python(program, *arguments, **environment):
    """Run a program in a process of its own, which must end well; return what it wrote, with `stdout` and `stderr`."""
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(program), *map(str, arguments)], capture_output=True,
                          env=os.environ | {'PYTHONPATH': PATH} | environment, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done


# --- Click logs -----------------------------------------------------------------------------------------------------


def click_log(*sessions):
    """Frame with one event a second, session after session, numbered from 1."""
    events = [(number, item) for number, session in enumerate(sessions, start=1) for item in session]
    return pd.DataFrame(events, columns=['SessionId', 'ItemId']).assign(Time=np.arange(len(events)))


def few_items_log(n_sessions=30, n_items=5, seed=0):
    """Frame of shuffled rows, 1 to 7 events a session, so few items that most mini-batches repeat some.

    Session ids are not in the order of time, and the order of first appearance of items is not that of their ids.
    """
    rng = np.random.RandomState(seed)
    lengths = rng.randint(1, 8, n_sessions)
    log = pd.DataFrame({'SessionId': np.repeat(rng.permutation(n_sessions), lengths),
                        'ItemId': 10 * rng.randint(n_items, size=lengths.sum())})
    return log.assign(Time=np.arange(len(log))).sample(frac=1, random_state=seed)


# --- Models ---------------------------------------------------------------------------------------------------------


def recorded(case, kind, arrays=ARRAYS):
    """{NAME: array} of the recorded arrays CASE/kind_NAME; LATER_ARRAYS are those of the later release."""
    prefix = f'{case}/{kind}_'
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def arguments_later(case):
    """The arguments of a run of the later release in our names: its own defaults where it was given none."""
    return dict(dropout_p_hidden=0.0, time_sort=True, drop_tail=False) | LATER_CASES[case]['arguments']


def recorded_masks(case):
    """The fixed dropout masks of a recorded case, or None."""
    return [ARRAYS[key] for key in sorted(ARRAYS) if key.startswith(f'{case}/dropout_mask')] or None


@contextmanager
def minibatches_recorded():
    """Collect the losses of each chunk of mini-batches that is trained, and its sequences: places, masks, negatives."""
    seen, compile_loop = [], backends.compile_loop

    def recording_loop(*arguments, **options):
        run = compile_loop(*arguments, **options)

        def recording_run(sequences):
            given = {name: np.array(array) for name, array in sequences.items()}
            seen.append((np.array(run(sequences)), given))
            return seen[-1][0]
        return recording_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, 'compile_loop', recording_loop)
        yield seen


@functools.cache
def trained_as_recorded(case, backend):
    """A model trained with the arguments of a recorded case.  Shared: not to be trained again."""
    return GRU4Rec(**CASES[case]['arguments'], backend=backend).fit(TRAIN, dropout_masks=recorded_masks(case))


def small_model(**arguments):
    """An untrained model of the backend that compiles fast."""
    defaults = dict(layers=[4], n_epochs=2, batch_size=6, dropout_p_hidden=0.0, backend='python')
    return GRU4Rec(**{**defaults, **arguments})


def fixed_masks(layers, batch_size, p, seed=0):
    """A 0/1 array (batch_size, units) for each layer."""
    rng = np.random.RandomState(seed)
    return [(rng.rand(batch_size, n) >= p).astype('float32') for n in layers]


def drawn_inputs(settings, n_minibatches, **arguments):
    """Masks and negatives of mini-batches in which all lanes work, in the order of their draws."""
    draw = gru4rec.random_inputs(settings, np.ones(settings.n_items, int), **arguments)
    return [*draw(np.ones((n_minibatches, settings.batch_size), bool)).values()]


def reference_of(model, log, dropout_masks=None, dtype='float64'):
    """The NumPy implementation trained with the arguments of `model`."""
    arguments = {name: value for name, value in vars(model).items()
                 if not name.startswith('_') and name in NumpyGRU4Rec.__init__.__code__.co_varnames}
    return NumpyGRU4Rec(**arguments, dtype=dtype).fit(log, dropout_masks)


def state_of(model):
    """All weights, accumulators and velocities of a model or of the NumPy reference, under the release's names."""
    if isinstance(model, NumpyGRU4Rec):
        acc, vel = ({f'{kind}_{name}': value for name, value in values.items()}
                    for kind, values in (('acc', model.acc), ('vel', model.vel)))
        return {**model.weights, **acc, **vel}
    return {**model.weights(), **model.optimizer_state()}


def assert_close(actual, expected, tolerance):
    """Assert that two dictionaries of arrays are the same up to `tolerance`, absolute up to 1 and relative above."""
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape, name
        error = np.max(np.abs(actual[name] - expected[name]) / np.maximum(1, np.abs(expected[name])))
        assert error <= tolerance, f'{name} is off by {error:.2g}'


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


class Only:
    """Hides the fast paths of a model: it has only a method of the release."""

    def __init__(self, model, method):
        self.items_ = model.items_
        setattr(self, method, getattr(model, method))


CALLS = itertools.count()


def scores_by_hand(model, log, batch=1):
    """Scores of all items after every event that has a next one, (predictions, n_items), and the next items' ids.

    They are those that a user of the release gets: `predict_next_batch` with a changing session id for each lane, the
    sessions dealt out to the lanes in order; rows by session, then time.  Session ids are new in each call, since the
    model remembers those of the last one; a lane without work repeats a session of its own.
    """
    call = next(CALLS)
    log = log.sort_values([model.session_key, model.time_key], kind='stable')
    sessions = [(key, group[model.item_key].tolist()) for key, group in log.groupby(model.session_key)]
    work = [[] for _lane in range(batch)]
    for number, (key, items) in enumerate(sessions):
        work[number % batch] += [(f'{call}: {key}', number, place, item) for place, item in enumerate(items[:-1])]
    found = {}
    for step in range(max(map(len, work))):
        events = [lane[step] if step < len(lane) else (f'{call}: idle', None, None, model.items_[0]) for lane in work]
        session_ids, numbers, places, items = zip(*events)
        frame = model.predict_next_batch(np.array(session_ids), np.array(items), None, batch)
        found.update({key: frame[lane].to_numpy() for lane, key in enumerate(zip(numbers, places))})
    wanted = [(number, place) for number, (_key, items) in enumerate(sessions) for place in range(len(items) - 1)]
    targets = [item for _key, items in sessions for item in items[1:]]
    return np.array([found[place] for place in wanted]), np.array(targets)


def ranks_by_hand(scores, targets, items, tie_policy='standard', candidates=None):
    """Ranks counted item by item; `items` are the ids of the columns of `scores`."""
    ranks = []
    for row, target in zip(scores, targets):
        score = dict(zip(items, row))
        others = [score[item] for item in (items if candidates is None else set(candidates)) if item != target]
        higher = sum(other > score[target] for other in others)
        equal = sum(other == score[target] for other in others)
        ranks.append(1 + higher + {'standard': 0, 'conservative': equal, 'median': equal / 2}[tie_policy])
    return np.array(ranks)
