"""What a factory needs of a batch system."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from vinecore.factory.adaptive import JobStatus
from vinecore.factory.settings import FactorySettings


class BatchError(Exception):
    """The batch system does not do what it was asked, with its own words."""


class PilotSpec(NamedTuple):
    """What pilots are to do."""

    settings: FactorySettings
    host: str  # of the manager; "" where the batch system knows what its nodes call this machine
    port: int
    password_file: Path
    factory: str  # which factory they belong to
    fingerprints: tuple[str, ...] = ()  # of certificates that the manager may have, where there is TLS
    others: tuple[tuple[str, int], ...] = ()  # further addresses of the manager
    find: tuple[str, ...] = ()  # words that say how to find a manager by its name


def worker_command_line(order: PilotSpec, timeout_s: float | None = None) -> list[str]:
    """Give what every worker is told, whatever starts it, as words of the command line of ``vine_worker``: whom to work for, and what to offer.

    A batch system adds what depends on it: the secret (``--password``), a folder (``--workspace``), and which job it is (``--feature``).

    Parameters
    ----------
    order
        What pilots are to do.
    timeout_s
        After how long without work a worker leaves, if that is not what the settings say.
    """
    settings = order.settings
    where = [order.host, str(order.port)]
    if order.others:
        places = ((order.host, order.port), *order.others)
        where = [";".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in places)]
    words = [*where, *order.find, "--timeout", str(settings.timeout if timeout_s is None else timeout_s)]
    if settings.wall_time is not None:
        words += ["--wall-time", f"{settings.wall_time:g}"]
    for option in ("cores", "memory", "disk", "gpus"):
        value = getattr(settings, option)
        if value is not None:
            words += [f"--{option}", str(value)]
    for feature in settings.feature:
        words += ["--feature", feature]
    for fingerprint in order.fingerprints:
        words += ["--ssl-fingerprint", fingerprint]
    return words + shlex.split(settings.extra_options)


class BatchSystem(Protocol):
    """A batch system. Its methods may take long, and are called by one thread.

    The ids of jobs are those that the batch system itself uses, as far as it has any.
    """

    def submit(self, count: int, order: PilotSpec) -> list[str]:
        """Submit so many pilots at once; give their ids.

        Raises
        ------
        BatchError
        """
        ...

    def status(self) -> dict[str, JobStatus]:
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
