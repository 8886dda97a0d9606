"""The readers of a task: how it ended, where, when, and with which resources. Names and meanings are TaskVine's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.constants import TASK_RESULTS, TaskResult
from vinecore.manager.task_resources import TaskResources
from vinecore.manager.task_settings import TaskSettings
from vinecore.scheduler.instructions import TaskFinished

if TYPE_CHECKING:
    from vinecore.manager.interfaces import TaskHost

# The result for each outcome in the scheduler's words, as far as the words differ.
TASKVINE_RESULTS = {
    "exception": "success",
    "time": "max wall time",
    "end time": "max end time",
    "exhausted": "resource exhaustion",
    "crash": "forsaken",
    "library": "missing library",
    "too large": "resource exhaustion",
    "disk": "resource exhaustion",
    "input": "input missing",
    "not started": "forsaken",
    "no workers": "forsaken",
    "not sent": "output transfer error",
}
# Of an end without a process whose exit code a worker has told.
EXIT_CODES = {"success": 0, "exception": 1, "time": 9, "end time": 9, "exhausted": 9}
NEVER_RUN = -1
# Attempts that count as lost or exhausted are in the accounts of the task already.
ACCOUNTED_OUTCOMES = frozenset({"crash", "exhausted"})
# What has succeeded for the metric of failures.
COMPLETED_OUTCOMES = frozenset({"success", "exception"})
MOMENTS = (
    "time_when_submitted",
    "time_when_done",
    "time_when_commit_start",
    "time_when_commit_end",
    "time_when_retrieval",
)
DURATIONS = (
    "time_workers_execute_last",
    "time_workers_execute_all",
    "time_workers_execute_exhaustion",
    "time_workers_execute_failure",
)
BYTES = ("bytes_received", "bytes_sent", "bytes_transferred")
# From the clock of the scheduler to seconds since 1970.
EPOCH_OFFSET_S = time.time() - time.monotonic()


class TaskReaders(TaskSettings):
    """What is known of a task, mostly after its end."""

    id: int | None = None
    outcome: TaskFinished | None = None
    # On the scheduler's clock.
    submitted_at = 0.0
    _manager: TaskHost | None = None

    @property
    def manager(self) -> Any:
        """The manager to which the task was submitted; None before."""
        return self._manager

    @manager.setter
    def manager(self, manager: Any) -> None:
        self._manager = manager

    @property
    def state(self) -> str:
        """INITIAL, READY (submitted) or DONE."""
        return "DONE" if self.outcome else "INITIAL" if self.id is None else "READY"

    @property
    def result(self) -> TaskResult:
        """How the task ended: a text that also equals its constant, such as VINE_RESULT_SUCCESS.

        "success" for any exit code of the command, "signal" if a signal has ended it, "unknown"
        before the end. `vinecore.constants` has the constants.
        """
        ended = self.outcome
        if ended is None:
            return TASK_RESULTS["unknown"]
        if ended.outcome == "success":
            return TASK_RESULTS["signal" if ended.info.get("signal") else "success"]
        return TASK_RESULTS.get(TASKVINE_RESULTS.get(ended.outcome, ended.outcome), TASK_RESULTS["unknown"])

    @property
    def exit_code(self) -> int:
        """The exit code of the command.

        The number of the signal that has ended it; 9 if it was killed for a limit; 1 for a function
        that has raised an exception; -1 if it never ran.
        """
        if self.outcome is None:
            return NEVER_RUN
        return int(self.outcome.info.get("exit_code", EXIT_CODES.get(self.outcome.outcome, NEVER_RUN)))

    @property
    def return_status(self) -> int:
        """The exit code of the command, as `exit_code`."""
        return self.exit_code

    def completed(self) -> bool:
        """Return whether the command ran to its end.

        Returns
        -------
        bool
            True for any exit code.
        """
        return self.result == "success"

    def successful(self) -> bool:
        """Return whether the command ran to its end and returned 0.

        Returns
        -------
        bool
            False also while the task has not ended.
        """
        return self.completed() and self.exit_code == 0

    @property
    def std_output(self) -> str:
        """The end of the output of the command, with its errors."""
        info = {} if self.outcome is None else self.outcome.info
        return str(info.get("output", "")) + str(info.get("errors", ""))

    @property
    def output(self) -> Any:
        """The output of the command, as `std_output`."""
        return self.std_output

    def error(self) -> BaseException | None:
        """Return the reason why the task failed, as an exception.

        Returns
        -------
        BaseException or None
            None if the task succeeded, or has not ended.
        """
        ended = self.outcome
        if ended is None or ended.outcome == "success":
            return None
        assert self._manager is not None
        return self._manager.make_exception(
            ended.outcome, ended.info, ended.payload, self._title(), ended.worker
        )

    def _title(self) -> str:
        """Return the name of the task for the text of an error."""
        return f"task {self.id}"

    # ---- where

    @property
    def hostname(self) -> str:
        """The host on which the task ran; "" before it has ended."""
        if self.outcome is None or self._manager is None:
            return ""
        return self._manager.worker_name(self.outcome.worker)

    @property
    def addrport(self) -> str:
        """The address of the worker on which the task ran, and the port at which it serves files."""
        if self.outcome is None or self._manager is None:
            return ""
        return self._manager.worker_address(self.outcome.worker)

    # ---- how much

    @property
    def resources_requested(self) -> TaskResources:
        """What was asked for with `set_cores`, `set_memory`, `set_disk` and `set_gpus`."""
        return TaskResources(**self._request._asdict())

    @property
    def resources_allocated(self) -> TaskResources:
        """What the task got of its worker at its last attempt; nothing of it is known before the end.

        A `FunctionCall` gets nothing: its library has the resources.
        """
        accounts = None if self.outcome is None else self.outcome.accounts
        if accounts is None or accounts.granted is None:
            return TaskResources()
        return TaskResources(**accounts.granted._asdict())

    @property
    def resources_measured(self) -> TaskResources:
        """The highest usage, as far as it was measured."""
        ended = self.outcome
        measured = None if ended is None else ended.info.get("measured")
        if ended is None or not measured:
            return TaskResources()
        wall, cores = measured.get("wall_s"), measured.get("cores")
        cpu = ended.info.get("cpu_s")
        if cpu is None and wall is not None and cores is not None:
            cpu = wall * cores
        end = self._executed_at() + EPOCH_OFFSET_S
        return TaskResources(
            cores=cores,
            memory=measured.get("memory"),
            disk=measured.get("disk"),
            gpus=measured.get("gpus"),
            wall_time=wall,
            cpu_time=cpu,
            cores_avg=cores,
            max_concurrent_processes=measured.get("processes"),
            start=None if wall is None else end - wall,
            end=end,
        )

    @property
    def limits_exceeded(self) -> TaskResources | None:
        """The limits that the task has exceeded, with their values; None if it has exceeded none."""
        ended = self.outcome
        if ended is None or ended.outcome not in ("exhausted", "time"):
            return None
        name = "wall_time" if ended.outcome == "time" else ended.info.get("resource", "memory")
        return TaskResources(**{name: ended.info.get("limit")})

    # ---- when

    def get_metric(self, name: str) -> int:
        """Return a measurement of what happened to the task.

        Parameters
        ----------
        name : str
            "time_when_submitted", "time_when_done", "time_when_commit_start",
            "time_when_commit_end" (of the last attempt being sent to its worker),
            "time_when_retrieval": µs since 1970. "time_workers_execute_last", "..._all",
            "..._exhaustion", "..._failure": durations of the last attempt, of all, of those that
            exceeded a limit, and of those that failed otherwise, in µs. "bytes_received",
            "bytes_sent", "bytes_transferred": what the manager received, sent, and both together.

        Returns
        -------
        int
            The value; 0 for what has not happened.

        Raises
        ------
        ValueError
            There is no such metric.
        """
        if name in MOMENTS:
            return self._find_moment(name)
        if name in DURATIONS:
            return self._find_duration(name)
        if name not in BYTES:
            validators.refuse("name", name, f"one of {', '.join((*MOMENTS, *DURATIONS, *BYTES))}")
        sent = 0 if name == "bytes_received" else self._sent_bytes()
        return sent + (0 if name == "bytes_sent" else self._received_bytes())

    def _executed_at(self) -> float:
        """Return when the worker had executed the task, on the scheduler's clock."""
        assert self.outcome is not None
        accounts = self.outcome.accounts
        return (accounts.executed_at if accounts else 0.0) or self.outcome.ended_at

    def _last_wall_s(self, ended: TaskFinished) -> float:
        if ended.outcome == "success" or ended.accounts is None:
            return ended.wall_s
        return ended.accounts.failed_s

    def _find_moment(self, name: str) -> int:
        ended = self.outcome
        if name == "time_when_submitted":
            at = self.submitted_at
        elif ended is None:
            at = 0.0
        elif name == "time_when_done":
            at = ended.ended_at
        elif name == "time_when_retrieval":
            at = self._executed_at() if ended.dispatched_at else 0.0
        else:
            at = ended.dispatched_at
        return round((at + EPOCH_OFFSET_S) * 1e6) if at else 0

    def _find_duration(self, name: str) -> int:
        ended = self.outcome
        if ended is None:
            return 0
        accounts, last = ended.accounts, self._last_wall_s(ended)
        exhausted, lost = (accounts.exhausted_s, accounts.lost_s) if accounts else (0.0, 0.0)
        unaccounted = 0.0 if ended.outcome in ACCOUNTED_OUTCOMES else last
        seconds = {
            "time_workers_execute_last": last,
            "time_workers_execute_all": exhausted + lost + unaccounted,
            "time_workers_execute_exhaustion": exhausted,
            "time_workers_execute_failure": lost
            + (0.0 if ended.outcome in COMPLETED_OUTCOMES else unaccounted),
        }
        return round(seconds[name] * 1e6)

    def _sent_bytes(self) -> int:
        ended = self.outcome
        if ended is None or not ended.dispatched_at:
            return 0
        return ended.sent_bytes + (ended.accounts.sent_bytes if ended.accounts else 0)

    def _received_bytes(self) -> int:
        ended = self.outcome
        if ended is None:
            return 0
        return len(ended.payload) + (ended.accounts.received_bytes if ended.accounts else 0)
