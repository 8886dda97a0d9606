"""What a factory needs of a batch system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from vinecore.factory.mind import Job
from vinecore.factory.settings import Settings


class BatchError(Exception):
    """The batch system does not do what it was asked, with its own words."""


class Order(NamedTuple):
    """What pilots are to do."""

    settings: Settings
    host: str
    port: int
    password_file: Path
    factory: str  # which factory they belong to
    fingerprint: str = ""  # of the manager's certificate, where there is TLS


class Batch(Protocol):
    """A batch system. Its methods may take long, and are called by one thread.

    The ids of jobs are those that the batch system itself uses, as far as it has any.
    """

    def submit(self, count: int, order: Order) -> list[str]:
        """Submit so many pilots at once; give their ids.

        Raises
        ------
        BatchError
        """
        ...

    def status(self) -> dict[str, Job]:
        """Say what became of each pilot; one that is gone is named once more.

        Raises
        ------
        BatchError
        """
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Take pilots out.

        Raises
        ------
        BatchError
        """
        ...

    def close(self) -> None:
        """Take all pilots out, and remove all files; may be called twice."""
        ...
