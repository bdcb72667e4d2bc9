"""Searches for parameters: that of section 4.2, whose outcome is Table 2, and those of spaces that a file states.

The paper tried 100 random points of the parameter space for each data set and loss, and then tuned each parameter of
the best point on its own, on a validation set.  It does not give the space; ours is `SPACE`.  A search of a file's
space takes its points from a sampler alone.  The trials are in a database, see `storage`: an interrupted search
continues from there.
"""
from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation import CUT_OFF, gains, next_item_ranks, recall_mrr
from gru4rec import GRU4Rec, Progress
from gru4rec_pytensor.events import most_frequent, n_trainable_sessions
from gru4rec_pytensor.experiments.cells import fit_from_checkpoint
from gru4rec_pytensor.experiments.datasets import open_events
from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.experiments.results import digits_of
from gru4rec_pytensor.experiments.spaces import Space, extremes, network_arguments, random_points, rounded, suggested
from gru4rec_pytensor.experiments.storage import (
    ATTEMPTS,
    fail_lost_trials,
    open_storage,
    quiet_optuna,
    storage_lock,
    unusable,
)

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

# Every value of a parameter is as likely as the others; the same space for each loss, with 100 units and Adagrad.
SPACE: dict[str, tuple] = {
    'batch_size': (20, 50, 100, 200, 500),
    'dropout_p_hidden': (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    'learning_rate': (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    'momentum': (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
}
SAMPLERS = ('tpe', 'random')
FAILED = 'Cannot be trained'  # of a network that needs too much memory, say
STARTUP = 10  # random points, from which TPE starts
N_WHOLE = 5  # trials that end before another one is stopped early


class Superfluous(Exception):
    """Another process has or had the point of a trial, since both put it into the storage."""


class Search(NamedTuple):
    """One search: what its trials have in common, and where they are."""
    events: Path  # folder of training and validation events, see `datasets.open_events`, named after their fingerprint
    space: Space  # what is searched, and the arguments that all networks share
    seed: int
    backend: str
    tie_policy: str
    url: str  # of the database of trials, as SQLAlchemy writes it
    checkpoints: Path  # folder for those of trials
    n_trials: int = 100  # number of points; in a search of Table 2 of random ones
    candidates: int | None = None  # see `Protocol`
    # Stop a trial when its metric after some epoch is below the median of the earlier trials at that epoch.  It is
    # likely to lose, not certain to.
    prune: bool = False
    every: float = 600.0  # seconds between two times that a checkpoint is written
    sampler: str | None = None  # one of `SAMPLERS`; None for Table 2, which tunes each parameter after random points
    metric: str = f'Recall@{CUT_OFF}'  # on the validation data, to be maximised
    timeout: float = float('inf')  # seconds after which no trial begins

    @property
    def name(self) -> str:
        """The name in the storage, which holds all that the trials have in common."""
        fixed, space = self.space.fixed, self.space.parameters
        candidates = f'{self.candidates} candidates' if self.candidates else 'all items'
        if self.sampler:
            kind, digits = f'{self.space.name}, {self.metric}, {self.sampler}', digits_of([fixed, space])
        else:
            kind = f"{fixed['loss']}, {fixed['layers'][0]} units, {fixed['n_epochs']} epochs"
            digits = digits_of(space)
        return (f'{self.events.name}, {kind}, seed {self.seed}, {self.backend}, {self.tie_policy}, {candidates}, '
                f'space {digits}, revision {REVISION}' + (', pruned' if self.prune else ''))

    def checkpoint(self, parameters: dict) -> Path:
        """Return the file for the checkpoint of a trial."""
        return self.checkpoints / f'trial-{digits_of({"search": self.name, "parameters": parameters})}'


def space_of_table_2(loss: str, units: int, epochs: int) -> Space:
    """Return the space of Table 2 for networks of one loss."""
    return Space('', dict(layers=[units], n_epochs=epochs, loss=loss), SPACE)


@quiet_optuna()
def run(search: Search, report: Callable[[str, bool], None]) -> dict:
    """Run all trials that the storage lacks; return the outcome, see `outcome_of`, or `recorded` if it has a sampler.

    report : is called with a line of text for each trial, and True
    """
    import optuna
    from sqlalchemy.exc import DBAPIError

    def note(text: str) -> None:
        report(text, True)

    deadline = time.monotonic() + search.timeout
    with storage_lock(search.url):
        storage = open_storage(search.url)
    left, last = ATTEMPTS, float('-inf')
    while True:
        try:
            return run_phases(search, storage, note, deadline)
        except Exception as error:
            cause: BaseException | None = error  # Optuna fails with other errors when it cannot store the first one
            while cause and not isinstance(cause, (optuna.exceptions.StorageInternalError, DBAPIError)):
                cause = cause.__context__
            if not cause:
                raise
            left = (left if time.monotonic() < last + 3600 else ATTEMPTS) - 1  # of an hour
            last = time.monotonic()
            if not left:
                raise unusable(search.url, cause.__cause__ or cause) from None
            if left == ATTEMPTS - 1:
                note('the storage was interrupted; the search continues')


def run_phases(search: Search, storage: RDBStorage, note: Callable[[str], None], deadline: float) -> dict:
    """Run random points, then, from the best one, the values of each parameter in turn; or those of a sampler."""
    import optuna
    n_sessions = n_trainable_sessions(open_events(search.events).train)
    space, n_trials = search.space.parameters, search.n_trials
    if not search.sampler:
        smallest = space['batch_size'][0]
        space = space | {'batch_size': tuple(b for b in space['batch_size'] if b <= n_sessions)}
        if not space['batch_size']:
            raise ValueError(f'the training data has {n_sessions} sessions of two or more events: too few for a '
                             f'search, whose smallest batch_size is {smallest}')
        search = search._replace(space=search.space._replace(parameters=space))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=N_WHOLE) if search.prune else optuna.pruners.NopPruner()
    with storage_lock(search.url):
        study = optuna.create_study(storage=storage, study_name=search.name, direction='maximize', pruner=pruner,
                                    sampler=optuna.samplers.RandomSampler(), load_if_exists=True)
    if search.sampler:
        largest = max(extremes(space.get('batch_size', (search.space.fixed.get('batch_size', 50),))))
        if largest > n_sessions:
            raise ValueError(f'batch_size={largest}: more than the {n_sessions} sessions of two or more events that '
                             'the training data has; search among smaller ones')
        points = random_points(space, n_trials, search.seed)
        if search.sampler == 'tpe':
            points[STARTUP:] = [{}] * (n_trials - STARTUP)  # the sampler gives them when their trials begin
        run_phase(study, search.sampler, points, search, note, deadline)
        return recorded(study, trials_of(study, [search.sampler], n_trials), space)
    phases = ['random']
    run_phase(study, 'random', random_points(space, n_trials, search.seed), search, note, deadline)
    for name, values in space.items():
        best = best_trial(trials_of(study, phases, n_trials), phases)
        if best is None:
            break
        points = [best.params | {name: value} for value in values if value != best.params[name]]
        phases.append(f'{name}, from {" ".join(str(best.params[key]) for key in space)}')
        run_phase(study, phases[-1], points, search, note, deadline)
    return outcome_of(trials_of(study, phases, n_trials), phases)


def run_phase(study: Study, phase: str, points: list[dict], search: Search, note: Callable[[str], None],
              deadline: float) -> None:
    """Run the points of a phase that are not finished, and wait for those that other processes run.

    Each process puts the next point into the storage, and takes it from there.  A point that was lost with its process,
    or with an error that says nothing about the network, comes before new ones.
    """
    def one_trial(trial: Trial) -> float:
        release()  # the trial is taken
        if trial.user_attrs.get('phase') != phase or trial.user_attrs['number'] >= len(points):
            raise Superfluous
        for other in trials_of(study, [phase], len(points)):
            if other.user_attrs['number'] == trial.user_attrs['number'] and other.number != trial.number and (
                    is_finished(other) or other.state.name == 'RUNNING' and other.number < trial.number):
                raise Superfluous
        return objective(trial, search, note, len(points))

    import optuna
    while True:
        with storage_lock(search.url) as release:
            fail_lost_trials(study)
            trials = trials_of(study, [phase], len(points))
            known = {trial.user_attrs['number'] for trial in trials
                     if is_finished(trial) or not trial.state.is_finished()}
            missing = sorted(set(range(len(points))) - known)
            if not missing and all(trial.state.is_finished() for trial in trials):
                return
            states = {trial.state.name for trial in study.get_trials(deepcopy=False)}
            if missing and 'WAITING' not in states:
                point, reported = points[missing[0]], {}
                for trial in trials:
                    if trial.user_attrs['number'] == missing[0] and trial.params:  # it was lost
                        point, reported = trial.params, trial.intermediate_values
                study.enqueue_trial(point, user_attrs={'phase': phase, 'number': missing[0], 'reported': reported})
                states.add('WAITING')
            if time.monotonic() > deadline:
                if 'RUNNING' not in states:
                    return
            elif 'WAITING' in states:
                if search.sampler == 'tpe':  # a seed for each trial: that of one process is the same in each command
                    study.sampler = optuna.samplers.TPESampler(
                        n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=search.seed + len(known))
                try:
                    study.optimize(one_trial, n_trials=1, catch=(Superfluous,))
                except (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError) as error:
                    is_ended = 'Cannot tell' in f'{error}{error.__context__}'
                    if not is_ended and not isinstance(error, optuna.exceptions.UpdateFinishedTrialError):
                        raise  # unless another process, which took this one for dead, has ended the trial
                continue
        time.sleep(0.5)


def objective(trial: Trial, search: Search, note: Callable[[str], None], n_points: int) -> float:
    """Return the metric on the validation data of a network with the trial's parameters."""
    import optuna
    trial.set_user_attr('began', True)
    point, reported = suggested(trial, search.space.parameters), trial.user_attrs.get('reported', {})
    title = (f"{search.space.name or search.space.fixed['loss']}, {trial.user_attrs['phase'].split(',')[0]} "
             f"{trial.user_attrs['number'] + 1}/{n_points}: "
             + ', '.join(f'{name} {value}' for name, value in point.items()))
    model = GRU4Rec(**network_arguments(search.space.fixed | point), seed=search.seed, backend=search.backend)
    checkpoint, started = search.checkpoint(point), time.perf_counter()
    for epoch, value in reported.items():  # before its process was lost
        trial.report(value, int(epoch))

    def stop_early(progress: Progress) -> None:
        if progress.epoch_ends and progress.epoch + 1 < progress.n_epochs and str(progress.epoch) not in reported:
            trial.report(validate(model, search)[0], progress.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned('stopped early')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)  # that the network is unstable, which is reported below
            fit_from_checkpoint(model, open_events(search.events).train, checkpoint, search.every,
                                stop_early if search.prune else None, lambda text, _is_milestone: note(text))
        if model.error_during_train:
            raise optuna.TrialPruned(f'Unstable: not finite after {len(model.epoch_losses_)} epochs')
        value, recall, mrr = validate(model, search)
        outcome = f'{search.metric} {value:.4f}'
    except (optuna.TrialPruned, MemoryError, TypeError, ValueError) as error:
        is_end = isinstance(error, optuna.TrialPruned)
        value, outcome = float('-inf'), str(error) if is_end else f'{FAILED}: {type(error).__name__}: {error}'
        trial.set_user_attr('reason', outcome)
    except Exception as error:  # of a disk or a database: another process, or the next command, has better luck
        trial.set_user_attr('reason', f'{type(error).__name__}: {error}')
        note(f'{title}: {type(error).__name__}: {error}')
        raise
    checkpoint.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    trial.set_user_attr('seconds', seconds)
    note(f'{title}: {outcome}; {progress_of(trial, value, seconds, n_points)}')
    if value == float('-inf'):
        raise optuna.TrialPruned(outcome)
    trial.set_user_attr('recall', recall)
    trial.set_user_attr('mrr', mrr)
    return value


def progress_of(trial: Trial, value: float, seconds: float, n_points: int) -> str:
    """Return how far its phase is, as text, when a trial ends with a value after some seconds."""
    others = [other for other in trials_of(trial.study, [trial.user_attrs['phase']], n_points)
              if other.number != trial.number]
    finished = [other for other in others if is_finished(other)]
    running = 1 + sum(other.state.name == 'RUNNING' for other in others)
    stopped = sum(other.state.name == 'PRUNED' for other in finished) + (value == float('-inf'))
    best = max([value] + [other.value or 0.0 for other in finished if other.state.name == 'COMPLETE'])
    shown = '-' if best == float('-inf') else f'{best:.4f}'
    left = n_points - len(finished) - 1
    mean = (seconds + sum(other.user_attrs.get('seconds', 0) for other in finished)) / (len(finished) + 1)
    return (f'{len(finished) + 1} of {n_points} done, {running - 1} running, {stopped} stopped early or unstable, '
            f'best {shown}, about {left * mean / min(running, max(left, 1)) / 60:.0f} minutes left')


def validate(model: GRU4Rec, search: Search) -> tuple[float, float, float]:
    """Return the search's metric, Recall@20 and MRR@20 of a model on the validation data."""
    train, valid = open_events(search.events)
    candidates = most_frequent(train.ItemId, search.candidates)
    ranks = next_item_ranks(model, valid, candidates, tie_policy=search.tie_policy)
    return float(gains(ranks, search.metric.lower()).mean()), *recall_mrr(ranks, CUT_OFF)


def is_finished(trial: FrozenTrial) -> bool:
    """Return whether a trial says something about its network; an interruption, or an error of a disk, does not."""
    reason = trial.user_attrs.get('reason', '')
    return trial.state.name == 'COMPLETE' or reason == 'stopped early' or reason.startswith(('Unstable', FAILED))


def trials_of(study: Study, phases: list[str], n_trials: int) -> list[FrozenTrial]:
    """Return the trials of some phases; of the first of these, those of the first `n_trials` points."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get('phase') in phases
            and (trial.user_attrs['phase'] != phases[0] or trial.user_attrs['number'] < n_trials)]


def best_trial(trials: list[FrozenTrial], phases: list[str]) -> FrozenTrial | None:
    """Return the trial with the highest value; of equal ones, the first point."""
    complete: list[Any] = [trial for trial in trials if trial.state.name == 'COMPLETE']
    order = {phase: k for k, phase in enumerate(phases)}
    return min(complete, default=None, key=lambda trial: (
        -trial.value, order[trial.user_attrs['phase']], trial.user_attrs['number']))


def outcome_of(trials: list[FrozenTrial], phases: list[str]) -> dict:
    """Return what the trials of the phases found, of which the first is the random one.

    n_random, n_stable, n_stopped : random points, and how many of these were numerically stable, and stopped early
    best_random, tuned : parameters, recall and mrr of the best random point, and of the best of all; None without any
    """
    def described(trial: FrozenTrial | None) -> dict | None:
        return trial.params | {'recall': trial.value, 'mrr': trial.user_attrs['mrr']} if trial else None

    at_random = [trial for trial in trials if trial.user_attrs['phase'] == phases[0]]
    finished = {trial.user_attrs['number']: trial for trial in at_random if is_finished(trial)}
    unstable = sum(trial.user_attrs.get('reason', '').startswith(('Unstable', FAILED)) for trial in finished.values())
    stopped = sum(trial.user_attrs.get('reason') == 'stopped early' for trial in finished.values())
    return {'n_random': len(finished), 'n_stable': len(finished) - unstable, 'n_stopped': stopped,
            'best_random': described(best_trial(at_random, phases)), 'tuned': described(best_trial(trials, phases))}


def recorded(study: Study, trials: list[FrozenTrial], space: dict[str, Any]) -> dict:
    """Return the finished trials, in the order of their ends, and the importance of each parameter, for a file.

    The importance is that of PED-ANOVA, for a metric among the best tenth: fANOVA would need another package.
    """
    import optuna
    finished = {trial.user_attrs['number']: trial for trial in trials if is_finished(trial)}
    in_order: list[Any] = sorted(finished.values(), key=lambda trial: trial.datetime_complete)
    rows = [{'number': trial.user_attrs['number'] + 1, 'point': rounded(trial.params, space),
             'value': trial.value if trial.state.name == 'COMPLETE' else None,  # Optuna's is the last that was reported
             'reason': trial.user_attrs.get('reason', '').split(':')[0], 'epochs': len(trial.intermediate_values)}
            | {name: trial.user_attrs.get(name) for name in ('recall', 'mrr', 'seconds')} for trial in in_order]
    importance = {}
    n_complete = sum(trial.state.name == 'COMPLETE' for trial in in_order)
    if n_complete >= 2 * STARTUP:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / n_complete))
        importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {'trials': rows, 'importance': importance}
