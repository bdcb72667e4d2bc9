"""What stands in more than one place because tools want it there: the version, and the versions of what is used."""
import re
from pathlib import Path

import pytest
from test_style import SETUP, distributions

import preprocess_rsc15
import run_experiments
from gru4rec_pytensor import __version__, cli

ROOT = Path(__file__).parents[1]
CONSTRAINTS = {path.stem.removeprefix('python'): path for path in ROOT.glob('constraints/*.txt')}
DOCUMENTS = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('benchmarks/*.md')])
# Where a document says what it was measured with, 'Python 3.12.1, PyTensor 3.3.8, Numba 0.68.0' for example.
MEASURED = re.compile(r'Python (3\.\d+)[\d.]*((?:, (?:PyTensor|Numba|NumPy) \d[\d.]*\d)+)')


def pinned(python):
    """{distribution: version}, names as Python's index compares them."""
    lines = [line for line in CONSTRAINTS[python].read_text().splitlines() if not line.startswith('#')]
    assert all(re.fullmatch(r'[\w.-]+==[\w.!+]+', line) for line in lines)  # no address, no folder of a machine
    return {name.lower().replace('_', '-'): version for name, version in (line.split('==') for line in lines)}


def test_the_version_to_cite_is_that_of_the_package():
    assert f'\nversion: {__version__}\n' in (ROOT / 'CITATION.cff').read_text(encoding='utf-8')


@pytest.mark.parametrize('main', [cli.main, preprocess_rsc15.main, run_experiments.main],
                         ids=lambda main: main.__module__)
def test_a_command_prints_the_version_of_the_package(main, capsys):
    with pytest.raises(SystemExit, match='^0$'):
        main(['--version'])
    assert capsys.readouterr().out.split()[-1] == __version__


@pytest.mark.parametrize('python', CONSTRAINTS)
def test_the_constraints_hold_all_that_the_tests_need(python):
    needed = distributions([*SETUP['install_requires'], *SETUP['extras_require']['test']])
    assert needed <= pinned(python).keys()


def test_the_check_before_a_commit_is_that_of_the_tests():
    ruff = re.search(r'ruff==([\d.]+)', (ROOT / '.pre-commit-config.yaml').read_text(encoding='utf-8'))[1]
    assert {pinned(python)['ruff'] for python in CONSTRAINTS} == {ruff}


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_the_constraints_of_the_versions_that_it_was_measured_with(path):
    text = path.read_text(encoding='utf-8')
    for python, versions in MEASURED.findall(text):
        assert f'constraints/python{python}.txt' in text
        for name, version in re.findall(r'(\w+) ([\d.]+)', versions):
            assert pinned(python)[name.lower()] == version, f'{name} on Python {python}'
