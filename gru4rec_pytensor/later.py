"""For scripts that were written for the authors' later release (2018-2023): its constructor, `fit` and `evaluate_gpu`.

    from gru4rec_pytensor.later import GRU4Rec, evaluate_gpu    # in place of gru4rec and evaluation

The network is that of `gru4rec`, with additional negatives, one matrix for input and output, and so on, as Hidasi and
Karatzoglou (CIKM 2018, arXiv 1706.03847) and later papers have it.  docs/deviations.md says what the later release does
that this does not, and why.
"""
from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter, Signature
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

import gru4rec
from evaluation import CUT_OFF, TIE_POLICIES, next_item_ranks, one_model, recall_mrr
from gru4rec_pytensor.checks import check_choice, first_few, warn
from gru4rec_pytensor.events import check_events, sorted_codes
from gru4rec_pytensor.parameters import LATER_DEFAULTS, of_later_release


class GRU4Rec(gru4rec.GRU4Rec):
    """`gru4rec.GRU4Rec` with the arguments and defaults of the later release, in its order.

    Sessions are used by their start times, events of equal times keep the frame's order, and at the end of an epoch
    lanes leave one by one.  Attributes are those of the base class: ``embedding`` None is the release's 0, and
    ``decay`` its ``adapt_params``.

    Parameters
    ----------
    loss : 'bpr-max', 'top1-max', 'cross-entropy'; 'top1' and 'bpr' are those of the 2016 release
    final_act : 'linear', 'relu', 'tanh', 'leaky-X', 'elu-X', 'selu-X-Y', and with cross-entropy 'softmax'
    embedding : width; 0 for none, 'layersize' for ``layers[0]``; ignored with `constrained_embedding`
    dropout_p_embed : without an embedding of either kind ignored, with a warning
    adapt, adapt_params : 'adagrad', None, or 'rmsprop' with ``[decay]``
    seed, backend : ours, see `gru4rec.GRU4Rec`; so is the meaning of all others
    smoothing : 0.0.  It is not taken over, nor are the loss 'xe_logit' and the rules 'adam' and 'adadelta': ValueError
    """

    __signature__ = Signature(
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=value) for name, value in LATER_DEFAULTS.items()]
        + [Parameter('seed', Parameter.KEYWORD_ONLY, default=42),
           Parameter('backend', Parameter.KEYWORD_ONLY, default='auto')])

    def __init__(self, *positional: Any, **named: Any) -> None:
        given = self.__signature__.bind(*positional, **named).arguments
        own = {name: given.pop(name) for name in ('seed', 'backend') if name in given}
        super().__init__(**of_later_release(given), **own)

    @classmethod
    def _of_arguments(cls, given: dict[str, Any]) -> GRU4Rec:
        model = cls.__new__(cls)
        gru4rec.GRU4Rec.__init__(model, **given)
        return model

    def set_params(self, **parameters: Any) -> None:
        """Change arguments, given by name as values or as text: ``set_params(layers='100/50', loss='top1-max')``.

        Text becomes of the type of the argument's default: numbers of lists are separated by '/', flags are 'True',
        '1', 'False' or '0'.  NotImplementedError names an argument that the release does not have.
        """
        unknown = parameters.keys() - LATER_DEFAULTS.keys()
        if unknown:
            raise NotImplementedError(f'{sorted(unknown)[0]!r} is no argument: those are {", ".join(LATER_DEFAULTS)}')
        current = {name: getattr(self, name, default) for name, default in LATER_DEFAULTS.items()}
        if self.adapt == 'rmsprop':
            current['adapt_params'] = [self.decay]
        changed = {name: argument_from_text(name, value) for name, value in parameters.items()}
        others = {name: getattr(self, name) for name in gru4rec.argument_names()
                  if name not in LATER_DEFAULTS and name != 'decay'}
        GRU4Rec.__init__(self, **current | changed)
        vars(self).update(others)  # which the release has no names for

    def fit(self, data: pd.DataFrame, sample_store: int = 10_000_000,  # type: ignore[override]
            store_type: str = 'gpu', **options: Any) -> GRU4Rec:
        """Train from scratch; see `gru4rec.GRU4Rec.fit`, also for the `options`.

        Parameters
        ----------
        sample_store : how many additional negatives are drawn at a time; it determines which are drawn
        store_type : 'gpu', whose random numbers are the release's.  Those of 'cpu', which the release calls its legacy,
            are not taken over: a warning says so, and the negatives are those of 'gpu', of the same distribution
        """
        check_choice('store_type', store_type, ('gpu', 'cpu'))
        if store_type == 'cpu' and self.n_sample and options.get('sampled_negatives') is None:
            warn("store_type='cpu': the negatives are drawn as for 'gpu', so that their distribution, but not their "
                 "numbers, is the release's")
        before, self.sample_store = self.sample_store, sample_store
        try:
            gru4rec.check_arguments(self)
        except (TypeError, ValueError):
            self.sample_store = before
            raise
        super().fit(data, **options)
        return self


def argument_from_text(name: str, value: Any) -> Any:
    """Return an argument's value from text, as `GRU4Rec.set_params` takes it; other values stay as they are."""
    default = LATER_DEFAULTS[name]
    if not isinstance(value, str) or isinstance(default, str) or (name, value) == ('embedding', 'layersize'):
        return None if (name, value) == ('adapt', 'None') else value
    if isinstance(default, bool):
        check_choice(name, value, ('True', '1', 'False', '0'))
        return value in ('True', '1')
    number: Any = {'layers': int, 'adapt_params': float}.get(name, type(default))
    try:
        return [*map(number, value.split('/'))] if isinstance(default, tuple) else number(value)
    except ValueError:
        kind = 'whole number' if number is int else 'number'
        wanted = f"{kind}s separated by '/'" if isinstance(default, tuple) else f'a {kind}'
        raise ValueError(f'{name}={value!r}: must be {wanted}') from None


@one_model
def evaluate_gpu(gru: gru4rec.GRU4Rec, test_data: pd.DataFrame, items: ArrayLike | None = None,
                 session_key: str = 'SessionId', item_key: str = 'ItemId', time_key: str = 'Time',
                 cut_off: int | Sequence[int] = (CUT_OFF,), batch_size: int = 100,
                 mode: str = 'standard') -> tuple[list[float], list[float]]:
    """Return Recall@N and MRR@N of a network on test sessions, as the later release's function of this name does.

    Events of items that the model does not know are left out first, so that those around them become neighbours.
    Events of a session with equal times are in the order of their item ids.

    Parameters
    ----------
    gru : a trained model, on whatever backend; a GPU is not needed
    test_data : frame of events, not modified
    items : ids of the items among which the next one is ranked, itself added; all training items when None
    cut_off : list of N, for each of which the two returned lists have a value
    batch_size, mode : as `batch_size` and `tie_policy` of `evaluation.next_item_ranks`
    """
    check_choice('mode', mode, TIE_POLICIES)
    check_events(test_data, session_key, item_key, time_key)
    known = test_data[gru.known_indices(test_data[item_key]) >= 0]
    if known.empty:
        raise ValueError(f'no item of the test data is in the training data: {first_few(test_data[item_key])}')
    ordered = known.iloc[np.argsort(sorted_codes(known[item_key]), kind='stable')]
    ranks = next_item_ranks(gru, ordered, items, batch_size, mode, session_key=session_key, item_key=item_key,
                            time_key=time_key)
    recall, mrr = recall_mrr(ranks, np.ravel(cut_off).tolist())
    return recall.tolist(), mrr.tolist()
