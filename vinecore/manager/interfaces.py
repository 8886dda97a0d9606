"""Protocols of what lies above: a manager as its tasks see it, and a factory as a manager sees it."""

from __future__ import annotations

from typing import Any, Protocol

from vinecore.manager.files import File
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler.instructions import TaskFinished


class FileDeclarer(Protocol):
    """A manager, as far as settings of tasks use it that need files of their own."""

    def declare_file(self, path: str) -> File:
        """Declare a file of the user's."""
        ...


class OutputHost(Protocol):
    """A manager, as far as tasks use it that only run a command."""

    def rename_for_new_content(self, file: File) -> None:
        """Give a file a new name if it has a content, because another task fills it."""
        ...


class TaskHost(OutputHost, Protocol):
    """A manager, as far as the tasks that are submitted to it use it."""

    def worker_name(self, number: int) -> str:
        """Return the host that a worker runs on."""
        ...

    def worker_address(self, number: int) -> str:
        """Return the address and port of a worker."""
        ...

    def make_exception(
        self, outcome: str, info: dict[str, Any], payload: bytes, what: str, worker: int
    ) -> BaseException:
        """Make the exception that tells why a task has failed."""
        ...

    def load_result(
        self,
        number: int,
        outcome: TaskFinished,
        output_file: File | None,
        *,
        raw: bool,
        deadline: float | None = None,
    ) -> tuple[Any, Exception | None]:
        """Load the result of a Python task; return what its class raised if that failed."""
        ...

    def declare_shared(self, value: Any) -> str:
        """Declare an object that many tasks use; return its cache name."""
        ...

    def result_name(self, number: int) -> str:
        """Return the cache name of the result of a task."""
        ...

    def declare_result(self, name: str) -> File:
        """Declare the result of a task as a file of the user's."""
        ...

    def declare_output(self, name: str, level: str) -> File:
        """Declare the result of a Python task that comes to the manager as a file."""
        ...

    def declare_ended_output(self, number: int, content: bytes) -> File:
        """Declare the result of a Python task that has succeeded as a file."""
        ...

    def full_library_name(self, library: str, function: str) -> str:
        """Return the full name of an installed library that has a function."""
        ...

    def check_share(self, library: str, needs: ResourceRequest) -> None:
        """Make sure that a call needs no more than its library has."""
        ...


class ScalableFactory(Protocol):
    """A factory, as far as the manager that it works for uses it."""

    def change(self, **settings: Any) -> None:
        """Change several settings at once."""
        ...

    def stop(self) -> None:
        """End all workers that it has started."""
        ...
