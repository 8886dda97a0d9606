"""A standard executor whose functions run on the workers of a manager."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.factory import Factory
from vinecore.futures.future import VineFuture
from vinecore.futures.higher_order_methods import HigherOrderMethods
from vinecore.futures.session import ExecutorSession, sessions
from vinecore.futures.tasks import FutureFunctionCall, FuturePythonTask, FutureTask
from vinecore.manager.manager import Manager

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from vinecore.manager.libraries import LibraryTask


class FuturesExecutor(HigherOrderMethods):
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
    factory_binary, worker_binary, log_file : str, Path or None
        As for `Factory`.
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
        log_file: str | Path = os.devnull,
        factory: bool = True,
        opts: dict[str, Any] | None = None,
    ) -> None:
        starts_factory = validators.flag("factory", factory)
        settings = {_attribute(name): value for name, value in (opts or {}).items()}
        self._is_own_manager = manager is None
        self.manager = Manager(port=port, name=manager_name) if manager is None else manager
        self.factory: Factory | None = None
        if starts_factory:
            try:
                self.factory = Factory(
                    batch_type,
                    manager=self.manager,
                    manager_host_port=manager_host_port,
                    factory_binary=factory_binary,
                    worker_binary=worker_binary,
                    log_file=log_file,
                    **settings,
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
