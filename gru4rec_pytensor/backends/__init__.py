"""How a symbolic graph becomes a program: the only package that knows a linker.

The model (`gru4rec.py`) hands over a step, written once in symbols, and gets back a function that runs it on a chunk of
mini-batches, as many as are handed over at once.  Three backends are offered:

* ``'numba'``: machine code for the CPU.  The step and the loop over mini-batches around it are one compiled function,
  so that no Python runs between two mini-batches.
* ``'jax'``: the same for a GPU, through JAX and XLA; works on a CPU too.  Needs JAX, an extra of the package.
* ``'python'``: PyTensor's own interpreter.  Compiles in a second and runs slowly: for tests and for looking inside.

``'auto'`` is JAX where it sees a GPU, and Numba elsewhere.

This file is the interface, with the two loops for the CPU.  `numba_ops` has operations for Numba and the rewrites that
put them into a graph, `jax_loops` what runs on JAX, and is imported only where JAX is asked for; `common` is what both
share.  Importing them changes nothing for other graphs of the process.
"""
from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import pytensor
from pytensor.compile.executor import Function
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Variable
from pytensor.graph.rewriting.basic import in2out
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS, compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit
from threadpoolctl import ThreadpoolController

from gru4rec_pytensor.backends.common import BEFORE_FUSION, FLOAT, two_by_two, version_of
from gru4rec_pytensor.backends.numba_ops import TRICKS, fast_activations, numba_mode

if TYPE_CHECKING:
    from gru4rec_pytensor.backends.jax_loops import JaxRanks

__all__ = ['BACKENDS', 'FLOAT', 'TRICKS', 'compile_function', 'compile_loop', 'compile_ranks', 'fast_activations',
           'loop_source', 'resolve']

logger = logging.getLogger('gru4rec')

BACKENDS = ('auto', 'numba', 'jax', 'python')
VERSION = version_of(__file__)


def resolve(backend: str) -> str:
    """The backend that a name stands for; ValueError if it is JAX and JAX does not work."""
    if backend == 'auto':
        return 'jax' if find_spec('jax') and _gpu() else 'numba'
    if backend == 'jax':
        try:
            import jax
            jax.devices()
        except Exception as error:
            raise ValueError(f"backend='jax' needs JAX, which does not work here ({type(error).__name__}: {error}): "
                             "pip install '.[jax]', or '.[gpu]' for CUDA; backend='numba' does without") from error
    return backend


def _gpu() -> bool:
    """Whether JAX works and sees a GPU."""
    try:
        import jax
        return jax.default_backend() == 'gpu'
    except Exception as error:
        logger.warning('JAX is installed but does not work (%s: %s): going on without', type(error).__name__, error)
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Compilation
# ---------------------------------------------------------------------------------------------------------------------

def compile_function(inputs: Sequence[Variable], outputs: Variable | Sequence[Variable], updates: dict | None = None, *,
                     backend: str) -> Function:
    """`pytensor.function` for a backend."""
    if backend == 'python':
        mode = python_mode()
    elif backend == 'jax':
        from gru4rec_pytensor.backends.jax_loops import jax_mode
        mode = jax_mode()
    else:
        mode = numba_mode()
    return pytensor.function(inputs, outputs, updates=updates, mode=mode, on_unused_input='ignore')


def python_mode() -> Mode:
    """PyTensor's mode for its interpreter, in which each operation is one call of NumPy.

    Fused loops, and sums and products of three and more, would run element by element in Python.  To find out which
    loops may overwrite their inputs takes a third of the time of a compilation, and brings nothing here.
    """
    mode = Mode(linker='py', optimizer='fast_run').excluding('fusion', 'inplace_elemwise')
    return mode.register((in2out(two_by_two, name='two_by_two'), BEFORE_FUSION))


def compile_loop(sequences: Sequence[Variable], output: Variable, updates: dict, *,
                 backend: str) -> Callable[..., np.ndarray]:
    """Compile a step that is run for each row of its sequences.

    Parameters
    ----------
    sequences : symbolic inputs of one step
    output : symbolic scalar
    updates : shared variable -> its value after the step

    Returns
    -------
    function of arrays with a leading axis of K rows, one array for each of `sequences`; it runs the step K times and
    returns the outputs (K,).  After an output that is not finite it stops, and returns those up to it.
    """
    if backend == 'jax':
        from gru4rec_pytensor.backends.jax_loops import JaxLoop
        return JaxLoop(sequences, output, updates)
    return (PythonLoop if backend == 'python' else NumbaLoop)(sequences, output, updates)


