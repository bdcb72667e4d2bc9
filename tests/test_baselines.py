"""The baselines against recorded runs of the release, counts made by hand, direct loops, and dense scores."""
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

import baselines
from baselines import (
    BPR,
    SKNN,
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

GOLDEN = Path(__file__).parent / 'golden'
TRAIN, TEST = (pd.read_csv(GOLDEN / name, sep='\t') for name in ('train.tsv', 'test.tsv'))
with np.load(GOLDEN / 'baselines.npz') as archive:
    RECORDED = dict(archive)

A, B, C, D = 10, 20, 30, 40


def log_of(*sessions):
    """A click log with one event a second, session by session."""
    pairs = [(number, item) for number, session in enumerate(sessions, start=1) for item in session]
    log = pd.DataFrame(pairs, columns=['SessionId', 'ItemId'])
    return log.assign(Time=np.arange(len(log)))


TINY = log_of([A, B, A], [B, C], [A, C, B], [D])  # events: A 3, B 3, C 2, D 1; sessions: A 2, B 3, C 2, D 1


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


def counted(scores, targets, candidates):
    """Greater and equal scores by comparing every ranked item with the target."""
    greater, equal = [], []
    for row, target in zip(scores, targets, strict=True):
        others = [item for item in row.index if item != target and (candidates is None or item in candidates)]
        greater.append(sum(row[item] > row[target] for item in others))
        equal.append(sum(row[item] == row[target] for item in others))
    return greater, equal


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

def test_bpr_learns_the_vectors_of_the_release():
    model = recorded_bpr()
    assert_array_equal(model.items_, RECORDED['bpr_mf/item_ids'])
    assert_array_equal(TRAIN.SessionId.unique(), RECORDED['bpr_mf/session_ids'])
    assert not RECORDED['bpr_mf/bI'].any()  # biases that the release never learns: ours has none
    assert_allclose(model.session_factors_, RECORDED['bpr_mf/U'], rtol=0, atol=1e-12)
    assert_allclose(model.item_factors_, RECORDED['bpr_mf/I'], rtol=0, atol=1e-12)
    assert_allclose(model.epoch_losses_, RECORDED['bpr_mf/losses'], rtol=1e-12)


def test_bpr_in_float32_learns_the_same_vectors_up_to_rounding():
    model = recorded_bpr(dtype='float32')
    assert model.session_factors_.dtype == model.item_factors_.dtype == np.float32
    assert_allclose(model.session_factors_, RECORDED['bpr_mf/U'], rtol=0, atol=1e-7)
    assert_allclose(model.item_factors_, RECORDED['bpr_mf/I'], rtol=0, atol=1e-7)


@pytest.mark.parametrize('top_n', [1, 7, 20, 59, 100])
def test_pop_keeps_the_items_that_old_pandas_leaves_among_equals(top_n):
    model = Pop(top_n=top_n).fit(TRAIN)
    assert set(model.items_[model.popularity_ > 0]) == set(RECORDED['pop/train_order'][:top_n])


@pytest.mark.parametrize('top_n', [1, 100, 1000, 1500, 1999])
def test_pop_keeps_the_items_that_old_pandas_leaves_among_two_thousand(top_n):
    clicks = 1 + np.arange(2000) * 7919 % 13
    log = pd.DataFrame({'ItemId': np.repeat(np.arange(2000), clicks)}).sample(frac=1, random_state=1)
    model = Pop(top_n=top_n).fit(log)
    assert set(model.items_[model.popularity_ > 0]) == set(RECORDED['pop/order'][:top_n])


def recorded_bpr(**options):
    return BPR(n_factors=10, n_iterations=3, learning_rate=0.05, **options).fit(TRAIN)


def popularity(top_n):
    """supp / (supp + 1) of the items that old pandas puts first."""
    kept = RECORDED['pop/train_order'][:top_n]
    return {item: n / (n + 1) for item, n in TRAIN.ItemId.value_counts().items() if item in kept}


def release_pop(prefix, candidate):
    return popularity(10).get(candidate, 0)


def release_session_pop(prefix, candidate):
    return popularity(10).get(candidate, 0) + prefix.count(candidate)


def release_item_knn(prefix, candidate, lmbd=20, alpha=0.5):
    """Events of the last item in sessions with the candidate, over the regularised supports."""
    item = prefix[-1]
    with_candidate = TRAIN.SessionId[TRAIN.ItemId == candidate].unique()
    together = ((TRAIN.ItemId == item) & TRAIN.SessionId.isin(with_candidate)).sum()
    n, m = ((TRAIN.ItemId == one).sum() for one in (item, candidate))
    return (item != candidate) * together / ((n + lmbd) ** alpha * (m + lmbd) ** (1 - alpha))


@pytest.mark.parametrize('make, formula', [
    (lambda: Pop(top_n=10).fit(TRAIN), release_pop),
    (lambda: SessionPop(top_n=10).fit(TRAIN), release_session_pop),
    (lambda: ItemKNN().fit(TRAIN), release_item_knn),
    (lambda: CoOccurence(alpha=0.3).fit(TRAIN), lambda *pair: release_item_knn(*pair, alpha=0.3)),
    (lambda: Cosine(lmbd=3).fit(TRAIN), lambda *pair: release_item_knn(*pair, lmbd=3)),
    (recorded_bpr, None)], ids=['POP', 'S-POP', 'Item-KNN', 'CoOccurence', 'Cosine', 'BPR-MF'])
def test_every_baseline_scores_every_item_as_the_release_does(make, formula):
    """After each prefix of the test log; BPR-MF against recorded scores, the others against the release's formulas."""
    model = make()
    events = TEST.sort_values(['SessionId', 'Time'], kind='stable')
    offsets = np.append(0, events.groupby('SessionId').size().cumsum())
    scores = model.score_block(events.ItemId, offsets, 0, 112)
    if formula is None:
        expected = RECORDED['bpr_mf/scores']
        rows = np.arange(112)
    else:
        prefixes = [events.ItemId[start:k].tolist() for start, end in zip(offsets[:-1], offsets[1:], strict=True)
                    for k in range(start + 1, end)]
        rows = np.arange(0, 112, 16)
        expected = np.array([[formula(prefixes[row], item) for item in model.items_] for row in rows])
    assert_allclose(scores[rows], expected, rtol=1e-12, atol=1e-12)


# POP and S-POP

def test_pop_scores_support_over_support_plus_one():
    model = Pop()
    model.fit(TINY)
    assert_allclose(model.predict_next(1, A, [A, B, C, D]), [3 / 4, 3 / 4, 2 / 3, 1 / 2])


def test_pop_scores_zero_below_the_top_n_and_of_equals_keeps_the_same_whatever_the_order_of_rows():
    assert_allclose(Pop(top_n=2).fit(TINY).popularity_, [3 / 4, 3 / 4, 0, 0])
    for log in (TINY, TINY[::-1]):  # A and B have three events each
        model = Pop(top_n=1).fit(log)
        assert_allclose(model.predict_next(1, A, [A, B, C, D]), [0, 3 / 4, 0, 0])


def test_pop_can_count_distinct_sessions_instead_of_events():
    model = Pop(top_n=3, support_by_key='SessionId').fit(TINY)
    assert_allclose(model.predict_next(1, D, [A, B, C, D]), [2 / 3, 3 / 4, 2 / 3, 0])


def test_session_pop_adds_the_clicks_of_the_session_to_global_popularity():
    model = SessionPop().fit(TINY)
    assert_allclose(model.predict_next('x', A, [A, B, C, D]), [1 + 3 / 4, 3 / 4, 2 / 3, 1 / 2])
    assert_allclose(model.predict_next('x', B, [A, B, C, D]), [1 + 3 / 4, 1 + 3 / 4, 2 / 3, 1 / 2])
    assert_allclose(model.predict_next('x', A, [D, C, B, A]), [1 / 2, 2 / 3, 1 + 3 / 4, 2 + 3 / 4])


def test_session_pop_counts_items_below_the_top_n_too():
    model = SessionPop(top_n=2).fit(TINY)
    assert_allclose(model.predict_next(1, D, [A, B, C, D]), [3 / 4, 3 / 4, 0, 1])


def test_session_pop_forgets_the_session_when_the_session_id_changes():
    model = SessionPop().fit(TINY)
    model.predict_next(1, A, [A])
    assert_allclose(model.predict_next(2, C, [A, C]), [3 / 4, 1 + 2 / 3])
    assert_allclose(model.predict_next(1, B, [A, B]), [3 / 4, 1 + 3 / 4])


def test_personal_pop_is_session_pop():
    assert PersonalPop is SessionPop and PersonalPop().top_n == 1000 and Pop().top_n == 100


# Item-KNN

def test_item_knn_counts_events_of_the_item_in_sessions_that_contain_the_other():
    model = ItemKNN(lmbd=0).fit(TINY)
    root = np.sqrt(6)
    expected = [[0, 3 / 3, 1 / root, 0],   # A: twice with B in session 1, once with B and C in session 3
                [2 / 3, 0, 2 / root, 0],   # B: once in each session, A's repeat in session 1 does not count
                [1 / root, 2 / root, 0, 0],
                [0, 0, 0, 0]]
    for item, row in zip([A, B, C, D], expected, strict=True):
        assert_allclose(model.predict_next(1, item, [A, B, C, D]), row)


def test_item_knn_scores_by_the_last_item_only():
    model = ItemKNN(lmbd=0).fit(TINY)
    model.predict_next(1, B, [A])
    assert_allclose(model.predict_next(1, C, [A, B, C, D]), [1 / np.sqrt(6), 2 / np.sqrt(6), 0, 0])


def test_item_knn_regularises_both_supports_with_exponents_alpha_and_one_minus_alpha():
    scores = ItemKNN(lmbd=20, alpha=0.75).fit(TINY).predict_next(1, A, [B, C])
    assert_allclose(scores, [3 / 23, 1 / (23 ** 0.75 * 22 ** 0.25)])


def test_item_knn_keeps_the_largest_similarities_and_at_a_tie_the_item_that_appeared_first():
    log = log_of([A, B], [A, C], [A, D], [A, D])
    assert_array_equal(ItemKNN(n_sims=2, lmbd=0, alpha=1).fit(log).similarities_.toarray()[0], [0, 1 / 4, 0, 2 / 4])


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
    if not options.keys() & {'seq_only', 'later_only', 'normalize'}:
        assert_array_equal(ItemKNN(**options).fit(log).similarities_.toarray(), model.similarities_.toarray())


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


def test_cooccurence_is_that_worked_out_by_hand():
    model = CoOccurence(lmbd=0, normalize=False, later_only=True).fit(TINY)  # [A, B, A], [B, C], [A, C, B], [D]
    assert_array_equal(model.predict_next(1, A, [A, B, C, D]), [0, 2, 1, 0])
    assert_array_equal(model.predict_next(1, B, [A, B, C, D]), [1, 0, 1, 0])
    model = CoOccurence(lmbd=0, normalize=False, seq_only=True).fit(TINY)
    assert_array_equal(model.predict_next(1, A, [A, B, C, D]), [0, 1, 1, 0])
    assert_array_equal(model.predict_next(1, C, [A, B, C, D]), [0, 1, 0, 0])


def test_cooccurence_and_cosine_are_item_knn_by_default():
    log = random_log(14)
    expected = ItemKNN().fit(log).similarities_.toarray()
    in_order = CoOccurence(100, 20, 0.5, True, False, False, 'SessionId', 'ItemId', 'Time', False)
    for model in (CoOccurence(), Cosine(), in_order):
        assert_array_equal(model.fit(log).similarities_.toarray(), expected)
    assert_array_equal(Cosine(3, 2).fit(log).similarities_.toarray(), ItemKNN(3, 2).fit(log).similarities_.toarray())


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


# Markov chain

def test_a_markov_chain_scores_the_shares_of_what_came_next():
    model = Markov().fit(TINY)  # [A, B, A], [B, C], [A, C, B], [D]
    for item, shares in ((A, [0, 1 / 2, 1 / 2, 0]), (B, [1 / 2, 0, 1 / 2, 0]), (C, [0, 1, 0, 0]), (D, [0, 0, 0, 0])):
        assert_array_equal(model.predict_next(1, item, [A, B, C, D]), shares)


def test_a_markov_chain_equals_a_direct_loop_over_pairs_of_events():
    log = random_log(18)
    model = Markov().fit(log)
    sessions = [frame.ItemId.tolist() for _session, frame in log.sort_values('Time').groupby('SessionId')]
    for item in model.items_:
        after = [j for session in sessions for i, j in zip(session, session[1:]) if i == item]
        assert_allclose(model.predict_next(1, item, model.items_),
                        [after.count(j) / max(len(after), 1) for j in model.items_], rtol=1e-15)


# Session kNN

def followed_once(model, *items):
    """Scores of A, B, C and D after the events of a session."""
    for item in items:
        scores = model.predict_next(str(items), item, [A, B, C, D])
    return scores.to_numpy()


def test_s_knn_sums_the_cosines_of_the_sessions_that_contain_an_item():
    model = SKNN().fit(TINY)  # {A, B}, {B, C}, {A, B, C}, {D}
    assert_allclose(followed_once(model, A), [2 ** -0.5 + 3 ** -0.5, 2 ** -0.5 + 3 ** -0.5, 3 ** -0.5, 0], rtol=1e-15)
    last = 2 / 6 ** 0.5  # of {A, B, C} to {A, B}; of {A, B} it is 1, of {B, C} 1/2
    assert_allclose(followed_once(model, A, B), [1 + last, 1.5 + last, 0.5 + last, 0], rtol=1e-15)
    assert_allclose(followed_once(model, B, A, A, B), [1 + last, 1.5 + last, 0.5 + last, 0], rtol=1e-15)
    assert_allclose(followed_once(model, D), [0, 0, 0, 1])


def test_v_sknn_weighs_items_by_the_position_of_their_last_click():
    model = VSKNN().fit(TINY)
    # A counts 1/2 and B 1: {A, B} has 3/2, {B, C} 1, {A, B, C} 3/2
    assert_allclose(followed_once(model, A, B), [3, 4, 2.5, 0], rtol=1e-15)
    # A counts 1 and B 2/3: 5/3, 2/3, 5/3
    assert_allclose(followed_once(model, A, B, A), [10 / 3, 4, 7 / 3, 0], rtol=1e-15)


@pytest.mark.parametrize('model', [SKNN, VSKNN])
def test_session_knn_looks_among_the_most_recent_sessions_with_one_of_the_items(model):
    recent = log_of([A, B], [A, C], [D, C], [A, D])
    assert (followed_once(model(sample_size=1).fit(recent), A) > 0).tolist() == [True, False, False, True]
    assert (followed_once(model(sample_size=2).fit(recent), A) > 0).tolist() == [True, False, True, True]
    first_is_last = recent.assign(Time=np.where(np.arange(8) == 0, 99, recent.Time))
    assert (followed_once(model(sample_size=1).fit(first_is_last), A) > 0).tolist() == [True, True, False, False]
    equal = recent.assign(Time=0)
    assert (followed_once(model(sample_size=1).fit(equal), A) > 0).tolist() == [True, False, False, True]


@pytest.mark.parametrize('model', [SKNN, VSKNN])
def test_session_knn_takes_the_most_similar_and_of_equally_similar_sessions_the_more_recent(model):
    log = log_of([A, B], [A, C], [A, D])
    assert (followed_once(model(k=1).fit(log), A) > 0).tolist() == [True, False, False, True]
    assert (followed_once(model(k=1).fit(log), C, A) > 0).tolist() == [True, False, True, False]


def session_knn_loop(log, prefix, items, k, sample_size, by_position):
    """Scores of `items`, written without a look at those of the package."""
    sessions = [(frame.Time.max(), number, set(frame.ItemId))
                for number, (_session, frame) in enumerate(log.groupby('SessionId', sort=False))]
    sessions = sorted(sessions, key=lambda session: session[:2], reverse=True)
    near = []
    for _last, _number, others in [session for session in sessions if session[2] & set(prefix)][:sample_size]:
        shared = others & set(prefix)
        if by_position:
            similarity = sum(len(prefix) - prefix[::-1].index(item) for item in shared) / len(prefix)
        else:
            similarity = len(shared) / np.sqrt(len(set(prefix)) * len(others))
        near.append((similarity, others))
    near = sorted(near, key=lambda pair: -pair[0])[:k]
    return [sum(similarity for similarity, others in near if item in others) for item in items]


@pytest.mark.parametrize('k, sample_size', [
    (500, 1000), (3, 6), *[pytest.param(*both, marks=pytest.mark.slow) for both in ((3, 1000), (500, 6), (1, 2))]])
@pytest.mark.parametrize('model', [SKNN, VSKNN])
def test_session_knn_equals_a_direct_loop_over_sessions(model, k, sample_size):
    log = random_log(19).assign(Time=lambda log: log.Time // 9)  # some sessions end at one time
    item_ids, offsets = held_out_events(log, seed=20)
    trained = model(k=k, sample_size=sample_size).fit(log)
    n = len(item_ids) - len(offsets) + 1
    prefixes = [item_ids[start:end].tolist() for start, stop in zip(offsets[:-1], offsets[1:])
                for end in range(start + 1, stop)]
    expected = [session_knn_loop(log, prefix, trained.items_, k, sample_size, model is VSKNN) for prefix in prefixes]
    assert_allclose(trained.score_block(item_ids, offsets, 0, n), expected, rtol=1e-13)


# BPR-MF

def test_bpr_step_follows_the_numerical_gradient_of_its_loss():
    rate, step = 1e-3, 1e-5
    rng = np.random.default_rng(0)
    before = [rng.normal(size=shape) for shape in [(2, 5), (3, 5)]]  # sessions and items
    after = [vectors.copy() for vectors in before]
    session, positive, negative = np.array([[1], [2], [0]], dtype=np.int32)
    baselines._bpr_epoch(session, positive, negative, *after, rate, 0.0, 0.0)

    def loss_of(sessions, items):
        return np.log1p(np.exp(-sessions[1] @ (items[2] - items[0])))

    for number, vectors in enumerate(before):
        for place in np.ndindex(vectors.shape):
            up, down = ([v.copy() for v in before] for _ in range(2))
            up[number][place] += step
            down[number][place] -= step
            slope = (loss_of(*up) - loss_of(*down)) / (2 * step)
            assert_allclose((before[number][place] - after[number][place]) / rate, slope, atol=1e-9)


@pytest.mark.parametrize('options', [
    {}, dict(init_normal=True, sigma=0.2, lambda_session=0.3, lambda_item=0.2, seed=7)])
def test_bpr_equals_a_direct_loop_over_the_events(options):
    """With the stream drawn number by number, and events ordered by pandas."""
    log = random_log(16)
    model = BPR(n_factors=4, n_iterations=2, learning_rate=0.1, **options).fit(log)
    arguments = dict(sigma=0.05, init_normal=False, lambda_session=0, lambda_item=0, seed=42) | options
    expected = bpr_loop(log, n_factors=4, n_iterations=2, rate=0.1, **arguments)
    for ours, theirs in zip([model.session_factors_, model.item_factors_], expected, strict=True):
        assert_allclose(ours, theirs, rtol=0, atol=1e-14)


def bpr_loop(log, n_factors, n_iterations, rate, sigma, init_normal, lambda_session, lambda_item, seed):
    """Vectors of sessions and items, written without a look at baselines.py's."""
    item_ids, session_ids = list(log.ItemId.unique()), list(log.SessionId.unique())
    ordered = log.assign(i=log.ItemId.map(item_ids.index), s=log.SessionId.map(session_ids.index))
    ordered = ordered.sort_values('i', kind='stable')
    seen = list(ordered.s.unique())
    ordered = ordered.assign(seen=ordered.s.map(seen.index)).sort_values('seen', kind='stable')
    events = list(zip(ordered.s, ordered.i, strict=True))
    stream = np.random.RandomState(seed)
    U, V = ([[stream.randn() * sigma if init_normal else stream.rand() * 2 * sigma - sigma for _ in range(n_factors)]
             for _ in rows] for rows in (session_ids, item_ids))
    U, V = np.array(U), np.array(V)
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
    log = log_of(*[[A, B]] * 2**16)  # more sessions than are drawn at once
    factors = BPR(n_factors=2, n_iterations=1, learning_rate=0).fit(log).session_factors_
    assert_array_equal(factors, np.random.RandomState(42).rand(2**16, 2) * 2 * 0.05 - 0.05)


def test_bpr_learns_from_a_single_item_too():
    model = BPR(n_factors=3, n_iterations=1).fit(log_of([A, A]))
    assert_allclose(model.epoch_losses_, np.log(2))  # the negative is always the item itself


def test_bpr_scores_with_the_mean_vector_of_the_session_so_far():
    model = BPR(n_factors=6, n_iterations=2).fit(TINY)
    vectors = model.item_factors_
    assert_allclose(model.predict_next(1, A, [A, B, C, D]), vectors @ vectors[0], rtol=0, atol=1e-15)
    model.predict_next(1, B, [A])
    mean = (2 * vectors[0] + vectors[1]) / 3
    assert_allclose(model.predict_next(1, A, [A, B, C, D]), vectors @ mean, rtol=0, atol=1e-15)
    assert_allclose(model.predict_next(2, D, [A, B, C, D]), vectors @ vectors[3], rtol=0, atol=1e-15)


def test_bpr_loss_falls_and_items_of_one_session_attract_each_other():
    rng = np.random.default_rng(0)
    log = log_of(*[rng.choice(5, size=6) + 5 * (s % 2) for s in range(100)])  # items 0-4, or items 5-9
    model = BPR(n_factors=8, n_iterations=30, learning_rate=0.1).fit(log)
    assert len(model.epoch_losses_) == 30
    assert model.epoch_losses_[0] > 0.5 and model.epoch_losses_[-1] < 0.5 * model.epoch_losses_[0]
    scores = model.predict_next(1, 2, np.arange(10))
    assert scores[:5].min() > scores[5:].max()


def test_bpr_stops_when_the_loss_is_no_longer_finite():
    with pytest.raises(ValueError, match='learning_rate=1e.20'):
        BPR(learning_rate=1e20).fit(random_log(4))


# All of them

@pytest.mark.parametrize('candidates, expected', [
    (None, ([0, 2, 3], [1, 0, 0])),      # B ties with A; A and B beat C; A, B and C beat D
    ([D], ([0, 0, 0], [0, 0, 0])),
    ([A, A, C], ([0, 1, 2], [1, 0, 0]))])
def test_tie_counts_of_pop_are_those_worked_out_by_hand(candidates, expected):
    greater, equal = Pop().fit(TINY).tie_counts([A, B, C, C, D], np.array([0, 3, 5]), candidates)
    assert greater.dtype == equal.dtype == np.int64
    assert_array_equal((greater, equal), expected)


def test_tie_counts_of_item_knn_are_those_worked_out_by_hand():
    model = ItemKNN(lmbd=0).fit(TINY)
    greater, equal = model.tie_counts([A, C, D, A, D, D], np.array([0, 3, 4, 6]))
    assert_array_equal(greater, [1, 2, 0])  # after A: B beats C; after C: A and B beat D; after D: all are 0
    assert_array_equal(equal, [0, 1, 3])


@every_baseline
@pytest.mark.parametrize('as_text, n_candidates', [
    (False, None), (True, 6), (False, 1), *[pytest.param(*both, marks=pytest.mark.slow) for both in (
        (True, None), (False, 6), (True, 1))]], ids=str)
def test_tie_counts_equal_brute_force_over_dense_scores(make, as_text, n_candidates):
    train = random_log(5, as_text=as_text)
    item_ids, offsets = held_out_events(train, seed=6, as_text=as_text)
    candidates = None if n_candidates is None else train.ItemId.to_numpy()[:n_candidates]
    model = make().fit(train)
    model._block = 7  # so that sessions are cut by the ends of blocks
    expected = counted(*followed(model, item_ids, offsets), candidates)
    assert_array_equal(model.tie_counts(item_ids, offsets, candidates), expected)


@every_baseline
def test_score_block_gives_the_numbers_of_predict_next_whatever_the_block(make):
    train = random_log(7)
    item_ids, offsets = held_out_events(train, seed=8)
    model = make().fit(train)
    expected = np.array(followed(model, item_ids, offsets)[0])
    n = len(item_ids) - len(offsets) + 1
    assert_array_equal(model.score_block(item_ids, offsets, 0, n), expected)
    assert_array_equal(model.score_block(item_ids, offsets, 3, 11), expected[3:11])
    assert model.score_block(item_ids, offsets, n, n).shape == (0, len(model.items_))


@every_baseline
def test_score_block_scores_the_candidates_in_the_order_given(make):
    model = make().fit(TINY)
    item_ids, offsets = [A, B, A, C, B], [0, 3, 5]
    every = model.score_block(item_ids, offsets, 0, 3)
    columns = [list(model.items_).index(item) for item in (C, A)]
    assert_array_equal(model.score_block(item_ids, offsets, 0, 3, [C, A]), every[:, columns])


@pytest.mark.parametrize('policy', ['standard', 'tiebreaking'])
def test_bpr_computes_no_score_of_an_item_that_is_neither_candidate_nor_target(monkeypatch, policy):
    log = log_of(*np.random.default_rng(0).integers(500, size=(300, 4)))
    model, asked = BPR(n_factors=3, n_iterations=1).fit(log), []
    dot_scores = baselines._dot_scores
    monkeypatch.setattr(baselines, '_dot_scores', lambda vectors, factors: asked.append(len(factors)) or dot_scores(
        vectors, factors))
    test, candidates = log[:40], model.items_[:10]
    ranks = next_item_ranks(model, test, candidates, tie_policy=policy)
    targets = np.delete(test.ItemId.to_numpy(), np.arange(0, 40, 4))
    assert asked == [len({*candidates, *targets})] and asked[0] < 60
    scores, _targets = followed(model, test.ItemId.to_numpy(), np.arange(0, 41, 4))
    assert_array_equal(ranks, 1 + np.array(counted(scores, targets, candidates)[0]))


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
        row = pd.Series(model.score_block(item_ids, [0, n], k, k + 1)[0], index=model.items_)
        assert_array_equal(counted([row], [item_ids[k + 1]], None), [[greater[k]], [equal[k]]])


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
    assert next_item_ranks(model, log_of([A, B], [B, C], [C, A]), tie_policy=policy).tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match='^prediction 1: the score of the next item is not a number$'):
        next_item_ranks(model, log_of([A, B], [C, B], [C, A]), tie_policy=policy)


@pytest.mark.parametrize('kind', [Given, GivenSparsely])
def test_other_items_whose_scores_are_not_numbers_are_not_greater(kind):
    model = kind([[1, np.nan, 3, 4], [1, 2, 3, np.nan], [np.nan, np.nan, 2, 1]])
    counts = model.tie_counts([A, C, A, C, B, D], [0, 2, 4, 6])
    assert_array_equal(counts, [[1, 0, 1], [0, 0, 0]])


def test_bpr_scores_keep_their_last_bit_with_many_items_and_the_default_number_of_factors():
    log = log_of(*np.random.default_rng(0).integers(1000, size=(300, 4)))
    model = BPR(n_iterations=1).fit(log)
    item_ids, offsets = log.ItemId.to_numpy()[:400], np.arange(0, 401, 4)
    assert_array_equal(model.score_block(item_ids, offsets, 0, 300), np.array(followed(model, item_ids, offsets)[0]))


@every_baseline
def test_test_sessions_of_one_event_have_nothing_to_predict(make):
    model = make().fit(TINY)
    greater, equal = model.tie_counts([A, B], np.array([0, 1, 2]))
    assert len(greater) == len(equal) == 0


@every_baseline
def test_the_same_fit_gives_the_same_bits(make):
    train = random_log(9)
    item_ids, offsets = held_out_events(train, seed=10)
    one, two = (make().fit(train).score_block(item_ids, offsets, 0, 50) for _ in range(2))
    assert_array_equal(one, two)


@pytest.mark.parametrize('baseline', [RandomPred, BPR])
def test_another_seed_gives_other_scores(baseline):
    one, two = (baseline(seed=seed).fit(TINY).predict_next(1, A, [A, B, C, D]) for seed in [1, 2])
    assert (one != two).all()


def test_random_scores_are_uniform_and_new_for_every_prediction():
    log = log_of(np.arange(1000))
    scores = RandomPred().fit(log).score_block(log.ItemId, [0, 1000], 0, 200)
    assert scores.min() >= 0 and scores.max() < 1 and len(np.unique(scores)) == scores.size
    assert scores.mean() == pytest.approx(0.5, abs=0.01) and scores.std() == pytest.approx(12 ** -0.5, abs=0.01)
    assert abs(np.corrcoef(scores[0], scores[1])[0, 1]) < 0.15


@every_baseline
def test_items_are_numbered_by_first_appearance(make):
    assert_array_equal(make().fit(log_of([C, A], [C, B])).items_, [C, A, B])


@every_baseline
def test_predictions_are_indexed_by_the_candidates_in_the_order_given(make):
    scores = make().fit(TINY).predict_next(1, A, np.array([C, A]))
    assert isinstance(scores, pd.Series) and list(scores.index) == [C, A]


@every_baseline
@pytest.mark.parametrize('call', [
    lambda model: model.predict_next(1, 777, [A]),
    lambda model: model.predict_next(1, A, [A, 777]),
    lambda model: model.tie_counts([A, 777], [0, 2]),
    lambda model: model.tie_counts([A, B], [0, 2], candidates=[777]),
    lambda model: model.score_block([A, 777], [0, 2], 0, 1)])
def test_unknown_items_raise_a_key_error_that_names_them(make, call):
    with pytest.raises(KeyError, match='777'):
        call(make().fit(TINY))


@every_baseline
def test_the_training_frame_is_not_modified(make):
    train = random_log(11)
    before = train.copy(deep=True)
    make().fit(train)
    pd.testing.assert_frame_equal(train, before)


@every_baseline
def test_a_second_fit_forgets_the_first(make):
    model = make().fit(random_log(12))
    model.predict_next(1, 100, [100])
    fresh = make().fit(TINY)
    assert_array_equal(model.fit(TINY).predict_next(1, A, [A, B, C, D]), fresh.predict_next(1, A, [A, B, C, D]))


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
    (Pop(support_by_key='x'), ValueError, "no column 'x'")])
