"""One ``get``: a graph on its way through the engine."""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from dask.callbacks import local_callbacks
from dask.utils import funcname

from daskvine.annotations import NOTHING, VertexAnnotations
from daskvine.cache_keys import CACHE_KEY_PREFIX, ResultKeys
from daskvine.compiler import Compiler, dumps, modules_referenced
from daskvine.graph import Graph, Key
from daskvine.options import Options
from daskvine.program_folder import explain_unseen
from daskvine.progress import ProgressSnapshot, make_progress
from daskvine.shared_files import explain_shared_files
from daskvine.task_output import Output
from vinecore.errors import add_note
from vinecore.protocol import used_resources
from vinecore.protocol.serialization import values
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import FOREVER, TASK, GraphSpec, TaskSpec

if TYPE_CHECKING:
    from daskvine.manager import DaskVine

log = logging.getLogger("daskvine")

MAX_TASKS_PER_SLICE = 256
POLL_INTERVAL_S = 0.1
WORKER_RETRIES = 4  # of a vertex whose worker, process or sandbox failed, where the option says nothing
PRIORITY_STEP = 2.0**32  # between annotated priorities: more than there are vertices in a graph
PRELOAD_HINT_TASKS = 16  # tasks that carry the modules to import: one for each core of a few workers


class CheckpointGraph:
    """What ``checkpoint_fn`` sees of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._depths: dict[Key, int] | None = None

    def depth_of(self, key: Key) -> int:
        """Distance of a vertex from the roots, which have 1."""
        if self._depths is None:
            self._depths = self._graph.depths()
        return self._depths[key]

    def get_dependencies(self, key: Key) -> set[Key]:
        """Keys that a vertex reads."""
        return set(self._graph.dependencies[key])

    def get_targets(self) -> set[Key]:
        """Keys that were asked for."""
        return set(self._graph.targets)


class TaskInfo(NamedTuple):
    """What functions in ``env_vars`` are told of the task they are called for."""

    id: int
    key: Key
    category: str


class GraphComputation:
    """Submits a graph, waits for it, and collects its results.

    Attributes
    ----------
    vertices : int
        How many vertices there are.
    executed : int
        How many of them were run; the others were found, or nobody needed them.
    remade : int
        How many were run again because their result was lost.
    library : str
        The full name of the library that its vertices are calls of, once it is known.
    """

    def __init__(
        self,
        manager: DaskVine,
        graph: Graph,
        options: Options,
        number: int,
        annotations: Mapping[Key, VertexAnnotations],
    ) -> None:
        self._manager, self._graph, self._options, self.number = manager, graph, options, number
        self._annotations = annotations
        self._engine = manager._engine
        self._finished = threading.Event()
        self._outcome: i.GraphFinished | None = None
        self._finished_vertices: deque[i.GraphTaskFinished] = deque()
        self._keys: dict[int, Key] = {}
        self._results: dict[Key, str] = {}
        self._local: dict[Key, Any] = {}
        self.library = ""
        self._preload_sent = False
        self._private_environments: list[str] = []
        self.vertices = len(graph.vertices)
        self.done = self.recomputed = self.moved_bytes = 0
        self.executed = self.vertices
        self._output = Output(options.show_output)
        self._recipes: ResultKeys | None = None  # if results are named by them
        self._tolerated: frozenset[str] = (
            frozenset()
        )  # things that vertices may use though no name tells of them
        self._identity = ""  # of what the graph makes, if it may be gone on with
        self._callbacks: list[Any] = []
        self._reuse = manager.resume if options.reuse is None else options.reuse
        lasts = manager.workers_survive_manager and (bool(options.reuse) or manager.workers_stop_with_manager)
        self._cache_level = FOREVER if lasts else TASK  # of results named by recipes

    # ---- from the engine's thread

    def on_vertex_finished(self, news: i.GraphTaskFinished) -> None:
        """One vertex is over."""
        self._finished_vertices.append(news)

    def on_graph_finished(self, end: i.GraphFinished) -> None:
        """The run is over."""
        self._outcome = end
        self._finished.set()

    # ---- in the user's thread

    def compute(self) -> dict[Key, Any]:
        """Run everything; give the value of each target."""
        options, graph = self._options, self._graph
        with (
            self._manager.cache_key_lock if self._reuse else nullcontext(),
            local_callbacks(None) as callbacks,
            make_progress(options.progress_label, options.progress_disable) as progress,
        ):
            self._callbacks = [c for c in callbacks or () if any(c)]
            state = _DaskCallbackState(graph) if self._callbacks else None
            tell = bool(self._callbacks) or options.verbose or options.wrapper is not None
            self._run_dask_callbacks(0, graph.vertices)
            self._run_dask_callbacks(1, graph.vertices, state)
            mode = options.task_priority_mode or ""
            self._engine.post_event(
                e.GraphOpened(
                    GraphSpec(
                        self.number,
                        str(options.progress_label),
                        WORKER_RETRIES if options.retries is None else options.retries,
                        options.prune_depth,
                        mode,
                        tell,
                        self.vertices,
                        self.covers if self._reuse else None,
                    )
                )
            )
            compiler: Compiler | None = None
            try:
                compiler = self._compiler()
                if self._reuse:
                    self._assign_cache_keys()
                self._submit(compiler, progress, state)
                self._engine.post_event(e.GraphSubmitted(self.number))
                while not self._finished.wait(POLL_INTERVAL_S):
                    self._engine.ensure_open()
                    self._poll(progress, state)
                self._poll(progress, state)
                self._output.end()
                results = self._collect_results()
                self._manager.graphs[self._identity] += bool(self._identity)
                self._run_dask_callbacks(4, graph.vertices, state, False)
            except BaseException:
                self._run_dask_callbacks(4, graph.vertices, state, True)
                raise
            finally:
                self._engine.post_event(e.GraphClosed(self.number))
                self._engine.post_event(e.FilesReleased(self._private_environments, prune=False))
                if compiler is not None:
                    self._manager.shared_objects.release(compiler.acquired_objects)
        return results

    def _compiler(self) -> Compiler:
        options = self._options
        in_library = options.task_mode == "function-calls"
        compiler = Compiler(
            self._graph,
            self._results,
            self._manager.shared_objects,
            in_library=in_library,
            wrapper=options.wrapper,
            registered=self._manager.registrations.dump(options.env_vars or ()),
        )
        for text in self._manager.registrations.texts():
            compiler.modules.update(modules_referenced(text))
        self._settings = self._manager.prepare(options)
        program = self._manager.folders.program(has_files=bool(options.extra_files))
        self._program = compiler.acquire(dumps(program))
        if self._reuse:
            recorded = {**self._settings.task_options, "record": True}
            self._settings = self._settings._replace(task_options=recorded)
        self._readers = Counter(d for found in self._graph.dependencies.values() for d in found)
        return compiler

    def _assign_cache_keys(self) -> None:
        """Name results so that the next computation finds them."""
        manager, options = self._manager, self._options
        deterministic = self._reuse if callable(self._reuse) else lambda _key: True
        context, things, variables = manager.surroundings(options)
        resumes, vouched = options.reuse is None, callable(self._reuse)
        if resumes or vouched:
            self._tolerated = used_resources.SAME_GRAPH if resumes else frozenset({used_resources.RANDOM})
        recipes = ResultKeys(
            self._graph, context, deterministic, things, variables, trusted=resumes or vouched
        )
        names = {key: recipes.key_for(key) for key in self._graph.vertices}
        if resumes:
            names = self._for_this_graph(names)
        for key, name in names.items():
            self._results[key] = name or manager.result_name(next(manager._numbers))
        self._recipes = recipes

    def _for_this_graph(self, names: dict[Key, str | None]) -> dict[Key, str | None]:
        """Have names be those of this graph alone: whoever goes on with it finds what it has made, and no other graph does."""
        made = repr([names.get(self._graph.resolve(key)) for key in self._graph.targets])
        self._identity = hashlib.sha256(made.encode()).hexdigest()
        graph = f"{self._identity} {self._manager.graphs[self._identity]}"
        return {
            key: name and CACHE_KEY_PREFIX + hashlib.sha256(f"{name} {graph}".encode()).hexdigest()[:40]
            for key, name in names.items()
        }

    def covers(self, task: int, used: list[str]) -> bool:
        """Whether the name of what a task makes tells of all that it has used; called in the engine's thread."""
        if self._recipes is None:
            return True
        used = [one for one in used if one not in self._tolerated]
        return self._recipes.covers(self._keys[task], used)

    def _submit(self, compiler: Compiler, progress: Any, state: _DaskCallbackState | None) -> None:
        size = min(MAX_TASKS_PER_SLICE, self._options.submit_per_cycle or MAX_TASKS_PER_SLICE)
        slice_: list[TaskSpec] = []
        depths = CheckpointGraph(self._graph)
        needs_depth = self._options.task_priority_mode in ("depth-first", "breadth-first")
        checkpoint = self._options.checkpoint_fn
        targets = set(self._graph.targets)
        for number, key in enumerate(self._graph.in_priority_order()):
            wanted = not self._options.worker_transfers or key in targets
            if not wanted and checkpoint is not None:
                wanted = bool(checkpoint(depths, key))
            slice_.append(
                self._make_task_spec(
                    compiler, number, key, wanted, depths.depth_of(key) if needs_depth else 0
                )
            )
            if len(slice_) >= size:
                self._submit_slice(slice_, compiler, progress, state)
                slice_ = []
            if self._finished.is_set():
                return
        if slice_:
            self._submit_slice(slice_, compiler, progress, state)

    def _submit_slice(
        self, slice_: list[TaskSpec], compiler: Compiler, progress: Any, state: _DaskCallbackState | None
    ) -> None:
        options = self._options
        if options.task_mode == "function-calls" and not self.library:
            self.library = self._manager.install_function_library(
                options, compiler.modules, records=self._recipes is not None
            )
            slice_ = [spec._replace(library=self.library) for spec in slice_]
        elif (
            options.task_mode == "tasks" and not self._preload_sent
        ):  # the first tasks say what the warm Python should import
            self._preload_sent = True
            preload = sorted(compiler.modules)
            slice_ = [
                spec._replace(options={**spec.options, "preload": preload})
                for spec in slice_[:PRELOAD_HINT_TASKS]
            ] + slice_[PRELOAD_HINT_TASKS:]
        while slice_ and not self._finished.is_set():
            room = len(slice_) if options.max_pending is None else options.max_pending - self._unfinished()
            if room > 0:
                self._post_tasks(slice_[:room], state)
                slice_ = slice_[room:]
            else:
                self._finished.wait(0.005)
                self._poll(progress, state)

    def _post_tasks(self, specs: list[TaskSpec], state: _DaskCallbackState | None) -> None:
        for key in (self._keys[spec.task] for spec in specs) if self._callbacks else ():
            self._run_dask_callbacks(2, key, self._graph.vertices, state)
        self._engine.submit(specs)  # one turn of the engine's loop is the cycle of ``submit_per_cycle``

    def _unfinished(self) -> int:
        return self._engine.query(
            lambda mind: mind.tables.runs[self.number].unfinished if self.number in mind.tables.runs else 0
        )

    def _make_task_spec(self, compiler: Compiler, rank: int, key: Key, wanted: bool, depth: int) -> TaskSpec:
        task = next(self._manager._numbers)
        self._keys[task] = key
        result = self._results.get(key)
        if result is None:
            result = self._results[key] = self._manager.result_name(task)
        try:
            call = compiler.compile(key)
        except Exception as error:
            add_note(error, f"vertex {key!r} cannot be run")
            raise
        reusable = result.startswith(CACHE_KEY_PREFIX)
        settings = self._settings
        category = funcname(getattr(self._graph.vertices[key], "func", type(self._graph.vertices[key])))
        request: ResourceRequest = settings.request
        environment, options = settings.environment, settings.task_options
        if settings.per_task_env_vars:
            chosen = self._manager.environment_variables(
                settings.per_task_env_vars, TaskInfo(task, key, category)
            )
            options = {**options, "env": {**options.get("env", {}), **chosen}}
        annotated = self._annotations.get(key, NOTHING)
        priority: float = rank
        if annotated.priority is not None:
            priority -= annotated.priority * PRIORITY_STEP
        retries = self._options.retries if annotated.retries is None else annotated.retries
        if settings.unpack_per_task:
            environment = self._manager.declare_private_environment(settings.unpack_per_task, task)
            self._private_environments.append(environment)
        if environment:
            options = {**options, "environment": environment}
        if self._options.resources_mode is not None and self._options.task_mode == "tasks":
            category = self._manager.configure_category(category, self._options)
        return TaskSpec(
            task, str(key), result, self.number, self.library, call.function, call.payload, (*call.shared, self._program), call.inputs,
            mounts=settings.mounts, wanted_at_manager=(result,) if wanted else (), category=category, request=annotated.request.with_defaults(request), priority=priority, depth=depth,
            environment=environment, peer_transfer=self._options.worker_transfers, reader_count=self._readers[key], options=options,
            on_demand=self._recipes is not None, content_addressed=reusable, level=self._cache_level if reusable else TASK, exception_retries=retries or 0,
        )  # fmt: skip

    # ---- meanwhile

    def _poll(self, progress: Any, state: _DaskCallbackState | None) -> None:
        """Tell what has happened since the last look."""
        self._manager.say_that_it_waits()
        while self._finished_vertices:
            news = self._finished_vertices.popleft()
            key = self._keys[news.task]
            self._output.show(key, news.info)
            if self._options.verbose:
                print(f"{key} ran on {self._manager.worker_name(news.worker)}")
            if "note" in news.info:
                self._options.wrapper_proc(values.loads(base64.b64decode(news.info["note"])))
            if state is not None:
                state.finish(key)
                self._run_dask_callbacks(3, key, None, self._graph.vertices, state, news.worker)
        progress.update(self._progress_snapshot())

    def _progress_snapshot(self) -> ProgressSnapshot:
        def read(mind: Any) -> tuple[int, ...]:
            run = mind.tables.runs.get(self.number)
            counts = (
                (self.vertices, 0, 0, 0)
                if run is None
                else (run.done, run.running, run.recomputed, run.deferred)
            )
            # a graph that is laid down asleep counts as done until its targets are asked for
            looking = self._recipes is not None and run is not None and not run.submitted
            return (*counts, len(mind.tables.workers), mind.tables.moved_bytes, looking)

        self.done, running, self.recomputed, asleep, workers, self.moved_bytes, looking = self._engine.query(
            read
        )
        if looking:
            self.done = 0
        self.executed = self.vertices - asleep
        waiting = max(0, self.vertices - self.done - running)
        return ProgressSnapshot(
            self.vertices,
            self.done,
            running,
            waiting,
            workers,
            self.moved_bytes,
            self._manager.stalled_reason or None,
            bool(looking),
        )

    def _run_dask_callbacks(self, which: int, *args: Any) -> None:
        for callback in self._callbacks:
            if callback[which]:
                callback[which](*args)

    # ---- the end

    def _collect_results(self) -> dict[Key, Any]:
        end = self._outcome
        assert end is not None
        if end.outcome != "success":
            key = self._keys.get(end.task)
            worker = end.info.get("worker", 0)
            self._output.show(key, end.info)
            error = self._manager.make_exception(
                end.outcome, end.info, end.payload, f"vertex {key!r}", worker
            )
            where = self._manager.worker_name(worker) if worker else ""
            explain_unseen(error, end.info.get("unseen"), where)
            explain_shared_files(error, self._options.lib_modules or ())
            if isinstance(error, SystemExit):  # Python ends by it without a word
                log.warning(
                    "vertex %r raised SystemExit(%r), which ends this program, too, unless it is caught",
                    key,
                    error.code,
                )
            raise error
        return dict(self._load_results())

    def _load_results(self) -> Iterator[tuple[Key, Any]]:
        for key in self._graph.targets:
            if key in self._graph.data:
                yield key, self._graph.data[key]
                continue
            content = self._engine.store.find_object(self._results[key])
            assert content is not None
            try:
                value = values.load_file(content) if isinstance(content, str) else values.loads(content)
            except Exception as error:
                add_note(error, f"vertex {key!r} has a result that could not be loaded here")
                raise
            yield key, value


class _DaskCallbackState(dict[str, Any]):
    """The part of dask's local scheduler state that callbacks such as ``ProgressBar`` read."""

    def __init__(self, graph: Graph) -> None:
        dependencies = {key: set(found) for key, found in graph.dependencies.items()}
        dependents: dict[Key, set[Key]] = {}
        for key, found in dependencies.items():
            for dependency in found:
                dependents.setdefault(dependency, set()).add(key)
        super().__init__(
            dependencies=dependencies, dependents=dependents, waiting={}, waiting_data={}, cache={}, ready=list(graph.vertices),
            running=set(), finished=set(), released=set(),
        )  # fmt: skip

    def finish(self, key: Key) -> None:
        """A vertex is done."""
        self["finished"].add(key)
