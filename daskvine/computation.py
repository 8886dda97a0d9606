"""One ``get``: a graph on its way through the engine."""

from __future__ import annotations

import base64
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from dask.callbacks import local_callbacks

from daskvine.annotations import NO_ANNOTATIONS, VertexAnnotations
from daskvine.cache_keys import CACHE_KEY_PREFIX, ResultKeys
from daskvine.callbacks import DaskCallbacks, TaskInfo
from daskvine.compiler import Compiler, dumps, modules_referenced
from daskvine.dag import DaskVineDag
from daskvine.execution_settings import ExecutionSettings
from daskvine.graph import Graph, Key
from daskvine.program_folder import explain_unseen_folder
from daskvine.progress import ProgressSnapshot, SilentProgress, make_progress
from daskvine.shared_files import explain_shared_files
from daskvine.task_output import TaskOutput
from vinecore.errors import add_note
from vinecore.manager.graphs import GraphHandle, GraphOutcome
from vinecore.protocol import used_resources
from vinecore.protocol.serialization import values
from vinecore.scheduler.specs import TASK, TaskSpec

log = logging.getLogger("daskvine")

MAX_TASKS_PER_SLICE = 256
POLL_INTERVAL_S = 0.1
ROOM_POLL_INTERVAL_S = 0.005
WORKER_RETRIES = 4  # of a vertex whose worker, process or sandbox failed, where the option says nothing
PRIORITY_STEP = 2.0**32  # between annotated priorities: more than there are vertices in a graph
PRELOAD_HINT_TASKS = 16  # tasks that carry the modules to import: one for each core of a few workers


