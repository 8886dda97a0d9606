"""The part of `Manager` that futures use: tasks whose ends are reported to their futures instead of `wait`."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vinecore.manager.library_methods import LibraryMethods
from vinecore.manager.tasks import Task
from vinecore.scheduler import events, instructions, queries

if TYPE_CHECKING:
    from vinecore.server.server import ManagerServer

log = logging.getLogger("vinecore")


class FutureMethods(LibraryMethods):
    """Tasks of futures.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.
    """

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        # Tasks of `vinecore.futures`, which is above this package.
        self._future_tasks: dict[int, Any] = {}
        self._callbacks = CallbackThread()

    def _on_future_finished(self, ended: instructions.TaskFinished) -> None:
        task = self._future_tasks.pop(ended.task, None)
        if task is not None:
            task.outcome = self._add_delivery_problems(task, ended)
            task.end_future()

    def _add_delivery_problems(
        self, task: Task, ended: instructions.TaskFinished
    ) -> instructions.TaskFinished:
        """Turn a success into a failure if an output could not be put where the user wants it."""
        undelivered = self._server.store.undelivered
        if undelivered and ended.outcome == "success":
            reasons = [
                undelivered.pop(file.cache_name) for file in task.outputs if file.cache_name in undelivered
            ]
            if reasons:
                return ended._replace(
                    outcome="output transfer error", info={**ended.info, "reason": "; ".join(reasons)}
                )
        return ended

    def end_futures(self) -> None:
        """Report the unfinished tasks of futures as cancelled, because the manager is closed."""
        for number in list(self._future_tasks):
            self._on_future_finished(instructions.TaskFinished(number, "cancelled", 0, {}, b""))
        self._callbacks.stop()

    def call_in_background(self, function: Callable[[], None]) -> None:
        """Call a function in the thread in which the callbacks of futures run.

        Parameters
        ----------
        function : callable
            A function without arguments.
        """
        self._callbacks.call(function)

    def join_callbacks(self) -> None:
        """Wait until the callbacks that are due have returned; in a callback this does nothing."""
        self._callbacks.join()

    def cancel_future_task(self, number: int) -> None:
        """Cancel the task of a future.

        Parameters
        ----------
        number : int
            The number of the task.
        """
        self._server.post_event(events.TasksCancelled([number]))

    def find_running_tasks(self, numbers: Iterable[int]) -> set[int]:
        """Return which tasks run on a worker, or have run and are bringing their results.

        Parameters
        ----------
        numbers : iterable of int
            The numbers of the tasks.

        Returns
        -------
        set of int
            The numbers of those that run.
        """
        numbers = list(numbers)
        return self._server.query(lambda scheduler: queries.find_running(scheduler, numbers))

    def request_result(self, name: str) -> None:
        """Have a result brought to the manager as soon as there is one.

        Parameters
        ----------
        name : str
            The cache name of the result.
        """
        self._server.post_event(events.FileRequested(name))

    def holds_result(self, name: str) -> bool:
        """Return whether the manager has the content of a result.

        Parameters
        ----------
        name : str
            The cache name of the result.

        Returns
        -------
        bool
            False if the content is on workers only.
        """
        return self._server.store.find_object(name) is not None

    def release_result(self, name: str) -> None:
        """Release a result that cannot be named any more.

        The garbage collector may call this at any moment in any thread, so it takes no lock.

        Parameters
        ----------
        name : str
            The cache name of the result.
        """
        with contextlib.suppress(RuntimeError):  # the manager has stopped
            self._server.post_event(events.FilesReleased([name], prune=False))


class CallbackThread:
    """Calls functions one after another in a thread that is started for the first of them.

    The server's thread reports the ends of tasks. A callback of a future may wait for other tasks, so it
    must not run there.
    """

    def __init__(self) -> None:
        self._due: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], None]) -> None:
        """Call a function after those that are due."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vine-callbacks", daemon=True)
                self._thread.start()
            self._due.put(function)

    def _run(self) -> None:
        while (function := self._due.get()) is not None:
            try:
                function()
            except BaseException:
                log.exception("a callback of a future has failed")
            # a callback that is kept here keeps its future, and so the result
            del function

    def join(self) -> None:
        """Wait until everything that is due has been called, unless this is one of these calls."""
        with self._lock:
            thread = self._thread
            if thread is None or thread is threading.current_thread() or not thread.is_alive():
                return
            reached = threading.Event()
            self._due.put(reached.set)
        while not reached.wait(1.0) and thread.is_alive():
            pass

    def stop(self) -> None:
        """End the thread when it has called everything that is due."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._due.put(None)
