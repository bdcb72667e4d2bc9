"""Compilation of symbolic graphs to programs: the only package that knows a linker.

The model (`gru4rec.py`) hands over a step, written once in symbols, and gets back a function that runs it on a chunk of
mini-batches.  Inputs and outputs are dictionaries, by name.  Three backends are offered:

* ``'numba'``: machine code for the CPU.  The step and the loop over mini-batches around it are one compiled function.
* ``'jax'``: the same for a GPU, through JAX and XLA; works on a CPU too.  Needs JAX, an extra of the package.
* ``'python'``: PyTensor's own interpreter.  Compiles in a second and runs slowly: for tests and for looking inside.

``'auto'`` is JAX where it sees a GPU, and Numba elsewhere.

This file is the interface, with the loops for a CPU; `jax_loops` is imported only for its backend.  An import changes
nothing for other graphs of the process, but that damaged files of Numba's cache are compiled again.  One thread of a
process at a time makes graphs (`symbols_of_float32`) and compiles them.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from glob import glob
from hashlib import sha256
from importlib.util import find_spec
from typing import Any

import numba
import numpy as np
import pytensor
from numba.core.registry import cpu_target
from pytensor.compile.executor import Function
from pytensor.graph.basic import Variable
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS, NUMBA_CACHE_PATH, compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit

from gru4rec_pytensor.backends.common import (
    FLOAT,
    check_working_directory,
    compiling,
    row_update,
    symbols_of_float32,
    version_of,
)
from gru4rec_pytensor.backends.numba_cache import guard_code_on_disk
from gru4rec_pytensor.backends.numba_ops import fast_activations
from gru4rec_pytensor.backends.numba_tricks import TRICKS, numba_mode
from gru4rec_pytensor.backends.python_ops import python_mode
from gru4rec_pytensor.backends.repeats import summed_repeats
from gru4rec_pytensor.backends.threads import available_cores, blas_threads
from gru4rec_pytensor.backends.variables import Variables, free_with, shared
from gru4rec_pytensor.checks import check_choice
from gru4rec_pytensor.turns import ProcessLock

Symbols = Mapping[str, Variable]  # by name
Arrays = dict[str, Any]

__all__ = ['BACKENDS', 'FLOAT', 'TRICKS', 'Variables', 'available_cores', 'blas_threads', 'check_working_directory',
           'compile_function', 'compile_loop', 'compile_ranks', 'compile_step', 'fast_activations', 'free_with',
           'loop_source', 'resolve', 'row_update', 'shared', 'summed_repeats', 'symbols_of_float32']

logger = logging.getLogger('gru4rec')

BACKENDS = ('auto', 'numba', 'jax', 'python')
GPU_FILES = ('/dev/nvidia[0-9]*', '/dev/kfd', '/dev/dxg')  # which drivers make for a GPU: NVIDIA's, AMD's, Windows's
VERSION = version_of(__file__)

guard_code_on_disk()


def resolve(backend: str) -> str:
    """Return the backend that a name stands for; ValueError if it is none, or one that does not work here."""
    check_choice('backend', backend, BACKENDS)
    if backend == 'auto':
        backend = 'jax' if _gpu() else 'numba'
    if backend == 'numba' and numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise ValueError("backend='numba' compiles, which NUMBA_DISABLE_JIT=1 forbids: unset that variable, or take "
                         "backend='python'")
    if backend == 'jax':
        try:
            import jax
            jax.devices()
        except Exception as error:
            raise ValueError(f"backend='jax' needs JAX, which does not work here ({type(error).__name__}: {error}): "
                             "pip install '.[jax]', or '.[gpu]' for CUDA; backend='numba' does without") from error
    return backend


def _gpu() -> bool:
    """Return whether JAX works and sees a GPU.

    JAX is imported only where it has a plugin for GPUs and a driver shows one: the import takes seconds, starts
    threads, and sets PyTensor's and JAX's precision for the whole process.
    """
    if not (find_spec('jax') and find_spec('jax_plugins') and any(map(glob, GPU_FILES))):
        return False
    try:
        import jax
        return jax.default_backend() == 'gpu'
    except Exception as error:
        logger.warning('JAX is installed but does not work (%s: %s): going on without', type(error).__name__, error)
        return False


def compile_function(inputs: Sequence[Variable], outputs: Variable | Sequence[Variable], updates: dict | None = None, *,
                     backend: str) -> Function:
    """Compile as `pytensor.function` does, for a backend.  One thread at a time may call the result."""
    check_choice('backend', backend, BACKENDS[1:])
    if backend == 'jax':
        from gru4rec_pytensor.backends.jax_loops import jax_mode
        mode = jax_mode()
    else:
        mode = python_mode() if backend == 'python' else numba_mode()
    with compiling():
        return pytensor.function(inputs, outputs, updates=updates, mode=mode, on_unused_input='ignore')


def compile_step(inputs: Symbols, outputs: Symbols, *, backend: str) -> Callable[[Arrays], Arrays]:
    """Compile a graph without updates to a function of {name: array}, one for each of `inputs`.

    It returns the outputs, by name, which are the caller's.  Several threads may call it at once.
    """
    check_choice('backend', backend, BACKENDS[1:])
    if backend == 'jax':
        from gru4rec_pytensor.backends.jax_loops import JaxStep
        return JaxStep(inputs, outputs)
    return (PythonStep if backend == 'python' else NumbaStep)(inputs, outputs)


def compile_loop(sequences: Symbols, output: Variable, updates: dict, *, backend: str,
                 n_threads: int = 1) -> Callable[[Arrays], np.ndarray]:
    """Compile a step that is run for each row of its sequences.

    Parameters
    ----------
    sequences : symbolic inputs of one step, by name
    output : symbolic scalar
    updates : shared variable -> its value after the step
    n_threads : number of BLAS's threads meanwhile; JAX has its own

    Returns
    -------
    function of {name: array}, with a leading axis of K rows, one for each of `sequences`.  It runs the step K times and
    returns the outputs (K,), or those up to the first that is not finite, after which it stops
    """
    check_choice('backend', backend, BACKENDS[1:])
    if backend == 'jax':
        from gru4rec_pytensor.backends.jax_loops import JaxLoop
        return JaxLoop(sequences, output, updates)
    return (PythonLoop if backend == 'python' else NumbaLoop)(sequences, output, updates, n_threads)


def compile_ranks(inputs: Symbols, outputs: Symbols, scores: Variable, activated: Variable,
                  block: int = 16_384) -> Callable[..., tuple[dict, list[np.ndarray]]]:
    """Compile the counting of ranks on a GPU, for the backend 'jax': see `jax_loops.JaxRanks`."""
    from gru4rec_pytensor.backends.jax_loops import JaxRanks
    return JaxRanks(inputs, outputs, scores, activated, block)


class PythonStep:
    """A graph run by PyTensor's interpreter: one thread at a time, since intermediate results are kept in one place."""

    def __init__(self, inputs: Symbols, outputs: Symbols) -> None:
        self._function: Any = compile_function([*inputs.values()], [*outputs.values()], backend='python')
        self._inputs, self._outputs = [*inputs], [*outputs]
        self._lock = ProcessLock()

    def __call__(self, arrays: Arrays) -> Arrays:
        with self._lock.held(), np.errstate(all='ignore'):  # as PyTensor's own element-wise operations
            found = self._function(*in_order(arrays, self._inputs))
            return {name: np.array(value) for name, value in zip(self._outputs, found)}


