"""The part of a manager that a factory in the same process uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from vinecore.scheduler.queue_stats import QueueStats


class ManagedManager(Protocol):
    """A manager whose workers a factory starts and stops; `vinecore.Manager` is one.

    Attributes
    ----------
    password_file : Path
        The file with the secret that workers have to know.
    ssl_fingerprint : str
        The fingerprint of its certificate; "" without TLS.
    factory : Any
        The factory that `Manager.scale` and `Manager.adapt` go to.
    """

    password_file: Path
    ssl_fingerprint: str
    factory: Any

    @property
    def port(self) -> int:
        """The port that workers connect to."""
        ...

    @property
    def bound_address(self) -> str:
        """The address that the manager listens on."""
        ...

    def queue_stats(self) -> QueueStats:
        """Return how much waits and runs, and which pilots are connected."""
        ...

    def release_idle_workers(self, count: int, prefix: str) -> int:
        """Let idle workers go whose pilots have names that begin so; return how many."""
        ...

    def report_start_failure(self, reason: str) -> None:
        """Fail what waits for workers, because none can be started; "" takes that back."""
        ...

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call a function when the manager is closed; return the function that cancels this."""
        ...

    def close_on_exit_signals(self) -> None:
        """Close the manager when a signal ends the program."""
        ...
