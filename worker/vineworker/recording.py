"""Records what a vertex uses beside its arguments, for the manager to compare with what the name of its result tells.

Python tells an audit hook which files are opened, which folders are listed, which processes are started, and to what a connection is made. Variables of
the environment, entropy of the system and the state of the shared generators of random numbers are watched where they are read. What the environment's packages read
while they are imported counts as part of them. A hook cannot be taken away again, so it is set only in processes that are to record.

What a vertex reads of files that it was not given stays in global variables, perhaps, where the next one in this process finds it: it counts for all that follow.

Not seen: what libraries in other languages open. The kernel counts what a process reads: if it has read something though Python has opened
nothing, or such a library is loaded and Python has opened something, too, the vertex has used something `UNSEEN`.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
import sys
import threading
from typing import Any, Callable, Optional

from vinecore.protocol import modules, usage
from vineworker.calls import Call

MOST_AMBIENT = 1000
MOST_FRAMES = 200
READERS = ("h5py", "tables", "netCDF4", "ROOT", "XRootD", "correctionlib", "fitsio", "adios2", "tiledb", "rasterio", "osgeo")  # fmt: skip
"""Libraries that open files by themselves while Python may open others."""
SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/lib/", "/usr/lib64/", "/usr/share/", "/lib/", "/lib64/")
"""Where the machine keeps its own: part of the environment."""
OWN_VARIABLES = frozenset(
    {
        "TMPDIR",
        "TEMP",
        "TMP",
        "HOME",
        "PATH",
        "PWD",
        "DASK_SCHEDULER",
        "COLUMNS",
        "LINES",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PYTHONHASHSEED",
    }
)
"""Variables that say where things are, which counts when they are used, or that are set for every task."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CACHES = ("__pycache__", ".nv", "numba_cache")

_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime", "os.chown",
            "shutil.rmtree", "shutil.move")  # fmt: skip
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.startfile",
)


