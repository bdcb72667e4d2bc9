"""docs/solutions.md: an answer for each exercise of docs/walkthrough.md, with code that prints what the page says."""
import re

import numpy as np
import pytensor
import pytest
from test_docs import ROOT, WALK, build, differences

PAGE = (ROOT / 'docs' / 'solutions.md').read_text(encoding='utf-8')
BLOCKS = [*build.BLOCK.finditer(PAGE)]


@pytest.fixture(scope='module')
def results():
    with pytensor.config.change_flags(floatX=pytensor.config.floatX), np.printoptions():
        return build.run(PAGE, 'solutions.md')


def test_each_exercise_has_an_answer_under_its_number():
    exercises = re.findall(r'^(\d+)\. \*(.*?)\.\*', WALK[WALK.index('## Exercises'):], re.MULTILINE)
    assert re.findall(r'^## (\d+)\. (.*)$', PAGE, re.MULTILINE) == exercises
    assert all(PAGE.count(f'## {number}. ') == 1 for number, _title in exercises)


@pytest.mark.parametrize('number', range(len(BLOCKS)),
                         ids=[block['code'].strip().split('\n')[-1][:40] for block in BLOCKS])
def test_the_code_of_an_answer_prints_what_is_written_under_it(results, number):
    block = BLOCKS[number]
    assert block['text'] or number == 0  # which only prepares
    assert differences(results[number].text, block['text'] or '') == []
