"""Threads of BLAS: the cores that a process has been given, and how many of them a training's products use.

OpenBLAS's threads wait for one another, and for the next product, by spinning.  So they bring something where products
are large, and cores are free; where another process has a core, the others wait for the thread that shares it.
"""
from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

logger = logging.getLogger('gru4rec')

CONTROL_GROUP = Path('/sys/fs/cgroup')  # where Linux says what a container may use
PRODUCT_OF_A_THREAD = 25_000_000  # multiplications of the largest product of a step that are worth a thread
MEASURABLE = 0.1  # seconds: how the cores were used in a shorter time says little
MISSING = 0.25  # cores; where more of the time of the threads' cores went to others, these are in use
FIRST_PAUSE, LAST_PAUSE = 10, 640  # seconds with one thread, before more are tried again; doubled each time in vain
TRIAL = 16  # mini-batches, since a trial in vain takes longer


def available_cores() -> int:
    """Cores that this process may use: those that it is bound to, or fewer where its container gets less time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    quota, period = (*limits('cpu.max'), *limits('cpu/cpu.cfs_quota_us', 'cpu/cpu.cfs_period_us'), -1, 1)[:2]
    return max(1, min(cores, quota // period)) if quota > 0 else cores


def limits(*names: str) -> list[int]:
    """What files of the container's control group say; empty where they are not there, or set no limit."""
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for name in names for word in (CONTROL_GROUP / name).read_text().split()]
    return []


class BlasThreads:
    """The number of BLAS's threads, which the whole process has one of.

    Of several that are within `limited` at once, in threads of Python, the one who wants fewest decides.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[int] = []  # by those who are within
        self._libraries: list[Any] = []
        self._outside: list[int] = []  # threads of each library when nobody is within

    @contextlib.contextmanager
    def limited(self, n: int) -> Iterator[None]:
        """Within it BLAS has n threads; afterwards as many as before."""
        with self._lock:
            self._look()
            self._wanted.append(n)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(n)
                self._set()

    def allowed(self) -> int:
        """How many threads BLAS may use: what it has when nobody is within, but no more than there are cores.

        The first is what `OMP_NUM_THREADS` or `threadpoolctl.threadpool_limits` say, or else the number of cores.
        """
        with self._lock:
            self._look()
            return min(max(self._outside, default=1), available_cores())

    def _look(self) -> None:
        self._libraries = self._libraries or ThreadpoolController().select(user_api='blas').lib_controllers
        if not self._wanted:
            self._outside = [library.num_threads for library in self._libraries]

    def _set(self) -> None:
        for library, outside in zip(self._libraries, self._outside):
            library.set_num_threads(min(self._wanted, default=outside))


blas_threads = BlasThreads()


class TrainingThreads:
    """How many threads of BLAS a training uses.

    With a number of the user's, that many.  Otherwise one for each `PRODUCT_OF_A_THREAD` multiplications, as far as
    BLAS may use them; or one alone, while other processes use the cores, which shows in the processor time that this
    process gets while its threads spin.

    n_wanted : the user's number, or None
    product : multiplications of the largest product of a step

    Attributes
    ----------
    most : this number, while no other process uses the cores
    """

    def __init__(self, n_wanted: int | None = 1, product: int = 0) -> None:
        useful = max(1, product // PRODUCT_OF_A_THREAD)
        self._is_fixed = n_wanted is not None
        self.most = n_wanted or (min(useful, blas_threads.allowed()) if useful > 1 else 1)
        self._pause, self._alone_until = FIRST_PAUSE, 0.0

    def go_on_from(self, most: int) -> None:
        """Have the number of the training that goes on here, or warn that the user's is another."""
        if not self._is_fixed:
            self.most = most
        elif most != self.most:
            warnings.warn(f'this training had {most} thread(s) of BLAS so far, and goes on with threads={self.most}: '
                          'the last digits of its products may differ from those of a training without interruption',
                          stacklevel=2)

    def pieces(self, n_rows: int) -> Iterator[slice]:
        """Mini-batches, of so many, that are to be run within one `working` each."""
        first = TRIAL if 0 < self._alone_until <= time.monotonic() else n_rows
        yield slice(0, first)
        if first < n_rows:
            yield slice(first, n_rows)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within it BLAS has as many threads as is best at the moment."""
        n = 1 if time.monotonic() < self._alone_until else self.most
        with blas_threads.limited(n):
            began, used = time.perf_counter(), time.process_time()
            yield
            self._learn(n, time.perf_counter() - began, time.process_time() - used)

    def _learn(self, n: int, seconds: float, used: float) -> None:
        """Use one thread for a while, if n threads have got less than n cores."""
        if self._is_fixed or n == 1 or seconds < MEASURABLE:
            return
        if used > (n - MISSING) * seconds:
            self._pause, self._alone_until = FIRST_PAUSE, 0.0
            return
        logger.info('other processes use the cores: on with one thread of BLAS, not %s, for %s s', n, self._pause)
        self._alone_until = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LAST_PAUSE)
