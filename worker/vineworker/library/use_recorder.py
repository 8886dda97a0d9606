"""Records what a vertex uses beside its arguments, for the manager to compare with what the name of its result tells.

Python tells an audit hook which files are opened, which folders are listed, which processes are started, and to what a connection is made. Variables of
the environment, entropy of the system and the state of the shared generators of random numbers are watched where they are read. What the environment's packages read
while they are imported counts as part of them. A hook cannot be taken away again, so it is set only in processes that are to record.

What a vertex reads may stay in global variables of a module, where the next one in this process finds it. So what a function of the user's own modules has
used counts for all that follow and may reach that module, and what others have used for those that share an object with them.

Not seen: what libraries in other languages open. The kernel counts what a process reads: if it has read something though Python has opened
nothing, or such a library is loaded and Python has opened something, too, or pyarrow has asked for memory, the vertex has used something `UNSEEN`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pickle
import random
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, Optional

from vinecore.protocol import used_resources, user_modules
from vineworker.library import outside_reads
from vineworker.slot_protocol import Call

MOST_LEFT = 1000
MOST_OBJECTS = 1000
MOST_FRAMES = 200
READERS = ("h5py", "tables", "netCDF4", "ROOT", "XRootD", "correctionlib", "fitsio", "adios2", "tiledb", "rasterio", "osgeo")  # fmt: skip
"""Libraries that open files by themselves while Python may open others."""
SYSTEM = ("/etc/", "/usr/lib/", "/usr/lib64/", "/usr/share/", "/lib/", "/lib64/")
"""Where the machine keeps its own: part of the environment."""
KERNEL = ("/proc/", "/sys/", "/dev/")
"""Where no two reads give the same."""
SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - read about, not written to
SILENT = ("/dev/null", "/dev/tty", "/dev/stdout", "/dev/stderr", SHARED_MEMORY.rstrip("/"))
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
    }
)
"""Variables that say where things are, which counts when they are used, or that are set for every task; and those of Python itself."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
QUIET = ("tempfile", "vineworker.machine.tmpdir")
"""Modules that ask for entropy and make no results of it."""
UNTOUCHED = (623, 624)
"""Positions of NumPy's shared generator when it has been seeded, by the system or with a number."""
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
        # what was left by calls, by module or shared object that may have it, which those that follow may get it from
        self._of_modules: dict[str, dict[str, None]] = {}
        self._of_objects: dict[str, dict[str, None]] = {}
        self._contents: dict[str, bytes] = {}  # of shared objects that came as messages
        self._call: Optional[dict[str, frozenset[str]]] = (
            None  # what the call that runs has used -> modules that did it
        )
        self._opened = 0
        self._busy = threading.local()
        self._reads = 0
        self._allocations = 0
        self._imports = False  # whether a package is imported
        self._given: set[str] = set()  # own modules that `importlib` has given to the call that runs
        self._states: dict[str, Any] = {}
        self._own_places: tuple[str, ...] = ()  # of the engine
        self._made: dict[str, None] = {}  # by this process, temporary files and folders
        self._handlers: dict[str, Callable[..., None]] = {
            "open": self._open,
            "os.listdir": self._list,
            "os.scandir": self._list,
            "sqlite3.connect": self._database,
            "tempfile.mkstemp": self._make,
            "tempfile.mkdtemp": self._make,
            "ctypes.dlopen": self._call_c,
            "ctypes.dlsym": self._call_c,
            "socket.connect": lambda *_about: self._note(used_resources.NETWORK),
            **dict.fromkeys(_CHANGES, self._change),
            **dict.fromkeys(_STARTS, lambda *_about: self._note(used_resources.PROCESS)),
        }

    def begin(self, call: Call) -> None:
        """Start to record a call."""
        paths = [call.result, *(path for _name, path in (*call.shared, *call.inputs) if path)]
        self._own_places = tuple({os.path.dirname(path) + os.sep for path in paths if path})
        self._states, self._reads, self._allocations = _random_states(), _reads(), _allocations()
        self._call, self._opened, self._given = {}, 0, set()

    def end(self, message: Call, inputs: Mapping[str, bytes]) -> list[str]:
        """Finish the record of a call and return the resources that it used.

        Parameters
        ----------
        inputs
            Contents of those that came as messages.
        """
        call, self._call = self._call or {}, None
        opened = self._opened
        reads = _reads() - self._reads - 1
        if reads > 0 and (
            not opened
            or any(name in sys.modules for name in READERS)
            or self._allocations != (allocations := _allocations())
            or allocations < 0
        ):
            call[used_resources.UNSEEN] = NOBODY
        if _have_moved(self._states):
            call[used_resources.RANDOM] = NOBODY
        used: dict[str, Any] = dict(call)
        for name, _path in _shared(message):
            used.update(self._of_objects.get(name, {}))
        for name in self._given:
            used.update(self._of_modules.get(name, {}))
        if self._of_modules:
            contents = list(self._contents_of(message, inputs))
            for module, things in self._of_modules.items():
                if not used.keys() >= things.keys() and _is_reached(module, contents):
                    used.update(things)
        self._leave(call, message)
        return list(used)

    def give_module(self, module: Any) -> None:
        """Record a module that was imported by a name which its code need not contain.

        A module that was given before is not read again.
        """
        if self._call is not None and user_modules.is_own_module(module):
            self._given.add(module.__name__)
            self._note(used_resources.describe_file(user_modules.source_path(module) or ""))

    def watch_import(self, load: Callable[[], Any], name: str) -> Any:
        """Import a module; what it takes to import a package of the environment is not what the call has read."""
        if self._call is None or self._imports or not _is_package(name):
            return load()
        self._imports, opened, before = True, self._opened, _reads()
        try:
            return load()
        finally:
            # the second look counts, too
            self._reads += _reads() - before + 1
            self._imports, self._opened = False, opened

    def cancel(self, message: Call) -> None:
        """Drop the record of a failed call."""
        call, self._call = self._call or {}, None
        self._leave(call, message)

    def keep(self, name: str, content: bytes) -> None:
        """Remember a shared object that came as a message."""
        self._contents[name] = content
        if len(self._contents) > MOST_OBJECTS:
            del self._contents[next(iter(self._contents))]

    def _contents_of(self, call: Call, inputs: Mapping[str, bytes]) -> Iterator[Optional[bytes]]:
        """Generate the contents of a call that can name modules; None for an unavailable one."""
        yield call.payload
        for name, path in (*_shared(call), *call.inputs):
            if path:
                try:
                    with open(path, "rb") as file:
                        yield file.read()
                except OSError:
                    yield None
            else:
                yield self._contents.get(name, inputs.get(name))

    def _leave(self, call: dict[str, frozenset[str]], message: Call) -> None:
        """Remember what a call may have left in this process, without the files that it alone was told of."""
        sources: Optional[dict[str, str]] = None
        for thing, owners in call.items():
            kind, _, rest = thing.partition(used_resources.SEPARATOR)
            path = rest.partition(used_resources.SEPARATOR)[0]
            if not rest or (kind == "file" and os.fsencode(os.path.basename(path)) in message.payload):
                continue
            if kind == "file" and path.endswith(".py"):
                # A module that this call has imported is there for the next, which reads its file no more.
                if sources is None:
                    sources = {
                        user_modules.source_path(one) or "": one.__name__
                        for one in user_modules.find_own_modules()
                    }
                if path in sources:
                    owners = owners | {sources[path]}  # noqa: PLW2901 - with one more
            for owner in owners:
                _remember(self._of_modules.setdefault(owner, {}), thing)
            for object_, _path in () if owners else _shared(message):
                _remember(self._of_objects.setdefault(object_, {}), thing)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event; it is called very often."""
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
        owners = _owners()
        if owners is None:
            return
        if self._call is not None:
            self._call[thing] = owners | self._call.get(thing, NOBODY)
        elif used_resources.SEPARATOR in thing or thing in (used_resources.RANDOM, used_resources.UNSEEN):
            for owner in owners:  # if there is none, the environment's packages have got ready
                _remember(self._of_modules.setdefault(owner, {}), thing)

    def _open(self, path: Any, mode: Any, flags: Any) -> None:
        self._opened += 1
        place = self._place(path)
        if place is None:
            return
        if place.startswith(KERNEL) and not place.startswith(SHARED_MEMORY):
            self._note_kernel(place)
            return
        writes = (
            bool(flags & WRITES)
            if mode is None and isinstance(flags, int)
            else bool(set("wax+") & set(str(mode)))
        )
        if writes:
            if not any(cache in place for cache in CACHES):
                self._note(used_resources.WRITTEN)
            return
        if place.endswith(".pyc"):
            try:
                place = importlib.util.source_from_cache(place)
            except ValueError:
                pass
        self._note(
            used_resources.describe_file(place) if used_resources.is_settled(place) else used_resources.UNSEEN
        )

    def _note_kernel(self, place: str) -> None:
        """Something was read that the kernel makes up."""
        if not place.startswith(SILENT):
            self._note(used_resources.UNSEEN)

    def note_outside(self, thing: str) -> None:
        """Something of the outside was asked for by the user's own code."""
        if not getattr(self._busy, "now", False):
            self._note(thing)

    def looked_at(self, path: Any) -> None:
        """Record a file whose state the user's own code requested; folders are not recorded."""
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            place = self._place(path)
            if place is not None and not place.startswith(KERNEL) and not os.path.isdir(place):
                self._note(used_resources.describe_file(place))
        finally:
            self._busy.now = False

    def _call_c(self, *_about: Any) -> None:
        """Record that the user's own code calls a library in another language."""
        if outside_reads.is_called_by_user():
            self._note(used_resources.UNSEEN)

    def _list(self, path: Any = None) -> None:
        if isinstance(path, int):  # an open folder
            self._note(used_resources.UNSEEN)
            return
        place = self._place("." if path is None else path)
        if place is not None and place.startswith(KERNEL):
            self._note_kernel(place)
            return
        if place is None or _frame(2).f_code.co_filename.startswith(
            ("<frozen importlib", "<frozen zipimport")
        ):
            return
        self._note(used_resources.describe_listing(place) or used_resources.UNSEEN)

    def _database(self, path: Any) -> None:
        if path != ":memory:":
            self._opened += 1
            place = self._place(path)
            if place is not None:
                self._note(used_resources.describe_file(place))

    def _make(self, path: Any) -> None:
        self._made[os.path.abspath(os.fsdecode(path))] = None
        if len(self._made) > MOST_LEFT:
            del self._made[next(iter(self._made))]

    def _change(self, path: Any, *_more: Any) -> None:
        place = self._place(path)
        if place is not None and not any(cache in place for cache in CACHES):
            self._note(used_resources.WRITTEN)

    def _place(self, path: Any) -> Optional[str]:
        """Where a file is; None if it is none, or one that does not count."""
        try:
            place = os.path.abspath(os.fsdecode(os.fspath(path)))
        except (TypeError, ValueError, OSError):
            return None
        if place.endswith(_LIBRARY) or place.startswith((*SYSTEM, *self._own_places, *self._made, *_ENGINE)):
            return None
        return None if user_modules.is_package_file(place) else place

    def variable(self, name: Any, value: Optional[str]) -> None:
        """Record that a variable of the environment was read."""
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if not isinstance(name, str) or name in OWN_VARIABLES or name.startswith("PYTHON"):
            return
        if not getattr(self._busy, "now", False):
            self._note(used_resources.describe_variable(name, value))

    def variables(self) -> None:
        """All of them were read."""
        if not _frame(1).f_code.co_filename.startswith(_ENGINE):
            self._note(used_resources.ENVIRONMENT)

    def entropy(self) -> None:
        """Entropy was asked for, and not by the engine for a process that it has forked."""
        frame = _frame(1)
        for _ in range(6):
            if frame is None:
                break
            if frame.f_globals.get("__name__") in QUIET and frame.f_code.co_name != "randbits":
                return
            frame = frame.f_back
        self._note(used_resources.RANDOM)


