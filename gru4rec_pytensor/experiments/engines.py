"""Engines: they run tasks in this process, in several processes of this machine, or on a Dask cluster.

An engine is a function of tasks and a `Display`, and yields each task with its outcome.  A process here has one task at
a time and a pipe of its own, so that a process that dies costs its own task one retry and nothing else; on a cluster
Dask's scheduler does the same.  The pools of `concurrent.futures` and loky give up as a whole when one of their
processes is killed, and nobody could say which task was the cause.
"""
from __future__ import annotations

import contextlib
import functools
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
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from gru4rec_pytensor import __version__
from gru4rec_pytensor.backends.threads import available_cores, limits
from gru4rec_pytensor.experiments.cells import versions
from gru4rec_pytensor.experiments.protocols import REVISION
from gru4rec_pytensor.terminal import Display

RETRIES = 1  # of a task whose process dies
THREAD_VARIABLES = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
EVERY = 1.0  # second, between two reports of a task that are no milestones


class Task(NamedTuple):
    """A function that can be imported, and its arguments, to which a function to report with is added."""
    title: str
    function: Callable[..., Any]
    arguments: tuple


class Outcome(NamedTuple):
    """The value of a task, or the reason of its failure."""
    value: Any = None
    failure: str = ''


Engine = Callable[[list[Task], Display], Iterator[tuple[Task, Outcome]]]


def attempt(task: Task, report: Callable[[str, bool], None]) -> Outcome:
    """Run a task.  An error is its outcome; one of an unexpected kind is also reported with its traceback."""
    last = 0.0

    def report_now_and_then(text: str, is_milestone: bool) -> None:
        nonlocal last
        if is_milestone or time.monotonic() - last > EVERY:
            last = time.monotonic()
            report(text, is_milestone)
    try:
        return Outcome(task.function(*task.arguments, report_now_and_then))
    except Exception as error:
        if not isinstance(error, (OSError, ValueError, MemoryError)):
            report(traceback.format_exc(), True)
        return Outcome(failure=f'{type(error).__name__}: {error}')


def in_this_process(tasks: list[Task], display: Display) -> Iterator[tuple[Task, Outcome]]:
    """Run one task after another."""
    for task in tasks:
        yield task, attempt(task, functools.partial(display.progress, task.title))


# ---------------------------------------------------------------------------------------------------------------------
# Processes of this machine
# ---------------------------------------------------------------------------------------------------------------------

