"""The documents: code that they show runs and prints what they say, what they name is there, links lead somewhere."""
import base64
import builtins
import doctest
import functools
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from common import PROMISE, few_items_log
from test_style import MODULES as FILES

import evaluation
import gru4rec
import preprocess_rsc15
import run_experiments
from gru4rec import GRU4Rec
from gru4rec_pytensor import cli
from gru4rec_pytensor.events import session_order
from gru4rec_pytensor.experiments import protocols

for needed in ('matplotlib', 'nbformat'):
    pytest.importorskip(needed, reason='an extra is not installed')

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('build', ROOT / 'docs' / 'build.py')
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

WALKS = {path.name: path.read_text(encoding='utf-8') for path in build.NOTEBOOKS}
WALK = WALKS['walkthrough.md']
BLOCKS = [(name, number, block) for name, text in WALKS.items()
          for number, block in enumerate(build.BLOCK.finditer(text))]
DOCUMENTS = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), *ROOT.glob('benchmarks/*.md')])
NUMBER = re.compile(r'-?\d+\.\d*(?:e[-+]?\d+)?')


def differences(found, expected):
    """Return the lines in which two texts differ.

    Words and whole numbers must be the same.  Fractions may differ by one in the last digit, since processors round
    differently.  Runs of spaces count as one.
    """
    apart = []
    found_lines, expected_lines = found.strip().splitlines(), expected.strip().splitlines()
    if len(found_lines) != len(expected_lines):
        return [f'{len(found_lines)} lines instead of {len(expected_lines)}: {found}']
    for line, wanted in zip(found_lines, expected_lines):
        words = [' '.join(NUMBER.sub('#', text).split()) for text in (line, wanted)]
        numbers = [NUMBER.findall(text) for text in (line, wanted)]
        if words[0] != words[1] or any(abs(float(a) - float(b)) > 1.01 * 10.0 ** -len(b.partition('.')[2])
                                       for a, b in zip(*numbers)):
            apart.append(f'{line!r} instead of {wanted!r}')
    return apart


@pytest.fixture(scope='module')
def walk():
    """Runs the blocks of a walk one after another, once: their results, and the names that they leave."""
    @functools.cache
    def run(name):
        names = {'__name__': '__main__'}
        with pytensor.config.change_flags(floatX=pytensor.config.floatX), np.printoptions():
            return SimpleNamespace(results=build.run(WALKS[name], name, names), names=names)
    return run


@pytest.mark.promise
@pytest.mark.parametrize('name, number, block', BLOCKS,
                         ids=[f"{name}-{block['code'][:40]}".split('\n')[0] for name, _number, block in BLOCKS])
def test_a_block_of_a_walk_prints_what_is_written_under_it(walk, name, number, block):
    result = walk(name).results[number]
    if not build.is_comparable(block):
        pytest.skip('what is written is the output of another version or machine')
    assert differences(result.text, block['text'] or '') == []
    assert (result.svg is not None) == (block['path'] is not None)
    if block['path']:
        stored = (build.DOCS / block['path']).read_text(encoding='utf-8')
        words = ['\n'.join(re.findall(r'<text[^>]*>(.*?)</text>', svg)) for svg in (result.svg, stored)]
        assert differences(*words) == []


PROPOSALS = [(name, proposal) for name, text in WALKS.items()
             for proposal in re.finditer(r'^\*Change:\*.*?\n\n', text, re.MULTILINE | re.DOTALL)]
CHANGES = [(name, proposal, old, new) for name, proposal in PROPOSALS
           for old, new in re.findall(r'`([^`]+)`\s+→\s+`([^`]+)`', proposal[0])]
LARGER_LOG = '## Section 4: from ten sessions to four thousand'  # it uses nothing of the sections before


@pytest.mark.parametrize('name, proposal, old, new', [  # those of the number of lanes reach furthest
    pytest.param(*change, marks=PROMISE if 'batch_size' in change[2] else pytest.mark.slow, id=' to '.join(change[2:]))
    for change in CHANGES])
