"""Metadata that tools want in more than one place: the version, the versions of requirements, keywords, checks."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_style import SETUP, distributions

import preprocess_rsc15
import run_experiments
from gru4rec_pytensor import __version__, cli

ROOT = Path(__file__).parents[1]
CONSTRAINTS = {path.stem.removeprefix('python'): path for path in ROOT.glob('constraints/*.txt')}
DOCUMENTS = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('benchmarks/*.md')])
# The versions that a document was measured with, 'Python 3.12.1, PyTensor 3.3.8, Numba 0.68.0' for example.
MEASURED = re.compile(r'Python (3\.\d+)[\d.]*((?:, (?:PyTensor|Numba|NumPy) \d[\d.]*\d)+)')


def pinned(python):
    """{distribution: version}, names as Python's index compares them."""
    lines = [line for line in CONSTRAINTS[python].read_text().splitlines() if not line.startswith('#')]
    assert all(re.fullmatch(r'[\w.-]+==[\w.!+]+', line) for line in lines)  # no address, no folder of a machine
    return {name.lower().replace('_', '-'): version for name, version in (line.split('==') for line in lines)}


def test_the_version_to_cite_is_that_of_the_package():
    assert f'\nversion: {__version__}\n' in (ROOT / 'CITATION.cff').read_text(encoding='utf-8')


def setup_says(*options):
    done = subprocess.run([sys.executable, 'setup.py', '--quiet', *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_type_checkers_of_others_find_the_types_of_the_installed_package(tmp_path):
    setup_says('build', '--build-base', str(tmp_path), '--build-lib', str(tmp_path / 'lib'))
    assert (tmp_path / 'lib' / 'gru4rec_pytensor' / 'py.typed').exists()
    for name in ('tables.py', 'published_2023.csv'):
        assert (tmp_path / 'lib' / 'gru4rec_pytensor' / 'experiments' / name).exists()


def test_the_source_archive_holds_the_folders_that_commands_and_tests_read():
    grafted = re.findall(r'^graft (\w+)$', (ROOT / 'MANIFEST.in').read_text(), re.MULTILINE)
    folders = {path.parent.name for path in [*ROOT.glob('*/*.toml'), *ROOT.glob('*/*.txt'), *ROOT.glob('*/*.md')]}
    assert {'benchmarks', 'constraints', 'docs', 'parameters', 'spaces'} <= folders & {*grafted}


def test_the_metadata_agree_with_the_citation_and_the_constraints():
    citation = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    keywords, *classifiers = setup_says('--keywords', '--classifiers')
    assert keywords.split(',') == re.findall(r'^  - ([^:\n]*)$', citation[:citation.index('references:')], re.MULTILINE)
    pythons = {name.rpartition(' ')[2] for name in classifiers if re.search(r':: 3\.\d+$', name)}
    assert pythons == CONSTRAINTS.keys() and 'Typing :: Typed' in classifiers


def test_the_workflow_runs_the_checks_on_each_python():
    yaml = pytest.importorskip('yaml', reason='comes with distributed, an extra')
    workflow, *forms = [yaml.safe_load(path.read_text(encoding='utf-8')) for path in (
        ROOT / '.github' / 'workflows' / 'ci.yml', *ROOT.glob('.github/ISSUE_TEMPLATE/*.yml'))]
    steps = workflow['jobs']['run']['steps']
    versions, = [step['with']['python-version'].split() for step in steps if 'with' in step]
    assert sorted(versions) == sorted(CONSTRAINTS) and versions[-1] == min(CONSTRAINTS)  # the last is python3
    assert steps[-1]['run'] == '.ci/run' and (ROOT / '.ci' / 'run').exists()
    assert forms and all(forms)


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
