"""The simulation: the manager's real scheduler in simulated time, and simulated workers.

The manager is one thread, as in a real run: events that arrive while it is busy wait, and are handled
together when it is free. Its messages leave when the time is over that `Costs` says. The worker's state
machine is loaded when a simulation starts, from the worker's own package; no other module of vinecore
imports that.
"""

from __future__ import annotations

import itertools
import math
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator

from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.specs import FileSpec, GraphSpec, LibrarySpec, TaskSpec
from vinecore.simulate.context import SimulationContext
from vinecore.simulate.network import size_of_message
from vinecore.simulate.report import Report
from vinecore.simulate.settings import Cluster, Costs, Failures
from vinecore.simulate.simulated_worker import SimulatedWorker
from vinecore.simulate.workload import MANAGER, SimulatedFile, SimulatedTask, Workload

GRAPH_NUMBER = 1
MAX_TASKS_PER_SLICE = 256  # tasks that are submitted together, as by `daskvine.computation`
TICK_INTERVAL_S = 0.25
SETUP_BYTES = 2000
STALL_TIMEOUT_S = 300.0  # nothing has happened, and nothing is to come: nothing ever will
PYTHON = "3.11"


class SimulationStalled(RuntimeError):
    """The simulated run can make no progress, and tasks are left."""


def simulate(
    workload: Workload,
    cluster: Cluster | None = None,
    costs: Costs | None = None,
    failures: Failures | None = None,
    *,
    retries: int = 5,
    seed: int = 0,
    validate: bool = False,
) -> Report:
    """Run a workload on a simulated cluster.

    Parameters
    ----------
    workload
        What is to be computed: from `generate`, `load`, or made of `SimulatedTask` records.
    cluster, costs, failures
        The machines, durations and failures around the scheduler; the defaults of each if not given.
    retries
        How often a task may be hit by the loss of its worker before it is blamed.
    seed
        Of what is drawn: when workers are lost. The same arguments give the same report, but for what is really measured.
    validate
        Whether the scheduler's state is validated after each batch of events, which takes long for large workloads.

    Returns
    -------
    Report
        The figures. If a task could not be done, its ``outcome`` says so.

    Raises
    ------
    SimulationStalled
        The run can make no progress, such as when all workers are lost and no others come.
    RuntimeError
        The worker's package is not installed.

    Examples
    --------
    >>> report = simulate(generate("tree", 1000), Cluster(workers=10, cores=8))
    >>> report.makespan_s, report.utilisation  # doctest: +SKIP
    """
    settings = cluster or Cluster(), costs or Costs(), failures or Failures()
    return Simulation(workload, *settings, retries=retries, seed=seed, validate=validate).run()


