"""The baselines against recorded runs of the release, counts made by hand, direct loops, and dense scores."""
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from common import GOLDEN, TEST, TRAIN, click_log, ranks_by_hand
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

import baselines
from baselines import (
    BPR,
    SKNN,
    STAN,
    VSKNN,
    VSTAN,
    CoOccurence,
    Cosine,
    ItemKNN,
    Markov,
    PersonalPop,
    Pop,
    RandomPred,
    SessionPop,
)
from evaluation import next_item_ranks

with np.load(GOLDEN / 'baselines.npz') as archive:
    RECORDED = dict(archive)

A, B, C, D = 10, 20, 30, 40
TINY = click_log([A, B, A], [B, C], [A, C, B], [D])  # events: A 3, B 3, C 2, D 1; sessions: A 2, B 3, C 2, D 1


def random_log(seed, n_sessions=40, n_items=12, as_text=False):
    """Skewed popularity, repeated clicks, sessions of one event, rows out of session order."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=n_sessions)
    items = (n_items * rng.random(lengths.sum()) ** 2).astype(int) * 7 + 100
    log = pd.DataFrame({'SessionId': np.repeat(np.arange(n_sessions) + 5, lengths), 'ItemId': items})
    log['Time'] = np.arange(len(log))
    if as_text:
        log['SessionId'], log['ItemId'] = 's' + log.SessionId.astype(str), 'item ' + log.ItemId.astype(str)
    return log.sample(frac=1, random_state=seed)


def held_out_events(train, seed, as_text=False):
    """Items and offsets of test sessions that contain items of the training log only."""
    test = random_log(seed, as_text=as_text).sort_values(['SessionId', 'Time'], kind='stable')
    test = test[test.ItemId.isin(train.ItemId)]
    lengths = test.groupby('SessionId').size()
    return test.ItemId.to_numpy(), np.concatenate([[0], np.cumsum(lengths)])


def followed(model, item_ids, offsets):
    """Scores of all items before every prediction, and the targets, by one call of predict_next for each event."""
    scores, targets = [], []
    for session, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        for event in range(start, end - 1):
            scores.append(model.predict_next(session, item_ids[event], model.items_))
            targets.append(item_ids[event + 1])
    return scores, targets


MODELS = {
    'RandomPred': lambda: RandomPred(seed=3),
    'Pop': lambda: Pop(top_n=5),
    'Pop by sessions': lambda: Pop(top_n=5, support_by_key='SessionId'),
    'SessionPop': lambda: SessionPop(top_n=4),
    'ItemKNN': lambda: ItemKNN(n_sims=4, lmbd=2, alpha=0.3),
    'CoOccurence': lambda: CoOccurence(n_sims=5, later_only=True),
    'Markov': Markov,
    'SKNN': lambda: SKNN(k=5, sample_size=8),
    'VSKNN': lambda: VSKNN(k=5, sample_size=8),
    'VSTAN': lambda: VSTAN(k=5, sample_size=8),
    'BPR': lambda: BPR(n_factors=7, n_iterations=3, learning_rate=0.1),
    'BPR in float32': lambda: BPR(n_factors=7, n_iterations=3, learning_rate=0.1, dtype='float32'),
}
every_baseline = pytest.mark.parametrize('make', MODELS.values(), ids=MODELS.keys())


# Against the release, on its training and test log

@pytest.mark.parametrize('dtype, tolerance', [('float64', 1e-12), ('float32', 1e-7)])
def test_bpr_learns_the_vectors_of_the_release_and_scores_as_it_does(dtype, tolerance):
    model = BPR(n_factors=10, n_iterations=3, learning_rate=0.05, dtype=dtype).fit(TRAIN)
    assert_array_equal(model.items_, RECORDED['bpr_mf/item_ids'])
    assert_array_equal(TRAIN.SessionId.unique(), RECORDED['bpr_mf/session_ids'])
    assert not RECORDED['bpr_mf/bI'].any()  # biases that the release never learns: ours has none
    assert model.session_factors_.dtype == model.item_factors_.dtype == dtype
    assert_allclose(model.session_factors_, RECORDED['bpr_mf/U'], rtol=0, atol=tolerance)
    assert_allclose(model.item_factors_, RECORDED['bpr_mf/I'], rtol=0, atol=tolerance)
    if dtype == 'float64':  # and the scores after each prefix of the test log, by the mean vector of its items
        events = TEST.sort_values(['SessionId', 'Time'], kind='stable')
        offsets = np.append(0, events.groupby('SessionId').size().cumsum())
        assert_allclose(model.epoch_losses_, RECORDED['bpr_mf/losses'], rtol=1e-12)
        assert_allclose(model.score_block(events.ItemId, offsets, 0, 112), RECORDED['bpr_mf/scores'], rtol=1e-12,
                        atol=1e-12)


CLICKS = 1 + np.arange(2000) * 7919 % 13
TWO_THOUSAND = pd.DataFrame({'ItemId': np.repeat(np.arange(2000), CLICKS)}).sample(frac=1, random_state=1)


@pytest.mark.parametrize('log, order, top_n', [
    *[(TRAIN, 'pop/train_order', n) for n in (1, 7, 20, 59, 100)],
    *[(TWO_THOUSAND, 'pop/order', n) for n in (1, 100, 1000, 1500, 1999)]])
def test_pop_keeps_the_items_that_old_pandas_leaves_among_equals(log, order, top_n):
    model = Pop(top_n=top_n).fit(log)
    assert set(model.items_[model.popularity_ > 0]) == set(RECORDED[order][:top_n])


# By hand: TINY has the sessions [A, B, A], [B, C], [A, C, B] and [D]

ROOT = 6 ** 0.5


@pytest.mark.parametrize('model, session, expected', [
    (Pop(), [A], [3 / 4, 3 / 4, 2 / 3, 1 / 2]),
    (Pop(top_n=2), [A], [3 / 4, 3 / 4, 0, 0]),
    (Pop(top_n=1), [A], [0, 3 / 4, 0, 0]),
    (Pop(top_n=3, support_by_key='SessionId'), [D], [2 / 3, 3 / 4, 2 / 3, 0]),
    (SessionPop(), [A, B, A], [2 + 3 / 4, 1 + 3 / 4, 2 / 3, 1 / 2]),
    (SessionPop(top_n=2), [D], [3 / 4, 3 / 4, 0, 1]),  # clicks on items below the top count, too
    # events of the last item in sessions with the other one: A is twice with B in session 1, once with B and C in 3
    (ItemKNN(lmbd=0), [A], [0, 3 / 3, 1 / ROOT, 0]),
    (ItemKNN(lmbd=0), [A, B], [2 / 3, 0, 2 / ROOT, 0]),  # once in each session: A's repeat in session 1 does not count
    (ItemKNN(lmbd=0), [B, C], [1 / ROOT, 2 / ROOT, 0, 0]),
    (ItemKNN(lmbd=0), [D], [0, 0, 0, 0]),
    (ItemKNN(lmbd=20, alpha=0.75), [A], [0, 3 / 23, 1 / (23 ** 0.75 * 22 ** 0.25), 0]),
    (Markov(), [A], [0, 1 / 2, 1 / 2, 0]),
    # sums of the cosines to {A, B}, {B, C}, {A, B, C} and {D}
    (SKNN(), [B, A, A, B], [1 + 2 / ROOT, 1.5 + 2 / ROOT, 0.5 + 2 / ROOT, 0]),
    (SKNN(), [D], [0, 0, 0, 1]),
    (VSKNN(), [A, B, A], [10 / 3, 4, 7 / 3, 0]),  # A counts 1 and B 2/3: 5/3, 2/3, 5/3
])
def test_scores_after_the_clicks_of_a_session_are_those_worked_out_by_hand(model, session, expected):
    model.fit(TINY)
    for item in session:
        scores = model.predict_next(1, item, [A, B, C, D])
    assert_allclose(scores, expected, rtol=1e-15)


# Item-KNN and Markov chain

@pytest.mark.parametrize('options', [
    {}, dict(n_sims=3), dict(lmbd=0), dict(n_sims=1, lmbd=1, alpha=0.0), dict(n_sims=5, lmbd=2, alpha=0.8),
    dict(later_only=True), dict(seq_only=True), dict(later_only=True, seq_only=True), dict(normalize=False),
    dict(later_only=True, normalize=False, n_sims=3), dict(seq_only=True, lmbd=2, alpha=0.8)])
def test_cooccurence_equals_a_direct_loop_over_pairs_of_events(options):
    log = random_log(13).assign(Time=lambda log: log.Time // 2)  # some events of a session have equal times
    assert log.duplicated(['SessionId', 'Time']).any()
    model = CoOccurence(**options).fit(log)
    items, n_sims = list(log.ItemId.unique()), options.get('n_sims', 100)
    lmbd, alpha = options.get('lmbd', 20), options.get('alpha', 0.5)
    support = np.array([(log.ItemId == item).sum() for item in items])
    for i, item in enumerate(items):
        expected = counted_with(log, item, items, **options).astype(float)
        expected[i] = 0
        if options.get('normalize', True):
            expected /= (support[i] + lmbd) ** alpha * (support + lmbd) ** (1 - alpha)
        order = sorted(range(len(items)), key=lambda j: (-expected[j], j))
        expected[order[n_sims:]] = 0
        assert_array_equal(model.predict_next(1, item, items), expected)


def counted_with(log, item, items, seq_only=False, later_only=False, **_options):
    """Number of events of `item` that count each of the `items`."""
    cooc = np.zeros(len(items), dtype=int)
    for event in log[log.ItemId == item].itertuples():
        session = log[log.SessionId == event.SessionId].sort_values('Time', kind='stable')
        if seq_only or later_only:
            session = session[session.Time > event.Time]
        if seq_only:
            session = session[:1]
        cooc += np.isin(items, session.ItemId)
    return cooc


def test_older_names_stand_for_s_pop_and_item_knn():
    assert PersonalPop is SessionPop and PersonalPop().top_n == 1000 and Pop().top_n == 100
    log = random_log(14)
    expected = ItemKNN().fit(log).similarities_.toarray()
    in_order = CoOccurence(100, 20, 0.5, True, False, False, 'SessionId', 'ItemId', 'Time', False)
    for model in (CoOccurence(), Cosine(), in_order):
        assert_array_equal(model.fit(log).similarities_.toarray(), expected)
    expected = CoOccurence(3, 2).fit(log).similarities_.toarray()
    for model in (Cosine(3, 2), ItemKNN(3, 2)):
        assert_array_equal(model.fit(log).similarities_.toarray(), expected)


@pytest.mark.parametrize('options', [{}, dict(later_only=True)])
def test_cooccurence_takes_sessions_that_the_frame_has_numbered(options):
    log = random_log(15)
    indexed = log.assign(SessionIdx=pd.factorize(log.SessionId)[0], ItemIdx=pd.factorize(log.ItemId)[0])
    model = CoOccurence(assume_indexed=True, **options).fit(indexed.drop(columns='SessionId'))
    assert_array_equal(model.similarities_.toarray(), CoOccurence(**options).fit(log).similarities_.toarray())
    for column in ('SessionIdx', 'ItemIdx'):
        with pytest.raises(ValueError, match=f"no column '{column}'"):
            Cosine(assume_indexed=True).fit(indexed.drop(columns=column))


def test_the_order_of_events_needs_times_that_can_be_ordered():
    with pytest.raises(ValueError, match="no column 'Time'"):
        CoOccurence(seq_only=True).fit(TINY.drop(columns='Time'))
    with pytest.raises(TypeError, match='not text such as'):
        CoOccurence(later_only=True).fit(TINY.assign(Time=TINY.Time.astype(str)))
    with pytest.raises(ValueError, match='missing values'):
        CoOccurence(later_only=True).fit(TINY.assign(Time=TINY.Time.where(TINY.Time != 3)))


def test_a_markov_chain_equals_a_direct_loop_over_pairs_of_events():
    log = random_log(18)
    model = Markov().fit(log)
    sessions = [frame.ItemId.tolist() for _session, frame in log.sort_values('Time').groupby('SessionId')]
    for item in model.items_:
        after = [j for session in sessions for i, j in zip(session, session[1:]) if i == item]
        assert_allclose(model.predict_next(1, item, model.items_),
                        [after.count(j) / max(len(after), 1) for j in model.items_], rtol=1e-15)


# BPR-MF

def test_bpr_with_normal_vectors_and_regularisation_equals_a_direct_loop_over_the_events():
    """With the stream drawn number by number, and events ordered by pandas; no recorded run has these options."""
    log, options = random_log(16), dict(sigma=0.2, lambda_session=0.3, lambda_item=0.2, seed=7)
    model = BPR(n_factors=4, n_iterations=2, learning_rate=0.1, init_normal=True, **options).fit(log)
    expected = bpr_loop(log, n_factors=4, n_iterations=2, rate=0.1, **options)
    for ours, theirs in zip([model.session_factors_, model.item_factors_], expected, strict=True):
        assert_allclose(ours, theirs, rtol=0, atol=1e-14)


def bpr_loop(log, n_factors, n_iterations, rate, sigma, lambda_session, lambda_item, seed):
    """Vectors of sessions and items, written without a look at baselines.py's."""
    item_ids, session_ids = list(log.ItemId.unique()), list(log.SessionId.unique())
    ordered = log.assign(i=log.ItemId.map(item_ids.index), s=log.SessionId.map(session_ids.index))
    ordered = ordered.sort_values('i', kind='stable')
    seen = list(ordered.s.unique())
    ordered = ordered.assign(seen=ordered.s.map(seen.index)).sort_values('seen', kind='stable')
    events = list(zip(ordered.s, ordered.i, strict=True))
    stream = np.random.RandomState(seed)
    U, V = (np.array([[stream.randn() * sigma for _ in range(n_factors)] for _ in rows])
            for rows in (session_ids, item_ids))
    for _ in range(n_iterations):
        for row in stream.permutation(len(events)):
            s, p = events[row]
            n = events[stream.randint(len(item_ids))][1]
            u, v_p, v_n = U[s].copy(), V[p].copy(), V[n].copy()
            slope = 1 - 1 / (1 + np.exp(v_n @ u - v_p @ u))
            U[s] += rate * (slope * (v_p - v_n) - lambda_session * u)
            V[p] += rate * (slope * u - lambda_item * v_p)
            V[n] += rate * (-slope * u - lambda_item * v_n)
    return U, V


