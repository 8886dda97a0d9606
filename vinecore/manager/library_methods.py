"""The part of `Manager` that installs libraries of functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vinecore import keyword_arguments, validators
from vinecore.manager.compatibility import explain_mismatch, package_versions
from vinecore.manager.file_methods import FileMethods
from vinecore.manager.files import File
from vinecore.manager.libraries import ContextFunction, LibraryTask
from vinecore.manager.reloaded_modules import Renewals
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events, instructions
from vinecore.scheduler.specs import LibrarySpec

if TYPE_CHECKING:
    from vinecore.server.server import ManagerServer

log = logging.getLogger("vinecore")


class LibraryMethods(FileMethods):
    """Libraries.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.
    """

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        # By the names that the user has given them: the full name, and the functions.
        self._libraries: dict[str, tuple[str, list[str]]] = {}
        # What each library asks for.
        self._requests: dict[str, ResourceRequest] = {}
        # What each library is, whatever the text of the user's own modules.
        self._kinds: dict[str, str] = {}
        self._renewals = Renewals(lambda library: self._install(library, renewed=True))
        self._reported_versions: set[frozenset[tuple[str, str]]] = set()
        server.subscribe(instructions.LibraryStarted, self._on_library_started)

    @keyword_arguments.refuse_unknown
    def create_library_from_functions(self, library_name: str, *functions: Callable[..., Any], poncho_env: File | str | None = None,
                                      hoisting_modules: Sequence[Any] | None = None, exec_mode: str = "fork",
                                      library_context_info: ContextFunction | list[Any] | None = None,
                                      context_per_slot: bool = False) -> LibraryTask:  # fmt: skip
        """Make a library of functions, to be installed with `install_library`.

        Parameters
        ----------
        library_name
            What `FunctionCall` names it by.
        poncho_env
            The environment to run in: a declared file, or the path of an archive. None: the worker's own Python.
        hoisting_modules
            Imported once, before the slots are forked.
        exec_mode
            "fork": each call in a child process. "direct": one after another in a slot, which is faster.
        library_context_info
            ``[function, args, kwargs]``: a function that returns the variables to keep in the library.
        context_per_slot
            Build the context in each slot, instead of once before slots are forked: for threads, pools and CUDA, which do not survive a
            fork. Use it with exec_mode="direct": calls of "fork" are forked from their slot.
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
        if poncho_env is not None:
            library.add_environment(
                poncho_env if isinstance(poncho_env, File) else self.declare_poncho(poncho_env)
            )
        return library

    def install_library(self, library: LibraryTask) -> None:
        """Make a library available; workers start it when the first call comes.

        To install it again does nothing, unless one of the user's own modules has been edited: then new processes take the place of the old ones.
        When one has been reloaded, the next function call has that done.

        Raises
        ------
        ValueError
            Another library has that name.
        """
        if not isinstance(library, LibraryTask):
            validators.refuse(
                "library", library, "a LibraryTask, as m.create_library_from_functions makes it", TypeError
            )
        self._renewals.check()
        self._install(library)
        self._renewals.add(library)

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
            self._engine.post_event(events.LibraryRetired(known[0]))
        elif known is not None and known[0] != spec.name:
            msg = f"there is another library with the name {library.name!r}: remove it first with m.remove_library({library.name!r})"
            raise ValueError(msg)
        self._kinds[library.name] = library.kind
        self._enter_library(library, spec.name)
        self._engine.post_event(events.LibraryInstalled(spec))

    def install_library_spec(self, library: LibraryTask, spec: LibrarySpec) -> None:
        """Install a library whose specification the caller has made; function calls find it by the library's name.

        Unlike `install_library` this replaces another library of that name, which goes on until it is retired.
        """
        self._engine.post_event(events.LibraryInstalled(spec))
        self._enter_library(library, spec.name)

    def _enter_library(self, library: LibraryTask, full_name: str) -> None:
        """Remember what a library is called, and what can be called in it."""
        self._libraries[library.name] = (full_name, library.functions)
        self._requests[library.name] = library.request
        self._set_library_label(full_name, library.name)

    def retire_library(self, full_name: str) -> None:
        """Stop a library that another one has replaced, as soon as its unfinished calls have ended."""
        self._engine.post_event(events.LibraryRetired(full_name))

    def remove_library(self, name: str) -> None:
        """Stop a library everywhere; its unfinished calls come back as "missing library"."""
        known = self._libraries.pop(validators.text("name", name), None)
        self._renewals.remove(name)
        if known is not None:
            self._engine.post_event(events.LibraryRemoved(known[0]))

    def restart(self) -> None:
        """Have all that runs from now on run in new processes, on all workers.

        Ends the processes of all libraries, and those that single tasks are forked from: what they have imported, opened or kept in memory
        is gone, and the next call or task starts new ones. Calls that are running are run again there; single tasks that are
        running go on. Edits of your own modules need no restart; an installed package that was changed meanwhile does.
        """
        self._engine.post_event(events.Restarted())

    def check_library_exists(self, name: str) -> bool:
        """Whether a library of that name is installed."""
        return validators.text("name", name) in self._libraries

    def full_library_name(self, library: str, function: str) -> str:
        """Give the full name of an installed library.

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
        if function not in known[1]:
            msg = f"library {library!r} has no function {function!r}; it has: {', '.join(known[1])}"
            raise ValueError(msg)
        return known[0]

    def check_share(self, library: str, needs: ResourceRequest) -> None:
        """Make sure that a call needs no more than its library has.

        Raises
        ------
        ValueError
            It needs more.
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
