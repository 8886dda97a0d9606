"""The part of `Manager` that names files, brings their contents here, and keeps objects that many tasks share."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

from vinecore import errors
from vinecore.cache_level import CACHE_LEVELS
from vinecore.manager.cache_names import hash_bytes
from vinecore.manager.files import File
from vinecore.manager.status_methods import StatusMethods
from vinecore.protocol.serialization import unpicklable, values
from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer.types import Content
from vinecore.scheduler import events, instructions
from vinecore.scheduler.specs import WORKFLOW, FileSpec

if TYPE_CHECKING:
    from vinecore.server.server import ManagerServer


class ContentMethods(StatusMethods):
    """Names and contents of files.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.
    """

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        # Numbers of tasks, and of names that are random.
        self._numbers = itertools.count(1)
        self._finished_or_obtained = threading.Condition()
        # Whether tasks wait for files that may be declared by mistake, and the scheduler does not know that the program waits.
        self._has_absent_inputs = False
        # Files that a thread waits for, with the lists to which the reason is added why they cannot be had.
        self._content_requests: dict[str, list[list[str]]] = {}
        server.subscribe(instructions.FileAvailable, self._on_file_available)
        server.subscribe(instructions.InputsAbsent, self._on_inputs_absent)

    def _find_or_fetch(self, file: File, deadline: float | None = None) -> Content:
        name = file.cache_name
        content = self._server.store.find_object(name)
        if content is None:
            reason = self._wait_until_available(name, deadline)
            content = self._server.store.find_object(name)
            if content is None:
                msg = f"cannot read {file!r}: {self.in_words(reason) or 'the manager has it no longer'}"
                raise FileNotFoundError(msg)
        return content

    def _wait_until_available(self, name: str, deadline: float | None) -> str:
        """Wait until a file has been brought here; give the reason if it cannot be.

        Raises
        ------
        TimeoutError
            It has not arrived at the deadline.
        """
        answer: list[str] = []
        with self._finished_or_obtained:
            self._content_requests.setdefault(name, []).append(answer)
        self._server.post_event(events.FileRequested(name))
        with self._finished_or_obtained:
            while not answer:
                self._server.ensure_open()
                self.say_that_it_waits()
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    msg = f"{self.in_words(name)} has not arrived in time"
                    raise TimeoutError(msg)
                self._finished_or_obtained.wait(min(left, 1.0))
        return answer[0]

    def _on_file_available(self, obtained: instructions.FileAvailable) -> None:
        with self._finished_or_obtained:
            for answer in self._content_requests.pop(obtained.name, ()):
                answer.append(obtained.reason)
            self._finished_or_obtained.notify_all()

    def say_that_it_waits(self) -> None:
        """Report that the program waits for tasks.

        Tasks that read an absent input that no task makes fail then. Call it repeatedly while the
        program waits.
        """
        if self._has_absent_inputs:
            self._has_absent_inputs = False
            self._server.post_event(events.Waited())

    def _on_inputs_absent(self, _absent: instructions.InputsAbsent) -> None:
        with self._finished_or_obtained:
            self._has_absent_inputs = True
            self._finished_or_obtained.notify_all()

    def rename_for_new_content(self, file: File) -> None:
        """Give a file that another task fills a new cache name, if it has or will have a content.

        Tasks that were submitted before still read the old content under the old name.

        Parameters
        ----------
        file : File
            A file that a task is about to fill.
        """
        if file.has_content:
            file.cache_name, file.size = self._unique_name(file.kind), -1
            if file.kind == "file":
                self._server.store.set_destination(file.cache_name, file.source())
                if file.unlink_when_done:
                    self._server.store.unlink_on_release(file.cache_name, file.source())
            level = self._effective_level(file.cache_name, file.cache_level)
            self._declare(FileSpec(file.cache_name, peer_transfer=file.peer_transfer, level=level))
        file.has_content = True

    def _declare(self, spec: FileSpec) -> None:
        self._server.ensure_open()
        self._server.post_event(events.FilesDeclared([spec]))

    def _effective_level(self, name: str, level: str) -> int:
        """How long workers keep a file: of a name that is new in every manager no longer than there is this one."""
        number = CACHE_LEVELS[level]
        return min(number, WORKFLOW) if f"-{self._session}-" in name else number

    def _unique_name(self, kind: str) -> str:
        return f"{kind}-{self._session}-{next(self._numbers)}"

    def result_name(self, number: int) -> str:
        """Return the cache name of the result of task ``number``.

        Parameters
        ----------
        number : int
            The number of the task.

        Returns
        -------
        str
            The cache name.
        """
        return f"result-{self._session}-{number}"

    def declare_shared(self, value: Any) -> str:
        """Declare a function (or other object) that many tasks use.

        It is sent to a worker once, and loaded in a slot once.

        Parameters
        ----------
        value : object
            The object, which is serialized at each call, because it may have changed.

        Returns
        -------
        str
            Its cache name.
        """
        # serialized each time, because what a function refers to may have changed since
        try:
            data = values.dumps(value, by_value=True)
        except Exception as error:
            errors.add_note(
                error, f"{value!r:.200} cannot be sent to a worker: {unpicklable.describe_unpicklable(value)}"
            )
            raise
        return self.declare_shared_bytes(data)

    def declare_shared_bytes(self, data: bytes) -> str:
        """Declare a serialized object that many tasks use.

        Parameters
        ----------
        data : bytes
            The object as `vinecore.protocol.serialization.values.dumps` returns it.

        Returns
        -------
        str
            Its cache name.
        """
        name = hash_bytes("object", data)
        if not self._server.store.declared(name) and self._server.store.declare(name, data):
            self._declare(FileSpec(name, len(data), at_manager=True, digest=digests.digest_bytes(data)))
        return name

    def release_shared_bytes(self, name: str) -> None:
        """Release an object that `declare_shared_bytes` has declared.

        Parameters
        ----------
        name : str
            Its cache name.
        """
        self._server.store.release(name)
        self._server.post_event(events.FilesReleased([name], prune=False))