def test_bpr_draws_the_same_initial_vectors_block_by_block():
    log = click_log(*[[A, B]] * 2**16)  # more sessions than are drawn at once
    factors = BPR(n_factors=2, n_iterations=1, learning_rate=0).fit(log).session_factors_
    assert_array_equal(factors, np.random.RandomState(42).rand(2**16, 2) * 2 * 0.05 - 0.05)


def test_bpr_learns_from_a_single_item_too_and_stops_when_the_loss_is_no_longer_finite():
    model = BPR(n_factors=3, n_iterations=1).fit(click_log([A, A]))
    assert_allclose(model.epoch_losses_, np.log(2))  # the negative is always the item itself
    with pytest.raises(ValueError, match='learning_rate=1e.20'):
        BPR(learning_rate=1e20).fit(random_log(4))


# All of them

@every_baseline
@pytest.mark.parametrize('as_text, n_candidates', [(False, None), (True, 6), (False, 1)], ids=str)
def test_tie_counts_equal_brute_force_over_dense_scores(make, as_text, n_candidates):
    train = random_log(5, as_text=as_text)
    item_ids, offsets = held_out_events(train, seed=6, as_text=as_text)
    candidates = None if n_candidates is None else train.ItemId.to_numpy()[:n_candidates]
    model = make().fit(train)
    model._block = 7  # so that sessions are cut by the ends of blocks
    scores, targets = followed(model, item_ids, offsets)
    greater, equal = model.tie_counts(item_ids, offsets, candidates)
    assert greater.dtype == equal.dtype == np.int64
    for policy, ranks in (('standard', 1 + greater), ('conservative', 1 + greater + equal)):
        assert_array_equal(ranks, ranks_by_hand(scores, targets, model.items_, policy, candidates))