def test_a_change_that_a_walk_proposes_runs_to_the_end(name, proposal, old, new):
    text = WALKS[name]
    block = [block for walk, _number, block in BLOCKS
             if walk == name and block.end() <= proposal.start() and old in block['code']][-1]
    changed = text[:block.start()] + block[0].replace(old, new) + text[block.end():]
    assert proposal.start() < changed.find(LARGER_LOG) or LARGER_LOG not in changed
    changed = changed.partition(LARGER_LOG)[0].replace("backend='numba'", "backend='python'")  # compiled at once
    with (pytensor.config.change_flags(floatX=pytensor.config.floatX), np.printoptions(), np.errstate(all='ignore'),
          warnings.catch_warnings()):
        warnings.simplefilter('ignore')  # a single lane has nothing to compare
        build.run(changed, name)


@pytest.mark.slow
def test_the_section_on_the_larger_log_uses_nothing_of_the_sections_before():
    first = next(build.BLOCK.finditer(WALK[WALK.index('```python\n'):]))
    text = first[0] + WALK[WALK.index(LARGER_LOG):WALK.index('## Exercises')]
    with pytensor.config.change_flags(floatX=pytensor.config.floatX), np.printoptions():
        assert len(build.run(text, 'walkthrough.md')) > 5


def test_every_proposal_of_a_walk_says_what_to_change():
    assert list(dict.fromkeys((name, proposal) for name, proposal, *_ in CHANGES)) == PROPOSALS


LESSONS = (ROOT / 'docs' / 'lesson-plan.md').read_text(encoding='utf-8')
MISTAKES = re.findall(r'\| `([^|]*)` \| (\w+(?:Error|Warning)): (.*) \|\n', LESSONS)


@pytest.mark.promise
@pytest.mark.parametrize('code, kind, message', MISTAKES, ids=[code for code, *_ in MISTAKES])
def test_a_mistake_of_the_lesson_plan_has_the_message_that_it_names(walk, code, kind, message):
    kind = getattr(builtins, kind)
    expected = pytest.warns if issubclass(kind, Warning) else pytest.raises
    with expected(kind, match=re.escape(message)):
        exec(code, dict(walk('walkthrough.md').names))


def test_what_is_compared_differs_when_a_digit_a_word_or_a_line_does():
    text = 'recall 0.1234 of 10\nmrr   0.5'
    assert differences(text, 'recall 0.1235 of 10\nmrr 0.5') == []
    for other in ('recall 0.1236 of 10\nmrr 0.5', 'recall 0.1234 of 11\nmrr 0.5', 'Recall 0.1234 of 10\nmrr 0.5',
                  'recall 0.1234 of 10', 'recall 0.1234 of 10\nmrr 0.7', 'recall -0.1234 of 10\nmrr 0.5'):
        assert differences(text, other) != []


@pytest.mark.promise
@pytest.mark.parametrize('name', WALKS)
def test_the_outputs_are_written_where_build_would_write_them(walk, name):
    results = [result._replace(text=result.block['text'] or '') for result in walk(name).results]
    assert build.written(WALKS[name], results) == WALKS[name]


@pytest.mark.parametrize('name', WALKS)
def test_the_code_that_a_walk_shows_is_that_of_the_project(name):
    assert len(build.SOURCE.findall(WALKS[name])) > 3
    assert build.with_sources(WALKS[name]) == WALKS[name]


