"""Records the resources that a call uses beside its arguments.

The manager compares them with those that the name of the result covers.

Python tells an audit hook which files are opened, which folders are listed, which processes are
started, and to what a connection is made. Variables of the environment, entropy of the system and
the state of the shared generators of random numbers are watched where they are read
(`outside_reads`). Reads of the environment's packages while they are imported count as part of the
packages. A hook cannot be removed, so it is set only in processes that are to record.

Not seen: files that libraries in other languages open. The kernel counts the reads of a process. If
it has counted some though Python has opened nothing, or such a library is loaded and Python has
opened something, too, or pyarrow has asked for memory, the call has used something `UNSEEN`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from types import CodeType
from typing import Any, Callable, Optional

from vinecore.protocol import used_resources, user_modules
from vineworker.library import fork_state, outside_reads
from vineworker.library.residual_uses import ResidualUses
from vineworker.machine.tmpdir import TMPDIR_NAME
from vineworker.slot_protocol import Call

MAX_TEMPORARY_FILES = 1000
MAX_SEARCHED_BYTES = 1 << 20
NO_OWNERS: frozenset[str] = frozenset()
FILE_READING_LIBRARIES = ("h5py", "tables", "netCDF4", "ROOT", "XRootD", "correctionlib", "fitsio", "adios2", "tiledb", "rasterio", "osgeo")  # fmt: skip
"""Libraries that open files by themselves while Python may open others."""
SYSTEM_FOLDERS = ("/etc/", "/usr/lib/", "/usr/lib64/", "/usr/share/", "/lib/", "/lib64/")
"""Folders of the system; their files count as parts of the environment."""
KERNEL_FOLDERS = ("/proc/", "/sys/", "/dev/")
"""Files of the kernel, which differ at each read."""
SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - read about, not written to
IGNORED_KERNEL_FILES = ("/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr", SHARED_MEMORY.rstrip("/"))
IGNORED_VARIABLES = frozenset(
    ["TMPDIR", "TEMP", "TMP", "HOME", "PATH", "PWD", "DASK_SCHEDULER", "COLUMNS", "LINES", "LD_LIBRARY_PATH"]
)
"""Variables that are set for every task, or with paths that count when they are used.