@every_baseline
def test_score_block_gives_the_numbers_of_predict_next_whatever_the_block_and_the_candidates(make):
    train = random_log(7)
    item_ids, offsets = held_out_events(train, seed=8)
    model = make().fit(train)
    expected = np.array(followed(model, item_ids, offsets)[0])
    n = len(item_ids) - len(offsets) + 1
    assert_array_equal(model.score_block(item_ids, offsets, 0, n), expected)
    assert_array_equal(model.score_block(item_ids, offsets, 3, 11), expected[3:11])
    assert_array_equal(model.score_block(item_ids, offsets, 3, 11, model.items_[[2, 0]]), expected[3:11, [2, 0]])
    assert model.score_block(item_ids, offsets, n, n).shape == (0, len(model.items_))
    assert np.shape(model.tie_counts(item_ids[:2], [0, 1, 2])) == (2, 0)  # sessions of one event


@pytest.mark.parametrize('policy', ['standard', 'tiebreaking'])
def test_bpr_computes_no_score_of_an_item_that_is_neither_candidate_nor_target(monkeypatch, policy):
    log = click_log(*np.random.default_rng(0).integers(500, size=(300, 4)))
    model, asked = BPR(n_factors=3, n_iterations=1).fit(log), []
    dot_scores = baselines._dot_scores
    monkeypatch.setattr(baselines, '_dot_scores', lambda vectors, factors: asked.append(len(factors)) or dot_scores(
        vectors, factors))
    test, candidates = log[:40], model.items_[:10]
    ranks = next_item_ranks(model, test, candidates, tie_policy=policy)
    targets = np.delete(test.ItemId.to_numpy(), np.arange(0, 40, 4))
    assert asked == [len({*candidates, *targets})] and asked[0] < 60
    scores, _targets = followed(model, test.ItemId.to_numpy(), np.arange(0, 41, 4))
    assert_array_equal(ranks, ranks_by_hand(scores, targets, model.items_, candidates=candidates))


