"""Tasks as a user describes them. Names and meanings are TaskVine's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vinecore import keyword_arguments, validators
from vinecore.manager.files import File
from vinecore.manager.libraries import LibraryTask
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.manager.task_readers import TaskReaders
from vinecore.protocol.serialization import values
from vinecore.resources.amounts import UNSPECIFIED, ResourceRequest
from vinecore.scheduler.specs import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vinecore.manager.interfaces import OutputHost, TaskHost


# Methods for the values of some parameters of `Task`.
SETTERS = (
    "set_time_max",
    "add_environment",
    "set_scheduler",
    "set_time_start",
    "set_time_end",
    "set_time_min",
    "set_library_required",
    "set_library_provided",
    "set_monitor_output",
    "set_snapshot_file",
)


class Task(TaskReaders):
    """A shell command with its files.

    A task without cores, memory, disk and gpus gets a whole worker.

    Parameters
    ----------
    command : str
        The command line for ``/bin/sh``, which runs in a sandbox.
    inputs, outputs : dict of File to str or dict, or None
        Files with their names in the sandbox, as for `add_input` and `add_output`. Instead of a name
        there may be a dict with any of their parameters, such as
        ``{"remote_name": "out", "watch": True}``.
    env : dict of str to str, or None
        Environment variables, as for `set_env_var`.
    tag : str
        A mark for `Manager.wait_for_tag`.
    category : str
        The name of a group of tasks that need alike resources.
    priority : float
        A task with a larger priority runs earlier.
    retries : int
        How often the task runs again after its process or worker was lost.
    cores, gpus : float or None
        The cores and gpus that the task needs.
    memory, disk : int or None
        The memory and disk in MB that the task needs, and may use.
    time_max : float, timedelta or None
        The time in seconds after which the task is killed.
    environment : File or None
        The environment in which the task runs, as for `add_environment`.
    features : str, iterable of str, or None
        Features that the worker must have, as for `add_feature`.
    scheduler : str, int or None
        The rule that chooses the worker, as for `set_scheduler`.
    time_start, time_end : float or None
        Times in microseconds since the epoch, as for `set_time_start` and `set_time_end`.
    time_min : float, timedelta or None
        The time in seconds that the worker must stay, as for `set_time_min`.
    library_required : str or None
        The library that runs the task, as for `set_library_required`.
    library_provided : str or None
        The library that the task is, as for `set_library_provided`.
    monitor_output : str, Path or None
        The directory for the measured resources, as for `set_monitor_output`.
    snapshot_file : str or None
        Accepted without effect; see `set_snapshot_file`.

    Raises
    ------
    TypeError, ValueError
        A value has a wrong type, or is out of bounds.

    Examples
    --------
    >>> task = Task("wc -l data > count", cores=1, memory=500)  # doctest: +SKIP
    >>> task.add_input(m.declare_file("data.txt"), "data")
    >>> task.add_output(count := m.declare_temp(), "count")
    """

    # Whether the end is reported to a future instead of `wait`.
    has_future = False
    # Cache names, as they were at the submission.
    _inputs: tuple[str, ...] = ()

    @keyword_arguments.refuse_unknown
    def __init__(self, command: str, *, inputs: dict[File, Any] | None = None, outputs: dict[File, Any] | None = None,
                 env: dict[str, str] | None = None, tag: str = "", category: str = "default", priority: float = 0.0, retries: int = 5,
                 cores: float | None = None, memory: int | None = None, disk: int | None = None, gpus: float | None = None,
                 time_max: float | None = None, environment: File | None = None, features: str | Iterable[str] | None = None,
                 scheduler: str | int | None = None, time_start: float | None = None, time_end: float | None = None, time_min: float | None = None,
                 library_required: str | None = None, library_provided: str | None = None, monitor_output: str | Path | None = None,
                 snapshot_file: str | None = None) -> None:  # fmt: skip
        self.command, self.tag, self.category, self.priority = command, tag, category, priority
        self._retries = validators.whole("retries", retries)
        settings = (time_max, environment, scheduler, time_start, time_end, time_min, library_required,
                    library_provided, monitor_output, snapshot_file)  # fmt: skip
        if any(value is not None for value in settings):
            for setter, value in zip(SETTERS, settings, strict=True):
                if value is not None:
                    getattr(self, setter)(value)
        for feature in [features] if isinstance(features, str) else features or ():
            self.add_feature(feature)
        if not (cores is memory is disk is gpus is None):
            self._request = ResourceRequest(
                validators.amount("cores", cores), validators.megabytes("memory", memory), validators.megabytes("disk", disk), validators.amount("gpus", gpus)
            )  # fmt: skip
        for variable, value in validators.mapping("env", env, "{'NAME': 'value'}").items():
            self.set_env_var(variable, value)
        for file, name in validators.mapping("inputs", inputs, "{file: 'in.txt'}").items():
            self.add_input(file, **(name if isinstance(name, dict) else {"remote_name": name}))
        for file, name in validators.mapping("outputs", outputs, "{file: 'out.txt'}").items():
            self.add_output(file, **(name if isinstance(name, dict) else {"remote_name": name}))

    @property
    def outputs(self) -> list[File]:
        """The files that the task fills."""
        return [file for file, _remote, _when in self._outputs]

    @property
    def files(self) -> list[File]:
        """All files of the task, with its environment."""
        named = [file for file, _name, _how in (*self._inputs_with_names, *self._outputs)]
        return named if self._environment is None else [*named, self._environment]

    # ---- for the manager

    def submit_finalize(self) -> None:
        """Complete the task: called by `Manager.submit` before the task is registered.

        It does nothing here; a subclass may override it, for example to declare files with
        ``self.manager`` and to add them.
        """

    def make_spec(self, manager: TaskHost, number: int) -> TaskSpec:
        """Describe the task for the scheduler.

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
        TypeError, ValueError
            The command is empty, or no text.
        """
        validators.command("command", self.command)  # of a subclass that says nothing of it
        if self._library_provided:
            msg = f"the task is the library {self._library_provided!r}: use m.install_library(task)"
            raise ValueError(msg)
        if self._library_required:
            return self._library_spec(manager, number)
        options: dict[str, Any] = {"command": self.command, **self._common_options(manager)}
        return self._spec(number, options=options, python=False)

    def make_library(self) -> LibraryTask:
        """Return the library that the task provides.

        Returns
        -------
        LibraryTask
            With the files, the environment, the variables and the resources of this task.

        Raises
        ------
        ValueError
            The task provides no library.
        """
        if not self._library_provided:
            msg = f"{self!r} provides no library: name it with task.set_library_provided, or use m.submit"
            raise ValueError(msg)
        library = LibraryTask(self.command, self._library_provided)
        if self._function_slots is not None:
            library.set_function_slots(self._function_slots)
        for file, remote, _symlink in self._inputs_with_names:
            library.add_input(file, remote)
        if self._environment is not None:
            library.add_environment(self._environment)
        for name, value in self._variables.items():
            library.set_env_var(name, value or "")
        for name, amount in self._request._asdict().items():
            if amount is not None:
                getattr(library, f"set_{name}")(amount)
        return library

    def _library_spec(self, manager: TaskHost, number: int) -> TaskSpec:
        """Describe the task as a call without arguments, whose value nothing reads."""
        library = manager.full_library_name(self._library_required, self.command)
        options = {"mounts": [], **self._common_options(manager), "once": True}
        payload = values.dumps(((), {}))
        return self._spec(number, library=library, function=self.command, payload=payload,
                          result=manager.result_name(number), options=options)  # fmt: skip

    def fingerprint(self) -> str:
        """Return a text that determines what the command makes.

        It consists of the command, its inputs, its variables and its environment.

        Returns
        -------
        str
            Equal for tasks that are taken to make the same.
        """
        environment = self._environment.cache_name if self._environment else ""
        mounts = [tuple(_describe_mount(*named)) for named in self._inputs_with_names]
        return repr((self.command, mounts, sorted(self._variables.items()), environment))

    def make_on_demand_spec(
        self, manager: OutputHost, number: int, file: File, source: str, what: str
    ) -> TaskSpec:
        """Describe the task for the scheduler as one that runs only when its output is needed.

        Parameters
        ----------
        manager : OutputHost
            The manager that runs the task.
        number : int
            The number of the task.
        file : File
            The file that the task makes.
        source : str
            The relative path of this file in the sandbox.
        what : str
            The file in the words of the user, for messages.

        Returns
        -------
        TaskSpec
            The task as the scheduler gets it.

        Raises
        ------
        TypeError, ValueError
            ``source`` leads out of the sandbox.
        """
        self._outputs += ((file, check_sandbox_name(source), "success"),)
        if self._request == UNSPECIFIED:
            self.set_cores(1)
        options: dict[str, Any] = {"command": self.command, **self._common_options(manager)}
        spec = self._spec(number, options=options, python=False)
        self.id = number
        return spec._replace(label=f"what makes {what}", on_demand=True, peer_transfer=file.peer_transfer)

    def _common_options(self, manager: OutputHost) -> dict[str, Any]:
        options: dict[str, Any] = {}
        self._inputs = tuple(file.cache_name for file, _remote, _symlink in self._inputs_with_names)
        if self._inputs_with_names:
            options["mounts"] = [_describe_mount(*named) for named in self._inputs_with_names]
        for file in dict.fromkeys(self.outputs):
            manager.rename_for_new_content(file)
        if self._outputs:
            options["outputs"] = [[remote, file.cache_name, when] for file, remote, when in self._outputs]
        if self._watched:
            options["watch"] = [[remote, file.cache_name] for file, remote in self._watched]
        if self._variables:
            options["env"] = self._variables
        if self._time_max is not None:
            options["time_max"] = self._time_max
        if self._environment is not None:
            options["environment"] = self._environment.cache_name
        return options

    def _spec(self, number: int, **more: Any) -> TaskSpec:
        wanted = tuple(
            file.cache_name for file, _remote, _when in self._outputs if file.kind in ("file", "buffer")
        )
        outputs = tuple(file.cache_name for file, _remote, _when in self._outputs)
        result = more.pop("result", "")
        if result and more.pop("wants_result", True):
            wanted += (result,)
        return TaskSpec(
            number, f"task {number}", result, mounts=self._inputs, outputs=outputs,
            wanted_at_manager=wanted, category=self.category, request=self._request, priority=-self.priority, retries=self._retries,
            environment=self._environment.cache_name if self._environment else "", conditions=self.make_conditions(), **more,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state.lower()}{f' {self.result}' if self.outcome else ''}>"


def _describe_mount(file: File, remote_name: str, symlink: bool) -> list[Any]:
    """Return an input in the form of messages."""
    mount = [file.cache_name, remote_name, symlink]
    return mount if file.mode is None else [*mount, file.mode]
