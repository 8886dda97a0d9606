"""Keeps asking a batch system for workers."""

from __future__ import annotations

import logging
import operator
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vinecore import keyword_arguments, validators
from vinecore.factory.adaptive import MAX_START_TRIES, AdaptiveScaling
from vinecore.factory.batch_system import BatchError, BatchOptions, BatchSystem, PilotSpec
from vinecore.factory.batch_types import load_batch_system
from vinecore.factory.config_file import ConfigFile
from vinecore.factory.interfaces import ManagedManager
from vinecore.factory.manager_clients import make_client, make_named_client
from vinecore.factory.parameter_checks import check_dask_options, check_manager, check_workspace
from vinecore.factory.settings import (
    FactorySettings,
    check_name,
    unknown_setting_message,
)
from vinecore.factory.taskvine_settings import (
    LOG_FILES,
    TASKVINE_SETTINGS,
    WORKER_SETTINGS,
    take_taskvine_settings,
)
from vinecore.protocol import debug_log
from vinecore.protocol.reminders import Reminder

if TYPE_CHECKING:
    from typing_extensions import Self

    from vinecore.factory.manager_clients import DemandSource

log = logging.getLogger("vinecore.factory")

START_OPTIONS = ("password", "scratch_dir")
"""Parameters that programs also set as attributes, before the start."""


def _new_id() -> str:
    """Return a name that no other factory has."""
    return f"vine-{socket.gethostname().partition('.')[0]}-{os.getpid()}-{secrets.token_hex(4)}"


