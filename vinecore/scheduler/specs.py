"""What the user declares and submits: files, libraries, graphs and tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vinecore.resources.amounts import UNSPECIFIED, ResourceRequest

# How long workers keep a file: until the task is over that needed it, until it cannot be named any more, and longer than there is
# this manager.
TASK, WORKFLOW, WORKER, FOREVER = range(4)


class FileSpec(NamedTuple):
    """A file as declared."""

    name: str
    size: int = -1
    at_manager: bool = False  # the manager holds its content, or can read it
    url: str = ""
    archive: str = ""  # the file this one is unpacked from
    directory: bool = False
    peer_transfer: bool = True
    validator: tuple[str, ...] = ()  # of a url: as in `protocol.messages.Fetch`
    digest: str = ""  # of what the manager has
    level: int = WORKFLOW
    awaited: bool = False  # a task will make it, which may be submitted later
    absent: bool = False  # awaited, but it may be a mistake as well: nothing was where it was declared


class LibrarySpec(NamedTuple):
    """A library as installed."""

    name: str
    setup: str  # file with what is loaded before the first fork
    slots: int | None = None  # None: one for each core
    request: ResourceRequest = UNSPECIFIED
    environment: str = ""
    exec_mode: str = "direct"
    files: tuple[str, ...] = ()  # further files it needs
    options: dict[str, Any] = {}  # noqa: RUF012 - read only, and encoded as it is


class GraphSpec(NamedTuple):
    """A graph as it begins."""

    number: int
    label: str = ""
    retries: int = 5
    prune_depth: int = 1
    priority_mode: str = ""
    report_each_task: bool = False  # whether every vertex is reported
    size: int = 0  # how many tasks will be submitted, if that is known
    # whether the name of what a task makes tells of all these things, which it has used; asked for reusable results only
    covers: Callable[[int, list[str]], bool] | None = None


class PlacementConditions(NamedTuple):
    """What a task asks of its worker, besides resources."""

    # names that the worker was started with
    features: tuple[str, ...] = ()
    # seconds that it stays at least
    time_min: float = 0.0
    # rule that chooses among workers, as in `Manager.set_scheduler`; "" for the manager's
    schedule: str = ""
    # files that it has already
    strict_inputs: tuple[str, ...] = ()


class TaskConditions(NamedTuple):
    """Where and when a task may run. Times are those of the scheduler's clock."""

    placement: PlacementConditions = PlacementConditions()
    time_start: float = 0.0
    time_end: float | None = None
    # how often a worker may give it back without having run it; -1: as often as it takes
    max_forsaken: int = -1


class TaskSpec(NamedTuple):
    """A task as submitted. Fields as in `protocol.messages.RunTask`."""

    task: int
    label: str
    result: str
    graph: int = 0
    library: str = ""
    function: str = ""
    payload: bytes = b""
    shared: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # besides the result
    wanted_at_manager: tuple[str, ...] = ()  # outputs whose content the manager wants
    category: str = "default"
    request: ResourceRequest = UNSPECIFIED
    priority: float = 0.0  # smaller runs first
    depth: int = 0
    retries: int = 5
    exception_retries: int = 0  # how often it runs again after its function has raised
    python: bool = True  # runs pickled functions, so versions matter
    environment: str = ""
    peer_transfer: bool = True  # whether workers may fetch its outputs from each other
    reader_count: int = 0  # tasks of the same run that will read its result; known before they are submitted
    on_demand: bool = False
    # its result is named after all that it depends on: each task of this name makes the same
    content_addressed: bool = False
    level: int = TASK  # of its result; below WORKFLOW that is as it was declared
    conditions: TaskConditions | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - read only, and encoded as it is