class GraphComputation:
    """Submits a graph, waits for it, and collects its results.

    Attributes
    ----------
    vertices : int
        How many vertices there are.
    executed : int
        The number of vertices that ran; the others were found, or were not needed.
    recomputed : int
        How many were run again because their result was lost.
    library : str
        The full name of the library that its vertices are calls of, once it is known.
    started_at, ended_at, first_completed_at : float or None
        The times in seconds since the epoch at which it began and ended and at which the first vertex
        was known to be done; None if that has not happened.
    """

    def __init__(
        self,
        graph: Graph,
        settings: ExecutionSettings,
        annotations: Mapping[Key, VertexAnnotations],
        name_category: Callable[[Any], str],
    ) -> None:
        self._graph, self._settings, self._name_category = graph, settings, name_category
        self._annotations = annotations
        self._options, self._manager = settings.options, settings.shared.manager
        self._keys: dict[int, Key] = {}
        self._results: dict[Key, str] = {}
        self.library = ""
        self._preload_sent = False
        self.vertices = len(graph.vertices)
        self.done = self.recomputed = self.moved_bytes = 0
        self.started_at: float | None = None
        self.first_completed_at: float | None = None
        self.ended_at: float | None = None
        self.executed = self.vertices
        self._output = TaskOutput(self._options.show_output)
        # Only if results have cache keys.
        self._result_keys: ResultKeys | None = None
        # What vertices may use though no cache key tells of it.
        self._tolerated: frozenset[str] = frozenset()
        # Of what the graph makes, if a later program may go on with it.
        self._identity = ""
        self._callbacks = DaskCallbacks((), graph)
        self._progress = SilentProgress("")

    def compute(self) -> dict[Key, Any]:
        """Run everything; return the value of each target."""
        options, settings, shared = self._options, self._settings, self._settings.shared
        self.started_at = time.time()
        with (
            shared.cache_key_lock if settings.reuse else nullcontext(),
            local_callbacks(None) as callbacks,
            make_progress(options.progress_label, options.progress_disable) as self._progress,
        ):
            self._callbacks = DaskCallbacks(callbacks, self._graph)
            self._callbacks.on_start()
            self._handle = self._open()
            compiler: Compiler | None = None
            try:
                compiler = self._make_compiler()
                if settings.reuse:
                    self._assign_cache_keys()
                self._submit(compiler)
                self._handle.submitted()
                while (outcome := self._handle.wait(POLL_INTERVAL_S)) is None:
                    self._poll()
                self._poll()
                self._output.report_omitted()
                results = self._collect_results(outcome)
                shared.computed_graphs[self._identity] += bool(self._identity)
                self._callbacks.on_finish(failed=False)
            except BaseException:
                self._callbacks.on_finish(failed=True)
                raise
            finally:
                self.ended_at = time.time()
                self._handle.close()
                settings.close()
                if compiler is not None:
                    shared.objects.release(compiler.acquired_objects)
        return results

    def _open(self) -> GraphHandle:
        options = self._options
        return self._manager.open_graph(
            str(options.progress_label),
            total=self.vertices,
            retries=WORKER_RETRIES if options.retries is None else options.retries,
            prune_depth=options.prune_depth,
            priority_mode=options.task_priority_mode or "",
            report_each_task=bool(self._callbacks) or options.verbose or options.wrapper is not None,
            covers=self.covers if self._settings.reuse else None,
        )

    def _make_compiler(self) -> Compiler:
        options, shared = self._options, self._settings.shared
        registered = shared.registrations.serialize(options.env_vars or ())
        if registered and self._settings.reuse and shared.registrations.are_plain_settings():
            # The first of the shared objects of a task: no vertex leaves anything in it for others.
            self._settings.task_options["settings"] = True
        compiler = Compiler(
            self._graph,
            self._results,
            shared.objects,
            in_library=options.task_mode == "function-calls",
            wrapper=options.wrapper,
            registered=registered,
        )
        for text in shared.registrations.serialized_kinds():
            compiler.modules.update(modules_referenced(text))
        self._program = compiler.acquire(
            dumps(shared.folders.describe_program(has_files=bool(options.extra_files)))
        )
        self._readers = Counter(d for found in self._graph.dependencies.values() for d in found)
        return compiler

    def _assign_cache_keys(self) -> None:
        """Name results so that the next computation finds them."""
        manager, reuse = self._manager, self._settings.reuse
        deterministic = reuse if callable(reuse) else lambda _key: True
        context, things, variables = self._settings.cache_key_context()
        resumes, vouched = self._options.reuse is None, callable(reuse)
        if resumes or vouched:
            self._tolerated = used_resources.SAME_GRAPH if resumes else frozenset({used_resources.RANDOM})
        keys = ResultKeys(self._graph, context, deterministic, things, variables, trusted=resumes or vouched)
        names = {key: keys.key_for(key) for key in self._graph.vertices}
        if resumes:
            names = self._for_this_graph(names)
        for key, name in names.items():
            self._results[key] = name or manager.result_name(self._handle.allocate_task_number())
        self._result_keys = keys

    def _for_this_graph(self, names: dict[Key, str | None]) -> dict[Key, str | None]:
        """Restrict names to this graph: only a resumed run of this graph finds its results."""
        made = repr([names.get(self._graph.resolve(key)) for key in self._graph.targets])
        self._identity = hashlib.sha256(made.encode()).hexdigest()
        graph = f"{self._identity} {self._settings.shared.computed_graphs[self._identity]}"
        return {
            key: name and CACHE_KEY_PREFIX + hashlib.sha256(f"{name} {graph}".encode()).hexdigest()[:40]
            for key, name in names.items()
        }

    def covers(self, task: int, used: list[str]) -> bool:
        """Return whether the name of what a task makes tells of all that it has used; called in the server's thread."""
        if self._result_keys is None:
            return True
        used = [one for one in used if one not in self._tolerated]
        return self._result_keys.covers(self._keys[task], used)

    def _submit(self, compiler: Compiler) -> None:
        size = min(MAX_TASKS_PER_SLICE, self._options.submit_per_cycle or MAX_TASKS_PER_SLICE)
        slice_: list[TaskSpec] = []
        dag = DaskVineDag(self._graph)
        needs_depth = self._options.task_priority_mode in ("depth-first", "breadth-first")
        checkpoint = self._options.checkpoint_fn
        targets = set(self._graph.targets)
        for number, key in enumerate(self._graph.in_priority_order()):
            wanted = not self._options.worker_transfers or key in targets
            if not wanted and checkpoint is not None:
                wanted = bool(checkpoint(dag, key))
            depth = dag.depth_of(key) if needs_depth else 0
            slice_.append(self._make_task_spec(compiler, number, key, wanted=wanted, depth=depth))
            if len(slice_) >= size:
                self._submit_slice(slice_, compiler)
                slice_ = []
            if self._handle.is_finished():
                return
        if slice_:
            self._submit_slice(slice_, compiler)

    def _submit_slice(self, slice_: list[TaskSpec], compiler: Compiler) -> None:
        options = self._options
        if options.task_mode == "function-calls" and not self.library:
            self.library = self._settings.install_library(
                compiler.modules, records=self._result_keys is not None
            )
            slice_ = [spec._replace(library=self.library) for spec in slice_]
        elif options.task_mode == "tasks" and not self._preload_sent:
            # The first tasks say what the warm Python should import.
            self._preload_sent = True
            preload = sorted(compiler.modules)
            slice_ = [
                spec._replace(options={**spec.options, "preload": preload})
                for spec in slice_[:PRELOAD_HINT_TASKS]
            ] + slice_[PRELOAD_HINT_TASKS:]
        while slice_ and not self._handle.is_finished():
            room = len(slice_)
            if options.max_pending is not None:
                room = options.max_pending - self._handle.status().unfinished
            if room > 0:
                self._post_tasks(slice_[:room])
                slice_ = slice_[room:]
            else:
                self._handle.wait(ROOM_POLL_INTERVAL_S)
                self._poll()

    def _post_tasks(self, specs: list[TaskSpec]) -> None:
        for spec in specs if self._callbacks else ():
            self._callbacks.on_submit(self._keys[spec.task])
        # One turn of the server's loop is the cycle of ``submit_per_cycle``.
        self._handle.submit(specs)

    def _make_task_spec(
        self, compiler: Compiler, rank: int, key: Key, *, wanted: bool, depth: int
    ) -> TaskSpec:
        task = self._handle.allocate_task_number()
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
        category = self._name_category(self._graph.vertices[key])
        environment, options = settings.environment, settings.task_options
        if settings.differs_by_task:
            environment, options = settings.adapt_to_task(TaskInfo(task, key, category), self._handle)
        annotated = self._annotations.get(key, NO_ANNOTATIONS)
        priority: float = rank
        if annotated.priority is not None:
            priority -= annotated.priority * PRIORITY_STEP
        retries = self._options.retries if annotated.retries is None else annotated.retries
        if self._options.resources_mode is not None and self._options.task_mode == "tasks":
            category = settings.configure_category(category)
        return TaskSpec(
            task,
            str(key),
            result,
            self._handle.number,
            self.library,
            call.function,
            call.payload,
            (*call.shared, self._program),
            call.inputs,
            mounts=settings.mounts,
            wanted_at_manager=(result,) if wanted else (),
            category=category,
            request=annotated.request.with_defaults(settings.request),
            priority=priority,
            depth=depth,
            environment=environment,
            peer_transfer=self._options.worker_transfers,
            reader_count=self._readers[key],
            options=options,
            on_demand=self._result_keys is not None,
            content_addressed=reusable,
            level=settings.cache_level if reusable else TASK,
            exception_retries=retries or 0,
        )

    def print_summary(self) -> None:
        """Print what the computation did."""
        end = time.time() if self.ended_at is None else self.ended_at
        duration = 0.0 if self.started_at is None else end - self.started_at
        rows = {
            "vertices": self.vertices,
            "computed": self.done,
            "ran": self.executed,
            "ran again after a loss": self.recomputed,
            "moved between workers": f"{self.moved_bytes / 1e6:.1f} MB",
            "time": f"{duration:.2f} s",
        }
        for name, value in rows.items():
            print(f"{name:<24}{value:>12}")

    # ---- meanwhile

    def _poll(self) -> None:
        """Report what has happened since the last time."""
        for news in self._handle.finished_tasks():
            key = self._keys[news.task]
            self._output.show_task(key, news.info)
            if self._options.verbose:
                print(f"{key} ran on {self._manager.worker_name(news.worker)}")
            if "note" in news.info:
                self._options.wrapper_proc(values.loads(base64.b64decode(news.info["note"])))
            if self._callbacks:
                self._callbacks.on_vertex_finished(key, news.worker)
        self._progress.update(self._take_snapshot())

    def _take_snapshot(self) -> ProgressSnapshot:
        status = self._handle.status()
        # A graph whose tasks are all deferred counts as done until its targets are asked for.
        looking = self._result_keys is not None and not status.submitted
        self.done = 0 if looking else status.done
        self.recomputed, self.moved_bytes = status.recomputed, status.moved_bytes
        self.executed = self.vertices - status.deferred
        if self.done and self.first_completed_at is None:
            self.first_completed_at = time.time()
        return ProgressSnapshot(
            self.vertices,
            self.done,
            status.running,
            max(0, self.vertices - self.done - status.running),
            status.workers,
            self.moved_bytes,
            self._manager.stalled_reason or None,
            looking,
        )

    # ---- the end

    def _collect_results(self, end: GraphOutcome) -> dict[Key, Any]:
        if end.outcome != "success":
            key = self._keys.get(end.task)
            worker = end.info.get("worker", 0)
            self._output.show_task(key, end.info)
            error = self._manager.make_exception(
                end.outcome, end.info, end.payload, f"vertex {key!r}", worker
            )
            where = self._manager.worker_name(worker) if worker else ""
            explain_unseen_folder(error, end.info.get("unseen"), where)
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
            content = self._handle.result(self._results[key])
            try:
                value = values.load_file(content) if isinstance(content, str) else values.loads(content)
            except Exception as error:
                add_note(error, f"vertex {key!r} has a result that could not be loaded here")
                raise
            yield key, value