class Simulation:
    """One simulation."""

    def __init__(
        self,
        workload: Workload,
        cluster: Cluster,
        costs: Costs,
        failures: Failures,
        *,
        retries: int,
        seed: int,
        validate: bool = False,
    ) -> None:
        self._context = context = SimulationContext(workload, cluster, costs)
        self.cluster, self.costs, self.failures = cluster, costs, failures
        self.clock, self.report = context.clock, context.report
        self._by_address: dict[str, SimulatedWorker] = {}
        self._nodes: dict[int, SimulatedWorker] = {}
        self._numbers = itertools.count(1)
        self._chance = random.Random(seed)
        self._scheduler = Scheduler(PYTHON, validate=validate)
        self._inbox: list[e.Event] = []
        self._free_at = self._last_activity_at = 0.0
        self._awake = self._ended = self._over = False
        self._jobs = context.tasks
        self._schedule_submission(workload, retries)
        if failures.worker_lifetimes:
            for came, lost in failures.worker_lifetimes:
                self.clock.schedule_at(came, self._connect_worker, lost)
        else:
            for number in range(cluster.workers):
                self.clock.schedule_at(
                    costs.connect_s + failures.arrival_window_s * number / cluster.workers,
                    self._connect_worker,
                )
        self.clock.schedule_at(TICK_INTERVAL_S, self._on_tick, background=True)

    def run(self) -> Report:
        """Go on until the user knows how it ended."""
        started = time.perf_counter()
        while not self._over:
            self.clock.run_next()
        report = self.report
        report.makespan_s = self.clock.now
        for node in self._nodes.values():
            self._count_core_seconds(node)
        self._context.complete_report()
        report.elapsed_s = time.perf_counter() - started
        scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
        report.peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
        return report

    def _schedule_submission(self, workload: Workload, retries: int) -> None:
        specs = [FileSpec(f"setup of {name}", SETUP_BYTES, at_manager=True) for name in workload.libraries]
        specs += [_file_spec(file) for file in workload.files.values()]
        sizes = self._context.sizes
        sizes.update({spec.name: SETUP_BYTES for spec in specs if spec.name not in sizes})
        cluster = self.cluster
        tuned = {
            "scheduler": cluster.scheduler,
            "peer-transfers": cluster.peer_transfers,
            "temp-replica-count": cluster.replicas,
        }
        self._post_events(
            *(e.SettingChanged(name, value) for name, value in tuned.items()), e.FilesDeclared(specs)
        )
        self._post_events(
            *(e.LibraryInstalled(LibrarySpec(name, f"setup of {name}")) for name in workload.libraries)
        )
        self._post_events(
            e.GraphOpened(GraphSpec(GRAPH_NUMBER, "simulated", retries, size=len(workload.jobs)))
        )
        tasks = self._make_specs(workload)
        end = 0.0
        for part in _slice_tasks(tasks, workload.jobs):
            begin = max(end, workload.jobs[part[0].task - 1].submitted_s)
            end = begin + len(part) * self.costs.submit_s
            self.clock.schedule_at(end, self._post_events, e.TasksSubmitted(part))
        self.clock.schedule_at(end, self._post_events, e.GraphSubmitted(GRAPH_NUMBER))

    def _make_specs(self, workload: Workload) -> list[TaskSpec]:
        readers = Counter(name for job in workload.jobs for name in job.inputs)
        depths: dict[str, int] = {}
        specs = []
        for number, job in enumerate(workload.jobs, 1):
            depths[job.key] = max((depths[name] + 1 for name in job.inputs if name in depths), default=0)
            wanted = (job.key,) if job.wanted or self.cluster.results_to_manager else ()
            spec = TaskSpec(
                number,
                job.key,
                job.key,
                GRAPH_NUMBER,
                job.library,
                job.category,
                inputs=job.inputs,
                wanted_at_manager=wanted,
            )
            if not job.library:
                spec = spec._replace(request=ResourceRequest(cores=job.cores))
            specs.append(
                spec._replace(
                    category=job.category,
                    priority=number,
                    depth=depths[job.key],
                    reader_count=readers[job.key],
                )
            )
        return specs

    def _post_events(self, *events: e.Event) -> None:
        """Something has reached the manager, which takes it up when it is free."""
        self._inbox += events
        if not self._awake and self._inbox:
            self._awake = True
            self.clock.schedule_at(self._free_at, self._manager_iteration)

    def _manager_iteration(self) -> None:
        """Handle all events that have arrived at the manager."""
        events, self._inbox = self._inbox, []
        self._awake = False
        if any(type(event) is not e.Tick for event in events):
            self._last_activity_at = self.clock.now
        began = time.thread_time()
        out = self._scheduler.handle(events, self.clock.now)
        self.report.manager_cpu_s += time.thread_time() - began
        count = sum(len(event.tasks) if type(event) is e.TasksSubmitted else 1 for event in events)
        letters: dict[int, list[m.Message]] = {}
        for x in out:
            self._execute_instruction(x, letters)
        messages = sum(map(len, letters.values()))
        tasks = sum(type(message) is m.RunTask for letter in letters.values() for message in letter)
        costs = self.costs
        busy = (
            costs.loop_iteration_s + costs.event_s * count + costs.message_s * messages + costs.task_s * tasks
        )
        self._free_at = self.clock.now + busy
        report = self.report
        report.manager_busy_s += busy
        report.events += count
        report.messages += messages
        self.clock.schedule_at(self._free_at, self._send_messages, letters)
        if self._ended:
            self.clock.schedule_at(self._free_at, self._finish)

    def _execute_instruction(self, x: i.Instruction, letters: dict[int, list[m.Message]]) -> None:
        if isinstance(x, i.Send):
            letters.setdefault(x.worker, []).append(x.message)
        elif isinstance(x, i.SendObject):
            size = self._context.sizes[x.name]
            self._context.count_transfer("to_workers", size, 0, x.worker)
            letters.setdefault(x.worker, []).append(m.PutObject(x.name, bytes(size)))
        elif isinstance(x, i.StoreObject):
            self.report.add_bytes("to_manager", len(x.payload))  # small, and nobody says whose it was
        elif isinstance(x, i.Disconnect):
            self.clock.schedule_in(0.0, self._lose_worker, x.worker, x.reason)
        elif isinstance(x, i.GraphFinished):
            self.report.outcome = x.outcome
            if x.outcome != "success":
                about = x.info.get("reason") or "; ".join(x.info.get("evidence") or ())
                self.report.reason = f"{self._jobs[x.task - 1].key}: {about or x.outcome}"
            self._ended = True

    def _finish(self) -> None:
        self._over = True

    def _send_messages(self, letters: dict[int, list[m.Message]]) -> None:
        """Deliver the manager's messages, to each worker in order."""
        for number, messages in letters.items():
            node = self._nodes.get(number)
            if node is not None:
                size = sum(map(size_of_message, messages))
                way = self.cluster.latency_s + size / self.cluster.manager_bandwidth
                node.last_delivery_to_worker = max(node.last_delivery_to_worker, self.clock.now + way)
                self.clock.schedule_at(node.last_delivery_to_worker, node.handle, *messages)

    def receive_from_worker(self, node: SimulatedWorker, messages: list[m.Message]) -> None:
        """Deliver messages of a worker to the manager, in order."""
        size = sum(map(size_of_message, messages))
        way = self.cluster.latency_s + size / self.cluster.bandwidth
        node.last_delivery_to_manager = max(node.last_delivery_to_manager, self.clock.now + way)
        self.clock.schedule_at(node.last_delivery_to_manager, self._deliver_to_manager, node, messages)

    def _deliver_to_manager(self, node: SimulatedWorker, messages: list[m.Message]) -> None:
        if node.number in self._nodes:
            self._post_events(*(e.MessageReceived(node.number, message) for message in messages))

    def find_worker(self, address: str) -> SimulatedWorker | None:
        """Return the connected worker at an address."""
        return self._by_address.get(address)

    def on_object_stored(self, name: str, size: int) -> None:
        """Tell the scheduler that the manager has all of an object."""
        self._post_events(e.ObjectStored(name, size))

    def _on_tick(self) -> None:
        self._post_events(e.Tick())
        self.clock.schedule_at(self.clock.now + TICK_INTERVAL_S, self._on_tick, background=True)
        # what is pending is at most this tick's own turn and the delivery of what it answered
        if self.clock.pending <= 1 and self.clock.now - self._last_activity_at > STALL_TIMEOUT_S:
            missing = self._scheduler.stalled_reason or (
                "no worker is connected" if not self._nodes else "nothing is under way"
            )
            msg = f"nothing has happened for {STALL_TIMEOUT_S:.0f} s of simulated time, and nothing will: {missing}"
            raise SimulationStalled(msg)

    def _connect_worker(self, lost_at: float | None = None) -> None:
        number = next(self._numbers)
        node = self._nodes[number] = SimulatedWorker(self._context, self, number)
        self._by_address[node.address] = node
        cluster, report = self.cluster, self.report
        report.workers += 1
        report.cores = max(report.cores, len(self._nodes) * cluster.cores)
        host = node.address.partition(":")[0]
        hello = m.Hello(1, host, 1, PYTHON, cluster.cores, cluster.memory_mb, cluster.disk_mb, 0, 1, [], {})
        self.clock.schedule_in(cluster.latency_s, self._post_events, e.WorkerConnected(number, host, hello))
        if lost_at is not None:
            if lost_at < math.inf:
                self.clock.schedule_at(lost_at, self._lose_worker, number, "it was lost", background=True)
        elif self.failures.losses_per_hour:
            lives = self._chance.expovariate(self.failures.losses_per_hour / 3600)
            self.clock.schedule_at(
                self.clock.now + lives, self._lose_worker, number, "it was lost", background=True
            )

    def _lose_worker(self, number: int, reason: str) -> None:
        node = self._nodes.pop(number, None)
        if node is None:
            return
        node.kill()
        del self._by_address[node.address]
        self._count_core_seconds(node)
        self.report.workers_lost += 1
        self.clock.schedule_in(
            self.failures.detection_delay_s + self.cluster.latency_s,
            self._post_events,
            e.WorkerDisconnected(number, reason),
        )
        if self.failures.replaced_after_s < math.inf and not self.failures.worker_lifetimes:
            self.clock.schedule_in(
                self.failures.replaced_after_s + self.costs.connect_s, self._connect_worker
            )

    def _count_core_seconds(self, node: SimulatedWorker) -> None:
        self.report.core_s += (self.clock.now - node.joined_at) * self.cluster.cores


def _slice_tasks(specs: list[TaskSpec], jobs: list[SimulatedTask]) -> Iterator[list[TaskSpec]]:
    """Split tasks into slices of bounded size with the same submission time."""
    part: list[TaskSpec] = []
    for spec, job in zip(specs, jobs, strict=True):
        if part and (
            len(part) == MAX_TASKS_PER_SLICE or job.submitted_s != jobs[part[0].task - 1].submitted_s
        ):
            yield part
            part = []
        part.append(spec)
    yield part


def _file_spec(file: SimulatedFile) -> FileSpec:
    if file.at == MANAGER:
        return FileSpec(file.name, file.size, at_manager=True)
    return FileSpec(file.name, file.size, url=f"storage://{file.name}")
