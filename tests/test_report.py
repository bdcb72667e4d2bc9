"""The HTML report: what it says, that it stands alone, and the numbers behind its pictures."""
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from common import click_log

import run_experiments
from gru4rec_pytensor.experiments import page, report
from gru4rec_pytensor.experiments.datasets import Dataset
from gru4rec_pytensor.experiments.protocols import RSC15
from gru4rec_pytensor.experiments.results import Results
from gru4rec_pytensor.experiments.tables import Section, Table, rows_of_tables

pytest.importorskip('matplotlib', reason='Matplotlib, an extra, is not installed')


@pytest.fixture(scope='module')
def made(data, tmp_path_factory):
    """The report of a run with two seeds, and its results."""
    out = tmp_path_factory.mktemp('out')
    command = ['--data', str(data), '--out', str(out), '--backend', 'python', '--jobs', '1', '--epochs', '2',
               '--units', '4', '--models', 'POP', 'Item-KNN', 'GRU4Rec', '--loss', 'top1', '--seeds', '1,2']
    assert run_experiments.main(command) == 0
    return (out / 'report.html').read_text(), rows_of_tables(Results(out).load('cells'), RSC15), command


def elements_of(text):
    """All elements of a page, which must be well-formed, as (tag, attributes) without namespaces."""
    page = ElementTree.fromstring(re.sub('<!DOCTYPE html>|<meta [^>]*>', '', text))
    return [(element.tag.rpartition('}')[2], {name.rpartition('}')[2]: value for name, value in element.items()})
            for element in page.iter()]


def test_the_file_is_well_formed_needs_nothing_else_and_fits_a_phone(made):
    text, _results, _command = made
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    for tag, attributes in elements_of(text):
        assert tag not in ('script', 'link', 'img', 'iframe')
        assert all(attributes.get(name, '#').startswith('#') for name in ('src', 'href'))
    assert not re.search(r'url\((?!#)|@import', text)


def test_every_picture_has_its_numbers_as_alternative_text(made):
    text, results, _command = made
    pictures = [attributes for tag, attributes in elements_of(text) if tag == 'svg']
    assert len(pictures) == 5 and all(picture['role'] == 'img' for picture in pictures)
    recall = np.mean([r['details']['recall'][6] for r in results if r['loss'] == 'top1'])
    assert 'TOP1, 4 units: 0.' in pictures[0]['aria-label'] and f'{recall:.3f} at 20' in pictures[0]['aria-label']
    losses = np.mean([r['epoch_losses'] for r in results if r['loss'] == 'top1'], axis=0)
    assert f'{losses[1]:.3f} in epoch 2' in pictures[-1]['aria-label']


def test_it_says_what_data_it_is_how_it_was_made_and_for_a_synthetic_log_the_gains_over_item_knn_alone(made):
    text, results, command = made
    assert 'This is a synthetic click log' in text and 'python run_experiments.py ' + command[0] in text
    assert 'pytensor' in text and '7,966,257' in text and '37,483' in text
    assert 'Item-KNN: the items that occur in the same sessions as the current one' in text
    assert '0.5065' not in text and 'gain over Item-KNN' in text
    means = [np.mean([r['recall@20'] for r in results if r['model'] == model]) for model in ('GRU4Rec', 'Item-KNN')]
    assert f'<td class="number">{means[0] / means[1] - 1:+.1%}</td>' in text


def test_a_difference_is_coloured_only_where_the_numbers_compare():
    assert page.difference(0.6, 0.5, True) == ('+20.0%', 'better') and page.difference(0.4, 0.5, True)[1] == 'worse'
    assert page.difference(0.6, 0.5, False) == ('+20.0%', '') and page.difference(None, 0.5, True) == ('-', '')


def test_text_of_the_data_does_not_become_markup():
    assert '<b>' not in page.paragraph('a <b>bold</b> name') and '&lt;b&gt;' in page.paragraph('a <b>x</b>')
    assert '&lt;i&gt;' in page.table(['<i>'], [['1']]) and '&lt;i&gt;' in page.table(['x'], [['<i>']])
    assert page.paragraph('**so** `it` is') == '<p><strong>so</strong> <code>it</code> is</p>'
    text = page.figure('A picture.', {'x': lambda ax: page.draw_losses(ax, r'$\bad {$', [1.0], 'k', 'o')}, [])
    assert r'$\bad {$' in text  # and no formula


def test_table_2_and_the_claims_stand_in_it_as_they_do_in_markdown():
    log = click_log([1, 2])
    claims = Table('Claims', ('Claim', 'Recall'), [('a < b', 0.5), ('b', '-')])
    section = Section([claims], ['**Quick**\nrun.', 'Last.'])
    text = report.format_report([], Dataset('mine', RSC15, True, log, log), [section], ['command'])
    assert ('<h2>Claims</h2>\n<div class="scroll"><table><thead><tr><th scope="col">Claim</th>'
            '<th scope="col" class="number">Recall</th></tr></thead><tbody><tr><td>a &lt; b</td>'
            '<td class="number">0.5</td></tr>\n<tr><td>b</td><td class="number">-</td></tr></tbody></table></div>\n'
            '<p><strong>Quick</strong>\nrun.</p>\n<p>Last.</p>\n</section>') in text
    assert 'Recall@20 and MRR@20, published and ours' not in text  # there are no results of Tables 1 and 3


def test_without_matplotlib_the_page_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    text = page.figure('A picture.', {'x': lambda ax: None}, [])
    assert 'A picture. The picture needs Matplotlib: pip install' in text
