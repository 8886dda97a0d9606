"""The part of `Manager` that installs libraries of functions."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vinecore import keyword_arguments, validators
from vinecore.manager.compatibility import explain_mismatch, package_versions
from vinecore.manager.file_methods import FileMethods
from vinecore.manager.files import File
from vinecore.manager.libraries import ContextFunction, LibraryTask
from vinecore.manager.reloaded_modules import LibraryRenewals
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events, instructions
from vinecore.scheduler.specs import LibrarySpec

if TYPE_CHECKING:
    from pathlib import Path

    from vinecore.server.server import ManagerServer

log = logging.getLogger("vinecore")


@runtime_checkable
class LibraryMaker(Protocol):
    """A task that provides a library, as far as the installation uses it."""

    def make_library(self) -> LibraryTask:
        """Return the library."""
        ...


class LibraryMethods(FileMethods):
    """Libraries.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.
    """

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        # By the names that the user has given them: the full name, and the functions, None for any.
        self._libraries: dict[str, tuple[str, list[str] | None]] = {}
        # What each library asks for.
        self._requests: dict[str, ResourceRequest] = {}
        # What each library is, whatever the text of the user's own modules.
        self._kinds: dict[str, str] = {}
        self._renewals = LibraryRenewals(lambda library: self._install(library, renewed=True))
        self._reported_versions: set[frozenset[tuple[str, str]]] = set()
        server.subscribe(instructions.LibraryStarted, self._on_library_started)

    @keyword_arguments.refuse_unknown
    def create_library_from_functions(self, library_name: str, *functions: Callable[..., Any], poncho_env: File | str | None = None,
                                      init_command: str | None = None, add_env: bool = True,
                                      hoisting_modules: Sequence[Any] | None = None, exec_mode: str = "fork",
                                      library_context_info: ContextFunction | list[Any] | None = None,
                                      context_per_slot: bool = False) -> LibraryTask:  # fmt: skip
        """Make a library of functions, to be installed with `install_library`.

        Parameters
        ----------
        library_name : str
            The name by which `FunctionCall` finds the library.
        *functions : callable
            The functions that can be called.
        poncho_env : File, str or None
            The environment in which the library runs, or the path of its archive; None for the
            worker's own Python.
        init_command : str or None
            A shell command that runs before the Python of the library, as for
            `LibraryTask.set_init_command`.
        add_env : bool
            With False ``poncho_env`` is not used, as in TaskVine: its callers add an environment to
            the library themselves. The running environment is never packed: a library without an
            environment runs in the Python of its worker, which the manager has checked.
        hoisting_modules : sequence of module, str, function or class, or None
            The modules that are imported once, before the slots are forked; a function or class
            stands for its module.
        exec_mode : {"fork", "direct"}
            "fork": each call has a child process. "direct": a slot runs one call after another,
            which is faster.
        library_context_info : list or tuple, or None
            ``[function, args, kwargs]``: a function that returns the variables to keep in the
            library.
        context_per_slot : bool
            Whether each slot builds the context itself, as for `LibraryTask`.

        Returns
        -------
        LibraryTask
            The library, whose resources and files can still be set.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type, two functions have the same name, or there is no such
            ``exec_mode``.
        FileNotFoundError
            There is no such environment.
        """
        context: ContextFunction | None = None
        if library_context_info is not None:
            context = _context(library_context_info)
        library = LibraryTask(
            library_name,
            functions,
            modules=() if hoisting_modules is None else hoisting_modules,
            exec_mode=exec_mode,
            context=context,
            context_per_slot=context_per_slot,
        )
        if init_command not in (None, ""):
            library.set_init_command(init_command)
        if validators.flag("add_env", add_env) and poncho_env is not None:
            library.add_environment(
                poncho_env if isinstance(poncho_env, File) else self.declare_poncho(poncho_env)
            )
        return library

    @keyword_arguments.refuse_unknown
    def create_library_from_command(
        self, executable_path: str | Path, name: str, env: File | str | None = None
    ) -> LibraryTask:
        """Make a library of a program in any language, to be installed with `install_library`.

        The program keeps to the protocol of docs/library-programs.md. `FunctionCall` calls its
        functions with what JSON can say, or with bytes as the only argument.

        Parameters
        ----------
        executable_path : str or Path
            The path of the program, which is sent to the workers. A text may have arguments after
            the path, and may begin with a command that workers have instead of a path.
        name : str
            The name by which `FunctionCall` finds the library, and which the program tells.
        env : File, str or None
            The environment in which the program runs, or the path of its archive.

        Returns
        -------
        LibraryTask
            The library, whose resources and files can still be set.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type, or is empty.
        FileNotFoundError
            There is no such environment.
        """
        text = validators.command("executable_path", validators.path("executable_path", executable_path))
        words = [text] if os.path.isfile(text) else shlex.split(text)
        sent = os.path.isfile(words[0])
        command = ["./" + os.path.basename(words[0]) if sent else words[0], *words[1:]]
        library = LibraryTask(shlex.join(command), name)
        if sent:
            library.add_input(self.declare_file(words[0], cache=True), os.path.basename(words[0]))
        if env is not None:
            library.add_environment(env if isinstance(env, File) else self.declare_poncho(env))
        return library

    @keyword_arguments.refuse_unknown
    def create_library_from_serverized_files(
        self, library_name: str, library_path: str | Path, env: File | str | None = None
    ) -> LibraryTask:
        """Make a library of a Python program as ``poncho_package_serverize`` writes it.

        The program keeps to the protocol of docs/library-programs.md, and exchanges pickles.

        Parameters
        ----------
        library_name : str
            The name by which `FunctionCall` finds the library, and which the program tells.
        library_path : str or Path
            The path of the program.
        env : File, str or None
            The environment whose Python runs the program, or the path of its archive.

        Returns
        -------
        LibraryTask
            The library, whose resources and files can still be set.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type, or is empty.
        FileNotFoundError
            There is no such program or environment.
        """
        path = validators.path("library_path", library_path)
        if not os.path.isfile(path):
            msg = f"library_path={path!r}: there is no such file"
            raise FileNotFoundError(msg)
        library = LibraryTask("python3 ./library_code.py", library_name)
        library.exchange_pickles()
        library.add_input(self.declare_file(path, cache=True), "library_code.py")
        if env is not None:
            library.add_environment(env if isinstance(env, File) else self.declare_poncho(env))
        return library

    def install_library(self, task: LibraryTask | LibraryMaker) -> None:
        """Make a library available; workers start it when they get its first call.

        A second installation does nothing, unless one of the user's own modules has been edited:
        then new processes replace the old ones. If a module has been reloaded, the next function
        call does that.

        Parameters
        ----------
        task : LibraryTask or Task
            The library; a `Task` must have a name from `Task.set_library_provided`.

        Raises
        ------
        TypeError
            It is no library.
        ValueError
            Another library has that name.
        """
        if isinstance(task, LibraryMaker):
            task = task.make_library()
        if not isinstance(task, LibraryTask):
            validators.refuse(
                "task", task, "a LibraryTask, as m.create_library_from_functions makes it", TypeError
            )
        self._renewals.check()
        self._install(task)
        self._renewals.add(task)

    def _install(self, library: LibraryTask, *, renewed: bool = False) -> None:
        library.refresh()
        setup = self.declare_shared_bytes(library.serialize())
        spec = library.make_spec(setup)
        known = self._libraries.get(library.name)
        if (
            known is not None
            and known[0] != spec.name
            and (renewed or self._kinds.get(library.name) == library.kind)
        ):
            # the same, but for the text of the user's own modules
            self._server.post_event(events.LibraryRetired(known[0]))
        elif known is not None and known[0] != spec.name:
            msg = f"there is another library with the name {library.name!r}: remove it first with m.remove_library({library.name!r})"
            raise ValueError(msg)
        self._kinds[library.name] = library.kind
        self._enter_library(library, spec.name)
        self._server.post_event(events.LibraryInstalled(spec))

    def install_library_spec(self, library: LibraryTask, spec: LibrarySpec) -> None:
        """Install a library with a given specification.

        Unlike `install_library` this replaces another library of that name, which runs until it is
        retired.

        Parameters
        ----------
        library : LibraryTask
            The library.
        spec : LibrarySpec
            The library as the scheduler gets it.
        """
        self._server.post_event(events.LibraryInstalled(spec))
        self._enter_library(library, spec.name)

    def _enter_library(self, library: LibraryTask, full_name: str) -> None:
        """Remember what a library is called, and what can be called in it."""
        self._libraries[library.name] = (full_name, None if library.program else library.functions)
        self._requests[library.name] = library.request
        self._set_library_label(full_name, library.name)

    def retire_library(self, full_name: str) -> None:
        """Stop a library that another one has replaced, as soon as its unfinished calls have ended.

        Parameters
        ----------
        full_name : str
            The name of its specification.
        """
        self._server.post_event(events.LibraryRetired(full_name))

    def remove_library(self, name: str) -> None:
        """Stop a library on all workers; unfinished calls get the result "missing library".

        Parameters
        ----------
        name : str
            The name of the library; an unknown one is ignored.

        Raises
        ------
        TypeError, ValueError
            The name is not a text.
        """
        known = self._libraries.pop(validators.text("name", name), None)
        self._renewals.remove(name)
        if known is not None:
            self._server.post_event(events.LibraryRemoved(known[0]))

    def restart(self) -> None:
        """Replace the processes of all libraries and fork servers on all workers by new ones.

        Modules, open files and values in memory of the old processes are gone. Calls that are
        running run again in new processes; Python tasks that are running continue. This is needed
        after a change of an installed package; edits of the user's own modules need no restart.
        """
        self._server.post_event(events.Restarted())

    def check_library_exists(self, library_name: str) -> bool:
        """Return whether a library is installed.

        Parameters
        ----------
        library_name : str
            The name of the library.

        Returns
        -------
        bool
            Whether `install_library` was called, and `remove_library` was not.

        Raises
        ------
        TypeError, ValueError
            The name is not a text.
        """
        return validators.text("library_name", library_name) in self._libraries

    def full_library_name(self, library: str, function: str) -> str:
        """Return the name of the specification of an installed library.

        Parameters
        ----------
        library, function : str
            The name of the library, and of the function that is called.

        Returns
        -------
        str
            The name by which the scheduler and the workers know the library.

        Raises
        ------
        ValueError
            There is no such library, or it has no such function.
        """
        self._renewals.check()
        known = self._libraries.get(library)
        if known is None:
            msg = f"no library {library!r} is installed; installed: {', '.join(self._libraries) or 'none'}"
            raise ValueError(msg)
        if known[1] is None:
            if len(function.split()) != 1:
                msg = f"function={function!r}: the name of a function of a program has no spaces"
                raise ValueError(msg)
        elif function not in known[1]:
            msg = f"library {library!r} has no function {function!r}; it has: {', '.join(known[1])}"
            raise ValueError(msg)
        return known[0]

    def check_share(self, library: str, needs: ResourceRequest) -> None:
        """Check that a call needs no more than its library has.

        Parameters
        ----------
        library : str
            The name of the library.
        needs : ResourceRequest
            The resources that the call needs.

        Raises
        ------
        ValueError
            The call needs more.
        """
        for name, asked, has in zip(ResourceRequest._fields, needs, self._requests[library], strict=True):
            if asked is not None and has is not None and asked > has:
                msg = (
                    f"the call asks for {name}={asked}, but its library {library!r} has {name}={has}, which its calls share: "
                    f"ask for no more, or give the library more with library.set_{name}(...); a PythonTask has resources of its own"
                )
                raise ValueError(msg)

    def _on_library_started(self, up: instructions.LibraryStarted) -> None:
        """Warn, before the first task, of versions that will not understand each other's pickles: once, however many workers have them."""
        versions = frozenset(up.versions.items())
        if versions in self._reported_versions:
            return
        self._reported_versions.add(versions)
        packages = {name: version for name, version in up.versions.items() if name != "python"}
        text = explain_mismatch(
            {"packages": package_versions()}, {"packages": packages}, f"worker {up.worker}"
        )
        if text is not None:
            log.warning("%s", text)


def _context(given: Any) -> ContextFunction:
    """Understand a function with its arguments."""
    about: list[Any] = list(given) if isinstance(given, list | tuple) else []
    function, args, kwargs = (*about, *(None, [], {})[len(about) :])[:3]
    fits = callable(function) and isinstance(args, list | tuple) and isinstance(kwargs, dict)
    if not fits or len(about) > 3:
        allowed = "[function, args, kwargs], such as [load, ['a.json'], {}]"
        validators.refuse("library_context_info", given, allowed, TypeError)
    return function, list(args), dict(kwargs)
