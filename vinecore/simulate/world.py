"""The simulation: a manager's real mind, its hands in simulated time, and workers.

The manager is one thread, as it is: what arrives while it is busy waits, and is handled together when it is free; what the mind answers leaves when the
time is over that this takes by `Costs`. The worker's state machine is loaded when a simulation starts, from the worker's own package: nothing else in
vinecore knows it.
"""

from __future__ import annotations

import importlib
import itertools
import math
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from vinecore.core import events as e
from vinecore.core import instructions as i
from vinecore.core.allocation import Request
from vinecore.core.mind import Mind
from vinecore.core.state import FileSpec, LibrarySpec, RunSpec, TaskSpec
from vinecore.protocol import messages as m
from vinecore.simulate.clock import Clock
from vinecore.simulate.network import Link
from vinecore.simulate.node import Execution, Node, size_of_message
from vinecore.simulate.report import Report
from vinecore.simulate.settings import Cluster, Costs, Failures
from vinecore.simulate.workload import MANAGER, File, Job, Workload

RUN = 1
SLICE = 256  # tasks that are submitted together, as by `daskvine.run`
TICK_S = 0.25
SETUP_BYTES = 2000
QUIET_S = 300.0  # nothing has happened, and nothing is to come: nothing ever will
NUMBER = (1 << 40) - 1  # of a ticket, what is the task's own
PYTHON = "3.11"
WORKER = ("vineworker.state", "vineworker.events", "vineworker.calls")


class Stuck(RuntimeError):
    """Nothing can happen any more, and the workload is not done."""


def simulate(
    workload: Workload,
    cluster: Cluster | None = None,
    costs: Costs | None = None,
    failures: Failures | None = None,
    *,
    retries: int = 5,
    seed: int = 0,
) -> Report:
    """Run a workload on a simulated cluster.

    Parameters
    ----------
    workload
        What is to be computed: from `generate`, `load`, or made of `Job` records.
    cluster, costs, failures
        What surrounds the mind; the defaults of each if they are not given.
    retries
        How often a task may be hit by the loss of its worker before it is blamed.
    seed
        Of what is drawn: when workers are lost. The same arguments give the same report, but for what is really measured.

    Returns
    -------
    Report
        The figures. If a task could not be done, its ``outcome`` says so.

    Raises
    ------
    Stuck
        Nothing can happen any more, such as when all workers are lost and no others come.
    RuntimeError
        The worker's package is not installed.

    Examples
    --------
    >>> report = simulate(generate("tree", 1000), Cluster(workers=10, cores=8))
    >>> report.makespan_s, report.utilisation  # doctest: +SKIP
    """
    settings = cluster or Cluster(), costs or Costs(), failures or Failures()
    return World(workload, *settings, retries=retries, seed=seed).run()


