"""Pictures: that they show the layers and mini-batches of what they are drawn from."""
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from common import click_log, small_model

matplotlib = pytest.importorskip('matplotlib', reason='Matplotlib, an extra, is not installed')

import gru4rec
import run_experiments
from gru4rec import GRU4Rec
from gru4rec_pytensor.experiments import figures


def untrained(n_items=30, **arguments):
    return GRU4Rec(**arguments).settings(n_items)


def test_figure_1_has_the_layers_of_the_model_bottom_to_top():
    model = untrained(layers=[8, 6], embedding=5, feedforward=[4], unit='lstm', loss='cross-entropy')
    assert [title for title, _weights, _recurrent in figures.layers_of(model)] == [
        'input: item, 1-of-N coded', 'embedding', 'LSTM layer, 8 units', 'LSTM layer, 6 units',
        'feed-forward layer, 4 units, tanh', 'output: scores of items, linear']
    assert [recurrent for _title, _weights, recurrent in figures.layers_of(model)] == [
        False, False, True, True, False, False]


@pytest.mark.parametrize('arguments', [
    dict(layers=[8]), dict(layers=[8, 8], unit='lstm', input_to_all_layers=True, embedding=8, feedforward=[4, 3])])
def test_figure_1_names_every_weight_of_the_trained_model_with_its_shape(arguments):
    model = small_model(**arguments).fit(click_log(*[[1, 2, 3]] * 8))
    drawn = {}
    for _title, weights, _recurrent in figures.layers_of(model.settings()):
        for line in weights.splitlines():
            if ':' in line:
                names, shape = line.split(': ')
                drawn |= dict.fromkeys(names.split(', '), tuple(int(n) for n in shape.split(' × ')))
    assert drawn == {name: value.shape for name, value in model.weights().items() if value.ndim > 1}


def test_models_stand_side_by_side_in_figure_1_with_an_arrow_from_the_input_to_each_deeper_layer_that_has_it():
    picture = figures.architecture(untrained(layers=[8] * 3), untrained(layers=[9] * 3, input_to_all_layers=True))
    assert [ax.texts[2].get_text() for ax in picture.axes] == ['GRU layer, 8 units', 'GRU layer, 9 units']
    without, with_input = (sum(isinstance(patch, figures.FancyArrowPatch) for patch in ax.patches)
                           for ax in picture.axes)
    assert with_input == without + 2


OFFSETS = np.array([0, 3, 5, 9, 11, 14])  # sessions of 3, 2, 4, 2 and 3 events


def test_figure_2_is_that_of_the_iterator():
    position, starts = next(gru4rec.session_parallel_minibatches(OFFSETS, 2))
    labels = [f'e{event}' for event in range(OFFSETS[-1])]
    above, below = figures.minibatches(OFFSETS, 2, labels).axes
    cells = [text.get_text() for text in below.texts if text.get_text().startswith('e')]
    assert cells == [labels[event] for shown in (position, position + 1) for event in shown.T.ravel()]
    bars = [patch for patch in below.patches if patch.get_width() < 0.5]
    assert len(bars) == starts.sum()
    in_no_batch = {text.get_text() for text in above.texts if text.get_color() == figures.MUTED}
    assert in_no_batch == {labels[e] for e in range(OFFSETS[-1]) if e not in np.union1d(position, position + 1)}


def test_figure_2_follows_the_order_of_the_sessions_and_stops_after_some_mini_batches():
    above, below = figures.minibatches(OFFSETS, 2, order=np.array([4, 2, 0, 1, 3])).axes
    assert [text.get_text() for text in below.texts][1] == '5.1'
    assert above.texts[0].get_text() == 'session 5'
    picture = figures.minibatches(np.arange(0, 2001, 20), 3, steps=5)
    shown = {text.get_text() for ax in picture.axes for text in ax.texts}
    assert '1.6' in shown and '1.8' not in shown


def test_a_picture_is_saved_as_svg_and_png_the_same_whenever_it_is_drawn(tmp_path):
    svg, png = figures.training_curves({'TOP1': [0.9, 0.8, 0.7]}).save(tmp_path / 'training')
    assert 'TOP1' in svg.read_text()
    assert svg.read_text() == figures.training_curves({'TOP1': [0.9, 0.8, 0.7]})._repr_svg_()
    ElementTree.fromstring(svg.read_text())
    assert png.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['training.png', 'training.svg']


def test_training_curves_have_a_panel_for_each_network_with_its_losses():
    losses = {'TOP1': [0.9, 0.8], 'BPR': [0.5, 0.4], 'MRR': [0.3, 0.2], 'Cross-entropy': [6.0, 5.0]}
    axes = [ax for ax in figures.training_curves(losses).axes if ax.lines]
    assert {ax.get_title(): ax.lines[0].get_ydata().tolist() for ax in axes} == losses


@pytest.mark.slow
def test_run_experiments_draws_the_figures_of_its_networks_and_data(tmp_path, capsys):
    train, test = tmp_path / 'train.tsv', tmp_path / 'test.tsv'
    log = click_log(*[[1, 2, 3], [2, 3], [3, 1, 2, 1]] * 20)
    for path in (train, test):
        log.to_csv(path, sep='\t', index=False)
    assert run_experiments.main([
        '--train', str(train), '--test', str(test), '--out', str(tmp_path / 'out'), '--backend', 'python', '--units',
        '4', '--epochs', '2', '--models', 'GRU4Rec', '--loss', 'top1', '--figures']) == 0
    [folder] = (tmp_path / 'out' / 'figures').iterdir()  # of this data set
    report = (tmp_path / 'out' / 'report.html').read_text()
    assert f'href="figures/{folder.name}/training.svg"' in report
    assert sorted(path.name for path in folder.iterdir()) == [
        f'{name}.{ending}' for name in ('architecture', 'minibatches', 'training') for ending in ('png', 'svg')]
    words = re.sub(r'<[^>]*>', ' ', (folder / 'architecture.svg').read_text())
    assert 'Wy: 3 × 4' in words and 'feed-forward layer, 4 units' in words
    assert 'TOP1, 4 units' in (folder / 'training.svg').read_text()
    assert '2.2' in (folder / 'minibatches.svg').read_text()
