"""What came out of a simulation, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from vinecore.report.units import format_bytes

KINDS = {
    "peers": "from worker to worker",
    "to_workers": "from the manager to workers",
    "to_manager": "from workers to the manager",
    "storage": "from the storage to workers' caches",
    "streamed": "read from the storage by tasks",
}


@dataclass
class Report:
    """Figures of one simulation. Seconds are simulated ones, but for those that say CPU.

    Attributes
    ----------
    outcome : str
        "success", or the kind of failure; ``reason`` says more.
    makespan_s : float
        From the first submission until the user knows that all is done; workers may arrive later than the first submission.
    tasks, executions, reexecuted : int
        Tasks; how often one was begun; how often one was begun that had been begun before.
    workers, workers_lost : int
        How many workers came, and how many of those were lost.
    cores : int
        The most that were connected at a time.
    core_s, busy_core_s, useful_core_s : float
        Cores of workers times how long they were connected; the part of it in which a task had the core, with its start and what it read; the part in which
        a task computed whose result counted.
    bytes_moved, transfers : dict
        How much was moved, and how often, in each way (`KINDS`); small results in messages count.
    max_pair_bytes : int
        The most bytes that were moved between two machines, in both directions; the storage is none.
    manager_busy_s : float
        How long the manager was busy, by `Costs`.
    manager_cpu_s : float
        CPU seconds that `Scheduler.handle` really took here.
    events, messages : int
        Events that the scheduler handled, and messages that it sent to workers.
    peak_disk_bytes : int
        The most that one worker's disk held.
    peak_memory_mb : float
        The most memory that this process has had, all of the simulation included.
    elapsed_s : float
        How long the simulation itself took.
    """

    outcome: str = "success"
    reason: str = ""
    makespan_s: float = 0.0
    tasks: int = 0
    executions: int = 0
    reexecuted: int = 0
    workers: int = 0
    workers_lost: int = 0
    cores: int = 0
    core_s: float = 0.0
    busy_core_s: float = 0.0
    useful_core_s: float = 0.0
    bytes_moved: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    transfers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    max_pair_bytes: int = 0
    manager_busy_s: float = 0.0
    manager_cpu_s: float = 0.0
    events: int = 0
    messages: int = 0
    peak_disk_bytes: int = 0
    peak_memory_mb: float = 0.0
    elapsed_s: float = 0.0

    @property
    def utilisation(self) -> float:
        """The part of the cores' time in which they had a task."""
        return self.busy_core_s / self.core_s if self.core_s else 0.0

    @property
    def useful_utilization(self) -> float:
        """The part of the cores' time in which they computed what counted."""
        return self.useful_core_s / self.core_s if self.core_s else 0.0

    @property
    def manager_cpu_us_per_task(self) -> float:
        """Measured CPU microseconds of the scheduler per task."""
        return 1e6 * self.manager_cpu_s / self.tasks if self.tasks else 0.0

    @property
    def manager_load(self) -> float:
        """The part of the time in which the manager was busy."""
        return self.manager_busy_s / self.makespan_s if self.makespan_s else 0.0

    def add_bytes(self, kind: str, size: int) -> None:
        """Count a transfer."""
        self.bytes_moved[kind] += size
        self.transfers[kind] += 1

    def record(self) -> dict[str, Any]:
        """All of it, for a program."""
        names = ("utilisation", "useful_utilization", "manager_load", "manager_cpu_us_per_task")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}

    def table(self, title: str) -> Table:
        """All of it, for a person."""
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column("what", no_wrap=True)
        table.add_column("how much", justify="right", no_wrap=True)
        rows: list[tuple[str, str]] = [
            ("makespan", f"{self.makespan_s:,.3f} s"),
            ("tasks", f"{self.tasks:,}"),
            ("begun again because something was lost", f"{self.reexecuted:,}"),
            ("workers, lost ones among them", f"{self.workers:,}, {self.workers_lost:,}"),
            ("cores at the most", f"{self.cores:,}"),
            ("cores with a task", f"{self.utilisation:.1%}"),
            ("cores that computed what counted", f"{self.useful_utilization:.1%}"),
            *((f"moved {meaning}", f"{format_bytes(self.bytes_moved[kind])} in {self.transfers[kind]:,}") for kind, meaning in KINDS.items()),
            ("most between two machines", format_bytes(self.max_pair_bytes)),
            ("most on one worker's disk", format_bytes(self.peak_disk_bytes)),
            ("manager busy", f"{self.manager_busy_s:,.3f} s, {self.manager_load:.1%}"),
            ("events, messages to workers", f"{self.events:,}, {self.messages:,}"),
            ("CPU time of the scheduler, really", f"{self.manager_cpu_s:.3f} s, {self.manager_cpu_us_per_task:.1f} us per task"),
            ("memory of this process, really", f"{self.peak_memory_mb:,.0f} MB"),
            ("this simulation took", f"{self.elapsed_s:.1f} s"),
        ]  # fmt: skip
        for row in rows:
            table.add_row(*row)
        return table
