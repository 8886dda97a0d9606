"""The settings of a task before it is submitted. Names and meanings are TaskVine's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vinecore import keyword_arguments, validators
from vinecore.manager.files import File, check_declared
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.resources.amounts import UNSPECIFIED
from vinecore.scheduler.specs import PlacementConditions, TaskConditions

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

# Kinds of files that a task may fill.
WRITABLE_KINDS = ("file", "buffer", "temp")


def checked(name: str, check: Callable[[str, Any], Any], doc: str) -> Any:
    """Make an attribute of a task that is checked whenever it is set."""
    slot = f"_{name}"
    return property(
        lambda task: getattr(task, slot), lambda task, value: setattr(task, slot, check(name, value)), doc=doc
    )


class TaskSettings:
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
    _placement = PlacementConditions()
    _strict_inputs: tuple[File, ...] = ()
    # microseconds since the epoch; 0 for any time
    _time_start = _time_end = 0.0
    _max_forsaken = -1
    # whether one of these was set
    _is_conditional = False

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
        self, file: File, remote_name: str | Path, *, success_only: bool = False, failure_only: bool = False
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
        success_only, failure_only : bool
            Whether the file is filled only if the command returns 0, or only if it does not.

        Raises
        ------
        TypeError
            The file is not declared, or is of another kind, such as an address.
        ValueError
            The name leads out of the sandbox.
        """
        when = "success" if success_only else "failure" if failure_only else "always"
        if check_declared(file).kind not in WRITABLE_KINDS:
            msg = f"{file!r} cannot be an output: use a file, a buffer or a temp"
            raise TypeError(msg)
        self._outputs += ((file, check_sandbox_name(remote_name), when),)

    def add_environment(self, file: File) -> None:
        """Run the task in a packed environment.

        Parameters
        ----------
        file : File
            The environment, from `Manager.declare_poncho`.

        Raises
        ------
        TypeError
            The file is not declared.
        """
        self._environment = check_declared(file)

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

    def add_feature(self, name: str) -> None:
        """Run the task only on workers that were started with a feature.

        Parameters
        ----------
        name : str
            The name that the worker has got with ``--feature``.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        features = {*self._placement.features, validators.label("feature", name)}
        self._set_placement(features=tuple(sorted(features)))

    def set_scheduler(self, scheduler: str | int | None) -> None:
        """Set the rule that chooses the worker of this task.

        Parameters
        ----------
        scheduler : {"files", "time", "rand", "worst", "disk", "fcfs"}, int or None
            A name as for `Manager.set_scheduler`, or its number among TaskVine's constants; None
            or 0 for the rule of the manager.

        Raises
        ------
        TypeError, ValueError
            There is no such rule.
        """
        self._set_placement(schedule=validators.schedule("scheduler", scheduler))

    def set_time_min(self, seconds: float | timedelta) -> None:
        """Set the time for which a worker must still be there when it gets the task.

        A worker that was started with ``--wall-time`` knows this time; others stay.

        Parameters
        ----------
        seconds : float or timedelta
            Duration in seconds; less than 1 for any.

        Raises
        ------
        TypeError, ValueError
            It is not a duration.
        """
        duration_s = validators.seconds("time_min", seconds, -validators.MOST)
        self._set_placement(time_min=duration_s if duration_s >= 1 else 0.0)

    def _set_placement(self, **settings: Any) -> None:
        self._placement = self._placement._replace(**settings)
        self._is_conditional = True

    def set_time_start(self, useconds: float) -> None:
        """Set a time before which the task does not start.

        Parameters
        ----------
        useconds : float
            Microseconds since the epoch, such as ``(time.time() + 60) * 1e6``; less than 1 for any
            time.

        Raises
        ------
        TypeError, ValueError
            It is not such a number.
        """
        self._time_start = validators.microseconds("time_start", useconds)
        self._is_conditional = True

    def set_time_end(self, useconds: float) -> None:
        """Set a time at which the task must have ended.

        If it has not, it is ended, and has the result "max end time".

        Parameters
        ----------
        useconds : float
            Microseconds since the epoch, such as ``(time.time() + 60) * 1e6``; less than 1 for no
            limit.

        Raises
        ------
        TypeError, ValueError
            It is not such a number.
        """
        self._time_end = validators.microseconds("time_end", useconds)
        self._is_conditional = True

    def make_conditions(self) -> TaskConditions | None:
        """Describe for the scheduler where and when the task may run.

        Returns
        -------
        TaskConditions or None
            None if nothing of that was set.
        """
        if not self._is_conditional:
            return None
        names = tuple(file.cache_name for file in self._strict_inputs)
        # from the clock of the user to that of the scheduler
        shift = time.monotonic() - time.time()
        return TaskConditions(
            self._placement._replace(strict_inputs=names),
            self._time_start / 1e6 + shift if self._time_start else 0.0,
            self._time_end / 1e6 + shift if self._time_end else None,
            self._max_forsaken,
        )

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
