"""The part of `Manager` that says where its files are."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vinecore.manager.status_methods import StatusMethods
from vinecore.protocol import temporary_folders

if TYPE_CHECKING:
    from collections.abc import Callable

    from vinecore.journal.writer import JournalWriter


class DirectoryMethods(StatusMethods):
    """The folders of this run. Each is made when it is first asked for."""

    _journal_writer: JournalWriter | None
    on_close: Callable[[Callable[[], None]], Callable[[], None]]
    _temporary_runtime_folder = ""
    _folder_lock = threading.Lock()

    @property
    def runtime_directory(self) -> str:
        """The absolute path of the folder of this run.

        Without ``run_info_path`` it is a temporary folder, which is removed when the manager is closed.
        """
        journal = None if self._journal_writer is None else self._journal_writer.path
        if journal is not None:
            return str(journal.parent)
        with self._folder_lock:
            if not self._temporary_runtime_folder:
                self.ensure_open()
                self._temporary_runtime_folder = temporary_folders.create_folder("vine-run-")
                self.on_close(self._remove_temporary_folder)
            return self._temporary_runtime_folder

    def _remove_temporary_folder(self) -> None:
        temporary_folders.remove_folder(self._temporary_runtime_folder)

    @property
    def logging_directory(self) -> str:
        """The absolute path of the folder for logs of this run."""
        return _make_folder(self.runtime_directory, "vine-logs")

    @property
    def library_logging_directory(self) -> str:
        """The absolute path of the folder for the output of libraries."""
        return _make_folder(self.runtime_directory, "library-logs")

    @property
    def cache_directory(self) -> str:
        """The absolute path of the folder for what several runs have in common.

        It is beside the folders of the runs in ``run_info_path``; without that it is in the temporary
        folder of this run.
        """
        runtime = Path(self.runtime_directory)
        return _make_folder(runtime if self._temporary_runtime_folder else runtime.parent, "vine-cache")

    @property
    def staging_directory(self) -> str:
        """The absolute path of a folder for files that are on their way to and from workers.

        It is removed when the manager is closed.
        """
        self.ensure_open()
        return _make_folder(self._server.store.folder, "staging")


def _make_folder(parent: str | Path, name: str) -> str:
    folder = Path(parent) / name
    folder.mkdir(exist_ok=True)
    return str(folder)
