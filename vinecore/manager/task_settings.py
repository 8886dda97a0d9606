"""The settings of a task before it is submitted. Names and meanings are TaskVine's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vinecore import keyword_arguments, validators
from vinecore.manager.files import File, check_declared, unpack_environment
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.manager.task_conditions import TaskConditionSettings
from vinecore.manager.task_libraries import TaskLibrarySettings
from vinecore.resources.amounts import UNSPECIFIED

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

    from vinecore.manager.interfaces import FileDeclarer

log = logging.getLogger("vinecore")

# Kinds of files that a task may fill.
WRITABLE_KINDS = ("file", "buffer", "temp")


def checked(name: str, check: Callable[[str, Any], Any], doc: str) -> Any:
    """Make an attribute of a task that is checked whenever it is set."""
    slot = f"_{name}"
    return property(
        lambda task: getattr(task, slot), lambda task, value: setattr(task, slot, check(name, value)), doc=doc
    )


class TaskSettings(TaskConditionSettings, TaskLibrarySettings):
    """Files, environment, resources and policy of a task."""

    # The defaults are attributes of the class, because a program may make a million tasks.
    _request = UNSPECIFIED
    _inputs_with_names: tuple[tuple[File, str, bool], ...] = ()
    _outputs: tuple[tuple[File, str, str], ...] = ()
    _variables: Mapping[str, str | None] = MappingProxyType({})
    _environment: File | None = None
    _time_max: float | None = None
    _command = _tag = ""
    _category, _priority, _retries = "default", 0.0, 5
    _watched: tuple[tuple[File, str], ...] = ()
    _monitor_directory = ""

    command = checked("command", validators.command, "The command line.")
    tag = checked("tag", validators.text, "The mark for `Manager.wait_for_tag`.")
    category = checked("category", validators.category, "The name of the category.")
    priority = checked("priority", validators.priority, "The priority; larger runs earlier.")

    @keyword_arguments.refuse_unknown
    def add_input(
        self,
        file: File,
        remote_name: str | Path,
        strict_input: bool = False,
        mount_symlink: bool = False,
    ) -> None:
        """Make a file available in the sandbox.

        Parameters
        ----------
        file : File
            The file, declared with the manager that runs the task.
        remote_name : str or Path
            The relative path of the file in the sandbox.
        strict_input : bool
            Whether the task runs only on a worker that has the file already. If no worker has it,
            the task has the result "fixed location missing".
        mount_symlink : bool
            Whether the file is a symbolic link to the worker's cache instead of a hard link or a
            copy.

        Raises
        ------
        TypeError
            The file is not declared, or a value has a wrong type.
        ValueError
            The name leads out of the sandbox.
        """
        symlink = validators.flag("mount_symlink", mount_symlink)
        if validators.flag("strict_input", strict_input):
            self._strict_inputs += (check_declared(file),)
            self._is_conditional = True
        self._inputs_with_names += ((check_declared(file), check_sandbox_name(remote_name), symlink),)

    @keyword_arguments.refuse_unknown
    def add_output(
        self,
        file: File,
        remote_name: str | Path,
        watch: bool = False,
        failure_only: bool | None = None,
        success_only: bool | None = None,
    ) -> None:
        """Fill a file with a file or directory of the sandbox when the task has ended.

        At the path of the file, files are replaced. A directory is merged into one that is there:
        it replaces files of the same names, and other files stay. If a file has the name of a
        directory or a directory that of a file, nothing is changed, and the task has the result
        "output transfer error".

        Parameters
        ----------
        file : File
            A file, buffer or temporary file of the manager that runs the task.
        remote_name : str or Path
            The relative path of the output in the sandbox.
        watch : bool
            Whether a file also gets what the task appends to the output while it runs, a second
            later at most. In the end it has the exact content.
        failure_only, success_only : bool or None
            Whether the file is filled only if the command does not return 0, or only if it does.

        Raises
        ------
        TypeError
            The file is not declared, or is of another kind, such as an address.
        ValueError
            The name leads out of the sandbox.
        """
        success, failure = (
            value is not None and validators.flag(name, value)
            for name, value in (("success_only", success_only), ("failure_only", failure_only))
        )
        when = "success" if success else "failure" if failure else "always"
        if check_declared(file).kind not in WRITABLE_KINDS:
            msg = f"{file!r} cannot be an output: use a file, a buffer or a temp"
            raise TypeError(msg)
        name = check_sandbox_name(remote_name)
        self._outputs += ((file, name, when),)
        if validators.flag("watch", watch):
            self._watched += ((file, name),)

    def add_environment(self, file: File) -> None:
        """Run the task in a packed environment.

        Parameters
        ----------
        file : File
            The environment: from `Manager.declare_poncho`, or a directory, or an archive, with
            ``bin/run_in_env``, a program that runs the command line that it gets.

        Raises
        ------
        TypeError
            The file is not declared.
        """
        self._environment = unpack_environment(file)

    def add_poncho_package(self, file: File) -> None:
        """Run the task in a packed environment, as `add_environment`.

        Parameters
        ----------
        file : File
            The environment.

        Raises
        ------
        TypeError
            The file is not declared.
        """
        self.add_environment(file)

    def add_execution_context(self, f: File) -> None:
        """Run the task in a packed environment, as `add_environment`.

        Parameters
        ----------
        f : File
            The environment.

        Raises
        ------
        TypeError
            The file is not declared.
        """
        self.add_environment(f)

    def add_starch_package(self, file: File) -> None:
        """Run the task with the programs and libraries of a package.

        Parameters
        ----------
        file : File
            The package, from `Manager.declare_starch`.

        Raises
        ------
        TypeError
            The file is not declared, or is of another kind.
        """
        if check_declared(file).kind != "starch":
            msg = f"{file!r} is not an extracted package: declare it first with m.declare_starch"
            raise TypeError(msg)
        self.add_environment(file)

    def set_env_var(self, name: str, value: str | None = None) -> None:
        """Set or remove an environment variable.

        Parameters
        ----------
        name : str
            The variable.
        value : str or None
            Its value; None removes a variable that the worker has.

        Raises
        ------
        ValueError
            The name or the value cannot be that of an environment variable.
        """
        name, value = validators.variable(name, value, none=True)
        self._variables = {**self._variables, name: value}

    def set_cores(self, cores: float) -> None:
        """Set the cores that the task needs.

        Parameters
        ----------
        cores : float
            Number of cores.

        Raises
        ------
        TypeError, ValueError
            It is not a number of 0 or more.
        """
        self._request = self._request._replace(cores=validators.amount("cores", cores))

    def set_memory(self, memory_mb: int) -> None:
        """Set the memory that the task needs, and may use.

        Parameters
        ----------
        memory_mb : int
            Memory in MB.

        Raises
        ------
        TypeError, ValueError
            It is not a number of 0 or more.
        """
        self._request = self._request._replace(memory=validators.megabytes("memory", memory_mb))

    def set_disk(self, disk_mb: int) -> None:
        """Set the disk space that the task needs, and may use.

        Parameters
        ----------
        disk_mb : int
            Disk space in MB.

        Raises
        ------
        TypeError, ValueError
            It is not a number of 0 or more.
        """
        self._request = self._request._replace(disk=validators.megabytes("disk", disk_mb))

    def set_gpus(self, gpus: float) -> None:
        """Set the gpus that the task needs.

        Parameters
        ----------
        gpus : float
            Number of gpus.

        Raises
        ------
        TypeError, ValueError
            It is not a number of 0 or more.
        """
        self._request = self._request._replace(gpus=validators.amount("gpus", gpus))

    def set_category(self, category: str) -> None:
        """Set the category, a group of tasks that need alike resources.

        Parameters
        ----------
        category : str
            The name of the category.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        self.category = category

    def set_tag(self, tag: str) -> None:
        """Set the tag, a mark for `Manager.wait_for_tag`.

        Parameters
        ----------
        tag : str
            Any text.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or cannot be sent.
        """
        self.tag = tag

    def set_priority(self, priority: float) -> None:
        """Set the priority.

        Parameters
        ----------
        priority : float
            A task with a larger priority runs earlier; the default is 0.

        Raises
        ------
        TypeError, ValueError
            It is not a finite number.
        """
        self.priority = priority

    def set_retries(self, retries: int) -> None:
        """Set how often the task runs again after its process or worker was lost.

        A task that fails by itself, such as a command with an exit code other than 0, never runs
        again.

        Parameters
        ----------
        retries : int
            Number of further attempts; the default is 5.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number of 0 or more.
        """
        self._retries = validators.whole("retries", retries)

    def set_command(self, command: str) -> None:
        """Set the command line.

        Parameters
        ----------
        command : str
            The command line for ``/bin/sh``.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        self.command = command

    def add_nopen(self, manager: FileDeclarer) -> None:
        """Have cctools' library that watches the opening of files loaded into the command's processes.

        Its path is ``lib-nopen.so`` in the folder that ``CCTOOLS_HOME`` names; else in the current
        folder, beside its ``rules.txt``.

        Parameters
        ----------
        manager : Manager
            The manager that runs the task.

        Raises
        ------
        FileNotFoundError
            There is no such library.
        """
        home = os.environ.get("CCTOOLS_HOME")
        names = ("lib-nopen.so",) if home else ("lib-nopen.so", "rules.txt")
        paths = [os.path.join(home or "", name) for name in names]
        for path in paths:
            if not os.path.isfile(path):
                msg = f"{os.path.abspath(path)} does not exist: set CCTOOLS_HOME, or put it into the current folder"
                raise FileNotFoundError(msg)
        for name, path in zip(names, paths, strict=True):
            self.add_input(manager.declare_file(path), name)
        self.set_env_var("LD_PRELOAD", "./lib-nopen.so")

    def set_monitor_output(self, directory: str | Path) -> None:
        """Have the measured resources written to a directory when the task comes back through `wait`.

        The file is ``vine-PID-task-ID.summary``, with the number of this process and that of the
        task: one JSON object whose numbers are pairs with their units, such as
        ``"memory": [812, "MB"]``.

        Parameters
        ----------
        directory : str or Path
            The directory, which is made if necessary.

        Raises
        ------
        TypeError, ValueError
            It is not a path.
        """
        self._monitor_directory = os.path.abspath(validators.path("directory", directory))

    @property
    def monitor_directory(self) -> str:
        """The directory for the measured resources; "" for none."""
        return self._monitor_directory

    def set_snapshot_file(self, filename: str) -> None:
        """Do nothing but log that: workers record the highest usage of a task, and no snapshots.

        Parameters
        ----------
        filename : str
            The file that would say when snapshots are taken.

        Raises
        ------
        TypeError, ValueError
            It is not a path.
        """
        path = validators.path("filename", filename)
        log.warning(
            "set_snapshot_file(%r) has no effect: tasks are measured without snapshots; see resources_measured",
            path,
        )

    def addref(self) -> None:
        """Do nothing: a task lives as long as the program or the manager refers to it."""

    def set_time_max(self, seconds: float | timedelta | None) -> None:
        """Set the time after which the task is killed.

        Parameters
        ----------
        seconds : float, timedelta or None
            Duration in seconds; None for no limit.

        Raises
        ------
        TypeError, ValueError
            It is not a duration of more than 0 seconds.
        """
        self._time_max = validators.time_max("time_max", seconds)
