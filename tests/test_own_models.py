"""Models that the evaluation knows by their methods only: those of rn5l/session-rec, and mistakes in one's own."""
import numpy as np
import pandas as pd
import pytest
from common import TEST, TRAIN, click_log

import baselines
import evaluation
from evaluation import next_item_ranks

FEW = TEST[TEST.SessionId.isin(TEST.SessionId.unique()[:30])]


class OfSessionRec:
    """What the models of session-rec have in common: the signature of `predict_next`, and no `items_`."""

    def predict_next(self, session_id, input_item_id, predict_for_item_ids, skip=False, mode_type='view', timestamp=0):
        assert timestamp > 0 and mode_type == 'view' and not skip
        if session_id != getattr(self, 'session', None):
            self.session, self.session_items = session_id, []
        self.session_items.append(input_item_id)
        scores = self.scores()
        predictions = np.zeros(len(predict_for_item_ids))
        mask = np.isin(predict_for_item_ids, list(scores))
        predictions[mask] = [scores[item] for item in predict_for_item_ids[mask]]
        return pd.Series(data=predictions, index=predict_for_item_ids)


class ContextKNN(OfSessionRec):
    def __init__(self, k, sample_size=1000, session_key='SessionId', item_key='ItemId', time_key='Time'):
        self.k, self.sample_size = k, sample_size

    def fit(self, train, test=None, items=None):
        self.sessions = [set(frame.ItemId) for _id, frame in train.groupby('SessionId')]

    def scores(self):
        own, found = set(self.session_items), {}
        for session in self.sessions:
            for item in session if own & session else ():
                found[item] = found.get(item, 0) + len(own & session) / np.sqrt(len(own) * len(session))
        return found


class MarkovModel(OfSessionRec):
    def __init__(self, pruning=20, session_key='SessionId', item_key='ItemId', time_key='Time'):
        self.steps = 1

    def fit(self, train, test=None):
        self.rules = {}
        for _id, frame in train.sort_values(['SessionId', 'Time'], kind='stable').groupby('SessionId'):
            items = frame.ItemId.tolist()
            for last, item in enumerate(items):
                for step in range(1, min(self.steps, last) + 1):
                    following = self.rules.setdefault(items[last - step], {})
                    following[item] = following.get(item, 0) + 1 / step

    def scores(self):
        return self.rules.get(self.session_items[-1], {})


class SequentialRules(MarkovModel):
    def __init__(self, steps=10, weighting='div', pruning=20.0, session_key='SessionId', item_key='ItemId',
                 time_key='Time'):
        self.steps = steps


@pytest.mark.parametrize('theirs, ours', [
    (ContextKNN(1000), baselines.SKNN(10_000, 10_000)), (MarkovModel(), baselines.Markov()),
    (SequentialRules(steps=1), baselines.Markov()), (SequentialRules(), None)])
def test_models_of_session_rec_are_evaluated_as_they_are(theirs, ours):
    theirs.fit(TRAIN)
    for policy in ('tiebreaking', 'conservative'):
        metrics = evaluation.evaluate_sessions(theirs, FEW, TRAIN, tie_policy=policy)
        if ours:
            assert metrics == evaluation.evaluate_sessions(ours.fit(TRAIN), FEW, TRAIN, tie_policy=policy)
        assert 0.2 < metrics[0] < 1 and metrics[1] > 0


class Scores:
    """A model that gives the same answer whatever it is asked."""

    def __init__(self, answer, method='predict_next'):
        setattr(self, method, lambda *arguments: answer)


def test_attributes_of_a_model_may_have_the_names_of_methods_of_ours():
    log, scores = click_log('ab', 'ba', 'ac'), pd.Series([0.5, 2.0, -1.0, 1.0], list('abcd'))
    plain, named = Scores(scores), Scores(scores)
    named.blocks, named.item_indices, named.tie_counts = ['attention'], {'a': 0}, None
    for policy in evaluation.TIE_POLICIES:
        ranks = [next_item_ranks(model, log, list('abcd'), tie_policy=policy).tolist() for model in (plain, named)]
        assert ranks[0] == ranks[1]


def test_nan_counts_as_zero_in_the_release_s_function_for_baselines_only():
    log, train = click_log('ab', 'ba', 'ac'), click_log('abcd')
    some, zero = (Scores(pd.Series([0.5, value, -1.0, value], list('abcd'))) for value in (np.nan, 0.0))
    for policy in evaluation.TIE_POLICIES:
        assert evaluation.evaluate_sessions(some, log, train, cut_off=[1, 2, 3, 4], tie_policy=policy)[1].tolist() == (
            evaluation.evaluate_sessions(zero, log, train, cut_off=[1, 2, 3, 4], tie_policy=policy)[1].tolist())
    with pytest.raises(ValueError, match="prediction 0: Scores scores 'b', 'd' with NaN"):
        next_item_ranks(some, log, list('abcd'))


def test_the_time_of_each_event_is_handed_over_where_predict_next_takes_it():
    class Clock:
        def predict_next(self, session_id, input_item_id, predict_for_item_ids, *, timestamp):
            seen.append(timestamp)
            return pd.Series(1.0, predict_for_item_ids)

    seen, log = [], click_log('abc', 'ba').assign(Time=[5, 9, 11, 2, 4])
    for times in (log.Time, pd.to_datetime(log.Time, unit='s')):
        seen.clear()
        next_item_ranks(Clock(), log.assign(Time=times), list('abc'))
        assert seen == [times[0], times[1], times[3]]


@pytest.mark.parametrize('model, error, message', [
    (Scores([1, 2]), ValueError, 'Scores.predict_next returned a list: it must be a Series of pandas'),
    (Scores(pd.Series([1.0], ['b']), 'predict_next_batch'), ValueError,
     'Scores.predict_next_batch returned a Series: it must be a DataFrame of pandas, indexed by item ids'),
    (Scores(pd.Series([1.0, 2], ['b', 'a'])), ValueError, "prediction 0: the scores of Scores lack 'c', 'd'")])
def test_an_answer_of_another_form_is_an_error_that_names_the_model(model, error, message):
    with pytest.raises(error, match=message):
        next_item_ranks(model, click_log('ab'), list('abcd'))
