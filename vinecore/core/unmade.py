"""Files that tasks read before anybody has said who makes them.

A task may be submitted before the one that makes its input: it waits. What was declared to be made by some task is waited for until a
task with that output is submitted, or it is undeclared; what was never declared, or had a content once, is not.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vinecore.core.mind import Mind
    from vinecore.core.state import File

LOOK_AT = 16


class Unmade:
    """Knows which files are waited for that no task makes yet. One of the mind's parts."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self.files: dict[File, None] = {}

    def waits_for(self, file: File) -> bool:
        """Whether a task may wait for a file that is nowhere and that no task makes."""
        if not file.awaited or file.pins <= 0:
            return False
        self.files[file] = None
        return True

    def given_up(self, file: File, reason: str) -> None:
        """A file will not be made by anybody: fail who waits for it."""
        self.files.pop(file, None)
        for reader in list(file.consumers):
            why = f"{file.name}, one of its inputs, was made by no task: {reason}"
            self._mind.life.fail(reader, "input missing", {"reason": why}, b"")

    def missing(self) -> str:
        """Which task waits for whom to be submitted, if nothing else happens."""
        if self._mind.tables.assigned:
            return ""
        for file in list(islice(self.files, LOOK_AT)):
            if file.producer is None and not file.available and file.consumers:
                reader = next(iter(file.consumers)).spec.label
                return f"{reader} waits for a file that no task makes yet ({file.name}): submit the task that has it among its outputs"
            del self.files[file]
        return ""
