"""What a person sees of a demonstration: chapters and facts that stay, and one moving line at the bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich import box
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_REFRESH_PER_S = 5
_WIDTH_OF_A_FILE = 120


class View(Protocol):
    """Told what happens. Used by one thread."""

    def chapter(self, title: str) -> None:
        """A part of the story begins."""
        ...

    def command(self, line: str) -> None:
        """A command line as a user would type it."""
        ...

    def tell(self, fact: str) -> None:
        """Something came out."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows of texts."""
        ...

    def promise(self, text: str, is_kept: bool, seen: str) -> None:
        """Something that was promised, and what was seen of it."""
        ...

    @contextmanager
    def moving(self, line: Callable[[], str]) -> Iterator[None]:
        """While the block runs, show what `line` gives; it is called on another thread."""
        ...


class SilentView:
    """Shows nothing."""

    def chapter(self, title: str) -> None:
        """Nothing is shown."""
        del title

    def command(self, line: str) -> None:
        """Nothing is shown."""
        del line

    def tell(self, fact: str) -> None:
        """Nothing is shown."""
        del fact

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Nothing is shown."""
        del title, columns, rows

    def promise(self, text: str, is_kept: bool, seen: str) -> None:
        """Nothing is shown."""
        del text, is_kept, seen

    @contextmanager
    def moving(self, line: Callable[[], str]) -> Iterator[None]:
        """Nothing is shown."""
        del line
        yield


class _Line:
    """A spinner beside a line that is asked for at each refresh."""

    def __init__(self, line: Callable[[], str]) -> None:
        self._line = line
        self._spinner = Spinner("dots", style="cyan")

    def __rich__(self) -> Spinner:
        self._spinner.update(text=Text(self._line(), style="cyan", no_wrap=True, overflow="ellipsis"))
        return self._spinner


class TerminalView:
    """Shows everything with rich; the moving line only on a terminal."""

    def __init__(self) -> None:
        """Write to standard output."""
        self._console = Console(highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            self._console.width = _WIDTH_OF_A_FILE
        self._chapters = 0

    def chapter(self, title: str) -> None:
        """See `View.chapter`."""
        self._chapters += 1
        self._console.print()
        self._console.print(Text(f"{self._chapters}. {title}", style="bold"))

    def command(self, line: str) -> None:
        """See `View.command`."""
        self._console.print(Text.assemble(("   $ ", "dim"), (line, "green")))

    def tell(self, fact: str) -> None:
        """See `View.tell`."""
        self._console.print(Text(f"   {fact}"))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """See `View.table`."""
        table = Table(title=f"   {title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print()
        self._console.print(table, soft_wrap=False)

    def promise(self, text: str, is_kept: bool, seen: str) -> None:
        """See `View.promise`."""
        mark = ("   kept    ", "bold green") if is_kept else ("   BROKEN  ", "bold red")
        self._console.print(Text.assemble(mark, text, ("  " + seen, "dim")))

    @contextmanager
    def moving(self, line: Callable[[], str]) -> Iterator[None]:
        """See `View.moving`."""
        if not self._console.is_terminal:
            yield
            return
        with Live(_Line(line), console=self._console, refresh_per_second=_REFRESH_PER_S, transient=True):
            yield
