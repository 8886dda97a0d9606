"""`DaskVine`: a vine manager that is a dask scheduler."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import dask

from daskvine.annotations import collect_annotations, read_annotations
from daskvine.compiler import HELPERS, SharedObjects, dumps
from daskvine.computation import GraphComputation
from daskvine.graph import Graph, arrange_results, flat_keys, gc_disabled, to_task_spec_graph
from daskvine.library_replacement import Replacements
from daskvine.options import Options
from daskvine.program_folder import ProgramFolders, working_folder
from daskvine.program_state import look
from daskvine.registrations import Registrations
from daskvine.remote import task_functions, ttree_cache
from daskvine.shuffle import without_folders
from daskvine.tree_reduction import rewrite_wide_reductions
from vinecore import validators
from vinecore.factory import Factory
from vinecore.manager.files import File
from vinecore.manager.libraries import LibraryTask
from vinecore.manager.manager import Manager
from vinecore.manager.startup import DEFAULT_PORT
from vinecore.protocol import temporary_folders, used_resources
from vinecore.protocol.program_folders import Program
from vinecore.protocol.user_modules import is_package_module
from vinecore.resources.amounts import ResourceRequest
from vinecore.resources.categories import parse_mode
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import FileSpec
from vinecore.security import shared_secret as password

log = logging.getLogger("daskvine")

LIBRARY_NAME = "Dask-Library"
MOST_LOCAL = 10_000
ELSEWHERE = {
    **dict.fromkeys(("n_workers", "num_workers", "nworkers", "processes"), "workers"),
    **dict.fromkeys(("threads_per_worker", "nthreads", "threads", "ncores"), "cores"),
    **dict.fromkeys(("memory", "memory_limit"), "memory_mb"),
    **dict.fromkeys(("disk", "disk_limit"), "disk_mb"),
    **dict.fromkeys(("local_directory", "scratch_dir"), "workspace"),
}
"""What other ways of starting workers call the options of `DaskVine.local`."""
LOOPBACK = "127.0.0.1"
MOST_SETUPS = 16
"""Of libraries, that are remembered as they are serialized."""


class ExecutionSettings(NamedTuple):
    """What all vertices of one `get` have in common."""

    request: ResourceRequest
    environment: str
    unpack_per_task: str  # an archive that every vertex unpacks for itself
    mounts: tuple[str, ...]
    task_options: dict[str, Any]
    per_task_env_vars: dict[str, Callable[..., str]]  # variables that are chosen for each vertex


class DaskVine(Manager):
    """Computes dask collections on the workers that connect to it.

    Parameters
    ----------
    port, name, **more
        As those of `vinecore.Manager`.

    Examples
    --------
    >>> with DaskVine.local(cores=2) as m:  # doctest: +SKIP
    ...     hist.compute(scheduler=m.get, task_mode="function-calls", lib_resources={"cores": 2, "slots": 2})
    """

    def __init__(self, port: Any = DEFAULT_PORT, name: str | None = None, **more: Any) -> None:
        super().__init__(port, name, **more)
        self.shared_objects = SharedObjects(self)
        self.registrations = Registrations()
        self.last_run: GraphComputation | None = None
        self.workers_survive_manager = True  # and so may what they keep
        self.workers_stop_with_manager = False  # but not what they keep for ever
        self._computations: dict[int, GraphComputation] = {}
        self._computation_numbers = itertools.count(1)
        self._adaptive_categories: set[str] = set()
        self.graphs: Counter[str] = Counter()  # that were computed, by what they make
        self._replacements = Replacements(lambda name: self._engine.post_event(e.LibraryRetired(name)))
        self.cache_key_lock = (
            threading.Lock()
        )  # who names results by recipes must not meet another one who makes the same
        self._close_callbacks.append(_SHUFFLING.enable())
        self.folders = ProgramFolders()
        self._close_callbacks.append(self.folders.close)
        self._engine.subscribe(i.GraphFinished, self._on_graph_finished)
        self._engine.subscribe(i.GraphTaskFinished, self._on_vertex_finished)

    @classmethod
    def local(
        cls,
        workers: int = 1,
        cores: int | None = None,
        memory_mb: int | None = None,
        disk_mb: int | None = None,
        *,
        workspace: str | Path | None = None,
        **more: Any,
    ) -> DaskVine:
        """Start a manager on this machine, with workers of its own.

        Parameters
        ----------
        workers
            How many worker processes; one that dies is replaced. With 0 there are none until `scale` asks for some.
        cores, memory_mb, disk_mb
            What each worker offers; None for an equal share of what this machine has.
        workspace
            A folder in which the workers leave what a later manager can use: results of ``reuse=True``, and files of the cache level
            "forever". None leaves nothing.
        **more
            As those of `DaskVine`.

        Returns
        -------
        DaskVine
            To be used in a ``with`` statement, or closed with `close`: that ends the workers and removes all their files.
        """
        _check_options(more)
        workers = validators.whole("workers", workers, 0, MOST_LOCAL)
        cores = None if cores is None else validators.whole("cores", cores, 1)
        memory_mb, disk_mb = (
            validators.megabytes("memory_mb", memory_mb),
            validators.megabytes("disk_mb", disk_mb),
        )
        if workspace is not None:
            workspace = validators.path("workspace", workspace)
        folder = Path(temporary_folders.create_folder("daskvine-"))
        secret = folder / "secret"
        if workspace is not None:
            workspace = Path(workspace).expanduser()
            workspace.mkdir(parents=True, exist_ok=True, mode=0o700)
            secret = workspace / "secret"  # who has another one does not get what is kept there
        password.write_secret(secret)
        try:
            # announced to nobody, because nobody else has its secret
            own = {"password_file": secret, "registry": False, "catalog": False}
            m = cls(**{"port": 0, "address": LOOPBACK, "shutdown": True, **own, **more})
        except BaseException:
            temporary_folders.remove_folder(str(folder))
            raise
        m._close_callbacks.append(lambda: temporary_folders.remove_folder(str(folder)))
        m.folders.here_only = more.get("address", LOOPBACK) == LOOPBACK
        if cores is None:
            cores = max(1, _available_cores() // max(1, workers))
        try:
            m.factory = Factory(
                "local",
                manager=m,
                min_workers=workers,
                max_workers=workers,
                cores=cores,
                memory=memory_mb,
                disk=disk_mb,
                workspace=workspace,
                keep_workspace=workspace is not None,
            ).start()
        except BaseException:
            m.close()
            raise
        m._close_callbacks.append(m.factory.stop)
        m.workers_survive_manager, m.workers_stop_with_manager = workspace is not None, True
        if m.resume and workspace is None:
            log.warning(
                "resume=True finds nothing after these workers, which end with their manager: add workspace='my-cache', or start workers with vine_worker"
            )
        m._engine.post_event(e.SettingChanged("expected-workers", workers))
        return m

    # ---- the dask door

    def get(self, dsk: Any = None, keys: Any = None, **kwargs: Any) -> Any:
        """Compute the keys of a graph: what dask calls a scheduler.

        Parameters
        ----------
        dsk
            A graph in any form that dask hands over. Without one, this method itself is returned, so that ``scheduler=m.get()`` works, too.
        keys
            A key, or a nested list of keys.
        **kwargs
            The options; `daskvine.options.describe` lists them.

        Returns
        -------
        object
            The value of the key, or tuples of values nested as the keys are.

        Raises
        ------
        TypeError, ValueError
            An option is unknown or has a value that it does not take.
        Exception
            What a vertex has raised, with its own type, the remote traceback, and notes that say where.
        """
        if dsk is None:
            return self.get
        self._engine.ensure_open()
        options = Options.parse(kwargs)
        with gc_disabled():
            annotated = collect_annotations(dsk)
            nodes = without_folders(to_task_spec_graph(dsk))
            if options.reconstruct is not False:
                nodes = rewrite_wide_reductions(nodes, options.merge_size if options.reconstruct else None)
            graph = Graph(nodes, flat_keys(keys))
        annotations = read_annotations(annotated, graph, options)
        run = GraphComputation(self, graph, options, next(self._computation_numbers), annotations)
        self._computations[run.number] = run
        self.last_run = run
        try:
            results = run.compute()
        finally:
            del self._computations[run.number]
            self._replacements.end(run.library)
        return arrange_results(keys, _ResultsByKey(graph, results))

    __call__ = get

    def _progress_reports_stalls(self) -> bool:
        return bool(self._computations)  # in their progress

    def _on_graph_finished(self, end: i.GraphFinished) -> None:
        run = self._computations.get(end.run)
        if run is not None:
            run.on_graph_finished(end)

    def _on_vertex_finished(self, news: i.GraphTaskFinished) -> None:
        run = self._computations.get(news.run)
        if run is not None:
            run.on_vertex_finished(news)

    # ---- what a run needs

    def prepare(self, options: Options) -> ExecutionSettings:
        """Declare what the vertices of a `get` have in common."""
        self.set_scheduler(options.scheduling_mode)
        in_library = options.task_mode == "function-calls"
        environment = "" if in_library or options.env_per_task else self._declare_environment(options)
        request = (
            ResourceRequest(**dict(options.resources or {"cores": 1}))  # type: ignore[arg-type]
            if options.resources_mode is None
            else ResourceRequest()
        )
        task_options: dict[str, Any] = {"program": True}  # the last of its shared objects
        variables = {} if in_library else dict(options.env_vars or {})
        mounts: list[str] = []
        if not in_library:
            task_options["env"] = {name: value for name, value in variables.items() if isinstance(value, str)}
            if options.extra_files:
                task_options["mounts"] = [
                    [file.cache_name, remote, False] for file, remote in options.extra_files.items()
                ]
                mounts = [file.cache_name for file in options.extra_files]
        path = str(options.environment) if options.env_per_task and not in_library else ""
        varying = {name: value for name, value in variables.items() if callable(value)}
        return ExecutionSettings(request, environment, path, tuple(mounts), task_options, varying)

    def surroundings(self, options: Options) -> tuple[Any, frozenset[str], dict[str, str]]:
        """Look at what any vertex depends on beside its own code and inputs.

        Returns
        -------
        tuple
            What belongs to names, the files and variables whose states are among that, and the environment of vertices.
        """
        given = {name: value for name, value in (options.env_vars or {}).items() if isinstance(value, str)}
        variables = {**os.environ, **given}
        found = look(variables)
        things = found.things.union(
            used_resources.describe_variable(name, value) for name, value in given.items()
        )
        return (found.digest, self._circumstances(options)), things, variables

    def _circumstances(self, options: Options) -> Any:
        environment = options.environment
        if environment is not None and not isinstance(environment, File):
            environment = os.path.abspath(environment)
        files = [(file.cache_name, remote) for file, remote in (options.extra_files or {}).items()]
        named = environment.cache_name if isinstance(environment, File) else environment
        about = named, files, dict(options.env_vars or {}), options.lib_command, options.wrapper
        # A relative path means another file in another folder. Its digest, because a path would count with all that is in that folder.
        folder = hashlib.sha256(os.fsencode(working_folder())).hexdigest()
        return about, self.registrations.recipe(), folder

    def environment_variables(
        self, chosen: Mapping[str, str | Callable[..., str]], task: Any
    ) -> dict[str, str]:
        """Give the environment variables of a task or library; functions are called with this manager and the task."""
        texts = {name: str(value(self, task)) if callable(value) else value for name, value in chosen.items()}
        return {name: str(validators.variable(name, text)[1]) for name, text in texts.items()}

    def _declare_environment(self, options: Options) -> str:
        package = options.environment
        if package is None:
            return ""
        if isinstance(package, File):
            return (
                package.cache_name
                if package.kind in ("poncho", "untar")
                else self.declare_poncho(package).cache_name
            )
        return self.declare_poncho(package).cache_name

    def declare_private_environment(self, path: str, task: int) -> str:
        """Declare an environment that one vertex unpacks for itself."""
        archive = self.declare_file(path, cache=True)
        name = f"{archive.cache_name}-for-{self._session}-{task}"
        self._engine.post_event(
            e.FilesDeclared([FileSpec(name, archive=archive.cache_name, directory=True, peer_transfer=False)])
        )
        return name

    def configure_category(self, category: str, options: Options) -> str:
        """Have the vertices of one kind learn what they need."""
        name = f"dask:{category}:{options.resources_mode}:{sorted((options.resources or {}).items())}"
        if name not in self._adaptive_categories:
            self._adaptive_categories.add(name)
            self._engine.post_event(e.SettingChanged("category-steady-n-tasks", 1))
            maximum = ResourceRequest(**dict(options.resources or {}))  # type: ignore[arg-type]
            self._engine.post_event(
                e.CategorySet(name, parse_mode(str(options.resources_mode)), maximum, None, None)
            )
        return name

    def install_function_library(self, options: Options, modules: set[str], *, records: bool = False) -> str:
        """Install the library that runs vertices; the same options and code give the same library, which may be running already.

        The processes of one with the same options and other code end when no run needs them.

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
        extra = options.lib_extra_functions or ()
        library = LibraryTask(
            LIBRARY_NAME,
            [*HELPERS, *extra],
            modules=options.lib_modules or (),
            exec_mode="direct",
            before=[task_functions.load_dask, ttree_cache.install_ttree_cache],
        )
        if not all(map(is_package_module, options.lib_modules or ())):
            library.definition["program"] = self.folders.program()  # where they are found
        resources = dict(options.lib_resources or {})
        slots = resources.pop("slots", None)
        if slots is not None:
            library.set_function_slots(int(slots))
        for name, amount in resources.items():
            getattr(library, f"set_{name}")(amount)
        for name, value in self.environment_variables(options.env_vars or {}, library).items():
            library.set_env_var(name, value)
        for file, remote in (options.extra_files or {}).items():
            library.add_input(file, remote)
        if options.lib_command:
            library.set_command(options.lib_command)
        environment = self._declare_environment(options)
        if environment:
            library.add_environment(File(self, "poncho", environment))
        if records:
            library.set_env_var(used_resources.RECORDS, "1")
        library.preload = sorted(modules)
        setup = self.declare_shared_bytes(dumps(library.definition) if extra else _dump_usual(library))
        spec = library.make_spec(setup)
        alike = spec._replace(name="", setup="", options={**spec.options, "preload": ()})
        kind = repr((library.functions, library.definition["modules"], alike))
        self._replacements.begin(kind, spec.name, lambda: self._engine.post_event(e.LibraryInstalled(spec)))
        self._enter_library(library, spec.name)  # also for FunctionCalls of the extra functions
        return spec.name


