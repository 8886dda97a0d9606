"""Show the output of vertices to the user.

The standard output of a vertex appears on that of the program, its standard error and log records on the
standard error, each line with the vertex's key before it. Warnings are warnings of the program, so its filters
count, and the same warning is given once in a run. The thread that computes shows all of it, so it appears below
the cell of a notebook, and above a progress bar.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from daskvine.graph import Key
from daskvine.program_folder import describe_lost_files

MAX_TASK_CHARACTERS = 20_000
"""Characters of what one vertex has written that are shown."""
MAX_GRAPH_CHARACTERS = 1_000_000
MAX_WARNINGS = 100


class TaskOutput:
    """Shows what the vertices of one run say.

    Parameters
    ----------
    shown
        Whether what they print, log and warn is shown at all.
    """

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown
        self._characters_left = MAX_GRAPH_CHARACTERS
        self._omitted_tasks = 0  # vertices that have said something which was not shown
        self._warned: set[tuple[Any, ...]] = set()

    def show_task(self, key: Key, info: dict[str, Any]) -> None:
        """Show what a worker has told of a vertex that is over."""
        if "left" in info:
            self._show_warning(
                key,
                [
                    UserWarning.__name__,
                    describe_lost_files(info["left"], info.get("unseen", "")),
                    __file__,
                    1,
                ],
            )
        if not self._shown:
            return
        for found in info.get("warnings", ()):
            self._show_warning(key, found)
        text, errors = str(info.get("output", "")), str(info.get("errors", ""))
        if not (text or errors):
            return
        if self._characters_left <= 0:
            self._omitted_tasks += 1
            return
        if text:
            self._write_lines(sys.stdout, key, text)
        if errors:
            self._write_lines(sys.stderr, key, errors)

    def report_omitted(self) -> None:
        """Report how much was not shown."""
        if self._omitted_tasks:
            _write(sys.stderr, f"what {self._omitted_tasks} more vertices have printed is not shown\n")

    def _write_lines(self, stream: Any, key: Key, text: str) -> None:
        cut = len(text) - MAX_TASK_CHARACTERS
        if cut > 0:
            text = f"[{cut} characters before this are left out]\n{text[cut:]}"
        self._characters_left -= len(text)
        name = _format_key(key)
        _write(stream, "".join(f"[{name}] {line}\n" for line in text.removesuffix("\n").split("\n")))

    def _show_warning(self, key: Key, found: list[Any]) -> None:
        kind, text, file, line = found
        if (kind, text, file, line) in self._warned or len(self._warned) >= MAX_WARNINGS:
            return
        self._warned.add((kind, text, file, line))
        category = _find_category(kind)
        try:
            warnings.warn_explicit(
                f"{text} (in vertex {_format_key(key)})", category, file, line, registry={}
            )
        except (
            Warning
        ) as warning:  # a filter of the program makes exceptions of them, and it is too late for that
            _write(sys.stderr, warnings.formatwarning(warning, category, file, line))


def _format_key(key: Key) -> str:
    return key if isinstance(key, str) else repr(key)


def _write(stream: Any, text: str) -> None:
    if stream is not None:  # as it is in programs without a terminal
        stream.write(text)
        stream.flush()


def _find_category(kind: str) -> type[Warning]:
    """Return the class of that name; one that this program does not have is a `UserWarning`."""
    module, _, name = kind.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), name, None)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
