"""Libraries: functions, and what they need, loaded once on a worker and called many times."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.manager.files import File, check_declared
from vinecore.manager.reloaded_modules import current
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.protocol import used_resources
from vinecore.protocol.serialization import exceptions, unpicklable, values
from vinecore.protocol.user_modules import count_loads, digest_own_modules, find_own_modules
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler.specs import LibrarySpec

if TYPE_CHECKING:
    from pathlib import Path


ContextFunction = tuple[Callable[..., dict[str, Any]], list[Any], dict[str, Any]]


class LibraryTask:
    """A library to be installed with `Manager.install_library`.

    Parameters
    ----------
    name : str
        The name by which calls find the library.
    functions : iterable of callable, or str
        The functions that can be called. With a text, the parameters have TaskVine's order: the
        first is a shell command that starts a program, which keeps to the protocol of
        docs/library-programs.md, and the second is the name of the library.
    modules : iterable of module or str
        The modules that are imported before the first slot is forked.
    exec_mode : {"fork", "direct"}
        Whether each call has a child process of its own, or slots run one call after another.
    context : (function, args, kwargs) or None
        A function that returns a dict of variables, called once in the library. Functions see these
        variables as globals, and through `load_variable_from_library`.
    before : iterable of callable
        Functions that are called once, after the imports.
    context_per_slot : bool
        Whether each slot builds the context itself. This is for objects that do not survive a fork,
        such as threads and CUDA contexts. With ``exec_mode="fork"`` calls are forked from the slot,
        so use "direct".

    Raises
    ------
    TypeError, ValueError
        A value has a wrong type, two functions have the same name, or there is no such
        ``exec_mode``.
    """

    def __init__(self, name: str, functions: Iterable[Callable[..., Any]] | str, *, modules: Iterable[types.ModuleType | str] = (),
                 exec_mode: str = "fork", context: ContextFunction | None = None, before: Iterable[Callable[[], Any]] = (),
                 context_per_slot: bool = False) -> None:  # fmt: skip
        self.program = ""
        if isinstance(functions, str):
            self.program = validators.command("command", name)
            name, functions, exec_mode = functions, (), "direct"
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
        self._command = self._init_command = ""
        self._has_pickles = False
        self.preload: list[str] = []
        self.kind = ""

    def set_cores(self, cores: float) -> None:
        """Set the cores of one unit of the library; the default is the whole worker.

        Parameters
        ----------
        cores : float
            Number of cores.

        Raises
        ------
        TypeError, ValueError
            It is not a number of 0 or more.
        """
        self._request["cores"] = validators.amount("cores", cores)

    def set_memory(self, memory_mb: int) -> None:
        """Set the memory of one unit of the library.

        Parameters
        ----------
        memory_mb : int
            Memory in MB.

        Raises
        ------
        TypeError, ValueError
            It is not a number of 0 or more.
        """
        self._request["memory"] = validators.megabytes("memory", memory_mb)

    def set_disk(self, disk_mb: int) -> None:
        """Set the disk space of one unit of the library.

        If the slots write more than all units have, the call in the slot that has written most
        fails.

        Parameters
        ----------
        disk_mb : int
            Disk space in MB.

        Raises
        ------
        TypeError, ValueError
            It is not a number of 0 or more.
        """
        self._request["disk"] = validators.megabytes("disk", disk_mb)

    def set_gpus(self, gpus: float) -> None:
        """Set the gpus of one unit of the library.

        Parameters
        ----------
        gpus : float
            Number of gpus.

        Raises
        ------
        TypeError, ValueError
            It is not a number of 0 or more.
        """
        self._request["gpus"] = validators.amount("gpus", gpus)

    def set_function_exec_mode_from_string(self, exec_mode: str) -> None:
        """Set whether each call has a child process of its own; a program tells that itself.

        Parameters
        ----------
        exec_mode : {"fork", "direct"}
            As for the constructor.

        Raises
        ------
        TypeError, ValueError
            It is neither.
        """
        mode = validators.exec_mode("exec_mode", exec_mode)
        if not self.program:
            self.exec_mode = mode

    def set_function_slots(self, slots: int) -> None:
        """Set the number of calls that run at the same time in one unit (default: one per core).

        Parameters
        ----------
        slots : int
            Number of slots.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number of 1 or more.
        """
        self._slots = validators.slots("slots", slots)

    def add_input(self, file: File, remote_name: str | Path) -> None:
        """Make a file available in the folder in which the library runs.

        Parameters
        ----------
        file : File
            The file, declared with the manager that installs the library.
        remote_name : str or Path
            The relative path of the file in this folder.

        Raises
        ------
        TypeError
            The file is not declared, or the name has a wrong type.
        ValueError
            The name leads out of the folder.
        """
        self._files.append((check_declared(file), check_sandbox_name(remote_name)))

    def add_environment(self, file: File) -> None:
        """Run the library in a packed environment.

        Parameters
        ----------
        file : File
            The environment, from `Manager.declare_poncho`.

        Raises
        ------
        TypeError
            The file is not declared.
        """
        self._environment = check_declared(file)

    def set_env_var(self, name: str, value: str) -> None:
        """Set an environment variable of the library's processes.

        Parameters
        ----------
        name, value : str
            The variable and its value.

        Raises
        ------
        ValueError
            The name or the value cannot be that of an environment variable.
        """
        name, checked = validators.variable(name, value)
        self._variables[name] = str(checked)

    def set_command(self, prefix: str) -> None:
        """Put a command before the one that starts the library.

        Parameters
        ----------
        prefix : str
            The beginning of the command line, which has to run the rest of it.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or cannot be sent.
        """
        self._command = validators.text("prefix", prefix)

    def set_init_command(self, command: str) -> None:
        """Run a shell command before the Python of the library starts.

        What it changes holds for the library: environment variables, the umask, limits. If it
        changes which ``python3`` the search path finds, the library runs in that Python. If it
        fails, so does the start of the library.

        Parameters
        ----------
        command : str
            A command for bash, or for ``/bin/sh`` on a worker without bash. It runs in the folder of
            the library, with its files, variables and environment.

        Raises
        ------
        TypeError, ValueError
            It is empty or no text, or cannot be sent.
        """
        self._init_command = validators.command("init_command", command)

    def exchange_pickles(self) -> None:
        """Exchange pickles instead of JSON with the program of a library from a command.

        The program gets ``{"fn_args": args, "fn_kwargs": kwargs}``, and returns ``{"Success": bool,
        "Result": value, "Reason": text}``, as the programs that ``poncho_package_serverize`` makes.
        """
        self._has_pickles = True

    @property
    def request(self) -> ResourceRequest:
        """The resources of one unit; None for a resource that was not set."""
        return ResourceRequest(**self._request)  # type: ignore[arg-type]

    def refresh(self) -> None:
        """Replace functions of modules that have been reloaded by their present versions."""
        setup = self.definition
        setup["functions"] = {name: current(function) for name, function in setup["functions"].items()}
        setup["before"] = [current(function) for function in setup["before"]]
        if setup["context"] is not None:
            function, *arguments = setup["context"]
            setup["context"] = (current(function), *arguments)

    def serialize(self) -> bytes:
        """Serialize modules, functions and context.

        Returns
        -------
        bytes
            The content of the file that workers load.
        """
        try:
            return values.dumps(self.definition, by_value=True)
        except Exception as error:
            what = unpicklable.describe_unpicklable(self.definition)
            exceptions.add_note(error, f"library {self.name} cannot be sent to workers: {what}")
            raise

    @property
    def files(self) -> list[File]:
        """All files of the library, with its environment, except the serialized functions."""
        return [file for file, _name in self._files] + ([self._environment] if self._environment else [])

    def covered_resources(self) -> list[str]:
        """Return the variables of the library, as `vinecore.protocol.used_resources` describes them.

        Returns
        -------
        list of str
            A description for each variable that was set.
        """
        return [used_resources.describe_variable(*pair) for pair in self._variables.items()]

    @property
    def functions(self) -> list[str]:
        """The names of the functions."""
        return list(self.definition["functions"])

    def make_spec(self, setup: str) -> LibrarySpec:
        """Describe the library for the scheduler; equal libraries get equal names.

        Parameters
        ----------
        setup : str
            The cache name of the serialized functions.

        Returns
        -------
        LibrarySpec
            The library as the scheduler gets it.
        """
        options: dict[str, Any] = {"label": self.name}
        if self._variables:
            options["env"] = dict(self._variables)
        if self._command:
            options["command"] = self._command
        if self._init_command:
            options["init_command"] = self._init_command
        if self.program:
            options["library_program"] = self.program
            slots = self._slots or max(1, int(self._request.get("cores") or 0))
            if self._slots is not None or self._request.get("cores"):
                options["program_slots"] = slots
            if self._has_pickles:
                options["pickled"] = True
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
    """Return functions by the names that calls use.

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
    """Describe the place where a function was defined."""
    code = getattr(function, "__code__", None)
    return repr(function) if code is None else f"line {code.co_firstlineno} of {code.co_filename}"


def module_names(modules: Iterable[types.ModuleType | str | Callable[..., Any]]) -> list[str]:
    """Return the names to import on a worker; a function or class stands for its module.

    One of the script itself stands for nothing: it travels with the functions that use it.

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
        elif isinstance(module, types.FunctionType | type):
            if module.__module__ != "__main__":
                names.append(module.__module__)
        else:
            msg = f"modules: {module!r} is neither a module nor the name of one"
            raise TypeError(msg)
    return names