class PythonLoop:
    """A loop in Python around the step."""

    def __init__(self, sequences: Symbols, output: Variable, updates: dict, n_threads: int) -> None:
        self._step = compile_function([*sequences.values()], output, updates, backend='python')
        self._names, self._n_threads = [*sequences], n_threads

    def __call__(self, sequences: Arrays) -> np.ndarray:
        arrays = in_order(sequences, self._names)
        outputs = np.empty(len(arrays[0]), dtype=FLOAT)
        with blas_threads.limited(self._n_threads), np.errstate(all='ignore'):
            for k, row in enumerate(zip(*arrays)):
                outputs[k] = self._step(*row)
                if not np.isfinite(outputs[k]):
                    return outputs[:k + 1]
        return outputs


class NumbaFunction:
    """A graph as a function of Numba: ``function(*inputs, *arrays of the shared variables)`` -> outputs.

    `fgraph` is the graph as it was compiled; `storage` are one-element lists that hold the arrays, of which it may
    write into those that are updated.
    """

    def __init__(self, inputs: Sequence[Variable], outputs: Variable | Sequence[Variable],
                 updates: dict | None = None) -> None:
        function: Any = compile_function(inputs, outputs, updates, backend='numba')
        self._function, self.fgraph = function.vm.jit_fn, function.maker.fgraph
        self.storage = [function.vm.storage_map[variable] for variable in self.fgraph.inputs[len(inputs):]]

    def within(self, name: str, source: str) -> Any:
        """Return a function of this name and source, in which the graph's function is called ``step``."""
        # A key made of PyTensor's key for the step lets the machine code of this function be found on disk, too.
        # PyTensor's function only calls the step: calling the step itself saves a seventh of the compilation.
        py_func = self._function.py_func
        step_key, step = CACHED_SRC_FUNCTIONS.get(py_func), py_func.__globals__.get('jitable_func', self._function)
        key = step_key and sha256(f'{step_key} {source} {VERSION}'.encode()).hexdigest()
        names = {'__name__': __name__, 'step': step, 'np': np}
        function = compile_numba_function_src(source, name, names, cache_key=key)
        return numba_njit(function, final_function=True, cache=key is not None)


