"""The readers of a task of Work Queue: how it ended, where, when, and with which resources."""

from __future__ import annotations

from typing import Any

from vinecore.compat.work_queue import constants as wq
from vinecore.manager.tasks import Task

RESULTS = {
    "success": wq.WORK_QUEUE_RESULT_SUCCESS,
    "input missing": wq.WORK_QUEUE_RESULT_INPUT_MISSING,
    "output missing": wq.WORK_QUEUE_RESULT_OUTPUT_MISSING,
    "stdout missing": wq.WORK_QUEUE_RESULT_STDOUT_MISSING,
    "signal": wq.WORK_QUEUE_RESULT_SIGNAL,
    "resource exhaustion": wq.WORK_QUEUE_RESULT_RESOURCE_EXHAUSTION,
    "max end time": wq.WORK_QUEUE_RESULT_TASK_TIMEOUT,
    "unknown": wq.WORK_QUEUE_RESULT_UNKNOWN,
    "forsaken": wq.WORK_QUEUE_RESULT_MAX_RETRIES,
    "max retries": wq.WORK_QUEUE_RESULT_MAX_RETRIES,
    "max wall time": wq.WORK_QUEUE_RESULT_TASK_MAX_RUN_TIME,
    "monitor error": wq.WORK_QUEUE_RESULT_RMONITOR_ERROR,
    "output transfer error": wq.WORK_QUEUE_RESULT_OUTPUT_TRANSFER_ERROR,
    "sandbox exhaustion": wq.WORK_QUEUE_RESULT_DISK_ALLOC_FULL,
}
"""Work Queue's number for each result; a task that is lost too often has used up its retries."""


class QueueTaskReaders:
    """What a task tells, under Work Queue's names."""

    # The task of the manager: the latest that was submitted, or the settings of one that was not.
    _run: Task

    @property
    def id(self) -> int | None:
        """The number of the task."""
        return self._run.id

    @property
    def is_over(self) -> bool:
        """Whether the task has ended."""
        return self._run.outcome is not None

    @property
    def command(self) -> str:
        """The command line."""
        return str(self._run.command)

    @property
    def tag(self) -> str:
        """The tag."""
        return str(self._run.tag)

    @property
    def category(self) -> str:
        """The category."""
        return str(self._run.category)

    @property
    def priority(self) -> float:
        """The priority."""
        return float(self._run.priority)

    @property
    def result(self) -> int:
        """The end of the task as a number, such as WORK_QUEUE_RESULT_SUCCESS for any exit code."""
        return RESULTS.get(str(self._run.result), wq.WORK_QUEUE_RESULT_UNKNOWN)

    @property
    def result_str(self) -> str:
        """The end of the task as a text."""
        return str(self._run.result)

    @property
    def return_status(self) -> int:
        """The exit code of the command."""
        return self._run.exit_code

    exit_code = return_status

    @property
    def output(self) -> Any:
        """What the command has printed; of a function its value, or its exception."""
        return self._run.output

    @property
    def std_output(self) -> str:
        """What the task has printed."""
        return self._run.std_output

    @property
    def hostname(self) -> str:
        """The host on which the task ran."""
        return self._run.hostname

    @property
    def host(self) -> str:
        """The address and port of the worker on which the task ran."""
        return self._run.addrport

    @property
    def total_submissions(self) -> int:
        """How often the task was sent to a worker: 2 stands for more than once if the last attempt has succeeded."""
        ended = self._run.outcome
        if ended is None or not ended.dispatched_at:
            return 0
        accounts = ended.accounts
        is_repeated = accounts is not None and bool(accounts.lost_s or accounts.exhausted_s)
        return max(int(ended.info.get("attempts", 0)), 2 if is_repeated else 1)

    @property
    def resources_measured(self) -> Any:
        """The highest usage."""
        return self._run.resources_measured

    @property
    def resources_requested(self) -> Any:
        """The resources that the task asked for."""
        return self._run.resources_requested

    @property
    def resources_allocated(self) -> Any:
        """The resources that the task got of its worker."""
        return self._run.resources_allocated

    @property
    def limits_exceeded(self) -> Any:
        """The limits that the task has exceeded; None for none."""
        return self._run.limits_exceeded


# Readers that are measurements: Work Queue's name, and the metric; times in microseconds since 1970, durations in microseconds.
METRICS = {
    "submit_time": "time_when_submitted",
    "finish_time": "time_when_done",
    "send_input_start": "time_when_commit_start",
    "send_input_finish": "time_when_commit_end",
    "execute_cmd_start": "time_when_commit_end",
    "execute_cmd_finish": "time_when_retrieval",
    "receive_output_start": "time_when_retrieval",
    "receive_output_finish": "time_when_done",
    "cmd_execution_time": "time_workers_execute_last",
    "total_cmd_execution_time": "time_workers_execute_all",
    "total_cmd_exhausted_execute_time": "time_workers_execute_exhaustion",
    "total_time_until_worker_failure": "time_workers_execute_failure",
    "total_bytes_received": "bytes_received",
    "total_bytes_sent": "bytes_sent",
    "total_bytes_transferred": "bytes_transferred",
}


def _metric(name: str, metric: str) -> Any:
    return property(lambda task: task._run.get_metric(metric), doc=f"The metric {name}.")  # noqa: SLF001 - of this module


for _name, _measured in METRICS.items():
    setattr(QueueTaskReaders, _name, _metric(_name, _measured))
