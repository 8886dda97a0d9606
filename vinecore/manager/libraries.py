"""Libraries: functions, and what they need, loaded once on a worker and called many times."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.manager.reloaded_modules import current
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.manager.tasks import declared
from vinecore.protocol.library_context import context_variables
from vinecore.protocol.serialization import exceptions, unpicklable, values
from vinecore.protocol.user_modules import count_loads, digest_own_modules, find_own_modules
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler.specs import LibrarySpec

if TYPE_CHECKING:
    from pathlib import Path

    from vinecore.manager.files import File

ContextFunction = tuple[Callable[..., dict[str, Any]], list[Any], dict[str, Any]]


class LibraryTask:
    """A library to be installed with `Manager.install_library`.

    Parameters
    ----------
    name : str
        What function calls name it by.
    functions : iterable of callable
        What can be called.
    modules : iterable of module or str
        What is imported before the first slot is forked.
    exec_mode : {"fork", "direct"}
        Whether each call has a child process of its own or slots run one call after another.
    context : (function, args, kwargs) or None
        A function that returns a dict of variables, called once in the library; the functions see them as globals, and through
        `load_variable_from_library`.
    before : iterable of callable
        Called once, after the imports.
    context_per_slot : bool
        Build the context in each slot, instead of once before slots are forked: for what does not survive a fork, such as threads, pools
        of them, and CUDA. With ``exec_mode="fork"`` calls are forked from the slot, so use "direct".
    """

    def __init__(self, name: str, functions: Iterable[Callable[..., Any]], *, modules: Iterable[types.ModuleType | str] = (),
                 exec_mode: str = "fork", context: ContextFunction | None = None, before: Iterable[Callable[[], Any]] = (),
                 context_per_slot: bool = False) -> None:  # fmt: skip
        if exec_mode not in ("fork", "direct"):
            msg = f"exec_mode={exec_mode!r}: use 'fork' (a child process for each call) or 'direct' (one call after another in a slot)"
            raise ValueError(msg)
        self.name, self.exec_mode = validators.label("name", name), exec_mode
        self.definition: dict[str, Any] = {
            "modules": module_names(modules),
            "functions": by_name(functions),
            "context": context,
            "before": list(before),
        }
        if validators.flag("context_per_slot", context_per_slot):
            self.definition["context_per_slot"] = True
        self._slots: int | None = None
        self._request: dict[str, float | None] = {}
        self._files: list[tuple[File, str]] = []
        self._environment: File | None = None
        self._variables: dict[str, str] = {}
        self._command = ""
        self.preload: list[str] = []
        self.kind = ""

    def set_cores(self, cores: float) -> None:
        """Cores that one unit of the library takes; the default is the whole worker."""
        self._request["cores"] = validators.amount("cores", cores)

    def set_memory(self, memory_mb: int) -> None:
        """Megabytes of memory that one unit takes."""
        self._request["memory"] = validators.megabytes("memory", memory_mb)

    def set_disk(self, disk_mb: int) -> None:
        """Megabytes of disk that one unit takes. If its slots write more than all its units have, the call in the slot that has written most fails."""
        self._request["disk"] = validators.megabytes("disk", disk_mb)

    def set_gpus(self, gpus: float) -> None:
        """Gpus that one unit takes."""
        self._request["gpus"] = validators.amount("gpus", gpus)

    def set_function_slots(self, slots: int) -> None:
        """Set the number of calls that run at the same time in one unit (default: one per core)."""
        self._slots = validators.slots("slots", slots)

    def add_input(self, file: File, remote_name: str | Path) -> None:
        """Have a file in the folder that the library runs in."""
        self._files.append((declared(file), check_sandbox_name(remote_name)))

    def add_environment(self, file: File) -> None:
        """Run the library in this environment (`Manager.declare_poncho`)."""
        self._environment = declared(file)

    def set_env_var(self, name: str, value: str) -> None:
        """Set an environment variable."""
        name, checked = validators.variable(name, value)
        self._variables[name] = str(checked)

    def set_command(self, prefix: str) -> None:
        """Put a command before the one that starts the library."""
        self._command = validators.text("prefix", prefix)

    @property
    def request(self) -> ResourceRequest:
        """What one unit of it asks for; None where it says nothing, and takes what the worker has."""
        return ResourceRequest(**self._request)  # type: ignore[arg-type]

    def refresh(self) -> None:
        """Take functions of modules that have been reloaded as they are now."""
        setup = self.definition
        setup["functions"] = {name: current(function) for name, function in setup["functions"].items()}
        setup["before"] = [current(function) for function in setup["before"]]
        if setup["context"] is not None:
            function, *arguments = setup["context"]
            setup["context"] = (current(function), *arguments)

    def serialize(self) -> bytes:
        """Serialize what the library loads."""
        try:
            return values.dumps(self.definition, by_value=True)
        except Exception as error:
            what = unpicklable.describe_unpicklable(self.definition)
            exceptions.add_note(error, f"library {self.name} cannot be sent to workers: {what}")
            raise

    @property
    def files(self) -> list[File]:
        """All files it needs, beside its setup."""
        return [file for file, _name in self._files] + ([self._environment] if self._environment else [])

    @property
    def functions(self) -> list[str]:
        """Names of the functions."""
        return list(self.definition["functions"])

    def make_spec(self, setup: str) -> LibrarySpec:
        """Describe it to the mind; equal libraries get equal names."""
        options: dict[str, Any] = {"label": self.name}
        if self._variables:
            options["env"] = dict(self._variables)
        if self._command:
            options["command"] = self._command
        if self._files:
            options["mounts"] = [[file.cache_name, remote, False] for file, remote in self._files]
        environment = self._environment.cache_name if self._environment else ""
        request = ResourceRequest(**self._request)  # type: ignore[arg-type]
        key = repr((setup, self._slots, request, environment, self.exec_mode, sorted(options.items())))
        self.kind = hashlib.sha256(key.encode()).hexdigest()
        # The user's own modules are known by their text, and by when they were imported: new processes import what was edited or reloaded.
        modules = list(find_own_modules())
        own = f"{digest_own_modules(modules)} {count_loads(modules)}"
        name = f"{self.name}-{hashlib.sha256((self.kind + own).encode()).hexdigest()[:16]}"
        if self.preload:  # only a head start for the first slots: not part of what the library is
            options["preload"] = self.preload
        files = tuple(file.cache_name for file, _remote in self._files)
        return LibrarySpec(name, setup, self._slots, request, environment, self.exec_mode, files, options)


def by_name(functions: Iterable[Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Give functions by the names that calls know them by.

    Raises
    ------
    TypeError
        Something cannot be called, or has no name.
    ValueError
        Two of them have the same name.
    """
    if callable(functions) or isinstance(functions, str) or not isinstance(functions, Iterable):
        validators.refuse("functions", functions, "a list of functions", TypeError)
    named: dict[str, Callable[..., Any]] = {}
    for function in functions:
        name = getattr(function, "__name__", None)
        if not callable(function) or not isinstance(name, str):
            what = "has no name to call it by" if callable(function) else "cannot be called"
            msg = f"{function!r} {what}: a library takes functions, such as those that def makes"
            raise TypeError(msg)
        other = named.setdefault(name, function)
        if other is not function:
            hint = "give each a name of its own, with def" if name == "<lambda>" else "rename one of them"
            msg = f"two functions of a library are called {name!r}: {_place(other)} and {_place(function)}. Calls could not tell them apart: {hint}"
            raise ValueError(msg)
    return named


def _place(function: Callable[..., Any]) -> str:
    """Say where a function was defined."""
    code = getattr(function, "__code__", None)
    return repr(function) if code is None else f"line {code.co_firstlineno} of {code.co_filename}"


def module_names(modules: Iterable[types.ModuleType | str]) -> list[str]:
    """Names to import on a worker.

    Raises
    ------
    TypeError
        Something is neither a module nor a name.
    """
    if isinstance(modules, str | bytes | types.ModuleType) or not isinstance(modules, Iterable):
        validators.refuse("modules", modules, "a list of modules and names of modules", TypeError)
    names: list[str] = []
    for module in modules:
        if isinstance(module, types.ModuleType):
            names.append(module.__name__)
        elif isinstance(module, str):
            names.append(module)
        else:
            msg = f"modules: {module!r} is neither a module nor the name of one"
            raise TypeError(msg)
    return names


def load_variable_from_library(name: str) -> Any:
    """Inside a function of a library: give a variable that the library's context function has made.

    Raises
    ------
    KeyError
        There is no such variable here.
    """
    try:
        return context_variables[name]
    except KeyError:
        msg = f"the library's context has no variable {name!r}; it has: {', '.join(sorted(context_variables)) or 'none'}"
        raise KeyError(msg) from None
