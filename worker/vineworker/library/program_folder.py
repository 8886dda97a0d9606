"""Set the folder and the import path of each call.

A call of a vertex starts in the folder of its program, if this process sees that; else in the
folder of the process. The program's own folders, if visible, are on the import path. Both are
verified once for each program of a process (see `vinecore.protocol.program_folders`).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Optional

from vinecore.protocol import program_folders
from vinecore.protocol.program_folders import Folder, Program
from vineworker.library import process_state
from vineworker.library.folder_view import RESERVED_PREFIX, FolderView
from vineworker.slot_protocol import Reply

MAX_REPORTED_FILES = 10
"""Names of files in the process's own folder that are reported."""
_OPEN = os.O_RDONLY | os.O_DIRECTORY


class StartingFolder:
    """The folder in which calls start; created in the process's own folder."""

    def __init__(self) -> None:
        self._home, self._home_descriptor = os.getcwd(), _open_folder(".")
        self._current = self._home_descriptor
        self._program: Optional[Program] = None
        # where the program is, which this process does not see
        self._invisible_path: Optional[str] = None
        # what was in the own folder before the call
        self._known_entries: dict[str, tuple[int, int]] = {}
        self._view: Optional[FolderView] = None
        # to the path of imports
        self._added: list[str] = []

    def enter_folder(self, program: Optional[Program]) -> bool:
        """Change to the folder of the next call; return whether its program is another one.

        ``program`` is None for a call without a program.
        """
        changes = program is not self._program
        if changes:
            self._switch_program(program)
        os.fchdir(self._current)
        if self._invisible_path is not None:
            self._known_entries = self._scan_home()
        elif self._view is not None:
            self._view.refresh()
        return changes

    def collect_created_files(self) -> None:
        """Move files that a finished call has created in its view to the program's folder."""
        if self._view is not None:
            self._view.apply_changes()

    def add_to_reply(self, reply: Reply) -> None:
        """Add to a reply which files the call has left in the process's own folder."""
        if self._invisible_path is None:
            return
        left = sorted(
            name for name, state in self._scan_home().items() if self._known_entries.get(name) != state
        )
        if left:
            reply.info["left"] = left[:MAX_REPORTED_FILES] + (
                ["..."] if len(left) > MAX_REPORTED_FILES else []
            )
        if left or reply.kind == "exception":
            reply.info["unseen"] = self._invisible_path

    # ---- another program

    def _switch_program(self, program: Optional[Program]) -> None:
        self._leave_program()
        self._program = program
        if program is None:
            return
        folder = program.folder
        if folder is None:
            self._invisible_path = ""
        elif not program_folders.is_visible(folder):
            self._invisible_path = folder.path
        elif program.has_files:
            self._view = FolderView(
                folder.path, self._home, os.path.join(self._home, f"{RESERVED_PREFIX}-view-{os.getpid()}")
            )
            self._current = _open_folder(self._view.path)
        else:
            self._current = _open_folder(folder.path)
        self._added = add_import_paths(program, self._home)

    def _leave_program(self) -> None:
        """Undo the changes for the previous program."""
        if self._current != self._home_descriptor:
            os.close(self._current)
        if self._view is not None:
            self._view.close()
        sys.path[:] = [entry for entry in sys.path if entry not in self._added]
        self._current, self._view, self._invisible_path, self._added = self._home_descriptor, None, None, []

    def _scan_home(self) -> dict[str, tuple[int, int]]:
        with os.scandir(self._home_descriptor) as entries:
            return {
                entry.name: _stamp_entry(entry)
                for entry in entries
                if not entry.name.startswith(RESERVED_PREFIX)
            }


def _open_folder(path: str) -> int:
    """Open a folder at a descriptor that calls do not close."""
    found = os.open(path, _OPEN)
    try:
        return process_state.duplicate_high(found)
    finally:
        os.close(found)


def _stamp_entry(entry: os.DirEntry[str]) -> tuple[int, int]:
    found = entry.stat(follow_symlinks=False)
    return found.st_ino, found.st_ctime_ns


def add_import_paths(program: Program, home: str) -> list[str]:
    """Put the program's folders on the import path, after the process's own; return what is new."""

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
