"""The manager as a user sees it: blocking, thread-safe, with TaskVine's names.

Everything is handed to the server's thread, which makes progress whatever the user's own threads do.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vinecore import keyword_arguments, validators
from vinecore.manager import exit_signals, startup
from vinecore.manager.compatibility import REQUIRED_PACKAGES, python_version
from vinecore.manager.description_methods import DescriptionMethods
from vinecore.manager.directory_methods import DirectoryMethods
from vinecore.manager.graphs import GraphHandle, OpenGraphs
from vinecore.manager.high_order_methods import HighOrderMethods
from vinecore.manager.policy_methods import PolicyMethods
from vinecore.manager.startup import DEFAULT_PORT
from vinecore.protocol import taskvine_modules
from vinecore.protocol.discovery import manager_record
from vinecore.protocol.serialization import random_seeds
from vinecore.scheduler.specs import GraphSpec
from vinecore.server.server import ManagerServer

# At once, because what the program has made before is only guessed.
random_seeds.watch_seeding()


class Manager(HighOrderMethods, PolicyMethods, DescriptionMethods, DirectoryMethods):
    """Runs tasks on the workers that connect to it.

    Parameters
    ----------
    port : int or (int, int)
        The port to which workers connect; 0 for any free port, a pair for the first free one of a
        range. With 0, the variables VINE_PORT, or TCP_LOW_PORT and TCP_HIGH_PORT (or VINE_LOW_PORT
        and VINE_HIGH_PORT) select the ports if they are set.
    name : str or None
        The name by which workers find the manager: ``vine_worker -M NAME``. A manager without a
        name is not announced.
    shutdown : bool
        Whether workers exit when the manager ends, instead of waiting for the next one.
    password_file : str, Path or None
        The file with the secret; None for the file of this user, which is made the first time.
    address : str
        The address to listen on; "" for all.
    run_info_path : str, Path, bool or None
        A folder for the journal (``docs/journal.md``), which gets a folder named by the time; True
        for "vine-run-info" in the working folder. None for the value of the environment variable
        VINE_RUN_INFO_PATH; without it, and with False, no journal is written.
    resume : bool
        Whether the manager continues the run of a manager that died. It reads the latest journal
        without an end in ``run_info_path`` (of its ``name``, if it has one), listens on the port of
        that manager if ``port`` leaves a choice, and tells workers to keep their files for a
        successor. ``docs/resuming.md`` says what runs again.
    run_info_template : str or None
        The name of this run's folder in ``run_info_path``, in which ``strftime`` replaces times; None
        for "%Y-%m-%dT%H%M%S".
    staging_path : str, Path or None
        A folder for files that are on their way, in a folder "vine-staging" that is made there; None
        for the folder of temporary files.
    ssl : bool or (path, path)
        Whether TLS protects all connections: with a certificate of this user's that is made the
        first time, or with this key and certificate; None or (None, None) for no TLS. Both need the extra ``daskvine[ssl]``. Workers
        need ``--ssl``. They accept only a certificate whose fingerprint is in the file beside the
        secret, ``<password file>.fingerprint``, or is given as ``--ssl-fingerprint``.
    init_fn : callable or None
        A function that is called with the manager once it listens.
    status_display_interval : float or None
        The seconds after which a table of numbers is redrawn, in a notebook or a terminal; None or 0
        for none. `application_info` adds to it.
    prometheus_port : int or None
        The port of this machine at which Prometheus finds the statistics, 0 for any free one; None for
        none.
    registry : str, Path, bool or None
        The folder in which a manager with a name is entered, so that workers of the same user find
        it; None for the value of the variable VINE_REGISTRY, or the usual folder. With False it is
        not entered.
    catalog : str, bool or None
        The catalog servers to which a manager with a name reports, as HOST:PORT, separated by
        commas; None for the value of the variable CATALOG_HOST. Without it, and with False, there
        are none.
    validate : bool
        For debugging: whether the scheduler's state is validated after each batch of events. A
        contradiction stops the manager with a text that names the record and the invariant. The
        check takes time in proportion to all tasks and files.
    vine_logs : bool or None
        Whether the folder of this run gets a folder ``vine-logs`` with the logs that tools for
        TaskVine read: transactions, performance, taskgraph and debug. It needs ``run_info_path``.
        With None programs that `vinecore.compat` runs get them where they give a folder.

    Attributes
    ----------
    resumed_from : Path or None
        The journal of the manager that this one continues.
    ssl_fingerprint : str
        The fingerprint of the certificate; "" without TLS.

    Raises
    ------
    TypeError, ValueError
        A value has a wrong type or is out of bounds, or ``resume`` has no journal.
    OSError
        No port is free, or a file cannot be read or written.

    Notes
    -----
    The methods may be called in any thread. After `close` those that need workers raise
    RuntimeError.

    Examples
    --------
    >>> with Manager(port=0) as m:  # doctest: +SKIP
    ...     m.submit(Task("echo hello"))
    ...     print(m.wait().output)
    """

    @keyword_arguments.refuse_unknown
    def __init__(self, port: int | Sequence[int] = DEFAULT_PORT, name: str | None = None, shutdown: bool = False, *,
                 password_file: str | Path | None = None, address: str = "", run_info_path: str | Path | bool | None = None, resume: bool = False,
                 run_info_template: str | None = None, staging_path: str | Path | None = None, ssl: bool | Sequence[str | Path | None] | None = False,
                 init_fn: Callable[[Any], None] | None = None, status_display_interval: float | None = None, prometheus_port: int | None = None,
                 registry: str | Path | bool | None = None, catalog: str | bool | None = None, validate: bool = False,
                 vine_logs: bool | None = None) -> None:  # fmt: skip
        if not callable(init_fn or callable):
            validators.refuse("init_fn", init_fn, "a function that takes the manager", TypeError)
        ports = startup.port_range(port)
        address = validators.text("address", "" if address is None else address)
        own_name = manager_record.check_name(name) if name not in (None, "") else f"vine-{os.getpid()}"
        registry_folder = startup.registry_folder(registry)
        catalog_servers = startup.catalog_servers(catalog)
        self._shutdown, self._pid = validators.flag("shutdown", shutdown), os.getpid()
        validate = validators.flag("validate", validate)
        secret, self.password_file = startup.load_secret(password_file)
        session = secrets.token_hex(4)
        template, staging = startup.run_info_template(run_info_template), startup.staging_parent(staging_path)
        display_interval_s = validators.seconds("status_display_interval", status_display_interval or 0)
        if prometheus_port is not None:
            prometheus_port = validators.whole("prometheus_port", prometheus_port, 0, 65535)
        if isinstance(ssl, Sequence) and not isinstance(ssl, str) and not any(ssl):
            ssl = False
        folder = startup.journal_directory(run_info_path)
        self.resume = resume = validators.flag("resume", resume)
        if vine_logs is None:
            vine_logs = folder is not None and taskvine_modules.is_installed()
        vine_logs = validators.flag("vine_logs", vine_logs)
        if vine_logs and folder is None:
            msg = "vine_logs=True needs a folder for the logs: set it with run_info_path='vine-run-info'"
            raise ValueError(msg)
        if resume and folder is None:
            msg = "resume=True needs a journal: set its folder with run_info_path='vine-run-info'"
            raise ValueError(msg)
        previous = (
            startup.load_previous_session(folder, name, staging) if resume and folder is not None else None
        )
        self.resumed_from = None if previous is None else previous.journal
        self._journal_writer = None
        if folder is not None:
            self._journal_writer = startup.make_journal_writer(
                folder,
                template,
                name=own_name,
                session=session,
                durable=resume,
                resumed_from=self.resumed_from,
                run_logs=vine_logs,
            )
        context, self.ssl_fingerprint = (
            startup.make_tls_context(ssl, self.password_file) if ssl else (None, "")
        )
        server = ManagerServer(
            ports,
            address,
            secret,
            own_name,
            python_version(),
            REQUIRED_PACKAGES,
            self._journal_writer,
            context,
            session=session if resume else "",
            previous=previous,
            staging=staging,
            validate=validate,
        )
        super().__init__(server, session)
        self._graphs = OpenGraphs(
            server, task_numbers=self._numbers, session=session, on_wait=self.say_that_it_waits
        )
        self._close_callbacks: list[Callable[[], None]] = []
        self._registry_folder, self._catalog_servers = registry_folder, catalog_servers
        if name:
            self._announce()
        atexit.register(self.close)
        self._log_performance()
        try:
            self._start_displays(prometheus_port, display_interval_s)
        except OSError:
            self.close()
            raise
        if init_fn is not None:
            init_fn(self)

    def open_graph(
        self,
        label: str = "",
        *,
        total: int = 0,
        retries: int = 5,
        prune_depth: int = 1,
        priority_mode: str = "",
        report_each_task: bool = False,
        covers: Callable[[int, list[str]], bool] | None = None,
    ) -> GraphHandle:
        """Open a graph of tasks, whose tasks are then submitted in slices through the handle.

        Parameters
        ----------
        label : str
            The graph's name in the journal and in messages.
        total : int
            Number of tasks that will be submitted, if that is known.
        retries : int
            How often a task runs again whose worker, process or sandbox has failed.
        prune_depth : int
            After how many generations of readers a result is removed from the workers; 0 keeps all
            results.
        priority_mode : str
            How tasks that could run are ordered; "" for the order of their priorities.
        report_each_task : bool
            Whether `GraphHandle.finished_tasks` yields each task.
        covers : callable or None
            Called in the server's thread with the number of a task and the resources that it has
            used. It returns whether the name of the result depends on all of them; a result that is
            not covered is not reused.

        Returns
        -------
        GraphHandle
            The handle of the graph.

        Raises
        ------
        RuntimeError
            The manager is closed.
        """
        self.ensure_open()
        spec = GraphSpec(0, label, retries, prune_depth, priority_mode, report_each_task, total, covers)
        return self._graphs.open(spec)

    @property
    def journal(self) -> Path | None:
        """The path of the journal, if ``run_info_path`` requested one."""
        return None if self._journal_writer is None else self._journal_writer.path

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call a function when the manager is closed; the last one that was given is called first.

        Parameters
        ----------
        callback : callable
            A function without arguments.

        Returns
        -------
        callable
            A function that takes the callback back; it does nothing if the callback has been
            called.
        """
        callbacks = self._close_callbacks
        callbacks.append(callback)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                callbacks.remove(callback)

        return remove

    def close(self) -> None:
        """Cancel unfinished tasks, release the workers, and remove all temporary files.

        A second call does nothing.
        """
        if os.getpid() != self._pid:  # a forked child that ends must not take away what its parent uses
            return
        atexit.unregister(self.close)
        self._log_performance()
        self._server.announce_close()
        closers, self._close_callbacks = self._close_callbacks, []
        for closer in reversed(closers):
            closer()
        self._server.close(release=self._shutdown)
        self.end_futures()
        self._close_task_cache()
        with self._finished_or_obtained:
            self._finished_or_obtained.notify_all()

    def close_on_exit_signals(self) -> None:
        """Close the manager when a signal ends the program, if it can end workers of its own."""
        self.on_close(exit_signals.register(self._close_after_signal))

    def _close_after_signal(self) -> None:
        """Leave nothing behind, except for what another manager resumes from."""
        if self.resume:
            while self._close_callbacks:
                self._close_callbacks.pop()()
            self._server.store.close()
        else:
            self.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        msg = f"a {type(self).__name__} cannot be pickled: it stays in the process that made it; remove it from the functions and arguments of tasks"
        raise TypeError(msg)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name} port={self.port}{' closed' if self._server.closed else ''}>"
        )
