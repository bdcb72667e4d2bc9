"""V-SKNN with its options, STAN and VSTAN against loops over the training sessions that share nothing with them."""
import math

import numpy as np
import pandas as pd
import pytest
from common import Only
from numpy.testing import assert_allclose, assert_array_equal

from baselines import SKNN, STAN, VSKNN, VSTAN
from evaluation import next_item_ranks

DAY = 86_400
W = {  # weight of an item of the session, from the position of its last event and the session's length
    'same': lambda p, n: 1, 'div': lambda p, n: p / n, 'quadratic': lambda p, n: (p / n) ** 2,
    'linear': lambda p, n: 1 - 0.1 * (n - p) if p <= 10 else 0, 'log': lambda p, n: 1 / math.log10(n - p + 1.7)}
D = {  # weight of a neighbour, from the distance of the last shared item from the end of the session
    'same': lambda step: 1, 'div': lambda step: 1 / step, 'linear': lambda step: 1 - 0.1 * step,
    'log': lambda step: 1 / math.log10(step + 1.7), 'quadratic': lambda step: 1 / step ** 2}


def visits(seed, n_sessions, n_items=12, longest=8):
    """A log over weeks with repeats within sessions, some equal times and ends, and rows out of order."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n_sessions)
    session = np.repeat(rng.permutation(n_sessions), lengths)
    time = DAY * rng.integers(15, size=n_sessions)[session] + rng.integers(3, size=len(session)).cumsum() // 20
    items = np.append(np.arange(n_items), (n_items * rng.random(len(session) - n_items) ** 2).astype(int))
    log = pd.DataFrame({'SessionId': session, 'ItemId': items * 7 + 100, 'Time': 1.4e9 + time})
    return log.sample(frac=1, random_state=seed)


TRAIN, TEST = visits(1, 50), visits(2, 12, longest=15).sort_values(['SessionId', 'Time'], kind='stable')
OFFSETS = np.append(0, TEST.groupby('SessionId').size().cumsum())
SPANS = [(start, k) for start, end in zip(OFFSETS[:-1], OFFSETS[1:]) for k in range(start + 1, end)]
PREFIXES = [TEST.ItemId.tolist()[start:end] for start, end in SPANS]
SESSIONS = [(frame.Time.max(), number, frame.sort_values('Time', kind='stable').ItemId.tolist())  # the latest first
            for number, (_id, frame) in enumerate(TRAIN.groupby('SessionId', sort=False))]
SESSIONS = sorted(SESSIONS, key=lambda session: session[:2], reverse=True)
assert len({end for end, _number, _items in SESSIONS}) < len(SESSIONS)  # of equal ends the session that appears later
RARITY = {item: math.log(len(SESSIONS) / n) for item, n in TRAIN.ItemId.value_counts().items()}


def neighbours(prefix, k, sample_size, w, root, age=lambda days: 1, now=0):
    """The k most similar (similarity, last positions of its items) of the most recent sessions with an item of s."""
    position = {item: p for p, item in enumerate(prefix, start=1)}
    lasts = [(end, {item: q for q, item in enumerate(items, start=1)}) for end, _number, items in SESSIONS]
    near = []
    for end, last in [pair for pair in lasts if pair[1].keys() & position.keys()][:sample_size]:
        shared = sum(w(p, len(prefix)) for item, p in position.items() if item in last)
        squares = sum(w(p, len(prefix)) ** 2 for p in position.values())
        if shared > 0:
            norm = math.sqrt(squares) * math.sqrt(len(last)) if root else 1
            near.append((shared / norm * age((now - end) / DAY), last))
    return sorted(near, key=lambda pair: -round(pair[0], 12))[:k], position  # equal ones in the order of `SESSIONS`


def summed(items, near, part):
    """Sum over the neighbours that contain an item of similarity times part(last positions, item)."""
    return [sum(similarity * part(last, item) for similarity, last in near if item in last) for item in items]


def v_sknn_loop(prefix, items, k, sample_size, weighting='div', weighting_score='same', idf_weighting=0,
                similarity='vec'):
    near, position = neighbours(prefix, k, sample_size, W[weighting], similarity == 'cosine')

    def part(last, item):
        step = next(step for step, clicked in enumerate(reversed(prefix), start=1) if clicked in last)
        return D[weighting_score](step) * (1 + idf_weighting * RARITY[item])
    return summed(items, near, part)


def stan_loop(prefix, items, k, sample_size, now, lambda_spw, lambda_snh, lambda_inh, lambda_ipw=None,
              lambda_idf=0, similarity='cosine'):
    near, position = neighbours(prefix, k, sample_size, lambda p, n: math.exp((p - n) / lambda_spw),
                                similarity == 'cosine', lambda days: math.exp(-days / lambda_snh), now)

    def part(last, item):
        nearby = max((last[clicked], clicked) for clicked in position if clicked in last)[0]
        decay = math.exp(-abs(last[item] - nearby) / lambda_inh)
        if lambda_ipw:
            latest = max(p for clicked, p in position.items() if clicked in last)
            decay *= math.exp((latest - len(prefix)) / lambda_ipw)
        return decay * (1 + lambda_idf * RARITY[item])
    return summed(items, near, part)


def all_scores(model):
    return model.score_block(TEST.ItemId, OFFSETS, 0, len(SPANS))


@pytest.mark.parametrize('k, sample_size', [(500, 1000), (4, 9)])
@pytest.mark.parametrize('options', [
    *[dict(weighting=name) for name in W], *[dict(weighting_score=name) for name in D], dict(idf_weighting=5),
    dict(similarity='cosine'), dict(weighting='same', similarity='cosine'),
    dict(weighting='linear', similarity='cosine'),
    dict(weighting='quadratic', weighting_score='div', idf_weighting=2, similarity='cosine'),
], ids=lambda options: ' '.join(map(str, options.values())))
def test_v_sknn_with_its_options_equals_a_loop_over_sessions(options, k, sample_size):
    model = VSKNN(k=k, sample_size=sample_size, **options).fit(TRAIN)
    expected = [v_sknn_loop(prefix, model.items_, k, sample_size, **options) for prefix in PREFIXES]
    assert_allclose(all_scores(model), expected, rtol=1e-12, atol=1e-15)


STAN_OPTIONS = dict(lambda_spw=1.5, lambda_snh=4, lambda_inh=2.5)
VSTAN_OPTIONS = dict(lambda_spw=3, lambda_snh=9, lambda_inh=0.7, lambda_ipw=1.3, lambda_idf=3)


@pytest.mark.parametrize('k, sample_size', [(500, 1000), (4, 9)])
@pytest.mark.parametrize('kind, options', [
    (STAN, STAN_OPTIONS), (VSTAN, VSTAN_OPTIONS), (VSTAN, VSTAN_OPTIONS | dict(similarity='vec'))])
def test_stan_and_vstan_equal_a_loop_over_sessions(kind, options, k, sample_size):
    model, now = kind(k=k, sample_size=sample_size, **options).fit(TRAIN), TRAIN.Time.max()
    expected = [stan_loop(prefix, model.items_, k, sample_size, now, **options) for prefix in PREFIXES]
    assert_allclose(all_scores(model), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('kind, options', [(STAN, STAN_OPTIONS), (VSTAN, VSTAN_OPTIONS)])
def test_the_age_of_a_neighbour_counts_from_the_timestamp_where_one_is_handed_over(kind, options):
    model, now = kind(**options).fit(TRAIN), TRAIN.Time.max() + 2.5 * DAY
    expected = stan_loop([107, 114], model.items_, model.k, model.sample_size, now, **options)
    for session, timestamp in enumerate((now, pd.Timestamp(now, unit='s'), int(now * 1000))):
        model.predict_next(session, 107, model.items_, timestamp)
        assert_allclose(model.predict_next(session, 114, model.items_, timestamp=timestamp), expected, rtol=1e-12)


@pytest.mark.parametrize('kind', [STAN, VSTAN])
def test_no_rank_depends_on_the_time_of_the_current_event(kind):
    model = kind().fit(TRAIN)
    assert_array_equal(next_item_ranks(Only(model, 'predict_next'), TEST), next_item_ranks(model, TEST))


def test_times_may_be_dates():
    dates = TRAIN.assign(Time=pd.to_datetime(TRAIN.Time, unit='s'))
    for make in (SKNN, STAN, lambda: STAN(lambda_snh=np.inf)):
        scores = all_scores(make().fit(TRAIN))
        for times in (dates, dates.assign(Time=dates.Time.dt.tz_localize('UTC'))):
            model = make().fit(times)
            assert_allclose(all_scores(model), scores, rtol=1e-12)
            first = model.predict_next(1, PREFIXES[0][0], model.items_, *[times.Time.max()] * (make is not SKNN))
            assert_allclose(first, scores[0], rtol=1e-12)


def test_without_weights_every_method_is_s_knn():
    expected = all_scores(SKNN(k=4, sample_size=9).fit(TRAIN))
    without = dict(lambda_spw=np.inf, lambda_snh=np.inf, lambda_inh=np.inf)
    for model in (VSKNN(4, 9, weighting='same', similarity='cosine'), STAN(4, 9, **without),
                  VSTAN(4, 9, lambda_ipw=np.inf, lambda_idf=0, **without)):
        assert_array_equal(all_scores(model.fit(TRAIN)), expected)