def compile_ranks(inputs: Sequence[Variable], outputs: Sequence[Variable], scores: Variable, activated: Variable,
                  block: int = 16_384) -> JaxRanks:
    """Compile the counting of ranks on a GPU, for the backend 'jax'; arguments as of `jax_loops.JaxRanks`."""
    from gru4rec_pytensor.backends.jax_loops import JaxRanks
    return JaxRanks(inputs, outputs, scores, activated, block)


class PythonLoop:
    """A loop in Python around the step."""

    def __init__(self, sequences: Sequence[Variable], output: Variable, updates: dict) -> None:
        self._step = compile_function(sequences, output, updates, backend='python')

    def __call__(self, *sequences: np.ndarray) -> np.ndarray:
        outputs = np.empty(len(sequences[0]), dtype=FLOAT)
        for k, row in enumerate(zip(*sequences)):
            outputs[k] = self._step(*row)
            if not np.isfinite(outputs[k]):
                return outputs[:k + 1]
        return outputs


class NumbaLoop:
    """The step and the loop around it as one compiled function, so that no Python runs between two steps.

    PyTensor makes the step a Numba function of (a row of each sequence, arrays of the shared variables) that returns
    (output, new arrays) and writes into the old arrays where it may.  The loop hands the new arrays to the next step.
    Its source is generated, since the number of arrays differs from model to model.
    """

    def __init__(self, sequences: Sequence[Variable], output: Variable, updates: dict) -> None:
        function: Any = compile_function(sequences, output, updates, backend='numba')
        fgraph, step = function.maker.fgraph, function.vm.jit_fn
        self._storage = [function.vm.storage_map[variable] for variable in fgraph.inputs[len(sequences):]]
        source = loop_source(len(sequences), len(self._storage), len(fgraph.outputs), fgraph.update_mapping)
        # PyTensor has a key for the step's machine code on disk; with a key made of it the loop's is found again, too.
        step_key = CACHED_SRC_FUNCTIONS.get(step.py_func)
        key = step_key and sha256(f'{step_key} {source} {VERSION}'.encode()).hexdigest()
        loop = compile_numba_function_src(source, 'loop', {'__name__': __name__, 'step': step, 'np': np}, cache_key=key)
        self._is_cached = key is not None
        self._loop: Any = numba_njit(loop, final_function=True, cache=self._is_cached)
        self._threads = ThreadpoolController()

    def __call__(self, *sequences: np.ndarray) -> np.ndarray:
        outputs = np.empty(len(sequences[0]), dtype=FLOAT)
        if self._is_cached and not self._loop.signatures:
            compile_in_child(self._loop, (outputs, *sequences, *(cell[0] for cell in self._storage)))
        # The products of a step are small: handing them to more threads costs more than it brings, and with another
        # busy process on the machine a hundred times more, since the threads wait for one another by spinning.
        with self._threads.limit(limits=1, user_api='blas'):
            n_done, states = self._loop(outputs, *sequences, *(cell[0] for cell in self._storage))
        for cell, state in zip(self._storage, states):
            cell[0] = state
        return outputs[:n_done]


def compile_in_child(function: Any, arguments: tuple) -> None:
    """Compile a function that Numba caches in a child process, so that this one finds it in the cache.

    In the process that compiles it, the functions that it calls are those that were compiled one by one; what the cache
    has is one piece, which was optimised as a whole.  Both are right, but last digits differ.  This way the first run
    of a model on a machine gives the same bits as all later ones.  On other systems than Linux, and where JAX is
    loaded, whose threads do not survive a fork, nothing is done: this process compiles the function when it calls it.
    """
    if sys.platform != 'linux' or 'jax' in sys.modules:
        return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of a fork with threads: BLAS's, which the child leaves
        child = os.fork()
    if not child:
        try:
            function.compile(tuple(map(numba.typeof, arguments)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def loop_source(n_sequences: int, n_states: int, n_outputs: int, update_mapping: dict[int, int]) -> str:
    """Source of the loop; `update_mapping` says which output of the step replaces which of its inputs."""
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


