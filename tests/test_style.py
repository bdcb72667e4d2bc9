"""The rules of CONTRIBUTING.md that a program can check: ruff, mypy, the limits on a function."""
import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(ROOT.glob('*.py'))

# Longer than 40 lines of code, each for a reason.
LONG = {
    'cli.parse': 'the options of five commands, one after another',
    'run_experiments.parse': 'the options of one command, one after another',
}


@pytest.mark.parametrize('tool, arguments', [('ruff', ['check', '.']), ('mypy', [])])
def test_the_code_passes(tool, arguments):
    """With the rules of pyproject.toml."""
    if not importlib.util.find_spec(tool):
        pytest.skip(f'{tool} is not installed')
    done = subprocess.run([sys.executable, '-m', tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def lines_of_code(function):
    """Number of lines from `def` to the end, docstring apart."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    return function.end_lineno - function.lineno + 1 - (
        docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.name)
def test_no_function_has_more_than_40_lines_without_a_reason(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    long = {f'{path.stem}.{function.name}' for function in functions if lines_of_code(function) > 40}
    assert long == {name for name in LONG if name.startswith(f'{path.stem}.')}


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.name)
def test_public_functions_and_classes_say_what_they_are(path):
    public = [node for node in ast.parse(path.read_text()).body
              if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_')]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_modules_import_one_another_without_a_circle():
    names = {path.stem for path in MODULES}
    imports = {}
    for path in MODULES:
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        imports[path.stem] = names.intersection(modules)
    while imports:
        free = [name for name, used in imports.items() if not used & imports.keys()]
        assert free, f'a circle among {sorted(imports)}'
        for name in free:
            del imports[name]
