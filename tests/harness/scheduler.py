"""A scheduler without a server: tests send events and compare the instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.specs import FileSpec, GraphSpec, LibrarySpec, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vinecore.scheduler.state import FileState, GraphState, TaskState, WorkerState

T = TypeVar("T")
ONE_CORE = ResourceRequest(cores=1)
LARGE = 10 * INLINE_LIMIT
NEVER = "never"


class SchedulerHarness:
    """A scheduler, the time, and all its instructions.

    Attributes
    ----------
    log : list of instructions
        All instructions.
    last_instructions : list of instructions
        The instructions that followed from the last `send_events`.
    """

    def __init__(self, python: str = "3.11", needs: tuple[str, ...] = (), *, validate: bool = True) -> None:
        self.scheduler = Scheduler(python, needs, validate=validate)
        self.state = self.scheduler.state
        self.now = 0.0
        self.log: list[i.Instruction] = []
        self.last_instructions: list[i.Instruction] = []
        self._workers = 0

    def send_events(self, *events: e.Event) -> list[i.Instruction]:
        self.last_instructions = self.scheduler.handle(events, self.now)
        self.log += self.last_instructions
        return self.last_instructions

    def advance_time(self, seconds: float = 1.0) -> list[i.Instruction]:
        self.now += seconds
        return self.send_events(e.Tick())

    # ---- the user

    def declare_file(self, name: str, **spec: Any) -> list[i.Instruction]:
        return self.send_events(e.FilesDeclared([FileSpec(name, **spec)]))

    def install_library(self, name: str = "lib", slots: int | None = 1, **spec: Any) -> list[i.Instruction]:
        spec = {"request": ONE_CORE, **spec}
        self.declare_file("setup", size=10, at_manager=True)
        return self.send_events(e.LibraryInstalled(LibrarySpec(name, "setup", slots, **spec)))

    def open_graph(self, number: int = 1, **spec: Any) -> list[i.Instruction]:
        return self.send_events(e.GraphOpened(GraphSpec(number, f"graph {number}", **spec)))

    def submit_tasks(self, *specs: TaskSpec) -> list[i.Instruction]:
        return self.send_events(e.TasksSubmitted(list(specs)))

    def compute_graph(self, *specs: TaskSpec, number: int = 1, **spec: Any) -> list[i.Instruction]:
        """Open a graph, submit all its tasks, and say that it is complete."""
        readers = [name for task in specs for name in {*task.inputs, *task.mounts}]
        return self.send_events(
            e.GraphOpened(GraphSpec(number, f"graph {number}", **spec)),
            e.TasksSubmitted(
                [task._replace(graph=number, reader_count=readers.count(task.result)) for task in specs]
            ),
            e.GraphSubmitted(number),
        )

    # ---- the workers

    def connect_worker(
        self,
        cores: int = 1,
        port: int = 7,
        python: str = "3.11",
        versions: dict[str, str] | None = None,
        **hello: Any,
    ) -> int:
        self._workers += 1
        about: dict[str, Any] = {
            "memory_mb": 1000 * cores,
            "disk_mb": 1000,
            "gpus": 0,
            "features": [],
            **hello,
        }
        host = f"host{self._workers}"
        said = m.Hello(
            protocol=1,
            hostname=host,
            pid=1,
            python=python,
            cores=cores,
            data_port=port,
            versions=versions or {},
            **about,
        )
        self.send_events(e.WorkerConnected(self._workers, host, said))
        return self._workers

    def disconnect_worker(self, worker: int, reason: str = "the connection broke") -> list[i.Instruction]:
        return self.send_events(e.WorkerDisconnected(worker, reason))

    def worker_sends(self, worker: int, *messages: m.Message) -> list[i.Instruction]:
        return self.send_events(*(e.MessageReceived(worker, message) for message in messages))

    def complete_task(
        self, number: int, size: int = 10, payload: bytes = b"", wall_s: float = 0.05, **info: Any
    ) -> list[i.Instruction]:
        """Have the worker of a task report that it is done."""
        worker, dispatch_id = self.assignment_of(number)
        return self.worker_sends(worker, m.TaskDone(dispatch_id, size, wall_s, info, payload))

    def fail_task(
        self, number: int, kind: str = "crash", payload: bytes = b"", **info: Any
    ) -> list[i.Instruction]:
        worker, dispatch_id = self.assignment_of(number)
        return self.worker_sends(worker, m.TaskFailed(dispatch_id, kind, info, payload))

    def report_cached(self, worker: int, name: str, size: int = LARGE) -> list[i.Instruction]:
        return self.worker_sends(worker, m.Cached(name, size))

    def report_failed_fetch(
        self, worker: int, name: str, source: str, *, gone: bool = False
    ) -> list[i.Instruction]:
        return self.worker_sends(worker, m.FetchFailed(name, source, "no route", gone))

    def assignment_of(self, number: int) -> tuple[int, int]:
        """Return the worker of a task, and its dispatch id there."""
        task = self.state.tasks[number]
        assert task.worker is not None, f"{task} is on no worker"
        return task.worker.id, task.dispatch_id

    # ---- the scheduler's records

    def task(self, number: int) -> TaskState:
        return self.state.tasks[number]

    def state_of(self, number: int) -> str:
        return self.state.tasks[number].state

    def file(self, name: str) -> FileState:
        return self.state.files[name]

    def worker(self, number: int) -> WorkerState:
        return self.state.workers[number]

    def graph(self, number: int = 1) -> GraphState:
        return self.state.graphs[number]

    def replica_holders(self, name: str) -> set[int]:
        return {worker.id for worker in self.state.files[name].replicas}

    def assignments(self) -> dict[int, int]:
        """Return the worker of each task that is on one, by number."""
        return {
            t.spec.task: t.worker.id for t in self.state.tasks.values() if t.state == "assigned" and t.worker
        }

    # ---- instructions

    def instructions_of(self, kind: type[T], out: Iterable[i.Instruction] | None = None) -> list[T]:
        """Return the last instructions of a kind, or those of others."""
        return [x for x in (self.last_instructions if out is None else out) if isinstance(x, kind)]

    def messages_sent(self, kind: type[T], out: Iterable[i.Instruction] | None = None) -> list[tuple[int, T]]:
        """Return worker and message for the last messages of a kind."""
        sends = self.instructions_of(i.Send, out)
        return [(x.worker, x.message) for x in sends if isinstance(x.message, kind)]

    def dispatched_tasks(self, out: Iterable[i.Instruction] | None = None) -> list[int]:
        """Return the numbers of the tasks that were sent to workers, in order."""
        return [run.task & (1 << 40) - 1 for _worker, run in self.messages_sent(m.RunTask, out)]

    def removed_objects(self, out: Iterable[i.Instruction] | None = None) -> set[tuple[int, str]]:
        messages = [*self.messages_sent(m.RemoveObjects, out), *self.messages_sent(m.PurgeObjects, out)]
        return {(worker, name) for worker, message in messages for name in message.names}

    def retained_objects(self, out: Iterable[i.Instruction] | None = None) -> set[tuple[int, str, bool]]:
        return {
            (worker, name, message.forever)
            for worker, message in self.messages_sent(m.RetainObjects, out)
            for name in message.names
        }

    def requested_fetches(self, out: Iterable[i.Instruction] | None = None) -> list[tuple[int, str, str]]:
        """Return worker, object and source of the requested transfers."""
        return [(worker, fetch.name, fetch.source) for worker, fetch in self.messages_sent(m.Fetch, out)]


def call(number: int, *inputs: str, library: str = "lib", **spec: Any) -> TaskSpec:
    """Return a call whose result is named r and its number."""
    spec = {"result": f"r{number}", "function": "f", "priority": number, **spec}
    return TaskSpec(number, f"t{number}", library=library, inputs=inputs, **spec)


def chain(length: int, **spec: Any) -> list[TaskSpec]:
    """Return calls that each read the result of the one before."""
    return [call(n, *([f"r{n - 1}"] if n > 1 else []), **spec) for n in range(1, length + 1)]


def single(number: int, *inputs: str, **spec: Any) -> TaskSpec:
    """Return a task with a process of its own."""
    return call(number, *inputs, library="", **{"request": ONE_CORE, **spec})


def maker(number: int, *outputs: str, **spec: Any) -> TaskSpec:
    """Return a task with a process of its own and files as outputs."""
    return single(
        number,
        outputs=outputs,
        options={"outputs": [[f"out-{name}", name, "always"] for name in outputs]},
        **spec,
    )


def end_without_output(harness: SchedulerHarness, number: int, end: str) -> None:
    """End a task without its output: by ``failure``, by ``cancel``, or as done."""
    if end == "failure":
        harness.fail_task(number, "exception")
    elif end == "cancel":
        harness.send_events(e.TasksCancelled([number]))
    else:
        harness.complete_task(number)


def task_outcomes(harness: SchedulerHarness) -> dict[int, str]:
    """Return the outcomes of the tasks without a graph that have ended."""
    return {x.task: x.outcome for x in harness.instructions_of(i.TaskFinished, harness.log)}


def graph_outcomes(harness: SchedulerHarness) -> dict[int, str]:
    """Return the outcomes of the graphs that have ended."""
    return {x.graph: x.outcome for x in harness.instructions_of(i.GraphFinished, harness.log)}
