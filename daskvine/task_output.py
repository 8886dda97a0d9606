"""What vertices say beside their results, as it is shown to the user.

What a vertex prints appears on the standard output of the program, what it writes to its standard error and logs on the standard error, each line with
the vertex's key before it; warnings are warnings of the program, so that its filters count, and the same warning is given once in a run. All of
it is shown by the thread that computes, so that it appears below the cell of a notebook, and above a progress bar.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from daskvine.graph import Key
from daskvine.program_folder import warn_of_files_left

MOST_OF_A_VERTEX = 20_000
"""Characters of what one vertex has written that are shown."""
MOST_OF_A_RUN = 1_000_000
MOST_WARNINGS = 100


class Output:
    """Shows what the vertices of one run say.

    Parameters
    ----------
    shown
        Whether what they print, log and warn is shown at all.
    """

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown
        self._room = MOST_OF_A_RUN
        self._left_out = 0  # vertices that have said something which was not shown
        self._warned: set[tuple[Any, ...]] = set()

    def show(self, key: Key, info: dict[str, Any]) -> None:
        """Show what a worker has told of a vertex that is over."""
        if "left" in info:
            self._warn(
                key,
                [UserWarning.__name__, warn_of_files_left(info["left"], info.get("unseen", "")), __file__, 1],
            )
        if not self._shown:
            return
        for found in info.get("warnings", ()):
            self._warn(key, found)
        text, errors = str(info.get("output", "")), str(info.get("errors", ""))
        if not (text or errors):
            return
        if self._room <= 0:
            self._left_out += 1
            return
        if text:
            self._write(sys.stdout, key, text)
        if errors:
            self._write(sys.stderr, key, errors)

    def end(self) -> None:
        """Say how much was not shown."""
        if self._left_out:
            _write(sys.stderr, f"what {self._left_out} more vertices have printed is not shown\n")

    def _write(self, stream: Any, key: Key, text: str) -> None:
        cut = len(text) - MOST_OF_A_VERTEX
        if cut > 0:
            text = f"[{cut} characters before this are left out]\n{text[cut:]}"
        self._room -= len(text)
        name = _name(key)
        _write(stream, "".join(f"[{name}] {line}\n" for line in text.removesuffix("\n").split("\n")))

    def _warn(self, key: Key, found: list[Any]) -> None:
        kind, text, file, line = found
        if (kind, text, file, line) in self._warned or len(self._warned) >= MOST_WARNINGS:
            return
        self._warned.add((kind, text, file, line))
        category = _category(kind)
        try:
            warnings.warn_explicit(f"{text} (in vertex {_name(key)})", category, file, line, registry={})
        except (
            Warning
        ) as warning:  # a filter of the program makes exceptions of them, and it is too late for that
            _write(sys.stderr, warnings.formatwarning(warning, category, file, line))


def _name(key: Key) -> str:
    return key if isinstance(key, str) else repr(key)


def _write(stream: Any, text: str) -> None:
    if stream is not None:  # as it is in programs without a terminal
        stream.write(text)
        stream.flush()


def _category(kind: str) -> type[Warning]:
    """The class of that name; one that this program does not have is a `UserWarning`."""
    module, _, name = kind.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), name, None)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
