"""The database of a search's trials, by Optuna: its lock, restarts of its server, trials that were lost.

Several processes, or machines that share a database server, work on one search together.  This module, `spaces` and
`search` import Optuna.
"""
from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru4rec_pytensor.files import locked

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

HEARTBEAT = 30  # seconds; a process without a sign of life for two of these has lost its trial
ATTEMPTS = 10  # to open a database server while other processes make its tables, and to continue after interruptions
PATIENCE = 300  # seconds, for a server that restarts


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
    left = ATTEMPTS
    while True:
        try:
            storage = optuna.storages.RDBStorage(address, engine_kwargs=options, heartbeat_interval=HEARTBEAT,
                                                 grace_period=2 * HEARTBEAT)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            left -= 1
            if not left or not isinstance(error, (IntegrityError, ProgrammingError)):
                raise unusable(url, error) from None
            time.sleep(0.5)
        else:
            if not address.startswith('sqlite:'):
                survive_restarts(storage)
            return storage


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


def fail_lost_trials(study: Study) -> None:
    """End the trials whose process has died: without a heartbeat for long, or before the first one."""
    import optuna
    optuna.storages.fail_stale_trials(study)
    long_ago = datetime.now() - timedelta(seconds=2 * HEARTBEAT)
    for trial in study.get_trials(deepcopy=False):
        if (trial.state.name == 'RUNNING' and 'began' not in trial.user_attrs
                and trial.datetime_start and trial.datetime_start < long_ago):
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process was faster
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