class Recorder:
    """What is used in this process."""

    def __init__(self) -> None:
        self._ambient: dict[str, None] = {}  # for all that follow
        self._call: Optional[dict[str, None]] = None  # by the call that runs
        self._opened = 0
        self._busy = threading.local()
        self._reads = 0
        self._states: tuple[Any, ...] = ()
        self._own_places: tuple[str, ...] = ()  # of the engine
        self._made: dict[str, None] = {}  # by this process, temporary files and folders
        self._handlers: dict[str, Callable[..., None]] = {
            "open": self._open,
            "os.listdir": self._list,
            "os.scandir": self._list,
            "sqlite3.connect": self._database,
            "tempfile.mkstemp": self._make,
            "tempfile.mkdtemp": self._make,
            "socket.connect": lambda *_about: self._note(usage.NETWORK),
            **dict.fromkeys(_CHANGES, self._change),
            **dict.fromkeys(_STARTS, lambda *_about: self._note(usage.PROCESS)),
        }

    def begin(self, places: tuple[str, ...]) -> None:
        """A call begins; the engine's own files are in these places."""
        self._own_places = places
        self._states, self._reads = _random_states(), _reads()
        self._call, self._opened = {}, 0

    def end(self, payload: bytes) -> list[str]:
        """A call is over: what it has used. What its payload names is its own, the rest may be found by those that follow."""
        call, self._call = self._call or {}, None
        opened = self._opened
        reads = _reads() - self._reads - 1
        if reads > 0 and (not opened or any(name in sys.modules for name in READERS)):
            call[usage.UNSEEN] = None
        if _random_states() != self._states:
            call[usage.RANDOM] = None
        used = list({**self._ambient, **call})
        for thing in call:
            kind, _, rest = thing.partition(usage.SEPARATOR)
            name = os.path.basename(rest.partition(usage.SEPARATOR)[0])
            if rest and not (kind == "file" and os.fsencode(name) in payload):
                self._remember(thing)
        return used

    def cancel(self) -> None:
        """A call has failed: what it has read may be found by those that follow."""
        call, self._call = self._call or {}, None
        for thing in call:
            if usage.SEPARATOR in thing:
                self._remember(thing)

    def _remember(self, thing: str) -> None:
        if len(self._ambient) < MOST_AMBIENT:
            self._ambient[thing] = None
        else:
            self._ambient[usage.UNSEEN] = None

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What Python tells of; it is called very often."""
        handler = self._handlers.get(event)
        if handler is not None and not getattr(self._busy, "now", False):
            if _frame(1).f_code.co_filename.startswith(
                _ENGINE
            ):  # it brings inputs, and goes where calls start
                self._opened += event == "open"
                return
            self._busy.now = True
            try:
                handler(*arguments)
            finally:
                self._busy.now = False

    def _note(self, thing: str) -> None:
        if _is_import_of_a_package():
            return
        if self._call is not None:
            self._call[thing] = None
        elif usage.SEPARATOR in thing or thing == usage.RANDOM:
            self._remember(thing)

    def _open(self, path: Any, mode: Any, flags: Any) -> None:
        self._opened += 1
        place = self._place(path)
        if place is None:
            return
        writes = (
            bool(flags & WRITES)
            if mode is None and isinstance(flags, int)
            else bool(set("wax+") & set(str(mode)))
        )
        if writes:
            if not any(cache in place for cache in CACHES):
                self._note(usage.WRITTEN)
            return
        if place.endswith(".pyc"):
            try:
                place = importlib.util.source_from_cache(place)
            except ValueError:
                pass
        self._note(usage.file(place))

    def _list(self, path: Any = None) -> None:
        place = self._place("." if path is None else path)
        if place is None or _frame(2).f_code.co_filename.startswith("<frozen importlib"):
            return
        self._note(usage.listing(place) or usage.UNSEEN)

    def _database(self, path: Any) -> None:
        if path != ":memory:":
            self._opened += 1
            place = self._place(path)
            if place is not None:
                self._note(usage.file(place))

    def _make(self, path: Any) -> None:
        self._made[os.path.abspath(os.fsdecode(path))] = None
        if len(self._made) > MOST_AMBIENT:
            del self._made[next(iter(self._made))]

    def _change(self, path: Any, *_more: Any) -> None:
        place = self._place(path)
        if place is not None and not any(cache in place for cache in CACHES):
            self._note(usage.WRITTEN)

    def _place(self, path: Any) -> Optional[str]:
        """Where a file is; None if it is none, or one that does not count."""
        try:
            place = os.path.abspath(os.fsdecode(os.fspath(path)))
        except (TypeError, ValueError, OSError):
            return None
        if place.startswith((*SYSTEM, *self._own_places, *self._made, *_ENGINE)):
            return None
        return None if modules.is_package_file(place) else place

    def variable(self, name: Any, value: Optional[str]) -> None:
        """A variable of the environment was read."""
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if isinstance(name, str) and name not in OWN_VARIABLES:
            self._note(usage.variable(name, value))

    def variables(self) -> None:
        """All of them were read."""
        self._note(usage.ENVIRONMENT)

    def entropy(self) -> None:
        """Entropy was asked for."""
        self._note(usage.RANDOM)


_ENGINE = tuple(
    os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep
    for module in (sys.modules["vinecore"], sys.modules["vineworker"])
)
_recorder: Optional[Recorder] = None


def start() -> Recorder:
    """Have this process, and all that are forked from it, record from now on."""
    global _recorder  # noqa: PLW0603 - a hook is for the whole process
    if _recorder is None:
        _recorder = Recorder()
        sys.addaudithook(_recorder.hear)
        _watch_variables(_recorder)
        _watch_entropy(_recorder)
    return _recorder


def begin(call: Call) -> Recorder:
    """Record what a call uses."""
    recorder = start()
    paths = [call.result, *(path for _name, path in (*call.shared, *call.inputs) if path)]
    recorder.begin(tuple({os.path.dirname(path) + os.sep for path in paths if path}))
    return recorder


def cancel() -> None:
    """The call that runs has failed, if one is recorded."""
    if _recorder is not None:
        _recorder.cancel()


def _watch_variables(recorder: Recorder) -> None:
    kind: Any = type(os.environ)
    get, each = kind.__getitem__, kind.__iter__

    def getitem(self: Any, key: Any) -> Any:
        value = None
        try:
            value = get(self, key)
        finally:
            recorder.variable(key, value)
        return value

    def iterate(self: Any) -> Any:
        recorder.variables()
        return each(self)

    kind.__getitem__, kind.__iter__ = getitem, iterate


def _watch_entropy(recorder: Recorder) -> None:
    draw = os.urandom

    def urandom(size: int) -> bytes:
        recorder.entropy()
        return draw(size)

    os.urandom = urandom
    random._urandom = urandom  # type: ignore[attr-defined]  # noqa: SLF001 - `SystemRandom` has a name of its own for it
    seed = random.Random.seed

    def seeded(self: random.Random, a: Any = None, *args: Any, **kwargs: Any) -> None:
        if a is None and not _is_for_temporary_files():
            recorder.entropy()
        seed(self, a, *args, **kwargs)

    random.Random.seed = seeded  # type: ignore[method-assign]


def _frame(above: int) -> Any:
    """The frame of who called who called this, so many calls above."""
    return sys._getframe(above + 1)  # noqa: SLF001 - a hook is called by C code, for which there is no other way


def _is_for_temporary_files() -> bool:
    frame: Any = _frame(2)
    for _ in range(4):
        if frame is None or frame.f_globals.get("__name__") == "tempfile":
            break
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == "tempfile"


def _random_states() -> tuple[Any, ...]:
    """States of the generators that all of a process shares."""
    legacy: Any = sys.modules.get("numpy.random.mtrand")
    torch: Any = sys.modules.get("torch")
    states: list[Any] = [random.getstate()]
    if legacy is not None:
        states.append(pickle.dumps(legacy.get_state(legacy=False)))
    if torch is not None:
        states.append(torch.get_rng_state().numpy().tobytes())
    return tuple(states)


def _reads() -> int:
    """How often this process has asked the kernel to read."""
    try:
        with open("/proc/self/io", "rb", buffering=0) as file:
            text = file.read(400)
    except OSError:
        return 0
    return int(text.split(b"syscr:")[1].split(None, 1)[0])


def _is_import_of_a_package() -> bool:
    """Whether what happens now is part of importing a package of the environment."""
    frame: Any = _frame(2)
    for _ in range(MOST_FRAMES):
        if frame is None:
            return False
        code = frame.f_code
        if code.co_name == "<module>" and not code.co_filename.startswith("<"):
            file = code.co_filename
            return modules.is_package_file(file) and not file.startswith(_ENGINE)
        frame = frame.f_back
    return False
