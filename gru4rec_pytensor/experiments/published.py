"""Published numbers: one row for each model, data set and source, looked up when tables are made.

The numbers of the paper's own Tables 1 and 3 stand in `protocols`, with everything else about it, and are rows here,
too; those of others stand here, and ten rows of 2023 with their parameters in `published_2023.csv` beside this file.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gru4rec_pytensor.experiments.cells import CUT_OFFS, arguments_of, distinct_arguments
from gru4rec_pytensor.experiments.datasets import RECENT64
from gru4rec_pytensor.experiments.protocols import LOSS_NAMES, NETWORK, RSC15, VIDEO, Protocol
from gru4rec_pytensor.parameters import LATER_DEFAULTS, of_later_release

SAME, SAME_LEVEL = 0.01, 0.05  # the authors' yardstick: relative differences below these


class Row(NamedTuple):
    """The numbers that a source reports for a model."""
    data: str  # title of a `datasets.PublishedData`
    source: str
    model: str  # of `protocols.BASELINES`, or any name of a network
    recall: dict[int, float]  # by cut-off
    mrr: dict[int, float]
    arguments: dict[str, Any] | None = None  # of a network, if they are reported


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------

GRU4REC_2016 = 'Hidasi et al., ICLR 2016, arXiv 1511.06939 v4'
GRU4REC_2018 = 'Hidasi and Karatzoglou, CIKM 2018, arXiv 1706.03847, and hidasib/GRU4Rec'
GRU4REC_2023 = 'README of hidasib/GRU4Rec, August 2023'
COMPARISON_2023 = 'Hidasi and Czapp, RecSys 2023, arXiv 2307.14956, and hidasib/gru4rec_third_party_comparison'
NARM = 'Li et al., CIKM 2017, arXiv 1711.04725'
SR_GNN = 'Wu et al., AAAI 2019, arXiv 1811.00855'
EVALUATION_2025 = "RecSysEvaluation/RecSys_Evaluation, 2025, with the authors' PyTorch code"
RELEASE_2016 = "recorded: the authors' release of 2016 on this data"
RELEASE_2023 = "recorded: the authors' release of 2023 on this data, Theano with the negatives of its GPU kernel"
PORT_2023 = "recorded: the authors' PyTorch code of 2023 on this data"
RECORDED = (RELEASE_2016, RELEASE_2023, PORT_2023)  # run for this project, in no publication

LATER_NETWORKS = {title: of_later_release(arguments) for title, arguments in {  # titles of their files in parameters/
    'BPR-max, 100 units (2018)': dict(
        loss='bpr-max', final_act='elu-0.5', learning_rate=0.2, momentum=0.3, sample_alpha=0.0, bpreg=1.0),
    'BPR-max, 100 units, one item matrix (2018)': dict(
        loss='bpr-max', final_act='elu-0.5', constrained_embedding=True, learning_rate=0.2, momentum=0.1,
        sample_alpha=0.0, bpreg=0.5),
    'Cross-entropy, 100 units, additional negatives (2018)': dict(
        loss='cross-entropy', final_act='softmax', dropout_p_hidden=0.3, learning_rate=0.1, momentum=0.7,
        sample_alpha=0.0),
    'Cross-entropy, 100 units (2023)': dict(
        loss='cross-entropy', final_act='softmax', logq=1.0, constrained_embedding=True, dropout_p_hidden=0.4,
        learning_rate=0.2, momentum=0.2, sample_alpha=0.5),
    'BPR-max, 64 units (2025)': dict(
        loss='bpr-max', layers=[64], constrained_embedding=True, dropout_p_embed=0.5, dropout_p_hidden=0.35,
        learning_rate=0.095, momentum=0.2, sample_alpha=0.25, bpreg=0.0),
}.items()}
PYTORCH = ', as PyTorch computes'
AS_PYTORCH = dict(repeats='sum', unit='gru-after')  # of an embedded input
LATER_NETWORKS |= {title + PYTORCH: LATER_NETWORKS[title] | AS_PYTORCH
                   for title in ('BPR-max, 64 units (2025)', 'BPR-max, 100 units, one item matrix (2018)')}


def rows_of_the_paper(protocol: Protocol) -> list[Row]:
    """Return the rows of Tables 1 and 3."""
    rows = []
    for name, (recall, mrr) in protocol.published.items():
        model, arguments = name, None
        if not isinstance(name, str):
            loss, units = name
            model = f'{LOSS_NAMES[loss]}, {units} units'
            arguments = dict(loss=loss, layers=[units]) | protocol.parameters[loss]
        rows.append(Row(protocol.title, GRU4REC_2016, model, {20: recall}, {20: mrr}, arguments))
    return rows


def rows_of_2023() -> list[Row]:
    """Return the rows of `published_2023.csv`: the authors' release with its best parameters, ten epochs each."""
    rows = []
    table = pd.read_csv(Path(__file__).with_name('published_2023.csv'))
    for found in table.to_dict('records'):
        arguments = {name: found[name] for name in LATER_DEFAULTS if name in found} | {'layers': [found['layers']]}
        loss = {'bpr-max': 'BPR-max', **LOSS_NAMES}[found['loss']]
        recall, mrr = ({n: found[f'{metric}@{n}'] for n in CUT_OFFS if f'{metric}@{n}' in found}
                       for metric in ('Recall', 'MRR'))
        rows.append(Row(found['data'], COMPARISON_2023, f'{loss}, {found["layers"]} units (2023)', recall, mrr,
                        of_later_release(arguments)))
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
     {1: 0.120086, 5: 0.300572, 10: 0.372051, 20: 0.427448}, {5: 0.186746, 10: 0.196345, 20: 0.200288}),
    (RECENT64, RELEASE_2023, 'Cross-entropy, 100 units, additional negatives (2018)',
     {1: 0.140100, 5: 0.392781, 10: 0.487848, 20: 0.551465}, {5: 0.230715, 10: 0.243594, 20: 0.248120}),
    (RECENT64, RELEASE_2023, 'Cross-entropy, 100 units (2023)',
     {1: 0.171551, 5: 0.455147, 10: 0.549321, 20: 0.616154}, {5: 0.275685, 10: 0.288464, 20: 0.293146}),
    (RECENT64, RELEASE_2023, 'BPR-max, 64 units (2025)',
     {1: 0.195497, 5: 0.480701, 10: 0.585776, 20: 0.665654}, {5: 0.299696, 10: 0.313899, 20: 0.319530}),
    (RECENT64, PORT_2023, 'BPR-max, 100 units, one item matrix (2018), as PyTorch computes',
     {20: 0.4986}, {20: 0.2241}),
)
ROWS = [*rows_of_the_paper(RSC15), *rows_of_the_paper(VIDEO),
        *[Row(*row, LATER_NETWORKS.get(row[2])) for row in OF_OTHERS], *rows_of_2023()]
ROWS += [row._replace(model=row.model + PYTORCH, arguments=row.arguments | AS_PYTORCH)
         for row in ROWS if row.source == EVALUATION_2025 and row.arguments]


# ---------------------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------------------

def rows_for(title: str, result: dict) -> list[Row]:
    """Return the rows of a data set for the model of a result, told by its name or, of a network, by the arguments."""
    rows = [row for row in ROWS if row.data == title]
    if result['model'] != NETWORK:
        return [row for row in rows if row.model == result['model']]
    arguments = distinct_arguments(arguments_of(result))
    return [row for row in rows if row.arguments and distinct_arguments(row.arguments) == arguments]


def by_yardstick(ours: float, published: float) -> str:
    """Return what a relative difference means to the authors: below 1% the same, below 5% the same level.

    >>> by_yardstick(0.504, 0.5), by_yardstick(0.48, 0.5), by_yardstick(0.6, 0.5)
    ('the same', 'the same level', 'differs')
    """
    difference = abs(ours / published - 1)
    return 'the same' if difference < SAME else 'the same level' if difference < SAME_LEVEL else 'differs'
