"""Names of other packages that are not documented: each is there and does what the project needs of it."""
import ast
import inspect
import pkgutil
import re
from pathlib import Path

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from common import needs_jax
from packaging.version import Version
from pytensor.compile.mode import Mode, optdb
from pytensor.graph.rewriting.db import RewriteDatabase
from test_packaging import CONSTRAINTS, pinned
from test_style import SETUP, TREES

from gru4rec_pytensor.backends import numba_tricks, python_ops

TABLE = [line.split(' | ') for line in (Path(__file__).parents[1] / 'docs' / 'private_names.md').read_text(
    encoding='utf-8').splitlines() if line.startswith('| ')][1:]
NAMES = [name for row in TABLE for name in re.findall('`([^`]+)`', row[0])]
MODULES = ('pytensor.link', 'numba.core', 'llvmlite', 'distributed.worker')  # of which all names count as private


def found(path):
    """The object of a dotted name; an error says which part of it is gone."""
    pytest.importorskip(path.partition('.')[0])
    return pkgutil.resolve_name(path)


DOTTED = [name for name in NAMES if re.fullmatch(r'(pytensor|numba|llvmlite|optuna)[\w.]+', name)]


@pytest.mark.parametrize('name', sorted({*DOTTED} - {'pytensor.tensor.subtensor.AdvancedIncSubtensor1'}))
def test_a_private_name_is_there(name):
    found(name)


def test_the_compiled_step_is_found_with_its_storage_its_updates_and_the_function_within():
    y = pytensor.shared(np.zeros(2), name='y')
    function = pytensor.function([], y.sum(), updates={y: y + 1}, mode='NUMBA')  # its machine code is not made
    fgraph = function.maker.fgraph
    assert callable(function.vm.jit_fn), 'Function.vm.jit_fn'
    assert function.vm.storage_map[fgraph.inputs[0]] == [y.get_value(borrow=True)], 'Function.vm.storage_map'
    assert fgraph.update_mapping == {1: 0}, 'FunctionGraph.update_mapping'
    assert 'jitable_func' in function.vm.jit_fn.py_func.__globals__, 'jitable_func'
    y.container.storage[0] = None
    assert y.get_value(borrow=True) is None, 'SharedVariable.container.storage'


def test_code_is_loaded_and_added_by_the_names_of_a_dispatcher(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, 'CACHE_DIR', str(tmp_path))
    path = tmp_path / 'twice.py'
    path.write_text('def twice(x):\n    return 2 * x\n')
    names = {}
    exec(compile(path.read_text(), path, 'exec'), names)
    first, second = numba.njit(cache=True)(names['twice']), numba.njit(cache=True)(names['twice'])
    signature = (numba.types.float32,)
    first.compile(signature)
    target = found('numba.core.registry.cpu_target')
    code = second._cache.load_overload(signature, type(target.target_context)(target.typing_context))
    assert code is not None, 'Dispatcher._cache.load_overload'
    second.add_overload(code)
    assert second.nopython_signatures == [numba.float64(numba.float32)], 'Dispatcher.add_overload'
    assert second(np.float32(3)) == 6


def test_the_lock_of_the_compiler_is_one_that_can_be_tried():
    lock = found('numba.core.compiler_lock.global_compiler_lock')._lock
    assert lock.acquire(blocking=False), 'global_compiler_lock._lock'
    lock.release()


def test_the_keywords_of_private_functions_are_known():
    for function, keywords in (('pytensor.link.numba.cache.compile_numba_function_src', {'cache_key'}),
                               ('pytensor.link.numba.dispatch.basic.numba_njit', {'final_function'})):
        assert keywords <= inspect.signature(found(function)).parameters.keys(), function


def test_an_element_wise_operation_knows_its_function_of_numpy():
    from pytensor.tensor.utils import import_func_from_string
    x = pt.fvector('x')
    name, n_inputs, n_outputs = pt.exp(x).owner.op.nfunc_spec
    assert (import_func_from_string(name), n_inputs, n_outputs) == (np.exp, 1, 1), 'Elemwise.nfunc_spec'


def test_loops_in_inner_graphs_can_be_exchanged_where_there_are_some():
    from pytensor.compile.builders import OpFromGraph
    is_old = Version(pytensor.__version__) < Version('3.1')
    assert is_old or hasattr(OpFromGraph, 'clone_with_inner_graph'), 'OpFromGraph.clone_with_inner_graph'
    x = pt.fvector('x')
    assert is_old or hasattr(OpFromGraph([x], [x + 1]).fgraph, 'unfreeze'), 'FrozenFunctionGraph.unfreeze'
    old_update = hasattr(pt.subtensor, 'AdvancedIncSubtensor1')
    assert old_update == (Version(pytensor.__version__) < Version('3.2')), 'AdvancedIncSubtensor1'


