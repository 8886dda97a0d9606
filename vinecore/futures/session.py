"""The tasks of an executor, from the first submission to the end of the manager."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vinecore.futures.tasks import FuturePythonTask, FutureTask

if TYPE_CHECKING:
    from vinecore.futures.future import VineFuture
    from vinecore.manager.manager import Manager

log = logging.getLogger("vinecore")


class ExecutorSession:
    """The tasks of an executor, which outlive it if the program drops it without a shutdown.

    Parameters
    ----------
    manager : Manager
        The manager.
    close : callable
        Ends the factory and the manager.
    """

    def __init__(self, manager: Manager, close: Callable[[], None]) -> None:
        self._manager, self._close = manager, close
        # Submitting a task may submit another one, which makes its argument.
        self._lock = threading.RLock()
        self._is_shut_down = self._is_closed = False
        self._unfinished: dict[VineFuture, int] = {}
        # Those that the program still has.
        self._futures: weakref.WeakSet[VineFuture] = weakref.WeakSet()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> VineFuture:
        """Run a function on one core."""
        task = FuturePythonTask(self._manager, fn, *args, **kwargs)
        task.set_cores(1)
        return self.submit_task(task)

    def submit_task(self, task: FutureTask) -> VineFuture:
        """Submit a task; return its future.

        Raises
        ------
        RuntimeError
            The executor was shut down.
        """
        future = task.future
        with self._lock:
            if self._is_shut_down:
                msg = "cannot schedule new futures after shutdown: this executor was shut down"
                raise RuntimeError(msg)
            number = self._manager.submit(task)
            self._unfinished[future] = number
            self._futures.add(future)
        future.add_settle_listener(self._on_settled)
        return future

    def _on_settled(self, future: VineFuture) -> None:
        self._unfinished.pop(future, None)

    def cancel_all(self) -> None:
        """Cancel all unfinished tasks, also those that run."""
        for future in list(self._unfinished):
            future.cancel()

    def shutdown(self, *, wait: bool, cancel_waiting: bool) -> None:
        """Accept no more tasks, and close the manager when all have ended."""
        with self._lock:
            self._is_shut_down = True
            unfinished = dict(self._unfinished)
        if cancel_waiting and unfinished:
            running = self._manager.find_running_tasks(unfinished.values())
            # The newest first: a reader is cancelled and does not fail because its input was cancelled.
            for future, number in reversed(list(unfinished.items())):
                if number not in running:
                    future.cancel()
        if wait:
            self.finish()
        elif not self._is_closed:
            threading.Thread(target=self.finish, name="vine-executor-shutdown").start()

    def shutdown_in_background(self) -> None:
        """Shut down without waiting; the garbage collector may call this."""
        if not self._is_shut_down:
            self.shutdown(wait=False, cancel_waiting=False)

    def finish(self) -> None:
        """Wait for all tasks, bring the values here that may still be asked for, and close."""
        try:
            while unfinished := list(self._unfinished):
                concurrent.futures.wait(unfinished)
            self._manager.join_callbacks()
            self._keep_values()
        finally:
            self._is_shut_down = self._is_closed = True
            sessions.discard(self)
            self._close()

    def _keep_values(self) -> None:
        kept = [future for future in list(self._futures) if future.keep_value()]
        for future in kept:
            try:
                future.result()
            except Exception as error:  # noqa: BLE001 - `result` raises it again for the user
                log.info("%r has no value: %r", future, error)


sessions: weakref.WeakSet[ExecutorSession] = weakref.WeakSet()


def _finish_at_exit() -> None:
    """Let tasks end that were submitted, as other executors do when a program ends."""
    for session in list(sessions):
        session.shutdown(wait=True, cancel_waiting=False)


# The standard executors register here, too: this runs before the threads of the program are joined, and before `atexit` closes managers.
threading._register_atexit(_finish_at_exit)  # type: ignore[attr-defined]  # noqa: SLF001
