"""The parameter search of section 4.2, whose outcome is Table 2: random points, then one parameter after another.

The paper tried 100 random points of the parameter space for each data set and loss, and then tuned each parameter of
the best point on its own, on a validation set.  It does not give the space; ours is `SPACE`.  This is the only module
that imports Optuna, which stores the trials in a database: an interrupted search continues from there, and several
processes, or machines that share a database server, work on one search together.
"""
from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation import CUT_OFF, next_item_ranks, recall_mrr
from gru4rec import GRU4Rec, Progress
from gru4rec_pytensor.events import most_frequent, n_trainable_sessions
from gru4rec_pytensor.experiments.cells import fit_from_checkpoint
from gru4rec_pytensor.experiments.datasets import open_events
from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.experiments.results import digits_of
from gru4rec_pytensor.files import locked

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

# Every value of a parameter is as likely as the others; the same space for each loss, with 100 units and Adagrad.
SPACE: dict[str, tuple] = {
    'batch_size': (20, 50, 100, 200, 500),
    'dropout_p_hidden': (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    'learning_rate': (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    'momentum': (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
}
HEARTBEAT = 30  # seconds; a process without a sign of life for two of these has lost its trial
ATTEMPTS = 10  # to open a database server while other processes make its tables, and to continue after interruptions
PATIENCE = 300  # seconds, for a server that restarts


class Unstable(Exception):
    """The loss or the weights of a network are not finite."""


class Search(NamedTuple):
    """One search: what its trials have in common.

    events : folder of the training and validation events, see `datasets.open_events`; named after their fingerprint
    candidates : number of the most popular items among which, and the target, the target is ranked; None for all
    prune : stop a trial when its Recall@20 after some epoch is below the median of the earlier trials at that epoch.
        It is likely to lose, not certain to; without this every trial is trained to its end
    checkpoints : folder for checkpoints of trials that are not pruned; None for none
    every : seconds between two times that a checkpoint is written
    """
    events: Path
    loss: str
    units: int
    epochs: int
    seed: int
    backend: str
    tie_policy: str
    candidates: int | None = None
    prune: bool = False
    checkpoints: Path | None = None
    every: float = 600.0

    @property
    def name(self) -> str:
        """The name in the storage, which holds all that the trials have in common."""
        candidates = f'{self.candidates} candidates' if self.candidates else 'all items'
        return (f'{self.events.name}, {self.loss}, {self.units} units, {self.epochs} epochs, seed {self.seed}, '
                f'{self.backend}, {self.tie_policy}, {candidates}, space {digits_of(SPACE)}, revision {REVISION}'
                + (', pruned' if self.prune else ''))

    def checkpoint(self, parameters: dict) -> Path | None:
        """Return the file for the checkpoint of a trial, or None."""
        if self.prune or not self.checkpoints:  # a continued trial could not be compared after its first epochs
            return None
        return self.checkpoints / f'trial-{digits_of({"search": self.name, "parameters": parameters})}'


class Found(NamedTuple):
    """The outcome of a search.

    n_random, n_stable, n_stopped : random points, and how many of these were numerically stable, and stopped early
    best_random : parameters, recall and mrr of the best random point; None if no network was stable
    tuned : those of the best point of all, after each parameter was tuned
    """
    n_random: int
    n_stable: int
    n_stopped: int
    best_random: dict | None
    tuned: dict | None


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log, since ours says what happens, and its warning that heartbeats are experimental."""
    import optuna
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


@quiet_optuna()
def run(search: Search, n_trials: int, url: str, note: Callable[[str], None]) -> Found:
    """Run all trials that the storage lacks; return the outcome of the search.

    Parameters
    ----------
    n_trials : number of random points
    url : of the database of trials, as SQLAlchemy writes it
    note : is called with a line of text for each trial
    """
    import optuna
    from sqlalchemy.exc import DBAPIError
    with storage_lock(url):
        storage = open_storage(url)
    for left in reversed(range(ATTEMPTS)):
        try:
            return run_phases(search, n_trials, storage, url, note)
        except Exception as error:
            cause: BaseException | None = error  # Optuna fails with other errors when it cannot store the first one
            while cause and not isinstance(cause, (optuna.exceptions.StorageInternalError, DBAPIError)):
                cause = cause.__context__
            if not cause:
                raise
            if not left:
                raise unusable(url, cause.__cause__ or cause) from None
            if left == ATTEMPTS - 1:
                note('the storage was interrupted; the search continues')
    raise AssertionError('the last attempt returns or raises')


def run_phases(search: Search, n_trials: int, storage: RDBStorage, url: str, note: Callable[[str], None]) -> Found:
    """Run random points, then, from the best one, the values of each parameter in turn."""
    import optuna
    pruner = optuna.pruners.MedianPruner(n_startup_trials=10) if search.prune else optuna.pruners.NopPruner()
    with storage_lock(url):
        study = optuna.create_study(storage=storage, study_name=search.name, direction='maximize',
                                    pruner=pruner, sampler=optuna.samplers.RandomSampler(), load_if_exists=True)
    n_sessions = n_trainable_sessions(open_events(search.events).train)
    space = SPACE | {'batch_size': tuple(b for b in SPACE['batch_size'] if b <= n_sessions)}
    if not space['batch_size']:
        raise ValueError(f'the training data has {n_sessions} sessions of two or more events: too few for a search, '
                         f"whose smallest batch_size is {SPACE['batch_size'][0]}")
    phases = ['random']
    run_phase(study, 'random', random_points(space, n_trials, search.seed), search, space, url, note)
    for name, values in space.items():
        best = best_trial(trials_of(study, phases, n_trials), phases)
        if best is None:
            break
        points = [best.params | {name: value} for value in values if value != best.params[name]]
        phases.append(f'{name}, from {" ".join(str(best.params[key]) for key in space)}')
        run_phase(study, phases[-1], points, search, space, url, note)
    return outcome_of(trials_of(study, phases, n_trials), phases)


@contextlib.contextmanager
def storage_lock(url: str) -> Iterator[Callable[[], None]]:
    """Hold a lock while trials are looked at and one is taken, if the database is a file: SQLite locks no rows.

    Yields a function that releases it before the block ends.  Processes on other machines have to share a database
    server, which locks rows.
    """
    path = Path(url.removeprefix('sqlite:///') + '.lock')
    if not url.startswith('sqlite:///') or not path.parent.is_dir():  # an error that the database reports
        yield lambda: None
        return
    with locked(path) as lock:
        assert lock
        yield lock.release


@quiet_optuna()
def check_storage(url: str) -> None:
    """Raise ValueError if the database of the trials cannot be used; its tables are there afterwards."""
    with storage_lock(url):
        open_storage(url).engine.dispose()


def open_storage(url: str) -> RDBStorage:
    """Open, or make, the database of the trials; ValueError if that fails.

    When processes make its tables at the same moment, a server refuses all but one; the others find the tables at their
    next attempt.  Connections that a server closes are opened again, for minutes if it restarts.
    """
    import optuna
    from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
    # The default driver for PostgreSQL depends on the version of SQLAlchemy.
    address = re.sub('^postgresql://', 'postgresql+psycopg://', url)
    options: dict[str, Any] = {'pool_pre_ping': True}
    if address.startswith('postgresql+psycopg'):
        options['connect_args'] = {'client_encoding': 'utf8'}  # a database in SQL_ASCII names no encoding
    for left in reversed(range(ATTEMPTS)):
        try:
            storage = optuna.storages.RDBStorage(address, engine_kwargs=options, heartbeat_interval=HEARTBEAT,
                                                 grace_period=2 * HEARTBEAT)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            if left and isinstance(error, (IntegrityError, ProgrammingError)):
                time.sleep(0.5)
                continue
            raise unusable(url, error) from None
        if not address.startswith('sqlite:'):
            survive_restarts(storage)
        return storage
    raise AssertionError('the last attempt returns or raises')


def survive_restarts(storage: RDBStorage) -> None:
    """Have a storage connect again for `PATIENCE` seconds when its server is away, and its heartbeats fail silently."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy import event
    failures: list[float] = []  # times, since the last connection
    record_heartbeat = storage.record_heartbeat

    def connect(dialect: Any, _record: Any, arguments: list, keywords: dict) -> Any:
        while True:
            try:
                connection = dialect.connect(*arguments, **keywords)
            except dialect.loaded_dbapi.OperationalError:
                failures.append(time.monotonic())
                if failures[-1] - failures[0] > PATIENCE:
                    raise
                time.sleep(1.0)
            else:
                failures.clear()
                return connection

    def heartbeat(trial_id: int) -> None:
        with contextlib.suppress(StorageInternalError):
            record_heartbeat(trial_id)
    event.listen(storage.engine, 'do_connect', connect)
    storage.record_heartbeat = heartbeat  # type: ignore[method-assign]


def unusable(url: str, error: BaseException) -> ValueError:
    """Return the error of a database that cannot be used, without its passwords."""
    shown = without_password(url)
    if url.count('@') > 1:  # what follows the first may be a part of the password
        reason = 'in a user name and a password, @ is written as %40, : as %3A, / as %2F and ? as %3F'
    else:
        reason = without_password((str(error).strip() or type(error).__name__).splitlines()[0].replace(url, shown))
    return ValueError(f'the storage {shown!r} cannot be used: {reason}. It is written like sqlite:///search.db or '
                      "postgresql://USER@HOST/DATABASE, which needs a driver: pip install '.[postgresql]'")


def without_password(text: str) -> str:
    """Return a URL, or a text with one, with its passwords masked: that before the last @, and those in the query."""
    text = re.sub('(://[^:/@?]*:).*@', r'\1***@', text)
    return re.sub(r'(?i)([?&][^=&\s]*(?:pass|pwd|secret|odbc_connect)[^=&\s]*=)[^&\s]*', r'\1***', text)


@quiet_optuna()
def random_points(space: dict[str, tuple], n: int, seed: int) -> list[dict]:
    """Return the first n points of the search with this seed, by Optuna's random sampler."""
    import optuna
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    distributions: dict[str, BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution(values) for name, values in space.items()}
    return [study.ask(distributions).params for _ in range(n)]


def run_phase(study: Study, phase: str, points: list[dict], search: Search, space: dict[str, tuple], url: str,
              note: Callable[[str], None]) -> None:
    """Run the points of a phase that are not finished, and wait for those that other processes run.

    The points wait in the storage, from where each process takes the next.  One that was lost with its process, or with
    an error that says nothing about the network, is put there again.
    """
    def one_trial(trial: Trial) -> float:
        release()  # the trial is taken
        if trial.user_attrs.get('phase') != phase or trial.user_attrs['number'] >= len(points) or is_duplicate(
                trial, trials_of(study, [phase], len(points))):
            raise optuna.TrialPruned
        return objective(trial, search, space, note, len(points))

    import optuna
    while True:
        with storage_lock(url) as release:
            fail_lost_trials(study)
            trials = trials_of(study, [phase], len(points))
            known = {trial.user_attrs['number'] for trial in trials
                     if is_finished(trial) or not trial.state.is_finished()}
            for number in sorted(set(range(len(points))) - known):
                study.enqueue_trial(points[number], user_attrs={'phase': phase, 'number': number})
            if len(known) == len(points) and all(trial.state.is_finished() for trial in trials):
                return
            if any(trial.state.name == 'WAITING' for trial in study.get_trials(deepcopy=False)):
                try:
                    study.optimize(one_trial, n_trials=1, catch=(Unstable,))
                except (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError) as error:
                    is_ended = 'Cannot tell' in f'{error}{error.__context__}'
                    if not is_ended and not isinstance(error, optuna.exceptions.UpdateFinishedTrialError):
                        raise  # unless another process, which took this one for dead, has ended the trial
                continue
        time.sleep(0.5)


def is_duplicate(trial: Trial, trials: list[FrozenTrial]) -> bool:
    """Return whether another process has or had the same point, since both may have put it into the storage."""
    return any(other.user_attrs['number'] == trial.user_attrs['number'] and other.number != trial.number and (
        is_finished(other) or other.state.name == 'RUNNING' and other.number < trial.number) for other in trials)


def fail_lost_trials(study: Study) -> None:
    """End the trials whose process has died: without a heartbeat for long, or before the first one."""
    import optuna
    optuna.storages.fail_stale_trials(study)
    long_ago = datetime.now() - timedelta(seconds=2 * HEARTBEAT)
    for trial in study.get_trials(deepcopy=False):
        if (trial.state.name == 'RUNNING' and 'began' not in trial.user_attrs
                and trial.datetime_start and trial.datetime_start < long_ago):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def objective(trial: Trial, search: Search, space: dict[str, tuple], note: Callable[[str], None],
              n_points: int) -> float:
    """Return Recall@20 on the validation data of a network with the trial's parameters."""
    import optuna
    trial.set_user_attr('began', True)
    parameters = {name: trial.suggest_categorical(name, values) for name, values in space.items()}
    title = (f"{search.loss}, {trial.user_attrs['phase'].split(',')[0]} {trial.user_attrs['number'] + 1}/{n_points}: "
             + ', '.join(f'{name} {value}' for name, value in parameters.items()))
    model = GRU4Rec([search.units], n_epochs=search.epochs, loss=search.loss, seed=search.seed, backend=search.backend,
                    **parameters)
    checkpoint, started = search.checkpoint(parameters), time.perf_counter()

    def stop_early(progress: Progress) -> None:
        if progress.epoch_ends and progress.epoch + 1 < progress.n_epochs:
            trial.report(validate(model, search)[0], progress.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)  # that the network is unstable, which is reported below
            fit_from_checkpoint(model, open_events(search.events).train, checkpoint, search.every,
                                stop_early if search.prune else None, lambda text, _is_milestone: note(text))
        if model.error_during_train:
            raise Unstable(f'not finite after {len(model.epoch_losses_)} epochs')
    except Exception as error:
        reason = 'stopped early' if isinstance(error, optuna.TrialPruned) else f'{type(error).__name__}: {error}'
        trial.set_user_attr('reason', reason)
        if checkpoint and isinstance(error, Unstable):
            checkpoint.unlink(missing_ok=True)
        note(f'{title}: {reason}')
        raise
    recall, mrr = validate(model, search)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    trial.set_user_attr('mrr', mrr)
    trial.set_user_attr('seconds', time.perf_counter() - started)
    note(f'{title}: Recall@{CUT_OFF} {recall:.4f}')
    return recall


def validate(model: GRU4Rec, search: Search) -> tuple[float, float]:
    """Return Recall@20 and MRR@20 of a model on the validation data."""
    train, valid = open_events(search.events)
    candidates = most_frequent(train.ItemId, search.candidates)
    return recall_mrr(next_item_ranks(model, valid, candidates, tie_policy=search.tie_policy), CUT_OFF)


def is_finished(trial: FrozenTrial) -> bool:
    """Return whether a trial says something about its network; an error or an interruption does not."""
    reason = trial.user_attrs.get('reason', '')
    return trial.state.name == 'COMPLETE' or reason == 'stopped early' or reason.startswith('Unstable')


def trials_of(study: Study, phases: list[str], n_trials: int) -> list[FrozenTrial]:
    """Return the trials of some phases; of the random ones, those of the first `n_trials` points."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get('phase') in phases
            and (trial.user_attrs['phase'] != 'random' or trial.user_attrs['number'] < n_trials)]


def best_trial(trials: list[FrozenTrial], phases: list[str]) -> FrozenTrial | None:
    """Return the trial with the highest recall; of equal ones, the first point."""
    complete: list[Any] = [trial for trial in trials if trial.state.name == 'COMPLETE']
    order = {phase: k for k, phase in enumerate(phases)}
    return min(complete, default=None, key=lambda trial: (
        -trial.value, order[trial.user_attrs['phase']], trial.user_attrs['number']))


def outcome_of(trials: list[FrozenTrial], phases: list[str]) -> Found:
    """Return what the trials of the phases found, of which the first is the random one."""
    def described(trial: FrozenTrial | None) -> dict | None:
        return trial.params | {'recall': trial.value, 'mrr': trial.user_attrs['mrr']} if trial else None

    at_random = [trial for trial in trials if trial.user_attrs['phase'] == phases[0]]
    finished = {trial.user_attrs['number']: trial for trial in at_random if is_finished(trial)}
    unstable = sum(trial.user_attrs.get('reason', '').startswith('Unstable') for trial in finished.values())
    stopped = sum(trial.user_attrs.get('reason') == 'stopped early' for trial in finished.values())
    return Found(len(finished), len(finished) - unstable, stopped, described(best_trial(at_random, phases)),
                   described(best_trial(trials, phases)))
