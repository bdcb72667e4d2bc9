"""docs/gallery/: notebooks in the form of PyTensor's and PyMC's galleries."""
import re

import pytensor
import pytest
from test_docs import ROOT

PAGES = sorted((ROOT / 'docs' / 'gallery').glob('*.md'))
CELL = re.compile(r'^```\{code-cell\} ipython3\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_conventions_of_the_gallery(page):
    text = page.read_text(encoding='utf-8')
    front, target, title = re.match(r'---\n(.*?)\n---\n\n\((\w+)\)=\n# (.*)\n', text, re.DOTALL).groups()
    assert 'format_name: myst' in front and 'kernelspec:' in front and target == page.stem and title
    post = re.search(r'^:::\{post\} \w+ \d+, \d{4}\n((?::\w+: .+\n)+):::$', text, re.MULTILINE)
    assert re.findall(r':(\w+): ', post[1]) == ['tags', 'category', 'author']
    assert re.findall(r'^## (Authors|References|Watermark)$', text, re.MULTILINE) == [
        'Authors', 'References', 'Watermark']
    assert CELL.findall(text)[-1].startswith('%load_ext watermark\n%watermark ')


@pytest.mark.slow
def test_the_recommender_of_the_gallery_trains(capsys):
    """Half a minute to compile.  The watermark is left out: it is an extension of IPython."""
    cells = [cell for cell in CELL.findall((ROOT / 'docs' / 'gallery' / 'gru4rec.md').read_text(encoding='utf-8'))
             if not cell.startswith('%')]
    names = {'__name__': '__main__'}
    with pytensor.config.change_flags(floatX=pytensor.config.floatX, mode='NUMBA'):
        for cell in cells:
            exec(cell, names)
    printed = capsys.readouterr().out
    assert len(names['rewritten']) < len(names['written']) / 2
    assert any('Composite' in str(node.op) for node in names['rewritten'])
    assert re.search(r'overwrites .*\bW\b', printed)
    assert float(names['by_graph']) == pytest.approx(float(names['by_differences']), rel=0.02, abs=1e-4)
    assert names['epoch_losses'][-1] < 0.7 * names['epoch_losses'][0]
    assert set(re.findall(r"'(\w+)'", re.search(r"\['tea'\] -> (.*)", printed)[1])) <= {'tea', 'mug', 'honey'}
    assert set(re.findall(r"'(\w+)'", re.search(r"\['tent'\] -> (.*)", printed)[1])) <= {'tent', 'mat', 'lamp', 'stove'}
    assert names['epoch'][0, 0].tolist() == [0, 3, 0]  # tent, tea, tent
