"""A table of a manager's numbers that is redrawn while the program runs: in a notebook, or in a terminal."""

from __future__ import annotations

import html
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

log = logging.getLogger("vinecore")


class Screen(Protocol):
    """A place where a table is shown in the place of the one before."""

    def show(self, text: str) -> None:
        """Show a table."""
        ...


class TerminalScreen:
    """The standard error of a program in a terminal."""

    def __init__(self) -> None:
        self._lines = 0

    def show(self, text: str) -> None:
        """Write over the table before."""
        up = f"\x1b[{self._lines}F\x1b[J" if self._lines else ""
        self._lines = text.count("\n") + 1
        sys.stderr.write(f"{up}{text}\n")
        sys.stderr.flush()


class NotebookScreen:
    """The output of the cell in which the manager was made."""

    def __init__(self, display: Callable[..., Any], make_html: Callable[[str], Any]) -> None:
        self._display, self._make_html = display, make_html
        self._handle: Any = None

    def show(self, text: str) -> None:
        """Replace the output."""
        output = self._make_html(f"<pre>{html.escape(text)}</pre>")
        if self._handle is None:
            self._handle = self._display(output, display_id=True)
        else:
            self._handle.update(output)


def find_screen() -> Screen | None:
    """Return where this program can show a table; None if its output goes to a file or nowhere."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import HTML, display

        return NotebookScreen(display, HTML)
    return TerminalScreen() if sys.stderr is not None and sys.stderr.isatty() else None


class StatusDisplay:
    """Redraws a table at an interval, in a thread of its own.

    Parameters
    ----------
    interval_s
        Seconds between two drawings.
    table
        Returns the table; may raise RuntimeError if the manager is closed.
    screen
        Where it is shown.
    """

    def __init__(self, interval_s: float, table: Callable[[], str], screen: Screen) -> None:
        self._interval_s, self._table, self._screen = interval_s, table, screen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vine-display", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.wait(self._interval_s):
                self._screen.show(self._table())
        except RuntimeError:
            # the manager is closed, or the interpreter ends
            pass
        except Exception:
            log.exception("the table of the manager's status is not redrawn any more")

    def close(self) -> None:
        """Draw the table a last time, and stop."""
        self._over.set()
        self._thread.join()
        try:
            self._screen.show(self._table())
        except Exception:
            log.debug("the last table of the manager's status could not be drawn", exc_info=True)


def format_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return numbers in lines of their groups.

    Parameters
    ----------
    title
        The first line.
    rows
        For each group its numbers by their names.
    """
    width = max(map(len, rows), default=0)
    lines = [f"{group:<{width}}  {_describe(numbers)}" for group, numbers in rows.items() if numbers]
    return "\n".join([title, *lines])


def _describe(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{_format(value)} {name}" for name, value in numbers.items())


def _format(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
