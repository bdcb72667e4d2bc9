"""Files of parameters: those of published rows, which are read back as arguments, and the authors' own, never executed.
"""
import inspect
from pathlib import Path

import pytest
from common import assert_same_bits, few_items_log, state_of

from gru4rec import GRU4Rec, check_arguments
from gru4rec_pytensor import cli, later, parameters
from gru4rec_pytensor.experiments.protocols import LOSS_NAMES, PROTOCOLS
from gru4rec_pytensor.experiments.published import COMPARISON_2023, LATER_NETWORKS, ROWS, distinct_arguments

ROOT = Path(__file__).parents[1]
FILES = {path.stem: path for path in sorted(ROOT.glob('parameters/*'))}
OF_2016 = {(dataset, *row): FILES[f'{dataset}_2016_{row[0]}_{row[1]}'] for dataset, protocol in PROTOCOLS.items()
           for row in protocol.published if isinstance(row, tuple)}
OF_LATER = [name for name, path in FILES.items() if path not in OF_2016.values()]


def written(folder, text, name='parameters.py'):
    path = folder / name
    path.write_text(text)
    return path


# --- The files of published rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', FILES)
def test_a_file_says_what_it_is_and_makes_a_model(name):
    found = parameters.read(FILES[name])
    assert found.title and found.data and found.source
    model = GRU4Rec.from_parameters(FILES[name], backend='python', seed=3)
    check_arguments(model)
    assert {name: getattr(model, name) for name in found.arguments} == found.arguments
    assert (model.backend, model.seed) == ('python', 3)


@pytest.mark.parametrize('dataset, loss, units', OF_2016)
def test_the_files_of_2016_are_the_rows_of_table_3_with_the_parameters_of_table_2(dataset, loss, units):
    found, protocol = parameters.read(OF_2016[dataset, loss, units]), PROTOCOLS[dataset]
    assert found.arguments == {'layers': [units], 'loss': loss, 'adapt': 'adagrad'} | protocol.parameters[loss]
    assert found.title == f'{LOSS_NAMES[loss]}, {units} units (2016)'


@pytest.mark.parametrize('title, arguments', LATER_NETWORKS.items())
def test_a_published_network_of_a_later_paper_has_the_parameters_of_the_file_of_its_title(title, arguments):
    path, = [path for path in FILES.values() if parameters.read(path).title == title]
    assert distinct_arguments(parameters.read(path).arguments) == distinct_arguments(arguments)


def test_each_row_of_2023_has_a_file_of_its_data_and_title_with_its_parameters_and_nothing_else_is_of_these_data():
    rows = {(row.data, row.model): distinct_arguments(row.arguments) for row in ROWS if row.source == COMPARISON_2023}
    files = [parameters.read(path) for name, path in FILES.items() if '_2023_' in name and 'rsc15' not in name]
    assert len(rows) == len(files) == 10
    assert {(file.data, file.title): distinct_arguments(file.arguments) for file in files} == rows
    for data, title in rows:
        loss = 'bpr-max' if title.startswith('BPR-max') else 'cross-entropy'
        assert parameters.read(FILES[f'{data.lower()}_2023_{loss}']).title == title


@pytest.mark.parametrize('name', OF_LATER)
def test_the_files_of_later_papers_are_complete_without_the_defaults_of_the_later_release(name):
    """A reader sees what is set, and no other default of ours slips in."""
    found = parameters.read(FILES[name]).arguments
    expected = parameters.of_later_release({key: value for key, value in found.items()
                                            if key in parameters.LATER_DEFAULTS})
    model, same = GRU4Rec.from_parameters(FILES[name]), GRU4Rec(**expected)
    unused = {'bpreg'} if model.loss == 'cross-entropy' else {'repeats', 'unit'} if 'pytorch' in name else set()
    assert {key for key, value in vars(model).items() if value != getattr(same, key)} <= unused
    assert model.embedding is None is same.embedding