@pytest.mark.parametrize('name', WALKS)
def test_a_notebook_has_the_text_the_code_the_outputs_and_the_pictures_of_its_walk_wherever_it_lies(name):
    """So that what is true of the blocks is true of the notebook, and they need not run twice."""
    stored = [build.Result(block, block['text'] or '', block['path'] and
                           (build.DOCS / block['path']).read_text(encoding='utf-8'))
              for walk, _number, block in BLOCKS if walk == name]
    found = json.loads((build.DOCS / name).with_suffix('.ipynb').read_text(encoding='utf-8'))['cells']
    expected = json.loads(build.notebook(WALKS[name], stored))['cells']
    assert [cell for cell in found if cell['cell_type'] == 'code'][0]['source'][0].startswith('%pip install')
    texts = [(''.join(cell['source']), cell.get('attachments')) for cell in found if cell['cell_type'] == 'markdown']
    for text, attachments in texts:
        for picture in re.findall(r'!\[[^]]*\]\(([^)]*)\)', text):
            attached = attachments[picture.removeprefix('attachment:')]
            assert base64.b64decode(attached['image/png'])[1:4] == b'PNG'
    n_listings = sum(text.count('```python\n') for text, _attachments in texts)
    assert n_listings == len(build.SOURCE.findall(WALKS[name]))
    for cell in found + expected:  # a picture has the same bytes only with the same version of Matplotlib
        cell['attachments'] = {name: [*kinds] for name, kinds in cell.get('attachments', {}).items()}
    assert found == expected


@pytest.mark.parametrize('name', WALKS)
def test_each_section_of_a_walk_ends_with_a_summary_and_questions(name):
    sections = re.split(r'^## ', WALKS[name], flags=re.MULTILINE)[1:]
    for section in sections:
        title = section.split('\n')[0]
        if title not in ('Exercises', 'Versions', 'Ten sessions again'):
            assert re.search(r'\*In short:\* .*?\n\n\*Discuss:\*\n\n(\d\. .*?\n)+', section, re.DOTALL), title


def anchors_of(path):
    """The anchors that GitHub gives to the headings of a document."""
    text = re.sub(r'```.*?```', '', path.read_text(encoding='utf-8'), flags=re.DOTALL)
    return {re.sub(r'[^\w\- ]', '', heading).lower().replace(' ', '-')
            for heading in re.findall(r'^#+ (.*)$', text, re.MULTILINE)}


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_links_anchors_and_pictures_of_a_document_are_there(path):
    text = re.sub(r'```.*?```|(?<!\[)`[^`]*`', '', path.read_text(encoding='utf-8'), flags=re.DOTALL)
    for target, anchor in re.findall(r'\]\(([^)#\s]*)#?([^)\s]*)\)', text):
        if not target.startswith('http'):
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), target
            assert not anchor or anchor in anchors_of(file), f'{target}#{anchor}'


# What documents call a module -> its full name: those of the package also without the package's name.
MODULES = {name: name for name in FILES} | {name.removeprefix('gru4rec_pytensor.'): name for name in FILES}
NAMED_MODULES = re.compile(  # the longest first, and no names of files
    rf"`({'|'.join(map(re.escape, sorted(MODULES, key=len, reverse=True)))})\.(?!py\b|md\b)([A-Za-z_][\w.]*)")


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_of_the_code_is_there(path):
    """`gru4rec.top1` must be in gru4rec.py, `backends.resolve` in the package's backends."""
    for module, name in NAMED_MODULES.findall(path.read_text(encoding='utf-8')):
        value = importlib.import_module(MODULES[module])
        for part in name.split('.'):
            assert hasattr(value, part), f'{module}.{name} in {path.name}'
            value = getattr(value, part)


@pytest.mark.parametrize('name', [name for name, path in FILES.items() if '>>> ' in path.read_text(encoding='utf-8')])
def test_the_examples_in_the_docstrings_of_a_module_run(name):
    """All of them: a decorator can hide a function's from doctest."""
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0
    assert outcome.attempted == len(re.findall(r'^ *>>> ', FILES[name].read_text(encoding='utf-8'), re.MULTILINE))


# --- CONTRIBUTING.md ------------------------------------------------------------------------------------------------


REGISTRIES = [gru4rec.LOSSES, gru4rec.UNITS, protocols.BASELINES]


