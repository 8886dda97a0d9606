"""The part of `Manager` that makes results of Python tasks files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vinecore.manager.cache_names import hash_bytes
from vinecore.manager.files import OutputFile
from vinecore.manager.on_demand_methods import OnDemandMethods
from vinecore.protocol.serialization import values
from vinecore.protocol.transfer import digests
from vinecore.scheduler.specs import FileSpec


class OutputMethods(OnDemandMethods):
    """Results of Python tasks as files that other tasks and the user may read."""

    def undeclare_function(self, fn: Callable[..., Any]) -> None:
        """Release a function that no further `PythonTask` calls.

        When no submitted task needs it either, it is removed from the workers. A later task with
        the function sends it again.

        Parameters
        ----------
        fn : callable
            The function of earlier tasks.
        """
        name = hash_bytes("object", values.dumps(fn, by_value=True))
        if self._server.store.declared(name):
            self.release_shared_bytes(name)

    def declare_output(self, name: str, level: str) -> OutputFile:
        """Declare the result of a Python task that comes to the manager as a file.

        Parameters
        ----------
        name : str
            The cache name of the result.
        level : str
            The cache level, for the copies of workers.

        Returns
        -------
        OutputFile
            The file, for tasks of this manager.
        """
        self._declare(FileSpec(name, level=self._effective_level(name, level)))
        return OutputFile(self, "file", name, level=level)

    def declare_ended_output(self, number: int, content: bytes) -> OutputFile:
        """Declare the result of a Python task that has succeeded as a file.

        Parameters
        ----------
        number : int
            The number of the task.
        content : bytes
            The result, if the task has it; else empty.

        Returns
        -------
        OutputFile
            The file, for tasks of this manager.
        """
        name = self.result_name(number)
        if content:
            name = self._unique_name("result")
            self._server.store.declare(name, content)
            digest = digests.digest_bytes(content)
            self._declare(FileSpec(name, len(content), at_manager=True, digest=digest))
        return OutputFile(self, "file", name, level="workflow")

    def write_output(self, file: OutputFile) -> str:
        """Write an output that is at the manager to the disk.

        Parameters
        ----------
        file : OutputFile
            The output of a task that has ended.

        Returns
        -------
        str
            Its path.

        Raises
        ------
        FileNotFoundError
            The task has not ended, or the output is gone.
        """
        content = self._server.store.find_object(file.cache_name)
        if content is None:
            msg = f"{file!r} is not at the manager: wait for its task before its path is asked for"
            raise FileNotFoundError(msg)
        folder = Path(self._server.store.folder, "staging", "outputs")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file.cache_name
        if isinstance(content, str):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)
        return str(path)
