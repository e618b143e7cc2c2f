"""Shows what long work is doing: bars on a terminal's standard error, nothing where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from packager.files import Advance, quiet


class Reporter(Protocol):
    """Told about the steps of long work. Used by one thread."""

    def task(self, title: str, total: int | None = None, unit: str = "bytes") -> AbstractContextManager[Advance]:
        """A step begins; the callable takes the amount done since the last call."""
        ...

    def say(self, text: str) -> None:
        """One line for people."""
        ...


class QuietReporter:
    """Tells nobody."""

    @contextmanager
    def task(self, title: str, total: int | None = None, unit: str = "bytes") -> Iterator[Advance]:
        """Nothing is shown."""
        del title, total, unit
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
    def task(self, title: str, total: int | None = None, unit: str = "bytes") -> Iterator[Advance]:
        """A bar that goes away when the step ends."""
        from rich import progress as bars

        columns: list[bars.ProgressColumn] = [bars.SpinnerColumn(), bars.TextColumn("{task.description}", markup=False)]
        if total is not None:
            columns.append(bars.BarColumn())
            columns.append(bars.DownloadColumn() if unit == "bytes" else bars.MofNCompleteColumn())
        columns.append(bars.TimeElapsedColumn())
        with bars.Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=total)

            def advance(count: int) -> None:
                progress.advance(task, count)

            yield advance

    def say(self, text: str) -> None:
        """Print the line."""
        self._console.print(text, markup=False, soft_wrap=True)


def upload_progress(advance: Advance) -> Callable[[int, int], None]:
    """A callback that takes (done, in all), as uploads call it, and passes on what was done since its last call."""
    last = 0

    def update(done: int, total: int) -> None:
        nonlocal last
        del total
        advance(max(done - last, 0))
        last = max(done, last)

    return update
