"""The part of `Manager` that submits single tasks and gives them back when they have ended."""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinecore import errors, validators
from vinecore.manager.files import File
from vinecore.manager.future_methods import FutureMethods
from vinecore.manager.monitor_files import write_summary
from vinecore.manager.tasks import Task
from vinecore.protocol.serialization import values
from vinecore.protocol.transfer.types import Content
from vinecore.scheduler import events, instructions, queries

if TYPE_CHECKING:
    from datetime import timedelta

    from vinecore.scheduler.specs import TaskSpec
    from vinecore.server.server import ManagerServer

# Numbers are counted up to the one that the user sets: this takes a second.
MAX_MIN_TASK_ID = 100_000_000


log = logging.getLogger("vinecore")


class TaskMethods(FutureMethods):
    """Single tasks.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.
    """

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        self._tasks: dict[int, Task] = {}
        self._finished: deque[Task] = deque()
        self._waiters = 0
        # Returns how a task is to be run, and how it has ended in an earlier run, if that is known.
        self._look_up_task: (
            Callable[[Task, TaskSpec], tuple[TaskSpec, instructions.TaskFinished | None]] | None
        ) = None
        server.subscribe(instructions.TaskFinished, self._on_task_finished)

    def submit(self, task: Task) -> int:
        """Submit a task; it runs as soon as its inputs and a worker are available.

        Parameters
        ----------
        task : Task
            A task that has not been submitted, or has come back through `wait`.

        Returns
        -------
        int
            The number of the task.

        Raises
        ------
        TypeError, ValueError
            The task cannot run as it is; nothing has been submitted.
        RuntimeError
            The manager is closed.
        """
        self._server.ensure_open()
        if not isinstance(task, Task):
            msg = f"cannot submit {task!r}: use a Task, a PythonTask or a FunctionCall"
            raise TypeError(msg)
        if task.id is not None and task.outcome is None:
            msg = f"task {task.id} has been submitted already: submit it again after wait() has returned it, or make another task"
            raise ValueError(msg)
        task.manager = self
        task.submit_finalize()
        for file in task.files:
            if file.manager is not self:
                msg = f"{file!r} was declared with another manager: declare it with this one as well"
                raise ValueError(msg)
        number = next(self._numbers)
        spec = task.make_spec(self, number)
        earlier = None
        if self._look_up_task is not None and not task.has_future:
            spec, earlier = self._look_up_task(task, spec)
        task.id, task.outcome, task.submitted_at = number, None, time.monotonic()
        (self._future_tasks if task.has_future else self._tasks)[number] = task
        if earlier is None:
            self._server.post_event(events.TasksSubmitted([spec]))
        else:
            self._on_task_finished(earlier)
        return number

    def set_min_task_id(self, minid: int) -> int:
        """Set the least number that tasks get from now on.

        Parameters
        ----------
        minid : int
            The number, at most 100,000,000. If it has been given to a task already, nothing changes.

        Returns
        -------
        int
            The least number that the next task may get.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number, or out of bounds.
        """
        minid = validators.whole("minid", minid, 1, MAX_MIN_TASK_ID)
        reached = next(self._numbers)
        # The iterator is shared with graphs, which have it already: it is moved on, and not replaced.
        deque(itertools.islice(self._numbers, max(0, minid - 1 - reached)), maxlen=0)
        return max(minid, reached + 1)

    def wait(self, timeout: float | timedelta | str | None = "wait_forever") -> Task | None:
        """Wait for the next task that ends.

        Parameters
        ----------
        timeout : float, timedelta, str or None
            Duration in seconds; None or "wait_forever" for no limit.

        Returns
        -------
        Task or None
            The task; None if no task has ended in time, or no task is left.

        Raises
        ------
        TypeError, ValueError
            The timeout is no duration.
        RuntimeError
            The manager is closed.
        """
        if timeout is not validators.FOREVER:
            timeout = validators.timeout("timeout", timeout)
        try:
            task = self._finished.popleft()
        except IndexError:
            return self._wait_for(lambda _task: True, timeout)
        if task.monitor_directory:
            _write_summary(task)
        return task

    def wait_for_tag(self, tag: str, timeout: float | timedelta | str | None = "wait_forever") -> Task | None:
        """Wait for the next task with a tag that ends.

        Parameters
        ----------
        tag : str
            The tag.
        timeout : float, timedelta, str or None
            Duration in seconds; None or "wait_forever" for no limit.

        Returns
        -------
        Task or None
            As for `wait`.

        Raises
        ------
        TypeError, ValueError
            The timeout is no duration, or the tag is no text.
        RuntimeError
            The manager is closed.
        """
        tag = validators.text("tag", tag)
        return self._wait_for(lambda task: task.tag == tag, timeout)

    def wait_for_task_id(
        self, task_id: int, timeout: float | timedelta | str | None = "wait_forever"
    ) -> Task | None:
        """Wait for the end of a task.

        Parameters
        ----------
        task_id : int
            The number that `submit` has returned.
        timeout : float, timedelta, str or None
            Duration in seconds; None or "wait_forever" for no limit.

        Returns
        -------
        Task or None
            As for `wait`.

        Raises
        ------
        TypeError, ValueError
            The timeout is no duration, or the number is no whole number.
        RuntimeError
            The manager is closed.
        """
        task_id = validators.whole("task_id", task_id)
        return self._wait_for(lambda task: task.id == task_id, timeout)

    def _wait_for(
        self, suits: Callable[[Task], bool], timeout: float | timedelta | str | None
    ) -> Task | None:
        self._server.ensure_open()
        seconds = validators.timeout("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._finished_or_obtained:
            self._waiters += 1
            try:
                while True:
                    over = self._server.closed or not self._tasks
                    for task in list(self._finished):
                        if suits(task) and self._remove_finished(task):
                            if task.monitor_directory:
                                _write_summary(task)
                            return task
                    self.say_that_it_waits()
                    left = None if deadline is None else deadline - time.monotonic()
                    if (left is not None and left <= 0) or over:
                        return None
                    began = time.monotonic()
                    self._finished_or_obtained.wait(1.0 if left is None else min(left, 1.0))
                    self._waited_s += time.monotonic() - began
                    self._server.ensure_open()
            finally:
                self._waiters -= 1

    def _remove_finished(self, task: Task) -> bool:
        try:
            self._finished.remove(task)
        except ValueError:  # another thread has been faster
            return False
        return True

    def empty(self) -> bool:
        """Return whether every submitted task has come back through `wait`.

        Returns
        -------
        bool
            True also if no task was submitted.
        """
        return not self._tasks and not self._finished

    def cancel_by_task_id(self, task_id: int) -> bool:
        """Cancel a task; it comes back through `wait` with the result "cancelled".

        Parameters
        ----------
        task_id : int
            The number that `submit` has returned.

        Returns
        -------
        bool
            Whether the task was cancelled; False if it has ended before, or there is none.

        Raises
        ------
        TypeError, ValueError
            It is no whole number.
        """
        number = validators.whole("task_id", task_id)
        task = self._tasks.get(number) or self._future_tasks.get(number)
        return task is not None and self._cancel([task]) == 1

    def cancel_by_task_tag(self, tag: str) -> bool:
        """Cancel one of the tasks with a tag, the one that was submitted first.

        Parameters
        ----------
        tag : str
            The tag.

        Returns
        -------
        bool
            Whether a task was cancelled; False if no unfinished task has the tag.

        Raises
        ------
        TypeError, ValueError
            The tag is no text.
        """
        tag = validators.text("tag", tag)
        return any(self._cancel([task]) for task in self._unfinished_tasks() if task.tag == tag)

    def cancel_all_by_tag(self, tag: str) -> int:
        """Cancel all tasks with a tag; they come back through `wait`.

        Parameters
        ----------
        tag : str
            The tag.

        Returns
        -------
        int
            The number of tasks that were cancelled.

        Raises
        ------
        TypeError, ValueError
            The tag is no text.
        """
        tag = validators.text("tag", tag)
        return self._cancel([task for task in self._unfinished_tasks() if task.tag == tag])

    def cancel_by_category(self, category: str) -> int:
        """Cancel all tasks of a category; they come back through `wait`.

        Parameters
        ----------
        category : str
            The name of the category.

        Returns
        -------
        int
            The number of tasks that were cancelled.

        Raises
        ------
        TypeError, ValueError
            The category is no text, or empty.
        """
        category = validators.category("category", category)
        return self._cancel([task for task in self._unfinished_tasks() if task.category == category])

    def cancel_all(self) -> int:
        """Cancel all tasks that were submitted; they come back through `wait`.

        Returns
        -------
        int
            The number of tasks that were cancelled.
        """
        return self._cancel(self._unfinished_tasks())

    def _unfinished_tasks(self) -> list[Task]:
        """Return all tasks that have not ended, those of futures included."""
        return [*self._tasks.values(), *self._future_tasks.values()]

    def _cancel(self, tasks: list[Task]) -> int:
        """Cancel tasks, and return how many of them had not ended before."""
        cancellation = events.TasksCancelled([task.id for task in tasks if task.id is not None])
        if self._server.closed:
            return 0
        before, after = self._server.query_around(cancellation, queries.count_cancelled_tasks)
        return after - before

    def _on_task_finished(self, ended: instructions.TaskFinished) -> None:
        task = self._tasks.get(ended.task)
        if task is None:
            self._on_future_finished(ended)
            return
        task.outcome = self._add_delivery_problems(task, ended)
        self._finished.append(task)
        del self._tasks[
            ended.task
        ]  # last: a thread that sees the task in neither place may conclude that all tasks are over
        if self._waiters:
            with self._finished_or_obtained:
                self._finished_or_obtained.notify_all()

    def load_result(
        self,
        number: int,
        outcome: instructions.TaskFinished,
        output_file: File | None,
        *,
        raw: bool,
        deadline: float | None = None,
    ) -> tuple[Any, Exception | None]:
        """Load the result of a Python task.

        Parameters
        ----------
        number : int
            The number of the task.
        outcome : TaskFinished
            The end of the task.
        output_file : File or None
            The file with the result, if the task has left it on a worker.
        raw : bool
            Whether the result is bytes that are not serialized.
        deadline : float or None
            The value of `time.monotonic` until which a result that is on a worker may take to
            arrive; None for no limit.

        Returns
        -------
        value : object
            The result; None if it cannot be loaded.
        problem : Exception or None
            The exception that the class of the result has raised.

        Raises
        ------
        FileNotFoundError
            The manager was closed before.
        TimeoutError
            The result has not arrived at the deadline.
        """
        content: Content | None = outcome.payload
        # A result that came with the news of the end is nowhere else.
        is_released = bool(content)
        if not content:
            name = self.result_name(number)
            if output_file is not None:
                content = self._find_or_fetch(output_file, deadline)
            else:
                content = self._server.store.find_object(name)
            if content is None:
                msg = (
                    f"the result of task {number} is gone, because the manager was closed: "
                    "read its output before the manager is closed"
                )
                raise FileNotFoundError(msg)
        value: Any = None
        problem: Exception | None = None
        try:
            if raw:
                value = Path(content).read_bytes() if isinstance(content, str) else content
            else:
                value = values.load_file(content) if isinstance(content, str) else values.loads(content)
        except Exception as error:  # noqa: BLE001 - raised by the class of the result
            errors.add_note(error, f"task {number} has a result that could not be loaded here")
            problem = error
        if output_file is None and not is_released:
            self._server.post_event(events.FilesReleased([name], prune=False))
        return value, problem


def _write_summary(task: Task) -> None:
    try:
        write_summary(task, task.monitor_directory)
    except OSError as error:
        log.warning("the resources of task %s are not written: %s", task.id, error)