_ENGINE = tuple(
    os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep
    for module in (sys.modules["vinecore"], sys.modules["vineworker"])
)
_LIBRARY = f"{os.sep}python{sys.version_info[0]}{sys.version_info[1]}.zip"
_recorder: Optional[Recorder] = None


def start() -> Recorder:
    """Have this process, and all that are forked from it, record from now on."""
    global _recorder  # noqa: PLW0603 - a hook is for the whole process
    if _recorder is None:
        user_modules.is_package_file(os.__file__)  # what that looks up must not be taken for somebody's reads
        _recorder = Recorder()
        sys.addaudithook(_recorder.hear)
        _watch_variables(_recorder)
        _watch_entropy(_recorder)
        _watch_imports(_recorder)
        outside_reads.wrap_functions(_recorder)
    return _recorder


def begin(call: Call) -> Recorder:
    """Record what a call uses."""
    recorder = start()
    recorder.begin(call)
    return recorder


def is_on() -> bool:
    """Whether this process records."""
    return _recorder is not None


def keep(name: str, content: bytes) -> None:
    """Remember a shared object that came as a message, where somebody records."""
    if _recorder is not None:
        _recorder.keep(name, content)


def cancel(call: Call) -> None:
    """Drop the record of the current call, if it is recorded."""
    if _recorder is not None:
        _recorder.cancel(call)


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
        if a is None:
            recorder.entropy()
        seed(self, a, *args, **kwargs)

    random.Random.seed = seeded  # type: ignore[method-assign]


