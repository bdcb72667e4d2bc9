"""Output of the commands while they work: lines on standard error, and a progress bar where that is a terminal."""
from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NoReturn

from gru4rec_pytensor import __version__, is_command

try:
    from tqdm import tqdm
except ImportError:  # an extra: without it, each epoch is reported on a line of its own
    tqdm = None


def note(text: str) -> None:
    """Print a line on standard error; no work is lost where nothing takes it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def print_result(text: str, end: str = '\n') -> None:
    """Print on standard output: quietly if its reader has gone, such as `head`; SystemExit(2) if it takes no more."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        # What is still in the buffer goes nowhere: Python would complain about it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            note(f'{os.path.basename(sys.argv[0])}: error: standard output: {error.strerror}')
            raise SystemExit(2) from None


class TrainingProgress:
    """Callback of `GRU4Rec.fit`: a bar on a terminal, a line for each epoch elsewhere; it measures the rate, too.

    The rate leaves out the time until the first report, which is mostly compilation.  A display of several trainings
    passes `report`, which is called with the progress as text and whether an epoch has ended.
    """

    def __init__(self, label: str, quiet: bool = False, report: Callable[[str, bool], None] | None = None) -> None:
        self.label, self.quiet, self.report = label, quiet, report
        self.first: tuple = ()
        self.last: tuple = (0.0, 0)
        self.bar = None
        if tqdm and sys.stderr.isatty() and not quiet:
            self.bar = tqdm(unit=' events', unit_scale=True, desc=label, file=sys.stderr)

    def __call__(self, progress: Any) -> None:
        events = progress.epoch * progress.total_events + progress.events
        now = time.perf_counter()
        self.first = self.first or (now, events)
        self.last = now, events
        seconds = max(now - self.first[0], 1e-9)
        rate = (events - self.first[1]) / seconds
        minibatches = f'{rate * progress.minibatches / progress.events:,.0f} mini-batches/s'
        if self.bar is not None:
            self.bar.total = progress.n_epochs * progress.total_events
            self.bar.set_postfix_str(f'epoch {progress.epoch + 1}/{progress.n_epochs}, loss {progress.loss:.4f}, '
                                     f'{minibatches}', refresh=False)
            self.bar.update(events - self.bar.n)
        done = ' done' if progress.epoch_ends else ''
        text = f'epoch {progress.epoch + 1} of {progress.n_epochs}{done}, loss {progress.loss:.4f}'
        if rate:
            left = (progress.n_epochs * progress.total_events - events) / rate
            text += f', {minibatches}, {rate:,.0f} events/s, about {left:.0f} s left'
        is_last = progress.epoch + 1 == progress.n_epochs
        if self.report:
            self.report(text, progress.epoch_ends and not is_last)
        elif self.bar is None and progress.epoch_ends and not self.quiet:
            note(f'{self.label}: ' + (f'done, loss {progress.loss:.4f}' if is_last else text))

    def close(self, seconds: float) -> float | None:
        """End the bar; return events per second, over all `seconds` of the training if there was a single report."""
        if self.bar is not None:
            self.bar.close()
        if not self.first:
            return None
        if self.last[1] == self.first[1]:
            return self.last[1] / seconds
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])


class Display(contextlib.AbstractContextManager):
    """Progress of `total` tasks, several of which run at the same time: one bar on a terminal, lines elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._finished: set[str] = set()
        self._running: dict[str, str] = {}
        self._bar = None
        if tqdm and total and sys.stderr.isatty():
            self._bar = tqdm(total=total, file=sys.stderr, bar_format='{n_fmt}/{total_fmt} [{elapsed}]{postfix}')

    def progress(self, title: str, text: str, is_milestone: bool) -> None:
        """Show the progress of a task: milestones always, the rest on a terminal only, until the next text."""
        if title in self._finished:  # the text comes late, from another machine
            return
        self._running[title] = text
        self._refresh()
        if is_milestone and self._bar is None:
            self.line(f'{title}: {text}')

    def finished(self, title: str, text: str) -> None:
        """Count a task as finished, and show its result."""
        self._running.pop(title, None)
        self._finished.add(title)
        self.line(f'[{len(self._finished)}/{self._total}] {title}: {text}')
        if self._bar is not None:
            self._bar.update()
        self._refresh()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            note(text)
        else:
            self._bar.write(text, file=sys.stderr)

    def _refresh(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str('; '.join(f'{title}: {text}' for title, text in list(self._running.items())))

    def __exit__(self, *_error: Any) -> None:
        if self._bar is not None:
            self._bar.close()


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, without the usage.

    Each command makes one before it writes anything, so that standard output and error take any text.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        for name in ('stdout', 'stderr'):
            stream = getattr(sys, name)
            if stream is None:  # print(file=None) would mix notes with the results, and a file get the stream's number
                setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), 'w', encoding='utf-8'))
            elif hasattr(stream, 'reconfigure'):
                stream.reconfigure(errors='backslashreplace')  # for what the console lacks
        if is_command() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # until all was imported
            signal.signal(signal.SIGINT, signal.default_int_handler)
        super().__init__(*args, **options)

    def _print_message(self, message: str, file: Any = None) -> None:  # of --help and --version, too
        if file is sys.stdout:
            print_result(message, end='')
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def add_version(self) -> None:
        """Add the option `--version`."""
        self.add_argument('--version', action='version', version=f'%(prog)s {__version__}')


def whole_number(text: str, least: int = 0) -> int:
    """Parse an argument that is a whole number of at least 0 or, with `positive_number`, of at least 1."""
    wanted = f'a whole number of at least {least}' if least else 'a whole number'
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f'{text!r} is not {wanted}')
    return int(text)


positive_number = partial(whole_number, least=1)


def listed(kind: Callable[[str], Any], allowed: Collection | None = None) -> Callable[[str], list]:
    """Return a parser of arguments with several values, separated by commas."""
    def parse_list(text: str) -> list:
        values = [kind(part) for part in text.split(',')]
        for value in values:
            if allowed and value not in allowed:
                raise argparse.ArgumentTypeError(f'{value!r} is none of {", ".join(map(str, allowed))}')
        return values
    return parse_list