class Factory:
    """Keeps workers running for a manager.

    Each setting can be changed while the factory runs: ``factory.max_workers = 50``.

    Parameters
    ----------
    batch_type : {"local", "condor", "slurm", "dask"}
        Where workers run: on this machine, as jobs of HTCondor or Slurm, or one on each node of a
        Dask cluster.
    manager : Manager or None
        The manager of the workers.
    manager_host_port : str or None
        The address of the manager, as HOST:PORT, if it is in another process or this machine has
        several names.
    manager_name : str or None
        The name of a manager in another process, or a regular expression that has to match the
        whole name. Workers are started for all managers with such a name.
    factory_binary, worker_binary : str, Path or None
        The first is ignored: a factory is a thread. The second is started as the worker (local).
    log_file : str or Path
        The file to which lines are added that say what the factory does.
    registry : str, Path or None
        The folder in which managers with a name are entered; None for the value of the variable
        VINE_REGISTRY, or the usual folder.
    catalog : str or None
        Catalog servers that know managers, as HOST:PORT, separated by commas; None for the value of
        the variable CATALOG_HOST, or none.
    password : str, Path or None
        The file with the secret of a manager in another process; None for the secret of this user.
    ssl : bool
        Whether a manager in another process uses TLS. Its fingerprint is in the file beside the
        secret, ``<password file>.fingerprint``.
    ssl_fingerprint : str or sequence of str
        The fingerprints of its certificate, instead of that file.
    scratch_dir : str, Path or None
        The folder for the factory's files; None for a temporary folder.
    config_file : str, Path or None
        A JSON file with further settings, which is read again when it changes.
    factory_name : str or None
        The name with which the factory marks its jobs; None for a new one. A factory removes, at
        its start, the jobs that an earlier one with its name has left, so two of them cannot run at
        the same time.
    workspace : str, Path or None
        The folder in which workers of this machine make theirs; None for the system's temporary
        folder.
    keep_workspace : bool
        Whether files of the cache level "forever" stay in the workspace for later workers.
    condor_spool : bool
        Whether HTCondor takes a copy of all files when a pilot is submitted.
    slurm_shared : bool
        Whether Slurm's nodes find the archive of ``python_env`` at the same path as this machine;
        if not, each pilot is sent a copy.
    client : distributed.Client or None
        A client of the Dask cluster.
    dask_scheduler : str or None
        The address of the Dask cluster's scheduler, or the path of its file, instead of a client.
    **settings : object
        The fields of `vinecore.factory.settings.FactorySettings`, such as min_workers, max_workers,
        cores, memory (MB), disk (MB) and timeout (seconds). They are attributes, too. Before the
        start a bound of the number of workers moves the other one along if it is set beyond it.

    Attributes
    ----------
    ended : threading.Event
        Is set when the factory has ended by itself.
    exit_reason : str
        The reason; "" while the factory runs.

    Raises
    ------
    TypeError, ValueError
        A value has a wrong type or is out of bounds, a setting is unknown or has no effect with
        this batch system, or not exactly one manager is given.

    Examples
    --------
    >>> with Factory("condor", manager=m, max_workers=200, cores=4):  # doctest: +SKIP
    ...     hist.compute(scheduler=m.get)
    """

    def __init__(self, batch_type: str = "local", manager: ManagedManager | None = None, manager_host_port: str | None = None,
                 manager_name: str | None = None, factory_binary: str | None = None, worker_binary: str | Path | None = None,
                 log_file: str | Path = os.devnull, *, registry: str | Path | None = None,
                 catalog: str | None = None,
                 password: str | Path | None = None, ssl: bool = False, ssl_fingerprint: str | Sequence[str] = (),
                 scratch_dir: str | Path | None = None, config_file: str | Path | None = None,
                 factory_name: str | None = None,
                 workspace: str | Path | None = None, keep_workspace: bool = False, condor_spool: bool = False, slurm_shared: bool = False,
                 client: Any = None, dask_scheduler: str | None = None, **settings: Any) -> None:  # fmt: skip
        batch_type = validators.text("batch_type", batch_type)
        self._config = (
            None if config_file is None else ConfigFile(validators.path("config_file", config_file))
        )
        fixed = {} if self._config is None else self._config.fixed_settings
        if manager is None and manager_host_port is None:
            manager_name = manager_name or fixed.get("manager_name")
        leftover = check_name(factory_name or fixed.get("factory_name") or "")
        check_workspace(workspace, keep_workspace)
        check_dask_options(batch_type, client, dask_scheduler)
        programs = {"factory_binary": factory_binary, "worker_binary": worker_binary}
        settings = take_taskvine_settings({**settings, **programs})
        self._log_path = str(log_file)
        self._log_handler: logging.Handler | None = None
        _check_names(settings)
        system = load_batch_system(batch_type)
        options = BatchOptions(
            manager,
            leftover,
            scratch_dir,
            workspace,
            keep_workspace,
            condor_spool,
            slurm_shared,
            client,
            dask_scheduler,
        )
        system.check(options, settings)
        self._batch_type, self._ignored_settings = batch_type, system.IGNORED_SETTINGS
        self._batch_options = options
        self._make_batch: Callable[[], BatchSystem] = lambda: system.create(self._batch_options)
        given = {name: value for name, value in settings.items() if value is not None}
        self._base = FactorySettings().changed(**{**system.default_settings(given), **given})
        self._base.reject_unsupported(batch_type, self._ignored_settings)
        check_manager(manager or manager_host_port, manager_name)
        secret = None if password is None else Path(validators.path("password", password)).expanduser()
        if manager_host_port is not None:
            manager_host_port = validators.text("manager_host_port", manager_host_port)

        def make_source(secret: Path | None) -> DemandSource:
            if manager_name is None:
                here = system.manager_host(manager)
                return make_client(manager, manager_host_port, secret, ssl, ssl_fingerprint, here)
            return make_named_client(manager_name, registry, catalog, secret, ssl, ssl_fingerprint)

        self._make_source, self._source, self._password = make_source, make_source(secret), secret
        self._settings = self._base
        self._read_config(first=True)
        self._reset(manager, leftover or _new_id())

    def _reset(self, manager: ManagedManager | None, name: str) -> None:
        self._manager = manager
        self._pid = os.getpid()
        self._id = name
        self._scaling = AdaptiveScaling()
        self._batch: BatchSystem | None = None
        self._forget_stop: Callable[[], None] = lambda: None
        self._replace = True
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._gave_up = False
        self._last_problem, self._reminder = "", Reminder()
        self.ended = threading.Event()
        self.exit_reason = ""

    # ---- what can be changed meanwhile

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("_settings")
        if settings is not None and name in FactorySettings.__dataclass_fields__:
            return getattr(settings, name)
        if settings is not None and name in START_OPTIONS:
            return self._password if name == "password" else self._batch_options.scratch_dir
        batch = self.__dict__.get("_batch")
        if name in ("processes", "log"):
            return getattr(batch, name, [] if name == "processes" else "")
        raise AttributeError(unknown_setting_message(name, FactorySettings.__dataclass_fields__))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FactorySettings.__dataclass_fields__:
            self.change(**self._with_other_bound({name: value}))
        elif name in START_OPTIONS:
            self._set_start_option(name, value)
        elif name in TASKVINE_SETTINGS:
            self._set_taskvine_setting(name, value)
        elif name.startswith("_") or name in ("ended", "exit_reason"):
            object.__setattr__(self, name, value)
        else:
            raise AttributeError(unknown_setting_message(name, FactorySettings.__dataclass_fields__))

    def _with_other_bound(self, given: dict[str, Any]) -> dict[str, Any]:
        """Move the other bound along where one is set beyond it before the start, when programs set both in turn."""
        if self.__dict__.get("_batch") is not None:
            return given
        for name, other, is_beyond in (
            ("min_workers", "max_workers", operator.gt),
            ("max_workers", "min_workers", operator.lt),
        ):
            value = given.get(name)
            if isinstance(value, int) and value >= 0 and is_beyond(value, getattr(self._settings, other)):
                return {**given, other: value}
        return given

    def _set_start_option(self, name: str, value: Any) -> None:
        """Set the password file or the scratch folder, which a factory needs from its start on."""
        if self._batch is not None:
            msg = f"{name}={value!r}: set it before the factory is started"
            raise AttributeError(msg)
        value = None if value is None else Path(validators.path(name, value)).expanduser()
        if name == "password":
            self._password, self._source = value, self._make_source(value)
        else:
            self._batch_options = self._batch_options._replace(scratch_dir=value)

    def _set_taskvine_setting(self, name: str, value: Any) -> None:
        """Set what TaskVine's factory has beside the settings of this one."""
        if name in LOG_FILES:
            if self._batch is not None:
                msg = f"{name}={value!r}: set it before the factory is started"
                raise AttributeError(msg)
            self._log_path = str(value)
            return
        extra = f"{self.extra_options} " if name in WORKER_SETTINGS else ""
        taken = take_taskvine_settings({name: value})
        if "extra_options" in taken:
            taken["extra_options"] = extra + taken["extra_options"]
        self.change(**taken)

    def set_environment(self, env: Any) -> None:
        """Set the environment of the workers' own Python.

        Parameters
        ----------
        env : File or str
            The environment, from `Manager.declare_poncho`, or the path of its archive.

        Raises
        ------
        ValueError
            The file is not on this machine.
        """
        path = env if isinstance(env, (str, Path)) else env.source()
        if not os.path.isfile(path):
            msg = f"env={str(path)!r}: there is no such archive on this machine"
            raise ValueError(msg)
        self.change(python_env=str(path))

    def change(self, **settings: Any) -> None:
        """Change several settings at once.

        Parameters
        ----------
        **settings : object
            Fields of `vinecore.factory.settings.FactorySettings`.

        Raises
        ------
        ValueError
            There is no such setting, or a value is out of bounds; then nothing has changed.
        """
        new = self._settings.changed(**settings)
        new.reject_unsupported(self._batch_type, self._ignored_settings)
        self._base = self._base.changed(**settings)
        self._settings = new
        if self._gave_up:
            self._scaling.start_again()
            self._set_start_failure("")
        self._wake.set()

    def _read_config(self, *, first: bool = False) -> None:
        """Take the settings of the configuration file if it has changed."""
        if self._config is not None:
            new = self._config.read_changed(self._base, self._batch_type, self._ignored_settings, first=first)
            self._settings = new or self._settings

    # ---- life

    def start(self, *, replace: bool = True) -> Self:
        """Start the factory.

        Parameters
        ----------
        replace : bool
            Whether a thread replaces workers that end. Without it the workers are started once.

        Returns
        -------
        Factory
            The factory itself.

        Raises
        ------
        RuntimeError
            The factory has been started already.
        BatchError
            The batch system cannot be used here.
        """
        if self._batch is not None:
            msg = f"the factory {self._id} has been started already: stop it first"
            raise RuntimeError(msg)
        self._stopping, self._scaling = False, AdaptiveScaling()
        self._batch = self._make_batch()
        if self._log_path != os.devnull:
            self._log_handler = debug_log.add_file(log, "vine_factory", self._log_path)
        if self._manager is not None:
            # a factory that the user forgets to stop must not leave workers behind
            self._forget_stop = self._manager.on_close(self.stop)
            if self._batch.RUNS_HERE:
                self._manager.close_on_exit_signals()
            self._manager.factory = self
        if self._batch.RUNS_HERE:
            try:
                self._cycle()
            except BaseException:
                self.stop()
                raise
        if replace:
            self._thread = threading.Thread(target=self._run, name="vine-factory", daemon=True)
            self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                self._cycle()
            except Exception:
                log.exception("unexpected error in the factory, which continues: please report this defect")
            if not self.exit_reason:
                self._wake.wait(max(0.0, self._period() - (time.monotonic() - began)))
                self._wake.clear()
            else:
                break

    def _period(self) -> float:
        return float(self._settings.factory_period)

    def _cycle(self) -> None:
        """Look once, and do what follows."""
        batch, scaling = self._batch, self._scaling
        assert batch is not None
        self._read_config()
        settings, problems = self._settings, []
        try:
            demand = self._source.ask(settings, self._id)
        except (OSError, ValueError, RuntimeError) as error:
            demand = None
            problems.append(f"{self._source.description} does not answer: {error}")
        try:
            jobs = batch.status()
        except BatchError as error:
            jobs = None
            problems.append(str(error))
        step = scaling.decide(time.monotonic(), settings, demand, jobs)
        for text in step.messages:
            log.warning("%s", text)
        try:
            if step.remove:
                batch.remove(step.remove)
        except BatchError as error:
            problems.append(str(error))
        if step.release:
            self._source.release(step.release, self._id)
        if step.submit and not self._stopping and not self._gave_up:
            self._submit(batch, step.submit)
        if scaling.failed_starts >= MAX_START_TRIES:
            self._give_up(batch)
        self._log_problem("; ".join(problems))
        if step.exit_reason:
            self.exit_reason = step.exit_reason
            self.ended.set()

    def _submit(self, batch: BatchSystem, count: int) -> None:
        """Submit so many, with one submission for each manager that they are for."""
        scaling, settings = self._scaling, self._settings
        try:
            for number, target in self._source.distribute(count, settings, scaling.names):
                order = PilotSpec(
                    settings, target.host, target.port, target.password_file, self._id, target.fingerprints, target.others, target.find,
                )  # fmt: skip
                names = batch.submit(number, order)
                scaling.submitted(names)
                self._source.submitted(target, names)
                if names:  # a batch system may have no more nodes
                    last = f" to {names[-1]}" if names[1:] else ""
                    log.info(
                        "submitted %s%s, for the manager at %s:%d", names[0], last, target.host, target.port
                    )
        except (BatchError, OSError) as error:
            for text in scaling.submission_failed(str(error), time.monotonic()):
                log.warning("%s", text)

    def _give_up(self, batch: BatchSystem) -> None:
        """Stop starting workers on this machine until a setting changes, and log this."""
        if self._manager is None or not batch.RUNS_HERE or self._gave_up:
            return
        self._set_start_failure(
            f"no worker could be started on this machine, in {MAX_START_TRIES} tries. The command of the last one:\n"
            f"  {batch.last_failure}\n"
            "Mend this Python or its environment (run the command in a terminal to see more), and start again: make a new "
            "manager, or set the number of workers with scale(n)"
        )

    def _set_start_failure(self, reason: str) -> None:
        assert self._manager is not None
        self._gave_up = bool(reason)
        if reason:
            log.error("%s", reason)
        self._manager.report_start_failure(reason)

    def _log_problem(self, problem: str) -> None:
        """Log a problem, again at growing intervals while it lasts, and its end."""
        if self._reminder.is_due(problem, time.monotonic()):
            again = problem == self._last_problem
            log.warning("%s%s", "still: " if again else "", problem)
        elif self._last_problem and not problem:
            log.info("solved: %s", self._last_problem)
        self._last_problem = problem

    def stop(self) -> None:
        """Remove all pilots, and all files; a second call does nothing."""
        if self._batch is None or os.getpid() != self._pid:
            return
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._forget_stop()
        self._batch.close()
        self._batch = None
        if self._log_handler is not None:
            log.removeHandler(self._log_handler)
            self._log_handler.close()
            self._log_handler = None
        if self._manager is not None and self._manager.factory is self:
            self._manager.factory = None
        self.ended.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _check_names(settings: Mapping[str, Any]) -> None:
    for name in settings:
        if name not in FactorySettings.__dataclass_fields__:
            known = [*keyword_arguments.of(Factory), *FactorySettings.__dataclass_fields__]
            raise ValueError(unknown_setting_message(name, known))