def _watch_imports(recorder: Recorder) -> None:
    importer: Any = sys.modules["_frozen_importlib"]
    find = importer._find_and_load  # noqa: SLF001 - what both the statement and `importlib.import_module` call for a module that is not there

    def find_and_load(name: str, import_: Any) -> Any:
        return recorder.watch_import(lambda: find(name, import_), name)

    importer._find_and_load = find_and_load  # noqa: SLF001
    import_module = importlib.import_module

    @functools.wraps(import_module)
    def import_by_name(name: str, package: Optional[str] = None) -> Any:
        module = import_module(name, package)
        recorder.give_module(module)
        return module

    importlib.import_module = import_by_name


def _is_package(name: str) -> bool:
    """Whether a module that is not there yet belongs to the environment."""
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


def _frame(above: int) -> Any:
    """Return the frame so many calls above the caller."""
    return sys._getframe(above + 1)  # noqa: SLF001 - a hook is called by C code, for which there is no other way


def _random_states() -> dict[str, Any]:
    """States of the generators that all of a process shares."""
    legacy: Any = sys.modules.get("numpy.random.mtrand")
    torch: Any = sys.modules.get("torch")
    states: dict[str, Any] = {"random": random.getstate()}
    if legacy is not None:
        states["numpy"] = pickle.dumps(legacy.get_state(legacy=False))
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states


