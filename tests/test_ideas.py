"""benchmarks/ideas.py: its ladders of networks, and picture and table of docs/later-papers.md, which it makes."""
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip('matplotlib', reason='an extra is not installed')

import preprocess_rsc15
from evaluation import next_item_ranks, recall_mrr
from gru4rec import GRU4Rec, changed_arguments
from gru4rec_pytensor.experiments import work

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import ideas

WALK = ROOT / 'docs' / 'later-papers.md'
PICTURE = ROOT / 'docs' / 'walkthrough' / 'ideas.svg'


def test_the_last_step_of_bpr_in_theano_is_the_published_network():
    *_others, last, _as_pytorch = ideas.ladder('bpr').values()
    assert changed_arguments(GRU4Rec(**last)) == changed_arguments(GRU4Rec.from_parameters(ideas.PUBLISHED))


@pytest.mark.parametrize('loss', ideas.LADDERS)
def test_a_step_changes_what_its_idea_names_and_nothing_else(loss):
    (start, before), *steps = ideas.ladder(loss).items()
    assert start == ideas.START and before['loss'] == loss
    networks = [changed_arguments(GRU4Rec(**before))]
    for idea, arguments in steps:
        networks.append(changed_arguments(GRU4Rec(**arguments)))
        changed = {name for name in networks[-1].keys() | networks[-2].keys()
                   if networks[-1].get(name) != networks[-2].get(name)}
        assert changed and changed <= set(ideas.IDEAS[idea])


@pytest.mark.parametrize('best, expected', [(0.1, 0.1), (0.2, 0.2), (0.7, 0.8), (0.03, 0.025)])
def test_the_learning_rate_is_halved_or_doubled_while_that_is_better(best, expected):
    assert ideas.best_rate(lambda rate: -abs(np.log(rate / best)), 0.1) == pytest.approx(expected)


@pytest.mark.slow
def test_the_numbers_are_those_of_trained_networks_and_are_kept(tmp_path, monkeypatch, capsys):
    preprocess_rsc15.make_synthetic(tmp_path / 'data', n_sessions=400, n_items=200, seed=1)
    monkeypatch.setattr(ideas, 'LADDERS', {'cross-entropy': ['and logq']})
    monkeypatch.setattr(ideas, 'best_rate', lambda recall, rate: rate if 0 < recall(rate) < 1 else None)
    command = [str(tmp_path / 'data'), '--out', str(tmp_path / 'ideas.svg'), '--results', str(tmp_path / 'results'),
               '--epochs', '1', '--backend', 'python']
    ideas.main(command)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / 'ideas.json').read_text())
    train, test = (pd.read_csv(tmp_path / 'data' / preprocess_rsc15.FILES[part], sep='\t')
                   for part in ('train_full', 'test'))
    for network, logq in zip(found['networks'], (0, 1)):
        arguments = ideas.ladder('cross-entropy')[network['idea']] | {'learning_rate': network['learning_rate']}
        assert arguments.get('logq', 0) == logq
        model = GRU4Rec(**arguments | dict(n_epochs=1, seed=43, backend='python')).fit(train)
        expected = recall_mrr(next_item_ranks(model, test, tie_policy='conservative'))
        assert [network[metric][1] for metric in ideas.METRICS] == pytest.approx(expected)
        assert f"| {np.mean(network['MRR@20']):.4f} ± {np.std(network['MRR@20'], ddof=1):.4f} |" in printed

    monkeypatch.setattr(work, 'train_cell', lambda *_arguments: pytest.fail('trained again'))
    ideas.main(command)
    assert json.loads((tmp_path / 'ideas.json').read_text()) == found


def test_the_walk_through_shows_the_kept_numbers_and_their_picture():
    found = json.loads(PICTURE.with_suffix('.json').read_text())
    assert '\n'.join(ideas.table(found)) in WALK.read_text(encoding='utf-8')
    drawn, stored = (re.findall(r'<text[^>]*>(.*?)</text>', svg)
                     for svg in (ideas.picture(found)._repr_svg_(), PICTURE.read_text(encoding='utf-8')))
    assert drawn == stored
    assert [network['idea'] for network in found['networks']] == [
        idea for loss in ideas.LADDERS for idea in ideas.ladder(loss)]
