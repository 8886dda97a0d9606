"""Python tasks and function calls with a future."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from vinecore.futures.future import ResultFile, Timeout, VineFuture
from vinecore.manager.arguments import note_unpicklable
from vinecore.manager.files import File
from vinecore.manager.python_tasks import FunctionCall, PythonTask
from vinecore.protocol.serialization import values
from vinecore.protocol.serialization.placeholders import InputPlaceholder, NestedInputs, rebuild_container

if TYPE_CHECKING:
    from vinecore.futures.interfaces import FutureHost
    from vinecore.manager.interfaces import TaskHost
    from vinecore.scheduler.specs import TaskSpec

RESULT_PENDING = "result_pending"
"""The value of `output` of a task that has not ended in time."""
REFERENCES = (VineFuture, File)
CONTAINERS = frozenset({list, tuple, dict, set, frozenset})


class FutureTask(PythonTask):
    """A Python task with a future; the base of both kinds.

    Parameters
    ----------
    manager : Manager
        The manager that will run the task.

    Attributes
    ----------
    future : VineFuture
        The future of the value that the function returns.
    """

    has_future = True
    _temp_output = True
    _futures: Sequence[VineFuture] = ()

    def _init_future(self, manager: FutureHost, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._host, self._args, self._kwargs = manager, args, kwargs
        self.future = VineFuture(self)

    def output(self, timeout: Timeout = "wait_forever") -> Any:
        """Wait for the value.

        Parameters
        ----------
        timeout : float, timedelta, str or None
            Duration in seconds; None or "wait_forever" for no limit.

        Returns
        -------
        object
            The value; the exception if there is none; `RESULT_PENDING` if the task has not ended
            in time.

        Raises
        ------
        TypeError, ValueError
            The timeout is no duration.
        """
        try:
            return self.future.result(timeout)
        except TimeoutError:
            if not self.future.done():
                return RESULT_PENDING
            return self.future.exception()
        except BaseException as error:
            if self.future.done() and not isinstance(error, KeyboardInterrupt):
                return error
            raise

    def error(self) -> BaseException | None:
        """Return the exception of the future.

        Returns
        -------
        BaseException or None
            None before the end, after a success, and if the task was cancelled.
        """
        return None if self.outcome is None or self.future.cancelled() else self.future.exception()

    def end_future(self) -> None:
        """Report the end of the task to its future."""
        assert self.outcome is not None
        self.future.on_task_ended(self.outcome)

    def _dump_arguments(self) -> tuple[bytes, tuple[str, ...]]:
        collector = InputCollector(self._host)
        args, kwargs = self._args, self._kwargs
        packed = (
            tuple(map(collector.replace, args)),
            {name: collector.replace(value) for name, value in kwargs.items()},
        )
        try:
            payload = values.dumps(packed, by_value=True)
        except Exception as error:
            note_unpicklable(error, *packed)
            raise
        self._futures = collector.futures
        return payload, tuple(collector.inputs)

    def _declare_output(self, manager: TaskHost, result: str) -> None:
        """Declare the result; the future names it."""
        self._output_file = manager.declare_result(result)

    def make_spec(self, manager: TaskHost, number: int) -> TaskSpec:
        """Describe the task for the scheduler; futures among the arguments become inputs.

        Parameters
        ----------
        manager : TaskHost
            The manager that runs the task.
        number : int
            The number of the task.

        Returns
        -------
        TaskSpec
            The task as the scheduler gets it.

        Raises
        ------
        ValueError
            The task belongs to another manager, or was submitted before.
        """
        if manager is not self._host:
            msg = f"{self!r} was made for another manager: make it with the executor that runs it"
            raise ValueError(msg)
        if self.id is not None:
            msg = f"task {self.id} has ended, and its future has its value: make another task"
            raise ValueError(msg)
        spec = super().make_spec(manager, number)
        self.id = number
        title = self._title()
        self.id = None
        file = ResultFile(self._host, spec.result)
        self._output_file = file
        self.future.start(self._host, number, title, file, self._futures, raw=self._raw)
        # What the arguments hold, such as other futures, may go.
        self._args, self._kwargs, self._futures = (), {}, ()
        return spec._replace(options={**spec.options, "inline": True})


class FuturePythonTask(FutureTask):
    """A call of a Python function in a process of its own, with a future.

    Parameters
    ----------
    manager : Manager
        The manager that will run the task.
    func : callable
        The function, which is sent by value, once to each worker.
    *args, **kwargs : object
        Its arguments. Futures and files among them, also in lists, tuples, dicts and sets, are
        replaced by their values.

    Raises
    ------
    TypeError
        ``func`` cannot be called.

    Examples
    --------
    >>> task = FuturePythonTask(executor.manager, pow, 2, 10)  # doctest: +SKIP
    >>> task.set_cores(1)
    >>> executor.submit(task).result()
    """

    def __init__(self, manager: FutureHost, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        PythonTask.__init__(self, func)
        self._init_future(manager, args, kwargs)


class FutureFunctionCall(FutureTask, FunctionCall):
    """A call of a function of an installed library, with a future.

    Parameters
    ----------
    manager : Manager
        The manager that will run the call.
    library_name : str
        The name of the library.
    fn : str or callable
        The name of the function, or the function.
    *args, **kwargs : object
        Its arguments, as those of `FuturePythonTask`.

    Raises
    ------
    TypeError, ValueError
        A name is not a text, or empty.
    """

    def __init__(
        self,
        manager: FutureHost,
        library_name: str,
        fn: str | Callable[..., Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        name = getattr(fn, "__name__", "") if callable(fn) else fn
        FunctionCall.__init__(self, library_name, cast("str", name))
        self._init_future(manager, args, kwargs)


class InputCollector:
    """Replaces the futures and files among the arguments of a task by placeholders.

    Parameters
    ----------
    host : Manager
        The manager that runs the task.

    Attributes
    ----------
    inputs : dict of str to int
        The cache names of the files, with their numbers.
    futures : list of VineFuture
        The futures.
    """

    def __init__(self, host: FutureHost) -> None:
        self._host = host
        self.inputs: dict[str, int] = {}
        self.futures: list[VineFuture] = []
        self._placeholder_count = 0
        self._open: set[int] = set()

    def replace(self, value: Any) -> Any:
        """Return an argument for the payload of the task.

        Parameters
        ----------
        value : object
            The argument.

        Returns
        -------
        object
            The argument itself if it has neither futures nor files.
        """
        before = self._placeholder_count
        replaced = self._replace(value)
        if isinstance(value, REFERENCES):
            return replaced
        return value if self._placeholder_count == before else NestedInputs(replaced)

    def _replace(self, value: Any) -> Any:
        if isinstance(value, VineFuture):
            file = value.input_file(self._host)
            self.futures.append(value)
            return self._placeholder(file)
        if isinstance(value, File):
            return self._placeholder(value)
        if not may_have_references(value) or id(value) in self._open:
            return value
        self._open.add(id(value))
        replaced = rebuild_container(value, self._replace)
        self._open.discard(id(value))
        return replaced

    def _placeholder(self, file: File) -> InputPlaceholder:
        if file.manager is not self._host:
            msg = f"{file!r} was declared with another manager: declare it with this one as well"
            raise ValueError(msg)
        self._placeholder_count += 1
        return InputPlaceholder(self.inputs.setdefault(file.cache_name, len(self.inputs)))


def may_have_references(value: Any) -> bool:
    """Return whether a value is a container with futures, files or containers among its items."""
    kind = type(value)
    if kind not in CONTAINERS and not (isinstance(value, tuple) and hasattr(kind, "_make")):
        return False
    kinds = set(map(type, value))
    if kind is dict:
        kinds |= set(map(type, value.values()))
    return any(kind in CONTAINERS or issubclass(kind, (*REFERENCES, tuple)) for kind in kinds)
