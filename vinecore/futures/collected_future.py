"""Several futures as one, which is also an iterator over their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from typing import TYPE_CHECKING, Any

from vinecore.futures.future import NOT_LOADED, VineFuture, time_left

if TYPE_CHECKING:
    from vinecore.futures.interfaces import FutureHost
    from vinecore.manager.files import File


class CollectedFuture(VineFuture):
    """The values of several futures in one.

    It is also an iterator over the items of these values, each as soon as it is there, like the
    iterator that `concurrent.futures.Executor.map` returns.

    Parameters
    ----------
    host : Manager
        The manager.
    parts : list of VineFuture
        Futures of lists.
    arrange : callable
        Makes the value of these lists.
    submit : callable
        Submits a function with arguments, for a task that takes this future as an argument.
    deadline : float or None
        The value of `time.monotonic` until which the items may take; None for no limit.
    is_item : bool
        Whether the value of each part is one item, instead of a list.
    """

    def __init__(
        self,
        host: FutureHost,
        parts: list[VineFuture],
        arrange: Callable[..., Any],
        submit: Callable[..., VineFuture],
        deadline: float | None = None,
        *,
        is_item: bool = False,
    ) -> None:
        super().__init__()
        self._host, self._is_item = host, is_item
        self._parts, self._arrange, self._submit = parts, arrange, submit
        self.title = f"{len(parts)} tasks"
        self._combined: VineFuture | None = None
        self._failed_part: VineFuture | None = None
        self._unfinished = len(parts)
        self._items = self._iterate(deadline)
        if not parts:
            self._settle(FINISHED)
        for part in parts:
            part.add_settle_listener(self._on_part_settled)

    def _on_part_settled(self, part: VineFuture) -> None:
        with self._condition:
            self._unfinished -= 1
            if part.has_failed() and self._failed_part is None:
                self._failed_part = part
            over = not self._unfinished or self._failed_part is not None
        if over:
            cancelled = self._failed_part is not None and self._failed_part.cancelled()
            self._settle_in_background(CANCELLED_AND_NOTIFIED if cancelled else FINISHED)

    def has_failed(self) -> bool:
        """Return whether one of the parts has no value.

        Returns
        -------
        bool
            True for cancelled futures, too.
        """
        return self._failed_part is not None or self._state == CANCELLED_AND_NOTIFIED

    def first_failure(self) -> VineFuture:
        """Return the future whose failure is the reason of this one's.

        Returns
        -------
        VineFuture
            The part that failed first, or one of its inputs.
        """
        return self if self._failed_part is None else self._failed_part.first_failure()

    def input_file(self, host: FutureHost) -> File:
        """Return the file with the value, which a task makes of the parts when it is first needed.

        Parameters
        ----------
        host : Manager
            The manager of the task that reads it.

        Returns
        -------
        File
            The file.
        """
        if self._combined is None:
            self._combined = self._submit(self._arrange, *self._lists(self._parts))
        return self._combined.input_file(host)

    def keep_value(self) -> bool:
        """Leave it to the parts to keep their values.

        Returns
        -------
        bool
            False.
        """
        return False

    def cancel(self) -> bool:
        """Cancel all tasks, also those that run.

        Returns
        -------
        bool
            False if all tasks have ended before.
        """
        if self.done():
            return self.cancelled()
        for part in self._parts:
            part.cancel()
        if self._settle(CANCELLED_AND_NOTIFIED):
            self._run_callbacks()
        return self.cancelled()

    def running(self) -> bool:
        """Return whether one of the tasks runs on a worker now.

        Returns
        -------
        bool
            False if all of them wait, or have ended.
        """
        assert self._host is not None
        numbers = [part.number for part in self._parts if not part.done()]
        return not self.done() and bool(self._host.find_running_tasks(numbers))

    def request_value(self) -> None:
        """Have all values come here as soon as they exist."""
        if not self._requested:
            self._requested = True
            for part in self._parts:
                part.request_value()

    def _failure(self) -> BaseException | None:
        return self._error if self._failed_part is None else self._failed_part.exception()

    def _load(self, deadline: float | None) -> None:
        if self._value is NOT_LOADED:
            values = [part.result(time_left(deadline)) for part in self._parts]
            self._value = self._arrange(*self._lists(values))

    def _lists(self, values: list[Any]) -> list[Any]:
        return [values] if self._is_item else values

    def _iterate(self, deadline: float | None) -> Iterator[Any]:
        try:
            self.request_value()
            for part in self._parts:
                value = part.result(time_left(deadline))
                items = [value] if self._is_item else value[::-1]
                # The program may have the only reference to each item.
                del value
                part.forget_value()
                while items:
                    yield items.pop()
        except BaseException:
            for part in self._parts:
                part.cancel()
            raise

    def __iter__(self) -> CollectedFuture:
        return self

    def __next__(self) -> Any:
        return next(self._items)