Those of Python itself are ignored, too.
"""
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ENTROPY_CONSUMERS = ("tempfile", "vineworker.machine.tmpdir")
"""Modules that read entropy and do not use it in results."""
CACHE_FOLDERS = ("__pycache__", ".nv", "numba_cache")

_CHANGE_EVENTS = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime", "os.chown",
            "shutil.rmtree", "shutil.move")  # fmt: skip
_PROCESS_EVENTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.startfile",
)


class UseRecorder:
    """Records the uses of this process."""

    def __init__(self) -> None:
        self._residual = ResidualUses()
        # uses of the running call -> modules on the stack
        self._call: Optional[dict[str, frozenset[str]]] = None
        self._opened = 0
        self._busy = threading.local()
        self._reads = 0
        self._allocations = 0
        # whether a package is imported
        self._imports = False
        # own modules that `importlib` has given to the call that runs
        self._imported_modules: set[str] = set()
        self._states: dict[str, Any] = {}
        self._worker_folders: tuple[str, ...] = ()  # of the engine
        # temporary files and folders of this process
        self._temporary_paths: dict[str, None] = {}
        # names that the running call has given to some
        self._temporary_names: set[str] = set()
        self._handlers: dict[str, Callable[..., None]] = {
            "open": self._on_open,
            "os.listdir": self._on_list,
            "os.scandir": self._on_list,
            "sqlite3.connect": self._on_database,
            "tempfile.mkstemp": self.add_temporary,
            "tempfile.mkdtemp": self.add_temporary,
            "ctypes.dlopen": self._on_foreign_call,
            "ctypes.dlsym": self._on_foreign_call,
            "socket.connect": lambda *_about: self._record_use(used_resources.NETWORK),
            **dict.fromkeys(_CHANGE_EVENTS, self._on_change),
            **dict.fromkeys(_PROCESS_EVENTS, lambda *_about: self._record_use(used_resources.PROCESS)),
        }

    def begin_call(self, call: Call) -> None:
        """Start to record a call."""
        paths = [call.result, *(path for _name, path in (*call.shared, *call.inputs) if path)]
        self._worker_folders = tuple({os.path.dirname(path) + os.sep for path in paths if path})
        self._states, self._reads, self._allocations = (
            fork_state.random_states(),
            _count_reads(),
            _count_allocations(),
        )
        self._call, self._opened, self._imported_modules, self._temporary_names = {}, 0, set(), set()

    def end_call(self, message: Call, inputs: Mapping[str, bytes]) -> list[str]:
        """Finish the record of a call and return the resources that it used.

        Parameters
        ----------
        message
            The call.
        inputs
            Contents of inputs that came as messages.
        """
        call, self._call = self._call or {}, None
        opened = self._opened
        reads = _count_reads() - self._reads - 1
        if reads > 0 and (
            not opened
            or any(name in sys.modules for name in FILE_READING_LIBRARIES)
            or self._allocations != (allocations := _count_allocations())
            or allocations < 0
        ):
            call[used_resources.UNSEEN] = NO_OWNERS
        if fork_state.have_drawn(self._states):
            call[used_resources.RANDOM] = NO_OWNERS
        used = {**dict.fromkeys(call), **self._residual.find_uses(message, inputs, self._imported_modules)}
        self._residual.add_call(message, call)
        return list(used)

    def record_module(self, module: Any) -> None:
        """Record a module that was imported by a name which its code need not contain.

        A module that was given before is not read again.
        """
        if self._call is not None and user_modules.is_own_module(module):
            self._imported_modules.add(module.__name__)
            self._record_use(used_resources.describe_file(user_modules.source_path(module) or ""))

    def run_import(self, load: Callable[[], Any], name: str) -> Any:
        """Import a module; reads while a package of the environment is imported do not count."""
        if self._call is None or self._imports or not _is_package(name):
            return load()
        self._imports, opened, before = True, self._opened, _count_reads()
        try:
            return load()
        finally:
            # the second look counts, too
            self._reads += _count_reads() - before + 1
            self._imports, self._opened = False, opened

    def cancel_call(self, message: Call) -> None:
        """Drop the record of a failed call."""
        call, self._call = self._call or {}, None
        self._residual.add_call(message, call)

    def keep_shared_object(self, name: str, content: bytes) -> None:
        """Remember a shared object that came as a message."""
        self._residual.keep_shared_object(name, content)

    def on_audit_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event; it is called very often."""
        handler = self._handlers.get(event)
        if handler is not None and not getattr(self._busy, "now", False):
            code = _get_frame(1).f_code
            if _is_internal(event, code):
                self._opened += event == "open"
                return
            self._busy.now = True
            try:
                handler(*arguments)
            finally:
                self._busy.now = False

    def _record_use(self, thing: str) -> None:
        owners = outside_reads.find_user_modules()
        if owners is None:
            return
        if self._call is not None:
            self._call[thing] = owners | self._call.get(thing, NO_OWNERS)
        elif used_resources.SEPARATOR in thing or thing in (used_resources.RANDOM, used_resources.UNSEEN):
            # without an owner, the environment's packages have got ready
            self._residual.add_use(owners, thing)

    def _on_open(self, path: Any, mode: Any, flags: Any) -> None:
        self._opened += 1
        place = self._find_recorded_path(path)
        if place is None:
            return
        if place.startswith(KERNEL_FOLDERS) and not place.startswith(SHARED_MEMORY):
            self._record_kernel_read(place)
            return
        writes = (
            bool(flags & WRITE_FLAGS)
            if mode is None and isinstance(flags, int)
            else bool(set("wax+") & set(str(mode)))
        )
        if writes:
            if not any(cache in place for cache in CACHE_FOLDERS):
                self._record_use(used_resources.WRITTEN)
            return
        if place.endswith(".pyc"):
            try:
                place = importlib.util.source_from_cache(place)
            except ValueError:
                pass
        self._record_use(
            used_resources.describe_file(place) if used_resources.is_settled(place) else used_resources.UNSEEN
        )

    def _record_kernel_read(self, place: str) -> None:
        """Record a read of a file that the kernel generates."""
        if not place.startswith(IGNORED_KERNEL_FILES):
            self._record_use(used_resources.UNSEEN)

    def record_outside_read(self, thing: str) -> None:
        """Record a read of outside state by the user's own code."""
        if not getattr(self._busy, "now", False):
            self._record_use(thing)

    def record_metadata_read(self, path: Any) -> None:
        """Record a file whose state the user's own code requested; folders are not recorded."""
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            place = self._find_recorded_path(path)
            if place is not None and not place.startswith(KERNEL_FOLDERS) and not os.path.isdir(place):
                self._record_use(used_resources.describe_file(place))
        finally:
            self._busy.now = False

    def _on_foreign_call(self, *_about: Any) -> None:
        """Record that the user's own code calls a library in another language."""
        if outside_reads.is_called_by_user():
            self._record_use(used_resources.UNSEEN)

    def _on_list(self, path: Any = None) -> None:
        if isinstance(path, int):  # an open folder
            self._record_use(used_resources.UNSEEN)
            return
        place = self._find_recorded_path("." if path is None else path)
        if place is not None and place.startswith(KERNEL_FOLDERS):
            self._record_kernel_read(place)
            return
        if place is None or _get_frame(2).f_code.co_filename.startswith(
            ("<frozen importlib", "<frozen zipimport")
        ):
            return
        self._record_use(used_resources.describe_listing(place) or used_resources.UNSEEN)

    def _on_database(self, path: Any) -> None:
        if path != ":memory:":
            self._opened += 1
            place = self._find_recorded_path(path)
            if place is not None:
                self._record_use(used_resources.describe_file(place))

    def add_temporary(self, path: Any) -> None:
        """Record the path of a temporary file or folder that this process makes."""
        place = os.path.abspath(os.fsdecode(path))
        self._temporary_paths[place] = None
        if len(self._temporary_paths) > MAX_TEMPORARY_FILES:
            del self._temporary_paths[next(iter(self._temporary_paths))]
        self._temporary_names.add(os.path.basename(place))

    def find_temporary_name(self, parts: Iterable[Any]) -> list[str]:
        """Return a use if a result names a temporary file of its call, or the temporary folder.

        Parts above 1 MiB hold numbers and are not searched.
        """
        folder = tempfile.tempdir
        names = set(self._temporary_names)
        # a temporary folder that the user has chosen is the same for all processes
        if isinstance(folder, str) and f"{os.sep}{TMPDIR_NAME}" in folder:
            names.add(folder)
        if not names:
            return []
        # arrays of NumPy have texts in UTF-32
        spelled = [name.encode(code, "surrogateescape") for name in names for code in ("utf-8", "utf-32-le")]
        small = (bytes(part) for part in parts if memoryview(part).nbytes <= MAX_SEARCHED_BYTES)
        return [used_resources.WRITTEN] if any(name in part for part in small for name in spelled) else []

    def _on_change(self, path: Any, *_more: Any) -> None:
        place = self._find_recorded_path(path)
        if place is not None and not any(cache in place for cache in CACHE_FOLDERS):
            self._record_use(used_resources.WRITTEN)

    def _find_recorded_path(self, path: Any) -> Optional[str]:
        """Return the absolute path of a file, or None if its use does not count."""
        try:
            place = os.path.abspath(os.fsdecode(os.fspath(path)))
        except (TypeError, ValueError, OSError):
            return None
        if place.endswith(_LIBRARY) or place.startswith(
            (*SYSTEM_FOLDERS, *self._worker_folders, *self._temporary_paths, *_ENGINE)
        ):
            return None
        return None if user_modules.is_package_file(place) else place

    def record_variable(self, name: Any, value: Optional[str]) -> None:
        """Record that a variable of the environment was read."""
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if not isinstance(name, str) or name in IGNORED_VARIABLES or name.startswith("PYTHON"):
            return
        if not getattr(self._busy, "now", False):
            self._record_use(used_resources.describe_variable(name, value))

    def record_all_variables(self) -> None:
        """Record a read of the names of all variables."""
        # `frame(1)` is the function that replaces `os.environ.__iter__`
        if not _get_frame(2).f_code.co_filename.startswith(_ENGINE):
            self._record_use(used_resources.ENVIRONMENT)

    def record_entropy(self) -> None:
        """Record a read of entropy, unless the engine reads it for a forked process."""
        frame = _get_frame(1)
        for _ in range(6):
            if frame is None:
                break
            if frame.f_globals.get("__name__") in ENTROPY_CONSUMERS and frame.f_code.co_name != "randbits":
                return
            frame = frame.f_back
        self._record_use(used_resources.RANDOM)


