"""What papers report on data that can be had or recognised: one row for each model, data set and source.

The numbers of the paper's own Tables 1 and 3 stand in `protocols`, with everything else about it, and are rows here,
too; those of others stand here.  A run looks up the rows of its data set, which is told by its counts.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gru4rec import GRU4Rec, changed_arguments, final_activation
from gru4rec_pytensor.experiments.protocols import LOSS_NAMES, NETWORK, RSC15, VIDEO, Protocol
from gru4rec_pytensor.parameters import of_later_release
from preprocess_rsc15 import PUBLISHED_FRACTIONS

SAME, SAME_LEVEL = 0.01, 0.05  # the authors' yardstick: relative differences below these


class PublishedData(NamedTuple):
    """A data set as papers cut it.

    protocol : title of the `Protocol` that a run on it follows
    counts : sessions, events and items of 'train' and 'test', or of these the number of 'predictions', events that
        have one before them in their session; a number in whole thousands or millions is rounded to those
    origin : where it is to be had
    with_misses : whether test events with items that training does not have stay, and count as misses
    """
    title: str
    protocol: str
    counts: dict[str, dict[str, int]]
    origin: str
    with_misses: bool = False


class Row(NamedTuple):
    """What a source reports of a model.

    data : title of a `PublishedData`
    model : of `protocols.BASELINES`, or any name of a network
    recall, mrr : by cut-off
    arguments : of `GRU4Rec`; None for another model, and for a network of which they are not reported
    """
    data: str
    source: str
    model: str
    recall: dict[int, float]
    mrr: dict[int, float]
    arguments: dict[str, Any] | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Data sets
# ---------------------------------------------------------------------------------------------------------------------

RECENT64 = 'rsc15_recent64'
CHALLENGE = 'yoochoose-clicks.dat of the RecSys Challenge 2015'


def fraction_of_rsc15(share: int) -> PublishedData:
    """The most recent 1 / `share` of RSC15's training prefixes, with the test data of the whole."""
    counts = {part: {'predictions': PUBLISHED_FRACTIONS[share][f'{name} prefixes']}
              for part, name in (('train', 'training'), ('test', 'test'))}
    origin = f'{CHALLENGE}, `python preprocess_rsc15.py yoochoose-clicks.dat DATA --fraction {share}`'
    return PublishedData(f'RSC15 1/{share}', RSC15.title, counts, origin, with_misses=True)


DATA = (
    PublishedData(RSC15.title, RSC15.title, RSC15.counts,
                  f'{CHALLENGE}, `python preprocess_rsc15.py yoochoose-clicks.dat DATA`'),
    PublishedData(VIDEO.title, VIDEO.title, VIDEO.counts, 'private'),
    fraction_of_rsc15(64),
    fraction_of_rsc15(4),
    PublishedData(RECENT64, RSC15.title,
                  {'train': dict(sessions=24_761, events=99_943, items=13_133),
                   'test': dict(sessions=1_703, events=7_299)},
                  'https://github.com/RecSysEvaluation/RecSys_Evaluation, RSC15 clicks of 23 to 30 September 2014'),
)


def find_data(protocol: Protocol, counts: dict[str, dict[str, int]]) -> PublishedData | None:
    """The data set with these counts, as `events.count` returns them for 'train' and 'test', if papers report on it."""
    found = {part: numbers | {'predictions': numbers['events'] - numbers['sessions']}
             for part, numbers in counts.items()}
    for data in DATA:
        if data.protocol == protocol.title and all(
                is_count(found[part][kind], number) for part, numbers in data.counts.items()
                for kind, number in numbers.items()):
            return data
    return None


