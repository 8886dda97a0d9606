"""The result of a task as a standard future."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.errors import TaskFailed
from vinecore.manager.files import File

if TYPE_CHECKING:
    from vinecore.futures.interfaces import FutureHost
    from vinecore.scheduler.instructions import TaskFinished

Timeout = float | str | None
NOT_LOADED = object()


class ResultFile(File):
    """The result of a task on the workers, which is released when no object of the program names it."""

    __slots__ = ()

    def __init__(self, manager: FutureHost, name: str) -> None:
        super().__init__(manager, "temp", name, level="workflow")

    def __del__(self) -> None:
        host: Any = self.manager
        host.release_result(self.cache_name)


class VineFuture(concurrent.futures.Future[Any]):
    """A value that a task makes.

    The value stays on the worker. `result` brings it here; as an argument of another task it goes
    from worker to worker. A value of at most 64 KiB comes here with the news that the task has
    ended. When the program drops the future, the workers drop the value.

    Parameters
    ----------
    task : FuturePythonTask or FutureFunctionCall or None
        The task, which has this future as its ``future``.

    Attributes
    ----------
    title : str
        The task in the words of the user.
    number : int
        The number of the task; 0 before the submission.

    Notes
    -----
    The functions `concurrent.futures.wait` and `concurrent.futures.as_completed`, and
    `asyncio.wrap_future`, work as with other futures. Callbacks run one after another in a thread
    of the manager.
    """

    def __init__(self, task: Any = None) -> None:
        super().__init__()
        self.title = "a future" if task is None else repr(task)
        self._host: FutureHost | None = None
        self.number = 0
        self._raw = False
        self._file: ResultFile | None = None
        self._inputs: tuple[VineFuture, ...] = ()
        self._outcome: TaskFinished | None = None
        # The first failure or cancellation among the inputs, if there is no value because of it.
        self._failed_input: VineFuture | None = None
        self._value: Any = NOT_LOADED
        self._error: BaseException | None = None
        self._load_lock = threading.Lock()
        self._requested = False
        self._asyncio_waits = False
        # Whether another task has taken the value as an argument.
        self.is_read = False
        self._settle_listeners: list[Callable[[VineFuture], None]] = []

    # ---- for tasks and executors

    def start(
        self,
        host: FutureHost,
        number: int,
        title: str,
        file: ResultFile,
        inputs: Iterable[VineFuture],
        *,
        raw: bool,
    ) -> None:
        """Take notice that the task is being submitted.

        Parameters
        ----------
        host : Manager
            The manager.
        number : int
            The number of the task.
        title : str
            The task in the words of the user.
        file : ResultFile
            The file that will have the value.
        inputs : iterable of VineFuture
            The futures among the arguments.
        raw : bool
            Whether the value is bytes that are not serialized.

        Raises
        ------
        CancelledError
            The future was cancelled before.
        """
        if self.cancelled():
            msg = f"{title} was cancelled before it was submitted"
            raise CancelledError(msg)
        self._host, self.number, self.title, self._file, self._raw = host, number, title, file, raw
        self._inputs = tuple(inputs)

    def on_task_ended(self, outcome: TaskFinished) -> None:
        """Take notice of the end of the task, in the server's thread.

        Parameters
        ----------
        outcome : TaskFinished
            The end.
        """
        inputs, self._inputs = self._inputs, ()
        if outcome.outcome == "cancelled":
            self._settle_in_background(CANCELLED_AND_NOTIFIED)
            return
        if outcome.outcome == "input missing":
            self._failed_input = next(
                (future.first_failure() for future in inputs if future.has_failed()), None
            )
        self._outcome = outcome
        self._settle_in_background(FINISHED)

    def add_settle_listener(self, listener: Callable[[VineFuture], None]) -> None:
        """Call a function at the end, in the thread that takes notice of it; it must return at once.

        Parameters
        ----------
        listener : callable
            A function of the future.
        """
        with self._condition:
            if self._state not in (CANCELLED_AND_NOTIFIED, FINISHED):
                self._settle_listeners.append(listener)
                return
        listener(self)

    def _settle(self, state: str) -> bool:
        """Enter the end, and wake up all who wait; return whether this was not known before."""
        with self._condition:
            if self._state in (CANCELLED_AND_NOTIFIED, FINISHED):
                return False
            self._state = state
            failed = self.has_failed()
            for waiter in self._waiters:
                if state == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif failed:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
            listeners, self._settle_listeners = self._settle_listeners, []
        for listener in listeners:
            listener(self)
        return True

    def _settle_in_background(self, state: str) -> None:
        """Enter the end in the server's thread, where callbacks must not run."""
        callbacks: list[Any] = self._done_callbacks  # type: ignore[attr-defined]
        if self._settle(state) and callbacks and self._host is not None:
            self._host.call_in_background(self._run_callbacks)

    def _run_callbacks(self) -> None:
        # The event loop, which asks next, must neither wait for a transfer nor meet a value that cannot be loaded.
        if self._asyncio_waits and not self.has_failed():
            try:
                self.result()
            except Exception as error:  # noqa: BLE001 - the event loop gets it
                self._error = self._error or error
        self._invoke_callbacks()  # type: ignore[attr-defined]

    def has_failed(self) -> bool:
        """Return whether the task has ended without a value.

        Returns
        -------
        bool
            True for cancelled futures, too.
        """
        if self._state == CANCELLED_AND_NOTIFIED:
            return True
        return self._outcome is not None and self._outcome.outcome != "success"

    def first_failure(self) -> VineFuture:
        """Return the future whose failure is the reason of this one's.

        Returns
        -------
        VineFuture
            This one, if its own task has failed.
        """
        return self if self._failed_input is None else self._failed_input

    def input_file(self, host: FutureHost) -> File:
        """Return the file with the value, for a task that reads it.

        Parameters
        ----------
        host : Manager
            The manager of that task.

        Returns
        -------
        File
            The file, which another task fills.

        Raises
        ------
        ValueError
            The future belongs to another manager, or its task was not submitted.
        """
        if self._file is None:
            msg = f"{self!r} is an argument of a task, but its own task was not submitted: submit it first"
            raise ValueError(msg)
        if self._host is not host:
            msg = f"{self!r} belongs to another executor: pass its value, future.result()"
            raise ValueError(msg)
        self.is_read = True
        return self._file

    def keep_value(self) -> bool:
        """Request the value before the manager is closed, if it may still be asked for.

        The value of a future that other tasks have read stays on the worker, unless it is here
        already.

        Returns
        -------
        bool
            Whether `result` has to be called to complete this.
        """
        if self._outcome is None or self.has_failed() or self._value is not NOT_LOADED or self._file is None:
            return False
        assert self._host is not None
        if self._host.holds_result(self._file.cache_name):
            return True
        if not self.is_read:
            self.request_value()
        return not self.is_read

    def forget_value(self) -> None:
        """Drop the loaded value, if it can be loaded again."""
        if self._host is not None and self._file is not None and self._error is None:
            with self._load_lock:
                if self._host.holds_result(self._file.cache_name):
                    self._value = NOT_LOADED

    # ---- for the user

    def cancel(self) -> bool:
        """Cancel the task, also if it runs.

        Returns
        -------
        bool
            False if the task has ended before.
        """
        cancelled = self._settle(CANCELLED_AND_NOTIFIED)
        if cancelled:
            if self._host is not None:
                self._host.cancel_future_task(self.number)
            self._inputs = ()
            self._run_callbacks()
        return self._state == CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        """Return whether the task runs on a worker now.

        Returns
        -------
        bool
            False if it waits, or has ended.
        """
        if self.done() or self._host is None:
            return False
        return bool(self._host.find_running_tasks([self.number])) and not self.done()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Call a function with this future when the task has ended.

        Parameters
        ----------
        fn : callable
            The function; it is called at once if the task has ended.
        """
        if getattr(fn, "__module__", None) == "asyncio.futures":
            self._asyncio_waits = True
            self.request_value()
        super().add_done_callback(fn)

    def result(self, timeout: Timeout = "wait_forever") -> Any:
        """Return the value, which is brought here if necessary.

        Parameters
        ----------
        timeout : float, timedelta, str or None
            Duration in seconds; None or "wait_forever" for no limit.

        Returns
        -------
        object
            The value, the same object each time.

        Raises
        ------
        TypeError, ValueError
            The timeout is no duration.
        TimeoutError
            There is no value in time.
        CancelledError
            The future was cancelled.
        FileNotFoundError
            The value was on a worker when the manager was closed.
        BaseException
            The exception that the task has raised, or `TaskFailed` with the reason why there is no
            value. If an input has failed, its exception is the ``__cause__``.
        """
        deadline = deadline_after(timeout)
        self.request_value()
        self._wait(deadline)
        if self._state == CANCELLED_AND_NOTIFIED:
            raise CancelledError
        error: BaseException | None = None
        try:
            error = self._failure()
            if error is None:
                self._load(deadline)
                error = self._error
            if error is not None:
                raise error
            return self._value
        finally:
            # The traceback of the error refers to this frame, which would keep the future.
            del self, error

    def exception(self, timeout: Timeout = "wait_forever") -> BaseException | None:
        """Return the exception that `result` raises, without bringing the value here.

        Parameters
        ----------
        timeout : float, timedelta, str or None
            Duration in seconds; None or "wait_forever" for no limit.

        Returns
        -------
        BaseException or None
            The exception, the same object each time; None if the task has succeeded.

        Raises
        ------
        TypeError, ValueError
            The timeout is no duration.
        TimeoutError
            The task has not ended in time.
        CancelledError
            The future was cancelled.
        """
        self._wait(deadline_after(timeout))
        if self._state == CANCELLED_AND_NOTIFIED:
            raise CancelledError
        return self._failure()

    def _wait(self, deadline: float | None) -> None:
        """Wait until the task has ended.

        Raises
        ------
        TimeoutError
            It has not ended at the deadline.
        """
        with self._condition:
            while self._state not in (CANCELLED_AND_NOTIFIED, FINISHED):
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    msg = f"{self.title} has not ended in time"
                    raise concurrent.futures.TimeoutError(msg)
                self._condition.wait(min(left, 1.0))

    def _failure(self) -> BaseException | None:
        """Return the exception of a future that has ended; made when it is first asked for."""
        if self._outcome is None:
            return super().exception(0)
        if self._outcome.outcome != "success" and self._error is None:
            with self._load_lock:
                if self._error is None:
                    self._error = self._make_exception(self._outcome)
        return self._error

    def _make_exception(self, outcome: TaskFinished) -> BaseException:
        assert self._host is not None
        first = self._failed_input
        if first is None:
            return self._host.make_exception(
                outcome.outcome, outcome.info, outcome.payload, self.title, outcome.worker
            )
        try:
            cause = first.exception()
        except CancelledError as cancelled:
            cause = cancelled
        how = "was cancelled" if isinstance(cause, CancelledError) else f"has failed: {cause!r:.500}"
        error = TaskFailed(
            f"{self.title} did not run, because one of its inputs is missing: {first.title} {how}"
        )
        error.__cause__ = cause
        return error

    def request_value(self) -> None:
        """Have the value come here as soon as it exists."""
        if not self._requested and self._file is not None and self._host is not None:
            self._requested = True
            self._host.request_result(self._file.cache_name)

    def _load(self, deadline: float | None) -> None:
        """Load the value, once."""
        if self._outcome is None:
            # An end that was set with the methods of the base class.
            self._value = super().result(0)
            return
        left = time_left(deadline)
        if not self._load_lock.acquire(timeout=-1 if left is None else left):
            raise concurrent.futures.TimeoutError
        try:
            if self._value is NOT_LOADED and self._error is None:
                self._value, self._error = self._fetch(self._outcome, deadline)
        finally:
            self._load_lock.release()

    def _fetch(self, outcome: TaskFinished, deadline: float | None) -> tuple[Any, BaseException | None]:
        """Bring the value here."""
        assert self._host is not None
        try:
            return self._host.load_result(self.number, outcome, self._file, raw=self._raw, deadline=deadline)
        except RuntimeError as error:
            msg = f"the value of {self.title} was on a worker when the manager was closed: call result() before that"
            raise FileNotFoundError(msg) from error

    def __reduce__(self) -> Any:
        msg = (
            f"{self!r} cannot be pickled: as an argument of a task, alone or in a list, tuple, dict or set, a future becomes its value; "
            "inside of another object, pass its value, future.result()"
        )
        raise TypeError(msg)

    def __repr__(self) -> str:
        state = "cancelled" if self._state == CANCELLED_AND_NOTIFIED else "pending"
        if self._state == FINISHED:
            state = "failed" if self.has_failed() else "finished"
        return f"<{type(self).__name__} of {self.title}: {state}>"


def deadline_after(timeout: Timeout) -> float | None:
    """Return the value of `time.monotonic` at the end of a timeout."""
    seconds = validators.timeout("timeout", timeout)
    return None if seconds is None else time.monotonic() + seconds


def time_left(deadline: float | None) -> float | None:
    """Return the seconds until a deadline, 0 if it is over."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