def available_memory() -> float:
    """Return the bytes that this process may use, of the machine or of its container; infinite if unknown."""
    of_container = limits('memory.max') or limits('memory/memory.limit_in_bytes')
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return min([os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'), *of_container])
    return min(of_container, default=float('inf'))


def default_jobs(sizes: Sequence[float], backend: str) -> int:
    """Return how many cells to run at a time: one for each core, if they fit into three quarters of the memory.

    sizes : bytes that each of them takes; the largest may run together
    """
    if backend == 'jax':  # a GPU, which one training fills
        return 1
    together = itertools.accumulate(sorted(sizes, reverse=True)[:available_cores()])
    return max(1, sum(taken <= 0.75 * available_memory() for taken in together))


def in_processes(n: int) -> Engine:
    """Return an engine of n processes, which share the machine's cores."""
    def engine(tasks: list[Task], display: Display) -> Iterator[tuple[Task, Outcome]]:
        if n == 1 or len(tasks) < 2:
            yield from in_this_process(tasks, display)
            return
        waiting = deque((task, RETRIES) for task in tasks)
        processes: dict[Connection, Any] = {}  # by our end of their pipes
        running: dict[Connection, tuple[Task, int]] = {}  # and how often each task may be tried again
        try:
            while waiting or running:
                while waiting and len(running) < n:
                    idle = [connection for connection in processes if connection not in running]
                    connection = idle[0] if idle else start_process(max(1, available_cores() // n), processes)
                    running[connection] = waiting.popleft()
                    with contextlib.suppress(OSError):  # it has died, which its pipe says next
                        connection.send(running[connection][0])
                answered: list[Any] = wait([*running])
                for ready in answered:
                    task, retries = running[ready]
                    try:
                        message = ready.recv()
                    except (EOFError, OSError):
                        del running[ready]
                        process = processes.pop(ready)
                        process.join()
                        reason = how_it_ended(process.exitcode)
                        if retries:
                            display.line(f'{task.title}: process {process.pid} died ({reason}); it is tried once more')
                            waiting.appendleft((task, retries - 1))
                        else:
                            yield task, Outcome(failure=f'its process died again ({reason})')
                        continue
                    if isinstance(message, Outcome):
                        del running[ready]
                        yield task, message
                    else:
                        display.progress(task.title, *message)
        finally:
            for process in processes.values():  # what they write at the moment is whole or not there
                process.kill()
            for process in processes.values():
                process.join()
    return engine


def start_process(threads: int, processes: dict[Connection, Any]) -> Connection:
    """Start a process, with so many threads for BLAS unless the environment says how many; return our end of its pipe.
    """
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
    processes[ours] = process
    return ours


def serve(connection: Connection) -> None:
    """Run one task after another in a process of its own, until its parent has no more or has died."""
    def end_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    def report(text: str, is_milestone: bool) -> None:
        connection.send((text, is_milestone))
    threading.Thread(target=end_with_parent, daemon=True).start()
    warnings.showwarning = lambda message, category, *_where: report(f'{category.__name__}: {message}', True)
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(attempt(connection.recv(), report))


def how_it_ended(exitcode: int) -> str:
    """Return the end of a process in words."""
    with contextlib.suppress(ValueError):
        name = signal.Signals(-exitcode).name
        return name + ', perhaps out of memory' * (name == 'SIGKILL')
    return f'exit code {exitcode}'


# ---------------------------------------------------------------------------------------------------------------------
# A Dask cluster
# ---------------------------------------------------------------------------------------------------------------------

CONNECT = 20  # seconds for reaching a scheduler and its first worker
ONE_AT_A_TIME = threading.Lock()  # in a worker that was given more threads after all


class Abandoned(Exception):
    """The client of a task is gone."""


def on_cluster(address: str) -> Engine:
    """Return an engine of the workers of a Dask scheduler.

    The scheduler gives the task of a worker that dies to another, as often as its setting `allowed-failures` says.
    """
    def engine(tasks: list[Task], display: Display) -> Iterator[tuple[Task, Outcome]]:
        from distributed import CancelledError, as_completed
        topic = f'gru4rec-{uuid.uuid4()}'
        with connected(address) as client:
            client.subscribe_topic(topic, lambda event: display.progress(*event[1]))
            futures = {client.submit(attempt_on_worker, task, topic, key=f'{topic}-{k}'): task
                       for k, task in enumerate(tasks)}
            try:
                for future in as_completed(futures, loop=client.loop):
                    try:
                        outcome = future.result()  # waits if the worker died with it, until another has run it again
                    except CancelledError:
                        outcome = Outcome(failure='the connection to the scheduler was lost')
                    except Exception as error:  # of the scheduler: an error of the task is its outcome
                        outcome = Outcome(failure=' '.join(str(error).split()) or type(error).__name__)
                    yield futures[future], outcome
            finally:
                client.cancel([*futures], force=True)
    return engine


def attempt_on_worker(task: Task, topic: str) -> Outcome:
    """Run `attempt` on a worker, which reports to the listeners of `topic` and ends soon after its client."""
    from distributed import get_worker
    from distributed.worker import thread_state
    worker, key = get_worker(), thread_state.key

    def report(text: str, is_milestone: bool) -> None:
        state = worker.state.tasks.get(key)
        if state is None or state.state == 'cancelled':
            raise Abandoned
        worker.log_event(topic, (task.title, text, is_milestone))
    with ONE_AT_A_TIME:
        return attempt(task, report)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a scheduler; ValueError if there is none."""
    import distributed
    from distributed.comm import get_address_host_port
    try:
        get_address_host_port(address)  # before a client is made: without a valid address it takes 40 s to close
        client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f'--scheduler {address}: no Dask scheduler is reached there ({error}); an address looks like '
                         'tcp://HOST:8786') from None
    with client:
        yield client


def count_workers(address: str, folder: Path) -> int:
    """Return the number of workers of a scheduler; ValueError unless all of them can do the work.

    They need the same versions of this package and its requirements, the same folder of results under the same name,
    where they look for a file, and one thread each, since a training uses another thread only for products of matrices.
    """
    sign = folder / f'.{uuid.uuid4()}.workers'
    with connected(address) as client:
        try:
            client.wait_for_workers(1, timeout=CONNECT)
            sign.touch()
            expected = describe_worker(str(sign))
            found = client.run(describe_worker, str(sign), on_error='return')
            threads = client.nthreads()
        except TimeoutError:
            raise ValueError(f'--scheduler {address}: has no worker; start some by `dask worker {address} --nthreads 1`'
                             ) from None
        finally:
            sign.unlink(missing_ok=True)
    for worker, answer in found.items():
        if isinstance(answer, OSError):
            raise ValueError(f'worker {worker} does not see {folder}: --out must be on a disk that all workers share')
        if isinstance(answer, BaseException):
            raise ValueError(f'worker {worker} cannot run this package: {answer}')
        if differing := [name for name in expected if answer.get(name) != expected[name]]:
            name = differing[0]
            raise ValueError(f'worker {worker} has {name} {answer.get(name)}, and this command {expected[name]}: '
                             'numbers must not depend on the worker')
        if threads.get(worker, 1) > 1:
            raise ValueError(f'worker {worker} has {threads[worker]} threads: start it with --nthreads 1')
    return len(found)


def describe_worker(sign: str) -> dict[str, Any]:
    """Return the versions of this process; OSError unless it sees, and can write, a file of the client."""
    with open(sign, 'r+b'):
        found = versions() | {'gru4rec-pytensor': __version__, 'revision': REVISION}
    found.pop('jax', None)  # which a worker imports with its first task
    return found
