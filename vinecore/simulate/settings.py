"""What surrounds the scheduler: machines, links, what things cost, and what breaks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

GBIT = 1e9 / 8
MS, US = 1e-3, 1e-6
ENDLESS = {"bandwidth", "manager_bandwidth", "stream", "replaced_after_s"}
"""What may be infinite: links and disks without a limit, and what never happens."""
UNITS = {"_s": "(seconds)", "_mb": "(MB)", "bandwidth": "(bytes per second)", "stream": "(bytes per second)"}


@dataclass(frozen=True)
class Storage:
    """A file system or a server that all workers read from.

    Attributes
    ----------
    bandwidth : float
        Bytes per second of all readers together.
    stream : float
        Bytes per second of one reader at most.
    latency_s : float
        Seconds until the first byte.
    """

    bandwidth: float = 40 * GBIT
    stream: float = math.inf
    latency_s: float = 2 * MS

    def __post_init__(self) -> None:
        _check(self, positive=("bandwidth", "stream"))


@dataclass(frozen=True)
class Cluster:
    """The machines and the links between them.

    Attributes
    ----------
    workers, cores : int
        How many workers there are, and the cores of each.
    memory_mb, disk_mb : int
        Of each worker, in MB; the disk holds its cache.
    bandwidth : float
        Bytes per second of a worker's link, in each direction.
    manager_bandwidth : float
        Bytes per second of the manager's link, in each direction, which all workers share.
    latency_s : float
        Seconds a message is under way.
    storage : Storage
        What files that are not at the manager are read from.
    peer_transfers : bool
        Whether workers fetch from each other; else everything goes through the manager.
    results_to_manager : bool
        Whether every result is brought to the manager, and not only those that are wanted.
    scheduler : str
        As in ``Manager.set_scheduler``.
    replicas : int
        On how many workers every result shall be (``temp-replica-count``).
    """

    workers: int = 4
    cores: int = 4
    memory_mb: int = 16_000
    disk_mb: int = 100_000
    bandwidth: float = 10 * GBIT
    manager_bandwidth: float = 10 * GBIT
    latency_s: float = 0.2 * MS
    storage: Storage = field(default_factory=Storage)
    peer_transfers: bool = True
    results_to_manager: bool = False
    scheduler: str = "files"
    replicas: int = 1

    def __post_init__(self) -> None:
        _check(
            self,
            positive=(
                "workers",
                "cores",
                "memory_mb",
                "disk_mb",
                "bandwidth",
                "manager_bandwidth",
                "replicas",
            ),
        )
        known = ("files", "time", "rand", "worst", "disk", "fcfs")
        if self.scheduler not in known:
            msg = f"scheduler={self.scheduler!r}: there are {', '.join(known)}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Costs:
    """What everything around a task takes, in seconds.

    The defaults were measured on this code by ``benchmarks/ladder/measure.py`` (Python 3.11, a core of a shared virtual machine), but for ``connect_s``,
    which is the budget of a worker's start, and for how the time of a task with a process of its own is split into ``fork_s`` and ``sandbox_s``.

    Attributes
    ----------
    loop_iteration_s : float
        A turn of the manager's loop, whatever it finds: waking up, and reading and writing sockets.
    event_s : float
        One event in the scheduler, such as a message or a submitted task, with its decoding.
    message_s : float
        One message to a worker, with its encoding.
    task_s : float
        What a manager spends on every task that it hands out beside that: nothing here, and what makes another manager than this one.
    submit_s : float
        One task, in the user's thread, before it is submitted.
    connect_s : float
        From the start of a worker until it is known to the manager.
    interpreter_s : float
        Start of a Python interpreter.
    imports_s : float
        The modules that the tasks need; 1.1 s for the HEP stack (coffea, dask-awkward, uproot, hist), nothing by default.
    fork_s : float
        A slot of a library, or a task from a warm Python, until it can begin.
    sandbox_s : float
        What a task with a process of its own takes beside that: its folder, its end, its measurements.
    call_s : float
        What a slot spends on a call beside the function itself.
    warm_fork : bool
        Whether tasks with a process of their own are forked from a warm Python, which learns what they import; else each
        starts an interpreter and imports.
    """

    loop_iteration_s: float = 100 * US
    event_s: float = 25 * US
    message_s: float = 2 * US
    task_s: float = 0.0
    submit_s: float = 20 * US
    connect_s: float = 0.2
    interpreter_s: float = 0.02
    imports_s: float = 0.0
    fork_s: float = 6 * MS
    sandbox_s: float = 10 * MS
    call_s: float = 150 * US
    warm_fork: bool = True

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Failures:
    """What goes wrong.

    Attributes
    ----------
    losses_per_hour : float
        How often a worker is lost, for each of them; at times that are drawn from an exponential distribution.
    replaced_after_s : float
        When another one comes in its place; never if infinite.
    detection_delay_s : float
        When the manager knows that a worker is lost, beside the way of the news.
    arrival_window_s : float
        Over how long the workers arrive, one after another.
    worker_lifetimes : tuple of (float, float)
        When each worker comes and when it is lost, as in the journal of a run; instead of ``Cluster.workers`` and of what is drawn, where there is any.
    """

    losses_per_hour: float = 0.0
    replaced_after_s: float = math.inf
    detection_delay_s: float = 0.0
    arrival_window_s: float = 0.0
    worker_lifetimes: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        _check(self)


def _check(settings: Any, positive: tuple[str, ...] = ()) -> None:
    """Refuse numbers that mean nothing."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        if not isinstance(value, int | float):
            continue
        least = "more than 0" if one.name in positive else "0 or more"
        fits = value > 0 if one.name in positive else value >= 0  # neither is true of NaN
        if not fits or (value == math.inf and one.name not in ENDLESS):
            unit = "".join(f" {words}" for end, words in UNITS.items() if one.name.endswith(end))
            msg = f"{one.name}={value}: has to be{'' if one.name in ENDLESS else ' finite and'} {least}{unit}"
            raise ValueError(msg)
