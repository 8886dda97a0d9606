"""The base class of batch systems, and the parts of a pilot that are the same in all of them.

A new batch system is one module with a subclass of `BatchSystem`, and one line in
`vinecore.factory.batch_types`.
"""

from __future__ import annotations

import shlex
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from vinecore.factory.adaptive import JobStatus
from vinecore.factory.interfaces import ManagedManager
from vinecore.factory.settings import FactorySettings

if TYPE_CHECKING:
    from typing_extensions import Self


class BatchError(Exception):
    """The batch system does not do what it was asked, with its own words."""


class PilotSpec(NamedTuple):
    """The settings and the manager of pilots."""

    settings: FactorySettings
    host: str  # of the manager; "" where the batch system knows what its nodes call this machine
    port: int
    password_file: Path
    factory: str  # which factory they belong to
    fingerprints: tuple[str, ...] = ()  # of certificates that the manager may have, where there is TLS
    others: tuple[tuple[str, int], ...] = ()  # further addresses of the manager
    find: tuple[str, ...] = ()  # words that say how to find a manager by its name


def worker_command_line(order: PilotSpec, timeout_s: float | None = None) -> list[str]:
    """Return the part of a worker's command line that is the same in all batch systems.

    A batch system adds what depends on it: the secret (``--password``), a folder (``--workspace``), and which job it is (``--feature``).

    Parameters
    ----------
    order
        The settings and the manager of pilots.
    timeout_s
        After how long without work a worker leaves, if that is not what the settings say.
    """
    settings = order.settings
    where = [order.host, str(order.port)] if order.host else []
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


class BatchOptions(NamedTuple):
    """The parameters of a factory that are for its batch system.

    Attributes
    ----------
    manager : ManagedManager or None
        The manager of the workers, if it is in this process.
    leftover : str
        The name of a factory whose jobs are removed at the start; "" for none.
    scratch_dir, workspace, keep_workspace, condor_spool, slurm_shared, client, dask_scheduler
        As for `vinecore.Factory`.
    """

    manager: ManagedManager | None = None
    leftover: str = ""
    scratch_dir: str | Path | None = None
    workspace: str | Path | None = None
    keep_workspace: bool = False
    condor_spool: bool = False
    slurm_shared: bool = False
    client: Any = None
    dask_scheduler: str | None = None


class BatchSystem(ABC):
    """A batch system, which runs pilots.

    The methods of an instance may take long, and are called by one thread. The ids of jobs are those that the
    batch system itself uses, as far as it has any.

    Attributes
    ----------
    IGNORED_SETTINGS : tuple of str
        Fields of `FactorySettings` that have no effect here, and are refused.
    RUNS_HERE : bool
        Whether the workers are processes of this machine: they are started at once, and a signal that ends this
        program ends them first.
    last_failure : str
        The command of the worker that failed last, how it ended, and its last output; "" if that is not known.
    """

    IGNORED_SETTINGS: ClassVar[tuple[str, ...]] = ()
    RUNS_HERE: ClassVar[bool] = False
    last_failure = ""

    @classmethod
    def check(cls, options: BatchOptions, settings: Mapping[str, Any]) -> None:
        """Check the options and settings of a factory before it is made.

        Raises
        ------
        ValueError
            The batch system cannot work with them.
        """
        del options, settings

    @classmethod
    def default_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults that differ from those of `FactorySettings`, given the user's settings.

        Raises
        ------
        ValueError
            A setting is missing.
        """
        del settings
        return {}

    @classmethod
    def manager_host(cls, manager: ManagedManager | None) -> str:
        """Return the host by which workers find a manager on this machine; "" if the batch system finds out."""
        del manager
        return socket.getfqdn()

    @classmethod
    @abstractmethod
    def create(cls, options: BatchOptions) -> Self:
        """Connect to the batch system.

        Raises
        ------
        BatchError
            The batch system cannot be used here.
        """

    @abstractmethod
    def submit(self, count: int, order: PilotSpec) -> list[str]:
        """Submit so many pilots at once, and return their ids.

        Raises
        ------
        BatchError
            The batch system has rejected all of them.
        """

    @abstractmethod
    def status(self) -> dict[str, JobStatus]:
        """Return the status of each pilot; one that is gone is named once more.

        Raises
        ------
        BatchError
            The batch system does not answer.
        """

    @abstractmethod
    def remove(self, names: Sequence[str]) -> None:
        """Remove pilots.

        Raises
        ------
        BatchError
            The batch system has not removed them.
        """

    @abstractmethod
    def close(self) -> None:
        """Remove all pilots and all files. A second call does nothing."""
