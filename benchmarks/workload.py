"""The work of the benchmarks of speed: settings of trainings, a synthetic log, and the fastest of some calls."""
import time
from typing import Any

import numpy as np
import pandas as pd

N_ITEMS = 37_483  # of RSC15
TOP1: dict[str, Any] = dict(loss='top1', batch_size=50, dropout_p_hidden=0.5, learning_rate=0.01)
CROSS_ENTROPY: dict[str, Any] = dict(loss='cross-entropy', batch_size=500, dropout_p_hidden=0.0, learning_rate=0.01)

# The published settings for 64 units on real clicks, `parameters/rsc15_recent64_bpr-max.toml`.
BPR_MAX: dict[str, Any] = dict(
    loss='bpr-max', final_act='linear', bpreg=0.0, constrained_embedding=True, batch_size=32, n_sample=2048,
    sample_alpha=0.25, dropout_p_hidden=0.35, dropout_p_embed=0.5, learning_rate=0.095, momentum=0.2, drop_tail=False)


def events(n_events: int, n_items: int = N_ITEMS, seed: int = 0) -> pd.DataFrame:
    """Sessions of four events on average over Zipf items, each of which occurs."""
    rng = np.random.default_rng(seed)
    length = rng.geometric(1 / 3, n_events // 4) + 1
    n = int(length.sum())
    share = (1 / np.arange(1, n_items + 1)).cumsum()
    item = np.searchsorted(share, share[-1] * rng.random(n))
    item[rng.permutation(n)[:n_items]] = np.arange(min(n, n_items))
    return pd.DataFrame({'SessionId': np.repeat(np.arange(len(length)), length), 'ItemId': item, 'Time': np.arange(n)})


def best(function, repeats: int = 5) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)
