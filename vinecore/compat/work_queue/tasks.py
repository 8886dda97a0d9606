"""Tasks of Work Queue: files are named by paths, and declared when a task is submitted."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from vinecore import validators
from vinecore.compat.work_queue import constants as wq
from vinecore.compat.work_queue.task_readers import QueueTaskReaders
from vinecore.manager.files import File
from vinecore.manager.interfaces import TaskHost
from vinecore.manager.manager import Manager
from vinecore.manager.python_tasks import PythonTask
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.manager.tasks import Task
from vinecore.scheduler.specs import TaskSpec

log = logging.getLogger("vinecore")

# The sandbox as commands find it.
SANDBOX_VARIABLE = "WORK_QUEUE_SANDBOX"
SCHEDULES = {
    wq.WORK_QUEUE_SCHEDULE_UNSET: None,
    wq.WORK_QUEUE_SCHEDULE_FCFS: "fcfs",
    wq.WORK_QUEUE_SCHEDULE_FILES: "files",
    wq.WORK_QUEUE_SCHEDULE_TIME: "time",
    wq.WORK_QUEUE_SCHEDULE_RAND: "rand",
    wq.WORK_QUEUE_SCHEDULE_WORST: "worst",
}


class SandboxCommand(Task):
    """A command that finds the path of its sandbox in a variable."""

    def make_spec(self, manager: TaskHost, number: int) -> TaskSpec:
        """Describe the task for the scheduler."""
        spec = super().make_spec(manager, number)
        command = f'export {SANDBOX_VARIABLE}="$PWD"\n{self.command}'
        return spec._replace(options={**(spec.options or {}), "command": command})


class NamedFile(NamedTuple):
    """A file of a task before it is declared."""

    remote_name: str
    key: tuple[str, ...]
    """Equal for inputs that can be declared together; the path of a file is in the second place."""
    declare: Callable[[Manager], File]
    flags: int


class QueueTask(QueueTaskReaders):
    """A shell command with its files, under Work Queue's names.

    Parameters
    ----------
    command : str
        The command line.
    """

    def __init__(self, command: str) -> None:
        self._prepare(SandboxCommand(command))

    def _prepare(self, template: Task) -> None:
        self._template = self._run = template
        self._inputs: list[NamedFile] = []
        self._outputs: list[NamedFile] = []
        self._environment: str | None = None
        self._monitor_directory: str | None = None

    # ---- files

    def specify_file(
        self,
        local_name: str,
        remote_name: str | None = None,
        type: int | None = None,  # noqa: A002 - Work Queue's name
        flags: int | None = None,
        cache: bool | None = None,
        failure_only: bool | None = None,
        success_only: bool | None = None,
    ) -> bool:
        """Add an input or output file by its path; without a remote name it has the same name there."""
        is_output = type == wq.WORK_QUEUE_OUTPUT
        path = os.path.abspath(validators.path("local_name", local_name))
        name = check_sandbox_name(os.path.basename(path) if remote_name is None else remote_name)
        flags = _flags(flags, cache, failure_only, success_only)
        level = _level(flags)

        def declare(manager: Manager) -> File:
            if is_output:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            elif not os.path.exists(path):
                msg = f"the input {path} does not exist"
                raise FileNotFoundError(msg)
            return manager.declare_file(path, cache=level)

        files = self._outputs if is_output else self._inputs
        files.append(NamedFile(name, ("file", path), declare, flags))
        return True

    def specify_input_file(
        self,
        local_name: str,
        remote_name: str | None = None,
        flags: int | None = None,
        cache: bool | None = None,
    ) -> bool:
        """Add an input file by its path."""
        return self.specify_file(local_name, remote_name, wq.WORK_QUEUE_INPUT, flags, cache)

    def specify_output_file(
        self,
        local_name: str,
        remote_name: str | None = None,
        flags: int | None = None,
        cache: bool | None = None,
        failure_only: bool | None = None,
        success_only: bool | None = None,
    ) -> bool:
        """Add an output file by the path that it gets here."""
        return self.specify_file(
            local_name, remote_name, wq.WORK_QUEUE_OUTPUT, flags, cache, failure_only, success_only
        )

    def specify_directory(
        self,
        local_name: str,
        remote_name: str | None = None,
        type: int | None = None,  # noqa: A002 - Work Queue's name
        flags: int | None = None,
        recursive: bool = False,
        cache: bool | None = None,
        failure_only: bool | None = None,
        success_only: bool | None = None,
    ) -> bool:
        """Add a directory; an input without ``recursive`` is empty in the sandbox."""
        if recursive or type == wq.WORK_QUEUE_OUTPUT:
            return self.specify_file(local_name, remote_name, type, flags, cache, failure_only, success_only)
        name = check_sandbox_name(os.path.basename(local_name) if remote_name is None else remote_name)
        self._inputs.append(
            NamedFile(
                name,
                ("empty directory",),
                lambda manager: manager.declare_minitask(Task("mkdir empty"), "empty"),
                0,
            )
        )
        return True

    def specify_file_piece(
        self,
        local_name: str,
        remote_name: str | None = None,
        start_byte: int = 0,
        end_byte: int = 0,
        type: int | None = None,  # noqa: A002 - Work Queue's name
        flags: int | None = None,
        cache: bool | None = None,
    ) -> bool:
        """Add a part of a file, from the first to the last of these bytes; 0 as the last for its end."""
        if type == wq.WORK_QUEUE_OUTPUT:
            msg = "specify_file_piece: only an input can be a part of a file"
            raise ValueError(msg)
        with open(validators.path("local_name", local_name), "rb") as file:
            file.seek(start_byte)
            data = file.read(end_byte - start_byte + 1 if end_byte else -1)
        name = os.path.basename(local_name) if remote_name is None else remote_name
        return self.specify_buffer(data, name, flags, cache)

    def specify_buffer(
        self, buffer: str | bytes, remote_name: str, flags: int | None = None, cache: bool | None = None
    ) -> bool:
        """Add some bytes as an input file."""
        flags = _flags(flags, cache)
        level = _level(flags)
        self._inputs.append(
            NamedFile(
                check_sandbox_name(remote_name),
                ("buffer", repr(buffer)),
                lambda manager: manager.declare_buffer(buffer, cache=level),
                flags,
            )
        )
        return True

    specify_input_buffer = specify_buffer

    def specify_url(
        self,
        url: str,
        remote_name: str,
        type: int | None = None,  # noqa: A002 - Work Queue's name
        flags: int | None = None,
        cache: bool | None = None,
    ) -> bool:
        """Add an input that workers download."""
        _refuse_output("specify_url", type)
        flags = _flags(flags, cache)
        level = _level(flags)
        self._inputs.append(
            NamedFile(
                check_sandbox_name(remote_name),
                ("url", url),
                lambda manager: manager.declare_url(url, cache=level),
                flags,
            )
        )
        return True

    def specify_file_command(
        self,
        cmd: str,
        remote_name: str,
        type: int | None = None,  # noqa: A002 - Work Queue's name
        flags: int | None = None,
        cache: bool | None = None,
    ) -> bool:
        """Add an input that a command makes on the worker: what it prints, or the file ``%%`` in it."""
        _refuse_output("specify_file_command", type)
        flags = _flags(flags, cache)
        level = _level(flags)
        line = cmd.replace("%%", "made") if "%%" in cmd else f"{{ {cmd}\n}} > made"
        self._inputs.append(
            NamedFile(
                check_sandbox_name(remote_name),
                ("command", cmd),
                lambda manager: manager.declare_minitask(Task(line), "made", cache=level),
                flags,
            )
        )
        return True

    # ---- settings

    def specify_command(self, command: str) -> None:
        """Set the command line."""
        self._template.command = command

    def specify_algorithm(self, algorithm: int) -> None:
        """Set how a worker is chosen for this task."""
        self._template.set_scheduler(schedule_name(algorithm))

    def specify_tag(self, tag: Any) -> None:
        """Set the tag; a number becomes its text."""
        self._template.set_tag(str(tag))

    def specify_category(self, name: str) -> None:
        """Set the category."""
        self._template.set_category(name)

    def specify_feature(self, name: str) -> None:
        """Run the task only on workers with a feature."""
        self._template.add_feature(name)

    def specify_cores(self, cores: float) -> None:
        """Set the cores that the task needs."""
        self._template.set_cores(cores)

    def specify_memory(self, memory: int) -> None:
        """Set the memory that the task needs, in MB."""
        self._template.set_memory(memory)

    def specify_disk(self, disk: int) -> None:
        """Set the disk space that the task needs, in MB."""
        self._template.set_disk(disk)

    def specify_gpus(self, gpus: float) -> None:
        """Set the gpus that the task needs."""
        self._template.set_gpus(gpus)

    def specify_priority(self, priority: float) -> None:
        """Set the priority; larger runs earlier."""
        self._template.set_priority(priority)

    def specify_max_retries(self, max_retries: int) -> None:
        """Set how often the task runs again after its worker was lost; without it, or with 0, without limit."""
        if max_retries > 0:
            self._template.set_retries(max_retries)

    def specify_running_time_max(self, seconds: float) -> None:
        """Set the time in seconds after which the task is ended."""
        self._template.set_time_max(seconds)

    def specify_running_time(self, useconds: float) -> None:
        """Set the time in microseconds after which the task is ended."""
        self._template.set_time_max(useconds / 1e6)

    def specify_running_time_min(self, seconds: float) -> None:
        """Set the time in seconds that a worker must still have."""
        self._template.set_time_min(seconds)

    def specify_start_time_min(self, useconds: float) -> None:
        """Set the time, in microseconds since 1970, before which the task does not start."""
        self._template.set_time_start(useconds)

    def specify_end_time(self, useconds: float) -> None:
        """Set the time, in microseconds since 1970, at which the task is ended."""
        self._template.set_time_end(useconds)

    def specify_environment_variable(self, name: str, value: str | None = None) -> None:
        """Set or remove an environment variable."""
        self._template.set_env_var(name, value)

    def specify_environment(self, filename: str) -> None:
        """Run the task in a packed environment."""
        self._environment = os.path.abspath(validators.path("filename", filename))

    def specify_monitor_output(self, directory: str) -> None:
        """Write the measured resources into a directory when the task comes back."""
        self._monitor_directory = os.path.abspath(validators.path("directory", directory))

    def specify_snapshot_file(self, filename: str) -> None:
        """Accept a file with snapshots to take, which are not taken: only the highest usage is measured."""
        log.warning("specify_snapshot_file(%r) has no effect: only the highest usage is measured", filename)

    def specify_coprocess(self, coprocess: str) -> None:
        """Refuse a coprocess."""
        raise NotImplementedError(NO_COPROCESS.format(coprocess))

    def clone(self) -> QueueTask:
        """Return a copy that has not been submitted."""
        other = copy.copy(self)
        other._template = other._run = copy.copy(self._template)  # noqa: SLF001 - of the same class
        other._inputs, other._outputs = list(self._inputs), list(self._outputs)  # noqa: SLF001
        return other

    def make_run(self, manager: Manager, declared: dict[tuple[Any, ...], File]) -> Task:
        """Return a task for the manager, with its files declared."""
        run: Task = copy.copy(self._template)
        for named in self._inputs:
            key = _current_key(named)
            file = declared.get(key) if named.flags & wq.WORK_QUEUE_CACHE else None
            if file is None:
                file = named.declare(manager)
                if named.flags & wq.WORK_QUEUE_CACHE:
                    declared[key] = file
            run.add_input(file, named.remote_name, mount_symlink=bool(named.flags & wq.WORK_QUEUE_SYMLINK))
        for named in self._outputs:
            run.add_output(
                named.declare(manager),
                named.remote_name,
                watch=bool(named.flags & wq.WORK_QUEUE_WATCH),
                failure_only=bool(named.flags & wq.WORK_QUEUE_FAILURE_ONLY),
                success_only=bool(named.flags & wq.WORK_QUEUE_SUCCESS_ONLY),
            )
        if self._environment is not None:
            run.add_environment(manager.declare_poncho(self._environment))
        self._run = run
        return run

    def write_summary(self) -> None:
        """Write the measured resources, if the program has named a directory for them."""
        if self._monitor_directory is None:
            return
        os.makedirs(self._monitor_directory, exist_ok=True)
        amounts = dict(self._run.resources_measured)
        path = os.path.join(self._monitor_directory, f"wq-{os.getpid()}-task-{self.id}.summary")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "category": self.category,
                    "command": self.command,
                    "exit_status": self.return_status,
                    **amounts,
                },
                file,
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._run!r}>"


class QueuePythonTask(QueueTask):
    """A call of a Python function in a process of its own, under Work Queue's names.

    Parameters
    ----------
    function : callable
        The function.
    *args, **kwargs : object
        Its arguments.
    """

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._prepare(PythonTask(function, *args, **kwargs))

    def specify_command(self, command: str) -> None:
        """Refuse a command."""
        msg = f"a PythonTask has a function instead of the command {command!r}: use Task"
        raise TypeError(msg)


class RemoteTask(QueueTask):
    """Work Queue's call of a function in a coprocess, which does not exist here."""

    def __init__(self, fn: str, coprocess: str, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(NO_COPROCESS.format(coprocess))


NO_COPROCESS = "there is no coprocess {!r}, because workers start no coprocesses: install its functions as a library (vinecore.Manager.create_library_from_functions) and call them with vinecore.FunctionCall, or use PythonTask"


def schedule_name(number: int) -> str | None:
    """Return the name of a schedule for Work Queue's number."""
    if number not in SCHEDULES:
        msg = f"algorithm={number!r}: use a constant such as WORK_QUEUE_SCHEDULE_FILES"
        raise ValueError(msg)
    return SCHEDULES[number]


def _current_key(named: NamedFile) -> tuple[Any, ...]:
    """Return the key of an input with the state of the file, which may have changed since the last task."""
    if named.key[0] != "file" or not os.path.isfile(named.key[1]):
        return named.key
    about = os.stat(named.key[1])
    return (*named.key, about.st_size, about.st_mtime_ns)


def _refuse_output(name: str, kind: int | None) -> None:
    if kind == wq.WORK_QUEUE_OUTPUT:
        msg = f"{name}: only an input can be made so; let the command itself upload an output"
        raise ValueError(msg)


def _flags(
    flags: int | None,
    cache: bool | None,
    failure_only: bool | None = None,
    success_only: bool | None = None,
) -> int:
    """Return flags, of which single ones may be given by name; files are cached unless a value says otherwise."""
    found = wq.WORK_QUEUE_CACHE if flags is None else int(flags)
    given = (
        (cache, wq.WORK_QUEUE_CACHE),
        (failure_only, wq.WORK_QUEUE_FAILURE_ONLY),
        (success_only, wq.WORK_QUEUE_SUCCESS_ONLY),
    )
    for value, bit in given:
        if value is not None:
            found = found | bit if value else found & ~bit
    return found


def _level(flags: int) -> str:
    return "workflow" if flags & wq.WORK_QUEUE_CACHE else "task"
