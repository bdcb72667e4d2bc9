"""The claims of the paper: the rule that judges them, and the command that compares."""
import numpy as np
import pytest

import run_experiments
from gru4rec_pytensor.experiments import claims, search, work
from gru4rec_pytensor.experiments.results import Results

pytest.importorskip('optuna', reason='Optuna, an extra, is not installed')


def judged(relation, first, second, lower_is_better=False):
    return claims.judge_metric(relation, np.column_stack([first, second]), lower_is_better)


def test_the_interval_is_students_t_of_the_differences_between_seeds():
    # differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.3027, half-width 4.3027 / sqrt(3)
    assert judged('better', [11, 22, 33], [10, 20, 30]) == ('too close to tell', ' (+2.0000 ± 2.4841)')


@pytest.mark.parametrize('relation, first, verdict', [
    ('better', [0.60, 0.61, 0.62], 'holds'), ('better', [0.40, 0.41, 0.42], 'does not hold'),
    ('better', [0.40, 0.51, 0.62], 'too close to tell'),
    ('no better', [0.50, 0.51, 0.52], 'holds'), ('no better', [0.40, 0.41, 0.42], 'holds'),
    ('no better', [0.60, 0.61, 0.62], 'does not hold'), ('no better', [0.40, 0.51, 0.62], 'too close to tell'),
    ('like', [0.501, 0.511, 0.521], 'holds'), ('like', [0.40, 0.41, 0.42], 'does not hold'),
    ('like', [0.60, 0.61, 0.62], 'does not hold'), ('like', [0.40, 0.51, 0.62], 'too close to tell')])
def test_a_metric_is_judged_by_where_its_interval_lies(relation, first, verdict):
    assert judged(relation, first, [0.50, 0.51, 0.52])[0] == verdict
    if relation == 'better':  # with the loss, lower is
        opposite = {'holds': 'does not hold', 'does not hold': 'holds'}
        assert judged(relation, first, [0.50, 0.51, 0.52], lower_is_better=True)[0] == opposite.get(verdict, verdict)


@pytest.mark.parametrize('n_items, n_candidates', [
    (330_000, 30_000), (1_000_000, 30_000), (33_000, 3_000), (1_000, 91), (100, 40)])
def test_popular_candidates_are_as_large_a_share_as_the_papers_and_more_than_are_shown(n_items, n_candidates):
    assert claims.popular_candidates(n_items) == n_candidates


def of_seeds(recalls, mrrs=None, losses=None):
    return [{'recall@20': recall, 'mrr@20': mrr, 'epoch_losses': [9, loss]}
            for recall, mrr, loss in zip(recalls, mrrs or recalls, losses or recalls)]


CLAIM = claims.Claim('4.2', 'one is better', 'better', claims.Setting('one'), claims.Setting('two'))
HIGH, LOW = [0.60, 0.61, 0.62], [0.50, 0.51, 0.52]


def test_a_claim_holds_if_it_does_for_every_metric_and_falls_with_one():
    assert claims.judge(CLAIM, of_seeds(HIGH), of_seeds(LOW))[0] == 'holds'
    assert claims.judge(CLAIM, of_seeds(HIGH, LOW), of_seeds(LOW, HIGH))[0] == 'does not hold'
    assert claims.judge(CLAIM, of_seeds(HIGH, [0.4, 0.51, 0.6]), of_seeds(LOW))[0] == 'too close to tell'
    with_loss = CLAIM._replace(metrics=tuple(claims.METRICS))
    assert claims.judge(with_loss, of_seeds(HIGH, losses=LOW), of_seeds(LOW, losses=HIGH))[0] == 'holds'
    assert claims.judge(with_loss, of_seeds(HIGH, losses=HIGH), of_seeds(LOW, losses=LOW))[0] == 'does not hold'