_ENGINE = tuple(
    os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep
    for module in (sys.modules["vinecore"], sys.modules["vineworker"])
)
_LIBRARY = f"{os.sep}python{sys.version_info[0]}{sys.version_info[1]}.zip"
_TEMPORARY_EVENTS = ("tempfile.mkstemp", "tempfile.mkdtemp")
_recorder: Optional[UseRecorder] = None


def _is_internal(event: str, code: CodeType) -> bool:
    """Return whether code raises an event for others that are recorded, or for the engine."""
    file = code.co_filename
    # its own events have the paths
    if file == tempfile.__file__:
        return event not in _TEMPORARY_EVENTS
    # the event `shutil.rmtree` has the path
    if file == shutil.__file__:
        return "rmtree" in code.co_name and event != "shutil.rmtree"
    # inputs, and the folder where calls start
    return file.startswith(_ENGINE)


def start_recording() -> UseRecorder:
    """Have this process, and all that are forked from it, record from now on."""
    global _recorder  # noqa: PLW0603 - a hook is for the whole process
    if _recorder is None:
        # its own look-ups must not count as reads of a call
        user_modules.is_package_file(os.__file__)
        _recorder = UseRecorder()
        sys.addaudithook(_recorder.on_audit_event)
        outside_reads.wrap_functions(_recorder)
    return _recorder


