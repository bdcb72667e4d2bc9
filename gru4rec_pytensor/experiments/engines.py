"""Engines: what runs tasks, in this process, in several processes of this machine, or on a Dask cluster.

An engine is a function of tasks and a `Display`, and yields each task with its outcome as it ends.  Why not joblib,
which has loky and Dask under one interface, or the futures that `concurrent.futures` and Dask share?  Local pools of
both give up as a whole when one of their processes is killed: nobody could say which cell was the cause, and all that
were running would be lost.  Here a process has one task at a time and a pipe of its own, so that a process that dies
costs its own task one retry and nothing else; on a cluster Dask's scheduler does the same.
"""
from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from gru4rec_pytensor.backends.threads import available_cores, limits
from gru4rec_pytensor.terminal import Display

RETRIES = 1  # of a task whose process dies
THREAD_VARIABLES = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
EVERY = 1.0  # second, between two reports of a task that are no milestones


class Task(NamedTuple):
    """A function that can be imported, and its arguments; it also gets a function to report with."""
    title: str
    function: Callable[..., Any]
    arguments: tuple


class Outcome(NamedTuple):
    """What a task returned, or why it did not."""
    value: Any = None
    failure: str = ''


Engine = Callable[[list[Task], Display], Iterator[tuple[Task, Outcome]]]


def attempt(task: Task, report: Callable[[str, bool], None]) -> Outcome:
    """Run a task.  An error is its outcome; one that has no good words of its own is reported with its traceback."""
    try:
        return Outcome(task.function(*task.arguments, report))
    except Exception as error:
        if not isinstance(error, (OSError, ValueError, MemoryError)):
            report(traceback.format_exc(), True)
        return Outcome(failure=f'{type(error).__name__}: {error}')


def now_and_then(report: Callable[[str, bool], None]) -> Callable[[str, bool], None]:
    """`report`, called once a second at most but for milestones."""
    last = 0.0

    def throttled(text: str, is_milestone: bool) -> None:
        nonlocal last
        if is_milestone or time.monotonic() - last > EVERY:
            last = time.monotonic()
            report(text, is_milestone)
    return throttled


def in_this_process(tasks: list[Task], display: Display) -> Iterator[tuple[Task, Outcome]]:
    """One task after another."""
    for task in tasks:
        def report(text: str, is_milestone: bool, title: str = task.title) -> None:
            display.progress(title, text, is_milestone)
        yield task, attempt(task, now_and_then(report))


# ---------------------------------------------------------------------------------------------------------------------
# Processes of this machine
# ---------------------------------------------------------------------------------------------------------------------

