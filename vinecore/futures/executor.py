"""A standard executor whose functions run on the workers of a manager."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.factory import Factory
from vinecore.futures import remote_functions
from vinecore.futures.collected_future import CollectedFuture
from vinecore.futures.future import Timeout, VineFuture, deadline_after
from vinecore.futures.session import ExecutorSession, sessions
from vinecore.futures.tasks import FutureFunctionCall, FuturePythonTask, FutureTask
from vinecore.manager.manager import Manager

if TYPE_CHECKING:
    from types import TracebackType

    from vinecore.manager.libraries import LibraryTask

log = logging.getLogger("vinecore")

Library = str | None


class FuturesExecutor(concurrent.futures.Executor):
    """Runs functions on workers, with the methods of `concurrent.futures.Executor`, and more.

    Futures may be arguments of further functions, also in lists, tuples, dicts and sets. Their
    values go from worker to worker and come here only for `VineFuture.result`.

    Parameters
    ----------
    port : int or (int, int)
        The port of the manager, as for `Manager`.
    batch_type : str
        Where the factory starts workers, as for `Factory`.
    manager : Manager or None
        A manager that exists; `shutdown` leaves it open. None for a new one.
    manager_host_port : str or None
        The address, as HOST:PORT, at which the workers reach the manager.
    manager_name : str or None
        The name of the new manager, by which workers find it.
    factory_binary, worker_binary : str or None
        Accepted for programs written for TaskVine, without effect: the factory is a thread of this
        program and starts the worker that belongs to it.
    log_file : str, Path or None
        Accepted for programs written for TaskVine, without effect: the factory logs to Python's
        logger "vinecore".
    factory : bool
        Whether a factory starts workers.
    opts : dict
        Settings of the factory, such as ``{"max-workers": 10, "cores": 4}``.

    Attributes
    ----------
    manager : Manager
        The manager.
    factory : Factory or None
        The factory, if there is one.

    Raises
    ------
    TypeError, ValueError
        A value has a wrong type or is out of bounds.
    OSError
        No port is free.

    Notes
    -----
    The methods may be called in any thread. If an exception such as `KeyboardInterrupt` ends a
    ``with`` block, unfinished tasks are cancelled; otherwise its end waits for them.

    At the shutdown, values that may still be asked for come here: those that no other task has
    read, and small ones.

    Examples
    --------
    >>> with FuturesExecutor(opts={"cores": 2}) as executor:  # doctest: +SKIP
    ...     a = executor.submit(pow, 2, 10)
    ...     b = executor.submit(sum, [a, a])
    ...     print(b.result())
    """

    # TaskVine's order of parameters.
    def __init__(  # noqa: PLR0917
        self,
        port: int | Sequence[int] = 9123,
        batch_type: str = "local",
        manager: Manager | None = None,
        manager_host_port: str | None = None,
        manager_name: str | None = None,
        factory_binary: str | None = None,
        worker_binary: str | None = None,
        log_file: Any = os.devnull,
        factory: bool = True,
        opts: dict[str, Any] | None = None,
    ) -> None:
        for name, value in (("factory_binary", factory_binary), ("worker_binary", worker_binary)):
            if value is not None:
                log.warning("%s has no effect: the factory is a thread of this program", name)
        if log_file not in (None, os.devnull):
            log.warning("log_file has no effect: the factory logs to Python's logger 'vinecore'")
        starts_factory = validators.flag("factory", factory)
        settings = {_attribute(name): value for name, value in (opts or {}).items()}
        self._is_own_manager = manager is None
        self.manager = Manager(port=port, name=manager_name) if manager is None else manager
        self.factory: Factory | None = None
        if starts_factory:
            try:
                self.factory = Factory(
                    batch_type, manager=self.manager, manager_host_port=manager_host_port, **settings
                )
                self.factory.start()
            except BaseException:
                self._close_manager(self.manager if self._is_own_manager else None, self.factory)
                raise
        self._session = session = ExecutorSession(
            self.manager,
            functools.partial(
                self._close_manager, self.manager if self._is_own_manager else None, self.factory
            ),
        )
        sessions.add(session)
        # Without a shutdown the tasks still end, as those of other executors do.
        weakref.finalize(self, session.shutdown_in_background).atexit = False

    @staticmethod
    def _close_manager(manager: Manager | None, factory: Factory | None) -> None:
        if factory is not None:
            factory.stop()
        if manager is not None:
            manager.close()

    @property
    def port(self) -> int:
        """The port to which workers connect."""
        return self.manager.port

    def set(self, name: str, value: Any) -> None:
        """Change a setting of the factory.

        Parameters
        ----------
        name : str
            The setting, such as "max-workers" or "max_workers".
        value : object
            Its value.

        Raises
        ------
        AttributeError
            There is no such setting.
        TypeError, ValueError
            The value is not allowed.
        RuntimeError
            The executor has no factory.
        """
        setattr(self._checked_factory(), _attribute(name), value)

    def get(self, name: str) -> Any:
        """Return a setting of the factory.

        Parameters
        ----------
        name : str
            The setting.

        Returns
        -------
        object
            Its value.

        Raises
        ------
        AttributeError
            There is no such setting.
        RuntimeError
            The executor has no factory.
        """
        return getattr(self._checked_factory(), _attribute(name))

    def _checked_factory(self) -> Factory:
        if self.factory is None:
            msg = "this executor has no factory: make it with factory=True"
            raise RuntimeError(msg)
        return self.factory

    # ---- tasks

    def future_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> FuturePythonTask:
        """Make a task of a function call, for `submit`.

        Parameters
        ----------
        fn : callable
            The function.
        *args, **kwargs : object
            Its arguments, with futures among them.

        Returns
        -------
        FuturePythonTask
            The task, whose resources and files can still be set. Without resources it gets a whole
            worker.

        Raises
        ------
        TypeError
            ``fn`` cannot be called.
        """
        return FuturePythonTask(self.manager, fn, *args, **kwargs)

    def future_funcall(
        self, library_name: str, fn: str | Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> FutureFunctionCall:
        """Make a call of a function of an installed library, for `submit`.

        Parameters
        ----------
        library_name : str
            The name of the library.
        fn : str or callable
            The function, or its name.
        *args, **kwargs : object
            Its arguments, with futures among them.

        Returns
        -------
        FutureFunctionCall
            The call.

        Raises
        ------
        TypeError, ValueError
            A name is not a text, or empty.
        """
        return FutureFunctionCall(self.manager, library_name, fn, *args, **kwargs)

    def create_library_from_functions(
        self, name: str, *function_list: Callable[..., Any], **options: Any
    ) -> LibraryTask:
        """Make a library of functions, to be installed with `install_library`.

        Parameters
        ----------
        name : str
            The name by which `future_funcall` finds the library.
        *function_list : callable
            The functions that can be called.
        **options : object
            The options of `Manager.create_library_from_functions`.

        Returns
        -------
        LibraryTask
            The library.

        Raises
        ------
        TypeError, ValueError, FileNotFoundError
            As for `Manager.create_library_from_functions`.
        """
        return self.manager.create_library_from_functions(name, *function_list, **options)

    def install_library(self, libtask: LibraryTask) -> None:
        """Make a library available.

        Parameters
        ----------
        libtask : LibraryTask
            The library.

        Raises
        ------
        TypeError, ValueError
            As for `Manager.install_library`.
        """
        self.manager.install_library(libtask)

    # ---- running them

    def submit(self, fn: Callable[..., Any] | FutureTask, /, *args: Any, **kwargs: Any) -> VineFuture:
        """Run a function, or a task.

        Parameters
        ----------
        fn : callable, FuturePythonTask or FutureFunctionCall
            A function, which gets one core; or a task.
        *args, **kwargs : object
            The arguments of the function, with futures among them.

        Returns
        -------
        VineFuture
            The future of its value.

        Raises
        ------
        TypeError, ValueError
            It cannot be run, or the arguments cannot be serialized.
        RuntimeError
            The executor was shut down.
        """
        if isinstance(fn, FutureTask):
            if args or kwargs:
                msg = f"{fn!r} has its arguments already: submit it without others"
                raise TypeError(msg)
            return self._session.submit_task(fn)
        return self._session.submit(fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., Any] | str,
        /,
        *iterables: Any,
        library_name: Library = None,
        chunk_size: int = 1,
        timeout: Timeout = None,
        chunksize: int = 1,
    ) -> CollectedFuture:
        """Call a function with each item.

        Parameters
        ----------
        fn : callable or str
            The function, or the name of a function of the library.
        *iterables : iterable
            The items; with several iterables, each call gets one item of each, up to the end of the
            shortest.
        library_name : str or None
            The library that has the function; each item is then one call.
        chunk_size, chunksize : int
            The number of items in one task.
        timeout : float, timedelta or None
            The time in seconds that the items may take, if they are read one after another.

        Returns
        -------
        CollectedFuture
            The future of the list of values. It is also an iterator over them, as that of
            `concurrent.futures.Executor.map`.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type or is out of bounds.
        RuntimeError
            The executor was shut down.
        """
        iterables, library_name, chunk_size = _positional_options(iterables, library_name, chunk_size)
        deadline = deadline_after(timeout)
        size = max(_checked_size("chunk_size", chunk_size), _checked_size("chunksize", chunksize))
        items = list(zip(*iterables, strict=False))
        return self._collect(fn, items, library_name, size, remote_functions.concatenate, deadline)

    def allpairs(
        self,
        fn: Callable[..., Any] | str,
        iterable_rows: Iterable[Any],
        iterable_cols: Iterable[Any],
        library_name: Library = None,
        chunk_size: int = 1,
    ) -> CollectedFuture:
        """Call a function with each pair of items.

        Parameters
        ----------
        fn : callable or str
            A function of two arguments, or the name of a function of the library.
        iterable_rows, iterable_cols : iterable
            The first and the second arguments.
        library_name : str or None
            The library that has the function; each pair is then one call.
        chunk_size : int
            The number of pairs in one task.

        Returns
        -------
        CollectedFuture
            The future of a list of rows, with a value for each column.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type or is out of bounds.
        RuntimeError
            The executor was shut down.
        """
        rows, columns = list(iterable_rows), list(iterable_cols)
        size = _checked_size("chunk_size", chunk_size)
        arrange = functools.partial(remote_functions.split_rows, len(rows), len(columns))
        return self._collect(fn, list(itertools.product(rows, columns)), library_name, size, arrange)

    def _collect(
        self,
        fn: Callable[..., Any] | str,
        items: list[tuple[Any, ...]],
        library_name: Library,
        size: int,
        arrange: Callable[..., Any],
        deadline: float | None = None,
    ) -> CollectedFuture:
        """Submit a function for each tuple of arguments, and collect the values."""
        session = self._session
        if library_name is not None:
            calls = [self.submit(self.future_funcall(library_name, fn, *item)) for item in items]
            return CollectedFuture(self.manager, calls, arrange, session.submit, deadline, is_item=True)
        if isinstance(fn, str) or not callable(fn):
            validators.refuse("fn", fn, "a function, or with library_name the name of one", TypeError)
        parts = [
            session.submit(remote_functions.run_tuples, fn, *items[start : start + size])
            for start in range(0, len(items), size)
        ]
        return CollectedFuture(self.manager, parts, arrange, session.submit, deadline)

    def reduce(
        self,
        fn: Callable[[list[Any]], Any] | str,
        iterable: Iterable[Any],
        library_name: Library = None,
        chunk_size: int = 2,
        fn_arity: int = 2,
    ) -> VineFuture:
        """Reduce items to one value in a tree.

        Parameters
        ----------
        fn : callable or str
            A function that makes one value of a list of values, or the name of a function of the
            library. It has to be associative.
        iterable : iterable
            The items, at least one.
        library_name : str or None
            The library that has the function.
        chunk_size : int
            The number of values that one task reduces, if this is more than ``fn_arity``.
        fn_arity : int
            The longest list that the function gets.

        Returns
        -------
        VineFuture
            The future of the value. A single item is returned as it is.

        Raises
        ------
        TypeError
            There are no items, or a value has a wrong type.
        ValueError
            A value is out of bounds.
        RuntimeError
            The executor was shut down.
        """
        arity = _checked_size("fn_arity", fn_arity, least=2)
        size = max(_checked_size("chunk_size", chunk_size), arity)
        values = list(iterable)
        if not values:
            msg = "reduce() of no items has no value"
            raise TypeError(msg)
        if library_name is None:
            tree = functools.partial(self._session.submit, remote_functions.reduction_tree, fn)

            def reduce_group(group: list[Any]) -> VineFuture:
                return tree(*group, n=arity)
        else:
            size = arity

            def reduce_group(group: list[Any]) -> VineFuture:
                return self.submit(self.future_funcall(library_name, fn, group))

        if len(values) == 1:
            return self._session.submit(remote_functions.retrieve_output, values[0])
        while len(values) > 1:
            groups = [values[start : start + size] for start in range(0, len(values), size)]
            values = [reduce_group(group) if len(group) > 1 else group[0] for group in groups]
        return values[0]  # type: ignore[no-any-return]

    # ---- the end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks, and close the manager when those that were submitted have ended.

        Parameters
        ----------
        wait : bool
            Whether the method returns after that, or at once.
        cancel_futures : bool
            Whether tasks that do not run yet are cancelled.
        """
        self._session.shutdown(wait=wait, cancel_waiting=cancel_futures)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if error is not None and not isinstance(error, Exception):
            self._session.cancel_all()
        self.shutdown(wait=True)
        return None


def _attribute(name: str) -> str:
    """Return the name of a setting in Python, without dashes."""
    return validators.text("name", name).replace("-", "_")


def _checked_size(name: str, value: Any, least: int = 1) -> int:
    size = validators.whole(name, value)
    if size < least:
        validators.refuse(name, value, f"a whole number of {least} or more", ValueError)
    return size


def _positional_options(
    iterables: tuple[Any, ...], library_name: Library, chunk_size: int
) -> tuple[tuple[Any, ...], Library, int]:
    """Accept ``map(fn, items, library_name, chunk_size)``: neither None nor a number is an iterable."""
    if len(iterables) == 3 and isinstance(iterables[2], int):
        return iterables[:1], iterables[1], iterables[2]
    if len(iterables) == 2 and iterables[1] is None:
        return iterables[:1], None, chunk_size
    return iterables, library_name, chunk_size
