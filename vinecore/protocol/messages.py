"""Every message of the control connection, once.

A message is a named tuple. On the wire it is a JSON array: the name of its kind, then its fields. A field
called ``payload`` is always the last one and travels as raw bytes behind the JSON (see `frames`). Task numbers
are the manager's; object names are cache names (see the design page, "Names and data").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Union

PERSISTENT_CACHE_FEATURE = "keeping"
"""The feature of a worker that has a place for what shall outlive it."""
PILOT_FEATURE_PREFIX = "pilot:"
"""With what follows, a feature of a worker that a factory has started: the factory's name, a slash, and what that calls it."""

IDLE_REASON = "idle for"
"""How the reason begins that a worker gives with `Draining` if it leaves because it has nothing to do."""

PICKLE_SENSITIVE_PACKAGES = ("cloudpickle", "dask", "numpy", "pandas", "awkward")
"""Packages that matter to what can be loaded."""


class Hello(NamedTuple):
    """Worker: who I am and what I have. The first message of a worker."""

    protocol: int
    hostname: str
    pid: int
    python: str  # "3.11"
    cores: int
    memory_mb: int
    disk_mb: int
    gpus: int
    data_port: int  # where peers fetch from; 0 if nobody can
    features: list[str]
    versions: dict[
        str, str
    ]  # of the worker's own interpreter: "python", and what it has of `PICKLE_SENSITIVE_PACKAGES`; {} if nobody has looked
    time_left_s: float = 0.0  # until it begins to leave; 0 if it stays
    contact: str = ""  # "host:port" where peers are to dial, ":port" for the address that the manager sees; "" for that and `data_port`


class Welcome(NamedTuple):
    """Manager: you are in; this is your number.

    ``python`` is the version that pickles the functions: a host that runs another one refuses to load them.
    """

    worker: int
    manager: str
    python: str  # "3.11"
    certificate: str = ""  # in PEM, with its private key: for the data port, where there is TLS
    session: str = ""  # if there is one: should I vanish, keep for the next manager what you have and what is not named after this
    # functions that import TaskVine's modules get this project (see `taskvine_modules`)
    compat: bool = False


class PutObject(NamedTuple):
    """Manager: keep this small object."""

    name: str
    payload: bytes


class Fetch(NamedTuple):
    """Manager: get an object from one of these addresses, or from a URL."""

    name: str
    size: int  # bytes, -1 where nobody knows
    source: str  # "host:port", "manager", or a URL
    directory: bool
    validator: Sequence[str] = ()  # of a URL: ETag and date of what was declared, if its server told
    digest: str = ""  # of what the source should have, "" where nobody knows (see `digests`)
    # the number of the worker that is the source; what follows is for it (see `transfer_tokens`)
    source_worker: int = 0
    pair_key: str = ""  # hexadecimal, for the two ends of this connection only
    token: str = ""
    expires: int = 0
    fingerprint: str = ""  # of the source's certificate, where there is TLS


class Unpack(NamedTuple):
    """Manager: make a directory out of an archive that you have or are getting."""

    name: str
    archive: str


class Upload(NamedTuple):
    """Manager: bring this object to me, over a connection that you open."""

    name: str
    digest: str = ""


class RemoveObjects(NamedTuple):
    """Manager: forget these objects."""

    names: list[str]


class PurgeObjects(NamedTuple):
    """Manager: forget these objects, also those that you keep beyond this manager."""

    names: list[str]


class RetainObjects(NamedTuple):
    """Manager: keep these objects, which you have, beyond this manager."""

    names: list[str]
    forever: bool  # for the next worker in your workspace, too
    digests: list[str]  # of the objects, as in `Fetch`


class Library(NamedTuple):
    """Manager: start this library, or grow it to that many slots."""

    name: str
    setup: str  # object with what the library loads before it forks its first slot
    environment: str  # directory object that holds the Python to use, or ""
    slots: int
    exec_mode: str  # "direct" or "fork"
    # env, command, init_command, mounts, cores, memory, disk if it was asked for
    options: dict[str, Any]


class RemoveLibrary(NamedTuple):
    """Manager: stop this library and its slots."""

    name: str


class Restart(NamedTuple):
    """Manager: fork the single tasks that come from Pythons that start anew."""


class RunTask(NamedTuple):
    """Manager: run this as soon as its inputs are here.

    ``library`` names the library whose slot runs ``function``; "" means a process and a sandbox of its own,
    described in ``options`` (command, environment, env, mounts, outputs, limits, ...).
    """

    task: int
    library: str
    function: str  # a function of the library, or the object that holds one
    shared: list[str]  # objects a slot loads once and keeps
    inputs: list[str]  # objects loaded afresh for this call
    result: str  # name of the object the return value becomes
    return_result: bool  # whether the manager wants the value itself
    options: dict[str, Any]
    payload: bytes  # pickled (args, kwargs)


class Cancel(NamedTuple):
    """Manager: drop these tasks; kill them where they run."""

    tasks: list[int]


class StealRequest(NamedTuple):
    """Manager: give back up to this many calls of a library that have not started."""

    library: str
    max_calls: int


class Shutdown(NamedTuple):
    """Manager: leave. ``final`` means that the worker shall not come back."""

    reason: str
    final: bool


class Ping(NamedTuple):
    """Either end wants to know whether the other one is there."""