def available_memory() -> float:
    """Bytes that this process may use: the memory of the machine or of its container; infinite if nobody knows."""
    of_container = limits('memory.max') or limits('memory/memory.limit_in_bytes')
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return min([os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'), *of_container])
    return min(of_container, default=float('inf'))


def default_jobs(sizes: Sequence[float], backend: str) -> int:
    """How many cells to run at a time: one for each core, as far as they fit into three quarters of the memory.

    sizes : bytes that each of them takes; those that take most may come together
    """
    if backend == 'jax':  # a GPU, which one training fills
        return 1
    together = itertools.accumulate(sorted(sizes, reverse=True)[:available_cores()])
    return max(1, sum(taken <= 0.75 * available_memory() for taken in together))


@dataclass
class Worker:
    """A process, our end of its pipe, and the task that it is at, with how often it may be tried again."""
    process: Any
    connection: Connection
    task: Task | None = None
    retries: int = 0


@dataclass
class Pool:
    """Processes with a task each; a context that ends all of them at once.

    n : how many processes
    """
    tasks: list[Task]
    n: int
    display: Display
    workers: list[Worker] = field(default_factory=list)

    def run(self) -> Iterator[tuple[Task, Outcome]]:
        """Hand out the tasks, and yield what comes back."""
        waiting = deque((task, RETRIES) for task in self.tasks)
        while waiting or any(worker.task for worker in self.workers):
            while waiting and len(self.workers) < self.n:
                self.workers.append(start_worker(max(1, available_cores() // self.n)))
            for worker in self.workers:
                if waiting and worker.task is None:
                    worker.task, worker.retries = waiting.popleft()
                    with contextlib.suppress(OSError):  # it has died, which its pipe says next
                        worker.connection.send(worker.task)
            ready = wait([worker.connection for worker in self.workers])
            for worker in [worker for worker in self.workers if worker.connection in ready]:
                task = worker.task
                try:
                    outcome = self.receive(worker)
                except (EOFError, OSError):
                    outcome = self.bury(worker)
                    if task and not outcome:
                        waiting.appendleft((task, worker.retries - 1))
                if task and outcome:
                    yield task, outcome

    def receive(self, worker: Worker) -> Outcome | None:
        """What a worker has to say: the outcome of its task, or, shown at once, how far it is."""
        message = worker.connection.recv()
        if isinstance(message, Outcome):
            worker.task = None
            return message
        if worker.task:
            self.display.progress(worker.task.title, *message)
        return None

    def bury(self, worker: Worker) -> Outcome | None:
        """Report a process that died; the outcome of its task, unless that is tried again."""
        self.workers.remove(worker)
        worker.process.join()
        if worker.task is None:
            return None
        title, reason = worker.task.title, how_it_ended(worker.process.exitcode)
        if not worker.retries:
            return Outcome(failure=f'its process died again ({reason})')
        self.display.line(f'{title}: process {worker.process.pid} died ({reason}); it is tried once more')
        return None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_error: Any) -> None:
        for worker in self.workers:  # what is written on the way is whole or not there
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()


def in_processes(n: int) -> Engine:
    """An engine of n processes, which share the machine's cores."""
    def engine(tasks: list[Task], display: Display) -> Iterator[tuple[Task, Outcome]]:
        if n == 1 or len(tasks) < 2:
            yield from in_this_process(tasks, display)
            return
        with Pool(tasks, min(n, len(tasks)), display) as pool:
            yield from pool.run()
    return engine


def start_worker(threads: int) -> Worker:
    """A new process, which gives BLAS so many threads unless the user's environment says how many."""
    context = multiprocessing.get_context('spawn')  # a fork would take over locks of the threads that run here
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    added = {name: str(threads) for name in THREAD_VARIABLES if name not in os.environ}
    os.environ.update(added)
    # Ctrl-C reaches all processes of a terminal.  This one ends the new one, which ignores it from its first moment on.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
        for name in added:
            del os.environ[name]
    theirs.close()  # so that the pipe ends with the process
    return Worker(process, ours)


def serve(connection: Connection) -> None:
    """What a worker process does: a task at a time, until its parent has no more or is gone."""
    threading.Thread(target=end_with_parent, daemon=True).start()

    def report(text: str, is_milestone: bool) -> None:
        connection.send((text, is_milestone))
    warnings.showwarning = lambda message, category, *_where: report(f'{category.__name__}: {message}', True)
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(attempt(connection.recv(), now_and_then(report)))


def end_with_parent() -> None:
    """End this process when the one that started it has ended, however that was."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)


def how_it_ended(exitcode: int | None) -> str:
    """The end of a process in words."""
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-exitcode).name
            return name + (', perhaps out of memory' if name == 'SIGKILL' else '')
    return f'exit code {exitcode}'


# ---------------------------------------------------------------------------------------------------------------------
# A Dask cluster
# ---------------------------------------------------------------------------------------------------------------------

CONNECT = 20  # seconds for reaching a scheduler
ONE_AT_A_TIME = threading.Lock()  # in a worker that was given more threads after all


class Abandoned(Exception):
    """Nobody waits for this task any more."""


def on_cluster(address: str) -> Engine:
    """An engine of the workers of a Dask scheduler.

    The scheduler gives the task of a worker that dies to another, as often as its setting `allowed-failures` says.
    """
    def engine(tasks: list[Task], display: Display) -> Iterator[tuple[Task, Outcome]]:
        from distributed import as_completed
        topic = f'gru4rec-{uuid.uuid4()}'
        with connected(address) as client:
            client.subscribe_topic(topic, lambda event: display.progress(*event[1]))
            futures = {client.submit(attempt_on_worker, task, topic, key=f'{topic}-{k}'): task
                       for k, task in enumerate(tasks)}
            try:
                for future in as_completed(futures, loop=client.loop):
                    yield futures[future], outcome_of(future)
            finally:
                client.cancel([*futures], force=True)
    return engine


def attempt_on_worker(task: Task, topic: str) -> Outcome:
    """`attempt` on a worker, which tells those who listen to `topic`; it ends soon when the client is gone."""
    from distributed import get_worker
    from distributed.worker import thread_state
    worker, key = get_worker(), thread_state.key

    def report(text: str, is_milestone: bool) -> None:
        state = worker.state.tasks.get(key)
        if state is None or state.state == 'cancelled':
            raise Abandoned
        worker.log_event(topic, (task.title, text, is_milestone))
    with ONE_AT_A_TIME:
        return attempt(task, now_and_then(report))


def outcome_of(future: Any) -> Outcome:
    """Of a task that has ended.  If its worker has died with the result, this waits until another has run it again."""
    from distributed import CancelledError
    try:
        return future.result()
    except CancelledError:
        return Outcome(failure='the connection to the scheduler was lost')
    except Exception as error:  # of the scheduler: those of the task are its outcome
        return Outcome(failure=' '.join(str(error).split()) or type(error).__name__)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """A client of a scheduler; ValueError if there is none."""
    import distributed
    try:
        client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f'--scheduler {address}: no Dask scheduler is reached there ({error}); an address looks like '
                         'tcp://HOST:8786') from None
    with client:
        yield client


def count_workers(address: str, folder: Path) -> int:
    """How many workers a scheduler has; ValueError unless all of them can do the work.

    They need this package, the folder of results under the same name, and one thread each, since a training uses
    another thread for nothing but products.
    """
    with connected(address) as client:
        client.wait_for_workers(1, timeout=CONNECT)
        found = client.run(sees, str(folder), on_error='return')
        threads = client.nthreads()
    for worker, answer in found.items():
        if isinstance(answer, BaseException):
            raise ValueError(f'worker {worker} cannot run this package: {answer}')
        if not answer:
            raise ValueError(f'worker {worker} does not see {folder}: --out must be on a disk that all workers share')
        if threads.get(worker, 1) > 1:
            raise ValueError(f'worker {worker} has {threads[worker]} threads: start it with --nthreads 1')
    return len(found)


def sees(folder: str) -> bool:
    """Whether a worker can write into a folder."""
    return os.access(folder, os.W_OK)
