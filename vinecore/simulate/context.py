"""What a simulated manager and its workers share: time, links, settings, tables and counters."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

from vinecore.protocol import messages
from vinecore.simulate.event_queue import EventQueue
from vinecore.simulate.network import Link
from vinecore.simulate.report import Report
from vinecore.simulate.settings import Cluster, Costs
from vinecore.simulate.workload import SimulatedTask, Workload

TASK_NUMBER_MASK = (1 << 40) - 1
"""The part of a dispatch id that is the task's number."""
WORKER_MODULES = (
    "vineworker.state.state_machine",
    "vineworker.state.events",
    "vineworker.state.instructions",
    "vineworker.slot_protocol",
)


class SimulationContext:
    """The state that a simulation and its workers share.

    Parameters
    ----------
    workload
        The tasks and files.
    cluster, costs
        The machines, and how long things take.

    Attributes
    ----------
    clock : EventQueue
        The simulated time.
    report : Report
        The figures, which grow while the simulation runs.
    storage, manager_up, manager_down : Link
        The links that all workers share.
    state_machine, worker_events, worker_instructions, reply : type or module
        The worker's state machine, its events and instructions, and the reply of a slot, from the
        worker's own package.
    sizes : dict
        Bytes by the name of a file or result.

    Raises
    ------
    RuntimeError
        The worker's package is not installed.
    """

    def __init__(self, workload: Workload, cluster: Cluster, costs: Costs) -> None:
        self.cluster, self.costs = cluster, costs
        self.clock = EventQueue()
        self.report = Report(tasks=len(workload.jobs))
        (
            self.state_machine,
            self.worker_events,
            self.worker_instructions,
            self.reply,
        ) = _load_worker_modules()
        self.storage = Link(self.clock, cluster.storage.bandwidth, cluster.storage.stream)
        self.manager_up, self.manager_down = (Link(self.clock, cluster.manager_bandwidth) for _ in range(2))
        self.tasks = workload.jobs
        self.sizes: dict[str, int] = {
            **{task.key: task.size for task in self.tasks},
            **{name: file.size for name, file in workload.files.items()},
        }
        self._executions: Counter[int] = Counter()
        self._useful_core_s: dict[int, float] = {}
        # by the numbers of both ends; the manager is number 0
        self._pair_bytes: Counter[tuple[int, int]] = Counter()

    def task_of(self, dispatch_id: int) -> SimulatedTask:
        """Return the task that a worker was asked to run."""
        return self.tasks[(dispatch_id & TASK_NUMBER_MASK) - 1]

    def count_transfer(self, kind: str, size: int, one: int, other: int) -> None:
        """Count a transfer between two ends; the manager is number 0."""
        self.report.add_bytes(kind, size)
        self._pair_bytes[min(one, other), max(one, other)] += size

    def count_execution(self, run: messages.RunTask) -> None:
        """Count the start of a task on a worker."""
        self.report.executions += 1
        self._executions[run.task & TASK_NUMBER_MASK] += 1

    def count_busy_time(self, run: messages.RunTask, began: float) -> None:
        """Count the time in which a task had its cores, whether or not it completed."""
        self.report.busy_core_s += (self.clock.now - began) * _cores_of(self.task_of(run.task))

    def count_useful_time(self, run: messages.RunTask) -> None:
        """Count the computing time of a task that completed, once per task."""
        task = self.task_of(run.task)
        self._useful_core_s[run.task & TASK_NUMBER_MASK] = task.seconds * _cores_of(task)

    def complete_report(self) -> None:
        """Write the figures into the report that are known only at the end."""
        self.report.reexecuted = sum(times - 1 for times in self._executions.values())
        self.report.max_pair_bytes = max(self._pair_bytes.values(), default=0)
        self.report.useful_core_s = sum(self._useful_core_s.values())


def _cores_of(task: SimulatedTask) -> float:
    return 1.0 if task.library else task.cores


def _load_worker_modules() -> tuple[Any, Any, Any, Any]:
    """Load the worker's state machine, its events and instructions, and the reply of its slots."""
    try:
        state, events, instructions, slot_protocol = map(importlib.import_module, WORKER_MODULES)
    except ImportError as error:
        msg = f"the simulator runs the worker's own state machine, and the package vineworker is not installed: {error}"
        raise RuntimeError(msg) from error
    return state.WorkerStateMachine, events, instructions, slot_protocol.Reply