class Pong(NamedTuple):
    """The answer to `Ping`."""


class TaskDone(NamedTuple):
    """Worker: a task has ended as it should; its outputs are here."""

    task: int
    size: int  # bytes of the result
    wall_s: float
    info: dict[
        str, Any
    ]  # digest (of a large result), digests {name: digest}, exit_code, outputs {name: size}, measured, ...
    payload: bytes  # the result itself if it was to be kept and is small


class TaskFailed(NamedTuple):
    """Worker: a task has not ended as it should.

    ``kind``: "exception" (payload: the pickled exception), "crash" (the process died), "exhausted" (a limit was
    passed), "time", "disk" (no room for what it has made; info: size, room), "output missing", "input" (an input could not be put in place), "library".
    """

    task: int
    kind: str
    info: dict[str, Any]
    payload: bytes


class OutputPart(NamedTuple):
    """Worker: a running task has appended this to a watched output, or with offset 0 made it anew."""

    task: int
    name: str
    offset: int  # bytes of the output before this
    payload: bytes


class StealResponse(NamedTuple):
    """Worker: these calls had not started and are yours again; the answer to `StealRequest`, also when there are none."""

    library: str
    tasks: list[int]


class Cached(NamedTuple):
    """Worker: a fetched or unpacked object is here."""

    name: str
    size: int
    digest: str = ""
    verified: bool = True  # else peers may have it, nothing here uses it yet, and `ObjectVerified` or `FetchFailed` follows


class Verified(NamedTuple):
    """Worker: the object that was here before it was compared is what it should be."""

    name: str


class PersistentObjects(NamedTuple):
    """Worker: I have kept these objects from before, and they are what they were."""

    names: list[str]
    sizes: list[int]  # bytes, -1 for a directory
    digests: list[str]  # as in `Cached`


class OrphanedObjects(NamedTuple):
    """Worker: I still hold these objects from the manager before, which has vanished."""

    names: list[str]
    sizes: list[int]  # bytes, -1 for a directory
    digests: list[str]  # of those that are large, as they were made or compared


class InventoryComplete(NamedTuple):
    """Worker: that was all that I have from before; said once, by a worker with the feature `PERSISTENT_CACHE_FEATURE`, and to a manager that has a `session`."""


class FetchFailed(NamedTuple):
    """Worker: I could not get this object from there."""

    name: str
    source: str
    reason: str
    permanent: bool  # the source answered that it does not have it, or an archive is broken: it is no use to ask again
    free_disk: int = -1  # bytes of disk that are left here, if that is too little
    corrupt: bool = False  # all of it came, and it is not what was made
    was_cached: bool = False  # I had said `Cached` of it: that copy is gone again
    unreachable: bool = False  # nobody has answered there


class Uploaded(NamedTuple):
    """Worker: the manager has all of this object."""

    name: str


class UploadFailed(NamedTuple):
    """Worker: I could not bring this object to the manager."""

    name: str
    reason: str


class ObjectsLost(NamedTuple):
    """Worker: these objects are damaged or gone."""

    names: list[str]


class LibraryReady(NamedTuple):
    """Worker: the library has loaded its setup."""

    name: str
    wall_s: float
    versions: dict[str, str]


class LibraryFailed(NamedTuple):
    """Worker: the library did not come up; ``final`` where another try would end the same way."""

    name: str
    reason: str
    final: bool
    payload: bytes  # the pickled exception, if there was one


class LibrarySlow(NamedTuple):
    """Worker: the library, a slot of it, or the Python that single tasks are forked from, takes long to start or to import something, and where it is; "" when that is over.

    With ``task``, a task that runs imports for long the module of the user's that ``where`` names.
    """

    name: str
    where: str
    task: int = 0


class Draining(NamedTuple):
    """Worker: I go, and why.

    With ``within_s`` it goes when the manager sends `Shutdown`, because all is elsewhere that only it has and somebody needs, and after so
    many seconds in any case; what it was to run is the manager's again at once.
    """

    reason: str
    within_s: float = 0.0  # 0: now


Message = Union[
    Hello, Welcome, PutObject, Fetch, Unpack, Upload, RemoveObjects, PurgeObjects, RetainObjects, Library, RemoveLibrary, Restart, RunTask, Cancel, StealRequest, Shutdown, Ping, Pong,
    TaskDone, TaskFailed, StealResponse, Cached, Verified, PersistentObjects, OrphanedObjects, InventoryComplete, FetchFailed, Uploaded, UploadFailed, ObjectsLost, LibraryReady, LibraryFailed,
    Draining, LibrarySlow, OutputPart,
]  # fmt: skip

FROM_MANAGER = (
    Welcome,
    PutObject,
    Fetch,
    Unpack,
    Upload,
    RemoveObjects,
    PurgeObjects,
    RetainObjects,
    Library,
    RemoveLibrary,
    Restart,
    RunTask,
    Cancel,
    StealRequest,
    Shutdown,
    Ping,
    Pong,
)
FROM_WORKER = (Hello, TaskDone, TaskFailed, StealResponse, Cached, Verified, PersistentObjects, OrphanedObjects, InventoryComplete, FetchFailed, Uploaded, UploadFailed, ObjectsLost, LibraryReady,
               LibraryFailed, Draining, Ping, Pong, LibrarySlow, OutputPart)  # fmt: skip