@pytest.fixture(scope='module')
def run_recipes():
    """The namespace after the recipes have run, their results, and what they added to the registries."""
    before, namespace = [dict(registry) for registry in REGISTRIES], {'__name__': '__main__'}
    results = build.run((ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8'), 'CONTRIBUTING.md', namespace)
    added = [{name: registry.pop(name) for name in registry.keys() - entries.keys()}
             for registry, entries in zip(REGISTRIES, before)]
    return namespace, results, added


@pytest.fixture
def recipes(run_recipes, monkeypatch):
    """The same, with the additions in the registries."""
    for registry, entries in zip(REGISTRIES, run_recipes[2]):
        for name, value in entries.items():
            monkeypatch.setitem(registry, name, value)
    return run_recipes[:2]


def test_the_recipes_print_what_is_written_under_them(recipes):
    _namespace, results = recipes
    assert len(results) == 3
    for result in results:
        assert differences(result.text, result.block['text']) == []


def test_the_loss_of_the_recipe_is_that_of_a_loop(recipes):
    scores = np.random.RandomState(0).randn(4, 4)
    S = pt.dmatrix('S')
    value = pytensor.function([S], recipes[0]['bpr_softmax'](S), mode=pytensor.compile.mode.Mode('py', None))(scores)
    lanes = []
    for i, row in enumerate(scores):
        others = np.exp(np.delete(row, i))
        chances = 1 / (1 + np.exp(np.delete(row, i) - row[i]))
        lanes.append(-np.log((others / others.sum() * chances).sum() + 1e-6))
    assert value == pytest.approx(np.mean(lanes), rel=1e-5)


def test_the_unit_of_the_recipe_is_saved_loaded_and_evaluated(recipes, tmp_path):
    model = recipes[0]['mgu']
    model.save(tmp_path / 'model')
    ranks = [evaluation.next_item_ranks(m, recipes[0]['log']) for m in (model, GRU4Rec.load(tmp_path / 'model'))]
    np.testing.assert_array_equal(*ranks)


def test_the_baseline_of_the_recipe_is_a_row_of_table_1_with_the_ranks_of_a_loop(recipes, tmp_path, capsys):
    log, beside = few_items_log(60, 8), recipes[0]['Beside']
    log.to_csv(tmp_path / 'log.tsv', sep='\t', index=False)
    rows, offsets = session_order(log)
    items = log.ItemId.to_numpy()[rows]
    pairs = [(items[k], items[k + 1]) for k in range(len(items) - 1) if k + 1 not in offsets]
    counts = {(a, b): pairs.count((a, b)) + pairs.count((b, a)) for a, b in pairs}
    counts |= {(b, a): n for (a, b), n in counts.items()}
    expected = [1 + sum(counts.get((a, c), 0) > counts[a, b] for c in set(items)) for a, b in pairs]
    np.testing.assert_array_equal(evaluation.next_item_ranks(beside().fit(log), log), expected)

    path = str(tmp_path / 'log.tsv')
    assert run_experiments.main(['--train', path, '--test', path, '--out', str(tmp_path), '--table', '1',
                                 '--models', 'Beside']) == 0
    assert '| Beside   | 1.0000 ' in capsys.readouterr().out


# --- README.md and the pages that it links ------------------------------------------------------------------------


README = ROOT / 'README.md'
PAGES = [README, *sorted(ROOT.glob('docs/*.md')), ROOT / 'RESULTS.md']
COMMANDS = {line.strip(): None for page in PAGES for block in re.findall(
    r'```sh\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL) for line in block.splitlines()}
SOLUTIONS = ROOT / 'docs' / 'solutions.md'  # tests/test_exercises.py runs it
WITH_CODE = [page for page in PAGES if page not in (*build.NOTEBOOKS, SOLUTIONS)
             and build.BLOCK.search(page.read_text(encoding='utf-8'))]


@pytest.mark.parametrize('command', [line for line in COMMANDS if line.startswith(('python ', 'gru4rec '))])
def test_a_command_of_a_page_is_understood(command, monkeypatch):
    monkeypatch.setattr(run_experiments, 'own_row', lambda *row: row)  # the files that it names are not there
    monkeypatch.setattr(run_experiments.spaces, 'read', lambda *space: space)
    for part in command.split(' && '):
        words = shlex.split(part, comments=True)
        if words[:4] == ['python', '-m', 'pip', 'install']:
            extra = re.fullmatch(r'\.\[(\w+)\]', words[4])[1]
            assert f"'{extra}': [" in (ROOT / 'setup.py').read_text()
        elif words[:3] == ['python', '-m', 'jupyter']:
            assert (ROOT / words[-1]).exists()
        elif words[0] == 'gru4rec':
            assert cli.parse(words[1:]).command == words[1]
        elif words[1] == 'run_experiments.py':
            run_experiments.parse(words[2:])
        elif words[1] == 'preprocess_rsc15.py':
            preprocess_rsc15._parse_arguments(words[2:])
        elif words[1].startswith('benchmarks/'):
            assert (ROOT / words[1]).exists()
        else:
            assert words == ['python', '-m', 'pytest']


@pytest.fixture
def run_page(tmp_path, monkeypatch):
    """Runs the code of a page in a folder with data and parameters, after the README's where the page continues it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gru4rec.backends, 'resolve', lambda backend: 'python')  # which compiles in a second
    Path('DATA').mkdir()
    for name in ('train_full', 'test'):
        few_items_log(80, 20).to_csv(f'DATA/rsc15_{name}.txt', sep='\t', index=False)
    Path('parameters').symlink_to(ROOT / 'parameters')

    def run(page):
        names, text = {'__name__': '__main__'}, page.read_text(encoding='utf-8')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # items that are unknown: the pages' ids are those of RSC15
            if 'The blocks on this page continue those of [the README]' in text:
                build.run(README.read_text(encoding='utf-8'), README.name, names)
            return build.run(text, page.name, names)
    return run


@pytest.mark.parametrize('page', WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_and_prints_what_is_written_under_it(page, run_page):
    for result in run_page(page):
        if result.block['text']:
            assert differences(result.text, result.block['text']) == []
    for name in re.findall(r"\bsave\('(\w+)'", page.read_text(encoding='utf-8')):
        assert Path(name).exists()


def test_the_pages_list_every_loss_unit_and_option():
    text = '\n'.join((ROOT / 'docs' / name).read_text(encoding='utf-8')
                     for name in ('library.md', 'from-2016-to-today.md'))
    rows = dict(re.findall(r'^\| (`[^|]*`) \| ([^|]*) \|', text, re.MULTILINE))
    for names, registry in (('`loss`', gru4rec.LOSSES), ('`unit`', gru4rec.UNITS), ('`input_mode`', gru4rec.INPUTS)):
        assert set(re.findall(r"'([\w-]+)'", rows[names])) == set(registry)
    documented = {name for names in rows for name in re.findall(r'`(\w+)`', names)}
    keyword_only = inspect.getfullargspec(GRU4Rec.__init__).kwonlyargs
    in_the_text = {'session_decay', 'equal_times', 'seed', 'backend'}
    assert set(keyword_only) - documented == in_the_text


@pytest.mark.slow
@pytest.mark.skipif(not pytensor.__version__.startswith('3.0.'), reason='the tables are those of PyTensor 3.0')
def test_the_first_command_prints_the_tables_of_the_page_on_synthetic_logs(tmp_path, capsys):
    """Three minutes; seconds apart, which are of the machine."""
    assert run_experiments.main(['--out', str(tmp_path / 'out'), '--cache', str(tmp_path / 'cache')]) == 0

    def rows(text):
        return [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|']
    printed = [row[:-2] for row in rows(capsys.readouterr().out) if row[-1].endswith(' s')]
    page = (ROOT / 'docs' / 'synthetic.md').read_text(encoding='utf-8')
    written = [row[:-2] for row in rows(page[:page.index('Published: RSC15')]) if row[-1].endswith(' s')]
    assert len(printed) == 7
    assert differences('\n'.join(map(' '.join, printed)), '\n'.join(map(' '.join, written))) == []