@needs_jax
def test_the_linker_for_jax_hands_over_the_function_and_takes_a_mode():
    from gru4rec_pytensor.backends.jax_loops import PureLinker, jax_mode
    found('pytensor.link.jax.linker.JAXLinker.jit_compile')
    found('pytensor.link.jax.dispatch.jax_funcify')
    x = pt.fvector('x')
    function = pytensor.function([x], x + 1, mode=jax_mode(PureLinker))
    assert inspect.isfunction(function.vm.jit_fn), 'JAXLinker.jit_compile is not used'
    assert hasattr(Mode, 'provided_optimizer') or hasattr(jax_mode(), 'provided_optimizer')


@needs_jax
def test_jax_overwrites_what_is_donated_to_it():
    import jax
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(np.zeros(3, 'f4')).compile().as_text()
    assert re.search('may-alias|must-alias', program.splitlines()[0]), 'jax.jit(donate_argnums=...)'


def test_what_a_worker_of_dask_knows_of_its_tasks_is_there():
    pytest.importorskip('distributed', reason='Dask, an extra, is not installed')
    import distributed

    def seen():
        from distributed.worker import thread_state
        return thread_state.key, [*distributed.get_worker().state.tasks]

    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None,
                            set_as_default=False) as client:
        key, tasks = client.submit(seen, key='a-task').result()
    assert key == 'a-task', 'thread_state.key'
    assert tasks == ['a-task'], 'Worker.state.tasks'


@pytest.mark.filterwarnings('ignore:.*xperimental', 'ignore:Heartbeat of storage')
def test_optuna_keeps_heartbeats_and_says_which_trial_cannot_be_told(tmp_path):
    optuna = pytest.importorskip('optuna', reason='Optuna, an extra, is not installed')
    storage = optuna.storages.RDBStorage(f'sqlite:///{tmp_path}/search.db', heartbeat_interval=60, grace_period=120)
    study = optuna.create_study(storage=storage)
    optuna.storages.fail_stale_trials(study)
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(ValueError, match='Cannot tell'):
        study.tell(trial, 1.0)
    storage.engine.dispose()


# --- Names of rewrites ----------------------------------------------------------------------------------------------


def rewrite_names(database, seen):
    """Names and tags in a database of rewrites and in those within it."""
    if database in seen:
        return set()
    seen.append(database)
    names = set(database.__db__)
    for rewrites in [*database.__db__.values()]:
        for rewrite in rewrites:
            if isinstance(rewrite, RewriteDatabase):
                names |= rewrite_names(rewrite, seen)
    return names


def test_each_rewrite_that_is_left_out_is_one_that_pytensor_has(monkeypatch):
    asked, excluding = [], Mode.excluding
    monkeypatch.setattr(Mode, 'excluding', lambda mode, *tags: [asked.extend(tags), excluding(mode, *tags)][1])
    numba_tricks.numba_mode()
    assert 'local_log_sum_exp' in asked
    python_ops.python_mode()
    unknown = set(asked) - rewrite_names(optdb, [])
    assert not unknown, f'PyTensor {pytensor.__version__} has no rewrite {sorted(unknown)}: it was renamed or removed'


def test_rewrites_are_chosen_by_name_in_these_two_modes_only():
    calls = [(module, node.attr) for module, tree in TREES.items() for node in ast.walk(tree)
             if isinstance(node, ast.Attribute) and node.attr in ('excluding', 'including', 'requiring')]
    assert sorted(calls) == [(f'gru4rec_pytensor.backends.{room}', 'excluding')
                             for room in ('numba_tricks', 'python_ops')]


# --- The table and the bounds ---------------------------------------------------------------------------------------


def test_the_table_has_every_name_that_is_imported_from_a_private_module():
    imported = {f'{node.module}.{alias.name}' for tree in TREES.values() for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and (node.module or '').startswith(MODULES) for alias in node.names}
    assert len(imported) > 10
    missing = [name for name in imported if not any(known.startswith(name) for known in NAMES)]
    assert not missing, f'write into docs/private_names.md what breaks without {sorted(missing)}'


def test_packages_with_private_names_have_an_upper_bound_just_above_the_tested_versions():
    from packaging.requirements import Requirement
    requirements = [*SETUP['install_requires'], *(name for extra in SETUP['extras_require'].values() for name in extra)]
    bounded = {}
    for requirement in map(Requirement, requirements):
        if requirement.name in ('pytensor', 'numba', 'llvmlite', 'jax', 'distributed', 'optuna'):
            bounded.setdefault(requirement.name, set()).add(requirement.specifier)
    assert len(bounded) == 6 and all(len(specifiers) == 1 for specifiers in bounded.values())
    for name, (specifier,) in bounded.items():
        for python in CONSTRAINTS:
            version = Version(pinned(python)[name])
            assert version in specifier
            assert Version(f'{version.major}.{version.minor}.999') in specifier  # a patch release
        newest = max(Version(pinned(python)[name]) for python in CONSTRAINTS)
        assert Version(f'{newest.major}.{newest.minor + 1}') not in specifier
