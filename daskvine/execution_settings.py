"""Prepare the settings that all vertices of one ``get`` share, from environment to library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from daskvine.callbacks import TaskInfo
from daskvine.compiler import HELPERS, dumps
from daskvine.options import Options
from daskvine.program_folder import find_working_folder
from daskvine.program_state import collect_program_state
from daskvine.remote import task_functions, ttree_cache
from daskvine.shared_state import SharedState
from vinecore import validators
from vinecore.manager.files import File
from vinecore.manager.graphs import GraphHandle
from vinecore.manager.libraries import LibraryTask
from vinecore.manager.manager import Manager
from vinecore.protocol import used_resources
from vinecore.protocol.program_folders import Program
from vinecore.protocol.user_modules import is_package_module
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler.specs import FOREVER, TASK

LIBRARY_NAME = "Dask-Library"
MAX_SERIALIZED_SETUPS = 16
"""Setups of libraries that are kept as they are serialized."""


@dataclass(frozen=True)
class ExecutionSettings:
    """The settings that all vertices of one ``get`` share.

    Attributes
    ----------
    shared
        The state that all computations of the manager share.
    options
        The options of the ``get``.
    request
        The resources of a vertex.
    environment
        The name of the environment of all vertices; "" if there is none.
    private_archive
        The path of an archive that every vertex unpacks for itself; "" if there is none.
    mounts
        Names of the extra files.
    task_options
        The options of the tasks.
    per_task_env_vars
        Environment variables that a function chooses for each vertex.
    reuse
        Whether results have cache keys; a function says it of each vertex.
    cache_level
        How long workers keep results that have cache keys.
    """

    shared: SharedState
    options: Options
    request: ResourceRequest
    environment: str
    private_archive: str
    mounts: tuple[str, ...]
    task_options: dict[str, Any]
    per_task_env_vars: dict[str, Callable[..., str]]
    reuse: bool | Callable[..., Any]
    cache_level: int
    _libraries: list[str] = field(default_factory=list)

    @classmethod
    def prepare(cls, shared: SharedState, options: Options) -> ExecutionSettings:
        """Declare the environment and files of a computation, and collect its settings."""
        manager = shared.manager
        manager.set_scheduler(options.scheduling_mode)
        in_library = options.task_mode == "function-calls"
        environment = (
            "" if in_library or options.env_per_task else _declare_environment(manager, options.environment)
        )
        request = (
            ResourceRequest(**dict(options.resources or {"cores": 1}))  # type: ignore[arg-type]
            if options.resources_mode is None
            else ResourceRequest()
        )
        # True: the program's folders are the last of the shared objects of a task.
        task_options: dict[str, Any] = {"program": True}
        variables = {} if in_library else dict(options.env_vars or {})
        mounts: list[str] = []
        if not in_library:
            task_options["env"] = {name: value for name, value in variables.items() if isinstance(value, str)}
            if options.extra_files:
                task_options["mounts"] = [
                    [file.cache_name, remote, False] for file, remote in options.extra_files.items()
                ]
                mounts = [file.cache_name for file in options.extra_files]
        reuse = manager.resume if options.reuse is None else options.reuse
        if reuse:
            task_options["record"] = True
        if environment:
            task_options["environment"] = environment
        outlives = shared.workers_survive_manager and (
            bool(options.reuse) or shared.workers_stop_with_manager
        )
        return cls(
            shared=shared,
            options=options,
            request=request,
            environment=environment,
            private_archive=str(options.environment) if options.env_per_task and not in_library else "",
            mounts=tuple(mounts),
            task_options=task_options,
            per_task_env_vars={name: value for name, value in variables.items() if callable(value)},
            reuse=reuse,
            cache_level=FOREVER if outlives else TASK,
        )

    @property
    def differs_by_task(self) -> bool:
        """Return whether tasks have more of their own than `task_options` says."""
        return bool(self.per_task_env_vars or self.private_archive)

    def adapt_to_task(self, task: TaskInfo, graph: GraphHandle) -> tuple[str, dict[str, Any]]:
        """Return the environment and the options of one task, where they differ by task."""
        environment, options = self.environment, self.task_options
        if self.per_task_env_vars:
            chosen = self._environment_variables(self.per_task_env_vars, task)
            options = {**options, "env": {**options.get("env", {}), **chosen}}
        if self.private_archive:
            archive = self.shared.manager.declare_file(self.private_archive, cache=True)
            environment = graph.declare_private_environment(archive, task.id)
            options = {**options, "environment": environment}
        return environment, options

    def configure_category(self, category: str) -> str:
        """Let allocations of one kind of vertices follow measured usage; return the name of the category."""
        options, shared = self.options, self.shared
        name = f"dask:{category}:{options.resources_mode}:{sorted((options.resources or {}).items())}"
        if name not in shared.adaptive_categories:
            shared.adaptive_categories.add(name)
            shared.manager.tune("category-steady-n-tasks", 1)
            maximum = ResourceRequest(**dict(options.resources or {}))  # type: ignore[arg-type]
            shared.manager.define_category(name, str(options.resources_mode), maximum)
        return name

    def cache_key_context(self) -> tuple[Any, frozenset[str], dict[str, str]]:
        """Collect what any vertex depends on beside its own code and inputs.

        Returns
        -------
        tuple
            What belongs to cache keys, the files and variables whose states are among that, and the environment of vertices.
        """
        given = {
            name: value for name, value in (self.options.env_vars or {}).items() if isinstance(value, str)
        }
        variables = {**os.environ, **given}
        found = collect_program_state(variables)
        things = found.resources.union(
            used_resources.describe_variable(name, value) for name, value in given.items()
        )
        return (found.digest, self._options_context()), things, variables

    def _options_context(self) -> Any:
        options = self.options
        environment = options.environment
        if environment is not None and not isinstance(environment, File):
            environment = os.path.abspath(environment)
        files = [(file.cache_name, remote) for file, remote in (options.extra_files or {}).items()]
        named = environment.cache_name if isinstance(environment, File) else environment
        about = named, files, dict(options.env_vars or {}), options.lib_command, options.wrapper
        # A relative path means another file in another folder. Its digest, because a path would count with all that is in that folder.
        folder = hashlib.sha256(os.fsencode(find_working_folder())).hexdigest()
        return about, self.shared.registrations.digest(), folder

    def install_library(self, modules: set[str], *, records: bool = False) -> str:
        """Install the library that runs vertices.

        The same options and code give the same library, which may be running already. The processes of one with the same
        options and other code stop when no computation needs them.

        Parameters
        ----------
        modules
            What the graph's functions refer to: imported before the first fork, if the library is not running yet.
        records
            Whether its processes record from their start what they use.

        Returns
        -------
        str
            Its full name.
        """
        options, shared = self.options, self.shared
        manager = shared.manager
        extra = options.lib_extra_functions or ()
        library = LibraryTask(
            LIBRARY_NAME,
            [*HELPERS, *extra],
            modules=options.lib_modules or (),
            exec_mode="direct",
            before=[task_functions.load_dask, ttree_cache.install_ttree_cache],
        )
        if not all(map(is_package_module, options.lib_modules or ())):
            # The folders in which the modules are found.
            library.definition["program"] = shared.folders.describe_program()
        resources = dict(options.lib_resources or {})
        slots = resources.pop("slots", None)
        if slots is not None:
            library.set_function_slots(int(slots))
        for name, amount in resources.items():
            getattr(library, f"set_{name}")(amount)
        for name, value in self._environment_variables(options.env_vars or {}, library).items():
            library.set_env_var(name, value)
        for file, remote in (options.extra_files or {}).items():
            library.add_input(file, remote)
        if options.lib_command:
            library.set_command(options.lib_command)
        environment = _declare_environment(manager, options.environment)
        if environment:
            library.add_environment(File(manager, "poncho", environment))
        if records:
            library.set_env_var(used_resources.RECORDS, "1")
        library.preload = sorted(modules)
        setup = manager.declare_shared_bytes(
            dumps(library.definition) if extra else _serialize_usual_setup(library)
        )
        spec = library.make_spec(setup)
        alike = spec._replace(name="", setup="", options={**spec.options, "preload": ()})
        kind = repr((library.functions, library.definition["modules"], alike))
        self._libraries.append(spec.name)
        shared.library_versions.acquire(kind, spec.name, lambda: manager.install_library_spec(library, spec))
        return spec.name

    def close(self) -> None:
        """Release the library."""
        for name in self._libraries:
            self.shared.library_versions.release(name)

    def _environment_variables(
        self, chosen: Mapping[str, str | Callable[..., str]], task: Any
    ) -> dict[str, str]:
        """Return the environment variables of a task or library; functions are called with the manager and the task."""
        texts = {
            name: str(value(self.shared.manager, task)) if callable(value) else value
            for name, value in chosen.items()
        }
        return {name: str(validators.variable(name, text)[1]) for name, text in texts.items()}


def _declare_environment(manager: Manager, environment: File | str | None) -> str:
    """Declare a packed environment; return its name, "" if there is none."""
    if environment is None:
        return ""
    if isinstance(environment, File) and environment.kind in ("poncho", "untar"):
        return environment.cache_name
    if not isinstance(environment, File) and not os.path.isfile(environment):
        msg = f"the environment {environment} does not exist: pack one with conda-pack, venv-pack or poncho_package_create"
        raise FileNotFoundError(msg)
    return manager.declare_poncho(environment).cache_name


def _serialize_usual_setup(library: LibraryTask) -> bytes:
    """Serialize the setup of a library that has no functions but this package's own, which stay what they are."""
    setup = library.definition
    key = tuple(setup["modules"]), setup.get("program")
    found = _serialized_setups.get(key)
    if found is None:
        if len(_serialized_setups) >= MAX_SERIALIZED_SETUPS:
            _serialized_setups.clear()
        found = _serialized_setups[key] = dumps(setup)
    return found


_serialized_setups: dict[tuple[tuple[str, ...], Program | None], bytes] = {}