def test_seeds_with_an_unstable_network_are_left_out_and_counted_and_a_baseline_counts_for_every_seed():
    unstable = of_seeds([0.60, None, 0.62])
    verdict, details = claims.judge(CLAIM, unstable, of_seeds(LOW))
    assert verdict == 'holds' and details[0].startswith('0.6100 ± 0.0141 (1 unstable) / 0.5100 ± 0.0100')
    verdict, details = claims.judge(CLAIM, of_seeds([None, None, None]), of_seeds(LOW))
    assert verdict == 'too close to tell' and details[0] == 'unstable / 0.5100 ± 0.0100'
    request, source, _place = run_experiments.parse(['--claims', '--backend', 'python'])
    cells = claims.setting_cells(claims.Setting('Item-KNN', 'Item-KNN', None), source, request)
    assert len(cells) == 3 and len({str(cell) for cell in cells}) == 1  # a baseline is compared with every seed
    verdict, details = claims.judge(CLAIM, of_seeds(HIGH), of_seeds([0.5] * 3))
    assert verdict == 'holds' and details[0] == '0.6100 ± 0.0100 / 0.5000 (+0.1100 ± 0.0248)'


@pytest.mark.parametrize('pointwise, pairwise, verdict', [
    (2, 10, 'holds'), (10, 10, 'too close to tell'), (10, 2, 'does not hold'), (9, 10, 'too close to tell')])
def test_stability_is_judged_by_fishers_test(pointwise, pairwise, verdict):
    stable = {'cross-entropy': (pointwise, 10), 'mrr': (pointwise, 10), 'top1': (pairwise, 10), 'bpr': (pairwise, 10)}
    assert claims.stability_row(stable)[-1] == verdict


def test_every_claim_compares_settings_that_differ_in_one_thing():
    every = claims.paper_claims(100, 1000)
    assert len({claim.text for claim in every}) == len(every) == 21
    for claim in every:
        assert claim.relation in ('better', 'no better', 'like')
        first, second = (setting._replace(label='') for setting in (claim.first, claim.second))
        differing = [name for name in first._fields if getattr(first, name) != getattr(second, name)]
        assert differing in (['options'], ['candidates'], ['units'], ['loss'], ['model', 'loss', 'units'])


@pytest.mark.slow
def test_the_command_compares_judges_and_continues(data, tmp_path, monkeypatch, capsys):
    wanted = ('1-of-N input is better than an embedding', 'TOP1 is better than Item-KNN',
              'ranking among the most popular items alone hardly changes the result')
    paper_claims = claims.paper_claims
    monkeypatch.setattr(claims, 'paper_claims', lambda *units: [
        claim for claim in paper_claims(*units) if claim.text in wanted])
    random_points = search.random_points
    monkeypatch.setattr(search, 'random_points', lambda space, n, seed: random_points(
        space | {'batch_size': (50,)}, 1, seed))
    command = ['--claims', '--quick', '--units', '4,8', '--epochs', '1', '--seeds', '1,2', '--data', str(data), '--out',
               str(tmp_path), '--backend', 'python', '--jobs', '1']
    assert run_experiments.main(command) == 0
    text = capsys.readouterr().out
    assert (tmp_path / 'claims.md').read_text() == text[:-1]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')][2:]
    assert [row[1] for row in rows[:3]] == [wanted[0], wanted[2], wanted[1]] and len(rows) == 4
    verdicts = {row[-1].removesuffix(', within the interval of the test set') for row in rows}
    assert verdicts <= {'holds', 'does not hold', 'too close to tell'}
    assert 'cross-entropy 1 of 1, mrr 1 of 1, top1 1 of 1, bpr 1 of 1' in rows[3][2]
    assert 'Quick run' in text and '4 units, 8 where many units are meant; 1 epochs, seeds 1, 2' in text
    saved = Results(tmp_path).load('cells')
    # TOP1, the embedding and popular candidates for two seeds, Item-KNN, and a random point for each loss
    assert len(saved) == 2 + 2 + 2 + 1 + 4
    assert {result['candidates'] for result in saved} == {None, 40}
    monkeypatch.setattr(work, 'run_cell', lambda *arguments: pytest.fail('a cell was run again'))
    assert run_experiments.main(command) == 0
    assert capsys.readouterr().out == text
