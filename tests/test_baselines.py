"""The baselines against counts made by hand, direct loops, and dense scores."""
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import baselines
from baselines import BPR, ItemKNN, PersonalPop, Pop, RandomPred, SessionPop

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
    'BPR': lambda: BPR(n_factors=7, n_iterations=3, learning_rate=0.1),
}
every_baseline = pytest.mark.parametrize('make', MODELS.values(), ids=MODELS.keys())


# POP and S-POP

def test_pop_scores_support_over_support_plus_one():
    model = Pop()
    model.fit(TINY)
    assert_allclose(model.predict_next(1, A, [A, B, C, D]), [3 / 4, 3 / 4, 2 / 3, 1 / 2])


def test_pop_scores_zero_below_the_top_n_and_keeps_the_item_that_appeared_first_at_the_cut():
    assert_allclose(Pop(top_n=1).fit(TINY).popularity_, [3 / 4, 0, 0, 0])
    assert_allclose(Pop(top_n=1).fit(TINY[::-1]).popularity_, [0, 3 / 4, 0, 0])  # items D, B, C, A


def test_pop_can_count_distinct_sessions_instead_of_events():
    model = Pop(top_n=2, support_by_key='SessionId').fit(TINY)
    assert_allclose(model.predict_next(1, D, [A, B, C, D]), [2 / 3, 3 / 4, 0, 0])


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


def test_item_knn_does_not_depend_on_the_order_of_rows():
    log = random_log(1).sort_values('Time')
    shuffled = log.sample(frac=1, random_state=0)
    items = log.ItemId.unique()
    one, two = ItemKNN().fit(log), ItemKNN().fit(shuffled)
    for item in items:
        assert_array_equal(one.predict_next(1, item, items), two.predict_next(1, item, items))


@pytest.mark.parametrize('n_sims, lmbd, alpha', [(3, 20, 0.5), (100, 0, 0.5), (1, 1, 0.0), (5, 2, 0.8)])
def test_item_knn_equals_a_direct_loop_over_events(n_sims, lmbd, alpha):
    log = random_log(2)
    model = ItemKNN(n_sims=n_sims, lmbd=lmbd, alpha=alpha).fit(log)
    items = log.ItemId.unique()
    support = np.array([(log.ItemId == item).sum() for item in items])
    left, right = (support + lmbd) ** alpha, (support + lmbd) ** (1 - alpha)
    for i, item in enumerate(items):
        cooc = np.zeros(len(items))
        for session in log.SessionId[log.ItemId == item]:
            cooc += np.isin(items, log.ItemId[log.SessionId == session])
        cooc[i] = 0
        similarities = cooc / (left[i] * right)
        order = sorted(range(len(items)), key=lambda j: (-similarities[j], j))
        similarities[order[n_sims:]] = 0
        assert_array_equal(model.predict_next(1, item, items), similarities)


# BPR-MF

def one_bpr_step(rates, n_factors=5):
    """Parameters before, after one step for session 1 and item 2 with negative 0, and the loss."""
    rng = np.random.default_rng(0)
    before = [rng.normal(size=shape).astype(np.float32) for shape in [(2, n_factors), (3, n_factors), 3]]
    after = [parameter.copy() for parameter in before]
    loss = baselines._bpr_epoch(np.array([1]), np.array([2]), np.array([0], dtype=np.int32), *after, *np.float32(rates))
    return before, after, loss


def test_bpr_takes_one_gradient_step_as_computed_by_hand():
    rate, lambda_session, lambda_item = 0.1, 0.3, 0.2
    (factors, items, bias), after, loss = one_bpr_step([rate, lambda_session, lambda_item])
    u, p, n = factors[1].copy(), items[2].copy(), items[0].copy()
    x = u @ (p - n) + bias[2] - bias[0]
    slope = 1 / (1 + np.exp(x))
    factors[1] += rate * (slope * (p - n) - lambda_session * u)
    items[2] += rate * (slope * u - lambda_item * p)
    items[0] += rate * (-slope * u - lambda_item * n)
    bias[2] += rate * (slope - lambda_item * bias[2])
    bias[0] += rate * (-slope - lambda_item * bias[0])
    assert_allclose(loss, np.log(1 + np.exp(-x)), rtol=1e-5)
    for ours, expected in zip(after, [factors, items, bias], strict=True):
        assert_allclose(ours, expected, atol=1e-6)


def test_bpr_step_follows_the_numerical_gradient_of_its_loss():
    rate, step = 1e-3, 1e-3
    before, after, _ = one_bpr_step([rate, 0, 0])

    def loss_of(factors, items, bias):
        return np.log1p(np.exp(-(factors[1] @ (items[2] - items[0]) + bias[2] - bias[0])))

    for number, parameter in enumerate(before):
        for place in np.ndindex(parameter.shape):
            up, down = ([p.astype(np.float64) for p in before] for _ in range(2))
            up[number][place] += step
            down[number][place] -= step
            slope = (loss_of(*up) - loss_of(*down)) / (2 * step)
            assert_allclose((before[number][place] - after[number][place]) / rate, slope, atol=1e-3)