def _have_moved(before: dict[str, Any]) -> bool:
    """Whether numbers were drawn from a generator that all of a process shares."""
    now = _random_states()
    if "numpy" in now and "numpy" not in before:
        state = pickle.loads(now["numpy"])
        if state.get("has_gauss") or state["state"].get("pos") not in UNTOUCHED:
            return True
    return any(now[name] != state for name, state in before.items())


def _reads() -> int:
    """How often this process has asked the kernel to read."""
    try:
        with open("/proc/self/io", "rb", buffering=0) as file:
            text = file.read(400)
    except OSError:
        return 0
    return int(text.split(b"syscr:")[1].split(None, 1)[0])


def _allocations() -> int:
    """How often pyarrow has asked for memory, as it does for whatever it reads; -1 where it does not count, and so may have read something.

    That pyarrow is loaded says nothing: awkward, coffea and dask load it.
    """
    arrow: Any = sys.modules.get("pyarrow.lib")
    if arrow is None:
        return 0
    try:
        return int(arrow.default_memory_pool().num_allocations())
    except AttributeError:
        return -1


def _remember(things: dict[str, None], thing: str) -> None:
    things[thing if len(things) < MOST_LEFT else used_resources.UNSEEN] = None


def _shared(call: Call) -> list[tuple[str, str]]:
    """Return the shared objects of a call, without the program's folder and its plain settings.

    What one call leaves behind may be found by others that share an object with it. Plain settings
    keep nothing; where there are some, all calls of a graph share them.
    """
    first = 1 if "settings" in call.options else 0
    return call.shared[first : len(call.shared) - (1 if "program" in call.options else 0)]


def _is_reached(module: str, contents: Iterable[Optional[bytes]]) -> bool:
    """Whether what consists of this may use a module of the user's, directly or through others that name it."""
    names = [name.rpartition(".")[2].encode() for name in _users_of(module)]
    return any(content is None or any(name in content for name in names) for content in contents)


def _users_of(module: str) -> set[str]:
    """Return the user's own modules whose texts name a module, directly or through others."""
    own = {found.__name__: user_modules.source_path(found) or "" for found in user_modules.find_own_modules()}
    found, waiting = {module}, [module]
    while waiting:
        name = waiting.pop().rpartition(".")[2].encode()
        for other in own.keys() - found:
            if other not in _texts:
                try:
                    with open(own[other], "rb") as file:
                        _texts[other] = file.read()
                except OSError:
                    _texts[other] = name
            if name in _texts[other]:
                found.add(other)
                waiting.append(other)
    return found


NOBODY: frozenset[str] = frozenset()
_packages: dict[str, bool] = {}
_texts: dict[str, bytes] = {}


def _owners() -> Optional[frozenset[str]]:
    """Return the user's own modules on the stack; None if a package is being imported.

    A package belongs to the environment.
    """
    owners: set[str] = set()
    frame = _frame(2)
    for _ in range(MOST_FRAMES):
        if frame is None or frame.f_globals.get("__name__") == "vineworker.library.slot":
            break
        file, name = frame.f_code.co_filename, frame.f_globals.get("__name__")
        if not file.startswith(("<", *_ENGINE)):
            if file not in _packages:
                _packages[file] = user_modules.is_package_file(file)
            is_package = _packages[file]
            if is_package and frame.f_code.co_name == "<module>" and not owners:
                return None
            if not is_package and name != "__main__":
                stays = getattr(sys.modules.get(name), "__dict__", None) is frame.f_globals
                owners.update([name] if stays else [])
        frame = frame.f_back
    return frozenset(owners)