@every_baseline
def test_a_session_of_thousands_of_events_takes_memory_in_proportion_to_its_length(make):
    """All its prefixes together have two hundred million events; and its ranks are those of scores at some places."""
    train, n = random_log(17), 20_000
    model = make().fit(train)
    item_ids = np.random.default_rng(1).choice(model.items_, n)
    item_ids[n // 2:n // 2 + 900] = model.items_[0]
    model.tie_counts(item_ids[:5], [0, 5])  # compiles
    tracemalloc.start()
    greater, equal = model.tie_counts(item_ids, [0, n])
    _size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
    for k in (0, 1, 300, 4095, 4096, n // 2 + 450, n - 2):
        scores = model.score_block(item_ids, [0, n], k, k + 1)
        for policy, rank in (('standard', 1 + greater[k]), ('conservative', 1 + greater[k] + equal[k])):
            assert ranks_by_hand(scores, item_ids[k + 1:k + 2], model.items_, policy) == rank


class Given(baselines.Baseline):
    """Scores that are given, in place of a model."""
    def __init__(self, scores):
        self.scores, self.item_key = np.array(scores), 'ItemId'
        self.learn_items(TINY)

    def _scores(self, prefixes, items=slice(None)):
        rows = prefixes.number + np.arange(len(prefixes.ends))
        return self.scores[rows][:, items]


class GivenSparsely(baselines.SparseBaseline, Given):
    """The same, split into common and added scores."""
    def sparse_scores(self, prefixes):
        rows = prefixes.number + np.arange(len(prefixes.ends))
        return self.scores[0], csr_array(self.scores[rows] - self.scores[0])


@pytest.mark.parametrize('kind', [Given, GivenSparsely])
@pytest.mark.parametrize('policy', ['standard', 'conservative', 'median', 'tiebreaking'])
def test_a_next_item_whose_score_is_not_a_number_has_no_rank(kind, policy):
    model = kind([[1, 2, 3, 4], [1, np.nan, 3, 4], [4, 3, 2, 1]])
    assert next_item_ranks(model, click_log([A, B], [B, C], [C, A]), tie_policy=policy).tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match='^prediction 1: the score of the next item is not a number$'):
        next_item_ranks(model, click_log([A, B], [C, B], [C, A]), tie_policy=policy)


@pytest.mark.parametrize('kind', [Given, GivenSparsely])
def test_other_items_whose_scores_are_not_numbers_are_not_greater(kind):
    model = kind([[1, np.nan, 3, 4], [1, 2, 3, np.nan], [np.nan, np.nan, 2, 1]])
    counts = model.tie_counts([A, C, A, C, B, D], [0, 2, 4, 6])
    assert_array_equal(counts, [[1, 0, 1], [0, 0, 0]])


def test_bpr_scores_keep_their_last_bit_with_many_items_and_the_default_number_of_factors():
    log = click_log(*np.random.default_rng(0).integers(1000, size=(300, 4)))
    model = BPR(n_iterations=1).fit(log)
    item_ids, offsets = log.ItemId.to_numpy()[:400], np.arange(0, 401, 4)
    assert_array_equal(model.score_block(item_ids, offsets, 0, 300), np.array(followed(model, item_ids, offsets)[0]))


@every_baseline
def test_a_second_fit_gives_the_bits_of_a_first_one_and_leaves_the_frame_alone(make):
    train, fresh, used = random_log(9), make(), make().fit(random_log(12))
    before = train.copy(deep=True)
    item_ids, offsets = held_out_events(train, seed=10)
    used.predict_next(1, 100, [100])
    for model in (fresh, used):
        model.fit(train)
    pd.testing.assert_frame_equal(train, before)
    assert_array_equal(*(model.predict_next(1, item_ids[0], model.items_) for model in (fresh, used)))
    assert_array_equal(*(model.score_block(item_ids, offsets, 0, 50) for model in (fresh, used)))


@pytest.mark.parametrize('baseline', [RandomPred, BPR])
def test_another_seed_gives_other_scores(baseline):
    one, two = (baseline(seed=seed).fit(TINY).predict_next(1, A, [A, B, C, D]) for seed in [1, 2])
    assert (one != two).all()


def test_random_scores_are_uniform_and_new_for_every_prediction():
    log = click_log(np.arange(1000))
    scores = RandomPred().fit(log).score_block(log.ItemId, [0, 1000], 0, 200)
    assert scores.min() >= 0 and scores.max() < 1 and len(np.unique(scores)) == scores.size
    assert scores.mean() == pytest.approx(0.5, abs=0.01) and scores.std() == pytest.approx(12 ** -0.5, abs=0.01)
    assert abs(np.corrcoef(scores[0], scores[1])[0, 1]) < 0.15


@every_baseline
def test_items_are_numbered_by_first_appearance_and_predictions_are_indexed_in_the_order_given(make):
    model = make().fit(click_log([C, A], [C, B]))
    assert_array_equal(model.items_, [C, A, B])
    scores = model.predict_next(1, A, np.array([B, C]))
    assert isinstance(scores, pd.Series) and list(scores.index) == [B, C]


@every_baseline
def test_unknown_items_raise_a_key_error_that_names_them(make):
    model = make().fit(TINY)
    for call in (lambda: model.predict_next(1, 777, [A]), lambda: model.predict_next(1, A, [A, 777]),
                 lambda: model.tie_counts([A, 777], [0, 2]), lambda: model.score_block([A, 777], [0, 2], 0, 1),
                 lambda: model.tie_counts([A, B], [0, 2], candidates=[777])):
        with pytest.raises(KeyError, match='777'):
            call()
    with pytest.raises(KeyError, match='test_data: 1 item.*777'):
        next_item_ranks(model, click_log([A, 777]), tie_policy='tiebreaking')


@every_baseline
def test_columns_may_have_other_names(make):
    names = {'SessionId': 'visit', 'ItemId': 'product'}
    model, renamed = make(), make()
    for argument, value in [('session_key', 'visit'), ('item_key', 'product')]:
        if hasattr(renamed, argument):
            setattr(renamed, argument, value)
    if getattr(renamed, 'support_by_key', None):
        renamed.support_by_key = 'visit'
    expected = model.fit(TINY).predict_next(1, A, [A, B, C, D])
    assert_array_equal(renamed.fit(TINY.rename(columns=names)).predict_next(1, A, [A, B, C, D]), expected)


@pytest.mark.parametrize('model, error, message', [
    (Pop(top_n=0), ValueError, 'top_n=0'), (SessionPop(top_n=2.5), TypeError, 'top_n=2.5'),
    (ItemKNN(n_sims=0), ValueError, 'n_sims=0'), (ItemKNN(lmbd=-1), ValueError, 'lmbd=-1'),
    (ItemKNN(alpha=1.5), ValueError, 'alpha=1.5'), (ItemKNN(alpha='x'), TypeError, "alpha='x'"),
    (BPR(n_factors=0), ValueError, 'n_factors=0'), (BPR(n_iterations=1.5), TypeError, 'n_iterations=1.5'),
    (BPR(learning_rate=-0.1), ValueError, 'learning_rate=-0.1'), (BPR(sigma=np.nan), ValueError, 'sigma=nan'),
    (BPR(seed=-1), ValueError, 'seed=-1'), (BPR(seed=2**32), ValueError, 'seed=4294967296'),
    (BPR(dtype='float16'), ValueError, "dtype='float16'.*'float64', 'float32'"),
    (RandomPred(seed=None), TypeError, 'seed=None'), (Pop(item_key='x'), ValueError, "no column 'x'"),
    (ItemKNN(session_key='x'), ValueError, "no column 'x'"),
    (SKNN(k=0), ValueError, 'k=0'), (VSKNN(sample_size=1.5), TypeError, 'sample_size=1.5'),
    (SKNN(time_key='x'), ValueError, "no column 'x'"), (Markov(session_key='x'), ValueError, "no column 'x'"),
    (Pop(support_by_key='x'), ValueError, "no column 'x'"),
    (VSKNN(weighting='cube'), ValueError, "weighting='cube': must be one of 'same', 'div'"),
    (VSKNN(weighting_score='cube'), ValueError, "weighting_score='cube': must be one of 'same', 'div'"),
    (VSKNN(similarity='jaccard'), ValueError, "similarity='jaccard': must be one of 'cosine', 'vec'"),
    (VSKNN(idf_weighting=-1), ValueError, 'idf_weighting=-1: must be a finite number of at least 0'),
    (STAN(lambda_spw=0), ValueError, 'lambda_spw=0: must be a finite number above 0'),
    (STAN(lambda_snh='5'), TypeError, "lambda_snh='5': must be a finite number above 0"),
    (VSTAN(lambda_ipw=-1), ValueError, 'lambda_ipw=-1'), (VSTAN(lambda_idf=np.nan), ValueError, 'lambda_idf=nan')])
def test_fit_names_the_argument_that_is_wrong(model, error, message):
    with pytest.raises(error, match=message):
        model.fit(TINY)


@every_baseline
def test_fit_refuses_a_log_without_events_or_with_missing_items(make):
    with pytest.raises(ValueError, match='no events'):
        make().fit(TINY[:0])
    with pytest.raises(ValueError, match='missing values'):
        make().fit(TINY.assign(ItemId=TINY.ItemId.where(TINY.ItemId != B)))


@pytest.mark.parametrize('offsets, first, last, error, message', [
    ([0, 1], 0, 1, ValueError, 'offsets='), ([1, 2], 0, 1, ValueError, 'offsets='),
    ([0, 0, 2], 0, 1, ValueError, 'offsets='), ([], 0, 1, TypeError, 'offsets='),
    ([0.0, 2.0], 0, 1, TypeError, 'offsets='), ([0, 2], -1, 1, ValueError, 'first='),
    ([0, 2], 1, 0, ValueError, 'first='), ([0, 2], 0, 2, ValueError, 'first=')])
def test_sessions_and_predictions_must_be_those_of_the_events(offsets, first, last, error, message):
    with pytest.raises(error, match=message):
        Pop().fit(TINY).score_block([A, B], offsets, first, last)