class World:
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
    ) -> None:
        self.cluster, self.costs, self.failures = cluster, costs, failures
        self.clock = Clock()
        self.report = Report(tasks=len(workload.jobs))
        self.worker_mind, self.happens, self.reply = _worker()
        self.storage = Link(self.clock, cluster.storage.bandwidth, cluster.storage.stream)
        self.manager_up, self.manager_down = (Link(self.clock, cluster.manager_bandwidth) for _ in range(2))
        self.by_address: dict[str, Node] = {}
        self._nodes: dict[int, Node] = {}
        self._numbers = itertools.count(1)
        self._chance = random.Random(seed)
        self._mind = Mind(PYTHON)
        self._inbox: list[e.Event] = []
        self._free_at = self._news_at = 0.0
        self._awake = self._ended = self._over = False
        self._jobs = workload.jobs
        self._sizes: dict[str, int] = {
            **{job.key: job.size for job in self._jobs},
            **{name: file.size for name, file in workload.files.items()},
        }
        self._begun: Counter[int] = Counter()
        self._useful: dict[int, float] = {}
        self._between: Counter[tuple[int, int]] = (
            Counter()
        )  # bytes, by the numbers of both ends; 0 is the manager
        self._submit(workload, retries)
        if failures.lives:
            for came, lost in failures.lives:
                self.clock.at(came, self._join, lost)
        else:
            for number in range(cluster.workers):
                self.clock.at(costs.connect_s + failures.arrive_s * number / cluster.workers, self._join)
        self.clock.at(TICK_S, self._tick, background=True)

    def run(self) -> Report:
        """Go on until the user knows how it ended."""
        started = time.perf_counter()
        while not self._over:
            self.clock.step()
        report = self.report
        report.makespan_s = self.clock.now
        for node in self._nodes.values():
            self._account(node)
        report.run_again = sum(times - 1 for times in self._begun.values())
        report.most_between_two = max(self._between.values(), default=0)
        report.useful_core_s = sum(self._useful.values())
        report.took_s = time.perf_counter() - started
        scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
        report.peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
        return report

    # ---- the user

    def _submit(self, workload: Workload, retries: int) -> None:
        specs = [FileSpec(f"setup of {name}", SETUP_BYTES, at_manager=True) for name in workload.libraries]
        specs += [_declared(file) for file in workload.files.values()]
        self._sizes.update({spec.name: SETUP_BYTES for spec in specs if spec.name not in self._sizes})
        cluster = self.cluster
        tuned = {
            "scheduler": cluster.scheduler,
            "peer-transfers": cluster.peer_transfers,
            "temp-replica-count": cluster.copies,
        }
        self._post(*(e.Tuned(name, value) for name, value in tuned.items()), e.FilesDeclared(specs))
        self._post(
            *(e.LibraryInstalled(LibrarySpec(name, f"setup of {name}")) for name in workload.libraries)
        )
        self._post(e.RunOpened(RunSpec(RUN, "simulated", retries, size=len(workload.jobs))))
        tasks = self._specs(workload)
        end = 0.0
        for part in _slices(tasks, workload.jobs):
            begin = max(end, workload.jobs[part[0].task - 1].submitted_s)
            end = begin + len(part) * self.costs.submit_s
            self.clock.at(end, self._post, e.TasksSubmitted(part))
        self.clock.at(end, self._post, e.RunSubmitted(RUN))

    def _specs(self, workload: Workload) -> list[TaskSpec]:
        readers = Counter(name for job in workload.jobs for name in job.inputs)
        depths: dict[str, int] = {}
        specs = []
        for number, job in enumerate(workload.jobs, 1):
            depths[job.key] = max((depths[name] + 1 for name in job.inputs if name in depths), default=0)
            wanted = (job.key,) if job.wanted or self.cluster.results_to_manager else ()
            spec = TaskSpec(
                number, job.key, job.key, RUN, job.library, job.category, inputs=job.inputs, wanted=wanted
            )
            if not job.library:
                spec = spec._replace(request=Request(cores=job.cores))
            specs.append(
                spec._replace(
                    category=job.category, priority=number, depth=depths[job.key], readers=readers[job.key]
                )
            )
        return specs

    def job(self, ticket: int) -> Job:
        """What a worker has been asked to do."""
        return self._jobs[(ticket & NUMBER) - 1]

    def size_of(self, name: str) -> int:
        """Bytes of a result or a file."""
        return self._sizes[name]

    # ---- the manager

    def _post(self, *events: e.Event) -> None:
        """Something has reached the manager, which takes it up when it is free."""
        self._inbox += events
        if not self._awake and self._inbox:
            self._awake = True
            self.clock.at(self._free_at, self._turn)

    def _turn(self) -> None:
        """The manager takes up all that has arrived."""
        events, self._inbox = self._inbox, []
        self._awake = False
        if any(type(event) is not e.Tick for event in events):
            self._news_at = self.clock.now
        began = time.thread_time()
        out = self._mind.handle(events, self.clock.now)
        self.report.manager_cpu_s += time.thread_time() - began
        count = sum(len(event.tasks) if type(event) is e.TasksSubmitted else 1 for event in events)
        letters: dict[int, list[m.Message]] = {}
        for x in out:
            self._carry(x, letters)
        messages = sum(map(len, letters.values()))
        tasks = sum(type(message) is m.Run for letter in letters.values() for message in letter)
        costs = self.costs
        busy = costs.turn_s + costs.event_s * count + costs.message_s * messages + costs.task_s * tasks
        self._free_at = self.clock.now + busy
        report = self.report
        report.manager_busy_s += busy
        report.events += count
        report.messages += messages
        self.clock.at(self._free_at, self._deliver, letters)
        if self._ended:
            self.clock.at(self._free_at, self._finish)

    def _carry(self, x: i.Instruction, letters: dict[int, list[m.Message]]) -> None:
        if isinstance(x, i.Send):
            letters.setdefault(x.worker, []).append(x.message)
        elif isinstance(x, i.SendObject):
            size = self.size_of(x.name)
            self.moved("to_workers", size, 0, x.worker)
            letters.setdefault(x.worker, []).append(m.Put(x.name, bytes(size)))
        elif isinstance(x, i.Keep):
            self.report.moved("to_manager", len(x.payload))  # small, and nobody says whose it was
        elif isinstance(x, i.Disconnect):
            self.clock.after(0.0, self._lose, x.worker, x.reason)
        elif isinstance(x, i.RunEnded):
            self.report.outcome = x.outcome
            if x.outcome != "success":
                about = x.info.get("reason") or "; ".join(x.info.get("evidence") or ())
                self.report.reason = f"{self._jobs[x.task - 1].key}: {about or x.outcome}"
            self._ended = True

    def _finish(self) -> None:
        self._over = True

    def _deliver(self, letters: dict[int, list[m.Message]]) -> None:
        """What the manager has written leaves: to each worker in order."""
        for number, messages in letters.items():
            node = self._nodes.get(number)
            if node is not None:
                size = sum(map(size_of_message, messages))
                way = self.cluster.latency_s + size / self.cluster.manager_bandwidth
                node.heard_until = max(node.heard_until, self.clock.now + way)
                self.clock.at(node.heard_until, node.feed, *messages)

    def heard(self, node: Node, messages: list[m.Message]) -> None:
        """A worker says something, which arrives in order."""
        size = sum(map(size_of_message, messages))
        way = self.cluster.latency_s + size / self.cluster.bandwidth
        node.said_until = max(node.said_until, self.clock.now + way)
        self.clock.at(node.said_until, self._arrive, node, messages)

    def _arrive(self, node: Node, messages: list[m.Message]) -> None:
        if node.number in self._nodes:
            self._post(*(e.WorkerSaid(node.number, message) for message in messages))

    def moved(self, kind: str, size: int, one: int, other: int) -> None:
        """Count a transfer between two ends; the manager is number 0."""
        self.report.moved(kind, size)
        self._between[min(one, other), max(one, other)] += size

    def stored(self, name: str, size: int) -> None:
        """The manager has all of an object."""
        self._post(e.ObjectStored(name, size))

    def _tick(self) -> None:
        self._post(e.Tick())
        self.clock.at(self.clock.now + TICK_S, self._tick, background=True)
        # what is pending is at most this tick's own turn and the delivery of what it answered
        if self.clock.pending <= 1 and self.clock.now - self._news_at > QUIET_S:
            missing = self._mind.missing or (
                "no worker is connected" if not self._nodes else "nothing is under way"
            )
            msg = f"nothing has happened for {QUIET_S:.0f} s of simulated time, and nothing will: {missing}"
            raise Stuck(msg)

    # ---- workers

    def _join(self, lost_at: float | None = None) -> None:
        number = next(self._numbers)
        node = self._nodes[number] = Node(self, number)
        self.by_address[node.address] = node
        cluster, report = self.cluster, self.report
        report.workers += 1
        report.cores = max(report.cores, len(self._nodes) * cluster.cores)
        host = node.address.partition(":")[0]
        hello = m.Hello(1, host, 1, PYTHON, cluster.cores, cluster.memory_mb, cluster.disk_mb, 0, 1, [], {})
        self.clock.after(cluster.latency_s, self._post, e.WorkerJoined(number, host, hello))
        if lost_at is not None:
            if lost_at < math.inf:
                self.clock.at(lost_at, self._lose, number, "it was lost", background=True)
        elif self.failures.losses_per_hour:
            lives = self._chance.expovariate(self.failures.losses_per_hour / 3600)
            self.clock.at(self.clock.now + lives, self._lose, number, "it was lost", background=True)

    def _lose(self, number: int, reason: str) -> None:
        node = self._nodes.pop(number, None)
        if node is None:
            return
        node.die()
        del self.by_address[node.address]
        self._account(node)
        self.report.workers_lost += 1
        self.clock.after(
            self.failures.noticed_after_s + self.cluster.latency_s, self._post, e.WorkerLost(number, reason)
        )
        if self.failures.replaced_after_s < math.inf and not self.failures.lives:
            self.clock.after(self.failures.replaced_after_s + self.costs.connect_s, self._join)

    def _account(self, node: Node) -> None:
        self.report.core_s += (self.clock.now - node.joined_at) * self.cluster.cores

    def begun(self, execution: Execution) -> None:
        """A worker has begun with a task."""
        self.report.executions += 1
        self._begun[execution.run.task & NUMBER] += 1

    def ended(self, execution: Execution, *, well: bool) -> None:
        """A task has run to its end."""
        self.broken_off(execution)
        if well:
            job = self.job(execution.run.task)
            self._useful[execution.run.task & NUMBER] = job.seconds * self._cores(job)

    def broken_off(self, execution: Execution) -> None:
        """A task has had its cores, to whatever end."""
        self.report.busy_core_s += (self.clock.now - execution.began) * self._cores(
            self.job(execution.run.task)
        )

    @staticmethod
    def _cores(job: Job) -> float:
        return 1.0 if job.library else job.cores


def _slices(specs: list[TaskSpec], jobs: list[Job]) -> Iterator[list[TaskSpec]]:
    """What is submitted together: bounded in number, and at one time."""
    part: list[TaskSpec] = []
    for spec, job in zip(specs, jobs, strict=True):
        if part and (len(part) == SLICE or job.submitted_s != jobs[part[0].task - 1].submitted_s):
            yield part
            part = []
        part.append(spec)
    yield part


def _declared(file: File) -> FileSpec:
    if file.at == MANAGER:
        return FileSpec(file.name, file.size, at_manager=True)
    return FileSpec(file.name, file.size, url=f"storage://{file.name}")


def _worker() -> tuple[Any, Any, Any]:
    """The worker's mind, what can happen to it, and the reply of its slots."""
    try:
        state, happens, calls = map(importlib.import_module, WORKER)
    except ImportError as error:
        msg = f"the simulator runs the worker's own state machine, and the package vineworker is not installed: {error}"
        raise RuntimeError(msg) from error
    return state.WorkerState, happens, calls.Reply