def _dump_usual(library: LibraryTask) -> bytes:
    """Serialize the setup of a library that has no functions but this package's own, which stay what they are."""
    setup = library.definition
    key = tuple(setup["modules"]), setup.get("program")
    found = _usual_setups.get(key)
    if found is None:
        if len(_usual_setups) >= MOST_SETUPS:
            _usual_setups.clear()
        found = _usual_setups[key] = dumps(setup)
    return found


_usual_setups: dict[tuple[tuple[str, ...], Program | None], bytes] = {}


class _ResultsByKey(dict[Any, Any]):
    """Results by any key that was asked for, aliases included."""

    def __init__(self, graph: Graph, results: dict[Any, Any]) -> None:
        super().__init__(results)
        self._graph = graph

    def __missing__(self, key: Any) -> Any:
        return self[self._graph.resolve(key)]


class _ShuffleMethodOverride:
    """Has dask shuffle by tasks while any manager is open, unless the user has chosen something.

    Without a client of distributed it would shuffle through a folder, which workers need not share. It decides that when a bag is
    grouped, or a dataframe is optimized, so long before `DaskVine.get` sees the graph.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settings: dict[
            object, Any
        ] = {}  # of each open manager, what it has set in dask's configuration

    def enable(self) -> Callable[[], None]:
        """A manager opens; call what this returns when it closes."""
        manager = object()
        with self._lock:
            self._settings[manager] = self._set()
        return lambda: self._end(manager)

    def _set(self) -> Any:
        if dask.config.get("dataframe.shuffle.method", None) is not None:
            return None
        return dask.config.set({"dataframe.shuffle.method": "tasks"})

    def _end(self, manager: object) -> None:
        with self._lock:
            setting = self._settings.pop(manager)
            if setting is None:
                return
            setting.__exit__(None, None, None)
            if self._settings and not any(self._settings.values()):  # another one relied on it
                self._settings[next(iter(self._settings))] = self._set()


_SHUFFLING = _ShuffleMethodOverride()


def _check_options(given: Mapping[str, Any]) -> None:
    """Make sure that `DaskVine.local` knows these.

    Raises
    ------
    TypeError
        It does not know one; the message says which one may have been meant.
    """
    own = list(inspect.signature(DaskVine.local).parameters)
    known = [
        name
        for name in (*own, *inspect.signature(Manager.__init__).parameters)
        if name not in ("self", "more")
    ]
    for name in given:
        if name not in known:
            meant = ELSEWHERE.get(name)
            hint = f"; use {meant}=..." if meant else validators.suggest_name(name, known)
            msg = f"DaskVine.local has no option {name!r}{hint or '; it has: ' + ', '.join(known)}"
            raise TypeError(msg)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
