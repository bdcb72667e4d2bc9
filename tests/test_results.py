"""RESULTS.md and the script that makes its rows."""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import results


def a_row(*recalls, mrr=0.2):
    return {'results': [{'recall@20': recall, 'mrr@20': mrr} for recall in recalls]}


def test_the_page_is_that_of_the_numbers_that_are_kept():
    assert results.page(results.load(results.KEPT)) == results.PAGE.read_text()


def test_the_first_table_of_the_readme_has_the_numbers_that_are_kept():
    readme, kept = results.README.read_text(), results.load(results.KEPT)
    assert results.FRONT.sub(results.front(kept), readme) == readme
    first = [[cell.strip() for cell in line.strip('|').split('|')] for line in readme.splitlines() if line[:1] == '|']
    of_the_data = [row for row in kept['rows'] if row['data'] == results.RECENT64]
    for row, (title, recall, mrr, *_) in zip(of_the_data, first[2:]):
        assert title == results.ROW_TITLES.get(row['title'], row['title'])
        for shown, metric in ((recall, 'recall@20'), (mrr, 'mrr@20')):
            assert float(shown.split(' ')[0]) == pytest.approx(
                sum(result[metric] for result in row['results']) / len(row['results']), abs=0.5001e-4)


def test_every_row_that_is_kept_is_one_that_the_script_can_run_again():
    commands = {(run.data, run.title): run.command for run in results.all_runs()}
    kept = results.load(results.KEPT)['rows']
    assert kept and all(commands[row['data'], row['title']] == row['command'] for row in kept)


@pytest.mark.parametrize('kept, found, holds', [
    (a_row(0.5), a_row(0.50004), True), (a_row(0.5), a_row(0.50006), False),  # without seeds, to the last digit
    (a_row(0.4, 0.5, 0.6), a_row(0.69), True), (a_row(0.4, 0.5, 0.6), a_row(0.71), False),  # 0.5 ± 2 · 0.1
    (a_row(0.5), a_row(0.5, mrr=0.3), False), (a_row(None), a_row(None), True), (a_row(0.5), a_row(None), False)])
def test_a_row_holds_within_two_standard_deviations_of_its_seeds(kept, found, holds):
    assert results.still_holds(kept, found) is holds


@pytest.mark.parametrize('words, message', [
    (['no_such_data=.'], "'no_such_data=.': must be rsc15_recent64 or rsc15_week"),
    (['rsc15_week=nowhere'], "'rsc15_week=nowhere': must be rsc15_recent64 or rsc15_week, =, and a folder with")])
def test_data_that_is_not_there_is_named(words, message, capsys):
    with pytest.raises(SystemExit):
        results.main(words)
    assert message in capsys.readouterr().err