class NumbaStep:
    """A graph as machine code, without PyTensor's interpreter around it."""

    def __init__(self, inputs: Symbols, outputs: Symbols) -> None:
        self._step = NumbaFunction([*inputs.values()], [*outputs.values()])
        self._inputs, self._outputs = inputs, [*outputs]
        arguments = ', '.join(f'array{i}' for i in range(len(self._step.fgraph.inputs)))
        self._function = self._step.within('once', f'def once({arguments}):\n    return step({arguments})')

    def __call__(self, arrays: Arrays) -> Arrays:
        inputs = [np.asarray(variable.type.filter(array), order='C')
                  for variable, array in zip(self._inputs.values(), in_order(arrays, [*self._inputs]))]
        return dict(zip(self._outputs, call(self._function, (*inputs, *[cell[0] for cell in self._step.storage]))))


class NumbaLoop:
    """The step and the loop around it as one compiled function, so that no Python runs between two steps.

    Its source is generated, since the number of arrays differs from model to model.
    """

    def __init__(self, sequences: Symbols, output: Variable, updates: dict, n_threads: int) -> None:
        self._step = NumbaFunction([*sequences.values()], output, updates)
        self._names, self._n_threads, fgraph = [*sequences], n_threads, self._step.fgraph
        source = loop_source(len(sequences), len(self._step.storage), len(fgraph.outputs), fgraph.update_mapping)
        self._loop = self._step.within('loop', source)

    def __call__(self, sequences: Arrays) -> np.ndarray:
        arrays = in_order(sequences, self._names)
        outputs = np.empty(len(arrays[0]), dtype=FLOAT)
        with blas_threads.limited(self._n_threads):
            n_done, states = call(self._loop, (outputs, *arrays, *[cell[0] for cell in self._step.storage]))
        for cell, state in zip(self._step.storage, states):
            cell[0] = state
        return outputs[:n_done]


def in_order(arrays: Arrays, names: list[str]) -> list:
    """Return the arrays of these names; ValueError unless those are all."""
    if arrays.keys() != set(names):
        raise ValueError(f'inputs are {sorted(names)}; got {sorted(arrays)}')
    return [arrays[name] for name in names]


def call(function: Any, arguments: tuple) -> Any:
    """Call a function of Numba; the first call loads its code from disk."""
    if not function.overloads and function.stats.cache_path:
        with compiling():
            if not function.overloads:
                add_code_on_disk(function, tuple(map(numba.typeof, arguments)))
    return function(*arguments)


def add_code_on_disk(function: Any, signature: tuple) -> None:
    """Load the machine code of a function that Numba caches from disk, and compile it to there first if it is missing.

    In the process that compiles it, a function calls others that were compiled one by one; the code on disk is one
    piece, optimised as a whole: last digits differ.  And of several parts with one name, an execution engine takes the
    first.  So the code is loaded from disk into an engine of its own: the first run on a machine gives the bits of
    later ones, whatever else the process has compiled.
    """
    cache, engine = function._cache, type(cpu_target.target_context)(cpu_target.typing_context)
    code = cache.load_overload(signature, engine)
    if code is None:
        compiler: Any = numba_njit(function.py_func, final_function=True, cache=True)
        try:
            compiler.compile(signature)
        except OSError as error:
            raise OSError(f'compiled code cannot be written to {error.filename or NUMBA_CACHE_PATH}: '
                          f'{error.strerror}; set PYTENSOR_FLAGS=base_compiledir=FOLDER for another folder') from error
        code = cache.load_overload(signature, engine) or compiler.overloads[signature]  # if it cannot be cached
    function.add_overload(code)


def loop_source(n_sequences: int, n_states: int, n_outputs: int, update_mapping: dict[int, int]) -> str:
    """Return the source of the loop; `update_mapping` says which output of the step replaces which of its inputs."""
    sequences = [f'sequence{i}' for i in range(n_sequences)]
    states = [f'state{i}' for i in range(n_states)]
    results = [f'result{i}' for i in range(n_outputs)]
    return '\n'.join([
        f"def loop(outputs, {', '.join(sequences + states)}):",
        '    done = 0',
        '    while done < len(outputs):',
        f"        {', '.join(results)}, = step({', '.join([f'{name}[done]' for name in sequences] + states)})",
        '        outputs[done] = result0.item()',
        *[f'        state{i - n_sequences} = result{o}' for o, i in update_mapping.items()],
        '        done += 1',
        '        if not np.isfinite(outputs[done - 1]):',
        '            break',
        f"    return done, ({', '.join(states)},)",
    ])
