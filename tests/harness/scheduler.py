"""A mind with hands that only take notes: for tests that feed events and compare instructions."""

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


class Vine:
    """A mind, the time, and everything it has asked for since the last look.

    Attributes
    ----------
    log : list of instructions
        All that the mind has asked for.
    out : list of instructions
        What it asked for in answer to the last `feed`.
    """

    def __init__(self, python: str = "3.11", needs: tuple[str, ...] = (), *, validate: bool = True) -> None:
        self.mind = Scheduler(python, needs, validate=validate)
        self.tables = self.mind.tables
        self.now = 0.0
        self.log: list[i.Instruction] = []
        self.out: list[i.Instruction] = []
        self._workers = 0

    def feed(self, *happened: e.Event) -> list[i.Instruction]:
        self.out = self.mind.handle(happened, self.now)
        self.log += self.out
        return self.out

    def tick(self, seconds: float = 1.0) -> list[i.Instruction]:
        self.now += seconds
        return self.feed(e.Tick())

    # ---- the user

    def declare(self, name: str, **spec: Any) -> list[i.Instruction]:
        return self.feed(e.FilesDeclared([FileSpec(name, **spec)]))

    def library(self, name: str = "lib", slots: int | None = 1, **spec: Any) -> list[i.Instruction]:
        spec = {"request": ONE_CORE, **spec}
        self.declare("setup", size=10, at_manager=True)
        return self.feed(e.LibraryInstalled(LibrarySpec(name, "setup", slots, **spec)))

    def open(self, run: int = 1, **spec: Any) -> list[i.Instruction]:
        return self.feed(e.GraphOpened(GraphSpec(run, f"run {run}", **spec)))

    def submit(self, *specs: TaskSpec) -> list[i.Instruction]:
        return self.feed(e.TasksSubmitted(list(specs)))

    def compute(self, *specs: TaskSpec, run: int = 1, **spec: Any) -> list[i.Instruction]:
        """Open a run, submit a graph, and say that this is all."""
        readers = [name for task in specs for name in {*task.inputs, *task.mounts}]
        return self.feed(
            e.GraphOpened(GraphSpec(run, f"run {run}", **spec)),
            e.TasksSubmitted(
                [task._replace(run=run, reader_count=readers.count(task.result)) for task in specs]
            ),
            e.GraphSubmitted(run),
        )

    # ---- the workers

    def join(
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
        self.feed(e.WorkerConnected(self._workers, host, said))
        return self._workers

    def lose(self, worker: int, reason: str = "it broke") -> list[i.Instruction]:
        return self.feed(e.WorkerDisconnected(worker, reason))

    def say(self, worker: int, *messages: m.Message) -> list[i.Instruction]:
        return self.feed(*(e.MessageReceived(worker, message) for message in messages))

    def done(
        self, number: int, size: int = 10, payload: bytes = b"", wall_s: float = 0.05, **info: Any
    ) -> list[i.Instruction]:
        """A task ends well where it is."""
        worker, ticket = self.place(number)
        return self.say(worker, m.TaskDone(ticket, size, wall_s, info, payload))

    def failed(
        self, number: int, kind: str = "crash", payload: bytes = b"", **info: Any
    ) -> list[i.Instruction]:
        worker, ticket = self.place(number)
        return self.say(worker, m.TaskFailed(ticket, kind, info, payload))

    def cached(self, worker: int, name: str, size: int = LARGE) -> list[i.Instruction]:
        return self.say(worker, m.Cached(name, size))

    def fetch_failed(self, worker: int, name: str, source: str, *, gone: bool = False) -> list[i.Instruction]:
        return self.say(worker, m.FetchFailed(name, source, "no route", gone))

    def place(self, number: int) -> tuple[int, int]:
        """The worker that has a task, and its ticket there."""
        task = self.tables.tasks[number]
        assert task.worker is not None, f"{task} is on no worker"
        return task.worker.id, task.dispatch_id

    # ---- what is known

    def task(self, number: int) -> TaskState:
        return self.tables.tasks[number]

    def state(self, number: int) -> str:
        return self.tables.tasks[number].state

    def file(self, name: str) -> FileState:
        return self.tables.files[name]

    def worker(self, number: int) -> WorkerState:
        return self.tables.workers[number]

    def run(self, number: int = 1) -> GraphState:
        return self.tables.runs[number]

    def holders(self, name: str) -> set[int]:
        return {worker.id for worker in self.tables.files[name].replicas}

    def where(self) -> dict[int, int]:
        """Task -> worker, of all that are on a worker."""
        return {
            t.spec.task: t.worker.id for t in self.tables.tasks.values() if t.state == "assigned" and t.worker
        }

    # ---- what was asked for

    def told(self, kind: type[T], out: Iterable[i.Instruction] | None = None) -> list[T]:
        """Instructions of a kind, of the last answer."""
        return [x for x in (self.out if out is None else out) if isinstance(x, kind)]

    def sent(self, kind: type[T], out: Iterable[i.Instruction] | None = None) -> list[tuple[int, T]]:
        """Worker and message, of the messages of a kind in the last answer."""
        sends = self.told(i.Send, out)
        return [(x.worker, x.message) for x in sends if isinstance(x.message, kind)]

    def started(self, out: Iterable[i.Instruction] | None = None) -> list[int]:
        """Numbers of the tasks that were sent to a worker, in order."""
        return [run.task & (1 << 40) - 1 for _worker, run in self.sent(m.RunTask, out)]

    def unlinked(self, out: Iterable[i.Instruction] | None = None) -> set[tuple[int, str]]:
        messages = [*self.sent(m.RemoveObjects, out), *self.sent(m.PurgeObjects, out)]
        return {(worker, name) for worker, message in messages for name in message.names}

    def retained(self, out: Iterable[i.Instruction] | None = None) -> set[tuple[int, str, bool]]:
        return {
            (worker, name, message.forever)
            for worker, message in self.sent(m.RetainObjects, out)
            for name in message.names
        }

    def fetches(self, out: Iterable[i.Instruction] | None = None) -> list[tuple[int, str, str]]:
        """Worker, object and source of the transfers that were asked for."""
        return [(worker, fetch.name, fetch.source) for worker, fetch in self.sent(m.Fetch, out)]


def call(number: int, *inputs: str, library: str = "lib", **spec: Any) -> TaskSpec:
    """A function call whose result is called r and its number."""
    spec = {"result": f"r{number}", "function": "f", "priority": number, **spec}
    return TaskSpec(number, f"t{number}", library=library, inputs=inputs, **spec)


def chain(length: int, **spec: Any) -> list[TaskSpec]:
    """Calls of which each reads what the one before has made."""
    return [call(n, *([f"r{n - 1}"] if n > 1 else []), **spec) for n in range(1, length + 1)]


def single(number: int, *inputs: str, **spec: Any) -> TaskSpec:
    """A task with a process of its own."""
    return call(number, *inputs, library="", **{"request": ONE_CORE, **spec})


def maker(number: int, *outputs: str, **spec: Any) -> TaskSpec:
    """A single task with files as outputs."""
    return single(
        number,
        outputs=outputs,
        options={"outputs": [[f"out-{name}", name, "always"] for name in outputs]},
        **spec,
    )


def end_without_output(vine: Vine, number: int, end: str) -> None:
    """End a task, which does not make its output: by ``failure``, by ``cancel``, or as one that went well."""
    if end == "failure":
        vine.failed(number, "exception")
    elif end == "cancel":
        vine.feed(e.TasksCancelled([number]))
    else:
        vine.done(number)


def outcomes(vine: Vine) -> dict[int, str]:
    """How tasks that were submitted by themselves have ended, all of them so far."""
    return {x.task: x.outcome for x in vine.told(i.TaskFinished, vine.log)}


def endings(vine: Vine) -> dict[int, str]:
    """How runs have ended."""
    return {x.run: x.outcome for x in vine.told(i.GraphFinished, vine.log)}