def test_bpr_never_draws_the_positive_item_as_the_negative():
    model = BPR(n_factors=2, n_iterations=10, learning_rate=0.1, sigma=0).fit(log_of([A], [A], [A, B]))
    a, b = model.item_bias_  # with vectors of 0 only biases learn; three steps of four push A up and B down
    assert a > 0.3 and b == pytest.approx(-a)


def test_bpr_scores_with_the_mean_vector_of_the_session_so_far():
    model = BPR(n_factors=6, n_iterations=2).fit(TINY)
    vectors, bias = model.item_factors_, model.item_bias_
    assert_allclose(model.predict_next(1, A, [A, B, C, D]), vectors @ vectors[0] + bias, atol=1e-6)
    model.predict_next(1, B, [A])
    mean = (2 * vectors[0] + vectors[1]) / 3
    assert_allclose(model.predict_next(1, A, [A, B, C, D]), vectors @ mean + bias, atol=1e-6)
    assert_allclose(model.predict_next(2, D, [A, B, C, D]), vectors @ vectors[3] + bias, atol=1e-6)


def test_bpr_loss_falls_and_items_of_one_session_attract_each_other():
    rng = np.random.default_rng(0)
    log = log_of(*[rng.choice(5, size=6) + 5 * (s % 2) for s in range(100)])  # items 0-4, or items 5-9
    model = BPR(n_factors=8, n_iterations=30, learning_rate=0.1).fit(log)
    assert len(model.epoch_losses_) == 30
    assert model.epoch_losses_[0] > 0.5 and model.epoch_losses_[-1] < 0.5 * model.epoch_losses_[0]
    scores = model.predict_next(1, 2, np.arange(10))
    assert scores[:5].min() > scores[5:].max()


def test_bpr_regularisation_shrinks_the_item_vectors():
    def norm(**options):
        return np.linalg.norm(BPR(n_factors=8, learning_rate=0.1, **options).fit(random_log(3)).item_factors_)
    assert norm(lambda_item=1.0) < 0.5 * norm()
    assert norm(lambda_session=1.0) < norm()


def test_bpr_starts_uniform_within_sigma_or_normal_with_deviation_sigma():
    log = log_of(np.arange(500))
    uniform, normal = (BPR(sigma=0.2, init_normal=flag, learning_rate=0, n_iterations=1).fit(log).item_factors_
                       for flag in [False, True])
    assert uniform.min() == pytest.approx(-0.2, abs=1e-3) and uniform.max() == pytest.approx(0.2, abs=1e-3)
    assert normal.std() == pytest.approx(0.2, rel=0.02) and abs(normal).max() > 0.5


def test_bpr_stops_when_the_loss_is_no_longer_finite():
    with pytest.raises(ValueError, match='learning_rate=1e.20'):
        BPR(learning_rate=1e20).fit(random_log(4))


def test_bpr_needs_two_items():
    with pytest.raises(ValueError, match='two or more items'):
        BPR().fit(log_of([A, A]))


# All of them

@pytest.mark.parametrize('candidates, expected', [
    (None, ([0, 2, 3], [1, 0, 0])),      # B ties with A; A and B beat C; A, B and C beat D
    ([D], ([0, 0, 0], [0, 0, 0])),
    ([A, A, C], ([0, 1, 2], [1, 0, 0]))])
def test_tie_counts_of_pop_by_hand(candidates, expected):
    greater, equal = Pop().fit(TINY).tie_counts([A, B, C, C, D], np.array([0, 3, 5]), candidates)
    assert greater.dtype == equal.dtype == np.int64
    assert_array_equal((greater, equal), expected)


def test_tie_counts_of_item_knn_by_hand():
    model = ItemKNN(lmbd=0).fit(TINY)
    greater, equal = model.tie_counts([A, C, D, A, D, D], np.array([0, 3, 4, 6]))
    assert_array_equal(greater, [1, 2, 0])  # after A: B beats C; after C: A and B beat D; after D: all are 0
    assert_array_equal(equal, [0, 1, 3])


@every_baseline
@pytest.mark.parametrize('as_text', [False, True], ids=['integer ids', 'string ids'])
@pytest.mark.parametrize('n_candidates', [None, 1, 6])
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
    (BPR(seed=-1), ValueError, 'seed=-1'), (RandomPred(seed=None), TypeError, 'seed=None'),
    (Pop(item_key='x'), KeyError, "item_key='x'"), (ItemKNN(session_key='x'), KeyError, "session_key='x'"),
    (Pop(support_by_key='x'), KeyError, "support_by_key='x'")])
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
    with pytest.raises(ValueError, match='before fit'):
        Pop().predict_next(1, A, [A])
