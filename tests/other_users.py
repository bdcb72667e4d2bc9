"""State of a process that uses PyTensor for something else, before and after it imports all of this project.

test_backends.py runs this in a process of its own, since there everything is imported already.  It prints a line for
each change.
"""
import importlib
import logging
import os
import pkgutil
import random
import signal
import sys
import warnings
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import pytensor
import pytensor.tensor as pt
from pytensor.compile import mode
from pytensor.graph.rewriting.db import RewriteDatabase
from pytensor.link.numba.dispatch import basic
from threadpoolctl import threadpool_info

EXTRAS = ['matplotlib.pyplot', 'optuna', 'tqdm', 'jax', 'pytensor.link.jax.dispatch']
OTHERS = ['scipy.special', *EXTRAS]  # what they change when they are imported is not this project's doing


def foreign_function():
    """Function of a graph of those operations that `numba_ops` replaces in our graphs."""
    x = pt.matrix('x', dtype='float32', shape=(4, 6))
    rows = pt.vector('rows', dtype='int64', shape=(4,))
    table, last = (pytensor.shared(np.ones((5, 6), 'float32'), name=name, shape=(5, 6)) for name in ('table', 'last'))
    y = pt.tanh(x) * pt.sigmoid(x + 1) + pt.exp(-x)
    updates = {table: pt.inc_subtensor(table[rows], y), last: pt.set_subtensor(last[rows], y / 3)}
    outputs = [y.sum(axis=0), y.max(axis=1), pt.dot(x.T, y), *pt.split(y, [2, 2, 2], n_splits=3, axis=1)]
    return pytensor.function([x, rows], outputs, updates=updates, mode='NUMBA')


def operations(fgraph):
    """Class of each operation, of the body of its loop, and of those in inner graphs, in their order.

    Beside it the options with which Numba compiles the body.
    """
    for node in fgraph.toposort():
        options = None
        if isinstance(node.op, pytensor.tensor.elemwise.Elemwise):
            body, _key = basic.numba_funcify_and_cache_key(
                node.op.scalar_op, node=node.op.make_scalar_node(*node.inputs))
            options = sorted(body.targetoptions.items(), key=str)
        for op in filter(None, (node.op, getattr(node.op, 'scalar_op', None))):
            yield f'{type(op).__module__}.{type(op).__qualname__}', options
            if hasattr(op, 'fgraph'):
                yield from operations(op.fgraph)


def graph_state():
    """Graph, operations, compiled source and options of the foreign function."""
    function = foreign_function()
    fgraph = function.maker.fgraph
    with pytensor.config.change_flags(numba__cache=True):
        _compiled, key = basic.numba_funcify_and_cache_key(fgraph)
    return {'graph': pytensor.printing.debugprint(function, file='str'), 'operations': [*operations(fgraph)],
            'key of its compiled code': key, 'source': getattr(function.vm.jit_fn.py_func, '__source__', None)}


def rewrites(database):
    """Tag -> names of rewrites, of a database and those in it."""
    return {tag: sorted((rewrite.name, rewrites(rewrite) if isinstance(rewrite, RewriteDatabase) else None)
                        for rewrite in tagged) for tag, tagged in database.__db__.items()}


def process_state():
    """Registries and settings that all users of a process share."""
    registries = [basic.numba_funcify, basic.numba_funcify_and_cache_key, basic.numba_funcify_default_op_cache_key]
    if 'pytensor.link.jax.dispatch' in sys.modules:
        registries.append(sys.modules['pytensor.link.jax.dispatch'].jax_funcify)
    state = {f'{registry.__name__} of {operation.__module__}.{operation.__qualname__}': compilation
             for registry in registries for operation, compilation in registry.registry.items()
             if operation.__module__.startswith('pytensor')}
    state |= {f'config.{name}': getattr(pytensor.config, name) for name in pytensor.config._config_var_dict}
    state |= {f'numba.config.{name}': value for name, value in vars(numba.config).items() if name.isupper()}
    if 'matplotlib' in sys.modules:
        state |= {f'rcParams[{name}]': value for name, value in dict(sys.modules['matplotlib'].rcParams).items()}
    return state | {
        'rewrites': rewrites(mode.optdb), 'positions of rewrites': dict(mode.optdb.__position__),
        'modes': dict(mode.predefined_modes), 'linkers': dict(mode.predefined_linkers),
        'warnings': [*warnings.filters], 'logging': (logging.root.level, [*logging.root.handlers]),
        'errors of NumPy': np.geterr(), 'printing of NumPy': np.get_printoptions(),
        'random numbers': (random.getstate(), [np.asarray(part).tolist() for part in np.random.get_state()]),
        'options of pandas': pd.describe_option('', _print_desc=False), 'environment': dict(os.environ),
        'path': [*sys.path], 'folder': os.getcwd(), 'threads': threadpool_info(), 'excepthook': sys.excepthook,
        'signals': {number: signal.getsignal(number) for number in signal.valid_signals()}}


def import_what_is_there(names):
    """Import modules, but for those that need an extra that is not installed."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name.split('.')[0] not in {extra.split('.')[0] for extra in EXTRAS} - {'pytensor'}:
                raise


def main():
    pytensor.config.numba__cache = False  # so that the code is compiled both times
    import_what_is_there(OTHERS)
    # In this order, since the first compilation imports more of PyTensor.
    before = graph_state() | process_state()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import_what_is_there(['gru4rec', 'evaluation', 'baselines', 'preprocess_rsc15', 'run_experiments'])
    package = importlib.import_module('gru4rec_pytensor')
    import_what_is_there(module.name for module in pkgutil.walk_packages(package.__path__, 'gru4rec_pytensor.'))
    sys.path.pop(0)
    after = process_state() | graph_state()
    for name in before.keys() | after.keys():
        if name not in before or name not in after or str(before[name]) != str(after[name]):
            print(name)


if __name__ == '__main__':
    main()
