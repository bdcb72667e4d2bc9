"""Recommendations for one session, for several, and click by click."""
import copy

import numpy as np
import pytest
from common import click_log, few_items_log, small_model
from numpy.testing import assert_allclose, assert_array_equal

LOG = few_items_log(n_sessions=60, n_items=30)


@pytest.fixture(scope='module', params=['top1', 'cross-entropy'])
def model(request):
    return small_model(layers=[6, 5], n_epochs=5, learning_rate=0.1, loss=request.param).fit(LOG)


def predicted(model, items):
    """Scores of all items after the session's last event, as `predict_next_batch` gives them; a Series by item."""
    for item in items:
        scores = model.predict_next_batch([str(items)], [item], None, 1)
    return scores[0]


@pytest.mark.parametrize('session', [[10], [10, 20, 10], [290, 0, 50, 60, 70, 80]])
def test_the_best_items_of_a_session_are_those_with_the_highest_predicted_scores(model, session):
    frame = model.recommend(session, k=7)
    best = predicted(model, session).sort_values(ascending=False, kind='stable')[:7]
    assert list(frame.columns) == ['ItemId', 'Score']
    assert_array_equal(frame.ItemId, best.index)
    assert_allclose(frame.Score, best, rtol=1e-6)


def test_several_sessions_get_the_answers_of_each(model):
    sessions = [[10, 20], np.array([50]), (60, 70, 80)]
    frame = model.recommend(sessions, k=4)
    assert frame.Session.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for number, session in enumerate(sessions):
        alone = model.recommend(list(session), k=4)
        assert_array_equal(frame[frame.Session == number][['ItemId', 'Score']].to_numpy(), alone.to_numpy())


def test_click_by_click_gives_the_same_answers(model):
    session = model.session()
    for n in range(1, 5):
        clicked = session.click([40, 30, 40, 20][n - 1], k=5, exclude_seen=True)
        assert clicked.equals(model.recommend([40, 30, 40, 20][:n], k=5, exclude_seen=True))


def test_a_copy_of_a_session_goes_its_own_way(model):
    session = model.session()
    session.click(40)
    other = copy.copy(session)
    other.click(30)
    assert session.recommend(5, exclude_seen=True).equals(model.recommend([40], k=5, exclude_seen=True))
    assert other.recommend(5, exclude_seen=True).equals(model.recommend([40, 30], k=5, exclude_seen=True))


def test_seen_items_are_left_out_when_asked_for(model):
    session = model.recommend([10], k=3).ItemId.tolist()
    everything, rest = (model.recommend(session, k=100, exclude_seen=excluded) for excluded in (False, True))
    assert len(everything) == model.n_items and len(rest) == model.n_items - 3
    assert rest.ItemId.tolist() == [item for item in everything.ItemId if item not in session]
    assert model.recommend(session, k=2, exclude_seen=True).equals(rest[:2])
    unseen = model.recommend(model.items_[4:], k=4, exclude_seen=True)  # though most of the best were seen
    assert sorted(unseen.ItemId) == sorted(model.items_[:4])


def test_unknown_items_are_skipped_with_a_warning_that_names_them(model):
    with pytest.warns(UserWarning, match=r'not in the training data: 7, 8') as caught:
        frame = model.recommend([10, 7, 20, 8], k=5)
    assert len(caught) == 1
    assert frame.equals(model.recommend([10, 20], k=5))


@pytest.mark.parametrize('session', [[], [7], ['a', 'b']])
def test_a_session_without_known_items_gets_the_most_popular_ones_and_says_so(model, session):
    with pytest.warns(UserWarning, match='these are the most popular ones'):
        frame = model.recommend(session, k=4)
    counts = LOG.ItemId.value_counts()
    assert_allclose(frame.Score, counts[frame.ItemId] / len(LOG))
    assert frame.Score.tolist() == sorted(counts / len(LOG), reverse=True)[:4]


def test_items_with_equal_scores_come_in_the_order_of_their_indices():
    model = small_model().fit(click_log(*[[k, k + 1] for k in range(0, 20, 2)]))  # each item once
    with pytest.warns(UserWarning, match='most popular'):
        assert model.recommend([], k=3).ItemId.tolist() == model.items_[:3].tolist()


@pytest.mark.parametrize('k', [0, -1, 2.5, None])
def test_a_number_of_items_that_is_none_is_an_error(model, k):
    error = ValueError if isinstance(k, int) else TypeError
    with pytest.raises(error, match='k=.*: must be a whole number of at least 1'):
        model.recommend([10], k=k)


def test_recommending_leaves_the_state_of_predict_next_batch_alone(model):
    first = model.predict_next_batch(['a'], [10], None, 1)
    model.recommend([20, 30])
    second = model.predict_next_batch(['a'], [20], None, 1)
    assert_allclose(second[0].nlargest(5), model.recommend([10, 20], k=5).Score, rtol=1e-6)
    assert not np.allclose(first, second)


def test_a_click_with_a_wrong_number_of_items_does_not_count(model):
    visit, other = model.session(), model.session()
    with pytest.raises(ValueError, match='k=0'):
        visit.click(10, k=0)
    assert visit.click(10, k=3).equals(other.click(10, k=3))
    assert visit.click(20, k=3).equals(other.click(20, k=3))


@pytest.mark.parametrize('call', [
    lambda model: model.recommend(['nothing']), lambda model: model.session().click('nothing'),
    lambda model: model.session().recommend()], ids=['recommend', 'click', 'session'])
def test_warnings_are_of_the_line_that_asked(model, call):
    with pytest.warns(UserWarning) as caught:
        call(model)
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_an_error_and_no_empty_list(value):
    model = small_model(final_act='linear', loss='bpr').fit(LOG)
    weights = model.variables_.weights['By']
    weights.set_value(np.where(np.arange(model.n_items) == 2, np.float32(value), weights.get_value()))
    for recommend in (lambda: model.recommend([10], k=3), lambda: model.session().click(10)):
        with pytest.raises(ValueError, match=f'^1 of {model.n_items} scores are not numbers'):
            recommend()
