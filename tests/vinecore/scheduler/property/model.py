"""A scheduler, some workers, the queues between them, and what must hold in every state."""

from __future__ import annotations

import math
import random
from collections import Counter, deque

import pytest

from tests.vinecore.scheduler.property.job_outcomes import Ending, JobOutcomes
from tests.vinecore.scheduler.property.random_graphs import (
    BRIEF,
    DECLARED,
    DISKS,
    LARGE,
    LASTING,
    LIBRARIES,
    PRIORITIES,
    GraphGenerator,
)
from tests.vinecore.scheduler.property.simulated_worker import SimulatedWorker
from vinecore.journal import records as j
from vinecore.journal.recorder import JournalRecorder
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.replicas import has_safe_replica, is_needed
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.specs import FileSpec, GraphSpec, TaskSpec
from vinecore.scheduler.state import disk_bytes


class SimulatedCluster:
    """A scheduler, some workers, and the queues between them."""

    def __init__(self, mode: str, policy: str, disks: tuple[int, ...] = DISKS) -> None:
        self.scheduler = Scheduler("3.11", validate=True)
        self.disks = disks
        self.state = self.scheduler.state
        self.now = 0.0
        self.recorder = JournalRecorder(0.0)
        # worker, task and attempt of the tasks on workers, as the journal has it
        self.dispatched: set[tuple[int, int, int]] = set()
        # for the scheduler, in one batch with the next ones
        self.events: list[e.Event] = []
        # of the user, in order
        self.unsent: deque[e.Event] = deque()
        self.workers: dict[int, SimulatedWorker] = {}
        self.graph_number = self.worker_number = 0
        self.generator = GraphGenerator()
        self.jobs = JobOutcomes(self)
        self.task_outcomes: dict[int, str] = {}
        self.graphs: dict[int, GraphSpec] = {}
        self.graph_outcomes: dict[int, str] = {}
        self.reporting_graphs: set[int] = set()
        # graphs whose results are content-addressed
        self.reusing_graphs: set[int] = set()
        # tasks that may never be needed
        self.on_demand_tasks: set[int] = set()
        self.never_made: set[str] = set()
        self.wanted: dict[int, list[str]] = {}
        self.requested_files: Counter[str] = Counter()
        # declared by the user, made by tasks
        self.temporaries: list[str] = []
        # results of graphs that the user has declared as files
        self.pinned: list[str] = []
        # outcomes for which there is a reason
        self.expected_failures: set[str] = {"too large", "input missing"} if min(disks) < 1000 else set()
        self.stored_sizes = {spec.name: spec.size for spec in DECLARED if spec.at_manager}
        self.stored_digests = {spec.name: spec.digest for spec in DECLARED if spec.at_manager}
        self.handle_user_event(e.FilesDeclared(list(DECLARED)))
        for library in LIBRARIES:
            self.handle_user_event(e.LibraryInstalled(library))
        self.handle_user_event(e.SettingChanged("category-steady-n-tasks", 2))
        self.handle_user_event(e.CategorySet("b", mode, None, None, None))
        if policy == "through the manager":
            self.handle_user_event(e.SettingChanged("peer-transfers", False))
        elif policy == "one at a time":
            self.handle_user_event(e.SettingChanged("worker-source-max-transfers", 1))
            self.handle_user_event(e.SettingChanged("file-source-max-transfers", 1))
        elif policy == "two copies":
            self.handle_user_event(e.SettingChanged("temp-replica-count", 2))
        else:
            self.handle_user_event(e.SettingChanged("scheduler", policy))
        self.released_workers = 0
        self.removed_libraries: set[str] = set()
        # persistent objects of workers that were lost
        self.abandoned_disks: deque[dict[str, tuple[int, str]]] = deque()
        self.undeclared_files: set[str] = set()
        # declared by the user, who may release them
        self.declared_files = {BRIEF, LASTING}

    def handle_user_event(self, event: e.Event) -> None:
        self.events.append(event)
        self.handle_events()

    def handle_events(self) -> None:
        """Pass the collected events to the scheduler, and execute its instructions."""
        events, self.events = self.events, []
        for event in events:
            if type(event) is e.ObjectStored:
                self.stored_sizes[event.name], self.stored_digests[event.name] = event.size, event.digest
        instructions = self.scheduler.handle(events, self.now)
        self.check_journal(self.recorder.records_for(self.now, events, instructions))
        for instruction in instructions:
            getattr(self, f"_{type(instruction).__name__}")(instruction)
        for known in self.state.files.values():
            assert not known.at_manager or known.name in self.stored_sizes
        self.check_sizes()

    def check_sizes(self) -> None:
        """Compare the size of each replica with the file's: here every result is made with one size."""
        for worker in self.state.workers.values():
            for file, size in worker.files.items():
                assert size == (disk_bytes(file.size) if file.size >= 0 or not file.directory else 0)

    def check_journal(self, records: list[j.Record]) -> None:
        """Compare the workers of tasks in the journal with those of the scheduler."""
        for record in records:
            if type(record) is j.TaskDispatchedRecord:
                stay = (record.worker, record.task, record.attempt)
                assert stay not in self.dispatched
                self.dispatched.add(stay)
            elif type(record) in (j.TaskDoneRecord, j.TaskFailedRecord, j.TaskReturnedRecord):
                self.dispatched.remove((record.worker, record.task, record.attempt))
        workers = self.state.workers.values()
        assert self.dispatched == {
            (worker.id, task.spec.task, task.dispatch_count)
            for worker in workers
            for task in worker.tasks.values()
        }

    def _Send(self, x: i.Send) -> None:
        if x.worker in self.workers:
            self.workers[x.worker].inbox.append(x.message)

    def _SendObject(self, x: i.SendObject) -> None:
        assert x.name in self.stored_sizes, f"the manager is to send {x.name}, which it does not have"
        if x.worker in self.workers:
            self.workers[x.worker].inbox.append(m.PutObject(x.name, bytes(self.stored_sizes[x.name])))

    def _StoreObject(self, x: i.StoreObject) -> None:
        self.stored_sizes[x.name], self.stored_digests[x.name] = len(x.payload), ""

    def _DropObject(self, x: i.DropObject) -> None:
        assert x.name in self.stored_sizes
        # unless the user has declared it again meanwhile
        if x.name not in self.declared_files:
            del self.stored_sizes[x.name]

    def _TaskFinished(self, x: i.TaskFinished) -> None:
        assert x.task not in self.task_outcomes, f"task {x.task} ends twice"
        assert not self.generator.specs[x.task].graph
        self.task_outcomes[x.task] = x.outcome
        self._check_outcome(x.outcome)
        if x.outcome == "success":
            for name in self.generator.specs[x.task].wanted_at_manager:
                known = self.state.files.get(name)
                assert x.payload or known is None or known.released or name in self.stored_sizes

    def _GraphFinished(self, x: i.GraphFinished) -> None:
        assert x.graph not in self.graph_outcomes, f"graph {x.graph} ends twice"
        self.graph_outcomes[x.graph] = x.outcome
        self._check_outcome(x.outcome)
        if x.outcome == "success" and x.graph in self.graphs:
            missing = [
                name
                for name in self.wanted[x.graph]
                if name not in self.stored_sizes and name not in self.never_made
            ]
            assert not missing, f"graph {x.graph} has ended without {missing}"

    def _check_outcome(self, outcome: str) -> None:
        assert outcome == "success" or outcome in self.expected_failures, (
            f"{outcome}, for which there is no reason"
        )

    def _FileAvailable(self, x: i.FileAvailable) -> None:
        assert x.name in self.requested_files
        self.requested_files[x.name] = 0
        assert x.reason or x.name in self.stored_sizes

    def _GraphTaskFinished(self, x: i.GraphTaskFinished) -> None:
        assert x.graph in self.reporting_graphs

    def _Disconnect(self, x: i.Disconnect) -> None:
        if x.worker in self.workers:
            record, worker = self.state.workers[x.worker], self.workers[x.worker]
            if worker.inbox and type(worker.inbox[-1]) is m.Shutdown and self.now < worker.dies_at:
                self.released_workers += 1
                assert not record.tasks
                for file in record.files:
                    assert not is_needed(file) or has_safe_replica(file, record), (
                        f"worker {x.worker} is released with {file}"
                    )
            self.lose_worker(x.worker)

    def _LogMessage(self, _x: i.LogMessage) -> None:
        pass

    def _InputsAbsent(self, _x: i.InputsAbsent) -> None:
        self.expected_failures.add("input missing")
        self.unsent.append(e.Waited())

    _Stalled = _LibraryStarted = _TaskActivated = _LogMessage

    def open_graph(self, shape: random.Random) -> None:
        """Open a graph of a random shape; its tasks arrive in slices."""
        self.graph_number += 1
        depth = shape.choice((0, 1, 1, 1, 2, 3))
        spec = GraphSpec(
            self.graph_number,
            "",
            shape.choice((0, 2, 50)),
            depth,
            shape.choice(PRIORITIES),
            shape.random() < 0.3,
        )
        self.graphs[spec.number] = spec
        self.reporting_graphs |= {spec.number} if spec.report_each_task else set()
        no_other_reuses = not any(run in self.reusing_graphs for run in self.state.graphs) and not any(
            type(x) is e.GraphOpened and x.spec.number in self.reusing_graphs for x in self.unsent
        )
        if no_other_reuses and shape.random() < 0.4:
            self.reusing_graphs.add(spec.number)
            graph = self.generator.name_by_content(self._make_graph(shape, spec.number))
        else:
            graph = self._make_graph(shape, spec.number)
        self.wanted[spec.number] = [name for task in graph for name in task.wanted_at_manager]
        self.unsent.append(e.GraphOpened(spec))
        while graph:
            size = shape.randint(1, 4)
            self.unsent.append(e.TasksSubmitted(graph[:size]))
            graph = graph[size:]
        self.unsent.append(e.GraphSubmitted(spec.number))

    def submit_tasks(self, shape: random.Random) -> None:
        """Submit tasks without a graph: some results stay on workers, some readers come before their inputs' makers."""
        graph = []
        late, absent = shape.random() < 0.4, shape.random() < 0.7
        for spec in self._make_graph(shape, 0):
            if spec.wanted_at_manager:
                options = {"once": True} if shape.random() < 0.7 else {}
                graph.append(spec._replace(options={**spec.options, **options}))
            else:
                self.unsent.append(e.FilesDeclared([FileSpec(spec.result, awaited=late, absent=absent)]))
                self.temporaries.append(spec.result)
                on_demand = shape.random() < 0.2
                self.on_demand_tasks |= {spec.task} if on_demand else set()
                graph.append(spec._replace(on_demand=on_demand))
        # a path with a mistake
        if late and shape.random() < 0.3:
            name = f"nowhere{graph[0].task}"
            self.unsent.append(e.FilesDeclared([FileSpec(name, awaited=True, absent=True)]))
            graph[0] = graph[0]._replace(inputs=(*graph[0].inputs, name))
            self.temporaries.append(name)
        if late:
            self.unsent += [e.TasksSubmitted([spec]) for spec in reversed(graph)]
        else:
            self.unsent.append(e.TasksSubmitted(graph))

    def _make_graph(self, shape: random.Random, run: int) -> list[TaskSpec]:
        return self.generator.make_graph(shape, run, [*self.temporaries, *self.pinned])

    def send_user_events(self, count: int) -> None:
        """Pass the user's next events to the scheduler."""
        while count and self.unsent:
            self.events.append(self.unsent.popleft())
            count -= 1
        self.handle_events()

    def pin_result(self, shape: random.Random) -> None:
        """Declare a result of a graph as a file of the user."""
        candidates = [
            f.name for run in self.state.graphs.values() for f in run.files if f.name not in self.pinned
        ]
        if candidates:
            name = shape.choice(candidates)
            self.pinned.append(name)
            self.handle_user_event(e.FilesDeclared([FileSpec(name)]))

    def release_file(self, shape: random.Random, *, prune: bool) -> None:
        names = [*self.temporaries, *self.pinned]
        if names:
            name = shape.choice(names)
            if not prune:
                (self.temporaries if name in self.temporaries else self.pinned).remove(name)
            self.expected_failures.add("input missing")
            self.unsent.append(e.FilesReleased([name], prune))

    def toggle_declaration(self, name: str) -> None:
        """Undeclare a file, or declare it again."""
        self.expected_failures |= {"input missing", "library"}
        self.undeclared_files ^= {name}
        self.declared_files ^= {name}
        if name in self.undeclared_files:
            self.handle_user_event(e.FilesReleased([name], prune=False))
        else:
            self.stored_sizes[name], self.stored_digests[name] = LARGE, "declared"
            self.handle_user_event(e.FilesDeclared([spec for spec in DECLARED if spec.name == name]))

    def request_file(self, shape: random.Random) -> None:
        if self.state.files:
            name = shape.choice(list(self.state.files))
            self.requested_files[name] += 1
            self.handle_user_event(e.FileRequested(name))

    def close_random_graph(self, shape: random.Random) -> None:
        if self.graphs:
            run = shape.choice(list(self.graphs))
            self.close_graph(run)
            self.expected_failures.add("input missing")

    def close_graph(self, run: int) -> None:
        del self.graphs[run]
        self.unsent = deque(
            x for x in self.unsent if not (type(x) is e.TasksSubmitted and x.tasks[0].graph == run)
        )
        self.unsent.append(e.GraphClosed(run))

    def cancel_task(self, shape: random.Random) -> None:
        if self.state.tasks:
            number = shape.choice(list(self.state.tasks))
            self.expected_failures |= {"cancelled", "input missing"}
            if not self.state.tasks[number].spec.graph:
                self.handle_user_event(e.TasksCancelled([number]))

    def toggle_library(self, shape: random.Random) -> None:
        name = shape.choice(LIBRARIES).name
        self.expected_failures |= {"library", "input missing"}
        self.removed_libraries ^= {name}
        if name in self.removed_libraries:
            self.handle_user_event(e.LibraryRemoved(name))
        else:
            self.handle_user_event(e.LibraryInstalled(next(x for x in LIBRARIES if x.name == name)))

    def connect_random_worker(self, shape: random.Random) -> None:
        self.worker_number += 1
        python = "3.11" if shape.random() < 0.85 else "3.9"
        cores, port, disk = shape.choice((1, 2, 4)), shape.choice((0, 7, 7, 7)), shape.choice(self.disks)
        left_s = shape.choice((0.0, 0.0, 0.0, 1.0, 30.0))
        self.connect_worker(cores, port, python, disk, shape.random() < 0.8, left_s)

    def connect_worker(
        self, cores: int, port: int, python: str, disk: int, reachable: bool = True, left_s: float = 0.0
    ) -> None:
        number = self.worker_number
        host = f"h{number}"
        self.workers[number] = SimulatedWorker(number, f"{host}:{port}", reachable)
        hello = m.Hello(1, host, number, python, cores, 1000 * cores, disk, 0, port, [], {}, left_s)
        if left_s:
            self.workers[number].leaves_at = self.now + left_s
        self.events.append(e.WorkerConnected(number, host, hello))
        self.handle_events()
        if self.abandoned_disks:
            worker = self.workers[number]
            worker.persistent = self.abandoned_disks.popleft()
            worker.jobs.append(("find", dict(worker.persistent)))

    def lose_worker(self, number: int) -> None:
        """Disconnect a worker; messages on their way are lost."""
        self.expected_failures |= {"crash", "input missing"}
        self.abandoned_disks.append(self.workers.pop(number).persistent)
        self.events.append(e.WorkerDisconnected(number, "it broke"))

    def drain_worker(self, number: int, within_s: float) -> None:
        """Have a worker announce that it will end."""
        worker = self.workers[number]
        worker.leaves_at = math.inf
        if worker.dies_at == math.inf:
            worker.dies_at = self.now + within_s
            worker.outbox.append(m.Draining("its time is over", within_s))

    def deliver_to_worker(self, number: int, count: int) -> None:
        self.workers[number].deliver_messages(count)

    def deliver_to_scheduler(self, number: int, count: int) -> None:
        """Pass messages of a worker to the scheduler."""
        outbox = self.workers[number].outbox
        while count and outbox:
            self.events.append(e.MessageReceived(number, outbox.popleft()))
            count -= 1

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for number, worker in list(self.workers.items()):
            if self.now >= worker.leaves_at:
                self.drain_worker(number, 25.0)
            elif self.now >= worker.dies_at:
                self.lose_worker(number)
        self.events.append(e.Tick())
        self.handle_events()

    def run_until_quiet(self) -> None:
        """Deliver all messages and end all jobs well, until nothing happens any more."""
        quiet = 0
        for _ in range(3000):
            busy = bool(self.events or self.unsent)
            self.send_user_events(len(self.unsent))
            for number, worker in list(self.workers.items()):
                busy |= bool(worker.inbox or worker.outbox)
                worker.deliver_messages(len(worker.inbox))
                for _job in range(len(worker.jobs)):
                    kind, what = worker.jobs[0]
                    idle = kind == "slot" and worker.slots[what][2] is None and not worker.slots[what][1]
                    busy |= not idle
                    if idle:
                        worker.jobs.append(worker.jobs.pop(0))
                    else:
                        self.jobs.end_job(number, 0, Ending("well", 2))
                    if not worker.jobs:
                        break
                self.deliver_to_scheduler(number, len(worker.outbox))
            self.tick(1.0)
            quiet = 0 if busy or any(w.inbox for w in self.workers.values()) else quiet + 1
            if quiet > 20:
                return
        pytest.fail("the cluster does not come to rest")

    def finish_without_faults(self) -> None:
        """End the history without further faults, and check that everything has ended and is consistent."""
        if not any(x.number and self._can_run_any_task(x.number) for x in self.workers.values()):
            self.worker_number += 1
            self.connect_worker(4, 7, "3.11", 1000)
        self.run_until_quiet()
        alone = [
            number
            for number, spec in self.generator.specs.items()
            if not spec.graph and number not in self.on_demand_tasks
        ]
        assert set(alone) <= self.task_outcomes.keys(), (
            f"never over: {set(alone) - self.task_outcomes.keys()}"
        )
        assert self.graphs.keys() <= self.graph_outcomes.keys(), (
            f"never over: {self.graphs.keys() - self.graph_outcomes.keys()}"
        )
        assert not +self.requested_files, f"never answered: {+self.requested_files}"
        assert not self.state.tasks
        for number, worker in self.workers.items():
            known = {file.name for file in self.state.workers[number].files}
            # persistent objects stay, though no task of this manager needs them
            assert known <= worker.cache.keys() <= known | worker.state.persisted.keys(), (
                f"worker {number} has {worker.cache.keys()}, the scheduler records {known}"
            )
            assert worker.cache.keys() == worker.state.objects.keys()
            assert not (
                worker.offered
                or worker.state.object_table.unverified
                or self.state.workers[number].unverified
            )
            for file, digest in (
                (f, f.replicas[self.state.workers[number]]) for f in self.state.workers[number].files
            ):
                # a replica without a digest is verified only in transfers
                assert not digest or worker.contents[file.name] in (digest, "altered")
            assert not worker.state.tasks
            assert not self.state.workers[number].tasks
        at_manager = {file.name for file in self.state.files.values() if file.at_manager}
        assert at_manager == self.stored_sizes.keys()
        self.release_everything()

    def _can_run_any_task(self, number: int) -> bool:
        worker = self.state.workers.get(number)
        return (
            worker is not None
            and worker.python_ok
            and worker.total.cores >= 4
            and worker.total.disk >= 1000
            and not worker.draining
            and worker.ends_at is None
        )

    def release_everything(self) -> None:
        """Release all files, graphs and libraries, and check that nothing is left."""
        for run in list(self.graphs):
            self.close_graph(run)
        self.unsent.append(e.FilesReleased([*self.temporaries, *self.pinned], prune=False))
        for name in [library.name for library in LIBRARIES if library.name not in self.removed_libraries]:
            self.unsent.append(e.LibraryRemoved(name))
        alone = [
            spec.result
            for spec in self.generator.specs.values()
            if not spec.graph and spec.wanted_at_manager and spec.result in self.stored_sizes
        ]
        self.unsent.append(e.FilesReleased(alone, prune=False))
        declared = [spec.name for spec in reversed(DECLARED) if spec.name not in self.undeclared_files]
        self.declared_files.clear()
        self.unsent.append(e.FilesReleased(declared, prune=False))
        self.run_until_quiet()
        # the name of an input that was not declared when its reader was submitted stays
        left = {name: file for name, file in self.state.files.items() if name not in self.undeclared_files}
        assert left.keys() == {file.name for file in self.state.evictable} - self.undeclared_files, (
            "files are left"
        )
        assert all(file.reusable and file.replicas for file in left.values())
        for file in list(self.state.evictable):
            self.scheduler.files.evict(file)
        self.run_until_quiet()
        assert self.state.files.keys() <= self.undeclared_files, "files are left"
        assert not self.state.evictable
        assert not self.state.queues
        assert set(self.state.graphs) == {0}
        assert not self.stored_sizes
        for number, worker in self.workers.items():
            record = self.state.workers[number]
            assert record.free == record.total
            assert worker.cache.keys() == worker.state.objects.keys()
            assert (
                worker.cache.keys() <= worker.to_keep | worker.state.persisted.keys() | self.undeclared_files
            )
            assert not (worker.state.calls.waiting or worker.state.object_table._to_persist)
            assert not worker.slots or all(
                host.startswith("python:") for host, _c, _s in worker.slots.values()
            )
        replicas = self.scheduler.replicas
        assert not (replicas.active_by_source or replicas.active_by_file_and_source or replicas.stalled)
        left_over = replicas.external_failures.keys() | replicas.peer_failures.keys()
        assert {file.name for file in left_over} <= self.undeclared_files
