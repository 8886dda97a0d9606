"""A manager, as far as futures use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from vinecore.manager.files import File
from vinecore.manager.interfaces import TaskHost


class FutureHost(TaskHost, Protocol):
    """A manager that runs the tasks of futures."""

    def read_file(self, file: File) -> bytes:
        """Return the bytes of a file."""
        ...

    def call_in_background(self, function: Callable[[], None]) -> None:
        """Call a function in the thread of callbacks."""
        ...

    def cancel_future_task(self, number: int) -> None:
        """Cancel the task of a future."""
        ...

    def find_running_tasks(self, numbers: Iterable[int]) -> set[int]:
        """Return which tasks run on a worker."""
        ...

    def request_result(self, name: str) -> None:
        """Have a result brought to the manager as soon as there is one."""
        ...

    def holds_result(self, name: str) -> bool:
        """Return whether the manager has the content of a result."""
        ...

    def release_result(self, name: str) -> None:
        """Release a result; takes no lock."""
        ...
