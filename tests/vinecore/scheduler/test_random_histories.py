"""The manager's mind and the worker's mind against each other, in a world where everything may be late, lost or broken.

The world runs the real `Mind` and, for every worker, the real `WorkerState`. Only the hands are simulated: messages wait in queues, and
fetches, uploads, slots and processes are jobs that end when the machine says so, well or badly. After every step the tables are compared
with what they should be, computed from scratch. At the end the faults stop, and then everything has to come to its end: every task has
ended once, every run has ended once, the manager holds what was wanted, every worker holds what the tables say it holds, and when all is
closed nothing is left anywhere.
"""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter, deque
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from vineworker.slot_protocol import Reply
from vineworker.state import events as we
from vineworker.state import instructions as wi
from vineworker.state import state_machine as w
from vineworker.state.records import required_objects

from vinecore.journal import records as j
from vinecore.journal.recorder import JournalRecorder
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.replicas import has_safe_replica, is_needed
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.specs import FOREVER, TASK, WORKER, FileSpec, GraphSpec, LibrarySpec, TaskSpec

SMALL, LARGE = 10, 300_000
SETUP, FUNCTION, DATA, ADDRESS, ARCHIVED, UNPACKED = (
    "setup",
    "function",
    "data",
    "address",
    "archive",
    "unpacked",
)
BRIEF, LASTING = "brief", "lasting"
DECLARED = (
    FileSpec(SETUP, SMALL, at_manager=True),
    FileSpec(FUNCTION, SMALL, at_manager=True),
    FileSpec(DATA, LARGE, at_manager=True, digest="declared"),
    FileSpec(ADDRESS, url="https://example.org/data"),
    FileSpec(ARCHIVED, LARGE, at_manager=True, digest="declared"),
    FileSpec(UNPACKED, archive=ARCHIVED, directory=True),
    FileSpec(BRIEF, LARGE, at_manager=True, digest="declared", level=TASK),
    FileSpec(LASTING, LARGE, at_manager=True, digest="declared", level=FOREVER),
)
LIBRARIES = (
    LibrarySpec("whole", SETUP),
    LibrarySpec("shared", SETUP, 2, ResourceRequest(cores=1), files=(DATA,)),
    LibrarySpec("archived", SETUP, 1, ResourceRequest(cores=1), environment=UNPACKED),
)
MODES = ("fixed", "fixed", "max", "min waste", "greedy_bucketing")
POLICIES = (
    *("files",) * 5,
    "time",
    "rand",
    "worst",
    "disk",
    "fcfs",
    "through the manager",
    "one at a time",
    "two copies",
)
PRIORITIES = ("", "", "", "FIFO", "LIFO", "depth-first", "breadth-first", "random", "longest-category-first",
              "shortest-category-first", "largest-input-first")  # fmt: skip
DISKS = (1, 2, 1000)  # MB
REQUESTS = (ResourceRequest(), ResourceRequest(cores=1), ResourceRequest(cores=2, memory=100))


class Ending(NamedTuple):
    """How a job ends."""

    kind: str  # "well", "badly", "worse"
    count: int = 1


class SimulatedWorker:
    """The real state machine of a worker with simulated hands."""

    def __init__(self, number: int, address: str, reachable: bool) -> None:
        self.number, self.address, self.reachable = number, address, reachable
        self.state = w.WorkerStateMachine()
        self.inbox: deque[m.Message] = deque()
        self.outbox: deque[m.Message] = deque()
        self.cache: dict[str, int] = {}
        self.contents: dict[
            str, str
        ] = {}  # digests of what is in the cache; of what was altered since, another one
        self.offered: dict[
            str, tuple[we.ObjectArrived, int, str]
        ] = {}  # not compared yet: only others may have it
        self.made = 0
        self.jobs: list[tuple[str, Any]] = []
        self.slots: dict[
            int, tuple[str, deque[m.RunTask], m.RunTask | None]
        ] = {}  # host, calls in the socket, single task
        self.fed: dict[
            int, tuple[str, int]
        ] = {}  # of calls in sockets: the input that a slot has by then, and who makes it
        self.done: dict[int, set[int]] = {}  # slot -> what it has done
        self.killed: set[int] = set()  # processes
        self.disk: dict[str, tuple[int, str]] = {}  # what it keeps forever: sizes and contents
        self.leaves_at, self.dies_at = math.inf, math.inf  # when it begins to leave, and is gone in any case
        self.to_keep: set[str] = set()

    def receive(self, count: int) -> None:
        """Give some messages of the manager to the state machine, together."""
        self.feed([self.inbox.popleft() for _ in range(min(count, len(self.inbox)))])

    def feed(self, events: list[Any]) -> None:
        for instruction in self.state.handle(events):
            getattr(self, f"_{type(instruction).__name__}")(instruction)

    def _SendMessage(self, x: wi.SendMessage) -> None:
        self.outbox.append(x.message)

    def _StartForkServer(self, x: wi.StartForkServer) -> None:
        assert ("host", x.host) not in self.jobs
        if x.library is not None:
            assert {x.library.setup, *filter(None, [x.environment])} <= self.cache.keys()
        self.jobs.append(("host", x.host))

    def _StopForkServer(self, x: wi.StopForkServer) -> None:
        self.jobs = [job for job in self.jobs if job != ("host", x.host)]
        for slot in [slot for slot, (host, _calls, _single) in self.slots.items() if host == x.host]:
            self._slot_gone(slot)

    def _slot_gone(self, slot: int) -> None:
        del self.slots[slot]
        self.jobs = [job for job in self.jobs if job not in (("slot", slot), ("kill", slot))]

    def _StartSlot(self, x: wi.StartSlot) -> None:
        self.slots[x.slot] = (x.host, deque(), x.run)
        self.jobs.append(("slot", x.slot))

    def _KillSlot(self, x: wi.KillSlot) -> None:
        if x.slot in self.slots:
            self.jobs.append(("kill", x.slot))

    def _SendCall(self, x: wi.SendCall) -> None:
        calls = self.slots[x.slot][1]
        coming = set()
        self.fed.pop(x.run.task, None)
        if x.chained_input is not None:
            self.fed[x.run.task] = x.chained_input
            coming = {x.chained_input[0]}
            assert x.chained_input in [(run.result, run.task) for run in calls], (
                "what feeds it is not in flight before it"
            )
        assert {*x.run.shared, *x.run.inputs} - self.cache.keys() == coming, (
            f"a slot is sent {x.run} without its inputs"
        )
        calls.append(x.run)

    def _DropShared(self, x: wi.DropShared) -> None:
        assert not set(x.names) & self.cache.keys() or True

    def _StartProcess(self, x: wi.StartProcess) -> None:
        assert set(required_objects(x.run)) <= self.cache.keys(), (x.run, self.cache, self.state.objects)
        self.jobs.append(("process", x.run))

    def _KillProcess(self, x: wi.KillProcess) -> None:
        self.killed.add(x.task)

    def _StartFetch(self, x: wi.StartFetch) -> None:
        self.jobs.append(("fetch", x.fetch))

    def _StartUnpack(self, x: wi.StartUnpack) -> None:
        self.jobs.append(("unpack", x.unpack))

    def _StartUpload(self, x: wi.StartUpload) -> None:
        self.jobs.append(("upload", (x.name, x.digest)))

    def hold(self, name: str, size: int, content: str) -> None:
        """An object is here that may be used."""
        self.offered.pop(name, None)
        self.cache[name], self.contents[name] = size, content

    def find(self, name: str) -> tuple[int | None, str]:
        """What others get."""
        if name in self.offered:
            return self.offered[name][1:]
        return self.cache.get(name), self.contents.get(name, "")

    def _StoreBytes(self, x: wi.StoreBytes) -> None:
        self.hold(x.name, len(x.payload), "")

    def _StoreResultFile(self, x: wi.StoreResultFile) -> None:
        self.hold(x.name, LARGE, f"{self.number}.{x.task}")

    def make(self, name: str, size: int) -> str:
        """A task leaves something here; give its digest."""
        self.made += 1
        self.hold(name, size, f"{self.number}-{self.made}" if size == LARGE else "")
        return self.contents[name]

    def _PersistObject(self, x: wi.PersistObject) -> None:
        self.jobs.append(("keep", x))
        self.to_keep.add(x.name)

    def _ReleasePersisted(self, x: wi.ReleasePersisted) -> None:
        self.jobs = [job for job in self.jobs if not (job[0] == "keep" and job[1].name in x.names)]
        for name in x.names:
            self.disk.pop(name, None)

    def _Delete(self, x: wi.Delete) -> None:
        for name in x.names:
            self.cache.pop(name, None)
            self.offered.pop(name, None)


