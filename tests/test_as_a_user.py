"""Recorded runs in a process with PyTensor's own settings, as a user's are.

The other tests change them, and compile a graph once (conftest.py).
"""
import os

import numpy as np
import pytest
from common import (
    CASES,
    CROSS_ENTROPY_CASE,
    FAST_CASE,
    GOLDEN,
    PROMISE,
    TEST,
    assert_close,
    recorded,
    recorded_masks,
    run_python,
)
from numpy.testing import assert_allclose

import evaluation
from gru4rec import GRU4Rec

PROGRAM = """
    import sys
    import numpy as np, pandas as pd
    from gru4rec import GRU4Rec
    import pytensor
    assert pytensor.config.mode == 'Mode' and pytensor.config.traceback__limit == 8
    train, folder = pd.read_csv(sys.argv[1], sep='\\t'), sys.argv[2]
    for case, arguments in eval(sys.argv[3]).items():
        with np.load(f'{folder}/{case}.npz') as masks:
            model = GRU4Rec(**arguments).fit(train, dropout_masks=[*masks.values()] or None)
        np.savez(f'{folder}/{case} losses.npz', losses=model.epoch_losses_)
        np.savez(f'{folder}/{case} accumulators.npz', **model.optimizer_state())
        model.save(f'{folder}/{case}')
"""


@pytest.mark.parametrize('cases, backend', [((FAST_CASE, CROSS_ENTROPY_CASE), 'python'),
                                            pytest.param((FAST_CASE,), 'numba', marks=PROMISE)])
def test_what_a_user_compiles_gives_the_numbers_of_the_release(tmp_path, cases, backend):
    arguments = {case: CASES[case]['arguments'] | {'backend': backend} for case in cases}
    for case in cases:
        np.savez(tmp_path / f'{case}.npz', *(recorded_masks(case) or []))
    flags = os.environ.get('PYTENSOR_FLAGS', '')
    run_python(PROGRAM, GOLDEN / 'train.tsv', tmp_path, arguments, PYTENSOR_FLAGS=flags if 'dir' in flags else '')
    for case in cases:
        model = GRU4Rec.load(tmp_path / case, backend='python')
        with np.load(tmp_path / f'{case} losses.npz') as saved:
            assert_allclose(saved['losses'], CASES[case]['epoch_losses'], rtol=0, atol=1e-6)
        assert_close(model.weights(), recorded(case, 'weight'), 1e-5)
        with np.load(tmp_path / f'{case} accumulators.npz') as saved:
            assert_close(dict(saved), {f'{kind}_{name}': value for kind in ('acc', 'vel')
                                       for name, value in recorded(case, kind).items()}, 1e-5)
        for entry in CASES[case]['evaluation']:
            if entry['rule'] == '<=':
                found = evaluation.evaluate_sessions_batch(model, TEST, cut_off=entry['cut_off'],
                                                           tie_policy=entry['ties'])
                assert found == pytest.approx((entry['recall'], entry['mrr']), rel=0, abs=1e-15)