# --- The authors' files ---------------------------------------------------------------------------------------------

AUTHORS = """from collections import OrderedDict
gru4rec_params = OrderedDict([
('loss', 'bpr-max'),
('final_act', 'elu-0.5'),
('layers', [20]),
('batch_size', 16),
('constrained_embedding', True), ('embedding', 'layersize'),
('momentum', 0.1),  # a comment
('n_sample', 8)
])
"""


@pytest.mark.parametrize('text', [AUTHORS, AUTHORS.replace('OrderedDict(', 'dict('),
                                  "gru4rec_params = {'loss': 'bpr-max', 'final_act': 'elu-0.5', 'layers': [20], "
                                  "'batch_size': 16, 'constrained_embedding': True, 'momentum': 0.1, 'n_sample': 8}",
                                  AUTHORS.replace("'final_act', 'elu-0.5'", "'elu_param', 0.5")],
                         ids=['OrderedDict', 'dict', 'literal', 'PyTorch'])
def test_the_authors_own_files_are_read_with_the_defaults_of_their_release(text, tmp_path):
    model = GRU4Rec.from_parameters(written(tmp_path, text))
    expected = later.GRU4Rec(loss='bpr-max', final_act='elu-0.5', layers=[20], batch_size=16,
                             constrained_embedding=True, momentum=0.1, n_sample=8)
    assert vars(model) == vars(expected)
    assert model.dropout_p_hidden == 0 and model.time_sort and not model.drop_tail and model.embedding is None


@pytest.mark.parametrize('cls', [GRU4Rec, later.GRU4Rec])
def test_a_file_makes_a_model_of_the_class_that_is_asked(cls, tmp_path):
    for path in (FILES['rsc15_recent64_bpr-max'], written(tmp_path, AUTHORS)):
        assert type(cls.from_parameters(path)) is cls
        assert vars(cls.from_parameters(path)) == vars(GRU4Rec.from_parameters(path))


@pytest.mark.parametrize('loss, expected', [('bpr-max', 'linear'), ('cross-entropy', 'softmax')])
def test_the_pytorch_codes_elu_param_of_zero_is_no_activation(loss, expected, tmp_path):
    path = written(tmp_path, f"gru4rec_params = dict([('loss', '{loss}'), ('elu_param', 0)])")
    assert GRU4Rec.from_parameters(path).final_act == expected


@pytest.mark.parametrize('statement', ["open({flag!r}, 'w')", "gru4rec_params = OrderedDict([('loss', open({flag!r}, "
                                       "'w'))])", "import {flag!r}", "@open({flag!r}, 'w')\ndef f(): pass"])