class World:
    """A manager's mind, some workers, and the queues between them."""

    def __init__(self, mode: str, policy: str, disks: tuple[int, ...] = DISKS) -> None:
        self.mind = Scheduler("3.11", validate=True)
        self.disks = disks
        self.tables = self.mind.tables
        self.now = 0.0
        self.teller = JournalRecorder(0.0)
        self.stays: set[tuple[int, int, int]] = set()  # of tasks on workers, as the journal has it
        self.events: list[e.Event] = []  # for the mind, together with the next ones
        self.unsent: deque[e.Event] = deque()  # of the user, in order
        self.workers: dict[int, SimulatedWorker] = {}
        self.numbers = self.run_numbers = self.worker_numbers = 0
        self.specs: dict[int, TaskSpec] = {}
        self.tasks_over: dict[int, str] = {}
        self.runs: dict[int, GraphSpec] = {}
        self.runs_over: dict[int, str] = {}
        self.telling: set[int] = set()
        self.reusing: set[int] = set()  # runs that name results by recipes
        self.sleepers: set[int] = set()  # single tasks that nobody may ever need
        self.never_made: set[str] = set()
        self.wanted: dict[int, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.temporaries: list[str] = []  # declared by the user, made by tasks
        self.pinned: list[str] = []  # results of runs that the user holds
        self.excuses: set[str] = {"too large", "input missing"} if min(disks) < 1000 else set()
        self.store = {spec.name: spec.size for spec in DECLARED if spec.at_manager}
        self.stored = {spec.name: spec.digest for spec in DECLARED if spec.at_manager}
        self.user(e.FilesDeclared(list(DECLARED)))
        for library in LIBRARIES:
            self.user(e.LibraryInstalled(library))
        self.user(e.SettingChanged("category-steady-n-tasks", 2))
        self.user(e.CategorySet("b", mode, None, None, None))
        if policy == "through the manager":
            self.user(e.SettingChanged("peer-transfers", False))
        elif policy == "one at a time":
            self.user(e.SettingChanged("worker-source-max-transfers", 1))
            self.user(e.SettingChanged("file-source-max-transfers", 1))
        elif policy == "two copies":
            self.user(e.SettingChanged("temp-replica-count", 2))
        else:
            self.user(e.SettingChanged("scheduler", policy))
        self.released = 0
        self.removed: set[str] = set()
        self.left_behind: deque[dict[str, tuple[int, str]]] = deque()  # of workers that were lost
        self.undeclared: set[str] = set()
        self.held = {BRIEF, LASTING}  # declared by the user, and may be released

    # ---- the mind

    def user(self, event: e.Event) -> None:
        self.events.append(event)
        self.handle()

    def handle(self) -> None:
        """Have the mind take what has been collected, and look at everything."""
        events, self.events = self.events, []
        for event in events:
            if type(event) is e.ObjectStored:
                self.store[event.name], self.stored[event.name] = event.size, event.digest
        instructions = self.mind.handle(events, self.now)
        self.write_down(self.teller.records_for(self.now, events, instructions))
        for instruction in instructions:
            getattr(self, f"_{type(instruction).__name__}")(instruction)
        for known in self.tables.files.values():
            assert not known.at_manager or known.name in self.store

    def write_down(self, records: list[j.Record]) -> None:
        """What the journal says of where tasks are is what the mind knows."""
        for record in records:
            if type(record) is j.TaskDispatched:
                stay = (record.worker, record.task, record.attempt)
                assert stay not in self.stays
                self.stays.add(stay)
            elif type(record) in (j.TaskDone, j.TaskFailed, j.TaskReturned):
                self.stays.remove((record.worker, record.task, record.attempt))
        workers = self.tables.workers.values()
        assert self.stays == {
            (worker.id, task.spec.task, task.dispatch_count)
            for worker in workers
            for task in worker.tasks.values()
        }

    def _Send(self, x: i.Send) -> None:
        if x.worker in self.workers:
            self.workers[x.worker].inbox.append(x.message)

    def _SendObject(self, x: i.SendObject) -> None:
        assert x.name in self.store, f"the manager is to send {x.name}, which it does not have"
        if x.worker in self.workers:
            self.workers[x.worker].inbox.append(m.PutObject(x.name, bytes(self.store[x.name])))

    def _StoreObject(self, x: i.StoreObject) -> None:
        self.store[x.name], self.stored[x.name] = len(x.payload), ""

    def _DropObject(self, x: i.DropObject) -> None:
        assert x.name in self.store
        if x.name not in self.held:  # else the user has declared it again meanwhile
            del self.store[x.name]

    def _TaskFinished(self, x: i.TaskFinished) -> None:
        assert x.task not in self.tasks_over, f"task {x.task} ends twice"
        assert not self.specs[x.task].run
        self.tasks_over[x.task] = x.outcome
        self._check_excuse(x.outcome)
        if x.outcome == "success":
            for name in self.specs[x.task].wanted_at_manager:
                known = self.tables.files.get(name)
                assert x.payload or known is None or known.released or name in self.store

    def _GraphFinished(self, x: i.GraphFinished) -> None:
        assert x.run not in self.runs_over, f"run {x.run} ends twice"
        self.runs_over[x.run] = x.outcome
        self._check_excuse(x.outcome)
        if x.outcome == "success" and x.run in self.runs:
            missing = [
                name for name in self.wanted[x.run] if name not in self.store and name not in self.never_made
            ]
            assert not missing, f"run {x.run} has ended without {missing}"

    def _check_excuse(self, outcome: str) -> None:
        assert outcome == "success" or outcome in self.excuses, f"{outcome}, for which there is no reason"

    def _FileAvailable(self, x: i.FileAvailable) -> None:
        assert x.name in self.asked
        self.asked[x.name] = 0
        assert x.reason or x.name in self.store

    def _GraphTaskFinished(self, x: i.GraphTaskFinished) -> None:
        assert x.run in self.telling

    def _Disconnect(self, x: i.Disconnect) -> None:
        if x.worker in self.workers:
            record, worker = self.tables.workers[x.worker], self.workers[x.worker]
            if worker.inbox and type(worker.inbox[-1]) is m.Shutdown and self.now < worker.dies_at:
                self.released += 1
                assert not record.tasks
                for file in record.files:
                    assert not is_needed(file) or has_safe_replica(file, record), (
                        f"{x.worker} is sent away with {file}"
                    )
            self.lose(x.worker)

    def _LogMessage(self, _x: i.LogMessage) -> None:
        pass

    def _InputsAbsent(self, _x: i.InputsAbsent) -> None:
        self.excuses.add("input missing")
        self.unsent.append(e.Waited())

    _Stalled = _LibraryStarted = _TaskActivated = _LogMessage

    # ---- the user

    def open_run(self, shape: random.Random) -> None:
        """Open a run with a graph of a random shape; its tasks arrive in slices."""
        self.run_numbers += 1
        depth = shape.choice((0, 1, 1, 1, 2, 3))
        spec = GraphSpec(
            self.run_numbers,
            "",
            shape.choice((0, 2, 50)),
            depth,
            shape.choice(PRIORITIES),
            shape.random() < 0.3,
        )
        self.runs[spec.run] = spec
        self.telling |= {spec.run} if spec.report_each_task else set()
        taking_turns = not any(run in self.reusing for run in self.tables.runs) and not any(
            type(x) is e.GraphOpened and x.run.run in self.reusing for x in self.unsent
        )
        if taking_turns and shape.random() < 0.4:
            self.reusing.add(spec.run)
            graph = self._by_recipe(self._graph(shape, spec.run))
        else:
            graph = self._graph(shape, spec.run)
        self.wanted[spec.run] = [name for task in graph for name in task.wanted_at_manager]
        self.unsent.append(e.GraphOpened(spec))
        while graph:
            size = shape.randint(1, 4)
            self.unsent.append(e.TasksSubmitted(graph[:size]))
            graph = graph[size:]
        self.unsent.append(e.GraphSubmitted(spec.run))

    def submit_alone(self, shape: random.Random) -> None:
        """Submit tasks by themselves; some leave their results on the workers, some come before those that make their inputs."""
        graph = []
        late, absent = shape.random() < 0.4, shape.random() < 0.7
        for spec in self._graph(shape, 0):
            if spec.wanted_at_manager:
                options = {"once": True} if shape.random() < 0.7 else {}
                graph.append(spec._replace(options={**spec.options, **options}))
            else:
                self.unsent.append(e.FilesDeclared([FileSpec(spec.result, awaited=late, absent=absent)]))
                self.temporaries.append(spec.result)
                asleep = shape.random() < 0.2
                self.sleepers |= {spec.task} if asleep else set()
                graph.append(spec._replace(on_demand=asleep))
        if late and shape.random() < 0.3:  # a path with a mistake
            name = f"nowhere{graph[0].task}"
            self.unsent.append(e.FilesDeclared([FileSpec(name, awaited=True, absent=True)]))
            graph[0] = graph[0]._replace(inputs=(*graph[0].inputs, name))
            self.temporaries.append(name)
        if late:
            self.unsent += [e.TasksSubmitted([spec]) for spec in reversed(graph)]
        else:
            self.unsent.append(e.TasksSubmitted(graph))

    def _by_recipe(self, graph: list[TaskSpec]) -> list[TaskSpec]:
        """Name results after what they are made of, so that later graphs make the same; all tasks sleep until they are needed."""
        names: dict[str, str] = {}
        specs: dict[str, TaskSpec] = {}
        for spec in graph:
            inputs = tuple(names.get(name, name) for name in (*spec.inputs, *spec.mounts))
            recipe = repr((spec.library, inputs, spec.options["size"], spec.environment))
            name = names[spec.result] = f"v{zlib.crc32(recipe.encode())}"
            options = {"size": spec.options["size"]}
            if spec.environment:
                options["environment"] = spec.environment
            if name not in specs or spec.wanted_at_manager:
                specs[name] = self.specs[spec.task] = spec._replace(
                    result=name, inputs=inputs, mounts=(), shared=(FUNCTION,), outputs=(), wanted_at_manager=(name,) if spec.wanted_at_manager else (),
                    options=options, on_demand=True, content_addressed=True,
                )  # fmt: skip
        order = {spec.result: number for number, spec in enumerate(specs.values())}
        return sorted(specs.values(), key=lambda spec: order[spec.result])

    def _graph(self, shape: random.Random, run: int) -> list[TaskSpec]:
        chain, function = shape.random() < 0.3, shape.choice(("quick", "slow"))
        alone = shape.choice((*[library.name for library in LIBRARIES], "", None))
        graph: list[TaskSpec] = []
        for _ in range(shape.randint(1, 7)):
            self.numbers += 1
            name = f"r{self.numbers}"
            makers = [t.result for t in graph if t.result and (run or not t.wanted_at_manager)]
            inputs = shape.sample(makers, min(len(makers), shape.choice((0, 1, 1, 2, 3))))
            if chain and makers:
                inputs = makers[-1:]
            outside = [*self.temporaries, *self.pinned]
            if outside and shape.random() < 0.15:
                inputs.append(shape.choice(outside))
            if shape.random() < 0.2:
                inputs.append(shape.choice((DATA, ADDRESS, BRIEF, LASTING)))
            if shape.random() < 0.1 and inputs:
                inputs.append(inputs[0])
            library = shape.choice((*[library.name for library in LIBRARIES], "")) if alone is None else alone
            command = not library and shape.random() < 0.5
            more = tuple(f"{name}-{k}" for k in range(shape.choice((0, 0, 1)))) if command and run else ()
            options: dict[str, Any] = {"size": shape.choice((SMALL, LARGE))}
            if command:
                options["command"] = "true"
                options["mounts"] = [[file, file, False] for file in inputs]
                options["outputs"] = [[file, file, "always"] for file in more]
            spec = TaskSpec(
                self.numbers,
                f"t{self.numbers}",
                "" if command and more and shape.random() < 0.5 else name,
                run,
                library,
                function,
                b"",
                shared=() if command else (FUNCTION,),
                inputs=() if command else tuple(inputs),
                mounts=tuple(inputs) if command else (),
                outputs=more,
                wanted_at_manager=(name,) if shape.random() < 0.3 else (),
                category=shape.choice(("a", "b")),
                request=shape.choice(REQUESTS),
                priority=self.numbers,
                depth=len(graph),
                retries=shape.choice((0, 50)),
                python=shape.random() < 0.8,
                level=shape.choice((*[TASK] * 8, WORKER, FOREVER)),
                environment=UNPACKED if not library and shape.random() < 0.2 else "",
                options=options,
            )
            if spec.environment:
                options["environment"] = spec.environment
            if not spec.result:
                spec = spec._replace(wanted_at_manager=shape.choice(((), more)))
            graph.append(spec)
            self.specs[spec.task] = spec
        readers = Counter(name for spec in graph for name in {*spec.inputs, *spec.mounts})
        return [spec._replace(reader_count=readers[spec.result]) for spec in graph]

    def send(self, count: int) -> None:
        """Have the user's next events reach the mind."""
        while count and self.unsent:
            self.events.append(self.unsent.popleft())
            count -= 1
        self.handle()

    def hold_result(self, shape: random.Random) -> None:
        """Declare a result of a run as the user's own."""
        candidates = [
            f.name for run in self.tables.runs.values() for f in run.files if f.name not in self.pinned
        ]
        if candidates:
            name = shape.choice(candidates)
            self.pinned.append(name)
            self.user(e.FilesDeclared([FileSpec(name)]))

    def release(self, shape: random.Random, *, prune: bool) -> None:
        names = [*self.temporaries, *self.pinned]
        if names:
            name = shape.choice(names)
            if not prune:
                (self.temporaries if name in self.temporaries else self.pinned).remove(name)
            self.excuses.add("input missing")
            self.unsent.append(e.FilesReleased([name], prune))

    def declare_again(self, name: str) -> None:
        """Undeclare a file, or declare it again."""
        self.excuses |= {"input missing", "library"}
        self.undeclared ^= {name}
        self.held ^= {name}
        if name in self.undeclared:
            self.user(e.FilesReleased([name], prune=False))
        else:
            self.store[name], self.stored[name] = LARGE, "declared"
            self.user(e.FilesDeclared([spec for spec in DECLARED if spec.name == name]))

    def want(self, shape: random.Random) -> None:
        if self.tables.files:
            name = shape.choice(list(self.tables.files))
            self.asked[name] += 1
            self.user(e.FileRequested(name))

    def close(self, shape: random.Random) -> None:
        if self.runs:
            run = shape.choice(list(self.runs))
            self.close_run(run)
            self.excuses.add("input missing")

    def close_run(self, run: int) -> None:
        del self.runs[run]
        self.unsent = deque(
            x for x in self.unsent if not (type(x) is e.TasksSubmitted and x.tasks[0].run == run)
        )
        self.unsent.append(e.GraphClosed(run))

    def cancel(self, shape: random.Random) -> None:
        if self.tables.tasks:
            number = shape.choice(list(self.tables.tasks))
            self.excuses |= {"cancelled", "input missing"}
            if not self.tables.tasks[number].spec.run:
                self.user(e.TasksCancelled([number]))

    def remove_library(self, shape: random.Random) -> None:
        name = shape.choice(LIBRARIES).name
        self.excuses |= {"library", "input missing"}
        self.removed ^= {name}
        if name in self.removed:
            self.user(e.LibraryRemoved(name))
        else:
            self.user(e.LibraryInstalled(next(x for x in LIBRARIES if x.name == name)))

    # ---- the workers

    def join(self, shape: random.Random) -> None:
        self.worker_numbers += 1
        python = "3.11" if shape.random() < 0.85 else "3.9"
        cores, port, disk = shape.choice((1, 2, 4)), shape.choice((0, 7, 7, 7)), shape.choice(self.disks)
        left_s = shape.choice((0.0, 0.0, 0.0, 1.0, 30.0))
        self._join(cores, port, python, disk, shape.random() < 0.8, left_s)

    def _join(
        self, cores: int, port: int, python: str, disk: int, reachable: bool = True, left_s: float = 0.0
    ) -> None:
        number = self.worker_numbers
        host = f"h{number}"
        self.workers[number] = SimulatedWorker(number, f"{host}:{port}", reachable)
        hello = m.Hello(1, host, number, python, cores, 1000 * cores, disk, 0, port, [], {}, left_s)
        if left_s:
            self.workers[number].leaves_at = self.now + left_s
        self.events.append(e.WorkerConnected(number, host, hello))
        self.handle()
        if self.left_behind:
            worker = self.workers[number]
            worker.disk = self.left_behind.popleft()
            worker.jobs.append(("find", dict(worker.disk)))

    def lose(self, number: int) -> None:
        """A worker is gone; what it had said and what had been said to it is gone with it, or was heard just before."""
        self.excuses |= {"crash", "input missing"}
        self.left_behind.append(self.workers.pop(number).disk)
        self.events.append(e.WorkerDisconnected(number, "it broke"))

    def drain(self, number: int, within_s: float) -> None:
        """A worker begins to leave."""
        worker = self.workers[number]
        worker.leaves_at = math.inf
        if worker.dies_at == math.inf:
            worker.dies_at = self.now + within_s
            worker.outbox.append(m.Draining("its time is over", within_s))

    def receive(self, number: int, count: int) -> None:
        self.workers[number].receive(count)

    def hear(self, number: int, count: int) -> None:
        """What a worker says reaches the manager."""
        outbox = self.workers[number].outbox
        while count and outbox:
            self.events.append(e.MessageReceived(number, outbox.popleft()))
            count -= 1

    def work(self, number: int, job: int, ending: Ending) -> None:
        """One of a worker's jobs ends."""
        worker = self.workers[number]
        if worker.jobs:
            index = job % len(worker.jobs)
            kind, what = worker.jobs[index]
            getattr(self, f"_end_{kind}")(worker, index, what, ending)

    def _end_host(self, worker: SimulatedWorker, index: int, host: str, ending: Ending) -> None:
        del worker.jobs[index]
        if ending.kind == "well":
            worker.feed([we.ForkServerReady(host, 0.1, {})])
        else:
            self.excuses |= {"library", "crash", "input", "input missing"}
            worker.feed([we.ForkServerExited(host, "it does not start", ending.kind == "worse", b"")])

    def _end_slot(self, worker: SimulatedWorker, index: int, slot: int, ending: Ending) -> None:
        """A slot answers some of its calls, or dies."""
        _host, calls, single = worker.slots[slot]
        if single is not None:
            self._end_single(worker, index, slot, single, ending)
        elif ending.kind == "well":
            if calls:
                count = min(ending.count, len(calls))
                worker.feed(
                    [
                        we.CallsReturned(
                            slot, [self._reply(calls.popleft(), worker, slot) for _ in range(count)]
                        )
                    ]
                )
        elif ending.kind == "badly" and calls:
            self.excuses |= {"exception", "input missing"}
            replies = [Reply(calls.popleft().task, "exception", 0, 0.1, {}, b"error")]
            replies += [
                self._reply(calls.popleft(), worker, slot) for _ in range(min(ending.count, len(calls)))
            ]
            worker.feed([we.CallsReturned(slot, replies)])
        else:
            self.excuses |= {"crash", "library", "input missing"}
            self._slot_dies(worker, slot, calls[0].task if calls and ending.count % 2 else -1)

    def _end_single(
        self, worker: SimulatedWorker, index: int, slot: int, run: m.RunTask, ending: Ending
    ) -> None:
        if ending.kind == "worse":
            self.excuses |= {"crash", "input missing"}
            if ending.count % 2:
                self._slot_dies(worker, slot, run.task)
                return
        worker.feed([we.CallsReturned(slot, [Reply(run.task, "done", SMALL, 0.1, {}, b"")])])
        self._slot_dies(worker, slot, -1)
        self._task_over(worker, run, ending)

    def _slot_dies(self, worker: SimulatedWorker, slot: int, running: int) -> None:
        worker._slot_gone(slot)
        worker.feed([we.SlotExited(slot, running, {"reason": "it died"})])

    def _end_kill(self, worker: SimulatedWorker, index: int, slot: int, ending: Ending) -> None:
        _host, calls, _single = worker.slots[slot]
        self._slot_dies(worker, slot, calls[0].task if calls and ending.count % 2 else -1)

    def _reply(self, run: m.RunTask, worker: SimulatedWorker, slot: int) -> Reply:
        fed = worker.fed.pop(run.task, None)
        done = worker.done.setdefault(slot, set())
        if fed is not None and fed[1] not in done:
            return Reply(run.task, "unfed", 0, 0.0, {}, b"")
        done.add(run.task)
        size = self._size_of(run)
        wall = 0.0001 if run.function == "quick" else (0.001, 0.02, 0.2)[run.task % 3]
        if size <= INLINE_LIMIT:
            return Reply(run.task, "done", size, wall, {}, bytes(size))
        return Reply(run.task, "done", size, wall, {"digest": f"{worker.number}.{run.task}"}, b"")

    def _size_of(self, run: m.RunTask) -> int:
        return int(run.options["size"])

    def _end_process(self, worker: SimulatedWorker, index: int, run: m.RunTask, ending: Ending) -> None:
        del worker.jobs[index]
        self._task_over(worker, run, ending)

    def _task_over(self, worker: SimulatedWorker, run: m.RunTask, ending: Ending) -> None:
        """As `vineworker.tasks.processes` collects what a task with a process of its own has left."""
        sizes = {name: LARGE for _remote, name, _when in run.options.get("outputs", ())}
        killed = run.task in worker.killed
        if killed:
            sizes = {}
        if (
            ending.kind == "badly" and sizes and ending.count % 2
        ):  # it only makes them when it fails, which it does not
            self.excuses |= {"input missing"}
            self.never_made |= sizes.keys()
            ending, sizes = Ending("well"), {}
        info: dict[str, Any] = {
            "outputs": sizes,
            "measured": {"cores": 1, "memory": 10 * (run.task % 100), "disk": 1},
            "digests": {name: worker.make(name, size) for name, size in sizes.items()},
        }
        if killed or ending.kind != "well":
            kind = "cancelled" if killed else "crash" if ending.kind == "worse" else "exception"
            if kind == "crash" and ending.count > 1:
                kind = "exhausted"
                info["resource"] = "memory"
            self.excuses |= {kind, "input missing"}
            worker.feed([we.ProcessTaskFinished(run.task, m.TaskFailed(run.task, kind, info, b""), sizes)])
            return
        payload = b""
        if run.result:
            size = self._size_of(run)
            payload = bytes(size) if run.return_result and size <= INLINE_LIMIT else b""
            if not (payload and run.options.get("once")):
                info["digest"] = worker.make(run.result, size)
                sizes = {**sizes, run.result: size}
            worker.feed(
                [we.ProcessTaskFinished(run.task, m.TaskDone(run.task, size, 0.1, info, payload), sizes)]
            )
        else:
            worker.feed([we.ProcessTaskFinished(run.task, m.TaskDone(run.task, 0, 0.1, info, b""), sizes)])

    def _end_fetch(self, worker: SimulatedWorker, index: int, fetch: m.Fetch, ending: Ending) -> None:
        del worker.jobs[index]
        reason, gone, content = "", False, ""
        if ending.kind != "well":
            self.excuses |= {"input missing", "library"}
        if ending.kind == "badly":
            reason = "the connection broke"
        elif fetch.source == "manager":
            size, content = self.store.get(fetch.name), self.stored.get(fetch.name, "")
            gone = size is None
        elif "://" in fetch.source:
            size, content = LARGE, "from outside"
        else:
            peer = next((p for p in self.workers.values() if p.address == fetch.source), None)
            if peer is None or not peer.reachable:
                reason = "connection refused"
            else:
                size, content = peer.find(fetch.name)
                gone = size is None
        if ending.kind == "worse" and fetch.digest:
            content = "altered"
        altered = not (reason or gone) and bool(fetch.digest) and content != fetch.digest
        if not (reason or gone) and fetch.digest and fetch.name not in {**worker.cache, **worker.offered}:
            arrival = we.ObjectArrived(fetch.name, size, True, fetch.digest, compared=False)
            worker.offered[fetch.name] = arrival, size, content
            worker.jobs.append(("compare", (arrival, fetch, altered)))
            worker.feed([arrival])
            return
        if reason or gone or altered:
            worker.outbox.append(m.FetchFailed(fetch.name, fetch.source, reason, gone, corrupt=altered))
            return
        assert size is not None
        assert fetch.size in (-1, size)
        assert content != "altered"
        worker.hold(fetch.name, size, content)
        worker.feed([we.ObjectArrived(fetch.name, size, True, content)])

    def _end_compare(
        self,
        worker: SimulatedWorker,
        index: int,
        what: tuple[we.ObjectArrived, m.Fetch, bool],
        ending: Ending,
    ) -> None:
        """As `vineworker.storage.transfers`: what is offered may be used if it is what it should be and has not gone meanwhile."""
        del worker.jobs[index]
        arrival, fetch, altered = what
        unreadable = ending.kind == "badly"
        if unreadable:
            self.excuses |= {"input missing", "library"}
        failure = None
        if altered or unreadable:
            failure = m.FetchFailed(
                fetch.name, fetch.source, "", permanent=False, corrupt=not unreadable, was_cached=True
            )
        found, size, content = worker.offered.get(fetch.name, (None, 0, ""))
        if found is arrival:
            del worker.offered[fetch.name]
            if failure is None:
                assert content == fetch.digest
                worker.hold(fetch.name, size, content)
        worker.feed([we.ObjectVerified(arrival, failure)])

    def _end_unpack(self, worker: SimulatedWorker, index: int, unpack: m.Unpack, ending: Ending) -> None:
        del worker.jobs[index]
        if ending.kind == "worse" or unpack.archive not in worker.cache:
            self.excuses |= {"input missing", "library"}
            worker.outbox.append(m.FetchFailed(unpack.name, unpack.archive, "it is no archive", False))
            return
        worker.hold(unpack.name, 0, "")
        worker.feed([we.ObjectArrived(unpack.name, 0, True)])

    def _end_upload(self, worker: SimulatedWorker, index: int, what: tuple[str, str], ending: Ending) -> None:
        del worker.jobs[index]
        name, digest = what
        size, content = worker.find(name)
        altered = bool(digest) and content != digest
        if ending.kind != "well" or size is None or altered:
            worker.outbox.append(m.UploadFailed(name, "it is altered" if altered else "the connection broke"))
            return
        assert content != "altered"
        self.events.append(e.ObjectStored(name, size, content))
        worker.outbox.append(m.Uploaded(name))

    def _end_keep(self, worker: SimulatedWorker, index: int, keep: wi.PersistObject, ending: Ending) -> None:
        del worker.jobs[index]
        name = keep.name
        as_it_was = keep.digest in ("", worker.contents.get(name))
        if ending.kind == "well" and name in worker.cache and as_it_was:
            worker.disk[name] = worker.cache[name], worker.contents[name]
            worker.feed([we.ObjectPersisted(name, worker.contents[name])])

    def _end_find(self, worker: SimulatedWorker, index: int, found: dict[str, Any], ending: Ending) -> None:
        """What is damaged is not told of."""
        del worker.jobs[index]
        if ending.kind == "well":
            found = {name: worker.disk[name] for name in found if name in worker.disk}
            for name, (size, content) in found.items():
                if name not in worker.cache:
                    worker.hold(name, size, content)
            sizes, digests = [size for size, _content in found.values()], [c for _size, c in found.values()]
            worker.feed([we.PersistentObjectsFound(list(found), sizes, digests)])

    # ---- time, and the end

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for number, worker in list(self.workers.items()):
            if self.now >= worker.leaves_at:
                self.drain(number, 25.0)
            elif self.now >= worker.dies_at:
                self.lose(number)
        self.events.append(e.Tick())
        self.handle()

    def settle(self) -> None:
        """Let everything happen, and happen well, until nothing happens any more."""
        quiet = 0
        for _ in range(3000):
            busy = bool(self.events or self.unsent)
            self.send(len(self.unsent))
            for number, worker in list(self.workers.items()):
                busy |= bool(worker.inbox or worker.outbox)
                worker.receive(len(worker.inbox))
                for _job in range(len(worker.jobs)):
                    kind, what = worker.jobs[0]
                    idle = kind == "slot" and worker.slots[what][2] is None and not worker.slots[what][1]
                    busy |= not idle
                    if idle:
                        worker.jobs.append(worker.jobs.pop(0))
                    else:
                        self.work(number, 0, Ending("well", 2))
                    if not worker.jobs:
                        break
                self.hear(number, len(worker.outbox))
            self.tick(1.0)
            quiet = 0 if busy or any(w.inbox for w in self.workers.values()) else quiet + 1
            if quiet > 20:
                return
        pytest.fail("the world does not come to rest")

    def finish(self) -> None:
        """No more faults: everything has to come to its end."""
        if not any(x.number and self._suits_all(x.number) for x in self.workers.values()):
            self.worker_numbers += 1
            self._join(4, 7, "3.11", 1000)
        self.settle()
        alone = [
            number for number, spec in self.specs.items() if not spec.run and number not in self.sleepers
        ]
        assert set(alone) <= self.tasks_over.keys(), f"never over: {set(alone) - self.tasks_over.keys()}"
        assert self.runs.keys() <= self.runs_over.keys(), (
            f"never over: {self.runs.keys() - self.runs_over.keys()}"
        )
        assert not +self.asked, f"never answered: {+self.asked}"
        assert not self.tables.tasks
        for number, worker in self.workers.items():
            known = {file.name for file in self.tables.workers[number].files}
            # what is kept from before stays there, though no task of this manager needs it
            assert known <= worker.cache.keys() <= known | worker.state.persisted.keys(), (
                f"{number} holds {worker.cache.keys()}, the tables say {known}"
            )
            assert worker.cache.keys() == worker.state.objects.keys()
            assert not (
                worker.offered
                or worker.state.object_table.unverified
                or self.tables.workers[number].unverified
            )
            for file, digest in (
                (f, f.replicas[self.tables.workers[number]]) for f in self.tables.workers[number].files
            ):
                # one that is not known promises nothing: such a copy is checked only on its way
                assert not digest or worker.contents[file.name] in (digest, "altered")
            assert not worker.state.tasks
            assert not self.tables.workers[number].tasks
        at_manager = {file.name for file in self.tables.files.values() if file.at_manager}
        assert at_manager == self.store.keys()
        self.tidy()

    def _suits_all(self, number: int) -> bool:
        worker = self.tables.workers.get(number)
        return (
            worker is not None
            and worker.python_ok
            and worker.total.cores >= 4
            and worker.total.disk >= 1000
            and not worker.draining
            and worker.ends_at is None
        )

    def tidy(self) -> None:
        """The user lets go of everything."""
        for run in list(self.runs):
            self.close_run(run)
        self.unsent.append(e.FilesReleased([*self.temporaries, *self.pinned], prune=False))
        for name in [library.name for library in LIBRARIES if library.name not in self.removed]:
            self.unsent.append(e.LibraryRemoved(name))
        alone = [
            spec.result
            for spec in self.specs.values()
            if not spec.run and spec.wanted_at_manager and spec.result in self.store
        ]
        self.unsent.append(e.FilesReleased(alone, prune=False))
        declared = [spec.name for spec in reversed(DECLARED) if spec.name not in self.undeclared]
        self.held.clear()
        self.unsent.append(e.FilesReleased(declared, prune=False))
        self.settle()
        # a name that was not declared when a task was submitted that reads it stays a name
        left = {name: file for name, file in self.tables.files.items() if name not in self.undeclared}
        assert left.keys() == {file.name for file in self.tables.evictable} - self.undeclared, (
            "files are left"
        )
        assert all(file.reusable and file.replicas for file in left.values())
        for file in list(self.tables.evictable):
            self.mind.files.evict(file)
        self.settle()
        assert self.tables.files.keys() <= self.undeclared, "files are left"
        assert not self.tables.evictable
        assert not self.tables.buckets
        assert set(self.tables.runs) == {0}
        assert not self.store
        for number, worker in self.workers.items():
            record = self.tables.workers[number]
            assert record.free == record.total
            assert worker.cache.keys() == worker.state.objects.keys()
            assert worker.cache.keys() <= worker.to_keep | worker.state.persisted.keys() | self.undeclared
            assert not (worker.state.calls.waiting or worker.state.object_table._to_persist)
            assert not worker.slots or all(
                host.startswith("python:") for host, _c, _s in worker.slots.values()
            )
        replicas = self.mind.replicas
        assert not (replicas.active_by_source or replicas.active_by_file_and_source or replicas.stalled)
        left_over = replicas.external_failures.keys() | replicas.peer_failures.keys()
        assert {file.name for file in left_over} <= self.undeclared


# ---- the machine

seeds = st.integers(0, 2**16).map(random.Random)
which = st.integers(0, 2**16)
counts = st.sampled_from((1, 1, 2, 5, 50))
endings = st.builds(Ending, st.sampled_from(("well",) * 6 + ("badly", "worse")), st.integers(1, 4))


class MindMachine(RuleBasedStateMachine):
    """Does to a world whatever could happen."""

    @initialize(
        shape=seeds, workers=st.integers(0, 3), mode=st.sampled_from(MODES), policy=st.sampled_from(POLICIES),
        disks=st.sampled_from((DISKS, (1000,))),
    )  # fmt: skip
    def begin(self, shape, workers, mode, policy, disks):
        self.world = World(mode, policy, disks)
        for _ in range(workers):
            self.world.join(shape)
        self.world.open_run(shape)
        self.world.send(3)

    def _worker(self, number):
        return list(self.world.workers)[number % len(self.world.workers)] if self.world.workers else None

    @rule(shape=seeds, alone=st.booleans())
    def submit(self, shape, alone):
        (self.world.submit_alone if alone else self.world.open_run)(shape)

    @rule(count=counts)
    def user_is_heard(self, count):
        self.world.send(count)

    @rule(shape=seeds)
    def join(self, shape):
        if len(self.world.workers) < 5:
            self.world.join(shape)

    @rule(number=which, to=counts, count=counts, now=st.booleans())
    def talk(self, number, to, count, now):
        number = self._worker(number)
        if number is not None:
            self.world.receive(number, to)
            self.world.hear(number, count)
            if now:
                self.world.handle()

    @rule(jobs=st.lists(st.tuples(which, which, endings), min_size=1, max_size=6))
    def work(self, jobs):
        for number, job, ending in jobs:
            worker = self._worker(number)
            if worker is not None:
                self.world.work(worker, job, ending)

    @rule(number=which, jobs=st.integers(1, 20))
    def progress(self, number, jobs):
        """A worker works well for a while."""
        number = self._worker(number)
        if number is not None:
            self.world.receive(number, 50)
            for job in range(jobs):
                self.world.work(number, job, Ending("well", 2))
            self.world.hear(number, 50)
            self.world.handle()

    @rule(number=which, now=st.booleans())
    def lose(self, number, now):
        number = self._worker(number)
        if number is not None:
            self.world.lose(number)
            if now:
                self.world.handle()

    @rule(number=which)
    def leave(self, number):
        number = self._worker(number)
        if number is not None:
            self.world.workers[number].outbox.append(m.Draining("idle"))
            self.world.hear(number, 50)
            self.world.handle()
            self.world.handle()

    @rule(number=which, within_s=st.sampled_from((5.0, 60.0)))
    def drain(self, number, within_s):
        number = self._worker(number)
        if number is not None:
            self.world.drain(number, within_s)
            self.world.hear(number, 50)
            self.world.handle()

    @rule(number=which, shape=seeds)
    def damage(self, number, shape):
        """A worker finds that an object is damaged."""
        number = self._worker(number)
        worker = self.world.workers.get(number)
        if worker is not None and worker.cache and not worker.state.tasks and not worker.state.hosts:
            name = shape.choice(list(worker.cache))
            worker.feed([m.PurgeObjects([name])])
            worker.outbox.append(m.ObjectsLost([name]))

    @rule(number=which, shape=seeds)
    def alter(self, number, shape):
        """An object is altered where a worker keeps it, and nobody notices."""
        worker = self.world.workers.get(self._worker(number))
        names = [name for name, size in worker.cache.items() if size == LARGE] if worker is not None else []
        if names:
            worker.contents[shape.choice(names)] = "altered"
            self.world.excuses |= {"input missing", "library"}

    @rule(seconds=st.sampled_from((0.25, 1.0, 20.0)))
    def tick(self, seconds):
        self.world.tick(seconds)

    @rule(
        shape=seeds,
        what=st.sampled_from(("hold", "release", "prune", "want", "close", "cancel", "library", "again")),
    )
    def user_changes_their_mind(self, shape, what):
        world = self.world
        if what == "hold":
            world.hold_result(shape)
        elif what in ("release", "prune"):
            world.release(shape, prune=what == "prune")
        elif what == "library":
            world.remove_library(shape)
        elif what == "again":
            world.declare_again(shape.choice((BRIEF, LASTING)))
        else:
            getattr(world, what)(shape)

    @invariant()
    def the_tables_are_right(self):
        if hasattr(self, "world"):
            self.world.mind.validate_state()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.finish()


TestMind = MindMachine.TestCase
# the same lives each time; `make fuzz` lives others
TestMind.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def act(machine: MindMachine, chance: random.Random) -> None:
    """One step of the machine, without hypothesis around it, which is a hundred times faster."""

    def shape() -> random.Random:
        return random.Random(chance.getrandbits(32))

    def number() -> int:
        return chance.getrandbits(16)

    def count() -> int:
        return chance.choice((1, 1, 2, 5, 50))

    def ending() -> Ending:
        return Ending(chance.choice(machine.kinds), chance.randint(1, 4))

    now = chance.random() < 0.5
    steps = (
        (6, lambda: machine.submit(shape(), chance.random() < 0.4)),
        (10, lambda: machine.user_is_heard(count())),
        (4, lambda: machine.join(shape())),
        (30, lambda: machine.talk(number(), count(), count(), now)),
        (30, lambda: machine.work([(number(), number(), ending()) for _ in range(chance.randint(1, 6))])),
        (20, lambda: machine.progress(number(), chance.randint(1, 20))),
        (machine.losses, lambda: machine.lose(number(), now)),
        (machine.losses / 4, lambda: machine.leave(number())),
        (machine.losses / 2, lambda: machine.drain(number(), chance.choice((5.0, 60.0)))),
        (1, lambda: machine.damage(number(), shape())),
        (machine.losses / 2, lambda: machine.alter(number(), shape())),
        (6, lambda: machine.tick(chance.choice((0.25, 1.0, 20.0)))),
        (machine.moods, lambda: machine.user_changes_their_mind(
            shape(), chance.choice(("hold", "release", "prune", "want", "want", "close", "cancel", "cancel", "library", "again")))),
    )  # fmt: skip
    weights, actions = zip(*steps, strict=True)
    chance.choices(actions, weights)[0]()


def live(seed: int) -> None:
    """One life of a world."""
    chance = random.Random(seed)
    machine = MindMachine()
    machine.kinds = ("well",) * chance.choice((3, 10, 50)) + chance.choice(
        (("badly", "worse"), ("worse",), ("well",))
    )
    machine.losses = chance.choice((0, 1, 4, 10))
    machine.moods = chance.choice((0, 2, 8))
    mode, policy = chance.choice(MODES), chance.choice(POLICIES)
    disks = chance.choice((DISKS, (1000,)))
    machine.begin(random.Random(chance.getrandbits(32)), chance.randint(0, 3), mode, policy, disks)
    for _ in range(chance.choice((20, 60, 200))):
        act(machine, chance)
    machine.teardown()


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_everything_comes_to_its_end(seed):
    live(seed)
