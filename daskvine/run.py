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
from daskvine.compiling import Compiler, dumps, modules_in
from daskvine.graph import Graph, Key
from daskvine.options import Options
from daskvine.output import Output
from daskvine.program_folder import explain_unseen
from daskvine.progress import Snapshot, make_progress
from daskvine.recipes import RECIPE, Recipes
from daskvine.shared_files import explain_shared_files
from vinecore.core import events as e
from vinecore.core import instructions as i
from vinecore.core.allocation import Request
from vinecore.core.state import FOREVER, TASK, RunSpec, TaskSpec
from vinecore.errors import note
from vinecore.protocol import usage, values

if TYPE_CHECKING:
    from daskvine.executor import DaskVine

log = logging.getLogger("daskvine")

SLICE = 256
LOOK_S = 0.1
WORKER_RETRIES = 4  # of a vertex whose worker, process or sandbox failed, where the option says nothing
PRIORITY_STEP = 2.0**32  # between annotated priorities: more than there are vertices in a graph
FIRST = 16  # tasks that carry the modules to import: one for each core of a few workers


class Dag:
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


class Vertex(NamedTuple):
    """What functions in ``env_vars`` are told of the task they are called for."""

    id: int
    key: Key
    category: str


class GraphRun:
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
        self._over = threading.Event()
        self._end: i.RunEnded | None = None
        self._news: deque[i.VertexEnded] = deque()
        self._keys: dict[int, Key] = {}
        self._results: dict[Key, str] = {}
        self._local: dict[Key, Any] = {}
        self.library = ""
        self._told = False
        self._temporary: list[str] = []
        self.vertices = len(graph.vertices)
        self.done = self.remade = self.moved_bytes = 0
        self.executed = self.vertices
        self._output = Output(options.show_output)
        self._recipes: Recipes | None = None  # if results are named by them
        self._tolerated: frozenset[str] = (
            frozenset()
        )  # things that vertices may use though no name tells of them
        self._identity = ""  # of what the graph makes, if it may be gone on with
        self._callbacks: list[Any] = []
        self._reuse = manager.resume if options.reuse is None else options.reuse
        lasts = manager.workers_outlive_it and (bool(options.reuse) or manager.workers_end_with_it)
        self._level = FOREVER if lasts else TASK  # of results named by recipes

    # ---- from the engine's thread

    def vertex_ended(self, news: i.VertexEnded) -> None:
        """One vertex is over."""
        self._news.append(news)

    def ended(self, end: i.RunEnded) -> None:
        """The run is over."""
        self._end = end
        self._over.set()

    # ---- in the user's thread

    def compute(self) -> dict[Key, Any]:
        """Run everything; give the value of each target."""
        options, graph = self._options, self._graph
        with (
            self._manager.reuse_lock if self._reuse else nullcontext(),
            local_callbacks(None) as callbacks,
            make_progress(options.progress_label, options.progress_disable) as progress,
        ):
            self._callbacks = [c for c in callbacks or () if any(c)]
            state = _CallbackState(graph) if self._callbacks else None
            tell = bool(self._callbacks) or options.verbose or options.wrapper is not None
            self._call_back(0, graph.vertices)
            self._call_back(1, graph.vertices, state)
            mode = options.task_priority_mode or ""
            self._engine.post(
                e.RunOpened(
                    RunSpec(
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
                    self._name_by_recipe()
                self._submit(compiler, progress, state)
                self._engine.post(e.RunSubmitted(self.number))
                while not self._over.wait(LOOK_S):
                    self._engine.check()
                    self._look(progress, state)
                self._look(progress, state)
                self._output.end()
                results = self._collect()
                self._manager.graphs[self._identity] += bool(self._identity)
                self._call_back(4, graph.vertices, state, False)
            except BaseException:
                self._call_back(4, graph.vertices, state, True)
                raise
            finally:
                self._engine.post(e.RunClosed(self.number))
                self._engine.post(e.FilesReleased(self._temporary, prune=False))
                if compiler is not None:
                    self._manager.objects.release(compiler.names)
        return results

    def _compiler(self) -> Compiler:
        options = self._options
        in_library = options.task_mode == "function-calls"
        compiler = Compiler(
            self._graph,
            self._results,
            self._manager.objects,
            in_library=in_library,
            wrapper=options.wrapper,
            registered=self._manager.registrations.dump(options.env_vars or ()),
        )
        for text in self._manager.registrations.texts():
            compiler.modules.update(modules_in(text))
        self._settings = self._manager.prepare(options)
        program = self._manager.folders.program(has_files=bool(options.extra_files))
        self._program = compiler.acquire(dumps(program))
        if self._reuse:
            recorded = {**self._settings.task_options, "record": True}
            self._settings = self._settings._replace(task_options=recorded)
        self._readers = Counter(d for found in self._graph.dependencies.values() for d in found)
        return compiler

    def _name_by_recipe(self) -> None:
        """Name results so that the next computation finds them."""
        manager, options = self._manager, self._options
        deterministic = self._reuse if callable(self._reuse) else lambda _key: True
        context, things, variables = manager.surroundings(options)
        resumes, vouched = options.reuse is None, callable(self._reuse)
        if resumes or vouched:
            self._tolerated = usage.SAME_GRAPH if resumes else frozenset({usage.RANDOM})
        recipes = Recipes(self._graph, context, deterministic, things, variables, trusted=resumes or vouched)
        names = {key: recipes.name(key) for key in self._graph.vertices}
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
            key: name and RECIPE + hashlib.sha256(f"{name} {graph}".encode()).hexdigest()[:40]
            for key, name in names.items()
        }

    def covers(self, task: int, used: list[str]) -> bool:
        """Whether the name of what a task makes tells of all that it has used; called in the engine's thread."""
        if self._recipes is None:
            return True
        used = [one for one in used if one not in self._tolerated]
        return self._recipes.covers(self._keys[task], used)

    def _submit(self, compiler: Compiler, progress: Any, state: _CallbackState | None) -> None:
        size = min(SLICE, self._options.submit_per_cycle or SLICE)
        slice_: list[TaskSpec] = []
        depths = Dag(self._graph)
        needs_depth = self._options.task_priority_mode in ("depth-first", "breadth-first")
        checkpoint = self._options.checkpoint_fn
        targets = set(self._graph.targets)
        for number, key in enumerate(self._graph.in_order()):
            wanted = not self._options.worker_transfers or key in targets
            if not wanted and checkpoint is not None:
                wanted = bool(checkpoint(depths, key))
            slice_.append(
                self._spec(compiler, number, key, wanted, depths.depth_of(key) if needs_depth else 0)
            )
            if len(slice_) >= size:
                self._send(slice_, compiler, progress, state)
                slice_ = []
            if self._over.is_set():
                return
        if slice_:
            self._send(slice_, compiler, progress, state)

    def _send(
        self, slice_: list[TaskSpec], compiler: Compiler, progress: Any, state: _CallbackState | None
    ) -> None:
        options = self._options
        if options.task_mode == "function-calls" and not self.library:
            self.library = self._manager.start_library(
                options, compiler.modules, records=self._recipes is not None
            )
            slice_ = [spec._replace(library=self.library) for spec in slice_]
        elif (
            options.task_mode == "tasks" and not self._told
        ):  # the first tasks say what the warm Python should import
            self._told = True
            preload = sorted(compiler.modules)
            slice_ = [
                spec._replace(options={**spec.options, "preload": preload}) for spec in slice_[:FIRST]
            ] + slice_[FIRST:]
        while slice_ and not self._over.is_set():
            room = len(slice_) if options.max_pending is None else options.max_pending - self._unfinished()
            if room > 0:
                self._hand_over(slice_[:room], state)
                slice_ = slice_[room:]
            else:
                self._over.wait(0.005)
                self._look(progress, state)

    def _hand_over(self, specs: list[TaskSpec], state: _CallbackState | None) -> None:
        for key in (self._keys[spec.task] for spec in specs) if self._callbacks else ():
            self._call_back(2, key, self._graph.vertices, state)
        self._engine.submit(specs)  # one turn of the engine's loop is the cycle of ``submit_per_cycle``

    def _unfinished(self) -> int:
        return self._engine.call(
            lambda mind: mind.tables.runs[self.number].unfinished if self.number in mind.tables.runs else 0
        )

    def _spec(self, compiler: Compiler, rank: int, key: Key, wanted: bool, depth: int) -> TaskSpec:
        task = next(self._manager._numbers)
        self._keys[task] = key
        result = self._results.get(key)
        if result is None:
            result = self._results[key] = self._manager.result_name(task)
        try:
            call = compiler.compile(key)
        except Exception as error:
            note(error, f"vertex {key!r} cannot be run")
            raise
        reusable = result.startswith(RECIPE)
        settings = self._settings
        category = funcname(getattr(self._graph.vertices[key], "func", type(self._graph.vertices[key])))
        request: Request = settings.request
        environment, options = settings.environment, settings.task_options
        if settings.varying:
            chosen = self._manager.variables(settings.varying, Vertex(task, key, category))
            options = {**options, "env": {**options.get("env", {}), **chosen}}
        annotated = self._annotations.get(key, NOTHING)
        priority: float = rank
        if annotated.priority is not None:
            priority -= annotated.priority * PRIORITY_STEP
        retries = self._options.retries if annotated.retries is None else annotated.retries
        if settings.environment_path:
            environment = self._manager.private_environment(settings.environment_path, task)
            self._temporary.append(environment)
        if environment:
            options = {**options, "environment": environment}
        if self._options.resources_mode is not None and self._options.task_mode == "tasks":
            category = self._manager.learn_category(category, self._options)
        return TaskSpec(
            task, str(key), result, self.number, self.library, call.function, call.payload, (*call.shared, self._program), call.inputs,
            mounts=settings.mounts, wanted=(result,) if wanted else (), category=category, request=annotated.request.over(request), priority=priority, depth=depth,
            environment=environment, peer_transfer=self._options.worker_transfers, readers=self._readers[key], options=options,
            asleep=self._recipes is not None, reusable=reusable, level=self._level if reusable else TASK, exception_retries=retries or 0,
        )  # fmt: skip

    # ---- meanwhile

    def _look(self, progress: Any, state: _CallbackState | None) -> None:
        """Tell what has happened since the last look."""
        self._manager.say_that_it_waits()
        while self._news:
            news = self._news.popleft()
            key = self._keys[news.task]
            self._output.show(key, news.info)
            if self._options.verbose:
                print(f"{key} ran on {self._manager.worker_name(news.worker)}")
            if "note" in news.info:
                self._options.wrapper_proc(values.loads(base64.b64decode(news.info["note"])))
            if state is not None:
                state.finish(key)
                self._call_back(3, key, None, self._graph.vertices, state, news.worker)
        progress.update(self._snapshot())

    def _snapshot(self) -> Snapshot:
        def read(mind: Any) -> tuple[int, ...]:
            run = mind.tables.runs.get(self.number)
            counts = (
                (self.vertices, 0, 0, 0) if run is None else (run.done, run.running, run.remade, run.asleep)
            )
            # a graph that is laid down asleep counts as done until its targets are asked for
            looking = self._recipes is not None and run is not None and not run.complete
            return (*counts, len(mind.tables.workers), mind.moved_bytes, looking)

        self.done, running, self.remade, asleep, workers, self.moved_bytes, looking = self._engine.call(read)
        if looking:
            self.done = 0
        self.executed = self.vertices - asleep
        waiting = max(0, self.vertices - self.done - running)
        return Snapshot(
            self.vertices,
            self.done,
            running,
            waiting,
            workers,
            self.moved_bytes,
            self._manager.missing or None,
            bool(looking),
        )

    def _call_back(self, which: int, *args: Any) -> None:
        for callback in self._callbacks:
            if callback[which]:
                callback[which](*args)

    # ---- the end

    def _collect(self) -> dict[Key, Any]:
        end = self._end
        assert end is not None
        if end.outcome != "success":
            key = self._keys.get(end.task)
            worker = end.info.get("worker", 0)
            self._output.show(key, end.info)
            error = self._manager.explain(end.outcome, end.info, end.payload, f"vertex {key!r}", worker)
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
        return dict(self._load())

    def _load(self) -> Iterator[tuple[Key, Any]]:
        for key in self._graph.targets:
            if key in self._graph.data:
                yield key, self._graph.data[key]
                continue
            content = self._engine.store.find(self._results[key])
            assert content is not None
            try:
                value = values.load_file(content) if isinstance(content, str) else values.loads(content)
            except Exception as error:
                note(error, f"vertex {key!r} has a result that could not be loaded here")
                raise
            yield key, value


class _CallbackState(dict[str, Any]):
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
