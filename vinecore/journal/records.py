"""The records of a journal: one class for each kind of line.

A journal is a file of JSON lines: the first is a `Header`, each of the others is one of the records
below, by its ``kind``. The page ``docs/journal-format.md`` describes every kind and field.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

VERSION = 3
FILE = "journal.jsonl"
MOST_RECENT = "most-recent"
MANAGER = "manager"
ARCHIVE = "archive"
# what is outside of these has been damaged: whoever reckons with the records need not expect it
_MAX_NUMBER = 1 << 62
_MAX_SECONDS = 1e12  # seconds
Number = Annotated[int, msgspec.Meta(ge=-_MAX_NUMBER, le=_MAX_NUMBER)]
Amount = Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)]
Seconds = Annotated[float, msgspec.Meta(ge=-_MAX_SECONDS, le=_MAX_SECONDS)]
Pid = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Cores = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Place = Number | str
"""Where a file comes from or goes to: the number of a worker, "manager", "archive" for what is unpacked there, or an address."""


def record_kind(name: str) -> str:
    """Return the kind of a record from the name of its class: "task_done" for `TaskDoneRecord`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Record")).lower()


# a field that no record has is the damaged name of one, which would silently have its default
class Record(
    msgspec.Struct,
    tag_field="kind",
    tag=record_kind,
    omit_defaults=True,
    gc=False,
    forbid_unknown_fields=True,
):
    """What all records have: ``t``, seconds since the journal began."""

    t: Seconds


class Header(Record):
    """The first line."""

    version: Number
    time: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    host: str
    pid: Pid
    manager: str
    port: Port
    daskvine: str
    python: str
    packages: dict[str, str]
    session: str = ""
    resumes: str = ""


class WorkerConnectedRecord(Record):
    """A worker is connected."""

    worker: Number
    host: str
    address: str
    python: str
    cores: Cores
    memory_mb: Number
    disk_mb: Number
    gpus: Number = 0
    pid: Pid = 0


class WorkerDisconnectedRecord(Record):
    """A worker's connection has ended, and what it had is gone."""

    worker: Number
    reason: str


class LibraryInstalledRecord(Record):
    """A library is available."""

    library: str
    label: str = ""
    slots: Number | None = None
    cores: Amount | None = None
    memory_mb: Number | None = None
    exec_mode: str = "direct"
    files: tuple[str, ...] = ()


class LibraryRemovedRecord(Record):
    """A library is not available any more."""

    library: str


class LibraryStartedRecord(Record):
    """A worker was told to start a library, or to grow it."""

    library: str
    worker: Number
    slots: Number
    cores: Amount


class LibraryReadyRecord(Record):
    """A library has started on a worker."""

    library: str
    worker: Number
    seconds: Seconds


class LibraryFailedRecord(Record):
    """A library did not come up on a worker, or has died there."""

    library: str
    worker: Number
    reason: str


class LibraryStoppedRecord(Record):
    """A worker was told to stop a library."""

    library: str
    worker: Number


class GraphOpenedRecord(Record):
    """A graph begins to arrive."""

    graph: Number
    label: str = ""


class GraphSubmittedRecord(Record):
    """The last task of a graph was submitted."""

    graph: Number


class GraphEndedRecord(Record):
    """A graph is computed, or has failed."""

    graph: Number
    outcome: str
    task: Number = 0
    reason: str = ""


class GraphClosedRecord(Record):
    """Nobody needs a graph any more: what was unfinished is cancelled."""

    graph: Number


class TaskSubmittedRecord(Record):
    """A task is to be done."""

    task: Number
    label: str
    category: str = "default"
    graph: Number = 0
    library: str = ""
    function: str = ""
    inputs: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    result: str = ""
    outputs: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    cores: Amount | None = None
    memory_mb: Number | None = None
    disk_mb: Number | None = None
    gpus: Amount | None = None
    priority: Amount = 0.0
    deferred: bool = False


class TaskActivatedRecord(Record):
    """A task that counted as done is to run."""

    task: Number
    rerun: bool = False


class TaskDispatchedRecord(Record):
    """A task was sent to a worker."""

    task: Number
    worker: Number
    attempt: Number = 1
    cores: Amount | None = None


class TaskDoneRecord(Record):
    """A task has ended well on a worker."""

    task: Number
    worker: Number
    wall_s: Seconds
    size: Number = 0
    attempt: Number = 1
    outputs: dict[str, Number] = {}
    returned: Number = 0
    cpu_s: Seconds | None = None
    memory_mb: Number | None = None
    disk_mb: Number | None = None
    exit_code: Number = 0
    digest: str = ""
    digests: dict[str, str] = {}
    single_use: bool = False


class TaskFailedRecord(Record):
    """A task has not ended well on a worker."""

    task: Number
    worker: Number
    failure: str
    reason: str = ""
    attempt: Number = 1
    wall_s: Seconds | None = None


class TaskReturnedRecord(Record):
    """A task has left a worker without having ended there."""

    task: Number
    worker: Number
    reason: str
    attempt: Number = 1


class TaskEndedRecord(Record):
    """A task that was submitted by itself is over, and not well."""

    task: Number
    outcome: str
    reason: str = ""


class FileDeclaredRecord(Record):
    """The user has named a file."""

    file: str
    size: Number = -1
    at_manager: bool = False
    url: str = ""
    archive: str = ""
    directory: bool = False
    level: str = "workflow"


class FilesFoundRecord(Record):
    """A worker has files from before."""

    worker: Number
    files: tuple[str, ...]
    sizes: tuple[Number, ...]


class FilesRemovedRecord(Record):
    """A worker was told to remove files: nobody needs them there, or their room is needed."""

    worker: Number
    files: tuple[str, ...]


class FilesLostRecord(Record):
    """A worker says that files are damaged or gone."""

    worker: Number
    files: tuple[str, ...]


class ObjectSentRecord(Record):
    """The manager has sent a small object along with its messages."""

    file: str
    destination: Number


class TransferStartedRecord(Record):
    """A file begins to travel."""

    file: str
    source: Place
    destination: Place
    size: Number = -1


class TransferEndedRecord(Record):
    """A file has arrived."""

    file: str
    source: Place
    to: Place
    bytes: Number
    seconds: Seconds
    digest: str = ""


class TransferFailedRecord(Record):
    """A file has not arrived."""

    file: str
    source: Place
    to: Place
    seconds: Seconds
    reason: str = ""


class LogMessageRecord(Record):
    """Something a person should know."""

    level: str
    text: str


class StalledRecord(Record):
    """Why nothing can run; empty when that is over."""

    text: str


class JournalStoppedRecord(Record):
    """The journal ends here, though the run went on."""

    reason: str


class ManagerClosedRecord(Record):
    """The manager has ended."""


RECORDS: tuple[type[Record], ...] = tuple(Record.__subclasses__())
