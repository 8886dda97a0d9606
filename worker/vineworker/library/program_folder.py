"""Where a call starts: in the folder of the program that a vertex belongs to, if this process sees that, or in the one that its process has.

And what it can import: the program's own folders, those that this process sees, are on its path, too. Both are proved once for each program that a
process meets (see `vinecore.protocol.program_folders`).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Optional

from vinecore.protocol import program_folders
from vinecore.protocol.program_folders import Folder, Program
from vineworker.library import call_state
from vineworker.library.folder_view import FolderView
from vineworker.slot_protocol import Reply

MOST_TOLD = 10
"""Names of files that are told to have been left in the process's own folder."""
OURS = ".vine"
"""Beginning of the names of what the worker itself puts into a folder."""
_OPEN = os.O_RDONLY | os.O_DIRECTORY


class StartingFolder:
    """The folder in which the calls of this process start; made in the process's own folder."""

    def __init__(self) -> None:
        self._home, self._own = os.getcwd(), _open(".")
        self._place = self._own
        self._program: Optional[Program] = None
        self._unseen: Optional[str] = None  # where the program is, which this process does not see
        self._known: dict[str, tuple[int, int]] = {}  # what was in the own folder before the call
        self._view: Optional[FolderView] = None
        self._added: list[str] = []  # to the path of imports

    def enter(self, program: Optional[Program]) -> bool:
        """Go where the next call starts; None is a call of no program's. Tell whether this is another program than before."""
        changes = program is not self._program
        if changes:
            self._change(program)
        os.fchdir(self._place)
        if self._unseen is not None:
            self._known = self._look_home()
        elif self._view is not None:
            self._view.refresh()
        return changes

    def leave(self) -> None:
        """Move files that a finished call has created in its view to the program's folder."""
        if self._view is not None:
            self._view.carry_over()

    def report(self, reply: Reply) -> None:
        """Say in an answer what the call has written into the process's own folder, and why it was called there."""
        if self._unseen is None:
            return
        left = sorted(name for name, state in self._look_home().items() if self._known.get(name) != state)
        if left:
            reply.info["left"] = left[:MOST_TOLD] + (["..."] if len(left) > MOST_TOLD else [])
        if left or reply.kind == "exception":
            reply.info["unseen"] = self._unseen

    # ---- another program

    def _change(self, program: Optional[Program]) -> None:
        self._forget()
        self._program = program
        if program is None:
            return
        folder = program.folder
        if folder is None:
            self._unseen = ""
        elif not program_folders.is_visible(folder):
            self._unseen = folder.path
        elif program.has_files:
            self._view = FolderView(
                folder.path, self._home, os.path.join(self._home, f"{OURS}-view-{os.getpid()}")
            )
            self._place = _open(self._view.path)
        else:
            self._place = _open(folder.path)
        self._added = add_imports(program, self._home)

    def _forget(self) -> None:
        """Undo what was done for the program before."""
        if self._place != self._own:
            os.close(self._place)
        if self._view is not None:
            self._view.close()
        sys.path[:] = [entry for entry in sys.path if entry not in self._added]
        self._place, self._view, self._unseen, self._added = self._own, None, None, []

    def _look_home(self) -> dict[str, tuple[int, int]]:
        with os.scandir(self._own) as entries:
            return {entry.name: _state(entry) for entry in entries if not entry.name.startswith(OURS)}


def _open(path: str) -> int:
    """Open a folder out of the way of calls that close what they find."""
    found = os.open(path, _OPEN)
    try:
        return call_state.reserve(found)
    finally:
        os.close(found)


def _state(entry: os.DirEntry[str]) -> tuple[int, int]:
    found = entry.stat(follow_symlinks=False)
    return found.st_ino, found.st_ctime_ns


def add_imports(program: Program, home: str) -> list[str]:
    """Have imports find what the program finds, after what is in the process's own folder; give what was added to the path."""

    def missing(folders: tuple[Folder, ...]) -> list[str]:
        return [f.path for f in folders if f.path not in sys.path and program_folders.is_visible(f)]

    first = missing(program.first)
    own = 1 if sys.path and (sys.path[0] == home or os.path.realpath(sys.path[0]) == home) else 0
    sys.path[own:own] = first
    last = missing(program.last)
    sys.path += last
    if first or last:
        importlib.invalidate_caches()
    return [*first, *last]