def test_nothing_in_an_authors_file_is_executed(statement, tmp_path):
    flag = tmp_path / 'flag'
    statement = statement.format(flag=str(flag))
    for text in (f'{statement}\n{AUTHORS}', f'{AUTHORS}{statement}'):
        with pytest.raises(ValueError, match='parameters.py'):
            GRU4Rec.from_parameters(written(tmp_path, text))
    assert not flag.exists()


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, text, message', [
    ('p.json', '{}', 'must end in .toml, or in .py'),
    ('p.toml', '[parameters', 'table declaration'),
    ('p.toml', 'layers = [100]', "unknown name 'layers'"),
    ('p.toml', 'title = "x"', r'no table \[parameters\]'),
    ('p.toml', 'title = 3\n[parameters]\nlayers = [100]', 'title = 3: must be text'),
    ('p.toml', '[parameters]\nlayers = [100]\nlearning_rat = 0.1', "'learning_rat' is no argument of GRU4Rec"),
    ('p.toml', '[parameters]\nlearning_rate = 0.1', 'layers are missing'),
    ('p.toml', '[parameters]\nlayers = [100]\nlearning_rate = -1.0', 'learning_rate=-1.0: must be'),
    ('p.toml', '[parameters]\nlayers = [100]\n[published]\n"Recall@20" = 0.5', "unknown name 'published'"),
    ('p.py', 'gru4rec_params = OrderedDict([', 'line 1'),
    ('p.py', 'params = {}', 'must assign one thing, gru4rec_params'),
    ('p.py', '', 'must assign one thing, gru4rec_params'),
    ('p.py', 'gru4rec_params = OrderedDict(pairs)', 'nothing is computed'),
    ('p.py', 'gru4rec_params = 3', 'nothing is computed'),
    ('p.py', "gru4rec_params = {'unit': 'lstm'}", "'unit' is no argument of the later release"),
    ('p.py', "gru4rec_params = {'adapt': 'adam'}", "adapt='adam' is not taken over"),
    ('p.py', "gru4rec_params = {'batch_size': 0}", 'batch_size=0: must be'),
])
def test_a_file_that_is_no_file_of_parameters_gets_one_error_that_names_it(name, text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        GRU4Rec.from_parameters(written(tmp_path, text, name))
    assert str(tmp_path / name) in str(error.value)


def test_a_file_that_is_not_utf_8_or_not_there_is_named(tmp_path):
    (tmp_path / 'p.toml').write_bytes(b'title = "\xff"')
    with pytest.raises(ValueError, match='p.toml: .*utf-8'):
        parameters.read(tmp_path / 'p.toml')
    with pytest.raises(FileNotFoundError, match='q.toml'):
        parameters.read(tmp_path / 'q.toml')


# --- The command ----------------------------------------------------------------------------------------------------

TOML = """[parameters]
layers = [5]
loss = "bpr"
batch_size = 8
n_epochs = 2
dropout_p_hidden = 0.25
momentum = 0.1
"""


@pytest.mark.parametrize('name, text', [
    ('p.toml', TOML + 'session_key = "visit"\nitem_key = "product"\ntime_key = "when"\n'),
    ('p.py', "gru4rec_params = {'layers': [5], 'batch_size': 8, 'n_epochs': 1, 'n_sample': 4, 'session_key': 'visit', "
             "'item_key': 'product', 'time_key': 'when'}")])
def test_fit_takes_arguments_and_names_of_columns_from_a_file_and_options_override_them(name, text, tmp_path):
    log = few_items_log(n_sessions=40).set_axis(['visit', 'product', 'when'], axis=1)
    log.to_csv(tmp_path / 'log.csv', index=False)
    log.rename(columns={'visit': 'session'}).to_csv(tmp_path / 'other.csv', index=False)
    path = written(tmp_path, text, name)
    expected = GRU4Rec.from_parameters(path, backend='python', momentum=0.2).fit(log)
    command = f'fit {{}}.csv -o {tmp_path}/model --parameters {path} --momentum 0.2 --backend python --quiet'
    for words in (command.format(tmp_path / 'log'), command.format(tmp_path / 'other') + ' --session-key session'):
        assert cli.main(words.split()) == 0
        assert_same_bits(state_of(GRU4Rec.load(tmp_path / 'model')), state_of(expected))
    assert GRU4Rec.load(tmp_path / 'model').session_key == 'session'
    more = f'-o {tmp_path}/more --more {tmp_path}/model --epochs 1 --backend python --quiet'  # has them from the model
    assert cli.main(f'fit {tmp_path}/other.csv {more}'.split()) == 0
    assert cli.main(f'evaluate {tmp_path}/more {tmp_path}/other.csv --backend python --quiet'.split()) == 0
    assert cli.main(f'fit {tmp_path}/log.csv {more} --session-key visit'.split()) == 2


def test_the_defaults_of_the_later_release_are_those_of_its_constructor():
    signature = inspect.signature(later.GRU4Rec)
    defaults = {name: argument.default for name, argument in signature.parameters.items()}
    assert list(defaults) == [*parameters.LATER_DEFAULTS, 'seed', 'backend']
    assert defaults.items() >= parameters.LATER_DEFAULTS.items()