def test_fit_names_the_argument_that_is_wrong(model, error, message):
    with pytest.raises(error, match=message):
        model.fit(TINY)


@every_baseline
def test_fit_refuses_a_log_without_events_or_with_missing_items(make):
    with pytest.raises(ValueError, match='no events'):
        make().fit(TINY[:0])
    with pytest.raises(ValueError, match='missing values'):
        make().fit(TINY.assign(ItemId=TINY.ItemId.where(TINY.ItemId != B)))


@pytest.mark.parametrize('offsets, error', [
    ([0, 1], ValueError), ([1, 2], ValueError), ([0, 0, 2], ValueError), ([], TypeError), ([0.0, 2.0], TypeError)])
def test_offsets_must_cut_the_events_into_sessions(offsets, error):
    with pytest.raises(error, match='offsets='):
        Pop().fit(TINY).tie_counts([A, B], offsets)


@pytest.mark.parametrize('first, last', [(-1, 1), (1, 0), (0, 2)])
def test_score_block_refuses_predictions_that_do_not_exist(first, last):
    with pytest.raises(ValueError, match='first='):
        Pop().fit(TINY).score_block([A, B], [0, 2], first, last)


def test_predicting_before_fit_says_so():
    with pytest.raises(RuntimeError, match='not trained yet: call fit first'):
        Pop().predict_next(1, A, [A])