def is_count(found: int, published: int) -> bool:
    """Whether a count is the published one, as far as that has been rounded.

    >>> is_count(3_120_000, 3_000_000), is_count(37_484, 37_483)
    (True, False)
    """
    unit = next(unit for unit in (1_000_000, 1_000, 1) if published % unit == 0)
    return (found + unit // 2) // unit * unit == published


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------

GRU4REC_2016 = 'Hidasi et al., ICLR 2016, arXiv 1511.06939 v4'
GRU4REC_2018 = 'Hidasi and Karatzoglou, CIKM 2018, arXiv 1706.03847, and hidasib/GRU4Rec'
GRU4REC_2023 = 'README of hidasib/GRU4Rec, August 2023'
NARM = 'Li et al., CIKM 2017, arXiv 1711.04725'
SR_GNN = 'Wu et al., AAAI 2019, arXiv 1811.00855'
EVALUATION_2025 = "RecSysEvaluation/RecSys_Evaluation, 2025, with the authors' PyTorch code"
RELEASE_2016 = "recorded: the authors' release of 2016 on this data"
RELEASE_2023 = "recorded: the authors' release of 2023 on this data, Theano on a CPU"
RECORDED = (RELEASE_2016, RELEASE_2023)  # which were run for this project, and stand in no publication

BPR_MAX_2018 = of_later_release(dict(loss='bpr-max', final_act='elu-0.5', learning_rate=0.2, momentum=0.3,
                                     sample_alpha=0.0, bpreg=1.0))
CONSTRAINED_2018 = of_later_release(dict(loss='bpr-max', final_act='elu-0.5', constrained_embedding=True,
                                         learning_rate=0.2, momentum=0.1, sample_alpha=0.0, bpreg=0.5))
CROSS_ENTROPY_2018 = of_later_release(dict(loss='cross-entropy', final_act='softmax', dropout_p_hidden=0.3,
                                           learning_rate=0.1, momentum=0.7, sample_alpha=0.0))
CROSS_ENTROPY_2023 = of_later_release(dict(loss='cross-entropy', final_act='softmax', logq=1.0,
                                           constrained_embedding=True, dropout_p_hidden=0.4, learning_rate=0.2,
                                           momentum=0.2, sample_alpha=0.5))
BPR_MAX_2025 = of_later_release(dict(loss='bpr-max', layers=[64], constrained_embedding=True, dropout_p_embed=0.5,
                                     dropout_p_hidden=0.35, learning_rate=0.095, momentum=0.2, sample_alpha=0.25,
                                     bpreg=0.0))
LATER_NETWORKS = {  # by the title of their files in parameters/
    'BPR-max, 100 units (2018)': BPR_MAX_2018,
    'BPR-max, 100 units, one item matrix (2018)': CONSTRAINED_2018,
    'Cross-entropy, 100 units, additional negatives (2018)': CROSS_ENTROPY_2018,
    'Cross-entropy, 100 units (2023)': CROSS_ENTROPY_2023,
    'BPR-max, 64 units (2025)': BPR_MAX_2025,
}


def rows_of_the_paper(protocol: Protocol) -> list[Row]:
    """Tables 1 and 3."""
    rows = []
    for name, (recall, mrr) in protocol.published.items():
        model, arguments = name, None
        if not isinstance(name, str):
            loss, units = name
            model = f'{LOSS_NAMES[loss]}, {units} units'
            arguments = dict(loss=loss, layers=[units]) | protocol.parameters[loss]
        rows.append(Row(protocol.title, GRU4REC_2016, model, {20: recall}, {20: mrr}, arguments))
    return rows


# Data, source, model (a network's is in `LATER_NETWORKS`, if its arguments are known), Recall and MRR by cut-off.
OF_OTHERS: tuple[tuple[str, str, str, dict[int, float], dict[int, float]], ...] = (
    ('RSC15', GRU4REC_2018, 'BPR-max, 100 units (2018)', {20: 0.7197}, {20: 0.3157}),
    ('RSC15', GRU4REC_2018, 'BPR-max, 100 units, one item matrix (2018)', {20: 0.7261}, {20: 0.3124}),
    ('RSC15', GRU4REC_2018, 'Cross-entropy, 100 units, additional negatives (2018)', {20: 0.7180}, {20: 0.3087}),
    ('RSC15', GRU4REC_2023, 'Cross-entropy, 100 units (2023)', {20: 0.7283}, {20: 0.3205}),
    ('RSC15 1/64', NARM, 'POP', {20: 0.0671}, {20: 0.0165}),
    ('RSC15 1/64', NARM, 'S-POP', {20: 0.3044}, {20: 0.1835}),
    ('RSC15 1/64', NARM, 'Item-KNN', {20: 0.5160}, {20: 0.2181}),
    ('RSC15 1/64', NARM, 'BPR-MF', {20: 0.3131}, {20: 0.1208}),
    ('RSC15 1/64', NARM, 'GRU4Rec', {20: 0.6064}, {20: 0.2289}),
    ('RSC15 1/64', NARM, 'NARM', {20: 0.6832}, {20: 0.2876}),
    ('RSC15 1/64', SR_GNN, 'SR-GNN', {20: 0.7057}, {20: 0.3094}),
    ('RSC15 1/4', NARM, 'POP', {20: 0.0133}, {20: 0.0030}),
    ('RSC15 1/4', NARM, 'S-POP', {20: 0.2708}, {20: 0.1775}),
    ('RSC15 1/4', NARM, 'Item-KNN', {20: 0.5231}, {20: 0.2170}),
    ('RSC15 1/4', NARM, 'BPR-MF', {20: 0.0340}, {20: 0.0157}),
    ('RSC15 1/4', NARM, 'GRU4Rec', {20: 0.5953}, {20: 0.2260}),
    ('RSC15 1/4', NARM, 'NARM', {20: 0.6973}, {20: 0.2923}),
    ('RSC15 1/4', SR_GNN, 'SR-GNN', {20: 0.7136}, {20: 0.3189}),
    (RECENT64, EVALUATION_2025, 'BPR-max, 64 units (2025)',
     {1: 0.19603, 5: 0.47105, 10: 0.57309, 20: 0.6503}, {5: 0.29716, 10: 0.31101, 20: 0.3165}),
    (RECENT64, RELEASE_2016, 'POP', {20: 0.046640}, {20: 0.012683}),
    (RECENT64, RELEASE_2016, 'S-POP', {20: 0.343638}, {20: 0.235409}),
    (RECENT64, RELEASE_2016, 'Item-KNN', {20: 0.401001}, {20: 0.181930}),
    (RECENT64, RELEASE_2016, 'BPR-MF', {20: 0.322552}, {20: 0.186086}),
    (RECENT64, RELEASE_2023, 'BPR-max, 100 units, one item matrix (2018)',
     {1: 0.131165, 5: 0.316833, 10: 0.397427, 20: 0.454253}, {5: 0.198877, 10: 0.209747, 20: 0.213732}),
    (RECENT64, RELEASE_2023, 'Cross-entropy, 100 units, additional negatives (2018)',
     {1: 0.140815, 5: 0.390815, 10: 0.489635, 20: 0.557005}, {5: 0.230355, 10: 0.243742, 20: 0.248552}),
    (RECENT64, RELEASE_2023, 'Cross-entropy, 100 units (2023)',
     {1: 0.177091, 5: 0.453896, 10: 0.546462, 20: 0.617227}, {5: 0.277472, 10: 0.289998, 20: 0.295041}),
    (RECENT64, RELEASE_2023, 'BPR-max, 64 units (2025)',
     {1: 0.193531, 5: 0.479092, 10: 0.586133, 20: 0.661365}, {5: 0.299660, 10: 0.314178, 20: 0.319409}),
)
ROWS = [*rows_of_the_paper(RSC15), *rows_of_the_paper(VIDEO),
        *[Row(*row, LATER_NETWORKS.get(row[2])) for row in OF_OTHERS]]


# ---------------------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------------------

def rows_for(title: str, result: dict) -> list[Row]:
    """The rows of a data set that report the model of a result; a baseline's result has the arguments of `BASELINES`.
    """
    return [row for row in ROWS if row.data == title and is_of(row, result)]


def is_of(row: Row, result: dict) -> bool:
    """Whether a row is of the model of a result, by its name, or of a network with the same arguments."""
    if result['model'] != NETWORK:
        return row.model == result['model']
    return row.arguments is not None and distinct_arguments(row.arguments) == distinct_arguments(arguments_of(result))


def arguments_of(result: dict) -> dict[str, Any]:
    """The arguments of `GRU4Rec` that the network of a cell or result was trained with, apart from seed and backend."""
    arguments = {'layers': [result['units']]} | result['parameters']
    return arguments | {'loss': result['loss'], 'n_epochs': result['epochs']}


def distinct_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network in one spelling: two networks are the same if these are.

    Those at their defaults are left out, and so are those that nothing is computed from.
    """
    model = GRU4Rec(**arguments)
    idle = {'bpreg'} if model.loss != 'bpr-max' else set()
    idle |= {'logq'} if model.loss != 'cross-entropy' else set()
    idle |= set() if model.n_sample else {'sample_alpha', 'sample_store'}
    found = changed_arguments(model) | {'final_act': final_activation(model.loss, model.final_act)}
    return {name: value for name, value in found.items() if name not in idle}


def verdict(ours: float, published: float) -> str:
    """What a relative difference means to the authors: below 1% the same, below 5% the same level.

    >>> verdict(0.504, 0.5), verdict(0.48, 0.5), verdict(0.6, 0.5)
    ('the same', 'the same level', 'differs')
    """
    difference = abs(ours / published - 1)
    return 'the same' if difference < SAME else 'the same level' if difference < SAME_LEVEL else 'differs'
