"""What is to be computed: tasks, the files they read, how long they take and how much they make.

A workload comes from a generator (`generators.generate`), from a description in JSON (`load`), from the journal of a run (`load_recording`), or from
`SimulatedTask` and `File` records that a program makes::

    {
        "files": {"events.root": {"size": 2e9, "at": "storage"}},
        "tasks": [
            {"key": "a", "inputs": ["events.root"], "seconds": 4.0, "size": 1e6, "library": "analysis"},
            {"key": "b", "seconds": 4.0, "size": 1e6, "reads": 5e8},
            {"key": "sum", "inputs": ["a", "b"], "seconds": 0.1, "size": 1e6},
        ],
    }

Only ``key`` is needed. A file is ``"at"`` the ``"manager"`` or in the ``"storage"`` that all workers reach; as an input it is fetched, kept and passed on by workers. What a
task ``"reads"`` it streams itself from the storage while it runs, and nobody keeps it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

MANAGER, STORAGE = "manager", "storage"
MAX_NAMES = 5


class WorkloadError(ValueError):
    """A workload cannot be what it says."""


@dataclass(frozen=True)
class SimulatedFile:
    """A file that exists before the first task runs.

    Attributes
    ----------
    name : str
        What tasks call it.
    size : int
        Bytes.
    at : str
        "manager" or "storage".
    """

    name: str
    size: int = 0
    at: str = STORAGE

    def __post_init__(self) -> None:
        if self.at not in (MANAGER, STORAGE):
            msg = f"file {self.name}: it is at {self.at!r}, and has to be at {MANAGER!r} or {STORAGE!r}"
            raise WorkloadError(msg)
        object.__setattr__(self, "size", int(_check_number(self.size, f"file {self.name}: size")))


@dataclass(frozen=True)
class SimulatedTask:
    """A task.

    Attributes
    ----------
    key : str
        Its name, and that of its result.
    inputs : tuple of str
        The tasks and files it reads.
    seconds : float
        How long it computes, without what it reads from the storage.
    size : int
        Bytes of its result.
    reads : int
        Bytes it streams from the storage while it runs.
    library : str
        The library whose function it calls; "" for a process of its own.
    category : str
        Tasks of a kind.
    cores : float
        What a task with a process of its own takes.
    wanted : bool
        Whether the user wants its result. The results of tasks that nobody reads are wanted in any case.
    submitted_s : float
        When it is submitted, in seconds after the beginning, if that is later than those before it are.
    """

    key: str
    inputs: tuple[str, ...] = ()
    seconds: float = 1.0
    size: int = 1000
    reads: int = 0
    library: str = ""
    category: str = "default"
    cores: float = 1.0
    wanted: bool = False
    submitted_s: float = 0.0

    def __post_init__(self) -> None:
        where = f"task {self.key}"
        if isinstance(self.inputs, str) or not all(isinstance(name, str) for name in self.inputs):
            msg = f"{where}: inputs={self.inputs!r} is not a list of names"
            raise WorkloadError(msg)
        object.__setattr__(self, "inputs", tuple(dict.fromkeys(self.inputs)))
        for name in ("seconds", "cores", "submitted_s"):
            object.__setattr__(self, name, _check_number(getattr(self, name), f"{where}: {name}"))
        for name in ("size", "reads"):
            object.__setattr__(self, name, int(_check_number(getattr(self, name), f"{where}: {name}")))


class Workload:
    """Tasks in an order in which they can run, and the files they read.

    Parameters
    ----------
    jobs
        The tasks, in any order; those that can run are submitted in this order.
    files
        What exists before.

    Raises
    ------
    WorkloadError
        Names that occur twice, inputs that nobody makes, or tasks that wait for each other.
    """

    def __init__(self, jobs: Iterable[SimulatedTask], files: Iterable[SimulatedFile] = ()) -> None:
        self.files = _index_by_name(files, lambda file: file.name, "file")
        jobs = list(jobs)
        by_key = _index_by_name(jobs, lambda job: job.key, "task")
        if not by_key:
            msg = "a workload without tasks: there is nothing to simulate"
            raise WorkloadError(msg)
        both = [key for key in by_key if key in self.files]
        if both:
            msg = f"{_list_names(both)}: a task and a file have the same name"
            raise WorkloadError(msg)
        for job in jobs:
            unknown = [name for name in job.inputs if name not in by_key and name not in self.files]
            if unknown:
                msg = f"task {job.key} reads {_list_names(unknown)}, which no task makes and no file is"
                raise WorkloadError(msg)
        self.jobs = _sort_by_dependencies(by_key)
        read = {name for job in jobs for name in job.inputs}
        self.jobs = [job if job.wanted or job.key in read else replace(job, wanted=True) for job in self.jobs]

    @property
    def libraries(self) -> list[str]:
        """The libraries that are called."""
        return list(dict.fromkeys(job.library for job in self.jobs if job.library))

    def describe(self) -> dict[str, Any]:
        """Return the description that `load` reads."""
        plain = SimulatedTask("")
        tasks = []
        for job in self.jobs:
            said = {
                one.name: getattr(job, one.name)
                for one in fields(job)
                if getattr(job, one.name) != getattr(plain, one.name)
            }
            tasks.append({**said, "inputs": list(job.inputs)} if job.inputs else said)
        return {
            "files": {file.name: {"size": file.size, "at": file.at} for file in self.files.values()},
            "tasks": tasks,
        }


def load(path: str | os.PathLike[str]) -> Workload:
    """Read a workload from its description in JSON.

    Parameters
    ----------
    path
        A file as the one that is shown at the top of this module.

    Raises
    ------
    WorkloadError
        It is not such a file; the message says where.
    """
    try:
        said = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} cannot be read as JSON: {error}"
        raise WorkloadError(msg) from None
    try:
        return _parse_description(said)
    except WorkloadError as error:
        msg = f"{path}: {error}"
        raise WorkloadError(msg) from None


def _parse_description(said: Any) -> Workload:
    if not isinstance(said, dict) or not isinstance(said.get("tasks"), list):
        msg = 'expected {"tasks": [...], "files": {...}}'
        raise WorkloadError(msg)
    declared = said.get("files", {})
    if not isinstance(declared, dict):
        msg = '"files" has to map names to {"size": bytes, "at": "manager" or "storage"}'
        raise WorkloadError(msg)
    files = [
        _make_record(SimulatedFile, {"name": name, **_check_object(about, f"file {name}")}, f"file {name}")
        for name, about in declared.items()
    ]
    jobs = []
    for number, about in enumerate(said["tasks"]):
        where = f"task number {number}"
        about = _check_object(about, where)  # noqa: PLW2901 - the same, checked
        if not isinstance(about.get("key"), str):
            msg = f'{where} has no "key"'
            raise WorkloadError(msg)
        jobs.append(_make_record(SimulatedTask, about, f"task {about['key']}"))
    return Workload(jobs, files)


def _check_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    msg = f"{where}: {value!r} is not an object"
    raise WorkloadError(msg)


def _make_record(kind: Callable[..., Any], about: dict[str, Any], where: str) -> Any:
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in about if name not in known]
    if unknown:
        msg = f"{where}: {_list_names(unknown)} is not known; there are {', '.join(known)}"
        raise WorkloadError(msg)
    return kind(**about)


def _check_number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        msg = f"{where} is {value!r}, and has to be a number of 0 or more"
        raise WorkloadError(msg)
    return float(value)


def _index_by_name(things: Iterable[Any], name_of: Callable[[Any], str], what: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for thing in things:
        if name_of(thing) in named:
            msg = f"there are two {what}s called {name_of(thing)}"
            raise WorkloadError(msg)
        named[name_of(thing)] = thing
    return named


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (
        f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    )


def _sort_by_dependencies(by_key: dict[str, SimulatedTask]) -> list[SimulatedTask]:
    """Put makers before readers, and change nothing else."""
    ordered: dict[str, SimulatedTask] = {}
    for first in by_key.values():
        stack = [(first, iter(first.inputs))]
        on_path = {first.key: None}
        while stack and first.key not in ordered:
            job, rest = stack[-1]
            name = next((n for n in rest if n in by_key and n not in ordered), None)
            if name is None:
                ordered[job.key] = job
                on_path.pop(job.key)
                stack.pop()
            elif name in on_path:
                msg = f"tasks wait for each other: {_list_names([*on_path][[*on_path].index(name) :])}"
                raise WorkloadError(msg)
            else:
                on_path[name] = None
                stack.append((by_key[name], iter(by_key[name].inputs)))
    return list(ordered.values())
