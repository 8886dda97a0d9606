"""Tasks as a user describes them. Names and meanings are TaskVine's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vinecore import keyword_arguments, validators
from vinecore.manager.files import File
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.resources.amounts import UNSPECIFIED, ResourceRequest
from vinecore.scheduler.instructions import TaskFinished
from vinecore.scheduler.specs import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

    from vinecore.manager.interfaces import OutputHost, TaskHost

TASKVINE_RESULT_NAMES = {"time": "max wall time", "exhausted": "resource exhaustion", "crash": "forsaken", "library": "missing library",
           "too large": "resource exhaustion", "disk": "resource exhaustion", "input": "input missing"}  # fmt: skip
WRITABLE_KINDS = ("file", "buffer", "temp")  # what a task may fill


def checked(name: str, check: Callable[[str, Any], Any]) -> Any:
    """Make an attribute of a task that is checked whenever it is set."""
    slot = f"_{name}"
    return property(
        lambda task: getattr(task, slot), lambda task, value: setattr(task, slot, check(name, value))
    )


class Task:
    """A shell command with its files.

    Parameters
    ----------
    command : str
        What /bin/sh runs, in a folder of its own.
    cores, memory, disk, gpus, category, tag, priority, retries, time_max, env, inputs, outputs
        As the setters.
    """

    # of most tasks this is all there is to say; whoever has more to say puts something else in its place
    id: int | None = None
    manager: TaskHost | None = None
    outcome: TaskFinished | None = None
    _request = UNSPECIFIED
    _inputs_with_names: tuple[tuple[File, str, bool], ...] = ()
    _outputs: tuple[tuple[File, str, str], ...] = ()
    _inputs: tuple[str, ...] = ()  # cache names, as they were when it was submitted
    _variables: Mapping[str, str | None] = MappingProxyType({})
    _environment: File | None = None
    _time_max: float | None = None
    _command = _tag = ""
    _category, _priority, _retries = "default", 0.0, 5

    command = checked("command", validators.command)
    tag = checked("tag", validators.text)
    category = checked("category", validators.category)
    priority = checked("priority", validators.priority)

    @keyword_arguments.refuse_unknown
    def __init__(self, command: str, *, inputs: dict[File, str] | None = None, outputs: dict[File, str] | None = None,
                 env: dict[str, str] | None = None, tag: str = "", category: str = "default", priority: float = 0.0, retries: int = 5,
                 cores: float | None = None, memory: int | None = None, disk: int | None = None, gpus: float | None = None,
                 time_max: float | None = None, environment: File | None = None) -> None:  # fmt: skip
        self.command, self.tag, self.category, self.priority = command, tag, category, priority
        self._retries = validators.whole("retries", retries)
        if time_max is not None:
            self.set_time_max(time_max)
        if environment is not None:
            self.add_environment(environment)
        if not (cores is memory is disk is gpus is None):
            self._request = ResourceRequest(
                validators.amount("cores", cores), validators.megabytes("memory", memory), validators.megabytes("disk", disk), validators.amount("gpus", gpus)
            )  # fmt: skip
        for variable, value in validators.mapping("env", env, "{'NAME': 'value'}").items():
            self.set_env_var(variable, value)
        for file, name in validators.mapping("inputs", inputs, "{file: 'in.txt'}").items():
            self.add_input(file, name)
        for file, name in validators.mapping("outputs", outputs, "{file: 'out.txt'}").items():
            self.add_output(file, name)

    # ---- before it is submitted

    @keyword_arguments.refuse_unknown
    def add_input(self, file: File, remote_name: str | Path, *, mount_symlink: bool = False) -> None:
        """Have a file in the task's folder under a name."""
        symlink = validators.flag("mount_symlink", mount_symlink)
        self._inputs_with_names += ((declared(file), check_sandbox_name(remote_name), symlink),)

    @keyword_arguments.refuse_unknown
    def add_output(
        self, file: File, remote_name: str | Path, *, success_only: bool = False, failure_only: bool = False
    ) -> None:
        """Take a file out of the task's folder when it has ended.

        Raises
        ------
        FileExistsError
            Where it is to be put there is a directory, with something in it that was put there by no output of this manager.
        """
        when = "success" if success_only else "failure" if failure_only else "always"
        if declared(file).kind not in WRITABLE_KINDS:
            msg = f"{file!r} cannot be an output: use a file, a buffer or a temp"
            raise TypeError(msg)
        file.check_place()
        self._outputs += ((file, check_sandbox_name(remote_name), when),)

    def add_environment(self, file: File) -> None:
        """Run in this environment (`Manager.declare_poncho`)."""
        self._environment = declared(file)

    def add_starch_package(self, file: File) -> None:
        """Run with the programs and libraries of this package (`Manager.declare_starch`)."""
        if declared(file).kind != "starch":
            msg = f"{file!r} is not an extracted package: declare it first with m.declare_starch"
            raise TypeError(msg)
        self.add_environment(file)

    def set_env_var(self, name: str, value: str | None = None) -> None:
        """Set an environment variable; None takes it away."""
        name, value = validators.variable(name, value, none=True)
        self._variables = {**self._variables, name: value}

    def set_cores(self, cores: float) -> None:
        """Cores it needs. A task that says nothing of its needs gets a whole worker."""
        self._request = self._request._replace(cores=validators.amount("cores", cores))

    def set_memory(self, memory_mb: int) -> None:
        """Megabytes of memory it needs, and may use."""
        self._request = self._request._replace(memory=validators.megabytes("memory", memory_mb))

    def set_disk(self, disk_mb: int) -> None:
        """Megabytes of disk it needs, and may use."""
        self._request = self._request._replace(disk=validators.megabytes("disk", disk_mb))

    def set_gpus(self, gpus: float) -> None:
        """Gpus it needs."""
        self._request = self._request._replace(gpus=validators.amount("gpus", gpus))

    def set_category(self, category: str) -> None:
        """Count it among tasks that are alike."""
        self.category = category

    def set_tag(self, tag: str) -> None:
        """Mark it for `Manager.wait_for_tag`."""
        self.tag = tag

    def set_priority(self, priority: float) -> None:
        """Larger runs first; the default is 0."""
        self.priority = priority

    def set_retries(self, retries: int) -> None:
        """How often it is run again after its process or worker was lost. What the task itself does wrong is never run again."""
        self._retries = validators.whole("retries", retries)

    def set_time_max(self, seconds: float | timedelta | None) -> None:
        """Kill it when it has run for so long: seconds, or a timedelta; None for as long as it likes."""
        self._time_max = validators.time_max("time_max", seconds)

    # ---- after it has ended

    @property
    def state(self) -> str:
        """INITIAL, READY (submitted) or DONE."""
        return "DONE" if self.outcome else "INITIAL" if self.id is None else "READY"

    @property
    def result(self) -> str:
        """How it ended, in TaskVine's words: "success" if it ran to its end, whatever its exit code."""
        if self.outcome is None:
            return "unknown"
        outcome = self.outcome.outcome
        return "success" if outcome == "exception" else TASKVINE_RESULT_NAMES.get(outcome, outcome)

    @property
    def exit_code(self) -> int:
        """What the command returned; 9 if it was killed, -1 if it never ran."""
        return (
            -1
            if self.outcome is None
            else int(self.outcome.info.get("exit_code", 0 if self.outcome.outcome == "success" else -1))
        )

    def completed(self) -> bool:
        """Whether it ran to its end."""
        return self.result == "success"

    def successful(self) -> bool:
        """Whether it ran to its end and returned 0."""
        return self.completed() and self.exit_code == 0

    @property
    def std_output(self) -> str:
        """The end of what it printed, errors included."""
        info = {} if self.outcome is None else self.outcome.info
        return str(info.get("output", "")) + str(info.get("errors", ""))

    @property
    def output(self) -> Any:
        """What it printed."""
        return self.std_output

    @property
    def resources_measured(self) -> dict[str, Any]:
        """What it used at most: cores, memory and disk in megabytes, seconds."""
        return {} if self.outcome is None else dict(self.outcome.info.get("measured") or {})

    @property
    def outputs(self) -> list[File]:
        """The files it fills."""
        return [file for file, _remote, _when in self._outputs]

    @property
    def files(self) -> list[File]:
        """All files that it names, its environment among them."""
        named = [file for file, _name, _how in (*self._inputs_with_names, *self._outputs)]
        return named if self._environment is None else [*named, self._environment]

    @property
    def hostname(self) -> str:
        """Where it ran."""
        return (
            ""
            if self.outcome is None or self.manager is None
            else self.manager.worker_name(self.outcome.worker)
        )

    def error(self) -> BaseException | None:
        """Why it did not succeed, as an exception; None if it did."""
        ended = self.outcome
        if ended is None or ended.outcome == "success":
            return None
        assert self.manager is not None
        return self.manager.make_exception(
            ended.outcome, ended.info, ended.payload, self._title(), ended.worker
        )

    def _title(self) -> str:
        """Return the name of the task for the text of an error."""
        return f"task {self.id}"

    # ---- for the manager

    def make_spec(self, manager: TaskHost, number: int) -> TaskSpec:
        """Describe it to the mind."""
        validators.command("command", self.command)  # of a subclass that says nothing of it
        options: dict[str, Any] = {"command": self.command, **self._common_options(manager)}
        return self._spec(number, options=options, python=False)

    def fingerprint(self) -> str:
        """All that decides what it does, as text."""
        environment = self._environment.cache_name if self._environment else ""
        mounts = [(file.cache_name, remote, symlink) for file, remote, symlink in self._inputs_with_names]
        return repr((self.command, mounts, sorted(self._variables.items()), environment))

    def make_on_demand_spec(
        self, manager: OutputHost, number: int, file: File, source: str, what: str
    ) -> TaskSpec:
        """Describe it to the mind as one that runs only when the file that it makes is needed."""
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
            options["mounts"] = [
                [file.cache_name, remote, symlink] for file, remote, symlink in self._inputs_with_names
            ]
        for file in dict.fromkeys(self.outputs):
            manager.rename_for_new_content(file)
        if self._outputs:
            options["outputs"] = [[remote, file.cache_name, when] for file, remote, when in self._outputs]
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
            environment=self._environment.cache_name if self._environment else "", **more,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state.lower()}{f' {self.result}' if self.outcome else ''}>"


def declared(file: Any) -> File:
    """Make sure that something is a declared file.

    Raises
    ------
    TypeError
        It is something else, such as a path.
    """
    if not isinstance(file, File):
        msg = f"{file!r} is not a file: declare it first, such as m.declare_file({str(file)!r})"
        raise TypeError(msg)
    return file