def begin_call(call: Call) -> UseRecorder:
    """Record what a call uses."""
    recorder = start_recording()
    recorder.begin_call(call)
    return recorder


def is_recording() -> bool:
    """Return whether this process records."""
    return _recorder is not None


def keep_shared_object(name: str, content: bytes) -> None:
    """Remember a shared object that came as a message, if this process records."""
    if _recorder is not None:
        _recorder.keep_shared_object(name, content)


def cancel_call(call: Call) -> None:
    """Drop the record of the current call, if it is recorded."""
    if _recorder is not None:
        _recorder.cancel_call(call)


def _is_package(name: str) -> bool:
    """Return whether a module that is not loaded yet belongs to the environment."""
    top = name.partition(".")[0]
    if top not in _packages_by_name:
        loaded = sys.modules.get(top)
        _packages_by_name[top] = (
            user_modules.is_package_module(top)
            if loaded is None
            else not user_modules.is_own_module(loaded) and top != "__main__"
        )
    return _packages_by_name[top]


_packages_by_name: dict[str, bool] = {}


def _get_frame(above: int) -> Any:
    """Return the frame so many calls above the caller."""
    return sys._getframe(above + 1)  # noqa: SLF001 - C code calls a hook


def _count_reads() -> int:
    """Return how often this process has called the kernel to read."""
    try:
        with open("/proc/self/io", "rb", buffering=0) as file:
            text = file.read(400)
    except OSError:
        return 0
    return int(text.split(b"syscr:")[1].split(None, 1)[0])


def _count_allocations() -> int:
    """Return how often pyarrow has allocated memory, as it does for each read.

    -1 if it does not count, and so may have read a file. That pyarrow is loaded says nothing:
    awkward, coffea and dask load it.
    """
    arrow: Any = sys.modules.get("pyarrow.lib")
    if arrow is None:
        return 0
    try:
        return int(arrow.default_memory_pool().num_allocations())
    except AttributeError:
        return -1
