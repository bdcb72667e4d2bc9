"""The paper's two data sets: the protocol for each, the parameters that it found, and the numbers that it reports.

Other modules take names of models and losses from here, and new baselines and losses go here (see CONTRIBUTING.md).
"""
from __future__ import annotations

from typing import NamedTuple

import baselines
import preprocess_rsc15
from gru4rec_pytensor import synthetic
from gru4rec_pytensor.events import MAX_SESSION_LENGTH

VIDEO_ITEMS, VIDEO_CANDIDATES = 330_000, 30_000  # the next item is ranked among the most popular, the candidates
REVISION = 2  # of the models: raised when the same arguments give other numbers, so that these are computed again
NETWORK = 'GRU4Rec'  # the model of Tables 2 and 3; the baselines are those of Table 1
LOSS_NAMES = {'top1': 'TOP1', 'bpr': 'BPR', 'cross-entropy': 'Cross-entropy', 'mrr': 'MRR'}

BASELINES: dict[str, tuple[type, dict]] = {
    'POP': (baselines.Pop, dict(top_n=100)),
    'S-POP': (baselines.SessionPop, dict(top_n=1000)),
    'Item-KNN': (baselines.ItemKNN, dict(n_sims=100, lmbd=20, alpha=0.5)),
    'BPR-MF': (baselines.BPR, dict(n_factors=100, n_iterations=10, learning_rate=0.01)),
    'Markov': (baselines.Markov, {}),  # from here on, those of later papers, which run on demand
    'S-KNN': (baselines.SKNN, dict(k=500, sample_size=1000)),
    'V-SKNN': (baselines.VSKNN, dict(k=500, sample_size=1000)),
    'V-SKNN-tuned': (baselines.VSKNN, dict(k=500, sample_size=5000, weighting='quadratic', weighting_score='div',
                                           idf_weighting=5)),
    'STAN': (baselines.STAN, dict(k=500, sample_size=5000, lambda_spw=1.02, lambda_snh=5, lambda_inh=2.05)),
    'VSTAN': (baselines.VSTAN, dict(k=2000, sample_size=10_000, lambda_spw=4, lambda_snh=20, lambda_inh=0.5,
                                    lambda_ipw=1, lambda_idf=2)),
}
ROW_TITLES = {'V-SKNN': 'V-SKNN (2018)', 'V-SKNN-tuned': 'V-SKNN, tuned (session-rec)'}  # others have their names

DESCRIPTIONS = {
    'POP': 'the most frequent items, the same for all',
    'S-POP': 'the items of the session so far by their number in it, then the most frequent ones',
    'Item-KNN': 'the items that occur in the same sessions as the current one',
    'BPR-MF': 'matrix factorisation, with the mean of the items so far as the user',
    'Markov': 'the items that most often came right after the current one',
    'S-KNN': 'the items of the most similar sessions',
    'V-SKNN': 'the items of the most similar sessions, where recent events count more',
    'V-SKNN-tuned': 'V-SKNN with other weights of positions, and with rare items counting more',
    'STAN': 'S-KNN where late events, recent sessions and items near the shared one count more',
    'VSTAN': 'STAN with the weights of V-SKNN',
    NETWORK: 'the recurrent network of the paper',
}


class Protocol(NamedTuple):
    """The paper's protocol for one of its two data sets, and its numbers."""
    title: str
    counts: dict  # sessions, events and items of the training and test data in the paper
    published: dict  # (Recall@20, MRR@20) by baseline, or by (loss, units): Tables 1 and 3
    gains: dict  # gains over Item-KNN as Table 3 prints them, computed from more digits than it shows
    parameters: dict[str, dict]  # Table 2, the best parameters of each loss
    stable: dict[str, int]  # numerically stable networks among 100 random points, by loss, where section 4.2 gives it
    is_private: bool  # the data is not public, so that no numbers of ours are comparable with the published ones
    candidates: int | None  # number of the most popular items among which the target is ranked; None for all items
    max_session_length: int | None  # longer sessions are left out; None for no limit
    sessions: int  # size of the synthetic log that replaces the data
    items: int


RSC15 = Protocol(
    'RSC15',
    counts={'train': preprocess_rsc15.PUBLISHED['train_full'], 'test': preprocess_rsc15.PUBLISHED['test']},
    published={
        'POP': (0.0050, 0.0012),
        'S-POP': (0.2672, 0.1775),
        'Item-KNN': (0.5065, 0.2048),
        'BPR-MF': (0.2574, 0.0618),
        ('top1', 100): (0.5853, 0.2305),
        ('bpr', 100): (0.6069, 0.2407),
        ('cross-entropy', 100): (0.6074, 0.2430),
        ('top1', 1000): (0.6206, 0.2693),
        ('bpr', 1000): (0.6322, 0.2467),
        ('cross-entropy', 1000): (0.5777, 0.2153),
    },
    gains={
        ('top1', 100): (0.1555, 0.1258),
        ('bpr', 100): (0.1982, 0.1754),
        ('cross-entropy', 100): (0.1991, 0.1865),
        ('top1', 1000): (0.2253, 0.3149),
        ('bpr', 1000): (0.2482, 0.2047),
        ('cross-entropy', 1000): (0.1406, 0.0516),
    },
    parameters={
        'top1': dict(batch_size=50, dropout_p_hidden=0.5, learning_rate=0.01, momentum=0.0),
        'bpr': dict(batch_size=50, dropout_p_hidden=0.2, learning_rate=0.05, momentum=0.2),
        'cross-entropy': dict(batch_size=500, dropout_p_hidden=0.0, learning_rate=0.01, momentum=0.0),
    },
    stable={'cross-entropy': 10},
    is_private=False,
    candidates=None,
    max_session_length=None,
    sessions=synthetic.SYNTHETIC_SESSIONS,
    items=synthetic.SYNTHETIC_ITEMS,
)

VIDEO = Protocol(
    'VIDEO',
    counts={'train': dict(sessions=3_000_000, events=13_000_000, items=VIDEO_ITEMS),  # rounded by the paper
            'test': dict(sessions=37_000, events=180_000)},
    published={
        'POP': (0.0499, 0.0117),
        'S-POP': (0.1301, 0.0863),
        'Item-KNN': (0.5508, 0.3381),
        'BPR-MF': (0.0692, 0.0374),
        ('top1', 100): (0.6141, 0.3511),
        ('bpr', 100): (0.5999, 0.3260),
        ('cross-entropy', 100): (0.6372, 0.3720),
        ('top1', 1000): (0.6624, 0.3891),
        ('bpr', 1000): (0.6311, 0.3136),
    },
    gains={
        ('top1', 100): (0.1150, 0.0384),
        ('bpr', 100): (0.0892, -0.0356),
        ('cross-entropy', 100): (0.1569, 0.1004),
        ('top1', 1000): (0.2027, 0.1508),
        ('bpr', 1000): (0.1458, -0.0723),
    },
    parameters={
        'top1': dict(batch_size=50, dropout_p_hidden=0.4, learning_rate=0.05, momentum=0.0),
        'bpr': dict(batch_size=50, dropout_p_hidden=0.3, learning_rate=0.1, momentum=0.0),
        'cross-entropy': dict(batch_size=200, dropout_p_hidden=0.1, learning_rate=0.05, momentum=0.3),
    },
    stable={'cross-entropy': 6},
    is_private=True,
    candidates=VIDEO_CANDIDATES,
    max_session_length=MAX_SESSION_LENGTH,  # the paper gives no number
    sessions=60_000,
    items=8_000,
)

PROTOCOLS = {'rsc15': RSC15, 'video': VIDEO}
