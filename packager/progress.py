"""Shows what long work is doing: bars on a terminal's standard error, nothing where nobody watches."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from packager.files import Advance, quiet


class Reporter(Protocol):
    """Told about the steps of long work. Used by one thread."""

    def task(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """A step begins; the callable takes the amount done since the last call (bytes when `total` is given)."""
        ...

    def say(self, text: str) -> None:
        """One line for people."""
        ...


class QuietReporter:
    """Tells nobody."""

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Nothing is shown."""
        del title, total
        yield quiet

    def say(self, text: str) -> None:
        """Nothing is said."""
        del text


class TerminalReporter:
    """Bars and lines on standard error through rich."""

    def __init__(self) -> None:
        """Make a console on standard error."""
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """A bar that goes away when the step ends."""
        from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

        columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
        if total is not None:
            columns += [BarColumn(), DownloadColumn(), TransferSpeedColumn()]
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=total)

            def advance(count: int) -> None:
                progress.advance(task, count)

            yield advance

    def say(self, text: str) -> None:
        """Print the line."""
        self._console.print(text, markup=False, soft_wrap=True)
