"""Threads of BLAS: the cores that a process may use, and how many of them products of matrices take.

OpenBLAS's threads wait by spinning.  So they bring something where products are large and cores are free; where another
process has a core, the others wait for the thread that shares it.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

from gru4rec_pytensor.turns import ProcessLock

CONTROL_GROUP = Path('/sys/fs/cgroup')  # where Linux says what a container may use


def available_cores() -> int:
    """Return how many cores this process may use: those it is bound to, or fewer if its container has less time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    quota, period = (*limits('cpu.max'), *limits('cpu/cpu.cfs_quota_us', 'cpu/cpu.cfs_period_us'), -1, 1)[:2]
    return max(1, min(cores, quota // period)) if quota > 0 else cores


def limits(*names: str) -> list[int]:
    """Return the numbers in files of the container's control group, none where they are missing or set no limit."""
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for name in names for word in (CONTROL_GROUP / name).read_text().split()]
    return []


class BlasThreads:
    """The number of BLAS's threads in this process; of several threads within `limited` the smallest number counts."""

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._wanted: list[int] = []  # by those who are within
        self._libraries: list[Any] = []
        self._outside: list[int] = []  # threads of each library when nobody is within

    @contextlib.contextmanager
    def limited(self, n: int) -> Iterator[None]:
        """Let BLAS have n threads within, and afterwards as many as before."""
        with self._lock.held():
            self._look()
            self._wanted.append(n)
            self._set()
        try:
            yield
        finally:
            with self._lock.held():
                self._wanted.remove(n)
                self._set()

    def allowed(self) -> int:
        """Return how many threads BLAS may use: its number outside of `limited`, but no more than there are cores."""
        with self._lock.held():
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
