"""The rules that a program can check: ruff, mypy, the limits on a function, who imports whom, what is declared."""
import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from common import PROMISE

ROOT = Path(__file__).parents[1]
PACKAGE = 'gru4rec_pytensor'
# {'gru4rec_pytensor.experiments.report': its file}: the scripts at the top and the files of the package.
MODULES = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
           for path in sorted([*ROOT.glob('*.py'), *(ROOT / PACKAGE).rglob('*.py')]) if path.name != 'setup.py'}
TREES = {name: ast.parse(path.read_text(encoding='utf-8')) for name, path in MODULES.items()}

# Which room may import which: a script at the top, or a file or folder of the package.
TOP = 'gru4rec evaluation baselines preprocess_rsc15'
ROOMS = 'backends events checks files lists terminal model_file recommend text_table click_log synthetic'
ARROWS = {room: set(allowed.split()) for room, allowed in {
    **dict.fromkeys(['activations', 'checks', 'events', 'files', 'floats', 'mrg', 'terminal', 'turns'], ''),
    'gru4rec': 'activations arguments backends events checks model_file recommend draws parameters port turns',
    'evaluation': 'gru4rec backends events checks floats intervals lists prefix_scores',
    'intervals': 'checks',
    'lists': 'checks events files',
    'baselines': 'events checks prefix_scores session_knn',
    'preprocess_rsc15': 'events synthetic files raw_log terminal checks',
    'raw_log': 'events files',
    'run_experiments': 'experiments evaluation preprocess_rsc15 backends events files terminal',
    'backends': 'checks floats turns',
    'arguments': 'activations checks',
    'draws': 'mrg',
    'model_file': 'checks files',
    'port': 'checks events model_file',
    'prefix_scores': 'events checks',
    'session_knn': 'events checks prefix_scores',
    'recommend': 'events checks turns',
    'text_table': 'files',
    'click_log': 'events checks files raw_log text_table',
    'synthetic': 'events checks',
    'parameters': 'arguments checks',
    'later': 'gru4rec evaluation events checks parameters',
    'experiments': f'{TOP} {ROOMS} arguments parameters',
    'cli': f'{TOP} {ROOMS}',
}.items()}


@pytest.mark.parametrize('tool, arguments', [('ruff', ['check', '.']), pytest.param('mypy', [], marks=PROMISE)])
def test_the_code_passes(tool, arguments):
    """The rules are those of pyproject.toml."""
    if not importlib.util.find_spec(tool):
        pytest.skip(f'{tool} is not installed')
    done = subprocess.run([sys.executable, '-m', tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --- Functions ------------------------------------------------------------------------------------------------------


def lines_of_code(function):
    """Number of lines from `def` to the end, docstring apart."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    return function.end_lineno - function.lineno + 1 - (
        docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


def test_no_function_has_more_than_60_lines():
    functions = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions if lines_of_code(function) > 60] == []


def test_public_functions_and_classes_say_what_they_are():
    definitions = [node for tree in TREES.values() for node in tree.body
                   if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    public = [node for node in definitions if not node.name.startswith('_')]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


# --- Imports --------------------------------------------------------------------------------------------------------


def imports(nodes, module):
    """Full names of what the import statements among `nodes` of a module import: of `from a import b`, 'a.b'."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split('.') + ['__init__'] * (MODULES[module].name == '__init__.py')
            start = '.'.join([*parts[:-node.level], node.module or ''] if node.level else [node.module]).rstrip('.')
            names.update(f'{start}.{alias.name}' for alias in node.names)
    return names


def own(names):
    """The modules of ours that hold these names; the package itself, which says its version only, is no room."""
    found = {name if name in MODULES else name.rpartition('.')[0] for name in names}
    return found & MODULES.keys() - {PACKAGE}


def room_of(module):
    """'gru4rec_pytensor.experiments.report' lies in the room 'experiments'."""
    return module.removeprefix(f'{PACKAGE}.').split('.')[0]


# In functions and under `if TYPE_CHECKING:`, too: who reads a file has to know the file that it names.
IMPORTS = {module: own(imports(ast.walk(tree), module)) for module, tree in TREES.items()}


@pytest.mark.parametrize('room', sorted({room_of(module) for module in MODULES} - {PACKAGE}))
def test_a_room_imports_only_what_stands_below_it(room):
    assert room in ARROWS, f'{room} is new: write into ARROWS, and into the table of rooms, what it may import'
    wrong = [f'{module} imports {used}' for module in MODULES if room_of(module) == room
             for used in sorted(IMPORTS[module]) if room_of(used) not in ARROWS[room] | {room}]
    assert not wrong, (f"{'; '.join(wrong)}: {room} may import {', '.join(sorted(ARROWS[room])) or 'nothing of ours'}. "
                       'Move what both need to a room that both may import, or change ARROWS and the table of rooms')


def test_modules_import_one_another_without_a_circle():
    left = {module: set(used) for module, used in IMPORTS.items()}
    while left:
        free = [module for module, used in left.items() if not used & left.keys()]
        assert free, f'a circle among {sorted(left)}'
        for module in free:
            del left[module]


# --- Requirements ---------------------------------------------------------------------------------------------------


SETUP = {keyword.arg: ast.literal_eval(keyword.value) for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text()))
         if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'setup'
         for keyword in node.keywords if keyword.arg in ('install_requires', 'extras_require')}


def distributions(requirements):
    """{'jax'} of ['jax[cuda12]>=1'].  All are imported under the name of the distribution."""
    return {re.match(r'[\w.-]+', requirement)[0].lower() for requirement in requirements}


def third_party(names):
    found = {name.split('.')[0] for name in names}
    return found - sys.stdlib_module_names - {module.split('.')[0] for module in MODULES}


def loaded_with(modules):
    """`modules`, and all modules of ours that importing them imports."""
    while more := {used for module in modules for used in own(imports(TREES[module].body, module))} - modules:
        modules = modules | more
    return modules


def test_what_a_module_imports_is_declared():
    """Imports of a script or command are requirements; the others are extras at least."""
    required = distributions(SETUP['install_requires'])
    extras = distributions(name for extra in SETUP['extras_require'].values() for name in extra)
    for module in loaded_with({name for name in MODULES if '.' not in name} | {f'{PACKAGE}.cli'}):
        assert third_party(imports(TREES[module].body, module)) <= required, module
    for module, tree in TREES.items():
        assert third_party(imports(ast.walk(tree), module)) <= required | extras, module


def test_what_the_extras_hold_is_in_the_extra_for_tests():
    """Since `pip install '.[test]'` is to run all of them."""
    extras = {name: distributions(requirements) for name, requirements in SETUP['extras_require'].items()}
    assert set().union(*extras.values()) == extras['test']


def test_every_requirement_is_imported():
    names = [name for module, tree in TREES.items() for name in imports(ast.walk(tree), module)]
    assert distributions(SETUP['install_requires']) <= third_party(names)
